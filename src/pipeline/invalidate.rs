//! Invalidating cached responses: new generations here at once, then in the store before the writer's response
//! is released, or later when the store is away.

use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::{Cmd, RedisResult, Value, cmd, from_redis_value};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::gateway::Shared;
use crate::cache::generations::{ANNOUNCED_FOR, Generations, PrefixPurge, PrefixWrite, PrefixWritten, Write};
use crate::cache::prefixes::{self, Prefix};
use crate::cache::room::Room;
use crate::cache::tag::Tags;
use crate::clock::{UnixMillis, millis};
use crate::redis::{Lane, Link, Script, Sent, Store, Unavailable};

/// Generations handed over in one go on recovery.
const BATCH: usize = 1_000;
/// A write nobody waits for may take this long.
const PATIENCE: Duration = Duration::from_secs(1);

/// Puts a purge by prefix on the list.
static PURGE_PREFIX: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../redis/scripts/purge_prefix.lua")));
/// Reads that list.
static READ_PREFIXES: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../redis/scripts/read_prefixes.lua")));

/// Keeps a generation that a response is being stored under.
static KEEP_GENERATION: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../redis/scripts/keep_generation.lua")));

/// What became of a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixPurged {
    /// Every instance drops it; otherwise this one does, and the others once the store is back.
    pub shared: bool,
    /// Everything was dropped instead.
    pub widened: bool,
}

impl Shared {
    /// Makes everything stored under `tags` unreachable, on every instance once this returns `true`.
    pub async fn invalidate(&self, tags: Vec<Box<str>>) -> bool {
        self.invalidate_within(tags, None).await
    }

    /// As [`Self::invalidate`]; the store is given at least this time to answer, where no client waits.
    pub async fn invalidate_within(&self, tags: Vec<Box<str>>, patience: Option<Duration>) -> bool {
        self.metrics.families().cache_invalidations.inc_by(tags.len() as u64);
        let writes = self.cache.generations().invalidate(tags);
        self.write_generations(writes, patience).await
    }

    async fn write_generations(&self, writes: Vec<Write>, patience: Option<Duration>) -> bool {
        let Some(store) = &self.store else { return true };
        if writes.is_empty() {
            return true;
        }
        let commands: Vec<Cmd> = writes.iter().map(command).collect();
        // A call to a node that is away ends at once.
        let deadline = store.deadline(patience);
        let calls = writes.iter().zip(&commands).map(|(write, command)| {
            store.call_if_permitted(deadline, Lane::Decisions, store.shard(write.key.as_bytes()), command)
        });
        let outcomes = futures::future::join_all(calls).await;
        let mut all = true;
        let mut settled = Vec::with_capacity(writes.len());
        for (write, outcome) in writes.into_iter().zip(outcomes) {
            if outcome.is_ok() {
                settled.push(write);
            } else {
                all = false;
            }
        }
        self.cache.generations().settle(&settled, self.clock.now());
        if !all {
            self.offer_again(store);
        }
        all
    }

    /// Until the store has what it lacks, this instance alone knows that the old entries are dead. A store that is known
    /// to refuse some of it is not asked at once for each.
    fn offer_again(&self, store: &Store) {
        if self.invalidations_refused.load(Ordering::Relaxed) {
            self.hand_over_later();
        } else {
            store.hand_over_soon();
        }
    }

