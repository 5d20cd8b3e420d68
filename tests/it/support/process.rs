//! Child processes that cannot outlive their test, and signals to them by process id.
//! Signals go through the shell's `kill`: sending them from Rust would need unsafe code or one more crate, and the
//! program of that name is not on every small system.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;

use super::{PATIENCE, holds_eventually};

/// A signal the tests send, by the name `kill` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Stop,
    Continue,
    Terminate,
    Kill,
    HangUp,
    User1,
    User2,
    Interrupt,
    Quit,
}

impl Signal {
    fn flag(self) -> &'static str {
        match self {
            Self::Stop => "-STOP",
            Self::Continue => "-CONT",
            Self::Terminate => "-TERM",
            Self::Kill => "-KILL",
            Self::HangUp => "-HUP",
            Self::User1 => "-USR1",
            Self::User2 => "-USR2",
            Self::Interrupt => "-INT",
            Self::Quit => "-QUIT",
        }
    }
}

/// A running child, killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    pid: u32,
    child: Mutex<Child>,
}

impl Process {
    pub fn new(name: &'static str, child: Child) -> Self {
        Self { name, pid: child.id(), child: Mutex::new(child) }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends `signal`; fails the test if the process has already ended.
    pub fn signal(&self, signal: Signal) {
        // Held so that nobody reaps the child meanwhile: its pid stays ours until then.
        let mut child = self.child.lock().unwrap();
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "{} has already ended: {ended:?}", self.name);
        let status = Command::new("sh")
            .args(["-c", &format!("kill {} {}", signal.flag(), self.pid)])
            .stdin(Stdio::null())
            .status()
            .expect("the shell runs");
        assert!(status.success(), "kill {} {}: {status}", signal.flag(), self.pid);
    }

    /// Stops the process (SIGSTOP) and waits until the kernel says that it stands still.
    pub fn pause(&self) {
        self.signal(Signal::Stop);
        assert!(holds_eventually(|| self.is_stopped()), "{} did not stop", self.name);
    }

    pub fn resume(&self) {
        self.signal(Signal::Continue);
    }

    /// How the process ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }

    /// Waits for the process to end by itself or by a signal already sent.
    pub fn wait(&self) -> ExitStatus {
        assert!(holds_eventually(|| self.ended().is_some()), "{} did not end within {PATIENCE:?}", self.name);
        self.ended().unwrap()
    }

    /// SIGKILL, then reap. Does nothing if the process has ended.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        // Both fail only if the process has ended.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Resident memory in bytes, without the pages of the program itself, as the kernel counts it (Linux).
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line =
            status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon in /proc/<pid>/status");
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    fn is_stopped(&self) -> bool {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) else {
            // Not Linux: the signal was delivered, which is all that can be known.
            return true;
        };
        // The state follows the command name, which stands in parentheses and may contain anything.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
