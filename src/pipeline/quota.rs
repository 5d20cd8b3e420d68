//! Counters beside the requests they count: read by clients and operators, reset and granted by operators. Nothing
//! here decides on a request, and reading consumes nothing.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::cmd;
use bytes::Bytes;
use futures::future::join_all;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::Serialize;

use super::admit::{Identified, Judgement, identify, refuse_known_revoked};
use super::context::Context;
use super::exchange::GATE;
use super::gateway::{Gateway, Shared};
use super::head::{Head, HeadInput};
use super::refusal::{Limited, Refusal};
use super::reply::Reply;
use super::vouch::vouch;
use crate::api_tokens::Used;
use crate::client_addr::ClientAddr;
use crate::clock::UnixMillis;
use crate::identity::{Identity, Requirement};
use crate::limits::algorithm::State;
use crate::limits::batch::{Batch, Counter, Item, ItemReply};
use crate::limits::policy::PolicyError;
use crate::limits::{
    Algorithm, Caller, Check, Checks, Decision, KeyPart, KeySpace, LimitSource, Parts, Plan, Policy, Window,
    fields, gate,
};
use crate::redis::{Lane, Publisher, Script, Store};

/// Gives back part of what a counter has used.
static GRANT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../redis/scripts/grant.lua")));

/// How an instance tells the others to ask the store again about a counter; its key follows.
const FORGET: &[u8] = b"forget ";

/// What a client is told that reads too often.
const TOO_MANY_READS: &str = "The quota is read too often";

/// How often one address may read its quota.
const READS_PER_MINUTE: u64 = 60;

/// Whose counters are meant; a policy that counts by a part which is not given does not apply.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The address as limits know it.
    pub ip: Option<&'a str>,
    /// The account.
    pub user: Option<&'a str>,
    /// The token's id.
    pub token: Option<&'a str>,
    /// The id of an API token.
    pub api_token: Option<&'a str>,
    /// The API token's own limits per minute, hour and day.
    pub own_limits: [Option<u64>; 3],
    /// The plan.
    pub plan: &'a Plan,
    /// The multiplier of the plan's limits.
    pub multiplier: f64,
    /// The route's name.
    pub route: Option<&'a str>,
    /// Header fields, cookies among them, and a body that hold what policies count by.
    pub request: Parts<'a>,
}

/// Counters of one subject.
#[derive(Clone, Debug, Serialize)]
pub struct Quota {
    /// In the order of the configuration.
    pub counters: Vec<Usage>,
    /// Whether all instances count together at the moment.
    pub shared: bool,
}

/// What one counter says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Name of the policy.
    pub policy: Box<str>,
    /// Name of the window.
    pub window: Box<str>,
    /// The effective limit.
    pub limit: u64,
    /// Requests that do not fit any more.
    pub used: u64,
    /// Requests of cost 1 that still fit.
    pub remaining: u64,
    /// When nothing counted is left, seconds since the epoch, rounded up.
    pub reset: u64,
    /// The key in the store; not for clients.
    #[serde(skip)]
    pub key: Box<str>,
}

/// What becomes of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// They are emptied.
    Reset,
    /// So many requests are given back, at most what was used.
    Grant(u64),
}

/// How often quotas may be read, counted by each instance alone.
pub struct Reads {
    policy: Policy,
    /// No policy of the configuration shares its keys.
    keys: KeySpace,
}

impl Reads {
    /// One limit for all instances of this program.
    ///
    /// # Errors
    /// Never: the policy is constant.
    pub fn new() -> Result<Self, PolicyError> {
        let windows = LimitSource::Windows(vec![Window::new(READS_PER_MINUTE, Duration::from_secs(60))?]);
        let policy = Policy::new("quota", &[KeyPart::Ip], Algorithm::FixedWindow, windows)?;
        Ok(Self { policy, keys: KeySpace::new("_tollgate:", false) })
    }
}

/// A client's question about its own quota.
pub(super) struct Asked {
    client: ClientAddr,
    identity: Option<Arc<Identity>>,
    api_token: Option<Used>,
    headers: HeaderMap,
}

