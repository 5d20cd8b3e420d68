//! Everything Tollgate counts, in one registry of its own, and the handles through which other floors count.
//! Labels come from closed sets and from names in the configuration, never from a request.

mod handles;
mod instrument;
mod labels;
mod process;

use std::fmt::Write as _;

use parking_lot::Mutex;
use prometheus::{IntCounter, Registry, TextEncoder};

pub use handles::{
    Counters, ExchangeMetrics, Grid, Held, JwksMetrics, PolicyMetrics, RouteMetrics, StoreMetrics,
    UpstreamMetrics,
};
pub use instrument::Described;
pub use labels::{
    CacheOutcome, CacheTier, ExchangePath, JwksFetch, Label, LimitOutcome, LimitSource, MethodClass,
    RefundResult, RemoteOutcome, RevocationKind, SessionEvent, StatusClass, StoreFailure, StoreState,
    UpstreamFailure, WarmOutcome,
};
pub use process::ProcessReading;

use crate::clock::UnixMillis;
use instrument::{Instrument, families};

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

families! {
    /// The metric families; each doc comment is the help text operators read.
    pub struct Families {
        /// Requests answered, by route, method class (read, write, other) and status class.
        requests: IntCounterVec = "tollgate_requests_total" ["route", "method", "status"],
        /// Time from the request head to the end of the answer.
        request_duration: HistogramVec = "tollgate_request_duration_seconds" ["route"],
        /// Requests being answered now.
        requests_in_flight: IntGauge = "tollgate_requests_in_flight" [],
        /// Client connections open now, idle ones included.
        active_connections: IntGauge = "tollgate_active_connections" [],
        /// Requests answered by the gateway itself instead of being forwarded, by reason.
        refusals: IntCounterVec = "tollgate_refusals_total" ["reason"],
        /// Outcomes of looking for and verifying a credential.
        auth: IntCounterVec = "tollgate_auth_total" ["outcome"],
        /// Decisions of a limit policy, and where the counter was read: the shared store, this process, or a refusal already known.
        limit_decisions: IntCounterVec = "tollgate_limit_decisions_total" ["policy", "decision", "source"],
        /// Time from choosing an upstream member to the head of its answer.
        upstream_duration: HistogramVec = "tollgate_upstream_duration_seconds" ["upstream"],
        /// Failures of talking to an upstream, by kind; a failed attempt that was retried counts too.
        upstream_errors: IntCounterVec = "tollgate_upstream_errors_total" ["upstream", "kind"],
        /// What the response cache did, by route.
        cache: IntCounterVec = "tollgate_cache_total" ["route", "outcome"],
        /// Requests that waited for another instance to fetch what they asked for.
        cache_waits: IntCounter = "tollgate_cache_waits_total" [],
        /// Lookups, each perhaps for several requests, that waited for another instance in vain and fetched themselves.
        cache_waits_given_up: IntCounter = "tollgate_cache_waits_given_up_total" [],
        /// Responses served from the cache, stale ones included, by the tier that had them.
        cache_hits: IntCounterVec = "tollgate_cache_hits_total" ["tier"],
        /// Responses of routes with a cache that were not stored, by reason.
        cache_not_stored: IntCounterVec = "tollgate_cache_not_stored_total" ["reason"],
        /// Lookups and writes of cached responses in Redis, by what came of them.
        cache_redis: IntCounterVec = "tollgate_cache_redis_total" ["outcome"],
        /// Entries that left the memory tier of the response cache, or never got into it, for want of room.
        cache_evicted: IntCounter = "tollgate_cache_evicted_total" [],
        /// Tags and prefixes whose cached responses were dropped by this instance: by writes, logouts and operators.
        cache_invalidations: IntCounter = "tollgate_cache_invalidations_total" [],
        /// Looks after responses that are kept warm, by route and what came of them.
        cache_warm: IntCounterVec = "tollgate_cache_warm_total" ["route", "outcome"],
        /// Bytes held by the memory tier of the response cache.
        cache_bytes: IntGauge = "tollgate_cache_bytes" [],
        /// Entries held by the memory tier of the response cache.
        cache_entries: IntGauge = "tollgate_cache_entries" [],
        /// Time of one exchange with the shared store, failed ones included.
        store_duration: Histogram = "tollgate_store_duration_seconds" [],
        /// Exchanges with the shared store that failed, by kind.
        store_errors: IntCounterVec = "tollgate_store_errors_total" ["kind"],
        /// Questions to the shared store, by what carried them: the script, plain counts, or a plain read.
        exchanges: IntCounterVec = "tollgate_exchanges_total" ["path"],
        /// Requests that waited for another's question and were asked together with others.
        coalesced: IntCounter = "tollgate_exchange_coalesced_requests_total" [],
        /// Questions that were asked for requests that had waited.
        merged: IntCounter = "tollgate_exchange_merged_questions_total" [],
        /// Counts taken back because the request was not let through after all; lost ones stay counted.
        refunds: IntCounterVec = "tollgate_limit_refunds_total" ["result"],
        /// Leases taken from large limits.
        leases: IntCounter = "tollgate_limit_leases_total" [],
        /// Counters passed by spending from a lease, without asking.
        lease_spent: IntCounter = "tollgate_limit_lease_spent_total" [],
        /// 1 while the shared store is away and limits are counted in memory, else 0.
        store_degraded: IntGauge = "tollgate_store_degraded" [],
        /// Changes between shared counting (healthy) and counting in memory (degraded).
        store_transitions: IntCounterVec = "tollgate_store_transitions_total" ["to"],
        /// Instances that count in the shared store, this one included, when it was last asked.
        instances: IntGauge = "tollgate_instances" [],
        /// Successful answers of login routes that opened no session, by route and reason.
        not_opened: IntCounterVec = "tollgate_sessions_not_opened_total" ["route", "reason"],
        /// Revocations made by this instance, by kind.
        revocations: IntCounterVec = "tollgate_revocations_total" ["kind"],
        /// Revocations this instance remembers and enforces without the store.
        revocations_known: IntGauge = "tollgate_revocations_known" [],
        /// Sessions, by what happened to them at this instance.
        sessions: IntCounterVec = "tollgate_sessions_total" ["event"],
        /// Changes of sessions made while Redis was away that it will not get, for want of room.
        sessions_dropped: IntCounter = "tollgate_sessions_dropped_total" [],
        /// Live sessions of all users, counted by the last sweep.
        sessions_live: IntGauge = "tollgate_sessions_live" [],
        /// Revocations that the store has not got yet; they end with the process if it ends first.
        revocations_pending: IntGauge = "tollgate_revocations_pending" [],
        /// Revocations given up before their end for want of room: they hold only where the store is asked, or nowhere.
        revocations_dropped: IntCounter = "tollgate_revocations_dropped_total" [],
        /// Tokens remembered as verified; their signatures are not checked again.
        tokens_remembered: IntGauge = "tollgate_tokens_remembered" [],
        /// Reads of the keys that an issuer publishes, by what came of them.
        jwks_fetches: IntCounterVec = "tollgate_jwks_fetches_total" ["issuer", "result"],
        /// Published keys of an issuer that verify tokens now.
        jwks_keys: IntGaugeVec = "tollgate_jwks_keys" ["issuer"],
        /// When the keys of an issuer were last read with success, in seconds since the Unix epoch; 0: never.
        jwks_last_success: IntGaugeVec = "tollgate_jwks_last_success_timestamp_seconds" ["issuer"],
        /// Log lines dropped because the log could not be written fast enough.
        log_dropped: IntCounter = "tollgate_log_lines_dropped_total" [],
        /// Always 1; the labels say what is running.
        build_info: IntGaugeVec = "tollgate_build_info" ["version", "profile"],
        /// When the running configuration was loaded, in seconds since the Unix epoch.
        config_loaded: Gauge = "tollgate_config_loaded_timestamp_seconds" [],
        /// Time since this process started.
        uptime: Gauge = "tollgate_uptime_seconds" [],
        /// User and system CPU time spent.
        process_cpu: Counter = "process_cpu_seconds_total" [],
        /// Resident memory.
        process_resident: IntGauge = "process_resident_memory_bytes" [],
        /// Virtual memory.
        process_virtual: IntGauge = "process_virtual_memory_bytes" [],
        /// Threads of the process.
        process_threads: IntGauge = "process_threads" [],
        /// Open file descriptors.
        process_open_fds: IntGauge = "process_open_fds" [],
        /// Limit of open file descriptors.
        process_max_fds: IntGauge = "process_max_fds" [],
    }
}

