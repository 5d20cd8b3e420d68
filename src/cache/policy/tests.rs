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
        self.3
            .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
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
        judge(route, DAY, Response { status, headers, scope, authorised, guarded_until, requested_at, now })
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
    assert_eq!(private().with("expires", &expires).with("expires", &expires).fresh(), Err(NotStored::Stale));
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
    let declared = |case: Case, status| case.status_ttl(status, 9).status(status).cc("public, max-age=60");
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
