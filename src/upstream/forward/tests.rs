use super::*;
use proptest::prelude::*;

fn map(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers
            .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    headers
}

/// Headers as sorted lines, for comparison.
fn lines(headers: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("?"))).collect();
    lines.sort();
    lines
}

fn stripped(given: &[(&str, &str)]) -> Vec<String> {
    let mut headers = map(given);
    strip(&Settings::default(), &mut headers, Keep::default());
    lines(&headers)
}

/// Forwards for a client at 198.51.100.7 that is the peer, or is behind the trusted peer 10.0.0.1.
fn sent(
    settings: &Settings,
    given: &[(&str, &str)],
    peer_trusted: bool,
    identity: Identity<'_>,
) -> HeaderMap {
    let mut headers = map(given);
    let request_id = request_id(&headers, peer_trusted);
    let trace = TraceParent::of(&headers, peer_trusted);
    let client: IpAddr = "198.51.100.7".parse().unwrap();
    let forwarded = Forwarded {
        client,
        peer: if peer_trusted { "10.0.0.1".parse().unwrap() } else { client },
        peer_trusted,
        scheme: "https",
        host: "api.example.com",
        request_id: &request_id,
        trace: &trace,
        identity,
    };
    forward(settings, &mut headers, Keep::default(), &forwarded);
    headers
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    assert!(headers.get_all(name).iter().count() <= 1, "{name} is sent twice");
    headers.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn no_spelling_of_a_gateway_header_passes() {
    for name in [
        "X-User-Id",
        "x-user-id",
        "X_User_Id",
        "x-user_id",
        "X_USER-ID",
        "X-User-Plan",
        "x_user_permissions",
        "X-Forwarded-For",
        "X_Forwarded_For",
        "x-forwarded_for",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-User",
        "X_Forwarded_Anything",
        "Forwarded",
        "X-Real-IP",
        "X_Real_IP",
        "True-Client-IP",
        "CF-Connecting-IP",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X_Rewrite_Url",
        "X-Request-Id",
        "traceparent",
        "tracestate",
        "X-HTTP-Method-Override",
        "X-HTTP-Method",
        "X-Method-Override",
        "X_Method_Override",
        "Proxy",
        "Expect",
        "Keep-Alive",
        "Proxy-Connection",
        "Proxy-Authorization",
        "TE",
        "Trailer",
        "Upgrade",
        "HTTP2-Settings",
        "Content_Length",
        "Transfer_Encoding",
        "X_Api_Key",
        "Sec_Fetch",
        "X.User.Id",
        "x.user-id",
        "X-User.Id",
        "X~User~Id",
        "X!User#Id",
        "X$User%Plan",
        "x&user'permissions",
        "X*User+Id",
        "X^User`Id",
        "X|User_Id",
        "X.Forwarded.For",
        "X-Forwarded.Anything",
        "X.Real.IP",
        "Content.Length",
        "Transfer.Encoding",
        "X.Api.Key",
        "Sec.Fetch",
        "Accept_Encoding",
        "Accept.Language",
        "Content_Type",
        "If.None_Match",
    ] {
        assert!(stripped(&[(name, "x"), (name, "y")]).is_empty(), "{name}");
    }
    let twice = [("x-user-id", "a"), ("X-User-Id", "b"), ("x_user_id", "c"), ("accept", "*/*")];
    assert_eq!(stripped(&twice), ["accept: */*"]);
    // Of a client's own making, and no imitation.
    for name in [
        "x.custom",
        "x-user.ids",
        "x.user",
        "xuserid",
        "x--user-id",
        "user.agents",
        "accepted_terms",
        "acceptance.id",
        "content_id",
        "content.ids",
        "if_ready",
    ] {
        assert_eq!(stripped(&[(name, "x")]), [format!("{name}: x")]);
    }
}

#[test]
fn ordinary_headers_stay() {
    let given = [
        ("accept", "*/*"),
        ("authorization", "Bearer t"),
        ("content-length", "5"),
        ("cookie", "a=b"),
        ("host", "h"),
        ("x_custom", "1"),
        ("x-users-id", "2"),
    ];
    assert_eq!(stripped(&given).len(), given.len());
    assert_eq!(stripped(&[("transfer-encoding", "chunked")]), ["transfer-encoding: chunked"]);
}

#[test]
fn configured_carriers_are_stripped_too() {
    let names = Names {
        claims: vec![("email".into(), HeaderName::from_static("x-forwarded-email"))],
        also_strip: vec![HeaderName::from_static("remote_user")],
        ..Names::default()
    };
    let settings = Settings::new(names, Chain::Verified, false).unwrap();
    let mut headers = map(&[("X_Forwarded_Email", "a"), ("Remote-User", "b"), ("Remote_User", "c")]);
    strip(&settings, &mut headers, Keep::default());
    assert!(headers.is_empty());
    assert_eq!(settings.claim_header("email").map(HeaderName::as_str), Some("x-forwarded-email"));
    assert_eq!(settings.claim_header("mail"), None);
}

#[test]
fn identity_cannot_be_carried_in_a_header_with_a_meaning() {
    let with = |name: &'static str| {
        let names = Names { user_id: HeaderName::from_static(name), ..Names::default() };
        Settings::new(names, Chain::Verified, false).err()
    };
    for name in
        ["host", "authorization", "connection", "x-forwarded-for", "content-type", "x_real_ip", "expect"]
    {
        assert_eq!(with(name), Some(SettingsError::Reserved(HeaderName::from_static(name))));
    }
    assert!(matches!(with("x_user_plan"), Some(SettingsError::Twice(_))));
    assert!(matches!(with("x.user.plan"), Some(SettingsError::Twice(_))));
    assert!(matches!(with("content.type"), Some(SettingsError::Reserved(_))));
    assert_eq!(with("x-account"), None);
}

