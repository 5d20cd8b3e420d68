//! A published key set (JWK Set, RFC 7517 section 5) as keys that verify signatures.
//!
//! It believes nothing but public keys meant for signatures: what is private, symmetric or damaged costs its own
//! entry and no other. Where the bytes come from is none of its business.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::algorithm::{Algorithm, Algorithms};
use super::jwt::MAX_KID_BYTES;
use super::keys::{Key, KeyKind, KeyProblem, KeySet, MAX_KEYS};
use crate::json::{JsonProblem, parse_object};

/// Members that only private or symmetric keys have (RFC 7518 sections 6.2.2, 6.3.2 and 6.4.1).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// Most faults that are told of one set.
const MAX_FAULTS: usize = 16;

/// Why a set is refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetProblem {
    /// Not one JSON object without repeated members.
    #[error(transparent)]
    Json(#[from] JsonProblem),
    /// There is no list `keys`.
    #[error("no list of `keys`")]
    NoList,
    /// No entry of the list is a key that could verify a token of the issuer.
    #[error("none of {entries} keys has a type, use and algorithm that tokens of this issuer need{}", first(.skipped.as_ref()))]
    NoneUsable {
        /// How many entries there are.
        entries: usize,
        /// The first of them that is at fault.
        skipped: Option<Skipped>,
    },
    /// More than [`MAX_KEYS`] usable keys.
    #[error("more than {MAX_KEYS} usable keys")]
    TooManyKeys,
}

fn first(skipped: Option<&Skipped>) -> String {
    skipped.map(|skipped| format!(", for example: {skipped}")).unwrap_or_default()
}

/// Why an entry of a set is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// Meant for something else: encryption, another algorithm, a type or curve that no known algorithm uses.
    #[error("of no use to this issuer")]
    Foreign,
    /// Private or symmetric: a secret that was published.
    #[error("a private or symmetric key, which must never be published")]
    Secret,
    /// A member is missing or of a wrong type.
    #[error("`{0}` is missing or malformed")]
    Member(&'static str),
    /// The key itself cannot be used.
    #[error(transparent)]
    Key(#[from] KeyProblem),
}

/// An entry of a set that is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key {at} ({}): {reason}", .kid.as_deref().map_or_else(|| "no kid".to_owned(), |kid| format!("kid {kid:?}")))]
pub struct Skipped {
    /// Its place in the list, from 0.
    pub at: usize,
    /// Its identifier, where that can be read.
    pub kid: Option<Box<str>>,
    /// Why.
    pub reason: SkipReason,
}

/// What a published set holds for one issuer.
#[derive(Clone, Debug)]
pub struct Published {
    /// The usable keys, at least one.
    pub keys: KeySet,
    /// The first entries at fault, 16 at most; those merely meant for something else are not among them.
    pub faults: Vec<Skipped>,
    /// SHA-256 of what the usable keys are, whatever their order: equal for sets that verify the same.
    pub print: [u8; 32],
}

/// Reads a set for an issuer of these algorithms.
///
/// # Errors
/// Whatever leaves no usable key. Entries of no use are passed over, as RFC 7517 section 5 asks.
pub fn read_set(bytes: &[u8], algorithms: Algorithms) -> Result<Published, SetProblem> {
    let set = parse_object(bytes)?;
    let Some(Value::Array(entries)) = set.get("keys") else { return Err(SetProblem::NoList) };
    let mut keys = Vec::new();
    let mut prints: Vec<[u8; 32]> = Vec::new();
    let mut faults = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        match usable(entry, algorithms) {
            Ok((_, print)) if prints.contains(&print) => {}
            Ok(_) if keys.len() >= MAX_KEYS => return Err(SetProblem::TooManyKeys),
            Ok((key, print)) => {
                keys.push(key);
                prints.push(print);
            }
            Err(SkipReason::Foreign) => {}
            Err(_) if faults.len() >= MAX_FAULTS => {}
            Err(reason) => faults.push(Skipped { at, kid: kid(entry).ok().flatten(), reason }),
        }
    }
    if keys.is_empty() {
        return Err(SetProblem::NoneUsable { entries: entries.len(), skipped: faults.into_iter().next() });
    }
    prints.sort_unstable();
    let print = prints.iter().fold(Sha256::new(), Sha256::chain_update).finalize().into();
    Ok(Published { keys: KeySet::published(keys), faults, print })
}

