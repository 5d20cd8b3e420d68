//! Leases: several requests' worth of a large fixed window, taken at once and spent by this instance alone without
//! asking. They never admit too many, since all of a lease is counted when it is taken. With G instances at most
//! (G - 1) times a lease of each window stays unspent while others are refused. A lease is lost with the process,
//! with its window, and when the table is full.

use std::collections::HashMap;

use ahash::RandomState;
use parking_lot::Mutex;

use crate::clock::UnixMillis;
use crate::limits::algorithm::{Rule, State};
use crate::limits::policy::Algorithm;

/// Leases held at most.
const MAX_LEASES: usize = 4_096;
/// Limits below are not worth it.
const MIN_LIMIT: u64 = 100;
/// A lease is at most this part of the limit.
const PART: u64 = 20;
/// A lease ends this long before its window, for clocks that differ.
const END_MARGIN_MS: u64 = 500;
/// A window that ends this soon is not leased any more.
const SAFE_BEFORE_END_MS: u64 = 2_000;

/// What this instance has taken and not yet spent, by key.
pub(super) struct Leases {
    held: Mutex<HashMap<Box<[u8]>, Lease, RandomState>>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    rule: Rule,
    /// Not yet spent, in units of cost: routes of different cost may share a counter.
    left: u64,
    /// As reported when it was taken: all of the lease is in it.
    state: State,
}

/// How many requests' worth to take at once of a counter with this state, by one of `instances`; 0: none.
pub(super) fn size(rule: &Rule, used: u64, known_end: u64, instances: u64, at: UnixMillis) -> u32 {
    let cost = rule.cost.max(1);
    let left = rule.limit.saturating_sub(used) / cost;
    let wanted = (rule.limit / PART / cost).min(left / instances.max(1).saturating_mul(2));
    let suits = rule.algorithm == Algorithm::FixedWindow
        && rule.limit >= MIN_LIMIT
        && known_end > at.0.saturating_add(SAFE_BEFORE_END_MS);
    // One request's worth would spare nothing.
    if suits && wanted > 1 { u32::try_from(wanted).unwrap_or(u32::MAX) } else { 0 }
}

fn price(rule: &Rule) -> u64 {
    rule.cost.max(1)
}

impl Lease {
    /// Whether it is of the same counter, whatever a request costs.
    fn suits(&self, rule: &Rule) -> bool {
        self.rule == Rule { cost: self.rule.cost, ..*rule }
    }

    fn is_over(&self, at: UnixMillis) -> bool {
        self.left == 0 || self.state.anchor <= at.0.saturating_add(END_MARGIN_MS)
    }
}

impl Leases {
    pub(super) fn new() -> Self {
        Self { held: Mutex::new(HashMap::default()) }
    }

    /// Spends one request's worth. The state told is that of when the lease was taken, so that what is left never
    /// grows within a window.
    pub(super) fn spend(&self, key: &[u8], rule: &Rule, at: UnixMillis) -> Option<State> {
        let mut held = self.held.lock();
        let lease = held.get_mut(key)?;
        if lease.is_over(at) || !lease.suits(rule) {
            held.remove(key);
            return None;
        }
        lease.left = lease.left.checked_sub(price(rule))?;
        Some(lease.state)
    }

    /// Takes a request's worth back that was not needed after all.
    pub(super) fn give_back(&self, key: &[u8], rule: &Rule, state: State) {
        let mut held = self.held.lock();
        let lease = held.get_mut(key);
        if let Some(lease) = lease.filter(|lease| lease.state.anchor == state.anchor && lease.suits(rule)) {
            lease.left = lease.left.saturating_add(price(rule));
        }
    }

    /// Whether a lease of this counter could be kept now.
    pub(super) fn has_room_for(&self, key: &[u8], at: UnixMillis) -> bool {
        has_room_for(&mut self.held.lock(), key, at)
    }

    /// Keeps `granted` requests' worth that the store has granted. Returns whether it is kept; else it is to be
    /// taken off the counter again.
    pub(super) fn keep(&self, key: &[u8], rule: Rule, granted: u32, state: State, at: UnixMillis) -> bool {
        let left = u64::from(granted).saturating_mul(price(&rule));
        let mut lease = Lease { rule, left, state };
        if lease.is_over(at) {
            return false;
        }
        let mut held = self.held.lock();
        if !has_room_for(&mut held, key, at) {
            return false;
        }
        if let Some(old) = held.get(key)
            && old.state.anchor == lease.state.anchor
            && old.suits(&rule)
        {
            lease.left = lease.left.saturating_add(old.left);
        }
        held.insert(key.into(), lease);
        true
    }
}

