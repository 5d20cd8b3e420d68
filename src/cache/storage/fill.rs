//! A response on its way in: it becomes visible only when it is complete.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use pingora::cache::CacheKey;
use pingora::cache::storage::{HandleMiss, MissFinishType};
use pingora::{Error, ErrorType, Result};

use super::Tiers;
use super::budget::{Charge, allocated};
use crate::cache::entry::Draft;

/// What a body of unknown length starts with.
const FIRST_BUFFER: usize = 4 * 1024;

/// A response being received. Dropped before `finish`, it leaves nothing behind.
pub(super) struct Fill {
    tiers: &'static Tiers,
    key: CacheKey,
    draft: Option<Draft>,
    body: BytesMut,
    /// What the draft and the body's buffer take of the budget.
    charge: Option<Charge>,
}

impl Fill {
    /// Starts to receive; an error when the budget has no room for it.
    pub(super) fn new(tiers: &'static Tiers, key: &CacheKey, draft: Draft) -> Result<Self> {
        let length = draft.declared_length().unwrap_or(0);
        let bytes = draft.weight().saturating_add(allocated(length));
        let Some(charge) = tiers.budget.charge(bytes) else { return no_room() };
        // In one piece from the start: what is declared is what is stored.
        let body = BytesMut::with_capacity(length);
        Ok(Self { tiers, key: key.clone(), draft: Some(draft), body, charge: Some(charge) })
    }

    /// Makes room for `more` bytes, paid for while both buffers exist.
    fn reserve(&mut self, more: usize) -> bool {
        let needed = self.body.len().saturating_add(more);
        let capacity = self.body.capacity();
        if needed <= capacity {
            return true;
        }
        let largest = self.tiers.max_object;
        let larger = capacity.saturating_mul(2).clamp(FIRST_BUFFER, largest.max(FIRST_BUFFER)).max(needed);
        self.move_to(larger)
    }

    fn move_to(&mut self, capacity: usize) -> bool {
        let Some(charge) = self.charge.as_mut() else { return false };
        if !charge.grow(allocated(capacity)) {
            return false;
        }
        let before = allocated(self.body.capacity());
        let mut body = BytesMut::with_capacity(capacity);
        body.extend_from_slice(&self.body);
        self.body = body;
        charge.shrink(before);
        true
    }
}

fn no_room<T>() -> Result<T> {
    Error::e_explain(ErrorType::InternalError, "no memory is left for another response on its way in")
}

#[async_trait]
impl HandleMiss for Fill {
    async fn write_body(&mut self, data: Bytes, _eof: bool) -> Result<()> {
        if !self.reserve(data.len()) {
            return no_room();
        }
        // Copied: a slice would keep the whole read buffer it points into alive.
        self.body.extend_from_slice(&data);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<MissFinishType> {
        // Room that is not needed is not kept.
        let length = self.body.len();
        if allocated(self.body.capacity()) > allocated(length) && !self.move_to(length) {
            return no_room();
        }
        let (body, charge) = (std::mem::take(&mut self.body), self.charge.take());
        let Some(entry) = self.draft.take().and_then(|draft| draft.complete(&self.key, body.freeze())) else {
            return Error::e_explain(ErrorType::InternalError, "the body is not as long as declared");
        };
        let weight = entry.weight();
        if !charge.is_some_and(|charge| self.tiers.keep(&self.key, entry, charge)) {
            return no_room();
        }
        Ok(MissFinishType::Created(weight))
    }
}
