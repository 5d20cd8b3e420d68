//! What is revoked outlives a Redis that loses it, and the instance that knows it: whoever knows more than Redis tells
//! it, and nothing that stands there is weakened.

use std::time::Duration;

use serde_json::{Value, json};

use crate::api_tokens;
use crate::sessions::{issuer, log_in};
use crate::setup::{PATIENT, ROOMY, config, degraded, gateway, get_as, pair, revoke, ttl};
use crate::support::cluster::Cluster;
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::origin::Origin;
use crate::support::process::Signal;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::Token;

const ROUTES: &str = r#"
[[routes]]
name = "login"
path = "/login"
upstream = "app"
[routes.login]
token = "header:X-Token"
[[routes]]
name = "inside"
path = "/inside/**"
upstream = "app"
auth = "required"
session = "required"
[[routes]]
name = "all"
path = "/**"
upstream = "app"
auth = "required"
"#;

/// How long it may take until Redis has got back what it lost.
const BACK: Duration = Duration::from_secs(5);

fn is_revoked(gateway: &Gateway, token: &Token) -> bool {
    let reply = get_as(gateway.addr(), "/x", &token.sign());
    assert!(matches!(reply.code(), 200 | 401), "{}: {}", reply.code(), reply.text());
    reply.code() == 401
}

fn holds(redis: &Redis, keys: &[String]) -> bool {
    let held = redis.keys();
    keys.iter().all(|key| held.contains(key))
}

/// Revokes one token and one user; their keys.
fn revoke_both(gateway: &Gateway) -> ([Token; 2], [String; 2]) {
    let (token, user) = (Token::of("ada"), Token::of("bob"));
    assert!(revoke(gateway, &json!({"jti": token.jti()})));
    assert!(revoke(gateway, &json!({"subject": "bob"})));
    let keys = [format!("blacklist:{}", token.jti()), "revoked_before:bob".to_owned()];
    ([token, user], keys)
}

fn raw(redis: &Redis, words: &[&str]) -> redis::Value {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query(&mut redis.client()).unwrap()
}

fn admin(gateway: &Gateway, call: &str, body: &Value) -> Value {
    let reply = gateway.admin().post(&format!("/api/v1/{call}")).bearer(ADMIN_TOKEN).json(body).send();
    assert_eq!(reply.code(), 200, "{}", reply.text());
    reply.json()
}

/// Cuts the gateway off and waits until it has noticed.
fn cut_off(gateway: &Gateway, relay: &Relay) {
    relay.cut();
    assert_eventually!(
        {
            get_as(gateway.addr(), "/x", &Token::of("somebody").sign());
            degraded(gateway)
        },
        "the outage is noticed"
    );
}

#[test]
fn an_instance_that_starts_after_redis_came_back_empty_knows_what_was_revoked_before() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let config = config(&origin, ROOMY, ROUTES);
    let first = gateway(&config, &redis.url());
    let (tokens, keys) = revoke_both(&first);
    redis.restart();
    assert_eventually!(holds(&redis, &keys), "Redis gets back what it has lost", BACK);
    assert!(ttl(&redis, &keys[1]) > 29 * 86_400);
    first.wait_for_log("Redis had lost revocations");
    drop(first);
    let later = gateway(&config, &redis.url());
    assert!(tokens.iter().all(|token| is_revoked(&later, token)));
    assert!(!is_revoked(&later, &Token::of("dan")));
}

