//! After an outage: tells the store what was admitted here meanwhile, in the background and only where the window is
//! still the same. Requests neither wait for it nor hear of it.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::{Cmd, Value};
use futures::StreamExt;

use super::gateway::Shared;
use crate::limits::Algorithm;
use crate::limits::local::Owed;
use crate::redis::{Lane, Script, Store, Unavailable};

/// The script that adds to a counter of the same window.
pub static RECONCILE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../redis/scripts/reconcile.lua")));

/// How often is looked whether something can be told.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Instances that see the store again at the same time begin within this time.
const SPREAD_MS: u64 = 1_000;
/// Counters told at the same time, on one connection.
const IN_FLIGHT: usize = 64;
/// Lua counts in doubles.
const MAX_EXACT: u64 = 1 << 53;
/// No request waits for this work.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs until the process ends.
///
/// A counter whose answer is lost is told again while its window lives: it may then count the same admissions twice,
/// at most up to its limit, but forgets none.
pub async fn reconcile(shared: Arc<Shared>) {
    let Some(store) = &shared.store else { return };
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if !store.available() || !shared.local.owes() {
            continue;
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..SPREAD_MS))).await;
        if store.available() {
            tell(&shared, store).await;
        }
    }
}

/// Tells everything that is owed; gives back what could not be told.
async fn tell(shared: &Shared, store: &Store) {
    let owed = shared.local.take_owed(shared.clock.now());
    let (mut added, mut over, mut kept) = (0_usize, 0_usize, 0_usize);
    let told = owed.into_iter().map(|owed| async move {
        let Some(command) = command(&owed) else { return (owed, Some(false)) };
        let told = write(store, &command).await;
        (owed, told)
    });
    let mut told = futures::stream::iter(told).buffer_unordered(IN_FLIGHT);
    while let Some((owed, told)) = told.next().await {
        match told {
            Some(true) => added += 1,
            Some(false) => over += 1,
            None => {
                kept += 1;
                shared.local.give_back(owed);
            }
        }
    }
    let untold = shared.local.take_untold();
    tracing::info!(added, over, kept, untold, "told Redis of what was admitted while it was away");
}

/// Whether the window was the same; `None` when nobody knows and it is to be told again.
async fn write(store: &Store, command: &Cmd) -> Option<bool> {
    let mut reply = store.call_within(PATIENCE, Lane::Bodies, command).await;
    if matches!(reply, Err(Unavailable::ScriptUnknown)) {
        store.call_within(PATIENCE, Lane::Bodies, &RECONCILE.load()).await.ok()?;
        reply = store.call_within(PATIENCE, Lane::Bodies, command).await;
    }
    match reply {
        Ok(Value::Int(same)) => Some(same == 1),
        // A key of another type stays one.
        Ok(_) | Err(Unavailable::Rejected) => Some(false),
        Err(_) => None,
    }
}

/// What tells the store of `owed`; `None` for what cannot be told.
fn command(owed: &Owed) -> Option<Cmd> {
    let (rule, state) = (owed.rule, owed.state);
    let mut command = RECONCILE.command();
    let mut head = |kind: &str| {
        command.arg(1).arg(&*owed.key).arg(kind);
        command.arg(rule.capacity().min(MAX_EXACT)).arg(rule.period_ms.max(1));
    };
    match rule.algorithm {
        Algorithm::FixedWindow => {
            head("f");
            command.arg(state.used.min(MAX_EXACT)).arg(state.anchor);
        }
        Algorithm::SlidingWindow => {
            head("s");
            command.arg(state.anchor).arg(state.used.min(MAX_EXACT)).arg(state.before.min(MAX_EXACT));
        }
        Algorithm::TokenBucket => {
            head("b");
            command.arg(state.anchor).arg(state.used);
        }
        Algorithm::SlidingLog | Algorithm::CoolDown(_) => return None,
    }
    Some(command)
}
