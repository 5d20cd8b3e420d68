//! One connection per worker thread and lane. A connection's driver task lives on the runtime that made it,
//! and calling across runtimes doubles its cost, so each pingora worker keeps its own.

use std::cell::RefCell;

use ::redis::aio::MultiplexedConnection;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::{Store, Unavailable};

/// Which connection a command takes, so that large values never stand in front of limit checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Constant-size commands that requests wait for.
    Decisions,
    /// Cached bodies.
    Bodies,
}

type Connecting = Shared<BoxFuture<'static, Option<MultiplexedConnection>>>;

enum Slot {
    Ready(MultiplexedConnection),
    Connecting(Connecting),
}

struct Entry {
    store: u64,
    lane: Lane,
    generation: u64,
    slot: Slot,
}

thread_local! {
    // A handful of entries at most: linear search beats hashing.
    static CONNECTIONS: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
}

impl Store {
    /// This thread's connection; connects when there is none, once for all callers that wait.
    pub(super) async fn connection(&self, lane: Lane) -> Result<MultiplexedConnection, Unavailable> {
        let generation = self.breaker.generation();
        let connecting = match self.ready_or_connecting(lane, generation) {
            Ok(ready) => return Ok(ready),
            Err(connecting) => connecting,
        };
        let made = connecting.await;
        CONNECTIONS.with_borrow_mut(|entries| {
            let at = entries.iter().position(|entry| entry.store == self.id && entry.lane == lane);
            let Some(index) = at else { return };
            match (&made, entries.get_mut(index)) {
                (Some(connection), Some(entry)) if entry.generation == generation => {
                    entry.slot = Slot::Ready(connection.clone());
                }
                (None, Some(entry)) if entry.generation == generation => {
                    entries.swap_remove(index);
                }
                _ => {}
            }
        });
        made.ok_or(Unavailable::CannotConnect)
    }

    fn ready_or_connecting(&self, lane: Lane, generation: u64) -> Result<MultiplexedConnection, Connecting> {
        CONNECTIONS.with_borrow_mut(|entries| {
            entries.retain(|entry| entry.store != self.id || entry.generation == generation);
            if let Some(entry) = entries.iter().find(|entry| entry.store == self.id && entry.lane == lane) {
                return match &entry.slot {
                    Slot::Ready(connection) => Ok(connection.clone()),
                    Slot::Connecting(connecting) => Err(connecting.clone()),
                };
            }
            let client = self.client.clone();
            let config = self.config.clone();
            let connecting =
                async move { client.get_multiplexed_async_connection_with_config(&config).await.ok() }
                    .boxed()
                    .shared();
            // Driven by a task of its own, so that a caller whose deadline passes does not abort it.
            tokio::spawn(connecting.clone());
            entries.push(Entry {
                store: self.id,
                lane,
                generation,
                slot: Slot::Connecting(connecting.clone()),
            });
            Err(connecting)
        })
    }

    /// Forgets this thread's connection after it broke.
    pub(super) fn discard_connection(&self, lane: Lane) {
        CONNECTIONS
            .with_borrow_mut(|entries| entries.retain(|entry| entry.store != self.id || entry.lane != lane));
    }
}
