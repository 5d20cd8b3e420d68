//! The order of a request through the gateway, one file per step.

pub mod head;
pub mod refusal;
pub mod reply;

pub use self::refusal::{Limited, Refusal};
pub use self::reply::Reply;
