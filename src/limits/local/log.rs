//! The times of the admitted requests of one key: never more than the limit in any period. It decides nothing by
//! itself and is kept small by its owner.

use std::collections::VecDeque;

use super::super::algorithm::{Rule, State};

/// Up to this limit every request is remembered to the millisecond; above, a request is remembered for up to this part
/// of a period longer than it must be, so that a log never has more than about this many places.
const EXACT: u64 = 4_096;

/// Requests that leave together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    /// When, ms on the store's clock.
    at: u64,
    count: u64,
}

/// A log. Whatever is forgotten of it to save room makes it refuse a little longer, and never admit more.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    /// Ascending in time.
    stamps: VecDeque<Stamp>,
    held: u64,
}

impl Log {
    /// A log of which only a summary is known: all its requests leave with the newest.
    pub(super) fn of(rule: &Rule, state: State) -> Self {
        let mut log = Self::default();
        if state.used > 0 {
            log.add(state.before.max(state.anchor).saturating_sub(rule.period()), state.used);
        }
        log
    }

    /// Forgets what left by `now`.
    pub(super) fn roll(&mut self, rule: &Rule, now: u64) {
        while let Some(first) = self.stamps.front()
            && first.at.saturating_add(rule.period()) <= now
        {
            self.held = self.held.saturating_sub(first.count);
            self.stamps.pop_front();
        }
        // From the future: a clock went back. They leave a period from now at the latest.
        for stamp in self.stamps.iter_mut().rev().take_while(|stamp| stamp.at > now) {
            stamp.at = now;
        }
    }

    /// Adds a request of the rule's cost. The newest `limit` requests decide everything, so no more are held.
    pub(super) fn push(&mut self, rule: &Rule, now: u64) {
        let resolution = if rule.capacity() <= EXACT { 1 } else { rule.period().div_ceil(EXACT) };
        match self.stamps.back_mut() {
            // Those of one step leave with its newest.
            Some(last) if last.at / resolution == now / resolution => {
                last.at = last.at.max(now);
                last.count = last.count.saturating_add(rule.price());
                self.held = self.held.saturating_add(rule.price());
            }
            _ => self.add(now, rule.price()),
        }
        let mut excess = self.held.saturating_sub(rule.capacity().max(rule.price()));
        while excess > 0
            && let Some(first) = self.stamps.front_mut()
        {
            let taken = excess.min(first.count);
            first.count -= taken;
            self.held -= taken;
            excess -= taken;
            if first.count == 0 {
                self.stamps.pop_front();
            }
        }
    }

    /// Takes off a request of the rule's cost, the newest one when the log was `counted`.
    pub(super) fn take_back(&mut self, rule: &Rule, counted: State) {
        let at = counted.before.saturating_sub(rule.period());
        // Where requests of one step leave together, they do so with the newest.
        let index = self.stamps.partition_point(|stamp| stamp.at < at);
        let Some(stamp) = self.stamps.get_mut(index) else { return };
        let taken = rule.price().min(stamp.count);
        stamp.count -= taken;
        self.held -= taken;
        if stamp.count == 0 {
            self.stamps.remove(index);
        }
    }

    /// Takes off up to so many of the newest requests.
    pub(super) fn drop_newest(&mut self, requests: u64) {
        let mut left = requests;
        while left > 0
            && let Some(last) = self.stamps.back_mut()
        {
            let taken = left.min(last.count);
            last.count -= taken;
            self.held -= taken;
            left -= taken;
            if last.count == 0 {
                self.stamps.pop_back();
            }
        }
    }

    fn add(&mut self, at: u64, count: u64) {
        self.held = self.held.saturating_add(count);
        self.stamps.push_back(Stamp { at, count });
    }

    /// The log's summary, as [`State`] has it; `self` must be rolled.
    pub(super) fn state(&self, rule: &Rule) -> State {
        let leaves = |stamp: &Stamp| stamp.at.saturating_add(rule.period());
        let (Some(first), Some(last)) = (self.stamps.front(), self.stamps.back()) else {
            return State::default();
        };
        // A request that is larger than the limit never fits; until the log is empty is as good as any time.
        let mut excess = self.held.saturating_add(rule.price()).saturating_sub(rule.capacity());
        let mut anchor = leaves(first);
        for stamp in &self.stamps {
            if excess == 0 {
                break;
            }
            anchor = leaves(stamp);
            excess = excess.saturating_sub(stamp.count);
        }
        State { anchor, used: self.held, before: leaves(last) }
    }

