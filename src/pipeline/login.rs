//! What becomes of the token in the answer to a login: it is judged like any caller's, and then opens a session.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::gateway::Gateway;
use super::lookup::{Lookup, Lookups};
use super::refusal::Refusal;
use super::sessions::Opened;
use crate::api_tokens::is_api_token;
use crate::clock::UnixMillis;
use crate::identity::{Identity, IdentityRefusal, Refused, Unverified};
use crate::metrics::SessionEvent;
use crate::route::Route;
use crate::sessions::login::NotOpened;

/// Longest time that an answer is held back for its session. Longer than the store takes to answer; only a key that
/// must be fetched first may take more.
const PATIENCE: Duration = Duration::from_secs(1);
/// Milliseconds between two lines about answers of one route without a token: clients may cause them at will.
const SILENCE: u64 = 60_000;

/// A session that is being opened, whether anybody waits for it or not.
#[derive(Debug)]
pub struct Opening(JoinHandle<()>);

impl Opening {
    /// Waits until the session is open, or clear that it will not be; at most a second.
    pub async fn done(self) {
        // Past that it goes on by itself.
        let _ = tokio::time::timeout(PATIENCE, self.0).await;
    }
}

/// A login that the upstream of `route` has accepted.
#[derive(Clone)]
pub struct Login {
    /// What the token is judged by.
    pub gateway: Arc<Gateway>,
    /// The route that was asked.
    pub route: Arc<Route>,
    /// Who asked.
    pub client: IpAddr,
}

impl Login {
    /// Opens the session of the token that was found. A token of a key that is known here is a session of this
    /// instance when this returns; the store is told meanwhile.
    pub fn found(self, token: Result<&str, NotOpened>) -> Option<Opening> {
        let judged = match token {
            Ok(token) => self.judge(token),
            Err(reason) => Err(Unopened::For(reason)),
        };
        match judged {
            Ok(identity) => {
                self.note(&identity);
                Some(Opening(tokio::spawn(async move { self.open(&identity).await })))
            }
            Err(Unopened::Unknown(lookup)) => {
                let token = token.unwrap_or_default().to_owned();
                Some(Opening(tokio::spawn(async move { self.look_up(lookup, &token).await })))
            }
            Err(Unopened::For(reason)) => {
                self.tell(reason);
                None
            }
        }
    }

    /// Notes that no session was to be opened.
    fn tell(&self, reason: NotOpened) {
        self.gateway.shared.sessions.count(SessionEvent::NotOpened);
        self.explain(reason);
    }

    fn explain(&self, reason: NotOpened) {
        let Some(login) = &self.route.login else { return };
        login.not_opened.count(reason);
        if matches!(reason, NotOpened::Absent | NotOpened::MediaType)
            && !is_due(&login.absence_told, self.gateway.shared.clock.now())
        {
            return;
        }
        tracing::warn!(route = &*self.route.name, reason = reason.as_str(), "a login opened no session");
    }

    fn judge(&self, token: &str) -> Result<Arc<Identity>, Unopened> {
        if is_api_token(token) {
            return Err(Unopened::For(NotOpened::ApiToken));
        }
        let shared = &self.gateway.shared;
        let now = shared.clock.now();
        let identity = self.gateway.verifier.examine(token, now).map_err(|unverified| match unverified {
            Unverified::Unheard(unheard) => Unopened::Unknown(Lookup::Key(unheard)),
            Unverified::Refused(refused) => Unopened::For(refused.into()),
        })?;
        if shared.known.is_revoked(&identity, now) {
            return Err(Unopened::For(Refused::Revoked.into()));
        }
        Ok(identity)
    }

    async fn look_up(self, mut lookup: Lookup, token: &str) {
        let mut lookups = Lookups::default();
        let judged = loop {
            match lookups.resolve(&self.gateway, lookup).await {
                Ok(()) => {}
                Err(Refusal::Identity(IdentityRefusal::Token(refused))) => break Err(refused.into()),
                Err(_) => break Err(NotOpened::KeysUnavailable),
            }
            match self.judge(token) {
                Ok(identity) => break Ok(identity),
                Err(Unopened::For(reason)) => break Err(reason),
                Err(Unopened::Unknown(next)) => lookup = next,
            }
        };
        match judged {
            Ok(identity) => {
                self.note(&identity);
                self.open(&identity).await;
            }
            Err(reason) => self.tell(reason),
        }
    }

    fn note(&self, identity: &Identity) {
        let shared = &self.gateway.shared;
        shared.note_login(identity, self.client, shared.clock.now());
    }

    async fn open(&self, identity: &Arc<Identity>) {
        match self.gateway.shared.open_session(identity, self.client).await {
            Opened::Opened | Opened::Evicted(_) | Opened::Pending => {}
            Opened::Revoked => self.explain(NotOpened::Revoked),
            Opened::Refused => self.explain(NotOpened::NotStored),
        }
    }
}

/// Whether it is to be said again; for one of those who ask at the same time.
fn is_due(told: &AtomicU64, now: UnixMillis) -> bool {
    let last = told.load(Ordering::Relaxed);
    (last == 0 || now.0.abs_diff(last) >= SILENCE)
        && told.compare_exchange(last, now.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// Why a token opens no session, at least not yet.
enum Unopened {
    For(NotOpened),
    Unknown(Lookup),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_once_a_minute_whichever_way_the_clock_goes() {
        let told = AtomicU64::new(0);
        let due = |at: u64| is_due(&told, UnixMillis(at));
        assert!(due(1_000_000) && !due(1_000_000) && !due(1_059_999));
        assert!(due(1_060_000) && !due(1_000_001));
        assert!(due(1_000_000) && !due(1_000_001));
    }
}
