//! The counting algorithms as functions of values: a rule, a counter's state and an instant.
//! They store nothing and ask no clock; the Lua script mirrors them statement by statement.

mod bucket;
mod cooldown;
mod fixed;
mod log;
mod sliding;

use super::policy::{Algorithm, MAX_LOG_LIMIT};
use crate::clock::UnixMillis;

/// A counter's whole memory, in the shape all algorithms share. The default is a counter nobody has hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Milliseconds since the epoch. Fixed: end of the window, 0 for none; sliding: start of the current
    /// period; bucket: when `used` was true; log: when the next request of this cost fits, or when the oldest one
    /// leaves if it fits now, 0 for an empty log; cool-down: end of the window, and once tripped when the next
    /// request is admitted.
    pub anchor: u64,
    /// Fixed and sliding: requests counted in the current period; bucket: debt in requests × period ms; log:
    /// requests in it; cool-down: requests counted, and once tripped the time of the last request.
    pub used: u64,
    /// Sliding: requests counted in the period before; log: when the newest request leaves; cool-down: 1 once
    /// tripped; 0 otherwise.
    pub before: u64,
}

/// What one check asks of its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// How to count.
    pub algorithm: Algorithm,
    /// Requests per period; 0 admits nothing.
    pub limit: u64,
    /// The period in milliseconds; 0 is read as 1.
    pub period_ms: u64,
    /// What this request consumes; 0 is read as 1.
    pub cost: u64,
}

/// What a counter says to one request, before it consumes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the request fits.
    pub allowed: bool,
    /// Whole requests of cost 1 that still fit.
    pub remaining: u64,
    /// When the counter is fully restored (for a fixed window: its end).
    pub reset_at: UnixMillis,
    /// The earliest moment the request would fit if nobody else consumed; `now` when it fits. A request that
    /// can never fit gets one period from `now`.
    pub retry_at: UnixMillis,
}

impl Rule {
    pub(super) const fn period(&self) -> u64 {
        if self.period_ms == 0 { 1 } else { self.period_ms }
    }

    pub(super) const fn price(&self) -> u64 {
        if self.cost == 0 { 1 } else { self.cost }
    }

    /// The limit as the algorithm can hold it: a bucket's whole debt must fit in 63 bits, a log in
    /// [`MAX_LOG_LIMIT`] requests.
    pub const fn capacity(&self) -> u64 {
        let most = (u64::MAX >> 1) / self.period();
        match self.algorithm {
            Algorithm::TokenBucket if self.limit > most => most,
            Algorithm::SlidingLog if self.limit > MAX_LOG_LIMIT => MAX_LOG_LIMIT,
            _ => self.limit,
        }
    }

    /// The state at `now`: windows that ended are gone, buckets have refilled. A state from an implausible
    /// future (a clock went back) is cut down so that it cannot outlive a period or two.
    #[must_use]
    pub fn roll(&self, state: State, now: UnixMillis) -> State {
        match self.algorithm {
            Algorithm::FixedWindow => fixed::roll(self, state, now.0),
            Algorithm::SlidingLog => log::roll(self, state, now.0),
            Algorithm::CoolDown(cool_down) => cooldown::roll(self, cool_down, state, now.0),
            Algorithm::SlidingWindow => sliding::roll(self, state, now.0),
            Algorithm::TokenBucket => bucket::roll(self, state, now.0),
        }
    }

    /// Whether the request fits a `rolled` state.
    pub fn admits(&self, rolled: State, now: UnixMillis) -> bool {
        match self.algorithm {
            Algorithm::FixedWindow => fixed::admits(self, rolled),
            Algorithm::SlidingLog => log::admits(self, rolled, now.0),
            Algorithm::CoolDown(_) => cooldown::admits(self, rolled, now.0),
            Algorithm::SlidingWindow => sliding::admits(self, rolled, now.0),
            Algorithm::TokenBucket => bucket::admits(self, rolled),
        }
    }

