//! Attempts to get more than a limit allows, or to hurt others by its means: by methods, protocols, addresses, tokens,
//! subjects and claims. What agrees between instances is told in `limit_agreement`.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use http::Method;
use redis::Commands as _;
use serde_json::{Value, json};

use crate::setup::{PATIENT, ROOMY, admitted, codes, config, counter, gateway, get_from, pair};
use crate::support::client::{Client, RawConnection, Response, raw, raw_status};
use crate::support::cluster::{Cluster, slot};
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::origin::{Origin, Reply};
use crate::support::ports::free_addr;
use crate::support::raw_h2;
use crate::support::raw_origin::{RawOrigin, Step};
use crate::support::redis::Redis;
use crate::support::token::Token;
use crate::support::wait_for;

const ALGORITHMS: [&str; 5] = ["fixed-window", "sliding-window", "token-bucket", "sliding-log", "cool-down"];
const ROUTE: &str = "[[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n";

fn policy(key: &str, limit: u64, more: &str) -> String {
    format!(
        "[policies.one]\nkey = \"{key}\"\nlimit = {limit}\nwindow = \"1h\"\n{more}\n{ROUTE}auth = \"optional\"\nlimits = [\"one\"]\n"
    )
}

fn by_algorithm(algorithm: &str) -> String {
    let cool_down = "cooldown = { limit = 1, window = \"1h\", quiet = \"1h\" }";
    let more = if algorithm == "cool-down" { cool_down } else { "" };
    format!("algorithm = \"{algorithm}\"\n{more}")
}

fn with_h2c(text: &str) -> (String, std::net::SocketAddr) {
    let h2c = free_addr();
    let listen = format!("listen = [\"{{listen}}\"]\nlisten_h2c = [\"{h2c}\"]");
    (text.replace("listen = [\"{listen}\"]", &listen), h2c)
}

#[test]
fn many_tokens_of_one_user_share_that_users_limit() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateways = pair(&config(&origin, PATIENT, &policy("user", 5, "")), &redis);
    let codes: Vec<u16> = (0..20)
        .map(|number| gateways[number % 2].client().get("/x").bearer(&Token::of("ada").sign()).send().code())
        .collect();
    assert_eq!(codes, [vec![200; 5], vec![429; 15]].concat());
    let by_token = gateway(&config(&origin, PATIENT, &policy("token", 5, "")), &redis.url());
    let tokens = [Token::of("ada").sign(), Token::of("ada").sign()];
    for token in &tokens {
        let codes: Vec<u16> =
            (0..6).map(|_| by_token.client().get("/x").bearer(token).send().code()).collect();
        assert_eq!(codes, [200, 200, 200, 200, 200, 429], "a limit by token is each token's");
    }
}

#[test]
fn a_network_of_ipv6_is_one_client_and_its_length_is_the_operators_choice() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let limits = policy("ip", 3, "");
    let by_64 = gateway(&config(&origin, PATIENT, &limits), &redis.url());
    let hosts: Vec<u16> = (0..6)
        .map(|host| get_from(&by_64.client(), "/x", &format!("2001:db8:1:2::{host:x}")).send().code())
        .collect();
    assert_eq!(hosts, [200, 200, 200, 429, 429, 429]);
    for network in 10..16 {
        let ip = format!("2001:db8:1:{network:x}::1");
        assert_eq!(get_from(&by_64.client(), "/x", &ip).send().code(), 200, "another /64 is another client");
    }
    assert!(redis.keys().contains(&"rate_limit:one:2001:db8:1:2::/64".to_owned()), "{:?}", redis.keys());

    let text = config(&origin, PATIENT, &limits).replace("[server]", "[server]\nipv6_prefix = 48");
    let by_48 = gateway(&text, &redis.url());
    let networks: Vec<u16> = (0..6)
        .map(|network| get_from(&by_48.client(), "/x", &format!("2001:db8:1:{network:x}::1")).send().code())
        .collect();
    assert_eq!(networks, [200, 200, 200, 429, 429, 429]);
    for (number, ip) in
        ["::ffff:10.0.0.9", "10.0.0.9", "::FFFF:0a00:0009", "10.0.0.9:4711"].into_iter().enumerate()
    {
        let code = get_from(&by_64.client(), "/x", ip).send().code();
        assert_eq!(code, if number < 3 { 200 } else { 429 }, "{ip} is the same client");
    }
}

#[test]
fn every_method_counts() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&config(&origin, PATIENT, &policy("ip", 7, "")), &redis.url());
    let client = gateway.client();
    let methods = ["HEAD", "OPTIONS", "GET", "POST", "DELETE", "PATCH", "PROPFIND", "OPTIONS", "HEAD"];
    let codes: Vec<u16> = methods
        .iter()
        .map(|method| client.request(Method::from_bytes(method.as_bytes()).unwrap(), "/x").send().code())
        .collect();
    assert_eq!(codes, [200, 200, 200, 200, 200, 200, 200, 429, 429]);
    assert_eq!(counter(&redis, "rate_limit:one:127.0.0.1"), Some(7));
}

