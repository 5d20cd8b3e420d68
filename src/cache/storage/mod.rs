//! pingora's `Storage` over two tiers: bounded memory per instance, then the shared tier if there is one.
//! A fill becomes visible only when it is complete; a hit copies no body bytes.

mod fill;
mod hit;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::Result;
use pingora::cache::key::CacheHashKey;
use pingora::cache::trace::SpanHandle;
use pingora::cache::{
    CacheKey, CacheMeta, HitHandler, MissHandler, PurgeOutcome, PurgeTarget, PurgeType, Storage,
};

use super::entry::{Draft, Entry};
use super::remote::{Remote, RemoteCounters, RemoteTier};
use super::settings::Settings;
use crate::clock::{Clock, UnixMillis};

use self::fill::Fill;
pub use self::hit::Hit;

/// Upper bound of the memory tier's shards; fewer when objects are big in comparison.
const MAX_SHARDS: u64 = 16;
/// What an average entry is guessed to weigh, to size tables.
const TYPICAL_ENTRY: u64 = 4 * 1024;

type Memory = quick_cache::sync::Cache<u128, Arc<Entry>, ByWeight, ahash::RandomState>;

/// The same storage for a request that has no time left to ask the shared tier: it reads memory only.
pub(super) struct MemoryReads(pub(super) &'static Tiers);

#[async_trait]
impl Storage for MemoryReads {
    async fn lookup(
        &'static self,
        key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        let held = self.0.in_memory(key, self.0.clock.now());
        Ok(held.map(|entry| Tiers::hit(entry, Tier::Memory)))
    }

    async fn get_miss_handler(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        trace: &SpanHandle,
    ) -> Result<MissHandler> {
        self.0.get_miss_handler(key, meta, trace).await
    }

    async fn purge(
        &'static self,
        target: PurgeTarget<'_>,
        purge_type: PurgeType,
        trace: &SpanHandle,
    ) -> Result<PurgeOutcome> {
        self.0.purge(target, purge_type, trace).await
    }

    async fn update_meta(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        trace: &SpanHandle,
    ) -> Result<bool> {
        self.0.update_meta(key, meta, trace).await
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}

/// Where a hit came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// This instance's memory.
    Memory,
    /// The tier all instances share.
    Remote,
}

impl Tier {
    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Remote => "redis",
        }
    }
}

/// Both tiers.
pub struct Tiers {
    memory: Memory,
    remote: Option<Remote>,
    clock: Arc<dyn Clock>,
    /// Bytes of fills under way, bounded by the memory tier's own bound.
    filling: AtomicUsize,
    max_filling: usize,
}

#[derive(Clone, Debug)]
struct ByWeight;

impl quick_cache::Weighter<u128, Arc<Entry>> for ByWeight {
    fn weight(&self, _key: &u128, entry: &Arc<Entry>) -> u64 {
        entry.weight() as u64
    }
}

impl Tiers {
    /// `max_object_bytes`: the largest body any route stores; it must fit a shard.
    pub fn new(
        settings: &Settings,
        max_object_bytes: usize,
        remote: Option<Arc<dyn RemoteTier>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let bytes = settings.memory_bytes.max(1);
        let biggest = (max_object_bytes as u64).saturating_mul(2).max(1);
        let shards = (bytes / biggest).clamp(1, MAX_SHARDS);
        let items = usize::try_from(bytes / TYPICAL_ENTRY).unwrap_or(usize::MAX).clamp(64, 1 << 20);
        let memory = quick_cache::sync::Cache::with_options(
            options(items, bytes, prev_power_of_two(shards)),
            ByWeight,
            ahash::RandomState::new(),
            quick_cache::sync::DefaultLifecycle::default(),
        );
        Self {
            memory,
            remote: remote.map(|tier| Remote::new(settings, tier)),
            clock,
            filling: AtomicUsize::new(0),
            max_filling: usize::try_from(bytes).unwrap_or(usize::MAX),
        }
    }

