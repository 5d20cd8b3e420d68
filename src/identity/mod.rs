//! Who is calling: taking a token from a request, verifying it and saying what it proves.
//!
//! Everything here is a function of values; no socket, store or clock is touched. The way of a token is
//! [`credentials`] → [`jwt`] (form) → [`keys`] (signature) → [`claims`] (rules) → [`mapping`] (person) →
//! [`Identity`] → [`revocation`]; [`verifier`] and [`resolve`] hold the order.

pub mod algorithm;
pub mod claims;
pub mod credentials;
mod der;
#[allow(clippy::module_inception, reason = "the type the whole module is about")]
mod identity;
pub mod inspect;
pub mod jwk;
pub mod jwt;
pub mod keys;
pub mod mapping;
pub mod mint;
pub mod refused;
pub mod resolve;
pub mod revocation;
pub mod ring;
#[cfg(test)]
mod vectors;
pub mod verifier;

pub use algorithm::{Algorithm, Algorithms};
pub use credentials::{Credential, CredentialProblem, Source, Sources};
pub use identity::{Identity, Keys, TokenId, blacklist_key, subject_key};
pub use keys::{Key, KeySet};
pub use mapping::{Carriers, Mapping, Person};
pub use refused::Refused;
pub use resolve::{Access, IdentityRefusal, Requirement};
pub use revocation::Revocation;
pub use ring::Ring;
pub use verifier::{Issuer, Settings, Sought, Unheard, Unverified, Verifier};
