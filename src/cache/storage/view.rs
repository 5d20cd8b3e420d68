//! The storage as requests see it that have no time left, or whose purpose is to refresh.

use std::any::Any;

use async_trait::async_trait;
use pingora::Result;
use pingora::cache::trace::SpanHandle;
use pingora::cache::{
    CacheKey, CacheMeta, HitHandler, MissHandler, PurgeOutcome, PurgeTarget, PurgeType, Storage,
};

use super::{Tier, Tiers};

/// The same storage for requests that look for stored responses in another way.
pub(in crate::cache) struct View {
    tiers: &'static Tiers,
    looks: Looks,
}

/// What a lookup does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) enum Looks {
    /// There is no time left to ask the shared tier: it reads memory only. If others wait for another instance's fetch
    /// already, it waits with them.
    InMemory,
    /// The request refreshes: of what this instance holds and is soon to end, it asks the shared tier whether another
    /// instance has refreshed it already.
    ToRefresh,
}

impl View {
    /// `tiers`, looked into as `looks` says.
    pub(in crate::cache) const fn new(tiers: &'static Tiers, looks: Looks) -> Self {
        Self { tiers, looks }
    }
}

#[async_trait]
impl Storage for View {
    async fn lookup(
        &'static self,
        key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        let found = match self.looks {
            Looks::ToRefresh => self.tiers.find(key, true).await,
            Looks::InMemory => match self.tiers.in_memory(key, self.tiers.clock.now()) {
                Some(held) => Some((held, Tier::Memory)),
                None => Box::pin(self.tiers.wait_with_others(key)).await,
            },
        };
        Ok(found.map(|(entry, tier)| Tiers::hit(entry, tier)))
    }

    async fn get_miss_handler(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        trace: &SpanHandle,
    ) -> Result<MissHandler> {
        self.tiers.get_miss_handler(key, meta, trace).await
    }

    async fn purge(
        &'static self,
        target: PurgeTarget<'_>,
        purge_type: PurgeType,
        trace: &SpanHandle,
    ) -> Result<PurgeOutcome> {
        self.tiers.purge(target, purge_type, trace).await
    }

    async fn update_meta(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        trace: &SpanHandle,
    ) -> Result<bool> {
        self.tiers.update_meta(key, meta, trace).await
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}