    /// The `rolled` state after the request consumed its cost, whether it fits or not.
    #[must_use]
    pub fn consume(&self, rolled: State, now: UnixMillis) -> State {
        match self.algorithm {
            Algorithm::FixedWindow => fixed::consume(self, rolled, now.0),
            Algorithm::SlidingLog => log::consume(self, rolled, now.0),
            Algorithm::CoolDown(cool_down) => cooldown::consume(self, cool_down, rolled, now.0),
            Algorithm::SlidingWindow => sliding::consume(self, rolled),
            Algorithm::TokenBucket => bucket::consume(self, rolled),
        }
    }

    /// `state`, rolled or not, without one request that was counted when it was `counted`. A request of another
    /// window, one that a bucket has forgotten, and one in a window that has tripped since, have nothing to take off.
    #[must_use]
    pub fn refund(&self, state: State, counted: State) -> State {
        let less = |used: u64| used.saturating_sub(self.price());
        let same = state.anchor == counted.anchor;
        match self.algorithm {
            Algorithm::TokenBucket => {
                let used = state.used.saturating_sub(self.price().saturating_mul(self.period()));
                State { used, ..state }
            }
            Algorithm::SlidingWindow if state.anchor == counted.anchor.saturating_add(self.period()) => {
                State { before: less(state.before), ..state }
            }
            Algorithm::CoolDown(_) if state.before != 0 || counted.before != 0 => state,
            Algorithm::SlidingLog => State { used: less(state.used), ..state },
            _ if same => State { used: less(state.used), ..state },
            _ => state,
        }
    }

    /// The state after up to `requests` of cost 1 were given back.
    #[must_use]
    pub fn relieve(&self, state: State, requests: u64) -> State {
        let less = |used: u64| used.saturating_sub(requests);
        match self.algorithm {
            Algorithm::FixedWindow => State { used: less(state.used), ..state },
            Algorithm::CoolDown(_) if state.before == 0 => State { used: less(state.used), ..state },
            Algorithm::SlidingWindow => {
                let rest = requests.saturating_sub(state.used);
                State { used: less(state.used), before: state.before.saturating_sub(rest), ..state }
            }
            Algorithm::TokenBucket => {
                State { used: state.used.saturating_sub(requests.saturating_mul(self.period())), ..state }
            }
            // The summary of a log does not tell who leaves when; a gift ends a cool-down.
            Algorithm::SlidingLog | Algorithm::CoolDown(_) => State::default(),
        }
    }

    /// The `rolled` state after the request was refused, by this counter or by another one, and consumed nothing.
    /// Only a cool-down remembers that: it trips, or its quiet time starts anew.
    #[must_use]
    pub fn refuse(&self, rolled: State, now: UnixMillis) -> State {
        match self.algorithm {
            Algorithm::CoolDown(cool_down) => cooldown::refuse(self, cool_down, rolled, now.0),
            _ => rolled,
        }
    }

    /// Whether a refusal by this `rolled` state changes what the counter admits later, so that the store has to
    /// hear of it: a full window with a cool-down that has not tripped yet, and a tripped one that heard of no attempt
    /// for a quarter of its quiet time.
    pub fn must_hear(&self, rolled: State, now: UnixMillis) -> bool {
        match self.algorithm {
            // Once tripped, `used` is the last attempt the store heard of.
            Algorithm::CoolDown(cool_down) => {
                let silent = now.0.saturating_sub(rolled.used) >= cool_down.quiet_ms / 4;
                (rolled.before == 0 || silent) && self.price() <= self.limit
            }
            _ => false,
        }
    }

    /// Whole requests of cost 1 that fit a `rolled` state.
    pub fn remaining(&self, rolled: State, now: UnixMillis) -> u64 {
        match self.algorithm {
            Algorithm::FixedWindow => self.limit.saturating_sub(rolled.used),
            Algorithm::SlidingLog => log::remaining(self, rolled, now.0),
            Algorithm::CoolDown(_) => cooldown::remaining(self, rolled, now.0),
            Algorithm::SlidingWindow => sliding::remaining(self, rolled, now.0),
            Algorithm::TokenBucket => bucket::remaining(self, rolled),
        }
    }

