//! Shared limits: exact over instances and algorithms, all or nothing over policies and windows, and what clients and
//! operators see of them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sfv::{BareItem, ListEntry, Parser};

use crate::setup::{PATIENT, address, admitted, codes, config, counter, gateway, get_from, pair, ttl};
use crate::support::client::{Client, Response};
use crate::support::concurrently;
use crate::support::gateway::ADMIN_TOKEN;
use crate::support::load::Load;
use crate::support::origin::Origin;
use crate::support::redis::Redis;
use crate::support::token::{Token, unix_seconds};

const ROUTE: &str = "[[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n";

fn ip_policy(limit: u64, window: &str, algorithm: &str) -> String {
    format!(
        "[policies.ip]\nkey = \"ip\"\nalgorithm = \"{algorithm}\"\nlimit = {limit}\nwindow = \"{window}\"\n\
         {ROUTE}limits = [\"ip\"]\n"
    )
}

fn exactly_sixty(algorithm: &str, window: &str) {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateways = pair(&config(&origin, PATIENT, &ip_policy(60, window, algorithm)), &redis);
    let codes =
        concurrently(8, |number| codes(&gateways[number % 2].client(), "/x", "10.0.0.1", 20)).concat();
    assert_eq!((admitted(&codes), codes.len()), (60, 160), "{algorithm}");
    assert_eq!(origin.hits(), 60, "{algorithm}");
    assert!(redis.keys_without_ttl().is_empty());
}

#[test]
fn two_instances_admit_exactly_the_limit_in_a_fixed_window() {
    exactly_sixty("fixed-window", "60s");
}

// Windows of an hour, so that nothing is given back while the test runs.
#[test]
fn two_instances_admit_exactly_the_limit_in_a_sliding_window() {
    exactly_sixty("sliding-window", "1h");
}

#[test]
fn two_instances_admit_exactly_the_limit_of_a_token_bucket() {
    exactly_sixty("token-bucket", "1h");
}

#[test]
fn seventy_requests_in_turn_give_sixty_and_a_restart_does_not_reset_them() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let config = config(&origin, PATIENT, &ip_policy(60, "60s", "fixed-window"));
    let [first, second] = pair(&config, &redis);
    let clients = [first.client(), second.client()];
    let codes: Vec<u16> = (0..70).map(|n| clients[n % 2].get("/x").send().code()).collect();
    assert_eq!(codes, [vec![200; 60], vec![429; 10]].concat());
    let of_the_gateways_own = ["rate_limit:gw", "tollgate:probe"];
    let keys: Vec<_> =
        redis.keys().into_iter().filter(|key| !of_the_gateways_own.contains(&key.as_str())).collect();
    assert_eq!(keys, ["rate_limit:ip:127.0.0.1"]);
    assert!((1..=60).contains(&ttl(&redis, "rate_limit:ip:127.0.0.1")));

    first.terminate();
    let successor = gateway(&config, &redis.url());
    assert_eq!(successor.client().get("/x").send().code(), 429);
    assert_eq!(counter(&redis, "rate_limit:ip:127.0.0.1"), Some(60), "refused requests do not consume");
}

#[test]
fn a_limit_that_changes_in_the_file_keeps_the_counts() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let start =
        |limit| gateway(&config(&origin, PATIENT, &ip_policy(limit, "1h", "fixed-window")), &redis.url());
    let first = start(5);
    assert_eq!(codes(&first.client(), "/x", "10.0.0.1", 7), [200, 200, 200, 200, 200, 429, 429]);
    first.terminate();
    let second = start(8);
    assert_eq!(codes(&second.client(), "/x", "10.0.0.1", 4), [200, 200, 200, 429]);
    assert_eq!(counter(&redis, "rate_limit:ip:10.0.0.1"), Some(8));
    second.terminate();
    let third = start(4);
    assert_eq!(codes(&third.client(), "/x", "10.0.0.1", 2), [429, 429]);
    assert_eq!(codes(&third.client(), "/x", "10.0.0.2", 5), [200, 200, 200, 200, 429]);
    assert_eq!(counter(&redis, "rate_limit:ip:10.0.0.1"), Some(8), "nothing is forgotten");
}

