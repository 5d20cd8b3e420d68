//! What limits let through while Redis is away, and what Redis knows of it afterwards: two gateways, a real Redis,
//! and the link between them cut, or the server killed with its data.

use std::time::Duration;

use crate::setup::{ROOMY, address, admitted, codes, config, counter, gateway, get_from, ttl};
use crate::support::gateway::Gateway;
use crate::support::origin::Origin;
use crate::support::redis::Redis;
use crate::support::relay::Relay;

const POLICIES: &str = r#"
[policies.fixed]
key = "ip"
limit = 10
window = "60s"
[policies.sliding]
key = "ip"
algorithm = "sliding-window"
limit = 10
window = "1h"
[policies.bucket]
key = "ip"
algorithm = "token-bucket"
limit = 10
window = "1h"
[policies.short]
key = "ip"
limit = 4
window = "3s"
[[routes]]
name = "fixed"
path = "/fixed"
upstream = "app"
limits = ["fixed"]
[[routes]]
name = "sliding"
path = "/sliding"
upstream = "app"
limits = ["sliding"]
[[routes]]
name = "bucket"
path = "/bucket"
upstream = "app"
limits = ["bucket"]
[[routes]]
name = "short"
path = "/short"
upstream = "app"
limits = ["short"]
"#;

/// The limit of all but `short`.
const LIMIT: usize = 10;
/// Instances look for each other every two seconds.
const ACQUAINTED: Duration = Duration::from_secs(10);
/// Telling begins within a second of the recovery, which may take two.
const TOLD: Duration = Duration::from_secs(10);

struct Scene {
    redis: Redis,
    relay: Relay,
    gateways: [Gateway; 2],
    _origin: Origin,
}

impl Scene {
    fn start() -> Self {
        Self::with(Redis::start())
    }

    fn with(redis: Redis) -> Self {
        let origin = Origin::start();
        let relay = Relay::to(redis.addr());
        let config = config(&origin, ROOMY, POLICIES);
        let gateways = [gateway(&config, &relay.redis_url()), gateway(&config, &relay.redis_url())];
        for gateway in &gateways {
            assert_eventually!(
                gateway.metric("tollgate_instances", &[]) == Some(2.0),
                "the instances know of each other",
                ACQUAINTED
            );
        }
        Self { redis, relay, gateways, _origin: origin }
    }

    /// How many each gateway admits of so many requests.
    fn admit(&self, path: &str, ip: &str, requests: usize) -> [usize; 2] {
        self.gateways.each_ref().map(|gateway| admitted(&codes(&gateway.client(), path, ip, requests)))
    }

    fn lose(&self, fault: impl Fn(&Self)) {
        fault(self);
        for (number, gateway) in self.gateways.iter().enumerate() {
            let client = gateway.client();
            assert_eventually!(
                {
                    get_from(&client, "/fixed", &address(60_000 + number)).send();
                    is_degraded(gateway)
                },
                "the outage is noticed"
            );
        }
    }

    fn mend(&self, repair: impl Fn(&Self)) {
        repair(self);
        for gateway in &self.gateways {
            assert_eventually!(!is_degraded(gateway), "the recovery is noticed", Duration::from_secs(10));
        }
    }

    fn value(&self, key: &str) -> Option<String> {
        redis::cmd("GET").arg(key).query(&mut self.redis.client()).unwrap()
    }

    fn expiry(&self, key: &str) -> i64 {
        redis::cmd("PEXPIRETIME").arg(key).query(&mut self.redis.client()).unwrap()
    }

    fn assert_every_key_ends(&self) {
        assert_eq!(self.redis.keys_without_ttl(), Vec::<String>::new());
    }
}

fn is_degraded(gateway: &Gateway) -> bool {
    gateway.metric("tollgate_store_degraded", &[]) == Some(1.0)
}

fn told(gateway: &Gateway) -> bool {
    gateway.count_logs("told Redis of what was admitted") > 0
}

#[test]
fn windows_that_begin_during_an_outage_are_shared_between_the_instances() {
    let scene = Scene::start();
    scene.lose(|scene| scene.relay.cut());
    for (number, path) in ["/fixed", "/sliding", "/bucket"].into_iter().enumerate() {
        let total: usize = scene.admit(path, &address(number), 12).iter().sum();
        assert!((LIMIT..LIMIT + 2).contains(&total), "{path}: {total}");
    }
}

