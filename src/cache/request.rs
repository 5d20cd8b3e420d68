//! Whether a request may use the cache at all, and what it asks of a stored response (RFC 9111 sections 3, 5.2.1).
//! Pure; the caller's identity is what the gateway verified, never what the request claims.

use http::{HeaderMap, HeaderName, Method, header};

use super::directives::RequestDirectives;
use super::settings::RouteCache;

/// Who is asking, as far as the gateway verified it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller<'a> {
    /// Nobody in particular.
    Anonymous,
    /// The subject of a verified credential.
    User(&'a str),
    /// The same, and a digest of what else the upstream is told of them: permissions, plan, claims.
    Described(&'a str, &'a [u8; 16]),
}

impl<'a> Caller<'a> {
    /// The caller with this account, of whom the upstream is `told` more than that.
    pub fn identified(user: &'a str, told: Option<&'a [u8; 16]>) -> Self {
        told.map_or(Self::User(user), |told| Self::Described(user, told))
    }

    /// The subject, if there is one.
    pub const fn user(self) -> Option<&'a str> {
        match self {
            Self::Anonymous => None,
            Self::User(user) | Self::Described(user, _) => Some(user),
        }
    }
}

/// Why a request goes past the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bypass {
    /// Neither GET nor HEAD.
    Method,
    /// The request has a body, which may change the answer but is not part of the key.
    Body,
    /// A header that makes some backends treat the request as another one, or that takes others away on the way there.
    Override,
    /// The request wants to become another protocol.
    Upgrade,
    /// `If-Match` or `If-Unmodified-Since`: only the origin can judge them (RFC 9111 section 4.3.2).
    Precondition,
    /// `Cache-Control: no-store`.
    NoStore,
    /// A credential the gateway did not verify, on a route with a `ttl` whose key would say "anonymous".
    UnverifiedCredential,
    /// The store's answer does not fit the question.
    Malformed,
}

impl Bypass {
    /// Every value, for metrics that start at zero.
    pub const ALL: [Self; 8] = [
        Self::Method,
        Self::Body,
        Self::Override,
        Self::Upgrade,
        Self::Precondition,
        Self::NoStore,
        Self::UnverifiedCredential,
        Self::Malformed,
    ];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Body => "body",
            Self::Override => "override",
            Self::Upgrade => "upgrade",
            Self::Precondition => "precondition",
            Self::NoStore => "no_store",
            Self::UnverifiedCredential => "unverified_credential",
            Self::Malformed => "malformed",
        }
    }
}

/// Headers by which a client may speak of another method, path or host than the request line does.
static OVERRIDES: [HeaderName; 9] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
    HeaderName::from_static("x-original-uri"),
    HeaderName::from_static("x-original-host"),
    HeaderName::from_static("x-host"),
    HeaderName::from_static("x-forwarded-prefix"),
];

/// What `Connection` may name: fields that never go further than this connection. Any other one would select a
/// variant, or be judged, and then not reach the upstream.
static OF_ONE_CONNECTION: [&[u8]; 11] = [
    b"close",
    b"keep-alive",
    b"proxy-connection",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"http2-settings",
    b"",
];

static CREDENTIALS: [HeaderName; 4] = [
    header::AUTHORIZATION,
    header::COOKIE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
];

/// What the request asks of the cache, or why it goes past it.
pub fn judge(
    route: &RouteCache,
    method: &Method,
    headers: &HeaderMap,
    caller: Caller<'_>,
) -> Result<RequestDirectives, Bypass> {
    if method != Method::GET && method != Method::HEAD {
        return Err(Bypass::Method);
    }
    if has_body(headers) {
        return Err(Bypass::Body);
    }
    if overrides(headers) || takes_fields_away(headers) {
        return Err(Bypass::Override);
    }
    if headers.contains_key(header::UPGRADE) {
        return Err(Bypass::Upgrade);
    }
    if headers.contains_key(header::IF_MATCH) || headers.contains_key(header::IF_UNMODIFIED_SINCE) {
        return Err(Bypass::Precondition);
    }
    let directives = RequestDirectives::parse(headers);
    if directives.no_store {
        return Err(Bypass::NoStore);
    }
    // Without a ttl nothing is stored that the origin did not release to everybody.
    if caller == Caller::Anonymous && !route.shared && route.ttl.is_some() && has_credential(headers) {
        return Err(Bypass::UnverifiedCredential);
    }
    Ok(if route.honour_request_directives { directives } else { RequestDirectives::default() })
}

/// Whether what the request gets may be meant for one caller only, so that nothing is stored of it unless the origin
/// releases it (RFC 9111 section 3.5). That section knows one field for credentials; on a route that is not
/// declared `shared` others count like it, and so does a credential that was verified, wherever it stood.
pub fn is_authorised(route: &RouteCache, headers: &HeaderMap, caller: Caller<'_>) -> bool {
    caller != Caller::Anonymous
        || headers.contains_key(header::AUTHORIZATION)
        || (!route.shared && has_credential(headers))
}

/// Looks at each field once instead of for each name: requests have few that begin so.
fn overrides(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("x-") && OVERRIDES.contains(name))
}

