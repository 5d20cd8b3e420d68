//! Tokens of which nobody can say whether they were revoked, because Redis gives no answer: what is declared becomes
//! of them, and what is known holds either way.

use std::time::Duration;

use serde_json::json;

use crate::setup::{
    NO_REQUEST_TAKES, ROOMY, address, config, counter, degraded, gateway, get_as, get_from, revoke,
    revoke_everywhere,
};
use crate::support::client::Response;
use crate::support::cluster::{Cluster, slot};
use crate::support::gateway::Gateway;
use crate::support::holds_within;
use crate::support::origin::Origin;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::{Token, unix_seconds};

const ROUTES: &str = r#"
[limits]
quota_path = "/quota"
[policies.user]
key = "user"
limit = 3
window = "1h"
[policies.abuse]
key = "ip"
limit = 1000
window = "1h"
penalise = true
[policies.ip]
key = "ip"
limit = 1000
window = "1h"
[[routes]]
name = "refusing"
path = "/refusing"
upstream = "app"
auth = "required"
when_unknown = "refuse"
[[routes]]
name = "accepting"
path = "/accepting"
upstream = "app"
auth = "required"
when_unknown = "accept"
[[routes]]
name = "counted"
path = "/counted"
upstream = "app"
auth = "required"
when_unknown = "refuse"
limits = ["user", "abuse", "ip"]
[[routes]]
name = "admins"
path = "/admins"
upstream = "app"
auth = "required"
permissions = ["admin"]
when_unknown = "refuse"
[[routes]]
name = "login"
path = "/login"
upstream = "app"
auth = "none"
[routes.login]
token = "json:/token"
[[routes]]
name = "kept"
path = "/kept/**"
upstream = "app"
auth = "required"
session = "required"
when_unknown = "refuse"
[routes.cache]
ttl = "1m"
[[routes]]
name = "logout"
path = "/logout"
methods = ["POST"]
auth = "required"
logout = "gateway"
[[routes]]
name = "all"
path = "/**"
upstream = "app"
auth = "optional"
"#;

const REFUSE: &str = "[identity]\nwhen_unknown = \"refuse\"\n";
/// How long sharing may take to come back once Redis has.
const BACK: Duration = Duration::from_secs(2);

fn code(gateway: &Gateway, path: &str, token: &Token) -> u16 {
    get_as(gateway.addr(), path, &token.sign()).code()
}

fn assert_undecided(reply: &Response) {
    assert_eq!(reply.code(), 503, "{}", reply.text());
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    assert_eq!(reply.detail(), "The token cannot be verified at the moment");
    assert!(reply.took < NO_REQUEST_TAKES, "{:?}", reply.took);
}

#[test]
fn where_it_is_declared_an_unknown_token_is_refused_for_the_moment_and_a_revoked_one_for_good() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&config(&origin, ROOMY, &format!("{REFUSE}{ROUTES}")), &redis.url());
    let (token, out, leaving) = (Token::of("ada"), Token::of("bob"), Token::of("dan"));
    revoke_everywhere(&gateway, &json!({"jti": out.jti()}));
    for path in ["/x", "/refusing", "/accepting", "/quota"] {
        assert_eq!(code(&gateway, path, &token), 200, "{path}");
    }
    redis.kill();
    let forwarded = origin.hits();
    for path in ["/x", "/refusing", "/quota", "/counted"] {
        assert_undecided(&get_as(gateway.addr(), path, &token.sign()));
        assert_eq!(code(&gateway, path, &out), 401, "{path}: it is known");
    }
    assert_eq!(code(&gateway, "/admins", &token), 403, "it would be refused anyway");
    assert_eq!(origin.hits(), forwarded, "the upstream hears of none");
    assert_eq!(code(&gateway, "/accepting", &token), 200, "the route says otherwise");
    assert_eq!(code(&gateway, "/accepting", &out), 401);
    assert_eq!(gateway.client().get("/x").send().code(), 200, "there is no token of whom to be in doubt");
    let undecided = || gateway.metric("tollgate_auth_total", &[("outcome", "undecided")]);
    assert_eventually!(undecided() == Some(4.0), "each is counted, after its answer");

    assert_eq!(code(&gateway, "/accepting", &leaving), 200);
    let reply = gateway.client().post("/logout").bearer(&leaving.sign()).send();
    assert_eq!(reply.code(), 200, "leaving is always possible");
    assert_eq!(code(&gateway, "/accepting", &leaving), 401);

    redis.restart();
    assert_eventually!(code(&gateway, "/refusing", &token) == 200, "it is decided again", BACK);
}

