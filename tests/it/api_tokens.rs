//! API tokens at real gateways: made by command and admin API, used by both carriers, changed on one instance and judged
//! by it on the other at the next request, and what attackers get.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::setup::{PATIENT, ROOMY, config, counter, gateway, pair, ttl};
use crate::support::client::{Client, Response};
use crate::support::cluster::Cluster;
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::origin::{Origin, Reply};
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::{SECRET, Token};

const ROUTES: &str = r#"
[api_tokens]
enabled = true

[policies.api_token]
key = "api_token"
windows = [
    { limit = 60, window = "60s" },
    { limit = 1000, window = "1h" },
    { limit = 10000, window = "24h" },
]

[defaults]
upstream = "app"
auth = "required"
limits = ["api_token"]

[[routes]]
name = "all"
path = "/**"

[[routes]]
name = "open"
path = "/open"
auth = "none"
limits = []

[[routes]]
name = "maybe"
path = "/maybe"
auth = "optional"

[[routes]]
name = "write"
path = "/write"
permissions = ["write"]

[[routes]]
name = "mine"
path = "/mine"
limits = []
[routes.cache]
ttl = "5m"

[[routes]]
name = "logout"
path = "/logout"
methods = ["POST"]
logout = "gateway"
"#;

pub fn text(origin: &Origin, redis: &str) -> String {
    config(origin, redis, ROUTES)
}

pub fn call(gateway: &Gateway, name: &str, body: &Value) -> Response {
    gateway.admin().post(&format!("/api/v1/api-tokens/{name}")).bearer(ADMIN_TOKEN).json(body).send()
}

pub fn done(gateway: &Gateway, name: &str, body: &Value) -> Value {
    let response = call(gateway, name, body);
    assert_eq!(response.code(), 200, "{name} {body}: {}", response.text());
    response.json()
}

/// A token of ada's with more of an order; its id and the whole of it.
pub fn create(gateway: &Gateway, more: &Value) -> (String, String) {
    let mut order = json!({"name": "ci", "owner": "ada"});
    order.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let made = done(gateway, "create", &order);
    (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned())
}

pub fn get(gateway: &Gateway, path: &str, token: &str) -> Response {
    gateway.client().get(path).bearer(token).send()
}

pub fn said(response: &Response) -> (u16, String) {
    (response.code(), if response.code() == 200 { String::new() } else { response.detail() })
}

pub fn ok() -> (u16, String) {
    (200, String::new())
}

pub fn refused(detail: &str) -> (u16, String) {
    (401, detail.to_owned())
}

pub fn command(arguments: &[&str], gateway: &Gateway, url: &str) -> Output {
    let path = gateway.config_path().display().to_string();
    let (sub, rest) = arguments.split_at(2);
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(sub)
        .args(["--config", &path])
        .args(rest)
        .env_clear()
        .env("REDIS_URL", url)
        .env("JWT_SECRET", SECRET)
        .env("TOLLGATE_ADMIN_TOKEN", ADMIN_TOKEN)
        .output()
        .unwrap()
}

pub fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_token_made_by_command_or_admin_api_is_taken_from_both_carriers_and_never_sent_on() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&text(&origin, PATIENT), &redis.url());
    let arguments =
        ["api-token", "create", "--name", "ci", "--owner", "ada", "--plan", "pro", "--permission", "write"];
    let made = command(&arguments, &gateway, &redis.url());
    let printed = out(&made);
    let by_command = printed.strip_suffix('\n').unwrap().to_owned();
    assert_eq!((by_command.len(), by_command.starts_with("tgk_")), (64, true), "alone on standard output");
    let advice = String::from_utf8(made.stderr).unwrap();
    assert!(advice.contains("not shown again") && !advice.contains(&by_command[21..]), "{advice}");
    let (_, by_admin) = create(&gateway, &json!({"plan": "pro", "permissions": ["write"]}));
    for token in [&by_command, &by_admin] {
        for (name, value) in [("authorization", format!("Bearer {token}")), ("x-api-key", token.clone())] {
            for path in ["/a", "/maybe", "/write"] {
                let response = gateway.client().get(path).header(name, &value).send();
                assert_eq!(said(&response), ok(), "{name} {path}");
                let got = origin.last();
                assert_eq!((got.header("x-user-id"), got.header("x-user-plan")), (Some("ada"), Some("pro")));
                assert_eq!(got.header("x-user-permissions"), Some("write"));
                assert!(!format!("{got:?}").contains(&token[21..]), "{got:?}");
            }
            // Where nobody looks at it, it does not go on either.
            assert_eq!(gateway.client().get("/open").header(name, &value).send().code(), 200);
            assert!(!format!("{:?}", origin.last()).contains(&token[21..]), "{:?}", origin.last());
        }
        for key in redis.keys() {
            let value: Vec<u8> = redis::cmd("DUMP").arg(&key).query(&mut redis.client()).unwrap();
            let shown = String::from_utf8_lossy(&value);
            assert!(!shown.contains(&token[21..]) && !key.contains(&token[21..]), "{key}");
        }
        assert!(!gateway.logs().contains(&token[21..]) && !gateway.metrics().contains(&token[21..]));
    }
    assert_eq!(said(&get(&gateway, "/a", &Token::of("bob").sign())), ok(), "JWTs as before");
    assert_eq!(origin.last().header("x-user-id"), Some("bob"));
}

