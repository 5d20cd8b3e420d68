//! `config/stms.toml`, row by row, in front of a scripted application.

use http::Method;
use redis::Commands as _;
use serde_json::json;

use crate::presets::{cached, codes, in_front_of, ttl, wait_for_the_store};
use crate::support::client::Response;
use crate::support::gateway::Gateway;
use crate::support::origin::Origin;
use crate::support::redis::Redis;
use crate::support::reply::Reply;
use crate::support::token::Token;

const STUDENTS: &str = "/api/auth/student/students";
const TRAINERS: &str = "/api/auth/trainer/trainers";
const STUDENT: &str = "/api/auth/student/student/ada";
const TRAINER: &str = "/api/auth/trainer/trainer/7";
const PROFILE: &str = "/api/auth/student/profile";
const LECTURES: &str = "/api/auth/lecture/all";
const LECTURE: &str = "/api/auth/lecture/9";
const TODAY: &str = "/api/auth/lecture/today";

/// What is cached, for how long, and whether once for all.
const READS: [(&str, i64, bool); 8] = [
    (STUDENTS, 600, true),
    (TRAINERS, 600, true),
    (STUDENT, 600, true),
    (TRAINER, 600, true),
    (PROFILE, 1_800, false),
    (LECTURES, 300, true),
    (LECTURE, 300, true),
    (TODAY, 180, true),
];

/// An application whose logins answer with the token that they were sent.
fn origin() -> Origin {
    let origin = Origin::start();
    for kind in ["student", "trainer"] {
        origin.route(&format!("/api/auth/{kind}/login"), |request| {
            Reply::json(200, &json!({ "message": "Welcome", "token": request.json()["token"] }))
        });
    }
    origin
}

fn start(origin: &Origin, redis: &Redis) -> Gateway {
    let gateway = in_front_of("stms", origin.addr(), &redis.url()).start();
    wait_for_the_store(&gateway);
    gateway
}

fn stms() -> (Gateway, Origin, Redis) {
    let (redis, origin) = (Redis::start(), origin());
    (start(&origin, &redis), origin, redis)
}

/// A token as this application issues it, good for a day.
fn token(user: &str) -> Token {
    Token::of("unused").without("sub").claim("id", user).expires_in(86_400)
}

/// Logs in with this token.
fn login(gateway: &Gateway, token: &Token) -> String {
    let bearer = token.sign();
    let email = format!("{}@example.com", token.jti());
    let body = json!({ "email": email, "token": bearer });
    let response = gateway.client().post("/api/auth/student/login").json(&body).send();
    assert_eq!((response.code(), &response.json()["token"]), (200, &json!(bearer)));
    bearer
}

fn get(gateway: &Gateway, path: &str, bearer: &str) -> Response {
    gateway.client().get(path).host("stms.example").bearer(bearer).send()
}

