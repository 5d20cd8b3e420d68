//! The public listeners: pingora's phases, each a few lines that hand over to the floors below. Nothing is
//! decided here but which phase a thing happens in.

mod connections;
mod downstream;
mod failure;
mod headers;
mod login;
mod peek;
mod service;
mod stored;
mod warm;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::header::{HOST, RANGE, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use pingora::cache::key::HashBinary;
use pingora::cache::{CacheKey, CacheMeta, ForcedFreshness, HitHandler, NoCacheReason, RespCacheable};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::{FailToProxy, ProxyHttp, RangeType, Session, range_header_filter};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};

use crate::cache::conditions::{not_modified, range_counts};
use crate::cache::request::{Bypass, is_safe, write_invalidates};
use crate::cache::transaction::REFRESH;
use crate::cache::{Transaction, status};
use crate::header_names::{TOLLGATE_CACHE_CONTROL, X_CACHE, X_REQUEST_ID};
use crate::metrics::{CacheOutcome, Held, UpstreamFailure};
use crate::pipeline::give_back::settle_counts;
use crate::pipeline::overwritten::named_by;
use crate::pipeline::{
    self, Admission, Admitted, CacheUse, Context, Gateway, Origin, Refusal, Reply, find_param, outcome,
};
use crate::route::Logout;
use crate::sessions::login::{BodyCopy, NotOpened};
use crate::upstream::{self, Upstream, forward};

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

/// A request with the configuration it is judged by.
pub struct Exchange {
    gateway: Arc<Gateway>,
    context: Context,
    /// The beginning of the body, where it was read and pingora does not repeat it.
    carried: Option<Bytes>,
    /// A copy of the body of the answer to a login, as far as it has come.
    login_body: Option<Box<BodyCopy>>,
    /// The request is one of the gateway's own, which keeps a response warm.
    warming: Option<Box<Warming>>,
}

impl Proxy {
    /// A proxy that judges by `current`; while `draining` is set, connections close after their answer.
    pub fn new(current: Arc<ArcSwap<Gateway>>, draining: Arc<AtomicBool>) -> Self {
        Self { current, draining }
    }
}

impl Exchange {
    fn admitted(&self) -> Option<&Admitted> {
        self.context.admitted()
    }

    fn transaction(&mut self) -> Option<&mut Transaction> {
        match &mut self.context.admitted_mut()?.cache {
            CacheUse::Used(transaction) => Some(transaction),
            CacheUse::NotConfigured | CacheUse::Bypassed(_) => None,
        }
    }

    fn transaction_read(&self) -> Option<&Transaction> {
        match &self.admitted()?.cache {
            CacheUse::Used(transaction) => Some(transaction),
            CacheUse::NotConfigured | CacheUse::Bypassed(_) => None,
        }
    }

    fn upstream(&self) -> Option<&Arc<Upstream>> {
        self.admitted()?.route.upstream.as_ref()
    }

    /// Answers with a reply of the gateway's own.
    async fn answer(&mut self, session: &mut Session, reply: &Reply) -> Result<()> {
        let mut stamp = std::mem::take(&mut self.context.quota);
        stamp.push((X_REQUEST_ID.clone(), self.context.request_id.clone()));
        downstream::write(session, reply, &stamp).await
    }

    async fn refuse(&mut self, session: &mut Session, refusal: Refusal) -> Result<()> {
        let reply = refusal.reply();
        self.context.refusal = Some(refusal);
        self.answer(session, &reply).await
    }

    /// The tags that a write on this route changes: what the route declares, and the very target.
    fn changed_tags(&self) -> Vec<Box<str>> {
        let Some(admitted) = self.admitted() else { return Vec::new() };
        let user = admitted.identity.as_ref().map(|identity| &*identity.account);
        let param = |name: &str| find_param(&admitted.params, name);
        let declared = admitted.route.invalidates.iter().map(|template| template.render(user, param));
        declared.chain(admitted.overwrites.iter().cloned()).collect()
    }

