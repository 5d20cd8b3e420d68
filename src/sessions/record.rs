//! The sessions of one account as one value: what is stored under `session:<account>`, and every change to it. Pure:
//! whoever holds the value, Redis or the memory of an instance, changes it by the same functions.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use crate::clock::{UnixMillis, millis};

/// Longest value that is read, in bytes; a longer one holds no session.
pub const MAX_BYTES: usize = 64 * 1024;
/// Most sessions of one account.
pub const MAX_SESSIONS: u32 = 100;
/// The same as a length.
pub(super) const MAX_LINES: usize = MAX_SESSIONS as usize;
/// Longest name of a session, in bytes: what a key of a revoked token keeps readable.
const MAX_TOKEN: usize = 128;
/// Activity is written down this many times within an idle time, ...
const TOUCHES: u32 = 60;
/// ... and not more often than this.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// How long sessions live, and how many there are per account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    idle_ms: u64,
    absolute_ms: u64,
    interval_ms: u64,
    most: usize,
}

impl Rules {
    /// Sessions end `idle` after their last use and `absolute` after they were opened; an account has at most `most`,
    /// at least one and at most [`MAX_SESSIONS`].
    #[must_use]
    pub fn new(idle: Duration, absolute: Duration, most: usize) -> Self {
        let interval = (idle / TOUCHES).max(SHORTEST_INTERVAL);
        Self {
            idle_ms: millis(idle),
            absolute_ms: millis(absolute),
            interval_ms: millis(interval),
            most: most.clamp(1, MAX_LINES),
        }
    }

    /// Most sessions of one account.
    pub const fn most(&self) -> usize {
        self.most
    }
}

/// The times of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// When it was opened.
    pub opened: UnixMillis,
    /// When it was last seen in use, not later than one touch interval after.
    pub seen: UnixMillis,
    /// When it ends if it is not used any more.
    pub until: UnixMillis,
    /// When it ends at the latest.
    pub end: UnixMillis,
    /// From here on nobody would accept its token anyway; `None`: it has no end of its own.
    pub token_until: Option<UnixMillis>,
}

impl Times {
    /// Of a session opened at `now` with a token that is good until `token_until`.
    #[must_use]
    pub fn opened(rules: &Rules, token_until: Option<UnixMillis>, now: UnixMillis) -> Self {
        let end = UnixMillis(now.0.saturating_add(rules.absolute_ms));
        let end = token_until.map_or(end, |token| token.min(end));
        Self { opened: now, seen: now, until: end, end, token_until }.seen_at(rules, now)
    }

    /// Whether the session lives.
    #[must_use]
    pub fn is_live(&self, now: UnixMillis) -> bool {
        self.until.min(self.end) > now
    }

    /// Whether its last use was so long ago that another one is to be written down.
    #[must_use]
    pub const fn is_due(&self, rules: &Rules, now: UnixMillis) -> bool {
        now.millis_since(self.seen) >= rules.interval_ms
    }

    /// The same session, used at `now`; a clock that is behind changes nothing.
    #[must_use]
    pub fn touched(self, rules: &Rules, now: UnixMillis) -> Self {
        if now > self.seen { self.seen_at(rules, now) } else { self }
    }

    /// The later use of the two.
    #[must_use]
    pub fn latest(self, other: Self) -> Self {
        if other.seen > self.seen {
            Self { seen: other.seen, until: other.until.min(self.end), ..self }
        } else {
            self
        }
    }

    /// Use within the interval after `now` is not written down and must not cost anything.
    fn seen_at(self, rules: &Rules, now: UnixMillis) -> Self {
        let idle = now.0.saturating_add(rules.idle_ms).saturating_add(rules.interval_ms);
        Self { seen: now, until: UnixMillis(idle).min(self.end), ..self }
    }
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its token, as in the key that revokes it.
    pub token: Box<str>,
    /// Since when and until when.
    pub times: Times,
    /// Who logged in.
    pub client: Option<IpAddr>,
}

/// The sessions of one account, each of another token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record(Vec<Session>);