/// Whether the head of a request may ask for its quota. Asking consumes nothing of it, but is limited by itself, where
/// only the `first` look at a request counts.
pub(super) fn ask(
    gateway: &Gateway,
    input: &HeadInput<'_>,
    head: &Head<'_>,
    client: ClientAddr,
    first: bool,
    context: &mut Context,
) -> Result<Judgement, Refusal> {
    if !matches!(*input.method, Method::GET | Method::HEAD) {
        return Err(Refusal::MethodNotAllowed(vec![Method::GET, Method::HEAD]));
    }
    let (now, shared) = (context.received_at, &*gateway.shared);
    let address = client.subject().text();
    let anonymous = Subject::anonymous(address.as_str(), gateway.plans.anonymous());
    let mut reads = Checks::new();
    reads.begin(now);
    let Reads { policy, keys } = &gateway.quota_reads;
    let counted = first && reads.add(keys, 0, policy, &anonymous.caller(), 1).is_ok();
    if counted && let decision @ Decision::Refused(refused) = shared.local.decide(&mut reads, now) {
        fields::write(&gateway.fields, &reads, &decision, |name, value| context.quota.push((name, value)));
        return Err(Refusal::Limited(Limited {
            detail: TOO_MANY_READS.into(),
            violated: fields::violated_policies(&refused, &reads).map(Into::into).collect(),
        }));
    }
    let (identity, api_token) = match identify(gateway, Requirement::Optional, head, input.headers, now)? {
        Identified::As(identity, _) => (identity, None),
        Identified::By(used, _) => (Some(Arc::clone(&used.identity)), Some(used)),
        Identified::Unknown(lookup) => return Ok(Judgement::Unknown(lookup)),
    };
    context.identity.clone_from(&identity);
    refuse_known_revoked(gateway, identity.as_deref(), now)?;
    Ok(Judgement::Quota(Asked { client, identity, api_token, headers: input.headers.clone() }))
}

/// Answers a client that asks what is left of its limits.
pub(super) async fn tell(gateway: &Gateway, asked: &Asked, now: UnixMillis) -> Result<Reply, Refusal> {
    let shared = &*gateway.shared;
    let identity = asked.identity.as_ref();
    let address = asked.client.subject().text();
    if let Some(identity) = identity {
        vouch(gateway, identity, asked.api_token.as_ref(), gateway.refuse_unknown, now).await?;
    }
    let request = Parts { headers: Some(&asked.headers), body: None };
    let anonymous = Subject { request, ..Subject::anonymous(address.as_str(), gateway.plans.anonymous()) };
    let adjustment = identity.zip(shared.user_limits.as_ref());
    let adjustment =
        adjustment.map(|(identity, known)| known.of(&identity.account, now).0).unwrap_or_default();
    let plan = identity.map_or(anonymous.plan, |identity| gateway.plans.named(identity.plan.as_deref()));
    let adjusted = adjustment.plan(plan);
    let subject = match identity {
        None => anonymous,
        Some(identity) => Subject {
            user: Some(&identity.account),
            token: Some(identity.token_id.as_str()),
            api_token: identity.api_token.as_deref(),
            own_limits: identity.own_limits,
            plan: adjusted.as_ref().unwrap_or(plan),
            multiplier: gateway.plans.combined(identity.multiplier, adjustment.multiplier),
            ..anonymous
        },
    };
    Ok(reply(&gateway.read_quota(&subject, Shown::ToClient).await))
}

/// Which counters are meant.
#[derive(Clone, Copy, Debug)]
pub enum Shown<'a> {
    /// Those that may refuse a client.
    ToClient,
    /// Those of this policy, and those that only watch.
    ToOperator(Option<&'a str>),
}

impl Shown<'_> {
    fn covers(self, policy: &Policy) -> bool {
        match self {
            Self::ToClient => !policy.shadow(),
            Self::ToOperator(only) => only.is_none_or(|only| policy.name() == only),
        }
    }
}

