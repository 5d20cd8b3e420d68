//! The supervisor's own connection to one node, for the work that must be done before requests may ask it.

use std::sync::Arc;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, Pipeline, RedisError, RedisResult, Value};

use super::cluster::Map;
use super::node::Node;
use super::slot::{SLOTS, Shard};
use super::{Store, Topology, Unavailable};

/// One node, and which keys live there.
pub struct Link<'a> {
    store: &'a Store,
    node: &'a Node,
    connection: MultiplexedConnection,
    /// In Cluster, who owns what.
    map: Option<Arc<Map>>,
}

/// What became of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It was executed.
    Executed,
    /// Its key has just moved to another node.
    Moved,
    /// The node refused it.
    Refused(Unavailable),
}

impl<'a> Link<'a> {
    pub(super) fn new(store: &'a Store, node: &'a Node, connection: MultiplexedConnection) -> Self {
        let map = match &store.topology {
            Topology::One(_) => None,
            Topology::Many(cluster) => cluster.map(),
        };
        Self { store, node, connection, map }
    }

    /// The connection, for commands that concern no key or those of this node only.
    pub fn connection(&mut self) -> &mut MultiplexedConnection {
        &mut self.connection
    }

    /// Whether `key` lives on this node.
    pub fn holds(&self, key: &[u8]) -> bool {
        self.map.as_ref().is_none_or(|map| self.owns(map, Shard::of(key)))
    }

    /// A key that begins with `stem` and lives on this node; `None` where no key does.
    pub fn trial_key(&self, stem: &str) -> Option<String> {
        let Some(map) = &self.map else { return Some(stem.to_owned()) };
        // Any start will do; another each time, because a slot may be on the move.
        let start = fastrand::u32(..1 << 20);
        // A node with a single slot is found with near certainty within this many.
        (start..start + 16 * u32::from(SLOTS))
            .map(|number| format!("{stem}:{{{number}}}"))
            .find(|key| self.owns(map, Shard::of(key.as_bytes())))
    }

    /// Sends all commands in one go and says which were executed. The others concern keys that have just moved to
    /// another node.
    ///
    /// # Errors
    /// When the connection breaks or the node refuses any of them; then any may have been executed.
    pub async fn send(&mut self, commands: &[Cmd]) -> RedisResult<Vec<bool>> {
        self.values(commands).await?.into_iter().map(|value| self.is_executed(value)).collect()
    }

    /// As [`Self::send`], and says of each what became of it.
    ///
    /// # Errors
    /// When the connection breaks; then any may have been executed.
    pub async fn send_each(&mut self, commands: &[Cmd]) -> RedisResult<Vec<Sent>> {
        let values = self.values(commands).await?;
        let sent = values.into_iter().map(|value| match self.is_executed(value) {
            Ok(true) => Sent::Executed,
            Ok(false) => Sent::Moved,
            Err(error) => Sent::Refused(error.into()),
        });
        Ok(sent.collect())
    }

    async fn values(&mut self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        let mut pipeline = Pipeline::with_capacity(commands.len());
        for command in commands {
            pipeline.add_command(command.clone());
        }
        self.connection.send_packed_commands(&pipeline, 0, commands.len()).await
    }

    /// Whether the command was executed that `value` answers; otherwise its key has moved.
    fn is_executed(&self, value: Value) -> RedisResult<bool> {
        let Value::ServerError(error) = value else { return Ok(true) };
        let error = RedisError::from(error);
        if Unavailable::from(error.clone()) != Unavailable::Redirected {
            return Err(error);
        }
        self.store.doubt_map();
        Ok(false)
    }

    fn owns(&self, map: &Map, shard: Shard) -> bool {
        map.owner(shard).is_some_and(|owner| owner.id == self.node.id)
    }
}
