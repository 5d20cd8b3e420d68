//! Who asks the shared tier for which key, and what this instance is fetching: lookups of one key are merged, and none
//! asks for what is on its way already. A table of states; it neither asks nor waits.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::Shared;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::entry::Entry;
use super::storage::Tier;

const SHARDS: usize = 16;
/// Keys looked up or fetched at once, per shard; beyond, lookups ask for themselves.
const MOST_PER_SHARD: usize = 4096;

/// What a merged lookup came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Landed {
    /// The entry and where it was; `None`: the caller fetches.
    pub(super) found: Option<(Arc<Entry>, Tier)>,
    /// Another instance was fetching, and this one waited for it.
    pub(super) waited: bool,
}

/// The outcome of a flight, for everybody aboard; an error when its task ended early.
pub(super) type Landing = Shared<oneshot::Receiver<Landed>>;

/// What a lookup has to do.
pub(super) enum Boarding {
    /// Nothing: this instance is fetching the object, or may.
    Fetching,
    /// Ask for itself: the table is full.
    Alone,
    /// Wait for what another lookup finds.
    Joined(Serial, Landing),
    /// Ask, tell the others, and wait as they do.
    First(Serial, Landing, oneshot::Sender<Landed>),
}

/// Names one flight, so that news of it does not hit its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serial(u64);

/// What this instance does after a flight that found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fetch {
    /// It has told the others, or may have.
    pub(super) claimed: bool,
    /// When its fetch no longer holds lookups back.
    pub(super) until: Instant,
}

enum Slot {
    Asking {
        serial: Serial,
        landing: Landing,
        /// Lookups that wait for it.
        waiting: usize,
        /// Whether nothing at all is held: it waits for other instances, and may end in a fetch.
        claims: bool,
        /// It waits for another instance, and for the shared tier no longer.
        elsewhere: bool,
    },
    Fetching {
        serial: Serial,
        fetch: Fetch,
        /// Lookups that have not heard yet.
        waiting: usize,
        /// Somebody has heard and goes on, so that the end of the fetch will be told.
        taken: bool,
    },
}

#[derive(Default)]
struct Shard {
    slots: HashMap<u128, Slot, ahash::RandomState>,
    last: u64,
}

/// Every flight of this instance.
pub(super) struct Flights([Mutex<Shard>; SHARDS]);

impl Default for Flights {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl Flights {
    /// Lets a lookup of `hash` join whoever asks already. `claims`: it has nothing at all, and will fetch.
    pub(super) fn board(&self, hash: u128, claims: bool, now: Instant) -> Boarding {
        let mut shard = self.shard(hash).lock();
        if let Some(slot) = shard.slots.get_mut(&hash) {
            match slot {
                // Something stale is better than a wait.
                Slot::Asking { claims: true, .. } if !claims => return Boarding::Fetching,
                Slot::Asking { serial, landing, waiting, .. } => {
                    *waiting += 1;
                    return Boarding::Joined(*serial, landing.clone());
                }
                Slot::Fetching { fetch, .. } if now < fetch.until => return Boarding::Fetching,
                Slot::Fetching { .. } => {}
            }
        }
        if shard.slots.len() >= MOST_PER_SHARD {
            shard.slots.retain(|_, slot| match slot {
                Slot::Asking { .. } => true,
                Slot::Fetching { fetch, .. } => now < fetch.until,
            });
            if shard.slots.len() >= MOST_PER_SHARD {
                return Boarding::Alone;
            }
        }
        shard.last += 1;
        let serial = Serial(shard.last);
        let (tell, told) = oneshot::channel();
        let landing = told.shared();
        let slot = Slot::Asking { serial, landing: landing.clone(), waiting: 1, claims, elsewhere: false };
        shard.slots.insert(hash, slot);
        Boarding::First(serial, landing, tell)
    }

    /// Lets a lookup that must not ask the shared tier join a flight that knows of another instance's fetch.
    pub(super) fn board_late(&self, hash: u128) -> Option<(Serial, Landing)> {
        match self.shard(hash).lock().slots.get_mut(&hash) {
            Some(Slot::Asking { serial, landing, waiting, elsewhere: true, .. }) => {
                *waiting += 1;
                Some((*serial, landing.clone()))
            }
            _ => None,
        }
    }

    /// Another instance is fetching what this flight asks for. Returns whether anybody still waits for it.
    pub(super) fn goes_on(&self, hash: u128, serial: Serial) -> bool {
        match self.shard(hash).lock().slots.get_mut(&hash) {
            Some(Slot::Asking { serial: own, waiting, elsewhere, .. }) if *own == serial => {
                *elsewhere = true;
                *waiting > 0
            }
            _ => false,
        }
    }

    /// A flight has ended; `fetch` says what comes next. Before anybody is told. Returns whether a claim is to be given
    /// back, because nobody is left to fetch.
    #[must_use]
    pub(super) fn land(&self, hash: u128, serial: Serial, fetch: Option<Fetch>) -> bool {
        let mut shard = self.shard(hash).lock();
        let Place::Occupied(mut place) = shard.slots.entry(hash) else {
            return fetch.is_some_and(|fetch| fetch.claimed);
        };
        let waiting = match place.get() {
            Slot::Asking { serial: own, waiting, .. } if *own == serial => *waiting,
            _ => return fetch.is_some_and(|fetch| fetch.claimed),
        };
        match fetch {
            Some(fetch) if waiting > 0 => {
                place.insert(Slot::Fetching { serial, fetch, waiting, taken: false });
                false
            }
            ended => {
                place.remove();
                ended.is_some_and(|fetch| fetch.claimed)
            }
        }
    }

