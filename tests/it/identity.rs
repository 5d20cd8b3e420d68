//! Who calls: where tokens come from, whose they are, what routes ask of them, and what logging out does.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::setup::PATIENT;
use crate::support::client::Response;
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Reply};
use crate::support::redis::Redis;
use crate::support::token::{Token, unix_seconds};

const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/keys");

fn config(origin: &Origin, more: &str) -> String {
    format!(
        r#"
        [upstreams.app]
        members = "{}"
        [[routes]]
        name = "me"
        path = "/me"
        auth = "required"
        upstream = "app"
        [[routes]]
        name = "maybe"
        path = "/maybe"
        auth = "optional"
        upstream = "app"
        [[routes]]
        name = "open"
        path = "/open"
        upstream = "app"
        [[routes]]
        name = "audit"
        path = "/audit"
        auth = "required"
        permissions = ["audit.read", "audit.list"]
        upstream = "app"
        [[routes]]
        name = "logout"
        path = "/auth/logout"
        methods = ["POST"]
        auth = "required"
        logout = "gateway"
        [[routes]]
        name = "leave"
        path = "/session"
        auth = "required"
        logout = "forward"
        upstream = "app"
        {more}
        "#,
        origin.addr()
    )
}

/// For tests that need the answer of Redis, however busy the machine is.
fn patient(origin: &Origin) -> String {
    config(origin, &format!("[redis]\n{PATIENT}"))
}

fn start(origin: &Origin, more: &str) -> Gateway {
    Gateway::builder().config(&config(origin, more)).start()
}

fn assert_refused(got: &Response, detail: &str) {
    assert_eq!(got.code(), 401, "{got:?}");
    assert_eq!(got.detail(), detail);
    assert_eq!(got.json()["status"], 401);
    let challenges = got.header_all("www-authenticate");
    assert_eq!(challenges.len(), 1, "{got:?}");
    assert!(challenges[0].starts_with("Bearer "), "{challenges:?}");
    // RFC 6750 section 3.1: no error code where no credential was given.
    assert_eq!(challenges[0].contains("error="), detail != "Not authenticated", "{challenges:?}");
    assert_eq!(got.header("cache-control"), Some("no-store"));
}

/// A token signed with a private key of the fixtures.
pub fn signed(key: &str, algorithm: Algorithm, header: &Value, claims: &Value) -> String {
    let pem = std::fs::read(format!("{KEYS}/{key}-private.pem")).unwrap();
    let key = match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(&pem),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(&pem),
        _ => EncodingKey::from_rsa_pem(&pem),
    }
    .unwrap();
    let input = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header.to_string()),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    let signature = jsonwebtoken::crypto::sign(input.as_bytes(), &key, algorithm).unwrap();
    format!("{input}.{signature}")
}

#[test]
fn what_a_route_asks_is_what_a_caller_needs() {
    let origin = Origin::start();
    let gateway = start(&origin, "");
    let client = gateway.client();
    let good = Token::of("ada").sign();
    let bad = Token::of("ada").sign_with(b"another secret that is long enough, too");
    assert_refused(&client.get("/me").send(), "Not authenticated");
    assert_refused(&client.get("/me").bearer(&bad).send(), "Invalid token");
    assert_refused(&client.get("/maybe").bearer(&bad).send(), "Invalid token");
    assert_refused(
        &client.get("/me").bearer(&Token::of("ada").expires_in(-60).sign()).send(),
        "Token expired",
    );
    assert_refused(
        &client.get("/maybe").bearer(&Token::of("ada").expires_in(-60).sign()).send(),
        "Token expired",
    );
    assert_refused(&client.get("/audit").send(), "Not authenticated");
    assert_eq!(origin.hits(), 0);
    for (path, token, user) in [
        ("/me", Some(&good), Some("ada")),
        ("/maybe", Some(&good), Some("ada")),
        ("/maybe", None, None),
        ("/open", None, None),
        ("/open", Some(&bad), None),
        ("/open", Some(&good), None),
    ] {
        let request = client.get(path);
        let got = if let Some(token) = token { request.bearer(token) } else { request }.send();
        assert_eq!(got.code(), 200, "{path}");
        assert_eq!(origin.last().header("x-user-id"), user, "{path}");
    }
}

