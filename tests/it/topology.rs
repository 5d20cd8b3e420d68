//! Redis as a Cluster and as a pair under sentinels: what gateways do while nodes are lost, masters change and slots
//! move. How a single Redis fails is told in `redis_faults`.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::setup::{
    PATIENT, ROOMY, address, codes, config, degraded, gateway, get_as, get_from, revoke, revoke_everywhere,
};
use crate::support::cluster::{Cluster, Server, slot};
use crate::support::gateway::Gateway;
use crate::support::load::Load;
use crate::support::origin::Origin;
use crate::support::sentinel::Pair;
use crate::support::token::Token;

/// Sharing is promised back this long after Redis is.
const BACK: Duration = Duration::from_secs(2);
const PACE: Duration = Duration::from_millis(10);

const LOST: &str = "Redis is unavailable";
const FOUND: &str = "Redis is available again";

const ROUTES: &str = r#"
[policies.strict]
key = "ip"
limit = 5
window = "60s"
[policies.wide]
key = "ip"
limit = 1000000
window = "1h"
[[routes]]
name = "strict"
path = "/strict"
upstream = "app"
limits = ["strict"]
[[routes]]
name = "wide"
path = "/wide"
upstream = "app"
limits = ["wide"]
[[routes]]
name = "all"
path = "/**"
upstream = "app"
auth = "required"
"#;

fn is_revoked(gateway: &Gateway, token: &Token) -> bool {
    get_as(gateway.addr(), "/x", &token.sign()).code() == 401
}

fn count(server: &Server, key: &str) -> Option<u64> {
    server.try_query(&["GET", key]).unwrap_or_default()
}

/// Clients that never pause for long; none of their requests may fail.
fn load(gateway: &Gateway) -> Load {
    Load::start(2, gateway.addr(), |client, number| {
        std::thread::sleep(PACE);
        get_from(client, "/wide", &address(1_000 + number % 50))
    })
}

fn settle(loads: Vec<Load>) {
    for load in loads {
        let outcomes = load.stop();
        let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.code != Some(200)).collect();
        assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), outcomes.len(), failed.first());
    }
}

/// Waits until both gateways count together on `server`, with addresses nobody has used.
fn share_on(server: &Server, gateways: &[&Gateway], next: &mut usize, since: Instant) {
    assert_eventually!(
        gateways.iter().all(|gateway| {
            *next += 1;
            let ip = address(*next);
            get_from(&gateway.client(), "/strict", &ip).send();
            count(server, &format!("rate_limit:strict:{ip}")) == Some(1)
        }),
        "requests are counted on the new master",
        BACK.saturating_sub(since.elapsed())
    );
    println!("shared again after {:?}", since.elapsed());
}

#[test]
fn the_kit_forms_a_cluster_and_moves_its_slots() {
    assert_eq!(slot(b"123456789"), 12_739);
    let cluster = Cluster::start_with_replicas();
    let key = cluster.key_on(0, "k");
    cluster.query::<()>(&key, redis::cmd("SET").arg(&key).arg(1));
    cluster.move_slot(slot(key.as_bytes()), 1);
    assert_eq!(cluster.owner(&key), 1);
    assert_eq!(cluster.query::<u8>(&key, redis::cmd("GET").arg(&key)), 1);
    cluster.kill(2);
    cluster.wait_for_takeover(2);
    assert_eq!(cluster.owner_of(16_000), 5);
}

