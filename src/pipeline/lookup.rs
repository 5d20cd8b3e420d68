//! What must be asked for before a caller can be judged, because this instance has not heard of it yet. It is rare: what
//! was learned is remembered where it belongs, and the request is judged anew.

use tokio::time::{Instant, timeout_at};

use super::gateway::Gateway;
use super::refusal::Refusal;
use crate::api_tokens::Presented;
use crate::clock::UnixMillis;
use crate::identity::{IdentityRefusal, Unheard};
use crate::jwks::{Answer, LONGEST_WAIT};

/// Most lookups for one request: what is known may change while it waits, but not for ever.
const MOST: u8 = 4;

/// Something to be looked up.
#[derive(Debug)]
pub(super) enum Lookup {
    /// A key that an issuer may publish.
    Key(Box<Unheard>),
    /// The record of an API token, for a request that came at this moment.
    ApiToken(Presented, UnixMillis),
}

/// The lookups of one request.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    made: u8,
    /// When keys were first asked for; however often they change, no request waits longer than any does.
    began: Option<Instant>,
    /// Whether keys were read since the request came: what they do not verify is refused.
    keys_are_new: bool,
}

impl Lookups {
    /// Whether the request is judged for the first time.
    pub(super) const fn none_yet(&self) -> bool {
        self.made == 0
    }

    /// Looks it up. Whether anything was learned shows when the request is judged anew.
    ///
    /// # Errors
    /// The refusal, where it is certain by now or where nothing can be known at the moment.
    pub(super) async fn resolve(&mut self, gateway: &Gateway, lookup: Lookup) -> Result<(), Refusal> {
        self.made += 1;
        match lookup {
            Lookup::Key(unheard) => self.look_for_key(gateway, &unheard).await,
            // What was looked up may be forgotten at once, when it changes, but not for ever.
            Lookup::ApiToken(..) if self.made > MOST => Err(IdentityRefusal::Undecided.into()),
            Lookup::ApiToken(presented, now) => {
                let shared = &gateway.shared;
                let looked_up = shared.api_tokens.look_up(&presented, now, || shared.clock.now()).await;
                looked_up.map_err(|_| IdentityRefusal::Undecided.into())
            }
        }
    }

    async fn look_for_key(&mut self, gateway: &Gateway, unheard: &Unheard) -> Result<(), Refusal> {
        let keeper = gateway.keepers.get(unheard.issuer).and_then(Option::as_ref);
        let Some(keeper) = keeper.filter(|_| self.made <= MOST) else {
            return Err(IdentityRefusal::Undecided.into());
        };
        if self.keys_are_new {
            keeper.remember(unheard);
            return Err(IdentityRefusal::Token(unheard.refused).into());
        }
        let until = *self.began.get_or_insert_with(Instant::now) + LONGEST_WAIT;
        let answer = timeout_at(until, keeper.ask(unheard)).await;
        match answer.unwrap_or(Answer::Unavailable) {
            Answer::Changed => Ok(()),
            Answer::Renewed => {
                self.keys_are_new = true;
                Ok(())
            }
            Answer::Final => Err(IdentityRefusal::Token(unheard.refused).into()),
            Answer::Unavailable => Err(IdentityRefusal::Undecided.into()),
        }
    }
}
