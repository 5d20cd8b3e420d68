//! Who is counted: the caller's parts and the Redis keys made of them.
//! No key can be forged or grow without bound, whatever a token or path holds.

use http::header::COOKIE;
use http::{HeaderMap, HeaderName};

use super::body::Body;
use super::plan::Plan;
use super::policy::{KeyPart, Policy};
use super::user_limits::named_period;
use crate::identifiers::{digest_key_part, encode_key_part};

/// Longest header or cookie value that tells one caller from another, in bytes.
pub const MAX_VALUE: usize = 4_096;

/// Who leaves a header or cookie out, repeats it or makes it too long, counts as this. No encoded part holds `*`.
const NONE: &[u8] = b"*none";
/// Whose body does not tell, counts as this.
const UNREADABLE: &[u8] = b"*unreadable";

/// What the request itself says about who makes it; the default says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts<'a> {
    /// Its header fields.
    pub headers: Option<&'a HeaderMap>,
    /// Its body, where it was looked at.
    pub body: Option<&'a Body>,
}

impl Parts<'_> {
    /// Whether the request says something that counts as a subject of its own for `part`, a header, cookie or body
    /// part.
    pub fn tells(&self, part: &KeyPart) -> bool {
        match part {
            KeyPart::Header(name) => self.headers.is_some_and(|headers| header(headers, name).is_some()),
            KeyPart::Cookie(name) => self.headers.is_some_and(|headers| cookie(headers, name).is_some()),
            KeyPart::Body(path) => self.body.is_some_and(|body| body.value(path).is_some()),
            _ => false,
        }
    }
}

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
    /// The API token's own limits per minute, hour and day: see `own_limit`.
    pub own_limits: [Option<u64>; 3],
    /// The matched route's name.
    pub route: &'a str,
    /// The caller's plan, the anonymous one included.
    pub plan: &'a Plan,
    /// Multiplies the plan's limits; already sanitised by [`super::plan::Plans::combined`].
    pub multiplier: f64,
    /// What the request itself says.
    pub request: Parts<'a>,
}

/// The limit of a window of this length that `caller` has of its own, where `policy` counts by the API token.
pub(super) fn own_limit(policy: &Policy, caller: &Caller<'_>, period_ms: u64) -> Option<u64> {
    if !policy.key().contains(&KeyPart::ApiToken) {
        return None;
    }
    caller.own_limits.get(named_period(period_ms)?).copied().flatten()
}

/// Makes keys and their hashes: the prefix and the secret of the hasher.
#[derive(Clone, Debug)]
pub struct KeySpace {
    stem: Box<str>,
    tagged: bool,
    hasher: ahash::RandomState,
}

impl KeySpace {
    /// Keys start with `prefix`, which may be empty, then `rate_limit:`. When `tagged`, the subject stands in braces,
    /// a hash tag: in Cluster whatever concerns it then lives in one slot.
    pub fn new(prefix: &str, tagged: bool) -> Self {
        Self { stem: format!("{prefix}rate_limit:").into(), tagged, hasher: ahash::RandomState::new() }
    }

    /// Whether the subject stands in braces.
    pub const fn is_tagged(&self) -> bool {
        self.tagged
    }

    /// The keyed hash under which instances' memory files `key`.
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Appends `<prefix>rate_limit:<policy>:<subject>`, when tagged with the subject in braces; `false`, with `out`
    /// unchanged, when the policy is for other callers, or the caller lacks a part of its key.
    pub fn write_key(&self, policy: &Policy, caller: &Caller<'_>, out: &mut Vec<u8>) -> bool {
        if !policy.applies_to().covers(caller.user.is_some()) {
            return false;
        }
        let start = out.len();
        out.extend_from_slice(self.stem.as_bytes());
        out.extend_from_slice(policy.name().as_bytes());
        let subject = out.len() + 1;
        for part in policy.key() {
            out.push(b':');
            if !write_part(part, caller, out) {
                out.truncate(start);
                return false;
            }
        }
        if self.tagged && out.len() > subject {
            // Whether a policy counts users or callers, a user is in the same slot.
            let kind = match policy.key() {
                [KeyPart::Caller] if caller.user.is_some() => "user:".len(),
                [KeyPart::Caller] => "ip:".len(),
                _ => 0,
            };
            out.insert(subject + kind, b'{');
            out.push(b'}');
        }
        true
    }
}

