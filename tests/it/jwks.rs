//! Keys that issuers publish: where they come from, how they change, and what an issuer or its tokens can do wrong.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use crate::cli::tollgate;
use crate::identity::signed;
use crate::support::client::Response;
use crate::support::concurrently;
use crate::support::gateway::Gateway;
use crate::support::load::Load;
use crate::support::origin::{Origin, Reply};
use crate::support::tls_front::{TlsFront, certificate};
use crate::support::token::{Token, signed as forged, unix_seconds};

/// The key pairs of the fixtures by the algorithm they are used with here.
const PAIRS: [(&str, Algorithm, &str); 4] = [
    ("ed25519", Algorithm::EdDSA, "EdDSA"),
    ("ec-p256", Algorithm::ES256, "ES256"),
    ("rsa-2048", Algorithm::RS256, "RS256"),
    ("rsa-2048-other", Algorithm::RS256, "RS256"),
];

/// A pair by a number that may be any: neighbours differ.
fn pair(number: usize) -> (&'static str, Algorithm, &'static str) {
    PAIRS[number % PAIRS.len()]
}

/// The public half of a pair as its issuer would publish it.
pub fn jwk(number: usize, kid: &str) -> Value {
    let (name, _, _) = pair(number);
    let path = format!("{}/tests/fixtures/keys/{name}-public.pem", env!("CARGO_MANIFEST_DIR"));
    let pem = std::fs::read_to_string(path).unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(body).unwrap();
    let tail = |from_end: usize, length: usize| {
        let start = der.len() - from_end;
        URL_SAFE_NO_PAD.encode(&der[start..start + length])
    };
    match name {
        "ed25519" => json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": kid, "x": tail(32, 32)}),
        "ec-p256" => {
            json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": kid, "x": tail(64, 32), "y": tail(32, 32)})
        }
        // The modulus of 256 bytes is followed by the exponent 65537 as `02 03 01 00 01`.
        _ => {
            json!({"kty": "RSA", "alg": "RS256", "use": "sig", "kid": kid, "n": tail(261, 256), "e": "AQAB"})
        }
    }
}

/// A token of the pair with this number under this `kid`.
pub fn token(number: usize, kid: &str) -> String {
    token_of(number, &json!({"kid": kid}), &json!({}))
}

pub fn token_of(number: usize, header: &Value, claims: &Value) -> String {
    let (name, algorithm, alg) = pair(number);
    let now = unix_seconds();
    let mut all_headers = json!({"alg": alg, "typ": "JWT"});
    let mut all =
        json!({"sub": "ada", "iat": now, "exp": now + 3600, "jti": format!("{:032x}", fastrand::u128(..))});
    for (into, from) in [(&mut all_headers, header), (&mut all, claims)] {
        into.as_object_mut().unwrap().extend(from.as_object().unwrap().clone());
    }
    signed(name, algorithm, &all_headers, &all)
}

type Answer = Box<dyn Fn() -> Reply + Send + Sync>;

/// An issuer's endpoint: whatever [`Publisher::publish`] said last, at `/jwks`.
pub struct Publisher(pub Origin);

impl Publisher {
    pub fn start(keys: &[Value]) -> Self {
        let publisher = Self(Origin::start());
        publisher.publish(keys);
        publisher
    }

    pub fn publish(&self, keys: &[Value]) {
        let set = json!({ "keys": keys });
        self.reply(move || Reply::json(200, &set));
    }

    pub fn reply(&self, reply: impl Fn() -> Reply + Send + Sync + 'static) {
        self.0.route("/jwks", move |_| reply());
    }

    pub fn url(&self) -> String {
        format!("http://{}/jwks", self.0.addr())
    }

    pub fn reads(&self) -> usize {
        self.0.hits()
    }
}

/// Everything about the issuer `main` but its keys; `jwks` are lines of that table.
fn config(origin: &Origin, jwks: &str) -> String {
    format!(
        "[upstreams.app]\nmembers = \"{}\"\n[[routes]]\nname = \"me\"\npath = \"/me\"\nauth = \"required\"\n\
         upstream = \"app\"\n[issuers.main]\nalgorithms = [\"EdDSA\", \"ES256\", \"RS256\"]\n[issuers.main.jwks]\n{jwks}\n",
        origin.addr()
    )
}

