//! The cache key: everything a response may depend on, each part length-prefixed so that no two requests
//! that differ can write the same bytes. It never shows a user or a secret in what it publishes.

use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};

use super::generations::{Fingerprint, hex};
use super::request::Caller;
use super::settings::{QueryPolicy, RouteCache};

/// Changes whenever the layout of keys or entries does.
const VERSION: u8 = 1;

/// What identifies a request to the cache.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// `http` or `https`, as the client used it.
    pub scheme: &'a str,
    /// Host with port, as routed; case does not matter.
    pub host: &'a str,
    /// Normalised path: the form that goes upstream.
    pub path: &'a str,
    /// Query without `?`; `None` when there is no `?`.
    pub query: Option<&'a str>,
    /// Who is asking.
    pub caller: Caller<'a>,
}

/// A key that waits for the generations of its tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unstamped(Vec<u8>);

impl Unstamped {
    /// The key of `target` on `route`. GET and HEAD share it.
    pub fn new(route: &RouteCache, target: Target<'_>) -> Self {
        let mut key = Vec::with_capacity(128 + target.path.len() + target.query.map_or(0, str::len));
        key.push(VERSION);
        part(&mut key, route.name.as_bytes());
        part(&mut key, target.scheme.as_bytes());
        part(&mut key, host(target.scheme, target.host).as_bytes());
        part(&mut key, target.path.as_bytes());
        query(&mut key, &route.query, target.query);
        match target.caller {
            _ if route.shared => key.push(b's'),
            Caller::Anonymous => key.push(b'a'),
            Caller::User(user) => {
                key.push(b'u');
                part(&mut key, user.as_bytes());
            }
        }
        Self(key)
    }

    /// The complete key, reachable only under these generations.
    pub fn stamp(mut self, fingerprint: Fingerprint) -> Vec<u8> {
        self.0.extend_from_slice(&fingerprint.0);
        self.0
    }

    /// What `X-Cache-Key` shows: 16 hexadecimal digits, the same across generations and instances.
    pub fn public_key(&self) -> Box<str> {
        let digest: [u8; 32] = Sha256::digest(&self.0).into();
        let (shown, _) = digest.split_at(8);
        hex(shown).into()
    }
}

/// 128 bits of SHA-256: the hash by which both tiers find a key.
pub fn hash(key: &[u8]) -> [u8; 16] {
    let digest: [u8; 32] = Sha256::digest(key).into();
    let (half, _) = digest.split_at(16);
    half.try_into().unwrap_or_default()
}

fn part(key: &mut Vec<u8>, bytes: &[u8]) {
    key.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
    key.extend_from_slice(bytes);
}

fn host(scheme: &str, host: &str) -> String {
    let mut host = host.to_ascii_lowercase();
    let default = if scheme == "https" { ":443" } else { ":80" };
    if let Some(bare) = host.strip_suffix(default) {
        host.truncate(bare.len());
    }
    host
}

fn query(key: &mut Vec<u8>, policy: &QueryPolicy, query: Option<&str>) {
    let mut pairs: Vec<&str> = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).collect();
    match policy {
        QueryPolicy::Ignore => {
            key.push(b'i');
            return;
        }
        QueryPolicy::All => key.push(if query.is_some() { b'q' } else { b'n' }),
        QueryPolicy::Only(names) => {
            key.push(b'o');
            pairs.retain(|pair| is_selected(names, pair));
        }
    }
    // Stable: parameters of one name keep their order.
    pairs.sort_by_key(|pair| name(pair));
    part(key, pairs.join("&").as_bytes());
}

