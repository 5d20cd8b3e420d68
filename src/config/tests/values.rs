use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use ipnet::IpNet;

use crate::config::value::{Kind, Leaf, Raw, Size};

use super::*;

fn text<T: Leaf>(text: &str) -> Option<T> {
    T::decode(&Raw { kind: Kind::Text, text: text.to_owned() }).ok()
}

#[test]
fn durations_need_a_unit() {
    for (written, millis) in [("20ms", 20), ("60s", 60_000), ("5m", 300_000), ("1h30m", 5_400_000), ("0s", 0)]
    {
        assert_eq!(text::<Duration>(written), Some(Duration::from_millis(millis)), "{written}");
    }
    for wrong in ["", "5", "-5s", "5 parsecs", "s", "99999999999999999999s", "999999999999999999y"] {
        assert_eq!(text::<Duration>(wrong), None, "{wrong}");
    }
}

#[test]
fn sizes_are_decimal_or_binary() {
    for (written, bytes) in
        [("64KiB", 65_536), ("10MB", 10_000_000), ("0", 0), ("17", 17), ("1.5 MiB", 1_572_864)]
    {
        assert_eq!(text::<Size>(written), Some(Size(bytes)), "{written}");
    }
    for wrong in ["", "-1", "1 potato", "1e400GB", "9999999TiB", "nan", "infKB"] {
        assert_eq!(text::<Size>(wrong), None, "{wrong}");
    }
}

#[test]
fn networks_may_be_single_addresses_and_are_canonical() {
    let shown = |written: &str| text::<IpNet>(written).map(|net| net.to_string());
    assert_eq!(shown("10.1.2.3/8").as_deref(), Some("10.0.0.0/8"));
    assert_eq!(shown("192.0.2.7").as_deref(), Some("192.0.2.7/32"));
    assert_eq!(shown("fd00::1").as_deref(), Some("fd00::1/128"));
    assert_eq!(shown("10.0.0.0/33"), None);
    assert_eq!(shown("example.com"), None);
}

#[test]
fn members_are_a_host_and_a_port() {
    let shown = |written: &str| text::<HostPort>(written).map(|member| member.to_string());
    for fine in ["127.0.0.1:80", "api.internal:8000", "[::1]:1", "my_service:65535"] {
        assert_eq!(shown(fine).as_deref(), Some(fine));
    }
    for wrong in [
        "",
        ":80",
        "a",
        "a:",
        "a:0",
        "a:65536",
        "http://a:80",
        "a/b:80",
        "::1:80",
        "[a]:80",
        "a b:1",
        "a@b:1",
    ] {
        assert_eq!(shown(wrong), None, "{wrong}");
    }
}

#[test]
fn listeners_are_addresses() {
    assert_eq!(text::<SocketAddr>("localhost:80"), Some(SocketAddr::from(([127, 0, 0, 1], 80))));
    assert!(text::<SocketAddr>("[::]:80").is_some());
    assert!(text::<SocketAddr>("example.com:80").is_none());
    assert!(text::<SocketAddr>("0.0.0.0").is_none());
}

#[test]
fn methods_are_capitals() {
    assert_eq!(text::<Method>("GET"), Some(Method::GET));
    assert_eq!(text::<Method>("PROPFIND").unwrap().as_str(), "PROPFIND");
    for wrong in ["", "get", "CONNECT", "GE T", "G\u{e9}T"] {
        assert_eq!(text::<Method>(wrong), None, "{wrong}");
    }
}

#[test]
fn redis_addresses_of_other_kinds_are_refused() {
    for (fine, is_cluster) in [
        ("redis://localhost", false),
        ("rediss://u:p@h:6380/3", false),
        ("redis://:p%40ss@[::1]:6379", false),
        ("redis+sentinel://:p@one,two:26380/main/2", false),
        ("rediss+cluster://u:p@one:7000,two", true),
    ] {
        assert_eq!(text::<RedisUrl>(fine).map(|url| url.is_cluster()), Some(is_cluster), "{fine}");
    }
    for wrong in
        ["localhost:6379", "http://h", "redis+cluster://h/1", "redis://h/notadb", "unix:///x", "redis://"]
    {
        assert!(text::<RedisUrl>(wrong).is_none(), "{wrong}");
    }
}

#[test]
fn a_redis_address_is_shown_without_credentials() {
    for url in [
        "redis://u:hunter2@h:1/2",
        "redis://:hunter2@h",
        "redis://h?password=hunter2",
        "redis://a:b@hunter2@h",
        "redis+sentinel://u:hunter2@one,two/main?sentinel_password=hunter2",
        "redis+cluster://u:hunter2@one,two",
    ] {
        if let Some(url) = text::<RedisUrl>(url) {
            assert!(!format!("{url} {url:?}").contains("hunter2"), "{}", url.expose());
        }
    }
}
