//! RFC 9111 section 3 as clients see it: what a shared cache stores. What the other files need to ask the same
//! questions is here too, and a check that the table in docs/caching.md names tests that exist.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use http::Method;

use crate::cache::{gateway, x_cache};
use crate::support::client::{Client, RequestBuilder, Response};
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Reply};
use crate::support::raw_origin::RawOrigin;

/// Lines of a header.
pub type Lines = &'static [(&'static str, &'static str)];

/// A gateway without Redis before an origin.
pub struct Bench {
    pub origin: Origin,
    pub gateway: Gateway,
    client: Client,
}

impl Bench {
    pub fn start() -> Self {
        let origin = Origin::start();
        let gateway = gateway(&origin.addr().to_string(), "", "");
        let client = gateway.client();
        Self { origin, gateway, client }
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(path)
    }

    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        self.client.request(Method::from_bytes(method.as_bytes()).unwrap(), path)
    }

    /// Asks `path` with these request headers.
    pub fn ask(&self, path: &str, lines: &[(&str, &str)]) -> Response {
        lines.iter().fold(self.get(path), |request, (name, value)| request.header(name, value)).send()
    }

    /// From now on `path` is answered with these, one after another, the last one again and again.
    pub fn play(&self, path: &str, replies: Vec<Reply>) {
        let asked = AtomicUsize::new(0);
        self.origin.route(path, move |_| replies[asked.fetch_add(1, SeqCst).min(replies.len() - 1)].clone());
    }

    /// How often the origin was asked for `path`.
    pub fn asked(&self, path: &str) -> usize {
        self.origin.received_at(path).len()
    }

    /// Whether a second request with the same headers is answered from what the first one brought.
    pub fn reuses(&self, path: &str, request: &[(&str, &str)], reply: Reply) -> bool {
        self.play(path, vec![reply]);
        self.ask(path, request);
        let second = self.ask(path, request);
        let hit = x_cache(&second) == "HIT";
        assert_eq!(hit, self.asked(path) == 1, "{path}: {second:?}");
        hit
    }
}

/// A 200 with a body and these headers.
pub fn with(lines: &[(&str, &str)]) -> Reply {
    with_text("x", lines)
}

pub fn with_text(text: &str, lines: &[(&str, &str)]) -> Reply {
    lines.iter().fold(Reply::text(200, text), |reply, (name, value)| reply.header(name, value))
}

/// A 304 with these headers.
pub fn confirming(lines: &[(&str, &str)]) -> Reply {
    lines.iter().fold(Reply::new(304, ""), |reply, (name, value)| reply.header(name, value))
}

const FRESH: (&str, &str) = ("cache-control", "max-age=60");

