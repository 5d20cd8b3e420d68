//! The response cache as clients see it: what is stored, what is served, and what is said about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http::Method;
use sfv::{BareItem, List, ListEntry, Parser};

use crate::support::client::{Client, RawConnection, RequestBuilder, Response};
use crate::support::concurrently;
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Received, Reply};
use crate::support::ports::free_addr;
use crate::support::raw_origin::{RawOrigin, Step};
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::Token;

/// Routes for everything these tests ask; `{origin}` is the upstream, further keys go in front.
pub fn config(origin: &str, cache: &str) -> String {
    format!(
        r#"
[admin]
listen = "{{admin}}"
token = "${{TOLLGATE_ADMIN_TOKEN}}"

[redis]
url = "${{REDIS_URL:-}}"
deadline = "1s"

[identity]
token_from = ["bearer", "cookie:session", "query:token"]
[identity.claim_headers]
org = "X-Org"

[cache]
{cache}

[policies.many]
key = "ip"
limit = 1000000
window = "1h"

[upstreams.app]
members = "{origin}"
read_timeout = "3s"

[defaults]
upstream = "app"

[[routes]]
name = "logout"
path = "/auth/logout"
methods = ["POST"]
auth = "required"
logout = "gateway"

[[routes]]
name = "open"
path = "/open/**"
limits = ["many"]
[routes.cache]
shared = true

[[routes]]
name = "open-stale"
path = "/stale/**"
limits = ["many"]
[routes.cache]
shared = true
stale_while_revalidate = "1m"
stale_if_error = "1m"

[[routes]]
name = "mine"
path = "/mine/**"
auth = "required"
limits = ["many"]
[routes.cache]
ttl = "5m"
stale_if_error = "1m"

[[routes]]
name = "maybe"
path = "/maybe/**"
auth = "optional"
[routes.cache]
ttl = "5m"

[[routes]]
name = "unlooked"
path = "/unlooked/**"
[routes.cache]
ttl = "5m"

[[routes]]
name = "small"
path = "/small/**"
[routes.cache]
ttl = "5m"
shared = true
max_object = "1KiB"

[[routes]]
name = "selected"
path = "/selected"
[routes.cache]
ttl = "5m"
shared = true
query = ["page"]

[[routes]]
name = "languages"
path = "/languages"
[routes.cache]
ttl = "5m"
shared = true
vary = ["accept-language"]

[[routes]]
name = "items"
path = "/items"
methods = ["GET", "HEAD"]
auth = "required"
[routes.cache]
ttl = "5m"
tags = ["items:{{user}}"]

[[routes]]
name = "item"
path = "/items/:id"
methods = ["GET", "HEAD"]
auth = "required"
[routes.cache]
ttl = "5m"
tags = ["item:{{id}}"]

[[routes]]
name = "change-item"
path = "/items/:id"
methods = ["PUT", "POST", "PATCH", "DELETE"]
auth = "required"
invalidates = ["items:{{user}}", "item:{{id}}"]
"#
    )
}

/// One gateway before an origin, with a Redis of its own.
pub struct Stage {
    pub redis: Redis,
    pub origin: Origin,
    pub gateway: Gateway,
    pub client: Client,
}

impl Stage {
    pub fn start() -> Self {
        Self::with_cache("")
    }

    /// `cache`: lines of the `[cache]` table.
    pub fn with_cache(cache: &str) -> Self {
        let redis = Redis::start();
        let origin = Origin::start();
        let gateway = gateway(&origin.addr().to_string(), cache, &redis.url());
        warm(&gateway, &origin);
        let client = gateway.client();
        Self { redis, origin, gateway, client }
    }

    pub fn another(&self) -> Gateway {
        gateway(&self.origin.addr().to_string(), "", &self.redis.url())
    }
}

pub fn gateway(origin: &str, cache: &str, redis: &str) -> Gateway {
    Gateway::builder().config(&config(origin, cache)).env("REDIS_URL", redis).start()
}

/// Asks until the cache is in use.
pub fn warm(gateway: &Gateway, origin: &Origin) {
    let client = gateway.client();
    origin.route("/open/warm", |_| Reply::text(200, "warm").header("cache-control", "max-age=60"));
    assert_eventually!(x_cache(&client.get("/open/warm").send()) == "HIT", "the cache comes into use");
    origin.clear();
}

pub fn x_cache(response: &Response) -> String {
    response.header("x-cache").unwrap_or("-").to_owned()
}

/// The parameters of tollgate's member of `Cache-Status`.
fn cache_status(response: &Response) -> Vec<(String, String)> {
    let text = response.header("cache-status").expect("a Cache-Status");
    let list: List = Parser::new(text).parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    let [ListEntry::Item(item)] = list.as_slice() else { panic!("one member: {text}") };
    assert_eq!(item.bare_item, BareItem::Token(sfv::token_ref("tollgate").to_owned()), "{text}");
    item.params
        .iter()
        .map(|(key, value)| {
            let value = match value {
                BareItem::Boolean(yes) => yes.to_string(),
                BareItem::Integer(number) => number.to_string(),
                BareItem::Token(token) => token.to_string(),
                BareItem::String(text) => text.as_str().to_owned(),
                other => panic!("{other:?} in {text}"),
            };
            (key.to_string(), value)
        })
        .collect()
}

fn says(response: &Response, key: &str) -> Option<String> {
    cache_status(response).into_iter().find(|(name, _)| name == key).map(|(_, value)| value)
}

/// An origin's answer that differs each time and may be kept for a minute.
pub fn numbered(cache_control: &'static str) -> impl Fn(&Received) -> Reply {
    let count = AtomicUsize::new(0);
    move |request| {
        let number = count.fetch_add(1, SeqCst);
        Reply::text(200, &format!("{} {number}", request.path)).header("cache-control", cache_control)
    }
}

fn get(stage: &Stage, path: &str) -> RequestBuilder {
    stage.client.get(path)
}

