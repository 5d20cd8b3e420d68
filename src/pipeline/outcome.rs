//! What is written down once per request, whatever became of it: metrics and the access log. It never changes
//! the answer.

use http::Version;

use super::admit::CacheUse;
use super::context::Context;
use super::gateway::Gateway;
use super::refusal::Refusal;
use crate::cache::Transaction;
use crate::cache::policy::NotStored;
use crate::cache::storage::Tier;
use crate::identity::{CredentialProblem, IdentityRefusal, Refused, Requirement};
use crate::logging::AccessEntry;
use crate::metrics::{CacheOutcome, CacheTier, Counters, Label, MethodClass, Metrics, StatusClass};

/// What looking for a credential and verifying it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthOutcome {
    /// A token that holds.
    Accepted,
    /// No token, where none is needed.
    Anonymous,
    /// Why not.
    Refused(IdentityRefusal),
}

impl AuthOutcome {
    /// The outcome for a request; `None` when nobody looked for a credential.
    fn of(context: &Context) -> Option<Self> {
        if let Some(Refusal::Identity(refusal)) = &context.refusal {
            return Some(Self::Refused(*refusal));
        }
        if context.identity.is_some() {
            return Some(Self::Accepted);
        }
        // Known only once it was admitted: a request refused before was perhaps not asked for its token.
        let asked = context.admitted()?.route.access.requirement() != Requirement::None;
        asked.then_some(Self::Anonymous)
    }
}

impl Label for AuthOutcome {
    const ALL: &'static [Self] = &[
        Self::Accepted,
        Self::Anonymous,
        Self::Refused(IdentityRefusal::NotAuthenticated),
        Self::Refused(IdentityRefusal::Forbidden),
        Self::Refused(IdentityRefusal::NoLogin),
        Self::Refused(IdentityRefusal::NoSession),
        Self::Refused(IdentityRefusal::Undecided),
        Self::Refused(IdentityRefusal::Credential(CredentialProblem::Repeated)),
        Self::Refused(IdentityRefusal::Credential(CredentialProblem::SeveralPlaces)),
        Self::Refused(IdentityRefusal::Credential(CredentialProblem::NotOneToken)),
        Self::Refused(IdentityRefusal::Credential(CredentialProblem::TooLong)),
        Self::Refused(IdentityRefusal::Credential(CredentialProblem::OtherScheme)),
        Self::Refused(IdentityRefusal::Token(Refused::TooLong)),
        Self::Refused(IdentityRefusal::Token(Refused::Malformed)),
        Self::Refused(IdentityRefusal::Token(Refused::DuplicateMember)),
        Self::Refused(IdentityRefusal::Token(Refused::TooDeep)),
        Self::Refused(IdentityRefusal::Token(Refused::HeaderNotAllowed)),
        Self::Refused(IdentityRefusal::Token(Refused::AlgorithmNotAllowed)),
        Self::Refused(IdentityRefusal::Token(Refused::Issuer)),
        Self::Refused(IdentityRefusal::Token(Refused::UnknownKey)),
        Self::Refused(IdentityRefusal::Token(Refused::BadSignature)),
        Self::Refused(IdentityRefusal::Token(Refused::Expired)),
        Self::Refused(IdentityRefusal::Token(Refused::NotYetValid)),
        Self::Refused(IdentityRefusal::Token(Refused::LifetimeTooLong)),
        Self::Refused(IdentityRefusal::Token(Refused::Audience)),
        Self::Refused(IdentityRefusal::Token(Refused::MissingClaim)),
        Self::Refused(IdentityRefusal::Token(Refused::Subject)),
        Self::Refused(IdentityRefusal::Token(Refused::Revoked)),
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Anonymous => "anonymous",
            Self::Refused(refusal) => refusal.as_str(),
        }
    }

    fn index(self) -> usize {
        // The usual outcomes stand first; a refusal may take the time to look for itself.
        Self::ALL.iter().position(|known| *known == self).unwrap_or(usize::MAX)
    }
}

/// What is counted whatever the route.
#[derive(Clone, Debug)]
pub struct Outcomes {
    /// Outcomes of authentication.
    pub auth: Counters<AuthOutcome>,
    /// Responses from the cache, by tier.
    cache_hits: Counters<CacheTier>,
    /// Responses that the cache did not keep.
    not_stored: Counters<NotStored>,
}

impl Outcomes {
    /// Resolves the counters; every series exists at zero from then on.
    pub fn new(metrics: &Metrics) -> Self {
        for reason in Refusal::labels() {
            metrics.families().refusals.with_label_values(&[reason]);
        }
        Self {
            auth: metrics.auth(),
            cache_hits: metrics.cache_hits(),
            not_stored: metrics.cache_not_stored(),
        }
    }

