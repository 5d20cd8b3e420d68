//! How many instances count in the same store: each says every two seconds that it is alive and is told how many
//! are. The number is kept while the store is away; what it is used for is decided elsewhere.

use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::Value;

use super::gateway::Shared;
use crate::redis::{Lane, Script};

/// The script that notes this instance and counts them all.
pub static HEARTBEAT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../redis/scripts/heartbeat.lua")));

/// The key, after the prefix, of the instances' sorted set.
const KEY: &str = "rate_limit:gw";
const EVERY: Duration = Duration::from_secs(2);
/// An instance that missed three beats is not counted any more.
const ALIVE_MS: u64 = 6_000;
/// Between two attempts while the store is away.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs until the process ends. Without a store there is one instance for ever.
pub async fn beat(shared: Arc<Shared>) {
    let Some(store) = &shared.store else { return };
    let key = format!("{}{KEY}", store.settings().key_prefix);
    let instance = format!("{:032x}", fastrand::u128(..));
    let gauge = &shared.metrics.families().instances;
    loop {
        let mut command = HEARTBEAT.command();
        command.arg(1).arg(&key).arg(&instance).arg(ALIVE_MS);
        let reply =
            if store.available() { store.eval(Lane::Bodies, &HEARTBEAT, &command).await.ok() } else { None };
        let heard = reply.is_some();
        if let Some(Value::Int(alive)) = reply
            && let Ok(alive @ 1..) = u32::try_from(alive)
        {
            shared.instances.store(alive, Ordering::Relaxed);
            gauge.set(i64::from(alive));
        }
        tokio::time::sleep(if heard { EVERY } else { PAUSE }).await;
    }
}
