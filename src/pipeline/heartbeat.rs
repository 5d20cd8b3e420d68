//! How many instances count in the same store: each says every two seconds that it is alive and is told how many
//! are. The number is kept while the store is away, and until all had time to be heard again; what it is used for is
//! decided elsewhere.

use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::Value;
use tokio::time::Instant;

use super::gateway::Shared;
use crate::clock::millis;
use crate::redis::{Lane, Script};

/// The script that notes this instance and counts them all.
pub static HEARTBEAT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../redis/scripts/heartbeat.lua")));

/// The key, after the prefix, of the instances' sorted set.
const KEY: &str = "rate_limit:gw";
const EVERY: Duration = Duration::from_secs(2);
/// An instance that missed three beats is not counted any more.
const ALIVE: Duration = Duration::from_secs(6);
/// Between two attempts while the store is away.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs until the process ends. Without a store there is one instance for ever.
pub async fn beat(shared: Arc<Shared>) {
    let Some(store) = &shared.store else { return };
    let key = format!("{}{KEY}", store.settings().key_prefix);
    let slot = store.shard(key.as_bytes());
    let instance = format!("{:032x}", fastrand::u128(..));
    let gauge = &shared.metrics.families().instances;
    let mut headcount = Headcount::new();
    loop {
        let mut command = HEARTBEAT.command();
        command.arg(1).arg(&key).arg(&instance).arg(millis(ALIVE));
        let reply = if store.available(slot) {
            store.eval(Lane::Bodies, slot, &HEARTBEAT, &command).await.ok()
        } else {
            None
        };
        let heard = reply.is_some();
        match reply {
            Some(Value::Int(alive)) => {
                let alive = headcount.told(u32::try_from(alive).unwrap_or(1), Instant::now());
                shared.instances.store(alive, Ordering::Relaxed);
                gauge.set(i64::from(alive));
            }
            Some(_) => {}
            None => headcount.missed(),
        }
        tokio::time::sleep(if heard { EVERY } else { PAUSE }).await;
    }
}

/// How many there are, as far as can be said: after an outage the store has forgotten those that have not been heard
/// again, and the first one would take every limit for itself.
struct Headcount {
    alive: u32,
    /// Until then nobody is taken to be gone; `None` after a beat without an answer.
    settled_at: Option<Instant>,
}

impl Headcount {
    const fn new() -> Self {
        Self { alive: 1, settled_at: None }
    }

    /// A beat had no answer.
    const fn missed(&mut self) {
        self.settled_at = None;
    }

    /// How many there are now that the store says `alive`.
    fn told(&mut self, alive: u32, now: Instant) -> u32 {
        let settled_at = *self.settled_at.get_or_insert(now + ALIVE);
        self.alive = if now < settled_at { self.alive.max(alive) } else { alive.max(1) };
        self.alive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_taken_to_be_gone_until_all_had_time_to_be_heard_after_an_outage() {
        let (mut headcount, start) = (Headcount::new(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(headcount.told(1, at(0)), 1);
        assert_eq!(headcount.told(3, at(2)), 3);
        assert_eq!(headcount.told(4, at(8)), 4);
        assert_eq!(headcount.told(3, at(10)), 3, "one has gone");
        headcount.missed();
        assert_eq!(headcount.told(1, at(60)), 3, "the first that is heard again");
        assert_eq!(headcount.told(2, at(62)), 3);
        assert_eq!(headcount.told(4, at(64)), 4);
        assert_eq!(headcount.told(2, at(66)), 2);
        assert_eq!(headcount.told(0, at(68)), 1);
    }
}