#[test]
fn a_redis_that_was_emptied_without_an_interruption_gets_back_what_was_revoked() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let config = config(&origin, PATIENT, ROUTES);
    let [first, second] = pair(&config, &redis);
    let (tokens, keys) = revoke_both(&first);
    // What is told under another name is learned by nobody, and so never written.
    let far = "4102444800000";
    for (kind, key) in
        [("t", "session:eve"), ("t", "revoked_before:eve"), ("5", "api_token:eve"), ("5", "eve")]
    {
        raw(&redis, &["PUBLISH", "tollgate:events", &format!("{far} {kind} {key}")]);
    }
    raw(&redis, &["PUBLISH", "tollgate:events", &format!("{far} t blacklist:told")]);
    let known = |gateway: &Gateway| gateway.metric("tollgate_revocations_known", &[]);
    assert_eventually!([&first, &second].iter().all(|one| known(one) == Some(3.0)), "they know the same");
    drop(second);
    redis.flush();
    assert_eventually!(holds(&redis, &keys), "Redis gets back what it has lost", BACK);
    assert!(holds(&redis, &["blacklist:told".to_owned()]));
    assert!(!redis.keys().iter().any(|key| key.ends_with("eve")), "{:?}", redis.keys());
    // And of a Redis that has lost some of it only, or an older state.
    raw(&redis, &["DEL", &keys[0]]);
    raw(&redis, &["SET", &keys[1], "5", "EX", "60"]);
    assert_eventually!(holds(&redis, &keys) && ttl(&redis, &keys[1]) > 29 * 86_400, "both are right", BACK);
    drop(first);
    let later = gateway(&config, &redis.url());
    assert!(tokens.iter().all(|token| is_revoked(&later, token)));
}

/// Waits until all that the gateway knows was compared with what Redis holds, twice over.
fn give_back_all(gateway: &Gateway, redis: &Redis) {
    assert!(revoke(gateway, &json!({"jti": "marker"})));
    for _ in 0..2 {
        raw(redis, &["DEL", "blacklist:marker"]);
        assert_eventually!(redis.keys().contains(&"blacklist:marker".to_owned()), "it is given back", BACK);
    }
}

/// The revocations that Redis holds, in order, but for that one.
fn revocations(redis: &Redis) -> Vec<String> {
    let mut keys = redis.keys();
    keys.retain(|key| key.starts_with("blacklist:") || key.starts_with("revoked_before:"));
    keys.retain(|key| key != "blacklist:marker");
    keys.sort();
    keys
}

#[test]
fn keys_of_others_that_look_like_revocations_are_neither_brought_back_nor_overwritten() {
    let (redis, origin) = (Redis::start(), Origin::start());
    raw(&redis, &["SADD", "blacklist:ips", "192.0.2.1"]);
    raw(&redis, &["SADD", "revoked_before:set", "x"]);
    raw(&redis, &["SET", "blacklist:by-hand", "1"]);
    raw(&redis, &["SET", "revoked_before:words", "all", "EX", "900"]);
    raw(&redis, &["SET", "blacklist:ips:today", "1", "EX", "900"]);
    raw(&redis, &["SET", "blacklist:ours", "1", "EX", "900"]);
    let gateway = gateway(&config(&origin, PATIENT, ROUTES), &redis.url());
    let known = || gateway.metric("tollgate_revocations_known", &[]);
    assert_eventually!(known() == Some(3.0), "ours, by-hand and words hold here");
    assert!(revoke(&gateway, &json!({"jti": "list"})));
    redis.flush();
    raw(&redis, &["LPUSH", "blacklist:list", "x"]);
    give_back_all(&gateway, &redis);
    assert_eq!(revocations(&redis), ["blacklist:list", "blacklist:ours"]);
    assert_eq!(raw(&redis, &["LLEN", "blacklist:list"]), redis::Value::Int(1));
    assert!(ttl(&redis, "blacklist:ours") <= 900);
}

#[test]
fn what_was_only_inferred_from_a_refusal_is_not_written_down() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&config(&origin, PATIENT, ROUTES), &redis.url());
    let (token, user) = (Token::of("ada"), Token::of("bob"));
    let key = format!("blacklist:{}", token.jti());
    raw(&redis, &["SET", &key, "1", "EX", "60"]);
    raw(&redis, &["SET", "revoked_before:bob", "4102444800", "EX", "60"]);
    assert!(is_revoked(&gateway, &token) && is_revoked(&gateway, &user));
    give_back_all(&gateway, &redis);
    assert!(ttl(&redis, &key) <= 60);
    assert_eq!(revocations(&redis), [&*key, "revoked_before:bob"]);
    raw(&redis, &["DEL", &key, "revoked_before:bob"]);
    give_back_all(&gateway, &redis);
    assert_eq!(revocations(&redis), [""; 0]);
}

