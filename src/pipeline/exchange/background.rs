//! What is left to do after a request was answered: take back what was counted in vain, and give an end to counters
//! that may have none. Nobody waits for it. Taking back is given up after a short while.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ahash::RandomState;
use parking_lot::Mutex;

use super::Link;
use super::native::{self, Ended};
use super::question::Owed;
use super::reach;
use crate::metrics::RefundResult;
use crate::redis::Unavailable;

/// Tasks under way at most; what comes then is given up.
const MAX_TASKS: usize = 1_024;
/// Pauses between attempts.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
];

/// Counters at most that are remembered because they may have no end; what comes then is left to the script, which
/// gives an end to a counter without one.
const MAX_ENDLESS: usize = 16_384;
/// The store is believed that a counter is absent when it has said so this often, with pauses.
const ABSENT_FOR_GOOD: u8 = 5;
/// Between further attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Takes `owed` back. What cannot be taken back stays counted: too few are admitted then, never too many.
pub(super) fn refund(link: &Link, owed: Vec<Owed>) {
    if owed.is_empty() {
        return;
    }
    let count = owed.len();
    let task_link = link.clone();
    let started = start(link, async move {
        for (shard, owed) in reach::by_shard(&task_link.store, owed, |owed| &owed.key) {
            let mut result = RefundResult::Lost;
            for pause in PAUSES.into_iter().map(Some).chain([None]) {
                match reach::refund(&task_link, shard, &owed).await {
                    Ok(()) => {
                        result = RefundResult::Done;
                        break;
                    }
                    // It may have been done: twice would admit too many.
                    Err(
                        Unavailable::DeadlinePassed | Unavailable::ConnectionLost | Unavailable::Rejected,
                    ) => break,
                    Err(_) => {}
                }
                let Some(pause) = pause else { break };
                tokio::time::sleep(pause).await;
            }
            task_link.exchange.metrics.refunded(result, owed.len());
        }
    });
    if !started {
        link.exchange.metrics.refunded(RefundResult::Lost, count);
    }
}

/// Counters that may have no end, until the store says what has become of them.
#[derive(Debug, Default)]
pub(super) struct Endless(Mutex<Seekers>);

#[derive(Debug, Default)]
struct Seekers {
    counters: HashMap<Box<[u8]>, Seeker, RandomState>,
    running: bool,
}

#[derive(Clone, Copy, Debug)]
struct Seeker {
    period_ms: u64,
    /// How often the store said that there is no such counter.
    absent: u8,
}

impl Endless {
    /// Whether somebody has to begin with the work.
    fn add(&self, ends: Vec<(Box<[u8]>, u64)>) -> bool {
        let mut seekers = self.0.lock();
        for (key, period_ms) in ends {
            if seekers.counters.len() < MAX_ENDLESS || seekers.counters.contains_key(&key) {
                seekers.counters.insert(key, Seeker { period_ms, absent: 0 });
            }
        }
        !std::mem::replace(&mut seekers.running, true)
    }

    /// The counters there are; `None` when the work is done.
    fn all(&self) -> Option<Vec<(Box<[u8]>, u64)>> {
        let mut seekers = self.0.lock();
        seekers.running = !seekers.counters.is_empty();
        let all = seekers.counters.iter().map(|(key, seeker)| (key.clone(), seeker.period_ms));
        seekers.running.then(|| all.collect())
    }

    /// Notes what the store said. A counter that is absent may yet come: a count that is under way on another
    /// connection is executed soon after the store answers again, or never.
    fn note(&self, key: &[u8], ended: Ended) {
        let counters = &mut self.0.lock().counters;
        let Some(seeker) = counters.get_mut(key) else { return };
        seeker.absent = seeker.absent.saturating_add(1);
        if ended != Ended::Absent || seeker.absent >= ABSENT_FOR_GOOD {
            counters.remove(key);
        }
    }
}

/// Gives each of these counters, which may have none, an end one period (the number beside it, in ms) from when the
/// store is reached, however long that takes.
pub(super) fn end(link: &Link, ends: Vec<(Box<[u8]>, u64)>) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    if ends.is_empty() || !link.exchange.endless.add(ends) {
        return;
    }
    let link = link.clone();
    runtime.spawn(async move {
        let mut pauses = PAUSES.into_iter();
        while let Some(ends) = link.exchange.endless.all() {
            tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
            for (shard, ends) in reach::by_shard(&link.store, ends, |(key, _)| key) {
                for (key, period_ms) in ends {
                    if !link.store.available(shard) {
                        break;
                    }
                    let answers = reach::pipeline(&link.store, shard, &native::end(&key, period_ms)).await;
                    if let Some(ended) = answers.ok().and_then(|answers| native::ended(&answers)) {
                        link.exchange.endless.note(&key, ended);
                    }
                }
            }
        }
    });
}

/// Whether `task` was started.
fn start(link: &Link, task: impl Future<Output = ()> + Send + 'static) -> bool {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return false };
    let before = link.exchange.tasks.fetch_add(1, Ordering::Relaxed);
    let place = Place(link.clone());
    if before >= MAX_TASKS {
        return false;
    }
    runtime.spawn(async move {
        task.await;
        drop(place);
    });
    true
}

/// One of the tasks under way; its place is free again when this is dropped.
struct Place(Link);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.exchange.tasks.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_looked_after_until_it_has_an_end_or_is_absent_for_good() {
        let endless = Endless::default();
        let counter = |key: &[u8]| vec![(Box::from(key), 1_000)];
        assert!(endless.add(counter(b"a")) && !endless.add(counter(b"b")), "one task does it all");
        endless.note(b"a", Ended::At(7));
        for _ in 1..ABSENT_FOR_GOOD {
            endless.note(b"b", Ended::Absent);
        }
        assert_eq!(endless.all(), Some(counter(b"b")), "a count under way may still come");
        endless.note(b"b", Ended::Absent);
        assert_eq!(endless.all(), None);
        assert!(endless.add(counter(b"b")), "the task has ended");
    }
}
