//! Routes that tell the gateway's own health on the public listener.

use http::Method;
use serde_json::{Value, json};

use crate::presets::in_front_of;
use crate::support::client::Response;
use crate::support::gateway::{Builder, Gateway};
use crate::support::origin::Origin;
use crate::support::ports::free_addr;
use crate::support::redis::Redis;
use crate::support::token::Token;

const ROUTES: &str = r#"
[policies.ip]
key = "ip"
limit = 3
window = "60s"
[defaults]
upstream = "app"
auth = "required"
limits = ["ip"]
[[routes]]
name = "health"
path = "/health"
health = "full"
[[routes]]
name = "brief"
path = "/brief"
health = "brief"
[[routes]]
name = "limited"
path = "/limited"
health = "brief"
limits = ["ip"]
[[routes]]
name = "operators"
path = "/operators"
health = "full"
auth = "required"
permissions = ["operate"]
[[routes]]
name = "open"
path = "/open/**"
auth = "none"
limits = []
[routes.cache]
ttl = "1m"
shared = true
"#;

fn builder(origin: &Origin) -> Builder {
    Gateway::builder().config(&format!("[upstreams.app]\nmembers = \"{}\"\n{ROUTES}", origin.addr()))
}

fn health(gateway: &Gateway) -> Value {
    gateway.client().get("/health").send().json()
}

fn own(response: &Response) -> (u16, Option<&str>, Option<&str>, Option<&str>) {
    let header = |name| response.header(name);
    (response.code(), header("cache-control"), header("x-cache"), header("x-ratelimit-limit"))
}

#[test]
fn it_tells_of_redis_the_cache_and_the_connections() {
    let (origin, redis) = (Origin::start(), Redis::start());
    let gateway = builder(&origin).env("REDIS_URL", &redis.url()).start();
    assert_eventually!(health(&gateway)["redis"]["keys"].is_u64(), "Redis was looked at");
    let told = health(&gateway);
    assert_eq!((&told["status"], &told["redis"]["status"]), (&json!("ok"), &json!("connected")));
    assert!(told["redis"]["memory_bytes"].as_u64().unwrap() > 100_000, "{told}");
    assert!(told["redis"]["latency_ms"].as_f64().unwrap() > 0.0, "{told}");
    assert_eq!(told["cache"]["hit_ratio"], Value::Null, "nobody asked the cache so far");
    assert!(told["active_connections"].as_u64().unwrap() >= 1, "{told}");
    assert_eq!(told["upstreams"][0], json!({ "name": "app", "members": 1, "available": 1 }));
    assert_eq!(told["version"], env!("CARGO_PKG_VERSION"));
    for _ in 0..4 {
        gateway.client().get("/open/a").send();
    }
    let told = health(&gateway);
    assert!(told["cache"]["hit_ratio"].as_f64().unwrap() > 0.5, "{told}");
    assert!(told["cache"]["entries"].as_u64().unwrap() >= 1 && told["cache"]["bytes"].as_u64().unwrap() > 0);
    let before = told["redis"]["keys"].as_u64().unwrap();
    for number in 0..10 {
        let _: () = redis::Commands::set(&mut redis.client(), format!("more:{number}"), 1).unwrap();
    }
    assert_eventually!(
        health(&gateway)["redis"]["keys"].as_u64().unwrap() >= before + 10,
        "it is looked at again"
    );
    // The same body as operators have.
    let admin = gateway.admin().get("/health").send().json();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&admin), names(&health(&gateway)));
    assert_eq!(origin.received_at("/health").len(), 0);
}

#[test]
fn redis_that_is_away_makes_it_degraded_and_what_is_unknown_null() {
    let (origin, redis) = (Origin::start(), Redis::start());
    let gateway = builder(&origin).env("REDIS_URL", &redis.url()).start();
    assert_eventually!(health(&gateway)["redis"]["status"] == "connected", "Redis was looked at");
    redis.kill();
    assert_eventually!(health(&gateway)["redis"]["status"] == "disconnected", "the outage is noticed");
    let told = health(&gateway);
    assert_eq!(told["status"], "degraded");
    for unknown in ["memory_bytes", "keys", "latency_ms"] {
        assert_eq!(told["redis"][unknown], Value::Null, "{told}");
    }
    assert_eq!(gateway.client().get("/health").send().code(), 200, "a gateway without Redis does its work");
    redis.restart();
    assert_eventually!(health(&gateway)["redis"]["keys"].is_u64(), "the return is noticed");
    assert_eq!(health(&gateway)["status"], "ok");
}

