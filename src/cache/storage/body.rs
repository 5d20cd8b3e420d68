//! Bodies in memory: pieces of few sizes. What an evicted body leaves free fits the next one, whatever its length;
//! blocks of the length of each body would leave the allocator with pages that are mostly empty.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use parking_lot::Mutex;

use super::budget::{Charge, allocated};

/// The pieces of big bodies, in bytes.
const LARGE: usize = 64 * 1024;
/// The pieces of what remains of big bodies, and of small ones.
const MEDIUM: usize = 16 * 1024;
/// Up to here a last piece is as long as what it holds: blocks of such sizes share pages of 64 KiB.
const SMALL: usize = 8 * 1024;
/// What a piece takes beside its bytes: its handle, and what `Bytes` allocates to share it.
const HANDLE: usize = size_of::<(usize, Bytes)>() + 80;
/// Free blocks that are kept although the budget is used up, in bytes: as many as a body of the usual largest size has.
pub(super) const FREE: usize = 16 * LARGE;

/// The free blocks of this process. They serve the next bodies, also those of other threads: the allocator would keep
/// what was freed for a while (its purge delay is a second), and apart for each thread. With what is in use they take
/// no more than the budget, see [`leave_free`].
static FREE_BLOCKS: Mutex<FreeBlocks> = Mutex::new(FreeBlocks { large: Vec::new(), medium: Vec::new() });
/// Their bytes, so that most charges need no lock.
static FREE_BYTES: AtomicUsize = AtomicUsize::new(0);

struct FreeBlocks {
    large: Vec<Vec<u8>>,
    medium: Vec<Vec<u8>>,
}

impl FreeBlocks {
    /// Those of `capacity` bytes.
    const fn of(&mut self, capacity: usize) -> Option<&mut Vec<Vec<u8>>> {
        match capacity {
            LARGE => Some(&mut self.large),
            MEDIUM => Some(&mut self.medium),
            _ => None,
        }
    }

    const fn bytes(&self) -> usize {
        self.large.len() * LARGE + self.medium.len() * MEDIUM
    }

    /// Takes out what exceeds `most` bytes, of the kind that there is more of.
    fn excess(&mut self, most: usize) -> Vec<Vec<u8>> {
        let mut excess = Vec::new();
        while self.bytes() > most {
            let more_large = self.large.len() * LARGE >= self.medium.len() * MEDIUM;
            let fuller = if more_large { &mut self.large } else { &mut self.medium };
            excess.extend(fuller.pop());
        }
        FREE_BYTES.store(self.bytes(), Relaxed);
        excess
    }
}

/// Gives free blocks back to the allocator until they take `most` bytes.
pub(super) fn leave_free(most: usize) {
    if FREE_BYTES.load(Relaxed) > most {
        let excess = FREE_BLOCKS.lock().excess(most);
        drop(excess);
    }
}

/// A piece of memory; blocks of the two bigger sizes are used again.
#[derive(Debug, Default)]
struct Block(Vec<u8>);

impl Block {
    /// An empty block for `length` bytes, at most [`LARGE`].
    fn new(length: usize) -> Self {
        let room = block(length);
        Self(Self::free(room).unwrap_or_else(|| Vec::with_capacity(room)))
    }

    fn free(room: usize) -> Option<Vec<u8>> {
        if !is_shared(room) {
            return None;
        }
        let mut free = FREE_BLOCKS.lock();
        let found = free.of(room).and_then(Vec::pop);
        // A new block of one size takes the place of free ones of the other.
        let most = if found.is_some() { usize::MAX } else { free.bytes().saturating_sub(room) };
        let excess = free.excess(most);
        drop(free);
        drop(excess);
        found
    }

    const fn room(&self) -> usize {
        self.0.capacity() - self.0.len()
    }

