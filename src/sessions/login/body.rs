//! A bounded copy of a body as it passes, and the token in it.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::coding::{self, Coding};
use super::pointer::Pointer;
use super::{NotOpened, token};
use crate::json::parse_object;

/// What JSON may begin with and readers pass over (RFC 8259 section 8.1).
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A copy of the body of the answer to a login.
#[derive(Debug)]
pub struct BodyCopy {
    codings: Vec<Coding>,
    /// Bytes that were announced.
    length: Option<usize>,
    limit: usize,
    bytes: Vec<u8>,
}

impl BodyCopy {
    /// An empty copy for the body that follows this head, of at most `limit` bytes, packed and unpacked.
    ///
    /// # Errors
    /// [`NotOpened::Absent`], [`NotOpened::Partial`], [`NotOpened::MediaType`], [`NotOpened::Coding`] and
    /// [`NotOpened::TooLarge`], where the head tells already.
    pub fn new(status: StatusCode, headers: &HeaderMap, limit: usize) -> Result<Self, NotOpened> {
        match status {
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT => return Err(NotOpened::Absent),
            StatusCode::PARTIAL_CONTENT => return Err(NotOpened::Partial),
            _ => {}
        }
        if !is_json(headers) {
            return Err(NotOpened::MediaType);
        }
        let codings = coding::of(headers)?;
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let length = length.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        if length.is_some_and(|length| length > limit) {
            return Err(NotOpened::TooLarge);
        }
        Ok(Self { codings, length, limit, bytes: Vec::with_capacity(length.unwrap_or_default()) })
    }

