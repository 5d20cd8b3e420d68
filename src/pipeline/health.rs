//! How the gateway is: what operators ask of the admin listener, and what a route with `health` tells. It decides
//! nothing, and a request never waits for Redis here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ::redis::{Value, cmd};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use serde::Serialize;

use super::gateway::{Gateway, Shared};
use super::reply::Reply;
use crate::cache::room::{FULL, Turn};
use crate::clock::UnixMillis;
use crate::metrics::CacheOutcome;
use crate::redis::{Answer, FailureKind, Lane, Store};
use crate::route::HealthDetail;
use crate::upstream::Upstream;

/// What is waited for each answer of Redis.
const PATIENCE: Duration = Duration::from_millis(500);
/// Pause between two looks at Redis in the background.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The same while it does not answer, so that a start is noticed soon.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The answer in one word. A gateway that lost Redis still does its work, so it is degraded and not down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Everything works.
    Ok,
    /// Requests are served, something behind the gateway is missing.
    Degraded,
}

/// The body of `/health`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Health {
    /// The answer in one word.
    pub status: HealthStatus,
    /// The version of Tollgate.
    pub version: &'static str,
    /// Whole seconds since the start.
    pub uptime_seconds: u64,
    /// The shared store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisHealth>,
    /// The response cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheHealth>,
    /// Client connections that carry a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_connections: Option<u64>,
    /// Requests being answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
    /// The upstreams of the configuration.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<UpstreamHealth>,
}

impl Health {
    /// The health without anything that describes the inside.
    #[must_use]
    pub fn brief(mut self) -> Self {
        self.redis = None;
        self.cache = None;
        self.active_connections = None;
        self.in_flight = None;
        self.upstreams = Vec::new();
        self
    }
}

/// Whether Redis can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RedisStatus {
    /// It answers.
    Connected,
    /// It is configured and does not answer: limits are counted in memory.
    Disconnected,
    /// The configuration names none.
    Disabled,
}

/// The shared store.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RedisHealth {
    /// Whether it can be used.
    pub status: RedisStatus,
    /// Milliseconds of the last round trip.
    pub latency_ms: Option<f64>,
    /// Bytes it uses (`used_memory`).
    pub memory_bytes: Option<u64>,
    /// Keys in the selected database (`DBSIZE`).
    pub keys: Option<u64>,
}

/// The response cache of this instance.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CacheHealth {
    /// Entries in memory.
    pub entries: u64,
    /// Bytes in memory.
    pub bytes: u64,
    /// Hits by hits and misses since the start, 0 to 1; absent before the first lookup.
    pub hit_ratio: Option<f64>,
}

/// One upstream of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UpstreamHealth {
    /// Its name.
    pub name: Box<str>,
    /// Members configured.
    pub members: u32,
    /// Members that may be asked now.
    pub available: u32,
}

/// What is known of the gateway's own state beside its counters.
#[derive(Debug)]
pub struct Vitals {
    started_at: UnixMillis,
    /// The last look at Redis; `None` before the first.
    redis: ArcSwapOption<RedisHealth>,
}

/// What a node of the store says of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NodeMemory {
    used: u64,
    /// `maxmemory`; `None`: it may use what there is.
    most: Option<u64>,
}

/// How closely Redis is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Detail {
    /// Whether it answers.
    Reached,
    /// And how much memory it uses.
    Memory,
    /// And how many keys it has.
    Full,
}

/// What a look at Redis found.
struct Look {
    health: RedisHealth,
    /// Of each node that may be asked; `None` when one did not answer.
    memory: Option<Vec<NodeMemory>>,
}

impl Vitals {
    /// Of a gateway that starts now.
    pub fn new(started_at: UnixMillis) -> Self {
        Self { started_at, redis: ArcSwapOption::const_empty() }
    }
}

impl RedisHealth {
    /// Nothing is known but this.
    const fn only(status: RedisStatus) -> Self {
        Self { status, latency_ms: None, memory_bytes: None, keys: None }
    }
}

