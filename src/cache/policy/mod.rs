//! Whether and for how long a response may be stored (RFC 9111 sections 3 and 4, RFC 5861).
//! Pure: values in, a verdict out; it stores nothing.

use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode, header};

use super::directives::{Reach, ResponseDirectives, Source, seconds};
use super::settings::{RouteCache, SetCookie};
use super::vary;
use crate::clock::UnixMillis;
use crate::metrics::Label;

/// The longest that a guess at freshness reaches (RFC 9111 section 4.2.2 warns of more).
const MAX_GUESS: Duration = Duration::from_secs(24 * 3600);

/// Whose a stored response is: it decides which rules it is judged by, not under which key it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Nobody's in particular: the rules of a shared cache (RFC 9111 section 1).
    Shared,
    /// One identified user's, on a route that declares for how long its responses are good.
    User,
}

impl Scope {
    /// Whose a response of `route` to a caller is, who is `identified` or not.
    pub const fn of(route: &RouteCache, identified: bool) -> Self {
        if identified && !route.shared && route.ttl.is_some() { Self::User } else { Self::Shared }
    }

    /// By the rules of a shared cache.
    pub const fn is_shared(self) -> bool {
        matches!(self, Self::Shared)
    }
}

/// What is judged.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// Status of the response.
    pub status: StatusCode,
    /// Header fields of the response.
    pub headers: &'a HeaderMap,
    /// Whose it would be.
    pub scope: Scope,
    /// The request had an `Authorization` field, or another credential that was verified.
    pub authorised: bool,
    /// Until when an answer of before may be served, fresh, stale or instead of an error.
    pub guarded_until: Option<UnixMillis>,
    /// When the request went upstream.
    pub requested_at: UnixMillis,
    /// When the response came.
    pub now: UnixMillis,
}

/// How a response is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storable {
    /// How old it is already (RFC 9111 section 4.2.3).
    pub age: Duration,
    /// How much longer it is fresh; zero: every use needs a successful validation.
    pub fresh_for: Duration,
    /// How long ago it stopped being fresh.
    pub stale_for: Duration,
    /// How long after that it may be served while it is being revalidated.
    pub stale_while_revalidate: Duration,
    /// How long after that it may be served instead of an error.
    pub stale_if_error: Duration,
    /// Fields to store it without (RFC 9111 sections 5.2.2.4 and 5.2.2.7).
    pub without: Vec<HeaderName>,
    /// Its cookies may be stored too.
    pub with_cookies: bool,
}

/// Why a response is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotStored {
    /// 1xx, 206, 304 or `Content-Range`: not a complete response.
    Partial,
    /// Neither fresh by its own account nor a status with a TTL, or one that is never stored.
    Status,
    /// An error, while something better may still be served.
    WorseThanStored,
    /// A 304 for another response than the stored one (RFC 9111 section 4.3.4), or for another variant of it. The
    /// next request fetches.
    OtherValidator,
    /// It sets a cookie.
    SetCookie,
    /// `Vary: *`, or by what the gateway writes itself.
    VaryAny,
    /// More request headers select the response than the cache follows.
    VaryTooWide,
    /// The object has too many variants already.
    TooManyVariants,
    /// `no-store`.
    NoStore,
    /// `private`, where the entry would be nobody's in particular.
    Private,
    /// RFC 9111 section 3.5: the request was authorised and the response does not allow sharing.
    Authorization,
    /// No explicit freshness and no `ttl`.
    NoFreshness,
    /// Stale on arrival, and nothing to revalidate it with.
    Stale,
}

