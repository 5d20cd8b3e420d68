//! Admission: the order in which a request is judged, written once. Cheap and local stages come first; the
//! store is asked once, and not at all when the answer is known.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method};

use super::context::{Admission, Admitted, Context, Target};
use super::exchange::{self, Answer};
use super::gateway::Gateway;
use super::give_back::provisional;
use super::head::{self, Framing, Head, HeadInput, Upgrade};
use super::quota;
use super::refusal::{Limited, Refusal};
use super::user_limits;
use crate::cache::key::{Target as CacheTarget, Unstamped};
use crate::cache::request::{Bypass, Caller as CacheCaller, is_safe};
use crate::cache::tag::key_tag;
use crate::cache::{self, Transaction};
use crate::client_addr::{self, ClientAddr, Scheme};
use crate::clock::UnixMillis;
use crate::identity::resolve::{authenticate, permit};
use crate::identity::revocation::{Effect, Revocation};
use crate::identity::{Identity, IdentityRefusal, Refused, Requirement, credentials};
use crate::limits::user_limits::Adjustment;
use crate::limits::{
    self, Body, Caller, Checks, Decision, OnStoreFailure, Parts, Permit, Plan, Policy, Violated, fields,
};
use crate::metrics::{LimitOutcome, LimitSource};
use crate::route::table::Found;
use crate::route::{Route, normalise};
use crate::upstream::forward;

/// How long a ban or revocation that the store reported is believed without asking again, when its end is not
/// known here.
const CUTOFF_KNOWN_FOR: std::time::Duration = std::time::Duration::from_secs(3_600);

/// What cache and limits made of a request; a request of the cache's own is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client's request.
    Client,
    /// The cache refreshes a stale response in the background.
    Revalidation,
}

/// What became of the question whether the cache may be used.
#[derive(Debug)]
pub enum CacheUse {
    /// The route has no cache.
    NotConfigured,
    /// The request goes past it.
    Bypassed(Bypass),
    /// The request uses it.
    Used(Box<Transaction>),
}

/// A request as it is judged.
pub trait Request: Send {
    /// Its head.
    fn head(&self) -> HeadInput<'_>;

    /// The whole body, `None` when there is none or it is longer than `limit` bytes. Whatever was read still
    /// reaches the upstream, byte for byte. Called at most once.
    ///
    /// # Errors
    /// [`Refusal::SlowBody`] and [`Refusal::ClientBroke`].
    fn peek(&mut self, limit: usize) -> impl Future<Output = Result<Option<Bytes>, Refusal>> + Send;
}

/// Judges a request. What was learned is in `context`, whether it is admitted or not.
///
/// # Errors
/// The first stage's refusal.
pub async fn admit(
    gateway: &Gateway,
    request: &mut impl Request,
    peer: IpAddr,
    origin: Origin,
    context: &mut Context,
) -> Result<(), Refusal> {
    let judged = judge(gateway, &request.head(), peer, context)?;
    let Judged { route, params, identity, client, pending, overwrites, target } = match judged {
        Judgement::Routed(judged) => *judged,
        Judgement::Quota(asked) => {
            context.admission = Admission::Answered(quota::tell(gateway, &asked, context.received_at).await?);
            return Ok(());
        }
    };
    let cache = decide(gateway, request, &route, client, identity.as_ref(), pending, origin, context).await?;
    context.admission =
        Admission::Admitted(Box::new(Admitted { route, params, identity, cache, overwrites, target }));
    Ok(())
}

/// Where a request goes.
enum Judgement {
    /// To a route.
    Routed(Box<Judged>),
    /// Nowhere: it asks what is left of its own limits.
    Quota(quota::Asked),
}

/// What the head alone tells.
struct Judged {
    route: Arc<Route>,
    params: Params,
    identity: Option<Arc<Identity>>,
    client: ClientAddr,
    pending: PendingCache,
    overwrites: Option<Box<str>>,
    target: Target,
}