fn start(origin: &Origin, jwks: &str) -> Gateway {
    Gateway::builder().config(&config(origin, jwks)).start()
}

pub fn start_at(origin: &Origin, publisher: &Publisher, more: &str) -> Gateway {
    start(origin, &format!("url = \"{}\"\nallow_http = true\n{more}", publisher.url()))
}

pub fn ask(gateway: &Gateway, token: &str) -> Response {
    gateway.client().get("/me").bearer(token).send()
}

pub fn assert_unknown(got: &Response, what: &str) {
    assert_eq!((got.code(), &*got.detail()), (401, "Invalid token"), "{what}: {got:?}");
}

pub fn assert_undecided(got: &Response, what: &str) {
    assert_eq!(got.code(), 503, "{what}: {got:?}");
    assert!(got.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()), "{what}: {got:?}");
    assert_eq!(got.header("www-authenticate"), None, "{what}: nobody is at fault");
}

pub fn fetches(gateway: &Gateway, result: &str) -> usize {
    whole(gateway, "tollgate_jwks_fetches_total", &[("issuer", "main"), ("result", result)])
}

fn whole<T: std::str::FromStr<Err: std::fmt::Debug>>(
    gateway: &Gateway,
    name: &str,
    labels: &[(&str, &str)],
) -> T {
    gateway.metric(name, labels).unwrap().to_string().parse().unwrap()
}

#[test]
fn published_keys_verify_tokens_by_their_kid() {
    let origin = Origin::start();
    let publisher = Publisher::start(&[jwk(0, "a"), jwk(1, "b"), jwk(2, "c")]);
    let gateway = start_at(&origin, &publisher, "cooldown = \"100ms\"\nrefresh = \"1h\"");
    gateway.wait_for_log("is http: whoever");
    let keys = || gateway.metric("tollgate_jwks_keys", &[("issuer", "main")]);
    assert_eventually!(keys() == Some(3.0), "they are read before anybody asks");
    for (number, kid) in [(0, "a"), (1, "b"), (2, "c")] {
        assert_eq!(ask(&gateway, &token(number, kid)).code(), 200, "{kid}");
        assert_eq!(origin.last().header("x-user-id"), Some("ada"));
        assert_eq!(ask(&gateway, &token_of(number, &json!({}), &json!({}))).code(), 200, "{kid} unnamed");
    }
    assert_unknown(&ask(&gateway, &token_of(3, &json!({}), &json!({}))), "signed by an unpublished key");
    assert_eq!(publisher.reads(), 1, "keys that are known are not asked for");
    assert_unknown(&ask(&gateway, &token(0, "b")), "signed by another key than named");
    assert_unknown(&ask(&gateway, &token(3, "c")), "signed by another key of the same kind");
    let request = publisher.0.last();
    assert_eq!((request.method.as_str(), &*request.path, request.query.as_deref()), ("GET", "/jwks", None));
    assert_eq!(request.header("authorization"), None);
    let read: i64 = whole(&gateway, "tollgate_jwks_last_success_timestamp_seconds", &[("issuer", "main")]);
    assert!((read - unix_seconds()).abs() < 60, "{read}");
}

#[test]
fn an_endpoint_that_is_down_at_the_start_costs_no_false_refusal() {
    let origin = Origin::start();
    let publisher = Publisher::start(&[jwk(0, "a")]);
    publisher.0.stop();
    let gateway = start_at(&origin, &publisher, "cooldown = \"200ms\"");
    let (named, unnamed) = (token(0, "a"), token_of(0, &json!({}), &json!({})));
    for token in [&named, &unnamed] {
        assert_undecided(&ask(&gateway, token), "nothing was ever read");
    }
    assert_eq!(ask(&gateway, &token_of(0, &json!({"alg": "HS256"}), &json!({}))).code(), 401);
    assert_eq!(origin.hits(), 0);
    publisher.0.resume();
    let mut seen = Vec::new();
    assert_eventually!(
        {
            seen.push(ask(&gateway, &named).code());
            seen.last() == Some(&200)
        },
        "keys are read once the endpoint answers"
    );
    assert!(seen.iter().all(|code| matches!(code, 200 | 503)), "{seen:?}");
    assert_eq!(ask(&gateway, &unnamed).code(), 200);
    gateway.wait_for_log("can be read again");
    assert_eq!(gateway.count_logs("cannot be reached"), 1, "one warning: {}", gateway.logs());
}