    fn freeze(mut self) -> Bytes {
        if self.0.capacity() == self.0.len() && !is_shared(self.0.len()) {
            return std::mem::take(&mut self.0).into();
        }
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0);
        if is_shared(bytes.capacity()) {
            bytes.clear();
            let mut free = FREE_BLOCKS.lock();
            if let Some(blocks) = free.of(bytes.capacity()) {
                blocks.push(bytes);
            }
            FREE_BYTES.store(free.bytes(), Relaxed);
        }
    }
}

/// Whether blocks of `capacity` bytes are used again.
const fn is_shared(capacity: usize) -> bool {
    matches!(capacity, LARGE | MEDIUM)
}

/// How long the block for a piece of `length` bytes is.
const fn block(length: usize) -> usize {
    if length <= SMALL {
        length
    } else if length <= MEDIUM {
        MEDIUM
    } else {
        LARGE
    }
}

/// A complete body.
#[derive(Clone, Debug, Default)]
pub(in crate::cache) struct Body {
    /// Each with the place where it ends.
    pieces: Box<[(usize, Bytes)]>,
    length: usize,
}

impl Body {
    /// A copy of `bytes`.
    pub(in crate::cache) fn copy_of(bytes: &[u8]) -> Self {
        let mut growing = Growing::new(Some(bytes.len()));
        growing.append(bytes);
        growing.complete()
    }

    /// Its length in bytes.
    pub(in crate::cache) const fn len(&self) -> usize {
        self.length
    }

    /// The bytes, piece by piece.
    pub(in crate::cache) fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter().map(|(_, piece)| piece)
    }

    /// What follows from byte `at` on and before `end`, as far as it is in one piece; copies nothing.
    pub(in crate::cache) fn read(&self, at: usize, end: usize) -> Option<Bytes> {
        let end = end.min(self.length);
        if at >= end {
            return None;
        }
        let next = self.pieces.partition_point(|(piece_end, _)| *piece_end <= at);
        let (piece_end, piece) = self.pieces.get(next)?;
        let start = piece_end - piece.len();
        Some(piece.slice(at - start..end.min(*piece_end) - start))
    }

    /// Bytes of memory it takes.
    pub(in crate::cache) fn weight(&self) -> usize {
        self.pieces().map(|piece| HANDLE + allocated(block(piece.len()))).sum()
    }
}

/// A body on its way in.
#[derive(Debug, Default)]
pub(super) struct Growing {
    pieces: Vec<(usize, Bytes)>,
    last: Block,
    length: usize,
    expected: Option<usize>,
}

impl Growing {
    /// `expected`: its length, if it is declared.
    pub(super) fn new(expected: Option<usize>) -> Self {
        Self { expected, ..Self::default() }
    }

    /// What a body of the declared length will take; nothing where none is declared.
    pub(super) fn weight_expected(&self) -> usize {
        let mut left = self.expected.unwrap_or(0);
        let mut weight = 0;
        while left > 0 {
            let piece = next_piece(Some(left), 0);
            weight += HANDLE + allocated(piece);
            left = left.saturating_sub(piece);
        }
        weight
    }

    /// Takes `data`; what exceeds the declared length is paid from `charge`. `false` when that has no room.
    pub(super) fn write(&mut self, mut data: &[u8], charge: &mut Charge) -> bool {
        while !data.is_empty() {
            let room = self.last.room();
            if room == 0 {
                let paid = self.expected.is_some_and(|expected| self.length < expected);
                let piece = next_piece(self.left(), self.length);
                if !paid && !charge.grow(HANDLE + allocated(piece)) {
                    return false;
                }
                self.next(piece);
                continue;
            }
            let (now, later) = data.split_at(data.len().min(room));
            self.last.0.extend_from_slice(now);
            self.length += now.len();
            data = later;
        }
        true
    }

    fn left(&self) -> Option<usize> {
        self.expected.map(|expected| expected.saturating_sub(self.length)).filter(|left| *left > 0)
    }

    fn next(&mut self, piece: usize) {
        let full = std::mem::replace(&mut self.last, Block::new(piece));
        if !full.0.is_empty() {
            self.pieces.push((self.length, full.freeze()));
        }
    }

