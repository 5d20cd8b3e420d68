//! The shared tier of the response cache, on Redis. It moves bytes and claims; what they mean is the cache's business.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::{Value, cmd};
use async_trait::async_trait;
use bytes::Bytes;
use prometheus::IntCounter;

use crate::cache::remote::{Claim, Claimed, RemoteTier, Waited};
use crate::clock::millis;
use crate::metrics::Metrics;
use crate::redis::{Lane, Script, Store, Unavailable};

/// A write nobody waits for may take this long.
const WRITE_TIME: Duration = Duration::from_secs(1);

/// How often a claim is given back while Redis does not answer, and how long after each other.
const RELEASE_ATTEMPTS: u32 = 4;
const RELEASE_PAUSE: Duration = Duration::from_millis(500);

static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../redis/scripts/claim.lua")));
static RELEASE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../redis/scripts/release.lua")));

/// Redis as the cache's shared tier.
pub(super) struct RedisTier {
    store: Arc<Store>,
    /// It refused the last entry that it was given.
    refusing: AtomicBool,
    waits: IntCounter,
    given_up: IntCounter,
}

impl RedisTier {
    pub(super) fn new(store: Arc<Store>, metrics: &Metrics) -> Self {
        let families = metrics.families();
        Self {
            store,
            refusing: AtomicBool::new(false),
            waits: families.cache_waits.clone(),
            given_up: families.cache_waits_given_up.clone(),
        }
    }

    /// Tells operators, once per transition, whether entries are taken. An outage is told by the store.
    fn note(&self, written: &Result<Value, Unavailable>) {
        match written {
            Ok(_) if self.refusing.swap(false, Ordering::Relaxed) => {
                tracing::warn!("Redis takes cached responses again");
            }
            Err(cause @ (Unavailable::Refusing | Unavailable::NotPermitted | Unavailable::Rejected))
                if !self.refusing.swap(true, Ordering::Relaxed) =>
            {
                tracing::warn!(%cause, "Redis refuses cached responses: they stay in memory, and are offered now and then");
            }
            _ => {}
        }
    }
}

#[async_trait]
impl RemoteTier for RedisTier {
    async fn get(&self, key: &str) -> Option<Bytes> {
        let mut command = cmd("GET");
        command.arg(key);
        match self.store.call(Lane::Bodies, self.store.shard(key.as_bytes()), &command).await {
            Ok(Value::BulkString(bytes)) => Some(Bytes::from(bytes)),
            _ => None,
        }
    }

    async fn put(&self, key: &str, value: Bytes, ttl: Duration) -> bool {
        let mut command = cmd("SET");
        command.arg(key).arg(&*value).arg("PX").arg(millis(ttl).max(1));
        // It is in the command now.
        drop(value);
        let shard = self.store.shard(key.as_bytes());
        let written = self.store.call_aside(WRITE_TIME, Lane::Bodies, shard, &command).await;
        self.note(&written);
        written.is_ok()
    }

    async fn delete(&self, key: &str) {
        let mut command = cmd("UNLINK");
        command.arg(key);
        // Best effort: the entry is unreachable already and goes with its TTL.
        let shard = self.store.shard(key.as_bytes());
        let _ = self.store.call_aside(WRITE_TIME, Lane::Bodies, shard, &command).await;
    }

    async fn get_or_claim(&self, key: &str, claim: Claim<'_>) -> Claimed {
        // The claim's name has this key in braces, and no key has braces of its own.
        let shard = self.store.shard(key.as_bytes());
        let mut command = CLAIM.command();
        command.arg(2).arg(key).arg(claim.name).arg(claim.holder).arg(millis(claim.hold).max(1));
        let deadline = self.store.settings().deadline;
        match self.store.eval_aside(deadline, Lane::Bodies, shard, &CLAIM, &command).await {
            Ok(Value::BulkString(bytes)) => Claimed::Found(Bytes::from(bytes)),
            Ok(Value::Int(1)) => Claimed::Won,
            Ok(Value::Int(0)) => Claimed::Taken,
            Ok(_) => Claimed::Open,
            Err(Unavailable::DeadlinePassed | Unavailable::ConnectionLost) => Claimed::Unknown,
            Err(_) => Claimed::Away,
        }
    }

    async fn release(&self, claim: Claim<'_>, unshared: Option<Duration>) {
        let mut command = RELEASE.command();
        command.arg(1).arg(claim.name).arg(claim.holder).arg(unshared.map_or(0, millis));
        let shard = self.store.shard(claim.name.as_bytes());
        // Best effort, for it ends by itself; but until then others wait in vain.
        for _ in 0..RELEASE_ATTEMPTS {
            if self.store.eval_aside(WRITE_TIME, Lane::Bodies, shard, &RELEASE, &command).await.is_ok() {
                return;
            }
            tokio::time::sleep(RELEASE_PAUSE).await;
        }
    }

    fn waited(&self, waited: Waited) {
        match waited {
            Waited::Request => self.waits.inc(),
            Waited::GivenUp => self.given_up.inc(),
        }
    }
}
