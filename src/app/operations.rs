//! What the admin listener may ask of this gateway.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::header::{CONTENT_TYPE, COOKIE};
use http::{HeaderMap, HeaderValue};

use crate::admin::{
    ApiTokenAnswer, ApiTokenCall, ApiTokenDone, ConfigStatus, NotReady, OperationError, Operations, Purge,
    Purged, Quota, QuotaCounter, QuotaSubject, Revoke, RevokeTarget, Revoked, SessionList, SessionStatus,
    SessionsEnded, Status, User,
};
use crate::api_tokens::{Hold, Id, Problem, is_api_token};
use crate::cache::prefixes::Prefix;
use crate::cache::tag::{epoch_tag, key_tag, route_tag, user_tag};
use crate::client_addr::SubjectText;
use crate::clock::UnixMillis;
use crate::identity::revocation::{Effect, Revocation};
use crate::identity::{TokenId, subject_key};
use crate::limits::{Body, Parts, Plan};
use crate::logging::AccessField;
use crate::pipeline::Gateway;
use crate::pipeline::health::Health;
use crate::pipeline::quota::{self, Change, Shown};
use crate::route::normalise;
use crate::sessions::Session;

/// What the operator waits for Redis.
const PATIENCE: Duration = Duration::from_millis(500);

/// What the process knows about itself.
#[derive(Debug, Default)]
pub struct Lifecycle {
    /// The public listeners accept connections.
    pub listening: AtomicBool,
    /// The process is ending: no new traffic is welcome, and connections are told to close.
    pub draining: Arc<AtomicBool>,
    /// The process is to end at once, whatever is in flight.
    pub interrupted: AtomicBool,
}

/// The operations over the current configuration.
pub(super) struct GatewayOperations {
    pub(super) current: Arc<ArcSwap<Gateway>>,
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) config: ConfigStatus,
    pub(super) started_at: UnixMillis,
}

#[async_trait]
impl Operations for GatewayOperations {
    fn ready(&self) -> Result<(), NotReady> {
        if self.lifecycle.draining.load(Ordering::Acquire) {
            return Err(NotReady::Draining);
        }
        if !self.lifecycle.listening.load(Ordering::Acquire) {
            return Err(NotReady::ListenerDown);
        }
        Ok(())
    }

    async fn health(&self, detail: bool) -> Health {
        self.current.load_full().health(detail).await
    }

    async fn status(&self) -> Status {
        Status {
            health: self.health(true).await,
            not_ready: self.ready().err(),
            started_at: self.started_at.as_secs(),
            config: self.config.clone(),
        }
    }

    async fn revoke(&self, revoke: Revoke) -> Result<Revoked, OperationError> {
        let gateway = self.current.load_full();
        let shared = &gateway.shared;
        let now = shared.clock.now();
        let prefix = shared.sessions.key_prefix();
        let kind = revoke.target.kind();
        let longest = revoke.ttl.unwrap_or(gateway.longest_revocation);
        let mut shown = None;
        let (id, revocation) = match &revoke.target {
            RevokeTarget::Jti(jti) => {
                let jti: Box<str> = qualified(&gateway, revoke.issuer.as_deref(), jti)?.into();
                let key = TokenId::Jti(jti.clone()).blacklist_key(prefix).into();
                (jti, Revocation { key, effect: Effect::Token, until: now.plus(longest) })
            }
            RevokeTarget::Token(token) if is_api_token(token) => return Err(AN_API_TOKEN),
            RevokeTarget::Token(token) => {
                let identity = gateway
                    .verifier
                    .verify(token, now)
                    .map_err(|_| OperationError::Invalid("the token is not accepted anyway"))?;
                let mut revocation = identity.revocation(now, longest);
                if let Some(ttl) = revoke.ttl {
                    revocation.until = now.plus(ttl);
                }
                let id = identity.token_id.as_str().into();
                shown = Some(identity);
                (id, revocation)
            }
            RevokeTarget::Subject(subject) => {
                let account: Box<str> = qualified(&gateway, revoke.issuer.as_deref(), subject)?.into();
                let key = subject_key(prefix, "revoked_before", &account, shared.keys.is_tagged()).into();
                (account, Revocation::everywhere(key, now, longest))
            }
        };
        let expires_in_seconds = revocation.until.millis_since(now) / 1_000;
        let shared_everywhere = match revocation.effect {
            Effect::Token => {
                let session = async {
                    if let Some(identity) = &shown {
                        shared.end_session(identity).await;
                    }
                };
                tokio::join!(shared.revoke_within(revocation, Some(PATIENCE)), session).0
            }
            Effect::IssuedBefore(_) => shared.end_account(&id, revocation, Some(PATIENCE)).await,
        };
        let reason = revoke.reason.as_deref();
        tracing::info!(kind, id = %id, reason, shared = shared_everywhere, "revoked by an operator");
        Ok(Revoked { kind, id, expires_in_seconds, shared: shared_everywhere })
    }

