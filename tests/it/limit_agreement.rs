//! What instances that share a Redis tell clients, for every algorithm: the same numbers, ends that do not wobble,
//! retries that succeed when they are announced; and counters that outlive restarts and changes of the limit.

use std::time::Duration;

use serde_json::json;

use crate::setup::{PATIENT, codes, config, gateway, get_from, pair};
use crate::support::client::{Client, Response};
use crate::support::concurrently;
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::origin::Origin;
use crate::support::redis::Redis;

const ALGORITHMS: [&str; 5] = ["fixed-window", "sliding-window", "token-bucket", "sliding-log", "cool-down"];

fn policy(algorithm: &str, limit: u64, window: &str, cool_down: &str) -> String {
    let more = if algorithm == "cool-down" { format!("cooldown = {cool_down}\n") } else { String::new() };
    format!(
        "[policies.ip]\nkey = \"ip\"\nalgorithm = \"{algorithm}\"\nlimit = {limit}\nwindow = \"{window}\"\n{more}\
         [[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\nlimits = [\"ip\"]\n"
    )
}

/// Nothing comes back while a test runs.
fn slow(algorithm: &str, limit: u64) -> String {
    policy(algorithm, limit, "24h", "{ limit = 1, window = \"24h\", quiet = \"24h\" }")
}

fn number(reply: &Response, name: &str) -> i64 {
    let text = reply.header(name).unwrap_or_else(|| panic!("no {name}: {reply:?}"));
    text.parse().unwrap_or_else(|_| panic!("{name}: {text}"))
}

/// `r` and `t` of the only member of `RateLimit`.
fn rate_limit(reply: &Response) -> (i64, i64) {
    let text = reply.header("ratelimit").unwrap_or_else(|| panic!("no ratelimit: {reply:?}"));
    let parameter = |name: &str| {
        let rest = text.split(&format!(";{name}=")).nth(1).unwrap_or_else(|| panic!("no {name}: {text}"));
        rest.split(';').next().unwrap().parse().unwrap()
    };
    (parameter("r"), parameter("t"))
}

/// Whether the end of this algorithm's window is the same for all requests of the window.
fn stands(algorithm: &str) -> bool {
    matches!(algorithm, "fixed-window" | "sliding-window" | "cool-down")
}

#[test]
fn request_by_request_two_instances_tell_one_sequence() {
    for algorithm in ALGORITHMS {
        let (redis, origin) = (Redis::start(), Origin::start());
        let gateways = pair(&config(&origin, PATIENT, &slow(algorithm, 12)), &redis);
        let clients = [gateways[0].client(), gateways[1].client()];
        // Each instance sometimes asks twice in a row.
        let order = [0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0];
        let mut before: Option<Response> = None;
        for (sent, gateway) in (1..).zip(order) {
            let reply = get_from(&clients[gateway], "/x", "10.0.0.1").send();
            let case = format!("{algorithm}, request {sent}: {reply:?}");
            assert_eq!(reply.code(), if sent <= 12 { 200 } else { 429 }, "{case}");
            assert_eq!(number(&reply, "x-ratelimit-limit"), 12, "{case}");
            assert_eq!(number(&reply, "x-ratelimit-remaining"), (12 - sent).max(0), "{case}");
            assert_eq!(rate_limit(&reply).0, (12 - sent).max(0), "{case}");
            if let Some(before) = before {
                let (was, is) = (number(&before, "x-ratelimit-reset"), number(&reply, "x-ratelimit-reset"));
                assert!(is >= was, "{case}: the end came from {was}");
                if stands(algorithm) && sent <= 12 {
                    assert_eq!(is, was, "{case}: the end moved");
                }
                if sent > 13 {
                    let was = number(&before, "retry-after");
                    assert!((was - 1..=was).contains(&number(&reply, "retry-after")), "{case}: {was} before");
                    assert!(is - number(&before, "x-ratelimit-reset") <= 1, "{case}");
                }
            }
            before = Some(reply);
        }
        let told = gateways.each_ref().map(|gateway| {
            gateway
                .admin()
                .post("/api/v1/quota/read")
                .bearer(ADMIN_TOKEN)
                .json(&json!({"ip": "10.0.0.1"}))
                .send()
                .json()
        });
        assert_eq!(told[0], told[1], "{algorithm}");
    }
}

#[test]
fn what_is_left_never_grows_for_a_crowd_at_two_instances() {
    for algorithm in ALGORITHMS {
        let (redis, origin) = (Redis::start(), Origin::start());
        let gateways = pair(&config(&origin, PATIENT, &slow(algorithm, 150)), &redis);
        let seen = concurrently(8, |worker| {
            let clients = [gateways[worker % 2].client(), gateways[(worker + 1) % 2].client()];
            (0..30).map(|turn| get_from(&clients[turn % 2], "/x", "10.0.0.1").send()).collect::<Vec<_>>()
        });
        let admitted: Vec<&Response> = seen.iter().flatten().filter(|reply| reply.code() == 200).collect();
        assert_eq!(admitted.len(), 150, "{algorithm}");
        let mut places: Vec<i64> =
            admitted.iter().map(|reply| number(reply, "x-ratelimit-remaining")).collect();
        places.sort_unstable();
        assert_eq!(places, (0..150).collect::<Vec<_>>(), "{algorithm}: every request has its own place");
        for of_worker in &seen {
            let left: Vec<i64> =
                of_worker.iter().map(|reply| number(reply, "x-ratelimit-remaining")).collect();
            assert!(left.is_sorted_by(|first, second| first >= second), "{algorithm}: {left:?}");
        }
        // The call that admits the last ones may be the one that trips a cool-down.
        if stands(algorithm) && algorithm != "cool-down" {
            let ends: Vec<i64> = admitted.iter().map(|reply| number(reply, "x-ratelimit-reset")).collect();
            assert!(ends.iter().all(|end| *end == ends[0]), "{algorithm}: {ends:?}");
        }
        assert!(redis.keys_without_ttl().is_empty(), "{algorithm}");
    }
}

