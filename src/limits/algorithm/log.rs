//! Sliding log: the time of every counted request, so that no period ever holds more than the limit.
//! [`Log`] is the exact counter in memory. A [`State`] cannot hold the times; it is what a log reported, good for
//! headers and for refusing from memory: it refuses nothing that the log would admit to a request of that cost
//! under that limit. It cannot count further.

use std::collections::VecDeque;

use super::{Rule, State};
use crate::clock::UnixMillis;

/// Requests a log holds at most; a larger limit is held to this. A log costs memory per request: 8 bytes here,
/// about 100 in Redis.
pub const MAX_LOG: u64 = 1 << 16;

/// An exact log of counted requests, oldest first; never longer than the rule's limit. Call [`Log::roll`] before
/// anything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    stamps: VecDeque<u64>,
}

impl Log {
    /// Forgets what left the period that ends `now`. A log from more than a period ahead (a clock went back) is
    /// forgotten whole.
    pub fn roll(&mut self, rule: &Rule, now: UnixMillis) {
        let period = rule.period();
        if self.stamps.back().is_some_and(|newest| newest.saturating_sub(now.0) > period) {
            self.stamps.clear();
        }
        while self.stamps.front().is_some_and(|oldest| oldest.saturating_add(period) <= now.0) {
            self.stamps.pop_front();
        }
    }

    /// Whether a request of the rule's cost fits.
    pub fn admits(&self, rule: &Rule) -> bool {
        rule.price() <= rule.capacity().saturating_sub(self.len())
    }

    /// Counts a request, whether it fits or not: beyond the limit the oldest ones are forgotten.
    pub fn push(&mut self, rule: &Rule, now: UnixMillis) {
        let capacity = rule.capacity();
        // Times never go back, so that the oldest is always in front.
        let stamp = self.stamps.back().map_or(now.0, |newest| now.0.max(*newest));
        for _ in 0..rule.price().min(capacity) {
            self.stamps.push_back(stamp);
        }
        while self.len() > capacity {
            self.stamps.pop_front();
        }
    }

    /// Takes `count` requests off again that were counted when `state` was reported; fewer where fewer of that
    /// moment are left.
    pub fn take_back(&mut self, rule: &Rule, state: State, count: u64) {
        let stamp = state.before.saturating_sub(rule.period());
        let first = self.stamps.partition_point(|at| *at < stamp);
        let last = self.stamps.partition_point(|at| *at <= stamp);
        let most = u64::try_from(last.saturating_sub(first)).unwrap_or(u64::MAX);
        let taken = usize::try_from(count.saturating_mul(rule.price()).min(most)).unwrap_or(0);
        self.stamps.drain(first..first.saturating_add(taken));
    }

    /// What the log reports to a request of the rule's cost.
    pub fn state(&self, rule: &Rule) -> State {
        let (Some(oldest), Some(newest)) = (self.stamps.front(), self.stamps.back()) else {
            return State::default();
        };
        let (used, price, period) = (self.len(), rule.price(), rule.period());
        // How many have to leave before the request fits; the first of them if it fits now or never.
        let surplus = used.saturating_add(price).saturating_sub(rule.capacity());
        let last = surplus.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        let leaving = last.and_then(|index| self.stamps.get(index)).unwrap_or(oldest);
        State { anchor: leaving.saturating_add(period), used, before: newest.saturating_add(period) }
    }

    /// How many requests of cost 1 it holds.
    pub fn len(&self) -> u64 {
        u64::try_from(self.stamps.len()).unwrap_or(u64::MAX)
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.stamps.is_empty()
    }
}

pub(super) fn roll(rule: &Rule, state: State, now: u64) -> State {
    let gone = state.before <= now || state.before - now > rule.period().saturating_mul(2);
    if gone { State::default() } else { state }
}

pub(super) fn admits(rule: &Rule, rolled: State, now: u64) -> bool {
    let (price, capacity) = (rule.price(), rule.capacity());
    price <= capacity && (price <= capacity.saturating_sub(rolled.used) || rolled.anchor <= now)
}

/// An approximation that admits too much rather than too little; [`Log::push`] is exact.
pub(super) fn consume(rule: &Rule, rolled: State, now: u64) -> State {
    let leaves = now.saturating_add(rule.period());
    let anchor = if rolled.anchor == 0 { leaves } else { rolled.anchor };
    let used = rolled.used.saturating_add(rule.price()).min(rule.capacity());
    State { anchor, used, before: rolled.before.max(leaves) }
}

