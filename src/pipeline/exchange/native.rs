//! Plain commands instead of the script where they say the same: one `MGET` where nothing is counted, and
//! `INCR` or `INCRBY` beside it for fixed windows that are far from their limits. Its own answer decides, so it cannot
//! admit too many; what it counted in vain is owed.

use bytes::Bytes;
use redis::{Cmd, Pipeline, Value, cmd};

use super::question::{Asked, Owed, UNKNOWN};
use crate::clock::UnixMillis;
use crate::limits::algorithm::State;
use crate::limits::batch::{Batch, BatchReply, Counted, Counter, Item, ItemReply};
use crate::limits::policy::Algorithm;

/// A window that ends this soon is left to the script, which starts a new one safely.
const SAFE_BEFORE_END_MS: u64 = 2_000;

/// A window that ends this soon is told its end with every count: Redis may execute it when the window is over, and
/// then no new one must begin. Of the others [`super::background::end`] takes care.
const NEAR_END_MS: u64 = 15_000;

/// Whether the script would admit all of this for certain, as far as is known: every counter is a fixed window
/// that goes on for a while and is far from its limit. `at` is on the store's clock.
///
/// The last known count may be a call old here and older at other instances, so that a margin is kept for both.
/// It need not suffice: a wrong guess costs a refund.
pub(super) fn suits(asked: &Asked<'_>, at: UnixMillis) -> bool {
    let items = &asked.batch.items;
    let requests = items.iter().fold(0_u64, |sum, item| sum.saturating_add(u64::from(item.count)));
    items.iter().zip(&asked.used).all(|(item, used)| {
        item.count > 0
            && item.counters.iter().zip(used).all(|(counter, used)| is_far(counter, *used, requests, at))
    })
}

fn is_far(counter: &Counter<'_>, used: u64, requests: u64, at: UnixMillis) -> bool {
    let rule = &counter.rule;
    let slack = (rule.limit / 8).max(8);
    let reached = used.saturating_add(requests.saturating_mul(2).saturating_mul(rule.cost.max(1)));
    rule.algorithm == Algorithm::FixedWindow
        && !counter.penalise
        && used != UNKNOWN
        && counter.known_end > at.0.saturating_add(SAFE_BEFORE_END_MS)
        && reached.saturating_add(slack) <= rule.limit - rule.limit / 10
}

/// One `MGET` of all guards and tags; `None` when there are none.
pub(super) fn read(batch: &Batch<'_>) -> Option<Cmd> {
    let mut command = cmd("MGET");
    let guards = batch.items.iter().flat_map(|item| &item.guards);
    let mut any = false;
    for key in guards.chain(&batch.tags) {
        command.arg(*key);
        any = true;
    }
    any.then_some(command)
}

/// The guards and tags, and every item's counts, in this order. `singly`: each guard and tag by itself, since a
/// Cluster refuses to read several keys at once while their slot moves.
pub fn pipeline(batch: &Batch<'_>, singly: bool, at: UnixMillis) -> Pipeline {
    let mut pipeline = Pipeline::new();
    if singly {
        for key in batch.items.iter().flat_map(|item| &item.guards).chain(&batch.tags) {
            pipeline.cmd("GET").arg(*key);
        }
    } else if let Some(read) = read(batch) {
        pipeline.add_command(read);
    }
    for item in &batch.items {
        for counter in &item.counters {
            match worth(item, counter) {
                1 => pipeline.cmd("INCR").arg(counter.key),
                worth => pipeline.cmd("INCRBY").arg(counter.key).arg(worth),
            };
            if ends_soon(counter, at) {
                // The last millisecond of the key; once it has passed, this deletes what was counted too late.
                let last = counter.known_end.saturating_sub(1);
                pipeline.cmd("PEXPIREAT").arg(counter.key).arg(last).arg("NX");
            }
        }
    }
    pipeline
}

fn ends_soon(counter: &Counter<'_>, at: UnixMillis) -> bool {
    counter.known_end <= at.0.saturating_add(NEAR_END_MS)
}

fn worth(item: &Item<'_>, counter: &Counter<'_>) -> u64 {
    u64::from(item.count).saturating_mul(counter.rule.cost.max(1))
}

/// Answers to a [`pipeline`] that read singly, as one that did not would have got them.
pub(super) fn gather(batch: &Batch<'_>, mut answers: Vec<Value>) -> Vec<Value> {
    let guards: usize = batch.items.iter().map(|item| item.guards.len()).sum();
    let read = guards + batch.tags.len();
    if read > 0 && read <= answers.len() {
        let counts = answers.split_off(read);
        let failed = answers.iter().position(|value| matches!(value, Value::ServerError(_)));
        let values = match failed {
            Some(failed) => answers.swap_remove(failed),
            None => Value::Array(answers),
        };
        return std::iter::once(values).chain(counts).collect();
    }
    answers
}