    async fn purge(&self, purge: Purge) -> Result<Purged, OperationError> {
        let gateway = self.current.load_full();
        let (kind, what) = (purge.kind(), told(&purge, shows_users(&gateway)));
        let tag = match &purge {
            Purge::Prefix { path, host } => {
                let prefix = purged_prefix(&gateway, path, host.as_deref())?;
                let purged = gateway.shared.invalidate_prefix(&prefix, PATIENCE).await;
                let (shared, widened) = (purged.shared, purged.widened);
                let text: Box<str> = prefix.field().into();
                tracing::info!(kind, prefix = %text, shared, widened, "cached responses purged by an operator");
                return Ok(Purged {
                    kind,
                    prefix: Some(text),
                    widened: Some(widened),
                    entries: None,
                    shared,
                });
            }
            Purge::All => epoch_tag(),
            Purge::Tag(tag) => tag.clone(),
            Purge::User(user) => user_tag(Some(&account_of_anyone(&gateway, user)?)),
            Purge::Route(route) => {
                let exists = gateway.table.values().any(|(name, _)| *name == **route);
                if !exists {
                    return Err(OperationError::NotFound("no route has this name"));
                }
                route_tag(route)
            }
            Purge::Key(key) => key_tag(&published_key(key)?),
        };
        let shared = gateway.shared.invalidate_within(vec![tag], Some(PATIENCE)).await;
        tracing::info!(kind, what, shared, "cached responses purged by an operator");
        Ok(Purged { kind, prefix: None, widened: None, entries: None, shared })
    }

    async fn read_quota(&self, subject: QuotaSubject) -> Result<Quota, OperationError> {
        let gateway = self.current.load_full();
        let subject = known_to(&gateway, subject)?;
        let given = Given::of(&gateway, &subject)?;
        let plan = named_plan(&gateway, &subject)?.unwrap_or_else(|| assumed_plan(&gateway, &subject));
        let own_limits = own_limits(&gateway, &subject).await;
        let whose = quota::Subject { own_limits, ..whose(&subject, &given, plan) };
        Ok(shown(gateway.read_quota(&whose, Shown::ToOperator(subject.policy.as_deref())).await))
    }

    async fn reset_quota(&self, subject: QuotaSubject) -> Result<Quota, OperationError> {
        self.change_quota(subject, Change::Reset).await
    }

    async fn grant_quota(&self, subject: QuotaSubject, requests: u64) -> Result<Quota, OperationError> {
        self.change_quota(subject, Change::Grant(requests)).await
    }

    async fn list_sessions(&self, user: User) -> Result<SessionList, OperationError> {
        let gateway = self.current.load_full();
        let account = qualified(&gateway, user.issuer.as_deref(), &user.name)?;
        let listed = gateway.shared.list_sessions(&account).await;
        let status = |session: Session| SessionStatus {
            opened: session.times.opened.as_secs(),
            seen: session.times.seen.as_secs(),
            until: session.times.until.as_secs_ceil(),
            end: session.times.end.as_secs_ceil(),
            client: session.client,
            session: session.token,
        };
        Ok(SessionList { sessions: listed.sessions.into_iter().map(status).collect(), shared: listed.shared })
    }