    /// When a `rolled` state is fully restored; `now` when it is, one period on for a limit of 0.
    pub fn reset_at(&self, rolled: State, now: UnixMillis) -> UnixMillis {
        let at = match self.algorithm {
            Algorithm::FixedWindow => rolled.anchor,
            Algorithm::SlidingLog => rolled.before,
            Algorithm::CoolDown(cool_down) => cooldown::reset_at(cool_down, rolled),
            Algorithm::SlidingWindow => sliding::reset_at(self, rolled),
            Algorithm::TokenBucket => bucket::reset_at(self, rolled),
        };
        let floor = if self.limit == 0 { now.0.saturating_add(self.period()) } else { now.0 };
        UnixMillis(at.max(floor))
    }

    /// The earliest moment the request would fit a `rolled` state; `now` when it fits.
    pub fn retry_at(&self, rolled: State, now: UnixMillis) -> UnixMillis {
        if self.admits(rolled, now) {
            return now;
        }
        if self.price() > self.capacity() {
            return UnixMillis(now.0.saturating_add(self.period()));
        }
        UnixMillis(match self.algorithm {
            Algorithm::FixedWindow | Algorithm::SlidingLog => rolled.anchor.max(now.0),
            Algorithm::CoolDown(cool_down) => cooldown::retry_at(cool_down, rolled).max(now.0),
            Algorithm::SlidingWindow => sliding::retry_at(self, rolled).max(now.0),
            Algorithm::TokenBucket => bucket::retry_at(self, rolled, now.0),
        })
    }

    /// All answers at once, for a `state` that need not be rolled.
    pub fn verdict(&self, state: State, now: UnixMillis) -> Verdict {
        let rolled = self.roll(state, now);
        Verdict {
            allowed: self.admits(rolled, now),
            remaining: self.remaining(rolled, now),
            reset_at: self.reset_at(rolled, now),
            retry_at: self.retry_at(rolled, now),
        }
    }
}

