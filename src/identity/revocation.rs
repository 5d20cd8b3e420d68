//! Revoked tokens and subject cut-offs: what one revocation is, what this instance knows of them while the
//! store is away, and what it still owes the store.
//!
//! It never talks to the store; TTLs and values are handed to whoever does.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ahash::RandomState;
use parking_lot::{Mutex, RwLock};

use super::identity::Identity;
use crate::clock::UnixMillis;
use crate::identifiers::MAX_KEY_PART;

/// Revocations remembered by default.
pub const DEFAULT_KNOWN: usize = 1_000_000;
/// Revocations kept for a store that is away by default.
pub const DEFAULT_PENDING: usize = 100_000;
/// How long a token without `exp` stays revoked by default: 30 days.
pub const DEFAULT_LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// The longest life of any revocation, ten years: whatever claims to last longer lasts so long from now on.
pub const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// How keys of revoked tokens and of cut-offs begin, after the prefix.
pub const TOKENS: &str = "blacklist:";
/// See [`TOKENS`].
pub const CUTOFFS: &str = "revoked_before:";
/// Longest name of a token in its key.
const MAX_TOKEN_PART: usize = 128;

/// What a revocation does to tokens that fall under its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The one token is revoked.
    Token,
    /// Tokens issued before this second since the epoch, and those that do not say when, are revoked.
    IssuedBefore(u64),
}

impl Effect {
    /// Tokens with an `iat` below this are revoked.
    const fn not_before(self) -> u64 {
        match self {
            Self::Token => u64::MAX,
            Self::IssuedBefore(second) => second,
        }
    }

    /// The stronger of two effects on one key.
    const fn max(self, other: Self) -> Self {
        if self.not_before() >= other.not_before() { self } else { other }
    }
}

/// One revocation: a store key, what it means, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The store key, prefix included.
    pub key: Arc<str>,
    /// What it means.
    pub effect: Effect,
    /// From here on no token it concerns would be accepted anyway.
    pub until: UnixMillis,
}

impl Revocation {
    /// Revokes everything issued to a subject up to and including the running second, for `longest`: at least
    /// the longest life of any of its tokens. A token issued within the same second is revoked too, because
    /// `iat` cannot tell it from those that must go.
    #[must_use]
    pub fn everywhere(cutoff_key: Arc<str>, now: UnixMillis, longest: Duration) -> Self {
        let effect = Effect::IssuedBefore(now.as_secs().saturating_add(1));
        Self { key: cutoff_key, effect, until: now.plus(longest) }
    }

    /// What is stored under the key: `1`, or the cut-off in seconds. Where a cut-off exists already the
    /// larger one must win.
    #[must_use]
    pub fn value(&self) -> Cow<'static, str> {
        match self.effect {
            Effect::Token => Cow::Borrowed("1"),
            Effect::IssuedBefore(second) => Cow::Owned(second.to_string()),
        }
    }

    /// Remaining life in the store, never zero, at most [`LONGEST`]; `None` when the revocation has no effect any more.
    #[must_use]
    pub fn ttl(&self, now: UnixMillis) -> Option<Duration> {
        match self.until.millis_since(now) {
            0 => None,
            left => Some(Duration::from_millis(left).min(LONGEST)),
        }
    }

    /// Whether the key, without this prefix, is one that instances make for such a revocation. Other keys that look
    /// alike belong to somebody else.
    #[must_use]
    pub fn is_named_well(&self, prefix: &str) -> bool {
        let Some(name) = self.key.strip_prefix(prefix) else { return false };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._~@-".contains(&byte);
        match self.effect {
            Effect::Token => name
                .strip_prefix(TOKENS)
                .is_some_and(|token| (1..=MAX_TOKEN_PART).contains(&token.len()) && token.bytes().all(plain)),
            Effect::IssuedBefore(_) => name.strip_prefix(CUTOFFS).is_some_and(|account| {
                let tagged = account.strip_prefix('{').and_then(|account| account.strip_suffix('}'));
                let account = tagged.unwrap_or(account);
                (1..=MAX_KEY_PART).contains(&account.len())
                    && account.bytes().all(|byte| plain(byte) || byte == b'%')
            }),
        }
    }
}

