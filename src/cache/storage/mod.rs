//! pingora's `Storage` over two tiers: bounded memory per instance, then the shared tier if there is one.
//! A fill becomes visible only when it is complete; a hit copies no body bytes.

mod ask;
pub(super) mod body;
pub(super) mod budget;
mod fill;
mod hit;
mod view;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pingora::cache::key::CacheHashKey;
use pingora::cache::trace::SpanHandle;
use pingora::cache::{
    CacheKey, CacheMeta, HitHandler, MissHandler, PurgeOutcome, PurgeTarget, PurgeType, Storage,
};
use pingora::{Error, ErrorType, Result};
use quick_cache::sync::DefaultLifecycle;

use super::entry::{Draft, Entry};
use super::flights::Flights;
use super::remote::{COPIES, Remote, RemoteCounters, RemoteTier};
use super::room::Room;
use super::settings::Settings;
use crate::clock::{Clock, UnixMillis};

use self::budget::{Budget, Charge, allocated};
use self::fill::Fill;
pub use self::hit::Hit;
pub(super) use self::view::{Looks, View};

/// Upper bound of the memory tier's shards; fewer when objects are big in comparison.
const MAX_SHARDS: usize = 16;
/// How many of the biggest objects a shard holds at least, where the tier is big enough: none empties a shard.
const BIGGEST_PER_SHARD: usize = 4;
/// What an average entry is guessed to weigh, to size tables.
const TYPICAL_ENTRY: usize = 4 * 1024;
/// What the head of a response takes, usually.
const ROOM_FOR_HEAD: usize = 4 * 1024;
/// The part of a shard for what is new, in percent: it has to be asked for again while it is there, or fetched again
/// while its key is remembered, before it takes room from what was asked for again before. A scan passes through this
/// part alone as long as each of its objects fits there, so it is larger where objects may be big in comparison.
const NEW_PERCENT: std::ops::RangeInclusive<usize> = 10..=50;
/// Bytes of a key that is remembered for a while after its entry was evicted (`quick_cache`'s ghosts).
const GHOST: usize = 128;
/// What pages of the allocator that are not full take, and tables beside the entries.
const PAGES: usize = 5 * 1024 * 1024;
/// The part of the memory that belongs to no entry, at most, in percent.
const UNOWNED_PERCENT: usize = 40;
/// The part of the memory that is reserved for fills: one in so many bytes, but room for a fill of any size, and then
/// for its copies.
const FILLS_SHARE: usize = 8;

type Memory = quick_cache::sync::Cache<u128, Arc<Entry>, ByWeight, ahash::RandomState, Evictions>;

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
    /// Entries that left memory for want of room.
    evicted: Arc<AtomicU64>,
    remote: Option<Remote>,
    /// Who asks the shared tier for what, and what is being fetched after that.
    flights: Flights,
    /// How long a lookup waits for another instance's fetch.
    patience: Duration,
    clock: Arc<dyn Clock>,
    /// What entries, fills and copies for the shared tier take together.
    budget: Arc<Budget>,
}

/// The entry that a lookup found, kept with its metadata until a validation has ended.
#[derive(Clone)]
struct Found(Arc<Entry>);

#[derive(Clone, Debug)]
struct ByWeight;

/// Counts what leaves the memory tier for want of room, and drops it after the shard's lock, as the default does.
#[derive(Clone, Debug, Default)]
struct Evictions {
    count: Arc<AtomicU64>,
    dropping: DefaultLifecycle<u128, Arc<Entry>>,
}

impl quick_cache::Lifecycle<u128, Arc<Entry>> for Evictions {
    type RequestState =
        <DefaultLifecycle<u128, Arc<Entry>> as quick_cache::Lifecycle<u128, Arc<Entry>>>::RequestState;

    fn on_evict(&self, state: &mut Self::RequestState, key: u128, entry: Arc<Entry>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.dropping.on_evict(state, key, entry);
    }
}

impl quick_cache::Weighter<u128, Arc<Entry>> for ByWeight {
    fn weight(&self, _key: &u128, entry: &Arc<Entry>) -> u64 {
        entry.weight() as u64
    }
}