/// `value` as 64 bits, saturating.
fn narrow(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::policy::CoolDown;

    const COOL: CoolDown = CoolDown { interval_ms: 60, quiet_ms: 150 };
    /// Those whose state counts; a log's is only a report and tested beside it.
    const ALL: [Algorithm; 4] =
        [Algorithm::FixedWindow, Algorithm::SlidingWindow, Algorithm::TokenBucket, Algorithm::CoolDown(COOL)];

    fn rule(algorithm: Algorithm, limit: u64, period_ms: u64, cost: u64) -> Rule {
        Rule { algorithm, limit, period_ms, cost }
    }

    fn hit(rule: &Rule, state: &mut State, now: u64) -> bool {
        let now = UnixMillis(now);
        let rolled = rule.roll(*state, now);
        let fits = rule.admits(rolled, now);
        *state = if fits { rule.consume(rolled, now) } else { rule.refuse(rolled, now) };
        fits
    }

    #[test]
    fn a_request_is_given_back_only_to_the_window_it_was_counted_in() {
        let now = UnixMillis(1_000_000);
        for algorithm in ALL {
            let rule = rule(algorithm, 5, 60_000, 2);
            let once = rule.consume(rule.roll(State::default(), now), now);
            let twice = rule.consume(once, now);
            assert_eq!(rule.refund(twice, once).used, once.used, "{algorithm:?}");
            assert_eq!(rule.refund(rule.refund(once, once), once).used, 0, "{algorithm:?}");
        }
        let fixed = rule(Algorithm::FixedWindow, 5, 60_000, 2);
        let (old, new) =
            (State { anchor: 1, used: 2, before: 0 }, State { anchor: 60_001, used: 2, before: 0 });
        assert_eq!(fixed.refund(new, old), new);
        let sliding = Rule { algorithm: Algorithm::SlidingWindow, ..fixed };
        let next = State { anchor: 60_001, used: 1, before: 4 };
        assert_eq!(sliding.refund(next, old), State { before: 2, ..next });
        assert_eq!(sliding.refund(State { anchor: 120_001, ..next }, old).before, 4);
        let cooling = Rule { algorithm: Algorithm::CoolDown(COOL), ..fixed };
        let tripped = State { anchor: 1, used: 9, before: 1 };
        assert_eq!(cooling.refund(tripped, old), tripped);
    }

    #[test]
    fn a_fixed_window_starts_with_the_first_hit() {
        let rule = rule(Algorithm::FixedWindow, 2, 60_000, 1);
        let mut state = State::default();
        assert!(hit(&rule, &mut state, 1_000_500) && hit(&rule, &mut state, 1_000_600));
        let verdict = rule.verdict(state, UnixMillis(1_000_700));
        assert_eq!((verdict.allowed, verdict.remaining), (false, 0));
        assert_eq!((verdict.reset_at.0, verdict.retry_at.0), (1_060_500, 1_060_500));
        assert!(!hit(&rule, &mut state, 1_060_499));
        assert!(hit(&rule, &mut state, 1_060_500));
    }

    #[test]
    fn a_sliding_window_fades_the_previous_one() {
        let rule = rule(Algorithm::SlidingWindow, 10, 1_000, 1);
        let mut state = State::default();
        for _ in 0..10 {
            assert!(hit(&rule, &mut state, 10_900));
        }
        assert_eq!(rule.verdict(state, UnixMillis(10_900)).retry_at.0, 11_100);
        assert!(!hit(&rule, &mut state, 11_099));
        assert!(hit(&rule, &mut state, 11_100));
        assert!(!hit(&rule, &mut state, 11_100));
        assert_eq!(rule.verdict(state, UnixMillis(11_500)).remaining, 4);
        assert_eq!(rule.verdict(state, UnixMillis(11_500)).reset_at.0, 13_000);
        assert_eq!(rule.verdict(state, UnixMillis(13_000)).remaining, 10);
    }

    #[test]
    fn a_bucket_refills_continuously() {
        let rule = rule(Algorithm::TokenBucket, 7, 60_000, 1);
        let mut state = State::default();
        assert_eq!((0..10).filter(|_| hit(&rule, &mut state, 5_000)).count(), 7);
        let verdict = rule.verdict(state, UnixMillis(5_000));
        assert_eq!((verdict.retry_at.0, verdict.reset_at.0), (5_000 + 8_572, 65_000));
        assert!(!hit(&rule, &mut state, 5_000 + 8_571));
        assert!(hit(&rule, &mut state, 5_000 + 8_572));
    }

    #[test]
    fn a_tripped_window_admits_one_per_interval_until_it_is_quiet() {
        let cool_down = CoolDown { interval_ms: 60_000, quiet_ms: 60_000 };
        let rule = rule(Algorithm::CoolDown(cool_down), 5, 10_000, 1);
        let mut state = State::default();
        assert!((0..5).all(|step| hit(&rule, &mut state, 1_000_000 + step)));
        assert!(!hit(&rule, &mut state, 1_001_000));
        assert_eq!(state, State { anchor: 1_061_000, used: 1_001_000, before: 1 });
        // The window would have ended; the trip holds.
        assert!(!hit(&rule, &mut state, 1_011_000));
        assert!(!hit(&rule, &mut state, 1_060_999));
        let verdict = rule.verdict(state, UnixMillis(1_060_999));
        assert_eq!((verdict.retry_at.0, verdict.reset_at.0), (1_061_000, 1_120_999));
        assert!(hit(&rule, &mut state, 1_061_000));
        assert!(!hit(&rule, &mut state, 1_061_000));
        assert!(hit(&rule, &mut state, 1_120_999 + 1));
        // Not quiet for long enough: still one per interval.
        assert!(hit(&rule, &mut state, 1_181_000));
        assert!((0..5).all(|_| hit(&rule, &mut state, 1_241_000)));
        assert!(!hit(&rule, &mut state, 1_241_000));
    }

    #[test]
    fn a_request_refused_elsewhere_keeps_a_tripped_window_from_opening_and_takes_no_turn() {
        let rule = rule(Algorithm::CoolDown(COOL), 1, 100, 1);
        let at = UnixMillis;
        let open = rule.consume(State::default(), at(1_000));
        assert_eq!(rule.refuse(State::default(), at(1_000)), State::default());
        let tripped = rule.refuse(open, at(1_010));
        assert_eq!(tripped, State { anchor: 1_070, used: 1_010, before: 1 });
        let renewed = rule.refuse(rule.roll(tripped, at(1_100)), at(1_100));
        assert_eq!(renewed, State { anchor: 1_070, used: 1_100, before: 1 });
        assert!(rule.admits(rule.roll(renewed, at(1_249)), at(1_249)));
        assert_eq!(rule.roll(renewed, at(1_250)), State::default());
    }

    #[test]
    fn penalised_hits_never_block_a_bucket_for_longer_than_a_period() {
        let rule = rule(Algorithm::TokenBucket, 5, 10_000, 1);
        let mut state = State::default();
        for _ in 0..1_000 {
            state = rule.consume(rule.roll(state, UnixMillis(1)), UnixMillis(1));
        }
        assert_eq!(rule.verdict(state, UnixMillis(1)).retry_at.0, 2_001);
        assert_eq!(rule.verdict(state, UnixMillis(10_001)).remaining, 5);
    }

    #[test]
    fn a_limit_of_zero_refuses_and_the_largest_one_does_not_overflow() {
        for algorithm in ALL {
            let zero = rule(algorithm, 0, 60_000, 1).verdict(State::default(), UnixMillis(9));
            assert!(!zero.allowed);
            assert_eq!((zero.remaining, zero.retry_at.0, zero.reset_at.0), (0, 60_009, 60_009));
            let huge = rule(algorithm, u64::MAX, 60_000, 1);
            let mut state = State::default();
            assert!(hit(&huge, &mut state, 9) && hit(&huge, &mut state, 9));
            assert!(huge.verdict(state, UnixMillis(9)).remaining > 1 << 46);
        }
    }

    proptest! {
        #[test]
        fn a_refused_request_fits_at_its_retry_time_and_not_a_millisecond_earlier(
            pick in 0_usize..4, limit in 1_u64..40, period in 1_u64..5_000, steps in prop::collection::vec((0_u64..900, 1_u64..4), 1..80)
        ) {
            let mut state = State::default();
            let mut now = 1_000_000;
            for (step, cost) in steps {
                now += step;
                let rule = rule(ALL[pick], limit, period, cost);
                let allowed = rule.verdict(state, UnixMillis(now)).allowed;
                prop_assert_eq!(allowed, hit(&rule, &mut state, now));
                // What the refused caller is told includes what the refusal itself did.
                let before = state;
                let verdict = Verdict { allowed, ..rule.verdict(state, UnixMillis(now)) };
                prop_assert!(verdict.remaining <= limit);
                if !verdict.allowed && cost <= limit {
                    let at = verdict.retry_at.0;
                    prop_assert!(at > now);
                    prop_assert!(rule.verdict(before, UnixMillis(at)).allowed);
                    prop_assert!(!rule.verdict(before, UnixMillis(at - 1)).allowed);
                }
                let reset = rule.verdict(state, UnixMillis(now)).reset_at;
                prop_assert_eq!(rule.verdict(state, reset).remaining, limit);
            }
        }

        #[test]
        fn nothing_panics_and_nothing_blocks_forever(
            pick in 0_usize..4, limit: u64, period: u64, cost: u64, anchor: u64, used: u64, before: u64, now in 0..u64::MAX / 4
        ) {
            let rule = rule(ALL[pick], limit, period % (1 << 35), cost % limit.clamp(1, 1 << 28));
            let now = UnixMillis(now);
            let rolled = rule.roll(State { anchor, used, before }, now);
            let _ = rule.verdict(State { anchor, used, before }, now);
            let _ = rule.consume(rolled, now);
            if limit > 0 {
                let later = UnixMillis(now.0 + 3 * rule.period());
                prop_assert!(rule.verdict(rolled, later).allowed);
            }
        }
    }
}
