//! What the upstream is told about a request: by the gateway alone, never by the client in whatever spelling; and what
//! of an upstream's answer is for the client.

use std::net::TcpStream;

use crate::support::client::{raw, raw_status};
use crate::support::gateway::Gateway;
use crate::support::origin::Origin;
use crate::support::ports::free_port;
use crate::support::strict_origin::{Seen, StrictOrigin};
use crate::support::token::Token;

fn start(origin: &StrictOrigin, server: &str, more: &str) -> Gateway {
    let config = format!(
        r#"
        [server]
        listen = "{{listen}}"
        {server}
        [upstreams.app]
        members = "{}"
        [[routes]]
        name = "me"
        path = "/me"
        auth = "required"
        upstream = "app"
        [[routes]]
        name = "all"
        path = "/**"
        auth = "optional"
        upstream = "app"
        {more}
        "#,
        origin.addr()
    );
    Gateway::builder().config(&config).start()
}

/// Asks with these header lines (`\n` stands for CRLF) and returns what the upstream saw.
fn ask(gateway: &Gateway, origin: &StrictOrigin, target: &str, lines: &str) -> Seen {
    let request = format!("GET {target} HTTP/1.1\nHost: shop.example\n{lines}\nConnection: close\n\n");
    let answer = raw(gateway.addr(), request.replace('\n', "\r\n"));
    assert_eq!(raw_status(&answer), Some(200), "{lines}: {}", String::from_utf8_lossy(&answer));
    assert!(origin.violations().is_empty(), "{:?}", origin.violations());
    origin.last()
}

#[test]
fn nothing_a_client_says_about_identity_or_origin_reaches_the_upstream() {
    let origin = StrictOrigin::start();
    let gateway = start(&origin, "", "");
    let lines = [
        "X-User-Id: root",
        "x_user_id: root",
        "X-USER-ID: root",
        "X_User-Id: root",
        "x-user_id: root",
        "X.User.Id: root",
        "x.user-id: root",
        "X~User~Id: root",
        "X+User_Id: root",
        "x!user#id: root",
        "X|User|Plan: enterprise",
        "X.User.Permissions: root",
        "X.Forwarded.For: 6.6.6.6",
        "X_Forwarded.User: root",
        "Client.IP: 6.6.6.6",
        "X.Api.Key: forged",
        "Content.Length: forged",
        "X-User-Id: a\nX-User-Id: b",
        "X-User-Plan: enterprise",
        "X_USER_PLAN: enterprise",
        "X-User-Permissions: admin",
        "x_user_permissions: admin",
        "X-User-Id: root\nConnection: x-user-id",
        "Connection: x-user-id, x-request-id, traceparent\nX-User-Id: root",
        "X-Forwarded-For: 6.6.6.6",
        "X_Forwarded_For: 6.6.6.6",
        "x-forwarded-for: 6.6.6.6\nX-FORWARDED-FOR: 7.7.7.7",
        "X-Forwarded-Host: evil",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Port: 443",
        "X-Forwarded-Prefix: /admin",
        "X-Forwarded-Server: evil",
        "X-Forwarded-User: root",
        "X-Forwarded: for=6.6.6.6",
        "Forwarded: for=6.6.6.6;host=evil",
        "FORWARDED: for=6.6.6.6",
        "Forwarded-For: 6.6.6.6",
        "X-Real-IP: 6.6.6.6",
        "X_Real_IP: 6.6.6.6",
        "X-Client-IP: 6.6.6.6",
        "Client-IP: 6.6.6.6",
        "True-Client-IP: 6.6.6.6",
        "CF-Connecting-IP: 6.6.6.6",
        "X-Cluster-Client-IP: 6.6.6.6",
        "X-Originating-IP: 6.6.6.6",
        "Fastly-Client-IP: 6.6.6.6",
        "X-Original-URL: /admin",
        "X-Rewrite-URL: /admin",
        "X-Request-Id: forged",
        "X_Request_Id: forged",
        "traceparent: 00-11111111111111111111111111111111-2222222222222222-01",
        "tracestate: forged=1",
        "Proxy: http://evil",
        "Proxy-Authorization: forged",
        "Proxy-Connection: forged",
        "Keep-Alive: forged",
        "TE: forged",
        "Trailer: x-user-id",
        "Upgrade: forged",
    ];
    let forged =
        ["root", "enterprise", "6.6.6.6", "7.7.7.7", "evil", "forged", "1111111111", "/admin", "http://"];
    for line in lines {
        let seen = ask(&gateway, &origin, "/", line);
        let through = seen.fields.iter().find(|(name, value)| {
            forged.iter().any(|part| value.contains(part))
                || name.contains('_')
                || name.eq_ignore_ascii_case("connection")
        });
        assert!(through.is_none(), "{line}: {through:?}");
        for name in ["x-user-id", "x-user-plan", "x-user-permissions"] {
            assert!(!seen.has_any_spelling(name), "{line}: {seen:?}");
        }
        // The gateway's own stay, whatever is nominated.
        assert_eq!(seen.one("x-forwarded-for"), Some("127.0.0.1"), "{line}");
        assert_eq!(seen.one("x-forwarded-proto"), Some("http"), "{line}");
        assert_eq!(seen.one("x-forwarded-host"), Some("shop.example"), "{line}");
        assert!(seen.one("x-request-id").is_some_and(|id| id.len() >= 16), "{line}");
        assert!(seen.one("traceparent").is_some_and(|trace| trace.len() == 55), "{line}");
    }
}

