//! Purges by prefix: what lies under it goes, on every instance, whatever Redis loses; nothing else does.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cache::{Stage, x_cache};
use crate::support::client::{Client, Response};
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::origin::{Origin, Reply};
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::Token;

const VERSION: &str = "cache_tag:{-prefixes}";
const LIST: &str = "cache_prefixes:{-prefixes}";

/// Every answer of the origin is another one, and may be kept.
fn count(origin: &Origin) {
    let count = AtomicU64::new(0);
    origin.answer(move |_| {
        let number = count.fetch_add(1, SeqCst);
        Reply::text(200, &number.to_string()).header("cache-control", "public, max-age=600")
    });
}

fn read(gateway: &Gateway, path: &str, user: &str) -> Response {
    let token = Token::of(user).sign();
    let response = gateway.client().get(path).host("api.example").bearer(&token).send();
    assert_eq!(response.code(), 200, "{path}");
    response
}

/// What is stored of this, on both instances.
fn stored(gateways: &[&Gateway], path: &str, user: &str) -> String {
    let mut text = String::new();
    for gateway in gateways {
        assert_eventually!(
            {
                let response = read(gateway, path, user);
                text = response.text();
                x_cache(&response) == "HIT"
            },
            format!("{path} is stored")
        );
    }
    text
}

fn purge_with(admin: &Client, purge: &Value) -> Response {
    admin.post("/api/v1/cache/purge").bearer(ADMIN_TOKEN).json(purge).send()
}

/// Purges and says what the answer says: widened, shared.
fn purge(gateway: &Gateway, purge: &Value) -> (bool, bool) {
    let answer = purge_with(&gateway.admin(), purge);
    assert_eq!(answer.code(), 200, "{purge}: {}", answer.text());
    let told = answer.json();
    assert_eq!(told["kind"], "prefix");
    (told["widened"].as_bool().expect("widened"), told["shared"].as_bool().expect("shared"))
}

fn uses_redis(gateway: &Gateway) {
    assert_eventually!(gateway.metric("tollgate_store_degraded", &[]) == Some(0.0), "Redis is in use");
}

#[test]
fn a_prefix_drops_what_lies_under_it_for_everybody_on_every_instance_and_nothing_else() {
    let stage = Stage::start();
    let other = stage.another();
    uses_redis(&other);
    count(&stage.origin);
    let gateways = [&stage.gateway, &other];
    let all = [
        ("/mine/todos/1", "ada"),
        ("/mine/todos/1?page=2", "ada"),
        ("/mine/todos/1", "bob"),
        ("/mine/todos/b/c", "bob"),
        ("/mine/todos", "ada"),
        ("/mine/todos%20/1", "ada"),
        ("/mine/Todos/1", "ada"),
        ("/open/todos/1", "ada"),
    ];
    for (prefix, kept, written) in [
        (json!({"prefix": "/mine/todos/"}), &all[4..], "/mine/todos/"),
        (json!({"prefix": "/mine/todos/1"}), &all[3..], "/mine/todos/1"),
        (json!({"prefix": "//mine/./tod%6Fs"}), &all[6..], "/mine/todos"),
        (
            json!({"prefix": "/mine/todos%20", "host": "API.example."}),
            &all[5..5],
            "api.example/mine/todos%20",
        ),
        (json!({"prefix": "/mine", "host": "other.example"}), &all[..], "other.example/mine"),
        (json!({"prefix": "/mine/", "host": "api.example"}), &all[7..], "api.example/mine/"),
        (json!({"prefix": "/"}), &all[8..], "/"),
    ] {
        let before: Vec<String> = all.iter().map(|(path, user)| stored(&gateways, path, user)).collect();
        assert_eventually!(stage.redis.keys().contains(&VERSION.to_owned()), "generations are written");
        let answer = purge_with(&stage.gateway.admin(), &prefix);
        assert_eq!(
            answer.json(),
            json!({"kind": "prefix", "prefix": written, "widened": false, "shared": true})
        );
        let spares = |entry: &(&str, &str)| match written {
            "api.example/mine/todos%20" => entry.0 != "/mine/todos%20/1",
            _ => kept.contains(entry),
        };
        for gateway in [&other, &stage.gateway] {
            for (entry, before) in all.iter().zip(&before) {
                let response = read(gateway, entry.0, entry.1);
                assert_eq!(response.text() == *before, spares(entry), "{prefix}: {entry:?}");
            }
        }
    }
    let list: Vec<_> =
        stage.redis.keys().into_iter().filter(|key| key.starts_with("cache_prefixes")).collect();
    assert_eq!(list, [LIST]);
    assert!(!stage.redis.keys_without_ttl().contains(&LIST.to_owned()));
}

