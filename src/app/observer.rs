//! Counts what becomes of the store.

use std::time::Duration;

use crate::metrics::{StoreFailure, StoreMetrics, StoreState};
use crate::redis::{FailureKind, Observer};

/// Store events as metrics.
pub(super) struct Counting(pub(super) StoreMetrics);

impl Observer for Counting {
    fn degraded(&self, degraded: bool) {
        self.0.turned(if degraded { StoreState::Degraded } else { StoreState::Healthy });
    }

    fn call(&self, elapsed: Duration, result: Result<(), FailureKind>) {
        self.0.duration_seconds.observe(elapsed.as_secs_f64());
        if let Err(kind) = result {
            self.0.errors.count(match kind {
                FailureKind::BreakerOpen => StoreFailure::Breaker,
                FailureKind::Deadline => StoreFailure::Timeout,
                FailureKind::Connection => StoreFailure::Connect,
                FailureKind::Reply => StoreFailure::Server,
            });
        }
    }
}