/// Everything that can be said of the head, here and now.
fn judge(
    gateway: &Gateway,
    input: &HeadInput<'_>,
    peer: IpAddr,
    context: &mut Context,
) -> Result<Judgement, Refusal> {
    let now = context.received_at;

    // Is this one well-formed request?
    let client = client_addr::resolve(&gateway.client_addr, peer, input.headers);
    context.client = Some(client);
    context.request_id = forward::request_id(input.headers, client.peer_trusted);
    let head = head::inspect(input, &gateway.head_limits)?;
    note_client(gateway, &head, input.headers, client, context);
    if head.is_asterisk() {
        return Err(Refusal::NoRoute);
    }

    // Which route?
    let path = normalise::normalise(head.path, gateway.path_options)?;
    if gateway.quota_path.as_deref() == Some(&*path) {
        return quota::ask(gateway, input, &head, client, context).map(Judgement::Quota);
    }
    let (route, params) = match gateway.table.find(&head.host, input.method, &path) {
        Found::Route(found) => {
            let params: Params =
                found.params.iter().map(|(name, value)| (name.into(), value.into())).collect();
            (Arc::clone(found.value), params)
        }
        Found::MethodNotAllowed { allow } => return Err(Refusal::MethodNotAllowed(allow)),
        Found::NotFound => return Err(Refusal::NoRoute),
    };
    context.route = Some(Arc::clone(&route));
    if !route.allow_encoded_slashes && normalise::has_encoded_slash(&path) {
        return Err(normalise::Problem::EncodedSlash.into());
    }
    if matches!(head.framing, Framing::Length(length) if length > route.max_body) {
        return Err(Refusal::BodyTooLarge);
    }

    // Who is it?
    let (identity, query) = identify(gateway, route.access.requirement(), &head, input.headers, now)?;
    context.identity.clone_from(&identity);
    refuse_known_revoked(gateway, identity.as_deref(), now)?;
    permit(&route.access, identity.as_deref())?;

    // What may the cache do?
    let cache_host = if context.host == context.authority {
        Cow::Borrowed(&*context.authority)
    } else {
        // The upstream is told both, so that its answer may depend on both. A comma is in no host.
        Cow::Owned(format!("{},{}", context.authority, context.host))
    };
    let target = CacheTarget {
        scheme: context.scheme.as_str(),
        host: &cache_host,
        path: &path,
        query: query.as_deref(),
        caller: identity
            .as_deref()
            .map_or(CacheCaller::Anonymous, |identity| CacheCaller::User(&identity.account)),
    };
    let overwrites = if is_safe(input.method) { None } else { stored_at(gateway, &head.host, target) };
    let param = |name: &str| find_param(&params, name);
    let pending = route
        .cache
        .as_ref()
        .map(|settings| cache::Pending::new(settings, input.method, input.headers, target, param))
        .map(|pending| pending.and_then(|pending| personal(gateway, &route, &head, input.headers, pending)));

    let rewritten = rewritten(&head, &path, query.as_deref());
    let target = Target { rewritten, websocket: head.upgrade == Upgrade::WebSocket };
    let judged = Judged { route, params, identity, client, pending, overwrites, target };
    Ok(Judgement::Routed(Box::new(judged)))
}

/// On a route that does not look at tokens a request may still carry one, wherever the configuration says tokens
/// are: what the upstream makes of it is not everybody's.
fn personal(
    gateway: &Gateway,
    route: &Route,
    head: &Head<'_>,
    headers: &HeaderMap,
    pending: cache::Pending,
) -> Result<cache::Pending, Bypass> {
    let looked_at = route.access.requirement() != Requirement::None;
    let shared = route.cache.as_ref().is_some_and(|settings| settings.shared);
    let bare = || matches!(credentials::extract(&gateway.sources, headers, head.query), Ok(None));
    if looked_at || shared || bare() { Ok(pending) } else { Err(Bypass::UnverifiedCredential) }
}

