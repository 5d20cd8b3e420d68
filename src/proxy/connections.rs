//! Counts the connections that clients hold open, and ends those that take too long to ask for something. It does
//! not look into what they ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;
use prometheus::IntGauge;

use crate::metrics::Held;
use crate::pipeline::Gateway;

/// What an HTTP/2 client with prior knowledge says first (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much longer than an idle one a connection is kept whose next head has begun.
const LATE_HEAD: Duration = Duration::from_secs(10);

/// An application whose connections are counted and bounded.
pub struct Counted<A> {
    application: Arc<A>,
    open: IntGauge,
    current: Arc<ArcSwap<Gateway>>,
    h2c: bool,
}

impl<A> Counted<A> {
    /// Counts the connections of `application` in `open`, and waits for their requests as long as the current
    /// configuration lets connections idle. With `h2c` they may begin with the HTTP/2 preface.
    pub(super) fn new(application: A, open: IntGauge, current: Arc<ArcSwap<Gateway>>, h2c: bool) -> Self {
        Self { application: Arc::new(application), open, current, h2c }
    }
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> ServerApp for Counted<A> {
    async fn process_new(self: &Arc<Self>, mut stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let _open = Held::new(&self.open);
        let idle = self.current.load().timeouts.keepalive.max(Duration::from_secs(1));
        if self.h2c {
            let mut start = [0; PREFACE.len()];
            // pingora peeks too, but for ever; what was peeked is read again.
            let peeked = tokio::time::timeout(idle, stream.try_peek(&mut start)).await.ok()?.ok()?;
            if peeked && start == *PREFACE {
                // From here on HTTP/2 has an idle timeout of its own.
                return self.application.process_new(stream, shutdown).await;
            }
        }
        let heads = Arc::new(Heads::new());
        let serve = HEADS.scope(Arc::clone(&heads), self.application.process_new(stream, shutdown));
        tokio::select! {
            biased;
            kept = serve => kept,
            () = heads.overdue(idle) => None,
        }
    }

    /// Does nothing, unlike the application's own: that drops every connection that waits for its next request, and
    /// with it a request that is just arriving. They get their answer and `Connection: close` instead, and the
    /// process ends soon anyway.
    async fn cleanup(&self) {}
}

tokio::task_local! {
    /// The connection that the running task serves; unset where streams of one connection have tasks of their own.
    static HEADS: Arc<Heads>;
}

/// Notes that the connection's current request has its whole head.
pub(super) fn head_arrived() {
    // Fails only outside of HTTP/1 connections.
    let _ = HEADS.try_with(|heads| heads.since.store(Heads::SERVING, Ordering::Relaxed));
}

/// Notes that the connection's current request was answered; the wait for the next head begins.
pub(super) fn answered() {
    let _ = HEADS.try_with(|heads| {
        heads.since.store(heads.now(), Ordering::Relaxed);
    });
}

/// Since when a connection has owed a request head. pingora bounds each read of a head, not the head: a client
/// that sends a byte now and then would hold its connection for ever.
#[derive(Debug)]
struct Heads {
    opened: Instant,
    /// Milliseconds after `opened`, or [`Heads::SERVING`].
    since: AtomicU64,
}

impl Heads {
    const SERVING: u64 = u64::MAX;

    fn new() -> Self {
        Self { opened: Instant::now(), since: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX - 1).max(1)
    }

    /// Ends when a head has been owed for too long: the first for `idle`, a later one for somewhat longer, because
    /// idle connections are ended by the session itself.
    async fn overdue(&self, idle: Duration) {
        loop {
            let wait = match self.since.load(Ordering::Relaxed) {
                Self::SERVING => idle,
                since => {
                    let limit = if since == 0 { idle } else { idle + LATE_HEAD.min(idle) };
                    let waited = Duration::from_millis(self.now().saturating_sub(since));
                    match limit.checked_sub(waited) {
                        None | Some(Duration::ZERO) => return,
                        Some(rest) => rest,
                    }
                }
            };
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_millis(40);

    async fn is_overdue(heads: &Heads, within: Duration) -> bool {
        tokio::time::timeout(within, heads.overdue(IDLE)).await.is_ok()
    }

    #[tokio::test]
    async fn a_head_that_never_comes_is_overdue() {
        assert!(is_overdue(&Heads::new(), IDLE * 100).await);
    }

    #[tokio::test]
    async fn a_request_being_served_is_never_overdue_and_the_next_head_is_again() {
        let heads = Arc::new(Heads::new());
        HEADS
            .scope(Arc::clone(&heads), async {
                head_arrived();
                assert!(!is_overdue(&heads, IDLE * 4).await);
                answered();
                assert!(is_overdue(&heads, IDLE * 100).await);
            })
            .await;
    }

    #[test]
    fn outside_of_a_connection_nothing_is_noted() {
        head_arrived();
        answered();
    }
}