#[test]
fn keys_rotate_under_load_without_a_refusal() {
    const COOLDOWN: Duration = Duration::from_millis(300);
    let origin = Origin::start();
    let kid = |number: usize| format!("key-{number}");
    let publisher = Publisher::start(&[jwk(0, &kid(0)), jwk(1, &kid(1))]);
    let gateway = start_at(&origin, &publisher, "cooldown = \"300ms\"\ntimeout = \"10s\"\nrefresh = \"1h\"");
    let began = Instant::now();
    let newest = Arc::new(AtomicUsize::new(1));
    let tokens: Arc<Vec<Vec<String>>> =
        Arc::new((0..10).map(|number| (0..4).map(|_| token(number, &kid(number))).collect()).collect());
    let load = {
        let (newest, tokens) = (Arc::clone(&newest), Arc::clone(&tokens));
        Load::start(6, gateway.addr(), move |client, number| {
            // The newest key and the one before it, tokens seen before and tokens never seen.
            let key = newest.load(SeqCst) - number % 2;
            client.get("/me").bearer(&tokens[key][number / 2 % 4])
        })
    };
    for number in 2..10 {
        load.wait_for_more(24);
        // Published first, then used; what was used two rotations ago is taken away.
        publisher.publish(&[number - 2, number - 1, number].map(|number| jwk(number, &kid(number))));
        newest.store(number, SeqCst);
        assert_eventually!(
            ask(&gateway, &tokens[number][0]).code() == 200,
            "the new key is heard of without waiting for the refresh"
        );
    }
    load.wait_for_more(24);
    let outcomes = load.stop();
    let wrong: Vec<_> = outcomes.iter().filter(|outcome| outcome.code != Some(200)).collect();
    assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), outcomes.len());
    let most = began.elapsed().as_millis() / COOLDOWN.as_millis() + 2;
    assert!(publisher.reads() >= 9 && publisher.reads() as u128 <= most, "{} of {most}", publisher.reads());
    // Keys that are gone are gone, remembered tokens or not.
    assert_unknown(&ask(&gateway, &tokens[5][0]), "a key that is no longer published");
}

#[test]
fn thousands_of_unknown_kids_cause_one_read_per_cooldown() {
    const COOLDOWN: Duration = Duration::from_millis(200);
    let origin = Origin::start();
    let publisher = Publisher::start(&[jwk(0, "a")]);
    let gateway = start_at(&origin, &publisher, "cooldown = \"200ms\"\ntimeout = \"10s\"\nrefresh = \"1h\"");
    let good = token(0, "a");
    assert_eq!(ask(&gateway, &good).code(), 200);
    let began = Instant::now();
    let load = Load::start(2, gateway.addr(), move |client, _| client.get("/me").bearer(&good));
    let now = unix_seconds();
    let refused: usize = concurrently(64, |thread| {
        let client = gateway.client();
        (0..40)
            .map(|number| {
                let header = json!({"alg": "EdDSA", "kid": format!("{thread}/{number}")}).to_string();
                let claims = json!({"sub": "eve", "exp": now + 3600}).to_string();
                let got = client.get("/me").bearer(&forged(&header, &claims, b"nothing")).send();
                assert_unknown(&got, "a kid nobody has");
            })
            .count()
    })
    .into_iter()
    .sum();
    let reads = publisher.reads();
    let most = began.elapsed().as_millis() / COOLDOWN.as_millis() + 2;
    assert_eq!(refused, 2560);
    assert!(reads as u128 <= most, "{reads} reads, at most {most}");
    assert!(load.stop().iter().all(|outcome| outcome.code == Some(200)), "others do not feel it");
    assert_eventually!(fetches(&gateway, "unchanged") == reads - 1, "each read is counted");
}

