//! News that instances tell each other through one pub/sub channel. Delivery is best effort: whatever must
//! hold is also stored under a key, and the handler reads those each time news may have been missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::redis::aio::{MultiplexedConnection, PubSubSink};
use ::redis::{Cmd, RedisResult, Value, cmd};
use async_trait::async_trait;
use futures::StreamExt;

use super::{Lane, Store, Unavailable};

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

    /// Reads what may have been told before the subscription was made, which it is when this is called.
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
        self.0.call(Lane::Decisions, &self.0.publication(payload)).await.map(drop)
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
            self.breaker.wait_until_closed().await;
            // Made anew after each outage: a subscription may outlive it in appearance only.
            let ended = tokio::select! {
                _ = self.listen(handler.as_ref(), &warned) => true,
                () = self.breaker.wait_until_open() => false,
            };
            if ended {
                // Errors only mean another try: the supervisor reports an absent store.
                self.suspected.notify_one();
                tokio::time::sleep(RESUBSCRIBE_PAUSE).await;
            }
        }
    }

    async fn listen(&self, handler: &dyn EventHandler, warned: &AtomicBool) -> RedisResult<()> {
        let subscribing = async {
            let mut pubsub = self.client.get_async_pubsub().await?;
            pubsub.subscribe(self.channel()).await?;
            Ok::<_, ::redis::RedisError>(pubsub)
        };
        let subscribing = tokio::time::timeout(self.settings.connect_timeout, subscribing);
        let (sink, mut messages) = subscribing.await.map_err(std::io::Error::from)??.split();
        let receive = async {
            while let Some(message) = messages.next().await {
                handler.event(message.get_payload_bytes());
            }
        };
        let background = async {
            self.catch_up(handler, warned).await?;
            self.keep_asking(sink).await
        };
        tokio::select! {
            () = receive => Ok(()),
            outcome = background => outcome,
        }
    }

    async fn catch_up(&self, handler: &dyn EventHandler, warned: &AtomicBool) -> RedisResult<()> {
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
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
