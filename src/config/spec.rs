//! A configuration that was read, checked and resolved: plain Rust values for the composition root. It knows no
//! TOML, no environment and no behaviour.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, Method};
use ipnet::IpNet;

use super::template::Template;
use super::value::{HostPort, RedisUrl, Secret};
pub use super::words::{
    AccessField, Algorithm, AppliesTo, Auth, Balance, ClientAddressHeader, Count, Environment, HashTags,
    LimitAlgorithm, LogFormat, LogLevel, Logout, OnStoreFailure, ResetFormat, SessionUse, UpstreamProtocol,
    WhenUnknown,
};
pub use crate::limits::KeyPart;
use crate::sessions::login::Place;

/// The whole configuration; names used by routes and policies exist.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Which overlay is in force.
    pub environment: Environment,
    /// Public listeners and what a request may be.
    pub server: Server,
    /// The operators' listener.
    pub admin: Admin,
    /// The store that instances share.
    pub redis: Redis,
    /// What is logged, and how.
    pub log: Log,
    /// Where tokens are found and what is told to upstreams.
    pub identity: Identity,
    /// How long sessions live.
    pub sessions: Sessions,
    /// Tokens that the gateway issues itself.
    pub api_tokens: ApiTokens,
    /// Who may issue tokens, in the order of the file.
    pub issuers: Vec<Issuer>,
    /// What all limits have in common.
    pub limits: Limits,
    /// Declared and built-in plans.
    pub plans: Vec<Plan>,
    /// Named limits, in the order of the file.
    pub policies: Vec<Policy>,
    /// Named groups of backends, in the order of the file.
    pub upstreams: Vec<Upstream>,
    /// The response cache.
    pub cache: Cache,
    /// Routes, in the order of the file.
    pub routes: Vec<Route>,
}

/// `[server]`.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of the file")]
pub struct Server {
    /// Public listeners, HTTP/1.1.
    pub listen: Vec<SocketAddr>,
    /// Internal listeners that speak HTTP/2 without TLS, with prior knowledge, only.
    pub listen_h2c: Vec<SocketAddr>,
    /// Worker threads; `None`: one per core.
    pub threads: Option<u16>,
    /// Networks whose forwarding headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The header they report the client in.
    pub client_address_header: ClientAddressHeader,
    /// Prefix length that stands for one IPv6 client, 1 to 128.
    pub ipv6_prefix: u8,
    /// How long an idle client connection is kept.
    pub keepalive_timeout: Duration,
    /// Longest pause while a request body arrives.
    pub body_timeout: Duration,
    /// Longest pause while a client takes its response.
    pub write_timeout: Duration,
    /// Most bytes of a request target.
    pub max_uri: u64,
    /// Most bytes of all request header fields.
    pub max_header_size: u64,
    /// Most request header fields.
    pub max_headers: u32,
    /// Most bytes of a request body, for routes that do not say.
    pub max_body: u64,
    /// Whether `/Todo` is `/todo`.
    pub case_insensitive_paths: bool,
    /// Whether `/todo/` is `/todo`.
    pub ignore_trailing_slash: bool,
    /// Whether `%2F` may stand in a path, for routes that do not say.
    pub allow_encoded_slashes: bool,
    /// Whether `;` may stand in a path.
    pub allow_path_parameters: bool,
    /// How long requests in flight may take to end at shutdown.
    pub shutdown_timeout: Duration,
}

/// `[admin]`.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where operators connect.
    pub listen: SocketAddr,
    /// Lower-case names it answers to beside IP addresses and `localhost`.
    pub hosts: Vec<Box<str>>,
    /// Bearer credential of the API; `None`: only metrics and health are answered.
    pub token: Option<Secret>,
    /// Whether `/health` shows details.
    pub health_detail: bool,
}

/// `[redis]`.
#[derive(Clone, Debug)]
pub struct Redis {
    /// `None`: memory only.
    pub url: Option<RedisUrl>,
    /// In front of every key.
    pub key_prefix: Box<str>,
    /// Whether keys put their subject into a hash tag.
    pub hash_tags: HashTags,
    /// For opening a connection.
    pub connect_timeout: Duration,
    /// Longest wait of a request, at most 1 s.
    pub deadline: Duration,
    /// Pause between checks of the connection.
    pub health_check_interval: Duration,
    /// Failures in a row after which requests stop waiting.
    pub breaker_failures: u32,
}