#[test]
fn limits_are_the_tokens_own_and_one_for_all_instances() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [one, two] = pair(&text(&origin, PATIENT), &redis);
    let (id, token) = create(&one, &json!({"limits": {"minute": 5, "day": 20000}}));
    let (other, plain) = create(&two, &json!({}));
    let codes: Vec<u16> = (0..8).map(|n| get([&one, &two][n % 2], "/a", &token).code()).collect();
    assert_eq!(codes, [200, 200, 200, 200, 200, 429, 429, 429]);
    assert_eq!(get(&one, "/a", &token).detail(), "Rate limit exceeded. Max 5 requests per 60 seconds.");
    for (window, life, limit) in [("minute", 60, 5), ("hour", 3_600, 1_000), ("day", 86_400, 20_000)] {
        let key = format!("rate_limit:api_token:{id}:{window}");
        assert_eq!(counter(&redis, &key), Some(5));
        let left = ttl(&redis, &key);
        assert!(left <= life && left > life - 100, "{key}: {left}");
        let read = one.admin().post("/api/v1/quota/read").bearer(ADMIN_TOKEN).json(&json!({"api_token": id}));
        let read = read.send().json();
        let told = read["counters"].as_array().unwrap().iter().find(|told| told["window"] == window).unwrap();
        assert_eq!(told["limit"], limit, "{read}");
    }
    let response = get(&two, "/a", &plain);
    assert_eq!((response.code(), response.header("x-ratelimit-limit")), (200, Some("60")));
    assert_eq!(counter(&redis, &format!("rate_limit:api_token:{other}:minute")), Some(1));
    let quota = get(&two, "/_tollgate/quota", &token).json();
    assert_eq!((&quota["counters"][0]["limit"], &quota["counters"][0]["remaining"]), (&json!(5), &json!(0)));
}

#[test]
fn what_is_changed_on_one_instance_holds_on_the_other_at_the_next_request() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [one, two] = pair(&text(&origin, PATIENT), &redis);
    for _ in 0..5 {
        let (id, token) = create(&one, &json!({}));
        let id = json!({ "id": id });
        assert_eq!([said(&get(&one, "/a", &token)), said(&get(&two, "/a", &token))], [ok(), ok()]);
        assert_eq!(done(&one, "disable", &id)["disabled"], true);
        for instance in [&two, &one] {
            assert_eq!(said(&get(instance, "/a", &token)), refused("Token revoked"));
        }
        assert_eq!(done(&one, "enable", &id)["disabled"], false);
        assert_eq!(said(&get(&two, "/a", &token)), ok());
        let fresh = done(&one, "rotate", &id)["token"].as_str().unwrap().to_owned();
        assert_eq!(said(&get(&two, "/a", &fresh)), ok(), "the new secret");
        assert_eq!(said(&get(&two, "/a", &token)), refused("Invalid token"), "and not the old one");
        assert_eq!(said(&get(&one, "/a", &token)), refused("Invalid token"));
        let grace = json!({"id": id["id"], "grace": "1h"});
        let newer = done(&two, "rotate", &grace)["token"].as_str().unwrap().to_owned();
        for secret in [&fresh, &newer] {
            assert_eq!([said(&get(&one, "/a", secret)), said(&get(&two, "/a", secret))], [ok(), ok()]);
        }
        assert_eq!(done(&one, "delete", &id)["deleted"], true);
        for instance in [&two, &one] {
            assert_eq!(said(&get(instance, "/a", &newer)), refused("Invalid token"));
        }
        for name in ["delete", "disable", "rotate"] {
            assert_eq!(call(&two, name, &id).code(), 404, "{name}");
        }
    }
    assert_eq!(done(&one, "list", &json!({}))["tokens"], json!([]));
    assert!(redis.keys().iter().all(|key| !key.starts_with("api_token")), "{:?}", redis.keys());
}

