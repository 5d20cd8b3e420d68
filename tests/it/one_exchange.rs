//! One request costs one exchange with Redis, whatever it has to ask, and none where the answer is known. Far from
//! its limits it is a few plain commands sent together, near them one script.

use std::time::{Duration, Instant};

use crate::setup::{PATIENT, admitted, config, gateway};
use crate::support::client::Client;
use crate::support::concurrently;
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Reply};
use crate::support::redis::{Executed, Redis};
use crate::support::relay::{Relay, Traffic};
use crate::support::token::Token;

/// A user's three windows, an address, the guards of the token, and the tags of a cached response.
const EVERYTHING: &str = r#"
[policies.ip]
key = "ip"
limit = 1000
window = "60s"
[policies.api_token]
key = "user"
windows = [
    { limit = 300, window = "60s" },
    { limit = 1000, window = "1h" },
    { limit = 10000, window = "24h" },
]
[policies.few]
key = "user"
limit = 3
window = "60s"

[[routes]]
name = "records"
path = "/records/:id"
upstream = "app"
auth = "required"
limits = ["ip", "api_token"]
[routes.cache]
ttl = "5m"
tags = ["records:{user}", "record:{id}"]

[[routes]]
name = "plain"
path = "/plain"
upstream = "app"
auth = "required"
limits = ["ip", "api_token"]

[[routes]]
name = "few"
path = "/few"
upstream = "app"
auth = "required"
limits = ["few"]

[[routes]]
name = "uncounted"
path = "/uncounted"
upstream = "app"
auth = "required"
limits = []

[[routes]]
name = "open"
path = "/open"
upstream = "app"
limits = []
"#;

struct Scene {
    redis: Redis,
    relay: Relay,
    origin: Origin,
    gateway: Gateway,
}

fn scene() -> Scene {
    let (redis, origin) = (Redis::start(), Origin::start());
    origin.answer(|_| Reply::text(200, "fresh"));
    let relay = Relay::to(redis.addr());
    let config = config(&origin, PATIENT, EVERYTHING).replace("threads = 2", "threads = 1");
    let gateway = gateway(&config, &relay.redis_url());
    Scene { redis, relay, origin, gateway }
}

impl Scene {
    /// Waits until connections are made, scripts loaded and whatever happens in the background is done.
    fn settle(&self) {
        let (mut seen, mut since) = (self.relay.traffic(), Instant::now());
        assert_eventually!(
            {
                let now = self.relay.traffic();
                if now != seen {
                    (seen, since) = (now, Instant::now());
                }
                since.elapsed() > Duration::from_millis(300)
            },
            "nothing goes on between requests"
        );
        self.relay.take_traffic();
    }
}

/// What `ask` sends to Redis, without what a connection says when it is opened anew.
fn steadily(scene: &Scene, ask: impl Fn()) -> Traffic {
    for _ in 0..10 {
        scene.settle();
        ask();
        let traffic = scene.relay.take_traffic();
        if traffic.connections == 0 && traffic.commands.iter().all(|command| command[0] != "CLIENT") {
            return traffic;
        }
    }
    panic!("connections do not last");
}

fn get(client: &Client, path: &str, token: &str) -> (u16, String) {
    let reply = client.get(path).bearer(token).send();
    (reply.code(), reply.header("x-cache").unwrap_or("").to_owned())
}

#[test]
fn a_steady_request_with_all_its_questions_is_one_exchange_of_plain_commands() {
    let scene = scene();
    let (client, token) = (scene.gateway.client(), Token::of("ada").sign());
    for path in ["/records/7", "/plain"] {
        for _ in 0..3 {
            assert_eq!(get(&client, path, &token).0, 200);
        }
        scene.settle();
        let forwarded = scene.origin.hits();
        let mut monitor = scene.redis.monitor();
        for _ in 0..10 {
            assert_eq!(get(&client, path, &token).0, 200);
        }
        let is_cached = path == "/records/7";
        assert_eq!(scene.origin.hits() - forwarded, if is_cached { 0 } else { 10 }, "{path}");
        let traffic = scene.relay.take_traffic();
        assert_eq!(traffic.exchanges, 10, "{path}: {:?}", traffic.commands);
        let names: Vec<&str> = traffic.commands.iter().map(|command| command[0].as_str()).collect();
        assert_eq!(names, ["MGET", "INCR", "INCR", "INCR", "INCR"].repeat(10), "{path}");
        let asked = traffic.commands[..5].concat();
        for part in ["blacklist:", "revoked_before:ada", "rate_limit:ip:", "rate_limit:api_token:ada:day"] {
            assert!(asked.iter().any(|word| word.starts_with(part)), "{path} asks for {part}: {asked:?}");
        }
        let tags = asked.iter().filter(|word| word.starts_with("cache_tag:")).count();
        assert_eq!(tags > 2, is_cached, "{asked:?}");
        assert_eq!(monitor.requests().len(), 50);
        assert!(!monitor.commands().iter().any(Executed::is_by_script));
    }
}

