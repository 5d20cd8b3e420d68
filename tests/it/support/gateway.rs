//! The gateway under test: the real binary as a process of its own, its logs and its metrics.
//! It never reaches inside; what cannot be seen from outside is for unit tests.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

use super::client::Client;
use super::ports::free_addr;
use super::process::{Process, Signal};
use super::{PATIENCE, holds_eventually, token};

const PORT_ATTEMPTS: usize = 5;

/// The credential of the admin API unless the test sets another.
pub const ADMIN_TOKEN: &str = "the-admin-credential-of-the-tests";

/// A running gateway; killed when dropped.
#[derive(Debug)]
pub struct Gateway {
    addr: SocketAddr,
    admin: SocketAddr,
    directory: TempDir,
    process: Process,
    logs: Logs,
    /// Those who read what it writes.
    readers: Mutex<Vec<JoinHandle<()>>>,
}

/// How to start a gateway.
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    config: String,
    environment: Vec<(String, String)>,
    wait_until: Option<&'static str>,
    listen: Option<SocketAddr>,
}

/// A gateway that ended instead of serving.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub logs: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the gateway ended ({}); it said:\n{}", self.status, self.logs)
    }
}

impl Builder {
    /// The configuration file. `{listen}` and `{admin}` in it become the addresses picked for this gateway; where the
    /// text has no `[server]` or `[admin]` table, one with that address (and the token of `TOLLGATE_ADMIN_TOKEN`) is
    /// added.
    pub fn config(mut self, toml: &str) -> Self {
        toml.clone_into(&mut self.config);
        self
    }

    /// Sets a variable of the otherwise nearly empty environment: only `PATH`, `JWT_SECRET` ([`token::SECRET`]),
    /// `TOLLGATE_ADMIN_TOKEN` ([`ADMIN_TOKEN`]) and `REDIS_URL` (empty) are there from the start. `{listen}` and
    /// `{admin}` mean what they mean in the file.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn env_remove(mut self, name: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self
    }

    /// Waits for `/live` instead of `/ready`.
    pub fn until_live(mut self) -> Self {
        self.wait_until = Some("/live");
        self
    }

    /// Does not wait at all.
    pub fn without_waiting(mut self) -> Self {
        self.wait_until = None;
        self
    }

    /// Listens here, as when taking another instance's place.
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.listen = Some(addr);
        self
    }

    /// Starts and waits until the gateway is ready; fails the test if it ends instead.
    pub fn start(self) -> Gateway {
        self.try_start().unwrap_or_else(|ended| panic!("{ended}"))
    }

    /// Starts and waits until the gateway is ready or has ended.
    pub fn try_start(self) -> Result<Gateway, Ended> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.attempt() {
                // Somebody took a port between our pick and the gateway's bind.
                Err(ended) if attempt < PORT_ATTEMPTS && names_a_taken_port(&ended.logs) => {}
                outcome => return outcome,
            }
        }
    }

    fn attempt(&self) -> Result<Gateway, Ended> {
        let addr = self.listen.unwrap_or_else(free_addr);
        let admin = free_addr();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tollgate.toml");
        std::fs::write(&path, self.text(addr, admin)).unwrap();
        let filled =
            |text: &str| text.replace("{listen}", &addr.to_string()).replace("{admin}", &admin.to_string());

        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command
            .args(["run", "--config"])
            .arg(&path)
            .current_dir(directory.path())
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, filled(value))))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the gateway's binary runs");
        let logs = Logs::default();
        let readers = vec![
            logs.follow(child.stdout.take().expect("piped above")),
            logs.follow(child.stderr.take().expect("piped above")),
        ];
        let process = Process::new("tollgate", child);
        let gateway = Gateway { addr, admin, directory, process, logs, readers: Mutex::new(readers) };

        let client = Client::new(admin);
        let is_ready = |path| {
            client
                .get(path)
                .within(Duration::from_secs(1))
                .try_send()
                .is_ok_and(|got| got.status.is_success())
        };
        let mut ended = None;
        let ready = holds_eventually(|| {
            if self.listen.is_none() && names_a_taken_port(&gateway.logs()) {
                // It may go on trying for longer than we wait; there are other ports.
                gateway.kill();
            }
            ended = gateway.process.ended();
            ended.is_some() || self.wait_until.is_none_or(is_ready)
        });
        if let Some(status) = ended {
            return Err(Ended { status, logs: gateway.logs() });
        }
        assert!(ready, "the gateway is not ready within {PATIENCE:?}; it said:\n{}", gateway.logs());
        Ok(gateway)
    }

    fn text(&self, addr: SocketAddr, admin: SocketAddr) -> String {
        let mut text =
            self.config.replace("{listen}", &addr.to_string()).replace("{admin}", &admin.to_string());
        let token = "token = \"${TOLLGATE_ADMIN_TOKEN:-}\"\n";
        for (table, addr, more) in [("[server]", addr, ""), ("[admin]", admin, token)] {
            if !text.lines().any(|line| line.trim() == table) {
                text = format!("{text}\n{table}\nlisten = \"{addr}\"\n{more}");
            }
        }
        text
    }
}

