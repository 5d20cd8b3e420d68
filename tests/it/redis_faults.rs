//! Redis fails in every way there is, under load: no request fails or waits for it, limits hold from memory, the
//! operator hears of it once, and sharing is back soon after Redis is.

use std::time::{Duration, Instant};

use crate::setup::{NO_REQUEST_TAKES, ROOMY, address, admitted, codes, config, counter, gateway, get_from};
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::load::{Load, Outcome};
use crate::support::origin::Origin;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::Token;

/// Sharing is promised back this long after Redis is.
const BACK: Duration = Duration::from_secs(2);
const PACE: Duration = Duration::from_millis(15);
/// Above the deadline of [`ROOMY`].
const SLOW: Duration = Duration::from_millis(650);

const LOST: &str = "Redis is unavailable";
const FOUND: &str = "Redis is available again";

const ROUTES: &str = r#"
[policies.strict]
key = "ip"
limit = 5
window = "60s"
[policies.user]
key = "user"
windows = [{ limit = 100000, window = "60s" }, { limit = 200000, window = "1h" }]
[policies.sliding]
key = "ip"
algorithm = "sliding-window"
limit = 100000
window = "60s"
[[routes]]
name = "strict"
path = "/strict"
upstream = "app"
limits = ["strict"]
[[routes]]
name = "all"
path = "/**"
upstream = "app"
auth = "required"
limits = ["user", "sliding"]
"#;

struct Scene {
    redis: Redis,
    relay: Relay,
    gateways: [Gateway; 2],
    loads: Vec<Load>,
    /// The longest that a request took on this machine while all was well.
    usual: Duration,
    /// For client addresses that were never used.
    next: std::cell::Cell<usize>,
    _origin: Origin,
}

impl Scene {
    /// Two gateways with eight clients at work; their Redis is behind a relay.
    fn under_load() -> Self {
        let scene = Self::with(Redis::start(), ROOMY);
        for gateway in &scene.gateways {
            assert_eq!(gateway.count_logs(LOST), 0, "{}", gateway.logs());
        }
        scene
    }

    fn with(redis: Redis, settings: &str) -> Self {
        let origin = Origin::start();
        let relay_answers = std::net::TcpStream::connect(redis.addr()).is_ok();
        let relay = Relay::to(redis.addr());
        let config = config(&origin, settings, ROUTES);
        let gateways = [gateway(&config, &relay.redis_url()), gateway(&config, &relay.redis_url())];
        let loads: Vec<Load> = gateways
            .iter()
            .map(|gateway| {
                let tokens: Vec<String> = (0..50).map(|n| Token::of(&format!("u{n}")).sign()).collect();
                Load::start(4, gateway.addr(), move |client, number| {
                    // Steady, and not all that the machine can do: the faults are to be seen, not its limits.
                    std::thread::sleep(PACE);
                    client.get("/x").bearer(&tokens[number % tokens.len()])
                })
            })
            .collect();
        for load in &loads {
            load.wait_for_more(40);
        }
        if relay_answers {
            for gateway in &gateways {
                assert_eventually!(instances(gateway) == 2, "the instances know of each other");
            }
        }
        let while_well = loads.iter().flat_map(Load::take_outcomes).map(|outcome| outcome.took);
        let usual = while_well.max().unwrap_or_default();
        Self { redis, relay, gateways, loads, usual, next: std::cell::Cell::new(1), _origin: origin }
    }

    fn fresh_address(&self) -> String {
        self.next.set(self.next.get() + 1);
        address(self.next.get())
    }

    fn go_on(&self, requests: usize) {
        for load in &self.loads {
            load.wait_for_more(requests);
        }
    }

    /// Waits until both have noticed, and proves that limits hold meanwhile.
    fn suffer(&self) {
        for gateway in &self.gateways {
            assert_eventually!(is_degraded(gateway), "the outage shows in the metrics");
        }
        self.go_on(40);
        for gateway in &self.gateways {
            let ip = self.fresh_address();
            let share = 5_usize.div_ceil(instances(gateway));
            assert_eq!(admitted(&codes(&gateway.client(), "/strict", &ip, 7)), share);
            assert!(is_degraded(gateway));
        }
    }

