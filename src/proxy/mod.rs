//! The public listeners: pingora's phases, each a few lines that hand over to the floors below. Nothing is
//! decided here but which phase a thing happens in.

mod connections;
mod downstream;
mod exchange;
mod failure;
mod fetch;
mod headers;
mod login;
mod peek;
mod respond;
mod service;
mod stored;
mod warm;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::header::{RANGE, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode, Uri, Version};
use pingora::cache::key::HashBinary;
use pingora::cache::{CacheKey, CacheMeta, ForcedFreshness, HitHandler, NoCacheReason, RespCacheable};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::proxy::{FailToProxy, ProxyHttp, RangeType, Session, range_header_filter};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};

use crate::cache::conditions::{not_modified, range_counts};
use crate::cache::request::Bypass;
use crate::cache::transaction::{REFRESH, Transaction};
use crate::metrics::Held;
use crate::pipeline::give_back::settle_counts;
use crate::pipeline::{self, Admission, CacheUse, Context, Gateway, Origin, Refusal, Reply, outcome};
use crate::route::Logout;
use crate::sessions::login::NotOpened;

pub use self::exchange::Exchange;
use self::peek::Incoming;
pub use self::service::{h2c, http1};
pub use self::warm::Warmer;
use self::warm::Warming;

/// What the gateway answers to a logout of its own.
const LOGGED_OUT: &str = r#"{"msg":"Logged out successfully"}"#;

/// Most ranges that are cut for one request; of one that asks for more the whole is sent.
const MAX_RANGES: usize = 16;

/// The gateway as pingora runs it: one per process, judging by whatever configuration is current.
#[derive(Clone)]
pub struct Proxy {
    current: Arc<ArcSwap<Gateway>>,
    draining: Arc<AtomicBool>,
}

impl Proxy {
    /// A proxy that judges by `current`; while `draining` is set, connections close after their answer.
    pub fn new(current: Arc<ArcSwap<Gateway>>, draining: Arc<AtomicBool>) -> Self {
        Self { current, draining }
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        let gateway = self.current.load_full();
        let in_flight = Held::new(&gateway.shared.metrics.families().requests_in_flight);
        let context = Context::new(gateway.shared.clock.now(), in_flight);
        Exchange { gateway, context, carried: None, login_body: None, warming: None }
    }

