//! Reading, resetting and granting what limits have counted: by clients for themselves, by operators for anybody.

use serde_json::{Value, json};

use crate::setup::{PATIENT, config, counter, gateway, pair};
use crate::support::client::Response;
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::holds_eventually;
use crate::support::origin::Origin;
use crate::support::redis::Redis;
use crate::support::token::Token;

const LIMITS: &str = r#"
[policies.plan]
key = "caller"
plan = true
algorithm = "ALGORITHM"
[policies.login]
key = ["ip", "route"]
limit = 5
window = "60s"
[plans.anonymous]
minute = 4
[plans.pro]
windows = [{ limit = 6, window = "60s" }, { limit = 100, window = "1h" }]
[[routes]]
name = "all"
path = "/**"
upstream = "app"
auth = "optional"
limits = ["plan"]
"#;

fn limits(algorithm: &str) -> String {
    LIMITS.replace("ALGORITHM", algorithm)
}

fn quota(gateway: &Gateway, token: Option<&str>) -> Response {
    let request = gateway.client().get("/_tollgate/quota");
    match token {
        Some(token) => request.bearer(token).send(),
        None => request.send(),
    }
}

fn operate(gateway: &Gateway, call: &str, body: &Value) -> Value {
    let path = format!("/api/v1/quota/{call}");
    let reply = gateway.admin().post(&path).bearer(ADMIN_TOKEN).json(body).send();
    assert_eq!(reply.code(), 200, "{}", reply.text());
    reply.json()
}

fn left(quota: &Value, policy: &str, window: &str) -> Option<u64> {
    let counters = quota["counters"].as_array()?;
    let counter = counters.iter().find(|one| one["policy"] == policy && one["window"] == window)?;
    assert_eq!(
        counter["used"].as_u64()? + counter["remaining"].as_u64()?,
        counter["limit"].as_u64()?,
        "{counter}"
    );
    counter["remaining"].as_u64()
}

#[test]
fn a_client_reads_its_own_quota_from_any_instance_without_using_it() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateways = pair(&config(&origin, PATIENT, &limits("fixed-window")), &redis);
    let ada = Token::of("ada").claim("subscription_plan", "pro").sign();
    for gateway in &gateways {
        assert_eq!(gateway.client().get("/x").bearer(&ada).send().code(), 200);
        assert_eq!(gateway.client().get("/x").send().code(), 200);
    }
    for gateway in gateways.iter().cycle().take(6) {
        let reply = quota(gateway, Some(&ada));
        assert_eq!(reply.code(), 200, "{}", reply.text());
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        let quota = reply.json();
        assert_eq!(left(&quota, "plan", "minute"), Some(4), "{quota}");
        assert_eq!(left(&quota, "plan", "hour"), Some(98), "{quota}");
        assert_eq!(left(&quota, "login", "minute"), None, "it counts by route");
        assert_eq!(quota["shared"], true);
        assert!(quota["counters"].as_array().unwrap().iter().all(|one| one.get("key").is_none()), "{quota}");
    }
    assert_eq!(left(&quota(&gateways[0], None).json(), "plan", "minute"), Some(2), "the anonymous plan");
    assert_eq!(counter(&redis, "rate_limit:plan:user:ada:minute"), Some(2));
    assert_eq!(origin.hits(), 4, "the quota is told by the gateway");
}

#[test]
fn the_quota_is_for_its_owner_and_only_by_reading_and_not_too_often() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [gateway, other] = pair(&config(&origin, PATIENT, &limits("fixed-window")), &redis);
    let token = Token::of("ada");
    let ada = token.sign();
    assert_eq!(quota(&gateway, Some("not-a-token")).code(), 401);
    assert_eq!(quota(&gateway, Some(&Token::of("ada").expires_in(-60).sign())).code(), 401);
    let posted = gateway.client().post("/_tollgate/quota").body("x").send();
    assert_eq!((posted.code(), posted.header("allow")), (405, Some("GET, HEAD")));

    let revoked = other.admin().post("/api/v1/revocations").bearer(ADMIN_TOKEN);
    assert_eq!(revoked.json(&json!({"jti": token.jti()})).send().code(), 200);
    assert_eq!(quota(&gateway, Some(&ada)).code(), 401, "a revoked token reads nothing");

    let codes: Vec<u16> = (0..70).map(|_| quota(&gateway, None).code()).collect();
    assert!(codes.iter().filter(|code| **code == 200).count() <= 60, "{codes:?}");
    assert_eq!(codes.last(), Some(&429));
    assert!(quota(&gateway, None).header("retry-after").is_some());
}

