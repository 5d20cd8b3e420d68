//! What a keeper is made from.

use std::path::PathBuf;
use std::time::Duration;

use ::http::Uri;

use crate::identity::Algorithms;

/// Where an issuer publishes its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An absolute `https` or `http` URL.
    Url {
        /// The URL.
        url: Uri,
        /// PEM certificates trusted beside the public ones.
        roots: Option<Vec<u8>>,
    },
    /// A file, absolute or relative to the working directory.
    File(PathBuf),
}

/// Whose keys are kept, where they come from and how often they are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The issuer's name in the configuration.
    pub issuer: Box<str>,
    /// The algorithms its tokens may use.
    pub algorithms: Algorithms,
    /// Where the keys are.
    pub place: Place,
    /// Pause between two reads in the background.
    pub refresh: Duration,
    /// Shortest time from the start of one read to the start of the next, whatever the cause.
    pub cooldown: Duration,
    /// Longest time one read may take.
    pub timeout: Duration,
    /// Largest set, in bytes.
    pub max_bytes: usize,
}