    /// Places held.
    pub(super) fn len(&self) -> usize {
        self.stamps.len()
    }

    /// Keeps about half of the places: of two neighbours both leave with the later one.
    pub(super) fn halve(&mut self) {
        let mut halved = VecDeque::with_capacity(self.stamps.len().div_ceil(2));
        while let Some(first) = self.stamps.pop_front() {
            halved.push_back(match self.stamps.pop_front() {
                Some(second) => Stamp { at: second.at, count: first.count.saturating_add(second.count) },
                None => first,
            });
        }
        self.stamps = halved;
    }

    /// Adds a log of earlier requests.
    pub(super) fn prepend(&mut self, earlier: Self) {
        self.held = self.held.saturating_add(earlier.held);
        for stamp in earlier.stamps.into_iter().rev() {
            let at = self.stamps.front().map_or(stamp.at, |first| stamp.at.min(first.at));
            self.stamps.push_front(Stamp { at, ..stamp });
        }
    }

    /// When requests were admitted, and how many each time.
    pub(super) fn stamps(&self) -> impl ExactSizeIterator<Item = (u64, u64)> {
        self.stamps.iter().map(|stamp| (stamp.at, stamp.count))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::policy::Algorithm;
    use super::*;

    fn rule(limit: u64, period_ms: u64) -> Rule {
        Rule { algorithm: Algorithm::SlidingLog, limit, period_ms, cost: 1 }
    }

    fn hit(log: &mut Log, rule: &Rule, now: u64) -> bool {
        log.roll(rule, now);
        let fits = log.held + rule.price() <= rule.limit;
        if fits {
            log.push(rule, now);
        }
        fits
    }

    #[test]
    fn a_log_tells_when_a_request_fits_and_when_all_is_restored() {
        let (mut log, rule) = (Log::default(), rule(3, 1_000));
        assert_eq!(log.state(&rule), State::default());
        assert!(hit(&mut log, &rule, 10_000) && hit(&mut log, &rule, 10_200) && hit(&mut log, &rule, 10_200));
        assert_eq!(log.state(&rule), State { anchor: 11_000, used: 3, before: 11_200 });
        assert!(!hit(&mut log, &rule, 10_999));
        let dear = Rule { cost: 2, ..rule };
        assert_eq!(log.state(&dear).anchor, 11_200);
        assert!(hit(&mut log, &rule, 11_000));
    }

    #[test]
    fn a_clock_that_went_back_does_not_block_for_longer_than_a_period() {
        let (mut log, rule) = (Log::default(), rule(1, 1_000));
        assert!(hit(&mut log, &rule, 900_000));
        assert!(!hit(&mut log, &rule, 10_000));
        assert!(hit(&mut log, &rule, 11_000));
    }

    #[test]
    fn a_large_log_takes_a_bounded_number_of_places() {
        let (mut log, rule) = (Log::default(), rule(10_000, 60_000));
        let admitted = (0..11_000_u64).filter(|n| hit(&mut log, &rule, 1_000_000 + n * 5)).count();
        assert_eq!(admitted, 10_000);
        assert!(log.len() <= 4_098, "{}", log.len());
    }

    proptest! {
        #[test]
        fn no_period_ever_has_more_than_the_limit_and_an_exact_log_admits_all_of_it(
            limit in 1_u64..6, period in 1_u64..400, halve in 0_usize..8,
            steps in prop::collection::vec(0_u64..120, 1..120)
        ) {
            let (mut log, rule) = (Log::default(), rule(limit, period));
            let (mut now, mut admitted) = (5_000, Vec::new());
            for (number, step) in steps.into_iter().enumerate() {
                now += step;
                let recent = admitted.iter().filter(|at| *at + period > now).count() as u64;
                let fits = hit(&mut log, &rule, now);
                if halve == 0 {
                    prop_assert_eq!(fits, recent < limit);
                } else if number % halve == 0 {
                    log.halve();
                }
                prop_assert!(!fits || recent < limit);
                if fits {
                    admitted.push(now);
                }
            }
        }
    }
}
