//! The proxy as such: every protocol in and out, bodies of every size and kind, connections that are kept, upgraded,
//! bounded and closed as HTTP has it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;

use crate::support::client::{Client, RawConnection, raw, raw_status};
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Reply};
use crate::support::ports::{free_addr, free_port};
use crate::support::raw_h2::{self, Outcome};
use crate::support::raw_origin::{RawOrigin, Step};
use crate::support::strict_origin::StrictOrigin;
use crate::support::token::Token;
use crate::support::{RUNTIME, wait_for};

/// Generous for whatever has a limit of a second or less.
const BOUND: Duration = Duration::from_secs(8);

fn config(member: SocketAddr, server: &str, upstream: &str) -> String {
    format!(
        r#"
        [server]
        listen = "{{listen}}"
        {server}
        [policies.few]
        key = "user"
        limit = 3
        window = "1h"
        [upstreams.app]
        members = "{member}"
        {upstream}
        [[routes]]
        name = "me"
        path = "/me/**"
        auth = "required"
        limits = ["few"]
        upstream = "app"
        [[routes]]
        name = "small"
        path = "/small"
        upstream = "app"
        max_body = "1000"
        [[routes]]
        name = "all"
        path = "/**"
        upstream = "app"
        max_body = "100MB"
        "#
    )
}

/// A gateway with an h2c listener beside the usual one.
fn start(origin: &Origin, upstream: &str) -> (Gateway, SocketAddr) {
    let h2c = free_addr();
    let server = format!("listen_h2c = \"{h2c}\"\nkeepalive_timeout = \"5s\"");
    (Gateway::builder().config(&config(origin.addr(), &server, upstream)).start(), h2c)
}

#[test]
fn every_protocol_in_goes_with_every_protocol_out() {
    let origin = Origin::start();
    for (upstream, spoken) in [("protocol = \"http1\"", "HTTP/1.1"), ("protocol = \"h2c\"", "HTTP/2.0")] {
        let (gateway, h2c) = start(&origin, upstream);
        for client in [gateway.client(), Client::h2c(h2c)] {
            for method in
                [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS]
            {
                let got =
                    client.request(method.clone(), "/a/b?c=1&c=2").header("x-one", "1").body("hello").send();
                assert_eq!(got.code(), 200, "{method} {spoken}: {got:?}");
                let echo = got.json();
                assert_eq!(echo["method"], method.as_str());
                assert_eq!(echo["path"], "/a/b");
                assert_eq!(echo["query"], "c=1&c=2");
                assert_eq!(echo["version"], spoken);
                assert_eq!(echo["headers"]["x-one"][0], "1");
                assert_eq!(echo["body_bytes"], 5);
            }
            // Own answers, answers without a body, and the connection goes on.
            assert_eq!(client.request(Method::HEAD, "/").send().code(), 200);
            assert_eq!(client.request(Method::HEAD, "/me/x").send().code(), 401);
            let refused = client.get("/me/x").send();
            assert_eq!((refused.code(), refused.detail().as_str()), (401, "Not authenticated"));
            for status in [204, 304] {
                origin.route("/empty", move |_| Reply::new(status, ""));
                let got = client.get("/empty").send();
                assert_eq!((got.code(), got.body.len()), (status, 0));
            }
            let head = client.request(Method::HEAD, "/with-length").send();
            assert!(head.body.is_empty() && head.header("content-length") != Some("0"), "{head:?}");
            origin.route("/chunked", |_| Reply::text(200, "in pieces").chunked());
            assert_eq!(client.get("/chunked").send().text(), "in pieces");
        }
    }
}

