//! Which header names are removed, and which are never removed on a client's word. It compares spellings, not
//! values.

use std::collections::HashSet;

use http::HeaderName;

/// Hop-by-hop request headers (RFC 9110 section 7.6.1 and history). `Transfer-Encoding` is not among them: the
/// transport frames by it, and the head check has left only `chunked`.
static HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
];

/// Hop-by-hop response headers beside `Connection` and `Upgrade`.
pub(super) static RESPONSE_HOP_BY_HOP: [HeaderName; 5] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authenticate"),
    HeaderName::from_static("proxy-authentication-info"),
    HeaderName::from_static("te"),
];

/// What only a gateway may say: addresses, schemes, hosts and paths of the original request, in the spellings of
/// the usual proxies and frameworks, since a backend may reflect them and no cache key has them; method overrides;
/// `Proxy` (CVE-2016-5385); `Expect`, which the gateway has answered. Names that start with `x-forwarded-` are covered as a family.
static GATEWAY_ONLY: [&str; 63] = [
    "forwarded",
    "x-forwarded",
    "forwarded-for",
    "forwarded-host",
    "forwarded-proto",
    "x-real-ip",
    "x-client-ip",
    "client-ip",
    "true-client-ip",
    "x-true-client-ip",
    "x-cluster-client-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-originating-ip",
    "x-original-forwarded-for",
    "x-envoy-external-address",
    "cf-connecting-ip",
    "fastly-client-ip",
    "x-original-host",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "x-url-scheme",
    "x-scheme",
    "x-request-id",
    "traceparent",
    "tracestate",
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "proxy",
    // Another host, in the words of frameworks and of the proxies in front of them.
    "x-host",
    "x-host-override",
    "x-http-host-override",
    "x-http-host",
    "http-host",
    "proxy-host",
    "x-backend-host",
    "x-proxy-host",
    "x-server-name",
    // Another path or address.
    "x-override-url",
    "x-rewrite-uri",
    "x-request-uri",
    "request-uri",
    "x-http-path-override",
    "x-http-destinationurl",
    "base-url",
    "proxy-url",
    "x-proxy-url",
    "x-envoy-original-path",
    "x-envoy-original-host",
    "x-original-method",
    // Another scheme or port.
    "front-end-https",
    "x-front-end-https",
    "x-url-port",
    // Another client, or a description of one.
    "x-proxyuser-ip",
    "x-forwarder-for",
    "x-custom-ip-authorization",
    "proxy-client-ip",
    "wl-proxy-client-ip",
    "x-wap-profile",
    // Steps of a framework that only it takes.
    "x-middleware-subrequest",
    "x-middleware-prefetch",
];

static FORWARDED_FAMILY: &str = "x-forwarded-";

/// End-to-end fields that `Connection` cannot remove, since something was or will be decided by them.
static PROTECTED: [&str; 22] = [
    "authorization",
    "cookie",
    "set-cookie",
    "host",
    "x-api-key",
    "date",
    "pragma",
    "cache-control",
    "vary",
    "etag",
    "age",
    "expires",
    "last-modified",
    "location",
    "www-authenticate",
    "origin",
    "referer",
    "user-agent",
    "range",
    "transfer-encoding",
    "strict-transport-security",
    "x-frame-options",
];

static PROTECTED_FAMILIES: [&str; 5] = ["content-", "if-", "accept", "access-control-", "sec-"];

/// What of [`PROTECTED_FAMILIES`] a request has, and the gateway, its cache or the framing goes by.
static JUDGED: [&str; 19] = [
    "accept",
    "accept-charset",
    "accept-datetime",
    "accept-encoding",
    "accept-language",
    "content-digest",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
];

/// Names of these families are the browser's.
static BROWSER_FAMILIES: [&str; 2] = ["access-control-", "sec-"];

/// Whether a `Connection` nomination of this lower-case name is ignored.
pub(super) fn is_protected(name: &str) -> bool {
    PROTECTED.contains(&name) || PROTECTED_FAMILIES.iter().any(|family| name.starts_with(family))
}

/// Whether this lower-case, dashed name has a meaning of its own, so that no identity may be carried in it.
/// `X-Forwarded-User` and its like are free for that.
pub(super) fn is_reserved(name: &str) -> bool {
    is_protected(name)
        || matches!(
            name,
            "expect" | "x-forwarded-for" | "x-forwarded-host" | "x-forwarded-port" | "x-forwarded-proto"
        )
        || HOP_BY_HOP.contains(&name)
        || GATEWAY_ONLY.contains(&name)
}

/// Whether a client's header of this name is never sent on, whatever is configured.
pub(super) fn is_withheld(name: &str) -> bool {
    let mut fixed = HOP_BY_HOP.iter().chain(&GATEWAY_ONLY).chain(&["expect"]);
    begins_like(name, FORWARDED_FAMILY) || fixed.any(|known| reads_as(name, known))
}

/// A byte of a name as CGI-like servers see it: to them every separator is the same.
const fn folded(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte } else { b'-' }
}

/// The lower-case name with dashes for whatever separates its words.
pub(super) fn dashed(name: &str) -> String {
    name.bytes().map(|byte| char::from(folded(byte))).collect()
}

/// Whether a CGI-like server cannot tell `name` from `known`, which has no separators but dashes.
fn reads_as(name: &str, known: &str) -> bool {
    name.len() == known.len() && begins_like(name, known)
}

fn begins_like(name: &str, family: &str) -> bool {
    name.len() >= family.len()
        && name.bytes().map(folded).zip(family.bytes()).all(|(one, other)| one == other)
}

/// The names removed from every request, prepared for one lookup per header.
#[derive(Clone, Debug)]
pub(super) struct Set {
    names: HashSet<Box<str>, ahash::RandomState>,
}

impl Set {
    /// The fixed names and the configured ones.
    pub(super) fn new<'a>(configured: impl Iterator<Item = &'a HeaderName>) -> Self {
        let configured = configured.map(|name| dashed(name.as_str()).into());
        let fixed = HOP_BY_HOP.iter().chain(&GATEWAY_ONLY).chain(&["expect"]).map(|name| (*name).into());
        Self { names: fixed.chain(configured).collect() }
    }

    /// Whether a lower-case name is to go. A name with `_`, `.` or another separator is judged as if it had `-`, since
    /// CGI-like servers see no difference; for the same reason such spellings of protected end-to-end fields go. Other
    /// names pass, whatever they begin with.
    pub(super) fn holds(&self, name: &str) -> bool {
        if name.bytes().all(|byte| folded(byte) == byte) {
            return self.names.contains(name) || name.starts_with(FORWARDED_FAMILY);
        }
        begins_like(name, FORWARDED_FAMILY)
            || BROWSER_FAMILIES.iter().any(|family| begins_like(name, family))
            || PROTECTED.iter().chain(&JUDGED).any(|known| reads_as(name, known))
            || self.names.iter().any(|known| reads_as(name, known))
    }
}
