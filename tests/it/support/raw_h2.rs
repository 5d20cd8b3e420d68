//! HTTP/2 by hand (RFC 9113): header lists that no client library would send, in literal HPACK (RFC 7541).
//! It understands just enough of the answer to tell what became of the first stream.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::PATIENCE;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A response head came; whether it was a success.
    Answered {
        /// Whether the first header field is `:status 200`.
        ok: bool,
    },
    /// The stream was reset, or the connection ended.
    Refused,
}

/// Sends one request on a connection of its own. `fields` are sent in their order, bytes as they are.
pub fn request(addr: SocketAddr, fields: &[(&str, &str)], body: &[u8]) -> Outcome {
    exchange(addr, &block(fields), body)
}

/// [`request`] with a header block as it is.
pub fn exchange(addr: SocketAddr, block: &[u8], body: &[u8]) -> Outcome {
    let mut stream = open(addr);
    let flags = if body.is_empty() { END_HEADERS | END_STREAM } else { END_HEADERS };
    let mut bytes = frame(HEADERS, flags, 1, block);
    if !body.is_empty() {
        bytes.extend(frame(DATA, END_STREAM, 1, body));
    }
    if stream.write_all(&bytes).is_err() {
        return Outcome::Refused;
    }
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).is_err() {
            return Outcome::Refused;
        }
        let mut payload =
            vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        if stream.read_exact(&mut payload).is_err() {
            return Outcome::Refused;
        }
        match (head[3], head[8]) {
            // Index 8 of the static table is `:status: 200`.
            (HEADERS, 1) => return Outcome::Answered { ok: payload.first() == Some(&0x88) },
            (RST_STREAM, 1) | (GOAWAY, _) => return Outcome::Refused,
            _ => {}
        }
    }
}

/// What a flood sends, by number.
pub type Flood<'a> = &'a dyn Fn(u32) -> Vec<u8>;

/// Sends up to `count` pieces on one connection without ever reading; returns how many the server took.
pub fn flood(addr: SocketAddr, count: u32, piece: Flood<'_>) -> u32 {
    let mut stream = open(addr);
    // A server that stops reading has ended the flood as well as one that closes.
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    (0..count).take_while(|number| stream.write_all(&piece(*number)).is_ok()).count().try_into().unwrap()
}

fn open(addr: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).unwrap();
    stream
}

/// A header block in which nothing is compressed.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        literal(name.as_bytes(), &mut block);
        literal(value.as_bytes(), &mut block);
    }
    block
}

/// A field that also becomes the first entry of the dynamic table, index 62.
pub fn indexed_literal(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0x40];
    literal(name.as_bytes(), &mut field);
    literal(value.as_bytes(), &mut field);
    field
}

/// One frame; `kind` and `flags` as numbered in RFC 9113 section 6.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

fn literal(text: &[u8], out: &mut Vec<u8>) {
    // A seven-bit prefix integer (RFC 7541 section 5.1).
    if text.len() < 127 {
        out.push(u8::try_from(text.len()).unwrap());
    } else {
        out.push(127);
        let mut rest = text.len() - 127;
        while rest >= 128 {
            out.push(u8::try_from(rest % 128).unwrap() | 128);
            rest /= 128;
        }
        out.push(u8::try_from(rest).unwrap());
    }
    out.extend_from_slice(text);
}
