//! Generations: one value per tag, part of every cache key, replaced to invalidate all that depends on the tag.
//! It remembers them for the time Redis is away; it never talks to Redis itself.

mod mix;
mod purges;
mod state;
#[cfg(test)]
mod tests;
mod unique;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{RwLock, RwLockWriteGuard};
use sha2::{Digest, Sha256};

use super::prefixes::{Loads, Place, Snapshot};
use super::settings::Settings;
use super::tag::{PREFIXES, Tags, epoch_tag};
use crate::clock::UnixMillis;

use self::mix::{finish, mix, mix_compare, mix_list, mix_tag};
pub use self::purges::{PrefixPurge, PrefixWrite, PrefixWritten};
pub use self::state::ANNOUNCED_FOR;
use self::state::{Known, PROPOSED_FOR, Proposal, Proposed, State};
use self::unique::Unique;

/// 128 bits over the generations of a request's tags; part of its cache key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

/// A generation to be written to Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The Redis key, prefix included.
    pub key: Box<str>,
    /// The new generation, 32 hexadecimal digits. No two writes of a tag have the same, not even when one
    /// repeats the other: a write that arrives late must not bring back what somebody has stored under it.
    pub value: Box<str>,
    /// Life of the key; `None`: it stays (the epoch, and the version of the purges by prefix).
    pub ttl: Option<Duration>,
    /// Redis has told it, for a short while: it is kept only where it still is, or another one may have come and gone.
    pub is_announced: bool,
    tag: Box<str>,
    /// The invalidation that this write tells Redis of.
    invalidation: Box<str>,
}

impl Write {
    /// The value for a short while: other instances are to look for the same. The mark is no part of the
    /// generation, and nothing is stored under it but by instances that do not know it.
    pub fn announced(&self) -> String {
        format!("{}{ANNOUNCED}", self.value)
    }
}

/// Ends a value that stands for the one before it, for a short while.
const ANNOUNCED: char = '~';

/// The generation that Redis told, and whether it has it for a short while only.
fn told(value: &[u8]) -> (&[u8], bool) {
    match value.split_last() {
        Some((last, generation)) if char::from(*last) == ANNOUNCED => (generation, true),
        _ => (value, false),
    }
}

/// What the generations read from Redis mean for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The cache may be used with this fingerprint.
    Ready {
        /// For the cache key.
        fingerprint: Fingerprint,
        /// Generations that Redis has for a short while only, or not at all: to be kept, as far as [`Generations::to_keep`]
        /// says so, when a response is stored under the fingerprint.
        absent: Vec<Write>,
    },
    /// The number of values is not the number of tags: the request goes without the cache.
    Malformed,
}

/// The generations known to this instance.
#[derive(Debug)]
pub struct Generations {
    state: RwLock<State>,
    /// What Redis lacks, to skip the lock in the usual case.
    pending: AtomicUsize,
    /// Changed under the lock of `state` only.
    prefixes: ArcSwap<Snapshot>,
    loads: Loads,
    unique: Unique,
    prefix: Box<str>,
    ttl: Duration,
    remembered: usize,
    max_pending: usize,
    /// Other instances read what this one writes.
    shared: bool,
}

impl Generations {
    /// `shared`: there is a Redis. Without one, invalidations stay in this process.
    pub fn new(settings: &Settings, shared: bool) -> Self {
        Self {
            state: RwLock::default(),
            pending: AtomicUsize::new(0),
            prefixes: ArcSwap::default(),
            loads: Loads::default(),
            unique: Unique::new(),
            prefix: settings.key_prefix.clone(),
            // Longer than any entry can live, with an hour for fills under way and clocks that differ.
            ttl: settings.max_lifetime.saturating_add(Duration::from_secs(3600)),
            remembered: settings.generations_remembered.max(1),
            max_pending: settings.pending_invalidations.max(1),
            shared,
        }
    }

    /// The Redis keys to read, in the order of `tags`.
    pub fn keys<'a>(&'a self, tags: &'a Tags) -> impl ExactSizeIterator<Item = Box<str>> + 'a {
        tags.iter().map(|tag| self.key(tag))
    }

