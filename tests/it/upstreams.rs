//! Upstreams that are many, dead, slow, broken or back again: what the client is told, in what time, and that nobody
//! else notices.

use std::time::{Duration, Instant};

use crate::support::client::{Client, RawConnection, Response, SendError, raw, raw_status};
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Reply};
use crate::support::ports::free_addr;
use crate::support::raw_origin::{DeafOrigin, RawOrigin, Step};
use crate::support::strict_origin::StrictOrigin;

/// Timeouts of a second are set where something hangs; nothing may take much longer, however loaded the machine.
const BOUND: Duration = Duration::from_secs(6);

/// For upstreams that hang once they are connected.
const BRIEF: &str = "connect_timeout = \"10s\"\nread_timeout = \"1s\"\nwrite_timeout = \"1s\"\n";
/// For those that nobody gets through to.
const DEAF: &str = "connect_timeout = \"500ms\"\n";

/// In front of upstreams that answer or are not there: nobody is given up.
fn start(members: &str) -> Gateway {
    start_with(members, "connect_timeout = \"10s\"\n")
}

fn start_with(members: &str, more: &str) -> Gateway {
    let config = format!(
        r#"
        [upstreams.app]
        members = "{members}"
        {more}
        [[routes]]
        name = "all"
        path = "/**"
        upstream = "app"
        "#
    );
    Gateway::builder().config(&config).start()
}

fn members<const N: usize>(addresses: [std::net::SocketAddr; N]) -> String {
    addresses.map(|addr| addr.to_string()).join(",")
}

/// A problem of this status, in time, with a request id and a line for the operator that carries the same id.
fn assert_failed(gateway: &Gateway, got: &Response, status: u16) {
    assert_eq!(got.code(), status, "{got:?}");
    assert!(got.took < BOUND, "{:?}", got.took);
    assert_eq!(got.json()["status"], status);
    assert!(!got.detail().is_empty());
    assert_eq!(got.header("server"), None);
    let id = got.header("x-request-id").expect("a request id").to_owned();
    assert_eventually!(
        gateway.logs().lines().any(|line| line.contains(&id) && line.contains("no answer from the upstream")),
        "the operator is told"
    );
}

#[test]
fn members_take_turns() {
    let origins = [Origin::start(), Origin::start(), Origin::start()];
    let gateway = start(&members([origins[0].addr(), origins[1].addr(), origins[2].addr()]));
    for _ in 0..30 {
        assert_eq!(gateway.client().get("/").send().code(), 200);
    }
    assert!(origins.iter().all(|origin| origin.hits() == 10), "{:?}", origins.map(|origin| origin.hits()));
}

#[test]
fn a_dead_member_costs_no_request_whatever_its_method_and_is_used_again_when_back() {
    let (good, bad) = (Origin::start(), Origin::start());
    let gateway = start(&members([good.addr(), bad.addr()]));
    bad.stop();
    for number in 0..20 {
        let client = gateway.client();
        let request = if number % 2 == 0 { client.get("/") } else { client.post("/").body("once") };
        assert_eq!(request.send().code(), 200);
    }
    assert_eq!(good.hits(), 20);
    assert!(
        good.received()
            .iter()
            .filter(|request| request.method == "POST")
            .all(|request| &request.body[..] == b"once")
    );
    bad.resume();
    assert_eventually!(
        {
            assert_eq!(gateway.client().get("/").send().code(), 200);
            bad.hits() > 0
        },
        "a returning member is used again"
    );
}

#[test]
fn without_any_living_member_it_is_a_bad_gateway_and_other_upstreams_do_not_notice() {
    let (good, dead) = (Origin::start(), [free_addr(), free_addr()]);
    let config = format!(
        "[upstreams.app]\nmembers = \"{}\"\n[upstreams.other]\nmembers = \"{}\"\n\
         [[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n\
         [[routes]]\nname = \"other\"\npath = \"/other\"\nupstream = \"other\"\n",
        members(dead),
        good.addr()
    );
    let gateway = Gateway::builder().config(&config).start();
    for _ in 0..5 {
        assert_failed(&gateway, &gateway.client().get("/").send(), 502);
        assert_failed(&gateway, &gateway.client().post("/").body("x").send(), 502);
        assert_eq!(gateway.client().get("/other").send().code(), 200);
    }
    let errors =
        gateway.metric("tollgate_upstream_errors_total", &[("upstream", "app"), ("kind", "connect")]);
    assert!(errors.is_some_and(|errors| errors >= 10.0), "{errors:?}");
}

#[test]
fn an_upstream_whose_name_is_unknown_is_unavailable() {
    let gateway = start("no-such-name.invalid:80");
    let got = gateway.client().get("/").send();
    assert_failed(&gateway, &got, 503);
    assert_eq!(got.header("retry-after"), Some("1"));
}

