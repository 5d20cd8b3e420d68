//! How long one request waits for others that fetch the same object: on other instances first, then on this one, and for
//! all of them together no longer than is declared. It travels with the request's cache key.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pingora::cache::CacheKey;
use tokio::time::Instant;

/// The end of a request's patience, once it has waited for another instance.
#[derive(Clone, Debug, Default)]
pub(super) struct Patience(Arc<OnceLock<Instant>>);

impl Patience {
    /// Gives the request of `key` patience.
    pub(super) fn attach(key: &mut CacheKey) {
        key.extensions.insert(Self::default());
    }

    /// When the patience of the request of `key` ends, if it has waited already.
    pub(super) fn end(key: &CacheKey) -> Option<Instant> {
        key.extensions.get::<Self>().and_then(|patience| patience.0.get().copied())
    }

    /// Notes that the request of `key` has waited for another instance since `began`, and waits for `whole` at most.
    pub(super) fn begin(key: &CacheKey, began: Instant, whole: Duration) {
        if let Some(patience) = key.extensions.get::<Self>() {
            patience.0.get_or_init(|| began + whole);
        }
    }

    /// Whether the request of `key` has waited for as long as it may.
    pub(super) fn is_over(key: &CacheKey) -> bool {
        Self::end(key).is_some_and(|end| end <= Instant::now())
    }
}