#[test]
fn large_bodies_stream_through_both_ways_in_bounded_memory() {
    const SIZE: usize = 32 << 20;
    let origin = Origin::start();
    let body = Bytes::from((0..=u8::MAX).cycle().take(SIZE + 1).collect::<Vec<u8>>());
    let download = body.clone();
    origin.route("/down", move |_| Reply::new(200, download.clone()).chunked());
    origin.route("/up", |_| Reply::text(200, "all of it"));
    for upstream in ["protocol = \"http1\"", "protocol = \"h2c\""] {
        let (gateway, h2c) = start(&origin, upstream);
        for client in [gateway.client(), Client::h2c(h2c)] {
            let before = gateway.process().resident_bytes();
            let up = client.post("/up").body(body.clone()).within(Duration::from_secs(60)).send();
            assert_eq!(up.text(), "all of it", "{upstream}");
            assert!(origin.last().body == body, "{upstream}");
            origin.clear();
            let down = client.get("/down").within(Duration::from_secs(60)).send();
            assert!(down.body == body, "{upstream}");
            let grown = gateway.process().resident_bytes().saturating_sub(before);
            eprintln!("{upstream}: grown by {} KiB over {} MiB", grown >> 10, SIZE >> 19);
            // Flow-control windows of HTTP/2 on both sides are the larger part of it.
            assert!(grown < 32 << 20, "{upstream}: grown by {} KiB", grown >> 10);
        }
    }
}

