//! Many requests for one object that nobody has yet: the origin is asked once, by one instance for all of them, and
//! nobody is held up when that goes wrong.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::cache::x_cache;
use crate::setup::{self, PATIENT};
use crate::support::client::{Client, RawConnection, Response, SendError};
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::origin::{Gate, Origin, Reply};
use crate::support::ports::free_addr;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::{RUNTIME, holds_within, wait_for};

/// Waits and claims that outlast any test: what is served in time was not waited for.
const ENDLESS: &str = "coalesce_wait = \"60s\"\nredis_lock = \"60s\"";

/// The same for all instances: it is a part of the key.
const HOST: &str = "api.example";

const STREAMS: usize = 100;

/// `cache`: lines of `[cache]`; `route`: lines of `[routes.cache]`.
fn config(origin: &Origin, cache: &str, route: &str) -> String {
    let rest = format!(
        "read_timeout = \"60s\"\n[cache]\n{cache}\n[[routes]]\nname = \"things\"\npath = \"/**\"\nupstream = \"app\"\n\
         [routes.cache]\nshared = true\n{route}"
    );
    setup::config(origin, PATIENT, &rest)
}

/// An instance that speaks HTTP/2, with the cache in use, and where it speaks HTTP/1.1.
fn instance(config: &str, redis: &str) -> (Gateway, SocketAddr) {
    let http1 = free_addr();
    let listen = format!("listen = [\"{http1}\"]\nlisten_h2c = [\"{{listen}}\"]");
    let gateway = setup::gateway(&config.replace("listen = [\"{listen}\"]", &listen), redis);
    let client = gateway.h2c_client();
    assert_eventually!(x_cache(&client.get("/warm").host(HOST).send()) == "HIT", "the cache comes into use");
    (gateway, http1)
}

/// An origin whose `/warm` can be stored.
fn origin() -> Origin {
    let origin = Origin::start();
    origin.route("/warm", |_| cacheable("warm"));
    origin
}

fn cacheable(body: impl Into<bytes::Bytes>) -> Reply {
    Reply::new(200, body).header("cache-control", "max-age=60")
}

/// Two instances with a Redis; the first reaches it through a relay.
struct Stage {
    redis: Redis,
    link: Relay,
    origin: Origin,
    gateways: [Gateway; 2],
    /// Where the first speaks HTTP/1.1.
    http1: SocketAddr,
}

impl Stage {
    fn start(cache: &str, route: &str) -> Self {
        let (redis, origin) = (Redis::start(), origin());
        let link = Relay::to(redis.addr());
        let config = config(&origin, cache, route);
        let (first, http1) = instance(&config, &link.redis_url());
        let (second, _) = instance(&config, &redis.url());
        origin.clear();
        Self { redis, link, origin, gateways: [first, second], http1 }
    }

    /// Makes `path` an object that both instances have known and nobody has: its tags have their generations.
    fn cold(&self, path: &str) {
        let keys = |stem: &str| self.redis.keys().iter().filter(|key| key.starts_with(stem)).count();
        let (tags, entries) = (keys("cache_tag:"), keys("cache:"));
        self.origin.route(path, |_| cacheable("old"));
        assert_eventually!(
            {
                assert_eq!(self.get(0, path).text(), "old");
                let is_written = || keys("cache_tag:") > tags && keys("cache:") > entries;
                let written = holds_within(Duration::from_secs(2), is_written);
                if !written {
                    self.purge();
                }
                written
            },
            "the object and the generations of its tags are written",
            Duration::from_secs(30)
        );
        assert_eventually!(x_cache(&self.get(1, path)) == "HIT", "the other instance knows it");
        self.purge();
        self.origin.clear();
    }

    fn purge(&self) {
        let purge = serde_json::json!({"route": "things"});
        let shared = || {
            let admin = self.gateways[0].admin();
            let purged = admin.post("/api/v1/cache/purge").bearer(ADMIN_TOKEN).json(&purge).send();
            assert_eq!(purged.code(), 200, "{}", purged.text());
            purged.json()["shared"] == true
        };
        assert_eventually!(shared(), "all instances know of it");
    }

