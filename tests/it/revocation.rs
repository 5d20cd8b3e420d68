//! A revoked token stays revoked: on every instance, and through outages of Redis before, during and after.

use std::time::Duration;

use serde_json::json;

use crate::setup::{PATIENT, config, gateway, get_as, pair, revoke};
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Reply};
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::{Token, unix_seconds};

const ROUTES: &str = r#"
[[routes]]
name = "logout"
path = "/logout"
methods = ["POST"]
auth = "required"
logout = "gateway"
[[routes]]
name = "notes"
path = "/notes"
methods = ["GET"]
upstream = "app"
auth = "required"
[routes.cache]
ttl = "5m"
tags = ["notes"]
[[routes]]
name = "write"
path = "/notes"
methods = ["POST"]
upstream = "app"
auth = "required"
invalidates = ["notes"]
[[routes]]
name = "all"
path = "/**"
upstream = "app"
auth = "required"
"#;

/// How long sharing may take to come back once Redis has.
const BACK: Duration = Duration::from_secs(2);

fn is_revoked(gateway: &Gateway, token: &Token) -> bool {
    let reply = get_as(gateway.addr(), "/x", &token.sign());
    match reply.code() {
        200 => false,
        401 => {
            assert_eq!(reply.detail(), "Token revoked");
            true
        }
        other => panic!("{other}: {}", reply.text()),
    }
}

fn degraded(gateway: &Gateway) -> bool {
    gateway.metric("tollgate_store_degraded", &[]) == Some(1.0)
}

fn know(gateway: &Gateway, revocations: u16) {
    assert_eventually!(
        gateway.metric("tollgate_revocations_known", &[]) == Some(f64::from(revocations)),
        "the instance learns of the revocation without seeing the token"
    );
}

/// Kills Redis and waits until both have noticed.
fn take_away(redis: &Redis, gateways: &[&Gateway]) {
    redis.kill();
    for gateway in gateways {
        get_as(gateway.addr(), "/x", &Token::of("somebody").sign());
        assert_eventually!(degraded(gateway), "the outage is noticed");
    }
}

#[test]
fn a_logout_and_an_operators_revocations_hold_on_every_instance_at_once() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&config(&origin, PATIENT, ROUTES), &redis);
    let (out, by_jti, by_token, bystander) =
        (Token::of("ada"), Token::of("bob"), Token::of("eve").without("jti"), Token::of("dan"));
    for token in [&out, &by_jti, &by_token, &bystander] {
        assert!(!is_revoked(&first, token) && !is_revoked(&second, token));
    }
    let reply = first.client().post("/logout").bearer(&out.sign()).send();
    assert!(reply.status.is_success(), "{}", reply.text());
    assert!(revoke(&second, &json!({"jti": by_jti.jti()})));
    assert!(revoke(&second, &json!({"token": by_token.sign()})));
    for gateway in [&first, &second] {
        assert!([&out, &by_jti, &by_token].iter().all(|token| is_revoked(gateway, token)));
        assert!(!is_revoked(gateway, &bystander));
    }
    // Everything issued so far, but nothing issued later.
    assert!(revoke(&first, &json!({"subject": "dan"})));
    assert!(is_revoked(&first, &bystander) && is_revoked(&second, &bystander));
    let later = Token::of("dan").claim("iat", unix_seconds() + 5);
    assert!(!is_revoked(&first, &later) && !is_revoked(&second, &later));
    assert!(redis.keys_without_ttl().iter().all(|key| key.starts_with("cache_tag:")));
}

#[test]
fn what_was_revoked_before_an_outage_holds_during_it_also_where_it_was_only_heard_of() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let config = config(&origin, "", ROUTES);
    let [first, second] = pair(&config, &redis);
    let (token, subject) = (Token::of("ada"), Token::of("bob"));
    // The subscription stands once an instance hears of something.
    assert_eventually!(
        {
            revoke(&first, &json!({"jti": "warm-up"}));
            second.metric("tollgate_revocations_known", &[]) == Some(1.0)
        },
        "the instances hear of each other"
    );
    assert!(revoke(&first, &json!({"jti": token.jti()})));
    assert!(revoke(&first, &json!({"subject": "bob"})));
    know(&second, 3);
    let third = gateway(&config, &redis.url());
    know(&third, 3);
    take_away(&redis, &[&first, &second, &third]);
    for gateway in [&first, &second, &third] {
        assert!(is_revoked(gateway, &token) && is_revoked(gateway, &subject));
        assert!(!is_revoked(gateway, &Token::of("dan")));
    }
}

