//! The one exchange with Redis: arguments and reply of `gate.lua`, which judges guards, reads tags and consumes
//! all counters atomically, and the arguments of `refund.lua`, which takes requests off counters again. It only
//! translates; sending, deadlines and retries are not its business.

use ahash::AHashMap;
use bytes::Bytes;
use redis::{RedisWrite, ToRedisArgs, Value};

use super::algorithm::{Rule, State};
use super::batch::{Batch, BatchReply, Counted, Counter, Item, ItemReply, Refund};
use super::policy::Algorithm;
use crate::clock::UnixMillis;

/// The script that judges; load it once and call it by its hash.
pub const GATE: &str = include_str!("../redis/scripts/gate.lua");
/// The script that takes back.
pub const REFUND: &str = include_str!("../redis/scripts/refund.lua");

/// Lua counts in doubles: limits above are as good as none.
const MAX_EXACT: u64 = 1 << 53;

const PENALISE: u64 = 1;
const SHADOW: u64 = 2;
const KNOWN: u64 = 4;

/// The reply is not one `gate.lua` gives to this question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the reply of the gate script is malformed: {0}")]
pub struct MalformedReply(&'static str);

/// Writes `numkeys`, keys and arguments of the gate: what follows the script's hash in `EVALSHA`. A batch may
/// name some thousand keys, no more: the script hands them to one command.
pub fn encode<W: RedisWrite + ?Sized>(batch: &Batch<'_>, out: &mut W) {
    let keys = Keys::of(batch);
    keys.len().write_redis_args(out);
    for key in batch.tags.iter().chain(&keys.guards) {
        out.write_arg(key);
    }
    for (key, _) in keys.strings.iter().chain(&keys.logs) {
        out.write_arg(key);
    }
    let question = keys.question(batch);
    match usual(batch) {
        Some(item) => out.write_arg(&usual_question(batch, item, &question)),
        None => out.write_arg(&question),
    }
}

/// Writes what follows the gate's hash for a harmless count on `key`, which lives for a second: what it needs of
/// the store is what every request needs.
pub fn encode_trial<W: RedisWrite + ?Sized>(key: &[u8], out: &mut W) {
    let rule = Rule { algorithm: Algorithm::FixedWindow, limit: MAX_EXACT, period_ms: 1_000, cost: 1 };
    let counter = Counter { key, rule, penalise: false, shadow: false, known_end: 0 };
    let item = Item { counters: vec![counter], count: 1, ..Item::default() };
    encode(&Batch { tags: Vec::new(), items: vec![item] }, out);
}

/// Writes what follows the hash of `refund.lua`, which answers how many of the refunds it made. A refund that
/// cannot tell its window (a fixed one whose end was not reported) is written but has no effect.
pub fn encode_refunds<W: RedisWrite + ?Sized>(refunds: &[Refund<'_>], out: &mut W) {
    refunds.len().write_redis_args(out);
    let mut packed = Packed::new();
    for refund in refunds {
        out.write_arg(refund.key);
        let (rule, state) = (refund.rule, refund.state);
        let amount = u64::from(refund.count).saturating_mul(price(&rule));
        for number in [kind(&rule), rule.period(), amount, state.anchor, state.before] {
            packed.number(number.min(MAX_EXACT));
        }
    }
    out.write_arg(&packed.finish());
}

/// Reads the gate's reply to `batch`. Never panics, whatever `reply` is.
///
/// # Errors
/// [`MalformedReply`] when shape or numbers are not the script's.
pub fn decode(reply: Value, batch: &Batch<'_>) -> Result<BatchReply, MalformedReply> {
    let text = match reply {
        Value::BulkString(text) => text,
        Value::Array(values) => return decode_usual(values, batch),
        _ => return Err(MalformedReply("neither a string nor an array")),
    };
    let mut reader = Reader { text: Bytes::from(text), at: 0 };
    let clock = clock(reader.int()?)?;
    let tags = batch.tags.iter().map(|_| reader.text()).collect::<Result<_, _>>()?;
    let items = batch.items.iter().map(|item| judged(&mut reader, item)).collect::<Result<_, _>>()?;
    if reader.at != reader.text.len() {
        return Err(MalformedReply("too long"));
    }
    Ok(BatchReply { clock, tags, items })
}

fn clock(now: i64) -> Result<Option<UnixMillis>, MalformedReply> {
    Ok(Some(UnixMillis(unsigned(now)?)).filter(|clock| clock.0 > 0))
}

/// Reads the reply to a usual item.
fn decode_usual(values: Vec<Value>, batch: &Batch<'_>) -> Result<BatchReply, MalformedReply> {
    let item = usual(batch).ok_or(MalformedReply("an array, but not asked so"))?;
    let (tags, read) = (batch.tags.len(), batch.tags.len().saturating_add(item.guards.len()));
    let bars = values.len().checked_sub(tags).filter(|position| *position <= item.guards.len());
    let mut values = values.into_iter();
    let tags = values.by_ref().take(tags).map(|value| match value {
        Value::BulkString(text) => Ok(Some(Bytes::from(text))),
        Value::Nil => Ok(None),
        _ => Err(MalformedReply("a tag is neither text nor nil")),
    });
    let tags: Vec<_> = tags.collect::<Result<_, _>>()?;
    if let Some(position) = bars {
        let guard = position.checked_sub(1).ok_or(MalformedReply("no such guard"))?;
        return Ok(BatchReply { clock: None, tags, items: vec![ItemReply::Barred(guard)] });
    }
    let mut numbers = values.skip(read.saturating_sub(tags.len())).map(|value| match value {
        Value::Int(number) => Ok(number),
        _ => Err(MalformedReply("not a whole number")),
    });
    let mut next = || numbers.next().ok_or(MalformedReply("too short"))?;
    let counts_only = common_amount(item).is_some();
    let mut counters = Vec::with_capacity(item.counters.len());
    for counter in &item.counters {
        let is_known = counter.known_end > 0 && counter.rule.algorithm == Algorithm::FixedWindow;
        let (anchor, used, before) = if counts_only {
            let used = next()?;
            (if is_known { 0 } else { next()? }, used, 0)
        } else {
            (next()?, next()?, next()?)
        };
        let anchor = if is_known { counter.known_end } else { unsigned(anchor)? };
        let state = State { anchor, used: unsigned(used.max(0))?, before: unsigned(before)? };
        counters.push(Counted { state, fits: item.count });
    }
    let clock = clock(next()?)?;
    if numbers.next().is_some() {
        return Err(MalformedReply("too long"));
    }
    Ok(BatchReply { clock, tags, items: vec![ItemReply::Judged { granted: item.count, counters }] })
}

fn judged(reader: &mut Reader, item: &Item<'_>) -> Result<ItemReply, MalformedReply> {
    let Some(granted) = unsigned(reader.int()?)?.checked_sub(1) else {
        let guard = unsigned(reader.int()?)?.checked_sub(1).and_then(|guard| usize::try_from(guard).ok());
        let guard = guard.filter(|guard| *guard < item.guards.len());
        return guard.map(ItemReply::Barred).ok_or(MalformedReply("no such guard"));
    };
    let mut least = item.count;
    let mut counters = Vec::with_capacity(item.counters.len());
    for counter in &item.counters {
        let fits = u32::try_from(reader.int()?).map_err(|_| MalformedReply("more fit than were asked"))?;
        let [anchor, used, before] = [reader.int()?, reader.int()?, reader.int()?];
        let mut state = State { anchor: unsigned(anchor)?, used: unsigned(used)?, before: unsigned(before)? };
        if state.anchor == 0 && state.used > 0 && counter.rule.algorithm == Algorithm::FixedWindow {
            state.anchor = counter.known_end;
        }
        if fits > item.count {
            return Err(MalformedReply("more fit than were asked"));
        }
        if !counter.shadow {
            least = least.min(fits);
        }
        counters.push(Counted { state, fits });
    }
    if granted != u64::from(least) {
        return Err(MalformedReply("more or less granted than fits"));
    }
    Ok(ItemReply::Judged { granted: least, counters })
}

/// The item, if the batch is one that the script can answer without reading the whole question.
fn usual<'a, 'b>(batch: &'b Batch<'a>) -> Option<&'b Item<'a>> {
    let [item] = batch.items.as_slice() else { return None };
    let usual = |counter: &Counter<'_>| {
        let known = [Algorithm::FixedWindow, Algorithm::SlidingWindow, Algorithm::TokenBucket];
        known.contains(&counter.rule.algorithm)
            && !counter.penalise
            && !counter.shadow
            && amount(counter, item) <= counter.rule.capacity().min(MAX_EXACT)
    };
    (item.count > 0 && !item.counters.is_empty() && item.counters.iter().all(usual)).then_some(item)
}

/// What each counter of a usual item is to be counted up by, if they are all fixed windows and it is the same.
fn common_amount(item: &Item<'_>) -> Option<u64> {
    let first = amount(item.counters.first()?, item);
    let same = |counter: &Counter<'_>| {
        counter.rule.algorithm == Algorithm::FixedWindow && amount(counter, item) == first
    };
    item.counters.iter().all(same).then_some(first)
}

