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

    /// Whether it and a tag of `parts` can be the same once their placeholders are filled in: with something that is not
    /// empty, and has neither colon nor slash.
    pub(super) fn meets(&self, parts: &[TemplatePart]) -> bool {
        let (one, other) = (symbols(&self.parts), symbols(parts));
        // From the ends: whether the rests can be the same, for each rest of `other`.
        let mut below = vec![false; other.len() + 1];
        for i in (0..=one.len()).rev() {
            let mut row = vec![false; other.len() + 1];
            for j in (0..=other.len()).rev() {
                let at = |row: &[bool], j: usize| row.get(j).copied().unwrap_or(false);
                let same = match (one.get(i), other.get(j)) {
                    (None, None) => true,
                    (Some(Symbol::Rest), Some(Symbol::Rest)) => at(&below, j) || at(&row, j + 1),
                    (Some(Symbol::Rest), there) => {
                        at(&below, j)
                            || (there.is_some_and(|&there| there.fits(Symbol::One)) && at(&row, j + 1))
                    }
                    (here, Some(Symbol::Rest)) => {
                        at(&row, j + 1) || (here.is_some_and(|&here| here.fits(Symbol::One)) && at(&below, j))
                    }
                    (Some(&here), Some(&there)) => here.fits(there) && at(&below, j + 1),
                    _ => false,
                };
                if let Some(cell) = row.get_mut(j) {
                    *cell = same;
                }
            }
            below = row;
        }
        below.first().copied().unwrap_or(false)
    }

    /// Whether it needs to know the caller.
    pub fn has_user(&self) -> bool {
        self.parts.contains(&TemplatePart::User)
    }
}

/// A tag, letter by letter; a placeholder is one letter and a rest of any length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Symbol {
    Is(u8),
    One,
    Rest,
}

impl Symbol {
    /// Whether one letter can stand for both.
    const fn fits(self, other: Self) -> bool {
        match (self, other) {
            (Self::Is(one), Self::Is(other)) => one == other,
            (Self::Is(letter), Self::One) | (Self::One, Self::Is(letter)) => !matches!(letter, b':' | b'/'),
            _ => true,
        }
    }
}

fn symbols(parts: &[TemplatePart]) -> Vec<Symbol> {
    let mut symbols = Vec::new();
    for part in parts {
        match part {
            TemplatePart::Literal(text) => symbols.extend(text.bytes().map(Symbol::Is)),
            TemplatePart::User | TemplatePart::Param(_) => symbols.extend([Symbol::One, Symbol::Rest]),
        }
    }
    symbols
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
    fn tags_meet_where_their_placeholders_can_make_them_the_same() {
        let parse = |text: &str| Template::parse(text, &["id", "x"]).unwrap();
        for (one, other, meet) in [
            ("todos", "todos", true),
            ("todoz", "todos", false),
            ("todos:{user}", "todos:{user}", true),
            ("todos:{id}", "todos:{user}", true),
            ("todos:alice", "todos:{user}", true),
            ("todoz:x", "todos:{user}", false),
            ("todos:", "todos:{user}", false),
            ("todos:{user}:{id}", "todos:{user}", false),
            ("todos:{user}:{id}", "todos:{user}:7", true),
            ("{id}:todos", "todos:{user}", true),
            ("{id}s", "{x}z", false),
            ("a{id}c", "ab{x}", true),
            ("a{id}c", "{x}bc", true),
            ("{id}", "todos/1", false),
        ] {
            assert_eq!(parse(one).meets(&parse(other).parts), meet, "{one} {other}");
            assert_eq!(parse(other).meets(&parse(one).parts), meet, "{other} {one}");
        }
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
