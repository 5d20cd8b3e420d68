//! A redis-server of the test's own on a free port, and the faults it can have: paused, killed, restarted, flushed.
//! It keeps nothing on disk, so a restart comes back empty, as after a failover that lost everything.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use redis::{Client, Connection};
use tempfile::TempDir;

use super::ports::free_port;
use super::process::Process;
use super::{PATIENCE, holds_eventually};

const PORT_ATTEMPTS: usize = 5;

/// A running `redis-server`, killed when dropped.
#[derive(Debug)]
pub struct Redis {
    port: u16,
    arguments: Vec<String>,
    directory: TempDir,
    process: Mutex<Option<Process>>,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more options of `redis-server`, such as `["--maxmemory", "2mb"]`.
    pub fn start_with(arguments: &[&str]) -> Self {
        for _ in 0..PORT_ATTEMPTS {
            let redis = Self {
                port: free_port(),
                arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
                directory: tempfile::tempdir().unwrap(),
                process: Mutex::new(None),
            };
            if redis.launch() {
                return redis;
            }
        }
        panic!("redis-server did not start in {PORT_ATTEMPTS} attempts; its output is above");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    pub fn url(&self) -> String {
        format!("redis://{}/", self.addr())
    }

    /// A new blocking connection whose commands fail rather than hang.
    pub fn client(&self) -> Connection {
        let connection = self.connect(PATIENCE).expect("a connection to the test's redis-server");
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.set_write_timeout(Some(PATIENCE)).unwrap();
        connection
    }

    /// Freezes the server (SIGSTOP): connections stay open, the kernel still accepts new ones, nobody answers.
    pub fn pause(&self) {
        self.running().as_ref().expect("redis-server runs").pause();
    }

    pub fn resume(&self) {
        self.running().as_ref().expect("redis-server runs").resume();
    }

    /// Kills the server: connections are closed and new ones refused.
    pub fn kill(&self) {
        if let Some(process) = self.running().take() {
            process.kill();
        }
    }

    /// A new, empty server on the same port; kills the old one if it still runs.
    pub fn restart(&self) {
        self.kill();
        // Sockets of the old server may hold the port for an instant.
        assert!(holds_eventually(|| self.launch()), "redis-server did not come back on port {}", self.port);
    }

    pub fn flush(&self) {
        redis::cmd("FLUSHALL").exec(&mut self.client()).unwrap();
    }

    /// Every key, in order.
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut self.client()).unwrap();
        keys.sort();
        keys
    }

    /// Keys that would stay for ever; for Tollgate's data that is always a fault.
    pub fn keys_without_ttl(&self) -> Vec<String> {
        let mut client = self.client();
        let mut immortal = self.keys();
        immortal.retain(|key| redis::cmd("PTTL").arg(key).query::<i64>(&mut client).unwrap() == -1);
        immortal
    }

    /// Starts to record every command that the server executes.
    pub fn monitor(&self) -> Monitor<'_> {
        Monitor::start(self)
    }

    fn running(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap()
    }

    fn connect(&self, timeout: Duration) -> redis::RedisResult<Connection> {
        Client::open(self.url())?.get_connection_with_timeout(timeout)
    }

    /// Starts the server and waits until it answers; false if it ended instead.
    fn launch(&self) -> bool {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .arg("--dir")
            .arg(self.directory.path())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "cannot run redis-server ({error}); scripts/install-deps.sh installs what the tests need"
                )
            });
        let process = Process::new("redis-server", child);
        let answers = || {
            self.connect(Duration::from_secs(1))
                .and_then(|mut connection| {
                    connection.set_read_timeout(Some(Duration::from_secs(1)))?;
                    redis::cmd("INFO").arg("server").query::<String>(&mut connection)
                })
                // Another test's server could have taken the port first.
                .is_ok_and(|info| info.contains(&format!("process_id:{}\r\n", process.pid())))
        };
        let mut up = false;
        assert!(
            holds_eventually(|| {
                up = answers();
                up || process.ended().is_some()
            }),
            "redis-server on port {} neither answers nor ends",
            self.port
        );
        if up {
            *self.running() = Some(process);
        }
        up
    }
}