/// The tag of what a GET of this target by the same caller is stored under (RFC 9111 section 4.4).
fn stored_at(gateway: &Gateway, host: &str, target: CacheTarget<'_>) -> Option<Box<str>> {
    let Found::Route(found) = gateway.table.find(host, &Method::GET, target.path) else { return None };
    let settings = found.value.cache.as_ref()?;
    let caller = match found.value.access.requirement() {
        Requirement::None => CacheCaller::Anonymous,
        _ => target.caller,
    };
    Some(key_tag(&Unstamped::new(settings, CacheTarget { caller, ..target }).public_key()))
}

/// The target to send on, where it is not the one that came.
fn rewritten(head: &Head<'_>, path: &str, query: Option<&str>) -> Option<Box<str>> {
    let unchanged = !head.was_absolute && path.as_bytes() == head.path && query == head.query;
    (!unchanged).then(|| normalise::target(path, query).into())
}

/// Names and values of path parameters.
pub type Params = Box<[(Box<str>, Box<str>)]>;

/// The value of the path parameter `name`.
pub fn find_param<'a>(params: &'a [(Box<str>, Box<str>)], name: &str) -> Option<&'a str> {
    params.iter().find_map(|(known, value)| (**known == *name).then_some(&**value))
}

fn note_client(
    gateway: &Gateway,
    head: &Head<'_>,
    headers: &HeaderMap,
    client: ClientAddr,
    context: &mut Context,
) {
    let told = client_addr::told(&gateway.client_addr, &client, headers);
    context.trace = Some(forward::TraceParent::of(headers, client.peer_trusted));
    context.scheme = told.scheme.unwrap_or(Scheme::Http);
    context.authority = match head.port {
        Some(port) => format!("{}:{port}", head.host).into(),
        None => (&*head.host).into(),
    };
    context.host = told.host.map_or_else(|| context.authority.clone(), Into::into);
}

type Query<'a> = Option<std::borrow::Cow<'a, str>>;

/// The caller, and the query without the credential that may have been in it.
pub(super) fn identify<'a>(
    gateway: &Gateway,
    requirement: Requirement,
    head: &Head<'a>,
    headers: &HeaderMap,
    now: UnixMillis,
) -> Result<(Option<Arc<Identity>>, Query<'a>), Refusal> {
    let untouched = head.query.map(std::borrow::Cow::Borrowed);
    if requirement == Requirement::None {
        return Ok((None, untouched));
    }
    let credential = credentials::extract(&gateway.sources, headers, head.query);
    let parameter =
        credential.as_ref().ok().and_then(Option::as_ref).and_then(|found| found.query_parameter());
    let query = match (parameter, head.query) {
        (Some(name), Some(query)) => {
            let stripped = credentials::without_parameter(query, name);
            (!stripped.is_empty()).then_some(stripped)
        }
        _ => untouched,
    };
    let identity = authenticate(requirement, credential, &gateway.verifier, now)?;
    Ok((identity, query))
}

pub(super) fn refuse_known_revoked(
    gateway: &Gateway,
    identity: Option<&Identity>,
    now: UnixMillis,
) -> Result<(), Refusal> {
    match identity {
        Some(identity) if gateway.shared.known.is_revoked(identity, now) => {
            Err(IdentityRefusal::Token(Refused::Revoked).into())
        }
        _ => Ok(()),
    }
}

type PendingCache = Option<Result<cache::Pending, Bypass>>;

