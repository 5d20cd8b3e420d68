//! Responses that are fetched before anybody waits for them: kept warm from the start, and refreshed at a hit shortly
//! before their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::client::Response;
use crate::support::concurrently;
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::origin::{Origin, Reply};
use crate::support::redis::Redis;
use crate::support::token::Token;

const HOST: &str = "stms.example";
const TOKEN: &str = "s3rvice-t0ken-of-the-warmer";

/// The route `warm` behind a login, of which `/warm/today?day=1` is kept warm, and the route `ahead`.
fn config(origin: &Origin) -> String {
    let origin = origin.addr();
    format!(
        r#"
[admin]
listen = "{{admin}}"
token = "${{TOLLGATE_ADMIN_TOKEN}}"

[redis]
url = "${{REDIS_URL:-}}"
deadline = "1s"

[upstreams.app]
members = "{origin}"
read_timeout = "30s"

[defaults]
upstream = "app"

[[routes]]
name = "warm"
path = "/warm/**"
auth = "required"
[routes.cache]
shared = true
refresh_ahead = "2s"
[routes.cache.warm]
urls = "http://{HOST}/warm/today?day=1"
authorization = "Bearer ${{WARM_TOKEN:-}}"
headers.accept-language = "en"

[[routes]]
name = "ahead"
path = "/ahead/**"
[routes.cache]
shared = true
refresh_ahead = "1h"
"#
    )
}

fn gateway(origin: &Origin, redis: Option<&Redis>) -> Gateway {
    let url = redis.map(Redis::url).unwrap_or_default();
    Gateway::builder().config(&config(origin)).env("REDIS_URL", &url).env("WARM_TOKEN", TOKEN).start()
}

/// Answers `/warm/today` with its own count of requests and these directives.
fn counting(origin: &Origin, path: &str, directives: &'static str) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    origin.route(path, move |_| {
        let number = counted.fetch_add(1, SeqCst) + 1;
        Reply::text(200, &format!("no. {number}")).header("cache-control", directives)
    });
    asked
}

fn today(gateway: &Gateway) -> Response {
    let token = Token::of("ada").sign();
    gateway.client().get("/warm/today?day=1").host(HOST).bearer(&token).send()
}

fn warmed(gateway: &Gateway, outcome: &str) -> u64 {
    let looks = gateway.metric("tollgate_cache_warm_total", &[("route", "warm"), ("outcome", outcome)]);
    looks.unwrap_or_default().to_string().parse().expect("a whole number")
}

fn x_cache(response: &Response) -> &str {
    response.header("x-cache").unwrap_or("-")
}

fn age(response: &Response) -> u64 {
    response.header("age").and_then(|age| age.parse().ok()).expect("an Age")
}

/// Seconds that are left, as the cache says.
fn ttl(response: &Response) -> i64 {
    let status = response.header("cache-status").expect("a Cache-Status");
    let ttl = status.split("; ").find_map(|part| part.strip_prefix("ttl="));
    ttl.and_then(|ttl| ttl.parse().ok()).unwrap_or_else(|| panic!("no ttl: {status}"))
}

#[test]
fn the_first_client_finds_what_is_kept_warm_and_the_origin_was_asked_once_by_the_gateway_alone() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let asked = counting(&origin, "/warm/today", "public, max-age=600");
    let gateway = gateway(&origin, Some(&redis));
    assert_eventually!(warmed(&gateway, "fetched") == 1, "it is fetched");
    let response = today(&gateway);
    assert_eq!((x_cache(&response), response.text().as_str()), ("HIT", "no. 1"));
    assert_eq!(asked.load(SeqCst), 1);

    let request = origin.last();
    assert_eq!(request.target, "/warm/today?day=1");
    assert_eq!(request.header("host"), Some(HOST));
    assert_eq!(request.header("authorization"), Some(&*format!("Bearer {TOKEN}")));
    assert_eq!(request.header("accept-language"), Some("en"));
    let known = [
        "accept-language",
        "authorization",
        "host",
        "traceparent",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-request-id",
    ];
    let more: Vec<_> = request.headers.keys().filter(|name| !known.contains(&name.as_str())).collect();
    assert!(more.is_empty(), "{more:?}");

    // A request is counted and logged after its answer.
    gateway.wait_for_log("\"path\":\"/warm/today\"");
    let of_route =
        |name: &str| crate::support::gateway::sum_of(&gateway.metrics(), name, &[("route", "warm")]);
    for counted in ["tollgate_requests_total", "tollgate_cache_total"] {
        assert_eventually!(of_route(counted).is_some(), "it is counted");
        assert_eq!(of_route(counted), Some(1.0), "{counted}: the client's");
    }
    assert_eq!(gateway.count_logs("\"path\":\"/warm/today\""), 1, "{}", gateway.logs());
    assert!(!gateway.logs().contains(TOKEN));
}

