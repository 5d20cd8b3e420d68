//! Who is calling: taking a token from a request, verifying it and saying what it proves.
//!
//! Everything here is a function of values; no socket, store or clock is touched. The way of a token is
//! [`credentials`] → [`jwt`] (form) → [`keys`] (signature) → [`claims`] (rules) → [`mapping`] (person) →
//! [`revocation`].

pub mod algorithm;
pub mod claims;
pub mod credentials;
mod der;
pub mod json;
pub mod jwt;
pub mod keys;
pub mod refused;

pub use algorithm::{Algorithm, Algorithms};
pub use refused::Refused;