#[test]
fn commands_change_tokens_too_and_show_no_secret() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&text(&origin, PATIENT), &redis.url());
    let (id, token) =
        create(&gateway, &json!({"name": "nightly", "permissions": ["read"], "expires_in": "1h"}));
    assert_eq!(said(&get(&gateway, "/a", &token)), ok());
    let run = |arguments: &[&str]| command(arguments, &gateway, &redis.url());
    out(&run(&["api-token", "disable", &id]));
    assert_eq!(said(&get(&gateway, "/a", &token)), refused("Token revoked"));
    let inspected = run(&["token", "inspect", &token]);
    assert!(!inspected.status.success());
    assert!(String::from_utf8_lossy(&inspected.stdout).contains("it is disabled"));
    let listed = out(&run(&["api-token", "list"]));
    assert!(listed.contains(&id) && listed.contains("nightly") && listed.contains("disabled"), "{listed}");
    out(&run(&["api-token", "enable", &id]));
    let inspected = out(&run(&["token", "inspect", &token]));
    assert!(inspected.contains("accepted") && inspected.contains("nightly"), "{inspected}");
    let rotated = out(&run(&["api-token", "rotate", &id, "--grace", "1h"]));
    assert_eq!(
        [said(&get(&gateway, "/a", rotated.trim())), said(&get(&gateway, "/a", &token))],
        [ok(), ok()]
    );
    let listed = out(&run(&["api-token", "list", "--json", "--owner", "ada"]));
    let all: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&all[0]["id"], &all[0]["permissions"]), (&json!(id), &json!(["read"])));
    assert!(all[0]["previous_until"].is_u64() && all[0]["expires"].is_u64());
    let stored: String = redis::cmd("GET").arg(format!("api_token:{id}")).query(&mut redis.client()).unwrap();
    let hash = serde_json::from_str::<Value>(&stored).unwrap()["secret"].as_str().unwrap().to_owned();
    let admin = done(&gateway, "list", &json!({})).to_string();
    for text in [&listed, &admin] {
        assert!(
            !text.contains(&hash) && !text.contains(&token[21..]) && !text.contains(&rotated.trim()[21..])
        );
    }
    assert_eq!(out(&run(&["api-token", "list", "--json", "--owner", "eve"])).trim(), "[]");
    let unknown = run(&["api-token", "create", "--name", "x", "--owner", "ada", "--plan", "gold"]);
    assert!(
        !unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("no plan is named")
    );
    out(&run(&["api-token", "delete", &id]));
    assert_eq!(said(&get(&gateway, "/a", rotated.trim())), refused("Invalid token"));
    assert!(!run(&["api-token", "delete", &id]).status.success());
    let nowhere = command(&["api-token", "list"], &gateway, "");
    assert!(!nowhere.status.success() && String::from_utf8_lossy(&nowhere.stderr).contains("admin API"));
    let wrong =
        gateway.admin().post("/api/v1/revocations").bearer(ADMIN_TOKEN).json(&json!({"token": token}));
    let wrong = wrong.send();
    assert_eq!(wrong.code(), 422);
    assert!(wrong.detail().contains("/api/v1/api-tokens"), "{}", wrong.detail());
}

#[test]
fn tokens_expire_lack_permissions_and_end_no_session() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&text(&origin, PATIENT), &redis.url());
    let (id, brief) = create(&gateway, &json!({"expires_in": 6, "permissions": ["read"]}));
    assert_eq!(said(&get(&gateway, "/write", &brief)), (403, "Not enough permissions".to_owned()));
    let logout = gateway.client().post("/logout").bearer(&brief).send();
    assert_eq!(logout.code(), 403);
    assert_eventually!(said(&get(&gateway, "/a", &brief)) == refused("Token expired"), "it expires");
    let left: i64 = redis::cmd("TTL").arg(format!("api_token:{id}")).query(&mut redis.client()).unwrap();
    assert!((29 * 86_400..=30 * 86_400).contains(&left), "{left}");
    // Logging ada out everywhere is about her logins; a ban is about her.
    let (_, token) = create(&gateway, &json!({}));
    let jwt = Token::of("ada").sign();
    assert_eq!([said(&get(&gateway, "/a", &token)), said(&get(&gateway, "/a", &jwt))], [ok(), ok()]);
    crate::setup::revoke_everywhere(&gateway, &json!({"subject": "ada"}));
    assert_eq!(said(&get(&gateway, "/a", &jwt)), refused("Token revoked"));
    assert_eq!(said(&get(&gateway, "/a", &token)), ok());
    let () = redis::cmd("SET").arg("ban:user:ada").arg(1).query(&mut redis.client()).unwrap();
    assert_eq!(get(&gateway, "/a", &token).code(), 403);
}