/// Plain hits in memory are answered before pingora's cache is asked; a condition that does not hold leaves the question
/// the same and the answer to pingora.
#[test]
fn a_plain_hit_is_answered_as_one_that_pingora_serves() {
    let stage = Stage::start();
    let bodies = [("/open/text", 200, "hello"), ("/open/empty", 200, ""), ("/open/gone", 410, "gone")];
    for (path, status, body) in bodies {
        stage.origin.route(path, move |_| {
            Reply::text(status, body)
                .header("cache-control", "max-age=60")
                .header("etag", "\"v1\"")
                .header("vary", "x-kind")
                .header("x-several", "1")
                .header("x-several", "2")
        });
    }
    let fields = |response: &Response| {
        let differs = |name: &str| ["x-request-id", "ratelimit", "x-ratelimit-remaining"].contains(&name);
        let timed = |name: &str| ["age", "cache-status", "date"].contains(&name) || name.contains("reset");
        let mut fields: Vec<(String, String)> = response
            .headers
            .iter()
            .filter(|(name, _)| !differs(name.as_str()))
            .map(|(name, value)| {
                let value = if timed(name.as_str()) { "any" } else { value.to_str().unwrap() };
                (name.to_string(), value.to_owned())
            })
            .collect();
        fields.sort();
        fields
    };
    for (path, status, body) in bodies {
        let ask =
            |name: &str, value: &str| get(&stage, path).header("x-kind", "a").header(name, value).send();
        assert_eq!(x_cache(&ask("x-none", "")), "MISS", "{path}");
        let plain = ask("x-none", "");
        let by_pingora = ask("if-none-match", "\"other\"");
        for hit in [&plain, &by_pingora] {
            assert_eq!((hit.code(), x_cache(hit).as_str()), (status, "HIT"), "{path}");
            assert_eq!(hit.text(), body, "{path}");
            assert_eq!(says(hit, "detail").as_deref(), Some("memory"), "{path}");
        }
        assert_eq!(fields(&plain), fields(&by_pingora), "{path}");
        // Another variant is not what is stored.
        assert_eq!(x_cache(&get(&stage, path).header("x-kind", "b").send()), "MISS", "{path}");
        assert_eq!(x_cache(&get(&stage, path).header("x-kind", "b").send()), "HIT", "{path}");
    }
    assert_eq!(stage.origin.hits(), 2 * bodies.len());
    let not_modified =
        get(&stage, "/open/text").header("x-kind", "a").header("if-none-match", "\"v1\"").send();
    assert_eq!((not_modified.code(), x_cache(&not_modified).as_str()), (304, "HIT"));
}

#[test]
fn a_plain_hit_treats_its_connection_and_is_logged_as_any_answer() {
    // More than the buffers of a connection take.
    const SIZE: usize = 20_000_000;
    let stage = Stage::with_cache("memory = \"256MiB\"\nmax_object = \"32MiB\"");
    let body = bytes::Bytes::from(vec![b'x'; SIZE]);
    stage.origin.route("/open/big", move |_| {
        Reply::new(200, body.clone())
            .header("cache-control", "max-age=60")
            .header("tollgate-cache-control", "max-age=50")
    });
    stage.origin.route("/open/small", |_| Reply::text(200, "hello").header("cache-control", "max-age=60"));
    for path in ["/open/big", "/open/small"] {
        let hit = || get(&stage, path).within(Duration::from_secs(30)).send();
        assert_eventually!(says(&hit(), "detail").as_deref() == Some("memory"), "it is in memory");
        assert!(hit().header("tollgate-cache-control").is_none());
    }
    let hits = stage.origin.hits();
    let host = format!("host: {}\r\nuser-agent: plain-hit\r\n", stage.gateway.addr());
    let counted = || stage.gateway.metric("tollgate_cache_total", &[("outcome", "hit")]).unwrap_or_default();
    let before = counted();
    let hits_in =
        |bytes: &[u8]| String::from_utf8_lossy(bytes).to_ascii_lowercase().matches("x-cache: hit").count();
    // Kept until the client ends it; HTTP/1.0 ends by itself.
    let mut kept = RawConnection::open(stage.gateway.addr());
    for end in ["", "connection: close\r\n"] {
        kept.send(format!("GET /open/small HTTP/1.1\r\n{host}{end}\r\n"));
        if end.is_empty() {
            kept.read_until(|bytes| bytes.ends_with(b"hello"));
        }
    }
    let last = kept.read_to_end();
    assert!(hits_in(&last) == 1 && last.ends_with(b"hello"));
    let mut old = RawConnection::open(stage.gateway.addr());
    old.send(format!("GET /open/small HTTP/1.0\r\n{host}\r\n"));
    assert!(old.read_to_end().ends_with(b"hello"));
    // An expectation without a body is nothing to wait for.
    let mut expecting = RawConnection::open(stage.gateway.addr());
    expecting
        .send(format!("GET /open/small HTTP/1.1\r\n{host}expect: 100-continue\r\nconnection: close\r\n\r\n"));
    assert!(expecting.read_to_end().ends_with(b"hello"));
    assert_eventually!(stage.gateway.count_logs("plain-hit") == 4, "all of them are logged");
    assert_eventually!(counted() - before > 3.5, "all of them are counted");
    assert_eq!(stage.origin.hits(), hits);

    // One that leaves in the middle of the body: what was sent is logged, and the others are served.
    let mut leaving = RawConnection::open(stage.gateway.addr());
    leaving.send(format!("GET /open/big HTTP/1.1\r\n{host}\r\n"));
    leaving.read_head();
    drop(leaving);
    let whole = format!("\"bytes\":{SIZE}");
    let broken_off = || {
        let logs = stage.gateway.logs();
        let line = logs.lines().find(|line| line.contains("/open/big") && line.contains("plain-hit"));
        line.is_some_and(|line| line.contains("\"cache\":\"hit\"") && !line.contains(&whole))
    };
    assert_eventually!(broken_off(), "what was not sent is not logged as sent");
    let again = get(&stage, "/open/big").within(Duration::from_secs(30)).send();
    assert_eq!((x_cache(&again).as_str(), again.body.len()), ("HIT", SIZE));
}

