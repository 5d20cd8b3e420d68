//! Sliding log: the time of every counted request, so that no period ever holds more than the limit.
//! The logs themselves are kept by the memory of an instance and in Redis. A [`State`] cannot hold the times; it is
//! what a log reported, good for headers and for refusing from memory: it refuses nothing that the log would admit to
//! a request of that cost under that limit. It cannot count further.

use super::{Rule, State};

pub(super) fn roll(rule: &Rule, state: State, now: u64) -> State {
    let gone = state.before <= now || state.before - now > rule.period().saturating_mul(2);
    if gone { State::default() } else { state }
}

pub(super) fn admits(rule: &Rule, rolled: State, now: u64) -> bool {
    let (price, capacity) = (rule.price(), rule.capacity());
    price <= capacity && (price <= capacity.saturating_sub(rolled.used) || rolled.anchor <= now)
}

/// An approximation that admits too much rather than too little; the logs are exact.
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