    /// What must have happened before the client may see an answer to its request. `status` is the upstream's, and
    /// `judged` the one that counts of failures go by; `None` where nobody knows. `named` are tags of what the answer
    /// says to have changed.
    async fn settle(
        &mut self,
        method: &Method,
        status: Option<StatusCode>,
        judged: Option<StatusCode>,
        named: Vec<Box<str>>,
    ) {
        let provisional = std::mem::take(&mut self.context.provisional);
        let counted = settle_counts(&self.gateway, provisional, judged.map(|status| status.as_u16()));
        let shared = &self.gateway.shared;
        let mut tags = if write_invalidates(method, status) { self.changed_tags() } else { Vec::new() };
        for tag in named {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        let invalidated = async {
            if !tags.is_empty() {
                shared.invalidate(tags).await;
            }
        };
        let logged_out = async {
            if let Some(admitted) = self.admitted()
                && admitted.route.logout == Some(Logout::Forward)
                && status.is_some_and(|status| status.is_success())
                && let Some(identity) = &admitted.identity
            {
                self.gateway.log_out(&admitted.route, identity).await;
            }
        };
        // Side by side: the client waits for the store once.
        tokio::join!(invalidated, logged_out, counted);
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
            stored::answer(self, session, ready, exchange).await.map_err(Error::into_down)?;
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
            .map(|transaction| transaction.key())
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
        // Where many wait, the last of them hear late that what they wait for has come.
        if stored::waited_too_long(session)
            && !background
            && exchange.warming.is_none()
            && let Some(ready) = stored::find(session, exchange)
        {
            stored::answer(self, session, ready, exchange).await.map_err(Error::into_down)?;
            return Ok(false);
        }
        Ok(true)
    }

    async fn upstream_peer(&self, _session: &mut Session, exchange: &mut Exchange) -> Result<Box<HttpPeer>> {
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

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        exchange: &mut Exchange,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let now = exchange.gateway.shared.clock.now();
        if let (Some(upstream), Some(&address)) = (exchange.upstream(), exchange.context.tried.last()) {
            upstream.metrics().errors.count(failure::upstream_failure(&error));
            upstream.rest(address, now);
            let tries = exchange.context.tried.len();
            let allowed = usize::try_from(upstream.settings().connect_retries).unwrap_or(usize::MAX);
            let others = upstream.has_other(&exchange.context.tried);
            // Nothing was sent yet: another member may be asked, whatever the method.
            error.set_retry(tries <= allowed && others);
        }
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
        if *error.esource() == pingora::ErrorSource::Upstream
            && let Some(upstream) = exchange.upstream()
        {
            upstream.metrics().errors.count(failure::upstream_failure(&error));
        }
        let mut error = error.more_context(format!("Peer: {peer}"));
        if !session.req_header().method.is_idempotent() || session.as_ref().retry_buffer_truncated() {
            error.set_retry(false);
        } else {
            error.retry.decide_reuse(client_reused);
        }
        if error.retry() {
            // The connection had been idle too long; the same member may be asked anew.
            exchange.context.tried.pop();
        }
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        // Another attempt sends the body from its beginning.
        exchange.context.body_bytes = 0;
        let now = exchange.gateway.shared.clock.now();
        if let Some(transaction) = exchange.transaction() {
            transaction.sent_upstream(now);
        }
        let Exchange { gateway, context, .. } = exchange;
        let (Some(client), Some(trace), Some(admitted)) =
            (context.client, &context.trace, context.admitted())
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

    async fn upstream_response_filter(
        &self,
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
        let named = if is_safe(&method) || !(response.status.is_success() || response.status.is_redirection())
        {
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
        if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(());
        }
        if session.req_header().version == Version::HTTP_10
            && response.headers.contains_key(TRANSFER_ENCODING)
        {
            // RFC 9112 section 6.1: such a client knows no chunks; the end of the connection ends the body.
            response.remove_header(&TRANSFER_ENCODING);
            session.set_keepalive(None);
        }
        let show_key = exchange.gateway.expose_cache_key;
        let now = exchange.gateway.shared.clock.now();
        for (name, value) in exchange.context.quota.drain(..) {
            response.insert_header(name, value)?;
        }
        response.insert_header(X_REQUEST_ID.clone(), exchange.context.request_id.clone())?;
        // Said to this gateway alone; what is stored keeps it.
        response.remove_header(&TOLLGATE_CACHE_CONTROL);
        match exchange.context.admitted_mut().map(|admitted| &mut admitted.cache) {
            Some(CacheUse::Used(transaction)) => {
                transaction.tell_age(&session.cache, response);
                let reported = transaction.report(&session.cache, response, show_key, now);
                let waited = session.cache.lock_duration().is_some();
                exchange.context.cache_outcome = Some(cache_outcome(reported, waited));
            }
            Some(CacheUse::Bypassed(why)) => {
                status::write_bypass(response, *why);
                exchange.context.cache_outcome = Some(CacheOutcome::Bypass);
            }
            Some(CacheUse::NotConfigured) | None => {
                // What another cache says stays its business; this name is the gateway's.
                response.remove_header(&X_CACHE);
            }
        }
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
