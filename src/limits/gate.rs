//! The one exchange with Redis: arguments and reply of `gate.lua`, which judges guards, reads tags and
//! consumes all counters atomically. It only translates; sending, deadlines and retries are not its business.

use bytes::Bytes;
use redis::{RedisWrite, ToRedisArgs, Value};

use super::algorithm::State;
use super::check::{Check, Checks, Decision, Violated};
use super::policy::Algorithm;
use crate::clock::UnixMillis;

/// The script; load it once and call it by its hash.
pub const SCRIPT: &str = include_str!("../redis/scripts/gate.lua");

/// Lua counts in doubles: limits above are as good as none.
const MAX_EXACT: u64 = 1 << 53;

/// What is asked beside the counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Question<'a> {
    /// Keys that bar the request when they exist.
    pub guards: &'a [&'a [u8]],
    /// Keys whose values are only reported.
    pub tags: &'a [&'a [u8]],
    /// Position in `guards` of the one that bars only tokens issued before the second it holds.
    pub cutoff: Option<usize>,
    /// When the token was issued, whole seconds since the epoch; 0 when unknown, which every cut-off bars.
    pub issued_at: u64,
}

/// What the guards said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardVerdict {
    /// No guard bars the request.
    Clear,
    /// The guard at this position (from 0) bars it; nothing was counted.
    Refused(usize),
}

/// What Redis answered; the counters' states are in the [`Checks`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateReply {
    /// What the guards said.
    pub verdict: GuardVerdict,
    /// The tags' values in the order asked; empty when a guard bars.
    pub tags: Vec<Option<Bytes>>,
    /// The decision of all counters, `None` when a guard bars.
    pub decision: Option<Decision>,
    /// The store's clock, where the script had to read it.
    pub clock: Option<UnixMillis>,
}

