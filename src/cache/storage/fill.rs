//! A response on its way in: it becomes visible only when it is complete.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use pingora::cache::CacheKey;
use pingora::cache::storage::{HandleMiss, MissFinishType};
use pingora::{Error, ErrorType, Result};

use super::Tiers;
use crate::cache::entry::Draft;

/// A response being received. Dropped before `finish`, it leaves nothing behind.
pub(super) struct Fill {
    pub(super) tiers: &'static Tiers,
    pub(super) key: CacheKey,
    pub(super) draft: Option<Draft>,
    pub(super) body: BytesMut,
    pub(super) reserved: usize,
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.tiers.filling.fetch_sub(self.reserved, Ordering::Relaxed);
    }
}

#[async_trait]
impl HandleMiss for Fill {
    async fn write_body(&mut self, data: Bytes, _eof: bool) -> Result<()> {
        let filling = self.tiers.filling.fetch_add(data.len(), Ordering::Relaxed);
        self.reserved += data.len();
        if filling.saturating_add(data.len()) > self.tiers.max_filling {
            return Error::e_explain(ErrorType::InternalError, "too many responses are being stored at once");
        }
        // Copied: a slice would keep the whole read buffer it points into alive.
        self.body.extend_from_slice(&data);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<MissFinishType> {
        let body = std::mem::take(&mut self.body);
        // A growing buffer has spare room, which the weight would not account for.
        let body = if body.capacity() > body.len() + body.len() / 8 {
            Bytes::copy_from_slice(&body)
        } else {
            body.freeze()
        };
        let Some(entry) = self.draft.take().and_then(|draft| draft.complete(body)) else {
            return Error::e_explain(ErrorType::InternalError, "the body is not as long as declared");
        };
        let weight = entry.weight();
        self.tiers.keep(&self.key, entry);
        Ok(MissFinishType::Created(weight))
    }
}