#[test]
fn all_of_the_permissions_are_needed() {
    let origin = Origin::start();
    let gateway = start(&origin, "");
    let with = |permissions: Value| {
        gateway
            .client()
            .get("/audit")
            .bearer(&Token::of("ada").claim("permissions", permissions).sign())
            .send()
    };
    for permissions in [
        json!([]),
        json!(null),
        json!(["audit.read"]),
        json!(["audit"]),
        json!("audit.read,audit.list"),
        json!(["audit.read audit.list"]),
        json!({"audit.read": true, "audit.list": true}),
        json!(["AUDIT.READ", "AUDIT.LIST"]),
        json!(["*"]),
        json!([["audit.read"], ["audit.list"]]),
        json!(true),
    ] {
        let got = with(permissions.clone());
        assert_eq!(got.code(), 403, "{permissions}");
        assert_eq!(got.json()["status"], 403);
        assert!(
            got.header("www-authenticate").is_some_and(|challenge| challenge.contains("insufficient_scope"))
        );
    }
    assert_eq!(origin.hits(), 0);
    for permissions in [json!(["audit.list", "x", "audit.read"]), json!("audit.read audit.list")] {
        assert_eq!(with(permissions.clone()).code(), 200, "{permissions}");
    }
}

#[test]
fn a_token_may_come_from_where_it_was_declared_and_from_one_place_only() {
    let origin = Origin::start();
    let sources =
        "[identity]\ntoken_from = [\"bearer\", \"cookie:session\", \"header:X-Token\", \"query:token\"]";
    let gateway = start(&origin, sources);
    let client = gateway.client();
    let token = Token::of("ada").sign();
    let query = format!("/me?token={token}");
    let cookie = format!("a=b; session={token}; c=d");
    assert_eq!(client.get("/me").bearer(&token).send().code(), 200);
    assert_eq!(client.get("/me").header("authorization", &format!("bEaReR   {token}")).send().code(), 200);
    assert_eq!(client.get("/me").header("cookie", &cookie).send().code(), 200);
    assert_eq!(client.get("/me").header("x-token", &token).send().code(), 200);
    assert_eq!(client.get(&query).send().code(), 200);
    assert_eq!(
        client.get("/me").header("authorization", "Basic YTpi").header("x-token", &token).send().code(),
        200
    );
    let hits = origin.hits();
    for request in [
        client.get("/me").bearer(&token).header("cookie", &cookie),
        client.get("/me").bearer(&token).header("x-token", &token),
        client.get(&query).bearer(&token),
        client.get(&format!("{query}&token={token}")),
        client.get(&format!("{query}&t%6fken=x")),
        client.get("/me").bearer(&token).bearer(&token),
        client.get("/me").header("cookie", &format!("session={token}; session={token}")),
        client.get("/me").header("cookie", &cookie).header("cookie", "session=x"),
        client.get("/me").header("x-token", &token).header("x-token", "x"),
        client.get("/me").header("authorization", &format!("Bearer {token}, Bearer {token}")),
        client.get("/me").header("authorization", &format!("Bearer {token} {token}")),
        client.get("/me").header("authorization", &format!("Bearer{token}")),
        client.get("/me").header("authorization", &format!("Bearer\t{token}")),
        client.get("/me").header("authorization", &format!("Bearer \"{token}\"")),
        client.get("/me").header("authorization", "Bearer"),
        client.get("/me").header("authorization", "Bearer "),
        client.get("/me").header("x-token", &format!("Bearer {token}")),
        client.get("/maybe").header("authorization", "Bearer x y"),
    ] {
        let what = format!("{request:?}");
        let got = request.send();
        assert_eq!(got.code(), 401, "{what}");
        assert_eq!(got.detail(), "Invalid token");
    }
    for request in [
        client.get("/me").header("authorization", "Basic YTpi"),
        client.get("/me").header("authorization", &token),
        client.get("/me").header("cookie", &format!("Session={token}")),
        client.get("/me").header("cookie", "session="),
        client.get(&format!("/me?TOKEN={token}")),
    ] {
        assert_refused(&request.send(), "Not authenticated");
    }
    assert_eq!(origin.hits(), hits);
    // Where only the header is declared, nothing else is looked at.
    let gateway = start(&origin, "");
    assert_refused(&gateway.client().get(&query).header("cookie", &cookie).send(), "Not authenticated");
}

