//! A response on its way in: it becomes visible only when it is complete.

use async_trait::async_trait;
use bytes::Bytes;
use pingora::cache::CacheKey;
use pingora::cache::storage::{HandleMiss, MissFinishType};
use pingora::{Error, ErrorType, Result};

use super::Tiers;
use super::body::Growing;
use super::budget::Charge;
use crate::cache::entry::Draft;

/// A response being received. Dropped before `finish`, it leaves nothing behind.
pub(super) struct Fill {
    tiers: &'static Tiers,
    key: CacheKey,
    draft: Draft,
    body: Growing,
    /// What the draft and the body take of the budget.
    charge: Charge,
}

impl Fill {
    /// Starts to receive; an error when the budget has no room for it.
    pub(super) fn new(tiers: &'static Tiers, key: &CacheKey, draft: Draft) -> Result<Self> {
        let body = Growing::new(draft.declared_length());
        let bytes = draft.weight().saturating_add(body.weight_expected());
        let Some(charge) = tiers.budget.charge(bytes) else { return no_room() };
        Ok(Self { tiers, key: key.clone(), draft, body, charge })
    }
}

fn no_room<T>() -> Result<T> {
    Error::e_explain(ErrorType::InternalError, "no memory is left for another response on its way in")
}

#[async_trait]
impl HandleMiss for Fill {
    async fn write_body(&mut self, data: Bytes, _eof: bool) -> Result<()> {
        // Copied: a slice would keep the whole read buffer it points into alive.
        let Self { body, charge, .. } = self;
        if body.write(&data, charge) { Ok(()) } else { no_room() }
    }

    async fn finish(self: Box<Self>) -> Result<MissFinishType> {
        let Self { tiers, key, draft, body, charge } = *self;
        let Some(entry) = draft.complete(&key, body.complete()) else {
            return Error::e_explain(ErrorType::InternalError, "the body is not as long as declared");
        };
        let weight = entry.weight();
        if !tiers.keep(&key, entry, charge) {
            return no_room();
        }
        Ok(MissFinishType::Created(weight))
    }
}