#[test]
fn keys_and_lives_are_the_documented_ones() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let policies = format!(
        r#"
[policies.ip]
key = "ip"
limit = 1000
window = "60s"
[policies.user]
key = "user"
limit = 1000
window = "60s"
[policies.api_token]
key = "user"
windows = [
    {{ limit = 100, window = "60s" }},
    {{ limit = 1000, window = "1h" }},
    {{ limit = 10000, window = "24h" }},
]
{ROUTE}auth = "required"
limits = ["ip", "user", "api_token"]
"#
    );
    let gateway = gateway(&config(&origin, PATIENT, &policies), &redis.url());
    for (number, subject) in ["ada", "a:b", "a", "*", "{}", "x\r\ny"].into_iter().enumerate() {
        let token = Token::of(subject).sign();
        for _ in 0..2 {
            let reply = get_from(&gateway.client(), "/x", &address(number)).bearer(&token).send();
            assert_eq!(reply.code(), 200, "{}", reply.text());
        }
    }
    for (key, life) in [
        ("rate_limit:ip:10.0.0.0", 60),
        ("rate_limit:user:ada", 60),
        ("rate_limit:api_token:ada:minute", 60),
        ("rate_limit:api_token:ada:hour", 3_600),
        ("rate_limit:api_token:ada:day", 86_400),
    ] {
        assert_eq!(counter(&redis, key), Some(2), "{key}");
        assert!((life - 20..=life).contains(&ttl(&redis, key)), "{key}");
    }
    let keys = redis.keys();
    assert!(redis.keys_without_ttl().is_empty(), "{keys:?}");
    let of_users = keys.iter().filter(|key| key.starts_with("rate_limit:user:")).count();
    assert_eq!(of_users, 6, "no two subjects share a counter: {keys:?}");
    assert!(keys.iter().all(|key| !key.contains(['*', '{', '\r'])), "{keys:?}");
}

#[test]
fn no_key_is_ever_without_ttl_whatever_is_killed_or_paused() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let policies = ["fixed-window", "sliding-window", "token-bucket"].map(|name| {
        format!("[policies.{name}]\nkey = \"ip\"\nalgorithm = \"{name}\"\nlimit = 5\nwindow = \"60s\"\n")
    });
    let policies = policies.concat();
    let rest =
        format!("{policies}{ROUTE}limits = [\"fixed-window\", \"sliding-window\", \"token-bucket\"]\n");
    let [first, second] = pair(&config(&origin, "", &rest), &redis);
    let from_many = |client: &Client, number: usize| {
        get_from(client, "/x", &address(number % 300)).within(Duration::from_secs(5))
    };
    let loads = [first.addr(), second.addr()].map(|addr| Load::start(4, addr, from_many));
    for load in &loads {
        load.wait_for_more(50);
    }
    first.kill();
    loads[1].wait_for_more(50);
    redis.pause();
    loads[1].wait_for_more(50);
    redis.resume();
    loads[1].wait_for_more(200);
    second.kill();
    drop(loads);
    assert!(redis.keys().len() > 100);
    assert_eq!(redis.keys_without_ttl(), Vec::<String>::new());
}

#[test]
fn a_refusal_by_the_hour_leaves_the_minute_and_the_day_as_they_were() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let rest = format!(
        r#"
[policies.api]
key = "ip"
windows = [
    {{ limit = 100, window = "60s" }},
    {{ limit = 5, window = "1h" }},
    {{ limit = 100, window = "24h" }},
]
{ROUTE}limits = ["api"]
"#
    );
    let gateways = pair(&config(&origin, PATIENT, &rest), &redis);
    for gateway in &gateways {
        codes(&gateway.client(), "/x", "10.0.0.1", 8);
    }
    let counts =
        ["minute", "hour", "day"].map(|name| counter(&redis, &format!("rate_limit:api:10.0.0.1:{name}")));
    assert_eq!(counts, [Some(5); 3]);
    assert_eq!(origin.hits(), 5);
}

#[test]
fn several_policies_are_all_or_nothing_and_only_penalising_ones_count_refusals() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let rest = r#"
[policies.ip]
key = "ip"
limit = 10
window = "60s"
[policies.user]
key = "user"
limit = 3
window = "60s"
[policies.strict]
key = "ip"
limit = 2
window = "60s"
penalise = true
[[routes]]
name = "both"
path = "/both"
upstream = "app"
auth = "required"
limits = ["ip", "user"]
[[routes]]
name = "penalised"
path = "/penalised"
upstream = "app"
limits = ["strict"]
"#;
    let gateways = pair(&config(&origin, PATIENT, rest), &redis);
    let token = Token::of("ada").sign();
    for gateway in &gateways {
        for _ in 0..5 {
            get_from(&gateway.client(), "/both", "10.0.0.1").bearer(&token).send();
        }
    }
    assert_eq!(origin.hits(), 3);
    assert_eq!(counter(&redis, "rate_limit:user:ada"), Some(3));
    assert_eq!(counter(&redis, "rate_limit:ip:10.0.0.1"), Some(3), "a refusal by the user counts for nobody");
    for gateway in &gateways {
        codes(&gateway.client(), "/penalised", "10.0.0.2", 5);
    }
    assert_eq!(origin.hits(), 5);
    assert_eq!(counter(&redis, "rate_limit:strict:10.0.0.2"), Some(10));
}

