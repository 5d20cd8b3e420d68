//! Sessions are opened by what login routes answer, wherever the token is and however the answer is packed and sent;
//! the client gets the answer as if nobody had looked into it.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http::Method;
use serde_json::{Value, json};

use crate::jwks::{Publisher, jwk, token_of};
use crate::setup::{PATIENT, config, gateway, pair, revoke_everywhere};
use crate::support::client::{Client, RawConnection, Response, SendError, raw};
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Reply};
use crate::support::ports::free_addr;
use crate::support::raw_origin::{RawOrigin, Step};
use crate::support::redis::Redis;
use crate::support::token::{Token, unix_seconds};

const ALL: &str = "[[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n";
const NOT_OPENED: &str = "tollgate_sessions_not_opened_total";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn br(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    brotli::CompressorWriter::new(&mut packed, 4_096, 5, 22).write_all(bytes).unwrap();
    packed
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).unwrap()
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Opens,
    OpensNot(&'static str),
    /// It is not looked at.
    IsNoLogin,
}
use Outcome::{IsNoLogin, Opens, OpensNot};

/// One answer of an upstream, on a route of its own.
struct Case {
    name: &'static str,
    method: &'static str,
    place: &'static str,
    script: Vec<Step>,
    outcome: Outcome,
}

impl Case {
    fn new(name: &'static str, place: &'static str, answer: Vec<u8>, outcome: Outcome) -> Self {
        let script = vec![Step::read_head(), Step::send(answer), Step::Again];
        Self { name, method: "POST", place, script, outcome }
    }

    /// The upstream closes the connection behind the answer.
    fn closing(mut self) -> Self {
        self.script.pop();
        self.script.push(Step::Close);
        self
    }

    fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }
}

/// An answer with a length.
fn whole(head: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\n{head}\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// An answer in chunks of seven bytes.
fn chunked(head: &str, body: &[u8]) -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 200 OK\r\n{head}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    for chunk in body.chunks(7) {
        answer.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        answer.extend(chunk);
        answer.extend(b"\r\n");
    }
    answer.extend(b"0\r\n\r\n");
    answer
}

const JSON: &str = "Content-Type: application/json";

fn body(token: &str) -> Vec<u8> {
    json!({"access_token": token, "token_type": "bearer"}).to_string().into_bytes()
}

/// An answer in JSON of the usual content, with a token of the subject `name`.
fn json_case(name: &'static str, outcome: Outcome, answer: fn(&[u8]) -> Vec<u8>) -> Case {
    Case::new(name, "json:/access_token", answer(&body(&Token::of(name).sign())), outcome)
}

/// An answer with a token of the subject `name` elsewhere.
fn case(name: &'static str, place: &'static str, outcome: Outcome, answer: fn(&str) -> Vec<u8>) -> Case {
    Case::new(name, place, answer(&Token::of(name).sign()), outcome)
}

fn packed(codings: &str, bytes: &[u8]) -> Vec<u8> {
    whole(&format!("{JSON}\r\nContent-Encoding: {codings}"), bytes)
}

fn packed_in_chunks(codings: &str, bytes: &[u8]) -> Vec<u8> {
    chunked(&format!("{JSON}\r\nContent-Encoding: {codings}"), bytes)
}

/// The usual content with one more member.
fn with_member(body: &[u8], member: &[u8]) -> Vec<u8> {
    [&body[..body.len() - 1], b",", member, b"}"].concat()
}

/// As an upstream of HTTP/1.0 answers, which says nothing of the length.
fn until_close(body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.0 200 OK\r\n{JSON}\r\n\r\n").as_bytes(), body].concat()
}

/// The answer under another status.
fn with_status(status: &str, answer: &[u8]) -> Vec<u8> {
    [b"HTTP/1.1 ", status.as_bytes(), &answer["HTTP/1.1 200 OK".len()..]].concat()
}

fn cut(mut answer: Vec<u8>) -> Vec<u8> {
    answer.truncate(answer.len() - 10);
    answer
}