impl Record {
    /// Reads [`Self::encode`]. Lines that make no sense are left out, and so are those beyond [`MAX_SESSIONS`].
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        let mut record = Self::default();
        for (token, times, client) in lines(value).filter_map(parse_line) {
            if record.find(token).is_none() {
                record.0.push(Session { token: token.into(), times, client });
            }
        }
        record
    }

    /// One line per session: `<token> <opened> <seen> <until> <end> <token's end or -> <client or ->`, times in
    /// milliseconds since the epoch. Nothing where there is no session.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut text = String::new();
        for Session { token, times, client } in &self.0 {
            let Times { opened, seen, until, end, token_until } = times;
            let _ = write!(text, "{token} {} {} {} {}", opened.0, seen.0, until.0, end.0);
            let _ = match token_until {
                Some(token_until) => write!(text, " {}", token_until.0),
                None => write!(text, " -"),
            };
            let _ = match client {
                Some(client) => writeln!(text, " {client}"),
                None => writeln!(text, " -"),
            };
        }
        text.into_bytes()
    }

    /// When the last of the sessions ends; `None` without any.
    #[must_use]
    pub fn ends(&self) -> Option<UnixMillis> {
        self.0.iter().map(|session| session.times.until).max()
    }

    /// The session of `token`, live or not.
    #[must_use]
    pub fn find(&self, token: &str) -> Option<&Session> {
        self.0.iter().find(|session| *session.token == *token)
    }

    /// All sessions.
    pub fn sessions(&self) -> &[Session] {
        &self.0
    }

    /// Opens `session`, or goes on with the live one of the same token, and takes out those beyond the limit, the
    /// oldest first.
    pub fn open(&mut self, session: Session, rules: &Rules, now: UnixMillis) -> Vec<Session> {
        let token = session.token.clone();
        self.merge(session, now);
        self.trim(rules, Some(&token))
    }

    /// Brings back a session that went on where nobody heard of it, and takes out those beyond the limit, the oldest
    /// first: that may be the one brought back.
    pub fn restore(&mut self, session: Session, rules: &Rules, now: UnixMillis) -> Vec<Session> {
        self.merge(session, now);
        self.trim(rules, None)
    }

    fn merge(&mut self, session: Session, now: UnixMillis) {
        self.prune(now);
        match self.0.iter_mut().find(|known| known.token == session.token) {
            Some(known) => {
                known.times = known.times.latest(session.times);
                known.client = session.client;
            }
            None => self.0.push(session),
        }
    }

    /// Takes out the oldest beyond the limit, but not the one of `kept`.
    fn trim(&mut self, rules: &Rules, kept: Option<&str>) -> Vec<Session> {
        let mut evicted = Vec::new();
        while self.0.len() > rules.most {
            let others = self.0.iter().enumerate().filter(|(_, session)| Some(&*session.token) != kept);
            let oldest = others.min_by_key(|(_, session)| session.times.opened).map(|(index, _)| index);
            let Some(oldest) = oldest else { break };
            evicted.push(self.0.remove(oldest));
        }
        evicted
    }

    /// Notes that the session of `token` is in use. One that is not there stays away: it has ended.
    pub fn touch(&mut self, token: &str, rules: &Rules, now: UnixMillis) {
        let live = self.0.iter_mut().find(|known| *known.token == *token && known.times.is_live(now));
        if let Some(known) = live {
            known.times = known.times.touched(rules, now);
        }
    }

    /// Takes out the session of `only`, or all of them.
    pub fn end(&mut self, only: Option<&str>) -> Vec<Session> {
        let ends = |session: &Session| only.is_none_or(|token| *session.token == *token);
        let (ended, kept) = std::mem::take(&mut self.0).into_iter().partition(ends);
        self.0 = kept;
        ended
    }

    /// Lets go of sessions that have ended.
    pub fn prune(&mut self, now: UnixMillis) {
        self.0.retain(|session| session.times.is_live(now));
    }

    /// Lets go of sessions whose tokens are revoked.
    pub fn let_go(&mut self, is_revoked: impl Fn(&str) -> bool) {
        self.0.retain(|session| !is_revoked(&session.token));
    }
}

