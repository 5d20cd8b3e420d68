//! Revoking: this instance at once, then the store and every other instance, or later when the store is away.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, Pipeline, RedisResult, Value, cmd};

use super::gateway::{Gateway, Shared};
use crate::cache::tag::user_tag;
use crate::clock::{UnixMillis, millis};
use crate::identity::Identity;
use crate::identity::revocation::{Effect, Learned, Revocation};
use crate::metrics::RevocationKind;
use crate::redis::{Lane, Link, Publisher};
use crate::route::Route;

/// Revocations handed over in one go on recovery.
const BATCH: usize = 1_000;

/// Writes a revocation down: of two for one key the stronger effect and the longer life win, whoever comes first. What
/// has no end keeps none, and a value that is no number stays: it revokes everything. Returns 1 where it said less, or
/// nothing, 2 where it said it for a shorter time only, and 0 where nothing had to change.
/// KEYS[1] the key; ARGV[1] its value, ARGV[2] its life in milliseconds; with ARGV[3] another type stays as it is.
const HOLD: &str = "\
local held = redis.pcall('GET', KEYS[1]) \
if type(held) ~= 'string' then \
if ARGV[3] and held then return 0 end \
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) \
return 1 \
end \
local changed = 0 \
if string.match(held, '^%s*%d+%s*$') and tonumber(held) < tonumber(ARGV[1]) then \
redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL') \
changed = 1 \
end \
local left = redis.call('PTTL', KEYS[1]) \
if left >= 0 and left < tonumber(ARGV[2]) then \
redis.call('PEXPIRE', KEYS[1], ARGV[2]) \
if changed == 0 then changed = 2 end \
end \
return changed";

impl Gateway {
    /// Logs out whoever came with `identity` to a logout route: ends the token, its session and everything cached for its
    /// user, and, where the route says so, all that the user has got until now.
    pub async fn log_out(&self, route: &Route, identity: &Identity) {
        let (shared, now, longest) = (&*self.shared, self.shared.clock.now(), self.longest_revocation);
        let token = identity.revocation(now, longest);
        if route.logout_everywhere {
            let mut cutoff = identity.revocation_everywhere(now, longest);
            cutoff.until = cutoff.until.max(token.until);
            // The token by itself too: it may have been issued by a clock that is ahead of this one.
            tokio::join!(shared.revoke(token), shared.end_account(&identity.account, cutoff, None));
        } else {
            let forgotten = shared.invalidate(vec![user_tag(Some(&identity.account))]);
            tokio::join!(shared.revoke(token), shared.end_session(identity), forgotten);
        }
    }
}

impl Shared {
    /// Revokes on this instance at once and tells the store. Returns whether the store knows.
    pub async fn revoke(&self, revocation: Revocation) -> bool {
        self.revoke_within(revocation, None).await
    }

    /// As [`Self::revoke`]; the store is given at least this time to answer, where no client waits.
    pub async fn revoke_within(&self, revocation: Revocation, patience: Option<Duration>) -> bool {
        let now = self.clock.now();
        self.learn(&revocation, now);
        self.metrics.revocations().count(match revocation.effect {
            Effect::Token => RevocationKind::Token,
            Effect::IssuedBefore(_) => RevocationKind::Subject,
        });
        let Some(store) = &self.store else { return true };
        let Some(ttl) = revocation.ttl(now) else { return true };
        let message = revocation.to_message();
        let shard = store.shard(revocation.key.as_bytes());
        // Told together with the writing: whoever hears that it is done may lose the store at once, and the other
        // instances have got it all the same.
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.add_command(command(&revocation, ttl)).add_command(store.publication(message.as_bytes()));
        self.pending.send(1);
        // Also where whoever asked for it goes away before Redis has answered.
        let mut owed = Owed { shared: self, revocations: vec![revocation], hurries: true };
        let written = store.available(shard)
            && store
                .pipeline_within(store.deadline(patience), Lane::Decisions, shard, &pipeline)
                .await
                .is_ok_and(|answers| {
                    answers.first().is_some_and(|answer| !matches!(answer, Value::ServerError(_)))
                });
        if written {
            owed.arrived(|_| true);
        } else {
            // A cluster that has lost the key's node can still tell them. Nobody waits for it.
            let publisher = Publisher::new(Arc::clone(store));
            tokio::spawn(async move { publisher.publish(message.as_bytes()).await });
        }
        written
    }

