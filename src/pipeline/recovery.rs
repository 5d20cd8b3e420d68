//! What must reach the store before requests ask it again, and what other instances say meanwhile.

use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisResult, Value, cmd};
use async_trait::async_trait;
use tokio::time::timeout;

use super::exchange::GATE;
use super::gateway::Shared;
use super::restore::Restorer;
use crate::identity::revocation::{CUTOFFS, Effect, LONGEST, Revocation, TOKENS};
use crate::limits::gate;
use crate::redis::{EventHandler, Link, Look, Recovery};

/// Revocations read from the store when a connection is made: enough for any logout habit, bounded against a
/// store that is full of something else.
const MAX_LEARNED: usize = 500_000;
const SCAN_COUNT: usize = 1_000;
/// A node that takes longer for one answer has gone silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// For so long holds what has no end in the store: it was set by hand.
const ENDLESS: Duration = Duration::from_secs(86_400);
/// The key, after the prefix, of a counter that tries whether the store can count at all.
const PROBE: &str = "tollgate:probe";

/// Between two looks whether the store has got everything.
const PAUSE: Duration = Duration::from_millis(50);

/// Recovers the state that instances share.
pub struct Recoverer(pub Arc<Shared>);

impl Recoverer {
    /// Returns once the store has got all that it is owed, what is on its way included: revocations, invalidations,
    /// sessions and their uses, and what was said of API tokens. Counters are not waited for.
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
        let now = self.0.clock.now();
        if self.0.forget_counter(payload) || self.0.api_tokens.follow(payload, now) {
            return;
        }
        let Some(store) = &self.0.store else { return };
        let revocation = std::str::from_utf8(payload).ok().and_then(Revocation::from_message);
        // What is learned is written again where it was lost: never under a key that means something else.
        let prefix = &store.settings().key_prefix;
        if let Some(mut revocation) = revocation.filter(|revocation| revocation.is_named_well(prefix)) {
            revocation.until = revocation.until.min(now.plus(LONGEST));
            self.0.learn(&revocation, now);
        }
    }

    async fn catch_up(&self, link: &mut Link<'_>) -> RedisResult<()> {
        self.0.learn_revocations(link.connection()).await
    }

    fn looker(&self) -> Box<dyn Look> {
        Box::new(Restorer::new(Arc::clone(&self.0)))
    }
}

impl Shared {
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
                let answer = timeout(ANSWER_TIMEOUT, scan.query_async(connection)).await;
                let (next, keys): (u64, Vec<Vec<u8>>) = answer.map_err(std::io::Error::from)??;
                // No key of a revocation is anything but text.
                let keys: Vec<_> = keys.into_iter().filter_map(|key| String::from_utf8(key).ok()).collect();
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
        let Some(store) = &self.store else { return Ok(()) };
        let mut pipeline = ::redis::pipe();
        for key in &keys {
            pipeline.cmd("PTTL").arg(key).cmd("GET").arg(key);
        }
        // Before the question: what is believed here ends no later than there.
        let now = self.clock.now();
        // Each for itself: in a cluster a key may have moved since it was seen.
        let answers = connection.send_packed_commands(&pipeline, 0, pipeline.len());
        let answers = timeout(ANSWER_TIMEOUT, answers).await.map_err(std::io::Error::from)??;
        for (key, answer) in keys.into_iter().zip(answers.chunks(2)) {
            // What is of another type is somebody else's.
            let [Value::Int(left), Value::BulkString(value)] = answer else { continue };
            let number = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
            let effect = match number {
                _ if !are_cutoffs => Effect::Token,
                // What cannot be read as a number revokes: it fails closed.
                number => Effect::IssuedBefore(number.unwrap_or(u64::MAX)),
            };
            let life = u64::try_from(*left).ok().map(Duration::from_millis);
            let until = now.plus(life.unwrap_or(ENDLESS).min(LONGEST));
            let revocation = Revocation { key: key.into(), effect, until };
            if !revocation.is_named_well(&store.settings().key_prefix) {
                continue;
            }
            // What no instance has written holds here, and is not written when it is taken away again.
            if life.is_some() && (!are_cutoffs || number.is_some()) {
                self.learn(&revocation, now);
            } else {
                self.infer(&revocation, now);
            }
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