#[test]
fn a_thousand_streams_at_once_admit_exactly_the_limit() {
    for algorithm in ALGORITHMS {
        for with_redis in [true, false] {
            let (redis, origin) = (Redis::start(), Origin::start());
            let limits = policy("ip", 150, &by_algorithm(algorithm));
            let (text, h2c) = with_h2c(&config(&origin, PATIENT, &limits));
            let url = if with_redis { redis.url() } else { String::new() };
            let _gateway = gateway(&text, &url);
            let codes: Vec<u16> = wait_for(async move {
                let clients: Vec<Client> = (0..4).map(|_| Client::h2c(h2c)).collect();
                let sent = (0..1_000).map(|number| {
                    let request = get_from(&clients[number % 4], "/x", "10.0.0.1");
                    request.within(Duration::from_secs(60)).send_async()
                });
                let all = futures::future::join_all(sent).await;
                all.into_iter().map(|response| response.unwrap().code()).collect()
            });
            assert_eq!((admitted(&codes), codes.len()), (150, 1_000), "{algorithm}, Redis: {with_redis}");
            assert_eq!(origin.hits(), 150, "{algorithm}");
            assert!(redis.keys_without_ttl().is_empty(), "{algorithm}");
        }
    }
}

#[test]
fn a_websocket_costs_its_handshake_and_nothing_that_flows_through_it() {
    let redis = Redis::start();
    let origin = RawOrigin::playing(vec![
        Step::read_head(),
        Step::send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi"),
        Step::Read(100 * 8),
        Step::send("end"),
        Step::Close,
    ]);
    let addr = origin.addr();
    let text = format!(
        "[server]\nlisten = \"{{listen}}\"\n[redis]\nurl = \"${{REDIS_URL:-}}\"\n{PATIENT}\n[upstreams.app]\n\
         members = \"{addr}\"\n{}",
        policy("ip", 2, "")
    );
    let gateway = gateway(&text, &redis.url());
    let handshake = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    for expected in [1, 2] {
        let mut tunnel = RawConnection::open(gateway.addr());
        tunnel.send(handshake);
        tunnel.read_until(|bytes| bytes.ends_with(b"hi"));
        for _ in 0..100 {
            // A masked text frame of two bytes.
            tunnel.send([0x81, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2]);
        }
        assert!(tunnel.read_to_end().ends_with(b"end"));
        assert_eq!(counter(&redis, "rate_limit:one:127.0.0.1"), Some(expected));
    }
    let mut third = RawConnection::open(gateway.addr());
    third.send(handshake);
    assert_eq!(raw_status(&third.read_head()), Some(429), "the handshake is a request");
}

#[test]
fn a_flushed_redis_starts_each_window_anew_at_most_once_and_keeps_no_key_for_ever() {
    for algorithm in ALGORITHMS {
        let (redis, origin) = (Redis::start(), Origin::start());
        let limits = policy("ip", 20, &by_algorithm(algorithm));
        let gateways = pair(&config(&origin, PATIENT, &limits), &redis);
        let run = |requests| {
            let clients = [gateways[0].client(), gateways[1].client()];
            let codes: Vec<u16> =
                (0..requests).flat_map(|n| codes(&clients[n % 2], "/x", "10.0.0.1", 1)).collect();
            admitted(&codes)
        };
        assert_eq!(run(10), 10, "{algorithm}");
        redis.flush();
        let after = run(60);
        assert!((10..=20).contains(&after), "{algorithm}: {after} of 20 after the loss of what was counted");
        assert_eq!(run(20), 0, "{algorithm}");
        assert!(redis.keys_without_ttl().is_empty(), "{algorithm}");
        let other = codes(&gateways[0].client(), "/x", "10.0.0.2", 15);
        let rest = codes(&gateways[1].client(), "/x", "10.0.0.2", 15);
        assert_eq!((admitted(&other), admitted(&rest)), (15, 5), "{algorithm}: they count together");
    }
}

