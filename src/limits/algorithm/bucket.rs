//! Token bucket as a debt that drains: `limit` tokens at most, refilled at `limit` per period.
//! The debt is kept in requests × period milliseconds, so that one millisecond drains exactly `limit` of it
//! and no rounding adds up.

use super::{Rule, State, narrow};

const fn full(rule: &Rule) -> u64 {
    rule.capacity().saturating_mul(rule.period())
}

fn price(rule: &Rule) -> u64 {
    rule.price().saturating_mul(rule.period())
}

pub(super) fn roll(rule: &Rule, state: State, now: u64) -> State {
    let used = match now.checked_sub(state.anchor) {
        Some(age) => state.used.saturating_sub(age.saturating_mul(rule.capacity())),
        None if state.anchor - now <= rule.period() => state.used,
        None => 0,
    };
    State { anchor: now, used: used.min(full(rule)), before: 0 }
}

pub(super) fn admits(rule: &Rule, rolled: State) -> bool {
    price(rule) <= full(rule).saturating_sub(rolled.used)
}

// A penalised hit may fill the bucket's debt but not exceed it: the next token is never far away.
pub(super) fn consume(rule: &Rule, rolled: State) -> State {
    State { used: rolled.used.saturating_add(price(rule)).min(full(rule)), ..rolled }
}

pub(super) fn remaining(rule: &Rule, rolled: State) -> u64 {
    full(rule).saturating_sub(rolled.used) / rule.period()
}

pub(super) fn reset_at(rule: &Rule, rolled: State) -> u64 {
    rolled.anchor.saturating_add(rolled.used.div_ceil(rule.capacity().max(1)))
}

/// For a refused request whose cost is within the capacity.
pub(super) fn retry_at(rule: &Rule, rolled: State, now: u64) -> u64 {
    let excess = (u128::from(rolled.used) + u128::from(price(rule))).saturating_sub(u128::from(full(rule)));
    now.saturating_add(narrow(excess.div_ceil(u128::from(rule.capacity().max(1)))))
}
