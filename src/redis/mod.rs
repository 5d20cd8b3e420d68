//! The road to Redis, be it one server, a master under sentinels, or a Cluster: one multiplexed connection per worker
//! thread, node and lane, a deadline on every call, and a breaker for each node that keeps requests off one that does
//! not answer. It knows nothing of what is stored.

mod breaker;
mod cluster;
mod connection;
mod error;
mod events;
mod link;
mod node;
mod scan;
mod script;
mod sentinel;
mod settings;
mod slot;
mod supervise;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Cmd, ConnectionInfo, Pipeline, RedisError, RedisResult, Value};
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::Notify;

pub use self::connection::Lane;
pub use self::error::{FailureKind, Unavailable};
pub use self::events::{EventHandler, Look, Publisher};
pub use self::link::{Link, Sent};
pub use self::scan::Scan;
pub use self::script::Script;
pub use self::settings::{Settings, UnusableUrl};
pub use self::slot::Shard;
pub use self::supervise::{Recovery, Unburdened};

use self::breaker::Epoch;
use self::cluster::{Cluster, Redirection};
use self::node::Node;
use self::settings::{Address, Target};

/// For how many deadlines the store must have failed before the breaker opens.
const STALL_DEADLINES: u32 = 2;
/// How often one command is redirected: to the slot's owner, whose slot may be on its way again.
const MOST_REDIRECTIONS: u32 = 2;
/// Turns of the worker's loop in which an answer that is there already reaches the caller.
const LAST_CHANCES: u32 = 3;

/// Sees what becomes of calls and of the breakers; implemented by metrics.
pub trait Observer: Send + Sync + 'static {
    /// The store, or in Cluster the first of its nodes, became unavailable (`true`), or all of it is available
    /// again (`false`).
    fn degraded(&self, degraded: bool);
    /// One call ended after `elapsed`.
    fn call(&self, elapsed: Duration, result: Result<(), FailureKind>);
}

/// An observer that looks away.
#[derive(Debug)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn degraded(&self, _: bool) {}
    fn call(&self, _: Duration, _: Result<(), FailureKind>) {}
}

/// A Redis that may be away, in part or as a whole. Cheap to share; connects on first use.
pub struct Store {
    topology: Topology,
    config: AsyncConnectionConfig,
    settings: Settings,
    /// Nodes that operators were told to be away; the cluster itself counts while no node ever told its map.
    away: Mutex<usize>,
    /// Wakes whoever listens to events: some may have been missed.
    missed: Notify,
    observer: Box<dyn Observer>,
}

/// What a store is made of.
enum Topology {
    /// One node that answers for all keys, at a fixed address or wherever sentinels say.
    One(Arc<Node>),
    /// A Cluster.
    Many(Box<Cluster>),
}

/// What the end of a call says about the store.
#[derive(Clone, Copy, Debug)]
enum Weight {
    /// Whether it can decide.
    Counts,
    /// The same, unless Redis does not permit this command: it may permit all that decides.
    CountsIfPermitted,
    /// Nothing.
    Aside,
    /// Nothing, not of the connection either: it has less time than a decision.
    InPassing,
}

/// Why a node did not do as asked.
enum Failure {
    /// It could not.
    Unavailable(Unavailable),
    /// Another node is to be asked; nothing was executed.
    Redirected(Redirection),
}

impl From<Unavailable> for Failure {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}

/// What one node answered to a question that all were asked, and how long that took.
#[derive(Debug)]
pub struct Answer {
    /// The answer.
    pub outcome: Result<Value, Unavailable>,
    /// From asking to answer.
    pub elapsed: Duration,
}

