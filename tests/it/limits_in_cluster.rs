//! Limits whose counters lie in several slots of a real Redis Cluster, and limits over a failover of a pair: exact, for
//! every algorithm, while nodes come and go and slots move. How the store itself finds nodes is told in `topology`.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use serde_json::json;

use crate::setup::{PATIENT, ROOMY, address, admitted, codes, config, gateway, get_from};
use crate::support::client::Client;
use crate::support::cluster::{Cluster, slot};
use crate::support::concurrently;
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::origin::{Origin, Reply};
use crate::support::sentinel::Pair;
use crate::support::token::Token;

const ALGORITHMS: [&str; 5] = ["fixed-window", "sliding-window", "token-bucket", "sliding-log", "cool-down"];

/// Three policies of one algorithm whose counters have nothing in common; `user` binds.
fn three(algorithm: &str, limit: u64) -> String {
    let more = if algorithm == "cool-down" {
        "cooldown = { limit = 1, window = \"24h\", quiet = \"1h\" }\n"
    } else {
        ""
    };
    let policies: String = [("ip", 1_000), ("user", limit), ("route", 5_000)]
        .map(|(key, limit)| {
            format!(
                "[policies.{key}]\nkey = \"{key}\"\nalgorithm = \"{algorithm}\"\nlimit = {limit}\nwindow = \"24h\"\n{more}"
            )
        })
        .concat();
    format!(
        "{policies}[[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\nauth = \"required\"\n\
         limits = [\"ip\", \"user\", \"route\"]\n"
    )
}

fn used(gateway: &Gateway, subject: &serde_json::Value, policy: &str) -> Option<u64> {
    let read = gateway.admin().post("/api/v1/quota/read").bearer(ADMIN_TOKEN).json(subject).send().json();
    let counters = read["counters"].as_array()?;
    counters.iter().find(|counter| counter["policy"] == policy)?["used"].as_u64()
}

/// Counters of limits, without what instances keep for themselves.
fn counters(cluster: &Cluster) -> Vec<String> {
    let own = |key: &String| key.starts_with("rate_limit:") && !key.starts_with("rate_limit:gw");
    cluster.keys().into_iter().filter(own).collect()
}

fn is_immortal(cluster: &Cluster, key: &str) -> bool {
    cluster.query::<i64>(key, redis::cmd("PTTL").arg(key)) == -1
}

#[test]
fn counters_in_three_slots_admit_exactly_the_limit_and_siblings_agree_after_quiescence() {
    let cluster = Cluster::start();
    for algorithm in ALGORITHMS {
        cluster.flush();
        let origin = Origin::start();
        let text = config(&origin, PATIENT, &three(algorithm, 60));
        let gateways = [gateway(&text, &cluster.url()), gateway(&text, &cluster.url())];
        let token = Token::of("ada").sign();
        let codes = concurrently(12, |worker| {
            let client = gateways[worker % 2].client();
            let get = |_| get_from(&client, "/x", "10.0.0.1").bearer(&token).send().code();
            (0..15).map(get).collect::<Vec<u16>>()
        })
        .concat();
        assert_eq!((admitted(&codes), codes.len(), origin.hits()), (60, 180, 60), "{algorithm}");
        for (subject, policy) in [
            (json!({"ip": "10.0.0.1"}), "ip"),
            (json!({"user": "ada"}), "user"),
            (json!({"route": "all"}), "route"),
        ] {
            for gateway in &gateways {
                // A tripped cool-down has nothing left, which is as much as its limit.
                assert_eventually!(
                    used(gateway, &subject, policy) == Some(60),
                    format!("{algorithm}: {policy} holds what was admitted")
                );
            }
        }
        let keys = counters(&cluster);
        assert_eq!(keys.len(), 3, "{keys:?}");
        let slots: std::collections::BTreeSet<u16> = keys.iter().map(|key| slot(key.as_bytes())).collect();
        assert_eq!(slots.len(), 3, "{keys:?}");
        for tag in ["{ada}", "{10.0.0.1}", "{all}"] {
            assert!(keys.iter().any(|key| key.ends_with(tag)), "{tag} in {keys:?}");
        }
        assert!(!keys.iter().any(|key| is_immortal(&cluster, key)), "{algorithm}");
        let lost = gateways
            .iter()
            .map(|gateway| gateway.metric("tollgate_limit_refunds_total", &[("result", "lost")]));
        assert_eq!(lost.collect::<Vec<_>>(), [Some(0.0); 2], "{algorithm}");
    }
}