fn names_a_taken_port(logs: &str) -> bool {
    let logs = logs.to_ascii_lowercase();
    ["address already in use", "address in use", "is in use, will try again"]
        .iter()
        .any(|words| logs.contains(words))
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
        let logs = self.logs();
        let panicked = logs.lines().find(|line| line.contains("panicked at"));
        // One failure at a time: a test that fails already says more.
        assert!(std::thread::panicking() || panicked.is_none(), "the gateway panicked: {panicked:?}");
    }
}

impl Gateway {
    pub fn builder() -> Builder {
        Builder { config: String::new(), environment: Vec::new(), wait_until: Some("/ready"), listen: None }
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("JWT_SECRET", token::SECRET)
            .env("TOLLGATE_ADMIN_TOKEN", ADMIN_TOKEN)
            .env("REDIS_URL", "")
    }

    /// The public listener.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// An HTTP/1.1 client of the public listener.
    pub fn client(&self) -> Client {
        Client::new(self.addr)
    }

    /// An h2c client of the public listener.
    pub fn h2c_client(&self) -> Client {
        Client::h2c(self.addr)
    }

    /// A client of the admin listener; it sends no credential by itself.
    pub fn admin(&self) -> Client {
        Client::new(self.admin)
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGTERM, then waits for the end.
    pub fn terminate(&self) -> ExitStatus {
        self.process.signal(Signal::Terminate);
        self.process.wait()
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.process.kill();
    }

    pub fn config_path(&self) -> PathBuf {
        self.directory.path().join("tollgate.toml")
    }

    /// All that the gateway has written so far to standard output and standard error, line by line as it came; once it
    /// has ended, all that it ever wrote.
    pub fn logs(&self) -> String {
        if self.process.ended().is_some() {
            for reader in self.readers.lock().unwrap().drain(..) {
                reader.join().expect("the log reader does not panic");
            }
        }
        self.logs.text()
    }

    /// How many log lines contain `part`.
    pub fn count_logs(&self, part: &str) -> usize {
        self.logs().lines().filter(|line| line.contains(part)).count()
    }

    /// Waits for a log line that contains `part` and returns it.
    pub fn wait_for_log(&self, part: &str) -> String {
        let mut found = None;
        let came = holds_eventually(|| {
            found = self.logs().lines().find(|line| line.contains(part)).map(str::to_owned);
            found.is_some()
        });
        assert!(came, "no log line with {part:?} within {PATIENCE:?}; there is:\n{}", self.logs());
        found.unwrap_or_default()
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> String {
        let response = self.admin().get("/metrics").send();
        assert_eq!(response.code(), 200, "/metrics: {}", response.text());
        response.text()
    }

    /// The sum of a metric's samples that carry all of these labels; `None` when there is none.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        sum_of(&self.metrics(), name, labels)
    }
}

/// [`Gateway::metric`] on a text in the Prometheus exposition format.
pub fn sum_of(exposition: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    exposition
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (own_labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let own_labels = format!(",{own_labels},");
            let matches = labels.iter().all(|(key, value)| {
                let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                own_labels.contains(&format!(",{key}=\"{value}\","))
            });
            matches.then(|| value.split(' ').next()?.parse::<f64>().ok())?
        })
        .reduce(|sum, value| sum + value)
}

#[derive(Debug, Clone, Default)]
struct Logs(Arc<Mutex<Vec<u8>>>);

impl Logs {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    fn follow(&self, stream: impl Read + Send + 'static) -> JoinHandle<()> {
        let logs = Arc::clone(&self.0);
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while let Ok(1..) = stream.read_until(b'\n', &mut line) {
                logs.lock().unwrap().append(&mut line);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_the_labels_not_asked_for() {
        let text = "# HELP a_total x\n# TYPE a_total counter\na_total{r=\"x\",why=\"p\"} 2\na_total{r=\"x\",why=\"q\"} 3\n\
                    a_total{r=\"y\",why=\"q\"} 7\nb 1.5\na_total_more 100\n";
        assert_eq!(sum_of(text, "a_total", &[("r", "x")]), Some(5.0));
        assert_eq!(sum_of(text, "a_total", &[("why", "q"), ("r", "y")]), Some(7.0));
        assert_eq!(sum_of(text, "a_total", &[]), Some(12.0));
        assert_eq!(sum_of(text, "b", &[]), Some(1.5));
        assert_eq!(sum_of(text, "a_total", &[("r", "z")]), None);
    }

    #[test]
    fn tables_that_the_test_does_not_write_are_added_with_the_picked_addresses() {
        let listen = "127.0.0.1:1".parse().unwrap();
        let admin = "127.0.0.1:2".parse().unwrap();
        let text = Gateway::builder().config("[server]\nlisten = \"{listen}\"\n").text(listen, admin);
        assert_eq!(
            text,
            "[server]\nlisten = \"127.0.0.1:1\"\n\n[admin]\nlisten = \"127.0.0.1:2\"\ntoken = \"${TOLLGATE_ADMIN_TOKEN:-}\"\n"
        );
    }

    #[test]
    fn a_gateway_that_ends_at_once_is_reported_with_what_it_said() {
        let ended = Gateway::builder().config("[nonsense]\n").try_start();
        assert!(ended.is_err());
    }
}
