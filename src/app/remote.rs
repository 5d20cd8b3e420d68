//! The shared tier of the response cache, on Redis. It moves bytes; what they mean is the cache's business.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Value, cmd};
use async_trait::async_trait;
use bytes::Bytes;

use crate::cache::remote::RemoteTier;
use crate::clock::millis;
use crate::redis::{Lane, Store};

/// A write nobody waits for may take this long.
const WRITE_TIME: Duration = Duration::from_secs(1);

/// Redis as the cache's shared tier.
pub(super) struct RedisTier(pub(super) Arc<Store>);

#[async_trait]
impl RemoteTier for RedisTier {
    async fn get(&self, key: &str) -> Option<Bytes> {
        let mut command = cmd("GET");
        command.arg(key);
        match self.0.call(Lane::Bodies, self.0.shard(key.as_bytes()), &command).await {
            Ok(Value::BulkString(bytes)) => Some(Bytes::from(bytes)),
            _ => None,
        }
    }

    async fn put(&self, key: &str, value: Bytes, ttl: Duration) -> bool {
        let mut command = cmd("SET");
        command.arg(key).arg(&*value).arg("PX").arg(millis(ttl).max(1));
        let shard = self.0.shard(key.as_bytes());
        self.0.call_within(WRITE_TIME, Lane::Bodies, shard, &command).await.is_ok()
    }

    async fn delete(&self, key: &str) {
        let mut command = cmd("UNLINK");
        command.arg(key);
        // Best effort: the entry is unreachable already and goes with its TTL.
        let shard = self.0.shard(key.as_bytes());
        let _ = self.0.call_within(WRITE_TIME, Lane::Bodies, shard, &command).await;
    }
}
