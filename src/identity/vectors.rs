//! Public test vectors, held against what judges tokens: the same `Signed`, `Key` and issuer as in service. Most of
//! their payloads are no claims, so that form and signature are asked for alone.

mod cookbook;
mod rfc;
mod wycheproof;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::algorithm::{Algorithm, Algorithms};
use super::jwt::Signed;
use super::keys::{Key, KeyKind, KeySet};
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

fn key(jwk: &Value, secrets: Secrets) -> Result<Key, String> {
    if jwk.get("use").is_some_and(|purpose| purpose != "sig") {
        return Err("use".into());
    }
    let verifies = |operations: &Value| operations.as_array().unwrap().contains(&"verify".into());
    if jwk.get("key_ops").is_some_and(|operations| !verifies(operations)) {
        return Err("key_ops".into());
    }
    let part = |name: &str| URL_SAFE_NO_PAD.decode(text(jwk, name)).map_err(|_| "base64");
    let point = || Ok::<_, &str>([vec![4], part("x")?, part("y")?].concat());
    let made = match (text(jwk, "kty"), jwk.get("crv").and_then(Value::as_str), secrets) {
        ("oct", None, Secrets::Strong) => Key::secret(&part("k")?),
        ("oct", None, Secrets::Any) => Key::weak_secret(&part("k")?),
        ("RSA", None, _) => Key::rsa(&part("n")?, &part("e")?),
        ("EC", Some("P-256"), _) => Key::ec(KeyKind::P256, &point()?),
        ("EC", Some("P-384"), _) => Key::ec(KeyKind::P384, &point()?),
        ("OKP", Some("Ed25519"), _) => Key::ed25519(&part("x")?),
        _ => return Err("kty".into()),
    };
    let key = made.map_err(|problem| format!("{problem:?}"))?;
    let key = match jwk.get("kid").and_then(Value::as_str) {
        Some(kid) => key.named(kid),
        None => key,
    };
    match jwk.get("alg").and_then(Value::as_str).map(Algorithm::from_name) {
        None => Ok(key),
        Some(Some(algorithm)) => Ok(key.only([algorithm])),
        Some(None) => Err("alg".into()),
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