#[test]
fn a_failover_ordered_and_one_forced_fail_no_request_and_lose_no_revocation() {
    let (pair, origin) = (Pair::start(), Origin::start());
    let config = config(&origin, ROOMY, ROUTES);
    let gateways = [gateway(&config, &pair.url()), gateway(&config, &pair.url())];
    let both = [&gateways[0], &gateways[1]];
    let mut next = 0;
    share_on(pair.current(), &both, &mut next, Instant::now());
    let known = Token::of("ada");
    revoke_everywhere(both[0], &json!({"jti": known.jti()}));
    let ip = address(900);
    assert_eq!(codes(&both[0].client(), "/strict", &ip, 3), [200; 3]);
    let loads = vec![load(both[0]), load(both[1])];

    pair.failover();
    share_on(pair.current(), &both, &mut next, Instant::now());
    assert_eq!(codes(&both[1].client(), "/strict", &ip, 3), [200, 200, 429], "the count went on");
    assert!(is_revoked(both[0], &known) && is_revoked(both[1], &known));

    // The old master must follow the new one before that may be lost.
    let old = pair.servers().iter().find(|server| server.port() != pair.current().port()).unwrap();
    assert_eventually!(old.info("master_link_status") == "up", "the old master follows");
    assert_eventually!(!degraded(both[0]) && !degraded(both[1]), "the first failover is over for both");
    let master = pair.current();
    let port = master.port();
    master.kill();
    assert_eventually!(
        {
            get_from(&both[0].client(), "/strict", "10.9.9.9").send();
            degraded(both[0])
        },
        "the loss is noticed"
    );
    let during = Token::of("bob");
    assert!(!revoke(both[0], &json!({"jti": during.jti()})), "nobody could be told yet");
    assert!(is_revoked(both[0], &during) && is_revoked(both[0], &known) && is_revoked(both[1], &known));
    pair.wait_for_failover(port);
    share_on(pair.current(), &both, &mut next, Instant::now());
    assert_eventually!(is_revoked(both[1], &during), "what was owed reached the new master", BACK);
    assert!(is_revoked(both[1], &known));
    for gateway in both {
        assert_eventually!(!degraded(gateway), "the gauge is right");
        assert_eventually!(gateway.count_logs(FOUND) == gateway.count_logs(LOST), "each loss has an end");
    }
    settle(loads);
}

#[test]
fn a_gateway_started_while_the_master_is_away_serves_and_shares_once_there_is_one() {
    let (pair, origin) = (Pair::start(), Origin::start());
    pair.kill_sentinel(0);
    let master = pair.current();
    let port = master.port();
    master.kill();
    let gateway = gateway(&config(&origin, ROOMY, ROUTES), &pair.url());
    assert_eq!(codes(&gateway.client(), "/strict", "10.8.8.8", 6), [200, 200, 200, 200, 200, 429]);
    pair.wait_for_failover(port);
    share_on(pair.current(), &[&gateway], &mut 0, Instant::now());
}

/// Addresses whose counters of `policy` live on that node.
fn addresses_on(cluster: &Cluster, node: usize, policy: &str, from: usize, wanted: usize) -> Vec<String> {
    let mut owners = std::collections::HashMap::new();
    (from..)
        .map(address)
        .filter(|ip| {
            let slot = slot(format!("rate_limit:{policy}:{{{ip}}}").as_bytes());
            *owners.entry(slot).or_insert_with(|| cluster.owner_of(slot)) == node
        })
        .take(wanted)
        .collect()
}

fn key(ip: &str) -> String {
    format!("rate_limit:strict:{{{ip}}}")
}

