//! The header fields of what is stored: what a 304 changes, and what is never replayed.

use http::{HeaderMap, HeaderName, header};
use pingora::http::ResponseHeader;

use crate::cache::conditions::confirms;

/// RFC 9111 section 3.2: the stored response takes every field of a 304 that does not describe the framing of the
/// 304 itself. What is stored was not processed, so that its type and coding may be corrected too. `Vary` names no
/// other fields here, see [`is_about_another`].
pub(super) fn freshen(stored: &mut ResponseHeader, fresh: &HeaderMap) {
    const KEPT: [HeaderName; 5] = [
        header::CONTENT_LENGTH,
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

/// Whether a 304 must not change what is stored: it speaks of another version (RFC 9111 section 4.3.4), or other
/// request fields select the response from now on, and pingora cannot move a stored body to another variant.
pub(super) fn is_about_another(fresh: &HeaderMap, stored: &HeaderMap) -> bool {
    !confirms(fresh, stored) || (fresh.contains_key(header::VARY) && selecting(fresh) != selecting(stored))
}

/// The names in `Vary`, in lower case and in order.
fn selecting(headers: &HeaderMap) -> Vec<Vec<u8>> {
    let lines = headers.get_all(header::VARY).iter();
    let names = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let names = names.map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
    let mut names: Vec<Vec<u8>> = names.map(<[u8]>::to_ascii_lowercase).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Takes every field out of a 304, so that nothing of it is merged.
pub(super) fn disregard(response: &mut ResponseHeader) {
    let names: Vec<HeaderName> = response.headers.keys().cloned().collect();
    for name in names {
        response.remove_header(&name);
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
