//! Why the store gave no answer.

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

/// The store gave no answer that can be used; the caller decides from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The breaker is open: nothing was sent.
    #[error("not asked: earlier calls failed")]
    BreakerOpen,
    /// The deadline passed; the command may still be executed.
    #[error("no answer within the deadline")]
    DeadlinePassed,
    /// The connection is still being made; nothing was sent.
    #[error("not connected yet")]
    NotConnected,
    /// No connection could be made.
    #[error("cannot connect")]
    CannotConnect,
    /// The connection broke while the command was under way.
    #[error("connection lost")]
    ConnectionLost,
    /// Redis does not know the script (after a restart).
    #[error("script not loaded")]
    ScriptUnknown,
    /// Redis cannot serve at the moment: loading, read-only, out of memory, authentication.
    #[error("Redis refuses to serve")]
    Refusing,
    /// The user may not do this (an ACL).
    #[error("Redis does not permit the command")]
    NotPermitted,
    /// The key's slot is on the move between nodes of the cluster, and no node did as asked.
    #[error("the key is moving to another node")]
    Redirected,
    /// The node sees no working cluster.
    #[error("the cluster is down")]
    ClusterDown,
    /// Redis rejected this one command.
    #[error("Redis rejected the command")]
    Rejected,
}

/// [`Unavailable`] as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// Nothing was sent.
    BreakerOpen,
    /// No answer in time.
    Deadline,
    /// Connecting or keeping the connection failed.
    Connection,
    /// Redis answered with an error.
    Reply,
}

impl FailureKind {
    /// Every kind, for metrics that start at zero.
    pub const ALL: [Self; 4] = [Self::BreakerOpen, Self::Deadline, Self::Connection, Self::Reply];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BreakerOpen => "breaker_open",
            Self::Deadline => "deadline",
            Self::Connection => "connection",
            Self::Reply => "reply",
        }
    }
}

impl Unavailable {
    /// The metric label's kind.
    pub const fn kind(self) -> FailureKind {
        match self {
            Self::BreakerOpen => FailureKind::BreakerOpen,
            Self::DeadlinePassed => FailureKind::Deadline,
            Self::NotConnected | Self::CannotConnect | Self::ConnectionLost => FailureKind::Connection,
            Self::ScriptUnknown
            | Self::Refusing
            | Self::NotPermitted
            | Self::Redirected
            | Self::ClusterDown
            | Self::Rejected => FailureKind::Reply,
        }
    }

    /// Whether Redis has answered that it does not do this, and will not by itself.
    pub const fn is_lasting_refusal(self) -> bool {
        matches!(self, Self::NotPermitted | Self::Rejected)
    }

    /// Whether the failure says something about the store and not only about one command.
    pub(super) const fn counts_against_store(self) -> bool {
        !matches!(
            self,
            Self::BreakerOpen | Self::NotConnected | Self::ScriptUnknown | Self::Redirected | Self::Rejected
        )
    }

    /// Whether one such failure is proof enough, so that no further request need try.
    pub(super) const fn is_conclusive(self) -> bool {
        matches!(self, Self::CannotConnect | Self::Refusing | Self::NotPermitted)
    }
}

impl From<RedisError> for Unavailable {
    fn from(error: RedisError) -> Self {
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::NoScript) => Self::ScriptUnknown,
            ErrorKind::Server(
                ServerErrorKind::BusyLoading | ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown,
            )
            | ErrorKind::AuthenticationFailed => Self::Refusing,
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::TryAgain) => {
                Self::Redirected
            }
            ErrorKind::Server(ServerErrorKind::ClusterDown) => Self::ClusterDown,
            ErrorKind::Io => Self::ConnectionLost,
            _ if error.is_unrecoverable_error() => Self::ConnectionLost,
            _ => match error.code() {
                Some("OOM" | "NOAUTH" | "WRONGPASS" | "MISCONF" | "BUSY" | "NOREPLICAS") => Self::Refusing,
                Some("NOPERM") => Self::NotPermitted,
                _ => Self::Rejected,
            },
        }
    }
}
