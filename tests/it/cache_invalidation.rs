//! Reads after writes: what a writer was told is what everybody reads from then on, on every instance.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cache::{Stage, x_cache};
use crate::support::client::{Client, Response};
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::origin::{Origin, Reply};
use crate::support::token::Token;

/// Versions per path, as the origin's data base has them.
#[derive(Clone, Default)]
struct Data(Arc<Mutex<HashMap<String, u64>>>);

impl Data {
    fn of(&self, path: &str) -> u64 {
        self.0.lock().unwrap().get(path).copied().unwrap_or(0)
    }

    fn write(&self, path: &str) -> u64 {
        let mut data = self.0.lock().unwrap();
        let version = data.entry(path.to_owned()).or_default();
        *version += 1;
        *version
    }
}

/// Reads say the version, as it was when the request came; every write makes a new one.
fn versioned(origin: &Origin, slowness: impl Fn(u64) -> Duration + Send + Sync + 'static) -> Data {
    let data = Data::default();
    let (of_origin, count) = (data.clone(), AtomicU64::new(0));
    origin.answer(move |request| {
        let number = count.fetch_add(1, SeqCst);
        let version = if request.method == "GET" {
            of_origin.of(&request.path)
        } else {
            of_origin.write(&request.path)
        };
        Reply::text(200, &version.to_string()).after(slowness(number))
    });
    data
}

fn version(response: &Response) -> u64 {
    response.text().parse().unwrap_or_else(|_| panic!("{} {}", response.code(), response.text()))
}

#[test]
fn a_write_is_followed_by_fresh_reads_on_both_instances_whatever_is_being_filled() {
    let stage = Stage::start();
    let other = stage.another();
    // Fills take between nothing and a while, so that writes overtake them.
    versioned(&stage.origin, |number| {
        Duration::from_millis([0, 0, 1, 4, 15][usize::try_from(number % 5).unwrap()])
    });
    let gateways = [&stage.gateway, &other];
    let ada = Token::of("ada").sign();
    let done = AtomicBool::new(false);
    let hits = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (ada, done, hits) = (&ada, &done, &hits);
            let client = gateways[reader % 2].client();
            scope.spawn(move || {
                while !done.load(SeqCst) {
                    let response = client.get("/items/1").host("api.example").bearer(ada).send();
                    if x_cache(&response) == "HIT" {
                        hits.fetch_add(1, SeqCst);
                    }
                }
            });
        }
        let clients: Vec<Client> = gateways.iter().map(|gateway| gateway.client()).collect();
        for pair in 0..250_usize {
            let written =
                version(&clients[pair % 2].put("/items/1").host("api.example").bearer(&ada).body("x").send());
            for client in [&clients[(pair + 1) % 2], &clients[pair % 2]] {
                let response = client.get("/items/1").host("api.example").bearer(&ada).send();
                let read = version(&response);
                if read < written {
                    done.store(true, SeqCst);
                }
                assert!(
                    read >= written,
                    "pair {pair}: wrote {written}, read {read} ({})",
                    x_cache(&response)
                );
            }
        }
        done.store(true, SeqCst);
    });
    assert!(hits.load(SeqCst) > 50, "the cache was in use: {} hits", hits.load(SeqCst));
}

#[test]
fn several_writers_at_once_leave_nothing_old_behind() {
    let stage = Stage::start();
    let other = stage.another();
    let data = versioned(&stage.origin, |number| Duration::from_millis(number % 4));
    let ada = Token::of("ada").sign();
    assert_eventually!(gateway_uses_redis(&other, &ada), "the other instance has its connection");
    let gateways = [&stage.gateway, &other];
    for round in 0..15 {
        let path = format!("/items/{}", round % 3);
        concurrently_on(&gateways, 6, |client, number| {
            for _ in 0..2 {
                if number % 3 == 0 {
                    let response = client.get(&path).host("api.example").bearer(&ada).send();
                    assert_eq!(response.code(), 200);
                } else {
                    let written =
                        version(&client.put(&path).host("api.example").bearer(&ada).body("x").send());
                    let read = version(&client.get(&path).host("api.example").bearer(&ada).send());
                    assert!(read >= written, "wrote {written}, read {read}");
                }
            }
        });
        let last = data.of(&path);
        for gateway in gateways {
            assert_eq!(
                version(&gateway.client().get(&path).host("api.example").bearer(&ada).send()),
                last,
                "round {round}"
            );
        }
    }
}

fn concurrently_on(gateways: &[&Gateway], threads: usize, work: impl Fn(Client, usize) + Sync) {
    crate::support::concurrently(threads, |number| work(gateways[number % gateways.len()].client(), number));
}