    /// Judges what Redis answered for [`Self::keys`], and remembers it.
    ///
    /// "None" is no generation: a store that evicts one would make reachable again what was stored before it.
    pub fn resolve<V: AsRef<[u8]>>(
        &self,
        tags: &Tags,
        place: Place<'_>,
        values: &[Option<V>],
        now: UnixMillis,
    ) -> Resolution {
        if values.len() != tags.len() {
            return Resolution::Malformed;
        }
        let mut hasher = Sha256::new();
        let (mut absent, mut taken) = (Vec::new(), Vec::new());
        // In the usual case nothing is pending, every tag has a generation, and no lock is needed.
        let lasts = |value: &Option<V>| value.as_ref().is_some_and(|value| !told(value.as_ref()).1);
        if self.pending.load(Ordering::Acquire) == 0 && values.iter().all(lasts) {
            let known = self.prefixes.load();
            for (tag, value) in tags.iter().zip(values) {
                mix_tag(&mut hasher, tag, value.as_ref().map(AsRef::as_ref), &known, place, now);
            }
            mix_compare(&mut hasher, place);
        } else {
            let mut state = self.state.write();
            let known = self.prefixes.load();
            for (tag, value) in tags.iter().zip(values) {
                let (value, announced) = match value.as_ref().map(|value| told(value.as_ref())) {
                    Some((value, announced)) => (Some(value), announced),
                    None => (None, false),
                };
                if announced {
                    let value = String::from_utf8_lossy(value.unwrap_or_default()).into();
                    let write = self.write(tag.into(), value, Box::default());
                    absent.push(Write { is_announced: true, ..write });
                }
                if let Some(pending) = state.pending.get(tag) {
                    // Neither alone: Redis may get a later invalidation before it gets this one.
                    mix(&mut hasher, tag, value);
                    mix(&mut hasher, "", Some(pending.as_bytes()));
                } else if value.is_some() {
                    mix_tag(&mut hasher, tag, value, &known, place, now);
                } else {
                    let proposed = match state.propose(tag, now, &self.unique) {
                        Proposed::Unwritten(value) => {
                            absent.push(self.write(tag.into(), value.clone(), Box::default()));
                            value
                        }
                        Proposed::Written(value) => value,
                    };
                    mix(&mut hasher, tag, Some(proposed.as_bytes()));
                    taken.push((tag, proposed));
                }
            }
            mix_compare(&mut hasher, place);
            mix_list(&mut hasher, &known.own, place);
        }
        self.observe(tags, values, &taken, now);
        Resolution::Ready { fingerprint: finish(hasher), absent }
    }

    /// Generations for those of `tags` that Redis has none of (`values`), with their places. They are to be written for a
    /// short while, see [`Write::announced`], unless there is one meanwhile; what Redis has then is to be given to
    /// [`Self::agreed`], and to the request as the value that was told.
    pub fn to_agree<V>(&self, tags: &Tags, values: &[Option<V>], now: UnixMillis) -> Vec<(usize, Write)> {
        if values.len() != tags.len() || values.iter().all(Option::is_some) {
            return Vec::new();
        }
        let mut state = self.state.write();
        let lacking = tags.iter().zip(values).enumerate().filter(|(_, (_, value))| value.is_none());
        let mut writes = Vec::new();
        for (place, (tag, _)) in lacking {
            // What is pending reaches Redis before long, and what is proposed may have, for another request.
            if !state.pending.contains_key(tag)
                && let Proposed::Unwritten(value) = state.propose(tag, now, &self.unique)
            {
                writes.push((place, self.write(tag.into(), value, Box::default())));
            }
        }
        writes
    }

    /// At `now` Redis has this value for the tag of `write`: whoever was told before that there is none goes by it too.
    pub fn agreed(&self, write: &Write, value: &[u8], now: UnixMillis) {
        let value: Box<str> = String::from_utf8_lossy(told(value).0).into();
        let mut state = self.state.write();
        // Unless the tag was invalidated meanwhile, or another request was told.
        if let Some(proposal) = state.proposed.get_mut(&write.tag).filter(|it| it.value == write.value) {
            *proposal = Proposal { value, until: now.plus(PROPOSED_FOR), written: Some(now) };
        }
    }

    /// Which of the generations that a request took are to be kept, now that something is stored under them: those that
    /// this instance still goes by. A proposal that Redis was never told of is none any more after its time, or another
    /// instance's invalidation might come and go unseen.
    pub fn to_keep(&self, mut absent: Vec<Write>, now: UnixMillis) -> Vec<Write> {
        if absent.is_empty() {
            return absent;
        }
        let state = self.state.read();
        absent.retain(|write| {
            let is_current = state.agrees(&write.tag, Some(write.value.as_bytes()))
                && !state.pending.contains_key(&write.tag);
            let is_proposed = || {
                let proposal = state.proposed.get(&write.tag);
                proposal.is_some_and(|proposal| proposal.value == write.value && now <= proposal.until)
            };
            is_current && (write.is_announced || is_proposed())
        });
        absent
    }

    /// The fingerprint from memory, while Redis is away or where there is none.
    pub fn local(&self, tags: &Tags, place: Place<'_>, now: UnixMillis) -> Fingerprint {
        let mut hasher = Sha256::new();
        let mut state = self.state.read();
        if self.shared && tags.iter().any(|tag| state.lacks(tag)) {
            // As who is told by Redis that there is none: both fetch one object once.
            drop(state);
            let mut writing = self.state.write();
            for tag in tags.iter() {
                writing.propose_alone(tag, now, &self.unique);
            }
            state = RwLockWriteGuard::downgrade(writing);
        }
        let known = self.prefixes.load();
        for tag in tags.iter() {
            let value = state.known.get(tag).map_or_else(|| state.unknown(tag), Known::value);
            mix_tag(&mut hasher, tag, value.map(str::as_bytes), &known, place, now);
        }
        mix_compare(&mut hasher, place);
        mix_list(&mut hasher, &known.own, place);
        finish(hasher)
    }

