//! Purges by path prefix: which of them concern a request, and what has to be known to say so. A version, read with
//! the tags of every request, says which list of purges holds; the list itself is read only when its version is new.
//! It never talks to Redis itself.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::clock::UnixMillis;

/// Purges by prefix that are told apart at a time; one more drops everything.
pub const MOST: usize = 1_000;
/// Longest prefix, in bytes of its normalised form.
pub const LONGEST: usize = 1_024;
/// The field of the list that has the list's version; no prefix is empty.
pub const VERSION_FIELD: &str = "";

/// Purges by prefix under a host and anywhere: the host, if one is named, and the normalised path up to where it may
/// differ. The text is the field in Redis: a host has no slash, a path begins with one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(Box<str>);

impl Prefix {
    /// The paths that begin with `path`, on `host` or on every one. `None` unless `path` begins with a slash and is not
    /// too long, and `host` is in lower case, without port, slash and comma.
    pub fn new(path: &str, host: Option<&str>) -> Option<Self> {
        let host = host.unwrap_or_default();
        let sound = path.starts_with('/')
            && path.len() <= LONGEST
            && host.len() <= 255
            && !host.contains(['/', ',', ' '])
            && !host.bytes().any(|byte| byte.is_ascii_uppercase());
        sound.then(|| Self(format!("{host}{path}").into()))
    }

    /// The field of the list in Redis.
    pub fn field(&self) -> &str {
        &self.0
    }
}

/// How paths are compared, as routes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compare {
    /// ASCII letters in either case are the same.
    pub case_insensitive: bool,
    /// `/a` lies under `/a/`.
    pub ignore_trailing_slash: bool,
}

impl Compare {
    /// Zero for the strict comparison. Part of the fingerprint, so that what a purge has dropped does not come back when
    /// another configuration compares otherwise.
    pub(super) fn marker(self) -> u8 {
        u8::from(self.case_insensitive) | u8::from(self.ignore_trailing_slash) << 1
    }
}

/// Where a request goes, as far as prefixes speak of it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Host with port, or several of them with commas between.
    pub hosts: &'a str,
    /// The normalised path.
    pub path: &'a str,
    /// How paths are compared.
    pub compare: Compare,
}

/// What the version says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version<'a> {
    /// There is no list; the whole value is a generation like any other.
    Bare,
    /// Until then a list holds. What is stored under `lineage` is good but for what the list says.
    Listed { lineage: &'a [u8], list: &'a [u8], until: UnixMillis },
}

impl<'a> Version<'a> {
    /// `<lineage>.<version of the list>.<end in milliseconds>`; whatever reads differently is a plain generation.
    pub(super) fn parse(value: &'a [u8]) -> Self {
        let mut parts = value.split(|byte| *byte == b'.');
        let is_unique = |part: &[u8]| part.len() == 32 && part.iter().all(u8::is_ascii_hexdigit);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(lineage), Some(list), Some(until), None) if is_unique(lineage) && is_unique(list) => {
                let until = std::str::from_utf8(until).ok().and_then(|until| until.parse().ok());
                until.map_or(Self::Bare, |until| Self::Listed { lineage, list, until: UnixMillis(until) })
            }
            _ => Self::Bare,
        }
    }
}

/// Prefixes with the generation that each has got by its purge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct List {
    anywhere: Group,
    hosts: HashMap<Box<str>, Group, RandomState>,
}

/// The prefixes of one host, as they are spelt and in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Group {
    exact: Sorted,
    folded: Sorted,
}

/// In order; `parent` is the place of the longest other one that begins it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sorted(Vec<Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    path: Box<str>,
    generation: Box<str>,
    parent: Option<usize>,
}