#[test]
fn a_fill_that_began_before_the_write_is_of_no_use_after_it() {
    // Each instance fetches for itself.
    let stage = Stage::with_cache("redis_lock = \"0s\"");
    let origin = stage.origin.addr().to_string();
    let other = crate::cache::gateway(&origin, "redis_lock = \"0s\"", &stage.redis.url());
    let data = Data::default();
    let slow = Arc::new(AtomicBool::new(true));
    let (of_origin, is_slow) = (data.clone(), Arc::clone(&slow));
    stage.origin.answer(move |request| {
        if request.method == "GET" {
            let pause = if is_slow.load(SeqCst) { Duration::from_millis(400) } else { Duration::ZERO };
            Reply::text(200, &of_origin.of(&request.path).to_string()).after(pause)
        } else {
            Reply::text(200, &of_origin.write(&request.path).to_string())
        }
    });
    let ada = Token::of("ada").sign();
    std::thread::scope(|scope| {
        let reading: Vec<_> = [&stage.gateway, &other]
            .map(|gateway| {
                let client = gateway.client();
                let ada = &ada;
                scope.spawn(move || version(&client.get("/items/7").host("api.example").bearer(ada).send()))
            })
            .into();
        assert_eventually!(stage.origin.in_flight() == 2, "both fills are under way");
        assert_eq!(
            version(&stage.client.put("/items/7").host("api.example").bearer(&ada).body("x").send()),
            1
        );
        slow.store(false, SeqCst);
        for gateway in [&stage.gateway, &other] {
            assert_eq!(
                version(&gateway.client().get("/items/7").host("api.example").bearer(&ada).send()),
                1,
                "while the fill goes on"
            );
        }
        for thread in reading {
            assert_eq!(thread.join().unwrap(), 0, "who asked before may be told what was before");
        }
    });
    for gateway in [&stage.gateway, &other] {
        for _ in 0..2 {
            assert_eq!(version(&gateway.client().get("/items/7").host("api.example").bearer(&ada).send()), 1);
        }
    }
}

#[test]
fn a_write_whose_answer_is_an_error_or_lost_counts_as_done() {
    let stage = Stage::start();
    let other = stage.another();
    let data = Data::default();
    let of_origin = data.clone();
    stage.origin.answer(move |request| {
        if request.method == "GET" {
            return Reply::text(200, &of_origin.of(&request.path).to_string());
        }
        of_origin.write(&request.path);
        match request.query.as_deref() {
            Some("500") => Reply::text(500, "written, then failed"),
            Some("503") => Reply::text(503, "written, then failed"),
            Some("close") => Reply::close(),
            Some("hang") => Reply::hang_before_head(),
            Some("break") => Reply::text(200, "0123456789").break_in_body_after(2),
            Some("303") => Reply::new(303, "").header("location", "/items/3"),
            _ => Reply::text(200, "ok"),
        }
    });
    let ada = Token::of("ada").sign();
    for how in ["500", "503", "close", "hang", "break", "303"] {
        let path = format!("/items/lost-{how}");
        for gateway in [&stage.gateway, &other] {
            let client = gateway.client();
            for _ in 0..2 {
                assert_eq!(version(&client.get(&path).host("api.example").bearer(&ada).send()), 0, "{how}");
            }
        }
        let answer =
            stage.client.post(&format!("{path}?{how}")).host("api.example").bearer(&ada).body("x").try_send();
        if let Ok(answer) = &answer {
            assert_ne!(answer.code(), 200, "{how}");
        }
        for gateway in [&stage.gateway, &other] {
            assert_eq!(
                version(&gateway.client().get(&path).host("api.example").bearer(&ada).send()),
                1,
                "{how}"
            );
        }
    }
    // A client that goes away before the answer: the write may have happened.
    let path = "/items/gone";
    assert_eq!(version(&other.client().get(path).host("api.example").bearer(&ada).send()), 0);
    let gone = stage
        .client
        .put(&format!("{path}?hang"))
        .host("api.example")
        .bearer(&ada)
        .body("x")
        .within(Duration::from_millis(300));
    assert!(gone.try_send().is_err());
    assert_eventually!(
        version(&other.client().get(path).host("api.example").bearer(&ada).send()) == 1,
        "it is noticed"
    );
    // A write that was refused changes nothing.
    let path = "/items/refused";
    stage.origin.route("/items/refused", |request| {
        if request.method == "GET" { Reply::text(200, "0") } else { Reply::text(403, "no") }
    });
    stage.client.get(path).host("api.example").bearer(&ada).send();
    stage.client.put(path).host("api.example").bearer(&ada).body("x").send();
    assert_eq!(x_cache(&stage.client.get(path).host("api.example").bearer(&ada).send()), "HIT");
}

