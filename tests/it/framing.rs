//! Requests whose length, lines or names can be read in two ways: each is refused in bounded time with the upstream
//! seeing nothing, or reaches it as exactly one request without any doubt left in it.

use std::time::{Duration, Instant};

use crate::support::client::{RawConnection, raw, raw_status};
use crate::support::gateway::Gateway;
use crate::support::ports::free_addr;
use crate::support::raw_h2::{self, Outcome};
use crate::support::strict_origin::StrictOrigin;

/// Far above anything a refusal takes, and below what would be a hang.
const BOUND: Duration = Duration::from_secs(5);

fn start(origin: &StrictOrigin) -> Gateway {
    let config = format!(
        r#"
        [server]
        listen = "{{listen}}"
        body_timeout = "500ms"
        keepalive_timeout = "3s"
        [upstreams.app]
        members = "{}"
        [[routes]]
        name = "guarded"
        path = "/guarded/**"
        auth = "required"
        upstream = "app"
        [[routes]]
        name = "all"
        path = "/**"
        upstream = "app"
        "#,
        origin.addr()
    );
    Gateway::builder().config(&config).start()
}

/// A gateway that looks into each body for a policy before it passes it on.
fn start_peeking(origin: &StrictOrigin) -> Gateway {
    let config = format!(
        r#"
        [server]
        listen = "{{listen}}"
        body_timeout = "500ms"
        keepalive_timeout = "3s"
        [upstreams.app]
        members = "{}"
        [policies.login]
        key = "body:email"
        limit = 100000
        window = "1h"
        [[routes]]
        name = "all"
        path = "/**"
        upstream = "app"
        limits = ["login"]
        "#,
        origin.addr()
    );
    Gateway::builder().config(&config).start()
}

/// What may become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Must {
    /// A 4xx or 5xx of the gateway's own, or the connection closed; the upstream sees no request.
    Refuse,
    /// The upstream may have seen a beginning of a body, but never a whole request.
    NeverWhole,
    /// Either refused, or exactly one well-formed request.
    BeOne,
    /// Exactly one well-formed request with this body.
    Pass(&'static str),
}

/// `head` without the final empty line; `\n` in it stands for CRLF.
fn request(head: &str, body: &str) -> Vec<u8> {
    format!("{}\r\nConnection: close\r\n\r\n{body}", head.replace('\n', "\r\n")).into_bytes()
}

fn try_all(cases: &[(&str, Vec<u8>, Must)]) {
    try_all_at(start, cases);
}

fn try_all_at(start: fn(&StrictOrigin) -> Gateway, cases: &[(&str, Vec<u8>, Must)]) {
    let origin = StrictOrigin::start();
    let gateway = start(&origin);
    let mut wrong = Vec::new();
    for (name, bytes, must) in cases {
        let (hits, unfinished) = (origin.hits(), origin.unfinished());
        let started = Instant::now();
        let answer = raw(gateway.addr(), bytes);
        let took = started.elapsed();
        let status = raw_status(&answer);
        let seen = origin.seen().split_off(hits);
        let text = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
        let refused = seen.is_empty() && status.is_none_or(|status| status >= 400);
        let one = seen.len() == 1 && status.is_some_and(|status| status < 400);
        let as_wanted = match must {
            Must::Refuse => refused && origin.unfinished() == unfinished,
            Must::NeverWhole => refused,
            Must::BeOne => refused || one,
            Must::Pass(body) => one && seen[0].body == body.as_bytes(),
        };
        if !as_wanted || took > BOUND {
            wrong
                .push(format!("{name}: wanted {must:?}, after {took:?} got {text:?}; upstream saw {seen:?}"));
        }
    }
    let violations = origin.violations();
    assert!(wrong.is_empty() && violations.is_empty(), "{}\nviolations: {violations:#?}", wrong.join("\n"));
}