impl Store {
    /// A store that will be reached as `settings` say. Does not connect. With Sentinel and Cluster nothing is
    /// reached before [`Store::supervise`] runs.
    ///
    /// # Errors
    /// When the connection parameters are unusable (for example TLS parameters).
    pub fn new(settings: Settings, observer: Box<dyn Observer>) -> Result<Arc<Self>, UnusableUrl> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout))
            // Our own deadline covers the wait; a second timer per command would only cost.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(1_024);
        let one = |info: Option<ConnectionInfo>| -> Result<Topology, UnusableUrl> {
            Ok(Topology::One(Arc::new(Node::new(&settings, info, None)?)))
        };
        let topology = match &settings.target {
            Target::Single(info) => one(Some(info.clone()))?,
            Target::Sentinel { .. } => one(None)?,
            Target::Cluster { seeds } => {
                let like = seeds.first().ok_or(UnusableUrl)?.clone();
                Topology::Many(Box::new(Cluster::new(seeds.clone(), like)))
            }
        };
        let (away, missed) = (Mutex::new(0), Notify::new());
        Ok(Arc::new(Self { topology, config, settings, away, missed, observer }))
    }

    /// How this store is reached.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether keys are spread over several nodes, so that only those of one shard can be used together.
    pub const fn is_cluster(&self) -> bool {
        matches!(self.topology, Topology::Many(_))
    }

    /// The shard that `key` belongs to.
    pub fn shard(&self, key: &[u8]) -> Shard {
        match &self.topology {
            Topology::One(_) => Shard::ONLY,
            Topology::Many(_) => Shard::of(key),
        }
    }

    /// Whether requests may ask for keys of `shard` at the moment.
    pub fn available(&self, shard: Shard) -> bool {
        match &self.topology {
            Topology::One(node) => node.breaker.closed().is_some(),
            Topology::Many(cluster) => cluster.available(shard),
        }
    }

    /// Whether requests may ask for any key at the moment.
    pub fn available_everywhere(&self) -> bool {
        match &self.topology {
            Topology::One(node) => node.breaker.closed().is_some(),
            Topology::Many(cluster) => {
                cluster.map().is_some_and(|map| map.nodes.iter().all(|node| node.breaker.closed().is_some()))
            }
        }
    }

    /// Whether operators were told that the store, or a part of it, is away.
    pub fn degraded(&self) -> bool {
        *self.away.lock() > 0
    }

    /// Sends one command, all of whose keys are of `shard`, within the configured deadline.
    ///
    /// # Errors
    /// [`Unavailable`] when the breaker is open, the deadline passed or Redis answered with an error. A
    /// command whose deadline passed may still be executed: count it as done.
    pub async fn call(&self, lane: Lane, shard: Shard, command: &Cmd) -> Result<Value, Unavailable> {
        self.call_within(self.settings.deadline, lane, shard, command).await
    }

    /// The configured deadline, or `patience` where that is longer.
    #[must_use]
    pub fn deadline(&self, patience: Option<Duration>) -> Duration {
        patience.map_or(self.settings.deadline, |patience| patience.max(self.settings.deadline))
    }

    /// As [`Store::call`], with a deadline of its own: for work that no request waits for.
    pub async fn call_within(
        &self,
        deadline: Duration,
        lane: Lane,
        shard: Shard,
        command: &Cmd,
    ) -> Result<Value, Unavailable> {
        self.call_as(Weight::Counts, deadline, lane, shard, command).await
    }

    /// As [`Store::call_within`], for what a Redis that can decide may still not permit (an ACL).
    pub async fn call_if_permitted(
        &self,
        deadline: Duration,
        lane: Lane,
        shard: Shard,
        command: &Cmd,
    ) -> Result<Value, Unavailable> {
        self.call_as(Weight::CountsIfPermitted, deadline, lane, shard, command).await
    }

    /// As [`Store::call_aside`], with so little time that no answer says nothing about the connection either.
    pub async fn call_in_passing(
        &self,
        deadline: Duration,
        lane: Lane,
        shard: Shard,
        command: &Cmd,
    ) -> Result<Value, Unavailable> {
        self.call_as(Weight::InPassing, deadline, lane, shard, command).await
    }

    /// As [`Store::call_within`], for what can be done without: how it ends says nothing about whether the store can
    /// decide. A Redis that is full refuses it, and may still answer all else.
    pub async fn call_aside(
        &self,
        deadline: Duration,
        lane: Lane,
        shard: Shard,
        command: &Cmd,
    ) -> Result<Value, Unavailable> {
        self.call_as(Weight::Aside, deadline, lane, shard, command).await
    }

    async fn call_as(
        &self,
        weight: Weight,
        deadline: Duration,
        lane: Lane,
        shard: Shard,
        command: &Cmd,
    ) -> Result<Value, Unavailable> {
        let until = tokio::time::Instant::now() + deadline;
        match &self.topology {
            Topology::One(node) => {
                self.ask_as(weight, node, lane, command, until).await.map_err(Failure::settle)
            }
            Topology::Many(cluster) => {
                let mut node = cluster.owner(shard, until).await?;
                // Not executed where it was redirected, so that it may be repeated.
                for _ in 0..=MOST_REDIRECTIONS {
                    let to = match self.ask_as(weight, &node, lane, command, until).await {
                        Err(Failure::Redirected(to)) => to,
                        other => return other.map_err(Failure::settle),
                    };
                    node = cluster.follow(&to, until).await?;
                    if to.asking {
                        let mut pipeline = Pipeline::with_capacity(2);
                        pipeline.cmd("ASKING").add_command(command.clone());
                        let values = self.ask_many(&node, lane, &pipeline, until).await?;
                        return values.into_iter().nth(1).map_or(Err(Unavailable::Rejected), value_of);
                    }
                }
                Err(Unavailable::Redirected)
            }
        }
    }

    /// Sends commands, all of whose keys are of `shard`, in one go within the configured deadline. The answers are
    /// in the commands' order; an error that Redis gave to one of them stands in its place as
    /// [`Value::ServerError`], and says nothing about the others. `pipeline` must not be atomic.
    ///
    /// # Errors
    /// As [`Store::call`]: when there are no answers at all.
    pub async fn pipeline(
        &self,
        lane: Lane,
        shard: Shard,
        pipeline: &Pipeline,
    ) -> Result<Vec<Value>, Unavailable> {
        self.pipeline_within(self.settings.deadline, lane, shard, pipeline).await
    }

    /// As [`Store::pipeline`], with a deadline of its own: for work that no request waits for.
    pub async fn pipeline_within(
        &self,
        deadline: Duration,
        lane: Lane,
        shard: Shard,
        pipeline: &Pipeline,
    ) -> Result<Vec<Value>, Unavailable> {
        let until = tokio::time::Instant::now() + deadline;
        match &self.topology {
            Topology::One(node) => self.ask_many(node, lane, pipeline, until).await,
            Topology::Many(cluster) => {
                let owner = cluster.owner(shard, until).await?;
                let mut values = self.ask_many(&owner, lane, pipeline, until).await?;
                if values.iter().any(|value| matches!(value, Value::ServerError(_))) {
                    self.repeat_redirected(cluster, &owner, lane, pipeline, &mut values, until).await;
                }
                Ok(values)
            }
        }
    }

    /// Repeats the commands that were redirected, once, where the first of them was sent; the others keep their
    /// answers, since they were executed.
    async fn repeat_redirected(
        &self,
        cluster: &Cluster,
        asked: &Node,
        lane: Lane,
        pipeline: &Pipeline,
        values: &mut [Value],
        until: tokio::time::Instant,
    ) {
        let mut target: Option<Redirection> = None;
        let mut again = Pipeline::new();
        let mut places = Vec::new();
        for (index, (command, value)) in pipeline.cmd_iter().zip(&*values).enumerate() {
            let Value::ServerError(error) = value else { continue };
            let error = RedisError::from(error.clone());
            let Some(to) = Redirection::of(&error, asked.address.as_ref()) else { continue };
            let to = target.get_or_insert(to);
            if to.asking {
                again.cmd("ASKING");
            }
            again.add_command(command.clone());
            places.push(index);
        }
        let Some(to) = target else { return };
        let Ok(node) = cluster.follow(&to, until).await else { return };
        let Ok(answers) = self.ask_many(&node, lane, &again, until).await else { return };
        let step = if to.asking { 2 } else { 1 };
        for (place, answer) in places.into_iter().zip(answers.into_iter().skip(step - 1).step_by(step)) {
            if let Some(value) = values.get_mut(place) {
                *value = answer;
            }
        }
    }

    /// Runs `script` through `EVALSHA`, loading it when Redis does not know it. `command` must be made by
    /// [`Script::command`]; its keys are all of `shard`.
    pub fn eval(
        &self,
        lane: Lane,
        shard: Shard,
        script: &Script,
        command: &Cmd,
    ) -> impl Future<Output = Result<Value, Unavailable>> {
        self.eval_within(self.settings.deadline, lane, shard, script, command)
    }

    /// As [`Store::eval`], with a deadline of its own: for work that no request waits for.
    pub async fn eval_within(
        &self,
        deadline: Duration,
        lane: Lane,
        shard: Shard,
        script: &Script,
        command: &Cmd,
    ) -> Result<Value, Unavailable> {
        self.eval_as(Weight::Counts, deadline, lane, shard, script, command).await
    }

    /// As [`Store::eval_within`], for what can be done without, as with [`Store::call_aside`].
    pub async fn eval_aside(
        &self,
        deadline: Duration,
        lane: Lane,
        shard: Shard,
        script: &Script,
        command: &Cmd,
    ) -> Result<Value, Unavailable> {
        self.eval_as(Weight::Aside, deadline, lane, shard, script, command).await
    }

    async fn eval_as(
        &self,
        weight: Weight,
        deadline: Duration,
        lane: Lane,
        shard: Shard,
        script: &Script,
        command: &Cmd,
    ) -> Result<Value, Unavailable> {
        let started = Instant::now();
        match self.call_as(weight, deadline, lane, shard, command).await {
            Err(Unavailable::ScriptUnknown) => {
                // All three share one deadline: the request waits no longer for a store that was restarted.
                let left = || deadline.saturating_sub(started.elapsed());
                if self.is_cluster() {
                    // Nobody tells which node did not know it, while the slot is on its way to another one.
                    self.ask_all(left(), lane, &script.load()).await;
                } else {
                    self.call_as(weight, left(), lane, shard, &script.load()).await?;
                }
                self.call_as(weight, left(), lane, shard, command).await
            }
            other => other,
        }
    }

    /// Sends one command to every node that owns keys, each with this deadline. For operators' questions.
    pub async fn ask_all(&self, deadline: Duration, lane: Lane, command: &Cmd) -> Vec<Answer> {
        self.ask_all_as(Weight::Counts, deadline, lane, command).await
    }

    /// As [`Store::ask_all`], for what can be done without, as with [`Store::call_aside`].
    pub async fn ask_all_aside(&self, deadline: Duration, lane: Lane, command: &Cmd) -> Vec<Answer> {
        self.ask_all_as(Weight::Aside, deadline, lane, command).await
    }

    async fn ask_all_as(&self, weight: Weight, deadline: Duration, lane: Lane, command: &Cmd) -> Vec<Answer> {
        let until = tokio::time::Instant::now() + deadline;
        let nodes = self.nodes();
        let asked = nodes.iter().map(|node| async move {
            let started = Instant::now();
            let outcome = self.ask_as(weight, node, lane, command, until).await.map_err(Failure::settle);
            Answer { outcome, elapsed: started.elapsed() }
        });
        let answers = futures::future::join_all(asked).await;
        if answers.is_empty() {
            return vec![Answer { outcome: Err(Unavailable::NotConnected), elapsed: Duration::ZERO }];
        }
        answers
    }

    /// Goes through all keys that match `pattern`; each step looks at about `count` of them.
    pub fn scan(&self, pattern: String, count: usize) -> Scan<'_> {
        Scan::new(self, pattern, count)
    }

    /// Sends one command that concerns no key to any node that can be asked.
    pub(crate) async fn ask_any(&self, lane: Lane, command: &Cmd) -> Result<Value, Unavailable> {
        let until = tokio::time::Instant::now() + self.settings.deadline;
        let node = self.any_node().ok_or(Unavailable::BreakerOpen)?;
        self.ask(&node, lane, command, until).await.map_err(Failure::settle)
    }

    /// All nodes that are known.
    fn nodes(&self) -> Vec<Arc<Node>> {
        match &self.topology {
            Topology::One(node) => vec![Arc::clone(node)],
            Topology::Many(cluster) => cluster.map().map_or_else(Vec::new, |map| map.nodes.to_vec()),
        }
    }

    /// A node that can be asked, any of them.
    fn any_node(&self) -> Option<Arc<Node>> {
        match &self.topology {
            Topology::One(node) => Some(Arc::clone(node)).filter(|node| node.breaker.closed().is_some()),
            Topology::Many(cluster) => {
                let map = cluster.map()?;
                let start = fastrand::usize(..map.nodes.len().max(1));
                let (front, back) = map.nodes.split_at_checked(start)?;
                back.iter().chain(front).find(|node| node.breaker.closed().is_some()).map(Arc::clone)
            }
        }
    }

    /// One command, one node.
    async fn ask(
        &self,
        node: &Arc<Node>,
        lane: Lane,
        command: &Cmd,
        until: tokio::time::Instant,
    ) -> Result<Value, Failure> {
        self.ask_as(Weight::Counts, node, lane, command, until).await
    }

    async fn ask_as(
        &self,
        weight: Weight,
        node: &Arc<Node>,
        lane: Lane,
        command: &Cmd,
        until: tokio::time::Instant,
    ) -> Result<Value, Failure> {
        let Some(epoch) = node.breaker.closed() else { return Err(Unavailable::BreakerOpen.into()) };
        let started = tokio::time::Instant::now();
        let send = |mut connection: MultiplexedConnection| async move {
            // The client library hands error replies on as values here.
            match connection.send_packed_command(command).await? {
                Value::ServerError(error) => Err(error.into()),
                value => Ok(value),
            }
        };
        let outcome = self.attempt(node, epoch, lane, until, weight, send).await;
        let failure = outcome.as_ref().err().and_then(Failure::unavailable);
        let counts = match weight {
            Weight::Counts => true,
            Weight::CountsIfPermitted => failure != Some(Unavailable::NotPermitted),
            Weight::Aside | Weight::InPassing => false,
        };
        if counts {
            self.account(node, epoch, started.elapsed(), failure);
        } else {
            self.observer.call(started.elapsed(), failure.map_or(Ok(()), |why| Err(why.kind())));
        }
        outcome
    }

    /// Several commands, one node. Errors of single commands stay values.
    async fn ask_many(
        &self,
        node: &Arc<Node>,
        lane: Lane,
        pipeline: &Pipeline,
        until: tokio::time::Instant,
    ) -> Result<Vec<Value>, Unavailable> {
        let Some(epoch) = node.breaker.closed() else { return Err(Unavailable::BreakerOpen) };
        let started = tokio::time::Instant::now();
        let send = |mut connection: MultiplexedConnection| async move {
            connection.send_packed_commands(pipeline, 0, pipeline.len()).await
        };
        let outcome = self.attempt(node, epoch, lane, until, Weight::Counts, send).await;
        let outcome = outcome.map_err(Failure::settle);
        let failure = match &outcome {
            Ok(values) => values.iter().find_map(|value| match value {
                Value::ServerError(error) => Some(Unavailable::from(RedisError::from(error.clone())))
                    .filter(|failure| failure.counts_against_store()),
                _ => None,
            }),
            Err(failure) => Some(*failure),
        };
        self.account(node, epoch, started.elapsed(), failure);
        outcome
    }

    async fn attempt<T, F>(
        &self,
        node: &Arc<Node>,
        epoch: Epoch,
        lane: Lane,
        until: tokio::time::Instant,
        weight: Weight,
        send: impl FnOnce(MultiplexedConnection) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let (serial, connection) = self.connection(node, lane, epoch, until).await?;
        match within(until, send(connection)).await {
            Ok(Ok(value)) => {
                connection::note_answer(serial);
                Ok(value)
            }
            Ok(Err(error)) => {
                if error.is_unrecoverable_error() {
                    connection::discard(serial);
                } else {
                    connection::note_answer(serial);
                }
                Err(Redirection::of(&error, node.address.as_ref())
                    .map_or_else(|| Unavailable::from(error).into(), Failure::Redirected))
            }
            Err(_) => {
                if !matches!(weight, Weight::InPassing) {
                    connection::note_silence(serial);
                }
                Err(Unavailable::DeadlinePassed.into())
            }
        }
    }

    fn account(&self, node: &Node, epoch: Epoch, elapsed: Duration, failure: Option<Unavailable>) {
        match failure {
            None => {
                node.breaker.succeeded();
                self.observer.call(elapsed, Ok(()));
            }
            Some(failure) => {
                self.observer.call(elapsed, Err(failure.kind()));
                if matches!(failure, Unavailable::Redirected | Unavailable::ClusterDown) {
                    self.doubt_map();
                }
                if !failure.counts_against_store() {
                    return;
                }
                if node.breaker.failed(epoch, failure.is_conclusive(), Instant::now()) {
                    self.lost(node, failure, None);
                } else {
                    // Too few to tell, and perhaps no other request follows.
                    node.suspected.notify_one();
                }
            }
        }
    }

    /// The map of a cluster may be old: it is to be learned again soon.
    fn doubt_map(&self) {
        if let Topology::Many(cluster) = &self.topology {
            cluster.stale.notify_one();
        }
    }

    /// Tells operators, once per transition, that this node is away. Its breaker is open already.
    fn lost(&self, node: &Node, cause: Unavailable, detail: Option<&str>) {
        let mut away = self.away.lock();
        if node.is_retired() || node.told_away.swap(true, Ordering::AcqRel) {
            return;
        }
        let node = node.address.as_ref().map(Address::to_string);
        tracing::warn!(%cause, detail, node, "Redis is unavailable: limits and revocations go on from memory");
        self.count_away(&mut away, 1);
        self.doubt_map();
    }

    /// Tells operators, once per transition, that this node is back.
    fn found(&self, node: &Node) {
        let mut away = self.away.lock();
        if node.told_away.swap(false, Ordering::AcqRel) {
            let node = node.address.as_ref().map(Address::to_string);
            tracing::warn!(node, "Redis is available again: limits are shared again");
            self.count_away(&mut away, -1);
        }
    }

    /// Takes the count under its lock, so that the last word told is the right one.
    fn count_away(&self, away: &mut usize, by: isize) {
        let before = *away;
        *away = before.saturating_add_signed(by);
        if (before == 0) != (*away == 0) {
            self.observer.degraded(*away > 0);
        }
    }
}