fn name(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

/// Backends decode names and some split at `;`: what might be a selected parameter to them is one here.
fn is_selected(names: &[Box<str>], pair: &str) -> bool {
    let decoded: Vec<u8> =
        percent_decode_str(name(pair)).map(|byte| if byte == b'+' { b' ' } else { byte }).collect();
    pair.contains(';')
        || decoded.contains(&b';')
        || decoded.contains(&b'&')
        || names.iter().any(|name| {
            let name = name.as_bytes();
            // `a[]` and `a[b]` are `a` to many frameworks.
            decoded.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'['))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target<'a>() -> Target<'a> {
        Target { scheme: "https", host: "a.example", path: "/t", query: None, caller: Caller::User("ada") }
    }

    fn key(route: &RouteCache, target: Target<'_>) -> Vec<u8> {
        Unstamped::new(route, target).stamp(Fingerprint([0; 16]))
    }

    fn with_query(policy: QueryPolicy, query: &str) -> Vec<u8> {
        let route = RouteCache { query: policy, ..RouteCache::new("r") };
        key(&route, Target { query: Some(query), ..target() })
    }

    #[test]
    fn one_user_never_reads_the_key_of_another() {
        let route = RouteCache::new("r");
        let ada = key(&route, target());
        assert_ne!(ada, key(&route, Target { caller: Caller::User("bob"), ..target() }));
        assert_ne!(ada, key(&route, Target { caller: Caller::Anonymous, ..target() }));
        let shared = RouteCache { shared: true, ..RouteCache::new("r") };
        assert_eq!(key(&shared, target()), key(&shared, Target { caller: Caller::Anonymous, ..target() }));
        assert_ne!(key(&shared, target()), key(&route, Target { caller: Caller::Anonymous, ..target() }));
    }

    #[test]
    fn host_case_and_default_port_do_not_matter_but_scheme_and_port_do() {
        let route = RouteCache::new("r");
        let one = key(&route, target());
        assert_eq!(one, key(&route, Target { host: "A.Example:443", ..target() }));
        assert_ne!(one, key(&route, Target { host: "a.example:80", ..target() }));
        assert_ne!(one, key(&route, Target { scheme: "http", ..target() }));
    }

    #[test]
    fn the_order_of_names_does_not_matter_but_that_of_values_does() {
        let all = |query| with_query(QueryPolicy::All, query);
        assert_eq!(all("b=2&a=1"), all("a=1&&b=2"));
        assert_ne!(all("a=1&a=2"), all("a=2&a=1"));
        assert_ne!(all("a=1"), all("a=1&b"));
    }

    #[test]
    fn selected_parameters_cannot_be_hidden() {
        let only = |query| with_query(QueryPolicy::Only(Box::new(["page".into()])), query);
        assert_eq!(only("page=2&utm=x"), only("page=2"));
        for hidden in ["%70age=3", "utm=1;page=3", "page[]=3", "utm%26page=3", "page=2&page=3"] {
            assert_ne!(only("utm=x"), only(hidden), "{hidden}");
        }
        assert_eq!(with_query(QueryPolicy::Ignore, "a=1"), with_query(QueryPolicy::Ignore, "b"));
    }

    #[test]
    fn the_published_key_is_short_and_stable() {
        let unstamped = Unstamped::new(&RouteCache::new("r"), target());
        assert_eq!(unstamped.public_key().len(), 16);
        assert_ne!(
            unstamped.clone().stamp(Fingerprint([1; 16])),
            unstamped.clone().stamp(Fingerprint([2; 16]))
        );
    }

    fn parts() -> impl Strategy<Value = (String, String, String, Option<String>, Option<String>, bool)> {
        let text = || "[a-c/:=&]{0,4}";
        (
            text(),
            text(),
            text(),
            proptest::option::of("[a-c=]{0,3}"),
            proptest::option::of(text()),
            any::<bool>(),
        )
    }

    proptest! {
        #[test]
        fn different_requests_have_different_keys(a in parts(), b in parts()) {
            let make = |p: &(String, String, String, Option<String>, Option<String>, bool)| {
                let route = RouteCache { shared: p.5, ..RouteCache::new(p.0.clone()) };
                let caller = p.4.as_deref().map_or(Caller::Anonymous, Caller::User);
                key(&route, Target { scheme: "x", host: &p.1, path: &p.2, query: p.3.as_deref(), caller })
            };
            // What the key is meant to tell apart, in words.
            let meaning = |p: &(String, String, String, Option<String>, Option<String>, bool)| {
                (p.0.clone(), p.1.clone(), p.2.clone(), p.3.clone(), if p.5 { None } else { Some(p.4.clone()) })
            };
            prop_assert_eq!(meaning(&a) == meaning(&b), make(&a) == make(&b));
        }
    }
}
