//! Refreshing what is still fresh. pingora is told that the response expired and may be served meanwhile; the client
//! is told what is true: a hit, fresh until its end.

use std::time::Duration;

use pingora::cache::key::CacheHashKey;
use pingora::cache::{CachePhase, ForcedFreshness, HitHandler, HttpCache};

use super::Transaction;
use crate::cache::ahead::{Freshness, pause};
use crate::cache::entry::unix;
use crate::cache::storage::Hit;
use crate::clock::UnixMillis;

/// What a stored response that was found may be used for, beside being served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Windows {
    /// `None`: it has no freshness that could end.
    freshness: Option<Freshness>,
    /// Until when it may be served, stale, while it is being refreshed.
    stale_until: UnixMillis,
    /// A refresh begins at this hit, although the response is fresh.
    ahead: bool,
}

/// Tells pingora to refresh while it serves.
pub const REFRESH: ForcedFreshness = ForcedFreshness::ForceExpiredServeStale { expired_at: None };

/// Why an answer is not stored after which the next request still asks the cache: the upstream failed, or what was
/// to be refreshed is still fresh.
pub const PASSING: &str = "passing";

impl Transaction {
    /// For `request_cache_filter`, of a request that is there to refresh, in the background: what other instances
    /// fetched meanwhile counts before this one asks the upstream.
    pub const fn refresh(&mut self) {
        self.refreshing = true;
    }

    /// Of a request that keeps a response warm: the last part of its freshness in which it is refreshed, in
    /// thousandths of what it would be. Instances choose theirs at random, so that one is first.
    pub const fn keep_warm(&mut self, thousandths: u16) {
        self.refreshing = true;
        self.warm = Some(thousandths);
    }

    /// For `cache_hit_filter`: whether the response found, though fresh, is to be refreshed by now.
    pub fn is_ending(&mut self, handler: &HitHandler, now: UnixMillis) -> bool {
        let Some(hit) = handler.as_any().downcast_ref::<Hit>() else { return false };
        self.windows = Windows {
            freshness: Some(hit.freshness()),
            stale_until: hit.freshness().until.plus(hit.stale_while_revalidate()),
            ahead: false,
        };
        hit.freshness().is_ending(self.window(hit.freshness()), now)
    }

    /// Whether this hit is the one that begins the refresh.
    pub fn begins_refresh(&self, now: UnixMillis) -> bool {
        let Some(freshness) = self.windows.freshness else { return false };
        let object = u128::from_be_bytes(self.key.primary_bin());
        self.cache.attempts().begin(object, pause(self.window(freshness)), now)
    }

    /// This hit begins it.
    pub const fn begin_refresh(&mut self) {
        self.windows.ahead = true;
    }

    /// For `should_serve_stale` without an error: whether the response may be served while it is refreshed. pingora
    /// asks a moment longer than the windows are, because it must also ask where there are none.
    pub fn serves_while_refreshing(&self, now: UnixMillis) -> bool {
        self.windows.ahead || now <= self.windows.stale_until
    }

    /// Once the response was sent: how long what is stored now is fresh, if it is stored and fresh.
    pub fn kept(&self, http: &HttpCache, now: UnixMillis) -> Option<Freshness> {
        let stored = match http.phase() {
            CachePhase::Hit | CachePhase::Revalidated => true,
            CachePhase::Miss | CachePhase::Expired => self.storable,
            _ => false,
        };
        let until = http.maybe_cache_meta().filter(|_| stored).map(|meta| unix(meta.fresh_until()))?;
        let since = match (http.phase(), self.windows.freshness) {
            (CachePhase::Hit, Some(found)) => found.since,
            _ => now,
        };
        (until > now).then_some(Freshness { since, until })
    }

    /// Whether what was found is still good, whatever the upstream says now.
    pub(super) fn leaves_fresh(&self, now: UnixMillis) -> bool {
        self.refreshing && self.windows.freshness.is_some_and(|found| now <= found.until)
    }

    /// Whether what pingora takes for stale is a fresh hit.
    pub(super) const fn is_ahead(&self) -> bool {
        self.windows.ahead
    }

    /// How long before the end of its freshness a response is refreshed.
    pub(super) fn window(&self, freshness: Freshness) -> Duration {
        let declared = self.route.refresh_ahead;
        match self.warm {
            None => freshness.window(declared),
            Some(thousandths) => freshness.warm_window(declared) * u32::from(thousandths) / 1_000,
        }
    }
}
