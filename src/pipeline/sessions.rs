//! Stub.
use std::net::IpAddr;
use std::sync::Arc;

use super::gateway::Shared;
use crate::clock::UnixMillis;
use crate::identity::Identity;

impl Shared {
    /// Stub.
    pub fn note_login(&self, _identity: &Identity, _client: IpAddr, _now: UnixMillis) {}

    /// Stub.
    #[allow(clippy::unused_async)]
    pub async fn open_session(&self, _identity: &Arc<Identity>, _client: IpAddr) {}
}