#[test]
fn a_miss_is_followed_by_hits_with_everything_said_about_them() {
    let stage = Stage::start();
    stage.origin.answer(|_| {
        Reply::text(200, "hello")
            .header("cache-control", "max-age=60")
            .header("etag", "\"v1\"")
            .header("x-ratelimit-remaining", "3")
            .header("x-request-id", "from-the-origin")
            .header("x-cache", "HIT")
            .header("connection", "x-hop")
            .header("x-hop", "1")
    });
    let miss = get(&stage, "/open/a?secret=token-in-the-query").send();
    assert_eq!((miss.code(), x_cache(&miss).as_str(), miss.text().as_str()), (200, "MISS", "hello"));
    assert_eq!(says(&miss, "fwd").as_deref(), Some("uri-miss"));
    assert_eq!(says(&miss, "stored").as_deref(), Some("true"));
    let hit = get(&stage, "/open/a?secret=token-in-the-query").send();
    assert_eq!((hit.code(), x_cache(&hit).as_str(), hit.text().as_str()), (200, "HIT", "hello"));
    assert_eq!(says(&hit, "hit").as_deref(), Some("true"));
    assert_eq!(says(&hit, "fwd"), None);
    assert_eq!(says(&hit, "detail").as_deref(), Some("memory"));
    let ttl: i64 = says(&hit, "ttl").unwrap().parse().unwrap();
    let age: i64 = hit.header("age").expect("an age").parse().unwrap();
    assert!((50..=60).contains(&ttl) && (0..=10).contains(&age), "ttl {ttl}, age {age}");
    assert_eq!(hit.header("etag"), Some("\"v1\""));
    assert_eq!(hit.header("x-hop"), None);
    assert_eq!(hit.header_all("content-length"), ["5"]);
    assert!(hit.header("date").is_some());

    let key = hit.header("x-cache-key").expect("a key");
    assert_eq!(miss.header("x-cache-key"), Some(key));
    assert!(key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");

    let remaining = |response: &Response| {
        assert_eq!(response.header_all("x-ratelimit-remaining").len(), 1, "{response:?}");
        response.header("x-ratelimit-remaining").unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(remaining(&hit) + 1, remaining(&miss), "a hit counts, and is told its own numbers");
    assert_eq!(hit.header_all("x-request-id").len(), 1);
    assert_ne!(hit.header("x-request-id"), miss.header("x-request-id"));
    assert_ne!(hit.header("x-request-id"), Some("from-the-origin"));
    assert_eq!(stage.origin.hits(), 1);
}

#[test]
fn the_key_is_not_sent_where_it_is_switched_off() {
    let stage = Stage::with_cache("expose_key = false");
    stage.origin.answer(numbered("max-age=60"));
    for _ in 0..2 {
        assert_eq!(get(&stage, "/open/a").send().header("x-cache-key"), None);
    }
}

#[test]
fn head_is_answered_from_what_get_stored_and_the_other_way_round() {
    let stage = Stage::start();
    stage.origin.answer(|_| Reply::text(200, "hello").header("cache-control", "max-age=60"));
    let text = format!(
        "{}\n[server]\nlisten = \"{}\"\nlisten_h2c = \"{{listen}}\"\n",
        config(&stage.origin.addr().to_string(), ""),
        free_addr()
    );
    let h2c = Gateway::builder().config(&text).env("REDIS_URL", &stage.redis.url()).start();
    for client in [stage.gateway.client(), h2c.h2c_client()] {
        for (first, second) in [(Method::GET, Method::HEAD), (Method::HEAD, Method::GET)] {
            let path = format!("/open/{first}-{:?}", client.get("/").send().version);
            let one = client.request(first.clone(), &path).send();
            assert_eq!(x_cache(&one), "MISS", "{path}");
            let two = client.request(second.clone(), &path).send();
            assert_eq!(x_cache(&two), "HIT", "{path}");
            for (method, response) in [(first, one), (second, two)] {
                assert_eq!(response.header("content-length"), Some("5"), "{method} {path}");
                assert_eq!(response.text(), if method == Method::GET { "hello" } else { "" });
                assert!(
                    response.header("x-ratelimit-limit").is_some()
                        && response.header("x-request-id").is_some()
                );
            }
        }
    }
}

#[test]
fn conditions_are_judged_by_the_cache() {
    let stage = Stage::start();
    let modified = "Sun, 06 Nov 1994 08:49:37 GMT";
    stage.origin.answer(move |_| {
        Reply::text(200, "hello")
            .header("cache-control", "max-age=60")
            .header("etag", "\"v1\"")
            .header("last-modified", modified)
            .header("vary", "accept")
    });
    get(&stage, "/open/a").send();
    for (name, value, code) in [
        ("if-none-match", "\"v1\"", 304),
        ("if-none-match", "W/\"v1\"", 304),
        ("if-none-match", "\"v0\", \"v1\"", 304),
        ("if-none-match", "*", 304),
        ("if-none-match", "\"v2\"", 200),
        ("if-modified-since", modified, 304),
        ("if-modified-since", "Sun, 06 Nov 1994 08:49:36 GMT", 200),
    ] {
        let response = get(&stage, "/open/a").header(name, value).send();
        assert_eq!(response.code(), code, "{name}: {value}");
        assert_eq!(x_cache(&response), "HIT");
        assert_eq!(response.header("etag"), Some("\"v1\""));
        assert!(response.header("x-ratelimit-remaining").is_some(), "{name}: {value}");
        assert!(response.header("x-request-id").is_some());
        if code == 304 {
            assert!(response.body.is_empty());
            assert!(response.header("date").is_some() && response.header("cache-control").is_some());
        }
    }
    assert_eq!(stage.origin.hits(), 1);
    // On a miss the whole response is fetched, and the condition judged here.
    let response = get(&stage, "/open/b").header("if-none-match", "\"v1\"").send();
    assert_eq!((response.code(), x_cache(&response).as_str()), (304, "MISS"));
    assert_eq!(stage.origin.last().header("if-none-match"), None);
    let response = get(&stage, "/open/b").send();
    assert_eq!(
        (response.code(), response.text().as_str(), x_cache(&response).as_str()),
        (200, "hello", "HIT")
    );
}

#[test]
fn a_stale_response_is_revalidated() {
    let stage = Stage::start();
    stage.origin.answer(|request| {
        let same = request.header("if-none-match") == Some("\"v1\"");
        let reply = if same { Reply::new(304, "") } else { Reply::text(200, "hello") };
        reply.header("cache-control", "no-cache").header("etag", "\"v1\"")
    });
    assert_eq!(x_cache(&get(&stage, "/open/a").send()), "MISS");
    for _ in 0..2 {
        let response = get(&stage, "/open/a").send();
        assert_eq!((response.code(), response.text().as_str()), (200, "hello"));
        assert_eq!(x_cache(&response), "REVALIDATED");
        assert_eq!(says(&response, "fwd-status").as_deref(), Some("304"));
        assert!(
            response.header("x-ratelimit-remaining").is_some() && response.header("x-request-id").is_some()
        );
    }
    assert_eq!(stage.origin.hits(), 3);
    let response = get(&stage, "/open/a").header("if-none-match", "\"v1\"").send();
    assert_eq!(response.code(), 304);
    assert!(response.header("x-ratelimit-remaining").is_some());
}

#[test]
fn ranges_are_cut_from_what_is_stored() {
    let stage = Stage::start();
    stage.origin.answer(|_| {
        Reply::text(200, "0123456789").header("cache-control", "max-age=60").header("etag", "\"v1\"")
    });
    // Of a body whose length nobody knows yet the whole is sent.
    stage.origin.route("/open/chunked", |_| {
        Reply::text(200, "0123456789").header("cache-control", "max-age=60").chunked()
    });
    let whole = get(&stage, "/open/chunked").header("range", "bytes=2-4").send();
    assert_eq!((whole.code(), whole.text().as_str()), (200, "0123456789"));
    let part = get(&stage, "/open/chunked").header("range", "bytes=2-4").send();
    assert_eq!((part.code(), part.text().as_str(), x_cache(&part).as_str()), (206, "234", "HIT"));
    stage.origin.clear();
    // The first request is for a range already: the whole is fetched and stored.
    let first = get(&stage, "/open/a").header("range", "bytes=2-4").send();
    assert_eq!((first.code(), first.text().as_str(), x_cache(&first).as_str()), (206, "234", "MISS"));
    assert_eq!(stage.origin.last().header("range"), None);
    let whole = get(&stage, "/open/a").send();
    assert_eq!((whole.code(), whole.text().as_str(), x_cache(&whole).as_str()), (200, "0123456789", "HIT"));
    for (range, code, body, content_range) in [
        ("bytes=0-0", 206, "0", Some("bytes 0-0/10")),
        ("bytes=-3", 206, "789", Some("bytes 7-9/10")),
        ("bytes=8-", 206, "89", Some("bytes 8-9/10")),
        ("bytes=20-", 416, "", Some("bytes */10")),
        ("lines=1-2", 200, "0123456789", None),
    ] {
        let response = get(&stage, "/open/a").header("range", range).send();
        assert_eq!(response.code(), code, "{range}");
        assert_eq!(response.header("content-range"), content_range, "{range}");
        if code != 416 {
            assert_eq!(response.text(), body, "{range}");
        }
        assert_eq!(x_cache(&response), "HIT", "{range}");
        assert!(
            response.header("x-ratelimit-remaining").is_some() && response.header("x-request-id").is_some()
        );
    }
    let old = get(&stage, "/open/a").header("range", "bytes=0-1").header("if-range", "\"v0\"").send();
    assert_eq!((old.code(), old.text().as_str()), (200, "0123456789"));
    assert_eq!(stage.origin.hits(), 1);
}

#[test]
fn a_partial_answer_is_never_stored() {
    let stage = Stage::start();
    stage.origin.answer(|_| {
        Reply::text(206, "234").header("content-range", "bytes 2-4/10").header("cache-control", "max-age=60")
    });
    for _ in 0..2 {
        assert_ne!(x_cache(&get(&stage, "/open/a").header("range", "bytes=2-4").send()), "HIT");
        assert_ne!(x_cache(&get(&stage, "/open/a").send()), "HIT");
    }
    // A whole status on a part of a body.
    stage.origin.answer(|_| {
        Reply::text(200, "234").header("content-range", "bytes 2-4/10").header("cache-control", "max-age=60")
    });
    for _ in 0..2 {
        assert_ne!(x_cache(&get(&stage, "/open/b").send()), "HIT");
    }
}

#[test]
fn vary_and_declared_headers_tell_responses_apart() {
    let stage = Stage::start();
    stage.origin.answer(|request| {
        let say = |name| request.header(name).unwrap_or("-").to_owned();
        let body = format!("{} {}", say("accept-language"), say("x-flavour"));
        let reply = Reply::text(200, &body).header("cache-control", "max-age=60");
        if request.path.starts_with("/open") { reply.header("vary", "X-Flavour") } else { reply }
    });
    for round in 0..3 {
        for flavour in ["sweet", "sour"] {
            let response = get(&stage, "/open/a").header("x-flavour", flavour).send();
            assert_eq!(response.text(), format!("- {flavour}"));
            assert_eq!(
                x_cache(&response) == "HIT",
                round > 0,
                "round {round} {flavour}: {}",
                x_cache(&response)
            );
        }
        let response = get(&stage, "/open/a").send();
        assert_eq!(response.text(), "- -");
        for language in ["de", "en"] {
            let response = get(&stage, "/languages").header("accept-language", language).send();
            assert_eq!(response.text(), format!("{language} -"));
            assert_eq!(x_cache(&response) == "HIT", round > 0);
        }
    }
    assert_eq!(stage.origin.hits(), 5);
}

#[test]
fn compressed_bodies_reach_only_those_who_asked_for_them() {
    let stage = Stage::start();
    stage.origin.answer(|request| {
        let gzip = request.header("accept-encoding").is_some_and(|value| value.contains("gzip"));
        let reply = if gzip {
            Reply::text(200, "compressed").header("content-encoding", "gzip")
        } else {
            Reply::text(200, "plain")
        };
        let reply = reply.header("cache-control", "max-age=60");
        if request.path == "/open/says" { reply.header("vary", "accept-encoding") } else { reply }
    });
    // Also an origin that forgets `Vary`: what is encoded is not given to others.
    for path in ["/open/says", "/open/forgets"] {
        for _ in 0..2 {
            let gzip = get(&stage, path).header("accept-encoding", "gzip").send();
            if path == "/open/says" {
                assert_eq!(gzip.text(), "compressed");
            }
            assert_eq!(
                gzip.text() == "compressed",
                gzip.header("content-encoding") == Some("gzip"),
                "{path}"
            );
            let plain = get(&stage, path).send();
            assert_eq!((plain.text().as_str(), plain.header("content-encoding")), ("plain", None), "{path}");
        }
    }
}

#[test]
fn what_must_not_be_stored_is_fetched_each_time() {
    let stage = Stage::start();
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("no-store", &[("cache-control", "no-store, max-age=60")]),
        ("private", &[("cache-control", "private, max-age=60")]),
        ("cookie", &[("cache-control", "max-age=60"), ("set-cookie", "a=b")]),
        ("vary-any", &[("cache-control", "max-age=60"), ("vary", "*")]),
        ("nothing-said", &[]),
        ("expired", &[("expires", "0")]),
        ("max-age-0", &[("cache-control", "max-age=0")]),
        ("max-age-bad", &[("cache-control", "max-age=sixty")]),
        ("two", &[("cache-control", "max-age=60"), ("cache-control", "no-store")]),
        ("old", &[("cache-control", "max-age=60"), ("age", "61")]),
    ];
    for (name, headers) in cases {
        let path = format!("/open/{name}");
        stage.origin.route(&path, |_| headers.iter().fold(Reply::text(200, "x"), |r, (n, v)| r.header(n, v)));
        for _ in 0..3 {
            let response = get(&stage, &path).send();
            assert!(
                ["MISS", "BYPASS"].contains(&x_cache(&response).as_str()),
                "{name}: {}",
                x_cache(&response)
            );
            cache_status(&response);
        }
        assert_eq!(stage.origin.received_at(&path).len(), 3, "{name}");
    }
    // A credential on a shared route: only where the origin allows it (RFC 9111 section 3.5).
    for (cache_control, stored) in
        [("max-age=60", false), ("public, max-age=60", true), ("s-maxage=60", true)]
    {
        let path = format!("/open/auth-{stored}-{}", cache_control.len());
        stage.origin.route(&path, move |_| Reply::text(200, "x").header("cache-control", cache_control));
        get(&stage, &path).bearer("whatever").send();
        assert_eq!(x_cache(&get(&stage, &path).bearer("other").send()) == "HIT", stored, "{cache_control}");
    }
    // The request says so.
    stage.origin.answer(numbered("max-age=60"));
    let response = get(&stage, "/open/mine").header("cache-control", "no-store").send();
    assert_eq!(x_cache(&response), "BYPASS");
    assert_eq!(x_cache(&get(&stage, "/open/mine").send()), "MISS");
    let fresh = get(&stage, "/open/mine").header("cache-control", "no-cache").send();
    assert_eq!((x_cache(&fresh).as_str(), fresh.text().as_str()), ("MISS", "/open/mine 2"));
    assert_eq!(says(&fresh, "fwd").as_deref(), Some("request"));
    assert_eq!(
        get(&stage, "/open/mine").send().text(),
        "/open/mine 2",
        "what was fetched replaces what was there"
    );
    let only = get(&stage, "/open/never").header("cache-control", "only-if-cached").send();
    assert_eq!(only.code(), 504);
}

#[test]
fn what_may_be_stored_is_and_expires() {
    let stage = Stage::start();
    stage.origin.route("/open/404", |_| Reply::text(404, "no").header("cache-control", "max-age=60"));
    stage.origin.route("/open/expires", |_| {
        Reply::text(200, "x")
            .header("date", "Sun, 06 Nov 1994 08:49:37 GMT")
            .header("expires", "Sun, 06 Nov 2094 08:49:37 GMT")
            .header("cache-control", "public")
    });
    for path in ["/open/404", "/open/expires"] {
        get(&stage, path).send();
        let expected = if path == "/open/404" { "HIT" } else { "MISS" };
        // A hundred years of life, but the `Date` says that most of any allowed life has passed.
        let response = get(&stage, path).send();
        if path == "/open/404" {
            assert_eq!(x_cache(&response), expected, "{path}");
        }
    }
    stage.origin.answer(numbered("max-age=1"));
    assert_eq!(get(&stage, "/open/short").send().text(), "/open/short 0");
    assert_eventually!(get(&stage, "/open/short").send().text() != "/open/short 0", "a response expires");
    // A status that says nothing of itself is not covered by the route's ttl.
    stage.origin.route("/unlooked/500", |_| Reply::text(500, "no"));
    for _ in 0..2 {
        assert_ne!(x_cache(&get(&stage, "/unlooked/500").send()), "HIT");
    }
    stage.origin.route("/unlooked/ok", |_| Reply::text(200, "yes"));
    get(&stage, "/unlooked/ok").send();
    assert_eq!(x_cache(&get(&stage, "/unlooked/ok").send()), "HIT");
}

#[test]
fn bodies_above_the_bound_pass_through_and_are_not_stored() {
    let stage = Stage::start();
    let (big, small) = ("x".repeat(1025), "x".repeat(1024));
    for (name, body, chunked, stored) in [
        ("big", &big, false, false),
        ("big-chunked", &big, true, false),
        ("small", &small, false, true),
        ("small-chunked", &small, true, true),
    ] {
        let path = format!("/small/{name}");
        let reply = Reply::text(200, body);
        let reply = if chunked { reply.chunked() } else { reply };
        stage.origin.route(&path, move |_| reply.clone());
        for round in 0..3 {
            let response = get(&stage, &path).send();
            assert_eq!(response.text(), *body, "{name}");
            assert_eq!(x_cache(&response) == "HIT", stored && round > 0, "{name} round {round}");
        }
    }
}

#[test]
fn a_body_that_breaks_off_is_not_stored() {
    let stage = Stage::start();
    for chunked in [false, true] {
        let path = format!("/open/broken-{chunked}");
        let reply = Reply::text(200, "0123456789").header("cache-control", "max-age=60");
        let reply = if chunked { reply.chunked() } else { reply };
        let broken = reply.clone().break_in_body_after(4);
        stage.origin.route(&path, move |_| broken.clone());
        for _ in 0..2 {
            assert!(get(&stage, &path).try_send().is_err(), "what is cut short must look so");
        }
        stage.origin.route(&path, move |_| reply.clone());
        let whole = get(&stage, &path).send();
        assert_eq!((whole.text().as_str(), x_cache(&whole).as_str()), ("0123456789", "MISS"));
        assert_eq!(x_cache(&get(&stage, &path).send()), "HIT");
    }
}

#[test]
fn answers_that_are_not_whole_on_the_wire_are_not_stored() {
    let redis = Redis::start();
    for (what, bytes) in [
        ("shorter than declared", &b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 10\r\n\r\n0123"[..]),
        ("chunks without an end", b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n4\r\n0123\r\n"),
        ("half a chunk", b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n9\r\n0123"),
    ] {
        let origin = RawOrigin::playing(vec![Step::read_head(), Step::send(bytes), Step::Close]);
        let gateway = gateway(&origin.addr().to_string(), "", &redis.url());
        let client = gateway.client();
        for _ in 0..3 {
            if let Ok(response) = client.get("/open/a").try_send() {
                assert_ne!(x_cache(&response), "HIT", "{what}");
            }
        }
    }
}

#[test]
fn early_hints_are_neither_stored_nor_in_the_way() {
    let redis = Redis::start();
    let origin = RawOrigin::answering(
        "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\ncache-control: max-age=60\r\n\r\n\
         HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 2\r\n\r\nok",
    );
    let gateway = gateway(&origin.addr().to_string(), "", &redis.url());
    let client = gateway.client();
    assert_eventually!(
        {
            let response = client.get("/open/a").send();
            assert_eq!((response.code(), response.text().as_str()), (200, "ok"));
            assert_eq!(response.header("link"), None);
            x_cache(&response) == "HIT"
        },
        "the final response is stored"
    );
}

#[test]
fn a_second_instance_is_served_from_redis() {
    let stage = Stage::start();
    let other = stage.another();
    stage.origin.answer(|_| {
        Reply::text(200, "hello")
            .header("cache-control", "max-age=60")
            .header("x-own", "1")
            .header("x-own", "2")
    });
    let before = redis_entries(&stage.redis).len();
    let first = get(&stage, "/open/a").host("api.example").send();
    assert_eq!(x_cache(&first), "MISS");
    assert_eventually!(redis_entries(&stage.redis).len() > before, "the response reaches Redis");
    let second = other.client().get("/open/a").host("api.example").send();
    assert_eq!((x_cache(&second).as_str(), second.text().as_str()), ("HIT", "hello"));
    assert_eq!(says(&second, "detail").as_deref(), Some("redis"));
    assert_eq!(second.header_all("x-own"), ["1", "2"]);
    assert_eq!(second.header("x-cache-key"), first.header("x-cache-key"));
    let third = other.client().get("/open/a").host("api.example").send();
    assert_eq!(says(&third, "detail").as_deref(), Some("memory"));
    assert_eq!(stage.origin.hits(), 1);
    let lasting: Vec<_> = stage
        .redis
        .keys_without_ttl()
        .into_iter()
        .filter(|key| !["cache_tag:-epoch", "cache_tag:{-prefixes}"].contains(&key.as_str()))
        .collect();
    assert!(lasting.is_empty(), "{lasting:?}");
}

fn redis_entries(redis: &Redis) -> Vec<String> {
    redis.keys().into_iter().filter(|key| key.starts_with("cache:")).collect()
}

#[test]
fn damaged_forged_and_foreign_entries_in_redis_are_ignored() {
    let stage = Stage::start();
    stage.origin.answer(|request| {
        Reply::text(200, &format!("true {}", request.path)).header("cache-control", "max-age=60")
    });
    let before = redis_entries(&stage.redis);
    get(&stage, "/open/a").host("api.example").send();
    get(&stage, "/open/b").host("api.example").send();
    assert_eventually!(redis_entries(&stage.redis).len() == before.len() + 2, "both reach Redis");
    let mut client = stage.redis.client();
    let keys: Vec<String> =
        redis_entries(&stage.redis).into_iter().filter(|key| !before.contains(key)).collect();
    let value = |client: &mut redis::Connection, key: &str| -> Vec<u8> {
        redis::cmd("GET").arg(key).query(client).unwrap()
    };
    let (one, two) = (value(&mut client, &keys[0]), value(&mut client, &keys[1]));
    let flipped = |at: usize| {
        let mut bytes = one.clone();
        let at = at % bytes.len();
        bytes[at] ^= 1;
        bytes
    };
    // The same bytes with a lie in the body; only who has the secret could make it fit again.
    let position = one.windows(5).position(|part| part == b"true ").expect("the body is there to be read");
    let mut lie = one.clone();
    lie[position..position + 4].copy_from_slice(b"fake");
    let forgeries = [
        lie,
        two,
        flipped(0),
        flipped(5),
        flipped(30),
        flipped(one.len() - 1),
        one[..one.len() / 2].to_vec(),
        [&one[..], b"more"].concat(),
        Vec::new(),
        b"HTTP/1.1 200 OK\r\n\r\nforged".to_vec(),
        vec![0xff; 4096],
    ];
    for forged in forgeries {
        redis::cmd("SET").arg(&keys[0]).arg(&forged).arg("EX").arg(60).exec(&mut client).unwrap();
        // An instance with an empty memory.
        let other = stage.another();
        for path in ["/open/a", "/open/b"] {
            let response = other.client().get(path).host("api.example").send();
            assert_eq!((response.code(), response.text()), (200, format!("true {path}")));
        }
        redis::cmd("SET").arg(&keys[0]).arg(&one).arg("EX").arg(60).exec(&mut client).unwrap();
    }
    redis::cmd("DEL").arg(&keys[0]).exec(&mut client).unwrap();
    redis::cmd("LPUSH").arg(&keys[0]).arg("a list").exec(&mut client).unwrap();
    let other = stage.another();
    for path in ["/open/a", "/open/b"] {
        assert_eq!(other.client().get(path).host("api.example").send().text(), format!("true {path}"));
    }
}

#[test]
fn without_redis_the_memory_tier_goes_on() {
    let redis = Redis::start();
    let relay = Relay::to(redis.addr());
    let origin = Origin::start();
    let text = config(&origin.addr().to_string(), "").replace("deadline = \"1s\"", "deadline = \"20ms\"");
    let gateway = Gateway::builder().config(&text).env("REDIS_URL", &relay.redis_url()).start();
    warm(&gateway, &origin);
    origin.answer(numbered("max-age=60"));
    let client = gateway.client();
    let ada = Token::of("ada").sign();
    let read = |path: &str| client.get(path).bearer(&ada).send();
    // At this deadline Redis may be too late to say under which generation it can be kept.
    assert_eventually!(x_cache(&read("/items/1")) == "HIT", "it is stored");
    let before = read("/items/1").text();
    for outage in [Relay::cut, Relay::black_hole] {
        outage(&relay);
        let mut slowest = Duration::ZERO;
        for number in 0..20 {
            let response = read("/items/1");
            assert_eq!((response.code(), response.text()), (200, before.clone()), "memory goes on");
            slowest = slowest.max(response.took);
            let response = read(&format!("/items/new-{number}"));
            assert_eq!(response.code(), 200, "misses go upstream");
            slowest = slowest.max(response.took);
        }
        assert_eq!(x_cache(&read("/items/new-3")), "HIT", "what is fetched meanwhile is stored");
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        // A write is seen at once here; what others may not have yet is handed over later.
        assert_eq!(client.put("/items/1").bearer(&ada).body("x").send().code(), 200);
        assert_ne!(read("/items/1").text(), before);
        relay.restore();
        assert_eventually!(gateway.metric("tollgate_store_degraded", &[]) == Some(0.0), "Redis is back");
        // The relay's next outage starts from the same state.
        origin.route("/items/1", {
            let before = before.clone();
            move |_| Reply::text(200, &before)
        });
        client.put("/items/1").bearer(&ada).body("x").send();
        assert_eq!(read("/items/1").text(), before);
        origin.route("/items/1", numbered("max-age=60"));
    }
}

#[test]
fn fifty_concurrent_misses_are_one_request_upstream() {
    let stage = Stage::start();
    stage.origin.answer(|request| {
        let who = request.header("x-user-id").unwrap_or("-");
        Reply::text(200, who).header("cache-control", "max-age=60").after(Duration::from_millis(300))
    });
    let responses = concurrently(50, |_| stage.gateway.client().get("/open/crowd").send());
    assert!(responses.iter().all(|response| response.code() == 200 && response.text() == "-"));
    assert_eq!(stage.origin.received_at("/open/crowd").len(), 1);
    assert_eq!(responses.iter().filter(|response| x_cache(response) == "MISS").count(), 1);
    let mut ids: Vec<_> = responses.iter().filter_map(|response| response.header("x-request-id")).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 50, "each has an id of its own");

    // Of several users each gets what was made for them.
    let names = ["ada", "bob", "eve", "joe"];
    let bodies = concurrently(40, |number| {
        let name = names[number % names.len()];
        (name, stage.gateway.client().get("/mine/crowd").bearer(&Token::of(name).sign()).send().text())
    });
    assert!(bodies.iter().all(|(name, body)| name == body), "{bodies:?}");
    assert_eq!(stage.origin.received_at("/mine/crowd").len(), names.len());
}

#[test]
fn what_turns_out_unstorable_does_not_queue_those_who_waited() {
    let stage = Stage::start();
    let pause = Duration::from_millis(300);
    stage.origin.answer(move |_| Reply::text(200, "x").header("cache-control", "no-store").after(pause));
    let responses = concurrently(12, |_| stage.gateway.client().get("/open/unstorable").send());
    let slowest = responses.iter().map(|response| response.took).max().unwrap();
    assert!(slowest < pause * 12, "one by one would take {:?}, it took {slowest:?}", pause * 12);
    // Once known, nobody waits for anybody.
    let responses = concurrently(12, |_| stage.gateway.client().get("/open/unstorable").send());
    assert!(responses.iter().all(|response| response.code() == 200 && x_cache(response) != "HIT"));
}

#[test]
fn a_leader_that_fails_does_not_fail_those_who_waited() {
    let stage = Stage::start();
    let first = Arc::new(AtomicUsize::new(0));
    stage.origin.answer(move |_| {
        let reply = Reply::text(200, "0123456789").header("cache-control", "max-age=60");
        let reply = reply.after(Duration::from_millis(200));
        if first.fetch_add(1, SeqCst) == 0 { reply.break_in_body_after(3) } else { reply }
    });
    let outcomes = concurrently(10, |_| stage.gateway.client().get("/open/leader").try_send());
    let whole = outcomes.iter().flatten().filter(|response| response.text() == "0123456789").count();
    assert!(whole >= 8, "{whole} of 10 got their answer");
}

#[test]
fn stale_responses_are_served_while_one_request_refreshes_them() {
    let stage = Stage::start();
    stage.origin.answer(numbered("max-age=1"));
    let read = || stage.client.get("/stale/a").send();
    assert_eq!(read().text(), "/stale/a 0");
    let before: u64 = read().header("x-ratelimit-remaining").unwrap().parse().unwrap();
    let (mut asked, mut old) = (0, None);
    assert_eventually!(
        {
            let response = read();
            asked += 1;
            if x_cache(&response) == "STALE" {
                old = Some(response);
            }
            old.is_some()
        },
        "a response becomes stale"
    );
    assert_eq!(old.unwrap().text(), "/stale/a 0", "nobody waits");
    assert_eventually!(
        {
            asked += 1;
            read().text() != "/stale/a 0"
        },
        "it is refreshed meanwhile"
    );
    let after: u64 = read().header("x-ratelimit-remaining").unwrap().parse().unwrap();
    assert_eq!(before - after, asked + 1, "refreshing costs the client nothing");
}

#[test]
fn errors_are_covered_by_stale_responses() {
    let stage = Stage::start();
    stage
        .origin
        .answer(|_| Reply::text(200, "good").header("cache-control", "max-age=1, stale-while-revalidate=0"));
    let read = || stage.client.get("/stale/b").send();
    assert_eq!(read().text(), "good");
    stage.origin.answer(|_| Reply::text(500, "bad"));
    assert_eventually!(
        {
            let response = read();
            assert_eq!((response.code(), response.text().as_str()), (200, "good"));
            x_cache(&response) == "STALE"
        },
        "an error is answered with what was good before"
    );
    stage.origin.stop();
    let response = read();
    assert_eq!((response.code(), response.text().as_str()), (200, "good"), "so is silence");
    assert_eq!(response.header("connection"), Some("close"), "pingora ends it");
    stage.origin.resume();
    stage.origin.answer(|_| Reply::text(200, "better").header("cache-control", "max-age=60"));
    assert_eventually!(read().text() == "better", "the origin is back");
}

#[test]
fn refreshing_in_the_background_is_done_as_the_user_who_asked() {
    let redis = Redis::start();
    let origin = Origin::start();
    let text = config(&origin.addr().to_string(), "").replace("path = \"/mine/**\"\nauth = \"required\"\nlimits = [\"many\"]\n[routes.cache]\nttl = \"5m\"", "path = \"/mine/**\"\nauth = \"required\"\n[routes.cache]\nttl = \"1s\"\nstale_while_revalidate = \"1m\"");
    let text = format!("{text}\n[server]\nlisten = \"{}\"\nlisten_h2c = \"{{listen}}\"\n", free_addr());
    let (h2c, text) = (text.clone(), text.split_once("\n[server]").unwrap().0.to_owned());
    let h2c = Gateway::builder().config(&h2c).env("REDIS_URL", &redis.url()).start();
    let gateway = Gateway::builder().config(&text).env("REDIS_URL", &redis.url()).start();
    warm(&gateway, &origin);
    let count = AtomicUsize::new(0);
    origin.answer(move |request| {
        let number = count.fetch_add(1, SeqCst);
        Reply::text(200, &format!("{} {number}", request.header("x-user-id").unwrap_or("nobody")))
    });
    for (way, name) in [("bearer", "ada"), ("cookie", "bob"), ("query", "eve")] {
        for (method, client) in [
            (Method::GET, gateway.client()),
            (Method::HEAD, gateway.client()),
            (Method::GET, h2c.h2c_client()),
        ] {
            let token = Token::of(name).sign();
            let path = format!("/mine/{way}-{method}-{:?}", client.get("/").send().version);
            let ask = |method: &Method| {
                let request = |path: &str| client.request(method.clone(), path);
                match way {
                    "bearer" => request(&path).bearer(&token).send(),
                    "cookie" => request(&path).header("cookie", &format!("session={token}")).send(),
                    _ => request(&format!("{path}?token={token}&x=1")).send(),
                }
            };
            let first = ask(&Method::GET);
            assert!(first.text().starts_with(name), "{way}: {}", first.text());
            // An h2 request whose token was in its query is not repeated: it refreshes by itself.
            let alone = way == "query" && path.ends_with("2.0");
            let expected = if alone { "MISS" } else { "STALE" };
            assert_eventually!(x_cache(&ask(&method)) == expected, format!("{path} becomes stale"));
            assert_eventually!(
                origin.received_at(&path).len() >= 2,
                format!("{path} is refreshed in the background")
            );
            let second = ask(&Method::GET);
            assert!(second.text().starts_with(name), "{way}: {}", second.text());
            assert!(
                origin.received_at(&path).iter().all(|request| request.header("x-user-id") == Some(name))
            );
        }
    }
}

#[test]
fn memory_stays_within_its_bound() {
    let stage = Stage::with_cache("memory = \"4MiB\"\nredis = false");
    let body = "x".repeat(40_000);
    stage.origin.answer(move |_| Reply::text(200, &body).header("cache-control", "max-age=60"));
    let bound = 4.0 * 1024.0 * 1024.0;
    let mut most: f64 = 0.0;
    concurrently(8, |thread| {
        let client = stage.gateway.client();
        for number in 0..50 {
            assert_eq!(client.get(&format!("/open/{thread}/{number}")).send().code(), 200);
        }
    });
    for _ in 0..5 {
        most = most.max(stage.gateway.metric("tollgate_cache_bytes", &[]).expect("a gauge"));
        get(&stage, &format!("/open/{most}")).send();
    }
    assert!(most > bound / 8.0 && most <= bound, "{most} of {bound} bytes after 16 MB");
    // A giant head counts as well: variants of one object are bounded too.
    stage
        .origin
        .answer(|_| Reply::text(200, "x").header("cache-control", "max-age=60").header("vary", "x-v"));
    let entries = stage.gateway.metric("tollgate_cache_entries", &[]).unwrap();
    for number in 0..100 {
        get(&stage, "/open/variants").header("x-v", &number.to_string()).send();
    }
    let grown = stage.gateway.metric("tollgate_cache_entries", &[]).unwrap() - entries;
    assert!(grown <= 40.0, "{grown} variants of one object");
}