/// Bodies with a token that is found.
fn good_bodies() -> Vec<Case> {
    vec![
        json_case("length", Opens, |body| whole(JSON, body)),
        json_case("created", Opens, |body| with_status("201 Created", &whole(JSON, body))),
        json_case("chunked", Opens, |body| chunked(JSON, body)),
        json_case("until-close", Opens, until_close).closing(),
        json_case("newline", Opens, |body| whole(JSON, &[body, b"\r\n"].concat())),
        json_case("mark", Opens, |body| whole(JSON, &[b"\xef\xbb\xbf", body].concat())),
        json_case("charset", Opens, |body| whole("Content-Type: Application/JSON; charset=utf-8", body)),
        json_case("suffix", Opens, |body| whole("content-type: application/vnd.login+json", body)),
        json_case("large", Opens, |body| {
            let member = format!("\"x\":\"{}\"", "x".repeat(60_000));
            chunked(JSON, &with_member(body, member.as_bytes()))
        }),
        json_case("gzip", Opens, |body| packed("gzip", &gzip(body))),
        json_case("gzip-chunked", Opens, |body| packed_in_chunks("gzip", &gzip(body))),
        json_case("deflate", Opens, |body| packed("deflate", &deflate(body))),
        json_case("br", Opens, |body| packed_in_chunks("br", &br(body))),
        json_case("zstd", Opens, |body| packed_in_chunks("zstd", &zstd(body))),
        json_case("stacked", Opens, |body| packed("gzip, br", &br(&gzip(body)))),
        case("array", "json:/data/1/token", Opens, |token| {
            whole(JSON, json!({"data": [0, {"token": token}]}).to_string().as_bytes())
        }),
    ]
}

