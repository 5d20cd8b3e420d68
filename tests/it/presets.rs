//! The shipped presets, row by row, on the real binary with a real Redis in front of a scripted application.
//! Nothing is configured here but the environment that `PRESETS` promises to read.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redis::Commands as _;
use serde_json::json;

use crate::support::client::{Client, Response};
use crate::support::gateway::{ADMIN_TOKEN, Builder, Gateway};
use crate::support::origin::{Origin, Reply};
use crate::support::redis::Redis;
use crate::support::token::Token;

fn path(preset: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(format!("{preset}.toml"))
}

/// As shipped.
fn shipped(name: &str, origin: &Origin, redis_url: &str) -> Builder {
    environment(&std::fs::read_to_string(path(name)).unwrap(), origin.addr(), redis_url)
}

fn preset(name: &str, origin: &Origin, redis_url: &str) -> Builder {
    in_front_of(name, origin.addr(), redis_url)
}

/// As shipped, but patient with a Redis on a busy machine: a decision from memory is a right one, and not exact.
pub fn in_front_of(name: &str, application: SocketAddr, redis_url: &str) -> Builder {
    let text = std::fs::read_to_string(path(name)).unwrap();
    let patient = text.replace("[redis]\n", "[redis]\ndeadline = \"1s\"\n");
    assert_ne!(patient, text);
    environment(&patient, application, redis_url)
}

fn environment(text: &str, application: SocketAddr, redis_url: &str) -> Builder {
    Gateway::builder()
        .config(text)
        .env("TOLLGATE_LISTEN", "{listen}")
        .env("TOLLGATE_ADMIN_LISTEN", "{admin}")
        .env("TOLLGATE_UPSTREAM", &application.to_string())
        .env("REDIS_URL", redis_url)
}

fn todo() -> (Gateway, Origin, Redis) {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = preset("todo", &origin, &redis.url()).start();
    wait_for_the_store(&gateway);
    (gateway, origin, redis)
}

/// Counting is shared from the first probe on; before it, requests are counted in memory.
pub fn wait_for_the_store(gateway: &Gateway) {
    assert_eventually!(
        gateway.admin().get("/health").send().json()["redis"]["status"] == "connected",
        "the gateway reaches Redis"
    );
}

pub fn cached(response: &Response) -> &str {
    response.header("x-cache").unwrap_or("-")
}

pub fn ttl(redis: &Redis, key: &str) -> i64 {
    redis.client().ttl(key).unwrap()
}

#[test]
fn todo_login_is_limited_to_5_in_60_s_per_address() {
    let (gateway, origin, redis) = todo();
    let client = gateway.client();
    for left in (0..5).rev() {
        let response = client.post("/auth/login").json(&json!({"email": "a@b.c"})).send();
        assert_eq!(response.code(), 200);
        assert_eq!(response.header("x-ratelimit-limit"), Some("5"));
        assert_eq!(response.header("x-ratelimit-remaining"), Some(left.to_string().as_str()));
    }
    let refused = client.post("/auth/login").json(&json!({"email": "a@b.c"})).send();
    assert_eq!(refused.code(), 429);
    assert_eq!(refused.detail(), "Rate limit exceeded. Max 5 requests per 60 seconds.");
    let retry: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&retry), "{retry}");
    assert_eq!(origin.hits(), 5);
    let key = "rate_limit:login:127.0.0.1";
    assert!(redis.keys().iter().any(|known| known == key), "{:?}", redis.keys());
    assert!((1..=60).contains(&ttl(&redis, key)), "{}", ttl(&redis, key));
    // Other routes count for themselves.
    assert_eq!(client.get("/").send().code(), 200);
    // Nothing was cached yet, so that even the cache's epoch is not there.
    assert_eq!(redis.keys_without_ttl(), Vec::<String>::new());
}

