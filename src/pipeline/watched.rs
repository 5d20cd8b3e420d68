//! What the store holds about the caller beside guards and counters, read in the same round trip: the session and the
//! API token. It decides whether the caller may go on.

use super::api_token;
use super::exchange::{Seen, WATCHED, Watched};
use super::limit::Limiting;
use super::refusal::Refusal;
use super::sessions::Judged;
use crate::identity::IdentityRefusal;

/// Position of the session among the watched keys.
const SESSION: usize = 0;
/// Position of the record of the API token.
const API_TOKEN: usize = 1;

impl Limiting<'_> {
    /// The keys to read with the exchange.
    pub(super) fn watched(&self) -> Watched<'_> {
        let mut watched = Watched::default();
        if let (Some(used), Some(record)) = (self.api_token, watched.get_mut(API_TOKEN)) {
            *record = Some(used.entry.key.as_bytes());
        }
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
            self.judge_session(session).await?;
        }
        Ok(())
    }

    /// Whether the route's session is alive.
    async fn judge_session(&self, seen: Seen) -> Result<(), Refusal> {
        let Some(identity) = self.identity else { return Err(IdentityRefusal::NoSession.into()) };
        match self.gateway.shared.judge_session(identity, seen, self.now).await {
            Judged::Unknown if self.route.refuse_unknown => Err(IdentityRefusal::Undecided.into()),
            // Nothing is known against it.
            Judged::Live | Judged::Unknown => Ok(()),
            Judged::None => Err(IdentityRefusal::NoSession.into()),
        }
    }

    /// Whether the record of the API token is still the one that the caller was known by.
    fn judge_api_token(&self, seen: &Seen) -> Result<(), Refusal> {
        let Some(used) = self.api_token else { return Ok(()) };
        let Self { gateway, route, now, .. } = *self;
        api_token::recheck(gateway, used, seen, Some(&route.access), route.refuse_unknown, now)
    }
}
