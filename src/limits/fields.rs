//! How limits read to clients: the de-facto `X-RateLimit-*` fields, the IETF pair of
//! draft-ietf-httpapi-ratelimit-headers-10, `Retry-After` and the text of a refusal. It decides nothing.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};

use super::check::{Check, Checks, CounterState, Decision, Refused};
use super::plan::Plan;
use super::policy::Policy;
use crate::clock::UnixMillis;
use crate::header_names::{
    RATELIMIT, RATELIMIT_POLICY, X_RATELIMIT_LIMIT, X_RATELIMIT_REMAINING, X_RATELIMIT_RESET,
};

/// RFC 9651 section 3.3.1: integers have at most 15 digits.
const MAX_SF_INTEGER: u64 = 999_999_999_999_999;

/// Seconds after which a client may try again when too many of its requests are in flight.
const BUSY_RETRY_AFTER: u64 = 1;

/// How `X-RateLimit-Reset` tells the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResetFormat {
    /// Seconds since the epoch, rounded up.
    #[default]
    Epoch,
    /// Seconds from now, rounded up.
    Delta,
}

/// Which fields are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` of the tightest counter.
    pub x_ratelimit: bool,
    /// `RateLimit-Policy` and `RateLimit` for every counter.
    pub ietf: bool,
    /// How `X-RateLimit-Reset` tells the time.
    pub reset: ResetFormat,
}

impl Default for Settings {
    /// Everything, with epoch seconds.
    fn default() -> Self {
        Self { x_ratelimit: true, ietf: true, reset: ResetFormat::Epoch }
    }
}

/// Hands every field of `decision` to `put`; nothing when no policy applied. Policies that only watch are not told.
/// All values share one buffer.
pub fn write(
    settings: &Settings,
    checks: &Checks,
    decision: &Decision,
    put: impl FnMut(HeaderName, HeaderValue),
) {
    let retry = match decision {
        Decision::Refused(refused) => Some(retry_after(refused)),
        Decision::Admitted { .. } => None,
    };
    write_all(*settings, checks, decision.at(), retry, put);
}

/// As [`write()`], for a request that was refused because too many are in flight: what it would have counted against is
/// not known.
pub fn write_busy(settings: &Settings, checks: &Checks, put: impl FnMut(HeaderName, HeaderValue)) {
    write_all(*settings, checks, checks.at(), Some(BUSY_RETRY_AFTER), put);
}

fn write_all(
    settings: Settings,
    checks: &Checks,
    at: UnixMillis,
    retry: Option<u64>,
    mut put: impl FnMut(HeaderName, HeaderValue),
) {
    let mut fields = Fields { buffer: BytesMut::with_capacity(64 + 96 * checks.len()), ends: [0; 6] };
    let tightest = tightest(checks).filter(|_| settings.x_ratelimit);
    if let Some(state) = tightest {
        put_number(&mut fields.buffer, state.limit);
        fields.end(0);
        put_number(&mut fields.buffer, state.remaining);
        fields.end(1);
        put_number(
            &mut fields.buffer,
            match settings.reset {
                ResetFormat::Epoch => state.reset_at.as_secs_ceil(),
                ResetFormat::Delta => seconds_until(state.reset_at, at),
            },
        );
    }
    fields.end(2);
    let ietf = settings.ietf && (visible(checks).next().is_some() || checks.in_flight().next().is_some());
    if ietf {
        write_policies(checks, &mut fields.buffer);
        fields.end(3);
        write_limits(checks, at, &mut fields.buffer);
    }
    fields.end(4);
    if let Some(seconds) = retry {
        put_number(&mut fields.buffer, seconds);
        fields.end(5);
    }
    let ends = fields.ends;
    let bytes = fields.buffer.freeze();
    let mut start = 0;
    let mut field = |end: usize, name: &HeaderName, wanted: bool| {
        if wanted && let Some(value) = value(&bytes, start, end) {
            put(name.clone(), value);
        }
        start = end;
    };
    let [limit, remaining, reset, policies, limits, retry_end] = ends;
    if tightest.is_some() {
        field(limit, &X_RATELIMIT_LIMIT, true);
        field(remaining, &X_RATELIMIT_REMAINING, true);
        field(reset, &X_RATELIMIT_RESET, true);
    }
    if ietf {
        field(policies, &RATELIMIT_POLICY, true);
        field(limits, &RATELIMIT, true);
    }
    field(retry_end, &RETRY_AFTER, retry.is_some());
}

struct Fields {
    buffer: BytesMut,
    ends: [usize; 6],
}