    async fn end_sessions(
        &self,
        user: User,
        only: Option<Box<str>>,
    ) -> Result<SessionsEnded, OperationError> {
        let gateway = self.current.load_full();
        let account = qualified(&gateway, user.issuer.as_deref(), &user.name)?;
        let ended = gateway.shared.end_sessions(&account, only.as_deref(), Some(PATIENCE)).await;
        tracing::info!(user = %account, session = only.as_deref(), ended = ended.count, "sessions ended by an operator");
        if only.is_none() && !ended.complete {
            return Err(OperationError::StoreUnavailable);
        }
        Ok(SessionsEnded { ended: ended.count, shared: ended.shared })
    }

    async fn api_tokens(&self, call: ApiTokenCall) -> Result<ApiTokenAnswer, OperationError> {
        let gateway = self.current.load_full();
        if !gateway.api_tokens {
            return Err(OperationError::Invalid("API tokens are not enabled: set api_tokens.enabled"));
        }
        api_token_call(&gateway, call).await
    }

    fn metrics_text(&self) -> String {
        let gateway = self.current.load();
        let shared = &gateway.shared;
        let families = shared.metrics.families();
        let tiers = shared.cache.tiers();
        families.cache_bytes.set(i64::try_from(tiers.memory_bytes()).unwrap_or(i64::MAX));
        let redis = |outcome| tiers.remote_counters().map_or(0, |counters| counters.value(outcome));
        shared.metrics.cache_totals(tiers.evicted(), redis);
        families.cache_entries.set(i64::try_from(tiers.memory_entries()).unwrap_or(i64::MAX));
        families.tokens_remembered.set(i64::try_from(gateway.verifier.cached()).unwrap_or(i64::MAX));
        families.revocations_known.set(i64::try_from(shared.known.len()).unwrap_or(i64::MAX));
        families.revocations_pending.set(i64::try_from(shared.pending.len()).unwrap_or(i64::MAX));
        shared.metrics.render()
    }
}

impl GatewayOperations {
    async fn change_quota(&self, subject: QuotaSubject, change: Change) -> Result<Quota, OperationError> {
        let gateway = self.current.load_full();
        let subject = &known_to(&gateway, subject)?;
        let given = Given::of(&gateway, subject)?;
        let plans = match named_plan(&gateway, subject)? {
            Some(plan) => vec![plan],
            // Windows of another plan may be other counters.
            None => possible_plans(&gateway, subject),
        };
        // Before it is done: whoever asked may not wait for the answer.
        tracing::info!(
            ?change,
            policy = subject.policy.as_deref(),
            ip = subject.ip.map(tracing::field::display),
            user = subject.user.as_ref().map(|user| &*user.name),
            api_token = subject.api_token.as_deref(),
            "an operator changes limit counters"
        );
        let own_limits = own_limits(&gateway, subject).await;
        let of = |plan| quota::Subject { own_limits, ..whose(subject, &given, plan) };
        let subjects: Vec<_> = plans.into_iter().map(of).collect();
        let only = Shown::ToOperator(subject.policy.as_deref());
        Ok(shown(gateway.change_quota(&subjects, only, change).await))
    }
}

/// The `name` of a token or a user among those of all issuers.
fn qualified<'a>(
    gateway: &Gateway,
    issuer: Option<&str>,
    name: &'a str,
) -> Result<Cow<'a, str>, OperationError> {
    let unknown = match issuer {
        Some(_) => OperationError::NotFound("no issuer has this name"),
        None => OperationError::Invalid("there are several issuers; name the one that is meant"),
    };
    gateway.verifier.qualified(issuer, name).ok_or(unknown)
}

/// A key as `X-Cache-Key` shows it.
fn published_key(key: &str) -> Result<String, OperationError> {
    if key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(key.to_ascii_lowercase())
    } else {
        Err(OperationError::Invalid("the key is the 16 hexadecimal digits that X-Cache-Key shows"))
    }
}

/// Whether the log tells who asked.
fn shows_users(gateway: &Gateway) -> bool {
    gateway.shared.access_log.shows(AccessField::User)
}

