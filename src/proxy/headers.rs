//! Editing pingora's headers as plain maps. pingora keeps the case of names in a second map, which makes every
//! change twice the work; names are case-insensitive (RFC 9110 section 5.1), so that map is given up.

use http::{HeaderMap, request, response};
use pingora::http::{RequestHeader, ResponseHeader};

/// Fields that the gateway adds to a request at most, so that the map grows once.
const REQUEST_ROOM: usize = 12;
/// Fields that the gateway adds to a response at most.
const RESPONSE_ROOM: usize = 12;

/// Lets `edit` change the fields of a request on its way to the upstream.
pub(super) fn edit_request(header: &mut RequestHeader, edit: impl FnOnce(&mut HeaderMap)) {
    let ends_stream = header.send_end_stream();
    let nothing = RequestHeader::from(http::Request::new(()).into_parts().0);
    let mut parts = request::Parts::from(std::mem::replace(header, nothing));
    parts.headers.reserve(REQUEST_ROOM);
    edit(&mut parts.headers);
    *header = RequestHeader::from(parts);
    if let Some(ends_stream) = ends_stream {
        header.set_send_end_stream(ends_stream);
    }
}

/// Lets `edit` change the fields of a response to a client.
pub(super) fn edit_response(header: &mut ResponseHeader, edit: impl FnOnce(&mut HeaderMap)) {
    let canonical = header.status.canonical_reason();
    let reason = header.get_reason_phrase().filter(|reason| Some(*reason) != canonical).map(str::to_owned);
    let nothing = ResponseHeader::from(http::Response::new(()).into_parts().0);
    let mut parts = response::Parts::from(std::mem::replace(header, nothing));
    parts.headers.reserve(RESPONSE_ROOM);
    edit(&mut parts.headers);
    *header = ResponseHeader::from(parts);
    if reason.is_some() {
        // It was one before: it is valid.
        let _ = header.set_reason_phrase(reason.as_deref());
    }
}
