//! Why a request is not answered by its upstream, and the one place that says which HTTP status that is.

use http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, StatusCode};

use super::head::HeadProblem;
use super::reply::Reply;
use crate::identity::IdentityRefusal;
use crate::route::normalise;

/// Which limits refused, in the words and seconds the client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limited {
    /// For people: `Rate limit exceeded for pro plan`.
    pub detail: Box<str>,
    /// Names of the policies that refused, as in `RateLimit-Policy`.
    pub violated: Vec<Box<str>>,
}

/// Why the gateway answers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The head could be read in more than one way, or is too large.
    Head(HeadProblem),
    /// The path has no canonical form.
    Path(normalise::Problem),
    /// No route takes this host and path.
    NoRoute,
    /// Routes take the path, but not with this method.
    MethodNotAllowed(Vec<Method>),
    /// The body is larger than the route allows.
    BodyTooLarge,
    /// The caller is not known, or may not.
    Identity(IdentityRefusal),
    /// The subject is banned.
    Banned,
    /// A limit is exceeded.
    Limited(Limited),
    /// A policy must not be decided without the store, and the store is away.
    StoreRequired,
    /// The client wants a stored response only (`Cache-Control: only-if-cached`) and there is none.
    OnlyIfCached,
    /// No member of the upstream is known, or all were tried.
    NoMember,
    /// The upstream refused the connection, broke it, or answered with garbage.
    BadGateway,
    /// The upstream did not connect or answer in time.
    UpstreamTimeout,
    /// The client's request could not be read to its end.
    ClientBroke,
    /// The body, which a limit depends on, did not arrive in time.
    SlowBody,
    /// A fault of the gateway's own.
    Internal,
}

impl Refusal {
    /// Every label, for metrics that start at zero.
    pub fn labels() -> impl Iterator<Item = &'static str> {
        let fixed = [
            "no_route",
            "method_not_allowed",
            "body_too_large",
            "banned",
            "limited",
            "store_required",
            "only_if_cached",
            "no_member",
            "bad_gateway",
            "upstream_timeout",
            "client_broke",
            "slow_body",
            "internal",
            "path",
            "identity",
        ];
        fixed.into_iter().chain(HeadProblem::ALL.iter().map(|problem| problem.as_str()))
    }

    /// Label for metrics and logs.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Head(problem) => problem.as_str(),
            Self::Path(_) => "path",
            Self::NoRoute => "no_route",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            Self::BodyTooLarge => "body_too_large",
            Self::Identity(_) => "identity",
            Self::Banned => "banned",
            Self::Limited(_) => "limited",
            Self::StoreRequired => "store_required",
            Self::OnlyIfCached => "only_if_cached",
            Self::NoMember => "no_member",
            Self::BadGateway => "bad_gateway",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::ClientBroke => "client_broke",
            Self::SlowBody => "slow_body",
            Self::Internal => "internal",
        }
    }

    /// The reason as precisely as it is known, for the log.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Identity(refusal) => refusal.as_str(),
            Self::Path(problem) => problem.as_str(),
            _ => self.as_str(),
        }
    }

    /// The status a client sees.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Head(problem) => problem.status(),
            Self::Path(_) | Self::ClientBroke => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Self::Identity(refusal) if refusal.is_forbidden() => StatusCode::FORBIDDEN,
            Self::Identity(refusal) if refusal.is_undecided() => StatusCode::SERVICE_UNAVAILABLE,
            Self::Identity(_) => StatusCode::UNAUTHORIZED,
            Self::Banned => StatusCode::FORBIDDEN,
            Self::Limited(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::StoreRequired | Self::NoMember => StatusCode::SERVICE_UNAVAILABLE,
            Self::OnlyIfCached | Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The text a client reads in `detail`.
    pub fn detail(&self) -> &str {
        match self {
            Self::Head(problem) => problem.detail(),
            Self::Path(problem) => problem.detail(),
            Self::NoRoute => "Not found",
            Self::MethodNotAllowed(_) => "Method not allowed",
            Self::BodyTooLarge => "The request body is too large",
            Self::Identity(refusal) => refusal.detail(),
            Self::Banned => "Access is suspended",
            Self::Limited(limited) => &limited.detail,
            Self::StoreRequired => "The service cannot decide this request at the moment",
            Self::OnlyIfCached => "No stored response",
            Self::NoMember => "No upstream is available",
            Self::BadGateway => "The upstream did not answer properly",
            Self::UpstreamTimeout => "The upstream did not answer in time",
            Self::ClientBroke => "The request could not be read",
            Self::SlowBody => "The request body did not arrive in time",
            Self::Internal => "Internal error",
        }
    }

    /// The response that tells the client.
    pub fn reply(&self) -> Reply {
        match self {
            Self::Limited(limited) => {
                let violated: Vec<&str> = limited.violated.iter().map(|name| &**name).collect();
                // `Retry-After` is one of the limit fields that every reply is stamped with.
                Reply::quota_exceeded(&limited.detail, &violated)
            }
            Self::Identity(refusal) if refusal.is_undecided() => {
                Reply::problem(self.status(), self.detail()).with(RETRY_AFTER, HeaderValue::from_static("1"))
            }
            Self::Identity(refusal) => Reply::problem(self.status(), self.detail())
                .with(WWW_AUTHENTICATE, HeaderValue::from_static(refusal.www_authenticate())),
            Self::MethodNotAllowed(allow) => {
                let allow: Vec<&str> = allow.iter().map(Method::as_str).collect();
                let reply = Reply::problem(self.status(), self.detail());
                match HeaderValue::from_str(&allow.join(", ")) {
                    Ok(value) => reply.with(ALLOW, value),
                    Err(_) => reply,
                }
            }
            Self::StoreRequired | Self::NoMember => {
                Reply::problem(self.status(), self.detail()).with(RETRY_AFTER, HeaderValue::from_static("1"))
            }
            _ => Reply::problem(self.status(), self.detail()),
        }
    }
}

