//! Stub.
use std::net::IpAddr;
use std::sync::Arc;

use ::redis::cmd;

use super::gateway::Shared;
use crate::clock::UnixMillis;
use crate::identity::Identity;
use crate::redis::Lane;

impl Shared {
    /// Stub.
    pub fn note_login(&self, _identity: &Identity, _client: IpAddr, _now: UnixMillis) {}

    /// Stub.
    pub async fn open_session(&self, identity: &Arc<Identity>, _client: IpAddr) {
        if let Some(store) = &self.store {
            let key = &identity.keys.session;
            let mut command = cmd("SET");
            command.arg(&**key).arg(1).arg("EX").arg(100);
            let _ = store.call(Lane::Decisions, store.shard(key.as_bytes()), &command).await;
        }
    }
}
