//! Tollgate: a reverse-proxy gateway that gives an unmodified HTTP API authentication with real logout,
//! shared rate limits and a per-user cache. `docs/architecture.md` has the picture.

pub mod clock;
pub mod header_names;
pub mod limits;