#[test]
fn prefixes_are_compared_as_routes_are() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let text = crate::cache::config(&origin.addr().to_string(), "");
    let text = format!(
        "[server]\nlisten = \"{{listen}}\"\ncase_insensitive_paths = true\nignore_trailing_slash = true\n{text}"
    );
    let gateway = Gateway::builder().config(&text).env("REDIS_URL", &redis.url()).start();
    uses_redis(&gateway);
    count(&origin);
    let paths = ["/mine/Todos/1", "/MINE/todos", "/mine/todos/", "/mine/todo"];
    let before = paths.map(|path| stored(&[&gateway], path, "ada"));
    purge(&gateway, &json!({"prefix": "/mine/TODOS/"}));
    for (path, before) in paths.iter().zip(before) {
        assert_eq!(read(&gateway, path, "ada").text() == before, *path == "/mine/todo", "{path}");
    }
}

#[test]
fn nonsense_is_refused_with_what_is_accepted() {
    let stage = Stage::start();
    let admin = stage.gateway.admin();
    for prefix in [
        "api",
        "*",
        "/api/*",
        "/a?b",
        "/a#b",
        "/a b",
        "/a%2",
        "/a%zz",
        "/a\\b",
        "/%2e%2e/..",
        "/..",
        "/a%00",
        "/a%ff",
    ] {
        let answer = purge_with(&admin, &json!({"prefix": prefix}));
        assert_eq!(answer.code(), 422, "{prefix}: {}", answer.text());
    }
    for host in ["https://a.example", "a.example:80", "a.example/x", "a b", "a,b", "u@a.example", "."] {
        let answer = purge_with(&admin, &json!({"prefix": "/a", "host": host}));
        assert_eq!((answer.code(), answer.detail().contains("without scheme")), (422, true), "{host}");
    }
    for key in ["zzzz", "../x", "0123", "0123456789abcde", "0123456789abcdefa", "0123456789abcdeg"] {
        let answer = purge_with(&admin, &json!({"key": key}));
        assert_eq!((answer.code(), answer.detail().contains("X-Cache-Key")), (422, true), "{key}");
    }
    assert!(purge_with(&admin, &json!({"prefix": "api"})).detail().contains("/api/todos/"));
    let long = format!("/{}", "\u{e4}".repeat(400));
    assert_eq!(purge_with(&admin, &json!({"prefix": long})).code(), 422, "2401 bytes once escaped");
    for bad in [
        json!({"prefix": ""}),
        json!({"host": "a"}),
        json!({"prefix": "/a", "all": true}),
        json!({"prefix": 7}),
    ] {
        assert_eq!(purge_with(&admin, &bad).code(), 400, "{bad}");
    }
    assert_eq!(purge_with(&admin, &json!({"prefix": "/a", "host": "[::1]"})).code(), 200);
    assert!(stage.gateway.wait_for_log("cached responses purged by an operator").contains("[::1]/a"));
    assert_eq!(purge_with(&admin, &json!({"key": "0123456789abcdEF"})).code(), 200);
}