/// Bodies that tell no token.
fn bad_bodies() -> Vec<Case> {
    vec![
        json_case("html", OpensNot("media_type"), |body| whole("Content-Type: text/html", body)),
        json_case("no-type", OpensNot("media_type"), |body| whole("X-Nothing: here", body)),
        json_case("coding", OpensNot("coding"), |body| packed("compress", body)),
        json_case("three", OpensNot("coding"), |body| packed("gzip, gzip, gzip", &gzip(&gzip(&gzip(body))))),
        json_case("not-gzip", OpensNot("coding"), |body| packed("gzip", body)),
        json_case("half-gzip", OpensNot("coding"), |body| packed("gzip", &cut(gzip(body)))),
        json_case("part", OpensNot("partial"), |body| with_status("206 Partial Content", &whole(JSON, body))),
        json_case("list", OpensNot("malformed"), |body| whole(JSON, &[b"[", body, b"]"].concat())),
        json_case("twice", OpensNot("malformed"), |body| {
            whole(JSON, &with_member(body, b"\"access_token\":\"x\""))
        }),
        json_case("deep", OpensNot("malformed"), |body| {
            let member = format!("\"x\":{}{}", "[".repeat(1_000), "]".repeat(1_000));
            whole(JSON, &with_member(body, member.as_bytes()))
        }),
        json_case("huge", OpensNot("too_large"), |body| {
            let member = format!("\"x\":\"{}\"", "x".repeat(5_000_000));
            whole(JSON, &with_member(body, member.as_bytes()))
        }),
        json_case("huge-chunked", OpensNot("too_large"), |body| {
            let member = format!("\"x\":\"{}\"", "x".repeat(100_000));
            chunked(JSON, &with_member(body, member.as_bytes()))
        }),
        json_case("bomb", OpensNot("too_large"), |body| {
            packed("gzip", &gzip(&[body, &vec![b' '; 5_000_000]].concat()))
        }),
        json_case("cut-length", OpensNot("incomplete"), |body| cut(whole(JSON, body))).closing(),
        json_case("cut-chunks", OpensNot("incomplete"), |body| cut(chunked(JSON, body))).closing(),
        json_case("cut-close", OpensNot("malformed"), |body| cut(until_close(body))).closing(),
        json_case("empty", OpensNot("absent"), |_| whole(JSON, b"")),
        json_case("no-content", OpensNot("absent"), |_| b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        case("elsewhere", "json:/data/access_token", OpensNot("absent"), |token| whole(JSON, &body(token))),
        case("number", "json:/n", OpensNot("not_a_token"), |_| whole(JSON, b"{\"n\":1}")),
    ]
}

/// Tokens in headers and cookies.
fn heads() -> Vec<Case> {
    vec![
        case("header", "header:X-Token", Opens, |token| whole(&format!("X-Token: {token}"), b"ok")),
        case("bearer", "header:authorization", Opens, |token| {
            chunked(&format!("Authorization: Bearer {token}"), b"welcome")
        }),
        case("cookie", "cookie:token", Opens, |token| {
            whole(&format!("Set-Cookie: a=b\r\nSet-Cookie: token={token}; Path=/; HttpOnly"), b"ok")
        }),
        case("quoted", "cookie:token", Opens, |token| {
            let old = "token=\"\"; Max-Age=0; Path=/old";
            whole(&format!("Set-Cookie: {old}\r\nSet-Cookie: token=\"{token}\"; Max-Age=60"), b"")
        }),
        case("cookie-204", "cookie:token", Opens, |token| {
            format!("HTTP/1.1 204 No Content\r\nSet-Cookie: token={token}\r\n\r\n").into_bytes()
        }),
        case("cookie-head", "cookie:token", Opens, |token| whole(&format!("Set-Cookie: token={token}"), b""))
            .method("HEAD"),
        case("header-twice", "header:x-token", OpensNot("ambiguous"), |token| {
            whole(&format!("X-Token: {token}\r\nX-Token: {token}"), b"")
        }),
        case("header-list", "header:x-token", OpensNot("not_a_token"), |token| {
            whole(&format!("X-Token: {token}, {token}"), b"")
        }),
        case("cookie-twice", "cookie:token", OpensNot("ambiguous"), |token| {
            whole(&format!("Set-Cookie: token={token}\r\nSet-Cookie: token={token}; Path=/a"), b"")
        }),
        case("cookie-gone", "cookie:token", OpensNot("absent"), |token| {
            whole(&format!("Set-Cookie: token={token}; Max-Age=0"), b"")
        }),
        case("cookie-past", "cookie:token", OpensNot("absent"), |token| {
            whole(&format!("Set-Cookie: token={token}; Expires=Thu, 01 Jan 1970 00:00:00 GMT"), b"")
        }),
        case("cookie-other", "cookie:token", OpensNot("absent"), |token| {
            whole(&format!("Set-Cookie: Token={token}"), b"")
        }),
    ]
}

/// Tokens that are refused, and answers that are no logins.
fn refused() -> Vec<Case> {
    let told = |name, token: &str, reason| {
        Case::new(name, "header:x-token", whole(&format!("X-Token: {token}"), b""), OpensNot(reason))
    };
    let api_token = format!("tgk_{}_{}", "a".repeat(16), "b".repeat(43));
    vec![
        told("expired", &Token::of("expired").expires_in(-100).sign(), "expired"),
        told("early", &Token::of("early").claim("nbf", unix_seconds() + 600).sign(), "refused"),
        told(
            "foreign",
            &Token::of("foreign").sign_with(b"another-secret-of-the-very-same-length"),
            "refused",
        ),
        told("unsigned", &Token::of("unsigned").header("alg", "none").unsigned(), "refused"),
        told("nobody", &Token::of("nobody").without("sub").sign(), "refused"),
        told("revoked", &Token::of("revoked").claim("jti", "revoked-1").sign(), "revoked"),
        told("api-token", &api_token, "api_token"),
        told("rubbish", "rubbish", "refused"),
        case("unauthorized", "header:x-token", IsNoLogin, |token| {
            with_status("401 Unauthorized", &whole(&format!("X-Token: {token}"), b""))
        }),
        case("redirect", "cookie:token", IsNoLogin, |token| {
            with_status("302 Found", &whole(&format!("Location: /\r\nSet-Cookie: token={token}"), b""))
        }),
        json_case("failed", IsNoLogin, |body| with_status("500 Oh", &whole(JSON, body))),
        json_case("head", IsNoLogin, |_| {
            format!("HTTP/1.1 200 OK\r\n{JSON}\r\nContent-Length: 100\r\n\r\n").into_bytes()
        })
        .method("HEAD"),
    ]
}

/// A route and an upstream for each case; with or without the tables that make them logins.
fn routes(cases: &[(Case, RawOrigin)], are_logins: bool) -> String {
    let mut text = ALL.to_owned();
    for (Case { name, place, .. }, origin) in cases {
        let login = if are_logins { format!("[routes.login]\ntoken = \"{place}\"") } else { String::new() };
        let _ = writeln!(
            text,
            "[[routes]]\nname = \"{name}\"\npath = \"/{name}\"\nupstream = \"{name}\"\n{login}\n\
             [upstreams.{name}]\nmembers = \"{}\"",
            origin.addr()
        );
    }
    text
}

fn answer(addr: SocketAddr, case: &Case) -> Vec<u8> {
    let Case { name, method, .. } = case;
    let length = if *method == "POST" { "Content-Length: 0\r\n" } else { "" };
    raw(
        addr,
        format!(
            "{method} /{name} HTTP/1.1\r\nHost: a\r\nX-Request-Id: r-1\r\n{length}Connection: close\r\n\r\n"
        ),
    )
}

/// Head without its date, content, and whether a chunked body has its end: how many chunks there are is a matter of
/// time.
fn understood(answer: &[u8]) -> (String, Vec<u8>, bool) {
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").expect("a head") + 4;
    let (head, mut rest) = answer.split_at(end);
    let head = String::from_utf8(head.to_vec()).expect("text");
    let head: String = head.split_inclusive("\r\n").filter(|line| !line.starts_with("Date:")).collect();
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return (head, rest.to_vec(), true);
    }
    let mut content = Vec::new();
    while let Some(line) = rest.windows(2).position(|part| part == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        if length == 0 {
            return (head, content, &rest[line..] == b"\r\n\r\n");
        }
        content.extend(&rest[line + 2..line + 2 + length]);
        rest = &rest[line + 2 + length + 2..];
    }
    (head, content, false)
}