impl NotStored {
    /// Every value, for metrics that start at zero.
    pub const ALL: [Self; 13] = [
        Self::Partial,
        Self::Status,
        Self::WorseThanStored,
        Self::OtherValidator,
        Self::SetCookie,
        Self::VaryAny,
        Self::VaryTooWide,
        Self::TooManyVariants,
        Self::NoStore,
        Self::Private,
        Self::Authorization,
        Self::NoFreshness,
        Self::Stale,
    ];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Partial => "partial",
            Self::Status => "status",
            Self::WorseThanStored => "worse_than_stored",
            Self::OtherValidator => "other_validator",
            Self::SetCookie => "set_cookie",
            Self::VaryAny => "vary_any",
            Self::VaryTooWide => "vary_too_wide",
            Self::TooManyVariants => "too_many_variants",
            Self::NoStore => "no_store",
            Self::Private => "private",
            Self::Authorization => "authorization",
            Self::NoFreshness => "no_freshness",
            Self::Stale => "stale",
        }
    }

    /// It says something about this response only: the next one for the same key may well be stored.
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Status
                | Self::TooManyVariants
                | Self::Partial
                | Self::WorseThanStored
                // It was this request's credentials.
                | Self::Authorization
        )
    }
}

impl Label for NotStored {
    const ALL: &'static [Self] = &Self::ALL;