impl Redis {
    /// Whether keys put their subject into a hash tag.
    pub fn tagged(&self) -> bool {
        match self.hash_tags {
            HashTags::Auto => self.url.as_ref().is_some_and(RedisUrl::is_cluster),
            HashTags::On => true,
            HashTags::Off => false,
        }
    }
}

/// `[log]`.
#[derive(Clone, Debug)]
pub struct Log {
    /// Shape of the lines.
    pub format: LogFormat,
    /// Least severe level.
    pub level: LogLevel,
    /// Whether each request gives a line.
    pub access: bool,
    /// Fields of that line.
    pub access_fields: Vec<AccessField>,
}

/// Where a token may be in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// `Authorization: Bearer` (RFC 6750).
    Bearer,
    /// A cookie of this name.
    Cookie(Box<str>),
    /// A header that holds the token alone.
    Header(HeaderName),
    /// A query parameter of this name.
    Query(Box<str>),
}

/// `[sessions]`.
#[derive(Clone, Copy, Debug)]
pub struct Sessions {
    /// From the last use of a session to its end.
    pub idle: Duration,
    /// From its login to its end at the latest; not shorter than `idle`.
    pub absolute: Duration,
    /// Most sessions of one user, at least one.
    pub max_per_user: usize,
    /// Longest body of a login response that is looked at, in bytes.
    pub peek: usize,
    /// Between two sweeps.
    pub sweep: Duration,
}

/// `[identity]`.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Places, tried in this order.
    pub token_from: Vec<TokenSource>,
    /// Most bytes of a token.
    pub max_token_size: u64,
    /// Most verified tokens remembered.
    pub verified_cache: u32,
    /// How long a revocation holds where the token does not say when it ends.
    pub revocation_lifetime: Duration,
    /// What becomes of tokens that may have been revoked.
    pub when_unknown: WhenUnknown,
    /// Header for the subject; `None`: not sent.
    pub user_id_header: Option<HeaderName>,
    /// Header for the plan; `None`: not sent.
    pub plan_header: Option<HeaderName>,
    /// Header for the permissions; `None`: not sent.
    pub permissions_header: Option<HeaderName>,
    /// Claim and the header it is sent in.
    pub claim_headers: Vec<(Box<str>, HeaderName)>,
}

/// `[api_tokens]`.
#[derive(Clone, Debug)]
pub struct ApiTokens {
    /// Whether they are accepted.
    pub enabled: bool,
    /// The header that may hold one, beside `Authorization`.
    pub header: Option<HeaderName>,
}

/// `[issuers.<name>]`.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// Its name in this file.
    pub name: Box<str>,
    /// Accepted algorithms: all symmetric or all asymmetric, never empty.
    pub algorithms: Vec<Algorithm>,
    /// Its keys, of the kind that `algorithms` needs; empty where it publishes them.
    pub keys: Vec<IssuerKey>,
    /// Where it publishes its keys.
    pub jwks: Option<Jwks>,
    /// Required `iss`.
    pub issuer: Option<Box<str>>,
    /// One of these must be in `aud`; empty: `aud` is not looked at.
    pub audience: Vec<Box<str>>,
    /// Tolerance for clocks that differ.
    pub leeway: Duration,
    /// Whether a token without `exp` is refused.
    pub require_exp: bool,
    /// Claims that must be present.
    pub required_claims: Vec<Box<str>>,
    /// Longest `exp` − `iat`.
    pub max_lifetime: Option<Duration>,
    /// Which claims mean what.
    pub claims: ClaimNames,
}

/// `[issuers.<name>.jwks]`.
#[derive(Clone, Debug)]
pub struct Jwks {
    /// Where the keys are.
    pub place: JwksPlace,
    /// Pause between two reads in the background; at least the cooldown.
    pub refresh: Duration,
    /// Shortest time between two reads.
    pub cooldown: Duration,
    /// Longest time of one read.
    pub timeout: Duration,
    /// Largest set, in bytes.
    pub max_size: u64,
}

/// Where an issuer publishes its keys.
#[derive(Clone, Debug)]
pub enum JwksPlace {
    /// An absolute URL, `http` only where that is allowed.
    Url {
        /// The URL, without credentials.
        url: http::Uri,
        /// PEM of certificates trusted beside the public ones, read once to see that they can be.
        roots: Option<Vec<u8>>,
    },
    /// A file with a usable set.
    File {
        /// Where it is.
        path: PathBuf,
        /// What it held.
        content: Vec<u8>,
    },
}

/// One key of an issuer.
#[derive(Clone, Debug)]
pub struct IssuerKey {
    /// The `kid` it answers to; `None`: any token without a matching key of its own.
    pub kid: Option<Box<str>>,
    /// The key.
    pub material: KeyMaterial,
}

