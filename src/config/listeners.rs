//! Reads `[server]`, `[admin]`, `[redis]`, `[log]` and `[cache]`: what an instance is, apart from what it does.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::reader::Reader;
use super::spec::{Admin, Cache, Log, Redis, Server};
use super::value::{Secret, Size, is_host_name};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const KIB: u64 = 1 << 10;

/// An admin credential shorter than this can be guessed.
const MIN_ADMIN_TOKEN: usize = 16;

pub(super) fn server(root: &Reader<'_>) -> Server {
    let reader = root.section("server");
    let listen: Vec<SocketAddr> = reader.list("listen");
    let listen_h2c: Vec<SocketAddr> = reader.list("listen_h2c");
    if listen.is_empty()
        && listen_h2c.is_empty()
        && !reader.reported("listen")
        && !reader.reported("listen_h2c")
    {
        reader.refuse("listen", "is empty; accepted: at least one address such as \"0.0.0.0:8080\"");
    }
    Server {
        listen,
        listen_h2c,
        threads: Some(reader.within::<u16>("threads", 0..=1024)).filter(|threads| *threads > 0),
        trusted_proxies: trusted_proxies(&reader),
        client_address_header: reader.get("client_address_header"),
        ipv6_prefix: reader.within("ipv6_prefix", 1..=128),
        keepalive_timeout: reader.duration("keepalive_timeout", SECOND..=HOUR),
        body_timeout: reader.duration("body_timeout", SECOND / 10..=HOUR),
        write_timeout: reader.duration("write_timeout", SECOND / 10..=HOUR),
        max_uri: size(&reader, "max_uri", 256, 64 * KIB),
        max_header_size: size(&reader, "max_header_size", KIB, KIB * KIB),
        max_headers: reader.within("max_headers", 8..=256),
        max_body: reader.get::<Size>("max_body").0,
        case_insensitive_paths: reader.get("case_insensitive_paths"),
        ignore_trailing_slash: reader.get("ignore_trailing_slash"),
        allow_encoded_slashes: reader.get("allow_encoded_slashes"),
        allow_path_parameters: reader.get("allow_path_parameters"),
        shutdown_timeout: reader.duration("shutdown_timeout", Duration::ZERO..=HOUR),
    }
}

fn trusted_proxies(reader: &Reader<'_>) -> Vec<IpNet> {
    let networks: Vec<IpNet> = reader.list("trusted_proxies");
    for network in &networks {
        if network.prefix_len() == 0 {
            reader.refuse(
                "trusted_proxies",
                format!(
                    "{network} would believe every client's own forwarding headers; \
                     accepted: the addresses of your proxies"
                ),
            );
        } else if network.prefix_len() < 8 {
            reader.warn("trusted_proxies", format!("{network} is a very large network to believe"));
        }
    }
    networks
}

pub(super) fn admin(root: &Reader<'_>, server: &Server) -> Admin {
    let reader = root.section("admin");
    let listen = reader.opt::<SocketAddr>("listen");
    let token = reader.opt::<Secret>("token");
    if token.as_ref().is_some_and(|token| token.expose().len() < MIN_ADMIN_TOKEN) {
        reader.warn(
            "token",
            format!("is short enough to be guessed; {MIN_ADMIN_TOKEN} random bytes or more are safe"),
        );
    }
    match listen {
        Some(listen) if token.is_none() && !listen.ip().is_loopback() && !reader.reported("token") => {
            reader.warn(
                "listen",
                "is reachable from other machines while admin.token is not set: the admin API is closed there, \
                 and anyone can read /metrics and /health",
            );
        }
        None if !reader.reported("listen") => {
            reader.refuse("listen", "is empty; accepted: an address such as \"127.0.0.1:9090\"");
        }
        _ => {}
    }
    let listen = listen.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090));
    shared_addresses(root, server, &reader, listen);
    Admin { listen, hosts: hosts(&reader), token, health_detail: reader.get("health_detail") }
}