#[test]
fn by_default_only_the_routes_that_say_so_refuse() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&config(&origin, ROOMY, ROUTES), &redis.url());
    let token = Token::of("ada");
    redis.kill();
    assert_eq!(code(&gateway, "/x", &token), 200);
    assert_eq!(code(&gateway, "/quota", &token), 200);
    assert_undecided(&get_as(gateway.addr(), "/refusing", &token.sign()));
}

#[test]
fn without_any_redis_everything_is_known() {
    let origin = Origin::start();
    let gateway = gateway(&config(&origin, ROOMY, &format!("{REFUSE}{ROUTES}")), "");
    let (token, out) = (Token::of("ada"), Token::of("bob"));
    revoke(&gateway, &json!({"jti": out.jti()}));
    for path in ["/x", "/refusing", "/quota", "/counted"] {
        assert_eq!(code(&gateway, path, &token), 200, "{path}");
        assert_eq!(code(&gateway, path, &out), 401, "{path}");
    }
}

#[test]
fn a_silent_redis_is_waited_for_no_longer_than_the_deadline() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let gateway = gateway(&config(&origin, ROOMY, ROUTES), &relay.redis_url());
    let token = Token::of("ada").sign();
    assert_eq!(get_as(gateway.addr(), "/refusing", &token).code(), 200);
    relay.black_hole();
    for _ in 0..8 {
        assert_undecided(&get_as(gateway.addr(), "/refusing", &token));
    }
    relay.restore();
    assert_eventually!(
        get_as(gateway.addr(), "/refusing", &token).code() == 200,
        "it is decided again",
        BACK
    );
}

#[test]
fn what_is_refused_for_the_moment_uses_up_no_limit() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let gateway = gateway(&config(&origin, ROOMY, ROUTES), &relay.redis_url());
    let token = Token::of("ada");
    assert_eq!([(); 2].map(|()| code(&gateway, "/counted", &token)), [200; 2]);
    relay.cut();
    assert_eq!([(); 6].map(|()| code(&gateway, "/counted", &token)), [503; 6]);
    relay.restore();
    assert_eventually!(!degraded(&gateway), "the recovery shows in the metrics");
    for (key, count) in [("user:ada", 2), ("abuse:127.0.0.1", 2), ("ip:127.0.0.1", 2)] {
        assert_eq!(counter(&redis, &format!("rate_limit:{key}")), Some(count), "{key}");
    }
    assert_eq!([(); 2].map(|()| code(&gateway, "/counted", &token)), [200, 429]);
}

/// A name whose slot is on that node.
fn on(
    cluster: &Cluster,
    node: usize,
    name: impl Fn(usize) -> String,
    key: impl Fn(&str) -> String,
) -> String {
    let mut names = (1..100_000).map(name);
    names.find(|name| cluster.owner_of(slot(key(name).as_bytes())) == node).expect("some name is there")
}

