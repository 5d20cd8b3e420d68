//! This instance's bounded memory of counters: the store where there is no Redis, the stand-in while Redis is
//! away, and the knowledge that a key is over its limit. One entry per key serves all three; it never grows past its
//! capacity, and holds a key's text only for what the store is still to be told.
//!
//! A key is known by a 64-bit hash under a random secret of this process. Two of n keys share a counter with a
//! probability of about n² / 2⁶⁵: 2 · 10⁻⁹ for a full table of the default size, 3 · 10⁻⁶ for ten million keys. Nobody
//! can look for such pairs without the secret.
//!
//! When the table is full a new key takes the place of the one of eight that has used least of its limit. A key at or
//! over its limit goes only for another one of those: however many new addresses a flood has, who is locked out
//! stays locked out.

mod log;
mod owed;
mod share;
mod table;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use self::log::Log;
pub use self::owed::Owed;
use self::share::Share;
use self::table::{Entry, Shard};
use super::algorithm::{Rule, State};
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
    /// Counters held at most, about 56 bytes each; rounded down to a power of two, at least 512. It also bounds the
    /// times of sliding logs (four per counter, 16 bytes each, at least 524,288), which get coarser when there are
    /// more, and the keys with admissions the store is still to be told (a quarter, at least 4,096).
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
    /// Entries of what the store is owed.
    owed: AtomicUsize,
    /// Admissions that could not be noted as owed.
    untold: AtomicUsize,
}

/// What is known of a store that did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// How many instances counted in the store when it was last asked, this one included; 0 is read as 1. Each goes
    /// on with its part of every limit: see [`Local::decide_without_store`].
    pub instances: u32,
    /// Whether the store may have counted the request all the same. If not, the store is owed the admission.
    pub may_have_counted: bool,
}

