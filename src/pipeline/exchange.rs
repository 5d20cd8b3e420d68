//! The one question a request asks the store: is its token revoked, its user banned or cut off, what are the
//! generations of its cache tags, and do all of its limits admit it? One round trip, decided atomically there.

use std::sync::LazyLock;

use bytes::Bytes;

use super::gateway::Shared;
use crate::cache::generations::Generations;
use crate::cache::tag::Tags;
use crate::clock::UnixMillis;
use crate::identity::Identity;
use crate::limits::gate::{self, GuardVerdict, Question};
use crate::limits::{Checks, Decision};
use crate::redis::{Lane, Script, Store};

/// The script that decides.
pub static GATE: LazyLock<Script> = LazyLock::new(|| Script::new(gate::SCRIPT));

/// Positions of the guards in the question.
const BLACKLIST: usize = 0;
const BAN: usize = 1;
const CUTOFF: usize = 2;

/// What the store said.
#[derive(Debug)]
pub(super) enum Answer {
    /// The token is on the blacklist.
    Revoked,
    /// The subject's tokens of that time were all revoked.
    CutOff,
    /// The subject is banned.
    Banned,
    /// No guard bars the request; the counters' states are in the checks.
    Judged {
        /// What the limits decided.
        decision: Decision,
        /// Generations of the tags, in their order; empty when no tags were asked for.
        generations: Vec<Option<Bytes>>,
    },
}

/// Asks the store. `None` when it gave no usable answer: the caller decides from memory.
pub(super) async fn ask(
    store: &Store,
    shared: &Shared,
    identity: Option<&Identity>,
    tags: Option<(&Generations, &Tags)>,
    checks: &mut Checks,
    now: UnixMillis,
) -> Option<Answer> {
    let guards: [&[u8]; 3] = identity.map_or([b""; 3], |identity| {
        [identity.keys.blacklist.as_bytes(), identity.keys.ban.as_bytes(), identity.keys.cutoff.as_bytes()]
    });
    // The session is only asked for so that sessions add no round trip; nothing depends on it yet.
    let session: Option<&[u8]> = identity.map(|identity| identity.keys.session.as_bytes());
    let tag_keys: Vec<Box<str>> =
        tags.map(|(generations, tags)| generations.keys(tags).collect()).unwrap_or_default();
    let reported: Vec<&[u8]> = session.into_iter().chain(tag_keys.iter().map(|key| key.as_bytes())).collect();
    let question = Question {
        guards: if identity.is_some() { &guards } else { &[] },
        tags: &reported,
        cutoff: identity.map(|_| CUTOFF),
        issued_at: identity.and_then(|identity| identity.issued_at).unwrap_or(0),
    };
    // In a cluster one call reaches the keys of one shard only.
    let first = question.guards.iter().chain(question.tags).next().copied();
    let first = first.or_else(|| checks.iter().next().map(|check| checks.key(check)));
    let home = store.shard(first.unwrap_or_default());
    if !store.available(home) {
        return None;
    }
    let mut command = shared.gate.command();
    gate::encode(&question, checks, &mut command);
    let value = store.eval(Lane::Decisions, home, shared.gate, &command).await.ok()?;
    let reply = match gate::decode(value, &question, checks) {
        Ok(reply) => reply,
        Err(malformed) => {
            tracing::error!(%malformed, "the store answered what the gate script cannot have said");
            return None;
        }
    };
    match (reply.verdict, reply.decision) {
        (GuardVerdict::Refused(BLACKLIST), _) => Some(Answer::Revoked),
        (GuardVerdict::Refused(BAN), _) => Some(Answer::Banned),
        (GuardVerdict::Refused(_), _) => Some(Answer::CutOff),
        (GuardVerdict::Clear, Some(decision)) => {
            shared.local.observe(checks, reply.clock, now);
            let generations = reply.tags.into_iter().skip(usize::from(session.is_some())).collect();
            Some(Answer::Judged { decision, generations })
        }
        (GuardVerdict::Clear, None) => None,
    }
}
