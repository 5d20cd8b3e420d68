//! The shared tier as the cache sees it: bytes under a key, best effort, never awaited by a client's response.
//! It bounds what is under way and counts what is dropped; the connection is somebody else's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::cache::{CacheKey, key::CacheHashKey};
use tokio::sync::Semaphore;

use super::entry::{Entry, Rejected, Secret};
use super::settings::Settings;
use super::storage::budget::{Budget, allocated};
use crate::clock::UnixMillis;

/// A store that all instances share. Every call is best effort: absence and failure look the same.
#[async_trait]
pub trait RemoteTier: Send + Sync + 'static {
    /// The value of `key`; the caller waits no longer than `Settings::remote_deadline`.
    async fn get(&self, key: &str) -> Option<Bytes>;
    /// Sets `key` for `ttl`; `false` when it did not work.
    async fn put(&self, key: &str, value: Bytes, ttl: Duration) -> bool;
    /// Deletes `key`.
    async fn delete(&self, key: &str);
}

/// What happened in the shared tier since the start.
#[derive(Debug, Default)]
pub struct RemoteCounters {
    /// Lookups that found a usable entry.
    pub hits: AtomicU64,
    /// Lookups that found nothing.
    pub misses: AtomicU64,
    /// Lookups given up at the deadline.
    pub timeouts: AtomicU64,
    /// Entries found but damaged, forged, misfiled or outlived.
    pub rejected: AtomicU64,
    /// Entries written.
    pub writes: AtomicU64,
    /// Writes that failed.
    pub write_failures: AtomicU64,
    /// Writes dropped because too many were under way.
    pub dropped: AtomicU64,
}

/// The shared tier with its bounds.
pub(super) struct Remote {
    tier: Arc<dyn RemoteTier>,
    in_flight: Arc<Semaphore>,
    counters: Arc<RemoteCounters>,
    secret: Arc<Secret>,
    prefix: Box<str>,
    deadline: Duration,
    max_object_bytes: usize,
    max_lifetime: Duration,
}

impl Remote {
    pub(super) fn new(settings: &Settings, tier: Arc<dyn RemoteTier>) -> Self {
        Self {
            tier,
            in_flight: Arc::new(Semaphore::new(settings.remote_writes_in_flight)),
            counters: Arc::default(),
            secret: Arc::new(Secret::new(settings.remote_secret.as_deref())),
            prefix: settings.key_prefix.clone(),
            deadline: settings.remote_deadline,
            max_object_bytes: settings.remote_max_object_bytes,
            max_lifetime: settings.max_lifetime,
        }
    }

    pub(super) fn counters(&self) -> &RemoteCounters {
        &self.counters
    }

    /// The entry of `key`, unless there is none, it is not credible, or the deadline passes.
    pub(super) async fn get(&self, key: &CacheKey, now: UnixMillis) -> Option<Entry> {
        let name = self.key(&key.combined());
        let count = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let Ok(found) = tokio::time::timeout(self.deadline, self.tier.get(&name)).await else {
            count(&self.counters.timeouts);
            return None;
        };
        let Some(bytes) = found else {
            count(&self.counters.misses);
            return None;
        };
        match Entry::decode(&bytes, key, &self.secret, now, self.max_lifetime) {
            Ok(entry) => {
                count(&self.counters.hits);
                Some(entry)
            }
            // Only past its life by a moment: nothing to be alarmed about.
            Err(Rejected::Lifetime) => {
                count(&self.counters.misses);
                None
            }
            Err(Rejected::Authenticity | Rejected::Malformed | Rejected::WrongKey) => {
                count(&self.counters.rejected);
                None
            }
        }
    }

    /// Writes `entry` in the background, or drops it when it is too big or too much is under way.
    pub(super) fn put(&self, key: &CacheKey, entry: &Arc<Entry>, budget: &Arc<Budget>, now: UnixMillis) {
        let ttl = Duration::from_millis(entry.keep_until().millis_since(now));
        if entry.body().len() > self.max_object_bytes || ttl.is_zero() {
            return;
        }
        let permit = Arc::clone(&self.in_flight).try_acquire_owned().ok();
        let Some(paid) = permit.zip(budget.charge(allocated(entry.encoded_length()))) else {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (tier, counters, secret) =
            (Arc::clone(&self.tier), Arc::clone(&self.counters), Arc::clone(&self.secret));
        let (name, entry) = (self.key(&key.combined()), Arc::clone(entry));
        tokio::spawn(async move {
            let written = tier.put(&name, entry.encode(&secret), ttl).await;
            let counter = if written { &counters.writes } else { &counters.write_failures };
            counter.fetch_add(1, Ordering::Relaxed);
            drop(paid);
        });
    }

    /// Deletes the entry with the combined hash `hash` (hexadecimal) in the background.
    pub(super) fn delete(&self, hash: &str) {
        let (tier, name) = (Arc::clone(&self.tier), self.key(hash));
        tokio::spawn(async move { tier.delete(&name).await });
    }

    fn key(&self, hash: &str) -> String {
        let mut key = String::with_capacity(self.prefix.len() + 6 + hash.len());
        key.push_str(&self.prefix);
        key.push_str("cache:");
        key.push_str(hash);
        key
    }
}
