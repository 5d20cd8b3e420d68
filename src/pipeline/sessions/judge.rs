//! Whether the caller's session lives: by what the store said in the request's own exchange, else by what is known
//! here. Its use is written down in the background; no request waits for that.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::super::exchange::Seen;
use super::super::gateway::Shared;
use super::stored::{self, NotChanged};
use crate::clock::UnixMillis;
use crate::identity::Identity;
use crate::metrics::SessionEvent;
use crate::redis::Lane;
use crate::sessions::local::Known;
use crate::sessions::{Session, record};

/// Pauses before the store is asked again for a session that it has not got: the token may be ahead of the news of
/// its login.
const REREADS: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(60), Duration::from_millis(110)];
/// Requests that ask again at the same time; those beyond it are refused by what the store has said.
const MAX_REREADS: usize = 256;
/// Uses that are written down at the same time; what comes then is written down with the next use.
const MAX_TOUCHES: usize = 1_024;

/// What there is to say of a caller's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pipeline) enum Judged {
    /// It lives.
    Live,
    /// There is none.
    None,
    /// The store gave no answer, and this instance has not heard of it.
    Unknown,
}

impl Shared {
    /// Whether the session of `identity` lives; `seen` is what the store holds for its account. A live one is in use
    /// from now on.
    pub(in crate::pipeline) async fn judge_session(
        self: &Arc<Self>,
        identity: &Arc<Identity>,
        seen: Seen,
        now: UnixMillis,
    ) -> Judged {
        let judged = match self.judge_seen(identity, seen, now) {
            // Boxed, because it is not the rule: the future of every request is as large as its largest step.
            Judged::None => Box::pin(self.judge_again(identity, now)).await,
            judged => judged,
        };
        if judged == Judged::None {
            self.sessions.count(SessionEvent::Refused);
        }
        judged
    }

    fn judge_seen(self: &Arc<Self>, identity: &Arc<Identity>, seen: Seen, now: UnixMillis) -> Judged {
        let value = match seen {
            Seen::Unknown => return self.judge_locally(identity, now),
            Seen::Absent => return self.judge_absent(identity, now),
            Seen::Value(value) => value,
        };
        let (local, key, token) = (&self.sessions.local, &identity.keys.session, identity.keys.token());
        let Some((times, client)) = record::find(&value, token).filter(|(times, _)| times.is_live(now))
        else {
            return self.judge_absent(identity, now);
        };
        let session = || Session { token: token.into(), times, client };
        match local.heard(key, token, session, times, now) {
            Some(due) => {
                if due && !self.write_use_down(identity, value, now) {
                    local.not_written(key, token);
                }
                Judged::Live
            }
            None => Judged::None,
        }
    }

    /// The store holds no live session of this token.
    fn judge_absent(&self, identity: &Identity, now: UnixMillis) -> Judged {
        match self.sessions.local.peek(&identity.keys.session, identity.keys.token(), now) {
            Known::Pending => Judged::Live,
            Known::Live | Known::Ended | Known::Idle | Known::Nothing => Judged::None,
        }
    }

    fn judge_locally(&self, identity: &Identity, now: UnixMillis) -> Judged {
        let key = &identity.keys.session;
        let away = self.store.as_ref().is_some_and(|store| !store.available(store.shard(key.as_bytes())));
        match self.sessions.local.go_on(key, identity.keys.token(), away, now) {
            Known::Live | Known::Pending => Judged::Live,
            Known::Ended => Judged::None,
            Known::Idle | Known::Nothing if self.store.is_none() => Judged::None,
            // It may have been opened or used at another instance.
            Known::Idle | Known::Nothing => Judged::Unknown,
        }
    }

    /// Asks again where the session may only just have been opened: by another instance, or by this one after the
    /// store was asked.
    async fn judge_again(self: &Arc<Self>, identity: &Arc<Identity>, now: UnixMillis) -> Judged {
        let Some(store) = &self.store else { return Judged::None };
        let (local, key, token) = (&self.sessions.local, &identity.keys.session, identity.keys.token());
        let known = local.peek(key, token, now);
        let pauses = match known {
            Known::Live | Known::Pending => REREADS.as_slice().get(..1),
            // What was idle here may be used or opened again elsewhere.
            Known::Nothing | Known::Idle if local.may_look_again(key, token, now) => Some(REREADS.as_slice()),
            Known::Nothing | Known::Idle | Known::Ended => None,
        };
        let shard = store.shard(key.as_bytes());
        let place = pauses.and_then(|pauses| self.sessions.rereads.enter(pauses));
        let pauses = place.as_ref().map_or(&[][..], |(_, pauses)| pauses);
        let mut answered = true;
        for pause in pauses {
            tokio::time::sleep(*pause).await;
            let answer = store.call(Lane::Decisions, shard, &stored::get(key)).await;
            let seen = match answer.map_err(NotChanged::from).and_then(stored::value) {
                Ok(value) if !value.is_empty() => Seen::Value(value),
                Ok(_) | Err(NotChanged::Refused) => Seen::Absent,
                // What the store has said already stands.
                Err(NotChanged::Memory | NotChanged::Away) => {
                    answered = false;
                    Seen::Absent
                }
            };
            match self.judge_seen(identity, seen, now) {
                Judged::None => {}
                judged => return judged,
            }
        }
        if answered && pauses.len() == REREADS.len() {
            local.looked_in_vain(key, token, self.clock.now());
        }
        local.absent(key, token);
        Judged::None
    }

    /// Starts to write down that the session is in use; `value` is what the store holds. Returns whether it was
    /// started.
    fn write_use_down(self: &Arc<Self>, identity: &Arc<Identity>, value: Bytes, now: UnixMillis) -> bool {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return false };
        let place = Place::take(self);
        if place.0.sessions.touches.load(Ordering::Relaxed) > MAX_TOUCHES {
            return false;
        }
        let identity = Arc::clone(identity);
        runtime.spawn(async move {
            let shared = &place.0;
            let (key, token, rules) = (&identity.keys.session, identity.keys.token(), &shared.sessions.rules);
            let written = shared.change_sessions(key, &value, |record| record.touch(token, rules, now)).await;
            if written.is_err() {
                shared.sessions.local.not_written(key, token);
            }
        });
        true
    }
}

/// The places of requests that ask again.
pub(super) struct Rereads(Semaphore);

impl Rereads {
    pub(super) fn new() -> Self {
        Self(Semaphore::new(MAX_REREADS))
    }

    /// A place for a request that asks again after each of these pauses; `None`: too many do.
    fn enter<'p>(&self, pauses: &'p [Duration]) -> Option<(SemaphorePermit<'_>, &'p [Duration])> {
        self.0.try_acquire().ok().map(|place| (place, pauses))
    }
}

/// One of the tasks under way; its place is free again when this is dropped.
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Self {
        shared.sessions.touches.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.sessions.touches.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_so_many_ask_again_and_those_who_have_done_make_room() {
        let rereads = Rereads::new();
        let mut asking: Vec<_> = (0..256).map(|_| rereads.enter(&REREADS).unwrap()).collect();
        assert!(rereads.enter(&REREADS).is_none() && rereads.enter(&[]).is_none());
        asking.truncate(200);
        let more: Vec<_> = (0..100).filter_map(|_| rereads.enter(&REREADS)).collect();
        assert_eq!(more.len(), 56);
        assert_eq!(more[0].1, REREADS);
    }
}
