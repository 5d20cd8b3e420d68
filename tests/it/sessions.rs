//! Sessions: needed where a route says so, kept by use, ended by idleness, their absolute end, logout, other logins and
//! operators, on every instance and through outages of Redis.

use std::time::Duration;

use serde_json::{Value, json};

use crate::setup::{PATIENT, ROOMY, config, counter, degraded, gateway, get_as, pair, ttl};
use crate::support::cluster::Cluster;
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::origin::{Origin, Reply};
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::{Token, unix_seconds};
use crate::support::{concurrently, holds_within};

const ROUTES: &str = r#"
[[routes]]
name = "logout"
path = "/logout"
methods = ["POST"]
auth = "required"
logout = "gateway"
[[routes]]
name = "inside"
path = "/inside/**"
upstream = "app"
auth = "required"
session = "required"
[[routes]]
name = "everywhere"
path = "/logout/everywhere"
methods = ["POST"]
auth = "required"
logout = "gateway"
logout_everywhere = true
[[routes]]
name = "login"
path = "/login"
methods = ["POST"]
upstream = "app"
[routes.login]
token = "header:X-Token"
[[routes]]
name = "all"
path = "/**"
upstream = "app"
auth = "required"
"#;

/// Sessions that end two seconds (and a touch interval of one) after their last use.
const SHORT: &str = "[sessions]\nidle = \"2s\"\nabsolute = \"12s\"\n";
/// When those have ended that are used all the time.
const OVER: Duration = Duration::from_secs(20);

/// How long sharing may take to come back once Redis has.
const BACK: Duration = Duration::from_secs(2);

fn with_sessions(origin: &Origin, redis: &str, sessions: &str) -> String {
    config(origin, redis, &format!("{sessions}{ROUTES}"))
}

/// Whether the token has a session.
pub fn is_in(gateway: &Gateway, token: &Token) -> bool {
    let reply = get_as(gateway.addr(), "/inside/x", &token.sign());
    match reply.code() {
        200 => true,
        401 => {
            assert!(
                ["Session expired", "Token revoked"].contains(&reply.detail().as_str()),
                "{}",
                reply.text()
            );
            false
        }
        other => panic!("{other}: {}", reply.text()),
    }
}

/// One session as it stands in Redis.
struct Line<'a> {
    token: &'a Token,
    opened: i64,
    seen: i64,
    until: i64,
    end: i64,
}

impl<'a> Line<'a> {
    /// A session opened now that is good for an hour.
    fn of(token: &'a Token) -> Self {
        let now = unix_seconds() * 1_000;
        Self { token, opened: now, seen: now, until: now + 3_600_000, end: now + 86_400_000 }
    }

    fn text(&self) -> String {
        let Self { token, opened, seen, until, end } = self;
        let token_until = (unix_seconds() + 3_600) * 1_000;
        format!("{} {opened} {seen} {until} {end} {token_until} 192.0.2.1\n", token.jti())
    }
}

/// Writes the sessions of `user` as another instance would.
fn write(redis: &Redis, user: &str, lines: &[Line]) {
    let value: String = lines.iter().map(Line::text).collect();
    let until = lines.iter().map(|line| line.until).max().unwrap();
    redis::cmd("SET")
        .arg(format!("session:{user}"))
        .arg(value)
        .arg("PXAT")
        .arg(until)
        .exec(&mut redis.client())
        .unwrap();
}

/// The sessions of `user` as they stand in Redis.
pub fn stored(redis: &Redis, user: &str) -> String {
    let value: Option<String> =
        redis::cmd("GET").arg(format!("session:{user}")).query(&mut redis.client()).unwrap();
    value.unwrap_or_default()
}

fn admin(gateway: &Gateway, call: &str, body: &Value) -> Value {
    let reply =
        gateway.admin().post(&format!("/api/v1/sessions/{call}")).bearer(ADMIN_TOKEN).json(body).send();
    assert_eq!(reply.code(), 200, "{}", reply.text());
    reply.json()
}

/// An upstream that gives out the token that it is told.
pub fn issuer() -> Origin {
    let origin = Origin::start();
    origin.route("/login", |login| {
        Reply::text(200, "welcome").header("x-token", login.header("x-issue").unwrap_or_default())
    });
    origin
}

/// Logs in with an answer that gives `token`.
pub fn log_in(gateway: &Gateway, token: &Token) {
    let reply = gateway.client().post("/login").header("x-issue", &token.sign()).send();
    assert_eq!(reply.code(), 200, "{}", reply.text());
}

fn log_out(gateway: &Gateway, token: &Token) {
    let reply = gateway.client().post("/logout").bearer(&token.sign()).send();
    assert!(reply.status.is_success(), "{}", reply.text());
}

fn events(gateway: &Gateway, event: &str) -> Option<f64> {
    gateway.metric("tollgate_sessions_total", &[("event", event)])
}