    /// Waits until both count in Redis again; that long since `mended`.
    fn recover(&self, mended: Instant) -> Duration {
        let clients = self.gateways.each_ref().map(Gateway::client);
        let counts_in_redis = |client: &Client| {
            let ip = self.fresh_address();
            get_from(client, "/strict", &ip).send();
            counter(&self.redis, &format!("rate_limit:strict:{ip}")) == Some(1)
        };
        // Each of their workers.
        let share = |[first, second]: &[Client; 2]| {
            let ip = self.fresh_address();
            admitted(&codes(first, "/strict", &ip, 3)) + admitted(&codes(second, "/strict", &ip, 4)) == 5
                && admitted(&codes(first, "/strict", &ip, 2)) == 0
        };
        assert_eventually!(
            clients.iter().all(counts_in_redis) && share(&clients),
            "requests are counted in Redis again, by all together",
            BACK.saturating_sub(mended.elapsed())
        );
        let took = mended.elapsed();
        for gateway in &self.gateways {
            assert_eventually!(!is_degraded(gateway), "the recovery shows in the metrics");
        }
        self.go_on(40);
        took
    }

    /// Waits until both say that they share: at the default deadline a loaded machine may take it back at once.
    fn turn_healthy(&self) {
        for gateway in &self.gateways {
            assert_eventually!(!is_degraded(gateway), "the recovery shows in the metrics");
        }
        self.go_on(40);
    }

    /// What the clients saw of that many outages; ends the load.
    fn settle_clients(&mut self, outages: usize, slow_is: Duration) {
        let mut outcomes: Vec<Outcome> = Vec::new();
        for load in std::mem::take(&mut self.loads) {
            outcomes.extend(load.stop());
        }
        let failed: Vec<&Outcome> =
            outcomes.iter().filter(|outcome| !matches!(outcome.code, Some(200 | 429))).collect();
        assert!(
            failed.is_empty(),
            "{} of {} failed: {:?}",
            failed.len(),
            outcomes.len(),
            &failed[..failed.len().min(5)]
        );
        let (slow_is, too_long) = (slow_is + self.usual * 2, NO_REQUEST_TAKES + self.usual * 8);
        let longest = outcomes.iter().map(|outcome| outcome.took).max().unwrap_or_default();
        let slow = outcomes.iter().filter(|outcome| outcome.took > slow_is).count();
        println!("{} requests, longest {longest:?}, {slow} over {slow_is:?}", outcomes.len());
        assert!(longest < too_long, "a request took {longest:?} of {too_long:?}");
        // Five failures open the breaker, and whoever is under way meanwhile fails too; on two instances.
        assert!(outages == 0 || slow <= outages * 2 * (5 + 8), "{slow} requests were slow");
    }

    /// What the clients and the operator saw of that many outages.
    fn settle(mut self, outages: u16) {
        let times = usize::from(outages);
        self.settle_clients(times, SLOW);
        for gateway in &self.gateways {
            // The log is written by a thread of its own.
            let told = || (gateway.count_logs(LOST), gateway.count_logs(FOUND));
            assert_eventually!(told() >= (times, times), "the log tells of the transitions");
            assert_eq!(gateway.count_logs(LOST), times, "{}", gateway.logs());
            assert_eq!(gateway.count_logs(FOUND), times, "{}", gateway.logs());
            let turned = |to: &str| gateway.metric("tollgate_store_transitions_total", &[("to", to)]);
            assert_eq!(turned("degraded"), Some(f64::from(outages)));
            assert_eq!(turned("healthy"), Some(f64::from(outages)));
        }
        assert_eq!(self.redis.keys_without_ttl(), Vec::<String>::new());
    }
}

fn is_degraded(gateway: &Gateway) -> bool {
    gateway.metric("tollgate_store_degraded", &[]) == Some(1.0)
}

fn instances(gateway: &Gateway) -> usize {
    if gateway.metric("tollgate_instances", &[]) == Some(2.0) { 2 } else { 1 }
}

/// One outage, from the fault to what it leaves behind.
fn outage(fault: impl Fn(&Scene), mend: impl Fn(&Scene)) {
    let scene = Scene::under_load();
    fault(&scene);
    scene.suffer();
    mend(&scene);
    let took = scene.recover(Instant::now());
    println!("sharing was back after {took:?}");
    scene.settle(1);
}

fn set(scene: &Scene, words: &[&str]) {
    redis::cmd("CONFIG").arg("SET").arg(words).exec(&mut scene.redis.client()).unwrap();
}

