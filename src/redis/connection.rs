//! One connection per worker thread, node and lane. A connection's driver task lives on the runtime that made it,
//! and calling across runtimes doubles its cost, so each pingora worker keeps its own.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Weak};

use ::redis::aio::MultiplexedConnection;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::time::Instant;

use super::breaker::Epoch;
use super::node::Node;
use super::{Store, Unavailable, within};

/// A connection that swallowed this many commands in a row is given up, whatever the others do: a middlebox
/// may have forgotten it.
const MOST_SILENT: u32 = 3;

/// For how many deadlines requests wait for a connection that is being made, each for one at most.
const CONNECT_DEADLINES: u32 = 10;

/// Which connection a command takes, so that large values never stand in front of limit checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Constant-size commands that requests wait for.
    Decisions,
    /// Cached bodies.
    Bodies,
}

/// Names one connection of this thread, so that news of an old one does not hit its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serial(u64);

type Connecting = Shared<BoxFuture<'static, Option<MultiplexedConnection>>>;

enum Slot {
    Ready {
        connection: MultiplexedConnection,
        /// Commands in a row whose deadline passed.
        silent: u32,
    },
    Connecting {
        outcome: Connecting,
        /// From here on nobody waits for it any more.
        overdue: Instant,
    },
}

struct Entry {
    node: u64,
    /// To see that the node is gone, and with it the use of this connection.
    of: Weak<Node>,
    lane: Lane,
    epoch: Epoch,
    serial: Serial,
    slot: Slot,
}

thread_local! {
    // A handful of entries at most: linear search beats hashing.
    static CONNECTIONS: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
    static NEXT_SERIAL: Cell<u64> = const { Cell::new(0) };
}

enum Found {
    Ready(Serial, MultiplexedConnection),
    Wait(Serial, Connecting),
}

impl Store {
    /// This thread's connection to `node`; connects when there is none, once for all callers that wait.
    pub(super) async fn connection(
        &self,
        node: &Arc<Node>,
        lane: Lane,
        epoch: Epoch,
        until: Instant,
    ) -> Result<(Serial, MultiplexedConnection), Unavailable> {
        let (serial, outcome) = match self.find_or_connect(node, lane, epoch)? {
            Found::Ready(serial, connection) => return Ok((serial, connection)),
            Found::Wait(serial, outcome) => (serial, outcome),
        };
        match within(until, outcome).await {
            Ok(made) => {
                change(serial, |entry| match &made {
                    Some(connection) => {
                        if !matches!(entry.slot, Slot::Ready { .. }) {
                            entry.slot = Slot::Ready { connection: connection.clone(), silent: 0 };
                        }
                        true
                    }
                    None => false,
                });
                made.map(|connection| (serial, connection)).ok_or(Unavailable::CannotConnect)
            }
            Err(_) => Err(Unavailable::NotConnected),
        }
    }

    fn find_or_connect(&self, node: &Arc<Node>, lane: Lane, epoch: Epoch) -> Result<Found, Unavailable> {
        CONNECTIONS.with_borrow_mut(|entries| {
            entries.retain(|entry| entry.node != node.id || entry.epoch == epoch);
            let known = entries.iter().position(|entry| entry.node == node.id && entry.lane == lane);
            if let Some(index) = known
                && let Some(entry) = entries.get_mut(index)
            {
                match &entry.slot {
                    Slot::Ready { connection, .. } => {
                        return Ok(Found::Ready(entry.serial, connection.clone()));
                    }
                    Slot::Connecting { outcome, overdue } => match outcome.peek() {
                        Some(Some(connection)) => {
                            let connection = connection.clone();
                            entry.slot = Slot::Ready { connection: connection.clone(), silent: 0 };
                            return Ok(Found::Ready(entry.serial, connection));
                        }
                        Some(None) => {
                            entries.swap_remove(index);
                            return Err(Unavailable::CannotConnect);
                        }
                        None if Instant::now() >= *overdue => return Err(Unavailable::NotConnected),
                        None => return Ok(Found::Wait(entry.serial, outcome.clone())),
                    },
                }
            }
            entries.retain(|entry| entry.of.upgrade().is_some_and(|node| !node.is_retired()));
            let (target, config) = (Arc::clone(node), self.config.clone());
            let outcome = async move { target.connect(&config).await.ok() }.boxed().shared();
            // Driven by a task of its own, so that a caller whose deadline passes does not abort it.
            tokio::spawn(outcome.clone());
            let serial = Serial(NEXT_SERIAL.replace(NEXT_SERIAL.get().wrapping_add(1)));
            let overdue = Instant::now() + self.settings.deadline * CONNECT_DEADLINES;
            let slot = Slot::Connecting { outcome: outcome.clone(), overdue };
            let of = Arc::downgrade(node);
            entries.push(Entry { node: node.id, of, lane, epoch, serial, slot });
            Ok(Found::Wait(serial, outcome))
        })
    }
}

/// Notes that a command on this connection was answered.
pub(super) fn note_answer(serial: Serial) {
    change(serial, |entry| {
        if let Slot::Ready { silent, .. } = &mut entry.slot {
            *silent = 0;
        }
        true
    });
}

/// Notes that a command on this connection was not answered in time.
pub(super) fn note_silence(serial: Serial) {
    change(serial, |entry| match &mut entry.slot {
        Slot::Ready { silent, .. } => {
            *silent = silent.saturating_add(1);
            *silent < MOST_SILENT
        }
        Slot::Connecting { .. } => true,
    });
}

/// Forgets this connection after it broke.
pub(super) fn discard(serial: Serial) {
    change(serial, |_| false);
}

/// Changes the entry of this connection, if it is still there, and keeps it when `keep` says so.
fn change(serial: Serial, keep: impl FnOnce(&mut Entry) -> bool) {
    CONNECTIONS.with_borrow_mut(|entries| {
        let index = entries.iter().position(|entry| entry.serial == serial);
        if let Some(index) = index
            && let Some(entry) = entries.get_mut(index)
            && !keep(entry)
        {
            entries.swap_remove(index);
        }
    });
}