fn number(reply: &Response, name: &str) -> i64 {
    let text = reply.header(name).unwrap_or_else(|| panic!("no {name}: {reply:?}"));
    text.parse().unwrap_or_else(|_| panic!("{name}: {text}"))
}

/// `(name, [parameters])` of a structured list of strings.
fn members(reply: &Response, name: &str, parameters: [&str; 2]) -> Vec<(String, [i64; 2])> {
    let text = reply.header(name).unwrap_or_else(|| panic!("no {name}: {reply:?}"));
    let list: sfv::List = Parser::new(text).parse().unwrap_or_else(|error| panic!("{name}: {text}: {error}"));
    list.into_iter()
        .map(|entry| {
            let ListEntry::Item(item) = entry else { panic!("{name}: {text}") };
            let BareItem::String(member) = &item.bare_item else { panic!("{name}: {text}") };
            let values = parameters.map(|parameter| {
                let value = item.params.get(parameter).unwrap_or_else(|| panic!("no {parameter}: {text}"));
                let BareItem::Integer(value) = value else { panic!("{text}") };
                i64::from(*value)
            });
            (member.as_str().to_owned(), values)
        })
        .collect()
}

#[test]
fn clients_read_the_same_steady_numbers_from_every_instance() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let rest = format!(
        "[policies.login]\nkey = \"ip\"\nwindows = [{{ limit = 5, window = \"60s\" }}, {{ limit = 9, window = \"1h\" }}]\n\
         {ROUTE}limits = [\"login\"]\n"
    );
    let gateways = pair(&config(&origin, PATIENT, &rest), &redis);
    let clients = [gateways[0].client(), gateways[1].client()];
    let replies: Vec<Response> = (0..9).map(|n| get_from(&clients[n % 2], "/x", "10.0.0.1").send()).collect();
    let until = number(&replies[0], "x-ratelimit-reset");
    let now = unix_seconds();
    assert!((now + 30..=now + 61).contains(&until), "{until} at {now}");
    for (sent, reply) in (1..).zip(&replies) {
        let left = (5 - sent).max(0);
        assert_eq!(reply.code(), if sent <= 5 { 200 } else { 429 });
        assert_eq!(number(reply, "x-ratelimit-limit"), 5);
        assert_eq!(number(reply, "x-ratelimit-remaining"), left, "request {sent}");
        assert_eq!(number(reply, "x-ratelimit-reset"), until, "request {sent}");
        let policies = members(reply, "ratelimit-policy", ["q", "w"]);
        let expected = [("login-minute".to_owned(), [5, 60]), ("login-hour".to_owned(), [9, 3_600])];
        assert_eq!(policies, expected);
        let limits = members(reply, "ratelimit", ["r", "t"]);
        assert_eq!(limits[0].0, "login-minute");
        assert_eq!(limits[0].1[0], left);
        assert!((30..=60).contains(&limits[0].1[1]), "{limits:?}");
        assert_eq!(limits[1].1[0], 9 - sent.min(5));
        assert_eq!(reply.header("retry-after").is_some(), sent > 5);
        if sent > 5 {
            assert!((30..=60).contains(&number(reply, "retry-after")));
            assert_eq!(reply.detail(), "Rate limit exceeded. Max 5 requests per 60 seconds.");
            assert_eq!(reply.json()["status"], 429);
            assert_eq!(reply.json()["violated-policies"], json!(["login-minute"]));
        }
    }
}

