//! What the gateway says in every answer that is not its own: limits, the cache, the request.

use http::header::TRANSFER_ENCODING;
use http::{HeaderMap, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::{Exchange, headers};
use crate::cache::status;
use crate::header_names::{TOLLGATE_CACHE_CONTROL, X_CACHE, X_REQUEST_ID};
use crate::metrics::CacheOutcome;
use crate::pipeline::CacheUse;

/// For `response_filter`.
pub(super) fn finish(session: &mut Session, response: &mut ResponseHeader, exchange: &mut Exchange) {
    if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS {
        return;
    }
    let sent = response.status;
    headers::edit_response(response, |fields| stamp(session, sent, fields, exchange));
}

/// Adds the gateway's fields to those of an answer with the status `sent`.
pub(super) fn stamp(
    session: &mut Session,
    sent: StatusCode,
    fields: &mut HeaderMap,
    exchange: &mut Exchange,
) {
    if session.req_header().version == Version::HTTP_10 && fields.contains_key(TRANSFER_ENCODING) {
        // RFC 9112 section 6.1: such a client knows no chunks; the end of the connection ends the body.
        fields.remove(TRANSFER_ENCODING);
        session.set_keepalive(None);
    }
    let show_key = exchange.gateway.expose_cache_key;
    let now = exchange.gateway.shared.clock.now();
    for (name, value) in exchange.context.quota.drain(..) {
        fields.insert(name, value);
    }
    fields.insert(&X_REQUEST_ID, exchange.context.request_id.clone());
    // Said to this gateway alone; what is stored keeps it.
    fields.remove(&TOLLGATE_CACHE_CONTROL);
    match exchange.context.admitted_mut().map(|admitted| &mut admitted.cache) {
        Some(CacheUse::Used(transaction)) => {
            transaction.tell_age(&session.cache, fields);
            let reported = transaction.report(&session.cache, sent, fields, show_key, now);
            let waited = session.cache.lock_duration().is_some();
            exchange.context.cache_outcome = Some(cache_outcome(reported, waited));
        }
        Some(CacheUse::Bypassed(why)) => {
            status::write_bypass(fields, *why);
            exchange.context.cache_outcome = Some(CacheOutcome::Bypass);
        }
        Some(CacheUse::NotConfigured) | None => {
            // What another cache says stays its business; this name is the gateway's.
            fields.remove(&X_CACHE);
        }
    }
}

const fn cache_outcome(outcome: status::Outcome, waited: bool) -> CacheOutcome {
    match outcome {
        status::Outcome::Hit if waited => CacheOutcome::Coalesced,
        status::Outcome::Hit => CacheOutcome::Hit,
        status::Outcome::Stale => CacheOutcome::Stale,
        status::Outcome::Revalidated => CacheOutcome::Revalidated,
        status::Outcome::Miss => CacheOutcome::Miss,
        status::Outcome::Bypass => CacheOutcome::Bypass,
    }
}
