//! Upstreams: their members, which one is next, and the headers sent on to them.

pub mod forward;
mod peer;
mod select;

pub use self::peer::peer;
pub use self::select::{Member, Protocol, Settings, Upstream};
