//! A master, its replica and three sentinels of the test's own, and the two ways in which the master changes: it is
//! killed, or an operator says so.

use super::cluster::{Server, eventually, free_port_pair};
use super::process::Process;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use ::redis::{Client, FromRedisValue, RedisResult};
use tempfile::TempDir;

/// The name of the master among sentinels.
pub const SERVICE: &str = "mymaster";

#[derive(Debug)]
struct Sentinel {
    port: u16,
    process: Process,
    _directory: TempDir,
}

impl Sentinel {
    fn start(master: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port_pair();
        let path = directory.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {SERVICE} 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds {SERVICE} 1500\nsentinel failover-timeout {SERVICE} 3000\n",
            directory.path().display()
        );
        std::fs::write(&path, text).unwrap();
        let child = Command::new("redis-server")
            .arg(&path)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("redis-server must be installed");
        let sentinel = Self { port, process: Process::new("redis-sentinel", child), _directory: directory };
        eventually("the sentinel answers", || sentinel.query::<String>(&["PING"]).is_ok());
        sentinel
    }

    fn query<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let mut connection = Client::open(format!("redis://127.0.0.1:{}/", self.port))?
            .get_connection_with_timeout(Duration::from_secs(1))?;
        connection.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut command = ::redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        command.query(&mut connection)
    }

    fn master(&self) -> Option<u16> {
        let (_, port): (String, u16) = self.query(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]).ok()?;
        Some(port)
    }
}

/// A pair under three sentinels.
#[derive(Debug)]
pub struct Pair {
    servers: [Server; 2],
    sentinels: Vec<Sentinel>,
}

impl Pair {
    pub fn start() -> Self {
        let options = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
        let master = Server::start(&options);
        let replica = Server::start(&options);
        replica.query::<()>(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
        eventually("the replica follows", || replica.info("master_link_status") == "up");
        let sentinels = (0..3).map(|_| Sentinel::start(master.port())).collect();
        let pair = Self { servers: [master, replica], sentinels };
        eventually("the sentinels know each other and the replica", || {
            pair.sentinels.iter().all(|sentinel| {
                let sizes = |what| sentinel.query::<Vec<::redis::Value>>(&["SENTINEL", what, SERVICE]);
                sizes("SENTINELS").is_ok_and(|others| others.len() == 2)
                    && sizes("REPLICAS").is_ok_and(|replicas| replicas.len() == 1)
            })
        });
        pair
    }

    /// `redis+sentinel://` with all three.
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self
            .sentinels
            .iter()
            .map(|sentinel| SocketAddr::from((Ipv4Addr::LOCALHOST, sentinel.port)).to_string())
            .collect();
        format!("redis+sentinel://{}/{SERVICE}", addresses.join(","))
    }

    /// The server that the sentinels name, if it agrees.
    pub fn master(&self) -> Option<&Server> {
        let port = self.sentinels.iter().find_map(Sentinel::master)?;
        let server = self.servers.iter().find(|server| server.port() == port)?;
        (server.is_running() && server.info("role") == "master").then_some(server)
    }

    pub fn current(&self) -> &Server {
        self.master().expect("a master")
    }

    /// Both servers, in the order they were started: the first master first.
    pub fn servers(&self) -> &[Server; 2] {
        &self.servers
    }

    /// Kills one of the sentinels.
    pub fn kill_sentinel(&self, index: usize) {
        self.sentinels[index].process.kill();
    }

    /// Waits until the sentinels and the other server agree that it is the master.
    pub fn wait_for_failover(&self, from: u16) {
        eventually("the failover ends", || self.master().is_some_and(|server| server.port() != from));
    }

    /// Kills the master; returns when the other has taken over.
    pub fn kill_master(&self) {
        let master = self.current();
        let port = master.port();
        master.kill();
        self.wait_for_failover(port);
    }

    /// An orderly failover: the old master lives on and is made a replica. Returns when the new one serves.
    pub fn failover(&self) {
        let from = self.current().port();
        eventually("a sentinel begins the failover", || {
            self.sentinels
                .iter()
                .any(|sentinel| sentinel.query::<()>(&["SENTINEL", "FAILOVER", SERVICE]).is_ok())
        });
        self.wait_for_failover(from);
    }
}
