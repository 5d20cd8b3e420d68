//! A client's own conditions, judged over what is stored (RFC 9111 section 4.3.2, RFC 9110 sections 13 and 14).
//! Pure; whether a request may be answered from the cache at all is for others to say.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use crate::clock::UnixMillis;

/// More digits than this in one number of a `Range` are not read.
const MAX_DIGITS: usize = 18;

/// Whether the client's copy is as good as this response, so that it gets a 304. `If-None-Match` is compared
/// weakly and puts `If-Modified-Since` out of force. That is judged by `Last-Modified` only: the `Date` a client has seen is
/// that of an answer of pingora's, which may be later than a change.
pub fn not_modified(method: &Method, request: &HeaderMap, status: StatusCode, response: &HeaderMap) -> bool {
    if status != StatusCode::OK {
        return false;
    }
    if request.contains_key(header::IF_NONE_MATCH) {
        let stored = response.get(header::ETAG).map(HeaderValue::as_bytes);
        return request.get_all(header::IF_NONE_MATCH).iter().any(|line| names(line.as_bytes(), stored));
    }
    if method != Method::GET && method != Method::HEAD {
        return false;
    }
    let since = single(request, &header::IF_MODIFIED_SINCE).and_then(date);
    let changed = single(response, &header::LAST_MODIFIED).and_then(date);
    matches!((since, changed), (Some(since), Some(changed)) if changed <= since)
}

/// Whether the `Range` of a request is to be looked at (RFC 9110 sections 13.1.5 and 14.2). Where it is not, the
/// whole is sent, which a server may always do.
pub fn range_counts(method: &Method, request: &HeaderMap, response: &HeaderMap) -> bool {
    method == Method::GET
        && single(response, &header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0")
        && single(request, &header::RANGE).is_some_and(|range| is_ordinary(range.as_bytes()))
        && if_range_holds(request, response)
}

/// Compared strongly: a part of one version must never be put together with a part of another.
fn if_range_holds(request: &HeaderMap, response: &HeaderMap) -> bool {
    if !request.contains_key(header::IF_RANGE) {
        return true;
    }
    let Some(wanted) = single(request, &header::IF_RANGE) else { return false };
    if wanted.as_bytes().ends_with(b"\"") {
        return !wanted.as_bytes().starts_with(b"W/") && response.get(header::ETAG) == Some(wanted);
    }
    let modified = single(response, &header::LAST_MODIFIED);
    let (Some(at), Some(sent)) = (modified.and_then(date), single(response, &header::DATE).and_then(date))
    else {
        return false;
    };
    // RFC 9110 section 8.8.2.2: what changed within the second it was sent in may change again in that second.
    modified == Some(wanted) && sent >= at.plus(Duration::from_secs(1))
}

/// Whether the positions are numbers that mean what they say: none too large to read, no last zero bytes.
fn is_ordinary(range: &[u8]) -> bool {
    let positions = range.split(|byte| *byte == b'=').nth(1).unwrap_or_default();
    positions.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).all(|part| {
        let suffix = part.strip_prefix(b"-");
        part.split(|byte| *byte == b'-').all(|number| number.len() <= MAX_DIGITS)
            && suffix.is_none_or(|length| length.iter().any(|digit| *digit != b'0'))
    })
}

/// Whether a line of `If-None-Match` is `*` or names `stored`, compared weakly (RFC 9110 section 8.8.3.2).
fn names(line: &[u8], stored: Option<&[u8]>) -> bool {
    let mut rest = line.trim_ascii();
    if rest == b"*" {
        return true;
    }
    let Some(stored) = stored.map(opaque) else { return false };
    while !rest.is_empty() {
        let tag = opaque(rest);
        // Some clients send tags without quotes.
        let end = match tag.strip_prefix(b"\"") {
            Some(inner) => inner.iter().position(|byte| *byte == b'"').map_or(tag.len(), |at| at + 2),
            None => tag.iter().position(|byte| *byte == b',').unwrap_or(tag.len()),
        };
        let (tag, after) = tag.split_at_checked(end).unwrap_or((tag, b""));
        if tag.trim_ascii_end() == stored {
            return true;
        }
        rest = after.trim_ascii_start().strip_prefix(b",").unwrap_or_default().trim_ascii_start();
    }
    false
}

/// An entity tag without its mark of weakness.
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Whether a 304 speaks of `stored` (RFC 9111 section 4.3.4): a strong entity tag has to be the same, a weak one
/// or a date to correspond. One without any validator speaks of what was asked about.
pub fn confirms(fresh: &HeaderMap, stored: &HeaderMap) -> bool {
    match (fresh.get(header::ETAG), stored.get(header::ETAG)) {
        (Some(fresh), Some(stored)) if fresh.as_bytes().starts_with(b"W/") => {
            opaque(fresh.as_bytes()) == opaque(stored.as_bytes())
        }
        (Some(fresh), stored) => stored == Some(fresh),
        (None, _) => match (fresh.get(header::LAST_MODIFIED), stored.get(header::LAST_MODIFIED)) {
            (Some(fresh), Some(stored)) => fresh == stored,
            _ => true,
        },
    }
}

/// The only line of `name`; `None` where there is none, or more than one.
fn single<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Option<&'a HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none())
}