impl Failure {
    /// For those who follow no redirection.
    fn settle(self) -> Unavailable {
        match self {
            Self::Unavailable(unavailable) => unavailable,
            Self::Redirected(_) => Unavailable::Redirected,
        }
    }

    /// The failure of the node; a redirection is none.
    fn unavailable(&self) -> Option<Unavailable> {
        match self {
            Self::Unavailable(unavailable) => Some(*unavailable),
            Self::Redirected(_) => None,
        }
    }
}

/// A value that is an error as what it means.
fn value_of(value: Value) -> Result<Value, Unavailable> {
    match value {
        Value::ServerError(error) => Err(RedisError::from(error).into()),
        value => Ok(value),
    }
}

/// Awaits `work` until then. A worker that is busy itself finds the answer and the end of the wait in the same
/// moment, and may see the end first: the answer gets another chance, so that load here is not taken for a
/// slow store.
pub(crate) async fn within<T>(until: tokio::time::Instant, work: impl Future<Output = T>) -> Result<T, Late> {
    let mut work = std::pin::pin!(work);
    if let Ok(done) = tokio::time::timeout_at(until, work.as_mut()).await {
        return Ok(done);
    }
    for _ in 0..LAST_CHANCES {
        // Others run meanwhile, the one that reads the store's answers among them.
        tokio::task::yield_now().await;
        if let Some(done) = work.as_mut().now_or_never() {
            return Ok(done);
        }
    }
    Err(Late)
}

/// The end of the wait came first.
pub(crate) struct Late;

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Store")
            .field("available", &self.available_everywhere())
            .finish_non_exhaustive()
    }
}
