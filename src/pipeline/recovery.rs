//! What must reach the store before requests ask it again, and what other instances say meanwhile.

use std::sync::Arc;
use std::time::Duration;

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
/// Revoked tokens and cut-offs, by the beginnings of their keys after the prefix.
const TOKENS: &str = "blacklist:";
const CUTOFFS: &str = "revoked_before:";
/// The key, after the prefix, of a counter that tries whether the store can count at all.
const PROBE: &str = "tollgate:probe";

/// Between two looks whether the store has got everything.
const PAUSE: Duration = Duration::from_millis(50);

/// Recovers the state that instances share.
pub struct Recoverer(pub Arc<Shared>);

impl Recoverer {
    /// Returns once the store has got all that it is owed, the uses of sessions included that are being written down.
    pub async fn settle(&self) {
        let Some(store) = &self.0.store else { return };
        while self.owes() || self.0.sessions.are_written() {
            store.hand_over_soon();
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[async_trait]
impl Recovery for Recoverer {
    fn owes(&self) -> bool {
        let shared = &self.0;
        !shared.pending.is_empty()
            || shared.cache.generations().owes()
            || shared.sessions.owe()
            || shared.api_tokens.owed() > 0
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
        if self.0.api_tokens.hand_over(link).await? {
            self.0.hand_over_later();
        }
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
        // What is learned is written again where it was lost: never under a key that means something else.
        if let Some(revocation) = revocation.filter(|revocation| self.0.is_named_well(revocation)) {
            self.0.learn(&revocation, self.0.clock.now());
        }
    }

    async fn catch_up(&self, link: &mut Link<'_>) -> RedisResult<()> {
        self.0.learn_revocations(link.connection()).await?;
        self.0.restore_revocations(link).await
    }

    fn has_kept(&self) -> bool {
        !self.0.known.is_empty()
    }

    async fn look(&self, link: &mut Link<'_>) -> RedisResult<()> {
        self.0.look_for_lost_revocations(link).await
    }
}

impl Shared {
    /// Whether the key of a revocation is that of one.
    fn is_named_well(&self, revocation: &Revocation) -> bool {
        let Some(store) = &self.store else { return false };
        let family = match revocation.effect {
            Effect::Token => TOKENS,
            Effect::IssuedBefore(_) => CUTOFFS,
        };
        let name = revocation.key.strip_prefix(&*store.settings().key_prefix);
        name.is_some_and(|name| name.len() > family.len() && name.starts_with(family))
    }

    /// Learns the revocations that the store holds, so that they hold here while it is away.
    async fn learn_revocations(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let Some(store) = &self.store else { return Ok(()) };
        let prefix = &store.settings().key_prefix;
        // Cut-offs first: they are few and each stands for many tokens.
        for family in [CUTOFFS, TOKENS] {
            let mut learned = 0_usize;
            let pattern = format!("{}{family}*", escape_glob(prefix));
            let mut cursor = 0_u64;
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN_COUNT);
                let (next, keys): (u64, Vec<String>) = scan.query_async(connection).await?;
                learned = learned.saturating_add(keys.len());
                self.learn_keys(connection, keys, family == CUTOFFS).await?;
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
                _ => now.plus(Duration::from_secs(86_400)),
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
