//! Counts that do not stand: policies that count failures count every request when it is admitted, and give back those
//! that turned out to be none; and what was counted for a request that is refused after all is taken back.

use super::exchange::{self, Owed};
use super::gateway::{Gateway, Shared};
use crate::limits::algorithm::{Rule, State};
use crate::limits::{self, Algorithm, Check, Checks, Decision, Violated};

/// One request in one counter, which may be taken off again.
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
    counts(checks, in_store, |index, check| depends(check.policy) && counted(index))
}

/// The counts of a request at the checks that are `wanted`.
fn counts(
    checks: &Checks,
    in_store: impl Fn(usize) -> bool,
    wanted: impl Fn(usize, &Check) -> bool,
) -> Vec<Provisional> {
    let counters = checks.iter().zip(checks.states()).enumerate();
    let wanted = counters.filter(|(index, (check, _))| wanted(*index, check));
    wanted
        .map(|(index, (check, answer))| Provisional {
            policy: check.policy,
            hash: check.hash,
            key: checks.key(check).into(),
            rule: check.rule,
            state: answer.state,
            in_store: in_store(index),
        })
        .collect()
}

/// Takes back what was counted for a request of which `decision` was made, and which is refused for another reason.
/// Policies that count refused requests keep it, unless the request is to be `as_if_never` made. `unseen` are the
/// checks that counted nothing. Nobody waits for the store.
pub(super) fn take_back(
    shared: &Shared,
    checks: &Checks,
    decision: &Decision,
    in_store: impl Fn(usize) -> bool,
    unseen: impl Fn(usize) -> bool,
    as_if_never: bool,
) {
    let (admitted, enforced) = match decision {
        Decision::Admitted { .. } => (true, Violated::default()),
        Decision::Refused(refused) => (false, refused.violated),
    };
    let is_over = |index| enforced.contains(index) || checks.shadow_violated().contains(index);
    let returned = counts(checks, in_store, |index, check| {
        // A cool-down that has tripped counts no more.
        let tripped = matches!(check.rule.algorithm, Algorithm::CoolDown(_)) && is_over(index);
        let counted = if check.penalise { as_if_never && !tripped } else { admitted && !is_over(index) };
        counted && !unseen(index)
    });
    let owed = forget(shared, returned);
    if let Some(store) = &shared.store {
        exchange::refund_soon(store, shared, owed);
    }
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
    let owed = forget(shared, returned);
    if let Some(store) = &shared.store {
        exchange::refund(store, shared, owed).await;
    }
}

/// Takes `returned` off what is known here, and says what the store is to take off.
fn forget(shared: &Shared, returned: Vec<Provisional>) -> Vec<Owed> {
    for count in &returned {
        shared.local.refund(count.hash, count.rule, count.state, count.in_store);
    }
    let in_store = returned.into_iter().filter(|count| count.in_store);
    let owed = |count: Provisional| Owed { key: count.key, rule: count.rule, state: count.state, count: 1 };
    in_store.map(owed).collect()
}
