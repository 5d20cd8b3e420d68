//! Revocations that the store has lost: it came back empty or older than it was, was emptied, or forgot some. Whoever
//! knows them gives them back, so that an instance that starts later learns them too.

use std::time::Duration;

use ::redis::{Pipeline, RedisResult, Value, cmd};

use super::gateway::Shared;
use super::revoke::command;
use crate::clock::UnixMillis;
use crate::identity::revocation::{Cursor, Effect, Revocation};
use crate::redis::Link;

/// Revocations looked at in one go.
const BATCH: usize = 500;
/// Revocations looked at to see whether anything was lost at all.
const SAMPLE: usize = 64;
/// What ends sooner than this may have ended there already, and is not worth giving back.
const SLACK: Duration = Duration::from_secs(2);

impl Shared {
    /// Looks at some of the revocations that are known here, and gives all of them back where one of those is lost.
    pub(super) async fn look_for_lost_revocations(&self, link: &mut Link<'_>) -> RedisResult<()> {
        let mut sample = self.known.sample(SAMPLE, self.clock.now().plus(SLACK));
        sample.retain(|revocation| link.holds(revocation.key.as_bytes()));
        if self.lost(link, sample).await?.is_empty() {
            return Ok(());
        }
        self.restore_revocations(link).await
    }

    /// Gives the node what it lacks of the revocations that are known here. None that it holds is weakened.
    pub(super) async fn restore_revocations(&self, link: &mut Link<'_>) -> RedisResult<()> {
        let (mut cursor, mut count) = (Cursor::default(), 0);
        loop {
            let mut batch = self.known.walk(&mut cursor, BATCH, self.clock.now().plus(SLACK));
            if batch.is_empty() {
                break;
            }
            batch.retain(|revocation| link.holds(revocation.key.as_bytes()));
            let lost = self.lost(link, batch).await?;
            let now = self.clock.now();
            let commands: Vec<_> = lost
                .iter()
                .filter_map(|revocation| Some(command(revocation, revocation.ttl(now)?)))
                .collect();
            if !commands.is_empty() {
                count += link.send(&commands).await?.into_iter().filter(|written| *written).count();
            }
        }
        if count > 0 {
            tracing::warn!(count, "Redis had lost revocations that are known here: it got them back");
        }
        Ok(())
    }

    /// Those that the node has not got, or not for so long, or not so far.
    async fn lost(&self, link: &mut Link<'_>, known: Vec<Revocation>) -> RedisResult<Vec<Revocation>> {
        if known.is_empty() {
            return Ok(known);
        }
        let mut questions = Pipeline::with_capacity(2 * known.len());
        for revocation in &known {
            questions.add_command(ask("PEXPIRETIME", revocation)).add_command(ask("GET", revocation));
        }
        // Each for itself: in a cluster a key may have moved, and its new node is looked at too.
        let answers = link.connection().send_packed_commands(&questions, 0, questions.len()).await?;
        let held = known.into_iter().zip(answers.chunks(2));
        let lost = held.filter(|(revocation, answers)| is_lost(revocation, answers));
        Ok(lost.map(|(revocation, _)| revocation).collect())
    }
}

fn ask(question: &str, revocation: &Revocation) -> ::redis::Cmd {
    let mut command = cmd(question);
    command.arg(&*revocation.key);
    command
}

/// Whether what stands there, by its end and its value, says less than the revocation.
fn is_lost(revocation: &Revocation, answers: &[Value]) -> bool {
    let [Value::Int(end), value] = answers else { return false };
    // -2: there is nothing; -1: it has no end.
    let ends_sooner = match *end {
        -1 => false,
        end => UnixMillis(u64::try_from(end).unwrap_or(0)).plus(SLACK) < revocation.until,
    };
    let is_weaker = match (revocation.effect, value) {
        (Effect::IssuedBefore(second), Value::BulkString(text)) => {
            let held = std::str::from_utf8(text).ok().and_then(|text| text.trim().parse::<u64>().ok());
            // What is no number revokes everything.
            held.is_some_and(|held| held < second)
        }
        _ => false,
    };
    ends_sooner || is_weaker
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_there_is_lost_where_it_says_less() {
        let revocation = |effect, until| Revocation { key: "k".into(), effect, until: UnixMillis(until) };
        let token = revocation(Effect::Token, 100_000);
        let cutoff = revocation(Effect::IssuedBefore(50), 100_000);
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let moved = || Value::Nil;
        for (known, end, value, lost) in [
            (&token, -2, Value::Nil, true),
            (&token, -1, text("1"), false),
            (&token, 100_000, text("1"), false),
            (&token, 99_000, text("1"), false),
            (&token, 90_000, text("1"), true),
            (&token, 200_000, text("x"), false),
            (&cutoff, 100_000, text("50"), false),
            (&cutoff, 100_000, text("49"), true),
            (&cutoff, 100_000, text("51"), false),
            (&cutoff, -1, text("49"), true),
            (&cutoff, 100_000, text("all"), false),
        ] {
            assert_eq!(is_lost(known, &[Value::Int(end), value.clone()]), lost, "{known:?} {end} {value:?}");
        }
        assert!(!is_lost(&token, &[moved(), moved()]) && !is_lost(&token, &[]));
    }
}
