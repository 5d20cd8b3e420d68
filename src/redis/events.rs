//! News that instances tell each other through one pub/sub channel. Delivery is best effort: whatever must
//! hold is also stored under a key, and the handler reads those each time news may have been missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::redis::aio::{MultiplexedConnection, PubSubSink};
use ::redis::{Cmd, RedisError, RedisResult, Value, cmd};
use async_trait::async_trait;
use futures::StreamExt;

use super::node::Node;
use super::{Lane, Store, Topology, Unavailable};

/// The channel's name after the key prefix.
const CHANNEL: &str = "tollgate:events";
const RESUBSCRIBE_PAUSE: Duration = Duration::from_millis(250);
/// A subscription only listens, so nothing but a question shows that it is still heard.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Receives what other instances (and this one) publish.
#[async_trait]
pub trait EventHandler: Send + Sync + 'static {
    /// One message. Malformed ones must be ignored: anyone with access to Redis can send them.
    fn event(&self, payload: &[u8]);

    /// Reads what may have been told before the subscription was made, which it is when this is called. Called for
    /// each node that owns keys, with a connection to it.
    async fn catch_up(&self, connection: &mut MultiplexedConnection) -> RedisResult<()>;
}

/// Publishes to all instances.
#[derive(Clone, Debug)]
pub struct Publisher(Arc<Store>);

impl Publisher {
    /// A publisher on `store`.
    pub fn new(store: Arc<Store>) -> Self {
        Self(store)
    }

    /// Sends `payload` to every subscribed instance.
    pub async fn publish(&self, payload: &[u8]) -> Result<(), Unavailable> {
        self.0.ask_any(Lane::Decisions, &self.0.publication(payload)).await.map(drop)
    }
}

impl Store {
    /// The command that sends `payload` to every subscribed instance.
    pub fn publication(&self, payload: &[u8]) -> Cmd {
        let mut command = cmd("PUBLISH");
        command.arg(self.channel()).arg(payload);
        command
    }

    fn channel(&self) -> String {
        format!("{}{CHANNEL}", self.settings.key_prefix)
    }

    /// Runs until the process ends: keeps the subscription alive. Spawn it once.
    pub async fn subscribe(self: Arc<Self>, handler: Arc<dyn EventHandler>) {
        let warned = AtomicBool::new(false);
        loop {
            let node = self.node_to_hear().await;
            // Made anew after each outage: a subscription may outlive it in appearance only.
            let ended = tokio::select! {
                _ = self.listen(&node, handler.as_ref(), &warned) => true,
                () = node.breaker.wait_until_open() => false,
                () = self.elsewhere_missed() => false,
            };
            if ended {
                // Errors only mean another try: the supervisor reports an absent node.
                node.suspected.notify_one();
                tokio::time::sleep(RESUBSCRIBE_PAUSE).await;
            }
        }
    }

    /// A node to subscribe at, once there is one: a cluster tells all its nodes what one is told.
    async fn node_to_hear(&self) -> Arc<Node> {
        loop {
            match &self.topology {
                Topology::One(node) => {
                    node.breaker.wait_until_closed().await;
                    return Arc::clone(node);
                }
                Topology::Many(_) => {
                    if let Some(node) = self.any_node() {
                        return node;
                    }
                    tokio::time::sleep(RESUBSCRIBE_PAUSE).await;
                }
            }
        }
    }

    /// Returns when a node of a cluster is there again: what is stored there may be news.
    async fn elsewhere_missed(&self) {
        match &self.topology {
            Topology::One(_) => std::future::pending().await,
            Topology::Many(_) => self.missed.notified().await,
        }
    }

    async fn listen(&self, node: &Node, handler: &dyn EventHandler, warned: &AtomicBool) -> RedisResult<()> {
        let subscribing = async {
            let Some(client) = node.client().await else { return Err(not_connected()) };
            let mut pubsub = client.get_async_pubsub().await?;
            pubsub.subscribe(self.channel()).await?;
            Ok(pubsub)
        };
        let subscribing = tokio::time::timeout(self.settings.connect_timeout, subscribing);
        let (sink, mut messages) = subscribing.await.map_err(std::io::Error::from)??.split();
        let receive = async {
            while let Some(message) = messages.next().await {
                handler.event(message.get_payload_bytes());
            }
        };
        let background = async {
            // Those that are away are read when they are back.
            for node in self.nodes().iter().filter(|node| node.breaker.closed().is_some()) {
                let read = tokio::select! {
                    read = self.catch_up(node, handler, warned) => read,
                    () = node.breaker.wait_until_open() => continue,
                };
                if let (Err(error), Topology::One(_)) = (read, &self.topology) {
                    return Err(error);
                }
            }
            self.keep_asking(sink).await
        };
        tokio::select! {
            () = receive => Ok(()),
            outcome = background => outcome,
        }
    }

    async fn catch_up(
        &self,
        node: &Node,
        handler: &dyn EventHandler,
        warned: &AtomicBool,
    ) -> RedisResult<()> {
        let mut connection = node.connect(&self.config).await?;
        match handler.catch_up(&mut connection).await {
            Err(error) if !error.is_unrecoverable_error() => {
                // Told once: it will be the same each time, such as a command that is not permitted.
                if !warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "could not read the revocations in Redis");
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Returns when the subscription's connection does not answer any more.
    async fn keep_asking(&self, mut sink: PubSubSink) -> RedisResult<()> {
        loop {
            tokio::time::sleep(self.settings.health_check_interval).await;
            tokio::time::timeout(PING_TIMEOUT, sink.ping::<Value>())
                .await
                .map_err(std::io::Error::from)??;
        }
    }
}

fn not_connected() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::NotConnected).into()
}
