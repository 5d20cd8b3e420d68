//! How the store is reached, read from one URL: a single Redis, a master that sentinels name, or a Cluster.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

const DEFAULT_SERVICE: &str = "mymaster";
const SENTINEL_PORT: u16 = 26_379;
const REDIS_PORT: u16 = 6_379;

/// How the store is reached; valid by construction.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(super) target: Target,
    /// Put before every key this gateway writes or reads; may be empty.
    pub key_prefix: Arc<str>,
    /// Longest time one connection attempt may take.
    pub connect_timeout: Duration,
    /// Longest time a request waits for the store, connecting included.
    pub deadline: Duration,
    /// Pause between two `PING`s while all is well.
    pub health_check_interval: Duration,
    /// Consecutive failures after which requests stop asking, once they span two deadlines.
    pub breaker_failures: u32,
}

/// What the URL names.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// One Redis at a fixed address.
    Single(ConnectionInfo),
    /// The master that these sentinels name.
    Sentinel {
        sentinels: Vec<ConnectionInfo>,
        service: Box<str>,
        /// How the master is spoken to, whatever its address.
        master: ConnectionInfo,
    },
    /// The cluster that these nodes belong to.
    Cluster {
        /// Never empty.
        seeds: Vec<ConnectionInfo>,
    },
}

/// The URL cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "not a usable Redis URL; accepted: redis://[user:password@]host[:port][/db], \
     redis+sentinel://[user:password@]host[:port][,host[:port]…][/service[/db]] and \
     redis+cluster://[user:password@]host[:port][,host[:port]…], with rediss for TLS"
)]
pub struct UnusableUrl;

impl Settings {
    /// The number of the database.
    pub(super) fn database(&self) -> i64 {
        match &self.target {
            Target::Single(info) | Target::Sentinel { master: info, .. } => info.redis_settings().db(),
            Target::Cluster { .. } => 0,
        }
    }

    /// Settings for `url` with the documented defaults: connect 2 s, deadline 20 ms, health check 30 s,
    /// breaker after 5 failures.
    ///
    /// # Errors
    /// When `url` is none of the accepted forms, which the error names.
    pub fn new(url: &str) -> Result<Self, UnusableUrl> {
        Ok(Self {
            target: Target::parse(url)?,
            key_prefix: Arc::from(""),
            connect_timeout: Duration::from_secs(2),
            deadline: Duration::from_millis(20),
            health_check_interval: Duration::from_secs(30),
            breaker_failures: 5,
        })
    }

    /// Whether the URL names a Redis Cluster.
    pub fn is_cluster(&self) -> bool {
        matches!(self.target, Target::Cluster { .. })
    }
}

impl Target {
    fn parse(url: &str) -> Result<Self, UnusableUrl> {
        let Some((scheme, rest)) = url.split_once("://") else { return Err(UnusableUrl) };
        let (kind, scheme) = match scheme {
            "redis" | "rediss" => return Ok(Self::Single(info(url)?)),
            "redis+sentinel" => (Kind::Sentinel, "redis"),
            "rediss+sentinel" => (Kind::Sentinel, "rediss"),
            "redis+cluster" => (Kind::Cluster, "redis"),
            "rediss+cluster" => (Kind::Cluster, "rediss"),
            _ => return Err(UnusableUrl),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let at = if user.is_empty() { "" } else { "@" };
        let hosts: Vec<String> = hosts.split(',').map(|host| with_port(host, kind.port())).collect();
        let Some(first) = hosts.first() else { return Err(UnusableUrl) };
        match kind {
            Kind::Cluster => {
                // A cluster has one database and no other options.
                if !path.is_empty() || !query.is_empty() {
                    return Err(UnusableUrl);
                }
                let seeds = hosts.iter().map(|host| info(&format!("{scheme}://{user}{at}{host}")));
                Ok(Self::Cluster { seeds: seeds.collect::<Result<_, _>>()? })
            }
            Kind::Sentinel => {
                let (service, db) = path.split_once('/').unwrap_or((path, ""));
                let service = if service.is_empty() { DEFAULT_SERVICE } else { service };
                // The password stays as it is in the URL, percent-encoded.
                let login = match query.split_once('=') {
                    Some(("sentinel_password", password)) if !password.contains('&') => {
                        format!(":{password}@")
                    }
                    None if query.is_empty() => String::new(),
                    _ => return Err(UnusableUrl),
                };
                let sentinels = hosts.iter().map(|host| info(&format!("{scheme}://{login}{host}")));
                Ok(Self::Sentinel {
                    sentinels: sentinels.collect::<Result<_, _>>()?,
                    service: service.into(),
                    master: info(&format!("{scheme}://{user}{at}{first}/{db}"))?,
                })
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Sentinel,
    Cluster,
}

impl Kind {
    const fn port(self) -> u16 {
        match self {
            Self::Sentinel => SENTINEL_PORT,
            Self::Cluster => REDIS_PORT,
        }
    }
}

fn with_port(host: &str, port: u16) -> String {
    let name_ends = host.rfind(']').unwrap_or_default();
    let has_port = host.get(name_ends..).is_some_and(|rest| rest.contains(':'));
    if has_port || host.is_empty() { host.to_owned() } else { format!("{host}:{port}") }
}

fn info(url: &str) -> Result<ConnectionInfo, UnusableUrl> {
    let info = url.into_connection_info().map_err(|_| UnusableUrl)?;
    let tcp = info
        .tcp_settings()
        .clone()
        // Nagle would hold small pipelines back; a dead peer must surface in seconds, not minutes.
        .set_nodelay(true)
        .set_user_timeout(Duration::from_secs(2));
    Ok(info.set_tcp_settings(tcp))
}

/// Where a server listens, as its peers or the sentinels name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) host: Box<str>,
    pub(super) port: u16,
}

impl Address {
    /// `host:port`, where the host may be an IPv6 address without brackets; `None` when it is not that.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some(Self { host: host.into(), port: port.parse().ok()? })
    }

    /// The address in `info`; `None` for a socket that is a file.
    pub(super) fn of(info: &ConnectionInfo) -> Option<Self> {
        match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                Some(Self { host: host.as_str().into(), port: *port })
            }
            _ => None,
        }
    }