#[test]
fn what_was_left_when_redis_went_away_is_shared_and_told_afterwards() {
    let scene = Scene::start();
    let ip = address(1);
    // Both hear of the counter: one of four, the other of all five.
    assert_eq!(admitted(&codes(&scene.gateways[0].client(), "/fixed", &ip, 4)), 4);
    assert_eq!(admitted(&codes(&scene.gateways[1].client(), "/fixed", &ip, 1)), 1);
    let key = format!("rate_limit:fixed:{ip}");
    let ends = scene.expiry(&key);
    scene.lose(|scene| scene.relay.cut());
    assert_eq!(scene.admit("/fixed", &ip, 12), [3, 3]);
    assert_eq!(counter(&scene.redis, &key), Some(5));
    scene.mend(|scene| scene.relay.restore());
    assert_eventually!(counter(&scene.redis, &key) == Some(10), "both told what they admitted", TOLD);
    assert_eq!(scene.expiry(&key), ends, "the window is neither longer nor shorter");
    assert_eventually!(scene.gateways.iter().all(told), "it is told in the log", TOLD);
    // Eleven were admitted; the counter stays within its limit.
    assert_eq!(counter(&scene.redis, &key), Some(10));
    assert_eq!(scene.admit("/fixed", &ip, 2), [0, 0]);
    scene.assert_every_key_ends();
}

#[test]
fn every_algorithm_is_told_what_was_admitted() {
    let scene = Scene::start();
    let ip = address(2);
    for path in ["/sliding", "/bucket"] {
        assert_eq!(scene.admit(path, &ip, 1), [1, 1]);
    }
    scene.lose(|scene| scene.relay.cut());
    for path in ["/sliding", "/bucket"] {
        let total: usize = scene.admit(path, &ip, 12).iter().sum();
        assert!((7..=9).contains(&total), "{path}: {total}");
    }
    scene.mend(|scene| scene.relay.restore());
    assert_eventually!(scene.gateways.iter().all(told), "it is told", TOLD);
    for path in ["/sliding", "/bucket"] {
        let more: usize = scene.admit(path, &ip, 3).iter().sum();
        assert!(more <= 1, "{path}: {more} more");
    }
    scene.assert_every_key_ends();
}

#[test]
fn a_window_that_began_during_the_outage_is_made_known_with_its_own_end() {
    let scene = Scene::start();
    let ip = address(3);
    scene.lose(|scene| scene.relay.cut());
    assert_eq!(admitted(&codes(&scene.gateways[0].client(), "/fixed", &ip, 12)), 5);
    let left = |scene: &Scene| {
        let reply = get_from(&scene.gateways[0].client(), "/fixed", &ip).send();
        reply.header("x-ratelimit-reset").unwrap().parse::<i64>().unwrap()
    };
    let ends = left(&scene);
    scene.mend(|scene| scene.relay.restore());
    let key = format!("rate_limit:fixed:{ip}");
    assert_eventually!(counter(&scene.redis, &key) == Some(5), "the window is known in Redis", TOLD);
    let known = scene.expiry(&key);
    assert!((known + 999) / 1000 == ends || known / 1000 == ends, "{known} {ends}");
    assert!(ttl(&scene.redis, &key) <= 60);
    assert_eq!(scene.admit("/fixed", &ip, 12), [5, 0], "the rest of it");
    scene.assert_every_key_ends();
}

#[test]
fn requests_right_after_the_recovery_find_what_was_admitted_without_redis() {
    let scene = Scene::start();
    let ip = address(9);
    scene.lose(|scene| scene.relay.cut());
    let client = scene.gateways[0].client();
    let mut total = admitted(&codes(&client, "/fixed", &ip, 12));
    assert_eq!(total, 5, "its share of a window that began meanwhile");
    scene.relay.restore();
    // They never pause for so long that the counter could be told between two of them.
    assert_eventually!(
        {
            total += admitted(&codes(&client, "/fixed", &ip, 20));
            !is_degraded(&scene.gateways[0])
        },
        "the recovery is noticed",
        Duration::from_secs(10)
    );
    total += admitted(&codes(&client, "/fixed", &ip, 20));
    assert_eq!(total, LIMIT, "the window goes on in Redis");
    assert_eq!(counter(&scene.redis, &format!("rate_limit:fixed:{ip}")), Some(10));
    scene.assert_every_key_ends();
}

