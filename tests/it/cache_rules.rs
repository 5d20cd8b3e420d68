//! The rules by which responses are stored and served again, through real sockets: whose they are, which fields
//! they keep, how long they live, and what is said of them.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::support::client::{Client, Response};
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Reply};
use crate::support::redis::Redis;
use crate::support::token::Token;

fn config(origin: &str) -> String {
    format!(
        r#"
[admin]
listen = "{{admin}}"
token = "${{TOLLGATE_ADMIN_TOKEN}}"

[redis]
url = "${{REDIS_URL:-}}"
deadline = "1s"

[identity]
token_from = ["bearer", "cookie:session"]

[upstreams.app]
members = "{origin}"

[defaults]
upstream = "app"

[[routes]]
name = "plain"
path = "/plain/**"
auth = "optional"
[routes.cache]

[[routes]]
name = "open"
path = "/open/**"
[routes.cache]
shared = true

[[routes]]
name = "unlooked"
path = "/unlooked/**"
[routes.cache]

[[routes]]
name = "mine"
path = "/mine/**"
auth = "optional"
[routes.cache]
ttl = "5m"

[[routes]]
name = "ours"
path = "/ours/**"
auth = "required"
[routes.cache]
shared = true

[[routes]]
name = "guessed"
path = "/guessed/**"
[routes.cache]
shared = true
heuristic = 10

[[routes]]
name = "statuses"
path = "/statuses/**"
[routes.cache]
ttl = "5m"
shared = true
stale_if_error = "1m"
status_ttl = {{ 301 = "1m", 404 = "1m", 410 = "1m", 503 = "1m" }}

[[routes]]
name = "overridden"
path = "/overridden/**"
[routes.cache]
ttl = "5m"
shared = true
override_origin = true
status_ttl = {{ 404 = "1m" }}

[[routes]]
name = "stripped"
path = "/stripped/**"
[routes.cache]
shared = true
set_cookie = "strip"

[[routes]]
name = "kept"
path = "/kept/**"
auth = "required"
[routes.cache]
ttl = "5m"
set_cookie = "keep"
"#
    )
}

struct Stage {
    redis: Redis,
    origin: Origin,
    gateway: Gateway,
    client: Client,
}

impl Stage {
    fn start() -> Self {
        let (redis, origin) = (Redis::start(), Origin::start());
        let gateway = another(&redis, &origin);
        let client = gateway.client();
        let stage = Self { redis, origin, gateway, client };
        assert_eventually!(stage.stored() == 1, "what is stored reaches Redis");
        stage
    }

    fn get(&self, path: &str) -> Response {
        self.client.get(path).send()
    }

    /// An instance with an empty memory, beside the one that stored.
    fn another(&self) -> Gateway {
        another(&self.redis, &self.origin)
    }

    fn stored(&self) -> usize {
        self.redis.keys().iter().filter(|key| key.starts_with("cache:")).count()
    }
}

fn another(redis: &Redis, origin: &Origin) -> Gateway {
    let gateway =
        Gateway::builder().config(&config(&origin.addr().to_string())).env("REDIS_URL", &redis.url()).start();
    origin.route("/open/warm", |_| Reply::text(200, "warm").header("cache-control", "max-age=60"));
    let client = gateway.client();
    assert_eventually!(x_cache(&client.get("/open/warm").send()) == "HIT", "the cache comes into use");
    origin.clear();
    gateway
}

fn x_cache(response: &Response) -> &str {
    response.header("x-cache").unwrap_or("-")
}

fn status(response: &Response) -> &str {
    response.header("cache-status").expect("a Cache-Status")
}

/// Bodies are numbered, so that two requests got one answer if and only if the bodies are the same.
fn answers(stage: &Stage, path: &str, reply: Reply) {
    let count = AtomicUsize::new(0);
    stage.origin.route(path, move |_| {
        let number = count.fetch_add(1, SeqCst);
        reply.clone().body(format!("{number}"))
    });
}

