//! The table that finds the most specific route for a host, a method and a canonical path. It is built once and
//! only read afterwards; it never normalises a path and never looks into a route's payload.
//!
//! # Which route wins
//! Candidates are the routes whose host, path and methods all take the request; among them
//! 1. an exact host beats `*.suffix` (the longer suffix first), which beats no host;
//! 2. then segment by segment from the left: a literal beats `:param`, which beats `**`;
//! 3. then declared methods beat "any method". A `HEAD` request is taken by `HEAD`, else by `GET` routes.
//!
//! Methods filter first: `DELETE /admin` with the routes `GET /admin` and `/**` is taken by `/**`. A path that
//! must be protected for every method has to be declared without methods. Only when routes match the path and
//! none takes the method is the answer [`Found::MethodNotAllowed`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use http::Method;

use super::pattern::{HostPattern, MAX_PARAMS, Pattern, Segment, Shape};

/// Deepest pattern a table takes, in segments; the search recurses once per segment.
const MAX_DEPTH: usize = 128;

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// A declared route.
#[derive(Clone, Debug)]
pub struct Entry<T> {
    /// How the route is named in errors, logs and metrics.
    pub name: Box<str>,
    /// The hosts it answers for; `None` is any.
    pub host: Option<HostPattern>,
    /// The paths it answers for.
    pub pattern: Pattern,
    /// The methods it takes; empty is any.
    pub methods: Vec<Method>,
    /// What the route is bound to.
    pub value: T,
}

/// How a whole table compares paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// ASCII letters match in either case; the upstream still receives the case the client sent. For upstreams
    /// that ignore case themselves.
    pub case_insensitive: bool,
    /// `/todo/` is matched as `/todo`; the upstream still receives the slash. For upstreams that ignore it.
    pub ignore_trailing_slash: bool,
}

/// Two routes of equal specificity that can match one request, or a route that is unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguity {
    /// Both routes would take a request of this shape.
    #[error("the routes `{first}` and `{second}` both take {what} with equal specificity")]
    Overlap {
        /// The route declared first.
        first: Box<str>,
        /// The route declared later.
        second: Box<str>,
        /// Host, method and path that both take.
        what: Box<str>,
    },
    /// The pattern has more than 128 segments.
    #[error("the pattern of the route `{0}` has too many segments")]
    TooDeep(Box<str>),
}

/// What the table says of a request.
#[derive(Debug)]
pub enum Found<'a, T> {
    /// The most specific route that takes it.
    Route(Matched<'a, T>),
    /// The path has routes, but none for this method.
    MethodNotAllowed {
        /// The methods that the matching routes take, sorted, for the `Allow` field (RFC 9110 section 10.2.1).
        allow: Vec<Method>,
    },
    /// No route has this host and path.
    NotFound,
}

/// A route with the request's parameters.
#[derive(Debug)]
pub struct Matched<'a, T> {
    /// Place of the route in the list the table was built from.
    pub index: usize,
    /// Name of the route.
    pub name: &'a str,
    /// Payload of the route.
    pub value: &'a T,
    /// What the `:name` segments matched.
    pub params: Params<'a>,
}

/// Values of the `:name` segments, as slices of the canonical path (escapes are kept).
#[derive(Clone, Copy, Debug)]
pub struct Params<'a> {
    names: &'a [Box<str>],
    path: &'a str,
    ranges: Ranges,
}

impl<'a> Params<'a> {
    /// What `:name` matched, never empty.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.iter().find_map(|(known, value)| (known == name).then_some(value))
    }

    /// Names and values from the left.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let path = self.path;
        let ranges = self.ranges.items;
        self.names
            .iter()
            .zip(ranges)
            .filter_map(move |(name, (from, to))| Some((&**name, path.get(from..to)?)))
    }
}

/// Immutable routes, ready to search.
#[derive(Debug)]
pub struct Table<T> {
    routes: Vec<Route<T>>,
    exact_hosts: Map<Box<str>, Tree>,
    /// Longest suffix first.
    host_suffixes: Vec<(Box<str>, Tree)>,
    any_host: Tree,
    options: Options,
}

#[derive(Debug)]
struct Route<T> {
    name: Box<str>,
    params: Box<[Box<str>]>,
    value: T,
}

impl<T> Table<T> {
    /// A table that compares paths strictly.
    ///
    /// # Errors
    /// Every pair of routes between which no rule decides.
    pub fn build(entries: Vec<Entry<T>>) -> Result<Self, Vec<Ambiguity>> {
        Self::build_with(entries, Options::default())
    }