#[test]
fn todo_registration_is_limited_to_3_an_hour_per_address() {
    let (gateway, _origin, redis) = todo();
    let client = gateway.client();
    let codes: Vec<u16> = (0..4).map(|_| client.post("/auth/register").send().code()).collect();
    assert_eq!(codes, [200, 200, 200, 429]);
    let refused = client.post("/auth/register").send();
    assert_eq!(refused.detail(), "Rate limit exceeded. Max 3 requests per 3600 seconds.");
    let left = ttl(&redis, "rate_limit:register:127.0.0.1");
    assert!((3_500..=3_600).contains(&left), "{left}");
}

#[test]
fn todo_everything_else_is_open_and_limited_to_100_in_60_s_per_address() {
    let (gateway, origin, redis) = todo();
    let client = gateway.client();
    for number in 1..=100 {
        let response = client.get(&format!("/anything/{number}")).send();
        assert_eq!((number, response.code()), (number, 200));
        assert_eq!(response.header("x-ratelimit-limit"), Some("100"));
    }
    let refused = client.request(http::Method::DELETE, "/anything").send();
    assert_eq!(refused.code(), 429);
    assert_eq!(refused.detail(), "Rate limit exceeded. Max 100 requests per 60 seconds.");
    assert_eq!(origin.hits(), 100);
    assert!((1..=60).contains(&ttl(&redis, "rate_limit:general:127.0.0.1")));
}