#[test]
fn whatever_redis_loses_nothing_that_was_purged_comes_back() {
    let stage = Stage::start();
    let other = stage.another();
    uses_redis(&other);
    count(&stage.origin);
    let gateways = [&stage.gateway, &other];
    let mut redis = stage.redis.client();
    let mut seen: Vec<String> = Vec::new();
    let foreign = format!("{0}.{0}.9999999999999", "0".repeat(32));
    let losses: [&[&str]; 7] = [
        &["DEL", LIST],
        &["DEL", VERSION],
        &["DEL", LIST, VERSION],
        &["HDEL", LIST, ""],
        &["SET", LIST, "not a list"],
        &["SET", VERSION, &foreign],
        &["FLUSHALL"],
    ];
    for (round, loss) in losses.into_iter().enumerate() {
        let purger = gateways[round % 2];
        seen.push(stored(&gateways, "/mine/a/1", "ada"));
        assert!(purge(purger, &json!({"prefix": "/mine/a/"})).1);
        // One instance may have heard of the list before it is lost, and the other not.
        if round % 3 == 0 {
            seen.push(read(gateways[1], "/mine/a/1", "ada").text());
            assert!(!seen[..seen.len() - 1].contains(seen.last().unwrap()));
        }
        redis::cmd(loss[0]).arg(&loss[1..]).exec(&mut redis).unwrap();
        let kept = if round % 3 == 0 { seen.len() - 1 } else { seen.len() };
        for gateway in gateways {
            let text = read(gateway, "/mine/a/1", "ada").text();
            assert!(!seen[..kept].contains(&text), "{loss:?}: {text} of {seen:?}");
        }
        seen.push(stored(&gateways, "/mine/a/1", "ada"));
        purge(gateways[(round + 1) % 2], &json!({"prefix": "/mine/a/1"}));
        for gateway in gateways {
            let text = read(gateway, "/mine/a/1", "ada").text();
            assert!(!seen.contains(&text), "after {loss:?}: {text} of {seen:?}");
        }
    }
}

#[test]
fn a_purge_by_prefix_while_redis_is_away_holds_here_and_everywhere_once_it_is_back() {
    let stage = Stage::start();
    let relay = Relay::to(stage.redis.addr());
    let text = crate::cache::config(&stage.origin.addr().to_string(), "");
    let remote = Gateway::builder().config(&text).env("REDIS_URL", &relay.redis_url()).start();
    uses_redis(&remote);
    count(&stage.origin);
    let gateways = [&stage.gateway, &remote];
    let before = stored(&gateways, "/mine/a/1", "ada");
    let beside = stored(&gateways, "/mine/b", "ada");
    relay.cut();
    assert_eq!(purge(&remote, &json!({"prefix": "/mine/a/"})), (false, false));
    let alone = read(&remote, "/mine/a/1", "ada").text();
    assert_ne!(alone, before);
    assert_eq!(read(&remote, "/mine/b", "ada").text(), beside, "the rest is served on");
    relay.restore();
    assert_eventually!(read(&stage.gateway, "/mine/a/1", "ada").text() != before, "the other one is told");
    for _ in 0..3 {
        assert_ne!(read(&remote, "/mine/a/1", "ada").text(), before);
    }
    // A new, empty store in the place of the old one.
    let before = stored(&gateways, "/mine/a/1", "ada");
    stage.redis.kill();
    assert!(!purge(&remote, &json!({"prefix": "/mine/a/"})).1);
    stage.redis.restart();
    assert_ne!(read(&remote, "/mine/a/1", "ada").text(), before);
    assert_eventually!(
        gateways.iter().all(|gateway| gateway.metric("tollgate_store_degraded", &[]) == Some(0.0)),
        "the new store is in use"
    );
    for gateway in gateways {
        assert_eventually!(read(gateway, "/mine/a/1", "ada").text() != before, "nothing old");
    }
}

