//! Counts that stand only until the upstream's answer is known: policies that count failures count every request
//! when it is admitted, and give back those that turned out to be none.

use super::exchange::{self, Owed};
use super::gateway::{Gateway, Shared};
use crate::limits::algorithm::{Rule, State};
use crate::limits::{self, Checks};

/// One request in one counter, to be taken off again unless its answer is a failure.
#[derive(Clone, Debug)]
pub struct Provisional {
    policy: u16,
    hash: u64,
    key: Box<[u8]>,
    rule: Rule,
    state: State,
    in_store: bool,
}

/// The counts of an admitted request that depend on its answer. `counted` tells which checks counted it at all,
/// and `in_store` whether it did so in the store.
pub(super) fn provisional(
    gateway: &Gateway,
    checks: &Checks,
    in_store: impl Fn(usize) -> bool,
    counted: impl Fn(usize) -> bool,
) -> Vec<Provisional> {
    let depends = |policy: u16| {
        gateway.policies.get(usize::from(policy)).is_some_and(limits::Policy::counts_failures_only)
    };
    let counters = checks.iter().zip(checks.states()).enumerate();
    let open = counters.filter(|(index, (check, _))| depends(check.policy) && counted(*index));
    open.map(|(index, (check, answer))| Provisional {
        policy: check.policy,
        hash: check.hash,
        key: checks.key(check).into(),
        rule: check.rule,
        state: answer.state,
        in_store: in_store(index),
    })
    .collect()
}

/// Gives back what does not stand now that the request was answered with `status`. `None`: the client broke off
/// before anybody knew what the answer would be, and everything stands.
pub async fn settle_counts(gateway: &Gateway, provisional: Vec<Provisional>, status: Option<u16>) {
    let stands = |count: &Provisional| {
        gateway.policies.get(usize::from(count.policy)).is_none_or(|policy| policy.keeps(status))
    };
    let returned: Vec<Provisional> = provisional.into_iter().filter(|count| !stands(count)).collect();
    if !returned.is_empty() {
        give_back(&gateway.shared, returned).await;
    }
}

/// Takes `returned` off their counters, here and in the store. What the store does not learn expires with the
/// counter.
async fn give_back(shared: &Shared, returned: Vec<Provisional>) {
    for count in &returned {
        shared.local.refund(count.hash, count.rule, count.state, count.in_store);
    }
    let Some(store) = &shared.store else { return };
    let in_store = returned.into_iter().filter(|count| count.in_store);
    let owed = |count: Provisional| Owed { key: count.key, rule: count.rule, state: count.state, count: 1 };
    exchange::refund(store, shared, in_store.map(owed).collect()).await;
}
