//! Plans: what each kind of customer may do, and how multipliers change it.
//! Which plan a caller has is decided elsewhere; here a name only finds its windows.

use std::time::Duration;

use super::policy::{PolicyError, Window, distinct};

/// The windows of one kind of customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    name: Box<str>,
    windows: Box<[Window]>,
    detail: Box<str>,
}

impl Plan {
    /// A plan; its refusals read `Rate limit exceeded for <name> plan`.
    pub fn new(name: &str, windows: Vec<Window>) -> Result<Self, PolicyError> {
        let windows = distinct(windows)?;
        Ok(Self { name: name.into(), windows, detail: format!("Rate limit exceeded for {name} plan").into() })
    }

    /// The plan of callers who are not identified; its refusals name no plan.
    pub fn anonymous(windows: Vec<Window>) -> Result<Self, PolicyError> {
        let windows = distinct(windows)?;
        Ok(Self { name: "anonymous".into(), windows, detail: "Rate limit exceeded".into() })
    }

    /// The same plan where windows of some periods, in milliseconds, have another limit.
    #[must_use]
    pub(super) fn with_limits(&self, limit_of: impl Fn(u64) -> Option<u64>) -> Self {
        let window = |window: &Window| match limit_of(window.period_ms()) {
            Some(limit) => window.with_limit(limit),
            None => window.clone(),
        };
        Self { windows: self.windows.iter().map(window).collect(), ..self.clone() }
    }

    /// The declared name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The windows, before any multiplier; never empty.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// The public text of a refusal by this plan.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

/// All declared plans.
#[derive(Clone, Debug)]
pub struct Plans {
    anonymous: Plan,
    named: Box<[Plan]>,
    default: Plan,
    multiplier_cap: f64,
}

impl Plans {
    /// The multiplier that is believed at most, unless declared otherwise.
    pub const DEFAULT_MULTIPLIER_CAP: f64 = 10.0;

    /// `default` names the plan of identified callers without a plan or with an undeclared one.
    pub fn new(anonymous: Plan, named: Vec<Plan>, default: &str) -> Result<Self, PolicyError> {
        for (index, plan) in named.iter().enumerate() {
            if named.iter().take(index).any(|earlier| earlier.name == plan.name) {
                return Err(PolicyError::DuplicatePlan(plan.name.clone()));
            }
        }
        let Some(default) = named.iter().find(|plan| &*plan.name == default).cloned() else {
            return Err(PolicyError::UnknownDefaultPlan(default.into()));
        };
        Ok(Self { anonymous, named: named.into(), default, multiplier_cap: Self::DEFAULT_MULTIPLIER_CAP })
    }

    /// Anonymous 10, free 50 (the default), pro 200 and enterprise 1000 per minute.
    pub fn standard() -> Result<Self, PolicyError> {
        let minute = |limit| Ok(vec![Window::new(limit, Duration::from_secs(60))?]);
        let named = vec![
            Plan::new("free", minute(50)?)?,
            Plan::new("pro", minute(200)?)?,
            Plan::new("enterprise", minute(1_000)?)?,
        ];
        Self::new(Plan::anonymous(minute(10)?)?, named, "free")
    }

    /// The same plans believing multipliers up to `cap`; a cap that is not a positive number changes nothing.
    #[must_use]
    pub fn with_multiplier_cap(mut self, cap: f64) -> Self {
        if cap.is_finite() && cap > 0.0 {
            self.multiplier_cap = cap;
        }
        self
    }

    /// The plan of a caller who is not identified.
    pub const fn anonymous(&self) -> &Plan {
        &self.anonymous
    }

    /// The plan of an identified caller: the declared one of that name, else the default.
    pub fn named(&self, name: Option<&str>) -> &Plan {
        name.and_then(|name| self.named.iter().find(|plan| &*plan.name == name)).unwrap_or(&self.default)
    }

    /// Every declared plan but the anonymous one.
    pub fn iter(&self) -> impl Iterator<Item = &Plan> {
        self.named.iter()
    }