#[test]
fn hostile_multipliers_and_plans_change_nothing() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let rest = format!(
        "[limits]\nmultiplier_cap = 4\nuser_limits = true\nuser_limits_refresh = \"100ms\"\n[plans.free]\nminute = 100\n\
         [policies.plan]\nkey = \"caller\"\nplan = true\n{ROUTE}auth = \"optional\"\nlimits = [\"plan\"]\n"
    );
    let gateway = gateway(&config(&origin, PATIENT, &rest), &redis.url());
    let client = gateway.client();
    let told = |token: &Token| {
        let reply = client.get("/x").bearer(&token.sign()).send();
        assert_eq!(reply.code(), 200, "{}", reply.text());
        reply.header("x-ratelimit-limit").unwrap().parse::<u64>().unwrap()
    };
    for (number, hostile) in [
        json!(true),
        json!(false),
        json!({"$gt": 0}),
        json!([1e308]),
        json!(-1e308),
        json!(-0.0),
        json!("1e308"),
        json!("Infinity"),
        json!(""),
    ]
    .into_iter()
    .enumerate()
    {
        let token = Token::of(&format!("m{number}")).claim("rate_limit_multiplier", hostile.clone());
        assert_eq!(told(&token), 100, "{hostile}");
    }
    for (number, hostile) in
        ["\u{0}", "free\r\nx-injected: 1", "\u{1b}[31m", &"f".repeat(2_000), "*", "{free}"]
            .into_iter()
            .enumerate()
    {
        let token = Token::of(&format!("p{number}")).claim("subscription_plan", hostile).sign();
        let replies: Vec<_> = (0..101).map(|_| client.get("/x").bearer(&token).send()).collect();
        assert!(replies[..100].iter().all(|reply| reply.code() == 200), "{hostile:?}");
        assert_eq!(replies[100].code(), 429, "{hostile:?}");
        assert_eq!(replies[100].detail(), "Rate limit exceeded for free plan", "{hostile:?}");
        assert_eq!(replies[100].header("x-injected"), None);
    }
    for (number, hostile) in
        ["1e308", "inf", "-inf", "-1", "0", "nan", "true", "[9]", "\u{0}", "", &"9".repeat(10_000)]
            .into_iter()
            .enumerate()
    {
        let user = format!("r{number}");
        let fields =
            [("multiplier", hostile), ("minute", hostile), ("\r\n", hostile), ("1h", hostile), ("day", "3")];
        let () = redis.client().hset_multiple(format!("user_limits:{user}"), &fields).unwrap();
        for _ in 0..3 {
            let limit = told(&Token::of(&user));
            assert!((1..=4_000_000_000).contains(&limit), "{hostile:?}: {limit}");
            std::thread::sleep(Duration::from_millis(120));
        }
    }
    assert_eq!(client.get("/x").bearer(&Token::of("sane").sign()).send().code(), 200);
    let keys: Vec<String> =
        redis.keys_without_ttl().into_iter().filter(|key| !key.starts_with("user_limits:")).collect();
    assert_eq!(keys, Vec::<String>::new());
}

#[test]
fn limits_of_one_and_of_a_billion_hold() {
    for algorithm in ALGORITHMS {
        let most: u64 = if algorithm == "sliding-log" { 10_000 } else { 1_000_000_000 };
        let (redis, origin) = (Redis::start(), Origin::start());
        for (limit, url) in [(1, redis.url()), (1, String::new()), (most, redis.url()), (most, String::new())]
        {
            redis.flush();
            let text = config(&origin, PATIENT, &policy("ip", limit, &by_algorithm(algorithm)));
            let gateway = gateway(&text, &url);
            let client = gateway.client();
            let replies: Vec<_> = (0..4).map(|_| get_from(&client, "/x", "10.0.0.1").send()).collect();
            let codes: Vec<u16> = replies.iter().map(Response::code).collect();
            if limit == 1 {
                assert_eq!(codes, [200, 429, 429, 429], "{algorithm} {url}");
            } else {
                assert_eq!(codes, [200; 4], "{algorithm} {url}");
                assert_eq!(replies[0].header("x-ratelimit-limit"), Some(limit.to_string().as_str()));
                let left: Vec<u64> = replies
                    .iter()
                    .map(|reply| reply.header("x-ratelimit-remaining").unwrap().parse().unwrap())
                    .collect();
                let spent = left.iter().zip(1..).all(|(left, sent)| (limit - sent..limit).contains(left));
                assert!(spent, "{algorithm} {url}: {left:?}");
            }
            assert!(redis.keys_without_ttl().is_empty(), "{algorithm}");
        }
    }
}