/// A user, or an address, whose counter of `policy` lives on that node.
fn subject_on(cluster: &Cluster, node: usize, name: impl Fn(usize) -> String) -> String {
    (1..100_000).map(name).find(|name| cluster.owner_of(slot(name.as_bytes())) == node).unwrap()
}

#[test]
fn a_lost_node_leaves_the_counters_of_the_others_exact_within_one_request() {
    let (cluster, origin) = (Cluster::start(), Origin::start());
    let text = config(&origin, ROOMY, &three("fixed-window", 40).replace("limit = 1000", "limit = 20"));
    let gateways = [gateway(&text, &cluster.url()), gateway(&text, &cluster.url())];
    let clients = [gateways[0].client(), gateways[1].client()];
    let users: Vec<String> = (0..3).map(|n| subject_on(&cluster, 0, |i| format!("u{n}x{i}"))).collect();
    let ips: Vec<String> = (0..3).map(|n| subject_on(&cluster, 1, |i| address(n * 1_000 + i))).collect();
    let ask = |case: usize, turns: usize| {
        let token = Token::of(&users[case]).sign();
        let codes: Vec<u16> = (0..turns)
            .map(|turn| get_from(&clients[turn % 2], "/x", &ips[case]).bearer(&token).send().code())
            .collect();
        admitted(&codes)
    };
    assert_eq!(ask(0, 30), 20, "the address binds");
    for gateway in &gateways {
        assert_eventually!(gateway.metric("tollgate_instances", &[]) == Some(2.0), "they know of each other");
    }
    assert_eq!(ask(1, 8), 8);
    cluster.kill(0);
    for gateway in &gateways {
        assert_eventually!(
            {
                let token = Token::of(&users[2]).sign();
                get_from(&gateway.client(), "/x", "10.200.0.1").bearer(&token).send();
                gateway.metric("tollgate_store_degraded", &[]) == Some(1.0)
            },
            "the loss is noticed"
        );
    }
    let case = ask(1, 40);
    // A request whose other counter was on its way to the lost node may have been counted by the address already.
    assert!((11..=12).contains(&case), "{case}: the address is still counted together");
    let of_ip = |ip: &str| {
        let key = format!("rate_limit:ip:{{{ip}}}");
        cluster.query::<Option<u64>>(&key, redis::cmd("GET").arg(&key))
    };
    assert_eq!(of_ip(&ips[1]), Some(20));
    cluster.node(0).restart();
    cluster.wait_until_whole();
    assert_eventually!(
        gateways.iter().all(|gateway| gateway.metric("tollgate_store_degraded", &[]) == Some(0.0)),
        "all nodes are back"
    );
    assert_eq!(ask(2, 30), 20, "all counters are shared again");
    assert_eq!(of_ip(&ips[2]), Some(20));
    let key = format!("rate_limit:user:{{{}}}", users[2]);
    assert_eventually!(
        cluster.query::<Option<u64>>(&key, redis::cmd("GET").arg(&key)).is_some_and(|count| count >= 20),
        "the node that was lost counts"
    );
    assert!(!counters(&cluster).iter().any(|key| is_immortal(&cluster, key)));
}

#[test]
fn slots_that_move_under_load_keep_the_counts_of_every_algorithm() {
    let cluster = Cluster::start();
    for algorithm in ALGORITHMS {
        cluster.flush();
        let origin = Origin::start();
        let rest = three(algorithm, 3_000).replace("limit = 1000", "limit = 5000");
        let text = config(&origin, PATIENT, &rest);
        let gateways = [gateway(&text, &cluster.url()), gateway(&text, &cluster.url())];
        let token = Token::of("ada").sign();
        get_from(&gateways[0].client(), "/x", "10.0.0.1").bearer(&token).send();
        let done = AtomicBool::new(false);
        let sent: u64 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|worker| {
                    let (client, done, token) = (gateways[worker % 2].client(), &done, &token);
                    scope.spawn(move || {
                        let mut sent = 0;
                        while !done.load(SeqCst) && sent < 700 {
                            let reply = get_from(&client, "/x", "10.0.0.1").bearer(token).send();
                            assert_eq!(reply.code(), 200, "{reply:?}");
                            sent += 1;
                            std::thread::sleep(Duration::from_millis(2));
                        }
                        sent
                    })
                })
                .collect();
            for name in ["ada", "10.0.0.1", "all"] {
                let slot = slot(name.as_bytes());
                for to in (0..3).chain([0]) {
                    if cluster.owner_of(slot) != to {
                        let from = cluster.begin_move(slot, to);
                        std::thread::sleep(Duration::from_millis(30));
                        cluster.end_move(slot, from, to);
                        std::thread::sleep(Duration::from_millis(30));
                    }
                }
            }
            done.store(true, SeqCst);
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        for (subject, policy) in [
            (json!({"ip": "10.0.0.1"}), "ip"),
            (json!({"user": "ada"}), "user"),
            (json!({"route": "all"}), "route"),
        ] {
            // Where an answer came after a whole second nobody knows: such a request may be counted twice.
            let late = alone(&gateways, policy);
            assert_eventually!(
                used(&gateways[0], &subject, policy)
                    .is_some_and(|used| (sent + 1..=sent + 1 + late).contains(&used)),
                format!(
                    "{algorithm}: {policy} counted {} of {}, {late} of them late",
                    used(&gateways[0], &subject, policy).unwrap_or(0),
                    sent + 1
                )
            );
        }
        assert!(!counters(&cluster).iter().any(|key| is_immortal(&cluster, key)), "{algorithm}");
    }
}