impl Gateway {
    /// What the counters of `subject` say.
    pub async fn read_quota(&self, subject: &Subject<'_>, shown: Shown<'_>) -> Quota {
        let now = self.shared.clock.now();
        let counters = self.counters_of(subject, shown, now).into_iter();
        let looks = join_all(counters.map(async |mut checks| {
            let shared = self.shared.look(&mut checks, now).await;
            (checks, shared)
        }));
        let mut quota = Quota { counters: Vec::new(), shared: self.shared.store.is_some() };
        for (checks, shared) in looks.await {
            quota.shared &= shared;
            self.describe(&checks, subject.plan, &mut quota.counters);
        }
        quota
    }

    /// Changes the counters of `subjects`, which are one and the same but for the plan, then tells what they say for
    /// the first.
    pub async fn change_quota(&self, subjects: &[Subject<'_>], shown: Shown<'_>, change: Change) -> Quota {
        let mut shared = self.shared.store.is_some();
        let mut done = HashSet::new();
        for subject in subjects {
            for checks in self.counters_of(subject, shown, self.shared.clock.now()) {
                for check in checks.iter().filter(|check| done.insert(check.hash)) {
                    shared &= self.shared.change(check, checks.key(check), change).await;
                }
            }
        }
        let Some(first) = subjects.first() else { return Quota { counters: Vec::new(), shared } };
        let quota = self.read_quota(first, shown).await;
        Quota { shared: shared && quota.shared, ..quota }
    }

    /// One set of checks for each policy that counts this subject.
    fn counters_of(&self, subject: &Subject<'_>, shown: Shown<'_>, now: UnixMillis) -> Vec<Checks> {
        let caller = subject.caller();
        let policies = (0_u16..).zip(&self.policies);
        let meant = policies
            .filter(|(_, policy)| shown.covers(policy) && policy.key().iter().all(|part| subject.has(part)));
        meant
            .filter_map(|(index, policy)| {
                let mut checks = Checks::new();
                checks.begin(now);
                checks.add(&self.shared.keys, index, policy, &caller, 1).ok()?;
                (!checks.is_empty()).then_some(checks)
            })
            .collect()
    }

    fn describe(&self, checks: &Checks, plan: &Plan, into: &mut Vec<Usage>) {
        for (check, state) in checks.iter().zip(checks.states()) {
            let Some(policy) = self.policies.get(usize::from(check.policy)) else { continue };
            let windows = policy.windows().unwrap_or(plan.windows());
            let window = windows.get(usize::from(check.window)).map_or("", Window::name);
            into.push(Usage {
                policy: policy.name().into(),
                window: window.into(),
                limit: state.limit,
                used: state.limit.saturating_sub(state.remaining),
                remaining: state.remaining,
                reset: state.reset_at.as_secs_ceil(),
                key: String::from_utf8_lossy(checks.key(check)).into(),
            });
        }
    }
}

impl<'a> Subject<'a> {
    fn anonymous(ip: &'a str, plan: &'a Plan) -> Self {
        let (user, token, api_token, route) = (None, None, None, None);
        let (request, own_limits) = (Parts::default(), [None; 3]);
        Self { ip: Some(ip), user, token, api_token, own_limits, plan, multiplier: 1.0, route, request }
    }

    fn caller(&self) -> Caller<'a> {
        Caller {
            ip: self.ip.unwrap_or_default(),
            user: self.user,
            token: self.token,
            api_token: self.api_token,
            own_limits: self.own_limits,
            route: self.route.unwrap_or_default(),
            plan: self.plan,
            multiplier: self.multiplier,
            request: self.request,
        }
    }

    fn has(&self, part: &KeyPart) -> bool {
        match part {
            KeyPart::Ip => self.ip.is_some(),
            KeyPart::User => self.user.is_some(),
            KeyPart::Token => self.token.is_some(),
            KeyPart::ApiToken => self.api_token.is_some(),
            KeyPart::Route => self.route.is_some(),
            KeyPart::Plan => true,
            KeyPart::Caller => self.user.or(self.ip).is_some(),
            KeyPart::Header(_) | KeyPart::Cookie(_) | KeyPart::Body(_) => self.request.tells(part),
        }
    }
}

