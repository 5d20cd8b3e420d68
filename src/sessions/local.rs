//! The sessions that this instance knows: all of them where there is no store, else those that were used here, so that
//! they go on while the store is away. Bounded; it never talks to the store, but remembers what that is owed.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ahash::RandomState;
use parking_lot::Mutex;
use prometheus::IntCounter;
use quick_cache::sync::Cache;

use super::record::{MAX_LINES, Record, Rules, Session, Times};
use crate::clock::UnixMillis;

/// Accounts whose sessions are remembered by default.
pub const DEFAULT_ACCOUNTS: usize = 100_000;
/// A session that was looked for in vain is looked for again no sooner, in milliseconds.
const LOOK_AGAIN_MS: u64 = 1_000;

/// What is known here of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It lives.
    Live,
    /// It lives whatever the store says, which has not got it yet.
    Pending,
    /// It has ended.
    Ended,
    /// It has ended, unless it was used elsewhere since it was last heard of.
    Idle,
    /// Nothing.
    Nothing,
}

/// How the store is to be brought up to what happened here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    Nothing,
    /// It was opened here: it lives, whatever the store says.
    Opened,
    /// It went on here while the store was away.
    Used,
    /// It was ended here.
    Ended,
}

/// A change that the store has not got yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This session was opened, or used.
    Lives(Session),
    /// The session of this token was ended.
    Ended(Box<str>),
}

impl Change {
    /// Makes the change; returns the sessions that had to end for it, its own among them where others are newer.
    pub fn apply(&self, record: &mut Record, rules: &Rules, now: UnixMillis) -> Vec<Session> {
        match self {
            Self::Lives(session) if session.times.is_live(now) => record.restore(session.clone(), rules, now),
            Self::Lives(_) => Vec::new(),
            Self::Ended(token) => {
                record.end(Some(token));
                Vec::new()
            }
        }
    }

    /// The session that it lets live.
    pub fn lives(&self) -> Option<&Session> {
        match self {
            Self::Lives(session) => Some(session),
            Self::Ended(_) => None,
        }
    }
}

#[derive(Debug)]
struct Entry {
    session: Session,
    owed: Owed,
    /// When a use was last written down from here, or is being written.
    touched: UnixMillis,
}

impl Entry {
    const fn new(session: Session, owed: Owed) -> Self {
        Self { touched: session.times.seen, session, owed }
    }

    fn is(&self, token: &str) -> bool {
        *self.session.token == *token
    }

    fn is_live(&self, now: UnixMillis) -> bool {
        self.owed != Owed::Ended && self.session.times.is_live(now)
    }

    fn known(&self, now: UnixMillis) -> Known {
        match (self.is_live(now), self.owed) {
            (true, Owed::Opened | Owed::Used) => Known::Pending,
            (true, _) => Known::Live,
            (false, Owed::Ended) => Known::Ended,
            (false, _) if self.session.times.end <= now => Known::Ended,
            (false, _) => Known::Idle,
        }
    }
}

/// Sessions of one account.
#[derive(Debug, Default)]
struct Account(Mutex<Vec<Entry>>);

/// The sessions of this instance, by the key of their account.
#[derive(Debug)]
pub struct Local {
    accounts: Cache<Arc<str>, Arc<Account>>,
    rules: Rules,
    /// Accounts with changes that the store has not got.
    owing: Mutex<HashSet<Arc<str>, RandomState>>,
    owes: AtomicUsize,
    /// As many accounts at most may owe something.
    most_owing: usize,
    /// Changes that the store will never get, for want of room.
    dropped: IntCounter,
    /// When the session of a token (a hash of account and token) was last looked for in vain.
    missed: Cache<u64, UnixMillis>,
    hashes: RandomState,
}

