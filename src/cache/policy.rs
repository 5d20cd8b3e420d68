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
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use std::time::UNIX_EPOCH;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn seconds_from_now(delta: i64) -> String {
        let at = i64::try_from(NOW.as_secs()).unwrap() + delta;
        httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(at.try_into().unwrap()))
    }

    struct Case(RouteCache, u16, bool, HeaderMap, Scope);

    fn private() -> Case {
        Case(RouteCache::new("r"), 200, false, HeaderMap::new(), Scope::User)
    }

    fn shared() -> Case {
        let route = RouteCache { shared: true, ..RouteCache::new("r") };
        Case(route, 200, false, HeaderMap::new(), Scope::Shared)
    }

    impl Case {
        fn with(mut self, name: &str, value: &str) -> Self {
            self.3.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
            self
        }
        fn cc(self, value: &str) -> Self {
            self.with("cache-control", value)
        }
        fn ttl(mut self, seconds: u64) -> Self {
            self.0.ttl = Some(Duration::from_secs(seconds));
            self
        }
        fn status(mut self, status: u16) -> Self {
            self.1 = status;
            self
        }
        fn authorised(mut self) -> Self {
            self.2 = true;
            self
        }
        fn overriding(mut self) -> Self {
            self.0.override_origin = true;
            self
        }
        fn status_ttl(mut self, status: u16, seconds: u64) -> Self {
            let more = (StatusCode::from_u16(status).unwrap(), Duration::from_secs(seconds));
            self.0.status_ttl = self.0.status_ttl.iter().copied().chain([more]).collect();
            self
        }
        fn guessing(mut self, percent: u32) -> Self {
            self.0.heuristic = Some(percent);
            self
        }
        fn cookies(mut self, set_cookie: SetCookie) -> Self {
            self.0.set_cookie = set_cookie;
            self.with("set-cookie", "a=b")
        }
        fn stale(mut self, seconds: u64) -> Self {
            self.0.stale_while_revalidate = Some(Duration::from_secs(seconds));
            self.0.stale_if_error = Some(Duration::from_secs(seconds));
            self
        }
        fn judge(&self) -> Result<Storable, NotStored> {
            self.judge_after(None)
        }
        fn judge_after(&self, guarded_until: Option<UnixMillis>) -> Result<Storable, NotStored> {
            let Self(route, status, authorised, headers, scope) = self;
            let status = StatusCode::from_u16(*status).unwrap();
            let (authorised, scope, now) = (*authorised, *scope, NOW);
            let requested_at = now;
            judge(
                route,
                DAY,
                Response { status, headers, scope, authorised, guarded_until, requested_at, now },
            )
        }
        fn fresh(&self) -> Result<u64, NotStored> {
            self.judge().map(|stored| stored.fresh_for.as_secs())
        }
    }

    #[test]
    fn explicit_freshness_is_obeyed_in_the_order_of_the_rfc() {
        assert_eq!(private().cc("max-age=60").fresh(), Ok(60));
        assert_eq!(shared().cc("max-age=60, s-maxage=10").fresh(), Ok(10));
        assert_eq!(private().cc("max-age=60, s-maxage=10").fresh(), Ok(60));
        let expires = seconds_from_now(100);
        assert_eq!(private().with("expires", &expires).fresh(), Ok(100));
        assert_eq!(private().with("expires", &expires).cc("max-age=5").fresh(), Ok(5));
        let date = seconds_from_now(-40);
        assert_eq!(private().with("expires", &expires).with("date", &date).fresh(), Ok(100));
        assert_eq!(private().with("expires", "0").fresh(), Err(NotStored::Stale));
        assert_eq!(
            private().with("expires", &expires).with("expires", &expires).fresh(),
            Err(NotStored::Stale)
        );
        assert_eq!(private().cc("max-age=99999999999").fresh(), Ok(86_400));
    }

    #[test]
    fn age_and_date_reduce_freshness() {
        assert_eq!(private().cc("max-age=60").with("age", "20").fresh(), Ok(40));
        assert_eq!(private().cc("max-age=60").with("age", "20, 50").fresh(), Ok(40));
        assert_eq!(private().cc("max-age=60").with("age", "20").with("age", "50").fresh(), Ok(40));
        assert_eq!(private().cc("max-age=60").with("age", "x, 50").fresh(), Ok(60));
        assert_eq!(private().cc("max-age=60").with("age", "-1").fresh(), Ok(60));
        assert_eq!(private().cc("max-age=60").with("age", "60").fresh(), Err(NotStored::Stale));
        assert_eq!(private().cc("max-age=60").with("date", &seconds_from_now(-45)).fresh(), Ok(15));
        assert_eq!(private().cc("max-age=60").with("date", &seconds_from_now(500)).fresh(), Ok(60));
        let stored = private().cc("max-age=60").with("age", "20").judge().unwrap();
        assert_eq!(stored.age, Duration::from_secs(20));
    }

    #[test]
    fn no_freshness_means_not_stored_unless_the_route_has_a_ttl() {
        assert_eq!(private().fresh(), Err(NotStored::NoFreshness));
        assert_eq!(private().cc("public").fresh(), Err(NotStored::NoFreshness));
        assert_eq!(private().ttl(300).fresh(), Ok(300));
        assert_eq!(private().ttl(300).cc("max-age=5").fresh(), Ok(5));
        assert_eq!(private().ttl(300).with("age", "900").fresh(), Ok(300));
        assert_eq!(private().ttl(300).status(404).fresh(), Err(NotStored::Status));
        assert_eq!(private().ttl(300).status(500).fresh(), Err(NotStored::Status));
        assert_eq!(private().status(404).cc("max-age=9").fresh(), Ok(9));
    }

    #[test]
    fn what_must_not_be_stored_is_not() {
        let table = [
            (private().cc("no-store, max-age=60"), NotStored::NoStore),
            (private().ttl(300).cc("no-store"), NotStored::NoStore),
            (shared().cc("private, max-age=60"), NotStored::Private),
            (shared().cc("private=\"content-type\", max-age=60"), NotStored::Private),
            (shared().cc("private=\"a b\", max-age=60"), NotStored::Private),
            (private().cc("max-age=60").with("vary", "x-forwarded-for"), NotStored::VaryAny),
            (private().cc("public, max-age=60").status(429), NotStored::Status),
            (private().ttl(9).overriding().status_ttl(511, 9).status(511), NotStored::Status),
            (shared().cc("max-age=60").authorised(), NotStored::Authorization),
            (private().cc("max-age=60").with("set-cookie", "a=b"), NotStored::SetCookie),
            (private().ttl(9).overriding().with("set-cookie", "a=b"), NotStored::SetCookie),
            (private().cc("max-age=60").with("vary", "accept, *"), NotStored::VaryAny),
            (private().ttl(9).overriding().with("vary", "*"), NotStored::VaryAny),
            (private().cc("max-age=60").status(206), NotStored::Partial),
            (private().cc("max-age=60").with("content-range", "bytes 0-1/9"), NotStored::Partial),
            (private().cc("max-age=60").status(103), NotStored::Partial),
            (private().cc("max-age=60").status(304), NotStored::Partial),
            (private().cc("max-age=0"), NotStored::Stale),
            (private().ttl(300).cc("no-cache"), NotStored::Stale),
            (private().ttl(300).with("pragma", "No-Cache"), NotStored::Stale),
            (private().cc("max-age=60, must-understand").status(299), NotStored::Status),
        ];
        for (case, expected) in table {
            assert_eq!(case.fresh(), Err(expected), "{:?}", case.3);
        }
    }

    #[test]
    fn what_the_rfc_allows_is_stored() {
        let table = [
            (private().cc("private, max-age=60"), 60),
            (private().cc("max-age=60").authorised(), 60),
            (shared().cc("public, max-age=60").authorised(), 60),
            (shared().cc("s-maxage=60").authorised(), 60),
            (shared().cc("must-revalidate, max-age=60").authorised(), 60),
            (shared().ttl(60).overriding().authorised(), 60),
            (private().ttl(60).overriding().cc("no-store, private, max-age=1"), 60),
            (private().cc("max-age=60, no-store, must-understand"), 60),
            (private().cc("immutable, max-age=60"), 60),
            (private().cc("no-cache").with("etag", "\"1\""), 0),
            (private().cc("no-cache, max-age=60").with("last-modified", &seconds_from_now(-9)), 0),
            (private().cc("max-age=0").with("etag", "\"1\""), 0),
            (shared().cc("private=\"x\", max-age=60"), 60),
            (shared().cc("no-cache=\"x\", max-age=60"), 60),
        ];
        for (case, expected) in table {
            assert_eq!(case.fresh(), Ok(expected), "{:?}", case.3);
        }
    }

    #[test]
    fn only_an_identified_caller_of_a_route_with_a_ttl_has_entries_of_its_own() {
        let timed = RouteCache { ttl: Some(DAY), ..RouteCache::new("r") };
        let shared = RouteCache { shared: true, ..timed.clone() };
        assert_eq!(Scope::of(&timed, true), Scope::User);
        for (route, identified) in [(&timed, false), (&shared, true), (&RouteCache::new("r"), true)] {
            assert_eq!(Scope::of(route, identified), Scope::Shared);
        }
    }

    #[test]
    fn named_fields_are_left_out_where_they_may_not_be_kept() {
        let without = |case: Case| {
            let names = case.judge().map(|stored| stored.without);
            names.unwrap().iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>().join(" ")
        };
        let both = "max-age=60, private=\"x-one, X-Two\", no-cache=\"x-three\"";
        assert_eq!(without(shared().cc(both)), "x-three x-one x-two");
        assert_eq!(without(private().cc(both)), "x-three");
        assert_eq!(without(shared().ttl(9).overriding().cc(both)), "");
        // Nothing is left to validate it with.
        let bare = shared().cc("max-age=0, private=\"etag\"").with("etag", "\"1\"");
        assert_eq!(bare.fresh(), Err(NotStored::Stale));
    }

    #[test]
    fn cookies_are_kept_only_where_declared_and_for_one_user() {
        use SetCookie::{Keep, Refuse, Strip};
        let stored = |case: Case| case.judge().map(|stored| stored.with_cookies);
        let plain = || private().cc("max-age=60");
        assert_eq!(stored(plain().cookies(Refuse)), Err(NotStored::SetCookie));
        assert_eq!(stored(plain().cookies(Strip)), Ok(false));
        assert_eq!(stored(plain().cookies(Keep)), Ok(true));
        assert_eq!(stored(shared().cc("max-age=60").cookies(Keep)), Err(NotStored::SetCookie));
        assert_eq!(stored(shared().cc("max-age=60").cookies(Strip)), Ok(false));
        let named = |name| shared().cc("max-age=60").cc(name).cookies(Refuse);
        assert_eq!(stored(named("private=\"set-cookie\"")), Ok(false));
        assert_eq!(stored(named("no-cache=\"Set-Cookie\"")), Ok(false));
    }

    #[test]
    fn guesses_are_made_only_where_declared_and_nothing_better_is_known() {
        let modified = |seconds: i64| ("last-modified", seconds_from_now(-seconds));
        let case = |case: Case, (name, value): (&str, String)| case.with(name, &value).fresh();
        assert_eq!(case(private(), modified(1_000)), Err(NotStored::NoFreshness));
        assert_eq!(case(private().guessing(10), modified(1_000)), Ok(100));
        assert_eq!(private().guessing(10).fresh(), Err(NotStored::NoFreshness));
        assert_eq!(case(private().guessing(100), modified(10_000_000)), Ok(86_400));
        assert_eq!(case(private().guessing(10).cc("max-age=5"), modified(1_000)), Ok(5));
        assert_eq!(case(private().guessing(10).ttl(7), modified(1_000)), Ok(7));
        assert_eq!(case(private().guessing(10).with("expires", "0"), modified(1_000)), Ok(0));
        assert_eq!(case(private().guessing(10).with("age", "40"), modified(1_000)), Ok(60));
        assert_eq!(case(private().guessing(10), modified(-50)), Ok(0));
        assert_eq!(case(private().guessing(10).status(404), modified(1_000)), Ok(100));
        assert_eq!(case(private().guessing(10).status(302), modified(1_000)), Err(NotStored::Status));
        assert_eq!(case(private().guessing(10).status(302).cc("public"), modified(1_000)), Ok(100));
        assert_eq!(case(shared().guessing(10).authorised(), modified(9)), Err(NotStored::Authorization));
    }

    #[test]
    fn statuses_live_for_their_own_declared_time() {
        let case = || shared().ttl(60).status_ttl(404, 5).status_ttl(301, 7);
        assert_eq!(case().fresh(), Ok(60));
        assert_eq!(case().status(404).fresh(), Ok(5));
        assert_eq!(case().status(301).fresh(), Ok(7));
        assert_eq!(case().status(410).fresh(), Err(NotStored::Status));
        assert_eq!(case().status(404).cc("max-age=90").fresh(), Ok(90));
        assert_eq!(case().status(404).cc("max-age=90").overriding().fresh(), Ok(5));
        assert_eq!(case().status(404).cc("no-store").fresh(), Err(NotStored::NoStore));
        assert_eq!(case().status_ttl(200, 3).fresh(), Ok(3));
        assert_eq!(shared().status_ttl(404, 5).fresh(), Err(NotStored::NoFreshness));
        for covered in [200, 204, 301, 308, 403, 404, 405, 410, 414, 451, 500, 503, 510] {
            assert!(may_have_ttl(StatusCode::from_u16(covered).unwrap()), "{covered}");
        }
        for other in [100, 206, 304, 400, 401, 407, 412, 416, 421, 425, 428, 429, 431, 511, 512, 599, 600] {
            assert!(!may_have_ttl(StatusCode::from_u16(other).unwrap()), "{other}");
        }
    }

    #[test]
    fn what_one_request_may_be_at_fault_for_is_never_stored() {
        let declared =
            |case: Case, status| case.status_ttl(status, 9).status(status).cc("public, max-age=60");
        for status in (400..500).filter(|status| ![403, 404, 405, 410, 414, 451].contains(status)) {
            for case in [declared(shared(), status), declared(private(), status).ttl(9).overriding()] {
                assert_eq!(case.fresh(), Err(NotStored::Status), "{status}");
            }
        }
        for status in [404, 405, 410, 414, 451] {
            assert_eq!(shared().status(status).cc("max-age=60").fresh(), Ok(60), "{status}");
        }
        assert_eq!(shared().status(403).cc("public, max-age=60").fresh(), Err(NotStored::Status));
        assert_eq!(declared(shared(), 403).fresh(), Ok(60));
        assert_eq!(private().status(403).cc("max-age=60").fresh(), Ok(60));
    }

    #[test]
    fn an_answer_that_is_not_stored_ends_what_is_unless_it_is_due_to_one_request() {
        use NotStored::{Authorization, NoStore, OtherValidator, Private, SetCookie, Status};
        for (status, why, of_all, of_one) in [
            (200, NoStore, true, true),
            (200, Private, true, true),
            (200, SetCookie, true, true),
            (200, Authorization, false, false),
            (206, NotStored::Partial, false, false),
            (304, OtherValidator, false, false),
            (304, Private, true, true),
            (302, Status, true, true),
            (404, Status, true, true),
            (410, NoStore, true, true),
            (400, Status, false, false),
            (401, Status, false, true),
            (403, Status, false, true),
            (429, Status, false, false),
            (500, Status, false, false),
            (503, NotStored::WorseThanStored, false, false),
        ] {
            let ends = |own| ends_stored(StatusCode::from_u16(status).unwrap(), why, own);
            assert_eq!((ends(false), ends(true)), (of_all, of_one), "{status} {why:?}");
        }
    }

    #[test]
    fn an_error_takes_the_place_of_nothing_that_may_still_be_served() {
        let error = || shared().status_ttl(503, 5).status(503);
        assert_eq!(error().judge_after(None).map(|stored| stored.fresh_for.as_secs()), Ok(5));
        assert_eq!(error().judge_after(Some(NOW)), Err(NotStored::WorseThanStored));
        assert!(error().judge_after(Some(UnixMillis(NOW.0 - 1))).is_ok());
        assert!(shared().status_ttl(404, 5).status(404).judge_after(Some(NOW)).is_ok());
        let stale = error().stale(30).judge().unwrap();
        assert!(stale.stale_if_error.is_zero() && stale.stale_while_revalidate.is_zero());
    }

    #[test]
    fn targeted_fields_speak_instead_of_all_others() {
        let cdn = |value: &str| shared().cc("no-store").with("expires", "0").with("cdn-cache-control", value);
        assert_eq!(cdn("max-age=60").with("pragma", "no-cache").fresh(), Ok(60));
        assert_eq!(cdn("must-revalidate").fresh(), Err(NotStored::NoFreshness));
        assert_eq!(cdn("must-revalidate").ttl(9).fresh(), Ok(9));
        assert_eq!(cdn("max-age=60, s-maxage=5").with("age", "2").fresh(), Ok(3));
        for ignored in ["", "max-age=60, ,", "Max-Age=60"] {
            assert_eq!(cdn(ignored).fresh(), Err(NotStored::NoStore), "{ignored}");
        }
        assert_eq!(cdn("max-age=60").with("tollgate-cache-control", "max-age=7").fresh(), Ok(7));
        assert_eq!(cdn("private, max-age=60").fresh(), Err(NotStored::Private));
    }

    #[test]
    fn stale_windows_come_from_the_response_then_the_route() {
        let windows = |case: Case| {
            case.judge().map(|s| (s.stale_while_revalidate.as_secs(), s.stale_if_error.as_secs())).unwrap()
        };
        assert_eq!(windows(private().cc("max-age=60").stale(30)), (30, 30));
        assert_eq!(windows(private().cc("max-age=60, stale-while-revalidate=5").stale(30)), (5, 30));
        assert_eq!(windows(private().cc("max-age=60, stale-if-error=7")), (0, 7));
        for strict in ["must-revalidate", "proxy-revalidate", "no-cache"] {
            let case = private().cc(&format!("max-age=60, stale-if-error=9, {strict}")).with("etag", "\"1\"");
            assert_eq!(windows(case.stale(30)), (0, 0), "{strict}");
        }
        assert_eq!(windows(shared().cc("s-maxage=60").stale(30)), (0, 0));
        assert_eq!(windows(private().cc("must-revalidate").ttl(9).overriding().stale(30)), (30, 30));
        assert_eq!(windows(private().cc("max-age=86390").stale(30)), (10, 10));
    }
}
