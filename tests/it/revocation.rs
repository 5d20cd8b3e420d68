//! A revoked token stays revoked: on every instance, and through outages of Redis before, during and after.

use std::time::Duration;

use serde_json::json;

use crate::setup::{
    PATIENT, ROOMY, TWO_ISSUERS, config, degraded, gateway, get_as, pair, revoke, revoke_everywhere, ttl,
};
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::holds_within;
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
name = "logout-everywhere"
path = "/logout-everywhere"
methods = ["POST"]
auth = "required"
logout = "gateway"
logout_everywhere = true
[[routes]]
name = "leave"
path = "/leave"
methods = ["POST"]
upstream = "app"
auth = "required"
logout = "forward"
logout_everywhere = true
[[routes]]
name = "admins"
path = "/admins"
upstream = "app"
auth = "required"
permissions = ["admin"]
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
/// Every instance has heard of a revocation within this.
const HEARD: Duration = Duration::from_secs(1);

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

fn know(gateway: &Gateway, revocations: u16) {
    assert_eventually!(
        gateway.metric("tollgate_revocations_known", &[]) == Some(f64::from(revocations)),
        "the instance learns of the revocation without seeing the token"
    );
}

/// Waits until news from `speaker` reaches `listener`.
fn hears(listener: &Gateway, speaker: &Gateway) {
    let known = || listener.metric("tollgate_revocations_known", &[]).unwrap_or_default();
    assert_eventually!(
        {
            let before = known();
            revoke(speaker, &json!({"jti": format!("{:032x}", fastrand::u128(..))}));
            holds_within(Duration::from_millis(100), || known() > before)
        },
        "the instances hear of each other"
    );
}

fn log_out(gateway: &Gateway, path: &str, token: &Token) {
    let reply = gateway.client().post(path).bearer(&token.sign()).send();
    assert!(reply.status.is_success(), "{}", reply.text());
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
    revoke_everywhere(&second, &json!({"jti": by_jti.jti()}));
    revoke_everywhere(&second, &json!({"token": by_token.sign()}));
    for gateway in [&first, &second] {
        assert!([&out, &by_jti, &by_token].iter().all(|token| is_revoked(gateway, token)));
        assert!(!is_revoked(gateway, &bystander));
    }
    // Everything issued so far, but nothing issued later.
    revoke_everywhere(&first, &json!({"subject": "dan"}));
    assert!(is_revoked(&first, &bystander) && is_revoked(&second, &bystander));
    let later = Token::of("dan").claim("iat", unix_seconds() + 5);
    assert!(!is_revoked(&first, &later) && !is_revoked(&second, &later));
    assert!(redis.keys_without_ttl().iter().all(|key| key.starts_with("cache_tag:")));
}

#[test]
fn what_was_revoked_before_an_outage_holds_during_it_also_where_it_was_only_heard_of() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let config = config(&origin, ROOMY, ROUTES);
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
    revoke_everywhere(&first, &json!({"jti": token.jti()}));
    revoke_everywhere(&first, &json!({"subject": "bob"}));
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
    let [first, second] = pair(&config(&origin, ROOMY, ROUTES), &redis);
    take_away(&redis, &[&first, &second]);
    let tokens: Vec<Token> = (0..300).map(|number| Token::of(&format!("u{number}"))).collect();
    for token in &tokens[1..] {
        assert!(!revoke(&first, &json!({"jti": token.jti()})), "the store cannot know");
    }
    assert!(first.client().post("/logout").bearer(&tokens[0].sign()).send().status.is_success());
    assert!(is_revoked(&first, &tokens[0]) && is_revoked(&first, &tokens[299]));
    let owed = || first.metric("tollgate_revocations_pending", &[]);
    assert_eq!(owed(), Some(300.0));
    assert!(!is_revoked(&second, &tokens[0]), "nobody could tell");

    redis.restart();
    assert_eventually!(
        is_revoked(&second, &tokens[0]) && is_revoked(&second, &tokens[299]),
        "the other instance refuses them too",
        BACK
    );
    assert_eventually!(owed() == Some(0.0), "nothing is owed any more");
    assert_eq!(first.metric("tollgate_revocations_dropped_total", &[]), Some(0.0));
    // And through the next outage, although it never saw most of them.
    know(&second, 300);
    take_away(&redis, &[&first, &second]);
    assert!(tokens.iter().step_by(20).all(|token| is_revoked(&second, token)));
}