impl Default for KeySpace {
    fn default() -> Self {
        Self::new("", false)
    }
}

// An address may stay raw: an encoded part holds neither `:` nor `/`, a v6 network always ends in `/<bits>`,
// and a v4 address holds no `:`. So a reader who knows the policy can always tell where the address ends.
fn write_part(part: &KeyPart, caller: &Caller<'_>, out: &mut Vec<u8>) -> bool {
    let text = match part {
        KeyPart::Ip => {
            out.extend_from_slice(caller.ip.as_bytes());
            return true;
        }
        KeyPart::Caller => {
            if caller.user.is_some() {
                out.extend_from_slice(b"user:");
                return write_part(&KeyPart::User, caller, out);
            }
            out.extend_from_slice(b"ip:");
            return write_part(&KeyPart::Ip, caller, out);
        }
        KeyPart::Header(name) => {
            let value = caller.request.headers.and_then(|headers| header(headers, name));
            return write_digest(value, NONE, out);
        }
        KeyPart::Cookie(name) => {
            let value = caller.request.headers.and_then(|headers| cookie(headers, name));
            return write_digest(value, NONE, out);
        }
        KeyPart::Body(path) => {
            let value = caller.request.body.and_then(|body| body.value(path));
            return write_digest(value.as_deref().map(str::as_bytes), UNREADABLE, out);
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

/// Headers and cookies hold API keys and sessions, bodies mail addresses: none of them is readable in a key.
fn write_digest(value: Option<&[u8]>, otherwise: &[u8], out: &mut Vec<u8>) -> bool {
    match value {
        Some(value) => out.extend_from_slice(digest_key_part(value).as_bytes()),
        None => out.extend_from_slice(otherwise),
    }
    true
}

/// Upstreams that read fields as variables (CGI, WSGI) take `x_key` for `x-key`: beside it, it is a repetition.
fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let wanted = name.as_str().as_bytes();
    let plain = |byte: u8| if byte.is_ascii_alphanumeric() { byte } else { b'_' };
    let alike = |found: &HeaderName| {
        let found = found.as_str().as_bytes();
        found.len() == wanted.len()
            && found.iter().zip(wanted).all(|(one, other)| plain(*one) == plain(*other))
    };
    let value = headers.get(name)?;
    let values = headers.iter().filter(|(found, _)| alike(found)).count();
    only(std::iter::repeat_n(value.as_bytes().trim_ascii(), values))
}

/// HTTP/2 may send each cookie in a line of its own (RFC 9113 section 8.2.3).
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    only(pairs.filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (found, value) = pair.split_at_checked(at)?;
        (found.trim_ascii() == name.as_bytes()).then(|| value.get(1..).unwrap_or_default().trim_ascii())
    }))
}

