//! What the registered claims (RFC 7519 section 4.1) say about time, audience and presence, and whether that
//! is acceptable now.
//!
//! It reads claims whose signature somebody else has verified, and it never maps them to a person.

use std::time::Duration;

use serde_json::{Map, Value};

use super::refused::Refused;
use crate::clock::{UnixMillis, millis};

/// The claims of a token.
pub type Claims = Map<String, Value>;

/// Largest accepted `NumericDate`: the last second of the year 9999. Anything later is a mistake, most often
/// milliseconds for seconds.
pub const MAX_NUMERIC_DATE: u64 = 253_402_300_799;

/// What an issuer's tokens must say.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Clock difference forgiven on `exp`, `nbf` and `iat`.
    pub leeway: Duration,
    /// Whether a token without `exp` is refused.
    pub require_exp: bool,
    /// Longest `exp - iat`; where set, both claims are required.
    pub max_lifetime: Option<Duration>,
    /// Audiences served; where any is given, `aud` must name one.
    pub audiences: Vec<Box<str>>,
    /// Further claims that must be present and not null.
    pub required: Vec<Box<str>>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            leeway: Duration::from_secs(30),
            require_exp: true,
            max_lifetime: None,
            audiences: Vec::new(),
            required: Vec::new(),
        }
    }
}

impl Rules {
    /// Judges everything but the moment.
    pub fn check_content(&self, claims: &Claims, times: &Times) -> Result<(), Refused> {
        self.check_presence(claims, times)?;
        self.check_lifetime(times)?;
        self.check_audience(claims)
    }

    /// Presence of `exp` and of the required claims.
    pub fn check_presence(&self, claims: &Claims, times: &Times) -> Result<(), Refused> {
        let lacks = |name: &str| claims.get(name).is_none_or(Value::is_null);
        let unlimited = self.require_exp && times.expires_at.is_none();
        if unlimited || self.required.iter().any(|name| lacks(name)) {
            return Err(Refused::MissingClaim);
        }
        Ok(())
    }

    /// `exp - iat` against the maximum.
    pub fn check_lifetime(&self, times: &Times) -> Result<(), Refused> {
        let Some(max) = self.max_lifetime else { return Ok(()) };
        match (times.issued_at, times.expires_at) {
            (Some(issued), Some(expires)) if expires.millis_since(issued) <= millis(max) => Ok(()),
            (Some(_), Some(_)) => Err(Refused::LifetimeTooLong),
            _ => Err(Refused::MissingClaim),
        }
    }

    /// `aud` against the declared audiences (RFC 7519 section 4.1.3).
    pub fn check_audience(&self, claims: &Claims) -> Result<(), Refused> {
        let is_ours = |name: &str| self.audiences.iter().any(|ours| **ours == *name);
        let found = match claims.get("aud") {
            None => false,
            Some(Value::String(name)) => is_ours(name),
            Some(Value::Array(names)) if names.iter().all(Value::is_string) => {
                names.iter().filter_map(Value::as_str).any(is_ours)
            }
            Some(_) => return Err(Refused::Malformed),
        };
        if found || self.audiences.is_empty() { Ok(()) } else { Err(Refused::Audience) }
    }
}

/// The times a token states, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// `iat`, rounded down.
    pub issued_at: Option<UnixMillis>,
    /// `nbf`, rounded down.
    pub not_before: Option<UnixMillis>,
    /// `exp`, rounded down.
    pub expires_at: Option<UnixMillis>,
}

impl Times {
    /// Reads the three time claims; any that is present must be a sane `NumericDate`.
    pub fn read(claims: &Claims) -> Result<Self, Refused> {
        Ok(Self {
            issued_at: numeric_date(claims.get("iat"))?,
            not_before: numeric_date(claims.get("nbf"))?,
            expires_at: numeric_date(claims.get("exp"))?,
        })
    }

    /// Judges the moment: valid from `nbf` and `iat` less the leeway until just before `exp` plus the leeway
    /// (RFC 7519 sections 4.1.4 and 4.1.5).
    pub fn check(&self, leeway: Duration, now: UnixMillis) -> Result<(), Refused> {
        if self.expires_at.is_some_and(|expires| now >= expires.plus(leeway)) {
            return Err(Refused::Expired);
        }
        let horizon = now.plus(leeway);
        if [self.not_before, self.issued_at].into_iter().flatten().any(|from| from > horizon) {
            return Err(Refused::NotYetValid);
        }
        Ok(())
    }
}

