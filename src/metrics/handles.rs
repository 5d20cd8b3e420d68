//! Counters resolved once, at load, so that a request only adds to numbers it already holds.
//! Building a handle creates its series at zero; a label that cannot exist is not counted instead of panicking.

use std::marker::PhantomData;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

use super::Metrics;
use super::labels::{
    CacheOutcome, CacheTier, ExchangePath, JwksFetch, Label, LimitOutcome, LimitSource, MethodClass,
    RefundResult, RemoteOutcome, RevocationKind, SessionEvent, StatusClass, StoreFailure, StoreState,
    UpstreamFailure, WarmOutcome,
};
use crate::clock::UnixMillis;

/// One counter per value of a closed set.
#[derive(Clone, Debug)]
pub struct Counters<L> {
    cells: Box<[IntCounter]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label> Counters<L> {
    fn resolve(mut child: impl FnMut(L) -> IntCounter) -> Self {
        Self { cells: L::ALL.iter().map(|label| child(*label)).collect(), label: PhantomData }
    }

    /// Counts one event.
    pub fn count(&self, label: L) {
        if let Some(cell) = self.cells.get(label.index()) {
            cell.inc();
        }
    }

    /// What has been counted under `label`.
    pub fn value(&self, label: L) -> u64 {
        self.cells.get(label.index()).map_or(0, IntCounter::get)
    }
}

/// One counter per pair of two closed sets.
#[derive(Clone, Debug)]
pub struct Grid<A, B> {
    rows: Box<[Counters<B>]>,
    label: PhantomData<fn(A)>,
}

impl<A: Label, B: Label> Grid<A, B> {
    fn resolve(mut child: impl FnMut(A, B) -> IntCounter) -> Self {
        Self {
            rows: A::ALL.iter().map(|a| Counters::resolve(|b| child(*a, b))).collect(),
            label: PhantomData,
        }
    }

    /// Counts one event.
    pub fn count(&self, a: A, b: B) {
        if let Some(row) = self.rows.get(a.index()) {
            row.count(b);
        }
    }

    /// What has been counted under the pair.
    pub fn value(&self, a: A, b: B) -> u64 {
        self.rows.get(a.index()).map_or(0, |row| row.value(b))
    }
}

/// What is counted for one route of the configuration.
#[derive(Clone, Debug)]
pub struct RouteMetrics {
    /// Answers by method and status class.
    pub requests: Grid<MethodClass, StatusClass>,
    /// Seconds from the request head to the end of the answer.
    pub duration_seconds: Histogram,
    /// Cache outcomes.
    pub cache: Counters<CacheOutcome>,
}

/// What is counted for one upstream of the configuration.
#[derive(Clone, Debug)]
pub struct UpstreamMetrics {
    /// Seconds from choosing a member to the head of its answer.
    pub duration_seconds: Histogram,
    /// Failures by kind.
    pub errors: Counters<UpstreamFailure>,
}

/// What is counted for one limit policy of the configuration.
#[derive(Clone, Debug)]
pub struct PolicyMetrics {
    /// Decisions by outcome and by where the counter was read.
    pub decisions: Grid<LimitOutcome, LimitSource>,
}

/// What is counted about the shared store.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    /// Seconds of one exchange.
    pub duration_seconds: Histogram,
    /// Failures by kind.
    pub errors: Counters<StoreFailure>,
    /// 1 while counting from memory.
    pub degraded: IntGauge,
    transitions: Counters<StoreState>,
}

impl StoreMetrics {
    /// Notes a change of state: the gauge is set and the transition counted.
    pub fn turned(&self, state: StoreState) {
        self.degraded.set(i64::from(state == StoreState::Degraded));
        self.transitions.count(state);
    }

    /// How often the store turned to `state`.
    pub fn transitions(&self, state: StoreState) -> u64 {
        self.transitions.value(state)
    }
}

/// What is counted about questions to the shared store.
#[derive(Clone, Debug)]
pub struct ExchangeMetrics {
    /// Questions by what carried them.
    pub paths: Counters<ExchangePath>,
    /// Requests that waited for another's question.
    pub coalesced: IntCounter,
    /// Questions for those who had waited.
    pub merged: IntCounter,
    /// Leases taken.
    pub leases: IntCounter,
    /// Counters passed from a lease.
    pub lease_spent: IntCounter,
    refunds: [IntCounter; 2],
}

impl ExchangeMetrics {
    /// Notes what became of so many counts to be taken back.
    pub fn refunded(&self, result: RefundResult, counts: usize) {
        let [done, lost] = &self.refunds;
        let cell = if result == RefundResult::Done { done } else { lost };
        cell.inc_by(u64::try_from(counts).unwrap_or(u64::MAX));
    }
}

/// What is counted about the published keys of one issuer.
#[derive(Clone, Debug)]
pub struct JwksMetrics {
    /// Reads by what came of them.
    pub fetches: Counters<JwksFetch>,
    keys: IntGauge,
    last_success: IntGauge,
}