#[test]
fn responses_are_stored_by_method_status_and_explicit_freshness() {
    let bench = Bench::start();
    // Section 3, one line for each condition; "" is GET.
    let table: &[(&str, u16, Lines, bool)] = &[
        ("fresh", 200, &[FRESH], true),
        ("understood", 203, &[FRESH], true),
        ("redirect", 301, &[FRESH, ("location", "/open/x")], true),
        ("temporary", 302, &[FRESH, ("location", "/open/x")], true),
        ("missing", 404, &[FRESH], true),
        ("gone", 410, &[FRESH], true),
        ("extension", 299, &[FRESH], true),
        ("refused", 400, &[FRESH], false),
        ("denied", 403, &[FRESH], false),
        ("refused-somehow", 499, &[FRESH], false),
        ("broken", 599, &[FRESH], true),
        ("partial", 206, &[FRESH, ("content-range", "bytes 0-0/10")], false),
        ("no-store", 200, &[("cache-control", "no-store, max-age=60")], false),
        ("private", 200, &[("cache-control", "private, max-age=60")], false),
        ("nothing-said", 200, &[], false),
        ("only-public", 200, &[("cache-control", "public")], false),
        ("expired", 200, &[("cache-control", "max-age=0")], false),
        ("must-understand", 200, &[("cache-control", "must-understand, no-store, max-age=60")], true),
        ("not-understood", 299, &[("cache-control", "must-understand, no-store, max-age=60")], false),
    ];
    for (name, status, lines, stored) in table {
        let reply = lines.iter().fold(Reply::text(*status, "x"), |reply, (n, v)| reply.header(n, v));
        assert_eq!(bench.reuses(&format!("/open/{name}"), &[], reply), *stored, "{name}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let path = format!("/open/{method}");
        bench.play(&path, vec![with(&[FRESH])]);
        for _ in 0..2 {
            assert_ne!(x_cache(&bench.request(method, &path).send()), "HIT", "{method}");
        }
        assert_eq!(x_cache(&bench.get(&path).send()), "MISS", "{method} answers no GET");
        assert_eq!(bench.asked(&path), 3, "{method}");
    }
}

#[test]
fn fields_of_one_connection_are_not_stored_and_all_others_are() {
    let origin = RawOrigin::answering(
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncache-control: max-age=60\r\n\
         connection: x-one, X-Two\r\nconnection: keep-alive\r\nx-one: 1\r\nx-two: 2\r\nkeep-alive: timeout=9\r\n\
         proxy-connection: keep-alive\r\nte: trailers\r\nupgrade: h2c\r\ntrailer: x-three\r\n\
         proxy-authenticate: Basic\r\nproxy-authentication-info: a\r\nproxy-authorization: a\r\n\
         x-unknown: kept\r\nx-unknown: twice\r\ncontent-language: de\r\nlink: </a>; rel=b\r\n\
         content-location: /open/b\r\nallow: GET\r\n\r\nx",
    );
    let gateway = gateway(&origin.addr().to_string(), "", "");
    let client = gateway.client();
    client.get("/open/a").send();
    let hit = client.get("/open/a").send();
    assert_eq!(x_cache(&hit), "HIT");
    for gone in [
        "x-one",
        "x-two",
        "keep-alive",
        "proxy-connection",
        "te",
        "upgrade",
        "trailer",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
    ] {
        assert_eq!(hit.header(gone), None, "{gone}");
    }
    assert_eq!(hit.header_all("x-unknown"), ["kept", "twice"]);
    for (name, value) in [
        ("content-language", "de"),
        ("link", "</a>; rel=b"),
        ("content-location", "/open/b"),
        ("allow", "GET"),
    ] {
        assert_eq!(hit.header(name), Some(value), "{name}");
    }
}

#[test]
fn a_304_replaces_every_field_but_the_length() {
    let bench = Bench::start();
    let stale = [
        ("cache-control", "max-age=60"),
        ("age", "100"),
        ("etag", "\"v1\""),
        ("x-kept", "1"),
        ("x-changed", "1"),
        ("x-changed", "1b"),
        ("content-type", "text/plain"),
        ("content-language", "de"),
        ("expires", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ];
    let fresh = [
        ("cache-control", "max-age=600"),
        ("etag", "\"v1\""),
        ("x-changed", "2"),
        ("x-added", "2"),
        ("content-type", "text/markdown"),
        ("content-language", "en"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("content-length", "77"),
    ];
    let stale = stale.iter().filter(|(name, _)| *name != "content-type");
    let stale =
        stale.fold(Reply::new(200, "hello").header("content-type", "text/plain"), |r, (n, v)| r.header(n, v));
    bench.play("/open/a", vec![stale, confirming(&fresh)]);
    bench.get("/open/a").send();
    for expected in ["REVALIDATED", "HIT"] {
        let response = bench.get("/open/a").send();
        assert_eq!((x_cache(&response).as_str(), response.text().as_str()), (expected, "hello"));
        for (name, value) in [
            ("cache-control", "max-age=600"),
            ("x-kept", "1"),
            ("x-changed", "2"),
            ("x-added", "2"),
            ("content-type", "text/markdown"),
            ("content-language", "en"),
            ("content-length", "5"),
        ] {
            assert_eq!(response.header_all(name), [value], "{expected}: {name}");
        }
        assert_eq!(response.header("x-hop"), None, "{expected}");
    }
    assert_eq!(bench.asked("/open/a"), 2);
}

#[test]
fn credentials_forbid_storing_unless_the_origin_allows_it() {
    let bench = Bench::start();
    // Section 3.5.
    for (name, cache_control, stored) in [
        ("plain", "max-age=60", false),
        ("public", "public, max-age=60", true),
        ("s-maxage", "s-maxage=60", true),
        ("must-revalidate", "must-revalidate, max-age=60", true),
        ("proxy-revalidate", "proxy-revalidate, max-age=60", false),
        ("no-cache", "no-cache", false),
    ] {
        let (path, reply) = (format!("/open/{name}"), with(&[("cache-control", cache_control)]));
        assert_eq!(bench.reuses(&path, &[("authorization", "Bearer a")], reply), stored, "{cache_control}");
    }
    // Nor is what was stored without one a way round: the origin said that everybody may have it.
    assert!(bench.reuses("/open/anonymous", &[], with(&[FRESH])));
    assert_eq!(x_cache(&bench.ask("/open/anonymous", &[("authorization", "Bearer a")])), "HIT");
}

#[test]
fn every_test_named_in_the_conformance_table_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/caching.md")).unwrap();
    let (_, section) = text.split_once("\n## Conformance\n").expect("a section on conformance");
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut files = Vec::new();
    sources(&root.join("tests/it"), &mut files);
    sources(&root.join("src"), &mut files);
    let mut rows = 0;
    for row in section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Rule")) {
        rows += 1;
        let cell = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let named: Vec<&str> = cell.split('`').filter(|part| part.contains("::")).collect();
        assert!(!named.is_empty(), "a row without a test: {row}");
        for test in named {
            let (file, name) = test.rsplit_once("::").unwrap();
            let file = format!("{}.rs", file.replace("::", "/"));
            let found = files.iter().any(|(path, text)| {
                path.ends_with(&file) && text.contains("#[test]\n") && text.contains(&format!("fn {name}("))
            });
            assert!(found, "no test `{test}`: {row}");
        }
    }
    assert!(rows > 40, "{rows} rows");
}

fn sources(folder: &Path, found: &mut Vec<(std::path::PathBuf, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
}
