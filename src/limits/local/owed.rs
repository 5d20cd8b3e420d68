//! What this instance admitted while the store was away and the store has not been told: one entry per key with such
//! admissions. It only remembers; who writes it, and when, is decided above.

use super::super::algorithm::{Rule, State};
use super::super::policy::Algorithm;
use super::log::Log;
use crate::clock::UnixMillis;

/// Admissions of one key that the store does not know. They belong to one window and end with it.
#[derive(Clone, Debug)]
pub struct Owed {
    /// The key in the store.
    pub key: Box<[u8]>,
    /// How the key is counted there.
    pub rule: Rule,
    /// What was added here, and nothing else, on the store's clock: the window is that of the anchor.
    pub state: State,
    pub(super) hash: u64,
    pub(super) log: Log,
}

impl Owed {
    pub(super) fn new(hash: u64, key: &[u8], rule: Rule) -> Self {
        Self { key: key.into(), rule, state: State::default(), hash, log: Log::default() }
    }

    /// Adds a request that `mine`, this instance's part of the rule, counted: `counted` is the state after it.
    pub(super) fn add(&mut self, rule: Rule, mine: Rule, counted: State, at: UnixMillis) {
        self.rule = rule;
        let state = match rule.algorithm {
            // Tripped, the state says all there is to say.
            Algorithm::CoolDown(_) if counted.before > 0 => counted,
            Algorithm::FixedWindow | Algorithm::CoolDown(_) => {
                // The window may have begun before the outage: its end is the store's.
                let used = if self.state.anchor == counted.anchor { self.state.used } else { 0 };
                State {
                    anchor: counted.anchor,
                    used: used.saturating_add(rule.price()),
                    before: counted.before,
                }
            }
            Algorithm::SlidingLog => {
                self.log.roll(&rule, at.0);
                self.log.push(&rule, at.0);
                self.log.state(&rule)
            }
            Algorithm::SlidingWindow | Algorithm::TokenBucket => mine.consume(mine.roll(self.state, at), at),
        };
        self.state = state;
    }

    /// Takes off a request that was `counted`; of another window, it has nothing to take off.
    pub(super) fn refund(&mut self, counted: State) {
        if self.rule.algorithm == Algorithm::SlidingLog {
            self.log.take_back(&self.rule, counted);
            self.state = self.log.state(&self.rule);
        } else {
            self.state = self.rule.refund(self.state, counted);
        }
    }

    /// Both, where `earlier` belongs to the same window; else the one of the later window.
    pub(super) fn with(mut self, earlier: Self) -> Self {
        let (mine, theirs) = (self.state, earlier.state);
        match self.rule.algorithm {
            _ if self.rule.algorithm != earlier.rule.algorithm => {}
            // The last one that tripped.
            Algorithm::CoolDown(_) if mine.before > 0 && mine.used >= theirs.used => {}
            Algorithm::CoolDown(_) if theirs.before > 0 => return earlier,
            Algorithm::SlidingLog => {
                self.log.prepend(earlier.log);
                self.state = self.log.state(&self.rule);
            }
            Algorithm::TokenBucket => self.state.used = mine.used.saturating_add(theirs.used),
            Algorithm::SlidingWindow if mine.anchor == theirs.anchor.saturating_add(self.rule.period()) => {
                self.state.before = mine.before.saturating_add(theirs.used);
            }
            Algorithm::SlidingWindow if mine.anchor == theirs.anchor => {
                self.state.used = mine.used.saturating_add(theirs.used);
                self.state.before = mine.before.saturating_add(theirs.before);
            }
            _ if mine.anchor == theirs.anchor => self.state.used = mine.used.saturating_add(theirs.used),
            _ if mine.anchor < theirs.anchor => return earlier,
            _ => {}
        }
        self
    }

    /// Whether the window is over at `at`: nobody needs to know any more.
    pub(super) fn is_over(&self, at: UnixMillis) -> bool {
        let over = match self.rule.algorithm {
            Algorithm::FixedWindow | Algorithm::CoolDown(_) => self.state.anchor,
            Algorithm::SlidingLog => self.state.before,
            Algorithm::SlidingWindow | Algorithm::TokenBucket => {
                self.rule.reset_at(self.state, UnixMillis(0)).0
            }
        };
        over <= at.0
    }

    /// How much work it is to write it: one, and of a sliding log one more for each request.
    pub fn weight(&self) -> u64 {
        match self.rule.algorithm {
            Algorithm::SlidingLog => self.state.used.saturating_add(1),
            _ => 1,
        }
    }

    /// Of a sliding log: when requests were admitted, ms on the store's clock, and how many each time, ascending.
    pub fn stamps(&self) -> impl ExactSizeIterator<Item = (u64, u64)> {
        self.log.stamps()
    }
}