#[test]
fn who_can_never_pay_is_refused_and_counted_nowhere() {
    for algorithm in ["fixed-window", "sliding-window", "token-bucket", "sliding-log"] {
        let (redis, origin) = (Redis::start(), Origin::start());
        let rest = format!(
            "[plans.free]\nminute = 10\n[policies.plan]\nkey = \"caller\"\nplan = true\nalgorithm = \"{algorithm}\"\n\
             [policies.ip]\nkey = \"ip\"\nlimit = 100\nwindow = \"1h\"\n\
             {ROUTE}auth = \"required\"\ncost = 4\nlimits = [\"plan\", \"ip\"]\n"
        );
        let gateway = gateway(&config(&origin, PATIENT, &rest), &redis.url());
        let poor = Token::of("poor").claim("rate_limit_multiplier", 0.3).sign();
        for _ in 0..3 {
            let reply = get_from(&gateway.client(), "/x", "10.0.0.1").bearer(&poor).send();
            assert_eq!(reply.code(), 429, "{algorithm}");
            assert_eq!(reply.header("retry-after"), Some("60"), "{algorithm}: not sooner than the window");
            assert_eq!(reply.header("x-ratelimit-limit"), Some("3"), "{algorithm}");
        }
        assert!(!redis.keys().iter().any(|key| key.starts_with("rate_limit:ip")), "{:?}", redis.keys());
        let rich = Token::of("rich").sign();
        let codes: Vec<u16> = (0..4)
            .map(|_| get_from(&gateway.client(), "/x", "10.0.0.1").bearer(&rich).send().code())
            .collect();
        assert_eq!(codes, [200, 200, 429, 429], "{algorithm}");
        assert_eq!(counter(&redis, "rate_limit:ip:10.0.0.1"), Some(8), "{algorithm}");
    }
}

fn hostile_subjects() -> Vec<String> {
    let mut subjects: Vec<String> = [
        "a:b",
        "a",
        "*",
        "{}",
        "{a}",
        "}{",
        "a}:{b",
        "{",
        "}",
        "x\r\ny",
        "x\ny",
        " ",
        "%7B",
        "{a}%",
        "\u{0}",
        "ü",
        "ada:minute",
        "{ada}:minute",
    ]
    .map(str::to_owned)
    .to_vec();
    subjects.push("k".repeat(1_500));
    subjects.push("{k}".repeat(500));
    subjects
}

#[test]
fn no_subject_chooses_its_slot_or_its_key() {
    for tags in ["on", "off"] {
        let (redis, origin) = (Redis::start(), Origin::start());
        let rest = format!(
            "[policies.user]\nkey = \"user\"\nlimit = 2\nwindow = \"1h\"\n\
             [policies.api]\nkey = [\"user\", \"header:x-k\"]\nwindows = [{{ limit = 3, window = \"60s\" }}, {{ limit = 9, window = \"1h\" }}]\n\
             [policies.caller]\nkey = \"caller\"\nalgorithm = \"token-bucket\"\nlimit = 9\nwindow = \"1h\"\n\
             {ROUTE}auth = \"required\"\nlimits = [\"user\", \"api\", \"caller\"]\n"
        );
        let redis_lines = format!("{PATIENT}\nhash_tags = \"{tags}\"");
        let gateway = gateway(&config(&origin, &redis_lines, &rest), &redis.url());
        let mut passed = 0;
        for subject in hostile_subjects() {
            let token = Token::of(&subject).sign();
            let codes: Vec<u16> = (0..3)
                .map(|_| gateway.client().get("/x").bearer(&token).header("x-k", "{v}").send().code())
                .collect();
            if codes == [401; 3] {
                continue;
            }
            assert_eq!(codes, [200, 200, 429], "{subject:?}, tags {tags}");
            passed += 1;
        }
        assert!(passed > 12, "{passed} subjects are taken at all");
        let keys: Vec<String> = redis
            .keys()
            .into_iter()
            .filter(|key| key.starts_with("rate_limit:") && key != "rate_limit:gw")
            .collect();
        let of_users = keys.iter().filter(|key| key.starts_with("rate_limit:user:")).count();
        assert_eq!(of_users, passed, "no two share a counter: {keys:?}");
        let braces = usize::from(tags == "on");
        for key in &keys {
            assert!(key.len() < 256, "{key}");
            assert!(key.chars().all(|letter| letter.is_ascii_graphic()) && !key.contains('*'), "{key:?}");
            assert_eq!(
                (key.matches('{').count(), key.matches('}').count()),
                (braces, braces),
                "only the gateway's own braces: {key}"
            );
        }
        assert!(redis.keys_without_ttl().is_empty());
        if tags == "on" {
            // What is between the braces says the slot: for each user one, and not the one the user wrote.
            let tag = |key: &str| key.split(['{', '}']).nth(1).unwrap().to_owned();
            let users: BTreeSet<String> =
                keys.iter().filter(|key| key.starts_with("rate_limit:user:")).map(|key| tag(key)).collect();
            assert_eq!(users.len(), passed);
            assert!(users.iter().filter(|user| *user == "a").count() <= 1);
            for key in keys.iter().filter(|key| key.starts_with("rate_limit:caller:")) {
                assert!(users.contains(&tag(key)), "{key} is in the slot of its user");
                assert_eq!(slot(key.as_bytes()), slot(tag(key).as_bytes()));
            }
        }
    }
}