/// Whether the store has a session of this subject.
fn has_session(redis: &Redis, subject: &str) -> bool {
    redis.keys().contains(&format!("session:{subject}"))
}

/// Whether so many answers opened no session on a route, for whatever reason.
fn not_opened(gateway: &Gateway, route: &str, times: f64) -> bool {
    gateway.metric(NOT_OPENED, &[("route", route)]) == Some(times)
}

#[test]
fn answers_pass_unchanged_and_open_what_they_should() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let cases: Vec<_> = [good_bodies(), bad_bodies(), heads(), refused()]
        .into_iter()
        .flatten()
        .map(|case| {
            let origin = RawOrigin::playing(case.script.clone());
            (case, origin)
        })
        .collect();
    let looking = gateway(&config(&origin, PATIENT, &routes(&cases, true)), &redis.url());
    let blind = gateway(&config(&origin, PATIENT, &routes(&cases, false)), "");
    revoke_everywhere(&looking, &json!({"jti": "revoked-1"}));

    for (case, _) in &cases {
        let (got, expected) = (answer(looking.addr(), case), answer(blind.addr(), case));
        let (got, expected) = (understood(&got), understood(&expected));
        assert_eq!((&got.0, got.2), (&expected.0, expected.2), "{}", case.name);
        assert!(got.1 == expected.1, "{}: {:?}", case.name, String::from_utf8_lossy(&got.1));
    }
    let mut untold = 0;
    for (Case { name, outcome, .. }, _) in &cases {
        match outcome {
            Opens => {
                assert_eventually!(has_session(&redis, name), name);
                assert!(not_opened(&looking, name, 0.0), "{name}");
            }
            OpensNot(reason) => {
                untold += 1;
                assert_eventually!(
                    looking.metric(NOT_OPENED, &[("route", name), ("reason", reason)]) == Some(1.0),
                    name
                );
                assert!(not_opened(&looking, name, 1.0), "{name} for two reasons");
            }
            IsNoLogin => assert!(not_opened(&looking, name, 0.0), "{name}"),
        }
    }
    for (Case { name, outcome, .. }, _) in &cases {
        assert_eq!(has_session(&redis, name), *outcome == Opens, "{name}");
    }
    // Somebody is told, but not what the token is.
    assert_eventually!(looking.count_logs("a login opened no session") == untold, "each is told once");
    let logs = looking.logs();
    assert!(!logs.contains("eyJ") && !logs.contains("tgk_"), "{logs}");
}

/// A login of each kind, by an upstream of this protocol.
fn logins(origin: &Origin, protocol: &str) -> String {
    let mut text =
        format!("{ALL}[upstreams.login]\nmembers = \"{}\"\nprotocol = \"{protocol}\"\n", origin.addr());
    for (name, place) in
        [("json", "json:/access_token"), ("header", "header:x-token"), ("cookie", "cookie:token")]
    {
        let _ = writeln!(
            text,
            "[[routes]]\nname = \"{name}\"\npath = \"/{name}/**\"\nupstream = \"login\"\n\
             [routes.login]\ntoken = \"{place}\""
        );
    }
    text
}

