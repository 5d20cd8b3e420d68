//! The shared tier as the cache sees it: bytes under a key, and claims to make them, best effort, never awaited by a
//! client's response.
//! It bounds what is under way and counts what is dropped; the connection is somebody else's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::cache::{CacheKey, key::CacheHashKey};
use tokio::sync::Semaphore;

use super::entry::{Entry, Rejected, Secret};
use super::room::Room;
use super::settings::Settings;
use super::storage::budget::{Budget, allocated};
use crate::clock::UnixMillis;
use crate::metrics::RemoteOutcome;

/// For how long nobody waits for anybody once a fetch gave nothing that all could have. Whoever waits looks again
/// sooner than that.
const UNSHARED: Duration = Duration::from_secs(1);

/// How often an entry on its way is in memory beside itself: in its command, and in what the connection sends.
pub(super) const COPIES: usize = 2;

/// A store that all instances share. Every call is best effort: absence and failure look the same.
#[async_trait]
pub trait RemoteTier: Send + Sync + 'static {
    /// The value of `key`; the caller waits no longer than `Settings::remote_deadline`.
    async fn get(&self, key: &str) -> Option<Bytes>;
    /// Sets `key` for `ttl`; `false` when it did not work.
    async fn put(&self, key: &str, value: Bytes, ttl: Duration) -> bool;
    /// Deletes `key`.
    async fn delete(&self, key: &str);
    /// The value of `key`, or the right to make it, in one exchange; the caller waits no longer than
    /// `Settings::remote_deadline`. Who holds the claim already gets it again.
    async fn get_or_claim(&self, key: &str, claim: Claim<'_>) -> Claimed;
    /// Gives a claim back if it is still held. `unshared`: the value will not come, so that for this long nobody waits
    /// for anybody; otherwise somebody else may make it.
    async fn release(&self, claim: Claim<'_>, unshared: Option<Duration>);
    /// Sees what becomes of waits for other instances; implemented by metrics.
    fn waited(&self, _: Waited) {}
}

/// The right of one instance to make the value of a key, for a while.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Its key.
    pub name: &'a str,
    /// Who claims; no two instances have the same.
    pub holder: &'a str,
    /// How long it holds unless it is given back.
    pub hold: Duration,
}

/// What the shared tier says to somebody who needs a value, or else the right to make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The value.
    Found(Bytes),
    /// There is none, and the caller has the claim.
    Won,
    /// There is none, and somebody else has the claim.
    Taken,
    /// There is none, and nobody need wait for anybody.
    Open,
    /// No answer; the claim may be the caller's all the same.
    Unknown,
    /// It could not be asked.
    Away,
}

/// How a wait for another instance went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// One request waited, however it ended.
    Request,
    /// A lookup, perhaps for several requests, gave up: the other instance took too long.
    GivenUp,
}

/// What a lookup in the shared tier comes to.
pub(super) enum Lookup {
    /// A usable entry.
    Found(Entry),
    /// Nothing usable: the caller fetches. `claimed`: it has told the other instances, or may have.
    Fetch { claimed: bool },
    /// Nothing yet: another instance is fetching it.
    Elsewhere,
}

/// What happened in the shared tier since the start.
#[derive(Debug, Default)]
pub struct RemoteCounters {
    /// Lookups that found a usable entry.
    pub hits: AtomicU64,
    /// Lookups that found nothing.
    pub misses: AtomicU64,
    /// Lookups given up at the deadline.
    pub timeouts: AtomicU64,
    /// Entries found but damaged, forged, misfiled or outlived.
    pub rejected: AtomicU64,
    /// Entries written.
    pub writes: AtomicU64,
    /// Writes that failed.
    pub write_failures: AtomicU64,
    /// Writes dropped because too many were under way.
    pub dropped: AtomicU64,
    /// Writes left out because Redis is full, or refused one a moment ago.
    pub no_room: AtomicU64,
}