#[test]
fn an_operator_resets_and_grants_on_every_instance() {
    for algorithm in ["fixed-window", "sliding-window", "token-bucket", "sliding-log"] {
        let (redis, origin) = (Redis::start(), Origin::start());
        let gateways = pair(&config(&origin, PATIENT, &limits(algorithm)), &redis);
        let get = |number: usize| gateways[number % 2].client().get("/x").send().code();
        let admitted = |requests: usize| (0..requests).filter(|n| get(*n) == 200).count();
        let somebody = json!({"ip": "127.0.0.1"});
        assert_eq!(admitted(8), 4, "{algorithm}");

        let read = operate(&gateways[0], "read", &somebody);
        assert_eq!(left(&read, "plan", "minute"), Some(0), "{algorithm} {read}");
        assert_eq!(read["counters"][0]["key"], "rate_limit:plan:ip:127.0.0.1", "{read}");

        let granted = operate(&gateways[0], "grant", &json!({"ip": "127.0.0.1", "requests": 2}));
        assert_eq!(left(&granted, "plan", "minute"), Some(2), "{algorithm} {granted}");
        assert_eq!(granted["shared"], true);
        // The other instance had learned that the limit was reached.
        assert!(holds_eventually(|| get(1) == 200), "{algorithm}: the other instance admits again");
        assert_eq!(admitted(6), 1, "{algorithm}: two were granted");

        let reset = operate(&gateways[1], "reset", &json!({"ip": "127.0.0.1", "policy": "plan"}));
        assert_eq!(left(&reset, "plan", "minute"), Some(4), "{algorithm} {reset}");
        assert!(holds_eventually(|| get(0) == 200), "{algorithm}");
        assert_eq!(admitted(8), 3, "{algorithm}: the whole limit again");
        assert!(redis.keys_without_ttl().is_empty());
    }
}

#[test]
fn a_grant_to_nobody_known_creates_no_counter_and_unknown_names_are_told() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [gateway, _] = pair(&config(&origin, PATIENT, &limits("fixed-window")), &redis);
    operate(&gateway, "grant", &json!({"user": "ada", "plan": "pro", "requests": 1000}));
    operate(&gateway, "reset", &json!({"user": "ada"}));
    assert!(!redis.keys().iter().any(|key| key.starts_with("rate_limit:plan")), "{:?}", redis.keys());
    for body in [json!({"user": "ada", "policy": "nope"}), json!({"user": "ada", "plan": "nope"})] {
        let reply = gateway.admin().post("/api/v1/quota/read").bearer(ADMIN_TOKEN).json(&body).send();
        assert_eq!(reply.code(), 404, "{body}");
    }
    let reply = gateway.admin().post("/api/v1/quota/reset").json(&json!({"user": "ada"})).send();
    assert_eq!(reply.code(), 401);
}

#[test]
fn quotas_are_read_and_changed_in_memory_where_there_is_no_redis() {
    for algorithm in ["fixed-window", "sliding-window", "token-bucket", "sliding-log"] {
        let origin = Origin::start();
        let gateway = crate::setup::gateway(&config(&origin, PATIENT, &limits(algorithm)), "");
        let admitted = |requests: usize| {
            (0..requests).filter(|_| gateway.client().get("/x").send().code() == 200).count()
        };
        assert_eq!(admitted(6), 4, "{algorithm}");
        let read = quota(&gateway, None).json();
        assert_eq!((left(&read, "plan", "minute"), &read["shared"]), (Some(0), &json!(false)), "{algorithm}");
        operate(&gateway, "grant", &json!({"ip": "127.0.0.1", "requests": 3}));
        assert_eq!(admitted(6), 3, "{algorithm}");
        operate(&gateway, "reset", &json!({"ip": "127.0.0.1"}));
        assert_eq!(admitted(6), 4, "{algorithm}");
    }
}