/// The answer of an upstream that knows nothing of Tollgate: `/<kind>/<packing>/<subject>`.
fn log_in(path: &str) -> Reply {
    let parts: Vec<&str> = path.split('/').collect();
    let [_, kind, packing, subject] = parts[..] else { return Reply::text(404, path) };
    let token = Token::of(subject).sign();
    let reply = |body: &[u8]| Reply::new(200, body.to_vec()).header("content-type", "application/json");
    let reply = match (kind, packing) {
        ("header", _) => return Reply::text(200, "welcome").header("x-token", &format!("Bearer {token}")),
        ("cookie", _) => {
            return Reply::text(200, "welcome").header("set-cookie", &format!("token={token}; HttpOnly"));
        }
        (_, "gzip") => reply(&gzip(&body(&token))).header("content-encoding", "gzip"),
        (_, "br") => reply(&br(&body(&token))).header("content-encoding", "br"),
        (_, "trickled") => reply(&body(&token)).trickle(1, Duration::from_millis(1)),
        _ => reply(&body(&token)),
    };
    if packing == "whole" { reply } else { reply.chunked() }
}

/// The token that was sent to the client.
fn token_in(reply: &Response) -> Option<String> {
    let packed = &reply.body[..];
    let text = match reply.header("content-encoding") {
        Some("gzip") => {
            let mut text = Vec::new();
            flate2::read::GzDecoder::new(packed).read_to_end(&mut text).unwrap();
            text
        }
        Some("br") => {
            let mut text = Vec::new();
            brotli::Decompressor::new(packed, 4_096).read_to_end(&mut text).unwrap();
            text
        }
        _ => packed.to_vec(),
    };
    let value: Option<Value> = serde_json::from_slice(&text).ok();
    let in_body = value.and_then(|value| value["access_token"].as_str().map(str::to_owned));
    let in_header = reply.header("x-token").and_then(|value| value.strip_prefix("Bearer "));
    let in_cookie =
        reply.header("set-cookie").and_then(|line| line.strip_prefix("token=")?.split(';').next());
    in_body.or_else(|| in_header.or(in_cookie).map(str::to_owned))
}

/// The configuration with another listener that speaks HTTP/2.
fn with_h2c(text: &str) -> (String, SocketAddr) {
    let addr = free_addr();
    (text.replace("[server]\n", &format!("[server]\nlisten_h2c = \"{addr}\"\n")), addr)
}

#[test]
fn http2_on_either_side_makes_no_difference() {
    let redis = Redis::start();
    let origin = Origin::start();
    origin.answer(|request| log_in(&request.path));
    for protocol in ["http1", "h2c"] {
        let (text, h2c) = with_h2c(&config(&origin, PATIENT, &logins(&origin, protocol)));
        let gateway = gateway(&text, &redis.url());
        for client in [gateway.client(), Client::h2c(h2c)] {
            for (kind, packing) in [
                ("json", "whole"),
                ("json", "chunked"),
                ("json", "gzip"),
                ("json", "br"),
                ("json", "trickled"),
                ("header", "whole"),
                ("cookie", "whole"),
            ] {
                let subject = format!("u{:016x}", fastrand::u64(..));
                let reply = client.post(&format!("/{kind}/{packing}/{subject}")).send();
                assert_eq!(reply.code(), 200, "{}", reply.text());
                assert!(token_in(&reply).is_some(), "{protocol} {kind} {packing}: {reply:?}");
                assert_eventually!(has_session(&redis, &subject), format!("{protocol} {kind} {packing}"));
            }
        }
        for kind in ["json", "header", "cookie"] {
            assert!(not_opened(&gateway, kind, 0.0), "{protocol} {kind}");
        }
    }
}

#[test]
fn pieces_go_on_as_they_come() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let sent = body(&Token::of("ada").sign());
    let hanging = Reply::new(200, sent.clone()).chunked().hang_in_body_after(20);
    let hanging = hanging.header("content-type", "application/json");
    origin.answer(move |_| hanging.clone());
    for protocol in ["http1", "h2c"] {
        let gateway = gateway(&config(&origin, PATIENT, &logins(&origin, protocol)), &redis.url());
        let mut client = RawConnection::open(gateway.addr());
        client.send("POST /json/a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        client.read_until(|got| got.windows(20).any(|part| part == &sent[..20]));
        assert!(!has_session(&redis, "ada"), "the answer is not complete");
        assert!(not_opened(&gateway, "json", 0.0), "{protocol}");
    }
}