/// How many requests instances decided by themselves, which on a machine with any time to spare is none.
fn alone(gateways: &[Gateway], policy: &str) -> u64 {
    let labels = [("policy", policy), ("source", "memory")];
    let of =
        |gateway: &Gateway| gateway.metric("tollgate_limit_decisions_total", &labels).unwrap_or_default();
    gateways.iter().map(of).sum::<f64>().to_string().parse().unwrap()
}

#[test]
fn while_a_slot_moves_new_counters_are_exact_and_who_is_banned_stays_out() {
    let cluster = Cluster::start();
    for (round, algorithm) in ALGORITHMS.into_iter().enumerate() {
        let origin = Origin::start();
        let text = config(&origin, PATIENT, &three(algorithm, 6));
        let gateways = [gateway(&text, &cluster.url()), gateway(&text, &cluster.url())];
        let clients = [gateways[0].client(), gateways[1].client()];
        let user = subject_on(&cluster, 0, |number| format!("r{round}u{number}"));
        let slot = slot(user.as_bytes());
        let ask = |subject: &str, turns: usize| {
            let token = Token::of(subject).sign();
            let send =
                |turn: usize| get_from(&clients[turn % 2], "/x", "10.0.0.1").bearer(&token).send().code();
            (0..turns).map(send).collect::<Vec<u16>>()
        };
        assert_eq!(ask("warm", 2), [200; 2], "{algorithm}");
        let from = cluster.begin_move(slot, 1);
        // Its counter does not exist yet, and the slot is neither here nor there.
        assert_eq!(ask(&user, 4), [200; 4], "{algorithm}");
        cluster.end_move(slot, from, 1);
        assert_eq!(ask(&user, 6), [200, 200, 429, 429, 429, 429], "{algorithm}");
        let ban = format!("ban:user:{{{user}}}");
        cluster.query::<()>(&ban, redis::cmd("SET").arg(&ban).arg(1).arg("PX").arg(60_000));
        // Another instance, which has never heard of that user.
        let late = gateway(&text, &cluster.url());
        let token = Token::of(&user).sign();
        let get = || get_from(&late.client(), "/x", "10.0.0.1").bearer(&token).send().code();
        assert_eq!(get(), 403, "{algorithm}");
        let from = cluster.begin_move(slot, 2);
        assert_eq!([get(), get()], [403; 2], "{algorithm}: also while the slot moves");
        cluster.end_move(slot, from, 2);
        assert_eq!(get(), 403, "{algorithm}");
        cluster.move_slot(slot, 0);
        assert!(!counters(&cluster).iter().any(|key| is_immortal(&cluster, key)), "{algorithm}");
    }
}

#[test]
fn only_failures_count_in_a_cluster() {
    let cluster = Cluster::start();
    for algorithm in ALGORITHMS {
        cluster.flush();
        let origin = Origin::start();
        origin.answer(|request| {
            Reply::text(if request.header("x-password") == Some("right") { 200 } else { 401 }, "")
        });
        let rest = three(algorithm, 4).replace("[policies.user]", "[policies.user]\ncount = \"failures\"");
        let text = config(&origin, PATIENT, &rest);
        let gateways = [gateway(&text, &cluster.url()), gateway(&text, &cluster.url())];
        let clients = [gateways[0].client(), gateways[1].client()];
        let token = Token::of("ada").sign();
        let guess = |turn: usize, password: &str| {
            let request = get_from(&clients[turn % 2], "/x", "10.0.0.1").bearer(&token);
            request.header("x-password", password).send().code()
        };
        for turn in 0..10 {
            assert_eq!(guess(turn, "right"), 200, "{algorithm}");
        }
        assert_eq!([guess(0, "x"), guess(1, "x"), guess(0, "right"), guess(1, "x")], [401, 401, 200, 401]);
        assert_eq!(
            [guess(1, "right"), guess(0, "x"), guess(0, "right"), guess(1, "right")],
            [200, 401, 429, 429]
        );
        assert_eventually!(
            used(&gateways[0], &json!({"ip": "10.0.0.1"}), "ip") == Some(16),
            format!("{algorithm}: the others count whatever the answer")
        );
    }
}