#[test]
fn a_kid_that_was_not_found_is_not_looked_for_again_for_the_cooldown() {
    let origin = Origin::start();
    let publisher = Publisher::start(&[jwk(0, "a")]);
    let gateway = start_at(&origin, &publisher, "cooldown = \"1h\"\nrefresh = \"1h\"\ntimeout = \"9s\"");
    assert_eq!(ask(&gateway, &token(0, "a")).code(), 200);
    // Nothing may be read for an hour: whether the kid exists cannot be said, and nobody waits for that long.
    let stray = token(1, "b");
    assert_undecided(&ask(&gateway, &stray), "no read is near");
    assert_eq!(publisher.reads(), 1);

    let gateway = start_at(&origin, &publisher, "cooldown = \"5s\"\nrefresh = \"1h\"\ntimeout = \"5s\"");
    assert_unknown(&ask(&gateway, &stray), "looked for");
    let reads = publisher.reads();
    let began = Instant::now();
    for _ in 0..20 {
        assert_unknown(&ask(&gateway, &stray), "remembered as not found");
    }
    if began.elapsed() < Duration::from_secs(4) {
        assert_eq!(publisher.reads(), reads);
    }
}

#[test]
fn bad_answers_leave_the_keys_as_they_are() {
    let origin = Origin::start();
    let other = Publisher::start(&[jwk(1, "b")]);
    let publisher = Publisher::start(&[jwk(0, "a")]);
    let gateway = start_at(
        &origin,
        &publisher,
        "cooldown = \"100ms\"\ntimeout = \"2s\"\nrefresh = \"1h\"\nmax_size = \"64KiB\"",
    );
    let (old, new) = (token(0, "a"), token(1, "b"));
    assert_eventually!(ask(&gateway, &old).code() == 200, "its key is read");
    let set = json!({"keys": [jwk(0, "a"), jwk(1, "b")]});
    let padded = |bytes: usize| {
        let mut text = set.to_string();
        text.push_str(&" ".repeat(bytes));
        text
    };
    let elsewhere = other.url();
    let huge = vec![b' '; 50 << 20];
    let huge_chunked = huge.clone();
    let long = padded(64 << 10);
    let (good, gone) = (set.clone(), set.to_string());
    let answers: Vec<(&str, &str, Answer)> = vec![
        (
            "a redirect",
            "refused",
            Box::new(move || Reply::json(302, &json!({})).header("location", &elsewhere)),
        ),
        ("50 MB", "refused", Box::new(move || Reply::new(200, huge.clone()))),
        ("50 MB in chunks", "refused", Box::new(move || Reply::new(200, huge_chunked.clone()).chunked())),
        ("a set that is too long", "refused", Box::new(move || Reply::new(200, long.clone()).chunked())),
        ("a server error", "refused", Box::new(move || Reply::json(500, &good))),
        ("not found", "refused", Box::new(|| Reply::text(404, "no"))),
        ("nothing", "refused", Box::new(|| Reply::new(204, ""))),
        ("HTML", "invalid", Box::new(|| Reply::text(200, "<html>"))),
        ("no list", "invalid", Box::new(|| Reply::json(200, &json!({})))),
        ("no keys", "invalid", Box::new(|| Reply::json(200, &json!({"keys": []})))),
        ("a list", "invalid", Box::new(|| Reply::json(200, &json!([])))),
        ("half a set", "invalid", Box::new(move || Reply::new(200, gone[..gone.len() / 2].to_owned()))),
        (
            "bytes one by one",
            "unreachable",
            Box::new(|| Reply::new(200, vec![b' '; 4096]).trickle(1, Duration::from_millis(20))),
        ),
        ("a body that never ends", "unreachable", Box::new(|| Reply::new(200, "{   ").hang_in_body_after(1))),
        ("a body that breaks", "unreachable", Box::new(|| Reply::new(200, "{   ").break_in_body_after(1))),
        ("a hung server", "unreachable", Box::new(Reply::hang_before_head)),
        ("a closed connection", "unreachable", Box::new(Reply::close)),
    ];
    for (what, result, answer) in answers {
        let before = fetches(&gateway, result);
        publisher.reply(answer);
        let began = Instant::now();
        assert_undecided(&ask(&gateway, &new), what);
        assert!(began.elapsed() < Duration::from_secs(6), "{what}: {:?}", began.elapsed());
        assert!(fetches(&gateway, result) > before, "{what} counts as {result}: {}", gateway.metrics());
        assert_eq!(ask(&gateway, &old).code(), 200, "{what}: the old key goes on");
    }
    assert_eq!(other.reads(), 0, "nothing was followed");
    gateway.wait_for_log("those read before go on");
    assert_eq!(gateway.count_logs("those read before go on"), 1, "{}", gateway.logs());
    publisher.publish(&[jwk(1, "b")]);
    assert_eventually!(ask(&gateway, &new).code() == 200, "a good set is taken at last");
    assert_unknown(&ask(&gateway, &old), "and replaces the old one");
    // A set may be as large as allowed.
    let full = padded((64 << 10) - set.to_string().len());
    publisher.reply(move || Reply::new(200, full.clone()).chunked());
    assert_eventually!(ask(&gateway, &old).code() == 200, "a set of the largest size");
}