impl List {
    /// The list of these fields and generations.
    pub(super) fn new<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut hosts: HashMap<&str, Vec<(&str, &str)>, RandomState> = HashMap::default();
        for (field, generation) in entries {
            let Some(slash) = field.find('/') else { continue };
            let (host, path) = field.split_at(slash);
            hosts.entry(host).or_default().push((path, generation));
        }
        let anywhere = hosts.remove("").map(|entries| Group::new(&entries)).unwrap_or_default();
        let hosts = hosts.into_iter().map(|(host, entries)| (host.into(), Group::new(&entries))).collect();
        Self { anywhere, hosts }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.anywhere.exact.0.is_empty() && self.hosts.is_empty()
    }

    /// Calls `each` with every prefix that `place` lies under, and its generation, in an order that depends on nothing
    /// else.
    pub(super) fn matches(&self, place: Place<'_>, mut each: impl FnMut(&str, &str)) {
        if self.is_empty() {
            return;
        }
        let path = spelling(place);
        let folded = place.compare.case_insensitive;
        self.anywhere.matches(&path, folded, &mut each);
        if self.hosts.is_empty() {
            return;
        }
        for host in place.hosts.split(',') {
            if let Some(group) = self.hosts.get(bare(host)) {
                group.matches(&path, folded, &mut each);
            }
        }
    }
}

impl Group {
    fn new(entries: &[(&str, &str)]) -> Self {
        let exact = Sorted::new(entries.iter().map(|(path, generation)| ((*path).into(), *generation)));
        let folded = entries.iter().map(|(path, generation)| (path.to_ascii_lowercase().into(), *generation));
        Self { exact, folded: Sorted::new(folded) }
    }

    fn matches(&self, path: &str, folded: bool, each: &mut impl FnMut(&str, &str)) {
        if folded { &self.folded } else { &self.exact }.matches(path, each);
    }
}

impl Sorted {
    fn new<'a>(entries: impl Iterator<Item = (Box<str>, &'a str)>) -> Self {
        let mut sorted: Vec<Entry> = entries
            .map(|(path, generation)| Entry { path, generation: generation.into(), parent: None })
            .collect();
        sorted.sort_by(|one, other| (&one.path, &one.generation).cmp(&(&other.path, &other.generation)));
        let mut begun: Vec<(usize, Box<str>)> = Vec::new();
        for (index, entry) in sorted.iter_mut().enumerate() {
            while begun.last().is_some_and(|(_, path)| !entry.path.starts_with(&**path)) {
                begun.pop();
            }
            entry.parent = begun.last().map(|(index, _)| *index);
            begun.push((index, entry.path.clone()));
        }
        Self(sorted)
    }

    /// Whatever begins `path` also begins the last entry that is not after it, or is that entry.
    fn matches(&self, path: &str, each: &mut impl FnMut(&str, &str)) {
        let after = self.0.partition_point(|entry| *entry.path <= *path);
        let mut next = after.checked_sub(1);
        while let Some(entry) = next.and_then(|index| self.0.get(index)) {
            if path.starts_with(&*entry.path) {
                each(&entry.path, &entry.generation);
            }
            next = entry.parent;
        }
    }
}

fn spelling(place: Place<'_>) -> Cow<'_, str> {
    let mut path = Cow::Borrowed(place.path);
    if place.compare.ignore_trailing_slash && !path.ends_with('/') {
        path.to_mut().push('/');
    }
    if place.compare.case_insensitive && path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        path.to_mut().make_ascii_lowercase();
    }
    path
}

/// The host without port and without a trailing dot.
fn bare(host: &str) -> &str {
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    };
    host.strip_suffix('.').unwrap_or(host)
}

/// What an instance knows of purges by prefix; never changed, only replaced.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// The version that `list` is of; empty for none.
    pub(super) version: Box<[u8]>,
    /// `None`: the list of this version cannot be had.
    pub(super) list: Option<Arc<List>>,
    /// Purges by this instance that the store has not confirmed, or all where there is none.
    pub(super) own: List,
}

/// The reading of the list, made by one request for all that wait.
#[derive(Debug, Default)]
pub(super) struct Loads(Mutex<Option<Loading>>);

/// A reading under way; it says which version it has found.
pub type Loading = watch::Receiver<Option<Box<[u8]>>>;
/// Whoever reads; others wait until it is dropped.
pub type Loader = watch::Sender<Option<Box<[u8]>>>;

