//! Tokens as such applications issue them: JWTs with HS256, good until they expire.

use std::time::Duration;

use anyhow::Context as _;
use http::StatusCode;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, get_current_timestamp};
use serde_json::{Map, Value};

use super::reply::Reply;
use super::request::Request;

/// `JWT_SECRET`.
///
/// # Errors
/// When it is not set.
pub fn secret() -> anyhow::Result<String> {
    super::variable("JWT_SECRET")
        .context("JWT_SECRET is not set; try: export JWT_SECRET=$(openssl rand -hex 32)")
}

/// Issues and reads tokens.
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl Tokens {
    /// Tokens signed with this secret.
    pub fn new(secret: &str) -> Self {
        Self {
            encoding: EncodingKey::from_secret(secret.as_bytes()),
            decoding: DecodingKey::from_secret(secret.as_bytes()),
        }
    }

    /// A token with these claims, and `iat`, `exp` after `life` and a `jti` of its own.
    ///
    /// # Errors
    /// 500 when it cannot be signed.
    pub fn issue(
        &self,
        claims: impl IntoIterator<Item = (&'static str, Value)>,
        life: Duration,
    ) -> Result<String, Reply> {
        let now = get_current_timestamp();
        let mut all: Map<String, Value> =
            claims.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        all.insert("iat".to_owned(), now.into());
        all.insert("exp".to_owned(), now.saturating_add(life.as_secs()).into());
        all.insert("jti".to_owned(), format!("{:032x}", fastrand::u128(..)).into());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &all, &self.encoding)
            .map_err(|_| Reply::refusal(StatusCode::INTERNAL_SERVER_ERROR, "Cannot issue a token"))
    }

    /// The claims of the request's token.
    ///
    /// # Errors
    /// 401 when there is none, or none that is good.
    pub fn claims(&self, request: &Request) -> Result<Map<String, Value>, Reply> {
        let token = request.bearer()?;
        jsonwebtoken::decode(token, &self.decoding, &Validation::new(Algorithm::HS256))
            .map(|decoded| decoded.claims)
            .map_err(|_| Reply::refusal(StatusCode::UNAUTHORIZED, "Invalid token"))
    }
}