#[test]
fn a_valid_token_without_a_session_is_refused_where_one_is_needed() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&with_sessions(&origin, PATIENT, ""), &redis.url());
    let (inside, outside) = (Token::of("ada"), Token::of("ada"));
    write(&redis, "ada", &[Line::of(&inside)]);
    assert!(is_in(&gateway, &inside));
    let reply = get_as(gateway.addr(), "/inside/x", &outside.sign());
    assert_eq!((reply.code(), &*reply.detail()), (401, "Session expired"));
    assert!(reply.header("www-authenticate").unwrap().contains("invalid_token"));
    assert_eq!(events(&gateway, "refused"), Some(1.0));
    assert_eq!(get_as(gateway.addr(), "/elsewhere", &outside.sign()).code(), 200);
    // Another user's session, and a token without `jti`.
    let nameless = Token::of("ada").without("jti");
    assert!(!is_in(&gateway, &Token::of("bob").claim("jti", inside.jti())) && !is_in(&gateway, &nameless));
}

#[test]
fn a_session_ends_when_idle_and_lives_by_use_until_its_absolute_end() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&with_sessions(&origin, PATIENT, SHORT), &redis);
    let (used, idle) = (Token::of("ada"), Token::of("bob"));
    let now = unix_seconds() * 1_000;
    let short = |token| Line { until: now + 4_000, end: now + 12_000, ..Line::of(token) };
    write(&redis, "ada", &[short(&used)]);
    write(&redis, "bob", &[short(&idle)]);
    assert!(is_in(&first, &used) && is_in(&second, &idle));
    // Used now here and now there, it outlives the one that is not.
    let mut times = 0;
    assert_eventually!(
        {
            times += 1;
            assert!(is_in(if times % 2 == 0 { &first } else { &second }, &used), "activity extends");
            stored(&redis, "bob").is_empty()
        },
        "the idle session is gone"
    );
    assert!(!is_in(&first, &idle) && !is_in(&second, &idle));
    assert!(is_in(&first, &used) && is_in(&second, &used));
    assert_eventually!(!is_in(&first, &used), "the absolute maximum holds in spite of use", OVER);
    assert!(unix_seconds() * 1_000 >= now + 11_000, "and not before");
    assert!(!is_in(&second, &used));
    assert_eventually!(redis.keys().iter().all(|key| !key.starts_with("session:")), "nothing is left");
}

#[test]
fn a_logout_on_one_instance_ends_the_session_at_the_next_request_on_another() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&with_sessions(&origin, ROOMY, ""), &redis);
    let (gone, kept) = (Token::of("ada"), Token::of("ada"));
    write(&redis, "ada", &[Line::of(&gone), Line::of(&kept)]);
    for token in [&gone, &kept] {
        assert!(is_in(&first, token) && is_in(&second, token));
    }
    log_out(&first, &gone);
    assert!(!is_in(&second, &gone) && !is_in(&first, &gone));
    assert!(is_in(&second, &kept));
    assert!(!stored(&redis, "ada").contains(gone.jti()) && stored(&redis, "ada").contains(kept.jti()));
    assert_eq!(events(&first, "ended"), Some(1.0));
    redis.kill();
    assert_eventually!(
        {
            is_in(&second, &kept);
            degraded(&second)
        },
        "the outage is noticed"
    );
    assert!(!is_in(&second, &gone) && is_in(&second, &kept), "what is known holds");
}

#[test]
fn an_operator_lists_and_ends_sessions() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&with_sessions(&origin, PATIENT, ""), &redis);
    let tokens = [Token::of("ada"), Token::of("ada"), Token::of("ada")];
    let line = |index: i64, token| {
        let line = Line::of(token);
        Line { opened: line.opened - 10_000 * (3 - index), ..line }
    };
    write(&redis, "ada", &[line(2, &tokens[2]), line(0, &tokens[0]), line(1, &tokens[1])]);
    let listed = admin(&second, "list", &json!({"user": "ada"}));
    assert_eq!(listed["shared"], true);
    let names: Vec<_> =
        listed["sessions"].as_array().unwrap().iter().map(|one| one["session"].clone()).collect();
    assert_eq!(names, tokens.iter().map(|token| json!(token.jti())).collect::<Vec<_>>());
    assert_eq!(listed["sessions"][0]["client"], "192.0.2.1");
    assert!(tokens.iter().all(|token| is_in(&second, token)));
    let ended = admin(&first, "end", &json!({"user": "ada", "session": tokens[0].jti()}));
    assert_eq!(ended, json!({"ended": 1, "shared": true}));
    assert!(!is_in(&second, &tokens[0]) && is_in(&second, &tokens[1]));
    // Its token is of no use elsewhere either.
    assert_eq!(get_as(second.addr(), "/elsewhere", &tokens[0].sign()).detail(), "Token revoked");
    let ended = admin(&first, "end", &json!({"user": "ada"}));
    assert_eq!(ended["ended"], 2);
    assert!(tokens.iter().all(|token| !is_in(&second, token) && !is_in(&first, token)));
    assert_eq!(admin(&first, "list", &json!({"user": "ada"}))["sessions"], json!([]));
    assert_eq!(admin(&first, "end", &json!({"user": "nobody"}))["ended"], 0);
    assert!(redis.keys_without_ttl().is_empty(), "{:?}", redis.keys_without_ttl());
}

