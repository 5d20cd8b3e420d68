//! Limits on requests in flight: so many at once for each caller and instance, given back however a request ends.

use std::time::Duration;

use http::Method;

use crate::setup::{PATIENT, config, gateway, get_from};
use crate::support::client::{RawConnection, raw_status};
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Reply};
use crate::support::raw_origin::{RawOrigin, Step};
use crate::support::redis::Redis;

const ROUTE: &str = "[[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n";

fn at_once(most: u64, more: &str) -> String {
    format!("[policies.at-once]\nkey = \"ip\"\nconcurrency = {most}\n{more}{ROUTE}limits = [\"at-once\"]\n")
}

fn start(origin: &Origin, most: u64, more: &str) -> Gateway {
    gateway(&config(origin, "", &at_once(most, more)), "")
}

/// A request from `ip` that waits for its answer.
fn waiting(gateway: &Gateway, path: &str, ip: &str) -> RawConnection {
    let mut connection = RawConnection::open(gateway.addr());
    connection.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {ip}\r\n\r\n"));
    connection
}

fn idle(gateway: &Gateway) {
    assert_eventually!(
        gateway.metric("tollgate_requests_in_flight", &[]) == Some(0.0),
        "every request has ended"
    );
}

#[test]
fn so_many_requests_of_a_caller_are_in_flight_and_the_next_one_is_told_to_come_back() {
    let origin = Origin::start();
    origin.route("/hang", |_| Reply::hang_before_head());
    let gateway = start(&origin, 2, "");
    let client = gateway.client();
    let free = get_from(&client, "/x", "10.0.0.1").send();
    assert_eq!(free.header("ratelimit-policy"), Some("\"at-once\";q=2;qu=\"concurrent-requests\""));
    assert_eq!(free.header("ratelimit"), Some("\"at-once\";r=1"));
    assert_eq!(free.header("x-ratelimit-limit"), None, "nothing is counted by time");
    idle(&gateway);

    let _first = waiting(&gateway, "/hang", "10.0.0.1");
    let second = waiting(&gateway, "/hang", "10.0.0.1");
    assert_eventually!(origin.in_flight() == 2, "both are at the origin");
    let refused = get_from(&client, "/x", "10.0.0.1").send();
    assert_eq!(refused.code(), 429);
    assert_eq!(refused.detail(), "Too many requests at once. Max 2.");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.header("ratelimit"), Some("\"at-once\";r=0"));
    assert_eq!(refused.header("x-ratelimit-limit"), None);
    assert_eq!(refused.json()["violated-policies"], serde_json::json!(["at-once"]));
    assert_eq!(origin.hits(), 3);
    assert_eq!(get_from(&client, "/x", "10.0.0.2").send().code(), 200, "others are not concerned");
    let refusals = [("policy", "at-once"), ("decision", "refused")];
    assert_eq!(gateway.metric("tollgate_limit_decisions_total", &refusals), Some(1.0));

    // A client that goes away gives its place back.
    drop(second);
    assert_eventually!(get_from(&client, "/x", "10.0.0.1").send().code() == 200, "there is room again");
}

#[test]
fn places_are_given_back_after_errors_and_refusals_too() {
    let origin = Origin::start();
    let limit = "[policies.few]\nkey = \"ip\"\nlimit = 6\nwindow = \"1h\"\n";
    let rest = at_once(1, limit).replace("[\"at-once\"]", "[\"few\", \"at-once\"]");
    let gateway = gateway(&config(&origin, "", &rest), "");
    let client = gateway.client();
    origin.route("/broken", |_| Reply::close());
    origin.route("/half", |_| Reply::text(200, "0123456789").break_in_body_after(3));
    let outcome = |path: &str| {
        idle(&gateway);
        get_from(&client, path, "10.0.0.1").try_send().map_or(0, |response| response.code())
    };
    assert_eq!(outcome("/broken"), 502);
    assert_eq!(outcome("/half"), 0);
    assert_eq!((0..4).map(|_| outcome("/x")).collect::<Vec<_>>(), [200; 4]);
    idle(&gateway);
    let refused = get_from(&client, "/x", "10.0.0.1").send();
    assert_eq!((refused.code(), refused.detail().contains("Max 6 requests")), (429, true));
    idle(&gateway);
    let again = get_from(&client, "/x", "10.0.0.1").send();
    assert!(again.detail().contains("Max 6 requests"), "its place was given back: {}", again.detail());
}