#[test]
fn clocks_that_differ_and_news_that_last_for_ever_stop_no_giving_back() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&config(&origin, PATIENT, ROUTES), &redis.url());
    let (now, _): (u64, u64) = redis::cmd("TIME").query(&mut redis.client()).unwrap();
    let tell = |until: &str, key: &str| {
        raw(&redis, &["PUBLISH", "tollgate:events", &format!("{until} t blacklist:{key}")]);
    };
    // By an instance whose clock is ahead by the half of a minute, and by somebody who cannot count.
    raw(&redis, &["SET", "blacklist:ahead", "1", "EX", "600"]);
    tell(&((now + 630) * 1_000).to_string(), "ahead");
    tell(&u64::MAX.to_string(), "for-ever");
    assert_eventually!(gateway.metric("tollgate_revocations_known", &[]) == Some(2.0), "both are known");
    give_back_all(&gateway, &redis);
    assert!(ttl(&redis, "blacklist:ahead") <= 600, "nothing of it was missing");
    assert!(holds(&redis, &["blacklist:for-ever".to_owned()]));
    assert!(ttl(&redis, "blacklist:for-ever") <= 3_660 * 86_400);
}

#[test]
fn an_instance_that_started_before_the_giving_back_learns_from_it() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let config = config(&origin, ROOMY, ROUTES);
    let first = gateway(&config, &relay.redis_url());
    let (tokens, keys) = revoke_both(&first);
    cut_off(&first, &relay);
    redis.flush();
    let second = gateway(&config, &redis.url());
    assert!(tokens.iter().all(|token| !is_revoked(&second, token)));
    relay.restore();
    assert_eventually!(holds(&redis, &keys), "Redis gets back what it has lost", BACK);
    let known = || second.metric("tollgate_revocations_known", &[]);
    assert_eventually!(known() == Some(2.0), "it is told", BACK);
}

#[test]
fn each_database_has_news_of_its_own() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let config = config(&origin, PATIENT, ROUTES);
    let [usual, other, twin] =
        ["", "/1", "/1"].map(|database| gateway(&config, &format!("{}{database}", redis.url())));
    let known = |gateway: &Gateway| gateway.metric("tollgate_revocations_known", &[]);
    let bob = Token::of("bob");
    assert!(revoke(&other, &json!({"subject": "bob"})));
    assert_eventually!(known(&twin) == Some(1.0), "it is told in the same database");
    assert!(revoke(&usual, &json!({"jti": "a"})));
    assert_eq!((known(&usual), known(&other)), (Some(1.0), Some(1.0)));
    assert!(!is_revoked(&usual, &bob) && is_revoked(&twin, &bob));
}

#[test]
fn no_revocation_weakens_another() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&config(&origin, PATIENT, ROUTES), &redis.url());
    // Two times, and the second time for less.
    for span in ["10d", "1m"] {
        assert!(revoke(&gateway, &json!({"jti": "twice", "ttl": span})));
        assert!(revoke(&gateway, &json!({"subject": "twice", "ttl": span})));
    }
    for key in ["blacklist:twice", "revoked_before:twice"] {
        assert!(ttl(&redis, key) > 9 * 86_400, "{key}");
    }
    // By hand, for ever and for everything.
    raw(&redis, &["SET", "blacklist:by-hand", "1"]);
    raw(&redis, &["SET", "revoked_before:by-hand", "all"]);
    raw(&redis, &["SET", "revoked_before:ahead", "4102444800", "EX", "600"]);
    for body in [json!({"jti": "by-hand"}), json!({"subject": "by-hand"}), json!({"subject": "ahead"})] {
        assert!(revoke(&gateway, &body));
    }
    for key in ["blacklist:by-hand", "revoked_before:by-hand"] {
        assert_eq!(raw(&redis, &["PTTL", key]), redis::Value::Int(-1), "{key}");
    }
    let value = |key: &str| redis::cmd("GET").arg(key).query::<String>(&mut redis.client()).unwrap();
    assert_eq!((&*value("revoked_before:by-hand"), &*value("revoked_before:ahead")), ("all", "4102444800"));
    assert!(ttl(&redis, "revoked_before:ahead") > 29 * 86_400);
    // Something else has the name.
    raw(&redis, &["LPUSH", "blacklist:list", "x"]);
    assert!(revoke(&gateway, &json!({"jti": "list"})));
    assert_eq!(value("blacklist:list"), "1");
}