#[test]
fn a_nomination_removes_only_what_it_may() {
    let given = [
        (
            "connection",
            "close, X-Hop , authorization,cookie, host, content-length, cache-control, origin, if-match",
        ),
        ("connection", "x-user-id, x-request-id, bad name,,"),
        ("x-hop", "1"),
        ("authorization", "Bearer t"),
        ("cookie", "a=b"),
        ("host", "h"),
        ("content-length", "5"),
        ("cache-control", "no-cache"),
        ("origin", "http://o"),
        ("if-match", "\"1\""),
    ];
    let left = stripped(&given);
    assert_eq!(left.len(), 7, "{left:?}");
    assert!(left.iter().all(|line| !line.starts_with("x-hop") && !line.starts_with("connection")));

    let identity = Identity { user_id: Some("u1"), ..Identity::default() };
    let headers = sent(&Settings::default(), &given, false, identity);
    assert_eq!(text(&headers, "x-user-id"), Some("u1"));
    assert!(text(&headers, "x-request-id").is_some());
}

#[test]
fn a_websocket_handshake_is_written_anew() {
    let mut headers = map(&[
        ("connection", "keep-alive, Upgrade, x-hop"),
        ("upgrade", "WebSocket"),
        ("x-hop", "1"),
        ("sec-websocket-key", "k"),
    ]);
    strip(&Settings::default(), &mut headers, Keep { websocket: true, te_trailers: false });
    assert_eq!(lines(&headers), ["connection: upgrade", "sec-websocket-key: k", "upgrade: websocket"]);
}

#[test]
fn te_is_kept_for_trailers_alone() {
    for (given, left) in [("trailers", 1), ("gzip, trailers;q=1", 0), ("gzip, Trailers", 1), ("gzip", 0)] {
        let mut headers = map(&[("te", given)]);
        strip(&Settings::default(), &mut headers, Keep { websocket: false, te_trailers: true });
        assert_eq!(headers.len(), left, "{given}");
        assert!(headers.get("te").is_none_or(|value| value == "trailers"));
    }
}

#[test]
fn cookie_crumbs_become_one_line() {
    let left = stripped(&[("cookie", "a=1"), ("cookie", ""), ("cookie", "b=2; c=3")]);
    assert_eq!(left, ["cookie: a=1; b=2; c=3"]);
    assert_eq!(stripped(&[("cookie", "a=1")]), ["cookie: a=1"]);
}