impl Revocation {
    /// Longest message accepted, in bytes.
    pub const MAX_MESSAGE_BYTES: usize = 1024;

    /// The form in which instances tell each other: `<until in ms> <t, or the cut-off in seconds> <key>`.
    #[must_use]
    pub fn to_message(&self) -> String {
        match self.effect {
            Effect::Token => format!("{} t {}", self.until.0, self.key),
            Effect::IssuedBefore(second) => format!("{} {second} {}", self.until.0, self.key),
        }
    }

    /// Reads [`Self::to_message`]; `None` for anything else.
    #[must_use]
    pub fn from_message(message: &str) -> Option<Self> {
        if message.len() > Self::MAX_MESSAGE_BYTES {
            return None;
        }
        let mut words = message.splitn(3, ' ');
        let until = UnixMillis(words.next()?.parse().ok()?);
        let effect = match words.next()? {
            "t" => Effect::Token,
            second => Effect::IssuedBefore(second.parse().ok()?),
        };
        let key = words.next().filter(|key| !key.is_empty())?.into();
        Some(Self { key, effect, until })
    }
}

/// Whether a stored cut-off revokes `identity`. What cannot be read as a number revokes: it fails closed.
#[must_use]
pub fn is_cut_off(identity: &Identity, stored_cutoff: &str) -> bool {
    stored_cutoff.trim().parse::<u64>().map_or(true, |second| identity.issued_at.unwrap_or(0) < second)
}

/// What became of a revocation that was learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// It is now held.
    Held,
    /// It, or a stronger one, was held already.
    AlreadyHeld,
    /// It has no effect any more.
    Past,
    /// It is held, and the revocation that would have ended soonest was given up for it.
    AtTheCostOfAnother,
    /// The table is full of revocations that last longer; this one is not held.
    NotHeld,
}

/// Revocations this instance holds, bounded; they go on while the store is away.
///
/// Keys are found by 128-bit hashes under random seeds: a false match is as unlikely as guessing one, and no
/// key can be aimed at another's place. They are kept, too, so that a store that has lost them gets them back.
pub struct Known {
    shards: Box<[RwLock<Shard>]>,
    seeds: (RandomState, RandomState),
    per_shard: usize,
    held: AtomicUsize,
    learned: AtomicU64,
    dropped: AtomicU64,
}