fn amount(counter: &Counter<'_>, item: &Item<'_>) -> u64 {
    price(&counter.rule).saturating_mul(u64::from(item.count))
}

fn usual_question(batch: &Batch<'_>, item: &Item<'_>, question: &[u8]) -> Vec<u8> {
    let mut packed = Packed::values();
    let first = batch.tags.len();
    packed.size(first);
    packed.size(first.saturating_add(item.guards.len()));
    packed.size(item.cutoff.map_or(0, |cutoff| first.saturating_add(cutoff).saturating_add(1)));
    packed.number(item.issued_at.min(MAX_EXACT));
    let common = common_amount(item);
    packed.number(common.unwrap_or(0));
    for counter in &item.counters {
        let rule = &counter.rule;
        let (limit, window) = (rule.capacity().min(MAX_EXACT), rule.period().min(MAX_EXACT));
        let is_fixed = rule.algorithm == Algorithm::FixedWindow;
        let is_known = is_fixed && counter.known_end > 0;
        let last = if is_fixed { limit.saturating_sub(price(rule)) } else { limit };
        if common.is_some() {
            packed.number(last);
            packed.number(if is_known { 0 } else { window });
        } else {
            packed.number(if is_known { 0 } else { kind(rule) });
            packed.number(last);
            packed.number(amount(counter, item));
            packed.number(window);
        }
    }
    packed.text(question);
    packed.finish()
}

