//! What the admin listener asks of the gateway: one trait and the values it speaks.
//! No HTTP here; the composition root implements the trait over the floors below.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use thiserror::Error;

use super::api_tokens::{ApiTokenAnswer, ApiTokenCall};
use crate::label;
use crate::pipeline::health::Health;

label! {
    /// Why the gateway should get no new traffic.
    pub enum NotReady {
        /// No configuration is in force yet.
        ConfigNotLoaded = "config_not_loaded",
        /// The public listener does not accept connections yet.
        ListenerDown = "listener_down",
        /// The gateway is shutting down.
        Draining = "draining",
    }
}

/// The gateway as its operator may see and steer it. Calls are bounded to ten seconds by the caller.
#[async_trait]
pub trait Operations: Send + Sync + 'static {
    /// Whether new traffic is welcome.
    fn ready(&self) -> Result<(), NotReady>;

    /// The state of the gateway; without `detail` the parts that ask Redis may be left out.
    async fn health(&self, detail: bool) -> Health;

    /// What is running and with which configuration.
    async fn status(&self) -> Status;

    /// Revokes a token or a subject, on every instance where the store is reachable.
    async fn revoke(&self, revoke: Revoke) -> Result<Revoked, OperationError>;

    /// Drops cached responses, on every instance where the store is reachable.
    async fn purge(&self, purge: Purge) -> Result<Purged, OperationError>;

    /// How much of their limits somebody has used; consumes nothing.
    async fn read_quota(&self, subject: QuotaSubject) -> Result<Quota, OperationError>;

    /// Empties counters, on every instance where the store is reachable.
    async fn reset_quota(&self, subject: QuotaSubject) -> Result<Quota, OperationError>;

    /// Gives back up to `requests` of what was used of each counter, on every instance where the store is
    /// reachable.
    async fn grant_quota(&self, subject: QuotaSubject, requests: u64) -> Result<Quota, OperationError>;

    /// The live sessions of a user.
    async fn list_sessions(&self, user: User) -> Result<SessionList, OperationError>;

    /// Ends all sessions of a user, or the one named, and revokes their tokens, on every instance where the store is
    /// reachable. Where it is not, those that are known here end all the same, and so does the token of the one named.
    async fn end_sessions(&self, user: User, only: Option<Box<str>>)
    -> Result<SessionsEnded, OperationError>;

    /// Makes, shows, changes or ends API tokens, on every instance where there is a store.
    async fn api_tokens(&self, call: ApiTokenCall) -> Result<ApiTokenAnswer, OperationError>;

    /// The metrics in the Prometheus text format.
    fn metrics_text(&self) -> String;
}

/// The body of `/api/v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// The state, in full.
    pub health: Health,
    /// Why new traffic is not welcome; absent while it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<NotReady>,
    /// When the process started, seconds since the Unix epoch.
    pub started_at: u64,
    /// The configuration in force.
    pub config: ConfigStatus,
}

/// The configuration in force, without any secret.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConfigStatus {
    /// The file it was read from; absent for the demo.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<Box<str>>,
    /// When it came into force, seconds since the Unix epoch.
    pub loaded_at: u64,
    /// Names of the routes, in order of the file.
    pub routes: Vec<Box<str>>,
    /// Names of the limit policies.
    pub policies: Vec<Box<str>>,
    /// Names of the token issuers.
    pub issuers: Vec<Box<str>>,
}

impl Serialize for NotReady {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A user as an operator names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The subject, or `<issuer>~<subject>` where there are several issuers: at most 1 KiB, no control characters.
    pub name: Box<str>,
    /// The configuration's name of the issuer, where the subject stands alone: at most 256 bytes, no control
    /// characters.
    pub issuer: Option<Box<str>>,
}

/// What to revoke.
#[derive(Clone, PartialEq, Eq)]
pub enum RevokeTarget {
    /// One token by its `jti`: at most 256 bytes, no control characters.
    Jti(Box<str>),
    /// One token by its whole text, at most 16 KiB. It was not verified.
    Token(Box<str>),
    /// Every token of a subject issued until now: at most 256 bytes, no control characters.
    Subject(Box<str>),
}

impl RevokeTarget {
    /// The kind as logs and answers spell it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Jti(_) => "jti",
            Self::Token(_) => "token",
            Self::Subject(_) => "subject",
        }
    }
}

impl fmt::Debug for RevokeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jti(jti) => f.debug_tuple("Jti").field(jti).finish(),
            Self::Token(_) => f.write_str("Token(***)"),
            Self::Subject(subject) => f.debug_tuple("Subject").field(subject).finish(),
        }
    }
}

/// A revocation asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoke {
    /// What to revoke.
    pub target: RevokeTarget,
    /// The configuration's name of whoever issued the `jti` or the tokens of the subject: at most 256 bytes, no
    /// control characters.
    pub issuer: Option<Box<str>>,
    /// How long to remember it, 1 second to 10 years; absent: the token's remaining life, or the longest life the
    /// configuration allows.
    pub ttl: Option<Duration>,
    /// Why, in the operator's words: at most 256 bytes, no control characters.
    pub reason: Option<Box<str>>,
}