impl RemoteCounters {
    /// How often this happened.
    pub fn value(&self, outcome: RemoteOutcome) -> u64 {
        let counter = match outcome {
            RemoteOutcome::Hit => &self.hits,
            RemoteOutcome::Miss => &self.misses,
            RemoteOutcome::Timeout => &self.timeouts,
            RemoteOutcome::Rejected => &self.rejected,
            RemoteOutcome::Written => &self.writes,
            RemoteOutcome::Failed => &self.write_failures,
            RemoteOutcome::Dropped => &self.dropped,
            RemoteOutcome::NoRoom => &self.no_room,
        };
        counter.load(Ordering::Relaxed)
    }
}

/// The shared tier with its bounds.
pub(super) struct Remote {
    tier: Arc<dyn RemoteTier>,
    in_flight: Arc<Semaphore>,
    counters: Arc<RemoteCounters>,
    room: Arc<Room>,
    secret: Arc<Secret>,
    prefix: Box<str>,
    /// Who this instance is, where it claims a fetch.
    holder: Box<str>,
    hold: Duration,
    deadline: Duration,
    max_object_bytes: usize,
    max_lifetime: Duration,
}

impl Remote {
    pub(super) fn new(settings: &Settings, tier: Arc<dyn RemoteTier>) -> Self {
        Self {
            tier,
            in_flight: Arc::new(Semaphore::new(settings.remote_writes_in_flight)),
            counters: Arc::default(),
            room: Arc::default(),
            secret: Arc::new(Secret::new(settings.remote_secret.as_deref())),
            prefix: settings.key_prefix.clone(),
            holder: format!("{:032x}", fastrand::u128(..)).into(),
            hold: settings.claim_hold,
            deadline: settings.remote_deadline,
            max_object_bytes: settings.remote_max_object_bytes,
            max_lifetime: settings.max_lifetime,
        }
    }

    pub(super) fn counters(&self) -> &RemoteCounters {
        &self.counters
    }

    /// What may be written.
    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    /// Whether instances tell each other what they fetch: where none can give it to the others, it is no use.
    pub(super) fn claims(&self, now: UnixMillis) -> bool {
        !self.hold.is_zero() && self.room.is_open(now)
    }

    /// How long a claim holds.
    pub(super) const fn hold(&self) -> Duration {
        self.hold
    }

    /// Notes a wait for another instance.
    pub(super) fn waited(&self, waited: Waited) {
        self.tier.waited(waited);
    }

    /// The entry of `key`, unless there is none, it is not credible, or the deadline passes.
    pub(super) async fn get(&self, key: &CacheKey, now: UnixMillis) -> Option<Entry> {
        let name = self.key(&key.combined());
        let Ok(found) = tokio::time::timeout(self.deadline, self.tier.get(&name)).await else {
            count(&self.counters.timeouts);
            return None;
        };
        let Some(bytes) = found else {
            count(&self.counters.misses);
            return None;
        };
        self.decode(&bytes, key, now)
    }

    /// The same, or the right to fetch it before all other instances, in one exchange.
    pub(super) async fn get_or_claim(&self, key: &CacheKey, now: UnixMillis) -> Lookup {
        let name = self.key(&key.combined());
        let lock = lock_name(&self.prefix, &name);
        let claim = Claim { name: &lock, holder: &self.holder, hold: self.hold };
        let asked = tokio::time::timeout(self.deadline, self.tier.get_or_claim(&name, claim)).await;
        let (counter, lookup) = match asked {
            Ok(Claimed::Found(bytes)) => {
                let found = self.decode(&bytes, key, now);
                return found.map_or(Lookup::Fetch { claimed: false }, Lookup::Found);
            }
            // Without an answer, what was asked may be done later, for which nobody else should wait.
            Ok(Claimed::Won | Claimed::Unknown) => (&self.counters.misses, Lookup::Fetch { claimed: true }),
            Ok(Claimed::Taken) => (&self.counters.misses, Lookup::Elsewhere),
            Ok(Claimed::Open | Claimed::Away) => (&self.counters.misses, Lookup::Fetch { claimed: false }),
            Err(_) => (&self.counters.timeouts, Lookup::Fetch { claimed: true }),
        };
        count(counter);
        lookup
    }