#[test]
fn the_last_use_is_noted_and_two_tokens_of_one_owner_share_a_cache() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&text(&origin, PATIENT), &redis.url());
    origin.answer(|_| Reply::text(200, "fresh"));
    let (_, one) = create(&gateway, &json!({}));
    let (_, two) = create(&gateway, &json!({}));
    let (_, bobs) = create(&gateway, &json!({"owner": "bob"}));
    let used = || -> Vec<bool> {
        let listed = done(&gateway, "list", &json!({"owner": "ada"}));
        listed["tokens"].as_array().unwrap().iter().map(|token| token["last_used"].is_u64()).collect()
    };
    assert_eq!(used(), [false, false]);
    let cached = |token: &str| get(&gateway, "/mine", token).header("x-cache").unwrap().to_owned();
    assert_eq!(cached(&one), "MISS");
    assert_eventually!(used().iter().filter(|used| **used).count() == 1, "the use of one is noted");
    assert_eq!([cached(&two), cached(&bobs), cached(&bobs)], ["HIT", "MISS", "HIT"]);
    assert_eventually!(used() == [true, true], "the use of the other is noted");
    // A cached answer is no way around a token that holds no more.
    let listed = done(&gateway, "list", &json!({"owner": "bob"}));
    done(&gateway, "disable", &json!({"id": listed["tokens"][0]["id"]}));
    assert_eq!(said(&get(&gateway, "/mine", &bobs)), refused("Token revoked"));
    let mut monitor = redis.monitor();
    for _ in 0..5 {
        cached(&one);
    }
    let noted =
        |command: &crate::support::redis::Executed| command.words.iter().any(|word| word.contains("_used"));
    assert!(!monitor.commands().iter().any(noted), "once a minute");
}

#[test]
fn while_redis_is_away_known_tokens_go_on_and_unknown_ones_cannot_be_judged() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let gateway = gateway(&text(&origin, ROOMY), &relay.redis_url());
    let (_, known) = create(&gateway, &json!({}));
    let (_, unknown) = create(&gateway, &json!({}));
    assert_eq!(said(&get(&gateway, "/a", &known)), ok());
    relay.cut();
    assert_eventually!(gateway.metric("tollgate_store_degraded", &[]) == Some(1.0), "the outage shows");
    for _ in 0..3 {
        assert_eq!(said(&get(&gateway, "/a", &known)), ok());
        let response = get(&gateway, "/a", &unknown);
        assert_eq!(
            (response.code(), response.header("retry-after")),
            (503, Some("1")),
            "{}",
            response.text()
        );
        let wrong = format!("{}{}", &known[..63], if known.ends_with('x') { 'y' } else { 'x' });
        assert_eq!(get(&gateway, "/a", &wrong).code(), 503, "it may have been given this secret meanwhile");
    }
    assert_eq!(call(&gateway, "create", &json!({"name": "x", "owner": "x"})).code(), 503);
    relay.restore();
    assert_eventually!(said(&get(&gateway, "/a", &unknown)) == ok(), "it is judged again");
}

#[test]
fn without_redis_tokens_live_in_memory_and_the_answer_says_so() {
    let origin = Origin::start();
    let gateway = gateway(&text(&origin, ""), "");
    let made = done(&gateway, "create", &json!({"name": "ci", "owner": "ada", "limits": {"minute": 3}}));
    assert_eq!(made["shared"], false);
    assert!(made["note"].as_str().unwrap().contains("ends with the process"), "{made}");
    let (id, token) = (json!({"id": made["id"]}), made["token"].as_str().unwrap());
    let codes: Vec<u16> = (0..4).map(|_| get(&gateway, "/a", token).code()).collect();
    assert_eq!(codes, [200, 200, 200, 429]);
    assert!(done(&gateway, "list", &json!({}))["tokens"][0]["last_used"].is_u64());
    let fresh = done(&gateway, "rotate", &id)["token"].as_str().unwrap().to_owned();
    assert_eq!(said(&get(&gateway, "/mine", token)), refused("Invalid token"));
    assert_eq!(get(&gateway, "/mine", &fresh).code(), 200);
    done(&gateway, "disable", &id);
    assert_eq!(said(&get(&gateway, "/mine", &fresh)), refused("Token revoked"));
    done(&gateway, "delete", &id);
    assert_eq!(said(&get(&gateway, "/mine", &fresh)), refused("Invalid token"));
}