#[test]
fn what_was_heard_of_holds_although_redis_has_lost_everything() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&config(&origin, ROOMY, ROUTES), &redis);
    hears(&second, &first);
    let (out, everywhere, sibling) = (Token::of("ada"), Token::of("bob"), Token::of("bob"));
    let known = |gateway: &Gateway| gateway.metric("tollgate_revocations_known", &[]);
    log_out(&first, "/logout", &out);
    log_out(&first, "/logout-everywhere", &everywhere);
    assert_eventually!(known(&second) == known(&first), "the other instance hears of it", HEARD);
    redis.flush();
    for gateway in [&first, &second] {
        assert!([&out, &everywhere, &sibling].iter().all(|token| is_revoked(gateway, token)));
    }
    // It comes back empty.
    take_away(&redis, &[&first, &second]);
    redis.restart();
    for gateway in [&first, &second] {
        assert_eventually!(!degraded(gateway), "the recovery shows in the metrics");
        assert!([&out, &everywhere, &sibling].iter().all(|token| is_revoked(gateway, token)));
    }
}

#[test]
fn what_redis_refuses_to_write_is_not_called_shared_and_is_handed_over_when_it_writes_again() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&config(&origin, ROOMY, ROUTES), &redis);
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
    let config = config(&origin, &format!("{ROOMY}\nbreaker_failures = 100"), ROUTES);
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
    let config = config(&origin, ROOMY, ROUTES);
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

#[test]
fn a_logout_everywhere_ends_all_tokens_of_the_user_and_what_is_cached_for_it() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&config(&origin, PATIENT, ROUTES), &redis);
    let (phone, laptop, script) = (Token::of("ada"), Token::of("ada"), Token::of("ada").without("jti"));
    // Issued by a clock that is ahead of the gateway's.
    let ahead = Token::of("ada").claim("iat", unix_seconds() + 20);
    let bystander = Token::of("bob");
    let all = [&phone, &laptop, &script, &ahead, &bystander];
    assert!(all.iter().all(|token| !is_revoked(&first, token) && !is_revoked(&second, token)));
    let read = |gateway: &Gateway, token: &Token| {
        let reply = get_as(gateway.addr(), "/notes", &token.sign());
        (reply.code(), reply.header("x-cache").unwrap_or_default().to_owned())
    };
    let new = Token::of("ada").claim("iat", unix_seconds() + 10);
    for token in [&new, &bystander] {
        assert_eventually!(read(&second, token) == (200, "HIT".to_owned()), "it is in the cache");
    }

    log_out(&first, "/logout-everywhere", &phone);
    for gateway in [&second, &first] {
        assert!([&phone, &laptop, &script].iter().all(|token| is_revoked(gateway, token)));
        assert!(!is_revoked(gateway, &new) && !is_revoked(gateway, &bystander));
    }
    assert_eq!(read(&second, &new), (200, "MISS".to_owned()), "what was cached for the user is gone");
    assert_eq!(read(&second, &bystander), (200, "HIT".to_owned()));
    // The token it was asked with goes by itself too, whenever it says it was issued.
    assert!(!is_revoked(&second, &ahead));
    log_out(&first, "/logout-everywhere", &ahead);
    assert!(is_revoked(&second, &ahead));
    assert!(ttl(&redis, "revoked_before:ada") > 29 * 86_400);
}

#[test]
fn whoever_is_not_logged_in_logs_nobody_out() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&config(&origin, PATIENT, ROUTES), &redis);
    let (token, expired, foreign) = (Token::of("ada"), Token::of("bob").expires_in(-120), Token::of("dan"));
    let forged = foreign.sign_with(b"another secret, which is long enough for the algorithm");
    let try_to = |path: &str, token: &str| {
        let reply = first.client().post(path).bearer(token).send();
        (reply.code(), reply.detail())
    };
    log_out(&second, "/logout", &token);
    for path in ["/logout", "/logout-everywhere", "/leave"] {
        assert_eq!(try_to(path, &token.sign()), (401, "Token revoked".to_owned()), "{path}: twice");
        assert_eq!(try_to(path, &expired.sign()), (401, "Token expired".to_owned()), "{path}");
        assert_eq!(try_to(path, &forged), (401, "Invalid token".to_owned()), "{path}");
        assert_eq!(first.client().post(path).send().code(), 401, "{path}");
    }
    for subject in ["ada", "bob", "dan"] {
        let issued_before = Token::of(subject).claim("iat", unix_seconds() - 60);
        assert!(!is_revoked(&second, &issued_before), "{subject}");
    }
    assert!(!redis.keys().iter().any(|key| key.starts_with("revoked_before:")));
    assert_eq!(redis.keys().iter().filter(|key| key.starts_with("blacklist:")).count(), 1);
}

