//! Asks the store about a caller whose request goes nowhere: whether the token holds, and nothing else.

use std::sync::Arc;

use super::admit::revoked;
use super::api_token;
use super::exchange::{self, Answer, Guards};
use super::gateway::Gateway;
use super::refusal::Refusal;
use crate::api_tokens::Used;
use crate::clock::UnixMillis;
use crate::identity::{Identity, IdentityRefusal};
use crate::limits::Checks;

/// Asks whether the token is revoked or its user banned or cut off, and what is stored of an API token; with `required`
/// no answer is a refusal too.
///
/// # Errors
/// The refusal.
pub(super) async fn vouch(
    gateway: &Gateway,
    identity: &Arc<Identity>,
    api_token: Option<&Used>,
    required: bool,
    now: UnixMillis,
) -> Result<(), Refusal> {
    let shared = &*gateway.shared;
    let Some(store) = &shared.store else { return Ok(()) };
    let guards = Guards { identity: Some(identity), required };
    let mut none = Checks::new();
    none.begin(now);
    let watched = [None, api_token.map(|used| used.entry.key.as_bytes())];
    match exchange::ask(store, shared, guards, watched, None, &mut none, now).await {
        Ok(Answer::Revoked | Answer::CutOff) => Err(revoked(gateway, Some(identity), now)),
        Ok(Answer::Banned) => Err(Refusal::Banned),
        Err(_) if required => Err(IdentityRefusal::Undecided.into()),
        Ok(Answer::Judged { watched: [_, seen], .. }) => match api_token {
            Some(used) => api_token::recheck(gateway, used, &seen, None, required, now),
            None => Ok(()),
        },
        Err(_) => Ok(()),
    }
}
