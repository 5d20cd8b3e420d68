//! Counts the connections that clients hold open. It does not look into them.

use std::sync::Arc;

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;
use prometheus::IntGauge;

use crate::metrics::Held;

/// An application whose connections are counted.
pub struct Counted<A> {
    application: Arc<A>,
    open: IntGauge,
}

impl<A> Counted<A> {
    /// Counts the connections of `application` in `open`.
    pub(super) fn new(application: A, open: IntGauge) -> Self {
        Self { application: Arc::new(application), open }
    }
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> ServerApp for Counted<A> {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let _open = Held::new(&self.open);
        self.application.process_new(stream, shutdown).await
    }

    /// Does nothing, unlike the application's own: that drops every connection that waits for its next request, and
    /// with it a request that is just arriving. They get their answer and `Connection: close` instead, and the
    /// process ends soon anyway.
    async fn cleanup(&self) {}
}