impl Tiers {
    /// `max_object_bytes`: the largest body any route stores. Of a memory less than four times as big the biggest
    /// objects are not stored.
    pub fn new(
        settings: &Settings,
        max_object_bytes: usize,
        remote: Option<Arc<dyn RemoteTier>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let bytes = usize::try_from(settings.memory_bytes).unwrap_or(usize::MAX).max(1);
        let items = (bytes / TYPICAL_ENTRY).clamp(64, 1 << 20);
        // What is no entry's: remembered keys, free blocks, and pages of the allocator that are not full.
        let unowned = (items / 2).saturating_mul(GHOST).saturating_add(body::FREE + PAGES);
        let limit = bytes - unowned.min(bytes / 100 * UNOWNED_PERCENT);
        // With its head.
        let biggest =
            allocated(max_object_bytes.max(1)).saturating_add(max_object_bytes / 16 + ROOM_FOR_HEAD);
        let copied = if remote.is_some() { settings.remote_max_object_bytes.min(biggest) } else { 0 };
        let fills = (limit / FILLS_SHARE).max(biggest).max(copied.saturating_mul(COPIES)).min(limit / 2);
        let stored = limit - fills;
        let shards = (stored / biggest.saturating_mul(BIGGEST_PER_SHARD)).clamp(1, MAX_SHARDS);
        let shards = prev_power_of_two(shards);
        let of_shard = biggest.saturating_mul(100) / (stored / shards).max(1);
        // Nothing is stored that does not fit the other part.
        let most = (*NEW_PERCENT.end()).min(98_usize.saturating_sub(of_shard)).max(*NEW_PERCENT.start());
        let new = (of_shard + of_shard / 4).clamp(*NEW_PERCENT.start(), most);
        let evicted = Arc::new(AtomicU64::new(0));
        let memory = quick_cache::sync::Cache::with_options(
            options(items, stored as u64, shards, new),
            ByWeight,
            ahash::RandomState::new(),
            Evictions { count: Arc::clone(&evicted), ..Evictions::default() },
        );
        Self {
            memory,
            evicted,
            remote: remote.map(|tier| Remote::new(settings, tier)),
            flights: Flights::default(),
            patience: settings.lock_wait,
            clock,
            budget: Budget::new(limit),
        }
    }

    /// Bytes of memory in use: entries, fills under way and copies on their way to the shared tier.
    pub fn memory_bytes(&self) -> u64 {
        self.budget.used() as u64
    }

    /// Entries in the memory tier.
    pub fn memory_entries(&self) -> usize {
        self.memory.len()
    }

    /// Entries that left the memory tier for want of room, since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Whether instances tell each other what they fetch.
    pub fn claims(&self, now: UnixMillis) -> bool {
        self.remote.as_ref().is_some_and(|remote| remote.claims(now))
    }

    /// What happened in the shared tier, if there is one.
    pub fn remote_counters(&self) -> Option<&RemoteCounters> {
        self.remote.as_ref().map(Remote::counters)
    }

    /// What may be written to the shared tier, if there is one.
    pub fn room(&self) -> Option<&Room> {
        self.remote.as_ref().map(Remote::room)
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
        let mut meta = entry.cache_meta();
        meta.extensions_mut().insert(Found(Arc::clone(&entry)));
        let hit = Hit { at: 0, end: entry.body().len(), entry, tier };
        (meta, Box::new(hit))
    }

    /// What memory holds of `key`, without counting as a use of it: what is looked at once is not asked for often.
    fn seen_in_memory(&self, key: &CacheKey) -> Option<Arc<Entry>> {
        let held = self.memory.peek(&u128::from_be_bytes(key.combined_bin()));
        held.filter(|entry| entry.is_named(key))
    }

    /// Whether memory holds a fresh entry of `key`.
    pub(super) fn has_fresh(&self, key: &CacheKey) -> bool {
        let now = self.clock.now();
        self.seen_in_memory(key).is_some_and(|entry| entry.fresh_until() >= now)
    }

    /// Whether what memory holds of `key` was never fresh, and may not be served stale.
    pub(super) fn has_for_nobody_else(&self, key: &CacheKey) -> bool {
        let held = self.seen_in_memory(key);
        held.is_some_and(|entry| entry.freshness().is_none() && entry.stale_while_revalidate().is_zero())
    }

