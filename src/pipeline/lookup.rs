//! What must be asked for before a caller can be judged, because this instance has not heard of it yet. It is rare: what
//! was learned is remembered where it belongs, and the request is judged anew.

use super::gateway::Gateway;
use super::refusal::Refusal;
use crate::api_tokens::Id;
use crate::identity::{IdentityRefusal, Refused};

/// Something to be looked up.
#[derive(Debug)]
pub(super) enum Lookup {
    /// The record of an API token.
    ApiToken(Id),
}

/// What to look up so that `token`, which was refused, might be accepted after all.
pub(super) fn of(_gateway: &Gateway, _token: &str, _refused: Refused) -> Option<Lookup> {
    None
}

/// Looks it up. Whether anything was learned shows when the request is judged anew.
///
/// # Errors
/// The refusal, where it is certain already or where nothing can be known at the moment.
pub(super) async fn resolve(gateway: &Gateway, lookup: Lookup) -> Result<(), Refusal> {
    let shared = &gateway.shared;
    match lookup {
        Lookup::ApiToken(id) => {
            let looked_up = shared.api_tokens.look_up(id, || shared.clock.now()).await;
            looked_up.map_err(|_| IdentityRefusal::Undecided.into())
        }
    }
}
