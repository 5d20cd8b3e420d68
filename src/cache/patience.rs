//! How long one request waits for others that fetch the same object: on other instances first, then on this one, and for
//! all of them together no longer than is declared. It travels with the request's cache key.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pingora::cache::CacheKey;
use tokio::time::Instant;

/// Since when a request looks for its object, and when its patience ends, once it has waited for another instance.
#[derive(Clone, Debug)]
pub(super) struct Patience(Arc<(Instant, OnceLock<Instant>)>);

impl Patience {
    /// Gives the request of `key`, which begins to look, patience.
    pub(super) fn attach(key: &mut CacheKey) -> Self {
        let patience = Self(Arc::new((Instant::now(), OnceLock::new())));
        key.extensions.insert(patience.clone());
        patience
    }

    /// Since when the request of `key` looks for its object.
    pub(super) fn began(key: &CacheKey) -> Option<Instant> {
        key.extensions.get::<Self>().map(|patience| patience.0.0)
    }

    /// When the patience of the request of `key` ends, if it has waited for another instance.
    pub(super) fn end(key: &CacheKey) -> Option<Instant> {
        key.extensions.get::<Self>().and_then(Self::ends)
    }

    /// Notes that the request of `key` has waited for another instance, and waits for `whole` at most since it began.
    pub(super) fn begin(key: &CacheKey, whole: Duration) {
        if let Some(patience) = key.extensions.get::<Self>() {
            let (began, end) = &*patience.0;
            end.get_or_init(|| *began + whole);
        }
    }

    /// Whether the request has waited for as long as it may.
    pub(super) fn is_over(&self) -> bool {
        self.ends().is_some_and(|end| end <= Instant::now())
    }

    fn ends(&self) -> Option<Instant> {
        self.0.1.get().copied()
    }
}