    fn get(&self, instance: usize, path: &str) -> Response {
        self.gateways[instance].h2c_client().get(path).host(HOST).send()
    }

    /// The first answer is `first`, behind a gate; all others are whole at once.
    fn first_behind_gate(&self, path: &str, first: Reply) -> Gate {
        let gate = Gate::closed();
        let (first, count) = (first.behind(&gate), AtomicUsize::new(0));
        self.origin.route(path, move |_| {
            if count.fetch_add(1, SeqCst) == 0 { first.clone() } else { cacheable("whole") }
        });
        gate
    }

    /// Begins a request at the first instance, and once the origin has it, that many more at each of both; returns when
    /// all have arrived.
    fn crowd(&self, path: &str, each: usize) -> (Crowd, [Crowd; 2]) {
        let leader = Crowd::begin(&self.gateways[0], path, 1);
        assert_eventually!(self.origin.hits() == 1, "the leader asks the origin");
        let others = [0, 1].map(|instance| Crowd::begin(&self.gateways[instance], path, each));
        assert_eventually!(
            in_flight(&self.gateways[0]) == each + 1 && in_flight(&self.gateways[1]) == each,
            "all requests have arrived"
        );
        (leader, others)
    }

    fn locks(&self) -> Vec<String> {
        self.redis.keys().into_iter().filter(|key| key.starts_with("cache_lock:")).collect()
    }
}

fn count(gateway: &Gateway, metric: &str) -> usize {
    gateway.metric(metric, &[]).unwrap_or_default().to_string().parse().unwrap()
}

fn in_flight(gateway: &Gateway) -> usize {
    count(gateway, "tollgate_requests_in_flight")
}

