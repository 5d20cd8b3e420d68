//! pingora's `Storage` over two tiers: bounded memory per instance, then the shared tier if there is one.
//! A fill becomes visible only when it is complete; a hit copies no body bytes.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use pingora::cache::key::CacheHashKey;
use pingora::cache::storage::{HandleHit, HandleMiss, MissFinishType};
use pingora::cache::trace::SpanHandle;
use pingora::cache::{
    CacheKey, CacheMeta, HitHandler, MissHandler, PurgeOutcome, PurgeTarget, PurgeType, Storage,
};
use pingora::{Error, ErrorType, Result};

use super::entry::{Draft, Entry};
use super::remote::{Remote, RemoteCounters, RemoteTier};
use super::settings::Settings;
use crate::clock::{Clock, UnixMillis};

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

    fn in_memory(&self, key: &CacheKey, now: UnixMillis) -> Option<Arc<Entry>> {
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

/// A stored response being sent.
#[derive(Debug)]
pub struct Hit {
    entry: Arc<Entry>,
    at: usize,
    end: usize,
    tier: Tier,
}

impl Hit {
    /// Where it was found.
    pub const fn tier(&self) -> Tier {
        self.tier
    }

    /// When it was fetched or last validated.
    pub fn updated(&self) -> UnixMillis {
        self.entry.updated()
    }
}

#[async_trait]
impl HandleHit for Hit {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let part = self.entry.body().slice(self.at..self.end);
        self.at = self.end;
        Ok(Some(part))
    }

    async fn finish(
        self: Box<Self>,
        _storage: &'static (dyn Storage + Sync),
        _key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<()> {
        Ok(())
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn seek(&mut self, start: usize, end: Option<usize>) -> Result<()> {
        let length = self.entry.body().len();
        let end = end.unwrap_or(length).min(length);
        if start > end {
            return Error::e_explain(ErrorType::InternalError, "range outside the stored body");
        }
        (self.at, self.end) = (start, end);
        Ok(())
    }

    fn get_eviction_weight(&self) -> usize {
        self.entry.weight()
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}

/// A response being received. Dropped before `finish`, it leaves nothing behind.
struct Fill {
    tiers: &'static Tiers,
    key: CacheKey,
    draft: Option<Draft>,
    body: BytesMut,
    reserved: usize,
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.tiers.filling.fetch_sub(self.reserved, Ordering::Relaxed);
    }
}

#[async_trait]
impl HandleMiss for Fill {
    async fn write_body(&mut self, data: Bytes, _eof: bool) -> Result<()> {
        let filling = self.tiers.filling.fetch_add(data.len(), Ordering::Relaxed);
        self.reserved += data.len();
        if filling.saturating_add(data.len()) > self.tiers.max_filling {
            return Error::e_explain(ErrorType::InternalError, "too many responses are being stored at once");
        }
        // Copied: a slice would keep the whole read buffer it points into alive.
        self.body.extend_from_slice(&data);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<MissFinishType> {
        let body = std::mem::take(&mut self.body);
        // A growing buffer has spare room, which the weight would not account for.
        let body = if body.capacity() > body.len() + body.len() / 8 {
            Bytes::copy_from_slice(&body)
        } else {
            body.freeze()
        };
        let Some(entry) = self.draft.take().and_then(|draft| draft.complete(body)) else {
            return Error::e_explain(ErrorType::InternalError, "the body is not as long as declared");
        };
        let weight = entry.weight();
        self.tiers.keep(&self.key, entry);
        Ok(MissFinishType::Created(weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::entry::system_time;
    use crate::clock::ManualClock;
    use parking_lot::Mutex;
    use pingora::cache::trace::Span;
    use pingora::http::ResponseHeader;
    use std::collections::HashMap;
    use std::time::Duration;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

    #[derive(Default)]
    struct Fake {
        values: Mutex<HashMap<String, (Bytes, Duration)>>,
        slow: std::sync::atomic::AtomicBool,
    }

    #[async_trait]
    impl RemoteTier for Fake {
        async fn get(&self, key: &str) -> Option<Bytes> {
            if self.slow.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            self.values.lock().get(key).map(|(value, _)| value.clone())
        }
        async fn put(&self, key: &str, value: Bytes, ttl: Duration) -> bool {
            if self.slow.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            self.values.lock().insert(key.to_owned(), (value, ttl));
            true
        }
        async fn delete(&self, key: &str) {
            self.values.lock().remove(key);
        }
    }

    fn tiers(settings: &Settings, remote: Option<&Arc<Fake>>) -> (&'static Tiers, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::at(NOW));
        let remote = remote.map(|fake| Arc::clone(fake) as Arc<dyn RemoteTier>);
        (Box::leak(Box::new(Tiers::new(settings, 1024, remote, Arc::clone(&clock) as _))), clock)
    }

    fn key(name: &str) -> CacheKey {
        CacheKey::new(name.as_bytes().to_vec(), "")
    }

    fn meta(fresh: u64, length: Option<usize>) -> CacheMeta {
        let mut header = ResponseHeader::build(200, None).unwrap();
        if let Some(length) = length {
            header.insert_header("content-length", length).unwrap();
        }
        CacheMeta::new(system_time(NOW.plus(Duration::from_secs(fresh))), system_time(NOW), 0, 0, header)
    }

    fn span() -> SpanHandle {
        Span::inactive().handle()
    }

    async fn fill(tiers: &'static Tiers, name: &str, chunks: &[&'static str], length: Option<usize>) -> bool {
        let mut miss = tiers.get_miss_handler(&key(name), &meta(60, length), &span()).await.unwrap();
        for chunk in chunks {
            if miss.write_body(Bytes::from_static(chunk.as_bytes()), false).await.is_err() {
                return false;
            }
        }
        miss.finish().await.is_ok()
    }

    async fn read(tiers: &'static Tiers, name: &str) -> Option<(String, Tier)> {
        let (_, mut hit) = tiers.lookup(&key(name), &span()).await.unwrap()?;
        let tier = hit.as_any().downcast_ref::<Hit>().unwrap().tier();
        let mut body = Vec::new();
        while let Some(part) = hit.read_body().await.unwrap() {
            body.extend_from_slice(&part);
        }
        Some((String::from_utf8(body).unwrap(), tier))
    }

    async fn settled() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_complete_fill_is_found_and_an_incomplete_one_is_not() {
        let (tiers, _) = tiers(&Settings::default(), None);
        assert!(fill(tiers, "a", &["hel", "lo"], Some(5)).await);
        assert_eq!(read(tiers, "a").await, Some(("hello".into(), Tier::Memory)));
        // Shorter than declared: dropped, with an error so that whoever waits does not wait for nothing.
        assert!(!fill(tiers, "b", &["hel"], Some(5)).await);
        assert_eq!(read(tiers, "b").await, None);
        // Dropped before the end: nothing remains, not even the reservation.
        let mut miss = tiers.get_miss_handler(&key("c"), &meta(60, None), &span()).await.unwrap();
        miss.write_body(Bytes::from_static(b"x"), false).await.unwrap();
        drop(miss);
        assert_eq!(read(tiers, "c").await, None);
        assert_eq!(tiers.filling.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn ranges_of_a_stored_body_are_read() {
        let (tiers, _) = tiers(&Settings::default(), None);
        fill(tiers, "a", &["0123456789"], None).await;
        let (meta, mut hit) = tiers.lookup(&key("a"), &span()).await.unwrap().unwrap();
        assert_eq!(meta.headers().get("content-length").unwrap(), "10");
        for (start, end, expected) in [(2, Some(5), "234"), (8, None, "89"), (0, Some(99), "0123456789")] {
            hit.seek(start, end).unwrap();
            assert_eq!(hit.read_body().await.unwrap().unwrap(), expected);
            assert_eq!(hit.read_body().await.unwrap(), None);
        }
        assert!(hit.seek(11, None).is_err());
    }

    #[tokio::test]
    async fn an_entry_past_its_life_is_gone() {
        let (tiers, clock) = tiers(&Settings::default(), None);
        fill(tiers, "a", &["x"], None).await;
        clock.advance(Duration::from_secs(61));
        assert_eq!(read(tiers, "a").await, None);
        assert_eq!(tiers.memory_entries(), 0);
    }

    #[tokio::test]
    async fn memory_stays_within_its_bound() {
        let settings = Settings { memory_bytes: 16 * 1024, ..Settings::default() };
        let (tiers, _) = tiers(&settings, None);
        for n in 0..200 {
            fill(tiers, &format!("k{n}"), &["0123456789"], None).await;
        }
        assert!(tiers.memory_bytes() <= 16 * 1024 && tiers.memory_entries() > 5);
        // Fills under way are bounded too.
        let mut miss = tiers.get_miss_handler(&key("big"), &meta(60, None), &span()).await.unwrap();
        assert!(miss.write_body(Bytes::from(vec![0; 17 * 1024]), false).await.is_err());
    }

    #[tokio::test]
    async fn a_hash_collision_is_a_miss() {
        let (tiers, _) = tiers(&Settings::default(), None);
        fill(tiers, "a", &["x"], None).await;
        let mut forged = key("b");
        forged.set_primary_bin_override(key("a").primary_bin());
        assert!(tiers.lookup(&forged, &span()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn another_instance_finds_the_entry_in_the_shared_tier() {
        let fake = Arc::new(Fake::default());
        let (one, _) = tiers(&Settings::default(), Some(&fake));
        let (two, clock) = tiers(&Settings::default(), Some(&fake));
        fill(one, "a", &["hello"], None).await;
        settled().await;
        assert_eq!(fake.values.lock().values().next().unwrap().1, Duration::from_secs(60));
        clock.advance(Duration::from_secs(40));
        assert_eq!(read(two, "a").await, Some(("hello".into(), Tier::Remote)));
        assert_eq!(read(two, "a").await, Some(("hello".into(), Tier::Memory)));
        // The promoted copy keeps the remaining life, not a new one.
        clock.advance(Duration::from_secs(21));
        assert_eq!(read(two, "a").await, None);
        assert_eq!(two.remote_counters().unwrap().hits.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn forged_entries_in_the_shared_tier_are_misses() {
        let fake = Arc::new(Fake::default());
        let settings = Settings { remote_secret: Some(b"secret".as_slice().into()), ..Settings::default() };
        let (one, _) = tiers(&settings, Some(&fake));
        fill(one, "a", &["hello"], None).await;
        settled().await;
        let planted = fake.values.lock().values().next().unwrap().clone();
        let name = format!("cache:{}", key("b").combined());
        fake.values.lock().insert(name, planted.clone());
        let (two, _) = tiers(&settings, Some(&fake));
        assert_eq!(read(two, "b").await, None);
        let mut damaged = planted.0.to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        fake.values.lock().insert(format!("cache:{}", key("a").combined()), (damaged.into(), planted.1));
        assert_eq!(read(two, "a").await, None);
        assert_eq!(two.remote_counters().unwrap().rejected.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_shared_tier_costs_its_deadline_and_no_memory() {
        let fake = Arc::new(Fake::default());
        fake.slow.store(true, Ordering::Relaxed);
        let settings = Settings { remote_writes_in_flight: 2, ..Settings::default() };
        let (tiers, _) = tiers(&settings, Some(&fake));
        let start = tokio::time::Instant::now();
        assert_eq!(read(tiers, "a").await, None);
        assert_eq!(start.elapsed(), Duration::from_millis(20));
        for n in 0..5 {
            assert!(fill(tiers, &format!("k{n}"), &["x"], None).await);
        }
        let counters = tiers.remote_counters().unwrap();
        assert_eq!(counters.timeouts.load(Ordering::Relaxed), 1);
        assert_eq!(counters.dropped.load(Ordering::Relaxed), 3);
        assert_eq!(read(tiers, "k4").await, Some(("x".into(), Tier::Memory)));
    }

    #[tokio::test]
    async fn big_objects_stay_in_memory() {
        let fake = Arc::new(Fake::default());
        let settings = Settings { remote_max_object_bytes: 4, ..Settings::default() };
        let (tiers, _) = tiers(&settings, Some(&fake));
        fill(tiers, "a", &["hello"], None).await;
        settled().await;
        assert!(fake.values.lock().is_empty());
        assert_eq!(read(tiers, "a").await, Some(("hello".into(), Tier::Memory)));
    }

    #[tokio::test]
    async fn revalidation_refreshes_the_entry_and_keeps_its_body() {
        let (tiers, clock) = tiers(&Settings::default(), None);
        fill(tiers, "a", &["hello"], None).await;
        assert!(tiers.update_meta(&key("a"), &meta(600, Some(9)), &span()).await.unwrap());
        clock.advance(Duration::from_secs(300));
        assert_eq!(read(tiers, "a").await, Some(("hello".into(), Tier::Memory)));
        let (meta, _) = tiers.lookup(&key("a"), &span()).await.unwrap().unwrap();
        assert_eq!(meta.headers().get("content-length").unwrap(), "5");
        assert!(!tiers.update_meta(&key("b"), &meta, &span()).await.unwrap());
    }

    #[tokio::test]
    async fn a_purge_reaches_both_tiers() {
        let fake = Arc::new(Fake::default());
        let (tiers, _) = tiers(&Settings::default(), Some(&fake));
        fill(tiers, "a", &["hello"], None).await;
        settled().await;
        let compact = key("a").to_compact();
        let target = PurgeTarget::Active(&compact);
        let outcome = tiers.purge(target, PurgeType::Invalidation, &span()).await.unwrap();
        assert_eq!(outcome, PurgeOutcome::Purged(None));
        settled().await;
        assert_eq!(read(tiers, "a").await, None);
    }
}
