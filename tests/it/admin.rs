//! The admin listener: who may use it, what it shows from the first moment, and that its actions reach every
//! instance.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use crate::support::client::Response;
use crate::support::gateway::{ADMIN_TOKEN, Builder, Gateway};
use crate::support::origin::Origin;
use crate::support::redis::Redis;
use crate::support::token::{SECRET, Token};

const CONFIG: &str = r#"
[upstreams.app]
members = "UPSTREAM"

[policies.small]
key = "ip"
limit = 3
window = "60s"

[defaults]
upstream = "app"

[[routes]]
name = "notes"
path = "/notes/:id"
auth = "required"
[routes.cache]
ttl = "300s"
tags = ["note:{id}"]

[[routes]]
name = "open"
path = "/open/**"
auth = "optional"

[[routes]]
name = "limited"
path = "/limited"
limits = ["small"]
"#;

fn builder(origin: &Origin, redis_url: &str) -> Builder {
    Gateway::builder()
        .config(&CONFIG.replace("UPSTREAM", &origin.addr().to_string()))
        .env("REDIS_URL", redis_url)
}

/// With a name of its own too.
fn guarded(origin: &Origin, redis_url: &str) -> Builder {
    let config = CONFIG.replace("UPSTREAM", &origin.addr().to_string());
    let admin = "\n[redis]\ndeadline = \"1s\"\n[admin]\nlisten = \"{admin}\"\ntoken = \"${TOLLGATE_ADMIN_TOKEN:-}\"\nhosts = [\"tollgate.internal\"]\n";
    Gateway::builder().config(&format!("{config}{admin}")).env("REDIS_URL", redis_url)
}

fn call(gateway: &Gateway, path: &str, body: &Value) -> Response {
    gateway.admin().post(path).bearer(ADMIN_TOKEN).json(body).send()
}

#[test]
fn everything_is_counted_from_zero_and_moves() {
    let origin = Origin::start();
    let gateway = builder(&origin, "").env("TOLLGATE_ADMIN_TOKEN", "").start();
    let client = gateway.client();
    let bearer = Token::of("ada").sign();
    let series: [(&str, &[(&str, &str)]); 16] = [
        ("tollgate_requests_total", &[("route", "notes"), ("method", "read"), ("status", "2xx")]),
        ("tollgate_requests_total", &[("route", "limited"), ("status", "4xx")]),
        ("tollgate_requests_total", &[("route", "-"), ("status", "4xx")]),
        ("tollgate_request_duration_seconds_count", &[("route", "notes")]),
        ("tollgate_limit_decisions_total", &[("policy", "small"), ("decision", "admitted")]),
        ("tollgate_limit_decisions_total", &[("policy", "small"), ("decision", "refused")]),
        ("tollgate_cache_total", &[("route", "notes"), ("outcome", "miss")]),
        ("tollgate_cache_total", &[("route", "notes"), ("outcome", "hit")]),
        ("tollgate_auth_total", &[("outcome", "accepted")]),
        ("tollgate_auth_total", &[("outcome", "anonymous")]),
        ("tollgate_auth_total", &[("outcome", "not_authenticated")]),
        ("tollgate_auth_total", &[("outcome", "bad_signature")]),
        ("tollgate_auth_total", &[("outcome", "revoked")]),
        ("tollgate_refusals_total", &[("reason", "limited")]),
        ("tollgate_refusals_total", &[("reason", "identity")]),
        ("tollgate_refusals_total", &[("reason", "no_route")]),
    ];
    for (name, labels) in series {
        assert_eq!(gateway.metric(name, labels), Some(0.0), "{name} {labels:?} from the start");
    }
    for _ in 0..3 {
        client.get("/notes/1").bearer(&bearer).send();
    }
    for _ in 0..5 {
        client.get("/limited").send();
    }
    client.get("/nowhere").send();
    client.get("/open/x").send();
    client.get("/notes/1").send();
    client.get("/notes/1").bearer(&Token::of("ada").sign_with(b"somebody else's secret, long enough")).send();
    let dead = Token::of("bob");
    let body = json!({"token": dead.sign()});
    let revoking = gateway.admin().post("/api/v1/revocations").bearer(ADMIN_TOKEN).json(&body).send();
    assert_eq!(revoking.code(), 403, "no credential is configured here");
    let want = [3.0, 2.0, 1.0, 5.0, 3.0, 2.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 0.0, 2.0, 2.0, 1.0];
    for ((name, labels), want) in series.into_iter().zip(want) {
        assert_eventually!(
            gateway.metric(name, labels) == Some(want),
            format!("{name} {labels:?} is {want}")
        );
    }
    assert_eq!(gateway.metric("tollgate_requests_in_flight", &[]), Some(0.0));
    assert_eq!(gateway.metric("tollgate_build_info", &[]), Some(1.0));
}

