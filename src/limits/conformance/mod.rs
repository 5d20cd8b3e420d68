//! The same statements about every store of counters: this instance's memory, and `gate.lua` on a real Redis and
//! in a real Redis Cluster. `batches` is about what only one call for many requests can do, `traces` compares
//! every algorithm with the plain `model` under a clock that the test moves.

mod batches;
mod kit;
mod model;
mod traces;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use self::kit::{ALL, COOL, Gate, Question, Store, batch_of, conclude, everywhere};
use super::gate::{self, MalformedReply};
use super::local::Settings;
use super::*;
use crate::clock::{Clock, SystemClock, UnixMillis};
use crate::test_redis::Server;

fn window(limit: u64, period: Duration) -> Window {
    Window::new(limit, period).unwrap()
}

fn minute_hour_day(minute: u64, hour: u64, day: u64) -> LimitSource {
    let windows = [(minute, 60), (hour, 3_600), (day, 86_400)];
    LimitSource::Windows(windows.iter().map(|&(n, s)| window(n, Duration::from_secs(s))).collect())
}

fn policy(name: &str, algorithm: Algorithm, limit: LimitSource) -> Policy {
    Policy::new(name, &[KeyPart::Ip], algorithm, limit).unwrap()
}

fn one(name: &str, algorithm: Algorithm, limit: u64, period_ms: u64) -> Policy {
    policy(name, algorithm, LimitSource::Windows(vec![window(limit, Duration::from_millis(period_ms))]))
}

thread_local! {
    static SPACE: KeySpace = KeySpace::default();
}

fn checks_in(space: &KeySpace, policies: &[&Policy], user: &str, now: UnixMillis) -> Checks {
    let plans = Plans::standard().unwrap();
    let caller = Caller {
        ip: "192.0.2.1",
        user: Some(user),
        token: None,
        api_token: None,
        own_limits: [None; 3],
        route: "r",
        plan: plans.anonymous(),
        multiplier: 1.0,
        request: crate::limits::Parts::default(),
    };
    let mut checks = Checks::new();
    checks.begin(now);
    for (index, policy) in (0..).zip(policies) {
        checks.add(space, index, policy, &caller, 1).unwrap();
    }
    checks
}

fn checks(policies: &[&Policy]) -> Checks {
    SPACE.with(|space| checks_in(space, policies, "u", UnixMillis(0)))
}

fn used(checks: &Checks) -> Vec<u64> {
    checks.states().iter().map(|state| state.state.used).collect()
}

#[test]
fn concurrent_hits_leave_every_window_at_the_smallest_limit() {
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingLog, COOL] {
        everywhere(|store| concurrent_hits(store, algorithm));
    }
}

