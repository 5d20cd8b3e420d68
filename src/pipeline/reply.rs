//! A complete response made by the gateway itself: status, header fields and body. It never talks to a
//! socket; the proxy adapter writes it.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Serialize;

/// A response of the gateway's own.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status code.
    pub status: StatusCode,
    /// Fields besides `Content-Length`, which the writer adds.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Body; sent as is, or left out for `HEAD`.
    pub body: Bytes,
}

/// The members of a problem document (RFC 9457 section 3.1).
#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(rename = "violated-policies", skip_serializing_if = "<[_]>::is_empty")]
    violated_policies: &'a [&'a str],
}

/// The problem type registered for exceeded quotas (draft-ietf-httpapi-ratelimit-headers-10).
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";

impl Reply {
    /// An `application/problem+json` reply whose `detail` is for people and for clients that read it.
    pub fn problem(status: StatusCode, detail: &str) -> Self {
        Self::problem_of(&Problem {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail,
            violated_policies: &[],
        })
    }

    /// A 429 that names the violated policies.
    pub fn quota_exceeded(detail: &str, violated_policies: &[&str]) -> Self {
        let status = StatusCode::TOO_MANY_REQUESTS;
        Self::problem_of(&Problem {
            kind: QUOTA_EXCEEDED,
            title: "Quota Exceeded",
            status: status.as_u16(),
            detail,
            violated_policies,
        })
    }

    /// A 200 with a JSON body.
    pub fn json(body: &'static str) -> Self {
        Self {
            status: StatusCode::OK,
            headers: vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))],
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    /// The same reply with one more field.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    fn problem_of(problem: &Problem<'_>) -> Self {
        // Serialising a struct of strings and numbers cannot fail; an empty body would still be a refusal.
        let body = serde_json::to_vec(problem).unwrap_or_default();
        Self {
            status: StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: vec![
                (CONTENT_TYPE, HeaderValue::from_static("application/problem+json")),
                (http::header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            ],
            body: Bytes::from(body),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_the_detail_that_clients_read() {
        let reply = Reply::problem(StatusCode::UNAUTHORIZED, "Token revoked");
        let body: serde_json::Value = serde_json::from_slice(&reply.body).expect("JSON");
        assert_eq!(body["detail"], "Token revoked");
        assert_eq!(body["status"], 401);
        assert!(body.get("violated-policies").is_none());
    }

    #[test]
    fn an_exceeded_quota_names_its_policies() {
        let reply = Reply::quota_exceeded("Rate limit exceeded", &["login"]);
        let body: serde_json::Value = serde_json::from_slice(&reply.body).expect("JSON");
        assert_eq!(body["violated-policies"][0], "login");
        assert_eq!(body["type"], QUOTA_EXCEEDED);
    }
}
