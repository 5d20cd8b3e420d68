//! What is left to do after a request was answered: take back what was counted in vain, and give an end to counters
//! that may have none. Nobody waits for it, and it gives up after a short while.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Link;
use super::native;
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

/// Gives each of these counters, which may have none, the end beside it.
pub(super) fn end(link: &Link, ends: Vec<(Box<[u8]>, u64)>) {
    if ends.is_empty() {
        return;
    }
    let task_link = link.clone();
    start(link, async move {
        for (key, at) in ends {
            let shard = task_link.store.shard(&key);
            for pause in PAUSES {
                if reach::pipeline(&task_link.store, shard, &native::end(&key, at)).await.is_ok() {
                    break;
                }
                tokio::time::sleep(pause).await;
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
