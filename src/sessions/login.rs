//! Where the answer to a login tells its token, and taking exactly one from there. What could be understood in two
//! ways is not understood; the token itself is not looked into.

mod body;
mod coding;
mod pointer;
mod set_cookie;

use http::{HeaderMap, HeaderName};

pub use self::body::BodyCopy;
pub use self::pointer::{MAX_POINTER, Pointer};
use crate::clock::UnixMillis;
use crate::identity::Refused;
use crate::identity::credentials::is_token68;

/// Where a token is in the answer to a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A text in a JSON body.
    Json(Pointer),
    /// The value of a header, alone or behind `Bearer`.
    Header(HeaderName),
    /// The value of the cookie of this exact name that the answer sets.
    Cookie(Box<str>),
}

impl Place {
    /// The place written `json:/pointer`, `header:NAME` or `cookie:NAME`; `None` when it is not one of these. Cookies
    /// are set by a header too, but found by `cookie:` only.
    pub fn parse(text: &str) -> Option<Self> {
        let (place, name) = text.split_once(':')?;
        let token = HeaderName::from_bytes(name.as_bytes());
        match (place, token) {
            ("json", _) => Pointer::parse(name).map(Self::Json),
            ("header", Ok(header)) if header != http::header::SET_COOKIE => Some(Self::Header(header)),
            ("cookie", Ok(_)) => Some(Self::Cookie(name.into())),
            _ => None,
        }
    }
}

crate::label! {
    /// Why the answer to a login opened no session.
    pub enum NotOpened {
        /// There is no token where it should be; a cookie that is deleted is none.
        Absent = "absent",
        /// There are several tokens where one should be.
        Ambiguous = "ambiguous",
        /// What is there can be no token.
        NotAToken = "not_a_token",
        /// The body is a part of the representation only (206).
        Partial = "partial",
        /// The body, or what it unpacks to, is larger than is looked at.
        TooLarge = "too_large",
        /// The body is not said to be JSON.
        MediaType = "media_type",
        /// The body is packed in a way that is not understood, or wrongly.
        Coding = "coding",
        /// The body is no JSON object, or one that could be read in two ways.
        Malformed = "malformed",
        /// The body broke off.
        Incomplete = "incomplete",
        /// The token is an API token, which never has a session.
        ApiToken = "api_token",
        /// The token has expired.
        Expired = "expired",
        /// The token is revoked.
        Revoked = "revoked",
        /// The token is refused for any other reason.
        Refused = "refused",
        /// The keys that would verify the token could not be had.
        KeysUnavailable = "keys_unavailable",
        /// The store holds something else where the session would be.
        NotStored = "not_stored",
    }
}

impl From<Refused> for NotOpened {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Expired => Self::Expired,
            Refused::Revoked => Self::Revoked,
            _ => Self::Refused,
        }
    }
}

/// The token that is the value of the header `name`, alone or behind `Bearer`.
///
/// # Errors
/// [`NotOpened::Absent`], [`NotOpened::Ambiguous`] and [`NotOpened::NotAToken`].
pub fn in_header<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<&'h str, NotOpened> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or(NotOpened::Absent)?;
    if values.next().is_some() {
        return Err(NotOpened::Ambiguous);
    }
    let value = value.to_str().map_err(|_| NotOpened::NotAToken)?.trim_matches([' ', '\t']);
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    token(if scheme.eq_ignore_ascii_case("bearer") { rest.trim_matches(' ') } else { value })
}

/// The token that the answer sets the cookie `name` to. Lines that delete the cookie at `now` are passed over.
///
/// # Errors
/// [`NotOpened::Absent`], [`NotOpened::Ambiguous`] and [`NotOpened::NotAToken`].
pub fn in_cookies<'h>(headers: &'h HeaderMap, name: &str, now: UnixMillis) -> Result<&'h str, NotOpened> {
    let lines = headers.get_all(http::header::SET_COOKIE).iter();
    let mut values = lines.filter_map(|line| set_cookie::value(line.as_bytes(), name, now));
    let value = values.next().ok_or(NotOpened::Absent)?;
    if values.next().is_some() {
        return Err(NotOpened::Ambiguous);
    }
    token(std::str::from_utf8(value).map_err(|_| NotOpened::NotAToken)?)
}