impl Local {
    /// Room for about `capacity` accounts, those that were not used for long forgotten first. `dropped` counts the
    /// changes that the store will never get.
    #[must_use]
    pub fn new(capacity: usize, rules: Rules, dropped: IntCounter) -> Self {
        let capacity = capacity.max(1);
        Self {
            accounts: Cache::new(capacity),
            rules,
            owing: Mutex::default(),
            owes: AtomicUsize::new(0),
            most_owing: capacity,
            dropped,
            missed: Cache::new(capacity),
            hashes: RandomState::new(),
        }
    }

    /// A session is open from now on; with `owed` the store does not know yet.
    pub fn open(&self, key: &Arc<str>, session: Session, owed: bool) {
        let owed = if owed { Owed::Opened } else { Owed::Nothing };
        {
            let account = self.account(key);
            let mut entries = account.0.lock();
            let (now, times) = (session.times.opened, session.times);
            if let Some(entry) = entries.iter_mut().find(|entry| entry.is(&session.token)) {
                let times = if entry.is_live(now) { entry.session.times.latest(times) } else { times };
                *entry = Entry::new(Session { times, ..session }, owed);
            } else {
                push(&mut entries, Entry::new(session, owed), now);
            }
        }
        if owed != Owed::Nothing {
            // Most are written in a moment: what is not is [owed again](Self::still_owes).
            self.remember(key);
        }
    }

    /// The store could not be told what was opened here, and is to hear of it later.
    pub fn still_owes(&self, key: &Arc<str>) {
        self.owe(key);
    }

    /// Ends the sessions beyond the limit, the oldest first and never that of `token`.
    pub fn trim(&self, key: &str, token: &str, now: UnixMillis) -> Vec<Session> {
        let Some(account) = self.accounts.get(key) else { return Vec::new() };
        let mut entries = account.0.lock();
        let mut live: Vec<_> = entries.iter().filter(|entry| entry.is_live(now)).collect();
        live.sort_by_key(|entry| (entry.is(token), entry.session.times.opened));
        let beyond = live.len().saturating_sub(self.rules.most());
        let gone: Vec<Session> = live.into_iter().take(beyond).map(|entry| entry.session.clone()).collect();
        entries.retain(|entry| !gone.iter().any(|gone| entry.is(&gone.token)));
        gone
    }

    /// What is known of a session while nobody can be asked. A live one is in use at `now`; with `owed` the store is
    /// to hear of that later.
    pub fn go_on(&self, key: &Arc<str>, token: &str, owed: bool, now: UnixMillis) -> Known {
        let Some(account) = self.accounts.get(&**key) else { return Known::Nothing };
        let mut entries = account.0.lock();
        let Some(entry) = entries.iter_mut().find(|entry| entry.is(token)) else { return Known::Nothing };
        let known = entry.known(now);
        if entry.is_live(now) && entry.session.times.is_due(&self.rules, now) {
            entry.session.times = entry.session.times.touched(&self.rules, now);
            if owed {
                let before = entry.owed;
                if before == Owed::Nothing {
                    entry.owed = Owed::Used;
                }
                // Without room now, the next use may find some.
                if !self.owe(key) {
                    entry.owed = before;
                }
            }
        }
        known
    }

    /// The store says that this session lives. Returns whether its use is to be written down now; the caller does
    /// it. `None`: it was ended here, which the store has not heard.
    pub fn heard(
        &self,
        key: &Arc<str>,
        token: &str,
        make: impl FnOnce() -> Session,
        times: Times,
        now: UnixMillis,
    ) -> Option<bool> {
        let account = self.account(key);
        let mut entries = account.0.lock();
        if !entries.iter().any(|entry| entry.is(token)) {
            push(&mut entries, Entry::new(make(), Owed::Nothing), now);
        }
        let entry = entries.iter_mut().find(|entry| entry.is(token))?;
        if entry.owed == Owed::Ended {
            return None;
        }
        // The store's word, with what was used here meanwhile.
        entry.session.times = times.latest(entry.session.times);
        let begun = !Times { seen: entry.touched, ..times }.is_due(&self.rules, now);
        let due = times.is_due(&self.rules, now) && !begun;
        if due {
            entry.touched = now;
            entry.session.times = entry.session.times.touched(&self.rules, now);
        }
        Some(due)
    }