#[test]
fn a_window_that_ended_during_the_outage_is_not_touched() {
    let scene = Scene::start();
    let ip = address(4);
    let key = format!("rate_limit:short:{ip}");
    assert_eq!(scene.admit("/short", &ip, 1), [1, 1]);
    scene.lose(|scene| scene.relay.cut());
    let during: usize = scene.admit("/short", &ip, 3).iter().sum();
    // Whoever was slow has got into the next window.
    assert!(during <= 4 || counter(&scene.redis, &key).is_none(), "{during}");
    assert_eventually!(counter(&scene.redis, &key).is_none(), "the window ends", TOLD);
    // Another one begins, not made by the gateways.
    redis::cmd("SET").arg(&key).arg(1).arg("PX").arg(600_000).exec(&mut scene.redis.client()).unwrap();
    let ends = scene.expiry(&key);
    let fresh = address(5);
    scene.admit("/fixed", &fresh, 2);
    scene.mend(|scene| scene.relay.restore());
    let other = format!("rate_limit:fixed:{fresh}");
    assert_eventually!(counter(&scene.redis, &other).is_some(), "what is owed is told", TOLD);
    assert_eventually!(scene.gateways.iter().all(told), "by both", TOLD);
    assert_eq!((scene.value(&key).as_deref(), scene.expiry(&key)), (Some("1"), ends));
    scene.assert_every_key_ends();
}

#[test]
fn a_redis_that_comes_back_with_its_data_is_told() {
    let scene = Scene::with(Redis::start_with(&["--appendonly", "yes", "--appendfsync", "no"]));
    let ip = address(6);
    assert_eq!(scene.admit("/fixed", &ip, 2), [2, 2]);
    scene.lose(|scene| scene.redis.kill());
    let total: usize = scene.admit("/fixed", &ip, 12).iter().sum();
    assert!((6..=8).contains(&total), "{total}");
    scene.mend(|scene| scene.redis.restart());
    let key = format!("rate_limit:fixed:{ip}");
    assert_eventually!(counter(&scene.redis, &key) == Some(10), "it knows of all of them", TOLD);
    scene.assert_every_key_ends();
}

#[test]
fn a_redis_that_comes_back_empty_gets_the_window_back_within_the_bound() {
    let scene = Scene::start();
    let ip = address(7);
    assert_eq!(scene.admit("/fixed", &ip, 2), [2, 2]);
    scene.lose(|scene| scene.redis.kill());
    let during: usize = scene.admit("/fixed", &ip, 12).iter().sum();
    scene.mend(|scene| scene.redis.restart());
    let key = format!("rate_limit:fixed:{ip}");
    assert_eventually!(scene.gateways.iter().all(told), "both told", TOLD);
    assert_eq!(counter(&scene.redis, &key), Some(during as u64), "what was admitted without it");
    let afterwards: usize = scene.admit("/fixed", &ip, 12).iter().sum();
    assert!(4 + during + afterwards <= 2 * LIMIT, "{during} {afterwards}");
    scene.assert_every_key_ends();
}

#[test]
fn policies_of_one_request_each_do_what_they_say_without_redis() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let policies = ["local", "allow", "deny"].map(|word| {
        format!(
            "[policies.{word}]\nkey = \"ip\"\nlimit = 3\nwindow = \"60s\"\non_store_failure = \"{word}\"\n"
        )
    });
    let routes = [("two", "\"local\", \"allow\""), ("three", "\"local\", \"allow\", \"deny\"")].map(
        |(name, limits)| {
            format!(
                "[[routes]]\nname = \"{name}\"\npath = \"/{name}\"\nupstream = \"app\"\nlimits = [{limits}]\n"
            )
        },
    );
    let gateway = gateway(&config(&origin, ROOMY, &(policies.concat() + &routes.concat())), &redis.url());
    let client = gateway.client();
    let ip = address(8);
    redis.kill();
    assert_eq!(codes(&client, "/three", &ip, 5), [503; 5], "one that denies is enough");
    assert_eq!(codes(&client, "/two", &ip, 5), [200, 200, 200, 429, 429], "nobody paid for those");
    redis.restart();
    assert_eventually!(
        counter(&redis, &format!("rate_limit:local:{ip}")) == Some(3),
        "only what counted here is told",
        TOLD
    );
    assert_eq!(counter(&redis, &format!("rate_limit:allow:{ip}")), None);
    assert_eq!(counter(&redis, &format!("rate_limit:deny:{ip}")), None);
}
