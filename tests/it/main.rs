//! Tollgate from outside: the real binary, a real Redis, real sockets, one file per behaviour.
//! Nothing here calls into the library's inner parts, and nothing sleeps to be lucky: tests wait for conditions.
//!
//! A test is a plain blocking function:
//!
//! ```ignore
//! let redis = Redis::start();
//! let link = Relay::to(redis.addr());
//! let origin = Origin::start();
//! let gateway = Gateway::builder().config(&config_for(&origin)).env("REDIS_URL", &link.redis_url()).start();
//!
//! let response = gateway.client().get("/notes").bearer(&Token::of("ada").sign()).send();
//! assert_eq!(response.code(), 200);
//! assert_eq!(origin.last().path, "/notes");
//! assert_eq!(link.take_traffic().exchanges, 1);
//!
//! link.cut();
//! assert_eventually!(gateway.metric("tollgate_degraded", &[]) == Some(1.0), "the outage shows in the metrics");
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(missing_docs, dead_code, reason = "the kit offers more than the tests of the day use")]

#[macro_use]
mod support;

mod admin;
mod api_token_edges;
mod api_tokens;
mod cache;
mod cache_attack_table;
mod cache_attacks;
mod cache_coalescing;
mod cache_conformance;
mod cache_conformance_fields;
mod cache_conformance_reuse;
mod cache_invalidation;
mod cache_memory;
mod cache_property;
mod cache_purge;
mod cache_races;
mod cache_room;
mod cache_rules;
mod cache_warm;
mod cli;
mod coalescing;
mod concurrency;
mod demo;
mod examples;
mod forwarding;
mod framing;
mod health_route;
mod identity;
mod jwks;
mod jwks_changes;
mod jwt_attacks;
mod kit;
mod limit_agreement;
mod limit_attacks;
mod limits;
mod limits_in_cluster;
mod login_capture;
mod login_limits;
mod lost_revocations;
mod one_exchange;
mod operations;
mod outage_limits;
mod paths;
mod presets;
mod proxy;
mod quota;
mod redis_faults;
mod revocation;
mod session_faults;
mod sessions;
mod setup;
mod shadow_limits;
mod shutdown;
mod stms;
mod store_in_cluster;
mod strangers;
mod topology;
mod unknown_tokens;
mod upstreams;
mod user_limits;