    /// A table with the given comparison.
    ///
    /// # Errors
    /// As [`Table::build`].
    pub fn build_with(entries: Vec<Entry<T>>, options: Options) -> Result<Self, Vec<Ambiguity>> {
        let mut table = Self {
            routes: Vec::with_capacity(entries.len()),
            exact_hosts: Map::default(),
            host_suffixes: Vec::new(),
            any_host: Tree::default(),
            options,
        };
        let mut problems = Vec::new();
        for (index, entry) in entries.into_iter().enumerate() {
            for shape in entry.pattern.shapes() {
                if shape.segments.len() > MAX_DEPTH {
                    problems.push(Ambiguity::TooDeep(entry.name.clone()));
                    continue;
                }
                let shape = fold(shape, options);
                let clash = table.tree_for(entry.host.as_ref()).insert(&shape, &entry.methods, index);
                if let Some((other, method)) = clash {
                    // A group such as `/{a,a}` clashes with itself, and that is harmless.
                    let Some(first) = table.routes.get(other).map(|route| route.name.clone()) else {
                        continue;
                    };
                    let problem =
                        Ambiguity::Overlap { first, second: entry.name.clone(), what: what(&entry, method) };
                    if !problems.contains(&problem) {
                        problems.push(problem);
                    }
                }
            }
            let params = entry.pattern.params().into();
            table.routes.push(Route { name: entry.name, params, value: entry.value });
        }
        table.host_suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        if problems.is_empty() { Ok(table) } else { Err(problems) }
    }

    /// The route for a request: `host` in lower case without port, `path` as [`super::normalise`] gives it.
    pub fn find<'a>(&'a self, host: &str, method: &Method, path: &'a str) -> Found<'a, T> {
        let compared = self.compared(path);
        let mut search = Search { path: &compared, method, ranges: Ranges::default(), allow: Vec::new() };
        for tree in self.trees(host) {
            if let Some((index, ranges)) = search.run(tree)
                && let Some(route) = self.routes.get(index)
            {
                let params = Params { names: &route.params, path, ranges };
                return Found::Route(Matched { index, name: &route.name, value: &route.value, params });
            }
        }
        if search.allow.is_empty() {
            return Found::NotFound;
        }
        let mut allow = search.allow;
        if allow.contains(&Method::GET) {
            allow.push(Method::HEAD);
        }
        allow.sort_by(|left, right| left.as_str().cmp(right.as_str()));
        allow.dedup();
        Found::MethodNotAllowed { allow }
    }

    /// Payloads in the order of declaration.
    pub fn values(&self) -> impl Iterator<Item = (&str, &T)> {
        self.routes.iter().map(|route| (&*route.name, &route.value))
    }

    fn tree_for(&mut self, host: Option<&HostPattern>) -> &mut Tree {
        match host {
            None => &mut self.any_host,
            Some(HostPattern::Exact(host)) => self.exact_hosts.entry(host.clone()).or_default(),
            Some(HostPattern::Below(suffix)) => {
                let place = self.host_suffixes.iter().position(|(known, _)| known == suffix);
                let place = place.unwrap_or(self.host_suffixes.len());
                if place == self.host_suffixes.len() {
                    self.host_suffixes.push((suffix.clone(), Tree::default()));
                }
                match self.host_suffixes.get_mut(place) {
                    Some((_, tree)) => tree,
                    None => &mut self.any_host,
                }
            }
        }
    }

    /// The trees whose host takes `host`, most specific first.
    fn trees(&self, host: &str) -> impl Iterator<Item = &Tree> {
        let exact = if self.exact_hosts.is_empty() { None } else { self.exact_hosts.get(host) };
        let below = self
            .host_suffixes
            .iter()
            .filter(move |(suffix, _)| host.len() > suffix.len() && host.ends_with(&**suffix))
            .map(|(_, tree)| tree);
        exact.into_iter().chain(below).chain(std::iter::once(&self.any_host))
    }

    /// The spelling of `path` that is compared; its bytes stand where those of `path` stand.
    fn compared<'p>(&self, path: &'p str) -> Cow<'p, str> {
        let path = match path.strip_suffix('/') {
            Some(shorter) if self.options.ignore_trailing_slash && !shorter.is_empty() => shorter,
            _ => path,
        };
        if self.options.case_insensitive && path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(path.to_ascii_lowercase())
        } else {
            Cow::Borrowed(path)
        }
    }
}

