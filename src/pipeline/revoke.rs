//! Revoking: this instance at once, then the store and every other instance, or later when the store is away.

use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, RedisResult, cmd};

use super::gateway::Shared;
use crate::clock::millis;
use crate::identity::Identity;
use crate::identity::revocation::{Effect, Revocation};
use crate::metrics::RevocationKind;
use crate::redis::{Lane, Publisher};

/// Revocations handed over in one go on recovery.
const BATCH: usize = 1_000;

/// Raises a cut-off: the larger second and the longer life win, whoever comes first.
/// KEYS[1] the cut-off; ARGV[1] its second, ARGV[2] its life in milliseconds.
const RAISE: &str = "\
local held = tonumber(redis.call('GET', KEYS[1]) or '') \
local left = redis.call('PTTL', KEYS[1]) \
local second, life = tonumber(ARGV[1]), tonumber(ARGV[2]) \
if held and held > second then second = held end \
if left > life then life = left end \
redis.call('SET', KEYS[1], string.format('%.0f', second), 'PX', life) \
return 1";

impl Shared {
    /// Revokes on this instance at once and tells the store. Returns whether the store knows.
    pub async fn revoke(&self, revocation: Revocation) -> bool {
        let now = self.clock.now();
        self.known.learn(&revocation, now);
        self.metrics.revocations().count(match revocation.effect {
            Effect::Token => RevocationKind::Token,
            Effect::IssuedBefore(_) => RevocationKind::Subject,
        });
        let Some(store) = &self.store else { return true };
        let Some(ttl) = revocation.ttl(now) else { return true };
        let written = match command(&revocation, ttl) {
            command if store.available() => store.call(Lane::Decisions, &command).await.is_ok(),
            _ => false,
        };
        if written {
            // News for the time the store is away; a lost message costs nothing while it is there.
            let _ = Publisher::new(Arc::clone(store)).publish(revocation.to_message().as_bytes()).await;
        } else {
            self.pending.push(revocation);
        }
        written
    }

    /// Ends what this token is good for: the token itself and everything cached for its subject.
    pub async fn log_out(&self, identity: &Identity, longest: Duration) {
        let revocation = identity.revocation(self.clock.now(), longest);
        let tag = crate::cache::tag::user_tag(Some(&identity.subject));
        tokio::join!(self.revoke(revocation), self.invalidate(vec![tag]));
    }

    /// Hands revocations made during an outage to the store. What cannot be written stays pending.
    pub(super) async fn hand_over_revocations(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<()> {
        loop {
            let now = self.clock.now();
            let owed = self.pending.drain(now, BATCH);
            if owed.is_empty() {
                return Ok(());
            }
            for revocation in &owed {
                let Some(ttl) = revocation.ttl(now) else { continue };
                let written = command(revocation, ttl).exec_async(connection).await;
                if let Err(error) = written {
                    owed.into_iter().for_each(|revocation| self.pending.push(revocation));
                    return Err(error);
                }
            }
            tracing::info!(count = owed.len(), "revocations made while Redis was away were handed over");
        }
    }
}

fn command(revocation: &Revocation, ttl: Duration) -> Cmd {
    let life = millis(ttl).max(1);
    match revocation.effect {
        Effect::Token => {
            let mut command = cmd("SET");
            command.arg(&*revocation.key).arg(&*revocation.value()).arg("PX").arg(life);
            command
        }
        Effect::IssuedBefore(second) => {
            let mut command = cmd("EVAL");
            command.arg(RAISE).arg(1).arg(&*revocation.key).arg(second).arg(life);
            command
        }
    }
}
