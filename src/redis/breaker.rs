//! Counts consecutive failures and says whether the store may be asked. It holds no timer: the supervisor
//! probes and closes it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tokio::sync::watch;

/// A span between two transitions: even while the breaker is closed, odd while it is open. What belongs to an
/// earlier one (a connection, a call under way) says nothing about the store of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch(u64);

impl Epoch {
    const fn is_closed(self) -> bool {
        self.0 & 1 == 0
    }
}

/// Open after a number of consecutive failures, or at once after a conclusive one.
#[derive(Debug)]
pub(super) struct Breaker {
    threshold: u32,
    consecutive: AtomicU32,
    epoch: AtomicU64,
    /// The epoch, for those who wait for a transition.
    told: watch::Sender<u64>,
}

impl Breaker {
    pub(super) fn new(threshold: u32) -> Self {
        Self {
            threshold: threshold.max(1),
            consecutive: AtomicU32::new(0),
            epoch: AtomicU64::new(0),
            told: watch::Sender::new(0),
        }
    }

    /// The present epoch while the breaker is closed.
    pub(super) fn closed(&self) -> Option<Epoch> {
        Some(self.epoch()).filter(|epoch| epoch.is_closed())
    }

    /// Notes that a call was answered.
    pub(super) fn succeeded(&self) {
        // A load first: the common case must not write a shared cache line.
        if self.consecutive.load(Ordering::Relaxed) != 0 {
            self.consecutive.store(0, Ordering::Relaxed);
        }
    }

    /// Notes the failure of a call begun in `during`; true when this one opened the breaker.
    pub(super) fn failed(&self, during: Epoch, conclusive: bool) -> bool {
        if self.epoch() != during {
            return false;
        }
        let count = self.consecutive.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        (conclusive || count >= self.threshold) && self.turn(during)
    }

    /// Opens; true when it was closed.
    pub(super) fn open(&self) -> bool {
        let epoch = self.epoch();
        epoch.is_closed() && self.turn(epoch)
    }

    /// Closes; true when it was open.
    pub(super) fn close(&self) -> bool {
        let epoch = self.epoch();
        self.consecutive.store(0, Ordering::Relaxed);
        !epoch.is_closed() && self.turn(epoch)
    }

    /// Returns once the breaker is open.
    pub(super) async fn wait_until_open(&self) {
        // Fails only when the sender is gone, and that is `self`.
        let _ = self.told.subscribe().wait_for(|epoch| !Epoch(*epoch).is_closed()).await;
    }

    /// Returns once the breaker is closed.
    pub(super) async fn wait_until_closed(&self) {
        let _ = self.told.subscribe().wait_for(|epoch| Epoch(*epoch).is_closed()).await;
    }

    fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    fn turn(&self, from: Epoch) -> bool {
        let next = from.0.wrapping_add(1);
        let turned = self.epoch.compare_exchange(from.0, next, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if turned {
            // Two transitions may tell in the other order: the larger is the later.
            self.told.send_modify(|told| *told = next.max(*told));
        }
        turned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(breaker: &Breaker, conclusive: bool) -> bool {
        breaker.closed().is_some_and(|epoch| breaker.failed(epoch, conclusive))
    }

    #[test]
    fn opens_after_the_threshold_and_only_consecutive_failures_count() {
        let breaker = Breaker::new(3);
        assert!(!fail(&breaker, false));
        assert!(!fail(&breaker, false));
        breaker.succeeded();
        assert!(!fail(&breaker, false));
        assert!(!fail(&breaker, false));
        assert!(breaker.closed().is_some());
        assert!(fail(&breaker, false));
        assert!(breaker.closed().is_none());
    }

    #[test]
    fn a_conclusive_failure_opens_at_once_and_the_transition_is_told_once() {
        let breaker = Breaker::new(3);
        let epoch = breaker.closed().unwrap();
        assert!(breaker.failed(epoch, true));
        assert!(!breaker.failed(epoch, true) && !breaker.open());
        assert!(breaker.close());
        assert!(!breaker.close());
    }

    #[test]
    fn what_was_begun_before_an_outage_does_not_count_after_it() {
        let breaker = Breaker::new(1);
        let before = breaker.closed().unwrap();
        assert!(breaker.open() && breaker.close());
        assert!(!breaker.failed(before, true) && !breaker.failed(before, false));
        assert!(breaker.closed().is_some_and(|epoch| epoch != before));
    }
}
