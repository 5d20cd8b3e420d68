//! What the admin listener answers: JSON, text or a problem document (RFC 9457), always with the same armour.
//! Texts are static: nothing a client sent comes back.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use serde::Serialize;

const JSON: &str = "application/json";
const PROBLEM: &str = "application/problem+json";

/// Headers every answer carries: not cached, not sniffed, not framed, nothing loaded, nothing leaked.
const ARMOUR: [(HeaderName, HeaderValue); 6] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// An answer of the admin listener.
#[derive(Clone, Debug)]
pub struct Reply {
    status: StatusCode,
    content_type: &'static str,
    /// One header more, its name in lower case.
    extra: Option<(&'static str, &'static str)>,
    body: Bytes,
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'static str,
}

impl Reply {
    /// `value` as JSON.
    pub fn json(status: StatusCode, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self { status, content_type: JSON, extra: None, body: body.into() },
            Err(_) => Self::problem(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written"),
        }
    }

    /// The metrics page.
    pub(super) fn metrics(text: String) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: crate::metrics::CONTENT_TYPE,
            extra: None,
            body: text.into(),
        }
    }

    /// A problem document (RFC 9457) of the type `about:blank`.
    pub fn problem(status: StatusCode, detail: &'static str) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        let problem = Problem { r#type: "about:blank", title, status: status.as_u16(), detail };
        let body = serde_json::to_vec(&problem).unwrap_or_default().into();
        Self { status, content_type: PROBLEM, extra: None, body }
    }

    /// The same answer with one more header; `name` is in lower case.
    pub(super) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.extra = Some((name, value));
        self
    }

    /// The status.
    #[cfg(test)]
    pub(super) const fn status(&self) -> StatusCode {
        self.status
    }

    /// The whole response. `Content-Length` is that of the body even where a HEAD must not carry it.
    pub fn into_response(self) -> Response<Bytes> {
        let length = HeaderValue::from(self.body.len());
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(header::CONTENT_LENGTH, length);
        headers.extend(ARMOUR);
        if let Some((name, value)) = self.extra {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        response
    }
}