/// What a Redis of somebody else's may forbid: the commands that a list needs, or its key.
#[test]
fn a_redis_that_refuses_the_list_has_everything_dropped_instead_and_nothing_else_held_up() {
    for refusal in [&["-hset"][..], &["resetkeys", "~[^c]*", "~cache[_:][^p]*"]] {
        let stage = Stage::start();
        let relay = Relay::to(stage.redis.addr());
        let text = crate::cache::config(&stage.origin.addr().to_string(), "");
        let remote = Gateway::builder().config(&text).env("REDIS_URL", &relay.redis_url()).start();
        uses_redis(&remote);
        count(&stage.origin);
        let gateways = [&stage.gateway, &remote];
        let before = stored(&gateways, "/mine/a/1", "ada");
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg("default").arg("-eval").arg(refusal);
        command.exec(&mut stage.redis.client()).unwrap();

        // The first one drops everything anyway, and begins a list.
        for _ in 0..2 {
            assert_eq!(purge(&stage.gateway, &json!({"prefix": "/mine/a/"})), (true, true), "{refusal:?}");
            assert_ne!(read(&stage.gateway, "/mine/a/1", "ada").text(), before, "{refusal:?}");
            // A worker without a connection of its own yet goes by what its instance has seen.
            assert_eventually!(
                read(&remote, "/mine/a/1", "ada").text() != before,
                format!("the other one is told: {refusal:?}")
            );
        }
        let before = stored(&gateways, "/mine/a/1", "ada");
        relay.cut();
        assert_eq!(purge(&remote, &json!({"prefix": "/mine/a/"})), (false, false), "{refusal:?}");
        assert_ne!(read(&remote, "/mine/a/1", "ada").text(), before, "{refusal:?}");
        relay.restore();
        assert_eventually!(
            read(&stage.gateway, "/mine/a/1", "ada").text() != before,
            format!("the other one is told: {refusal:?}")
        );
        assert_eventually!(
            remote.metric("tollgate_store_degraded", &[]) == Some(0.0),
            format!("it shares again: {refusal:?}")
        );
        assert_ne!(read(&remote, "/mine/a/1", "ada").text(), before, "{refusal:?}");
    }
}

/// As a master does that has just lost its replicas, or its place.
#[test]
fn a_refusal_that_passes_leaves_a_purge_by_prefix_what_it_is() {
    let stage = Stage::start();
    let other = stage.another();
    uses_redis(&other);
    count(&stage.origin);
    // The first one drops everything, and begins a list.
    purge(&stage.gateway, &json!({"prefix": "/mine/first/"}));
    let gateways = [&stage.gateway, &other];
    let [purged, spared] = ["/mine/a/1", "/mine/b/1"].map(|path| stored(&gateways, path, "ada"));
    let replicas = |least: u8| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("min-replicas-to-write").arg(least).exec(&mut stage.redis.client()).unwrap();
    };
    replicas(1);
    assert_eq!(purge(&stage.gateway, &json!({"prefix": "/mine/a/"})), (false, false));
    assert_ne!(read(&stage.gateway, "/mine/a/1", "ada").text(), purged);
    replicas(0);
    assert_eventually!(read(&other, "/mine/a/1", "ada").text() != purged, "the other one is told");
    for gateway in gateways {
        assert_eq!(read(gateway, "/mine/b/1", "ada").text(), spared);
    }
}