#[test]
fn sessions_that_are_known_go_on_while_redis_is_away_and_unknown_ones_are_believed() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&with_sessions(&origin, ROOMY, SHORT), &redis.url());
    let (known, idle, unknown) = (Token::of("ada"), Token::of("bob"), Token::of("eve"));
    let now = unix_seconds() * 1_000;
    let short = |token| Line { until: now + 4_000, end: now + 60_000, ..Line::of(token) };
    write(&redis, "ada", &[short(&known)]);
    write(&redis, "bob", &[short(&idle)]);
    assert!(is_in(&gateway, &known) && is_in(&gateway, &idle));
    redis.kill();
    assert_eventually!(
        {
            assert!(is_in(&gateway, &known));
            degraded(&gateway)
        },
        "the outage is noticed"
    );
    assert!(is_in(&gateway, &unknown), "no request fails because Redis is away");
    // It slides: no pause between two uses is as long as its life, all of them are longer.
    let ends = now + 6_000;
    assert!(holds_within(Duration::from_secs(20), || {
        assert!(is_in(&gateway, &known));
        unix_seconds() * 1_000 > ends
    }));
    redis.restart();
    assert!(holds_within(BACK * 5, || !degraded(&gateway)), "Redis is back");
    // It lost everything; what was used meanwhile was handed over.
    assert!(is_in(&gateway, &known));
    assert!(stored(&redis, "ada").contains(known.jti()), "{}", stored(&redis, "ada"));
    assert!(!is_in(&gateway, &idle) && !is_in(&gateway, &unknown));
}

#[test]
fn what_is_ended_while_redis_is_away_is_ended_everywhere_when_it_is_back() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let config = with_sessions(&origin, ROOMY, "");
    let (first, second) = (gateway(&config, &relay.redis_url()), gateway(&config, &redis.url()));
    let (gone, out, kept) = (Token::of("ada"), Token::of("ada"), Token::of("ada"));
    write(&redis, "ada", &[Line::of(&gone), Line::of(&out), Line::of(&kept)]);
    assert!([&gone, &out, &kept].iter().all(|token| is_in(&first, token) && is_in(&second, token)));
    relay.cut();
    assert_eventually!(
        {
            is_in(&first, &kept);
            degraded(&first)
        },
        "the outage is noticed"
    );
    let ended = admin(&first, "end", &json!({"user": "ada", "session": gone.jti()}));
    assert_eq!(ended, json!({"ended": 1, "shared": false}));
    log_out(&first, &out);
    assert!(!is_in(&first, &gone) && !is_in(&first, &out) && is_in(&first, &kept));
    relay.restore();
    assert_eventually!(!is_in(&second, &gone) && !is_in(&second, &out), "the others hear of it");
    assert_eventually!(
        {
            let stored = stored(&redis, "ada");
            stored.contains(kept.jti()) && !stored.contains(gone.jti()) && !stored.contains(out.jti())
        },
        "and so does Redis"
    );
    assert!(is_in(&second, &kept));
}

#[test]
fn a_session_that_redis_has_lost_has_ended() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&with_sessions(&origin, PATIENT, ""), &redis);
    let token = Token::of("ada").claim("iat", unix_seconds() - 600);
    write(&redis, "ada", &[Line::of(&token)]);
    assert!(is_in(&first, &token) && is_in(&second, &token));
    redis.flush();
    assert!(!is_in(&first, &token) && !is_in(&second, &token), "it does not live on from memory");
    assert!(!is_in(&first, &token) && stored(&redis, "ada").is_empty(), "nor does it come back");
}

#[test]
fn whatever_stands_in_redis_is_no_session_unless_it_is_one() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&with_sessions(&origin, PATIENT, ""), &redis.url());
    let token = Token::of("ada").claim("iat", unix_seconds() - 600);
    let good = Line::of(&token).text();
    let mut client = redis.client();
    let half = &good[..good.len() / 2];
    for (value, is_one) in [
        (good.clone(), true),
        (format!("garbage\n\0\n{good}"), true),
        (half.to_owned(), false),
        (good.replace(' ', "\t"), false),
        ("active".to_owned(), false),
        (r#"{"user_id": 42}"#.to_owned(), false),
        ("x".repeat(1 << 20), false),
        (good.repeat(1 << 12), false),
        ("\n".repeat(1 << 16), false),
    ] {
        redis::cmd("SET").arg("session:ada").arg(&value).exec(&mut client).unwrap();
        assert_eq!(is_in(&gateway, &token), is_one, "{}", value.chars().take(80).collect::<String>());
    }
    redis::cmd("DEL").arg("session:ada").exec(&mut client).unwrap();
    redis::cmd("HSET").arg("session:ada").arg("a").arg("b").exec(&mut client).unwrap();
    assert!(!is_in(&gateway, &token));
    log_out(&gateway, &token);
    let kind: String = redis::cmd("TYPE").arg("session:ada").query(&mut client).unwrap();
    assert_eq!(kind, "hash", "what is not ours stays");
}

