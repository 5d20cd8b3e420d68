//! Ending well: no new traffic, requests in flight to their end, then out, without waiting for a fixed time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use prometheus::IntGauge;
use tokio::signal::unix::{SignalKind, signal};

use super::operations::Lifecycle;

/// Requests must be gone for this long: a client may be about to use a connection it holds.
const QUIET: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(20);

/// How long Redis may take to get what it is owed, once no request is in flight.
pub(super) const SETTLE: Duration = Duration::from_secs(2);

/// While requests are in flight, the listeners stay open for this long after SIGTERM: balancers see that the
/// instance is not ready, clients are told to close their connections, and nobody is turned away meanwhile.
pub(super) const LEAD: Duration = Duration::from_secs(1);

/// Waits for SIGTERM (drain) or SIGINT (at once).
pub(super) struct Signals {
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) in_flight: IntGauge,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut terminate), Ok(mut interrupt)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            // Without handlers the signals end the process by themselves.
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {
                tracing::info!("SIGTERM: draining");
                self.lifecycle.draining.store(true, Ordering::Release);
            }
            _ = interrupt.recv() => return self.at_once(),
        }
        tokio::select! {
            () = quiet(&self.lifecycle, &self.in_flight, LEAD) => ShutdownSignal::GracefulTerminate,
            _ = interrupt.recv() => self.at_once(),
        }
    }
}

impl Signals {
    fn at_once(&self) -> ShutdownSignal {
        self.lifecycle.interrupted.store(true, Ordering::Release);
        self.lifecycle.draining.store(true, Ordering::Release);
        ShutdownSignal::FastShutdown
    }
}

/// Calls `exit` once draining began and no request is in flight, or after `patience`, and what is `owed` was paid, or
/// [`SETTLE`] after that. Runs in the background.
pub(super) async fn exit_when_drained(
    lifecycle: Arc<Lifecycle>,
    in_flight: IntGauge,
    patience: Duration,
    owed: impl Future<Output = ()>,
    exit: impl FnOnce(),
) {
    while !lifecycle.draining.load(Ordering::Acquire) {
        tokio::time::sleep(POLL).await;
    }
    quiet(&lifecycle, &in_flight, patience).await;
    let left = in_flight.get();
    if left > 0 {
        tracing::warn!(requests = left, "ended before these requests did");
    }
    if !lifecycle.interrupted.load(Ordering::Acquire) {
        // What was not paid by then is lost, and said to be.
        let _ = tokio::time::timeout(SETTLE, owed).await;
    }
    exit();
}

/// Returns once no request was in flight for [`QUIET`], after `patience`, or at once when interrupted.
async fn quiet(lifecycle: &Lifecycle, in_flight: &IntGauge, patience: Duration) {
    let started = Instant::now();
    let mut quiet_since = Instant::now();
    while started.elapsed() < patience && !lifecycle.interrupted.load(Ordering::Acquire) {
        if in_flight.get() > 0 {
            quiet_since = Instant::now();
        } else if quiet_since.elapsed() >= QUIET {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}