#[test]
fn lengths_that_two_servers_could_read_differently_are_refused() {
    let post = "POST / HTTP/1.1\nHost: a";
    let with = |fields: &str, body: &str| request(&format!("{post}\n{fields}"), body);
    try_all(&[
        ("CL", with("Content-Length: 5", "hello"), Must::Pass("hello")),
        ("CL with blanks around", with("Content-Length: \t5 ", "hello"), Must::BeOne),
        ("CL of zero", with("Content-Length: 0", ""), Must::Pass("")),
        ("CL with leading zeros", with("Content-Length: 005", "hello"), Must::BeOne),
        ("CL on GET", request("GET / HTTP/1.1\nHost: a\nContent-Length: 5", "hello"), Must::Pass("hello")),
        ("TE", with("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"), Must::Pass("hello")),
        (
            "TE in another case",
            with("transfer-encoding: Chunked", "5\r\nhello\r\n0\r\n\r\n"),
            Must::Pass("hello"),
        ),
        ("CL then TE", with("Content-Length: 5\nTransfer-Encoding: chunked", "0\r\n\r\n"), Must::Refuse),
        ("TE then CL", with("Transfer-Encoding: chunked\nContent-Length: 5", "0\r\n\r\n"), Must::Refuse),
        (
            "CL and a TE spelled with _",
            with("Content-Length: 5\nTransfer_Encoding: chunked", "hello"),
            Must::Pass("hello"),
        ),
        ("two CL that differ", with("Content-Length: 5\nContent-Length: 6", "hello!"), Must::Refuse),
        ("two equal CL", with("Content-Length: 5\nContent-Length: 5", "hello"), Must::Refuse),
        ("two CL, one in another case", with("Content-Length: 5\ncontent-length: 0", "hello"), Must::Refuse),
        ("a list of CL", with("Content-Length: 5, 5", "hello"), Must::Refuse),
        ("CL with a plus", with("Content-Length: +5", "hello"), Must::Refuse),
        ("CL with a minus", with("Content-Length: -5", "hello"), Must::Refuse),
        ("CL in hexadecimal", with("Content-Length: 0x5", "hello"), Must::Refuse),
        ("CL with a fraction", with("Content-Length: 5.0", "hello"), Must::Refuse),
        ("CL with an exponent", with("Content-Length: 5e0", "hello"), Must::Refuse),
        ("CL of two numbers", with("Content-Length: 5 5", "hello"), Must::Refuse),
        ("CL that is empty", with("Content-Length:", "hello"), Must::Refuse),
        ("CL beyond 64 bits", with("Content-Length: 18446744073709551621", "hello"), Must::Refuse),
        ("CL beyond 63 bits", with("Content-Length: 9223372036854775808", "hello"), Must::Refuse),
        ("CL with a vertical tab", with("Content-Length: \x0b5", "hello"), Must::Refuse),
        ("CL in Arabic digits", with("Content-Length: \u{665}", "hello"), Must::Refuse),
        ("an unknown TE", with("Transfer-Encoding: xchunked", "0\r\n\r\n"), Must::Refuse),
        ("TE chunked, identity", with("Transfer-Encoding: chunked, identity", "0\r\n\r\n"), Must::Refuse),
        ("TE identity", with("Transfer-Encoding: identity", "0\r\n\r\n"), Must::Refuse),
        ("TE identity, chunked", with("Transfer-Encoding: identity, chunked", "0\r\n\r\n"), Must::Refuse),
        ("TE gzip, chunked", with("Transfer-Encoding: gzip, chunked", "0\r\n\r\n"), Must::Refuse),
        ("TE chunked, chunked", with("Transfer-Encoding: chunked, chunked", "0\r\n\r\n"), Must::Refuse),
        (
            "TE twice",
            with("Transfer-Encoding: chunked\nTransfer-Encoding: chunked", "0\r\n\r\n"),
            Must::Refuse,
        ),
        (
            "TE x then chunked",
            with("Transfer-Encoding: x\nTransfer-Encoding: chunked", "0\r\n\r\n"),
            Must::Refuse,
        ),
        (
            "TE chunked then x",
            with("Transfer-Encoding: chunked\nTransfer-Encoding: x", "0\r\n\r\n"),
            Must::Refuse,
        ),
        ("TE that is empty", with("Transfer-Encoding:", "0\r\n\r\n"), Must::Refuse),
        ("TE in quotes", with("Transfer-Encoding: \"chunked\"", "0\r\n\r\n"), Must::Refuse),
        ("TE with a parameter", with("Transfer-Encoding: chunked;a=b", "0\r\n\r\n"), Must::Refuse),
        ("TE with a trailing comma", with("Transfer-Encoding: chunked,", "0\r\n\r\n"), Must::Refuse),
        ("TE with a tab before", with("Transfer-Encoding:\tchunked", "0\r\n\r\n"), Must::BeOne),
        ("TE with a vertical tab", with("Transfer-Encoding: \x0bchunked", "0\r\n\r\n"), Must::Refuse),
        ("TE with a form feed", with("Transfer-Encoding: chunked\x0c", "0\r\n\r\n"), Must::Refuse),
        ("TE with a space before the colon", with("Transfer-Encoding : chunked", "0\r\n\r\n"), Must::Refuse),
        ("TE with a tab before the colon", with("Transfer-Encoding\t: chunked", "0\r\n\r\n"), Must::Refuse),
        ("TE behind an obs-fold", with("Transfer-Encoding:\n chunked", "0\r\n\r\n"), Must::Refuse),
        (
            "TE in HTTP/1.0",
            request("POST / HTTP/1.0\nHost: a\nTransfer-Encoding: chunked", "0\r\n\r\n"),
            Must::Refuse,
        ),
        (
            "TE and CL in HTTP/1.0",
            request("POST / HTTP/1.0\nHost: a\nTransfer-Encoding: chunked\nContent-Length: 5", "0\r\n\r\n"),
            Must::Refuse,
        ),
    ]);
}

