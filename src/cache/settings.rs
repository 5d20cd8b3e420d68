//! What operators decide about the response cache, for the whole gateway and per route.
//! Valid by construction; it never sees the configuration file.

use std::time::Duration;

use http::{HeaderName, StatusCode};

use super::tag::TagTemplate;

/// Settings of the cache as a whole.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Upper bound of the memory tier in bytes: bodies, headers, keys and bookkeeping.
    pub memory_bytes: u64,
    /// Longest time any entry may be used, freshness and stale windows together.
    pub max_lifetime: Duration,
    /// Bodies above this many bytes are not written to the shared tier.
    pub remote_max_object_bytes: usize,
    /// How long a lookup waits for the shared tier before it counts as a miss.
    pub remote_deadline: Duration,
    /// Writes to the shared tier that may be under way at once; more are dropped and counted.
    pub remote_writes_in_flight: usize,
    /// Authenticates entries in the shared tier (HMAC-SHA-256), so that whoever can write to Redis but
    /// does not hold the secret cannot plant a response. `None`: a checksum against damage only.
    pub remote_secret: Option<Box<[u8]>>,
    /// Put before every Redis key, for deployments that share a Redis.
    pub key_prefix: Box<str>,
    /// How long a request waits for another one that is fetching the same object.
    pub lock_wait: Duration,
    /// After this long a fetch no longer holds others back.
    pub lock_age: Duration,
    /// Variants (`Vary`) kept per object; further ones are served but not stored.
    pub max_variants: usize,
    /// Generations remembered for the time Redis is away.
    pub generations_remembered: usize,
    /// Invalidations kept for Redis while it is away; beyond, everything is invalidated at once.
    pub pending_invalidations: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            memory_bytes: 64 * 1024 * 1024,
            max_lifetime: Duration::from_secs(24 * 3600),
            remote_max_object_bytes: 1024 * 1024,
            remote_deadline: Duration::from_millis(20),
            remote_writes_in_flight: 64,
            remote_secret: None,
            key_prefix: "".into(),
            lock_wait: Duration::from_secs(5),
            lock_age: Duration::from_secs(30),
            max_variants: 32,
            generations_remembered: 100_000,
            pending_invalidations: 10_000,
        }
    }
}

/// Which part of the query names the object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum QueryPolicy {
    /// Every parameter, sorted by name; parameters of one name keep their order.
    #[default]
    All,
    /// Only the named parameters (decoded names), sorted the same way.
    Only(Box<[Box<str>]>),
    /// None: the route promises that the query does not change the response.
    Ignore,
}

/// Settings of one route's cache.
#[derive(Clone, Debug)]
pub struct RouteCache {
    /// Name of the route; `route:<name>` is a tag of everything stored for it.
    pub name: Box<str>,
    /// Freshness of a response that says nothing of its own, or of every response with
    /// `override_origin`. `None`: only explicit freshness is honoured.
    pub ttl: Option<Duration>,
    /// Statuses the route's `ttl` applies to.
    pub ttl_statuses: Box<[StatusCode]>,
    /// Ignore what the origin says about caching (`Cache-Control`, `Expires`, `Age`, `Pragma`).
    /// `Set-Cookie`, `Vary: *` and partial responses are still never stored.
    pub override_origin: bool,
    /// One copy for everybody. `false`: the user is part of the key.
    pub shared: bool,
    /// Request headers that select a variant in addition to the response's `Vary`.
    pub vary: Box<[HeaderName]>,
    /// Which part of the query names the object.
    pub query: QueryPolicy,
    /// What a stored response depends on, beside the implicit tags.
    pub tags: Box<[TagTemplate]>,
    /// Bodies above this many bytes are not stored.
    pub max_object_bytes: usize,
    /// How long before its end a response is refreshed in the background, at a hit; at most half of its freshness.
    /// `None`: never.
    pub refresh_ahead: Option<Duration>,
    /// RFC 5861 section 3, unless the response says otherwise.
    pub stale_while_revalidate: Option<Duration>,
    /// RFC 5861 section 4, unless the response says otherwise.
    pub stale_if_error: Option<Duration>,
    /// Obey `Cache-Control` of requests (RFC 9111 section 5.2.1): `no-cache`, `max-age`, `only-if-cached` …
    /// `no-store` is obeyed in any case.
    pub honour_request_directives: bool,
}

impl RouteCache {
    /// A per-user cache that obeys the origin: the safe default for route `name`.
    pub fn new(name: impl Into<Box<str>>) -> Self {
        Self {
            name: name.into(),
            ttl: None,
            ttl_statuses: Box::new([StatusCode::OK]),
            override_origin: false,
            shared: false,
            vary: Box::default(),
            query: QueryPolicy::All,
            tags: Box::default(),
            max_object_bytes: 1024 * 1024,
            refresh_ahead: None,
            stale_while_revalidate: None,
            stale_if_error: None,
            honour_request_directives: true,
        }
    }
}
