//! Public test vectors, held against what judges tokens: the same `Signed`, `Key` and issuer as in service. Most of
//! their payloads are no claims, so that form and signature are asked for alone.

mod cookbook;
mod rfc;
mod wycheproof;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::algorithm::{Algorithm, Algorithms};
use super::jwk::{self, SetProblem};
use super::jwt::Signed;
use super::keys::{Key, KeySet};
use super::verifier::{Issuer, Settings, Verifier};
use crate::clock::UnixMillis;

const MAX_TOKEN_BYTES: usize = 16 << 10;
const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

/// `Ok`, or why not in the words of whoever refused first.
type Verdict = Result<(), String>;

fn read(file: &str) -> Value {
    let path = format!("{}/tests/fixtures/jose/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

fn array<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().unwrap()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

/// How secrets are taken: as in production, or as in development.
#[derive(Clone, Copy)]
enum Secrets {
    Strong,
    Any,
}

/// The key of a JWK: a public one as it is read from a published set, without what is private of it; a secret as the
/// configuration gives it.
fn key(jwk: &Value, secrets: Secrets) -> Result<Key, String> {
    if jwk["kty"] == "oct" {
        return secret(jwk, secrets);
    }
    let mut public = jwk.as_object().unwrap().clone();
    for private in ["d", "p", "q", "dp", "dq", "qi"] {
        public.remove(private);
    }
    let set = json!({"keys": [public]}).to_string();
    match jwk::read_set(set.as_bytes(), Algorithm::ALL.into()) {
        Ok(published) => Ok(published.keys.keys()[0].clone()),
        Err(SetProblem::NoneUsable { skipped: None, .. }) => Err("Foreign".into()),
        Err(SetProblem::NoneUsable { skipped: Some(skipped), .. }) => Err(format!("{:?}", skipped.reason)),
        Err(problem) => Err(format!("{problem:?}")),
    }
}

fn secret(jwk: &Value, secrets: Secrets) -> Result<Key, String> {
    if jwk.get("use").is_some_and(|purpose| purpose != "sig") {
        return Err("Foreign".into());
    }
    let bytes = URL_SAFE_NO_PAD.decode(text(jwk, "k")).map_err(|_| "Member(\"k\")")?;
    let key = match secrets {
        Secrets::Strong => Key::secret(&bytes),
        Secrets::Any => Key::weak_secret(&bytes),
    };
    let key = key.map_err(|problem| format!("Key({problem:?})"))?;
    let key = match jwk.get("kid").and_then(Value::as_str) {
        Some(kid) => key.named(kid),
        None => key,
    };
    match jwk.get("alg").and_then(Value::as_str).map(Algorithm::from_name) {
        None => Ok(key),
        Some(Some(algorithm)) => Ok(key.only([algorithm])),
        Some(None) => Err("Foreign".into()),
    }
}

/// An issuer of these keys, as a configuration would declare it.
fn verifier(jwks: &[Value], secrets: Secrets) -> Result<Verifier, String> {
    let keys = jwks.iter().map(|jwk| key(jwk, secrets)).collect::<Result<Vec<_>, _>>()?;
    let usable: Algorithms = keys.iter().flat_map(|key| key.algorithms().iter()).collect();
    let keys = KeySet::new(keys).map_err(|problem| format!("{problem:?}"))?;
    let issuer =
        Issuer::new("vectors", Vec::new(), usable, keys).map_err(|problem| format!("{problem:?}"))?;
    Ok(Verifier::new(Settings::new(vec![issuer]).unwrap()))
}

fn check(verifier: &Verifier, token: &str) -> Verdict {
    let (signed, _) = Signed::read(token, MAX_TOKEN_BYTES).map_err(|refused| format!("{refused:?}"))?;
    let issuer = verifier.trusted(&Map::new()).unwrap();
    issuer.check_signature(&signed).map_err(|refused| format!("{refused:?}"))
}

/// Form and signature of `token` by one of `jwks`.
fn judge(jwks: &[Value], secrets: Secrets, token: &str) -> Verdict {
    check(&verifier(jwks, secrets)?, token)
}
