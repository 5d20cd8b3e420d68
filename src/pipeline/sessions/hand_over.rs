//! Sessions that were opened, used or ended while the store was away: it gets them before requests ask it again.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ::redis::{Cmd, Pipeline, RedisError, RedisResult, ServerError, Value, cmd};
use futures::stream::{self, StreamExt as _};

use super::super::gateway::Shared;
use super::stored::{self, COMPARE_AND_SET};
use crate::clock::UnixMillis;
use crate::identity::blacklist_key;
use crate::redis::{Lane, Link, Unavailable};
use crate::sessions::local::Change;
use crate::sessions::{Record, Session};

/// Accounts handed over in one go.
const BATCH: usize = 256;
/// Tokens that other nodes are asked for at the same time.
const ASKED_AT_ONCE: usize = 64;
/// Goes over the same accounts: others may be changing them, too.
const MOST_ROUNDS: usize = 8;
/// Before another attempt with what could not be handed over.
const LATER: Duration = Duration::from_secs(1);

/// An account under way to the store.
struct Owed {
    key: Arc<str>,
    changes: Vec<Change>,
    /// The sessions that have to end for it.
    evicted: Vec<Session>,
}

/// An account, what the store is owed of it, and what that holds.
type Read = (Arc<str>, Vec<Change>, Vec<u8>);

/// What the store says of tokens.
#[derive(Default)]
struct Tokens {
    /// They are revoked.
    revoked: HashSet<Box<str>>,
    /// Nobody could say.
    unknown: HashSet<Box<str>>,
}

impl Shared {
    /// Hands over what this node has not got of the sessions that live on it. What was not written stays owed, also
    /// when the call is given up halfway, and is tried again a little later.
    pub(in crate::pipeline) async fn hand_over_sessions(&self, link: &mut Link<'_>) -> RedisResult<()> {
        let local = &self.sessions.local;
        let mut left = local.owing();
        left.retain(|key| link.holds(key.as_bytes()));
        let (mut count, mut rounds, mut vain) = (0, 0, 0);
        while !left.is_empty() && rounds < MOST_ROUNDS && vain < 2 {
            let before = left.len();
            for batch in std::mem::take(&mut left).chunks(BATCH) {
                left.append(&mut self.hand_over_batch(link, local.owed(batch)).await?);
            }
            count += before.saturating_sub(left.len());
            rounds += 1;
            vain = if left.len() == before { vain + 1 } else { 0 };
        }
        if count > 0 {
            tracing::info!(count, "sessions of users were handed over that Redis had not got");
        }
        if !left.is_empty() {
            self.hand_over_later();
        }
        Ok(())
    }

    /// One wait at a time, however many nodes and logins find something left: what comes after it goes to all nodes.
    pub(in crate::pipeline) fn hand_over_later(&self) {
        let Some(store) = &self.store else { return };
        if self.sessions.hand_over_due.swap(true, Ordering::AcqRel) {
            return;
        }
        let (store, due) = (Arc::clone(store), Arc::clone(&self.sessions.hand_over_due));
        tokio::spawn(async move {
            tokio::time::sleep(LATER).await;
            due.store(false, Ordering::Release);
            store.hand_over_soon();
        });
    }

