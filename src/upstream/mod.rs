//! Upstreams: their members, which one is next, and the headers sent on to them.

mod select;

pub use self::select::{Member, Protocol, Settings, Upstream};
