//! Revocations that the store has lost: it came back empty or older than it was, was emptied, or forgot some. Whoever
//! knows them gives them back, so that an instance that starts later learns them too.
//!
//! All that is known is compared with what the store holds, a little at a time and for ever. Only lives are compared,
//! never ends: the clocks here and there need not agree.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, Pipeline, RedisResult, Value, cmd};
use async_trait::async_trait;

use super::gateway::Shared;
use super::revoke::careful_command;
use crate::clock::UnixMillis;
use crate::identity::revocation::{Cursor, Effect, Revocation};
use crate::redis::{Link, Look};

/// Revocations looked at in one go.
const BATCH: usize = 500;
/// Between two looks while nothing is missing.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two looks after something was missing, and after the store was away, until all was looked at.
const SHORT_PAUSE: Duration = Duration::from_millis(100);
/// What ends sooner than this may have ended there already, and is not worth giving back.
const SLACK: Duration = Duration::from_secs(2);
/// By so much may what stands there end sooner: the clocks of instances do not agree.
const TOLERANCE: Duration = Duration::from_secs(60);

/// One node being looked at.
pub(super) struct Restorer {
    shared: Arc<Shared>,
    cursor: Cursor,
    /// Whether something may be missing, so that the rest is looked at without delay.
    hurries: bool,
    /// Given back on this way through all that is known.
    count: usize,
}

impl Restorer {
    /// Looks at all soon, each instance in an order of its own: one finds what another has given back.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, cursor: Cursor::anywhere(), hurries: true, count: 0 }
    }

    /// Gives these back, and returns how many of them were really missing. Other instances that have just started do
    /// not know them: they are told.
    async fn give_back(&self, link: &mut Link<'_>, lost: Vec<Revocation>) -> RedisResult<usize> {
        let (Some(store), now) = (&self.shared.store, self.shared.clock.now()) else { return Ok(0) };
        let (lost, commands): (Vec<_>, Vec<_>) = lost
            .into_iter()
            .filter_map(|revocation| {
                let command = careful_command(&revocation, revocation.ttl(now)?);
                Some((revocation, command))
            })
            .unzip();
        let written = send(link, &commands).await?;
        // One that is refused stops none of the others, and is tried again on the next way through.
        let refused = written.iter().find_map(|answer| match answer {
            Value::ServerError(error) => Some(error),
            _ => None,
        });
        if let Some(error) = refused {
            tracing::debug!(?error, "Redis does not take back a revocation");
        }
        let was_missing = |answer: &Value| matches!(answer, Value::Int(1));
        let missing = lost.iter().zip(&written).filter(|(_, answer)| was_missing(answer));
        let news: Vec<_> =
            missing.map(|(revocation, _)| store.publication(revocation.to_message().as_bytes())).collect();
        send(link, &news).await?;
        Ok(news.len())
    }
}

#[async_trait]
impl Look for Restorer {
    async fn look(&mut self, link: &mut Link<'_>) -> RedisResult<Duration> {
        let now = self.shared.clock.now();
        let (mut batch, goes_on) = self.shared.known.walk(&mut self.cursor, BATCH, now.plus(SLACK));
        batch.retain(|revocation| link.holds(revocation.key.as_bytes()));
        let lost = lost(link, batch, now).await?;
        if !lost.is_empty() {
            let missing = self.give_back(link, lost).await?;
            self.hurries |= missing > 0;
            self.count += missing;
        }
        if !goes_on {
            if self.count > 0 {
                let count = self.count;
                tracing::warn!(count, "Redis had lost revocations that are known here: it got them back");
            }
            // Once more without delay, where much was missing: it may have been lost while this was under way.
            (self.cursor, self.hurries, self.count) = (Cursor::anywhere(), self.count > BATCH, 0);
        }
        let pause = if self.hurries { SHORT_PAUSE } else { PAUSE };
        // Instances do not keep time with each other.
        Ok(pause.mul_f64(0.75 + 0.5 * fastrand::f64()))
    }
}

/// Those that the node has not got, or not for so long, or not so far.
async fn lost(link: &mut Link<'_>, known: Vec<Revocation>, now: UnixMillis) -> RedisResult<Vec<Revocation>> {
    let questions: Vec<_> =
        known.iter().flat_map(|revocation| [ask("PTTL", revocation), ask("GET", revocation)]).collect();
    let answers = send(link, &questions).await?;
    let held = known.into_iter().zip(answers.chunks(2));
    let lost = held.filter(|(revocation, answers)| is_lost(revocation, answers, now));
    Ok(lost.map(|(revocation, _)| revocation).collect())
}

/// What the node answers to each: in a cluster a key may have moved, and its new node is looked at too.
async fn send(link: &mut Link<'_>, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
    if commands.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = Pipeline::with_capacity(commands.len());
    for command in commands {
        pipeline.add_command(command.clone());
    }
    link.connection().send_packed_commands(&pipeline, 0, commands.len()).await
}

fn ask(question: &str, revocation: &Revocation) -> Cmd {
    let mut command = cmd(question);
    command.arg(&*revocation.key);
    command
}

/// Whether what stands there, by its remaining life and its value, says less than the revocation. What is of another
/// type is somebody else's.
fn is_lost(revocation: &Revocation, answers: &[Value], now: UnixMillis) -> bool {
    let (Some(wanted), [Value::Int(left), value]) = (revocation.ttl(now), answers) else { return false };
    let text = match value {
        Value::Nil => return true,
        Value::BulkString(text) => text,
        _ => return false,
    };
    // Without an end it is negative.
    let ends_sooner =
        u64::try_from(*left).is_ok_and(|left| Duration::from_millis(left).saturating_add(TOLERANCE) < wanted);
    let is_weaker = match revocation.effect {
        Effect::IssuedBefore(second) => {
            let held = std::str::from_utf8(text).ok().and_then(|text| text.trim().parse::<u64>().ok());
            // What is no number revokes everything.
            held.is_some_and(|held| held < second)
        }
        Effect::Token => false,
    };
    ends_sooner || is_weaker
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_there_is_lost_where_it_says_less() {
        let revocation = |effect| Revocation { key: "k".into(), effect, until: UnixMillis(700_000) };
        let (token, cutoff) = (revocation(Effect::Token), revocation(Effect::IssuedBefore(50)));
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let wrong_type = || Value::Okay;
        for (known, left, value, lost) in [
            (&token, -2, Value::Nil, true),
            (&token, -1, text("1"), false),
            (&token, 600_000, text("1"), false),
            // A clock that is ahead or behind.
            (&token, 595_000, text("1"), false),
            (&token, 605_000, text("1"), false),
            (&token, 541_000, text("1"), false),
            (&token, 539_000, text("1"), true),
            (&token, 900_000, text("x"), false),
            (&token, 5, wrong_type(), false),
            (&cutoff, 600_000, text("50"), false),
            (&cutoff, 600_000, text("49"), true),
            (&cutoff, 600_000, text("51"), false),
            (&cutoff, -1, text("49"), true),
            (&cutoff, 600_000, text("all"), false),
        ] {
            let answers = [Value::Int(left), value.clone()];
            assert_eq!(is_lost(known, &answers, UnixMillis(100_000)), lost, "{known:?} {left} {value:?}");
        }
        assert!(!is_lost(&token, &[], UnixMillis(0)), "nothing was answered");
        assert!(!is_lost(&token, &[wrong_type(), Value::Nil], UnixMillis(0)), "its key has moved");
        assert!(!is_lost(&token, &[Value::Int(-2), Value::Nil], UnixMillis(700_000)), "it has ended");
    }
}