#[test]
fn an_answer_that_breaks_off_breaks_off_for_the_client_and_opens_nothing() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let sent = body(&Token::of("ada").sign());
    for protocol in ["http1", "h2c"] {
        let gateway = gateway(&config(&origin, PATIENT, &logins(&origin, protocol)), &redis.url());
        for (path, reply) in
            [("/json/a", Reply::new(200, sent.clone())), ("/json/b", Reply::new(200, sent.clone()).chunked())]
        {
            // All of it, but for the sign of its end.
            let broken = if path == "/json/b" { sent.len() } else { sent.len() - 1 };
            let reply = reply.header("content-type", "application/json").break_in_body_after(broken);
            origin.route(path, move |_| reply.clone());
            let sent = gateway.client().post(path).try_send();
            assert!(matches!(sent, Err(SendError::Body(..))), "{protocol} {path}: {sent:?}");
        }
        assert_eventually!(
            gateway.metric(NOT_OPENED, &[("route", "json"), ("reason", "incomplete")]) == Some(2.0),
            "it is noticed"
        );
        assert!(!has_session(&redis, "ada"));
    }
}

#[test]
fn what_the_client_sends_opens_nothing() {
    let (redis, origin) = (Redis::start(), Origin::start());
    origin.answer(|_| Reply::json(200, &json!({"mfa": "required"})));
    let gateway = gateway(&config(&origin, PATIENT, &logins(&origin, "http1")), &redis.url());
    let token = Token::of("mallory").sign();
    for kind in ["json", "header", "cookie"] {
        let path = format!("/{kind}/x?access_token={token}");
        let request = gateway.client().request(Method::POST, &path).bearer(&token);
        let request = request.header("x-token", &token).header("cookie", &format!("token={token}"));
        let request = request.header("set-cookie", &format!("token={token}"));
        let reply = request.json(&json!({"access_token": token})).send();
        assert_eq!((reply.code(), reply.json()), (200, json!({"mfa": "required"})));
        let reason = [("route", kind), ("reason", "absent")];
        assert_eventually!(gateway.metric(NOT_OPENED, &reason) == Some(1.0), "there is none");
    }
    assert!(!has_session(&redis, "mallory"));
}

const NOTES: &str = r#"
[[routes]]
name = "notes"
path = "/notes"
upstream = "app"
auth = "required"
session = "required"
[[routes]]
name = "logout"
path = "/logout"
methods = ["POST"]
auth = "required"
logout = "gateway"
"#;

/// Status and detail of a request to what needs a session.
fn notes(client: &Client, token: &str) -> (u16, Option<String>) {
    let reply = client.get("/notes").bearer(token).send();
    (reply.code(), (reply.code() >= 400).then(|| reply.detail()))
}

#[test]
fn who_logs_in_on_one_instance_is_known_at_once_on_every_one_until_the_logout() {
    let (redis, origin) = (Redis::start(), Origin::start());
    origin.answer(
        |request| if request.path == "/notes" { Reply::text(200, "") } else { log_in(&request.path) },
    );
    for protocol in ["http1", "h2c"] {
        let text = config(&origin, PATIENT, &(logins(&origin, protocol) + NOTES));
        let [first, second] = pair(&text, &redis);
        let (h2c_text, h2c) = with_h2c(&text);
        let third = gateway(&h2c_text, &redis.url());
        for (kind, packing) in [
            ("json", "whole"),
            ("json", "chunked"),
            ("json", "gzip"),
            ("json", "br"),
            ("header", "whole"),
            ("cookie", "whole"),
        ] {
            for (on, others) in [
                (first.client(), [second.client(), third.client()]),
                (Client::h2c(h2c), [first.client(), second.client()]),
            ] {
                let told = format!("{protocol} {kind} {packing}");
                let subject = format!("u{:016x}", fastrand::u64(..));
                // Not so fresh that its session could be on the way.
                let foreign = Token::of(&subject).claim("iat", unix_seconds() - 300).sign();
                for client in &others {
                    let (code, detail) = notes(client, &foreign);
                    assert_eq!((code, detail.as_deref()), (401, Some("Session expired")), "{told}: before");
                }
                let reply = on.post(&format!("/{kind}/{packing}/{subject}")).send();
                let token = token_in(&reply).unwrap_or_else(|| panic!("{told}: {reply:?}"));
                for client in others.iter().chain([&on]) {
                    assert_eq!(notes(client, &token), (200, None), "{told}");
                }
                assert_eq!(notes(&on, &foreign).0, 401, "{told}: another token of the same user");

                assert_eq!(on.post("/logout").bearer(&token).send().code(), 200);
                for client in others.iter().chain([&on]) {
                    assert_eq!(notes(client, &token).0, 401, "{told}: after the logout");
                }
            }
        }
    }
}