    /// What was to be written down could not be: the next use tries again.
    pub fn not_written(&self, key: &str, token: &str) {
        self.with(key, token, |entry| entry.touched = UnixMillis::default());
    }

    /// The store has no such session: it has ended, unless what happened to it here is not written yet.
    pub fn absent(&self, key: &str, token: &str) {
        let Some(account) = self.accounts.get(key) else { return };
        account.0.lock().retain(|entry| entry.owed != Owed::Nothing || !entry.is(token));
    }

    /// What is known of a session, without using it.
    pub fn peek(&self, key: &str, token: &str, now: UnixMillis) -> Known {
        self.with(key, token, |entry| entry.known(now)).unwrap_or(Known::Nothing)
    }

    /// Whether the store may be asked again for a session that it has not got: not if it was, in vain, within the
    /// last second.
    pub fn may_look_again(&self, key: &str, token: &str, now: UnixMillis) -> bool {
        let missed = self.missed.get(&self.hashes.hash_one((key, token)));
        missed.is_none_or(|at| now.0.abs_diff(at.0) >= LOOK_AGAIN_MS)
    }

    /// The store was asked again for a session, in vain.
    pub fn looked_in_vain(&self, key: &str, token: &str, now: UnixMillis) {
        self.missed.insert(self.hashes.hash_one((key, token)), now);
    }

    /// The store has got these changes, or never will. What happened since stays owed.
    pub fn settle(&self, key: &str, changes: &[Change]) {
        let Some(account) = self.accounts.get(key) else { return };
        let mut entries = account.0.lock();
        for change in changes {
            match change {
                Change::Ended(token) => {
                    entries.retain(|entry| !(entry.is(token) && entry.owed == Owed::Ended));
                }
                Change::Lives(session) => {
                    let entry = entries.iter_mut().find(|entry| entry.is(&session.token));
                    let Some(entry) = entry.filter(|entry| entry.owed != Owed::Ended) else { continue };
                    let same = entry.session.times.seen <= session.times.seen;
                    entry.owed = match entry.owed {
                        Owed::Opened | Owed::Used if !same => Owed::Used,
                        _ => Owed::Nothing,
                    };
                }
            }
        }
        if entries.iter().all(|entry| entry.owed == Owed::Nothing) {
            self.owes_no_more(key);
        }
    }

    /// Ends the session of `only`, or all that are known; with `owed` the store is to hear of it later. Returns those
    /// that lived.
    pub fn end(&self, key: &Arc<str>, only: Option<&str>, owed: bool, now: UnixMillis) -> Vec<Session> {
        let Some(account) = self.accounts.get(&**key) else { return Vec::new() };
        let mut entries = account.0.lock();
        let mut ended = Vec::new();
        let ends = |entry: &Entry| only.is_none_or(|token| entry.is(token));
        for entry in entries.iter_mut().filter(|entry| ends(entry) && entry.is_live(now)) {
            ended.push(entry.session.clone());
            if owed {
                entry.owed = Owed::Ended;
            }
        }
        if owed {
            drop(entries);
            if !ended.is_empty() {
                self.owe(key);
            }
        } else {
            entries.retain(|entry| !ends(entry));
        }
        ended
    }

    /// The live sessions of an account, as far as they are known here.
    pub fn list(&self, key: &str, now: UnixMillis) -> Vec<Session> {
        let Some(account) = self.accounts.get(key) else { return Vec::new() };
        let entries = account.0.lock();
        let live = entries.iter().filter(|entry| entry.is_live(now));
        live.map(|entry| entry.session.clone()).collect()
    }

    /// Whether the store is owed anything.
    pub fn owes(&self) -> bool {
        self.owes.load(Ordering::Acquire) > 0
    }

    /// The keys of all accounts that owe the store anything.
    pub fn owing(&self) -> Vec<Arc<str>> {
        self.owing.lock().iter().cloned().collect()
    }