/// The reply is not one `gate.lua` gives to this question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the reply of the gate script is malformed: {0}")]
pub struct MalformedReply(&'static str);

/// Writes `numkeys`, keys and arguments: what follows the script's hash in `EVALSHA`.
pub fn encode<W: RedisWrite + ?Sized>(question: &Question<'_>, checks: &Checks, out: &mut W) {
    let (guards, tags, counters) = (question.guards.len(), question.tags.len(), checks.len());
    (guards + tags + counters).write_redis_args(out);
    for key in question.guards.iter().chain(question.tags) {
        out.write_arg(key);
    }
    for check in checks.iter() {
        out.write_arg(checks.key(check));
    }
    for number in [guards, tags, counters] {
        number.write_redis_args(out);
    }
    // The script compares doubles; a token from beyond 2^53 seconds is no younger for it.
    question.issued_at.min(MAX_EXACT).write_redis_args(out);
    question.cutoff.map_or(0, |position| position.saturating_add(1)).write_redis_args(out);
    let quick = counters > 0 && checks.iter().all(is_known);
    u8::from(quick).write_redis_args(out);
    for check in checks.iter() {
        let rule = check.rule;
        out.write_arg(match (rule.algorithm, check.penalise) {
            (Algorithm::FixedWindow, false) if is_known(check) => b"k",
            (Algorithm::FixedWindow | Algorithm::SlidingLog | Algorithm::CoolDown(_), false) => b"f",
            (Algorithm::FixedWindow | Algorithm::SlidingLog | Algorithm::CoolDown(_), true) => b"F",
            (Algorithm::SlidingWindow, false) => b"s",
            (Algorithm::SlidingWindow, true) => b"S",
            (Algorithm::TokenBucket, false) => b"b",
            (Algorithm::TokenBucket, true) => b"B",
        });
        rule.capacity().min(MAX_EXACT).write_redis_args(out);
        rule.period().write_redis_args(out);
        rule.price().min(MAX_EXACT).write_redis_args(out);
    }
}

/// Writes what follows the script's hash for a harmless count on `key`, which lives for a second: what it needs
/// of the store is what every request needs.
pub fn encode_trial<W: RedisWrite + ?Sized>(key: &[u8], out: &mut W) {
    out.write_arg(b"1");
    out.write_arg(key);
    for word in ["0", "0", "1", "0", "0", "0", "f", "9007199254740992", "1000", "1"] {
        out.write_arg(word.as_bytes());
    }
}

fn is_known(check: &Check) -> bool {
    check.rule.algorithm == Algorithm::FixedWindow && !check.penalise && check.known_end > 0
}

/// Reads the reply to `question` and `checks`, and puts the counters' states into `checks`.
///
/// # Errors
/// [`MalformedReply`] when shape or numbers are not the script's; `checks` then holds no decision.
pub fn decode(
    reply: Value,
    question: &Question<'_>,
    checks: &mut Checks,
) -> Result<GateReply, MalformedReply> {
    let Value::Array(values) = reply else {
        return Err(MalformedReply("not an array"));
    };
    let mut values = values.into_iter();
    let code = int(&mut values)?;
    let detail = int(&mut values)?;
    if code == 0 {
        let guard = usize::try_from(detail).ok().and_then(|guard| guard.checked_sub(1));
        let guard = guard.filter(|guard| *guard < question.guards.len());
        let guard = guard.ok_or(MalformedReply("no such guard"))?;
        let verdict = GuardVerdict::Refused(guard);
        return Ok(GateReply { verdict, tags: Vec::new(), decision: None, clock: None });
    }
    let violated = match code {
        1 if detail == 0 => Violated::default(),
        2 => Violated::from_bits(u32::try_from(detail).map_err(|_| MalformedReply("mask too wide"))?),
        _ => return Err(MalformedReply("unknown code")),
    };
    if (code == 2) == violated.is_empty() || violated.iter().any(|index| index >= checks.len()) {
        return Err(MalformedReply("mask does not fit the checks"));
    }
    let clock = Some(int(&mut values)?).filter(|clock| *clock > 0).map(UnixMillis);
    let mut tags = Vec::with_capacity(question.tags.len());
    for _ in question.tags {
        tags.push(match values.next() {
            Some(Value::BulkString(bytes)) => Some(Bytes::from(bytes)),
            Some(Value::Nil) => None,
            _ => return Err(MalformedReply("a tag is neither text nor nil")),
        });
    }
    for (check, answer) in checks.pairs() {
        answer.state = match check.rule.algorithm {
            Algorithm::FixedWindow | Algorithm::SlidingLog | Algorithm::CoolDown(_) => {
                let used = count(&mut values)?;
                let anchor = match int(&mut values)? {
                    0 if used > 0 => check.known_end,
                    end => end,
                };
                State { anchor, used, before: 0 }
            }
            Algorithm::SlidingWindow => {
                State { anchor: int(&mut values)?, used: int(&mut values)?, before: int(&mut values)? }
            }
            Algorithm::TokenBucket => State { anchor: int(&mut values)?, used: int(&mut values)?, before: 0 },
        };
    }
    if values.next().is_some() {
        return Err(MalformedReply("too long"));
    }
    let at = clock.unwrap_or(checks.at());
    let decision = Some(checks.conclude(violated, at));
    Ok(GateReply { verdict: GuardVerdict::Clear, tags, decision, clock })
}

fn int(values: &mut impl Iterator<Item = Value>) -> Result<u64, MalformedReply> {
    match values.next() {
        Some(Value::Int(number)) => u64::try_from(number).map_err(|_| MalformedReply("a negative number")),
        Some(_) => Err(MalformedReply("not a number")),
        None => Err(MalformedReply("too short")),
    }
}

// A count below zero is a grant: more than the limit is left.
fn count(values: &mut impl Iterator<Item = Value>) -> Result<u64, MalformedReply> {
    match values.next() {
        Some(Value::Int(number)) => Ok(u64::try_from(number).unwrap_or(0)),
        _ => Err(MalformedReply("not a count")),
    }
}
