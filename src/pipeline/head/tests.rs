use super::*;
use proptest::prelude::*;

/// A request as it would stand on the wire, parsed without mercy or mending.
struct Request {
    method: Method,
    target: Vec<u8>,
    version: Version,
    headers: HeaderMap,
    authority: Option<&'static str>,
}

impl Request {
    fn new(method: &str, target: &str, lines: &[(&'static str, &[u8])]) -> Self {
        let headers = lines.iter().map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            // Safe construction refuses what the transport's unchecked one lets through; see the raw tests.
            (name, HeaderValue::from_bytes(value).unwrap())
        });
        Self {
            method: method.parse().unwrap(),
            target: target.as_bytes().to_vec(),
            version: Version::HTTP_11,
            headers: headers.collect(),
            authority: None,
        }
    }

    fn input(&self) -> HeadInput<'_> {
        HeadInput {
            method: &self.method,
            target: &self.target,
            version: self.version,
            headers: &self.headers,
            is_h2: self.version == Version::HTTP_2,
            authority: self.authority,
            raw: None,
        }
    }

    fn judge(&self) -> Result<Head<'_>, HeadProblem> {
        inspect(&self.input(), &HeadLimits::default())
    }
}

fn with(lines: &[(&'static str, &[u8])]) -> Result<Framing, HeadProblem> {
    let mut all: Vec<(&'static str, &[u8])> = vec![("host", b"h")];
    all.extend_from_slice(lines);
    Request::new("POST", "/", &all).judge().map(|head| head.framing)
}

#[test]
fn a_plain_head_is_taken_apart() {
    let request = Request::new("GET", "/a/b?x=1&y", &[("host", b"API.Example.com:8080"), ("accept", b"*/*")]);
    let head = request.judge().unwrap();
    assert_eq!((&*head.host, head.port), ("api.example.com", Some(8080)));
    assert_eq!((head.path, head.query), (&b"/a/b"[..], Some("x=1&y")));
    assert_eq!(head.framing, Framing::Absent);
    assert!(head.upgrade == Upgrade::Absent && !head.was_absolute && !head.expects_continue);
    let request = Request::new("GET", "/admin?", &[("host", b"h")]);
    assert_eq!(request.judge().unwrap().query, Some(""));
}

#[test]
fn targets_that_are_not_paths_are_refused() {
    for (method, target, problem) in [
        ("GET", "admin", HeadProblem::TargetForm),
        ("GET", "", HeadProblem::TargetForm),
        ("GET", "x:/admin", HeadProblem::TargetForm),
        ("GET", "ftp://h/admin", HeadProblem::TargetForm),
        ("GET", "urn:foo:bar", HeadProblem::TargetForm),
        ("GET", "http:/h/admin", HeadProblem::TargetForm),
        ("GET", "h:80", HeadProblem::TargetForm),
        ("GET", "?x", HeadProblem::TargetForm),
        ("GET", "*", HeadProblem::TargetForm),
        ("OPTIONS", "**", HeadProblem::TargetForm),
        ("GET", "\\admin", HeadProblem::TargetByte),
        ("GET", "/x\\admin", HeadProblem::TargetByte),
        ("GET", "/admin#f", HeadProblem::TargetByte),
        ("GET", "/ad min", HeadProblem::TargetByte),
        ("GET", "/admin\t", HeadProblem::TargetByte),
        ("GET", "/admin\0", HeadProblem::TargetByte),
        ("GET", "/admin\x7f", HeadProblem::TargetByte),
        ("GET", "/a?b c", HeadProblem::TargetByte),
        ("GET", "/a?\u{e9}", HeadProblem::TargetByte),
        ("GET", "http://other/admin", HeadProblem::AuthorityMismatch),
        ("GET", "http://h:81/admin", HeadProblem::AuthorityMismatch),
        ("GET", "https://h:80/admin", HeadProblem::AuthorityMismatch),
        ("GET", "http://u@h/admin", HeadProblem::InvalidHost),
        ("GET", "http:///admin", HeadProblem::InvalidHost),
    ] {
        assert_eq!(Request::new(method, target, &[("host", b"h")]).judge().err(), Some(problem), "{target}");
    }
}

#[test]
fn an_absolute_target_becomes_a_path() {
    for (target, path, query) in [
        ("http://h/admin", "/admin", None),
        ("HTTP://H/admin?x", "/admin", Some("x")),
        ("http://h:80/", "/", None),
        ("https://h:443/a", "/a", None),
        ("http://h", "/", None),
        ("http://h?x=/y", "/", Some("x=/y")),
    ] {
        let request = Request::new("GET", target, &[("host", b"h")]);
        let head = request.judge().unwrap();
        assert_eq!((head.path, head.query, head.was_absolute), (path.as_bytes(), query, true), "{target}");
    }
    let request = Request::new("OPTIONS", "*", &[("host", b"h")]);
    assert!(request.judge().unwrap().is_asterisk());
}

#[test]
fn methods_are_registered_ones() {
    let judge = |method: &str| Request::new(method, "/", &[("host", b"h")]).judge().err();
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY"] {
        assert_eq!(judge(method), None, "{method}");
    }
    for method in ["CONNECT", "TRACE"] {
        assert_eq!(judge(method), Some(HeadProblem::MethodRefused), "{method}");
    }
    for method in ["get", "Get", "FOO", "GETX", "PRI"] {
        assert_eq!(judge(method), Some(HeadProblem::MethodUnknown), "{method}");
    }
}

#[test]
fn versions_without_clear_meaning_are_refused() {
    for (version, problem) in [
        (Version::HTTP_09, Some(HeadProblem::VersionUnsupported)),
        (Version::HTTP_10, None),
        (Version::HTTP_11, None),
        (Version::HTTP_3, Some(HeadProblem::VersionUnsupported)),
    ] {
        let mut request = Request::new("GET", "/", &[("host", b"h")]);
        request.version = version;
        assert_eq!(request.judge().err(), problem);
        request.headers.clear();
        assert_eq!(request.judge().err(), problem.or(Some(HeadProblem::MissingHost)));
    }
}

#[test]
fn a_host_is_one_name_with_one_port() {
    for bad in [
        "",
        " ",
        "a,b",
        "a b",
        "a/b",
        "a/",
        "u@a",
        "u:p@a",
        "a:",
        "a:0",
        "a:65536",
        "a:+1",
        "a:1:2",
        "a:x",
        "[::1",
        "::1",
        "[::1]x",
        "[::1]:",
        "[1.2.3.4]",
        ".",
        "..",
        ".a",
        "a..",
        "a%2f",
        "a\\b",
        "a?b",
        "a#b",
        "a;b",
        "a\t",
        "<a>",
    ] {
        assert_eq!(Authority::parse(bad.as_bytes()), Err(HeadProblem::InvalidHost), "{bad}");
    }
    assert_eq!(Authority::parse(b"\xff"), Err(HeadProblem::InvalidHost));
    assert_eq!(Authority::parse("a".repeat(255).as_bytes()), Err(HeadProblem::InvalidHost));
    for (text, host, port) in [
        ("a", "a", None),
        ("A.B.", "a.b", None),
        ("a_b:1", "a_b", Some(1)),
        ("1.2.3.4:65535", "1.2.3.4", Some(65535)),
        ("[0:0::1]:80", "[::1]", Some(80)),
    ] {
        assert_eq!(Authority::parse(text.as_bytes()), Ok(Authority { host: host.into(), port }));
    }
    let twice = Request::new("GET", "/", &[("host", b"h"), ("host", b"h")]);
    assert_eq!(twice.judge().err(), Some(HeadProblem::SeveralHosts));
    let none = Request::new("GET", "/", &[]);
    assert_eq!(none.judge().err(), Some(HeadProblem::MissingHost));
}

#[test]
fn framing_has_one_reading() {
    assert_eq!(with(&[]), Ok(Framing::Absent));
    assert_eq!(with(&[("content-length", b"0")]), Ok(Framing::Length(0)));
    assert_eq!(
        with(&[("content-length", b"9999999999999999999")]),
        Ok(Framing::Length(9_999_999_999_999_999_999))
    );
    assert_eq!(with(&[("transfer-encoding", b"chunked")]), Ok(Framing::Chunked));
    assert_eq!(with(&[("transfer-encoding", b"Chunked")]), Ok(Framing::Chunked));
    for bad in ["", "+5", "-5", "5, 5", "5,5", "0x5", "5 ", "5.0", "18446744073709551616", "\u{663}"] {
        assert_eq!(with(&[("content-length", bad.as_bytes())]), Err(HeadProblem::ContentLength), "{bad}");
    }
    let twice: [(&'static str, &[u8]); 2] = [("content-length", b"5"), ("content-length", b"5")];
    assert_eq!(with(&twice), Err(HeadProblem::ContentLength));
    for bad in [
        "",
        "xchunked",
        "chunked, identity",
        "identity",
        "chunked, chunked",
        "x, chunked",
        "gzip, chunked",
        "chunked;a=b",
        "\"chunked\"",
        "chunked,",
        "chun ked",
    ] {
        assert_eq!(
            with(&[("transfer-encoding", bad.as_bytes())]),
            Err(HeadProblem::TransferEncoding),
            "{bad}"
        );
    }
    for first in [&b"chunked"[..], b"x"] {
        let twice = [("transfer-encoding", first), ("transfer-encoding", b"chunked")];
        assert_eq!(with(&twice), Err(HeadProblem::TransferEncoding));
    }
    let both: [(&'static str, &[u8]); 2] = [("content-length", b"5"), ("transfer-encoding", b"chunked")];
    assert_eq!(with(&both), Err(HeadProblem::LengthAndEncoding));
    let mut old = Request::new("POST", "/", &[("host", b"h"), ("transfer-encoding", b"chunked")]);
    old.version = Version::HTTP_10;
    assert_eq!(old.judge().err(), Some(HeadProblem::TransferEncoding));
}

#[test]
fn size_limits_have_their_own_status() {
    let long = Request::new("GET", &format!("/{}", "a".repeat(8192)), &[("host", b"h")]);
    assert_eq!(long.judge().err().map(|problem| problem.status().as_u16()), Some(414));
    let mut many = Request::new("GET", "/", &[("host", b"h")]);
    for _ in 0..100 {
        many.headers.append("a", HeaderValue::from_static("b"));
    }
    assert_eq!(many.judge().err(), Some(HeadProblem::TooManyHeaders));
    let big = vec![b'a'; 33_000];
    let large = Request::new("GET", "/", &[("host", b"h"), ("a", &big)]);
    assert_eq!(large.judge().err().map(|problem| problem.status().as_u16()), Some(431));
}

#[test]
fn only_a_clean_websocket_handshake_upgrades() {
    let handshake: [(&'static str, &[u8]); 3] =
        [("host", b"h"), ("upgrade", b"WebSocket"), ("connection", b"keep-alive, Upgrade")];
    assert_eq!(Request::new("GET", "/", &handshake).judge().unwrap().upgrade, Upgrade::WebSocket);
    let ignored = |method: &str, lines: &[(&'static str, &[u8])]| {
        let request = Request::new(method, "/", lines);
        request.judge().unwrap().upgrade == Upgrade::Ignored
    };
    assert!(ignored("POST", &handshake));
    assert!(ignored("GET", &handshake[..2]));
    assert!(ignored("GET", &[("host", b"h"), ("upgrade", b"h2c"), ("connection", b"upgrade")]));
    assert!(ignored("GET", &[("host", b"h"), ("upgrade", b"websocket, h2c"), ("connection", b"upgrade")]));
    let twice: &[(&'static str, &[u8])] =
        &[("host", b"h"), ("upgrade", b"websocket"), ("upgrade", b"h2c"), ("connection", b"upgrade")];
    assert!(ignored("GET", twice));
}

#[test]
fn expectations_other_than_continue_fail() {
    let request = Request::new("POST", "/", &[("host", b"h"), ("expect", b"100-Continue")]);
    assert!(request.judge().unwrap().expects_continue);
    assert_eq!(with(&[("expect", b"200-ok")]), Err(HeadProblem::Expectation));
}

#[test]
fn http2_has_one_authority_and_no_connection_fields() {
    let judge = |authority, lines: &[(&'static str, &[u8])]| {
        let mut request = Request::new("GET", "/", lines);
        request.version = Version::HTTP_2;
        request.authority = authority;
        request.judge().map(|head| head.host.into_owned())
    };
    assert_eq!(judge(Some("H:1"), &[]).as_deref(), Ok("h"));
    assert_eq!(judge(Some("h"), &[("host", b"H")]).as_deref(), Ok("h"));
    assert_eq!(judge(None, &[("host", b"h")]).as_deref(), Ok("h"));
    assert_eq!(judge(Some("h"), &[("te", b"trailers")]).as_deref(), Ok("h"));
    assert_eq!(judge(Some("h"), &[("host", b"i")]), Err(HeadProblem::AuthorityMismatch));
    assert_eq!(judge(Some("h"), &[("host", b"h:80")]), Err(HeadProblem::AuthorityMismatch));
    assert_eq!(judge(Some("u@h"), &[]), Err(HeadProblem::InvalidHost));
    assert_eq!(judge(None, &[]), Err(HeadProblem::MissingHost));
    assert_eq!(judge(Some("h"), &[("transfer-encoding", b"chunked")]), Err(HeadProblem::TransferEncoding));
    for field in ["connection", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(judge(Some("h"), &[(field, b"x")]), Err(HeadProblem::ConnectionField), "{field}");
    }
    assert_eq!(judge(Some("h"), &[("te", b"gzip")]), Err(HeadProblem::ConnectionField));
}

#[test]
fn the_bytes_show_what_a_lenient_parser_mends() {
    for (head, expected) in [
        (&b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"[..], Ok(())),
        (b"\r\nGET / HTTP/1.1\r\nHost: h\r\nA:\tb \r\n\r\n", Ok(())),
        (b"GET / HTTP/1.1\nHost: h\n\n", Err(HeadProblem::LineEnding)),
        (b"GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n", Err(HeadProblem::LineEnding)),
        (b"GET / HTTP/1.1\r\nHost: h\rA: b\r\n\r\n", Err(HeadProblem::LineEnding)),
        (b"GET / HTTP/1.1\r\nHost: h\r\n\tfold\r\n\r\n", Err(HeadProblem::LineEnding)),
        (b"GET / HTTP/1.1\r\nHost: h\r\n fold\r\n\r\n", Err(HeadProblem::LineEnding)),
        (b"GET / HTTP/1.1\r\n Host: h\r\n\r\n", Err(HeadProblem::LineEnding)),
        (b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", Err(HeadProblem::HeaderName)),
        (b"GET / HTTP/1.1\r\nHo st: h\r\n\r\n", Err(HeadProblem::HeaderName)),
        (b"GET / HTTP/1.1\r\nHost\x0b: h\r\n\r\n", Err(HeadProblem::HeaderName)),
        (b"GET / HTTP/1.1\r\n: h\r\n\r\n", Err(HeadProblem::HeaderName)),
        (b"GET / HTTP/1.1\r\nnocolon\r\n\r\n", Err(HeadProblem::HeaderName)),
        (b"GET / HTTP/1.1\r\nA: b\0c\r\n\r\n", Err(HeadProblem::HeaderValue)),
        (
            b"GET / HTTP/1.1\r\nContent-Length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
            Err(HeadProblem::LengthAndEncoding),
        ),
        (
            b"GET / HTTP/1.1\r\nContent-Length: 5\r\nCONTENT-LENGTH: 5\r\n\r\n",
            Err(HeadProblem::ContentLength),
        ),
        (
            b"GET / HTTP/1.1\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            Err(HeadProblem::TransferEncoding),
        ),
        (b"GET / HTTP/1.1", Err(HeadProblem::LineEnding)),
    ] {
        assert_eq!(raw::inspect(head), expected, "{}", head.escape_ascii());
    }
}

#[test]
fn every_problem_has_a_distinct_label_and_is_a_refusal() {
    let labels: std::collections::HashSet<_> =
        HeadProblem::ALL.iter().map(|problem| problem.as_str()).collect();
    assert_eq!(labels.len(), HeadProblem::ALL.len());
    assert!(HeadProblem::ALL.iter().all(|problem| problem.status().as_u16() >= 400));
}

proptest! {
    #[test]
    fn no_head_panics_and_an_accepted_path_is_rooted(
        target in prop::collection::vec(any::<u8>(), 0..40),
        host in prop::collection::vec(32u8..=255, 0..20).prop_filter("DEL", |host| !host.contains(&0x7f)),
        raw in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let mut request = Request::new("GET", "/", &[("host", &host)]);
        request.target = target;
        let input = HeadInput { raw: Some(&raw), ..request.input() };
        let _ = inspect(&input, &HeadLimits::default());
        if let Ok(head) = request.judge() {
            prop_assert_eq!(head.path.first(), Some(&b'/'));
            prop_assert!(!head.path.contains(&b'?') && !head.host.is_empty());
        }
    }
}

/// What the upstream of a gateway with a protected `/admin` and an open `/**` gets: `None` when refused, else
/// whether the protection applied and the target that goes on.
fn passed(method: &str, target: &str, version: Version) -> Option<(bool, String)> {
    use crate::route::normalise::{self, normalise};
    use crate::route::pattern::Pattern;
    use crate::route::table::{Entry, Found, Table};
    let entry = |text: &str| Entry {
        name: text.into(),
        host: None,
        pattern: Pattern::parse(text).unwrap(),
        methods: Vec::new(),
        value: text == "/admin",
    };
    let table = Table::build(vec![entry("/admin"), entry("/**")]).unwrap();
    let mut request = Request::new(method, target, &[("host", b"h")]);
    request.version = version;
    let head = request.judge().ok()?;
    let path = normalise(head.path, normalise::Options::default()).ok()?;
    let Found::Route(matched) = table.find(&head.host, &request.method, &path) else { panic!("no route") };
    Some((*matched.value, normalise::target(&path, head.query)))
}

#[test]
fn no_spelling_of_a_protected_path_passes_as_open() {
    for target in [
        "/admin",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/%61dmin",
        "/admin?",
        "/admin?x=/../open",
        "http://h/admin",
        "http://h//admin",
        "/x/%2e%2e/admin",
        "/.//admin",
        "/adm%69n",
    ] {
        let (protected, sent) = passed("GET", target, Version::HTTP_11).unwrap();
        assert!(protected && sent.starts_with("/admin"), "{target} -> {sent}");
    }
    for target in [
        "/admin%2f",
        "/x%2f..%2fadmin",
        "/x/..%5cadmin",
        "/admin;x=1",
        "/admin%00",
        "/admin%",
        "/admin#f",
        "admin",
        "x:/admin",
        "\\admin",
        "*",
        "/../admin",
        "/%c0%afadmin",
        "/admin%0a",
        "http://other/admin",
        "/x/..;/admin",
        "//h/../../admin",
        "/admin%3b",
        "/admin%5c",
        "/admin\\",
        "/admin%c0%80",
        "",
        "?/admin",
        "h:80",
        "http:/admin",
    ] {
        assert_eq!(passed("GET", target, Version::HTTP_11), None, "{target}");
    }
    // These are other paths: they pass as open, and what goes on still is another path.
    for (target, expected) in [
        ("/%2561dmin", "/%2561dmin"),
        ("/ADMIN", "/ADMIN"),
        ("/admin/.", "/admin/"),
        ("/admin%20", "/admin%20"),
        ("/admin%3f", "/admin%3F"),
        ("/admin%23", "/admin%23"),
    ] {
        assert_eq!(passed("GET", target, Version::HTTP_11), Some((false, expected.to_owned())));
    }
    for method in ["CONNECT", "TRACE", "get", "FOO"] {
        assert_eq!(passed(method, "/admin", Version::HTTP_11), None, "{method}");
    }
    assert_eq!(passed("GET", "/admin", Version::HTTP_10), Some((true, "/admin".to_owned())));
    assert_eq!(passed("GET", "/admin", Version::HTTP_09), None);
}
