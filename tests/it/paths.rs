//! Every way to spell a protected path: none reaches the upstream in a form that any server could take for it, unless
//! its caller is authenticated; and what was matched is what the upstream gets.

use crate::support::client::{raw, raw_status};
use crate::support::gateway::Gateway;
use crate::support::strict_origin::StrictOrigin;
use crate::support::token::Token;

fn start(origin: &StrictOrigin, server: &str) -> Gateway {
    let config = format!(
        r#"
        [server]
        listen = "{{listen}}"
        {server}
        [upstreams.app]
        members = "{}"
        [[routes]]
        name = "admin"
        path = "/admin"
        auth = "required"
        upstream = "app"
        [[routes]]
        name = "below"
        path = "/admin/**"
        auth = "required"
        upstream = "app"
        [[routes]]
        name = "open"
        path = "/**"
        upstream = "app"
        "#,
        origin.addr()
    );
    Gateway::builder().config(&config).start()
}

/// What the most lenient server might make of a target: decoded over and over, without parameters, dots resolved,
/// backslashes taken for slashes, case ignored, cut at NUL.
fn read_leniently(target: &str) -> String {
    let mut text = target.split(['?', '#']).next().unwrap_or_default().to_owned();
    for _ in 0..3 {
        text = percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned();
    }
    let text = text.split('\0').next().unwrap_or_default().replace('\\', "/").to_lowercase();
    let text = text
        .split_once("://")
        .map_or(text.as_str(), |(_, rest)| rest.find('/').map_or("/", |at| &rest[at..]));
    let mut segments: Vec<&str> = Vec::new();
    for segment in text.split('/') {
        let segment = segment.split(';').next().unwrap_or_default();
        match segment.trim() {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            _ => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

/// Whether some server could take it for the protected path. Double escapes and another case are told apart from it
/// by any server that decodes once and minds case, which is what the routes here declare.
fn could_be_admin(target: &str) -> bool {
    let once_decoded = !target.contains("%25");
    let same_case = !target.to_lowercase().contains("admin") || target.contains("admin");
    let read = read_leniently(target);
    once_decoded && same_case && (read == "/admin" || read.starts_with("/admin/"))
}

const TARGETS: &[&str] = &[
    "/admin",
    "//admin",
    "///admin",
    "/./admin",
    "/././admin",
    "/x/../admin",
    "/x/y/../../admin",
    "/%61dmin",
    "/%61%64%6d%69%6e",
    "/%2561dmin",
    "/%252e%252e/admin",
    "/admin%2f",
    "/admin%2F",
    "/%2fadmin",
    "/%2Fadmin",
    "/x%2f..%2fadmin",
    "/x%2F%2E%2E%2Fadmin",
    "/x/..%2fadmin",
    "/x/%2e%2e/admin",
    "/x/%2E%2e/admin",
    "/x/.%2e/admin",
    "/x/%2e./admin",
    "/%2e/admin",
    "/x/..%5cadmin",
    "/x/..\\admin",
    "\\admin",
    "/\\admin",
    "/x\\..\\admin",
    "/%5cadmin",
    "/admin;x=1",
    "/admin;",
    "/;x/admin",
    "/x;/../admin",
    "/x/..;/admin",
    "/x/..;a=b/admin",
    "/x/%2e%2e;/admin",
    "/admin%3bx=1",
    "/admin/.",
    "/admin/./",
    "/admin/..",
    "/admin/../admin",
    "/admin/x/..",
    "/admin//",
    "/admin/",
    "/ADMIN",
    "/Admin",
    "/aDMIN/",
    "/%41DMIN",
    "/admin%00",
    "/admin%00.html",
    "/%00/admin",
    "/admin%",
    "/admin%2",
    "/admin%zz",
    "/admin%u0061",
    "/%u0061dmin",
    "/admin?",
    "/admin?x=/open",
    "/admin#f",
    "/admin#",
    "/x?/../admin",
    "/x#/../admin",
    "/x%3f/../admin",
    "/x%23/../admin",
    "http://h/admin",
    "HTTP://h/admin",
    "http://h//admin",
    "http://h/x/../admin",
    "http://h/%61dmin",
    "https://h/admin",
    "http://h",
    "http://h?/admin",
    "ftp://h/admin",
    "file:///admin",
    "//h/admin",
    "admin",
    "./admin",
    "../admin",
    "x:/admin",
    "x://h/admin",
    "urn:admin",
    "h:80",
    "h",
    "*",
    "*/admin",
    "?/admin",
    ";/admin",
    "/../admin",
    "/../../admin",
    "/x/../../admin",
    "/%2e%2e/admin",
    "/admin%20",
    "/admin%09",
    "/admin\t",
    "/admin%0a",
    "/admin%0d%0a",
    "/admin%7f",
    "/admin\x01",
    "/\x0badmin",
    "/admin.",
    "/admin..",
    "/admin%2e",
    "/admin%2e%2e",
    "/.admin",
    "/admin.json",
    "/admin,x",
    "/admin~",
    "/admin*",
    "/admin'",
    "/admin\"",
    "/admin|",
    "/admin^",
    "/{admin}",
    "/<admin>",
    "/%c0%af../admin",
    "/%c0%ae%c0%ae/admin",
    "/x/%c0%ae%c0%ae/admin",
    "/x/%e0%80%ae%e0%80%ae/admin",
    "/%ef%bc%8fadmin",
    "/%ef%bd%81dmin",
    "/\u{ff41}dmin",
    "/admin\u{a0}",
    "/%e2%80%8badmin",
    "/adm\u{131}n",
    "/%C3%A4/../admin",
    "/%ff/../admin",
    "/admin%ff",
    "/x%2f%2e%2e%2f%2e%2e%2fadmin",
    "/x/%252e%252e/admin",
    "/x/%252e%252e%252fadmin",
    "/x/..%c0%af..%c0%afadmin",
    "/x/..%252fadmin",
    "/x/..%255cadmin",
    "/.%00./admin",
    "/x/..%00/admin",
    "/x/..%09/admin",
    "/x/.. /admin",
    "/x/..%20/admin",
    "/%20admin",
    "/%20/../admin",
];

#[test]
fn no_spelling_gets_to_the_protected_path_without_its_protection() {
    for server in [
        "",
        "allow_encoded_slashes = true",
        "allow_path_parameters = true",
        "ignore_trailing_slash = true\ncase_insensitive_paths = true",
    ] {
        let origin = StrictOrigin::start();
        let gateway = start(&origin, server);
        let mut wrong = Vec::new();
        for target in TARGETS {
            for version in ["HTTP/1.1", "HTTP/1.0"] {
                let hits = origin.hits();
                let request = format!("GET {target} {version}\r\nHost: h\r\nConnection: close\r\n\r\n");
                let status = raw_status(&raw(gateway.addr(), request));
                let seen = origin.seen().split_off(hits);
                let reached = seen.iter().any(|seen| {
                    // Where parameters are declared to be literal, `/admin;x` is another path than `/admin`.
                    let literal = server.contains("parameters")
                        && (seen.target.starts_with("/admin;") || seen.target.starts_with("/admin%3B"));
                    could_be_admin(&seen.target) && !literal
                });
                let folded = server.contains("insensitive")
                    && seen
                        .iter()
                        .any(|seen| seen.target.to_ascii_lowercase().trim_end_matches('/') == "/admin");
                if reached || folded || (seen.is_empty() && status.is_some_and(|status| status < 400)) {
                    wrong.push(format!("{target:?} {version}: {status:?}, upstream saw {seen:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "with {server:?}:\n{}", wrong.join("\n"));
        assert!(origin.violations().is_empty(), "{:?}", origin.violations());
        assert!(origin.hits() > 20, "open paths go through: {}", origin.hits());
    }
}

#[test]
fn what_was_matched_is_what_the_upstream_gets() {
    let origin = StrictOrigin::start();
    let gateway = start(&origin, "");
    let token = Token::of("ada").sign();
    for (sent, received) in [
        ("/admin", "/admin"),
        ("//admin", "/admin"),
        ("/x/../admin", "/admin"),
        ("/%61dmin", "/admin"),
        ("/admin/.", "/admin/"),
        ("/admin?", "/admin?"),
        ("/admin?a=%2F..%2F&b=//", "/admin?a=%2F..%2F&b=//"),
        ("http://h/admin?q", "/admin?q"),
        ("http://h", "/"),
        ("http://h?q", "/?q"),
        ("/a/%2e%2e/b", "/b"),
        ("//", "/"),
        ("/%7e%41%2d", "/~A-"),
        ("/%e4%bd%a0", "/%E4%BD%A0"),
        ("/\u{4f60}", "/%E4%BD%A0"),
        ("/a%20b", "/a%20b"),
        ("/%2561dmin", "/%2561dmin"),
        ("/ADMIN", "/ADMIN"),
        ("/*", "/*"),
    ] {
        let request = format!(
            "GET {sent} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        let answer = raw(gateway.addr(), request);
        assert_eq!(raw_status(&answer), Some(200), "{sent}: {}", String::from_utf8_lossy(&answer));
        let seen = origin.last();
        assert_eq!(seen.target, received, "{sent}");
        assert_eq!(seen.one("host"), Some("h"), "{sent}");
        let protected =
            received == "/admin" || received.starts_with("/admin/") || received.starts_with("/admin?");
        assert_eq!(seen.one("x-user-id"), protected.then_some("ada"), "{sent}");
    }
}

#[test]
fn methods_and_overrides_change_nothing_about_the_protection() {
    let origin = StrictOrigin::start();
    let gateway = start(&origin, "");
    let ask = |request: &str| raw_status(&raw(gateway.addr(), request.replace('\n', "\r\n")));
    for (request, status) in [
        ("get /admin HTTP/1.1\nHost: h\nConnection: close\n\n", Some(501)),
        ("FOO / HTTP/1.1\nHost: h\nConnection: close\n\n", Some(501)),
        ("Get / HTTP/1.1\nHost: h\nConnection: close\n\n", Some(501)),
        ("TRACE / HTTP/1.1\nHost: h\nConnection: close\n\n", Some(405)),
        ("CONNECT h:80 HTTP/1.1\nHost: h:80\nConnection: close\n\n", Some(405)),
        ("CONNECT /admin HTTP/1.1\nHost: h\nConnection: close\n\n", Some(405)),
        ("PROPFIND /admin HTTP/1.1\nHost: h\nConnection: close\n\n", Some(401)),
        ("HEAD /admin HTTP/1.1\nHost: h\nConnection: close\n\n", Some(401)),
        ("OPTIONS /admin HTTP/1.1\nHost: h\nConnection: close\n\n", Some(401)),
        ("GET * HTTP/1.1\nHost: h\nConnection: close\n\n", Some(400)),
        ("OPTIONS * HTTP/1.1\nHost: h\nConnection: close\n\n", Some(404)),
        ("GET /admin HTTP/1.1\nHost: h\nUpgrade: h2c\nConnection: upgrade, close\n\n", Some(401)),
        ("GET /admin HTTP/1.1\nHost: h\nUpgrade: websocket\nConnection: upgrade\n\n", Some(401)),
    ] {
        assert_eq!(ask(request), status, "{request}");
    }
    assert_eq!(origin.bytes(), 0, "{:?}", origin.seen());
    // An override, a rewrite or an upgrade does not get beyond the gateway.
    assert_eq!(
        ask(
            "POST /x HTTP/1.1\nHost: h\nConnection: close\nContent-Length: 0\nX-HTTP-Method-Override: DELETE\n\
             X-HTTP-Method: PUT\nX_Method_Override: PUT\nX-Original-URL: /admin\nX-Rewrite-URL: /admin\nX_Original_Url: /admin\n\
             Upgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAAP__\n\n"
        ),
        Some(200)
    );
    let seen = origin.last();
    for name in [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
        "x-original-url",
        "x-rewrite-url",
        "upgrade",
        "http2-settings",
    ] {
        assert!(!seen.has_any_spelling(name), "{name}: {seen:?}");
    }
}
