//! Limits by what a request itself says: a field of its body, a header, a cookie; and limits on failures only. The
//! body is read on the way and must reach the upstream byte for byte.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use http::Version;
use serde_json::json;

use crate::setup::{PATIENT, address, config, counter, gateway, pair, ttl};
use crate::support::client::{Client, RawConnection, Response, raw, raw_status};
use crate::support::concurrently;
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Reply};
use crate::support::ports::free_addr;
use crate::support::redis::{Executed, Redis};

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

fn policy(key: &str, limit: u64, more: &str) -> String {
    format!(
        "[policies.login]\nkey = {key}\nlimit = {limit}\nwindow = \"15m\"\n{more}\n[[routes]]\nname = \"login\"\n\
         path = \"/**\"\nupstream = \"app\"\nlimits = [\"login\"]\n"
    )
}

fn by_email(limit: u64) -> String {
    policy("\"body:email\"", limit, "")
}

fn post(client: &Client, ip: &str, content_type: &str, body: impl Into<bytes::Bytes>) -> Response {
    let request = client.post("/login").header("x-forwarded-for", ip).header("content-type", content_type);
    request.body(body).send()
}

fn login(client: &Client, number: usize, email: &str) -> u16 {
    post(client, &address(number), JSON, json!({ "email": email, "password": "p" }).to_string()).code()
}

/// The keys of counters, without what stands before the subject.
fn subjects(redis: &Redis) -> BTreeSet<String> {
    let keys = redis.keys();
    keys.iter().filter_map(|key| key.strip_prefix("rate_limit:login:")).map(str::to_owned).collect()
}

#[test]
fn five_attempts_per_mail_address_hold_over_client_addresses_spellings_and_instances() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateways = pair(&config(&origin, PATIENT, &by_email(5)), &redis);
    let clients = [gateways[0].client(), gateways[1].client()];
    let spellings = [
        "ada@example.com",
        "ADA@Example.COM",
        " ada@example.com\t",
        "ada@example.com.",
        "\u{ff41}da@example\u{ff0e}com",
        "a\u{200b}da@example.com",
        "Ada@example.com",
    ];
    let codes: Vec<u16> =
        spellings.iter().enumerate().map(|(n, email)| login(&clients[n % 2], n, email)).collect();
    assert_eq!(codes, [200, 200, 200, 200, 200, 429, 429]);
    let form = "password=p&email=+ADA%40example.com.";
    assert_eq!(post(&clients[0], &address(99), FORM, form).code(), 429, "a form is the same person");
    assert_eq!(login(&clients[0], 0, "eve@example.com"), 200, "somebody else is not concerned");
    assert_eq!(origin.hits(), 6);

    assert_eq!(subjects(&redis).len(), 2);
    for subject in subjects(&redis) {
        assert!(subject.starts_with("sha256-") && subject.len() == 39, "{subject}");
        assert!((1..=900).contains(&ttl(&redis, &format!("rate_limit:login:{subject}"))));
    }
    assert!(redis.keys_without_ttl().is_empty());
    let told: Vec<String> = redis.keys();
    assert!(told.iter().all(|key| !key.contains('@') && !key.contains("ada")), "{told:?}");
}

