//! The routes of one host as a tree of path segments, and the search in it. It knows routes only by their index.

use std::collections::HashMap;

use http::Method;

use crate::route::pattern::{MAX_PARAMS, Segment, Shape};

pub(super) type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// The routes of one host. Every fully literal path is in `exact` as well, so that the usual request costs one
/// hash lookup.
#[derive(Debug, Default)]
pub(super) struct Tree {
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
    pub(super) fn insert(
        &mut self,
        shape: &Shape,
        methods: &[Method],
        index: usize,
    ) -> Option<(usize, Option<Method>)> {
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
            self.exact.insert(path.into(), leaf.clone());
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
pub(super) struct Ranges {
    pub(super) items: [(usize, usize); MAX_PARAMS],
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

pub(super) struct Search<'s> {
    path: &'s str,
    method: &'s Method,
    ranges: Ranges,
    /// Methods of the leaves that had the path but not the method; with repetitions.
    pub(super) allow: Vec<Method>,
}

impl<'s> Search<'s> {
    pub(super) fn new(path: &'s str, method: &'s Method) -> Self {
        Self { path, method, ranges: Ranges::default(), allow: Vec::new() }
    }

    /// The most specific route of a tree that takes the request, with what its parameters matched.
    pub(super) fn run(&mut self, tree: &Tree) -> Option<(usize, Ranges)> {
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