    /// A lookup leaves the flight: it has `heard` the outcome and goes on, or it is given up. Returns whether a claim is
    /// to be given back, because nobody is left to fetch.
    #[must_use]
    pub(super) fn leave(&self, hash: u128, serial: Serial, heard: bool) -> bool {
        let mut shard = self.shard(hash).lock();
        let Place::Occupied(mut place) = shard.slots.entry(hash) else { return false };
        match place.get_mut() {
            Slot::Asking { serial: own, waiting, .. } if *own == serial => {
                *waiting = waiting.saturating_sub(1);
                false
            }
            Slot::Fetching { serial: own, fetch, waiting, taken } if *own == serial => {
                *waiting = waiting.saturating_sub(1);
                *taken |= heard;
                let abandoned = *waiting == 0 && !*taken;
                let claimed = fetch.claimed;
                if abandoned {
                    place.remove();
                }
                abandoned && claimed
            }
            _ => false,
        }
    }

    /// A fetch of this instance has ended, with or without success. Returns whether a claim is to be given back.
    #[must_use]
    pub(super) fn fetched(&self, hash: u128) -> bool {
        let mut shard = self.shard(hash).lock();
        match shard.slots.get(&hash) {
            Some(Slot::Fetching { fetch, .. }) => {
                let claimed = fetch.claimed;
                shard.slots.remove(&hash);
                claimed
            }
            Some(Slot::Asking { .. }) | None => false,
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.lock().slots.len()).sum()
    }

    fn shard(&self, hash: u128) -> &Mutex<Shard> {
        let [first, ..] = &self.0;
        self.0.get((hash % SHARDS as u128) as usize).unwrap_or(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const KEY: u128 = 7;

    fn first(flights: &Flights) -> (Serial, oneshot::Sender<Landed>) {
        match flights.board(KEY, true, Instant::now()) {
            Boarding::First(serial, _, tell) => (serial, tell),
            _ => panic!("nobody asks yet"),
        }
    }

    fn joins(flights: &Flights, claims: bool) -> bool {
        matches!(flights.board(KEY, claims, Instant::now()), Boarding::Joined(..))
    }

    fn is_fetching(flights: &Flights) -> bool {
        matches!(flights.board(KEY, true, Instant::now()), Boarding::Fetching)
    }

    fn claim() -> Fetch {
        Fetch { claimed: true, until: Instant::now() + Duration::from_secs(5) }
    }

    #[test]
    fn lookups_join_the_one_that_asks_and_then_wait_for_the_fetch_elsewhere() {
        let flights = Flights::default();
        let (serial, _tell) = first(&flights);
        assert!(joins(&flights, true));
        assert!(!joins(&flights, false), "who holds something stale waits for nobody");
        assert!(!flights.land(KEY, serial, Some(claim())));
        assert!(is_fetching(&flights));
        assert!(!flights.leave(KEY, serial, true) && !flights.leave(KEY, serial, false));
        assert!(is_fetching(&flights), "one of them has gone on to fetch");
        assert!(flights.fetched(KEY), "the claim goes back");
        assert!(!flights.fetched(KEY), "once");
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn a_claim_that_nobody_uses_is_given_back() {
        let flights = Flights::default();
        // Everybody left before it landed.
        let (serial, _tell) = first(&flights);
        assert!(!flights.leave(KEY, serial, false));
        assert!(!flights.goes_on(KEY, serial));
        assert!(flights.land(KEY, serial, Some(claim())));
        // Everybody left before they heard.
        let (serial, _tell) = first(&flights);
        assert!(!flights.land(KEY, serial, Some(claim())));
        assert!(flights.leave(KEY, serial, false));
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn a_fetch_that_takes_too_long_holds_nobody_back() {
        let flights = Flights::default();
        let (serial, _tell) = first(&flights);
        let until = Instant::now();
        assert!(!flights.land(KEY, serial, Some(Fetch { claimed: true, until })));
        let (second, _tell) = first(&flights);
        assert_ne!(serial, second);
        // News of the first flight does not hit the second.
        assert!(!flights.leave(KEY, serial, false) && flights.goes_on(KEY, second));
        assert!(!flights.fetched(KEY), "nor does the end of the first fetch");
    }

    #[test]
    fn who_may_not_ask_waits_only_for_what_another_instance_fetches() {
        let flights = Flights::default();
        assert!(flights.board_late(KEY).is_none());
        let (serial, _tell) = first(&flights);
        assert!(flights.board_late(KEY).is_none(), "it would wait for the shared tier");
        assert!(flights.goes_on(KEY, serial));
        assert!(flights.board_late(KEY).is_some());
        assert!(!flights.leave(KEY, serial, false) && flights.goes_on(KEY, serial));
        assert!(!flights.land(KEY, serial, Some(claim())));
        assert!(flights.board_late(KEY).is_none(), "the lock of this instance is enough");
    }

    #[test]
    fn the_table_is_bounded() {
        let flights = Flights::default();
        let now = Instant::now();
        let most = (SHARDS * MOST_PER_SHARD) as u128;
        for hash in 0..most {
            assert!(matches!(flights.board(hash, true, now), Boarding::First(..)));
        }
        assert!(matches!(flights.board(most, true, now), Boarding::Alone));
    }
}
