//! Reads `[api_tokens]`: whether the gateway accepts tokens that it issued itself, and in which header beside
//! `Authorization`.

use http::HeaderName;

use super::identity::is_reserved;
use super::reader::Reader;
use super::spec::{ApiTokens, Identity, TokenSource};

pub(super) fn api_tokens(root: &Reader<'_>, identity: &Identity) -> ApiTokens {
    let reader = root.section("api_tokens");
    let header = reader.opt::<HeaderName>("header");
    if let Some(name) = &header {
        let named = [&identity.user_id_header, &identity.plan_header, &identity.permissions_header];
        let mut told = named.into_iter().flatten().chain(identity.claim_headers.iter().map(|(_, name)| name));
        let source = TokenSource::Header(name.clone());
        if is_reserved(name) {
            let message = format!("{name} already has a meaning; accepted: a header of its own, or \"\"");
            reader.refuse("header", message);
        } else if told.any(|told| told == name) || identity.token_from.contains(&source) {
            reader.refuse("header", format!("{name} is used twice; accepted: a header of its own, or \"\""));
        }
    }
    ApiTokens { enabled: reader.get("enabled"), header }
}