#[test]
fn todo_logout_revokes_the_token_for_the_rest_of_its_life() {
    let (gateway, origin, redis) = todo();
    let client = gateway.client();
    let token = Token::of("ada").expires_in(1_000);
    let bearer = token.sign();
    assert_eq!(client.get("/auth/me").bearer(&bearer).send().code(), 200);
    assert_eq!(client.post("/auth/logout").send().detail(), "Not authenticated");

    let hits = origin.hits();
    let logout = client.post("/auth/logout").bearer(&bearer).send();
    assert_eq!((logout.code(), logout.text().as_str()), (200, r#"{"msg":"Logged out successfully"}"#));
    assert_eq!(logout.header("content-type"), Some("application/json"));
    let key = format!("blacklist:{}", token.jti());
    let left = ttl(&redis, &key);
    assert!((900..=1_000 + 30).contains(&left), "{left}");

    for path in ["/auth/me", "/todo/", "/todo/1"] {
        let refused = client.get(path).bearer(&bearer).send();
        assert_eq!((refused.code(), refused.detail().as_str()), (401, "Token revoked"), "{path}");
        assert!(refused.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
    }
    assert_eq!(client.post("/auth/logout").bearer(&bearer).send().code(), 401);
    assert_eq!(origin.hits(), hits, "neither the logout nor the dead token reach the application");
    // Another token of the same user is another login.
    assert_eq!(client.get("/auth/me").bearer(&Token::of("ada").sign()).send().code(), 200);
}

#[test]
fn todo_a_logout_at_one_instance_holds_at_another() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [one, two] = [(); 2].map(|()| preset("todo", &origin, &redis.url()).start());
    wait_for_the_store(&one);
    wait_for_the_store(&two);
    let bearer = Token::of("ada").sign();
    assert_eq!(two.client().get("/todo/").bearer(&bearer).send().code(), 200);
    assert_eq!(one.client().post("/auth/logout").bearer(&bearer).send().code(), 200);
    let refused = two.client().get("/todo/").bearer(&bearer).send();
    assert_eq!((refused.code(), refused.detail().as_str()), (401, "Token revoked"));
}

#[test]
fn todo_profiles_and_lists_are_cached_for_their_user_alone() {
    let (gateway, origin, redis) = todo();
    let client = gateway.client();
    let (ada, bob) = (Token::of("ada").sign(), Token::of("bob").sign());
    for (path, lifetime) in [("/auth/me", 600), ("/todo/", 300), ("/todo/7", 300)] {
        assert_eq!(client.get(path).send().detail(), "Not authenticated", "{path}");
        origin.clear();
        let before = origin.hits();
        let first = client.get(path).bearer(&ada).send();
        assert_eq!((first.code(), cached(&first)), (200, "MISS"), "{path}");
        assert_eq!(first.header("x-ratelimit-limit"), Some("100"), "{path}");
        let second = client.get(path).bearer(&ada).send();
        assert_eq!((second.code(), cached(&second)), (200, "HIT"), "{path}");
        assert_eq!(second.body, first.body);
        assert!(second.header("age").is_some());
        let remaining =
            |response: &Response| response.header("x-ratelimit-remaining").unwrap().parse::<u64>().unwrap();
        assert!(remaining(&second) < remaining(&first), "limits are never replayed from the cache");
        let other = client.get(path).bearer(&bob).send();
        assert_eq!((other.code(), cached(&other)), (200, "MISS"), "{path}");
        assert_eq!(origin.hits() - before, 2, "{path}");
        assert_eq!(origin.received()[0].header("x-user-id"), Some("ada"));
        // The freshness that was declared is what the shared tier keeps it for.
        let mut lives: Vec<i64> = Vec::new();
        assert_eventually!(
            {
                lives = redis
                    .keys()
                    .iter()
                    .filter(|key| key.starts_with("cache:"))
                    .map(|key| ttl(&redis, key))
                    .collect();
                lives.iter().any(|life| (lifetime - 10..=lifetime).contains(life))
            },
            format!("an entry of {lifetime} s in Redis for {path}: {:?}", redis.keys())
        );
    }
    // The epoch of the cache is one key and stays.
    assert_eq!(redis.keys_without_ttl(), ["cache_tag:-epoch", "cache_tag:{-prefixes}"]);
}

#[test]
fn todo_writes_drop_the_list_and_the_record_on_every_instance() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [one, two] = [(); 2].map(|()| preset("todo", &origin, &redis.url()).start());
    wait_for_the_store(&one);
    wait_for_the_store(&two);
    let (ada, bob) = (Token::of("ada").sign(), Token::of("bob").sign());
    let read = |gateway: &Gateway, path: &str, who: &str| {
        let response = gateway.client().get(path).host("todo.example").bearer(who).send();
        assert_eq!(response.code(), 200);
        cached(&response).to_owned()
    };
    let warm = || {
        // This many requests are more than the general limit allows.
        let _: () = redis.client().del("rate_limit:general:127.0.0.1").unwrap();
        for gateway in [&one, &two] {
            for path in ["/todo/", "/todo/7", "/auth/me"] {
                for who in [&ada, &bob] {
                    assert_eventually!(read(gateway, path, who) == "HIT", format!("{path} is cached"));
                }
            }
        }
    };
    let writes = [
        (http::Method::POST, "/todo/"),
        (http::Method::PUT, "/todo/7"),
        (http::Method::PATCH, "/todo/7"),
        (http::Method::DELETE, "/todo/7"),
        (http::Method::POST, "/todo/7/done"),
    ];
    for (method, path) in writes {
        warm();
        origin.clear();
        let written = one.client().request(method.clone(), path).bearer(&ada).send();
        assert_eq!(written.code(), 200);
        assert_eq!(read(&two, "/todo/", &ada), "MISS", "the list after {method} {path}");
        assert_eq!(read(&two, "/todo/7", &ada), "MISS", "the record after {method} {path}");
        let record = if path == "/todo/" { "HIT" } else { "MISS" };
        assert_eq!(read(&two, "/todo/7", &bob), record, "the record is one for all users: {method} {path}");
        assert_eq!(read(&one, "/todo/", &bob), "HIT", "another user's list after {method} {path}");
        assert_eq!(read(&two, "/auth/me", &ada), "HIT", "the profile after {method} {path}");
        let reads = |path: &str| origin.received_at(path).iter().filter(|got| got.method == "GET").count();
        assert_eq!(reads("/todo/"), 1, "asked for once, after the write {method} {path}");
    }
    // A failed write changes nothing.
    warm();
    origin.route("/todo/7", |request| {
        if request.method == "PUT" { Reply::text(422, "no") } else { Reply::json(200, &request.echo()) }
    });
    assert_eq!(one.client().put("/todo/7").bearer(&ada).send().code(), 422);
    assert_eq!(read(&two, "/todo/", &ada), "HIT");
}

#[test]
fn todo_writes_need_a_token() {
    let (gateway, origin, _redis) = todo();
    for method in [http::Method::POST, http::Method::PUT, http::Method::PATCH, http::Method::DELETE] {
        for path in ["/todo/", "/todo/7", "/todo/7/a/b"] {
            let response = gateway.client().request(method.clone(), path).send();
            assert_eq!(response.code(), 401, "{method} {path}");
        }
    }
    assert_eq!(origin.hits(), 0);
}

pub fn codes(response: impl Iterator<Item = Response>) -> Vec<u16> {
    response.map(|response| response.code()).collect()
}

#[test]
fn api_gateway_two_instances_share_60_a_minute_and_a_restart_keeps_the_count() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let start = || preset("api-gateway", &origin, &redis.url());
    let [one, two] = [(); 2].map(|()| start().start());
    wait_for_the_store(&one);
    wait_for_the_store(&two);
    let clients = [one.client(), two.client()];
    let got = codes((0..70).map(|number| clients[number % 2].get("/api").send()));
    assert_eq!(got.iter().filter(|code| **code == 200).count(), 60, "{got:?}");
    assert_eq!(got[..60], [200; 60]);
    assert_eq!(got[60..], [429; 10]);
    assert_eq!(origin.hits(), 60);
    let key = "rate_limit:ip:127.0.0.1";
    assert!((1..=60).contains(&ttl(&redis, key)), "{:?}", redis.keys());

    let addr = one.addr();
    one.kill();
    drop(one);
    let again = start().listen(addr).start();
    wait_for_the_store(&again);
    assert_eq!(again.client().get("/api").send().code(), 429, "a restart does not forget");
    // The window ends with its key; a minute need not be waited for.
    let _: () = redis.client().del(key).unwrap();
    drop(again);
    let fresh = start().start();
    wait_for_the_store(&fresh);
    assert_eq!(fresh.client().get("/api").send().code(), 200);
}

