//! From request to answer: routing, the order of the checks, strict JSON bodies. It reads no socket and keeps no
//! state; `service` feeds it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header;
use http::request::Parts;
use http::{Method, StatusCode};
use serde::Deserialize;

use super::api_tokens::{self, Call};
use super::auth::{authorize, check_host, check_origin};
use super::operations::{OperationError, Purge, QuotaSubject, Revoke, RevokeTarget, User};
use super::reply::Reply;
use super::{Admin, HealthDetail, health};

/// Largest request body in bytes.
pub(super) const MAX_BODY: usize = 64 * 1024;
/// Longest time an operation may take.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_TOKEN: usize = 16 * 1024;
const MAX_NAME: usize = 256;
const MAX_PURGE: usize = 1_024;
/// Ten years: longer than any token is valid.
const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A request that passed every check of its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Live,
    Ready,
    Metrics,
    Health { detail: bool },
    Status,
    Revoke,
    Purge,
    Quota(QuotaCall),
    ListSessions,
    EndSessions,
    ApiTokens(Call),
}

/// What is done with counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QuotaCall {
    Read,
    Reset,
    Grant,
}

impl Action {
    /// Whether a body has to be read.
    pub(super) const fn takes_body(self) -> bool {
        matches!(
            self,
            Self::Revoke
                | Self::Purge
                | Self::Quota(_)
                | Self::ListSessions
                | Self::EndSessions
                | Self::ApiTokens(_)
        )
    }
}

impl Admin {
    /// Judges the head of a request: what to do, or the answer that refuses it.
    pub(super) fn admit(&self, parts: &Parts) -> Result<Action, Reply> {
        let path = parts.uri.path();
        // Probes come from kubelets and balancers under any name, and tell nothing worth protecting.
        match path {
            "/live" => return reading(parts, Action::Live),
            "/ready" => return reading(parts, Action::Ready),
            _ => {}
        }
        check_host(parts, &self.settings.hosts)?;
        check_origin(parts)?;
        match path {
            "/metrics" => reading(parts, Action::Metrics),
            "/health" => {
                let detail = self.settings.health == HealthDetail::Full
                    || authorize(self.settings.token.as_ref(), &parts.headers).is_ok();
                reading(parts, Action::Health { detail })
            }
            _ if path == "/api" || path.starts_with("/api/") => self.admit_api(parts, path),
            _ => Err(Reply::problem(StatusCode::NOT_FOUND, "there is nothing at this path")),
        }
    }

    /// The credential comes first, so that nobody without it learns which calls exist.
    fn admit_api(&self, parts: &Parts, path: &str) -> Result<Action, Reply> {
        if parts.uri.query().is_some() {
            return Err(Reply::problem(
                StatusCode::BAD_REQUEST,
                "this API takes no query parameters; the credential belongs in the Authorization header",
            ));
        }
        authorize(self.settings.token.as_ref(), &parts.headers)?;
        match path {
            "/api/v1/status" => reading(parts, Action::Status),
            "/api/v1/revocations" => writing(parts, Action::Revoke),
            "/api/v1/cache/purge" => writing(parts, Action::Purge),
            // Reading is a POST too: whose quota it is belongs into no URL and no log.
            "/api/v1/quota/read" => writing(parts, Action::Quota(QuotaCall::Read)),
            "/api/v1/quota/reset" => writing(parts, Action::Quota(QuotaCall::Reset)),
            "/api/v1/quota/grant" => writing(parts, Action::Quota(QuotaCall::Grant)),
            "/api/v1/sessions/list" => writing(parts, Action::ListSessions),
            "/api/v1/sessions/end" => writing(parts, Action::EndSessions),
            _ => match path.strip_prefix("/api/v1/api-tokens/").and_then(Call::named) {
                Some(call) => writing(parts, Action::ApiTokens(call)),
                None => Err(Reply::problem(StatusCode::NOT_FOUND, "there is no such call in the admin API")),
            },
        }
    }