    /// Returns the accounts that are still owing.
    async fn hand_over_batch(
        &self,
        link: &mut Link<'_>,
        owed: Vec<(Arc<str>, Vec<Change>)>,
    ) -> RedisResult<Vec<Arc<str>>> {
        let now = self.clock.now();
        let mut reads = Pipeline::with_capacity(owed.len());
        for (key, _) in &owed {
            reads.add_command(stored::get(key));
        }
        if owed.is_empty() {
            return Ok(Vec::new());
        }
        let values = link.connection().send_packed_commands(&reads, 0, owed.len()).await?;
        let (mut left, mut read): (_, Vec<Read>) = (Vec::new(), Vec::with_capacity(owed.len()));
        for ((key, changes), value) in owed.into_iter().zip(values) {
            match value {
                // Its key has moved, and its new node gets it; or it cannot be read for the moment.
                Value::ServerError(error) if error.code() != "WRONGTYPE" => left.push(key),
                value => match stored::value(value) {
                    Ok(seen) => read.push((key, changes, seen.into())),
                    // Something else has this name.
                    Err(_) => self.sessions.local.settle(&key, &changes),
                },
            }
        }
        let tokens = self.tokens_of(link, &read, now).await?;
        let (mut writes, mut under_way) =
            (Pipeline::with_capacity(read.len()), Vec::with_capacity(read.len()));
        for (key, changes, seen) in read {
            let mut record = Record::parse(&seen);
            let Some(evicted) = self.bring_up(&mut record, &changes, &tokens, now) else {
                left.push(key);
                continue;
            };
            writes.add_command(stored::compare_and_set(&key, &seen, &record));
            under_way.push(Owed { key, changes, evicted });
        }
        if under_way.is_empty() {
            return Ok(left);
        }
        let answers = link.connection().send_packed_commands(&writes, 0, under_way.len()).await?;
        let mut script_lost = false;
        for (owed, answer) in under_way.into_iter().zip(answers) {
            match answer {
                Value::Int(1) => {
                    self.sessions.local.settle(&owed.key, &owed.changes);
                    for token in owed.changes.iter().filter_map(Change::lives).map(|session| &session.token) {
                        if tokens.revoked.contains(token) {
                            self.sessions.local.end(&owed.key, Some(token), false, now);
                        }
                    }
                    self.evict(&owed.key, &owed.evicted, now).await;
                }
                answer => {
                    script_lost |= matches!(&answer, Value::ServerError(error) if is_unknown_script(error));
                    left.push(owed.key);
                }
            }
        }
        if script_lost {
            COMPARE_AND_SET.load().exec_async(link.connection()).await?;
        }
        Ok(left)
    }

    /// What is known of the tokens whose sessions the store has not got: they may have been ended elsewhere, which
    /// revokes them.
    async fn tokens_of(&self, link: &mut Link<'_>, read: &[Read], now: UnixMillis) -> RedisResult<Tokens> {
        let mut tokens = Tokens::default();
        let (mut here, mut elsewhere) = (Vec::new(), Vec::new());
        for (_, changes, seen) in read {
            let record = Record::parse(seen);
            for session in changes.iter().filter_map(Change::lives) {
                let revocation = blacklist_key(&self.sessions.key_prefix, &session.token);
                if self.known.holds(&revocation, now) {
                    tokens.revoked.insert(session.token.clone());
                } else if record.find(&session.token).is_some() {
                    // It goes on.
                } else if link.holds(revocation.as_bytes()) {
                    here.push((session.token.clone(), exists(&revocation)));
                } else {
                    elsewhere.push((session.token.clone(), revocation));
                }
            }
        }
        let mut note = |token: Box<str>, answer: Option<Value>| match answer {
            Some(Value::Int(0)) => {}
            Some(Value::Int(_)) => drop(tokens.revoked.insert(token)),
            _ => drop(tokens.unknown.insert(token)),
        };
        if !here.is_empty() {
            let mut asked = Pipeline::with_capacity(here.len());
            for (_, command) in &here {
                asked.add_command(command.clone());
            }
            let answers = link.connection().send_packed_commands(&asked, 0, here.len()).await?;
            here.into_iter().zip(answers).for_each(|((token, _), answer)| note(token, Some(answer)));
        }
        if let Some(store) = &self.store {
            let asked = stream::iter(elsewhere).map(|(token, revocation)| async move {
                let shard = store.shard(revocation.as_bytes());
                (token, store.call(Lane::Decisions, shard, &exists(&revocation)).await.ok())
            });
            let mut answers = asked.buffer_unordered(ASKED_AT_ONCE);
            while let Some((token, answer)) = answers.next().await {
                note(token, answer);
            }
        }
        Ok(tokens)
    }

    /// Makes the changes; what they end is returned. Sessions whose tokens were revoked meanwhile stay away. `None`:
    /// of one nobody can say yet.
    fn bring_up(
        &self,
        record: &mut Record,
        changes: &[Change],
        tokens: &Tokens,
        now: UnixMillis,
    ) -> Option<Vec<Session>> {
        let mut evicted = Vec::new();
        record.let_go(|token| self.is_token_revoked(token, now));
        for change in changes {
            let token = change.lives().map(|session| &session.token);
            if token.is_some_and(|token| tokens.unknown.contains(token)) {
                return None;
            }
            if token.is_none_or(|token| !tokens.revoked.contains(token)) {
                evicted.extend(change.apply(record, &self.sessions.rules, now));
            }
        }
        Some(evicted)
    }
}

fn exists(key: &str) -> Cmd {
    let mut command = cmd("EXISTS");
    command.arg(key);
    command
}

/// The store has forgotten the script.
fn is_unknown_script(error: &ServerError) -> bool {
    Unavailable::from(RedisError::from(error.clone())) == Unavailable::ScriptUnknown
}
