//! The cache inside a real pingora proxy: real sockets, a scripted backend, one call per callback.
//! It shows the wiring that a `ProxyHttp` needs; it tests no gateway.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::apps::ServerApp;
use pingora::cache::key::HashBinary;
use pingora::cache::{CacheKey, CacheMeta, ForcedFreshness, HitHandler, RespCacheable};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::l4::stream::Stream;
use pingora::proxy::{ProxyHttp, Session, http_proxy};
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::key::Target;
use super::request::Caller;
use super::tag::{TagTemplate, user_tag};
use super::{Cache, Pending, RouteCache, Settings, Transaction, transaction};
use crate::clock::{Clock, SystemClock};

struct Proxy {
    cache: &'static Cache,
    route: Arc<RouteCache>,
    backend: std::net::SocketAddr,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Option<Transaction>;
    fn new_ctx(&self) -> Self::CTX {
        None
    }
    async fn upstream_peer(&self, _: &mut Session, _: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.backend, false, String::new())))
    }
    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        let head = session.req_header();
        let user = head.headers.get("x-user").map(|value| value.to_str().unwrap().to_owned());
        let target = Target {
            scheme: "http",
            host: "test",
            path: head.uri.path(),
            query: head.uri.query(),
            caller: user.as_deref().map_or(Caller::Anonymous, Caller::User),
        };
        let pending = Pending::new(&self.route, &head.method, &head.headers, target, |_| Some("1"));
        *ctx = pending.ok().map(|pending| pending.locally(self.cache, SystemClock.now()));
        Ok(false)
    }
    fn request_cache_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<()> {
        if let Some(cached) = ctx {
            cached.enable(&mut session.cache);
        }
        Ok(())
    }
    fn cache_key_callback(&self, _: &Session, ctx: &mut Self::CTX) -> Result<CacheKey> {
        Ok(ctx.as_mut().unwrap().key())
    }
    fn cache_vary_filter(
        &self,
        meta: &CacheMeta,
        ctx: &mut Self::CTX,
        req: &RequestHeader,
    ) -> Option<HashBinary> {
        ctx.as_mut()?.variance(meta, &req.headers)
    }
    async fn cache_hit_filter(
        &self,
        session: &mut Session,
        meta: &CacheMeta,
        hit: &mut HitHandler,
        is_fresh: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<ForcedFreshness>> {
        let waited = session.cache.lock_duration().is_some();
        let background = session.subrequest_ctx.is_some();
        Ok(ctx
            .as_mut()
            .and_then(|cached| cached.found(meta, hit, is_fresh, waited, background, SystemClock.now())))
    }
    async fn proxy_upstream_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        if ctx.as_ref().is_some_and(|cached| cached.refuses_upstream(session.subrequest_ctx.is_some())) {
            let mut header = ResponseHeader::build(504, None)?;
            header.insert_header("content-length", 0)?;
            session.write_response_header(Box::new(header), true).await?;
            return Ok(false);
        }
        Ok(true)
    }
    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if let Some(cached) = ctx {
            cached.upstream_responded(response, session.cache.maybe_cache_meta());
        }
        Ok(())
    }
    fn response_cache_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<RespCacheable> {
        Ok({
            let request = &session.req_header().headers;
            ctx.as_mut().unwrap().judge(&session.cache, response, request, SystemClock.now())
        })
    }
    fn should_serve_stale(&self, _: &mut Session, _: &mut Self::CTX, error: Option<&Error>) -> bool {
        transaction::serves_stale(error)
    }
    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if let Some(cached) = ctx {
            let mut parts = http::response::Parts::from(response.clone());
            cached.report(&session.cache, parts.status, &mut parts.headers, true, SystemClock.now());
            *response = parts.into();
        }
        Ok(())
    }
}

type Script = Arc<Mutex<Box<dyn FnMut(usize, &str) -> String + Send>>>;

struct Bed {
    cache: &'static Cache,
    proxy: std::net::SocketAddr,
    asked: Arc<AtomicUsize>,
    /// The most requests that were at the origin at one time.
    at_once: Arc<AtomicUsize>,
    script: Script,
}