    /// Does what was admitted; `body` is empty for calls that take none.
    pub(super) async fn perform(&self, action: Action, body: &Bytes) -> Reply {
        match tokio::time::timeout(PATIENCE, self.perform_untimed(action, body)).await {
            Ok(reply) => reply,
            Err(_) => Reply::problem(StatusCode::SERVICE_UNAVAILABLE, "the operation took too long"),
        }
    }

    async fn perform_untimed(&self, action: Action, body: &Bytes) -> Reply {
        match action {
            Action::Live => health::live(),
            Action::Ready => health::ready(self.operations.ready()),
            Action::Metrics => Reply::metrics(self.operations.metrics_text()),
            Action::Health { detail } => {
                self.recent.health(self.operations.as_ref(), self.clock.as_ref(), detail).await
            }
            Action::Status => Reply::json(StatusCode::OK, &self.operations.status().await),
            Action::Revoke => self.revoke(body).await,
            Action::Purge => self.purge(body).await,
            Action::Quota(call) => self.quota(call, body).await,
            Action::ListSessions => self.list_sessions(body).await,
            Action::EndSessions => self.end_sessions(body).await,
            Action::ApiTokens(call) => match api_tokens::read(call, body) {
                Ok(call) => api_tokens::reply(self.operations.api_tokens(call).await),
                Err(detail) => Reply::problem(StatusCode::BAD_REQUEST, detail),
            },
        }
    }

    async fn list_sessions(&self, body: &Bytes) -> Reply {
        let user = match parse_session_list(body) {
            Ok(user) => user,
            Err(detail) => return Reply::problem(StatusCode::BAD_REQUEST, detail),
        };
        match self.operations.list_sessions(user).await {
            Ok(list) => Reply::json(StatusCode::OK, &list),
            Err(error) => failed(error),
        }
    }

    async fn end_sessions(&self, body: &Bytes) -> Reply {
        let (user, only) = match parse_session_end(body) {
            Ok(parsed) => parsed,
            Err(detail) => return Reply::problem(StatusCode::BAD_REQUEST, detail),
        };
        match self.operations.end_sessions(user, only).await {
            Ok(ended) => Reply::json(StatusCode::OK, &ended),
            Err(error) => failed(error),
        }
    }

    async fn quota(&self, call: QuotaCall, body: &Bytes) -> Reply {
        let (subject, requests) = match parse_quota(call, body) {
            Ok(parsed) => parsed,
            Err(detail) => return Reply::problem(StatusCode::BAD_REQUEST, detail),
        };
        let done = match call {
            QuotaCall::Read => self.operations.read_quota(subject).await,
            QuotaCall::Reset => self.operations.reset_quota(subject).await,
            QuotaCall::Grant => self.operations.grant_quota(subject, requests).await,
        };
        match done {
            Ok(quota) => Reply::json(StatusCode::OK, &quota),
            Err(error) => failed(error),
        }
    }

    async fn revoke(&self, body: &Bytes) -> Reply {
        let revoke = match parse_revoke(body) {
            Ok(revoke) => revoke,
            Err(detail) => return Reply::problem(StatusCode::BAD_REQUEST, detail),
        };
        match self.operations.revoke(revoke).await {
            Ok(revoked) => Reply::json(StatusCode::OK, &revoked),
            Err(error) => failed(error),
        }
    }

    async fn purge(&self, body: &Bytes) -> Reply {
        let purge = match parse_purge(body) {
            Ok(purge) => purge,
            Err(detail) => return Reply::problem(StatusCode::BAD_REQUEST, detail),
        };
        match self.operations.purge(purge).await {
            Ok(purged) => Reply::json(StatusCode::OK, &purged),
            Err(error) => failed(error),
        }
    }
}

pub(super) fn failed(error: OperationError) -> Reply {
    match error {
        OperationError::NotFound(detail) => Reply::problem(StatusCode::NOT_FOUND, detail),
        OperationError::Invalid(detail) => Reply::problem(StatusCode::UNPROCESSABLE_ENTITY, detail),
        OperationError::StoreUnavailable => {
            Reply::problem(StatusCode::SERVICE_UNAVAILABLE, "the shared store is not reachable")
        }
    }
}