#[test]
fn a_write_drops_what_its_route_declares_however_it_is_spelt() {
    let stage = Stage::start();
    versioned(&stage.origin, |_| Duration::ZERO);
    let (ada, bob) = (Token::of("ada").sign(), Token::of("bob").sign());
    let read =
        |path: &str, token: &str| x_cache(&stage.client.get(path).host("api.example").bearer(token).send());
    let fill = |path: &str, token: &str| {
        read(path, token);
        assert_eq!(read(path, token), "HIT", "{path}");
    };
    fill("/items", &ada);
    fill("/items", &bob);
    fill("/items/1", &ada);
    fill("/items/2", &ada);
    fill("/items/1", &bob);
    stage.client.put("/items/1").host("api.example").bearer(&ada).body("x").send();
    assert_eq!(read("/items", &ada), "MISS", "the writer's list");
    assert_eq!(read("/items", &bob), "HIT", "somebody else's list is theirs");
    assert_eq!(read("/items/1", &ada), "MISS");
    assert_eq!(read("/items/1", &bob), "MISS", "the record, for whoever reads it");
    assert_eq!(read("/items/2", &ada), "HIT", "another record");
    // The same record in other letters.
    for (reading, writing) in [
        ("/items/a@b", "/items/a%40b"),
        ("/items/%61", "/items/a"),
        ("/items/x%20y", "/items/x%20y?z=1"),
        ("/items/%c3%a4", "/items/%C3%A4"),
        ("/items/a!", "/items/a%21"),
        ("/items/a~", "/items/a%7E"),
        ("/items/./k", "/items/k"),
    ] {
        fill(reading, &ada);
        assert_eq!(
            stage.client.put(writing).host("api.example").bearer(&ada).body("x").send().code(),
            200,
            "{writing}"
        );
        assert_eq!(read(reading, &ada), "MISS", "{writing} changes {reading}");
    }
    // Tags cannot be forged by what stands in a path.
    fill("/items/3", &ada);
    for id in ["3%3A", "%253", "3:", "-epoch", "*", "3,", "3%7B"] {
        stage.client.put(&format!("/items/{id}")).host("api.example").bearer(&bob).body("x").send();
        assert_eq!(read("/items/3", &ada), "HIT", "{id}");
    }
}

#[test]
fn a_logout_drops_what_is_stored_for_the_user_on_every_instance() {
    let stage = Stage::start();
    let other = stage.another();
    versioned(&stage.origin, |_| Duration::ZERO);
    let (ada, bob) = (Token::of("ada").sign(), Token::of("bob").sign());
    for gateway in [&stage.gateway, &other] {
        for token in [&ada, &bob] {
            let client = gateway.client();
            client.get("/items/1").host("api.example").bearer(token).send();
            assert_eq!(x_cache(&client.get("/items/1").host("api.example").bearer(token).send()), "HIT");
        }
    }
    assert_eq!(stage.client.post("/auth/logout").host("api.example").bearer(&ada).send().code(), 200);
    let again = Token::of("ada").sign();
    for gateway in [&other, &stage.gateway] {
        assert_eq!(gateway.client().get("/items/1").host("api.example").bearer(&ada).send().code(), 401);
        assert_eq!(
            x_cache(&gateway.client().get("/items/1").host("api.example").bearer(&bob).send()),
            "HIT",
            "nobody else's"
        );
    }
    assert_eq!(x_cache(&other.client().get("/items/1").host("api.example").bearer(&again).send()), "MISS");
}