    /// After the snapshot: who finds nothing pending does not look for purges of this instance.
    fn count(&self, state: &State) {
        let own = if self.shared { state.own.len() } else { 0 };
        self.pending.store(state.pending.len().saturating_add(own), Ordering::Release);
    }

    /// Gives every tag of `tags` a new generation, here at once. The writes are to reach Redis before the
    /// writer gets its response, then to be given to [`Self::settle`]; those that fail stay pending.
    pub fn invalidate<I: IntoIterator<Item = Box<str>>>(&self, tags: I) -> Vec<Write> {
        let mut state = self.state.write();
        let writes = self.invalidate_within(&mut state, tags);
        self.count(&state);
        writes
    }

    fn invalidate_within<I: IntoIterator<Item = Box<str>>>(&self, state: &mut State, tags: I) -> Vec<Write> {
        let mut writes = Vec::new();
        for tag in tags {
            let invalidation = self.unique.next();
            state.remember(&tag, Some(invalidation.clone()), self.remembered, &self.unique);
            state.proposed.remove(&tag);
            if !self.shared {
                continue;
            }
            if state.pending.len() >= self.max_pending && !state.pending.contains_key(&tag) {
                let epoch = epoch_tag();
                state.pending.clear();
                state.pending.insert(epoch.clone(), invalidation.clone());
                state.remember(&epoch, Some(invalidation.clone()), self.remembered, &self.unique);
            } else {
                state.pending.insert(tag.clone(), invalidation.clone());
            }
            writes.push(self.write(tag, self.unique.next(), invalidation));
        }
        writes
    }

    /// Whether Redis lacks something.
    pub fn owes(&self) -> bool {
        self.pending.load(Ordering::Acquire) > 0
    }

    /// What Redis has not confirmed yet, for the moment it is back. Each call makes writes of new values.
    pub fn pending(&self) -> Vec<Write> {
        if !self.owes() {
            return Vec::new();
        }
        let state = self.state.read();
        let writes = state.pending.iter();
        writes
            .map(|(tag, invalidation)| self.write(tag.clone(), self.unique.next(), invalidation.clone()))
            .collect()
    }

    /// At `now` Redis has these: they need not be kept for it.
    pub fn settle(&self, writes: &[Write], now: UnixMillis) {
        let mut state = self.state.write();
        for write in writes {
            // A later invalidation of the same tag is not confirmed by an earlier write.
            if state.pending.get(&write.tag) == Some(&write.invalidation) {
                state.pending.remove(&write.tag);
                // So that who asks Redis and who cannot look for the same.
                if let Some(known) = state.known.get_mut(&write.tag)
                    && known.value.as_ref() == Some(&write.invalidation)
                {
                    *known = Known { value: Some(write.value.clone()), settled: now };
                }
            }
        }
        self.count(&state);
    }

    /// `taken`: what the tags without a generation count as.
    fn observe<V: AsRef<[u8]>>(
        &self,
        tags: &Tags,
        values: &[Option<V>],
        taken: &[(&str, Box<str>)],
        now: UnixMillis,
    ) {
        let value = |tag: &str, read: &Option<V>| -> Option<Box<str>> {
            match read {
                Some(read) => Some(String::from_utf8_lossy(told(read.as_ref()).0).into()),
                None => taken.iter().find(|(of, _)| *of == tag).map(|(_, value)| value.clone()),
            }
        };
        let unchanged = {
            let state = self.state.read();
            taken.is_empty()
                && tags.iter().zip(values).all(|(tag, value)| {
                    let value = value.as_ref().map(|value| told(value.as_ref()).0);
                    state.agrees(tag, value)
                        && state.proposed.get(tag).is_none_or(|proposal| !proposal.is_news(value, now))
                })
        };
        if unchanged {
            return;
        }
        let mut state = self.state.write();
        for (tag, read) in tags.iter().zip(values) {
            if let Some(read) = read
                && let Some(proposal) = state.proposed.get_mut(tag)
            {
                if proposal.is_of(told(read.as_ref()).0) && now <= proposal.until {
                    proposal.written = proposal.written.max(Some(now));
                } else {
                    state.proposed.remove(tag);
                }
            }
            let value = value(tag, read);
            if !state.agrees(tag, value.as_deref().map(str::as_bytes)) && !state.settled_since(tag, now) {
                state.remember(tag, value, self.remembered, &self.unique);
            }
        }
    }

    fn key(&self, tag: &str) -> Box<str> {
        let mut key = String::with_capacity(self.prefix.len() + 10 + tag.len());
        key.push_str(&self.prefix);
        key.push_str("cache_tag:");
        key.push_str(tag);
        key.into()
    }

    fn write(&self, tag: Box<str>, value: Box<str>, invalidation: Box<str>) -> Write {
        // Everything depends on these: with them everything would end.
        let stays = tag == epoch_tag() || *tag == *PREFIXES;
        let ttl = (!stays).then_some(self.ttl);
        Write { key: self.key(&tag), value, ttl, is_announced: false, tag, invalidation }
    }
}
