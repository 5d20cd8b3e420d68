//! Which node of a Redis Cluster answers for which slots: the map, how it is learned, and what a redirection means.
//! The calls themselves are made elsewhere.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::redis::{AsyncConnectionConfig, Client, ConnectionInfo, RedisError, RedisResult, Value, cmd};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::node::Node;
use super::settings::{Address, Settings};
use super::slot::{SLOTS, Shard};
use super::{Unavailable, within};

/// What one node may take to tell the map.
const ANSWER_TIME: Duration = Duration::from_millis(500);
/// A slot that nobody owns.
const NOBODY: u16 = u16::MAX;
/// How long a node that owns no slot yet, but is about to get one, is kept.
const EXPECTED_FOR: Duration = Duration::from_secs(60);
/// Most such nodes.
const MOST_EXPECTED: usize = 64;

/// Slots and their owners at one time.
pub(super) struct Map {
    /// Every master.
    pub(super) nodes: Box<[Arc<Node>]>,
    /// For each slot the index of its owner in `nodes`, or [`NOBODY`].
    owners: Box<[u16]>,
}

impl Map {
    pub(super) fn owner(&self, shard: Shard) -> Option<&Arc<Node>> {
        self.nodes.get(usize::from(*self.owners.get(usize::from(shard.slot()))?))
    }

    fn at(&self, address: &Address) -> Option<&Arc<Node>> {
        self.nodes.iter().find(|node| node.address.as_ref() == Some(address))
    }
}

/// What a node answered instead of doing as asked.
#[derive(Debug)]
pub(super) struct Redirection {
    /// The slot is only on its way: this one command goes there, after `ASKING`.
    pub(super) asking: bool,
    address: Address,
}

impl Redirection {
    /// The redirection that `error` is, as answered by the node at `asked`.
    pub(super) fn of(error: &RedisError, asked: Option<&Address>) -> Option<Self> {
        let (address, _) = error.redirect_node()?;
        let mut address = Address::parse(address)?;
        if address.host.is_empty() {
            // The node does not know its own name: it is where it was asked.
            address.host = asked?.host.clone();
        }
        let asking = error.code() == Some("ASK");
        Some(Self { asking, address })
    }
}

/// The cluster as known to this process.
pub(super) struct Cluster {
    seeds: Vec<ConnectionInfo>,
    /// How nodes are spoken to.
    like: ConnectionInfo,
    map: ArcSwapOption<Map>,
    /// Counts the maps, for those who wait for the next.
    version: watch::Sender<u64>,
    /// No node told the map yet, although they were asked.
    pub(super) unreachable: AtomicBool,
    /// Wakes whoever learns the map: it is known to be old.
    pub(super) stale: Notify,
    /// Nodes without slots that redirections named, and until when they are kept.
    expected: Mutex<Vec<(Address, Instant)>>,
}

/// What changed with a map.
pub(super) struct Changes {
    /// Nodes that were not there before.
    pub(super) joined: Vec<Arc<Node>>,
    /// Nodes that are not there any more.
    pub(super) left: Vec<Arc<Node>>,
}

/// A range of slots and its master.
struct Range {
    first: u16,
    last: u16,
    master: Address,
}

impl Cluster {
    pub(super) fn new(seeds: Vec<ConnectionInfo>, like: ConnectionInfo) -> Self {
        Self {
            seeds,
            like,
            map: ArcSwapOption::empty(),
            version: watch::Sender::new(0),
            unreachable: AtomicBool::new(false),
            stale: Notify::new(),
            expected: Mutex::default(),
        }
    }

    /// The present map, if one was ever learned.
    pub(super) fn map(&self) -> Option<Arc<Map>> {
        self.map.load_full()
    }

    /// Whether requests may ask for keys of `shard`.
    pub(super) fn available(&self, shard: Shard) -> bool {
        match &*self.map.load() {
            Some(map) => map.owner(shard).is_some_and(|node| node.breaker.closed().is_some()),
            // Not asked yet: the first requests wait for the map as they wait for a connection.
            None => !self.unreachable.load(Ordering::Acquire),
        }
    }

    /// The node that answers for `shard`; right after the start this waits for the map.
    pub(super) async fn owner(&self, shard: Shard, until: Instant) -> Result<Arc<Node>, Unavailable> {
        if self.map.load().is_none() {
            if self.unreachable.load(Ordering::Acquire) {
                return Err(Unavailable::BreakerOpen);
            }
            let mut version = self.version.subscribe();
            let learned = version.wait_for(|version| *version > 0);
            within(until, learned).await.map_err(|_| Unavailable::NotConnected)?.ok();
        }
        let map = self.map.load();
        map.as_ref().and_then(|map| map.owner(shard)).map(Arc::clone).ok_or(Unavailable::BreakerOpen)
    }

    /// The node that a redirection names. When it is new here, this waits for the next map.
    pub(super) async fn follow(&self, to: &Redirection, until: Instant) -> Result<Arc<Node>, Unavailable> {
        let mut version = self.version.subscribe();
        let find = || self.map.load().as_ref().and_then(|map| map.at(&to.address).map(Arc::clone));
        let known = find();
        if known.is_none() {
            self.expect(&to.address);
        }
        if !to.asking || known.is_none() {
            self.stale.notify_one();
        }
        if let Some(node) = known {
            return Ok(node);
        }
        loop {
            let changed = within(until, version.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return Err(Unavailable::Redirected);
            }
            if let Some(node) = find() {
                // A node joins closed to requests until it has proved itself; that is soon.
                let opened = within(until, node.breaker.wait_until_closed()).await;
                return opened.map(|()| node).map_err(|_| Unavailable::Redirected);
            }
        }
    }

