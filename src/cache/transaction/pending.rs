//! A request on its way to the generations of its tags.

use std::sync::Arc;

use http::{HeaderMap, Method};
use pingora::cache::CacheKey;

use super::Transaction;
use super::ahead::Windows;
use crate::cache::Cache;
use crate::cache::directives::RequestDirectives;
use crate::cache::generations::{Fingerprint, Resolution};
use crate::cache::key::{self, Target, Unstamped};
use crate::cache::policy::Scope;
use crate::cache::prefixes::Compare;
use crate::cache::request::{self, Bypass};
use crate::cache::settings::RouteCache;
use crate::cache::tag::{Tags, key_tag, route_tag, user_tag};
use crate::clock::UnixMillis;

/// A request that may use the cache once the generations of its tags are known.
#[derive(Debug)]
pub struct Pending {
    route: Arc<RouteCache>,
    key: Unstamped,
    public_key: Box<str>,
    tags: Tags,
    directives: RequestDirectives,
    scope: Scope,
    own: bool,
    authorised: bool,
    compare: Compare,
}

impl Pending {
    /// Judges a request to `route`; `param` looks up its path parameters.
    pub fn new<'a>(
        route: &Arc<RouteCache>,
        method: &Method,
        headers: &HeaderMap,
        target: Target<'_>,
        param: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Self, Bypass> {
        let directives = request::judge(route, method, headers, target.caller)?;
        let user = target.caller.user();
        let mut tags = Tags::epoch();
        tags.push(route_tag(&route.name));
        if !route.shared {
            tags.push(user_tag(user));
        }
        for template in &route.tags {
            tags.push(template.render(user, &param));
        }
        let authorised = request::is_authorised(route, headers, target.caller);
        let key = Unstamped::new(route, target);
        let public_key = key.public_key();
        tags.push(key_tag(&public_key));
        Ok(Self {
            route: Arc::clone(route),
            key,
            public_key,
            tags,
            directives,
            scope: Scope::of(route, user.is_some()),
            own: user.is_some() && !route.shared,
            authorised,
            compare: Compare::default(),
        })
    }

    /// Compares paths with purged prefixes as routes are compared.
    #[must_use]
    pub const fn comparing(mut self, compare: Compare) -> Self {
        self.compare = compare;
        self
    }

    /// The tags whose generations are to be read: `Generations::keys(pending.tags())`.
    pub const fn tags(&self) -> &Tags {
        &self.tags
    }

    /// Goes on with what Redis answered; on `Err` the request goes past the cache.
    pub fn with_values<V: AsRef<[u8]>>(
        self,
        cache: &'static Cache,
        values: &[Option<V>],
        now: UnixMillis,
    ) -> Result<Transaction, Bypass> {
        match cache.generations().resolve(&self.tags, self.key.place(self.compare), values, now) {
            Resolution::Ready { fingerprint, absent } => {
                let mut transaction = self.stamp(cache, fingerprint, now);
                transaction.absent = absent;
                Ok(transaction)
            }
            Resolution::Malformed => Err(Bypass::Malformed),
        }
    }

    /// Goes on from memory: Redis is away, or there is none.
    pub fn locally(self, cache: &'static Cache, now: UnixMillis) -> Transaction {
        let fingerprint = cache.generations().local(&self.tags, self.key.place(self.compare), now);
        // Where the shared tier is, the generations are: who could not ask for these need not ask for those.
        let mut transaction = self.stamp(cache, fingerprint, now);
        transaction.read_memory_only();
        transaction
    }

    fn stamp(self, cache: &'static Cache, fingerprint: Fingerprint, now: UnixMillis) -> Transaction {
        let bytes = self.key.stamp(fingerprint);
        let hash = key::hash(&bytes);
        let mut key = CacheKey::new(bytes, "");
        // Hashed once here instead of in each of pingora's steps.
        key.set_primary_bin_override(hash);
        Transaction {
            cache,
            route: self.route,
            key,
            patience: None,
            out_of_patience: false,
            public_key: self.public_key,
            directives: self.directives,
            scope: self.scope,
            own: self.own,
            authorised: self.authorised,
            may_ask_remote: true,
            absent: Vec::new(),
            started: now,
            sent: now,
            freshening: None,
            not_freshened: None,
            came_with_age: false,
            answered: None,
            guarded_until: None,
            stale_since: now,
            by_request: false,
            had_stale: false,
            varied: false,
            bypassed: false,
            storable: false,
            not_stored: None,
            tier: None,
            fresh_at_once: None,
            refreshing: false,
            warm: None,
            windows: Windows::default(),
        }
    }
}