#[test]
fn a_body_over_the_limit_is_refused_announced_or_not() {
    let origin = StrictOrigin::start();
    let h2c = free_addr();
    let gateway =
        Gateway::builder().config(&config(origin.addr(), &format!("listen_h2c = \"{h2c}\""), "")).start();
    for client in [gateway.client(), Client::h2c(h2c)] {
        assert_eq!(client.post("/small").body(vec![b'x'; 1_000]).send().code(), 200);
    }
    let hits = origin.hits();
    let announced = raw(gateway.addr(), "POST /small HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n");
    assert_eq!(raw_status(&announced), Some(413));
    assert!(String::from_utf8_lossy(&announced).contains("application/problem+json"));
    let mut chunked = b"POST /small HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..3 {
        chunked.extend_from_slice(b"190\r\n");
        chunked.extend_from_slice(&[b'x'; 0x190]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let answer = raw(gateway.addr(), &chunked);
    assert_eq!(raw_status(&answer), Some(413), "{}", String::from_utf8_lossy(&answer));
    let fields = [(":method", "POST"), (":scheme", "http"), (":path", "/small"), (":authority", "a")];
    assert_ne!(raw_h2::request(h2c, &fields, &[b'x'; 1_001]), Outcome::Answered { ok: true });
    assert_eq!(origin.hits(), hits, "no request over the limit is whole at the upstream");
}

#[test]
fn connections_are_kept_for_as_long_as_said() {
    let origin = Origin::start();
    let gateway = Gateway::builder().config(&config(origin.addr(), "keepalive_timeout = \"1s\"", "")).start();
    let mut connection = RawConnection::open(gateway.addr());
    let started = Instant::now();
    for path in ["/a", "/me/x", "/b"] {
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let mut length = None;
        connection.read_until(|bytes| {
            let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
            length = head
                .split("content-length: ")
                .nth(1)
                .and_then(|rest| rest.lines().next()?.parse::<usize>().ok());
            length.is_some_and(|length| body.len() == length)
        });
    }
    assert_eq!(origin.hits(), 2, "own answers keep the connection too");
    assert!(connection.read_to_end().is_empty());
    assert!(
        started.elapsed() < BOUND && started.elapsed() > Duration::from_millis(500),
        "{:?}",
        started.elapsed()
    );
    for close in ["Connection: close\r\n", "Connection: Close, x\r\n"] {
        let mut connection = RawConnection::open(gateway.addr());
        connection.send(format!("GET /a HTTP/1.1\r\nHost: a\r\n{close}\r\n"));
        assert_eq!(raw_status(&connection.read_to_end()), Some(200));
    }
}

#[test]
fn a_head_that_does_not_come_ends_the_connection() {
    let origin = Origin::start();
    let h2c = free_addr();
    let server = format!("listen_h2c = \"{h2c}\"\nkeepalive_timeout = \"1s\"");
    let gateway = Gateway::builder().config(&config(origin.addr(), &server, "")).start();
    // A byte now and then, so that no single read takes long.
    let trickle = |addr: SocketAddr, start: &[u8], forever: &[u8]| {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let started = Instant::now();
        stream.write_all(start).unwrap();
        while started.elapsed() < BOUND {
            let mut answer = [0; 1024];
            match stream.read(&mut answer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) => {}
                Err(_) => break,
            }
            if stream.write_all(forever).is_err() {
                break;
            }
        }
        started.elapsed()
    };
    let first = trickle(gateway.addr(), b"GET / HTTP/1.1\r\nHost: a\r\nX-A: ", b"a");
    assert!(first < BOUND, "a first head: {first:?}");
    let second = trickle(gateway.addr(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nX-A: ", b"a");
    assert!(second < BOUND, "a second head: {second:?}");
    let silent = trickle(gateway.addr(), b"", b"");
    assert!(silent < BOUND, "nothing at all: {silent:?}");
    let preface = trickle(h2c, b"PRI * HTT", b"");
    assert!(preface < BOUND, "half an HTTP/2 preface: {preface:?}");
    let short = trickle(h2c, b"GET / HTTP/1.0\r\n\r\n", b"");
    assert!(short < BOUND, "less than a preface: {short:?}");
    let idle = trickle(h2c, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", b"");
    assert!(idle < BOUND, "an HTTP/2 connection without streams: {idle:?}");
    // A request that takes longer than that is none of this.
    origin.route("/slow", |_| Reply::text(200, "late").after(Duration::from_millis(2_500)));
    assert_eq!(gateway.client().get("/slow").send().text(), "late");
    assert_eq!(Client::h2c(h2c).get("/slow").send().text(), "late");
}

#[test]
fn a_body_that_does_not_come_ends_the_request() {
    let origin = Origin::start();
    let gateway = Gateway::builder().config(&config(origin.addr(), "body_timeout = \"500ms\"", "")).start();
    let mut connection = RawConnection::open(gateway.addr());
    connection.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
    let started = Instant::now();
    let answer = connection.read_to_end();
    assert!(started.elapsed() < BOUND);
    assert!(raw_status(&answer).is_none_or(|status| status >= 400), "{}", String::from_utf8_lossy(&answer));
    assert_eventually!(origin.in_flight() == 0, "the upstream is let go");
}

#[test]
fn a_client_that_waits_to_be_asked_for_its_body_is_asked_and_never_for_a_refused_one() {
    let origin = Origin::start();
    let (gateway, _) = start(&origin, "");
    let mut connection = RawConnection::open(gateway.addr());
    connection.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n");
    let first = connection.read_head();
    assert_eq!(raw_status(&first), Some(100), "{}", String::from_utf8_lossy(&first));
    connection.send("hello");
    let rest = connection.read_to_end();
    assert_eq!(raw_status(&rest), Some(200), "{}", String::from_utf8_lossy(&rest));
    assert_eq!(&origin.last().body[..], b"hello");
    for (path, length, status) in [("/me/x", 5, 401), ("/small", 5_000, 413)] {
        let refused = raw(
            gateway.addr(),
            format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
            ),
        );
        assert_eq!(raw_status(&refused), Some(status), "{}", String::from_utf8_lossy(&refused));
    }
    // Sent at once, as a client may that gave up waiting.
    let answer = raw(
        gateway.addr(),
        "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    );
    let text = String::from_utf8_lossy(&answer);
    assert!(text.contains("HTTP/1.1 200"), "{text}");
    // And without a body there is nothing to wait for.
    let answer =
        raw(gateway.addr(), "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n");
    assert!(String::from_utf8_lossy(&answer).contains("HTTP/1.1 200"));
}

const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn a_websocket_passes_with_its_token_and_its_limits() {
    let origin = RawOrigin::playing(vec![
        Step::read_head(),
        Step::send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nwelcome",
        ),
        Step::Read(4),
        Step::send("pong"),
        Step::Read(4),
        Step::send("done"),
        Step::Close,
    ]);
    let gateway = Gateway::builder()
        .config(&config(origin.addr(), "keepalive_timeout = \"1s\"", "read_timeout = \"20s\""))
        .start();
    let refused = raw(gateway.addr(), format!("GET /me/ws HTTP/1.1\r\nHost: a\r\n{HANDSHAKE}\r\n"));
    assert_eq!(raw_status(&refused), Some(401));
    assert!(origin.bytes().is_empty());
    let token = Token::of("ada").sign();
    let request =
        format!("GET /me/ws HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n{HANDSHAKE}\r\n");
    for _ in 0..3 {
        let mut connection = RawConnection::open(gateway.addr());
        connection.send(&request);
        let hello = connection.read_until(|bytes| bytes.ends_with(b"welcome"));
        let text = String::from_utf8_lossy(&hello).to_ascii_lowercase();
        assert_eq!(raw_status(&hello), Some(101), "{text}");
        assert!(
            text.contains("upgrade: websocket\r\n") && text.contains("connection: upgrade\r\n"),
            "{text}"
        );
        assert!(text.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{text}");
        connection.send("ping");
        connection.read_until(|bytes| bytes == b"pong");
        // Longer than idle connections and heads may take.
        std::thread::sleep(Duration::from_millis(2_500));
        connection.send("more");
        assert_eq!(connection.read_to_end(), b"done");
    }
    let limited = raw(gateway.addr(), &request);
    assert_eq!(raw_status(&limited), Some(429));
    let text = origin.text().to_ascii_lowercase();
    assert_eq!(text.matches("get /me/ws http/1.1\r\n").count(), 3);
    assert_eq!(text.matches("sec-websocket-key: dghlihnhbxbszsbub25jzq==\r\n").count(), 3);
    assert_eq!(text.matches("x-user-id: ada\r\n").count(), 3);
    assert!(text.contains("pingmore"), "{text}");
}

#[test]
fn a_websocket_that_is_turned_down_leaves_no_tunnel() {
    let smuggled = "GET /me/smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let origin = RawOrigin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno");
    let gateway = Gateway::builder().config(&config(origin.addr(), "keepalive_timeout = \"1s\"", "")).start();
    let mut connection = RawConnection::open(gateway.addr());
    connection.send(format!("GET /ws HTTP/1.1\r\nHost: a\r\n{HANDSHAKE}\r\n{smuggled}"));
    let first = connection.read_head();
    assert_eq!(raw_status(&first), Some(200));
    connection.read_to_end();
    assert!(!origin.text().contains("smuggled"), "{}", origin.text());
    // Nor does a bad handshake make one.
    for bad in [
        "Upgrade: websocket, h2c\r\nConnection: upgrade\r\n",
        "Upgrade: websocket\r\n",
        "Upgrade: foo\r\nConnection: upgrade\r\n",
    ] {
        let answer = raw(gateway.addr(), format!("GET /ws HTTP/1.1\r\nHost: a\r\n{bad}\r\n"));
        assert_eq!(raw_status(&answer), Some(200), "{bad}");
    }
    let after = origin.text().to_ascii_lowercase();
    assert_eq!(after.matches("upgrade: ").count(), 1, "only the good handshake is passed on: {after}");
}

/// An h2c origin that answers as gRPC does: with a trailer, in which the status is.
fn grpc_origin() -> SocketAddr {
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let (listener, addr) = wait_for(async {
        loop {
            let addr = free_addr();
            if let Ok(listener) = tokio::net::TcpListener::bind(addr).await {
                return (listener, addr);
            }
        }
    });
    RUNTIME.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service =
                hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    let te = request.headers().get("te").cloned();
                    let sent = request.into_body().collect().await.map_err(std::io::Error::other)?;
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                    if sent.trailers().is_some_and(|trailers| trailers.contains_key("x-sum")) {
                        trailers.insert("x-had-trailers", http::HeaderValue::from_static("1"));
                    }
                    let body = Full::new(Bytes::from_static(b"message"));
                    let mut response =
                        http::Response::new(body.with_trailers(std::future::ready(Some(Ok(trailers)))));
                    response.headers_mut().extend(te.map(|te| (http::HeaderName::from_static("x-te"), te)));
                    Ok::<_, std::io::Error>(response)
                });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    addr
}

