//! Tollgate: a reverse-proxy gateway that gives an unmodified HTTP API authentication with real logout,
//! shared rate limits and a per-user cache. `docs/architecture.md` has the picture.

pub mod admin;
pub mod api_tokens;
pub mod app;
pub mod cache;
pub mod cli;
pub mod client_addr;
pub mod clock;
pub mod config;
pub mod demo;
pub mod header_names;
pub mod identifiers;
pub mod identity;
pub mod json;
pub mod jwks;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod pipeline;
pub mod proxy;
pub mod redis;
pub mod route;
pub mod sessions;
pub mod upstream;

/// Redis servers for unit tests: what the integration tests start theirs with.
#[cfg(test)]
#[path = "../tests/it/support/cluster.rs"]
mod test_redis;
