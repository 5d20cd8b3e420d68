//! Plain hits in memory, answered before pingora's cache is set up, or after it gave up to wait.

use pingora::Result;
use pingora::cache::{CachePhase, NoCacheReason};
use pingora::proxy::Session;

use super::{Exchange, respond};
use crate::cache::transaction::Ready;

/// The stored response that is fresh in memory and wanted as it is, if there is one.
pub(super) fn find(session: &mut Session, exchange: &mut Exchange) -> Option<Ready> {
    let now = exchange.gateway.shared.clock.now();
    let transaction = exchange.transaction()?;
    // HTTP/2 tells of a body by no header: it shows only here.
    if !session.as_downstream_mut().is_body_empty() {
        return None;
    }
    let request = session.req_header();
    transaction.ready(&request.method, &request.headers, now)
}

/// Whether pingora gave up to wait for another request's fetch, or was told to.
pub(super) fn waited_in_vain(session: &Session) -> bool {
    matches!(
        session.cache.phase(),
        CachePhase::Disabled(
            NoCacheReason::CacheLockTimeout
                | NoCacheReason::CacheLockRetryLimit
                | NoCacheReason::CacheLockGiveUp
        )
    )
}

/// Answers with it, as pingora does with its hits.
pub(super) async fn answer(session: &mut Session, ready: Ready, exchange: &mut Exchange) -> Result<()> {
    let Ready { mut head, stored } = ready;
    respond::stamp(session, head.status, &mut head.headers, exchange);
    session.write_response_header(Box::new(head.into()), stored.length() == 0).await?;
    let mut at = 0;
    while let Some(piece) = stored.read(at) {
        at += piece.len();
        session.write_response_body(Some(piece), at == stored.length()).await?;
    }
    Ok(())
}