#[test]
fn without_redis_it_says_so_and_is_well() {
    let origin = Origin::start();
    let gateway = builder(&origin).start();
    let told = health(&gateway);
    let redis = json!({ "status": "disabled", "latency_ms": null, "memory_bytes": null, "keys": null });
    assert_eq!((&told["status"], &told["redis"]), (&json!("ok"), &redis));
    assert!(told["cache"].is_object() && told["in_flight"].is_u64(), "{told}");
}

#[test]
fn it_is_an_answer_like_any_other() {
    let origin = Origin::start();
    let gateway = builder(&origin).start();
    let h2c = format!("[server]\nlisten = \"{}\"\nlisten_h2c = \"{{listen}}\"\n", free_addr());
    let h2c = Gateway::builder()
        .config(&format!("[upstreams.app]\nmembers = \"{}\"\n{ROUTES}{h2c}", origin.addr()))
        .start();
    for client in [gateway.client(), h2c.h2c_client()] {
        let response = client.get("/health").send();
        assert_eq!(own(&response), (200, Some("no-store"), None, None), "no token, no default limits");
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert!(response.header("x-request-id").is_some() && response.header("x-cache-key").is_none());
        let head = client.request(Method::HEAD, "/health").send();
        assert_eq!((own(&head), head.body.len()), ((200, Some("no-store"), None, None), 0));
        assert!(head.header("content-length").is_some_and(|length| length != "0"));
    }
    let client = gateway.client();
    let refused = client.post("/health").send();
    assert_eq!((refused.code(), refused.header("allow")), (405, Some("GET, HEAD")));
    let brief = client.get("/brief").send().json();
    assert_eq!(
        brief.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["status", "uptime_seconds", "version"]
    );

    for remaining in ["2", "1", "0"] {
        let response = client.get("/limited").send();
        assert_eq!((own(&response).0, own(&response).3), (200, Some("3")));
        assert_eq!(response.header("x-ratelimit-remaining"), Some(remaining));
    }
    assert_eq!(client.get("/limited").send().code(), 429);

    assert_eq!(client.get("/operators").send().code(), 401);
    let reader = Token::of("ada").sign();
    assert_eq!(client.get("/operators").bearer(&reader).send().code(), 403);
    let operator = Token::of("ada").claim("permissions", json!(["operate"])).sign();
    assert_eq!(client.get("/operators").bearer(&operator).send().code(), 200);
    assert_eq!(origin.hits(), 0);
}

#[test]
fn a_pool_of_probes_asks_redis_no_more_often() {
    let (origin, redis) = (Origin::start(), Redis::start());
    let gateway = builder(&origin).env("REDIS_URL", &redis.url()).start();
    assert_eventually!(health(&gateway)["redis"]["keys"].is_u64(), "Redis was looked at");
    let asked = || -> u64 {
        let info: String = redis::cmd("INFO").arg("commandstats").query(&mut redis.client()).unwrap();
        let line = info.lines().find(|line| line.starts_with("cmdstat_dbsize:")).unwrap_or_default();
        let calls = line.split(['=', ',']).nth(1).unwrap_or("0");
        calls.parse().unwrap()
    };
    let before = asked();
    for _ in 0..300 {
        assert_eq!(gateway.client().get("/health").send().code(), 200);
    }
    assert!(asked() - before < 100, "{} questions for 300 answers", asked() - before);
}

#[test]
fn the_training_system_has_one_in_full() {
    let (origin, redis) = (Origin::start(), Redis::start());
    let gateway = in_front_of("stms", origin.addr(), &redis.url()).start();
    assert_eventually!(health(&gateway)["redis"]["keys"].is_u64(), "Redis was looked at");
    for _ in 0..20 {
        assert_eq!(own(&gateway.client().get("/health").send()), (200, Some("no-store"), None, None));
    }
    assert_eq!(origin.hits(), 0);
    let memory_only = in_front_of("stms", origin.addr(), "").start();
    assert_eq!(health(&memory_only)["redis"]["status"], "disabled");
}