fn price(rule: &Rule) -> u64 {
    rule.price().min(MAX_EXACT)
}

const fn kind(rule: &Rule) -> u64 {
    match rule.algorithm {
        Algorithm::FixedWindow => 1,
        Algorithm::SlidingWindow => 2,
        Algorithm::TokenBucket => 3,
        Algorithm::CoolDown(_) => 4,
        Algorithm::SlidingLog => 5,
    }
}

/// The keys of a batch in the script's order, each once.
struct Keys<'a> {
    tags: usize,
    guards: Vec<&'a [u8]>,
    strings: Vec<(&'a [u8], Rule)>,
    logs: Vec<(&'a [u8], Rule)>,
    /// Where a key stands among the guards, or among the counters of its sort; empty for one item, whose keys
    /// stand in their order.
    guard_of: AHashMap<&'a [u8], usize>,
    counter_of: AHashMap<&'a [u8], usize>,
}

impl<'a> Keys<'a> {
    fn of(batch: &Batch<'a>) -> Self {
        let mut keys = Self {
            tags: batch.tags.len(),
            guards: Vec::new(),
            strings: Vec::new(),
            logs: Vec::new(),
            guard_of: AHashMap::new(),
            counter_of: AHashMap::new(),
        };
        let several = batch.items.len() > 1;
        for item in &batch.items {
            for key in &item.guards {
                if several {
                    if keys.guard_of.contains_key(key) {
                        continue;
                    }
                    keys.guard_of.insert(key, keys.guards.len());
                }
                keys.guards.push(key);
            }
            for counter in &item.counters {
                let list = if counter.rule.algorithm == Algorithm::SlidingLog {
                    &mut keys.logs
                } else {
                    &mut keys.strings
                };
                if several {
                    if keys.counter_of.contains_key(counter.key) {
                        continue;
                    }
                    keys.counter_of.insert(counter.key, list.len());
                }
                list.push((counter.key, counter.rule));
            }
        }
        keys
    }

    fn len(&self) -> usize {
        self.tags + self.guards.len() + self.strings.len() + self.logs.len()
    }

    fn question(&self, batch: &Batch<'_>) -> Vec<u8> {
        let mut packed = Packed::new();
        for size in [self.tags, self.guards.len(), self.strings.len(), self.logs.len()] {
            packed.size(size);
        }
        for (_, rule) in self.strings.iter().chain(&self.logs) {
            let (interval, quiet) = match rule.algorithm {
                Algorithm::CoolDown(cool_down) => (cool_down.interval_ms, cool_down.quiet_ms),
                _ => (0, 0),
            };
            for number in [kind(rule), rule.period(), interval, quiet] {
                packed.number(number.min(MAX_EXACT));
            }
        }
        packed.size(batch.items.len());
        for item in &batch.items {
            packed.number(u64::from(item.count));
            packed.number(item.issued_at.min(MAX_EXACT));
            let guard = |index: usize| {
                let stands = match item.guards.get(index) {
                    Some(key) => self.guard_of.get(key).copied().unwrap_or(index),
                    None => index,
                };
                self.tags + stands + 1
            };
            packed.size(item.cutoff.map_or(0, guard));
            packed.size(item.guards.len());
            packed.size(item.counters.len());
            for index in 0..item.guards.len() {
                packed.size(guard(index));
            }
            let (mut string, mut log) = (0, 0);
            for counter in &item.counters {
                let is_log = counter.rule.algorithm == Algorithm::SlidingLog;
                let next = if is_log { &mut log } else { &mut string };
                let stands = self.counter_of.get(counter.key).copied().unwrap_or(*next);
                *next += 1;
                packed.size(stands + 1 + if is_log { self.strings.len() } else { 0 });
                packed.number(counter.rule.capacity().min(MAX_EXACT));
                packed.number(price(&counter.rule));
                packed.number(
                    u64::from(counter.penalise) * PENALISE
                        + u64::from(counter.shadow) * SHADOW
                        + u64::from(counter.known_end > 0) * KNOWN,
                );
            }
        }
        packed.finish()
    }
}

/// Msgpack under construction: an array, or values one after the other.
struct Packed {
    bytes: Vec<u8>,
    count: u32,
    is_array: bool,
}

impl Packed {
    fn new() -> Self {
        let mut bytes = Vec::with_capacity(128);
        // An array; its length is known at the end.
        bytes.extend_from_slice(&[0xdd, 0, 0, 0, 0]);
        Self { bytes, count: 0, is_array: true }
    }

    fn values() -> Self {
        Self { bytes: Vec::with_capacity(256), count: 0, is_array: false }
    }

    fn number(&mut self, number: u64) {
        self.count += 1;
        match (u8::try_from(number), u32::try_from(number)) {
            (Ok(small), _) if small < 0x80 => self.bytes.push(small),
            (_, Ok(medium)) => {
                self.bytes.push(0xce);
                self.bytes.extend_from_slice(&medium.to_be_bytes());
            }
            _ => {
                self.bytes.push(0xcf);
                self.bytes.extend_from_slice(&number.to_be_bytes());
            }
        }
    }

    fn size(&mut self, number: usize) {
        self.number(u64::try_from(number).unwrap_or(u64::MAX));
    }

    fn text(&mut self, text: &[u8]) {
        self.count += 1;
        self.bytes.push(0xdb);
        self.bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.bytes.extend_from_slice(text);
    }

    fn finish(mut self) -> Vec<u8> {
        if self.is_array
            && let Some(length) = self.bytes.get_mut(1..5)
        {
            length.copy_from_slice(&self.count.to_be_bytes());
        }
        self.bytes
    }
}

fn unsigned(number: i64) -> Result<u64, MalformedReply> {
    u64::try_from(number).map_err(|_| MalformedReply("a negative number"))
}

/// Reads msgpack values one after the other.
struct Reader {
    text: Bytes,
    at: usize,
}

impl Reader {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], MalformedReply> {
        let end = self.at.saturating_add(N);
        let bytes = self.text.get(self.at..end).and_then(|bytes| bytes.try_into().ok());
        self.at = end;
        bytes.ok_or(MalformedReply("too short"))
    }

    fn int(&mut self) -> Result<i64, MalformedReply> {
        let [mark] = self.take()?;
        Ok(match mark {
            0..=0x7f => i64::from(mark),
            0xcc => i64::from(u8::from_be_bytes(self.take()?)),
            0xcd => i64::from(u16::from_be_bytes(self.take()?)),
            0xce => i64::from(u32::from_be_bytes(self.take()?)),
            0xcf => i64::try_from(u64::from_be_bytes(self.take()?))
                .map_err(|_| MalformedReply("too large a number"))?,
            0xd0 => i64::from(i8::from_be_bytes(self.take()?)),
            0xd1 => i64::from(i16::from_be_bytes(self.take()?)),
            0xd2 => i64::from(i32::from_be_bytes(self.take()?)),
            0xd3 => i64::from_be_bytes(self.take()?),
            0xe0..=0xff => i64::from(i8::from_be_bytes([mark])),
            _ => return Err(MalformedReply("not a whole number")),
        })
    }

    fn text(&mut self) -> Result<Option<Bytes>, MalformedReply> {
        let [mark] = self.take()?;
        let length = match mark {
            0xc2 => return Ok(None),
            0xa0..=0xbf => u32::from(mark & 0x1f),
            0xd9 => u32::from(u8::from_be_bytes(self.take()?)),
            0xda => u32::from(u16::from_be_bytes(self.take()?)),
            0xdb => u32::from_be_bytes(self.take()?),
            _ => return Err(MalformedReply("a tag is neither text nor nil")),
        };
        let length = usize::try_from(length).map_err(|_| MalformedReply("too short"))?;
        let end = self.at.saturating_add(length);
        if end > self.text.len() {
            return Err(MalformedReply("too short"));
        }
        let text = self.text.slice(self.at..end);
        self.at = end;
        Ok(Some(text))
    }
}