#[test]
fn secrets_in_a_set_are_never_used() {
    const SECRET: &[u8] = b"a-secret-that-should-not-be-published";
    let origin = Origin::start();
    let oct = json!({"kty": "oct", "alg": "HS256", "kid": "oct", "k": URL_SAFE_NO_PAD.encode(SECRET)});
    let mut private = jwk(1, "private");
    private["d"] = json!("jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI");
    let publisher = Publisher::start(&[oct, private, jwk(0, "a"), json!({"kty": "RSA", "kid": "broken"})]);
    let gateway = start_at(&origin, &publisher, "cooldown = \"100ms\"");
    assert_eq!(ask(&gateway, &token(0, "a")).code(), 200, "a bad key costs no other");
    assert_unknown(&ask(&gateway, &token(1, "private")), "a key whose private half is known to all");
    let claims = json!({"sub": "eve", "exp": unix_seconds() + 3600}).to_string();
    for header in [json!({"alg": "HS256", "kid": "oct"}), json!({"alg": "HS256"})] {
        assert_unknown(&ask(&gateway, &forged(&header.to_string(), &claims, SECRET)), "a published secret");
    }
    // Nor is a public key a secret.
    let public = jwk(0, "a").to_string();
    assert_unknown(
        &ask(&gateway, &forged(r#"{"alg":"HS256","kid":"a"}"#, &claims, public.as_bytes())),
        "a JWK",
    );
    for kid in ["oct", "private", "broken"] {
        gateway.wait_for_log(&format!("(kid \\\"{kid}\\\")"));
    }
    assert_eq!(gateway.count_logs("jpsQnnGQ"), 0);
    assert_eq!(gateway.count_logs(&URL_SAFE_NO_PAD.encode(SECRET)), 0);
    assert_eq!(gateway.metric("tollgate_jwks_keys", &[("issuer", "main")]), Some(1.0));
}

#[test]
fn a_kid_leads_nowhere() {
    let origin = Origin::start();
    let publisher = Publisher::start(&[jwk(0, "a"), jwk(1, "../../etc/passwd")]);
    let trap = Origin::start();
    let gateway = start_at(&origin, &publisher, "cooldown = \"100ms\"");
    assert_eq!(ask(&gateway, &token(0, "a")).code(), 200);
    for kid in [
        "../../../../dev/null".to_owned(),
        "/etc/passwd".to_owned(),
        "file:///etc/passwd".to_owned(),
        format!("http://{}/jwks", trap.addr()),
        "a' OR '1'='1".to_owned(),
        "a\0".to_owned(),
        "a\r\nHost: evil".to_owned(),
        "A".to_owned(),
        "a ".to_owned(),
        String::new(),
        "k".repeat(256),
    ] {
        assert_unknown(&ask(&gateway, &token(0, &kid)), &kid);
    }
    for (name, value) in [
        ("kid", json!("k".repeat(257))),
        ("kid", json!(["a"])),
        ("kid", json!(null)),
        ("jku", json!(format!("http://{}/jwks", trap.addr()))),
        ("x5u", json!(format!("http://{}/jwks", trap.addr()))),
        ("jwk", jwk(3, "a")),
    ] {
        let reads = publisher.reads();
        let number = if name == "jwk" { 3 } else { 0 };
        assert_unknown(&ask(&gateway, &token_of(number, &json!({ name: value }), &json!({}))), name);
        assert_eq!(publisher.reads(), reads, "{name}: what is malformed is not looked up");
    }
    assert_eq!(ask(&gateway, &token(1, "../../etc/passwd")).code(), 200, "a kid is only ever compared");
    assert_eq!(trap.connections(), 0);
    assert!(
        publisher.0.received().iter().all(|request| request.target == "/jwks" && request.body.is_empty())
    );
}

#[test]
fn a_file_of_keys_may_be_replaced() {
    let origin = Origin::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    let write = |content: &str| {
        let next = directory.path().join("next");
        std::fs::write(&next, content).unwrap();
        std::fs::rename(next, &path).unwrap();
    };
    let set = |keys: &[Value]| json!({ "keys": keys }).to_string();
    write(&set(&[jwk(0, "a")]));
    let gateway = start(
        &origin,
        &format!(
            "file = {:?}\ncooldown = \"100ms\"\nrefresh = \"1s\"\ntimeout = \"10s\"",
            path.display().to_string()
        ),
    );
    let (old, new) = (token(0, "a"), token(1, "b"));
    assert_eq!(ask(&gateway, &token_of(0, &json!({}), &json!({}))).code(), 200, "from the first request on");
    assert_eq!(ask(&gateway, &old).code(), 200);
    assert_unknown(&ask(&gateway, &new), "not there yet");
    write("half a s");
    assert_eventually!(fetches(&gateway, "invalid") > 0, "the file is read again without being asked for");
    assert_eq!(ask(&gateway, &old).code(), 200, "the keys read before go on");
    std::fs::remove_file(&path).unwrap();
    assert_eventually!(fetches(&gateway, "unreachable") > 0, "a file may be missing for a moment");
    assert_eq!(ask(&gateway, &old).code(), 200);
    write(&set(&[jwk(0, "a"), jwk(1, "b")]));
    assert_eventually!(ask(&gateway, &new).code() == 200, "the new key is read");
    assert_eq!(ask(&gateway, &old).code(), 200);
    // A key that is taken away is noticed at the next refresh, remembered tokens or not.
    write(&set(&[jwk(1, "b")]));
    assert_eventually!(ask(&gateway, &old).code() == 401, "the old key is no longer trusted");
    assert_eq!(ask(&gateway, &new).code(), 200);
}

#[test]
fn https_is_believed_only_with_a_certificate_for_the_name() {
    let origin = Origin::start();
    let publisher = Publisher::start(&[jwk(0, "a")]);
    let tokens = [token(0, "a"), token_of(0, &json!({}), &json!({}))];
    let ca = format!("ca_file = {:?}", certificate("ca").display().to_string());
    let expired_ca = format!("ca_file = {:?}", certificate("expired-ca").display().to_string());
    let foreign = "invalid peer certificate";
    for (name, ca, code, why) in [
        ("server", &*ca, 200, ""),
        ("server", "", 503, foreign),
        ("elsewhere", &*ca, 503, foreign),
        ("expired", &*expired_ca, 503, "certificate expired"),
    ] {
        let front = TlsFront::to(publisher.0.addr(), name);
        let url = format!("url = \"https://{}/jwks\"\n{ca}\ncooldown = \"100ms\"", front.addr());
        let reads = publisher.reads();
        let gateway = start(&origin, &url);
        for token in &tokens {
            assert_eq!(ask(&gateway, token).code(), code, "{name}, {ca:?}");
        }
        assert_eq!(publisher.reads() > reads, code == 200, "{name}, {ca:?}");
        if code == 503 {
            gateway.wait_for_log(why);
        }
    }
}

#[test]
fn issuers_do_not_answer_for_each_other() {
    let origin = Origin::start();
    let (first, second) = (Publisher::start(&[jwk(0, "k")]), Publisher::start(&[jwk(1, "k")]));
    let issuer = |name: &str, algorithm: &str, url: &str| {
        format!(
            "[issuers.{name}]\nalgorithms = [\"{algorithm}\"]\nissuer = \"https://{name}/\"\n[issuers.{name}.jwks]\n\
             url = \"{url}\"\nallow_http = true\ncooldown = \"100ms\"\ntimeout = \"2s\"\nrefresh = \"1h\"\n"
        )
    };
    let text = config(&origin, "");
    let routes = &text[..text.find("[issuers.main]").unwrap()];
    let text = format!(
        "{routes}{}{}[issuers.own]\nalgorithms = [\"HS256\"]\nsecret = \"${{JWT_SECRET}}\"\n",
        issuer("first", "EdDSA", &first.url()),
        issuer("second", "ES256", &second.url()),
    );
    let gateway = Gateway::builder().config(&text).start();
    let of = |number: usize, kid: &str, iss: &str| {
        ask(&gateway, &token_of(number, &json!({"kid": kid}), &json!({"iss": format!("https://{iss}/")})))
    };
    assert_eq!((of(0, "k", "first").code(), of(1, "k", "second").code()), (200, 200));
    let own = ask(&gateway, &Token::of("ada").sign());
    assert_eq!(own.code(), 200);
    assert_unknown(&of(1, "k", "first"), "an algorithm of the other");
    assert_unknown(&of(0, "k", "second"), "an algorithm of the other");
    assert_unknown(&of(0, "k", "third"), "nobody's");
    assert_unknown(&ask(&gateway, &token_of(0, &json!({"kid": "k"}), &json!({}))), "of the one without iss");
    assert_unknown(
        &ask(&gateway, &Token::of("ada").claim("iss", "https://first/").sign()),
        "the secret of another",
    );
    // One that is down takes no other with it.
    first.0.stop();
    let (reads, began) = (second.reads(), Instant::now());
    assert_undecided(&of(0, "new", "first"), "its endpoint is down");
    assert_eq!((of(1, "k", "second").code(), of(0, "k", "first").code()), (200, 200));
    assert_eq!(second.reads(), reads, "after {:?}", began.elapsed());
    second.publish(&[jwk(1, "k"), jwk(1, "new")]);
    assert_eventually!(of(1, "new", "second").code() == 200, "the other's keys go on changing");
}

#[test]
fn inspect_judges_by_the_keys_that_are_published_now() {
    let origin = Origin::start();
    let publisher = Publisher::start(&[jwk(0, "a")]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tollgate.toml");
    let jwks = format!("url = \"{}\"\nallow_http = true\ntimeout = \"10s\"", publisher.url());
    std::fs::write(&path, config(&origin, &jwks)).unwrap();
    let inspect =
        |token: &str| tollgate(&["token", "inspect", "--config", path.to_str().unwrap(), token], &[], "");
    let accepted = inspect(&token(0, "a"));
    assert_eq!(accepted.code, Some(0), "{}{}", accepted.out, accepted.err);
    let refused = inspect(&token(1, "b"));
    assert!(refused.code == Some(1) && refused.out.contains("no key fits"), "{}{}", refused.out, refused.err);
    publisher.0.stop();
    let undecided = inspect(&token(0, "a"));
    assert_eq!(undecided.code, Some(2));
    assert!(
        undecided.out.starts_with("UNDECIDED: the keys of its issuer could not be read"),
        "{}",
        undecided.out
    );
    assert!(
        undecided.err.contains("issuers.main.jwks: the source of keys cannot be reached"),
        "{}",
        undecided.err
    );
}

#[test]
fn unusable_files_are_told_at_the_start() {
    let origin = Origin::start();
    let missing = Path::new("/nowhere/jwks.json");
    let ended = Gateway::builder()
        .config(&config(&origin, &format!("file = {:?}", missing.display().to_string())))
        .try_start();
    let logs = ended.err().map(|ended| ended.to_string()).unwrap_or_default();
    assert!(logs.contains("issuers.main.jwks.file: cannot be read"), "{logs}");
}
