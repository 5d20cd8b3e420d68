//! Reads `[limits]`, `[plans.*]` and `[policies.*]`: who may do how much. Counting is the limits floor's.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use super::error::did_you_mean;
use super::reader::Reader;
use super::request_keys::{body_peek, failures};
use super::spec::{
    AppliesTo, CoolDown, KeyPart, LimitAlgorithm, Limits, Plan, Policy, Quota, Route, Server, Window,
};
use crate::limits::policy::{self, MAX_LOG_LIMIT, MAX_NAME};
use crate::route::normalise::{Options, normalise};
use crate::route::pattern::Pattern;
use crate::route::table;

const MOST: u64 = 1_000_000_000;
const LONGEST: Duration = Duration::from_secs(31 * 86_400);
const MOST_IN_FLIGHT: u64 = 1_000_000;
/// A lease takes a part of what is left: of less there is nothing to gain.
const LEAST_LEASED: u64 = 100;
const MAX_CANDIDATE_STEM: usize = 22;

/// Plans that exist unless the file declares them otherwise, per minute.
const BUILT_IN: [(&str, u64); 4] = [("anonymous", 10), ("free", 50), ("pro", 200), ("enterprise", 1_000)];

/// Shorthand keys of a plan and the names of windows of these lengths.
const UNITS: [(&str, u64); 4] = [("second", 1), ("minute", 60), ("hour", 3_600), ("day", 86_400)];

pub(super) fn plans(root: &Reader<'_>) -> Vec<Plan> {
    let mut plans: Vec<Plan> =
        root.named("plans", "<name>").into_iter().map(|(name, reader)| plan(name, &reader)).collect();
    for (name, limit) in BUILT_IN {
        if !plans.iter().any(|plan| &*plan.name == name) {
            let window = Window { name: "minute".into(), limit, window: Duration::from_secs(60) };
            plans.push(Plan { name: name.into(), windows: vec![window] });
        }
    }
    plans
}

fn plan(name: Box<str>, reader: &Reader<'_>) -> Plan {
    let mut windows = Vec::new();
    for (unit, seconds) in UNITS {
        if let Some(limit) = limit(reader, unit) {
            windows.push(Window { name: unit.into(), limit, window: Duration::from_secs(seconds) });
        }
    }
    windows.extend(window_list(reader));
    unique(reader, &windows);
    if windows.is_empty() && !reader.reported("") {
        reader.refuse(
            "",
            "has no limit; accepted: second, minute, hour, day, or windows = [{ limit, window }]",
        );
    }
    Plan { name, windows }
}

pub(super) fn limits(root: &Reader<'_>, plans: &[Plan]) -> Limits {
    let reader = root.section("limits");
    Limits {
        default_plan: known_plan(&reader, "default_plan", plans),
        anonymous_plan: known_plan(&reader, "anonymous_plan", plans),
        multiplier_cap: reader.within("multiplier_cap", 1.0..=1_000_000.0),
        user_limits: reader.get("user_limits"),
        user_limits_refresh: reader
            .duration("user_limits_refresh", Duration::from_millis(100)..=Duration::from_secs(3_600)),
        reset: reader.get("reset"),
        x_ratelimit_headers: reader.get("x_ratelimit_headers"),
        ietf_headers: reader.get("ietf_headers"),
        coalesce: reader.get("coalesce"),
        local_keys: reader.within("local_keys", 1_000..=10_000_000),
        quota_path: quota_path(&reader),
        body_peek: body_peek(&reader),
    }
}

fn quota_path(reader: &Reader<'_>) -> Option<Box<str>> {
    let path: String = reader.get("quota_path");
    if path.is_empty() {
        return None;
    }
    let canonical = normalise(path.as_bytes(), Options::default());
    if !reader.reported("quota_path") && (path == "/" || !canonical.is_ok_and(|canonical| canonical == path))
    {
        reader.refuse(
            "quota_path",
            "is not accepted; accepted: a canonical path such as \"/_tollgate/quota\", or \"\"",
        );
    }
    Some(path.into())
}

fn known_plan(reader: &Reader<'_>, key: &str, plans: &[Plan]) -> Box<str> {
    let name: String = reader.get(key);
    if !reader.reported(key) && !plans.iter().any(|plan| *plan.name == *name) {
        reader.refuse(key, dangling("plan", &name, plans.iter().map(|plan| &*plan.name)));
    }
    name.into()
}