#[test]
fn without_a_login_nobody_gets_what_is_kept_warm() {
    let origin = Origin::start();
    counting(&origin, "/warm/today", "public, max-age=600");
    let gateway = gateway(&origin, None);
    assert_eventually!(warmed(&gateway, "fetched") == 1, "it is fetched");
    assert_eq!(gateway.client().get("/warm/today?day=1").host(HOST).send().code(), 401);
}

#[test]
fn what_is_kept_warm_is_fetched_again_before_it_ends() {
    let origin = Origin::start();
    let asked = counting(&origin, "/warm/today", "public, max-age=4");
    let gateway = gateway(&origin, None);
    assert_eventually!(warmed(&gateway, "fetched") >= 1, "it is fetched");
    assert_eventually!(
        {
            let response = today(&gateway);
            assert_eq!(x_cache(&response), "HIT");
            assert!(ttl(&response) >= 0);
            asked.load(SeqCst) >= 2 && response.text() != "no. 1"
        },
        "it is refreshed while every client gets a hit"
    );
}

#[test]
fn a_second_instance_finds_it_in_redis_and_does_not_ask_the_origin() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let asked = counting(&origin, "/warm/today", "public, max-age=600");
    let first = gateway(&origin, Some(&redis));
    assert_eventually!(warmed(&first, "fetched") == 1, "the first instance fetches it");
    let stored = || redis.keys().iter().any(|key| key.starts_with("cache:"));
    assert_eventually!(stored(), "it is in Redis");
    let second = gateway(&origin, Some(&redis));
    assert_eventually!(warmed(&second, "fresh") >= 1, "the second instance finds it");
    let response = today(&second);
    assert_eq!((x_cache(&response), response.text().as_str()), ("HIT", "no. 1"));
    assert_eq!((asked.load(SeqCst), warmed(&second, "fetched")), (1, 0));
}

#[test]
fn an_upstream_that_is_away_at_the_start_keeps_nothing_from_starting_and_is_asked_again() {
    let origin = Origin::start();
    counting(&origin, "/warm/today", "public, max-age=600");
    origin.stop();
    let gateway = gateway(&origin, None);
    assert_eventually!(warmed(&gateway, "failed") >= 2, "it is tried again");
    gateway.wait_for_log("cannot be kept warm");
    assert_eq!(gateway.count_logs("cannot be kept warm"), 1, "{}", gateway.logs());
    origin.resume();
    assert_eventually!(warmed(&gateway, "fetched") == 1, "it is fetched");
    assert_eq!(x_cache(&today(&gateway)), "HIT");
    gateway.wait_for_log("is kept warm");
    assert_eq!(gateway.count_logs("no answer from the upstream"), 0, "{}", gateway.logs());
    assert!(!gateway.logs().contains(TOKEN));
}

#[test]
fn what_was_purged_is_fetched_again() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let asked = counting(&origin, "/warm/today", "public, max-age=600");
    let gateway = gateway(&origin, Some(&redis));
    assert_eventually!(warmed(&gateway, "fetched") == 1, "it is fetched");
    let purge = gateway.admin().post("/api/v1/cache/purge").bearer(ADMIN_TOKEN);
    assert_eq!(purge.json(&serde_json::json!({"route": "warm"})).send().code(), 200);
    assert_eventually!(warmed(&gateway, "fetched") == 2, "it is fetched again");
    let response = today(&gateway);
    assert_eq!((x_cache(&response), response.text().as_str()), ("HIT", "no. 2"));
    assert_eq!(asked.load(SeqCst), 2);
}