#[test]
fn what_is_revoked_during_an_outage_holds_here_at_once_and_everywhere_after_it() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&config(&origin, "", ROUTES), &redis);
    take_away(&redis, &[&first, &second]);
    let tokens: Vec<Token> = (0..300).map(|number| Token::of(&format!("u{number}"))).collect();
    for token in &tokens[1..] {
        assert!(!revoke(&first, &json!({"jti": token.jti()})), "the store cannot know");
    }
    assert!(first.client().post("/logout").bearer(&tokens[0].sign()).send().status.is_success());
    assert!(is_revoked(&first, &tokens[0]) && is_revoked(&first, &tokens[299]));
    assert!(!is_revoked(&second, &tokens[0]), "nobody could tell");

    redis.restart();
    assert_eventually!(
        is_revoked(&second, &tokens[0]) && is_revoked(&second, &tokens[299]),
        "the other instance refuses them too",
        BACK
    );
    // And through the next outage, although it never saw most of them.
    know(&second, 300);
    take_away(&redis, &[&first, &second]);
    assert!(tokens.iter().step_by(20).all(|token| is_revoked(&second, token)));
}

#[test]
fn what_redis_refuses_to_write_is_not_called_shared_and_is_handed_over_when_it_writes_again() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&config(&origin, "", ROUTES), &redis);
    let set = |memory: &str| {
        redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(memory).exec(&mut redis.client()).unwrap();
    };
    let (token, subject) = (Token::of("ada"), Token::of("bob"));
    assert!(!is_revoked(&second, &token) && !is_revoked(&second, &subject));
    set("1");
    assert!(!revoke(&first, &json!({"jti": token.jti()})), "Redis is full");
    assert!(!revoke(&first, &json!({"subject": "bob"})), "Redis is full");
    assert!(is_revoked(&first, &token) && is_revoked(&first, &subject));
    set("0");
    assert_eventually!(
        is_revoked(&second, &token) && is_revoked(&second, &subject),
        "the other instance hears of it",
        BACK
    );
}

#[test]
fn a_revocation_that_one_late_answer_kept_from_redis_is_handed_over_without_an_outage() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let config = config(&origin, "breaker_failures = 100", ROUTES);
    let first = gateway(&config, &relay.redis_url());
    let second = gateway(&config, &redis.url());
    let token = Token::of("ada");
    assert!(!is_revoked(&second, &token));
    relay.black_hole();
    let shared = revoke(&first, &json!({"jti": token.jti()}));
    relay.restore();
    assert!(!shared, "no answer came");
    assert!(is_revoked(&first, &token));
    assert_eventually!(is_revoked(&second, &token), "the other instance hears of it", BACK);
}

#[test]
fn what_is_written_during_an_outage_is_not_served_stale_after_it() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let version = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(1));
    let current = std::sync::Arc::clone(&version);
    origin.answer(move |_| Reply::text(200, &current.load(std::sync::atomic::Ordering::SeqCst).to_string()));
    let relay = Relay::to(redis.addr());
    let config = config(&origin, "", ROUTES);
    let [first, second] = [gateway(&config, &relay.redis_url()), gateway(&config, &relay.redis_url())];
    let token = Token::of("ada").sign();
    let read = |gateway: &Gateway| get_as(gateway.addr(), "/notes", &token).text();
    assert_eventually!(
        {
            let reply = get_as(second.addr(), "/notes", &token);
            read(&first) == "1" && reply.header("x-cache") == Some("HIT")
        },
        "both have it in their caches"
    );
    relay.cut();
    for gateway in [&first, &second] {
        read(gateway);
        assert_eventually!(degraded(gateway), "the outage is noticed");
    }
    version.store(2, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(first.client().post("/notes").bearer(&token).send().code(), 200);
    assert_eq!(read(&first), "2", "its own write shows at once");
    relay.restore();
    assert_eventually!(read(&second) == "2", "the other instance reads the new one", BACK);
    assert_eq!(read(&first), "2");
}