impl Bed {
    /// The script gets the number of the request (from 1) and its head, and returns the raw response.
    async fn new(route: RouteCache, script: impl FnMut(usize, &str) -> String + Send + 'static) -> Self {
        let (asked, at_once) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let script: Script = Arc::new(Mutex::new(Box::new(script)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = listener.local_addr().unwrap();
        let (count, most, play) = (Arc::clone(&asked), Arc::clone(&at_once), Arc::clone(&script));
        let now = Arc::new(AtomicUsize::new(0));
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let (count, most, play) = (Arc::clone(&count), Arc::clone(&most), Arc::clone(&play));
                let now = Arc::clone(&now);
                tokio::spawn(async move {
                    let head = read_head(&mut socket).await;
                    let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    // Long enough for concurrent requests to meet.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    let response = (play.lock())(number, &head);
                    now.fetch_sub(1, Ordering::SeqCst);
                    let _ = socket.write_all(response.as_bytes()).await;
                });
            }
        });
        let cache = Cache::leak(&Settings::default(), 1 << 20, None, false, Arc::new(SystemClock));
        let proxy = Proxy { cache, route: Arc::new(route), backend };
        let app = Arc::new(http_proxy(&Arc::new(ServerConf::default()), proxy));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (_keep, shutdown) = tokio::sync::watch::channel(false);
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (app, shutdown) = (Arc::clone(&app), shutdown.clone());
                tokio::spawn(async move { app.process_new(Box::new(Stream::from(socket)), &shutdown).await });
            }
        });
        Self { cache, proxy: address, asked, at_once, script }
    }

    async fn get(&self, path: &str, fields: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{fields}\r\n")).await
    }

    async fn send(&self, request: &str) -> Answer {
        let mut socket = TcpStream::connect(self.proxy).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        let _ = socket.read_to_string(&mut text).await;
        Answer(text)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn play(&self, script: impl FnMut(usize, &str) -> String + Send + 'static) {
        *self.script.lock() = Box::new(script);
    }
}

async fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = socket.read_u8().await else { break };
        head.push(byte);
    }
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}

#[derive(Debug)]
struct Answer(String);

impl Answer {
    fn status(&self) -> &str {
        self.0.split(' ').nth(1).unwrap_or_default()
    }
    fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| {
            let (field, value) = line.split_once(": ")?;
            field.eq_ignore_ascii_case(name).then_some(value)
        })
    }
    fn cache(&self) -> &str {
        self.field("x-cache").unwrap_or_default()
    }
    fn body(&self) -> &str {
        self.0.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }
}

fn answer(fields: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n{fields}\r\n{body}", body.len())
}

fn route() -> RouteCache {
    RouteCache { ttl: Some(Duration::from_secs(60)), ..RouteCache::new("r") }
}

#[tokio::test]
async fn a_second_read_is_a_hit_for_the_same_user_only() {
    let bed =
        Bed::new(route(), |n, _| answer("x-ratelimit-remaining: 3\r\nx-kept: 1\r\n", &format!("b{n}"))).await;
    let first = bed.get("/t", "x-user: ada\r\n").await;
    assert_eq!((first.cache(), first.body()), ("MISS", "b1"));
    assert_eq!(
        first.field("cache-status"),
        first
            .field("x-cache-key")
            .map(|key| format!("tollgate; fwd=uri-miss; stored; ttl=60; key=\"{key}\""))
            .as_deref()
    );
    let second = bed.get("/t", "x-user: ada\r\n").await;
    assert_eq!((second.cache(), second.body()), ("HIT", "b1"));
    assert_eq!((second.field("x-kept"), second.field("x-ratelimit-remaining")), (Some("1"), None));
    assert!(second.field("age").is_some() && second.field("x-cache-key").is_some());
    assert_eq!(bed.get("/t", "x-user: bob\r\n").await.body(), "b2");
    assert_eq!(bed.get("/t", "").await.body(), "b3");
    // Somebody whose cookie nobody checked is not the anonymous caller.
    assert_eq!(bed.get("/t", "cookie: session=1\r\n").await.body(), "b4");
    assert_eq!(
        bed.send("HEAD /t HTTP/1.1\r\nhost: test\r\nconnection: close\r\nx-user: ada\r\n\r\n").await.cache(),
        "HIT"
    );
    let part = bed.get("/t", "x-user: ada\r\nrange: bytes=1-1\r\n").await;
    assert_eq!((part.status(), part.body()), ("206", "1"));
}

#[tokio::test]
async fn twenty_misses_at_once_are_one_fetch() {
    let bed = Arc::new(Bed::new(route(), |n, _| answer("", &format!("b{n}"))).await);
    let reads = (0..20).map(|_| {
        let bed = Arc::clone(&bed);
        tokio::spawn(async move { bed.get("/t", "x-user: ada\r\n").await })
    });
    for read in reads.collect::<Vec<_>>() {
        assert_eq!(read.await.unwrap().body(), "b1");
    }
    assert_eq!(bed.asked(), 1);
}