    /// Takes a copy of the next piece.
    ///
    /// # Errors
    /// [`NotOpened::TooLarge`]; the copy is of no use then.
    pub fn add(&mut self, piece: &[u8]) -> Result<(), NotOpened> {
        if piece.len() > self.limit.saturating_sub(self.bytes.len()) {
            return Err(NotOpened::TooLarge);
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// Whether all that was announced is here; never so where nothing was announced.
    pub fn is_whole(&self) -> bool {
        self.length == Some(self.bytes.len())
    }

    /// The token at `pointer` in the whole body.
    ///
    /// # Errors
    /// [`NotOpened::Coding`], [`NotOpened::TooLarge`], [`NotOpened::Malformed`], [`NotOpened::Absent`] and
    /// [`NotOpened::NotAToken`].
    pub fn token(&self, pointer: &Pointer) -> Result<String, NotOpened> {
        if self.bytes.is_empty() {
            return Err(NotOpened::Absent);
        }
        let plain = coding::undo(&self.codings, &self.bytes, self.limit)?;
        let text = plain.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&plain);
        let document = parse_object(text).map(Value::Object).map_err(|_| NotOpened::Malformed)?;
        match pointer.find(&document) {
            None | Some(Value::Null) => Err(NotOpened::Absent),
            Some(Value::String(text)) => token(text).map(str::to_owned),
            Some(_) => Err(NotOpened::NotAToken),
        }
    }
}

/// Whether the one `Content-Type` is `application/json` or ends in `+json` (RFC 6839 section 3.1), whatever its
/// parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(only), None) = (types.next(), types.next()) else { return false };
    let essence = only.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    match essence.split_once('/') {
        Some(("application", "json")) => true,
        Some((kind, subtype)) => {
            !kind.is_empty() && !subtype.contains(['/', ',']) && subtype.ends_with("+json")
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::NotOpened::{Absent, Coding, Malformed, MediaType, NotAToken, Partial, TooLarge};
    use super::*;

    fn head(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn begun(status: u16, lines: &[(&'static str, &str)]) -> Result<(), NotOpened> {
        BodyCopy::new(StatusCode::from_u16(status).unwrap(), &head(lines), 100).map(drop)
    }

    fn read(pointer: &str, body: &[u8]) -> Result<String, NotOpened> {
        let headers = head(&[("content-type", "application/json")]);
        let mut copy = BodyCopy::new(StatusCode::OK, &headers, 1_000).unwrap();
        for piece in body.chunks(7) {
            copy.add(piece)?;
        }
        copy.token(&Pointer::parse(pointer).unwrap())
    }

    #[test]
    fn the_head_tells_what_is_not_worth_a_copy() {
        let json = ("content-type", "application/json");
        for (status, lines, expected) in [
            (200, &[json][..], Ok(())),
            (201, &[("content-type", "Application/JSON ;charset=UTF-8")], Ok(())),
            (200, &[("content-type", "application/vnd.api+json")], Ok(())),
            (200, &[json, ("content-length", "100")], Ok(())),
            (200, &[json, ("content-encoding", "gzip")], Ok(())),
            (204, &[json], Err(Absent)),
            (205, &[json], Err(Absent)),
            (206, &[json], Err(Partial)),
            (200, &[], Err(MediaType)),
            (200, &[json, json], Err(MediaType)),
            (200, &[("content-type", "text/html, application/problem+json")], Err(MediaType)),
            (200, &[("content-type", "text/json")], Err(MediaType)),
            (200, &[("content-type", "application/jsonp")], Err(MediaType)),
            (200, &[("content-type", "+json")], Err(MediaType)),
            (200, &[json, ("content-length", "101")], Err(TooLarge)),
            (200, &[json, ("content-length", "99999999999999999999")], Ok(())),
            (200, &[json, ("content-encoding", "compress")], Err(Coding)),
        ] {
            assert_eq!(begun(status, lines), expected, "{status} {lines:?}");
        }
    }

    #[test]
    fn a_token_is_found_in_whatever_pieces_it_came() {
        for (pointer, body, expected) in [
            ("/access_token", &br#"{"access_token":"a.b.c","expires_in":1}"#[..], Ok("a.b.c")),
            ("/access_token", b"\xef\xbb\xbf {\"access_token\" : \"a.b.c\"}\r\n", Ok("a.b.c")),
            ("/access_token", br#"{"access_token":"\u0061.b.c"}"#, Ok("a.b.c")),
            ("/data/0/token", br#"{"data":[{"token":"a.b.c"},{"token":"d"}]}"#, Ok("a.b.c")),
            ("/t", br#"{"x":1}"#, Err(Absent)),
            ("/t", br#"{"t":null}"#, Err(Absent)),
            ("/t", br#"{"t":""}"#, Err(Absent)),
            ("/t/0", br#"{"t":"a.b.c"}"#, Err(Absent)),
            ("/t", br#"{"t":1}"#, Err(NotAToken)),
            ("/t", br#"{"t":["a.b.c"]}"#, Err(NotAToken)),
            ("/t", br#"{"t":{"t":"a.b.c"}}"#, Err(NotAToken)),
            ("/t", br#"{"t":"Bearer a.b.c"}"#, Err(NotAToken)),
            ("/t", br#"{"t":" a.b.c"}"#, Err(NotAToken)),
            ("/t", br#"{"t":"a.b.c","t":"a.b.c"}"#, Err(Malformed)),
            ("/t", br#"{"t":"a.b.c","x":{"y":1,"y":2}}"#, Err(Malformed)),
            ("/t", br#"{"t":"a.b.c""#, Err(Malformed)),
            ("/t", br#"{"t":"a.b.c"}{}"#, Err(Malformed)),
            ("/0", br#"["a.b.c"]"#, Err(Malformed)),
            ("/t", b"", Err(Absent)),
            ("/t", b"\xff\xfe{\0}\0", Err(Malformed)),
            ("/t", b"{\"t\":\"a.b.c\",\"x\":\"\xe9\"}", Err(Malformed)),
        ] {
            assert_eq!(read(pointer, body).as_deref(), expected.as_ref().copied(), "{pointer} {body:?}");
        }
        let deep = format!(r#"{{"t":"a.b.c","x":{}{}}}"#, "[".repeat(50), "]".repeat(50));
        assert_eq!(read("/t", deep.as_bytes()), Err(Malformed));
        assert_eq!(
            read("/t", format!(r#"{{"t":"a.b.c","x":"{}"}}"#, "x".repeat(1_000)).as_bytes()),
            Err(TooLarge)
        );
    }

    #[test]
    fn a_body_of_announced_length_is_known_to_be_whole() {
        let headers = head(&[("content-type", "application/json"), ("content-length", "4")]);
        let mut copy = BodyCopy::new(StatusCode::OK, &headers, 100).unwrap();
        for is_whole in [false, false, false, true] {
            copy.add(b"x").unwrap();
            assert_eq!(copy.is_whole(), is_whole);
        }
        let mut unannounced =
            BodyCopy::new(StatusCode::OK, &head(&[("content-type", "application/json")]), 100).unwrap();
        assert!(!unannounced.is_whole());
        unannounced.add(&[b'x'; 100]).unwrap();
        assert_eq!((unannounced.is_whole(), unannounced.add(b"x")), (false, Err(TooLarge)));
    }
}
