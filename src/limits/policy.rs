//! What is limited: named policies, the parts of their keys, their windows and what to do without a store.
//! Everything is valid once built; nothing here counts.

use std::fmt;
use std::time::Duration;

use http::HeaderName;

use super::body::FieldPath;
use crate::clock::millis;

/// The longest window: a leap year. Bounds keep every computation on times far from overflow.
pub const MAX_PERIOD: Duration = Duration::from_secs(366 * 86_400);

/// The largest limit of a sliding log, which keeps each admitted request.
pub const MAX_LOG_LIMIT: u64 = 10_000;

/// The longest name of a policy or a window, in bytes.
pub const MAX_NAME: usize = 32;

/// Why a policy, window or plan cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A policy name is empty, too long or holds another character.
    #[error("name {0:?} must be 1 to {max} characters of a-z, 0-9, _ and -", max = MAX_NAME)]
    Name(Box<str>),
    /// A key without parts would make one counter for the whole world.
    #[error("the key names no part")]
    EmptyKey,
    /// A policy or plan without windows limits nothing.
    #[error("no window is given")]
    NoWindow,
    /// Two windows of one policy would share a counter.
    #[error("two windows are called {0:?}")]
    DuplicateWindow(Box<str>),
    /// A window is shorter than 1 ms or longer than [`MAX_PERIOD`].
    #[error("a window must last between 1 ms and 366 days, not {0:?}")]
    Period(Duration),
    /// A request that costs nothing would never be limited.
    #[error("the cost must be at least 1")]
    ZeroCost,
    /// Two plans have one name.
    #[error("two plans are called {0:?}")]
    DuplicatePlan(Box<str>),
    /// The default plan is not declared.
    #[error("the default plan {0:?} is not declared")]
    UnknownDefaultPlan(Box<str>),
}

/// One component of what a policy counts by. A policy does not apply to an anonymous caller where its key asks for
/// a part of an identity; what any caller could leave out of a request ([`Self::Header`], [`Self::Cookie`],
/// [`Self::Body`]) is counted together for all who do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyPart {
    /// The client address (IPv6 by network).
    Ip,
    /// The subject of a verified identity.
    User,
    /// The verified token (`jti` or fingerprint).
    Token,
    /// The route's name.
    Route,
    /// The caller's plan: all callers of a plan share one counter.
    Plan,
    /// The user when identified, the client address otherwise.
    Caller,
    /// The id of an opaque API token.
    ApiToken,
    /// A header field of the request.
    Header(HeaderName),
    /// A cookie of the request.
    Cookie(Box<str>),
    /// A field of the request's JSON or form body.
    Body(FieldPath),
}

impl KeyPart {
    /// Whether only an identified caller has it.
    pub const fn needs_caller(&self) -> bool {
        matches!(self, Self::User | Self::Token | Self::ApiToken)
    }
}

impl fmt::Display for KeyPart {
    /// As in the configuration file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip => f.write_str("ip"),
            Self::User => f.write_str("user"),
            Self::Token => f.write_str("token"),
            Self::Route => f.write_str("route"),
            Self::Plan => f.write_str("plan"),
            Self::Caller => f.write_str("caller"),
            Self::ApiToken => f.write_str("api_token"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Body(path) => write!(f, "body:{path}"),
        }
    }
}

/// How requests are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// A counter that starts with the first hit and vanishes a period later.
    #[default]
    FixedWindow,
    /// Two aligned counters; the previous one fades out linearly.
    SlidingWindow,
    /// A bucket of `limit` tokens refilled continuously at `limit` per period.
    TokenBucket,
    /// The time of every admitted request: never more than `limit` in any period.
    SlidingLog,
    /// A fixed window that trips: once a request finds it full, [`CoolDown`] holds instead until it is quiet.
    CoolDown(CoolDown),
}

/// What holds once a window has tripped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CoolDown {
    /// One request is admitted per this many milliseconds; at least 1.
    pub interval_ms: u64,
    /// The window opens again when no request was made, admitted or refused, for this many milliseconds.
    pub quiet_ms: u64,
}

