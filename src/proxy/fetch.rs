//! To the upstream and back: which member is asked, what becomes of a failure, and what is changed of the request and
//! of the head of its answer.

use std::sync::Arc;
use std::time::Instant;

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};

use super::{Exchange, failure, headers, login};
use crate::cache::request::is_safe;
use crate::metrics::UpstreamFailure;
use crate::pipeline::overwritten::named_by;
use crate::upstream::{self, forward};

/// For `upstream_peer`.
pub(super) fn peer(exchange: &mut Exchange) -> Result<Box<HttpPeer>> {
    let now = exchange.gateway.shared.clock.now();
    let picked = exchange
        .upstream()
        .and_then(|upstream| Some((Arc::clone(upstream), upstream.pick(&exchange.context.tried, now)?)));
    let Some((upstream, address)) = picked else {
        if let Some(upstream) = exchange.upstream() {
            upstream.metrics().errors.count(UpstreamFailure::NoMember);
        }
        return Err(Error::explain(ErrorType::HTTPStatus(503), "no member is left to ask"));
    };
    exchange.context.tried.push(address);
    exchange.context.asked_at = Some(Instant::now());
    Ok(upstream::peer(upstream.settings(), address))
}

/// For `fail_to_connect`.
pub(super) fn not_connected(exchange: &Exchange, error: &mut Error) {
    let now = exchange.gateway.shared.clock.now();
    if let (Some(upstream), Some(&address)) = (exchange.upstream(), exchange.context.tried.last()) {
        upstream.metrics().errors.count(failure::upstream_failure(error));
        upstream.rest(address, now);
        let tries = exchange.context.tried.len();
        let allowed = usize::try_from(upstream.settings().connect_retries).unwrap_or(usize::MAX);
        let others = upstream.has_other(&exchange.context.tried);
        // Nothing was sent yet: another member may be asked, whatever the method.
        error.set_retry(tries <= allowed && others);
    }
}

/// For `error_while_proxy`.
pub(super) fn broken(session: &Session, error: &mut Error, exchange: &mut Exchange, client_reused: bool) {
    if *error.esource() == pingora::ErrorSource::Upstream
        && let Some(upstream) = exchange.upstream()
    {
        upstream.metrics().errors.count(failure::upstream_failure(error));
    }
    if !session.req_header().method.is_idempotent() || session.as_ref().retry_buffer_truncated() {
        error.set_retry(false);
    } else {
        error.retry.decide_reuse(client_reused);
    }
    if error.retry() {
        // The connection had been idle too long; the same member may be asked anew.
        exchange.context.tried.pop();
    }
}

/// For `upstream_request_filter`.
pub(super) fn request(session: &Session, request: &mut RequestHeader, exchange: &mut Exchange) -> Result<()> {
    // Another attempt sends the body from its beginning.
    exchange.context.body_bytes = 0;
    let now = exchange.gateway.shared.clock.now();
    if let Some(transaction) = exchange.transaction() {
        transaction.sent_upstream(now);
    }
    let Exchange { gateway, context, .. } = exchange;
    let (Some(client), Some(trace), Some(admitted)) = (context.client, &context.trace, context.admitted())
    else {
        return Err(Error::explain(ErrorType::InternalError, "a request went on without admission"));
    };
    let is_h2 = session.as_downstream().is_http2();
    let forwarded = forward::Forwarded {
        client: client.ip,
        peer: client.peer,
        peer_trusted: client.peer_trusted,
        scheme: context.scheme.as_str(),
        host: &context.host,
        request_id: &context.request_id,
        trace,
        identity: forward::Identity::default(),
    };
    let keep = forward::Keep { websocket: admitted.target.websocket, te_trailers: is_h2 };
    headers::edit_request(request, |fields| {
        forward::forward(&gateway.forward, fields, keep, &forwarded);
        if let Some(identity) = &admitted.identity {
            fields.extend(identity.headers.iter().cloned());
        }
        // What was routed and cached by is what the upstream gets, to the letter: capitals, a final dot and a port
        // that goes without saying are not part of it.
        let same = |host: &HeaderValue| host.as_bytes() == context.authority.as_bytes();
        if !fields.get(HOST).is_some_and(same)
            && let Ok(host) = HeaderValue::from_str(&context.authority)
        {
            fields.insert(HOST, host);
        }
    });
    Ok(())
}

/// For `upstream_response_filter`.
pub(super) async fn response(
    session: &mut Session,
    response: &mut ResponseHeader,
    exchange: &mut Exchange,
) -> Result<()> {
    let switching = response.status == StatusCode::SWITCHING_PROTOCOLS;
    if response.status.is_informational() && !switching {
        return Ok(());
    }
    if switching && !exchange.admitted().is_some_and(|admitted| admitted.target.websocket) {
        // A tunnel that nobody asked for would carry whatever is said next past every check.
        return Err(
            Error::explain(ErrorType::InvalidHTTPHeader, "an upgrade that was not asked for").into_up()
        );
    }
    if let Some(asked_at) = exchange.context.asked_at {
        let elapsed = asked_at.elapsed();
        exchange.context.upstream_micros = Some(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX));
        if let Some(upstream) = exchange.upstream() {
            upstream.metrics().duration_seconds.observe(elapsed.as_secs_f64());
        }
    }
    headers::edit_response(response, |fields| forward::strip_response(fields, switching));
    if let Some(transaction) = exchange.transaction() {
        transaction.upstream_responded(response, session.cache.maybe_cache_meta());
    }
    let status = Some(response.status);
    let method = session.req_header().method.clone();
    let opening = login::head(exchange, &method, response);
    let named = if is_safe(&method) || !(response.status.is_success() || response.status.is_redirection()) {
        Vec::new()
    } else {
        let target = session.req_header().uri.path_and_query().map_or("/", PathAndQuery::as_str);
        named_by(&exchange.gateway, &exchange.context, target, &response.headers)
    };
    exchange.settle(&method, status, status, named).await;
    if let Some(opening) = opening {
        opening.done().await;
    }
    Ok(())
}