/// Uses up the limit of `ip` at `first`, is refused `refusals` times at `second`, waits as long as it is told and tries
/// again at `third`.
fn retry(case: &str, ip: &str, first: &Client, second: &Client, third: &Client, refusals: usize) {
    // A window may end, or a bucket give a request back, while it is used up.
    let full = (0..50).any(|_| get_from(first, "/x", ip).send().code() == 429);
    assert!(full, "{case}: nothing refuses");
    let told: Vec<_> = (0..refusals).map(|_| get_from(second, "/x", ip).send()).collect();
    let last = told.last().unwrap();
    if last.code() == 200 {
        return;
    }
    let seconds = number(last, "retry-after");
    assert!((1..=5).contains(&seconds), "{case}: {seconds}");
    std::thread::sleep(Duration::from_secs(seconds.unsigned_abs()));
    let again = get_from(third, "/x", ip).send();
    assert_eq!(again.code(), 200, "{case}: told to wait {seconds} s by {last:?}, then {again:?}");
}

#[test]
fn a_retry_succeeds_when_it_is_told_to_on_every_instance() {
    for algorithm in ALGORITHMS {
        let (redis, origin) = (Redis::start(), Origin::start());
        let cases: Vec<(u64, &str)> = vec![(1, "1s"), (2, "2s"), (3, "2s"), (4, "1s"), (5, "3s")];
        concurrently(cases.len(), |index| {
            let (limit, window) = cases[index];
            let rest = policy(algorithm, limit, window, "{ limit = 1, window = \"2s\", quiet = \"2s\" }")
                .replace("[policies.ip]", &format!("[policies.ip{index}]"))
                .replace("limits = [\"ip\"]", &format!("limits = [\"ip{index}\"]"));
            let text = config(&origin, PATIENT, &rest);
            let (one, two, alone) =
                (gateway(&text, &redis.url()), gateway(&text, &redis.url()), gateway(&text, ""));
            concurrently(8, |number| {
                let (one, two, alone) = (one.client(), two.client(), alone.client());
                // Some begin later within the window than others.
                std::thread::sleep(Duration::from_millis(230 * number as u64));
                let ip = format!("10.0.{index}.{number}");
                let case = format!("{algorithm}, {limit} in {window}, way {number}");
                match number {
                    0 => retry(&case, &ip, &one, &one, &one, 1),
                    1 => retry(&case, &ip, &one, &one, &one, 3),
                    2 => retry(&case, &ip, &one, &two, &two, 1),
                    3 => retry(&case, &ip, &one, &two, &two, 3),
                    4 => retry(&case, &ip, &one, &two, &one, 2),
                    5 => retry(&case, &ip, &two, &one, &two, 2),
                    6 => retry(&case, &ip, &alone, &alone, &alone, 1),
                    _ => retry(&case, &ip, &alone, &alone, &alone, 3),
                }
            });
        });
    }
}

fn used(gateway: &Gateway) -> u64 {
    let read =
        gateway.admin().post("/api/v1/quota/read").bearer(ADMIN_TOKEN).json(&json!({"ip": "10.0.0.1"}));
    let read = read.send().json();
    read["counters"][0]["used"].as_u64().unwrap_or_else(|| panic!("{read}"))
}

#[test]
fn a_restart_and_another_limit_in_the_file_keep_every_count() {
    for algorithm in ALGORITHMS {
        let (redis, origin) = (Redis::start(), Origin::start());
        let start = |limit| gateway(&config(&origin, PATIENT, &slow(algorithm, limit)), &redis.url());
        let ask = |gateway: &Gateway, requests| codes(&gateway.client(), "/x", "10.0.0.1", requests);
        let first = start(5);
        assert_eq!(ask(&first, 5), [200; 5], "{algorithm}");
        first.terminate();
        let same = start(5);
        assert_eq!(used(&same), 5, "{algorithm}: nothing is forgotten");
        same.kill();
        let more = start(8);
        assert_eq!(ask(&more, 3), [200; 3], "{algorithm}");
        assert_eq!(used(&more), 8, "{algorithm}");
        more.kill();
        let fewer = start(4);
        assert_eq!(ask(&fewer, 3), [429; 3], "{algorithm}");
        fewer.terminate();
        let most = start(20);
        if algorithm == "cool-down" {
            assert_eq!(ask(&most, 1), [429], "it has tripped, whatever the limit is now");
        } else {
            assert_eq!(ask(&most, 13), [vec![200; 12], vec![429]].concat(), "{algorithm}");
        }
        assert!(redis.keys_without_ttl().is_empty(), "{algorithm}");
    }
}