fn reading(parts: &Parts, action: Action) -> Result<Action, Reply> {
    if matches!(parts.method, Method::GET | Method::HEAD) {
        return Ok(action);
    }
    Err(not_allowed("GET, HEAD"))
}

fn writing(parts: &Parts, action: Action) -> Result<Action, Reply> {
    if parts.method != Method::POST {
        return Err(not_allowed("POST"));
    }
    // A form or text/plain could be sent by another site without a preflight.
    let json =
        parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
            value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
        });
    if !json || parts.headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Reply::problem(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send the body as plain application/json",
        ));
    }
    Ok(action)
}

fn not_allowed(allow: &'static str) -> Reply {
    Reply::problem(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method").with("allow", allow)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RevokeBody {
    jti: Option<Box<str>>,
    token: Option<Box<str>>,
    subject: Option<Box<str>>,
    issuer: Option<Box<str>>,
    ttl: Option<Span>,
    reason: Option<Box<str>>,
}

/// Seconds, or a text such as `24h`.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Span {
    Seconds(u64),
    Text(Box<str>),
}

impl Span {
    pub(super) fn duration(self) -> Result<Duration, &'static str> {
        match self {
            Self::Seconds(seconds) => Ok(Duration::from_secs(seconds)),
            Self::Text(text) => humantime::parse_duration(&text)
                .map_err(|_| "a duration is neither seconds nor a text such as 24h"),
        }
    }
}

fn parse_revoke(body: &[u8]) -> Result<Revoke, &'static str> {
    const SHAPE: &str =
        "send a JSON object with one of jti, token, subject, and optionally issuer, ttl and reason";
    let body: RevokeBody = parse(body, SHAPE)?;
    let target = match (body.jti, body.token, body.subject) {
        (Some(jti), None, None) => RevokeTarget::Jti(named(jti, MAX_NAME)?),
        (None, Some(token), None) => RevokeTarget::Token(named(token, MAX_TOKEN)?),
        (None, None, Some(subject)) => RevokeTarget::Subject(named(subject, MAX_NAME)?),
        _ => return Err(SHAPE),
    };
    if body.issuer.is_some() && matches!(target, RevokeTarget::Token(_)) {
        return Err("issuer goes with jti and subject; a token tells its own");
    }
    let issuer = body.issuer.map(|issuer| named(issuer, MAX_NAME)).transpose()?;
    let ttl = body.ttl.map(Span::duration).transpose()?;
    if ttl.is_some_and(|ttl| ttl < Duration::from_secs(1) || ttl > MAX_TTL) {
        return Err("ttl is between one second and ten years");
    }
    let reason = body.reason.map(|reason| named(reason, MAX_NAME)).transpose()?;
    Ok(Revoke { target, issuer, ttl, reason })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PurgeBody {
    all: Option<bool>,
    tag: Option<Box<str>>,
    user: Option<Box<str>>,
    issuer: Option<Box<str>>,
    route: Option<Box<str>>,
    key: Option<Box<str>>,
    prefix: Option<Box<str>>,
    host: Option<Box<str>>,
}