#[test]
fn a_lost_node_of_a_cluster_leaves_only_its_own_tokens_undecided() {
    let (cluster, origin) = (Cluster::start(), Origin::start());
    let text = config(&origin, ROOMY, ROUTES);
    let [first, second] = [gateway(&text, &cluster.url()), gateway(&text, &cluster.url())];
    let whole = |name: &str| name.to_owned();
    let user = on(&cluster, 1, |n| format!("u{n}"), whole);
    let stranded = on(&cluster, 0, |n| format!("v{n}"), whole);
    let ip = on(&cluster, 2, address, whole);
    let jti = |node| on(&cluster, node, |n| format!("j{n}"), |jti| format!("blacklist:{jti}"));
    let (by_token, by_user, fine) = (
        // What might be said against it is on the node that is lost: of the token, or of the user.
        Token::of(&user).claim("jti", jti(0)),
        Token::of(&stranded).claim("jti", jti(1)),
        Token::of(&user).claim("jti", jti(2)),
    );
    let ask = |gateway: &Gateway, path: &str, token: &Token| {
        get_from(&gateway.client(), path, &ip).bearer(&token.sign()).send()
    };
    for token in [&by_token, &by_user, &fine] {
        assert_eq!(ask(&first, "/refusing", token).code(), 200);
    }
    cluster.kill(0);
    for gateway in [&first, &second] {
        assert_eventually!(
            {
                ask(gateway, "/accepting", &by_token);
                degraded(gateway)
            },
            "the loss is noticed"
        );
    }
    for token in [&by_token, &by_user] {
        assert_undecided(&ask(&first, "/refusing", token));
        assert_eq!(ask(&first, "/accepting", token).code(), 200);
        for _ in 0..3 {
            assert_undecided(&ask(&first, "/counted", token));
        }
    }
    let count = |key: &str| cluster.query::<Option<u64>>(key, redis::cmd("GET").arg(key)).unwrap_or(0);
    let user_key = format!("rate_limit:user:{{{user}}}");
    let ip_keys = ["abuse", "ip"].map(|policy| format!("rate_limit:{policy}:{{{ip}}}"));
    for key in [&user_key, &ip_keys[0], &ip_keys[1]] {
        assert_eventually!(count(key) == 0, "what the other nodes counted is taken back");
    }
    assert_eq!([(); 4].map(|()| ask(&first, "/counted", &fine).code()), [200, 200, 200, 429]);
    assert_eq!((count(&user_key), count(&ip_keys[0]), count(&ip_keys[1])), (3, 4, 3));

    // The others are told through a node that is left, although its own is not there to write it to.
    let known = || second.metric("tollgate_revocations_known", &[]);
    let number = std::cell::Cell::new(0);
    assert_eventually!(
        {
            let before = known();
            number.set(number.get() + 1);
            let key = |name: &str| format!("blacklist:{name}");
            let jti = on(&cluster, 1, |n| format!("w{}x{n}", number.get()), key);
            revoke(&first, &json!({ "jti": jti }));
            holds_within(Duration::from_millis(100), || known() > before)
        },
        "the instances hear of each other"
    );
    assert!(!revoke(&first, &json!({"jti": by_token.jti()})), "it is not written yet");
    assert_eventually!(ask(&second, "/accepting", &by_token).code() == 401, "the other instance knows", BACK);
}

#[test]
fn a_lost_node_of_the_cache_leaves_known_what_the_others_say_of_a_session() {
    let (cluster, origin) = (Cluster::start(), Origin::start());
    let text = config(&origin, ROOMY, ROUTES);
    let [first, second] = [gateway(&text, &cluster.url()), gateway(&text, &cluster.url())];
    let lost = cluster.owner("cache_tag:-epoch");
    let (here, there) = ((lost + 1) % 3, (lost + 2) % 3);
    let whole = |name: &str| name.to_owned();
    let user = on(&cluster, here, |n| format!("u{n}"), whole);
    let jti = on(&cluster, there, |n| format!("j{n}"), |jti| format!("blacklist:{jti}"));
    let token = Token::of(&user).claim("jti", jti);
    let lonely = Token::of(&on(&cluster, lost, |n| format!("v{n}"), whole));
    let key = format!("session:{{{user}}}");
    let now = unix_seconds() * 1_000;
    let (until, end) = (now + 3_600_000, now + 86_400_000);
    let line = format!("{} {now} {now} {until} {end} {end} -\n", token.jti());
    cluster.query::<()>(&key, redis::cmd("SET").arg(&key).arg(line));
    assert_eq!(code(&first, "/kept/1", &token), 200);
    cluster.kill(lost);
    for gateway in [&first, &second] {
        assert_eventually!(
            {
                code(gateway, "/accepting", &lonely);
                degraded(gateway)
            },
            "the loss is noticed"
        );
    }
    assert_eq!(code(&second, "/kept/2", &token), 200, "it is read, although it was never heard of here");
    cluster.query::<()>(&key, redis::cmd("DEL").arg(&key));
    for gateway in [&first, &second] {
        let reply = get_as(gateway.addr(), "/kept/3", &token.sign());
        assert_eq!((reply.code(), &*reply.detail()), (401, "Session expired"));
    }
}
