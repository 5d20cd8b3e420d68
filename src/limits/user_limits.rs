//! What operators, or rules on behaviour, make of single users' plan limits: the hash `user_limits:<user>` of the
//! store, remembered here so that no request waits for it. It asks nobody; who fetches is decided above.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::plan::{Plan, sane};
use crate::clock::{UnixMillis, millis};
use crate::identifiers::encode_key_part;

/// Users fetched at the same time by one instance.
const MAX_FETCHES: usize = 32;
/// As in the configuration; larger numbers stop here.
const MAX_LIMIT: f64 = 1_000_000_000.0;

/// The fields of the hash, in the order in which [`Adjustment::of`] takes their values.
pub const FIELDS: [&str; 4] = ["multiplier", "minute", "hour", "day"];

/// How one user's limits differ from the plan's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adjustment {
    /// Times the plan's limits, beside the token's multiplier; positive and finite.
    pub multiplier: f64,
    /// Limits instead of the plan's, of its windows of a minute, an hour and a day.
    windows: [Option<u64>; 3],
}

/// Periods of the windows that can be replaced, in milliseconds.
const PERIODS: [u64; 3] = [60_000, 3_600_000, 86_400_000];

/// Which of minute, hour and day a window of this length is.
pub(super) fn named_period(period_ms: u64) -> Option<usize> {
    PERIODS.iter().position(|period| *period == period_ms)
}

impl Default for Adjustment {
    /// No difference.
    fn default() -> Self {
        Self { multiplier: 1.0, windows: [None; 3] }
    }
}

impl Adjustment {
    /// What the values of [`FIELDS`] say. What is no positive finite number counts as absent.
    pub fn of(values: [Option<&str>; 4]) -> Self {
        let number = |text: Option<&str>| {
            text?.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0)
        };
        let [multiplier, minute, hour, day] = values.map(number);
        // A limit between 0 and 1 is 1; the bounds keep the conversion exact.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let limit = |number: f64| number.clamp(1.0, MAX_LIMIT) as u64;
        Self {
            multiplier: multiplier.map_or(1.0, sane),
            windows: [minute, hour, day].map(|number| number.map(limit)),
        }
    }

    /// `plan` with the windows that this user has otherwise; `None` when there are none.
    pub fn plan(&self, plan: &Plan) -> Option<Plan> {
        let limit_of = |period_ms: u64| self.windows.get(named_period(period_ms)?).copied().flatten();
        plan.windows()
            .iter()
            .any(|window| limit_of(window.period_ms()).is_some())
            .then(|| plan.with_limits(limit_of))
    }
}

/// The key of the hash for `user` (as policies count by it), behind `prefix`.
pub fn key(prefix: &str, user: &str) -> String {
    format!("{prefix}user_limits:{}", encode_key_part(user))
}

#[derive(Debug, Default)]
struct Known {
    adjustment: Mutex<Adjustment>,
    /// When it was read last, successfully or not; 0: never.
    read_at: AtomicU64,
    fetching: AtomicBool,
}

/// What is known of users: at most so many, the least recently used ones forgotten first.
#[derive(Debug)]
pub struct UserLimits {
    known: quick_cache::sync::Cache<u64, Arc<Known>>,
    hasher: ahash::RandomState,
    refresh_ms: u64,
    fetches: Arc<AtomicUsize>,
}

impl UserLimits {
    /// Room for `capacity` users, each looked up anew once what is known is older than `refresh`.
    pub fn new(capacity: usize, refresh: Duration) -> Self {
        Self {
            known: quick_cache::sync::Cache::new(capacity.max(1)),
            hasher: ahash::RandomState::new(),
            refresh_ms: millis(refresh),
            fetches: Arc::default(),
        }
    }

    /// What is known of `user`, no difference when nothing is; and, when that is too old, the right to read it anew.
    /// One fetch per user is due at a time.
    pub fn of(&self, user: &str, now: UnixMillis) -> (Adjustment, Option<Due>) {
        let hash = self.hasher.hash_one(user);
        // Two requests that make an entry at once may both fetch, once.
        let known = self.known.get(&hash).unwrap_or_else(|| {
            let known = Arc::<Known>::default();
            self.known.insert(hash, Arc::clone(&known));
            known
        });
        let adjustment = *known.adjustment.lock();
        let read_at = known.read_at.load(Ordering::Acquire);
        let fresh = read_at != 0 && now.0.abs_diff(read_at) < self.refresh_ms;
        let due = (!fresh).then(|| self.due(known)).flatten();
        (adjustment, due)
    }

    fn due(&self, known: Arc<Known>) -> Option<Due> {
        if known.fetching.swap(true, Ordering::AcqRel) {
            return None;
        }
        let due = Due { known, fetches: Arc::clone(&self.fetches) };
        // The permit counts from here on, also the one that is given back at once.
        (self.fetches.fetch_add(1, Ordering::AcqRel) < MAX_FETCHES).then_some(due)
    }
}

