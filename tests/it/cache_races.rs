//! Writes and purges against fills under way, at every order, through two instances on one Redis: who has been told that
//! a write or a purge is done is never served what was before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cache::{Stage, x_cache};
use crate::support::client::{Client, Response};
use crate::support::concurrently;
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::origin::{Origin, Received, Reply};
use crate::support::relay::Relay;
use crate::support::reply::Gate;
use crate::support::token::Token;

/// One record at the origin. Reads say its version as it was when the request came, writes make a new one; both may be
/// held back.
#[derive(Clone)]
struct Record {
    version: Arc<AtomicU64>,
    reads: Gate,
    writes: Gate,
    failing: Arc<AtomicBool>,
    /// Reads that have seen the version they will say.
    begun: Arc<AtomicU64>,
}

impl Record {
    fn at(origin: &Origin, decorate: impl Fn(Reply, u64) -> Reply + Send + Sync + 'static) -> Self {
        let record = Self {
            version: Arc::default(),
            reads: Gate::closed(),
            writes: Gate::closed(),
            failing: Arc::default(),
            begun: Arc::default(),
        };
        record.reads.open();
        record.writes.open();
        let of_origin = record.clone();
        origin.answer(move |request: &Received| {
            if request.method != "GET" {
                let version = of_origin.version.fetch_add(1, SeqCst) + 1;
                return Reply::text(200, &version.to_string()).behind(&of_origin.writes);
            }
            if of_origin.failing.load(SeqCst) {
                return Reply::text(503, "down").behind(&of_origin.reads);
            }
            let version = of_origin.version.load(SeqCst);
            of_origin.begun.fetch_add(1, SeqCst);
            let tag = format!("\"v{version}\"");
            let known = request.header("if-none-match") == Some(&tag);
            let reply = if known { Reply::new(304, "") } else { Reply::text(200, &version.to_string()) };
            decorate(reply.header("etag", &tag), version).behind(&of_origin.reads)
        });
        record
    }
}

fn ask(client: &Client, path: &str) -> Response {
    client.get(path).host("api.example").bearer(&Token::of("ada").sign()).send()
}

fn version(response: &Response) -> u64 {
    response.text().parse().unwrap_or_else(|_| panic!("{} {}", response.code(), response.text()))
}

fn read(gateway: &Gateway, path: &str) -> u64 {
    version(&ask(&gateway.client(), path))
}

fn write(gateway: &Gateway, path: &str) -> u64 {
    let ada = Token::of("ada").sign();
    version(&gateway.client().put(path).host("api.example").bearer(&ada).body("x").send())
}

fn uses_redis(gateway: &Gateway) {
    assert_eventually!(gateway.metric("tollgate_store_degraded", &[]) == Some(0.0), "Redis is in use");
}

fn pair() -> (Stage, Gateway) {
    let stage = Stage::start();
    let other = stage.another();
    uses_redis(&other);
    (stage, other)
}

fn purge(gateway: &Gateway, what: &Value) {
    // Redis may be slow to confirm it; again does no harm.
    let shared = || {
        let answer = gateway.admin().post("/api/v1/cache/purge").bearer(ADMIN_TOKEN).json(what).send();
        assert_eq!(answer.code(), 200, "{what}: {}", answer.text());
        answer.json()["shared"] == true
    };
    assert_eventually!(shared(), "all instances know of it");
}