/// The key of one entry and a digest of all that matters of it.
fn usable(entry: &Value, algorithms: Algorithms) -> Result<(Key, [u8; 32]), SkipReason> {
    let Value::Object(members) = entry else { return Err(SkipReason::Member("kty")) };
    if PRIVATE.iter().any(|name| members.contains_key(*name)) {
        return Err(SkipReason::Secret);
    }
    if !is_for_signatures(members) {
        return Err(SkipReason::Foreign);
    }
    let key = material(members)?.only(algorithms);
    let key = match members.get("alg") {
        None => key,
        Some(Value::String(name)) => key.only(Algorithm::from_name(name).into_iter().collect::<Algorithms>()),
        Some(_) => return Err(SkipReason::Member("alg")),
    };
    if key.algorithms().is_empty() {
        return Err(SkipReason::Foreign);
    }
    let kid = kid(entry)?;
    let mut hash = Sha256::new();
    for name in ["kty", "crv", "n", "e", "x", "y", "kid"] {
        let text = members.get(name).and_then(Value::as_str);
        hash.update([u8::from(text.is_some())]);
        hash.update(text.map_or(0, str::len).to_be_bytes());
        hash.update(text.unwrap_or_default());
    }
    key.algorithms().iter().for_each(|algorithm| hash.update(algorithm.as_str()));
    let key = match kid {
        Some(kid) => key.named(kid),
        None => key,
    };
    Ok((key, hash.finalize().into()))
}

/// RFC 7517 sections 4.2 and 4.3: both members are optional, and neither may speak against verifying.
fn is_for_signatures(members: &Map<String, Value>) -> bool {
    let for_signatures = match members.get("use") {
        None => true,
        Some(purpose) => purpose.as_str() == Some("sig"),
    };
    let for_verifying = match members.get("key_ops") {
        None => true,
        Some(operations) => operations
            .as_array()
            .is_some_and(|list| list.iter().any(|operation| operation.as_str() == Some("verify"))),
    };
    for_signatures && for_verifying
}

fn kid(entry: &Value) -> Result<Option<Box<str>>, SkipReason> {
    match entry.get("kid") {
        None => Ok(None),
        // A token's `kid` is no longer than this, so that nothing is lost.
        Some(Value::String(kid)) if kid.len() <= MAX_KID_BYTES => Ok(Some(kid.as_str().into())),
        Some(_) => Err(SkipReason::Member("kid")),
    }
}

