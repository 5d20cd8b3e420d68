//! Requests in flight, by subject, on this instance alone: nothing is shared, so nothing leaks when an instance is
//! killed. An entry lives while a request holds it, so the table is never larger than the number of requests in
//! flight times their policies.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;

const SHARDS: usize = 64;

/// How many requests each subject has in flight. Subjects are keyed hashes, see [`super::KeySpace::hash`].
#[derive(Debug)]
pub struct InFlight {
    shards: Box<[Mutex<HashMap<u64, u64, ahash::RandomState>>]>,
}

impl InFlight {
    /// Nothing in flight.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() })
    }

    /// Enters one more request of `subject` unless `most` are in flight: the permit that leaves when dropped, and how
    /// many more would be let in now.
    pub fn enter(self: &Arc<Self>, subject: u64, most: u64) -> Option<(Permit, u64)> {
        let mut shard = self.shard(subject)?.lock();
        let count = shard.entry(subject).or_insert(0);
        if *count >= most {
            if *count == 0 {
                shard.remove(&subject);
            }
            return None;
        }
        *count += 1;
        let left = most - *count;
        Some((Permit { table: Arc::clone(self), subject }, left))
    }

    /// How many subjects have requests in flight.
    pub fn subjects(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    fn leave(&self, subject: u64) {
        let Some(shard) = self.shard(subject) else { return };
        if let Entry::Occupied(mut count) = shard.lock().entry(subject) {
            if *count.get() > 1 {
                *count.get_mut() -= 1;
            } else {
                count.remove();
            }
        }
    }

    fn shard(&self, subject: u64) -> Option<&Mutex<HashMap<u64, u64, ahash::RandomState>>> {
        // The remainder is below 64.
        #[allow(clippy::cast_possible_truncation)]
        self.shards.get((subject % SHARDS as u64) as usize)
    }
}

/// One request in flight; it leaves when dropped.
#[derive(Debug)]
pub struct Permit {
    table: Arc<InFlight>,
    subject: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.table.leave(self.subject);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_let_in_and_each_that_leaves_makes_room_for_one() {
        let table = InFlight::new();
        let (first, left) = table.enter(7, 2).unwrap();
        assert_eq!(left, 1);
        let (_second, left) = table.enter(7, 2).unwrap();
        assert_eq!(left, 0);
        assert!(table.enter(7, 2).is_none());
        assert!(table.enter(71, 2).is_some(), "another subject of the same shard");
        drop(first);
        let (_third, left) = table.enter(7, 2).unwrap();
        assert_eq!(left, 0);
        assert!(table.enter(7, 2).is_none());
    }

    #[test]
    fn nothing_remains_of_subjects_without_requests() {
        let table = InFlight::new();
        let held: Vec<_> = (0..1_000).map(|subject| table.enter(subject, 1).unwrap().0).collect();
        assert!(table.enter(5_000, 0).is_none());
        assert_eq!(table.subjects(), 1_000);
        drop(held);
        assert_eq!(table.subjects(), 0);
    }

    #[test]
    fn no_more_than_the_limit_are_in_flight_whoever_competes() {
        use std::sync::atomic::{AtomicU64, Ordering};
        let (table, inside, most) = (InFlight::new(), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let Some((permit, _)) = table.enter(1, 3) else { continue };
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                    }
                });
            }
        });
        assert!((1..=3).contains(&most.into_inner()));
        assert_eq!(table.subjects(), 0);
    }
}