fn ok(cache_control: &str) -> Reply {
    Reply::text(200, "").header("cache-control", cache_control)
}

#[test]
fn without_a_ttl_a_route_stores_what_a_shared_cache_may_and_nothing_else() {
    let stage = Stage::start();
    let (ada, bob) = (Token::of("ada").sign(), Token::of("bob").sign());
    // What is said, and who is served again: somebody without credentials, and somebody with a token.
    for (index, (said, anonymous, identified)) in [
        ("max-age=60", true, false),
        ("private, max-age=60", false, false),
        ("public, max-age=60", true, true),
        ("s-maxage=60", true, true),
        ("must-revalidate, max-age=60", true, true),
        ("max-age=60, s-maxage=0", false, false),
        ("no-store, max-age=60", false, false),
        ("public", false, false),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/plain/{index}");
        answers(&stage, &path, ok(said));
        let same = |first: &Response, second: &Response| first.text() == second.text();
        assert_eq!(same(&stage.get(&path), &stage.get(&path)), anonymous, "{said}, nobody");
        let as_ada = || stage.client.get(&path).bearer(&ada).send();
        assert_eq!(same(&as_ada(), &as_ada()), identified, "{said}, somebody");
        let by_cookie = || stage.client.get(&path).header("cookie", &format!("session={bob}")).send();
        assert_eq!(same(&by_cookie(), &by_cookie()), identified, "{said}, somebody by cookie");
        assert!(!same(&as_ada(), &by_cookie()), "{said}: the user stays part of the key");
    }
}

#[test]
fn with_a_ttl_private_answers_are_kept_for_their_user_and_for_nobody_else() {
    let stage = Stage::start();
    answers(&stage, "/mine/a", ok("private, max-age=60"));
    let ada = Token::of("ada").sign();
    let as_ada = || stage.client.get("/mine/a").bearer(&ada).send();
    assert_eq!((x_cache(&as_ada()), x_cache(&as_ada())), ("MISS", "HIT"));
    for _ in 0..2 {
        let anonymous = stage.get("/mine/a");
        assert_ne!(x_cache(&anonymous), "HIT");
    }
    assert!(status(&stage.get("/mine/a")).contains("tollgate; fwd="));
}

#[test]
fn unverified_credentials_need_the_release_of_the_origin() {
    let stage = Stage::start();
    answers(&stage, "/unlooked/a", ok("max-age=60"));
    answers(&stage, "/unlooked/b", ok("public, max-age=60"));
    for (name, value) in [("authorization", "Basic YTpi"), ("cookie", "id=1")] {
        for (path, again) in [("/unlooked/a", false), ("/unlooked/b", true)] {
            let path = format!("{path}?{name}");
            let ask = || stage.client.get(&path).header(name, value).send();
            let (first, second) = (ask(), ask());
            assert_eq!(first.text() == second.text(), again, "{name} {path}: {}", status(&second));
        }
    }
}

#[test]
fn fields_named_by_private_or_no_cache_reach_the_first_client_only() {
    let stage = Stage::start();
    let reply = |said: &str| ok(said).header("x-one", "1").header("x-two", "2").header("set-cookie", "a=b");
    answers(&stage, "/open/a", reply("max-age=60, private=\"X-One, set-cookie\", no-cache=\"x-two\""));
    let before = stage.stored();
    let first = stage.get("/open/a");
    assert_eq!((first.header("x-one"), first.header("x-two")), (Some("1"), Some("2")));
    assert_eq!(first.header("set-cookie"), Some("a=b"));
    assert_eventually!(stage.stored() > before, "it reaches Redis");
    let other = stage.another();
    // Memory here, Redis there.
    let remote = other.client().get("/open/a").host(&stage.gateway.addr().to_string()).send();
    for hit in [stage.get("/open/a"), remote] {
        assert_eq!((x_cache(&hit), hit.text()), ("HIT", first.text()));
        for gone in ["x-one", "x-two", "set-cookie"] {
            assert_eq!(hit.header(gone), None, "{gone}");
        }
    }
    for whole in ["private=\"x one\"", "private=\"\"", "private=\"content-type\"", "private=x-one, private"] {
        let path = format!("/open/whole?{}", fastrand::u32(..));
        answers(&stage, "/open/whole", reply(&format!("max-age=60, {whole}")));
        for _ in 0..2 {
            assert_ne!(x_cache(&stage.get(&path)), "HIT", "{whole}");
        }
    }
    // For one user `private` says nothing, and `no-cache` still does.
    let ada = Token::of("ada").sign();
    let reply =
        ok("max-age=60, private=\"x-one\", no-cache=\"x-two\"").header("x-one", "1").header("x-two", "2");
    answers(&stage, "/mine/fields", reply);
    let ask = || stage.client.get("/mine/fields").bearer(&ada).send();
    assert_eq!(x_cache(&ask()), "MISS");
    let hit = ask();
    assert_eq!((x_cache(&hit), hit.header("x-one"), hit.header("x-two")), ("HIT", Some("1"), None));
}