/// What of a purge is written to the log: of a tag or a user no more than the access log tells, and nothing long. A
/// prefix is told in its normalised form.
fn told(purge: &Purge, shows_users: bool) -> Option<String> {
    const MOST: usize = 128;
    let text = match purge {
        Purge::All | Purge::Prefix { .. } => return None,
        Purge::User(_) if !shows_users => return None,
        Purge::User(user) => match &user.issuer {
            Some(issuer) => format!("{issuer}~{}", user.name),
            None => user.name.to_string(),
        },
        // What follows a colon may be a user's name.
        Purge::Tag(tag) if !shows_users => match tag.split_once(':') {
            Some((kind, _)) => format!("{kind}:…"),
            None => "…".to_owned(),
        },
        Purge::Tag(name) | Purge::Route(name) | Purge::Key(name) => name.to_string(),
    };
    Some(if text.chars().nth(MOST).is_some() {
        text.chars().take(MOST).chain(['…']).collect()
    } else {
        text
    })
}

/// The prefix that an operator means, in the form that paths are compared in.
fn purged_prefix(gateway: &Gateway, path: &str, host: Option<&str>) -> Result<Prefix, OperationError> {
    const HOST: OperationError = OperationError::Invalid(
        "the host is a name or an address as in a URL, without scheme, port and path",
    );
    if path.ends_with('*') {
        return Err(OperationError::Invalid(
            "a prefix means whatever begins with it: leave the asterisk out, or write %2A if it is one of the path",
        ));
    }
    let path = normalise::normalise(path.as_bytes(), gateway.path_options).map_err(|_| {
        OperationError::Invalid(
            "the prefix is no path that a request could have: it begins with a slash, holds neither ? nor #, and its \
             escapes are whole, such as /api/todos/ or /files/a%20b",
        )
    })?;
    let host = host.map(|host| {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let parsed = host.parse::<http::uri::Authority>().map_err(|_| HOST)?;
        let sound = parsed.host() == host && !host.is_empty() && !host.contains(',') && host.len() <= 255;
        if sound { Ok(host) } else { Err(HOST) }
    });
    Prefix::new(&path, host.transpose()?.as_deref())
        .ok_or(OperationError::Invalid("the prefix has at most 1024 bytes in its normalised form"))
}

/// The account of a user who may have no token of any issuer: owners of API tokens are called as their operator likes.
fn account_of_anyone<'a>(gateway: &Gateway, user: &'a User) -> Result<Cow<'a, str>, OperationError> {
    match qualified(gateway, user.issuer.as_deref(), &user.name) {
        Err(_) if user.issuer.is_none() && gateway.api_tokens => Ok(Cow::Borrowed(&user.name)),
        account => account,
    }
}

/// The subject with its user as limits know it.
fn known_to(gateway: &Gateway, mut subject: QuotaSubject) -> Result<QuotaSubject, OperationError> {
    if let Some(user) = &mut subject.user {
        user.name = account_of_anyone(gateway, user)?.into();
        user.issuer = None;
    }
    Ok(subject)
}

/// Not the gateway's to revoke: its owner's logins and it have nothing to do with each other.
const AN_API_TOKEN: OperationError =
    OperationError::Invalid("this is an API token: disable or delete it by its id under /api/v1/api-tokens");

