//! Header names that more than one floor speaks of.

use http::HeaderName;

macro_rules! header_names {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)+) => {
        $($(#[$doc])* pub static $name: HeaderName = HeaderName::from_static($text);)+
    };
}

header_names! {
    /// De-facto limit of the tightest window.
    X_RATELIMIT_LIMIT = "x-ratelimit-limit";
    /// De-facto remaining quota of the tightest window.
    X_RATELIMIT_REMAINING = "x-ratelimit-remaining";
    /// De-facto reset of the tightest window: epoch seconds, or delta seconds when configured.
    X_RATELIMIT_RESET = "x-ratelimit-reset";
    /// draft-ietf-httpapi-ratelimit-headers-10: the quota policies.
    RATELIMIT_POLICY = "ratelimit-policy";
    /// draft-ietf-httpapi-ratelimit-headers-10: the service limits.
    RATELIMIT = "ratelimit";
    /// Cache outcome in one word.
    X_CACHE = "x-cache";
    /// Fingerprint of the cache key.
    X_CACHE_KEY = "x-cache-key";
    /// RFC 9211.
    CACHE_STATUS = "cache-status";
    /// RFC 9213: cache directives for this gateway alone.
    TOLLGATE_CACHE_CONTROL = "tollgate-cache-control";
    /// RFC 9213: cache directives for every cache in front of the origin.
    CDN_CACHE_CONTROL = "cdn-cache-control";
    /// Correlates a request across hops.
    X_REQUEST_ID = "x-request-id";
    /// Client address chain.
    X_FORWARDED_FOR = "x-forwarded-for";
    /// Scheme the client used.
    X_FORWARDED_PROTO = "x-forwarded-proto";
    /// Host the client asked for.
    X_FORWARDED_HOST = "x-forwarded-host";
    /// Port the client connected to.
    X_FORWARDED_PORT = "x-forwarded-port";
    /// nginx's spelling of the client address.
    X_REAL_IP = "x-real-ip";
    /// RFC 7239.
    FORWARDED = "forwarded";
    /// W3C Trace Context.
    TRACEPARENT = "traceparent";
    /// W3C Trace Context.
    TRACESTATE = "tracestate";
    /// Subject of the verified token.
    X_USER_ID = "x-user-id";
    /// Plan of the caller.
    X_USER_PLAN = "x-user-plan";
    /// Permissions of the caller, comma-separated.
    X_USER_PERMISSIONS = "x-user-permissions";
}
