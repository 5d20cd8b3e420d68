//! Who is counted: the caller's parts and the Redis keys made of them.
//! No key can be forged or grow without bound, whatever a token or path holds.

use super::plan::Plan;
use super::policy::{KeyPart, Policy};
use crate::identifiers::encode_key_part;

/// Everything a policy may count by, for one request.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Where the request comes from: `203.0.113.7`, or `2001:db8:1:2::/64`.
    pub ip: &'a str,
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
    /// Multiplies the plan's limits; already sanitised by [`super::plan::Plans::combined`].
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

    /// Appends `<prefix>rate_limit:<policy>:<subject>`; `false`, with `out` unchanged, when the policy is for
    /// other callers, or the caller lacks a part of its key.
    pub fn write_key(&self, policy: &Policy, caller: &Caller<'_>, out: &mut Vec<u8>) -> bool {
        if !policy.applies_to().covers(caller.user.is_some()) {
            return false;
        }
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
        out.extend_from_slice(encode_key_part(text).as_bytes());
        true
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::plan::Plans;
    use super::super::policy::{Algorithm, LimitSource};
    use super::*;

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
            ip,
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
        let v6 = "2001:db8:1:2::/64";
        let golden = |name, parts: &[KeyPart], ip| key(name, parts, Some("42"), Some("t-1"), ip).unwrap();
        assert_eq!(golden("ip", &[Ip], "203.0.113.7"), "rate_limit:ip:203.0.113.7");
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

    proptest! {
        #[test]
        fn two_parts_never_collide(a in "[ab:/.%]{0,3}", b in "[ab:/.%]{0,3}", c in "[ab:/.%]{0,3}", d in "[ab:/.%]{0,3}", v6: bool) {
            let ip = if v6 { "2001:db8::/64" } else { "192.0.2.1" };
            let parts = [KeyPart::User, KeyPart::Ip, KeyPart::Token];
            let one = key("p", &parts, Some(&a), Some(&b), ip);
            let other = key("p", &parts, Some(&c), Some(&d), ip);
            prop_assert_eq!(one == other, (a, b) == (c, d));
        }

        #[test]
        fn addresses_stay_apart(a: u128, b: u128, user in "[a:/]{0,3}", other in "[a:/]{0,3}") {
            let text = |bits: u128| format!("{}/64", std::net::Ipv6Addr::from_bits(bits));
            let parts = [KeyPart::Ip, KeyPart::User];
            let one = key("p", &parts, Some(&user), None, &text(a));
            let two = key("p", &parts, Some(&other), None, &text(b));
            prop_assert_eq!(one == two, a == b && user == other);
        }
    }
}
