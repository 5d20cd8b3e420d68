//! The checks of one request, what their counters said and the decision made of it.
//! One reusable buffer holds everything, so that a request in steady state allocates nothing here.

use super::algorithm::{Rule, State};
use super::plan::effective_limit;
use super::policy::{Algorithm, MAX_LOG_LIMIT, OnStoreFailure, Policy, Window};
use super::subject::{Caller, KeySpace, own_limit};
use crate::clock::UnixMillis;

/// Counters one request may touch; configurations that need more must be refused when loaded.
pub const MAX_CHECKS: usize = 32;

/// More than [`MAX_CHECKS`] counters for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a request cannot touch more than {MAX_CHECKS} counters")]
pub struct TooManyChecks;

/// One counter that one request has to pass.
#[derive(Clone, Debug)]
pub struct Check {
    /// The caller's number for the policy.
    pub policy: u16,
    /// Which window of the policy, or of the plan.
    pub window: u16,
    /// What is asked: algorithm, effective limit, period and cost.
    pub rule: Rule,
    /// Whether refused requests consume.
    pub penalise: bool,
    /// Whether it only watches: it refuses nobody.
    pub shadow: bool,
    /// Whether this instance may take several requests' worth at once and spend it alone.
    pub lease: bool,
    /// What happens while the store cannot be asked.
    pub on_store_failure: OnStoreFailure,
    /// The keyed hash of the key.
    pub hash: u64,
    /// The end of the fixed window on the store's clock where it is known, 0 otherwise: spares a question.
    pub known_end: u64,
    key: (usize, usize),
    name: (usize, usize),
}

/// What a counter said, after the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterState {
    /// The effective limit.
    pub limit: u64,
    /// Whole requests that still fit.
    pub remaining: u64,
    /// When the counter is fully restored, on the store's clock.
    pub reset_at: UnixMillis,
    /// The counter itself, on the store's clock.
    pub state: State,
}

/// A set of checks of one request, by position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Violated(u32);

impl Violated {
    /// The set whose bit `i` stands for check `i`.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Bit `i` stands for check `i`.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Adds check `index`, below [`MAX_CHECKS`].
    pub fn insert(&mut self, index: usize) {
        self.0 |= u32::try_from(index).ok().and_then(|index| 1_u32.checked_shl(index)).unwrap_or(0);
    }

    /// Whether check `index` is in the set.
    pub fn contains(self, index: usize) -> bool {
        u32::try_from(index).is_ok_and(|index| self.0.checked_shr(index).unwrap_or(0) & 1 == 1)
    }

    /// Whether no check is violated.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The positions in the set, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_CHECKS).filter(move |&index| self.contains(index))
    }
}

/// Why and until when a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The checks that did not fit; never empty.
    pub violated: Violated,
    /// The earliest moment at which all of them would fit, on the store's clock.
    pub retry_at: UnixMillis,
    /// The moment of the decision on the store's clock.
    pub at: UnixMillis,
}

/// One decision for all checks; the counters' states are in [`Checks::states`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Every check fitted and consumed.
    Admitted {
        /// The moment of the decision on the store's clock.
        at: UnixMillis,
    },
    /// Some check did not fit; only penalising policies consumed.
    Refused(Refused),
}

impl Decision {
    /// The moment of the decision on the store's clock.
    pub const fn at(&self) -> UnixMillis {
        match self {
            Self::Admitted { at } | Self::Refused(Refused { at, .. }) => *at,
        }
    }

    /// Whether the request may go on.
    pub const fn is_admitted(&self) -> bool {
        matches!(self, Self::Admitted { .. })
    }
}

/// The checks of one request with room for the answers. Reuse it: [`Checks::begin`] keeps the memory.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    items: Vec<Check>,
    states: Vec<CounterState>,
    bytes: Vec<u8>,
    at: UnixMillis,
    shadow_violated: Violated,
    in_flight: Vec<Seats>,
}

/// What a policy on requests in flight says of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seats {
    /// Requests of the subject that may be in flight.
    pub most: u64,
    /// How many more would be let in.
    pub left: u64,
    name: (usize, usize),
}

impl Checks {
    /// An empty set with room for a usual request.
    pub fn new() -> Self {
        Self {
            items: Vec::with_capacity(4),
            states: Vec::with_capacity(4),
            bytes: Vec::with_capacity(256),
            at: UnixMillis(0),
            shadow_violated: Violated::default(),
            in_flight: Vec::new(),
        }
    }