    /// Holds a revocation here, whatever becomes of the store.
    pub(super) fn learn(&self, revocation: &Revocation, now: UnixMillis) {
        if matches!(self.known.learn(revocation, now), Learned::AtTheCostOfAnother | Learned::NotHeld) {
            self.metrics.families().revocations_dropped.inc();
        }
    }

    /// Holds here what nobody said in so many words.
    pub(super) fn infer(&self, revocation: &Revocation, now: UnixMillis) {
        if matches!(self.known.infer(revocation, now), Learned::AtTheCostOfAnother | Learned::NotHeld) {
            self.metrics.families().revocations_dropped.inc();
        }
    }

    /// Keeps a revocation for the store.
    fn owe(&self, revocation: Revocation) {
        if !self.pending.push(revocation) {
            self.metrics.families().revocations_dropped.inc();
        }
    }

    /// Ends what an account was given until now: all of its tokens, by `cutoff`, its sessions and everything cached for
    /// it. The store is given at least `patience` for each answer. Returns whether it knows of the cut-off.
    pub async fn end_account(&self, account: &str, cutoff: Revocation, patience: Option<Duration>) -> bool {
        let forgotten = self.invalidate_within(vec![user_tag(Some(account))], patience);
        let revoked = self.revoke_within(cutoff, patience);
        let (shared, _, _) = tokio::join!(revoked, self.end_sessions(account, None, patience), forgotten);
        shared
    }

    /// Hands revocations made during an outage, as far as they live on this node, to it and tells the other
    /// instances. What was not written stays pending, also when the call is given up halfway.
    pub(super) async fn hand_over_revocations(&self, link: &mut Link<'_>) -> RedisResult<()> {
        let Some(store) = &self.store else { return Ok(()) };
        loop {
            let now = self.clock.now();
            let revocations = self.pending.drain(now, BATCH, |key| link.holds(key.as_bytes()));
            let mut owed = Owed { shared: self, revocations, hurries: false };
            if owed.revocations.is_empty() {
                return Ok(());
            }
            let mut commands = Vec::with_capacity(2 * owed.revocations.len());
            owed.arrived(|revocation| {
                let Some(ttl) = revocation.ttl(now) else { return true };
                commands.push(command(revocation, ttl));
                commands.push(store.publication(revocation.to_message().as_bytes()));
                false
            });
            let executed = link.send(&commands).await?;
            let mut written = executed.iter().step_by(2);
            let before = owed.revocations.len();
            owed.arrived(|_| written.next() == Some(&true));
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
    shared: &'a Shared,
    revocations: Vec<Revocation>,
    /// Whether the store is to get them soon. Even while it is there: one late answer must not leave the other
    /// instances in the dark.
    hurries: bool,
}

impl Owed<'_> {
    /// Those for which `is_done` says so need no more care.
    fn arrived(&mut self, mut is_done: impl FnMut(&Revocation) -> bool) {
        let before = self.revocations.len();
        self.revocations.retain(|revocation| !is_done(revocation));
        self.shared.pending.arrived(before - self.revocations.len());
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        let count = self.revocations.len();
        self.revocations.drain(..).for_each(|revocation| self.shared.owe(revocation));
        // Only now: whoever looks meanwhile must not find that nothing is owed.
        self.shared.pending.arrived(count);
        if let Some(store) = self.shared.store.as_ref().filter(|_| self.hurries && count > 0) {
            store.hand_over_soon();
        }
    }
}

/// The command that writes a revocation down and weakens none that is there.
fn command(revocation: &Revocation, life: Duration) -> Cmd {
    let mut command = cmd("EVAL");
    command.arg(HOLD).arg(1).arg(&*revocation.key).arg(&*revocation.value()).arg(millis(life).max(1));
    command
}

/// As [`command`], and leaves alone what is no revocation.
pub(super) fn careful_command(revocation: &Revocation, life: Duration) -> Cmd {
    let mut command = command(revocation, life);
    command.arg("careful");
    command
}
