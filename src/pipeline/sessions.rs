//! Sessions as logins, logouts and operators change them: in the store of all instances, and in the memory of this one
//! where there is none or while it is away. What a session is and how long it lives is decided in [`crate::sessions`].

mod hand_over;
mod judge;
mod stored;
pub mod sweep;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;

pub(super) use self::judge::Judged;
use self::judge::Rereads;
pub use self::stored::COMPARE_AND_SET;
use self::stored::NotChanged;
use super::gateway::Shared;
use crate::clock::UnixMillis;
use crate::identity::revocation::{Effect, Revocation};
use crate::identity::{Identity, blacklist_key, subject_key};
use crate::metrics::{Counters, Metrics, SessionEvent};
use crate::sessions::local::Change;
use crate::sessions::{Local, Record, Rules, Session, Times, record};

/// What sessions need beside the store.
pub struct Sessions {
    rules: Rules,
    local: Local,
    key_prefix: Box<str>,
    /// How long a token without an end of its own stays revoked when its session is ended.
    longest_revocation: Duration,
    /// Tasks that write down the use of a session.
    touches: AtomicUsize,
    /// Requests that ask again for sessions that the store has not got.
    rereads: Rereads,
    /// Whether what could not be handed over is tried again in a moment anyway.
    hand_over_due: Arc<AtomicBool>,
    events: Counters<SessionEvent>,
}

impl Sessions {
    /// None yet. `accounts` are remembered here at most; keys begin with `key_prefix`, and a token without an end of
    /// its own stays revoked for `longest_revocation` when its session is ended.
    pub fn new(
        rules: Rules,
        accounts: usize,
        key_prefix: &str,
        longest_revocation: Duration,
        metrics: &Metrics,
    ) -> Self {
        Self {
            rules,
            local: Local::new(accounts, rules, metrics.families().sessions_dropped.clone()),
            key_prefix: key_prefix.into(),
            longest_revocation,
            touches: AtomicUsize::new(0),
            rereads: Rereads::new(),
            hand_over_due: Arc::default(),
            events: metrics.sessions(),
        }
    }

    /// Whether the store has not got all of what happened here.
    pub(super) fn owe(&self) -> bool {
        self.local.owes()
    }

    /// Whether a use is being written down.
    pub(super) fn are_written(&self) -> bool {
        self.touches.load(Ordering::Relaxed) > 0
    }

    /// What the keys of sessions and revocations begin with, whether there is a store or not.
    pub fn key_prefix(&self) -> &str {
        &self.key_prefix
    }

    /// Counts one event.
    pub fn count(&self, event: SessionEvent) {
        self.events.count(event);
    }
}

/// What became of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The session is open.
    Opened,
    /// It is open, and so many older ones had to end.
    Evicted(usize),
    /// It is open on this instance; the store is away and is told later.
    Pending,
    /// It is not: the token is revoked.
    Revoked,
    /// It is not: the store holds something else under this name.
    Refused,
}

/// What became of sessions that were to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How many were known and live.
    pub count: usize,
    /// Whether all instances know; `false` while the store is away.
    pub shared: bool,
    /// Whether these are all there were; `false` while the store is away, when there may be others that only it knows.
    pub complete: bool,
}

/// The live sessions of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// In the order in which they were opened, by their clocks.
    pub sessions: Vec<Session>,
    /// Whether these are all of them; `false`: those that this instance knows, while the store is away.
    pub shared: bool,
}

impl Shared {
    /// This instance knows from now on that the session is open; the store is told by [`Self::open_session`].
    pub fn note_login(&self, identity: &Identity, client: IpAddr, now: UnixMillis) {
        if self.known.is_revoked(identity, now) {
            return;
        }
        let session = self.new_session(identity, client, now);
        self.sessions.local.open(&identity.keys.session, session, self.store.is_some());
    }

    /// Opens the session of this token, or goes on with it, and ends the oldest ones beyond the limit per user.
    pub async fn open_session(&self, identity: &Arc<Identity>, client: IpAddr) -> Opened {
        let opened = self.open(identity, client).await;
        self.sessions.count(match opened {
            Opened::Revoked | Opened::Refused => SessionEvent::NotOpened,
            Opened::Opened | Opened::Evicted(_) | Opened::Pending => SessionEvent::Opened,
        });
        opened
    }

    async fn open(&self, identity: &Identity, client: IpAddr) -> Opened {
        let now = self.clock.now();
        if self.known.is_revoked(identity, now) {
            return Opened::Revoked;
        }
        let (sessions, key, token) = (&self.sessions, &identity.keys.session, identity.keys.token());
        let session = self.new_session(identity, client, now);
        let is_revoked = |token: &str| self.is_token_revoked(token, now);
        // None of them takes the place of one that lives.
        sessions.local.let_go(key, is_revoked);
        sessions.local.open(key, session.clone(), self.store.is_some());
        // Of an attempt whose answer was lost, too: it may have been made.
        let mut last = Vec::new();
        let changed = self.change_sessions(key, b"", |record| {
            record.let_go(is_revoked);
            last = record.open(session.clone(), &sessions.rules, now);
        });
        let changed = changed.await;
        let evicted = match changed {
            Ok(()) => {
                sessions.local.settle(key, &[Change::Lives(session)]);
                last
            }
            Err(NotChanged::Refused) => {
                sessions.local.end(key, Some(token), false, now);
                return Opened::Refused;
            }
            Err(NotChanged::Memory) => sessions.local.trim(key, token, now),
            Err(NotChanged::Away) => {
                add_missing(&mut last, sessions.local.trim(key, token, now));
                sessions.local.still_owes(key);
                self.evict(key, &last, now).await;
                self.hand_over_sessions_soon();
                return Opened::Pending;
            }
        };
        self.evict(key, &evicted, now).await;
        if evicted.is_empty() { Opened::Opened } else { Opened::Evicted(evicted.len()) }
    }

