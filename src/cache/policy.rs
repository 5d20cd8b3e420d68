//! Whether and for how long a response may be stored (RFC 9111 sections 3 and 4, RFC 5861).
//! Pure: values in, a verdict out; it stores nothing.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};

use super::directives::{ResponseDirectives, seconds};
use super::settings::RouteCache;
use super::vary;
use crate::clock::UnixMillis;

/// What is judged.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// Status of the response.
    pub status: StatusCode,
    /// Header fields of the response.
    pub headers: &'a HeaderMap,
    /// The request had an `Authorization` field.
    pub authorised: bool,
    /// When the request went upstream.
    pub requested_at: UnixMillis,
    /// When the response came.
    pub now: UnixMillis,
}

/// How a response is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storable {
    /// How old it is already (RFC 9111 section 4.2.3).
    pub age: Duration,
    /// How much longer it is fresh; zero: every use needs a successful validation.
    pub fresh_for: Duration,
    /// How long after that it may be served while it is being revalidated.
    pub stale_while_revalidate: Duration,
    /// How long after that it may be served instead of an error.
    pub stale_if_error: Duration,
}

/// Why a response is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotStored {
    /// 1xx, 206, 304 or `Content-Range`: not a complete response.
    Partial,
    /// Neither fresh by its own account nor a status the route's `ttl` covers.
    Status,
    /// It sets a cookie.
    SetCookie,
    /// `Vary: *`.
    VaryAny,
    /// More request headers select the response than the cache follows.
    VaryTooWide,
    /// The object has too many variants already.
    TooManyVariants,
    /// `no-store`.
    NoStore,
    /// `private` on a shared route.
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
    pub const ALL: [Self; 11] = [
        Self::Partial,
        Self::Status,
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
        matches!(self, Self::Status | Self::TooManyVariants | Self::Partial)
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
    if headers.contains_key(header::SET_COOKIE) {
        return Err(NotStored::SetCookie);
    }
    match vary::width(headers) {
        vary::Width::Any => return Err(NotStored::VaryAny),
        vary::Width::TooWide => return Err(NotStored::VaryTooWide),
        vary::Width::Followed => {}
    }
    let stored = if route.override_origin {
        by_route(route, response.status, ResponseDirectives::default())?
    } else {
        by_origin(route, response)?
    };
    let stored = stored.capped(max_lifetime);
    let useful = !stored.fresh_for.is_zero()
        || !stored.stale_while_revalidate.is_zero()
        || !stored.stale_if_error.is_zero()
        || headers.contains_key(header::ETAG)
        || headers.contains_key(header::LAST_MODIFIED);
    if useful { Ok(stored) } else { Err(NotStored::Stale) }
}

fn is_partial(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::PARTIAL_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// Freshness from the route alone: the backend's clock and `Age` play no part.
fn by_route(route: &RouteCache, status: StatusCode, said: ResponseDirectives) -> Result<Storable, NotStored> {
    let ttl = route.ttl.ok_or(NotStored::NoFreshness)?;
    if !route.ttl_statuses.contains(&status) {
        return Err(NotStored::Status);
    }
    Ok(windows(route, said, Duration::ZERO, ttl))
}

fn by_origin(route: &RouteCache, response: Response<'_>) -> Result<Storable, NotStored> {
    let headers = response.headers;
    let mut said = ResponseDirectives::parse(headers);
    if !said.present && pragma_no_cache(headers) {
        said.no_cache = true;
    }
    // RFC 9111 section 5.2.2.3: who understands the status ignores the `no-store` beside it.
    if said.no_store && !(said.must_understand && is_understood(response.status)) {
        return Err(NotStored::NoStore);
    }
    if said.must_understand && !is_understood(response.status) {
        return Err(NotStored::Status);
    }
    if route.shared {
        if said.private {
            return Err(NotStored::Private);
        }
        let allowed = said.public || said.must_revalidate || said.s_maxage.is_some();
        if response.authorised && !allowed {
            return Err(NotStored::Authorization);
        }
    }
    let Some(lifetime) = explicit_lifetime(route.shared, &said, response) else {
        if said.no_cache && !route.ttl_statuses.contains(&response.status) {
            return Err(NotStored::Status);
        }
        if said.no_cache {
            return Ok(windows(route, said, Duration::ZERO, Duration::ZERO));
        }
        return by_route(route, response.status, said);
    };
    let age = initial_age(response);
    Ok(windows(route, said, age, lifetime.saturating_sub(age)))
}

/// RFC 9111 section 4.2.1, without heuristics.
fn explicit_lifetime(shared: bool, said: &ResponseDirectives, response: Response<'_>) -> Option<Duration> {
    if let Some(lifetime) = said.s_maxage.filter(|_| shared).or(said.max_age) {
        return Some(Duration::from_secs(lifetime));
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

/// RFC 9111 section 4.2.3; of several `Age` values the largest counts.
fn initial_age(response: Response<'_>) -> Duration {
    let apparent = date(response.headers).map_or(0, |date| response.now.millis_since(date));
    let age = response
        .headers
        .get_all(header::AGE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|value| seconds(value.trim()))
        .max()
        .unwrap_or(0);
    let corrected =
        age.saturating_mul(1_000).saturating_add(response.now.millis_since(response.requested_at));
    // `Date` has whole seconds: what arrives at once is not half a second old.
    Duration::from_secs(apparent.max(corrected) / 1_000)
}

fn windows(route: &RouteCache, said: ResponseDirectives, age: Duration, fresh_for: Duration) -> Storable {
    let forbidden = said.forbids_stale(route.shared);
    let window = |said: Option<u64>, route: Option<Duration>| {
        if forbidden { Duration::ZERO } else { said.map(Duration::from_secs).or(route).unwrap_or_default() }
    };
    Storable {
        age,
        fresh_for: if said.no_cache { Duration::ZERO } else { fresh_for },
        stale_while_revalidate: window(said.stale_while_revalidate, route.stale_while_revalidate),
        stale_if_error: window(said.stale_if_error, route.stale_if_error),
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

    struct Case(RouteCache, u16, bool, HeaderMap);

    fn private() -> Case {
        Case(RouteCache::new("r"), 200, false, HeaderMap::new())
    }

    fn shared() -> Case {
        Case(RouteCache { shared: true, ..RouteCache::new("r") }, 200, false, HeaderMap::new())
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
        fn stale(mut self, seconds: u64) -> Self {
            self.0.stale_while_revalidate = Some(Duration::from_secs(seconds));
            self.0.stale_if_error = Some(Duration::from_secs(seconds));
            self
        }
        fn judge(&self) -> Result<Storable, NotStored> {
            let Self(route, status, authorised, headers) = self;
            let status = StatusCode::from_u16(*status).unwrap();
            let (authorised, now) = (*authorised, NOW);
            judge(route, DAY, Response { status, headers, authorised, requested_at: now, now })
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
        assert_eq!(private().cc("max-age=60").with("age", "20, 50").fresh(), Ok(10));
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
            (shared().cc("private=\"x\", max-age=60"), NotStored::Private),
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
        ];
        for (case, expected) in table {
            assert_eq!(case.fresh(), Ok(expected), "{:?}", case.3);
        }
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
