//! Something a key set can be read from, and what may go wrong with it.

use std::io;

use async_trait::async_trait;
use bytes::Bytes;

use crate::identity::jwk::SetProblem;

/// Why keys could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The source does not answer: no address, no connection, no secure one, no answer in time, no file.
    #[error("cannot be reached: {0}")]
    Unreachable(Box<str>),
    /// It answers with something else than a set of acceptable size.
    #[error("answered with {0}")]
    Refused(Box<str>),
    /// Its answer holds no usable keys.
    #[error("is no key set: {0}")]
    Invalid(#[from] SetProblem),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Unreachable(error.to_string().into())
    }
}

/// A place that key sets are read from. The keeper bounds the time.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// The bytes of the set of now, never more than the source was made for.
    async fn read(&self) -> Result<Bytes, Trouble>;

    /// What operators call it; free of secrets.
    fn place(&self) -> &str;
}