#[test]
fn a_steady_request_is_one_exchange_and_malformed_or_repeated_strangers_are_none() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let gateway = gateway(&text(&origin, PATIENT).replace("threads = 2", "threads = 1"), &relay.redis_url());
    let (id, token) = create(&gateway, &json!({}));
    let client = gateway.client();
    let send = |token: &str| client.get("/a").bearer(token).send().code();
    for _ in 0..3 {
        assert_eq!(send(&token), 200);
    }
    let key = format!("api_token_used:{id}");
    assert_eventually!(counter(&redis, &key).is_some(), "what happens in the background is done");
    // Heartbeats and the like come between; what a request asks names the token.
    let concerning = |part: &str| {
        let traffic = relay.take_traffic();
        traffic
            .commands
            .into_iter()
            .filter(|command| command.iter().any(|word| word.contains(part)))
            .collect::<Vec<_>>()
    };
    concerning("");
    for _ in 0..10 {
        assert_eq!(send(&token), 200);
    }
    let asked = concerning(&id);
    let names: Vec<&str> = asked.iter().map(|command| command[0].as_str()).collect();
    assert_eq!(names, ["MGET", "INCR", "INCR", "INCR"].repeat(10), "the record is read with the guards");
    assert!(asked[0].contains(&format!("api_token:{id}")) && asked[0].contains(&"ban:user:ada".to_owned()));

    let malformed =
        [&token[..63], &token.replace("tgk_", "tgk-"), &format!("{token}A"), &token.to_uppercase()];
    for bad in malformed {
        for _ in 0..50 {
            assert_eq!(send(bad), 401);
        }
    }
    assert_eq!(concerning("api_token"), Vec::<Vec<String>>::new(), "the form alone refuses them");
    let stranger = format!("tgk_0000000000000000_{}", "0".repeat(43));
    for _ in 0..200 {
        assert_eq!(send(&stranger), 401);
    }
    let lookups = concerning("api_token:0000000000000000").len();
    assert!((1..=20).contains(&lookups), "{lookups} lookups of one unknown id");
}