    /// Counts what the cache did for one request.
    fn count_cache(&self, outcome: CacheOutcome, transaction: &Transaction) {
        if let Some(why) = transaction.not_stored() {
            self.not_stored.count(why);
        }
        if matches!(outcome, CacheOutcome::Hit | CacheOutcome::Stale | CacheOutcome::Coalesced)
            && let Some(tier) = transaction.tier()
        {
            self.cache_hits.count(match tier {
                Tier::Memory => CacheTier::Memory,
                Tier::Remote => CacheTier::Redis,
            });
        }
    }
}

/// What only the connection knows.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    /// Method as sent.
    pub method: &'a http::Method,
    /// Path and query as they go on.
    pub uri: &'a http::Uri,
    /// Protocol version.
    pub version: Version,
    /// Request header fields.
    pub headers: &'a http::HeaderMap,
    /// Status sent, zero when the client was gone before.
    pub status: u16,
    /// Body bytes sent.
    pub bytes: u64,
}

/// Writes down one finished request.
pub fn record(gateway: &Gateway, context: &Context, sent: &Sent<'_>) {
    let elapsed = context.started.elapsed();
    let metrics = &gateway.shared.metrics;
    let class = StatusClass::of(sent.status);
    let route = context.route.as_ref().map_or(&gateway.unrouted, |route| &route.metrics);
    route.requests.count(MethodClass::of(sent.method), class);
    route.duration_seconds.observe(elapsed.as_secs_f64());
    if let Some(outcome) = context.cache_outcome {
        route.cache.count(outcome);
        if let Some(CacheUse::Used(transaction)) = context.admitted().map(|admitted| &admitted.cache) {
            gateway.outcomes.count_cache(outcome, transaction);
        }
    }
    if let Some(outcome) = AuthOutcome::of(context) {
        gateway.outcomes.auth.count(outcome);
    }
    if let Some(refusal) = &context.refusal {
        metrics.families().refusals.with_label_values(&[refusal.as_str()]).inc();
    }
    let log = &gateway.shared.access_log;
    if log.enabled() {
        let header = |name| sent.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
        let upstream = context.tried.last().map(ToString::to_string);
        log.record(&AccessEntry {
            time: context.received_at,
            request_id: context.request_id.to_str().unwrap_or("-"),
            client_ip: context.client.map(|client| client.ip),
            method: sent.method.as_str(),
            host: Some(&context.host),
            path: sent.uri.path(),
            query: sent.uri.query(),
            protocol: Some(protocol(sent.version)),
            route: context.route.as_ref().map(|route| &*route.name),
            status: sent.status,
            bytes: sent.bytes,
            duration_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            upstream: upstream.as_deref(),
            upstream_us: context.upstream_micros,
            user: context.identity.as_ref().map(|identity| &*identity.subject),
            api_token: context.identity.as_ref().and_then(|identity| identity.api_token.as_deref()),
            plan: context.identity.as_ref().and_then(|identity| identity.plan.as_deref()),
            cache: context.cache_outcome.map(crate::metrics::CacheOutcome::as_str),
            limit: context.limit,
            refusal: context.refusal.as_ref().map(super::Refusal::reason),
            user_agent: header(http::header::USER_AGENT),
            referer: header(http::header::REFERER),
        });
    }
}

const fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_to_refuse_a_caller_has_a_series_of_its_own() {
        let mut all: Vec<AuthOutcome> = vec![
            AuthOutcome::Accepted,
            AuthOutcome::Anonymous,
            AuthOutcome::Refused(IdentityRefusal::NotAuthenticated),
            AuthOutcome::Refused(IdentityRefusal::Forbidden),
            AuthOutcome::Refused(IdentityRefusal::NoLogin),
            AuthOutcome::Refused(IdentityRefusal::NoSession),
            AuthOutcome::Refused(IdentityRefusal::Undecided),
        ];
        all.extend(Refused::ALL.map(|why| AuthOutcome::Refused(why.into())));
        all.extend(CredentialProblem::ALL.map(|why| AuthOutcome::Refused(why.into())));
        assert_eq!(all.len(), AuthOutcome::ALL.len());
        let mut names: Vec<&str> = all.iter().map(|outcome| outcome.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len(), "two outcomes share a name");
        for outcome in all {
            assert_eq!(AuthOutcome::ALL[outcome.index()], outcome);
        }
    }
}