#[test]
fn a_session_that_is_under_way_from_another_instance_is_waited_for() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let gateway = gateway(&with_sessions(&origin, PATIENT, ""), &relay.redis_url());
    assert!(!is_in(&gateway, &Token::of("warm-up")));
    // So that its questions take long, whatever else goes on here.
    relay.delay(Duration::from_millis(250));
    let old = Token::of("bob").claim("iat", unix_seconds() - 3_000);
    for (user, token) in [("ada", Token::of("ada")), ("bob", old), ("eve", Token::of("eve").without("iat"))] {
        std::thread::scope(|scope| {
            let (mut monitor, key) = (redis.monitor(), format!("session:{user}"));
            let asking = scope.spawn(|| is_in(&gateway, &token));
            // It has asked once.
            assert_eventually!(
                monitor.commands().iter().any(|command| command.words.contains(&key)),
                "the gateway asks for the session"
            );
            write(&redis, user, &[Line::of(&token)]);
            assert!(asking.join().unwrap(), "a login a moment ago holds, however old the token is");
        });
    }
}

#[test]
fn a_session_that_redis_has_not_got_is_none_even_if_it_cannot_be_asked_again() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let gateway = gateway(&with_sessions(&origin, PATIENT, ""), &relay.redis_url());
    for user in ["ada", "bob"] {
        redis::cmd("HSET")
            .arg(format!("session:{user}"))
            .arg("a")
            .arg("b")
            .exec(&mut redis.client())
            .unwrap();
        assert!(!is_in(&gateway, &Token::of(user)), "its first answer is what counts");
    }
    // The first answer comes, and a later one does not in time.
    relay.delay(Duration::from_millis(250));
    let token = Token::of("eve");
    std::thread::scope(|scope| {
        let mut monitor = redis.monitor();
        let asking = scope.spawn(|| is_in(&gateway, &token));
        assert_eventually!(
            monitor.commands().iter().any(|command| command.words.iter().any(|word| word == "session:eve")),
            "the gateway asks for the session"
        );
        relay.delay(Duration::from_secs(5));
        assert!(!asking.join().unwrap());
    });
}

#[test]
fn a_session_that_is_not_there_is_looked_for_again_once_a_second() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let gateway = gateway(&with_sessions(&origin, PATIENT, ""), &relay.redis_url());
    let token = Token::of("ada");
    relay.take_traffic();
    let start = std::time::Instant::now();
    for _ in 0..20 {
        assert!(!is_in(&gateway, &token));
    }
    let seconds = start.elapsed().as_secs();
    let commands = relay.traffic().commands;
    let looks = commands.iter().filter(|command| **command == ["GET", "session:ada"]).count();
    assert!((3..=3 * (1 + usize::try_from(seconds).unwrap())).contains(&looks), "{looks} in {seconds} s");
}

#[test]
fn one_request_is_one_exchange_and_its_use_is_written_down_once_per_interval() {
    let (redis, origin) = (Redis::start(), Origin::start());
    origin.answer(|_| Reply::text(200, "fresh"));
    let relay = Relay::to(redis.addr());
    let config = with_sessions(&origin, PATIENT, "").replace("threads = 2", "threads = 1");
    let gateway = gateway(&config, &relay.redis_url());
    let token = Token::of("ada");
    let line = Line::of(&token);
    write(&redis, "ada", &[line]);
    let client = gateway.client();
    let get = || assert_eq!(client.get("/inside/x").bearer(&token.sign()).send().code(), 200);
    get();
    relay.take_traffic();
    let about = |word: &str| {
        let traffic = relay.traffic();
        traffic.commands.iter().filter(|command| command.iter().any(|part| part.contains(word))).count()
    };
    for _ in 0..20 {
        get();
    }
    assert_eq!(about("session:ada"), 20, "{:?}", relay.traffic().commands);
    let names: Vec<_> = relay.traffic().commands.iter().map(|command| command[0].clone()).collect();
    assert!(names.iter().filter(|name| *name == "MGET").count() == 20 && !names.contains(&"GET".to_owned()));
    // The last noted use is longer ago than a sixtieth of the idle time.
    let token = Token::of("bob");
    let get = || assert_eq!(client.get("/inside/x").bearer(&token.sign()).send().code(), 200);
    let line = Line::of(&token);
    let old = line.seen - 61_000;
    write(&redis, "bob", &[Line { seen: old, opened: old, until: line.seen + 1_000_000, ..line }]);
    relay.take_traffic();
    for _ in 0..20 {
        get();
    }
    assert_eventually!(!stored(&redis, "bob").contains(&format!(" {old} {old} ")), "the use is written down");
    for _ in 0..20 {
        get();
    }
    let commands = relay.traffic().commands;
    let is_write =
        |command: &&Vec<String>| command[0] == "EVALSHA" && command.iter().any(|word| word == "session:bob");
    assert_eq!(commands.iter().filter(is_write).count(), 1, "{commands:?}");
    assert!((3_590..=3_660).contains(&ttl(&redis, "session:bob")), "idle time and interval");
}

