//! The one source of time.
//!
//! Every decision takes `now` as an argument; only the composition root and the pingora adapters ask a
//! [`Clock`]. Clippy refuses `SystemTime::now` and `Instant::now` everywhere else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A wall-clock instant in whole milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The instant `seconds` after the epoch; saturates instead of overflowing.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000))
    }

    /// The instant that `text` names as HTTP does (RFC 9110 section 5.6.7), in whatever case and on whatever weekday
    /// (RFC 9111 section 4.2 wants caches to be robust there); before the epoch it is the epoch.
    #[must_use]
    pub fn from_http_date(text: &str) -> Option<Self> {
        let time = httpdate::parse_http_date(text).ok().or_else(|| sloppy_http_date(text))?;
        Some(Self(time.duration_since(UNIX_EPOCH).map_or(0, millis)))
    }

    /// Whole seconds since the epoch, rounded down.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000
    }

    /// Whole seconds since the epoch, rounded up: what a client may safely wait for.
    #[must_use]
    pub const fn as_secs_ceil(self) -> u64 {
        self.0.div_ceil(1_000)
    }

    /// This instant plus `duration`, saturating.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    /// Milliseconds from `earlier` to `self`, zero when `earlier` is later.
    #[must_use]
    pub const fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A date with names in another case than the usual one, or with a weekday that it does not have.
fn sloppy_http_date(text: &str) -> Option<SystemTime> {
    const LONGEST: usize = 33;
    const SHORT: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    const LONG: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
    if text.len() > LONGEST || !text.is_ascii() {
        return None;
    }
    let start = text.find(|letter: char| !letter.is_ascii_alphabetic())?;
    let (weekday, rest) = text.split_at_checked(start)?;
    let weekdays = [SHORT, LONG]
        .into_iter()
        .find(|names| names.iter().any(|name| weekday.eq_ignore_ascii_case(name)))?;
    let mut letters_before = false;
    let mut rest: String = rest
        .chars()
        .map(|letter| {
            let inside = std::mem::replace(&mut letters_before, letter.is_ascii_alphabetic());
            if inside { letter.to_ascii_lowercase() } else { letter.to_ascii_uppercase() }
        })
        .collect();
    if let Some(bare) = rest.strip_suffix(" Gmt") {
        rest = format!("{bare} GMT");
    }
    weekdays.iter().find_map(|name| httpdate::parse_http_date(&format!("{name}{rest}")).ok())
}

/// `duration` in whole milliseconds, saturating at `u64::MAX`.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// The current wall-clock time.
    fn now(&self) -> UnixMillis;
}

/// The operating system's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the system clock")]
    fn now(&self) -> UnixMillis {
        // A clock before 1970 reads as the epoch: nothing here can do better.
        UnixMillis(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis))
    }
}

/// A clock that moves only when told to, for tests and offline explanations.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock standing at `now`.
    #[must_use]
    pub const fn at(now: UnixMillis) -> Self {
        Self(AtomicU64::new(now.0))
    }

    /// Moves the clock forward by `duration`.
    pub fn advance(&self, duration: Duration) {
        self.0.fetch_add(millis(duration), Ordering::SeqCst);
    }

    /// Sets the clock, backwards too.
    pub fn set(&self, now: UnixMillis) {
        self.0.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_round_up_for_waiting_and_down_for_display() {
        assert_eq!(UnixMillis(1_001).as_secs(), 1);
        assert_eq!(UnixMillis(1_001).as_secs_ceil(), 2);
        assert_eq!(UnixMillis::from_secs(u64::MAX).0, u64::MAX);
    }

    #[test]
    fn dates_are_read_in_all_forms_and_cases_and_on_any_weekday() {
        let at = UnixMillis::from_secs(784_111_777);
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "sun, 06 NOV 1994 08:49:37 gmt",
            "SUNDAY, 06-nov-94 08:49:37 Gmt",
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "tue nov  6 08:49:37 1994",
        ] {
            assert_eq!(UnixMillis::from_http_date(text), Some(at), "{text}");
        }
        for text in [
            "",
            "0",
            "Sun",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Som, 06 Nov 1994 08:49:37 GMT",
            "é, 06 Nov 1994",
        ] {
            assert_eq!(UnixMillis::from_http_date(text), None, "{text}");
        }
    }

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = ManualClock::at(UnixMillis(5));
        clock.advance(Duration::from_millis(7));
        assert_eq!(clock.now(), UnixMillis(12));
        clock.set(UnixMillis(3));
        assert_eq!(clock.now(), UnixMillis(3));
    }
}