#[test]
fn trailers_of_an_h2_upstream_reach_an_h2_client() {
    let h2c = free_addr();
    let server = format!("listen_h2c = \"{h2c}\"");
    let gateway = Gateway::builder().config(&config(grpc_origin(), &server, "protocol = \"h2c\"")).start();
    let got = Client::h2c(h2c).post("/grpc").header("te", "trailers").body("message").send();
    assert_eq!((got.code(), got.text().as_str()), (200, "message"));
    assert_eq!(got.header("x-te"), Some("trailers"));
    assert_eq!(got.trailers.get("grpc-status").map(http::HeaderValue::as_bytes), Some(&b"0"[..]), "{got:?}");
    // Without HTTP/2 trailers may be dropped (RFC 9110 section 6.5.1), the message may not.
    let got = gateway.client().post("/grpc").body("message").send();
    assert_eq!((got.code(), got.text().as_str()), (200, "message"));
}

#[test]
fn http_1_0_clients_get_answers_they_can_read() {
    let origin = Origin::start();
    origin.route("/chunked", |_| Reply::text(200, "in pieces").chunked());
    let (gateway, _) = start(&origin, "");
    let answer = raw(gateway.addr(), "GET /chunked HTTP/1.0\r\nHost: a\r\n\r\n");
    let text = String::from_utf8_lossy(&answer);
    assert_eq!(raw_status(&answer), Some(200));
    assert!(!text.to_ascii_lowercase().contains("transfer-encoding"), "{text}");
    assert!(text.ends_with("in pieces"), "{text}");
    // It knows the end by the end of the connection, unless it asked to keep it.
    for (fields, kept) in [("", false), ("Connection: keep-alive\r\n", true)] {
        let mut connection = RawConnection::open(gateway.addr());
        connection.send(format!("GET / HTTP/1.0\r\nHost: a\r\n{fields}\r\n"));
        let started = Instant::now();
        assert_eq!(raw_status(&connection.read_to_end()), Some(200));
        assert_eq!(started.elapsed() > Duration::from_secs(3), kept, "{fields}: {:?}", started.elapsed());
    }
}

