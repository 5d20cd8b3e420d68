//! The response cache: RFC 9111 decisions, keys, generations and two storage tiers for pingora's state machine.
//! It never talks to Redis itself and knows nothing of configuration files.

pub mod directives;
mod entry;
pub mod generations;
pub mod key;
pub mod policy;
pub mod remote;
pub mod request;
pub mod settings;
pub mod storage;
pub mod tag;
pub mod vary;

pub use settings::{QueryPolicy, RouteCache, Settings};
