//! What a route is bound to: the settings of every concern that a request on it goes through. It decides
//! nothing.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::cache::RouteCache;
use crate::cache::tag::TagTemplate;
use crate::identity::Access;
use crate::metrics::{Counters, RouteMetrics};
use crate::sessions::login::{NotOpened, Place};
use crate::upstream::Upstream;

/// Who answers a request to a logout route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logout {
    /// The gateway itself; the upstream hears nothing.
    Gateway,
    /// The upstream; a 2xx makes it a logout.
    Forward,
}

/// How much of the gateway's health is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HealthDetail {
    /// Status, version and uptime.
    Brief,
    /// Redis, cache, connections and upstreams too.
    #[default]
    Full,
}

/// How the answers of a route open sessions.
#[derive(Debug)]
pub struct Login {
    /// Where the token is.
    pub place: Place,
    /// Most bytes of a body that are looked at, packed and unpacked.
    pub peek: usize,
    /// What opened none, by reason.
    pub not_opened: Counters<NotOpened>,
    /// When the log last said that an answer had no token, in milliseconds since the epoch; 0: never.
    pub absence_told: AtomicU64,
}

/// A route and everything it is bound to.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "switches that are independent of each other")]
pub struct Route {
    /// Name in the configuration, in logs and in metrics.
    pub name: Arc<str>,
    /// Where requests go; `None` where the gateway answers all of them.
    pub upstream: Option<Arc<Upstream>>,
    /// What is asked of callers.
    pub access: Access,
    /// Whether a live session is needed beside the token.
    pub session: bool,
    /// Indices of the limit policies, in the order of the configuration.
    pub policies: Box<[u16]>,
    /// Times the cost of each policy, at least 1.
    pub cost: u32,
    /// How responses are cached.
    pub cache: Option<Arc<RouteCache>>,
    /// What a successful unsafe request invalidates.
    pub invalidates: Box<[TagTemplate]>,
    /// Whether a request here is a logout.
    pub logout: Option<Logout>,
    /// Whether a logout here revokes all the user's tokens.
    pub logout_everywhere: bool,
    /// What of its own health the gateway answers here.
    pub health: Option<HealthDetail>,
    /// Whether a caller is refused of whom the store cannot say whether the token was revoked.
    pub refuse_unknown: bool,
    /// Whether and how a successful answer is a login.
    pub login: Option<Login>,
    /// Longest request body, in bytes.
    pub max_body: u64,
    /// Whether `%2F` may stand in a path segment.
    pub allow_encoded_slashes: bool,
    /// What is counted.
    pub metrics: RouteMetrics,
}
