//! The kit tried out on itself: if one of these fails, no other test means anything.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{Client, RawConnection, SendError, raw, raw_status};
use crate::support::concurrently;
use crate::support::load::Load;
use crate::support::origin::{Origin, Reply};
use crate::support::raw_origin::{DeafOrigin, RawOrigin, Step};
use crate::support::redis::Redis;
use crate::support::relay::Relay;

/// Long enough for anything that is going to happen on loopback, short enough to wait for what must not happen.
const A_MOMENT: Duration = Duration::from_millis(200);

fn ping(connection: &mut TcpStream) -> std::io::Result<String> {
    connection.set_read_timeout(Some(A_MOMENT))?;
    connection.write_all(b"*1\r\n$4\r\nPING\r\n")?;
    let mut reply = [0; 7];
    connection.read_exact(&mut reply)?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

#[test]
fn redis_answers_and_its_immortal_keys_are_found() {
    let redis = Redis::start();
    let mut client = redis.client();
    redis::cmd("SET").arg("mortal").arg(1).arg("EX").arg(60).exec(&mut client).unwrap();
    assert!(redis.keys_without_ttl().is_empty());
    redis::cmd("SET").arg("immortal").arg(1).exec(&mut client).unwrap();
    assert_eq!(redis.keys_without_ttl(), ["immortal"]);
    assert_eq!(redis.keys(), ["immortal", "mortal"]);
    redis.flush();
    assert!(redis.keys().is_empty());
}

#[test]
fn a_paused_redis_is_silent_and_goes_on_when_resumed() {
    let redis = Redis::start();
    let mut connection = TcpStream::connect(redis.addr()).unwrap();
    assert_eq!(ping(&mut connection).unwrap(), "+PONG\r\n");
    redis.pause();
    assert!(ping(&mut connection).is_err());
    assert!(TcpStream::connect(redis.addr()).is_ok(), "the kernel still accepts");
    redis.resume();
    connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut reply = [0; 7];
    connection.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"+PONG\r\n");
}

#[test]
fn a_killed_redis_refuses_and_comes_back_empty_on_the_same_port() {
    let redis = Redis::start();
    redis::cmd("SET").arg("a").arg(1).exec(&mut redis.client()).unwrap();
    redis.kill();
    assert!(TcpStream::connect(redis.addr()).is_err());
    redis.restart();
    assert!(redis.keys().is_empty());
    redis.pause();
    redis.restart();
    assert!(redis.keys().is_empty(), "a paused server is replaced too");
}

#[test]
fn the_monitor_sees_every_command_and_tells_those_of_scripts() {
    let redis = Redis::start();
    let mut client = redis.client();
    let mut monitor = redis.monitor();
    redis::cmd("EVAL").arg("return redis.call('INCR', KEYS[1])").arg(1).arg("n").exec(&mut client).unwrap();
    redis::pipe().cmd("GET").arg("n").cmd("get").arg("m \"x\"").exec(&mut client).unwrap();
    let names: Vec<_> = monitor.commands().iter().map(|executed| executed.name().to_owned()).collect();
    assert_eq!(names[names.len() - 4..], ["EVAL", "INCR", "GET", "GET"]);
    let requests = monitor.requests();
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[2].words, ["GET", "m \"x\""]);
    monitor.clear();
    assert!(monitor.requests().is_empty());
}

#[test]
fn a_relay_passes_cuts_and_passes_again() {
    let redis = Redis::start();
    let relay = Relay::to(redis.addr());
    let mut connection = TcpStream::connect(relay.addr()).unwrap();
    assert_eq!(ping(&mut connection).unwrap(), "+PONG\r\n");
    relay.cut();
    assert!(ping(&mut connection).is_err());
    assert!(TcpStream::connect(relay.addr()).is_err());
    relay.restore();
    let mut connection = TcpStream::connect(relay.addr()).unwrap();
    assert_eq!(ping(&mut connection).unwrap(), "+PONG\r\n");
}