    /// Makes everything stored under `prefix` unreachable, here at once, and on every instance once the store knows. It is
    /// given at least `patience` to answer.
    pub async fn invalidate_prefix(&self, prefix: &Prefix, patience: Duration) -> PrefixPurged {
        self.metrics.families().cache_invalidations.inc();
        let generations = self.cache.generations();
        let write = match generations.invalidate_prefix(prefix, self.clock.now()) {
            PrefixPurge::Local { widened } => return PrefixPurged { shared: true, widened },
            PrefixPurge::Widened(writes) => {
                let shared = self.write_generations(writes, Some(patience)).await;
                return PrefixPurged { shared, widened: true };
            }
            PrefixPurge::Write(write) => write,
        };
        let Some(store) = &self.store else { return PrefixPurged { shared: true, widened: false } };
        let (shard, deadline) = (store.shard(write.version_key.as_bytes()), store.deadline(Some(patience)));
        let command = prefix_command(&write);
        // Aside: a store that refuses this may still decide.
        let answer = store.eval_aside(deadline, Lane::Decisions, shard, &PURGE_PREFIX, &command).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(cause) if cause.is_lasting_refusal() => {
                let instead = self.widen(&[*write], cause);
                let told = self.write_generations(instead, Some(patience)).await;
                return PrefixPurged { shared: told, widened: true };
            }
            Err(_) => {
                self.offer_again(store);
                return PrefixPurged { shared: false, widened: false };
            }
        };
        let written = written(answer).ok();
        generations.settle_prefix(&write, written.as_ref(), self.clock.now());
        PrefixPurged { shared: true, widened: written.is_none_or(|written| written.widened) }
    }

    /// Drops everything in the place of purges that the store refuses to list. Returns what tells it so.
    fn widen(&self, purges: &[PrefixWrite], cause: Unavailable) -> Vec<Write> {
        let prefix = purges.first().map(|write| &*write.field);
        tracing::warn!(%cause, prefix, purges = purges.len(), "Redis refuses a purge by prefix: everything is dropped instead");
        self.cache.generations().widen_prefixes(purges)
    }

    /// Reads the list of purges by prefix where `values` (generations that the store has just told) are of a version that
    /// this instance has not read; it waits for that until `until`. The request goes on in any case: without the list it
    /// finds nothing stored before the last of those purges.
    pub(super) async fn hear_of_prefixes(
        &self,
        values: &mut [Option<Bytes>],
        now: UnixMillis,
        until: Instant,
    ) {
        let Some(store) = &self.store else { return };
        let generations = self.cache.generations();
        // One that was under way already may have begun before the values were read.
        for _ in 0..2 {
            let (mut loading, loader) = generations.join_loading();
            let is_mine = loader.is_some();
            if let Some(loader) = loader {
                let (cache, store) = (self.cache, Arc::clone(store));
                tokio::spawn(async move {
                    if let Some(version) = read_prefixes(cache.generations(), &store).await {
                        loader.send_replace(Some(version));
                    }
                });
            }
            let ended = async { while loading.changed().await.is_ok() {} };
            if timeout_at(until, ended).await.is_err() {
                return;
            }
            let version = loading.borrow().clone();
            if let Some(version) = version.filter(|_| is_mine) {
                // As new as the values, or newer; it may be gone.
                let version = Some(version).filter(|version| !version.is_empty());
                Generations::replace_version(values, version.map(|version| Bytes::from(version.into_vec())));
                return;
            }
            if is_mine || !generations.lacks_prefixes(values, now) {
                return;
            }
        }
    }

    /// Asks the store to have generations for those of `tags` that it has told to have none of (`values`), for a short
    /// while, so that all instances look for the object under the same key from the first request on. It waits for that
    /// until `until`, and goes on in any case.
    pub(super) async fn agree_on_generations(
        &self,
        tags: &Tags,
        values: &mut [Option<Bytes>],
        now: UnixMillis,
        until: Instant,
    ) {
        let generations = self.cache.generations();
        let Some(store) = self.store.as_ref().filter(|_| self.cache.tiers().claims(now)) else { return };
        let proposals = generations.to_agree(tags, values, now);
        if proposals.is_empty() {
            return;
        }
        let deadline = until.saturating_duration_since(Instant::now());
        let commands: Vec<Cmd> = proposals.iter().map(|(_, write)| proposal(write)).collect();
        let calls = proposals.iter().zip(&commands).map(|((_, write), command)| {
            store.call_in_passing(deadline, Lane::Decisions, store.shard(write.key.as_bytes()), command)
        });
        let answers = futures::future::join_all(calls).await;
        let told = self.clock.now();
        for ((place, write), answer) in proposals.iter().zip(answers) {
            let agreed = match answer {
                Ok(Value::Nil) => Bytes::from(write.announced()),
                Ok(Value::BulkString(value)) => Bytes::from(value),
                // It goes by its own.
                _ => continue,
            };
            generations.agreed(write, &agreed, told);
            if let Some(value) = values.get_mut(*place) {
                *value = Some(agreed);
            }
        }
    }

    /// Has generations kept that the store knows nothing of, or for a short while only, in the background.
    pub fn create_generations(&self, writes: Vec<Write>) {
        let writes = self.cache.generations().to_keep(writes, self.clock.now());
        let Some(store) = self.store.as_ref().filter(|_| !writes.is_empty()).map(Arc::clone) else { return };
        if self.cache.tiers().room().is_some_and(Room::is_crowded) {
            return;
        }
        tokio::spawn(async move {
            let commands: Vec<Cmd> = writes.iter().map(keep).collect();
            // Another instance may be first, or the store may fail: then somebody fetches once more.
            let calls = writes.iter().zip(&commands).map(|(write, command)| {
                let shard = store.shard(write.key.as_bytes());
                store.eval_aside(PATIENCE, Lane::Decisions, shard, &KEEP_GENERATION, command)
            });
            futures::future::join_all(calls).await;
        });
    }

    /// Hands invalidations made during an outage, as far as they live on this node, to it. What cannot be written
    /// stays pending; what is refused is offered again later, and holds up nothing else.
    pub(super) async fn hand_over_invalidations(&self, link: &mut Link<'_>) -> RedisResult<()> {
        let generations = self.cache.generations();
        let mut purges = generations.pending_prefixes();
        purges.retain(|write| link.holds(write.version_key.as_bytes()));
        if !purges.is_empty() {
            PURGE_PREFIX.load().exec_async(link.connection()).await?;
        }
        let mut refused = None;
        for batch in purges.chunks(BATCH) {
            let commands: Vec<Cmd> = batch.iter().map(prefix_command).collect();
            let mut never: Option<(Vec<PrefixWrite>, Unavailable)> = None;
            for (write, sent) in batch.iter().zip(link.send_each(&commands).await?) {
                match sent {
                    Sent::Executed => generations.settle_prefix(write, None, self.clock.now()),
                    Sent::Moved => {}
                    Sent::Refused(cause) if cause.is_lasting_refusal() => {
                        never.get_or_insert_with(|| (Vec::new(), cause)).0.push(write.clone());
                    }
                    Sent::Refused(cause) => refused = Some(cause),
                }
            }
            if let Some((writes, cause)) = never {
                // To be handed over with what follows, or to another node.
                self.widen(&writes, cause);
                self.store.iter().for_each(|store| store.hand_over_soon());
            }
        }
        let mut writes = generations.pending();
        writes.retain(|write| link.holds(write.key.as_bytes()));
        for batch in writes.chunks(BATCH) {
            let commands: Vec<Cmd> = batch.iter().map(command).collect();
            let mut settled = Vec::with_capacity(batch.len());
            for (write, sent) in batch.iter().zip(link.send_each(&commands).await?) {
                match sent {
                    Sent::Executed => settled.push(write.clone()),
                    Sent::Moved => {}
                    Sent::Refused(cause) => refused = Some(cause),
                }
            }
            generations.settle(&settled, self.clock.now());
        }
        self.note_refused(refused);
        Ok(())
    }

    /// Tells operators, once per transition, whether Redis takes invalidations; those that it refused are offered again.
    fn note_refused(&self, refused: Option<Unavailable>) {
        match refused {
            // In a cluster another node may refuse what is left.
            None if !self.cache.generations().owes()
                && self.invalidations_refused.swap(false, Ordering::Relaxed) =>
            {
                tracing::warn!("Redis takes invalidations again");
            }
            Some(cause) => {
                if !self.invalidations_refused.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%cause, "Redis refuses invalidations: other instances may serve what is dropped here");
                }
                self.hand_over_later();
            }
            None => {}
        }
    }
}

