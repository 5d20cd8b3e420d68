//! JSON web tokens for every purpose, well-formed or hostile, signed by hand so that nothing refuses to build them.
//! It never verifies: that is what is being tested.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// What the tests sign with and put into `JWT_SECRET`.
pub const SECRET: &str = "a-secret-of-the-tests-that-is-long-enough";

/// A token under construction.
#[derive(Debug, Clone)]
pub struct Token {
    header: Map<String, Value>,
    claims: Map<String, Value>,
}

impl Token {
    /// A token as a login would issue it: `sub`, `iat` now, `exp` in an hour, a `jti` of its own.
    pub fn of(subject: &str) -> Self {
        let now = unix_seconds();
        Self::empty()
            .claim("sub", subject)
            .claim("iat", now)
            .claim("exp", now + 3600)
            .claim("jti", format!("{:032x}", fastrand::u128(..)))
    }

    /// A token without any claim.
    pub fn empty() -> Self {
        Self { header: object(&json!({"alg": "HS256", "typ": "JWT"})), claims: Map::new() }
    }

    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims.insert(name.to_owned(), value.into());
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.claims.remove(name);
        self
    }

    /// `exp` that many seconds from now; negative for a token that has expired.
    pub fn expires_in(self, seconds: i64) -> Self {
        self.claim("exp", unix_seconds() + seconds)
    }

    /// Sets a field of the header, such as `kid`, `jwk` or another `alg` than the one that signs.
    pub fn header(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.header.insert(name.to_owned(), value.into());
        self
    }

    pub fn without_header(mut self, name: &str) -> Self {
        self.header.remove(name);
        self
    }

    pub fn jti(&self) -> &str {
        self.claims["jti"].as_str().expect("a textual jti")
    }

    /// The compact form, signed with [`SECRET`].
    pub fn sign(&self) -> String {
        self.sign_with(SECRET.as_bytes())
    }

    /// The compact form with an HMAC-SHA-256 signature, whatever the header says.
    pub fn sign_with(&self, secret: &[u8]) -> String {
        signed(&text(&self.header), &text(&self.claims), secret)
    }

    /// The compact form with an empty signature.
    pub fn unsigned(&self) -> String {
        format!("{}.", signing_input(&text(&self.header), &text(&self.claims)))
    }
}

/// A signed token of header and claims as they are: for JSON that no serializer would write.
pub fn signed(header: &str, claims: &str, secret: &[u8]) -> String {
    let input = signing_input(header, claims);
    let signature = URL_SAFE_NO_PAD.encode(hmac_sha256(secret, input.as_bytes()));
    format!("{input}.{signature}")
}

/// Seconds since 1970, by the clock the gateway under test reads too.
pub fn unix_seconds() -> i64 {
    #[allow(
        clippy::disallowed_methods,
        reason = "the gateway runs as a process of its own, on the real clock"
    )]
    let now = SystemTime::now();
    i64::try_from(now.duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// HMAC (RFC 2104) with SHA-256.
pub fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let mut block = [0_u8; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().into()
}

fn signing_input(header: &str, claims: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn text(object: &Map<String, Value>) -> String {
    Value::Object(object.clone()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_rfc_7515_appendix_a_1() {
        let key = URL_SAFE_NO_PAD
            .decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
            .unwrap();
        let header = "{\"typ\":\"JWT\",\r\n \"alg\":\"HS256\"}";
        let claims = "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}";
        assert!(signed(header, claims, &key).ends_with(".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"));
    }
}