fn hosts(reader: &Reader<'_>) -> Vec<Box<str>> {
    let hosts: Vec<String> = reader.list("hosts");
    for (index, host) in hosts.iter().enumerate().filter(|(_, host)| !is_host_name(host)) {
        reader.refuse_item(
            "hosts",
            index,
            format!("{host:?} is not accepted; accepted: a name without port such as \"tollgate.internal\""),
        );
    }
    hosts.into_iter().map(|host| host.to_ascii_lowercase().into()).collect()
}

/// Two listeners cannot share an address; an unspecified address takes the port of every address.
fn shared_addresses(root: &Reader<'_>, server: &Server, admin_reader: &Reader<'_>, admin: SocketAddr) {
    let server_reader = root.section("server");
    let mut taken: Vec<SocketAddr> = Vec::new();
    let all = (server.listen.iter().map(|address| (&server_reader, "listen", *address)))
        .chain(server.listen_h2c.iter().map(|address| (&server_reader, "listen_h2c", *address)))
        .chain(std::iter::once((admin_reader, "listen", admin)));
    for (reader, key, address) in all {
        if let Some(other) = taken.iter().find(|other| overlap(**other, address)) {
            reader.refuse(
                key,
                format!("{address} and {other} are the same address; accepted: one listener each"),
            );
        }
        taken.push(address);
    }
}

fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && one.port() != 0
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

pub(super) fn redis(root: &Reader<'_>) -> Redis {
    let reader = root.section("redis");
    let key_prefix: String = reader.get("key_prefix");
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'-' | b'_' | b'.');
    if key_prefix.len() > 64 || !key_prefix.bytes().all(is_plain) {
        reader.refuse(
            "key_prefix",
            "is not accepted; accepted: at most 64 letters, digits, \":\", \"-\", \"_\" and \".\"",
        );
    }
    Redis {
        url: reader.opt("url"),
        key_prefix: key_prefix.into(),
        hash_tags: reader.get("hash_tags"),
        connect_timeout: reader.duration("connect_timeout", SECOND / 100..=MINUTE),
        deadline: reader.duration("deadline", Duration::from_millis(1)..=SECOND),
        health_check_interval: reader.duration("health_check_interval", SECOND / 10..=HOUR),
        breaker_failures: reader.within("breaker_failures", 1..=1000),
    }
}

pub(super) fn log(root: &Reader<'_>) -> Log {
    let reader = root.section("log");
    Log {
        format: reader.get("format"),
        level: reader.get("level"),
        access: reader.get("access"),
        access_fields: reader.list("access_fields"),
    }
}

/// How many times the largest object the cache's memory must be: three quarters of it are for responses, half of that
/// for stored ones and half for those on their way in, each with some room for its head.
const LEAST_OBJECTS: u64 = 4;

pub(super) fn cache(root: &Reader<'_>) -> Cache {
    let reader = root.section("cache");
    let memory = size(&reader, "memory", 0, 1 << 40);
    let max_object = size(&reader, "max_object", 1, 1 << 30);
    let least = max_object.saturating_mul(LEAST_OBJECTS);
    if memory < least && !reader.reported("memory") && !reader.reported("max_object") {
        let least = bytesize::ByteSize::b(least).display().iec();
        reader.refuse(
            "memory",
            format!("has no room for objects of cache.max_object; accepted: {least} or more"),
        );
    }
    Cache {
        memory,
        redis: reader.get("redis"),
        max_object,
        redis_max_object: size(&reader, "redis_max_object", 1, 1 << 29),
        max_lifetime: reader.duration("max_lifetime", SECOND..=HOUR * 24 * 366),
        expose_key: reader.get("expose_key"),
    }
}

fn size(reader: &Reader<'_>, key: &str, least: u64, most: u64) -> u64 {
    let Size(bytes) = reader.get(key);
    if !reader.reported(key) && !(least..=most).contains(&bytes) {
        let shown = |bytes| bytesize::ByteSize::b(bytes).display().iec();
        reader.refuse(key, format!("is out of range; accepted: {} to {}", shown(least), shown(most)));
    }
    bytes
}