impl Fields {
    fn end(&mut self, field: usize) {
        if let Some(end) = self.ends.get_mut(field) {
            *end = self.buffer.len();
        }
    }
}

fn value(bytes: &Bytes, start: usize, end: usize) -> Option<HeaderValue> {
    if start > end || end > bytes.len() {
        return None;
    }
    HeaderValue::from_maybe_shared(bytes.slice(start..end)).ok()
}

/// Checks that clients are told of, with what their counters said.
fn visible(checks: &Checks) -> impl Iterator<Item = (&Check, &CounterState)> {
    checks.iter().zip(checks.states()).filter(|(check, _)| !check.shadow)
}

/// The counter that binds first: the smallest remaining; among equals the longest window. Policies that only watch
/// do not bind.
pub fn tightest(checks: &Checks) -> Option<&CounterState> {
    let tightest =
        visible(checks).min_by_key(|(check, state)| (state.remaining, u64::MAX - check.rule.period_ms));
    tightest.map(|(_, state)| state)
}

/// Whole seconds, at least 1, until every violated check would fit.
pub fn retry_after(refused: &Refused) -> u64 {
    seconds_until(refused.retry_at, refused.at).max(1)
}

/// The public text of a refusal, by its first violated check. `policies` are those the checks were built
/// from, by their numbers, and `plan` is the caller's.
pub fn detail<'a>(
    refused: &Refused,
    checks: &Checks,
    policies: &'a [Policy],
    plan: &'a Plan,
) -> Cow<'a, str> {
    let first = refused.violated.iter().next().and_then(|index| checks.get(index));
    first.map_or("Rate limit exceeded".into(), |check| check_detail(check, policies, plan))
}

fn check_detail<'a>(check: &Check, policies: &'a [Policy], plan: &'a Plan) -> Cow<'a, str> {
    let Some(windows) = policies.get(usize::from(check.policy)).map(Policy::windows) else {
        return "Rate limit exceeded".into();
    };
    match windows.and_then(|windows| windows.get(usize::from(check.window))) {
        None => plan.detail().into(),
        Some(window) if window.limit() == check.rule.limit => window.detail().into(),
        // An API token's own.
        Some(window) => window.with_limit(check.rule.limit).detail().to_owned().into(),
    }
}

/// The names of the violated checks, as in `RateLimit-Policy`: the `violated-policies` member of the draft's
/// problem type.
pub fn violated_policies<'a>(refused: &Refused, checks: &'a Checks) -> impl Iterator<Item = &'a str> {
    refused.violated.iter().filter_map(|index| checks.get(index)).map(|check| checks.name(check))
}

// `"name";q=50;w=60`; names are [a-z0-9_-] and need no escape in a structured string.
fn write_policies(checks: &Checks, out: &mut BytesMut) {
    let start = out.len();
    for (check, _) in visible(checks) {
        put_name(checks.name(check), start, out);
        out.put_slice(b";q=");
        put_number(out, check.rule.limit.min(MAX_SF_INTEGER));
        out.put_slice(b";w=");
        put_number(out, check.rule.period_ms.div_ceil(1_000).max(1));
    }
    for (name, seats) in checks.in_flight() {
        put_name(name, start, out);
        out.put_slice(b";q=");
        put_number(out, seats.most.min(MAX_SF_INTEGER));
        out.put_slice(b";qu=\"concurrent-requests\"");
    }
}

// `"name";r=12;t=30`; requests in flight have no time at which they end.
fn write_limits(checks: &Checks, at: UnixMillis, out: &mut BytesMut) {
    let start = out.len();
    for (check, state) in visible(checks) {
        put_name(checks.name(check), start, out);
        out.put_slice(b";r=");
        put_number(out, state.remaining.min(MAX_SF_INTEGER));
        out.put_slice(b";t=");
        put_number(out, seconds_until(state.reset_at, at).min(MAX_SF_INTEGER));
    }
    for (name, seats) in checks.in_flight() {
        put_name(name, start, out);
        out.put_slice(b";r=");
        put_number(out, seats.left.min(MAX_SF_INTEGER));
    }
}

fn put_name(name: &str, start: usize, out: &mut BytesMut) {
    out.put_slice(if out.len() == start { b"\"" } else { b", \"" });
    out.put_slice(name.as_bytes());
    out.put_u8(b'"');
}

fn seconds_until(then: UnixMillis, now: UnixMillis) -> u64 {
    then.millis_since(now).div_ceil(1_000)
}

