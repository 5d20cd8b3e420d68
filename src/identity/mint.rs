//! Making tokens: for tests, service accounts and the demo.
//!
//! It signs what it is asked to; whether a gateway would accept the result is the verifier's to say.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use serde_json::{Map, Value, json};

use super::algorithm::Algorithm;
use super::der::{self, Reader};
use super::keys::{KeyProblem, check_secret};
use crate::clock::UnixMillis;

/// Life of a minted token unless asked otherwise: 24 hours.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Claims that have their own field in a [`MintRequest`].
const OWN_CLAIMS: [&str; 9] =
    ["sub", "subscription_plan", "permissions", "rate_limit_multiplier", "iss", "aud", "iat", "exp", "jti"];

/// Why a token cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintProblem {
    /// The secret is weak or no secret.
    #[error(transparent)]
    Key(#[from] KeyProblem),
    /// Not a private key in PEM.
    #[error(
        "not a PEM private key (`PRIVATE KEY` or `RSA PRIVATE KEY`; convert others with `openssl pkcs8 -topk8 -nocrypt`)"
    )]
    NotAPrivateKey,
    /// The algorithm needs a secret, not a PEM key, or the other way round.
    #[error("{0} does not use this kind of key")]
    WrongKind(Algorithm),
    /// The key cannot sign with the algorithm.
    #[error("the key cannot sign with {0}")]
    CannotSign(Algorithm),
    /// The multiplier is not a finite number above zero.
    #[error("the multiplier must be a finite number above zero")]
    Multiplier,
    /// An extra claim would replace one that has its own field.
    #[error("claim `{0}` cannot be given as an extra one")]
    ReservedClaim(String),
}

/// A key to sign with. Its `Debug` shows no material.
#[derive(Clone, Debug)]
pub struct MintKey {
    algorithm: Algorithm,
    material: EncodingKey,
    kid: Option<Box<str>>,
}

impl MintKey {
    /// An HMAC secret for one of `HS*`; weak ones are refused.
    pub fn secret(algorithm: Algorithm, secret: &[u8]) -> Result<Self, MintProblem> {
        check_secret(secret)?;
        if secret.len() < algorithm.min_secret_bytes() {
            return Err(KeyProblem::ShortForAlgorithm(secret.len(), algorithm).into());
        }
        Self::weak_secret(algorithm, secret)
    }

    /// An HMAC secret that may be weak, for development only.
    pub fn weak_secret(algorithm: Algorithm, secret: &[u8]) -> Result<Self, MintProblem> {
        match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
                Ok(Self { algorithm, material: EncodingKey::from_secret(secret), kid: None })
            }
            _ => Err(MintProblem::WrongKind(algorithm)),
        }
    }

    /// A private key in PEM for any other algorithm: PKCS #8, or PKCS #1 for RSA.
    pub fn private_pem(algorithm: Algorithm, pem: &str) -> Result<Self, MintProblem> {
        use Algorithm::{ES256, ES384, EdDsa, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512};
        let (label, der) = der::pem_block(pem).ok_or(MintProblem::NotAPrivateKey)?;
        let material = match (algorithm, label) {
            (HS256 | HS384 | HS512, _) => return Err(MintProblem::WrongKind(algorithm)),
            (RS256 | RS384 | RS512 | PS256 | PS384 | PS512, "RSA PRIVATE KEY") => {
                EncodingKey::from_rsa_der(&der)
            }
            (RS256 | RS384 | RS512 | PS256 | PS384 | PS512, "PRIVATE KEY") => {
                EncodingKey::from_rsa_der(inner_key(&der).ok_or(MintProblem::NotAPrivateKey)?)
            }
            (ES256 | ES384, "PRIVATE KEY") => EncodingKey::from_ec_der(&der),
            (EdDsa, "PRIVATE KEY") => EncodingKey::from_ed_der(&der),
            _ => return Err(MintProblem::NotAPrivateKey),
        };
        let key = Self { algorithm, material, kid: None };
        key.sign("")?;
        Ok(key)
    }

    /// This key, named in the header of what it signs.
    #[must_use]
    pub fn named(mut self, kid: impl Into<Box<str>>) -> Self {
        self.kid = Some(kid.into());
        self
    }

    /// `claims` under this key, unchanged and unchecked: for tests of what a gateway must refuse.
    pub fn sign_claims(&self, claims: &Map<String, Value>) -> Result<String, MintProblem> {
        let mut header = Map::new();
        header.insert("alg".into(), self.algorithm.as_str().into());
        header.insert("typ".into(), "JWT".into());
        if let Some(kid) = &self.kid {
            header.insert("kid".into(), kid.to_string().into());
        }
        let part = |members: &Map<String, Value>| URL_SAFE_NO_PAD.encode(json!(members).to_string());
        let signing_input = format!("{}.{}", part(&header), part(claims));
        let signature = self.sign(&signing_input)?;
        Ok(format!("{signing_input}.{signature}"))
    }

    fn sign(&self, message: &str) -> Result<String, MintProblem> {
        jsonwebtoken::crypto::sign(message.as_bytes(), &self.material, self.algorithm.engine())
            .map_err(|_| MintProblem::CannotSign(self.algorithm))
    }
}

/// What a token is to say.
#[derive(Clone, Debug)]
pub struct MintRequest {
    /// `sub`.
    pub subject: String,
    /// `subscription_plan`.
    pub plan: Option<String>,
    /// `permissions`; left out when empty.
    pub permissions: Vec<String>,
    /// `rate_limit_multiplier`: finite and above zero.
    pub multiplier: Option<f64>,
    /// `exp - iat`, whole seconds, at least one.
    pub lifetime: Duration,
    /// `iss`.
    pub issuer: Option<String>,
    /// `aud`.
    pub audience: Option<String>,
    /// Further claims.
    pub extra: Map<String, Value>,
}