impl From<HeadProblem> for Refusal {
    fn from(problem: HeadProblem) -> Self {
        Self::Head(problem)
    }
}

impl From<normalise::Problem> for Refusal {
    fn from(problem: normalise::Problem) -> Self {
        Self::Path(problem)
    }
}

impl From<IdentityRefusal> for Refusal {
    fn from(refusal: IdentityRefusal) -> Self {
        Self::Identity(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Refused;

    #[test]
    fn a_revoked_token_reads_as_the_seeds_clients_expect() {
        let reply = Refusal::Identity(IdentityRefusal::Token(Refused::Revoked)).reply();
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
        assert!(std::str::from_utf8(&reply.body).expect("text").contains(r#""detail":"Token revoked""#));
        assert!(reply.headers.iter().any(|(name, _)| name == WWW_AUTHENTICATE));
    }

    #[test]
    fn a_limited_reply_says_which_policy_refused() {
        let limited = Limited { detail: "Rate limit exceeded".into(), violated: vec!["ip".into()] };
        let reply = Refusal::Limited(limited).reply();
        assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(std::str::from_utf8(&reply.body).expect("text").contains(r#""violated-policies":["ip"]"#));
    }

    #[test]
    fn a_wrong_method_is_told_the_right_ones() {
        let reply = Refusal::MethodNotAllowed(vec![Method::GET, Method::HEAD]).reply();
        assert!(reply.headers.contains(&(ALLOW, HeaderValue::from_static("GET, HEAD"))));
    }

    #[test]
    fn what_cannot_be_judged_now_may_be_asked_again() {
        let reply = Refusal::Identity(IdentityRefusal::Undecided).reply();
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(reply.headers.contains(&(RETRY_AFTER, HeaderValue::from_static("1"))));
    }

    #[test]
    fn every_refusal_has_a_known_label() {
        let labels: Vec<_> = Refusal::labels().collect();
        for refusal in [Refusal::NoRoute, Refusal::Head(HeadProblem::SeveralHosts), Refusal::Internal] {
            assert!(labels.contains(&refusal.as_str()));
        }
    }
}
