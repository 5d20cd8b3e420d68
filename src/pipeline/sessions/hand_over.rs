//! Sessions that were opened, used or ended while the store was away: it gets them before requests ask it again.

use std::sync::Arc;

use ::redis::{Pipeline, RedisError, RedisResult, ServerError, Value};

use super::super::gateway::Shared;
use super::stored;
use crate::clock::UnixMillis;
use crate::identity::blacklist_key;
use crate::redis::{Link, Unavailable};
use crate::sessions::local::Change;
use crate::sessions::{Record, Session};

/// Accounts handed over in one go.
const BATCH: usize = 256;
/// Goes over the same accounts: others may be changing them, too.
const MOST_ROUNDS: usize = 8;

/// An account under way to the store.
struct Owed {
    key: Arc<str>,
    changes: Vec<Change>,
    /// The sessions that have to end for it.
    evicted: Vec<Session>,
}

impl Shared {
    /// Hands over what this node has not got of the sessions that live on it. What was not written stays owed, also
    /// when the call is given up halfway.
    pub(in crate::pipeline) async fn hand_over_sessions(&self, link: &mut Link<'_>) -> RedisResult<()> {
        let local = &self.sessions.local;
        let (mut count, mut rounds) = (0, 0);
        while rounds < MOST_ROUNDS {
            let owed = local.owed(BATCH, |key| link.holds(key.as_bytes()));
            if owed.is_empty() {
                break;
            }
            let written = self.hand_over_batch(link, owed).await?;
            count += written;
            rounds += usize::from(written == 0);
        }
        if count > 0 {
            tracing::info!(count, "sessions of users were handed over that Redis had not got");
        }
        Ok(())
    }

    /// Returns how many accounts are settled.
    async fn hand_over_batch(
        &self,
        link: &mut Link<'_>,
        owed: Vec<(Arc<str>, Vec<Change>)>,
    ) -> RedisResult<usize> {
        let now = self.clock.now();
        let mut reads = Pipeline::with_capacity(owed.len());
        for (key, _) in &owed {
            reads.add_command(stored::get(key));
        }
        let values = link.connection().send_packed_commands(&reads, 0, owed.len()).await?;
        let (mut writes, mut under_way) =
            (Pipeline::with_capacity(owed.len()), Vec::with_capacity(owed.len()));
        let mut settled = 0;
        for ((key, changes), value) in owed.into_iter().zip(values) {
            let seen = match value {
                // Its key has moved, and its new node gets it.
                Value::ServerError(error) if is_moved(&error) => continue,
                value => stored::value(value),
            };
            let Ok(seen) = seen else {
                // Something else has this name.
                self.sessions.local.settle(&key, &changes);
                settled += 1;
                continue;
            };
            let mut record = Record::parse(&seen);
            let evicted = self.bring_up(&mut record, &changes, now);
            writes.add_command(stored::compare_and_set(&key, &seen, &record));
            under_way.push(Owed { key, changes, evicted });
        }
        if under_way.is_empty() {
            return Ok(settled);
        }
        let answers = link.connection().send_packed_commands(&writes, 0, under_way.len()).await?;
        for (owed, answer) in under_way.into_iter().zip(answers) {
            if answer == Value::Int(1) {
                settled += 1;
                self.sessions.local.settle(&owed.key, &owed.changes);
                self.evict(&owed.key, &owed.evicted, now).await;
            }
        }
        Ok(settled)
    }

    /// Makes the changes; what they end is returned. Sessions whose tokens were revoked meanwhile stay away.
    fn bring_up(&self, record: &mut Record, changes: &[Change], now: UnixMillis) -> Vec<Session> {
        let mut evicted = Vec::new();
        let revoked = |token: &str| self.known.holds(&blacklist_key(&self.sessions.key_prefix, token), now);
        for change in changes {
            if matches!(change, Change::Lives(session) if revoked(&session.token)) {
                continue;
            }
            evicted.extend(change.apply(record, &self.sessions.rules, now));
        }
        evicted
    }
}

/// An error that is no word about the value: the key has moved, or is on its way.
fn is_moved(error: &ServerError) -> bool {
    Unavailable::from(RedisError::from(error.clone())) == Unavailable::Redirected
}
