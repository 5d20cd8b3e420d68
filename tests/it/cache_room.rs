//! Redis holds counters and revocations beside cached responses: these never take the room of those, and a response
//! that Redis does not take is nobody's outage.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use serde_json::json;

use crate::cache::config;
use crate::support::concurrently;
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::origin::{Origin, Reply};
use crate::support::redis::Redis;

/// The bound of the small Redis, in bytes.
const MOST: u64 = 8 << 20;

fn gateway(redis: &Redis, origin: &Origin) -> Gateway {
    let text = config(&origin.addr().to_string(), "");
    let gateway = Gateway::builder().config(&text).env("REDIS_URL", &redis.url()).start();
    assert_eventually!(gateway.metric("tollgate_store_degraded", &[]) == Some(0.0), "Redis is in use");
    // Shared counting has begun.
    assert_eventually!(
        {
            let before = counted(&gateway, "redis");
            get(&gateway, "/open/ready");
            counted(&gateway, "redis") > before
        },
        "limits are shared"
    );
    gateway
}

fn get(gateway: &Gateway, path: &str) {
    let response = gateway.client().get(path).host("api.example").send();
    assert_eq!(response.code(), 200, "{path}");
}

fn counted(gateway: &Gateway, source: &str) -> f64 {
    gateway.metric("tollgate_limit_decisions_total", &[("source", source)]).unwrap_or_default()
}

fn of_redis(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric("tollgate_cache_redis_total", &[("outcome", outcome)]).unwrap_or_default()
}

fn large(origin: &Origin) {
    let body = "x".repeat(8 << 10);
    origin.answer(move |_| Reply::text(200, &body).header("cache-control", "public, max-age=600"));
}

fn used_memory(redis: &Redis) -> u64 {
    let info: String = redis::cmd("INFO").arg("memory").query(&mut redis.client()).expect("INFO");
    let line = info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("used_memory");
    line.trim().parse().expect("a number")
}

/// Revokes and purges; every instance hears of it.
fn operates(gateway: &Gateway) {
    for (path, body) in [
        ("/api/v1/revocations", json!({"subject": "ada"})),
        ("/api/v1/cache/purge", json!({"tag": "items:ada"})),
        ("/api/v1/cache/purge", json!({"prefix": "/nothing/here/"})),
    ] {
        let answer = gateway.admin().post(path).bearer(ADMIN_TOKEN).json(&body).send();
        assert_eq!(answer.json()["shared"], true, "{path} {body}: {}", answer.text());
    }
}

#[test]
fn a_flood_of_responses_leaves_room_for_limits_and_revocations() {
    let redis = Redis::start_with(&["--maxmemory", "8mb", "--maxmemory-policy", "noeviction"]);
    let origin = Origin::start();
    large(&origin);
    let gateways = [gateway(&redis, &origin), gateway(&redis, &origin)];
    let alone: Vec<f64> = gateways.iter().map(|gateway| counted(gateway, "memory")).collect();
    // 16 MiB of bodies, to both instances.
    let next = AtomicUsize::new(0);
    concurrently(8, |_| {
        loop {
            let number = next.fetch_add(1, SeqCst);
            if number >= 2_000 {
                return;
            }
            get(&gateways[number % 2], &format!("/open/{number}"));
        }
    });
    let used = used_memory(&redis);
    assert!(used < MOST / 100 * 95, "{used} bytes are in use");
    for (gateway, alone) in gateways.iter().zip(alone) {
        operates(gateway);
        assert_eq!(gateway.metric("tollgate_store_transitions_total", &[("to", "degraded")]), Some(0.0));
        assert!((counted(gateway, "memory") - alone).abs() < 0.5, "limits were counted alone");
        assert_eq!(gateway.count_logs("Redis is unavailable"), 0);
        assert!(of_redis(gateway, "written") > 0.0 && of_redis(gateway, "no_room") > 0.0);
        assert!(gateway.count_logs("cached responses stay in memory for now") <= 1);
    }
    // Without those entries there is room again.
    redis.flush();
    let written = of_redis(&gateways[0], "written");
    let next = AtomicUsize::new(0);
    assert_eventually!(
        {
            get(&gateways[0], &format!("/open/again/{}", next.fetch_add(1, SeqCst)));
            of_redis(&gateways[0], "written") > written
        },
        "entries are written again"
    );
}

#[test]
fn a_redis_that_refuses_responses_alone_is_no_outage() {
    let (redis, origin) = (Redis::start(), Origin::start());
    large(&origin);
    let gateway = gateway(&redis, &origin);
    let alone = counted(&gateway, "memory");
    // Everything but what belongs to entries may be written.
    let keys = [
        "rate_limit",
        "blacklist",
        "revoked_before",
        "ban",
        "user_limits",
        "cache_tag",
        "cache_prefixes",
        "session",
        "tollgate",
    ];
    let mut acl = redis::cmd("ACL");
    acl.arg("SETUSER").arg("default").arg("resetkeys").arg("%R~cache:*");
    for key in keys {
        acl.arg(format!("~{key}*"));
    }
    acl.exec(&mut redis.client()).expect("ACL");
    let next = AtomicUsize::new(0);
    assert_eventually!(
        {
            (0..20).for_each(|_| get(&gateway, &format!("/open/{}", next.fetch_add(1, SeqCst))));
            of_redis(&gateway, "failed") > 0.0 && of_redis(&gateway, "no_room") > 0.0
        },
        "entries are refused"
    );
    (0..100).for_each(|_| get(&gateway, &format!("/open/{}", next.fetch_add(1, SeqCst))));
    assert_eq!(gateway.metric("tollgate_store_transitions_total", &[("to", "degraded")]), Some(0.0));
    assert!((counted(&gateway, "memory") - alone).abs() < 0.5, "limits were counted alone");
    assert_eq!(gateway.count_logs("Redis is unavailable"), 0);
    assert_eq!(gateway.count_logs("Redis refuses cached responses"), 1);
    operates(&gateway);
    redis::cmd("ACL").arg("SETUSER").arg("default").arg("allkeys").exec(&mut redis.client()).expect("ACL");
    let written = of_redis(&gateway, "written");
    let next = AtomicUsize::new(0);
    assert_eventually!(
        {
            get(&gateway, &format!("/open/again/{}", next.fetch_add(1, SeqCst)));
            std::thread::sleep(Duration::from_millis(50));
            of_redis(&gateway, "written") > written
        },
        "entries are written again"
    );
    gateway.wait_for_log("Redis takes cached responses again");
}