#[test]
fn an_upstream_that_hangs_is_given_up_in_time() {
    // At connect: one attempt and one retry where there is another.
    let deaf = DeafOrigin::start();
    let gateway = start_with(&deaf.addr().to_string(), DEAF);
    assert_failed(&gateway, &gateway.client().get("/").send(), 504);

    let origin = Origin::start();
    origin.route("/head", |_| Reply::hang_before_head());
    origin.route("/body", |_| Reply::text(200, "0123456789").hang_in_body_after(4));
    origin.route("/chunked", |_| Reply::text(200, "0123456789").chunked().hang_in_body_after(4));
    let gateway = start_with(&origin.addr().to_string(), BRIEF);
    assert_failed(&gateway, &gateway.client().get("/head").send(), 504);
    assert_failed(&gateway, &gateway.client().post("/head").body("x").send(), 504);
    // With the head gone, breaking off is the only way to say it.
    for path in ["/body", "/chunked"] {
        let started = Instant::now();
        let error = gateway.client().get(path).try_send().unwrap_err();
        assert!(matches!(error, SendError::Body(..)), "{path}: {error}");
        assert!(started.elapsed() < BOUND);
    }
    assert_eq!(gateway.client().get("/").send().code(), 200);
    assert_eventually!(origin.in_flight() == 0, "what was given up is not held open");
}

#[test]
fn a_deaf_member_is_passed_over_for_one_that_hears() {
    let (deaf, good) = (DeafOrigin::start(), Origin::start());
    let gateway = start_with(&members([deaf.addr(), good.addr()]), DEAF);
    for _ in 0..6 {
        let got = gateway.client().post("/").body("x").send();
        assert_eq!(got.code(), 200);
        assert!(got.took < BOUND);
    }
    assert_eq!(good.hits(), 6);
}

#[test]
fn an_upstream_that_breaks_the_protocol_is_a_bad_gateway() {
    let scripts: [(&str, Vec<Step>); 12] = [
        ("closes", vec![Step::read_head(), Step::Close]),
        ("resets", vec![Step::read_head(), Step::Reset]),
        ("talks garbage", vec![Step::read_head(), Step::send("\x16\x03\x01 nonsense\r\n\r\n"), Step::Close]),
        ("speaks SSH", vec![Step::read_head(), Step::send("SSH-2.0-x\r\n\r\n"), Step::Close]),
        (
            "breaks off in the head",
            vec![Step::read_head(), Step::send("HTTP/1.1 200 OK\r\nX-A"), Step::Close],
        ),
        ("breaks off in the status", vec![Step::read_head(), Step::send("HTTP/1."), Step::Close]),
        (
            "has a status of no number",
            vec![Step::read_head(), Step::send("HTTP/1.1 abc OK\r\n\r\n"), Step::Close],
        ),
        (
            "has a status of four digits",
            vec![Step::read_head(), Step::send("HTTP/1.1 2000 OK\r\n\r\n"), Step::Close],
        ),
        (
            "has two lengths",
            vec![
                Step::read_head(),
                Step::send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
                Step::Close,
            ],
        ),
        (
            "has no length but letters",
            vec![
                Step::read_head(),
                Step::send("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nab"),
                Step::Close,
            ],
        ),
        (
            "has NUL in a name",
            vec![
                Step::read_head(),
                Step::send("HTTP/1.1 200 OK\r\nX\0A: 1\r\nContent-Length: 0\r\n\r\n"),
                Step::Close,
            ],
        ),
        (
            "switches unasked",
            vec![
                Step::read_head(),
                Step::send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
                Step::Close,
            ],
        ),
    ];
    for (what, script) in scripts {
        let origin = RawOrigin::playing(script);
        let gateway = start(&origin.addr().to_string());
        let got = raw(
            gateway.addr(),
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
        let text = String::from_utf8_lossy(&got);
        assert_eq!(raw_status(&got), Some(502), "an upstream that {what}: {text}");
        assert!(text.contains("application/problem+json"), "{what}: {text}");
    }
}

#[test]
fn a_truncated_response_is_never_passed_off_as_a_whole_one() {
    for head in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let origin = RawOrigin::playing(vec![
            Step::read_head(),
            Step::send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n4\r\nabc\n")),
            Step::Close,
        ]);
        let gateway = start(&origin.addr().to_string());
        let got = gateway.client().get("/").try_send();
        assert!(matches!(got, Err(SendError::Body(..))) || got.is_ok_and(|got| got.code() == 502), "{head}");
    }
}

#[test]
fn what_an_upstream_answers_badly_but_clearly_is_passed_on() {
    let origin = Origin::start();
    for status in [400, 404, 500, 503] {
        origin.answer(move |_| Reply::text(status, "mine"));
        let gateway = start(&origin.addr().to_string());
        let got = gateway.client().get("/").send();
        assert_eq!((got.code(), got.text().as_str()), (status, "mine"));
    }
    assert_eq!(origin.hits(), 4, "an answer is never asked for twice");
}

