//! What a request asks the store: is its token revoked, its user banned or cut off, what are the generations of its
//! cache tags, and do all of its limits admit it? One round trip, or one shared with others who count on the same
//! keys. It asks and adds up; what the answer means for the request is decided above.
//!
//! The path of a question: leases ([`lease`]) → alone or with others ([`combine`], [`question`]) → by shard
//! ([`parts`]) → plain commands or the script ([`native`], [`reach`]) → the answers added up ([`parts`]) → what was
//! counted in vain is taken back ([`background`]).

mod background;
mod combine;
mod lease;
mod native;
mod parts;
mod question;
mod reach;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use prometheus::IntGauge;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::combine::{Carrier, Combiner, Held};
use self::lease::Leases;
use self::native::Ended;
pub use self::native::pipeline as native_pipeline;
use self::parts::Part;
pub(super) use self::question::Owed;
use self::question::{Asked, Merged, Question, Reply, Told, UNKNOWN};
use super::gateway::Shared;
use crate::cache::generations::Generations;
use crate::cache::tag::Tags;
use crate::clock::UnixMillis;
use crate::identity::Identity;
use crate::limits::batch::{BatchReply, Counter, Item};
use crate::limits::{Checks, Decision, Violated, gate};
use crate::metrics::{ExchangeMetrics, ExchangePath, RefundResult};
use crate::redis::{Script, Shard, Store, Unavailable, within};

/// The script that decides.
pub static GATE: LazyLock<Script> = LazyLock::new(|| Script::new(gate::GATE));
/// The script that takes counts back.
pub static REFUND: LazyLock<Script> = LazyLock::new(|| Script::new(gate::REFUND));

/// Requests in flight at this instance from which a crowd on one key is worth waiting for.
const CROWD: i64 = 96;
/// Requests that one call carried, below which there is no crowd on its keys.
const FEW: usize = 2;
/// Waiters that make a call worth sending at once.
const ENOUGH: usize = 96;
/// Which part of the deadline a call waits for a crowd at most.
const GATHERING: u32 = 3;

/// Positions of the guards in the question.
const BLACKLIST: usize = 0;
const BAN: usize = 1;
const CUTOFF: usize = 2;

/// Questions under way, and what is left to spend of what was taken.
pub struct Exchange {
    combiner: Combiner<Question>,
    coalesce: bool,
    leases: Leases,
    /// Tasks in the background.
    tasks: AtomicUsize,
    endless: background::Endless,
    /// Requests of this instance that are not answered yet.
    in_flight: IntGauge,
    metrics: ExchangeMetrics,
}

impl Exchange {
    /// No question yet. With `coalesce` requests that share a counter are asked for together while its last
    /// question is under way; `in_flight` tells how many requests are not answered yet.
    pub fn new(metrics: ExchangeMetrics, coalesce: bool, in_flight: IntGauge) -> Self {
        Self {
            combiner: Combiner::new(),
            coalesce,
            leases: Leases::new(),
            tasks: AtomicUsize::new(0),
            endless: background::Endless::default(),
            in_flight,
            metrics,
        }
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Exchange").field("coalesce", &self.coalesce).finish_non_exhaustive()
    }
}

/// What a question needs to be asked, whoever asks it.
#[derive(Clone)]
struct Link {
    store: Arc<Store>,
    exchange: Arc<Exchange>,
}

/// What the store said.
#[derive(Debug)]
pub(super) enum Answer {
    /// The token is on the blacklist.
    Revoked,
    /// The subject's tokens of that time were all revoked.
    CutOff,
    /// The subject is banned.
    Banned,
    /// No guard bars the request; the counters' states are in the checks.
    Judged {
        /// What the limits decided.
        decision: Decision,
        /// What the watched keys hold, in their order.
        watched: [Seen; WATCHED],
        /// Generations of the tags, in their order; `None` when one of them gave no answer.
        generations: Option<Vec<Option<Bytes>>>,
        /// The checks whose part of the store is away: they were decided from memory.
        away: Violated,
    },
}

/// Most keys that are watched by one request.
pub(super) const WATCHED: usize = 2;

/// Keys whose values decide about the caller, read in the same round trip.
pub(super) type Watched<'a> = [Option<&'a [u8]>; WATCHED];

