//! The cache key: everything a response may depend on, each part length-prefixed so that no two requests
//! that differ can write the same bytes. It never shows a user or a secret in what it publishes.

use std::ops::Range;

use sha2::{Digest, Sha256};

use super::generations::Fingerprint;
use super::prefixes::{Compare, Place};
use super::request::Caller;
use super::settings::{QueryPolicy, RouteCache};
use super::tag::KEY_DIGITS;
use crate::identifiers::push_hex;

/// Changes whenever the layout of keys or entries does.
const VERSION: u8 = 1;
/// Digits of a published key.
const PUBLIC_DIGITS: usize = 16;

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
pub struct Unstamped {
    bytes: Vec<u8>,
    host: Range<usize>,
    path: Range<usize>,
    /// Where it begins to say who asks; all before is of the URI alone.
    caller: usize,
}

impl Unstamped {
    /// The key of `target` on `route`. GET and HEAD share it.
    pub fn new(route: &RouteCache, target: Target<'_>) -> Self {
        let mut key = Vec::with_capacity(128 + target.path.len() + target.query.map_or(0, str::len));
        key.push(VERSION);
        part(&mut key, route.name.as_bytes());
        part(&mut key, target.scheme.as_bytes());
        let host = part(&mut key, one_host(target.scheme, target.host).as_bytes());
        let path = part(&mut key, target.path.as_bytes());
        query(&mut key, &route.query, target.query);
        let caller = key.len();
        match target.caller {
            _ if route.shared => key.push(b's'),
            Caller::Anonymous => key.push(b'a'),
            Caller::User(user) => {
                key.push(b'u');
                part(&mut key, user.as_bytes());
            }
            Caller::Described(user, told) => {
                key.push(b'd');
                part(&mut key, user.as_bytes());
                key.extend_from_slice(told);
            }
        }
        Self { bytes: key, host, path, caller }
    }

    /// The complete key, reachable only under these generations.
    pub fn stamp(mut self, fingerprint: Fingerprint) -> Vec<u8> {
        self.bytes.extend_from_slice(&fingerprint.0);
        self.bytes
    }

    /// What `X-Cache-Key` shows: 16 hexadecimal digits, the same across generations and instances. The first four
    /// are those of the URI, whoever asks for it.
    pub fn public_key(&self) -> Box<str> {
        let (uri, caller) = self.bytes.split_at_checked(self.caller).unwrap_or((&self.bytes, &[]));
        let mut hasher = Sha256::new();
        hasher.update(uri);
        let of_uri = hasher.clone().finalize();
        hasher.update(caller);
        let of_all = hasher.finalize();
        let mut shown = String::with_capacity(PUBLIC_DIGITS);
        push_hex(&mut shown, of_uri.iter().take(KEY_DIGITS / 2));
        push_hex(&mut shown, of_all.iter().take((PUBLIC_DIGITS - KEY_DIGITS) / 2));
        shown.into()
    }

    /// Where the request goes, for purges by prefix.
    pub fn place(&self, compare: Compare) -> Place<'_> {
        let text = |range: &Range<usize>| {
            self.bytes
                .get(range.clone())
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
                .unwrap_or_default()
        };
        Place { hosts: text(&self.host), path: text(&self.path), compare }
    }
}

/// 128 bits of SHA-256: the hash by which both tiers find a key.
pub fn hash(key: &[u8]) -> [u8; 16] {
    let digest: [u8; 32] = Sha256::digest(key).into();
    let (half, _) = digest.split_at(16);
    half.try_into().unwrap_or_default()
}

fn part(key: &mut Vec<u8>, bytes: &[u8]) -> Range<usize> {
    key.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
    let start = key.len();
    key.extend_from_slice(bytes);
    start..key.len()
}

/// The port that goes without saying.
pub fn default_port(scheme: &str) -> u16 {
    if scheme == "https" { 443 } else { 80 }
}

/// The one spelling of a host with its port, or of a list that ends with one.
pub fn one_host(scheme: &str, host: &str) -> String {
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
    // Stable: parameters of one name keep their order. With a single one that is not plain all keep it, since nobody
    // knows whose name it is to the backend.
    if pairs.iter().all(|pair| is_plain(pair)) {
        pairs.sort_by(|a, b| folded(name(a)).cmp(folded(name(b))));
    }
    part(key, pairs.join("&").as_bytes());
}