impl Gateway {
    /// The state of the gateway; Redis is asked. Without `detail` it is asked only whether it answers.
    pub async fn health(&self, detail: bool) -> Health {
        let redis = match &self.shared.store {
            None => RedisHealth::only(RedisStatus::Disabled),
            Some(store) => look_at(store, if detail { Detail::Full } else { Detail::Reached }).await.health,
        };
        self.health_with(redis)
    }

    /// The answer of a route that tells it. Nobody is asked: Redis is as [`watch`] saw it last.
    pub fn health_reply(&self, detail: HealthDetail) -> Reply {
        let seen = self.shared.vitals.redis.load();
        let redis = match (&self.shared.store, &*seen) {
            (None, _) => RedisHealth::only(RedisStatus::Disabled),
            (Some(store), _) if store.degraded() => RedisHealth::only(RedisStatus::Disconnected),
            (Some(_), Some(seen)) => (**seen).clone(),
            (Some(store), None) if store.available_everywhere() => RedisHealth::only(RedisStatus::Connected),
            (Some(_), None) => RedisHealth::only(RedisStatus::Disconnected),
        };
        let health = self.health_with(redis);
        let health = match detail {
            HealthDetail::Brief => health.brief(),
            HealthDetail::Full => health,
        };
        Reply {
            status: StatusCode::OK,
            headers: vec![
                (CONTENT_TYPE, HeaderValue::from_static("application/json")),
                (CACHE_CONTROL, HeaderValue::from_static("no-store")),
            ],
            // Serialising strings and numbers cannot fail.
            body: Bytes::from(serde_json::to_vec(&health).unwrap_or_default()),
        }
    }

    fn health_with(&self, redis: RedisHealth) -> Health {
        let (shared, now) = (&*self.shared, self.shared.clock.now());
        let families = shared.metrics.families();
        let status =
            if redis.status == RedisStatus::Disconnected { HealthStatus::Degraded } else { HealthStatus::Ok };
        let count = |value: i64| u64::try_from(value).unwrap_or(0);
        Health {
            status,
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: now.millis_since(shared.vitals.started_at) / 1_000,
            redis: Some(redis),
            cache: Some(self.cache_health()),
            active_connections: Some(count(families.active_connections.get())),
            in_flight: Some(count(families.requests_in_flight.get())),
            upstreams: self.upstreams.iter().map(|upstream| upstream_health(upstream, now)).collect(),
        }
    }

    fn cache_health(&self) -> CacheHealth {
        use CacheOutcome::{Coalesced, Hit, Miss, Revalidated, Stale};
        let tiers = self.shared.cache.tiers();
        let sum = |outcomes: &[CacheOutcome]| -> u64 {
            let routes = self.table.values().map(|(_, route)| &route.metrics.cache);
            routes.map(|cache| outcomes.iter().map(|outcome| cache.value(*outcome)).sum::<u64>()).sum()
        };
        let (hits, misses) = (sum(&[Hit, Stale, Coalesced]), sum(&[Miss, Revalidated]));
        #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
        let hit_ratio = (hits + misses > 0).then(|| hits as f64 / (hits + misses) as f64);
        CacheHealth { entries: tiers.memory_entries() as u64, bytes: tiers.memory_bytes(), hit_ratio }
    }
}

/// Looks at Redis now and then: for the routes that tell of it, if there are any (`tells`), and to see how much room it
/// has for cached responses.
pub async fn watch(shared: Arc<Shared>, tells: bool) {
    let Some(store) = &shared.store else { return };
    loop {
        let Look { health, memory } = look_at(store, if tells { Detail::Full } else { Detail::Memory }).await;
        let connected = health.status == RedisStatus::Connected;
        if let Some((room, memory)) = shared.cache.tiers().room().zip(memory) {
            let instances = shared.instances.load(Ordering::Relaxed);
            let turn =
                room.seen(memory.into_iter().filter_map(|node| Some((node.used, node.most?))), instances);
            match turn {
                Some(Turn::Full) => tracing::warn!(
                    "Redis uses more than {FULL} % of its maxmemory: cached responses stay in memory for now"
                ),
                Some(Turn::Open) => tracing::warn!("Redis has room for cached responses again"),
                None => {}
            }
        }
        shared.vitals.redis.store(Some(Arc::new(health)));
        tokio::time::sleep(if connected { LOOK_EVERY } else { LOOK_AGAIN }).await;
    }
}

