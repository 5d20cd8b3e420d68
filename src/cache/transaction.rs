//! One request's way through the cache: a line for each of pingora's callbacks.
//! Decisions are the policy's; this file only translates between it and pingora.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use pingora::cache::key::{CacheHashKey, HashBinary};
use pingora::cache::{
    CacheKey, CacheMeta, CachePhase, ForcedFreshness, HitHandler, HttpCache, NoCacheReason, RespCacheable,
};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorSource, ErrorType};

use super::Cache;
use super::directives::{RequestDirectives, ResponseDirectives};
use super::entry::{system_time, unix};
use super::generations::{Fingerprint, Resolution, Write};
use super::key::{self, Target, Unstamped};
use super::policy::{self, NotStored, Response};
use super::request::{self, Bypass};
use super::settings::RouteCache;
use super::status::{Outcome, Report};
use super::storage::{Hit, Tier};
use super::tag::{Tags, key_tag, route_tag, user_tag};
use super::vary;
use crate::clock::{UnixMillis, millis};

/// A request that may use the cache once the generations of its tags are known.
#[derive(Debug)]
pub struct Pending {
    route: Arc<RouteCache>,
    key: Unstamped,
    public_key: Box<str>,
    tags: Tags,
    directives: RequestDirectives,
    authorised: bool,
}

impl Pending {
    /// Judges a request to `route`; `param` looks up its path parameters.
    pub fn new<'a>(
        route: &Arc<RouteCache>,
        method: &Method,
        headers: &HeaderMap,
        target: Target<'_>,
        param: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Self, Bypass> {
        let directives = request::judge(route, method, headers, target.caller)?;
        let user = target.caller.user();
        let mut tags = Tags::epoch();
        tags.push(route_tag(&route.name));
        if !route.shared {
            tags.push(user_tag(user));
        }
        for template in &route.tags {
            tags.push(template.render(user, &param));
        }
        let key = Unstamped::new(route, target);
        let public_key = key.public_key();
        tags.push(key_tag(&public_key));
        Ok(Self {
            route: Arc::clone(route),
            key,
            public_key,
            tags,
            directives,
            authorised: headers.contains_key(header::AUTHORIZATION),
        })
    }

    /// The tags whose generations are to be read: `Generations::keys(pending.tags())`.
    pub const fn tags(&self) -> &Tags {
        &self.tags
    }

    /// Goes on with what Redis answered; on `Err` the request goes past the cache.
    pub fn with_values<V: AsRef<[u8]>>(
        self,
        cache: &'static Cache,
        values: &[Option<V>],
        now: UnixMillis,
    ) -> Result<Transaction, Bypass> {
        match cache.generations().resolve(&self.tags, values, now) {
            Resolution::Ready { fingerprint, absent } => {
                let mut transaction = self.stamp(cache, fingerprint, now);
                transaction.absent = absent;
                Ok(transaction)
            }
            Resolution::Malformed => Err(Bypass::Malformed),
        }
    }

    /// Goes on from memory: Redis is away, or there is none.
    pub fn locally(self, cache: &'static Cache, now: UnixMillis) -> Transaction {
        let fingerprint = cache.generations().local(&self.tags);
        // Where the shared tier is, the generations are: who could not ask for these need not ask for those.
        let mut transaction = self.stamp(cache, fingerprint, now);
        transaction.read_memory_only();
        transaction
    }

    fn stamp(self, cache: &'static Cache, fingerprint: Fingerprint, now: UnixMillis) -> Transaction {
        let bytes = self.key.stamp(fingerprint);
        let hash = key::hash(&bytes);
        let mut key = CacheKey::new(bytes, "");
        // Hashed once here instead of in each of pingora's steps.
        key.set_primary_bin_override(hash);
        Transaction {
            cache,
            route: self.route,
            key,
            public_key: self.public_key,
            directives: self.directives,
            authorised: self.authorised,
            may_ask_remote: true,
            absent: Vec::new(),
            started: now,
            sent: now,
            freshening: None,
            by_request: false,
            had_stale: false,
            bypassed: false,
            storable: false,
            not_stored: None,
            tier: None,
        }
    }
}

/// A request that uses the cache.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "facts about one request, each set in its own phase")]
pub struct Transaction {
    cache: &'static Cache,
    route: Arc<RouteCache>,
    key: CacheKey,
    public_key: Box<str>,
    directives: RequestDirectives,
    authorised: bool,
    /// Whether there is time left for the shared tier.
    may_ask_remote: bool,
    /// Generations that Redis lacks.
    absent: Vec<Write>,
    /// When the request came.
    started: UnixMillis,
    /// When it last went upstream.
    sent: UnixMillis,
    /// Fields of a 304, which pingora merges only in part.
    freshening: Option<HeaderMap>,
    by_request: bool,
    had_stale: bool,
    /// The object was predicted not to be storable, so the cache was not asked.
    bypassed: bool,
    storable: bool,
    not_stored: Option<NotStored>,
    tier: Option<Tier>,
}

