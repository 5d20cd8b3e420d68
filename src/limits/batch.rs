//! What one call asks of the counters in one place of the store, and what it is told: the shape of the question,
//! whatever carries it. Keys of one call live in one slot; who asks what is decided above.

use bytes::Bytes;

use super::algorithm::{Rule, State};
use super::check::Violated;
use crate::clock::UnixMillis;

/// One counter of an item.
#[derive(Clone, Copy, Debug)]
pub struct Counter<'a> {
    /// Its key in the store.
    pub key: &'a [u8],
    /// What is asked of it; `cost` is that of one request.
    pub rule: Rule,
    /// Whether refused requests consume too.
    pub penalise: bool,
    /// Whether it only watches: it never refuses, and consumes for admitted requests that fit it.
    pub shadow: bool,
    /// The end of the fixed window on the store's clock where the caller knows it, else 0.
    pub known_end: u64,
}

/// Identical requests: the same guards and the same counters. All of an item's requests are judged one after
/// the other; nothing else comes between them.
#[derive(Clone, Debug, Default)]
pub struct Item<'a> {
    /// Keys that bar the requests when they exist.
    pub guards: Vec<&'a [u8]>,
    /// Position in `guards` of the one that bars only tokens issued before the second it holds.
    pub cutoff: Option<usize>,
    /// When the token was issued, whole seconds since the epoch; 0 when unknown, which every cut-off bars.
    pub issued_at: u64,
    /// At most [`super::check::MAX_CHECKS`]; no key twice.
    pub counters: Vec<Counter<'a>>,
    /// How many requests; 0 only looks and consumes nothing.
    pub count: u32,
}

/// Everything asked by one call. Items are judged in order; several may name the same keys.
#[derive(Clone, Debug, Default)]
pub struct Batch<'a> {
    /// Keys whose values are only reported.
    pub tags: Vec<&'a [u8]>,
    /// The requests.
    pub items: Vec<Item<'a>>,
}

/// What became of one counter of an item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// After the item: what its granted (or penalised) requests consumed is in it.
    pub state: State,
    /// How many of the item's requests this counter alone had room for.
    pub fits: u32,
}

/// What became of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemReply {
    /// The guard at this position (from 0) bars it; nothing was counted.
    Barred(usize),
    /// Judged by its counters.
    Judged {
        /// How many of its requests are admitted: the smallest `fits` of the counters that are not shadows.
        granted: u32,
        /// In the order of the item's counters.
        counters: Vec<Counted>,
    },
}

/// What the store answered to a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchReply {
    /// The store's clock, where it had to be read.
    pub clock: Option<UnixMillis>,
    /// The tags' values, in the order asked.
    pub tags: Vec<Option<Bytes>>,
    /// In the order of the items.
    pub items: Vec<ItemReply>,
}

/// Requests to be taken off a counter again. A counter of another window, an absent one and one that holds less
/// are left alone: taking back never creates a key and never reaches into another window.
#[derive(Clone, Copy, Debug)]
pub struct Refund<'a> {
    /// The counter's key.
    pub key: &'a [u8],
    /// As it was asked.
    pub rule: Rule,
    /// As it was reported when the requests were counted: it tells the window.
    pub state: State,
    /// How many requests, each of the rule's cost.
    pub count: u32,
}

impl ItemReply {
    /// The counters without room for every request of the item, those that only watch included.
    pub fn violated(&self, item: &Item<'_>) -> Violated {
        let mut violated = Violated::default();
        if let Self::Judged { counters, .. } = self {
            for (index, counted) in counters.iter().enumerate() {
                if counted.fits < item.count {
                    violated.insert(index);
                }
            }
        }
        violated
    }
}