#[test]
fn api_gateway_allows_300_in_development_and_takes_a_short_secret_there() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = preset("api-gateway", &origin, &redis.url())
        .env("TOLLGATE_ENV", "development")
        .env("JWT_SECRET", "short")
        .start();
    wait_for_the_store(&gateway);
    let response = gateway.client().get("/").send();
    assert_eq!(
        (response.header("x-ratelimit-limit"), response.header("x-ratelimit-remaining")),
        (Some("300"), Some("299"))
    );
    let refused =
        preset("api-gateway", &origin, &redis.url()).env("JWT_SECRET", "short").try_start().unwrap_err();
    assert!(refused.logs.contains("is too short") && !refused.status.success(), "{refused}");
}

#[test]
fn api_gateway_counts_callers_with_a_token_by_minute_hour_and_day() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = preset("api-gateway", &origin, &redis.url()).start();
    wait_for_the_store(&gateway);
    let order = serde_json::json!({"name": "ci", "owner": "svc-1"});
    let made =
        gateway.admin().post("/api/v1/api-tokens/create").bearer(ADMIN_TOKEN).json(&order).send().json();
    let (token, id) = (made["token"].as_str().unwrap(), made["id"].as_str().unwrap());
    for carried in [("authorization", format!("Bearer {token}")), ("x-api-key", token.to_owned())] {
        let response = gateway.client().get("/").header(carried.0, &carried.1).send();
        assert_eq!(response.code(), 200, "{}", response.text());
        assert!(origin.last().header(carried.0).is_none());
    }
    for (window, life) in [("minute", 60), ("hour", 3_600), ("day", 86_400)] {
        let key = format!("rate_limit:api_token:{id}:{window}");
        let left = ttl(&redis, &key);
        assert!((1..=life).contains(&left) && left > life - 100, "{key} {left}: {:?}", redis.keys());
        assert_eq!(crate::setup::counter(&redis, &key), Some(2));
    }
    assert_eq!(crate::setup::counter(&redis, "rate_limit:ip:127.0.0.1"), Some(2), "and by address");
    let bearer = Token::of("svc-1").sign();
    assert_eq!(
        gateway.client().get("/").bearer(&bearer).send().code(),
        200,
        "a JWT is held by address alone"
    );
    assert_eq!(crate::setup::counter(&redis, &format!("rate_limit:api_token:{id}:minute")), Some(2));
    assert_eq!(crate::setup::counter(&redis, "rate_limit:ip:127.0.0.1"), Some(3));
    assert_eq!(gateway.client().get("/").bearer("nonsense").send().detail(), "Invalid token");
}

