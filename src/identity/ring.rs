//! The keys of one issuer where they may change under the verifiers that use them. It neither fetches nor judges.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};

use super::keys::KeySet;

/// A key set that can be exchanged. What was verified by it carries its generation, and counts no more once that
/// has passed.
#[derive(Debug, Default)]
pub struct Ring {
    keys: ArcSwap<KeySet>,
    generation: AtomicU64,
}

impl Ring {
    /// A ring that begins with these keys.
    pub fn new(keys: KeySet) -> Self {
        Self { keys: ArcSwap::from_pointee(keys), generation: AtomicU64::new(0) }
    }

    /// The keys of now.
    pub fn keys(&self) -> Guard<Arc<KeySet>> {
        self.keys.load()
    }

    /// Exchanges the keys. Everything verified by the old ones is to be verified anew.
    pub fn replace(&self, keys: KeySet) {
        self.keys.store(Arc::new(keys));
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// How often the keys were exchanged. To be read before [`Ring::keys`]: a result by old keys then carries the
    /// old number.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}