    /// Ends the session of this token, if it has one. The token is not revoked by this.
    pub async fn end_session(&self, identity: &Identity) {
        let Ended { count, .. } =
            self.take_out(&identity.keys.session, Some(identity.keys.token()), false, None).await;
        (0..count).for_each(|_| self.sessions.count(SessionEvent::Ended));
    }

    /// Ends all sessions of the account, or the one named; each one's token is revoked until its own end. The token of the
    /// one named is revoked also where the session is not known here and nobody can be asked. The store is given at
    /// least `patience` for each answer, where no client waits.
    pub async fn end_sessions(&self, account: &str, only: Option<&str>, patience: Option<Duration>) -> Ended {
        let ended = self.take_out(&self.session_key(account), only, true, patience).await;
        (0..ended.count).for_each(|_| self.sessions.count(SessionEvent::Ended));
        if let Some(token) =
            only.filter(|token| ended.count == 0 && !ended.complete && record::is_token(token))
        {
            self.revoke_within(self.end_of_token(token, None, self.clock.now()), patience).await;
        }
        ended
    }

    /// The live sessions of an account.
    pub async fn list_sessions(&self, account: &str) -> Listed {
        let (now, key) = (self.clock.now(), self.session_key(account));
        let (mut sessions, shared) = match self.stored_sessions(&key).await {
            Ok(record) => (record.sessions().to_vec(), true),
            Err(NotChanged::Memory) => (self.sessions.local.list(&key, now), true),
            Err(_) => (self.sessions.local.list(&key, now), false),
        };
        // The line of a token that was revoked by its id alone stays until the next login or sweep.
        sessions.retain(|session| session.times.is_live(now) && !self.is_token_revoked(&session.token, now));
        sessions.sort_by_key(|session| session.times.opened);
        Listed { sessions, shared }
    }

    /// Takes sessions out of the store and of this instance's memory; with `revoke` their tokens go too.
    async fn take_out(
        &self,
        key: &Arc<str>,
        only: Option<&str>,
        revoke: bool,
        patience: Option<Duration>,
    ) -> Ended {
        let (now, local) = (self.clock.now(), &self.sessions.local);
        // Of an attempt whose answer was lost, too: it may have been made.
        let mut ended = Vec::new();
        let taken = self.change_sessions_within(key, b"", patience, |record| ended = record.end(only)).await;
        let away = matches!(taken, Err(NotChanged::Away));
        let shared = !away;
        add_missing(&mut ended, local.end(key, only, away, now));
        if away {
            self.hand_over_sessions_soon();
        }
        ended.retain(|session| session.times.is_live(now));
        let mut told = true;
        if revoke {
            told = self.revoke_tokens(&ended, now, patience).await;
        }
        Ended { count: ended.len(), shared: shared && told, complete: !away }
    }

    /// Ends what had to give way to other sessions.
    async fn evict(&self, key: &Arc<str>, evicted: &[Session], now: UnixMillis) {
        for session in evicted {
            self.sessions.local.end(key, Some(&session.token), false, now);
            self.sessions.count(SessionEvent::Evicted);
        }
        self.revoke_tokens(evicted, now, None).await;
    }

    /// Revokes the tokens of sessions that were ended, each until its own end. Returns whether the store knows.
    async fn revoke_tokens(&self, sessions: &[Session], now: UnixMillis, patience: Option<Duration>) -> bool {
        let told = join_all(sessions.iter().map(|session| {
            let revocation = self.end_of_token(&session.token, session.times.token_until, now);
            self.revoke_within(revocation, patience)
        }));
        told.await.into_iter().all(|told| told)
    }

    /// The revocation of the token of a session, until the token's own end where that is known.
    fn end_of_token(&self, token: &str, until: Option<UnixMillis>, now: UnixMillis) -> Revocation {
        Revocation {
            key: blacklist_key(&self.sessions.key_prefix, token).into(),
            effect: Effect::Token,
            until: until.unwrap_or_else(|| now.plus(self.sessions.longest_revocation)),
        }
    }

    fn new_session(&self, identity: &Identity, client: IpAddr, now: UnixMillis) -> Session {
        let times = Times::opened(&self.sessions.rules, identity.usable_until, now);
        Session { token: identity.keys.token().into(), times, client: Some(client) }
    }

    /// Whether the token of a session is known to be revoked.
    fn is_token_revoked(&self, token: &str, now: UnixMillis) -> bool {
        self.known.holds(&blacklist_key(&self.sessions.key_prefix, token), now)
    }

    fn session_key(&self, account: &str) -> Arc<str> {
        subject_key(&self.sessions.key_prefix, "session", account, self.keys.is_tagged()).into()
    }

    fn hand_over_sessions_soon(&self) {
        if let Some(store) = &self.store {
            store.hand_over_soon();
        }
    }

    /// What the store holds under `key`.
    async fn stored_sessions(&self, key: &str) -> Result<Record, NotChanged> {
        let store = self.store.as_ref().ok_or(NotChanged::Memory)?;
        stored::read(store, key).await.map(|value| Record::parse(&value))
    }
}

/// Adds those of `more` whose tokens are not there yet.
fn add_missing(sessions: &mut Vec<Session>, more: Vec<Session>) {
    for session in more {
        if !sessions.iter().any(|known| known.token == session.token) {
            sessions.push(session);
        }
    }
}