#[test]
fn plans_and_their_multipliers_bind_however_hostile_the_token() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let rest = format!(
        r#"
[limits]
default_plan = "free"
anonymous_plan = "anonymous"
multiplier_cap = 4
[plans.anonymous]
minute = 2
[plans.free]
minute = 3
[plans.pro]
minute = 5
[policies.plan]
key = "caller"
plan = true
{ROUTE}auth = "optional"
limits = ["plan"]
"#
    );
    let gateway = gateway(&config(&origin, PATIENT, &rest), &redis.url());
    let client = gateway.client();
    let limit_of = |token: &Token| {
        let reply = client.get("/x").bearer(&token.sign()).send();
        assert_eq!(reply.code(), 200, "{}", reply.text());
        number(&reply, "x-ratelimit-limit")
    };
    let pro = |subject: &str| Token::of(subject).claim("subscription_plan", "pro");
    assert_eq!(limit_of(&Token::of("u1")), 3);
    assert_eq!(limit_of(&pro("u2")), 5);
    for (number, plan) in
        [json!("no-such"), json!("p\r\nx"), json!(7), json!(["pro"]), json!("PRO ")].into_iter().enumerate()
    {
        assert_eq!(
            limit_of(&Token::of(&format!("p{number}")).claim("subscription_plan", plan.clone())),
            3,
            "{plan}"
        );
    }
    let with = |subject: &str, multiplier: Value| pro(subject).claim("rate_limit_multiplier", multiplier);
    assert_eq!(limit_of(&with("u3", json!(2))), 10);
    assert_eq!(limit_of(&with("u4", json!(0.5))), 2);
    assert_eq!(limit_of(&with("u5", json!(1e308))), 20, "up to the cap");
    for (number, hostile) in
        [json!(0), json!(-1), json!("NaN"), json!("20"), json!([9]), Value::Null].into_iter().enumerate()
    {
        assert_eq!(limit_of(&with(&format!("h{number}"), hostile.clone())), 5, "{hostile}");
    }

    for _ in 0..4 {
        client.get("/x").bearer(&pro("u2").sign()).send();
    }
    assert_eq!(
        client.get("/x").bearer(&pro("u2").sign()).send().detail(),
        "Rate limit exceeded for pro plan"
    );
    let anonymous: Vec<Response> = (0..3).map(|_| get_from(&client, "/x", "10.9.9.9").send()).collect();
    assert_eq!(anonymous[2].code(), 429);
    assert_eq!(anonymous[2].detail(), "Rate limit exceeded");
}

#[test]
fn a_counter_that_was_reset_or_flushed_admits_again_within_five_seconds_and_exactly() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateways = pair(&config(&origin, PATIENT, &ip_policy(10, "60s", "fixed-window")), &redis);
    let run = || concurrently(4, |n| codes(&gateways[n % 2].client(), "/x", "10.0.0.1", 10)).concat();
    let takes_notice = |gateway: usize| {
        let client = gateways[gateway].client();
        let begin = Instant::now();
        assert_eventually!(
            get_from(&client, "/x", "10.0.0.1").send().code() == 200,
            "the reset is noticed",
            Duration::from_secs(5)
        );
        begin.elapsed()
    };
    assert_eq!(admitted(&run()), 10);
    redis.flush();
    takes_notice(0);
    takes_notice(1);
    assert_eq!(admitted(&run()), 8, "two were used up by noticing");
    // An operator grants three in the same window.
    redis::cmd("DECRBY").arg("rate_limit:ip:10.0.0.1").arg(3).exec(&mut redis.client()).unwrap();
    takes_notice(0);
    takes_notice(1);
    assert_eq!(admitted(&run()), 1);
    assert_eq!(counter(&redis, "rate_limit:ip:10.0.0.1"), Some(10));
}

#[test]
fn an_api_token_that_is_found_to_be_deleted_uses_up_no_limit() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let rest = r#"
[api_tokens]
enabled = true
[policies.user]
key = "user"
limit = 3
window = "1h"
[policies.abuse]
key = "ip"
limit = 100
window = "1h"
penalise = true
[[routes]]
name = "all"
path = "/**"
upstream = "app"
auth = "required"
limits = ["user", "abuse"]
"#;
    let gateway = gateway(&config(&origin, PATIENT, rest), &redis.url());
    let create = || -> (String, String) {
        let order = json!({"name": "ci", "owner": "ada"});
        let made = gateway.admin().post("/api/v1/api-tokens/create").bearer(ADMIN_TOKEN).json(&order).send();
        let made: Value = made.json();
        (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned())
    };
    let ask = |token: &str| gateway.client().get("/x").header("x-api-key", token).send().code();
    let tokens = [create(), create()];
    assert_eq!(tokens.each_ref().map(|(_, token)| ask(token)), [200, 200]);
    // Not by a call of the gateway's, which would hear of it.
    redis::cmd("DEL").arg(format!("api_token:{}", tokens[0].0)).exec(&mut redis.client()).unwrap();
    assert_eq!([(); 4].map(|()| ask(&tokens[0].1)), [401; 4]);
    assert_eventually!(counter(&redis, "rate_limit:user:ada") == Some(2), "what was counted is taken back");
    assert_eq!(counter(&redis, "rate_limit:abuse:127.0.0.1"), Some(3), "but by policies that count refusals");
    assert_eq!([(); 2].map(|()| ask(&tokens[1].1)), [200, 429]);
}