#[test]
fn operators_purge_by_key_user_route_tag_and_all_on_every_instance() {
    let stage = Stage::start();
    let other = stage.another();
    versioned(&stage.origin, |_| Duration::ZERO);
    let (ada, bob) = (Token::of("ada").sign(), Token::of("bob").sign());
    let key = {
        let response = stage.client.get("/items/1").host("api.example").bearer(&ada).send();
        response.header("x-cache-key").unwrap().to_owned()
    };
    // What each purge drops of: ada's record, ada's list, bob's record.
    let purges = [
        (serde_json::json!({ "key": key }), [true, false, true]),
        (serde_json::json!({ "user": "ada" }), [true, true, false]),
        (serde_json::json!({ "route": "item" }), [true, false, true]),
        (serde_json::json!({ "tag": "items:ada" }), [false, true, false]),
        (serde_json::json!({ "all": true }), [true, true, true]),
    ];
    for (purge, dropped) in purges {
        let reads = [("/items/1", &ada), ("/items", &ada), ("/items/1", &bob)];
        for gateway in [&stage.gateway, &other] {
            for (path, token) in reads {
                let client = gateway.client();
                client.get(path).host("api.example").bearer(token).send();
                assert_eq!(x_cache(&client.get(path).host("api.example").bearer(token).send()), "HIT");
            }
        }
        let answer =
            stage.gateway.admin().post("/api/v1/cache/purge").bearer(ADMIN_TOKEN).json(&purge).send();
        assert_eq!(answer.code(), 200, "{purge}: {}", answer.text());
        stage.origin.clear();
        for ((path, token), dropped) in reads.into_iter().zip(dropped) {
            for gateway in [&other, &stage.gateway] {
                stage.origin.clear();
                let response = gateway.client().get(path).host("api.example").bearer(token).send();
                let kept = x_cache(&response) == "HIT";
                // What one instance fetched anew the next has from Redis.
                assert!(!(kept && dropped && std::ptr::eq(gateway, &raw const other)), "{purge}: {path}");
                assert!(kept || dropped, "{purge} must leave {path}");
            }
        }
    }
}

#[test]
fn a_generation_that_redis_evicts_makes_nothing_old_reachable() {
    let stage = Stage::start();
    let other = stage.another();
    versioned(&stage.origin, |_| Duration::ZERO);
    let ada = Token::of("ada").sign();
    let read = |gateway: &Gateway| gateway.client().get("/items/1").host("api.example").bearer(&ada).send();
    let mut redis = stage.redis.client();
    for written in 1..=5 {
        for gateway in [&stage.gateway, &other] {
            assert_eventually!(x_cache(&read(gateway)) == "HIT", "both instances hold it");
        }
        let writer = if written % 2 == 0 { &stage.gateway } else { &other };
        writer.client().put("/items/1").host("api.example").bearer(&ada).body("x").send();
        // Redis runs out of memory: the generations go, the epoch stays.
        let tags: Vec<String> =
            stage.redis.keys().into_iter().filter(|key| key.starts_with("cache_tag:")).collect();
        let stays = ["cache_tag:-epoch", "cache_tag:{-prefixes}"];
        let evicted: Vec<_> = tags.iter().filter(|key| !stays.contains(&key.as_str())).collect();
        assert!(evicted.iter().any(|key| key.as_str() == "cache_tag:item:1"), "{tags:?}");
        redis::cmd("DEL").arg(&evicted).exec(&mut redis).unwrap();
        for gateway in [&other, &stage.gateway] {
            assert_eq!(version(&read(gateway)), written);
        }
    }
    stage.redis.flush();
    for gateway in [&stage.gateway, &other] {
        assert_eq!(version(&read(gateway)), 5);
    }
}

#[test]
fn a_generation_that_redis_lost_while_the_origin_answered_is_not_brought_back() {
    let (redis, origin) = (crate::support::redis::Redis::start(), Origin::start());
    let gateway = crate::cache::gateway(&origin.addr().to_string(), "", &redis.url());
    let ada = Token::of("ada").sign();
    let read = |path: &str| x_cache(&gateway.client().get(path).bearer(&ada).send());
    assert_eventually!(gateway.metric("tollgate_store_degraded", &[]) == Some(0.0), "Redis is there");
    origin.answer(|_| Reply::text(200, "found"));
    assert_eq!(read("/items/2"), "MISS");
    let left = || redis::cmd("PTTL").arg("cache_tag:item:2").query::<i64>(&mut redis.client()).unwrap();
    assert_eventually!(left() > 60_000, "it is kept, by a script that Redis knows from now on");
    let url = redis.url();
    origin.answer(move |_| {
        let mut client = redis::Client::open(&*url).unwrap().get_connection().unwrap();
        let keys: Vec<String> = redis::cmd("KEYS").arg("cache_tag:*").query(&mut client).unwrap();
        redis::cmd("DEL").arg(keys).exec(&mut client).unwrap();
        Reply::text(200, "found")
    });
    let mut monitor = redis.monitor();
    assert_eq!(read("/items/1"), "MISS");
    let is_offer = |executed: &crate::support::redis::Executed| {
        let [name, _, _, key, _, announced, ..] = &*executed.words else { return false };
        name == "EVALSHA" && key == "cache_tag:item:1" && announced.ends_with('~')
    };
    assert_eventually!(monitor.requests().iter().any(is_offer), "its generation is offered");
    // Something else may have been invalidated and lost meanwhile.
    assert!(!redis.keys().contains(&"cache_tag:item:1".to_owned()));
    origin.answer(|_| Reply::text(200, "found"));
    assert_eq!(read("/items/1"), "MISS");
    assert_eq!(read("/items/1"), "HIT");
}