#[test]
fn bodies_are_shared_dropped_and_purged_through_a_cluster() {
    let (cluster, origin) = (Cluster::start(), Origin::start());
    let members = origin.addr().to_string();
    let gateways = [0, 1].map(|_| crate::cache::gateway(&members, "", &cluster.url()));
    for gateway in &gateways {
        crate::cache::warm(gateway, &origin);
    }
    let hits = std::sync::atomic::AtomicU64::new(0);
    origin.answer(move |_| Reply::text(200, &hits.fetch_add(1, SeqCst).to_string()));
    let ask = |gateway: &Gateway, path: &str, token: &str| {
        gateway.client().get(path).host("api.example").bearer(token).send()
    };
    let get = |gateway: &Gateway, path: &str, token: &str| {
        let reply = ask(gateway, path, token);
        (crate::cache::x_cache(&reply), reply.text())
    };
    let purge = |what: &serde_json::Value| {
        let reply = gateways[0].admin().post("/api/v1/cache/purge").bearer(ADMIN_TOKEN).json(what).send();
        assert_eq!((reply.code(), &reply.json()["shared"]), (200, &json!(true)), "{what}: {}", reply.text());
    };
    let paths: Vec<String> = (0..12).map(|number| format!("/items/{number}")).collect();
    let ada = Token::of("ada").sign();
    let fill = || {
        for path in &paths {
            let same = || {
                let first = ask(&gateways[0], path, &ada);
                let (kept, body) = get(&gateways[0], path, &ada);
                // Who asks before the generations of the tags are written goes on with its own for ten seconds.
                let tags = || cluster.keys().iter().filter(|key| key.starts_with("cache_tag:")).count();
                let mut known = 0;
                assert_eventually!(std::mem::replace(&mut known, tags()) == tags(), "all tags are written");
                let other = get(&gateways[1], path, &ada);
                if kept == "HIT" && other == ("HIT".to_owned(), body) {
                    return true;
                }
                // An instance that the cluster answers too late fetches for itself, and keeps what it got.
                purge(&json!({"key": first.header("x-cache-key").unwrap()}));
                false
            };
            assert_eventually!(same(), "the other instance has it from the cluster", Duration::from_secs(30));
        }
    };
    fill();
    // Keys are random: so many never lie on two nodes alone.
    for number in 12..72 {
        get(&gateways[0], &format!("/items/{number}"), &ada);
    }
    let has_a_body = |keys: &Vec<String>| keys.iter().any(|key| key.starts_with("cache:"));
    assert_eventually!(cluster.keys_by_node().values().all(has_a_body), "bodies lie on all nodes");
    // A write at one instance: nobody reads what was before.
    for path in &paths[..4] {
        let (_, before) = get(&gateways[1], path, &ada);
        let written = gateways[0].client().put(path).host("api.example").bearer(&ada).body("x").send();
        assert_eq!(written.code(), 200, "{}", written.text());
        for gateway in [&gateways[1], &gateways[0]] {
            assert_ne!(get(gateway, path, &ada).1, before, "{path}");
        }
    }
    let by_prefix = [json!({"prefix": "/items/"}), json!({"prefix": "/", "host": "api.example"})];
    let otherwise = [json!({"user": "ada"}), json!({"route": "item"}), json!({"all": true})];
    for purged in by_prefix.into_iter().chain(otherwise) {
        fill();
        let before: Vec<String> = paths.iter().map(|path| get(&gateways[1], path, &ada).1).collect();
        purge(&purged);
        for (path, before) in paths.iter().zip(before) {
            for gateway in [&gateways[1], &gateways[0]] {
                assert_ne!(get(gateway, path, &ada).1, before, "{purged} {path}");
            }
        }
    }
    // What the whole cache depends on never ends.
    let lasts = |key: &str| [":-epoch", ":{-prefixes}"].iter().any(|tag| key.ends_with(tag));
    let known = |key: &str| key.starts_with("cache:") || (key.starts_with("cache_tag:") && !lasts(key));
    let immortal: Vec<String> =
        cluster.keys().into_iter().filter(|key| known(key) && is_immortal(&cluster, key)).collect();
    assert_eq!(immortal, Vec::<String>::new());
}

