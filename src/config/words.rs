//! The closed sets of words that the configuration file uses. They carry no behaviour beyond their spelling.

use std::borrow::Cow;

use super::error::did_you_mean;
use super::value::{Leaf, Raw, Refused, words};
pub use crate::logging::AccessField;
use crate::metrics::Label as _;
use crate::sessions::login::Place;

impl Leaf for AccessField {
    fn accepted() -> Cow<'static, str> {
        Self::ALL.iter().map(|field| field.as_str()).collect::<Vec<_>>().join(", ").into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        let word = raw.text.trim();
        Self::from_name(word)
            .ok_or_else(|| Refused::hint(did_you_mean(word, Self::ALL.iter().map(|field| field.as_str()))))
    }
}

impl Leaf for Place {
    fn accepted() -> Cow<'static, str> {
        "json:/pointer, header:NAME, cookie:NAME".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        Self::parse(raw.text.trim()).ok_or_else(Refused::default)
    }
}

words! {
    /// Which `[environments.*]` overlay is in force.
    pub enum Environment {
        /// Short secrets are refused.
        Production = "production",
        /// Short secrets only give a warning.
        Development = "development",
    }

    /// The header that trusted proxies report the client in.
    pub enum ClientAddressHeader {
        /// The de-facto header.
        XForwardedFor = "x-forwarded-for",
        /// RFC 7239.
        Forwarded = "forwarded",
    }

    /// Shape of log lines.
    pub enum LogFormat {
        /// One JSON object a line.
        Json = "json",
        /// For eyes.
        Human = "human",
    }

    /// Least severe level that is logged.
    pub enum LogLevel {
        /// What happens, in normal operation.
        Info = "info",
        /// Failures of the gateway itself.
        Error = "error",
        /// What an operator should look at.
        Warn = "warn",
        /// For finding faults.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }

    /// JWS algorithms (RFC 7518, RFC 8037); `none` is not one of them.
    pub enum Algorithm {
        /// HMAC with SHA-256.
        Hs256 = "HS256",
        /// HMAC with SHA-384.
        Hs384 = "HS384",
        /// HMAC with SHA-512.
        Hs512 = "HS512",
        /// RSA PKCS#1 v1.5 with SHA-256.
        Rs256 = "RS256",
        /// RSA PKCS#1 v1.5 with SHA-384.
        Rs384 = "RS384",
        /// RSA PKCS#1 v1.5 with SHA-512.
        Rs512 = "RS512",
        /// RSA PSS with SHA-256.
        Ps256 = "PS256",
        /// RSA PSS with SHA-384.
        Ps384 = "PS384",
        /// RSA PSS with SHA-512.
        Ps512 = "PS512",
        /// ECDSA on P-256.
        Es256 = "ES256",
        /// ECDSA on P-384.
        Es384 = "ES384",
        /// Ed25519.
        EdDsa = "EdDSA",
    }

    /// How `X-RateLimit-Reset` is told.
    pub enum ResetFormat {
        /// Seconds since the Unix epoch.
        Epoch = "epoch",
        /// Seconds from now.
        Delta = "delta",
    }

    /// How a policy counts.
    pub enum LimitAlgorithm {
        /// One counter that expires.
        FixedWindow = "fixed-window",
        /// Two counters, the older one weighted.
        SlidingWindow = "sliding-window",
        /// GCRA: a burst of `limit`, refilled over `window`.
        TokenBucket = "token-bucket",
        /// The time of every admitted request: never more than `limit` in any window.
        SlidingLog = "sliding-log",
        /// A fixed window that trips; then one request per interval until it has been quiet.
        CoolDown = "cool-down",
    }

    /// Whose requests a policy counts.
    pub enum AppliesTo {
        /// Everyone's.
        All = "all",
        /// Those of callers without a token.
        Anonymous = "anonymous",
        /// Those of callers with a token.
        Identified = "identified",
    }

    /// Whether store keys put their subject into a hash tag.
    pub enum HashTags {
        /// Where the store is a Cluster.
        Auto = "auto",
        /// Always, for one that is to become a Cluster.
        On = "on",
        /// Never: on a Cluster one request then asks more nodes.
        Off = "off",
    }

    /// Which requests a policy counts.
    pub enum Count {
        /// All of them.
        Requests = "requests",
        /// Those whose answer is a failure.
        Failures = "failures",
    }

    /// What a policy does while the shared store is away.
    pub enum OnStoreFailure {
        /// Count in this instance's memory.
        Local = "local",
        /// Let everything through.
        Allow = "allow",
        /// Refuse everything.
        Deny = "deny",
    }

    /// What is spoken to an upstream.
    pub enum UpstreamProtocol {
        /// HTTP/1.1.
        Http1 = "http1",
        /// HTTP/2 without TLS, with prior knowledge.
        H2c = "h2c",
    }

    /// How a member is chosen.
    pub enum Balance {
        /// One after the other.
        RoundRobin = "round-robin",
    }

    /// What a route asks of the caller's token.
    pub enum Auth {
        /// Tokens are not looked at.
        None = "none",
        /// Anonymous callers pass; a token that is present must be valid.
        Optional = "optional",
        /// Only callers with a valid token pass.
        Required = "required",
    }

    /// What becomes of a token that may have been revoked, because the store gives no answer.
    pub enum WhenUnknown {
        /// It is accepted.
        Accept = "accept",
        /// It is refused for the moment.
        Refuse = "refuse",
    }

    /// Who answers a logout.
    pub enum Logout {
        /// The gateway.
        Gateway = "gateway",
        /// The upstream; its 2xx makes it a logout.
        Forward = "forward",
    }

    /// How much of the gateway's health a route tells.
    pub enum HealthDetail {
        /// Status, version and uptime.
        Brief = "brief",
        /// Redis, cache, connections and upstreams too.
        Full = "full",
    }

    /// What becomes of responses that set a cookie, in the cache.
    pub enum SetCookie {
        /// They are not stored.
        Refuse = "refuse",
        /// They are stored without their cookies.
        Strip = "strip",
        /// They are stored as they are, for the user who got them.
        Keep = "keep",
    }

    /// Whether a route wants a live session beside the token.
    pub enum SessionUse {
        /// It does not look at sessions.
        None = "none",
        /// Without one: 401.
        Required = "required",
    }
}

impl Algorithm {
    /// Whether the key is a shared secret (HS*) and not a public key.
    pub const fn is_symmetric(self) -> bool {
        matches!(self, Self::Hs256 | Self::Hs384 | Self::Hs512)
    }

    /// Shortest secret for it, in bytes (RFC 7518 section 3.2); zero where the key is a public one.
    pub const fn min_secret(self) -> usize {
        match self {
            Self::Hs256 => 32,
            Self::Hs384 => 48,
            Self::Hs512 => 64,
            _ => 0,
        }
    }
}