impl Algorithm {
    /// The word of the configuration file and of metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FixedWindow => "fixed-window",
            Self::SlidingWindow => "sliding-window",
            Self::TokenBucket => "token-bucket",
            Self::SlidingLog => "sliding-log",
            Self::CoolDown(_) => "cool-down",
        }
    }
}

/// Whose requests a policy counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppliesTo {
    /// Everyone's.
    #[default]
    All,
    /// Those of callers who are not identified.
    Anonymous,
    /// Those of callers who are.
    Identified,
}

impl AppliesTo {
    /// Whether the policy counts requests of a caller who is `identified` or not.
    pub const fn covers(self, identified: bool) -> bool {
        match self {
            Self::All => true,
            Self::Anonymous => !identified,
            Self::Identified => identified,
        }
    }
}

/// What a policy does while the shared store cannot be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnStoreFailure {
    /// Count in this instance's memory, from the last known state.
    #[default]
    Local,
    /// Admit without counting.
    Allow,
    /// Refuse.
    Deny,
}

impl OnStoreFailure {
    /// The word of the configuration file and of metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// At most `limit` requests per period, with its texts prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    limit: u64,
    period_ms: u64,
    name: Box<str>,
    detail: Box<str>,
}

impl Window {
    /// A window of `limit` (0 refuses everything) per `period` (1 ms to [`MAX_PERIOD`]), named
    /// `second`, `minute`, `hour`, `day`, else `<n>s` or `<n>ms`.
    pub fn new(limit: u64, period: Duration) -> Result<Self, PolicyError> {
        let name = match millis(period) {
            1_000 => "second".into(),
            60_000 => "minute".into(),
            3_600_000 => "hour".into(),
            86_400_000 => "day".into(),
            ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
            ms => format!("{ms}ms"),
        };
        Self::named(&name, limit, period)
    }

    /// A window with a name of its own, which ends its keys and header names: 1 to 32 characters of `a-z`,
    /// `0-9`, `_` and `-`.
    ///
    /// # Errors
    /// [`PolicyError::Name`] and [`PolicyError::Period`].
    pub fn named(name: &str, limit: u64, period: Duration) -> Result<Self, PolicyError> {
        let period_ms = millis(period);
        if period_ms == 0 || period > MAX_PERIOD {
            return Err(PolicyError::Period(period));
        }
        if !is_name(name) {
            return Err(PolicyError::Name(name.into()));
        }
        Ok(Self { limit, period_ms, name: name.into(), detail: Self::text(limit, period_ms) })
    }

    /// The same window with another limit.
    #[must_use]
    pub fn with_limit(&self, limit: u64) -> Self {
        Self { limit, detail: Self::text(limit, self.period_ms), ..self.clone() }
    }

    fn text(limit: u64, period_ms: u64) -> Box<str> {
        let (requests, span) = (plural(limit, "request"), span_text(period_ms));
        format!("Rate limit exceeded. Max {requests} per {span}.").into()
    }

    /// Requests per period; 0 refuses everything.
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// The period in milliseconds, 1 or more.
    pub const fn period_ms(&self) -> u64 {
        self.period_ms
    }

    /// The name used in keys and header fields: `[a-z0-9]+`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public text of a refusal by this window.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

/// Whether a policy or a window can have this name: 1 to [`MAX_NAME`] characters of `a-z`, `0-9`, `_` and `-`, as keys
/// and header fields can hold it.
pub fn is_name(name: &str) -> bool {
    let valid = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(valid)
}

fn plural(n: u64, word: &str) -> String {
    format!("{n} {word}{}", if n == 1 { "" } else { "s" })
}

fn span_text(period_ms: u64) -> String {
    if period_ms.is_multiple_of(1_000) {
        plural(period_ms / 1_000, "second")
    } else {
        plural(period_ms, "millisecond")
    }
}

/// `windows` unless it is empty or two of them would share a counter.
pub(super) fn distinct(windows: Vec<Window>) -> Result<Box<[Window]>, PolicyError> {
    if windows.is_empty() {
        return Err(PolicyError::NoWindow);
    }
    for (index, window) in windows.iter().enumerate() {
        if windows.iter().take(index).any(|earlier| earlier.name == window.name) {
            return Err(PolicyError::DuplicateWindow(window.name.clone()));
        }
    }
    Ok(windows.into())
}

/// Where a policy's windows come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitSource {
    /// The policy's own windows.
    Windows(Vec<Window>),
    /// The windows of the caller's plan, times the caller's multiplier.
    Plan,
    /// No windows: at most this many requests of one subject in flight on this instance, at least 1.
    Concurrency(u64),
}

