//! What only one call for many requests can do: merged requests, items that share counters, shadows, looking
//! without counting, and taking back.

use proptest::prelude::*;

use super::super::algorithm::{Rule, State};
use super::super::batch::{Batch, Counted, Counter, Item, ItemReply, Refund};
use super::kit::{ALL, COOL, Gate, redis_servers};
use super::*;

const HOUR: u64 = 3_600_000;

fn rule(algorithm: Algorithm, limit: u64, period_ms: u64, cost: u64) -> Rule {
    Rule { algorithm, limit, period_ms, cost }
}

fn counter(key: &[u8], rule: Rule) -> Counter<'_> {
    Counter { key, rule, penalise: false, shadow: false, known_end: 0 }
}

fn item<'a>(counters: &[Counter<'a>], count: u32) -> Item<'a> {
    Item { counters: counters.to_vec(), count, ..Item::default() }
}

fn ask(gate: &mut Gate, items: &[Item<'_>]) -> Vec<(u32, Vec<Counted>)> {
    let reply = gate.batch(&Batch { tags: Vec::new(), items: items.to_vec() });
    let judged = |item: ItemReply| match item {
        ItemReply::Judged { granted, counters } => (granted, counters),
        ItemReply::Barred(guard) => panic!("barred by {guard}"),
    };
    reply.items.into_iter().map(judged).collect()
}

fn granted(gate: &mut Gate, counters: &[Counter<'_>], count: u32) -> u32 {
    ask(gate, &[item(counters, count)])[0].0
}

#[test]
fn merged_requests_are_granted_as_many_as_remain() {
    redis_servers(|gate| {
        for algorithm in ALL {
            let key = gate.key(algorithm.as_str());
            let counter = counter(key.as_bytes(), rule(algorithm, 10, HOUR, 1));
            let grants: Vec<_> = [4, 3, 9, 2].map(|count| granted(gate, &[counter], count)).to_vec();
            assert_eq!(grants, [4, 3, 3, 0], "{algorithm:?}");
            let dear = Counter { rule: rule(algorithm, 10, HOUR, 3), ..counter };
            let key = gate.key(&format!("dear:{}", algorithm.as_str()));
            let dear = Counter { key: key.as_bytes(), ..dear };
            assert_eq!([2, 5].map(|count| granted(gate, &[dear], count)), [2, 1], "{algorithm:?}");
        }
    });
}

#[test]
fn merged_requests_with_a_known_end_are_granted_as_many_as_remain() {
    redis_servers(|gate| {
        let key = gate.key("known");
        let mut counter = counter(key.as_bytes(), rule(Algorithm::FixedWindow, 10, HOUR, 2));
        let first = ask(gate, &[item(&[counter], 1)]);
        counter.known_end = first[0].1[0].state.anchor;
        assert!(counter.known_end > 0);
        let second = ask(gate, &[item(&[counter], 2)]);
        assert_eq!(second[0].1[0].state, State { anchor: counter.known_end, used: 6, before: 0 });
        assert_eq!(granted(gate, &[counter], 9), 2);
        assert_eq!(granted(gate, &[counter], 1), 0);
        assert_eq!(gate.run::<u64>(&["GET", &key]), 10);
    });
}

#[test]
fn merged_requests_take_from_every_window_what_the_smallest_grants() {
    redis_servers(|gate| {
        for algorithm in ALL {
            let [small, large] =
                ["small", "large"].map(|name| gate.key(&format!("{name}:{}", algorithm.as_str())));
            let counters = [
                counter(small.as_bytes(), rule(algorithm, 5, HOUR, 1)),
                counter(large.as_bytes(), rule(algorithm, 20, HOUR, 1)),
            ];
            let answer = ask(gate, &[item(&counters, 8)]);
            assert_eq!(answer[0].0, 5);
            assert_eq!([answer[0].1[0].fits, answer[0].1[1].fits], [5, 8]);
            assert_eq!(granted(gate, &counters[1..], 99), 15, "{algorithm:?}");
        }
    });
}

#[test]
fn items_that_share_counters_are_judged_one_after_the_other() {
    redis_servers(|gate| {
        for algorithm in ALL {
            let [mine, yours, shared] =
                ["mine", "yours", "shared"].map(|name| gate.key(&format!("{name}:{}", algorithm.as_str())));
            let [mine, yours] =
                [&mine, &yours].map(|key| counter(key.as_bytes(), rule(algorithm, 9, HOUR, 1)));
            let shared = counter(shared.as_bytes(), rule(algorithm, 10, HOUR, 1));
            let items = [item(&[mine, shared], 6), item(&[shared, yours], 6), item(&[mine, yours], 3)];
            let grants: Vec<_> = ask(gate, &items).iter().map(|answer| answer.0).collect();
            assert_eq!(grants, [6, 4, 3], "{algorithm:?}");
            assert_eq!(granted(gate, &[shared], 1), 0);
        }
    });
}

#[test]
fn a_shadow_refuses_nobody_and_counts_what_it_would_have_admitted() {
    redis_servers(|gate| {
        for algorithm in ALL {
            let [real, shadow] =
                ["real", "shadow"].map(|name| gate.key(&format!("{name}:{}", algorithm.as_str())));
            let real = counter(real.as_bytes(), rule(algorithm, 6, HOUR, 1));
            let shadow = Counter { shadow: true, ..counter(shadow.as_bytes(), rule(algorithm, 4, HOUR, 1)) };
            let answer = ask(gate, &[item(&[real, shadow], 5)]);
            assert_eq!((answer[0].0, answer[0].1[1].fits), (5, 4), "{algorithm:?}");
            let answer = ask(gate, &[item(&[real, shadow], 5)]);
            assert_eq!((answer[0].0, answer[0].1[1].fits), (1, 0), "{algorithm:?}");
        }
    });
}

#[test]
fn looking_changes_nothing_and_tells_the_state() {
    redis_servers(|gate| {
        for algorithm in ALL {
            let key = gate.key(&format!("look:{}", algorithm.as_str()));
            let counter = counter(key.as_bytes(), rule(algorithm, 5, HOUR, 1));
            assert_eq!(granted(gate, &[counter], 0), 0);
            assert_eq!(gate.run::<u64>(&["EXISTS", &key]), 0);
            assert_eq!(granted(gate, &[counter], 3), 3);
            let dump: Vec<u8> = gate.run(&["DUMP", &key]);
            let looked = ask(gate, &[item(&[counter], 0)]);
            let now = SystemClock.now();
            let state = counter.rule.roll(looked[0].1[0].state, now);
            assert_eq!(counter.rule.remaining(state, now), 2, "{algorithm:?}");
            assert_eq!(gate.run::<Vec<u8>>(&["DUMP", &key]), dump);
        }
    });
}

#[test]
fn what_is_taken_back_may_be_granted_again_exactly() {
    redis_servers(|gate| {
        for algorithm in ALL {
            let key = gate.key(&format!("back:{}", algorithm.as_str()));
            let counter = counter(key.as_bytes(), rule(algorithm, 10, HOUR, 2));
            let answer = ask(gate, &[item(&[counter], 4)]);
            let state = answer[0].1[0].state;
            let refund = Refund { key: key.as_bytes(), rule: counter.rule, state, count: 3 };
            let ttl: i64 = gate.run(&["PTTL", &key]);
            assert_eq!(gate.refund(&[refund]), 1, "{algorithm:?}");
            let left: i64 = gate.run(&["PTTL", &key]);
            assert!(left > 0 && left <= ttl, "{algorithm:?}: {ttl} then {left}");
            assert_eq!(granted(gate, &[counter], 9), 4, "{algorithm:?}");
            // Absent: nothing is created.
            let _: u64 = gate.run(&["DEL", &key]);
            assert_eq!(gate.refund(&[refund]), 0);
            assert_eq!(gate.run::<u64>(&["EXISTS", &key]), 0);
        }
    });
}

#[test]
fn taking_back_never_reaches_into_another_window_or_a_foreign_value() {
    redis_servers(|gate| {
        for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingLog, COOL] {
            let key = gate.key(&format!("other:{}", algorithm.as_str()));
            let counter = counter(key.as_bytes(), rule(algorithm, 5, HOUR, 1));
            let state = ask(gate, &[item(&[counter], 2)])[0].1[0].state;
            let _: u64 = gate.run(&["DEL", &key]);
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(granted(gate, &[counter], 3), 3);
            let refund = Refund { key: key.as_bytes(), rule: counter.rule, state, count: 2 };
            assert_eq!(gate.refund(&[refund]), 0, "{algorithm:?}");
            assert_eq!(granted(gate, &[counter], 9), 2, "{algorithm:?}");
            let unknown = Refund { state: State { anchor: 0, before: 0, ..state }, ..refund };
            assert_eq!(gate.refund(&[unknown]), 0, "{algorithm:?}");
        }
        for algorithm in ALL {
            let key = gate.key(&format!("foreign:{}", algorithm.as_str()));
            let rule = rule(algorithm, 5, HOUR, 1);
            let refund = Refund { key: key.as_bytes(), rule, state: State::default(), count: 1 };
            let _: () = gate.run(&["SET", &key, "x", "PX", "60000"]);
            assert_eq!(gate.refund(&[refund]), 0);
            assert_eq!(gate.run::<String>(&["GET", &key]), "x");
            let _: u64 = gate.run(&["DEL", &key]);
            let _: u64 = gate.run(&["LPUSH", &key, "x"]);
            assert_eq!(gate.refund(&[refund]), 0);
            // Without a TTL it is not ours.
            let _: u64 = gate.run(&["DEL", &key]);
            let _: () = gate.run(&["SET", &key, "5"]);
            assert_eq!(gate.refund(&[refund]), 0);
        }
    });
}

#[test]
fn a_log_never_holds_more_than_its_limit_in_any_window_of_the_stores_clock() {
    const LIMIT: usize = 7;
    const PERIOD: u64 = 120;
    redis_servers(|gate| {
        let key = gate.key("log");
        let counter = counter(key.as_bytes(), rule(Algorithm::SlidingLog, LIMIT as u64, PERIOD, 1));
        let admitted = Mutex::new(Vec::new());
        let servers: Vec<_> = (0..8).map(|_| gate.sibling()).collect();
        std::thread::scope(|scope| {
            for mut gate in servers {
                let admitted = &admitted;
                scope.spawn(move || {
                    for round in 0..150 {
                        let (granted, counters) = ask(&mut gate, &[item(&[counter], round % 3)]).remove(0);
                        // The youngest of the log is the one just admitted.
                        let at = counters[0].state.before.saturating_sub(PERIOD);
                        admitted.lock().extend((0..granted).map(|_| at));
                        std::thread::sleep(Duration::from_millis(3));
                    }
                });
            }
        });
        let mut admitted = admitted.into_inner();
        admitted.sort_unstable();
        assert!(admitted.len() > 2 * LIMIT, "{}", admitted.len());
        for (index, at) in admitted.iter().enumerate().skip(LIMIT) {
            assert!(at - admitted[index - LIMIT] >= PERIOD, "{LIMIT} and one more within {PERIOD} ms");
        }
        assert!(gate.run::<usize>(&["ZCARD", &key]) <= LIMIT);
    });
}

#[test]
fn a_batch_as_large_as_a_combiner_makes_is_answered() {
    redis_servers(|gate| {
        let keys: Vec<_> = (0..600).map(|index| gate.key(&format!("many:{index}"))).collect();
        let counters: Vec<_> = keys
            .iter()
            .map(|key| counter(key.as_bytes(), rule(Algorithm::FixedWindow, 1, HOUR, 1)))
            .collect();
        let items: Vec<_> = counters.chunks(2).map(|pair| item(pair, 2)).collect();
        assert!(ask(gate, &items).iter().all(|answer| answer.0 == 1));
        assert!(ask(gate, &items).iter().all(|answer| answer.0 == 0));
    });
}

#[test]
fn guards_bar_their_own_item_only() {
    redis_servers(|gate| {
        let [ban, other, key] = ["ban", "other", "counted"].map(|name| gate.key(name));
        let _: () = gate.run(&["SET", &ban, "1"]);
        let counter = counter(key.as_bytes(), rule(Algorithm::FixedWindow, 9, HOUR, 1));
        let barred = Item { guards: vec![other.as_bytes(), ban.as_bytes()], ..item(&[counter], 1) };
        let free = Item { guards: vec![other.as_bytes()], ..item(&[counter], 2) };
        let cut = Item { cutoff: Some(1), issued_at: 1, ..barred.clone() };
        let batch = Batch { tags: vec![ban.as_bytes()], items: vec![barred, free, cut] };
        let reply = gate.batch(&batch);
        assert_eq!(reply.tags, [Some(bytes::Bytes::from_static(b"1"))]);
        assert_eq!(reply.items[0], ItemReply::Barred(1));
        assert!(matches!(reply.items[1], ItemReply::Judged { granted: 2, .. }));
        assert!(
            matches!(&reply.items[2], ItemReply::Judged { granted: 1, counters } if counters[0].state.used == 3)
        );
    });
}

proptest! {
    #[test]
    fn no_reply_makes_the_decoder_panic(
        text in prop::collection::vec(any::<u8>(), 0..60), known in 0_u64..3, count in 0_u32..4, tags in 0_usize..3
    ) {
        let counters = ALL.map(|algorithm| Counter { known_end: known, ..counter(b"k", rule(algorithm, 5, HOUR, 1)) });
        for counters in [&counters[..1], &counters[..0], &counters[..]] {
            let asked = Item { guards: vec![b"g"], ..item(counters, count) };
            let batch = Batch { tags: vec![b"t"; tags], items: vec![asked] };
            let _ = gate::decode(redis::Value::BulkString(text.clone()), &batch);
            let texts = text.iter().map(|byte| redis::Value::BulkString(vec![*byte]));
            let _ = gate::decode(redis::Value::Array(texts.collect()), &batch);
            let numbers = text.iter().map(|byte| redis::Value::Int(i64::from(*byte) - 8));
            let _ = gate::decode(redis::Value::Array(numbers.collect()), &batch);
        }
    }
}