pub(super) fn remaining(rule: &Rule, rolled: State, now: u64) -> u64 {
    let known = rule.capacity().saturating_sub(rolled.used);
    // What left since the report is not known, but the request fits.
    if admits(rule, rolled, now) { known.max(rule.price()) } else { known }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::Algorithm;

    fn rule(limit: u64, period_ms: u64, cost: u64) -> Rule {
        Rule { algorithm: Algorithm::SlidingLog, limit, period_ms, cost }
    }

    fn hit(log: &mut Log, rule: &Rule, now: u64) -> bool {
        log.roll(rule, UnixMillis(now));
        let fits = log.admits(rule);
        if fits {
            log.push(rule, UnixMillis(now));
        }
        fits
    }

    #[test]
    fn a_request_frees_its_place_exactly_one_period_later() {
        let (mut log, rule) = (Log::default(), rule(2, 1_000, 1));
        assert!(hit(&mut log, &rule, 5_000) && hit(&mut log, &rule, 5_400));
        assert_eq!(log.state(&rule), State { anchor: 6_000, used: 2, before: 6_400 });
        assert!(!hit(&mut log, &rule, 5_999));
        assert!(hit(&mut log, &rule, 6_000));
        assert!(!hit(&mut log, &rule, 6_399));
        assert!(hit(&mut log, &rule, 6_400));
        log.roll(&rule, UnixMillis(7_400));
        assert!(log.is_empty());
        assert_eq!(log.state(&rule), State::default());
    }

    #[test]
    fn a_log_never_grows_past_its_limit_and_forgets_the_oldest_penalties_first() {
        let (mut log, rule) = (Log::default(), rule(3, 1_000, 2));
        for now in 0..50 {
            log.push(&rule, UnixMillis(now));
            assert!(log.len() <= 3);
        }
        assert_eq!(log.state(&rule), State { anchor: 1_049, used: 3, before: 1_049 });
        let mut endless = Log::default();
        endless.push(&self::rule(u64::MAX, 1_000, u64::MAX), UnixMillis(1));
        assert_eq!(endless.len(), MAX_LOG);
    }

    #[test]
    fn taking_back_reaches_only_what_was_counted_at_that_moment() {
        let (mut log, rule) = (Log::default(), rule(9, 1_000, 2));
        assert!(hit(&mut log, &rule, 10) && hit(&mut log, &rule, 20));
        let reported = log.state(&rule);
        assert!(hit(&mut log, &rule, 30));
        log.take_back(&rule, reported, 7);
        assert_eq!(log.len(), 4);
        log.take_back(&rule, reported, 1);
        assert_eq!(log.len(), 4);
        assert_eq!(log.state(&rule).anchor, 1_010);
    }

    #[test]
    fn a_clock_that_went_back_far_forgets_the_log() {
        let (mut log, rule) = (Log::default(), rule(1, 1_000, 1));
        assert!(hit(&mut log, &rule, 90_000));
        assert!(!hit(&mut log, &rule, 89_000));
        assert!(hit(&mut log, &rule, 88_999));
    }

    proptest! {
        #[test]
        fn no_period_holds_more_than_the_limit_and_the_report_tells_the_first_moment_that_fits(
            limit in 1_u64..12, period in 1_u64..300, steps in prop::collection::vec((0_u64..90, 1_u64..4), 1..150)
        ) {
            let (mut log, mut admitted, mut now) = (Log::default(), Vec::new(), 1_000_000);
            for (step, cost) in steps {
                now += step;
                let rule = rule(limit, period, cost);
                let fits = hit(&mut log, &rule, now);
                let report = log.state(&rule);
                admitted.extend((0..cost).filter(|_| fits).map(|_| now));
                let verdict = rule.verdict(report, UnixMillis(now));
                prop_assert_eq!(verdict.allowed, log.admits(&rule));
                prop_assert!(verdict.remaining <= limit);
                if !fits && cost <= limit {
                    let at = verdict.retry_at.0;
                    prop_assert!(!hit(&mut log.clone(), &rule, at - 1));
                    prop_assert!(hit(&mut log.clone(), &rule, at));
                    prop_assert!(rule.verdict(report, UnixMillis(at)).allowed);
                }
                let mut restored = log.clone();
                restored.roll(&rule, verdict.reset_at);
                prop_assert!(restored.is_empty());
                prop_assert_eq!(rule.verdict(report, verdict.reset_at).remaining, limit);
            }
            let reach = usize::try_from(limit).unwrap();
            for (index, at) in admitted.iter().enumerate().skip(reach) {
                prop_assert!(at - admitted[index - reach] >= period);
            }
        }
    }
}