#[test]
fn a_fill_under_way_is_of_no_use_after_a_write_or_a_purge_on_any_instance() {
    let (stage, other) = pair();
    let record = Record::at(&stage.origin, |reply, _| reply);
    let gateways = [&stage.gateway, &other];
    let changes: [Option<Value>; 7] = [
        None,
        Some(json!({"prefix": "/items/"})),
        Some(json!({"tag": "item:1"})),
        Some(json!({"user": "ada"})),
        Some(json!({"route": "item"})),
        Some(json!({"key": "?"})),
        Some(json!({"all": true})),
    ];
    for (round, change) in changes.iter().enumerate() {
        for (filling, changing) in [(0, 0), (0, 1), (1, 0)] {
            let what = format!("{change:?}, round {round}, {filling} fills, {changing} changes");
            let key = ask(&gateways[0].client(), "/items/1").header("x-cache-key").unwrap().to_owned();
            // Nothing is stored, so that the next read is a fill.
            purge(gateways[0], &json!({"all": true}));
            record.reads.close();
            let before = record.version.load(SeqCst);
            let filled = std::thread::scope(|scope| {
                let begun = record.begun.load(SeqCst);
                let reader = scope.spawn(|| read(gateways[filling], "/items/1"));
                assert_eventually!(record.begun.load(SeqCst) == begun + 1, "the fill is under way");
                match change {
                    None => assert_eq!(write(gateways[changing], "/items/1"), before + 1, "{what}"),
                    Some(purged) => {
                        record.version.fetch_add(1, SeqCst);
                        let purged =
                            if purged.get("key").is_some() { json!({"key": key}) } else { purged.clone() };
                        purge(gateways[changing], &purged);
                    }
                }
                record.reads.open();
                // While the old fill may just be ending.
                for gateway in gateways {
                    assert_eq!(read(gateway, "/items/1"), before + 1, "{what}");
                }
                reader.join().unwrap()
            });
            assert_eq!(filled, before, "who asked before may be told what was before");
            for gateway in gateways {
                for _ in 0..2 {
                    assert_eq!(read(gateway, "/items/1"), before + 1, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_read_between_the_beginning_and_the_end_of_a_write_leaves_nothing_behind() {
    let (stage, other) = pair();
    // The origin changes its record only when the answer goes out: what is read meanwhile is what was before.
    let (gate, committed) = (Gate::closed(), Arc::new(AtomicU64::new(0)));
    let (of_origin, held) = (Arc::clone(&committed), gate.clone());
    stage.origin.answer(move |request| {
        let version = of_origin.load(SeqCst);
        if request.method == "GET" {
            Reply::text(200, &version.to_string())
        } else {
            Reply::text(200, "ok").behind(&held)
        }
    });
    for (reading, writing) in
        [(&stage.gateway, &stage.gateway), (&other, &stage.gateway), (&stage.gateway, &other)]
    {
        gate.close();
        let before = committed.load(SeqCst);
        std::thread::scope(|scope| {
            let hits = stage.origin.in_flight();
            let writer = scope.spawn(|| {
                let ada = Token::of("ada").sign();
                writing.client().put("/items/1").host("api.example").bearer(&ada).body("x").send().code()
            });
            assert_eventually!(stage.origin.in_flight() == hits + 1, "the write is under way");
            assert_eventually!(
                x_cache(&ask(&reading.client(), "/items/1")) == "HIT",
                "it is stored meanwhile"
            );
            assert_eq!(read(reading, "/items/1"), before);
            committed.store(before + 1, SeqCst);
            gate.open();
            assert_eq!(writer.join().unwrap(), 200);
        });
        for gateway in [&other, &stage.gateway] {
            assert_eq!(read(gateway, "/items/1"), before + 1);
        }
    }
}

#[test]
fn a_revalidation_or_a_refresh_under_way_brings_nothing_old_back() {
    let (stage, other) = pair();
    // Stale at once: every read revalidates, in the foreground or in the background.
    for (path, kept) in
        [("/open/doc", "public, max-age=0"), ("/stale/doc", "public, max-age=0, stale-while-revalidate=600")]
    {
        let record = Record::at(&stage.origin, move |reply, _| reply.header("cache-control", kept));
        for writing in [&stage.gateway, &other] {
            let before = record.version.load(SeqCst);
            for _ in 0..2 {
                read(&stage.gateway, path);
            }
            assert_eventually!(stage.origin.in_flight() == 0, "no refresh is under way");
            record.reads.close();
            let begun = record.begun.load(SeqCst);
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| read(&stage.gateway, path));
                let asked = || record.begun.load(SeqCst) > begun;
                assert_eventually!(asked(), "it is being asked whether it still holds");
                assert_eq!(write(writing, path), before + 1, "{path}");
                record.reads.open();
                // The refresh may have been that of an earlier read.
                assert!((before..=before + 1).contains(&reader.join().unwrap()), "{path}: who asked before");
            });
            for gateway in [&other, &stage.gateway] {
                for _ in 0..3 {
                    assert_eq!(read(gateway, path), before + 1, "{path}");
                }
            }
        }
    }
}

#[test]
fn an_error_after_a_write_is_no_reason_to_serve_what_was_before() {
    let (stage, other) = pair();
    let record = Record::at(&stage.origin, |reply, _| {
        reply.header("cache-control", "public, max-age=0, stale-if-error=600, stale-while-revalidate=0")
    });
    for path in ["/stale/doc", "/mine/doc"] {
        for gateway in [&stage.gateway, &other] {
            read(gateway, path);
        }
        record.failing.store(true, SeqCst);
        write(&stage.gateway, path);
        for gateway in [&stage.gateway, &other] {
            assert_eq!(ask(&gateway.client(), path).code(), 503, "{path}");
        }
        record.failing.store(false, SeqCst);
    }
}

#[test]
fn a_write_by_one_user_is_seen_by_all_who_read_the_same_uri() {
    let (stage, other) = pair();
    Record::at(&stage.origin, |reply, _| reply);
    let users = ["ada", "bob"].map(|user| Token::of(user).sign());
    let read = |gateway: &Gateway, user: &str| {
        version(&gateway.client().get("/mine/shared?a=1").host("api.example").bearer(user).send())
    };
    for written in 1..=3 {
        for gateway in [&stage.gateway, &other] {
            for user in &users {
                assert_eq!(read(gateway, user), written - 1);
            }
        }
        let writer = &users[usize::try_from(written % 2).unwrap()];
        let method = ["POST", "MKCOL", "X-CHANGE"][usize::try_from(written).unwrap() - 1];
        let client = stage.gateway.client();
        let sent =
            client.request(method.parse().unwrap(), "/mine/shared?a=1").host("api.example").bearer(writer);
        let code = sent.body("x").send().code();
        if method == "X-CHANGE" && code != 200 {
            // Not every method is passed on; what is not changes nothing.
            continue;
        }
        assert_eq!(code, 200, "{method}");
        for gateway in [&other, &stage.gateway] {
            for user in &users {
                assert_eq!(read(gateway, user), written, "{method}");
            }
        }
    }
}

#[test]
fn what_the_answer_to_a_write_names_is_dropped_if_it_is_of_the_same_origin() {
    let (stage, other) = pair();
    let count = AtomicU64::new(0);
    stage.origin.answer(move |request| {
        if request.method == "GET" {
            let number = count.fetch_add(1, SeqCst);
            return Reply::text(200, &number.to_string()).header("cache-control", "public, max-age=600");
        }
        let status = request.header("x-status").map_or(201, |status| status.parse().unwrap());
        let reply = Reply::text(status, "done");
        match (request.header("x-location"), request.header("x-content-location")) {
            (Some(named), _) => reply.header("location", named),
            (None, Some(named)) => reply.header("content-location", named),
            (None, None) => reply,
        }
    });
    let get = |gateway: &Gateway, path: &str, user: &str| {
        gateway.client().get(path).host("api.example").bearer(&Token::of(user).sign()).send().text()
    };
    let paths = [("/open/a", "ada"), ("/open/a?x='1'", "ada"), ("/mine/a", "ada"), ("/mine/a", "bob")];
    for (status, reference, dropped) in [
        ("201", "/open/a", &[0][..]),
        ("201", "a", &[0]),
        ("200", "./../open/%61", &[0]),
        ("303", "http://api.example/open/a?x='1'#top", &[1]),
        ("302", "http://API.example:80/mine/a", &[2, 3]),
        ("204", "//api.example/mine/a", &[2, 3]),
        ("201", "https://api.example/open/a", &[]),
        ("201", "http://api.example:8080/open/a", &[]),
        ("201", "http://other.example/open/a", &[]),
        ("201", "//other.example/open/a", &[]),
        ("201", "http://[::/open/a", &[]),
        ("404", "/open/a", &[]),
        ("500", "/open/a", &[]),
    ] {
        for field in ["x-location", "x-content-location"] {
            let before = paths.map(|(path, user)| {
                let first = get(&stage.gateway, path, user);
                assert_eventually!(get(&other, path, user) == first, "both have the same");
                first
            });
            let ada = Token::of("ada").sign();
            let write = stage.gateway.client().post("/open/list").host("api.example").bearer(&ada);
            let answer = write.header(field, reference).header("x-status", status).body("x").send();
            assert_eq!(answer.code().to_string(), status);
            for gateway in [&other, &stage.gateway] {
                for (index, ((path, user), before)) in paths.iter().zip(&before).enumerate() {
                    let gone = get(gateway, path, user) != *before;
                    assert_eq!(
                        gone,
                        dropped.contains(&index),
                        "{status} {field}: {reference} and {path} {user}"
                    );
                }
            }
        }
    }
}

type Outage = fn(&Relay);

#[test]
fn a_redis_that_is_cut_around_a_write_hides_it_from_nobody_for_long_and_from_the_writer_never() {
    let stage = Stage::start();
    let relay = Relay::to(stage.redis.addr());
    let text = crate::cache::config(&stage.origin.addr().to_string(), "")
        .replace("deadline = \"1s\"", "deadline = \"50ms\"");
    let remote = Gateway::builder().config(&text).env("REDIS_URL", &relay.redis_url()).start();
    uses_redis(&remote);
    let record = Record::at(&stage.origin, |reply, _| reply);
    let outages: [(&str, Outage); 3] = [
        ("cut", Relay::cut),
        ("silent", Relay::black_hole),
        ("late", |relay| relay.delay_answers(Duration::from_millis(300))),
    ];
    for (name, outage) in outages {
        for during in [false, true] {
            for gateway in [&stage.gateway, &remote] {
                assert_eventually!(x_cache(&ask(&gateway.client(), "/items/1")) == "HIT", "it is stored");
            }
            if !during {
                outage(&relay);
            }
            record.writes.close();
            let before = record.version.load(SeqCst);
            let written = std::thread::scope(|scope| {
                let writer = scope.spawn(|| write(&remote, "/items/1"));
                assert_eventually!(record.version.load(SeqCst) == before + 1, "the write is under way");
                if during {
                    outage(&relay);
                }
                record.writes.open();
                writer.join().unwrap()
            });
            for _ in 0..3 {
                assert_eq!(read(&remote, "/items/1"), written, "{name}, during: {during}: its own instance");
            }
            relay.delay_answers(Duration::ZERO);
            relay.restore();
            assert_eq!(read(&remote, "/items/1"), written, "{name}, during: {during}");
            assert_eventually!(read(&stage.gateway, "/items/1") == written, "the other instance is told");
            uses_redis(&remote);
            for gateway in [&stage.gateway, &remote] {
                assert_eq!(read(gateway, "/items/1"), written, "{name}, during: {during}");
            }
        }
    }
}

#[test]
fn a_redis_that_comes_back_empty_brings_nothing_old_back() {
    let (stage, other) = pair();
    let record = Record::at(&stage.origin, |reply, _| reply);
    for round in 0..2 {
        for gateway in [&stage.gateway, &other] {
            assert_eventually!(x_cache(&ask(&gateway.client(), "/items/1")) == "HIT", "it is stored");
        }
        stage.redis.kill();
        let writer = if round == 0 { &stage.gateway } else { &other };
        let written = write(writer, "/items/1");
        assert_eq!(read(writer, "/items/1"), written);
        stage.redis.restart();
        assert_eq!(read(writer, "/items/1"), written);
        uses_redis(&stage.gateway);
        uses_redis(&other);
        assert_eventually!(
            read(&stage.gateway, "/items/1") == written && read(&other, "/items/1") == written,
            "all know"
        );
        assert_eq!(record.version.load(SeqCst), written);
    }
}

#[test]
fn readers_writers_and_purges_in_a_crowd_see_time_go_forwards_only() {
    let (stage, other) = pair();
    let alone = crate::cache::gateway(&stage.origin.addr().to_string(), "", "");
    let gateways = [&stage.gateway, &other];
    let count = AtomicU64::new(0);
    let version_of = Arc::new(AtomicU64::new(0));
    let of_origin = Arc::clone(&version_of);
    stage.origin.answer(move |request| {
        let slow = Duration::from_millis(count.fetch_add(1, SeqCst) % 7);
        let version =
            if request.method == "GET" { of_origin.load(SeqCst) } else { of_origin.fetch_add(1, SeqCst) + 1 };
        Reply::text(200, &version.to_string()).after(slow)
    });
    // The latest version of which a writer was told.
    let told = AtomicU64::new(0);
    concurrently(6, |number| {
        let gateway = gateways[number % 2];
        let (client, admin, ada) = (gateway.client(), gateway.admin(), Token::of("ada").sign());
        for turn in 0..40_usize {
            let least = told.load(SeqCst);
            match number {
                0 | 1 => {
                    let sent = client.put("/items/1").host("api.example").bearer(&ada).body("x").send();
                    told.fetch_max(version(&sent), SeqCst);
                }
                2 => {
                    let what =
                        [json!({"prefix": "/items/"}), json!({"tag": "item:1"}), json!({"user": "ada"})];
                    let sent = admin.post("/api/v1/cache/purge").bearer(ADMIN_TOKEN);
                    assert_eq!(sent.json(&what[turn % 3]).send().code(), 200);
                }
                _ => {
                    let response = client.get("/items/1").host("api.example").bearer(&ada).send();
                    let read = version(&response);
                    assert!(read >= least, "read {read} after {least} was told ({})", x_cache(&response));
                }
            }
        }
    });
    let last = version_of.load(SeqCst);
    for gateway in gateways {
        assert_eq!(read(gateway, "/items/1"), last);
    }
    // One that shares nothing serves its own writers as well.
    for _ in 0..10 {
        let written = write(&alone, "/items/1");
        assert_eq!(read(&alone, "/items/1"), written);
    }
}