fn concurrent_hits(store: &mut dyn Store, algorithm: Algorithm) {
    let policy = policy("m", algorithm, minute_hour_day(50, 1_000, 5_000));
    let template = checks(&[&policy]);
    let workers: Vec<_> = (0..8).map(|_| (store.another(), template.clone())).collect();
    let admitted: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .map(|(mut store, mut checks)| {
                scope.spawn(move || (0..250).filter(|_| store.decide(&mut checks).is_admitted()).count())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(admitted, 50);
    let mut last = template.clone();
    assert!(!store.decide(&mut last).is_admitted());
    // The minute of a cool-down tripped and holds a time instead.
    assert_eq!(used(&last)[1..], [50, 50]);
    assert!(algorithm == COOL || used(&last)[0] == 50);
}

#[test]
fn a_refused_hour_leaves_minute_and_day_as_they_were() {
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow, Algorithm::SlidingLog] {
        everywhere(|store| {
            let policy = policy("m", algorithm, minute_hour_day(100, 3, 1_000));
            let mut checks = checks(&[&policy]);
            let outcomes: Vec<_> = (0..9).map(|_| store.decide(&mut checks).is_admitted()).collect();
            assert_eq!(outcomes.iter().filter(|admitted| **admitted).count(), 3);
            let Decision::Refused(refused) = store.decide(&mut checks) else { panic!("admitted") };
            assert_eq!(refused.violated.iter().collect::<Vec<_>>(), [1]);
            assert_eq!(used(&checks), [3, 3, 3]);
            assert!(refused.retry_at > refused.at);
        });
    }
}

#[test]
fn a_refused_first_request_leaves_no_counter_behind() {
    for algorithm in ALL {
        everywhere(|store| {
            let (open, shut) = (one("open", algorithm, 5, 60_000), one("shut", algorithm, 0, 60_000));
            let mut checks = checks(&[&open, &shut]);
            let Decision::Refused(refused) = store.decide(&mut checks) else { panic!("admitted") };
            assert_eq!(refused.violated.bits(), 2);
            assert_eq!(refused.retry_at, refused.at.plus(Duration::from_secs(60)));
            assert_eq!(checks.states()[0].remaining, 5);
            assert_eq!(store.keys(), 0);
        });
    }
}

#[test]
fn a_refused_request_is_admitted_at_its_retry_time() {
    let cool = Algorithm::CoolDown(CoolDown { interval_ms: 150, quiet_ms: 600 });
    for algorithm in ALL.map(|algorithm| if algorithm == COOL { cool } else { algorithm }) {
        everywhere(|store| {
            let policy = one("p", algorithm, 4, 400);
            let mut checks = checks(&[&policy]);
            let mut admitted = 0;
            let refused = loop {
                match store.decide(&mut checks) {
                    Decision::Admitted { .. } => admitted += 1,
                    Decision::Refused(refused) => break refused,
                }
            };
            assert!((4..=8).contains(&admitted), "{algorithm:?} admitted {admitted}");
            assert_eq!(checks.states()[0].remaining, 0);
            store.wait(Duration::from_millis(refused.retry_at.millis_since(refused.at)));
            assert!(store.decide(&mut checks).is_admitted(), "{algorithm:?}");
        });
    }
}

#[test]
fn penalising_policies_count_refused_requests_and_others_do_not() {
    for algorithm in ALL {
        everywhere(|store| {
            let strict = one("strict", algorithm, 1, 3_600_000);
            let abuse = one("abuse", Algorithm::FixedWindow, 4, 3_600_000).with_penalise(true);
            let plain = one("plain", algorithm, 100, 3_600_000);
            let mut checks = checks(&[&strict, &abuse, &plain]);
            let violated: Vec<_> = (0..6)
                .map(|_| match store.decide(&mut checks) {
                    Decision::Admitted { .. } => 0,
                    Decision::Refused(refused) => refused.violated.bits(),
                })
                .collect();
            assert_eq!(violated, [0, 1, 1, 1, 3, 3]);
            assert_eq!(used(&checks)[1], 6);
            assert_eq!(checks.states()[2].remaining, 99);
        });
    }
}

#[test]
fn a_cost_is_taken_whole_or_not_at_all() {
    for algorithm in ALL {
        everywhere(|store| {
            let policy = one("p", algorithm, 10, 3_600_000).with_cost(4).unwrap();
            let mut checks = checks(&[&policy]);
            let outcomes: Vec<_> = (0..3).map(|_| store.decide(&mut checks).is_admitted()).collect();
            assert_eq!(outcomes, [true, true, false]);
            let left = if algorithm == COOL { 0 } else { 2 };
            assert_eq!(checks.states()[0].remaining, left);
            let never = one("never", algorithm, 3, 60_000).with_cost(4).unwrap();
            let mut dear = self::checks(&[&never]);
            let Decision::Refused(refused) = store.decide(&mut dear) else { panic!("admitted") };
            assert_eq!(refused.retry_at, refused.at.plus(Duration::from_secs(60)));
        });
    }
}

#[test]
fn the_largest_limit_admits() {
    for algorithm in ALL {
        everywhere(|store| {
            let policy = one("p", algorithm, u64::MAX, 86_400_000);
            let mut checks = checks(&[&policy]);
            assert!((0..3).all(|_| store.decide(&mut checks).is_admitted()));
            assert_eq!(checks.states()[0].limit, u64::MAX);
            let most =
                if algorithm == Algorithm::SlidingLog { super::policy::MAX_LOG_LIMIT } else { 1 << 30 };
            assert!(checks.states()[0].remaining >= most - 3);
        });
    }
}

#[test]
fn every_key_in_redis_has_a_ttl_no_longer_than_needed() {
    let mut gate = Gate::start();
    let policies = [
        policy("f", Algorithm::FixedWindow, minute_hour_day(3, 5, 9)),
        policy("s", Algorithm::SlidingWindow, minute_hour_day(3, 5, 9)),
        policy("b", Algorithm::TokenBucket, minute_hour_day(3, 5, 9)),
        policy("l", Algorithm::SlidingLog, minute_hour_day(3, 5, 9)),
        one("c", COOL, 3, 60_000),
        one("penal", Algorithm::FixedWindow, 2, 60_000).with_penalise(true),
    ];
    let mut checks = checks(&policies.each_ref());
    for _ in 0..20 {
        gate.decide(&mut checks);
        let keys: Vec<String> = gate.run(&["KEYS", "*"]);
        assert_eq!(keys.len(), 14);
        for key in keys {
            let ttl: i64 = gate.run(&["PTTL", &key]);
            assert!(ttl > 0 && ttl <= 2 * 86_400_000, "{key} lives {ttl} ms");
        }
    }
    let names: Vec<String> = gate.run(&["KEYS", "rate_limit:f:*"]);
    assert!(names.contains(&"rate_limit:f:192.0.2.1:minute".to_owned()), "{names:?}");
    let ttl: i64 = gate.run(&["TTL", "rate_limit:f:192.0.2.1:hour"]);
    assert!((3_595..=3_600).contains(&ttl));
}

#[test]
fn immortal_and_foreign_keys_heal() {
    let mut gate = Gate::start();
    for (algorithm, limit) in [(Algorithm::FixedWindow, 50), (Algorithm::FixedWindow, 1)] {
        let policy = one("h", algorithm, limit, 60_000);
        let mut checks = checks(&[&policy]);
        let _: () = gate.run(&["SET", "rate_limit:h:192.0.2.1", "7"]);
        assert_eq!(gate.decide(&mut checks).is_admitted(), limit == 50);
        let ttl: i64 = gate.run(&["PTTL", "rate_limit:h:192.0.2.1"]);
        assert!((59_000..=60_000).contains(&ttl), "{ttl}");
    }
    for algorithm in ALL {
        for foreign in ["", "x", "1.5", "0x10", "nan", "inf", "-inf", "s1 2", "b9", "s1 2 3", "b1 2", "-3"] {
            let policy = one("h", algorithm, 50, 60_000);
            let mut checks = checks(&[&policy]);
            let _: () = gate.run(&["SET", "rate_limit:h:192.0.2.1", foreign]);
            assert!(gate.decide(&mut checks).is_admitted(), "{foreign}");
            let ttl: i64 = gate.run(&["PTTL", "rate_limit:h:192.0.2.1"]);
            assert!(ttl > 0 && ttl <= 120_000, "{foreign}: {ttl}");
        }
        let _: () = gate.run(&["DEL", "rate_limit:h:192.0.2.1"]);
        let _: i64 = gate.run(&["LPUSH", "rate_limit:h:192.0.2.1", "1"]);
        let mut checks = checks(&[&one("h", algorithm, 50, 60_000)]);
        assert!(gate.decide(&mut checks).is_admitted());
        let sort = if algorithm == Algorithm::SlidingLog { "zset" } else { "string" };
        assert_eq!(gate.run::<String>(&["TYPE", "rate_limit:h:192.0.2.1"]), sort);
    }
}

#[test]
fn the_reset_time_never_moves_within_a_window() {
    let mut gate = Gate::start();
    let local = Local::new(Settings::default());
    let mut checks = checks(&[&one("w", Algorithm::FixedWindow, 100, 60_000)]);
    let mut resets = Vec::new();
    for round in 0..30 {
        let now = SystemClock.now();
        if round % 2 == 1 {
            assert!(local.refused(&mut checks, now).is_none());
            assert!(checks.get(0).unwrap().known_end > 0);
        }
        let reply = gate.ask(&Question::default(), &mut checks);
        local.observe(&checks, reply.clock, now);
        resets.push(checks.states()[0].reset_at);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(resets.windows(2).all(|pair| pair[0] == pair[1]), "{resets:?}");
}

#[test]
fn a_known_window_costs_one_read_and_one_increment_per_counter() {
    let mut gate = Gate::start();
    let local = Local::new(Settings::default());
    let mut checks = checks(&[&policy("c", Algorithm::FixedWindow, minute_hour_day(50, 500, 5_000))]);
    for _ in 0..11 {
        let now = SystemClock.now();
        assert!(local.refused(&mut checks, now).is_none());
        let guards: [&[u8]; 1] = [b"ban:u"];
        let reply = gate.ask(&Question { guards: &guards, ..Question::default() }, &mut checks);
        local.observe(&checks, reply.clock, now);
    }
    let count = |gate: &mut Gate, name: &str| gate.commands_of(name);
    assert_eq!(count(&mut gate, "mget"), 11);
    assert_eq!(count(&mut gate, "incr"), 33);
    assert_eq!(count(&mut gate, "pexpireat"), 3);
    assert_eq!(count(&mut gate, "set"), 0);
    assert_eq!(count(&mut gate, "time"), 1);
    assert_eq!(count(&mut gate, "pexpiretime"), 3);
}

#[test]
fn knowledge_that_is_out_of_date_changes_no_decision() {
    let mut gate = Gate::start();
    let policy = policy("k", Algorithm::FixedWindow, minute_hour_day(50, 4, 5_000));
    let key = |window: &str| format!("rate_limit:k:192.0.2.1:{window}");
    // Learned by one instance, then the world changes behind its back.
    let knowing = |gate: &mut Gate| {
        let _: () = gate.run(&["FLUSHALL"]);
        let (local, mut checks) = (Local::new(Settings::default()), checks(&[&policy]));
        let now = SystemClock.now();
        let reply = gate.ask(&Question::default(), &mut checks);
        local.observe(&checks, reply.clock, now);
        assert!(local.refused(&mut checks, SystemClock.now()).is_none());
        assert!(checks.iter().all(|check| check.known_end > 0));
        checks
    };
    let counts = |gate: &mut Gate| {
        ["minute", "hour", "day"].map(|window| gate.run::<Option<i64>>(&["GET", &key(window)]).unwrap_or(0))
    };
    for gone in ["minute", "hour", "day"] {
        let mut checks = knowing(&mut gate);
        let _: u64 = gate.run(&["DEL", &key(gone)]);
        assert!(gate.decide(&mut checks).is_admitted());
        let ttl: i64 = gate.run(&["PTTL", &key(gone)]);
        assert!(ttl > 59_000, "{gone}: {ttl}");
        assert_eq!(counts(&mut gate).iter().sum::<i64>(), 5);
    }
    for value in ["4", "9", "x"] {
        let mut checks = knowing(&mut gate);
        let _: u64 = gate.run(&["DEL", &key("minute")]);
        let _: () = gate.run(&["SET", &key("hour"), value, "KEEPTTL"]);
        let admitted = gate.decide(&mut checks).is_admitted();
        assert_eq!(admitted, value == "x");
        let expected = value.parse().map_or([1, 1, 2], |hour| [0, hour, 1]);
        assert_eq!(counts(&mut gate), expected, "{value}");
        assert_eq!(gate.run::<u64>(&["EXISTS", &key("minute")]), u64::from(admitted));
    }
    let mut checks = knowing(&mut gate);
    let _: () = gate.run(&["SET", &key("hour"), "3", "KEEPTTL"]);
    let reply = gate.ask(&Question::default(), &mut checks);
    assert!(reply.decision.unwrap().is_admitted() && reply.clock.is_some(), "the last one tells the time");
    assert_eq!(counts(&mut gate), [2, 4, 2]);
}

#[test]
fn guards_bar_before_anything_is_counted_and_tags_are_reported() {
    let mut gate = Gate::start();
    let mut checks = checks(&[&one("g", Algorithm::FixedWindow, 100, 60_000)]);
    let guards: [&[u8]; 3] = [b"blacklist:j", b"ban:u", b"cutoff:u"];
    let tags: [&[u8]; 2] = [b"tag:1", b"session:u"];
    let question = Question { guards: &guards, tags: &tags, cutoff: Some(2), issued_at: 1_000 };
    let _: () = gate.run(&["SET", "session:u", "\u{1}raw"]);
    let reply = gate.ask(&question, &mut checks);
    assert_eq!(reply.barred, None);
    assert_eq!(reply.tags, [None, Some(bytes::Bytes::from_static(b"\x01raw"))]);
    assert!(reply.decision.unwrap().is_admitted());
    for (key, value, verdict) in [
        ("ban:u", "1", Some(1)),
        ("blacklist:j", "", Some(0)),
        ("cutoff:u", "1000", None),
        ("cutoff:u", "1001", Some(2)),
        ("cutoff:u", "nan", Some(2)),
        ("cutoff:u", "-inf", Some(2)),
        ("cutoff:u", "", Some(2)),
    ] {
        let _: () = gate.run(&["SET", key, value]);
        let before: Option<u64> = gate.run(&["GET", "rate_limit:g:192.0.2.1"]);
        let reply = gate.ask(&question, &mut checks);
        assert_eq!(reply.barred, verdict, "{key} = {value}");
        if verdict.is_some() {
            assert_eq!(reply.decision, None);
            assert_eq!(gate.run::<Option<u64>>(&["GET", "rate_limit:g:192.0.2.1"]), before);
        }
        let _: () = gate.run(&["DEL", key]);
    }
    let mut none = Checks::new();
    assert_eq!(gate.ask(&Question::default(), &mut none).barred, None);
}

#[test]
fn the_script_and_the_pure_rules_agree_on_every_state() {
    let mut gate = Gate::start();
    for algorithm in [Algorithm::SlidingWindow, Algorithm::TokenBucket] {
        let policy = one("x", algorithm, 7, 60).with_cost(2).unwrap();
        let mut checks = checks(&[&policy]);
        let rule = checks.get(0).unwrap().rule;
        let mut model = algorithm::State::default();
        for step in 0..150_u64 {
            let reply = gate.ask(&Question::default(), &mut checks);
            let clock = reply.clock.unwrap();
            let rolled = rule.roll(model, clock);
            assert_eq!(reply.decision.unwrap().is_admitted(), rule.admits(rolled, clock), "{algorithm:?}");
            model = if rule.admits(rolled, clock) { rule.consume(rolled, clock) } else { rolled };
            assert_eq!(checks.states()[0].state, model, "{algorithm:?} at step {step}");
            std::thread::sleep(Duration::from_millis(step * 7 % 13));
        }
    }
}

#[test]
fn replies_that_are_not_the_scripts_are_refused() {
    use redis::Value::{Array, BulkString, Int, Nil, Okay};
    let mut checks = checks(&[&one("d", Algorithm::FixedWindow, 5, 60_000)]);
    let (own, keys) = (checks.clone(), [b"d".to_vec()]);
    let guards: [&[u8]; 1] = [b"g"];
    let batch = batch_of(&Question { guards: &guards, ..Question::default() }, &own, &keys);
    for value in [Okay, Nil, Int(1), Array(vec![Int(1), Int(0)])] {
        assert!(gate::decode(value.clone(), &batch).is_err(), "{value:?}");
    }
    let bad: [&[u8]; 14] = [
        &[],
        &[0],
        &[0, 0],
        &[0, 0, 0],
        &[0, 0, 2],
        &[0, 0, 0xff],
        &[0, 2, 1, 0, 0],
        &[0, 2, 1, 0, 0, 0, 0],
        &[0, 2, 2, 0, 0, 0],
        &[0, 1, 1, 0, 0, 0],
        &[0, 2, 1, 0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        &[0, 2, 1, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0xff, 1],
        &[0, 2, 1, 0, 0xff, 0],
    ];
    for value in bad {
        let decoded: Result<_, MalformedReply> = gate::decode(BulkString(value.to_vec()), &batch);
        assert!(decoded.is_err(), "{value:?}");
    }
    let good = BulkString(vec![0, 2, 1, 9, 1, 0]);
    let outcome = conclude(gate::decode(good, &batch).unwrap(), &batch, &mut checks);
    assert!(outcome.decision.unwrap().is_admitted());
    assert_eq!(checks.states()[0].remaining, 4);
}

// What one instance may know and do between its own replies.

#[test]
fn a_key_over_its_limit_is_refused_without_redis_until_it_would_succeed() {
    let server = Arc::new(Server::start(&[]));
    std::thread::scope(|scope| {
        for (algorithm, skew) in ALL.iter().flat_map(|a| [0, 3_600_000, -3_600_000].map(|skew| (*a, skew))) {
            let mut gate = Gate::on(server.clone());
            scope.spawn(move || refuse_locally(&mut gate, algorithm, skew));
        }
    });
}

// An instance whose clock is off by `skew` hits one key as fast as it can for some windows.
fn refuse_locally(gate: &mut Gate, algorithm: Algorithm, skew: i64) {
    let now = || UnixMillis(SystemClock.now().0.saturating_add_signed(skew));
    let local = Local::new(Settings::default());
    let mut checks = checks(&[&one(&format!("o{}{skew}", algorithm.as_str()), algorithm, 3, 500)]);
    let (mut asked, mut admitted, mut refusals) = (0, 0, 0);
    let start = now();
    // Tripped, a cool-down admits none for an hour.
    let enough = if algorithm == COOL { 3 } else { 6 };
    while (admitted < enough || refusals <= 20) && now().millis_since(start) < 20_000 {
        let sent_at = now();
        if local.refused(&mut checks, sent_at).is_some() {
            refusals += 1;
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        asked += 1;
        let reply = gate.ask(&Question::default(), &mut checks);
        admitted += u64::from(reply.decision.unwrap().is_admitted());
        local.observe(&checks, reply.clock, sent_at);
    }
    assert!(refusals > 20, "{algorithm:?} {skew}: {refusals} refused locally");
    assert!(admitted >= enough, "{algorithm:?} {skew}: {admitted}");
    // A few calls may arrive a little early; none are spent on a key known to be exhausted.
    assert!(asked <= admitted + 40, "{algorithm:?} {skew}: asked {asked} for {admitted}");
}

#[test]
fn counting_goes_on_locally_from_the_last_known_state() {
    let mut gate = Gate::start();
    for algorithm in ALL {
        let local = Local::new(Settings::default());
        let policy = one(&format!("a{}", algorithm.as_str()), algorithm, 10, 3_600_000);
        let mut checks = checks(&[&policy]);
        for _ in 0..6 {
            let now = SystemClock.now();
            let reply = gate.ask(&Question::default(), &mut checks);
            local.observe(&checks, reply.clock, now);
        }
        let outage = || local.decide(&mut checks.clone(), SystemClock.now()).is_admitted();
        assert_eq!((0..20).filter(|_| outage()).count(), 4, "{algorithm:?}");
        // What was counted alone is no knowledge about the store.
        assert!(local.refused(&mut checks, SystemClock.now()).is_none());
    }
}

#[test]
fn without_the_store_each_policy_does_as_it_says() {
    let local = Local::new(Settings::default());
    let named =
        |name, on_failure| one(name, Algorithm::FixedWindow, 2, 60_000).with_on_store_failure(on_failure);
    let count = named("count", OnStoreFailure::Local);
    let (allow, deny) = (named("allow", OnStoreFailure::Allow), named("deny", OnStoreFailure::Deny));
    let outcome = |policies: &[&Policy]| match local.decide_without_store(
        &mut checks(policies),
        UnixMillis(7),
        crate::limits::local::Outage { instances: 1, may_have_counted: false },
    ) {
        Decision::Admitted { .. } => 0,
        Decision::Refused(refused) => refused.violated.bits(),
    };
    assert_eq!(outcome(&[&count, &allow, &deny]), 4);
    assert_eq!([(); 4].map(|()| outcome(&[&allow, &count])), [0, 0, 2, 2]);
    assert_eq!([(); 4].map(|()| outcome(&[&allow])), [0; 4]);
    assert_eq!(local.len(), 1);
}

#[test]
fn a_raised_limit_or_a_lower_cost_is_not_refused_by_old_knowledge() {
    let (mut gate, local) = (Gate::start(), Local::new(Settings::default()));
    // A window that tripped stays so, whatever its limit becomes.
    for algorithm in ALL.into_iter().filter(|algorithm| *algorithm != COOL) {
        let name = algorithm.as_str();
        let limited = |limit, cost| one(name, algorithm, limit, 3_600_000).with_cost(cost).unwrap();
        let mut dear = checks(&[&limited(5, 2)]);
        let now = SystemClock.now();
        for _ in 0..3 {
            let reply = gate.ask(&Question::default(), &mut dear);
            local.observe(&dear, reply.clock, now);
        }
        assert!(local.refused(&mut dear, now).is_some());
        for (policy, admitted) in [(limited(5, 1), true), (limited(6, 2), true), (limited(5, 2), false)] {
            let mut checks = checks(&[&policy]);
            assert_eq!(local.refused(&mut checks, SystemClock.now()).is_none(), admitted);
        }
        let mut raised = checks(&[&limited(6, 2)]);
        assert!(gate.decide(&mut raised).is_admitted(), "{name}");
    }
}

#[test]
fn more_checks_than_fit_are_an_error_and_repeated_policies_count_once() {
    let policies: Vec<_> = (0..33).map(|i| one(&format!("p{i}"), Algorithm::FixedWindow, 1, 1)).collect();
    let plans = Plans::standard().unwrap();
    let caller = Caller {
        ip: "192.0.2.1",
        user: None,
        token: None,
        api_token: None,
        own_limits: [None; 3],
        route: "r",
        plan: plans.anonymous(),
        multiplier: 1.0,
        request: crate::limits::Parts::default(),
    };
    let (space, mut checks) = (KeySpace::new("gw:", false), Checks::new());
    let added: Vec<_> =
        policies.iter().map(|policy| checks.add(&space, 0, policy, &caller, 1).is_ok()).collect();
    assert_eq!((added.iter().filter(|ok| **ok).count(), added[32]), (32, false));
    checks.begin(UnixMillis(0));
    assert!((0..3).all(|index| checks.add(&space, index, &policies[0], &caller, 1).is_ok()));
    assert_eq!(checks.len(), 1);
    assert_eq!(checks.key(checks.get(0).unwrap()), b"gw:rate_limit:p0:192.0.2.1");
}

#[test]
fn a_reset_key_is_asked_for_again() {
    let mut gate = Gate::start();
    let local = Local::new(Settings { refusal_life: Some(Duration::from_secs(5)), ..Settings::default() });
    let mut checks = checks(&[&one("r", Algorithm::FixedWindow, 1, 3_600_000)]);
    let now = SystemClock.now();
    let reply = gate.ask(&Question::default(), &mut checks);
    local.observe(&checks, reply.clock, now);
    assert!(local.refused(&mut checks, now).is_some());
    assert!(local.refused(&mut checks, now.plus(Duration::from_millis(6_500))).is_none());
    // The clock of this instance went back: what it learned in the future is not believed.
    assert!(local.refused(&mut checks, UnixMillis(now.0 - 3_600_000)).is_none());
    local.forget(checks.get(0).unwrap().hash);
    assert!(local.refused(&mut checks, now).is_none());
}

#[test]
fn a_penalising_policy_is_never_refused_without_the_store() {
    let local = Local::new(Settings::default());
    let strict = one("strict", Algorithm::FixedWindow, 0, 60_000);
    let abuse = one("abuse", Algorithm::FixedWindow, 9, 60_000).with_penalise(true);
    assert!(local.refused(&mut checks(&[&strict]), UnixMillis(1)).is_some());
    assert!(local.refused(&mut checks(&[&strict, &abuse]), UnixMillis(1)).is_none());
}

#[test]
fn overtaking_replies_do_not_lower_a_count() {
    let local = Local::new(Settings::default());
    let mut checks = checks(&[&one("o", Algorithm::FixedWindow, 3, 60_000)]);
    let (own, keys) = (checks.clone(), [b"o".to_vec()]);
    let batch = batch_of(&Question::default(), &own, &keys);
    for count in [3, 2] {
        // Admitted at 1,000,000 in a window that ends at 1,060,000.
        let reply = vec![0xce, 0, 0x0f, 0x42, 0x40, 2, 1, 0xce, 0, 0x10, 0x2c, 0xa0, count, 0];
        let decoded = gate::decode(redis::Value::BulkString(reply), &batch).unwrap();
        let outcome = conclude(decoded, &batch, &mut checks);
        local.observe(&checks, outcome.clock, UnixMillis(1_000_000));
    }
    assert!(local.refused(&mut checks, UnixMillis(1_000_001)).is_some());
    assert!(local.refused(&mut checks, UnixMillis(1_060_000)).is_none());
}

#[test]
fn millions_of_keys_do_not_grow_the_memory_and_keep_the_exhausted() {
    let local = Local::new(Settings { capacity: 4_096, refusal_life: None });
    let now = UnixMillis(1_700_000_000_000);
    let attacker = one("attacker", Algorithm::FixedWindow, 1, 3_600_000);
    let mut known = checks(&[&attacker]);
    assert!(local.decide(&mut known, now).is_admitted());
    let flood = Policy::new(
        "flood",
        &[KeyPart::User],
        Algorithm::FixedWindow,
        LimitSource::Windows(vec![window(60, Duration::from_secs(60))]),
    )
    .unwrap();
    let space = KeySpace::default();
    for user in 0..100_000 {
        let mut checks = checks_in(&space, &[&flood], &user.to_string(), now);
        assert!(local.decide(&mut checks, now).is_admitted());
    }
    assert!(local.len() <= 4_096);
    assert!(!local.decide(&mut known, now).is_admitted());
}

#[test]
fn a_clock_that_goes_back_blocks_nobody_for_longer_than_two_periods() {
    for algorithm in ALL {
        let local = Local::new(Settings::default());
        let mut checks = checks(&[&one("c", algorithm, 2, 60_000)]);
        let now = UnixMillis(1_700_000_000_000);
        while local.decide(&mut checks, now).is_admitted() {}
        let back = UnixMillis(now.0 - 86_400_000);
        local.decide(&mut checks, back);
        let longest = if let Algorithm::CoolDown(cool_down) = algorithm {
            Duration::from_millis(cool_down.quiet_ms)
        } else {
            Duration::from_secs(121)
        };
        assert!(local.decide(&mut checks, back.plus(longest)).is_admitted(), "{algorithm:?}");
    }
}

#[test]
fn redis_with_local_knowledge_decides_like_memory_on_random_traces() {
    let mut gate = Gate::start();
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..40 {
        let policies: Vec<_> = (0..random.usize(1..5))
            .map(|index| {
                // Fixed windows more often: they have the quick way.
                let algorithm = ALL[random.usize(0..6).saturating_sub(3)];
                let windows = [60, 3_600, 86_400].map(|hours| {
                    let period = Duration::from_secs(hours * 3_600);
                    window(random.u64(1..12), period.min(policy::MAX_PERIOD))
                });
                let limit = LimitSource::Windows(windows[..random.usize(1..3)].to_vec());
                let policy = Policy::new(&format!("r{round}-{index}"), &[KeyPart::User], algorithm, limit);
                policy.unwrap().with_cost(random.u32(1..3)).unwrap().with_penalise(random.u8(0..6) == 0)
            })
            .collect();
        let (knowledge, memory) = (Local::new(Settings::default()), Local::new(Settings::default()));
        let now = SystemClock.now();
        for _ in 0..40 {
            let some: Vec<_> = policies.iter().filter(|_| random.u8(0..4) > 0).collect();
            let mut asked = checks(&some);
            let mut expected = asked.clone();
            let memory = memory.decide(&mut expected, now);
            let sent_at = SystemClock.now();
            let decision = if let Some(refused) = knowledge.refused(&mut asked, sent_at) {
                // One instance may know less about the other counters, never anything wrong about this one.
                assert!(!memory.is_admitted() && refused.retry_at > refused.at);
                continue;
            } else {
                let reply = gate.ask(&Question::default(), &mut asked);
                knowledge.observe(&asked, reply.clock, sent_at);
                reply.decision.unwrap()
            };
            let violated = |decision: Decision| match decision {
                Decision::Admitted { .. } => 0,
                Decision::Refused(refused) => refused.violated.bits(),
            };
            assert_eq!(violated(decision), violated(memory));
            let remaining =
                |checks: &Checks| -> Vec<_> { checks.states().iter().map(|s| s.remaining).collect() };
            assert_eq!(remaining(&asked), remaining(&expected));
        }
    }
    let keys: Vec<String> = gate.run(&["KEYS", "*"]);
    assert!(keys.len() > 50);
    assert!(keys.iter().all(|key| gate.run::<i64>(&["PTTL", key]) > 0));
}

#[test]
fn concurrent_requests_over_crossing_keys_never_wait_for_each_other_forever() {
    let local = Local::new(Settings::default());
    let policies: Vec<_> =
        (0..8).map(|i| one(&format!("p{i}"), Algorithm::FixedWindow, 1_000, 60_000)).collect();
    let forward: Vec<_> = policies.iter().collect();
    let backward: Vec<_> = policies.iter().rev().collect();
    let space = KeySpace::default();
    let admitted = Mutex::new(0);
    std::thread::scope(|scope| {
        for order in [&forward, &backward, &forward, &backward] {
            scope.spawn(|| {
                let mut checks = checks_in(&space, order, "u", UnixMillis(5));
                let count =
                    (0..500).filter(|_| local.decide(&mut checks, UnixMillis(5)).is_admitted()).count();
                *admitted.lock() += count;
            });
        }
    });
    assert_eq!(*admitted.lock(), 1_000);
}
