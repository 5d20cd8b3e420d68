//! Keeps the keys of one issuer up to date: at intervals, and sooner when a token names a key nobody has heard of.
//!
//! All reads are made by one task, so there is never more than one under way. What was read last holds until
//! something better was read: a failure takes no key away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::file::KeyFile;
use super::http::KeyUrl;
use super::settings::{Place, Settings};
use super::source::{Source, Trouble};
use crate::clock::Clock;
use crate::identity::jwk::{Published, Skipped, read_set};
use crate::identity::{Refused, Ring, Sought, Unheard};
use crate::metrics::{JwksFetch, JwksMetrics, Metrics};

/// Most requests that may wait for one issuer's keys at once.
const MAX_WAITING: usize = 1_024;
/// Most that is remembered as looked for in vain.
const MAX_VAIN: usize = 4_096;
/// Longest time a request waits for keys, whatever the settings.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// After failures the pause doubles from the cooldown up to this, or to the refresh where that is shorter.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// What is known after asking for a key that fits a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The keys are others than those the token was judged by: it is to be judged anew, and asked for again where they
    /// do not fit either.
    Changed,
    /// The same, and they were read since the question: what they say is final.
    Renewed,
    /// The keys are those the token was judged by, although it was looked for others: what they said is final.
    Final,
    /// Nobody can say: keys cannot be read, or too many wait for them.
    Unavailable,
}

/// Which reads there have been.
#[derive(Clone, Copy, Debug, Default)]
struct Rounds {
    begun: u64,
    ended: u64,
    /// Whether the last one to end succeeded.
    succeeded: bool,
    /// When the next one may begin; `None`: now.
    next: Option<Instant>,
}

/// The keys of one issuer. [`Keeper::keep`] does the work; any thread may [`Keeper::ask`].
pub struct Keeper {
    settings: Settings,
    source: Box<dyn Source>,
    ring: Arc<Ring>,
    rounds: watch::Sender<Rounds>,
    /// The read that somebody waits for.
    wanted: AtomicU64,
    wake: Notify,
    waiting: AtomicUsize,
    /// What was looked for in vain, and until when that is taken for an answer.
    vain: Cache<Sought, Instant>,
    standing: Mutex<Standing>,
    clock: Arc<dyn Clock>,
    metrics: JwksMetrics,
}

/// What the operator was told last.
#[derive(Default)]
struct Standing {
    print: Option<[u8; 32]>,
    faults: Vec<Skipped>,
    failing: bool,
}

impl Keeper {
    /// A keeper of what its settings name, which begins with the keys of `initial`, a set read already.
    ///
    /// # Errors
    /// What about the place or the set cannot be used.
    pub fn of(
        settings: Settings,
        initial: Option<&[u8]>,
        clock: Arc<dyn Clock>,
        metrics: &Metrics,
    ) -> Result<Self, String> {
        let Settings { timeout, max_bytes, .. } = settings;
        let source: Box<dyn Source> = match &settings.place {
            Place::Url { url, roots } => Box::new(KeyUrl::new(url, roots.as_deref(), timeout, max_bytes)?),
            Place::File(path) => Box::new(KeyFile::new(path.clone(), max_bytes)),
        };
        let keeper = Self::new(settings, source, clock, metrics);
        if let Some(initial) = initial {
            let set = read_set(initial, keeper.settings.algorithms).map_err(|error| error.to_string())?;
            keeper.metrics.note(set.keys.keys().len(), keeper.clock.now());
            keeper.standing.lock().print = Some(set.print);
            keeper.ring.replace(set.keys);
        }
        Ok(keeper)
    }

    /// A keeper that reads from `source`.
    pub fn new(
        settings: Settings,
        source: Box<dyn Source>,
        clock: Arc<dyn Clock>,
        metrics: &Metrics,
    ) -> Self {
        let metrics = metrics.jwks(&settings.issuer);
        Self {
            settings,
            source,
            ring: Arc::default(),
            rounds: watch::Sender::default(),
            wanted: AtomicU64::new(0),
            wake: Notify::new(),
            waiting: AtomicUsize::new(0),
            vain: Cache::new(MAX_VAIN),
            standing: Mutex::default(),
            clock,
            metrics,
        }
    }