/// Chunked bodies, sound and broken, and what may become of each as the body of `POST /` with these other fields.
fn chunks(fields: &str) -> Vec<(&'static str, Vec<u8>, Must)> {
    let head = format!("POST / HTTP/1.1\nHost: a{fields}\nTransfer-Encoding: chunked");
    let chunked = |body: &str| request(&head, body);
    vec![
        ("several chunks", chunked("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), Must::Pass("hello")),
        ("sizes with zeros", chunked("0005\r\nhello\r\n000\r\n\r\n"), Must::Pass("hello")),
        ("upper-case size", chunked("A\r\n0123456789\r\n0\r\n\r\n"), Must::Pass("0123456789")),
        ("a chunk extension", chunked("5;a=b\r\nhello\r\n0\r\n\r\n"), Must::BeOne),
        ("a quoted chunk extension", chunked("5;a=\"\r\n0\"\r\nhello\r\n0\r\n\r\n"), Must::NeverWhole),
        ("a negative size", chunked("-5\r\nhello\r\n0\r\n\r\n"), Must::NeverWhole),
        ("a size with a plus", chunked("+5\r\nhello\r\n0\r\n\r\n"), Must::NeverWhole),
        ("a size in 0x", chunked("0x5\r\nhello\r\n0\r\n\r\n"), Must::NeverWhole),
        ("a size behind a space", chunked(" 5\r\nhello\r\n0\r\n\r\n"), Must::BeOne),
        ("a size before a space", chunked("5 \r\nhello\r\n0\r\n\r\n"), Must::BeOne),
        ("a size beyond 64 bits", chunked("10000000000000005\r\nhello\r\n0\r\n\r\n"), Must::NeverWhole),
        ("a size of 64 bits", chunked("ffffffffffffffff\r\nhello\r\n0\r\n\r\n"), Must::NeverWhole),
        ("an empty size", chunked("\r\nhello\r\n0\r\n\r\n"), Must::BeOne),
        ("an extension alone", chunked(";a=b\r\n\r\n"), Must::BeOne),
        ("no hexadecimal", chunked("g\r\nhello\r\n0\r\n\r\n"), Must::NeverWhole),
        ("LF after the size", chunked("5\nhello\r\n0\r\n\r\n"), Must::NeverWhole),
        ("LF after the data", chunked("5\r\nhello\n0\r\n\r\n"), Must::NeverWhole),
        ("CR after the size", chunked("5\rhello\r\n0\r\n\r\n"), Must::NeverWhole),
        ("data longer than said", chunked("4\r\nhello\r\n0\r\n\r\n"), Must::NeverWhole),
        ("data shorter than said", chunked("6\r\nhello\r\n0\r\n\r\n"), Must::NeverWhole),
        ("no last chunk", chunked("5\r\nhello\r\n"), Must::NeverWhole),
        ("no final CRLF", chunked("5\r\nhello\r\n0\r\n"), Must::NeverWhole),
        ("LF at the end", chunked("5\r\nhello\r\n0\n\n"), Must::NeverWhole),
        ("trailers", chunked("5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"), Must::BeOne),
        (
            "trailers that forge",
            chunked("5\r\nhello\r\n0\r\nX-User-Id: root\r\nContent-Length: 99\r\n\r\n"),
            Must::BeOne,
        ),
        ("an endless size line", chunked(&"0".repeat(100_000)), Must::NeverWhole),
        (
            "an endless extension",
            chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(200_000))),
            Must::BeOne,
        ),
        (
            "a body shorter than its length",
            request(&format!("POST / HTTP/1.1\nHost: a{fields}\nContent-Length: 9"), "hello"),
            Must::NeverWhole,
        ),
    ]
}