#[test]
fn a_new_store_is_of_use_from_the_first_request_and_gets_keys_only_for_what_is_stored() {
    let redis = crate::support::redis::Redis::start();
    let origin = Origin::start();
    let gateway = crate::cache::gateway(&origin.addr().to_string(), "", &redis.url());
    let ada = Token::of("ada").sign();
    let client = gateway.client();
    let read = |path: &str| x_cache(&client.get(path).bearer(&ada).send());
    assert_eventually!(gateway.metric("tollgate_store_degraded", &[]) == Some(0.0), "Redis is there");
    origin.answer(|_| Reply::text(404, "nothing here"));
    for number in 0..20 {
        read(&format!("/items/{number}"));
    }
    let tags = || redis.keys().into_iter().filter(|key| key.starts_with("cache_tag:")).count();
    let lasts = |key: &String| {
        let left: i64 = redis::cmd("PTTL").arg(key).query(&mut redis.client()).unwrap();
        key.starts_with("cache_tag:") && (left == -1 || left > 60_000)
    };
    assert!(!redis.keys().iter().any(lasts), "looking for what is not there leaves nothing behind for long");
    redis.flush();
    origin.answer(|_| Reply::text(200, "found"));
    assert_eq!(read("/items/found"), "MISS");
    assert_eq!(read("/items/found"), "HIT");
    assert_eventually!(tags() == 6, "epoch, prefixes, route, user, item and key");
    assert_eq!(read("/items/found"), "HIT");
    assert_eventually!(
        redis.keys().iter().filter(|key| lasts(key)).count() == 6,
        "what is stored keeps them"
    );
    assert_eq!(redis.keys_without_ttl(), ["cache_tag:-epoch", "cache_tag:{-prefixes}"]);
}

#[test]
fn an_invalidation_whose_answer_is_late_is_repeated_until_everybody_knows() {
    let stage = Stage::start();
    let relay = crate::support::relay::Relay::to(stage.redis.addr());
    let text = crate::cache::config(&stage.origin.addr().to_string(), "")
        .replace("deadline = \"1s\"", "deadline = \"50ms\"\nbreaker_failures = 1000");
    let slow = Gateway::builder().config(&text).env("REDIS_URL", &relay.redis_url()).start();
    versioned(&stage.origin, |_| Duration::ZERO);
    let ada = Token::of("ada").sign();
    let read = || stage.client.get("/items/1").host("api.example").bearer(&ada).send();
    assert_eventually!(gateway_uses_redis(&slow, &ada), "the other instance has its connection");
    assert_eventually!(x_cache(&read()) == "HIT", "it is stored");
    relay.black_hole();
    let written = version(&slow.client().put("/items/1").host("api.example").bearer(&ada).body("x").send());
    relay.restore();
    assert_eventually!(version(&read()) == written, "the write is told again");
}

fn gateway_uses_redis(gateway: &Gateway, token: &str) -> bool {
    let response = gateway.client().get("/items/2").host("api.example").bearer(token).send();
    x_cache(&response) == "HIT" && gateway.metric("tollgate_store_degraded", &[]) == Some(0.0)
}

#[test]
fn a_write_replaces_its_own_target_even_where_nothing_is_declared() {
    let stage = Stage::start();
    let other = stage.another();
    let data = Data::default();
    let of_origin = data.clone();
    stage.origin.answer(move |request| {
        let version = if request.method == "GET" {
            of_origin.of(&request.path)
        } else {
            of_origin.write(&request.path)
        };
        Reply::text(200, &version.to_string()).header("cache-control", "public, max-age=60")
    });
    let ada = Token::of("ada").sign();
    for path in ["/mine/doc?x=1&y=2", "/open/doc", "/maybe/doc"] {
        let read =
            |gateway: &Gateway| version(&gateway.client().get(path).host("api.example").bearer(&ada).send());
        for written in 1..=3 {
            for gateway in [&stage.gateway, &other] {
                read(gateway);
                assert_eq!(read(gateway), written - 1);
            }
            let client = stage.client.clone();
            client.put(&path.replace("x=1&y=2", "y=2&x=1")).host("api.example").bearer(&ada).body("x").send();
            for gateway in [&other, &stage.gateway] {
                assert_eq!(read(gateway), written, "{path}");
            }
        }
    }
}