#[test]
fn a_black_hole_swallows_old_and_new_connections() {
    let redis = Redis::start();
    let relay = Relay::to(redis.addr());
    let mut old = TcpStream::connect(relay.addr()).unwrap();
    assert_eq!(ping(&mut old).unwrap(), "+PONG\r\n");
    relay.black_hole();
    let mut new = TcpStream::connect(relay.addr()).unwrap();
    for connection in [&mut old, &mut new] {
        let error = ping(connection).unwrap_err();
        assert!(
            matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
            "silence, not an end: {error}"
        );
    }
    relay.restore_for_new_connections();
    let mut fresh = TcpStream::connect(relay.addr()).unwrap();
    assert_eq!(ping(&mut fresh).unwrap(), "+PONG\r\n");
    assert!(ping(&mut old).is_err(), "what was black-holed stays so");
    relay.restore();
    assert!(matches!(old.read(&mut [0; 16]), Ok(0) | Err(_)), "and is closed by a full restore");
    let mut fresh = TcpStream::connect(relay.addr()).unwrap();
    assert_eq!(ping(&mut fresh).unwrap(), "+PONG\r\n");
}

#[test]
fn a_relay_counts_commands_and_exchanges() {
    let redis = Redis::start();
    let relay = Relay::to(redis.addr());
    let mut client = redis::Client::open(relay.redis_url()).unwrap().get_connection().unwrap();
    redis::cmd("PING").exec(&mut client).unwrap();
    relay.take_traffic();
    redis::pipe()
        .cmd("GET")
        .arg("a")
        .cmd("INCR")
        .arg("b")
        .cmd("EXPIRE")
        .arg("b")
        .arg(9)
        .exec(&mut client)
        .unwrap();
    redis::cmd("get").arg("c").exec(&mut client).unwrap();
    let traffic = relay.traffic();
    assert_eq!(traffic.exchanges, 2);
    assert_eq!(
        traffic.commands,
        [vec!["GET", "a"], vec!["INCR", "b"], vec!["EXPIRE", "b", "9"], vec!["GET", "c"]]
    );
    assert!(traffic.bytes_to_server > 0 && traffic.bytes_to_client > 0);
}

#[test]
fn a_relay_delays_each_round_trip() {
    let redis = Redis::start();
    let relay = Relay::to(redis.addr());
    let mut client = redis::Client::open(relay.redis_url()).unwrap().get_connection().unwrap();
    relay.delay(A_MOMENT);
    let start = Instant::now();
    redis::cmd("PING").exec(&mut client).unwrap();
    assert!(start.elapsed() >= A_MOMENT);
}

