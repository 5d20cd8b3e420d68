use super::*;
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

fn settings(trusted: &[&str], source: Source) -> Settings {
    Settings::new(trusted.iter().map(|network| network.parse().unwrap()).collect(), 64, source).unwrap()
}

fn headers(name: &HeaderName, lines: &[&str]) -> HeaderMap {
    lines.iter().map(|line| (name.clone(), HeaderValue::from_str(line).unwrap())).collect()
}

fn xff(peer: &str, lines: &[&str]) -> String {
    let settings = settings(&["10.0.0.0/8", "2001:db8:1::/48"], Source::XForwardedFor);
    resolve(&settings, peer.parse().unwrap(), &headers(&X_FORWARDED_FOR, lines)).ip.to_string()
}

fn forwarded(lines: &[&str]) -> String {
    let settings = settings(&["10.0.0.0/8"], Source::Forwarded);
    resolve(&settings, "10.0.0.1".parse().unwrap(), &headers(&FORWARDED, lines)).ip.to_string()
}

#[test]
fn an_untrusted_peer_is_the_client_whatever_it_says() {
    assert_eq!(xff("203.0.113.9", &["1.2.3.4"]), "203.0.113.9");
    assert_eq!(xff("203.0.113.9", &["10.0.0.5"]), "203.0.113.9");
    let none =
        resolve(&Settings::default(), "127.0.0.1".parse().unwrap(), &headers(&X_FORWARDED_FOR, &["1.2.3.4"]));
    assert_eq!((none.ip.to_string().as_str(), none.peer_trusted), ("127.0.0.1", false));
}

