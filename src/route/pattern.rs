//! The pattern language of routes: what a path and a host may look like. It parses and canonicalises; it never
//! matches (the table does).
//!
//! | written | matches |
//! |---|---|
//! | `/todo` | exactly that path; `/todo/` is another one |
//! | `/todo/:id` | one non-empty segment in place of `:id` |
//! | `/auth/{student,trainer}/login` | each of the alternatives, as if written out |
//! | `/files/**` | `/files`, `/files/` and everything below |
//! | `/**` | every path |
//!
//! Literal parts are brought to the canonical form of [`super::normalise`], so `/café` and `/caf%c3%a9` are the
//! same pattern. Hosts are exact (`api.example.com`) or `*.example.com`, which matches one or more labels in
//! front but not `example.com` itself.

use super::normalise::{Options, normalise};

/// Most `:name` segments of one pattern.
pub const MAX_PARAMS: usize = 8;
/// Most paths that the `{a,b}` groups of one pattern may stand for.
pub const MAX_ALTERNATIVES: usize = 256;

/// Why a pattern or a host pattern cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The pattern does not start with `/`.
    #[error("a pattern starts with a slash")]
    NotRooted,
    /// `**` is only understood as the whole last segment.
    #[error("`*` is only understood as `**`, alone in the last segment")]
    Wildcard,
    /// `:` needs a name of letters, digits and `_`, alone in its segment.
    #[error("`:` is followed by a name of letters, digits and underscores, alone in its segment")]
    ParamName,
    /// A parameter name is used twice.
    #[error("the parameter `:{0}` is named twice")]
    DuplicateParam(Box<str>),
    /// More than [`MAX_PARAMS`].
    #[error("a pattern has at most {MAX_PARAMS} parameters")]
    TooManyParams,
    /// Unbalanced, nested or empty `{…}`.
    #[error("`{{` opens a list such as `{{a,b}}` of non-empty alternatives inside one segment")]
    Alternatives,
    /// More than [`MAX_ALTERNATIVES`].
    #[error("the alternatives of one pattern stand for more than {MAX_ALTERNATIVES} paths")]
    TooManyAlternatives,
    /// An empty or dot segment, or a character no canonical path can hold.
    #[error("`{0}` can never be part of a normalised path")]
    Unreachable(Box<str>),
    /// Not a host name, an IP literal or `*.` and a host name.
    #[error("a host is a name, an address or `*.` followed by a name, without a port")]
    Host,
}

/// One segment of an expanded pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Literal(Box<str>),
    Param,
}

/// One path shape: segments and, behind them, anything or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) segments: Vec<Segment>,
    pub(super) rest: bool,
}

/// A parsed path pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: Box<str>,
    params: Box<[Box<str>]>,
    shapes: Vec<Shape>,
}

impl Pattern {
    /// Parses the language described at the top of this file.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let body = text.strip_prefix('/').ok_or(Error::NotRooted)?;
        let mut params: Vec<Box<str>> = Vec::new();
        let mut shapes = vec![Shape { segments: Vec::new(), rest: false }];
        let mut pieces = body.split('/').peekable();
        while let Some(piece) = pieces.next() {
            let is_last = pieces.peek().is_none();
            if piece == "**" && is_last {
                for shape in &mut shapes {
                    shape.rest = true;
                }
            } else if let Some(name) = piece.strip_prefix(':') {
                push_param(&mut params, name)?;
                for shape in &mut shapes {
                    shape.segments.push(Segment::Param);
                }
            } else {
                let literals = literals(piece, is_last)?;
                if shapes.len() * literals.len() > MAX_ALTERNATIVES {
                    return Err(Error::TooManyAlternatives);
                }
                shapes = shapes
                    .iter()
                    .flat_map(|shape| {
                        literals.iter().map(|literal| {
                            let mut shape = shape.clone();
                            shape.segments.push(Segment::Literal(literal.clone()));
                            shape
                        })
                    })
                    .collect();
            }
        }
        Ok(Self { text: text.into(), params: params.into(), shapes })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Names of the `:name` segments, from the left.
    pub fn params(&self) -> &[Box<str>] {
        &self.params
    }

    pub(super) fn shapes(&self) -> &[Shape] {
        &self.shapes
    }
}

impl std::str::FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

fn push_param(params: &mut Vec<Box<str>>, name: &str) -> Result<(), Error> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(Error::ParamName);
    }
    if params.iter().any(|known| **known == *name) {
        return Err(Error::DuplicateParam(name.into()));
    }
    if params.len() == MAX_PARAMS {
        return Err(Error::TooManyParams);
    }
    params.push(name.into());
    Ok(())
}