#[test]
fn sweeps_take_out_what_has_ended_and_count_the_rest_one_instance_at_a_time() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&with_sessions(&origin, PATIENT, "[sessions]\nsweep = \"1s\"\n"), &redis);
    let (live, dead) = (Token::of("ada"), Token::of("ada"));
    let now = unix_seconds() * 1_000;
    write(&redis, "ada", &[Line { until: now - 1, ..Line::of(&dead) }, Line::of(&live)]);
    for number in 0..30 {
        let token = Token::of("x");
        write(&redis, &format!("user-{number}"), &[Line::of(&token)]);
    }
    redis::cmd("SADD").arg("session:odd").arg("a").exec(&mut redis.client()).unwrap();
    assert_eventually!(!stored(&redis, "ada").contains(dead.jti()), "the ended one is taken out");
    assert!(stored(&redis, "ada").contains(live.jti()));
    let told = |gateway: &Gateway| gateway.metric("tollgate_sessions_live", &[]) == Some(31.0);
    assert_eventually!(told(&first) && told(&second), "both tell how many live");
}

#[test]
fn it_needs_no_redis() {
    let origin = issuer();
    let sessions = format!("{SHORT}max_per_user = 2\n");
    let gateway = gateway(&with_sessions(&origin, PATIENT, &sessions), "");
    let tokens = [Token::of("ada"), Token::of("ada"), Token::of("ada"), Token::of("bob")];
    assert!(!is_in(&gateway, &tokens[0]));
    for token in &tokens {
        log_in(&gateway, token);
    }
    assert!(!is_in(&gateway, &tokens[0]), "the oldest had to go");
    assert!(tokens[1..].iter().all(|token| is_in(&gateway, token)));
    let listed = admin(&gateway, "list", &json!({"user": "ada"}));
    assert_eq!((listed["sessions"].as_array().unwrap().len(), &listed["shared"]), (2, &json!(true)));
    log_out(&gateway, &tokens[1]);
    assert!(!is_in(&gateway, &tokens[1]) && is_in(&gateway, &tokens[2]));
    let ended = admin(&gateway, "end", &json!({"user": "ada"}));
    assert_eq!(ended, json!({"ended": 1, "shared": true}));
    assert!(!is_in(&gateway, &tokens[2]));
    // Only use keeps a session, and not for ever.
    let idle = Token::of("eve");
    log_in(&gateway, &idle);
    log_in(&gateway, &tokens[3]);
    let start = unix_seconds();
    let listed = |user: &str| admin(&gateway, "list", &json!({"user": user}))["sessions"] != json!([]);
    assert_eventually!(
        {
            assert!(is_in(&gateway, &tokens[3]), "activity extends");
            !listed("eve")
        },
        "the idle one ends"
    );
    assert!(!is_in(&gateway, &idle));
    assert_eventually!(!is_in(&gateway, &tokens[3]), "the absolute maximum holds", OVER);
    assert!(unix_seconds() - start >= 3);
    assert_eq!(get_as(gateway.addr(), "/x", &tokens[3].sign()).code(), 200, "the token is good elsewhere");
    log_in(&gateway, &tokens[3]);
    assert!(is_in(&gateway, &tokens[3]), "a new login opens another");
}

#[test]
fn beyond_the_limit_per_user_the_oldest_session_ends_everywhere() {
    let (redis, origin) = (Redis::start(), issuer());
    let [first, second] = pair(&with_sessions(&origin, PATIENT, "[sessions]\nmax_per_user = 2\n"), &redis);
    let (tokens, other) = ([Token::of("ada"), Token::of("ada"), Token::of("ada")], Token::of("bob"));
    log_in(&first, &other);
    for (index, token) in tokens.iter().enumerate() {
        log_in(if index % 2 == 0 { &first } else { &second }, token);
        assert!(is_in(&second, token) && is_in(&first, token), "{index}");
    }
    for gateway in [&first, &second] {
        assert!(!is_in(gateway, &tokens[0]));
        assert!(is_in(gateway, &tokens[1]) && is_in(gateway, &tokens[2]) && is_in(gateway, &other));
        assert_eq!(get_as(gateway.addr(), "/x", &tokens[0].sign()).detail(), "Token revoked");
    }
    assert_eq!(events(&first, "evicted"), Some(1.0), "where the last login was");
    assert_eq!((events(&first, "opened"), events(&second, "opened")), (Some(3.0), Some(1.0)));
    assert!(ttl(&redis, "session:ada") <= 3_660);
    // The same token again is the same session.
    log_in(&second, &tokens[1]);
    assert!(is_in(&first, &tokens[1]) && is_in(&first, &tokens[2]));
    // All of them at once.
    let reply = first.client().post("/logout/everywhere").bearer(&tokens[1].sign()).send();
    assert!(reply.status.is_success());
    assert!(!is_in(&second, &tokens[1]) && !is_in(&second, &tokens[2]) && is_in(&second, &other));
    assert_eq!(admin(&second, "list", &json!({"user": "ada"}))["sessions"], json!([]));
}

#[test]
fn logins_of_one_user_at_the_same_time_leave_as_many_sessions_as_there_may_be() {
    let (redis, origin) = (Redis::start(), issuer());
    let gateways = pair(&with_sessions(&origin, PATIENT, "[sessions]\nmax_per_user = 3\n"), &redis);
    let tokens: Vec<Token> = (0..12).map(|_| Token::of("ada")).collect();
    concurrently(tokens.len(), |number| log_in(&gateways[number % 2], &tokens[number]));
    let listed =
        || admin(&gateways[0], "list", &json!({"user": "ada"}))["sessions"].as_array().unwrap().len();
    assert_eventually!(listed() == 3 && stored(&redis, "ada").lines().count() == 3, "three are left");
    let live = |gateway: &Gateway| tokens.iter().filter(|token| is_in(gateway, token)).count();
    assert_eventually!(live(&gateways[0]) == 3 && live(&gateways[1]) == 3, "and they are the ones that work");
    let still_good = |token: &&Token| get_as(gateways[1].addr(), "/x", &token.sign()).code() == 200;
    assert_eq!(tokens.iter().filter(still_good).count(), 3, "the tokens of the others are revoked");
}