#[test]
fn every_algorithm_verifies_its_own_tokens_and_nobody_elses() {
    let origin = Origin::start();
    let kinds = [
        ("RS256", Algorithm::RS256, "rsa-2048"),
        ("RS384", Algorithm::RS384, "rsa-2048"),
        ("RS512", Algorithm::RS512, "rsa-2048"),
        ("PS256", Algorithm::PS256, "rsa-2048"),
        ("PS384", Algorithm::PS384, "rsa-2048"),
        ("PS512", Algorithm::PS512, "rsa-2048"),
        ("ES256", Algorithm::ES256, "ec-p256"),
        ("ES384", Algorithm::ES384, "ec-p384"),
        ("EdDSA", Algorithm::EdDSA, "ed25519"),
    ];
    let issuers: Vec<String> = kinds
        .iter()
        .map(|(name, _, key)| {
            format!(
                "[issuers.{name}]\nalgorithms = [\"{name}\"]\nissuer = \"https://{name}/\"\npublic_key_file = \"{KEYS}/{key}-public.pem\"\n"
            )
        })
        .collect();
    let shared = "[issuers.own]\nalgorithms = [\"HS256\"]\nsecret = \"${JWT_SECRET}\"\n";
    let gateway = start(&origin, &format!("{}{shared}", issuers.concat()));
    let client = gateway.client();
    let claims = |iss: &str| json!({"sub": format!("of-{iss}"), "iss": format!("https://{iss}/"), "exp": unix_seconds() + 600});
    for (name, algorithm, key) in &kinds {
        let token = signed(key, *algorithm, &json!({"alg": name}), &claims(name));
        assert_eq!(client.get("/me").bearer(&token).send().code(), 200, "{name}");
        assert_eq!(origin.last().header("x-user-id").unwrap(), format!("of-{name}"));
        // The same key under another issuer's name, or with another algorithm than is said or allowed.
        for (other, other_algorithm, other_key) in &kinds {
            if other == name {
                continue;
            }
            let hits = origin.hits();
            let token = signed(key, *algorithm, &json!({"alg": name}), &claims(other));
            assert_refused(&client.get("/me").bearer(&token).send(), "Invalid token");
            let token = signed(key, *algorithm, &json!({"alg": other}), &claims(name));
            assert_refused(&client.get("/me").bearer(&token).send(), "Invalid token");
            if other_key != key {
                let token = signed(other_key, *other_algorithm, &json!({"alg": other}), &claims(name));
                assert_refused(&client.get("/me").bearer(&token).send(), "Invalid token");
            }
            assert_eq!(origin.hits(), hits);
        }
        let own = Token::of("ada").claim("iss", format!("https://{name}/")).sign();
        assert_refused(&client.get("/me").bearer(&own).send(), "Invalid token");
    }
    let other = signed("rsa-2048-other", Algorithm::RS256, &json!({"alg": "RS256"}), &claims("RS256"));
    assert_refused(&client.get("/me").bearer(&other).send(), "Invalid token");
    assert_eq!(client.get("/me").bearer(&Token::of("ada").sign()).send().code(), 200);
}

#[test]
fn keys_are_told_apart_by_their_kid() {
    let origin = Origin::start();
    let issuers = format!(
        "[issuers.main]\nalgorithms = [\"RS256\"]\n[[issuers.main.keys]]\nkid = \"one\"\npublic_key_file = \"{KEYS}/rsa-2048-public.pem\"\n\
         [[issuers.main.keys]]\nkid = \"two\"\npublic_key_file = \"{KEYS}/rsa-2048-other-public.pem\"\n"
    );
    let gateway = start(&origin, &issuers);
    let claims = json!({"sub": "ada", "exp": unix_seconds() + 600});
    let ask = |key: &str, header: Value| {
        gateway.client().get("/me").bearer(&signed(key, Algorithm::RS256, &header, &claims)).send().code()
    };
    assert_eq!(ask("rsa-2048", json!({"alg": "RS256", "kid": "one"})), 200);
    assert_eq!(ask("rsa-2048-other", json!({"alg": "RS256", "kid": "two"})), 200);
    for (key, kid) in [
        ("rsa-2048", json!("two")),
        ("rsa-2048-other", json!("one")),
        ("rsa-2048", json!("three")),
        ("rsa-2048", json!("")),
        ("rsa-2048", json!(1)),
        ("rsa-2048", json!(["one"])),
        ("rsa-2048", json!("../../../dev/null")),
        ("rsa-2048", json!("one' OR '1'='1")),
    ] {
        assert_eq!(ask(key, json!({"alg": "RS256", "kid": kid})), 401, "{key} {kid}");
    }
}