    fn as_str(self) -> &'static str {
        self.as_str()
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// Judges `response` for `route`; no entry lives longer than `max_lifetime`.
pub fn judge(
    route: &RouteCache,
    max_lifetime: Duration,
    response: Response<'_>,
) -> Result<Storable, NotStored> {
    let headers = response.headers;
    if is_partial(response.status) || headers.contains_key(header::CONTENT_RANGE) {
        return Err(NotStored::Partial);
    }
    if is_never_stored(response.status) || is_denied_to_one(route, response) {
        return Err(NotStored::Status);
    }
    let said =
        if route.override_origin { ResponseDirectives::default() } else { directives(response.headers) };
    let without = withheld(&said, response.scope);
    let with_cookies = route.set_cookie == SetCookie::Keep && !response.scope.is_shared();
    if headers.contains_key(header::SET_COOKIE)
        && !with_cookies
        && route.set_cookie != SetCookie::Strip
        && !without.contains(&header::SET_COOKIE)
    {
        return Err(NotStored::SetCookie);
    }
    match vary::width(headers, &route.written) {
        vary::Width::Any => return Err(NotStored::VaryAny),
        vary::Width::TooWide => return Err(NotStored::VaryTooWide),
        vary::Width::Followed => {}
    }
    if response.status.is_server_error() && response.guarded_until.is_some_and(|until| response.now <= until)
    {
        return Err(NotStored::WorseThanStored);
    }
    let stored = if route.override_origin {
        let ttl = declared_ttl(route, response.status).ok_or(NotStored::Status)?;
        windows(route, &said, response, Duration::ZERO, ttl)
    } else {
        by_origin(route, &said, response)?
    };
    let stored = Storable { without, with_cookies, ..stored.capped(max_lifetime) };
    let has = |name: HeaderName| headers.contains_key(&name) && !stored.without.contains(&name);
    let useful = !stored.fresh_for.is_zero()
        || !stored.stale_while_revalidate.is_zero()
        || !stored.stale_if_error.is_zero()
        || has(header::ETAG)
        || has(header::LAST_MODIFIED);
    if useful { Ok(stored) } else { Err(NotStored::Stale) }
}

/// Whether a declared TTL makes sense for `status`: answers that are whole, and that what the key stands for decides
/// alone, so that the next request would get the same.
pub fn may_have_ttl(status: StatusCode) -> bool {
    !is_never_stored(status)
        && matches!(status.as_u16(), 200 | 203 | 204 | 300..=303 | 307 | 308 | 400..=499 | 500..=510)
}

fn is_partial(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::PARTIAL_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// Whatever the origin says. Errors of the client depend on credentials, on the moment, or on header fields that are not
/// part of the key, where one client would have everybody refused; but for those that the target alone decides. Beside
/// them what a network says that wants a login (RFC 6585 section 6).
fn is_never_stored(status: StatusCode) -> bool {
    match status.as_u16() {
        403 | 404 | 405 | 410 | 414 | 451 => false,
        400..=499 | 511 => true,
        _ => false,
    }
}

/// What was denied to one caller is not denied to others, unless the route declares that it is.
fn is_denied_to_one(route: &RouteCache, response: Response<'_>) -> bool {
    response.status == StatusCode::FORBIDDEN
        && response.scope.is_shared()
        && route.status_ttl.iter().all(|(covered, _)| *covered != StatusCode::FORBIDDEN)
}

/// Whether an answer that is not stored, to a request that found something stored, ends what is stored: it tells of the
/// target what will not be true for this caller alone. `own`: of what is stored for one user. Errors of the origin do not
/// (RFC 5861 section 4), nor does what may be due to the credentials, quota or fields of one request.
pub fn ends_stored(status: StatusCode, why: NotStored, own: bool) -> bool {
    match status.as_u16() {
        // The origin's word on what is stored, beside that it has not changed.
        304 => matches!(why, NotStored::NoStore | NotStored::Private),
        206 => false,
        200..=299 => !matches!(why, NotStored::Authorization | NotStored::Partial),
        300..=399 | 404 | 410 => true,
        401 | 403 => own,
        _ => false,
    }
}

/// RFC 9110 section 15.1, but for 206.
fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

fn directives(headers: &HeaderMap) -> ResponseDirectives {
    let mut said = ResponseDirectives::parse(headers);
    if said.source == Source::Nothing && pragma_no_cache(headers) {
        said.no_cache = Reach::Whole;
    }
    said
}

/// Fields that must not be kept, or not be used again without asking.
fn withheld(said: &ResponseDirectives, scope: Scope) -> Vec<HeaderName> {
    let private = if scope.is_shared() { said.private.fields() } else { &[] };
    said.no_cache.fields().iter().chain(private).cloned().collect()
}

fn declared_ttl(route: &RouteCache, status: StatusCode) -> Option<Duration> {
    let exact = route.status_ttl.iter().find(|(covered, _)| *covered == status).map(|(_, ttl)| *ttl);
    exact.or(route.ttl.filter(|_| status == StatusCode::OK))
}

fn by_origin(
    route: &RouteCache,
    said: &ResponseDirectives,
    response: Response<'_>,
) -> Result<Storable, NotStored> {
    // RFC 9111 section 5.2.2.3: who understands the status ignores the `no-store` beside it.
    if said.no_store && !(said.must_understand && is_understood(response.status)) {
        return Err(NotStored::NoStore);
    }
    if said.must_understand && !is_understood(response.status) {
        return Err(NotStored::Status);
    }
    if response.scope.is_shared() {
        if said.private.is_whole() {
            return Err(NotStored::Private);
        }
        let allowed = said.public || said.must_revalidate || said.s_maxage.is_some();
        if response.authorised && !allowed {
            return Err(NotStored::Authorization);
        }
    }
    let age = initial_age(response);
    if let Some(lifetime) = explicit_lifetime(said, response) {
        return Ok(windows(route, said, response, age, lifetime));
    }
    if let Some(ttl) = declared_ttl(route, response.status) {
        // From now on: how old the response is already says nothing about how long the route lets it live.
        return Ok(windows(route, said, response, Duration::ZERO, ttl));
    }
    let guessable = is_heuristically_cacheable(response.status) || said.public;
    if said.no_cache.is_whole() && guessable {
        return Ok(windows(route, said, response, age, Duration::ZERO));
    }
    match route.heuristic.filter(|_| guessable).and_then(|percent| guessed_lifetime(percent, response)) {
        Some(lifetime) => Ok(windows(route, said, response, age, lifetime)),
        None if response.status == StatusCode::OK => Err(NotStored::NoFreshness),
        None => Err(NotStored::Status),
    }
}

/// RFC 9111 section 4.2.1.
fn explicit_lifetime(said: &ResponseDirectives, response: Response<'_>) -> Option<Duration> {
    if let Some(lifetime) = said.s_maxage.filter(|_| response.scope.is_shared()).or(said.max_age) {
        return Some(Duration::from_secs(lifetime));
    }
    if said.source == Source::Targeted {
        return None;
    }
    let mut expires = response.headers.get_all(header::EXPIRES).iter();
    let first = expires.next()?;
    if expires.next().is_some() {
        return Some(Duration::ZERO);
    }
    // RFC 9111 section 5.3: an invalid date, "0" above all, is in the past.
    let expires = first.to_str().ok().and_then(UnixMillis::from_http_date);
    let date = date(response.headers).unwrap_or(response.now);
    Some(expires.map_or(Duration::ZERO, |at| Duration::from_millis(at.millis_since(date))))
}

/// RFC 9111 section 4.2.2.
fn guessed_lifetime(percent: u32, response: Response<'_>) -> Option<Duration> {
    let modified = response.headers.get(header::LAST_MODIFIED)?.to_str().ok()?;
    let modified = UnixMillis::from_http_date(modified)?;
    let unchanged_for = date(response.headers).unwrap_or(response.now).millis_since(modified);
    let guess = unchanged_for.saturating_mul(u64::from(percent)) / 100;
    Some(Duration::from_millis(guess).min(MAX_GUESS))
}

/// RFC 9111 section 4.2.3. Of several `Age` values the first counts; what is none is ignored (section 5.1).
fn initial_age(response: Response<'_>) -> Duration {
    let apparent = date(response.headers).map_or(0, |date| response.now.millis_since(date));
    let age = response
        .headers
        .get(header::AGE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(',').next())
        .and_then(|value| seconds(value.trim()))
        .unwrap_or(0);
    let corrected =
        age.saturating_mul(1_000).saturating_add(response.now.millis_since(response.requested_at));
    // `Date` has whole seconds: what arrives at once is not half a second old.
    Duration::from_secs(apparent.max(corrected) / 1_000)
}

fn windows(
    route: &RouteCache,
    said: &ResponseDirectives,
    response: Response<'_>,
    age: Duration,
    lifetime: Duration,
) -> Storable {
    // An error is worth nothing once it is no longer fresh.
    let forbidden = said.forbids_stale(response.scope.is_shared()) || response.status.is_server_error();
    let window = |said: Option<u64>, route: Option<Duration>| {
        if forbidden { Duration::ZERO } else { said.map(Duration::from_secs).or(route).unwrap_or_default() }
    };
    Storable {
        age,
        fresh_for: if said.no_cache.is_whole() { Duration::ZERO } else { lifetime.saturating_sub(age) },
        stale_for: if said.no_cache.is_whole() { Duration::ZERO } else { age.saturating_sub(lifetime) },
        stale_while_revalidate: window(said.stale_while_revalidate, route.stale_while_revalidate),
        stale_if_error: window(said.stale_if_error, route.stale_if_error),
        without: Vec::new(),
        with_cookies: false,
    }
}

impl Storable {
    fn capped(mut self, max_lifetime: Duration) -> Self {
        self.fresh_for = self.fresh_for.min(max_lifetime);
        let left = max_lifetime.saturating_sub(self.fresh_for);
        self.stale_while_revalidate = self.stale_while_revalidate.min(left);
        self.stale_if_error = self.stale_if_error.min(left);
        self
    }
}

/// Statuses whose caching rules this cache implements (RFC 9110 section 15.1 and the redirects).
fn is_understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300..=303 | 307 | 308 | 404 | 405 | 410 | 414 | 451 | 501)
}

fn pragma_no_cache(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::PRAGMA)
        .iter()
        .any(|value| value.as_bytes().to_ascii_lowercase().windows(8).any(|part| part == b"no-cache"))
}

fn date(headers: &HeaderMap) -> Option<UnixMillis> {
    headers.get(header::DATE).and_then(|value| value.to_str().ok()).and_then(UnixMillis::from_http_date)
}

#[cfg(test)]
mod tests;