#[test]
fn an_untrusted_client_is_told_as_it_is() {
    let given = [
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-host", "evil"),
        ("x-forwarded-proto", "gopher"),
        ("x-real-ip", "6.6.6.6"),
        ("x-request-id", "mine"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tracestate", "a=b"),
        ("x-user-id", "admin"),
    ];
    let headers = sent(&Settings::default(), &given, false, Identity::default());
    assert_eq!(text(&headers, "x-forwarded-for"), Some("198.51.100.7"));
    assert_eq!(text(&headers, "x-forwarded-host"), Some("api.example.com"));
    assert_eq!(text(&headers, "x-forwarded-proto"), Some("https"));
    assert_eq!(text(&headers, "x-real-ip"), None);
    assert_eq!(text(&headers, "tracestate"), None);
    assert_eq!(text(&headers, "x-user-id"), None);
    assert_ne!(text(&headers, "x-request-id"), Some("mine"));
    assert_eq!(text(&headers, "x-request-id").map(str::len), Some(32));
    assert!(!text(&headers, "traceparent").unwrap().contains("4bf92f"));
}

#[test]
fn a_trusted_proxy_is_continued() {
    let given = [
        ("x-forwarded-for", "6.6.6.6, 198.51.100.7"),
        ("x-request-id", "edge-1"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tracestate", "a=b"),
    ];
    let headers = sent(&Settings::default(), &given, true, Identity::default());
    assert_eq!(text(&headers, "x-forwarded-for"), Some("198.51.100.7, 10.0.0.1"));
    assert_eq!(text(&headers, "x-request-id"), Some("edge-1"));
    assert_eq!(text(&headers, "traceparent"), Some(given[2].1));
    assert_eq!(text(&headers, "tracestate"), Some("a=b"));

    let append = Settings::new(Names::default(), Chain::Append, true).unwrap();
    let headers = sent(&append, &given, true, Identity::default());
    assert_eq!(text(&headers, "x-forwarded-for"), Some("6.6.6.6, 198.51.100.7, 10.0.0.1"));
    assert_eq!(text(&headers, "x-real-ip"), Some("198.51.100.7"));
    let headers = sent(&append, &given, false, Identity::default());
    assert_eq!(text(&headers, "x-forwarded-for"), Some("198.51.100.7"));
    let long = "6.6.6.6, ".repeat(1000) + "198.51.100.7";
    let headers = sent(&append, &[("x-forwarded-for", &long)], true, Identity::default());
    assert_eq!(text(&headers, "x-forwarded-for"), Some("198.51.100.7, 10.0.0.1"));
}

#[test]
fn only_a_clean_request_id_is_taken_over() {
    let longest = "a".repeat(MAX_REQUEST_ID);
    for (given, taken) in
        [("a", true), (&*longest, true), ("", false), ("a b", false), (&*(longest.clone() + "a"), false)]
    {
        let id = request_id(&map(&[("x-request-id", given)]), true);
        assert_eq!(id == given, taken, "{given}");
    }
    let two = map(&[("x-request-id", "a"), ("x-request-id", "a")]);
    assert_eq!(request_id(&two, true).len(), 32);
    assert_ne!(new_request_id(), new_request_id());
}

#[test]
fn a_trace_parent_is_parsed_strictly() {
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let parsed = TraceParent::parse(good.as_bytes()).unwrap();
    assert_eq!((parsed.as_str(), parsed.trace_id()), (good, "4bf92f3577b34da6a3ce929d0e0e4736"));
    let child = parsed.child();
    assert_eq!(child.trace_id(), parsed.trace_id());
    assert_ne!(child.as_str(), good);
    assert!(TraceParent::parse(child.as_str().as_bytes()).is_some());
    let later = good.replacen("00", "cc", 1) + "-more";
    assert_eq!(
        TraceParent::parse(later.as_bytes()).map(|trace| trace.as_str().to_owned()).as_deref(),
        Some(good)
    );
    for bad in [
        String::new(),
        good.to_uppercase(),
        good.replacen("00", "ff", 1),
        good.replacen("00", "0", 1),
        format!("{good}-more"),
        format!("{good}0"),
        good.replace('-', "_"),
        good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
        good.replace("00f067aa0ba902b7", &"0".repeat(16)),
        good.replace("4bf9", "4bg9"),
        good.replace("a6a3", "-6a3"),
    ] {
        assert_eq!(TraceParent::parse(bad.as_bytes()), None, "{bad}");
    }
    let fresh = TraceParent::fresh();
    assert!(!fresh.is_continued() && fresh.as_str().starts_with("00-") && fresh.as_str().ends_with("-01"));
    assert!(TraceParent::parse(fresh.as_str().as_bytes()).is_some_and(|trace| trace.is_continued()));
}

#[test]
fn identity_is_written_once_and_safely() {
    let permissions: Vec<Box<str>> = vec!["read".into(), "a,b".into(), "".into(), "write all".into()];
    let claims = [(HeaderName::from_static("x-email"), Box::from("ü@example.com"))];
    let identity = Identity {
        user_id: Some("u\r\nX-Admin: 1"),
        plan: Some("pro"),
        permissions: &permissions,
        claims: &claims,
    };
    let given = [("x-user-id", "0"), ("x_user_id", "0"), ("x-user-plan", "enterprise")];
    let names =
        Names { claims: vec![("email".into(), HeaderName::from_static("x-email"))], ..Names::default() };
    let settings = Settings::new(names, Chain::Verified, false).unwrap();
    let headers = sent(&settings, &given, false, identity);
    assert_eq!(text(&headers, "x-user-id"), Some("u%0D%0AX-Admin: 1"));
    assert_eq!(text(&headers, "x-user-plan"), Some("pro"));
    assert_eq!(text(&headers, "x-user-permissions"), Some("read,a%2Cb,write all"));
    assert_eq!(text(&headers, "x-email"), Some("%C3%BC@example.com"));
    assert_eq!(text(&headers, "x_user_id"), None);
}

#[test]
fn what_is_empty_or_too_long_is_left_out() {
    assert_eq!(safe_value(""), None);
    assert_eq!(safe_value(" ").as_ref().map(HeaderValue::as_bytes), Some(&b"%20"[..]));
    assert_eq!(safe_value(&"a".repeat(MAX_VALUE)).map(|value| value.len()), Some(MAX_VALUE));
    assert_eq!(safe_value(&"a".repeat(MAX_VALUE + 1)), None);
    assert_eq!(safe_value(&"é".repeat(MAX_VALUE)), None);
    assert_eq!(safe_value(&"a".repeat(10_000_000)), None);
    assert_eq!(joined_value(&[]), None);
}

#[test]
fn responses_lose_hop_by_hop_headers() {
    let given = [
        ("connection", "close, x-internal, set-cookie, content-length, keep-alive"),
        ("keep-alive", "timeout=9"),
        ("proxy-authenticate", "Basic"),
        ("x-internal", "1"),
        ("set-cookie", "a=b"),
        ("content-length", "5"),
        ("upgrade", "h2c"),
        ("etag", "\"1\""),
    ];
    let mut headers = map(&given);
    strip_response(&mut headers, false);
    assert_eq!(lines(&headers), ["content-length: 5", "etag: \"1\"", "set-cookie: a=b"]);

    let mut headers = map(&[("connection", "Upgrade, x-hop"), ("upgrade", "websocket"), ("x-hop", "1")]);
    strip_response(&mut headers, true);
    assert_eq!(lines(&headers), ["connection: upgrade", "upgrade: websocket"]);
}

proptest! {
    #[test]
    fn a_safe_value_decodes_to_its_text(given in any::<String>()) {
        if let Some(value) = safe_value(&given) {
            prop_assert!(value.as_bytes().iter().all(|byte| (b' '..=b'~').contains(byte)));
            let decoded: Vec<u8> = percent_encoding::percent_decode(value.as_bytes()).collect();
            prop_assert_eq!(decoded, given.into_bytes());
        }
    }

    #[test]
    fn no_client_header_imitates_identity(
        name in "[xX][-_.!#$%&'*+^`|~][uU][sS][eE][rR][-_.!#$%&'*+^`|~]([iI][dD]|[pP]lan|PERMISSIONS)", value in "[!-~]{1,20}",
        nomination in "[a-zA-Z_, -]{0,30}",
    ) {
        let given = [(name.as_str(), value.as_str()), ("connection", nomination.as_str())];
        let headers = sent(&Settings::default(), &given, false, Identity { user_id: Some("u"), ..Identity::default() });
        let seen: Vec<_> = headers.iter().filter(|(name, _)| names::dashed(name.as_str()).starts_with("x-user-")).collect();
        prop_assert_eq!(seen.len(), 1);
        prop_assert_eq!(seen[0].1.as_bytes(), b"u");
    }
}

#[test]
fn an_api_token_never_goes_on_and_other_credentials_do() {
    let settings = Settings::default().with_api_tokens(true);
    let token = "tgk_0123456789abcdef_0";
    for (value, stays) in [
        (format!("Bearer {token}"), false),
        (format!("bearer   {token}"), false),
        (format!("Bearer\t{token}"), false),
        (format!("Basic x, Bearer {token}"), false),
        (token.to_owned(), false),
        ("Bearer a.b.tgk_c".to_owned(), true),
        ("Basic dGdrXzEyMw==".to_owned(), true),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", value.parse().unwrap());
        let mut untouched = headers.clone();
        strip(&settings, &mut headers, Keep::default());
        assert_eq!(headers.contains_key("authorization"), stays, "{value}");
        strip(&Settings::default(), &mut untouched, Keep::default());
        assert!(untouched.contains_key("authorization"));
    }
}
