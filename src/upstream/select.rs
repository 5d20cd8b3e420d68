//! Which member of an upstream the next attempt goes to: round-robin over resolved addresses, passing over
//! members that just refused a connection. It never opens a connection.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::clock::UnixMillis;
use crate::metrics::UpstreamMetrics;

/// How long a member that refused a connection is passed over while others remain.
const REST: Duration = Duration::from_secs(1);

/// HTTP version spoken to the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 with keep-alive.
    Http1,
    /// HTTP/2 over cleartext TCP with prior knowledge (RFC 9113 section 3.3).
    H2c,
}

/// One declared member: `host:port`, host being an address or a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// IP literal (without brackets) or DNS name.
    pub host: Box<str>,
    /// TCP port.
    pub port: u16,
}

/// How an upstream is reached; valid by construction.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name in the configuration and in metrics.
    pub name: Box<str>,
    /// At least one member.
    pub members: Vec<Member>,
    /// HTTP version.
    pub protocol: Protocol,
    /// Longest time to establish a connection.
    pub connect_timeout: Duration,
    /// Longest pause between two reads of a response.
    pub read_timeout: Duration,
    /// Longest pause between two writes of a request.
    pub write_timeout: Duration,
    /// How long an unused connection is kept; keep it below the upstream's own keep-alive.
    pub idle_timeout: Duration,
    /// Further members tried after a connection could not be made.
    pub connect_retries: u32,
    /// Concurrent streams per HTTP/2 connection.
    pub max_h2_streams: usize,
}

#[derive(Debug)]
struct Address {
    address: SocketAddr,
    /// Passed over until then (milliseconds since the epoch).
    rests_until: AtomicU64,
}

/// An upstream with its resolved addresses.
#[derive(Debug)]
pub struct Upstream {
    settings: Settings,
    metrics: UpstreamMetrics,
    addresses: ArcSwap<Vec<Address>>,
    next: AtomicUsize,
}

impl Upstream {
    /// An upstream whose IP literals are usable at once and whose names wait for [`Upstream::resolve`].
    pub fn new(settings: Settings, metrics: UpstreamMetrics) -> Self {
        let literal = settings
            .members
            .iter()
            .filter_map(|member| Some(SocketAddr::new(member.host.parse::<IpAddr>().ok()?, member.port)));
        let addresses = ArcSwap::from_pointee(literal.map(Address::new).collect());
        Self { settings, metrics, addresses, next: AtomicUsize::new(0) }
    }

    /// How it is reached.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What is counted for it.
    pub fn metrics(&self) -> &UpstreamMetrics {
        &self.metrics
    }

    /// Whether any member is a name that must be looked up.
    pub fn needs_resolving(&self) -> bool {
        self.settings.members.iter().any(|member| member.host.parse::<IpAddr>().is_err())
    }

    /// Looks every name up; a name that does not resolve keeps its last addresses only if nothing resolved.
    pub async fn resolve(&self) {
        let mut found = Vec::new();
        for member in &self.settings.members {
            match tokio::net::lookup_host((&*member.host, member.port)).await {
                Ok(addresses) => found.extend(addresses),
                Err(error) => {
                    tracing::warn!(upstream = %self.settings.name, host = %member.host, %error, "cannot resolve");
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        let current = self.addresses.load();
        let unchanged = current.len() == found.len()
            && current.iter().map(|known| known.address).all(|address| found.contains(&address));
        if !found.is_empty() && !unchanged {
            self.addresses.store(Arc::new(found.into_iter().map(Address::new).collect()));
        }
    }

    /// The member for the next attempt, `None` when all were tried or none is known.
    pub fn pick(&self, tried: &[SocketAddr], now: UnixMillis) -> Option<SocketAddr> {
        let addresses = self.addresses.load();
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let count = addresses.len();
        let in_turn = || (0..count).filter_map(|step| addresses.get(start.wrapping_add(step) % count));
        let untried = |candidate: &&Address| !tried.contains(&candidate.address);
        in_turn()
            .filter(untried)
            .find(|candidate| candidate.rests_until.load(Ordering::Relaxed) <= now.0)
            .or_else(|| in_turn().find(untried))
            .map(|candidate| candidate.address)
    }

    /// Whether a member is left that was not tried.
    pub fn has_other(&self, tried: &[SocketAddr]) -> bool {
        self.addresses.load().iter().any(|member| !tried.contains(&member.address))
    }

    /// Lets a member that could not be connected to rest for a second.
    pub fn rest(&self, address: SocketAddr, now: UnixMillis) {
        if let Some(member) = self.addresses.load().iter().find(|member| member.address == address) {
            member.rests_until.store(now.plus(REST).0, Ordering::Relaxed);
        }
    }

    /// How many addresses are known and not resting.
    pub fn available(&self, now: UnixMillis) -> usize {
        let addresses = self.addresses.load();
        addresses.iter().filter(|member| member.rests_until.load(Ordering::Relaxed) <= now.0).count()
    }
}

impl Address {
    fn new(address: SocketAddr) -> Self {
        Self { address, rests_until: AtomicU64::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(ports: &[u16]) -> Upstream {
        let metrics = crate::metrics::Metrics::new().expect("metrics").upstream("app");
        let settings = Settings {
            name: "app".into(),
            members: ports.iter().map(|&port| Member { host: "127.0.0.1".into(), port }).collect(),
            protocol: Protocol::Http1,
            connect_timeout: Duration::from_secs(1),
            read_timeout: Duration::from_secs(1),
            write_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(1),
            connect_retries: 1,
            max_h2_streams: 1,
        };
        Upstream::new(settings, metrics)
    }

    fn port(picked: Option<SocketAddr>) -> u16 {
        picked.expect("a member").port()
    }

    #[test]
    fn members_take_turns() {
        let upstream = upstream(&[1, 2, 3]);
        let now = UnixMillis(0);
        let picked: Vec<u16> = (0..6).map(|_| port(upstream.pick(&[], now))).collect();
        assert_eq!(picked, [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn a_resting_member_is_passed_over_until_it_has_rested() {
        let upstream = upstream(&[1, 2]);
        upstream.rest("127.0.0.1:1".parse().expect("address"), UnixMillis(0));
        assert!((0..4).all(|_| port(upstream.pick(&[], UnixMillis(500))) == 2));
        assert!((0..4).any(|_| port(upstream.pick(&[], UnixMillis(1_000))) == 1));
    }

    #[test]
    fn a_resting_member_is_better_than_none_and_tried_members_are_not_tried_again() {
        let upstream = upstream(&[1, 2]);
        let first: SocketAddr = "127.0.0.1:1".parse().expect("address");
        let second: SocketAddr = "127.0.0.1:2".parse().expect("address");
        upstream.rest(first, UnixMillis(0));
        assert_eq!(upstream.pick(&[second], UnixMillis(1)), Some(first));
        assert_eq!(upstream.pick(&[first, second], UnixMillis(1)), None);
    }
}