fn parse_purge(body: &[u8]) -> Result<Purge, &'static str> {
    const SHAPE: &str = "send a JSON object with one of all (true), tag, user (and optionally its issuer), route, key, prefix (and \
         optionally its host)";
    let body: PurgeBody = parse(body, SHAPE)?;
    let astray = body.issuer.is_some() && body.user.is_none();
    if astray || body.host.is_some() && body.prefix.is_none() {
        return Err(SHAPE);
    }
    match (body.all, body.tag, body.user, body.route, body.key, body.prefix) {
        (Some(true), None, None, None, None, None) => Ok(Purge::All),
        (None, Some(tag), None, None, None, None) => named(tag, MAX_PURGE).map(Purge::Tag),
        (None, None, Some(user), None, None, None) => self::user(user, body.issuer).map(Purge::User),
        (None, None, None, Some(route), None, None) => named(route, MAX_PURGE).map(Purge::Route),
        (None, None, None, None, Some(key), None) => named(key, MAX_PURGE).map(Purge::Key),
        (None, None, None, None, None, Some(prefix)) => {
            let host = body.host.map(|host| named(host, MAX_PURGE)).transpose()?;
            Ok(Purge::Prefix { path: named(prefix, MAX_PURGE)?, host })
        }
        _ => Err(SHAPE),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuotaBody {
    ip: Option<IpAddr>,
    user: Option<Box<str>>,
    issuer: Option<Box<str>>,
    token: Option<Box<str>>,
    api_token: Option<Box<str>>,
    plan: Option<Box<str>>,
    route: Option<Box<str>>,
    #[serde(default)]
    values: BTreeMap<Box<str>, Box<str>>,
    policy: Option<Box<str>>,
    requests: Option<u64>,
}

fn parse_quota(call: QuotaCall, body: &[u8]) -> Result<(QuotaSubject, u64), &'static str> {
    const SHAPE: &str = "send a JSON object with at least one of ip, user, token, api_token, plan, route and values \
                         (an object such as {\"header:x-key\": \"…\"}), and optionally the issuer of the user and policy; \
                         a grant also needs requests, at least 1";
    let body: QuotaBody = parse(body, SHAPE)?;
    if body.issuer.is_some() && body.user.is_none() {
        return Err(SHAPE);
    }
    let text = |text: Option<Box<str>>| text.map(|text| named(text, MAX_PURGE)).transpose();
    let subject = QuotaSubject {
        ip: body.ip,
        user: body.user.map(|user| self::user(user, body.issuer)).transpose()?,
        token: text(body.token)?,
        // Its secret does not belong into an answer or a log.
        api_token: body.api_token.map(|id| api_tokens::id(&id).map(|_| id)).transpose()?,
        plan: text(body.plan)?,
        route: text(body.route)?,
        values: body
            .values
            .into_iter()
            .map(|(part, value)| Ok((named(part, MAX_NAME)?, named(value, MAX_PURGE)?)))
            .collect::<Result<_, &'static str>>()?,
        policy: text(body.policy)?,
    };
    let nobody = QuotaSubject { policy: subject.policy.clone(), ..QuotaSubject::default() };
    let requests = body.requests.unwrap_or(0);
    if subject == nobody || (call == QuotaCall::Grant) != (requests > 0) {
        return Err(SHAPE);
    }
    Ok((subject, requests))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionListBody {
    user: Box<str>,
    issuer: Option<Box<str>>,
}

fn parse_session_list(body: &[u8]) -> Result<User, &'static str> {
    let body: SessionListBody = parse(body, "send a JSON object with user, and optionally its issuer")?;
    user(body.user, body.issuer)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionEndBody {
    user: Box<str>,
    issuer: Option<Box<str>>,
    session: Option<Box<str>>,
}

fn parse_session_end(body: &[u8]) -> Result<(User, Option<Box<str>>), &'static str> {
    let body: SessionEndBody =
        parse(body, "send a JSON object with user, and optionally its issuer and session")?;
    let only = body.session.map(|session| named(session, MAX_NAME)).transpose()?;
    Ok((user(body.user, body.issuer)?, only))
}

fn user(name: Box<str>, issuer: Option<Box<str>>) -> Result<User, &'static str> {
    let issuer = issuer.map(|issuer| named(issuer, MAX_NAME)).transpose()?;
    Ok(User { name: named(name, MAX_PURGE)?, issuer })
}

pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], shape: &'static str) -> Result<T, &'static str> {
    serde_json::from_slice(body)
        .map_err(|error| if error.is_data() { shape } else { "the body is not valid JSON" })
}

pub(super) fn named(text: Box<str>, limit: usize) -> Result<Box<str>, &'static str> {
    if text.is_empty() || text.len() > limit || text.chars().any(char::is_control) {
        return Err("a value is empty, too long or holds control characters");
    }
    Ok(text)
}
