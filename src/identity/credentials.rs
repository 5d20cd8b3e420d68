//! Where a request may carry its token, and taking exactly one from there.
//!
//! A request that offers two, or one that could be read in two ways, is refused rather than interpreted; the
//! token itself is not looked into.

use std::borrow::Cow;

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use crate::identifiers::API_TOKEN_PREFIX;

/// Longest credential accepted unless declared otherwise, in bytes.
pub const DEFAULT_MAX_BYTES: usize = 8 * 1024;

/// A place a token may be in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `Authorization: Bearer <token>` (RFC 6750 section 2.1).
    Bearer,
    /// A cookie of this exact name.
    Cookie(Box<str>),
    /// The whole value of a header.
    Header(HeaderName),
    /// A query parameter of this decoded name (RFC 6750 section 2.3). It must be stripped before forwarding:
    /// see [`without_parameter`].
    Query(Box<str>),
    /// A place for API tokens alone: the whole value of this header, or `Authorization: Bearer` where that is not a
    /// place for other tokens, and something else in it is passed over.
    ApiToken(HeaderName),
}

/// The places looked at. All of them are looked at always, so that a second token cannot hide.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The places, most natural first.
    pub places: Vec<Source>,
    /// Longest token, in bytes.
    pub max_bytes: usize,
    /// Whether an `Authorization` of another scheme, such as `Basic`, is refused instead of passed over.
    pub refuse_other_schemes: bool,
}

impl Default for Sources {
    /// `Authorization: Bearer` alone.
    fn default() -> Self {
        Self { places: vec![Source::Bearer], max_bytes: DEFAULT_MAX_BYTES, refuse_other_schemes: false }
    }
}

/// A token as the request carried it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential<'a> {
    /// The token, not verified in any way.
    pub token: Cow<'a, str>,
    /// Where it was.
    pub source: &'a Source,
}

impl Credential<'_> {
    /// The query parameter to strip before the request goes on, if the token came from one.
    pub fn query_parameter(&self) -> Option<&str> {
        match self.source {
            Source::Query(name) => Some(name),
            _ => None,
        }
    }
}

/// Why the credentials of a request cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CredentialProblem {
    /// One place holds more than one value.
    #[error("the same credential is given more than once")]
    Repeated,
    /// Several places hold a token.
    #[error("tokens are given in more than one place")]
    SeveralPlaces,
    /// The value is not one token of RFC 6750 characters.
    #[error("the credential is not exactly one token")]
    NotOneToken,
    /// Longer than allowed.
    #[error("the credential is too long")]
    TooLong,
    /// `Authorization` uses another scheme.
    #[error("the authentication scheme is not Bearer")]
    OtherScheme,
}

impl CredentialProblem {
    /// Every problem, for metrics that start at zero.
    pub const ALL: [Self; 5] =
        [Self::Repeated, Self::SeveralPlaces, Self::NotOneToken, Self::TooLong, Self::OtherScheme];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Repeated => "credential_repeated",
            Self::SeveralPlaces => "credential_in_several_places",
            Self::NotOneToken => "credential_not_one_token",
            Self::TooLong => "credential_too_long",
            Self::OtherScheme => "credential_other_scheme",
        }
    }
}

/// The one token of a request; `Ok(None)` when there is none.
///
/// `query` is the raw query without its `?`. Identical tokens in two places are refused like different ones:
/// an upstream that strips one would still see the other.
pub fn extract<'a>(
    sources: &'a Sources,
    headers: &'a HeaderMap,
    query: Option<&'a str>,
) -> Result<Option<Credential<'a>>, CredentialProblem> {
    let mut found = None;
    for source in &sources.places {
        let token = match source {
            Source::Bearer => bearer(headers, sources.refuse_other_schemes)?,
            Source::Cookie(name) => cookie(headers, name)?,
            Source::Query(name) => parameter(query.unwrap_or_default(), name)?,
            Source::ApiToken(name) if *name == AUTHORIZATION => {
                bearer(headers, false)?.filter(|token| token.starts_with(API_TOKEN_PREFIX))
            }
            Source::Header(name) | Source::ApiToken(name) => only(headers, name)?.map(Cow::Borrowed),
        };
        let Some(token) = token else { continue };
        if token.len() > sources.max_bytes {
            return Err(CredentialProblem::TooLong);
        }
        if !is_token68(&token) {
            return Err(CredentialProblem::NotOneToken);
        }
        if found.replace(Credential { token, source }).is_some() {
            return Err(CredentialProblem::SeveralPlaces);
        }
    }
    Ok(found)
}

/// `query` without any parameter of this decoded name, however it is spelled. Borrows when nothing changes.
#[must_use]
pub fn without_parameter<'q>(query: &'q str, name: &str) -> Cow<'q, str> {
    if !pairs(query).any(|pair| decoded_name(pair) == name) {
        return Cow::Borrowed(query);
    }
    let mut kept = String::with_capacity(query.len());
    for pair in pairs(query).filter(|pair| decoded_name(pair) != name) {
        if !kept.is_empty() {
            kept.push('&');
        }
        kept.push_str(pair);
    }
    Cow::Owned(kept)
}

