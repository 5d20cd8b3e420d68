//! How a question reaches one shard of the store, and how its answer reads. It decides nothing and retries nothing.

use redis::{Cmd, Pipeline, Value};

use crate::redis::{Lane, Store, Unavailable};

/// A part of the store in which one call may name several keys.
pub(super) type Shard = ();

/// The shard of `key`.
pub(super) fn shard(_store: &Store, _key: &[u8]) -> Shard {}

/// Whether keys may lie in different shards at all.
pub(super) fn is_divided(_store: &Store) -> bool {
    false
}

/// Whether that shard may be asked at the moment.
pub(super) fn available(store: &Store, (): Shard) -> bool {
    store.available()
}

/// `things` by the shard of the key of each.
pub(super) fn by_shard<T>(store: &Store, things: Vec<T>, key: impl Fn(&T) -> &[u8]) -> Vec<(Shard, Vec<T>)> {
    let mut parts: Vec<(Shard, Vec<T>)> = Vec::new();
    for thing in things {
        let shard = shard(store, key(&thing));
        match parts.iter_mut().find(|(known, _)| *known == shard) {
            Some((_, part)) => part.push(thing),
            None => parts.push((shard, vec![thing])),
        }
    }
    parts
}

/// One command.
pub(super) async fn call(store: &Store, (): Shard, command: &Cmd) -> Result<Value, Unavailable> {
    store.call(Lane::Decisions, command).await
}

/// Commands sent together; an error to one of them is a value.
pub(super) async fn pipeline(
    store: &Store,
    (): Shard,
    pipeline: &Pipeline,
) -> Result<Vec<Value>, Unavailable> {
    store.pipeline(Lane::Decisions, pipeline).await
}

pub(super) use super::interim::{batch, refund};
