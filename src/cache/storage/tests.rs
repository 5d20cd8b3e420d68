use super::*;
use crate::cache::entry::system_time;
use crate::cache::remote::{Claim, Claimed};
use crate::clock::ManualClock;
use bytes::Bytes;
use parking_lot::Mutex;
use pingora::cache::NoCacheReason;
use pingora::cache::predictor::{CacheablePredictor, Predictor};
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
    /// Who holds which claim; `-` where nobody need wait.
    claims: Mutex<HashMap<String, String>>,
    asked: std::sync::atomic::AtomicUsize,
}

impl Fake {
    /// Another instance claims what `name` stands for.
    fn claim_elsewhere(&self, name: &str) {
        let lock = format!("cache_lock:{{cache:{}}}", key(name).combined());
        self.claims.lock().insert(lock, "somebody".into());
    }

    fn release_elsewhere(&self) {
        self.claims.lock().clear();
    }

    fn holders(&self) -> Vec<String> {
        self.claims.lock().values().cloned().collect()
    }
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
    async fn get_or_claim(&self, key: &str, claim: Claim<'_>) -> Claimed {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if let Some(value) = self.get(key).await {
            return Claimed::Found(value);
        }
        let mut claims = self.claims.lock();
        match claims.get(claim.name) {
            None => {
                claims.insert(claim.name.to_owned(), claim.holder.to_owned());
                Claimed::Won
            }
            Some(holder) if holder == claim.holder => Claimed::Won,
            Some(holder) if holder == "-" => Claimed::Open,
            Some(_) => Claimed::Taken,
        }
    }
    async fn release(&self, claim: Claim<'_>, unshared: Option<Duration>) {
        let mut claims = self.claims.lock();
        if claims.get(claim.name).is_none_or(|holder| holder != claim.holder) {
            return;
        }
        claims.remove(claim.name);
        if unshared.is_some() {
            claims.insert(claim.name.to_owned(), "-".into());
        }
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
    let entry = tiers.memory.weight();
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

async fn fill_sized(tiers: &'static Tiers, name: &str, length: usize, declared: bool) -> bool {
    let declared = declared.then_some(length);
    let Ok(mut miss) = tiers.get_miss_handler(&key(name), &meta(60, declared), &span()).await else {
        return false;
    };
    for chunk in vec![b'x'; length].chunks(10_000) {
        if miss.write_body(Bytes::copy_from_slice(chunk), false).await.is_err() {
            return false;
        }
    }
    miss.finish().await.is_ok()
}

async fn holds(tiers: &'static Tiers, name: &str) -> bool {
    tiers.lookup(&key(name), &span()).await.unwrap().is_some()
}

async fn held(tiers: &'static Tiers, names: &[String]) -> usize {
    let mut held = 0;
    for name in names {
        held += usize::from(holds(tiers, name).await);
    }
    held
}

fn names(what: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{what}{n}")).collect()
}

#[tokio::test]
async fn memory_stays_within_its_bound() {
    let settings = Settings { memory_bytes: 64 * 1024, ..Settings::default() };
    let (tiers, _) = tiers(&settings, None);
    for name in names("k", 200) {
        assert!(fill(tiers, &name, &["0123456789"], Some(10)).await);
        assert!(tiers.memory_bytes() <= 64 * 1024);
    }
    assert!(tiers.memory_entries() > 20, "{} entries", tiers.memory_entries());
    // Fills under way count as well: what has no room is refused, and leaves nothing behind.
    let before = tiers.memory_bytes();
    for declared in [true, false] {
        assert!(!fill_sized(tiers, "big", 60 * 1024, declared).await);
        assert_eq!(tiers.memory_bytes(), before);
    }
    // So do bodies that a slow reader keeps after they were evicted.
    let (_, reader) = tiers.lookup(&key("k199"), &span()).await.unwrap().unwrap();
    tiers.memory.clear();
    assert!(tiers.memory_bytes() > 0);
    drop(reader);
    assert_eq!(tiers.memory_bytes(), 0);
}

#[tokio::test]
async fn copies_on_their_way_to_the_shared_tier_count_as_often_as_they_are_held() {
    let remote = Arc::new(Fake::default());
    remote.slow.store(true, Ordering::Relaxed);
    let (tiers, _) = tiers(&Settings::default(), Some(&remote));
    let body = &*"x".repeat(100_000).leak();
    assert!(fill(tiers, "a", &[body], Some(body.len())).await);
    let copies = tiers.memory_bytes() - tiers.memory.weight();
    assert!((200_000..300_000).contains(&copies), "{copies}");
}

#[tokio::test]
async fn what_is_asked_for_again_survives_a_scan() {
    let settings = Settings { memory_bytes: 4 * 1024 * 1024, ..Settings::default() };
    let (tiers, _) = tiers(&settings, None);
    // Full of what nobody asks for again.
    for name in names("old", 1_000) {
        assert!(fill_sized(tiers, &name, 4_000, true).await);
    }
    // Asked for a few times, and fetched where it is missing.
    let hot = names("hot", 50);
    for _ in 0..4 {
        for name in &hot {
            if !holds(tiers, name).await {
                assert!(fill_sized(tiers, name, 4_000, true).await);
            }
        }
    }
    let before = held(tiers, &hot).await;
    assert!(before >= 45, "{before} of 50 are there");
    for name in names("scanned", 10_000) {
        assert!(fill_sized(tiers, &name, 4_000, true).await);
    }
    let left = held(tiers, &hot).await;
    assert!(left >= 45, "{left} of 50 are left");
}

#[tokio::test]
async fn giant_objects_do_not_empty_the_memory() {
    let settings = Settings { memory_bytes: 16 * 1024 * 1024, ..Settings::default() };
    let clock = Arc::new(ManualClock::at(NOW));
    let biggest = 1024 * 1024;
    let tiers: &'static Tiers = Box::leak(Box::new(Tiers::new(&settings, biggest, None, clock)));
    let hot = names("hot", 200);
    for _ in 0..2 {
        for name in &hot {
            if !holds(tiers, name).await {
                assert!(fill_sized(tiers, name, 4_000, true).await);
            }
        }
    }
    for name in names("giant", 40) {
        // Wherever the tier is as big as the configuration demands, the largest has room.
        assert!(fill_sized(tiers, &name, biggest, name.len() % 2 == 0).await, "{name}");
    }
    assert!(holds(tiers, "giant39").await);
    let left = held(tiers, &hot).await;
    assert!(left >= 180, "{left} of 200 are left");
}

#[tokio::test]
async fn odd_bodies_are_stored_as_they_are_or_not_at_all() {
    let (tiers, _) = tiers(&Settings::default(), None);
    let store = async |name: &'static str, status: u16, length: Option<&str>, body: &'static str| {
        let mut header = ResponseHeader::build(status, None).unwrap();
        header.append_header("x-ODD-Case", "1").unwrap();
        if let Some(length) = length {
            header.append_header("content-length", length).unwrap();
        }
        let fresh = system_time(NOW.plus(Duration::from_secs(60)));
        let meta = CacheMeta::new(fresh, system_time(NOW), 0, 0, header);
        let mut miss = tiers.get_miss_handler(&key(name), &meta, &span()).await.unwrap();
        miss.write_body(Bytes::from_static(body.as_bytes()), true).await.unwrap();
        miss.finish().await.is_ok()
    };
    let length_of = async |name: &'static str| {
        let (meta, _) = tiers.lookup(&key(name), &span()).await.unwrap().unwrap();
        meta.headers().get("content-length").map(|length| length.to_str().unwrap().to_owned())
    };
    // No body needs no length, any other has one.
    assert!(store("204", 204, None, "").await);
    assert_eq!(length_of("204").await, None);
    assert!(store("empty", 200, None, "").await && store("empty too", 200, Some("0"), "").await);
    assert_eq!(
        (length_of("empty").await.as_deref(), length_of("empty too").await.as_deref()),
        (Some("0"), Some("0"))
    );
    assert_eq!(read(tiers, "empty").await, Some((String::new(), Tier::Memory)));
    // A length that belongs to another body, as a 304 or an answer to HEAD may have, and those that are none.
    for (name, status, length, body) in [
        ("304", 304, "5", ""),
        ("head", 200, "5", ""),
        ("short", 200, "5", "hell"),
        ("long", 200, "5", "hello!"),
        ("negative", 200, "-5", "hello"),
        ("two", 200, "5, 5", "hello"),
        ("huge", 200, "99999999999999999999", "hello"),
    ] {
        assert!(!store(name, status, Some(length), body).await, "{name}");
        assert!(!holds(tiers, name).await, "{name}");
    }
    // Names are spelled as in every answer: the proxy keeps no spelling, so there is none to be stored.
    assert!(store("case", 200, None, "x").await);
    let (meta, _) = tiers.lookup(&key("case"), &span()).await.unwrap().unwrap();
    let mut wire = Vec::new();
    meta.response_header().header_to_h1_wire(&mut wire);
    assert_eq!(String::from_utf8(wire).unwrap(), "x-odd-case: 1\r\nContent-Length: 1\r\n");
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
    let fresh = validated(tiers, "a", 600).await;
    assert!(tiers.update_meta(&key("a"), &fresh, &span()).await.unwrap());
    clock.advance(Duration::from_secs(300));
    assert_eq!(read(tiers, "a").await, Some(("hello".into(), Tier::Memory)));
    let (meta, _) = tiers.lookup(&key("a"), &span()).await.unwrap().unwrap();
    assert_eq!(meta.headers().get("content-length").unwrap(), "5");
    assert!(!tiers.update_meta(&key("b"), &meta, &span()).await.unwrap());
}

