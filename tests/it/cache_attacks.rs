//! One user's response for another: every trick we know of, against an origin that says for whom it answered.
//! The body of each answer must be the one made for that very user and request.

use std::time::Duration;

use http::Method;

use crate::cache::{Stage, config, warm, x_cache};
use crate::support::client::{RawConnection, RequestBuilder, raw};
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Received, Reply};
use crate::support::redis::Redis;
use crate::support::token::Token;

/// Says who asked, for what, and what a careless backend would reflect; willing to be kept by anybody.
fn telling(request: &Received) -> Reply {
    let say = |name| request.header(name).unwrap_or("-").to_owned();
    Reply::json(
        200,
        &serde_json::json!({
            "user": say("x-user-id"),
            "method": request.method.as_str(),
            "target": request.target,
            "host": say("host"),
            "forwarded_host": say("x-forwarded-host"),
            "scheme": say("x-forwarded-proto"),
            "body": String::from_utf8_lossy(&request.body),
        }),
    )
    .header("cache-control", "public, max-age=60")
}

fn stage() -> Stage {
    let stage = Stage::start();
    stage.origin.answer(telling);
    stage
}

fn user_of(response: &crate::support::client::Response) -> String {
    response.json()["user"].as_str().unwrap().to_owned()
}

#[test]
fn users_never_share_however_they_say_who_they_are() {
    let stage = stage();
    let long = "x".repeat(300);
    let names = [
        "ada",
        "bob",
        "a:b",
        "a",
        "b",
        "-anonymous",
        "-empty",
        "-epoch",
        "anonymous",
        " ",
        "0",
        "null",
        "ada ",
        "Ada",
        "ада",
        "ad\u{0430}",
        "a%3Ab",
        "user:ada",
        "../ada",
        "ada\u{301}",
        "\u{00e1}",
        "a\u{301}",
        "*",
        &long,
    ];
    let client = &stage.client;
    // Whatever is refused is refused for all; whatever is answered is answered for the one who asked.
    let mut answered = 0;
    for round in 0..2 {
        for path in ["/mine/profile", "/maybe/profile"] {
            for name in names {
                let token = Token::of(name).sign();
                let ways: [RequestBuilder; 3] = [
                    client.get(path).bearer(&token),
                    client.get(path).header("cookie", &format!("session={token}")),
                    client.get(&format!("{path}?token={token}")),
                ];
                for request in ways {
                    let response = request.send();
                    if response.code() != 200 {
                        assert!([400, 401].contains(&response.code()), "{name:?}: {}", response.code());
                        continue;
                    }
                    answered += 1;
                    let seen = response.json();
                    let expected = seen["user"].as_str().unwrap();
                    let bytes: String = name.bytes().map(char::from).collect();
                    assert!(
                        expected == name || percent(expected) == name || expected == bytes,
                        "round {round}: {name:?} got what was made for {expected:?}"
                    );
                    assert_eq!(seen["target"].as_str().unwrap(), path, "no token reaches the origin's log");
                }
            }
            let nobody = client.get(path).send();
            if path.starts_with("/maybe") {
                assert_eq!(user_of(&nobody), "-");
            } else {
                assert_eq!(nobody.code(), 401);
            }
        }
    }
    assert!(answered > 100, "{answered}");
}

