//! The header fields of what is stored: what a 304 changes, and what is never replayed.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora::http::ResponseHeader;

/// RFC 9111 section 3.2: the stored response takes every field of a 304 that does not describe its own framing.
/// `Vary` stays: pingora cannot move a stored body to another variant.
pub(super) fn freshen(stored: &mut ResponseHeader, fresh: &HeaderMap) {
    const KEPT: [HeaderName; 7] = [
        header::CONTENT_LENGTH,
        header::CONTENT_ENCODING,
        header::CONTENT_TYPE,
        header::CONTENT_RANGE,
        header::TRANSFER_ENCODING,
        header::VARY,
        header::CONNECTION,
    ];
    // The body is as current as the 304, whether that has a date or gets one when it is stored.
    stored.remove_header(&header::DATE);
    for name in fresh.keys().filter(|name| !KEPT.contains(name)) {
        stored.remove_header(name);
        for value in fresh.get_all(name) {
            // Name and value come from a header map: they are valid.
            drop(stored.append_header(name.clone(), value.clone()));
        }
    }
}

/// Whether a 304 with the fields of `fresh` is about the response whose entity tag is `stored`: one with a strong tag
/// of another response must not update it (RFC 9111 section 4.3.4).
pub(super) fn is_about(fresh: &HeaderMap, stored: Option<&HeaderValue>) -> bool {
    match fresh.get(header::ETAG) {
        Some(tag) if !tag.as_bytes().starts_with(b"W/") => stored.is_some_and(|stored| {
            let stored = stored.as_bytes();
            stored.strip_prefix(b"W/").unwrap_or(stored) == tag.as_bytes()
        }),
        _ => true,
    }
}

/// Removes what belongs to one exchange and must never be replayed: hop-by-hop fields (RFC 9111 section 3.1),
/// cookies unless `with_cookies`, rate-limit state, request identifiers, `Age`, and what caches say of the exchange.
/// Fields in `without` go too.
pub(super) fn sanitise_for_storage(header: &mut ResponseHeader, without: &[HeaderName], with_cookies: bool) {
    const DROPPED: [&str; 17] = [
        "age",
        "cache-status",
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "set-cookie2",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-cache",
        "x-request-id",
    ];
    let nominated: Vec<HeaderName> = header
        .headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    let dropped: Vec<HeaderName> = header
        .headers
        .keys()
        .filter(|name| {
            let text = name.as_str();
            DROPPED.contains(&text)
                || nominated.contains(name)
                || without.contains(name)
                || (!with_cookies && *name == header::SET_COOKIE)
                || ["x-ratelimit-", "x-rate-limit-", "ratelimit", "x-tollgate-", "x-cache-"]
                    .iter()
                    .any(|prefix| text.starts_with(prefix))
        })
        .cloned()
        .collect();
    for name in dropped {
        header.remove_header(&name);
    }
}
