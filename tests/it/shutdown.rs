//! How a gateway ends: what is in flight is served, new traffic goes elsewhere, and counters outlive it.

use std::time::{Duration, Instant};

use crate::support::concurrently;
use crate::support::gateway::{Builder, Gateway};
use crate::support::load::Load;
use crate::support::origin::{Gate, Origin, Reply};
use crate::support::process::Signal;
use crate::support::redis::Redis;

fn builder(origin: &Origin, more: &str) -> Builder {
    Gateway::builder().config(&format!(
        "[upstreams.app]\nmembers = \"{}\"\n[redis]\ndeadline = \"1s\"\n[policies.ip]\nkey = \"ip\"\nlimit = 100\nwindow = \"60s\"\n\
         [[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n\
         [[routes]]\nname = \"limited\"\npath = \"/limited\"\nupstream = \"app\"\nlimits = [\"ip\"]\n{more}",
        origin.addr()
    ))
}

#[test]
fn sigterm_lets_requests_in_flight_end_and_is_not_ready_meanwhile() {
    let origin = Origin::start();
    let gate = Gate::closed();
    let slow = Reply::text(200, "done").behind(&gate);
    origin.route("/slow", move |_| slow.clone());
    let gateway = builder(&origin, "").start();
    let (admin, client) = (gateway.admin(), gateway.client());
    let slow = std::thread::spawn(move || client.get("/slow").send());
    assert_eventually!(origin.in_flight() == 1, "the request is under way");
    gateway.signal(Signal::Terminate);
    let mut said = String::new();
    assert_eventually!(
        {
            let ready = admin.get("/ready").try_send();
            said = format!("{ready:?}");
            ready.is_ok_and(|got| got.code() == 503 && got.json()["reason"] == "draining")
        },
        format!("readiness says that it drains; it said {said}")
    );
    let served = Instant::now();
    gate.open();
    let response = slow.join().unwrap();
    assert_eq!((response.code(), response.text().as_str()), (200, "done"));
    let status = gateway.process().wait();
    assert!(status.success(), "{status}");
    assert!(served.elapsed() < Duration::from_secs(6), "it ends soon after the last: {:?}", served.elapsed());
}

#[test]
fn sigterm_without_traffic_ends_at_once() {
    let origin = Origin::start();
    let gateway = builder(&origin, "").start();
    // An idle keep-alive connection is nobody's request.
    let client = gateway.client();
    assert_eq!(client.get("/").send().code(), 200);
    let sent = Instant::now();
    assert!(gateway.terminate().success());
    assert!(sent.elapsed() < Duration::from_secs(3), "{:?}", sent.elapsed());
    assert!(gateway.logs().contains("SIGTERM: draining"), "{}", gateway.logs());
}

#[test]
fn sigterm_under_load_loses_no_request_when_another_instance_takes_over() {
    let origin = Origin::start();
    origin.answer(|_| Reply::text(200, "ok").after(Duration::from_millis(5)));
    let gateway = builder(&origin, "").start();
    let load = Load::start(8, gateway.addr(), |client, number| client.get(&format!("/n/{number}")));
    load.wait_for_more(200);
    gateway.signal(Signal::Terminate);
    let status = gateway.process().wait();
    assert!(status.success(), "{status}");
    let outcomes = load.stop();
    let answered = outcomes.iter().filter(|outcome| outcome.code == Some(200)).count();
    assert!(answered >= 200);
    assert_eq!(answered, origin.hits(), "whatever was begun was answered");
    assert!(outcomes.iter().all(|outcome| matches!(outcome.code, None | Some(200))));
    // Nobody who held a connection was cut off. Only a connection made in the very moment the listener closes may
    // be reset by the kernel before anyone accepted it; at most one for each client that goes on trying.
    let refused =
        |text: &str| text.contains("cannot connect") || text.contains("closes every new connection");
    let reset = outcomes
        .iter()
        .filter(|outcome| outcome.failure.as_deref().is_some_and(|text| !refused(text)))
        .count();
    assert!(reset <= 8, "{reset} of {}", outcomes.len());
}

#[test]
fn a_drain_does_not_wait_for_ever() {
    let origin = Origin::start();
    origin.route("/hangs", |_| Reply::hang_before_head());
    let gateway = builder(&origin, "[server]\nlisten = \"{listen}\"\nshutdown_timeout = \"1s\"\n").start();
    let client = gateway.client();
    let hanging = std::thread::spawn(move || client.get("/hangs").within(Duration::from_secs(20)).try_send());
    assert_eventually!(origin.in_flight() == 1, "the request is under way");
    let sent = Instant::now();
    gateway.signal(Signal::Terminate);
    gateway.process().wait();
    assert!(sent.elapsed() < Duration::from_secs(6), "{:?}", sent.elapsed());
    assert!(hanging.join().unwrap().is_err());
    assert!(gateway.logs().contains("ended before these requests did"), "{}", gateway.logs());
}

#[test]
fn sigint_ends_at_once() {
    let origin = Origin::start();
    origin.route("/hangs", |_| Reply::hang_before_head());
    let gateway = builder(&origin, "").start();
    let client = gateway.client();
    let hanging = std::thread::spawn(move || client.get("/hangs").within(Duration::from_secs(20)).try_send());
    assert_eventually!(origin.in_flight() == 1, "the request is under way");
    let sent = Instant::now();
    gateway.signal(Signal::Interrupt);
    gateway.process().wait();
    assert!(sent.elapsed() < Duration::from_secs(4), "{:?}", sent.elapsed());
    assert!(hanging.join().unwrap().is_err());
}

#[test]
fn after_sigkill_another_instance_goes_on_with_the_same_counters() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let start = || {
        let gateway = builder(&origin, "").env("REDIS_URL", &redis.url()).start();
        assert_eventually!(
            gateway.admin().get("/health").send().json()["redis"]["status"] == "connected",
            "the store is reached"
        );
        gateway
    };
    let (one, two) = (start(), start());
    let codes = |gateway: &Gateway, count: usize| {
        let client = gateway.client();
        (0..count).filter(|_| client.get("/limited").send().code() == 200).count()
    };
    assert_eq!(codes(&one, 60), 60);
    one.kill();
    let admitted: usize = concurrently(4, |_| codes(&two, 20)).into_iter().sum();
    assert_eq!(admitted, 40);
    drop(one);
    let three = start();
    assert_eq!(codes(&three, 5), 0, "a new instance knows the count too");
}