/// What a watched key holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Seen {
    /// It was not asked, or gave no answer.
    #[default]
    Unknown,
    /// Nothing, or a value of another type than a string.
    Absent,
    /// This.
    Value(Bytes),
}

impl From<Option<Bytes>> for Seen {
    fn from(value: Option<Bytes>) -> Self {
        value.map_or(Self::Absent, Self::Value)
    }
}

/// Whose guards are asked: is the token revoked, the user banned or cut off?
#[derive(Clone, Copy, Default)]
pub(super) struct Guards<'a> {
    /// The caller; nobody has no guards.
    pub(super) identity: Option<&'a Identity>,
    /// Whether there is no answer at all unless every guard has answered.
    pub(super) required: bool,
}

/// The store gave no usable answer: the caller decides from memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoAnswer {
    /// Whether the store does not count the request, or takes it off again: it gave up while it waited to be asked
    /// about with others, or a guard that was required gave no answer.
    pub(super) uncounted: bool,
}

impl NoAnswer {
    const ASKED: Self = Self { uncounted: false };
    const UNCOUNTED: Self = Self { uncounted: true };
}

/// Asks the store.
pub(super) async fn ask(
    store: &Arc<Store>,
    shared: &Shared,
    guards: Guards<'_>,
    watched: Watched<'_>,
    tags: Option<(&Generations, &Tags)>,
    checks: &mut Checks,
    now: UnixMillis,
) -> Result<Answer, NoAnswer> {
    if !store.is_cluster() && !store.available(store.shard(b"")) {
        return Err(NoAnswer::ASKED);
    }
    let link = Link { store: Arc::clone(store), exchange: Arc::clone(&shared.exchange) };
    let leased = spend(&link.exchange, checks);
    let instances = u64::from(shared.instances.load(Ordering::Relaxed).max(1));
    let tag_keys: Vec<Box<str>> =
        tags.map(|(generations, tags)| generations.keys(tags).collect()).unwrap_or_default();
    let (told, positions, owed) = {
        let by_lease = (&leased, &link.exchange.leases);
        let (asked, positions, hashes) =
            question(guards.identity, &watched, &tag_keys, checks, by_lease, instances);
        let told = match asked.batch.items.first() {
            Some(item)
                if item.guards.is_empty() && item.counters.is_empty() && asked.batch.tags.is_empty() =>
            {
                Ok(nothing())
            }
            _ => one(&link, &asked, &hashes).await,
        };
        let told = match told {
            Ok(told) => told,
            Err(no_answer) => {
                give_back(&link.exchange, checks, &leased);
                return Err(no_answer);
            }
        };
        let item = asked.batch.items.first();
        if guards.required && told.barred.is_none() && !told.guarded {
            background::refund(&link, item.map_or_else(Vec::new, |item| question::undone(item, &told)));
            give_back(&link.exchange, checks, &leased);
            return Err(NoAnswer::UNCOUNTED);
        }
        let some_away = told.counters.iter().any(Option::is_none);
        let item = item.filter(|_| some_away);
        let owed = item.map(|item| question::taken_back(item, &told)).unwrap_or_default();
        (told, positions, owed)
    };
    if let Some(guard) = told.barred {
        give_back(&link.exchange, checks, &leased);
        return Ok(match guard {
            BLACKLIST => Answer::Revoked,
            BAN => Answer::Banned,
            _ => Answer::CutOff,
        });
    }
    let (decision, away) = conclude(&link, shared, checks, &told, &positions, &leased, owed, now);
    let mut values = told.tags.into_iter();
    let seen = watched.map(|key| key.and_then(|_| values.next()).unwrap_or_default());
    let generation = |seen| match seen {
        Seen::Unknown => None,
        Seen::Absent => Some(None),
        Seen::Value(value) => Some(Some(value)),
    };
    let generations = values.map(generation).collect();
    Ok(Answer::Judged { decision, watched: seen, generations, away })
}