    /// The product of two multipliers, each 1 when it is not a positive finite number; at most the cap.
    pub fn combined(&self, one: f64, other: f64) -> f64 {
        (sane(one) * sane(other)).clamp(f64::MIN_POSITIVE, self.multiplier_cap)
    }
}

/// `multiplier`, or 1 when it is not a positive finite number.
pub(super) fn sane(multiplier: f64) -> f64 {
    if multiplier.is_finite() && multiplier > 0.0 { multiplier } else { 1.0 }
}

/// `limit` times `multiplier` rounded down, at least 1 unless `limit` is 0, saturating. A multiplier that is
/// not a positive finite number counts as 1.
pub fn effective_limit(limit: u64, multiplier: f64) -> u64 {
    let multiplier = sane(multiplier);
    if limit == 0 || multiplier.to_bits() == 1.0_f64.to_bits() {
        return limit;
    }
    // `as` saturates, and a tiny relative nudge keeps 100 × 1.1 at 110 although 1.1 is not exact.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let scaled = (limit as f64 * multiplier * (1.0 + f64::EPSILON)) as u64;
    scaled.max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unknown_plans_fall_to_the_default_and_standard_limits_hold() {
        let plans = Plans::standard().unwrap();
        let limit = |plan: &Plan| plan.windows()[0].limit();
        assert_eq!(limit(plans.anonymous()), 10);
        for (name, expected) in [(Some("free"), 50), (Some("pro"), 200), (Some("enterprise"), 1_000)] {
            assert_eq!(limit(plans.named(name)), expected);
        }
        assert_eq!(plans.named(Some("pro\n")).name(), "free");
        assert_eq!(plans.named(None).name(), "free");
        assert_eq!(plans.named(Some("pro")).detail(), "Rate limit exceeded for pro plan");
        assert_eq!(plans.anonymous().detail(), "Rate limit exceeded");
    }

    #[test]
    fn undeclared_defaults_and_duplicates_are_refused() {
        let minute = || vec![Window::new(1, Duration::from_secs(60)).unwrap()];
        let (anonymous, free) = (Plan::anonymous(minute()).unwrap(), Plan::new("free", minute()).unwrap());
        let twice = Plans::new(anonymous.clone(), vec![free.clone(), free.clone()], "free");
        assert_eq!(twice.unwrap_err(), PolicyError::DuplicatePlan("free".into()));
        let missing = Plans::new(anonymous, vec![free], "pro");
        assert_eq!(missing.unwrap_err(), PolicyError::UnknownDefaultPlan("pro".into()));
    }

    #[test]
    fn hostile_multipliers_change_nothing_or_stop_at_the_cap() {
        let plans = Plans::standard().unwrap().with_multiplier_cap(4.0).with_multiplier_cap(f64::NAN);
        for raw in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!((plans.combined(raw, raw) - 1.0).abs() < f64::EPSILON);
            assert_eq!(effective_limit(7, raw), 7);
        }
        assert!((plans.combined(1e308, 1.0) - 4.0).abs() < f64::EPSILON);
        for (one, other, product) in
            [(1e308, 1e308, 4.0), (2.0, 1.5, 3.0), (3.0, 2.0, 4.0), (f64::NAN, 0.5, 0.5), (8.0, 0.25, 2.0)]
        {
            assert!((plans.combined(one, other) - product).abs() < f64::EPSILON, "{one} {other}");
        }
        assert_eq!(effective_limit(1_000, plans.combined(1e-300, 1e-300)), 1, "and never the whole limit");
    }

    #[test]
    fn effective_limits_round_down_but_never_to_nothing() {
        assert_eq!(effective_limit(50, 1.5), 75);
        assert_eq!(effective_limit(3, 0.5), 1);
        assert_eq!(effective_limit(1, 0.01), 1);
        assert_eq!(effective_limit(0, 9.0), 0);
        assert_eq!(effective_limit(100, 1.1), 110);
        assert_eq!(effective_limit(u64::MAX, 2.0), u64::MAX);
    }

    proptest! {
        #[test]
        fn effective_limits_never_panic(limit: u64, bits: u64) {
            let effective = effective_limit(limit, f64::from_bits(bits));
            prop_assert_eq!(effective == 0, limit == 0);
        }
    }
}