impl Known {
    /// A table for at most about `capacity` revocations (a multiple of the shard count, at least one).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let shards = (capacity / 1024).clamp(1, 64).next_power_of_two();
        Self {
            shards: (0..shards).map(|_| RwLock::default()).collect(),
            seeds: (RandomState::new(), RandomState::new()),
            per_shard: capacity.div_ceil(shards).max(1),
            held: AtomicUsize::new(0),
            learned: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Whether a held revocation concerns this token now.
    #[must_use]
    pub fn is_revoked(&self, identity: &Identity, now: UnixMillis) -> bool {
        if self.held.load(Ordering::Acquire) == 0 {
            return false;
        }
        let issued_at = identity.issued_at.unwrap_or(0);
        // A cut-off ends what a subject's logins gave out; an API token is not of them.
        let cutoff = Some(&identity.keys.cutoff).filter(|_| identity.api_token.is_none());
        [Some(&identity.keys.blacklist), cutoff].into_iter().flatten().any(|key| {
            self.find(key).is_some_and(|(until, effect)| {
                until > now
                    && match effect {
                        Effect::Token => true,
                        Effect::IssuedBefore(second) => issued_at < second,
                    }
            })
        })
    }

    /// Whether the one token is revoked whose revocation has this key.
    #[must_use]
    pub fn holds(&self, blacklist_key: &str, now: UnixMillis) -> bool {
        self.find(blacklist_key).is_some_and(|(until, _)| until > now)
    }

    /// Looks at the next `most` of what is held and returns those of it that were said, not merely inferred, and end
    /// after `after`. What is learned or let go of meanwhile may be met or not. One shard is locked at a time. Returns
    /// whether the walk goes on.
    pub fn walk(&self, cursor: &mut Cursor, most: usize, after: UnixMillis) -> (Vec<Revocation>, bool) {
        let (mut found, mut seen) = (Vec::new(), 0);
        while let Some(shard) = self.shards.get((cursor.first + cursor.shard) & (self.shards.len() - 1))
            && cursor.shard < self.shards.len()
        {
            let shard = shard.read();
            let from = cursor.after.map_or(Bound::Unbounded, Bound::Excluded);
            for end in shard.by_end.range((from, Bound::Unbounded)) {
                if seen >= most {
                    return (found, true);
                }
                seen += 1;
                cursor.after = Some(*end);
                if let Some(entry) = shard.entries.get(&end.1)
                    && let Some((until, effect)) = entry.said
                    && until > after
                {
                    found.push(Revocation { key: Arc::clone(&entry.key), effect, until });
                }
            }
            (cursor.shard, cursor.after) = (cursor.shard + 1, None);
        }
        (found, false)
    }

    /// Holds a revocation; of two for one key the later end and the stronger effect are kept.
    pub fn learn(&self, revocation: &Revocation, now: UnixMillis) -> Learned {
        self.hold(revocation, true, now)
    }

    /// As [`Self::learn`], of what nobody said in so many words: it holds here, and the store is never told.
    pub fn infer(&self, revocation: &Revocation, now: UnixMillis) -> Learned {
        self.hold(revocation, false, now)
    }

    fn hold(&self, revocation: &Revocation, said: bool, now: UnixMillis) -> Learned {
        if revocation.until <= now {
            return Learned::Past;
        }
        let hash = self.hash(&revocation.key);
        let Some(shard) = self.shard(hash) else { return Learned::NotHeld };
        let mut shard = shard.write();
        let before = shard.entries.len();
        let learned = shard.learn(hash, revocation, said, self.per_shard, now);
        self.count(before, shard.entries.len());
        drop(shard);
        if matches!(learned, Learned::Held | Learned::AtTheCostOfAnother) {
            self.learned.fetch_add(1, Ordering::Release);
        }
        if matches!(learned, Learned::AtTheCostOfAnother | Learned::NotHeld) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        learned
    }

    /// Lets go of revocations without effect; returns how many. One shard is locked at a time.
    pub fn expire(&self, now: UnixMillis) -> usize {
        let mut gone = 0;
        for shard in &self.shards {
            let mut shard = shard.write();
            let before = shard.entries.len();
            shard.expire(now);
            self.count(before, shard.entries.len());
            gone += before - shard.entries.len();
        }
        gone
    }

    /// Revocations held, ended ones not yet let go included.
    pub fn len(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often a revocation was learned that was not held before: whoever sees the number grow has news.
    pub fn learned(&self) -> u64 {
        self.learned.load(Ordering::Acquire)
    }

    /// Revocations given up before their end since the start, for want of room. Alert on any.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn find(&self, key: &str) -> Option<(UnixMillis, Effect)> {
        let hash = self.hash(key);
        self.shard(hash)?.read().entries.get(&hash).map(|entry| (entry.until, entry.effect))
    }

    fn hash(&self, key: &str) -> u128 {
        u128::from(self.seeds.0.hash_one(key)) << 64 | u128::from(self.seeds.1.hash_one(key))
    }

    fn shard(&self, hash: u128) -> Option<&RwLock<Shard>> {
        // The top bits; the map below uses the bottom ones.
        self.shards.get((hash >> 120) as usize & (self.shards.len() - 1))
    }

    /// Called with the shard locked, so that a reader who sees zero missed nothing that was learnt before.
    fn count(&self, before: usize, after: usize) {
        if after >= before {
            self.held.fetch_add(after - before, Ordering::Release);
        } else {
            self.held.fetch_sub(before - after, Ordering::Release);
        }
    }
}

impl Default for Known {
    fn default() -> Self {
        Self::new(DEFAULT_KNOWN)
    }
}

/// Where a walk through all that is known goes on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    first: usize,
    shard: usize,
    after: Option<(UnixMillis, u128)>,
}