async fn look_at(store: &Store, detail: Detail) -> Look {
    // In a cluster it is connected when all of its nodes are, and as slow as the slowest.
    let answers = store.ask_all(PATIENCE, Lane::Bodies, &cmd("PING")).await;
    if answers.iter().any(|answer| answer.outcome.is_err()) {
        return Look { health: RedisHealth::only(RedisStatus::Disconnected), memory: None };
    }
    let slowest = answers.iter().map(|answer| answer.elapsed).max();
    let latency_ms = slowest.map(rounded_millis);
    let mut health = RedisHealth { latency_ms, ..RedisHealth::only(RedisStatus::Connected) };
    let mut memory = None;
    if detail >= Detail::Memory {
        let mut info = cmd("INFO");
        info.arg("memory");
        // Who may not ask is none the worse for it.
        let answers = store.ask_all_aside(PATIENCE, Lane::Bodies, &info).await;
        let silent =
            |answer: &Answer| answer.outcome.as_ref().is_err_and(|why| why.kind() != FailureKind::Reply);
        let is_told = !answers.iter().any(silent);
        let told = answers.into_iter().map(|answer| node_memory(answer.outcome.ok()?));
        let told: Vec<Option<NodeMemory>> = told.collect();
        health.memory_bytes = told.iter().map(|node| Some((*node)?.used)).sum();
        memory = is_told.then(|| told.into_iter().flatten().collect());
    }
    if detail >= Detail::Full {
        let answers = store.ask_all_aside(PATIENCE, Lane::Bodies, &cmd("DBSIZE")).await;
        health.keys = answers
            .into_iter()
            .map(|answer| match answer.outcome {
                Ok(Value::Int(keys)) => u64::try_from(keys).ok(),
                _ => None,
            })
            .sum();
    }
    Look { health, memory }
}

/// Milliseconds with two decimals: more are noise.
fn rounded_millis(elapsed: Duration) -> f64 {
    (elapsed.as_secs_f64() * 100_000.0).round() / 100.0
}

/// `used_memory` and `maxmemory` in the answer to `INFO memory`.
fn node_memory(answer: Value) -> Option<NodeMemory> {
    let Value::BulkString(text) = answer else { return None };
    let text = String::from_utf8_lossy(&text);
    let field = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?.trim().parse().ok()
    };
    Some(NodeMemory { used: field("used_memory")?, most: field("maxmemory").filter(|most| *most > 0) })
}

fn upstream_health(upstream: &Upstream, now: UnixMillis) -> UpstreamHealth {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    UpstreamHealth {
        name: upstream.settings().name.clone(),
        members: count(upstream.settings().members.len()),
        available: count(upstream.available(now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_node_is_read_with_its_bound() {
        let info = |text: &str| node_memory(Value::BulkString(text.as_bytes().to_vec()));
        let text = "# Memory\r\nused_memory:1048576\r\nused_memory_human:1.00M\r\nmaxmemory:8388608\r\n";
        assert_eq!(info(text), Some(NodeMemory { used: 1_048_576, most: Some(8_388_608) }));
        assert_eq!(info("used_memory:7\r\nmaxmemory:0\r\n"), Some(NodeMemory { used: 7, most: None }));
        assert_eq!(info("used_memory:7\r\n"), Some(NodeMemory { used: 7, most: None }));
        assert_eq!((info("maxmemory:7\r\n"), node_memory(Value::Nil)), (None, None));
    }

    #[test]
    fn latency_is_told_with_two_decimals() {
        assert_eq!(rounded_millis(Duration::from_nanos(844_676)).to_string(), "0.84");
        assert_eq!(rounded_millis(Duration::from_micros(12_345)).to_string(), "12.35");
        assert_eq!(rounded_millis(Duration::from_nanos(900)).to_string(), "0");
    }
}