#[test]
fn logins_while_redis_is_away_open_sessions_that_the_others_hear_of_later() {
    let (redis, origin) = (Redis::start(), issuer());
    let relay = Relay::to(redis.addr());
    let config = with_sessions(&origin, ROOMY, "[sessions]\nmax_per_user = 2\n");
    let (first, second) = (gateway(&config, &relay.redis_url()), gateway(&config, &redis.url()));
    let (before, during, elsewhere) = (Token::of("ada"), Token::of("ada"), Token::of("ada"));
    log_in(&first, &before);
    assert!(is_in(&first, &before) && is_in(&second, &before));
    relay.cut();
    assert_eventually!(
        {
            is_in(&first, &before);
            degraded(&first)
        },
        "the outage is noticed"
    );
    log_in(&first, &during);
    assert!(is_in(&first, &during) && is_in(&first, &before));
    let listed = admin(&first, "list", &json!({"user": "ada"}));
    assert_eq!((listed["sessions"].as_array().unwrap().len(), &listed["shared"]), (2, &json!(false)));
    log_in(&second, &elsewhere);
    assert!(!is_in(&second, &during), "it has not heard");
    relay.restore();
    assert!(holds_within(BACK * 5, || !degraded(&first)), "Redis is back");
    for gateway in [&first, &second] {
        assert!(is_in(gateway, &during) && is_in(gateway, &elsewhere), "both are in");
        assert_eventually!(!is_in(gateway, &before), "and the oldest, for which there is no room, is out");
    }
}

#[test]
fn a_use_that_is_written_down_late_brings_no_ended_session_back() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [first, second] = pair(&with_sessions(&origin, PATIENT, ""), &redis);
    let tokens: Vec<Token> = (0..20).map(|_| Token::of("ada")).collect();
    let old = Line::of(&tokens[0]).seen - 600_000;
    let lines: Vec<Line> =
        tokens.iter().map(|token| Line { opened: old, seen: old, ..Line::of(token) }).collect();
    write(&redis, "ada", &lines);
    // Every request has a use to write down, while the sessions are ended one by one.
    concurrently(3, |worker| match worker {
        0 => tokens.iter().for_each(|token| {
            let ended = admin(&second, "end", &json!({"user": "ada", "session": token.jti()}));
            assert!(!is_in(&second, token));
            // Where Redis was too late to confirm it, the others hear of it later.
            assert_eventually!(!is_in(&first, token) || ended["shared"] == true, "the other instance knows");
            assert!(!is_in(&first, token));
        }),
        _ => tokens.iter().rev().cycle().take(60).for_each(|token| {
            is_in(&first, token);
        }),
    });
    assert!(tokens.iter().all(|token| !is_in(&first, token)));
    assert_eventually!(stored(&redis, "ada").is_empty(), "nothing is left");
}

#[test]
fn in_a_cluster_the_sessions_of_a_user_live_with_his_other_keys() {
    let (cluster, origin) = (Cluster::start(), issuer());
    let config = with_sessions(&origin, PATIENT, "[sessions]\nmax_per_user = 1\nsweep = \"1s\"\n");
    let (first, second) = (gateway(&config, &cluster.url()), gateway(&config, &cluster.url()));
    let users = ["ada", "bob", "eve", "dan"];
    let tokens = users.map(Token::of);
    for token in &tokens {
        log_in(&first, token);
        assert!(is_in(&second, token));
    }
    let keys = cluster.keys();
    assert!(users.iter().all(|user| keys.contains(&format!("session:{{{user}}}"))), "{keys:?}");
    let again = Token::of("ada");
    log_in(&second, &again);
    assert!(!is_in(&first, &tokens[0]) && is_in(&first, &again));
    log_out(&second, &tokens[1]);
    assert!(!is_in(&first, &tokens[1]));
    assert_eq!(admin(&first, "end", &json!({"user": "eve"})), json!({"ended": 1, "shared": true}));
    assert!(!is_in(&second, &tokens[2]) && is_in(&second, &tokens[3]));
    let told = |gateway: &Gateway| gateway.metric("tollgate_sessions_live", &[]) == Some(2.0);
    assert_eventually!(told(&first) || told(&second), "the sweep goes over all nodes");
}

const COUNTED: &str = r#"
[policies.fixed]
key = "user"
limit = 5
window = "1h"
[policies.slide]
key = "user"
limit = 5
window = "1h"
algorithm = "sliding-window"
[policies.log]
key = "user"
limit = 5
window = "1h"
algorithm = "sliding-log"
[policies.bucket]
key = "user"
limit = 5
window = "100h"
algorithm = "token-bucket"
[policies.abuse]
key = "user"
limit = 1000
window = "1h"
penalise = true
[[routes]]
name = "counted"
path = "/counted/**"
upstream = "app"
auth = "required"
session = "required"
limits = ["fixed", "slide", "log", "bucket", "abuse"]
"#;