#[test]
fn huge_heads_are_refused_in_bounded_time_and_memory() {
    let origin = StrictOrigin::start();
    let gateway = Gateway::builder().config(&config(origin.addr(), "keepalive_timeout = \"3s\"", "")).start();
    let before = gateway.process().resident_bytes();
    let line = |count: usize, length: usize| -> String {
        (0..count)
            .map(|number| format!("X-{number}: {}\r\n", "a".repeat(length)))
            .collect::<Vec<_>>()
            .concat()
    };
    let get = |target: &str, fields: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n")
    };
    let cases = [
        ("1 MB of headers", get("/", &line(100, 10_000)), &[431, 400][..]),
        ("one header of 1 MB", get("/", &line(1, 1_000_000)), &[431, 400]),
        ("10,000 headers", get("/", &line(10_000, 1)), &[431, 400]),
        ("101 headers", get("/", &line(100, 1)), &[431]),
        ("40 kB of headers", get("/", &line(4, 10_000)), &[431]),
        ("a target of 9 kB", get(&format!("/{}", "a".repeat(9_000)), ""), &[414]),
        ("a target of 1 MB", get(&format!("/{}", "a".repeat(1_000_000)), ""), &[414, 400]),
        ("a query of 1 MB", get(&format!("/?{}", "a".repeat(1_000_000)), ""), &[414, 400]),
        ("10 MB that are no head", "A".repeat(10_000_000), &[400]),
        ("a method of 1 MB", format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "A".repeat(1_000_000)), &[501, 400]),
        ("a host of 30 kB", format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(30_000)), &[400]),
    ];
    for (what, request, statuses) in &cases {
        for _ in 0..2 {
            let started = Instant::now();
            let answer = raw(gateway.addr(), request);
            let took = started.elapsed();
            assert!(took < BOUND, "{what}: {took:?}");
            eprintln!("{what}: {took:?}");
            // Closing on somebody who is still sending may cost him the answer.
            let status = raw_status(&answer);
            assert!(status.is_none_or(|status| statuses.contains(&status)), "{what}: {status:?}");
        }
    }
    assert_eq!(origin.bytes(), 0);
    let grown = gateway.process().resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "grown by {} KiB", grown >> 10);
    assert_eq!(gateway.client().get("/").send().code(), 200);
}