/// What `promtool check metrics` would complain about.
#[test]
fn the_exposition_is_well_formed() {
    let origin = Origin::start();
    let gateway = builder(&origin, "").start();
    gateway.client().get("/limited").send();
    let response = gateway.admin().get("/metrics").send();
    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = response.text();
    assert!(text.ends_with('\n'));
    let (mut helped, mut typed) = (HashSet::new(), HashMap::new());
    let (mut seen, mut finished, mut current) = (HashSet::new(), HashSet::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(helped.insert(name.to_owned()) && !help.is_empty(), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(
                helped.contains(name) && typed.insert(name.to_owned(), kind.to_owned()).is_none(),
                "{line}"
            );
            assert!(finished.insert(std::mem::replace(&mut current, name.to_owned())), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(seen.insert(series.to_owned()), "a duplicate series: {line}");
            let name = series.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let family =
                base.filter(|base| typed.get(*base).is_some_and(|kind| kind == "histogram")).unwrap_or(name);
            assert_eq!(family, current, "{line} stands outside its family");
        }
    }
    assert!(typed.len() > 20);
    for name in ["HELP", "TYPE"] {
        assert!(!text.contains(&format!("# {name} \n")));
    }
    assert!(!text.contains(SECRET));
}

#[test]
fn probes_and_health_answer_without_a_credential() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = builder(&origin, &redis.url()).start();
    let admin = gateway.admin();
    assert_eq!(admin.get("/live").send().json(), json!({"status": "alive"}));
    assert_eq!(admin.get("/ready").send().json(), json!({"status": "ready"}));
    let mut health = Value::Null;
    assert_eventually!(
        {
            health = admin.get("/health").send().json();
            health["redis"]["status"] == "connected"
        },
        "Redis is connected"
    );
    assert_eq!(health["status"], "ok", "{health}");
    assert!(health["redis"]["memory_bytes"].as_u64().unwrap() > 0, "{health}");
    assert!(health["redis"]["keys"].is_u64(), "{health}");
    assert!(health["cache"]["entries"].is_u64() && health["active_connections"].is_u64(), "{health}");
    assert_eq!(health["upstreams"][0], json!({"name": "app", "members": 1, "available": 1}));
    redis.kill();
    assert_eventually!(
        {
            health = admin.get("/health").send().json();
            health["redis"]["status"] == "disconnected"
        },
        "the outage shows"
    );
    assert_eq!(health["status"], "degraded");
    assert_eq!(admin.get("/ready").send().code(), 200, "it still serves, from memory");
    assert_eq!(admin.post("/health").send().code(), 405);
    assert_eq!(admin.get("/nothing").send().code(), 404);
}

#[test]
fn health_is_brief_where_configured() {
    let origin = Origin::start();
    let config = CONFIG.replace("UPSTREAM", &origin.addr().to_string());
    let admin =
        "\n[admin]\nlisten = \"{admin}\"\ntoken = \"${TOLLGATE_ADMIN_TOKEN}\"\nhealth_detail = false\n";
    let gateway = Gateway::builder().config(&format!("{config}{admin}")).start();
    let brief = gateway.admin().get("/health").send().json();
    assert!(brief["status"] == "ok" && brief.get("upstreams").is_none(), "{brief}");
    let full = gateway.admin().get("/health").bearer(ADMIN_TOKEN).send().json();
    assert!(full["upstreams"].is_array(), "{full}");
}

