//! This instance's bounded memory of counters: the store where there is no Redis, the stand-in while Redis is
//! away, and the knowledge that a key is over its limit. One entry per key serves all three; it never holds a
//! key's text and never grows past its capacity.

mod table;

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use self::table::{Entry, Shard};
use super::algorithm::State;
use super::check::{Check, Checks, CounterState, Decision, Refused, Violated};
use super::policy::{Algorithm, OnStoreFailure};
use crate::clock::{UnixMillis, millis};

const SHARDS: usize = 64;
/// A window is not believed to be still open this close to its end: the call may reach the store later.
const END_MARGIN_MS: u64 = 100;
/// Samples of the store's clock differ by the time calls take; knowledge this little ahead of now is no jump.
const CLOCK_SLACK_MS: u64 = 1_000;
/// A reply that comes this much later than another was not overtaken by it.
const OVERTAKING_MS: u64 = 1_000;

/// How much is remembered, and for how long a refusal is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Counters held at most, about 56 bytes each; rounded down to a power of two, at least 512.
    pub capacity: usize,
    /// How long a refusal learned from the store is believed without asking again, so that a counter which
    /// somebody reset admits again; `None`: until the counter would admit by itself.
    pub refusal_life: Option<Duration>,
}

impl Default for Settings {
    /// 262,144 counters (15 MB when full); refusals are believed for four seconds.
    fn default() -> Self {
        Self { capacity: 1 << 18, refusal_life: Some(Duration::from_secs(4)) }
    }
}

/// The table. Every method takes `now` from this instance's clock; inside, times are on the store's clock,
/// whose distance is learned from its replies.
pub struct Local {
    shards: Box<[Mutex<Shard>]>,
    /// Store's clock minus this instance's, in ms.
    offset: AtomicI64,
    refusal_life_ms: u64,
}

