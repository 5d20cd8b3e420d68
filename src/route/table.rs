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

mod tree;

use std::borrow::Cow;

use http::Method;

use super::pattern::{HostPattern, Pattern, Segment, Shape};
use tree::{Map, Ranges, Search, Tree};

/// Deepest pattern a table takes, in segments; the search recurses once per segment.
const MAX_DEPTH: usize = 128;

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

impl Options {
    /// Whether two canonical paths are one.
    pub fn same(self, one: &str, other: &str) -> bool {
        self.compared(one) == self.compared(other)
    }

    /// Whether `path`, a canonical one, is named by `pattern` letter by letter, without `:name` or `**`.
    pub fn is_literally(self, pattern: &Pattern, path: &str) -> bool {
        pattern.shapes().iter().filter(|shape| !shape.rest).any(|shape| {
            let literal = |segment: &Segment| match segment {
                Segment::Literal(literal) => Some(format!("/{literal}")),
                Segment::Param => None,
            };
            let text: Option<String> = shape.segments.iter().map(literal).collect();
            text.is_some_and(|text| self.same(&text, path))
        })
    }

    /// The spelling of `path` that is compared; its bytes stand where those of `path` stand.
    fn compared(self, path: &str) -> Cow<'_, str> {
        let path = match path.strip_suffix('/') {
            Some(shorter) if self.ignore_trailing_slash && !shorter.is_empty() => shorter,
            _ => path,
        };
        if self.case_insensitive && path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(path.to_ascii_lowercase())
        } else {
            Cow::Borrowed(path)
        }
    }
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
        let compared = self.options.compared(path);
        let mut search = Search::new(&compared, method);
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

    /// How it compares paths.
    pub const fn options(&self) -> Options {
        self.options
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

#[cfg(test)]
mod tests;
