//! How names chosen by others become parts of store keys.
//!
//! Holds the one encoding every key uses for subjects and the like; it never builds a whole key.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

/// Longest encoded part kept readable, in bytes; anything longer becomes a digest.
pub const MAX_KEY_PART: usize = 64;

/// How the tokens begin that the gateway issues itself. No JWT does: it decodes to no JSON object.
pub const API_TOKEN_PREFIX: &str = "tgk_";

/// How a digest that stands for a part begins. Readable parts never begin so.
pub const DIGEST_PREFIX: &str = "sha256-";

/// Everything but `[A-Za-z0-9._~@-]`: no separator, glob or hash-tag character survives.
const UNSAFE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'~').remove(b'@').remove(b'-');

/// `part` as it stands in a store key: percent-encoded outside `[A-Za-z0-9._~@-]`, or `sha256-` and the
/// first 32 hex digits of its SHA-256 where that would exceed [`MAX_KEY_PART`] bytes.
///
/// Distinct parts stay distinct: a part that already begins like a digest is digested as well, so nobody can
/// choose a name that stands for somebody else's long one. Borrows when nothing changes.
#[must_use]
pub fn encode_key_part(part: &str) -> Cow<'_, str> {
    if part.len() <= MAX_KEY_PART && !part.starts_with(DIGEST_PREFIX) {
        let encoded: Cow<'_, str> = utf8_percent_encode(part, UNSAFE).into();
        if encoded.len() <= MAX_KEY_PART {
            return encoded;
        }
    }
    Cow::Owned(digest_key_part(part.as_bytes()))
}

/// `part` as it stands in a store key where it must not be readable: `sha256-` and the first 32 hex digits of its
/// SHA-256.
#[must_use]
pub fn digest_key_part(part: &[u8]) -> String {
    let mut text = String::with_capacity(DIGEST_PREFIX.len() + 32);
    text.push_str(DIGEST_PREFIX);
    push_hex(&mut text, Sha256::digest(part).iter().take(16));
    text
}

/// The SHA-256 of `bytes` in 64 lower-case hex digits.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    push_hex(&mut text, Sha256::digest(bytes).iter());
    text
}

/// Appends `bytes` in lower-case hex digits.
pub(crate) fn push_hex<'a>(text: &mut String, bytes: impl Iterator<Item = &'a u8>) {
    let digit = |nibble: u8| char::from(if nibble < 10 { b'0' + nibble } else { b'a' + (nibble - 10) });
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 0xf));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_names_are_borrowed_unchanged() {
        for name in ["42", "alice@example.com", "A-b_c.d~e", ""] {
            assert!(matches!(encode_key_part(name), Cow::Borrowed(same) if same == name), "{name}");
        }
    }

    #[test]
    fn separators_globs_tags_and_controls_are_encoded() {
        assert_eq!(encode_key_part("a:b"), "a%3Ab");
        assert_eq!(encode_key_part("*{x}\r\n%"), "%2A%7Bx%7D%0D%0A%25");
        assert_eq!(encode_key_part("é"), "%C3%A9");
    }

    #[test]
    fn long_names_and_imitated_digests_become_digests() {
        let long = "x".repeat(10_000);
        let digest = encode_key_part(&long).into_owned();
        assert_eq!(digest.len(), DIGEST_PREFIX.len() + 32);
        assert_ne!(encode_key_part(&digest), digest, "nobody can take the name of a digest");
        assert_eq!(encode_key_part(&":".repeat(22)).len(), DIGEST_PREFIX.len() + 32);
        assert_eq!(encode_key_part(&":".repeat(21)).len(), 63);
        assert_eq!(encode_key_part(&"x".repeat(64)).len(), 64);
    }

    #[test]
    fn sha256_is_the_known_one() {
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    proptest! {
        #[test]
        fn parts_are_bounded_safe_and_injective(names in prop::collection::vec(".{0,80}", 1..40)) {
            let mut seen: HashMap<String, String> = HashMap::new();
            for name in names {
                let part = encode_key_part(&name).into_owned();
                prop_assert!(part.len() <= MAX_KEY_PART);
                prop_assert!(part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~@-%".contains(&b)));
                if let Some(other) = seen.insert(part, name.clone()) {
                    prop_assert_eq!(other, name);
                }
            }
        }
    }
}