/// What pingora makes of what it found once the upstream said that it is good.
async fn validated(tiers: &'static Tiers, name: &str, seconds: u64) -> CacheMeta {
    let (found, _) = tiers.lookup(&key(name), &span()).await.unwrap().unwrap();
    let mut fresh = meta(seconds, Some(9));
    *fresh.extensions_mut() = found.extensions().clone();
    fresh
}

#[tokio::test]
async fn a_validation_refreshes_only_the_entry_that_was_validated() {
    let (tiers, _) = tiers(&Settings::default(), None);
    fill(tiers, "a", &["hello"], None).await;
    let fresh = validated(tiers, "a", 600).await;
    // Another response came while the upstream was asked about the first.
    fill(tiers, "a", &["world!"], None).await;
    assert!(!tiers.update_meta(&key("a"), &fresh, &span()).await.unwrap());
    assert_eq!(read(tiers, "a").await, Some(("world!".into(), Tier::Memory)));
    let (held, _) = tiers.lookup(&key("a"), &span()).await.unwrap().unwrap();
    assert_eq!(held.fresh_until(), meta(60, None).fresh_until());
    // What was evicted meanwhile is stored again as it was found.
    let fresh = validated(tiers, "a", 600).await;
    tiers.memory.remove(&u128::from_be_bytes(key("a").combined_bin()));
    assert!(tiers.update_meta(&key("a"), &fresh, &span()).await.unwrap());
    assert_eq!(read(tiers, "a").await, Some(("world!".into(), Tier::Memory)));
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

/// A lookup as a task of its own.
fn looking(tiers: &'static Tiers, name: &'static str) -> tokio::task::JoinHandle<Option<(String, Tier)>> {
    tokio::spawn(read(tiers, name))
}

#[tokio::test(start_paused = true)]
async fn lookups_of_one_key_ask_the_shared_tier_once_and_then_not_at_all() {
    let remote = Arc::new(Fake::default());
    let (tiers, _) = tiers(&Settings::default(), Some(&remote));
    let lookups: Vec<_> = (0..100).map(|_| looking(tiers, "a")).collect();
    for lookup in lookups {
        assert_eq!(lookup.await.unwrap(), None);
    }
    // The instance has the claim: whoever comes now waits for its fetch, and asks nobody.
    assert_eq!(read(tiers, "a").await, None);
    assert_eq!(remote.asked.load(Ordering::Relaxed), 1);
    assert_eq!(remote.holders().len(), 1);
    // Stored: found by all, and the claim goes back.
    assert!(fill(tiers, "a", &["x"], None).await);
    assert_eq!(read(tiers, "a").await, Some(("x".into(), Tier::Memory)));
    settled().await;
    assert_eq!((remote.holders().len(), tiers.flights.len()), (0, 0));
    assert_eq!(remote.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lookup_waits_for_the_instance_that_fetches() {
    let remote = Arc::new(Fake::default());
    let (one, _) = tiers(&Settings::default(), Some(&remote));
    let (other, _) = tiers(&Settings::default(), Some(&remote));
    assert_eq!(read(one, "a").await, None);
    let waiting: Vec<_> = (0..3).map(|_| looking(other, "a")).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(waiting.iter().all(|lookup| !lookup.is_finished()));
    fill(one, "a", &["x"], None).await;
    for lookup in waiting {
        assert_eq!(lookup.await.unwrap(), Some(("x".into(), Tier::Remote)));
    }
    settled().await;
    assert_eq!((remote.holders().len(), other.flights.len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_given_back_or_in_vain_or_too_slow_holds_nobody() {
    let remote = Arc::new(Fake::default());
    let settings = Settings { lock_wait: Duration::from_secs(3), ..Settings::default() };
    let (tiers, _) = tiers(&settings, Some(&remote));
    // Given back without an entry: the next one claims.
    remote.claim_elsewhere("a");
    let waiting = looking(tiers, "a");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished());
    remote.release_elsewhere();
    assert_eq!(waiting.await.unwrap(), None);
    assert_ne!(remote.holders(), ["somebody"]);
    // What others cannot have either: nobody waits, here or there.
    tiers.fetched(&key("a"), true);
    settled().await;
    assert_eq!(remote.holders(), ["-"]);
    assert_eq!(read(tiers, "a").await, None);
    assert_eq!(remote.holders(), ["-"], "there is no claim to have");
    tiers.fetched(&key("a"), true);
    // Never given back: the wait is bounded.
    remote.claim_elsewhere("b");
    let begun = tokio::time::Instant::now();
    assert_eq!(read(tiers, "b").await, None);
    assert_eq!(begun.elapsed(), Duration::from_millis(1_500), "half of it");
    // While this instance fetches by itself, nobody here waits for the other one again.
    assert_eq!(read(tiers, "b").await, None);
    assert_eq!(begun.elapsed(), Duration::from_millis(1_500), "half of it");
    assert_eq!(remote.holders().len(), 2, "what is not held is not given back");
}

#[tokio::test(start_paused = true)]
async fn requests_that_leave_hold_nobody_up() {
    let remote = Arc::new(Fake::default());
    let (tiers, _) = tiers(&Settings::default(), Some(&remote));
    // The one that asked leaves; the one that waits is served all the same.
    remote.claim_elsewhere("a");
    let (first, second) = (looking(tiers, "a"), looking(tiers, "a"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    first.abort();
    remote.release_elsewhere();
    assert_eq!(second.await.unwrap(), None);
    tiers.fetched(&key("a"), false);
    settled().await;
    assert_eq!(remote.holders().len(), 0);
    // All leave: nothing is claimed for nobody.
    remote.claim_elsewhere("a");
    let only = looking(tiers, "a");
    tokio::time::sleep(Duration::from_millis(100)).await;
    only.abort();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(remote.holders(), ["somebody"]);
    assert_eq!(tiers.flights.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_shared_tier_costs_its_deadline_and_no_wait() {
    let remote = Arc::new(Fake::default());
    let settings = Settings::default();
    let (tiers, _) = tiers(&settings, Some(&remote));
    remote.slow.store(true, Ordering::Relaxed);
    remote.claim_elsewhere("a");
    let begun = tokio::time::Instant::now();
    let lookups: Vec<_> = (0..10).map(|_| looking(tiers, "a")).collect();
    for lookup in lookups {
        assert_eq!(lookup.await.unwrap(), None);
    }
    assert_eq!(begun.elapsed(), settings.remote_deadline);
}

#[tokio::test(start_paused = true)]
async fn without_claims_instances_do_not_wait_for_each_other() {
    let remote = Arc::new(Fake::default());
    let settings = Settings { claim_hold: Duration::ZERO, ..Settings::default() };
    let (tiers, _) = tiers(&settings, Some(&remote));
    remote.claim_elsewhere("a");
    assert_eq!(read(tiers, "a").await, None);
    assert_eq!((remote.asked.load(Ordering::Relaxed), tiers.flights.len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_gets_the_turn_after_the_object_has_come_is_told_to_look_again() {
    use pingora::cache::lock::{CacheKeyLock, LockStatus, Locked};
    let (tiers, _) = tiers(&Settings::default(), None);
    let predictor: &'static Predictor<1> = Box::leak(Box::new(Predictor::new(8, None)));
    let turns = crate::cache::turns::Turns::new(Duration::from_secs(30), tiers, predictor);
    let Locked::Write(permit) = turns.lock(&key("a"), false) else { panic!("nobody fetches it yet") };
    assert!(matches!(turns.lock(&key("a"), false), Locked::Read(_)));
    fill(tiers, "a", &["x"], None).await;
    turns.release(&key("a"), permit, LockStatus::Done);
    let Locked::Read(again) = turns.lock(&key("a"), false) else { panic!("it need not be fetched again") };
    assert_eq!((again.locked(), again.lock_status()), (false, LockStatus::Done));
    // A revalidation is for the one who wants it.
    let Locked::Write(permit) = turns.lock(&key("a"), true) else { panic!("nobody revalidates it") };
    turns.release(&key("a"), permit, LockStatus::Done);
    // What cannot be stored is fetched by all who wait for it; what only failed, by one of them.
    for (too_large, outcome) in [(false, LockStatus::TransientError), (true, LockStatus::GiveUp)] {
        let Locked::Write(permit) = turns.lock(&key("b"), false) else { panic!("nobody fetches it yet") };
        let Locked::Read(waiting) = turns.lock(&key("b"), false) else { panic!("it is being fetched") };
        if too_large {
            predictor.mark_uncacheable(&key("b"), NoCacheReason::ResponseTooLarge);
        }
        turns.release(&key("b"), permit, LockStatus::TransientError);
        assert_eq!(waiting.lock_status(), outcome);
    }
}

#[tokio::test]
async fn who_refreshes_finds_what_another_instance_refreshed_once_half_of_its_own_is_over() {
    let fake = Arc::new(Fake::default());
    let (one, _) = tiers(&Settings::default(), Some(&fake));
    let (two, clock) = tiers(&Settings::default(), Some(&fake));
    let refreshing: &'static View = Box::leak(Box::new(View::new(two, Looks::ToRefresh)));
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
