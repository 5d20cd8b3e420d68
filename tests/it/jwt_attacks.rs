//! Tokens that no honest issuer writes: each gets 401 in bounded time and memory, and the upstream sees nothing.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::json;

use crate::support::client::{raw, raw_status};
use crate::support::gateway::Gateway;
use crate::support::strict_origin::StrictOrigin;
use crate::support::token::{SECRET, Token, hmac_sha256, signed, unix_seconds};

const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/keys");
const BOUND: Duration = Duration::from_secs(5);

struct Stage {
    origin: StrictOrigin,
    gateway: Gateway,
}

/// HS256 tokens without `iss`, RS256 ones of `rsa` and ES256 ones of `ec`.
fn start() -> Stage {
    let origin = StrictOrigin::start();
    let config = format!(
        r#"
        [server]
        listen = "{{listen}}"
        max_header_size = "512KiB"
        [identity]
        max_token_size = "64KiB"
        [issuers.own]
        algorithms = ["HS256"]
        secret = "${{JWT_SECRET}}"
        [issuers.rsa]
        algorithms = ["RS256"]
        issuer = "rsa"
        public_key_file = "{KEYS}/rsa-2048-public.pem"
        [issuers.ec]
        algorithms = ["ES256"]
        issuer = "ec"
        public_key_file = "{KEYS}/ec-p256-public.pem"
        [issuers.ed]
        algorithms = ["EdDSA"]
        issuer = "ed"
        public_key_file = "{KEYS}/ed25519-public.pem"
        [upstreams.app]
        members = "{}"
        [[routes]]
        name = "all"
        path = "/**"
        auth = "required"
        upstream = "app"
        "#,
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
    // The leeway is 30 s, so this token has about five seconds left.
    let token = Token::of("ada").expires_in(-25).sign();
    assert_eq!(stage.status(&token), Some(200));
    assert_eventually!(stage.status(&token) == Some(401), "an end that comes between two requests");
    let stage = start();
    let weak = ["rsa-512-public.pem", "rsa-1024-public.pem", "ed448-public.pem", "ec-k256-public.pem"];
    for key in weak {
        let text = format!(
            "[issuers.weak]\nalgorithms = [\"RS256\"]\npublic_key_file = \"{KEYS}/{key}\"\n[upstreams.app]\nmembers = \"{}\"\n\
             [[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n",
            stage.origin.addr()
        );
        let ended = Gateway::builder().config(&text).try_start();
        assert!(ended.is_err(), "{key} is accepted");
    }
}
