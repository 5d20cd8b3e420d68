//! Who the client is (P4): the peer, or the address found by walking the forwarding header from the right
//! through declared proxies. It never believes an entry that no trusted proxy vouches for.

mod entry;
mod subject;

use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;

use crate::header_names::{FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};

pub use subject::{Subject, SubjectText};

/// Most list entries looked at, from the right. A longer chain of trusted proxies does not exist; a longer list
/// is an attack, and the walk stops at the last good hop.
pub const MAX_HOPS: usize = 64;

/// Which header the trusted proxies write. Only one is believed: a proxy that writes one passes the other on
/// as the client sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// `X-Forwarded-For`, with `X-Forwarded-Proto` and `X-Forwarded-Host`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Why settings cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The prefix is not between 1 and 128.
    #[error("an IPv6 prefix has 1 to 128 bits, not {0}")]
    Ipv6Prefix(u8),
}

/// Whom the gateway believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    trusted: Box<[IpNet]>,
    ipv6_prefix: u8,
    source: Source,
}

impl Default for Settings {
    fn default() -> Self {
        Self { trusted: Box::default(), ipv6_prefix: 64, source: Source::default() }
    }
}

impl Settings {
    /// Trusted proxies, the bits of an IPv6 address that make one subject (1–128), and the believed header.
    /// IPv4-mapped IPv6 networks are read as IPv4 ones.
    ///
    /// # Errors
    /// [`SettingsError::Ipv6Prefix`].
    pub fn new(trusted: Vec<IpNet>, ipv6_prefix: u8, source: Source) -> Result<Self, SettingsError> {
        if !(1..=128).contains(&ipv6_prefix) {
            return Err(SettingsError::Ipv6Prefix(ipv6_prefix));
        }
        Ok(Self { trusted: trusted.into_iter().map(unmapped).collect(), ipv6_prefix, source })
    }

    /// How `address` is counted.
    pub fn subject(&self, address: IpAddr) -> Subject {
        Subject::new(address, self.ipv6_prefix)
    }

    /// Whether `address` is a declared proxy.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|network| network.contains(&address))
    }
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddr {
    /// The client; an IPv4-mapped IPv6 address is given as IPv4.
    pub ip: IpAddr,
    /// The other end of the connection, in the same form.
    pub peer: IpAddr,
    /// Whether the peer is a declared proxy, so that its forwarding headers mean something.
    pub peer_trusted: bool,
    ipv6_prefix: u8,
}

impl ClientAddr {
    /// What limits count for this client: the IPv4 address, or the IPv6 network.
    pub fn subject(&self) -> Subject {
        Subject::new(self.ip, self.ipv6_prefix)
    }
}

/// The client of a request that arrived from `peer`.
///
/// The walk goes from the right through addresses that are trusted proxies and stops at the first that is not:
/// that one is the client. It also stops at anything that is not an address (`unknown`, an obfuscated name,
/// garbage); then the client is the last good hop, since nothing to the left of garbage has a witness.
pub fn resolve(settings: &Settings, peer: IpAddr, headers: &HeaderMap) -> ClientAddr {
    let peer = peer.to_canonical();
    let peer_trusted = settings.trusts(peer);
    let mut ip = peer;
    if peer_trusted {
        match settings.source {
            Source::XForwardedFor => {
                let lines = headers.get_all(&X_FORWARDED_FOR).iter().rev();
                walk(
                    settings,
                    &mut ip,
                    lines.flat_map(|line| entry::list(line.as_bytes())).map(entry::address),
                );
            }
            Source::Forwarded => {
                let lines = headers.get_all(&FORWARDED).iter().rev();
                let elements = lines.flat_map(|line| entry::elements(line.as_bytes()));
                walk(settings, &mut ip, elements.map(entry::forwarded_for));
            }
        }
    }
    ClientAddr { ip, peer, peer_trusted, ipv6_prefix: settings.ipv6_prefix }
}

fn walk(settings: &Settings, ip: &mut IpAddr, entries: impl Iterator<Item = Option<IpAddr>>) {
    for entry in entries.take(MAX_HOPS) {
        let Some(address) = entry else { return };
        *ip = address;
        if !settings.trusts(address) {
            return;
        }
    }
}

/// The scheme a client used towards a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    /// As it stands in a URI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        if text.eq_ignore_ascii_case(b"https") {
            Some(Self::Https)
        } else if text.eq_ignore_ascii_case(b"http") {
            Some(Self::Http)
        } else {
            None
        }
    }
}

/// What the nearest proxy says of the request it received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told<'a> {
    /// The scheme, when it is `http` or `https`.
    pub scheme: Option<Scheme>,
    /// Host and optional port, when they look like that; in the case they were sent.
    pub host: Option<&'a str>,
}

/// What a trusted peer says of scheme and host: the last value, which that peer itself wrote. Nothing when the
/// peer is not trusted.
pub fn told<'a>(settings: &Settings, client: &ClientAddr, headers: &'a HeaderMap) -> Told<'a> {
    if !client.peer_trusted {
        return Told::default();
    }
    match settings.source {
        Source::XForwardedFor => {
            let last = |name| {
                let line: &http::HeaderValue = headers.get_all(name).iter().next_back()?;
                entry::list(line.as_bytes()).next()
            };
            Told {
                scheme: last(&X_FORWARDED_PROTO).and_then(Scheme::parse),
                host: last(&X_FORWARDED_HOST).and_then(entry::host),
            }
        }
        Source::Forwarded => {
            let element = headers.get_all(&FORWARDED).iter().next_back();
            let Some(element) = element.and_then(|line| entry::elements(line.as_bytes()).next()) else {
                return Told::default();
            };
            Told {
                scheme: entry::parameter(element, b"proto").and_then(Scheme::parse),
                host: entry::parameter(element, b"host").and_then(entry::host),
            }
        }
    }
}

fn unmapped(network: IpNet) -> IpNet {
    if let IpNet::V6(v6) = network
        && let Some(v4) = v6.network().to_ipv4_mapped()
        && let Some(bits) = v6.prefix_len().checked_sub(96)
        && let Ok(net) = ipnet::Ipv4Net::new(v4, bits)
    {
        return IpNet::V4(net);
    }
    network
}

#[cfg(test)]
mod tests;
