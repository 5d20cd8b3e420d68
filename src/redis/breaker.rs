//! Counts consecutive failures and says whether the store may be asked. It holds no timer: the supervisor
//! probes and closes it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use tokio::sync::Notify;

/// Open after a number of consecutive failures, or at once after a conclusive one.
#[derive(Debug)]
pub(super) struct Breaker {
    threshold: u32,
    consecutive: AtomicU32,
    open: AtomicBool,
    /// Rises each time the breaker opens: connections made before are not used again.
    generation: AtomicU64,
    /// Wakes the supervisor.
    pub(super) opened: Notify,
}

impl Breaker {
    pub(super) fn new(threshold: u32) -> Self {
        Self {
            threshold: threshold.max(1),
            consecutive: AtomicU32::new(0),
            open: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            opened: Notify::new(),
        }
    }

    pub(super) fn closed(&self) -> bool {
        !self.open.load(Ordering::Acquire)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn succeeded(&self) {
        // A load first: the common case must not write a shared cache line.
        if self.consecutive.load(Ordering::Relaxed) != 0 {
            self.consecutive.store(0, Ordering::Relaxed);
        }
    }

    /// Notes a failure; true when this one opened the breaker.
    pub(super) fn failed(&self, conclusive: bool) -> bool {
        let count = self.consecutive.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if !conclusive && count < self.threshold {
            return false;
        }
        let opened = !self.open.swap(true, Ordering::AcqRel);
        if opened {
            self.generation.fetch_add(1, Ordering::AcqRel);
            self.opened.notify_one();
        }
        opened
    }

    /// Closes; true when it was open.
    pub(super) fn close(&self) -> bool {
        self.consecutive.store(0, Ordering::Relaxed);
        self.open.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_the_threshold_and_only_consecutive_failures_count() {
        let breaker = Breaker::new(3);
        assert!(!breaker.failed(false));
        assert!(!breaker.failed(false));
        breaker.succeeded();
        assert!(!breaker.failed(false));
        assert!(!breaker.failed(false));
        assert!(breaker.closed());
        assert!(breaker.failed(false));
        assert!(!breaker.closed());
        assert_eq!(breaker.generation(), 1);
    }

    #[test]
    fn a_conclusive_failure_opens_at_once_and_the_transition_is_told_once() {
        let breaker = Breaker::new(3);
        assert!(breaker.failed(true));
        assert!(!breaker.failed(true));
        assert!(breaker.close());
        assert!(!breaker.close());
    }
}