#[test]
fn a_lost_node_of_a_cluster_takes_only_its_own_keys_to_memory() {
    let (cluster, origin) = (Cluster::start(), Origin::start());
    let config = config(&origin, ROOMY, ROUTES);
    let gateways = [gateway(&config, &cluster.url()), gateway(&config, &cluster.url())];
    let clients = [gateways[0].client(), gateways[1].client()];
    let (lost, kept) = (addresses_on(&cluster, 0, "strict", 1, 8), addresses_on(&cluster, 1, "strict", 1, 8));
    for ip in [&lost[0], &kept[0]] {
        assert_eq!(codes(&clients[0], "/strict", ip, 3), [200; 3]);
        assert_eq!(codes(&clients[1], "/strict", ip, 3), [200, 200, 429], "both count in the cluster");
    }
    for gateway in &gateways {
        let instances = || gateway.metric("tollgate_instances", &[]);
        assert_eventually!(instances() == Some(2.0), "the instances know of each other");
    }
    let loads = vec![load(&gateways[0]), load(&gateways[1])];
    cluster.kill(0);
    for gateway in &gateways {
        assert_eventually!(
            {
                get_from(&gateway.client(), "/strict", &lost[1]).send();
                degraded(gateway)
            },
            "the loss shows in the metrics"
        );
    }
    for (client, ip) in clients.iter().zip(&lost[2..4]) {
        assert_eq!(codes(client, "/strict", ip, 6), [200, 200, 200, 429, 429, 429], "its share of five");
    }
    for ip in &kept[2..4] {
        assert_eq!(codes(&clients[0], "/strict", ip, 3), [200; 3]);
        assert_eq!(codes(&clients[1], "/strict", ip, 3), [200, 200, 429], "the other nodes go on");
    }
    // What is owed to the lost node waits for it.
    let owed: Vec<Token> = (0..30).map(|number| Token::of(&format!("u{number}"))).collect();
    let told = owed.iter().filter(|token| revoke(&gateways[0], &json!({"jti": token.jti()}))).count();
    let on_lost = |token: &&Token| slot(format!("blacklist:{}", token.jti()).as_bytes()) < 5_461;
    assert_eq!(told, owed.len() - owed.iter().filter(on_lost).count());

    cluster.node(0).restart();
    cluster.wait_until_whole();
    let since = Instant::now();
    assert_eventually!(
        clients.iter().zip(&lost[4..6]).all(|(client, ip)| {
            get_from(client, "/strict", ip).send();
            count(cluster.node(0), &key(ip)).is_some()
        }),
        "the node's keys are counted there again",
        BACK.saturating_sub(since.elapsed())
    );
    assert_eventually!(
        cluster.keys().iter().filter(|key| key.starts_with("blacklist:")).count() == owed.len(),
        "what was owed was handed over",
        BACK
    );
    for gateway in &gateways {
        assert_eventually!(!degraded(gateway), "the recovery shows in the metrics");
        assert_eventually!(gateway.count_logs(FOUND) == 1, "the recovery is told");
        assert_eq!(gateway.count_logs(LOST), 1, "{}", gateway.logs());
        assert!(gateway.logs().contains(&cluster.node(0).addr().to_string()));
    }
    settle(loads);
}

#[test]
fn a_node_that_comes_back_is_told_what_was_admitted_without_it() {
    let (cluster, origin) = (Cluster::start_durable(), Origin::start());
    let gateway = gateway(&config(&origin, ROOMY, ROUTES), &cluster.url());
    let client = gateway.client();
    let [known, new, kept] = [
        &addresses_on(&cluster, 0, "strict", 1, 1)[0],
        &addresses_on(&cluster, 0, "strict", 1, 2)[1],
        &addresses_on(&cluster, 1, "strict", 1, 1)[0],
    ];
    assert_eq!(codes(&client, "/strict", known, 2), [200; 2]);
    let ends: i64 = cluster.node(0).query(&["PEXPIRETIME", &key(known)]);
    cluster.kill(0);
    assert_eventually!(
        {
            get_from(&client, "/wide", &addresses_on(&cluster, 0, "wide", 1, 1)[0]).send();
            degraded(&gateway)
        },
        "the loss is noticed"
    );
    assert_eq!(codes(&client, "/strict", known, 2), [200; 2], "from memory");
    assert_eq!(codes(&client, "/strict", new, 3), [200; 3], "a window that begins without the node");
    assert_eq!(codes(&client, "/strict", kept, 1), [200]);

    cluster.node(0).restart();
    cluster.wait_until_whole();
    assert_eventually!(
        count(cluster.node(0), &key(known)) == Some(4) && count(cluster.node(0), &key(new)) == Some(3),
        "its counters hold what was admitted meanwhile"
    );
    assert_eq!(cluster.node(0).query::<i64>(&["PEXPIRETIME", &key(known)]), ends);
    assert_eventually!(!degraded(&gateway), "the node is asked again");
    assert_eq!(codes(&client, "/strict", known, 2), [200, 429]);
    assert_eq!(codes(&client, "/strict", new, 3), [200, 200, 429]);
    assert_eq!(count(cluster.node(1), &key(kept)), Some(1), "the others were told nothing twice");
}