/// Does what an operator asks of API tokens, and says so in the log.
async fn api_token_call(gateway: &Gateway, call: ApiTokenCall) -> Result<ApiTokenAnswer, OperationError> {
    let (tokens, now) = (&gateway.shared.api_tokens, gateway.shared.clock.now());
    let one = |listed, token| ApiTokenDone::One(Box::new(listed), token);
    // Whoever has to end a token does not wait for the store to come back.
    let hold = |id, hold| {
        let held = tokens.hold(id, hold, now).then_some(ApiTokenDone::Held(id, hold));
        held.ok_or(OperationError::StoreUnavailable)
    };
    let mut doubt = None;
    let (what, done) = match call {
        ApiTokenCall::List(owner) => {
            let mut all = tokens.list(now).await.map_err(why)?;
            all.tokens.retain(|token| owner.as_ref().is_none_or(|owner| token.owner == *owner));
            let (done, shared) = (ApiTokenDone::All(all), tokens.is_shared());
            return Ok(ApiTokenAnswer { done, shared, doubt: None });
        }
        ApiTokenCall::Create(order) => {
            if let Some(plan) = &order.plan
                && !gateway.plans.iter().any(|known| known.name() == &**plan)
            {
                return Err(OperationError::NotFound("no plan has this name"));
            }
            let made = tokens.create(&order, now).await.map_err(why)?;
            doubt = made.doubt;
            ("created", one(made.listed, Some(made.token)))
        }
        ApiTokenCall::Rotate(id, grace) => {
            let made = tokens.rotate(id, grace, now).await.map_err(why)?;
            ("rotated", one(made.listed, Some(made.token)))
        }
        ApiTokenCall::Disable(id) => {
            let done = match tokens.disable(id, true, now).await {
                Err(Problem::Unavailable(_)) => hold(id, Hold::Disabled)?,
                done => one(done.map_err(why)?, None),
            };
            ("disabled", done)
        }
        ApiTokenCall::Enable(id) => {
            ("enabled", one(tokens.disable(id, false, now).await.map_err(why)?, None))
        }
        ApiTokenCall::Delete(id) => {
            let done = match tokens.delete(id).await {
                Err(Problem::Unavailable(_)) => hold(id, Hold::Deleted)?,
                done => done.map(|()| ApiTokenDone::Deleted(id)).map_err(why)?,
            };
            ("deleted", done)
        }
    };
    let id = match &done {
        ApiTokenDone::One(listed, _) => &*listed.id,
        ApiTokenDone::Deleted(id) | ApiTokenDone::Held(id, _) => id.as_str(),
        ApiTokenDone::All(_) => "",
    };
    let shared = tokens.is_shared() && !matches!(done, ApiTokenDone::Held(..));
    tracing::info!(what, id, shared, "API token changed by an operator");
    Ok(ApiTokenAnswer { done, shared, doubt })
}

fn why(problem: Problem) -> OperationError {
    match problem {
        Problem::Unusable(unusable) => OperationError::Invalid(unusable.0),
        Problem::Unknown => OperationError::NotFound("no API token has this id"),
        Problem::NoRandomness(_) => OperationError::Invalid("the operating system gives no random bytes"),
        Problem::Unavailable(_) => OperationError::StoreUnavailable,
    }
}

/// The limits that the API token of a subject has of its own, as far as they can be read.
async fn own_limits(gateway: &Gateway, subject: &QuotaSubject) -> [Option<u64>; 3] {
    let Some(id) = subject.api_token.as_deref().and_then(Id::parse) else { return [None; 3] };
    let found = gateway.shared.api_tokens.find(id, gateway.shared.clock.now()).await;
    let limits = found.ok().flatten().map(|token| token.limits);
    limits.map_or([None; 3], |limits| [limits.minute, limits.hour, limits.day])
}

/// What an operator gave of a subject, as a request would have it.
struct Given {
    address: Option<SubjectText>,
    headers: HeaderMap,
    body: Option<Body>,
}

impl Given {
    fn of(gateway: &Gateway, subject: &QuotaSubject) -> Result<Self, OperationError> {
        const SHAPE: &str = "values are named header:NAME, cookie:NAME or body:FIELD";
        let mut headers = HeaderMap::new();
        let mut fields = serde_json::Map::new();
        for (part, value) in &subject.values {
            let (kind, name) = part.split_once(':').ok_or(OperationError::Invalid(SHAPE))?;
            match kind {
                "header" | "cookie" => {
                    let (name, value) = match kind {
                        "cookie" => (COOKIE, format!("{name}={value}")),
                        _ => (name.parse().map_err(|_| OperationError::Invalid(SHAPE))?, value.to_string()),
                    };
                    let value =
                        value.parse().map_err(|_| OperationError::Invalid("a value cannot be sent"))?;
                    headers.append(name, value);
                }
                "body" => put(&mut fields, name, value),
                _ => return Err(OperationError::Invalid(SHAPE)),
            }
        }
        let mut json = HeaderMap::new();
        json.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let body = serde_json::Value::Object(fields);
        let body = (body != serde_json::json!({})).then(|| Body::parse(&json, body.to_string().as_bytes()));
        let address = subject.ip.map(|ip| gateway.client_addr.subject(ip).text());
        Ok(Self { address, headers, body })
    }
}

