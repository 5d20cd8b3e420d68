//! The script of single requests, asked once per request of a batch.

use bytes::Bytes;
use redis::{Pipeline, Value};

use super::Link;
use super::question::Owed;
use crate::clock::UnixMillis;
use crate::limits::algorithm::State;
use crate::limits::batch::{Batch, BatchReply, Counted, Item, ItemReply};
use crate::limits::policy::Algorithm;
use crate::redis::{Lane, Shard, Unavailable};

pub(super) const REFUND: &str = "
local taken = 0
for i = 1, #KEYS do
  local n = tonumber(ARGV[2 * i])
  local count = tonumber(redis.call('GET', KEYS[i]) or '')
  if count and count >= n and redis.call('PEXPIRETIME', KEYS[i]) == tonumber(ARGV[2 * i - 1]) then
    redis.call('DECRBY', KEYS[i], n)
    taken = taken + 1
  end
end
return taken";

pub(super) async fn batch(link: &Link, shard: Shard, batch: &Batch<'_>) -> Option<BatchReply> {
    let script = link.exchange.gate;
    let mut pipeline = Pipeline::new();
    for (number, item) in batch.items.iter().enumerate() {
        for index in 0..item.count {
            let tags: &[&[u8]] = if number == 0 && index == 0 { &batch.tags } else { &[] };
            let mut command = script.command();
            encode(item, tags, &mut command);
            pipeline.add_command(command);
        }
    }
    let mut values = link.store.pipeline(Lane::Decisions, shard, &pipeline).await.ok()?;
    if values.iter().any(|value| matches!(value, Value::ServerError(_))) {
        link.store.call(Lane::Decisions, shard, &script.load()).await.ok()?;
        values = link.store.pipeline(Lane::Decisions, shard, &pipeline).await.ok()?;
    }
    let mut values = values.into_iter();
    let mut reply = BatchReply { clock: None, tags: Vec::new(), items: Vec::new() };
    for (number, item) in batch.items.iter().enumerate() {
        let mut counters = vec![Counted { fits: item.count, ..Counted::default() }; item.counters.len()];
        let (mut granted, mut barred) = (0, None);
        for index in 0..item.count {
            let tags = if number == 0 && index == 0 { batch.tags.len() } else { 0 };
            let Some(Value::Array(answer)) = values.next() else { return None };
            let mut answer = answer.into_iter();
            let (code, detail) = (int(&mut answer)?, int(&mut answer)?);
            if code == 0 {
                barred = usize::try_from(detail).ok().and_then(|guard| guard.checked_sub(1));
                reply.tags = vec![None; batch.tags.len()];
                continue;
            }
            let clock = int(&mut answer)?;
            if clock > 0 {
                reply.clock = Some(UnixMillis(clock));
            }
            for _ in 0..tags {
                reply.tags.push(match answer.next()? {
                    Value::BulkString(bytes) => Some(Bytes::from(bytes)),
                    _ => None,
                });
            }
            granted += u32::from(code == 1);
            for (place, (counter, counted)) in item.counters.iter().zip(&mut counters).enumerate() {
                counted.state = match counter.rule.algorithm {
                    Algorithm::SlidingWindow => State {
                        anchor: int(&mut answer)?,
                        used: int(&mut answer)?,
                        before: int(&mut answer)?,
                    },
                    Algorithm::TokenBucket => {
                        State { anchor: int(&mut answer)?, used: int(&mut answer)?, before: 0 }
                    }
                    _ => {
                        let used = int(&mut answer)?;
                        let end = int(&mut answer)?;
                        State {
                            anchor: if end == 0 && used > 0 { counter.known_end } else { end },
                            used,
                            before: 0,
                        }
                    }
                };
                if code == 2 && detail >> place & 1 == 1 {
                    counted.fits = counted.fits.min(granted);
                }
            }
        }
        reply.items.push(barred.map_or(ItemReply::Judged { granted, counters }, ItemReply::Barred));
    }
    Some(reply)
}

fn int(values: &mut impl Iterator<Item = Value>) -> Option<u64> {
    match values.next() {
        Some(Value::Int(number)) => u64::try_from(number).ok(),
        _ => None,
    }
}

fn encode(item: &Item<'_>, tags: &[&[u8]], command: &mut redis::Cmd) {
    command.arg(item.guards.len() + tags.len() + item.counters.len());
    for key in item.guards.iter().chain(tags) {
        command.arg(*key);
    }
    for counter in &item.counters {
        command.arg(counter.key);
    }
    command.arg(item.guards.len()).arg(tags.len()).arg(item.counters.len()).arg(item.issued_at);
    command.arg(item.cutoff.map_or(0, |position| position + 1));
    let known = |counter: &crate::limits::batch::Counter<'_>| {
        counter.rule.algorithm == Algorithm::FixedWindow && !counter.penalise && counter.known_end > 0
    };
    command.arg(u8::from(!item.counters.is_empty() && item.counters.iter().all(known)));
    for counter in &item.counters {
        let kind = match counter.rule.algorithm {
            Algorithm::SlidingWindow => "s",
            Algorithm::TokenBucket => "b",
            _ if known(counter) => "k",
            _ => "f",
        };
        command.arg(if counter.penalise { kind.to_uppercase() } else { kind.to_owned() });
        command
            .arg(counter.rule.capacity().min(1 << 53))
            .arg(counter.rule.period_ms)
            .arg(counter.rule.cost.max(1));
    }
}

pub(super) async fn refund(link: &Link, shard: Shard, owed: &[Owed]) -> Result<(), Unavailable> {
    let script = link.exchange.refund;
    let mut command = script.command();
    command.arg(owed.len());
    for owed in owed {
        command.arg(&*owed.key);
    }
    for owed in owed {
        command.arg(owed.state.anchor).arg(u64::from(owed.count) * owed.rule.cost.max(1));
    }
    link.store.eval(Lane::Decisions, shard, script, &command).await.map(drop)
}