/// May it, at this rate? Limits, revocation and cache generations: locally where the answer is known, else in one
/// exchange. The body is read only for a policy that needs it, and only when nothing else refuses the request.
#[allow(clippy::too_many_arguments, reason = "all of them are of one request")]
async fn decide(
    gateway: &Gateway,
    request: &mut impl Request,
    route: &Route,
    client: ClientAddr,
    identity: Option<&Arc<Identity>>,
    pending: PendingCache,
    origin: Origin,
    context: &mut Context,
) -> Result<CacheUse, Refusal> {
    let shared = &*gateway.shared;
    let now = context.received_at;
    let plan =
        identity.map_or(gateway.plans.anonymous(), |identity| gateway.plans.named(identity.plan.as_deref()));
    let adjustment = adjustment(gateway, route, identity, now);
    let adjusted = adjustment.plan(plan);
    let plan = adjusted.as_ref().unwrap_or(plan);
    let mut checks = Checks::new();
    checks.begin(now);
    // Dropped, and so given back, wherever the request is refused.
    let mut permits = Vec::new();
    if origin == Origin::Client && !route.policies.is_empty() {
        let address = client.subject().text();
        let caller = Caller {
            ip: address.as_str(),
            user: identity.map(|identity| &*identity.account),
            token: identity.map(|identity| identity.token_id.as_str()),
            api_token: None,
            route: &route.name,
            plan,
            multiplier: identity
                .map_or(1.0, |identity| gateway.plans.combined(identity.multiplier, adjustment.multiplier)),
            request: Parts::default(),
        };
        let peeks = gateway.policies_of(route).any(|(_, policy)| policy.needs_body());
        let parts = Parts { headers: Some(request.head().headers), body: None };
        let first = Caller { request: parts, ..caller };
        enter(gateway, route, &first, &mut checks, &mut permits, context)?;
        collect(gateway, route, &first, &mut checks);
        // A policy that counts refused requests too must see this one; it may be one that needs the body.
        let penalises = || gateway.policies_of(route).any(|(_, policy)| policy.penalise());
        if !(peeks && penalises())
            && let Some(refused) = shared.local.refused(&mut checks, now)
        {
            return Err(refuse(gateway, &checks, plan, refused, LimitSource::Known, context));
        }
        if peeks {
            let body = read_body(gateway, request).await?;
            let parts = Parts { headers: Some(request.head().headers), body: Some(&body) };
            let second = Caller { request: parts, ..caller };
            enter(gateway, route, &second, &mut checks, &mut permits, context)?;
            collect(gateway, route, &second, &mut checks);
            if let Some(refused) = shared.local.refused(&mut checks, now) {
                return Err(refuse(gateway, &checks, plan, refused, LimitSource::Known, context));
            }
        }
    }

    let mut values = None;
    let mut verdict = None;
    // The checks that were decided without the store.
    let mut blind = Violated::default();
    let mut late = false;
    let needed = !checks.is_empty() || identity.is_some() || matches!(pending, Some(Ok(_)));
    if needed && let Some(store) = &shared.store {
        let tags = match &pending {
            Some(Ok(pending)) => Some((shared.cache.generations(), pending.tags())),
            _ => None,
        };
        let asked = Instant::now();
        let answer =
            exchange::ask(store, shared, identity.map(|identity| &**identity), tags, &mut checks, now).await;
        late = asked.elapsed() > store.settings().deadline / 2;
        match answer {
            Some(Answer::Judged { decision, generations, away }) => {
                verdict = Some((decision, LimitSource::Redis));
                values = generations;
                blind = away;
            }
            Some(Answer::Revoked | Answer::CutOff) => return Err(revoked(gateway, identity, now)),
            Some(Answer::Banned) => return Err(Refusal::Banned),
            None => {
                let decision = shared.decide_without_store(&mut checks, now);
                blind = Violated::from_bits(u32::MAX);
                verdict = Some((decision, LimitSource::Memory));
            }
        }
    }
    let denied = |index| blind.contains(index) && says(&checks, index, OnStoreFailure::Deny);
    if let Some((Decision::Refused(refused), _)) = &verdict
        && refused.violated.iter().any(denied)
    {
        // Not the client's doing: nobody may pass, whatever is left of its limit.
        count(gateway, &checks, LimitOutcome::DeniedBlind, LimitSource::Memory, denied);
        return Err(Refusal::StoreRequired);
    }
    let (decision, source) =
        verdict.unwrap_or_else(|| (shared.local.decide(&mut checks, now), LimitSource::Memory));
    match decision {
        Decision::Refused(refused) => return Err(refuse(gateway, &checks, plan, refused, source, context)),
        Decision::Admitted { .. } => {
            let unseen = |index| blind.contains(index) && says(&checks, index, OnStoreFailure::Allow);
            let over = |index| over_in_shadow(&checks, index);
            let in_store = matches!(source, LimitSource::Redis);
            context.provisional =
                provisional(gateway, &checks, in_store, |index| !unseen(index) && !over(index));
            count(gateway, &checks, LimitOutcome::Admitted, source, |index| !unseen(index) && !over(index));
            if !blind.is_empty() {
                count(gateway, &checks, LimitOutcome::AllowedBlind, source, unseen);
            }
            count_shadow(gateway, &checks, source);
            context.permits = permits;
            let limited = !checks.is_empty() || !context.permits.is_empty();
            context.limit = limited.then_some(LimitOutcome::Admitted.as_str());
            fields::write(&gateway.fields, &checks, &decision, |name, value| {
                context.quota.push((name, value));
            });
        }
    }

    Ok(match (pending, values) {
        (None, _) => CacheUse::NotConfigured,
        (Some(Err(bypass)), _) => CacheUse::Bypassed(bypass),
        (Some(Ok(pending)), Some(values)) => match pending.with_values(shared.cache, &values, now) {
            Ok(mut transaction) => {
                if late {
                    transaction.read_memory_only();
                }
                CacheUse::Used(Box::new(transaction))
            }
            Err(bypass) => CacheUse::Bypassed(bypass),
        },
        (Some(Ok(pending)), None) => CacheUse::Used(Box::new(pending.locally(shared.cache, now))),
    })
}