/// The right to read one user's hash; dropped, somebody else may.
#[derive(Debug)]
pub struct Due {
    known: Arc<Known>,
    fetches: Arc<AtomicUsize>,
}

impl Due {
    /// Ends the fetch: `None` keeps what was known until the next refresh.
    pub fn read(self, adjustment: Option<Adjustment>, now: UnixMillis) {
        if let Some(adjustment) = adjustment {
            *self.known.adjustment.lock() = adjustment;
        }
        self.known.read_at.store(now.0.max(1), Ordering::Release);
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        self.fetches.fetch_sub(1, Ordering::AcqRel);
        self.known.fetching.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::plan::Plans;
    use super::super::policy::Window;
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    #[test]
    fn values_that_are_no_positive_finite_numbers_count_as_absent() {
        for odd in ["", "x", "0", "-1", "NaN", "inf", "-inf", "1e999", "1,5"] {
            assert_eq!(Adjustment::of([Some(odd); 4]), Adjustment::default(), "{odd}");
        }
        assert_eq!(Adjustment::of([None; 4]), Adjustment::default());
        let told = Adjustment::of([Some("1.5"), Some("30"), Some(" 7.9 "), Some("1e300")]);
        assert!((told.multiplier - 1.5).abs() < f64::EPSILON);
        assert_eq!(told.windows, [Some(30), Some(7), Some(1_000_000_000)]);
    }

    #[test]
    fn windows_are_replaced_by_their_length_and_the_plan_stays_the_plan() {
        let window = |limit, seconds| Window::new(limit, Duration::from_secs(seconds)).unwrap();
        let plan = Plan::new("pro", vec![window(200, 60), window(9, 10), window(5_000, 86_400)]).unwrap();
        let told = Adjustment::of([None, Some("30"), Some("70"), None]);
        let changed = told.plan(&plan).unwrap();
        assert_eq!(changed.windows().iter().map(Window::limit).collect::<Vec<_>>(), [30, 9, 5_000]);
        assert_eq!((changed.name(), changed.detail()), (plan.name(), plan.detail()));
        assert_eq!(Adjustment::of([Some("2"), None, None, None]).plan(&plan), None);
        let free = Plans::standard().unwrap();
        assert_eq!(
            Adjustment::of([None, None, Some("5"), None]).plan(free.named(None)),
            None,
            "no hour there"
        );
    }

    #[test]
    fn what_is_known_is_used_until_it_is_old_and_fetched_once() {
        let limits = UserLimits::new(10, Duration::from_secs(10));
        let (first, due) = limits.of("ada", NOW);
        assert_eq!(first, Adjustment::default());
        let due = due.unwrap();
        assert!(limits.of("ada", NOW).1.is_none(), "one fetch at a time");
        assert!(limits.of("bob", NOW).1.is_some());
        let told = Adjustment::of([Some("2"), None, None, None]);
        due.read(Some(told), NOW);
        let (known, due) = limits.of("ada", NOW.plus(Duration::from_millis(9_999)));
        assert_eq!((known, due.is_none()), (told, true));
        let later = NOW.plus(Duration::from_secs(10));
        let (known, due) = limits.of("ada", later);
        assert_eq!(known, told, "nobody waits");
        due.unwrap().read(None, later);
        assert_eq!(limits.of("ada", later).0, told, "what cannot be read stays");
        assert!(limits.of("ada", later).1.is_none());
    }

    #[test]
    fn a_fetch_that_is_given_up_is_due_again() {
        let limits = UserLimits::new(10, Duration::from_secs(10));
        drop(limits.of("ada", NOW).1.unwrap());
        assert!(limits.of("ada", NOW).1.is_some());
    }

    #[test]
    fn few_fetches_run_at_once_and_few_users_are_remembered() {
        let limits = UserLimits::new(100, Duration::from_secs(10));
        let due: Vec<Due> = (0..1_000).filter_map(|user| limits.of(&format!("u{user}"), NOW).1).collect();
        assert_eq!(due.len(), MAX_FETCHES);
        assert!(limits.known.len() <= 100);
        drop(due);
        assert!(limits.of("u1001", NOW).1.is_some());
    }

    #[test]
    fn keys_are_encoded_and_prefixed() {
        assert_eq!(key("", "42"), "user_limits:42");
        assert_eq!(key("app:", "a:b{c}"), "app:user_limits:a%3Ab%7Bc%7D");
    }

    proptest! {
        #[test]
        fn any_text_gives_usable_numbers(texts: [String; 4]) {
            let told = Adjustment::of([Some(&texts[0]), Some(&texts[1]), Some(&texts[2]), Some(&texts[3])]);
            prop_assert!(told.multiplier.is_finite() && told.multiplier > 0.0);
            prop_assert!(told.windows.iter().flatten().all(|limit| *limit >= 1));
        }
    }
}