    /// Forgets the last request; `now` is this instance's clock.
    pub fn begin(&mut self, now: UnixMillis) {
        self.items.clear();
        self.states.clear();
        self.bytes.clear();
        self.at = now;
        self.shadow_violated = Violated::default();
        self.in_flight.clear();
    }

    /// The keyed hash of what `policy` counts `caller` by; `None` when it does not apply.
    pub fn subject(&mut self, space: &KeySpace, policy: &Policy, caller: &Caller<'_>) -> Option<u64> {
        let start = self.bytes.len();
        let applies = space.write_key(policy, caller, &mut self.bytes);
        let hash = applies.then(|| space.hash(self.bytes.get(start..).unwrap_or_default()));
        self.bytes.truncate(start);
        hash
    }

    /// Notes what `policy`, which counts requests in flight, is to tell the client.
    pub fn note_in_flight(&mut self, policy: &Policy, most: u64, left: u64) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(policy.name().as_bytes());
        self.in_flight.push(Seats { most, left, name: (start, self.bytes.len()) });
    }

    /// What was noted of requests in flight, each with the policy's name.
    pub fn in_flight(&self) -> impl Iterator<Item = (&str, &Seats)> {
        self.in_flight.iter().map(|seats| (self.text(seats.name), seats))
    }

    /// Adds the counters of `policy` for `caller`, under the caller's number `index`; a request costs `factor`
    /// times what the policy says. Adds nothing when the policy does not apply, has no windows, or when its
    /// counters are there already.
    pub fn add(
        &mut self,
        space: &KeySpace,
        index: u16,
        policy: &Policy,
        caller: &Caller<'_>,
        factor: u32,
    ) -> Result<(), TooManyChecks> {
        let (windows, multiplier) = match policy.windows() {
            Some(windows) => (windows, 1.0),
            None => (caller.plan.windows(), caller.multiplier),
        };
        if self.items.len().saturating_add(windows.len()) > MAX_CHECKS {
            return Err(TooManyChecks);
        }
        let stem = self.bytes.len();
        if !space.write_key(policy, caller, &mut self.bytes) {
            return Ok(());
        }
        let stem = stem..self.bytes.len();
        let several = windows.len() > 1;
        for (number, window) in (0_u16..).zip(windows) {
            let key = if several {
                let start = self.bytes.len();
                self.bytes.extend_from_within(stem.clone());
                self.bytes.push(b':');
                self.bytes.extend_from_slice(window.name().as_bytes());
                (start, self.bytes.len())
            } else {
                (stem.start, stem.end)
            };
            let hash = space.hash(self.bytes.get(key.0..key.1).unwrap_or_default());
            if self.items.iter().any(|item| item.hash == hash) {
                continue;
            }
            let name = self.write_name(policy, window, several);
            let own = own_limit(policy, caller, window.period_ms());
            let effective = own.unwrap_or_else(|| effective_limit(window.limit(), multiplier));
            let rule = Rule {
                algorithm: policy.algorithm(),
                limit: match policy.algorithm() {
                    // A multiplier must not make the log longer than the configuration may.
                    Algorithm::SlidingLog if policy.windows().is_none() || own.is_some() => {
                        effective.min(MAX_LOG_LIMIT)
                    }
                    _ => effective,
                },
                period_ms: window.period_ms(),
                cost: u64::from(policy.cost()) * u64::from(factor.max(1)),
            };
            self.items.push(Check {
                policy: index,
                window: number,
                rule,
                penalise: policy.penalise(),
                shadow: policy.shadow(),
                lease: policy.lease(),
                on_store_failure: policy.on_store_failure(),
                hash,
                known_end: 0,
                key,
                name,
            });
            let state = State::default();
            let (remaining, reset_at) = (rule.limit, self.at);
            self.states.push(CounterState { limit: rule.limit, remaining, reset_at, state });
        }
        Ok(())
    }

    fn write_name(&mut self, policy: &Policy, window: &Window, several: bool) -> (usize, usize) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(policy.name().as_bytes());
        if several {
            self.bytes.push(b'-');
            self.bytes.extend_from_slice(window.name().as_bytes());
        }
        (start, self.bytes.len())
    }

    /// The checks in the order they were added.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Check> {
        self.items.iter()
    }

    /// How many counters the request touches.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether no policy applies to the request.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The check at `index`.
    pub fn get(&self, index: usize) -> Option<&Check> {
        self.items.get(index)
    }

    /// The Redis key of a check of this set.
    pub fn key(&self, check: &Check) -> &[u8] {
        self.bytes.get(check.key.0..check.key.1).unwrap_or_default()
    }

    /// The name of a check of this set in header fields: `<policy>` or `<policy>-<window>`, `[a-z0-9_-]+`.
    pub fn name(&self, check: &Check) -> &str {
        self.text(check.name)
    }

    fn text(&self, (start, end): (usize, usize)) -> &str {
        self.bytes.get(start..end).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or("")
    }

    /// What the counters said, in the order of the checks. Before a decision: untouched counters.
    pub fn states(&self) -> &[CounterState] {
        &self.states
    }

    /// When the request is being judged: this instance's clock, moved to the store's once that is known.
    pub const fn at(&self) -> UnixMillis {
        self.at
    }

    /// The checks at the positions that are `wanted`, as a set of their own.
    #[must_use]
    pub fn only(&self, wanted: Violated) -> Self {
        let of = |index: &usize| wanted.contains(*index);
        let picked = |index: usize| self.items.get(index).zip(self.states.get(index));
        let (items, states) =
            (0..self.items.len()).filter(of).filter_map(picked).unzip::<_, _, Vec<_>, Vec<_>>();
        let items = items.into_iter().cloned().collect();
        Self {
            items,
            states: states.into_iter().copied().collect(),
            bytes: self.bytes.clone(),
            ..Self { at: self.at, ..Self::default() }
        }
    }

    /// Notes the raw state of the counter at `index`; the answers follow with [`Self::conclude`].
    pub fn tell(&mut self, index: usize, state: State) {
        if let Some(answer) = self.states.get_mut(index) {
            answer.state = state;
        }
    }

    /// Brings the answers in line with raw states, `at` on the store's clock, and decides nothing.
    pub fn note(&mut self, at: UnixMillis) {
        self.conclude(Violated::default(), at);
    }

    /// The shadow checks that would have refused the request; known once it is decided.
    pub const fn shadow_violated(&self) -> Violated {
        self.shadow_violated
    }

    /// Those of `violated` that refuse, because they do not only watch.
    pub fn enforced(&self, violated: Violated) -> Violated {
        let mut enforced = Violated::default();
        for index in violated.iter().filter(|&index| self.get(index).is_some_and(|check| !check.shadow)) {
            enforced.insert(index);
        }
        enforced
    }

    pub(super) fn set_at(&mut self, at: UnixMillis) {
        self.at = at;
    }

    /// Each check with what its counter said, to be filled in before [`Self::conclude`].
    pub fn pairs(&mut self) -> impl ExactSizeIterator<Item = (&mut Check, &mut CounterState)> {
        self.items.iter_mut().zip(&mut self.states)
    }

    /// Turns raw states, as they are after the request, into the decision. `violated` are all checks that did not
    /// fit; those that only watch are set aside as [`Self::shadow_violated`].
    pub fn conclude(&mut self, violated: Violated, at: UnixMillis) -> Decision {
        self.conclude_by(violated, at, |rule| rule)
    }

    /// As [`Self::conclude`], where each check was judged by another rule than its own: the answers tell the limit of
    /// its own, and what is left and when by the other.
    pub(super) fn conclude_by(
        &mut self,
        violated: Violated,
        at: UnixMillis,
        judged_by: impl Fn(Rule) -> Rule,
    ) -> Decision {
        self.at = at;
        let enforced = self.enforced(violated);
        self.shadow_violated = Violated(violated.0 & !enforced.0);
        let mut retry_at = at;
        for (index, (check, answer)) in self.pairs().enumerate() {
            let rule = judged_by(check.rule);
            answer.limit = check.rule.limit;
            answer.remaining = rule.remaining(answer.state, at);
            answer.reset_at = rule.reset_at(answer.state, at);
            if enforced.contains(index) {
                retry_at = retry_at.max(rule.retry_at(answer.state, at));
            }
        }
        if enforced.is_empty() {
            Decision::Admitted { at }
        } else {
            Decision::Refused(Refused { violated: enforced, retry_at, at })
        }
    }
}