/// Reads the list into `generations` and says of which version it is; `None` when the store gave no answer.
async fn read_prefixes(generations: &Generations, store: &Store) -> Option<Box<[u8]>> {
    let [version, list] = generations.prefix_keys();
    let mut command = READ_PREFIXES.command();
    command.arg(2).arg(&*version).arg(&*list).arg(prefixes::MOST + 1);
    let shard = store.shard(version.as_bytes());
    let answer = store.eval_aside(PATIENCE, Lane::Decisions, shard, &READ_PREFIXES, &command).await.ok()?;
    let (version, entries): (Vec<u8>, Value) = from_redis_value(answer).ok()?;
    // What is not text is nothing that an instance has written.
    let entries: Vec<(String, String)> = from_redis_value(entries).unwrap_or_default();
    generations.learn_prefixes(&version, entries);
    Some(version.into())
}

fn prefix_command(write: &PrefixWrite) -> Cmd {
    let mut command = PURGE_PREFIX.command();
    command.arg(2).arg(&*write.version_key).arg(&*write.list_key);
    command.arg(&*write.field).arg(&*write.generation).arg(&*write.version).arg(&*write.lineage);
    command.arg(prefixes::MOST).arg(millis(write.ttl).max(1));
    command
}

fn written(answer: Value) -> Result<PrefixWritten, ::redis::ParsingError> {
    let (before, now, widened, pruned): (Vec<u8>, Vec<u8>, u8, u8) = from_redis_value(answer)?;
    Ok(PrefixWritten { before: before.into(), now: now.into(), widened: widened > 0, pruned: pruned > 0 })
}

fn command(write: &Write) -> Cmd {
    let mut command = cmd("SET");
    command.arg(&*write.key).arg(&*write.value);
    if let Some(ttl) = write.ttl {
        command.arg("PX").arg(millis(ttl).max(1));
    }
    command
}

/// Answers what the key has had already.
fn proposal(write: &Write) -> Cmd {
    let mut command = cmd("SET");
    command.arg(&*write.key).arg(write.announced()).arg("NX").arg("GET");
    command.arg("PX").arg(millis(ANNOUNCED_FOR));
    command
}

fn keep(write: &Write) -> Cmd {
    let mut command = KEEP_GENERATION.command();
    command.arg(1).arg(&*write.key).arg(&*write.value).arg(write.announced());
    command.arg(write.ttl.map_or(0, |ttl| millis(ttl).max(1))).arg(u8::from(write.is_announced));
    command
}