#[test]
fn an_old_token_beside_the_login_does_not_choose_the_session() {
    let (redis, origin) = (Redis::start(), Origin::start());
    origin.answer(
        |request| if request.path == "/notes" { Reply::text(200, "") } else { log_in(&request.path) },
    );
    let text = config(&origin, PATIENT, &(logins(&origin, "http1") + NOTES));
    let gateway = gateway(&text, &redis.url());
    let client = gateway.client();
    for kind in ["json", "header", "cookie"] {
        let old = Token::of("ada").sign();
        let request = client.post(&format!("/{kind}/whole/ada")).bearer(&old);
        let request = request.header("x-token", &old).header("cookie", &format!("token={old}"));
        let new = token_in(&request.json(&json!({"access_token": old})).send()).unwrap();
        assert_eq!(notes(&client, &new), (200, None), "{kind}");
        assert_eq!(notes(&client, &old).1.as_deref(), Some("Session expired"), "{kind}");
    }
}

#[test]
fn sessions_are_opened_without_a_store_too() {
    let origin = Origin::start();
    origin.answer(
        |request| if request.path == "/notes" { Reply::text(200, "") } else { log_in(&request.path) },
    );
    let gateway = gateway(&config(&origin, "", &(logins(&origin, "http1") + NOTES)), "");
    let client = gateway.client();
    for (kind, packing) in [("json", "gzip"), ("header", "whole"), ("cookie", "whole")] {
        let token = token_in(&client.post(&format!("/{kind}/{packing}/ada")).send()).unwrap();
        assert_eq!(notes(&client, &token), (200, None), "{kind}");
        assert_eq!(client.post("/logout").bearer(&token).send().code(), 200);
        assert_eq!(notes(&client, &token).0, 401, "{kind}");
    }
}

#[test]
fn a_token_of_a_key_that_is_not_known_yet_opens_a_session_once_it_is() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let publisher = Publisher::start(&[jwk(0, "first")]);
    let issuer = format!(
        "[issuers.main]\nalgorithms = [\"EdDSA\"]\n[issuers.main.jwks]\nurl = \"{}\"\nallow_http = true\ncooldown = \"1s\"\n",
        publisher.url()
    );
    // `/<kind>/<kid>/<subject>`: the same pair under many names.
    origin.answer(|request| {
        let parts: Vec<&str> = request.path.split('/').collect();
        let [_, kind, name, subject] = parts[..] else { return Reply::text(404, "") };
        let token = token_of(0, &json!({"kid": name}), &json!({"sub": subject}));
        match kind {
            "header" => Reply::text(200, "").header("x-token", &token),
            "cookie" => Reply::text(200, "").header("set-cookie", &format!("token={token}")),
            _ => Reply::new(200, body(&token)).header("content-type", "application/json"),
        }
    });
    let text = config(&origin, PATIENT, &(logins(&origin, "http1") + &issuer));
    let gateway = gateway(&text, &redis.url());
    let client = gateway.client();
    for (kind, kids) in [
        ("json", &["first", "second"][..]),
        ("header", &["first", "second", "third"]),
        ("cookie", &["first", "second", "third", "fourth"]),
    ] {
        publisher.publish(&kids.iter().map(|kid| jwk(0, kid)).collect::<Vec<_>>());
        let kid = kids[kids.len() - 1];
        let subject = format!("{kind}-{kid}");
        assert_eq!(client.post(&format!("/{kind}/{kid}/{subject}")).send().code(), 200);
        assert_eventually!(has_session(&redis, &subject), subject);
    }
    for (kind, reason) in [("json", "refused"), ("header", "keys_unavailable")] {
        if reason == "keys_unavailable" {
            publisher.reply(|| Reply::text(503, "later"));
        }
        assert_eq!(client.post(&format!("/{kind}/never-{kind}/nobody")).send().code(), 200);
        assert_eventually!(
            gateway.metric(NOT_OPENED, &[("route", kind), ("reason", reason)]) == Some(1.0),
            reason
        );
    }
    assert!(!has_session(&redis, "nobody"));
}