#[test]
fn nominating_what_tells_the_origin_is_refused() {
    let origin = StrictOrigin::start();
    let gateway = start(&origin, "", "");
    for name in ["x-forwarded-for", "X-Forwarded-Host", "x-forwarded-proto", "host"] {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: {name}, close\r\n\r\n"
        );
        let status = raw_status(&raw(gateway.addr(), request));
        if status == Some(200) {
            assert_eq!(origin.last().one("x-forwarded-for"), Some("127.0.0.1"), "{name}");
            assert_eq!(origin.last().one("host"), Some("a"), "{name}");
        } else {
            assert_eq!(status, Some(400), "{name}");
        }
    }
}

#[test]
fn a_token_decides_who_the_upstream_hears_of_and_nominating_cannot_take_it_away() {
    let origin = StrictOrigin::start();
    let gateway = start(&origin, "", "");
    let token = Token::of("ada")
        .claim("subscription_plan", "pro")
        .claim("permissions", serde_json::json!(["read", "a,b"]))
        .sign();
    for nominated in
        ["close", "x-user-id", "X-User-Id, x-user-plan, x-user-permissions", "authorization", "x_user_id"]
    {
        let lines = format!(
            "Authorization: Bearer {token}\nX-User-Id: root\nX_User_Id: root\nX-User-Permissions: admin\nConnection: {nominated}"
        );
        let seen = ask(&gateway, &origin, "/me", &lines);
        assert_eq!(seen.one("x-user-id"), Some("ada"), "{nominated}");
        assert_eq!(seen.one("x-user-plan"), Some("pro"), "{nominated}");
        assert_eq!(seen.one("x-user-permissions"), Some("read,a%2Cb"), "{nominated}");
        assert!(!seen.fields.iter().any(|(name, _)| name.contains('_')), "{seen:?}");
    }
}

#[test]
fn subjects_of_every_kind_stay_one_line_and_themselves() {
    let origin = StrictOrigin::start();
    let gateway = start(&origin, "", "");
    for (subject, sent) in [
        ("a\r\nX-User-Plan: pro", "a%0D%0AX-User-Plan:%20pro"),
        ("a%0d", "a%250d"),
        ("\u{e4}", "%C3%A4"),
        ("a,b", "a%2Cb"),
        ("{*}:x", "{*}:x"),
        (" a ", "%20a%20"),
    ] {
        let seen =
            ask(&gateway, &origin, "/me", &format!("Authorization: Bearer {}", Token::of(subject).sign()));
        assert_eq!(seen.one("x-user-id"), Some(sent), "{subject:?}");
        assert!(!seen.has_any_spelling("x-user-plan"));
    }
}

