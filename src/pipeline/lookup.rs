//! What must be asked for before a caller can be judged, because this instance has not heard of it yet. It is rare: what
//! was learned is remembered where it belongs, and the request is judged anew.

use super::gateway::Gateway;
use super::refusal::Refusal;
use crate::identity::Refused;

/// Something to be looked up.
#[derive(Debug)]
pub(super) enum Lookup {}

/// What to look up so that `token`, which was refused, might be accepted after all.
pub(super) fn of(_gateway: &Gateway, _token: &str, _refused: Refused) -> Option<Lookup> {
    None
}

/// Looks it up. Whether anything was learned shows when the request is judged anew.
///
/// # Errors
/// The refusal, where it is certain already or where nothing can be known at the moment.
#[allow(clippy::unused_async, reason = "what is looked up is far away")]
pub(super) async fn resolve(_gateway: &Gateway, lookup: Lookup) -> Result<(), Refusal> {
    match lookup {}
}
