//! The sessions of an account in the store: read, and changed by comparing and setting. It knows no rule of theirs.

use std::sync::LazyLock;
use std::time::Duration;

use ::redis::{Cmd, Value, cmd};
use bytes::Bytes;

use super::super::gateway::Shared;
use crate::redis::{Lane, Script, Store, Unavailable};
use crate::sessions::Record;
use crate::sessions::record::MAX_BYTES;

/// The script that replaces a value if it is still the same.
pub static COMPARE_AND_SET: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../../redis/scripts/compare_and_set.lua")));

/// How often one change is tried while others change the same.
const MOST_ATTEMPTS: usize = 16;
/// For an operator's question, which no request waits for.
const PATIENCE: Duration = Duration::from_millis(500);

/// Why the store does not have a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotChanged {
    /// There is no store: the memory of this instance is all there is.
    Memory,
    /// It gave no answer, or so many others changed the same that it is to be tried later.
    Away,
    /// It will not: the key is of another type.
    Refused,
}

impl From<Unavailable> for NotChanged {
    fn from(unavailable: Unavailable) -> Self {
        if unavailable == Unavailable::Rejected { Self::Refused } else { Self::Away }
    }
}

impl Shared {
    /// Makes `change` to what is stored under `key`, which may look like `seen`; a wrong guess costs one more round
    /// trip.
    pub(super) async fn change_sessions<T>(
        &self,
        key: &str,
        seen: &[u8],
        change: impl FnMut(&mut Record) -> T,
    ) -> Result<T, NotChanged> {
        self.change_sessions_within(key, seen, None, change).await
    }

    /// As [`Self::change_sessions`]; the store is given at least this time for each answer, where no client waits.
    pub(super) async fn change_sessions_within<T>(
        &self,
        key: &str,
        seen: &[u8],
        patience: Option<Duration>,
        mut change: impl FnMut(&mut Record) -> T,
    ) -> Result<T, NotChanged> {
        let store = self.store.as_ref().ok_or(NotChanged::Memory)?;
        let shard = store.shard(key.as_bytes());
        let mut old = Bytes::copy_from_slice(seen);
        for _ in 0..MOST_ATTEMPTS {
            if !store.available(shard) {
                return Err(NotChanged::Away);
            }
            let mut record = Record::parse(&old);
            let outcome = change(&mut record);
            let command = compare_and_set(key, &old, &record);
            let deadline = store.deadline(patience);
            match store.eval_within(deadline, Lane::Decisions, shard, &COMPARE_AND_SET, &command).await? {
                Value::Int(_) => return Ok(outcome),
                Value::BulkString(current) => old = current.into(),
                _ => return Err(NotChanged::Refused),
            }
        }
        Err(NotChanged::Away)
    }
}

/// What is stored under `key`; nothing where there is none.
pub(super) async fn read(store: &Store, key: &str) -> Result<Bytes, NotChanged> {
    let shard = store.shard(key.as_bytes());
    value(store.call_within(PATIENCE, Lane::Bodies, shard, &get(key)).await?)
}

pub(super) fn get(key: &str) -> Cmd {
    let mut command = cmd("GET");
    command.arg(key);
    command
}

/// The answer to [`get`].
pub(super) fn value(answer: Value) -> Result<Bytes, NotChanged> {
    match answer {
        Value::BulkString(value) => Ok(value.into()),
        Value::Nil => Ok(Bytes::new()),
        _ => Err(NotChanged::Refused),
    }
}

/// Puts `record` in the place of `old`.
pub(super) fn compare_and_set(key: &str, old: &[u8], record: &Record) -> Cmd {
    let ends = record.ends().map_or(0, |ends| ends.0);
    let mut command = COMPARE_AND_SET.command();
    command.arg(1).arg(key).arg(old).arg(record.encode()).arg(ends).arg(MAX_BYTES);
    command
}