#[test]
fn killed_and_restarted() {
    outage(|scene| scene.redis.kill(), |scene| scene.redis.restart());
}

#[test]
fn paused_and_resumed() {
    outage(|scene| scene.redis.pause(), |scene| scene.redis.resume());
}

#[test]
fn cut_off() {
    outage(|scene| scene.relay.cut(), |scene| scene.relay.restore());
}

#[test]
fn swallowed_by_a_black_hole_that_closes() {
    outage(|scene| scene.relay.black_hole(), |scene| scene.relay.restore());
}

#[test]
fn swallowed_by_a_black_hole_that_keeps_the_old_connections() {
    outage(|scene| scene.relay.black_hole(), |scene| scene.relay.restore_for_new_connections());
}

#[test]
fn slow_by_fifty_milliseconds_at_the_default_deadline_without_flapping() {
    let mut scene = Scene::with(Redis::start(), "");
    scene.relay.delay(Duration::from_millis(50));
    for gateway in &scene.gateways {
        assert_eventually!(is_degraded(gateway), "the slowness shows in the metrics");
    }
    let told =
        || scene.gateways.each_ref().map(|gateway| gateway.metric("tollgate_store_transitions_total", &[]));
    let before = told();
    // Several probes' time, and all of them are answered after the deadline.
    std::thread::sleep(Duration::from_millis(1_500));
    scene.suffer();
    assert_eq!(told(), before);
    scene.relay.delay(Duration::ZERO);
    scene.turn_healthy();
    scene.settle_clients(1, SLOW);
}

#[test]
fn silent_at_the_default_deadline_hardly_anybody_waits() {
    let mut scene = Scene::with(Redis::start(), "");
    scene.redis.pause();
    scene.suffer();
    scene.redis.resume();
    scene.turn_healthy();
    // Ten times the deadline: the rest is the machine's.
    scene.settle_clients(1, Duration::from_millis(200));
}

#[test]
fn slow_by_a_second() {
    outage(|scene| scene.relay.delay(Duration::from_secs(1)), |scene| scene.relay.delay(Duration::ZERO));
}

#[test]
fn full() {
    outage(
        |scene| set(scene, &["maxmemory-policy", "noeviction", "maxmemory", "1"]),
        |scene| set(scene, &["maxmemory", "0"]),
    );
}

#[test]
fn a_replica_that_takes_no_writes() {
    let replica_of = |scene: &Scene, host: &str, port: &str| {
        redis::cmd("REPLICAOF").arg(host).arg(port).exec(&mut scene.redis.client()).unwrap();
    };
    outage(|scene| replica_of(scene, "127.0.0.1", "1"), |scene| replica_of(scene, "NO", "ONE"));
}

#[test]
fn another_password_than_before() {
    let become_strange = |scene: &Scene| {
        let mut client = scene.redis.client();
        redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("new").exec(&mut client).unwrap();
        // Those who are connected would stay so.
        redis::cmd("CLIENT")
            .arg("KILL")
            .arg("TYPE")
            .arg("normal")
            .arg("SKIPME")
            .arg("yes")
            .exec(&mut client)
            .unwrap();
    };
    let become_known = |scene: &Scene| {
        let url = scene.redis.url().replace("redis://", "redis://:new@");
        let mut client = redis::Client::open(url).unwrap().get_connection().unwrap();
        redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("").exec(&mut client).unwrap();
    };
    outage(become_strange, become_known);
}

#[test]
fn flushed_without_any_notice() {
    let scene = Scene::under_load();
    for _ in 0..3 {
        scene.redis.flush();
        redis::cmd("SCRIPT").arg("FLUSH").exec(&mut scene.redis.client()).unwrap();
        scene.go_on(40);
    }
    scene.recover(Instant::now());
    scene.settle(0);
}

#[test]
fn two_outages_are_told_twice() {
    let scene = Scene::under_load();
    for _ in 0..2 {
        scene.relay.cut();
        scene.suffer();
        scene.relay.restore();
        scene.recover(Instant::now());
    }
    scene.settle(2);
}