#[test]
fn the_walk_ends_at_the_first_address_without_a_witness() {
    for (lines, expected) in [
        (&[][..], "10.0.0.1"),
        (&[""], "10.0.0.1"),
        (&["198.51.100.7"], "198.51.100.7"),
        (&["6.6.6.6, 198.51.100.7"], "198.51.100.7"),
        (&["6.6.6.6, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        (&["6.6.6.6", "198.51.100.7", "10.0.0.2"], "198.51.100.7"),
        (&["10.0.0.9,\t198.51.100.7 ,, 10.0.0.2,"], "198.51.100.7"),
        (&["10.0.0.4, 10.0.0.3"], "10.0.0.4"),
        (&["198.51.100.7:4711"], "198.51.100.7"),
        (&["[2001:db8::7]:4711"], "2001:db8::7"),
        (&["[2001:db8::7]"], "2001:db8::7"),
        (&["2001:db8::7"], "2001:db8::7"),
        (&["198.51.100.7, 2001:db8:1::1"], "198.51.100.7"),
        (&["::ffff:198.51.100.7"], "198.51.100.7"),
        (&["6.6.6.6, ::ffff:10.0.0.2"], "6.6.6.6"),
    ] {
        assert_eq!(xff("10.0.0.1", lines), expected, "{lines:?}");
    }
}

#[test]
fn nothing_left_of_garbage_is_believed() {
    for garbage in [
        "unknown",
        "_hidden",
        "1.2.3",
        "1.2.3.4.5",
        "01.2.3.4",
        "1.2.3.4:",
        "1.2.3.4:99999",
        "[::1",
        "::1]",
        "[1.2.3.4]",
        "fe80::1%eth0",
        "\"1.2.3.4\"",
        "for=1.2.3.4",
        "1.2.3.4 5.6.7.8",
        "localhost",
        "0x7f.1",
        "2130706433",
        "[::1]x",
    ] {
        assert_eq!(xff("10.0.0.1", &[garbage]), "10.0.0.1", "{garbage}");
        assert_eq!(xff("10.0.0.1", &[&format!("6.6.6.6, {garbage}, 10.0.0.2")]), "10.0.0.2", "{garbage}");
    }
}

#[test]
fn a_mapped_peer_is_its_ipv4_address() {
    assert_eq!(xff("::ffff:10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
    assert_eq!(xff("::ffff:203.0.113.9", &["198.51.100.7"]), "203.0.113.9");
    let mapped = settings(&["::ffff:10.0.0.0/104"], Source::XForwardedFor);
    assert!(mapped.trusts("10.9.9.9".parse().unwrap()) && !mapped.trusts("11.0.0.1".parse().unwrap()));
}

#[test]
fn ten_thousand_entries_are_walked_for_64() {
    let line = "10.0.0.2,".repeat(10_000);
    assert_eq!(xff("10.0.0.1", &[&format!("6.6.6.6,{line}")]), "10.0.0.2");
    let near = format!("6.6.6.6,{}", "10.0.0.2,".repeat(MAX_HOPS - 1));
    assert_eq!(xff("10.0.0.1", &[&near]), "6.6.6.6");
    let far = format!("6.6.6.6,{}", "10.0.0.2,".repeat(MAX_HOPS));
    assert_eq!(xff("10.0.0.1", &[&far]), "10.0.0.2");
}

#[test]
fn forwarded_elements_are_walked_alike() {
    for (lines, expected) in [
        (&["for=198.51.100.7"][..], "198.51.100.7"),
        (&["For=\"[2001:db8::7]:4711\";proto=https"], "2001:db8::7"),
        (&["for=\"198.51.100.7:80\" ; by=10.0.0.1"], "198.51.100.7"),
        (&["for=6.6.6.6, for=198.51.100.7;proto=http, for=10.0.0.2"], "198.51.100.7"),
        (&["for=6.6.6.6", "for=198.51.100.7"], "198.51.100.7"),
        (&["for=\"x, for=198.51.100.7"], "198.51.100.7"),
        (&["for=6.6.6.6, for=\"a,b\", for=10.0.0.2"], "10.0.0.2"),
        (&["for=6.6.6.6, for=unknown"], "10.0.0.1"),
        (&["for=6.6.6.6, for=_gazonk, for=10.0.0.2"], "10.0.0.2"),
        (&["for=6.6.6.6, proto=https"], "10.0.0.1"),
        (&["for=6.6.6.6;for=7.7.7.7"], "10.0.0.1"),
        (&["for=\"6.6.6.6\\\"\""], "10.0.0.1"),
        (&["for=\"6.6.6.6"], "10.0.0.1"),
        (&["garbage"], "10.0.0.1"),
        (&["for = 6.6.6.6"], "10.0.0.1"),
    ] {
        assert_eq!(forwarded(lines), expected, "{lines:?}");
    }
}

#[test]
fn only_the_configured_header_is_read() {
    let settings = settings(&["10.0.0.0/8"], Source::Forwarded);
    let client = resolve(&settings, "10.0.0.1".parse().unwrap(), &headers(&X_FORWARDED_FOR, &["6.6.6.6"]));
    assert_eq!(client.ip.to_string(), "10.0.0.1");
}

#[test]
fn an_ipv6_network_is_one_subject() {
    let subject = |ip: &str, prefix| Subject::new(ip.parse().unwrap(), prefix).text().as_str().to_owned();
    assert_eq!(subject("2001:db8:0:7:aaaa::1", 64), "2001:db8:0:7::/64");
    assert_eq!(subject("2001:db8:0:7:bbbb::2", 64), "2001:db8:0:7::/64");
    assert_eq!(subject("2001:db8:0:7::2", 48), "2001:db8::/48");
    assert_eq!(subject("2001:db8::2", 128), "2001:db8::2/128");
    assert_eq!(subject("192.0.2.1", 64), "192.0.2.1");
    assert_eq!(subject("::ffff:192.0.2.1", 64), "192.0.2.1");
    let longest = subject("1111:2222:3333:4444:5555:6666:7777:8888", 128);
    assert_eq!(longest, "1111:2222:3333:4444:5555:6666:7777:8888/128");
}

#[test]
fn a_prefix_outside_ipv6_is_refused() {
    for bits in [0, 129] {
        assert_eq!(Settings::new(vec![], bits, Source::default()), Err(SettingsError::Ipv6Prefix(bits)));
    }
}

#[test]
fn only_a_trusted_proxy_tells_scheme_and_host() {
    let settings = settings(&["10.0.0.0/8"], Source::XForwardedFor);
    let mut map = headers(&X_FORWARDED_PROTO, &["http, HTTPS"]);
    map.insert(X_FORWARDED_HOST.clone(), HeaderValue::from_static("evil.com, api.example.com:8443"));
    let from = |peer: &str| resolve(&settings, peer.parse().unwrap(), &map);
    let fine = Told { scheme: Some(Scheme::Https), host: Some("api.example.com:8443") };
    assert_eq!(told(&settings, &from("10.0.0.1"), &map), fine);
    assert_eq!(told(&settings, &from("11.0.0.1"), &map), Told::default());
    for bad in ["a b", "a/b", "u@h", "h:x", "h:", "h:70000", "[::1", "a:b:c", ":80", "é"] {
        let value = HeaderValue::from_bytes(bad.as_bytes()).unwrap();
        let map: HeaderMap = [(X_FORWARDED_HOST.clone(), value)].into_iter().collect();
        let accepted = told(&settings, &from("10.0.0.1"), &map).host;
        assert_eq!(accepted, None, "{bad}");
    }
}

#[test]
fn a_forwarded_element_tells_scheme_and_host() {
    let settings = settings(&["10.0.0.0/8"], Source::Forwarded);
    let map = headers(&FORWARDED, &["for=6.6.6.6;host=evil.com, for=1.2.3.4;host=\"[::1]:80\";proto=https"]);
    let client = resolve(&settings, "10.0.0.1".parse().unwrap(), &map);
    let expected = Told { scheme: Some(Scheme::Https), host: Some("[::1]:80") };
    assert_eq!(told(&settings, &client, &map), expected);
}

proptest! {
    #[test]
    fn what_a_client_writes_never_changes_what_proxies_append(forged in "[ -~]{0,60}", hops in 0usize..4) {
        let tail = ", 10.0.0.2".repeat(hops);
        prop_assert_eq!(xff("10.0.0.1", &[&format!("{forged}, 198.51.100.7{tail}")]), "198.51.100.7");
        let tail = ", for=10.0.0.2".repeat(hops);
        prop_assert_eq!(forwarded(&[&format!("{forged}, for=198.51.100.7{tail}")]), "198.51.100.7");
    }

    #[test]
    fn an_untrusted_peer_is_always_itself(forged in "[ -~]{0,80}", peer in any::<[u8; 16]>()) {
        let peer = IpAddr::from(peer);
        let settings = settings(&["10.0.0.0/8"], Source::XForwardedFor);
        let client = resolve(&settings, peer, &headers(&X_FORWARDED_FOR, &[&forged]));
        if !settings.trusts(peer) {
            prop_assert_eq!(client.ip, peer.to_canonical());
        }
    }

    #[test]
    fn a_subject_is_stable_within_its_network(address in any::<u128>(), other in any::<u64>()) {
        let sibling = (address >> 64 << 64) | u128::from(other);
        let of = |bits| Subject::new(IpAddr::V6(std::net::Ipv6Addr::from_bits(bits)), 64);
        prop_assume!(address >> 64 != 0);
        prop_assert_eq!(of(address), of(sibling));
    }
}