#[test]
fn a_replica_that_takes_over_is_counted_on_soon() {
    let (cluster, origin) = (Cluster::start_with_replicas(), Origin::start());
    let gateway = gateway(&config(&origin, ROOMY, ROUTES), &cluster.url());
    let client = gateway.client();
    let ips = addresses_on(&cluster, 0, "strict", 1, 100);
    assert_eq!(codes(&client, "/strict", &ips[0], 3), [200; 3]);
    assert_eventually!(
        count_on_replica(cluster.node(3), &key(&ips[0])) == Some(3),
        "the replica has the count"
    );
    let loads = vec![load(&gateway)];
    cluster.kill(0);
    cluster.wait_for_takeover(0);
    let since = Instant::now();
    let mut fresh = ips[1..].iter();
    assert_eventually!(
        {
            let ip = fresh.next().unwrap();
            get_from(&client, "/strict", ip).send();
            std::thread::sleep(Duration::from_millis(20));
            count(cluster.node(3), &key(ip)) == Some(1)
        },
        "requests are counted on the promoted replica",
        BACK
    );
    println!("shared again after {:?}", since.elapsed());
    assert_eq!(codes(&client, "/strict", &ips[0], 3), [200, 200, 429], "the count went on");
    assert_eventually!(!degraded(&gateway), "nothing is missing any more");
    settle(loads);
}

fn count_on_replica(server: &Server, key: &str) -> Option<u64> {
    let mut client = server.client();
    redis::cmd("READONLY").exec(&mut client).unwrap();
    redis::cmd("GET").arg(key).query(&mut client).unwrap()
}

#[test]
fn slots_that_move_under_traffic_lose_no_count() {
    let (cluster, origin) = (Cluster::start(), Origin::start());
    let gateway = gateway(&config(&origin, PATIENT, ROUTES), &cluster.url());
    let ip = address(7);
    let key = format!("rate_limit:wide:{{{ip}}}");
    get_from(&gateway.client(), "/wide", &ip).send();
    let done = AtomicBool::new(false);
    let sent: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (client, ip, done) = (gateway.client(), &ip, &done);
                scope.spawn(move || {
                    let mut sent = 0;
                    while !done.load(SeqCst) {
                        assert_eq!(get_from(&client, "/wide", ip).send().code(), 200);
                        sent += 1;
                    }
                    sent
                })
            })
            .collect();
        let slot = slot(key.as_bytes());
        for _ in 0..4 {
            for to in 0..3 {
                if cluster.owner_of(slot) != to {
                    let from = cluster.begin_move(slot, to);
                    std::thread::sleep(Duration::from_millis(50));
                    cluster.end_move(slot, from, to);
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
        done.store(true, SeqCst);
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert_eq!(cluster.query::<u64>(&key, redis::cmd("GET").arg(&key)), sent + 1);
    assert_eq!(gateway.count_logs(LOST), 0, "{}", gateway.logs());
}

#[test]
fn revocations_are_heard_of_in_a_cluster_and_read_from_all_its_nodes() {
    let (cluster, origin) = (Cluster::start(), Origin::start());
    let config = config(&origin, PATIENT, ROUTES);
    let gateways = [gateway(&config, &cluster.url()), gateway(&config, &cluster.url())];
    let knows = |gateway: &Gateway, count: u32| {
        gateway.metric("tollgate_revocations_known", &[]) == Some(f64::from(count))
    };
    assert_eventually!(
        {
            revoke(&gateways[0], &json!({"jti": "warm-up"}));
            knows(&gateways[1], 1)
        },
        "the instances hear of each other"
    );
    let tokens: Vec<Token> = (0..30).map(|number| Token::of(&format!("u{number}"))).collect();
    let [eve, dan] = ["eve", "dan"].map(Token::of);
    for token in &tokens {
        revoke_everywhere(&gateways[0], &json!({"jti": token.jti()}));
    }
    revoke_everywhere(&gateways[0], &json!({"subject": "eve"}));
    assert_eventually!(knows(&gateways[1], 32), "all of them are heard of");
    let by_node = cluster.keys_by_node();
    assert!(by_node.values().all(|keys| keys.iter().any(|key| key.starts_with("blacklist:"))), "{by_node:?}");
    assert!(cluster.keys().contains(&"revoked_before:{eve}".to_owned()));
    let late = gateway(&config, &cluster.url());
    assert_eventually!(knows(&late, 32), "a new instance reads them from all nodes");
    for gateway in gateways.iter().chain([&late]) {
        assert!(tokens.iter().all(|token| is_revoked(gateway, token)));
        assert!(is_revoked(gateway, &eve) && !is_revoked(gateway, &dan));
    }
}
