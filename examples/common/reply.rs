//! Answers of the sample applications: a status and JSON.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

/// What a handler answers; refusals are the error, so that `?` ends a handler with them.
pub type Answer = Result<Reply, Reply>;

/// An answer that is yet to be sent.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Value,
    /// How long the work for it takes.
    pub after: Duration,
}

impl Reply {
    /// 200 with this body.
    pub fn ok(body: Value) -> Self {
        Self::new(StatusCode::OK, body)
    }

    /// Any status with any body.
    pub fn new(status: StatusCode, body: Value) -> Self {
        Self { status, body, after: Duration::ZERO }
    }

    /// A refusal that says why.
    pub fn refusal(status: StatusCode, detail: &str) -> Self {
        Self::new(status, json!({ "detail": detail }))
    }

    /// 404.
    pub fn not_found() -> Self {
        Self::refusal(StatusCode::NOT_FOUND, "Not found")
    }

    /// 422: the body is JSON, and not what is wanted.
    pub fn unacceptable(detail: &str) -> Self {
        Self::refusal(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }

    /// 507: everything is in memory, and that is bounded.
    pub fn full() -> Self {
        Self::refusal(StatusCode::INSUFFICIENT_STORAGE, "This sample application is full")
    }

    /// The same after work that takes `time`, as a query of a database does.
    pub fn after(self, time: Duration) -> Self {
        Self { after: time, ..self }
    }
}