#[test]
fn http2_floods_end_with_their_connection() {
    let origin = Origin::start();
    origin.route("/hang", |_| Reply::hang_before_head());
    let (gateway, h2c) = start(&origin, "");
    let before = gateway.process().resident_bytes();
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/hang"), (":authority", "a")];
    let block = raw_h2::block(&fields);
    let floods: [(&str, raw_h2::Flood<'_>); 6] = [
        ("rapid reset", &|number| {
            let stream = number * 2 + 1;
            [raw_h2::frame(1, 5, stream, &block), raw_h2::frame(3, 0, stream, &[0, 0, 0, 8])].concat()
        }),
        ("streams without end", &|number| raw_h2::frame(1, 5, number * 2 + 1, &block)),
        ("CONTINUATION without end", &|number| match number {
            0 => raw_h2::frame(1, 1, 1, &block),
            _ => raw_h2::frame(9, 0, 1, &[&[0, 1, b'x', 0x7f, 0xe1, 0x1e][..], &[b'a'; 4_000]].concat()),
        }),
        ("SETTINGS", &|_| raw_h2::frame(4, 0, 0, &[])),
        ("PING", &|_| raw_h2::frame(6, 0, 0, &[0; 8])),
        ("PRIORITY", &|number| raw_h2::frame(2, 0, number * 2 + 1, &[0, 0, 0, 0, 1])),
    ];
    for (what, flood) in floods {
        let started = Instant::now();
        let sent = raw_h2::flood(h2c, 20_000, flood);
        eprintln!("{what}: {sent} taken in {:?}", started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(20), "{what}: {:?}", started.elapsed());
        assert_eq!(Client::h2c(h2c).get("/").send().code(), 200, "others are served after {sent} of {what}");
    }
    assert_eventually!(origin.in_flight() == 0, "nothing of it is left at the upstream");
    let grown = gateway.process().resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "grown by {} KiB", grown >> 10);
}

#[test]
fn a_header_list_that_unpacks_to_too_much_is_refused() {
    let origin = StrictOrigin::start();
    let h2c = free_addr();
    let gateway =
        Gateway::builder().config(&config(origin.addr(), &format!("listen_h2c = \"{h2c}\""), "")).start();
    let long = "a".repeat(3_000);
    let mut fields = vec![(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    fields.extend((0..5).map(|_| ("x-long", &*long)));
    // 15 kB are within the limits; a table entry named 4,000 times is 12 MB (the "HPACK bomb").
    assert_eq!(raw_h2::request(h2c, &fields, b""), Outcome::Answered { ok: true });
    let hits = origin.hits();
    let before = gateway.process().resident_bytes();
    for _ in 0..5 {
        let mut block = raw_h2::block(&fields[..4]);
        block.extend_from_slice(&raw_h2::indexed_literal("x-bomb", &long));
        block.extend(std::iter::repeat_n(0xbe, 4_000));
        assert_ne!(raw_h2::exchange(h2c, &block, b""), Outcome::Answered { ok: true });
    }
    assert_eq!(origin.hits(), hits);
    let grown = gateway.process().resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "grown by {} KiB", grown >> 10);
}

#[test]
fn a_thousand_idle_connections_cost_little() {
    const COUNT: usize = 1_000;
    let origin = StrictOrigin::start();
    let gateway =
        Gateway::builder().config(&config(origin.addr(), "keepalive_timeout = \"60s\"", "")).start();
    assert_eq!(gateway.client().get("/").send().code(), 200);
    let before = gateway.process().resident_bytes();
    let connections: Vec<TcpStream> =
        (0..COUNT).map_while(|_| TcpStream::connect(gateway.addr()).ok()).collect();
    if connections.len() < COUNT {
        eprintln!("only {} connections can be had here", connections.len());
    }
    for mut connection in &connections {
        connection.write_all(b"GET /me/x HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    }
    for mut connection in &connections {
        assert!(connection.read(&mut [0; 2048]).unwrap() > 0);
    }
    let each = gateway.process().resident_bytes().saturating_sub(before) / connections.len() as u64;
    eprintln!("{} kept-alive connections take {} KiB each", connections.len(), each >> 10);
    assert!(each < 256 << 10, "{each} bytes for one idle connection");
    assert_eq!(gateway.client().get("/").send().code(), 200);
}

#[test]
fn an_address_in_use_is_said_at_once() {
    let taken = TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let origin = Origin::start();
    let text = config(origin.addr(), "", "").replace("{listen}", &taken.local_addr().unwrap().to_string());
    let ended = Gateway::builder().config(&text).try_start().unwrap_err();
    assert!(!ended.status.success() && ended.logs.contains("cannot listen on"), "{ended}");
}