fn refusal(response: &Response) -> (u16, String) {
    (response.code(), response.json()["detail"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn logins_are_limited_to_5_in_15_minutes_per_mail_address() {
    let (gateway, origin, redis) = stms();
    let attempt = |kind: &str, email: &str| {
        let body = json!({ "email": email, "token": "none" });
        gateway.client().post(&format!("/api/auth/{kind}/login")).json(&body).send()
    };
    let spellings = ["ada@example.com", "ADA@Example.com", " ada@example.com "];
    for number in 0..5 {
        let kind = ["student", "trainer"][number % 2];
        let response = attempt(kind, spellings[number % 3]);
        assert_eq!((response.code(), response.header("x-ratelimit-limit")), (200, Some("5")));
    }
    let refused = attempt("student", "ada@example.com");
    assert_eq!(refusal(&refused), (429, "Rate limit exceeded. Max 5 requests per 900 seconds.".to_owned()));
    assert_eq!(origin.hits(), 5);
    assert_eq!(attempt("student", "bob@example.com").code(), 200, "another address, from the same client");
    let keys = redis.keys();
    let key = keys.iter().find(|key| key.starts_with("rate_limit:login:")).unwrap();
    assert!(!key.contains("ada") && (800..=900).contains(&ttl(&redis, key)), "{keys:?}");
}

#[test]
fn registrations_are_limited_to_3_in_15_minutes_per_address() {
    let (gateway, origin, redis) = stms();
    let kinds = ["student", "trainer", "student", "trainer"];
    let register = |kind: &str| gateway.client().post(&format!("/api/auth/{kind}/register")).send();
    assert_eq!(codes(kinds.into_iter().map(register)), [200, 200, 200, 429]);
    assert_eq!(register("student").detail(), "Rate limit exceeded. Max 3 requests per 900 seconds.");
    assert_eq!(origin.hits(), 3);
    assert!((800..=900).contains(&ttl(&redis, "rate_limit:register:127.0.0.1")), "{:?}", redis.keys());
}

#[test]
fn anonymous_callers_have_10_requests_in_5_minutes_and_users_300() {
    let (gateway, origin, redis) = stms();
    let client = gateway.client();
    let got: Vec<Response> = (0..11).map(|_| client.get("/anything").send()).collect();
    assert_eq!(codes(got.into_iter()), [[200; 10].as_slice(), &[429]].concat()[..]);
    let refused = client.get("/anything").send();
    assert_eq!(refused.detail(), "Rate limit exceeded. Max 10 requests per 300 seconds.");
    assert!((200..=300).contains(&ttl(&redis, "rate_limit:general:127.0.0.1")), "{:?}", redis.keys());

    let ada = token("ada").sign();
    let response = client.get("/anything").bearer(&ada).send();
    assert_eq!((response.code(), response.header("x-ratelimit-limit")), (200, Some("300")));
    assert!((200..=300).contains(&ttl(&redis, "rate_limit:user:ada")), "{:?}", redis.keys());
    assert_eq!(client.get("/anything").bearer("nonsense").send().code(), 401);

    let development =
        in_front_of("stms", origin.addr(), &redis.url()).env("TOLLGATE_ENV", "development").start();
    let relaxed = development.client().get("/anything").send();
    assert_eq!(relaxed.header("x-ratelimit-limit"), Some("100"));
}

#[test]
fn the_user_is_the_id_of_the_token_and_else_its_sub() {
    let (gateway, origin, _redis) = stms();
    for (token, user) in [
        (token("ada"), "ada"),
        (token("ada").claim("sub", "somebody"), "ada"),
        (token("unused").without("id").claim("sub", "bob"), "bob"),
    ] {
        let bearer = login(&gateway, &token);
        assert_eq!(get(&gateway, PROFILE, &bearer).code(), 200, "{user}");
        assert_eq!(origin.last().header("x-user-id"), Some(user));
        origin.clear();
        // The next one asks the application again.
        let written = gateway.client().put("/api/auth/student/student/x").bearer(&bearer).send();
        assert_eq!(written.code(), 200, "{user}");
    }
}

#[test]
fn everything_but_login_and_registration_needs_a_token_whose_session_lives() {
    let (gateway, origin, redis) = stms();
    let stranger = token("ada").sign();
    let mut requests: Vec<(Method, &str)> = READS.map(|(path, ..)| (Method::GET, path)).to_vec();
    requests.push((Method::GET, "/api/auth/trainer/profile"));
    for method in [Method::PUT, Method::PATCH, Method::DELETE] {
        requests.extend([STUDENT, TRAINER, LECTURE].map(|path| (method.clone(), path)));
    }
    requests.push((Method::POST, "/api/auth/lecture"));
    requests.push((Method::POST, "/api/auth/lecture/create"));
    // Backends of this kind make no difference between these and the paths above.
    requests.push((Method::GET, "/API/Auth/student/STUDENTS/"));
    let send = |method: &Method, path: &str, bearer: Option<&str>| {
        let request = gateway.client().request(method.clone(), path);
        match bearer {
            Some(bearer) => request.bearer(bearer).send(),
            None => request.send(),
        }
    };
    for (method, path) in &requests {
        let refused = send(method, path, None);
        assert_eq!(refusal(&refused), (401, "Not authenticated".to_owned()), "{method} {path}");
        let refused = send(method, path, Some(&stranger));
        assert_eq!(refusal(&refused), (401, "Session expired".to_owned()), "{method} {path}");
    }
    assert_eq!(origin.hits(), 0);

    let ada = login(&gateway, &token("ada"));
    for (method, path) in &requests {
        assert_eq!(send(method, path, Some(&ada)).code(), 200, "{method} {path}");
        let refused = send(method, path, Some(&stranger));
        assert_eq!(refusal(&refused), (401, "Session expired".to_owned()), "cached or not: {method} {path}");
    }
    assert_eventually!(redis.keys().iter().any(|key| key == "session:ada"), "the session is in Redis");
    let left = ttl(&redis, "session:ada");
    assert!((3_500..=3_700).contains(&left), "an hour, and what its extension is delayed by: {left}");
}

#[test]
fn a_logout_that_the_application_accepts_ends_token_and_session_everywhere() {
    let (redis, origin) = (Redis::start(), origin());
    let [one, two] = [(); 2].map(|()| start(&origin, &redis));
    let token = token("ada");
    let bearer = login(&one, &token);
    assert_eventually!(
        get(&two, STUDENTS, &bearer).code() == 200,
        "the session is known at the other instance"
    );
    let logout = |gateway: &Gateway| gateway.client().post("/api/auth/student/logout").bearer(&bearer).send();

    origin.route("/api/auth/student/logout", |_| Reply::text(503, "not now"));
    assert_eq!(logout(&one).code(), 503);
    assert_eq!(get(&two, PROFILE, &bearer).code(), 200, "a logout that fails is none");

    origin.route("/api/auth/student/logout", |_| Reply::json(200, &json!({ "message": "Goodbye" })));
    assert_eq!(logout(&one).json(), json!({ "message": "Goodbye" }));
    for gateway in [&one, &two] {
        for path in [STUDENTS, PROFILE] {
            let refused = get(gateway, path, &bearer);
            assert_eq!(refusal(&refused), (401, "Token revoked".to_owned()), "{path}");
        }
    }
    let key = format!("blacklist:{}", token.jti());
    let left = ttl(&redis, &key);
    assert!((86_000..=86_400 + 30).contains(&left), "{left}");
    assert_eventually!(
        !redis.keys().iter().any(|key| key.starts_with("session:ada")),
        "no session is left in Redis"
    );
    // Whoever logs in anew is served, and not what was cached for the user before.
    let again = login(&two, &self::token("ada"));
    let profile = get(&two, PROFILE, &again);
    assert_eq!((profile.code(), cached(&profile)), (200, "MISS"));
}

#[test]
fn lists_and_records_are_cached_for_all_and_profiles_for_each_user() {
    let (gateway, origin, redis) = stms();
    let [ada, bob] = ["ada", "bob"].map(|user| login(&gateway, &token(user)));
    for (path, lifetime, shared) in READS {
        origin.clear();
        let first = get(&gateway, path, &ada);
        assert_eq!((first.code(), cached(&first)), (200, "MISS"), "{path}");
        assert!(first.header("x-cache-key").is_some());
        let second = get(&gateway, path, &ada);
        assert_eq!((second.code(), cached(&second)), (200, "HIT"), "{path}");
        assert_eq!(second.body, first.body);
        assert_eq!(second.header("x-ratelimit-limit"), Some("300"), "{path}");
        let other = get(&gateway, path, &bob);
        assert_eq!((other.code(), cached(&other)), (200, if shared { "HIT" } else { "MISS" }), "{path}");
        assert_eq!(origin.hits(), if shared { 1 } else { 2 }, "{path}");
        assert_eventually!(
            redis
                .keys()
                .iter()
                .filter(|key| key.starts_with("cache:"))
                .any(|key| (lifetime - 20..=lifetime).contains(&ttl(&redis, key))),
            format!("an entry of {lifetime} s in Redis for {path}: {:?}", redis.keys())
        );
    }
}

#[test]
fn writes_drop_what_they_change_on_every_instance() {
    let (redis, origin) = (Redis::start(), origin());
    let [one, two] = [(); 2].map(|()| start(&origin, &redis));
    let [ada, bob] = ["ada", "bob"].map(|user| login(&one, &token(user)));
    let warm = || {
        // This many requests are more than a user has.
        let _: () = redis.client().del(["rate_limit:user:ada", "rate_limit:user:bob"].as_slice()).unwrap();
        for gateway in [&one, &two] {
            for (path, ..) in READS {
                assert_eventually!(cached(&get(gateway, path, &ada)) == "HIT", format!("{path} is cached"));
            }
        }
    };
    let student: &[&str] = &[STUDENTS, STUDENT, PROFILE];
    let trainer: &[&str] = &[TRAINERS, TRAINER];
    let lectures: &[&str] = &[LECTURES, LECTURE, TODAY];
    let writes = [
        (Method::POST, "/api/auth/student/register", &[STUDENTS][..]),
        (Method::POST, "/api/auth/trainer/register", &[TRAINERS][..]),
        (Method::PUT, STUDENT, student),
        (Method::PATCH, STUDENT, student),
        (Method::DELETE, STUDENT, student),
        (Method::PUT, TRAINER, trainer),
        (Method::DELETE, TRAINER, trainer),
        (Method::POST, "/api/auth/lecture/create", lectures),
        (Method::PUT, LECTURE, lectures),
        (Method::DELETE, LECTURE, lectures),
    ];
    for (method, path, dropped) in writes {
        warm();
        let request = one.client().request(method.clone(), path).host("stms.example");
        let open = path.ends_with("/register");
        let written = if open { request.send() } else { request.bearer(&bob).send() };
        assert_eq!(written.code(), 200, "{method} {path}");
        for (read, ..) in READS {
            let expected = if dropped.contains(&read) { "MISS" } else { "HIT" };
            assert_eq!(cached(&get(&two, read, &ada)), expected, "{read} after {method} {path}");
        }
    }
}

#[test]
fn answers_tell_of_cache_and_limits_where_there_are_any() {
    let (gateway, origin, _redis) = stms();
    let bearer = login(&gateway, &token("ada"));
    let limit = |response: &Response| response.header("x-ratelimit-limit").map(str::to_owned);
    let told = |response: &Response| {
        ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"]
            .iter()
            .all(|name| response.header_all(name).len() == 1)
    };
    for (path, ..) in READS {
        origin
            .route(path, |_| Reply::text(200, "x").header("etag", "\"1\"").header("x-ratelimit-limit", "7"));
        let ask = |method: &Method| gateway.client().request(method.clone(), path).bearer(&bearer);
        let answers = [
            ("MISS", 200, ask(&Method::GET).send()),
            ("HIT", 200, ask(&Method::GET).send()),
            ("HIT", 200, ask(&Method::HEAD).send()),
            ("HIT", 304, ask(&Method::GET).header("if-none-match", "\"1\"").send()),
            ("HIT", 206, ask(&Method::GET).header("range", "bytes=0-0").send()),
            ("BYPASS", 200, ask(&Method::GET).header("cache-control", "no-store").send()),
        ];
        for (expected, code, response) in &answers {
            assert_eq!((cached(response), response.code()), (*expected, *code), "{path}");
            assert!(told(response), "{path} {expected}: {:?}", response.headers);
            assert_eq!(limit(response).as_deref(), Some("300"), "never the stored one: {path} {expected}");
            let key = response.header("x-cache-key");
            assert_eq!(key.is_some(), *expected != "BYPASS", "{path} {expected}");
            assert!(key.is_none() || key == answers[0].2.header("x-cache-key"), "{path} {expected}");
        }
    }
    for (method, path) in [(Method::PUT, STUDENT), (Method::POST, "/api/auth/lecture/create")] {
        let written = gateway.client().request(method, path).bearer(&bearer).send();
        assert!(told(&written) && written.header("x-cache").is_none(), "{path}: {:?}", written.headers);
    }
    // Refused before the cache is read: nothing to say of it.
    let refused = gateway.client().get(STUDENTS).send();
    assert_eq!((refused.code(), refused.header("x-cache")), (401, None));
}

#[test]
fn a_write_drops_the_profile_of_its_user_too() {
    let (gateway, _origin, _redis) = stms();
    let [ada, bob] = ["ada", "bob"].map(|user| login(&gateway, &token(user)));
    for path in [TRAINER, "/api/auth/student/student/17"] {
        for bearer in [&ada, &bob] {
            assert_eventually!(cached(&get(&gateway, PROFILE, bearer)) == "HIT", "the profile is cached");
        }
        assert_eq!(gateway.client().put(path).bearer(&bob).send().code(), 200);
        assert_eq!(cached(&get(&gateway, PROFILE, &bob)), "MISS", "of who wrote {path}");
        assert_eq!(cached(&get(&gateway, PROFILE, &ada)), "HIT", "and of nobody else: {path}");
    }
}
