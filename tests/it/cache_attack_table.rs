//! Attacks on the response cache, one row each, so that they can be counted: `docs/caching.md` says how many there are.
//! A row is withstood when the victim gets what was made for the victim, and the attacker nothing that was not.

use std::collections::BTreeMap;

use http::Method;
use redis::Commands as _;
use serde_json::json;

use crate::cache::{config, gateway, warm, x_cache};
use crate::support::client::{RequestBuilder, Response, raw};
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Received, Reply};
use crate::support::ports::free_addr;
use crate::support::raw_origin::RawOrigin;
use crate::support::redis::Redis;
use crate::support::token::Token;

/// Never sent by a victim.
const EVIL: &str = "evil.example";

/// Headers by which backends and the proxies before them are told, or let themselves be told, of another host, path,
/// method, scheme, port or client.
const UNKEYED: [&str; 67] = [
    "X-Forwarded-Host",
    "X-Forwarded-Server",
    "X-Forwarded-Scheme",
    "X-Forwarded-Proto",
    "X-Forwarded-Protocol",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Path",
    "X-Forwarded-Ssl",
    "X-Forwarded-For",
    "X-Forwarded-By",
    "X-Forwarded-Uri",
    "X-Forwarded-Method",
    "X-Forwarded",
    "Forwarded",
    "Forwarded-For",
    "X-Forwarder-For",
    "X-Original-URL",
    "X-Original-URI",
    "X-Original-Host",
    "X-Original-Forwarded-For",
    "X-Original-Method",
    "X-Rewrite-URL",
    "X-Rewrite-URI",
    "X-Override-URL",
    "X-Request-URI",
    "Request-URI",
    "X-Http-Destinationurl",
    "X-HTTP-Path-Override",
    "Base-Url",
    "Proxy-Url",
    "X-Proxy-Url",
    "X-Envoy-Original-Path",
    "X-Envoy-External-Address",
    "X-Host",
    "X-Host-Override",
    "X-HTTP-Host",
    "X-HTTP-Host-Override",
    "X-Backend-Host",
    "X-Server-Name",
    "Http-Host",
    "Proxy-Host",
    "Proxy",
    "X-Url-Scheme",
    "X-Scheme",
    "Front-End-Https",
    "X-Real-IP",
    "True-Client-IP",
    "X-True-Client-IP",
    "CF-Connecting-IP",
    "Fastly-Client-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "Client-IP",
    "Proxy-Client-IP",
    "WL-Proxy-Client-IP",
    "X-ProxyUser-Ip",
    "X-Remote-Addr",
    "X-Remote-IP",
    "X-Originating-IP",
    "X-Custom-IP-Authorization",
    "X-Wap-Profile",
    "X-HTTP-Method-Override",
    "X-HTTP-Method",
    "X-Method-Override",
    "X-Middleware-Subrequest",
    "X-User-Id",
];

/// Paths that some server or framework takes for `/mine/profile`.
const DECEPTIONS: [&str; 26] = [
    "/mine/profile;a.css",
    "/mine/profile/a.css",
    "/mine/profile%0aa.css",
    "/mine/profile%0da.css",
    "/mine/profile%2fa.css",
    "/mine/profile%3ba.css",
    "/mine/profile%00.css",
    "/mine/profile%23a.css",
    "/mine/profile%3fa.css",
    "/mine/profile%5ca.css",
    "/mine/profile%20",
    "/mine/profile%09a.css",
    "/mine/profile.css",
    "/mine/profile?a.css",
    "/mine/profile/",
    "/mine/PROFILE",
    "/mine/%70rofile",
    "//mine/profile",
    "/mine//profile",
    "/mine/./profile",
    "/mine/x/../profile",
    "/mine/x/%2e%2e/profile",
    "/open/../mine/profile",
    "/open/%2e%2e/mine/profile",
    "/open/..%2fmine/profile",
    "/open/..%5cmine/profile",
];

/// Spellings of the page parameter that a backend may read and a cache may not.
const CLOAKED: [&str; 19] = [
    "page=1&page=2",
    "p%61ge=2",
    "PAGE=2&page=2",
    "page[]=2",
    "page%5B0%5D=2",
    "x;page=2",
    "x=1%26page=2",
    "x=1%3bpage=2",
    "+page=2&page=2",
    "+page=2",
    "%20page=2",
    "page%00x=2",
    "page%20=2",
    "[page]=2",
    "%5Bpage%5D=2",
    "page%5B=2",
    "page.x=2",
    "PAGE=2",
    "Page=2",
];

/// Two queries that some backend answers differently, since it takes two names for one.
const REORDERED: [(&str, &str); 8] = [
    ("page=2&p%61ge=1", "p%61ge=1&page=2"),
    ("a[]=1&a=2", "a=2&a[]=1"),
    ("a[x]=1&a=2", "a=2&a[x]=1"),
    ("a=1;b=2&b=3", "b=3&a=1;b=2"),
    ("Page=1&page=2", "page=2&Page=1"),
    ("a.b=1&a_b=2", "a_b=2&a.b=1"),
    ("a-b=1&a_b=2", "a_b=2&a-b=1"),
    ("+a=1&a=2", "a=2&+a=1"),
];