#[test]
fn every_node_of_a_cluster_that_was_emptied_gets_back_what_was_revoked() {
    let (cluster, origin) = (Cluster::start(), Origin::start());
    let gateway = gateway(&config(&origin, ROOMY, ROUTES), &cluster.url());
    let status = || gateway.admin().get("/health").send().json()["redis"]["status"] == "connected";
    assert_eventually!(status(), "the gateway reaches the cluster");
    let mut keys = Vec::new();
    for number in 0..60 {
        assert!(revoke(&gateway, &json!({"jti": format!("j{number}")})));
        keys.push(format!("blacklist:j{number}"));
    }
    let all_there = || {
        let held = cluster.keys();
        keys.iter().all(|key| held.contains(key))
    };
    assert!(all_there());
    cluster.flush();
    assert_eventually!(all_there(), "each node gets back its part", BACK);
}

#[test]
fn a_session_whose_token_was_revoked_by_its_id_is_listed_no_more_and_takes_nobodys_place() {
    let (redis, origin) = (Redis::start(), issuer());
    let config = config(&origin, PATIENT, &format!("[sessions]\nmax_per_user = 2\nsweep = \"1s\"\n{ROUTES}"));
    let gateway = gateway(&config, &redis.url());
    let listed = |user: &str| {
        let list = admin(&gateway, "sessions/list", &json!({"user": user}));
        let sessions = list["sessions"].as_array().unwrap().iter();
        sessions.map(|session| session["session"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let [older, newer, latest] = [(); 3].map(|()| Token::of("ada"));
    log_in(&gateway, &older);
    log_in(&gateway, &newer);
    assert_eq!(listed("ada"), [older.jti(), newer.jti()]);
    assert!(revoke(&gateway, &json!({"jti": newer.jti()})));
    assert_eq!(listed("ada"), [older.jti()]);
    log_in(&gateway, &latest);
    assert_eq!(listed("ada"), [older.jti(), latest.jti()], "the one that lives was not ended for it");
    assert_eq!(get_as(gateway.addr(), "/inside/x", &older.sign()).code(), 200);
    // Nobody logs in, and the line goes all the same.
    assert!(revoke(&gateway, &json!({"jti": older.jti()})));
    assert!(revoke(&gateway, &json!({"jti": latest.jti()})));
    assert_eventually!(!redis.keys().contains(&"session:ada".to_owned()), "the sweep takes it out");
}

#[test]
fn what_redis_is_owed_at_the_end_of_an_instance_reaches_it() {
    let (redis, origin) = (Redis::start(), issuer());
    let relay = Relay::to(redis.addr());
    let config = config(&origin, ROOMY, ROUTES);
    let (ending, other) = (gateway(&config, &relay.redis_url()), gateway(&config, &redis.url()));
    let (revoked, logged_in) = (Token::of("ada"), Token::of("bob"));
    assert!(!is_revoked(&other, &revoked));
    cut_off(&ending, &relay);
    assert!(!revoke(&ending, &json!({"jti": revoked.jti()})));
    log_in(&ending, &logged_in);
    // It takes longer to be back than an instance without anything to do takes to end.
    relay.delay_answers(Duration::from_millis(20));
    relay.restore();
    ending.signal(Signal::Terminate);
    assert!(ending.process().wait().success());
    assert!(is_revoked(&other, &revoked), "{}", ending.logs());
    assert_eq!(get_as(other.addr(), "/inside/x", &logged_in.sign()).code(), 200, "{}", ending.logs());
    assert!(!ending.logs().contains("ends with it"), "{}", ending.logs());
}

#[test]
fn a_revocation_that_is_on_its_way_at_the_end_of_an_instance_reaches_redis() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let ending = gateway(&config(&origin, ROOMY, ROUTES), &relay.redis_url());
    cut_off(&ending, &relay);
    assert!(!revoke(&ending, &json!({"jti": "late"})));
    relay.delay_answers(Duration::from_millis(20));
    relay.restore();
    assert!(ending.terminate().success());
    assert!(holds(&redis, &["blacklist:late".to_owned()]), "{}", ending.logs());
    assert!(!ending.logs().contains("ends with it"), "{}", ending.logs());
}

#[test]
fn what_redis_cannot_get_holds_up_the_end_of_an_instance_for_a_moment_only() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let ending = gateway(&config(&origin, ROOMY, ROUTES), &relay.redis_url());
    cut_off(&ending, &relay);
    assert!(!revoke(&ending, &json!({"jti": "lost"})));
    let sent = std::time::Instant::now();
    assert!(ending.terminate().success());
    assert!(sent.elapsed() < Duration::from_secs(8), "{:?}", sent.elapsed());
    assert!(
        ending.logs().contains("what Redis never got of this instance ends with it"),
        "{}",
        ending.logs()
    );
}

#[test]
fn an_api_token_that_leaks_while_redis_is_away_is_ended_here_at_once_and_everywhere_after_it() {
    use api_tokens::{call, create, done, get, ok, refused, said, text};
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let text = text(&origin, ROOMY);
    let (first, second) = (gateway(&text, &relay.redis_url()), gateway(&text, &redis.url()));
    let [leaked, dead, kept, unseen] = [(); 4].map(|()| create(&first, &json!({})));
    for (_, token) in [&leaked, &dead, &kept] {
        assert_eq!([said(&get(&first, "/a", token)), said(&get(&second, "/a", token))], [ok(), ok()]);
    }
    relay.cut();
    assert_eventually!(first.metric("tollgate_store_degraded", &[]) == Some(1.0), "the outage shows");
    let held = |answer: &Value, what: &str, id: &str| {
        assert_eq!((&answer["id"], &answer[what]), (&json!(id), &json!(true)), "{answer}");
        assert_eq!(answer["shared"], json!(false), "{answer}");
        assert!(answer["note"].as_str().unwrap().contains("not reachable"), "{answer}");
    };
    held(&done(&first, "disable", &json!({ "id": leaked.0 })), "disabled", &leaked.0);
    held(&done(&first, "disable", &json!({ "id": unseen.0 })), "disabled", &unseen.0);
    held(&done(&first, "delete", &json!({ "id": dead.0 })), "deleted", &dead.0);
    assert_eq!(said(&get(&first, "/a", &leaked.1)), refused("Token revoked"));
    assert_eq!(said(&get(&first, "/a", &dead.1)), refused("Invalid token"));
    assert_eq!(get(&first, "/a", &unseen.1).code(), 503, "nobody knows its secret");
    assert_eq!(said(&get(&first, "/a", &kept.1)), ok());
    for (name, body) in [
        ("create", json!({"name": "x", "owner": "x"})),
        ("rotate", json!({ "id": kept.0 })),
        ("enable", json!({ "id": leaked.0 })),
        ("list", json!({})),
    ] {
        let reply = call(&first, name, &body);
        assert_eq!((reply.code(), &*reply.detail()), (503, "the shared store is not reachable"), "{name}");
    }
    let reply = call(&first, "enable", &json!({ "id": dead.0 }));
    assert_eq!(reply.code(), 404, "what was deleted is not there to be enabled: {}", reply.text());
    relay.restore();
    for gateway in [&second, &first] {
        for (_, token) in [&leaked, &unseen] {
            assert_eventually!(
                said(&get(gateway, "/a", token)) == refused("Token revoked"),
                "it is told",
                BACK
            );
        }
        assert_eventually!(
            said(&get(gateway, "/a", &dead.1)) == refused("Invalid token"),
            "it is told",
            BACK
        );
        assert_eq!(said(&get(gateway, "/a", &kept.1)), ok());
    }
    let listed = done(&second, "list", &json!({}));
    let states: Vec<_> =
        listed["tokens"].as_array().unwrap().iter().map(|token| &token["disabled"]).collect();
    assert_eq!(states.iter().filter(|disabled| ***disabled == json!(true)).count(), 2, "{listed}");
    assert_eq!(states.len(), 3, "{listed}");
    // It is no more than that: it can be enabled again.
    assert_eq!(done(&first, "enable", &json!({ "id": leaked.0 }))["disabled"], json!(false));
    assert_eq!([said(&get(&first, "/a", &leaked.1)), said(&get(&second, "/a", &leaked.1))], [ok(), ok()]);
}

#[test]
fn what_was_disabled_first_and_enabled_then_stays_enabled_whoever_hears_of_it_late() {
    use api_tokens::{create, done, get, ok, refused, said, text};
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&text(&origin, ROOMY), &redis);
    let (id, token) = create(&first, &json!({}));
    done(&first, "disable", &json!({ "id": id }));
    assert_eq!(said(&get(&second, "/a", &token)), refused("Token revoked"));
    done(&first, "enable", &json!({ "id": id }));
    // An instance that still holds what it was told in an outage tells it now.
    raw(&redis, &["PUBLISH", "tollgate:events", &format!("api_token_held d {id} 1000")]);
    for gateway in [&first, &second] {
        assert_eventually!(said(&get(gateway, "/a", &token)) == ok(), "it is settled", BACK);
    }
    assert_eq!(done(&second, "list", &json!({}))["tokens"][0]["disabled"], json!(false));
    // What is said after it holds.
    raw(&redis, &["PUBLISH", "tollgate:events", &format!("api_token_held d {id} 4102444800000")]);
    assert_eventually!(
        done(&second, "list", &json!({}))["tokens"][0]["disabled"] == json!(true),
        "it is disabled",
        BACK
    );
    // Nor does news from the future outweigh what is said in its time.
    done(&second, "enable", &json!({ "id": id }));
    for gateway in [&first, &second] {
        assert_eventually!(said(&get(gateway, "/a", &token)) == ok(), "it is settled", BACK);
    }
    raw(&redis, &["PUBLISH", "tollgate:events", &format!("api_token_held d {id} 4102444800000")]);
    assert_eventually!(
        done(&second, "list", &json!({}))["tokens"][0]["disabled"] == json!(true),
        "it is disabled again",
        BACK
    );
}