#[test]
fn an_answer_that_may_not_be_kept_is_said_once_and_not_asked_for_again_and_again() {
    for directives in ["no-store", "no-cache, public, max-age=0", "private"] {
        let origin = Origin::start();
        let asked = counting(&origin, "/warm/today", directives);
        let gateway = gateway(&origin, None);
        assert_eventually!(warmed(&gateway, "not_kept") == 1, directives);
        for _ in 0..20 {
            assert_eq!(gateway.admin().get("/live").send().code(), 200);
        }
        assert_eq!(asked.load(SeqCst), 1, "{directives}");
        gateway.wait_for_log("cannot be kept warm");
        assert_eq!(gateway.count_logs("cannot be kept warm"), 1, "{directives}: {}", gateway.logs());
    }
}

#[test]
fn a_fetch_that_hangs_does_not_hold_up_the_end() {
    let origin = Origin::start();
    origin.route("/warm/today", |_| Reply::hang_before_head());
    let gateway = gateway(&origin, None);
    assert_eventually!(origin.hits() == 1, "it is being fetched");
    assert_eq!(gateway.metric("tollgate_requests_in_flight", &[]), Some(0.0));
    let begun = Instant::now();
    let status = gateway.terminate();
    assert!(status.success(), "{status:?}: {}", gateway.logs());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn hits_near_the_end_are_hits_and_one_request_refreshes_in_the_background() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    origin.route("/ahead/a", move |_| {
        let number = counted.fetch_add(1, SeqCst) + 1;
        let reply =
            Reply::text(200, &format!("no. {number}")).header("cache-control", "max-age=5, must-revalidate");
        if number == 1 { reply } else { reply.after(Duration::from_millis(700)) }
    });
    let gateway = gateway(&origin, Some(&redis));
    let client = gateway.client();
    assert_eq!(x_cache(&client.get("/ahead/a").send()), "MISS");
    let begun = Instant::now();
    assert_eventually!(
        {
            let response = client.get("/ahead/a").send();
            assert_eq!((x_cache(&response), response.text().as_str()), ("HIT", "no. 1"));
            assert!(response.header("cache-status").unwrap().starts_with("tollgate; hit; ttl="));
            assert!(ttl(&response) >= 0 && ttl(&response) + i64::try_from(age(&response)).unwrap() <= 6);
            asked.load(SeqCst) == 2
        },
        "a hit begins the refresh"
    );
    assert!(begun.elapsed() >= Duration::from_secs(2), "no more than half of the freshness ahead");
    for response in concurrently(20, |_| client.get("/ahead/a").send()) {
        assert_eq!(x_cache(&response), "HIT");
    }
    assert_eventually!(
        {
            let response = client.get("/ahead/a").send();
            assert_eq!(x_cache(&response), "HIT");
            response.text() == "no. 2" && ttl(&response) >= 3
        },
        "the new one is served"
    );
    assert_eq!(asked.load(SeqCst), 2);
}

#[test]
fn a_refresh_that_fails_leaves_the_response_until_its_end_and_not_longer() {
    let origin = Origin::start();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    origin.route("/ahead/b", move |_| match counted.fetch_add(1, SeqCst) {
        0 => Reply::text(200, "good").header("cache-control", "max-age=4, must-revalidate"),
        _ => Reply::text(500, "bad"),
    });
    let gateway = gateway(&origin, None);
    let client = gateway.client();
    assert_eq!(x_cache(&client.get("/ahead/b").send()), "MISS");
    let mut failed_meanwhile = 0;
    assert_eventually!(
        {
            let before = asked.load(SeqCst);
            let response = client.get("/ahead/b").send();
            let hit = response.code() == 200;
            if hit {
                assert_eq!(x_cache(&response), "HIT");
                assert!(age(&response) <= 4 && ttl(&response) >= 0);
                failed_meanwhile = before - 1;
            }
            !hit
        },
        "it ends"
    );
    // Two seconds of window, and a pause of a quarter of one between attempts.
    assert!((1..=9).contains(&failed_meanwhile), "{failed_meanwhile}");
}