/// The shape as the table compares it.
fn fold(shape: &Shape, options: Options) -> Shape {
    let mut shape = shape.clone();
    if options.case_insensitive {
        for segment in &mut shape.segments {
            if let Segment::Literal(literal) = segment {
                literal.make_ascii_lowercase();
            }
        }
    }
    let ends_in_slash =
        matches!(shape.segments.as_slice(), [_, .., Segment::Literal(last)] if last.is_empty());
    if options.ignore_trailing_slash && ends_in_slash && !shape.rest {
        shape.segments.pop();
    }
    shape
}

fn what<T>(entry: &Entry<T>, method: Option<Method>) -> Box<str> {
    let host = entry.host.as_ref().map(ToString::to_string).unwrap_or_default();
    let method = method.map_or_else(|| "any method".to_owned(), |method| method.to_string());
    format!("{method} {host}{}", entry.pattern.as_str()).into()
}

/// The routes of one host. Every fully literal path is in `exact` as well, so that the usual request costs one
/// hash lookup.
#[derive(Debug, Default)]
struct Tree {
    exact: Map<Box<str>, Leaf>,
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    literals: Map<Box<str>, Node>,
    param: Option<Box<Node>>,
    /// A pattern ends here.
    here: Leaf,
    /// A pattern ends here with `**`.
    rest: Leaf,
}

/// The routes of one path shape.
#[derive(Clone, Debug, Default)]
struct Leaf {
    declared: Vec<(Method, usize)>,
    any: Option<usize>,
}

impl Tree {
    /// Adds a route; says with which earlier route, and for which method, it clashes.
    fn insert(&mut self, shape: &Shape, methods: &[Method], index: usize) -> Option<(usize, Option<Method>)> {
        let mut node = &mut self.root;
        let mut path = String::new();
        let mut is_literal = !shape.rest;
        for segment in &shape.segments {
            node = match segment {
                Segment::Literal(literal) => {
                    path.push('/');
                    path.push_str(literal);
                    node.literals.entry(literal.clone()).or_default()
                }
                Segment::Param => {
                    is_literal = false;
                    node.param.get_or_insert_default()
                }
            };
        }
        let leaf = if shape.rest { &mut node.rest } else { &mut node.here };
        let clash = leaf.insert(methods, index);
        if is_literal {
            match self.exact.entry(path.into()) {
                Slot::Occupied(mut slot) => *slot.get_mut() = leaf.clone(),
                Slot::Vacant(slot) => {
                    slot.insert(leaf.clone());
                }
            }
        }
        clash
    }
}

impl Leaf {
    fn insert(&mut self, methods: &[Method], index: usize) -> Option<(usize, Option<Method>)> {
        let mut clash = None;
        if methods.is_empty() {
            match self.any {
                Some(other) => clash = Some((other, None)),
                None => self.any = Some(index),
            }
        }
        for method in methods {
            match self.declared.iter().find(|(known, _)| known == method) {
                Some((_, other)) if *other == index => {}
                Some((_, other)) => clash = Some((*other, Some(method.clone()))),
                None => self.declared.push((method.clone(), index)),
            }
        }
        clash
    }

    fn take(&self, method: &Method) -> Option<usize> {
        let declared = |wanted: &Method| self.declared.iter().find(|(known, _)| known == wanted);
        declared(method)
            .or_else(|| if *method == Method::HEAD { declared(&Method::GET) } else { None })
            .map(|(_, index)| *index)
            .or(self.any)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Ranges {
    items: [(usize, usize); MAX_PARAMS],
    count: usize,
}

impl Ranges {
    fn push(&mut self, range: (usize, usize)) {
        if let Some(slot) = self.items.get_mut(self.count) {
            *slot = range;
            self.count += 1;
        }
    }
}

struct Search<'s> {
    path: &'s str,
    method: &'s Method,
    ranges: Ranges,
    allow: Vec<Method>,
}

impl Search<'_> {
    fn run(&mut self, tree: &Tree) -> Option<(usize, Ranges)> {
        self.ranges = Ranges::default();
        if let Some(index) = tree.exact.get(self.path).and_then(|leaf| leaf.take(self.method)) {
            return Some((index, self.ranges));
        }
        let index = self.descend(&tree.root, Some(0))?;
        Some((index, self.ranges))
    }

