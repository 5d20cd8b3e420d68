//! A stored response on its way out: a hit copies no body bytes.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::cache::storage::HandleHit;
use pingora::cache::trace::SpanHandle;
use pingora::cache::{CacheKey, Storage};
use pingora::{Error, ErrorType, Result};

use super::Tier;
use crate::cache::ahead::Freshness;
use crate::cache::entry::Entry;
use crate::clock::UnixMillis;

/// A stored response being sent.
#[derive(Debug)]
pub struct Hit {
    pub(super) entry: Arc<Entry>,
    pub(super) at: usize,
    pub(super) end: usize,
    pub(super) tier: Tier,
}

impl Hit {
    /// Where it was found.
    pub const fn tier(&self) -> Tier {
        self.tier
    }

    /// When it was fetched or last validated.
    pub fn updated(&self) -> UnixMillis {
        self.entry.updated()
    }

    /// Since when and until when it is fresh.
    pub fn freshness(&self) -> Freshness {
        self.entry.freshness()
    }

    /// How long after that it may be served while it is being refreshed.
    pub fn stale_while_revalidate(&self) -> Duration {
        self.entry.stale_while_revalidate()
    }
}

#[async_trait]
impl HandleHit for Hit {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        let part = self.entry.body().read(self.at, self.end);
        self.at += part.as_ref().map_or(0, Bytes::len);
        Ok(part)
    }

    async fn finish(
        self: Box<Self>,
        _storage: &'static (dyn Storage + Sync),
        _key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<()> {
        Ok(())
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn seek(&mut self, start: usize, end: Option<usize>) -> Result<()> {
        let length = self.entry.body().len();
        let end = end.unwrap_or(length).min(length);
        if start > end {
            return Error::e_explain(ErrorType::InternalError, "range outside the stored body");
        }
        (self.at, self.end) = (start, end);
        Ok(())
    }

    fn get_eviction_weight(&self) -> usize {
        self.entry.weight()
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}