/// What the answers mean.
#[derive(Debug)]
pub(super) struct Outcome {
    /// As the script would have put it; `None` when some answer is an error: the script has to mend it.
    pub(super) reply: Option<BatchReply>,
    /// What was counted in vain.
    pub(super) owed: Vec<Owed>,
    /// Counters, as positions of item and counter, that were new after all: they may have no end.
    pub(super) fresh: Vec<(usize, usize)>,
}

impl Outcome {
    /// Notes that the window of the counter at `key` ends at `end`: it began with this call.
    pub(super) fn learn(&mut self, asked: &Asked<'_>, key: &[u8], end: u64) {
        for owed in self.owed.iter_mut().filter(|owed| &*owed.key == key) {
            owed.state.anchor = end;
        }
        let replies = self.reply.iter_mut().flat_map(|reply| &mut reply.items);
        for (item, reply) in asked.batch.items.iter().zip(replies) {
            let ItemReply::Judged { counters, .. } = reply else { continue };
            for (_, counted) in item.counters.iter().zip(counters).filter(|(counter, _)| counter.key == key) {
                counted.state.anchor = end;
            }
        }
    }
}

/// Judges the answers to [`pipeline`], or to [`read`] where nothing is counted.
pub(super) fn judge(asked: &Asked<'_>, answers: Vec<Value>) -> Outcome {
    let mut answers = answers.into_iter();
    let guards: usize = asked.batch.items.iter().map(|item| item.guards.len()).sum();
    let mut sound = true;
    let mut values = Vec::new();
    if guards + asked.batch.tags.len() > 0 {
        match answers.next() {
            Some(Value::Array(read)) if read.len() == guards + asked.batch.tags.len() => values = read,
            _ => sound = false,
        }
    }
    let tags: Vec<Option<Bytes>> = values.split_off(guards.min(values.len())).into_iter().map(text).collect();
    let mut values = values.into_iter();
    let mut owed = Vec::new();
    let mut fresh = Vec::new();
    // What this call counted in vain, by key: items after it are judged as if it were taken back already.
    let mut excess: Vec<(&[u8], u64)> = Vec::new();
    let mut items = Vec::with_capacity(asked.batch.items.len());
    for (number, item) in asked.batch.items.iter().enumerate() {
        let barred = {
            let mut bars = None;
            for index in 0..item.guards.len() {
                let value = values.next().and_then(text);
                if bars.is_none() && value.is_some_and(|value| bars_request(item, index, &value)) {
                    bars = Some(index);
                }
            }
            bars
        };
        let mut counters = Vec::with_capacity(item.counters.len());
        let mut granted = if barred.is_some() { 0 } else { item.count };
        for (index, counter) in item.counters.iter().enumerate() {
            let answer = answers.next();
            let ended = !ends_soon(counter, asked.at) || matches!(answers.next(), Some(Value::Int(_)));
            let Some(Value::Int(count)) = answer else {
                sound = false;
                counters.push(None);
                continue;
            };
            let worth = worth(item, counter);
            if !ended || u64::try_from(count).is_ok_and(|count| count == worth) {
                fresh.push((number, index));
            }
            let vain =
                excess.iter().filter(|(key, _)| *key == counter.key).map(|(_, vain)| *vain).sum::<u64>();
            let before = i128::from(count) - i128::from(worth) - i128::from(vain);
            let room =
                (i128::from(counter.rule.limit) - before).max(0) / i128::from(counter.rule.cost.max(1));
            let fits = u32::try_from(room).unwrap_or(u32::MAX).min(item.count);
            if !counter.shadow {
                granted = granted.min(fits);
            }
            counters.push(Some((before, fits)));
        }
        if !sound {
            granted = 0;
        }
        let mut states = Vec::with_capacity(counters.len());
        for (counter, counted) in item.counters.iter().zip(counters) {
            let Some((before, fits)) = counted else { continue };
            let kept = if counter.shadow { granted.min(fits) } else { granted };
            let after = before + i128::from(kept) * i128::from(counter.rule.cost.max(1));
            let state = State {
                anchor: counter.known_end,
                used: u64::try_from(after.max(0)).unwrap_or(u64::MAX),
                before: 0,
            };
            let vain = item.count.saturating_sub(kept);
            if vain > 0 {
                excess.push((counter.key, u64::from(vain).saturating_mul(counter.rule.cost.max(1))));
                owed.push(Owed::new(counter, state, vain));
            }
            states.push(Counted { state, fits });
        }
        items.push(match barred {
            Some(guard) => ItemReply::Barred(guard),
            None => ItemReply::Judged { granted, counters: states },
        });
    }
    let reply = sound.then_some(BatchReply { clock: None, tags, items });
    Outcome { reply, owed, fresh }
}