/// Whether the policy of check `index` wants this while the store is away.
fn says(checks: &Checks, index: usize, wanted: OnStoreFailure) -> bool {
    checks.get(index).is_some_and(|check| check.on_store_failure == wanted)
}

/// The body as far as it tells who is asking.
async fn read_body(gateway: &Gateway, request: &mut impl Request) -> Result<Body, Refusal> {
    if !Body::may_be_read(request.head().headers) {
        return Ok(Body::UNREADABLE);
    }
    let bytes = request.peek(gateway.body_peek).await?;
    Ok(bytes.map_or(Body::UNREADABLE, |bytes| Body::parse(request.head().headers, &bytes)))
}

/// How the caller's limits differ from the plan's; looks it up in the background when that is due.
fn adjustment(
    gateway: &Gateway,
    route: &Route,
    identity: Option<&Arc<Identity>>,
    now: UnixMillis,
) -> Adjustment {
    let policy = |index: &u16| gateway.policies.get(usize::from(*index));
    let by_plan = || route.policies.iter().filter_map(policy).any(|policy| policy.windows().is_none());
    let shared = &gateway.shared;
    let (Some(known), Some(identity)) = (&shared.user_limits, identity) else { return Adjustment::default() };
    if !by_plan() {
        return Adjustment::default();
    }
    let (adjustment, due) = known.of(&identity.account, now);
    if let Some(due) = due {
        user_limits::refresh(shared, &identity.account, due);
    }
    adjustment
}

