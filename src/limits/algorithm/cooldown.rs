//! Cool-down: a window that the first hit opens and that trips when a request finds it full. From then on one
//! request per interval is admitted, the first an interval after the trip, until nobody tried for the quiet time;
//! then the window is open and empty again.
//!
//! Every attempt renews the quiet time, a refused one too: see [`super::Rule::refuse`]. An instance that refuses
//! from memory tells the store nothing of the attempt, so a tripped counter may open although somebody still
//! tries, unless the store hears of attempts more often than every quiet time: refusals are believed for four
//! seconds and a quarter of the quiet time at most (`limits::local::Settings`, [`super::Rule::must_hear`]), after
//! which the next attempt is passed on. The refusal that trips a window is never made from memory. A request that
//! costs more than the limit can never fit and changes nothing.

use super::{Rule, State, fixed};
use crate::limits::policy::CoolDown;

const fn tripped(state: State) -> bool {
    state.before != 0
}

pub(super) fn roll(rule: &Rule, cool_down: CoolDown, state: State, now: u64) -> State {
    if !tripped(state) {
        return fixed::roll(rule, state, now);
    }
    // A clock that went back must not prolong anything.
    let last = state.used.min(now);
    if now.saturating_sub(last) >= cool_down.quiet_ms {
        return State::default();
    }
    State { anchor: state.anchor.min(now.saturating_add(cool_down.interval_ms)), used: last, before: 1 }
}

pub(super) fn admits(rule: &Rule, rolled: State, now: u64) -> bool {
    if tripped(rolled) {
        rule.price() <= rule.limit && rolled.anchor <= now
    } else {
        fixed::admits(rule, rolled)
    }
}

pub(super) fn consume(rule: &Rule, cool_down: CoolDown, rolled: State, now: u64) -> State {
    if !admits(rule, rolled, now) {
        return refuse(rule, cool_down, rolled, now);
    }
    if tripped(rolled) {
        return trip(cool_down, now);
    }
    fixed::consume(rule, rolled, now)
}

pub(super) fn refuse(rule: &Rule, cool_down: CoolDown, rolled: State, now: u64) -> State {
    if rule.price() > rule.limit {
        rolled
    } else if tripped(rolled) {
        State { used: now, ..rolled }
    } else if fixed::admits(rule, rolled) {
        rolled
    } else {
        trip(cool_down, now)
    }
}

const fn trip(cool_down: CoolDown, now: u64) -> State {
    State { anchor: now.saturating_add(cool_down.interval_ms), used: now, before: 1 }
}

/// A tripped counter has room for one request or none, whatever its cost.
pub(super) fn remaining(rule: &Rule, rolled: State, now: u64) -> u64 {
    if tripped(rolled) {
        u64::from(admits(rule, rolled, now))
    } else {
        rule.limit.saturating_sub(rolled.used)
    }
}

pub(super) fn reset_at(cool_down: CoolDown, rolled: State) -> u64 {
    if tripped(rolled) { rolled.used.saturating_add(cool_down.quiet_ms) } else { rolled.anchor }
}

/// For a refused request whose cost is within the limit. Nothing fits earlier: while the window is open its end
/// comes first, but the refusal trips it, and then the answer is the next admission or the quiet time.
pub(super) fn retry_at(cool_down: CoolDown, rolled: State) -> u64 {
    if tripped(rolled) { rolled.anchor.min(reset_at(cool_down, rolled)) } else { rolled.anchor }
}
