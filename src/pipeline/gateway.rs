//! What requests are judged by: the settings of one configuration, over the state that outlives it. It holds
//! both and decides nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::exchange::Exchange;
use super::head::HeadLimits;
use super::health::Vitals;
use super::outcome::Outcomes;
use super::quota::Reads;
use super::sessions::Sessions;
use crate::api_tokens::ApiTokens;
use crate::cache::Cache;
use crate::cache::warm::Target;
use crate::client_addr;
use crate::clock::{Clock, UnixMillis};
use crate::identity::revocation::{Known, Pending};
use crate::identity::{Sources, Verifier};
use crate::jwks::{Keeper, Keepers};
use crate::limits::local::Outage;
use crate::limits::{self, Checks, Decision, InFlight, KeySpace, Local, Plans, Policy, UserLimits};
use crate::logging::AccessLog;
use crate::metrics::{Metrics, PolicyMetrics, RouteMetrics};
use crate::redis::Store;
use crate::route::table::Table;
use crate::route::{Route, normalise};
use crate::upstream::{Upstream, forward};

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// An idle connection is closed after this.
    pub keepalive: Duration,
    /// Longest pause between two pieces of a request body.
    pub body: Duration,
    /// Longest time a client may refuse to take a piece of the response.
    pub write: Duration,
}

/// One configuration, ready to judge requests.
pub struct Gateway {
    /// How large a head may be.
    pub head_limits: HeadLimits,
    /// What paths are tolerated by any route.
    pub path_options: normalise::Options,
    /// The routes.
    pub table: Table<Arc<Route>>,
    /// Whose forwarding headers are believed.
    pub client_addr: client_addr::Settings,
    /// Where tokens are looked for.
    pub sources: Sources,
    /// Whether API tokens are accepted.
    pub api_tokens: bool,
    /// Decides on tokens.
    pub verifier: Verifier,
    /// Who keeps the published keys of issuers, by the verifier's index of issuers.
    pub keepers: Box<[Option<Arc<Keeper>>]>,
    /// What upstreams are told.
    pub forward: forward::Settings,
    /// Plans of callers.
    pub plans: Plans,
    /// Limit policies by index.
    pub policies: Box<[Policy]>,
    /// What is counted per policy, by the same index.
    pub policy_metrics: Box<[PolicyMetrics]>,
    /// What is counted for requests that no route takes.
    pub unrouted: RouteMetrics,
    /// What is counted whatever the route.
    pub outcomes: Outcomes,
    /// How long a token without `exp` stays revoked.
    pub longest_revocation: Duration,
    /// Whether a caller is refused, where no route says, of whom the store cannot say whether the token was revoked.
    pub refuse_unknown: bool,
    /// Where a client reads what is left of its limits; `None`: nowhere.
    pub quota_path: Option<Box<str>>,
    /// How often an address may read that.
    pub quota_reads: Reads,
    /// Which limit fields are sent.
    pub fields: limits::fields::Settings,
    /// Every upstream, for status and name resolution.
    pub upstreams: Vec<Arc<Upstream>>,
    /// How long clients may take.
    pub timeouts: Timeouts,
    /// Longest body that is read for a policy, in bytes.
    pub body_peek: usize,
    /// Responses that are kept warm.
    pub warm: Arc<[Target]>,
    /// Whether `X-Cache-Key` is sent.
    pub expose_cache_key: bool,
    /// State that outlives the configuration.
    pub shared: Arc<Shared>,
}

impl Gateway {
    /// The limit policies of `route` with their indices, in the order of the configuration.
    pub fn policies_of<'a>(&'a self, route: &'a Route) -> impl Iterator<Item = (u16, &'a Policy)> {
        route.policies.iter().filter_map(|&index| Some((index, self.policies.get(usize::from(index))?)))
    }
}

/// State that outlives a configuration.
pub struct Shared {
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// What is counted for operators.
    pub metrics: Metrics,
    /// One line per request, where configured.
    pub access_log: AccessLog,
    /// The store of all instances; `None`: memory only.
    pub store: Option<Arc<Store>>,
    /// Questions to the store that are under way.
    pub exchange: Arc<Exchange>,
    /// Counters of this instance.
    pub local: Local,
    /// Requests in flight, for the policies that limit them.
    pub in_flight: Arc<InFlight>,
    /// What is known of single users' limits, where the configuration looks at them.
    pub user_limits: Option<UserLimits>,
    /// Instances that count in the store, this one included, when it was last asked; at least 1.
    pub instances: AtomicU32,
    /// Makes counter keys and their hashes.
    pub keys: KeySpace,
    /// The tokens that the gateway issues itself.
    pub api_tokens: ApiTokens,
    /// Revocations of this instance.
    pub known: Known,
    /// Revocations that the store has not got yet.
    pub pending: Pending,
    /// Sessions of logged-in users.
    pub sessions: Sessions,
    /// The keepers of published keys.
    pub keepers: Keepers,
    /// The response cache.
    pub cache: &'static Cache,
    /// Redis refused the last invalidation that it was handed.
    pub invalidations_refused: AtomicBool,
    /// What a route that tells the gateway's health needs to know.
    pub vitals: Vitals,
}

impl Shared {
    /// Decides from memory, after the store gave no usable answer. With `uncounted` the store has certainly not
    /// counted the request, or takes it off again; it is then told of it later.
    pub fn decide_without_store(&self, checks: &mut Checks, now: UnixMillis, uncounted: bool) -> Decision {
        // A store that is asked all the same is slow rather than away: a late call is executed too.
        let asked =
            |store: &Arc<Store>| checks.iter().any(|check| store.available(store.shard(checks.key(check))));
        let may_have_counted = !uncounted && self.store.as_ref().is_some_and(asked);
        let instances = self.instances.load(Ordering::Relaxed);
        self.local.decide_without_store(checks, now, Outage { instances, may_have_counted })
    }
}
