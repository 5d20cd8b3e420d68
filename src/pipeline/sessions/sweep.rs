//! Now and then all sessions are looked through, by one instance at a time: those that have ended, or whose tokens are
//! revoked, are taken out of the values they stand in, and those that live are counted.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Value, cmd, from_redis_value};
use bytes::Bytes;

use super::super::gateway::Shared;
use super::super::recovery::escape_glob;
use super::stored::{self, NotChanged};
use crate::clock::millis;
use crate::redis::{Lane, Store};
use crate::sessions::Record;

/// The key, after the prefix, that the instance at work holds; its value is what the last one counted.
const LOCK: &str = "tollgate:session_sweep";
/// Keys that the store looks at in one step.
const SCAN_COUNT: usize = 500;
/// For what no request waits for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Before the first sweep, and between attempts while nothing can be said.
const SOON: Duration = Duration::from_secs(10);

/// Sweeps every `interval`, the first time soon. Runs until the process ends.
pub async fn sweep_sessions(shared: Arc<Shared>, interval: Duration) {
    let soon = interval.min(SOON);
    let mut pause = soon;
    loop {
        tokio::time::sleep(pause).await;
        let live = shared.sweep_once(interval).await;
        if let Some(live) = live {
            shared.metrics.families().sessions_live.set(i64::try_from(live).unwrap_or(i64::MAX));
        }
        // Without an answer the store is away, or somebody else is still at it.
        pause = if live.is_some() { interval } else { soon };
    }
}

impl Shared {
    /// Returns how many sessions live, where that can be said.
    async fn sweep_once(&self, interval: Duration) -> Option<usize> {
        let now = self.clock.now();
        let here = self.sessions.local.sweep(now, |token| self.is_token_revoked(token, now));
        let Some(store) = &self.store else { return Some(here) };
        let lock = format!("{}{LOCK}", store.settings().key_prefix);
        // The next sweep finds it gone, the other instances' sweeps until then do not.
        let held_for = millis(interval.mul_f64(0.9)).max(1);
        let mut take = cmd("SET");
        take.arg(&lock).arg("-").arg("NX").arg("PX").arg(held_for);
        let shard = store.shard(lock.as_bytes());
        if store.call_within(PATIENCE, Lane::Bodies, shard, &take).await.ok()? != Value::Okay {
            // Somebody else does it, or has done it and says what it found.
            let told = store.call_within(PATIENCE, Lane::Bodies, shard, &stored::get(&lock)).await.ok()?;
            return from_redis_value::<String>(told).ok()?.parse().ok();
        }
        let live = self.sweep_store(store).await?;
        let mut tell = cmd("SET");
        tell.arg(&lock).arg(live).arg("XX").arg("KEEPTTL");
        let _ = store.call_within(PATIENCE, Lane::Bodies, shard, &tell).await;
        tracing::debug!(live, "sessions were swept");
        Some(live)
    }

    async fn sweep_store(&self, store: &Arc<Store>) -> Option<usize> {
        let pattern = format!("{}session:*", escape_glob(&store.settings().key_prefix));
        let mut keys = store.scan(pattern, SCAN_COUNT);
        let mut live = 0;
        while let Some(page) = keys.next().await {
            for key in page.ok()? {
                // A key that is none of ours is no text.
                let Ok(key) = String::from_utf8(key) else { continue };
                live += self.sweep_key(store, &key).await.ok()?;
            }
        }
        Some(live)
    }

    async fn sweep_key(&self, store: &Store, key: &str) -> Result<usize, NotChanged> {
        let value: Bytes = match stored::read(store, key).await {
            Err(NotChanged::Refused) => return Ok(0),
            read => read?,
        };
        let now = self.clock.now();
        let let_go = |record: &mut Record| {
            record.prune(now);
            // Whoever revoked the token may not have known whose it was.
            record.let_go(|token| self.is_token_revoked(token, now));
            record.sessions().len()
        };
        let mut record = Record::parse(&value);
        let before = record.sessions().len();
        if let_go(&mut record) == before {
            return Ok(before);
        }
        self.change_sessions(key, &value, let_go).await
    }
}