/// A login that comes as frames, each on its own after a pause.
fn trickle(addr: std::net::SocketAddr, body: &str, piece: usize, pause: Duration) -> Option<u8> {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/login"),
        (":authority", "a"),
        ("content-type", "application/json"),
    ];
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&raw_h2::frame(4, 0, 0, &[])).unwrap();
    stream.write_all(&raw_h2::frame(1, 4, 1, &raw_h2::block(&fields))).unwrap();
    let pieces: Vec<&[u8]> = body.as_bytes().chunks(piece).collect();
    for (number, piece) in pieces.iter().enumerate() {
        let last = u8::from(number + 1 == pieces.len());
        if stream.write_all(&raw_h2::frame(0, last, 1, piece)).is_err() {
            break;
        }
        std::thread::sleep(pause);
    }
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).ok()?;
        let mut payload =
            vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).ok()?;
        match head[3] {
            1 => return payload.first().copied(),
            3 | 7 => return None,
            _ => {}
        }
    }
}

#[test]
fn an_address_in_a_body_that_trickles_in_over_h2c_counts_all_the_same() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let limits = policy("body:email", 2, "");
    let (text, h2c) = with_h2c(&config(&origin, PATIENT, &limits));
    let text = text.replace("[server]", "[server]\nbody_timeout = \"500ms\"");
    let gateway = gateway(&text, &redis.url());
    let body = json!({"email": "ada", "password": "p"}).to_string();
    // Index 8 of the static table is `:status: 200`.
    for _ in 0..2 {
        assert_eq!(trickle(h2c, &body, 3, Duration::from_millis(5)), Some(0x88));
        assert_eq!(origin.last().body, body.as_bytes());
    }
    assert_ne!(trickle(h2c, &body, 3, Duration::from_millis(5)), Some(0x88), "the third is one too many");
    assert_eq!(origin.hits(), 2);
    assert_ne!(trickle(h2c, &body, 1, Duration::from_millis(600)), Some(0x88), "too slow to be read");
    let nested = r#"{"email":{"email":"eve"},"x":{"email":"bob"}}"#;
    let deep = format!("{{\"email\":{}\"x\"{}}}", "[".repeat(4_000), "]".repeat(4_000));
    for (body, code) in [(nested, 200), (&*deep, 200), (nested, 429)] {
        let request =
            gateway.client().post("/login").header("content-type", "application/json").body(body.to_owned());
        assert_eq!(request.send().code(), code, "all that name nobody are one caller");
    }
    assert!(redis.keys_without_ttl().is_empty());
}

#[test]
fn a_compressed_or_encoded_login_names_nobody_and_counts() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&config(&origin, PATIENT, &policy("body:email", 6, "")), &redis.url());
    let body = r#"{"email":"ada"}"#;
    let send = |headers: &[(&str, &str)], body: &str| {
        let request = gateway.client().post("/").body(body.to_owned());
        headers.iter().fold(request, |request, (name, value)| request.header(name, value)).send().code()
    };
    let json = ("content-type", "application/json");
    assert_eq!(send(&[json, ("content-encoding", "br")], body), 200);
    assert_eq!(send(&[json, ("content-encoding", "identity, gzip")], body), 200);
    assert_eq!(send(&[json, json], body), 200, "which of two types is not certain");
    assert_eq!(send(&[("content-type", "application/jsonp")], body), 200);
    assert_eq!(send(&[("content-type", "multipart/form-data; boundary=a")], "--a\r\n\r\nada\r\n--a--"), 200);
    let utf16: String = format!("\u{feff}{body}");
    assert_eq!(send(&[json], &utf16), 200);
    assert_eq!(send(&[("content-type", "text/json")], body), 429);
    let keys: Vec<String> =
        redis.keys().into_iter().filter(|key| key.starts_with("rate_limit:one")).collect();
    assert_eq!(keys, ["rate_limit:one:*unreadable"]);
}

