//! How limits read to clients: the de-facto `X-RateLimit-*` fields, the IETF pair of
//! draft-ietf-httpapi-ratelimit-headers-10, `Retry-After` and the text of a refusal. It decides nothing.

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

/// Hands every field of `decision` to `put`; nothing when no policy applied. All values share one buffer.
pub fn write(
    settings: &Settings,
    checks: &Checks,
    decision: &Decision,
    mut put: impl FnMut(HeaderName, HeaderValue),
) {
    let at = decision.at();
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
    let ietf = settings.ietf && !checks.is_empty();
    if ietf {
        write_policies(checks, &mut fields.buffer);
        fields.end(3);
        write_limits(checks, at, &mut fields.buffer);
    }
    fields.end(4);
    if let Decision::Refused(refused) = decision {
        put_number(&mut fields.buffer, retry_after(refused));
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
    let [limit, remaining, reset, policies, limits, retry] = ends;
    if tightest.is_some() {
        field(limit, &X_RATELIMIT_LIMIT, true);
        field(remaining, &X_RATELIMIT_REMAINING, true);
        field(reset, &X_RATELIMIT_RESET, true);
    }
    if ietf {
        field(policies, &RATELIMIT_POLICY, true);
        field(limits, &RATELIMIT, true);
    }
    field(retry, &RETRY_AFTER, !decision.is_admitted());
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

/// The counter that binds first: the smallest remaining; among equals the longest window.
pub fn tightest(checks: &Checks) -> Option<&CounterState> {
    let pairs = checks.iter().zip(checks.states());
    let tightest = pairs.min_by_key(|(check, state)| (state.remaining, u64::MAX - check.rule.period_ms));
    tightest.map(|(_, state)| state)
}

/// Whole seconds, at least 1, until every violated check would fit.
pub fn retry_after(refused: &Refused) -> u64 {
    seconds_until(refused.retry_at, refused.at).max(1)
}

/// The public text of a refusal, by its first violated check. `policies` are those the checks were built
/// from, by their numbers, and `plan` is the caller's.
pub fn detail<'a>(refused: &Refused, checks: &Checks, policies: &'a [Policy], plan: &'a Plan) -> &'a str {
    let first = refused.violated.iter().next().and_then(|index| checks.get(index));
    first.map_or("Rate limit exceeded", |check| check_detail(check, policies, plan))
}

fn check_detail<'a>(check: &Check, policies: &'a [Policy], plan: &'a Plan) -> &'a str {
    let Some(windows) = policies.get(usize::from(check.policy)).map(Policy::windows) else {
        return "Rate limit exceeded";
    };
    let window = windows.and_then(|windows| windows.get(usize::from(check.window)));
    window.map_or(plan.detail(), |window| window.detail())
}

/// The names of the violated checks, as in `RateLimit-Policy`: the `violated-policies` member of the draft's
/// problem type.
pub fn violated_policies<'a>(refused: &Refused, checks: &'a Checks) -> impl Iterator<Item = &'a str> {
    refused.violated.iter().filter_map(|index| checks.get(index)).map(|check| checks.name(check))
}

// `"name";q=50;w=60`; names are [a-z0-9_-] and need no escape in a structured string.
fn write_policies(checks: &Checks, out: &mut BytesMut) {
    for (index, check) in checks.iter().enumerate() {
        put_name(checks, check, index, out);
        out.put_slice(b";q=");
        put_number(out, check.rule.limit.min(MAX_SF_INTEGER));
        out.put_slice(b";w=");
        put_number(out, check.rule.period_ms.div_ceil(1_000).max(1));
    }
}

// `"name";r=12;t=30`.
fn write_limits(checks: &Checks, at: UnixMillis, out: &mut BytesMut) {
    for (index, (check, state)) in checks.iter().zip(checks.states()).enumerate() {
        put_name(checks, check, index, out);
        out.put_slice(b";r=");
        put_number(out, state.remaining.min(MAX_SF_INTEGER));
        out.put_slice(b";t=");
        put_number(out, seconds_until(state.reset_at, at).min(MAX_SF_INTEGER));
    }
}

fn put_name(checks: &Checks, check: &Check, index: usize, out: &mut BytesMut) {
    out.put_slice(if index == 0 { b"\"" } else { b", \"" });
    out.put_slice(checks.name(check).as_bytes());
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
