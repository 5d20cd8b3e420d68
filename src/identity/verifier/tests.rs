use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::{Map, json};

use super::super::keys::Key;
use super::super::mint::{MintKey, MintRequest, mint};
use super::*;

mod twins;

const SECRET: &[u8] = b"correct-horse-battery-staple-0123456789-and-enough-more-for-HS512";
const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const SECS: u64 = 1_700_000_000;

fn fixture(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/fixtures/keys/{name}.pem", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn public(name: &str) -> Key {
    Key::public_pem(&fixture(&format!("{name}-public"))).unwrap()
}

fn private(algorithm: Algorithm, name: &str) -> MintKey {
    MintKey::private_pem(algorithm, &fixture(&format!("{name}-private"))).unwrap()
}

fn hs256() -> MintKey {
    MintKey::secret(Algorithm::HS256, SECRET).unwrap()
}

fn issuer(algorithms: impl Into<Algorithms>, keys: Vec<Key>) -> Issuer {
    Issuer::new("main", Vec::new(), algorithms, KeySet::new(keys).unwrap()).unwrap()
}

fn hs_issuer() -> Issuer {
    issuer([Algorithm::HS256], vec![Key::secret(SECRET).unwrap()])
}

fn verifier(issuers: Vec<Issuer>) -> Verifier {
    Verifier::new(Settings::new(issuers).unwrap())
}