fn name(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

/// Whether every backend reads one parameter in this, of this name but for case and the mark between words: nothing in
/// it is decoded, trimmed, cut at a bracket or a dot, or split once more.
fn is_plain(pair: &str) -> bool {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    let splits = |bytes: &[u8]| [&b"%26"[..], b"%3b", b"%3B"].contains(&bytes);
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && !value.contains(';')
        && !value.as_bytes().windows(3).any(splits)
}

/// A name as the most forgiving backend compares it.
fn folded(name: &str) -> impl Iterator<Item = u8> + '_ {
    name.bytes().map(|byte| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'_' })
}

/// Whether some backend might read one of `names` in this.
fn is_selected(names: &[Box<str>], pair: &str) -> bool {
    let is = |picked: &str| folded(picked).eq(folded(name(pair)));
    // `a[b]` and `a.b` are parts of `a` to many frameworks, and that replaces them.
    let whole = |picked: &str| picked.split(['[', '.']).next().is_some_and(is);
    !is_plain(pair) || names.iter().any(|picked| is(picked) || whole(picked))
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
    fn one_user_of_whom_the_upstream_is_told_something_else_has_another_key() {
        let route = RouteCache::new("r");
        let of = |route: &RouteCache, user, told| {
            key(route, Target { caller: Caller::identified(user, told), ..target() })
        };
        let ada = of(&route, "ada", None);
        assert_eq!(ada, key(&route, target()), "nothing but the name is told");
        assert_ne!(ada, of(&route, "ada", Some(&[1; 16])));
        assert_ne!(of(&route, "ada", Some(&[1; 16])), of(&route, "ada", Some(&[2; 16])));
        assert_ne!(of(&route, "ada", Some(&[1; 16])), of(&route, "bob", Some(&[1; 16])));
        let shared = RouteCache { shared: true, ..RouteCache::new("r") };
        assert_eq!(of(&shared, "ada", Some(&[1; 16])), of(&shared, "bob", None));
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
        assert_eq!(all("b-c=2&A1=1"), all("A1=1&b-c=2"));
    }

    #[test]
    fn names_that_are_one_to_some_backend_keep_their_order() {
        let all = |query| with_query(QueryPolicy::All, query);
        for (one, other) in [
            ("page=2&p%61ge=1", "p%61ge=1&page=2"),
            ("a[]=1&a=2", "a=2&a[]=1"),
            ("a=1;b=2&b=3", "b=3&a=1;b=2"),
            ("a=1%3Bb=2&b=3", "b=3&a=1%3Bb=2"),
            ("Page=1&page=2", "page=2&Page=1"),
            ("a.b=1&a_b=2", "a_b=2&a.b=1"),
            ("a-b=1&a_b=2", "a_b=2&a-b=1"),
            ("+a=1&a=2", "a=2&+a=1"),
            ("=1&a=2", "a=2&=1"),
        ] {
            assert_ne!(all(one), all(other), "{one}");
        }
    }

    #[test]
    fn selected_parameters_cannot_be_hidden() {
        let only = |query| with_query(QueryPolicy::Only(Box::new(["page".into()])), query);
        assert_eq!(only("page=2&utm=x"), only("page=2"));
        for hidden in [
            "%70age=3",
            "utm=1;page=3",
            "utm=1%3bpage=3",
            "utm=1%26page=3",
            "page[]=3",
            "utm%26page=3",
            "page=2&page=3",
            "%20page=3",
            "+page=3",
            "page+=3",
            "page%00x=3",
            "[page]=3",
            "%5Bpage%5D=3",
            "page%5b=3",
            "page.x=3",
            "PAGE=3",
            "Page",
            "=3",
        ] {
            assert_ne!(only("utm=x"), only(hidden), "{hidden}");
            let beside =
                with_query(QueryPolicy::Only(Box::new(["page".into()])), &format!("page=2&{hidden}"));
            assert_ne!(only("page=2"), beside, "{hidden}");
        }
        for (picked, hidden) in [
            ("a_b", "a-b=3"),
            ("a_b", "a.b=3"),
            ("a_b", "a%20b=3"),
            ("a_b", "a[b=3"),
            ("a_b", "A_B=3"),
            ("a.b", "a_b=3"),
            ("a[b]", "a=3"),
            ("a.b", "a=3"),
            ("größe", "gr%C3%B6%C3%9Fe=3"),
        ] {
            let only = |query| with_query(QueryPolicy::Only(Box::new([picked.into()])), query);
            assert_ne!(only("utm=x"), only(hidden), "{picked} {hidden}");
        }
        assert_eq!(only("page=2&utm_source=a%20b&X-Y=1"), only("page=2"));
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

    #[test]
    fn the_published_key_begins_with_what_the_uri_has_for_everybody() {
        let route = RouteCache::new("r");
        let shown = |target: Target<'_>| Unstamped::new(&route, target).public_key();
        let (ada, bob) = (shown(target()), shown(Target { caller: Caller::User("bob"), ..target() }));
        let anonymous = shown(Target { caller: Caller::Anonymous, ..target() });
        assert!(ada != bob && bob != anonymous && ada != anonymous);
        assert!(ada[..KEY_DIGITS] == bob[..KEY_DIGITS] && ada[..KEY_DIGITS] == anonymous[..KEY_DIGITS]);
        let other = shown(Target { path: "/u", ..target() });
        assert_ne!(ada[..KEY_DIGITS], other[..KEY_DIGITS]);
        let key = Unstamped::new(&route, Target { host: "A.Example:8443", ..target() });
        let place = key.place(Compare::default());
        assert_eq!((place.hosts, place.path), ("a.example:8443", "/t"));
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

    type Parameters = std::collections::BTreeMap<Vec<u8>, Vec<Vec<u8>>>;

    /// How backends read a query: what splits it, and what is one name.
    fn readings() -> [fn(&str) -> Parameters; 5] {
        fn decode(text: &str) -> Vec<u8> {
            percent_encoding::percent_decode_str(&text.replace('+', " ")).collect()
        }
        fn read(query: &str, splits: &[char], one: impl Fn(Vec<u8>) -> Vec<u8>) -> Parameters {
            let mut read = Parameters::new();
            for pair in query.split(splits).filter(|pair| !pair.is_empty()) {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                // A name with brackets is kept beside its value: where it stands among the others matters.
                let value = [decode(name), decode(value)].join(&b'=');
                read.entry(one(decode(name))).or_default().push(value);
            }
            read
        }
        fn cut(name: &[u8], marks: &[u8]) -> Vec<u8> {
            name.split(|byte| marks.contains(byte)).next().unwrap_or_default().to_vec()
        }
        [
            |query| read(query, &['&'], |name| name),
            |query| read(query, &['&', ';'], |name| name),
            |query| read(query, &['&'], |name| name.to_ascii_lowercase()),
            // PHP trims, cuts at brackets and zero bytes, and knows no dots or blanks.
            |query| {
                read(query, &['&'], |name| {
                    let name = cut(name.trim_ascii_start(), b"[\0");
                    name.iter().map(|byte| if b". ".contains(byte) { b'_' } else { *byte }).collect()
                })
            },
            // `[a]` and `a.b` are of `a`.
            |query| read(query, &['&'], |name| cut(name.strip_prefix(b"[").unwrap_or(&name), b".[]")),
        ]
    }

    fn queries() -> impl Strategy<Value = String> {
        let piece = "(a|A|b|a_b|a-b|a\\.b|a b|\\+|%61|%20|%00|%5B|%5D|\\[|\\]|%26|%3b|;|c){0,2}=?[12;]{0,1}";
        proptest::collection::vec(piece, 0..4).prop_map(|pairs| pairs.join("&"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn queries_with_one_key_are_one_to_every_backend(query in queries(), turn in 0_usize..4, other in queries()) {
            let mut turned: Vec<&str> = query.split('&').collect();
            let turn = turn % turned.len().max(1);
            turned.rotate_left(turn);
            for other in [turned.join("&"), other] {
                let all = |query: &str| with_query(QueryPolicy::All, query);
                if all(&query) == all(&other) {
                    for read in readings() {
                        prop_assert_eq!(read(&query), read(&other));
                    }
                }
                for picked in ["a", "a_b"] {
                    let only = |query: &str| with_query(QueryPolicy::Only(Box::new([picked.into()])), query);
                    if only(&query) == only(&other) {
                        for read in readings() {
                            let of = |query| read(query).remove(picked.as_bytes());
                            prop_assert_eq!(of(&query), of(&other));
                        }
                    }
                }
            }
        }
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
