//! What the memory promises, under a clock of the test's own: that it stays small, that shares add up, and what it
//! remembers for the store.

use std::time::Duration;

use super::*;
use crate::limits::plan::Plans;
use crate::limits::policy::{KeyPart, LimitSource, Policy, Window};
use crate::limits::subject::{Caller, KeySpace};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn after(ms: u64) -> UnixMillis {
    NOW.plus(Duration::from_millis(ms))
}

fn policy(name: &str, algorithm: Algorithm, limit: u64, period_ms: u64) -> Policy {
    let window = Window::new(limit, Duration::from_millis(period_ms)).unwrap();
    Policy::new(name, &[KeyPart::Ip], algorithm, LimitSource::Windows(vec![window])).unwrap()
}

fn checks(policies: &[&Policy]) -> Checks {
    checks_of(&KeySpace::default(), policies, "192.0.2.1")
}

fn checks_of(space: &KeySpace, policies: &[&Policy], ip: &str) -> Checks {
    let plans = Plans::standard().unwrap();
    let caller = Caller {
        ip,
        user: None,
        token: None,
        api_token: None,
        own_limits: [None; 3],
        route: "r",
        plan: plans.anonymous(),
        multiplier: 1.0,
        request: crate::limits::Parts::default(),
    };
    let mut checks = Checks::new();
    checks.begin(NOW);
    for (index, policy) in (0..).zip(policies) {
        checks.add(space, index, policy, &caller, 1).unwrap();
    }
    checks
}

fn among(instances: u32) -> Outage {
    Outage { instances, may_have_counted: false }
}

/// What the store would have said after `used` requests of each check.
fn learn(local: &Local, checks: &mut Checks, state: State) {
    for (_, answer) in checks.pairs() {
        answer.state = state;
    }
    checks.conclude(Violated::default(), NOW);
    local.observe(checks, Some(NOW), NOW);
}

fn admitted(local: &Local, checks: &mut Checks, at: UnixMillis, instances: u32) -> usize {
    (0..200).filter(|_| local.decide_without_store(checks, at, among(instances)).is_admitted()).count()
}

fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

fn resident_bytes() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4_096)
}

/// So many keys that were never seen before, one request each.
fn flood(local: &Local, policy: &Policy, keys: std::ops::Range<u64>) {
    let mut one_shot = checks(&[policy]);
    for number in keys {
        for (check, _) in one_shot.pairs() {
            check.hash = scatter(number);
        }
        assert!(local.decide(&mut one_shot, after(number % 50_000)).is_admitted());
    }
}

fn survives_a_flood_of(keys: u64) {
    let local = Local::new(Settings::default());
    let (login, general) = (
        policy("login", Algorithm::FixedWindow, 5, 900_000),
        policy("ip", Algorithm::FixedWindow, 60, 60_000),
    );
    let (mut lock, mut attacker) = (checks(&[&login]), checks(&[&general]));
    assert_eq!((0..9).filter(|_| local.decide(&mut lock, NOW).is_admitted()).count(), 5);
    assert_eq!((0..99).filter(|_| local.decide(&mut attacker, NOW).is_admitted()).count(), 60);

    // Enough to fill the table.
    flood(&local, &general, 0..1 << 19);
    let (entries, bytes, resident) = (local.len(), local.bytes(), resident_bytes());
    flood(&local, &general, 1 << 19..keys);
    assert!(entries <= 1 << 18 && local.len() <= 1 << 18, "{}", local.len());
    assert_eq!(local.bytes(), bytes);
    assert!(bytes <= (1 << 18) * 64, "{bytes}");
    if let (Some(before), Some(after)) = (resident, resident_bytes()) {
        // Other tests run beside this one; the keys would be hundreds of megabytes.
        assert!(after.saturating_sub(before) < 64 << 20, "{before} {after}");
    }
    assert!(
        !local.decide(&mut attacker, after(59_000)).is_admitted(),
        "the attacker is still over its limit"
    );
    assert!(!local.decide(&mut lock, after(899_000)).is_admitted(), "the login lock still holds");
    assert!(local.decide(&mut lock, after(900_001)).is_admitted());
}