#[test]
fn identity_goes_in_the_headers_that_were_chosen_and_the_usual_ones_are_dropped_too() {
    let origin = StrictOrigin::start();
    let more = "[identity.headers]\nuser_id = \"X-Account\"\nplan = \"\"\npermissions = \"\"\n\
                [identity.claim_headers]\nemail = \"X-Account-Mail\"";
    let gateway = start(&origin, "", more);
    let token = Token::of("ada").claim("subscription_plan", "pro").claim("email", "a@b.c").sign();
    let lines = format!(
        "Authorization: Bearer {token}\nX-Account: root\nX_Account: root\nX-Account-Mail: root\nX-User-Id: root\nX-User-Plan: root"
    );
    let seen = ask(&gateway, &origin, "/me", &lines);
    assert_eq!(seen.one("x-account"), Some("ada"));
    assert_eq!(seen.one("x-account-mail"), Some("a@b.c"));
    assert!(!seen.has_any_spelling("x-user-id") && !seen.has_any_spelling("x-user-plan"), "{seen:?}");
    let seen = ask(&gateway, &origin, "/", "X-Account: root\nx_account_mail: root\nX_User_Id: root");
    for name in ["x-account", "x-account-mail", "x-user-id"] {
        assert!(!seen.has_any_spelling(name), "{seen:?}");
    }
}

#[test]
fn trusted_proxies_are_walked_from_the_right() {
    let origin = StrictOrigin::start();
    let gateway = start(&origin, "trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]", "");
    let many = format!("{}, 9.9.9.9", vec!["6.6.6.6"; 2_000].join(", "));
    for (lines, expected) in [
        ("X-A: 1", "127.0.0.1"),
        ("X-Forwarded-For: 9.9.9.9", "9.9.9.9, 127.0.0.1"),
        ("X-Forwarded-For: 6.6.6.6, 9.9.9.9", "9.9.9.9, 127.0.0.1"),
        ("X-Forwarded-For: 6.6.6.6, 9.9.9.9, 10.1.2.3", "9.9.9.9, 127.0.0.1"),
        ("X-Forwarded-For: 6.6.6.6\nX-Forwarded-For: 9.9.9.9, 10.1.2.3", "9.9.9.9, 127.0.0.1"),
        ("X-Forwarded-For: 127.0.0.1, 9.9.9.9", "9.9.9.9, 127.0.0.1"),
        (many.as_str(), "9.9.9.9, 127.0.0.1"),
        ("Forwarded: for=6.6.6.6\nX-Real-IP: 6.6.6.6", "127.0.0.1"),
    ] {
        let lines = if lines.contains(": ") { lines.to_owned() } else { format!("X-Forwarded-For: {lines}") };
        let seen = ask(&gateway, &origin, "/", &lines);
        assert_eq!(seen.one("x-forwarded-for"), Some(expected), "{}", &lines[..lines.len().min(80)]);
    }
    // A list whose right end cannot be read tells nothing: the peer counts.
    for broken in
        ["unknown", "9.9.9.9, garbage", "9.9.9.9, 1.2.3.4.5", "9.9.9.9, _hidden", "<script>", "'", "9.9.9.9;"]
    {
        let seen = ask(&gateway, &origin, "/", &format!("X-Forwarded-For: {broken}"));
        let told = seen.one("x-forwarded-for").unwrap_or_default();
        assert!(!told.contains("9.9.9.9") && told.contains("127.0.0.1"), "{broken}: {told}");
    }
}