#[test]
fn a_forwarded_logout_everywhere_is_one_only_when_the_upstream_says_so() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&config(&origin, PATIENT, ROUTES), &redis);
    let (phone, laptop) = (Token::of("ada"), Token::of("ada"));
    origin.route("/leave", |_| Reply::text(500, "no"));
    assert_eq!(first.client().post("/leave").bearer(&phone.sign()).send().code(), 500);
    assert!(!is_revoked(&second, &phone) && !is_revoked(&second, &laptop));
    origin.route("/leave", |_| Reply::text(204, ""));
    log_out(&first, "/leave", &phone);
    assert!(is_revoked(&second, &phone) && is_revoked(&second, &laptop));
}

#[test]
fn every_kind_of_revocation_reaches_every_instance_within_a_second_and_needs_redis_no_more() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let config = config(&origin, ROOMY, ROUTES);
    let [first, second, third] = [(); 3].map(|()| gateway(&config, &redis.url()));
    hears(&second, &first);
    hears(&third, &first);
    let revoked = ["out", "everywhere", "by-jti", "by-token", "by-subject"].map(Token::of);
    let siblings = ["out", "everywhere", "by-subject"].map(Token::of);
    let [out, everywhere, by_jti, by_token, _] = &revoked;
    let makers: [(&dyn Fn(), u16); 5] = [
        (&|| log_out(&first, "/logout", out), 1),
        (&|| log_out(&first, "/logout-everywhere", everywhere), 2),
        (&|| revoke_everywhere(&first, &json!({"jti": by_jti.jti()})), 1),
        (&|| revoke_everywhere(&first, &json!({"token": by_token.sign()})), 1),
        (&|| revoke_everywhere(&first, &json!({"subject": "by-subject"})), 1),
    ];
    let known = |gateway: &Gateway| gateway.metric("tollgate_revocations_known", &[]);
    // What was said before one of them listened comes with its catch-up.
    assert_eventually!([&second, &third].iter().all(|one| known(one) == known(&first)), "all know the same");
    for (make, more) in makers {
        let before = known(&first).unwrap();
        make();
        for gateway in [&second, &third] {
            assert_eventually!(
                known(gateway) == Some(before + f64::from(more)),
                "the instance hears of it",
                HEARD
            );
        }
    }
    take_away(&redis, &[&first, &second, &third]);
    for gateway in [&first, &second, &third] {
        assert!(revoked.iter().all(|token| is_revoked(gateway, token)));
        assert_eq!(siblings.each_ref().map(|token| is_revoked(gateway, token)), [false, true, true]);
    }
}

#[test]
fn a_redis_that_dies_right_after_the_logout_has_told_the_others_already() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&config(&origin, ROOMY, ROUTES), &redis);
    hears(&second, &first);
    let (token, other) = (Token::of("ada"), Token::of("ada"));
    log_out(&first, "/logout-everywhere", &token);
    redis.kill();
    for token in [&token, &other] {
        assert_eventually!(is_revoked(&second, token), "the other instance knows", HEARD);
    }
    assert!(!is_revoked(&second, &Token::of("dan")));
}

#[test]
fn an_instance_that_was_not_there_learns_it_and_keeps_it_when_redis_goes() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let config = config(&origin, ROOMY, ROUTES);
    let relay = Relay::to(redis.addr());
    let (first, second) = (gateway(&config, &redis.url()), gateway(&config, &relay.redis_url()));
    hears(&second, &first);
    let (out, everywhere, sibling) = (Token::of("ada"), Token::of("bob"), Token::of("bob"));
    relay.cut();
    get_as(second.addr(), "/x", &Token::of("dan").sign());
    assert_eventually!(degraded(&second), "the outage is noticed");
    log_out(&first, "/logout", &out);
    log_out(&first, "/logout-everywhere", &everywhere);
    assert!(!is_revoked(&second, &out) && !is_revoked(&second, &everywhere), "nobody could tell");
    relay.restore();
    let started_later = gateway(&config, &redis.url());
    let known = |gateway: &Gateway| gateway.metric("tollgate_revocations_known", &[]);
    for gateway in [&second, &started_later] {
        assert_eventually!(known(gateway) == known(&first), "it catches up", BACK);
    }
    take_away(&redis, &[&second, &started_later]);
    for gateway in [&second, &started_later] {
        assert!([&out, &everywhere, &sibling].iter().all(|token| is_revoked(gateway, token)));
        assert!(!is_revoked(gateway, &Token::of("ada")));
    }
}