impl Local {
    /// An empty table; memory is taken as keys arrive.
    pub fn new(settings: Settings) -> Self {
        let shard_capacity = settings.capacity.div_ceil(SHARDS);
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::new(shard_capacity))).collect(),
            offset: AtomicI64::new(0),
            refusal_life_ms: settings.refusal_life.map_or(u64::MAX, millis),
        }
    }

    /// Refuses a request that the store would refuse for certain, without asking it. Otherwise `None`, with what
    /// is known written into `checks`, and the request must be decided by the store (or here, by [`Self::decide_without_store`]).
    ///
    /// Exact: a counter that was over its limit admits nothing before the time this table computes from the
    /// state the store reported, whatever others do meanwhile. A request with a penalising policy is always
    /// passed on, since the store must count it.
    pub fn refused(&self, checks: &mut Checks, now: UnixMillis) -> Option<Refused> {
        let at = self.store_time(now);
        checks.set_at(at);
        let mut violated = Violated::default();
        let mut must_count = false;
        for (index, (check, answer)) in checks.pairs().enumerate() {
            must_count |= check.penalise;
            answer.state = State::default();
            check.known_end = 0;
            if let Some(entry) = self.recall(check, at) {
                if check.rule.algorithm == Algorithm::FixedWindow
                    && entry.state.anchor > at.0.saturating_add(END_MARGIN_MS)
                {
                    check.known_end = entry.state.anchor;
                }
                // Somebody may have reset the counter since: then the store is asked again.
                if at.0.saturating_sub(entry.learned) <= self.refusal_life_ms {
                    answer.state = check.rule.roll(entry.state, at);
                }
            }
            if !check.rule.admits(answer.state, at) {
                violated.insert(index);
            }
        }
        if must_count || violated.is_empty() {
            return None;
        }
        match checks.conclude(violated, at) {
            Decision::Refused(refused) => Some(refused),
            Decision::Admitted { .. } => None,
        }
    }

    /// Decides here and consumes: all checks or none, exact under concurrency. For an instance that has no
    /// store at all: every policy counts.
    pub fn decide(&self, checks: &mut Checks, now: UnixMillis) -> Decision {
        self.settle(checks, now, |_| OnStoreFailure::Local)
    }

    /// Decides here while the store cannot be asked, as each policy wants it: `Local` goes on counting from the
    /// last state the store reported, `Allow` admits uncounted, `Deny` refuses.
    pub fn decide_without_store(&self, checks: &mut Checks, now: UnixMillis) -> Decision {
        self.settle(checks, now, |check| check.on_store_failure)
    }

    fn settle(
        &self,
        checks: &mut Checks,
        now: UnixMillis,
        on_failure: impl Fn(&Check) -> OnStoreFailure,
    ) -> Decision {
        let at = self.store_time(now);
        let mut shards = self.lock(checks);
        let mut violated = Violated::default();
        for (index, (check, answer)) in checks.pairs().enumerate() {
            let entry = shards.of(check.hash).and_then(|shard| shard.find(check.hash));
            answer.state = match entry {
                Some(entry) => {
                    // Written back even when refused: a state cut down after a clock jump must stay so.
                    entry.state = check.rule.roll(entry.state, at);
                    entry.state
                }
                None => check.rule.roll(State::default(), at),
            };
            let fits = match on_failure(check) {
                OnStoreFailure::Local => check.rule.admits(answer.state, at),
                OnStoreFailure::Allow => true,
                OnStoreFailure::Deny => false,
            };
            if !fits {
                violated.insert(index);
            }
        }
        let consumes = |check: &Check| {
            on_failure(check) == OnStoreFailure::Local && (violated.is_empty() || check.penalise)
        };
        for (check, answer) in checks.pairs() {
            if consumes(check) {
                answer.state = check.rule.consume(answer.state, at);
            }
        }
        let decision = checks.conclude(violated, at);
        for (check, answer) in checks.pairs() {
            if consumes(check)
                && let Some(shard) = shards.of(check.hash)
            {
                shard.put(entry(check, answer, at, false), at.0);
            }
        }
        decision
    }

    /// Remembers what the store said about `checks`, which were sent at `sent_at` by this instance's clock;
    /// `clock` is the store's, where it told.
    pub fn observe(&self, checks: &Checks, clock: Option<UnixMillis>, sent_at: UnixMillis) {
        if let Some(clock) = clock {
            // Measured from before the call: the store's clock is taken to be ahead by at most the call's
            // duration, so knowledge ends a little early, never late.
            self.offset.store(clock.0.cast_signed().wrapping_sub(sent_at.0.cast_signed()), Ordering::Relaxed);
        }
        let at = clock.unwrap_or_else(|| self.store_time(sent_at));
        for (check, answer) in checks.iter().zip(checks.states()) {
            let mut new = entry(check, answer, at, true);
            let Some(shard) = self.shards.get(shard_of(check.hash)) else { continue };
            let mut shard = shard.lock();
            if let Some(old) = shard.find(check.hash)
                && old.remote
                && old.state.anchor == new.state.anchor
                && old.state.used > new.state.used
                && old.state.before == new.state.before
                && at.0.saturating_sub(old.learned) <= OVERTAKING_MS
            {
                // Replies may overtake each other; within one window the larger count is the later one, unless
                // somebody took something off the counter.
                new.state.used = old.state.used;
                new.learned = old.learned;
                new.share = new.share.max(old.share);
            }
            if new.state.used > 0 || new.state.before > 0 {
                shard.put(new, at.0);
            } else {
                shard.remove(check.hash);
            }
        }
    }

    /// Fills `checks` with what is known here, and consumes nothing.
    pub fn look(&self, checks: &mut Checks, now: UnixMillis) {
        let at = self.store_time(now);
        for index in 0..checks.len() {
            let Some(check) = checks.get(index) else { continue };
            let Some(shard) = self.shards.get(shard_of(check.hash)) else { continue };
            let state = shard.lock().find(check.hash).map(|entry| entry.state);
            let state = check.rule.roll(state.unwrap_or_default(), at);
            checks.tell(index, state);
        }
        checks.note(at);
    }

    /// Gives back up to `requests` of what was used of a counter.
    pub fn grant(&self, check: &Check, requests: u64) {
        if let Some(shard) = self.shards.get(shard_of(check.hash))
            && let Some(entry) = shard.lock().find(check.hash)
        {
            entry.state = check.rule.relieve(entry.state, requests);
        }
    }

    /// Forgets the counter of a key (its [`super::KeySpace::hash`]), after somebody reset it.
    pub fn forget(&self, hash: u64) {
        if let Some(shard) = self.shards.get(shard_of(hash)) {
            shard.lock().remove(hash);
        }
    }

    /// Forgets every counter.
    pub fn clear(&self) {
        for shard in &self.shards {
            shard.lock().clear();
        }
    }

    /// Counters held now, expired ones that were not yet reused included.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `now` of this instance's clock, on the store's.
    pub fn store_time(&self, now: UnixMillis) -> UnixMillis {
        UnixMillis(now.0.saturating_add_signed(self.offset.load(Ordering::Relaxed)))
    }

    fn recall(&self, check: &Check, at: UnixMillis) -> Option<Entry> {
        let entry = *self.shards.get(shard_of(check.hash))?.lock().find(check.hash)?;
        // What was counted here while the store was away binds nobody else, and knowledge from the future means
        // that a clock went back: ask.
        let plausible = entry.learned <= at.0.saturating_add(CLOCK_SLACK_MS);
        (entry.remote && plausible && entry.expires > at.0).then_some(entry)
    }

    fn lock(&self, checks: &Checks) -> Locked<'_> {
        let wanted = checks.iter().fold(0_u64, |mask, check| mask | 1 << shard_of(check.hash));
        // Ascending, each once: two requests can never wait for each other.
        let shards = self.shards.iter().enumerate();
        let shards = shards.filter(|(index, _)| wanted >> index & 1 == 1);
        Locked(shards.map(|(index, shard)| (index, shard.lock())).collect())
    }
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").field("offset", &self.offset).finish_non_exhaustive()
    }
}

struct Locked<'a>(Vec<(usize, MutexGuard<'a, Shard>)>);

impl Locked<'_> {
    fn of(&mut self, hash: u64) -> Option<&mut Shard> {
        let wanted = shard_of(hash);
        self.0.iter_mut().find(|(index, _)| *index == wanted).map(|(_, shard)| &mut **shard)
    }
}

/// The top six bits; the table inside a shard uses the low ones.
const fn shard_of(hash: u64) -> usize {
    (hash >> 58) as usize
}

fn entry(check: &Check, answer: &CounterState, at: UnixMillis, remote: bool) -> Entry {
    let share = if check.rule.admits(answer.state, at) {
        let left = u128::from(answer.remaining) * 255 / u128::from(answer.limit.max(1));
        254_u8.saturating_sub(u8::try_from(left).unwrap_or(u8::MAX))
    } else {
        u8::MAX
    };
    let (expires, learned) = (answer.reset_at.0, at.0);
    Entry { hash: check.hash, state: answer.state, expires, learned, share, remote }
}