#[test]
fn guesses_at_freshness_are_made_only_where_they_are_declared() {
    let stage = Stage::start();
    let modified = "Sun, 06 Nov 1994 08:49:37 GMT";
    for (path, reply, expected) in [
        ("/guessed/a", Reply::text(200, "").header("last-modified", modified), "HIT"),
        ("/guessed/b", Reply::text(200, ""), "MISS"),
        ("/guessed/c", Reply::text(404, "").header("last-modified", modified), "HIT"),
        ("/guessed/d", Reply::text(302, "").header("last-modified", modified), "MISS"),
        (
            "/guessed/e",
            Reply::text(302, "").header("last-modified", modified).header("cache-control", "public"),
            "HIT",
        ),
        ("/open/a", Reply::text(200, "").header("last-modified", modified), "MISS"),
    ] {
        answers(&stage, path, reply);
        stage.get(path);
        let second = stage.get(path);
        let got = if x_cache(&second) == "HIT" { "HIT" } else { "MISS" };
        assert_eq!(got, expected, "{path}: {}", status(&second));
    }
    let ttl = status(&stage.get("/guessed/a")).split("ttl=").nth(1).unwrap_or_default().to_owned();
    let ttl: u64 = ttl.split(';').next().unwrap_or_default().parse().unwrap();
    assert!((86_000..=86_400).contains(&ttl), "a day at most: {ttl}");
}

#[test]
fn redirects_and_errors_live_for_their_declared_time() {
    let stage = Stage::start();
    for (path, reply, again) in [
        ("/statuses/301", Reply::text(301, "").header("location", "/x"), true),
        ("/statuses/404", Reply::text(404, ""), true),
        ("/statuses/410", Reply::text(410, ""), true),
        ("/statuses/503", Reply::text(503, ""), true),
        ("/statuses/302", Reply::text(302, ""), false),
        ("/statuses/500", Reply::text(500, ""), false),
        ("/statuses/no-store", Reply::text(404, "").header("cache-control", "no-store"), false),
        ("/statuses/429", Reply::text(429, "").header("cache-control", "public, max-age=60"), false),
        ("/overridden/404", Reply::text(404, "").header("cache-control", "no-store"), true),
        ("/overridden/410", Reply::text(410, "").header("cache-control", "max-age=60"), false),
        ("/open/404", Reply::text(404, "").header("cache-control", "max-age=60"), true),
    ] {
        answers(&stage, path, reply);
        let (first, second) = (stage.get(path), stage.get(path));
        assert_eq!(first.code(), second.code(), "{path}");
        assert_eq!(first.text() == second.text(), again, "{path}: {}", status(&second));
    }
}

