//! May it, at this rate? Limits, revocation and cache generations: locally where the answer is known, else in one
//! exchange. Who asks and where to is settled before.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::admit::{CacheUse, Origin, Request, revoked};
use super::context::Context;
use super::exchange::{self, Answer, Guards, NoAnswer, Seen, WATCHED};
use super::gateway::Gateway;
use super::give_back::{provisional, take_back};
use super::refusal::{Limited, Refusal};
use super::user_limits;
use crate::api_tokens::Used;
use crate::cache;
use crate::cache::request::Bypass;
use crate::client_addr::ClientAddr;
use crate::clock::UnixMillis;
use crate::identity::{Identity, IdentityRefusal};
use crate::limits::user_limits::Adjustment;
use crate::limits::{
    self, Body, Caller, Checks, Decision, OnStoreFailure, Parts, Permit, Plan, Policy, Violated, fields,
};
use crate::metrics::{LimitOutcome, LimitSource};
use crate::route::Route;

/// What the cache may be asked, where the route has one.
pub(super) type PendingCache = Option<Result<cache::Pending, Bypass>>;

/// A request whose head was judged.
pub(super) struct Limiting<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) route: &'a Route,
    pub(super) client: ClientAddr,
    pub(super) identity: Option<&'a Arc<Identity>>,
    /// The API token that the caller is known by.
    pub(super) api_token: Option<&'a Used>,
    pub(super) origin: Origin,
    /// When its head had arrived.
    pub(super) now: UnixMillis,
}

/// A place among the requests in flight, and the policy that gave it.
type Entered = (u16, Permit);

/// What the request has to pass, and what it holds meanwhile.
struct Gathered {
    checks: Checks,
    /// Given back when dropped, and so wherever the request is refused.
    permits: Vec<Entered>,
    /// The caller's plan where the store says that it differs from the configured one.
    adjusted: Option<Plan>,
    /// When all of it was known: later than the head, by as long as the client took to send the body.
    now: UnixMillis,
}

/// What was decided, and by whom.
struct Verdict {
    decision: Decision,
    source: LimitSource,
    /// The checks that were decided without the store.
    blind: Violated,
    /// What the store holds about the caller.
    watched: [Seen; WATCHED],
    /// Generations of the cache's tags; `None` when they could not be asked.
    generations: Option<Vec<Option<Bytes>>>,
    /// The answer took so long that the cache may not ask the store too.
    late: bool,
}