/// A command as the server executed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// `ip:port` of the connection, or `lua` for a call made inside a script.
    pub by: String,
    /// The command's name in upper case, then its arguments.
    pub words: Vec<String>,
}

impl Executed {
    pub fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Whether a script called it; it then cost no exchange of its own.
    pub fn is_by_script(&self) -> bool {
        self.by == "lua"
    }
}

/// A running `MONITOR`; ends when dropped.
#[derive(Debug)]
pub struct Monitor<'a> {
    redis: &'a Redis,
    lines: BufReader<TcpStream>,
    seen: Vec<Executed>,
}

impl<'a> Monitor<'a> {
    fn start(redis: &'a Redis) -> Self {
        let mut stream = TcpStream::connect(redis.addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"MONITOR\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        let mut reply = String::new();
        lines.read_line(&mut reply).unwrap();
        assert_eq!(reply, "+OK\r\n");
        Self { redis, lines, seen: Vec::new() }
    }

    /// Everything executed since the monitor began, up to now: commands whose reply anyone has seen are all in it.
    pub fn commands(&mut self) -> Vec<Executed> {
        // The server works in one order, so once our mark comes by, all that went before has come by too.
        static MARKS: AtomicU64 = AtomicU64::new(0);
        let mark = format!("mark-{}-{}", std::process::id(), MARKS.fetch_add(1, Ordering::Relaxed));
        let mut connection = TcpStream::connect(self.redis.addr()).unwrap();
        let own = connection.local_addr().unwrap().to_string();
        connection.write_all(format!("ECHO {mark}\r\n").as_bytes()).unwrap();
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).expect("the monitor's next line");
            let Some(executed) = parse_line(&line) else { panic!("not a line of MONITOR: {line:?}") };
            if executed.by == own {
                return self.seen.clone();
            }
            self.seen.push(executed);
        }
    }

    /// [`Self::commands`] that clients sent, leaving out what scripts called and what opens a connection.
    pub fn requests(&mut self) -> Vec<Executed> {
        let mut commands = self.commands();
        commands.retain(|executed| {
            !executed.is_by_script()
                && !matches!(executed.name(), "HELLO" | "AUTH" | "SELECT" | "CLIENT" | "PING" | "INFO")
        });
        commands
    }

    /// Forgets what was seen so far.
    pub fn clear(&mut self) {
        self.commands();
        self.seen.clear();
    }
}

/// `+1700000000.123456 [0 127.0.0.1:50000] "GET" "key"`
fn parse_line(line: &str) -> Option<Executed> {
    let (_, rest) = line.split_once(" [")?;
    let (source, words) = rest.split_once("] ")?;
    let (_, by) = source.split_once(' ')?;
    let mut words = unquote(words.trim_end());
    if let Some(name) = words.first_mut() {
        name.make_ascii_uppercase();
    }
    Some(Executed { by: by.to_owned(), words })
}

/// The words of a line as `sdscatrepr` in Redis writes them: quoted, with `\"`, `\\`, `\n` and `\xHH` escapes.
fn unquote(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = line.bytes();
    while let Some(byte) = bytes.next() {
        match (&mut word, byte) {
            (None, b'"') => word = Some(Vec::new()),
            (None, _) => {}
            (Some(_), b'"') => {
                words.extend(word.take().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
            }
            (Some(text), b'\\') => text.push(match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'a') => 7,
                Some(b'b') => 8,
                Some(b'x') => {
                    let digits = [bytes.next().unwrap_or(b'0'), bytes.next().unwrap_or(b'0')];
                    u8::from_str_radix(&String::from_utf8_lossy(&digits), 16).unwrap_or(b'?')
                }
                Some(other) => other,
                None => b'\\',
            }),
            (Some(text), _) => text.push(byte),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_line_is_read_with_its_escapes() {
        let line = "+1.2 [0 127.0.0.1:5] \"set\" \"a \\\"b\\\\\" \"\\x00\\n]\"\r\n";
        let executed = parse_line(line).unwrap();
        assert_eq!(executed.by, "127.0.0.1:5");
        assert_eq!(executed.words, ["SET", "a \"b\\", "\0\n]"]);
        assert!(parse_line("+1.2 [0 lua] \"get\" \"k\"").unwrap().is_by_script());
    }
}
