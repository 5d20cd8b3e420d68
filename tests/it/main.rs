//! Tollgate from outside: the real binary, a real Redis, real sockets, one file per behaviour.
//! Nothing here calls into the library's inner parts, and nothing sleeps to be lucky: tests wait for conditions.
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

mod kit;
