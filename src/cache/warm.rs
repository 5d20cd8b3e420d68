//! Keeping declared responses warm: what is asked for, what came of it, and when to ask again. Pure; the requests
//! themselves are the proxy's.

use std::time::Duration;

use http::HeaderMap;

use super::ahead::Freshness;
use crate::clock::UnixMillis;
use crate::metrics::WarmOutcome;

/// A response is looked after at least this often, so that one that was dropped is soon fetched again.
pub const LOOK: Duration = Duration::from_secs(2);
/// Shortest time between two looks.
const SOONEST: Duration = Duration::from_millis(100);
/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// First and longest pause after an answer that cannot be kept.
const UNKEPT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// A response that is kept warm.
#[derive(Clone, Debug)]
pub struct Target {
    /// The route it belongs to.
    pub route: Box<str>,
    /// Whether clients ask for it with TLS: part of the key.
    pub https: bool,
    /// Host and port as clients name them.
    pub authority: Box<str>,
    /// Path and query.
    pub target: Box<str>,
    /// The route's `refresh_ahead`.
    pub refresh_ahead: Option<Duration>,
    /// What selects the variant, and the credential if there is one (marked as sensitive).
    pub headers: HeaderMap,
}

impl Target {
    /// How long before the end of `freshness` it is looked after by a share of the window, in thousandths.
    #[must_use]
    pub fn window(&self, freshness: Freshness, thousandths: u16) -> Duration {
        freshness.warm_window(self.refresh_ahead) * u32::from(thousandths) / 1_000
    }

    /// The URL without its query, which may hold what is nobody's business.
    pub fn shown(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        let path = self.target.split('?').next().unwrap_or_default();
        format!("{scheme}://{}{path}", self.authority)
    }
}

/// What came of one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warmed {
    /// It was there, and fresh for long enough.
    Fresh(Freshness),
    /// It was fetched, or confirmed by the upstream.
    Fetched(Freshness),
    /// The answer was not stored, or is never fresh: why, as a label.
    NotKept(&'static str),
    /// No answer, or one that says that something is wrong: its status.
    Failed(u16),
}

impl Warmed {
    /// The metric label.
    pub const fn outcome(self) -> WarmOutcome {
        match self {
            Self::Fresh(_) => WarmOutcome::Fresh,
            Self::Fetched(_) => WarmOutcome::Fetched,
            Self::NotKept(_) => WarmOutcome::NotKept,
            Self::Failed(_) => WarmOutcome::Failed,
        }
    }
}

/// When one response is looked after, and what is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    state: State,
    in_row: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Warm,
    Unkept,
    Failing,
}

/// A change that operators want to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is warm, for the first time or again.
    Warm,
    /// It cannot be kept.
    Unkept(&'static str),
    /// It cannot be fetched.
    Failing(u16),
}

impl Default for Pace {
    fn default() -> Self {
        Self { state: State::New, in_row: 0 }
    }
}

impl Pace {
    /// Notes what came of a look, after which the next one follows in this time: `window` before the end of
    /// freshness at the latest, later and later while nothing comes of it. `spread` from 0 to 1, at random, keeps
    /// instances from asking a failing upstream all at once.
    pub fn note(
        &mut self,
        warmed: Warmed,
        window: Duration,
        spread: f64,
        now: UnixMillis,
    ) -> (Duration, Option<Change>) {
        let (state, change) = match warmed {
            Warmed::Fresh(_) | Warmed::Fetched(_) => (State::Warm, Change::Warm),
            Warmed::NotKept(why) => (State::Unkept, Change::Unkept(why)),
            Warmed::Failed(status) => (State::Failing, Change::Failing(status)),
        };
        let changed = state != self.state;
        self.in_row = if changed { 0 } else { self.in_row.saturating_add(1) };
        self.state = state;
        let rest = match warmed {
            Warmed::Fresh(freshness) | Warmed::Fetched(freshness) => {
                let left = Duration::from_millis(freshness.until.millis_since(now));
                left.saturating_sub(window).clamp(SOONEST, LOOK)
            }
            Warmed::NotKept(_) => grown(UNKEPT, self.in_row, spread),
            Warmed::Failed(_) => grown(RETRY, self.in_row, spread),
        };
        (rest, changed.then_some(change))
    }
}

/// Doubled each time, up to a most, and then made longer by up to a quarter.
fn grown((first, most): (Duration, Duration), in_row: u32, spread: f64) -> Duration {
    let pause = first.saturating_mul(1 << in_row.min(16)).min(most);
    pause + pause.mul_f64(spread.clamp(0.0, 1.0) / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);
    const SECOND: Duration = Duration::from_secs(1);

    fn fresh_for(millis: u64) -> Warmed {
        Warmed::Fetched(Freshness { since: NOW, until: UnixMillis(NOW.0 + millis) })
    }

    fn rest(pace: &mut Pace, warmed: Warmed) -> Duration {
        pace.note(warmed, SECOND / 2, 0.0, NOW).0
    }

    #[test]
    fn a_warm_response_is_looked_after_before_its_end_and_often_enough_to_notice_that_it_is_gone() {
        let mut pace = Pace::default();
        assert_eq!(rest(&mut pace, fresh_for(600_000)), LOOK);
        assert_eq!(rest(&mut pace, fresh_for(1_500)), SECOND);
        assert_eq!(rest(&mut pace, fresh_for(500)), SOONEST);
        assert_eq!(rest(&mut pace, fresh_for(0)), SOONEST);
    }

    #[test]
    fn pauses_grow_while_nothing_comes_of_it_and_are_short_again_after_a_success() {
        let mut pace = Pace::default();
        let pauses: Vec<_> = (0..10).map(|_| rest(&mut pace, Warmed::Failed(502)).as_millis()).collect();
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
        rest(&mut pace, fresh_for(60_000));
        assert_eq!(rest(&mut pace, Warmed::Failed(502)), SECOND / 2);
        let unkept: Vec<_> = (0..9).map(|_| rest(&mut pace, Warmed::NotKept("no_store")).as_secs()).collect();
        assert_eq!(unkept, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        assert_eq!(pace.note(Warmed::NotKept("no_store"), SECOND, 1.0, NOW).0, SECOND * 750);
    }

    #[test]
    fn only_changes_are_told() {
        let mut pace = Pace::default();
        let mut told = |warmed| pace.note(warmed, SECOND, 0.5, NOW).1;
        assert_eq!(told(Warmed::Failed(502)), Some(Change::Failing(502)));
        assert_eq!(told(Warmed::Failed(503)), None);
        assert_eq!(told(fresh_for(60_000)), Some(Change::Warm));
        assert_eq!(told(fresh_for(60_000)), None);
        assert_eq!(told(Warmed::NotKept("no_store")), Some(Change::Unkept("no_store")));
        assert_eq!(told(Warmed::NotKept("private")), None);
    }

    #[test]
    fn a_url_is_shown_without_its_query() {
        let target = Target {
            route: "r".into(),
            https: true,
            authority: "a.example:8443".into(),
            target: "/x?token=secret".into(),
            refresh_ahead: None,
            headers: HeaderMap::new(),
        };
        assert_eq!(target.shown(), "https://a.example:8443/x");
    }
}