#[test]
fn a_stale_connection_is_retried_for_idempotent_requests_and_for_no_others_twice() {
    // Each connection answers one request, keeps the second, and closes.
    let origin = RawOrigin::playing(vec![
        Step::read_head(),
        Step::send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        Step::read_head(),
        Step::Close,
    ]);
    let gateway = start(&origin.addr().to_string());
    for _ in 0..6 {
        assert_eq!(gateway.client().get("/").send().code(), 200);
    }
    let before = origin.text().matches("POST /once ").count();
    assert_eq!(before, 0);
    let got = gateway.client().post("/once").send();
    assert!(matches!(got.code(), 200 | 502), "{got:?}");
    assert_eq!(
        origin.text().matches("POST /once ").count(),
        1,
        "a request that may have had an effect is sent once"
    );
}

#[test]
fn a_body_that_is_sent_again_counts_once_towards_its_limit() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    // The second request of a connection is read whole and then lost; the first one of another is answered.
    let origin = RawOrigin::playing(vec![
        Step::read_head(),
        Step::Read(600),
        Step::send(answer),
        Step::read_head(),
        Step::Read(600),
        Step::Close,
    ]);
    let config = format!(
        "[server]\nlisten = \"{{listen}}\"\nthreads = 1\nmax_body = \"1000\"\n[upstreams.app]\nmembers = \"{}\"\n\
         [[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n",
        origin.addr()
    );
    let gateway = Gateway::builder().config(&config).start();
    for _ in 0..2 {
        let reply = gateway.client().put("/x").body("x".repeat(600)).send();
        assert_eq!(reply.code(), 200, "{}", reply.text());
    }
    assert_eq!(origin.connections().len(), 2, "it was sent again");
    let text = origin.text();
    assert_eq!(text.matches(&"x".repeat(600)).count(), 3, "each time the whole of it");
    assert_eq!(gateway.client().put("/x").body("x".repeat(1_001)).send().code(), 413);
}

#[test]
fn connections_to_the_upstream_are_reused() {
    let origin = StrictOrigin::start();
    let gateway = start(&origin.addr().to_string());
    let client = gateway.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").send().code(), 200);
    }
    assert_eq!(origin.hits(), 20);
    assert!(origin.connections() <= 2, "{} connections for one client", origin.connections());
}

#[test]
fn an_h2c_upstream_that_is_dead_hangs_or_resets_is_told_like_any_other() {
    let h2c = &format!("protocol = \"h2c\"\n{BRIEF}");
    let gateway = start_with(&free_addr().to_string(), h2c);
    assert_failed(&gateway, &gateway.client().get("/").send(), 502);
    let origin = Origin::start();
    origin.route("/head", |_| Reply::hang_before_head());
    origin.route("/close", |_| Reply::close());
    origin.route("/body", |_| Reply::text(200, "0123456789").hang_in_body_after(4));
    let gateway = start_with(&origin.addr().to_string(), h2c);
    assert_failed(&gateway, &gateway.client().get("/head").send(), 504);
    assert_failed(&gateway, &gateway.client().post("/close").body("x").send(), 502);
    assert!(matches!(gateway.client().get("/body").try_send(), Err(SendError::Body(..))));
    assert_eq!(gateway.client().get("/").send().code(), 200);
    // Speaks HTTP/1.1 to those who want HTTP/2.
    let wrong = RawOrigin::ok();
    let gateway = start_with(&wrong.addr().to_string(), h2c);
    let got = gateway.client().get("/").send();
    assert!(matches!(got.code(), 502 | 504), "{got:?}");
    assert!(got.took < BOUND);
}

#[test]
fn a_client_that_leaves_takes_its_request_from_the_upstream() {
    let origin = Origin::start();
    origin.answer(|_| Reply::hang_before_head());
    // Patient, so that it is not the timeout that ends the request.
    let config = format!(
        "[upstreams.app]\nmembers = \"{}\"\nread_timeout = \"60s\"\n\
         [[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n",
        origin.addr()
    );
    let gateway = Gateway::builder().config(&config).start();
    let error =
        Client::new(gateway.addr()).get("/").within(Duration::from_millis(200)).try_send().unwrap_err();
    assert!(matches!(error, SendError::TimedOut(_)));
    assert_eventually!(origin.in_flight() == 0, "nobody works for a client that is gone");
    let mut connection = RawConnection::open(gateway.addr());
    connection.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    drop(connection);
    assert_eventually!(
        gateway.metric("tollgate_requests_in_flight", &[]).is_none_or(|count| count < 1.0),
        "nor does the gateway"
    );
}
