//! The stores the statements are made about: this instance's memory, the scripts on one Redis, and the scripts
//! on a Redis Cluster of three masters. Servers are started on free loopback ports and killed by process id.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::super::batch::{Batch, BatchReply, Counter, Item, ItemReply, Refund};
use super::super::local::Settings;
use super::super::{Algorithm, Checks, CoolDown, Decision, Local, gate};
use crate::clock::{Clock, ManualClock, UnixMillis};

/// A cool-down that outlasts every test once tripped.
pub(super) const COOL: Algorithm =
    Algorithm::CoolDown(CoolDown { interval_ms: 3_600_000, quiet_ms: 7_200_000 });

/// Every algorithm.
pub(super) const ALL: [Algorithm; 5] =
    [Algorithm::FixedWindow, Algorithm::SlidingWindow, Algorithm::TokenBucket, Algorithm::SlidingLog, COOL];

/// One Redis process.
pub(super) struct TestRedis {
    child: Child,
    client: redis::Client,
    port: u16,
    bus: u16,
    _directory: Option<tempfile::TempDir>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl TestRedis {
    pub(super) fn start() -> Self {
        Self::launch(false)
    }

    #[allow(clippy::disallowed_methods, reason = "waits for a real process")]
    fn launch(cluster: bool) -> Self {
        let (port, bus) = (free_port(), free_port());
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        let directory = cluster.then(|| tempfile::tempdir().unwrap());
        if let Some(directory) = &directory {
            command.args(["--cluster-enabled", "yes", "--cluster-port", &bus.to_string(), "--dir"]);
            command.arg(directory.path());
        }
        let child = command.stdout(Stdio::null()).spawn().expect("redis-server must be installed");
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}/")).unwrap();
        let server = Self { child, client, port, bus, _directory: directory };
        let deadline = Instant::now() + Duration::from_secs(10);
        while server.client.get_connection().is_err() {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    pub(super) fn connection(&self) -> redis::Connection {
        self.client.get_connection().unwrap()
    }
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three masters that own all slots.
struct Cluster(Vec<Arc<TestRedis>>);

static CLUSTER: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

impl Cluster {
    /// The one that other tests use now, or a new one: it ends with the last test that uses it.
    fn shared() -> Arc<Self> {
        let mut shared = CLUSTER.lock();
        if let Some(cluster) = shared.upgrade() {
            return cluster;
        }
        let cluster = Arc::new(Self::start());
        *shared = Arc::downgrade(&cluster);
        cluster
    }

    #[allow(clippy::disallowed_methods, reason = "waits for real processes")]
    fn start() -> Self {
        let nodes: Vec<_> = (0..3).map(|_| Arc::new(TestRedis::launch(true))).collect();
        let ranges = [(0, 5_460), (5_461, 10_922), (10_923, 16_383)];
        for (node, (from, to)) in nodes.iter().zip(ranges) {
            let mut connection = node.connection();
            redis::cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(from).arg(to).exec(&mut connection).unwrap();
            for other in &nodes {
                let mut meet = redis::cmd("CLUSTER");
                meet.arg("MEET").arg("127.0.0.1").arg(other.port).arg(other.bus);
                meet.exec(&mut connection).unwrap();
            }
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        for node in &nodes {
            let mut connection = node.connection();
            loop {
                let info: String = redis::cmd("CLUSTER").arg("INFO").query(&mut connection).unwrap();
                if info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3") {
                    break;
                }
                assert!(Instant::now() < deadline, "the cluster does not form: {info}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Self(nodes)
    }

    /// The master of the slot of `key`.
    fn owner(&self, key: &str) -> Arc<TestRedis> {
        let mut connection = self.0[0].connection();
        let slot: usize = redis::cmd("CLUSTER").arg("KEYSLOT").arg(key).query(&mut connection).unwrap();
        self.0[(slot / 5_461).min(2)].clone()
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
    server: Arc<TestRedis>,
    cluster: Option<Arc<Cluster>>,
    connection: redis::Connection,
    prefix: String,
    sha: String,
    refund: String,
}

impl Gate {
    pub(super) fn start() -> Self {
        Self::on(Arc::new(TestRedis::start()))
    }

    pub(super) fn on(server: Arc<TestRedis>) -> Self {
        Self::with(server, None, String::new())
    }

    pub(super) fn in_cluster() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let prefix = format!("{{t{}}}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let cluster = Cluster::shared();
        Self::with(cluster.owner(&prefix), Some(cluster), prefix)
    }

    fn with(server: Arc<TestRedis>, cluster: Option<Arc<Cluster>>, prefix: String) -> Self {
        let mut connection = server.connection();
        let mut load =
            |text| redis::cmd("SCRIPT").arg("LOAD").arg(text).query::<String>(&mut connection).unwrap();
        let (sha, refund) = (load(gate::GATE), load(gate::REFUND));
        Self { server, cluster, connection, prefix, sha, refund }
    }

    /// Another connection to the same counters.
    pub(super) fn sibling(&self) -> Self {
        Self::with(self.server.clone(), self.cluster.clone(), self.prefix.clone())
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
