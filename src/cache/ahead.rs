//! When a stored response is fetched anew although it is still fresh: shortly before clients ask for it anyway, and
//! for those that are kept warm. Pure but for the memory of who tried when; it fetches nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{UnixMillis, millis};

/// Places where attempts are remembered; objects that share one wait for each other's pause.
const PLACES: usize = 8192;
/// Attempts that fit a window, so that an upstream that fails is asked a few times and not at every hit.
const TRIES: u32 = 8;
/// Shortest and longest pause between two attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// A warm response is refreshed this part of its freshness before the end, unless the route says when.
const WARM_PART: u32 = 5;
/// The same for what is fresh for long.
const WARM_MOST: Duration = Duration::from_secs(30);

/// Since when and until when a stored response is fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// When it was fetched or last validated.
    pub since: UnixMillis,
    /// The end.
    pub until: UnixMillis,
}

impl Freshness {
    /// How long before the end it is refreshed at a client's hit: as `declared`, but never more than half of the time
    /// that it was fresh for, since it would be fetched at nearly every request.
    #[must_use]
    pub fn window(self, declared: Option<Duration>) -> Duration {
        declared.unwrap_or_default().min(self.lifetime() / 2)
    }

    /// The same for what is kept warm, where nobody declared anything too.
    #[must_use]
    pub fn warm_window(self, declared: Option<Duration>) -> Duration {
        declared.unwrap_or(WARM_MOST.min(self.lifetime() / WARM_PART)).min(self.lifetime() / 2)
    }

    /// Whether the last `window` before the end has begun, and not passed.
    #[must_use]
    pub fn is_ending(self, window: Duration, now: UnixMillis) -> bool {
        now <= self.until && self.until.millis_since(now) < millis(window)
    }

    /// Whether more than half of it has passed.
    #[must_use]
    pub fn is_half_over(self, now: UnixMillis) -> bool {
        self.is_ending(self.lifetime() / 2, now)
    }

    /// Whether it was never fresh: each use needs a validation.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.until.0 <= self.since.0
    }

    fn lifetime(self) -> Duration {
        Duration::from_millis(self.until.millis_since(self.since))
    }
}

/// How long after an attempt to refresh within `window` the next one may follow.
#[must_use]
pub fn pause(window: Duration) -> Duration {
    (window / TRIES).clamp(PAUSE.0, PAUSE.1)
}

/// Who tried when: of many hits on one object, one begins a refresh. Bounded, whatever is stored.
#[derive(Debug)]
pub struct Attempts(Box<[AtomicU64]>);

impl Default for Attempts {
    fn default() -> Self {
        Self((0..PLACES).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Attempts {
    /// Whether the caller is the one to try for the object with this hash, now that `pause` has passed.
    pub fn begin(&self, object: u128, pause: Duration, now: UnixMillis) -> bool {
        let place = usize::try_from(object % PLACES as u128).ok().and_then(|index| self.0.get(index));
        let Some(place) = place else { return false };
        let last = place.load(Ordering::Relaxed);
        // A clock that was set back must not hold up refreshes.
        let paused = now.0 < last || now.0 - last >= millis(pause);
        paused && place.compare_exchange(last, now.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);
    const SECOND: Duration = Duration::from_secs(1);

    fn fresh_for(seconds: u32) -> Freshness {
        Freshness { since: NOW, until: NOW.plus(SECOND * seconds) }
    }

    #[test]
    fn the_window_is_the_declared_one_but_never_more_than_half_of_the_freshness() {
        assert_eq!(fresh_for(300).window(Some(SECOND * 30)), SECOND * 30);
        assert_eq!(fresh_for(40).window(Some(SECOND * 30)), SECOND * 20);
        assert_eq!(fresh_for(0).window(Some(SECOND * 30)), Duration::ZERO);
        assert_eq!(fresh_for(300).window(None), Duration::ZERO);
    }

    #[test]
    fn what_is_kept_warm_always_has_a_window() {
        assert_eq!(fresh_for(300).warm_window(None), SECOND * 30);
        assert_eq!(fresh_for(100).warm_window(None), SECOND * 20);
        assert_eq!(fresh_for(100).warm_window(Some(SECOND * 60)), SECOND * 50);
        assert_eq!(fresh_for(0).warm_window(None), Duration::ZERO);
    }

    #[test]
    fn the_window_begins_before_the_end_and_ends_there() {
        let at = |millis: u64| fresh_for(100).is_ending(SECOND * 30, UnixMillis(NOW.0 + millis));
        assert!(!at(70_000) && at(70_001) && at(100_000) && !at(100_001));
        assert!(!fresh_for(100).is_ending(Duration::ZERO, UnixMillis(NOW.0 + 100_000)));
        assert!(!fresh_for(100).is_half_over(UnixMillis(NOW.0 + 50_000)));
        assert!(fresh_for(100).is_half_over(UnixMillis(NOW.0 + 50_001)));
    }

    #[test]
    fn one_of_many_begins_and_the_next_one_after_the_pause() {
        let attempts = Attempts::default();
        let begun = (0..100).filter(|_| attempts.begin(7, SECOND, NOW)).count();
        assert_eq!(begun, 1);
        assert!(attempts.begin(8, SECOND, NOW), "another object");
        assert!(!attempts.begin(7, SECOND, UnixMillis(NOW.0 + 999)));
        assert!(attempts.begin(7, SECOND, NOW.plus(SECOND)));
        assert!(attempts.begin(7, SECOND, UnixMillis(NOW.0 - 5_000)), "the clock was set back");
    }

    #[test]
    fn a_window_has_room_for_a_few_attempts() {
        assert_eq!(pause(SECOND), SECOND / 4);
        assert_eq!(pause(SECOND * 16), SECOND * 2);
        assert_eq!(pause(SECOND * 600), SECOND * 5);
    }
}