/// Takes `owed` back at once, in one call per shard, within the deadline. What the store does not learn stays
/// counted until its counter ends.
pub(super) async fn refund(store: &Arc<Store>, shared: &Shared, owed: Vec<Owed>) {
    let link = Link { store: Arc::clone(store), exchange: Arc::clone(&shared.exchange) };
    let until = Instant::now() + deadline(&link);
    let parts = reach::by_shard(store, owed, |owed| &owed.key);
    let attempt = async |shard: Shard, owed: &[Owed]| {
        let sent = within(until, reach::refund(&link, shard, owed)).await;
        sent.unwrap_or(Err(Unavailable::DeadlinePassed))
    };
    let note = |owed: &[Owed], sent: Result<(), Unavailable>| {
        if let Err(cause) = &sent {
            tracing::debug!(%cause, "what was counted in vain stays counted");
        }
        let result = if sent.is_ok() { RefundResult::Done } else { RefundResult::Lost };
        link.exchange.metrics.refunded(result, owed.len());
    };
    join_all(parts.iter().map(async |(shard, owed)| match attempt(*shard, owed).await {
        // While a slot moves, its keys may be at two nodes, and neither takes a call about several of them.
        Err(Unavailable::Redirected) if owed.len() > 1 => {
            join_all(owed.chunks(1).map(async |one| note(one, attempt(*shard, one).await))).await;
        }
        sent => note(owed, sent),
    }))
    .await;
}

/// Takes `owed` back in the background.
pub(super) fn refund_soon(store: &Arc<Store>, shared: &Shared, owed: Vec<Owed>) {
    let link = Link { store: Arc::clone(store), exchange: Arc::clone(&shared.exchange) };
    background::refund(&link, owed);
}

/// A check passed by a lease, and its state.
type Leased = Vec<(usize, crate::limits::algorithm::State)>;

fn spend(exchange: &Exchange, checks: &Checks) -> Leased {
    let mut leased = Vec::new();
    for (index, check) in checks.iter().enumerate().filter(|(_, check)| check.lease) {
        if let Some(state) = exchange.leases.spend(checks.key(check), &check.rule, checks.at()) {
            exchange.metrics.lease_spent.inc();
            leased.push((index, state));
        }
    }
    leased
}

fn give_back(exchange: &Exchange, checks: &Checks, leased: &Leased) {
    for (index, state) in leased {
        if let Some(check) = checks.get(*index) {
            exchange.leases.give_back(checks.key(check), &check.rule, *state);
        }
    }
}

/// The question, the checks its counters stand for, and their keys' hashes.
fn question<'a>(
    identity: Option<&'a Identity>,
    watched: &Watched<'a>,
    tag_keys: &'a [Box<str>],
    checks: &'a Checks,
    (leased, held): (&Leased, &Leases),
    instances: u64,
) -> (Asked<'a>, Vec<usize>, Vec<u64>) {
    // The cut-off of a subject is about the tokens of its logins.
    let cut_off = identity.filter(|identity| identity.api_token.is_none());
    let mut guards = Vec::with_capacity(3);
    guards.extend(identity.iter().flat_map(|who| [who.keys.blacklist.as_bytes(), who.keys.ban.as_bytes()]));
    guards.extend(cut_off.map(|identity| identity.keys.cutoff.as_bytes()));
    let mut item = Item {
        guards,
        cutoff: cut_off.map(|_| CUTOFF),
        issued_at: identity.and_then(|identity| identity.issued_at).unwrap_or(0),
        counters: Vec::with_capacity(checks.len()),
        count: 1,
    };
    let mut asked = Asked { at: checks.at(), ..Asked::default() };
    let (mut positions, mut hashes) = (Vec::with_capacity(checks.len()), Vec::with_capacity(checks.len()));
    let mut used = Vec::with_capacity(checks.len());
    for (index, (check, answer)) in checks.iter().zip(checks.states()).enumerate() {
        if leased.iter().any(|(spent, _)| *spent == index) {
            continue;
        }
        let known = check.known_end > 0 && answer.state.anchor == check.known_end;
        let count = if known { answer.state.used } else { UNKNOWN };
        if check.lease && known && !check.penalise && !check.shadow {
            let wish = lease::size(&check.rule, count, check.known_end, instances, checks.at());
            if wish > 0 && held.has_room_for(checks.key(check), checks.at()) {
                asked.wishes.push((0, item.counters.len(), wish));
            }
        }
        item.counters.push(Counter {
            key: checks.key(check),
            rule: check.rule,
            penalise: check.penalise,
            shadow: check.shadow,
            known_end: check.known_end,
        });
        used.push(count);
        positions.push(index);
        hashes.push(check.hash);
    }
    asked.batch.tags =
        watched.iter().flatten().copied().chain(tag_keys.iter().map(|key| key.as_bytes())).collect();
    asked.batch.items.push(item);
    asked.used.push(used);
    (asked, positions, hashes)
}