impl Cursor {
    /// The beginning of a walk that meets the same as any other, in an order of its own.
    #[must_use]
    pub fn anywhere() -> Self {
        Self { first: fastrand::usize(..1 << 16), ..Self::default() }
    }
}

struct Entry {
    key: Arc<str>,
    until: UnixMillis,
    effect: Effect,
    /// What of it was said: the rest was inferred.
    said: Option<(UnixMillis, Effect)>,
}

/// Entries by hash, and the same by their end.
#[derive(Default)]
struct Shard {
    entries: HashMap<u128, Entry, BuildHasherDefault<AlreadyHashed>>,
    by_end: BTreeSet<(UnixMillis, u128)>,
}

impl Shard {
    fn learn(
        &mut self,
        hash: u128,
        new: &Revocation,
        said: bool,
        capacity: usize,
        now: UnixMillis,
    ) -> Learned {
        if let Some(entry) = self.entries.get_mut(&hash) {
            if said {
                let before = entry.said.unwrap_or((new.until, new.effect));
                entry.said = Some((before.0.max(new.until), before.1.max(new.effect)));
            }
            let (until, effect) = (entry.until.max(new.until), entry.effect.max(new.effect));
            if (until, effect) == (entry.until, entry.effect) {
                return Learned::AlreadyHeld;
            }
            self.by_end.remove(&(entry.until, hash));
            self.by_end.insert((until, hash));
            (entry.until, entry.effect) = (until, effect);
            return Learned::Held;
        }
        let mut learned = Learned::Held;
        if self.entries.len() >= capacity {
            self.expire(now);
        }
        if self.entries.len() >= capacity {
            if self.by_end.first().is_some_and(|(soonest, _)| *soonest >= new.until) {
                return Learned::NotHeld;
            }
            if let Some((_, soonest)) = self.by_end.pop_first() {
                self.entries.remove(&soonest);
            }
            learned = Learned::AtTheCostOfAnother;
        }
        let said = said.then_some((new.until, new.effect));
        let entry = Entry { key: Arc::clone(&new.key), until: new.until, effect: new.effect, said };
        self.entries.insert(hash, entry);
        self.by_end.insert((new.until, hash));
        learned
    }

    fn expire(&mut self, now: UnixMillis) {
        while let Some((end, hash)) = self.by_end.first().copied() {
            if end > now {
                break;
            }
            self.by_end.pop_first();
            self.entries.remove(&hash);
        }
    }
}

/// Takes the low half of a hash as the hash.
#[derive(Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}