#[test]
fn a_redis_that_refuses_all_invalidations_is_used_for_all_else_and_not_asked_over_and_over() {
    let stage = Stage::start();
    let other = stage.another();
    uses_redis(&other);
    count(&stage.origin);
    let before = stored(&[&stage.gateway, &other], "/items/7", "ada");
    let acl = |rules: &[&str]| {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg("default").arg(rules);
        command.exec(&mut stage.redis.client()).unwrap();
    };
    acl(&["resetkeys", "~[^c]*", "~c[^a]*", "~cache:*", "~cache_lock:*", "%R~cache_*"]);
    let token = Token::of("ada").sign();
    for _ in 0..20 {
        let change =
            stage.gateway.client().put("/items/7").host("api.example").bearer(&token).body("x").send();
        assert_eq!(change.code(), 200);
        assert_eq!(stage.gateway.metric("tollgate_store_degraded", &[]), Some(0.0), "{}", change.text());
    }
    assert_ne!(read(&stage.gateway, "/items/7", "ada").text(), before);
    let connections = || {
        let info: String = redis::cmd("INFO").arg("stats").query(&mut stage.redis.client()).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    let (made, begun) = (connections(), Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    let made = connections() - made;
    assert!(made <= 4 * (begun.elapsed().as_secs() + 2), "{made} connections");
    assert_eq!(read(&other, "/items/7", "ada").text(), before, "nobody could tell it");
    acl(&["allkeys"]);
    assert_eventually!(read(&other, "/items/7", "ada").text() != before, "it is told in the end");
}

#[test]
fn an_instance_without_redis_purges_by_prefix_too() {
    let origin = Origin::start();
    let gateway = crate::cache::gateway(&origin.addr().to_string(), "", "");
    count(&origin);
    let (before, beside) = (stored(&[&gateway], "/mine/a/1", "ada"), stored(&[&gateway], "/mine/b", "ada"));
    assert_eq!(purge(&gateway, &json!({"prefix": "/mine/a"})), (false, true));
    assert_ne!(read(&gateway, "/mine/a/1", "ada").text(), before);
    assert_eq!(read(&gateway, "/mine/b", "ada").text(), beside);
}

/// Sends many purges over a few connections.
fn storm(gateway: &Gateway, purges: usize, body: impl Fn(usize) -> Value + Sync) -> Vec<Value> {
    const CONNECTIONS: usize = 4;
    let answers = crate::support::concurrently(CONNECTIONS, |connection| {
        let admin = gateway.admin();
        (connection..purges)
            .step_by(CONNECTIONS)
            .map(|number| {
                let answer = purge_with(&admin, &body(number));
                assert_eq!(answer.code(), 200, "{}", answer.text());
                answer.json()
            })
            .collect::<Vec<_>>()
    });
    answers.into_iter().flatten().collect()
}

#[test]
fn a_storm_of_purges_keeps_everything_bounded_and_loses_none() {
    let stage = Stage::start();
    let relay = Relay::to(stage.redis.addr());
    let text = crate::cache::config(&stage.origin.addr().to_string(), "");
    let remote = Gateway::builder().config(&text).env("REDIS_URL", &relay.redis_url()).start();
    uses_redis(&remote);
    count(&stage.origin);
    let gateways = [&stage.gateway, &remote];
    let kinds = |number: usize| match number % 3 {
        0 => json!({"prefix": format!("/mine/{number}/")}),
        1 => json!({"tag": format!("nothing:{number}")}),
        _ => json!({"key": format!("{number:016x}")}),
    };
    let paths = ["/mine/0/x", "/mine/1497/x"];
    for away in [false, true] {
        let before = paths.map(|path| stored(&gateways, path, "ada"));
        let keys = stage.redis.keys().len();
        let memory = remote.process().resident_bytes();
        if away {
            relay.cut();
        }
        let answers = storm(&remote, 1_500, kinds);
        assert!(answers.iter().all(|answer| answer["shared"] == !away));
        for (path, before) in paths.iter().zip(&before) {
            assert_ne!(read(&remote, path, "ada").text(), *before, "{path}, away: {away}");
        }
        if away {
            relay.restore();
            uses_redis(&remote);
        }
        for (path, before) in paths.iter().zip(&before) {
            assert_eventually!(read(&stage.gateway, path, "ada").text() != *before, "the other one is told");
        }
        let grown = remote.process().resident_bytes().saturating_sub(memory);
        assert!(grown < 48 << 20, "{grown} bytes more");
        let asked = Instant::now();
        read(&stage.gateway, "/mine/other", "ada");
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        // A tag each, and one list for all prefixes.
        assert!(stage.redis.keys().len() <= keys + 1_100, "{} keys", stage.redis.keys().len());
    }
    // More prefixes than are told apart: everything goes, and the list begins anew.
    let beside = stored(&gateways, "/open/beside", "ada");
    let answers = storm(&remote, 1_002, |number| json!({"prefix": format!("/many/{number}/")}));
    let widened = answers.iter().filter(|answer| answer["widened"] == true).count();
    assert!((1..=3).contains(&widened), "{widened}");
    for gateway in gateways {
        assert_ne!(read(gateway, "/open/beside", "ada").text(), beside);
    }
    let fields: usize = redis::cmd("HLEN").arg(LIST).query(&mut stage.redis.client()).unwrap();
    assert!(fields <= 1_001, "{fields}");
}
