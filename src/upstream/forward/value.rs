//! Any text as a header value: one spelling per text, bounded, without bytes a header cannot hold. It never
//! shortens, because two long subjects must not become one.

use http::HeaderValue;

/// Longest value written for one piece of identity, in bytes after encoding.
pub const MAX_VALUE: usize = 1024;

/// `text` as a header value. Visible ASCII but `%`, and spaces inside, stand as they are; every other byte is
/// written `%XX`. The encoding is one-to-one and percent-decoding gives the text back.
///
/// `None` when the text is empty or its encoding exceeds [`MAX_VALUE`].
pub fn safe_value(text: &str) -> Option<HeaderValue> {
    let mut out = Vec::with_capacity(text.len());
    encode(text, false, &mut out);
    value(out)
}

/// The parts as one comma-separated value; a comma inside a part is written `%2C`. Empty parts are left out.
///
/// `None` when nothing is left or the value exceeds [`MAX_VALUE`].
pub fn joined_value(parts: &[Box<str>]) -> Option<HeaderValue> {
    let mut out = Vec::new();
    for part in parts.iter().filter(|part| !part.is_empty()) {
        if !out.is_empty() {
            out.push(b',');
        }
        encode(part, true, &mut out);
    }
    value(out)
}

fn encode(text: &str, escape_commas: bool, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    let last = bytes.len().saturating_sub(1);
    // Spaces at the ends would be trimmed on the way.
    for (at, &byte) in bytes.iter().enumerate().take(MAX_VALUE + 1) {
        match byte {
            b'%' => escape(byte, out),
            b',' if escape_commas => escape(byte, out),
            b' ' if at != 0 && at != last => out.push(byte),
            b'!'..=b'~' => out.push(byte),
            _ => escape(byte, out),
        }
    }
}

fn escape(byte: u8, out: &mut Vec<u8>) {
    let digit = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 };
    out.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 0x0F)]);
}

fn value(out: Vec<u8>) -> Option<HeaderValue> {
    if out.is_empty() || out.len() > MAX_VALUE {
        return None;
    }
    HeaderValue::from_maybe_shared(bytes::Bytes::from(out)).ok()
}
