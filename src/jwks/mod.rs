//! Keys that issuers publish (JWK Sets, RFC 7517 section 5), kept up to date without a request having to pay for it.
//!
//! A [`Keeper`] reads one `source` again and again in the background, and sooner when a token names a key that
//! nobody has heard of. What a set means is `identity::jwk`'s; whose tokens wait is the pipeline's.

mod file;
mod http;
mod keeper;
mod keepers;
mod settings;
mod source;

pub use http::check_roots;
pub use keeper::{Answer, Keeper, LONGEST_WAIT};
pub use keepers::Keepers;
pub use settings::{Place, Settings};
pub use source::{Source, Trouble};