    /// Searches below `node` with the path from `at` (a slash) on; `None` is the end of the path. Each node is
    /// visited at most once, since one path leads to it.
    fn descend(&mut self, node: &Node, at: Option<usize>) -> Option<usize> {
        let Some(at) = at else { return self.ask(&node.here).or_else(|| self.ask(&node.rest)) };
        let rest = self.path.get(at + 1..)?;
        let (segment, next) = match rest.find('/') {
            Some(length) => (rest.get(..length)?, Some(at + 1 + length)),
            None => (rest, None),
        };
        if let Some(child) = node.literals.get(segment)
            && let Some(index) = self.descend(child, next)
        {
            return Some(index);
        }
        if let Some(child) = &node.param
            && !segment.is_empty()
        {
            let before = self.ranges;
            self.ranges.push((at + 1, at + 1 + segment.len()));
            if let Some(index) = self.descend(child, next) {
                return Some(index);
            }
            self.ranges = before;
        }
        self.ask(&node.rest)
    }

    /// The route of a leaf that takes the method; else remembers what it would have taken.
    fn ask(&mut self, leaf: &Leaf) -> Option<usize> {
        let taken = leaf.take(self.method);
        if taken.is_none() {
            self.allow.extend(leaf.declared.iter().map(|(method, _)| method.clone()));
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::normalise::{self, normalise};
    use proptest::prelude::*;

    fn entry(name: &str, methods: &str, host: &str, pattern: &str) -> Entry<()> {
        Entry {
            name: name.into(),
            host: (!host.is_empty()).then(|| HostPattern::parse(host).unwrap()),
            pattern: Pattern::parse(pattern).unwrap(),
            methods: methods.split_whitespace().map(|method| method.parse().unwrap()).collect(),
            value: (),
        }
    }

    fn paths(patterns: &[&str]) -> Vec<Entry<()>> {
        patterns.iter().map(|pattern| entry(pattern, "", "", pattern)).collect()
    }

    fn said(found: Found<'_, ()>) -> String {
        match found {
            Found::Route(matched) => matched.name.to_owned(),
            Found::MethodNotAllowed { allow } => format!("405 {allow:?}"),
            Found::NotFound => "404".to_owned(),
        }
    }

    fn get(table: &Table<()>, path: &str) -> String {
        said(table.find("h", &Method::GET, path))
    }

    #[test]
    fn the_most_specific_path_wins_from_the_left() {
        let table = Table::build(paths(&[
            "/**",
            "/todo",
            "/todo/",
            "/todo/:id",
            "/todo/new",
            "/todo/**",
            "/:any/new",
            "/todo/:id/edit",
            "/a/**",
        ]))
        .unwrap();
        for (path, expected) in [
            ("/", "/**"),
            ("/x", "/**"),
            ("/todo", "/todo"),
            ("/todo/", "/todo/"),
            ("/todo/1", "/todo/:id"),
            ("/todo/new", "/todo/new"),
            ("/x/new", "/:any/new"),
            ("/todo/1/edit", "/todo/:id/edit"),
            ("/todo/1/other", "/todo/**"),
            ("/todo/new/edit", "/todo/:id/edit"),
            ("/a", "/a/**"),
            ("/a/", "/a/**"),
            ("/a/b/c", "/a/**"),
            ("/a/new", "/a/**"),
            ("/ab", "/**"),
            ("/TODO", "/**"),
            ("/todo/new/", "/todo/**"),
        ] {
            assert_eq!(get(&table, path), expected, "{path}");
        }
    }

    #[test]
    fn without_a_match_there_is_no_route() {
        let table = Table::build(paths(&["/todo", "/todo/:id"])).unwrap();
        for path in ["/", "/todo/", "/todo/1/2", "/tod", "/todos"] {
            assert_eq!(get(&table, path), "404", "{path}");
        }
    }

    #[test]
    fn parameters_are_slices_of_the_path() {
        let table =
            Table::build(paths(&["/:kind/x", "/a/:id/c/:sub", "/:kind/:id/:third/:fourth/e"])).unwrap();
        let Found::Route(matched) = table.find("h", &Method::GET, "/a/7%20b/c/d") else { panic!("no route") };
        assert_eq!(matched.params.get("id"), Some("7%20b"));
        assert_eq!(matched.params.get("sub"), Some("d"));
        assert_eq!(matched.params.get("kind"), None);
        // A branch that failed leaves no parameter behind.
        let Found::Route(matched) = table.find("h", &Method::GET, "/a/7/c/d/e") else { panic!("no route") };
        let all: Vec<_> = matched.params.iter().collect();
        assert_eq!(all, [("kind", "a"), ("id", "7"), ("third", "c"), ("fourth", "d")]);
    }

    #[test]
    fn methods_filter_before_specificity() {
        let table = Table::build(vec![
            entry("read", "GET", "", "/todo"),
            entry("write", "POST PUT", "", "/todo"),
            entry("other", "", "", "/todo"),
            entry("admin", "GET", "", "/admin"),
            entry("strict", "GET", "", "/strict/:id"),
            entry("strict-put", "PUT", "", "/strict/**"),
            entry("all", "", "api.h", "/**"),
        ])
        .unwrap();
        let find = |host, method: &str, path| said(table.find(host, &method.parse().unwrap(), path));
        assert_eq!(find("h", "GET", "/todo"), "read");
        assert_eq!(find("h", "HEAD", "/todo"), "read");
        assert_eq!(find("h", "PUT", "/todo"), "write");
        assert_eq!(find("h", "DELETE", "/todo"), "other");
        assert_eq!(find("h", "HEAD", "/admin"), "admin");
        assert_eq!(find("h", "POST", "/admin"), "405 [GET, HEAD]");
        assert_eq!(find("h", "PUT", "/strict/1"), "strict-put");
        assert_eq!(find("h", "POST", "/strict/1"), "405 [GET, HEAD, PUT]");
        assert_eq!(find("api.h", "DELETE", "/admin"), "all");
    }

    #[test]
    fn a_declared_head_beats_the_get_route() {
        let table =
            Table::build(vec![entry("get", "GET", "", "/a"), entry("head", "HEAD", "", "/a")]).unwrap();
        assert_eq!(said(table.find("h", &Method::HEAD, "/a")), "head");
    }

    #[test]
    fn hosts_go_from_exact_over_longer_suffix_to_any() {
        let table = Table::build(vec![
            entry("any", "", "", "/a"),
            entry("below", "", "*.example.com", "/**"),
            entry("deeper", "", "*.eu.example.com", "/a"),
            entry("exact", "", "api.example.com", "/a"),
        ])
        .unwrap();
        for (host, path, expected) in [
            ("api.example.com", "/a", "exact"),
            ("api.example.com", "/b", "below"),
            ("x.example.com", "/a", "below"),
            ("x.y.example.com", "/a", "below"),
            ("x.eu.example.com", "/a", "deeper"),
            ("x.eu.example.com", "/b", "below"),
            ("example.com", "/a", "any"),
            (".example.com", "/a", "any"),
            ("evilexample.com", "/a", "any"),
            ("example.com.evil", "/b", "404"),
        ] {
            assert_eq!(said(table.find(host, &Method::GET, path)), expected, "{host}{path}");
        }
    }

    #[test]
    fn equal_specificity_is_an_error_that_names_both() {
        for (first, second) in [
            (("GET", "", "/a/:id"), ("GET POST", "", "/a/:name")),
            (("", "", "/a"), ("", "", "/a")),
            (("", "", "/a/**"), ("", "", "/a/**")),
            (("GET", "h", "/{a,b}"), ("GET", "H", "/{b,c}")),
            (("GET", "*.h", "/a"), ("GET", "*.H", "/%61")),
        ] {
            let entries =
                vec![entry("one", first.0, first.1, first.2), entry("two", second.0, second.1, second.2)];
            let problems = Table::build(entries).unwrap_err();
            assert_eq!(problems.len(), 1);
            let text = problems[0].to_string();
            assert!(text.contains("`one`") && text.contains("`two`"), "{text}");
        }
        let fine = vec![
            entry("1", "GET", "", "/a"),
            entry("2", "POST", "", "/a"),
            entry("3", "", "", "/a"),
            entry("4", "", "h", "/a"),
            entry("5", "", "", "/{x,x}"),
            entry("6", "GET GET", "", "/y"),
        ];
        assert!(Table::build(fine).is_ok());
    }

    #[test]
    fn case_is_ignored_only_when_told_and_never_in_parameters() {
        let options = Options { case_insensitive: true, ..Options::default() };
        let table = Table::build_with(paths(&["/Admin/:id", "/**"]), options).unwrap();
        let Found::Route(matched) = table.find("h", &Method::GET, "/ADMIN/AbC") else { panic!("no route") };
        assert_eq!((matched.name, matched.params.get("id")), ("/Admin/:id", Some("AbC")));
        assert!(Table::build_with(paths(&["/a", "/A"]), options).is_err());
        assert!(Table::build(paths(&["/a", "/A"])).is_ok());
    }

    #[test]
    fn the_trailing_slash_is_ignored_only_when_told() {
        let options = Options { ignore_trailing_slash: true, ..Options::default() };
        let table = Table::build_with(paths(&["/admin", "/x/", "/**"]), options).unwrap();
        for (path, expected) in [("/admin/", "/admin"), ("/x", "/x/"), ("/x/", "/x/"), ("/", "/**")] {
            assert_eq!(get(&table, path), expected, "{path}");
        }
        assert!(Table::build_with(paths(&["/a", "/a/"]), options).is_err());
    }

    #[test]
    fn no_spelling_of_a_protected_path_reaches_the_open_route_as_that_path() {
        let table = Table::build(paths(&["/admin", "/**"])).unwrap();
        let spellings = [
            "//admin",
            "/./admin",
            "/x/../admin",
            "/%61dmin",
            "/%2561dmin",
            "/admin%2f",
            "/x%2f..%2fadmin",
            "/x/..%5cadmin",
            "/admin;x=1",
            "/admin/.",
            "/ADMIN",
            "/admin%00",
            "/admin%",
            "/admin#f",
            "admin",
            "x:/admin",
            "\\admin",
            "/admin/",
            "/x/..;/admin",
            "/%c0%ae/admin",
            "/.//admin",
            "/admin%20",
            "/%2e/admin",
            "/x/%2E%2e/admin",
            "/adm%69n",
        ];
        for spelling in spellings {
            let Ok(path) = normalise(spelling.as_bytes(), normalise::Options::default()) else { continue };
            let protected = get(&table, &path) == "/admin";
            // What goes on is the canonical form: it is the protected path exactly when it was matched as such.
            assert_eq!(protected, path == "/admin", "{spelling} -> {path}");
        }
    }

    /// The rules of the table, written as a comparison of all routes.
    fn by_brute_force(entries: &[Entry<()>], method: &Method, path: &str) -> Option<usize> {
        let rank = |entry: &Entry<()>| -> Option<Vec<u8>> {
            let segments: Vec<&str> = path[1..].split('/').collect();
            let shape = &entry.pattern.shapes()[0];
            let mut rank = Vec::new();
            for (index, wanted) in shape.segments.iter().enumerate() {
                let given = segments.get(index)?;
                rank.push(match wanted {
                    Segment::Literal(literal) if **literal == **given => 0,
                    Segment::Param if !given.is_empty() => 1,
                    _ => return None,
                });
            }
            match (shape.rest, segments.len() == shape.segments.len()) {
                (false, false) => return None,
                (true, _) => rank.push(2),
                _ => {}
            }
            let takes = entry.methods.contains(method);
            if !takes && !entry.methods.is_empty() {
                return None;
            }
            rank.push(u8::from(!takes));
            Some(rank)
        };
        let ranked = entries.iter().enumerate().filter_map(|(index, entry)| Some((rank(entry)?, index)));
        ranked.min().map(|(_, index)| index)
    }

    fn any_pattern() -> impl Strategy<Value = String> {
        let segment = prop::sample::select(vec!["a", "b", ":x", ":y"]);
        (prop::collection::vec(segment, 0..4), any::<bool>()).prop_filter_map(
            "unique names",
            |(segments, rest)| {
                let text = format!(
                    "/{}{}",
                    segments.join("/"),
                    match (rest, segments.is_empty()) {
                        (true, true) => "**",
                        (true, false) => "/**",
                        _ => "",
                    }
                );
                Pattern::parse(&text).ok().map(|_| text)
            },
        )
    }

    proptest! {
        #[test]
        fn the_tree_agrees_with_a_comparison_of_all_routes(
            patterns in prop::collection::vec((any_pattern(), prop::sample::select(vec!["", "GET", "POST"])), 1..8),
            path in prop::collection::vec(prop::sample::select(vec!["a", "b", "c", ""]), 1..5),
        ) {
            let path = format!("/{}", path.join("/"));
            let entries: Vec<_> = patterns.iter().map(|(pattern, methods)| entry(pattern, methods, "", pattern)).collect();
            if let Ok(table) = Table::build(entries.clone()) {
                let found = match table.find("h", &Method::GET, &path) {
                    Found::Route(matched) => Some(matched.index),
                    _ => None,
                };
                prop_assert_eq!(found, by_brute_force(&entries, &Method::GET, &path), "{}", path);
            }
        }
    }
}