fn takes_fields_away(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::CONNECTION).iter();
    let mut options = lines.flat_map(|line| line.as_bytes().split(|b| *b == b',')).map(<[u8]>::trim_ascii);
    options.any(|option| !OF_ONE_CONNECTION.iter().any(|known| option.eq_ignore_ascii_case(known)))
}

fn has_credential(headers: &HeaderMap) -> bool {
    CREDENTIALS.iter().any(|name| headers.contains_key(name))
}

/// Whether a response to this write may have changed what is stored (RFC 9111 section 4.4). Beyond the RFC
/// an unknown outcome (no answer, or a server error) counts: the write may have happened.
pub fn write_invalidates(method: &Method, status: Option<http::StatusCode>) -> bool {
    !is_safe(method) && status.is_none_or(|status| !status.is_client_error())
}

/// Methods that change nothing (RFC 9110 section 9.2.1); unknown ones may.
pub fn is_safe(method: &Method) -> bool {
    [&Method::GET, &Method::HEAD, &Method::OPTIONS, &Method::TRACE].contains(&method)
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get_all(header::CONTENT_LENGTH).iter().any(|length| length.as_bytes() != b"0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, StatusCode};

    fn judged(
        shared: bool,
        method: &Method,
        line: (&'static str, &'static str),
        caller: Caller<'_>,
    ) -> Option<Bypass> {
        let mut headers = HeaderMap::new();
        if !line.0.is_empty() {
            headers.insert(line.0, HeaderValue::from_static(line.1));
        }
        let ttl = Some(std::time::Duration::from_secs(60));
        judge(&RouteCache { ttl, shared, ..RouteCache::new("r") }, method, &headers, caller).err()
    }

    #[test]
    fn only_plain_reads_use_the_cache() {
        let get = |name, value| judged(false, &Method::GET, (name, value), Caller::Anonymous);
        assert_eq!(get("", ""), None);
        assert_eq!(judged(false, &Method::HEAD, ("", ""), Caller::Anonymous), None);
        assert_eq!(judged(false, &Method::POST, ("", ""), Caller::Anonymous), Some(Bypass::Method));
        assert_eq!(get("content-length", "0"), None);
        assert_eq!(get("content-length", "3"), Some(Bypass::Body));
        assert_eq!(get("transfer-encoding", "chunked"), Some(Bypass::Body));
        assert_eq!(get("x-http-method-override", "DELETE"), Some(Bypass::Override));
        assert_eq!(get("x-original-url", "/admin"), Some(Bypass::Override));
        for named in ["x-lang", "close, X-Lang", "keep-alive,accept", "x lang"] {
            assert_eq!(get("connection", named), Some(Bypass::Override), "{named}");
        }
        for named in ["", "close", "Keep-Alive, TE", "upgrade, HTTP2-Settings,", "proxy-connection"] {
            assert_eq!(get("connection", named), None, "{named}");
        }
        assert_eq!(get("upgrade", "websocket"), Some(Bypass::Upgrade));
        assert_eq!(get("if-match", "\"1\""), Some(Bypass::Precondition));
        assert_eq!(get("cache-control", "no-store"), Some(Bypass::NoStore));
        assert_eq!(get("cache-control", "no-cache"), None);
    }

    #[test]
    fn an_unverified_credential_never_shares_anonymous_entries() {
        for name in ["cookie", "authorization", "x-api-key"] {
            let line = (name, "x");
            let bypass = Some(Bypass::UnverifiedCredential);
            assert_eq!(judged(false, &Method::GET, line, Caller::Anonymous), bypass);
            assert_eq!(judged(false, &Method::GET, line, Caller::User("ada")), None);
            assert_eq!(judged(true, &Method::GET, line, Caller::Anonymous), None);
        }
    }

    #[test]
    fn without_a_ttl_an_unverified_credential_needs_the_release_of_the_origin() {
        let plain = RouteCache::new("r");
        let shared = RouteCache { shared: true, ..RouteCache::new("r") };
        for name in ["cookie", "authorization", "x-api-key"] {
            let headers =
                HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static("x"))]);
            assert_eq!(judge(&plain, &Method::GET, &headers, Caller::Anonymous).err(), None, "{name}");
            assert!(is_authorised(&plain, &headers, Caller::Anonymous), "{name}");
            assert_eq!(
                is_authorised(&shared, &headers, Caller::Anonymous),
                name == "authorization",
                "{name}"
            );
        }
        assert!(is_authorised(&shared, &HeaderMap::new(), Caller::User("ada")));
        assert!(!is_authorised(&plain, &HeaderMap::new(), Caller::Anonymous));
    }

    #[test]
    fn writes_invalidate_unless_they_were_refused() {
        let post = |status: Option<u16>| {
            write_invalidates(&Method::POST, status.map(|s| StatusCode::from_u16(s).unwrap()))
        };
        assert!(post(Some(200)) && post(Some(303)) && post(Some(500)) && post(None));
        assert!(!post(Some(403)) && !write_invalidates(&Method::GET, None));
    }
}