impl Loads {
    /// Joins the reading under way, or begins one.
    pub(super) fn join(&self) -> (Loading, Option<Loader>) {
        let mut current = self.0.lock();
        if let Some(loading) = &*current
            && loading.has_changed().is_ok()
        {
            return (loading.clone(), None);
        }
        let (loader, loading) = watch::channel(None);
        *current = Some(loading.clone());
        (loading, Some(loader))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place<'a>(hosts: &'a str, path: &'a str) -> Place<'a> {
        Place { hosts, path, compare: Compare::default() }
    }

    fn found(list: &List, place: Place<'_>) -> Vec<String> {
        let mut found = Vec::new();
        list.matches(place, |path, generation| found.push(format!("{path}={generation}")));
        found
    }

    #[test]
    fn a_prefix_is_found_for_what_begins_with_it_and_nothing_else() {
        let list =
            List::new([("/api/todos/", "1"), ("/api/todos/1", "2"), ("a.example/api", "3"), ("/x", "4")]);
        assert_eq!(found(&list, place("h", "/api/todos/17")), ["/api/todos/1=2", "/api/todos/=1"]);
        assert_eq!(found(&list, place("h", "/api/todos/2")), ["/api/todos/=1"]);
        assert!(
            found(&list, place("h", "/api/todos")).is_empty()
                && found(&list, place("h", "/API/todos/1")).is_empty()
        );
        assert_eq!(found(&list, place("a.example:8080", "/api/z")), ["/api=3"]);
        assert_eq!(found(&list, place("gate:80,a.example.", "/apis")), ["/api=3"]);
        assert!(found(&list, place("b.a.example", "/api")).is_empty());
        let lax = Compare { case_insensitive: true, ignore_trailing_slash: true };
        assert_eq!(found(&list, Place { hosts: "h", path: "/API/Todos", compare: lax }), ["/api/todos/=1"]);
        let upper = List::new([("/A", "1"), ("/a", "2")]);
        assert_eq!(found(&upper, Place { hosts: "h", path: "/a", compare: lax }).len(), 2);
    }

    #[test]
    fn a_prefix_names_a_path_and_maybe_a_host() {
        assert_eq!(Prefix::new("/a", Some("h")).unwrap().field(), "h/a");
        assert_eq!(Prefix::new("/a", None).unwrap().field(), "/a");
        for (path, host) in
            [("a", None), ("", None), ("/a", Some("h/")), ("/a", Some("H")), ("/a", Some("a,b"))]
        {
            assert_eq!(Prefix::new(path, host), None, "{path} {host:?}");
        }
        assert_eq!(Prefix::new(&"/".repeat(LONGEST + 1), None), None);
    }

    #[test]
    fn only_a_version_with_an_end_has_a_list() {
        let unique = "0123456789abcdef0123456789abcdef";
        let text = format!("{unique}.{unique}.17");
        let listed =
            Version::Listed { lineage: unique.as_bytes(), list: unique.as_bytes(), until: UnixMillis(17) };
        assert_eq!(Version::parse(text.as_bytes()), listed);
        for bare in [unique, "", "a.b.1", &format!("{text}.1"), &format!("{unique}.{unique}.x")] {
            assert_eq!(Version::parse(bare.as_bytes()), Version::Bare, "{bare}");
        }
    }

    #[test]
    fn those_who_ask_while_the_list_is_read_wait_for_that() {
        let loads = Loads::default();
        let (first, loader) = loads.join();
        let (_, nobody) = loads.join();
        assert!(nobody.is_none());
        loader.unwrap().send_replace(Some(Box::from(*b"v")));
        assert_eq!(first.borrow().as_deref(), Some(&b"v"[..]));
        assert!(loads.join().1.is_some(), "the next one reads anew");
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_begins_the_path(
            prefixes in proptest::collection::btree_set("/[ab/]{0,5}", 0..20),
            path in "/[ab/]{0,8}",
        ) {
            let list = List::new(prefixes.iter().map(|prefix| (prefix.as_str(), "g")));
            let mut found = found(&list, place("h", &path));
            found.sort();
            let mut expected: Vec<String> =
                prefixes.iter().filter(|prefix| path.starts_with(prefix.as_str())).map(|prefix| format!("{prefix}=g")).collect();
            expected.sort();
            prop_assert_eq!(found, expected);
        }
    }
}
