//! One shard of the table: sets of eight entries, found by hash, growing by doubling up to a cap, and what belongs to
//! some of them. It judges nothing; it only knows which entry is the least loss.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::super::algorithm::{Rule, State};
use super::super::policy::Algorithm;
use super::log::Log;
use super::owed::Owed;

const WAYS: usize = 8;
/// Places for logs per entry, all logs together: most have few.
const PLACES_PER_ENTRY: usize = 4;
/// Room for one log of the largest size, whatever the capacity.
const FEWEST_PLACES: usize = 8_192;
/// Of this many entries one may be owed to the store: keys with admissions during an outage, their text included.
const ENTRIES_PER_OWED: usize = 4;
const FEWEST_OWED: usize = 64;

/// Maps by key hashes, which are hashes already.
type ByHash<T> = HashMap<u64, T, BuildHasherDefault<AsIs>>;

#[derive(Default)]
pub(super) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The shard took the top bits, which are the ones a map's groups are told apart by.
        self.0 = number.rotate_left(8);
    }
}

/// A counter in memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    /// Of the key; 0 marks a free place.
    pub(super) hash: u64,
    pub(super) state: State,
    /// When the counter is fully restored, ms on the store's clock: it says nothing any more.
    pub(super) expires: u64,
    /// When it was last heard of, ms on the store's clock.
    pub(super) learned: u64,
    /// How much of the limit is used, 255 when it is exhausted.
    pub(super) share: u8,
    /// The [`fingerprint`] of the rule it was reported to.
    pub(super) asked: u32,
    /// Whether the store said so, rather than this instance alone.
    pub(super) remote: bool,
}

impl Entry {
    /// Whether the state means the same to a request by `rule`: a log tells when a request of one cost fits under one
    /// limit, and says nothing about others.
    pub(super) fn speaks_to(&self, rule: &Rule) -> bool {
        rule.algorithm != Algorithm::SlidingLog || self.asked == fingerprint(rule)
    }
}

/// Tells apart what a log reports differently to.
pub(super) fn fingerprint(rule: &Rule) -> u32 {
    let parts = [rule.price(), rule.capacity(), rule.period()];
    let mixed = parts
        .into_iter()
        .fold(0_u64, |mixed, part| (mixed ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29));
    // Any 32 bits do.
    #[allow(clippy::cast_possible_truncation)]
    let some = mixed as u32;
    some
}

#[derive(Debug)]
pub(super) struct Shard {
    /// A power of two of sets.
    entries: Vec<Entry>,
    max: usize,
    /// Logs of entries; never without its entry.
    logs: ByHash<Log>,
    /// What the store has not been told, by the hash of the key.
    owed: ByHash<Owed>,
    /// Places of all logs, those of `owed` included.
    places: usize,
}

