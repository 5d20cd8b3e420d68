//! Admission: the order in which a request is judged, written once. Cheap and local stages come first; the
//! store is asked once, and not at all when the answer is known.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use super::api_token;
use super::context::{Admission, Admitted, Context, Target};
use super::gateway::Gateway;
use super::head::{self, Framing, Head, HeadInput, Upgrade};
use super::limit::{Limiting, PendingCache};
use super::lookup::{Lookup, Lookups};
use super::overwritten::stored_at;
use super::quota;
use super::refusal::Refusal;
use super::vouch::vouch;
use crate::api_tokens::{Used, Verdict};
use crate::cache::key::Target as CacheTarget;
use crate::cache::prefixes::Compare;
use crate::cache::request::{Bypass, Caller as CacheCaller, is_safe};
use crate::cache::{self, Transaction};
use crate::client_addr::{self, ClientAddr, Scheme};
use crate::clock::UnixMillis;
use crate::identity::resolve::{permit, presented};
use crate::identity::revocation::{Effect, Revocation};
use crate::identity::{Identity, IdentityRefusal, Refused, Requirement, Unverified, credentials};
use crate::route::table::Found;
use crate::route::{Route, normalise};
use crate::upstream::forward;

/// How long a revocation that the store reported is believed while it is away, when the token's end is not known.
const REVOKED_KNOWN_FOR: std::time::Duration = std::time::Duration::from_secs(3_600);

/// What cache and limits made of a request; a request of the cache's own is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client's request.
    Client,
    /// The cache refreshes a stale response in the background.
    Revalidation,
    /// The gateway keeps a response of a shared route warm: nobody asks, so nobody has to be known. Clients ask for
    /// it with this scheme.
    Warming(Scheme),
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
    let mut lookups = Lookups::default();
    let judged = loop {
        match judge(gateway, &request.head(), peer, origin, lookups.none_yet(), context)? {
            // Rare, and so not worth room in every request.
            Judgement::Unknown(lookup) => Box::pin(lookups.resolve(gateway, lookup)).await?,
            Judgement::Routed(judged) => break judged,
            Judgement::Quota(asked) => {
                let told = quota::tell(gateway, &asked, context.received_at).await?;
                context.admission = Admission::Answered(told);
                return Ok(());
            }
            Judgement::Forbidden(identity, api_token, refusal) => {
                // The client of a revoked token has to log in, whatever it may.
                let vouched = vouch(gateway, &identity, api_token.as_ref(), false, context.received_at);
                Box::pin(vouched).await?;
                return Err(refusal.into());
            }
        }
    };
    let Judged { route, params, identity, api_token, client, pending, overwrites, target } = *judged;
    let now = context.received_at;
    let (identity_of, api_token) = (identity.as_ref(), api_token.as_ref());
    let limiting = Limiting { gateway, route: &route, client, identity: identity_of, api_token, origin, now };
    let cache = limiting.decide(request, pending, context).await?;
    context.admission =
        Admission::Admitted(Box::new(Admitted { route, params, identity, cache, overwrites, target }));
    Ok(())
}

/// Where a request goes.
pub(super) enum Judgement {
    /// To a route.
    Routed(Box<Judged>),
    /// Nowhere: it asks what is left of its own limits.
    Quota(quota::Asked),
    /// Nowhere: the caller may not do this. Whether the token holds at all is still to be asked.
    Forbidden(Arc<Identity>, Option<Used>, IdentityRefusal),
    /// Who asks cannot be said before this is looked up.
    Unknown(Lookup),
}

/// What the head alone tells.
pub(super) struct Judged {
    route: Arc<Route>,
    params: Params,
    identity: Option<Arc<Identity>>,
    api_token: Option<Used>,
    client: ClientAddr,
    pending: PendingCache,
    overwrites: Vec<Box<str>>,
    target: Target,
}