impl MintRequest {
    /// A token for `subject` that lives for [`DEFAULT_LIFETIME`] and says nothing else.
    #[must_use]
    pub fn new(subject: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            plan: None,
            permissions: Vec::new(),
            multiplier: None,
            lifetime: DEFAULT_LIFETIME,
            issuer: None,
            audience: None,
            extra: Map::new(),
        }
    }
}

/// A token as asked, issued at `now`, with a random `jti` of 128 bits.
pub fn mint(request: &MintRequest, key: &MintKey, now: UnixMillis) -> Result<String, MintProblem> {
    if request.multiplier.is_some_and(|factor| !factor.is_finite() || factor <= 0.0) {
        return Err(MintProblem::Multiplier);
    }
    if let Some(name) = request.extra.keys().find(|name| OWN_CLAIMS.contains(&name.as_str())) {
        return Err(MintProblem::ReservedClaim(name.clone()));
    }
    let issued_at = now.as_secs();
    let mut claims = request.extra.clone();
    let mut say = |name: &str, value: Value| {
        claims.insert(name.into(), value);
    };
    say("sub", json!(request.subject));
    say("iat", json!(issued_at));
    say("exp", json!(issued_at.saturating_add(request.lifetime.as_secs().max(1))));
    say("jti", json!(random_id()));
    if !request.permissions.is_empty() {
        say("permissions", json!(request.permissions));
    }
    if let Some(factor) = request.multiplier {
        say("rate_limit_multiplier", json!(factor));
    }
    for (name, text) in
        [("subscription_plan", &request.plan), ("iss", &request.issuer), ("aud", &request.audience)]
    {
        if let Some(text) = text {
            say(name, json!(text));
        }
    }
    key.sign_claims(&claims)
}

/// 128 random bits in hex. Each half mixes a generator seeded per thread with a hash keyed by the operating
/// system's randomness; `jti` must not repeat, but it is no secret.
fn random_id() -> String {
    let half = || RandomState::new().build_hasher().finish() ^ fastrand::u64(..);
    format!("{:016x}{:016x}", half(), half())
}

/// The algorithm's own key within PKCS #8 (RFC 5208 section 5).
fn inner_key(pkcs8: &[u8]) -> Option<&[u8]> {
    let mut info = Reader::new(pkcs8).enter(der::SEQUENCE)?;
    info.take(der::INTEGER)?;
    info.take(der::SEQUENCE)?;
    info.take(der::OCTET_STRING)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"correct-horse-battery-staple-0123456789";

    fn fixture(name: &str) -> String {
        std::fs::read_to_string(format!("{}/tests/fixtures/keys/{name}.pem", env!("CARGO_MANIFEST_DIR")))
            .unwrap()
    }

    #[test]
    fn keys_that_cannot_sign_with_the_algorithm_are_refused() {
        use Algorithm::{ES256, ES384, EdDsa, HS256, RS256};
        for (algorithm, name, problem) in [
            (HS256, "rsa-2048-private", MintProblem::WrongKind(HS256)),
            (RS256, "rsa-2048-public", MintProblem::NotAPrivateKey),
            (RS256, "ec-p256-private", MintProblem::CannotSign(RS256)),
            (ES256, "ec-p256-sec1-private", MintProblem::NotAPrivateKey),
            (ES256, "ec-p384-private", MintProblem::CannotSign(ES256)),
            (ES384, "ec-p256-private", MintProblem::CannotSign(ES384)),
            (ES256, "rsa-2048-private", MintProblem::CannotSign(ES256)),
            (EdDsa, "ec-p256-private", MintProblem::CannotSign(EdDsa)),
        ] {
            assert_eq!(MintKey::private_pem(algorithm, &fixture(name)).err(), Some(problem), "{name}");
        }
        assert_eq!(MintKey::secret(RS256, SECRET).err(), Some(MintProblem::WrongKind(RS256)));
        assert!(matches!(
            MintKey::secret(HS256, b"short"),
            Err(MintProblem::Key(KeyProblem::ShortSecret(5)))
        ));
        assert!(MintKey::weak_secret(HS256, b"short").is_ok());
        assert_eq!(
            MintKey::secret(Algorithm::HS512, b"0123456789abcdefghijklmnopqrstuv").err(),
            Some(MintProblem::Key(KeyProblem::ShortForAlgorithm(32, Algorithm::HS512)))
        );
    }

    #[test]
    fn senseless_requests_are_refused() {
        let key = MintKey::secret(Algorithm::HS256, SECRET).unwrap();
        for factor in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let request = MintRequest { multiplier: Some(factor), ..MintRequest::new("a") };
            assert_eq!(mint(&request, &key, UnixMillis(0)).err(), Some(MintProblem::Multiplier), "{factor}");
        }
        for name in OWN_CLAIMS {
            let mut request = MintRequest::new("a");
            request.extra.insert(name.into(), json!(1));
            assert!(
                matches!(mint(&request, &key, UnixMillis(0)), Err(MintProblem::ReservedClaim(_))),
                "{name}"
            );
        }
    }

    #[test]
    fn debug_shows_no_material() {
        let key = MintKey::secret(Algorithm::HS256, SECRET).unwrap();
        assert!(!format!("{key:?}").contains("battery"));
    }
}
