//! Tags: names of what a stored response depends on, and of what a write changes.
//! Values from requests are encoded so that none can forge another tag or grow without bound.

use thiserror::Error;

use crate::identifiers::encode_key_part;

/// Stands for "nobody" where a template says `{user}`; no encoded value starts with `-`.
const ANONYMOUS: &str = "-anonymous";
/// Stands for an empty or absent value.
const EMPTY: &str = "-empty";
/// Everything stored depends on it; no template renders to it.
const EPOCH: &str = "-epoch";

/// Its generation is the version of the list of purges by prefix; everything stored depends on it. The braces put it
/// into one slot of a Cluster with the list. No template renders to it.
pub(super) const PREFIXES: &str = "{-prefixes}";
/// Place of [`PREFIXES`] among the tags of a request.
pub(super) const PREFIXES_AT: usize = 1;
/// How many tags a request has, usually.
const USUAL: usize = 6;
/// Leading digits of a published key that its tag has.
pub(super) const KEY_DIGITS: usize = 4;

/// A tag pattern such as `todo:{id}` or `todos:{user}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagTemplate {
    parts: Box<[Part]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    User,
    Param(Box<str>),
}

/// Why a tag pattern is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TagError {
    /// Nothing in it.
    #[error("a cache tag must not be empty")]
    Empty,
    /// Braces do not pair up.
    #[error("unbalanced braces in a cache tag")]
    Braces,
    /// Two placeholders touch, so that different values could read the same.
    #[error("placeholders in a cache tag need text between them")]
    Adjacent,
    /// A character that tags do not use.
    #[error("`{0}` is not allowed in a cache tag; letters, digits and . _ ~ @ : / - are")]
    Character(char),
    /// Tags that start with `-` are the gateway's own.
    #[error("a cache tag must not start with `-`")]
    Reserved,
    /// A placeholder that the route does not have.
    #[error("unknown placeholder `{{{name}}}` in a cache tag; accepted: {accepted}")]
    Unknown {
        /// What was written.
        name: Box<str>,
        /// What could have been written.
        accepted: Box<str>,
    },
}

impl TagTemplate {
    /// Parses `text`; placeholders are `{user}` and the route's path parameters `params`.
    pub fn parse(text: &str, params: &[&str]) -> Result<Self, TagError> {
        if text.is_empty() {
            return Err(TagError::Empty);
        }
        if text.starts_with('-') {
            return Err(TagError::Reserved);
        }
        let mut parts: Vec<Part> = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(inner) = rest.strip_prefix('{') {
                let (name, after) = inner.split_once('}').ok_or(TagError::Braces)?;
                if matches!(parts.last(), Some(Part::User | Part::Param(_))) {
                    return Err(TagError::Adjacent);
                }
                parts.push(placeholder(name, params)?);
                rest = after;
            } else {
                let end = rest.find('{').unwrap_or(rest.len());
                let (literal, after) = rest.split_at(end);
                check_literal(literal)?;
                parts.push(Part::Literal(literal.into()));
                rest = after;
            }
        }
        Ok(Self { parts: parts.into() })
    }

    /// The tag for this `user` (`None`: anonymous) and these path parameters.
    pub fn render<'a>(&self, user: Option<&str>, param: impl Fn(&str) -> Option<&'a str>) -> Box<str> {
        let mut tag = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => tag.push_str(text),
                Part::User => push_user(&mut tag, user),
                Part::Param(name) => push_value(&mut tag, param(name).unwrap_or_default()),
            }
        }
        tag.into()
    }
}

fn placeholder(name: &str, params: &[&str]) -> Result<Part, TagError> {
    if name == "user" {
        Ok(Part::User)
    } else if params.contains(&name) {
        Ok(Part::Param(name.into()))
    } else {
        let mut accepted = String::from("{user}");
        for param in params {
            accepted.push_str(", {");
            accepted.push_str(param);
            accepted.push('}');
        }
        Err(TagError::Unknown { name: name.into(), accepted: accepted.into() })
    }
}

fn check_literal(literal: &str) -> Result<(), TagError> {
    match literal.chars().find(|&c| !(is_plain(c) || c == ':' || c == '/')) {
        None => Ok(()),
        Some('}') => Err(TagError::Braces),
        Some(other) => Err(TagError::Character(other)),
    }
}

const fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '~' | '@' | '-')
}

fn push_user(tag: &mut String, user: Option<&str>) {
    match user {
        Some(user) => push_value(tag, user),
        None => tag.push_str(ANONYMOUS),
    }
}

/// Appends `value` so that different values read differently and none reads as a reserved word.
fn push_value(tag: &mut String, value: &str) {
    if value.is_empty() {
        tag.push_str(EMPTY);
        return;
    }
    let encoded = encode_key_part(value);
    match encoded.strip_prefix('-') {
        Some(rest) => {
            tag.push_str("%2D");
            tag.push_str(rest);
        }
        None => tag.push_str(&encoded),
    }
}

