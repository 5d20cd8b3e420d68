use super::*;
use crate::cache::entry::system_time;
use crate::clock::ManualClock;
use bytes::Bytes;
use parking_lot::Mutex;
use pingora::cache::trace::Span;
use pingora::http::ResponseHeader;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
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
    let entry = u64::try_from(tiers.memory.weight()).unwrap();
    assert_eq!(tiers.memory_bytes(), entry);
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

#[tokio::test]
async fn who_refreshes_finds_what_another_instance_refreshed_once_half_of_its_own_is_over() {
    let fake = Arc::new(Fake::default());
    let (one, _) = tiers(&Settings::default(), Some(&fake));
    let (two, clock) = tiers(&Settings::default(), Some(&fake));
    let refreshing: &'static Refreshing = Box::leak(Box::new(Refreshing(two)));
    let found = async || {
        let (meta, hit) = refreshing.lookup(&key("a"), &span()).await.unwrap().unwrap();
        (meta.fresh_until(), hit.as_any().downcast_ref::<Hit>().unwrap().tier())
    };
    let until = |seconds| system_time(NOW.plus(Duration::from_secs(seconds)));
    fill(one, "a", &["x"], None).await;
    settled().await;
    assert_eq!(read(two, "a").await.unwrap().1, Tier::Remote);
    let mut miss = one.get_miss_handler(&key("a"), &meta(100, None), &span()).await.unwrap();
    miss.write_body(Bytes::from_static(b"y"), true).await.unwrap();
    miss.finish().await.unwrap();
    settled().await;
    clock.set(NOW.plus(Duration::from_secs(30)));
    assert_eq!(found().await, (until(60), Tier::Memory));
    clock.set(NOW.plus(Duration::from_secs(31)));
    assert_eq!(read(two, "a").await, Some(("x".into(), Tier::Memory)), "a client's request does not ask");
    assert_eq!(found().await, (until(100), Tier::Remote));
    assert_eq!(read(two, "a").await, Some(("y".into(), Tier::Memory)), "clients get it from then on");
}