#[test]
fn chunks_that_are_not_what_they_say_never_become_a_request() {
    try_all(&chunks(""));
}

#[test]
fn chunks_that_are_not_what_they_say_never_become_a_request_where_a_policy_reads_them() {
    try_all_at(start_peeking, &chunks("\nContent-Type: application/json"));
}

#[test]
fn what_follows_a_body_that_a_policy_could_not_read_is_no_request() {
    let origin = StrictOrigin::start();
    let gateway = start_peeking(&origin);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for (name, bytes, must) in chunks("\nContent-Type: application/json") {
        if must != Must::NeverWhole {
            continue;
        }
        let hits = origin.hits();
        let mut connection = RawConnection::open(gateway.addr());
        let kept_open = String::from_utf8(bytes).expect("text").replace("\r\nConnection: close", "");
        let _ = connection.try_send(kept_open.as_bytes());
        let _ = connection.try_send(smuggled.as_bytes());
        connection.finish();
        let answer = String::from_utf8_lossy(&connection.read_to_end()).into_owned();
        let seen = origin.seen().split_off(hits);
        // It may well be read as the rest of a body that is shorter than it says, or as trailers.
        assert!(seen.iter().all(|seen| seen.target == "/"), "{name}: {seen:?}");
        assert!(!answer.contains("smuggled"), "{name}: {answer}");
    }
    assert!(origin.violations().is_empty(), "{:?}", origin.violations());
}

#[test]
fn what_follows_a_chunk_without_a_size_is_no_request() {
    let origin = StrictOrigin::start();
    let gateway = start(&origin);
    for end in ["\r\n", ";a=b\r\n\r\n", "5\r\nhello\r\n\r\n"] {
        let hits = origin.hits();
        let mut connection = RawConnection::open(gateway.addr());
        connection.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{end}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        ));
        connection.read_to_end();
        let targets: Vec<String> =
            origin.seen().split_off(hits).into_iter().map(|seen| seen.target).collect();
        assert!(targets.is_empty() || targets == ["/"], "{end:?}: {targets:?}");
    }
    assert!(origin.violations().is_empty(), "{:?}", origin.violations());
}

#[test]
fn forged_trailers_reach_the_upstream_neither_as_trailers_nor_as_headers() {
    let origin = StrictOrigin::start();
    let gateway = start(&origin);
    let body =
        "5\r\nhello\r\n0\r\nX-User-Id: root\r\nX-Forwarded-For: 6.6.6.6\r\nAuthorization: Bearer x\r\n\r\n";
    raw(gateway.addr(), request("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked", body));
    for seen in origin.seen() {
        assert!(!seen.has_any_spelling("x-user-id"), "{seen:?}");
        assert!(seen.one("x-forwarded-for") == Some("127.0.0.1"), "{seen:?}");
        assert!(seen.all("authorization").is_empty() && seen.trailers.is_empty(), "{seen:?}");
    }
    assert!(origin.violations().is_empty(), "{:?}", origin.violations());
}