#[test]
fn what_was_handed_over_outlives_the_instance_that_revoked_it() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let config = config(&origin, ROOMY, ROUTES);
    let relay = Relay::to(redis.addr());
    let (first, second) = (gateway(&config, &relay.redis_url()), gateway(&config, &redis.url()));
    hears(&second, &first);
    relay.cut();
    get_as(first.addr(), "/x", &Token::of("dan").sign());
    assert_eventually!(degraded(&first), "the outage is noticed");
    let (out, everywhere, sibling) = (Token::of("ada"), Token::of("bob"), Token::of("bob"));
    log_out(&first, "/logout", &out);
    log_out(&first, "/logout-everywhere", &everywhere);
    assert!(is_revoked(&first, &out) && is_revoked(&first, &sibling), "at once where it was said");
    assert!(!is_revoked(&second, &out) && !is_revoked(&second, &everywhere), "nobody could tell");
    relay.restore();
    assert_eventually!(
        is_revoked(&second, &out) && is_revoked(&second, &everywhere),
        "the other instance refuses them too",
        BACK
    );
    first.kill();
    let again = gateway(&config, &redis.url());
    let known = |gateway: &Gateway| gateway.metric("tollgate_revocations_known", &[]);
    assert_eventually!(known(&again) == known(&second), "it learns what it said itself");
    take_away(&redis, &[&second, &again]);
    for gateway in [&second, &again] {
        assert!([&out, &everywhere, &sibling].iter().all(|token| is_revoked(gateway, token)));
        assert!(!is_revoked(gateway, &Token::of("ada")));
    }
}

#[test]
fn an_operator_names_the_issuer_where_there_are_several() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let config = config(&origin, PATIENT, &format!("{TWO_ISSUERS}{ROUTES}"));
    let [first, second] = pair(&config, &redis);
    let issued_at = unix_seconds();
    let of = |issuer: &str, jti: &str| {
        let token = Token::of("ada").claim("iss", format!("https://{issuer}")).claim("jti", jti);
        token.claim("iat", issued_at)
    };
    let status = |body: &serde_json::Value| {
        first.admin().post("/api/v1/revocations").bearer(ADMIN_TOKEN).json(body).send().code()
    };
    for body in [json!({"subject": "ada"}), json!({"jti": "a"}), json!({"subject": "three~ada"})] {
        assert_eq!(status(&body), 422, "{body}: it would revoke nothing");
    }
    assert_eq!(status(&json!({"subject": "ada", "issuer": "three"})), 404);
    assert_eq!(status(&json!({"token": of("one", "a").sign(), "issuer": "one"})), 400);
    assert!(!is_revoked(&second, &of("one", "a")) && !is_revoked(&second, &of("two", "a")));

    revoke_everywhere(&first, &json!({"jti": "a", "issuer": "one"}));
    assert!(is_revoked(&second, &of("one", "a")) && !is_revoked(&second, &of("two", "a")));
    revoke_everywhere(&first, &json!({"jti": "two~b"}));
    assert!(!is_revoked(&second, &of("one", "b")) && is_revoked(&second, &of("two", "b")));
    revoke_everywhere(&first, &json!({"subject": "ada", "issuer": "two"}));
    assert!(!is_revoked(&second, &of("one", "c")) && is_revoked(&second, &of("two", "c")));
    // A logout everywhere is one at the issuer of the token.
    log_out(&first, "/logout-everywhere", &of("one", "c"));
    assert!(is_revoked(&second, &of("one", "d")));
}

#[test]
fn whoever_lacks_a_permission_hears_first_that_the_token_was_revoked() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&config(&origin, PATIENT, ROUTES), &redis);
    let (token, bystander) = (Token::of("ada"), Token::of("bob"));
    let asks = |gateway: &Gateway, token: &Token| {
        let reply = get_as(gateway.addr(), "/admins", &token.sign());
        (reply.code(), reply.detail())
    };
    let forbidden = (403, "Not enough permissions".to_owned());
    assert_eq!(asks(&second, &token), forbidden);
    // Written by hand, so that nobody is told.
    let key = format!("blacklist:{}", token.jti());
    redis::cmd("SET").arg(key).arg(1).arg("EX").arg(60).exec(&mut redis.client()).unwrap();
    redis::cmd("SET").arg("ban:user:bob").arg(1).arg("EX").arg(60).exec(&mut redis.client()).unwrap();
    assert_eq!(asks(&first, &token), (401, "Token revoked".to_owned()));
    assert_eq!(asks(&first, &bystander), (403, "Access is suspended".to_owned()));
    redis.kill();
    assert_eq!(asks(&first, &token), (401, "Token revoked".to_owned()), "it is known now");
    assert_eq!(asks(&second, &Token::of("dan")), forbidden);
    assert_eq!(origin.hits(), 0);
}