/// Remarks on limits of single users that nothing would look at.
pub(super) fn unused_user_limits(root: &Reader<'_>, limits: &Limits, policies: &[Policy], has_redis: bool) {
    if !limits.user_limits {
        return;
    }
    let reader = root.section("limits");
    if !has_redis {
        reader.warn("user_limits", "are kept in Redis, and redis.url is empty: nobody's limits change");
    }
    if !policies.iter().any(|policy| policy.quota == Quota::Plan) {
        reader
            .warn("user_limits", "change plan limits, and no policy has plan = true: nobody's limits change");
    }
}

/// Whether the path where quotas are read is none that a route names, which would never be asked there.
pub(super) fn quota_path_is_free(root: &Reader<'_>, limits: &Limits, server: &Server, routes: &[Route]) {
    let options = table::Options {
        case_insensitive: server.case_insensitive_paths,
        ignore_trailing_slash: server.ignore_trailing_slash,
    };
    let Some(path) = &limits.quota_path else { return };
    let reader = root.section("limits");
    let names_it = |route: &&Route| {
        Pattern::parse(&route.path).is_ok_and(|pattern| options.is_literally(&pattern, path))
    };
    if let Some(route) = routes.iter().find(names_it)
        && !reader.reported("quota_path")
    {
        reader.refuse(
            "quota_path",
            format!(
                "{path:?} is a path of the route {:?}; accepted: a path that no route names, or \"\"",
                route.name
            ),
        );
    }
}

/// The message for a name that nothing is declared under.
pub(super) fn dangling<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let list: Vec<&str> = known.clone().collect();
    let accepted = if list.is_empty() { format!("a declared {what}; none is") } else { list.join(", ") };
    format!("no {what} is named {name:?}; accepted: {accepted}{}", did_you_mean(name, known))
}

pub(super) fn policies(root: &Reader<'_>, plans: &[Plan], api_tokens: bool) -> Vec<Policy> {
    let names = root.names("policies");
    let tables = root.named_by("policies", "<name>", policy::is_name, &name_rule());
    tables.into_iter().map(|(name, reader)| policy(name, &reader, plans, &names, api_tokens)).collect()
}

fn policy(name: Box<str>, reader: &Reader<'_>, plans: &[Plan], names: &[&str], api_tokens: bool) -> Policy {
    let key: Vec<KeyPart> = reader.required_list("key");
    if key.iter().collect::<HashSet<_>>().len() < key.len() {
        reader.refuse("key", "names a part twice; accepted: each part once");
    }
    if key.contains(&KeyPart::ApiToken) && !api_tokens {
        reader.warn("key", "api_token: api_tokens.enabled is false, so the policy counts nothing");
    }
    let applies_to = reader.get("applies_to");
    if applies_to == AppliesTo::Anonymous
        && let Some(part) = key.iter().find(|part| part.needs_caller())
    {
        reader.refuse("applies_to", format!("anonymous callers have no {part}; accepted: a key without it"));
    }
    let algorithm = reader.get("algorithm");
    let quota = quota(reader);
    let failures = failures(reader);
    let penalise = reader.get("penalise");
    if penalise && failures.is_some() {
        reader.refuse("penalise", "counts refused requests, and none of them is a failure; accepted: false beside count = \"failures\"");
    }
    let policy = Policy {
        key,
        applies_to,
        algorithm,
        cooldown: cooldown(reader, algorithm),
        cost: reader.within("cost", 1..=1_000_000),
        on_store_failure: reader.get("on_store_failure"),
        penalise,
        failures,
        shadow: reader.get("shadow"),
        candidate: candidate(&name, reader, algorithm, names),
        lease: reader.get("lease"),
        quota,
        name,
    };
    if matches!(policy.quota, Quota::Concurrency(_)) {
        alone(reader);
    } else {
        suits(reader, &policy, plans);
    }
    policy
}

/// What else a policy may not say that only counts requests in flight.
fn alone(reader: &Reader<'_>) {
    for key in [
        "algorithm",
        "cooldown",
        "cost",
        "on_store_failure",
        "penalise",
        "count",
        "failure_statuses",
        "candidate",
        "lease",
    ] {
        if reader.has(key) {
            reader.refuse(key, "says nothing about requests in flight; accepted: a policy of its own");
        }
    }
}