fn token(text: &str) -> Result<&str, NotOpened> {
    if text.is_empty() {
        Err(NotOpened::Absent)
    } else if is_token68(text) {
        Ok(text)
    } else {
        Err(NotOpened::NotAToken)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::NotOpened::{Absent, Ambiguous, NotAToken};
    use super::*;
    use crate::metrics::Label as _;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn places_are_read_as_they_are_written() {
        assert_eq!(Place::parse("header:X-Token"), Some(Place::Header(HeaderName::from_static("x-token"))));
        assert_eq!(Place::parse("cookie:Token"), Some(Place::Cookie("Token".into())));
        assert_eq!(Place::parse("json:/a/0").map(|place| matches!(place, Place::Json(_))), Some(true));
        for wrong in [
            "",
            "json",
            "json:",
            "json:a",
            "json:/a~2",
            "header:",
            "header:a b",
            "header:Set-Cookie",
            "cookie:",
            "cookie:a=b",
            "cookie:a b",
            "query:token",
            "Json:/a",
        ] {
            assert_eq!(Place::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_header_holds_one_token() {
        let name = HeaderName::from_static("x-token");
        for (lines, expected) in [
            (&[("x-token", "a.b.c")][..], Ok("a.b.c")),
            (&[("x-token", "Bearer a.b.c")], Ok("a.b.c")),
            (&[("x-token", "bEARER   a.b.c")], Ok("a.b.c")),
            (&[("x-token", " a.b.c\t")], Ok("a.b.c")),
            (&[], Err(Absent)),
            (&[("x-token", "")], Err(Absent)),
            (&[("x-token", "Bearer")], Err(Absent)),
            (&[("x-token", "a.b.c"), ("x-token", "a.b.c")], Err(Ambiguous)),
            (&[("x-token", "a.b.c"), ("x-token", "")], Err(Ambiguous)),
            (&[("x-token", "a.b.c, d.e.f")], Err(NotAToken)),
            (&[("x-token", "Basic a.b.c")], Err(NotAToken)),
            (&[("x-token", "Bearer Bearer a.b.c")], Err(NotAToken)),
            (&[("x-token", "\"a.b.c\"")], Err(NotAToken)),
            (&[("x-token", "\u{e9}")], Err(NotAToken)),
        ] {
            assert_eq!(in_header(&headers(lines), &name), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_cookie_is_set_to_one_token() {
        for (lines, expected) in [
            (&["token=a.b.c"][..], Ok("a.b.c")),
            (&["token=a.b.c; Path=/; HttpOnly; Secure; SameSite=Lax"], Ok("a.b.c")),
            (&["token=\"a.b.c\"; Max-Age=60"], Ok("a.b.c")),
            (&[" token = a.b.c ;Path=/"], Ok("a.b.c")),
            (&["other=x", "token=a.b.c", "Token=d.e.f", "tokens=g.h.i"], Ok("a.b.c")),
            (&["token=; Max-Age=0; Path=/old", "token=a.b.c; Path=/"], Ok("a.b.c")),
            (&["token=a.b.c; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT"], Ok("a.b.c")),
            (&["token=a.b.c; Expires=Fri, 31 Dec 9999 23:59:59 GMT"], Ok("a.b.c")),
            (&["token=a.b.c; Expires=whenever; Max-Age=soon"], Ok("a.b.c")),
            (&["token=a.b.c; Max-Age=0; Max-Age=1"], Ok("a.b.c")),
            (&[], Err(Absent)),
            (&["Token=a.b.c", "token", "x=token=a.b.c", "=a.b.c"], Err(Absent)),
            (&["token="], Err(Absent)),
            (&["token=\"\"; Path=/"], Err(Absent)),
            (&["token=a.b.c; Max-Age=0"], Err(Absent)),
            (&["token=a.b.c; max-age=-1"], Err(Absent)),
            (&["token=a.b.c; Max-Age=-99999999999999999999"], Err(Absent)),
            (&["token=a.b.c; EXPIRES=Thu, 01 Jan 1970 00:00:00 GMT"], Err(Absent)),
            (&["token=a.b.c; Expires=Tue, 14 Nov 2023 22:13:20 GMT"], Err(Absent)),
            (&["token=a.b.c; Max-Age=1; Max-Age=0"], Err(Absent)),
            (&["token=a.b.c", "token=d.e.f"], Err(Ambiguous)),
            (&["token=a.b.c; Path=/", "token=a.b.c; Path=/api"], Err(Ambiguous)),
            (&["token=a b c"], Err(NotAToken)),
            (&["token=a.b.c\u{e9}"], Err(NotAToken)),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("set-cookie", *line)).collect();
            assert_eq!(in_cookies(&headers(&lines), "token", NOW), expected, "{lines:?}");
        }
    }

    #[test]
    fn reasons_have_labels_of_their_own() {
        let mut labels: Vec<_> = NotOpened::ALL.iter().map(|reason| reason.as_str()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), NotOpened::ALL.len());
        for refused in Refused::ALL {
            let expected = match refused {
                Refused::Expired => NotOpened::Expired,
                Refused::Revoked => NotOpened::Revoked,
                _ => NotOpened::Refused,
            };
            assert_eq!(NotOpened::from(refused), expected);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_headers_yield_clean_tokens_or_none(
            header in any::<Vec<u8>>(), cookies in prop::collection::vec("(token=)?[ -~]{0,30}", 0..3),
        ) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&header) {
                headers.insert("x-token", value);
            }
            for cookie in &cookies {
                headers.append("set-cookie", HeaderValue::from_str(cookie).unwrap());
            }
            let name = HeaderName::from_static("x-token");
            for found in [in_header(&headers, &name), in_cookies(&headers, "token", NOW)].into_iter().flatten() {
                prop_assert!(is_token68(found));
            }
        }
    }
}