/// The tags of one request; the first is always the epoch, the second the purges by prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags(Vec<Box<str>>);

impl Tags {
    /// Those that everything stored has.
    pub fn epoch() -> Self {
        let mut tags = Vec::with_capacity(USUAL);
        tags.extend([EPOCH.into(), PREFIXES.into()]);
        Self(tags)
    }

    /// Adds `tag` unless it is there.
    pub fn push(&mut self, tag: Box<str>) {
        if !self.0.contains(&tag) {
            self.0.push(tag);
        }
    }

    /// In the order their generations are asked for.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }

    /// How many, with those that everything has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: the epoch is always there.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The tags that a write with this `user` and these path parameters changes.
pub fn render_all<'a>(
    templates: &[TagTemplate],
    user: Option<&str>,
    param: impl Fn(&str) -> Option<&'a str>,
) -> Vec<Box<str>> {
    templates.iter().map(|template| template.render(user, &param)).collect()
}

/// The tag of everything.
pub fn epoch_tag() -> Box<str> {
    EPOCH.into()
}

/// The tag of everything stored for route `name`.
pub fn route_tag(name: &str) -> Box<str> {
    of("route:", name)
}

/// The tag of everything stored for the URI of a published key (`X-Cache-Key`), whoever asked for it, and of one URI in
/// 65,536 beside it: each tag in use is a key in Redis, and an object shall not need one of its own.
pub fn key_tag(public_key: &str) -> Box<str> {
    of("key:", public_key.get(..KEY_DIGITS).unwrap_or(public_key))
}

fn of(kind: &str, value: &str) -> Box<str> {
    // As long as it becomes, usually: every request has some.
    let mut tag = String::with_capacity(kind.len() + value.len());
    tag.push_str(kind);
    push_value(&mut tag, value);
    tag.into()
}

/// The tag of everything stored for `user` (`None`: anonymous callers of per-user routes).
pub fn user_tag(user: Option<&str>) -> Box<str> {
    let mut tag = String::from("user:");
    push_user(&mut tag, user);
    tag.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn render(template: &str, user: Option<&str>, id: &str) -> String {
        let id = id.to_owned();
        TagTemplate::parse(template, &["id"]).unwrap().render(user, |_| Some(&id)).into()
    }

    #[test]
    fn templates_render_users_and_path_parameters() {
        assert_eq!(render("todos:{user}", Some("ada@example.org"), ""), "todos:ada@example.org");
        assert_eq!(render("todo:{id}", None, "42"), "todo:42");
        assert_eq!(render("todo:{user}:{id}", None, "a:b/c d"), "todo:-anonymous:a%3Ab%2Fc%20d");
    }

    #[test]
    fn reserved_words_cannot_be_forged() {
        assert_eq!(render("u:{user}", Some("-anonymous"), ""), "u:%2Danonymous");
        assert_ne!(render("u:{user}", Some(""), ""), render("u:{user}", Some("-empty"), ""));
        let long = "x".repeat(65);
        let hashed = render("u:{user}", Some(&long), "");
        assert_eq!(hashed.len(), "u:sha256-".len() + 32);
        assert_ne!(hashed, render("u:{user}", hashed.strip_prefix("u:"), ""));
    }

    #[test]
    fn unknown_placeholders_name_the_accepted_ones() {
        let error = TagTemplate::parse("todo:{ID}", &["id", "list"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown placeholder `{ID}` in a cache tag; accepted: {user}, {id}, {list}"
        );
        assert_eq!(TagTemplate::parse("{user}{id}", &["id"]), Err(TagError::Adjacent));
        assert_eq!(TagTemplate::parse("a{user", &[]), Err(TagError::Braces));
        assert_eq!(TagTemplate::parse("a}", &[]), Err(TagError::Braces));
        assert_eq!(TagTemplate::parse("-epoch", &[]), Err(TagError::Reserved));
        assert_eq!(TagTemplate::parse("a b", &[]), Err(TagError::Character(' ')));
        assert_eq!(TagTemplate::parse("", &[]), Err(TagError::Empty));
    }

    proptest! {
        #[test]
        fn different_users_have_different_bounded_tags(a in ".{0,80}", b in ".{0,80}") {
            let (left, right) = (user_tag(Some(&a)), user_tag(Some(&b)));
            prop_assert_eq!(a == b, left == right);
            prop_assert!(left.len() <= 7 + crate::identifiers::MAX_KEY_PART);
            prop_assert!(left != user_tag(None));
            prop_assert!(left.bytes().all(|c| c.is_ascii_graphic()));
        }
    }
}