    /// Gives the claim on the entry with the combined hash `hash` (hexadecimal) back, in the background. `unshared`: the
    /// other instances need not wait for one another either.
    pub(super) fn give_back(&self, hash: &str, unshared: bool) {
        // Without a runtime the process ends, and the claim with its life.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (tier, holder, hold) = (Arc::clone(&self.tier), self.holder.clone(), self.hold);
        let lock = lock_name(&self.prefix, &self.key(hash));
        runtime.spawn(async move {
            let claim = Claim { name: &lock, holder: &holder, hold };
            tier.release(claim, unshared.then_some(UNSHARED)).await;
        });
    }

    fn decode(&self, bytes: &Bytes, key: &CacheKey, now: UnixMillis) -> Option<Entry> {
        match Entry::decode(bytes, key, &self.secret, now, self.max_lifetime) {
            Ok(entry) => {
                count(&self.counters.hits);
                Some(entry)
            }
            // Only past its life by a moment: nothing to be alarmed about.
            Err(Rejected::Lifetime) => {
                count(&self.counters.misses);
                None
            }
            Err(Rejected::Authenticity | Rejected::Malformed | Rejected::WrongKey) => {
                count(&self.counters.rejected);
                None
            }
        }
    }

    /// Writes `entry` in the background, or drops it when it is too big or too much is under way. `claimed`: then gives
    /// the claim back, so that whoever waits for it finds the entry first.
    pub(super) fn put(
        &self,
        key: &CacheKey,
        entry: &Arc<Entry>,
        budget: &Arc<Budget>,
        now: UnixMillis,
        claimed: bool,
    ) {
        let hash = key.combined();
        let give_up = || {
            if claimed {
                self.give_back(&hash, true);
            }
        };
        let ttl = Duration::from_millis(entry.keep_until().millis_since(now));
        if entry.body().len() > self.max_object_bytes || ttl.is_zero() {
            return give_up();
        }
        let size = name_length(&self.prefix).saturating_add(entry.encoded_length());
        if !self.room.take(size, now) {
            count(&self.counters.no_room);
            return give_up();
        }
        let permit = Arc::clone(&self.in_flight).try_acquire_owned().ok();
        let bytes = allocated(entry.encoded_length()).saturating_mul(COPIES);
        let Some(paid) = permit.zip(budget.charge(bytes)) else {
            self.room.settle(size);
            count(&self.counters.dropped);
            return give_up();
        };
        let (tier, counters, secret) =
            (Arc::clone(&self.tier), Arc::clone(&self.counters), Arc::clone(&self.secret));
        let room = Arc::clone(&self.room);
        let (name, entry) = (self.key(&hash), Arc::clone(entry));
        let claim = claimed.then(|| (lock_name(&self.prefix, &name), self.holder.clone(), self.hold));
        tokio::spawn(async move {
            let written = tier.put(&name, entry.encode(&secret), ttl).await;
            let counter = if written { &counters.writes } else { &counters.write_failures };
            counter.fetch_add(1, Ordering::Relaxed);
            room.settle(size);
            if !written {
                room.refused(now);
            }
            drop(paid);
            if let Some((lock, holder, hold)) = claim {
                let claim = Claim { name: &lock, holder: &holder, hold };
                tier.release(claim, (!written).then_some(UNSHARED)).await;
            }
        });
    }

    /// Deletes the entry with the combined hash `hash` (hexadecimal) in the background.
    pub(super) fn delete(&self, hash: &str) {
        let (tier, name) = (Arc::clone(&self.tier), self.key(hash));
        tokio::spawn(async move { tier.delete(&name).await });
    }

    fn key(&self, hash: &str) -> String {
        let mut key = String::with_capacity(self.prefix.len() + 6 + hash.len());
        key.push_str(&self.prefix);
        key.push_str("cache:");
        key.push_str(hash);
        key
    }
}

/// The length of an entry's key: 16 bytes in hexadecimal behind the prefix.
const fn name_length(prefix: &str) -> usize {
    prefix.len() + 6 + 32
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Where the claim on the entry under the key `entry` lives: in a cluster on the same node, by the braces.
fn lock_name(prefix: &str, entry: &str) -> String {
    format!("{prefix}cache_lock:{{{entry}}}")
}
