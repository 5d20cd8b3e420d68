//! RFC 9111 section 5 as clients see it: Age, Cache-Control of requests and responses, Expires, Pragma, Warning.

use crate::cache::x_cache;
use crate::cache_conformance::{Bench, Lines, with, with_text};
use crate::support::origin::Gate;

const FRESH: (&str, &str) = ("cache-control", "max-age=60");

#[test]
fn of_several_ages_the_first_counts_and_what_is_no_number_does_not() {
    let bench = Bench::start();
    // Section 5.1.
    let table: &[(&str, &[&str], bool)] = &[
        ("young", &["10"], true),
        ("old", &["61"], false),
        ("first-young", &["0, 7200"], true),
        ("first-old", &["7200, 0"], false),
        ("lines-first-young", &["0", "7200"], true),
        ("lines-first-old", &["7200", "0"], false),
        ("negative", &["-7200"], true),
        ("overflowing", &["99999999999999999999"], false),
        ("word", &["old"], true),
    ];
    for (name, ages, fresh) in table {
        let reply = ages.iter().fold(with(&[FRESH]), |reply, age| reply.header("age", age));
        assert_eq!(bench.reuses(&format!("/open/{name}"), &[], reply), *fresh, "{name}");
    }
}

#[test]
fn directives_of_requests_are_obeyed() {
    let bench = Bench::start();
    // Section 5.2.1, over a response of 30 seconds that is fresh for 30 more.
    let table: &[(&str, &str)] = &[
        ("", "HIT"),
        ("max-age=40", "HIT"),
        ("max-age=20", "MISS"),
        ("max-age=0", "MISS"),
        ("MAX-AGE=\"20\"", "MISS"),
        ("min-fresh=20", "HIT"),
        ("min-fresh=40", "MISS"),
        ("max-stale", "HIT"),
        ("max-stale=0", "HIT"),
        ("no-cache", "MISS"),
        ("No-Cache", "MISS"),
        ("no-store", "BYPASS"),
        ("no-transform", "HIT"),
        ("only-if-cached", "HIT"),
        ("unheard-of, x=\"no-cache, no-store\"", "HIT"),
    ];
    for (number, (directive, expected)) in table.iter().enumerate() {
        let path = format!("/open/{number}");
        bench.play(&path, vec![with(&[FRESH, ("age", "30")])]);
        bench.get(&path).send();
        let lines = [("cache-control", *directive)];
        let response = bench.ask(&path, if directive.is_empty() { &[] } else { &lines });
        assert_eq!(x_cache(&response), *expected, "{directive}");
        if *expected != "HIT" {
            // Section 5.2: what is not answered here is passed on with its directives.
            assert_eq!(bench.origin.last().header("cache-control"), Some(*directive));
        }
    }
    // Of what is stored nothing; of what is not, no request.
    bench.play("/open/never", vec![with(&[FRESH])]);
    bench.ask("/open/never", &[("cache-control", "no-store")]);
    let only = bench.ask("/open/never", &[("cache-control", "only-if-cached")]);
    assert_eq!((only.code(), bench.asked("/open/never")), (504, 1));
}

#[test]
fn pragma_counts_where_cache_control_says_nothing() {
    let bench = Bench::start();
    bench.play("/open/a", vec![with(&[FRESH])]);
    bench.get("/open/a").send();
    let table: &[(Lines, &str)] = &[
        (&[("pragma", "no-cache")], "MISS"),
        (&[("pragma", "No-Cache, x")], "MISS"),
        (&[("pragma", "no-cache"), ("cache-control", "max-age=60")], "HIT"),
        (&[("pragma", "nothing")], "HIT"),
    ];
    for (lines, expected) in table {
        assert_eq!(x_cache(&bench.ask("/open/a", lines)), *expected, "{lines:?}");
    }
}