/// The canonical literals a segment stands for: several when it holds `{a,b}` groups.
fn literals(piece: &str, is_last: bool) -> Result<Vec<Box<str>>, Error> {
    let mut texts = vec![String::new()];
    let mut rest = piece;
    loop {
        let (literal, group) = match rest.split_once('{') {
            Some((literal, after)) => (literal, Some(after.split_once('}').ok_or(Error::Alternatives)?)),
            None => (rest, None),
        };
        if literal.contains('}') {
            return Err(Error::Alternatives);
        }
        for text in &mut texts {
            text.push_str(literal);
        }
        let Some((group, after)) = group else { break };
        let choices: Vec<&str> = group.split(',').collect();
        if choices.iter().any(|choice| choice.is_empty() || choice.contains('{')) {
            return Err(Error::Alternatives);
        }
        if texts.len() * choices.len() > MAX_ALTERNATIVES {
            return Err(Error::TooManyAlternatives);
        }
        texts = texts
            .iter()
            .flat_map(|text| choices.iter().map(move |choice| format!("{text}{choice}")))
            .collect();
        rest = after;
    }
    texts.into_iter().map(|text| literal(&text, is_last)).collect()
}

fn literal(text: &str, is_last: bool) -> Result<Box<str>, Error> {
    if text.contains('*') {
        return Err(Error::Wildcard);
    }
    if text.contains(':') {
        return Err(Error::ParamName);
    }
    let unreachable = || Error::Unreachable(text.into());
    if text.is_empty() {
        // Only the last segment may be empty: it is the trailing slash.
        return if is_last { Ok("".into()) } else { Err(unreachable()) };
    }
    let options = Options { allow_encoded_slashes: true, allow_path_parameters: true };
    let path = format!("/{text}");
    let canonical = normalise(path.as_bytes(), options).map_err(|_| unreachable())?;
    match canonical.strip_prefix('/') {
        Some(segment) if !segment.is_empty() => Ok(segment.into()),
        _ => Err(unreachable()),
    }
}

/// Which hosts a route answers for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// This host alone, in lower case and without a port.
    Exact(Box<str>),
    /// Any host that ends in this suffix (which starts with a dot) and has something before it.
    Below(Box<str>),
}

impl HostPattern {
    /// Parses `api.example.com`, `*.example.com`, `10.0.0.1` or `[::1]`, in any case.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let lower = text.to_ascii_lowercase();
        if let Some(name) = lower.strip_prefix("*.") {
            return if is_name(name) { Ok(Self::Below(format!(".{name}").into())) } else { Err(Error::Host) };
        }
        let is_v6 = lower
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .and_then(|inner| inner.parse::<std::net::Ipv6Addr>().ok());
        match is_v6 {
            Some(address) => Ok(Self::Exact(format!("[{address}]").into())),
            None if is_name(&lower) => Ok(Self::Exact(lower.into())),
            None => Err(Error::Host),
        }
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Below(suffix) => write!(f, "*{suffix}"),
        }
    }
}

fn is_name(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_stand_for_every_path() {
        let pattern = Pattern::parse("/api/auth/{student,trainer}/log{in,out}").unwrap();
        assert_eq!(pattern.shapes().len(), 4);
        assert_eq!(pattern.as_str(), "/api/auth/{student,trainer}/log{in,out}");
    }

    #[test]
    fn literals_are_canonical() {
        assert_eq!(Pattern::parse("/café").unwrap().shapes(), Pattern::parse("/caf%c3%a9").unwrap().shapes());
        assert_eq!(Pattern::parse("/a%3Ab").unwrap().shapes()[0].segments, [Segment::Literal("a:b".into())]);
    }

    #[test]
    fn bad_patterns_are_refused() {
        for (text, error) in [
            ("", Error::NotRooted),
            ("todo", Error::NotRooted),
            ("/a/*", Error::Wildcard),
            ("/a*b", Error::Wildcard),
            ("/**/a", Error::Wildcard),
            ("/a/:", Error::ParamName),
            ("/a/:id.json", Error::ParamName),
            ("/a/b:id", Error::ParamName),
            ("/:id/:id", Error::DuplicateParam("id".into())),
            ("/:a/:b/:c/:d/:e/:f/:g/:h/:i", Error::TooManyParams),
            ("/{a,b", Error::Alternatives),
            ("/a}", Error::Alternatives),
            ("/{a,{b}}", Error::Alternatives),
            ("/{a,}", Error::Alternatives),
            ("/a//b", Error::Unreachable("".into())),
            ("/a/../b", Error::Unreachable("..".into())),
            ("/a/.", Error::Unreachable(".".into())),
            ("/a b", Error::Unreachable("a b".into())),
            ("/a%0", Error::Unreachable("a%0".into())),
            ("/a?b", Error::Unreachable("a?b".into())),
        ] {
            assert_eq!(Pattern::parse(text), Err(error), "{text}");
        }
        let many = format!("/{}", "{a,b,c,d}/".repeat(5));
        assert_eq!(Pattern::parse(&many), Err(Error::TooManyAlternatives));
    }

    #[test]
    fn hosts_are_exact_or_below() {
        assert_eq!(HostPattern::parse("API.example.com"), Ok(HostPattern::Exact("api.example.com".into())));
        assert_eq!(HostPattern::parse("*.Example.com"), Ok(HostPattern::Below(".example.com".into())));
        assert_eq!(HostPattern::parse("[0:0::1]"), Ok(HostPattern::Exact("[::1]".into())));
        for bad in ["", "*", "*.", "a*.b", "a:80", "a/b", "a..b", "é.com", "[::1", "a,b"] {
            assert_eq!(HostPattern::parse(bad), Err(Error::Host), "{bad}");
        }
    }
}