/// Bodies that a server ends before, or after, it said it would, and answers that are no complete one.
const BROKEN: [(&str, &str); 12] = [
    (
        "shorter than announced",
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 100\r\n\r\nevil.example",
    ),
    (
        "longer than announced",
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 4\r\n\r\ngoodHTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 12\r\n\r\nevil.example",
    ),
    (
        "a chunk cut off",
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n64\r\nevil.example",
    ),
    (
        "no last chunk",
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\nc\r\nevil.example\r\n",
    ),
    (
        "a chunk without a size",
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nevil.example\r\n0\r\n\r\n",
    ),
    (
        "two lengths",
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 12\r\ncontent-length: 4\r\n\r\nevil.example",
    ),
    ("a head cut off", "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\nx: evil.example"),
    (
        "a bare line feed within a field",
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\nx: a\rset-cookie: evil.example\r\ncontent-length: 12\r\n\r\nevil.example",
    ),
    (
        "a partial answer",
        "HTTP/1.1 206 Partial Content\r\ncache-control: max-age=60\r\ncontent-range: bytes 0-11/99\r\ncontent-length: 12\r\n\r\nevil.example",
    ),
    (
        "a part that is called the whole",
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-range: bytes 0-11/99\r\ncontent-length: 12\r\n\r\nevil.example",
    ),
    (
        "an interim answer only",
        "HTTP/1.1 103 Early Hints\r\ncache-control: max-age=60\r\nlink: <evil.example>\r\n\r\n",
    ),
    (
        "a 304 that nobody asked for",
        "HTTP/1.1 304 Not Modified\r\ncache-control: max-age=60\r\netag: \"evil.example\"\r\n\r\n",
    ),
];

