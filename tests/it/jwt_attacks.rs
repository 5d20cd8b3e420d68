//! Tokens that no honest issuer writes: each gets 401 in bounded time and memory, and the upstream sees nothing.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use crate::setup::{self, PATIENT, pair, revoke, revoke_everywhere};
use crate::support::client::{Response, raw, raw_status};
use crate::support::gateway::Gateway;
use crate::support::origin::Origin;
use crate::support::redis::Redis;
use crate::support::strict_origin::StrictOrigin;
use crate::support::token::{SECRET, Token, hmac_sha256, signed, unix_seconds};

const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/keys");
const BOUND: Duration = Duration::from_secs(5);

struct Stage {
    origin: StrictOrigin,
    gateway: Gateway,
}

/// HS256 tokens without `iss`, RS256 ones of `rsa` and so on.
fn issuers() -> String {
    let public = [
        ("rsa", "RS256", "rsa-2048"),
        ("pss", "PS256", "rsa-2048-other"),
        ("ec", "ES256", "ec-p256"),
        ("ed", "EdDSA", "ed25519"),
    ];
    let public = public.map(|(iss, algorithm, key)| {
        format!(
            "[issuers.{iss}]\nalgorithms = [\"{algorithm}\"]\nissuer = \"{iss}\"\npublic_key_file = \"{KEYS}/{key}-public.pem\"\n"
        )
    });
    format!(
        "[issuers.own]\nalgorithms = [\"HS256\"]\nsecret = \"${{JWT_SECRET}}\"\n\
         [issuers.shop]\nalgorithms = [\"HS256\"]\nissuer = \"https://shop/\"\naudience = [\"cart\", \"till\"]\n\
         secret = \"${{JWT_SECRET}}\"\n{}",
        public.concat()
    )
}

/// A token under a private key of the fixtures.
fn by_key(key: &str, algorithm: Algorithm, claims: &Value) -> String {
    let pem = std::fs::read(format!("{KEYS}/{key}-private.pem")).unwrap();
    let key = match algorithm {
        Algorithm::ES256 => EncodingKey::from_ec_pem(&pem),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(&pem),
        _ => EncodingKey::from_rsa_pem(&pem),
    };
    let header = json!({"alg": format!("{algorithm:?}"), "typ": "JWT"}).to_string();
    let input = format!("{}.{}", encode(header), encode(claims.to_string()));
    let signature = jsonwebtoken::crypto::sign(input.as_bytes(), &key.unwrap(), algorithm).unwrap();
    format!("{input}.{signature}")
}

fn start() -> Stage {
    let origin = StrictOrigin::start();
    let config = format!(
        r#"
        [server]
        listen = "{{listen}}"
        max_header_size = "512KiB"
        [identity]
        max_token_size = "64KiB"
        {}
        [upstreams.app]
        members = "{}"
        [[routes]]
        name = "all"
        path = "/**"
        auth = "required"
        upstream = "app"
        "#,
        issuers(),
        origin.addr()
    );
    Stage { gateway: Gateway::builder().config(&config).start(), origin }
}

impl Stage {
    fn status(&self, token: &str) -> Option<u16> {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        let started = Instant::now();
        let answer = raw(self.gateway.addr(), request);
        assert!(started.elapsed() < BOUND, "{:?}", started.elapsed());
        let status = raw_status(&answer);
        if status == Some(401) {
            let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
            assert!(text.contains("www-authenticate: bearer"), "{text}");
            assert!(
                text.contains("\"detail\":\"invalid token\"")
                    || text.contains("\"detail\":\"token expired\""),
                "{text}"
            );
        }
        status
    }

    fn refuse_all(&self, tokens: &[(&str, String)]) {
        let mut through = Vec::new();
        for (what, token) in tokens {
            let status = self.status(token);
            if status != Some(401) {
                through.push(format!("{what}: {status:?}"));
            }
        }
        assert!(through.is_empty(), "not refused: {through:#?}");
        assert_eq!(self.origin.hits(), 0, "{:?}", self.origin.seen());
        assert_eq!(self.status(&Token::of("ada").sign()), Some(200), "and honest tokens still pass");
    }
}

fn parts(token: &str) -> [String; 3] {
    let mut parts = token.split('.').map(str::to_owned);
    [parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap()]
}

fn claims() -> String {
    json!({"sub": "ada", "exp": unix_seconds() + 600}).to_string()
}

