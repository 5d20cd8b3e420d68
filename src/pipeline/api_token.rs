//! Requests that carry an API token: who calls by it, and whether it still holds by what the store says. What a token
//! is, and where it is kept, is not its business.

use super::exchange::Seen;
use super::gateway::Gateway;
use super::refusal::Refusal;
use crate::api_tokens::{Presented, Used, Verdict, is_api_token};
use crate::clock::UnixMillis;
use crate::identity::resolve::permit;
use crate::identity::{Access, Credential, IdentityRefusal, Refused, Source};

/// What the credential is as an API token; `None` where it is to be judged as something else.
pub(super) fn judge(gateway: &Gateway, credential: &Credential<'_>, now: UnixMillis) -> Option<Verdict> {
    let meant = match credential.source {
        Source::Bearer => is_api_token(&credential.token),
        Source::ApiToken(_) => true,
        Source::Cookie(_) | Source::Header(_) | Source::Query(_) => false,
    };
    if !(gateway.api_tokens && meant) {
        return None;
    }
    Some(match Presented::parse(&credential.token) {
        Some(presented) => gateway.shared.api_tokens.judge(&presented, now),
        None => Verdict::Refused(Refused::Malformed),
    })
}

/// Whether the caller may go on by what is stored of the token, or, where nobody could say and no answer is `required`,
/// by what it was known by.
///
/// # Errors
/// The refusal.
pub(super) fn recheck(
    gateway: &Gateway,
    used: &Used,
    seen: &Seen,
    access: Option<&Access>,
    required: bool,
    now: UnixMillis,
) -> Result<(), Refusal> {
    let tokens = &gateway.shared.api_tokens;
    let stored = match seen {
        Seen::Unknown if required && tokens.is_shared() => return Err(IdentityRefusal::Undecided.into()),
        Seen::Unknown => {
            tokens.note_use(used, now);
            return Ok(());
        }
        Seen::Absent => None,
        Seen::Value(stored) => Some(stored),
    };
    let Some(newer) = tokens.recheck(used, stored, now).map_err(IdentityRefusal::Token)? else {
        tokens.note_use(used, now);
        return Ok(());
    };
    // The request was counted, and its cache looked at, for somebody else.
    if newer.identity.account != used.identity.account {
        return Err(IdentityRefusal::Undecided.into());
    }
    if let Some(access) = access {
        permit(access, Some(&newer.identity))?;
    }
    tokens.note_use(&newer, now);
    Ok(())
}