/// Whether algorithm and lease suit the windows.
fn suits(reader: &Reader<'_>, policy: &Policy, plans: &[Plan]) {
    match &policy.quota {
        Quota::Windows(windows) => {
            fits(reader, policy.algorithm, windows);
            stricter(reader, policy.cooldown, windows);
        }
        Quota::Plan if policy.algorithm == LimitAlgorithm::CoolDown => {
            reader.refuse("plan", "is not for cool-down; accepted: limit with window");
        }
        Quota::Plan if policy.algorithm == LimitAlgorithm::SlidingLog => {
            let mut windows = plans.iter().flat_map(|plan| &plan.windows);
            if windows.any(|window| window.limit > MAX_LOG_LIMIT) {
                reader.refuse("algorithm", format!("a plan's limit {}", log_too_long()));
            }
        }
        Quota::Plan | Quota::Concurrency(_) => {}
    }
    if !policy.lease {
        return;
    }
    let large = |window: &Window| window.limit >= LEAST_LEASED;
    let suited = policy.algorithm == LimitAlgorithm::FixedWindow
        && matches!(&policy.quota, Quota::Windows(windows) if windows.iter().all(large));
    if !suited {
        reader.refuse(
            "lease",
            format!(
                "needs fixed windows of {LEAST_LEASED} requests or more; accepted: false for other policies"
            ),
        );
    } else if policy.penalise || policy.shadow {
        reader.refuse("lease", "does not go with penalise and shadow; accepted: false beside them");
    }
}

/// Whether the cool-down admits no more than the window before it: what trips it must not do better for it.
fn stricter(reader: &Reader<'_>, cooldown: Option<CoolDown>, windows: &[Window]) {
    let (Some(cooldown), [window]) = (cooldown, windows) else { return };
    let usual = window.window / u32::try_from(window.limit).unwrap_or(u32::MAX).max(1);
    if cooldown.interval < usual && !reader.reported("cooldown") {
        reader.refuse(
            "cooldown",
            format!(
                "admits more than {} in {}; accepted: no more than the policy's own limit in its window",
                window.limit,
                humantime::format_duration(window.window)
            ),
        );
    }
}

/// Whether `algorithm` can count in `windows`, those of the policy or of its candidate.
fn fits(reader: &Reader<'_>, algorithm: LimitAlgorithm, windows: &[Window]) {
    let key = if reader.has("windows") { "windows" } else { "limit" };
    if algorithm == LimitAlgorithm::SlidingLog
        && windows.iter().any(|window| window.limit > MAX_LOG_LIMIT)
        && !reader.reported(key)
    {
        reader.refuse(key, log_too_long());
    }
    if algorithm == LimitAlgorithm::CoolDown && windows.len() > 1 {
        reader.refuse(key, "has several windows; accepted: one for cool-down");
    }
}

fn log_too_long() -> String {
    format!(
        "is too large for sliding-log, which keeps each admitted request; accepted: up to {MAX_LOG_LIMIT}"
    )
}

fn cooldown(reader: &Reader<'_>, algorithm: LimitAlgorithm) -> Option<CoolDown> {
    let wanted = algorithm == LimitAlgorithm::CoolDown;
    if wanted != reader.has("cooldown") && !reader.reported("algorithm") {
        if wanted {
            reader.refuse("cooldown", "is missing; accepted: { limit, window, quiet } for cool-down");
        } else {
            reader
                .refuse("cooldown", "is for algorithm = \"cool-down\"; accepted: nothing beside another one");
        }
    }
    let section = reader.opt_section("cooldown")?;
    let (limit, window) = required_window(&section);
    let quiet = length(&section, "quiet");
    let (limit, window) = (limit?, window?);
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let interval = (window / limit).max(Duration::from_millis(1));
    Some(CoolDown { interval, quiet: quiet.unwrap_or(window) })
}

fn candidate(
    name: &str,
    reader: &Reader<'_>,
    algorithm: LimitAlgorithm,
    names: &[&str],
) -> Option<Vec<Window>> {
    let section = reader.opt_section("candidate")?;
    let windows = own_windows(&section);
    let full = Policy::candidate_name(name);
    if full.len() > MAX_NAME {
        reader.refuse(
            "candidate",
            format!(
                "would be called {full:?}; accepted: a policy's name of up to {MAX_CANDIDATE_STEM} characters"
            ),
        );
    } else if names.contains(&full.as_str()) {
        reader.refuse("candidate", format!("would be called {full:?}; accepted: no policy of that name"));
    }
    let once = "accepted: windows = [{ limit, window }], or limit with window";
    if section.has("windows") && is_short(&section) {
        section.refuse("", format!("has its limits twice; {once}"));
    } else if windows.is_empty() && !section.reported("") {
        section.refuse("", format!("has no limit; {once}"));
    }
    fits(&section, algorithm, &windows);
    Some(windows)
}

