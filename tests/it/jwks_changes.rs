//! Published keys that change while requests come: in the background, without names, under the name of another, while
//! nobody can read them. No token of a published key is refused for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::jwks::{
    Publisher, ask, assert_undecided, assert_unknown, fetches, jwk, start_at, token, token_of,
};
use crate::setup::revoke;
use crate::support::load::{Load, Outcome};
use crate::support::origin::{Origin, Reply};
use crate::support::token::{signed as forged, unix_seconds};

/// Key sets of which no key has a name.
fn unnamed(number: usize) -> Value {
    let mut key = jwk(number, "");
    key.as_object_mut().unwrap().remove("kid");
    key
}

/// A token nobody signed.
fn forgery(kid: &str) -> String {
    let header = json!({"alg": "EdDSA", "kid": kid}).to_string();
    let claims = json!({"sub": "eve", "exp": unix_seconds() + 3600, "jti": fastrand::u64(..)}).to_string();
    forged(&header, &claims, b"nothing")
}

fn assert_all(outcomes: &[Outcome], code: u16, what: &str) {
    let wrong: Vec<_> = outcomes.iter().filter(|outcome| outcome.code != Some(code)).collect();
    assert!(
        !outcomes.is_empty() && wrong.is_empty(),
        "{what}: {} of {}: {wrong:?}",
        wrong.len(),
        outcomes.len()
    );
}

#[test]
fn keys_are_replaced_in_the_background_under_load_without_a_refusal() {
    const COOLDOWN: Duration = Duration::from_millis(100);
    const ANSWER: Duration = Duration::from_millis(80);
    const KEYS: usize = 8;
    let origin = Origin::start();
    let kid = |number: usize| format!("key-{number}");
    let publisher = Publisher::start(&[jwk(0, &kid(0)), jwk(1, &kid(1))]);
    let gateway = start_at(&origin, &publisher, "cooldown = \"100ms\"\ntimeout = \"10s\"\nrefresh = \"1s\"");
    let began = Instant::now();
    let newest = Arc::new(AtomicUsize::new(1));
    let tokens: Arc<Vec<Vec<String>>> =
        Arc::new((0..KEYS).map(|number| (0..8).map(|_| token(number, &kid(number))).collect()).collect());
    let good = {
        let (newest, tokens) = (Arc::clone(&newest), Arc::clone(&tokens));
        Load::start(4, gateway.addr(), move |client, number| {
            let key = newest.load(SeqCst) - number % 2;
            client.get("/me").bearer(&tokens[key][number / 2 % 8])
        })
    };
    // They make the keys be read all the time, for others than those who use them.
    let bad = Load::start(2, gateway.addr(), |client, number| {
        client.get("/me").bearer(&forgery(&format!("nobody-{}", number % 50)))
    });
    for number in 2..KEYS {
        good.wait_for_more(40);
        let keys = [number - 2, number - 1, number].map(|number| jwk(number, &kid(number)));
        let set = json!({ "keys": keys });
        publisher.reply(move || Reply::json(200, &set).after(ANSWER));
        if number % 2 == 0 {
            // Used before anybody has heard of it: while a read is under way that brings it.
            let reads = publisher.reads();
            assert_eventually!(publisher.reads() > reads, "somebody asks for keys");
            newest.store(number, SeqCst);
        }
        let changes = number;
        assert_eventually!(
            fetches(&gateway, "changed") >= changes,
            "the change is read without being asked for"
        );
        newest.store(number, SeqCst);
    }
    good.wait_for_more(40);
    assert_all(&good.stop(), 200, "tokens of published keys");
    assert_all(&bad.stop(), 401, "tokens of nobody's");
    let most = began.elapsed().as_millis() / COOLDOWN.as_millis() + 2;
    assert!(publisher.reads() as u128 <= most, "{} of {most}", publisher.reads());
}

#[test]
fn keys_without_names_may_be_replaced() {
    let origin = Origin::start();
    let publisher = Publisher::start(&[unnamed(2)]);
    let gateway = start_at(&origin, &publisher, "cooldown = \"1s\"\ntimeout = \"9s\"\nrefresh = \"1h\"");
    assert_eq!(ask(&gateway, &token(2, "x")).code(), 200, "names mean nothing here");
    // Neither of the same kind nor of another; whatever has been asked for before.
    for number in [3, 1, 0] {
        let next = token(number, "x");
        assert_unknown(
            &ask(&gateway, &token_of(number, &json!({"kid": "x"}), &json!({}))),
            "not published yet",
        );
        publisher.publish(&[unnamed(number)]);
        assert_eq!(ask(&gateway, &next).code(), 200, "published: {number}");
    }
    let reads = publisher.reads();
    assert_unknown(&ask(&gateway, &token_of(3, &json!({}), &json!({}))), "names nothing, and fits nothing");
    assert_eq!(publisher.reads(), reads);
}

#[test]
fn a_key_may_be_replaced_under_its_name() {
    let origin = Origin::start();
    let publisher = Publisher::start(&[jwk(2, "a")]);
    let gateway = start_at(&origin, &publisher, "cooldown = \"2s\"\ntimeout = \"8s\"\nrefresh = \"1h\"");
    assert_eq!(ask(&gateway, &token(2, "a")).code(), 200);
    for number in [3, 1] {
        publisher.publish(&[jwk(number, "a")]);
        assert_eq!(ask(&gateway, &token(number, "a")).code(), 200, "{number}");
    }
    assert_unknown(&ask(&gateway, &token(2, "a")), "the key that it was");
    // Forgeries in its name are looked for once in a while only, however many there are.
    let (reads, began) = (publisher.reads(), Instant::now());
    for _ in 0..50 {
        assert_unknown(&ask(&gateway, &forgery("a")), "forged");
    }
    let most = began.elapsed().as_secs() / 2 + 1;
    assert!((publisher.reads() - reads) as u64 <= most, "{} after {:?}", publisher.reads(), began.elapsed());
    assert_eq!(ask(&gateway, &token(1, "a")).code(), 200);
}

