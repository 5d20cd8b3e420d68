//! The signature algorithms of RFC 7518 and RFC 8037 that Tollgate knows, and sets of them.
//!
//! There is no `none` here, so no token can ask for it.

use serde::Serialize;

/// A signature algorithm as the `alg` header member names it (RFC 7518 section 3.1, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[allow(missing_docs, reason = "the variants are the registered names")]
pub enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// Every algorithm, in the order of their names' families.
    pub const ALL: [Self; 12] = [
        Self::HS256,
        Self::HS384,
        Self::HS512,
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::ES256,
        Self::ES384,
        Self::EdDsa,
    ];

    /// The algorithm of this exact name; names are case-sensitive (RFC 7515 section 4.1.1).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == name)
    }

    /// The registered name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::HS384 => "HS384",
            Self::HS512 => "HS512",
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    /// Shortest secret it may be used with, in bytes: the size of its hash (RFC 7518 section 3.2). Zero for those
    /// of public keys.
    pub const fn min_secret_bytes(self) -> usize {
        match self {
            Self::HS256 => 32,
            Self::HS384 => 48,
            Self::HS512 => 64,
            _ => 0,
        }
    }

    /// Whether it uses a shared secret.
    pub const fn is_symmetric(self) -> bool {
        self.min_secret_bytes() > 0
    }

    /// Whether somebody without the key can turn one valid signature into another: `(r, n - s)` for ECDSA,
    /// and randomised padding for PSS. Such a token must not be recognised by its signature.
    pub(super) const fn has_several_signatures(self) -> bool {
        matches!(self, Self::ES256 | Self::ES384 | Self::PS256 | Self::PS384 | Self::PS512)
    }

    pub(super) const fn engine(self) -> jsonwebtoken::Algorithm {
        use jsonwebtoken::Algorithm as Engine;
        match self {
            Self::HS256 => Engine::HS256,
            Self::HS384 => Engine::HS384,
            Self::HS512 => Engine::HS512,
            Self::RS256 => Engine::RS256,
            Self::RS384 => Engine::RS384,
            Self::RS512 => Engine::RS512,
            Self::PS256 => Engine::PS256,
            Self::PS384 => Engine::PS384,
            Self::PS512 => Engine::PS512,
            Self::ES256 => Engine::ES256,
            Self::ES384 => Engine::ES384,
            Self::EdDsa => Engine::EdDSA,
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of algorithms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Algorithms(u16);

impl Algorithms {
    /// Whether `algorithm` is in the set.
    #[must_use]
    pub const fn contains(self, algorithm: Algorithm) -> bool {
        self.0 & algorithm.bit() != 0
    }

    /// What both sets hold.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether the set holds nothing.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members, in the order of [`Algorithm::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Algorithm> {
        Algorithm::ALL.into_iter().filter(move |algorithm| self.contains(*algorithm))
    }
}

impl FromIterator<Algorithm> for Algorithms {
    fn from_iter<I: IntoIterator<Item = Algorithm>>(algorithms: I) -> Self {
        Self(algorithms.into_iter().fold(0, |set, algorithm| set | algorithm.bit()))
    }
}

impl<const N: usize> From<[Algorithm; N]> for Algorithms {
    fn from(algorithms: [Algorithm; N]) -> Self {
        algorithms.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exact_and_none_is_unknown() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::from_name(algorithm.as_str()), Some(algorithm));
        }
        for name in ["none", "None", "NONE", "nOnE", "", "hs256", "HS256 ", "ES512", "ES256K", "EDDSA"] {
            assert_eq!(Algorithm::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let set = Algorithms::from([Algorithm::HS256, Algorithm::EdDsa]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [Algorithm::HS256, Algorithm::EdDsa]);
        assert!(set.intersection([Algorithm::RS256].into()).is_empty());
    }
}