impl Limiting<'_> {
    /// Admits the request or refuses it. The body is read only for a policy that needs it, and only when nothing
    /// else refuses the request.
    pub(super) async fn decide(
        &self,
        request: &mut impl Request,
        pending: PendingCache,
        context: &mut Context,
    ) -> Result<CacheUse, Refusal> {
        let Gathered { mut checks, permits, adjusted, now } = self.gather(request, context).await?;
        let plan = adjusted.as_ref().unwrap_or_else(|| self.plan());
        let asked = tokio::time::Instant::now();
        let verdict = self.ask(&mut checks, pending.as_ref(), now).await?;
        let took = asked.elapsed();
        let Verdict { decision, source, blind, watched, generations, mut late } = verdict;
        if let Err(refusal) = self.judge_watched(watched).await {
            self.undo(&checks, &decision, source, blind, &refusal);
            return Err(refusal);
        }
        if let Decision::Refused(refused) = decision {
            return Err(refuse(self.gateway, &checks, plan, refused, source, context));
        }
        self.admitted(&checks, &decision, source, blind, permits, context);
        let cache = self.gateway.shared.cache;
        let mut generations = generations;
        if let (Some(Ok(pending)), Some(values)) = (&pending, &mut generations)
            && let Some(store) = &self.gateway.shared.store
        {
            let half = store.settings().deadline / 2;
            // Rare: the list of purges by prefix has changed.
            if cache.generations().lacks_prefixes(values, now) {
                let until = tokio::time::Instant::now() + half;
                Box::pin(self.gateway.shared.hear_of_prefixes(values, now, until)).await;
            }
            // Rare too: nothing was stored with such a tag for long.
            if !late && values.iter().any(Option::is_none) {
                // It takes about as long as the exchange has, and is in vain where that is not left.
                if asked.elapsed() + took <= half {
                    let until = asked + half;
                    let agreeing =
                        self.gateway.shared.agree_on_generations(pending.tags(), values, now, until);
                    Box::pin(agreeing).await;
                }
                late = asked.elapsed() >= half;
            }
        }
        Ok(match (pending, generations) {
            (None, _) => CacheUse::NotConfigured,
            (Some(Err(bypass)), _) => CacheUse::Bypassed(bypass),
            (Some(Ok(pending)), Some(generations)) => match pending.with_values(cache, &generations, now) {
                Ok(mut transaction) => {
                    if late {
                        transaction.read_memory_only();
                    }
                    CacheUse::Used(Box::new(transaction))
                }
                Err(bypass) => CacheUse::Bypassed(bypass),
            },
            (Some(Ok(pending)), None) => CacheUse::Used(Box::new(pending.locally(cache, now))),
        })
    }

    /// The caller's plan as configured.
    fn plan(&self) -> &Plan {
        let plans = &self.gateway.plans;
        self.identity.map_or(plans.anonymous(), |identity| plans.named(identity.plan.as_deref()))
    }

    /// The counters of the request, unless it is refused here and now.
    async fn gather(&self, request: &mut impl Request, context: &mut Context) -> Result<Gathered, Refusal> {
        let Self { gateway, route, client, identity, origin, mut now, .. } = *self;
        let adjustment = adjustment(gateway, route, identity, now);
        let adjusted = adjustment.plan(self.plan());
        let plan = adjusted.as_ref().unwrap_or_else(|| self.plan());
        let mut checks = Checks::new();
        checks.begin(now);
        let mut permits = Vec::new();
        if origin != Origin::Client || route.policies.is_empty() {
            return Ok(Gathered { checks, permits, adjusted, now });
        }
        let address = client.subject().text();
        let caller = Caller {
            ip: address.as_str(),
            user: identity.map(|identity| &*identity.account),
            token: identity.map(|identity| identity.token_id.as_str()),
            api_token: identity.and_then(|identity| identity.api_token.as_deref()),
            own_limits: identity.map_or_else(Default::default, |identity| identity.own_limits),
            route: &route.name,
            plan,
            multiplier: identity
                .map_or(1.0, |identity| gateway.plans.combined(identity.multiplier, adjustment.multiplier)),
            request: Parts::default(),
        };
        let peeks = gateway.policies_of(route).any(|(_, policy)| policy.needs_body());
        let parts = Parts { headers: Some(request.head().headers), body: None };
        let first = Caller { request: parts, ..caller };
        enter(gateway, route, &first, &mut checks, &mut permits, context)?;
        collect(gateway, route, &first, &mut checks);
        // A policy that counts refused requests too must see this one; it may be one that needs the body.
        let penalises = || gateway.policies_of(route).any(|(_, policy)| policy.penalise());
        if !(peeks && penalises()) {
            self.refuse_known(&mut checks, plan, now, context)?;
        }
        if peeks {
            let body = read_body(gateway, request).await?;
            now = gateway.shared.clock.now();
            let parts = Parts { headers: Some(request.head().headers), body: Some(&body) };
            let second = Caller { request: parts, ..caller };
            enter(gateway, route, &second, &mut checks, &mut permits, context)?;
            collect(gateway, route, &second, &mut checks);
            self.refuse_known(&mut checks, plan, now, context)?;
        }
        Ok(Gathered { checks, permits, adjusted, now })
    }

    /// Refuses what is known to be over a limit.
    fn refuse_known(
        &self,
        checks: &mut Checks,
        plan: &Plan,
        now: UnixMillis,
        context: &mut Context,
    ) -> Result<(), Refusal> {
        match self.gateway.shared.local.refused(checks, now) {
            Some(refused) => Err(refuse(self.gateway, checks, plan, refused, LimitSource::Known, context)),
            None => Ok(()),
        }
    }

    /// Asks the store, where there is one and anything to ask; else, and while it is away, decides from memory.
    async fn ask(
        &self,
        checks: &mut Checks,
        pending: Option<&Result<cache::Pending, Bypass>>,
        now: UnixMillis,
    ) -> Result<Verdict, Refusal> {
        let Self { gateway, identity, .. } = *self;
        let shared = &*gateway.shared;
        let needed = !checks.is_empty() || identity.is_some() || matches!(pending, Some(Ok(_)));
        let Some(store) = shared.store.as_ref().filter(|_| needed) else {
            let decision = shared.local.decide(checks, now);
            let (source, blind) = (LimitSource::Memory, Violated::default());
            let watched = Default::default();
            return Ok(Verdict { decision, source, blind, watched, generations: None, late: false });
        };
        let tags = match pending {
            Some(Ok(pending)) => Some((shared.cache.generations(), pending.tags())),
            _ => None,
        };
        let asked = Instant::now();
        let required = identity.is_some() && self.route.refuse_unknown;
        let guards = Guards { identity: identity.map(|identity| &**identity), required };
        let answer = exchange::ask(store, shared, guards, self.watched(), tags, checks, now).await;
        let late = asked.elapsed() > store.settings().deadline / 2;
        let verdict = match answer {
            Ok(Answer::Judged { decision, watched, generations, away }) => {
                Verdict { decision, source: LimitSource::Redis, blind: away, watched, generations, late }
            }
            Ok(Answer::Revoked | Answer::CutOff) => return Err(revoked(gateway, identity, now)),
            Ok(Answer::Banned) => return Err(Refusal::Banned),
            // Before anything is counted here.
            Err(_) if required => return Err(IdentityRefusal::Undecided.into()),
            Err(NoAnswer { uncounted }) => {
                let decision = shared.decide_without_store(checks, now, uncounted);
                let (source, blind) = (LimitSource::Memory, Violated::from_bits(u32::MAX));
                let watched = Default::default();
                Verdict { decision, source, blind, watched, generations: None, late }
            }
        };
        let denied = |index| verdict.blind.contains(index) && says(checks, index, OnStoreFailure::Deny);
        if let Decision::Refused(refused) = &verdict.decision
            && refused.violated.iter().any(denied)
        {
            // Not the client's doing: nobody may pass, whatever is left of its limit.
            count(gateway, checks, LimitOutcome::DeniedBlind, LimitSource::Memory, denied);
            return Err(Refusal::StoreRequired);
        }
        Ok(verdict)
    }

    /// Takes back what was counted for a request that is refused for another reason than its limits.
    fn undo(
        &self,
        checks: &Checks,
        decision: &Decision,
        source: LimitSource,
        blind: Violated,
        refusal: &Refusal,
    ) {
        let unseen = |index| blind.contains(index) && says(checks, index, OnStoreFailure::Allow);
        let in_store = |index| source == LimitSource::Redis && !blind.contains(index);
        // Nobody knows whether it is to be refused at all.
        let undecided = matches!(refusal, Refusal::Identity(IdentityRefusal::Undecided));
        take_back(&self.gateway.shared, checks, decision, in_store, unseen, undecided);
    }

    /// Writes down what an admitted request has passed.
    fn admitted(
        &self,
        checks: &Checks,
        decision: &Decision,
        source: LimitSource,
        blind: Violated,
        permits: Vec<Entered>,
        context: &mut Context,
    ) {
        let gateway = self.gateway;
        let unseen = |index| blind.contains(index) && says(checks, index, OnStoreFailure::Allow);
        let counted = |index| !unseen(index) && !over_in_shadow(checks, index);
        let in_store = |index| source == LimitSource::Redis && !blind.contains(index);
        context.provisional = provisional(gateway, checks, in_store, counted);
        count(gateway, checks, LimitOutcome::Admitted, source, counted);
        if !blind.is_empty() {
            count(gateway, checks, LimitOutcome::AllowedBlind, source, unseen);
        }
        count_shadow(gateway, checks, source);
        for (policy, _) in &permits {
            count_policy(gateway, *policy, LimitOutcome::Admitted, LimitSource::Memory);
        }
        context.permits = permits.into_iter().map(|(_, permit)| permit).collect();
        let limited = !checks.is_empty() || !context.permits.is_empty();
        context.limit = limited.then_some(LimitOutcome::Admitted.as_str());
        fields::write(&gateway.fields, checks, decision, |name, value| context.quota.push((name, value)));
    }
}

