//! The admin listener: probes, metrics, health and the first calls of `/api/v1`, behind a bearer credential.
//! It never touches public traffic and knows the gateway only through [`Operations`].

mod api;
mod api_tokens;
mod auth;
mod health;
mod operations;
mod reply;
mod service;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use api_tokens::{ApiTokenAnswer, ApiTokenCall, ApiTokenDone};
pub use auth::{AdminToken, AdminTokenError};
pub use operations::{
    ConfigStatus, NotReady, OperationError, Operations, Purge, Purged, Quota, QuotaCounter, QuotaSubject,
    Revoke, RevokeTarget, Revoked, SessionList, SessionStatus, SessionsEnded, Status, User,
};
pub use service::{AdminApp, service};

use crate::clock::Clock;
use crate::route::HealthDetail;

/// How the admin listener behaves.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The credential of `/api`; without one `/api` answers 403.
    pub token: Option<AdminToken>,
    /// Host names, without port, under which the listener answers besides IP addresses and `localhost`.
    pub hosts: Box<[Box<str>]>,
    /// What `/health` tells without the credential.
    pub health: HealthDetail,
}

/// The admin listener's logic over one gateway.
pub struct Admin {
    settings: Settings,
    operations: Arc<dyn Operations>,
    clock: Arc<dyn Clock>,
    recent: health::Recent,
}

impl Admin {
    /// The logic over `operations`.
    pub fn new(settings: Settings, operations: Arc<dyn Operations>, clock: Arc<dyn Clock>) -> Self {
        Self { settings, operations, clock, recent: health::Recent::default() }
    }
}
