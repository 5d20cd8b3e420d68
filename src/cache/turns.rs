//! Whose turn it is to fetch an object in this instance: pingora's lock, which here also looks whether the object has
//! come since the lookup, and tells the storage when a fetch ends.

use std::time::Duration;

use http::Extensions;
use pingora::cache::CacheKey;
use pingora::cache::key::CacheHashKey;
use pingora::cache::lock::{CacheKeyLock, CacheLock, LockStatus, Locked, WritePermit};
use pingora::cache::predictor::CacheablePredictor;

use super::patience::Patience;
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

/// Longer than any wait.
const LONGEST: Duration = Duration::from_secs(3600);

/// A lock that ends when it is dropped.
struct Lock(WritePermit, LockStatus);

impl Lock {
    fn end(mut self, status: LockStatus) {
        self.1 = status;
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.0.unlock(self.1);
    }
}

/// A request that has waited for another instance waits for one of this instance only as long as its patience lasts:
/// pingora, which was told before how long that is, gets a lock that ends then.
fn shortened(locked: Locked, key: &CacheKey) -> Locked {
    let Some(end) = Patience::end(key) else { return locked };
    let Locked::Read(read) = locked else { return locked };
    let (permit, stub) = WritePermit::new(LONGEST, false, Extensions::new());
    let lock = Lock(permit, LockStatus::GiveUp);
    let own = stub.read_lock();
    tokio::spawn(async move {
        // Where many wait, the last of them hear late that the other one has ended.
        let _ = tokio::time::timeout_at(end, read.wait()).await;
        lock.end(match read.lock_status() {
            LockStatus::Waiting => LockStatus::GiveUp,
            ended => ended,
        });
    });
    Locked::Read(own)
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
                shortened(again, key)
            }
            locked => shortened(locked, key),
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn who_waited_for_another_instance_waits_here_for_what_is_left() {
        let [(fresh_key, _), (key, patience)] = [(); 2].map(|()| {
            let mut key = CacheKey::new(b"a".to_vec(), "");
            let patience = Patience::attach(&mut key);
            (key, patience)
        });
        let lock = CacheLock::new(LONGEST);
        let Locked::Write(permit) = lock.lock(&fresh_key, false) else { panic!("the first") };
        let begun = Instant::now();
        let waiting = |key: &CacheKey| match shortened(lock.lock(key, false), key) {
            Locked::Read(read) => read,
            Locked::Write(_) => panic!("not the first"),
        };
        let fresh = waiting(&fresh_key);
        Patience::begin(&key, Duration::from_secs(3));
        tokio::time::sleep(Duration::from_secs(2)).await;
        let tired = waiting(&key);
        assert!(tired.locked() && !patience.is_over());
        tokio::time::sleep_until(begun + Duration::from_secs(3)).await;
        while tired.locked() {
            tokio::task::yield_now().await;
        }
        assert!(tired.lock_status() == LockStatus::GiveUp && patience.is_over());
        assert_eq!(begun.elapsed(), Duration::from_secs(3));
        assert!(fresh.locked(), "nobody else is concerned");
        // What ends sooner is heard as it is.
        Patience::begin(&fresh_key, Duration::from_secs(6));
        let heard: Vec<_> = (0..1_000).map(|_| waiting(&fresh_key)).collect();
        tokio::time::sleep_until(begun + Duration::from_secs(6) - Duration::from_millis(1)).await;
        lock.release(&fresh_key, permit, LockStatus::Done);
        // They wake one another up, and the last of them has no patience left by then.
        tokio::time::advance(Duration::from_millis(1)).await;
        for heard in heard {
            while heard.locked() {
                tokio::task::yield_now().await;
            }
            assert_eq!(heard.lock_status(), LockStatus::Done);
        }
        assert_eq!(fresh.lock_status(), LockStatus::Done);
    }
}