fn material(members: &Map<String, Value>) -> Result<Key, SkipReason> {
    let text = |name: &'static str| match members.get(name) {
        Some(Value::String(text)) => Ok(text.as_str()),
        _ => Err(SkipReason::Member(name)),
    };
    let bytes = |name| URL_SAFE_NO_PAD.decode(text(name)?).map_err(|_| SkipReason::Member(name));
    match text("kty")? {
        "RSA" => Ok(Key::rsa(&bytes("n")?, &bytes("e")?)?),
        "EC" => {
            let (kind, length) = match text("crv")? {
                "P-256" => (KeyKind::P256, 32),
                "P-384" => (KeyKind::P384, 48),
                _ => return Err(SkipReason::Foreign),
            };
            // RFC 7518 section 6.2.1.2: a coordinate is as long as the field.
            let coordinate = |name| {
                bytes(name).and_then(|bytes| {
                    if bytes.len() == length { Ok(bytes) } else { Err(SkipReason::Member(name)) }
                })
            };
            Ok(Key::ec(kind, &[&[4], &*coordinate("x")?, &*coordinate("y")?].concat())?)
        }
        "OKP" if text("crv")? == "Ed25519" => Ok(Key::ed25519(&bytes("x")?)?),
        _ => Err(SkipReason::Foreign),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALL_PUBLIC: [Algorithm; 9] = [
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::EdDsa,
    ];

    /// RFC 7517 appendix A.1, the RSA key.
    fn rsa() -> Value {
        json!({
            "kty": "RSA", "kid": "2011-04-29", "e": "AQAB",
            "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRX\
                  jBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs\
                  8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_x\
                  BniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        })
    }

    /// RFC 7517 appendix A.1, the EC key, without its `use`.
    fn p256() -> Value {
        json!({
            "kty": "EC", "crv": "P-256", "kid": "1",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        })
    }

    /// RFC 8037 appendix A.2.
    fn ed25519() -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
    }

    fn with(mut key: Value, name: &str, value: Value) -> Value {
        key[name] = value;
        key
    }

    fn read(keys: &[Value]) -> Result<Published, SetProblem> {
        read_set(json!({ "keys": keys }).to_string().as_bytes(), ALL_PUBLIC.into())
    }

    fn reason(key: Value) -> Option<SkipReason> {
        let published = read(&[with(ed25519(), "kid", json!("sound")), key]).unwrap();
        assert_eq!(published.keys.keys().len() + published.faults.len(), 2, "{published:?}");
        published.faults.first().map(|skipped| skipped.reason)
    }

    #[test]
    fn the_keys_of_the_standards_are_read() {
        let published = read(&[rsa(), p256(), ed25519()]).unwrap();
        let kinds: Vec<_> = published.keys.keys().iter().map(|key| (key.kind(), key.kid())).collect();
        assert_eq!(
            kinds,
            [(KeyKind::Rsa, Some("2011-04-29")), (KeyKind::P256, Some("1")), (KeyKind::Ed25519, None)]
        );
        assert_eq!(published.faults, []);
    }

    #[test]
    fn what_a_key_is_for_is_respected() {
        let algorithms = |key: Value| {
            let published = read(&[with(ed25519(), "kid", json!("sound")), key]).unwrap();
            assert_eq!(published.faults, []);
            published.keys.keys().get(1).map(|key| key.algorithms().iter().collect::<Vec<_>>())
        };
        assert_eq!(algorithms(rsa()).unwrap().len(), 6);
        assert_eq!(algorithms(with(rsa(), "alg", json!("PS384"))).unwrap(), [Algorithm::PS384]);
        assert!(algorithms(with(rsa(), "use", json!("sig"))).is_some());
        assert!(algorithms(with(rsa(), "key_ops", json!(["verify"]))).is_some());
        for (name, value) in [
            ("alg", json!("RSA-OAEP")),
            ("alg", json!("ES256")),
            ("alg", json!("HS256")),
            ("alg", json!("none")),
            ("alg", json!("")),
            ("use", json!("enc")),
            ("use", json!("SIG")),
            ("use", json!(null)),
            ("key_ops", json!(["sign", "wrapKey"])),
            ("key_ops", json!([])),
            ("key_ops", json!("verify")),
            ("kty", json!("rsa")),
            ("kty", json!("AKP")),
        ] {
            assert_eq!(algorithms(with(rsa(), name, value.clone())), None, "{name}: {value}");
        }
        for curve in ["P-521", "secp256k1", "p-256", ""] {
            assert_eq!(algorithms(with(p256(), "crv", json!(curve))), None, "{curve}");
        }
        for curve in ["Ed448", "X25519"] {
            assert_eq!(algorithms(with(ed25519(), "crv", json!(curve))), None, "{curve}");
        }
        let only =
            read_set(json!({"keys": [rsa(), p256()]}).to_string().as_bytes(), [Algorithm::ES256].into());
        assert_eq!(only.unwrap().keys.keys().len(), 1);
    }

    #[test]
    fn secrets_that_were_published_are_never_used() {
        for name in PRIVATE {
            for key in [rsa(), p256(), ed25519()] {
                assert_eq!(reason(with(key, name, json!("AQAB"))), Some(SkipReason::Secret), "{name}");
            }
        }
        let oct = json!({"kty": "oct", "k": "MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1ub3BxcnN0dXY", "alg": "HS256"});
        assert_eq!(reason(oct.clone()), Some(SkipReason::Secret));
        let set = json!({ "keys": [oct] }).to_string();
        assert!(read_set(set.as_bytes(), [Algorithm::HS256].into()).is_err());
    }

    #[test]
    fn a_bad_key_costs_no_other() {
        let long = "k".repeat(MAX_KID_BYTES + 1);
        for (key, expected) in [
            (json!(null), SkipReason::Member("kty")),
            (json!("RSA"), SkipReason::Member("kty")),
            (json!({}), SkipReason::Member("kty")),
            (with(rsa(), "kty", json!(1)), SkipReason::Member("kty")),
            (with(rsa(), "kid", json!(1)), SkipReason::Member("kid")),
            (with(rsa(), "kid", json!(null)), SkipReason::Member("kid")),
            (with(rsa(), "kid", json!(long)), SkipReason::Member("kid")),
            (with(rsa(), "alg", json!(["RS256"])), SkipReason::Member("alg")),
            (with(rsa(), "n", json!("AQAB")), KeyProblem::RsaSize(17).into()),
            (with(rsa(), "n", json!("A*")), SkipReason::Member("n")),
            (with(rsa(), "n", json!(null)), SkipReason::Member("n")),
            (with(rsa(), "e", json!("AQAB=")), SkipReason::Member("e")),
            (with(rsa(), "e", json!("Aw")), KeyProblem::RsaExponent.into()),
            (with(p256(), "x", json!("AQAB")), SkipReason::Member("x")),
            (
                with(p256(), "y", json!("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4")),
                KeyProblem::Invalid.into(),
            ),
            (with(p256(), "crv", json!("P-384")), SkipReason::Member("x")),
            (with(ed25519(), "x", json!("AQAB")), KeyProblem::Invalid.into()),
            (
                with(ed25519(), "x", json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")),
                KeyProblem::SmallOrder.into(),
            ),
        ] {
            assert_eq!(reason(key.clone()), Some(expected), "{key}");
        }
    }

    #[test]
    fn few_of_many_faults_are_told() {
        let mut keys = vec![json!({}); 50_000];
        keys.push(ed25519());
        let published = read(&keys).unwrap();
        assert_eq!((published.keys.keys().len(), published.faults.len()), (1, MAX_FAULTS));
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for (text, problem) in [
            ("", SetProblem::Json(JsonProblem::Malformed)),
            ("<html>", SetProblem::Json(JsonProblem::Malformed)),
            ("[]", SetProblem::Json(JsonProblem::Malformed)),
            (r#"{"keys":[]} x"#, SetProblem::Json(JsonProblem::Malformed)),
            (r#"{"keys":[],"keys":[]}"#, SetProblem::Json(JsonProblem::DuplicateMember)),
            (r#"{"keys":[{"kid":"a","kid":"b"}]}"#, SetProblem::Json(JsonProblem::DuplicateMember)),
            ("{}", SetProblem::NoList),
            (r#"{"keys":{}}"#, SetProblem::NoList),
            (r#"{"keys":null}"#, SetProblem::NoList),
            (r#"{"keys":[]}"#, SetProblem::NoneUsable { entries: 0, skipped: None }),
        ] {
            assert_eq!(read_set(text.as_bytes(), ALL_PUBLIC.into()).unwrap_err(), problem, "{text}");
        }
        let problem = read(&[with(rsa(), "d", json!("AQAB"))]).unwrap_err();
        assert!(
            problem.to_string().contains("2011-04-29") && problem.to_string().contains("private"),
            "{problem}"
        );
        let many: Vec<Value> = (0..=MAX_KEYS).map(|n| with(ed25519(), "kid", json!(n.to_string()))).collect();
        assert_eq!(read(&many).unwrap_err(), SetProblem::TooManyKeys);
        assert!(read(&many[1..]).is_ok());
    }

    #[test]
    fn a_kid_may_stand_for_several_keys_and_a_key_may_stand_twice() {
        let published = read(&[rsa(), with(p256(), "kid", json!("2011-04-29")), rsa()]).unwrap();
        assert_eq!((published.keys.keys().len(), published.faults.len()), (2, 0));
        let split = [with(rsa(), "alg", json!("RS256")), with(rsa(), "alg", json!("PS256"))];
        assert_eq!(read(&split).unwrap().keys.keys().len(), 2);
    }

    #[test]
    fn the_print_tells_sets_apart_that_verify_differently() {
        let print = |keys: &[Value]| read(keys).unwrap().print;
        let ground = print(&[rsa(), p256()]);
        assert_eq!(ground, print(&[p256(), rsa()]));
        assert_eq!(ground, print(&[rsa(), p256(), with(rsa(), "use", json!("sig"))]));
        assert_eq!(ground, print(&[rsa(), with(p256(), "x5t", json!("any")), json!({"kty": "AKP"})]));
        for other in [
            vec![rsa()],
            vec![rsa(), p256(), ed25519()],
            vec![rsa(), with(p256(), "kid", json!("2"))],
            vec![with(rsa(), "alg", json!("RS256")), p256()],
        ] {
            assert_ne!(ground, print(&other), "{other:?}");
        }
    }
}