#[test]
fn keys_that_change_while_they_cannot_be_read_cost_nobody_his_token() {
    let origin = Origin::start();
    let publisher = Publisher::start(&[jwk(0, "a"), jwk(1, "b")]);
    let more = "cooldown = \"100ms\"\ntimeout = \"1s\"\nrefresh = \"1s\"";
    let gateway = start_at(&origin, &publisher, more);
    let (old, new) = (token(0, "a"), token(2, "c"));
    assert_eventually!(ask(&gateway, &old).code() == 200, "its key is read");
    let load = Load::start(2, gateway.addr(), |client, number| {
        client.get("/me").bearer(&token(number % 2, ["a", "b"][number % 2]))
    });
    publisher.0.stop();
    publisher.publish(&[jwk(1, "b"), jwk(2, "c")]);
    let failures = fetches(&gateway, "unreachable");
    for _ in 0..5 {
        assert_undecided(&ask(&gateway, &new), "published where nobody can read it");
    }
    assert_undecided(&ask(&gateway, &token(2, "a")), "perhaps the name has another key by now");
    assert!(fetches(&gateway, "unreachable") > failures);
    load.wait_for_more(20);
    assert_all(&load.stop(), 200, "tokens of the keys read last");
    publisher.0.resume();
    let mut seen = Vec::new();
    assert_eventually!(
        {
            seen.push(ask(&gateway, &new).code());
            seen.last() == Some(&200)
        },
        "the change is read at last"
    );
    assert!(seen.iter().all(|code| matches!(code, 200 | 503)), "{seen:?}");
    assert_eq!(ask(&gateway, &token(1, "b")).code(), 200);
    assert_unknown(&ask(&gateway, &old), "its key has gone meanwhile");
}

#[test]
fn tokens_that_ended_unasked_and_tokens_of_gone_keys_are_let_go_of() {
    let origin = Origin::start();
    let publisher = Publisher::start(&[jwk(0, "a"), jwk(1, "b")]);
    let gateway = start_at(&origin, &publisher, "cooldown = \"100ms\"\nrefresh = \"1h\"");
    let remembered = || gateway.metric("tollgate_tokens_remembered", &[]);
    // With the leeway of 30 s these have ten seconds left.
    let brief: Vec<String> = (0..3)
        .map(|_| {
            token_of(
                0,
                &json!({"kid": "a"}),
                &json!({"iat": unix_seconds() - 60, "exp": unix_seconds() - 20}),
            )
        })
        .collect();
    let lasting: Vec<String> = (0..4).map(|number| token(number % 2, ["a", "b"][number % 2])).collect();
    for token in brief.iter().chain(&lasting) {
        assert_eq!(ask(&gateway, token).code(), 200);
    }
    assert_eq!(remembered(), Some(7.0));
    let ended = || ask(&gateway, &brief[0]).code() == 401;
    assert_eventually!(ended(), "the first is seen to end", Duration::from_secs(20));
    assert_eq!(remembered(), Some(6.0), "nobody has asked for the others");
    // Whatever is revoked makes it look.
    revoke(&gateway, &json!({"jti": "nobody's"}));
    assert_eventually!(remembered() == Some(4.0), "those that have expired are let go of");
    publisher.publish(&[jwk(1, "b"), jwk(2, "c")]);
    assert_eq!(ask(&gateway, &token(2, "c")).code(), 200);
    assert_eq!(remembered(), Some(5.0));
    revoke(&gateway, &json!({"jti": "nobody's either"}));
    assert_eventually!(remembered() == Some(1.0), "what was verified by other keys is let go of");
    for (number, token) in lasting.iter().enumerate() {
        assert_eq!(ask(&gateway, token).code(), if number % 2 == 0 { 401 } else { 200 }, "{number}");
    }
    assert_eq!(remembered(), Some(3.0));
}

#[test]
fn a_set_is_refused_as_a_whole_where_it_cannot_be_told_what_it_says() {
    let origin = Origin::start();
    let publisher = Publisher::start(&[jwk(0, "a")]);
    let gateway = start_at(&origin, &publisher, "cooldown = \"100ms\"\nrefresh = \"1h\"");
    assert_eq!(ask(&gateway, &token(0, "a")).code(), 200);
    let twice = json!({"keys": [jwk(1, "b")]}).to_string().replacen("\"kid\"", "\"kid\":\"b\",\"kid\"", 1);
    let deep = format!("{{\"keys\":[{},{}1{}]}}", jwk(1, "b"), "[".repeat(200), "]".repeat(200));
    let many =
        json!({"keys": (0..65).map(|number| jwk(1, &format!("b{number}"))).collect::<Vec<_>>()}).to_string();
    for (what, set, kid) in [("a member twice", twice, "b"), ("nested", deep, "b"), ("65 keys", many, "b1")] {
        let before = fetches(&gateway, "invalid");
        publisher.reply(move || Reply::new(200, set.clone()));
        assert_undecided(&ask(&gateway, &token(1, kid)), what);
        assert!(fetches(&gateway, "invalid") > before, "{what}");
        assert_eq!(ask(&gateway, &token(0, "a")).code(), 200, "{what}");
    }
}