#[tokio::test]
async fn what_cannot_be_stored_holds_nobody_back() {
    let bed = Arc::new(Bed::new(route(), |_, _| answer("set-cookie: a=b\r\n", "x")).await);
    let reads = (0..10).map(|_| {
        let bed = Arc::clone(&bed);
        tokio::spawn(async move { bed.get("/t", "x-user: ada\r\n").await })
    });
    for read in reads.collect::<Vec<_>>() {
        assert_eq!(read.await.unwrap().field("set-cookie"), Some("a=b"));
    }
    assert_eq!(bed.asked(), 10);
    assert!(bed.at_once.load(Ordering::SeqCst) > 2, "after the first they go together");
    let next = bed.get("/t", "x-user: ada\r\n").await;
    assert_eq!(next.cache(), "BYPASS");
}

#[tokio::test]
async fn an_invalidation_makes_the_next_read_a_miss() {
    let tags: Box<[_]> = Box::new([TagTemplate::parse("todo:{id}", &["id"]).unwrap()]);
    let bed = Bed::new(RouteCache { tags, ..route() }, |n, _| answer("", &format!("b{n}"))).await;
    assert_eq!(bed.get("/t", "x-user: ada\r\n").await.body(), "b1");
    bed.cache.generations().invalidate([Box::from("todo:2"), user_tag(Some("bob"))]);
    assert_eq!(bed.get("/t", "x-user: ada\r\n").await.body(), "b1");
    bed.cache.generations().invalidate([Box::from("todo:1")]);
    assert_eq!(bed.get("/t", "x-user: ada\r\n").await.body(), "b2");
    bed.cache.generations().invalidate([user_tag(Some("ada"))]);
    assert_eq!(bed.get("/t", "x-user: ada\r\n").await.body(), "b3");
}

#[tokio::test]
async fn a_fill_that_began_before_a_write_is_not_served_after_it() {
    let bed = Arc::new(Bed::new(route(), |n, _| answer("", &format!("b{n}"))).await);
    let slow = tokio::spawn({
        let bed = Arc::clone(&bed);
        async move { bed.get("/t", "x-user: ada\r\n").await }
    });
    while bed.asked() == 0 {
        tokio::task::yield_now().await;
    }
    bed.cache.generations().invalidate([user_tag(Some("ada"))]);
    assert_eq!(slow.await.unwrap().body(), "b1");
    assert_eq!(bed.get("/t", "x-user: ada\r\n").await.body(), "b2");
}

#[tokio::test]
async fn validation_confirms_and_freshens_with_every_field_of_the_304() {
    let bed = Bed::new(route(), |n, head| {
        if head.contains("if-none-match: \"1\"") {
            format!("HTTP/1.1 304 Not Modified\r\nconnection: close\r\nx-n: {n}\r\netag: \"1\"\r\ncache-control: max-age=60\r\n\r\n")
        } else {
            answer(&format!("etag: \"1\"\r\nx-n: {n}\r\ncache-control: no-cache\r\n"), "body")
        }
    })
    .await;
    assert_eq!(bed.get("/t", "x-user: ada\r\n").await.cache(), "MISS");
    let second = bed.get("/t", "x-user: ada\r\n").await;
    assert_eq!((second.cache(), second.body(), second.field("x-n")), ("REVALIDATED", "body", Some("2")));
    let third = bed.get("/t", "x-user: ada\r\n").await;
    assert_eq!((third.cache(), third.field("x-n")), ("HIT", Some("2")));
    // The client's own directives.
    assert_eq!(bed.get("/t", "x-user: ada\r\ncache-control: no-cache\r\n").await.cache(), "REVALIDATED");
    assert_eq!(bed.get("/u", "x-user: ada\r\ncache-control: only-if-cached\r\n").await.status(), "504");
    assert_eq!(bed.get("/t", "x-user: ada\r\ncache-control: only-if-cached\r\n").await.cache(), "HIT");
    assert_eq!(bed.get("/t", "x-user: ada\r\nif-none-match: \"1\"\r\n").await.status(), "304");
    assert_eq!(bed.asked(), 3);
}

#[tokio::test]
async fn what_has_to_be_validated_is_asked_for_by_each_at_once() {
    let bed = Arc::new(
        Bed::new(route(), |_, head| {
            if head.contains("if-none-match") {
                "HTTP/1.1 304 Not Modified\r\nconnection: close\r\netag: \"1\"\r\n\r\n".to_owned()
            } else {
                answer("etag: \"1\"\r\ncache-control: no-cache\r\n", "body")
            }
        })
        .await,
    );
    bed.get("/t", "x-user: ada\r\n").await;
    let reads = (0..10).map(|_| {
        let bed = Arc::clone(&bed);
        tokio::spawn(async move { bed.get("/t", "x-user: ada\r\n").await })
    });
    for read in reads.collect::<Vec<_>>() {
        assert_eq!(read.await.unwrap().body(), "body");
    }
    assert_eq!(bed.asked(), 11);
}

