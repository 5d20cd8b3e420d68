//! News that instances tell each other through one pub/sub channel. Delivery is best effort: whatever must
//! hold is also stored under a key, and the handler reads those each time news may have been missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::redis::aio::{MultiplexedConnection, PubSubSink};
use ::redis::{Cmd, RedisError, RedisResult, Value, cmd};
use async_trait::async_trait;
use futures::StreamExt;
use futures::future::join_all;

use super::node::Node;
use super::{Lane, Link, Store, Topology, Unavailable};

/// The channel's name after the key prefix.
const CHANNEL: &str = "tollgate:events";
const RESUBSCRIBE_PAUSE: Duration = Duration::from_millis(250);
/// A subscription only listens, so nothing but a question shows that it is still heard.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Before the first look whether a node has lost anything.
const FIRST_LOOK: Duration = Duration::from_millis(250);
/// After a look that failed.
const FAILED_LOOK: Duration = Duration::from_secs(1);
/// A look that takes longer has failed: its connection may have gone silent.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Receives what other instances (and this one) publish.
#[async_trait]
pub trait EventHandler: Send + Sync + 'static {
    /// One message. Malformed ones must be ignored: anyone with access to Redis can send them.
    fn event(&self, payload: &[u8]);

    /// Reads what may have been told before the subscription was made, which it is when this is called. Called for
    /// each node that owns keys, with a connection to it.
    async fn catch_up(&self, link: &mut Link<'_>) -> RedisResult<()>;

    /// Somebody who looks whether one node still has what was told. A node that was away is looked at anew.
    fn looker(&self) -> Box<dyn Look>;
}

/// Looks whether a node still has what was told: it may have been emptied without any connection ending.
#[async_trait]
pub trait Look: Send {
    /// Looks at some of it and gives back what the node has lost. Called again and again, with a connection of its own,
    /// after the pause that it returns.
    async fn look(&mut self, link: &mut Link<'_>) -> RedisResult<Duration>;
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

    /// News do not know databases: whoever has another one has other keys, and a channel of its own.
    fn channel(&self) -> String {
        let prefix = &self.settings.key_prefix;
        match self.settings.database() {
            0 => format!("{prefix}{CHANNEL}"),
            database => format!("{prefix}{CHANNEL}:{database}"),
        }
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
            // A node that joins later makes all of this begin anew.
            let nodes = self.nodes();
            let looking = nodes.iter().map(|node| self.keep_looking(node, handler.looker(), warned));
            tokio::select! {
                ended = self.keep_asking(sink) => ended,
                _ = join_all(looking) => Ok(()),
            }
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
        let mut link = Link::new(self, node, node.connect(&self.config).await?);
        match handler.catch_up(&mut link).await {
            Err(error) if !error.is_unrecoverable_error() => {
                // Told once: it will be the same each time, such as a command that is not permitted.
                if !warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "could not bring the revocations here and in Redis up to each other");
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Looks at a node whenever it is there, for ever.
    async fn keep_looking(&self, node: &Node, mut looker: Box<dyn Look>, warned: &AtomicBool) {
        let mut kept: Option<MultiplexedConnection> = None;
        let mut pause = FIRST_LOOK.mul_f64(0.5 + fastrand::f64());
        loop {
            tokio::time::sleep(pause).await;
            node.breaker.wait_until_closed().await;
            let began = Instant::now();
            let connection = kept.take();
            let look = async {
                let connection = match connection {
                    Some(connection) => connection,
                    None => node.connect(&self.config).await?,
                };
                let pause = looker.look(&mut Link::new(self, node, connection.clone())).await?;
                Ok::<_, RedisError>((connection, pause))
            };
            let outcome = tokio::select! {
                outcome = tokio::time::timeout(LOOK_TIMEOUT, look) => outcome.unwrap_or_else(|late| Err(io(late))),
                () = node.breaker.wait_until_open() => continue,
            };
            pause = match outcome {
                Ok((connection, pause)) => {
                    kept = Some(connection);
                    // Others want something of the node, too.
                    pause.max(began.elapsed())
                }
                // The next look is made with a new connection, and others see whether the node is there.
                Err(error) => {
                    if !error.is_unrecoverable_error() && !warned.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, "could not give revocations back to Redis");
                    }
                    FAILED_LOOK
                }
            };
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

fn io(error: impl Into<std::io::Error>) -> RedisError {
    error.into().into()
}

fn not_connected() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::NotConnected).into()
}
