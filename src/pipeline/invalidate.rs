//! Invalidating cached responses: new generations here at once, then in the store before the writer's response
//! is released, or later when the store is away.

use std::sync::Arc;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, RedisResult, cmd};

use super::gateway::Shared;
use crate::cache::generations::Write;
use crate::clock::millis;
use crate::redis::{Lane, Store};

/// Generations handed over in one go on recovery.
const BATCH: usize = 1_000;

impl Shared {
    /// Makes everything stored under `tags` unreachable, on every instance once this returns `true`.
    pub async fn invalidate(&self, tags: Vec<Box<str>>) -> bool {
        let writes = self.cache.generations().invalidate(tags);
        let Some(store) = &self.store else { return true };
        if writes.is_empty() {
            return true;
        }
        if !store.available() {
            store.hand_over_soon();
            return false;
        }
        let commands: Vec<Cmd> = writes.iter().map(|write| command(write, false)).collect();
        let calls = commands.iter().map(|command| store.call(Lane::Decisions, command));
        let outcomes = futures::future::join_all(calls).await;
        let mut all = true;
        let mut settled = Vec::with_capacity(writes.len());
        for (write, outcome) in writes.into_iter().zip(outcomes) {
            if outcome.is_ok() {
                settled.push(write);
            } else {
                all = false;
            }
        }
        self.cache.generations().settle(&settled);
        if !all {
            // Until then this instance alone knows that the old entries are dead.
            store.hand_over_soon();
        }
        all
    }

    /// Gives a new store its epoch before a request asks for it: that request would have to go past the cache.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn begin_epoch(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        command(&self.cache.generations().first_epoch(), true).exec_async(connection).await
    }

    /// Hands invalidations made during an outage to the store. What cannot be written stays pending.
    pub(super) async fn hand_over_invalidations(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<()> {
        let writes = self.cache.generations().pending();
        for batch in writes.chunks(BATCH) {
            let mut pipeline = ::redis::pipe();
            for write in batch {
                pipeline.add_command(command(write, false)).ignore();
            }
            pipeline.exec_async(connection).await?;
        }
        self.cache.generations().settle(&writes);
        Ok(())
    }
}

/// Gives a new or flushed store an epoch, in the background: the request that noticed goes past the cache.
pub(super) fn create_epoch(store: Arc<Store>, write: Write) {
    tokio::spawn(async move {
        // Another instance may be first, or the store may fail: then the next request notices again.
        let _ = store.call(Lane::Decisions, &command(&write, true)).await;
    });
}

fn command(write: &Write, only_if_absent: bool) -> Cmd {
    let mut command = cmd("SET");
    command.arg(&*write.key).arg(&*write.value);
    if only_if_absent {
        command.arg("NX");
    }
    if let Some(ttl) = write.ttl {
        command.arg("PX").arg(millis(ttl).max(1));
    }
    command
}
