//! HTTP/2 by hand (RFC 9113): header lists that no client library would send, in literal HPACK (RFC 7541).
//! It understands just enough of the answer to tell what became of the first stream.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

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
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        literal(name.as_bytes(), &mut block);
        literal(value.as_bytes(), &mut block);
    }
    let mut bytes = PREFACE.to_vec();
    frame(SETTINGS, 0, 0, &[], &mut bytes);
    let flags = if body.is_empty() { END_HEADERS | END_STREAM } else { END_HEADERS };
    frame(HEADERS, flags, 1, &block, &mut bytes);
    if !body.is_empty() {
        frame(DATA, END_STREAM, 1, body, &mut bytes);
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

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags, 0, 0, 0, stream]);
    out.extend_from_slice(payload);
}