#[test]
fn what_was_used_before_the_outage_counts_during_it() {
    let scene = Scene::under_load();
    let [first, second] = [scene.gateways[0].client(), scene.gateways[1].client()];
    let (used, exhausted) = (scene.fresh_address(), scene.fresh_address());
    assert_eq!(admitted(&codes(&first, "/strict", &used, 2)), 2);
    assert_eq!(admitted(&codes(&second, "/strict", &used, 1)), 1);
    assert_eq!(admitted(&codes(&second, "/strict", &exhausted, 6)), 5);
    scene.relay.cut();
    scene.suffer();
    assert_eq!(admitted(&codes(&second, "/strict", &used, 9)), 1, "its share of the two that were left");
    assert_eq!(admitted(&codes(&second, "/strict", &exhausted, 3)), 0);
    scene.relay.restore();
    scene.recover(Instant::now());
    scene.settle(1);
}

#[test]
fn started_without_redis_it_serves_at_once_and_shares_when_redis_appears() {
    let redis = Redis::start();
    redis.kill();
    let began = Instant::now();
    let scene = Scene::with(redis, ROOMY);
    println!("under load {:?} after the start", began.elapsed());
    scene.suffer();
    scene.redis.restart();
    scene.recover(Instant::now());
    scene.settle(1);
}

#[test]
fn the_first_request_does_not_wait_for_a_redis_that_is_silent_from_the_start() {
    let (redis, origin) = (Redis::start(), Origin::start());
    redis.pause();
    let gateway = gateway(&config(&origin, ROOMY, ROUTES), &redis.url());
    let reply = gateway.client().get("/strict").send();
    assert_eq!(reply.code(), 200);
    assert!(reply.took < NO_REQUEST_TAKES, "{:?}", reply.took);
    assert_eventually!(is_degraded(&gateway), "the silence shows in the metrics");
    gateway.wait_for_log(LOST);
    assert_eq!(gateway.count_logs(LOST), 1);
    redis.resume();
    assert_eventually!(!is_degraded(&gateway), "sharing begins", BACK);
}

#[test]
fn a_redis_far_away_is_found_again_although_a_probe_of_it_takes_long() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let text = config(&origin, &format!("{ROOMY}\nhealth_check_interval = \"100ms\""), ROUTES);
    let gateway = gateway(&text, &relay.redis_url());
    // Far within the deadline; several of them are more than a step of a probe may take.
    relay.delay(Duration::from_millis(150));
    assert_eventually!(gateway.metric("tollgate_instances", &[]) == Some(1.0), "it is found");
    relay.cut();
    assert_eventually!(is_degraded(&gateway), "the outage shows in the metrics");
    relay.restore();
    assert_eventually!(!is_degraded(&gateway), "it is found again");
    let told = || gateway.metric("tollgate_store_transitions_total", &[("to", "degraded")]);
    let before = told();
    // Some health checks' time.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((is_degraded(&gateway), told()), (false, before), "nor is it lost by being looked at");
}

#[test]
fn each_policy_says_what_happens_without_redis() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let policies = ["local", "allow", "deny"].map(|word| {
        format!(
            "[policies.{word}]\nkey = \"ip\"\nlimit = 3\nwindow = \"60s\"\non_store_failure = \"{word}\"\n\
             [[routes]]\nname = \"{word}\"\npath = \"/{word}\"\nupstream = \"app\"\nlimits = [\"{word}\"]\n"
        )
    });
    let gateway = gateway(&config(&origin, ROOMY, &policies.concat()), &redis.url());
    let client = gateway.client();
    assert_eq!(codes(&client, "/deny", "10.0.0.1", 4), [200, 200, 200, 429]);
    redis.kill();
    assert_eq!(codes(&client, "/local", "10.0.0.2", 5), [200, 200, 200, 429, 429]);
    assert_eq!(codes(&client, "/allow", "10.0.0.2", 5), [200; 5]);
    assert_eq!(codes(&client, "/deny", "10.0.0.2", 2), [503; 2]);
    let reply = get_from(&client, "/deny", "10.0.0.2").send();
    assert!(!reply.detail().is_empty());
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(get_from(&client, "/deny", "10.0.0.1").send().code(), 429, "known to be over its limit");
    let decisions = |policy: &str, decision: &str| {
        gateway.metric("tollgate_limit_decisions_total", &[("policy", policy), ("decision", decision)])
    };
    assert_eq!(decisions("allow", "allowed_blind"), Some(5.0));
    assert_eq!(decisions("deny", "denied_blind"), Some(3.0));
    redis.restart();
    assert_eventually!(get_from(&client, "/deny", "10.0.0.3").send().code() == 200, "it decides again", BACK);
}
