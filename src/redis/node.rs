//! One server that answers for keys: its address, its breaker and what wakes its supervisor. The connections to it
//! belong to the threads, see [`super::connection`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, ConnectionInfo, RedisResult};
use tokio::sync::{Notify, watch};

use super::breaker::Breaker;
use super::settings::{Address, Settings};
use super::{STALL_DEADLINES, UnusableUrl};

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// A server, wherever it is at the moment.
pub(super) struct Node {
    /// Distinguishes nodes in the per-thread connection slots.
    pub(super) id: u64,
    /// Shown to operators where there are several.
    pub(super) address: Option<Address>,
    /// How it is reached; `None` until sentinels have said so.
    located: watch::Sender<Option<Client>>,
    pub(super) breaker: Breaker,
    /// Wakes the supervisor to write what requests could not.
    pub(super) owed: Notify,
    /// Wakes the supervisor to look whether the server is still there.
    pub(super) suspected: Notify,
    /// Operators were told that it is away.
    pub(super) told_away: AtomicBool,
    retired: watch::Sender<bool>,
}

impl Node {
    pub(super) fn new(
        settings: &Settings,
        info: Option<ConnectionInfo>,
        address: Option<Address>,
    ) -> Result<Self, UnusableUrl> {
        let client = info.map(Client::open).transpose().map_err(|_| UnusableUrl)?;
        Ok(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            address,
            located: watch::Sender::new(client),
            breaker: Breaker::new(
                settings.breaker_failures,
                settings.deadline * STALL_DEADLINES,
                Instant::now(),
            ),
            owed: Notify::new(),
            suspected: Notify::new(),
            told_away: AtomicBool::new(false),
            retired: watch::Sender::new(false),
        })
    }

    /// From now on it is there. Connections made before live on until the breaker opens.
    pub(super) fn locate(&self, client: Client) {
        self.located.send_replace(Some(client));
    }

    /// How it is reached, once that is known.
    pub(super) async fn client(&self) -> Option<Client> {
        self.located.subscribe().wait_for(Option::is_some).await.ok().and_then(|client| client.clone())
    }

    /// A connection of the caller's own.
    pub(super) async fn connect(&self, config: &AsyncConnectionConfig) -> RedisResult<MultiplexedConnection> {
        let Some(client) = self.client().await else {
            return Err(std::io::Error::from(std::io::ErrorKind::NotConnected).into());
        };
        client.get_multiplexed_async_connection_with_config(config).await
    }

    /// It owns no keys any more: nothing is to be asked of it, and its supervisor ends.
    pub(super) fn retire(&self) {
        self.breaker.open();
        self.retired.send_replace(true);
    }

    pub(super) fn is_retired(&self) -> bool {
        *self.retired.borrow()
    }

    /// Returns once it is retired.
    pub(super) async fn wait_until_retired(&self) {
        let _ = self.retired.subscribe().wait_for(|retired| *retired).await;
    }
}