fn put_number(out: &mut BytesMut, mut number: u64) {
    let mut digits = [0_u8; 20];
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        // The remainder is a digit.
        #[allow(clippy::cast_possible_truncation)]
        let value = (number % 10) as u8;
        *digit = b'0' + value;
        number /= 10;
        used += 1;
        if number == 0 {
            break;
        }
    }
    out.put_slice(digits.get(20 - used..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use sfv::{BareItem, ListEntry, Parser};

    use super::super::local::{self, Local};
    use super::super::plan::Plans;
    use super::super::policy::{Algorithm, KeyPart, LimitSource, Window};
    use super::super::subject::{Caller, KeySpace};
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_500);

    fn policies() -> Vec<Policy> {
        let windows = [(50, 60), (1_000, 3_600)];
        let own = windows.iter().map(|&(n, s)| Window::new(n, Duration::from_secs(s)).unwrap()).collect();
        let login = LimitSource::Windows(vec![Window::new(5, Duration::from_secs(60)).unwrap()]);
        let new = |name, limit| Policy::new(name, &[KeyPart::Ip], Algorithm::FixedWindow, limit).unwrap();
        vec![new("api", LimitSource::Windows(own)), new("login", login), new("plan", LimitSource::Plan)]
    }

    fn run(policies: &[Policy], hits: usize, plan: &Plan) -> (Checks, Decision) {
        let caller = Caller {
            ip: "192.0.2.1",
            user: None,
            token: None,
            api_token: None,
            own_limits: [None; 3],
            route: "r",
            plan,
            multiplier: 1.0,
            request: crate::limits::Parts::default(),
        };
        let (local, mut checks) = (Local::new(local::Settings::default()), Checks::new());
        checks.begin(NOW);
        for (index, policy) in (0..).zip(policies) {
            checks.add(&KeySpace::default(), index, policy, &caller, 1).unwrap();
        }
        let mut decision = local.decide(&mut checks, NOW);
        for _ in 1..hits {
            decision = local.decide(&mut checks, NOW);
        }
        (checks, decision)
    }

    fn written(settings: Settings, checks: &Checks, decision: &Decision) -> HashMap<String, String> {
        let mut fields = HashMap::new();
        write(&settings, checks, decision, |name, value| {
            assert!(fields.insert(name.to_string(), value.to_str().unwrap().to_owned()).is_none());
        });
        fields
    }

    fn parsed(text: &str) -> Vec<(String, HashMap<String, i64>)> {
        let list: sfv::List = Parser::new(text).parse().unwrap();
        list.into_iter()
            .map(|entry| {
                let ListEntry::Item(item) = entry else { panic!("not an item") };
                let BareItem::String(name) = item.bare_item else { panic!("not a string") };
                let params = item.params.iter().map(|(key, value)| {
                    let BareItem::Integer(number) = value else { panic!("not a number") };
                    (key.to_string(), i64::from(*number))
                });
                (name.to_string(), params.collect())
            })
            .collect()
    }

    #[test]
    fn every_counter_is_told_and_the_tightest_one_in_short() {
        let plans = Plans::standard().unwrap();
        let (checks, decision) = run(&policies(), 2, plans.named(Some("pro")));
        let fields = written(Settings::default(), &checks, &decision);
        assert_eq!(fields["x-ratelimit-limit"], "5");
        assert_eq!(fields["x-ratelimit-remaining"], "3");
        assert_eq!(fields["x-ratelimit-reset"], "1700000061");
        assert!(!fields.contains_key("retry-after"));
        let policies = parsed(&fields["ratelimit-policy"]);
        let names: Vec<_> = policies.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["api-minute", "api-hour", "login", "plan"]);
        assert_eq!((policies[1].1["q"], policies[1].1["w"]), (1_000, 3_600));
        assert_eq!(policies[3].1["q"], 200);
        let limits = parsed(&fields["ratelimit"]);
        assert_eq!((limits[0].1["r"], limits[0].1["t"]), (48, 60));
        assert_eq!((limits[2].1["r"], limits[2].1["t"]), (3, 60));
    }

    #[test]
    fn a_refusal_tells_when_to_come_back_and_why() {
        let (all, plans) = (policies(), Plans::standard().unwrap());
        let pro = plans.named(Some("pro"));
        let (checks, decision) = run(&all, 6, pro);
        let Decision::Refused(refused) = decision else { panic!("admitted") };
        let settings = Settings { reset: ResetFormat::Delta, ..Settings::default() };
        let fields = written(settings, &checks, &decision);
        assert_eq!(fields["retry-after"], "60");
        assert_eq!(fields["x-ratelimit-remaining"], "0");
        assert_eq!(fields["x-ratelimit-reset"], "60");
        assert_eq!(
            detail(&refused, &checks, &all, pro),
            "Rate limit exceeded. Max 5 requests per 60 seconds."
        );
        assert_eq!(violated_policies(&refused, &checks).collect::<Vec<_>>(), ["login"]);
    }

    #[test]
    fn plan_refusals_name_the_plan() {
        let plans = Plans::standard().unwrap();
        let only = vec![policies().remove(2)];
        for (plan, text) in [
            (plans.named(Some("pro")), "Rate limit exceeded for pro plan"),
            (plans.anonymous(), "Rate limit exceeded"),
        ] {
            let (checks, decision) = run(&only, 201, plan);
            let Decision::Refused(refused) = decision else { panic!("admitted") };
            assert_eq!(detail(&refused, &checks, &only, plan), text);
        }
    }

    #[test]
    fn settings_choose_and_no_policy_writes_nothing() {
        let plans = Plans::standard().unwrap();
        let (checks, decision) = run(&policies(), 6, plans.anonymous());
        let none = Settings { x_ratelimit: false, ietf: false, reset: ResetFormat::Epoch };
        let fields = written(none, &checks, &decision);
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["retry-after"]);
        let (checks, decision) = run(&[], 1, plans.anonymous());
        assert!(written(Settings::default(), &checks, &decision).is_empty());
    }

    #[test]
    fn among_equals_the_longest_window_binds_and_huge_numbers_stay_valid() {
        let windows = [60, 3_600].map(|s| Window::new(u64::MAX, Duration::from_secs(s)).unwrap());
        let limit = LimitSource::Windows(windows.to_vec());
        let huge = [Policy::new("huge", &[KeyPart::Ip], Algorithm::FixedWindow, limit).unwrap()];
        let (checks, decision) = run(&huge, 1, Plans::standard().unwrap().anonymous());
        let fields = written(Settings::default(), &checks, &decision);
        assert_eq!(fields["x-ratelimit-reset"], "1700003601");
        assert_eq!(fields["x-ratelimit-limit"], u64::MAX.to_string());
        assert_eq!(parsed(&fields["ratelimit"])[0].1["r"], 999_999_999_999_999);
    }

    #[test]
    fn policies_that_only_watch_are_told_to_nobody() {
        let plans = Plans::standard().unwrap();
        let mut all = policies();
        let watching = all.remove(1).with_shadow(true);
        let (checks, decision) = run(std::slice::from_ref(&watching), 1, plans.anonymous());
        assert!(written(Settings::default(), &checks, &decision).is_empty());
        // Five fit it; the sixth would be refused.
        all.push(watching);
        let (checks, decision) = run(&all, 6, plans.named(Some("pro")));
        assert!(decision.is_admitted());
        assert_eq!(checks.shadow_violated().iter().collect::<Vec<_>>(), [3]);
        let fields = written(Settings::default(), &checks, &decision);
        assert_eq!(fields["x-ratelimit-limit"], "50");
        for field in ["ratelimit-policy", "ratelimit"] {
            let names: Vec<_> = parsed(&fields[field]).into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, ["api-minute", "api-hour", "plan"]);
        }
    }

    #[test]
    fn requests_in_flight_are_told_without_a_time() {
        let limit = LimitSource::Concurrency(3);
        let policy = Policy::new("busy", &[KeyPart::Ip], Algorithm::FixedWindow, limit).unwrap();
        let (mut checks, decision) =
            run(std::slice::from_ref(&policy), 1, Plans::standard().unwrap().anonymous());
        assert!(checks.is_empty(), "it has no counters");
        checks.note_in_flight(&policy, 3, 2);
        let fields = written(Settings::default(), &checks, &decision);
        assert_eq!(fields.len(), 2, "{fields:?}");
        assert_eq!(fields["ratelimit-policy"], r#""busy";q=3;qu="concurrent-requests""#);
        assert_eq!(fields["ratelimit"], r#""busy";r=2"#);
        let mut busy = HashMap::new();
        let only = Settings { ietf: false, ..Settings::default() };
        write_busy(&only, &checks, |name, value| {
            busy.insert(name.to_string(), value.to_str().unwrap().to_owned());
        });
        assert_eq!(busy, HashMap::from([("retry-after".to_owned(), "1".to_owned())]));
        assert_eq!(policy.concurrency().unwrap().detail(), "Too many requests at once. Max 3.");
    }

    #[test]
    fn numbers_are_written_in_full() {
        for number in [0, 9, 10, 1_234_567_890, u64::MAX] {
            let mut out = BytesMut::new();
            put_number(&mut out, number);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }
}
