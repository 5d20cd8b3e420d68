//! One request's way through the cache: a line for each of pingora's callbacks.
//! Decisions are the policy's; this file only translates between it and pingora.

mod ahead;
mod fields;
mod pending;
mod ready;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use pingora::cache::key::{CacheHashKey, HashBinary};
use pingora::cache::{
    CacheKey, CacheMeta, CachePhase, ForcedFreshness, HitHandler, HttpCache, NoCacheReason, RespCacheable,
};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorSource, ErrorType};

use super::Cache;
use super::directives::{RequestDirectives, ResponseDirectives};
use super::entry::{system_time, unix};
use super::generations::Write;
use super::patience::Patience;
use super::policy::{self, NotStored, Response, Scope};
use super::settings::RouteCache;
use super::status::{Forwarded, Outcome, Report};
use super::storage::{Hit, Tier};
use super::vary;
use crate::clock::{UnixMillis, millis};

use self::ahead::Windows;
pub use self::ahead::{PASSING, REFRESH};
use self::fields::{freshen, sanitise_for_storage};
pub use self::pending::Pending;
pub use self::ready::Ready;

/// A request that uses the cache.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "facts about one request, each set in its own phase")]
pub struct Transaction {
    cache: &'static Cache,
    route: Arc<RouteCache>,
    key: CacheKey,
    /// Once pingora has the key: how long the request waits for others.
    patience: Option<Patience>,
    /// It has waited for others as long as it may.
    out_of_patience: bool,
    public_key: Box<str>,
    directives: RequestDirectives,
    scope: Scope,
    /// What is stored for this request is one user's own.
    own: bool,
    authorised: bool,
    /// Whether there is time left for the shared tier.
    may_ask_remote: bool,
    /// Generations that Redis lacks, or has for a short while only.
    absent: Vec<Write>,
    /// When the request came.
    started: UnixMillis,
    /// When it last went upstream.
    sent: UnixMillis,
    /// Fields of a 304, which pingora merges only in part.
    freshening: Option<HeaderMap>,
    /// Why a 304 changes nothing of what is stored.
    not_freshened: Option<NotStored>,
    /// The upstream's answer came out of another cache.
    came_with_age: bool,
    /// The status with which the upstream answered.
    answered: Option<StatusCode>,
    /// Until when a stored response may be served, fresh, stale or instead of an error.
    guarded_until: Option<UnixMillis>,
    /// When the stored response stopped being fresh.
    stale_since: UnixMillis,
    by_request: bool,
    had_stale: bool,
    /// There is a response, but another request selects it.
    varied: bool,
    /// The object was predicted not to be storable, so the cache was not asked.
    bypassed: bool,
    storable: bool,
    not_stored: Option<NotStored>,
    tier: Option<Tier>,
    /// It was answered before pingora's cache was asked, with what is fresh until then.
    fresh_at_once: Option<UnixMillis>,
    /// The request is there to refresh.
    refreshing: bool,
    /// It keeps the response warm: thousandths of the window.
    warm: Option<u16>,
    windows: Windows,
}

impl Transaction {
    /// The time a request may wait for the store is used up: the shared tier is not asked.
    pub const fn read_memory_only(&mut self) {
        self.may_ask_remote = false;
    }

    /// For `request_cache_filter`.
    pub fn enable(&self, http: &mut HttpCache) {
        self.cache.enable(http, self.route.max_object_bytes, self.may_ask_remote, self.refreshing);
    }

    /// For `cache_key_callback`.
    pub fn key(&mut self) -> CacheKey {
        let mut key = self.key.clone();
        // Others fetch the same on other instances.
        if self.cache.tiers().remote_counters().is_some() {
            self.patience = Some(Patience::attach(&mut key));
        }
        key
    }

    /// For `proxy_upstream_filter`: pingora has given up to wait for another request.
    pub fn waited_in_vain(&mut self) {
        self.out_of_patience = self.patience.as_ref().is_some_and(Patience::is_over);
    }

    /// For `cache_vary_filter`.
    pub fn variance(&mut self, stored: &CacheMeta, request: &HeaderMap) -> Option<HashBinary> {
        let variance = self.variant(stored.headers(), request);
        // Called once more when a response is being stored.
        if !self.storable {
            self.guard(stored);
            self.varied = variance.is_some() && variance != stored.variance();
        }
        variance
    }

    fn variant(&self, response: &HeaderMap, request: &HeaderMap) -> Option<HashBinary> {
        vary::variance(&self.route.vary, response, request)
    }