#[test]
fn what_a_full_redis_does_not_take_of_an_api_token_holds_here_until_it_does() {
    use api_tokens::{create, done, get, ok, refused, said, text};
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&text(&origin, ROOMY), &redis);
    let (id, token) = create(&first, &json!({}));
    assert_eq!([said(&get(&first, "/a", &token)), said(&get(&second, "/a", &token))], [ok(), ok()]);
    raw(&redis, &["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(done(&first, "disable", &json!({ "id": id }))["shared"], json!(false));
    assert_eq!(said(&get(&first, "/a", &token)), refused("Token revoked"));
    raw(&redis, &["CONFIG", "SET", "maxmemory", "0"]);
    for gateway in [&first, &second] {
        assert_eventually!(said(&get(gateway, "/a", &token)) == refused("Token revoked"), "it is told", BACK);
    }
}

#[test]
fn a_redis_that_came_back_empty_knows_no_api_token() {
    use api_tokens::{create, get, ok, refused, said, text};
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&text(&origin, ROOMY), &redis.url());
    let (_, token) = create(&gateway, &json!({}));
    assert_eq!(said(&get(&gateway, "/a", &token)), ok());
    redis.flush();
    assert_eq!(said(&get(&gateway, "/a", &token)), refused("Invalid token"));
}
