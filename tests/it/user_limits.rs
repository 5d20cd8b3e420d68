//! `user_limits:<user>`: what another program writes there changes that user's plan limits from the next refresh on,
//! and no request waits for it.

use std::time::Duration;

use redis::Commands as _;

use crate::setup::{ROOMY, config, gateway};
use crate::support::gateway::Gateway;
use crate::support::origin::Origin;
use crate::support::redis::Redis;
use crate::support::token::Token;

fn text(origin: &Origin) -> String {
    let rest = "
[limits]
user_limits = true
user_limits_refresh = \"200ms\"
multiplier_cap = 4
[plans.free]
minute = 1000
hour = 10000
[policies.plan]
key = \"caller\"
plan = true
[[routes]]
name = \"all\"
path = \"/**\"
upstream = \"app\"
auth = \"optional\"
limits = [\"plan\"]
";
    config(origin, ROOMY, rest)
}

/// The limits of the minute and the hour that this user is told.
fn told(gateway: &Gateway, token: &str) -> Vec<u64> {
    let response = gateway.client().get("/x").bearer(token).send();
    let policies = response.header("ratelimit-policy").unwrap().to_owned();
    let quota = |item: &str| item.split(";q=").nth(1)?.split(';').next()?.parse().ok();
    policies.split(", ").filter_map(quota).collect()
}

fn write(redis: &Redis, user: &str, fields: &[(&str, &str)]) {
    let () = redis.client().del(format!("user_limits:{user}")).unwrap();
    let () = redis.client().hset_multiple(format!("user_limits:{user}"), fields).unwrap();
}

#[test]
fn multiplier_and_windows_apply_from_the_next_refresh_on() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&text(&origin), &redis.url());
    let (ada, bob) = (Token::of("ada").sign(), Token::of("bob").claim("rate_limit_multiplier", 3).sign());
    assert_eq!(told(&gateway, &ada), [1_000, 10_000]);
    for (fields, limits) in [
        (&[("multiplier", "0.5")][..], [500, 5_000]),
        (&[("multiplier", "1.5"), ("minute", "30")], [45, 15_000]),
        (&[("minute", "7"), ("hour", "9"), ("day", "3")], [7, 9]),
        (&[("multiplier", "100")], [4_000, 40_000]),
        (&[("multiplier", "NaN"), ("minute", "-5"), ("hour", "none")], [1_000, 10_000]),
        (&[("multiplier", "0"), ("minute", "0")], [1_000, 10_000]),
    ] {
        // Something else in between, so that a change is seen also where the result is the first one again.
        write(&redis, "ada", &[("minute", "111")]);
        assert_eventually!(told(&gateway, &ada)[0] == 111, "the change applies");
        write(&redis, "ada", fields);
        assert_eventually!(told(&gateway, &ada) == limits, "{fields:?}");
    }
    write(&redis, "bob", &[("multiplier", "0.5")]);
    assert_eq!(told(&gateway, &bob).len(), 2);
    assert_eventually!(told(&gateway, &bob) == [1_500, 15_000], "times the token's");
    write(&redis, "bob", &[("multiplier", "2")]);
    assert_eventually!(told(&gateway, &bob) == [4_000, 40_000], "together at most the cap");
}

#[test]
fn what_was_known_holds_while_redis_is_away_and_when_the_key_is_something_else() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&text(&origin), &redis.url());
    let ada = Token::of("ada").sign();
    write(&redis, "ada", &[("multiplier", "2")]);
    assert_eventually!(told(&gateway, &ada)[0] == 2_000, "it is known");
    let () = redis.client().set("user_limits:ada", "no hash").unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!([told(&gateway, &ada)[0], told(&gateway, &ada)[0]], [2_000; 2]);
    redis.kill();
    assert_eventually!(gateway.metric("tollgate_store_degraded", &[]) == Some(1.0), "the outage shows");
    for _ in 0..5 {
        assert_eq!(told(&gateway, &ada)[0], 2_000);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_user_is_read_once_for_many_requests_and_an_anonymous_caller_never() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&text(&origin).replace("refresh = \"200ms\"", "refresh = \"1h\""), &redis.url());
    let ada = Token::of("ada").sign();
    assert_eventually!(
        gateway.admin().get("/health").send().json()["redis"]["status"] == "connected",
        "the gateway reaches Redis"
    );
    let mut monitor = redis.monitor();
    for _ in 0..30 {
        assert_eq!(told(&gateway, &ada), [1_000, 10_000]);
        gateway.client().get("/x").send();
    }
    let reads = monitor.commands().into_iter().filter(|command| command.name() == "HMGET").count();
    assert_eq!(reads, 1);
}