    /// Remembers until when `stored` is better than an error.
    fn guard(&mut self, stored: &CacheMeta) {
        if !stored.response_header().status.is_server_error() {
            let after = stored.stale_while_revalidate_sec().max(stored.stale_if_error_sec());
            let until = unix(stored.fresh_until()).plus(Duration::from_secs(after.into()));
            self.guarded_until = self.guarded_until.max(Some(until));
        }
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
        self.varied = false;
        let fresh_until = unix(meta.fresh_until());
        self.stale_since = fresh_until;
        self.guard(meta);
        if background {
            return None;
        }
        // Fetched or validated for another request since this one came: as good as done for this one, unless it has to
        // be validated for each (RFC 9111 sections 4 and 5.2.2.4).
        if waited && hit.is_some_and(|hit| hit.updated() >= self.started && !hit.freshness().is_none()) {
            self.had_stale = false;
            return (!is_fresh).then_some(ForcedFreshness::ForceFresh);
        }
        if self.is_refused(meta, fresh_until, now) || (!is_fresh && self.is_too_stale(fresh_until, now)) {
            self.by_request = is_fresh;
            return Some(ForcedFreshness::ForceExpired);
        }
        let tolerated = !is_fresh && self.directives.max_stale.is_some();
        (tolerated && self.may_be_stale(meta)).then_some(ForcedFreshness::ForceFresh)
    }

    /// RFC 9111 section 5.2.1: staler than this request accepts; one that limits the age accepts nothing stale
    /// unless it says so.
    fn is_too_stale(&self, fresh_until: UnixMillis, now: UnixMillis) -> bool {
        let asked = &self.directives;
        match asked.max_stale {
            Some(most) => now.millis_since(fresh_until) > most.saturating_mul(1_000),
            None => asked.max_age.is_some() || asked.min_fresh.is_some(),
        }
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
            || !ResponseDirectives::parse(meta.headers()).forbids_stale(self.scope.is_shared())
    }