/// Whether an instance, which has to be the one that did not get it, is asking for the claim again and again.
fn is_asking_for_the_claim(stage: &Stage) -> bool {
    let asked = || -> u64 {
        let text: String = redis::cmd("INFO").arg("commandstats").query(&mut stage.redis.client()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap_or("0,");
        line.split(',').next().unwrap().parse().unwrap()
    };
    let before = asked();
    std::thread::sleep(Duration::from_millis(100));
    asked() > before + 1
}

fn waits(gateway: &Gateway) -> [usize; 2] {
    ["tollgate_cache_waits_total", "tollgate_cache_waits_given_up_total"].map(|name| count(gateway, name))
}

/// Requests under way, many on each connection.
struct Crowd(Vec<JoinHandle<Result<Response, SendError>>>);

impl Crowd {
    fn begin(gateway: &Gateway, path: &str, requests: usize) -> Self {
        let connections = requests.div_ceil(STREAMS);
        let clients: Vec<Client> = (0..connections).map(|_| gateway.h2c_client()).collect();
        let begin = |number: usize| {
            let request = clients[number % connections].get(path).host(HOST).within(Duration::from_secs(60));
            RUNTIME.spawn(request.send_async())
        };
        Self((0..requests).map(begin).collect())
    }

    fn end(self) -> Vec<Result<Response, SendError>> {
        wait_for(async move {
            let mut outcomes = Vec::new();
            for request in self.0 {
                outcomes.push(request.await.expect("the client does not panic"));
            }
            outcomes
        })
    }

    fn all_get(self, body: &str) {
        for outcome in self.end() {
            let response = outcome.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((response.code(), response.text().as_str()), (200, body));
        }
    }
}

#[test]
fn ten_thousand_requests_for_one_cold_object_reach_the_origin_once() {
    const REQUESTS: usize = 10_000;
    let stage = Stage::start(ENDLESS, "");
    stage.cold("/cold");
    let gate = Gate::closed();
    let reply = cacheable("x".repeat(1000)).behind(&gate);
    stage.origin.route("/cold", move |_| reply.clone());
    let crowd = Crowd::begin(&stage.gateways[0], "/cold", REQUESTS);
    assert_eventually!(
        in_flight(&stage.gateways[0]) == REQUESTS,
        "all requests have arrived",
        Duration::from_secs(60)
    );
    gate.open();
    crowd.all_get(&"x".repeat(1000));
    assert_eq!(stage.origin.hits(), 1);
}

#[test]
fn two_instances_fetch_a_cold_object_once_for_all_their_clients() {
    const EACH: usize = 200;
    let stage = Stage::start(ENDLESS, "");
    let mut rounds = 0;
    for number in 0..20 {
        let path = format!("/cold/{number}");
        stage.cold(&path);
        let gate = Gate::closed();
        let reply = cacheable("new").behind(&gate);
        stage.origin.route(&path, move |_| reply.clone());
        let one = Crowd::begin(&stage.gateways[0], &path, 1);
        assert_eventually!(stage.origin.hits() == 1, "the first asks the origin");
        let other = Crowd::begin(&stage.gateways[1], &path, 1);
        // On a machine too busy for Redis to answer in time, nobody waits for anybody: then once more.
        if !holds_within(Duration::from_secs(2), || is_asking_for_the_claim(&stage)) {
            gate.open();
            drop([one.end(), other.end()]);
            continue;
        }
        let crowds = [0, 1].map(|instance| Crowd::begin(&stage.gateways[instance], &path, EACH));
        assert_eventually!(
            stage.gateways.iter().all(|gateway| in_flight(gateway) == EACH + 1),
            "all requests have arrived",
            Duration::from_secs(30)
        );
        gate.open();
        for crowd in crowds.into_iter().chain([one, other]) {
            crowd.all_get("new");
        }
        assert_eq!(stage.origin.hits(), 1, "{path}");
        assert_eventually!(stage.locks().is_empty(), "the claim is given back", Duration::from_secs(20));
        rounds += 1;
        if rounds == 3 {
            break;
        }
    }
    assert!(rounds > 0, "Redis never answered in time");
    assert!(stage.gateways.iter().map(|gateway| waits(gateway)[0]).sum::<usize>() >= 1);
    assert!(stage.gateways.iter().all(|gateway| waits(gateway)[1] == 0));
}

#[test]
fn what_nobody_has_ever_stored_is_fetched_once_by_all_instances_too() {
    let stage = Stage::start(ENDLESS, "");
    let tags = || stage.redis.keys().into_iter().filter(|key| key.starts_with("cache_tag:")).count();
    let mut rounds = 0;
    for number in 0..20 {
        let path = format!("/new/{number}");
        stage.origin.clear();
        let gate = Gate::closed();
        let reply = cacheable("new").behind(&gate);
        stage.origin.route(&path, move |_| reply.clone());
        let before = tags();
        let one = Crowd::begin(&stage.gateways[0], &path, 1);
        // Another key in 65,536 has the same tag: then there is nothing to be seen.
        holds_within(Duration::from_secs(2), || tags() > before);
        let other = Crowd::begin(&stage.gateways[1], &path, 5);
        // On a machine too busy for Redis to answer in time, each instance fetches: then once more.
        let fetches = holds_within(Duration::from_secs(2), || stage.origin.hits() > 1);
        gate.open();
        one.all_get("new");
        other.all_get("new");
        if !fetches {
            assert_eq!(stage.origin.hits(), 1, "{path}");
            rounds += 1;
        }
        if rounds == 3 {
            break;
        }
    }
    assert!(rounds > 0, "each instance fetched every time");
}

#[test]
fn two_instances_on_a_cluster_fetch_a_cold_object_once() {
    let (cluster, origin) = (crate::support::cluster::Cluster::start(), origin());
    let config = config(&origin, ENDLESS, "");
    let gateways = [0, 1].map(|_| instance(&config, &cluster.url()).0);
    let tags = || cluster.keys().iter().filter(|key| key.starts_with("cache_tag:")).count();
    for number in 0..4 {
        let (path, known) = (format!("/thing/{number}"), tags());
        origin.route(&path, |_| cacheable("old"));
        assert_eq!(gateways[0].h2c_client().get(&path).host(HOST).send().text(), "old");
        assert_eventually!(tags() > known, "the generations of its tags are written");
        let purge = serde_json::json!({"route": "things"});
        let purged = gateways[0].admin().post("/api/v1/cache/purge").bearer(ADMIN_TOKEN).json(&purge).send();
        assert_eq!(purged.code(), 200, "{}", purged.text());
        origin.clear();
        let gate = Gate::closed();
        let reply = cacheable("new").behind(&gate);
        origin.route(&path, move |_| reply.clone());
        let crowds = gateways.each_ref().map(|gateway| Crowd::begin(gateway, &path, 10));
        assert_eventually!(
            gateways.iter().all(|gateway| in_flight(gateway) == 10),
            "all requests have arrived"
        );
        gate.open();
        for crowd in crowds {
            crowd.all_get("new");
        }
        assert_eq!(origin.hits(), 1, "{path}");
    }
    let is_lock = |key: &String| key.starts_with("cache_lock:");
    assert_eventually!(!cluster.keys().iter().any(is_lock), "the claims are given back");
}

#[test]
fn a_leader_whose_upstream_fails_holds_nobody_here_or_elsewhere() {
    let stage = Stage::start(ENDLESS, "");
    for (path, failure) in [
        ("/broken", cacheable("whole").break_in_body_after(2)),
        ("/closed", Reply::close()),
        ("/error", Reply::text(500, "sorry")),
        ("/unfinished", cacheable("whole").header("content-length", "9").break_in_body_after(5)),
    ] {
        stage.cold(path);
        let gate = stage.first_behind_gate(path, failure);
        let (leader, others) = stage.crowd(path, 5);
        gate.open();
        for others in others {
            others.all_get("whole");
        }
        drop(leader.end());
        // Whatever is kept now is whole, everywhere.
        for instance in [0, 1] {
            assert_eq!(stage.get(instance, path).text(), "whole", "{path}");
        }
    }
    assert_eq!(stage.redis.keys_without_ttl().iter().filter(|key| key.starts_with("cache_lock:")).count(), 0);
}

#[test]
fn a_leader_whose_upstream_says_nothing_holds_nobody_longer_than_its_timeout() {
    let (redis, origin) = (Redis::start(), origin());
    let config = config(&origin, ENDLESS, "").replace("read_timeout = \"60s\"", "read_timeout = \"1s\"");
    let [one, other] = [0, 1].map(|_| instance(&config, &redis.url()).0);
    origin.clear();
    let count = AtomicUsize::new(0);
    origin.route("/mute", move |_| {
        if count.fetch_add(1, SeqCst) == 0 { Reply::hang_before_head() } else { cacheable("whole") }
    });
    let leader = Crowd::begin(&one, "/mute", 1);
    assert_eventually!(origin.hits() == 1, "the leader asks the origin");
    let others = [&one, &other].map(|gateway| Crowd::begin(gateway, "/mute", 5));
    for others in others {
        others.all_get("whole");
    }
    assert_eq!(leader.end().pop().unwrap().unwrap().code(), 504);
}

#[test]
fn a_leader_whose_client_leaves_holds_nobody() {
    let stage = Stage::start(ENDLESS, "");
    stage.cold("/left");
    let gate = stage.first_behind_gate("/left", cacheable("whole"));
    let mut leader = RawConnection::open(stage.http1);
    leader.send(format!("GET /left HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    assert_eventually!(stage.origin.hits() == 1, "the leader asks the origin");
    let others = [0, 1].map(|instance| Crowd::begin(&stage.gateways[instance], "/left", 5));
    assert_eventually!(
        in_flight(&stage.gateways[0]) == 6 && in_flight(&stage.gateways[1]) == 5,
        "all requests have arrived"
    );
    drop(leader);
    gate.open();
    for others in others {
        others.all_get("whole");
    }
    assert_eventually!(stage.locks().is_empty(), "the claim is given back");
}

#[test]
fn a_leader_that_takes_too_long_holds_nobody_longer_than_declared() {
    let stage = Stage::start("coalesce_wait = \"300ms\"\nredis_lock = \"60s\"", "");
    stage.cold("/slow");
    let gate = stage.first_behind_gate("/slow", cacheable("whole"));
    let leader = Crowd::begin(&stage.gateways[0], "/slow", 1);
    assert_eventually!(stage.origin.hits() == 1, "the leader asks the origin");
    // The gate is closed: who gets an answer does not wait for the leader.
    for instance in [0, 1] {
        Crowd::begin(&stage.gateways[instance], "/slow", 5).all_get("whole");
    }
    assert_eq!(waits(&stage.gateways[1]), [5, 1], "five requests waited as one, and gave up");
    assert_eq!(stage.redis.keys_without_ttl().iter().filter(|key| key.starts_with("cache_lock:")).count(), 0);
    gate.open();
    leader.all_get("whole");
}

#[test]
fn an_instance_that_is_killed_or_loses_redis_holds_the_others_no_longer_than_its_claim() {
    let cut = |stage: &Stage| stage.link.cut();
    let kill = |stage: &Stage| stage.gateways[0].kill();
    for (path, fault) in [("/cut", &cut as &dyn Fn(&Stage)), ("/killed", &kill)] {
        let stage = Stage::start("coalesce_wait = \"60s\"\nredis_lock = \"1s\"", "");
        stage.cold(path);
        let gate = stage.first_behind_gate(path, cacheable("whole"));
        let (leader, [here, elsewhere]) = stage.crowd(path, 5);
        assert_eq!(stage.locks().len(), 1);
        fault(&stage);
        // The origin answers the leader not at all, and whoever comes after it at once.
        elsewhere.all_get("whole");
        gate.open();
        if path == "/cut" {
            here.all_get("whole");
            leader.all_get("whole");
        }
        assert_eventually!(stage.locks().is_empty(), "the claim has ended");
    }
}

#[test]
fn what_turns_out_unstorable_queues_nobody_here_or_elsewhere() {
    let stage = Stage::start(&format!("{ENDLESS}\nredis_max_object = \"2KiB\""), "max_object = \"4KiB\"");
    let large = |length: usize| cacheable("x".repeat(length));
    for (path, reply) in [
        ("/no-store", Reply::text(200, "x").header("cache-control", "no-store")),
        ("/cookie", cacheable("x").header("set-cookie", "a=b")),
        ("/large", large(5000)),
        ("/large-chunked", large(5000).chunked()),
        ("/large-for-redis", large(3000)),
    ] {
        stage.cold(path);
        let gate = Gate::closed();
        let (first, count) = (reply.clone().behind(&gate), Arc::new(AtomicUsize::new(0)));
        let later = Gate::closed();
        let all = reply.behind(&later);
        let counted = Arc::clone(&count);
        // All but the first are held until as many have arrived as ask for themselves: one by one none would end.
        stage.origin.route(
            path,
            move |_| {
                if counted.fetch_add(1, SeqCst) == 0 { first.clone() } else { all.clone() }
            },
        );
        let (leader, others) = stage.crowd(path, 12);
        gate.open();
        let expected = if path == "/large-for-redis" { 2 } else { 25 };
        match path {
            "/large-for-redis" => {
                assert_eventually!(count.load(SeqCst) == expected, "the other instance fetches it once");
            }
            // On the other instance one goes first.
            _ => assert_eventually!(count.load(SeqCst) == 14, "nobody here waits after the first"),
        }
        later.open();
        for outcome in others.into_iter().chain([leader]).flat_map(Crowd::end) {
            assert_eq!(outcome.unwrap().code(), 200);
        }
        assert!(count.load(SeqCst) <= expected, "{path}");
        assert!(stage.redis.keys_without_ttl().iter().all(|key| !key.starts_with("cache_lock:")));
    }
}

#[test]
fn with_redis_unwilling_or_silent_nobody_waits_for_another_instance() {
    let stage = Stage::start(ENDLESS, "");
    let mut admin = stage.redis.client();
    let mut set = |name: &str, value: &str| {
        redis::cmd("CONFIG").arg("SET").arg(name).arg(value).exec(&mut admin).unwrap();
    };
    for (path, name, value, usual) in
        [("/full", "maxmemory", "1", "0"), ("/alone", "min-replicas-to-write", "1", "0")]
    {
        stage.cold(path);
        set(name, value);
        let gate = stage.first_behind_gate(path, cacheable("whole"));
        let leader = Crowd::begin(&stage.gateways[0], path, 1);
        assert_eventually!(stage.origin.hits() == 1, "the leader asks the origin");
        Crowd::begin(&stage.gateways[1], path, 5).all_get("whole");
        gate.open();
        leader.all_get("whole");
        set(name, usual);
        assert_eventually!(
            stage.gateways.iter().all(|gateway| !setup::degraded(gateway)),
            "Redis is in use again"
        );
    }
    stage.cold("/silent");
    let gate = stage.first_behind_gate("/silent", cacheable("whole"));
    let other = Crowd::begin(&stage.gateways[1], "/silent", 1);
    assert_eventually!(stage.origin.hits() == 1, "the other instance asks the origin");
    stage.link.black_hole();
    Crowd::begin(&stage.gateways[0], "/silent", 5).all_get("whole");
    gate.open();
    other.all_get("whole");
}

#[test]
fn without_a_lock_in_redis_each_instance_fetches_once() {
    let stage = Stage::start("coalesce_wait = \"60s\"\nredis_lock = \"0s\"", "");
    stage.cold("/each");
    let gate = Gate::closed();
    let reply = cacheable("whole").behind(&gate);
    stage.origin.route("/each", move |_| reply.clone());
    let crowds = [0, 1].map(|instance| Crowd::begin(&stage.gateways[instance], "/each", 20));
    assert_eventually!(stage.origin.hits() == 2, "both ask the origin");
    assert_eventually!(
        stage.gateways.iter().all(|gateway| in_flight(gateway) == 20),
        "all requests have arrived"
    );
    assert_eq!(stage.locks(), Vec::<String>::new());
    gate.open();
    for crowd in crowds {
        crowd.all_get("whole");
    }
    assert_eq!(stage.origin.hits(), 2);
}

#[test]
fn a_write_to_redis_that_breaks_off_leaves_nothing_truncated() {
    const SIZE: usize = 400_000;
    let stage = Stage::start("coalesce_wait = \"60s\"\nredis_lock = \"1s\"", "");
    let body: String = ('a'..='z').cycle().take(SIZE).collect();
    for (number, bytes) in [20_000, 65_536, 200_000, 399_000].into_iter().enumerate() {
        let path = format!("/big/{number}");
        stage.cold(&path);
        let reply = cacheable(body.clone());
        stage.origin.route(&path, move |_| reply.clone());
        // Connections are opened anew for each case, so that what they carried before does not count.
        stage.link.cut();
        stage.link.restore();
        assert_eventually!(!setup::degraded(&stage.gateways[0]), "Redis is in use again");
        // The small ones of other requests may still be on their way.
        let entries = |stage: &Stage| {
            let mut client = stage.redis.client();
            let mut length = |key: &String| -> usize {
                redis::cmd("STRLEN").arg(key).query(&mut client).unwrap_or_default()
            };
            let mut keys = stage.redis.keys();
            keys.retain(|key| key.starts_with("cache:") && length(key) > 10_000);
            keys
        };
        let before = entries(&stage);
        stage.link.break_after(Some(bytes));
        let breaks = stage.link.breaks();
        assert_eventually!(
            {
                assert_eq!(stage.get(0, &path).text(), body);
                let broken = holds_within(Duration::from_millis(500), || stage.link.breaks() > breaks);
                if !broken {
                    // No connection was there to write to.
                    stage.purge();
                }
                broken
            },
            "the write has broken off",
            Duration::from_secs(30)
        );
        stage.link.break_after(None);
        assert_eq!(entries(&stage), before, "nothing was written");
        assert_eventually!(!setup::degraded(&stage.gateways[0]), "Redis is in use again");
        for instance in [1, 0, 1] {
            let response = stage.get(instance, &path);
            assert!(response.text() == body, "{} bytes from {instance}", response.body.len());
        }
        assert_eq!(x_cache(&stage.get(0, &path)), "HIT", "memory has it");
    }
}

/// An origin whose first answer of each path stops after its head and six of eleven bytes, until the path is `open`;
/// any other is whole at once. Paths that begin with `/trailers` have trailers, those with `/chunked` no declared
/// length.
fn halting(open: &Arc<Mutex<HashSet<String>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (open, seen) = (Arc::clone(open), Arc::new(Mutex::new(HashSet::new())));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (open, seen) = (Arc::clone(&open), Arc::clone(&seen));
            std::thread::spawn(move || halt(stream, &open, &seen));
        }
    });
    addr
}