#[test]
fn the_origin_echoes_and_remembers() {
    let origin = Origin::start();
    for (client, version) in
        [(Client::new(origin.addr()), "HTTP/1.1"), (Client::h2c(origin.addr()), "HTTP/2.0")]
    {
        origin.clear();
        let response =
            client.post("/a/b?x=1&x=2").header("x-one", "1").header("x-one", "2").body("hello").send();
        assert_eq!(response.code(), 200);
        let echo = response.json();
        assert_eq!(echo["method"], "POST");
        assert_eq!(echo["path"], "/a/b");
        assert_eq!(echo["query"], "x=1&x=2");
        assert_eq!(echo["version"], version);
        assert_eq!(echo["headers"]["x-one"], json!(["1", "2"]));
        assert_eq!(echo["body_bytes"], 5);
        assert_eq!(echo["body_sha256"], "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert_eq!(origin.hits(), 1);
        assert_eq!(&origin.last().body[..], b"hello");
        client.get("/").send();
        assert_eq!(origin.received()[0].connection, origin.received()[1].connection, "kept alive");
    }
    assert_eq!(origin.connections(), 2);
}

#[test]
fn the_origin_answers_what_the_test_wants() {
    let origin = Origin::start();
    origin.route("/teapot", |_| Reply::text(418, "short and stout").header("set-cookie", "a=1"));
    origin.answer(|request| Reply::new(200, request.path.clone()).chunked());
    let client = Client::new(origin.addr());
    let response = client.get("/teapot").send();
    assert_eq!((response.code(), response.text().as_str()), (418, "short and stout"));
    assert_eq!(response.header("content-length"), Some("15"));
    assert_eq!(response.header_all("set-cookie"), ["a=1"]);
    let response = client.get("/other").send();
    assert_eq!(response.text(), "/other");
    assert_eq!(response.header("transfer-encoding"), Some("chunked"));
}

#[test]
fn the_origin_fails_in_every_way() {
    let origin = Origin::start();
    origin.route("/hang", |_| Reply::hang_before_head());
    origin.route("/hang-in-body", |_| Reply::text(200, "0123456789").hang_in_body_after(4));
    origin.route("/close", |_| Reply::close());
    origin.route("/break", |_| Reply::text(200, "0123456789").break_in_body_after(4));
    origin.route("/slow", |_| Reply::text(200, "0123456789").trickle(4, Duration::from_millis(50)));
    for client in [Client::new, Client::h2c] {
        let get = |path: &str| client(origin.addr()).get(path);
        assert!(matches!(get("/hang").within(A_MOMENT).try_send(), Err(SendError::TimedOut(_))));
        assert!(matches!(get("/hang-in-body").within(A_MOMENT).try_send(), Err(SendError::TimedOut(_))));
        assert!(matches!(get("/close").try_send(), Err(SendError::Exchange(_))));
        assert!(matches!(get("/break").try_send(), Err(SendError::Body(..))));
        let slow = get("/slow").send();
        assert_eq!(slow.text(), "0123456789");
        assert!(slow.took >= Duration::from_millis(100));
    }
    assert_eventually!(origin.in_flight() == 0, "abandoned requests end");
    origin.stop();
    assert!(matches!(Client::new(origin.addr()).get("/").try_send(), Err(SendError::Connect(_))));
    origin.resume();
    assert_eq!(Client::new(origin.addr()).get("/").send().code(), 200);
}

#[test]
fn the_raw_origin_records_exact_bytes_and_plays_scripted_ones() {
    let origin = RawOrigin::playing(vec![
        Step::read_head(),
        Step::send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        Step::Read(3),
        Step::Close,
    ]);
    let request = b"GET  /\x01 HTTP/9.9\r\nA : b\r\n\r\n";
    let mut connection = RawConnection::open(origin.addr());
    connection.send(request);
    assert!(connection.read_head().starts_with(b"HTTP/1.1 200"));
    connection.send("xyz");
    connection.read_to_end();
    assert_eq!(origin.bytes(), [&request[..], b"xyz"].concat());

    let reset = RawOrigin::playing(vec![Step::read_head(), Step::Reset]);
    assert!(raw(reset.addr(), "GET / HTTP/1.1\r\n\r\n").is_empty());
    let plain = RawOrigin::ok();
    assert_eq!(raw_status(&raw(plain.addr(), "GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n")), Some(200));
    assert_eq!(plain.connections().len(), 1);
}

#[test]
fn nobody_gets_through_to_the_deaf_origin() {
    let origin = DeafOrigin::start();
    let error = TcpStream::connect_timeout(&origin.addr(), A_MOMENT).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn concurrent_work_keeps_its_order() {
    assert_eq!(concurrently(8, |number| number * 2), [0, 2, 4, 6, 8, 10, 12, 14]);
}

#[test]
fn a_load_goes_on_until_stopped_and_tells_every_outcome() {
    let origin = Origin::start();
    origin.route("/no", |_| Reply::text(429, "no"));
    let addr = origin.addr();
    let load = Load::start(4, addr, |client, number| {
        client.get(if number % 2 == 0 { "/yes" } else { "/no" }).within(Duration::from_secs(5))
    });
    load.wait_for_more(40);
    let outcomes = load.stop();
    assert!(outcomes.len() >= 40);
    assert!(outcomes.iter().any(|outcome| outcome.code == Some(200)));
    assert!(outcomes.iter().any(|outcome| outcome.code == Some(429)));
    assert!(outcomes.iter().all(|outcome| outcome.failure.is_none()));
    assert_eq!(outcomes.len(), origin.hits(), "nothing is under way any more");
}