    /// For `should_serve_stale`: beyond [`serves_stale`], a request may limit how stale an answer it takes instead of
    /// an error (RFC 5861 section 4).
    pub fn serves_stale(&mut self, error: Option<&Error>, now: UnixMillis) -> bool {
        if let Some(error) = error {
            self.answered = match error.etype() {
                ErrorType::HTTPStatus(status) => StatusCode::from_u16(*status).ok(),
                _ => None,
            };
            let stale_for = now.millis_since(self.stale_since);
            if self.directives.stale_if_error.is_some_and(|most| stale_for > most.saturating_mul(1_000)) {
                return false;
            }
        }
        serves_stale(error)
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

    /// For `upstream_response_filter`, before `response_cache_filter`: remembers what a 304 brings. One that speaks
    /// of another response than the `stored` one, or would move it to another variant, brings nothing: what is
    /// stored is given once more, and the next request fetches.
    pub fn upstream_responded(&mut self, response: &mut ResponseHeader, stored: Option<&CacheMeta>) {
        self.answered = Some(response.status);
        self.freshening = None;
        self.not_freshened = None;
        self.came_with_age = response.headers.contains_key(header::AGE);
        if response.status != StatusCode::NOT_MODIFIED {
            return;
        }
        let stored = stored.map(CacheMeta::headers);
        let about_another = stored.is_some_and(|stored| fields::is_about_another(&response.headers, stored));
        self.not_freshened = about_another.then_some(NotStored::OtherValidator);
        if self.not_freshened.is_some() {
            fields::disregard(response);
        } else {
            self.freshening = Some(response.headers.clone());
        }
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
        let judged = match self.not_freshened.take() {
            Some(why) => Err(why),
            None => self.storable(&header, request, now),
        };
        let stored = match judged {
            Ok(stored) => stored,
            Err(why) => {
                self.not_stored = Some(why);
                let found = self.end_stored(http, response.status, why);
                // What may not be shared because of who asked says nothing against what is.
                let is_askers = found && why == NotStored::Authorization;
                let passing = is_askers || response.status.is_server_error() || self.leaves_fresh(now);
                let reason = if passing { PASSING } else { why.as_str() };
                return RespCacheable::Uncacheable(NoCacheReason::Custom(reason));
            }
        };
        self.storable = true;
        sanitise_for_storage(&mut header, &stored.without, stored.with_cookies);
        // RFC 9110 section 6.6.1: who stores a response without a date adds the time it came.
        if !header.headers.contains_key(header::DATE) {
            drop(header.insert_header(header::DATE, httpdate::fmt_http_date(system_time(now))));
        }
        // pingora compares with `>=`: what is never fresh has to end before now.
        let fresh_until = if stored.fresh_for.is_zero() {
            UnixMillis(now.0.saturating_sub(millis(stored.stale_for).max(1_000)))
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

    /// Drops what was found, where the answer says that it is no longer true: neither an error nor a refresh in the
    /// background may bring it back. Returns whether there was anything.
    fn end_stored(&self, http: &HttpCache, status: StatusCode, why: NotStored) -> bool {
        let found = matches!(http.phase(), CachePhase::Stale) && http.maybe_cache_meta().is_some();
        // What pingora asks about a 304 has the status of what is stored.
        let status = self.answered.unwrap_or(status);
        if found
            && policy::ends_stored(status, why, self.own)
            && let Some(key) = http.maybe_cache_key()
        {
            self.cache.tiers().drop_entry(key);
        }
        found
    }

    /// After [`Self::judge`]: the generations to be kept in Redis, in the background, because a response is being
    /// stored under them. Nothing depends on whether that works but the number of fetches.
    pub fn generations_to_create(&mut self) -> Vec<Write> {
        if self.storable { std::mem::take(&mut self.absent) } else { Vec::new() }
    }

    fn storable(
        &self,
        header: &ResponseHeader,
        request: &HeaderMap,
        now: UnixMillis,
    ) -> Result<policy::Storable, NotStored> {
        // What nobody asked may have something better too.
        let unasked = !self.may_ask_remote && self.cache.tiers().remote_counters().is_some();
        let response = Response {
            status: header.status,
            headers: &header.headers,
            scope: self.scope,
            authorised: self.authorised,
            guarded_until: if unasked { Some(now) } else { self.guarded_until },
            requested_at: self.sent,
            now,
        };
        let stored = policy::judge(&self.route, self.cache.max_lifetime(), response)?;
        match self.variant(&header.headers, request) {
            Some(variance) if !self.cache.admits_variant(self.key.primary_bin(), &variance, now) => {
                Err(NotStored::TooManyVariants)
            }
            _ => Ok(stored),
        }
    }

    /// For `response_filter`: a response whose validation, or fetch, was answered by another cache is as old as that
    /// one said (RFC 9111 section 5.1). pingora tells the age of hits only.
    pub fn tell_age(&self, http: &HttpCache, fields: &mut HeaderMap) {
        let is_new = matches!(http.phase(), CachePhase::Revalidated | CachePhase::Miss | CachePhase::Expired);
        if self.came_with_age
            && is_new
            && !fields.contains_key(header::AGE)
            && let Some(meta) = http.maybe_cache_meta()
        {
            fields.insert(header::AGE, HeaderValue::from(meta.age().as_secs()));
        }
    }

    /// For `response_filter`: says what happened in the response's headers. `show_key`: with `X-Cache-Key`.
    pub fn report(
        &self,
        http: &HttpCache,
        sent: StatusCode,
        fields: &mut HeaderMap,
        show_key: bool,
        now: UnixMillis,
    ) -> Outcome {
        let phase = if self.fresh_at_once.is_some() { CachePhase::Hit } else { http.phase() };
        let outcome = match phase {
            CachePhase::Disabled(_) if self.bypassed => Outcome::Bypass,
            CachePhase::StaleUpdating if self.is_ahead() => Outcome::Hit,
            _ => Outcome::of(phase),
        };
        let meta = http.maybe_cache_meta().filter(|_| outcome != Outcome::Bypass);
        let fresh_until = self.fresh_at_once.or_else(|| meta.map(|meta| unix(meta.fresh_until())));
        let ttl = fresh_until.map(|until| {
            let until = i64::try_from(until.as_secs()).unwrap_or(i64::MAX);
            until.saturating_sub(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
        });
        let detail = match phase {
            _ if self.not_stored.is_some() => self.not_stored.map(NotStored::as_str),
            CachePhase::Disabled(NoCacheReason::CacheLockGiveUp) if !self.out_of_patience => {
                Some("not_shareable")
            }
            CachePhase::Disabled(
                NoCacheReason::CacheLockGiveUp
                | NoCacheReason::CacheLockTimeout
                | NoCacheReason::CacheLockRetryLimit,
            ) => Some("waited_too_long"),
            CachePhase::Disabled(
                NoCacheReason::ResponseTooLarge | NoCacheReason::PredictedResponseTooLarge,
            ) => Some("too_large"),
            CachePhase::Disabled(NoCacheReason::UpstreamError) => Some("upstream_error"),
            CachePhase::Bypass => Some("predicted"),
            CachePhase::Hit => self.tier.map(Tier::as_str),
            CachePhase::StaleUpdating if self.is_ahead() => self.tier.map(Tier::as_str),
            CachePhase::Stale => Some("stale_if_error"),
            _ => None,
        };
        let waited = http.lock_duration().is_some();
        Report {
            outcome,
            forwarded: self.forwarded(outcome, phase, waited),
            answered: self.answered.map(|status| status.as_u16()),
            stored: self.storable && matches!(phase, CachePhase::Miss | CachePhase::Expired),
            collapsed: waited.then_some(outcome == Outcome::Hit),
            ttl,
            detail,
            key: show_key.then_some(&*self.public_key),
        }
        .write(sent, fields);
        outcome
    }

    /// Why the request went on to the upstream; `None`: it did not.
    const fn forwarded(&self, outcome: Outcome, phase: CachePhase, waited: bool) -> Option<Forwarded> {
        match outcome {
            Outcome::Bypass => Some(Forwarded::Bypass),
            // Another request went on for this one as well.
            Outcome::Hit if !waited => None,
            // While it is being refreshed in the background; otherwise the upstream failed.
            Outcome::Stale if matches!(phase, CachePhase::StaleUpdating) => None,
            _ if self.by_request => Some(Forwarded::Request),
            _ if self.had_stale => Some(Forwarded::Stale),
            Outcome::Stale | Outcome::Revalidated => Some(Forwarded::Stale),
            _ if self.varied => Some(Forwarded::VaryMiss),
            _ => Some(Forwarded::UriMiss),
        }
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

#[cfg(test)]
mod tests;
