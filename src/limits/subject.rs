//! Who is counted: the caller's parts and the Redis keys made of them.
//! No key can be forged or grow without bound, whatever a token or path holds.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use sha2::{Digest, Sha256};

use super::plan::Plan;
use super::policy::{KeyPart, Policy};

/// A part longer than this once encoded is replaced by its fingerprint.
const MAX_PART: usize = 64;
const FINGERPRINT: &[u8] = b"sha256-";

/// A client address as limits see it: IPv4 whole, IPv6 by network, already written out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClientNet {
    text: [u8; 48],
    len: u8,
}

impl ClientNet {
    /// The network of `addr`: itself for IPv4 (mapped forms included), the first `v6_prefix` bits (at most
    /// 128) for IPv6.
    pub fn new(addr: IpAddr, v6_prefix: u8) -> Self {
        let mut net = Self { text: [0; 48], len: 0 };
        // 39 + 1 + 3 bytes at most: the buffer cannot overflow.
        let _ = match addr.to_canonical() {
            IpAddr::V4(v4) => write!(net, "{v4}"),
            IpAddr::V6(v6) => {
                let prefix = u32::from(v6_prefix.min(128));
                let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
                write!(net, "{}/{prefix}", Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        };
        net
    }

    /// `203.0.113.7` or `2001:db8:1:2::/64`.
    pub fn as_bytes(&self) -> &[u8] {
        self.text.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl std::fmt::Write for ClientNet {
    fn write_str(&mut self, s: &str) -> std::fmt::Result {
        let start = usize::from(self.len);
        let end = start.saturating_add(s.len());
        let room = self.text.get_mut(start..end).ok_or(std::fmt::Error)?;
        room.copy_from_slice(s.as_bytes());
        self.len = u8::try_from(end).map_err(|_| std::fmt::Error)?;
        Ok(())
    }
}

impl std::fmt::Debug for ClientNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}

/// Everything a policy may count by, for one request.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Where the request comes from.
    pub ip: ClientNet,
    /// The verified subject, `None` for anonymous callers.
    pub user: Option<&'a str>,
    /// The verified token's id (`jti` or fingerprint).
    pub token: Option<&'a str>,
    /// The id of the opaque API token used.
    pub api_token: Option<&'a str>,
    /// The matched route's name.
    pub route: &'a str,
    /// The caller's plan, the anonymous one included.
    pub plan: &'a Plan,
    /// Multiplies the plan's limits; already sanitised by [`super::plan::Plans::multiplier`].
    pub multiplier: f64,
}

/// Makes keys and their hashes: the prefix and the secret of the hasher.
#[derive(Clone, Debug)]
pub struct KeySpace {
    stem: Box<str>,
    hasher: ahash::RandomState,
}

impl KeySpace {
    /// Keys start with `prefix`, which may be empty, then `rate_limit:`.
    pub fn new(prefix: &str) -> Self {
        Self { stem: format!("{prefix}rate_limit:").into(), hasher: ahash::RandomState::new() }
    }

    /// The keyed hash under which instances' memory files `key`.
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Appends `<prefix>rate_limit:<policy>:<subject>`; `false`, with `out` unchanged, when the caller lacks a
    /// part of the policy's key.
    pub fn write_key(&self, policy: &Policy, caller: &Caller<'_>, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        out.extend_from_slice(self.stem.as_bytes());
        out.extend_from_slice(policy.name().as_bytes());
        for part in policy.key() {
            out.push(b':');
            if !write_part(*part, caller, out) {
                out.truncate(start);
                return false;
            }
        }
        true
    }
}

impl Default for KeySpace {
    fn default() -> Self {
        Self::new("")
    }
}

// An address may stay raw: an encoded part holds neither `:` nor `/`, a v6 network always ends in `/<bits>`,
// and a v4 address holds no `:`. So a reader who knows the policy can always tell where the address ends.
fn write_part(part: KeyPart, caller: &Caller<'_>, out: &mut Vec<u8>) -> bool {
    let text = match part {
        KeyPart::Ip => {
            out.extend_from_slice(caller.ip.as_bytes());
            return true;
        }
        KeyPart::Caller => {
            if caller.user.is_some() {
                out.extend_from_slice(b"user:");
                return write_part(KeyPart::User, caller, out);
            }
            out.extend_from_slice(b"ip:");
            return write_part(KeyPart::Ip, caller, out);
        }
        KeyPart::User => caller.user,
        KeyPart::Token => caller.token,
        KeyPart::ApiToken => caller.api_token,
        KeyPart::Route => Some(caller.route),
        KeyPart::Plan => Some(caller.plan.name()),
    };
    text.is_some_and(|text| {
        encode_part(text.as_bytes(), out);
        true
    })
}

/// Appends `raw` with every byte outside `[A-Za-z0-9._~@-]` percent-encoded, or `sha256-<32 hex>` where that
/// would exceed 64 bytes. Two different inputs never give the same text, short of a SHA-256 collision on
/// 128 bits.
pub fn encode_part(raw: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    let mut rest = raw;
    if let Some((first, tail)) = raw.split_first()
        && raw.starts_with(FINGERPRINT)
    {
        // Only fingerprints may start with the fingerprint's mark: a subject that spells it is escaped.
        escape(*first, out);
        rest = tail;
    }
    for &byte in rest {
        if out.len() - start > MAX_PART {
            break;
        }
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'~' | b'@' | b'-' => out.push(byte),
            _ => escape(byte, out),
        }
    }
    if out.len() - start > MAX_PART {
        out.truncate(start);
        out.extend_from_slice(FINGERPRINT);
        for byte in Sha256::digest(raw).iter().take(16) {
            out.push(hex(byte >> 4, b'a'));
            out.push(hex(byte & 15, b'a'));
        }
    }
}

fn escape(byte: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(&[b'%', hex(byte >> 4, b'A'), hex(byte & 15, b'A')]);
}

const fn hex(nibble: u8, ten: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { ten + nibble - 10 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::plan::Plans;
    use super::super::policy::{Algorithm, LimitSource};
    use super::*;

    fn encoded(raw: &[u8]) -> String {
        let mut out = Vec::new();
        encode_part(raw, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn key(
        name: &str,
        parts: &[KeyPart],
        user: Option<&str>,
        token: Option<&str>,
        ip: &str,
    ) -> Option<String> {
        let plans = Plans::standard().unwrap();
        let policy = Policy::new(name, parts, Algorithm::FixedWindow, LimitSource::Plan).unwrap();
        let caller = Caller {
            ip: ClientNet::new(ip.parse().unwrap(), 64),
            user,
            token,
            api_token: token,
            route: "orders/list",
            plan: plans.named(Some("pro")),
            multiplier: 1.0,
        };
        let mut out = Vec::new();
        let applies = KeySpace::default().write_key(&policy, &caller, &mut out);
        assert_eq!(applies, !out.is_empty());
        applies.then(|| String::from_utf8(out).unwrap())
    }

    #[test]
    fn keys_have_the_documented_names() {
        use KeyPart::{ApiToken, Caller, Ip, Plan, Route, User};
        let v6 = "2001:db8:1:2:3:4:5:6";
        let golden = |name, parts: &[KeyPart], ip| key(name, parts, Some("42"), Some("t-1"), ip).unwrap();
        assert_eq!(golden("ip", &[Ip], "203.0.113.7"), "rate_limit:ip:203.0.113.7");
        assert_eq!(golden("ip", &[Ip], "::ffff:203.0.113.7"), "rate_limit:ip:203.0.113.7");
        assert_eq!(golden("ip", &[Ip], v6), "rate_limit:ip:2001:db8:1:2::/64");
        assert_eq!(golden("login", &[Ip], "192.0.2.1"), "rate_limit:login:192.0.2.1");
        assert_eq!(golden("user", &[User], v6), "rate_limit:user:42");
        assert_eq!(golden("api_token", &[ApiToken], v6), "rate_limit:api_token:t-1");
        assert_eq!(golden("plan", &[Caller], v6), "rate_limit:plan:user:42");
        assert_eq!(golden("x", &[Plan, Route, Ip], "192.0.2.1"), "rate_limit:x:pro:orders%2Flist:192.0.2.1");
        assert_eq!(key("plan", &[Caller], None, None, v6).unwrap(), "rate_limit:plan:ip:2001:db8:1:2::/64");
    }

    #[test]
    fn a_policy_does_not_apply_to_a_caller_who_lacks_a_part() {
        assert_eq!(key("user", &[KeyPart::Ip, KeyPart::User], None, None, "192.0.2.1"), None);
        assert_eq!(key("t", &[KeyPart::Token], Some("42"), None, "192.0.2.1"), None);
    }

    #[test]
    fn hostile_parts_cannot_shape_the_key() {
        assert_eq!(encoded(b"a:b*{}\r\n%\xff"), "a%3Ab%2A%7B%7D%0D%0A%25%FF");
        assert_eq!(encoded(b""), "");
        let long = encoded(&[b'x'; 10_000]);
        assert_eq!(long.len(), 39);
        assert_eq!(encoded(long.as_bytes()), format!("%73{}", &long[1..]));
        assert_eq!(encoded(&[b'x'; 64]), "x".repeat(64));
        assert_eq!(encoded(&[b'x'; 65]).len(), 39);
    }

    #[test]
    fn prefixes_of_any_length_mask_the_address() {
        let net = |prefix| format!("{:?}", ClientNet::new("ffff::1".parse().unwrap(), prefix));
        assert_eq!(net(0), "::/0");
        assert_eq!(net(128), "ffff::1/128");
        assert_eq!(net(255), "ffff::1/128");
        let longest = ClientNet::new("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap(), 128);
        assert_eq!(longest.as_bytes().len(), 43);
    }

    proptest! {
        #[test]
        fn encoding_is_injective_and_bounded(a in "\\PC{0,40}|[a:%]{0,4}|sha256-[0-9a-f]{30,34}|x{60,70}", b in "\\PC{0,40}|[a:%]{0,4}|sha256-[0-9a-f]{30,34}|x{60,70}") {
            prop_assert_eq!(encoded(a.as_bytes()) == encoded(b.as_bytes()), a == b);
            prop_assert!(encoded(a.as_bytes()).len() <= 64);
        }

        #[test]
        fn two_parts_never_collide(a in "[ab:/.%]{0,3}", b in "[ab:/.%]{0,3}", c in "[ab:/.%]{0,3}", d in "[ab:/.%]{0,3}", v6: bool) {
            let ip = if v6 { "2001:db8::1" } else { "192.0.2.1" };
            let parts = [KeyPart::User, KeyPart::Ip, KeyPart::Token];
            let one = key("p", &parts, Some(&a), Some(&b), ip);
            let other = key("p", &parts, Some(&c), Some(&d), ip);
            prop_assert_eq!(one == other, (a, b) == (c, d));
        }

        #[test]
        fn addresses_stay_apart(a: u128, b: u128, user in "[a:/]{0,3}", other in "[a:/]{0,3}") {
            let net = |bits: u128| ClientNet::new(IpAddr::V6(Ipv6Addr::from_bits(bits)), 64);
            let text = |bits: u128| IpAddr::V6(Ipv6Addr::from_bits(bits)).to_string();
            let parts = [KeyPart::Ip, KeyPart::User];
            let one = key("p", &parts, Some(&user), None, &text(a));
            let two = key("p", &parts, Some(&other), None, &text(b));
            prop_assert_eq!(one == two, net(a) == net(b) && user == other);
        }
    }
}