#[test]
fn a_stored_error_displaces_nothing_that_may_still_be_served() {
    let stage = Stage::start();
    answers(&stage, "/statuses/a", Reply::text(200, "").header("etag", "\"1\""));
    let good = stage.get("/statuses/a");
    answers(&stage, "/statuses/a", Reply::text(503, ""));
    // The request insists on the origin, and gets what it says.
    let error = stage.client.get("/statuses/a").header("cache-control", "no-cache").send();
    assert_eq!(error.code(), 503);
    assert_eq!(status(&error).split("; detail=").nth(1), Some("worse_than_stored"));
    let hit = stage.get("/statuses/a");
    assert_eq!((hit.code(), x_cache(&hit), hit.text()), (200, "HIT", good.text()));
}

#[test]
fn a_request_may_limit_how_stale_an_answer_it_gets_instead_of_an_error() {
    let stage = Stage::start();
    answers(&stage, "/statuses/b", ok("max-age=10, stale-if-error=600").header("age", "70"));
    stage.get("/statuses/b");
    answers(&stage, "/statuses/b", Reply::text(503, ""));
    let ask = |said: &str| stage.client.get("/statuses/b").header("cache-control", said).send();
    let served = ask("stale-if-error=600");
    assert_eq!((served.code(), x_cache(&served)), (200, "STALE"));
    assert!(status(&served).contains("fwd=stale; fwd-status=503"), "{}", status(&served));
    assert_eq!(ask("max-age=600").code(), 503, "nothing stale for who limits the age");
    assert_eq!(ask("max-stale=1").code(), 503, "nothing staler than accepted");
    let served = ask("max-age=600, max-stale=600");
    assert_eq!((served.code(), x_cache(&served)), (200, "HIT"));
}

#[test]
fn cookies_are_replayed_only_where_declared_and_to_their_own_user() {
    let stage = Stage::start();
    let reply = || ok("max-age=60").header("set-cookie", "a=b");
    answers(&stage, "/open/cookie", reply());
    for _ in 0..2 {
        let response = stage.get("/open/cookie");
        assert_ne!(x_cache(&response), "HIT");
        assert_eq!(response.header("set-cookie"), Some("a=b"));
    }
    answers(&stage, "/stripped/cookie", reply());
    assert_eq!(stage.get("/stripped/cookie").header("set-cookie"), Some("a=b"));
    let hit = stage.get("/stripped/cookie");
    assert_eq!((x_cache(&hit), hit.header("set-cookie")), ("HIT", None));
    answers(&stage, "/kept/cookie", reply());
    let ask = |user: &str| stage.client.get("/kept/cookie").bearer(&Token::of(user).sign()).send();
    ask("ada");
    let hit = ask("ada");
    assert_eq!((x_cache(&hit), hit.header("set-cookie")), ("HIT", Some("a=b")));
    assert_eq!(x_cache(&ask("bob")), "MISS");
}

#[test]
fn targeted_fields_rule_here_and_leave_as_they_should() {
    let stage = Stage::start();
    for (index, (fields, again)) in [
        (&[("cdn-cache-control", "max-age=60"), ("cache-control", "no-store"), ("expires", "0")][..], true),
        (&[("cdn-cache-control", "no-store"), ("cache-control", "max-age=60")], false),
        (&[("cdn-cache-control", "no-store"), ("tollgate-cache-control", "max-age=60")], true),
        (&[("cdn-cache-control", "max-age=60"), ("tollgate-cache-control", "private")], false),
        (&[("cdn-cache-control", "max-age=60;a=b"), ("cache-control", "no-store")], true),
        (&[("cdn-cache-control", "no-store,"), ("cache-control", "max-age=60")], true),
        (&[("cdn-cache-control", ""), ("cache-control", "max-age=60")], true),
        (&[("cdn-cache-control", "max-age=\"60\""), ("cache-control", "max-age=60")], false),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/open/{index}");
        let with = |reply: Reply, (name, value): &(&str, &str)| reply.header(name, value);
        answers(&stage, &path, fields.iter().fold(Reply::text(200, ""), with));
        let (first, second) = (stage.get(&path), stage.get(&path));
        assert_eq!(first.text() == second.text(), again, "{fields:?}: {}", status(&second));
        for response in [first, second] {
            assert_eq!(response.header("tollgate-cache-control"), None, "{fields:?}");
            for (name, value) in fields.iter().filter(|(name, _)| *name != "tollgate-cache-control") {
                assert_eq!(response.header(name), Some(*value), "{fields:?}");
            }
        }
    }
}

