//! Fixed window: the first hit opens a window that ends one period later.
//! It bounds what any window admits, not what two neighbouring ones admit together (at most twice the limit).

use super::{Rule, State};

pub(super) fn roll(rule: &Rule, state: State, now: u64) -> State {
    if state.anchor <= now {
        return State::default();
    }
    // An end further away than a period means that the clock went back: keep the count, end it in time.
    State { anchor: state.anchor.min(now.saturating_add(rule.period())), ..state }
}

pub(super) fn admits(rule: &Rule, rolled: State) -> bool {
    rule.price() <= rule.limit.saturating_sub(rolled.used)
}

pub(super) fn consume(rule: &Rule, rolled: State, now: u64) -> State {
    let anchor = if rolled.anchor == 0 { now.saturating_add(rule.period()) } else { rolled.anchor };
    State { anchor, used: rolled.used.saturating_add(rule.price()), before: 0 }
}
