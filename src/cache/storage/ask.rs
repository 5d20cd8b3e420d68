//! The way to the shared tier: lookups of one key go together, and instances wait for each other's fetches. Who asks is
//! a task of its own, so that it goes on when the request that began it does not.

use std::sync::Arc;
use std::time::Duration;

use pingora::cache::CacheKey;
use pingora::cache::key::CacheHashKey;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Tier, Tiers};
use crate::cache::entry::Entry;
use crate::cache::flights::{Boarding, Fetch, Landed, Landing, Serial};
use crate::cache::patience::Patience;
use crate::cache::remote::{Lookup, Remote, Waited};

/// The first pause before another instance's entry is looked for again, and the longest: each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

type Found = Option<(Arc<Entry>, Tier)>;

impl Tiers {
    /// Asks the shared tier, or waits for who asks it already. `claims`: the caller has nothing at all, and will fetch
    /// the object if it gets nothing here.
    pub(super) async fn ask(&'static self, remote: &'static Remote, key: &CacheKey, claims: bool) -> Found {
        let hash = u128::from_be_bytes(key.combined_bin());
        let (serial, landing) = match self.flights.board(hash, claims, Instant::now()) {
            Boarding::Fetching => return None,
            Boarding::Alone => {
                let found = remote.get(key, self.clock.now()).await?;
                return Some(self.adopt(hash, found));
            }
            Boarding::Joined(serial, landing) => (serial, landing),
            Boarding::First(serial, landing, tell) => {
                let flight = Flight { tiers: self, remote, key: key.clone(), hash, serial, tell: Some(tell) };
                tokio::spawn(flight.fly(claims));
                (serial, landing)
            }
        };
        self.wait(remote, key, serial, landing).await
    }

    /// Waits with those who wait for another instance, if any do; asks nobody.
    pub(super) async fn wait_with_others(&'static self, key: &CacheKey) -> Found {
        let remote = self.remote.as_ref()?;
        let (serial, landing) = self.flights.board_late(u128::from_be_bytes(key.combined_bin()))?;
        self.wait(remote, key, serial, landing).await
    }

    async fn wait(&'static self, remote: &Remote, key: &CacheKey, serial: Serial, landing: Landing) -> Found {
        let hash = u128::from_be_bytes(key.combined_bin());
        let landing = Passenger { tiers: self, hash, serial, heard: false }.wait(landing);
        let landed = match Patience::began(key) {
            None => landing.await,
            // It may have waited before, here or elsewhere.
            Some(began) => {
                let heard = tokio::time::timeout_at(began + self.patience, landing).await;
                heard.unwrap_or_else(|_| {
                    Patience::begin(key, self.patience);
                    Landed::default()
                })
            }
        };
        if landed.waited {
            remote.waited(Waited::Request);
            Patience::begin(key, self.patience);
        }
        // Another key with this hash may have been asked for.
        landed.found.filter(|(entry, _)| entry.is_named(key))
    }

    /// A fetch of this instance has ended: whoever waits elsewhere may go on. `unshared`: it gave nothing that others
    /// could have.
    pub(in crate::cache) fn fetched(&self, key: &CacheKey, unshared: bool) {
        if let Some(remote) = &self.remote
            && self.flights.fetched(u128::from_be_bytes(key.combined_bin()))
        {
            remote.give_back(&key.combined(), unshared);
        }
    }

    /// Takes an entry of the shared tier into memory, if there is room and nothing fresher is there.
    fn adopt(&self, hash: u128, found: Entry) -> (Arc<Entry>, Tier) {
        let found = self.paid(found);
        let is_fresher =
            || self.memory.peek(&hash).is_none_or(|held| held.fresh_until() < found.fresh_until());
        if found.is_charged() && is_fresher() {
            self.memory.insert(hash, Arc::clone(&found));
        }
        (found, Tier::Remote)
    }

    fn abandon(&self, hash: u128) {
        if let Some(remote) = &self.remote {
            remote.give_back(&format!("{hash:032x}"), false);
        }
    }
}

/// A lookup that waits for a flight. Dropped before it lands, it leaves.
struct Passenger {
    tiers: &'static Tiers,
    hash: u128,
    serial: Serial,
    heard: bool,
}

impl Passenger {
    async fn wait(mut self, landing: Landing) -> Landed {
        let landed = landing.await;
        self.heard = true;
        landed.unwrap_or_default()
    }
}

impl Drop for Passenger {
    fn drop(&mut self) {
        if self.tiers.flights.leave(self.hash, self.serial, self.heard) {
            self.tiers.abandon(self.hash);
        }
    }
}

/// Who asks, for all that wait. Dropped before its end, as when its thread ends, it tells them that there is nothing.
struct Flight {
    tiers: &'static Tiers,
    remote: &'static Remote,
    key: CacheKey,
    hash: u128,
    serial: Serial,
    tell: Option<oneshot::Sender<Landed>>,
}

impl Flight {
    async fn fly(mut self, claims: bool) {
        let (landed, fetch) = if claims {
            self.find_or_claim().await
        } else {
            let found = self.remote.get(&self.key, self.tiers.clock.now()).await;
            let found = found.map(|found| self.tiers.adopt(self.hash, found));
            (Landed { found, waited: false }, None)
        };
        self.land(landed, fetch);
    }

    async fn find_or_claim(&self) -> (Landed, Option<Fetch>) {
        let mut waited = false;
        let mut pause = FIRST_PAUSE;
        // The rest is for a fetch of this instance, so that not everybody fetches then.
        let give_up = Instant::now() + self.tiers.patience / 2;
        loop {
            let claimed = match self.remote.get_or_claim(&self.key, self.tiers.clock.now()).await {
                Lookup::Found(found) => {
                    let found = Some(self.tiers.adopt(self.hash, found));
                    return (Landed { found, waited }, None);
                }
                Lookup::Fetch { claimed } => Some(claimed),
                Lookup::Elsewhere => None,
            };
            // A request that could not ask the shared tier may have fetched it.
            if let Some(entry) = self.in_memory() {
                if claimed == Some(true) {
                    self.remote.give_back(&self.key.combined(), false);
                }
                return (Landed { found: Some((entry, Tier::Memory)), waited }, None);
            }
            let now = Instant::now();
            if let Some(claimed) = claimed {
                let until = now + if claimed { self.remote.hold() } else { self.tiers.patience };
                return (Landed { found: None, waited }, Some(Fetch { claimed, until }));
            }
            let in_vain = now >= give_up;
            if in_vain || !self.tiers.flights.goes_on(self.hash, self.serial) {
                if in_vain {
                    self.remote.waited(Waited::GivenUp);
                }
                let until = now + self.tiers.patience;
                return (Landed { found: None, waited }, Some(Fetch { claimed: false, until }));
            }
            waited = true;
            tokio::time::sleep_until(give_up.min(now + pause)).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    fn in_memory(&self) -> Option<Arc<Entry>> {
        let now = self.tiers.clock.now();
        self.tiers.in_memory(&self.key, now).filter(|entry| entry.fresh_until() >= now)
    }

    fn land(&mut self, landed: Landed, fetch: Option<Fetch>) {
        let Some(tell) = self.tell.take() else { return };
        if self.tiers.flights.land(self.hash, self.serial, fetch) {
            self.tiers.abandon(self.hash);
        }
        // Nobody waits any more if this fails.
        drop(tell.send(landed));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.land(Landed::default(), None);
    }
}