#[test]
fn lines_and_names_out_of_shape_are_refused() {
    let get = |fields: &str| request(&format!("GET / HTTP/1.1\nHost: a\n{fields}"), "");
    let plain = |text: &str| text.as_bytes().to_vec();
    try_all(&[
        ("a space before the colon", get("X-A : 1"), Must::Refuse),
        ("a tab before the colon", get("X-A\t: 1"), Must::Refuse),
        ("an obs-fold by space", get("X-A: 1\n 2"), Must::Refuse),
        ("an obs-fold by tab", get("X-A: 1\n\t2"), Must::Refuse),
        ("a fold in the first line", plain("GET / HTTP/1.1\r\n Host: a\r\n\r\n"), Must::Refuse),
        ("a line without a colon", get("X-A"), Must::Refuse),
        ("an empty name", get(": 1"), Must::Refuse),
        ("a name with a space", get("X A: 1"), Must::Refuse),
        ("a name with a slash", get("X/A: 1"), Must::Refuse),
        ("a name above ASCII", get("X-\u{e4}: 1"), Must::Refuse),
        ("a name with NUL", get("X-\0: 1"), Must::Refuse),
        ("a name with a control byte", get("X-\x01: 1"), Must::Refuse),
        ("a value with NUL", get("X-A: a\0b"), Must::Refuse),
        ("a value with a control byte", get("X-A: a\x01b"), Must::Refuse),
        ("a value with DEL", get("X-A: a\x7fb"), Must::Refuse),
        ("a value with a bare CR", get("X-A: a\rb"), Must::Refuse),
        ("a value with CR and a line", get("X-A: a\rX-B: b"), Must::Refuse),
        (
            "bare LF between lines",
            plain("GET / HTTP/1.1\r\nHost: a\nX-A: 1\r\nConnection: close\r\n\r\n"),
            Must::Refuse,
        ),
        ("bare LF everywhere", plain("GET / HTTP/1.1\nHost: a\nConnection: close\n\n"), Must::Refuse),
        (
            "bare LF after the request line",
            plain("GET / HTTP/1.1\nHost: a\r\nConnection: close\r\n\r\n"),
            Must::Refuse,
        ),
        ("bare LF at the end", plain("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\n"), Must::Refuse),
        ("LF CR", plain("GET / HTTP/1.1\n\rHost: a\n\rConnection: close\n\r\n\r"), Must::Refuse),
        ("bare CR everywhere", plain("GET / HTTP/1.1\rHost: a\rConnection: close\r\r\r\n\r\n"), Must::Refuse),
        ("CR CR LF", plain("GET / HTTP/1.1\r\nHost: a\r\r\nConnection: close\r\n\r\n"), Must::Refuse),
        (
            "empty lines before",
            plain("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
            Must::BeOne,
        ),
        ("a name with an underscore", get("X_A: 1"), Must::Pass("")),
        ("values above ASCII", get("X-A: \u{e4}"), Must::BeOne),
        ("an empty value", get("X-A:"), Must::Pass("")),
        ("no version", plain("GET /\r\nHost: a\r\n\r\n"), Must::Refuse),
        ("HTTP/0.9", plain("GET /\r\n\r\n"), Must::Refuse),
        ("HTTP/1.0", request("GET / HTTP/1.0\nHost: a", ""), Must::BeOne),
        ("HTTP/1.2", request("GET / HTTP/1.2\nHost: a", ""), Must::BeOne),
        ("HTTP/2.0", request("GET / HTTP/2.0\nHost: a", ""), Must::Refuse),
        ("http/1.1", request("GET / http/1.1\nHost: a", ""), Must::Refuse),
        ("HTTP/1.1 and more", request("GET / HTTP/1.1 x\nHost: a", ""), Must::Refuse),
        ("two spaces", request("GET  / HTTP/1.1\nHost: a", ""), Must::Refuse),
        ("a tab", request("GET\t/ HTTP/1.1\nHost: a", ""), Must::Refuse),
        ("a space before the method", request(" GET / HTTP/1.1\nHost: a", ""), Must::Refuse),
        ("an unregistered expectation", get("Expect: 200-ok"), Must::Refuse),
        ("garbage", plain("\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03\r\n\r\n"), Must::Refuse),
        ("an h2 preface", plain("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Must::Refuse),
    ]);
}

#[test]
fn one_plain_host_is_required() {
    let hosts = |fields: &str| request(&format!("GET / HTTP/1.1{fields}"), "");
    try_all(&[
        ("a host", hosts("\nHost: a.example"), Must::Pass("")),
        ("a port", hosts("\nHost: a.example:80"), Must::Pass("")),
        ("IPv6", hosts("\nHost: [::1]:80"), Must::Pass("")),
        ("none", hosts("\nX-A: 1"), Must::Refuse),
        ("none in HTTP/1.0", request("GET / HTTP/1.0\nX-A: 1", ""), Must::BeOne),
        ("an empty one", hosts("\nHost:"), Must::Refuse),
        ("two", hosts("\nHost: a\nHost: b"), Must::Refuse),
        ("two that are equal", hosts("\nHost: a\nHost: a"), Must::Refuse),
        ("two in different cases", hosts("\nHost: a\nhOST: b"), Must::Refuse),
        ("a list", hosts("\nHost: a, b"), Must::Refuse),
        ("a space", hosts("\nHost: a b"), Must::Refuse),
        ("a path", hosts("\nHost: a/b"), Must::Refuse),
        ("user information", hosts("\nHost: u@a"), Must::Refuse),
        ("a query", hosts("\nHost: a?b"), Must::Refuse),
        ("a fragment", hosts("\nHost: a#b"), Must::Refuse),
        ("a backslash", hosts("\nHost: a\\b"), Must::Refuse),
        ("an escape", hosts("\nHost: a%2eb"), Must::Refuse),
        ("a port that is none", hosts("\nHost: a:b"), Must::Refuse),
        ("a port that is too large", hosts("\nHost: a:65536"), Must::Refuse),
        ("port 0", hosts("\nHost: a:0"), Must::Refuse),
        ("an open bracket", hosts("\nHost: [::1"), Must::Refuse),
        ("above ASCII", hosts("\nHost: \u{e4}"), Must::Refuse),
        ("absolute form that agrees", request("GET http://a/ HTTP/1.1\nHost: a", ""), Must::Pass("")),
        ("absolute form that differs", request("GET http://b/ HTTP/1.1\nHost: a", ""), Must::Refuse),
        ("absolute form without Host", request("GET http://a/ HTTP/1.1", ""), Must::Refuse),
        (
            "absolute form with user information",
            request("GET http://u@a/ HTTP/1.1\nHost: a", ""),
            Must::Refuse,
        ),
        (
            "Connection that nominates Host",
            request("GET / HTTP/1.1\nHost: a\nConnection: host", ""),
            Must::BeOne,
        ),
        (
            "Connection that nominates Content-Length",
            request("POST / HTTP/1.1\nHost: a\nContent-Length: 5\nConnection: content-length", "hello"),
            Must::BeOne,
        ),
        (
            "Connection that nominates Transfer-Encoding",
            request(
                "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nConnection: transfer-encoding",
                "5\r\nhello\r\n0\r\n\r\n",
            ),
            Must::BeOne,
        ),
    ]);
}

#[test]
fn a_refused_request_with_a_body_never_leaves_its_body_as_a_request() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let origin = StrictOrigin::start();
    let gateway = start(&origin);
    // Refused by auth, by method, by size and by framing; all carry a request where a body should be.
    let heads = [
        format!("POST /guarded/x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", smuggled.len()),
        format!("POST /%zz HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", smuggled.len()),
        format!("GET /guarded/x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", smuggled.len()),
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n".to_owned(),
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        "POST /guarded/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        format!(
            "POST /guarded/x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            smuggled.len()
        ),
    ];
    for head in &heads {
        for pause in [false, true] {
            let mut connection = RawConnection::open(gateway.addr());
            let mut answer = Vec::new();
            if pause {
                connection.send(head);
                answer = connection.read_head();
                let _ = connection.try_send(smuggled.as_bytes());
            } else {
                connection.send([head.as_bytes(), smuggled.as_bytes()].concat());
            }
            connection.finish();
            answer.extend(connection.read_to_end());
            let text = String::from_utf8_lossy(&answer);
            assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{head}: {text}");
            assert!(raw_status(&answer).is_some_and(|status| (400..500).contains(&status)), "{head}: {text}");
        }
    }
    assert_eq!(origin.bytes(), 0, "{:?}", origin.seen());
}

#[test]
fn an_early_answer_of_the_upstream_does_not_turn_the_rest_of_the_body_into_a_request() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    // Answers at the head, before any of the body.
    let origin = crate::support::raw_origin::RawOrigin::ok();
    let config = format!(
        "[server]\nlisten = \"{{listen}}\"\nbody_timeout = \"500ms\"\n[upstreams.app]\nmembers = \"{}\"\n\
         [[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n",
        origin.addr()
    );
    let gateway = Gateway::builder().config(&config).start();
    let mut connection = RawConnection::open(gateway.addr());
    connection.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", smuggled.len() + 5));
    assert_eq!(raw_status(&connection.read_head()), Some(200));
    let _ = connection.try_send(b"hello");
    let _ = connection.try_send(smuggled.as_bytes());
    let rest = connection.read_to_end();
    assert_eq!(raw_status(&rest), None, "{:?}", String::from_utf8_lossy(&rest));
    // Whatever of it was passed on is the body of the first request, and the next one does not end up in it.
    let next = raw(gateway.addr(), "GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(raw_status(&next), Some(200));
    for bytes in origin.connections() {
        let end = bytes.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
        let rest = if bytes.starts_with(b"POST ") {
            bytes.get(end + smuggled.len() + 5..)
        } else {
            bytes.get(end..)
        };
        let rest = rest.unwrap_or_default();
        assert!(rest.is_empty() || rest.starts_with(b"GET /next "), "{}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn of_pipelined_requests_none_is_confused_with_another() {
    let origin = StrictOrigin::start();
    let gateway = start(&origin);
    let first = "POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let second = "GET /second HTTP/1.1\r\nHost: a\r\n\r\n";
    let refused = "GET /guarded/x HTTP/1.1\r\nHost: a\r\n\r\n";
    let last = "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let mut connection = RawConnection::open(gateway.addr());
    connection.send(format!("{first}{second}{refused}{last}"));
    let answer = String::from_utf8_lossy(&connection.read_to_end()).into_owned();
    let statuses: Vec<&str> =
        answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "200", "401", "200"], "{answer}");
    let targets: Vec<String> = origin.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/first", "/second", "/last"]);
    assert_eq!(origin.seen()[0].body, b"hello");
    assert!(origin.violations().is_empty());
}

#[test]
fn what_http2_forbids_is_refused_and_cookie_crumbs_become_one_line() {
    let origin = StrictOrigin::start();
    let listen_h2c = free_addr();
    let config = format!(
        "[server]\nlisten = \"{{listen}}\"\nlisten_h2c = \"{listen_h2c}\"\nkeepalive_timeout = \"3s\"\n\
         [upstreams.app]\nmembers = \"{}\"\n[[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n",
        origin.addr()
    );
    let gateway = Gateway::builder().config(&config).start();
    let base = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    let with = |more: &[(&'static str, &'static str)]| [&base[..], more].concat();
    let change = |name: &str, value: &'static str| {
        base.map(|(known, old)| if known == name { (known, value) } else { (known, old) }).to_vec()
    };
    assert_eq!(raw_h2::request(listen_h2c, &base, b""), Outcome::Answered { ok: true });
    assert_eq!(
        raw_h2::request(listen_h2c, &with(&[("te", "trailers")]), b""),
        Outcome::Answered { ok: true }
    );
    let cases = [
        with(&[("connection", "close")]),
        with(&[("connection", "x-user-id")]),
        with(&[("keep-alive", "1")]),
        with(&[("proxy-connection", "close")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("upgrade", "websocket")]),
        with(&[("te", "gzip")]),
        with(&[("host", "b")]),
        with(&[("X-Upper", "1")]),
        with(&[("x a", "1")]),
        with(&[("x:a", "1")]),
        with(&[("x-a\r\nx-b", "1")]),
        with(&[("x-a", "1\r\nx-user-id: root")]),
        with(&[("x-a", "1\nx-user-id: root")]),
        with(&[("x-a", "1\0")]),
        with(&[("", "1")]),
        with(&[("content-length", "5")]),
        with(&[("content-length", "5, 5")]),
        with(&[("content-length", "0"), ("content-length", "5")]),
        with(&[(":path", "/twice")]),
        with(&[("x-a", "1"), (":path", "/late")]),
        with(&[(":status", "200")]),
        with(&[(":unknown", "1")]),
        change(":path", ""),
        change(":path", "admin"),
        change(":path", "/a b"),
        change(":path", "/ HTTP/1.1\r\nHost: b\r\n\r\n"),
        change(":path", "/a\r\nx-user-id: root"),
        change(":path", "/a\nb"),
        change(":path", "http://b/"),
        change(":path", "*"),
        change(":path", "/\\..\\admin"),
        change(":method", "GET / HTTP/1.1\r\nHost: b\r\n\r\nGET"),
        change(":method", "get"),
        change(":method", ""),
        change(":method", "CONNECT"),
        change(":method", "TRACE"),
        change(":scheme", "http://x/?"),
        change(":scheme", ""),
        change(":authority", "a/b"),
        change(":authority", "u@a"),
        change(":authority", "a\r\nx: y"),
        change(":authority", "a b"),
        change(":authority", ""),
        base[1..].to_vec(),
        [base[0], base[1], base[3]].to_vec(),
        base[..3].to_vec(),
    ];
    for fields in &cases {
        let hits = origin.hits();
        let outcome = raw_h2::request(listen_h2c, fields, b"");
        // The transport cuts an authority at its slash and does not use the scheme: what is left means one thing.
        let cut = |(name, value): &(&str, &str)| {
            *name == ":scheme" && *value != "http" || *name == ":authority" && *value == "a/b"
        };
        let is_cut =
            fields.iter().any(cut) && origin.last().target == "/" && origin.last().one("host") == Some("a");
        assert!(outcome != Outcome::Answered { ok: true } || is_cut, "{fields:?}");
        assert!(origin.hits() == hits || is_cut, "{fields:?} reached the upstream: {:?}", origin.last());
    }
    // A fragment never goes on, and is no part of what is matched.
    assert_eq!(
        raw_h2::request(listen_h2c, &change(":path", "/a#/../admin"), b""),
        Outcome::Answered { ok: true }
    );
    assert_eq!(origin.last().target, "/a");
    // A length that does not hold is a protocol error whichever way it is off.
    for (length, body) in [("3", "hello"), ("9", "hello")] {
        let mut fields = change(":method", "POST");
        fields.push(("content-length", length));
        let before = origin.hits();
        let outcome = raw_h2::request(listen_h2c, &fields, body.as_bytes());
        assert_ne!(outcome, Outcome::Answered { ok: true }, "{length}");
        assert_eq!(origin.hits(), before, "{length}");
    }
    let crumbs = with(&[("cookie", "a=1"), ("cookie", "b=2"), ("x-a", "1"), ("cookie", "c=3")]);
    assert_eq!(raw_h2::request(listen_h2c, &crumbs, b""), Outcome::Answered { ok: true });
    assert_eq!(origin.last().one("cookie"), Some("a=1; b=2; c=3"));
    assert_eq!(origin.last().one("host"), Some("a"));
    let mut post = change(":method", "POST");
    post.push(("host", "a"));
    assert_eq!(raw_h2::request(listen_h2c, &post, b"hello"), Outcome::Answered { ok: true });
    assert_eq!(origin.last().body, b"hello");
    assert!(origin.violations().is_empty(), "{:?}", origin.violations());
    drop(gateway);
}