/// Puts `value` where the path `user.email` leads.
fn put(object: &mut serde_json::Map<String, serde_json::Value>, path: &str, value: &str) {
    match path.split_once('.') {
        None => {
            object.insert(path.into(), value.into());
        }
        Some((first, rest)) => {
            let inner = object.entry(first).or_insert_with(|| serde_json::json!({}));
            if let Some(inner) = inner.as_object_mut() {
                put(inner, rest, value);
            }
        }
    }
}

/// The plan that is given; also sees that the policy exists.
fn named_plan<'a>(gateway: &'a Gateway, subject: &QuotaSubject) -> Result<Option<&'a Plan>, OperationError> {
    if let Some(policy) = &subject.policy
        && !gateway.policies.iter().any(|known| known.name() == &**policy)
    {
        return Err(OperationError::NotFound("no policy has this name"));
    }
    let plans = &gateway.plans;
    let Some(name) = &subject.plan else { return Ok(None) };
    let named = plans.iter().chain([plans.anonymous()]).find(|plan| plan.name() == &**name);
    named.map(Some).ok_or(OperationError::NotFound("no plan has this name"))
}

/// The plan of a subject of whom nobody says it.
fn assumed_plan<'a>(gateway: &'a Gateway, subject: &QuotaSubject) -> &'a Plan {
    if subject.user.is_some() { gateway.plans.named(None) } else { gateway.plans.anonymous() }
}

/// Every plan the subject may have, the assumed one first.
fn possible_plans<'a>(gateway: &'a Gateway, subject: &QuotaSubject) -> Vec<&'a Plan> {
    let others = gateway.plans.iter().filter(|_| subject.user.is_some());
    [assumed_plan(gateway, subject)].into_iter().chain(others).collect()
}

/// The subject as limits know it.
fn whose<'a>(subject: &'a QuotaSubject, given: &'a Given, plan: &'a Plan) -> quota::Subject<'a> {
    quota::Subject {
        ip: given.address.as_ref().map(SubjectText::as_str),
        user: subject.user.as_ref().map(|user| &*user.name),
        token: subject.token.as_deref(),
        api_token: subject.api_token.as_deref(),
        own_limits: [None; 3],
        plan,
        multiplier: 1.0,
        route: subject.route.as_deref(),
        request: Parts { headers: Some(&given.headers), body: given.body.as_ref() },
    }
}

fn shown(quota: quota::Quota) -> Quota {
    let counters = quota.counters.into_iter().map(|counter| QuotaCounter {
        policy: counter.policy,
        window: counter.window,
        key: Some(counter.key),
        limit: counter.limit,
        used: counter.used,
        remaining: counter.remaining,
        reset: counter.reset,
    });
    Quota { counters: counters.collect(), shared: quota.shared }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_a_purge_names_no_user_where_the_access_log_does_not() {
        let alice = || User { name: "alice".into(), issuer: Some("main".into()) };
        let both = |purge: Purge| [told(&purge, true), told(&purge, false)];
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(both(Purge::All), [None, None]);
        assert_eq!(both(Purge::User(alice())), [some("main~alice"), None]);
        assert_eq!(both(Purge::Tag("todos:alice".into())), [some("todos:alice"), some("todos:…")]);
        assert_eq!(both(Purge::Tag("alice".into())), [some("alice"), some("…")]);
        assert_eq!(both(Purge::Route("todo-list".into())), [some("todo-list"), some("todo-list")]);
        assert_eq!(both(Purge::Key("93f1".into())), [some("93f1"), some("93f1")]);
        let long = told(&Purge::Tag("ü".repeat(500).into()), true).unwrap();
        assert_eq!(long.chars().count(), 129);
    }
}