impl Shard {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            entries: vec![Entry::default(); WAYS],
            max: capacity.max(WAYS),
            logs: ByHash::default(),
            owed: ByHash::default(),
            places: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.iter().filter(|entry| entry.hash != 0).count()
    }

    /// Bytes taken, keys of what is owed left out.
    pub(super) fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
            + self.logs.capacity() * size_of::<(u64, Log)>()
            + self.owed.capacity() * size_of::<(u64, Owed)>()
            + self.places * 2 * size_of::<u64>()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.max);
    }

    pub(super) fn find(&mut self, hash: u64) -> Option<&mut Entry> {
        let hash = mark(hash);
        self.set(hash).iter_mut().find(|entry| entry.hash == hash)
    }

    pub(super) fn remove(&mut self, hash: u64) {
        if let Some(entry) = self.find(hash) {
            *entry = Entry::default();
        }
        self.forget_log(hash);
    }

    /// Stores the log of a key whose entry is put next.
    pub(super) fn put_log(&mut self, hash: u64, log: Log) {
        self.places += log.len();
        if let Some(old) = self.logs.insert(mark(hash), log) {
            self.places = self.places.saturating_sub(old.len());
        }
        self.make_room();
    }

    /// Takes a log out, to be changed and stored again.
    pub(super) fn take_log(&mut self, hash: u64) -> Option<Log> {
        let log = self.logs.remove(&mark(hash))?;
        self.places = self.places.saturating_sub(log.len());
        Some(log)
    }

    pub(super) fn forget_log(&mut self, hash: u64) {
        // Most shards have none.
        if !self.logs.is_empty() {
            self.take_log(hash);
        }
    }

    /// What is owed for a key.
    pub(super) fn owed(&self, hash: u64) -> Option<&Owed> {
        self.owed.get(&hash)
    }

    /// What is owed for a key, to be changed and stored again.
    pub(super) fn take_owed(&mut self, hash: u64) -> Option<Owed> {
        let owed = self.owed.remove(&hash)?;
        self.places = self.places.saturating_sub(owed.log.len());
        Some(owed)
    }

    /// Remembers what is owed, `false` when there is no room.
    pub(super) fn put_owed(&mut self, owed: Owed) -> bool {
        if self.owed.len() >= (self.max / ENTRIES_PER_OWED).max(FEWEST_OWED) {
            return false;
        }
        self.places += owed.log.len();
        self.owed.insert(owed.hash, owed);
        self.make_room();
        true
    }

    /// Takes out what is owed and `wanted`.
    pub(super) fn take_owed_where(&mut self, mut wanted: impl FnMut(&Owed) -> bool) -> Vec<Owed> {
        let taken: Vec<Owed> = self.owed.extract_if(|_, owed| wanted(owed)).map(|(_, owed)| owed).collect();
        let places: usize = taken.iter().map(|owed| owed.log.len()).sum();
        self.places = self.places.saturating_sub(places);
        if self.owed.is_empty() {
            // The memory of an outage ends with it.
            self.owed = ByHash::default();
        }
        taken
    }

    // Logs never outnumber entries, so that halving them makes room.
    fn make_room(&mut self) {
        if self.places <= (self.max * PLACES_PER_ENTRY).max(FEWEST_PLACES) {
            return;
        }
        self.logs.values_mut().for_each(Log::halve);
        self.owed.values_mut().for_each(|owed| owed.log.halve());
        self.places = self.logs.values().map(Log::len).sum::<usize>()
            + self.owed.values().map(|owed| owed.log.len()).sum::<usize>();
    }

    /// Stores `entry`, over the old one of its key, a free or expired one, else in grown room, else over the
    /// least used one: a flood of new keys does not push out a key near or over its limit.
    pub(super) fn put(&mut self, mut entry: Entry, now: u64) {
        entry.hash = mark(entry.hash);
        loop {
            let grown = self.entries.len() * 2;
            let may_grow = grown <= self.max;
            let set = self.set(entry.hash);
            if let Some(own) = set.iter_mut().find(|old| old.hash == entry.hash) {
                *own = entry;
                return;
            }
            let loss = |old: &Entry| match old {
                old if old.hash == 0 => (0, 0, 0),
                old if old.expires <= now => (1, 0, 0),
                old => (2, old.share, old.expires),
            };
            if let Some(least) = set.iter_mut().min_by_key(|old| loss(old))
                && (!may_grow || loss(least).0 < 2)
            {
                let gone = std::mem::replace(least, entry).hash;
                if gone != 0 {
                    self.forget_log(gone);
                }
                return;
            }
            if !may_grow {
                return;
            }
            self.grow(grown);
        }
    }

    // Doubling splits every set in two by one more bit of the hash: no new set can overflow.
    fn grow(&mut self, size: usize) {
        let old = std::mem::replace(&mut self.entries, vec![Entry::default(); size]);
        for entry in old.into_iter().filter(|entry| entry.hash != 0) {
            if let Some(free) = self.set(entry.hash).iter_mut().find(|place| place.hash == 0) {
                *free = entry;
            }
        }
    }

    fn set(&mut self, hash: u64) -> &mut [Entry] {
        let sets = self.entries.len() / WAYS;
        // `sets` is a power of two; truncation drops bits that the mask drops anyway.
        #[allow(clippy::cast_possible_truncation)]
        let start = (hash as usize & sets.wrapping_sub(1)) * WAYS;
        self.entries.get_mut(start..start + WAYS).unwrap_or_default()
    }
}

const fn mark(hash: u64) -> u64 {
    if hash == 0 { 1 } else { hash }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(hash: u64, share: u8, expires: u64) -> Entry {
        Entry { hash, expires, share, ..Entry::default() }
    }

    #[test]
    fn a_flood_of_new_keys_does_not_grow_the_table_or_push_out_the_exhausted() {
        let mut shard = Shard::new(256);
        shard.put(entry(7, 255, 1_000), 0);
        for hash in 0..100_000_u64 {
            shard.put(entry(hash.wrapping_mul(0x9E37_79B9_7F4A_7C15), 3, 1_000), 0);
        }
        assert!(shard.entries.len() <= 256 && shard.entries.capacity() <= 256);
        assert_eq!(shard.find(7).map(|entry| entry.share), Some(255));
    }

    #[test]
    fn expired_entries_go_first_and_growth_keeps_the_living() {
        let mut shard = Shard::new(1 << 12);
        for hash in 0..512 {
            shard.put(entry(hash, 9, 1_000), 0);
        }
        assert!((1..512).all(|hash| shard.find(hash).is_some()));
        let size = shard.entries.len();
        for hash in 512..1_024 {
            shard.put(entry(hash, 9, 9_000), 5_000);
        }
        assert_eq!(shard.entries.len(), size);
        shard.remove(600);
        assert!(shard.find(600).is_none() && shard.find(601).is_some());
    }
}