#[test]
fn the_api_is_for_the_credential_alone() {
    let origin = Origin::start();
    let gateway = guarded(&origin, "").start();
    let admin = gateway.admin();
    let status = || admin.get("/api/v1/status");
    assert_eq!(status().bearer(ADMIN_TOKEN).send().code(), 200);
    assert_eq!(status().header("authorization", &format!("bEaReR {ADMIN_TOKEN}")).send().code(), 200);

    let none = status().send();
    assert_eq!(none.code(), 401);
    assert!(none.header("www-authenticate").unwrap().starts_with("Bearer"));
    for wrong in ["x", &ADMIN_TOKEN[1..], &format!("{ADMIN_TOKEN}x"), &ADMIN_TOKEN.to_uppercase()] {
        let response = status().bearer(wrong).send();
        assert_eq!((response.code(), response.text().contains(ADMIN_TOKEN)), (401, false), "{wrong}");
    }
    let twice = status().bearer(ADMIN_TOKEN).bearer(ADMIN_TOKEN).send();
    assert_eq!(twice.code(), 401);
    let basic = status().header("authorization", "Basic YTpi").send();
    assert_eq!(basic.code(), 401);
    for query in ["token", "access_token", "key"] {
        let path = format!("/api/v1/status?{query}={ADMIN_TOKEN}");
        assert_eq!(admin.get(&path).send().code(), 400, "{path}");
        assert_eq!(admin.get(&path).bearer(ADMIN_TOKEN).send().code(), 400, "{path}");
    }
    // Nobody without it learns which calls exist, under any spelling.
    for path in ["/api/v1/nothing", "/api", "/api/", "/api/v1/revocations", "/api/../api/v1/status"] {
        assert!(matches!(admin.get(path).send().code(), 401 | 404), "{path}");
    }
    assert_eq!(admin.get("/api/v1/nothing").bearer(ADMIN_TOKEN).send().code(), 404);
    // A user's token is no operator's.
    assert_eq!(status().bearer(&Token::of("admin").sign()).send().code(), 401);

    let text = status().bearer(ADMIN_TOKEN).send().text();
    assert!(!text.contains(SECRET) && !text.contains(ADMIN_TOKEN), "{text}");
    assert!(!gateway.logs().contains(ADMIN_TOKEN) && !gateway.metrics().contains(ADMIN_TOKEN));
}

#[test]
fn without_a_credential_configured_the_api_is_closed() {
    let origin = Origin::start();
    let gateway = builder(&origin, "").env("TOLLGATE_ADMIN_TOKEN", "").start();
    for credential in ["", "x", ADMIN_TOKEN] {
        let response = gateway.admin().get("/api/v1/status").bearer(credential).send();
        assert_eq!(response.code(), 403, "{credential:?}");
    }
    assert_eq!(gateway.admin().get("/metrics").send().code(), 200);
}

#[test]
fn names_and_pages_of_others_are_refused() {
    let origin = Origin::start();
    let gateway = guarded(&origin, "").start();
    let admin = gateway.admin();
    for path in ["/metrics", "/health", "/api/v1/status"] {
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:9090", "user@127.0.0.1"] {
            let response = admin.get(path).bearer(ADMIN_TOKEN).host(host).send();
            assert!(matches!(response.code(), 421 | 400), "{path} {host}: {}", response.code());
        }
        for host in ["localhost", "localhost:9090", "127.0.0.1", "[::1]:9090", "Tollgate.Internal:9090"] {
            assert_eq!(admin.get(path).bearer(ADMIN_TOKEN).host(host).send().code(), 200, "{path} {host}");
        }
    }
    let purge = || admin.post("/api/v1/cache/purge").bearer(ADMIN_TOKEN);
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        let response = purge().header(name, value).json(&json!({"all": true})).send();
        assert_eq!(response.code(), 403, "{name}: {value}");
    }
    let own = format!("http://{}", gateway.admin_addr());
    assert_eq!(purge().header("origin", &own).json(&json!({"all": true})).send().code(), 200);
    // A form of another site needs no preflight; this API takes none.
    for kind in ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data"] {
        assert_eq!(purge().header("content-type", kind).body(r#"{"all":true}"#).send().code(), 415, "{kind}");
    }
    let page = admin.get("/health").send();
    assert!(
        page.header("x-content-type-options").is_some_and(|value| value == "nosniff"),
        "{:?}",
        page.headers
    );
}

