//! The one question a request asks the store: is its token revoked, its user banned or cut off, what are the
//! generations of its cache tags, and do all of its limits admit it? One round trip, decided atomically there.

use std::sync::LazyLock;

use bytes::Bytes;

use super::gateway::Shared;
use crate::cache::generations::Generations;
use crate::cache::tag::Tags;
use crate::clock::UnixMillis;
use crate::identity::Identity;
use crate::limits::batch::{Batch, Counter, Item, ItemReply};
use crate::limits::{Checks, Decision, gate};
use crate::redis::{Lane, Script, Store};

/// The script that decides.
pub static GATE: LazyLock<Script> = LazyLock::new(|| Script::new(gate::GATE));

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
    if !store.available() {
        return None;
    }
    let guards: [&[u8]; 3] = identity.map_or([b""; 3], |identity| {
        [identity.keys.blacklist.as_bytes(), identity.keys.ban.as_bytes(), identity.keys.cutoff.as_bytes()]
    });
    // The session is only asked for so that sessions add no round trip; nothing depends on it yet.
    let session: Option<&[u8]> = identity.map(|identity| identity.keys.session.as_bytes());
    let tag_keys: Vec<Box<str>> =
        tags.map(|(generations, tags)| generations.keys(tags).collect()).unwrap_or_default();
    let reported: Vec<&[u8]> = session.into_iter().chain(tag_keys.iter().map(|key| key.as_bytes())).collect();
    let (reply, item) = {
        let counters = checks.iter().map(|check| Counter {
            key: checks.key(check),
            rule: check.rule,
            penalise: check.penalise,
            shadow: check.shadow,
            known_end: check.known_end,
        });
        let item = Item {
            guards: identity.map(|_| guards.to_vec()).unwrap_or_default(),
            cutoff: identity.map(|_| CUTOFF),
            issued_at: identity.and_then(|identity| identity.issued_at).unwrap_or(0),
            counters: counters.collect(),
            count: 1,
        };
        let batch = Batch { tags: reported, items: vec![item] };
        let mut command = shared.gate.command();
        gate::encode(&batch, &mut command);
        let value = store.eval(Lane::Decisions, shared.gate, &command).await.ok()?;
        match gate::decode(value, &batch) {
            Ok(mut reply) => {
                let item = reply.items.pop()?;
                let violated = batch.items.first().map(|asked| item.violated(asked)).unwrap_or_default();
                (reply, (item, violated))
            }
            Err(malformed) => {
                tracing::error!(%malformed, "the store answered what the gate script cannot have said");
                return None;
            }
        }
    };
    match item {
        (ItemReply::Barred(BLACKLIST), _) => Some(Answer::Revoked),
        (ItemReply::Barred(BAN), _) => Some(Answer::Banned),
        (ItemReply::Barred(_), _) => Some(Answer::CutOff),
        (ItemReply::Judged { counters, .. }, violated) => {
            for ((_, answer), counted) in checks.pairs().zip(counters) {
                answer.state = counted.state;
            }
            let decision = checks.conclude(violated, reply.clock.unwrap_or(checks.at()));
            shared.local.observe(checks, reply.clock, now);
            let generations = reply.tags.into_iter().skip(usize::from(session.is_some())).collect();
            Some(Answer::Judged { decision, generations })
        }
    }
}
