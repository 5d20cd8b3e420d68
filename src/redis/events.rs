//! News that instances tell each other through one pub/sub channel. Delivery is best effort: whatever must
//! hold is also stored under a key, and the handler is told when news may have been missed.

use std::sync::Arc;
use std::time::Duration;

use ::redis::cmd;
use futures::StreamExt;

use super::{Lane, Store, Unavailable};

/// The channel's name after the key prefix.
const CHANNEL: &str = "tollgate:events";
const RESUBSCRIBE_PAUSE: Duration = Duration::from_millis(500);

/// Receives what other instances (and this one) publish.
pub trait EventHandler: Send + Sync + 'static {
    /// One message. Malformed ones must be ignored: anyone with access to Redis can send them.
    fn event(&self, payload: &[u8]);
    /// The subscription was just made: messages before it were missed.
    fn subscribed(&self);
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
        let mut command = cmd("PUBLISH");
        command.arg(self.0.channel()).arg(payload);
        self.0.call(Lane::Decisions, &command).await.map(drop)
    }
}

impl Store {
    fn channel(&self) -> String {
        format!("{}{CHANNEL}", self.settings.key_prefix)
    }

    /// Runs until the process ends: keeps the subscription alive. Spawn it once.
    pub async fn subscribe(self: Arc<Self>, handler: Arc<dyn EventHandler>) {
        loop {
            // Errors only mean another try: the supervisor already reports an absent store.
            let _ = self.listen(handler.as_ref()).await;
            tokio::time::sleep(RESUBSCRIBE_PAUSE).await;
        }
    }

    async fn listen(&self, handler: &dyn EventHandler) -> ::redis::RedisResult<()> {
        let connecting = tokio::time::timeout(self.settings.connect_timeout, self.client.get_async_pubsub());
        let mut pubsub = connecting.await.map_err(std::io::Error::from)??;
        pubsub.subscribe(self.channel()).await?;
        handler.subscribed();
        let mut messages = pubsub.on_message();
        while let Some(message) = messages.next().await {
            handler.event(message.get_payload_bytes());
        }
        Ok(())
    }
}
