//! A Lua script known by its SHA-1, as Redis wants it.

use ::redis::{Cmd, cmd};

/// A script: its source and the digest that `EVALSHA` names it by.
#[derive(Debug)]
pub struct Script {
    source: &'static str,
    sha1: String,
}

impl Script {
    /// The script with this source.
    pub fn new(source: &'static str) -> Self {
        Self { source, sha1: ::redis::Script::new(source).get_hash().to_owned() }
    }

    /// `EVALSHA sha1`; the caller appends the number of keys, the keys and the arguments.
    pub fn command(&self) -> Cmd {
        let mut command = cmd("EVALSHA");
        command.arg(self.sha1.as_str());
        command
    }

    /// `SCRIPT LOAD source`.
    pub fn load(&self) -> Cmd {
        let mut command = cmd("SCRIPT");
        command.arg("LOAD").arg(self.source);
        command
    }
}