/// Eight requests without a session leave the limit of five as it was for those that have one.
fn assert_uncounted(gateway: &Gateway, inside: &Token, taken_back: impl Fn() -> bool) {
    let outside = Token::of("ada");
    let ask = |token: &Token| {
        let reply = get_as(gateway.addr(), "/counted/x", &token.sign());
        (reply.code(), if reply.code() == 401 { reply.detail() } else { String::new() })
    };
    for _ in 0..8 {
        assert_eq!(ask(&outside), (401, "Session expired".to_owned()));
    }
    assert_eventually!(taken_back(), "what they were counted is taken back");
    let codes: Vec<u16> = (0..6).map(|_| ask(inside).0).collect();
    assert_eq!(codes, [200, 200, 200, 200, 200, 429]);
    assert_eq!(ask(&outside).0, 401, "and nothing is taken back of what counts nothing");
    assert_eq!(ask(inside).0, 429);
}

#[test]
fn requests_without_a_session_use_up_no_limit_but_those_that_count_refusals() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&with_sessions(&origin, PATIENT, COUNTED), &redis.url());
    let inside = Token::of("ada");
    write(&redis, "ada", &[Line::of(&inside)]);
    let refunds = || gateway.metric("tollgate_limit_refunds_total", &[("result", "done")]);
    assert_uncounted(&gateway, &inside, || refunds() == Some(32.0));
    assert_eq!(counter(&redis, "rate_limit:fixed:ada"), Some(5));
    assert!(counter(&redis, "rate_limit:abuse:ada") >= Some(14), "refused ones count there");
}

#[test]
fn requests_without_a_session_use_up_no_limit_of_a_gateway_without_redis() {
    let origin = issuer();
    let gateway = gateway(&with_sessions(&origin, PATIENT, COUNTED), "");
    let inside = Token::of("ada");
    log_in(&gateway, &inside);
    assert_uncounted(&gateway, &inside, || true);
}

#[test]
fn a_session_that_was_used_elsewhere_is_not_taken_for_idle_when_redis_goes_away() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let refusing =
        ROUTES.replace("session = \"required\"", "session = \"required\"\nwhen_unknown = \"refuse\"");
    let config = |routes: &str| self::config(&origin, ROOMY, &format!("{SHORT}{routes}"));
    let here = gateway(&config(ROUTES), &relay.redis_url());
    let strict = gateway(&config(&refusing), &relay.redis_url());
    let there = gateway(&config(ROUTES), &redis.url());
    let token = Token::of("ada");
    let now = unix_seconds() * 1_000;
    write(&redis, "ada", &[Line { until: now + 4_000, end: now + 600_000, ..Line::of(&token) }]);
    assert!(is_in(&here, &token) && is_in(&strict, &token));
    assert_eventually!(
        {
            assert!(is_in(&there, &token));
            unix_seconds() * 1_000 > now + 5_000
        },
        "it would have ended"
    );
    relay.cut();
    for _ in 0..3 {
        assert!(is_in(&here, &token), "nobody can say that it has ended");
        assert_eq!(get_as(strict.addr(), "/inside/x", &token.sign()).code(), 503);
    }
    assert!(is_in(&there, &token));
}

/// Two gateways of at most one session per user, the first behind the relay; `ada` has logged in at the first.
fn partitioned(redis: &Redis, relay: &Relay, origin: &Origin, token: &Token) -> [Gateway; 2] {
    let config = with_sessions(origin, ROOMY, "[sessions]\nmax_per_user = 1\nidle = \"60s\"\n");
    let gateways = [gateway(&config, &relay.redis_url()), gateway(&config, &redis.url())];
    log_in(&gateways[0], token);
    assert!(gateways.iter().all(|gateway| is_in(gateway, token)));
    relay.cut();
    assert_eventually!(
        {
            is_in(&gateways[0], token);
            degraded(&gateways[0])
        },
        "the outage is noticed"
    );
    gateways
}

#[test]
fn a_session_that_was_ended_elsewhere_is_not_brought_back_by_its_use_during_a_partition() {
    let (redis, origin) = (Redis::start(), issuer());
    let relay = Relay::to(redis.addr());
    let (old, new) = (Token::of("ada"), Token::of("ada"));
    let [first, second] = partitioned(&redis, &relay, &origin, &old);
    log_in(&second, &new);
    let since = unix_seconds();
    assert_eventually!(
        {
            assert!(is_in(&first, &old), "it has not heard");
            unix_seconds() > since + 2
        },
        "its use would be written down"
    );
    relay.restore();
    assert!(holds_within(BACK * 5, || !degraded(&first)), "Redis is back");
    for gateway in [&first, &second] {
        assert!(is_in(gateway, &new) && !is_in(gateway, &old));
    }
    let stored = stored(&redis, "ada");
    assert!(stored.contains(new.jti()) && !stored.contains(old.jti()), "{stored}");
}