#[test]
fn claims_are_read_as_mapped_and_required_as_declared() {
    let origin = Origin::start();
    let issuer = "[issuers.main]\nalgorithms = [\"HS256\"]\nsecret = \"${JWT_SECRET}\"\nissuer = \"me\"\naudience = [\"api\"]\n\
                  required_claims = [\"tenant\"]\nmax_lifetime = \"2h\"\nleeway = \"30s\"\n\
                  [issuers.main.claims]\nsubject = [\"uid\"]\nplan = \"tier\"\n[identity.claim_headers]\ntenant = \"X-Tenant\"\n";
    let gateway = start(&origin, issuer);
    let good = || {
        Token::of("ignored")
            .claim("uid", 42)
            .claim("tier", "pro")
            .claim("tenant", "t1")
            .claim("iss", "me")
            .claim("aud", "api")
    };
    let ask = |token: Token| gateway.client().get("/me").bearer(&token.sign()).send();
    assert_eq!(ask(good()).code(), 200);
    let seen = origin.last();
    assert_eq!(
        [seen.header("x-user-id"), seen.header("x-user-plan"), seen.header("x-tenant")],
        [Some("42"), Some("pro"), Some("t1")]
    );
    assert_eq!(ask(good().claim("aud", json!(["x", "api"]))).code(), 200);
    let now = unix_seconds();
    for (what, token) in [
        ("no tenant", good().without("tenant")),
        ("tenant of null", good().claim("tenant", json!(null))),
        ("no subject", good().without("uid")),
        ("another issuer", good().claim("iss", "you")),
        ("no issuer", good().without("iss")),
        ("issuers in a list", good().claim("iss", json!(["me"]))),
        ("another audience", good().claim("aud", "web")),
        ("no audience", good().without("aud")),
        ("audiences of others", good().claim("aud", json!(["web", "ap"]))),
        ("audience as a number", good().claim("aud", 1)),
        ("a life too long", good().claim("exp", now + 3 * 3600)),
        ("no birth where life is bounded", good().without("iat")),
        ("born in the future", good().claim("iat", now + 300)),
        ("not valid yet", good().claim("nbf", now + 300)),
        ("no end", good().without("exp")),
    ] {
        let got = ask(token);
        assert_eq!(got.code(), 401, "{what}");
        assert_eq!(got.detail(), "Invalid token", "{what}");
    }
    // Clocks may differ by the leeway, and by no more.
    assert_eq!(ask(good().claim("exp", now - 10)).code(), 200);
    assert_eq!(ask(good().claim("exp", now - 40)).detail(), "Token expired");
    assert_eq!(ask(good().claim("nbf", now + 15)).code(), 200);
    assert_eq!(ask(good().claim("iat", now + 15)).code(), 200);
}

#[test]
fn logging_out_at_the_gateway_ends_the_token_on_every_instance() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let start = || Gateway::builder().config(&patient(&origin)).env("REDIS_URL", &redis.url()).start();
    let (first, second) = (start(), start());
    let token = Token::of("ada");
    let (text, other) = (token.sign(), Token::of("ada").sign());
    assert_eq!(second.client().get("/me").bearer(&text).send().code(), 200);
    let got = first.client().post("/auth/logout").bearer(&text).send();
    assert_eq!((got.code(), got.text().as_str()), (200, r#"{"msg":"Logged out successfully"}"#));
    assert_eq!(got.header("content-type"), Some("application/json"));
    for gateway in [&first, &second] {
        assert_refused(&gateway.client().get("/me").bearer(&text).send(), "Token revoked");
        assert_refused(&gateway.client().get("/maybe").bearer(&text).send(), "Token revoked");
        // A second logout is the use of a revoked token.
        assert_refused(&gateway.client().post("/auth/logout").bearer(&text).send(), "Token revoked");
        assert_eq!(
            gateway.client().get("/me").bearer(&other).send().code(),
            200,
            "other tokens of the same user"
        );
    }
    let key = format!("blacklist:{}", token.jti());
    let ttl: i64 = redis::cmd("TTL").arg(&key).query(&mut redis.client()).unwrap();
    assert!((3_500..=3_700).contains(&ttl), "{ttl}");
    assert!(redis.keys_without_ttl().is_empty(), "{:?}", redis.keys_without_ttl());
    // It takes a valid token to log out.
    assert_refused(&first.client().post("/auth/logout").send(), "Not authenticated");
    assert_refused(
        &first.client().post("/auth/logout").bearer(&Token::of("ada").expires_in(-60).sign()).send(),
        "Token expired",
    );
    assert_refused(&first.client().post("/auth/logout").bearer("x").send(), "Invalid token");
    assert_eq!(first.client().get("/auth/logout").bearer(&other).send().code(), 405);
    assert_eq!(origin.received_at("/auth/logout").len(), 0);
}

#[test]
fn a_forwarded_logout_counts_when_the_upstream_says_so() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::builder().config(&patient(&origin)).env("REDIS_URL", &redis.url()).start();
    let client = gateway.client();
    for status in [400, 401, 404, 500, 302] {
        let token = Token::of("ada").sign();
        origin.route("/session", move |_| Reply::text(status, "no"));
        assert_eq!(client.delete("/session").bearer(&token).send().code(), status);
        assert_eq!(client.get("/me").bearer(&token).send().code(), 200, "{status}");
    }
    for status in [200, 204] {
        let token = Token::of("ada").sign();
        origin.route("/session", move |_| Reply::new(status, "").header("x-mine", "1"));
        let got = client.delete("/session").bearer(&token).send();
        assert_eq!((got.code(), got.header("x-mine")), (status, Some("1")));
        assert_refused(&client.get("/me").bearer(&token).send(), "Token revoked");
    }
    // Without an answer nobody knows; the token stays.
    let token = Token::of("ada").sign();
    origin.route("/session", |_| Reply::close());
    assert_eq!(client.delete("/session").bearer(&token).send().code(), 502);
    assert_eq!(client.get("/me").bearer(&token).send().code(), 200);
}

