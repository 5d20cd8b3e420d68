//! How much the cache may still write to a Redis that counts requests and holds revocations as well: entries never fill
//! it. Whoever looks at Redis tells how full it is; between two looks what is written is counted here.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::UnixMillis;

/// Percent of `maxmemory` in use above which no entries are written.
pub const FULL: u64 = 80;
/// They are written again below this.
const OPEN_BELOW: u64 = 75;
/// Above this, tags get no generation either: each takes little, but there may be many.
const CROWDED: u64 = 90;
/// What may be written before anybody has looked.
const UNSEEN: i64 = 1 << 20;
/// More than anybody writes between two looks.
const UNBOUNDED: i64 = i64::MAX / 2;
/// For how long nothing is written once an entry was refused.
const PAUSE: Duration = Duration::from_secs(5);
/// What Redis needs for a key beside its bytes, and for each byte since its blocks have few sizes: a quarter.
const PER_KEY: i64 = 256;

/// A change that operators are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Entries are not written any more.
    Full,
    /// They are written again.
    Open,
}

/// What may still be written.
#[derive(Debug)]
pub struct Room {
    /// Bytes until the next look.
    left: AtomicI64,
    /// Bytes on their way, which no look has seen.
    under_way: AtomicI64,
    full: AtomicBool,
    crowded: AtomicBool,
    /// Nothing is written before that, in milliseconds since the Unix epoch.
    paused_until: AtomicU64,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            left: AtomicI64::new(UNSEEN),
            under_way: AtomicI64::new(0),
            full: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            paused_until: AtomicU64::new(0),
        }
    }
}

impl Room {
    /// Somebody has looked: `nodes` are those with a `maxmemory`, as bytes in use and that bound. The fullest counts,
    /// and `instances` write to it. Says what operators should know.
    pub fn seen(&self, nodes: impl Iterator<Item = (u64, u64)>, instances: u32) -> Option<Turn> {
        let was_full = self.full.load(Ordering::Relaxed);
        let percent = if was_full { OPEN_BELOW } else { FULL };
        let (mut full, mut crowded, mut left) = (false, false, UNBOUNDED);
        for (used, most) in nodes {
            full |= used > part(most, percent);
            crowded |= used > part(most, CROWDED);
            let free = part(most, FULL).saturating_sub(used) / u64::from(instances.max(1));
            left = left.min(i64::try_from(free).unwrap_or(UNBOUNDED));
        }
        let left = if full { 0 } else { left.saturating_sub(self.under_way.load(Ordering::Relaxed)) };
        self.left.store(left, Ordering::Relaxed);
        self.full.store(full, Ordering::Relaxed);
        self.crowded.store(crowded, Ordering::Relaxed);
        (was_full != full).then_some(if full { Turn::Full } else { Turn::Open })
    }

    /// Takes the room for a key and its value of `bytes` together; [`Room::settle`] ends that. `false`: it is not to
    /// be written.
    pub(super) fn take(&self, bytes: usize, now: UnixMillis) -> bool {
        if !self.is_open(now) {
            return false;
        }
        let cost = cost(bytes);
        if self.left.fetch_sub(cost, Ordering::Relaxed) < cost {
            self.left.fetch_add(cost, Ordering::Relaxed);
            return false;
        }
        self.under_way.fetch_add(cost, Ordering::Relaxed);
        true
    }

    /// What was taken has been written, or will not be.
    pub(super) fn settle(&self, bytes: usize) {
        self.under_way.fetch_sub(cost(bytes), Ordering::Relaxed);
    }

    /// An entry was refused: the next are not offered for a moment.
    pub(super) fn refused(&self, now: UnixMillis) {
        self.paused_until.fetch_max(now.plus(PAUSE).0, Ordering::Relaxed);
    }

    /// Whether anything may be written at all.
    pub(super) fn is_open(&self, now: UnixMillis) -> bool {
        !self.full.load(Ordering::Relaxed) && now.0 >= self.paused_until.load(Ordering::Relaxed)
    }

    /// Whether there is no room even for the generations of tags.
    pub fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }
}

fn part(most: u64, percent: u64) -> u64 {
    u64::try_from(u128::from(most) * u128::from(percent) / 100).unwrap_or(most)
}

fn cost(bytes: usize) -> i64 {
    let bytes = i64::try_from(bytes).unwrap_or(UNBOUNDED);
    bytes.saturating_add(bytes / 4).saturating_add(PER_KEY).min(UNBOUNDED)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000_000);
    const MOST: u64 = 10_000_000;

    fn seen(room: &Room, used: u64) -> Option<Turn> {
        room.seen([(used, MOST)].into_iter(), 1)
    }

    #[test]
    fn entries_are_written_up_to_four_fifths_and_again_below_three_quarters() {
        let room = Room::default();
        assert_eq!(seen(&room, 8_000_000), None);
        assert_eq!(seen(&room, 8_000_001), Some(Turn::Full));
        assert!(!room.take(1, NOW) && !room.is_open(NOW));
        assert_eq!((seen(&room, 9_000_000), seen(&room, 7_500_001)), (None, None));
        assert!(!room.take(1, NOW));
        assert_eq!(seen(&room, 7_500_000), Some(Turn::Open));
        assert!(room.take(1, NOW));
    }

    #[test]
    fn between_two_looks_no_more_is_written_than_there_was_room_for() {
        let room = Room::default();
        seen(&room, 7_000_000);
        let written = (0..2_000).filter(|_| room.take(1_000, NOW)).count();
        // 1,000,000 bytes by (1,000 + 250 + 256).
        assert_eq!(written, 664);
        // What is on its way may not have been seen.
        seen(&room, 7_000_000);
        assert!(!room.take(1_000, NOW));
        (0..written).for_each(|_| room.settle(1_000));
        seen(&room, 7_900_000);
        assert!(room.take(1_000, NOW) && !room.take(100_000, NOW));
    }

    #[test]
    fn instances_share_what_is_left_and_the_fullest_node_counts() {
        let room = Room::default();
        room.seen([(0, MOST), (7_900_000, MOST)].into_iter(), 10);
        assert!(room.take(1_000, NOW) && !room.take(10_000, NOW));
        assert_eq!(room.seen([(0, MOST), (9_900_000, MOST)].into_iter(), 1), Some(Turn::Full));
        assert!(room.is_crowded());
    }

    #[test]
    fn without_a_bound_anything_is_written_and_before_the_first_look_a_little() {
        let room = Room::default();
        assert!(room.take(500_000, NOW) && !room.take(500_000, NOW));
        assert_eq!(room.seen(std::iter::empty(), 3), None);
        assert!((0..1_000).all(|_| room.take(1 << 30, NOW)));
    }

    #[test]
    fn an_entry_that_was_refused_pauses_the_next_ones() {
        let room = Room::default();
        room.refused(NOW);
        assert!(!room.take(1, NOW) && !room.take(1, NOW.plus(Duration::from_millis(4_999))));
        assert!(room.take(1, NOW.plus(PAUSE)));
    }
}