#[test]
fn a_user_is_reset_whatever_the_plan_and_an_email_by_what_it_is() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let policies = r#"
[policies.plan]
key = "user"
plan = true
[policies.login]
key = "body:email"
algorithm = "sliding-log"
limit = 2
window = "900s"
[policies.key]
key = ["header:x-key", "ip"]
limit = 5
window = "60s"
[plans.pro]
windows = [{ limit = 3, window = "60s" }, { limit = 100, window = "1h" }]
[[routes]]
name = "login"
path = "/login"
methods = ["POST"]
upstream = "app"
limits = ["login"]
[[routes]]
name = "all"
path = "/**"
upstream = "app"
auth = "optional"
limits = ["plan", "key"]
"#;
    let [gateway, other] = pair(&config(&origin, PATIENT, policies), &redis);
    let ada = Token::of("ada").claim("subscription_plan", "pro").sign();
    let get = || gateway.client().get("/x").header("x-key", "k1").bearer(&ada).send().code();
    assert_eq!([(); 4].map(|()| get()), [200, 200, 200, 429]);
    operate(&other, "reset", &json!({"user": "ada", "policy": "plan"}));
    assert_eq!(counter(&redis, "rate_limit:plan:ada:minute"), None);
    assert!(holds_eventually(|| get() == 200), "the windows of her plan were reset");

    let login = |gateway: &Gateway| {
        gateway
            .client()
            .post("/login")
            .json(&json!({"email": "Ada@Example.com", "password": "x"}))
            .send()
            .code()
    };
    assert_eq!([login(&gateway), login(&other), login(&gateway)], [200, 200, 429]);
    let address = json!({"values": {"body:email": " ada@example.com "}, "policy": "login"});
    let read = operate(&other, "read", &address);
    assert_eq!(left(&read, "login", "900s"), Some(0), "{read}");
    assert!(!read.to_string().contains("example.com"), "{read}");
    operate(&other, "reset", &address);
    assert!(holds_eventually(|| login(&gateway) == 200));

    let asked = gateway.client().get("/_tollgate/quota").header("x-key", "k1").send().json();
    assert_eq!(left(&asked, "key", "minute"), Some(1), "{asked}");
    assert_eq!(left(&quota(&gateway, None).json(), "key", "minute"), None, "nothing says whose");
    for (values, counters) in [(json!({"cookie:sid": "x"}), 0), (json!({"body:name": "ada"}), 0)] {
        let read = operate(&gateway, "read", &json!({"values": values, "ip": "127.0.0.1"}));
        assert_eq!(read["counters"].as_array().unwrap().len(), counters, "{read}");
    }
    for bad in [json!({"x-key": "k1"}), json!({"query:q": "1"}), json!({"header:": "1"})] {
        let reply = gateway.admin().post("/api/v1/quota/read").bearer(ADMIN_TOKEN);
        assert_eq!(reply.json(&json!({"values": bad})).send().code(), 422, "{bad}");
    }
}

#[test]
fn limits_that_only_watch_are_for_operators_and_reading_has_counters_of_its_own() {
    for with_redis in [true, false] {
        let (redis, origin) = (Redis::start(), Origin::start());
        let policies = "[policies.quota]\nkey = \"ip\"\nalgorithm = \"sliding-window\"\nlimit = 4\nwindow = \"60s\"\n\
                        candidate = { limit = 2, window = \"60s\" }\n\
                        [[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\nlimits = [\"quota\"]\n";
        let url = if with_redis { redis.url() } else { String::new() };
        let gateway = crate::setup::gateway(&config(&origin, PATIENT, policies), &url);
        let get = || gateway.client().get("/x").send().code();
        assert_eq!([get(), get()], [200, 200]);
        for _ in 0..5 {
            let told = quota(&gateway, None).json();
            assert_eq!(told["counters"].as_array().unwrap().len(), 1, "{told}");
            assert_eq!(left(&told, "quota", "minute"), Some(2), "reading changes nothing: {told}");
        }
        let read = operate(&gateway, "read", &json!({"ip": "127.0.0.1"}));
        assert_eq!(left(&read, "quota-candidate", "minute"), Some(0), "{read}");
        assert_eq!([get(), get(), get()], [200, 200, 429]);
    }
}

#[test]
fn a_quota_is_read_under_every_spelling_that_routes_take() {
    let origin = Origin::start();
    let text = |server: &str| {
        let text = config(&origin, PATIENT, &limits("fixed-window"));
        assert!(text.contains("[server]"));
        text.replace("[server]", &format!("[server]\n{server}"))
    };
    let told = |gateway: &Gateway, path: &str| {
        let reply = gateway.client().get(path).send();
        reply.code() == 200 && reply.header("content-type") == Some("application/json")
    };
    let lenient = gateway(&text("case_insensitive_paths = true\nignore_trailing_slash = true"), "");
    for path in ["/_tollgate/quota", "/_Tollgate/QUOTA", "/_tollgate/quota/"] {
        assert!(told(&lenient, path), "{path}");
    }
    assert_eq!(origin.hits(), 0);
    let strict = gateway(&text(""), "");
    assert_eq!(strict.client().get("/_Tollgate/quota").send().code(), 200);
    assert_eq!(origin.hits(), 1, "it is the route's");
}