#[test]
fn a_flood_of_new_keys_takes_no_memory_and_frees_no_attacker() {
    survives_a_flood_of(2_000_000);
}

#[test]
#[ignore = "ten million keys: for an optimised build"]
fn ten_million_new_keys_take_no_memory_and_free_no_attacker() {
    survives_a_flood_of(10_000_000);
}

#[test]
fn a_flood_of_sliding_logs_takes_no_memory_and_frees_no_attacker() {
    let local = Local::new(Settings { capacity: 1 << 12, ..Settings::default() });
    let strict = policy("strict", Algorithm::SlidingLog, 5, 900_000);
    let mut lock = checks(&[&strict]);
    assert_eq!((0..9).filter(|_| local.decide(&mut lock, NOW).is_admitted()).count(), 5);
    flood(&local, &policy("log", Algorithm::SlidingLog, 60, 60_000), 0..100_000);
    let (len, bytes) = (local.len(), local.bytes());
    flood(&local, &policy("log", Algorithm::SlidingLog, 60, 60_000), 100_000..200_000);
    assert!(len <= 1 << 12 && local.len() <= 1 << 12, "{}", local.len());
    assert!(local.bytes() < bytes + bytes / 8, "{bytes} {}", local.bytes());
    assert!(!local.decide(&mut lock, after(899_999)).is_admitted());
    assert!(local.decide(&mut lock, after(900_000)).is_admitted());
}

#[test]
fn full_logs_get_coarser_and_never_admit_more() {
    let local = Local::new(Settings { capacity: 512, ..Settings::default() });
    let policy = policy("log", Algorithm::SlidingLog, 4_000, 60_000);
    let space = KeySpace::default();
    for key in 0..400_u64 {
        let mut checks = checks_of(&space, &[&policy], &format!("10.0.0.{key}"));
        for request in 0..300 {
            local.decide(&mut checks, after(key + request * 10));
        }
    }
    assert!(local.bytes() < 64 * FEWEST * 16 * 2, "{}", local.bytes());

    let mut last = checks_of(&space, &[&policy], "192.0.2.9");
    let times: Vec<u64> = (0..30_000)
        .map(|n| n * 7)
        .filter(|ms| local.decide(&mut last, after(10_000 + ms)).is_admitted())
        .collect();
    assert!(times.len() > 8_000, "{}", times.len());
    for window in times.windows(4_001) {
        assert!(window[4_000] - window[0] >= 60_000);
    }
}

const FEWEST: usize = 8_192;

#[test]
fn a_sliding_log_admits_its_limit_in_any_period_exactly() {
    let local = Local::new(Settings::default());
    let mut checks = checks(&[&policy("log", Algorithm::SlidingLog, 3, 1_000)]);
    let outcomes: Vec<u64> = [0, 100, 900, 950, 999, 1_000, 1_050, 1_099, 1_100, 1_500, 1_899, 1_900]
        .into_iter()
        .filter(|ms| local.decide(&mut checks, after(*ms)).is_admitted())
        .collect();
    assert_eq!(outcomes, [0, 100, 900, 1_000, 1_100, 1_900]);
    let Decision::Refused(refused) = local.decide(&mut checks, after(1_950)) else { panic!("admitted") };
    assert_eq!(refused.retry_at, after(2_000));
    assert_eq!(checks.states()[0].state.used, 3);
}

#[test]
fn a_log_beside_other_counters_consumes_with_them_or_not_at_all() {
    let local = Local::new(Settings::default());
    let log = policy("log", Algorithm::SlidingLog, 5, 60_000);
    let fixed = policy("fixed", Algorithm::FixedWindow, 2, 60_000);
    let mut both = checks(&[&log, &fixed]);
    assert_eq!((0..9).filter(|_| local.decide(&mut both, NOW).is_admitted()).count(), 2);
    assert_eq!(both.states()[0].state.used, 2);
    let abuse = policy("abuse", Algorithm::SlidingLog, 4, 60_000).with_penalise(true);
    let mut strict = checks(&[&fixed, &abuse]);
    let bits: Vec<u32> = (0..6)
        .map(|_| match local.decide(&mut strict, NOW) {
            Decision::Admitted { .. } => 0,
            Decision::Refused(refused) => refused.violated.bits(),
        })
        .collect();
    assert_eq!(bits, [0, 0, 1, 1, 3, 3]);
    assert_eq!(strict.states()[1].state.used, 4, "no more than decides");
}