#[test]
fn what_one_origin_may_read_is_not_handed_to_another() {
    let stage = Stage::start();
    let count = AtomicUsize::new(0);
    stage.origin.route("/open/cors", move |request| {
        let origin = request.header("origin").unwrap_or("null").to_owned();
        let number = count.fetch_add(1, SeqCst);
        ok("max-age=60").header("access-control-allow-origin", &origin).body(format!("{number}"))
    });
    for origin in ["https://a.example", "https://b.example"] {
        for expected in ["MISS", "HIT"] {
            let response = stage.client.get("/open/cors").header("origin", origin).send();
            assert_eq!(
                (x_cache(&response), response.header("access-control-allow-origin")),
                (expected, Some(origin))
            );
        }
    }
}

#[test]
fn nothing_that_varies_by_what_the_gateway_writes_is_stored() {
    let stage = Stage::start();
    for (index, vary) in
        ["X-User-Id", "X-Forwarded-For", "accept, X-Request-Id", "*", "X-User-Plan"].iter().enumerate()
    {
        let path = format!("/ours/{index}");
        answers(&stage, &path, ok("public, max-age=60").header("vary", vary));
        let ask = |user: &str| stage.client.get(&path).bearer(&Token::of(user).sign()).send();
        let (one, two) = (ask("ada"), ask("bob"));
        assert_ne!(one.text(), two.text(), "Vary: {vary}");
        assert_ne!(x_cache(&two), "HIT", "Vary: {vary}");
    }
    answers(&stage, "/ours/cookie", ok("public, max-age=60").header("vary", "Cookie, Authorization"));
    let ask = |user: &str| stage.client.get("/ours/cookie").bearer(user).send();
    let (ada, bob) = (Token::of("ada").sign(), Token::of("bob").sign());
    assert_eq!(x_cache(&ask(&ada)), "MISS");
    let other = ask(&bob);
    assert_eq!(x_cache(&other), "MISS");
    assert!(status(&other).contains("fwd=vary-miss"), "{}", status(&other));
    assert_eq!((x_cache(&ask(&ada)), x_cache(&ask(&bob))), ("HIT", "HIT"));
}

#[test]
fn cache_status_goes_on_with_what_nearer_caches_say() {
    let stage = Stage::start();
    answers(&stage, "/open/list", ok("max-age=60").header("cache-status", "origin; hit; ttl=5"));
    let miss = stage.get("/open/list");
    assert!(
        status(&miss).starts_with("origin; hit; ttl=5, tollgate; fwd=uri-miss; stored; ttl="),
        "{}",
        status(&miss)
    );
    let hit = stage.get("/open/list");
    assert!(status(&hit).starts_with("tollgate; hit; ttl="), "{}", status(&hit));
    assert!(status(&hit).contains(&format!("key=\"{}\"", hit.header("x-cache-key").expect("a key"))));
    let posted = stage.client.post("/open/list").send();
    assert_eq!(status(&posted), "origin; hit; ttl=5, tollgate; fwd=method");
    answers(&stage, "/open/bad", ok("max-age=60").header("cache-status", "HIT from (proxy"));
    assert!(status(&stage.get("/open/bad")).starts_with("tollgate; fwd=uri-miss"));

    stage.origin.route("/open/again", |request| match request.header("if-none-match") {
        Some(_) => Reply::new(304, "").header("etag", "\"1\"").header("cache-control", "max-age=60"),
        None => ok("max-age=60").header("etag", "\"1\""),
    });
    stage.get("/open/again");
    let again = stage.client.get("/open/again").header("cache-control", "no-cache").send();
    assert!(status(&again).starts_with("tollgate; fwd=request; fwd-status=304; ttl="), "{}", status(&again));
}