/// The policies whose turn it is: without a body those that need none, and with it those that do.
fn in_turn<'a>(
    gateway: &'a Gateway,
    route: &'a Route,
    caller: &Caller<'_>,
) -> impl Iterator<Item = (u16, &'a Policy)> + use<'a> {
    let body = caller.request.body.is_some();
    gateway.policies_of(route).filter(move |(_, policy)| policy.needs_body() == body)
}

/// Lets the request in where policies limit how many are in flight; local, so it comes first.
fn enter(
    gateway: &Gateway,
    route: &Route,
    caller: &Caller<'_>,
    checks: &mut Checks,
    permits: &mut Vec<Permit>,
    context: &mut Context,
) -> Result<(), Refusal> {
    for (index, policy) in in_turn(gateway, route, caller) {
        let Some(limit) = policy.concurrency() else { continue };
        let Some(subject) = checks.subject(&gateway.shared.keys, policy, caller) else { continue };
        let entered = gateway.shared.in_flight.enter(subject, limit.most());
        let outcome = match (&entered, policy.shadow()) {
            (Some(_), _) => LimitOutcome::Admitted,
            (None, true) => LimitOutcome::Shadow,
            (None, false) => LimitOutcome::Refused,
        };
        if let Some(metrics) = gateway.policy_metrics.get(usize::from(index)) {
            metrics.decisions.count(outcome, LimitSource::Memory);
        }
        if !policy.shadow() {
            let left = entered.as_ref().map_or(0, |(_, left)| *left);
            checks.note_in_flight(policy, limit.most(), left);
        }
        match entered {
            Some((permit, _)) => permits.push(permit),
            None if policy.shadow() => {}
            None => {
                context.limit = Some(LimitOutcome::Refused.as_str());
                fields::write_busy(&gateway.fields, checks, |name, value| context.quota.push((name, value)));
                let violated = vec![policy.name().into()];
                return Err(Refusal::Limited(Limited { detail: limit.detail().into(), violated }));
            }
        }
    }
    Ok(())
}

fn collect(gateway: &Gateway, route: &Route, caller: &Caller<'_>, checks: &mut Checks) {
    for (index, policy) in in_turn(gateway, route, caller) {
        if let Err(problem) = checks.add(&gateway.shared.keys, index, policy, caller, route.cost) {
            // Refused when the configuration is loaded; the policies that fit still hold.
            tracing::error!(route = %route.name, %problem, "a policy is not applied");
        }
    }
}

/// A revocation that the store knows and this instance did not: it learns it for the time the store is away.
pub(super) fn revoked(gateway: &Gateway, identity: Option<&Arc<Identity>>, now: UnixMillis) -> Refusal {
    if let Some(identity) = identity {
        let until = identity.usable_until.unwrap_or_else(|| now.plus(CUTOFF_KNOWN_FOR));
        let key = Arc::clone(&identity.keys.blacklist);
        gateway.shared.known.learn(&Revocation { key, effect: Effect::Token, until }, now);
    }
    IdentityRefusal::Token(Refused::Revoked).into()
}

fn refuse(
    gateway: &Gateway,
    checks: &Checks,
    plan: &Plan,
    refused: limits::Refused,
    source: LimitSource,
    context: &mut Context,
) -> Refusal {
    count(gateway, checks, LimitOutcome::Refused, source, |index| refused.violated.contains(index));
    count_shadow(gateway, checks, source);
    context.limit = Some(LimitOutcome::Refused.as_str());
    let decision = Decision::Refused(refused);
    fields::write(&gateway.fields, checks, &decision, |name, value| context.quota.push((name, value)));
    Refusal::Limited(Limited {
        detail: fields::detail(&refused, checks, &gateway.policies, plan).into(),
        violated: fields::violated_policies(&refused, checks).map(Into::into).collect(),
    })
}

/// Whether another window of the policy of check `index`, or this one, would have refused, although it only watches.
fn over_in_shadow(checks: &Checks, index: usize) -> bool {
    let policy = checks.get(index).map(|check| check.policy);
    let mut violated = checks.shadow_violated().iter().filter_map(|violated| checks.get(violated));
    violated.any(|check| Some(check.policy) == policy)
}

/// Counts, once each, the policies that would have refused if they did not only watch.
fn count_shadow(gateway: &Gateway, checks: &Checks, source: LimitSource) {
    if !checks.shadow_violated().is_empty() {
        count(gateway, checks, LimitOutcome::Shadow, source, |index| over_in_shadow(checks, index));
    }
}

fn count(
    gateway: &Gateway,
    checks: &Checks,
    outcome: LimitOutcome,
    source: LimitSource,
    concerned: impl Fn(usize) -> bool,
) {
    for (index, check) in checks.iter().enumerate() {
        // Once per policy, at its first window.
        let repeated =
            index > 0 && checks.get(index - 1).is_some_and(|previous| previous.policy == check.policy);
        if concerned(index)
            && !(repeated && concerned(index - 1))
            && let Some(metrics) = gateway.policy_metrics.get(usize::from(check.policy))
        {
            metrics.decisions.count(outcome, source);
        }
    }
}
