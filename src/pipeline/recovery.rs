//! What must reach the store before requests ask it again, and what other instances say meanwhile.

use std::sync::Arc;

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisResult, cmd};
use async_trait::async_trait;

use super::exchange::GATE;
use super::gateway::Shared;
use crate::clock::UnixMillis;
use crate::identity::revocation::{Effect, Revocation};
use crate::limits::gate;
use crate::redis::{EventHandler, Link, Recovery};

/// Revocations read from the store when a connection is made: enough for any logout habit, bounded against a
/// store that is full of something else.
const MAX_LEARNED: usize = 500_000;
const SCAN_COUNT: usize = 1_000;
/// The key, after the prefix, of a counter that tries whether the store can count at all.
const PROBE: &str = "tollgate:probe";

/// Recovers the state that instances share.
pub struct Recoverer(pub Arc<Shared>);

#[async_trait]
impl Recovery for Recoverer {
    fn owes(&self) -> bool {
        !self.0.pending.is_empty() || self.0.cache.generations().owes() || self.0.sessions.owe()
    }

    async fn verify(&self, link: &mut Link<'_>) -> RedisResult<()> {
        let Some(store) = &self.0.store else { return Ok(()) };
        let stem = format!("{}{PROBE}", store.settings().key_prefix);
        // A node without slots cannot count, and nothing is counted there.
        let Some(key) = link.trial_key(&stem) else { return Ok(()) };
        // The second time finds the counter there and reads its end.
        for _ in 0..2 {
            let mut command = GATE.command();
            gate::encode_trial(key.as_bytes(), &mut command);
            command.exec_async(link.connection()).await?;
        }
        Ok(())
    }

    async fn recover(&self, link: &mut Link<'_>) -> RedisResult<()> {
        self.0.hand_over_revocations(link).await?;
        self.0.hand_over_invalidations(link).await?;
        self.0.hand_over_sessions(link).await?;
        self.0.hand_over_counts(link).await;
        Ok(())
    }
}

#[async_trait]
impl EventHandler for Recoverer {
    fn event(&self, payload: &[u8]) {
        if self.0.forget_counter(payload) || self.0.api_tokens.follow(payload) {
            return;
        }
        let revocation = std::str::from_utf8(payload).ok().and_then(Revocation::from_message);
        if let Some(revocation) = revocation {
            self.0.learn(&revocation, self.0.clock.now());
        }
    }

    async fn catch_up(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        self.0.learn_revocations(connection).await
    }
}

impl Shared {
    /// Learns the revocations that the store holds, so that they hold here while it is away.
    async fn learn_revocations(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let Some(store) = &self.store else { return Ok(()) };
        let prefix = &store.settings().key_prefix;
        // Cut-offs first: they are few and each stands for many tokens.
        for family in ["revoked_before:", "blacklist:"] {
            let mut learned = 0_usize;
            let pattern = format!("{}{family}*", escape_glob(prefix));
            let mut cursor = 0_u64;
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN_COUNT);
                let (next, keys): (u64, Vec<String>) = scan.query_async(connection).await?;
                learned = learned.saturating_add(keys.len());
                self.learn_keys(connection, keys, family == "revoked_before:").await?;
                cursor = next;
                if cursor == 0 {
                    break;
                }
                if learned >= MAX_LEARNED {
                    tracing::warn!(
                        family,
                        "there are more revocations in Redis than are learned: some hold only while it is there"
                    );
                    break;
                }
            }
        }
        Ok(())
    }

    async fn learn_keys(
        &self,
        connection: &mut MultiplexedConnection,
        keys: Vec<String>,
        are_cutoffs: bool,
    ) -> RedisResult<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut pipeline = ::redis::pipe();
        for key in &keys {
            pipeline.cmd("PEXPIRETIME").arg(key).cmd("GET").arg(key);
        }
        // Each for itself: in a cluster a key may have moved since it was seen.
        let answers = connection.send_packed_commands(&pipeline, 0, pipeline.len()).await?;
        let now = self.clock.now();
        for (key, answer) in keys.into_iter().zip(answers.chunks(2)) {
            let [ends, value] = answer else { continue };
            if matches!(ends, ::redis::Value::ServerError(_)) {
                continue;
            }
            let until = match ends {
                ::redis::Value::Int(at) if *at > 0 => UnixMillis(at.unsigned_abs()),
                // A key that never expires was set by hand: believed until it is asked for again.
                _ => now.plus(std::time::Duration::from_secs(86_400)),
            };
            let effect = if are_cutoffs {
                let text: String = ::redis::from_redis_value(value.clone()).unwrap_or_default();
                // What cannot be read as a number revokes: it fails closed.
                Effect::IssuedBefore(text.trim().parse().unwrap_or(u64::MAX))
            } else {
                Effect::Token
            };
            self.learn(&Revocation { key: key.into(), effect, until }, now);
        }
        Ok(())
    }
}

pub(super) fn escape_glob(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}
