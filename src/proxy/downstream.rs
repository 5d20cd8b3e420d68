//! Talking to the client's session: reading its head as plain values, bounding it in time, and writing the
//! gateway's own replies.

use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, DATE, EXPECT, HOST};
use http::{HeaderName, HeaderValue, Method, Version};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use crate::pipeline::head::HeadInput;
use crate::pipeline::{Context, Reply};

/// The address at the other end; unspecified for transports that have none.
pub(super) fn peer(session: &Session) -> IpAddr {
    session
        .client_addr()
        .and_then(|address| address.as_inet())
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), std::net::SocketAddr::ip)
}

/// The head's own bytes, where HTTP/1 keeps them.
pub(super) fn raw_head(session: &Session) -> Option<Bytes> {
    session
        .as_downstream()
        .as_http1()
        .map(pingora::protocols::http::v1::server::HttpSession::get_headers_raw_bytes)
}

/// The head as plain values.
pub(super) fn head<'a>(session: &'a Session, raw: Option<&'a Bytes>) -> HeadInput<'a> {
    let request = session.req_header();
    let is_h2 = session.as_downstream().is_http2();
    HeadInput {
        method: &request.method,
        target: request.raw_path(),
        version: request.version,
        headers: &request.headers,
        is_h2,
        authority: if is_h2 { request.uri.authority().map(http::uri::Authority::as_str) } else { None },
        raw: raw.map(Bytes::as_ref),
    }
}

/// Makes the request fit to be asked again in the background, which pingora does by parsing it as HTTP/1; `false`
/// when it cannot be. An HTTP/1 request is repeated from the bytes it came in.
pub(super) fn prepare_repetition(session: &mut Session, context: &Context) -> bool {
    if !session.as_downstream().is_http2() {
        return true;
    }
    // Rewriting may have taken the credential out of the query.
    if context.admitted().is_none_or(|admitted| admitted.target.rewritten.is_some()) {
        return false;
    }
    let request = session.req_header_mut();
    request.set_version(Version::HTTP_11);
    if request.headers.contains_key(HOST) {
        return true;
    }
    let host = request.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    host.is_some_and(|host| request.insert_header(HOST, host).is_ok())
}

/// Whether the client holds its body back until it is told to go on. The head check has left no other expectation.
pub(super) fn awaits_continue(session: &mut Session) -> bool {
    let request = session.req_header();
    let expects = request.version == Version::HTTP_11 && request.headers.contains_key(EXPECT);
    expects && !session.as_downstream().is_http2() && !session.as_downstream_mut().is_body_empty()
}

/// Writes a reply of the gateway's own, keeping the connection where HTTP allows it.
pub(super) async fn write(
    session: &mut Session,
    reply: &Reply,
    stamp: &[(HeaderName, HeaderValue)],
) -> Result<()> {
    let fields = reply.headers.len() + stamp.len() + 3;
    let mut header = ResponseHeader::build_no_case(reply.status, Some(fields))?;
    for (name, value) in reply.headers.iter().chain(stamp) {
        header.append_header(name.clone(), value.clone())?;
    }
    header.insert_header(CONTENT_LENGTH, HeaderValue::from(reply.body.len()))?;
    header.insert_header(DATE, date())?;
    // HTTP/1 drops the body of an answer to HEAD by itself, HTTP/2 would send it.
    let has_body = session.req_header().method != Method::HEAD && !reply.body.is_empty();
    session.write_response_header(Box::new(header), !has_body).await?;
    if has_body {
        session.write_response_body(Some(reply.body.clone()), true).await?;
    }
    Ok(())
}

/// The `Date` of an own reply (RFC 9110 section 6.6.1).
#[allow(clippy::disallowed_methods, reason = "a date for people, not a decision")]
fn date() -> HeaderValue {
    let text = httpdate::fmt_http_date(std::time::SystemTime::now());
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