    /// How a server here is reached: as `like` is, but for the address.
    pub(super) fn reached_like(&self, like: &ConnectionInfo) -> ConnectionInfo {
        let addr = match like.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
                host: self.host.to_string(),
                port: self.port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(self.host.to_string(), self.port),
        };
        like.clone().set_addr(addr)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(infos: &[ConnectionInfo]) -> Vec<String> {
        infos.iter().map(|info| Address::of(info).unwrap().to_string()).collect()
    }

    #[test]
    fn the_sentinel_form_has_hosts_a_service_and_a_database() {
        let url = "redis+sentinel://u:p%40@a.example,[::1]:5000/main/3?sentinel_password=x%3D";
        let Ok(Target::Sentinel { sentinels, service, master }) = Target::parse(url) else { panic!("{url}") };
        assert_eq!(addresses(&sentinels), ["a.example:26379", "[::1]:5000"]);
        assert_eq!(sentinels[0].redis_settings().password(), Some("x="));
        assert_eq!(sentinels[0].redis_settings().username(), None);
        assert_eq!(&*service, "main");
        assert_eq!(master.redis_settings().db(), 3);
        assert_eq!(master.redis_settings().username(), Some("u"));
        assert_eq!(master.redis_settings().password(), Some("p@"));
        let Ok(Target::Sentinel { service, .. }) = Target::parse("redis+sentinel://a") else { panic!() };
        assert_eq!(&*service, "mymaster");
    }

    #[test]
    fn the_cluster_form_has_seeds_that_share_their_credentials() {
        let Ok(Target::Cluster { seeds }) = Target::parse("rediss+cluster://:p@a,b:7000") else { panic!() };
        assert_eq!(addresses(&seeds), ["a:6379", "b:7000"]);
        assert!(seeds.iter().all(|seed| seed.redis_settings().password() == Some("p")));
        assert!(matches!(seeds[0].addr(), ConnectionAddr::TcpTls { insecure: false, .. }));
    }

    #[test]
    fn what_is_no_such_url_is_refused() {
        for url in [
            "redis+cluster://",
            "redis+cluster://a,",
            "redis+cluster://a/1",
            "redis+cluster://a:x",
            "redis+sentinel://a/main/x",
            "redis+sentinel://a?password=x",
            "redis+other://a",
            "http://a",
            "a:6379",
        ] {
            assert!(Settings::new(url).is_err(), "{url}");
        }
    }

    #[test]
    fn addresses_are_read_as_servers_write_them() {
        assert_eq!(Address::parse("::1:7000"), Some(Address { host: "::1".into(), port: 7000 }));
        assert_eq!(Address::parse("[::1]:7000").unwrap().to_string(), "[::1]:7000");
        assert_eq!(Address::parse(":7000").unwrap().host.len(), 0);
        assert_eq!(Address::parse("a"), None);
    }
}
