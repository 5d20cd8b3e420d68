//! Tells the operator, once, about a Redis that may throw counters and revocations away. It changes nothing there.

use std::sync::atomic::{AtomicBool, Ordering};

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisResult, cmd};
use async_trait::async_trait;

use crate::redis::EventHandler;

/// An event handler that also looks at the eviction policy, the first time the store is reached.
pub(super) struct Checked<H> {
    handler: H,
    looked: AtomicBool,
}

impl<H> Checked<H> {
    /// Looks beside what `handler` does.
    pub(super) fn new(handler: H) -> Self {
        Self { handler, looked: AtomicBool::new(false) }
    }
}

#[async_trait]
impl<H: EventHandler> EventHandler for Checked<H> {
    fn event(&self, payload: &[u8]) {
        self.handler.event(payload);
    }

    async fn catch_up(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        if !self.looked.swap(true, Ordering::Relaxed) {
            warn_of_eviction(connection).await;
        }
        self.handler.catch_up(connection).await
    }
}

async fn warn_of_eviction(connection: &mut MultiplexedConnection) {
    let mut question = cmd("CONFIG");
    question.arg("GET").arg("maxmemory-policy");
    // Hosted Redis often forbids the question: then there is nothing to say.
    let Ok(answer) = question.query_async::<Vec<(String, String)>>(connection).await else { return };
    for (_, policy) in answer {
        if policy != "noeviction" {
            tracing::warn!(
                policy,
                "Redis evicts keys when its memory is full: limits would start anew and revoked tokens be accepted \
                 again; set maxmemory-policy noeviction"
            );
        }
    }
}