/// Whether the policy of check `index` wants this while the store is away.
fn says(checks: &Checks, index: usize, wanted: OnStoreFailure) -> bool {
    checks.get(index).is_some_and(|check| check.on_store_failure == wanted)
}

/// The body as far as it tells who is asking.
async fn read_body(gateway: &Gateway, request: &mut impl Request) -> Result<Body, Refusal> {
    if !Body::may_be_read(request.head().headers) {
        return Ok(Body::UNREADABLE);
    }
    let bytes = request.peek(gateway.body_peek).await?;
    Ok(bytes.map_or(Body::UNREADABLE, |bytes| Body::parse(request.head().headers, &bytes)))
}

/// How the caller's limits differ from the plan's; looks it up in the background when that is due.
fn adjustment(
    gateway: &Gateway,
    route: &Route,
    identity: Option<&Arc<Identity>>,
    now: UnixMillis,
) -> Adjustment {
    let policy = |index: &u16| gateway.policies.get(usize::from(*index));
    let by_plan = || route.policies.iter().filter_map(policy).any(|policy| policy.windows().is_none());
    let shared = &gateway.shared;
    let (Some(known), Some(identity)) = (&shared.user_limits, identity) else { return Adjustment::default() };
    if !by_plan() {
        return Adjustment::default();
    }
    let (adjustment, due) = known.of(&identity.account, now);
    if let Some(due) = due {
        user_limits::refresh(shared, &identity.account, due);
    }
    adjustment
}