fn only<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Option<&'a [u8]> {
    let value = values.next()?;
    (values.next().is_none() && (1..=MAX_VALUE).contains(&value.len())).then_some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::plan::Plans;
    use super::super::policy::{Algorithm, LimitSource};
    use super::*;

    fn caller<'a>(ip: &'a str, plans: &'a Plans) -> Caller<'a> {
        Caller {
            ip,
            user: None,
            token: Some("t-1"),
            api_token: Some("t-1"),
            own_limits: [None; 3],
            route: "orders/list",
            plan: plans.named(Some("pro")),
            multiplier: 1.0,
            request: Parts::default(),
        }
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
            ip,
            user,
            token,
            api_token: token,
            own_limits: [None; 3],
            route: "orders/list",
            plan: plans.named(Some("pro")),
            multiplier: 1.0,
            request: Parts::default(),
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
    fn the_hash_tag_is_the_subject() {
        use KeyPart::{ApiToken, Caller, Ip, User};
        let plans = Plans::standard().unwrap();
        let key = |name, parts: &[KeyPart], user| {
            let policy = Policy::new(name, parts, Algorithm::FixedWindow, LimitSource::Plan).unwrap();
            let caller = super::Caller { user, ..caller("203.0.113.7", &plans) };
            let mut out = Vec::new();
            assert!(KeySpace::new("gw:", true).write_key(&policy, &caller, &mut out));
            String::from_utf8(out).unwrap()
        };
        assert_eq!(key("ip", &[Ip], None), "gw:rate_limit:ip:{203.0.113.7}");
        assert_eq!(key("api_token", &[ApiToken], None), "gw:rate_limit:api_token:{t-1}");
        assert_eq!(key("user", &[User], Some("42")), "gw:rate_limit:user:{42}");
        assert_eq!(key("plan", &[Caller], Some("42")), "gw:rate_limit:plan:user:{42}");
        assert_eq!(key("plan", &[Caller], None), "gw:rate_limit:plan:ip:{203.0.113.7}");
        assert_eq!(key("login", &[Ip, User], Some("x}")), "gw:rate_limit:login:{203.0.113.7:x%7D}");
    }

    #[test]
    fn a_tokens_own_limits_hold_where_a_policy_counts_by_it() {
        use super::super::check::Checks;
        use super::super::policy::Window;
        use std::time::Duration;
        let plans = Plans::standard().unwrap();
        let window = |seconds| Window::new(100, Duration::from_secs(seconds)).unwrap();
        let windows = || LimitSource::Windows(vec![window(10), window(60), window(3_600), window(86_400)]);
        let own_limits = [Some(5), None, Some(20_000)];
        let caller = Caller { own_limits, multiplier: 3.0, user: Some("42"), ..caller("192.0.2.1", &plans) };
        for (parts, limit, expected) in [
            (&[KeyPart::ApiToken][..], windows(), &[100, 5, 100, 20_000][..]),
            (&[KeyPart::ApiToken, KeyPart::Route], windows(), &[100, 5, 100, 20_000]),
            (&[KeyPart::User], windows(), &[100, 100, 100, 100]),
            (&[KeyPart::ApiToken], LimitSource::Plan, &[5]),
            (&[KeyPart::User], LimitSource::Plan, &[600]),
        ] {
            let policy = Policy::new("p", parts, Algorithm::FixedWindow, limit).unwrap();
            let mut checks = Checks::new();
            checks.begin(crate::clock::UnixMillis(0));
            checks.add(&KeySpace::default(), 0, &policy, &caller, 1).unwrap();
            assert_eq!(
                checks.iter().map(|check| check.rule.limit).collect::<Vec<_>>(),
                expected,
                "{parts:?}"
            );
        }
    }

    #[test]
    fn a_policy_does_not_apply_to_a_caller_who_lacks_a_part() {
        assert_eq!(key("user", &[KeyPart::Ip, KeyPart::User], None, None, "192.0.2.1"), None);
        assert_eq!(key("t", &[KeyPart::Token], Some("42"), None, "192.0.2.1"), None);
    }

    #[test]
    fn a_policy_does_not_apply_to_callers_it_is_not_for() {
        use super::super::policy::AppliesTo;
        let plans = Plans::standard().unwrap();
        let policy = Policy::new("p", &[KeyPart::Ip], Algorithm::FixedWindow, LimitSource::Plan).unwrap();
        for (applies_to, anonymous, identified) in [
            (AppliesTo::All, true, true),
            (AppliesTo::Anonymous, true, false),
            (AppliesTo::Identified, false, true),
        ] {
            let policy = policy.clone().with_applies_to(applies_to);
            for (user, applies) in [(None, anonymous), (Some("42"), identified)] {
                let caller = Caller {
                    ip: "192.0.2.1",
                    user,
                    token: None,
                    api_token: None,
                    own_limits: [None; 3],
                    route: "r",
                    plan: plans.anonymous(),
                    multiplier: 1.0,
                    request: Parts::default(),
                };
                let mut out = b"before".to_vec();
                assert_eq!(KeySpace::default().write_key(&policy, &caller, &mut out), applies);
                assert_eq!(out.len() > 6, applies);
            }
        }
    }

    fn key_of(part: KeyPart, request: Parts<'_>) -> String {
        let plans = Plans::standard().unwrap();
        let parts = [KeyPart::Ip, part];
        let policy = Policy::new("p", &parts, Algorithm::FixedWindow, LimitSource::Plan).unwrap();
        let plan = plans.named(None);
        let (ip, route) = ("192.0.2.1", "login");
        let caller = Caller {
            ip,
            user: None,
            token: None,
            api_token: None,
            own_limits: [None; 3],
            route,
            plan,
            multiplier: 1.0,
            request,
        };
        let mut out = Vec::new();
        assert!(KeySpace::default().write_key(&policy, &caller, &mut out));
        String::from_utf8(out).unwrap()
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    const NOBODY: &str = "rate_limit:p:192.0.2.1:*none";

    fn digest(text: &str) -> String {
        format!("rate_limit:p:192.0.2.1:{}", digest_key_part(text.as_bytes()))
    }

    #[test]
    fn a_header_counts_by_its_only_value_and_nobody_escapes_by_another() {
        let key = |lines: &[(&'static str, &str)]| {
            let headers = headers(lines);
            let part = KeyPart::Header(HeaderName::from_static("x-key"));
            key_of(part, Parts { headers: Some(&headers), body: None })
        };
        assert_eq!(key(&[("x-key", "k1"), ("x-other", "o")]), digest("k1"));
        assert_eq!(key(&[("x-key", "*none")]), digest("*none"));
        let long = "x".repeat(MAX_VALUE + 1);
        for lines in [
            &[][..],
            &[("x-key", "")],
            &[("x-key", "a"), ("x-key", "b")],
            &[("x-key", "a"), ("x_key", "b")],
            &[("x_key", "b"), ("x-key", "a")],
            &[("x_key", "b")],
            &[("x-key", &long)],
            &[("x-ke", "a")],
        ] {
            assert_eq!(key(lines), NOBODY, "{lines:?}");
        }
        let part = KeyPart::Header(HeaderName::from_static("x-key"));
        assert_eq!(key_of(part, Parts::default()), NOBODY);
    }

    #[test]
    fn a_cookie_counts_by_its_only_value_in_any_line() {
        let key = |lines: &[(&'static str, &str)]| {
            let headers = headers(lines);
            key_of(KeyPart::Cookie("sid".into()), Parts { headers: Some(&headers), body: None })
        };
        assert_eq!(key(&[("cookie", "a=1; sid=s=1 ;b=2")]), digest("s=1"));
        assert_eq!(key(&[("cookie", "a=1"), ("cookie", "sid=s=1")]), digest("s=1"));
        for cookies in ["", "sid", "sid=", "SID=s", "xsid=s", "sid=a; sid=b", "sid=a;sid=a"] {
            assert_eq!(key(&[("cookie", cookies)]), NOBODY, "{cookies}");
        }
        assert_eq!(key(&[("cookie", "sid=a"), ("cookie", "sid=b")]), NOBODY);
        assert_eq!(key(&[]), NOBODY);
    }

    #[test]
    fn a_body_field_counts_by_its_digest_and_an_unreadable_body_by_one_subject() {
        use super::super::body::FieldPath;
        let json = headers(&[("content-type", "application/json")]);
        let key = |body: Option<&Body>| {
            let part = KeyPart::Body(FieldPath::parse("email").unwrap());
            key_of(part, Parts { headers: Some(&json), body })
        };
        let body = Body::parse(&json, br#"{"email":" Ada@Example.com. "}"#);
        assert_eq!(key(Some(&body)), digest("ada@example.com"));
        let body = Body::parse(&json, br#"{"email":7}"#);
        for body in [None, Some(&body), Some(&Body::UNREADABLE)] {
            assert_eq!(key(body), "rate_limit:p:192.0.2.1:*unreadable");
        }
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