impl Transaction {
    /// The time a request may wait for the store is used up: the shared tier is not asked.
    pub const fn read_memory_only(&mut self) {
        self.may_ask_remote = false;
    }

    /// For `request_cache_filter`.
    pub fn enable(&self, http: &mut HttpCache) {
        self.cache.enable(http, self.route.max_object_bytes, self.may_ask_remote);
    }

    /// For `cache_key_callback`.
    pub fn key(&self) -> CacheKey {
        self.key.clone()
    }

    /// For `cache_vary_filter`.
    pub fn variance(&self, stored: &HeaderMap, request: &HeaderMap) -> Option<HashBinary> {
        vary::variance(&self.route.vary, stored, request)
    }

    /// For `cache_hit_filter`: what the request's own directives make of a stored response. `waited`: the
    /// request waited for another one (`session.cache.lock_duration().is_some()`); `background`: it is a
    /// revalidation of pingora's own (`session.subrequest_ctx.is_some()`).
    pub fn found(
        &mut self,
        meta: &CacheMeta,
        handler: &HitHandler,
        is_fresh: bool,
        waited: bool,
        background: bool,
        now: UnixMillis,
    ) -> Option<ForcedFreshness> {
        let hit = handler.as_any().downcast_ref::<Hit>();
        self.tier = hit.map(Hit::tier);
        self.had_stale = !is_fresh;
        if background {
            return None;
        }
        // Fetched or validated for another request since this one came: as good as done for this one
        // (RFC 9111 section 4), or requests for what is never fresh would be served one by one.
        if waited && hit.is_some_and(|hit| hit.updated() >= self.started) {
            self.had_stale = false;
            return (!is_fresh).then_some(ForcedFreshness::ForceFresh);
        }
        let fresh_until = unix(meta.fresh_until());
        if self.is_refused(meta, fresh_until, now) {
            self.by_request = true;
            return Some(ForcedFreshness::ForceExpired);
        }
        let stale_for = now.millis_since(fresh_until);
        let tolerated = self.directives.max_stale.is_some_and(|most| stale_for <= most.saturating_mul(1_000));
        (!is_fresh && tolerated && self.may_be_stale(meta)).then_some(ForcedFreshness::ForceFresh)
    }

    /// RFC 9111 section 5.2.1: too old, or not fresh for long enough, for this request.
    fn is_refused(&self, meta: &CacheMeta, fresh_until: UnixMillis, now: UnixMillis) -> bool {
        let asked = &self.directives;
        let age = now.millis_since(unix(meta.epoch()));
        let left = fresh_until.millis_since(now);
        asked.no_cache
            || asked.max_age.is_some_and(|most| most == 0 || age > most.saturating_mul(1_000))
            || asked.min_fresh.is_some_and(|least| left < least.saturating_mul(1_000))
    }

    fn may_be_stale(&self, meta: &CacheMeta) -> bool {
        self.route.override_origin
            || !ResponseDirectives::parse(meta.headers()).forbids_stale(self.route.shared)
    }

    /// For `proxy_upstream_filter`: the request wants no answer but a stored one; it gets 504. `background`: it
    /// is pingora's own revalidation, which repeats the client's headers but is not the client's.
    pub const fn refuses_upstream(&self, background: bool) -> bool {
        self.directives.only_if_cached && !background
    }

    /// For `upstream_request_filter`: from now on the response grows old (RFC 9111 section 4.2.3).
    pub const fn sent_upstream(&mut self, now: UnixMillis) {
        self.sent = now;
    }

    /// For `upstream_response_filter`, before `response_cache_filter`: remembers what a 304 brings.
    pub fn upstream_responded(&mut self, response: &ResponseHeader) {
        self.freshening = (response.status == StatusCode::NOT_MODIFIED).then(|| response.headers.clone());
    }