/// The policies whose turn it is: without a body those that need none, and with it those that do.
fn in_turn<'a>(
    gateway: &'a Gateway,
    route: &'a Route,
    caller: &Caller<'_>,
) -> impl Iterator<Item = (u16, &'a Policy)> + use<'a> {
    let body = caller.request.body.is_some();
    gateway.policies_of(route).filter(move |(_, policy)| policy.needs_body() == body)
}

/// Lets the request in where policies limit how many are in flight; local, so it comes first.
fn enter(
    gateway: &Gateway,
    route: &Route,
    caller: &Caller<'_>,
    checks: &mut Checks,
    permits: &mut Vec<Entered>,
    context: &mut Context,
) -> Result<(), Refusal> {
    for (index, policy) in in_turn(gateway, route, caller) {
        let Some(limit) = policy.concurrency() else { continue };
        let Some(subject) = checks.subject(&gateway.shared.keys, policy, caller) else { continue };
        let entered = gateway.shared.in_flight.enter(subject, limit.most());
        if !policy.shadow() {
            let left = entered.as_ref().map_or(0, |(_, left)| *left);
            checks.note_in_flight(policy, limit.most(), left);
        }
        match entered {
            Some((permit, _)) => permits.push((index, permit)),
            None if policy.shadow() => {
                count_policy(gateway, index, LimitOutcome::Shadow, LimitSource::Memory);
            }
            None => {
                count_policy(gateway, index, LimitOutcome::Refused, LimitSource::Memory);
                context.limit = Some(LimitOutcome::Refused.as_str());
                fields::write_busy(&gateway.fields, checks, |name, value| context.quota.push((name, value)));
                let violated = vec![policy.name().into()];
                return Err(Refusal::Limited(Limited { detail: limit.detail().into(), violated }));
            }
        }
    }
    Ok(())
}

fn collect(gateway: &Gateway, route: &Route, caller: &Caller<'_>, checks: &mut Checks) {
    for (index, policy) in in_turn(gateway, route, caller) {
        if let Err(problem) = checks.add(&gateway.shared.keys, index, policy, caller, route.cost) {
            // Refused when the configuration is loaded; the policies that fit still hold.
            tracing::error!(route = %route.name, %problem, "a policy is not applied");
        }
    }
}

fn refuse(
    gateway: &Gateway,
    checks: &Checks,
    plan: &Plan,
    refused: limits::Refused,
    source: LimitSource,
    context: &mut Context,
) -> Refusal {
    count(gateway, checks, LimitOutcome::Refused, source, |index| refused.violated.contains(index));
    count_shadow(gateway, checks, source);
    context.limit = Some(LimitOutcome::Refused.as_str());
    let decision = Decision::Refused(refused);
    fields::write(&gateway.fields, checks, &decision, |name, value| context.quota.push((name, value)));
    Refusal::Limited(Limited {
        detail: fields::detail(&refused, checks, &gateway.policies, plan).into(),
        violated: fields::violated_policies(&refused, checks).map(Into::into).collect(),
    })
}

/// Whether another window of the policy of check `index`, or this one, would have refused, although it only watches.
fn over_in_shadow(checks: &Checks, index: usize) -> bool {
    let policy = checks.get(index).map(|check| check.policy);
    let mut violated = checks.shadow_violated().iter().filter_map(|violated| checks.get(violated));
    violated.any(|check| Some(check.policy) == policy)
}

/// Counts, once each, the policies that would have refused if they did not only watch.
fn count_shadow(gateway: &Gateway, checks: &Checks, source: LimitSource) {
    if !checks.shadow_violated().is_empty() {
        count(gateway, checks, LimitOutcome::Shadow, source, |index| over_in_shadow(checks, index));
    }
}

fn count(
    gateway: &Gateway,
    checks: &Checks,
    outcome: LimitOutcome,
    source: LimitSource,
    concerned: impl Fn(usize) -> bool,
) {
    for (index, check) in checks.iter().enumerate() {
        // Once per policy, at its first window.
        let repeated =
            index > 0 && checks.get(index - 1).is_some_and(|previous| previous.policy == check.policy);
        if concerned(index) && !(repeated && concerned(index - 1)) {
            count_policy(gateway, check.policy, outcome, source);
        }
    }
}

fn count_policy(gateway: &Gateway, policy: u16, outcome: LimitOutcome, source: LimitSource) {
    if let Some(metrics) = gateway.policy_metrics.get(usize::from(policy)) {
        metrics.decisions.count(outcome, source);
    }
}