#[test]
fn bodies_that_are_not_understood_are_refused() {
    let origin = Origin::start();
    let gateway = guarded(&origin, "").start();
    let post = |path: &str, body: String| {
        let sent = gateway
            .admin()
            .post(path)
            .bearer(ADMIN_TOKEN)
            .header("content-type", "application/json")
            .body(body);
        sent.send().code()
    };
    for body in
        ["", "{", "[]", "null", "{}", r#"{"jti":"a","subject":"b"}"#, r#"{"jti":""}"#, r#"{"jti":"a","x":1}"#]
    {
        assert_eq!(post("/api/v1/revocations", body.to_owned()), 400, "{body}");
    }
    for body in [r#"{"all":false}"#, r#"{"all":true,"tag":"x"}"#, r#"{"tag":7}"#, "{\"tag\":\"a\\u0000\"}"] {
        assert_eq!(post("/api/v1/cache/purge", body.to_owned()), 400, "{body}");
    }
    assert_eq!(post("/api/v1/cache/purge", "[".repeat(60_000)), 400);
    assert_eq!(post("/api/v1/cache/purge", "x".repeat(100_000)), 413);
    assert_eq!(post("/api/v1/cache/purge", r#"{"route":"nothing"}"#.to_owned()), 404);
    assert_eq!(post("/api/v1/revocations", r#"{"token":"a.b.c"}"#.to_owned()), 422);
}

fn two_instances() -> (Redis, Origin, [Gateway; 2]) {
    let (redis, origin) = (Redis::start(), Origin::start());
    let pair = [(); 2].map(|()| guarded(&origin, &redis.url()).start());
    for gateway in &pair {
        assert_eventually!(
            gateway.admin().get("/health").send().json()["redis"]["status"] == "connected",
            "the instances share a store"
        );
    }
    (redis, origin, pair)
}

#[test]
fn a_revocation_by_any_name_holds_on_every_instance() {
    let (_redis, _origin, pair) = two_instances();
    let use_it = |token: &Token| {
        let bearer = token.sign();
        pair.each_ref().map(|gateway| gateway.client().get("/open/x").bearer(&bearer).send().code())
    };
    let (by_jti, by_token, by_subject) =
        (Token::of("ada"), Token::of("bob").without("jti"), Token::of("eve"));
    let untouched = Token::of("joe");
    for token in [&by_jti, &by_token, &by_subject, &untouched] {
        assert_eq!(use_it(token), [200, 200]);
    }
    for (body, kind, token) in [
        (json!({"jti": by_jti.jti(), "ttl": "1h", "reason": "lost laptop"}), "jti", &by_jti),
        (json!({"token": by_token.sign()}), "token", &by_token),
        (json!({"subject": "eve", "ttl": 600}), "subject", &by_subject),
    ] {
        let response = call(&pair[0], "/api/v1/revocations", &body);
        assert_eq!(response.code(), 200, "{}", response.text());
        let answer = response.json();
        assert_eq!(
            (answer["kind"].as_str(), answer["shared"].as_bool()),
            (Some(kind), Some(true)),
            "{answer}"
        );
        assert!(!response.text().contains(&by_token.sign()), "a token is never repeated");
        assert_eq!(use_it(token), [401, 401], "{kind}");
    }
    assert_eq!(use_it(&untouched), [200, 200]);
    assert!(!pair[0].logs().contains(&by_token.sign()));
    assert_eventually!(pair[0].metric("tollgate_revocations_total", &[]) == Some(3.0), "they are counted");
    // A subject that was cut off may log in again.
    let later = Token::of("eve").claim("iat", crate::support::token::unix_seconds() + 2);
    assert_eq!(use_it(&later), [200, 200]);
}

#[test]
fn a_purge_by_any_name_drops_it_on_every_instance() {
    let (_redis, origin, pair) = two_instances();
    let (ada, bob) = (Token::of("ada").sign(), Token::of("bob").sign());
    let read = |gateway: &Gateway, path: &str, who: &str| {
        // One host: it is part of the key.
        let response = gateway.client().get(path).host("notes.example").bearer(who).send();
        assert_eq!(response.code(), 200);
        (
            response.header("x-cache").unwrap_or("-").to_owned(),
            response.header("x-cache-key").map(str::to_owned),
        )
    };
    let mut key = None;
    let mut warm = || {
        for gateway in &pair {
            for (path, who) in [("/notes/1", &ada), ("/notes/2", &ada), ("/notes/1", &bob)] {
                assert_eventually!(read(gateway, path, who).0 == "HIT", "everything is cached");
            }
        }
        key = read(&pair[0], "/notes/1", &ada).1;
        key.clone().expect("X-Cache-Key")
    };
    // Which of notes/1 of ada, notes/2 of ada, notes/1 of bob goes.
    for (purge, gone) in [
        (json!({"all": true}), [true, true, true]),
        (json!({"tag": "note:1"}), [true, false, true]),
        (json!({"user": "ada"}), [true, true, false]),
        (json!({"route": "notes"}), [true, true, true]),
        // Of the URI, whoever asks for it.
        (json!({"key": null}), [true, false, true]),
        (json!({"prefix": "/notes/1"}), [true, false, true]),
        (json!({"prefix": "/notes/", "host": "notes.example"}), [true, true, true]),
        (json!({"prefix": "/notes/", "host": "other.example"}), [false, false, false]),
    ] {
        let fingerprint = warm();
        let body = if purge.get("key").is_some() { json!({"key": fingerprint}) } else { purge };
        origin.clear();
        let response = call(&pair[0], "/api/v1/cache/purge", &body);
        assert_eq!((response.code(), response.json()["shared"].as_bool()), (200, Some(true)), "{body}");
        let seen = [("/notes/1", &ada), ("/notes/2", &ada), ("/notes/1", &bob)]
            .map(|(path, who)| read(&pair[1], path, who).0 == "MISS");
        assert_eq!(seen, gone, "{body}");
    }
}