    /// What the store is owed of these accounts. It stays owed until it is [settled](Self::settle).
    pub fn owed(&self, keys: &[Arc<str>]) -> Vec<(Arc<str>, Vec<Change>)> {
        let change = |entry: &Entry| match entry.owed {
            Owed::Nothing => None,
            Owed::Opened | Owed::Used => Some(Change::Lives(entry.session.clone())),
            Owed::Ended => Some(Change::Ended(entry.session.token.clone())),
        };
        let mut owed = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(account) = self.accounts.get(&**key) else {
                // It was forgotten for want of room.
                self.owes_no_more(key);
                // If it was made again meanwhile, what it owes is seen the next time.
                if self.accounts.get(&**key).is_some() {
                    self.remember(key);
                }
                continue;
            };
            // Locked until that is noted: what happens meanwhile must not be taken for handed over.
            let entries = account.0.lock();
            let changes: Vec<_> = entries.iter().filter_map(change).collect();
            if changes.is_empty() {
                self.owes_no_more(key);
            } else {
                owed.push((Arc::clone(key), changes));
            }
        }
        owed
    }

    /// Lets go of sessions of an account whose tokens are revoked.
    pub fn let_go(&self, key: &str, is_revoked: impl Fn(&str) -> bool) {
        let Some(account) = self.accounts.get(key) else { return };
        let has_ended = |entry: &Entry| entry.owed != Owed::Ended && is_revoked(&entry.session.token);
        account.0.lock().retain(|entry| !has_ended(entry));
    }

    /// Lets go of what has ended for good, or by its token; returns how many sessions live.
    pub fn sweep(&self, now: UnixMillis, is_revoked: impl Fn(&str) -> bool) -> usize {
        let mut live = 0;
        let mut empty = Vec::new();
        for (key, account) in self.accounts.iter() {
            let mut entries = account.0.lock();
            // A session that only was idle too long is still known to have ended.
            entries.retain(|entry| entry.session.times.end > now);
            entries.retain(|entry| entry.owed == Owed::Ended || !is_revoked(&entry.session.token));
            live += entries.iter().filter(|entry| entry.is_live(now)).count();
            if entries.is_empty() {
                empty.push(key);
            }
        }
        for key in empty {
            self.accounts.remove_if(&key, |account| account.0.lock().is_empty());
        }
        live
    }

    fn account(&self, key: &Arc<str>) -> Arc<Account> {
        self.accounts.get(&**key).unwrap_or_else(|| {
            let made = self.accounts.get_or_insert_with::<_, Infallible>(key, || Ok(Arc::default()));
            made.unwrap_or_default()
        })
    }

    fn with<T>(&self, key: &str, token: &str, then: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let account = self.accounts.get(key)?;
        let mut entries = account.0.lock();
        entries.iter_mut().find(|entry| entry.is(token)).map(then)
    }

    /// The store is to hear of a change; returns whether it will.
    fn owe(&self, key: &Arc<str>) -> bool {
        let kept = self.remember(key);
        if !kept {
            self.dropped.inc();
        }
        kept
    }

    /// Returns whether there is room to remember that the account owes something.
    fn remember(&self, key: &Arc<str>) -> bool {
        let mut owing = self.owing.lock();
        if owing.len() >= self.most_owing && !owing.contains(key) {
            return false;
        }
        owing.insert(Arc::clone(key));
        self.owes.store(owing.len(), Ordering::Release);
        true
    }

    fn owes_no_more(&self, key: &str) {
        let mut owing = self.owing.lock();
        owing.remove(key);
        self.owes.store(owing.len(), Ordering::Release);
    }
}