/// What is told where nothing is asked.
fn nothing() -> Told {
    Told {
        barred: None,
        guarded: true,
        violated: Violated::default(),
        counters: Vec::new(),
        clock: None,
        tags: Vec::new(),
        waited: false,
    }
}

/// Brings what was told into the checks and the memory of this instance. What could not be asked is decided from
/// memory; if that refuses, `owed` is taken back from the store.
#[allow(clippy::too_many_arguments, reason = "one step of `ask`, split off for its length")]
fn conclude(
    link: &Link,
    shared: &Shared,
    checks: &mut Checks,
    told: &Told,
    positions: &[usize],
    leased: &Leased,
    owed: Vec<Owed>,
    now: UnixMillis,
) -> (Decision, Violated) {
    let at = told.clock.unwrap_or(checks.at());
    let (mut violated, mut away, mut heard) = (Violated::default(), Violated::default(), Violated::default());
    for (position, (index, counter)) in positions.iter().zip(&told.counters).enumerate() {
        match counter {
            Some(counter) => {
                checks.tell(*index, counter.last);
                heard.insert(*index);
            }
            None => away.insert(*index),
        }
        if told.violated.contains(position) {
            violated.insert(*index);
        }
    }
    // Its clock is not compared with ours where the request waited for an unknown part of the time between.
    let clock = told.clock.filter(|_| !told.waited);
    if heard.iter().count() == checks.len() {
        checks.note(at);
        shared.local.observe(checks, clock, now);
    } else if !heard.is_empty() {
        let mut heard = checks.only(heard);
        heard.note(at);
        shared.local.observe(&heard, clock, now);
    }
    for (index, counter) in positions.iter().zip(&told.counters) {
        if let Some(counter) = counter {
            checks.tell(*index, counter.state);
        }
    }
    for (index, state) in leased {
        checks.tell(*index, *state);
    }
    if !away.is_empty() && checks.enforced(violated).is_empty() {
        let mut blind = checks.only(away);
        let decision = shared.decide_without_store(&mut blind, now, false);
        for (place, (index, answer)) in away.iter().zip(blind.states()).enumerate() {
            checks.tell(index, answer.state);
            if matches!(&decision, Decision::Refused(refused) if refused.violated.contains(place)) {
                violated.insert(index);
            }
        }
        if !checks.enforced(violated).is_empty() {
            background::refund(link, owed);
        }
    }
    if !checks.enforced(violated).is_empty() {
        give_back(&link.exchange, checks, leased);
    }
    (checks.conclude(violated, at), away)
}

/// Asks for one request: at once when none of its counters is being asked about, else together with others who
/// wait. `hashes` are those of its counters' keys. It waits for the deadline at most.
async fn one(link: &Link, asked: &Asked<'_>, hashes: &[u64]) -> Result<Told, NoAnswer> {
    let alone = |reply: &Reply| {
        let (item, judged) = asked.batch.items.first().zip(reply.items.first())?;
        Some(judged.tell(item, 0, reply.clock, reply.tags.clone()))
    };
    if hashes.is_empty() || !link.exchange.coalesce {
        return call(link, asked).await.as_ref().and_then(alone).ok_or(NoAnswer::ASKED);
    }
    let mut waits = None;
    let held = Held::take_or_wait(link, hashes, || {
        let (reply, answer) = oneshot::channel();
        waits = Some(answer);
        Question::new(asked, hashes, reply)
    });
    if let Some(held) = held {
        let reply = call(link, asked).await;
        drop(held);
        return reply.as_ref().and_then(alone).ok_or(NoAnswer::ASKED);
    }
    link.exchange.metrics.coalesced.inc();
    let mut waits = waits.ok_or(NoAnswer::ASKED)?;
    let told = if let Ok(told) = within(Instant::now() + deadline(link), &mut waits).await {
        told.ok().flatten()
    } else {
        // Nobody can tell it any more: what it was not told by now is taken back, or was never asked.
        waits.close();
        waits.try_recv().map_err(|_| NoAnswer::UNCOUNTED)?
    };
    told.map(|told| Told { waited: true, ..told }).ok_or(NoAnswer::ASKED)
}

