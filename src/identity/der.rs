//! Just enough PEM (RFC 7468) and DER (X.690) to read public and private keys.
//!
//! Strict and allocation-light; it never decides whether a key is strong enough.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const CONTEXT_0: u8 = 0xa0;

/// The first PEM block of `text`: its label and its bytes.
pub(super) fn pem_block(text: &str) -> Option<(&str, Vec<u8>)> {
    let (_, rest) = text.split_once("-----BEGIN ")?;
    let (label, rest) = rest.split_once("-----")?;
    let (body, rest) = rest.split_once("-----END ")?;
    rest.strip_prefix(label)?.strip_prefix("-----")?;
    let body: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    Some((label, STANDARD.decode(body).ok()?))
}

/// Reads DER elements one after another.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The content of the next element, which must have this tag.
    pub(super) fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&found, rest) = self.0.split_first()?;
        if found != tag {
            return None;
        }
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if bytes.is_empty() || bytes.len() > 4 || bytes.first() == Some(&0) {
                return None;
            }
            let length = bytes.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
            if length < 0x80 {
                return None;
            }
            (length, rest)
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(content)
    }

    /// A reader over the next element's content.
    pub(super) fn enter(&mut self, tag: u8) -> Option<Self> {
        self.take(tag).map(Self)
    }

    /// A non-negative integer's magnitude without leading zeros.
    pub(super) fn unsigned(&mut self) -> Option<&'a [u8]> {
        match self.take(INTEGER)? {
            [0, rest @ ..] if rest.first().is_none_or(|b| *b >= 0x80) => Some(rest),
            [first, ..] if *first == 0 || *first >= 0x80 => None,
            [] => None,
            magnitude => Some(magnitude),
        }
    }

    /// A bit string of whole bytes.
    pub(super) fn bits(&mut self) -> Option<&'a [u8]> {
        match self.take(BIT_STRING)? {
            [0, rest @ ..] => Some(rest),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_must_be_minimal_and_present() {
        assert_eq!(Reader::new(&[0x04, 0x01, 0x07]).take(OCTET_STRING), Some(&[7][..]));
        for bytes in [
            &[0x04][..],
            &[0x04, 0x02, 0x07],
            &[0x04, 0x80],
            &[0x04, 0x81, 0x01, 0x07],
            &[0x04, 0x82, 0x00, 0x01, 0x07],
            &[0x04, 0x85, 1, 1, 1, 1, 1],
            &[0x02, 0x01, 0x07],
        ] {
            assert_eq!(Reader::new(bytes).take(OCTET_STRING), None, "{bytes:?}");
        }
    }

    #[test]
    fn integers_are_non_negative_and_minimal() {
        assert_eq!(Reader::new(&[2, 1, 3]).unsigned(), Some(&[3][..]));
        assert_eq!(Reader::new(&[2, 2, 0, 0x80]).unsigned(), Some(&[0x80][..]));
        assert_eq!(Reader::new(&[2, 1, 0]).unsigned(), Some(&[][..]));
        for bytes in [&[2, 1, 0x80][..], &[2, 2, 0, 3], &[2, 0]] {
            assert_eq!(Reader::new(bytes).unsigned(), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), tag in any::<u8>()) {
            let mut reader = Reader::new(&bytes);
            let _ = reader.take(tag);
            let _ = reader.unsigned();
            let _ = pem_block(&String::from_utf8_lossy(&bytes));
        }
    }
}