#[test]
fn a_policy_that_only_watches_refuses_nobody_and_is_seen() {
    let local = Local::new(Settings::default());
    let watched = policy("watched", Algorithm::FixedWindow, 2, 60_000).with_shadow(true);
    let enforced = policy("enforced", Algorithm::FixedWindow, 4, 60_000);
    let mut checks = checks(&[&watched, &enforced]);
    let seen: Vec<(bool, u32)> = (0..6)
        .map(|_| (local.decide(&mut checks, NOW).is_admitted(), checks.shadow_violated().bits()))
        .collect();
    assert_eq!(seen, [(true, 0), (true, 0), (true, 1), (true, 1), (false, 1), (false, 1)]);
    let used: Vec<u64> = checks.states().iter().map(|state| state.state.used).collect();
    assert_eq!(used, [2, 4], "it consumes for what fits it");
    checks.begin(NOW);
    assert!(checks.shadow_violated().is_empty());
}

#[test]
fn what_is_known_to_be_over_refuses_here_unless_it_only_watches_or_must_hear_of_it() {
    let over = State { anchor: NOW.0 + 50_000, used: 5, before: 0 };
    let plain = policy("p", Algorithm::FixedWindow, 5, 60_000);
    let cool = CoolDownOf(60_000).policy();
    for (policy, refuses) in [
        (plain.clone(), true),
        (plain.clone().with_shadow(true), false),
        (plain.with_penalise(true), false),
        (cool, false),
    ] {
        let (local, mut checks) = (Local::new(Settings::default()), checks(&[&policy]));
        learn(&local, &mut checks, over);
        assert_eq!(local.refused(&mut checks, after(1)).is_some(), refuses);
    }
}

#[test]
fn what_a_log_reported_to_one_cost_and_limit_refuses_only_such_requests() {
    let strict = policy("log", Algorithm::SlidingLog, 5, 60_000);
    let (dear, cheap) = (strict.clone().with_cost(4).unwrap(), strict);
    let wider = policy("log", Algorithm::SlidingLog, 50, 60_000).with_cost(4).unwrap();
    let space = KeySpace::default();
    let asked = |policy: &Policy| checks_of(&space, &[policy], "192.0.2.1");
    let full = State { anchor: NOW.0 + 30_000, used: 5, before: NOW.0 + 50_000 };
    let local = Local::new(Settings::default());
    learn(&local, &mut asked(&dear), full);
    assert!(local.refused(&mut asked(&dear), after(1)).is_some());
    for other in [&cheap, &wider] {
        assert!(local.refused(&mut asked(other), after(1)).is_none(), "the store is asked");
    }
    learn(&local, &mut asked(&cheap), full);
    assert!(local.refused(&mut asked(&cheap), after(1)).is_some());
    assert!(local.refused(&mut asked(&dear), after(1)).is_none());
}

struct CoolDownOf(u64);

impl CoolDownOf {
    fn policy(&self) -> Policy {
        let cool_down = crate::limits::CoolDown { interval_ms: self.0, quiet_ms: self.0 };
        policy("cool", Algorithm::CoolDown(cool_down), 5, 60_000)
    }
}

#[test]
fn windows_that_begin_during_an_outage_admit_the_limit_and_at_most_one_more_per_instance() {
    for algorithm in
        [Algorithm::FixedWindow, Algorithm::SlidingWindow, Algorithm::TokenBucket, Algorithm::SlidingLog]
    {
        for (limit, instances) in [(10, 1), (10, 2), (10, 3), (3, 5), (100, 7), (0, 4)] {
            let policy = policy("p", algorithm, limit, 60_000);
            let total: usize = (0..instances)
                .map(|_| admitted(&Local::new(Settings::default()), &mut checks(&[&policy]), NOW, instances))
                .sum();
            let (limit, instances) = (usize::try_from(limit).unwrap(), instances as usize);
            assert!(total >= limit, "{algorithm:?} {limit} {instances}: {total}");
            assert!(total < limit + instances, "{algorithm:?} {limit} {instances}: {total}");
        }
    }
}