#[tokio::test]
async fn stale_is_served_while_revalidating_and_instead_of_errors() {
    let fields = "cache-control: max-age=1, stale-while-revalidate=30, stale-if-error=60\r\n";
    let bed = Bed::new(route(), move |n, _| answer(fields, &format!("b{n}"))).await;
    bed.get("/t", "x-user: ada\r\n").await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let stale = bed.get("/t", "x-user: ada\r\n").await;
    assert_eq!((stale.cache(), stale.body()), ("STALE", "b1"));
    // The background fetch takes 100 ms.
    let mut tries = 0;
    while bed.get("/t", "x-user: ada\r\n").await.body() != "b2" {
        tries += 1;
        assert!(tries < 50, "the background fetch never arrived");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bed.asked(), 2);

    let fields = "cache-control: max-age=1, stale-if-error=60\r\n";
    let errors = Bed::new(route(), move |n, _| answer(fields, &format!("b{n}"))).await;
    errors.get("/t", "x-user: ada\r\n").await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    errors.play(|_, _| "HTTP/1.1 503 Down\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_owned());
    let stale = errors.get("/t", "x-user: ada\r\n").await;
    assert_eq!((stale.status(), stale.cache(), stale.body()), ("200", "STALE", "b1"));
}

#[tokio::test]
async fn a_truncated_response_is_not_stored() {
    let bed = Bed::new(route(), |n, _| {
        if n == 1 {
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 10\r\n\r\nhalf".to_owned()
        } else {
            answer("", "whole")
        }
    })
    .await;
    bed.get("/t", "x-user: ada\r\n").await;
    let next = bed.get("/t", "x-user: ada\r\n").await;
    assert_eq!((next.cache(), next.body()), ("MISS", "whole"));
}

#[tokio::test]
async fn variants_are_kept_apart() {
    let bed = Bed::new(route(), |n, head| {
        let language = if head.contains("accept-language: de") { "de" } else { "en" };
        answer("vary: accept-language\r\n", &format!("{language}{n}"))
    })
    .await;
    for (language, expected) in [("en", "en1"), ("de", "de2"), ("en", "en1"), ("de", "de2")] {
        let fields = format!("x-user: ada\r\naccept-language: {language}\r\n");
        assert_eq!(bed.get("/t", &fields).await.body(), expected);
    }
}

#[tokio::test]
async fn an_object_that_turns_out_too_big_reaches_the_client_whole_and_is_not_stored() {
    let route = RouteCache { max_object_bytes: 64, ..route() };
    let bed = Bed::new(route, |_, _| {
        let chunk = format!("30\r\n{}\r\n", "x".repeat(48));
        format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n",
            chunk.repeat(4)
        )
    })
    .await;
    for _ in 0..2 {
        let got = bed.get("/t", "x-user: ada\r\n").await;
        assert_eq!(got.body().matches('x').count(), 192);
        assert_ne!(got.cache(), "HIT");
    }
    assert_eq!((bed.asked(), bed.cache.tiers().memory_entries()), (2, 0));
}

#[tokio::test]
async fn the_values_of_the_store_make_the_key() {
    let cache = Cache::leak(&Settings::default(), 1 << 20, None, false, Arc::new(SystemClock));
    let headers = http::HeaderMap::new();
    let target = Target { scheme: "http", host: "h", path: "/", query: None, caller: Caller::User("ada") };
    let pending =
        || Pending::new(&Arc::new(route()), &http::Method::GET, &headers, target, |_| None).unwrap();
    let tags: Vec<Box<str>> = pending().tags().iter().map(Into::into).collect();
    assert_eq!(tags[..4], ["-epoch", "{-prefixes}", "route:r", "user:ada"].map(Box::from));
    assert!(tags.len() == 5 && tags[4].starts_with("key:"));
    let now = SystemClock.now();
    let key = |values: &[Option<&str>]| {
        pending().with_values(cache, values, now).unwrap().key().primary_key().to_vec()
    };
    let (one, two) =
        (["e", "p", "f", "g", "k"].map(Some), [Some("e"), Some("p"), Some("f"), Some("h"), Some("k")]);
    assert_eq!(key(&one), key(&one));
    assert_ne!(key(&one), key(&two));
    assert_eq!(
        pending().with_values::<&str>(cache, &[None; 4], now).unwrap_err(),
        super::request::Bypass::Malformed
    );
}