#[test]
fn directives_of_responses_are_obeyed_however_they_are_written() {
    let bench = Bench::start();
    // Section 5.2.2 and the syntax of 5.2. Whether a second request is served what the first one got.
    let table: &[(&str, &[&str], bool)] = &[
        ("upper-case", &["MAX-AGE=60"], true),
        ("quoted", &["max-age=\"60\""], true),
        ("among-others", &["a, b=c, max-age=60, d=\"e,f\""], true),
        ("unknown-only-looks-so", &["max-age=60, x-no-store, no-store-x, y=\"no-store, private\""], true),
        ("lines", &["public", "max-age=60"], true),
        ("huge", &["max-age=99999999999999999999"], true),
        ("two-lines-one-forbids", &["max-age=60", "no-store"], false),
        ("NO-STORE", &["NO-STORE, max-age=60"], false),
        ("no-store-with-argument", &["no-store=\"x\", max-age=60"], false),
        ("private", &["PRIVATE, max-age=60"], false),
        ("negative", &["max-age=-1"], false),
        ("no-number", &["max-age=sixty"], false),
        ("no-argument", &["max-age"], false),
        ("must-revalidate-is-fresh", &["must-revalidate, max-age=60"], true),
        ("proxy-revalidate-is-fresh", &["proxy-revalidate, max-age=60"], true),
        ("no-transform", &["no-transform, max-age=60"], true),
        ("immutable", &["immutable, max-age=60"], true),
    ];
    for (name, lines, reused) in table {
        let reply = lines.iter().fold(with(&[]), |reply, line| reply.header("cache-control", line));
        assert_eq!(bench.reuses(&format!("/open/{name}"), &[], reply), *reused, "{name}");
    }
    // Section 5.2: they are passed on, on a hit too.
    bench.play("/open/passed", vec![with(&[("cache-control", "max-age=60, x-unheard-of=\"1, 2\"")])]);
    for _ in 0..2 {
        let response = bench.get("/open/passed").send();
        assert_eq!(response.header_all("cache-control"), ["max-age=60, x-unheard-of=\"1, 2\""]);
    }
}

#[test]
fn no_cache_is_served_only_after_validation() {
    let bench = Bench::start();
    let etag = ("etag", "\"v1\"");
    for (name, line) in
        [("plain", "no-cache"), ("with-lifetime", "no-cache, max-age=60"), ("upper", "NO-CACHE")]
    {
        let path = format!("/open/{name}");
        let stored = with(&[("cache-control", line), etag]);
        bench.play(
            &path,
            vec![stored, crate::cache_conformance::confirming(&[("cache-control", line), etag])],
        );
        bench.get(&path).send();
        for _ in 0..2 {
            assert_eq!(x_cache(&bench.get(&path).send()), "REVALIDATED", "{name}");
        }
        assert_eq!(bench.asked(&path), 3, "{name}");
    }
}

/// Section 5.2.2.4: also where the one is asked for while the other is under way.
#[test]
fn what_each_has_to_validate_is_not_handed_to_others_that_wait() {
    let bench = Bench::start();
    let gate = Gate::closed();
    let held = gate.clone();
    bench.origin.route("/open/own", move |request| {
        let who = request.header("x-who").unwrap_or_default().to_owned();
        let etag = format!("\"{who}\"");
        with(&[("cache-control", "no-cache"), ("etag", &etag)]).body(who).behind(&held)
    });
    let bodies: Vec<(String, String)> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8)
            .map(|number| {
                let client = bench.gateway.client();
                scope.spawn(move || {
                    let who = format!("caller-{number}");
                    let answer = client.get("/open/own").header("x-who", &who).send();
                    (who, answer.text())
                })
            })
            .collect();
        let in_flight = || bench.gateway.metric("tollgate_requests_in_flight", &[]);
        assert_eventually!(in_flight() == Some(8.0), "all ask at once");
        gate.open();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    for (who, body) in bodies {
        assert_eq!(who, body);
    }
}

#[test]
fn an_expires_that_is_no_date_is_in_the_past() {
    let bench = Bench::start();
    // Section 5.3.
    let table: &[(&str, &[&str], bool)] = &[
        ("imf", &["Sat, 06 Nov 2094 08:49:37 GMT"], true),
        ("rfc850", &["Thursday, 18-Aug-50 02:01:18 GMT"], true),
        ("past", &["Sun, 06 Nov 1994 08:49:37 GMT"], false),
        ("zero", &["0"], false),
        ("minus", &["-1"], false),
        ("never", &["never"], false),
        ("empty", &[""], false),
        ("other-zone", &["Sat, 06 Nov 2094 08:49:37 CET"], false),
        ("two", &["Sun, 06 Nov 1994 08:49:37 GMT", "Sat, 06 Nov 2094 08:49:37 GMT"], false),
    ];
    for (name, lines, fresh) in table {
        let reply = lines.iter().fold(with(&[]), |reply, line| reply.header("expires", line));
        assert_eq!(bench.reuses(&format!("/open/{name}"), &[], reply), *fresh, "{name}");
    }
}

#[test]
fn warnings_are_not_invented() {
    let bench = Bench::start();
    // Section 5.5: the field is history. What the origin says stays, what nobody said is not added.
    bench.play("/open/a", vec![with(&[FRESH])]);
    bench.play("/open/b", vec![with(&[FRESH, ("warning", "299 - \"kept\"")])]);
    bench.play("/stale/c", vec![with_text("old", &[FRESH, ("age", "65"), ("etag", "\"v1\"")])]);
    for (path, warning) in [("/open/a", None), ("/open/b", Some("299 - \"kept\"")), ("/stale/c", None)] {
        for _ in 0..2 {
            assert_eq!(bench.get(path).send().header("warning"), warning, "{path}");
        }
    }
}