#[test]
fn attackers_get_one_answer() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&text(&origin, PATIENT), &redis.url());
    let (id, token) = create(&gateway, &json!({}));
    let (_, other) = create(&gateway, &json!({}));
    assert_eq!([said(&get(&gateway, "/a", &token)), said(&get(&gateway, "/a", &other))], [ok(), ok()]);
    let client = gateway.client();
    let mixed = format!("{}{}", &token[..21], &other[21..]);
    let unknown = format!("tgk_zzzzzzzzzzzzzzzz_{}", &token[21..]);
    let swapped: String = token
        .chars()
        .map(|c| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
        .collect();
    let flipped = format!("{}{}", &token[..21], &swapped[21..]);
    let bodies: Vec<String> = [&mixed, &unknown, &flipped]
        .into_iter()
        .map(|bad| {
            let response = get(&gateway, "/a", bad);
            assert_eq!(said(&response), refused("Invalid token"), "{bad}");
            let challenge = response.header("www-authenticate").unwrap().to_owned();
            format!("{challenge} {}", response.text())
        })
        .collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:#?}");
    let blacklisted: usize = redis.keys().iter().filter(|key| key.starts_with("blacklist")).count();
    assert_eq!(blacklisted, 0);
    for lines in [
        &[("authorization", format!("Bearer {token}")), ("x-api-key", token.clone())][..],
        &[("authorization", format!("Bearer {}", Token::of("ada").sign())), ("x-api-key", token.clone())],
        &[("x-api-key", token.clone()), ("x-api-key", other.clone())],
        &[("authorization", format!("Bearer {token} {token}"))],
        &[("authorization", format!("Bearer {token},{token}"))],
        &[("authorization", format!("Bearer\t{token}"))],
        &[("authorization", format!("Bearer \"{token}\""))],
        &[("authorization", format!("Basic {token}"))],
        &[("authorization", token.clone())],
        &[("x-api-key", format!("Bearer {token}"))],
        &[("x-api-key", String::new())],
        &[("x-api-key", Token::of("ada").sign())],
        &[("x-api-key", swapped.clone())],
        &[("x-api-key", "x".repeat(9_000))],
        &[("x_api_key", token.clone())],
        &[("cookie", format!("token={token}; X-API-Key={token}"))],
    ] {
        for path in ["/a", "/mine"] {
            let request =
                lines.iter().fold(client.get(path), |request, (name, value)| request.header(name, value));
            assert_eq!(request.send().code(), 401, "{lines:?}");
        }
    }
    let in_query = client.get(&format!("/a?access_token={token}&x-api-key={token}")).send();
    assert_eq!(in_query.code(), 401);
    let codes = [format!("bearer {token}"), format!("BEARER   {token}")]
        .map(|value| client.get("/a").header("authorization", &value).send().code());
    assert_eq!(codes, [200, 200]);
    assert_eq!(client.get("/a").header("X-Api-KEY", &format!("  {token}  ")).send().code(), 200);
    // What somebody else wrote into Redis is no token, and hurts nobody.
    for garbage in ["", "{}", "null", "[[[[", "{\"secret\":7}", &"x".repeat(100_000)] {
        let () =
            redis::cmd("SET").arg(format!("api_token:{id}")).arg(garbage).query(&mut redis.client()).unwrap();
        for _ in 0..2 {
            assert_eq!(said(&get(&gateway, "/a", &token)), refused("Invalid token"), "{garbage:.20}");
        }
        assert_eq!(said(&get(&gateway, "/a", &other)), ok());
    }
    assert_eventually!(gateway.count_logs("is no API token") == 6, "once each");
    let () = redis::cmd("DEL").arg(format!("api_token:{id}")).query(&mut redis.client()).unwrap();
    let () = redis::cmd("SADD").arg(format!("api_token:{id}")).arg("x").query(&mut redis.client()).unwrap();
    assert_eq!(said(&get(&gateway, "/a", &token)), refused("Invalid token"));
    assert_eq!(done(&gateway, "list", &json!({}))["tokens"].as_array().unwrap().len(), 1);
}

#[test]
fn in_a_cluster_each_token_lives_on_its_own_node() {
    let (cluster, origin) = (Cluster::start(), Origin::start());
    let [one, two] = [(); 2].map(|()| gateway(&text(&origin, PATIENT), &cluster.url()));
    for instance in [&one, &two] {
        let status = || instance.admin().get("/health").send().json()["redis"]["status"] == "connected";
        assert_eventually!(status(), "the gateway reaches the cluster");
    }
    let made: Vec<(String, String)> = (0..6).map(|_| create(&one, &json!({}))).collect();
    for (id, token) in &made {
        assert_eq!([said(&get(&one, "/a", token)), said(&get(&two, "/a", token))], [ok(), ok()]);
        assert!(cluster.keys().contains(&format!("api_token:{{{id}}}")), "{:?}", cluster.keys());
    }
    assert_eq!(done(&two, "list", &json!({}))["tokens"].as_array().unwrap().len(), 6);
    for (id, token) in &made {
        done(&two, "disable", &json!({ "id": id }));
        assert_eq!(said(&get(&one, "/a", token)), refused("Token revoked"));
    }
    let listed = out(&command(&["api-token", "list", "--json"], &one, &cluster.url()));
    assert_eq!(listed.matches("\"disabled\": true").count(), 6, "{listed}");
}

#[test]
fn where_they_are_not_enabled_they_are_nothing() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let off = text(&origin, PATIENT).replace("enabled = true", "enabled = false");
    let [on, off] = [gateway(&text(&origin, PATIENT), &redis.url()), gateway(&off, &redis.url())];
    let (_, token) = create(&on, &json!({}));
    assert_eq!(said(&get(&off, "/a", &token)), refused("Invalid token"));
    let by_header = |path: &str| Client::new(off.addr()).get(path).header("x-api-key", "anything").send();
    assert_eq!(said(&by_header("/a")), refused("Not authenticated"));
    assert_eq!(by_header("/maybe").code(), 200);
    assert_eq!(origin.last().header("x-api-key"), Some("anything"), "it is the backend's");
    let response = call(&off, "list", &json!({}));
    assert_eq!(response.code(), 422);
    assert!(response.detail().contains("api_tokens.enabled"));
}