#[test]
fn a_request_refused_for_its_number_uses_up_no_other_limit() {
    let (redis, origin) = (Redis::start(), Origin::start());
    origin.route("/hang", |_| Reply::hang_before_head());
    let limit = "[policies.few]\nkey = \"ip\"\nlimit = 100\nwindow = \"1h\"\n";
    let rest = at_once(1, limit).replace("[\"at-once\"]", "[\"few\", \"at-once\"]");
    let gateway = gateway(&config(&origin, PATIENT, &rest), &redis.url());
    let _held = waiting(&gateway, "/hang", "10.0.0.1");
    assert_eventually!(origin.in_flight() == 1, "it is at the origin");
    for _ in 0..10 {
        let refused = get_from(&gateway.client(), "/x", "10.0.0.1").send();
        assert_eq!((refused.code(), refused.header("x-ratelimit-remaining")), (429, None));
    }
    assert_eq!(crate::setup::counter(&redis, "rate_limit:few:10.0.0.1"), Some(1));
    assert!(!redis.keys().iter().any(|key| key.contains("at-once")), "it is this instance's alone");
}

#[test]
fn a_websocket_holds_its_place_until_it_ends() {
    let origin = RawOrigin::playing(vec![
        Step::read_head(),
        Step::send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi"),
        Step::Read(4),
        Step::Close,
    ]);
    let text = format!(
        "[server]\nlisten = \"{{listen}}\"\n[upstreams.app]\nmembers = \"{}\"\n{}",
        origin.addr(),
        at_once(1, "")
    );
    let gateway = Gateway::builder().config(&text).start();
    let handshake = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut tunnel = RawConnection::open(gateway.addr());
    tunnel.send(handshake);
    tunnel.read_until(|bytes| bytes.ends_with(b"hi"));
    for _ in 0..3 {
        assert_eq!(gateway.client().get("/x").send().code(), 429);
        std::thread::sleep(Duration::from_millis(100));
    }
    tunnel.send("done");
    tunnel.read_to_end();
    idle(&gateway);
    let mut next = RawConnection::open(gateway.addr());
    next.send(handshake);
    assert_eq!(raw_status(&next.read_until(|bytes| bytes.ends_with(b"hi"))), Some(101));
}

#[test]
fn a_shadow_of_it_counts_what_it_would_refuse_and_lets_it_pass() {
    let origin = Origin::start();
    origin.route("/hang", |_| Reply::hang_before_head());
    let gateway = start(&origin, 1, "shadow = true\n");
    let _held = waiting(&gateway, "/hang", "10.0.0.1");
    assert_eventually!(origin.in_flight() == 1, "it is at the origin");
    let passed = gateway.client().request(Method::GET, "/x").header("x-forwarded-for", "10.0.0.1").send();
    assert_eq!((passed.code(), passed.header("ratelimit-policy")), (200, None));
    let shadow = [("policy", "at-once"), ("decision", "shadow_refused")];
    assert_eq!(gateway.metric("tollgate_limit_decisions_total", &shadow), Some(1.0));
}

#[test]
fn a_request_that_another_limit_refuses_was_not_admitted_here() {
    let origin = Origin::start();
    let policies = format!(
        "[policies.at-once]\nkey = \"ip\"\nconcurrency = 5\n\
         [policies.ip]\nkey = \"ip\"\nlimit = 1\nwindow = \"1h\"\n{ROUTE}limits = [\"at-once\", \"ip\"]\n"
    );
    let gateway = gateway(&config(&origin, "", &policies), "");
    let codes: Vec<u16> =
        (0..3).map(|_| get_from(&gateway.client(), "/x", "10.0.0.1").send().code()).collect();
    assert_eq!(codes, [200, 429, 429]);
    let admitted = [("policy", "at-once"), ("decision", "admitted")];
    assert_eq!(gateway.metric("tollgate_limit_decisions_total", &admitted), Some(1.0));
}