    /// Bytes in the memory tier.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.weight()
    }

    /// Entries in the memory tier.
    pub fn memory_entries(&self) -> usize {
        self.memory.len()
    }

    /// What happened in the shared tier, if there is one.
    pub fn remote_counters(&self) -> Option<&RemoteCounters> {
        self.remote.as_ref().map(Remote::counters)
    }

    /// The entry of `key` in memory, fresh or not.
    pub(super) fn in_memory(&self, key: &CacheKey, now: UnixMillis) -> Option<Arc<Entry>> {
        let hash = u128::from_be_bytes(key.combined_bin());
        let entry = self.memory.get(&hash)?;
        // Another key with this hash: its owner may keep the place.
        if !entry.is_named(key) {
            return None;
        }
        if now > entry.keep_until() {
            self.memory.remove(&hash);
            return None;
        }
        Some(entry)
    }

    fn hit(entry: Arc<Entry>, tier: Tier) -> (CacheMeta, HitHandler) {
        let meta = entry.cache_meta();
        let hit = Hit { at: 0, end: entry.body().len(), entry, tier };
        (meta, Box::new(hit))
    }

    async fn find(&self, key: &CacheKey) -> Option<(Arc<Entry>, Tier)> {
        let now = self.clock.now();
        let held = self.in_memory(key, now);
        let Some(remote) = &self.remote else { return held.map(|entry| (entry, Tier::Memory)) };
        // Another instance may have refreshed what went stale here, but nobody can what is never fresh.
        if let Some(entry) = &held
            && (entry.fresh_until() >= now || entry.fresh_until() <= entry.updated())
        {
            return held.map(|entry| (entry, Tier::Memory));
        }
        let found = remote.get(key, now).await.map(Arc::new);
        match (held, found) {
            (Some(held), Some(found)) if found.fresh_until() <= held.fresh_until() => {
                Some((held, Tier::Memory))
            }
            (_, Some(found)) => {
                self.memory.insert(u128::from_be_bytes(key.combined_bin()), Arc::clone(&found));
                Some((found, Tier::Remote))
            }
            (held, None) => held.map(|entry| (entry, Tier::Memory)),
        }
    }

    fn keep(&self, key: &CacheKey, entry: Entry) {
        let entry = Arc::new(entry);
        if let Some(remote) = &self.remote {
            remote.put(key, &entry, self.clock.now());
        }
        self.memory.insert(u128::from_be_bytes(key.combined_bin()), entry);
    }
}

impl std::fmt::Debug for Tiers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tiers").field("entries", &self.memory.len()).finish_non_exhaustive()
    }
}

fn options(items: usize, bytes: u64, shards: u64) -> quick_cache::Options {
    let shards = usize::try_from(shards).unwrap_or(1);
    quick_cache::OptionsBuilder::new()
        .estimated_items_capacity(items)
        .weight_capacity(bytes)
        .shards(shards)
        .build()
        .unwrap_or_else(|_| unreachable!("both capacities are set"))
}

const fn prev_power_of_two(n: u64) -> u64 {
    1 << n.ilog2()
}

#[async_trait]
impl Storage for Tiers {
    async fn lookup(
        &'static self,
        key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        Ok(self.find(key).await.map(|(entry, tier)| Self::hit(entry, tier)))
    }

    async fn get_miss_handler(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _trace: &SpanHandle,
    ) -> Result<MissHandler> {
        Ok(Box::new(Fill {
            tiers: self,
            key: key.clone(),
            draft: Some(Draft::new(key, meta)),
            body: BytesMut::new(),
            reserved: 0,
        }))
    }

    async fn purge(
        &'static self,
        target: PurgeTarget<'_>,
        _purge_type: PurgeType,
        _trace: &SpanHandle,
    ) -> Result<PurgeOutcome> {
        let key = target.key();
        if let Some(remote) = &self.remote {
            remote.delete(&key.combined());
        }
        Ok(match self.memory.remove(&u128::from_be_bytes(key.combined_bin())) {
            Some(_) => PurgeOutcome::Purged(None),
            None => PurgeOutcome::NotFound,
        })
    }

    async fn update_meta(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _trace: &SpanHandle,
    ) -> Result<bool> {
        // Evicted since the lookup: the next request fetches it again.
        let Some(entry) = self.in_memory(key, UnixMillis(0)) else { return Ok(false) };
        self.keep(key, entry.refreshed(meta));
        Ok(true)
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}

#[cfg(test)]
mod tests;