#[test]
fn of_the_window_in_which_the_store_went_away_what_was_left_is_shared() {
    let states = |used: u64| {
        let start = NOW.0 - NOW.0 % 60_000;
        [
            (Algorithm::FixedWindow, State { anchor: NOW.0 + 30_000, used, before: 0 }),
            (Algorithm::SlidingWindow, State { anchor: start, used, before: 0 }),
            (Algorithm::TokenBucket, State { anchor: NOW.0, used: used * 60_000, before: 0 }),
            (Algorithm::SlidingLog, State { anchor: NOW.0 + 1, used, before: NOW.0 + 30_000 }),
        ]
    };
    for used in [0, 1, 4, 7, 10, 12] {
        for (algorithm, state) in states(used) {
            for instances in 1..5_u32 {
                let policy = policy("p", algorithm, 10, 60_000);
                let total: usize = (0..instances)
                    .map(|_| {
                        let (local, mut checks) = (Local::new(Settings::default()), checks(&[&policy]));
                        learn(&local, &mut checks, state);
                        let part = admitted(&local, &mut checks, NOW, instances);
                        let (left, instances) = (10_u64.saturating_sub(used), u64::from(instances));
                        let due = match algorithm {
                            // The fraction of a request is filled up in time.
                            Algorithm::TokenBucket if used > 0 => left / instances,
                            _ => left.div_ceil(instances),
                        };
                        assert_eq!(part as u64, due, "{algorithm:?} {used}");
                        assert_eq!(checks.states()[0].limit, 10, "the client is told the whole limit");
                        assert_eq!(checks.states()[0].remaining, 0);
                        part
                    })
                    .sum();
                let all = u64::try_from(total).unwrap() + used;
                assert!(all < 10.max(used) + u64::from(instances), "{algorithm:?} {used} {instances}: {all}");
            }
        }
    }
}

#[test]
fn an_instance_that_had_not_heard_keeps_the_window_within_twice_the_limit() {
    let policy = policy("p", Algorithm::FixedWindow, 10, 60_000);
    let (informed, ignorant) = (Local::new(Settings::default()), Local::new(Settings::default()));
    let mut checks = checks(&[&policy]);
    learn(&informed, &mut checks, State { anchor: NOW.0 + 30_000, used: 10, before: 0 });
    assert_eq!(admitted(&informed, &mut checks, NOW, 2), 0);
    assert_eq!(admitted(&ignorant, &mut checks, NOW, 2), 5);
}

#[test]
fn a_share_is_at_least_one_request_whatever_it_costs() {
    let policy = policy("p", Algorithm::FixedWindow, 10, 60_000).with_cost(4).unwrap();
    assert_eq!(admitted(&Local::new(Settings::default()), &mut checks(&[&policy]), NOW, 5), 1);
}

#[test]
fn a_new_window_gets_a_new_share_and_a_shared_bucket_refills_at_its_share() {
    let local = Local::new(Settings::default());
    let mut fixed = checks(&[&policy("p", Algorithm::FixedWindow, 10, 60_000)]);
    learn(&local, &mut fixed, State { anchor: NOW.0 + 30_000, used: 8, before: 0 });
    assert_eq!(admitted(&local, &mut fixed, NOW, 2), 1);
    assert_eq!(admitted(&local, &mut fixed, after(30_000), 2), 5);
    let mut bucket = checks(&[&policy("b", Algorithm::TokenBucket, 10, 60_000)]);
    assert_eq!(admitted(&local, &mut bucket, NOW, 2), 5);
    assert_eq!(admitted(&local, &mut bucket, after(24_000), 2), 2);
}

