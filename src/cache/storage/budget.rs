//! One budget of bytes for everything the memory tier holds: stored entries, also while a slow client still
//! reads one that was evicted, fills under way, and copies on their way to the shared tier.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::body;

/// The smallest block the allocator hands out.
const SMALLEST_BLOCK: usize = 16;
/// Up to here sizes of blocks are a fixed step apart.
const FINE_BLOCKS: usize = 64;
/// From here on memory comes in slices of this many bytes.
const SLICE: usize = 64 * 1024;

/// Bytes in use, and how many may be.
#[derive(Debug)]
pub(in crate::cache) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub(in crate::cache) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// Bytes in use.
    pub(in crate::cache) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// `bytes` of the budget until the charge is dropped, or `None` when they are not there.
    pub(in crate::cache) fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let mut charge = Charge { budget: Arc::clone(self), bytes: 0 };
        charge.grow(bytes).then_some(charge)
    }
}

/// A part of a budget, given back when dropped.
#[derive(Debug)]
pub(in crate::cache) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Charge {
    /// Takes `more` bytes, unless that exceeds the budget.
    pub(in crate::cache) fn grow(&mut self, more: usize) -> bool {
        let limit = self.budget.limit;
        let fits = |used: usize| used.checked_add(more).filter(|sum| *sum <= limit);
        let Ok(before) = self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) else {
            return false;
        };
        self.bytes += more;
        // What is free must not stand beside what is in use.
        body::leave_free(limit.saturating_sub(before + more).saturating_add(body::FREE));
        true
    }

    /// Gives `fewer` bytes back, at most all of them.
    pub(in crate::cache) fn shrink(&mut self, fewer: usize) {
        let fewer = fewer.min(self.bytes);
        self.bytes -= fewer;
        self.budget.used.fetch_sub(fewer, Ordering::Relaxed);
    }

    /// Takes or gives back what is missing to exactly `bytes`.
    pub(in crate::cache) fn resize(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes {
            return self.grow(bytes - self.bytes);
        }
        self.shrink(self.bytes - bytes);
        true
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What the allocator really takes for `bytes`: blocks come in four sizes per power of two, and big ones in
/// whole slices (mimalloc's `mi_bin` and `MI_SEGMENT_SLICE_SIZE`).
pub(in crate::cache) const fn allocated(bytes: usize) -> usize {
    if bytes == 0 {
        return 0;
    }
    let step = if bytes <= FINE_BLOCKS {
        SMALLEST_BLOCK
    } else {
        let step = bytes.next_power_of_two() / 8;
        if step > SLICE { SLICE } else { step }
    };
    bytes.div_ceil(step).saturating_mul(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_charged_is_given_back() {
        let budget = Budget::new(100);
        let mut one = budget.charge(60).unwrap();
        assert!(budget.charge(41).is_none());
        assert_eq!(budget.used(), 60);
        let two = budget.charge(40).unwrap();
        assert!(!one.grow(1));
        drop(two);
        assert!(one.resize(100) && !one.resize(101));
        one.shrink(1_000);
        assert_eq!(budget.used(), 0);
        assert!(one.resize(7));
        drop(one);
        assert_eq!(budget.used(), 0);
        assert!(!budget.charge(1).unwrap().grow(usize::MAX));
    }

    #[test]
    fn blocks_are_rounded_up_as_the_allocator_does() {
        for (asked, taken) in [
            (0, 0),
            (1, 16),
            (17, 32),
            (64, 64),
            (65, 80),
            (200, 224),
            (1025, 1280),
            (1024 * 1024, 1024 * 1024),
        ] {
            assert_eq!(allocated(asked), taken, "{asked}");
        }
        assert_eq!(allocated(1024 * 1024 + 1), 1024 * 1024 + SLICE);
    }
}