    /// For `response_cache_filter`; `request` are the downstream request's headers.
    pub fn judge(
        &mut self,
        http: &HttpCache,
        response: &ResponseHeader,
        request: &HeaderMap,
        now: UnixMillis,
    ) -> RespCacheable {
        self.bypassed = http.bypassing();
        let mut header = response.clone();
        if let Some(fresh) = self.freshening.take() {
            freshen(&mut header, &fresh);
        }
        let judged = self.storable(&header, request, now);
        let stored = match judged {
            Ok(stored) => stored,
            Err(why) => {
                self.not_stored = Some(why);
                return RespCacheable::Uncacheable(NoCacheReason::Custom(why.as_str()));
            }
        };
        self.storable = true;
        sanitise_for_storage(&mut header);
        // RFC 9110 section 6.6.1: who stores a response without a date adds the time it came.
        if !header.headers.contains_key(header::DATE) {
            drop(header.insert_header(header::DATE, httpdate::fmt_http_date(system_time(now))));
        }
        // pingora compares with `>=`: what is never fresh has to end before now.
        let fresh_until = if stored.fresh_for.is_zero() {
            UnixMillis(now.0.saturating_sub(1_000))
        } else {
            now.plus(stored.fresh_for)
        };
        let seconds = |window: Duration| u32::try_from(window.as_secs()).unwrap_or(u32::MAX);
        let mut meta = CacheMeta::new(
            system_time(fresh_until),
            system_time(now),
            seconds(stored.stale_while_revalidate),
            seconds(stored.stale_if_error),
            header,
        );
        if !stored.age.is_zero() {
            let epoch = UnixMillis(now.0.saturating_sub(millis(stored.age)));
            meta.set_epoch_override(system_time(epoch));
        }
        RespCacheable::Cacheable(meta)
    }

    /// After [`Self::judge`]: the generations to be written with `SET NX`, in the background, because a response
    /// is being stored under them. Nothing depends on whether that works but the number of fetches.
    pub fn generations_to_create(&mut self) -> Vec<Write> {
        if self.storable { std::mem::take(&mut self.absent) } else { Vec::new() }
    }

    fn storable(
        &self,
        header: &ResponseHeader,
        request: &HeaderMap,
        now: UnixMillis,
    ) -> Result<policy::Storable, NotStored> {
        let response = Response {
            status: header.status,
            headers: &header.headers,
            authorised: self.authorised,
            requested_at: self.sent,
            now,
        };
        let stored = policy::judge(&self.route, self.cache.max_lifetime(), response)?;
        match self.variance(&header.headers, request) {
            Some(variance) if !self.cache.admits_variant(self.key.primary_bin(), &variance) => {
                Err(NotStored::TooManyVariants)
            }
            _ => Ok(stored),
        }
    }