    fn expect(&self, address: &Address) {
        let until = Instant::now() + EXPECTED_FOR;
        let mut expected = self.expected.lock();
        expected.retain(|(known, _)| known != address);
        if expected.len() < MOST_EXPECTED {
            expected.push((address.clone(), until));
        }
    }

    /// Asks for the map: the nodes that answer first, then the others, then the seeds.
    async fn learn(&self, config: &AsyncConnectionConfig) -> Option<Vec<Range>> {
        let mut known: Vec<(bool, Address)> = Vec::new();
        if let Some(map) = self.map() {
            for node in &map.nodes {
                let away = node.breaker.closed().is_none();
                known.extend(node.address.clone().map(|address| (away, address)));
            }
        }
        known.sort_by_key(|(away, _)| *away);
        let nodes = known.into_iter().map(|(_, address)| address.reached_like(&self.like));
        for info in nodes.chain(self.seeds.iter().cloned()) {
            let asked = tokio::time::timeout(ANSWER_TIME, ask(info, config)).await;
            if let Ok(Ok(ranges)) = asked
                && !ranges.is_empty()
            {
                return Some(ranges);
            }
        }
        None
    }

    /// Learns the map and makes it the present one. `None` when no node told it; otherwise what changed.
    pub(super) async fn refresh(
        &self,
        settings: &Settings,
        config: &AsyncConnectionConfig,
    ) -> Option<Changes> {
        let Some(ranges) = self.learn(config).await else {
            self.unreachable.store(true, Ordering::Release);
            return None;
        };
        let before = self.map();
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        let mut joined = Vec::new();
        let mut owners = vec![NOBODY; usize::from(SLOTS)];
        let mut place = |address: &Address| -> Option<usize> {
            if let Some(index) = nodes.iter().position(|node| node.address.as_ref() == Some(address)) {
                return Some(index);
            }
            let known = before.as_ref().and_then(|map| map.at(address)).map(Arc::clone);
            let node = if let Some(node) = known {
                node
            } else {
                let info = address.reached_like(&self.like);
                let node = Arc::new(Node::new(settings, Some(info), Some(address.clone())).ok()?);
                if before.is_some() {
                    // It may have to be told of revocations first.
                    node.breaker.open();
                }
                joined.push(Arc::clone(&node));
                node
            };
            nodes.push(node);
            Some(nodes.len() - 1)
        };
        for Range { first, last, master } in ranges {
            let Some(owner) = place(&master).and_then(|index| u16::try_from(index).ok()) else { continue };
            if let Some(range) = owners.get_mut(usize::from(first)..=usize::from(last)) {
                range.fill(owner);
            }
        }
        {
            let now = Instant::now();
            let mut expected = self.expected.lock();
            expected.retain(|(_, until)| *until > now);
            for (address, _) in expected.iter() {
                place(address);
            }
        }
        let kept: HashSet<u64> = nodes.iter().map(|node| node.id).collect();
        let left: Vec<Arc<Node>> = before
            .iter()
            .flat_map(|map| map.nodes.iter())
            .filter(|node| !kept.contains(&node.id))
            .map(Arc::clone)
            .collect();
        self.map.store(Some(Arc::new(Map { nodes: nodes.into(), owners: owners.into() })));
        self.unreachable.store(false, Ordering::Release);
        self.version.send_modify(|version| *version += 1);
        Some(Changes { joined, left })
    }
}

async fn ask(info: ConnectionInfo, config: &AsyncConnectionConfig) -> RedisResult<Vec<Range>> {
    let own = Address::of(&info);
    let mut connection = Client::open(info)?.get_multiplexed_async_connection_with_config(config).await?;
    let mut question = cmd("CLUSTER");
    question.arg("SLOTS");
    let answer: Vec<Value> = question.query_async(&mut connection).await?;
    Ok(answer.into_iter().filter_map(|range| read_range(range, own.as_ref())).collect())
}

/// `[first, last, [host, port, …], …]`; a node that does not know its own name is where it was asked.
fn read_range(value: Value, asked: Option<&Address>) -> Option<Range> {
    let Value::Array(parts) = value else { return None };
    let mut parts = parts.into_iter();
    let (Value::Int(first), Value::Int(last)) = (parts.next()?, parts.next()?) else { return None };
    let Value::Array(master) = parts.next()? else { return None };
    let mut master = master.into_iter();
    let host: Box<str> = match master.next()? {
        Value::BulkString(host) if !host.is_empty() => String::from_utf8(host).ok()?.into(),
        Value::BulkString(_) | Value::Nil => asked?.host.clone(),
        _ => return None,
    };
    if &*host == "?" {
        return None;
    }
    let Value::Int(port) = master.next()? else { return None };
    Some(Range {
        first: u16::try_from(first).ok()?,
        last: u16::try_from(last).ok().filter(|last| *last < SLOTS)?,
        master: Address { host, port: u16::try_from(port).ok()? },
    })
}
