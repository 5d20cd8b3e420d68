//! A Redis Cluster of the test's own: three real masters, if wanted with a replica each, on free ports; and what can
//! happen to one: a node killed or paused, a slot moved. It needs no `redis-cli` and nothing else of the kit, so that
//! unit tests can include this file by its path.
#![allow(dead_code, reason = "no test uses all of it")]

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use ::redis::{Client, Cmd, Connection, FromRedisValue, RedisResult, Value, cmd, from_redis_value};
use tempfile::TempDir;

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a dead peer is declared dead after; a failover takes about twice this and a second more.
const NODE_TIMEOUT_MS: &str = "2000";
/// A handshake ends after the node timeout, and after a second at least.
const MEET_AGAIN_AFTER: Duration = Duration::from_secs(4);
const MASTERS: usize = 3;
const SLOTS: u16 = 16_384;
/// Ports whose cluster bus (10,000 above) is still below those the kernel takes for outgoing connections. Neither are
/// among those of `ports.rs`.
const PORTS: std::ops::Range<u16> = 10_000..15_000;

static HANDED_OUT: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A port that is free together with the one 10,000 above it.
pub fn free_port_pair() -> u16 {
    let is_free = |port: u16| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
    };
    let mut handed_out = HANDED_OUT.lock().unwrap();
    for _ in 0..10_000 {
        let port = fastrand::u16(PORTS);
        // Whoever was given it may be about to bind it, which even our look could prevent.
        if !handed_out.contains(&port) && is_free(port) && is_free(port + 10_000) {
            handed_out.insert(port);
            return port;
        }
    }
    panic!("no free pair of ports");
}

/// Polls until `condition` holds; fails the test otherwise, naming what did not come about.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One `redis-server` with options of the caller's, killed by its own process id when dropped.
#[derive(Debug)]
pub struct Server {
    port: u16,
    arguments: Vec<String>,
    directory: TempDir,
    child: Mutex<Option<Child>>,
}

impl Server {
    /// Starts and waits until it answers.
    pub fn start(arguments: &[&str]) -> Self {
        for _ in 0..5 {
            let server = Self {
                port: free_port_pair(),
                arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
                directory: tempfile::tempdir().unwrap(),
                child: Mutex::new(None),
            };
            if server.launch() {
                return server;
            }
        }
        panic!("redis-server did not start");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// A blocking connection whose commands fail rather than hang.
    pub fn try_client(&self) -> RedisResult<Connection> {
        let client = Client::open(format!("redis://{}/", self.addr()))?;
        let connection = client.get_connection_with_timeout(Duration::from_secs(2))?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        Ok(connection)
    }

    pub fn client(&self) -> Connection {
        self.try_client().expect("a connection to the test's redis-server")
    }

    pub fn query<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_query(words).unwrap_or_else(|error| panic!("{words:?} on {}: {error}", self.port))
    }

