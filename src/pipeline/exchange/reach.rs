//! How a question reaches one shard of the store, and how its answer reads. It decides nothing and retries nothing.

use redis::{Cmd, Pipeline, Value};

use crate::redis::{Lane, Shard, Store, Unavailable};

/// `things` by the shard of the key of each.
pub(super) fn by_shard<T>(store: &Store, things: Vec<T>, key: impl Fn(&T) -> &[u8]) -> Vec<(Shard, Vec<T>)> {
    let mut parts: Vec<(Shard, Vec<T>)> = Vec::new();
    for thing in things {
        let shard = store.shard(key(&thing));
        match parts.iter_mut().find(|(known, _)| *known == shard) {
            Some((_, part)) => part.push(thing),
            None => parts.push((shard, vec![thing])),
        }
    }
    parts
}

/// One command.
pub(super) async fn call(store: &Store, shard: Shard, command: &Cmd) -> Result<Value, Unavailable> {
    store.call(Lane::Decisions, shard, command).await
}

/// Commands sent together; an error to one of them is a value.
pub(super) async fn pipeline(
    store: &Store,
    shard: Shard,
    pipeline: &Pipeline,
) -> Result<Vec<Value>, Unavailable> {
    store.pipeline(Lane::Decisions, shard, pipeline).await
}

pub(super) use super::interim::{batch, refund};