fn date(value: &HeaderValue) -> Option<UnixMillis> {
    value.to_str().ok().and_then(UnixMillis::from_http_date)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Lines<'a> = &'a [(&'static str, &'a str)];

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    const EARLY: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATE: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    #[test]
    fn an_entity_tag_is_found_in_any_list_and_compared_weakly() {
        let table = [
            ("\"v1\"", "\"v1\"", true),
            ("W/\"v1\"", "\"v1\"", true),
            ("\"v1\"", "W/\"v1\"", true),
            ("\"a\", \"v1\"", "\"v1\"", true),
            ("\"a\",W/\"v1\" , \"b\"", "\"v1\"", true),
            ("*", "\"v1\"", true),
            ("\"v2\"", "\"v1\"", false),
            ("\"v1", "\"v1\"", false),
            ("\"v1\"x, \"v1\"", "\"v1\"", true),
            ("\"a,\\\"v1\", \"b\"", "\"v1\"", false),
            ("\"a, b\"", "\"a, b\"", true),
            ("\"x, \"v1\"\"", "\"v1\"", false),
            ("v1", "v1", true),
            ("v0, v1 ", "v1", true),
            ("\"é\"", "\"é\"", true),
            ("", "\"v1\"", false),
        ];
        for (asked, stored, expected) in table {
            assert_eq!(names(asked.as_bytes(), Some(stored.as_bytes())), expected, "{asked} over {stored}");
        }
        assert!(names(b"*", None) && !names(b"\"v1\"", None));
    }

    #[test]
    fn conditions_have_the_precedence_of_the_rfc() {
        let stored = headers(&[("etag", "\"v1\""), ("last-modified", MODIFIED), ("date", LATE)]);
        let dated = headers(&[("date", MODIFIED)]);
        let judged = |request: &[(&'static str, &str)], response: &HeaderMap| {
            not_modified(&Method::GET, &headers(request), StatusCode::OK, response)
        };
        assert!(judged(&[("if-none-match", "\"a\""), ("if-none-match", "\"v1\"")], &stored));
        assert!(!judged(&[("if-none-match", "\"v2\""), ("if-modified-since", LATE)], &stored));
        assert!(!judged(&[("if-none-match", "\"v1\""), ("if-modified-since", LATE)], &dated));
        for (since, expected) in [(EARLY, false), (MODIFIED, true), (LATE, true), ("yesterday", false)] {
            assert_eq!(judged(&[("if-modified-since", since)], &stored), expected, "{since}");
            assert!(!judged(&[("if-modified-since", since)], &dated), "{since}, by Date");
        }
        for obsolete in ["Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert!(judged(&[("if-modified-since", obsolete)], &stored), "{obsolete}");
        }
        assert!(!judged(&[("if-modified-since", LATE), ("if-modified-since", LATE)], &stored));
        let found = headers(&[("if-none-match", "*")]);
        assert!(!not_modified(&Method::GET, &found, StatusCode::NOT_FOUND, &stored));
    }

    #[test]
    fn a_range_counts_only_where_it_cannot_mix_versions() {
        let stored =
            [("content-length", "10"), ("etag", "\"v1\""), ("last-modified", MODIFIED), ("date", LATE)];
        let weak =
            [("content-length", "10"), ("etag", "W/\"v1\""), ("last-modified", MODIFIED), ("date", MODIFIED)];
        let counts = |if_range: &str, response: &[(&'static str, &str)]| {
            let request = headers(&[("range", "bytes=0-1"), ("if-range", if_range)]);
            range_counts(&Method::GET, &request, &headers(response))
        };
        assert!(counts("\"v1\"", &stored) && counts(MODIFIED, &stored));
        assert!(!counts("\"v2\"", &stored) && !counts("W/\"v1\"", &stored) && !counts(LATE, &stored));
        assert!(!counts("W/\"v1\"", &weak) && !counts("\"v1\"", &weak) && !counts(MODIFIED, &weak));
        assert!(!counts("soon", &stored));
    }

    #[test]
    fn a_range_that_cannot_be_said_is_ignored() {
        let plain = headers(&[("content-length", "10")]);
        let asked = |range: &str| range_counts(&Method::GET, &headers(&[("range", range)]), &plain);
        for good in [
            "bytes=",
            "bytes=0-1",
            "bytes=-5",
            "bytes=3-",
            "bytes=0-1, 4-5",
            "bytes=20-",
            "BYTES=0-0",
            "bytes=-10",
        ] {
            assert!(asked(good), "{good}");
        }
        for bad in ["bytes=-0", "bytes=-000", "bytes=0-1,-0", "bytes=99999999999999999999-5", "bytes=-"] {
            assert!(!asked(bad), "{bad}");
        }
        let range = headers(&[("range", "bytes=-5")]);
        assert!(!range_counts(&Method::GET, &range, &headers(&[("content-length", "0")])));
        assert!(!range_counts(&Method::HEAD, &range, &plain));
    }

    #[test]
    fn a_304_speaks_of_what_has_its_validators() {
        let stored = headers(&[("etag", "\"v1\""), ("last-modified", MODIFIED)]);
        let weak = headers(&[("etag", "W/\"v1\"")]);
        let table: [(Lines<'_>, &HeaderMap, bool); 9] = [
            (&[("etag", "\"v1\"")], &stored, true),
            (&[("etag", "\"v2\"")], &stored, false),
            (&[("etag", "W/\"v1\"")], &stored, true),
            (&[("etag", "\"v1\"")], &weak, false),
            (&[("etag", "W/\"v1\"")], &weak, true),
            (&[("last-modified", MODIFIED)], &stored, true),
            (&[("last-modified", LATE)], &stored, false),
            (&[], &stored, true),
            (&[("etag", "\"v1\""), ("last-modified", LATE)], &stored, true),
        ];
        for (fresh, stored, expected) in table {
            assert_eq!(confirms(&headers(fresh), stored), expected, "{fresh:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(line in proptest::collection::vec(32u8..=255, 0..40)) {
            names(&line, Some(b"\"v1\""));
            is_ordinary(&line);
        }
    }
}
