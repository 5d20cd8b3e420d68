//! What the sample applications share: a small JSON server, accounts and tokens, all in memory. It is what an
//! application without a gateway looks like: no limits, no caches, no logout that holds.
#![allow(dead_code, reason = "each application uses a part")]

pub mod accounts;
pub mod reply;
pub mod request;
pub mod server;
pub mod token;

/// A variable of the environment; empty is as good as none.
#[allow(clippy::disallowed_methods, reason = "these programs have no other configuration")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