/// The session of `token` in a stored value, as [`Record::find`] in all of it.
#[must_use]
pub fn find(value: &[u8], token: &str) -> Option<(Times, Option<IpAddr>)> {
    let concerns =
        |line: &&[u8]| line.strip_prefix(token.as_bytes()).is_some_and(|rest| rest.first() == Some(&b' '));
    let (_, times, client) = lines(value).filter(concerns).find_map(parse_line)?;
    Some((times, client))
}

fn lines(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let value = if value.len() > MAX_BYTES { &[] } else { value };
    value.split(|byte| *byte == b'\n').take(MAX_LINES)
}

fn parse_line(line: &[u8]) -> Option<(&str, Times, Option<IpAddr>)> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let token = words.next().filter(|token| is_token(token))?;
    let mut time = || words.next()?.parse().ok().map(UnixMillis);
    let (opened, seen, until, end) = (time()?, time()?, time()?, time()?);
    let token_until = match words.next()? {
        "-" => None,
        time => Some(UnixMillis(time.parse().ok()?)),
    };
    let client = match words.next()? {
        "-" => None,
        client => Some(client.parse().ok()?),
    };
    words.next().is_none().then_some((token, Times { opened, seen, until, end, token_until }, client))
}

/// Whether a session can have this name: at most 128 bytes of `[A-Za-z0-9._~@-]`.
#[must_use]
pub fn is_token(token: &str) -> bool {
    (1..=MAX_TOKEN).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~@-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000;

    /// Idle 60 s, touched every second, 200 s in all, three per account.
    fn rules() -> Rules {
        Rules::new(Duration::from_secs(60), Duration::from_secs(200), 3)
    }

    fn session(token: &str, token_until: Option<u64>, now: u64) -> Session {
        let times = Times::opened(&rules(), token_until.map(UnixMillis), UnixMillis(now));
        Session { token: token.into(), times, client: Some("2001:db8::1".parse().unwrap()) }
    }

    fn tokens(sessions: &[Session]) -> Vec<&str> {
        sessions.iter().map(|session| &*session.token).collect()
    }

    #[test]
    fn a_session_ends_when_idle_at_its_absolute_end_and_with_its_token() {
        let idle = session("a", None, 0).times;
        assert!(idle.is_live(UnixMillis(61 * SECOND - 1)) && !idle.is_live(UnixMillis(61 * SECOND)));
        let used = idle.touched(&rules(), UnixMillis(50 * SECOND));
        assert_eq!(used.until, UnixMillis(111 * SECOND));
        let long = used.touched(&rules(), UnixMillis(199 * SECOND));
        assert_eq!((long.until, long.opened), (UnixMillis(200 * SECOND), UnixMillis(0)));
        let short = session("a", Some(7), 0).times;
        assert_eq!((short.until, short.end), (UnixMillis(7), UnixMillis(7)));
        assert_eq!(short.touched(&rules(), UnixMillis(6)).until, UnixMillis(7));
        assert_eq!(used.touched(&rules(), UnixMillis(3)), used, "a clock that is behind");
    }

    #[test]
    fn use_is_due_once_per_interval() {
        let times = session("a", None, 10 * SECOND).times;
        assert!(!times.is_due(&rules(), UnixMillis(11 * SECOND - 1)));
        assert!(times.is_due(&rules(), UnixMillis(11 * SECOND)));
        assert!(!times.is_due(&rules(), UnixMillis(0)), "a clock that is behind");
        let hour = Rules::new(Duration::from_secs(3_600), Duration::from_secs(86_400), 10);
        assert!(
            !times.is_due(&hour, UnixMillis(69 * SECOND)) && times.is_due(&hour, UnixMillis(70 * SECOND))
        );
    }

    #[test]
    fn the_form_in_the_store_is_as_documented_and_read_back() {
        let mut record = Record::default();
        record.open(session("jti-1", Some(90 * SECOND), 1_000), &rules(), UnixMillis(1_000));
        let other = Session { client: None, ..session("sha256-0f", None, 2_000) };
        record.open(other, &rules(), UnixMillis(2_000));
        let text = "jti-1 1000 1000 62000 90000 90000 2001:db8::1\nsha256-0f 2000 2000 63000 202000 - -\n";
        assert_eq!(String::from_utf8(record.encode()).unwrap(), text);
        assert_eq!(Record::parse(text.as_bytes()), record);
        assert_eq!(record.ends(), Some(UnixMillis(63_000)));
        assert_eq!(find(text.as_bytes(), "jti-1").unwrap().0.opened, UnixMillis(1_000));
        assert_eq!(find(text.as_bytes(), "jti"), None);
        assert!(Record::default().encode().is_empty() && Record::default().ends().is_none());
    }

    #[test]
    fn lines_that_make_no_sense_are_no_sessions_and_cost_the_others_nothing() {
        let good = "good 1 1 5 9 - -\n";
        for bad in [
            "",
            "x",
            "a 1 1 5 9 -",
            "a 1 1 5 9 - - -",
            "a 1 1 5 9 - host",
            "a 1 1 5 x - -",
            "a -1 1 5 9 - -",
            "a 1 1 5 99999999999999999999 - -",
            "a:b 1 1 5 9 - -",
            " 1 1 5 9 - -",
            "{\"user\":1}",
            "good 7 7 7 7 - -",
        ] {
            let value = format!("{good}{bad}\n");
            assert_eq!(tokens(Record::parse(value.as_bytes()).sessions()), ["good"], "{bad}");
            assert_eq!(find(value.as_bytes(), "good").unwrap().0.opened, UnixMillis(1));
        }
        assert!(Record::parse(b"\xff\xfe 1 1 5 9 - -\n").sessions().is_empty());
        let many: Vec<_> = (0..1_000).map(|number| format!("{number} 1 1 5 9 - -\n")).collect();
        let many = many.concat();
        assert_eq!(Record::parse(many.as_bytes()).sessions().len(), MAX_LINES);
        assert_eq!(find(many.as_bytes(), "999"), None);
        let huge = good.repeat(MAX_BYTES);
        assert!(
            Record::parse(huge.as_bytes()).sessions().is_empty() && find(huge.as_bytes(), "good").is_none()
        );
    }

    #[test]
    fn the_oldest_session_goes_beyond_the_limit_and_never_the_new_one() {
        let mut record = Record::default();
        for (token, at) in [("c", 3), ("a", 1), ("b", 2)] {
            assert!(record.open(session(token, None, at), &rules(), UnixMillis(3)).is_empty());
        }
        // The clock of the instance that opens it is behind.
        assert_eq!(tokens(&record.open(session("d", None, 0), &rules(), UnixMillis(0))), ["a"]);
        assert_eq!(tokens(record.sessions()), ["c", "b", "d"]);
        assert!(record.open(session("b", None, 5), &rules(), UnixMillis(5)).is_empty(), "it has one");
        let known = record.find("b").unwrap().times;
        assert_eq!((known.opened, known.seen), (UnixMillis(2), UnixMillis(5)));
        let one = Rules::new(Duration::from_secs(60), Duration::from_secs(200), 1);
        assert_eq!(tokens(&record.open(session("e", None, 6), &one, UnixMillis(6))), ["d", "b", "c"]);
    }

    #[test]
    fn one_that_is_brought_back_takes_the_place_of_none_that_is_newer() {
        let mut record = Record::default();
        for (token, opened) in [("b", 2), ("c", 3), ("d", 4)] {
            record.open(session(token, None, opened), &rules(), UnixMillis(4));
        }
        let used = |token: &str, opened, seen| {
            let known = session(token, None, opened);
            Session { times: known.times.touched(&rules(), UnixMillis(seen)), ..known }
        };
        assert_eq!(tokens(&record.restore(used("a", 1, 5), &rules(), UnixMillis(5))), ["a"]);
        assert!(record.restore(used("b", 2, 5), &rules(), UnixMillis(5)).is_empty(), "it is there");
        assert_eq!(record.find("b").unwrap().times.seen, UnixMillis(5));
        assert_eq!(tokens(&record.restore(used("e", 5, 6), &rules(), UnixMillis(6))), ["b"]);
    }

    #[test]
    fn a_late_touch_renews_nothing_that_has_ended() {
        let mut record = Record::default();
        record.open(session("a", None, 0), &rules(), UnixMillis(0));
        record.touch("b", &rules(), UnixMillis(5));
        assert_eq!(tokens(record.sessions()), ["a"]);
        let before = record.clone();
        record.touch("a", &rules(), UnixMillis(61 * SECOND));
        assert_eq!(record, before, "it had ended");
        assert_eq!(tokens(&record.end(Some("a"))), ["a"]);
        record.touch("a", &rules(), UnixMillis(5));
        assert!(record.sessions().is_empty());
    }

    /// What may happen to the sessions of an account.
    #[derive(Clone, Debug)]
    enum Step {
        Open(u8),
        Touch(u8),
        End(u8),
        EndAll,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let token = 0_u8..5;
        prop_oneof![
            token.clone().prop_map(Step::Open),
            token.clone().prop_map(Step::Touch),
            token.prop_map(Step::End),
            Just(Step::EndAll),
            (1_u64..90).prop_map(Step::Wait),
        ]
    }

    /// A session in the model, times in seconds: when opened, when last used, the token's end.
    type Modelled = (u64, u64, u64);

    fn lives((opened, used, token): Modelled, now: u64) -> bool {
        now < used + 61 && now < opened + 200 && now < token
    }

    proptest! {
        #[test]
        fn sessions_live_as_a_simple_model_says(steps in prop::collection::vec(step(), 1..60)) {
            let rules = rules();
            let mut now = 1_000_u64;
            let mut record = Record::default();
            let mut model: BTreeMap<String, Modelled> = BTreeMap::new();
            for step in steps {
                let at = UnixMillis(now * SECOND);
                match step {
                    Step::Open(token) => {
                        let ends = (token > 2).then(|| 1_000 + 100 * u64::from(token));
                        let token = token.to_string();
                        let opened = session(&token, ends.map(|ends| ends * SECOND), now * SECOND);
                        let evicted = record.open(opened, &rules, at);
                        model.retain(|_, known| lives(*known, now));
                        let entry = (now, now, ends.unwrap_or(u64::MAX));
                        model.entry(token.clone()).and_modify(|known| known.1 = now).or_insert(entry);
                        prop_assert_eq!(evicted.len(), model.len().saturating_sub(3));
                        for gone in evicted {
                            let oldest = model.iter().filter(|(name, _)| **name != token).map(|(_, known)| known.0).min();
                            prop_assert_eq!(model.remove(&*gone.token).map(|known| known.0), oldest);
                        }
                    }
                    Step::Touch(token) => {
                        record.touch(&token.to_string(), &rules, at);
                        if let Some(known) = model.get_mut(&token.to_string()).filter(|known| lives(**known, now)) {
                            known.1 = now;
                        }
                    }
                    Step::End(token) => {
                        record.end(Some(&token.to_string()));
                        model.remove(&token.to_string());
                    }
                    Step::EndAll => {
                        record.end(None);
                        model.clear();
                    }
                    Step::Wait(seconds) => now += seconds,
                }
                let at = UnixMillis(now * SECOND);
                let value = record.encode();
                prop_assert_eq!(&Record::parse(&value), &record);
                for token in (0..5).map(|token: u8| token.to_string()) {
                    let live = find(&value, &token).is_some_and(|(times, _)| times.is_live(at));
                    prop_assert_eq!(live, model.get(&token).is_some_and(|known| lives(*known, now)));
                }
                let live_until = record.ends().is_some_and(|ends| ends > at);
                prop_assert_eq!(live_until, model.values().any(|known| lives(*known, now)));
            }
        }

        #[test]
        fn whatever_is_stored_is_read_without_panic(value in prop::collection::vec(any::<u8>(), 0..400)) {
            let record = Record::parse(&value);
            prop_assert_eq!(Record::parse(&record.encode()), record);
        }
    }
}