fn quota(reader: &Reader<'_>) -> Quota {
    let windows = own_windows(reader);
    let by_plan: bool = reader.get("plan");
    let concurrency: Option<u64> = reader.opt("concurrency");
    let forms = [reader.has("windows"), is_short(reader), by_plan, reader.has("concurrency")];
    if forms.into_iter().filter(|form| *form).count() > 1 {
        reader.refuse(
            "",
            "has its limits twice; accepted: one of windows, limit with window, plan = true, or concurrency",
        );
        return Quota::Plan;
    }
    if by_plan {
        return Quota::Plan;
    }
    if let Some(most) = concurrency {
        if !(1..=MOST_IN_FLIGHT).contains(&most) {
            reader.refuse("concurrency", format!("is out of range; accepted: 1 to {MOST_IN_FLIGHT}"));
        }
        return Quota::Concurrency(most);
    }
    let keys = ["", "windows", "limit", "window", "plan", "concurrency"];
    if windows.is_empty() && !keys.into_iter().any(|key| reader.reported(key)) {
        reader.refuse(
            "",
            "has no limit; accepted: windows = [{ limit, window }], limit with window, plan = true, or concurrency",
        );
    }
    Quota::Windows(windows)
}

fn is_short(reader: &Reader<'_>) -> bool {
    reader.has("limit") || reader.has("window")
}

/// What `windows`, or `limit` with `window`, say.
fn own_windows(reader: &Reader<'_>) -> Vec<Window> {
    let mut windows = window_list(reader);
    if is_short(reader)
        && let (Some(limit), Some(window)) = required_window(reader)
    {
        windows.push(Window { name: window_name(window), limit, window });
    }
    unique(reader, &windows);
    windows
}

/// `limit` and `window`, of which none goes without the other.
fn required_window(reader: &Reader<'_>) -> (Option<u64>, Option<Duration>) {
    let found = (limit(reader, "limit"), length(reader, "window"));
    if !reader.has("limit") {
        reader.refuse("limit", format!("is missing beside window; accepted: 1 to {MOST}"));
    }
    if !reader.has("window") {
        reader.refuse("window", "is missing beside limit; accepted: a duration such as \"60s\"");
    }
    found
}

/// What [`policy::is_name`] takes.
fn name_rule() -> String {
    format!("1 to {MAX_NAME} characters of a-z, 0-9, \"-\" and \"_\"")
}

fn window_list(reader: &Reader<'_>) -> Vec<Window> {
    reader.tables("windows").iter().filter_map(window).collect()
}

fn window(reader: &Reader<'_>) -> Option<Window> {
    let limit = limit(reader, "limit");
    let length = length(reader, "window");
    let name: Option<String> = reader.opt("name");
    if !reader.has("limit") {
        reader.refuse("limit", format!("is missing; accepted: 1 to {MOST}"));
    }
    if !reader.has("window") {
        reader.refuse("window", "is missing; accepted: a duration such as \"60s\"");
    }
    if name.as_deref().is_some_and(|name| !policy::is_name(name)) {
        reader.refuse("name", format!("is not accepted; accepted: {}", name_rule()));
    }
    let window = length?;
    Some(Window { name: name.map_or_else(|| window_name(window), Into::into), limit: limit?, window })
}

fn limit(reader: &Reader<'_>, key: &str) -> Option<u64> {
    let limit: u64 = reader.opt(key)?;
    if (1..=MOST).contains(&limit) {
        return Some(limit);
    }
    reader.refuse(key, format!("is out of range; accepted: 1 to {MOST}"));
    None
}

fn length(reader: &Reader<'_>, key: &str) -> Option<Duration> {
    let length: Duration = reader.opt(key)?;
    let whole = length.subsec_nanos() == 0;
    if whole && (Duration::from_secs(1)..=LONGEST).contains(&length) {
        return Some(length);
    }
    reader.refuse(key, "is out of range; accepted: whole seconds from 1s to 31days");
    None
}

fn window_name(length: Duration) -> Box<str> {
    let seconds = length.as_secs();
    match UNITS.iter().find(|(_, unit)| *unit == seconds) {
        Some((name, _)) => (*name).into(),
        None => format!("{seconds}s").into(),
    }
}

fn unique(reader: &Reader<'_>, windows: &[Window]) {
    let mut names = BTreeSet::new();
    let mut lengths = BTreeSet::new();
    for window in windows {
        if !names.insert(&window.name) || !lengths.insert(window.window) {
            reader.refuse(
                "windows",
                format!("two windows are named {:?} or equally long; accepted: one each", window.name),
            );
        }
    }
}
