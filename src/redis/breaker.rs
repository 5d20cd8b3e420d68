//! Counts consecutive failures and says whether the store may be asked. It holds no timer: the supervisor
//! probes and closes it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

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
    /// The failures must span this much: one short stall makes everybody fail who is under way, and proves
    /// nothing.
    span: Duration,
    consecutive: AtomicU32,
    /// When the first of the consecutive failures was noted, in microseconds since `made`.
    first: AtomicU64,
    made: Instant,
    epoch: AtomicU64,
    /// The epoch, for those who wait for a transition.
    told: watch::Sender<u64>,
}

impl Breaker {
    pub(super) fn new(threshold: u32, span: Duration, now: Instant) -> Self {
        Self {
            threshold: threshold.max(1),
            span,
            consecutive: AtomicU32::new(0),
            first: AtomicU64::new(0),
            made: now,
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
    pub(super) fn failed(&self, during: Epoch, conclusive: bool, now: Instant) -> bool {
        if self.epoch() != during {
            return false;
        }
        let at = u64::try_from(now.saturating_duration_since(self.made).as_micros()).unwrap_or(u64::MAX);
        let count = self.consecutive.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if count == 1 {
            self.first.store(at, Ordering::Relaxed);
        }
        let spanned = Duration::from_micros(at.saturating_sub(self.first.load(Ordering::Relaxed)));
        (conclusive || (count >= self.threshold && spanned >= self.span)) && self.turn(during)
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

    const SPAN: Duration = Duration::from_millis(40);

    struct Bench {
        breaker: Breaker,
        now: Instant,
    }

    impl Bench {
        fn new(threshold: u32) -> Self {
            let now = Instant::now();
            Self { breaker: Breaker::new(threshold, SPAN, now), now }
        }

        fn fail_after(&mut self, pause: Duration, conclusive: bool) -> bool {
            self.now += pause;
            self.breaker.closed().is_some_and(|epoch| self.breaker.failed(epoch, conclusive, self.now))
        }
    }

    #[test]
    fn opens_after_the_threshold_and_only_consecutive_failures_count() {
        let mut bench = Bench::new(3);
        assert!(!bench.fail_after(SPAN, false));
        assert!(!bench.fail_after(SPAN, false));
        bench.breaker.succeeded();
        assert!(!bench.fail_after(SPAN, false));
        assert!(!bench.fail_after(SPAN, false));
        assert!(bench.breaker.closed().is_some());
        assert!(bench.fail_after(SPAN, false));
        assert!(bench.breaker.closed().is_none());
    }

    #[test]
    fn many_failures_of_one_moment_do_not_open_it() {
        let mut bench = Bench::new(3);
        for _ in 0..100 {
            assert!(!bench.fail_after(Duration::ZERO, false));
        }
        assert!(!bench.fail_after(Duration::from_millis(39), false));
        assert!(bench.fail_after(Duration::from_millis(1), false));
    }

    #[test]
    fn a_conclusive_failure_opens_at_once_and_the_transition_is_told_once() {
        let mut bench = Bench::new(3);
        let epoch = bench.breaker.closed().unwrap();
        assert!(bench.fail_after(Duration::ZERO, true));
        assert!(!bench.breaker.failed(epoch, true, bench.now) && !bench.breaker.open());
        assert!(bench.breaker.close());
        assert!(!bench.breaker.close());
    }

    #[test]
    fn what_was_begun_before_an_outage_does_not_count_after_it() {
        let bench = Bench::new(1);
        let before = bench.breaker.closed().unwrap();
        assert!(bench.breaker.open() && bench.breaker.close());
        assert!(!bench.breaker.failed(before, true, bench.now));
        assert!(bench.breaker.closed().is_some_and(|epoch| epoch != before));
    }
}