/// A verification key.
#[derive(Clone, Debug)]
pub enum KeyMaterial {
    /// Shared secret for HS*; in production 32 bytes or more, 48 for HS384, 64 for HS512.
    Secret(Secret),
    /// PEM of a public key or certificate, parsed once to see that it suits the algorithms.
    PublicPem(Vec<u8>),
}

/// `[issuers.<name>.claims]`.
#[derive(Clone, Debug)]
pub struct ClaimNames {
    /// Tried in this order; never empty.
    pub subject: Vec<Box<str>>,
    /// Plan of the caller.
    pub plan: Box<str>,
    /// Factor on the plan's limits.
    pub multiplier: Box<str>,
    /// Permissions of the caller.
    pub permissions: Box<str>,
    /// E-mail address of the caller.
    pub email: Box<str>,
}

/// `[limits]`.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "switches that are independent of each other")]
pub struct Limits {
    /// Plan of an identified caller whose token names none, or an unknown one; it exists.
    pub default_plan: Box<str>,
    /// Plan of callers without a token; it exists.
    pub anonymous_plan: Box<str>,
    /// Largest product of a token's multiplier and that of `user_limits:<user>`.
    pub multiplier_cap: f64,
    /// Whether `user_limits:<user>` in Redis changes the plan limits of that user.
    pub user_limits: bool,
    /// How old what is known of it may be before it is read again.
    pub user_limits_refresh: Duration,
    /// How `X-RateLimit-Reset` is told.
    pub reset: ResetFormat,
    /// Whether `X-RateLimit-*` is sent.
    pub x_ratelimit_headers: bool,
    /// Whether `RateLimit` and `RateLimit-Policy` are sent.
    pub ietf_headers: bool,
    /// Most subjects counted or remembered in memory.
    pub local_keys: u32,
    /// Whether requests that share a counter are asked for together.
    pub coalesce: bool,
    /// Where a client reads its quota; `None`: nowhere.
    pub quota_path: Option<Box<str>>,
    /// Longest body that is read for a policy, in bytes.
    pub body_peek: usize,
}

/// One window of a policy or plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// `second`, `minute`, `hour`, `day`, the name given, or the length such as `300s`; unique in its policy.
    pub name: Box<str>,
    /// Requests (cost units) per window, at least 1.
    pub limit: u64,
    /// Whole seconds, 1 s to 31 days.
    pub window: Duration,
}

/// `[plans.<name>]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// As tokens name it.
    pub name: Box<str>,
    /// Never empty.
    pub windows: Vec<Window>,
}

/// How much a policy allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quota {
    /// The same for everyone; never empty.
    Windows(Vec<Window>),
    /// The windows of the caller's plan.
    Plan,
    /// This many requests of one subject in flight on one instance, at least 1.
    Concurrency(u64),
}

/// `[policies.<name>.cooldown]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoolDown {
    /// One request is admitted per interval; at least 1 ms.
    pub interval: Duration,
    /// The window opens again after this long without any request.
    pub quiet: Duration,
}

/// `[policies.<name>]`.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its name, also the middle of its Redis keys.
    pub name: Box<str>,
    /// What it counts by; never empty.
    pub key: Vec<KeyPart>,
    /// Whose requests it counts.
    pub applies_to: AppliesTo,
    /// How it counts.
    pub algorithm: LimitAlgorithm,
    /// What holds once the window has tripped; given exactly where `algorithm` is [`LimitAlgorithm::CoolDown`].
    pub cooldown: Option<CoolDown>,
    /// How much it allows.
    pub quota: Quota,
    /// What one request costs, at least 1.
    pub cost: u32,
    /// What happens while the store is away.
    pub on_store_failure: OnStoreFailure,
    /// Whether refused requests count too.
    pub penalise: bool,
    /// Statuses of answers that count, never empty; `None`: every request counts.
    pub failures: Option<Vec<u16>>,
    /// Whether it only watches.
    pub shadow: bool,
    /// Windows that are watched beside the enforced ones, under the name [`Policy::candidate_name`]; never empty.
    pub candidate: Option<Vec<Window>>,
    /// Whether an instance may take several requests' worth at once.
    pub lease: bool,
}

impl Policy {
    /// What a candidate of the policy called `name` is called, in keys and metrics.
    pub fn candidate_name(name: &str) -> String {
        format!("{name}-candidate")
    }
}