/// Everything that can be said of the head, here and now; `first` unless it was judged before.
fn judge(
    gateway: &Gateway,
    input: &HeadInput<'_>,
    peer: IpAddr,
    origin: Origin,
    first: bool,
    context: &mut Context,
) -> Result<Judgement, Refusal> {
    let now = context.received_at;

    // Is this one well-formed request?
    let client = client_addr::resolve(&gateway.client_addr, peer, input.headers);
    context.client = Some(client);
    context.request_id = forward::request_id(input.headers, client.peer_trusted);
    let head = head::inspect(input, &gateway.head_limits)?;
    note_client(gateway, &head, input.headers, client, origin, context);
    if head.is_asterisk() {
        return Err(Refusal::NoRoute);
    }

    // Which route?
    let path = normalise::normalise(head.path, gateway.path_options)?;
    if gateway.quota_path.as_deref().is_some_and(|quota| gateway.table.options().same(quota, &path)) {
        return quota::ask(gateway, input, &head, client, first, context);
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
    let nobody = matches!(origin, Origin::Warming(_));
    if nobody && !route.cache.as_ref().is_some_and(|settings| settings.shared) {
        // Refused when the configuration is loaded: what nobody asked for would be somebody's.
        return Err(Refusal::NoRoute);
    }
    let requirement = if nobody { Requirement::None } else { route.access.requirement() };
    let identified = identify(gateway, requirement, &head, input.headers, now)?;
    let (identity, api_token, query) = match identified {
        Identified::As(identity, query) => (identity, None, query),
        Identified::By(used, query) => (Some(Arc::clone(&used.identity)), Some(used), query),
        Identified::Unknown(lookup) => return Ok(Judgement::Unknown(lookup)),
    };
    context.identity.clone_from(&identity);
    refuse_known_revoked(gateway, identity.as_deref(), now)?;
    // Behind an API token there is no login that could have a session or be ended.
    let permitted = match permit(&route.access, identity.as_deref()) {
        _ if nobody => Ok(()),
        Ok(()) if api_token.is_some() && (route.session || route.logout.is_some()) => {
            Err(IdentityRefusal::NoLogin)
        }
        permitted => permitted,
    };
    if let Err(refusal) = permitted {
        let forbidden = identity.map(|who| Judgement::Forbidden(who, api_token, refusal));
        return forbidden.ok_or_else(|| refusal.into());
    }

    // What may the cache do?
    let cache_host = context.cache_host();
    let target = CacheTarget {
        scheme: context.scheme.as_str(),
        host: &cache_host,
        path: &path,
        query: query.as_deref(),
        caller: identity.as_deref().map_or(CacheCaller::Anonymous, |identity| {
            CacheCaller::identified(&identity.account, identity.described.as_ref())
        }),
    };
    let overwrites = if is_safe(input.method) { Vec::new() } else { stored_at(gateway, &head.host, target) };
    let param = |name: &str| find_param(&params, name);
    let options = gateway.table.options();
    let compare = Compare {
        case_insensitive: options.case_insensitive,
        ignore_trailing_slash: options.ignore_trailing_slash,
    };
    let pending = route
        .cache
        .as_ref()
        .map(|settings| cache::Pending::new(settings, input.method, input.headers, target, param))
        .map(|pending| pending.map(|pending| pending.comparing(compare)))
        .map(|pending| pending.and_then(|pending| personal(gateway, &route, &head, input.headers, pending)));

    let rewritten = rewritten(&head, &path, query.as_deref());
    let target = Target { rewritten, websocket: head.upgrade == Upgrade::WebSocket };
    let judged = Judged { route, params, identity, api_token, client, pending, overwrites, target };
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
    origin: Origin,
    context: &mut Context,
) {
    let told = client_addr::told(&gateway.client_addr, &client, headers);
    context.trace = Some(forward::TraceParent::of(headers, client.peer_trusted));
    context.scheme = match origin {
        Origin::Warming(scheme) => scheme,
        Origin::Client | Origin::Revalidation => told.scheme.unwrap_or(Scheme::Http),
    };
    // In one spelling, since the upstream is told what the cache goes by.
    let scheme = context.scheme.as_str();
    context.authority = match head.port.filter(|port| *port != cache::key::default_port(scheme)) {
        Some(port) => format!("{}:{port}", head.host).into(),
        None => (&*head.host).into(),
    };
    context.host =
        told.host.map_or_else(|| context.authority.clone(), |host| cache::key::one_host(scheme, host).into());
}

type Query<'a> = Option<std::borrow::Cow<'a, str>>;

/// What the credential of a request says.
pub(super) enum Identified<'a> {
    /// The caller, and the query without the credential that may have been in it.
    As(Option<Arc<Identity>>, Query<'a>),
    /// The owner of this API token, and the query.
    By(Used, Query<'a>),
    /// Nothing, before this is looked up.
    Unknown(Lookup),
}

/// Who the caller is.
pub(super) fn identify<'a>(
    gateway: &Gateway,
    requirement: Requirement,
    head: &Head<'a>,
    headers: &HeaderMap,
    now: UnixMillis,
) -> Result<Identified<'a>, Refusal> {
    let untouched = head.query.map(std::borrow::Cow::Borrowed);
    if requirement == Requirement::None {
        return Ok(Identified::As(None, untouched));
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
    let found = credential.as_ref().ok().and_then(Option::as_ref);
    match found.and_then(|found| api_token::judge(gateway, found, now)) {
        Some(Verdict::Accepted(used)) => return Ok(Identified::By(used, query)),
        Some(Verdict::Refused(refused)) => return Err(IdentityRefusal::Token(refused).into()),
        Some(Verdict::Unknown(presented)) => {
            return Ok(Identified::Unknown(Lookup::ApiToken(presented, now)));
        }
        None => {}
    }
    let Some(credential) = presented(requirement, credential)? else {
        return Ok(Identified::As(None, query));
    };
    match gateway.verifier.examine(&credential.token, now) {
        Ok(identity) => Ok(Identified::As(Some(identity), query)),
        Err(Unverified::Unheard(unheard)) => Ok(Identified::Unknown(Lookup::Key(unheard))),
        Err(Unverified::Refused(refused)) => Err(IdentityRefusal::Token(refused).into()),
    }
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

/// A revocation that the store knows and this instance did not: it holds here for the time the store is away. What
/// exactly was revoked, and until when, the store has not said, so that it is never told of it.
pub(super) fn revoked(gateway: &Gateway, identity: Option<&Arc<Identity>>, now: UnixMillis) -> Refusal {
    if let Some(identity) = identity {
        let until = identity.usable_until.unwrap_or_else(|| now.plus(REVOKED_KNOWN_FOR));
        let key = Arc::clone(&identity.keys.blacklist);
        gateway.shared.infer(&Revocation { key, effect: Effect::Token, until }, now);
    }
    IdentityRefusal::Token(Refused::Revoked).into()
}
