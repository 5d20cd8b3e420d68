//! The stores the statements are made about: this instance's memory, the scripts on one Redis, and the scripts
//! on a Redis Cluster of three masters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::super::batch::{Batch, BatchReply, Counter, Item, ItemReply, Refund};
use super::super::local::Settings;
use super::super::{Algorithm, Checks, CoolDown, Decision, Local, gate};
use crate::clock::{Clock, ManualClock, UnixMillis};
use crate::test_redis::{Cluster, Server};

/// A cool-down that outlasts every test once tripped.
pub(super) const COOL: Algorithm =
    Algorithm::CoolDown(CoolDown { interval_ms: 3_600_000, quiet_ms: 7_200_000 });

/// Every algorithm.
pub(super) const ALL: [Algorithm; 5] =
    [Algorithm::FixedWindow, Algorithm::SlidingWindow, Algorithm::TokenBucket, Algorithm::SlidingLog, COOL];

static CLUSTER: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

/// The one that other tests use now, or a new one: it ends with the last test that uses it.
fn shared_cluster() -> Arc<Cluster> {
    let mut shared = CLUSTER.lock();
    if let Some(cluster) = shared.upgrade() {
        return cluster;
    }
    let cluster = Arc::new(Cluster::start());
    *shared = Arc::downgrade(&cluster);
    cluster
}

/// Where the keys of a test are.
#[derive(Clone)]
enum Home {
    Alone(Arc<Server>),
    /// On the master with this index.
    InCluster(Arc<Cluster>, usize),
}

impl Home {
    fn server(&self) -> &Server {
        match self {
            Self::Alone(server) => server,
            Self::InCluster(cluster, index) => cluster.node(*index),
        }
    }
}

/// What every store of counters must do.
pub(super) trait Store: Send {
    fn decide(&mut self, checks: &mut Checks) -> Decision;
    fn wait(&mut self, duration: Duration);
    fn another(&self) -> Box<dyn Store>;
    fn keys(&mut self) -> usize;
}

pub(super) struct Memory {
    local: Arc<Local>,
    clock: Arc<ManualClock>,
}

impl Memory {
    pub(super) fn new() -> Self {
        let local = Arc::new(Local::new(Settings::default()));
        Self { local, clock: Arc::new(ManualClock::at(UnixMillis(1_700_000_000_123))) }
    }
}

impl Store for Memory {
    fn decide(&mut self, checks: &mut Checks) -> Decision {
        self.local.decide(checks, self.clock.now())
    }

    fn wait(&mut self, duration: Duration) {
        self.clock.advance(duration);
    }

    fn another(&self) -> Box<dyn Store> {
        Box::new(Self { local: self.local.clone(), clock: self.clock.clone() })
    }

    fn keys(&mut self) -> usize {
        self.local.len()
    }
}

/// What is asked beside the counters of one request.
#[derive(Clone, Copy, Default)]
pub(super) struct Question<'a> {
    pub(super) guards: &'a [&'a [u8]],
    pub(super) tags: &'a [&'a [u8]],
    pub(super) cutoff: Option<usize>,
    pub(super) issued_at: u64,
}

/// What became of one request.
pub(super) struct Outcome {
    /// The guard that bars it.
    pub(super) barred: Option<usize>,
    pub(super) tags: Vec<Option<Bytes>>,
    pub(super) decision: Option<Decision>,
    pub(super) clock: Option<UnixMillis>,
}

/// One request with these checks as a batch whose counters stand under `keys`.
pub(super) fn batch_of<'a>(question: &Question<'a>, checks: &'a Checks, keys: &'a [Vec<u8>]) -> Batch<'a> {
    let counters = checks.iter().zip(keys).map(|(check, key)| Counter {
        key,
        rule: check.rule,
        penalise: check.penalise,
        shadow: check.shadow,
        known_end: check.known_end,
    });
    let item = Item {
        guards: question.guards.to_vec(),
        cutoff: question.cutoff,
        issued_at: question.issued_at,
        counters: counters.collect(),
        count: 1,
    };
    Batch { tags: question.tags.to_vec(), items: vec![item] }
}