fn percent(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[test]
fn credentials_nobody_looked_at_do_not_share_an_entry() {
    let stage = stage();
    // The origin knows its users by a cookie of its own; the route looks at no token.
    stage.origin.answer(|request| {
        let who =
            request.header("cookie").or(request.header("authorization")).or(request.header("x-api-key"));
        Reply::text(200, who.unwrap_or("nobody"))
    });
    let ask = |header: Option<(&str, &str)>| {
        let request = stage.client.get("/unlooked/profile");
        header.into_iter().fold(request, |request, (name, value)| request.header(name, value)).send()
    };
    for _ in 0..2 {
        assert_eq!(ask(None).text(), "nobody");
        for header in [
            ("cookie", "sid=ada"),
            ("cookie", "sid=bob"),
            ("authorization", "Basic YTpi"),
            ("x-api-key", "k1"),
        ] {
            let response = ask(Some(header));
            assert_eq!(response.text(), header.1);
            assert_eq!(x_cache(&response), "BYPASS");
        }
    }
}

#[test]
fn host_and_scheme_are_part_of_the_key() {
    let redis = Redis::start();
    let origin = Origin::start();
    for trusted in [false, true] {
        let text = if trusted {
            format!(
                "{}\n[server]\nlisten = \"{{listen}}\"\ntrusted_proxies = [\"127.0.0.0/8\"]\n",
                config(&origin.addr().to_string(), "")
            )
        } else {
            config(&origin.addr().to_string(), "")
        };
        let gateway = Gateway::builder().config(&text).env("REDIS_URL", &redis.url()).start();
        warm(&gateway, &origin);
        origin.answer(telling);
        let client = gateway.client();
        let path = format!("/open/{trusted}");
        for _ in 0..2 {
            for host in ["a.example", "b.example", "a.example:8080", "A.EXAMPLE"] {
                let seen = client.get(&path).host(host).send().json();
                assert!(seen["host"].as_str().unwrap().eq_ignore_ascii_case(host), "{host}: {seen}");
            }
            for scheme in ["https", "http"] {
                let response = client.get(&path).host("c.example").header("x-forwarded-proto", scheme).send();
                let expected = if trusted { scheme } else { "http" };
                assert_eq!(response.json()["scheme"], expected, "trusted: {trusted}");
            }
            // Poisoning: what an unkeyed header would reflect must not be there for those who did not send it.
            for evil in ["x-forwarded-host", "x-host", "x-original-host", "x-forwarded-server", "forwarded"] {
                let value = if evil == "forwarded" { "host=evil.example" } else { "evil.example" };
                let victim = format!("{path}/{evil}");
                client.get(&victim).host("c.example").header(evil, value).send();
                let seen = client.get(&victim).host("c.example").send().text();
                assert!(!seen.contains("evil.example"), "trusted: {trusted}, {evil}: {seen}");
            }
        }
    }
}

#[test]
fn paths_of_other_resources_do_not_reach_what_is_stored() {
    let stage = stage();
    let (ada, eve) = (Token::of("ada").sign(), Token::of("eve").sign());
    let paths = [
        "/mine/profile;a.css",
        "/mine/profile/a.css",
        "/mine/profile%0aa.css",
        "//mine/profile",
        "/mine//profile",
        "/mine/%70rofile",
        "/mine/profile%2fa.css",
        "/mine/profile%3ba.css",
        "/mine/profile%00.css",
        "/mine/profile%23a.css",
        "/mine/profile%3fa.css",
        "/mine/profile.css",
        "/mine/./profile",
        "/mine/x/../profile",
        "/mine/x/%2e%2e/profile",
        "/open/../mine/profile",
        "/open/%2e%2e/mine/profile",
        "/open/..%2fmine/profile",
        "/mine/profile?a.css",
        "/mine/profile?",
        "/mine/profile??x",
        "/mine/PROFILE",
        "/mine/profile/",
        "/mine/profile%20",
        "/mine/profile\\a.css",
        "/mine/profile%5ca.css",
        "/mine/profile%e2%80%ae",
        "/mine/%c0%afprofile",
    ];
    for path in paths {
        let ask = |who: Option<&str>| {
            let authorization =
                who.map_or(String::new(), |token| format!("authorization: Bearer {token}\r\n"));
            let bytes = raw(
                stage.gateway.addr(),
                format!("GET {path} HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n{authorization}\r\n"),
            );
            String::from_utf8_lossy(&bytes).into_owned()
        };
        for _ in 0..2 {
            for (name, token) in [("ada", &ada), ("eve", &eve)] {
                let seen = ask(Some(token));
                let ok = seen.starts_with("HTTP/1.1 200");
                let own = seen.contains(&format!("\"user\":\"{name}\""));
                // On the open route nobody is told apart, and nobody is named.
                let unnamed = seen.contains("\"user\":\"-\"");
                assert!(!ok || own || unnamed, "{path} as {name}: {seen}");
            }
            let seen = ask(None);
            assert!(!seen.contains("\"ada\"") && !seen.contains("\"eve\""), "{path} as nobody: {seen}");
        }
    }
}

#[test]
fn queries_are_told_apart_however_they_are_written() {
    let stage = stage();
    let queries = [
        "",
        "?",
        "?a=1",
        "?a=2",
        "?a=1&b=2",
        "?b=2&a=1",
        "?a=1&a=2",
        "?a=2&a=1",
        "?a=1;b=2",
        "?a=%31",
        "?a=1%26b=2",
        "?A=1",
        "?a",
        "?a=",
        "?a=1&",
        "?&a=1",
        "?a=%00",
        "?a=1+2",
        "?a=1%202",
        "?a[]=1",
        "?a[]=1&a[]=2",
        "?%61=1",
        "?a=1#",
        "?a=1%23",
    ];
    let mut seen = std::collections::HashMap::new();
    for _ in 0..2 {
        for query in queries {
            if query.contains('#') {
                continue;
            }
            let path = format!("/open/q{query}");
            let response = stage.client.get(&path).send();
            let target = response.json()["target"].as_str().unwrap().to_owned();
            let sorted = |target: &str| {
                let (_, query) = target.split_once('?').unwrap_or((target, ""));
                let mut pairs: Vec<_> =
                    query.split('&').filter(|pair| !pair.is_empty()).map(str::to_owned).collect();
                pairs.sort_by(|a, b| a.split('=').next().cmp(&b.split('=').next()));
                pairs
            };
            // Only the order of differently named parameters may differ between request and stored answer.
            assert_eq!(sorted(&target), sorted(&path), "{path} got {target}");
            seen.insert(query, response.header("x-cache-key").unwrap().to_owned());
        }
    }
    assert_eq!(seen["?a=1&b=2"], seen["?b=2&a=1"]);
    assert_ne!(seen["?a=1&a=2"], seen["?a=2&a=1"]);

    // A route that keys by `page` alone: whatever a backend might read as another page is another page.
    stage.origin.answer(|request| Reply::text(200, &request.target));
    let pages = [
        "/selected?page=1",
        "/selected?page=2",
        "/selected?p%61ge=2",
        "/selected?page=1&page=2",
        "/selected?page[]=2",
        "/selected?x;page=2",
        "/selected?x=1%26page=2",
    ];
    for _ in 0..2 {
        for page in pages {
            let got = stage.client.get(page).send().text();
            assert_eq!(got.matches("age").count(), page.matches("age").count(), "{page} got {got}");
            assert_eq!(got.matches('2').count(), page.matches('2').count(), "{page} got {got}");
        }
    }
}

#[test]
fn requests_that_claim_to_be_others_go_past_the_cache() {
    let stage = stage();
    let ada = Token::of("ada").sign();
    for name in [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
        "x-original-url",
        "x-rewrite-url",
        "x-original-uri",
        "x-original-host",
        "x-host",
        "x-forwarded-prefix",
    ] {
        let path = format!("/mine/{name}");
        let tricked = stage.client.get(&path).bearer(&ada).header(name, "/evil").send();
        assert!(tricked.code() >= 400 || x_cache(&tricked) == "BYPASS", "{name}: {}", x_cache(&tricked));
        assert_eq!(
            x_cache(&stage.client.get(&path).bearer(&ada).send()),
            "MISS",
            "{name} left nothing behind"
        );
    }
    // A body that the key does not know.
    for path in ["/open/fat", "/mine/fat"] {
        let fat =
            stage.client.get(path).bearer(&ada).header("content-type", "text/plain").body("evil").send();
        assert_ne!(x_cache(&fat), "HIT");
        for _ in 0..2 {
            let response = stage.client.get(path).bearer(&ada).send();
            assert_eq!(response.json()["body"], "", "{path}");
        }
        let fat = stage.client.get(path).bearer(&ada).body("other").send();
        assert_eq!(x_cache(&fat), "BYPASS");
    }
    // Chunked, and with a length beside no body.
    let chunked = raw(
        stage.gateway.addr(),
        "GET /open/fat2 HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
    );
    assert!(!String::from_utf8_lossy(&chunked).to_ascii_lowercase().contains("x-cache: hit"));
    assert_eq!(stage.client.get("/open/fat2").host("a").send().json()["body"], "");
}

#[test]
fn methods_are_not_confused() {
    let stage = stage();
    let ada = Token::of("ada").sign();
    let ask = |method: &str, path: &str| {
        stage.client.request(Method::from_bytes(method.as_bytes()).unwrap(), path).bearer(&ada).send()
    };
    // The whole is fetched for a HEAD, or nothing is stored: a GET after it has its body.
    let path = "/mine/head-first";
    assert_eq!(ask("HEAD", path).code(), 200);
    let got = ask("GET", path);
    assert_eq!((got.json()["user"].as_str(), got.json()["method"].as_str()), (Some("ada"), Some("GET")));
    for method in ["POST", "OPTIONS", "DELETE", "PROPFIND", "QUERY"] {
        let path = format!("/mine/{method}");
        for _ in 0..2 {
            let response = ask(method, &path);
            assert!(response.code() >= 400 || x_cache(&response) == "BYPASS", "{method}");
        }
        assert_eq!(ask("GET", &path).json()["method"], "GET");
    }
}

#[test]
fn vary_is_no_way_to_somebody_elses_response() {
    let stage = Stage::start();
    stage.origin.answer(|request| {
        let who = request.header("x-user-id").unwrap_or("-").to_owned();
        let vary = request.header("x-vary").unwrap_or("accept").to_owned();
        Reply::text(200, &who).header("vary", &vary).header("cache-control", "max-age=60")
    });
    for vary in ["accept", "x-user-id", "cookie", "authorization", "x-vary", "host", "a, b, c", "accept,,x"] {
        let path = format!("/mine/{}", vary.len());
        for _ in 0..2 {
            for name in ["ada", "bob"] {
                let token = Token::of(name).sign();
                let response = stage
                    .client
                    .get(&path)
                    .bearer(&token)
                    .header("x-vary", vary)
                    .header("x-user-id", "ada")
                    .header("accept", "*/*")
                    .send();
                assert_eq!(response.text(), name, "vary: {vary}");
            }
        }
    }
}

#[test]
fn a_range_poisons_nothing() {
    let stage = Stage::start();
    stage.origin.answer(|request| {
        // A backend that takes any range it sees.
        let body = format!("0123456789 {}", request.header("x-user-id").unwrap_or("-"));
        match request.header("range") {
            Some(_) => Reply::text(206, &body[..2]).header("content-range", "bytes 0-1/14"),
            None => Reply::text(200, &body),
        }
        .header("cache-control", "max-age=60")
    });
    let ada = Token::of("ada").sign();
    for range in
        ["bytes=0-1", "bytes=0-1,3-4", "bytes=0-", "bytes=-1", "bytes=9-1", "bytes=", "items=1", "bytes=99-"]
    {
        let path = format!("/mine/{}", range.len());
        let _ = stage.client.get(&path).bearer(&ada).header("range", range).send();
        for _ in 0..2 {
            let whole = stage.client.get(&path).bearer(&ada).send();
            assert_eq!((whole.code(), whole.text().as_str()), (200, "0123456789 ada"), "after {range}");
        }
    }
}

#[test]
fn one_connection_carries_many_users_without_mixing_them() {
    let stage = stage();
    let mut connection = RawConnection::open(stage.gateway.addr());
    for round in 0..10 {
        for name in ["ada", "bob", "eve"] {
            let token = Token::of(name).sign();
            connection.send(format!(
                "GET /mine/profile HTTP/1.1\r\nhost: a.example\r\nauthorization: Bearer {token}\r\n\r\n"
            ));
            let seen = connection.read_until(|bytes| bytes.ends_with(b"}") || bytes.ends_with(b"0\r\n\r\n"));
            let seen = String::from_utf8_lossy(&seen).into_owned();
            assert!(seen.contains(&format!("\"user\":\"{name}\"")), "round {round}, {name}: {seen}");
        }
    }
}

#[test]
fn an_expired_or_revoked_token_is_not_served_from_the_cache() {
    let stage = stage();
    let token = Token::of("ada").sign();
    let read = |token: &str| stage.client.get("/mine/profile").bearer(token).send();
    assert_eq!(x_cache(&read(&token)), "MISS");
    assert_eq!(x_cache(&read(&token)), "HIT");
    assert_eq!(read(&Token::of("ada").expires_in(-3600).sign()).code(), 401);
    assert_eq!(stage.client.post("/auth/logout").bearer(&token).send().code(), 200);
    assert_eq!(read(&token).code(), 401);
    let again = read(&Token::of("ada").sign());
    assert_eq!(
        (x_cache(&again).as_str(), user_of(&again).as_str()),
        ("MISS", "ada"),
        "a logout drops the user's cache"
    );
    // A storm of users does not evict identities into each other.
    for number in 0..50 {
        let name = format!("user-{number}");
        let response = stage
            .client
            .get("/mine/profile")
            .bearer(&Token::of(&name).sign())
            .within(Duration::from_secs(10))
            .send();
        assert_eq!(user_of(&response), name);
    }
}