/// The metrics of one gateway process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    families: Families,
    /// Held while the process figures are refreshed, so that two scrapes do not add CPU time twice.
    refreshing: Mutex<()>,
}

impl Metrics {
    /// Registers every family; fails only on a mistake in the families above.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let families = Families::register(&registry)?;
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        families.build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), profile]).set(1);
        let metrics = Self { registry, families, refreshing: Mutex::new(()) };
        // Sets whose values live on this floor exist from the start; the others when their owners ask for them.
        metrics.store();
        metrics.cache_hits();
        metrics.cache_redis();
        metrics.exchange();
        metrics.revocations();
        metrics.sessions();
        metrics.families.instances.set(1);
        Ok(metrics)
    }

    /// The families themselves: for gauges, which need no resolving.
    pub const fn families(&self) -> &Families {
        &self.families
    }

    /// Brings the counters up to what the response cache counted by itself since the start: entries that memory had no
    /// room for, and what came of asking Redis.
    pub fn cache_totals(&self, evicted: u64, redis: impl Fn(RemoteOutcome) -> u64) {
        let _guard = self.refreshing.lock();
        let catch_up = |counter: &IntCounter, value: u64| counter.inc_by(value.saturating_sub(counter.get()));
        catch_up(&self.families.cache_evicted, evicted);
        for outcome in RemoteOutcome::ALL {
            let counter = self.families.cache_redis.with_label_values(&[outcome.as_str()]);
            catch_up(&counter, redis(*outcome));
        }
    }

    /// Notes that a configuration became the running one.
    pub fn config_loaded(&self, now: UnixMillis) {
        #[allow(clippy::cast_precision_loss, reason = "milliseconds since the epoch fit 53 bits")]
        self.families.config_loaded.set(now.0 as f64 / 1_000.0);
    }

    /// Seconds since the process started, zero where `/proc` does not tell.
    pub fn uptime_seconds(&self) -> f64 {
        ProcessReading::take().uptime_seconds.unwrap_or(0.0)
    }

    /// All metrics in the Prometheus text format ([`CONTENT_TYPE`]).
    pub fn render(&self) -> String {
        self.refresh(ProcessReading::take());
        let mut text = String::with_capacity(16 * 1024);
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            // A half-written family would be read as a counter reset: better none.
            text.clear();
            let _ = writeln!(text, "# metrics could not be encoded: {error}");
        }
        text
    }

    fn refresh(&self, reading: ProcessReading) {
        let _guard = self.refreshing.lock();
        let families = &self.families;
        if let Some(seconds) = reading.cpu_seconds {
            families.process_cpu.inc_by((seconds - families.process_cpu.get()).max(0.0));
        }
        if let Some(seconds) = reading.uptime_seconds {
            families.uptime.set(seconds);
        }
        for (gauge, value) in [
            (&families.process_resident, reading.resident_bytes),
            (&families.process_virtual, reading.virtual_bytes),
            (&families.process_threads, reading.threads),
            (&families.process_open_fds, reading.open_fds),
            (&families.process_max_fds, reading.max_fds),
        ] {
            if let Some(value) = value {
                gauge.set(value);
            }
        }
    }
}

