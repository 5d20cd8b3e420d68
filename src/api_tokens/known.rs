//! The API tokens that this instance has read, and ids that it has looked for in vain. Both are bounded; what is known
//! is the record as it was read, so that any change of it shows.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::record::{MAX_RECORD, Naming, Record};
use super::token::{Id, Presented, SecretHash};
use crate::clock::{UnixMillis, millis};
use crate::identity::{Identity, Refused, subject_key};

/// Tokens remembered, of usual size.
const ENTRIES: usize = 10_000;
/// What a token of usual size weighs, in bytes.
const USUAL: u64 = 1_024;
/// Ids remembered as unknown.
const ABSENT: usize = 4_096;
/// How long an id stays unknown without being looked up again.
const ABSENT_FOR: Duration = Duration::from_secs(5);
/// How often at most one instance notes that a token was used.
pub(super) const USE_NOTED: Duration = Duration::from_secs(60);

/// One token as it was read.
pub struct Entry {
    /// Which one.
    pub id: Id,
    /// Where it is stored, prefix included.
    pub key: Arc<str>,
    /// What is stored there.
    stored: Bytes,
    /// What that means; `None` for what is no record.
    content: Option<(Record, Arc<Identity>)>,
    /// What was stored at this moment or later, in milliseconds since the epoch.
    read_at: AtomicU64,
    /// When its use was last noted, in milliseconds since the epoch; 0: never.
    used_at: AtomicU64,
}

impl fmt::Debug for Entry {
    /// Without the record, which holds hashes of secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Entry {
    /// What a read found that began at `now`.
    pub(super) fn new(id: Id, stored: Bytes, naming: &Naming, now: UnixMillis) -> Self {
        let record = Record::decode(&stored);
        let content = record.map(|record| {
            let identity = Arc::new(record.identity(id, naming));
            (record, identity)
        });
        let key = subject_key(&naming.prefix, "api_token", id.as_str(), naming.hash_tags).into();
        Self { id, key, stored, content, read_at: AtomicU64::new(now.0), used_at: AtomicU64::new(0) }
    }

    /// The record, where there is one.
    pub(super) fn record(&self) -> Option<&Record> {
        self.content.as_ref().map(|(record, _)| record)
    }

    /// Whether exactly this is stored.
    pub(super) fn is(&self, stored: &[u8]) -> bool {
        self.stored == stored
    }