    /// What it was made from.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The keys, for verifiers to hold.
    pub const fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// How long an asker waits at most: a read may be under way, the next one may have to wait for the cooldown.
    fn patience(&self) -> Duration {
        (self.settings.cooldown.max(self.settings.timeout) + self.settings.timeout).min(LONGEST_WAIT)
    }

    /// Whether the issuer publishes a key that fits, by now. Waits for a read that begins after the question, so that a
    /// key published before the token was signed is never said to be absent, or for other keys than those that the token
    /// was judged by. A token that names no key causes no read: it waits for the first of all, if that is under way.
    pub async fn ask(&self, unheard: &Unheard) -> Answer {
        if self.ring.generation() != unheard.generation {
            return Answer::Changed;
        }
        let settled = match &unheard.sought {
            None => self.has_keys(),
            Some(sought) => self.vain.get(sought).is_some_and(|until| Instant::now() < until),
        };
        if settled {
            return Answer::Final;
        }
        // Keys were tried and none has signed it: most likely nobody has. It may be read anew for, but leaves room for
        // tokens of names that are new; and where the key of its name is there, failing to read makes it no less forged.
        let is_doubtful = unheard.refused == Refused::BadSignature;
        let room = if is_doubtful { MAX_WAITING / 4 } else { MAX_WAITING };
        let answer = match Waiting::enter(&self.waiting, room) {
            Some(_waiting) => timeout(self.patience(), self.await_read(unheard)).await,
            None => Ok(Answer::Unavailable),
        };
        match (answer.unwrap_or(Answer::Unavailable), &unheard.sought) {
            (Answer::Unavailable, Some(Sought::Kid(_))) if is_doubtful => Answer::Final,
            (answer, _) => answer,
        }
    }

    /// Takes note that keys read since the question do not fit: for the cooldown this is answer enough.
    pub fn remember(&self, unheard: &Unheard) {
        if let Some(sought) = &unheard.sought {
            self.vain.insert(sought.clone(), Instant::now() + self.settings.cooldown);
        }
    }

    async fn await_read(&self, unheard: &Unheard) -> Answer {
        let has_changed = || self.ring.generation() != unheard.generation;
        let mut rounds = self.rounds.subscribe();
        // Without a name the first read of all decides; it is made without being asked for.
        let mut needed = 1;
        if unheard.sought.is_some() {
            let Rounds { begun, next, .. } = *rounds.borrow_and_update();
            needed = begun + 1;
            self.wanted.fetch_max(needed, Ordering::AcqRel);
            self.wake.notify_one();
            if next.is_some_and(|next| next > Instant::now() + LONGEST_WAIT) {
                return Answer::Unavailable;
            }
        }
        let settled = rounds.wait_for(|rounds| rounds.ended >= needed || has_changed()).await;
        let was_read = settled.is_ok_and(|rounds| rounds.ended >= needed && rounds.succeeded);
        match (was_read, has_changed()) {
            (true, true) => Answer::Renewed,
            (true, false) => {
                self.remember(unheard);
                Answer::Final
            }
            (false, true) => Answer::Changed,
            (false, false) => Answer::Unavailable,
        }
    }

    fn has_keys(&self) -> bool {
        !self.ring.keys().keys().is_empty()
    }

    /// Reads now, and from then on whenever it is time. Never returns.
    pub async fn keep(self: Arc<Self>) {
        let mut failures = 0_u32;
        loop {
            let allowed = Instant::now() + self.settings.cooldown;
            let number = self.begin(allowed);
            let succeeded = self.read().await.is_ok();
            self.rounds.send_modify(|rounds| {
                rounds.ended = number;
                rounds.succeeded = succeeded;
            });
            failures = if succeeded { 0 } else { failures.saturating_add(1) };
            let due = Instant::now() + self.pause(failures);
            self.sleep(number, allowed, due).await;
        }
    }