/// Writes the reply to [`batch_of`] into the checks it was made of.
pub(super) fn conclude(reply: BatchReply, batch: &Batch<'_>, checks: &mut Checks) -> Outcome {
    let BatchReply { clock, tags, items } = reply;
    let [item] = items.as_slice() else { panic!("{items:?}") };
    let violated = item.violated(&batch.items[0]);
    match item {
        ItemReply::Barred(guard) => Outcome { barred: Some(*guard), tags, decision: None, clock },
        ItemReply::Judged { granted, counters } => {
            assert_eq!(*granted == 1, violated.is_empty());
            for ((_, answer), counted) in checks.pairs().zip(counters) {
                answer.state = counted.state;
            }
            let decision = Some(checks.conclude(violated, clock.unwrap_or(checks.at())));
            Outcome { barred: None, tags, decision, clock }
        }
    }
}

/// The scripts on a real server. In a Cluster every key is given a hash tag of its own, so that all of one test
/// lie in one slot, and another test's in another.
pub(super) struct Gate {
    home: Home,
    connection: redis::Connection,
    prefix: String,
    sha: String,
    refund: String,
}

impl Gate {
    pub(super) fn start() -> Self {
        Self::on(Arc::new(Server::start(&[])))
    }

    pub(super) fn on(server: Arc<Server>) -> Self {
        Self::with(Home::Alone(server), String::new())
    }

    pub(super) fn in_cluster() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let prefix = format!("{{t{}}}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let cluster = shared_cluster();
        let owner = cluster.owner(&prefix);
        Self::with(Home::InCluster(cluster, owner), prefix)
    }

    fn with(home: Home, prefix: String) -> Self {
        let mut connection = home.server().client();
        let mut load =
            |text| redis::cmd("SCRIPT").arg("LOAD").arg(text).query::<String>(&mut connection).unwrap();
        let (sha, refund) = (load(gate::GATE), load(gate::REFUND));
        Self { home, connection, prefix, sha, refund }
    }

    /// Another connection to the same counters.
    pub(super) fn sibling(&self) -> Self {
        Self::with(self.home.clone(), self.prefix.clone())
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) fn batch(&mut self, batch: &Batch<'_>) -> BatchReply {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.sha);
        gate::encode(batch, &mut command);
        let value: redis::Value = command.query(&mut self.connection).unwrap();
        gate::decode(value, batch).unwrap()
    }

    pub(super) fn refund(&mut self, refunds: &[Refund<'_>]) -> u64 {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.refund);
        gate::encode_refunds(refunds, &mut command);
        command.query(&mut self.connection).unwrap()
    }

    pub(super) fn ask(&mut self, question: &Question<'_>, checks: &mut Checks) -> Outcome {
        let own = checks.clone();
        let key = |check| [self.prefix.as_bytes(), own.key(check)].concat();
        let keys: Vec<_> = own.iter().map(key).collect();
        let batch = batch_of(question, &own, &keys);
        let reply = self.batch(&batch);
        conclude(reply, &batch, checks)
    }

    pub(super) fn run<T: redis::FromRedisValue>(&mut self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut self.connection).unwrap()
    }

    pub(super) fn commands_of(&mut self, name: &str) -> u64 {
        let stats: String = self.run(&["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:calls=")));
        line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }
}

impl Store for Gate {
    fn decide(&mut self, checks: &mut Checks) -> Decision {
        self.ask(&Question::default(), checks).decision.unwrap()
    }

    fn wait(&mut self, duration: Duration) {
        std::thread::sleep(duration + Duration::from_millis(3));
    }

    fn another(&self) -> Box<dyn Store> {
        Box::new(self.sibling())
    }

    fn keys(&mut self) -> usize {
        let keys: Vec<String> = self.run(&["KEYS", &self.key("*")]);
        keys.len()
    }
}

/// The statement over every store.
pub(super) fn everywhere(statement: impl Fn(&mut dyn Store)) {
    statement(&mut Memory::new());
    redis_servers(|gate| statement(gate));
}

/// The statement over a single Redis and over a Cluster.
pub(super) fn redis_servers(statement: impl Fn(&mut Gate)) {
    statement(&mut Gate::start());
    statement(&mut Gate::in_cluster());
}
