//! Whose turn it is to fetch an object in this instance: pingora's lock, which here also looks whether the object has
//! come since the lookup, and tells the storage when a fetch ends.

use std::time::Duration;

use pingora::cache::CacheKey;
use pingora::cache::key::CacheHashKey;
use pingora::cache::lock::{CacheKeyLock, CacheLock, LockStatus, Locked, WritePermit};
use pingora::cache::predictor::CacheablePredictor;

use super::storage::Tiers;

/// pingora's lock, and the storage that is filled under it.
pub(super) struct Turns {
    local: CacheLock,
    tiers: &'static Tiers,
    predictor: &'static (dyn CacheablePredictor + Sync),
}

impl Turns {
    /// A fetch that takes longer than `age` no longer holds others back.
    pub(super) fn new(
        age: Duration,
        tiers: &'static Tiers,
        predictor: &'static (dyn CacheablePredictor + Sync),
    ) -> Self {
        Self { local: CacheLock::new(age), tiers, predictor }
    }
}

impl CacheKeyLock for Turns {
    fn lock(&self, key: &CacheKey, stale_writer: bool) -> Locked {
        match self.local.lock(key, stale_writer) {
            // pingora looks first and locks then: another fetch may have ended between the two. Who is told to wait
            // for one that is done looks again at once. A variant may be there and yet too old for its object.
            Locked::Write(permit)
                if !stale_writer && key.variance_bin().is_none() && self.tiers.has_fresh(key) =>
            {
                let again = self.local.lock(key, stale_writer);
                self.release(key, permit, LockStatus::Done);
                again
            }
            locked => locked,
        }
    }

    fn release(&self, key: &CacheKey, permit: WritePermit, reason: LockStatus) {
        let reason = match reason {
            // What each has to validate for itself: all who wait go on at once instead of one after the other.
            LockStatus::Done if self.tiers.has_for_nobody_else(key) => LockStatus::GiveUp,
            // A body that outgrew the limit on its way is a failure to pingora, after which another request tries. It
            // is also remembered as what cannot be stored, so that nobody need wait for that.
            LockStatus::TransientError if !self.predictor.cacheable_prediction(key) => LockStatus::GiveUp,
            reason => reason,
        };
        // First, so that whoever is woken up here does not wait for a fetch that is over.
        self.tiers.fetched(key, reason == LockStatus::GiveUp);
        self.local.release(key, permit, reason);
    }
}
