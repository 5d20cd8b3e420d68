//! The text by which limits and bans know an address. It is derived without the heap.

use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv6Addr};

/// One client for counting: an IPv4 address, or the network of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    address: IpAddr,
    prefix: u8,
}

impl Subject {
    /// The subject of `address`, where `ipv6_prefix` bits of an IPv6 address count.
    pub fn new(address: IpAddr, ipv6_prefix: u8) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self { address: IpAddr::V4(v4), prefix: 32 },
            IpAddr::V6(v6) => {
                let prefix = ipv6_prefix.min(128);
                let mask = u128::MAX.checked_shl(u32::from(128 - prefix)).unwrap_or(0);
                Self { address: IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask)), prefix }
            }
        }
    }

    /// The text on the stack.
    pub fn text(&self) -> SubjectText {
        let mut text = SubjectText { bytes: [0; SubjectText::CAPACITY], length: 0 };
        // The capacity fits every address; a failed write would leave a shorter, still valid text.
        let _ = write!(text, "{self}");
        text
    }
}

/// IPv4 as it is (`192.0.2.1`), IPv6 as its network (`2001:db8::/64`).
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(v4) => write!(f, "{v4}"),
            IpAddr::V6(v6) => write!(f, "{v6}/{}", self.prefix),
        }
    }
}

/// A subject's text, at most 43 ASCII bytes.
#[derive(Clone, Copy, Debug)]
pub struct SubjectText {
    bytes: [u8; Self::CAPACITY],
    length: usize,
}

impl SubjectText {
    /// 39 characters of an IPv6 address, `/128`, and slack.
    const CAPACITY: usize = 48;

    /// The text.
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.length).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or("")
    }
}

impl Write for SubjectText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}