    fn append(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let piece = next_piece(self.left(), self.length);
            let (now, later) = data.split_at(data.len().min(piece));
            self.next(piece);
            self.last.0.extend_from_slice(now);
            self.length += now.len();
            data = later;
        }
    }

    /// The body; room that is not needed is not kept.
    pub(super) fn complete(mut self) -> Body {
        let last = std::mem::take(&mut self.last);
        if !last.0.is_empty() {
            let length = last.0.len();
            let whole = if last.0.capacity() > block(length) {
                let mut moved = Block::new(length);
                moved.0.extend_from_slice(&last.0);
                moved.freeze()
            } else {
                last.freeze()
            };
            self.pieces.push((self.length, whole));
        }
        Body { pieces: self.pieces.into_boxed_slice(), length: self.length }
    }
}

/// How long the next piece is, when `left` bytes follow (if that is known) and `length` are there.
const fn next_piece(left: Option<usize>, length: usize) -> usize {
    match left {
        Some(LARGE..) => LARGE,
        Some(left) if left > MEDIUM => MEDIUM,
        Some(left) => block(left),
        None if length < LARGE => MEDIUM,
        None => LARGE,
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
    use super::*;

    fn whole(body: &Body) -> Vec<u8> {
        body.pieces().flat_map(|piece| piece.to_vec()).collect()
    }

    #[test]
    fn a_body_is_the_same_however_it_came() {
        let budget = Budget::new(64 * 1024 * 1024);
        for length in
            [0, 1, SMALL, SMALL + 1, MEDIUM, MEDIUM + 1, LARGE - 1, LARGE, LARGE + 1, 5 * LARGE + 9_000]
        {
            let bytes: Vec<u8> = (0..=250).cycle().take(length).collect();
            assert_eq!(whole(&Body::copy_of(&bytes)), bytes);
            for (expected, chunk) in
                [(Some(length), 1_000), (None, 70_000), (None, 7), (Some(length / 2), 333)]
            {
                let mut growing = Growing::new(expected);
                let mut charge = budget.charge(growing.weight_expected()).unwrap();
                assert!(bytes.chunks(chunk).all(|chunk| growing.write(chunk, &mut charge)));
                let before = budget.used();
                let body = growing.complete();
                assert_eq!((whole(&body), body.len()), (bytes.clone(), length));
                assert!(body.weight() <= before, "{length}: {} were paid, {} are due", before, body.weight());
                if expected == Some(length) {
                    assert_eq!(body.weight(), before, "{length}");
                }
            }
        }
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn parts_of_a_body_are_read() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
        let body = Body::copy_of(&bytes);
        for (start, end) in
            [(0, 200_000), (65_535, 65_537), (199_999, 200_000), (70_000, 70_000), (150_000, 999_999)]
        {
            let mut read = Vec::new();
            while let Some(part) = body.read(start + read.len(), end) {
                read.extend_from_slice(&part);
            }
            assert_eq!(read, &bytes[start..end.min(200_000)]);
        }
    }

    #[test]
    fn without_room_nothing_is_taken() {
        let budget = Budget::new(MEDIUM + HANDLE);
        let mut charge = budget.charge(0).unwrap();
        let mut growing = Growing::new(None);
        assert!(growing.write(&[0; MEDIUM], &mut charge));
        assert!(!growing.write(&[0], &mut charge));
    }

    #[test]
    fn free_blocks_give_way_to_others() {
        let blocks = |count: usize, room: usize| (0..count).map(|_| Vec::with_capacity(room)).collect();
        let mut free = FreeBlocks { large: blocks(4, LARGE), medium: blocks(8, MEDIUM) };
        assert_eq!(free.excess(usize::MAX).len(), 0);
        assert_eq!(free.excess(5 * LARGE).iter().map(Vec::capacity).collect::<Vec<_>>(), [LARGE]);
        free.excess(LARGE + MEDIUM);
        assert!(free.bytes() <= LARGE + MEDIUM && free.bytes() > 0, "{}", free.bytes());
        free.excess(0);
        assert_eq!(free.bytes(), 0);
    }
}