#[test]
fn a_refused_body_leaves_its_connection_usable() {
    let origin = Origin::start();
    let gateway = gateway(&config(&origin, "", &by_email(1)), "");
    let body = r#"{"email":"ada"}"#;
    let request = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: {JSON}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut connection = RawConnection::open(gateway.addr());
    for expected in [200, 429, 429] {
        connection.send(&request);
        let answer = connection.read_until(whole);
        assert_eq!(raw_status(&answer), Some(expected), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(origin.hits(), 1);
}

/// Whether this is a head and as much body as it announces.
fn whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    length.and_then(|length| length.parse::<usize>().ok()).is_none_or(|length| body.len() >= length)
}

/// A JSON body of that many bytes.
fn padded(email: &str, bytes: usize) -> String {
    let frame = json!({ "email": email, "pad": "" }).to_string();
    let pad = "x".repeat(bytes.saturating_sub(frame.len()));
    json!({ "email": email, "pad": pad }).to_string()
}

fn chunked(body: &[u8], piece: usize, more: &str) -> Vec<u8> {
    let mut bytes = format!(
        "POST /login HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: {JSON}\r\n{more}Transfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for chunk in body.chunks(piece) {
        write!(bytes, "{:x}\r\n", chunk.len()).unwrap();
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

const SIZES: [usize; 9] = [40, 16_383, 16_384, 16_385, 40_000, 65_535, 65_537, 100_000, 1 << 20];

/// A gateway with listeners for HTTP/1 and h2c, in front of upstreams of that protocol.
fn both(origin: &Origin, redis: &str, protocol: &str, limits: &str) -> (Gateway, SocketAddr) {
    let h2c = free_addr();
    let text = config(origin, "", &format!("{limits}[limits]\n{redis}"))
        .replace("listen = [\"{listen}\"]", &format!("listen = [\"{{listen}}\"]\nlisten_h2c = [\"{h2c}\"]"))
        .replace("[upstreams.app]", &format!("[upstreams.app]\nprotocol = \"{protocol}\""));
    (gateway(&text, ""), h2c)
}

fn every_body_arrives(protocol: &str) {
    let origin = Origin::start();
    let (gateway, h2c) = both(&origin, "", protocol, &by_email(1_000));
    let arrived = |body: &[u8], how: &str| {
        let last = origin.last();
        assert!(last.body == body, "{how}, {} bytes: {} arrived", body.len(), last.body.len());
        origin.clear();
    };
    for size in SIZES {
        let body = padded("ada", size);
        assert_eq!(body.len(), size.max(40));
        assert_eq!(post(&gateway.client(), "10.0.0.1", JSON, body.clone()).code(), 200);
        arrived(body.as_bytes(), "with a length");
        let reply = post(&Client::h2c(h2c), "10.0.0.1", JSON, body.clone());
        assert_eq!((reply.code(), reply.version), (200, Version::HTTP_2));
        arrived(body.as_bytes(), "over h2c");
        for piece in [1_000, 16_000, 70_000] {
            let answer = raw(gateway.addr(), chunked(body.as_bytes(), piece, ""));
            assert_eq!(raw_status(&answer), Some(200), "{}", String::from_utf8_lossy(&answer));
            arrived(body.as_bytes(), "chunked");
        }
        // A small piece first, and then as much as one read can take: more than pingora repeats by itself.
        let (first, rest) = body.as_bytes().split_at(20);
        let whole = chunked(rest, 1 << 20, "");
        let at = whole.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        let mut connection = RawConnection::open(gateway.addr());
        connection.send([&whole[..at], b"14\r\n", first, b"\r\n"].concat());
        connection.send(&whole[at..]);
        assert_eq!(raw_status(&connection.read_to_end()), Some(200));
        arrived(body.as_bytes(), "in unequal chunks");
    }
}

#[test]
fn every_body_reaches_an_http1_upstream_byte_for_byte() {
    every_body_arrives("http1");
}

#[test]
fn every_body_reaches_an_h2c_upstream_byte_for_byte() {
    every_body_arrives("h2c");
}

#[test]
fn the_largest_peek_still_repeats_what_it_read() {
    let origin = Origin::start();
    let (gateway, h2c) = both(&origin, "body_peek = \"48KiB\"\n", "http1", &by_email(1_000));
    for size in [49_151, 49_152, 49_153, 60_000, 65_535, 65_536, 65_537, 66_000] {
        let body = padded("ada", size);
        assert_eq!(post(&Client::h2c(h2c), "10.0.0.1", JSON, body.clone()).code(), 200, "{size}");
        assert!(origin.last().body == body.as_bytes(), "{size}");
        // Without a length, so that it must be read to know that it is long.
        let answer = raw(gateway.addr(), chunked(body.as_bytes(), 5_000, ""));
        assert_eq!(raw_status(&answer), Some(200), "{size}");
        assert!(origin.last().body == body.as_bytes(), "{size}");
    }
}

#[test]
fn a_client_that_waits_for_100_is_asked_for_its_body_once() {
    let origin = Origin::start();
    let gateway = gateway(&config(&origin, "", &by_email(1)), "");
    for (email, size, code) in [("ada", 60, 200), ("ada", 60, 429), ("eve", 17_000, 200)] {
        let body = padded(email, size);
        let mut connection = RawConnection::open(gateway.addr());
        connection.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: {JSON}\r\nExpect: 100-continue\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        ));
        assert_eq!(raw_status(&connection.read_head()), Some(100), "{email} {size}");
        connection.send(&body);
        let answer = connection.read_to_end();
        assert_eq!(raw_status(&answer), Some(code), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(origin.hits(), 2);
    assert_eq!(origin.last().body.len(), 17_000);
    let mut connection = RawConnection::open(gateway.addr());
    for (email, code) in [("bob", 200), ("bob", 429), ("carol", 200)] {
        let body = padded(email, 60);
        connection.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: {JSON}\r\nExpect: 100-continue\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        ));
        assert_eq!(raw_status(&connection.read_head()), Some(100), "{email}");
        connection.send(&body);
        let answer = connection.read_until(whole);
        assert_eq!(raw_status(&answer), Some(code), "{}", String::from_utf8_lossy(&answer));
    }
}

#[test]
fn a_refusal_that_needs_no_body_does_not_wait_for_one() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let limits = by_email(1_000)
        .replace("[[routes]]", "[policies.ip]\nkey = \"ip\"\nlimit = 1\nwindow = \"15m\"\n[[routes]]");
    let limits = limits.replace("limits = [\"login\"]", "limits = [\"login\", \"ip\"]");
    let gateway = gateway(&config(&origin, PATIENT, &limits), &redis.url());
    assert_eq!(post(&gateway.client(), "127.0.0.1", JSON, "{}").code(), 200);
    assert_eq!(post(&gateway.client(), "127.0.0.1", JSON, "{}").code(), 429, "now it is known here");
    let mut connection = RawConnection::open(gateway.addr());
    connection
        .send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Type: {JSON}\r\nContent-Length: 100\r\n\r\n"));
    let answer = connection.read_to_end();
    assert_eq!(raw_status(&answer), Some(429), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn nobody_escapes_by_a_body_that_cannot_be_read() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let text = config(&origin, PATIENT, &by_email(1_000));
    let gateway = gateway(&text, &redis.url());
    let client = gateway.client();
    let mut sent = 0;
    for body in [
        "",
        "{",
        r#"{"email":["ada"]}"#,
        r#"{"email":{"a":1}}"#,
        r#"{"email":1}"#,
        r#"{"email":null}"#,
        r#"{"mail":"ada"}"#,
        r#"{"email":"ada","email":"eve"}"#,
        r#"{"email":"ada","EMAIL":"eve"}"#,
        "email=ada",
    ] {
        assert_eq!(post(&client, "10.0.0.1", JSON, body).code(), 200, "{body}");
        sent += 1;
    }
    for body in ["email=ada&email=eve", "mail=ada", "email[]=ada", "email=ada&x;email=eve"] {
        assert_eq!(post(&client, "10.0.0.1", FORM, body).code(), 200, "{body}");
        sent += 1;
    }
    let good = r#"{"email":"ada"}"#;
    for content_type in
        ["text/plain", "multipart/form-data; boundary=x", "application/json; charset=utf-7", "x"]
    {
        assert_eq!(post(&client, "10.0.0.1", content_type, good).code(), 200, "{content_type}");
        sent += 1;
    }
    let coded = client.post("/").header("content-type", JSON).header("content-encoding", "gzip").body(good);
    assert_eq!(coded.send().code(), 200);
    assert_eq!(client.post("/").body(good).send().code(), 200, "no type");
    assert_eq!(client.get("/").send().code(), 200, "no body");
    assert_eq!(post(&client, "10.0.0.1", JSON, padded("ada", 16_385)).code(), 200);
    let answer = raw(gateway.addr(), chunked(padded("ada", 16_385).as_bytes(), 4_000, ""));
    assert_eq!(raw_status(&answer), Some(200));
    assert_eq!(subjects(&redis), BTreeSet::from(["*unreadable".to_owned()]));
    assert_eq!(counter(&redis, "rate_limit:login:*unreadable"), Some(sent + 5));
    let answer = raw(gateway.addr(), chunked(padded("ada", 16_384).as_bytes(), 4_000, ""));
    assert_eq!(raw_status(&answer), Some(200));
    assert_eq!(subjects(&redis).len(), 2, "a readable one is a person");
}

#[test]
fn a_trickled_body_is_refused_in_time_and_reaches_nobody() {
    let origin = Origin::start();
    let text = config(&origin, "", &by_email(5)).replace("[server]", "[server]\nbody_timeout = \"300ms\"");
    let gateway = gateway(&text, "");
    let mut connection = RawConnection::open(gateway.addr());
    connection
        .send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Type: {JSON}\r\nContent-Length: 100\r\n\r\n"));
    let answer = std::thread::scope(|scope| {
        let addr = gateway.addr();
        scope.spawn(move || {
            // A byte at a time: no single pause is too long.
            let mut other = RawConnection::open(addr);
            let head = format!(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: {JSON}\r\nTransfer-Encoding: chunked\r\n\r\n"
            );
            other.send(head);
            for _ in 0..1_000 {
                if other.try_send(b"1\r\nx\r\n").is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            panic!("a trickled body is taken for ever");
        });
        connection.read_to_end()
    });
    assert_eq!(raw_status(&answer), Some(408), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(origin.hits(), 0);
}

#[test]
fn a_body_that_takes_its_time_does_not_move_the_clock_of_others() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let rest = r#"
[policies.login]
key = "body:email"
limit = 5
window = "15m"
[policies.once]
key = "ip"
limit = 1
window = "1h"
[[routes]]
name = "login"
path = "/login"
upstream = "app"
limits = ["login"]
[[routes]]
name = "once"
path = "/once"
upstream = "app"
limits = ["once"]
"#;
    let gateway = gateway(&config(&origin, PATIENT, rest), &redis.url());
    let client = gateway.client();
    let once = || client.get("/once").header("x-forwarded-for", "10.0.0.1").send();
    assert_eq!((once().code(), once().code()), (200, 429));
    let body = json!({ "email": "ada@example.com" }).to_string();
    let (first, rest) = body.split_at(5);
    let mut connection = RawConnection::open(gateway.addr());
    let head = format!("Host: a\r\nContent-Type: {JSON}\r\nContent-Length: {}\r\n", body.len());
    connection.send(format!("POST /login HTTP/1.1\r\nConnection: close\r\n{head}\r\n{first}"));
    std::thread::sleep(Duration::from_millis(1_800));
    connection.send(rest);
    assert_eq!(raw_status(&connection.read_to_end()), Some(200));
    let reply = once();
    let left: u64 = redis::cmd("PTTL").arg("rate_limit:once:10.0.0.1").query(&mut redis.client()).unwrap();
    let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!(reply.code() == 429 && wait * 1_000 >= left, "{wait} s, while {left} ms are left");
}

/// An upstream that knows one password.
fn doorman() -> Origin {
    let origin = Origin::start();
    origin.answer(|request| {
        let right = request.json()["password"] == "right";
        Reply::text(if right { 200 } else { 401 }, "")
    });
    origin
}

fn guess(client: &Client, email: &str, password: &str) -> Response {
    post(client, "10.0.0.1", JSON, json!({ "email": email, "password": password }).to_string())
}

fn only_failures(algorithm: &str, redis: Option<&Redis>) {
    let origin = doorman();
    let more = format!("count = \"failures\"\nalgorithm = \"{algorithm}\"");
    let limits = policy("\"body:email\"", 3, &more);
    let url = redis.map(Redis::url).unwrap_or_default();
    let gateway = gateway(&config(&origin, PATIENT, &limits), &url);
    let client = gateway.client();
    for _ in 0..10 {
        let reply = guess(&client, "ada", "right");
        assert_eq!(reply.code(), 200, "{algorithm}: who knows the password is never limited");
        assert_eq!(reply.header("x-ratelimit-remaining"), Some("2"), "{algorithm}: as at admission");
    }
    let codes: Vec<u16> = (0..5).map(|_| guess(&client, "ada", "wrong").code()).collect();
    assert_eq!(codes, [401, 401, 401, 429, 429], "{algorithm}");
    assert_eq!(guess(&client, "ada", "right").code(), 429, "{algorithm}");
    if let Some(redis) = redis {
        assert!(redis.keys_without_ttl().is_empty(), "{algorithm}");
    }
}

#[test]
fn only_failures_count_in_memory() {
    for algorithm in ["fixed-window", "sliding-window", "token-bucket"] {
        only_failures(algorithm, None);
    }
}

#[test]
fn only_failures_count_in_redis() {
    for algorithm in ["fixed-window", "sliding-window", "token-bucket"] {
        only_failures(algorithm, Some(&Redis::start()));
    }
}

#[test]
fn what_was_never_answered_is_given_back() {
    let redis = Redis::start();
    let origin = Origin::start();
    let limits = policy("\"body:email\"", 2, "count = \"failures\"");
    let gateway = gateway(&config(&origin, PATIENT, &limits), &redis.url());
    origin.answer(|_| Reply::close());
    for _ in 0..5 {
        assert_eq!(guess(&gateway.client(), "ada", "x").code(), 502);
    }
    origin.answer(|_| Reply::text(500, ""));
    for _ in 0..5 {
        assert_eq!(guess(&gateway.client(), "ada", "x").code(), 500);
    }
    let key = redis.keys().into_iter().find(|key| key.starts_with("rate_limit:login:")).unwrap();
    assert_eq!(counter(&redis, &key), Some(0));
    assert!(redis.keys_without_ttl().is_empty());
}

fn parallel_guesses(redis: Option<&Redis>) {
    let origin = Origin::start();
    origin.answer(|_| Reply::text(401, "").after(Duration::from_millis(300)));
    let limits = policy("\"body:email\"", 5, "count = \"failures\"");
    let url = redis.map(Redis::url).unwrap_or_default();
    let gateway = gateway(&config(&origin, PATIENT, &limits), &url);
    let together = Arc::new(Barrier::new(20));
    let codes = concurrently(20, |_| {
        together.wait();
        guess(&gateway.client(), "ada", "wrong").code()
    });
    assert_eq!(codes.iter().filter(|code| **code == 401).count(), 5, "{codes:?}");
    assert_eq!(origin.hits(), 5);
}

#[test]
fn guesses_made_side_by_side_do_not_slip_through() {
    parallel_guesses(None);
    parallel_guesses(Some(&Redis::start()));
}

#[test]
fn other_statuses_may_be_the_failures() {
    let origin = Origin::start();
    origin.answer(|_| Reply::text(422, ""));
    let limits = policy("\"ip\"", 2, "count = \"failures\"\nfailure_statuses = [422]");
    let gateway = gateway(&config(&origin, "", &limits), "");
    let codes: Vec<u16> = (0..3).map(|_| gateway.client().get("/").send().code()).collect();
    assert_eq!(codes, [422, 422, 429]);
    let origin = Origin::start();
    origin.answer(|_| Reply::text(401, ""));
    let gateway = crate::setup::gateway(&config(&origin, "", &limits), "");
    let codes: Vec<u16> = (0..5).map(|_| gateway.client().get("/").send().code()).collect();
    assert_eq!(codes, [401; 5]);
}

#[test]
fn headers_and_cookies_tell_callers_apart_and_leaving_them_out_does_not_help() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let limits = policy("[\"header:X-Api-Key\", \"cookie:sid\"]", 2, "");
    let gateway = gateway(&config(&origin, PATIENT, &limits), &redis.url());
    let send = |headers: &[(&str, &str)]| {
        let request = gateway.client().get("/");
        headers.iter().fold(request, |request, (name, value)| request.header(name, value)).send().code()
    };
    let known = [("x-api-key", "secret-1"), ("cookie", "a=b; sid=session-1")];
    assert_eq!([send(&known), send(&known), send(&known)], [200, 200, 429]);
    let other = [("x-api-key", "secret-2"), ("cookie", "sid=session-1")];
    assert_eq!(send(&other), 200);
    let long = "x".repeat(5_000);
    assert_eq!(send(&[]), 200);
    assert_eq!(send(&[("x-api-key", "a"), ("x-api-key", "b"), ("cookie", "sid=1; sid=2")]), 200);
    assert_eq!(send(&[("x-api-key", &long)]), 429, "whoever says nothing usable is one caller");
    let subjects = subjects(&redis);
    assert_eq!(subjects.len(), 3, "{subjects:?}");
    assert!(subjects.contains("*none:*none"), "{subjects:?}");
    assert!(subjects.iter().all(|subject| !subject.contains("secret") && !subject.contains("session")));
    assert!(redis.keys_without_ttl().is_empty());
}

#[test]
fn a_body_field_counts_together_with_the_address() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let limits = policy("[\"ip\", \"body:user.email\"]", 1, "");
    let gateway = gateway(&config(&origin, PATIENT, &limits), &redis.url());
    let client = gateway.client();
    let send = |ip, email| post(&client, ip, JSON, json!({ "user": { "email": email } }).to_string()).code();
    assert_eq!([send("10.0.0.1", "ada"), send("10.0.0.1", "ADA")], [200, 429]);
    assert_eq!([send("10.0.0.2", "ada"), send("10.0.0.1", "eve")], [200, 200]);
    assert!(subjects(&redis).iter().all(|subject| subject.starts_with("10.0.0.")));
}