/// A limit on requests in flight, with its text prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concurrency {
    most: u64,
    detail: Box<str>,
}

impl Concurrency {
    fn new(most: u64) -> Self {
        let most = most.max(1);
        Self { most, detail: format!("Too many requests at once. Max {most}.").into() }
    }

    /// Requests of one subject in flight on this instance, at least 1.
    pub const fn most(&self) -> u64 {
        self.most
    }

    /// The public text of a refusal.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

/// A named limit.
#[derive(Clone, Debug)]
pub struct Policy {
    name: Box<str>,
    key: Box<[KeyPart]>,
    applies_to: AppliesTo,
    algorithm: Algorithm,
    windows: Option<Box<[Window]>>,
    concurrency: Option<Concurrency>,
    cost: u32,
    on_store_failure: OnStoreFailure,
    penalise: bool,
    shadow: bool,
    lease: bool,
    failures: Option<Box<[u16]>>,
}

impl Policy {
    /// A policy of cost 1 that counts locally without a store and does not penalise.
    pub fn new(
        name: &str,
        key: &[KeyPart],
        algorithm: Algorithm,
        limit: LimitSource,
    ) -> Result<Self, PolicyError> {
        if !is_name(name) {
            return Err(PolicyError::Name(name.into()));
        }
        if key.is_empty() {
            return Err(PolicyError::EmptyKey);
        }
        let (windows, concurrency) = match limit {
            LimitSource::Windows(windows) => (Some(distinct(windows)?), None),
            LimitSource::Plan => (None, None),
            LimitSource::Concurrency(most) => (Some(Box::default()), Some(Concurrency::new(most))),
        };
        Ok(Self {
            name: name.into(),
            key: key.into(),
            applies_to: AppliesTo::default(),
            algorithm,
            windows,
            concurrency,
            cost: 1,
            on_store_failure: OnStoreFailure::default(),
            penalise: false,
            shadow: false,
            lease: false,
            failures: None,
        })
    }

    /// The same policy where a request consumes `cost`, at least 1.
    pub fn with_cost(self, cost: u32) -> Result<Self, PolicyError> {
        if cost == 0 { Err(PolicyError::ZeroCost) } else { Ok(Self { cost, ..self }) }
    }

    /// The same policy for some callers only.
    #[must_use]
    pub fn with_applies_to(self, applies_to: AppliesTo) -> Self {
        Self { applies_to, ..self }
    }

    /// The same policy with another behaviour while the store cannot be asked.
    #[must_use]
    pub fn with_on_store_failure(self, on_store_failure: OnStoreFailure) -> Self {
        Self { on_store_failure, ..self }
    }

    /// The same policy where refused requests consume too (`true`) or not.
    #[must_use]
    pub fn with_penalise(self, penalise: bool) -> Self {
        Self { penalise, ..self }
    }

    /// The same policy watching only (`true`): it counts, and refuses nobody.
    #[must_use]
    pub fn with_shadow(self, shadow: bool) -> Self {
        Self { shadow, ..self }
    }

    /// The same policy where an instance may take several requests' worth at once.
    #[must_use]
    pub fn with_lease(self, lease: bool) -> Self {
        Self { lease, ..self }
    }

    /// The same policy where only requests count whose answer has one of these `statuses`. All count until they are
    /// answered, so that guesses made side by side cannot slip through.
    #[must_use]
    pub fn with_failures(self, statuses: &[u16]) -> Self {
        Self { failures: Some(statuses.into()), ..self }
    }

    /// The name: `[a-z0-9_-]{1,32}`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is counted by, in key order; never empty.
    pub fn key(&self) -> &[KeyPart] {
        &self.key
    }

    /// Whose requests are counted.
    pub const fn applies_to(&self) -> AppliesTo {
        self.applies_to
    }

    /// What holds for requests in flight, where the policy counts those and has no windows.
    pub const fn concurrency(&self) -> Option<&Concurrency> {
        self.concurrency.as_ref()
    }

