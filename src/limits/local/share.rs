//! What one of several instances may admit while none of them can ask the store: its part of every limit, and of what
//! was left when the store was last heard. It holds no counter.

use super::super::algorithm::{Rule, State};
use super::super::policy::{Algorithm, CoolDown};
use crate::clock::UnixMillis;

/// One instance's part among `instances`, each of which takes the same.
///
/// # Bounds
/// With a limit of L, G instances and requests of cost 1, a window that begins while the store is away admits at most
/// G · ceil(L / G) ≤ L + G − 1 over all instances. Of a window that was open when the store went away an instance
/// that knew its count c goes on to ceil((L − c) / G), and one that had never heard of it to ceil(L / G): together
/// with what the store had counted at most L + G − 1 if all knew, and never more than 2 L + G − 1. Where requests cost
/// more, a part is at least the cost of one request, and G becomes G · cost in these bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    instances: u64,
}

impl Share {
    /// Everything: there is nobody else.
    pub(super) const WHOLE: Self = Self { instances: 1 };

    /// A part among this many; 0 is read as 1.
    pub(super) fn among(instances: u32) -> Self {
        Self { instances: u64::from(instances).max(1) }
    }

    /// What this instance counts by.
    pub(super) fn rule(self, rule: Rule) -> Rule {
        if self.instances == 1 {
            return rule;
        }
        let least = rule.price().min(rule.limit);
        let algorithm = match rule.algorithm {
            Algorithm::CoolDown(CoolDown { interval_ms, quiet_ms }) => Algorithm::CoolDown(CoolDown {
                interval_ms: interval_ms.saturating_mul(self.instances),
                quiet_ms,
            }),
            algorithm => algorithm,
        };
        Rule { algorithm, limit: rule.limit.div_ceil(self.instances).max(least), ..rule }
    }

    /// The store's state of a counter as this instance's: what is left by [`Self::rule`] is this instance's part of
    /// what `rule` leaves. `known` must be rolled.
    pub(super) fn of(self, rule: Rule, known: State, at: UnixMillis) -> State {
        if self.instances == 1 {
            return known;
        }
        let mine = self.rule(rule);
        // A window nobody used is nobody's state: its part is the whole of `mine`.
        let part = |limit: u64, mine: u64, used: u64| {
            if used == 0 {
                0
            } else {
                mine.saturating_sub(limit.saturating_sub(used).div_ceil(self.instances))
            }
        };
        match rule.algorithm {
            Algorithm::TokenBucket => {
                let debt = |rule: &Rule| rule.capacity().saturating_mul(rule.period());
                State { used: part(debt(&rule), debt(&mine), known.used), ..known }
            }
            // Once tripped, `used` is a time.
            Algorithm::CoolDown(_) if known.before > 0 => known,
            Algorithm::FixedWindow | Algorithm::CoolDown(_) | Algorithm::SlidingLog => {
                State { used: part(rule.limit, mine.limit, known.used), ..known }
            }
            Algorithm::SlidingWindow => {
                let used = part(rule.limit, mine.limit, known.used);
                let before = known.before.div_ceil(self.instances);
                mine.roll(State { used, before, ..known }, at)
            }
        }
    }
}