#[test]
fn a_token_without_jti_is_revoked_by_its_hash_and_never_stored() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::builder().config(&patient(&origin)).env("REDIS_URL", &redis.url()).start();
    let client = gateway.client();
    let (token, other) =
        (Token::of("ada").without("jti").sign(), Token::of("ada").without("jti").claim("n", 1).sign());
    assert_eq!(client.post("/auth/logout").bearer(&token).send().code(), 200);
    assert_refused(&client.get("/me").bearer(&token).send(), "Token revoked");
    assert_eq!(client.get("/me").bearer(&other).send().code(), 200);
    let hash: Vec<String> = Sha256::digest(&token).iter().map(|byte| format!("{byte:02x}")).collect();
    let hash = hash.concat();
    let keys = redis.keys();
    assert!(keys.iter().any(|key| key.starts_with("blacklist:") && key.contains(&hash)), "{keys:?}");
    let mut connection = redis.client();
    for key in &keys {
        assert!(!key.contains(&token), "{key}");
        let value: Vec<u8> = redis::cmd("DUMP").arg(key).query(&mut connection).unwrap();
        assert!(!String::from_utf8_lossy(&value).contains(&token), "{key}");
    }
    assert!(!gateway.logs().contains(&token));
}

#[test]
fn hostile_ids_and_subjects_cannot_reach_other_keys() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::builder().config(&patient(&origin)).env("REDIS_URL", &redis.url()).start();
    let client = gateway.client();
    for jti in ["a b", "*", "x\r\nSET y z", "{}", "a:b", "\u{e4}", &"j".repeat(3_000), "../x"] {
        let token = Token::of("ada").claim("jti", jti).sign();
        let got = client.post("/auth/logout").bearer(&token).send().code();
        assert!(matches!(got, 200 | 401), "{jti:?}");
        if got == 200 {
            assert_refused(&client.get("/me").bearer(&token).send(), "Token revoked");
        }
        assert_eq!(
            client.get("/me").bearer(&Token::of("ada").claim("jti", "other").sign()).send().code(),
            200
        );
    }
    for jti in [json!(1), json!(["a"]), json!({"a": 1}), json!(""), json!(true)] {
        let token = Token::of("ada").claim("jti", jti.clone()).sign();
        if client.get("/me").bearer(&token).send().code() == 200 {
            assert_eq!(client.post("/auth/logout").bearer(&token).send().code(), 200);
            assert_refused(&client.get("/me").bearer(&token).send(), "Token revoked");
        }
    }
    for key in redis.keys() {
        assert!(key.len() < 600, "{} bytes of key", key.len());
        assert!(key.bytes().all(|byte| byte.is_ascii_graphic()), "{key:?}");
    }
    assert!(redis.keys_without_ttl().is_empty());
}

#[test]
fn without_redis_a_logout_still_holds_here() {
    let origin = Origin::start();
    let gateway = start(&origin, "");
    let token = Token::of("ada").sign();
    assert_eq!(gateway.client().post("/auth/logout").bearer(&token).send().code(), 200);
    assert_refused(&gateway.client().get("/me").bearer(&token).send(), "Token revoked");
}