/// Adds an entry; beyond all bounds the oldest gives way, first those that the store knows too, of them those that
/// have ended.
fn push(entries: &mut Vec<Entry>, entry: Entry, now: UnixMillis) {
    if entries.len() >= MAX_LINES {
        let oldest = entries.iter().enumerate().min_by_key(|(_, entry)| {
            (entry.owed != Owed::Nothing, entry.is_live(now), entry.session.times.opened)
        });
        if let Some(index) = oldest.map(|(index, _)| index) {
            entries.swap_remove(index);
        }
    }
    entries.push(entry);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: u64 = 1_000;
    const START: u64 = 1_000_000;

    fn local() -> Local {
        Local::new(100, rules(), IntCounter::new("dropped", "dropped").unwrap())
    }

    /// Idle 60 s, noted every second, two per account.
    fn rules() -> Rules {
        Rules::new(Duration::from_secs(60), Duration::from_secs(600), 2)
    }

    fn key() -> Arc<str> {
        "session:ada".into()
    }

    fn at(seconds: u64) -> UnixMillis {
        UnixMillis(START + seconds * SECOND)
    }

    fn session(token: &str, seconds: u64) -> Session {
        Session { token: token.into(), times: Times::opened(&rules(), None, at(seconds)), client: None }
    }

    /// What the store says at that time: whether a use is to be written down.
    fn heard(local: &Local, stored: &Session, seconds: u64) -> Option<bool> {
        local.heard(&key(), &stored.token, || stored.clone(), stored.times, at(seconds))
    }

    #[test]
    fn alone_it_keeps_sessions_that_slide_and_end() {
        let (local, key) = (local(), key());
        assert_eq!(local.go_on(&key, "a", false, at(0)), Known::Nothing);
        local.open(&key, session("a", 0), false);
        for seconds in [50, 100, 150] {
            assert_eq!(local.go_on(&key, "a", false, at(seconds)), Known::Live);
        }
        assert_eq!(local.go_on(&key, "a", false, at(211)), Known::Idle, "others may have heard of it");
        assert_eq!(local.go_on(&key, "a", false, at(212)), Known::Idle, "which is no use of it");
        assert_eq!(local.peek(&key, "a", at(600)), Known::Ended);
        assert!(!local.owes());
        assert_eq!(local.end(&key, Some("a"), false, at(151)).len(), 1);
        assert_eq!(local.go_on(&key, "a", false, at(151)), Known::Nothing);
    }

    #[test]
    fn beyond_the_limit_the_oldest_go_and_never_the_one_that_was_opened() {
        let (local, key) = (local(), key());
        for (token, seconds) in [("a", 1), ("b", 2), ("c", 0)] {
            local.open(&key, session(token, seconds), false);
        }
        let gone = local.trim(&key, "c", at(3));
        assert_eq!(gone.iter().map(|session| &*session.token).collect::<Vec<_>>(), ["a"]);
        assert_eq!(local.list(&key, at(3)).len(), 2);
        assert!(local.trim(&key, "c", at(3)).is_empty());
    }

    #[test]
    fn a_use_is_written_down_once_per_interval_and_again_when_that_failed() {
        let (local, stored) = (local(), session("a", 0));
        assert_eq!(heard(&local, &stored, 0), Some(false));
        assert_eq!(heard(&local, &stored, 1), Some(true));
        assert_eq!(heard(&local, &stored, 1), Some(false), "it is being written");
        local.not_written(&key(), "a");
        assert_eq!(heard(&local, &stored, 1), Some(true));
        assert_eq!(heard(&local, &stored, 2), Some(true), "another interval");
        // Should the store go away now, the uses count.
        assert_eq!(local.go_on(&key(), "a", true, at(62)), Known::Live);
    }

    #[test]
    fn only_a_login_that_is_not_written_lives_on_when_the_store_has_no_session() {
        let (local, key) = (local(), key());
        local.open(&key, session("a", 0), true);
        heard(&local, &session("b", 0), 0);
        for token in ["a", "b"] {
            local.absent(&key, token);
        }
        assert_eq!(local.peek(&key, "a", at(1)), Known::Pending);
        assert_eq!(local.peek(&key, "b", at(1)), Known::Nothing);
        local.settle(&key, &[Change::Lives(session("a", 0))]);
        local.absent(&key, "a");
        assert_eq!(local.peek(&key, "a", at(1)), Known::Nothing);
        assert!(!local.owes());
    }

    #[test]
    fn what_is_owed_holds_when_the_store_comes_back_without_the_session() {
        let (local, key) = (local(), key());
        for token in ["used", "ended"] {
            heard(&local, &session(token, 0), 0);
        }
        local.go_on(&key, "used", true, at(30));
        local.end(&key, Some("ended"), true, at(30));
        for (token, known) in [("used", Known::Pending), ("ended", Known::Ended)] {
            local.absent(&key, token);
            assert_eq!(local.peek(&key, token, at(31)), known);
        }
        let owed = local.owed(&local.owing());
        assert_eq!(owed[0].1.len(), 2);
        local.settle(&key, &owed[0].1);
        assert_eq!(local.peek(&key, "used", at(31)), Known::Live);
        local.absent(&key, "used");
        assert_eq!(local.peek(&key, "used", at(31)), Known::Nothing);
    }

    #[test]
    fn what_happens_while_the_store_is_away_is_owed_until_it_is_written() {
        let (local, key) = (local(), key());
        for token in ["used", "unused", "ended"] {
            heard(&local, &session(token, 0), 0);
        }
        assert_eq!(local.go_on(&key, "used", true, at(30)), Known::Live);
        local.open(&key, session("opened", 31), true);
        assert_eq!(local.end(&key, Some("ended"), true, at(32)).len(), 1);
        assert_eq!(local.peek(&key, "ended", at(32)), Known::Ended);
        assert_eq!(heard(&local, &session("ended", 0), 32), None, "the store has not heard of it");
        assert!(local.owes() && local.owed(&[]).is_empty());
        let owed = local.owed(&local.owing());
        let [(owed_key, changes)] = &*owed else { panic!("{owed:?}") };
        assert_eq!(*owed_key, key);
        let mut record = Record::default();
        for token in ["used", "ended"] {
            record.open(session(token, 0), &rules(), at(0));
        }
        for change in changes {
            assert!(change.apply(&mut record, &rules(), at(33)).is_empty());
        }
        let mut tokens: Vec<_> = record.sessions().iter().map(|session| &*session.token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, ["opened", "used"]);
        assert_eq!(record.find("used").unwrap().times.seen, at(30));
        local.settle(&key, changes);
        assert!(!local.owes());
        assert_eq!(local.peek(&key, "ended", at(33)), Known::Nothing);
        assert_eq!(local.peek(&key, "opened", at(33)), Known::Live);
    }

    #[test]
    fn what_happens_while_a_change_is_written_stays_owed() {
        let (local, key) = (local(), key());
        let changes = |local: &Local| local.owed(&local.owing()).remove(0).1;
        local.open(&key, session("a", 0), true);
        local.open(&key, session("b", 0), true);
        let opened = changes(&local);
        // One is used and the other ended before the answer is there.
        assert_eq!(local.go_on(&key, "a", true, at(5)), Known::Pending);
        local.end(&key, Some("b"), true, at(5));
        local.settle(&key, &opened);
        assert_eq!(local.peek(&key, "b", at(5)), Known::Ended);
        assert_eq!(local.peek(&key, "a", at(5)), Known::Pending, "the store has not heard of its use");
        let later = changes(&local);
        assert_eq!(later.len(), 2);
        let seen = later.iter().find_map(Change::lives).map(|session| session.times.seen);
        assert_eq!(seen, Some(at(5)));
        local.settle(&key, &later);
        assert!(!local.owes());
        // And the other way round: it is opened again while its end is written.
        local.open(&key, session("c", 6), false);
        local.end(&key, Some("c"), true, at(7));
        let ended = changes(&local);
        local.open(&key, session("c", 8), true);
        local.settle(&key, &ended);
        assert_eq!((local.peek(&key, "c", at(9)), changes(&local).len()), (Known::Pending, 1));
    }

    #[test]
    fn a_live_session_gives_way_to_none_that_have_ended() {
        let (local, key) = (local(), key());
        local.open(&key, session("old", 0), false);
        for number in 0..(2 * MAX_LINES as u64) {
            local.go_on(&key, "old", false, at(number));
            let opened =
                Session { times: Times { until: at(number), ..session("", number).times }, ..session("", 0) };
            local.open(&key, Session { token: number.to_string().into(), ..opened }, false);
        }
        assert_eq!(local.peek(&key, "old", at(2 * MAX_LINES as u64)), Known::Live);
    }

    #[test]
    fn what_is_owed_is_bounded_and_what_is_not_kept_is_counted() {
        let dropped = IntCounter::new("dropped", "dropped").unwrap();
        let local = Local::new(10, rules(), dropped.clone());
        for number in 0..100 {
            let key: Arc<str> = format!("session:{number}").into();
            local.open(&key, session("a", 0), true);
            local.open(&key, session("b", 0), true);
        }
        assert_eq!(local.owing().len(), 10);
        assert_eq!(dropped.get(), 0, "they may be written yet");
        for number in 0..100 {
            local.still_owes(&format!("session:{number}").into());
        }
        assert_eq!(dropped.get(), 90);
    }

    #[test]
    fn a_use_that_found_no_room_is_owed_once_there_is_some() {
        let local = Local::new(1, rules(), IntCounter::new("dropped", "dropped").unwrap());
        let other: Arc<str> = "session:bob".into();
        assert!(local.owe(&other));
        heard(&local, &session("a", 0), 0);
        assert_eq!(local.go_on(&key(), "a", true, at(1)), Known::Live);
        assert_eq!(local.peek(&key(), "a", at(1)), Known::Live, "the store is not told, and so is believed");
        assert!(local.owed(&[other]).is_empty());
        local.go_on(&key(), "a", true, at(2));
        assert_eq!(local.owing(), [key()]);
        assert_eq!(local.peek(&key(), "a", at(2)), Known::Pending);
    }

    #[test]
    fn a_session_that_was_idle_here_is_not_ended_for_good_where_nobody_can_be_told() {
        let (local, key) = (local(), key());
        heard(&local, &session("idle", 0), 0);
        heard(&local, &session("live", 50), 50);
        assert_eq!(local.end(&key, None, true, at(70)).len(), 1);
        assert_eq!(local.peek(&key, "idle", at(70)), Known::Idle);
        assert_eq!(local.peek(&key, "live", at(70)), Known::Ended);
        assert_eq!(heard(&local, &session("idle", 60), 70), Some(true), "it was used elsewhere");
        local.end(&key, None, false, at(70));
        assert_eq!(local.peek(&key, "idle", at(70)), Known::Nothing);
    }

    #[test]
    fn a_session_is_looked_for_in_vain_once_a_second() {
        let (local, key) = (local(), key());
        assert!(local.may_look_again(&key, "a", at(0)));
        local.looked_in_vain(&key, "a", at(0));
        assert!(!local.may_look_again(&key, "a", UnixMillis(at(1).0 - 1)));
        assert!(local.may_look_again(&key, "b", at(0)) && local.may_look_again(&key, "a", at(1)));
        assert!(local.may_look_again("session:bob", "a", at(0)));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_swept() {
        let local = local();
        for number in 0..1_000 {
            let key: Arc<str> = format!("session:{number}").into();
            local.open(&key, session("a", 0), false);
        }
        let kept = local.sweep(at(1), |_| false);
        assert!((1..=100).contains(&kept), "{kept}");
        assert_eq!(local.sweep(at(100), |_| false), 0, "they were idle");
        assert_eq!(local.accounts.len(), kept, "and are known to have ended");
        local.sweep(at(600), |_| false);
        assert_eq!(local.accounts.len(), 0);
        for number in 0..1_000 {
            local.open(&key(), session(&number.to_string(), 0), false);
        }
        assert_eq!(local.list(&key(), at(1)).len(), MAX_LINES);
    }
}