/// Answers that are one caller's, or one moment's.
const NEVER_KEPT: [(&str, &str, &str); 10] = [
    ("a cookie", "set-cookie", "sid=evil.example"),
    ("a cookie beside public", "set-cookie", "sid=evil.example; Path=/"),
    ("vary by everything", "vary", "*"),
    ("vary by everything and more", "vary", "accept, *"),
    ("vary by what is no name", "vary", "a b"),
    ("private", "cache-control", "private"),
    ("private in capitals", "cache-control", "PRIVATE"),
    ("no-store on another line", "cache-control", "no-store"),
    ("no-store with a value", "cache-control", "no-store=\"x\""),
    ("vary by too much", "vary", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q,r"),
];

/// What a backend says to a head it does not like, and what an attacker sends for it.
const DENIALS: [(&str, u16, &str, usize); 8] = [
    ("an oversized header", 400, "x-oversized", 9_000),
    ("an oversized header, by the book", 431, "x-oversized", 9_000),
    ("meta characters in a header", 400, "x-meta", 0),
    ("a method override", 405, "x-http-method-override", 0),
    ("a method override to HEAD", 404, "x-http-method", 0),
    ("a rate limit", 429, "x-loud", 0),
    ("an error of the backend", 500, "x-crash", 0),
    ("a gateway's error", 503, "x-crash", 0),
];

type Outcome = Result<(), String>;

/// Rows by name.
#[derive(Default)]
struct Table(BTreeMap<String, Outcome>);

impl Table {
    fn row(&mut self, name: impl Into<String>, run: impl FnOnce() -> Outcome) {
        let name = name.into();
        assert!(!self.0.contains_key(&name), "two rows are called {name}");
        let outcome = run();
        self.0.insert(name, outcome);
    }
}

/// Everything that a careless backend reflects, for a minute and for everybody.
fn reflecting(request: &Received) -> Reply {
    let mut seen = request.echo();
    seen["body"] = json!(String::from_utf8_lossy(&request.body));
    seen["target"] = json!(request.target);
    Reply::json(200, &seen).header("cache-control", "public, max-age=60")
}

struct Stage {
    _redis: Redis,
    origin: Origin,
    gateway: Gateway,
    h2c: Gateway,
    trusting: Gateway,
}

impl Stage {
    fn start() -> Self {
        let (redis, origin) = (Redis::start(), Origin::start());
        let text = config(&origin.addr().to_string(), "");
        let start = |server: &str| {
            Gateway::builder().config(&format!("{text}\n{server}")).env("REDIS_URL", &redis.url()).start()
        };
        let gateway = start("");
        let h2c = start(&format!("[server]\nlisten = \"{}\"\nlisten_h2c = \"{{listen}}\"\n", free_addr()));
        let trusting = start("[server]\nlisten = \"{listen}\"\ntrusted_proxies = [\"127.0.0.0/8\"]\n");
        warm(&gateway, &origin);
        origin.answer(reflecting);
        Self { _redis: redis, origin, gateway, h2c, trusting }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.gateway.client().get(path).host("good.example")
    }
}

/// Whether the victim's answer is whole and nothing of the attacker is in it.
fn clean(victim: &Response) -> Outcome {
    let text = victim.text() + &format!("{:?}", victim.headers);
    if victim.code() != 200 {
        return Err(format!("{}: {text}", victim.code()));
    }
    if text.to_ascii_lowercase().contains("evil") { Err(text) } else { Ok(()) }
}

/// The attacker asks twice, then the victim asks for the same.
fn poison(attack: impl Fn() -> RequestBuilder, victim: impl Fn() -> RequestBuilder) -> Outcome {
    for _ in 0..2 {
        let _ = attack().try_send();
    }
    clean(&victim().send())?;
    clean(&victim().send())
}

fn unkeyed_headers(stage: &Stage, table: &mut Table) {
    // In front of a trusting gateway stands a proxy, which may say whom and what it speaks for: that is then keyed.
    let gateways = [&stage.gateway, &stage.trusting].map(Gateway::client);
    for (number, name) in UNKEYED.into_iter().enumerate() {
        table.row(format!("header: {name}"), || {
            let (lower, spelled) = (name.to_ascii_lowercase(), name.replace('-', "_"));
            let value = if lower == "forwarded" { "host=evil.example" } else { EVIL };
            for (which, client) in gateways.iter().enumerate() {
                for (route, ways) in [("open", 3), ("maybe", 1), ("unlooked", 1)] {
                    for (way, name) in [name, &spelled, &lower].into_iter().enumerate().take(ways) {
                        let get =
                            || client.get(&format!("/{route}/{which}/{number}/{way}")).host("good.example");
                        // Once alone, once behind a harmless line of the same name.
                        let evil = get().header(name, value);
                        let evil =
                            if way == 2 { get().header(name, "good").header(name, value) } else { evil };
                        evil.send();
                        clean(&get().send())
                            .map_err(|seen| format!("{name} on {route} of {which}: {seen}"))?;
                    }
                }
            }
            Ok(())
        });
    }
}

fn deceptions(stage: &Stage, table: &mut Table) {
    let (ada, eve) = (Token::of("ada").sign(), Token::of("eve").sign());
    let ask = |path: &str, token: Option<&str>| {
        let token = token.map_or(String::new(), |token| format!("authorization: Bearer {token}\r\n"));
        let head = format!("GET {path} HTTP/1.1\r\nhost: good.example\r\nconnection: close\r\n{token}\r\n");
        String::from_utf8_lossy(&raw(stage.gateway.addr(), head)).into_owned()
    };
    for path in DECEPTIONS {
        table.row(format!("deception: {path}"), || {
            ask("/mine/profile", Some(&ada));
            ask(path, Some(&ada));
            for token in [None, Some(eve.as_str())] {
                for path in [path, "/mine/profile"] {
                    let seen = ask(path, token);
                    if seen.contains("\"ada\"") || seen.contains(&ada) {
                        return Err(seen);
                    }
                }
            }
            Ok(())
        });
    }
}

fn queries(stage: &Stage, table: &mut Table) {
    for (number, query) in CLOAKED.into_iter().enumerate() {
        table.row(format!("query: {query}"), || {
            let cloaked = format!("/selected?{query}");
            // Nothing of one row is in the way of another.
            let host = format!("cloaked{number}.example");
            let get = |path: &str| stage.gateway.client().get(path).host(&host);
            for plain in ["/selected", "/selected?page=1", "/selected?x=1"] {
                let _ = get(&cloaked).send();
                let seen = get(plain).send().json();
                let (_, got) = seen["target"].as_str().unwrap().split_once('?').unwrap_or_default();
                if got.contains('2') {
                    return Err(format!("{plain} got {got}"));
                }
            }
            Ok(())
        });
    }
    for (number, (attack, victim)) in REORDERED.into_iter().enumerate() {
        table.row(format!("query: {attack} for {victim}"), || {
            let path = |query: &str| format!("/open/reordered/{number}?{query}");
            let _ = stage.get(&path(attack)).send();
            let got = stage.get(&path(victim)).send().json();
            if got["target"] == path(victim) { Ok(()) } else { Err(got.to_string()) }
        });
    }
    for (name, attack, victim) in [
        ("query: the order of one name", "/open/q?a=2&a=1", "/open/q?a=1&a=2"),
        ("query: an empty value", "/open/q?b=", "/open/q?b"),
        ("query: an encoded separator", "/open/q?a=1%26b=2", "/open/q?a=1&b=2"),
        ("query: a question mark alone", "/open/q2?", "/open/q2"),
        ("query: case of names", "/open/q3?A=1", "/open/q3?a=1"),
        ("query: plus and space", "/open/q4?a=1+2", "/open/q4?a=1%202"),
        ("path: case", "/open/CASE", "/open/case"),
        ("path: an encoded slash", "/open/a%2fb", "/open/a/b"),
        ("path: an encoded question mark", "/open/a%3fb", "/open/a?b"),
        ("path: a slash at the end", "/open/end/", "/open/end"),
        ("path: a double slash", "/open//double", "/open/double"),
        ("path: an encoded backslash", "/open/a%5cb2", "/open/a/b2"),
    ] {
        table.row(name, || {
            for _ in 0..2 {
                let _ = stage.get(attack).try_send();
            }
            let got = stage.get(victim).send().json();
            if got["target"] == victim { Ok(()) } else { Err(got.to_string()) }
        });
    }
}

fn bodies_and_methods(stage: &Stage, table: &mut Table) {
    let at = stage.gateway.addr();
    let fat = |path: &str, rest: &str| {
        raw(at, format!("GET {path} HTTP/1.1\r\nhost: good.example\r\nconnection: close\r\n{rest}"));
    };
    let victim = |path: &str| clean(&stage.get(path).send()).and_then(|()| clean(&stage.get(path).send()));
    table.row("body: of a GET, with a length", || {
        fat("/open/fat1", "content-length: 4\r\n\r\nevil");
        victim("/open/fat1")
    });
    table.row("body: of a GET, in chunks", || {
        fat("/open/fat2", "transfer-encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n");
        victim("/open/fat2")
    });
    table.row("body: of a GET, over HTTP/2", || {
        let get = || stage.h2c.h2c_client().get("/open/fat3").host("good.example");
        poison(|| get().body("evil"), get)
    });
    table.row("body: of a GET that overrides its method by a form", || {
        let form = "content-type: application/x-www-form-urlencoded\r\ncontent-length: 19\r\n\r\n_method=DELETE&evil";
        fat("/open/fat4", form);
        victim("/open/fat4")
    });
    for method in ["HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "PROPFIND", "QUERY", "TRACE", "evil"]
    {
        table.row(format!("method: {method}"), || {
            let path = format!("/open/method/{method}");
            for _ in 0..2 {
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                let _ = stage.gateway.client().request(method, &path).host("good.example").try_send();
            }
            let got = stage.get(&path).send();
            let whole = got.code() == 200 && got.json()["method"] == "GET";
            if whole { Ok(()) } else { Err(format!("{} {}", got.code(), got.text())) }
        });
    }
    table.row("method: a HEAD is answered without a body from a stored GET", || {
        let path = "/open/head";
        let whole = stage.get(path).send();
        let head = stage.gateway.client().request(Method::HEAD, path).host("good.example").send();
        let length = whole.body.len().to_string();
        let ok = x_cache(&head) == "HIT" && head.body.is_empty();
        let ok = ok
            && head.header("content-length") == Some(&*length)
            && stage.get(path).send().body == whole.body;
        if ok { Ok(()) } else { Err(format!("{head:?}")) }
    });
    for range in ["bytes=0-1", "bytes=0-1,3-4", "bytes=-1", "bytes=9-1", "bytes=99999-", "items=0-1"] {
        table.row(format!("range: {range}"), || {
            let path = format!("/open/range?{range}");
            for _ in 0..2 {
                let _ = stage.get(&path).header("range", range).send();
            }
            let got = stage.get(&path).send();
            if got.code() == 200 && got.json()["method"] == "GET" { Ok(()) } else { Err(format!("{got:?}")) }
        });
    }
}

fn hosts(stage: &Stage, table: &mut Table) {
    let heads = [
        ("another port", "host: good.example:8081"),
        ("another name", "host: evil.example"),
        ("a dot at the end", "host: good.example."),
        ("two lines", "host: good.example\r\nhost: evil.example"),
        ("a list", "host: good.example, evil.example"),
        ("user information", "host: evil@good.example"),
        ("a space", "host: good.example evil"),
        ("a path", "host: good.example/evil"),
        ("a line before the first", " host: evil.example\r\nhost: good.example"),
        ("a folded line", "host: good.example\r\n evil.example"),
        ("an underscore", "host: good.example\r\nx_host: evil.example"),
        ("capitals", "host: GOOD.Example"),
        ("a port that goes without saying", "host: good.example:80"),
        ("capitals and a port", "host: Good.Example:80"),
        ("a port with zeros", "host: good.example:0080"),
    ];
    for (number, (name, head)) in heads.into_iter().enumerate() {
        table.row(format!("host: {name}"), || {
            let path = format!("/open/host/{number}");
            for _ in 0..2 {
                raw(
                    stage.gateway.addr(),
                    format!("GET {path} HTTP/1.1\r\n{head}\r\nconnection: close\r\n\r\n"),
                );
            }
            let got = stage.get(&path).send();
            clean(&got)?;
            let headers = &got.json()["headers"];
            let right =
                ["host", "x-forwarded-host"].iter().all(|name| headers[name] == json!(["good.example"]));
            if right { Ok(()) } else { Err(got.text()) }
        });
    }
    table.row("host: capitals and a port that a proxy tells", || {
        let client = stage.trusting.client();
        let get = |told: &str| {
            client.get("/open/host/told").host("good.example").header("x-forwarded-host", told).send()
        };
        get("GOOD.Example:80");
        let got = get("good.example").json();
        if got["headers"]["x-forwarded-host"] == json!(["good.example"]) {
            Ok(())
        } else {
            Err(got.to_string())
        }
    });
    for (name, target) in [
        ("absolute target of another host", "http://evil.example/open/absolute"),
        ("absolute target of another scheme", "https://good.example/open/absolute"),
        ("absolute target with user information", "http://evil@good.example/open/absolute"),
        ("target without a slash", "evil.example/open/absolute"),
        ("target with a fragment", "/open/absolute#evil"),
    ] {
        table.row(format!("host: {name}"), || {
            for _ in 0..2 {
                let head =
                    format!("GET {target} HTTP/1.1\r\nhost: good.example\r\nconnection: close\r\n\r\n");
                raw(stage.gateway.addr(), head);
            }
            clean(&stage.get("/open/absolute").send())
        });
    }
}

fn callers(stage: &Stage, table: &mut Table) {
    let bearer = |name: &str| format!("Bearer {}", Token::of(name).sign());
    let (ada, bob) = (bearer("ada"), bearer("bob"));
    let token = |bearer: &str| bearer.trim_start_matches("Bearer ").to_owned();
    let who =
        |response: &Response| response.json()["headers"]["x-user-id"][0].as_str().unwrap_or("-").to_owned();
    let mut number = 0;
    let mut row = |name: &str, first: (&str, &str), second: Option<(&str, &str)>, expected: &str| {
        number += 1;
        table.row(format!("caller: {name}"), || {
            for route in ["maybe", "mine"] {
                let path = format!("/{route}/caller/{number}");
                for _ in 0..2 {
                    let _ = stage.get(&path).header(first.0, first.1).send();
                }
                let victim = stage.get(&path);
                let victim = second
                    .into_iter()
                    .fold(victim, |victim, (name, value)| victim.header(name, value))
                    .send();
                let ok = victim.code() == 401 || (victim.code() == 200 && who(&victim) == expected);
                if !ok {
                    return Err(format!("{path}: {victim:?}"));
                }
            }
            Ok(())
        });
    };
    row("another user", ("authorization", &ada), Some(("authorization", &bob)), "bob");
    row("nobody", ("authorization", &ada), None, "-");
    row("a user after nobody", ("x", "y"), Some(("authorization", &ada)), "ada");
    let cookie = format!("session={}", token(&ada));
    row("a token in a cookie", ("cookie", &cookie), None, "-");
    row("a cookie of somebody else", ("cookie", &cookie), Some(("cookie", "session=evil")), "-");
    row("a user of another case", ("authorization", &bearer("Ada")), Some(("authorization", &ada)), "ada");
    row("a user called as nobody is", ("authorization", &bearer("-")), None, "-");
    row("a user with a separator", ("authorization", &bearer("ada:x")), Some(("authorization", &ada)), "ada");
    let expired = format!("Bearer {}", Token::of("ada").expires_in(-3_600).sign());
    row("an expired token", ("authorization", &ada), Some(("authorization", &expired)), "-");
    let forged = format!("Bearer {}", Token::of("ada").unsigned());
    row("an unsigned token", ("authorization", &ada), Some(("authorization", &forged)), "-");
    row("an identity header", ("authorization", &ada), Some(("x-user-id", "ada")), "-");
    described_callers(stage, table);
    for (name, line) in [
        ("a cookie that nobody looks at", ("cookie", "sid=evil")),
        ("basic credentials that nobody looks at", ("authorization", "Basic ZXZpbA==evil")),
        ("an API key that nobody looks at", ("x-api-key", "evil")),
        ("a token that nobody looks at", ("authorization", ada.as_str())),
    ] {
        table.row(format!("caller: {name}"), || {
            let path = format!("/unlooked/{}", name.len());
            let got = poison(|| stage.get(&path).header(line.0, line.1), || stage.get(&path));
            got.and_then(|()| {
                let seen = stage.get(&path).send().text();
                if seen.contains(&token(&ada)) { Err(seen) } else { Ok(()) }
            })
        });
    }
    table.row("caller: credentials and a public answer that does not say so", || {
        // RFC 9111 section 3.5.
        stage.origin.route("/open/authorised", |request| {
            Reply::text(200, request.header("authorization").unwrap_or("nobody"))
                .header("cache-control", "max-age=60")
        });
        poison(
            || stage.get("/open/authorised").header("authorization", "evil"),
            || stage.get("/open/authorised"),
        )
    });
}

/// One user, of whom the upstream is told something else each time.
fn described_callers(stage: &Stage, table: &mut Table) {
    let strong = || Token::of("ada").claim("permissions", json!(["evil"])).claim("subscription_plan", "evil");
    for (name, header, first, second) in [
        (
            "fewer permissions",
            "x-user-permissions",
            strong(),
            Token::of("ada").claim("permissions", json!(["good"])).claim("subscription_plan", "evil"),
        ),
        (
            "no permissions",
            "x-user-permissions",
            strong(),
            Token::of("ada").claim("subscription_plan", "evil"),
        ),
        (
            "another plan",
            "x-user-plan",
            Token::of("ada").claim("subscription_plan", "evil"),
            Token::of("ada").claim("subscription_plan", "good"),
        ),
        (
            "another tenant",
            "x-org",
            Token::of("ada").claim("org", "evil"),
            Token::of("ada").claim("org", "good"),
        ),
    ] {
        table.row(format!("caller: the same with {name}"), || {
            let (first, second) = (first.sign(), second.sign());
            for route in ["maybe", "mine"] {
                let path = format!("/{route}/described/{header}/{}", name.len());
                let get = |token: &str| stage.get(&path).bearer(token).send();
                get(&first);
                for _ in 0..2 {
                    let got = get(&second);
                    let told = got.json()["headers"][header].to_string();
                    if got.code() != 200 || told.contains("evil") {
                        return Err(format!("{path}: {got:?}"));
                    }
                }
                let again = get(&second);
                if x_cache(&again) != "HIT" {
                    return Err(format!("{path} is not kept: {again:?}"));
                }
            }
            Ok(())
        });
    }
}

fn answers(stage: &Stage, table: &mut Table) {
    for (number, (name, header, value)) in NEVER_KEPT.into_iter().enumerate() {
        table.row(format!("answer: {name}"), || {
            for route in ["open", "small"] {
                let path = format!("/{route}/answer/{number}");
                stage.origin.route(&path, move |request| {
                    let body = request.header("x-attack").unwrap_or("good");
                    let reply = Reply::text(200, body);
                    let reply = if request.header("x-attack").is_some() {
                        reply.header(header, value)
                    } else {
                        reply
                    };
                    reply.header("cache-control", "max-age=60")
                });
                poison(|| stage.get(&path).header("x-attack", EVIL), || stage.get(&path))
                    .map_err(|seen| format!("{path}: {seen}"))?;
            }
            Ok(())
        });
    }
    for (number, (name, status, header, length)) in DENIALS.into_iter().enumerate() {
        table.row(format!("denial: {name}, {status}"), || {
            for route in ["open", "small", "mine"] {
                let path = format!("/{route}/denial/{number}");
                stage.origin.route(&path, move |request| match request.header(header) {
                    Some(_) => Reply::text(status, "evil"),
                    None => Reply::text(200, "good").header("cache-control", "max-age=60"),
                });
                let value =
                    if length > 0 { "e".repeat(length) } else { "\u{1}".replace('\u{1}', "a\\\"<>'") };
                let bearer = Token::of("ada").sign();
                let get = || stage.get(&path).bearer(&bearer);
                poison(|| get().header(header, &value), get).map_err(|seen| format!("{path}: {seen}"))?;
            }
            Ok(())
        });
    }
    selected_answers(stage, table);
}

/// Answers that depend on more than the target.
fn selected_answers(stage: &Stage, table: &mut Table) {
    table.row("answer: one site's permission for another", || {
        let path = "/open/cors";
        stage.origin.route(path, |request| {
            let site = request.header("origin").unwrap_or("https://none.example").to_owned();
            Reply::text(200, "x")
                .header("access-control-allow-origin", &site)
                .header("cache-control", "max-age=60")
        });
        poison(|| stage.get(path).header("origin", "https://evil.example"), || stage.get(path))?;
        let good = || stage.get(path).header("origin", "https://good.example");
        poison(|| stage.get(path).header("origin", "https://evil.example"), good)?;
        let allowed = good().send();
        let allowed = allowed.header("access-control-allow-origin").unwrap_or_default().to_owned();
        if allowed == "https://good.example" { Ok(()) } else { Err(allowed) }
    });
    table.row("answer: one coding for everybody", || {
        let path = "/open/coding";
        stage.origin.route(path, |request| {
            match request.header("accept-encoding") {
                Some(coding) => Reply::text(200, "evil").header("content-encoding", coding),
                None => Reply::text(200, "good"),
            }
            .header("cache-control", "max-age=60")
        });
        poison(|| stage.get(path).header("accept-encoding", "br"), || stage.get(path))
    });
    table.row("answer: vary by a header that two users share", || {
        let path = "/mine/vary";
        stage.origin.route(path, |request| {
            Reply::text(200, request.header("x-user-id").unwrap_or("-"))
                .header("vary", "accept")
                .header("cache-control", "max-age=60")
        });
        for name in ["ada", "bob", "ada", "bob"] {
            let got = stage.get(path).bearer(&Token::of(name).sign()).header("accept", "*/*").send().text();
            if got != name {
                return Err(got);
            }
        }
        Ok(())
    });
    table.row("answer: more variants than an object may have", || {
        let path = "/open/variants";
        stage.origin.route(path, |request| {
            let body = request.header("x-v").unwrap_or("good");
            Reply::text(200, body).header("vary", "x-v").header("cache-control", "max-age=60")
        });
        clean(&stage.get(path).send())?;
        for number in 0..200 {
            let value = format!("evil{number}");
            let got = stage.get(path).header("x-v", &value).send().text();
            if got != value {
                return Err(got);
            }
        }
        let entries = stage.gateway.metric("tollgate_cache_entries", &[]).unwrap_or_default();
        if entries > 2_000.0 {
            return Err(format!("{entries} entries"));
        }
        clean(&stage.get(path).send())
    });
    selecting_fields(stage, table);
    table.row("answer: a key that is no text", || {
        let got = stage
            .get("/open/%3Cscript%3Ealert(1)%3C/script%3E?<evil>".replace(['<', '>'], "%3C").as_str())
            .send();
        let key = got.header("x-cache-key").unwrap_or_default();
        let hex = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hex && x_cache(&got) == "MISS" { Ok(()) } else { Err(format!("{got:?}")) }
    });
}

/// Fields that select a variant and reach the upstream otherwise than they came, or in another spelling.
fn selecting_fields(stage: &Stage, table: &mut Table) {
    // As servers that hand fields on as variables of an environment see them: the last of one name counts.
    let lang = |request: &Received| {
        let lines = request.headers.iter().filter(|(name, _)| {
            name.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "-").eq_ignore_ascii_case("x-lang")
        });
        let last = lines.last().map(|(_, value)| String::from_utf8_lossy(value.as_bytes()).into_owned());
        Reply::text(200, &last.unwrap_or_else(|| "none".to_owned()))
            .header("vary", "x-lang")
            .header("cache-control", "max-age=60")
    };
    let nominating = [
        ("Connection takes away", "connection", "X-Lang"),
        ("Connection takes away beside others", "connection", "keep-alive, x-lang , close"),
    ];
    for (number, (name, header, value)) in nominating.into_iter().enumerate() {
        table.row(format!("answer: a selecting field that {name}"), || {
            let path = format!("/open/nominated/{number}");
            stage.origin.route(&path, lang);
            let get = || stage.get(&path).header("x-lang", "de");
            let first = get().header(header, value).send();
            let got = get().send();
            if x_cache(&first) == "BYPASS" && got.text() == "de" {
                Ok(())
            } else {
                Err(format!("{first:?} {got:?}"))
            }
        });
    }
    for (number, spelled) in ["x_lang", "X_LANG"].into_iter().enumerate() {
        table.row(format!("answer: a selecting field spelled {spelled}"), || {
            let path = format!("/open/spelled/{number}");
            stage.origin.route(&path, lang);
            for _ in 0..2 {
                stage.get(&path).header(spelled, "evil").send();
                stage.get(&path).header("x-lang", "de").header(spelled, "evil").send();
            }
            let got = stage.get(&path).send().text();
            let de = stage.get(&path).header("x-lang", "de").send().text();
            if (&*got, &*de) == ("none", "de") { Ok(()) } else { Err(format!("{got} {de}")) }
        });
    }
    table.row("answer: cookies on two lines for one with a comma", || {
        let path = "/open/crumbs";
        stage.origin.route(path, |request| {
            Reply::text(200, request.header("cookie").unwrap_or("-"))
                .header("vary", "cookie")
                .header("cache-control", "max-age=60")
        });
        stage.get(path).header("cookie", "a=1").header("cookie", "b=2").send();
        let got = stage.get(path).header("cookie", "a=1,b=2").send().text();
        if got == "a=1,b=2" { Ok(()) } else { Err(got) }
    });
    table.row("denial: invented codings take the place of real ones", || {
        let path = "/open/codings";
        stage.origin.route(path, |request| {
            let gzip = request.header("accept-encoding").is_some_and(|codings| codings.contains("gzip"));
            let reply = Reply::text(200, if gzip { "gzip" } else { "plain" });
            let reply = if gzip { reply.header("content-encoding", "gzip") } else { reply };
            reply.header("vary", "accept-encoding").header("cache-control", "max-age=60")
        });
        for number in 0..40 {
            let value = format!("x{number}, br;q=0.{number}");
            stage.get(path).header("accept-encoding", &value).send();
        }
        let get = || stage.get(path).header("accept-encoding", "gzip, br").send();
        get();
        let got = get();
        if x_cache(&got) == "HIT" && got.text() == "gzip" { Ok(()) } else { Err(format!("{got:?}")) }
    });
    table.row("answer: a coding that the gateway does not know", || {
        let path = "/open/unknown-coding";
        stage.origin.route(path, |request| {
            match request.header("accept-encoding").filter(|codings| codings.contains("dcb")) {
                Some(_) => Reply::text(200, "evil").header("content-encoding", "dcb"),
                None => Reply::text(200, "good"),
            }
            .header("vary", "accept-encoding")
            .header("cache-control", "max-age=60")
        });
        for _ in 0..2 {
            stage.get(path).header("accept-encoding", "gzip, dcb").send();
        }
        clean(&stage.get(path).header("accept-encoding", "gzip").send())?;
        clean(&stage.get(path).header("accept-encoding", "gzip, dcz").send())?;
        clean(&stage.get(path).send())
    });
}

fn broken_answers(table: &mut Table) {
    for (name, bytes) in BROKEN {
        table.row(format!("broken: {name}"), || {
            use crate::support::raw_origin::Step;
            let good = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 4\r\nconnection: close\r\n\r\ngood";
            // Whoever asks with `x-attack` gets the broken answer, on a connection that ends with it.
            let broken = RawOrigin::playing(vec![Step::read_head(), Step::send(bytes), Step::Close]);
            let sound = RawOrigin::playing(vec![Step::read_head(), Step::send(good), Step::Close]);
            let redis = Redis::start();
            let text = |origin: &RawOrigin| config(&origin.addr().to_string(), "");
            let start = |text: String| Gateway::builder().config(&text).env("REDIS_URL", &redis.url()).start();
            let (attacked, other) = (start(text(&broken)), start(text(&sound)));
            let get = |gateway: &Gateway| gateway.client().get("/open/broken").host("good.example").try_send();
            for _ in 0..2 {
                let _ = get(&attacked);
            }
            for _ in 0..2 {
                let again = get(&attacked);
                if let Ok(again) = &again
                    && x_cache(again) == "HIT"
                    && again.text() != "good"
                {
                    return Err(format!("served as complete: {again:?}"));
                }
            }
            // What the first one may have left in Redis is not served by the second.
            let got = get(&other).map_err(|error| error.to_string())?;
            clean(&got)?;
            if got.text() == "good" { Ok(()) } else { Err(got.text()) }
        });
    }
}

fn stores(table: &mut Table) {
    let stage = crate::cache::Stage::start();
    stage.origin.answer(|request| {
        let who = request.header("x-user-id").unwrap_or("-");
        Reply::text(200, &format!("{who} {}", request.path)).header("cache-control", "public, max-age=60")
    });
    let users = ["ada", "bob"].map(|name| (name, Token::of(name).sign()));
    let fill = || {
        for (_, token) in &users {
            for path in ["/mine/a", "/mine/b", "/open/a"] {
                stage.client.get(path).host("good.example").bearer(token).send();
            }
        }
        assert_eventually!(
            stage.redis.keys().iter().filter(|key| key.starts_with("cache:")).count() >= 5,
            "stored"
        );
    };
    let right = || {
        // An instance whose memory is empty reads what is in Redis.
        let another = gateway(&stage.origin.addr().to_string(), "", &stage.redis.url());
        for (name, token) in &users {
            for path in ["/mine/a", "/mine/b"] {
                let got = another.client().get(path).host("good.example").bearer(token).send();
                if got.text() != format!("{name} {path}") {
                    return Err(format!("{path} as {name}: {got:?}"));
                }
            }
        }
        Ok(())
    };
    let entries = || -> Vec<(String, Vec<u8>)> {
        let keys = stage.redis.keys().into_iter().filter(|key| key.starts_with("cache:"));
        keys.map(|key| {
            let value = stage.redis.client().get(&key).unwrap();
            (key, value)
        })
        .collect()
    };
    let write = |key: &str, value: &[u8]| {
        let _: () = stage.redis.client().set_ex(key, value, 60).unwrap();
    };
    table.row("store: entries that change places", || {
        fill();
        let all = entries();
        for (index, (key, _)) in all.iter().enumerate() {
            write(key, &all[(index + 1) % all.len()].1);
        }
        right()
    });
    for (name, at) in [("the first byte", 0), ("a byte in the middle", 2), ("the last byte", 1)] {
        table.row(format!("store: {name} changed"), || {
            fill();
            for (key, mut value) in entries() {
                let index = match at {
                    0 => 0,
                    1 => value.len() - 1,
                    _ => value.len() / 2,
                };
                value[index] ^= 1;
                write(&key, &value);
            }
            right()
        });
    }
    table.row("store: entries cut short", || {
        fill();
        for (key, value) in entries() {
            write(&key, &value[..value.len() - 3]);
        }
        right()
    });
    table.row("store: entries that are something else", || {
        fill();
        for (key, _) in entries() {
            write(&key, b"HTTP/1.1 200 OK\r\n\r\nevil");
        }
        right()
    });
    table.row("store: keys of another type", || {
        fill();
        for (key, _) in entries() {
            let _: () = stage.redis.client().del(&key).unwrap();
            let _: () = stage.redis.client().rpush(&key, "evil").unwrap();
        }
        right()
    });
    storm(&stage, &users[0].1, table);
}

fn storm(stage: &crate::cache::Stage, token: &str, table: &mut Table) {
    table.row("store: a storm of writes", || {
        let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let now = std::sync::Arc::clone(&count);
        stage.origin.route("/items/storm", move |request| {
            if request.method == Method::PUT {
                now.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
            Reply::text(200, &now.load(std::sync::atomic::Ordering::SeqCst).to_string())
        });
        for written in 1..=60_usize {
            let _ = stage.client.get("/items/storm").bearer(token).send();
            assert_eq!(stage.client.put("/items/storm").bearer(token).send().code(), 200);
            let got = stage.client.get("/items/storm").bearer(token).send().text();
            if got != written.to_string() {
                return Err(format!("{got} after {written}"));
            }
        }
        Ok(())
    });
}

/// Each part of the table and how many rows it has.
const PARTS: [(&str, usize); 8] = [
    ("headers", 67),
    ("deceptions", 26),
    ("queries", 39),
    ("bodies", 21),
    ("hosts", 21),
    ("callers", 20),
    ("answers", 30),
    ("stores", 20),
];

fn withstood(part: &str, table: &Table) {
    let fell: Vec<String> = table
        .0
        .iter()
        .filter_map(|(name, outcome)| Some(format!("{name}: {}", outcome.as_ref().err()?)))
        .collect();
    assert!(fell.is_empty(), "{} of {} attacks work:\n{}", fell.len(), table.0.len(), fell.join("\n"));
    assert!(PARTS.contains(&(part, table.0.len())), "{part} has {} rows", table.0.len());
}

fn staged(part: &str, rows: impl Fn(&Stage, &mut Table)) {
    let mut table = Table::default();
    let stage = Stage::start();
    rows(&stage, &mut table);
    withstood(part, &table);
}

#[test]
fn headers_that_no_key_has_reach_no_backend() {
    staged("headers", unkeyed_headers);
}

#[test]
fn paths_that_look_like_files_deceive_nobody() {
    staged("deceptions", deceptions);
}

#[test]
fn queries_and_paths_in_disguise_are_what_they_are() {
    staged("queries", queries);
}

#[test]
fn bodies_methods_and_ranges_leave_nothing_behind() {
    staged("bodies", bodies_and_methods);
}

#[test]
fn hosts_in_disguise_are_other_hosts_or_refused() {
    staged("hosts", hosts);
}

#[test]
fn no_caller_gets_what_is_anothers() {
    staged("callers", callers);
}

#[test]
fn answers_that_are_nobody_elses_are_not_kept() {
    staged("answers", answers);
}

#[test]
fn broken_answers_and_tampered_entries_are_served_to_nobody() {
    let mut table = Table::default();
    broken_answers(&mut table);
    stores(&mut table);
    withstood("stores", &table);
}

#[test]
fn the_page_says_how_many_attacks_there_are() {
    let all: usize = PARTS.iter().map(|(_, rows)| rows).sum();
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/caching.md")).unwrap();
    let said = format!("{all} attacks");
    assert!(page.contains(&said), "docs/caching.md should say {said:?}");
}