impl Shared {
    /// Fills `checks` with what their counters say. Returns whether the store said so, for all of them.
    async fn look(&self, checks: &mut Checks, now: UnixMillis) -> bool {
        if let Some(store) = &self.store
            && let Some((states, clock)) = look_in(store, checks).await
        {
            let at = clock.unwrap_or_else(|| self.local.store_time(now));
            for (index, state) in states {
                checks.tell(index, state);
            }
            checks.note(at);
            return true;
        }
        self.local.look(checks, now);
        false
    }

    /// Changes a counter here and in the store. Returns whether every instance knows.
    async fn change(&self, check: &Check, key: &[u8], change: Change) -> bool {
        match change {
            Change::Reset => self.local.forget(check.hash),
            Change::Grant(requests) => self.local.grant(check, requests),
        }
        let Some(store) = &self.store else { return false };
        let home = store.shard(key);
        let done = match change {
            Change::Reset => store.call(Lane::Decisions, home, cmd("UNLINK").arg(key)).await.is_ok(),
            Change::Grant(requests) => {
                let units = requests.saturating_mul(check.rule.cost).min(1 << 53);
                let mut command = GRANT.command();
                command.arg(1).arg(key).arg(units).arg(check.rule.period_ms);
                store.eval(Lane::Decisions, home, &GRANT, &command).await.is_ok()
            }
        };
        // What another instance knows of this counter holds no more.
        let mut news = FORGET.to_vec();
        news.extend_from_slice(key);
        let told = Publisher::new(Arc::clone(store)).publish(&news).await.is_ok();
        if done {
            self.local.forget(check.hash);
        }
        done && told
    }

    /// Follows the news that somebody changed a counter. Returns whether `payload` was such news.
    pub(super) fn forget_counter(&self, payload: &[u8]) -> bool {
        let Some(key) = payload.strip_prefix(FORGET) else { return false };
        self.local.forget(self.keys.hash(key));
        true
    }
}

/// Asks for the counters' states, all places at once; `None` unless all answer.
async fn look_in(store: &Store, checks: &Checks) -> Option<(Vec<(usize, State)>, Option<UnixMillis>)> {
    let mut places: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (index, check) in checks.iter().enumerate() {
        places.entry(store.shard(checks.key(check))).or_default().push(index);
    }
    let answers = join_all(places.into_iter().map(|(shard, indices)| async move {
        let counters = indices.iter().filter_map(|&index| checks.get(index)).map(|check| Counter {
            key: checks.key(check),
            rule: check.rule,
            penalise: false,
            shadow: check.shadow,
            known_end: 0,
        });
        let item = Item { counters: counters.collect(), count: 0, ..Item::default() };
        let batch = Batch { tags: Vec::new(), items: vec![item] };
        let mut command = GATE.command();
        gate::encode(&batch, &mut command);
        let value = store.eval(Lane::Decisions, shard, &GATE, &command).await.ok()?;
        let reply = gate::decode(value, &batch).ok()?;
        let clock = reply.clock;
        match reply.items.into_iter().next()? {
            ItemReply::Judged { counters, .. } => {
                let states = counters.into_iter().map(|counted| counted.state);
                Some((indices.into_iter().zip(states).collect::<Vec<_>>(), clock))
            }
            ItemReply::Barred(_) => None,
        }
    }))
    .await;
    let mut states = Vec::with_capacity(checks.len());
    let mut clock = None;
    for answer in answers {
        let (some, at) = answer?;
        states.extend(some);
        clock = clock.or(at);
    }
    Some((states, clock))
}

/// The answer to a client that reads its own quota.
fn reply(quota: &Quota) -> Reply {
    Reply {
        status: StatusCode::OK,
        headers: vec![
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ],
        // Serialising strings and numbers cannot fail.
        body: Bytes::from(serde_json::to_vec(quota).unwrap_or_default()),
    }
}
