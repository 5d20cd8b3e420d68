use super::*;
use crate::cache::key::Target;
use crate::cache::request::Caller;
use crate::cache::settings::Settings;
use crate::clock::ManualClock;
use http::{HeaderName, HeaderValue, Method};
use std::sync::Arc;

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

fn transaction(route: RouteCache, cache_control: &'static str) -> Transaction {
    let cache = Cache::leak(&Settings::default(), 1024, None, false, Arc::new(ManualClock::at(NOW)));
    let mut headers = HeaderMap::new();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache_control));
    let target = Target { scheme: "http", host: "h", path: "/", query: None, caller: Caller::User("ada") };
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
    let header = response(
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
    let left = |without: &[HeaderName], with_cookies| {
        let mut header = header.clone();
        sanitise_for_storage(&mut header, without, with_cookies);
        let mut left: Vec<_> = header.headers.keys().map(|name| name.as_str().to_owned()).collect();
        left.sort_unstable();
        left.join(" ")
    };
    assert_eq!(left(&[], false), "etag x-kept");
    assert_eq!(left(&[HeaderName::from_static("x-kept")], true), "etag set-cookie");
}

#[test]
fn a_stored_response_has_a_date_and_the_age_it_came_with() {
    let mut cached = transaction(RouteCache::new("r"), "");
    cached.sent_upstream(NOW);
    let meta =
        judged(&mut cached, &response(200, &[("cache-control", "public, max-age=60"), ("age", "20")]), NOW);
    assert_eq!(unix(meta.fresh_until()), NOW.plus(Duration::from_secs(40)));
    assert_eq!(unix(meta.epoch()), UnixMillis(NOW.0 - 20_000));
    assert!(meta.headers().contains_key("date") && !meta.headers().contains_key("age"));
}

#[test]
fn a_304_without_a_date_makes_an_old_response_fresh_again() {
    let mut cached = transaction(RouteCache::new("r"), "");
    let fields =
        [("cache-control", "public, max-age=60"), ("etag", "\"1\""), ("x-n", "1"), ("content-type", "a/b")];
    let old = judged(&mut cached, &response(200, &fields), NOW);
    let later = NOW.plus(Duration::from_secs(3_600));
    cached.sent_upstream(later);
    let mut fresh = response(304, &[("etag", "\"1\""), ("x-n", "2"), ("content-type", "c/d")]);
    cached.upstream_responded(&mut fresh, Some(&old));
    let meta = judged(&mut cached, old.response_header(), later);
    assert_eq!(unix(meta.fresh_until()), later.plus(Duration::from_secs(60)));
    assert_eq!(meta.headers().get("x-n").unwrap(), "2");
    assert_eq!(meta.headers().get("content-type").unwrap(), "c/d");
}

#[test]
fn a_304_of_another_version_or_variant_changes_nothing() {
    for (name, value) in [("etag", "\"2\""), ("etag", "W/\"2\""), ("vary", "*"), ("vary", "x, y")] {
        let mut cached = transaction(RouteCache::new("r"), "");
        let fields = [("cache-control", "public, max-age=60"), ("etag", "\"1\""), ("vary", "Y")];
        let old = judged(&mut cached, &response(200, &fields), NOW);
        let mut fresh = response(304, &[("x-n", "2"), (name, value)]);
        cached.upstream_responded(&mut fresh, Some(&old));
        assert!(fresh.headers.is_empty(), "{name}: {value}");
        let judged = cached.judge(&HttpCache::new(), old.response_header(), &HeaderMap::new(), NOW);
        assert!(matches!(judged, RespCacheable::Uncacheable(_)), "{name}: {value}");
        assert_eq!(cached.not_stored(), Some(NotStored::OtherValidator), "{name}: {value}");
    }
}

#[test]
fn fields_that_are_not_kept_stay_away_when_a_304_brings_them_again() {
    let mut cached = transaction(RouteCache::new("r"), "");
    let fields =
        [("cache-control", "public, max-age=60, no-cache=\"x-one\""), ("etag", "\"1\""), ("x-one", "1")];
    let old = judged(&mut cached, &response(200, &fields), NOW);
    assert!(!old.headers().contains_key("x-one"));
    let mut fresh = response(304, &[("etag", "\"1\""), ("x-one", "2"), ("x-two", "2")]);
    cached.upstream_responded(&mut fresh, Some(&old));
    let new = judged(&mut cached, old.response_header(), NOW);
    assert!(!new.headers().contains_key("x-one") && new.headers().contains_key("x-two"));
}