#[test]
fn each_policy_of_one_request_does_what_it_says() {
    let local = Local::new(Settings::default());
    let of = |name: &str, word| policy(name, Algorithm::FixedWindow, 2, 60_000).with_on_store_failure(word);
    let (here, open, shut) = (
        of("local", OnStoreFailure::Local),
        of("allow", OnStoreFailure::Allow),
        of("deny", OnStoreFailure::Deny),
    );
    let abuse = of("abuse", OnStoreFailure::Local).with_penalise(true);
    let used = |checks: &Checks| checks.states().iter().map(|state| state.state.used).collect::<Vec<_>>();

    let mut denied = checks(&[&here, &open, &shut, &abuse]);
    for _ in 0..5 {
        let Decision::Refused(refused) = local.decide_without_store(&mut denied, NOW, among(1)) else {
            panic!("admitted")
        };
        assert_eq!(refused.violated.bits(), 4);
    }
    assert_eq!(used(&denied), [0, 0, 0, 0], "nobody pays for the store's absence");

    let mut mixed = checks(&[&here, &open, &shut.clone().with_shadow(true)]);
    let seen: Vec<(bool, u32)> = (0..3)
        .map(|_| {
            let decision = local.decide_without_store(&mut mixed, NOW, among(1));
            (decision.is_admitted(), mixed.shadow_violated().bits())
        })
        .collect();
    assert_eq!(seen, [(true, 4), (true, 4), (false, 4)]);
    assert_eq!(used(&mixed), [2, 0, 0]);
    assert_eq!(local.take_owed(NOW, |_| true).len(), 1);
}

#[test]
fn admissions_of_an_outage_are_owed_with_their_window_until_it_is_over() {
    let local = Local::new(Settings::default());
    let mut checks = checks(&[&policy("p", Algorithm::FixedWindow, 10, 60_000)]);
    learn(&local, &mut checks, State { anchor: NOW.0 + 30_000, used: 4, before: 0 });
    assert!(!local.owes());
    assert_eq!(admitted(&local, &mut checks, NOW, 2), 3);
    assert!(local.owes());
    let owed = local.take_owed(NOW, |_| true);
    assert!(!local.owes());
    assert_eq!(owed.len(), 1);
    assert_eq!(&*owed[0].key, b"rate_limit:p:192.0.2.1");
    assert_eq!((owed[0].rule.limit, owed[0].state.used, owed[0].state.anchor), (10, 3, NOW.0 + 30_000));

    // What could not be written joins what comes up in the same window.
    let window = after(30_000);
    local.give_back(owed[0].clone());
    assert!(local.owes());
    assert_eq!(local.take_owed(after(29_999), |_| true).len(), 1);
    local.give_back(owed[0].clone());
    assert_eq!(local.take_owed(window, |_| true).len(), 0, "its window is over");

    // Another window begins: only that is owed.
    local.give_back(owed[0].clone());
    assert_eq!(admitted(&local, &mut checks, window, 2), 5);
    let owed = local.take_owed(window, |_| true);
    assert_eq!((owed[0].state.used, owed[0].state.anchor), (5, window.0 + 60_000));
}

#[test]
fn a_refund_makes_room_for_one_and_is_owed_no_more() {
    use Algorithm::{FixedWindow, SlidingLog, SlidingWindow, TokenBucket};
    for algorithm in [FixedWindow, SlidingWindow, TokenBucket, SlidingLog] {
        let local = Local::new(Settings::default());
        let mut checks = checks(&[&policy("p", algorithm, 3, 60_000)]);
        assert_eq!(admitted(&local, &mut checks, NOW, 1), 3, "{algorithm:?}");
        let (check, state) = (checks.get(0).unwrap().clone(), checks.states()[0].state);
        local.refund(check.hash, check.rule, state, false);
        assert_eq!(admitted(&local, &mut checks, NOW, 1), 1, "{algorithm:?}");
        local.refund(check.hash, check.rule, state, false);
        let owed = local.take_owed(NOW, |_| true).remove(0);
        let unit = if algorithm == TokenBucket { 60_000 } else { 1 };
        assert_eq!(owed.state.used, 2 * unit, "{algorithm:?}");
    }
}