fn encode(text: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

fn hs(header: &str, claims: &str) -> String {
    signed(header, claims, SECRET.as_bytes())
}

#[test]
fn no_algorithm_but_the_declared_one_is_believed() {
    let stage = start();
    let mut tokens = Vec::new();
    for alg in [
        "none", "None", "NONE", "nOnE", "", " none", "null", "HS1", "hs256", "HS256 ", "HS384", "HS512",
        "RS256", "ES256", "EdDSA", "ES256K", "A256KW", "dir",
    ] {
        let token = Token::of("root").header("alg", alg);
        tokens.push(("unsigned", token.unsigned()));
        tokens.push(("signed all the same", token.sign()));
        tokens.push(("without a third part", token.unsigned().trim_end_matches('.').to_owned()));
    }
    let token = Token::of("root").without_header("alg");
    tokens.push(("no alg, unsigned", token.unsigned()));
    tokens.push(("no alg, signed", token.sign()));
    for alg in [json!(null), json!(1), json!(true), json!(["HS256"]), json!({"alg": "HS256"})] {
        tokens.push(("an alg that is no text", Token::of("root").header("alg", alg).sign()));
    }
    tokens.push(("two algs", hs(r#"{"alg":"HS256","alg":"none"}"#, &claims())));
    tokens.push(("two algs, the good one last", hs(r#"{"alg":"none","alg":"HS256"}"#, &claims())));
    tokens.push(("two algs by an escape", hs("{\"alg\":\"HS256\",\"\\u0061lg\":\"none\"}", &claims())));
    stage.refuse_all(&tokens);
}

#[test]
fn a_public_key_is_no_secret() {
    let stage = start();
    let mut tokens = Vec::new();
    for (iss, file) in
        [("rsa", "rsa-2048-public.pem"), ("ec", "ec-p256-public.pem"), ("ed", "ed25519-public.pem")]
    {
        let pem = std::fs::read_to_string(format!("{KEYS}/{file}")).unwrap();
        let inner: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = STANDARD.decode(&inner).unwrap();
        let mut secrets: Vec<Vec<u8>> = vec![
            pem.clone().into_bytes(),
            pem.trim_end().as_bytes().to_vec(),
            pem.replace('\n', "\r\n").into_bytes(),
            inner.clone().into_bytes(),
            der.clone(),
            encode(&der).into_bytes(),
            Vec::new(),
        ];
        if iss == "ed" {
            secrets.push(der[der.len() - 32..].to_vec());
        }
        if iss == "rsa" {
            // A SubjectPublicKeyInfo of RSA-2048 ends in the modulus and the exponent 65537.
            let modulus = &der[der.len() - 5 - 256..der.len() - 5];
            let n = encode(modulus);
            secrets.extend([
                modulus.to_vec(),
                n.clone().into_bytes(),
                format!(r#"{{"e":"AQAB","kty":"RSA","n":"{n}"}}"#).into_bytes(),
                format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB"}}"#).into_bytes(),
                format!(r#"{{"keys":[{{"kty":"RSA","n":"{n}","e":"AQAB"}}]}}"#).into_bytes(),
            ]);
        }
        for secret in secrets {
            for alg in ["HS256", "HS384", "HS512"] {
                let token = Token::of("root").claim("iss", iss).header("alg", alg).sign_with(&secret);
                tokens.push(("HMAC with the public key", token));
                tokens.push((
                    "HMAC with the public key, no iss",
                    Token::of("root").header("alg", alg).sign_with(&secret),
                ));
            }
        }
    }
    tokens.push(("an empty secret", Token::of("root").sign_with(b"")));
    stage.refuse_all(&tokens);
}

#[test]
fn a_token_cannot_bring_its_own_key() {
    let stage = start();
    let secret = b"mine";
    let oct = json!({"kty": "oct", "k": encode(secret)});
    let tokens: Vec<(&str, String)> = [
        ("jwk", oct.clone()),
        ("jku", json!("http://127.0.0.1:1/jwks.json")),
        ("x5u", json!("http://127.0.0.1:1/cert.pem")),
        ("x5c", json!(["MIIB"])),
        ("jwks", json!({"keys": [oct]})),
        ("kid", json!("/dev/null")),
        ("kid", json!("../../../../../../dev/null")),
        ("kid", json!("http://127.0.0.1:1/")),
        ("kid", json!("x' UNION SELECT 'mine' -- ")),
        ("kid", json!("$(id)")),
        ("kid", json!("\0")),
        ("kid", json!(null)),
        ("kid", json!(0)),
    ]
    .into_iter()
    .map(|(name, value)| (name, Token::of("root").header(name, value).sign_with(secret)))
    .collect();
    stage.refuse_all(&tokens);
    let empty: Vec<(&str, String)> = ["/dev/null", "", "x"]
        .into_iter()
        .map(|kid| ("kid with an empty key", Token::of("root").header("kid", kid).sign_with(b"")))
        .collect();
    let stage = start();
    stage.refuse_all(&empty);
}

#[test]
fn critical_and_unusual_headers_are_refused() {
    let stage = start();
    let with = |header: &str| hs(header, &claims());
    stage.refuse_all(&[
        ("unknown crit", with(r#"{"alg":"HS256","crit":["x"],"x":1}"#)),
        ("empty crit", with(r#"{"alg":"HS256","crit":[]}"#)),
        ("crit of null", with(r#"{"alg":"HS256","crit":null}"#)),
        ("crit that is no list", with(r#"{"alg":"HS256","crit":"exp"}"#)),
        ("crit of a known name", with(r#"{"alg":"HS256","crit":["alg"]}"#)),
        ("b64 of false", with(r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#)),
        ("b64 of false, not critical", with(r#"{"alg":"HS256","b64":false}"#)),
        ("two kids", with(r#"{"alg":"HS256","kid":"a","kid":"b"}"#)),
        ("zip", with(r#"{"alg":"HS256","zip":"DEF","enc":"A128GCM"}"#)),
        ("a header that is a list", with(r#"["HS256"]"#)),
        ("a header that is text", with(r#""HS256""#)),
        ("an empty header", with("{}")),
        ("no header", with("")),
        ("two headers", with(r#"{"alg":"HS256"}{"alg":"HS256"}"#)),
        ("a header and more", with(r#"{"alg":"HS256"} x"#)),
        ("a header cut off", with(r#"{"alg":"HS256""#)),
        ("a header not in UTF-8", signed("{\"alg\":\"HS256\",\"x\":\"\u{fffd}\"}", "{", SECRET.as_bytes())),
        ("a trailing comma", with(r#"{"alg":"HS256",}"#)),
        ("a comment", with(r#"{"alg":"HS256"/**/}"#)),
    ]);
}

#[test]
fn every_byte_of_the_form_counts() {
    let stage = start();
    let good = Token::of("ada").sign();
    let [header, body, signature] = parts(&good);
    let last = signature.chars().last().unwrap();
    // 32 bytes leave two unused bits in the last letter: another letter may decode to the same bytes.
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let at = alphabet.find(last).unwrap();
    let sibling = alphabet.chars().nth(at ^ 1).unwrap();
    let stem = &signature[..signature.len() - 1];
    let raw_signature = hmac_sha256(SECRET.as_bytes(), format!("{header}.{body}").as_bytes());
    let mut tokens = vec![
        ("an empty signature", format!("{header}.{body}.")),
        ("no signature", format!("{header}.{body}")),
        ("a signature cut off", format!("{header}.{body}.{}", &signature[..20])),
        ("a signature prolonged", format!("{header}.{body}.{signature}AA")),
        ("a signature in non-canonical base64", format!("{header}.{body}.{stem}{sibling}")),
        ("a padded signature", format!("{header}.{body}.{signature}=")),
        ("a padded header", format!("{header}=.{body}.{signature}")),
        ("standard base64", format!("{header}.{body}.{}", STANDARD.encode([0xfb; 32]))),
        ("url-safe with padding", format!("{header}.{body}.{}", URL_SAFE.encode(raw_signature))),
        (
            "the signature in hexadecimal",
            format!("{header}.{body}.{}", raw_signature.map(|byte| format!("{byte:02x}")).concat()),
        ),
        ("a dot before", format!(".{good}")),
        ("a dot after", format!("{good}.")),
        ("two dots", format!("{header}..{body}.{signature}")),
        ("four parts", format!("{good}.{signature}")),
        ("five parts", format!("{header}.{body}.{signature}.x.y")),
        ("one part", header.clone()),
        ("dots alone", "..".to_owned()),
        ("four dots alone", "....".to_owned()),
        ("parts in another order", format!("{body}.{header}.{signature}")),
        ("the header of another", format!("{}.{body}.{signature}", encode(r#"{"alg":"HS256","typ":"jwt"}"#))),
        ("the body of another", format!("{header}.{}.{signature}", encode(claims()))),
        ("plus for minus", good.replace('-', "+").replace('_', "/") + "+"),
        ("percent escapes", good.replace('.', "%2e")),
        ("a comma", format!("{good},")),
        ("a semicolon", format!("{good};x")),
        ("quotes", format!("\"{good}\"")),
    ];
    for position in [
        0,
        header.len() / 2,
        header.len() + 3,
        header.len() + 1 + body.len() / 2,
        good.len() - 10,
        good.len() - 2,
    ] {
        let mut bytes = good.clone().into_bytes();
        bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
        tokens.push(("one letter changed", String::from_utf8(bytes).unwrap()));
    }
    stage.refuse_all(&tokens);
}

#[test]
fn claims_must_be_one_plain_object() {
    let stage = start();
    let with = |claims: &str| hs(r#"{"alg":"HS256"}"#, claims);
    let exp = unix_seconds() + 600;
    let nested = |depth: usize| {
        format!(r#"{{"sub":"ada","exp":{exp},"x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth))
    };
    let objects =
        format!(r#"{{"sub":"ada","exp":{exp},"x":{}1{}}}"#, r#"{"a":"#.repeat(5_000), "}".repeat(5_000));
    stage.refuse_all(&[
        ("two subjects", with(&format!(r#"{{"sub":"ada","sub":"root","exp":{exp}}}"#))),
        (
            "two subjects by an escape",
            with(&format!("{{\"sub\":\"ada\",\"s\\u0075b\":\"root\",\"exp\":{exp}}}")),
        ),
        ("two ends", with(&format!(r#"{{"sub":"ada","exp":1,"exp":{exp}}}"#))),
        ("two of something else", with(&format!(r#"{{"sub":"ada","exp":{exp},"x":1,"x":2}}"#))),
        ("twins deep inside", with(&format!(r#"{{"sub":"ada","exp":{exp},"x":{{"a":1,"a":2}}}}"#))),
        ("a list", with("[]")),
        ("text", with(r#""ada""#)),
        ("a number", with("1")),
        ("null", with("null")),
        ("nothing", with("")),
        ("an empty object", with("{}")),
        ("two objects", with(&format!(r#"{{"sub":"ada","exp":{exp}}}{{}}"#))),
        ("an object cut off", with(&format!(r#"{{"sub":"ada","exp":{exp}"#))),
        ("a byte-order mark", with(&format!("\u{feff}{{\"sub\":\"ada\",\"exp\":{exp}}}"))),
        ("a lone surrogate", with(&format!(r#"{{"sub":"\ud800","exp":{exp}}}"#))),
        ("single quotes", with(&format!("{{'sub':'ada','exp':{exp}}}"))),
        ("NaN", with(r#"{"sub":"ada","exp":NaN}"#)),
        ("lists to a depth of 10,000", with(&nested(10_000))),
        ("lists to a depth of 200", with(&nested(200))),
        ("objects to a depth of 5,000", with(&objects)),
        ("no subject", with(&format!(r#"{{"exp":{exp}}}"#))),
        ("an empty subject", with(&format!(r#"{{"sub":"","exp":{exp}}}"#))),
        ("a subject of null", with(&format!(r#"{{"sub":null,"exp":{exp}}}"#))),
        ("a subject of a list", with(&format!(r#"{{"sub":["ada"],"exp":{exp}}}"#))),
        ("a subject of an object", with(&format!(r#"{{"sub":{{"a":1}},"exp":{exp}}}"#))),
        ("a subject of 10 kB", with(&format!(r#"{{"sub":"{}","exp":{exp}}}"#, "a".repeat(10_000)))),
        ("a subject with a fraction", with(&format!(r#"{{"sub":1.5,"exp":{exp}}}"#))),
    ]);
}

#[test]
fn times_that_are_no_times_are_refused() {
    let stage = start();
    let now = unix_seconds();
    let mut tokens: Vec<(&str, String)> = Vec::new();
    for exp in [
        "\"9999999999\"",
        "null",
        "true",
        "[9999999999]",
        "{}",
        "-1",
        "0",
        "1e999",
        "-1e999",
        "\"never\"",
        "1",
        "99999999999999999999999999999999999999",
        "1E400",
        "\"\"",
        "-9223372036854775808",
    ] {
        tokens.push(("an odd exp", hs(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"ada","exp":{exp}}}"#))));
    }
    for claim in ["nbf", "iat"] {
        for value in ["\"0\"", "null", "[0]", "1e999", "99999999999", "true", "{}"] {
            tokens.push((
                "an odd nbf or iat",
                hs(
                    r#"{"alg":"HS256"}"#,
                    &format!(r#"{{"sub":"ada","exp":{},"{claim}":{value}}}"#, now + 600),
                ),
            ));
        }
    }
    tokens.push(("no exp", Token::of("ada").without("exp").sign()));
    tokens.push(("expired for a minute", Token::of("ada").expires_in(-60).sign()));
    tokens.push(("expired for years", Token::of("ada").claim("exp", 1_000_000_000).sign()));
    tokens.push(("not before in a minute", Token::of("ada").claim("nbf", now + 90).sign()));
    tokens.push(("issued in a minute", Token::of("ada").claim("iat", now + 90).sign()));
    // `null` for a claim that need not be there may be read as its absence; what is there is never read generously.
    tokens.retain(|(what, token)| {
        let body = String::from_utf8(URL_SAFE_NO_PAD.decode(&parts(token)[1]).unwrap()).unwrap();
        !(*what == "an odd nbf or iat" && body.contains("null"))
    });
    stage.refuse_all(&tokens);
}

#[test]
fn signatures_of_nothing_are_refused() {
    let stage = start();
    let exp = unix_seconds() + 600;
    let token = |alg: &str, iss: &str, signature: &[u8]| {
        format!(
            "{}.{}.{}",
            encode(format!(r#"{{"alg":"{alg}"}}"#)),
            encode(format!(r#"{{"sub":"root","iss":"{iss}","exp":{exp}}}"#)),
            encode(signature)
        )
    };
    // The order of P-256 (SEC 2): r and s are below it and above zero.
    let order: Vec<u8> = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    let one = [vec![0; 31], vec![1]].concat();
    stage.refuse_all(&[
        ("r and s of zero (CVE-2022-21449)", token("ES256", "ec", &[0; 64])),
        ("r of zero", token("ES256", "ec", &[vec![0; 32], one.clone()].concat())),
        ("s of zero", token("ES256", "ec", &[one.clone(), vec![0; 32]].concat())),
        ("r and s of the order", token("ES256", "ec", &[order.clone(), order.clone()].concat())),
        ("r of the order", token("ES256", "ec", &[order, one.clone()].concat())),
        ("ones", token("ES256", "ec", &[0xff; 64])),
        ("one and one", token("ES256", "ec", &[one.clone(), one].concat())),
        ("DER", token("ES256", "ec", &[0x30, 6, 2, 1, 0, 2, 1, 0])),
        ("63 bytes", token("ES256", "ec", &[1; 63])),
        ("nothing for ES256", token("ES256", "ec", b"")),
        ("nothing for RS256", token("RS256", "rsa", b"")),
        ("zero for RS256", token("RS256", "rsa", &[0; 256])),
        ("one for RS256", token("RS256", "rsa", &[vec![0; 255], vec![1]].concat())),
        ("ones for RS256", token("RS256", "rsa", &[0xff; 256])),
        ("too short for RS256", token("RS256", "rsa", &[1; 128])),
        ("too long for RS256", token("RS256", "rsa", &[1; 512])),
        ("zero for EdDSA", token("EdDSA", "ed", &[0; 64])),
        ("identity point for EdDSA", token("EdDSA", "ed", &[vec![1], vec![0; 63]].concat())),
        ("nothing for EdDSA", token("EdDSA", "ed", b"")),
        ("zero for HS256", token("HS256", "", &[0; 32])),
    ]);
}

#[test]
fn size_buys_nothing() {
    let stage = start();
    let before = stage.gateway.process().resident_bytes();
    let padding = |length: usize| "a".repeat(length);
    stage.refuse_all(&[
        ("100 kB of token", Token::of("root").claim("x", padding(75_000)).sign()),
        ("100 kB of header", Token::of("root").header("x", padding(75_000)).sign()),
        ("a kid of 40 kB", Token::of("root").header("kid", padding(40_000)).sign_with(b"mine")),
        ("100 kB of letters", padding(100_000)),
        ("100 kB of dots", ".".repeat(100_000)),
        (
            "100 kB of signature",
            format!("{}.{}.{}", encode(r#"{"alg":"HS256"}"#), encode(claims()), padding(100_000)),
        ),
        ("4,000 claims", {
            let many: Vec<String> = (0..4_000).map(|number| format!(r#","{number}":0"#)).collect();
            let many = many.concat();
            signed(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"root","exp":1{many}}}"#), b"mine")
        }),
    ]);
    let hits = stage.origin.hits();
    for token in [Token::of("root").header("kid", padding(1_000_000)).sign(), padding(1_000_000)] {
        // Too large a head even for a patient configuration.
        assert!(matches!(stage.status(&token), None | Some(431 | 400)), "a token of a megabyte");
    }
    assert_eq!(stage.origin.hits(), hits);
    // Nobody fills the memory of verified tokens with ones that are not.
    for number in 0..100 {
        let token = Token::of("root").claim("x", format!("{number}{}", padding(40_000))).sign_with(b"mine");
        assert_eq!(stage.status(&token), Some(401));
    }
    let grown = stage.gateway.process().resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "grown by {} KiB", grown >> 10);
}

#[test]
fn what_was_verified_once_is_judged_anew_by_the_clock() {
    let stage = start();
    // The leeway is 30 s, so this token has about eight seconds left.
    let token = Token::of("ada").expires_in(-22).sign();
    assert_eq!(stage.status(&token), Some(200));
    let ended = || stage.status(&token) == Some(401);
    assert_eventually!(ended(), "an end that comes between two requests", Duration::from_secs(20));
}

#[test]
fn keys_that_anybody_can_forge_for_are_refused_at_the_start() {
    let origin = StrictOrigin::start();
    let start = |issuer: &str| {
        let text = format!(
            "[issuers.main]\n{issuer}\n[upstreams.app]\nmembers = \"{}\"\n\
             [[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n",
            origin.addr()
        );
        Gateway::builder().config(&text).try_start().map(drop)
    };
    let key = |algorithm: &str, file: &str| {
        format!("algorithms = [\"{algorithm}\"]\npublic_key_file = \"{KEYS}/{file}.pem\"")
    };
    let secret =
        |algorithms: &str, secret: &str| format!("algorithms = [{algorithms}]\nsecret = \"{secret}\"");
    let mut accepted = Vec::new();
    for (what, issuer) in [
        ("RSA of 512 bits", key("RS256", "rsa-512-public")),
        ("RSA of 1024 bits", key("RS256", "rsa-1024-public")),
        ("RSA of exponent 3", key("RS256", "rsa-2048-e3-public")),
        ("RSA of exponent 3 for PSS", key("PS256", "rsa-2048-e3-public")),
        ("RSA of the ROCA generator", key("RS256", "rsa-roca-public")),
        ("a key of PSS alone for PKCS #1", key("RS256", "rsa-pss-public")),
        ("a curve not known", key("ES256", "ec-k256-public")),
        ("a curve not supported", key("ES256", "ec-p521-public")),
        ("another curve", key("ES256", "ec-p384-public")),
        ("Ed448", key("EdDSA", "ed448-public")),
        ("a private key", key("RS256", "rsa-2048-private")),
        ("an RSA key for HMAC", key("HS256", "rsa-2048-public")),
        ("a secret of 31 bytes", secret("\"HS256\"", "0123456789abcdefghijklmnopqrstu")),
        ("a secret of 63 bytes for HS512", secret("\"HS512\"", &"0123456789abcdefghijk".repeat(3))),
        ("a secret of one letter", secret("\"HS256\"", &"a".repeat(64))),
        (
            "a published secret",
            secret("\"HS256\"", "your-super-secret-jwt-token-with-at-least-32-characters-long"),
        ),
        ("a PEM as a secret", secret("\"HS256\"", "-----BEGIN PUBLIC KEY-----0123456789abcdef")),
        ("an empty secret", secret("\"HS256\"", "")),
        ("none", secret("\"none\"", "0123456789abcdefghijklmnopqrstuv")),
        ("both kinds", secret("\"HS256\", \"RS256\"", "0123456789abcdefghijklmnopqrstuv")),
    ] {
        if start(&issuer).is_ok() {
            accepted.push(what);
        }
    }
    assert!(accepted.is_empty(), "{accepted:#?}");
    assert!(start(&secret("\"HS512\"", &"0123456789abcdef-".repeat(4))).is_ok());
}

#[test]
fn an_issuer_vouches_for_its_own_tokens_only() {
    let stage = start();
    let claims = |iss: &str| json!({"sub": "ada", "iss": iss, "exp": unix_seconds() + 600});
    let shop = || Token::of("ada").claim("iss", "https://shop/");
    for good in [json!("cart"), json!("till"), json!(["cart"]), json!(["other", "till"])] {
        assert_eq!(stage.status(&shop().claim("aud", good.clone()).sign()), Some(200), "{good}");
    }
    for (iss, key, algorithm) in [
        ("rsa", "rsa-2048", Algorithm::RS256),
        ("pss", "rsa-2048-other", Algorithm::PS256),
        ("ec", "ec-p256", Algorithm::ES256),
        ("ed", "ed25519", Algorithm::EdDSA),
    ] {
        assert_eq!(stage.status(&by_key(key, algorithm, &claims(iss))), Some(200), "{iss}");
    }
    let before = stage.origin.hits();
    let mut tokens = vec![
        ("no aud", shop().sign()),
        ("another's key", by_key("rsa-2048-other", Algorithm::RS256, &claims("rsa"))),
        ("another's key and name", by_key("rsa-2048", Algorithm::RS256, &claims("pss"))),
        ("RS512 of the key of RS256", by_key("rsa-2048", Algorithm::RS512, &claims("rsa"))),
        ("PS256 of the key of RS256", by_key("rsa-2048", Algorithm::PS256, &claims("rsa"))),
        ("RS256 of the key of PS256", by_key("rsa-2048-other", Algorithm::RS256, &claims("pss"))),
        ("a secret for an issuer of keys", Token::of("ada").claim("iss", "rsa").sign()),
        ("a key for an issuer of secrets", by_key("rsa-2048", Algorithm::RS256, &claims("https://shop/"))),
        (
            "a key without iss",
            by_key("rsa-2048", Algorithm::RS256, &json!({"sub": "ada", "exp": unix_seconds() + 600})),
        ),
    ];
    for aud in [
        json!("other"),
        json!(""),
        json!("CART"),
        json!("cart "),
        json!(["other"]),
        json!([]),
        json!([["cart"]]),
        json!({"cart": true}),
        json!(["cart", 1]),
        json!(1),
        json!(true),
        json!(null),
        json!("cart till"),
        json!("*"),
    ] {
        tokens.push(("a wrong aud", shop().claim("aud", aud).sign()));
    }
    for iss in [json!(["https://shop/"]), json!({"https://shop/": 1}), json!(1), json!(null)] {
        tokens
            .push(("an iss that is no text", Token::of("ada").claim("aud", "cart").claim("iss", iss).sign()));
    }
    let mut through = Vec::new();
    for (what, token) in &tokens {
        if stage.status(token) != Some(401) {
            through.push(what);
        }
    }
    assert!(through.is_empty(), "not refused: {through:#?}");
    assert_eq!(stage.origin.hits(), before);
}

#[test]
fn a_credential_that_can_be_read_in_two_ways_is_none() {
    let stage = start();
    let token = Token::of("ada").sign();
    let other = Token::of("eve").sign();
    let ask = |lines: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}Connection: close\r\n\r\n");
        raw_status(&raw(stage.gateway.addr(), request))
    };
    for (what, lines) in [
        ("as usual", format!("Authorization: Bearer {token}\r\n")),
        ("in small letters", format!("authorization: bearer {token}\r\n")),
        ("in capitals", format!("AUTHORIZATION: BEARER {token}\r\n")),
        ("after several blanks", format!("Authorization:   Bearer   {token}  \r\n")),
    ] {
        assert_eq!(ask(&lines), Some(200), "{what}");
    }
    let before = stage.origin.hits();
    let mut through = Vec::new();
    for (what, lines) in [
        ("Bearer twice", format!("Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n")),
        ("two of them", format!("Authorization: Bearer {token}\r\nAuthorization: Bearer {other}\r\n")),
        ("an empty one before", format!("Authorization: \r\nAuthorization: Bearer {token}\r\n")),
        ("Basic beside", format!("Authorization: Basic YTpi\r\nAuthorization: Bearer {token}\r\n")),
        ("two tokens", format!("Authorization: Bearer {token} {other}\r\n")),
        ("two tokens and a comma", format!("Authorization: Bearer {token},{other}\r\n")),
        ("a list", format!("Authorization: Bearer {token}, Bearer {other}\r\n")),
        ("Bearer in Bearer", format!("Authorization: Bearer Bearer {token}\r\n")),
        ("a tab", format!("Authorization: Bearer\t{token}\r\n")),
        ("a tab after it", format!("Authorization: Bearer {token}\tx\r\n")),
        ("no blank", format!("Authorization: Bearer{token}\r\n")),
        ("a colon", format!("Authorization: Bearer: {token}\r\n")),
        ("an equals sign", format!("Authorization: Bearer={token}\r\n")),
        ("quotes", format!("Authorization: Bearer \"{token}\"\r\n")),
        ("the token alone", format!("Authorization: {token}\r\n")),
        ("another scheme", format!("Authorization: Token {token}\r\n")),
        ("Basic", "Authorization: Basic YTpi\r\n".to_owned()),
        ("Basic with the token", format!("Authorization: Basic {token}\r\n")),
        ("nothing", "Authorization: \r\n".to_owned()),
        ("Bearer of nothing", "Authorization: Bearer\r\n".to_owned()),
        ("an underscore", format!("Author_ization: Bearer {token}\r\n")),
        ("a proxy's", format!("Proxy-Authorization: Bearer {token}\r\n")),
        ("a cookie nobody declared", format!("Cookie: token={token}; access_token={token}\r\n")),
        ("a header nobody declared", format!("X-Token: {token}\r\n")),
        ("a line break folded in", format!("Authorization: Bearer\r\n {token}\r\n")),
    ] {
        let status = ask(&lines);
        if !matches!(status, Some(401 | 400)) {
            through.push(format!("{what}: {status:?}"));
        }
    }
    assert!(through.is_empty(), "not refused: {through:#?}");
    assert_eq!(stage.origin.hits(), before);
}

#[test]
fn what_was_revoked_or_has_expired_is_not_remembered_as_verified() {
    let origin = Origin::start();
    let routes = "[[routes]]\nname = \"logout\"\npath = \"/logout\"\nauth = \"required\"\nlogout = \"gateway\"\n\
                  [[routes]]\nname = \"all\"\npath = \"/**\"\nauth = \"required\"\nupstream = \"app\"\n";
    let gateway = setup::gateway(&setup::config(&origin, "", routes), "");
    let remembered = || gateway.metric("tollgate_tokens_remembered", &[]);
    let ask = |token: &str| gateway.client().get("/x").bearer(token).send().code();
    let tokens: Vec<Token> = ["ada", "bob", "eve", "dan"].into_iter().map(Token::of).collect();
    // The leeway is 30 s, so this token has about ten seconds left.
    let brief = Token::of("eli").expires_in(-20).sign();
    assert!(tokens.iter().map(Token::sign).chain([brief.clone()]).all(|token| ask(&token) == 200));
    for token in
        ["x", "a.b.c", &Token::of("mallory").sign_with(b"mine"), &Token::of("gil").expires_in(-60).sign()]
    {
        assert_eq!(ask(token), 401);
    }
    assert_eq!(remembered(), Some(5.0));
    assert_eventually!(ask(&brief) == 401, "its end", Duration::from_secs(20));
    assert_eq!(remembered(), Some(4.0));
    assert_eq!(gateway.client().get("/logout").bearer(&tokens[0].sign()).send().code(), 200);
    assert_eventually!(remembered() == Some(3.0), "the token that was logged out is let go of");
    revoke(&gateway, &json!({"jti": tokens[1].jti()}));
    revoke(&gateway, &json!({"subject": "eve"}));
    assert_eventually!(remembered() == Some(1.0), "those that an operator revoked, too");
    for (token, code) in tokens.iter().zip([401, 401, 401, 200]) {
        assert_eq!(ask(&token.sign()), code);
    }
}

/// The same token in every spelling that somebody without the key can give it.
fn twins(algorithm: Algorithm, token: &str) -> Vec<(&'static str, String)> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let parts = parts(token);
    let with = |at: usize, part: &str| {
        let mut parts = parts.clone();
        part.clone_into(&mut parts[at]);
        parts.join(".")
    };
    let mut twins = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        if !part.len().is_multiple_of(4) {
            let (stem, last) = part.split_at(part.len() - 1);
            let sibling = ALPHABET.chars().nth(ALPHABET.find(last).unwrap() ^ 1).unwrap();
            twins.push(("other unused bits", with(at, &format!("{stem}{sibling}"))));
            twins.push(("padding", with(at, &format!("{part}{}", "=".repeat(4 - part.len() % 4)))));
        }
        twins.push(("padding too much", with(at, &format!("{part}="))));
        let (front, back) = part.split_at(3);
        twins.push(("a blank inside", with(at, &format!("{front} {back}"))));
        let standard = part.replace('-', "+").replace('_', "/");
        if standard != *part {
            twins.push(("the alphabet of base64", with(at, &standard)));
        }
    }
    let signature = URL_SAFE_NO_PAD.decode(&parts[2]).unwrap();
    // Least byte first, so that sums and differences go one way.
    let reversed = |hex: &str| -> Vec<u8> {
        let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
        bytes.rev().collect()
    };
    match algorithm {
        Algorithm::ES256 => {
            let order = reversed("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
            let mut twin = signature.clone();
            let mut borrow = 0;
            for (byte, order) in twin[32..].iter_mut().rev().zip(order) {
                let difference = i16::from(order) - i16::from(*byte) - borrow;
                borrow = i16::from(difference < 0);
                *byte = u8::try_from(difference.rem_euclid(256)).unwrap();
            }
            twins.push(("n - s", with(2, &encode(twin))));
        }
        Algorithm::EdDSA => {
            let order = reversed("1000000000000000000000000000000014def9dea2f79cd65812631a5cf5d3ed");
            let mut twin = signature.clone();
            let mut carry = 0;
            for (byte, order) in twin[32..].iter_mut().zip(order) {
                let sum = u16::from(*byte) + u16::from(order) + carry;
                *byte = u8::try_from(sum & 0xff).unwrap();
                carry = sum >> 8;
            }
            twins.push(("S + L", with(2, &encode(twin))));
        }
        _ => {}
    }
    let longer = [vec![0], signature.clone()].concat();
    twins.push(("a zero before the signature", with(2, &encode(longer))));
    twins.push(("a zero after the signature", with(2, &encode([signature, vec![0]].concat()))));
    twins
}

#[test]
fn a_token_that_was_logged_out_comes_back_in_no_spelling_and_on_no_instance() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let routes = format!(
        "[identity]\ntoken_from = [\"bearer\", \"cookie:token\", \"query:token\"]\n{}\n\
         [[routes]]\nname = \"logout\"\npath = \"/logout\"\nauth = \"required\"\nlogout = \"gateway\"\n\
         [[routes]]\nname = \"all\"\npath = \"/**\"\nauth = \"required\"\nupstream = \"app\"\n",
        issuers()
    );
    let instances = pair(&setup::config(&origin, PATIENT, &routes), &redis);
    let ask = |gateway: &Gateway, token: &str| gateway.client().get("/x").bearer(token).send();
    let is_revoked = |got: &Response| got.code() == 401 && got.detail() == "Token revoked";
    let kinds = [
        (Algorithm::HS256, "own", ""),
        (Algorithm::RS256, "rsa", "rsa-2048"),
        (Algorithm::PS256, "pss", "rsa-2048-other"),
        (Algorithm::ES256, "ec", "ec-p256"),
        (Algorithm::EdDSA, "ed", "ed25519"),
    ];
    for (algorithm, iss, key) in kinds {
        for jti in [None, Some(format!("id-of-{iss}"))] {
            let now = unix_seconds();
            let mut claims = json!({"sub": "ada", "iat": now, "exp": now + 600, "iss": iss});
            if let Some(jti) = &jti {
                claims["jti"] = jti.as_str().into();
            }
            let sign = || match algorithm {
                Algorithm::HS256 => hs(r#"{"alg":"HS256"}"#, &claims.to_string()),
                _ => by_key(key, algorithm, &claims),
            };
            let (token, again) = (sign(), sign());
            let [first, second] = &instances;
            for gateway in &instances {
                assert_eq!(
                    (ask(gateway, &token).code(), ask(gateway, &again).code()),
                    (200, 200),
                    "{algorithm:?}"
                );
            }
            let hits = origin.hits();
            assert_eq!(first.client().get("/logout").bearer(&token).send().code(), 200);
            for gateway in [first, second] {
                for (what, token) in [("itself", &token), ("signed again", &again)] {
                    assert!(is_revoked(&ask(gateway, token)), "{algorithm:?}, {jti:?}: {what}");
                }
                let cookie = gateway.client().get("/x").header("cookie", &format!("token={token}")).send();
                let query = gateway.client().get(&format!("/x?token={token}")).send();
                let spaced =
                    gateway.client().get("/x").header("authorization", &format!("bEARER   {token}")).send();
                assert!(
                    [&cookie, &query, &spaced].into_iter().all(is_revoked),
                    "{algorithm:?}, {jti:?}: another place"
                );
                for (what, twin) in twins(algorithm, &token) {
                    assert_ne!(twin, token, "{what}");
                    let got = ask(gateway, &twin);
                    // The one spelling that verifies is known by what it says.
                    let detail = if what == "n - s" { "Token revoked" } else { "Invalid token" };
                    assert_eq!(
                        (got.code(), got.detail().as_str()),
                        (401, detail),
                        "{algorithm:?}, {jti:?}: {what}"
                    );
                }
                let twice = gateway.client().get("/logout").bearer(&token).send();
                assert!(is_revoked(&twice), "{algorithm:?}, {jti:?}: a second logout");
            }
            assert_eq!(origin.hits(), hits, "{algorithm:?}");
        }
    }
    let [first, second] = &instances;
    let expired = Token::of("ada").expires_in(-60).sign();
    let got = first.client().get("/logout").bearer(&expired).send();
    assert_eq!((got.code(), got.detail().as_str()), (401, "Token expired"));
    let (early, late) = (Token::of("eve"), Token::of("eve").claim("iat", unix_seconds() + 10));
    assert_eq!(ask(second, &early.sign()).code(), 200);
    // With several issuers, an account is the issuer's.
    revoke_everywhere(first, &json!({"subject": "own~eve"}));
    for gateway in &instances {
        assert!(is_revoked(&ask(gateway, &early.sign())), "issued before the cut-off");
        assert_eq!(ask(gateway, &late.sign()).code(), 200, "issued after it");
    }
}