    /// None: pingora's own one compresses, which is off, but would be asked at every step of every request.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    fn on_connection_reuse(
        &self,
        _session: &mut Session,
        exchange: &mut Exchange,
        given: Box<dyn Any + Send + Sync>,
    ) {
        exchange.warming = Warming::of(given);
        if let Some(warming) = &exchange.warming {
            exchange.context.in_flight = Held::new(&warming.in_flight);
        }
    }

    async fn early_request_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<()> {
        if session.subrequest_ctx.is_none() {
            connections::head_arrived();
        }
        let timeouts = exchange.gateway.timeouts;
        let downstream = session.as_downstream_mut();
        // pingora sets "for ever" on each parse, so this must be said for each request; "off" stays, which it sets
        // where the client closes or is of HTTP/1.0.
        let kept = downstream.get_keepalive().is_some() && !self.draining.load(Ordering::Relaxed);
        downstream.set_keepalive(kept.then_some(timeouts.keepalive.as_secs().max(1)));
        downstream.set_read_timeout(Some(timeouts.body));
        downstream.set_write_timeout(Some(timeouts.write));
        // RFC 9112 section 9.3.2. The transport forgives a chunk without a size, so that what seems to follow a
        // chunked body may be a part of it: there the connection ends instead.
        let chunked = downstream.req_header().headers.contains_key(TRANSFER_ENCODING);
        downstream.set_pipelining_enabled(!chunked);
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<bool> {
        let origin = match &exchange.warming {
            Some(warming) => warming.origin(),
            None if session.subrequest_ctx.is_some() => Origin::Revalidation,
            None => Origin::Client,
        };
        let gateway = Arc::clone(&exchange.gateway);
        let peer = downstream::peer(session);
        let mut incoming = Incoming::new(session, gateway.timeouts.body);
        let judged = pipeline::admit(&gateway, &mut incoming, peer, origin, &mut exchange.context).await;
        let continued = incoming.continued;
        exchange.carried = incoming.carried.take();
        if let Err(refusal) = judged {
            exchange.refuse(session, refusal).await?;
            return Ok(true);
        }
        if let Admission::Answered(reply) = &exchange.context.admission {
            let reply = reply.clone();
            exchange.answer(session, &reply).await?;
            return Ok(true);
        }
        let Some(admitted) = exchange.admitted() else {
            exchange.refuse(session, Refusal::Internal).await?;
            return Ok(true);
        };
        if let Some(target) = &admitted.target.rewritten {
            let uri: Uri = target.parse().map_err(|_| Error::new(ErrorType::InvalidHTTPHeader))?;
            session.req_header_mut().set_uri(uri);
        }
        if admitted.route.logout == Some(Logout::Gateway) {
            if let Some(identity) = &admitted.identity {
                gateway.log_out(&admitted.route, identity).await;
            }
            exchange.answer(session, &Reply::json(LOGGED_OUT)).await?;
            return Ok(true);
        }
        if let Some(detail) = admitted.route.health {
            exchange.answer(session, &gateway.health_reply(detail)).await?;
            return Ok(true);
        }
        if origin == Origin::Client
            && let Some(ready) = stored::find(session, exchange)
        {
            stored::answer(session, ready, exchange).await.map_err(Error::into_down)?;
            return Ok(true);
        }
        if !continued && downstream::awaits_continue(session) {
            // RFC 9110 section 10.1.1. The expectation ends here, since not every upstream knows it; a client that
            // nobody asks for its body may wait for ever.
            session.write_continue_response().await?;
        }
        Ok(false)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        exchange: &mut Exchange,
    ) -> Result<()> {
        if let Some(carried) = exchange.carried.take() {
            *body = Some(match body.take() {
                Some(piece) => [carried, piece].concat().into(),
                None => carried,
            });
        }
        // What flows through a tunnel after the upgrade is no request body.
        if let Some(piece) = body
            && !session.was_upgraded()
        {
            let context = &mut exchange.context;
            context.body_bytes = context.body_bytes.saturating_add(piece.len() as u64);
            let bytes = context.body_bytes;
            if exchange.admitted().is_some_and(|admitted| bytes > admitted.route.max_body) {
                return Err(Error::explain(ErrorType::HTTPStatus(413), "the body is larger than announced"));
            }
        }
        Ok(())
    }

    fn request_cache_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<()> {
        let background = session.subrequest_ctx.is_some();
        // HTTP/2 tells of a body by no header: it shows only here.
        let has_body = !background && !session.as_downstream_mut().is_body_empty();
        if let Some(admitted) = exchange.context.admitted_mut()
            && let CacheUse::Used(transaction) = &mut admitted.cache
        {
            if has_body {
                admitted.cache = CacheUse::Bypassed(Bypass::Body);
            } else {
                match &exchange.warming {
                    Some(warming) => transaction.keep_warm(warming.window),
                    None if background => transaction.refresh(),
                    None => {}
                }
                transaction.enable(&mut session.cache);
            }
        }
        Ok(())
    }

    fn cache_key_callback(&self, _session: &Session, exchange: &mut Exchange) -> Result<CacheKey> {
        exchange
            .transaction()
            .map(Transaction::key)
            .ok_or_else(|| Error::explain(ErrorType::InternalError, "the cache was enabled without a key"))
    }

    fn cache_vary_filter(
        &self,
        meta: &CacheMeta,
        exchange: &mut Exchange,
        request: &RequestHeader,
    ) -> Option<HashBinary> {
        exchange.transaction()?.variance(meta, &request.headers)
    }

    async fn cache_hit_filter(
        &self,
        session: &mut Session,
        meta: &CacheMeta,
        handler: &mut HitHandler,
        is_fresh: bool,
        exchange: &mut Exchange,
    ) -> Result<Option<ForcedFreshness>> {
        let now = exchange.gateway.shared.clock.now();
        let waited = session.cache.lock_duration().is_some();
        let background = session.subrequest_ctx.is_some();
        let warming = exchange.warming.is_some();
        let Some(transaction) = exchange.transaction() else { return Ok(None) };
        let ending = transaction.is_ending(handler, now) && is_fresh;
        if is_fresh
            && !ending
            && let Some(refreshing) = session.subrequest_ctx.as_mut()
        {
            // Somebody was quicker. pingora ends here without giving back the right to write it was started with.
            refreshing.release_write_lock();
        }
        let found = transaction.found(meta, handler, is_fresh, waited, background, now);
        if !ending || found.is_some() {
            return Ok(found);
        }
        if background || warming {
            return Ok(Some(REFRESH));
        }
        // One of the hits begins the refresh; all of them are hits.
        let begins =
            transaction.begins_refresh(now) && downstream::prepare_repetition(session, &exchange.context);
        if begins && let Some(transaction) = exchange.transaction() {
            transaction.begin_refresh();
        }
        Ok(begins.then_some(REFRESH))
    }

    fn should_serve_stale(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        error: Option<&Error>,
    ) -> bool {
        let now = exchange.gateway.shared.clock.now();
        // Without an error the question is whether to serve stale while a request of pingora's own refreshes it.
        // A request that refreshes never starts another one.
        // One that keeps a response warm does it itself, and is not content with a stale one.
        let mut may_refresh = || {
            session.subrequest_ctx.is_none()
                && exchange
                    .transaction_read()
                    .is_some_and(|transaction| transaction.serves_while_refreshing(now))
                && downstream::prepare_repetition(session, &exchange.context)
        };
        let serves = exchange.warming.is_none()
            && (error.is_some() || may_refresh())
            && exchange.transaction().is_some_and(|transaction| transaction.serves_stale(error, now));
        if serves && error.is_some_and(|error| !matches!(error.etype(), ErrorType::HTTPStatus(_))) {
            // pingora ends the client's connection with the upstream's, and would not say so.
            session.set_keepalive(None);
        }
        serves
    }

    fn cache_not_modified_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        _exchange: &mut Exchange,
    ) -> Result<bool> {
        let request = session.req_header();
        Ok(not_modified(&request.method, &request.headers, response.status, &response.headers))
    }

    fn range_header_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        _exchange: &mut Exchange,
    ) -> RangeType {
        let request = session.req_header();
        if response.status == StatusCode::OK
            && request.headers.contains_key(RANGE)
            && !range_counts(&request.method, &request.headers, &response.headers)
        {
            return RangeType::None;
        }
        range_header_filter(request, response, Some(MAX_RANGES))
    }

    async fn proxy_upstream_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<bool> {
        let background = session.subrequest_ctx.is_some();
        if exchange.transaction().is_some_and(|transaction| transaction.refuses_upstream(background)) {
            session.cache.disable(NoCacheReason::DeclinedToUpstream);
            exchange.refuse(session, Refusal::OnlyIfCached).await?;
            return Ok(false);
        }
        if stored::waited_in_vain(session)
            && let Some(transaction) = exchange.transaction()
        {
            transaction.waited_in_vain();
            // Where many wait, the last of them hear late that what they wait for has come.
            if !background
                && exchange.warming.is_none()
                && let Some(ready) = stored::find(session, exchange)
            {
                stored::answer(session, ready, exchange).await.map_err(Error::into_down)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn upstream_peer(&self, _session: &mut Session, exchange: &mut Exchange) -> Result<Box<HttpPeer>> {
        fetch::peer(exchange)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        exchange: &mut Exchange,
        mut error: Box<Error>,
    ) -> Box<Error> {
        fetch::not_connected(exchange, &mut error);
        error
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        exchange: &mut Exchange,
        client_reused: bool,
    ) -> Box<Error> {
        let mut error = error.more_context(format!("Peer: {peer}"));
        fetch::broken(session, &mut error, exchange, client_reused);
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        fetch::request(session, request, exchange)
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        fetch::response(session, response, exchange).await
    }

    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        exchange: &mut Exchange,
    ) -> Result<Option<Duration>> {
        login::piece(exchange, body.as_deref(), end_of_stream);
        Ok(None)
    }

    fn upstream_response_trailer_filter(
        &self,
        _session: &mut Session,
        _trailers: &mut HeaderMap,
        exchange: &mut Exchange,
    ) -> Result<()> {
        // Only trailers tell here that the body has ended.
        login::end(exchange);
        Ok(())
    }

    fn response_cache_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<RespCacheable> {
        let shared = Arc::clone(&exchange.gateway.shared);
        let Some(transaction) = exchange.transaction() else {
            return Ok(RespCacheable::Uncacheable(NoCacheReason::NeverEnabled));
        };
        let now = shared.clock.now();
        let judged = transaction.judge(&session.cache, response, &session.req_header().headers, now);
        shared.create_generations(transaction.generations_to_create());
        Ok(judged)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        respond::finish(session, response, exchange);
        Ok(())
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        _exchange: &mut Exchange,
    ) -> Result<Option<Duration>> {
        // The cache fetches a whole response for a HEAD too; HTTP/2 would send its body on.
        if session.req_header().method == Method::HEAD {
            *body = None;
        }
        Ok(None)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        exchange: &mut Exchange,
    ) -> FailToProxy {
        // The write may have happened although its answer was lost.
        let method = session.req_header().method.clone();
        let refusal = failure::refusal(error);
        // A client that breaks off has asked all the same.
        let ours = refusal.as_ref().map(Refusal::status).filter(StatusCode::is_server_error);
        exchange.settle(&method, None, ours, Vec::new()).await;
        let Some(refusal) = refusal else {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        let code = refusal.status().as_u16();
        // Who keeps responses warm says so once.
        if code >= 500 && exchange.warming.is_none() {
            let upstream = exchange.upstream().map(|upstream| upstream.settings().name.clone());
            tracing::warn!(
                upstream = upstream.as_deref(),
                member = exchange.context.tried.last().map(ToString::to_string),
                request_id = exchange.context.request_id.to_str().unwrap_or_default(),
                status = code,
                cause = %error.etype().as_str(),
                "no answer from the upstream"
            );
        }
        if session.response_written().is_none() {
            // The connection closes: how much of the request was read is not certain.
            session.set_keepalive(None);
            let _ = exchange.refuse(session, refusal).await;
        } else {
            exchange.context.refusal = Some(refusal);
        }
        FailToProxy { error_code: code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, exchange: &mut Exchange) {
        // Over HTTP/1 an exchange ends with the client's answer: to HEAD, to a condition or to a range that may be long
        // before the upstream's, whose fill is then dropped. Who waits for it fetches at once.
        session.cache.release_write_lock(NoCacheReason::UpstreamError);
        if session.subrequest_ctx.is_some() {
            return;
        }
        if let Some(warming) = &exchange.warming {
            warming.tell(session, exchange, error.is_some());
            return;
        }
        match error {
            // HTTP/2 may end a stream after its last piece, which no filter is told of.
            None => login::end(exchange),
            Some(_) => login::give_up(exchange, NotOpened::Incomplete),
        }
        connections::answered();
        let status = session.response_written().map_or(0, |response| response.status.as_u16());
        let bytes = session.body_bytes_sent() as u64;
        // The upstream was never asked: a stored response, or a reply of the gateway's own.
        let provisional = std::mem::take(&mut exchange.context.provisional);
        settle_counts(&exchange.gateway, provisional, (status > 0).then_some(status)).await;
        let request = session.req_header();
        let sent = outcome::Sent {
            method: &request.method,
            uri: &request.uri,
            // An HTTP/2 request that was repeated in the background was made readable as HTTP/1.
            version: if session.as_downstream().is_http2() { Version::HTTP_2 } else { request.version },
            headers: &request.headers,
            status,
            bytes,
        };
        outcome::record(&exchange.gateway, &exchange.context, &sent);
    }

    fn request_summary(&self, session: &Session, exchange: &Exchange) -> String {
        // For pingora's own log lines. A query may hold what nobody is to read there.
        let request = session.req_header();
        let id = exchange.context.request_id.to_str().unwrap_or_default();
        format!("{} {} {id}", request.method, request.uri.path())
    }

    fn suppress_error_log(&self, _session: &Session, _exchange: &Exchange, _error: &Error) -> bool {
        // `fail_to_proxy` logs what an operator can act on, once.
        true
    }
}