    /// For `response_filter`: says what happened in the response's headers. `show_key`: with `X-Cache-Key`.
    pub fn report(
        &self,
        http: &HttpCache,
        header: &mut ResponseHeader,
        show_key: bool,
        now: UnixMillis,
    ) -> Outcome {
        let phase = http.phase();
        let outcome = match phase {
            CachePhase::Disabled(_) if self.bypassed => Outcome::Bypass,
            _ => Outcome::of(phase),
        };
        let ttl = http.maybe_cache_meta().filter(|_| outcome != Outcome::Bypass).map(|meta| {
            let until = i64::try_from(unix(meta.fresh_until()).as_secs()).unwrap_or(i64::MAX);
            until.saturating_sub(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
        });
        let detail = match phase {
            _ if self.not_stored.is_some() => self.not_stored.map(NotStored::as_str),
            CachePhase::Disabled(NoCacheReason::CacheLockGiveUp) => Some("not_shareable"),
            CachePhase::Disabled(NoCacheReason::CacheLockTimeout | NoCacheReason::CacheLockRetryLimit) => {
                Some("waited_too_long")
            }
            CachePhase::Disabled(
                NoCacheReason::ResponseTooLarge | NoCacheReason::PredictedResponseTooLarge,
            ) => Some("too_large"),
            CachePhase::Disabled(NoCacheReason::UpstreamError) => Some("upstream_error"),
            CachePhase::Bypass => Some("predicted"),
            CachePhase::Hit => self.tier.map(Tier::as_str),
            _ => None,
        };
        Report {
            outcome,
            had_stale: self.had_stale,
            by_request: self.by_request,
            stored: self.storable && matches!(phase, CachePhase::Miss | CachePhase::Expired),
            collapsed: http.lock_duration().is_some(),
            ttl,
            detail,
            key: show_key.then_some(&*self.public_key),
        }
        .write(header);
        outcome
    }

    /// Where a hit came from.
    pub const fn tier(&self) -> Option<Tier> {
        self.tier
    }

    /// Why the response was not stored, once that is decided.
    pub const fn not_stored(&self) -> Option<NotStored> {
        self.not_stored
    }
}

/// For `should_serve_stale`: the windows are pingora's to check; this says which failures count (RFC 5861
/// section 4). Without an error pingora asks whether to serve stale while it revalidates.
pub fn serves_stale(error: Option<&Error>) -> bool {
    match error {
        None => true,
        Some(error) => match error.etype() {
            ErrorType::HTTPStatus(status) => matches!(status, 500 | 502 | 503 | 504),
            _ => *error.esource() != ErrorSource::Downstream,
        },
    }
}

/// RFC 9111 section 3.2: the stored response takes every field of a 304 that does not describe its own framing.
/// `Vary` stays: pingora cannot move a stored body to another variant.
fn freshen(stored: &mut ResponseHeader, fresh: &HeaderMap) {
    const KEPT: [HeaderName; 7] = [
        header::CONTENT_LENGTH,
        header::CONTENT_ENCODING,
        header::CONTENT_TYPE,
        header::CONTENT_RANGE,
        header::TRANSFER_ENCODING,
        header::VARY,
        header::CONNECTION,
    ];
    // The body is as current as the 304, whether that has a date or gets one when it is stored.
    stored.remove_header(&header::DATE);
    for name in fresh.keys().filter(|name| !KEPT.contains(name)) {
        stored.remove_header(name);
        for value in fresh.get_all(name) {
            // Name and value come from a header map: they are valid.
            drop(stored.append_header(name.clone(), value.clone()));
        }
    }
}

/// Removes what belongs to one exchange and must never be replayed: hop-by-hop fields (RFC 9111 section 3.1),
/// cookies, rate-limit state, request identifiers, `Age`, and the gateway's own reports.
pub fn sanitise_for_storage(header: &mut ResponseHeader) {
    const DROPPED: [&str; 17] = [
        "age",
        "cache-status",
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "set-cookie",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-cache",
        "x-request-id",
    ];
    let nominated: Vec<HeaderName> = header
        .headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    let dropped: Vec<HeaderName> = header
        .headers
        .keys()
        .filter(|name| {
            let text = name.as_str();
            DROPPED.contains(&text)
                || nominated.contains(name)
                || ["x-ratelimit-", "x-rate-limit-", "ratelimit", "x-tollgate-", "x-cache-"]
                    .iter()
                    .any(|prefix| text.starts_with(prefix))
        })
        .cloned()
        .collect();
    for name in dropped {
        header.remove_header(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::request::Caller;
    use crate::cache::settings::Settings;
    use crate::clock::ManualClock;
    use http::HeaderValue;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

    fn transaction(route: RouteCache, cache_control: &'static str) -> Transaction {
        let cache = Cache::leak(&Settings::default(), 1024, None, false, Arc::new(ManualClock::at(NOW)));
        let mut headers = HeaderMap::new();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache_control));
        let target =
            Target { scheme: "http", host: "h", path: "/", query: None, caller: Caller::User("ada") };
        let pending = Pending::new(&Arc::new(route), &Method::GET, &headers, target, |_| None).unwrap();
        pending.locally(cache, NOW)
    }

    fn response(status: u16, fields: &[(&'static str, &'static str)]) -> ResponseHeader {
        let mut header = ResponseHeader::build(status, None).unwrap();
        for (name, value) in fields {
            header.append_header(*name, *value).unwrap();
        }
        header
    }

    fn judged(cached: &mut Transaction, response: &ResponseHeader, now: UnixMillis) -> CacheMeta {
        cached.judge(&HttpCache::new(), response, &HeaderMap::new(), now).unwrap_meta()
    }

    #[test]
    fn nothing_of_one_exchange_is_replayed_in_another() {
        let mut header = response(
            200,
            &[
                ("X-RateLimit-Remaining", "3"),
                ("RateLimit", "x"),
                ("RateLimit-Policy", "x"),
                ("Set-Cookie", "a=b"),
                ("X-Request-Id", "1"),
                ("X-Tollgate-Node", "1"),
                ("X-Cache", "HIT"),
                ("X-Cache-Key", "1"),
                ("Keep-Alive", "timeout=9"),
                ("Transfer-Encoding", "chunked"),
                ("Connection", "close, X-Hop"),
                ("X-Hop", "1"),
                ("Age", "9"),
                ("ETag", "\"1\""),
                ("X-Kept", "1"),
            ],
        );
        sanitise_for_storage(&mut header);
        let mut left: Vec<_> = header.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["etag", "x-kept"]);
    }

