//! What the store holds about the caller beside guards and counters, read in the same round trip: the session and the
//! API token. It decides whether the caller may go on.

use super::exchange::{Seen, WATCHED, Watched};
use super::limit::Limiting;
use super::refusal::Refusal;
use crate::identity::IdentityRefusal;

/// Position of the session among the watched keys; the API token follows.
const SESSION: usize = 0;

impl Limiting<'_> {
    /// The keys to read with the exchange.
    pub(super) fn watched(&self) -> Watched<'_> {
        let mut watched = Watched::default();
        let (Some(identity), true) = (self.identity, self.route.session) else { return watched };
        if let Some(session) = watched.get_mut(SESSION) {
            *session = Some(identity.keys.session.as_bytes());
        }
        watched
    }

    /// Whether the caller may go on by what the store holds, or, where it holds nothing or is away, by what is known
    /// here.
    ///
    /// # Errors
    /// The refusal.
    pub(super) async fn judge_watched(&self, seen: [Seen; WATCHED]) -> Result<(), Refusal> {
        let [session, api_token] = seen;
        self.judge_api_token(&api_token)?;
        if self.route.session {
            // A session that was just opened may not have arrived yet.
            Box::pin(self.judge_session(session)).await?;
        }
        Ok(())
    }

    /// Whether the route's session is alive.
    #[allow(clippy::unused_async, clippy::unused_self)]
    async fn judge_session(&self, _seen: Seen) -> Result<(), Refusal> {
        Err(IdentityRefusal::NoSession.into())
    }

    /// Whether the record of the API token is still the one that the caller was known by.
    #[allow(clippy::unnecessary_wraps, clippy::unused_self)]
    fn judge_api_token(&self, _seen: &Seen) -> Result<(), Refusal> {
        Ok(())
    }
}