/// Revocations made while the store was away, owed to it, bounded.
pub struct Pending {
    owed: Mutex<Owed>,
    /// Those that are being written just now: nobody knows yet whether the store has got them.
    under_way: AtomicUsize,
    capacity: usize,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Owed {
    by_key: HashMap<Arc<str>, (UnixMillis, Effect), RandomState>,
    by_end: BTreeSet<(UnixMillis, Arc<str>)>,
}

impl Pending {
    /// Keeps at most `capacity` revocations, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            owed: Mutex::default(),
            under_way: AtomicUsize::new(0),
            capacity: capacity.max(1),
            dropped: AtomicU64::new(0),
        }
    }

    /// Keeps a revocation to be written later; also for handing back what could not be written. When full the
    /// one that ends soonest is given up and counted, and `false` returned.
    pub fn push(&self, revocation: Revocation) -> bool {
        let Revocation { key, mut effect, mut until } = revocation;
        let mut owed = self.owed.lock();
        if let Some((known_until, known_effect)) = owed.by_key.get(&key).copied() {
            until = until.max(known_until);
            effect = effect.max(known_effect);
            owed.by_end.remove(&(known_until, Arc::clone(&key)));
        }
        owed.by_end.insert((until, Arc::clone(&key)));
        owed.by_key.insert(key, (until, effect));
        if owed.by_key.len() > self.capacity
            && let Some((_, soonest)) = owed.by_end.pop_first()
        {
            owed.by_key.remove(&soonest);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Takes at most `max` of what is owed under keys that `wanted` accepts, longest-lived first, leaving out what
    /// has no effect any more. They are under way until [`Self::arrived`] is told of each.
    pub fn drain(&self, now: UnixMillis, max: usize, wanted: impl Fn(&str) -> bool) -> Vec<Revocation> {
        let mut owed = self.owed.lock();
        let chosen: Vec<_> =
            owed.by_end.iter().rev().filter(|(_, key)| wanted(key)).take(max).cloned().collect();
        let mut taken = Vec::with_capacity(chosen.len());
        for end in chosen {
            owed.by_end.remove(&end);
            let (until, key) = end;
            let Some((_, effect)) = owed.by_key.remove(&key) else { continue };
            if until > now {
                taken.push(Revocation { key, effect, until });
            }
        }
        // Before anybody can see that it is no longer in there.
        self.send(taken.len());
        taken
    }

    /// Counts what is sent to the store; [`Self::arrived`] ends it.
    pub fn send(&self, count: usize) {
        self.under_way.fetch_add(count, Ordering::AcqRel);
    }

    /// So many of those under way were written, or are owed again.
    pub fn arrived(&self, count: usize) {
        self.under_way.fetch_sub(count, Ordering::AcqRel);
    }

    /// Revocations owed, those under way included.
    pub fn len(&self) -> usize {
        let owed = self.owed.lock();
        owed.by_key.len() + self.under_way.load(Ordering::Acquire)
    }

    /// Whether nothing is owed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Revocations given up since the start, for want of room. Alert on any.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Default for Pending {
    fn default() -> Self {
        Self::new(DEFAULT_PENDING)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::claims::Times;
    use super::super::identity::TokenId;
    use super::super::mapping::Person;
    use super::*;

    fn identity(subject: &str, jti: &str, issued_at: Option<u64>) -> Identity {
        let times = Times {
            issued_at: issued_at.map(UnixMillis::from_secs),
            expires_at: Some(UnixMillis::from_secs(10_000)),
            ..Times::default()
        };
        Identity::new(
            Person::named(subject),
            TokenId::Jti(jti.into()),
            &times,
            Duration::ZERO,
            "",
            false,
            None,
        )
    }

    fn token(name: &str, until: u64) -> Revocation {
        Revocation {
            key: format!("blacklist:{name}").into(),
            effect: Effect::Token,
            until: UnixMillis(until),
        }
    }

    #[test]
    fn a_revoked_token_is_known_until_its_end_and_others_are_not() {
        let known = Known::new(100);
        let (alice, bob) = (identity("alice", "a", Some(1)), identity("bob", "b", Some(1)));
        let now = UnixMillis::from_secs(100);
        assert!(!known.is_revoked(&alice, now));
        assert_eq!(known.learn(&alice.revocation(now, DEFAULT_LONGEST), now), Learned::Held);
        assert_eq!(known.learn(&alice.revocation(now, DEFAULT_LONGEST), now), Learned::AlreadyHeld);
        assert!(known.is_revoked(&alice, now));
        assert!(!known.is_revoked(&bob, now));
        assert!(known.is_revoked(&alice, UnixMillis(9_999_999)));
        assert!(!known.is_revoked(&alice, UnixMillis(10_000_000)));
        assert_eq!(known.expire(UnixMillis(10_000_000)), 1);
        assert!(known.is_empty());
    }

    #[test]
    fn a_cut_off_revokes_what_was_issued_up_to_its_second() {
        let known = Known::new(100);
        let now = UnixMillis(100_500);
        let revocation = identity("alice", "x", None).revocation_everywhere(now, DEFAULT_LONGEST);
        known.learn(&revocation, now);
        for (issued_at, revoked) in [(None, true), (Some(0), true), (Some(100), true), (Some(101), false)] {
            let alice = identity("alice", "y", issued_at);
            assert_eq!(known.is_revoked(&alice, now), revoked, "{issued_at:?}");
            assert_eq!(is_cut_off(&alice, &revocation.value()), revoked, "{issued_at:?}");
        }
        assert!(!known.is_revoked(&identity("bob", "z", None), now));
        assert!(is_cut_off(&identity("alice", "y", Some(500)), "not a number"));
    }

    #[test]
    fn an_earlier_cut_off_does_not_weaken_a_later_one() {
        let known = Known::new(100);
        let key: Arc<str> = "revoked_before:alice".into();
        let (early, late) = (UnixMillis::from_secs(100), UnixMillis::from_secs(200));
        known.learn(&Revocation::everywhere(Arc::clone(&key), late, DEFAULT_LONGEST), early);
        known.learn(&Revocation::everywhere(key, early, DEFAULT_LONGEST), early);
        assert!(known.is_revoked(&identity("alice", "a", Some(150)), late));
    }

    #[test]
    fn instances_understand_each_other_and_nothing_else() {
        let now = UnixMillis(5);
        for revocation in [token("a", 9), Revocation::everywhere("k".into(), now, DEFAULT_LONGEST)] {
            assert_eq!(Revocation::from_message(&revocation.to_message()), Some(revocation));
        }
        let long = format!("1 t {}", "k".repeat(2_000));
        for message in ["", "1", "1 t", "1 t ", "x t k", "1 x k", "-1 t k", "1 -1 k", &long] {
            assert_eq!(Revocation::from_message(message), None, "{message}");
        }
    }

    #[test]
    fn a_full_table_gives_up_the_soonest_and_says_so() {
        let known = Known::new(2);
        let now = UnixMillis(0);
        assert_eq!(known.learn(&token("a", 0), now), Learned::Past);
        assert_eq!(known.learn(&token("a", 10), now), Learned::Held);
        assert_eq!(known.learn(&token("b", 20), now), Learned::Held);
        assert_eq!(known.learn(&token("c", 5), now), Learned::NotHeld);
        assert_eq!(known.learn(&token("d", 30), now), Learned::AtTheCostOfAnother);
        assert_eq!(known.dropped(), 2);
        assert!(!known.is_revoked(&identity("s", "a", None), now));
        assert!(known.is_revoked(&identity("s", "b", None), now));
        assert!(known.is_revoked(&identity("s", "d", None), now));
        assert_eq!(known.learn(&token("e", 90), UnixMillis(25)), Learned::Held, "ended ones make room");
        assert_eq!((known.dropped(), known.len()), (2, 2));
    }

    #[test]
    fn many_tokens_spread_and_are_all_found() {
        let known = Known::new(200_000);
        for n in 0..20_000 {
            known.learn(&token(&n.to_string(), 1_000), UnixMillis(0));
        }
        assert_eq!((known.len(), known.dropped()), (20_000, 0));
        for n in 0..20_000 {
            assert!(known.is_revoked(&identity("s", &n.to_string(), None), UnixMillis(0)), "{n}");
        }
        assert!(!known.is_revoked(&identity("s", "20000", None), UnixMillis(0)));
    }

    #[test]
    fn a_walk_meets_everything_once_wherever_it_begins() {
        let known = Known::new(200_000);
        let all: Vec<Revocation> = (0..5_000).map(|n| token(&n.to_string(), 10 + n % 7)).collect();
        for revocation in &all {
            known.learn(revocation, UnixMillis(0));
        }
        let walk = |most, after, mut cursor| {
            let mut met = Vec::new();
            loop {
                let (batch, goes_on) = known.walk(&mut cursor, most, UnixMillis(after));
                assert!(batch.len() <= most);
                met.extend(batch);
                if !goes_on {
                    met.sort_by(|a: &Revocation, b| a.key.cmp(&b.key));
                    return met;
                }
            }
        };
        let mut expected = all.clone();
        expected.sort_by(|a, b| a.key.cmp(&b.key));
        for most in [1, 7, 1_000, 10_000] {
            assert_eq!(walk(most, 0, Cursor::anywhere()), expected, "{most}");
        }
        expected.retain(|revocation| revocation.until.0 > 13);
        assert_eq!(walk(100, 13, Cursor::default()), expected);
        assert_eq!(Known::new(5).walk(&mut Cursor::anywhere(), 10, UnixMillis(0)), (vec![], false));
    }

    #[test]
    fn what_was_only_inferred_holds_and_is_never_told() {
        let (known, now) = (Known::new(10), UnixMillis(0));
        let told = || known.walk(&mut Cursor::default(), 10, now).0;
        assert_eq!(known.infer(&token("a", 1_000), now), Learned::Held);
        assert!(known.holds("blacklist:a", now) && told().is_empty());
        assert_eq!(known.learn(&token("a", 100), now), Learned::AlreadyHeld);
        assert_eq!(told(), [token("a", 100)], "what was said, and no longer than that");
        assert!(known.holds("blacklist:a", UnixMillis(999)));
        known.learn(&token("a", 200), now);
        known.infer(&token("a", 2_000), now);
        assert_eq!(told(), [token("a", 200)]);
    }

    #[test]
    fn only_names_that_instances_make_are_those_of_revocations() {
        let named = |key: &str, effect| {
            Revocation { key: key.into(), effect, until: UnixMillis(1) }.is_named_well("tg:")
        };
        let long = |count: usize| format!("tg:blacklist:{}", "x".repeat(count));
        for (key, well) in [
            ("tg:blacklist:a.B_c~d@e-1", true),
            (&*long(128), true),
            (&*long(129), false),
            ("blacklist:a", false),
            ("tg:blacklist:", false),
            ("tg:blacklist:a:b", false),
            ("tg:blacklist:{a}", false),
            ("tg:revoked_before:a", false),
        ] {
            assert_eq!(named(key, Effect::Token), well, "{key}");
        }
        for (key, well) in [
            ("tg:revoked_before:main~a%3A", true),
            ("tg:revoked_before:{a}", true),
            ("tg:revoked_before:{a", false),
            ("tg:revoked_before:a:b", false),
            ("tg:blacklist:a", false),
        ] {
            assert_eq!(named(key, Effect::IssuedBefore(5)), well, "{key}");
        }
        let identity = identity("a b:c", "j:k", None);
        for revocation in [
            identity.revocation(UnixMillis(0), DEFAULT_LONGEST),
            identity.revocation_everywhere(UnixMillis(0), DEFAULT_LONGEST),
        ] {
            assert!(revocation.is_named_well(""), "{revocation:?}");
        }
        let endless = token("a", u64::MAX);
        assert_eq!(endless.ttl(UnixMillis(0)), Some(LONGEST));
    }

    #[test]
    fn what_is_owed_is_bounded_merged_and_drained_once() {
        let pending = Pending::new(2);
        let kept =
            [("a", 10), ("a", 40), ("b", 20), ("c", 30)].map(|(key, end)| pending.push(token(key, end)));
        assert_eq!(kept, [true, true, true, false]);
        assert_eq!((pending.len(), pending.dropped()), (2, 1));
        assert_eq!(pending.drain(UnixMillis(0), 1, |_| true), [token("a", 40)]);
        assert_eq!(pending.drain(UnixMillis(30), 10, |_| true), []);
        assert!(!pending.is_empty(), "it is under way");
        pending.arrived(1);
        assert!(pending.is_empty());
    }

    proptest! {
        #[test]
        fn nothing_unexpired_is_forgotten_uncounted(
            steps in prop::collection::vec((0_u8..20, 1_u64..50, 0_u64..3), 1..120),
        ) {
            let known = Known::new(8);
            let mut now = UnixMillis(0);
            let mut latest: HashMap<u8, u64> = HashMap::new();
            for (name, life, step) in steps {
                now = UnixMillis(now.0 + step);
                known.learn(&token(&name.to_string(), now.0 + life), now);
                let end = latest.entry(name).or_default();
                *end = (*end).max(now.0 + life);
                let missing = latest
                    .iter()
                    .filter(|(_, end)| **end > now.0)
                    .filter(|(name, _)| !known.is_revoked(&identity("s", &name.to_string(), None), now))
                    .count() as u64;
                prop_assert!(missing <= known.dropped());
                prop_assert!(known.len() <= 8);
            }
        }
    }
}