#[test]
fn a_request_near_its_limit_is_one_script() {
    let scene = scene();
    let (client, token) = (scene.gateway.client(), Token::of("ada").sign());
    for path in ["/plain", "/plain", "/few"] {
        assert_eq!(get(&client, path, &token).0, 200);
    }
    scene.settle();
    for _ in 0..2 {
        assert_eq!(get(&client, "/few", &token).0, 200);
        let traffic = scene.relay.take_traffic();
        assert_eq!((traffic.exchanges, traffic.commands.len()), (1, 1), "{:?}", traffic.commands);
        assert_eq!(traffic.commands[0][0], "EVALSHA");
    }
}

#[test]
fn a_request_that_counts_nothing_is_one_read() {
    let scene = scene();
    let (client, token) = (scene.gateway.client(), Token::of("ada").sign());
    for path in ["/plain", "/plain", "/uncounted"] {
        assert_eq!(get(&client, path, &token).0, 200);
    }
    let traffic = steadily(&scene, || assert_eq!(get(&client, "/uncounted", &token).0, 200));
    assert_eq!((traffic.exchanges, traffic.commands.len()), (1, 1), "{:?}", traffic.commands);
    assert_eq!(traffic.commands[0][0], "MGET");
}

#[test]
fn concurrent_requests_of_one_worker_share_a_connection_and_count_each() {
    let scene = scene();
    let token = Token::of("ada").sign();
    let run = || concurrently(8, |_| get(&scene.gateway.client(), "/plain", &token).0);
    assert_eq!(admitted(&run()), 8);
    scene.settle();
    assert_eq!(admitted(&run()), 8);
    let traffic = scene.relay.take_traffic();
    assert_eq!(traffic.connections, 0);
    assert!((1..=8).contains(&traffic.exchanges), "{:?}", traffic.commands);
    let counts = traffic.commands.iter().filter(|command| command[0].starts_with("INCR"));
    let minute = counts.filter(|command| command[1] == "rate_limit:api_token:ada:minute");
    assert_eq!(
        minute.map(|command| command.get(2).map_or(1, |count| count.parse::<u32>().unwrap())).sum::<u32>(),
        8
    );
}

#[test]
fn what_is_known_is_not_asked() {
    let scene = scene();
    let (client, token) = (scene.gateway.client(), Token::of("ada").sign());
    let codes: Vec<u16> = (0..4).map(|_| get(&client, "/few", &token).0).collect();
    assert_eq!(codes, [200, 200, 200, 429]);
    scene.settle();
    let expired = Token::of("ada").expires_in(-3_600).sign();
    for (path, token, code) in [
        ("/few", token.as_str(), 429),
        ("/plain", "nonsense", 401),
        ("/plain", expired.as_str(), 401),
        ("/open", "", 200),
        ("/none", "", 404),
    ] {
        assert_eq!(get(&client, path, token).0, code, "{path}");
        let traffic = scene.relay.take_traffic();
        assert_eq!(
            (traffic.exchanges, traffic.commands.len()),
            (0, 0),
            "{path} {code}: {:?}",
            traffic.commands
        );
    }
}

#[test]
fn a_revoked_token_that_is_known_is_refused_without_a_question() {
    let scene = scene();
    let token = Token::of("ada");
    crate::setup::revoke_everywhere(&scene.gateway, &serde_json::json!({"jti": token.jti()}));
    scene.settle();
    let reply = scene.gateway.client().get("/plain").bearer(&token.sign()).send();
    assert_eq!((reply.code(), reply.detail().as_str()), (401, "Token revoked"));
    assert_eq!(scene.relay.take_traffic().exchanges, 0);
}

#[test]
fn a_restarted_redis_that_lost_the_script_costs_one_request_two_commands_more() {
    let scene = scene();
    let (client, token) = (scene.gateway.client(), Token::of("ada").sign());
    for path in ["/plain", "/plain", "/few"] {
        assert_eq!(get(&client, path, &token).0, 200);
        scene.settle();
    }
    redis::cmd("SCRIPT").arg("FLUSH").exec(&mut scene.redis.client()).unwrap();
    assert_eq!(get(&client, "/few", &token).0, 200);
    let names: Vec<String> =
        scene.relay.take_traffic().commands.into_iter().map(|mut c| c.swap_remove(0)).collect();
    assert_eq!(names, ["EVALSHA", "SCRIPT", "EVALSHA"]);
    assert_eq!(crate::setup::counter(&scene.redis, "rate_limit:few:ada"), Some(2));
    assert_eq!(scene.gateway.metric("tollgate_store_degraded", &[]), Some(0.0));
}