/// The text of `docs/metrics.md`, made from the families above; `sets` are labels whose values other floors own.
pub fn documentation(sets: &[(&str, Vec<&str>)]) -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         `GET /metrics` on the admin listener answers in the Prometheus text format. This page is made from the code;\n\
         a test keeps it equal. Labels take values from closed sets or from names in the configuration, so the number\n\
         of series does not depend on traffic.\n\n\
         | metric | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for metric in Families::CATALOGUE {
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "| `{}` | {} | {labels} | {} |", metric.name, metric.kind, metric.help);
    }
    text.push_str("\n## Label values\n\n| label | values |\n|---|---|\n");
    values::<MethodClass>(&mut text, "`method`");
    values::<StatusClass>(&mut text, "`status`");
    values::<LimitOutcome>(&mut text, "`decision`");
    values::<LimitSource>(&mut text, "`source`");
    values::<CacheOutcome>(&mut text, "`outcome` of `tollgate_cache_total`");
    values::<CacheTier>(&mut text, "`tier`");
    values::<RemoteOutcome>(&mut text, "`outcome` of `tollgate_cache_redis_total`");
    values::<WarmOutcome>(&mut text, "`outcome` of `tollgate_cache_warm_total`");
    values::<UpstreamFailure>(&mut text, "`kind` of `tollgate_upstream_errors_total`");
    values::<StoreFailure>(&mut text, "`kind` of `tollgate_store_errors_total`");
    values::<StoreState>(&mut text, "`to`");
    values::<ExchangePath>(&mut text, "`path`");
    values::<RefundResult>(&mut text, "`result` of `tollgate_limit_refunds_total`");
    values::<JwksFetch>(&mut text, "`result` of `tollgate_jwks_fetches_total`");
    values::<RevocationKind>(&mut text, "`kind` of `tollgate_revocations_total`");
    values::<SessionEvent>(&mut text, "`event`");
    for (label, values) in sets {
        row(&mut text, label, values);
    }
    text.push_str("| `route`, `upstream`, `policy`, `issuer` | names in the configuration |\n");
    text
}