fn bearer(headers: &HeaderMap, refuse_others: bool) -> Result<Option<Cow<'_, str>>, CredentialProblem> {
    let Some(value) = only(headers, &AUTHORIZATION)? else { return Ok(None) };
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        let looks_like_bearer = scheme.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("bearer"));
        return match (looks_like_bearer, refuse_others) {
            (true, _) => Err(CredentialProblem::NotOneToken),
            (false, true) => Err(CredentialProblem::OtherScheme),
            (false, false) => Ok(None),
        };
    }
    // RFC 9110 section 11.4: one or more spaces after the scheme.
    Ok(Some(Cow::Borrowed(token.trim_matches(' '))))
}

/// The only value of a header; an empty one is a value.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, CredentialProblem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(CredentialProblem::Repeated);
    }
    text(value).map(Some)
}

fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<Cow<'h, str>>, CredentialProblem> {
    let mut found = None;
    // HTTP/2 may split cookies over several fields (RFC 9113 section 8.2.3).
    for value in headers.get_all(COOKIE) {
        // Other cookies may hold any bytes; only ours must be text.
        for pair in value.as_bytes().split(|byte| *byte == b';') {
            let mut halves = pair.splitn(2, |byte| *byte == b'=');
            let (Some(key), Some(value)) = (halves.next(), halves.next()) else { continue };
            if key.trim_ascii() != name.as_bytes() {
                continue;
            }
            let value =
                std::str::from_utf8(value.trim_ascii()).map_err(|_| CredentialProblem::NotOneToken)?;
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            if found.replace(value).is_some() {
                return Err(CredentialProblem::Repeated);
            }
        }
    }
    // An emptied cookie is how applications delete one.
    Ok(found.filter(|value| !value.is_empty()).map(Cow::Borrowed))
}

fn parameter<'q>(query: &'q str, name: &str) -> Result<Option<Cow<'q, str>>, CredentialProblem> {
    let mut values = pairs(query).filter(|pair| decoded_name(pair) == name);
    let Some(pair) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(CredentialProblem::Repeated);
    }
    let (_, value) = pair.split_once('=').unwrap_or((pair, ""));
    percent_decode_str(value).decode_utf8().map(Some).map_err(|_| CredentialProblem::NotOneToken)
}

fn pairs(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').filter(|pair| !pair.is_empty())
}

/// A parameter's name as an upstream's form decoder would read it.
fn decoded_name(pair: &str) -> Cow<'_, str> {
    let (name, _) = pair.split_once('=').unwrap_or((pair, ""));
    if !name.contains(['%', '+']) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(percent_decode_str(&name.replace('+', " ")).decode_utf8_lossy().into_owned())
}

fn text(value: &HeaderValue) -> Result<&str, CredentialProblem> {
    value.to_str().map_err(|_| CredentialProblem::NotOneToken)
}