#[test]
fn trusted_proxies_may_speak_forwarded_instead() {
    let origin = StrictOrigin::start();
    let server = "trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\nclient_address_header = \"forwarded\"";
    let gateway = start(&origin, server, "");
    for (lines, expected) in [
        ("Forwarded: for=9.9.9.9", "9.9.9.9, 127.0.0.1"),
        ("Forwarded: for=6.6.6.6, for=9.9.9.9;proto=https, for=10.0.0.1", "9.9.9.9, 127.0.0.1"),
        ("Forwarded: For=\"[2001:db8::1]:4711\"", "2001:db8::1, 127.0.0.1"),
        ("Forwarded: for=\"9.9.9.9:80\"", "9.9.9.9, 127.0.0.1"),
        ("X-Forwarded-For: 6.6.6.6", "127.0.0.1"),
    ] {
        assert_eq!(ask(&gateway, &origin, "/", lines).one("x-forwarded-for"), Some(expected), "{lines}");
    }
    for broken in ["for=unknown", "for=_x", "for=9.9.9.9, for=\"", "9.9.9.9", "for"] {
        let seen = ask(&gateway, &origin, "/", &format!("Forwarded: {broken}"));
        let told = seen.one("x-forwarded-for").unwrap_or_default().to_owned();
        assert!(!told.contains("9.9.9.9"), "{broken}: {told}");
        assert!(!seen.has_any_spelling("forwarded"), "{broken}");
    }
}

#[test]
fn ids_and_traces_are_continued_for_trusted_proxies_only_and_come_back() {
    let (trace, state) = ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "vendor=1");
    let lines = format!("X-Request-Id: from-the-edge-1\ntraceparent: {trace}\ntracestate: {state}");
    for (server, trusted) in [("", false), ("trusted_proxies = [\"127.0.0.0/8\"]", true)] {
        let origin = StrictOrigin::start();
        let gateway = start(&origin, server, "");
        let request =
            format!("GET / HTTP/1.1\nHost: a\n{lines}\nConnection: close\n\n").replace('\n', "\r\n");
        let answer = String::from_utf8_lossy(&raw(gateway.addr(), request)).to_ascii_lowercase();
        let seen = origin.last();
        let id = seen.one("x-request-id").unwrap().to_owned();
        assert_eq!(id == "from-the-edge-1", trusted);
        assert!(answer.contains(&format!("x-request-id: {id}\r\n")), "{answer}");
        assert_eq!(seen.one("traceparent").unwrap().contains("4bf92f3577b34da6a3ce929d0e0e4736"), trusted);
        assert_eq!(seen.one("tracestate"), trusted.then_some(state));
        assert_eventually!(gateway.logs().contains(&id), "the access log has the same id");
        // What could forge a log line or another header is replaced even there.
        for bad in ["a b", &"x".repeat(5000), "\u{e4}"] {
            let seen = ask(&gateway, &origin, "/", &format!("X-Request-Id: {bad}"));
            assert_ne!(seen.one("x-request-id"), Some(bad));
        }
    }
}

#[test]
fn ipv6_clients_are_limited_by_their_network() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("no IPv6 here");
        return;
    }
    let origin = StrictOrigin::start();
    let port = free_port();
    let config = format!(
        "[server]\nlisten = [\"{{listen}}\", \"[::1]:{port}\"]\ntrusted_proxies = [\"::1/128\"]\n\
         [policies.ip]\nkey = \"ip\"\nlimit = 3\nwindow = \"1h\"\n\
         [upstreams.app]\nmembers = \"{}\"\n\
         [[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\nlimits = [\"ip\"]\n",
        origin.addr()
    );
    let gateway = Gateway::builder().config(&config).start();
    let addr = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    assert_eventually!(TcpStream::connect(addr).is_ok(), "it listens on IPv6");
    let ask = |client: &str| {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: [::1]\r\nX-Forwarded-For: {client}\r\nConnection: close\r\n\r\n"
        );
        raw_status(&raw(addr, request))
    };
    for host in 1..=3 {
        assert_eq!(ask(&format!("2001:db8::{host}")), Some(200));
    }
    assert_eq!(origin.last().one("x-forwarded-for"), Some("2001:db8::3, ::1"));
    for host in ["2001:db8::4", "2001:db8::ffff:1", "2001:0db8:0:0:ffff::1", "[2001:db8::7]:99"] {
        assert_eq!(ask(host), Some(429), "{host}");
    }
    assert_eq!(ask("2001:db8:0:1::1"), Some(200), "another network");
    // An IPv4 address is the same client in either notation.
    for client in ["9.9.9.9", "::ffff:9.9.9.9", "[::ffff:9.9.9.9]:1"] {
        assert_eq!(ask(client), Some(200), "{client}");
    }
    assert_eq!(ask("9.9.9.9"), Some(429));
    drop(gateway);
}

