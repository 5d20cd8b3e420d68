//! Reads `[limits]`, `[plans.*]` and `[policies.*]`: who may do how much. Counting is the limits floor's.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use http::HeaderName;

use super::error::did_you_mean;
use super::reader::Reader;
use super::spec::{Count, KeyPart, Limits, Plan, Policy, Quota, Window};
use super::value::{Leaf, Raw, Refused, Size, is_name};
use crate::limits::FieldPath;

const MOST: u64 = 1_000_000_000;
const LONGEST: Duration = Duration::from_secs(31 * 86_400);

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
        reset: reader.get("reset"),
        x_ratelimit_headers: reader.get("x_ratelimit_headers"),
        ietf_headers: reader.get("ietf_headers"),
        local_keys: reader.within("local_keys", 1_000..=10_000_000),
        body_peek: body_peek(&reader),
    }
}

fn known_plan(reader: &Reader<'_>, key: &str, plans: &[Plan]) -> Box<str> {
    let name: String = reader.get(key);
    if !reader.reported(key) && !plans.iter().any(|plan| *plan.name == *name) {
        reader.refuse(key, dangling("plan", &name, plans.iter().map(|plan| &*plan.name)));
    }
    name.into()
}

/// The message for a name that nothing is declared under.
pub(super) fn dangling<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let list: Vec<&str> = known.clone().collect();
    let accepted = if list.is_empty() { format!("a declared {what}; none is") } else { list.join(", ") };
    format!("no {what} is named {name:?}; accepted: {accepted}{}", did_you_mean(name, known))
}

pub(super) fn policies(root: &Reader<'_>) -> Vec<Policy> {
    root.named("policies", "<name>").into_iter().map(|(name, reader)| policy(name, &reader)).collect()
}

fn policy(name: Box<str>, reader: &Reader<'_>) -> Policy {
    let key: Vec<KeyPart> = reader.required_list("key");
    if key.iter().collect::<HashSet<_>>().len() < key.len() {
        reader.refuse("key", "names a part twice; accepted: each part once");
    }
    if key.contains(&KeyPart::ApiToken) {
        reader.warn("key", "api_token: this version issues no API tokens, so the policy counts nothing");
    }
    Policy {
        name,
        key,
        algorithm: reader.get("algorithm"),
        quota: quota(reader),
        cost: reader.within("cost", 1..=1_000_000),
        on_store_failure: reader.get("on_store_failure"),
        penalise: reader.get("penalise"),
        failures: failures(reader),
    }
}

impl Leaf for KeyPart {
    fn accepted() -> Cow<'static, str> {
        "ip, user, token, api_token, route, plan, caller, header:NAME, cookie:NAME, body:FIELD".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        const WORDS: [(&str, KeyPart); 7] = [
            ("ip", KeyPart::Ip),
            ("user", KeyPart::User),
            ("token", KeyPart::Token),
            ("api_token", KeyPart::ApiToken),
            ("route", KeyPart::Route),
            ("plan", KeyPart::Plan),
            ("caller", KeyPart::Caller),
        ];
        let text = raw.text.trim();
        if let Some((_, part)) = WORDS.into_iter().find(|(word, _)| *word == text) {
            return Ok(part);
        }
        let names = WORDS.iter().map(|(word, _)| *word);
        let unknown = || Refused::hint(did_you_mean(text, names));
        let Some((place, name)) = text.split_once(':') else { return Err(unknown()) };
        let token = HeaderName::from_bytes(name.as_bytes());
        match (place, token) {
            ("header", Ok(header)) => Ok(Self::Header(header)),
            ("cookie", Ok(_)) => Ok(Self::Cookie(name.into())),
            ("body", _) => FieldPath::parse(name).map(Self::Body).ok_or_else(Refused::default),
            _ => Err(Refused::default()),
        }
    }
}

/// The statuses that count where only failures do.
fn failures(reader: &Reader<'_>) -> Option<Vec<u16>> {
    let statuses: Vec<u16> = reader.list("failure_statuses");
    for (index, status) in statuses.iter().enumerate() {
        if !(200..=599).contains(status) {
            reader.refuse_item("failure_statuses", index, "is no status of an answer; accepted: 200 to 599");
        }
    }
    match reader.get("count") {
        Count::Requests => {
            if reader.has("failure_statuses") {
                reader.refuse("failure_statuses", "has no effect; accepted: beside count = \"failures\"");
            }
            None
        }
        Count::Failures => {
            if statuses.is_empty() && !reader.reported("failure_statuses") {
                reader.refuse("failure_statuses", "is empty; accepted: a list of 200 to 599");
            }
            Some(statuses)
        }
    }
}

/// Longest body that is read for a policy; what pingora repeats of a body is bounded by 64 KiB, and the last piece
/// read may be as large as an HTTP/2 frame.
fn body_peek(reader: &Reader<'_>) -> usize {
    let Size(size) = reader.get("body_peek");
    if !reader.reported("body_peek") && !(1_024..=49_152).contains(&size) {
        reader.refuse("body_peek", "is out of range; accepted: 1 KiB to 48 KiB");
    }
    usize::try_from(size).unwrap_or(49_152)
}

fn quota(reader: &Reader<'_>) -> Quota {
    let mut windows = window_list(reader);
    let short = (limit(reader, "limit"), length(reader, "window"));
    let by_plan: bool = reader.get("plan");
    let forms = [reader.has("windows"), reader.has("limit") || reader.has("window"), by_plan];
    if forms.into_iter().filter(|form| *form).count() > 1 {
        reader
            .refuse("", "has its limits twice; accepted: one of windows, limit with window, or plan = true");
        return Quota::Plan;
    }
    match short {
        (Some(limit), Some(window)) => windows.push(Window { name: window_name(window), limit, window }),
        (Some(_), None) if !reader.has("window") => {
            reader.refuse("window", "is missing beside limit; accepted: a duration such as \"60s\"");
        }
        (None, Some(_)) if !reader.has("limit") => {
            reader.refuse("limit", format!("is missing beside window; accepted: 1 to {MOST}"));
        }
        _ => {}
    }
    if by_plan {
        return Quota::Plan;
    }
    unique(reader, &windows);
    if windows.is_empty()
        && !["", "windows", "limit", "window", "plan"].into_iter().any(|key| reader.reported(key))
    {
        reader.refuse(
            "",
            "has no limit; accepted: windows = [{ limit, window }], limit with window, or plan = true",
        );
    }
    Quota::Windows(windows)
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
    if name.as_deref().is_some_and(|name| !is_name(name)) {
        reader.refuse("name", "is not accepted; accepted: 1 to 64 letters, digits, \"-\", \"_\" and \".\"");
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