impl Local {
    /// An empty table; memory is taken as keys arrive.
    pub fn new(settings: Settings) -> Self {
        let shard_capacity = settings.capacity.div_ceil(SHARDS);
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::new(shard_capacity))).collect(),
            offset: AtomicI64::new(0),
            refusal_life_ms: settings.refusal_life.map_or(u64::MAX, millis),
            owed: AtomicUsize::new(0),
            untold: AtomicUsize::new(0),
        }
    }

    /// Refuses a request that the store would refuse for certain, without asking it. Otherwise `None`, with what
    /// is known written into `checks`, and the request must be decided by the store (or here, by [`Self::decide_without_store`]).
    ///
    /// Exact: a counter that was over its limit admits nothing before the time this table computes from the
    /// state the store reported, whatever others do meanwhile. What a sliding log reported to a request of one cost
    /// under one limit refuses only such requests. A request with a penalising policy, or with a
    /// cool-down that has yet to trip, is always passed on, since the store must hear of it; attempts on a tripped one
    /// as often as it takes to be off by at most a quarter of the quiet time. Policies that only
    /// watch refuse nobody.
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
                if entry.speaks_to(&check.rule) && at.0.saturating_sub(entry.learned) <= self.refusal_life_ms
                {
                    answer.state = check.rule.roll(entry.state, at);
                }
            }
            if !check.rule.admits(answer.state, at) {
                violated.insert(index);
                must_count |= check.rule.must_hear(answer.state, at);
            }
        }
        if must_count || checks.enforced(violated).is_empty() {
            return None;
        }
        match checks.conclude(violated, at) {
            Decision::Refused(refused) => Some(refused),
            Decision::Admitted { .. } => None,
        }
    }

    /// Decides here and consumes: all checks or none, exact under concurrency. For an instance that has no
    /// store at all: every policy counts, and every limit is this instance's alone.
    pub fn decide(&self, checks: &mut Checks, now: UnixMillis) -> Decision {
        self.settle(checks, now, Share::WHOLE, false, |_| OnStoreFailure::Local)
    }

    /// Decides here while the store cannot be asked, as each policy wants it: `Local` goes on counting from the
    /// last state the store reported, `Allow` admits uncounted, `Deny` refuses.
    ///
    /// # Bounds
    /// Of G instances each admits by `Local` its part of what was left, ceil((L − c) / G), and ceil(L / G) in windows
    /// that begin meanwhile. Those windows admit together at most L + G − 1; the one that was open when the store went
    /// away at most 2 L + G − 1, and L + G − 1 if every instance had heard of its count. For requests of a higher cost
    /// read G · cost for G. What is admitted is owed to the store ([`Local::take_owed`]) unless it may know.
    pub fn decide_without_store(&self, checks: &mut Checks, now: UnixMillis, outage: Outage) -> Decision {
        let portion = Share::among(outage.instances);
        self.settle(checks, now, portion, !outage.may_have_counted, |check| check.on_store_failure)
    }

    fn settle(
        &self,
        checks: &mut Checks,
        now: UnixMillis,
        portion: Share,
        owes: bool,
        on_failure: impl Fn(&Check) -> OnStoreFailure,
    ) -> Decision {
        let at = self.store_time(now);
        let mut shards = self.lock(checks);
        let mut violated = Violated::default();
        let mut denied = false;
        for (index, (check, answer)) in checks.pairs().enumerate() {
            answer.state = match shards.of(check.hash) {
                Some(shard) => current(shard, check, portion, at),
                None => State::default(),
            };
            let fits = match on_failure(check) {
                OnStoreFailure::Local => portion.rule(check.rule).admits(answer.state, at),
                OnStoreFailure::Allow => true,
                OnStoreFailure::Deny => {
                    denied |= !check.shadow;
                    false
                }
            };
            if !fits {
                violated.insert(index);
            }
        }
        let refused = !checks.enforced(violated).is_empty();
        let consumes = |index: usize, check: &Check| {
            let counts = if refused {
                // Where the store must be asked, it is not the client's doing.
                check.penalise && !denied
            } else {
                check.penalise || !violated.contains(index)
            };
            counts && on_failure(check) == OnStoreFailure::Local
        };
        // Only a cool-down remembers refusals, whoever refused; one that only watches, its own.
        let remembers_refusal = |check: &Check| {
            matches!(check.rule.algorithm, Algorithm::CoolDown(_))
                && on_failure(check) == OnStoreFailure::Local
                && !denied
        };
        for (index, (check, answer)) in checks.pairs().enumerate() {
            if consumes(index, check) {
                let rule = portion.rule(check.rule);
                answer.state = match shards.of(check.hash) {
                    Some(shard) if rule.algorithm == Algorithm::SlidingLog => {
                        let mut log = log_of(shard, check, portion, at);
                        log.push(&rule, at.0);
                        let state = log.state(&rule);
                        shard.put_log(check.hash, log);
                        state
                    }
                    _ => rule.consume(answer.state, at),
                };
            } else if remembers_refusal(check) {
                answer.state = portion.rule(check.rule).refuse(answer.state, at);
            }
        }
        let decision = checks.conclude_by(violated, at, |rule| portion.rule(rule));
        for (index, (check, answer)) in checks.iter().zip(checks.states()).enumerate() {
            let counted = consumes(index, check);
            // An open window that was refused elsewhere has nothing to remember.
            let renewed = remembers_refusal(check) && answer.state.before > 0;
            if (counted || renewed)
                && let Some(shard) = shards.of(check.hash)
            {
                let mine = portion.rule(check.rule);
                shard.put(entry(check, mine, answer, at, false), at.0);
                if owes {
                    self.owe(shard, check, checks.key(check), mine, answer.state, at);
                }
            }
        }
        decision
    }

    fn owe(&self, shard: &mut Shard, check: &Check, key: &[u8], mine: Rule, counted: State, at: UnixMillis) {
        let mut owed = shard.take_owed(check.hash).unwrap_or_else(|| {
            self.owed.fetch_add(1, Ordering::Relaxed);
            Owed::new(check.hash, key, check.rule)
        });
        owed.add(check.rule, mine, counted, at);
        if !shard.put_owed(owed) {
            self.owed.fetch_sub(1, Ordering::Relaxed);
            self.untold.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the store is to be told of admissions.
    pub fn owes(&self) -> bool {
        self.owed.load(Ordering::Relaxed) > 0
    }

    /// Takes out what the store is owed and `wanted`, without what is over. What cannot be written is to be given back.
    pub fn take_owed(&self, now: UnixMillis, mut wanted: impl FnMut(&Owed) -> bool) -> Vec<Owed> {
        let at = self.store_time(now);
        let mut taken = Vec::new();
        for shard in &self.shards {
            let owed = shard.lock().take_owed_where(|owed| owed.is_over(at) || wanted(owed));
            self.owed.fetch_sub(owed.len(), Ordering::Relaxed);
            taken.extend(owed.into_iter().filter(|owed| !owed.is_over(at)));
        }
        taken
    }

    /// Gives back what could not be written. What came up since for the same key stays, and this is dropped.
    pub fn give_back(&self, owed: Owed) {
        let Some(shard) = self.shards.get(shard_of(owed.hash)) else { return };
        let mut shard = shard.lock();
        if let Some(newer) = shard.take_owed(owed.hash) {
            shard.put_owed(newer.with(owed));
        } else if shard.put_owed(owed) {
            self.owed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many admissions since the last call could not be noted as owed, for lack of room.
    pub fn take_untold(&self) -> usize {
        self.untold.swap(0, Ordering::Relaxed)
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
            let mut new = entry(check, check.rule, answer, at, true);
            let Some(shard) = self.shards.get(shard_of(check.hash)) else { continue };
            let mut shard = shard.lock();
            // What was admitted here and the store has not been told is in none of its counts.
            if check.rule.algorithm == Algorithm::FixedWindow
                && let Some(owed) =
                    shard.owed(check.hash).filter(|owed| owed.state.anchor == new.state.anchor)
            {
                new.state.used = new.state.used.saturating_add(owed.state.used);
            }
            if let Some(old) = shard.find(check.hash)
                && old.remote
                && old.state.anchor == new.state.anchor
                && old.state.used > new.state.used
                && old.state.before == new.state.before
                && at.0.saturating_sub(old.learned) <= OVERTAKING_MS
            {
                // Replies may overtake each other; within one window the larger count is the later one, unless
                // somebody took something off the counter. What is of a later time and fits again must not be
                // refused any longer: at worst the store is asked once more.
                let larger = State { used: old.state.used, ..new.state };
                let later = at.0 > old.learned;
                if !later || check.rule.admits(larger, at) || !check.rule.admits(new.state, at) {
                    new.state = larger;
                    new.learned = old.learned;
                    new.share = new.share.max(old.share);
                }
            }
            // The store knows better than a log that was kept here.
            shard.forget_log(check.hash);
            if new.state.used > 0 || new.state.before > 0 {
                shard.put(new, at.0);
            } else {
                shard.remove(check.hash);
            }
        }
    }

    /// Takes one request off the counter of a key (its [`super::KeySpace::hash`]), which was `counted` after it; and
    /// off what the store is owed, unless it was counted `in_store`.
    pub fn refund(&self, hash: u64, rule: Rule, counted: State, in_store: bool) {
        let Some(shard) = self.shards.get(shard_of(hash)) else { return };
        let mut shard = shard.lock();
        if !in_store && let Some(mut owed) = shard.take_owed(hash) {
            owed.refund(counted);
            shard.put_owed(owed);
        }
        if rule.algorithm == Algorithm::SlidingLog {
            let log = shard.take_log(hash).map(|mut log| {
                log.take_back(&rule, counted);
                log
            });
            match (log, shard.find(hash)) {
                (Some(log), Some(entry)) => {
                    entry.state = log.state(&rule);
                    shard.put_log(hash, log);
                }
                // What is known of the store's log cannot be counted back: it is asked again.
                (None, Some(entry)) if entry.remote => shard.remove(hash),
                _ => {}
            }
        } else if let Some(entry) = shard.find(hash) {
            entry.state = rule.refund(entry.state, counted);
        }
    }

    /// Fills `checks` with what is known here, and consumes nothing.
    pub fn look(&self, checks: &mut Checks, now: UnixMillis) {
        let at = self.store_time(now);
        for (check, answer) in checks.pairs() {
            if let Some(shard) = self.shards.get(shard_of(check.hash)) {
                answer.state = current(&mut shard.lock(), check, Share::WHOLE, at);
            }
        }
        checks.note(at);
    }

    /// Gives back up to `requests` of what was used of a counter.
    pub fn grant(&self, check: &Check, requests: u64) {
        let Some(shard) = self.shards.get(shard_of(check.hash)) else { return };
        let mut shard = shard.lock();
        if let Some(mut log) = shard.take_log(check.hash) {
            log.drop_newest(requests.saturating_mul(check.rule.cost));
            if let Some(entry) = shard.find(check.hash) {
                entry.state = log.state(&check.rule);
                shard.put_log(check.hash, log);
            }
        } else if let Some(entry) = shard.find(check.hash) {
            entry.state = check.rule.relieve(entry.state, requests.saturating_mul(check.rule.cost));
        }
    }

    /// Forgets the counter of a key (its [`super::KeySpace::hash`]), after somebody reset it.
    pub fn forget(&self, hash: u64) {
        if let Some(shard) = self.shards.get(shard_of(hash)) {
            let mut shard = shard.lock();
            shard.remove(hash);
            if shard.take_owed(hash).is_some() {
                self.owed.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Forgets every counter.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let owed = shard.take_owed_where(|_| true);
            self.owed.fetch_sub(owed.len(), Ordering::Relaxed);
            shard.clear();
        }
    }

    /// Bytes of memory taken by all that is remembered, but for the keys of what is owed.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().bytes()).sum()
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

/// The counter of a check as this instance counts it, rolled.
fn current(shard: &mut Shard, check: &Check, portion: Share, at: UnixMillis) -> State {
    if check.rule.algorithm == Algorithm::SlidingLog {
        let log = log_of(shard, check, portion, at);
        let state = log.state(&portion.rule(check.rule));
        if shard.find(check.hash).is_some_and(|entry| !entry.remote) {
            shard.put_log(check.hash, log);
        }
        return state;
    }
    let Some(entry) = shard.find(check.hash) else {
        return portion.rule(check.rule).roll(State::default(), at);
    };
    if entry.remote {
        // Written back even when refused: a state cut down after a clock jump must stay so.
        entry.state = check.rule.roll(entry.state, at);
        portion.of(check.rule, entry.state, at)
    } else {
        entry.state = portion.rule(check.rule).roll(entry.state, at);
        entry.state
    }
}

/// The log of a check as this instance counts it, rolled: out of the shard, or made of what is known.
fn log_of(shard: &mut Shard, check: &Check, portion: Share, at: UnixMillis) -> Log {
    let mine = portion.rule(check.rule);
    let mut log = shard.take_log(check.hash).unwrap_or_else(|| match shard.find(check.hash) {
        Some(entry) if entry.remote => Log::of(&check.rule, portion.of(check.rule, entry.state, at)),
        Some(entry) => Log::of(&mine, entry.state),
        None => Log::default(),
    });
    log.roll(&mine, at.0);
    log
}

fn entry(check: &Check, rule: Rule, answer: &CounterState, at: UnixMillis, remote: bool) -> Entry {
    let share = if rule.admits(answer.state, at) {
        let left = u128::from(answer.remaining) * 255 / u128::from(rule.limit.max(1));
        254_u8.saturating_sub(u8::try_from(left).unwrap_or(u8::MAX))
    } else {
        u8::MAX
    };
    let (expires, learned, asked) = (answer.reset_at.0, at.0, table::fingerprint(&rule));
    Entry { hash: check.hash, state: answer.state, expires, learned, share, asked, remote }
}