#[test]
fn a_refund_of_an_older_request_leaves_the_newer_ones_of_a_log() {
    let local = Local::new(Settings::default());
    let mut checks = checks(&[&policy("p", Algorithm::SlidingLog, 2, 1_000)]);
    assert!(local.decide(&mut checks, NOW).is_admitted());
    let (check, first) = (checks.get(0).unwrap().clone(), checks.states()[0].state);
    assert!(local.decide(&mut checks, after(500)).is_admitted());
    local.refund(check.hash, check.rule, first, true);
    assert!(local.decide(&mut checks, after(600)).is_admitted());
    assert!(!local.decide(&mut checks, after(1_001)).is_admitted(), "two within the last second");
    assert!(local.decide(&mut checks, after(1_501)).is_admitted());
}

#[test]
fn a_refund_ends_the_knowledge_that_a_counter_of_the_store_is_full() {
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingLog] {
        let local = Local::new(Settings::default());
        let mut checks = checks(&[&policy("p", algorithm, 1, 60_000)]);
        let full = State { anchor: NOW.0 + 60_000, used: 1, before: 0 };
        let full =
            if algorithm == Algorithm::SlidingLog { State { before: NOW.0 + 60_000, ..full } } else { full };
        learn(&local, &mut checks, full);
        assert!(local.refused(&mut checks, NOW).is_some(), "{algorithm:?}");
        let check = checks.get(0).unwrap().clone();
        local.refund(check.hash, check.rule, full, true);
        assert!(local.refused(&mut checks, NOW).is_none(), "{algorithm:?}");
    }
}

#[test]
fn a_counter_that_somebody_else_took_something_off_is_no_longer_full() {
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
        let local = Local::new(Settings::default());
        let mut checks = checks(&[&policy("p", algorithm, 5, 60_000)]);
        let anchor = match algorithm {
            Algorithm::FixedWindow => NOW.0 + 30_000,
            _ => NOW.0 - NOW.0 % 60_000,
        };
        let counted = |used| State { anchor, used, before: 0 };
        learn(&local, &mut checks, counted(3));
        learn(&local, &mut checks, counted(2));
        local.look(&mut checks, NOW);
        assert_eq!(checks.states()[0].state.used, 3, "a reply that was overtaken");
        learn(&local, &mut checks, counted(5));
        assert!(local.refused(&mut checks, NOW).is_some());
        learn(&local, &mut checks, counted(4));
        assert!(
            local.refused(&mut checks, NOW).is_some(),
            "of the same moment: which came later is not known"
        );
        // The reply to a request that was counted after a refund.
        for (_, answer) in checks.pairs() {
            answer.state = counted(4);
        }
        checks.conclude(Violated::default(), after(20));
        local.observe(&checks, Some(after(20)), after(20));
        assert!(local.refused(&mut checks, after(21)).is_none(), "{algorithm:?}");
        local.look(&mut checks, after(21));
        assert_eq!(checks.states()[0].remaining, 1);
    }
}

#[test]
fn what_is_given_back_adds_up_within_its_window_only() {
    for algorithm in
        [Algorithm::FixedWindow, Algorithm::SlidingWindow, Algorithm::TokenBucket, Algorithm::SlidingLog]
    {
        let local = Local::new(Settings::default());
        let mut checks = checks(&[&policy("p", algorithm, 10, 60_000)]);
        let decide = |checks: &mut Checks| {
            assert!(local.decide_without_store(checks, NOW, among(1)).is_admitted(), "{algorithm:?}");
        };
        decide(&mut checks);
        let first = local.take_owed(NOW, |_| true).remove(0);
        decide(&mut checks);
        local.give_back(first);
        let both = local.take_owed(NOW, |_| true).remove(0);
        let unit = if algorithm == Algorithm::TokenBucket { 60_000 } else { 1 };
        assert_eq!(both.state.used, 2 * unit, "{algorithm:?}");
        assert!(!local.owes());
        if algorithm == Algorithm::SlidingLog {
            assert_eq!(both.stamps().map(|(_, count)| count).sum::<u64>(), 2);
        }
    }
}