#[test]
fn api_gateway_believes_forwarded_addresses_of_trusted_proxies_only() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let trusting = preset("api-gateway", &origin, &redis.url())
        .env("TOLLGATE_TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8")
        .start();
    wait_for_the_store(&trusting);
    let send =
        |client: &Client| client.get("/").header("x-forwarded-for", "6.6.6.6, 192.0.2.9, 10.1.2.3").send();
    assert_eq!(send(&trusting.client()).code(), 200);
    assert!(redis.keys().contains(&"rate_limit:ip:192.0.2.9".to_owned()), "{:?}", redis.keys());
    let doubting = preset("api-gateway", &origin, &redis.url()).start();
    wait_for_the_store(&doubting);
    assert_eq!(send(&doubting.client()).code(), 200);
    assert!(redis.keys().contains(&"rate_limit:ip:127.0.0.1".to_owned()), "{:?}", redis.keys());
    assert!(!redis.keys().iter().any(|key| key.contains("6.6.6.6")));
}

#[test]
fn api_gateway_goes_on_from_memory_with_one_warning_while_redis_is_away() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = shipped("api-gateway", &origin, &redis.url()).start();
    wait_for_the_store(&gateway);
    let client = gateway.client();
    assert_eq!(codes((0..20).map(|_| client.get("/").send())), [200; 20]);
    redis.kill();
    let got = codes((0..50).map(|_| client.get("/").send()));
    assert!(got.iter().all(|code| matches!(code, 200 | 429)), "{got:?}");
    assert_eq!(
        got.iter().filter(|code| **code == 200).count(),
        40,
        "what was counted before counts on: {got:?}"
    );
    assert_eventually!(gateway.metric("tollgate_store_degraded", &[]) == Some(1.0), "the outage shows");
    gateway.wait_for_log("Redis is unavailable");
    assert_eq!(gateway.count_logs("Redis is unavailable"), 1, "{}", gateway.logs());
    assert_eq!(gateway.admin().get("/ready").send().code(), 200, "it still serves");
    redis.restart();
    assert_eventually!(
        gateway.metric("tollgate_store_degraded", &[]) == Some(0.0),
        "shared counting is back"
    );
    gateway.wait_for_log("Redis is available again");
    assert_eq!(gateway.count_logs("Redis is available again"), 1, "{}", gateway.logs());
}

#[test]
fn presets_start_without_redis_and_with_several_upstream_members() {
    let (one, two) = (Origin::start(), Origin::start());
    for name in ["todo", "api-gateway", "codepitamah"] {
        let members = format!("{}, {}", one.addr(), two.addr());
        let gateway = shipped(name, &one, "").env("TOLLGATE_UPSTREAM", &members).start();
        let before = (one.hits(), two.hits());
        assert_eq!(codes((0..6).map(|_| gateway.client().get("/x").send())), [200; 6]);
        assert_eq!((one.hits() - before.0, two.hits() - before.1), (3, 3), "{name}: in turn");
        assert_eq!(gateway.admin().get("/health").send().json()["redis"]["status"], "disabled");
    }
    // A Redis that is not there yet holds nothing up either.
    let gateway = preset("todo", &one, "redis://127.0.0.1:1").start();
    assert_eq!(gateway.client().get("/x").send().code(), 200);
}

