//! Which route a request takes: the canonical form of its path, the pattern language and the table that finds
//! the most specific match. It never sees a network type and never decides what a route is worth.

mod binding;
pub mod normalise;
pub mod pattern;
pub mod table;

pub use self::binding::{HealthDetail, Login, Logout, Route};
