//! How a question reaches one shard of the store, and how its answer reads. It decides nothing and retries nothing.

use std::time::Duration;

use redis::{Cmd, Pipeline, Value};

use super::question::Owed;
use super::{GATE, Link, REFUND};
use crate::limits::batch::{Batch, BatchReply};
use crate::limits::gate;
use crate::redis::{Lane, Shard, Store, Unavailable};

/// No request waits for what is taken back.
const PATIENCE: Duration = Duration::from_secs(2);

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

/// The script, which judges and counts all items in one step.
pub(super) async fn batch(link: &Link, shard: Shard, batch: &Batch<'_>) -> Result<BatchReply, Unavailable> {
    let mut command = GATE.command();
    gate::encode(batch, &mut command);
    let value = link.store.eval(Lane::Decisions, shard, &GATE, &command).await?;
    match gate::decode(value, batch) {
        Ok(reply) => Ok(reply),
        Err(malformed) => {
            tracing::error!(%malformed, "the store answered what the gate script cannot have said");
            Err(Unavailable::Rejected)
        }
    }
}

/// Takes counts back, with more patience than requests have: what times out stays counted.
pub(super) async fn refund(link: &Link, shard: Shard, owed: &[Owed]) -> Result<(), Unavailable> {
    let mut command = REFUND.command();
    let refunds: Vec<_> = owed.iter().map(Owed::as_refund).collect();
    gate::encode_refunds(&refunds, &mut command);
    link.store.eval_within(PATIENCE, Lane::Bodies, shard, &REFUND, &command).await.map(drop)
}