/// A revocation made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Revoked {
    /// `jti`, `token` or `subject`.
    pub kind: &'static str,
    /// What is remembered: the `jti`, the SHA-256 of the token, or the subject; never a token.
    pub id: Box<str>,
    /// Seconds until it is forgotten.
    pub expires_in_seconds: u64,
    /// Whether every instance knows; `false` while the store is away, when only this one does.
    pub shared: bool,
}

/// Cached responses to drop. Texts have at most 1 KiB and no control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purge {
    /// Everything.
    All,
    /// What carries a tag.
    Tag(Box<str>),
    /// What was stored for a user.
    User(User),
    /// What a route stored.
    Route(Box<str>),
    /// Every answer of one URI, whoever asked for it, by the fingerprint in `X-Cache-Key`; and of one URI in 65,536
    /// beside it.
    Key(Box<str>),
    /// What lies under a prefix of the path.
    Prefix {
        /// The path up to where it may differ, as a client may write it.
        path: Box<str>,
        /// Without one, on every host.
        host: Option<Box<str>>,
    },
}

impl Purge {
    /// The kind as logs and answers spell it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Tag(_) => "tag",
            Self::User(_) => "user",
            Self::Route(_) => "route",
            Self::Key(_) => "key",
            Self::Prefix { .. } => "prefix",
        }
    }
}

/// A purge made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Purged {
    /// `all`, `tag`, `user`, `route`, `key` or `prefix`.
    pub kind: &'static str,
    /// The prefix in the form that paths are compared in, where one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Box<str>>,
    /// Of a purge by prefix: whether everything was dropped, because there were too many of them or the list of those
    /// before was lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub widened: Option<bool>,
    /// Entries dropped from this instance's memory, where that is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// Whether every instance drops them; `false` while the store is away.
    pub shared: bool,
}

/// Whose counters are meant: every value that is given takes part in a policy's key. Policies that count by a
/// part which is not given are left out. Texts have at most 1 KiB and no control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuotaSubject {
    /// Client address; IPv6 by its network, as the gateway counts it.
    pub ip: Option<IpAddr>,
    /// The user.
    pub user: Option<User>,
    /// The token: its `jti`, `<issuer>~<jti>` where there are several issuers, or the SHA-256 of one without.
    pub token: Option<Box<str>>,
    /// The id of an API token.
    pub api_token: Option<Box<str>>,
    /// The caller's plan; without one the default plan of a user, else the anonymous one.
    pub plan: Option<Box<str>>,
    /// The route, for policies that count by it.
    pub route: Option<Box<str>>,
    /// Values of `header:NAME`, `cookie:NAME` and `body:FIELD` parts, by that spelling.
    pub values: Vec<(Box<str>, Box<str>)>,
    /// Only this policy; all others without.
    pub policy: Option<Box<str>>,
}

/// Counters of one subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quota {
    /// In the order of the configuration; empty when no policy counts by what was given.
    pub counters: Vec<QuotaCounter>,
    /// Whether all instances count together; `false` without a store, or while it is away.
    pub shared: bool,
}

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QuotaCounter {
    /// Name of the policy.
    pub policy: Box<str>,
    /// Name of the window: `minute`, `300s`, …
    pub window: Box<str>,
    /// Its key in Redis; absent for clients, whom it does not concern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Box<str>>,
    /// The effective limit.
    pub limit: u64,
    /// Requests counted, in whole requests of cost 1 that do not fit any more.
    pub used: u64,
    /// Requests that still fit.
    pub remaining: u64,
    /// When nothing counted is left, seconds since the Unix epoch.
    pub reset: u64,
}

/// The live sessions of one user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionList {
    /// In the order in which they were opened.
    pub sessions: Vec<SessionStatus>,
    /// Whether these are all of them; `false` while the store is away, when only those that this instance knows are
    /// told.
    pub shared: bool,
}

/// One session. Times are in seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionStatus {
    /// Names it among those of the user: the `jti` of its token, or a SHA-256 of one without.
    pub session: Box<str>,
    /// When it was opened.
    pub opened: u64,
    /// When it was last seen in use; uses soon after each other are noted once.
    pub seen: u64,
    /// When it ends if it is not used any more.
    pub until: u64,
    /// When it ends at the latest.
    pub end: u64,
    /// Who logged in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
}

/// Sessions ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SessionsEnded {
    /// How many there were.
    pub ended: usize,
    /// Whether every instance knows; `false` while the store is away, when the others hear of it later.
    pub shared: bool,
}

/// Why an operation was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OperationError {
    /// The thing named does not exist; the text says what, statically.
    #[error("{0}")]
    NotFound(&'static str),
    /// The request makes no sense for this gateway; the text says why, statically.
    #[error("{0}")]
    Invalid(&'static str),
    /// The shared store is away and the operation means nothing without it.
    #[error("the shared store is not reachable")]
    StoreUnavailable,
}
