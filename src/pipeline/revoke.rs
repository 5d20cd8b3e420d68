//! Revoking: this instance at once, then the store and every other instance, or later when the store is away.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, RedisResult, cmd};

use super::gateway::Shared;
use crate::clock::millis;
use crate::identity::Identity;
use crate::identity::revocation::{Effect, Pending, Revocation};
use crate::metrics::RevocationKind;
use crate::redis::{Lane, Link, Publisher};

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
        let shard = store.shard(revocation.key.as_bytes());
        let written = match command(&revocation, ttl) {
            command if store.available(shard) => store.call(Lane::Decisions, shard, &command).await.is_ok(),
            _ => false,
        };
        if written {
            // News for the time the store is away; a lost message costs nothing while it is there.
            // Nobody waits for it.
            let publisher = Publisher::new(Arc::clone(store));
            tokio::spawn(async move { publisher.publish(revocation.to_message().as_bytes()).await });
        } else {
            self.pending.push(revocation);
            // Even while the store is there: one late answer must not leave the other instances in the dark.
            store.hand_over_soon();
        }
        written
    }

    /// Ends what this token is good for: the token itself, its session and everything cached for its subject.
    pub async fn log_out(&self, identity: &Identity, longest: Duration) {
        let revocation = identity.revocation(self.clock.now(), longest);
        let tag = crate::cache::tag::user_tag(Some(&identity.account));
        tokio::join!(self.revoke(revocation), self.invalidate(vec![tag]), self.end_session(identity));
    }

    /// Hands revocations made during an outage, as far as they live on this node, to it and tells the other
    /// instances. What was not written stays pending, also when the call is given up halfway.
    pub(super) async fn hand_over_revocations(&self, link: &mut Link<'_>) -> RedisResult<()> {
        let Some(store) = &self.store else { return Ok(()) };
        loop {
            let now = self.clock.now();
            let revocations = self.pending.drain(now, BATCH, |key| link.holds(key.as_bytes()));
            let mut owed = Owed { pending: &self.pending, revocations };
            if owed.revocations.is_empty() {
                return Ok(());
            }
            let mut commands = Vec::with_capacity(2 * owed.revocations.len());
            owed.revocations.retain(|revocation| {
                let Some(ttl) = revocation.ttl(now) else { return false };
                commands.push(command(revocation, ttl));
                commands.push(store.publication(revocation.to_message().as_bytes()));
                true
            });
            let executed = link.send(&commands).await?;
            let mut written = executed.iter().step_by(2);
            let before = owed.revocations.len();
            owed.revocations.retain(|_| written.next() != Some(&true));
            let moved = !owed.revocations.is_empty();
            let count = before - owed.revocations.len();
            tracing::info!(count, "revocations that Redis had not got were handed over");
            if moved {
                // Their new node gets them once it is known.
                return Ok(());
            }
        }
    }
}

/// Revocations under way to the store: those that are still in here when it is dropped are pending again.
struct Owed<'a> {
    pending: &'a Pending,
    revocations: Vec<Revocation>,
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        self.revocations.drain(..).for_each(|revocation| self.pending.push(revocation));
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