#[test]
fn a_token_in_the_query_stays_here_in_every_spelling() {
    let origin = StrictOrigin::start();
    let gateway = start(&origin, "", "[identity]\ntoken_from = [\"bearer\", \"query:access_token\"]");
    let token = Token::of("ada").sign();
    for (query, rest) in [
        ("?access_token=T", ""),
        ("?a=1&access_token=T&b=2", "?a=1&b=2"),
        ("?access%5Ftoken=T&b=2", "?b=2"),
        ("?a=1&%61ccess_token=T", "?a=1"),
    ] {
        let seen = ask(&gateway, &origin, &format!("/me{}", query.replace('T', &token)), "X-A: 1");
        assert_eq!(seen.target, format!("/me{rest}"), "{query}");
        assert_eq!(seen.one("x-user-id"), Some("ada"));
    }
    assert!(!gateway.logs().contains(&token), "nor does it get into the log");
}

#[test]
fn of_an_answer_the_hop_by_hop_part_stays_here_and_the_rest_goes_on() {
    let origin = StrictOrigin::answering(
        "HTTP/1.1 200 OK\r\nServer: backend/1\r\nKeep-Alive: timeout=9\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\n\
         Proxy-Connection: keep-alive\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nTE: x\r\nX-Powered-By: it\r\nSet-Cookie: a=1\r\n\
         Set-Cookie: b=2\r\nX-Request-Id: theirs\r\nContent-Length: 2\r\n\r\nok",
    );
    let gateway = start(&origin, "", "");
    let got = gateway.client().get("/").send();
    assert_eq!((got.code(), got.text().as_str()), (200, "ok"));
    assert_eq!(got.header("server"), Some("backend/1"));
    assert_eq!(got.header("x-powered-by"), Some("it"));
    assert_eq!(got.header_all("set-cookie"), ["a=1", "b=2"]);
    for name in ["keep-alive", "x-hop", "proxy-connection", "proxy-authenticate", "upgrade", "te"] {
        assert_eq!(got.header(name), None, "{name}");
    }
    let ids = got.header_all("x-request-id");
    assert!(ids.len() == 1 && ids[0] != "theirs", "{ids:?}");
    // The gateway's own answers name nobody.
    for path in ["/me", "/%zz"] {
        let own = gateway.client().get(path).send();
        assert!(own.code() >= 400);
        assert_eq!(own.header("server"), None);
        assert!(own.header("date").is_some() && own.header("x-request-id").is_some());
    }
}

#[test]
fn an_upstream_gets_the_host_that_was_asked_for() {
    let origin = Origin::start();
    let config = format!(
        "[upstreams.app]\nmembers = \"{}\"\n[[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n",
        origin.addr()
    );
    let gateway = Gateway::builder().config(&config).start();
    for host in ["Shop.Example", "shop.example:8080", "[::1]:81"] {
        assert_eq!(gateway.client().get("/").host(host).send().code(), 200);
        assert!(origin.last().header("host").unwrap().eq_ignore_ascii_case(host));
        assert!(origin.last().header("x-forwarded-host").unwrap().eq_ignore_ascii_case(host));
    }
}