fn has_room_for(held: &mut HashMap<Box<[u8]>, Lease, RandomState>, key: &[u8], at: UnixMillis) -> bool {
    if held.len() >= MAX_LEASES && !held.contains_key(key) {
        held.retain(|_, lease| !lease.is_over(at));
    }
    held.len() < MAX_LEASES || held.contains_key(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule { algorithm: Algorithm::FixedWindow, limit: 1_000, period_ms: 60_000, cost: 1 };
    const NOW: UnixMillis = UnixMillis(1_000_000);
    const END: u64 = NOW.0 + 30_000;

    fn state(used: u64) -> State {
        State { anchor: END, used, before: 0 }
    }

    #[test]
    fn a_lease_is_a_small_part_of_what_is_left_for_all_instances() {
        let size = |used, instances| size(&RULE, used, END, instances, NOW);
        assert_eq!((size(0, 2), size(900, 2), size(960, 10), size(1_000, 2)), (50, 25, 2, 0));
        assert_eq!(super::size(&Rule { limit: 99, ..RULE }, 0, END, 1, NOW), 0);
        assert_eq!(super::size(&Rule { cost: 5, ..RULE }, 0, END, 2, NOW), 10);
        assert_eq!(super::size(&RULE, 0, NOW.0 + 1_000, 1, NOW), 0);
        assert_eq!(super::size(&RULE, 0, 0, 1, NOW), 0);
    }

    #[test]
    fn a_lease_is_spent_exactly_once_and_ends_before_its_window() {
        let leases = Leases::new();
        assert!(leases.keep(b"k", RULE, 3, state(10), NOW));
        let spent = |at| leases.spend(b"k", &RULE, UnixMillis(at)).is_some();
        assert_eq!([spent(NOW.0), spent(NOW.0), spent(NOW.0), spent(NOW.0)], [true, true, true, false]);
        leases.keep(b"k", RULE, 3, state(20), NOW);
        assert!(spent(END - END_MARGIN_MS - 1) && !spent(END - END_MARGIN_MS) && !spent(NOW.0));
        assert!(!leases.keep(b"k", RULE, 0, state(20), NOW));
        leases.keep(b"k", RULE, 3, state(30), NOW);
        assert!(
            leases.spend(b"k", &Rule { limit: 5, ..RULE }, NOW).is_none(),
            "another limit, another lease"
        );
    }

    #[test]
    fn requests_of_different_cost_spend_one_lease() {
        let (leases, dear) = (Leases::new(), Rule { cost: 10, ..RULE });
        assert!(leases.keep(b"k", RULE, 12, state(12), NOW));
        let taken = leases.spend(b"k", &dear, NOW).unwrap();
        assert!(leases.spend(b"k", &dear, NOW).is_none(), "two are left");
        assert!(leases.spend(b"k", &RULE, NOW).is_some());
        leases.give_back(b"k", &dear, taken);
        assert!(leases.keep(b"k", dear, 1, state(22), NOW));
        let left = (0..30).filter(|_| leases.spend(b"k", &RULE, NOW).is_some()).count();
        assert_eq!(left, 21);
    }

    #[test]
    fn leases_are_bounded_and_a_request_that_is_refused_elsewhere_gives_its_part_back() {
        let leases = Leases::new();
        for number in 0..MAX_LEASES as u64 {
            assert!(leases.keep(&number.to_be_bytes(), RULE, 1, state(1), NOW));
        }
        assert!(!leases.has_room_for(b"more", NOW) && leases.has_room_for(&0_u64.to_be_bytes(), NOW));
        assert!(!leases.keep(b"more", RULE, 1, state(1), NOW));
        assert!(leases.keep(b"more", RULE, 1, State { anchor: END + 60_000, ..state(1) }, UnixMillis(END)));
        let key = b"more".as_slice();
        let at = UnixMillis(END);
        let taken = leases.spend(key, &RULE, at).unwrap();
        leases.give_back(key, &RULE, taken);
        assert!(leases.spend(key, &RULE, at).is_some());
    }
}