fn values<L: Label>(text: &mut String, label: &str) {
    row(text, label, &L::ALL.iter().map(|value| value.as_str()).collect::<Vec<_>>());
}

fn row(text: &mut String, label: &str, values: &[&str]) {
    let values = values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    let _ = writeln!(text, "| {label} | {values} |");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_zero_from_the_start() {
        let metrics = Metrics::new().unwrap();
        metrics.route("todo");
        metrics.upstream("app");
        metrics.policy("general");
        let text = metrics.render();
        for line in [
            "tollgate_requests_total{method=\"read\",route=\"todo\",status=\"5xx\"} 0",
            "tollgate_request_duration_seconds_count{route=\"todo\"} 0",
            "tollgate_upstream_errors_total{kind=\"timeout\",upstream=\"app\"} 0",
            "tollgate_limit_decisions_total{decision=\"refused\",policy=\"general\",source=\"known\"} 0",
            "tollgate_cache_total{outcome=\"hit\",route=\"todo\"} 0",
            "tollgate_cache_hits_total{tier=\"redis\"} 0",
            "tollgate_cache_redis_total{outcome=\"no_room\"} 0",
            "tollgate_cache_evicted_total 0",
            "tollgate_cache_invalidations_total 0",
            "tollgate_store_errors_total{kind=\"timeout\"} 0",
            "tollgate_store_transitions_total{to=\"degraded\"} 0",
            "tollgate_store_degraded 0",
            "tollgate_revocations_total{kind=\"token\"} 0",
            "tollgate_log_lines_dropped_total 0",
        ] {
            assert!(text.lines().any(|found| found == line), "missing: {line}\n{text}");
        }
    }

    #[test]
    fn handles_count_into_the_registry() {
        let metrics = Metrics::new().unwrap();
        let route = metrics.route("todo");
        route.requests.count(MethodClass::Write, StatusClass::of(201));
        route.cache.count(CacheOutcome::Hit);
        metrics.route("todo").cache.count(CacheOutcome::Hit);
        metrics.store().turned(StoreState::Degraded);
        let text = metrics.render();
        assert!(text.contains("tollgate_requests_total{method=\"write\",route=\"todo\",status=\"2xx\"} 1"));
        assert!(text.contains("tollgate_cache_total{outcome=\"hit\",route=\"todo\"} 2"));
        assert!(text.contains("tollgate_store_degraded 1"));
        metrics.store().turned(StoreState::Healthy);
        assert!(metrics.render().contains("tollgate_store_degraded 0"));
        assert_eq!(metrics.store().transitions(StoreState::Degraded), 1);
    }

    #[test]
    fn a_held_gauge_falls_when_its_holder_goes() {
        let metrics = Metrics::new().unwrap();
        let gauge = &metrics.families().requests_in_flight;
        let held = Held::new(gauge);
        assert_eq!(gauge.get(), 1);
        drop(held);
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn cpu_time_is_not_added_twice() {
        let metrics = Metrics::new().unwrap();
        let reading = |seconds| ProcessReading { cpu_seconds: Some(seconds), ..ProcessReading::default() };
        metrics.refresh(reading(2.0));
        metrics.refresh(reading(2.0));
        metrics.refresh(reading(1.0));
        assert!((metrics.families().process_cpu.get() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn names_carry_their_unit_and_help_ends_with_a_full_stop() {
        for metric in Families::CATALOGUE {
            if metric.kind == "counter" {
                assert!(metric.name.ends_with("_total"), "{}", metric.name);
            }
            if metric.kind == "histogram" {
                assert!(metric.name.ends_with("_seconds"), "{}", metric.name);
            }
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
