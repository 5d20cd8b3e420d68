//! Sessions: who is logged in with which token, since when and until when. The rules are functions of values; no store
//! or clock is touched here.

pub mod local;
pub mod login;
pub mod record;

pub use local::Local;
pub use record::{Record, Rules, Session, Times};
