//! What must be asked for before a caller can be judged, because this instance has not heard of it yet. It is rare: what
//! was learned is remembered where it belongs, and the request is judged anew.

use super::gateway::Gateway;
use super::refusal::Refusal;
use crate::api_tokens::Presented;
use crate::clock::UnixMillis;
use crate::identity::{IdentityRefusal, Refused, Unheard};
use crate::jwks::Answer;

/// Something to be looked up.
#[derive(Debug)]
pub(super) enum Lookup {
    /// A key that an issuer may publish.
    Key(Unheard),
    /// The record of an API token, for a request that came at this moment.
    ApiToken(Presented, UnixMillis),
}

/// What to look up so that `token`, which was refused, might be accepted after all.
pub(super) fn of(gateway: &Gateway, token: &str, refused: Refused) -> Option<Lookup> {
    match refused {
        Refused::UnknownKey | Refused::BadSignature => gateway.verifier.unheard(token).map(Lookup::Key),
        _ => None,
    }
}

/// Looks it up. Whether anything was learned shows when the request is judged anew.
///
/// # Errors
/// The refusal, where it is certain already or where nothing can be known at the moment.
pub(super) async fn resolve(gateway: &Gateway, lookup: Lookup) -> Result<(), Refusal> {
    match lookup {
        Lookup::Key(Unheard { issuer, kid }) => {
            let keeper = gateway.keepers.get(issuer).and_then(Option::as_ref);
            let Some(keeper) = keeper else { return Err(IdentityRefusal::Undecided.into()) };
            match keeper.ask(kid.as_deref()).await {
                Answer::Known => Ok(()),
                Answer::Absent => Err(IdentityRefusal::Token(Refused::UnknownKey).into()),
                Answer::Unavailable => Err(IdentityRefusal::Undecided.into()),
            }
        }
        Lookup::ApiToken(presented, now) => {
            let shared = &gateway.shared;
            let looked_up = shared.api_tokens.look_up(&presented, now, || shared.clock.now()).await;
            looked_up.map_err(|_| IdentityRefusal::Undecided.into())
        }
    }
}