fn text(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(Bytes::from(bytes)),
        _ => None,
    }
}

/// The rule of the script: what exists bars, but a cut-off bars only tokens issued before the second it holds, and
/// all when it holds no second.
fn bars_request(item: &Item<'_>, index: usize, value: &[u8]) -> bool {
    if item.cutoff != Some(index) || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return true;
    }
    let second = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()).unwrap_or(u64::MAX);
    item.issued_at < second
}

/// Ends the window of a counter that has no end one period from now, and asks for the end it has.
pub(super) fn end(key: &[u8], period_ms: u64) -> Pipeline {
    let mut pipeline = Pipeline::new();
    // Redis keeps a key through the millisecond it is told to expire at: the one before the window's end.
    pipeline.cmd("PEXPIRE").arg(key).arg(period_ms.saturating_sub(1).max(1)).arg("NX");
    pipeline.cmd("PEXPIRETIME").arg(key);
    pipeline
}

/// What the store said to [`end`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The window's end on the store's clock.
    At(u64),
    /// There is no such counter.
    Absent,
}

/// Reads the answers to [`end`]; `None` when they are of no use.
pub(super) fn ended(answers: &[Value]) -> Option<Ended> {
    match answers {
        [_, Value::Int(last @ 1..)] => Some(Ended::At(last.unsigned_abs().saturating_add(1))),
        [_, Value::Int(-2)] => Some(Ended::Absent),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::algorithm::Rule;

    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn counter(key: &[u8], limit: u64) -> Counter<'_> {
        let rule = Rule { algorithm: Algorithm::FixedWindow, limit, period_ms: 60_000, cost: 1 };
        Counter { key, rule, penalise: false, shadow: false, known_end: NOW.0 + 30_000 }
    }

    fn asked<'a>(guards: &[&'a [u8]], counters: Vec<Counter<'a>>, used: u64, count: u32) -> Asked<'a> {
        let used = vec![vec![used; counters.len()]];
        let item = Item { guards: guards.to_vec(), cutoff: Some(0), issued_at: 100, counters, count };
        Asked { batch: Batch { tags: Vec::new(), items: vec![item] }, used, ..Asked::default() }
    }

    #[test]
    fn only_known_fixed_windows_far_from_their_limit_and_end_are_counted_natively() {
        let far =
            |counter: Counter<'static>, used, count| suits(&asked(&[], vec![counter], used, count), NOW);
        let plain = counter(b"c", 100);
        assert!(far(plain, 10, 1));
        assert!(far(plain, 76, 1) && !far(plain, 77, 1) && !far(plain, 10, 40));
        assert!(!far(plain, UNKNOWN, 1));
        assert!(!far(Counter { known_end: 0, ..plain }, 10, 1));
        assert!(!far(Counter { known_end: NOW.0 + 2_000, ..plain }, 10, 1));
        assert!(!far(Counter { penalise: true, ..plain }, 10, 1));
        assert!(far(Counter { shadow: true, ..plain }, 10, 1));
        let other = Rule { algorithm: Algorithm::TokenBucket, ..plain.rule };
        assert!(!far(Counter { rule: other, ..plain }, 10, 1));
        assert!(!far(counter(b"c", 9), 0, 1), "a small limit is never far");
    }

    #[test]
    fn what_does_not_fit_is_owed() {
        let whole = asked(&[], vec![counter(b"a", 100), counter(b"b", 50)], 0, 5);
        let outcome = judge(&whole, vec![Value::Int(30), Value::Int(53)]);
        let reply = outcome.reply.unwrap();
        let ItemReply::Judged { granted, counters } = &reply.items[0] else { panic!("{reply:?}") };
        assert_eq!(*granted, 2);
        assert_eq!(counters.iter().map(|counted| counted.state.used).collect::<Vec<_>>(), [27, 50]);
        assert_eq!(counters.iter().map(|counted| counted.fits).collect::<Vec<_>>(), [5, 2]);
        assert_eq!(outcome.owed.iter().map(|owed| owed.count).collect::<Vec<_>>(), [3, 3]);
        assert!(outcome.fresh.is_empty());
    }

    #[test]
    fn a_counter_that_was_new_after_all_is_told() {
        let whole = asked(&[], vec![counter(b"a", 100), counter(b"b", 100)], 0, 3);
        let mut outcome = judge(&whole, vec![Value::Int(3), Value::Int(4)]);
        assert_eq!(outcome.fresh, [(0, 0)]);
        outcome.learn(&whole, b"a", 77);
        let ItemReply::Judged { counters, .. } = &outcome.reply.unwrap().items[0] else { panic!() };
        let ends: Vec<u64> = counters.iter().map(|counted| counted.state.anchor).collect();
        assert_eq!(ends, [77, NOW.0 + 30_000]);
    }

    #[test]
    fn what_a_new_counter_is_owed_belongs_to_the_window_that_began_with_it() {
        let whole = asked(&[b"g"], vec![counter(b"a", 100), counter(b"b", 100)], 0, 3);
        let read = Value::Array(vec![Value::BulkString(b"x".to_vec())]);
        let mut outcome = judge(&whole, vec![read, Value::Int(3), Value::Int(4)]);
        outcome.learn(&whole, b"a", 77);
        let ends: Vec<u64> = outcome.owed.iter().map(|owed| owed.state.anchor).collect();
        assert_eq!(ends, [77, NOW.0 + 30_000]);
    }

    #[test]
    fn a_count_shortly_before_the_end_of_its_window_brings_that_end_along() {
        let soon = Counter { known_end: NOW.0 + 15_000, ..counter(b"a", 100) };
        let mut whole = asked(&[], vec![counter(b"b", 100), soon], 0, 2);
        whole.at = NOW;
        let sent = pipeline(&whole.batch, false, whole.at).get_packed_pipeline();
        let sent = String::from_utf8(sent).unwrap();
        assert_eq!(sent.matches("INCRBY").count(), 2);
        assert!(sent.ends_with("PEXPIREAT\r\n$1\r\na\r\n$7\r\n1014999\r\n$2\r\nNX\r\n"), "{sent}");
        let fresh = |answers| judge(&whole, answers).fresh;
        assert_eq!(fresh(vec![Value::Int(9), Value::Int(8), Value::Int(0)]), []);
        assert_eq!(fresh(vec![Value::Int(9), Value::Int(8), Value::Nil]), [(0, 1)], "its end is not certain");
    }

    #[test]
    fn a_window_ends_a_millisecond_after_the_last_of_its_key() {
        assert_eq!(ended(&[Value::Int(1), Value::Int(99)]), Some(Ended::At(100)));
        assert_eq!(ended(&[Value::Int(0), Value::Int(-2)]), Some(Ended::Absent));
        assert_eq!(ended(&[Value::Int(0), Value::Int(-1)]), None);
        assert_eq!(ended(&[Value::Int(0)]), None);
    }

    #[test]
    fn guards_are_judged_as_by_the_script_and_bar_what_was_counted() {
        let bars = |value: &[u8]| {
            let whole = asked(&[b"cutoff"], vec![counter(b"a", 100)], 0, 1);
            let read = Value::Array(vec![Value::BulkString(value.to_vec())]);
            let outcome = judge(&whole, vec![read, Value::Int(9)]);
            (outcome.reply.unwrap().items[0] == ItemReply::Barred(0), outcome.owed.len())
        };
        assert_eq!((bars(b"100"), bars(b"101")), ((false, 0), (true, 1)));
        assert_eq!(
            (bars(b""), bars(b"x1"), bars(b"99999999999999999999999")),
            ((true, 1), (true, 1), (true, 1))
        );
        let whole = asked(&[b"cutoff", b"ban"], Vec::new(), 0, 1);
        let read = Value::Array(vec![Value::Nil, Value::BulkString(Vec::new())]);
        assert_eq!(judge(&whole, vec![read]).reply.unwrap().items, [ItemReply::Barred(1)]);
    }

    #[test]
    fn an_error_for_one_counter_takes_back_the_others() {
        let whole = asked(&[], vec![counter(b"a", 100), counter(b"b", 100)], 0, 2);
        let outcome = judge(&whole, vec![Value::Int(30), Value::Nil]);
        assert!(outcome.reply.is_none());
        assert_eq!(
            outcome.owed.iter().map(|owed| (&*owed.key, owed.count)).collect::<Vec<_>>(),
            [(b"a" as &[u8], 2)]
        );
    }

    #[test]
    fn items_on_one_counter_are_judged_in_turn_and_without_what_was_counted_in_vain() {
        let mut whole = asked(&[b"g"], vec![counter(b"a", 10)], 0, 3);
        let second = asked(&[], vec![counter(b"a", 10)], 0, 4);
        whole.batch.items.extend(second.batch.items);
        whole.used.extend(second.used);
        let read = Value::Array(vec![Value::BulkString(b"x".to_vec())]);
        let outcome = judge(&whole, vec![read, Value::Int(9), Value::Int(13)]);
        let reply = outcome.reply.unwrap();
        assert_eq!(reply.items[0], ItemReply::Barred(0));
        let ItemReply::Judged { granted, counters } = &reply.items[1] else { panic!("{reply:?}") };
        assert_eq!((*granted, counters[0].state.used), (4, 10));
    }
}
