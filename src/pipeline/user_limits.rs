//! Reads what the store says of one user's limits, in the background: no request waits for it, and while the store is
//! away what was known holds.

use std::sync::Arc;

use redis::{Value, cmd, from_redis_value};

use super::gateway::Shared;
use crate::limits::user_limits::{self, Adjustment, Due, FIELDS};
use crate::redis::Lane;

/// Starts reading the hash of `user`, which applies from the next request on. Must be called on a worker, whose
/// connection is used.
pub(super) fn refresh(shared: &Arc<Shared>, user: &str, due: Due) {
    let Some(store) = &shared.store else { return };
    let key = user_limits::key(&store.settings().key_prefix, user);
    let shard = store.shard(key.as_bytes());
    if !store.available(shard) {
        return;
    }
    let mut command = cmd("HMGET");
    command.arg(key);
    for field in FIELDS {
        command.arg(field);
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let Some(store) = &shared.store else { return };
        let answer = store.call(Lane::Decisions, shard, &command).await;
        due.read(answer.ok().and_then(adjustment), shared.clock.now());
    });
}

fn adjustment(value: Value) -> Option<Adjustment> {
    let values: [Option<String>; 4] = from_redis_value::<Vec<_>>(value).ok()?.try_into().ok()?;
    Some(Adjustment::of(values.each_ref().map(Option::as_deref)))
}