impl JwksMetrics {
    /// Notes that so many usable keys were read.
    pub fn note(&self, keys: usize, now: UnixMillis) {
        self.keys.set(i64::try_from(keys).unwrap_or(i64::MAX));
        self.last_success.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }
}

/// Holds a gauge one higher for as long as it lives: a connection, a request in flight.
#[derive(Debug)]
pub struct Held(IntGauge);

impl Held {
    /// Raises `gauge` by one until the value is dropped.
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// The counters of the route called `name` in the configuration.
    pub fn route(&self, name: &str) -> RouteMetrics {
        let families = self.families();
        RouteMetrics {
            requests: Grid::resolve(|method: MethodClass, status: StatusClass| {
                families.requests.with_label_values(&[name, method.as_str(), status.as_str()])
            }),
            duration_seconds: families.request_duration.with_label_values(&[name]),
            cache: leading(&families.cache, name),
        }
    }

    /// One counter per tier of the cache.
    pub fn cache_hits(&self) -> Counters<CacheTier> {
        single(&self.families().cache_hits)
    }

    /// One counter per reason not to store a response; the set belongs to the floor that decides.
    pub fn cache_not_stored<L: Label>(&self) -> Counters<L> {
        single(&self.families().cache_not_stored)
    }

    /// One counter per outcome of asking Redis for a cached response.
    pub fn cache_redis(&self) -> Counters<RemoteOutcome> {
        single(&self.families().cache_redis)
    }

    /// What comes of keeping responses of the route called `name` warm.
    pub fn warm(&self, name: &str) -> Counters<WarmOutcome> {
        leading(&self.families().cache_warm, name)
    }

    /// The counters of the upstream called `name` in the configuration.
    pub fn upstream(&self, name: &str) -> UpstreamMetrics {
        let families = self.families();
        UpstreamMetrics {
            duration_seconds: families.upstream_duration.with_label_values(&[name]),
            errors: leading(&families.upstream_errors, name),
        }
    }

    /// The counters of the policy called `name` in the configuration.
    pub fn policy(&self, name: &str) -> PolicyMetrics {
        let family = &self.families().limit_decisions;
        PolicyMetrics {
            decisions: Grid::resolve(|outcome: LimitOutcome, source: LimitSource| {
                family.with_label_values(&[name, outcome.as_str(), source.as_str()])
            }),
        }
    }

    /// The counters of the shared store.
    pub fn store(&self) -> StoreMetrics {
        let families = self.families();
        StoreMetrics {
            duration_seconds: families.store_duration.clone(),
            errors: single(&families.store_errors),
            degraded: families.store_degraded.clone(),
            transitions: single(&families.store_transitions),
        }
    }

    /// The counters of questions to the shared store.
    pub fn exchange(&self) -> ExchangeMetrics {
        let families = self.families();
        let refunds = |result: RefundResult| families.refunds.with_label_values(&[result.as_str()]);
        ExchangeMetrics {
            paths: single(&families.exchanges),
            coalesced: families.coalesced.clone(),
            merged: families.merged.clone(),
            leases: families.leases.clone(),
            lease_spent: families.lease_spent.clone(),
            refunds: [refunds(RefundResult::Done), refunds(RefundResult::Lost)],
        }
    }

    /// What is counted for the issuer called `name` in the configuration.
    pub fn jwks(&self, name: &str) -> JwksMetrics {
        let families = self.families();
        JwksMetrics {
            fetches: leading(&families.jwks_fetches, name),
            keys: families.jwks_keys.with_label_values(&[name]),
            last_success: families.jwks_last_success.with_label_values(&[name]),
        }
    }

    /// One counter per outcome of authentication; the set belongs to the floor that decides.
    pub fn auth<L: Label>(&self) -> Counters<L> {
        single(&self.families().auth)
    }

    /// One counter per reason of refusal; the set belongs to the floor that decides.
    pub fn refusals<L: Label>(&self) -> Counters<L> {
        single(&self.families().refusals)
    }

    /// One counter per reason why a login at the route called `name` opened no session; the set belongs to the floor
    /// that decides.
    pub fn not_opened<L: Label>(&self, name: &str) -> Counters<L> {
        leading(&self.families().not_opened, name)
    }

    /// One counter per kind of revocation.
    pub fn revocations(&self) -> Counters<RevocationKind> {
        single(&self.families().revocations)
    }

    /// One counter per event of sessions.
    pub fn sessions(&self) -> Counters<SessionEvent> {
        single(&self.families().sessions)
    }
}

fn single<L: Label>(family: &IntCounterVec) -> Counters<L> {
    Counters::resolve(|label: L| family.with_label_values(&[label.as_str()]))
}

fn leading<L: Label>(family: &IntCounterVec, name: &str) -> Counters<L> {
    Counters::resolve(|label: L| family.with_label_values(&[name, label.as_str()]))
}
