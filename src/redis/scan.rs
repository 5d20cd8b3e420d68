//! Going through the keys of a store, page by page and node by node. Whoever does takes his time: requests go first.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Value, cmd, from_redis_value};
use tokio::time::Instant;

use super::connection::Lane;
use super::node::Node;
use super::{Store, Unavailable};

/// For one page.
const PATIENCE: Duration = Duration::from_secs(2);

/// The keys that match a pattern.
pub struct Scan<'a> {
    store: &'a Store,
    pattern: String,
    count: usize,
    nodes: Vec<Arc<Node>>,
    cursor: u64,
}

impl<'a> Scan<'a> {
    pub(super) fn new(store: &'a Store, pattern: String, count: usize) -> Self {
        Self { store, pattern, count, nodes: store.nodes(), cursor: 0 }
    }

    /// The next page, which may be empty; `None` after the last. A key may come twice.
    ///
    /// # Errors
    /// When the node cannot be asked. Nothing can be said of the rest then.
    pub async fn next(&mut self) -> Option<Result<Vec<Vec<u8>>, Unavailable>> {
        let node = Arc::clone(self.nodes.last()?);
        let mut command = cmd("SCAN");
        command.arg(self.cursor).arg("MATCH").arg(&self.pattern).arg("COUNT").arg(self.count);
        let page = match self.store.ask(&node, Lane::Bodies, &command, Instant::now() + PATIENCE).await {
            Ok(page) => page,
            Err(failure) => return Some(Err(failure.settle())),
        };
        let Ok((cursor, keys)) = from_redis_value::<(u64, Vec<Value>)>(page) else {
            return Some(Err(Unavailable::Rejected));
        };
        self.cursor = cursor;
        if cursor == 0 {
            self.nodes.pop();
        }
        let keys = keys.into_iter().filter_map(|key| match key {
            Value::BulkString(key) => Some(key),
            _ => None,
        });
        Some(Ok(keys.collect()))
    }
}
