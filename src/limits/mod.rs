//! Rate limits: who is counted, how, what the counters decide and how the answer reads in header fields.
//! It knows neither sockets nor HTTP status; the exchange with Redis is encoded and decoded here but sent elsewhere.
//!
//! The path of one request, all on one reusable [`Checks`]:
//! [`Checks::begin`], [`Checks::add`] per policy → [`Local::refused`] → the exchange with Redis, in commands or by
//! [`gate::encode`] and [`gate::decode`] → [`Local::observe`], or [`Local::decide_without_store`] when that fails, or
//! [`Local::decide`] where there is no Redis → [`fields`].

pub mod algorithm;
pub mod batch;
pub mod body;
pub mod check;
pub mod concurrency;
pub mod fields;
pub mod gate;
pub mod local;
pub mod plan;
pub mod policy;
pub mod subject;
pub mod user_limits;

#[cfg(test)]
mod conformance;

pub use body::{Body, FieldPath};
pub use check::{Check, Checks, CounterState, Decision, Refused, Violated};
pub use concurrency::{InFlight, Permit};
pub use local::Local;
pub use plan::{Plan, Plans};
pub use policy::{
    Algorithm, AppliesTo, Concurrency, CoolDown, KeyPart, LimitSource, OnStoreFailure, Policy, Window,
};
pub use subject::{Caller, KeySpace, Parts};
pub use user_limits::UserLimits;