#[test]
fn a_request_may_limit_how_stale_an_answer_it_takes_instead_of_an_error() {
    let mut cached = transaction(RouteCache::new("r"), "stale-if-error=5");
    let failed = Error::create(ErrorType::HTTPStatus(503), ErrorSource::Upstream, None, None);
    assert!(cached.serves_stale(Some(&failed), NOW.plus(Duration::from_secs(5))));
    assert!(!cached.serves_stale(Some(&failed), NOW.plus(Duration::from_secs(6))));
    assert!(cached.serves_stale(None, NOW.plus(Duration::from_secs(6))));
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
        ("max-stale=9", plain, 70, expire),
        ("max-age=99", plain, 70, expire),
        ("max-age=99, max-stale=10", plain, 70, fresh),
        ("min-fresh=0", plain, 70, expire),
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

#[tokio::test]
async fn only_a_plain_request_for_what_is_fresh_is_answered_at_once() {
    let cache = Cache::leak(&Settings::default(), 1024, None, false, Arc::new(ManualClock::at(NOW)));
    let route = Arc::new(RouteCache { ttl: Some(Duration::from_secs(60)), ..RouteCache::new("r") });
    let begin = |fields: &[(&'static str, &'static str)]| {
        let request = response(200, fields).headers.clone();
        let target =
            Target { scheme: "http", host: "h", path: "/", query: None, caller: Caller::User("ada") };
        let pending = Pending::new(&route, &Method::GET, &request, target, |_| None).unwrap();
        (pending.locally(cache, NOW), request)
    };
    let ask = |method: Method, fields: &[(&'static str, &'static str)], at: u64| {
        let (mut cached, request) = begin(fields);
        let now = NOW.plus(Duration::from_millis(at));
        cached.ready(&method, &request, now).map(|mut ready| {
            cached.report(&HttpCache::new(), ready.head.status, &mut ready.head.headers, true, now);
            ready
        })
    };
    let plain: &[(&str, &str)] = &[("x-kind", "a")];
    assert!(ask(Method::GET, plain, 0).is_none());

    let (mut cached, request) = begin(plain);
    let fields =
        [("cache-control", "max-age=60"), ("vary", "x-kind"), ("content-length", "5"), ("age", "10")];
    let header = response(200, &fields);
    let mut meta = cached.judge(&HttpCache::new(), &header, &request, NOW).unwrap_meta();
    meta.set_variance(cached.variant(&header.headers, &request).unwrap());
    let span = pingora::cache::trace::Span::inactive().handle();
    let tiers: &'static dyn pingora::cache::Storage = cache.tiers();
    let mut fill = tiers.get_miss_handler(&cached.key(), &meta, &span).await.unwrap();
    fill.write_body("hello".into(), true).await.unwrap();
    fill.finish().await.unwrap();

    let hit = ask(Method::GET, plain, 7_999).unwrap();
    let field = |name: &str| hit.head.headers.get(name).and_then(|value| value.to_str().ok());
    assert_eq!((hit.head.status, hit.stored.read(0).as_deref()), (StatusCode::OK, Some(&b"hello"[..])));
    assert!(hit.stored.length() == 5 && hit.stored.read(5).is_none());
    assert_eq!(
        (field("age"), field("x-cache"), field("accept-ranges")),
        (Some("17"), Some("HIT"), Some("bytes"))
    );
    let told = field("cache-status").unwrap();
    assert!(told.starts_with("tollgate; hit; ttl=43; ") && told.ends_with("; detail=memory"), "{told}");
    assert!(field("x-cache-key").is_some() && field("date").is_some());

    assert!(ask(Method::GET, plain, 49_999).is_some() && ask(Method::GET, plain, 50_000).is_none());
    assert!(ask(Method::HEAD, plain, 0).is_none());
    for other in ["range", "if-none-match", "if-modified-since", "if-range", "pragma", "cache-control"] {
        assert!(ask(Method::GET, &[("x-kind", "a"), (other, "no-cache")], 0).is_none(), "{other}");
    }
    assert!(ask(Method::GET, &[("x-kind", "b")], 0).is_none());
    assert!(ask(Method::GET, &[], 0).is_none());
    assert!(ask(Method::GET, &[("x-kind", "a"), ("accept", "*/*")], 0).is_some());
}