/// `[upstreams.<name>]`.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Its name in this file.
    pub name: Box<str>,
    /// Never empty, no duplicates.
    pub members: Vec<HostPort>,
    /// What is spoken to them.
    pub protocol: UpstreamProtocol,
    /// How one is chosen.
    pub balance: Balance,
    /// For opening a connection.
    pub connect_timeout: Duration,
    /// Longest pause while a response arrives.
    pub read_timeout: Duration,
    /// Longest pause while a request is taken.
    pub write_timeout: Duration,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// Further members tried when a connection cannot be opened.
    pub connect_retries: u32,
    /// Most concurrent streams of one HTTP/2 connection.
    pub max_h2_streams: u32,
}

/// `[cache]`.
#[derive(Clone, Debug)]
pub struct Cache {
    /// Bytes of the memory tier.
    pub memory: u64,
    /// Whether Redis is the second tier.
    pub redis: bool,
    /// Most bytes of one stored response.
    pub max_object: u64,
    /// Most bytes of one response stored in Redis.
    pub redis_max_object: u64,
    /// Longest freshness of any response.
    pub max_lifetime: Duration,
    /// Whether `X-Cache-Key` is sent.
    pub expose_key: bool,
}

/// `[[routes]]`.
#[derive(Clone, Debug)]
pub struct Route {
    /// Unique.
    pub name: Box<str>,
    /// Lower case, exact or `*.suffix`; empty: every host.
    pub hosts: Vec<Box<str>>,
    /// Empty: every method.
    pub methods: Vec<Method>,
    /// The pattern as written.
    pub path: Box<str>,
    /// A declared upstream; `None` only where the gateway answers.
    pub upstream: Option<Box<str>>,
    /// What is asked of the token.
    pub auth: Auth,
    /// Whether a live session is needed beside the token.
    pub session: SessionUse,
    /// All of these are needed.
    pub permissions: Vec<Box<str>>,
    /// Declared policies, no duplicates.
    pub limits: Vec<Box<str>>,
    /// Times the cost of each policy, at least 1.
    pub cost: u32,
    /// Whether and how this route logs out.
    pub logout: Option<Logout>,
    /// Whether a logout here is one of all the user's tokens; only where `logout` is there.
    pub logout_everywhere: bool,
    /// What becomes of tokens that may have been revoked; `None`: what `[identity]` says, and a logout accepts them.
    pub when_unknown: Option<WhenUnknown>,
    /// Where a successful answer has the token that opens a session.
    pub login: Option<Place>,
    /// Most bytes of a request body.
    pub max_body: u64,
    /// Whether `%2F` may stand in the path.
    pub allow_encoded_slashes: bool,
    /// How responses are cached, if they are.
    pub cache: Option<RouteCache>,
    /// Tags that a successful unsafe request drops.
    pub invalidates: Vec<Template>,
}

/// Which parts of the query are part of the cache key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryKey {
    /// All parameters, sorted.
    All,
    /// None.
    Ignore,
    /// These parameters, sorted.
    Only(Vec<Box<str>>),
}

/// `[routes.cache.warm]`.
#[derive(Clone, Debug)]
pub struct Warm {
    /// At least one.
    pub urls: Vec<WarmUrl>,
    /// What is sent along: what selects the variant, and the credential, marked as sensitive.
    pub headers: http::HeaderMap,
}

/// A URL as clients ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmUrl {
    /// Whether they use TLS.
    pub https: bool,
    /// Host and port.
    pub authority: Box<str>,
    /// Path and query.
    pub target: Box<str>,
}

/// `[routes.cache]`.
#[derive(Clone, Debug)]
pub struct RouteCache {
    /// Freshness where the upstream says nothing; `None`: only what the upstream says.
    pub ttl: Option<Duration>,
    /// Whether all users share one response.
    pub shared: bool,
    /// Whether `ttl` also replaces what the upstream says.
    pub override_origin: bool,
    /// Request headers that are part of the key.
    pub vary: Vec<HeaderName>,
    /// Query parameters that are part of the key.
    pub query: QueryKey,
    /// What stored responses are labelled with.
    pub tags: Vec<Template>,
    /// Most bytes of one stored response.
    pub max_object: u64,
    /// How long before its end a response is fetched anew; zero: not at all.
    pub refresh_ahead: Duration,
    /// What is kept warm.
    pub warm: Option<Warm>,
    /// How long a stale response may be served while it is fetched anew.
    pub stale_while_revalidate: Duration,
    /// How long a stale response may be served when the upstream fails.
    pub stale_if_error: Duration,
}