/// RFC 9110 section 11.2, which RFC 6750 takes over as `b64token`.
pub(crate) fn is_token68(token: &str) -> bool {
    let body = token.trim_end_matches('=');
    !body.is_empty() && body.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn everywhere() -> Sources {
        Sources {
            places: vec![
                Source::Bearer,
                Source::Cookie("token".into()),
                Source::Header(HeaderName::from_static("x-token")),
                Source::Query("access_token".into()),
            ],
            ..Sources::default()
        }
    }

    fn take(
        lines: &[(&'static str, &str)],
        query: Option<&str>,
    ) -> Result<Option<String>, CredentialProblem> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let sources = everywhere();
        extract(&sources, &headers, query).map(|found| found.map(|credential| credential.token.into_owned()))
    }

    #[test]
    fn one_token_is_taken_from_any_place() {
        for (lines, query) in [
            (&[("authorization", "Bearer a.b.c")][..], None),
            (&[("authorization", "bearer a.b.c")], None),
            (&[("authorization", "BEARER   a.b.c")], None),
            (&[("cookie", "x=1; token=a.b.c; y=2")], None),
            (&[("cookie", "x=\u{e9}"), ("cookie", "token=\"a.b.c\"")], None),
            (&[("x-token", "a.b.c")], None),
            (&[], Some("x=1&access_token=a.b.c")),
            (&[], Some("%61ccess_token=a%2Eb.c")),
            (&[("authorization", "Basic dXNlcjpwYXNz"), ("x-token", "a.b.c")], None),
            (&[("cookie", "token="), ("x-token", "a.b.c")], None),
        ] {
            assert_eq!(take(lines, query), Ok(Some("a.b.c".into())), "{lines:?} {query:?}");
        }
    }

    #[test]
    fn no_token_is_none() {
        for (lines, query) in [
            (&[][..], None),
            (&[("authorization", "Basic dXNlcjpwYXNz")], None),
            (&[("authorization", "Digest a=b")], None),
            (&[("cookie", "Token=a.b.c; xtoken=a; token")], None),
            (&[], Some("access_token2=a&x")),
        ] {
            assert_eq!(take(lines, query), Ok(None), "{lines:?} {query:?}");
        }
    }

    #[test]
    fn doubtful_credentials_are_refused() {
        use CredentialProblem::{NotOneToken, Repeated, SeveralPlaces, TooLong};
        let long = format!("Bearer {}", "a".repeat(100_000));
        for (lines, query, problem) in [
            (&[("authorization", "Bearer a"), ("authorization", "Bearer a")][..], None, Repeated),
            (&[("authorization", "Bearer a"), ("authorization", "Basic a")], None, Repeated),
            (&[("authorization", "Bearer")], None, NotOneToken),
            (&[("authorization", "Bearer ")], None, NotOneToken),
            (&[("authorization", "Bearer a b")], None, NotOneToken),
            (&[("authorization", "Bearer a, Bearer b")], None, NotOneToken),
            (&[("authorization", "Bearer a,b")], None, NotOneToken),
            (&[("authorization", "Bearer\ta")], None, NotOneToken),
            (&[("authorization", "Bearer: a")], None, NotOneToken),
            (&[("authorization", "Bearer Bearer a")], None, NotOneToken),
            (&[("authorization", "Bearer \"a\"")], None, NotOneToken),
            (&[("authorization", "Bearer \u{e9}")], None, NotOneToken),
            (&[("authorization", &long)], None, TooLong),
            (&[("authorization", "Bearer a"), ("cookie", "token=a")], None, SeveralPlaces),
            (&[("authorization", "Bearer a"), ("x-token", "b")], None, SeveralPlaces),
            (&[("x-token", "b")], Some("access_token=b"), SeveralPlaces),
            (&[("cookie", "token=a; token=b")], None, Repeated),
            (&[("cookie", "token=a"), ("cookie", "token=a")], None, Repeated),
            (&[("cookie", "token=a; token=")], None, Repeated),
            (&[("x-token", "a"), ("x-token", "a")], None, Repeated),
            (&[("x-token", "")], None, NotOneToken),
            (&[("x-token", "Bearer a")], None, NotOneToken),
            (&[], Some("access_token=a&access_token=a"), Repeated),
            (&[], Some("access_token=a&access%5Ftoken=b"), Repeated),
            (&[], Some("access_token="), NotOneToken),
            (&[], Some("access_token=%ff"), NotOneToken),
            (&[], Some("access_token=a%0d%0a"), NotOneToken),
        ] {
            assert_eq!(take(lines, query), Err(problem), "{lines:?} {query:?}");
        }
    }

    #[test]
    fn api_tokens_have_places_of_their_own() {
        let key = HeaderName::from_static("x-api-key");
        let places =
            vec![Source::Cookie("token".into()), Source::ApiToken(AUTHORIZATION), Source::ApiToken(key)];
        let sources = Sources { places, ..Sources::default() };
        let take = |lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            extract(&sources, &headers, None).map(|found| found.map(|found| found.token.into_owned()))
        };
        assert_eq!(take(&[("authorization", "Bearer tgk_a")]), Ok(Some("tgk_a".into())));
        assert_eq!(
            take(&[("authorization", "Bearer a.b.c")]),
            Ok(None),
            "bearer is no place for others here"
        );
        assert_eq!(take(&[("x-api-key", "anything")]), Ok(Some("anything".into())));
        let several = Err(CredentialProblem::SeveralPlaces);
        assert_eq!(take(&[("authorization", "Bearer tgk_a"), ("x-api-key", "tgk_a")]), several);
        assert_eq!(take(&[("cookie", "token=a.b.c"), ("x-api-key", "tgk_a")]), several);
    }

    #[test]
    fn another_scheme_can_be_refused() {
        let sources = Sources { refuse_other_schemes: true, ..Sources::default() };
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Basic dXNlcjpwYXNz"));
        assert_eq!(extract(&sources, &headers, None), Err(CredentialProblem::OtherScheme));
    }

    #[test]
    fn a_parameter_is_stripped_in_every_spelling() {
        for (query, rest) in [
            ("access_token=x", ""),
            ("a=1&access_token=x&b=2", "a=1&b=2"),
            ("a=1&access%5ftoken=x", "a=1"),
            ("%61%63cess_token&a", "a"),
            ("a=access_token", "a=access_token"),
            ("a&&b", "a&&b"),
        ] {
            assert_eq!(without_parameter(query, "access_token"), rest, "{query}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_requests_never_panic_and_yield_clean_tokens(
            authorization in "\\PC{0,40}", cookie in "\\PC{0,40}", query in "\\PC{0,40}",
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in [(AUTHORIZATION, authorization), (COOKIE, cookie)] {
                if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                    headers.append(name, value);
                }
            }
            let sources = everywhere();
            if let Ok(Some(found)) = extract(&sources, &headers, Some(&query)) {
                prop_assert!(is_token68(&found.token));
            }
            let stripped = without_parameter(&query, "access_token").into_owned();
            prop_assert!(!pairs(&stripped).any(|pair| decoded_name(pair) == "access_token"));
        }
    }
}