#[test]
fn a_login_during_a_partition_gives_way_to_later_ones() {
    let (redis, origin) = (Redis::start(), issuer());
    let relay = Relay::to(redis.addr());
    let (before, during, later) = (Token::of("ada"), Token::of("ada"), Token::of("ada"));
    let [first, second] = partitioned(&redis, &relay, &origin, &before);
    log_in(&first, &during);
    assert!(is_in(&first, &during));
    log_in(&second, &later);
    relay.restore();
    assert!(holds_within(BACK * 5, || !degraded(&first)), "Redis is back");
    for gateway in [&first, &second] {
        assert!(is_in(gateway, &later));
        assert_eventually!(!is_in(gateway, &during) && !is_in(gateway, &before), "the last login holds");
        assert_eq!(get_as(gateway.addr(), "/x", &during.sign()).detail(), "Token revoked");
    }
}

#[test]
fn the_token_of_an_evicted_session_is_revoked_even_if_nobody_hears_that_it_was() {
    let (redis, origin) = (Redis::start(), issuer());
    let relay = Relay::to(redis.addr());
    let config = with_sessions(&origin, PATIENT, "[sessions]\nmax_per_user = 1\n");
    let (first, second) = (gateway(&config, &relay.redis_url()), gateway(&config, &redis.url()));
    let (old, new) = (Token::of("ada"), Token::of("ada"));
    log_in(&first, &Token::of("warm-up"));
    write(&redis, "ada", &[Line::of(&old)]);
    relay.delay(Duration::from_millis(300));
    std::thread::scope(|scope| {
        let mut monitor = redis.monitor();
        let login = scope.spawn(|| log_in(&first, &new));
        let key = "session:ada".to_owned();
        assert_eventually!(
            {
                let mut commands = monitor.commands();
                commands.retain(|command| command.name() == "EVALSHA" && command.words.contains(&key));
                commands.len() == 2
            },
            "the second attempt, which knows what is there, is made"
        );
        relay.cut();
        login.join().unwrap();
    });
    relay.delay(Duration::ZERO);
    relay.restore();
    assert_eventually!(get_as(second.addr(), "/x", &old.sign()).code() == 401, "it is revoked all the same");
    assert_eventually!(is_in(&second, &new) && is_in(&first, &new), "the new session is there");
}

#[test]
fn a_login_that_a_late_answer_kept_from_redis_is_handed_over_although_that_has_forgotten_the_script() {
    let (redis, origin) = (Redis::start(), issuer());
    let [first, second] =
        pair(&with_sessions(&origin, &format!("{ROOMY}\nbreaker_failures = 100"), ""), &redis);
    let token = Token::of("ada");
    log_in(&first, &Token::of("warm-up"));
    let run = |words: &[&str]| redis::cmd(words[0]).arg(&words[1..]).exec(&mut redis.client()).unwrap();
    run(&["SCRIPT", "FLUSH"]);
    run(&["CLIENT", "PAUSE", "1000", "WRITE"]);
    log_in(&first, &token);
    assert!(is_in(&first, &token), "it is open here");
    assert_eventually!(stored(&redis, "ada").contains(token.jti()), "Redis gets it", BACK);
    assert!(is_in(&second, &token));
}

#[test]
fn a_node_that_has_lost_everything_gets_back_only_sessions_whose_tokens_hold_on_the_others() {
    let (cluster, origin) = (Cluster::start(), Origin::start());
    let config = with_sessions(&origin, ROOMY, "[sessions]\nidle = \"60s\"\n");
    let gateway = gateway(&config, &cluster.url());
    let users = ["ada", "bob"].map(|name| cluster.key_on(0, name));
    let tokens = [(0, "a"), (1, "b")].map(|(user, family)| {
        let key = cluster.key_on(1, &format!("blacklist:{family}"));
        Token::of(&users[user]).claim("jti", key.strip_prefix("blacklist:").unwrap())
    });
    let keys = users.each_ref().map(|user| format!("session:{{{user}}}"));
    for (key, token) in keys.iter().zip(&tokens) {
        cluster.query::<()>(key, redis::cmd("SET").arg(key).arg(Line::of(token).text()).arg("EX").arg(600));
        assert!(is_in(&gateway, token));
    }
    let since = unix_seconds();
    cluster.kill(0);
    assert_eventually!(
        {
            assert!(tokens.iter().all(|token| is_in(&gateway, token)));
            degraded(&gateway) && unix_seconds() > since + 2
        },
        "they are used without their node"
    );
    // As another instance would, whose message does not arrive.
    let revoked = format!("blacklist:{}", tokens[1].jti());
    cluster.query::<()>(&revoked, redis::cmd("SET").arg(&revoked).arg(1).arg("EX").arg(600));
    cluster.node(0).restart();
    assert!(holds_within(BACK * 10, || !degraded(&gateway)), "the node is back");
    let stored =
        |key: &str| cluster.query::<Option<String>>(key, redis::cmd("GET").arg(key)).unwrap_or_default();
    assert_eventually!(stored(&keys[0]).contains(tokens[0].jti()), "it is brought back");
    assert!(is_in(&gateway, &tokens[0]) && !is_in(&gateway, &tokens[1]));
    assert_eq!(stored(&keys[1]), "");
}