#[test]
fn counts_that_do_not_stand_go_back_in_one_call_and_are_told_to_operators() {
    let redis = Redis::start();
    let limits = "[policies.login]\nkey = \"ip\"\ncount = \"failures\"\n\
        windows = [{ limit = 1000, window = \"15m\" }, { limit = 2000, window = \"1h\" }]\n\
        [[routes]]\nname = \"login\"\npath = \"/**\"\nupstream = \"app\"\nlimits = [\"login\"]\n";
    let origin = doorman();
    let gateway = gateway(&config(&origin, PATIENT, limits), &redis.url());
    let mut monitor = redis.monitor();
    let given_back = |counts: f64| {
        assert_eq!(guess(&gateway.client(), "ada", "right").code(), 200);
        assert_eventually!(
            gateway.metric("tollgate_limit_refunds_total", &[("result", "done")]) == Some(counts),
            "they are given back"
        );
    };
    given_back(2.0);
    monitor.clear();
    given_back(4.0);
    let mut scripts = monitor.requests();
    scripts.retain(|call| call.words.iter().any(|word| word.starts_with("rate_limit:login:")));
    scripts.retain(|call| call.name().starts_with("EVAL"));
    let names: Vec<&str> = scripts.iter().map(Executed::name).collect();
    assert_eq!(names, ["EVALSHA"], "{scripts:?}");
    assert_eq!(gateway.metric("tollgate_limit_refunds_total", &[("result", "lost")]), Some(0.0));
}
