//! What is done beside recovery when the store is reached: the operator is told, once, of a Redis that may throw
//! counters and revocations away. It changes no setting there.

use std::sync::atomic::{AtomicBool, Ordering};

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisResult, cmd};
use async_trait::async_trait;

use crate::pipeline::Recoverer;
use crate::redis::{EventHandler, Link, Look};

/// News of other instances and, the first time, a look at the eviction policy.
pub(super) struct Reached {
    inner: Recoverer,
    looked: AtomicBool,
}

impl Reached {
    /// Looks beside what `inner` does.
    pub(super) fn new(inner: Recoverer) -> Self {
        Self { inner, looked: AtomicBool::new(false) }
    }
}

#[async_trait]
impl EventHandler for Reached {
    fn event(&self, payload: &[u8]) {
        self.inner.event(payload);
    }

    async fn catch_up(&self, link: &mut Link<'_>) -> RedisResult<()> {
        if !self.looked.swap(true, Ordering::Relaxed) {
            warn_of_eviction(link.connection()).await;
        }
        self.inner.catch_up(link).await
    }

    fn looker(&self) -> Box<dyn Look> {
        self.inner.looker()
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