impl Carrier for Link {
    type Waiter = Question;

    fn combiner(&self) -> &Combiner<Question> {
        &self.exchange.combiner
    }

    fn carry(&self, waiters: Vec<Question>, held: Held<Self>) {
        // Without a runtime nobody is left to wait; those who do are told by their senders going away.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let link = self.clone();
        runtime.spawn(async move {
            link.exchange.metrics.merged.inc();
            let merged = Merged::of(&waiters);
            let reply = call(&link, &merged.asked).await;
            let parts = merged.parts(&waiters, reply.as_ref());
            let crowded = waiters.len() >= FEW;
            background::refund(&link, question::tell_all(waiters, parts));
            if crowded {
                link.gather(&held).await;
            }
            drop(held);
        });
    }
}

impl Link {
    /// Where so many requests are in flight that each of them waits for the others anyway, lets those that count on
    /// the keys of `held` come together for a moment, so that the next call carries many.
    async fn gather(&self, held: &Held<Self>) {
        if self.exchange.in_flight.get() < CROWD {
            return;
        }
        let until = Instant::now() + deadline(self) / GATHERING;
        while held.waiting() < ENOUGH && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn deadline(link: &Link) -> Duration {
    link.store.settings().deadline
}

/// Asks, and takes the leases that are wished for with it.
async fn call(link: &Link, asked: &Asked<'_>) -> Option<Reply> {
    if asked.wishes.is_empty() {
        return send(link, asked).await;
    }
    let mut more = asked.clone();
    let mut wished = Vec::with_capacity(asked.wishes.len());
    for (number, index, wish) in &asked.wishes {
        let counter = asked.batch.items.get(*number).and_then(|item| item.counters.get(*index));
        let used = asked.used.get(*number).and_then(|used| used.get(*index));
        let Some((counter, used)) = counter.zip(used) else { continue };
        more.batch.items.push(Item { counters: vec![*counter], count: *wish, ..Item::default() });
        more.used.push(vec![*used]);
        wished.push(*counter);
    }
    // Boxed, like all that is not the rule: the future of every request is as large as its largest step.
    let mut reply = Box::pin(send(link, &more)).await?;
    let leases = reply.items.split_off(asked.batch.items.len().min(reply.items.len()));
    let mut lost = Vec::new();
    for (counter, judged) in wished.iter().zip(leases) {
        let Some(Some(counted)) = judged.counters.first().filter(|_| judged.granted > 0) else { continue };
        if link.exchange.leases.keep(counter.key, counter.rule, judged.granted, counted.state, asked.at) {
            link.exchange.metrics.leases.inc();
        } else {
            lost.push(Owed::new(counter, counted.state, judged.granted));
        }
    }
    background::refund(link, lost);
    Some(reply)
}

/// Sends every part of the question at once.
async fn send(link: &Link, asked: &Asked<'_>) -> Option<Reply> {
    let until = Instant::now() + deadline(link);
    if !link.store.is_cluster() {
        let shard = link.store.shard(b"");
        return Some(parts::whole(asked, send_part(link, shard, asked, until).await.ok()?));
    }
    Box::pin(send_to_cluster(link, asked, until)).await
}

/// Sends every part of the question to its node at once.
async fn send_to_cluster(link: &Link, asked: &Asked<'_>, until: Instant) -> Option<Reply> {
    let whole_slot: &[u8] = b"";
    let mut parts = parts::split(asked, |key| (link.store.shard(key), whole_slot));
    let mut replies = send_parts(link, &parts, until).await;
    let is_moving = |reply: &Result<_, _>| matches!(reply, Err(Unavailable::Redirected));
    if replies.iter().any(is_moving) {
        // While a slot moves, some of its keys are at one node and some at the other, and neither takes a question
        // about several of them: each is asked about by itself.
        let (kept, moving): (Vec<_>, Vec<_>) =
            parts.into_iter().zip(replies).partition(|(_, reply)| !is_moving(reply));
        let mut single = parts::split(asked, |key| (link.store.shard(key), key));
        single.retain(|part| moving.iter().any(|(moving, _)| moving.shard.0 == part.shard.0));
        let answers = within(until, send_parts(link, &single, until)).await;
        (parts, replies) = kept.into_iter().unzip();
        replies.extend(answers.unwrap_or_else(|_| vec![Err(Unavailable::DeadlinePassed); single.len()]));
        parts.extend(single);
    }
    let (reply, owed) = parts::merge(asked, &parts, replies.into_iter().map(Result::ok).collect())?;
    background::refund(link, owed);
    Some(reply)
}

/// Asks all parts at the same time. A part is known by its shard, and by its key where it is of one key only.
async fn send_parts(
    link: &Link,
    parts: &[Part<'_, (Shard, &[u8])>],
    until: Instant,
) -> Vec<Result<BatchReply, Unavailable>> {
    match parts {
        [part] => vec![send_part(link, part.shard.0, &part.asked, until).await],
        parts => join_all(parts.iter().map(|part| send_part(link, part.shard.0, &part.asked, until))).await,
    }
}

/// Asks one shard: by a plain read where nothing is counted, by plain counts far from every limit, else by the
/// script.
async fn send_part(
    link: &Link,
    shard: Shard,
    asked: &Asked<'_>,
    until: Instant,
) -> Result<BatchReply, Unavailable> {
    if !link.store.available(shard) {
        return Err(Unavailable::BreakerOpen);
    }
    let paths = &link.exchange.metrics.paths;
    if !asked.has_counters() {
        paths.count(ExchangePath::Read);
        let Some(command) = native::read(&asked.batch) else { return Err(Unavailable::Rejected) };
        let values = reach::call(&link.store, shard, &command).await?;
        return native::judge(asked, vec![values]).reply.ok_or(Unavailable::Rejected);
    }
    if native::suits(asked, asked.at) {
        paths.count(ExchangePath::Native);
        let singly = link.store.is_cluster();
        let values = match reach::pipeline(
            &link.store,
            shard,
            &native::pipeline(&asked.batch, singly, asked.at),
        )
        .await
        {
            Ok(values) if singly => native::gather(&asked.batch, values),
            Ok(values) => values,
            Err(cause) => {
                // It may be counted later, when the window that was known is over: no counter may stay without end.
                background::end(link, ends(asked));
                return Err(cause);
            }
        };
        let mut outcome = native::judge(asked, values);
        for (number, index) in std::mem::take(&mut outcome.fresh) {
            let counter = asked.batch.items.get(number).and_then(|item| item.counters.get(index));
            let Some(counter) = counter else { continue };
            outcome.learn(asked, counter.key, Box::pin(end_of(link, shard, asked, counter, until)).await);
        }
        background::refund(link, outcome.owed);
        if let Some(reply) = outcome.reply {
            return Ok(reply);
        }
        // The script mends what another program has written there, in what is left of the time.
        paths.count(ExchangePath::Script);
        let mended = within(until, reach::batch(link, shard, &asked.batch)).await;
        return mended.unwrap_or(Err(Unavailable::DeadlinePassed));
    }
    paths.count(ExchangePath::Script);
    // The store keeps the deadline itself, and notes when it passes.
    reach::batch(link, shard, &asked.batch).await
}

fn ends(asked: &Asked<'_>) -> Vec<(Box<[u8]>, u64)> {
    let counters = asked.batch.items.iter().flat_map(|item| &item.counters);
    counters.map(|counter| (counter.key.into(), counter.rule.period_ms)).collect()
}

/// The end of a counter that was new after all; gives it one.
async fn end_of(link: &Link, shard: Shard, asked: &Asked<'_>, counter: &Counter<'_>, until: Instant) -> u64 {
    let period = counter.rule.period_ms;
    let pipeline = native::end(counter.key, period);
    let answers = within(until, reach::pipeline(&link.store, shard, &pipeline)).await;
    if let Ok(Ok(answers)) = answers
        && let Some(Ended::At(end)) = native::ended(&answers)
    {
        return end;
    }
    background::end(link, vec![(counter.key.into(), period)]);
    asked.at.0.saturating_add(period)
}
