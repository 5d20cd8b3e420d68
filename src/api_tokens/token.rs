//! The form of an API token, `tgk_<id>_<secret>`, and the comparison of its secret with what is stored. It keeps no
//! token, and nothing of it can be printed by accident.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

use crate::identifiers::{API_TOKEN_PREFIX, push_hex};

/// Characters of an id.
pub const ID_CHARACTERS: usize = 16;
/// Characters of a secret: more than 256 bits.
pub const SECRET_CHARACTERS: usize = 43;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Random bytes from here on are drawn again, so that each character is as likely as any other.
const UNBIASED: u8 = 248;

/// The operating system gave no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no random bytes")]
pub struct NoRandomness;

/// What tells one API token from another: 16 characters of `0-9A-Za-z`, not secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; ID_CHARACTERS]);

impl Id {
    /// The id as it is written; `None` unless it has exactly its form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; ID_CHARACTERS] = text.as_bytes().try_into().ok()?;
        bytes.iter().all(u8::is_ascii_alphanumeric).then_some(Self(bytes))
    }

    /// A new one.
    ///
    /// # Errors
    /// `NoRandomness`.
    pub fn random() -> Result<Self, NoRandomness> {
        random().map(Self)
    }

    /// The id as it is written.
    pub fn as_str(&self) -> &str {
        // Letters and digits only.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Id({self})")
    }
}

/// The SHA-256 of a secret: all that is kept of it, and compared in constant time only.
#[derive(Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// The hash of no secret.
    pub const NONE: Self = Self([0; 32]);

    /// The hash of `secret`. A fast one is enough: secrets are random, not chosen.
    #[must_use]
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// The hash as it is stored; `None` unless it is 64 lower-case hex digits.
    #[must_use]
    pub fn parse(hex: &str) -> Option<Self> {
        let digits: [u8; 64] = hex.as_bytes().try_into().ok()?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            for digit in pair {
                let value = match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'f' => digit - b'a' + 10,
                    _ => return None,
                };
                *byte = *byte << 4 | value;
            }
        }
        Some(Self(bytes))
    }

    /// The hash as it is stored.
    #[must_use]
    pub fn to_hex(self) -> String {
        let mut text = String::with_capacity(64);
        push_hex(&mut text, self.0.iter());
        text
    }

    /// Whether both are of one secret, in a time that does not depend on either.
    pub fn is(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(***)")
    }
}

/// A token as a request presents it: well-formed, and not known to anybody yet.
#[derive(Clone, Copy, Debug)]
pub struct Presented {
    /// Which token it claims to be.
    pub id: Id,
    /// The hash of the secret that came with it.
    pub secret: SecretHash,
}

/// Whether `text` means to be an API token.
#[must_use]
pub fn is_api_token(text: &str) -> bool {
    text.starts_with(API_TOKEN_PREFIX)
}

impl Presented {
    /// The token in `text`; `None` unless it has exactly the form of one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(API_TOKEN_PREFIX)?.split_once('_')?;
        let sound = secret.len() == SECRET_CHARACTERS && secret.bytes().all(|b| b.is_ascii_alphanumeric());
        let id = Id::parse(id)?;
        sound.then(|| Self { id, secret: SecretHash::of(secret) })
    }
}

/// A token that was just made: the only moment at which its secret can be read.
pub struct Issued {
    /// Which one.
    pub id: Id,
    secret: [u8; SECRET_CHARACTERS],
}

impl Issued {
    /// A new secret for `id`.
    ///
    /// # Errors
    /// `NoRandomness`.
    pub fn new(id: Id) -> Result<Self, NoRandomness> {
        Ok(Self { id, secret: random()? })
    }

    /// The whole token, to be shown once.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{API_TOKEN_PREFIX}{}_{}", self.id, self.secret())
    }

    /// What is stored of it.
    #[must_use]
    pub fn hash(&self) -> SecretHash {
        SecretHash::of(self.secret())
    }

    fn secret(&self) -> &str {
        std::str::from_utf8(&self.secret).unwrap_or_default()
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("id", &self.id).finish_non_exhaustive()
    }
}

/// That many characters of base62, each as likely as any other.
fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], NoRandomness> {
    let mut text = [0; LENGTH];
    let mut pool = [0; 64];
    let mut drawn = 0..0;
    for character in &mut text {
        *character = loop {
            let Some(index) = drawn.next() else {
                getrandom::fill(&mut pool).map_err(|_| NoRandomness)?;
                drawn = 0..pool.len();
                continue;
            };
            let byte = pool.get(index).copied().filter(|byte| *byte < UNBIASED);
            if let Some(found) = byte.and_then(|byte| BASE62.get(usize::from(byte % 62))) {
                break *found;
            }
        };
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "tgk_0123456789ABCDEF_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG";

    #[test]
    fn issued_tokens_are_read_back_and_never_the_same() {
        let mut seen = std::collections::BTreeSet::new();
        let mut characters = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let issued = Issued::new(Id::random().unwrap()).unwrap();
            let text = issued.reveal();
            assert_eq!(text.len(), 4 + 16 + 1 + 43);
            let presented = Presented::parse(&text).unwrap();
            assert_eq!(presented.id, issued.id);
            assert!(bool::from(presented.secret.is(&issued.hash())));
            assert!(!format!("{issued:?} {presented:?}").contains(&text[21..]));
            characters.extend(text[21..].bytes());
            assert!(seen.insert(text));
        }
        assert_eq!(characters.len(), 62);
    }

    #[test]
    fn anything_but_the_exact_form_is_no_token() {
        assert!(Presented::parse(TEXT).is_some());
        for bad in [
            "",
            "tgk_",
            "tgk__",
            &TEXT[1..],
            &TEXT[..TEXT.len() - 1],
            &format!("{TEXT}0"),
            &format!("{TEXT}="),
            &format!(" {TEXT}"),
            &format!("{TEXT}\n"),
            &format!("{TEXT}_"),
            &TEXT.replace("tgk", "TGK"),
            &TEXT.replacen("0123", "012-", 1),
            &TEXT.replacen("ABCDEF_", "ABCDE_F", 1),
            &TEXT.replacen("xyz", "xy.", 1),
            &TEXT.replacen("xyz", "xyé", 1),
            &TEXT.replacen("xyz", "xy\0", 1),
            &"tgk_".repeat(16),
            &"x".repeat(100_000),
        ] {
            assert!(Presented::parse(bad).is_none(), "{bad}");
        }
        let other = Presented::parse(&TEXT.replacen("xyz", "XYZ", 1)).unwrap();
        assert!(!bool::from(other.secret.is(&Presented::parse(TEXT).unwrap().secret)), "case counts");
    }

    #[test]
    fn hashes_are_stored_in_hex_and_nothing_else_is_one() {
        let hash = SecretHash::of("abc");
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash.to_hex(), hex);
        assert!(bool::from(SecretHash::parse(hex).unwrap().is(&hash)));
        assert!(!bool::from(SecretHash::NONE.is(&hash)));
        for bad in ["", "ba", &hex.to_uppercase(), &hex.replace('b', "g"), &format!("{hex}00")] {
            assert!(SecretHash::parse(bad).is_none(), "{bad}");
        }
        assert!(!format!("{hash:?}").contains("ba78"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(tgk_)?\\PC{0,70}") {
            if let Some(found) = Presented::parse(&text) {
                let head = format!("tgk_{}_", found.id);
                prop_assert!(text.starts_with(&head));
            }
        }
    }
}
