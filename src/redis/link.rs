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
        let mut pipeline = Pipeline::with_capacity(commands.len());
        for command in commands {
            pipeline.add_command(command.clone());
        }
        let values = self.connection.send_packed_commands(&pipeline, 0, commands.len()).await?;
        let mut executed = Vec::with_capacity(values.len());
        for value in values {
            let moved = match value {
                Value::ServerError(error) => {
                    let error = RedisError::from(error);
                    let failure = Unavailable::from(error.clone());
                    if failure != Unavailable::Redirected {
                        return Err(error);
                    }
                    self.store.doubt_map();
                    true
                }
                _ => false,
            };
            executed.push(!moved);
        }
        Ok(executed)
    }

    fn owns(&self, map: &Map, shard: Shard) -> bool {
        map.owner(shard).is_some_and(|owner| owner.id == self.node.id)
    }
}