    pub fn try_query<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let mut command = Cmd::new();
        for word in words {
            command.arg(*word);
        }
        command.query(&mut self.try_client()?)
    }

    /// A line `field:value` of `INFO`.
    pub fn info(&self, field: &str) -> String {
        let text: String = self.try_query(&["INFO"]).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }

    pub fn is_running(&self) -> bool {
        self.child.lock().unwrap().is_some()
    }

    /// Connections are closed and new ones refused.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Freezes the server: the kernel still accepts connections, nobody answers.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    pub fn resume(&self) {
        self.signal("-CONT");
    }

    /// Starts it again on the same port, with the nodes file it had; its data is gone.
    pub fn restart(&self) {
        self.kill();
        eventually("redis-server is back on its port", || self.launch());
    }

    fn signal(&self, flag: &str) {
        let child = self.child.lock().unwrap();
        let pid = child.as_ref().expect("redis-server runs").id();
        let status = Command::new("sh").args(["-c", &format!("kill {flag} {pid}")]).status().unwrap();
        assert!(status.success(), "kill {flag} {pid}: {status}");
    }

    fn launch(&self) -> bool {
        let mut child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir"])
            .arg(self.directory.path())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("redis-server must be installed");
        let own = format!("process_id:{}\r\n", child.id());
        let begin = Instant::now();
        loop {
            // Another test's server could have taken the port first.
            if self.try_query::<String>(&["INFO", "server"]).is_ok_and(|info| info.contains(&own)) {
                *self.child.lock().unwrap() = Some(child);
                return true;
            }
            if child.try_wait().unwrap().is_some() || begin.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three masters with a third of the slots each, and perhaps their replicas.
#[derive(Debug)]
pub struct Cluster {
    /// The masters, then the replicas in the masters' order.
    nodes: Vec<Server>,
    ids: Vec<String>,
}

impl Cluster {
    /// Three masters.
    pub fn start() -> Self {
        Self::form(0, &[])
    }

    /// Three masters that come back with what they held. It is the process that dies and not the machine: what was
    /// written needs no wait for the disk, which is long while others build.
    pub fn start_durable() -> Self {
        Self::form(0, &["--appendonly", "yes", "--appendfsync", "no"])
    }

    /// Three masters and a replica of each, which takes over when its master is lost.
    pub fn start_with_replicas() -> Self {
        Self::form(MASTERS, &[])
    }

    fn form(replicas: usize, more: &[&str]) -> Self {
        let mut options = vec![
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            NODE_TIMEOUT_MS,
            "--cluster-require-full-coverage",
            "no",
            "--cluster-replica-validity-factor",
            "0",
            "--repl-diskless-sync-delay",
            "0",
        ];
        options.extend(more);
        let nodes: Vec<Server> = (0..MASTERS + replicas).map(|_| Server::start(&options)).collect();
        let ids: Vec<String> = nodes.iter().map(|node| node.query(&["CLUSTER", "MYID"])).collect();
        for (index, node) in nodes.iter().enumerate() {
            let epoch = (index + 1).to_string();
            node.query::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]);
            if index < MASTERS {
                let (first, last) = share(index);
                node.query::<()>(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            }
        }
        let mut met: Option<Instant> = None;
        eventually("all nodes know each other", || {
            // Nodes that are too busy to answer in time are forgotten again.
            if met.is_none_or(|met| met.elapsed() > MEET_AGAIN_AFTER) {
                for node in &nodes[1..] {
                    nodes[0].query::<()>(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string()]);
                }
                met = Some(Instant::now());
            }
            nodes.iter().all(|node| {
                let known: String = node.try_query(&["CLUSTER", "NODES"]).unwrap_or_default();
                known.lines().count() == nodes.len() && !known.contains("handshake")
            })
        });
        for (replica, master) in nodes[MASTERS..].iter().zip(&ids) {
            replica.query::<()>(&["CLUSTER", "REPLICATE", master]);
        }
        eventually("the cluster is whole", || {
            nodes.iter().all(|node| {
                let state: String = node.try_query(&["CLUSTER", "INFO"]).unwrap_or_default();
                state.contains("cluster_state:ok") && state.contains("cluster_slots_assigned:16384")
            }) && nodes[MASTERS..].iter().all(|replica| replica.info("master_link_status") == "up")
                && nodes[..MASTERS]
                    .iter()
                    .all(|node| node.info("connected_slaves") == (replicas / MASTERS).to_string())
        });
        Self { nodes, ids }
    }

    /// `redis+cluster://` with all masters that run as seeds.
    pub fn url(&self) -> String {
        let seeds: Vec<String> = self.nodes[..MASTERS].iter().map(|node| node.addr().to_string()).collect();
        format!("redis+cluster://{}", seeds.join(","))
    }

    /// All servers: the first masters, then their replicas in the same order.
    pub fn nodes(&self) -> &[Server] {
        &self.nodes
    }

    pub fn node(&self, index: usize) -> &Server {
        &self.nodes[index]
    }

    /// The index of the running server that owns the key's slot now, by the word of any that runs.
    pub fn owner(&self, key: &str) -> usize {
        self.owner_of(slot(key.as_bytes()))
    }

    /// As [`Self::owner`], by slot.
    pub fn owner_of(&self, slot: u16) -> usize {
        self.find_owner(slot).unwrap_or_else(|| panic!("nobody owns slot {slot}"))
    }

    fn find_owner(&self, slot: u16) -> Option<usize> {
        let witness = self.nodes.iter().find(|node| node.is_running())?;
        let ranges: Vec<Vec<Value>> = witness.try_query(&["CLUSTER", "SLOTS"]).ok()?;
        for range in ranges {
            let number = |index: usize| from_redis_value::<u16>(range[index].clone()).unwrap();
            if (number(0)..=number(1)).contains(&slot) {
                let master: Vec<Value> = from_redis_value(range[2].clone()).unwrap();
                let port: u16 = from_redis_value(master[1].clone()).unwrap();
                return self.nodes.iter().position(|node| node.port() == port);
            }
        }
        None
    }

    /// A key of this family (`family:{…}`) that lives on that server.
    pub fn key_on(&self, index: usize, family: &str) -> String {
        let found =
            (0..10_000).map(|number| format!("{family}{number}")).find(|key| self.owner(key) == index);
        found.unwrap_or_else(|| panic!("no key of {family} lives on node {index}"))
    }

    /// A connection to the server that owns `key`.
    pub fn client_for(&self, key: &str) -> Connection {
        self.nodes[self.owner(key)].client()
    }

    /// Runs a command at the server that owns `key`.
    pub fn query<T: FromRedisValue>(&self, key: &str, command: &Cmd) -> T {
        command.query(&mut self.client_for(key)).unwrap()
    }

    /// Kills one server.
    pub fn kill(&self, index: usize) {
        self.nodes[index].kill();
    }

    /// Waits until the running servers have agreed on another owner of the killed one's slots.
    pub fn wait_for_takeover(&self, killed: usize) {
        let (first, _) = share(killed);
        eventually("a replica takes over", || {
            self.nodes.iter().filter(|node| node.is_running()).all(|witness| {
                let state: String = witness.try_query(&["CLUSTER", "INFO"]).unwrap_or_default();
                state.contains("cluster_state:ok")
            }) && self.find_owner(first).is_some_and(|owner| owner != killed)
        });
    }

    /// Waits until every running server sees the cluster whole.
    pub fn wait_until_whole(&self) {
        eventually("the cluster is whole again", || {
            self.nodes.iter().filter(|node| node.is_running()).all(|witness| {
                let state: String = witness.try_query(&["CLUSTER", "INFO"]).unwrap_or_default();
                state.contains("cluster_state:ok") && state.contains("cluster_slots_ok:16384")
            })
        });
    }

    /// Begins to move a slot: its keys are still where they are, and new ones are asked for at `to` (`ASK`).
    pub fn begin_move(&self, slot: u16, to: usize) -> usize {
        let from = self.owner_of(slot);
        assert_ne!(from, to, "the slot is there already");
        let slot = slot.to_string();
        self.nodes[to].query::<()>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.ids[from]]);
        self.nodes[from].query::<()>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.ids[to]]);
        from
    }

    /// Ends what [`Self::begin_move`] began: moves the keys, then the slot.
    pub fn end_move(&self, slot: u16, from: usize, to: usize) {
        let text = slot.to_string();
        let port = self.nodes[to].port().to_string();
        loop {
            let keys: Vec<String> = self.nodes[from].query(&["CLUSTER", "GETKEYSINSLOT", &text, "100"]);
            if keys.is_empty() {
                break;
            }
            let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "REPLACE", "KEYS"];
            words.extend(keys.iter().map(String::as_str));
            self.nodes[from].query::<()>(&words);
        }
        // The new owner first: otherwise nobody owns the slot for a moment.
        for index in [to, from] {
            self.nodes[index].query::<()>(&["CLUSTER", "SETSLOT", &text, "NODE", &self.ids[to]]);
        }
        eventually("all know the slot's new owner", || {
            self.nodes[..MASTERS].iter().filter(|node| node.is_running()).all(|node| {
                let slots: Vec<Vec<Value>> = node.try_query(&["CLUSTER", "SLOTS"]).unwrap_or_default();
                slots.iter().any(|range| {
                    let number = |index: usize| from_redis_value::<u16>(range[index].clone()).unwrap();
                    let master: Vec<Value> = from_redis_value(range[2].clone()).unwrap();
                    let port: u16 = from_redis_value(master[1].clone()).unwrap();
                    (number(0)..=number(1)).contains(&slot) && port == self.nodes[to].port()
                })
            })
        });
    }

    /// Moves a slot with its keys, as an operator would, while clients go on.
    pub fn move_slot(&self, slot: u16, to: usize) {
        let from = self.begin_move(slot, to);
        self.end_move(slot, from, to);
    }

    /// Empties every running master.
    pub fn flush(&self) {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            if node.info("role") == "master" {
                node.query::<()>(&["FLUSHALL"]);
            }
        }
    }

    /// Every key of the running masters, in order.
    pub fn keys(&self) -> Vec<String> {
        self.keys_by_node().into_values().flatten().collect()
    }

    /// The keys by the index of the running master that holds them.
    pub fn keys_by_node(&self) -> BTreeMap<usize, Vec<String>> {
        let masters = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.is_running() && node.info("role") == "master");
        masters
            .map(|(index, node)| {
                let mut keys: Vec<String> = cmd("KEYS").arg("*").query(&mut node.client()).unwrap();
                keys.sort();
                (index, keys)
            })
            .collect()
    }
}

/// The first and last slot of the master with this index.
fn share(index: usize) -> (u16, u16) {
    let third = SLOTS / 3;
    let first = third * u16::try_from(index).unwrap();
    (first, if index + 1 == MASTERS { SLOTS - 1 } else { first + third - 1 })
}

/// The slot of a key, written apart from the gateway's own so that one checks the other.
pub fn slot(key: &[u8]) -> u16 {
    let open = key.iter().position(|byte| *byte == b'{');
    let tag = open.and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|byte| *byte == b'}').filter(|length| *length > 0).map(|length| &rest[..length])
    });
    let mut crc = 0_u16;
    for byte in tag.unwrap_or(key) {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        }
    }
    crc % SLOTS
}