#[test]
fn nothing_is_owed_for_what_the_store_may_know_or_somebody_reset() {
    let local = Local::new(Settings::default());
    let mut checks = checks(&[&policy("p", Algorithm::FixedWindow, 10, 60_000)]);
    let slow = Outage { instances: 1, may_have_counted: true };
    assert!(local.decide_without_store(&mut checks, NOW, slow).is_admitted());
    assert!(!local.owes());
    assert!(local.decide_without_store(&mut checks, NOW, among(1)).is_admitted());
    local.forget(checks.get(0).unwrap().hash);
    assert!(!local.owes() && local.take_owed(NOW, |_| true).is_empty());
    assert!(local.decide_without_store(&mut checks, NOW, among(1)).is_admitted());
    local.clear();
    assert!(!local.owes() && local.is_empty());
}

#[test]
fn what_is_owed_is_bounded_and_told_to_be_so() {
    let local = Local::new(Settings { capacity: 512, ..Settings::default() });
    let policy = policy("p", Algorithm::FixedWindow, 10, 60_000);
    let mut one_shot = checks(&[&policy]);
    for number in 0..20_000_u64 {
        for (check, _) in one_shot.pairs() {
            check.hash = scatter(number);
        }
        assert!(local.decide_without_store(&mut one_shot, NOW, among(1)).is_admitted());
    }
    let untold = local.take_untold();
    assert_eq!(local.take_untold(), 0);
    let owed = local.take_owed(NOW, |_| true).len();
    assert!(owed <= 64 * 64);
    assert_eq!(owed + untold, 20_000);
}

#[test]
fn a_cool_down_trips_here_stays_tripped_while_somebody_tries_and_opens_when_it_is_quiet() {
    let local = Local::new(Settings::default());
    let mut checks = checks(&[&CoolDownOf(60_000).policy()]);
    let mut admits = |ms: u64| local.decide(&mut checks, after(ms)).is_admitted();
    assert!((0..5).all(&mut admits));
    assert!(!admits(1_000), "it trips");
    assert!(!admits(60_500), "the window has ended, the trip has not");
    assert!(admits(61_000), "one per interval");
    assert!(!admits(61_001));
    assert!(!admits(120_000));
    assert!(admits(121_000));
    assert!(admits(181_000), "quiet for long enough");
    assert!((0..4).all(|_| admits(181_001)), "open again");
}

#[test]
fn a_refusal_elsewhere_renews_a_tripped_cool_down_and_a_watching_one_trips_by_itself() {
    let local = Local::new(Settings::default());
    let cool_down = crate::limits::CoolDown { interval_ms: 30_000, quiet_ms: 60_000 };
    let cool = policy("cool", Algorithm::CoolDown(cool_down), 5, 60_000);
    let strict = policy("strict", Algorithm::FixedWindow, 6, 600_000);
    let mut both = checks(&[&cool, &strict]);
    assert_eq!((0..7).filter(|_| local.decide(&mut both, NOW).is_admitted()).count(), 5);
    assert!(local.decide(&mut both, after(30_000)).is_admitted());
    for ms in [60_000, 70_000, 125_000] {
        let Decision::Refused(refused) = local.decide(&mut both, after(ms)) else { panic!("admitted") };
        assert_eq!(refused.violated.bits(), 2);
        assert_eq!(both.states()[0].state, State { anchor: after(60_000).0, used: after(ms).0, before: 1 });
    }

    let local = Local::new(Settings::default());
    let mut watched = checks(&[&cool.with_shadow(true)]);
    assert_eq!((0..9).filter(|_| local.decide(&mut watched, NOW).is_admitted()).count(), 9);
    assert_eq!(watched.states()[0].state.before, 1);
    assert_eq!(watched.shadow_violated().bits(), 1);
}

#[test]
fn attempts_on_a_tripped_cool_down_are_refused_here_for_a_quarter_of_its_quiet_time() {
    let (local, mut checks) = (
        Local::new(Settings { refusal_life: None, ..Settings::default() }),
        checks(&[&CoolDownOf(60_000).policy()]),
    );
    learn(&local, &mut checks, State { anchor: NOW.0 + 60_000, used: NOW.0, before: 1 });
    assert!(local.refused(&mut checks, after(14_999)).is_some());
    assert!(local.refused(&mut checks, after(15_000)).is_none(), "the store must hear that it is not quiet");
}
