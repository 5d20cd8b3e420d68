//! Sliding window: the previous period's count, fading out linearly, plus the current one.
//! All comparisons are multiplied by the period, so that no rounding can admit one too many.

use super::{Rule, State, narrow};

pub(super) fn roll(rule: &Rule, state: State, now: u64) -> State {
    let period = rule.period();
    if now >= state.anchor {
        let age = now - state.anchor;
        if age < period {
            return state;
        }
        if age < period.saturating_mul(2) {
            return State { anchor: state.anchor.saturating_add(period), used: 0, before: state.used };
        }
    } else if state.anchor - now <= period {
        return state;
    }
    State { anchor: now - now % period, used: 0, before: 0 }
}

fn load(rule: &Rule, rolled: State, now: u64) -> u128 {
    let left = rule.period().saturating_sub(now.saturating_sub(rolled.anchor));
    let period = u128::from(rule.period());
    (u128::from(rolled.before) * u128::from(left)).saturating_add(u128::from(rolled.used) * period)
}

pub(super) fn admits(rule: &Rule, rolled: State, now: u64) -> bool {
    let period = u128::from(rule.period());
    let wanted = load(rule, rolled, now).saturating_add(u128::from(rule.price()) * period);
    wanted <= u128::from(rule.limit) * period
}

pub(super) fn consume(rule: &Rule, rolled: State) -> State {
    State { used: rolled.used.saturating_add(rule.price()), ..rolled }
}

pub(super) fn remaining(rule: &Rule, rolled: State, now: u64) -> u64 {
    let period = u128::from(rule.period());
    let free = (u128::from(rule.limit) * period).saturating_sub(load(rule, rolled, now));
    narrow(free / period)
}

pub(super) fn reset_at(rule: &Rule, rolled: State) -> u64 {
    let periods = if rolled.used > 0 { 2 } else { u64::from(rolled.before > 0) };
    if periods == 0 { 0 } else { rolled.anchor.saturating_add(rule.period().saturating_mul(periods)) }
}

/// For a refused request whose cost is within the limit.
pub(super) fn retry_at(rule: &Rule, rolled: State) -> u64 {
    let (period, room) = (rule.period(), rule.limit - rule.price().min(rule.limit));
    // How far into a period must we be until `fading` has made `room`?
    let faded = |fading: u64, room: u64| {
        let kept = u128::from(room) * u128::from(period) / u128::from(fading.max(1));
        period.saturating_sub(narrow(kept))
    };
    match room.checked_sub(rolled.used) {
        Some(room) => rolled.anchor.saturating_add(faded(rolled.before, room)),
        None => rolled.anchor.saturating_add(period).saturating_add(faded(rolled.used, room)),
    }
}
