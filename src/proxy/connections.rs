//! Counts the connections that clients hold open. It does not look into them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

/// How many of something are open; counted down when the guard is dropped, whatever ends it.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    /// Counts one until the guard is dropped.
    pub fn enter(&self) -> GaugeGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        GaugeGuard(self.clone())
    }

    /// How many are open.
    pub fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts down when dropped.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An application whose connections are counted.
pub struct Counted<A> {
    application: Arc<A>,
    open: Gauge,
}

impl<A> Counted<A> {
    /// Counts the connections of `application` in `open`.
    pub fn new(application: A, open: Gauge) -> Self {
        Self { application: Arc::new(application), open }
    }
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> ServerApp for Counted<A> {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let _open = self.open.enter();
        self.application.process_new(stream, shutdown).await
    }

    async fn cleanup(&self) {
        self.application.cleanup().await;
    }
}