fn numeric_date(value: Option<&Value>) -> Result<Option<UnixMillis>, Refused> {
    let Some(value) = value else { return Ok(None) };
    let Value::Number(number) = value else { return Err(Refused::Malformed) };
    if let Some(seconds) = number.as_u64() {
        return if seconds <= MAX_NUMERIC_DATE {
            Ok(Some(UnixMillis::from_secs(seconds)))
        } else {
            Err(Refused::Malformed)
        };
    }
    #[allow(clippy::cast_precision_loss, reason = "the bound is far below 2^53")]
    let max = MAX_NUMERIC_DATE as f64;
    match number.as_f64() {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded just above")]
        Some(seconds) if (0.0..=max).contains(&seconds) => Ok(Some(UnixMillis((seconds * 1_000.0) as u64))),
        _ => Err(Refused::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(value: &Value) -> Claims {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn dates_are_sane_numbers_or_refused() {
        for (value, expected) in [
            (json!(0), Ok(0)),
            (json!(1_700_000_000), Ok(1_700_000_000_000)),
            (json!(1_700_000_000.25), Ok(1_700_000_000_250)),
            (json!(1.7e9), Ok(1_700_000_000_000)),
            (json!(MAX_NUMERIC_DATE), Ok(MAX_NUMERIC_DATE * 1_000)),
            (json!(MAX_NUMERIC_DATE + 1), Err(Refused::Malformed)),
            (json!(1_700_000_000_000_u64), Err(Refused::Malformed)),
            (json!(u64::MAX), Err(Refused::Malformed)),
            (json!(1e300), Err(Refused::Malformed)),
            (json!(-1), Err(Refused::Malformed)),
            (json!(i64::MIN), Err(Refused::Malformed)),
            (json!(-0.5), Err(Refused::Malformed)),
            (json!("1700000000"), Err(Refused::Malformed)),
            (json!(null), Err(Refused::Malformed)),
            (json!(true), Err(Refused::Malformed)),
            (json!([1]), Err(Refused::Malformed)),
        ] {
            for name in ["exp", "nbf", "iat"] {
                let mut members = Claims::new();
                members.insert(name.into(), value.clone());
                let read = Times::read(&members)
                    .map(|t| t.expires_at.or(t.not_before).or(t.issued_at).map_or(0, |at| at.0));
                assert_eq!(read, expected, "{name} {value}");
            }
        }
    }

    #[test]
    fn validity_has_exact_edges() {
        let leeway = Duration::from_secs(30);
        let at = |secs| Some(UnixMillis::from_secs(secs));
        let times = Times { issued_at: at(100), not_before: at(100), expires_at: at(200) };
        for (now, verdict) in [
            (69_999, Err(Refused::NotYetValid)),
            (70_000, Ok(())),
            (100_000, Ok(())),
            (200_000, Ok(())),
            (229_999, Ok(())),
            (230_000, Err(Refused::Expired)),
            (u64::MAX, Err(Refused::Expired)),
        ] {
            assert_eq!(times.check(leeway, UnixMillis(now)), verdict, "{now}");
        }
        assert_eq!(Times { expires_at: at(200), ..Times::default() }.check(leeway, UnixMillis(0)), Ok(()));
        let ahead = Times { issued_at: at(131), ..Times::default() };
        assert_eq!(ahead.check(leeway, UnixMillis::from_secs(100)), Err(Refused::NotYetValid));
    }

    #[test]
    fn audience_is_a_string_or_a_list_and_must_match() {
        let rules = Rules { audiences: vec!["api".into(), "web".into()], ..Rules::default() };
        for (aud, verdict) in [
            (json!({"aud": "api"}), Ok(())),
            (json!({"aud": ["x", "web"]}), Ok(())),
            (json!({"aud": "API"}), Err(Refused::Audience)),
            (json!({"aud": "apix"}), Err(Refused::Audience)),
            (json!({"aud": []}), Err(Refused::Audience)),
            (json!({"aud": ["x"]}), Err(Refused::Audience)),
            (json!({}), Err(Refused::Audience)),
            (json!({"aud": ["api", 1]}), Err(Refused::Malformed)),
            (json!({"aud": {"api": 1}}), Err(Refused::Malformed)),
            (json!({"aud": null}), Err(Refused::Malformed)),
        ] {
            assert_eq!(rules.check_audience(&claims(&aud)), verdict, "{aud}");
        }
        assert_eq!(Rules::default().check_audience(&claims(&json!({"aud": "other"}))), Ok(()));
    }

    #[test]
    fn required_claims_and_lifetimes_are_enforced() {
        let check = |rules: &Rules, value: Value| {
            let claims = claims(&value);
            rules.check_content(&claims, &Times::read(&claims)?)
        };
        let plain = Rules::default();
        assert_eq!(check(&plain, json!({})), Err(Refused::MissingClaim));
        assert_eq!(check(&Rules { require_exp: false, ..plain.clone() }, json!({})), Ok(()));

        let tenant = Rules { required: vec!["tenant".into()], ..plain.clone() };
        assert_eq!(check(&tenant, json!({"exp": 1})), Err(Refused::MissingClaim));
        assert_eq!(check(&tenant, json!({"exp": 1, "tenant": null})), Err(Refused::MissingClaim));
        assert_eq!(check(&tenant, json!({"exp": 1, "tenant": 0})), Ok(()));

        let brief =
            Rules { max_lifetime: Some(Duration::from_secs(60)), require_exp: false, ..plain.clone() };
        assert_eq!(check(&brief, json!({"iat": 100, "exp": 160})), Ok(()));
        assert_eq!(check(&brief, json!({"iat": 100, "exp": 161})), Err(Refused::LifetimeTooLong));
        assert_eq!(check(&brief, json!({"exp": 160})), Err(Refused::MissingClaim));
        assert_eq!(check(&brief, json!({"iat": 160})), Err(Refused::MissingClaim));
    }
}