    /// Whom a request with this secret comes from.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn judge(&self, secret: &SecretHash, now: UnixMillis) -> Result<&Arc<Identity>, Refused> {
        let Some((record, identity)) = &self.content else { return Err(refuse_unknown(secret)) };
        record.judge(secret, now).map(|()| identity)
    }

    /// Whether its use at `now` is to be noted; true for one caller.
    pub(super) fn note_use(&self, now: UnixMillis) -> bool {
        let before = self.used_at.load(Ordering::Relaxed);
        (before == 0 || now.0.abs_diff(before) >= millis(USE_NOTED))
            && self
                .used_at
                .compare_exchange(before, now.0.max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Takes over when `before`, the same token as it was, was used.
    pub(super) fn carry_on(&self, before: &Self) {
        self.used_at.store(before.used_at.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// When its use was last noted here, in milliseconds since the epoch.
    pub(super) fn used_at(&self) -> Option<u64> {
        Some(self.used_at.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }
}

/// Compares as for a known token, and says why it is refused.
pub(super) fn refuse_unknown(secret: &SecretHash) -> Refused {
    let none = &SecretHash::NONE;
    std::hint::black_box(bool::from(secret.is(none) | secret.is(none)));
    Refused::BadSignature
}

/// What a request with an API token is.
#[derive(Debug)]
pub enum Verdict {
    /// The token's.
    Accepted(Used),
    /// Nobody's.
    Refused(Refused),
    /// Not to be said before the record of what was presented is read.
    Unknown(Presented),
}

/// A token in use by one request: what it was accepted by, to be compared with what is stored.
#[derive(Clone, Debug)]
pub struct Used {
    /// The token.
    pub entry: Arc<Entry>,
    /// Whom it stands for.
    pub identity: Arc<Identity>,
    /// What the request presented.
    pub(super) secret: SecretHash,
}

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<Id, Arc<Entry>> for ByBytes {
    fn weight(&self, _: &Id, entry: &Arc<Entry>) -> u64 {
        // The record is held as text and read.
        let bytes = u64::try_from(entry.stored.len()).unwrap_or(u64::MAX).saturating_mul(2);
        bytes.div_ceil(USUAL).max(1)
    }
}

/// What this instance knows.
pub(super) struct Known {
    entries: Cache<Id, Arc<Entry>, ByBytes>,
    /// Until when an id counts as unknown, in milliseconds since the epoch.
    absent: Cache<Id, u64>,
}

impl Known {
    pub(super) fn new() -> Self {
        let weight = u64::try_from(ENTRIES).unwrap_or(u64::MAX);
        Self { entries: Cache::with_weighter(ENTRIES, weight, ByBytes), absent: Cache::new(ABSENT) }
    }

    pub(super) fn find(&self, id: Id) -> Option<Arc<Entry>> {
        self.entries.get(&id)
    }

    /// What a request is by what is known here.
    pub(super) fn judge(&self, presented: &Presented, now: UnixMillis) -> Verdict {
        let Presented { id, secret } = presented;
        let unknown = Verdict::Unknown(*presented);
        let Some(entry) = self.find(*id) else {
            let refused = refuse_unknown(secret);
            let absent = self.absent.get(id).is_some_and(|until| now.0 < until);
            return if absent { Verdict::Refused(refused) } else { unknown };
        };
        match entry.judge(secret, now) {
            Ok(identity) => {
                let identity = Arc::clone(identity);
                Verdict::Accepted(Used { entry, identity, secret: *secret })
            }
            // It may have been given another secret, or been enabled, since it was read.
            Err(Refused::BadSignature | Refused::Revoked)
                if entry.read_at.load(Ordering::Relaxed) < now.0 =>
            {
                unknown
            }
            Err(refused) => Verdict::Refused(refused),
        }
    }

    /// Learns what a read that began at `now` found under `id`: `None` is nothing. Answers to reads may come in another
    /// order, so what a later one found stays known. Returns what this one found; says it once of a record that is none.
    pub(super) fn learn(
        &self,
        id: Id,
        stored: Option<Bytes>,
        naming: &Naming,
        now: UnixMillis,
    ) -> Option<Arc<Entry>> {
        let before = self.find(id);
        let overtaken = before.as_ref().is_some_and(|before| before.read_at.load(Ordering::Relaxed) > now.0);
        let Some(stored) = stored else {
            if !overtaken {
                self.entries.remove(&id);
                self.absent.insert(id, now.plus(ABSENT_FOR).0);
            }
            return None;
        };
        // Of what is too long to be a record the beginning tells enough.
        let stored = stored.get(..=MAX_RECORD).map_or(stored.clone(), Bytes::copy_from_slice);
        if let Some(before) = &before
            && before.is(&stored)
        {
            before.read_at.fetch_max(now.0, Ordering::Relaxed);
            return Some(Arc::clone(before));
        }
        let entry = Entry::new(id, stored, naming, now);
        if let Some(before) = &before {
            entry.carry_on(before);
        }
        if entry.content.is_none() {
            tracing::warn!(%id, "what Redis holds under this id is no API token: it is refused");
        }
        let entry = Arc::new(entry);
        if !overtaken {
            self.entries.insert(id, Arc::clone(&entry));
            self.absent.remove(&id);
        }
        Some(entry)
    }

    /// Forgets all about `id`.
    pub(super) fn forget(&self, id: Id) {
        self.entries.remove(&id);
        self.absent.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Order;
    use super::super::token::Issued;
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    struct Scene {
        known: Known,
        naming: Naming,
        issued: Issued,
        record: Record,
    }

    fn scene() -> Scene {
        let issued = Issued::new(Id::random().unwrap()).unwrap();
        let order = Order { name: "ci".into(), owner: "ada".into(), ..Order::default() };
        let record = Record::new(&order, issued.hash(), NOW).unwrap();
        Scene { known: Known::new(), naming: Naming::default(), issued, record }
    }

    impl Scene {
        fn presented(&self) -> Presented {
            Presented::parse(&self.issued.reveal()).unwrap()
        }

        fn learn(&self, now: UnixMillis) {
            self.known.learn(self.issued.id, Some(self.record.encode().into()), &self.naming, now);
        }

        fn verdict(&self, presented: &Presented, now: UnixMillis) -> &'static str {
            match self.known.judge(presented, now) {
                Verdict::Accepted(used) => {
                    assert_eq!(used.identity.api_token.as_deref(), Some(self.issued.id.as_str()));
                    "accepted"
                }
                Verdict::Refused(refused) => refused.as_str(),
                Verdict::Unknown(unknown) => {
                    assert_eq!(unknown.id, presented.id);
                    "unknown"
                }
            }
        }
    }

    #[test]
    fn an_id_is_unknown_until_it_was_looked_for_and_again_after_a_while() {
        let scene = scene();
        let presented = scene.presented();
        assert_eq!(scene.verdict(&presented, NOW), "unknown");
        scene.known.learn(scene.issued.id, None, &scene.naming, NOW);
        assert_eq!(scene.verdict(&presented, NOW.plus(Duration::from_millis(4_999))), "bad_signature");
        assert_eq!(scene.verdict(&presented, NOW.plus(ABSENT_FOR)), "unknown");
        scene.known.learn(scene.issued.id, None, &scene.naming, NOW);
        scene.known.forget(scene.issued.id);
        assert_eq!(scene.verdict(&presented, NOW), "unknown");
    }

    #[test]
    fn a_refusal_is_certain_only_where_the_record_is_newer_than_the_request() {
        let mut scene = scene();
        scene.learn(NOW);
        let (good, later) = (scene.presented(), NOW.plus(Duration::from_millis(1)));
        let wrong = Presented { secret: SecretHash::of("another"), ..good };
        assert_eq!(scene.verdict(&good, later), "accepted");
        assert_eq!(scene.verdict(&wrong, later), "unknown");
        assert_eq!(scene.verdict(&wrong, NOW), "bad_signature");
        scene.record.disabled = true;
        scene.learn(later);
        assert_eq!(scene.verdict(&good, later), "revoked");
        assert_eq!(scene.verdict(&good, later.plus(ABSENT_FOR)), "unknown", "it may be enabled again");
        scene.record.disabled = false;
        scene.record.expires = Some(later.as_secs());
        scene.learn(later);
        assert_eq!(scene.verdict(&good, later.plus(ABSENT_FOR)), "expired");
    }

    #[test]
    fn what_an_earlier_read_found_replaces_nothing_that_a_later_one_found() {
        let mut scene = scene();
        let (old, later) = (scene.record.encode(), NOW.plus(Duration::from_millis(10)));
        let fresh = Issued::new(scene.issued.id).unwrap();
        scene.record.rotate(fresh.hash(), Duration::ZERO, NOW);
        scene.learn(later);
        let fresh = Presented::parse(&fresh.reveal()).unwrap();
        let found = scene.known.learn(scene.issued.id, Some(old.into()), &scene.naming, NOW).unwrap();
        assert!(found.judge(&scene.presented().secret, NOW).is_ok(), "it tells what it found");
        assert_eq!(scene.verdict(&fresh, later.plus(ABSENT_FOR)), "accepted");
        assert!(scene.known.learn(scene.issued.id, None, &scene.naming, NOW).is_none());
        assert_eq!(scene.verdict(&fresh, later.plus(ABSENT_FOR)), "accepted");
        assert!(scene.known.learn(scene.issued.id, None, &scene.naming, later).is_none());
        assert_eq!(scene.verdict(&fresh, later), "bad_signature");
    }

    #[test]
    fn nothing_that_is_known_prints_a_secret_or_its_hash() {
        let scene = scene();
        scene.learn(NOW);
        let Verdict::Accepted(used) = scene.known.judge(&scene.presented(), NOW) else { panic!() };
        let printed = format!("{used:?} {:?} {:?}", Verdict::Unknown(scene.presented()), scene.record);
        assert!(printed.contains(scene.issued.id.as_str()));
        let hash = scene.issued.hash().to_hex();
        let hash_as_bytes = format!("{:?}", hash.as_bytes());
        for shown in [&scene.issued.reveal()[21..], &hash, hash_as_bytes.trim_matches(['[', ']'])] {
            assert!(!printed.contains(shown), "{printed}");
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let scene = scene();
        for garbage in ["", "{}", "null", "\u{0}"] {
            let entry = scene.known.learn(scene.issued.id, Some(garbage.into()), &scene.naming, NOW).unwrap();
            assert!(entry.record().is_none());
            assert_eq!(scene.verdict(&scene.presented(), NOW), "bad_signature", "{garbage}");
        }
        let huge = Bytes::from(vec![b' '; 1 << 20]);
        scene.known.learn(scene.issued.id, Some(huge), &scene.naming, NOW);
        assert_eq!(scene.verdict(&scene.presented(), NOW), "bad_signature");
    }

    #[test]
    fn what_is_known_is_bounded() {
        let scene = scene();
        for _ in 0..3 * ABSENT {
            scene.known.learn(Id::random().unwrap(), None, &scene.naming, NOW);
        }
        assert!(scene.known.absent.len() <= ABSENT);
        let big = Bytes::from(vec![b' '; super::super::record::MAX_RECORD]);
        for _ in 0..1_000 {
            scene.known.learn(Id::random().unwrap(), Some(big.clone()), &scene.naming, NOW);
        }
        assert!(scene.known.entries.weight() <= u64::try_from(ENTRIES).unwrap());
    }

    #[test]
    fn of_very_many_tokens_few_are_held_and_each_is_judged_by_its_own_record() {
        let scene = scene();
        let tokens: Vec<Issued> = (0..110_000).map(|_| Issued::new(Id::random().unwrap()).unwrap()).collect();
        let order = Order { name: "ci".into(), owner: "ada".into(), ..Order::default() };
        let learn = |issued: &Issued| {
            let record = Record::new(&order, issued.hash(), NOW).unwrap();
            scene.known.learn(issued.id, Some(record.encode().into()), &scene.naming, NOW).unwrap()
        };
        for issued in &tokens {
            learn(issued);
        }
        assert!(scene.known.entries.len() <= ENTRIES, "{}", scene.known.entries.len());
        let judged = |issued: &Issued, other: &Issued| {
            let own = Presented::parse(&issued.reveal()).unwrap();
            let stolen = Presented { secret: Presented::parse(&other.reveal()).unwrap().secret, ..own };
            let verdict = |presented: &Presented| match scene.known.judge(presented, NOW) {
                Verdict::Accepted(used) => used.identity.api_token.as_deref() == Some(issued.id.as_str()),
                // It was forgotten, and is read again.
                Verdict::Unknown(_) => learn(issued).judge(&presented.secret, NOW).is_ok(),
                Verdict::Refused(_) => false,
            };
            (verdict(&own), verdict(&stolen))
        };
        for pair in tokens.windows(2).step_by(1_009) {
            assert_eq!(judged(&pair[0], &pair[1]), (true, false));
        }
    }

    #[test]
    fn a_use_is_noted_once_a_minute_and_outlives_a_change_of_the_record() {
        let mut scene = scene();
        scene.learn(NOW);
        let entry = scene.known.find(scene.issued.id).unwrap();
        assert_eq!((entry.used_at(), entry.note_use(NOW), entry.note_use(NOW)), (None, true, false));
        scene.record.disabled = true;
        scene.learn(NOW);
        let entry = scene.known.find(scene.issued.id).unwrap();
        assert!(!entry.note_use(NOW.plus(Duration::from_secs(59))));
        assert!(entry.note_use(NOW.plus(USE_NOTED)));
        assert_eq!(entry.used_at(), Some(NOW.plus(USE_NOTED).0));
    }
}