fn claims(value: &Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn good_claims() -> Map<String, Value> {
    claims(&json!({"sub": "alice", "iat": SECS, "exp": SECS + 60}))
}

/// A token with this very header, signed as HS256 under `secret`.
fn forge(header: &str, payload: &str, secret: &[u8]) -> String {
    let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = jsonwebtoken::EncodingKey::from_secret(secret);
    let signature =
        jsonwebtoken::crypto::sign(input.as_bytes(), &key, jsonwebtoken::Algorithm::HS256).unwrap();
    format!("{input}.{signature}")
}

fn with_signature(token: &str, signature: &[u8]) -> String {
    let (input, _) = token.rsplit_once('.').unwrap();
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn signature(token: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(token.rsplit_once('.').unwrap().1).unwrap()
}

/// Every algorithm with a key pair of its kind.
fn pairs() -> Vec<(Algorithm, MintKey, Key)> {
    use Algorithm::*;
    let mut pairs = Vec::new();
    for algorithm in [HS256, HS384, HS512] {
        pairs.push((algorithm, MintKey::secret(algorithm, SECRET).unwrap(), Key::secret(SECRET).unwrap()));
    }
    for algorithm in [RS256, RS384, RS512, PS256, PS384, PS512] {
        pairs.push((algorithm, private(algorithm, "rsa-2048"), public("rsa-2048")));
    }
    pairs.push((RS256, private(RS256, "rsa-2048-pkcs1"), public("rsa-2048-pkcs1")));
    pairs.push((PS256, private(PS256, "rsa-pss"), public("rsa-pss")));
    pairs.push((ES256, private(ES256, "ec-p256"), public("ec-p256")));
    pairs.push((ES384, private(ES384, "ec-p384"), public("ec-p384")));
    pairs.push((EdDsa, private(EdDsa, "ed25519"), public("ed25519")));
    pairs
}

#[test]
fn every_algorithm_verifies_its_own_and_refuses_a_changed_token() {
    for (algorithm, mint_key, key) in pairs() {
        let verifier = verifier(vec![issuer([algorithm], vec![key])]);
        let token = mint(&MintRequest::new("alice"), &mint_key, NOW).unwrap();
        assert_eq!(&*verifier.verify(&token, NOW).unwrap().subject, "alice", "{algorithm}");

        let genuine = signature(&token);
        for at in [0, genuine.len() / 2, genuine.len() - 1] {
            let mut flipped = genuine.clone();
            flipped[at] ^= 1;
            let forged = with_signature(&token, &flipped);
            assert_eq!(verifier.verify(&forged, NOW).err(), Some(Refused::BadSignature), "{algorithm} {at}");
        }
        let mut longer = genuine.clone();
        longer.push(0);
        let mut padded = vec![0];
        padded.extend(&genuine);
        for bad in
            [&genuine[1..], &genuine[..genuine.len() - 1], &longer, &padded, &[0], &vec![0; genuine.len()]]
        {
            let forged = with_signature(&token, bad);
            assert_eq!(verifier.verify(&forged, NOW).err(), Some(Refused::BadSignature), "{algorithm}");
        }
        let other = mint(&MintRequest::new("mallory"), &mint_key, NOW).unwrap();
        assert_eq!(
            verifier.verify(&with_signature(&other, &genuine), NOW).err(),
            Some(Refused::BadSignature),
            "{algorithm}"
        );
    }
}

#[test]
fn an_algorithm_not_declared_is_refused_though_the_key_could_verify_it() {
    for (declared, used) in [
        (Algorithm::RS256, Algorithm::RS512),
        (Algorithm::RS256, Algorithm::PS256),
        (Algorithm::PS256, Algorithm::RS256),
    ] {
        let verifier = verifier(vec![issuer([declared], vec![public("rsa-2048")])]);
        let token = mint(&MintRequest::new("a"), &private(used, "rsa-2048"), NOW).unwrap();
        assert_eq!(verifier.verify(&token, NOW).err(), Some(Refused::AlgorithmNotAllowed), "{used}");
    }
    let token =
        mint(&MintRequest::new("a"), &MintKey::secret(Algorithm::HS512, SECRET).unwrap(), NOW).unwrap();
    assert_eq!(verifier(vec![hs_issuer()]).verify(&token, NOW).err(), Some(Refused::AlgorithmNotAllowed));
}

#[test]
fn a_public_key_never_serves_as_an_hmac_secret() {
    let both = KeySet::new(vec![public("rsa-2048"), Key::secret(SECRET).unwrap()]).unwrap();
    assert!(matches!(
        Issuer::new("x", vec![], [Algorithm::RS256, Algorithm::HS256], both),
        Err(SettingsProblem::MixedKinds(_))
    ));
    let plain = verifier(vec![issuer([Algorithm::RS256], vec![public("rsa-2048")])]);
    let der = |name: &str| {
        STANDARD
            .decode(fixture(name).lines().filter(|line| !line.starts_with('-')).collect::<String>())
            .unwrap()
    };
    let pem = fixture("rsa-2048-public");
    let pkcs1 = der("rsa-2048-pkcs1-public");
    let jwk =
        format!(r#"{{"e":"AQAB","kty":"RSA","n":"{}"}}"#, URL_SAFE_NO_PAD.encode(&pkcs1[9..pkcs1.len() - 5]));
    let payload = Value::Object(good_claims()).to_string();
    for secret in [
        pem.as_bytes(),
        pem.trim_end().as_bytes(),
        pem.replace('\n', "\r\n").as_bytes(),
        pem.replace('\n', "").as_bytes(),
        fixture("rsa-2048-pkcs1-public").as_bytes(),
        &der("rsa-2048-public"),
        &pkcs1,
        &pkcs1[9..pkcs1.len() - 5],
        jwk.as_bytes(),
        b"",
    ] {
        let token = forge(r#"{"alg":"HS256","typ":"JWT"}"#, &payload, secret);
        assert_eq!(plain.verify(&token, NOW).err(), Some(Refused::AlgorithmNotAllowed));
    }
}

#[test]
fn unsigned_tokens_are_refused() {
    let verifier = verifier(vec![hs_issuer()]);
    let payload = URL_SAFE_NO_PAD.encode(Value::Object(good_claims()).to_string());
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": alg, "typ": "JWT"}).to_string());
        for tail in [".", "", ".c2ln"] {
            assert!(verifier.verify(&format!("{header}.{payload}{tail}"), NOW).is_err(), "{alg} {tail}");
        }
    }
    let stripped = mint(&MintRequest::new("a"), &hs256(), NOW).unwrap();
    let (input, _) = stripped.rsplit_once('.').unwrap();
    assert_eq!(verifier.verify(&format!("{input}."), NOW).err(), Some(Refused::Malformed));
}

#[test]
fn ecdsa_signatures_with_zero_or_oversized_numbers_are_refused() {
    // The orders n of the two groups (SEC 2).
    let n256 = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    let n384 =
        "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973";
    let bytes = |hex: &str| -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    for (algorithm, name, order) in
        [(Algorithm::ES256, "ec-p256", bytes(n256)), (Algorithm::ES384, "ec-p384", bytes(n384))]
    {
        let verifier = verifier(vec![issuer([algorithm], vec![public(name)])]);
        let token = mint(&MintRequest::new("a"), &private(algorithm, name), NOW).unwrap();
        let genuine = signature(&token);
        let (r, s) = genuine.split_at(order.len());
        let zero = vec![0; order.len()];
        let mut one = zero.clone();
        *one.last_mut().unwrap() = 1;
        for (r, s) in [
            (&*zero, &*zero), // CVE-2022-21449
            (&zero, s),
            (r, &zero),
            (&order, s),
            (r, &order),
            (&order, &order),
            (&one, &one),
            (s, r),
        ] {
            let forged = with_signature(&token, &[r, s].concat());
            assert_eq!(verifier.verify(&forged, NOW).err(), Some(Refused::BadSignature), "{algorithm}");
        }
        // The ASN.1 form is not JOSE's.
        let mut asn1 = vec![0x30, 0x06, 2, 1, 1, 2, 1, 1];
        assert!(verifier.verify(&with_signature(&token, &asn1), NOW).is_err());
        asn1.resize(genuine.len(), 0);
        assert!(verifier.verify(&with_signature(&token, &asn1), NOW).is_err());
    }
}

#[test]
fn a_pss_signature_plus_the_modulus_is_refused() {
    let verifier = verifier(vec![issuer([Algorithm::PS256], vec![public("rsa-2048")])]);
    let key = private(Algorithm::PS256, "rsa-2048");
    let der = STANDARD
        .decode(fixture("rsa-2048-pkcs1-public").lines().filter(|l| !l.starts_with('-')).collect::<String>())
        .unwrap();
    let modulus = &der[9..9 + 256];
    // Padding is random: some signature is small enough for the sum to keep its length.
    let sum = (0..200).find_map(|_| {
        let token = mint(&MintRequest::new("a"), &key, NOW).unwrap();
        let mut bytes = signature(&token);
        let mut carry = 0;
        for (byte, add) in bytes.iter_mut().zip(modulus).rev() {
            let total = u16::from(*byte) + u16::from(*add) + carry;
            *byte = u8::try_from(total & 0xff).unwrap();
            carry = total >> 8;
        }
        (carry == 0).then(|| with_signature(&token, &bytes))
    });
    assert_eq!(verifier.verify(&sum.unwrap(), NOW).err(), Some(Refused::BadSignature));
}

#[test]
fn hostile_headers_do_not_help_a_forger_or_the_owner_of_the_key() {
    let verifier = verifier(vec![hs_issuer()]);
    let payload = Value::Object(good_claims()).to_string();
    let huge = format!(r#"{{"alg":"HS256","kid":"{}"}}"#, "k".repeat(1 << 20));
    for (header, reason) in [
        (r#"{"alg":"HS256","jwk":{"kty":"oct","k":"AAAA"}}"#, Refused::HeaderNotAllowed),
        (r#"{"alg":"HS256","jku":"https://evil.example/jwks"}"#, Refused::HeaderNotAllowed),
        (r#"{"alg":"HS256","x5u":"https://evil.example/"}"#, Refused::HeaderNotAllowed),
        (r#"{"alg":"HS256","x5c":["MII="]}"#, Refused::HeaderNotAllowed),
        (r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, Refused::HeaderNotAllowed),
        (r#"{"alg":"HS256","crit":["unknown"],"unknown":1}"#, Refused::HeaderNotAllowed),
        (r#"{"alg":"HS256","alg":"HS256"}"#, Refused::DuplicateMember),
        (r#"{"typ":"JWT"}"#, Refused::Malformed),
        (&huge, Refused::TooLong),
    ] {
        assert_eq!(verifier.verify(&forge(header, &payload, SECRET), NOW).err(), Some(reason));
    }
    // Without kids in the key set a kid is only a name: it is compared with nothing, fetched from nowhere.
    for kid in ["../../../../dev/null", "' OR 1=1 --", "https://evil.example/key", ""] {
        let header = json!({"alg": "HS256", "kid": kid}).to_string();
        assert!(verifier.verify(&forge(&header, &payload, SECRET), NOW).is_ok());
        assert_eq!(verifier.verify(&forge(&header, &payload, b""), NOW).err(), Some(Refused::BadSignature));
    }
}

#[test]
fn claims_are_judged_after_the_signature() {
    let verifier = verifier(vec![hs_issuer()]);
    let deep = format!(r#"{{"sub":"a","x":{}{}}}"#, "[".repeat(64), "]".repeat(64));
    for (payload, verdict) in [
        (json!({"sub": "a", "exp": SECS + 60}).to_string(), None),
        (json!({"sub": "a", "exp": SECS - 29}).to_string(), None),
        (json!({"sub": "a", "exp": SECS - 30}).to_string(), Some(Refused::Expired)),
        (json!({"sub": "a", "exp": 0}).to_string(), Some(Refused::Expired)),
        (json!({"sub": "a", "exp": 1_700_000_000.5}).to_string(), None),
        (json!({"sub": "a", "exp": (SECS + 60).to_string()}).to_string(), Some(Refused::Malformed)),
        (json!({"sub": "a", "exp": -1}).to_string(), Some(Refused::Malformed)),
        (json!({"sub": "a", "exp": 1e300}).to_string(), Some(Refused::Malformed)),
        (json!({"sub": "a", "exp": u64::MAX}).to_string(), Some(Refused::Malformed)),
        (r#"{"sub":"a","exp":99999999999999999999999999}"#.into(), Some(Refused::Malformed)),
        (r#"{"sub":"a","exp":1e999}"#.into(), Some(Refused::Malformed)),
        (r#"{"sub":"a","exp":1700000060,"exp":1}"#.into(), Some(Refused::DuplicateMember)),
        (json!({"sub": "a"}).to_string(), Some(Refused::MissingClaim)),
        (json!({"sub": "a", "exp": SECS + 60, "nbf": SECS + 30}).to_string(), None),
        (json!({"sub": "a", "exp": SECS + 60, "nbf": SECS + 31}).to_string(), Some(Refused::NotYetValid)),
        (json!({"sub": "a", "exp": SECS + 60, "iat": SECS + 31}).to_string(), Some(Refused::NotYetValid)),
        (json!({"exp": SECS + 60}).to_string(), Some(Refused::Subject)),
        (json!({"sub": "", "exp": SECS + 60}).to_string(), Some(Refused::Subject)),
        (json!({"sub": "a", "exp": SECS + 60, "jti": 7}).to_string(), Some(Refused::Malformed)),
        (json!({"sub": "a", "exp": SECS + 60, "iss": ["x"]}).to_string(), Some(Refused::Malformed)),
        (deep, Some(Refused::TooDeep)),
    ] {
        let token = forge(r#"{"alg":"HS256"}"#, &payload, SECRET);
        assert_eq!(verifier.verify(&token, NOW).err(), verdict, "{payload}");
    }
    let expired_forgery = forge(r#"{"alg":"HS256"}"#, r#"{"sub":"a","exp":1}"#, b"guess");
    assert_eq!(verifier.verify(&expired_forgery, NOW).err(), Some(Refused::BadSignature));
}

#[test]
fn issuers_are_told_apart_by_iss_and_do_not_lend_keys() {
    let named = |name: &str, iss: &[&str], secret: &[u8]| {
        let keys = KeySet::new(vec![Key::secret(secret).unwrap()]).unwrap();
        let iss = iss.iter().map(|iss| Box::from(*iss)).collect();
        Issuer::new(name, iss, [Algorithm::HS256], keys).unwrap()
    };
    let other: &[u8] = b"another-secret-of-sufficient-length-98765";
    let token = |secret: &[u8], iss: Option<&str>| {
        let mut claims = good_claims();
        if let Some(iss) = iss {
            claims.insert("iss".into(), iss.into());
        }
        MintKey::secret(Algorithm::HS256, secret).unwrap().sign_claims(&claims).unwrap()
    };
    let strict =
        verifier(vec![named("a", &["https://a", "https://a/"], SECRET), named("b", &["https://b"], other)]);
    let lenient = verifier(vec![named("a", &["https://a"], SECRET), named("rest", &[], other)]);
    for (verifier, secret, iss, verdict) in [
        (&strict, SECRET, Some("https://a"), None),
        (&strict, SECRET, Some("https://a/"), None),
        (&strict, other, Some("https://b"), None),
        (&strict, SECRET, Some("https://b"), Some(Refused::BadSignature)),
        (&strict, other, Some("https://a"), Some(Refused::BadSignature)),
        (&strict, SECRET, Some("https://c"), Some(Refused::Issuer)),
        (&strict, SECRET, Some("HTTPS://A"), Some(Refused::Issuer)),
        (&strict, SECRET, Some(""), Some(Refused::Issuer)),
        (&strict, SECRET, None, Some(Refused::Issuer)),
        (&lenient, SECRET, Some("https://a"), None),
        (&lenient, other, None, None),
        (&lenient, other, Some("https://c"), None),
        (&lenient, other, Some("https://a"), Some(Refused::BadSignature)),
        (&lenient, SECRET, None, Some(Refused::BadSignature)),
    ] {
        assert_eq!(verifier.verify(&token(secret, iss), NOW).err(), verdict, "{iss:?}");
    }
    assert_eq!(verifier(Vec::new()).verify(&token(SECRET, None), NOW).err(), Some(Refused::Issuer));
}

#[test]
fn a_kid_chooses_the_key_and_an_unknown_one_is_named_so() {
    let key = |name: &str, kid: &str| public(name).named(kid);
    let verifier = verifier(vec![issuer(
        [Algorithm::RS256],
        vec![key("rsa-2048", "one"), key("rsa-2048-other", "two")],
    )]);
    for (signer, kid, verdict) in [
        ("rsa-2048", Some("one"), None),
        ("rsa-2048-other", Some("two"), None),
        ("rsa-2048-other", None, None),
        ("rsa-2048", Some("two"), Some(Refused::BadSignature)),
        ("rsa-2048", Some("ONE"), Some(Refused::UnknownKey)),
        ("rsa-2048", Some(""), Some(Refused::UnknownKey)),
    ] {
        let mut mint_key = private(Algorithm::RS256, signer);
        if let Some(kid) = kid {
            mint_key = mint_key.named(kid);
        }
        let token = mint(&MintRequest::new("a"), &mint_key, NOW).unwrap();
        assert_eq!(verifier.verify(&token, NOW).err(), verdict, "{signer} {kid:?}");
    }
}

#[test]
fn a_remembered_token_is_the_same_identity_but_is_judged_by_the_clock() {
    let verifier = verifier(vec![hs_issuer()]);
    let token = hs256().sign_claims(&good_claims()).unwrap();
    let first = verifier.verify(&token, NOW).unwrap();
    assert_eq!(verifier.cached(), 1);
    assert!(Arc::ptr_eq(&first, &verifier.verify(&token, NOW).unwrap()));
    let later = |seconds| UnixMillis::from_secs(SECS + seconds);
    assert!(verifier.verify(&token, later(89)).is_ok());
    assert_eq!(verifier.verify(&token, later(90)).err(), Some(Refused::Expired));
    assert_eq!(verifier.verify(&token, UnixMillis::from_secs(SECS - 31)).err(), Some(Refused::NotYetValid));
    assert!(verifier.verify(&token, NOW).is_ok());
    // A neighbour of a remembered token is not remembered.
    let mut other = token.clone();
    let last = if other.ends_with('A') { 'E' } else { 'A' };
    other.pop();
    other.push(last);
    assert!(verifier.verify(&other, NOW).is_err());
    assert_eq!(verifier.cached(), 1, "failures are not remembered");
}

/// A verifier whose one issuer has keys kept from outside.
fn kept(keys: KeySet) -> (Verifier, Arc<Ring>) {
    let ring = Arc::new(Ring::new(keys));
    let issuer = issuer([Algorithm::HS256], Vec::new()).keyed_by(Arc::clone(&ring));
    (verifier(vec![issuer]), ring)
}

#[test]
fn a_token_that_fits_no_key_of_a_kept_ring_is_unheard() {
    let named = |kid: &str| Key::secret(SECRET).unwrap().named(kid);
    let signed = |header: &str, secret| forge(header, &Value::Object(good_claims()).to_string(), secret);
    let token = |header: &str| signed(header, SECRET);
    let (with, without) = (token(r#"{"alg":"HS256","kid":"a"}"#), token(r#"{"alg":"HS256"}"#));
    let unheard = |verifier: &Verifier, token: &str| match verifier.examine(token, NOW) {
        Err(Unverified::Unheard(unheard)) => {
            assert_eq!(verifier.verify(token, NOW).err(), Some(unheard.refused));
            Some((unheard.generation, unheard.refused, unheard.sought))
        }
        other => {
            assert_eq!(other.is_ok(), verifier.verify(token, NOW).is_ok());
            None
        }
    };
    let kid = || Some(Sought::Kid("a".into()));
    let itself = |token: &str| Some(Sought::Token(Sha256::digest(token).into()));
    let (verifier, ring) = kept(KeySet::default());
    assert_eq!(unheard(&verifier, &with), Some((0, Refused::UnknownKey, itself(&with))));
    assert_eq!(unheard(&verifier, &without), Some((0, Refused::UnknownKey, None)));
    // A set that gives names.
    ring.replace(KeySet::new(vec![named("b")]).unwrap());
    assert_eq!(unheard(&verifier, &with), Some((1, Refused::UnknownKey, kid())));
    assert_eq!(unheard(&verifier, &without), None, "any key may fit");
    ring.replace(KeySet::new(vec![named("a")]).unwrap());
    assert_eq!((unheard(&verifier, &with), unheard(&verifier, &without)), (None, None));
    let other: &[u8] = b"another-secret-of-sufficient-length-98765";
    let forged = signed(r#"{"alg":"HS256","kid":"a"}"#, other);
    assert_eq!(unheard(&verifier, &forged), Some((2, Refused::BadSignature, kid())));
    let forged = signed(r#"{"alg":"HS256"}"#, other);
    assert_eq!(unheard(&verifier, &forged), Some((2, Refused::BadSignature, None)));
    // One that gives none.
    ring.replace(KeySet::new(vec![Key::secret(SECRET).unwrap()]).unwrap());
    assert_eq!((unheard(&verifier, &with), unheard(&verifier, &without)), (None, None));
    let forged = signed(r#"{"alg":"HS256","kid":"a"}"#, other);
    assert_eq!(unheard(&verifier, &forged), Some((3, Refused::BadSignature, itself(&forged))));
    for foreign in
        [r#"{"alg":"RS256","kid":"c"}"#, r#"{"alg":"HS256","kid":1}"#, r#"{"alg":"none","kid":"c"}"#]
    {
        assert_eq!(unheard(&verifier, &token(foreign)), None, "{foreign}");
    }
    // Keys of the configuration are all there are.
    let fixed = self::verifier(vec![issuer([Algorithm::HS256], vec![named("b")])]);
    assert_eq!(fixed.verify(&with, NOW).err(), Some(Refused::UnknownKey));
    assert_eq!(unheard(&fixed, &with), None);
}

#[test]
fn a_large_memory_is_looked_through_in_small_parts() {
    for entries in [64, 10_000, 1_000_000, 10_000_000] {
        let memory = memory(entries);
        assert!(memory.shard_capacity() <= MAX_SHARD as u64, "{entries}: {}", memory.shard_capacity());
        assert!((entries as u64..=entries as u64 * 2).contains(&memory.capacity()), "{entries}");
    }
    // And each part has room for the longest tokens.
    assert!(memory(10_000).shard_capacity() > DEFAULT_MAX_TOKEN_BYTES as u64 / 1024);
}

#[test]
fn keys_of_one_issuer_do_not_void_what_another_verified() {
    let secret = || KeySet::new(vec![Key::secret(SECRET).unwrap()]).unwrap();
    let ring = Arc::new(Ring::new(secret()));
    let named = |name: &str, keys| Issuer::new(name, vec![name.into()], [Algorithm::HS256], keys).unwrap();
    let verifier =
        verifier(vec![named("a", secret()), named("b", KeySet::default()).keyed_by(Arc::clone(&ring))]);
    let token = |iss: &str| {
        let mut claims = good_claims();
        claims.insert("iss".into(), iss.into());
        hs256().sign_claims(&claims).unwrap()
    };
    let (of_a, of_b) = (token("a"), token("b"));
    let (first, second) = (verifier.verify(&of_a, NOW).unwrap(), verifier.verify(&of_b, NOW).unwrap());
    ring.replace(secret());
    assert!(Arc::ptr_eq(&first, &verifier.verify(&of_a, NOW).unwrap()));
    assert!(!Arc::ptr_eq(&second, &verifier.verify(&of_b, NOW).unwrap()));
}

#[test]
fn exchanged_keys_void_what_was_verified_by_the_old_ones() {
    let (verifier, ring) = kept(KeySet::new(vec![Key::secret(SECRET).unwrap()]).unwrap());
    let token = hs256().sign_claims(&good_claims()).unwrap();
    assert!(verifier.verify(&token, NOW).is_ok());
    let fresh =
        KeySet::new(vec![Key::secret(b"another-secret-of-sufficient-length-98765").unwrap()]).unwrap();
    ring.replace(fresh);
    assert_eq!(verifier.verify(&token, NOW).err(), Some(Refused::BadSignature));
    ring.replace(KeySet::default());
    assert_eq!(verifier.verify(&token, NOW).err(), Some(Refused::UnknownKey));
}

#[test]
fn the_memory_of_tokens_is_bounded_and_can_be_turned_off() {
    let mut settings = Settings::new(vec![hs_issuer()]).unwrap();
    settings.cache_entries = 64;
    let bounded = Verifier::new(settings.clone());
    settings.cache_entries = 0;
    let none = Verifier::new(settings);
    for _ in 0..500 {
        let token = mint(&MintRequest::new("a"), &hs256(), NOW).unwrap();
        assert!(bounded.verify(&token, NOW).is_ok() && none.verify(&token, NOW).is_ok());
    }
    assert!((1..=64).contains(&bounded.cached()));
    assert_eq!(none.cached(), 0);
}

#[test]
fn an_expired_token_is_forgotten_when_it_is_found() {
    let verifier = verifier(vec![hs_issuer()]);
    let token = hs256().sign_claims(&good_claims()).unwrap();
    let first = verifier.verify(&token, NOW).unwrap();
    let end = first.usable_until.unwrap();
    assert!(verifier.verify(&token, UnixMillis(end.0 - 1)).is_ok());
    assert_eq!(verifier.verify(&token, UnixMillis::from_secs(SECS - 31)).err(), Some(Refused::NotYetValid));
    assert_eq!(verifier.cached(), 1, "it may yet be used");
    assert_eq!(verifier.verify(&token, end).err(), Some(Refused::Expired));
    assert_eq!(verifier.cached(), 0);
    assert_eq!(verifier.verify(&token, end).err(), Some(Refused::Expired));
    assert_eq!(verifier.cached(), 0, "nor is it remembered anew");
}

#[test]
fn revoked_and_expired_tokens_are_forgotten() {
    let verifier = verifier(vec![hs_issuer()]);
    let issue = |subject: &str, life: u64| {
        let mut claims = good_claims();
        claims.insert("sub".into(), subject.into());
        claims.insert("exp".into(), (SECS + life).into());
        let token = hs256().sign_claims(&claims).unwrap();
        let identity = verifier.verify(&token, NOW).unwrap();
        (token, identity)
    };
    let [(first, known), (second, revoked), (third, _), (fourth, _)] =
        [issue("ada", 600), issue("bob", 600), issue("eve", 600), issue("dan", 60)];
    let remembered = || {
        let cache = verifier.cache.as_ref().unwrap();
        [&first, &second, &third, &fourth].map(|token| cache.peek(token.as_str()).is_some())
    };
    assert_eq!(remembered(), [true; 4]);
    verifier.forget(&third);
    verifier.forget("nothing of the kind");
    assert_eq!(remembered(), [true, true, false, true]);
    let table = super::super::revocation::Known::new(16);
    let later = UnixMillis::from_secs(SECS + 90);
    table.learn(&revoked.revocation(NOW, Duration::from_secs(3600)), NOW);
    verifier.forget_unusable(later, |identity| table.is_revoked(identity, later));
    assert_eq!(remembered(), [true, false, false, false]);
    assert!(Arc::ptr_eq(&known, &verifier.verify(&first, later).unwrap()));
}

#[test]
fn tokens_without_jti_are_known_by_their_digest_and_never_by_their_text() {
    let verifier = verifier(vec![hs_issuer()]);
    let token = hs256().sign_claims(&good_claims()).unwrap();
    let identity = verifier.verify(&token, NOW).unwrap();
    assert_eq!(*identity.keys.blacklist, format!("blacklist:sha256-{}", sha256_hex(token.as_bytes())));

    let mut empty = good_claims();
    empty.insert("jti".into(), "".into());
    let identity = verifier.verify(&hs256().sign_claims(&empty).unwrap(), NOW).unwrap();
    assert!(matches!(identity.token_id, TokenId::Sha256(_)), "an empty jti would stand for many tokens");

    let mut named = good_claims();
    named.insert("jti".into(), "6fa459ea-ee8a-3ca4-894e-db77e160355e".into());
    let identity = verifier.verify(&hs256().sign_claims(&named).unwrap(), NOW).unwrap();
    assert_eq!(&*identity.keys.blacklist, "blacklist:6fa459ea-ee8a-3ca4-894e-db77e160355e");
}

#[test]
fn names_are_told_apart_by_issuer_where_there_are_several() {
    let one = verifier(vec![hs_issuer()]);
    for (issuer, name, known_by) in
        [(None, "42", Some("42")), (Some("main"), "42", Some("42")), (Some("else"), "42", None)]
    {
        assert_eq!(one.qualified(issuer, name).as_deref(), known_by, "{issuer:?} {name}");
    }
    let mut second = hs_issuer();
    (second.name, second.iss) = ("second".into(), vec!["https://second".into()]);
    let two = verifier(vec![hs_issuer(), second]);
    for (issuer, name, known_by) in [
        (None, "42", None),
        (None, "else~42", None),
        (None, "main~42", Some("main~42")),
        (Some("main"), "42", Some("main~42")),
        (Some("second"), "main~42", Some("second~main~42")),
        (Some("else"), "42", None),
    ] {
        assert_eq!(two.qualified(issuer, name).as_deref(), known_by, "{issuer:?} {name}");
    }
    let identity = two.verify(&hs256().sign_claims(&good_claims()).unwrap(), NOW).unwrap();
    assert_eq!(two.qualified(Some("main"), "alice").as_deref(), Some(&*identity.account));
}

#[test]
fn unsafe_settings_are_refused() {
    let keys = |keys: Vec<Key>| KeySet::new(keys).unwrap();
    let rsa = || keys(vec![public("rsa-2048")]);
    assert!(matches!(Issuer::new("x", vec![], [], rsa()), Err(SettingsProblem::NoAlgorithm(_))));
    assert!(matches!(
        Issuer::new("x", vec![], [Algorithm::RS256, Algorithm::ES256], rsa()),
        Err(SettingsProblem::AlgorithmWithoutKey(_, Algorithm::ES256))
    ));
    assert!(matches!(
        Issuer::new("x", vec![], [Algorithm::RS256], keys(vec![public("rsa-2048"), public("ec-p256")])),
        Err(SettingsProblem::KeyWithoutAlgorithm(_, "p-256"))
    ));
    let named = |name: &str, iss: &[&str]| {
        Issuer::new(name, iss.iter().map(|i| Box::from(*i)).collect(), [Algorithm::RS256], rsa()).unwrap()
    };
    for (issuers, problem) in [
        (vec![named("a", &["x"]), named("a", &["y"])], SettingsProblem::DuplicateName("a".into())),
        (vec![named("a", &["x"]), named("b", &["x"])], SettingsProblem::DuplicateIss("x".into())),
        (vec![named("a", &[]), named("b", &[])], SettingsProblem::SeveralWithoutIss("a".into(), "b".into())),
    ] {
        assert_eq!(Settings::new(issuers).err(), Some(problem));
    }
}

#[test]
fn minted_tokens_say_what_was_asked_and_differ() {
    let verifier = verifier(vec![hs_issuer()]);
    let request = MintRequest {
        plan: Some("pro".into()),
        permissions: vec!["read".into()],
        multiplier: Some(2.0),
        ..MintRequest::new("alice")
    };
    let tokens: Vec<_> = (0..50).map(|_| mint(&request, &hs256(), NOW).unwrap()).collect();
    let ids: HashSet<_> =
        tokens.iter().map(|token| verifier.verify(token, NOW).unwrap().keys.blacklist.clone()).collect();
    assert_eq!(ids.len(), 50);
    let identity = verifier.verify(&tokens[0], NOW).unwrap();
    assert_eq!(identity.plan.as_deref(), Some("pro"));
    assert!(identity.may("read") && !identity.may("rea"));
    assert_eq!((identity.issued_at, identity.expires_at), (Some(SECS), Some(SECS + 86_400)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_text_never_panics_and_never_verifies(token in "\\PC{0,200}", parts in "[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}") {
        let verifier = verifier(vec![hs_issuer()]);
        prop_assert!(verifier.verify(&token, NOW).is_err());
        prop_assert!(verifier.verify(&parts, NOW).is_err());
    }

    #[test]
    fn arbitrary_json_under_a_good_signature_never_panics(header in "\\PC{0,60}", payload in "\\PC{0,60}") {
        let verifier = verifier(vec![hs_issuer()]);
        prop_assert!(verifier.verify(&forge(&header, &payload, SECRET), NOW).is_err());
    }

    #[test]
    fn two_texts_that_differ_never_share_what_is_remembered(
        token in "[A-Za-z0-9._-]{1,80}", at in 0_usize..80, with in "[A-Za-z0-9._-]", shorter: bool,
    ) {
        let verifier = verifier(vec![hs_issuer()]);
        let genuine = hs256().sign_claims(&good_claims()).unwrap();
        let at = at % token.len();
        let other = if shorter {
            format!("{}{}", &token[..at], &token[at + 1..])
        } else {
            format!("{}{with}{}", &token[..at], &token[at + 1..])
        };
        prop_assume!(other != token);
        let cache = verifier.cache.as_ref().unwrap();
        let remember = |text: &str| {
            let verified = Arc::new(verifier.verify_anew(&genuine).unwrap());
            cache.insert(text.into(), Arc::clone(&verified));
            verified.identity.clone()
        };
        let (first, second) = (remember(&token), remember(&other));
        prop_assert_eq!(verifier.cached(), 2);
        prop_assert!(Arc::ptr_eq(&verifier.verify(&token, NOW).unwrap(), &first));
        prop_assert!(Arc::ptr_eq(&verifier.verify(&other, NOW).unwrap(), &second));
        verifier.forget(&token);
        prop_assert!(verifier.verify(&token, NOW).is_err(), "no token, and not remembered any more");
        prop_assert!(Arc::ptr_eq(&verifier.verify(&other, NOW).unwrap(), &second));
    }

    #[test]
    fn a_change_of_a_remembered_token_finds_nothing(at in 0_usize..400, with in "[ -~]") {
        let verifier = verifier(vec![hs_issuer()]);
        let token = hs256().sign_claims(&good_claims()).unwrap();
        let known = verifier.verify(&token, NOW).unwrap();
        let at = at % token.len();
        let changed = format!("{}{}{}", &token[..at], with, &token[at + 1..]);
        prop_assert!(changed == token || verifier.verify(&changed, NOW).is_err());
        prop_assert_eq!(verifier.cached(), 1);
        prop_assert!(Arc::ptr_eq(&verifier.verify(&token, NOW).unwrap(), &known));
    }

    #[test]
    fn any_change_of_a_token_voids_it(at in 0_usize..400, with in "[ -~]") {
        let verifier = verifier(vec![hs_issuer()]);
        let token = hs256().sign_claims(&good_claims()).unwrap();
        let at = at % token.len();
        let changed = format!("{}{}{}", &token[..at], with, &token[at + 1..]);
        prop_assert!(changed == token || verifier.verify(&changed, NOW).is_err());
    }
}

#[test]
fn what_threads_share_may_be_shared() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Verifier>();
    shared::<Identity>();
    shared::<super::super::revocation::Known>();
    shared::<super::super::revocation::Pending>();
}

#[test]
fn keys_exchanged_under_load_never_let_an_old_token_stay() {
    let (verifier, ring) = kept(KeySet::new(vec![Key::secret(SECRET).unwrap()]).unwrap());
    let token = hs256().sign_claims(&good_claims()).unwrap();
    let other = Key::secret(b"another-secret-of-sufficient-length-98765").unwrap();
    let other = KeySet::new(vec![other]).unwrap();
    let own = KeySet::new(vec![Key::secret(SECRET).unwrap()]).unwrap();
    for _ in 0..50 {
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..20).for_each(|_| drop(verifier.verify(&token, NOW))));
            }
            scope.spawn(|| ring.replace(other.clone()));
        });
        assert_eq!(verifier.verify(&token, NOW).err(), Some(Refused::BadSignature));
        ring.replace(own.clone());
        assert!(verifier.verify(&token, NOW).is_ok());
    }
}

mod hostile;