#[test]
fn presets_listen_where_they_are_told_and_guard_the_admin_api() {
    let origin = Origin::start();
    let second = crate::support::ports::free_addr();
    let gateway =
        preset("todo", &origin, "").env("TOLLGATE_LISTEN", &format!("{{listen}}, {second}")).start();
    assert_eq!(gateway.client().get("/").send().code(), 200);
    assert_eq!(Client::new(second).get("/").send().code(), 200);

    let closed = preset("todo", &origin, "").env("TOLLGATE_ADMIN_TOKEN", "").start();
    assert_eq!(closed.admin().get("/api/v1/status").bearer("x").send().code(), 403);
    for path in ["/metrics", "/health", "/live", "/ready"] {
        assert_eq!(closed.admin().get(path).send().code(), 200, "{path}");
    }
}

#[test]
fn an_admin_listener_for_everybody_without_a_token_starts_with_a_warning() {
    let origin = Origin::start();
    let port = crate::support::ports::free_port();
    let gateway = preset("todo", &origin, "")
        .env("TOLLGATE_ADMIN_TOKEN", "")
        .env("TOLLGATE_ADMIN_LISTEN", &format!("0.0.0.0:{port}"))
        .without_waiting()
        .start();
    let admin = Client::new(([127, 0, 0, 1], port).into());
    assert_eventually!(admin.get("/ready").try_send().is_ok_and(|got| got.code() == 200), "it starts");
    assert_eq!(admin.get("/metrics").send().code(), 200);
    assert_eq!(admin.post("/api/v1/cache/purge").json(&json!({"all": true})).send().code(), 403);
    gateway.wait_for_log("admin.listen: is reachable from other machines");
}

#[test]
fn an_application_that_breaks_off_or_is_gone_gives_a_gateway_s_status() {
    let origin = Origin::start();
    let gateway = preset("todo", &origin, "").start();
    origin.answer(|_| Reply::close());
    let broken = gateway.client().post("/x").within(Duration::from_secs(5)).send();
    assert_eq!(broken.code(), 502);
    drop(origin);
    let gone = gateway.client().get("/x").within(Duration::from_secs(5)).send();
    assert!(matches!(gone.code(), 502 | 503), "{}", gone.code());
}

/// A token as this application issues it.
pub fn member(user: &str, plan: &str, permissions: &[&str]) -> Token {
    Token::of("unused")
        .without("sub")
        .claim("user_id", user)
        .claim("email", format!("{user}@example.com"))
        .claim("subscription_plan", plan)
        .claim("permissions", json!(permissions))
}

/// In memory alone and on a Redis.
fn codepitamah(test: impl Fn(&Gateway, &Origin, Option<&Redis>)) {
    let origin = Origin::start();
    test(&preset("codepitamah", &origin, "").start(), &origin, None);
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = preset("codepitamah", &origin, &redis.url()).start();
    wait_for_the_store(&gateway);
    test(&gateway, &origin, Some(&redis));
}

#[test]
fn codepitamah_permissions_are_asked_of_tokens_and_architecture_needs_one() {
    codepitamah(|gateway, origin, _| {
        let post = |path: &str, token: Option<Token>| {
            let request = gateway.client().post(path);
            match token {
                Some(token) => request.bearer(&token.sign()).send(),
                None => request.send(),
            }
        };
        let with = |permission: &str| Some(member("ada", "pro", &[permission]));
        for path in ["/analyze", "/analyze/"] {
            assert_eq!(post(path, None).code(), 200, "{path}");
            assert_eq!(post(path, with("code_analysis")).code(), 200, "{path}");
            let refused = post(path, with("architecture_generation"));
            assert_eq!(
                (refused.code(), refused.detail().as_str()),
                (403, "Not enough permissions"),
                "{path}"
            );
            assert_eq!(post(path, Some(member("ada", "pro", &[]).expires_in(-100))).code(), 401, "{path}");
        }
        assert_eq!(post("/architecture", None).code(), 401);
        assert_eq!(post("/architecture", with("code_analysis")).code(), 403);
        assert_eq!(post("/architecture", with("architecture_generation")).code(), 200);
        assert_eq!(origin.hits(), 5);
        assert_eq!(origin.last().header("x-user-id"), Some("ada"));
        assert_eq!(origin.last().header("x-user-plan"), Some("pro"));
    });
}