    /// `refreshing`: the shared tier is asked although this instance holds a fresh entry, once half of that is over.
    async fn find(&'static self, key: &CacheKey, refreshing: bool) -> Option<(Arc<Entry>, Tier)> {
        let now = self.clock.now();
        let held = self.in_memory(key, now);
        let Some(remote) = &self.remote else { return held.map(|entry| (entry, Tier::Memory)) };
        // Another instance may have refreshed what went stale here, but nobody can what is never fresh.
        if let Some(entry) = &held
            && (entry.fresh_until() >= now && !(refreshing && entry.freshness().is_half_over(now))
                || entry.fresh_until() <= entry.updated())
        {
            return held.map(|entry| (entry, Tier::Memory));
        }
        // In a box of its own, so that what is found above does not pay for its size.
        let found = Box::pin(self.ask(remote, key, held.is_none() && remote.claims(now))).await;
        match (held, found) {
            (Some(held), Some((found, _))) if found.fresh_until() <= held.fresh_until() => {
                Some((held, Tier::Memory))
            }
            (_, Some(found)) => Some(found),
            (held, None) => held.map(|entry| (entry, Tier::Memory)),
        }
    }

    /// An entry that came from elsewhere, with its part of the budget if there is room.
    fn paid(&self, entry: Entry) -> Arc<Entry> {
        let charge = self.budget.charge(entry.weight());
        Arc::new(match charge {
            Some(charge) => entry.charged(charge),
            None => entry,
        })
    }

    /// Drops what is stored under `key`: here at once, in the shared tier in the background.
    pub(super) fn drop_entry(&self, key: &impl CacheHashKey) -> bool {
        if let Some(remote) = &self.remote {
            remote.delete(&key.combined());
        }
        self.memory.remove(&u128::from_be_bytes(key.combined_bin())).is_some()
    }

    /// Stores `entry` in both tiers; `false` when `charge` cannot become as big as it.
    fn keep(&self, key: &CacheKey, entry: Entry, mut charge: Charge) -> bool {
        if !charge.resize(entry.weight()) {
            return false;
        }
        let entry = Arc::new(entry.charged(charge));
        let hash = u128::from_be_bytes(key.combined_bin());
        // Here first: the claim ends with the write to the shared tier, and lookups here find this.
        self.memory.insert(hash, Arc::clone(&entry));
        if let Some(remote) = &self.remote {
            let claimed = self.flights.fetched(hash);
            remote.put(key, &entry, &self.budget, self.clock.now(), claimed);
        }
        true
    }
}

impl std::fmt::Debug for Tiers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tiers").field("entries", &self.memory.len()).finish_non_exhaustive()
    }
}

fn options(items: usize, bytes: u64, shards: usize, new_percent: usize) -> quick_cache::Options {
    let hot = 1.0 - f64::from(u8::try_from(new_percent).unwrap_or(u8::MAX).min(100)) / 100.0;
    quick_cache::OptionsBuilder::new()
        .estimated_items_capacity(items)
        .weight_capacity(bytes)
        .hot_allocation(hot)
        .shards(shards)
        .build()
        .unwrap_or_else(|_| unreachable!("both capacities are set"))
}

const fn prev_power_of_two(n: usize) -> usize {
    1 << n.ilog2()
}

#[async_trait]
impl Storage for Tiers {
    async fn lookup(
        &'static self,
        key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        Ok(self.find(key, false).await.map(|(entry, tier)| Self::hit(entry, tier)))
    }

    async fn get_miss_handler(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _trace: &SpanHandle,
    ) -> Result<MissHandler> {
        let Some(draft) = Draft::new(key, meta) else {
            return Error::e_explain(
                ErrorType::InternalError,
                "the response has fields that cannot be stored",
            );
        };
        Ok(Box::new(Fill::new(self, key, draft)?))
    }

    async fn purge(
        &'static self,
        target: PurgeTarget<'_>,
        _purge_type: PurgeType,
        _trace: &SpanHandle,
    ) -> Result<PurgeOutcome> {
        Ok(if self.drop_entry(target.key()) { PurgeOutcome::Purged(None) } else { PurgeOutcome::NotFound })
    }

    async fn update_meta(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _trace: &SpanHandle,
    ) -> Result<bool> {
        // What was validated is the entry that was found: its head belongs to no other body.
        let Some(Found(entry)) = meta.extensions().get::<Found>().filter(|found| found.0.is_named(key))
        else {
            return Ok(false);
        };
        let held = self.memory.peek(&u128::from_be_bytes(key.combined_bin()));
        if held.is_some_and(|held| !Arc::ptr_eq(&held, entry)) {
            // Something newer came meanwhile, perhaps from another instance.
            return Ok(false);
        }
        let Some(refreshed) = entry.refreshed(key, meta) else { return Ok(false) };
        let Some(charge) = self.budget.charge(refreshed.weight()) else { return Ok(false) };
        Ok(self.keep(key, refreshed, charge))
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}

#[cfg(test)]
mod tests;
