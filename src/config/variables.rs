//! Environment variables and their place in string values: `${NAME}`, `${NAME:-default}`, `$$`. Substitution works
//! on one parsed value, never on the text of the file, so a variable cannot add keys.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// The environment as the configuration sees it.
#[derive(Clone, Default)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// The variables of this process; those that are not UTF-8 count as unset. The only reader of the environment.
    pub fn from_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// The value of `name`; an empty value is a value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl std::fmt::Debug for Variables {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A string value after substitution.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expanded<'a> {
    pub(super) text: Cow<'a, str>,
    /// Whether any part came from the environment, and so must not be repeated in a message.
    pub(super) from_environment: bool,
}

/// Why a string value cannot be filled in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ExpandError {
    #[error("the environment variable {0} is not set; set it, or give a default as in \"${{{0}:-default}}\"")]
    Unset(String),
    #[error(
        "\"${{\" without a closing \"}}\"; accepted: ${{NAME}}, ${{NAME:-default}}, and $$ for a dollar sign"
    )]
    Unclosed,
    #[error(
        "a variable name is made of letters, digits and underscores; accepted: ${{NAME}}, ${{NAME:-default}}"
    )]
    Name,
    #[error("a default cannot hold another variable; accepted: ${{NAME}}, ${{NAME:-default}}")]
    Nested,
}

/// Fills in `text`. A default stands in only when the variable is unset: set but empty is a choice
/// (`REDIS_URL=` means memory only).
pub(super) fn expand<'a>(text: &'a str, variables: &Variables) -> Result<Expanded<'a>, ExpandError> {
    if !text.contains('$') {
        return Ok(Expanded { text: Cow::Borrowed(text), from_environment: false });
    }
    let mut out = String::with_capacity(text.len());
    let mut from_environment = false;
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let (inner, after) = after.split_once('}').ok_or(ExpandError::Unclosed)?;
            let (name, default) = match inner.split_once(":-") {
                Some((name, default)) => (name, Some(default)),
                None => (inner, None),
            };
            if !is_name(name) {
                return Err(ExpandError::Name);
            }
            if default.is_some_and(|default| default.contains("${")) {
                return Err(ExpandError::Nested);
            }
            match (variables.get(name), default) {
                (Some(value), _) => {
                    out.push_str(value);
                    from_environment = true;
                }
                (None, Some(default)) => out.push_str(default),
                (None, None) => return Err(ExpandError::Unset(name.to_owned())),
            }
            rest = after;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(Expanded { text: Cow::Owned(out), from_environment })
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<String, ExpandError> {
        let variables = Variables::from_iter([("A", "one"), ("EMPTY", ""), ("TRICK", "${A}\"\n[admin]")]);
        expand(text, &variables).map(|expanded| expanded.text.into_owned())
    }

    #[test]
    fn variables_are_filled_in_once() {
        assert_eq!(filled("x${A}y${A}").unwrap(), "xoneyone");
        assert_eq!(filled("${TRICK}").unwrap(), "${A}\"\n[admin]");
        assert_eq!(filled("$$ $${A} $A $").unwrap(), "$ ${A} $A $");
    }

    #[test]
    fn default_stands_in_only_for_an_unset_variable() {
        assert_eq!(filled("${B:-two}").unwrap(), "two");
        assert_eq!(filled("${B:-}").unwrap(), "");
        assert_eq!(filled("${EMPTY:-two}").unwrap(), "");
        assert_eq!(filled("${A:-two}").unwrap(), "one");
    }

    #[test]
    fn malformed_references_are_refused() {
        assert_eq!(filled("${B}"), Err(ExpandError::Unset("B".into())));
        assert_eq!(filled("${A"), Err(ExpandError::Unclosed));
        assert_eq!(filled("${}"), Err(ExpandError::Name));
        assert_eq!(filled("${1A}"), Err(ExpandError::Name));
        assert_eq!(filled("${A-b}"), Err(ExpandError::Name));
        assert_eq!(filled("${B:-${A}}"), Err(ExpandError::Nested));
    }

    #[test]
    fn debug_shows_names_only() {
        let shown = format!("{:?}", Variables::from_iter([("JWT_SECRET", "hunter2")]));
        assert_eq!(shown, "{\"JWT_SECRET\"}");
    }
}
