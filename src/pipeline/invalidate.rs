//! Invalidating cached responses: new generations here at once, then in the store before the writer's response
//! is released, or later when the store is away.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, RedisResult, cmd};

use super::gateway::Shared;
use crate::cache::generations::Write;
use crate::clock::millis;
use crate::redis::{Lane, Link};

/// Generations handed over in one go on recovery.
const BATCH: usize = 1_000;
/// A write nobody waits for may take this long.
const PATIENCE: Duration = Duration::from_secs(1);

impl Shared {
    /// Makes everything stored under `tags` unreachable, on every instance once this returns `true`.
    pub async fn invalidate(&self, tags: Vec<Box<str>>) -> bool {
        self.invalidate_within(tags, None).await
    }

    /// As [`Self::invalidate`]; the store is given at least this time to answer, where no client waits.
    pub async fn invalidate_within(&self, tags: Vec<Box<str>>, patience: Option<Duration>) -> bool {
        let writes = self.cache.generations().invalidate(tags);
        let Some(store) = &self.store else { return true };
        if writes.is_empty() {
            return true;
        }
        let commands: Vec<Cmd> = writes.iter().map(|write| command(write, false)).collect();
        // A call to a node that is away ends at once.
        let deadline = store.deadline(patience);
        let calls = writes.iter().zip(&commands).map(|(write, command)| {
            store.call_within(deadline, Lane::Decisions, store.shard(write.key.as_bytes()), command)
        });
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

    /// Gives tags that the store knows nothing of a generation, in the background.
    pub fn create_generations(&self, writes: Vec<Write>) {
        let Some(store) = self.store.as_ref().filter(|_| !writes.is_empty()).map(Arc::clone) else { return };
        tokio::spawn(async move {
            let commands: Vec<Cmd> = writes.iter().map(|write| command(write, true)).collect();
            // Another instance may be first, or the store may fail: then somebody fetches once more.
            let calls = writes.iter().zip(&commands).map(|(write, command)| {
                let shard = store.shard(write.key.as_bytes());
                store.call_within(PATIENCE, Lane::Decisions, shard, command)
            });
            futures::future::join_all(calls).await;
        });
    }

    /// Hands invalidations made during an outage, as far as they live on this node, to it. What cannot be written
    /// stays pending.
    pub(super) async fn hand_over_invalidations(&self, link: &mut Link<'_>) -> RedisResult<()> {
        let mut writes = self.cache.generations().pending();
        writes.retain(|write| link.holds(write.key.as_bytes()));
        for batch in writes.chunks(BATCH) {
            let commands: Vec<Cmd> = batch.iter().map(|write| command(write, false)).collect();
            let executed = link.send(&commands).await?;
            let written = batch.iter().zip(executed).filter(|(_, executed)| *executed);
            let settled: Vec<Write> = written.map(|(write, _)| write.clone()).collect();
            self.cache.generations().settle(&settled);
        }
        Ok(())
    }
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