    /// How requests are counted.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The policy's own windows, `None` when they come from the caller's plan; empty for requests in flight.
    pub fn windows(&self) -> Option<&[Window]> {
        self.windows.as_deref()
    }

    /// What one request consumes, at least 1.
    pub const fn cost(&self) -> u32 {
        self.cost
    }

    /// What happens while the store cannot be asked.
    pub const fn on_store_failure(&self) -> OnStoreFailure {
        self.on_store_failure
    }

    /// Whether refused requests consume.
    pub const fn penalise(&self) -> bool {
        self.penalise
    }

    /// Whether the policy only watches.
    pub const fn shadow(&self) -> bool {
        self.shadow
    }

    /// Whether instances may take several requests' worth at once.
    pub const fn lease(&self) -> bool {
        self.lease
    }

    /// Whether some requests are given back once they are answered.
    pub const fn counts_failures_only(&self) -> bool {
        self.failures.is_some()
    }

    /// Whether a request that was answered with `status` stays counted; it does where nobody knows (`None`), since
    /// whoever hangs up early would otherwise guess for nothing.
    pub fn keeps(&self, status: Option<u16>) -> bool {
        let failure = |statuses: &[u16]| status.is_none_or(|status| statuses.contains(&status));
        self.failures.as_deref().is_none_or(failure)
    }

    /// Whether its key has a part that only the body tells.
    pub fn needs_body(&self) -> bool {
        self.key.iter().any(|part| matches!(part, KeyPart::Body(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(limit: u64, seconds: u64) -> Window {
        Window::new(limit, Duration::from_secs(seconds)).unwrap()
    }

    #[test]
    fn windows_have_the_documented_names_and_texts() {
        let names: Vec<_> =
            [1, 60, 3_600, 86_400, 900].iter().map(|&s| window(5, s).name.to_string()).collect();
        assert_eq!(names, ["second", "minute", "hour", "day", "900s"]);
        assert_eq!(Window::new(5, Duration::from_millis(1_500)).unwrap().name(), "1500ms");
        assert_eq!(window(5, 60).detail(), "Rate limit exceeded. Max 5 requests per 60 seconds.");
        assert_eq!(window(1, 1).detail(), "Rate limit exceeded. Max 1 request per 1 second.");
    }

    #[test]
    fn only_failures_stay_counted_where_only_failures_count() {
        let plain = Policy::new("a", &[KeyPart::Ip], Algorithm::FixedWindow, LimitSource::Plan).unwrap();
        assert!(plain.keeps(Some(200)) && plain.keeps(None));
        let policy = plain.with_failures(&[401, 403]);
        assert!(policy.keeps(Some(401)) && policy.keeps(Some(403)));
        assert!(!policy.keeps(Some(200)) && !policy.keeps(Some(502)) && policy.keeps(None));
    }

    #[test]
    fn impossible_policies_are_refused() {
        let own = || LimitSource::Windows(vec![window(5, 60)]);
        let build =
            |name: &str, key: &[KeyPart], limit| Policy::new(name, key, Algorithm::FixedWindow, limit);
        for name in ["", "A", "a:b", "a b", "é", &"x".repeat(33)] {
            assert_eq!(build(name, &[KeyPart::Ip], own()).unwrap_err(), PolicyError::Name(name.into()));
        }
        assert_eq!(build("a", &[], own()).unwrap_err(), PolicyError::EmptyKey);
        let none = LimitSource::Windows(vec![]);
        assert_eq!(build("a", &[KeyPart::Ip], none).unwrap_err(), PolicyError::NoWindow);
        let twice = LimitSource::Windows(vec![window(5, 60), window(9, 60)]);
        let duplicate = build("a", &[KeyPart::Ip], twice).unwrap_err();
        assert_eq!(duplicate, PolicyError::DuplicateWindow("minute".into()));
        assert_eq!(
            build("a", &[KeyPart::Ip], own()).unwrap().with_cost(0).unwrap_err(),
            PolicyError::ZeroCost
        );
        assert!(Window::new(1, Duration::ZERO).is_err());
        assert!(Window::new(1, Duration::MAX).is_err());
    }
}