    fn begin(&self, next: Instant) -> u64 {
        let mut number = 0;
        self.rounds.send_modify(|rounds| {
            rounds.begun += 1;
            rounds.next = Some(next);
            number = rounds.begun;
        });
        number
    }

    /// Until the next read in the background; a tenth less or none, so that instances do not ask in step.
    fn pause(&self, failures: u32) -> Duration {
        let Settings { refresh, cooldown, .. } = self.settings;
        let Some(doublings) = failures.checked_sub(1) else {
            return refresh.mul_f64(fastrand::f64().mul_add(-0.1, 1.0)).max(cooldown);
        };
        cooldown.saturating_mul(1 << doublings.min(16)).min(refresh.min(LONGEST_RETRY)).max(cooldown)
    }

    /// Sleeps until `due`, or only until `allowed` when somebody waits for a read after the last.
    async fn sleep(&self, last: u64, allowed: Instant, due: Instant) {
        while self.wanted.load(Ordering::Acquire) <= last {
            tokio::select! {
                () = sleep_until(due) => return,
                () = self.wake.notified() => {}
            }
        }
        sleep_until(allowed.min(due)).await;
    }

    /// Reads once. What [`Keeper::keep`] does again and again; of use by itself where nothing is kept.
    ///
    /// # Errors
    /// Why the keys stay what they were.
    pub async fn read(&self) -> Result<(), Trouble> {
        let read = timeout(self.settings.timeout, self.source.read()).await;
        let read = read.unwrap_or_else(|_| {
            let limit = humantime::format_duration(self.settings.timeout);
            Err(Trouble::Unreachable(format!("no complete answer within {limit}").into()))
        });
        let published = read.and_then(|bytes: Bytes| Ok(read_set(&bytes, self.settings.algorithms)?));
        let published = published.inspect_err(|trouble| self.note_failure(trouble))?;
        self.note_success();
        let changed = self.adopt(published);
        self.metrics.fetches.count(if changed { JwksFetch::Changed } else { JwksFetch::Unchanged });
        Ok(())
    }

    /// Takes what was published; keys that are the same void nothing that was verified by them.
    fn adopt(&self, published: Published) -> bool {
        let Published { keys, faults, print } = published;
        let mut standing = self.standing.lock();
        let changed = standing.print.replace(print) != Some(print);
        if faults != standing.faults {
            for fault in faults.iter().filter(|fault| !standing.faults.contains(fault)) {
                tracing::warn!(
                    issuer = &*self.settings.issuer,
                    from = self.source.place(),
                    "not used: {fault}"
                );
            }
            standing.faults = faults;
        }
        self.metrics.note(keys.keys().len(), self.clock.now());
        if changed {
            let kids: Vec<&str> = keys.keys().iter().filter_map(|key| key.kid()).collect();
            let kids = kids.join(", ");
            tracing::info!(issuer = &*self.settings.issuer, keys = keys.keys().len(), kids, "keys changed");
            self.ring.replace(keys);
        }
        changed
    }

    fn note_success(&self) {
        let failed = std::mem::take(&mut self.standing.lock().failing);
        if failed {
            tracing::info!(
                issuer = &*self.settings.issuer,
                from = self.source.place(),
                "keys can be read again"
            );
        }
    }

    fn note_failure(&self, trouble: &Trouble) {
        self.metrics.fetches.count(match trouble {
            Trouble::Unreachable(_) => JwksFetch::Unreachable,
            Trouble::Refused(_) => JwksFetch::Refused,
            Trouble::Invalid(_) => JwksFetch::Invalid,
        });
        let again = std::mem::replace(&mut self.standing.lock().failing, true);
        if again {
            return;
        }
        let (issuer, from) = (&*self.settings.issuer, self.source.place());
        if self.has_keys() {
            tracing::warn!(issuer, from, "the source of keys {trouble}; those read before go on");
        } else {
            tracing::warn!(
                issuer,
                from,
                "the source of keys {trouble}; tokens cannot be judged until there are keys"
            );
        }
    }
}

/// A place among those who wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize, room: usize) -> Option<Self> {
        let place = Self(count);
        (count.fetch_add(1, Ordering::AcqRel) < room).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