#[test]
fn codepitamah_plans_allow_10_50_200_and_1000_a_minute_times_at_most_20() {
    codepitamah(|gateway, _, redis| {
        let limit = |token: Option<Token>| {
            let request = gateway.client().get("/x");
            let response = match token {
                Some(token) => request.bearer(&token.sign()).send(),
                None => request.send(),
            };
            assert_eq!(response.code(), 200);
            response.header("x-ratelimit-limit").unwrap().parse::<u64>().unwrap()
        };
        assert_eq!(limit(None), 10);
        for (plan, expected) in [("free", 50), ("pro", 200), ("enterprise", 1_000), ("gold", 50)] {
            assert_eq!(limit(Some(member(plan, plan, &[]))), expected, "{plan}");
        }
        let times = |multiplier: serde_json::Value| {
            limit(Some(member("eve", "pro", &[]).claim("rate_limit_multiplier", multiplier)))
        };
        for (multiplier, expected) in [
            (json!(10), 2_000),
            (json!(0.5), 100),
            (json!(1_000), 4_000),
            (json!(-3), 200),
            (json!(0), 200),
            (json!(null), 200),
        ] {
            assert_eq!(times(multiplier.clone()), expected, "{multiplier}");
        }
        if let Some(redis) = redis {
            let keys = redis.keys();
            for key in ["rate_limit:plan:ip:127.0.0.1", "rate_limit:plan:user:free"] {
                assert!(keys.iter().any(|known| known.starts_with(key)), "{key}: {keys:?}");
            }
        }
    });
}

#[test]
fn codepitamah_refusals_name_the_plan_of_known_callers() {
    codepitamah(|gateway, _, _| {
        let client = gateway.client();
        let over = |send: &dyn Fn() -> Response| {
            let refused = (0..1_000).map(|_| send()).find(|response| response.code() != 200).unwrap();
            assert_eq!(refused.code(), 429);
            assert!(refused.header("retry-after").is_some());
            refused.detail()
        };
        assert_eq!(over(&|| client.get("/x").send()), "Rate limit exceeded");
        let pro = member("ada", "pro", &[]).sign();
        assert_eq!(over(&|| client.get("/x").bearer(&pro).send()), "Rate limit exceeded for pro plan");
    });
}

#[test]
fn codepitamah_bursts_of_anonymous_analyses_are_slowed_down_to_one_a_minute() {
    codepitamah(|gateway, _, redis| {
        let client = gateway.client();
        assert_eq!(
            codes((0..7).map(|_| client.post("/analyze").send())),
            [200, 200, 200, 200, 200, 429, 429]
        );
        let refused = client.post("/analyze").send();
        assert_eq!(refused.json()["violated-policies"], json!(["burst"]));
        let retry: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((11..=60).contains(&retry), "the burst has tripped: {retry}");
        assert_eq!(client.get("/x").send().code(), 200, "only analyses are slowed down");
        let ada = member("ada", "pro", &["code_analysis"]).sign();
        assert_eq!(codes((0..20).map(|_| client.post("/analyze").bearer(&ada).send())), [200; 20]);
        if let Some(redis) = redis {
            assert!((1..=130).contains(&ttl(redis, "rate_limit:burst:127.0.0.1")));
        }
    });
}

#[test]
fn codepitamah_follows_what_behaviour_makes_of_a_user_s_limits() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let text = std::fs::read_to_string(path("codepitamah")).unwrap();
    let quick = text.replace("user_limits = true", "user_limits = true\nuser_limits_refresh = \"100ms\"");
    let gateway = environment(&quick, origin.addr(), &redis.url()).start();
    wait_for_the_store(&gateway);
    let token = member("ada", "pro", &[]).sign();
    let limit = || {
        let response = gateway.client().get("/x").bearer(&token).send();
        response.header("x-ratelimit-limit").unwrap().to_owned()
    };
    assert_eq!(limit(), "200");
    let () = redis.client().hset("user_limits:ada", "multiplier", "0.5").unwrap();
    assert_eventually!(limit() == "100", "suspicious behaviour halves it");
}