#[test]
fn counts_leases_and_all_algorithms_go_on_over_a_failover() {
    let (pair, origin) = (Pair::start(), Origin::start());
    let mut rest = String::from(
        "[policies.leased]\nkey = \"ip\"\nlimit = 400\nwindow = \"24h\"\nlease = true\n\
         [policies.native]\nkey = \"ip\"\nlimit = 100\nwindow = \"24h\"\n",
    );
    for algorithm in &ALGORITHMS[1..] {
        let more = if *algorithm == "cool-down" {
            "cooldown = { limit = 1, window = \"24h\", quiet = \"1h\" }\n"
        } else {
            ""
        };
        let policy = format!(
            "[policies.{algorithm}]\nkey = \"ip\"\nalgorithm = \"{algorithm}\"\nlimit = 20\nwindow = \"24h\"\n{more}"
        );
        rest.push_str(&policy);
    }
    let names = ["leased", "native", "sliding-window", "token-bucket", "sliding-log", "cool-down"];
    for name in names {
        let route = format!(
            "[[routes]]\nname = \"{name}\"\npath = \"/{name}\"\nupstream = \"app\"\nlimits = [\"{name}\"]\n"
        );
        rest.push_str(&route);
    }
    let text = config(&origin, ROOMY, &rest);
    let gateways = [gateway(&text, &pair.url()), gateway(&text, &pair.url())];
    let clients = [gateways[0].client(), gateways[1].client()];
    let ask = |name: &str, turns: usize| {
        let path = format!("/{name}");
        let send = |turn: usize| codes(&clients[turn % 2], &path, "10.0.0.1", 1);
        admitted(&(0..turns).flat_map(send).collect::<Vec<_>>())
    };
    for (name, first) in names.into_iter().zip([150, 60, 12, 12, 12, 12]) {
        assert_eq!(ask(name, first), first, "{name}");
    }
    let replicated: u64 = pair.current().query(&["WAIT", "1", "5000"]);
    assert_eq!(replicated, 1);
    pair.failover();
    let share = |client: &Client, number: usize| {
        let ip = address(5_000 + number);
        get_from(client, "/native", &ip).send();
        pair.current().query::<Option<u64>>(&["GET", &format!("rate_limit:native:{ip}")]) == Some(1)
    };
    let mut next = 0;
    assert_eventually!(
        clients.iter().all(|client| {
            next += 1;
            share(client, next)
        }),
        "both count on the new master"
    );
    for (name, most) in names.into_iter().zip([250, 40, 8, 8, 8, 8]) {
        let after = ask(name, most * 2);
        // What the other instance holds of a lease and does not spend.
        let least = if name == "leased" { most - 20 } else { most };
        assert!((least..=most).contains(&after), "{name}: {after} of {most} that were left");
    }
    let immortal = |key: &String| pair.current().query::<i64>(&["PTTL", key]) == -1;
    let keys: Vec<String> = pair.current().query(&["KEYS", "rate_limit:*"]);
    assert!(!keys.iter().any(immortal), "{keys:?}");
}

#[test]
fn what_was_no_failure_is_given_back_while_its_slot_moves() {
    let cluster = Cluster::start();
    let origin = Origin::start();
    let limits = "[policies.user]\nkey = \"user\"\ncount = \"failures\"\n\
        windows = [{ limit = 3, window = \"1h\" }, { limit = 4, window = \"2h\" }]\n\
        [[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\nauth = \"required\"\nlimits = [\"user\"]\n";
    let gateway = gateway(&config(&origin, PATIENT, limits), &cluster.url());
    let user = subject_on(&cluster, 0, |number| format!("u{number}"));
    let (slot, token) = (slot(user.as_bytes()), Token::of(&user).sign());
    let from = cluster.begin_move(slot, 1);
    for count in 1..=6_u8 {
        assert_eq!(
            get_from(&gateway.client(), "/x", "10.0.0.1").bearer(&token).send().code(),
            200,
            "{count}"
        );
        assert_eventually!(
            gateway.metric("tollgate_limit_refunds_total", &[("result", "done")])
                == Some(f64::from(count) * 2.0),
            "both windows have it back"
        );
    }
    cluster.end_move(slot, from, 1);
}
