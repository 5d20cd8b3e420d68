//! The response cache: RFC 9111 decisions, keys, generations and two storage tiers for pingora's state machine.
//! It never talks to Redis itself and knows nothing of configuration files.

pub mod ahead;
pub mod conditions;
pub mod directives;
mod entry;
mod flights;
#[cfg(test)]
mod flow_tests;
pub mod generations;
pub mod key;
mod patience;
pub mod policy;
pub mod prefixes;
pub mod remote;
pub mod request;
pub mod room;
pub mod settings;
pub mod status;
pub mod storage;
pub mod tag;
mod targeted;
pub mod transaction;
mod turns;
pub mod vary;
pub mod warm;

use std::sync::Arc;
use std::time::Duration;

use pingora::cache::key::HashBinary;
use pingora::cache::lock::CacheKeyLockImpl;
use pingora::cache::predictor::Predictor;
use pingora::cache::{CacheKey, CacheOptionOverrides, HttpCache, Storage};

use crate::clock::{Clock, UnixMillis};
use ahead::Attempts;
use entry::Entry;
use generations::Generations;
use remote::RemoteTier;
use storage::{Looks, Tiers, View};
use turns::Turns;
use vary::Variants;

pub use settings::{QueryPolicy, RouteCache, SetCookie, Settings};
pub use transaction::{Pending, Transaction};

/// Objects remembered as not storable, per shard of the predictor.
const PREDICTED_PER_SHARD: usize = 1024;
const PREDICTOR_SHARDS: usize = 16;

/// The cache of this process; it outlives every configuration.
pub struct Cache {
    tiers: &'static Tiers,
    memory_reads: &'static View,
    refreshing: &'static View,
    attempts: Attempts,
    lock: &'static CacheKeyLockImpl,
    predictor: &'static Predictor<PREDICTOR_SHARDS>,
    generations: Generations,
    variants: Variants,
    lock_wait: Duration,
    max_lifetime: Duration,
}

impl Cache {
    /// Makes the cache, once per process: pingora borrows its parts for ever. `max_object_bytes` is the largest
    /// that any route stores; `remote` is the tier that all instances share, if any; unless `shared`,
    /// invalidations stay in this process.
    pub fn leak(
        settings: &Settings,
        max_object_bytes: usize,
        remote: Option<Arc<dyn RemoteTier>>,
        shared: bool,
        clock: Arc<dyn Clock>,
    ) -> &'static Self {
        let tiers: &'static Tiers =
            Box::leak(Box::new(Tiers::new(settings, max_object_bytes, remote, clock)));
        let predictor: &'static Predictor<PREDICTOR_SHARDS> =
            Box::leak(Box::new(Predictor::new(PREDICTED_PER_SHARD, Some(is_transient))));
        Box::leak(Box::new(Self {
            tiers,
            memory_reads: Box::leak(Box::new(View::new(tiers, Looks::InMemory))),
            lock: Box::leak(Box::new(Turns::new(settings.lock_age, tiers, predictor))),
            refreshing: Box::leak(Box::new(View::new(tiers, Looks::ToRefresh))),
            attempts: Attempts::default(),
            predictor,
            generations: Generations::new(settings, shared),
            variants: Variants::new(settings.max_variants),
            lock_wait: settings.lock_wait,
            max_lifetime: settings.max_lifetime,
        }))
    }

    /// The generations of tags: what invalidation writes.
    pub const fn generations(&self) -> &Generations {
        &self.generations
    }

    /// The storage tiers, for their counters.
    pub const fn tiers(&self) -> &'static Tiers {
        self.tiers
    }

    fn enable(&self, http: &mut HttpCache, max_object_bytes: usize, may_ask_remote: bool, refreshing: bool) {
        let mut waiting = CacheOptionOverrides::default();
        waiting.wait_timeout = Some(self.lock_wait);
        let storage: &'static (dyn Storage + Sync) = match (may_ask_remote, refreshing) {
            (true, false) => self.tiers,
            (true, true) => self.refreshing,
            (false, _) => self.memory_reads,
        };
        http.enable(storage, None, Some(self.predictor), Some(self.lock), Some(waiting));
        http.set_max_file_size_bytes(max_object_bytes);
    }

    /// What memory has fresh; also where the next answer is predicted not to be storable, since that says nothing of
    /// the one that was.
    fn fresh_in_memory(&self, key: &CacheKey, now: UnixMillis) -> Option<Arc<Entry>> {
        self.tiers.in_memory(key, now).filter(|entry| now < entry.fresh_until())
    }

    const fn attempts(&self) -> &Attempts {
        &self.attempts
    }

    const fn max_lifetime(&self) -> Duration {
        self.max_lifetime
    }

    fn admits_variant(&self, object: HashBinary, variance: &HashBinary, now: UnixMillis) -> bool {
        self.variants.admit(u128::from_be_bytes(object), variance, now)
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("tiers", &self.tiers).finish_non_exhaustive()
    }
}

/// Reasons that say nothing about the next response under the same key, so that it is not expected to be
/// unstorable too.
fn is_transient(reason: &'static str) -> bool {
    reason == transaction::PASSING
        || policy::NotStored::ALL.iter().any(|why| why.as_str() == reason && why.is_transient())
}
