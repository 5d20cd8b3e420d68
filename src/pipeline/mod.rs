//! The order of a request through the gateway, one file per step.

pub mod head;
