//! Cache tags with placeholders, such as `todos:{user}`. It parses and lists the parts; it never fills them in.

use super::error::did_you_mean;

/// One part of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePart {
    /// Text as it stands.
    Literal(Box<str>),
    /// The subject of the caller.
    User,
    /// The `:name` segment of the path.
    Param(Box<str>),
}

/// A tag whose placeholders are known to exist on its route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// As written.
    pub text: Box<str>,
    /// From the left; never empty.
    pub parts: Vec<TemplatePart>,
}

impl Template {
    /// Parses `text` for a path with `params`.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence for the operator.
    pub(super) fn parse(text: &str, params: &[&str]) -> Result<Self, String> {
        const FORM: &str = "a tag such as \"todos:{user}\" in visible ASCII";
        if text.is_empty() || text.len() > 128 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{text:?} is not accepted; accepted: {FORM} of at most 128 characters"));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, after)) = rest.split_once('{') {
            let (name, after) = after
                .split_once('}')
                .ok_or_else(|| format!("{text:?} has a \"{{\" without its \"}}\"; accepted: {FORM}"))?;
            if !literal.is_empty() {
                parts.push(TemplatePart::Literal(literal.into()));
            }
            parts.push(match name {
                "user" => TemplatePart::User,
                name if params.contains(&name) => TemplatePart::Param(name.into()),
                name => {
                    let known = std::iter::once("user").chain(params.iter().copied());
                    let list: Vec<String> = known.clone().map(|known| format!("{{{known}}}")).collect();
                    let hint = did_you_mean(name, known);
                    return Err(format!("{{{name}}} is not known here; accepted: {}{hint}", list.join(", ")));
                }
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(TemplatePart::Literal(rest.into()));
        }
        Ok(Self { text: text.into(), parts })
    }

    /// Whether it needs to know the caller.
    pub fn has_user(&self) -> bool {
        self.parts.contains(&TemplatePart::User)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_literals_user_and_params() {
        let template = Template::parse("a:{user}:{id}", &["id"]).unwrap();
        let literal = |text: &str| TemplatePart::Literal(text.into());
        assert_eq!(
            template.parts,
            [literal("a:"), TemplatePart::User, literal(":"), TemplatePart::Param("id".into())]
        );
        assert!(template.has_user());
    }

    #[test]
    fn unknown_placeholder_names_the_known_ones() {
        let message = Template::parse("t:{usr}", &["id"]).unwrap_err();
        assert_eq!(message, "{usr} is not known here; accepted: {user}, {id} (did you mean \"user\"?)");
        assert!(Template::parse("t:{id", &["id"]).is_err());
        assert!(Template::parse("a b", &[]).is_err());
        assert!(Template::parse("", &[]).is_err());
    }
}