    #[test]
    fn a_stored_response_has_a_date_and_the_age_it_came_with() {
        let mut cached = transaction(RouteCache::new("r"), "");
        cached.sent_upstream(NOW);
        let meta =
            judged(&mut cached, &response(200, &[("cache-control", "max-age=60"), ("age", "20")]), NOW);
        assert_eq!(unix(meta.fresh_until()), NOW.plus(Duration::from_secs(40)));
        assert_eq!(unix(meta.epoch()), UnixMillis(NOW.0 - 20_000));
        assert!(meta.headers().contains_key("date") && !meta.headers().contains_key("age"));
    }

    #[test]
    fn a_304_without_a_date_makes_an_old_response_fresh_again() {
        let mut cached = transaction(RouteCache::new("r"), "");
        let fields = [("cache-control", "max-age=60"), ("etag", "\"1\""), ("x-n", "1")];
        let old = judged(&mut cached, &response(200, &fields), NOW);
        let later = NOW.plus(Duration::from_secs(3_600));
        cached.sent_upstream(later);
        cached.upstream_responded(&response(304, &[("etag", "\"1\""), ("x-n", "2"), ("vary", "*")]));
        let meta = judged(&mut cached, old.response_header(), later);
        assert_eq!(unix(meta.fresh_until()), later.plus(Duration::from_secs(60)));
        assert_eq!(meta.headers().get("x-n").unwrap(), "2");
        assert!(!meta.headers().contains_key("vary"));
    }

    /// A stored response of no particular tier.
    struct NoHit;
    #[async_trait::async_trait]
    impl pingora::cache::storage::HandleHit for NoHit {
        async fn read_body(&mut self) -> pingora::Result<Option<bytes::Bytes>> {
            Ok(None)
        }
        async fn finish(
            self: Box<Self>,
            _: &'static (dyn pingora::cache::Storage + Sync),
            _: &CacheKey,
            _: &pingora::cache::trace::SpanHandle,
        ) -> pingora::Result<()> {
            Ok(())
        }
        fn as_any(&self) -> &(dyn std::any::Any + Send + Sync) {
            self
        }
        fn as_any_mut(&mut self) -> &mut (dyn std::any::Any + Send + Sync) {
            self
        }
    }

    #[test]
    fn request_directives_decide_over_a_stored_response() {
        let stored = |fields: &[(&'static str, &'static str)], age: u64| {
            let epoch = UnixMillis(NOW.0 - age * 1_000);
            let fresh_until = epoch.plus(Duration::from_secs(60));
            CacheMeta::new(system_time(fresh_until), system_time(epoch), 0, 0, response(200, fields))
        };
        let plain: &[(&str, &str)] = &[("cache-control", "max-age=60")];
        let strict: &[(&str, &str)] = &[("cache-control", "max-age=60, must-revalidate")];
        let (expire, fresh) = (Some(ForcedFreshness::ForceExpired), Some(ForcedFreshness::ForceFresh));
        let table = [
            ("", plain, 10, None),
            ("", plain, 70, None),
            ("no-cache", plain, 10, expire),
            ("max-age=0", plain, 0, expire),
            ("max-age=5", plain, 10, expire),
            ("max-age=20", plain, 10, None),
            ("min-fresh=51", plain, 10, expire),
            ("min-fresh=50", plain, 10, None),
            ("max-stale=10", plain, 70, fresh),
            ("max-stale=9", plain, 70, None),
            ("max-stale", plain, 7_000, fresh),
            ("max-stale", strict, 70, None),
        ];
        for (asked, fields, age, expected) in table {
            let mut cached = transaction(RouteCache::new("r"), asked);
            let handler: HitHandler = Box::new(NoHit);
            let found = cached.found(&stored(fields, age), &handler, age <= 60, false, false, NOW);
            assert_eq!(found, expected, "{asked} at {age}");
        }
        let mut cached = transaction(RouteCache::new("r"), "no-cache, only-if-cached");
        let handler: HitHandler = Box::new(NoHit);
        assert_eq!(cached.found(&stored(plain, 70), &handler, false, false, true, NOW), None);
        assert!(cached.refuses_upstream(false) && !cached.refuses_upstream(true));
    }

    #[test]
    fn only_failures_of_the_backend_are_answered_with_stale_responses() {
        let upstream = |etype| Error::create(etype, ErrorSource::Upstream, None, None);
        assert!(serves_stale(None));
        assert!(serves_stale(Some(&upstream(ErrorType::HTTPStatus(503)))));
        assert!(!serves_stale(Some(&upstream(ErrorType::HTTPStatus(501)))));
        assert!(serves_stale(Some(&upstream(ErrorType::ConnectRefused))));
        let client = Error::create(ErrorType::ConnectionClosed, ErrorSource::Downstream, None, None);
        assert!(!serves_stale(Some(&client)));
    }
}