fn halt(mut stream: TcpStream, open: &Mutex<HashSet<String>>, seen: &Mutex<HashSet<String>>) -> Option<()> {
    let mut head = String::new();
    let mut input = BufReader::new(stream.try_clone().ok()?);
    while !head.ends_with("\r\n\r\n") {
        if input.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let path = head.split(' ').nth(1)?.to_owned();
    let (framing, first, last) = match path.as_str() {
        path if path.starts_with("/trailers") => (
            "Transfer-Encoding: chunked\r\nTrailer: X-Sum",
            "6\r\nhello \r\n",
            "5\r\nworld\r\n0\r\nX-Sum: 1\r\n\r\n",
        ),
        path if path.starts_with("/chunked") => {
            ("Transfer-Encoding: chunked", "6\r\nhello \r\n", "5\r\nworld\r\n0\r\n\r\n")
        }
        _ => ("Content-Length: 11", "hello ", "world"),
    };
    let fields = "Cache-Control: max-age=60\r\nETag: \"v\"\r\nConnection: close";
    write!(stream, "HTTP/1.1 200 OK\r\n{fields}\r\n{framing}\r\n\r\n{first}").ok()?;
    if seen.lock().unwrap().insert(path.clone()) {
        while !open.lock().unwrap().contains(&path) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    stream.write_all(last.as_bytes()).ok()
}

#[test]
fn a_leader_that_needs_no_more_of_the_answer_holds_nobody() {
    let open = Arc::default();
    let config = config(&Origin::start(), ENDLESS, "");
    let upstream = halting(&open);
    let members = config.lines().find(|line| line.starts_with("members")).expect("an upstream").to_owned();
    let config = config.replace(&members, &format!("members = \"{upstream}\""));
    let http1 = free_addr();
    let listen = format!("listen = [\"{http1}\"]\nlisten_h2c = [\"{{listen}}\"]");
    let gateway = Gateway::builder()
        .config(&config.replace("listen = [\"{listen}\"]", &listen))
        .env("REDIS_URL", "")
        .start();
    let mut cases = Vec::new();
    for framing in ["length", "chunked", "trailers"] {
        cases.push((format!("/{framing}/head"), "HEAD", "", "200"));
        cases.push((format!("/{framing}/unchanged"), "GET", "If-None-Match: \"v\"\r\n", "304"));
    }
    cases.push(("/length/range".to_owned(), "GET", "Range: bytes=0-1\r\n", "206"));
    for (path, method, field, status) in &cases {
        let mut client = RawConnection::open(http1);
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{field}\r\n"));
        let head = String::from_utf8(client.read_head()).unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{method} {path}: {head}");
        // The client has its answer; the upstream goes on with what nobody reads. Waits and claims are endless.
        open.lock().unwrap().insert(path.clone());
        for _ in 0..2 {
            let response = gateway.h2c_client().get(path).host(HOST).within(Duration::from_secs(20)).send();
            assert_eq!(response.text(), "hello world", "{path} after {method}");
        }
    }
    for framing in ["length", "chunked", "trailers"] {
        for method in ["HEAD", "GET"] {
            let path = format!("/{framing}/at-once/{method}");
            open.lock().unwrap().insert(path.clone());
            let client = gateway.h2c_client();
            let first = client.request(method.parse().unwrap(), &path).host(HOST).send();
            assert_eq!(first.code(), 200, "{method} {path}");
            for _ in 0..2 {
                let response = client.get(&path).host(HOST).within(Duration::from_secs(20)).send();
                assert_eq!(response.text(), "hello world", "{path} after {method}");
            }
        }
    }
}