#[test]
fn however_an_address_and_its_field_are_written_it_is_the_same_person() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&config(&origin, PATIENT, &policy("body:email", 50, "")), &redis.url());
    let send = |kind: &str, body: &str| {
        let request = gateway.client().post("/").header("content-type", kind).body(body.to_owned());
        assert_eq!(request.send().code(), 200, "{body}");
        let of_limits = |key: &String| key.starts_with("rate_limit:one:");
        redis.keys().into_iter().filter(of_limits).collect::<Vec<_>>()
    };
    let (json, form) = ("application/json", "application/x-www-form-urlencoded");
    let ada = send(json, r#"{"email":"ada"}"#);
    assert!(ada.len() == 1 && ada[0].contains("sha256-"), "{ada:?}");
    for body in [
        r#"{"\u0065mail":"ada"}"#,
        r#"{"email":"\u0061d\u0061"}"#,
        r#"{"email":"\uff21DA"}"#,
        " {\n\"x\" : [{\"email\":\"eve\"}] , \"email\"\t:\r\"ada\" } ",
        r#"{"email":"ada ."}"#,
    ] {
        let keys = send(json, body);
        assert!(keys == ada || body.contains(" ."), "{body}: {keys:?}");
    }
    redis.flush();
    for body in
        ["email=ada", "%65mail=%61da", "x=1&e%6Dail=ADA", "email=%EF%BD%81da", "email=ada&", "&&email=ada"]
    {
        assert_eq!(send(form, body), ada, "{body}");
    }
    redis.flush();
    for (kind, body) in [
        (json, r#"{"email":"ada","\u0065mail":"eve"}"#),
        (form, "email=ada&%65mail=eve"),
        (form, "email=ada&email="),
        (json, r#"{"email":"\ud800"}"#),
        (json, "{\"email\":\"ada\"}{\"email\":\"eve\"}"),
        (json, "[{\"email\":\"ada\"}]"),
        (json, r#"{"email":1e999}"#),
        (json, r#"{"email":true}"#),
    ] {
        let keys = send(kind, body);
        assert!(
            keys.iter().all(|key| key.starts_with("rate_limit:one:*")),
            "nobody in particular: {body} {keys:?}"
        );
    }
    redis.flush();
    let long = json!({"email": "a".repeat(10_000)}).to_string();
    let keys = send(json, &long);
    assert!(keys.len() == 1 && keys[0].len() < 80, "{keys:?}");
}

fn doorman() -> Origin {
    let origin = Origin::start();
    origin.answer(|request| Reply::text(if request.json()["password"] == "right" { 200 } else { 401 }, ""));
    origin
}

fn guess(gateway: &Gateway, password: &str) -> u16 {
    let body = json!({"email": "ada", "password": password}).to_string();
    gateway.client().post("/login").header("content-type", "application/json").body(body).send().code()
}

#[test]
fn failures_alone_fill_a_log_and_trip_a_cool_down() {
    for algorithm in ["sliding-log", "cool-down"] {
        for with_redis in [true, false] {
            let (redis, origin) = (Redis::start(), doorman());
            let more = format!("{}\ncount = \"failures\"", by_algorithm(algorithm));
            let text = config(&origin, PATIENT, &policy("body:email", 3, &more));
            let url = if with_redis { redis.url() } else { String::new() };
            let (one, two) = (gateway(&text, &url), gateway(&text, &url));
            for _ in 0..8 {
                assert_eq!(guess(&one, "right"), 200, "{algorithm}, Redis: {with_redis}");
            }
            assert_eq!(
                [guess(&one, "x"), guess(&one, "right"), guess(&one, "x")],
                [401, 200, 401],
                "{algorithm}"
            );
            for _ in 0..4 {
                assert_eq!(guess(&one, "right"), 200, "{algorithm}, Redis: {with_redis}");
            }
            assert_eq!(
                [guess(&one, "x"), guess(&one, "x"), guess(&one, "right")],
                [401, 429, 429],
                "{algorithm}"
            );
            if with_redis {
                assert_eq!(guess(&two, "right"), 429, "{algorithm}");
            }
            assert!(redis.keys_without_ttl().is_empty());
        }
    }
}

#[test]
fn who_hangs_up_before_the_answer_has_guessed_all_the_same() {
    for with_redis in [true, false] {
        let (redis, origin) = (Redis::start(), Origin::start());
        origin.answer(|_| Reply::text(401, "").after(Duration::from_millis(400)));
        let limits = policy("body:email", 4, "count = \"failures\"");
        let (text, h2c) = with_h2c(&config(&origin, PATIENT, &limits));
        let gateway = gateway(&text, &if with_redis { redis.url() } else { String::new() });
        let body = r#"{"email":"ada","password":"x"}"#;
        for number in 1..=2 {
            let mut connection = RawConnection::open(gateway.addr());
            connection.send(format!(
                "POST /login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
            assert_eventually!(origin.hits() == number, "the guess reaches the upstream");
            drop(connection);
        }
        for number in 3..=4 {
            let mut stream = TcpStream::connect(h2c).unwrap();
            let fields = [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", "/login"),
                (":authority", "a"),
                ("content-type", "application/json"),
            ];
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
            stream.write_all(&raw_h2::frame(4, 0, 0, &[])).unwrap();
            stream.write_all(&raw_h2::frame(1, 4, 1, &raw_h2::block(&fields))).unwrap();
            stream.write_all(&raw_h2::frame(0, 1, 1, body.as_bytes())).unwrap();
            assert_eventually!(origin.hits() == number, "the guess reaches the upstream");
            // RST_STREAM with CANCEL.
            stream.write_all(&raw_h2::frame(3, 0, 1, &8_u32.to_be_bytes())).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eventually!(origin.in_flight() == 0, "nothing is under way any more");
        std::thread::sleep(Duration::from_millis(600));
        assert_eq!(guess(&gateway, "right"), 429, "four guesses were made, Redis: {with_redis}");
    }
}

#[test]
fn hostile_quota_calls_of_operators_are_refused_and_create_nothing() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let rest = policy("caller", 5, "");
    let gateway = gateway(&config(&origin, PATIENT, &rest), &redis.url());
    let call = |call: &str, body: String| {
        let request = gateway.admin().post(&format!("/api/v1/quota/{call}")).bearer(ADMIN_TOKEN);
        request.header("content-type", "application/json").body(body).send().code()
    };
    assert_eq!(gateway.client().get("/x").send().code(), 200);
    let before = redis.keys();
    let deep = format!("{}1{}", "[".repeat(50_000), "]".repeat(50_000));
    for name in ["read", "reset", "grant"] {
        for body in [
            String::new(),
            "null".into(),
            "[]".into(),
            "{}".into(),
            "{\"user\":".into(),
            deep.clone(),
            json!({"user": "a\r\nb"}).to_string(),
            json!({"user": "\u{0}"}).to_string(),
            json!({"user": ""}).to_string(),
            json!({"user": 7}).to_string(),
            json!({"user": ["ada"]}).to_string(),
            json!({"user": "u".repeat(1 << 20)}).to_string(),
            json!({"ip": "not-an-address"}).to_string(),
            json!({"ip": "10.0.0.1/8"}).to_string(),
            json!({"user": "ada", "requests": -1}).to_string(),
            json!({"user": "ada", "requests": 1.5}).to_string(),
            json!({"user": "ada", "requests": "9"}).to_string(),
            json!({"user": "ada", "surprise": 1}).to_string(),
            json!({"policy": "one"}).to_string(),
            json!({"values": {"header:x\r\n": "v"}}).to_string(),
            r#"{"user":"ada","user":"eve"}"#.into(),
        ] {
            let code = call(name, body.clone());
            assert!((400..=431).contains(&code), "{name} {body:.80}: {code}");
        }
    }
    for user in ["*", "{}", "a:b", "..", "' OR 1=1", "${jndi:x}", "ü"] {
        for name in ["read", "reset"] {
            assert_eq!(call(name, json!({"user": user}).to_string()), 200, "{name} {user}");
        }
        let huge = json!({"user": user, "requests": u64::MAX}).to_string();
        let code = call("grant", huge);
        assert!(matches!(code, 200 | 400), "{user}: {code}");
    }
    assert_eq!(redis.keys(), before, "nothing appears and nothing of others goes");
    assert_eq!(counter(&redis, "rate_limit:one:ip:127.0.0.1"), Some(1));
    assert_eq!(call("grant", json!({"ip": "127.0.0.1", "requests": u64::MAX}).to_string()) / 100, 2);
    assert_eq!(admitted(&codes(&gateway.client(), "/x", "127.0.0.1", 9)), 5, "never more than the limit");
    assert!(redis.keys_without_ttl().is_empty());
}

fn used(body: &Value) -> Option<u64> {
    body["counters"][0]["used"].as_u64()
}

#[test]
fn the_quota_is_read_by_its_path_alone_and_tells_nobody_elses() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let rest = policy("caller", 5, "");
    let (text, h2c) = with_h2c(&config(&origin, PATIENT, &rest));
    let gateway = gateway(&text, &redis.url());
    let client = gateway.client();
    let ada = Token::of("ada").sign();
    assert_eq!(client.get("/x").bearer(&ada).send().code(), 200);
    origin.clear();
    let quota = || client.get("/_tollgate/quota");
    for host in ["localhost", "evil.example", "127.0.0.1:1", "[::1]", "xn--nxasmq6b.example"] {
        let reply = quota().host(host).bearer(&ada).send();
        assert_eq!((reply.code(), used(&reply.json())), (200, Some(1)), "{host}");
        assert_eq!(reply.header("cache-control"), Some("no-store"));
    }
    for host in ["a,b", "a/b", "a b", "user@a"] {
        assert_eq!(quota().host(host).bearer(&ada).send().code(), 400, "{host}");
    }
    assert_eq!(used(&quota().send().json()), Some(0), "without a token it is the address");
    for query in ["?access_token=x", "?token=x", "?user=ada", "?jwt=x"] {
        let query = query.replace("=x", &format!("={ada}"));
        let reply = client.get(&format!("/_tollgate/quota{query}")).send();
        assert_eq!((reply.code(), used(&reply.json())), (200, Some(0)), "a query is no credential");
    }
    for (name, value) in [("x-user-id", "ada"), ("x-forwarded-user", "ada"), ("x-original-url", "/x")] {
        assert_eq!(used(&quota().header(name, value).send().json()), Some(0), "{name}");
    }
    let head = client.request(Method::HEAD, "/_tollgate/quota").bearer(&ada).send();
    assert_eq!((head.code(), head.body.len()), (200, 0));
    let with_body = quota().bearer(&ada).body("x".repeat(1_000)).send();
    assert_eq!(with_body.code(), 200);
    assert_eq!(used(&quota().bearer(&ada).send().json()), Some(1), "the connection is in step");
    let smuggled = raw(
        gateway.addr(),
        "GET /_tollgate/quota HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /GET /x HTTP/1.1\r\nHost: a\r\n\
         Connection: close\r\n\r\n",
    );
    let answers = String::from_utf8_lossy(&smuggled).matches("HTTP/1.1 ").count();
    assert!(answers <= 2, "{}", String::from_utf8_lossy(&smuggled));
    let over_h2 = Client::h2c(h2c).get("/_tollgate/quota").bearer(&ada).send();
    assert_eq!(used(&over_h2.json()), Some(1));
    origin.clear();
    for (path, own) in [
        ("//_tollgate/quota", true),
        ("/_tollgate/./quota", true),
        ("/x/../_tollgate/quota", true),
        ("/_tollgate/%71uota", true),
        ("/_tollgate/quota/", false),
        ("/_TOLLGATE/quota", false),
    ] {
        let reply = client.get(path).bearer(&ada).send();
        let told = reply.header("cache-control") == Some("no-store");
        if own {
            assert!(told || reply.code() == 400, "{path}: {}", reply.code());
        } else {
            assert!(!told, "{path}");
        }
    }
    let code = client.request(Method::DELETE, "/_tollgate/quota").send().code();
    assert_eq!(code, 405);
    assert!(origin.received().iter().all(|seen| !seen.path.ends_with("/_tollgate/quota")), "nothing went on");
}

#[test]
fn the_quota_is_told_from_memory_while_redis_is_away() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&config(&origin, ROOMY, &policy("caller", 5, "")), &redis.url());
    assert_eq!(codes(&gateway.client(), "/x", "127.0.0.1", 2), [200; 2]);
    redis.kill();
    for _ in 0..10 {
        let reply = gateway.client().get("/_tollgate/quota").send();
        assert_eq!(reply.code(), 200);
        assert_eq!((used(&reply.json()), &reply.json()["shared"]), (Some(2), &json!(false)));
        assert!(reply.took < Duration::from_secs(1), "{:?}", reply.took);
    }
    redis.restart();
    // An address may read its quota only so often, which polling would use up.
    let mut addresses = (0_u32..).map(|number| std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string());
    let mut shared = || {
        let address = addresses.next().unwrap_or_default();
        get_from(&gateway.client(), "/_tollgate/quota", &address).send().json()["shared"] == true
    };
    assert_eventually!(shared(), "it is shared again");
}

#[test]
fn the_quota_is_told_reset_and_granted_in_a_cluster() {
    for algorithm in ALGORITHMS {
        let (cluster, origin) = (Cluster::start(), Origin::start());
        let text = config(&origin, PATIENT, &policy("caller", 5, &by_algorithm(algorithm)));
        let gateways = [gateway(&text, &cluster.url()), gateway(&text, &cluster.url())];
        let operate = |name: &str, body: Value| {
            let path = format!("/api/v1/quota/{name}");
            let reply = gateways[0].admin().post(&path).bearer(ADMIN_TOKEN).json(&body).send();
            assert_eq!(reply.code(), 200, "{algorithm}: {}", reply.text());
            reply.json()
        };
        for user in ["ada", "bob", "eve", "dan"] {
            let token = Token::of(user).sign();
            let get = |number: usize| gateways[number % 2].client().get("/x").bearer(&token).send().code();
            let own = |number: usize| {
                let reply = gateways[number % 2].client().get("/_tollgate/quota").bearer(&token).send();
                assert_eq!(reply.json()["shared"], true, "{algorithm}");
                used(&reply.json())
            };
            assert_eq!([get(0), get(1), get(0)], [200; 3], "{algorithm} {user}");
            assert_eq!([own(0), own(1)], [Some(3); 2], "{algorithm} {user}");
            operate("grant", json!({"user": user, "requests": 2}));
            assert_eq!([own(0), own(1)], [Some(1); 2], "{algorithm} {user}");
            assert_eq!(
                [get(0), get(1), get(0), get(1), get(0)],
                [200, 200, 200, 200, 429],
                "{algorithm} {user}"
            );
            let told = operate("reset", json!({"user": user}));
            assert_eq!((used(&told), &told["shared"]), (Some(0), &json!(true)), "{algorithm} {told}");
            assert_eventually!(get(1) == 200, "the other instance admits again");
            assert_eq!(used(&operate("read", json!({"user": user}))), Some(1), "{algorithm} {user}");
        }
    }
}
