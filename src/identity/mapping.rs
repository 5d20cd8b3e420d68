//! From claims to a person: which claim is the subject, the plan, the multiplier, the permissions.
//!
//! A doubtful subject refuses the token; a doubtful extra is treated as absent. It never verifies anything.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use serde_json::Value;

use super::claims::Claims;
use super::refused::Refused;
use crate::header_names::{X_USER_ID, X_USER_PERMISSIONS, X_USER_PLAN};

/// Longest subject, in bytes.
pub const MAX_SUBJECT_BYTES: usize = 256;
/// Longest plan name, in bytes.
pub const MAX_PLAN_BYTES: usize = 64;
/// Longest permission, in bytes.
pub const MAX_PERMISSION_BYTES: usize = 128;
/// Most permissions of one person; more are left out.
pub const MAX_PERMISSIONS: usize = 256;
/// Longest e-mail address, in bytes (RFC 5321 section 4.5.3.1.3).
pub const MAX_EMAIL_BYTES: usize = 254;
/// Longest forwarded claim, in bytes.
pub const MAX_FORWARDED_BYTES: usize = 1024;

/// Which claims say what. A name that begins with `/` is a JSON pointer (RFC 6901), any other a member name.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// The subject, the first of these that is present.
    pub subject: Vec<Box<str>>,
    /// The plan.
    pub plan: Box<str>,
    /// The factor on the plan's limits.
    pub multiplier: Box<str>,
    /// The permissions: an array of strings, or one string with spaces between them.
    pub permissions: Box<str>,
    /// The e-mail address.
    pub email: Box<str>,
    /// Further claims sent to the upstream, each in its header.
    pub forward: Vec<(Box<str>, HeaderName)>,
    /// The headers that carry the person.
    pub carriers: Carriers,
}

/// The headers that tell the upstream who calls; what has none is not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carriers {
    /// Carries the subject.
    pub user_id: Option<HeaderName>,
    /// Carries the plan.
    pub plan: Option<HeaderName>,
    /// Carries the permissions, comma-separated.
    pub permissions: Option<HeaderName>,
}

impl Default for Carriers {
    fn default() -> Self {
        Self {
            user_id: Some(X_USER_ID.clone()),
            plan: Some(X_USER_PLAN.clone()),
            permissions: Some(X_USER_PERMISSIONS.clone()),
        }
    }
}

impl Default for Mapping {
    fn default() -> Self {
        Self {
            subject: vec!["sub".into(), "user_id".into()],
            plan: "subscription_plan".into(),
            multiplier: "rate_limit_multiplier".into(),
            permissions: "permissions".into(),
            email: "email".into(),
            forward: Vec::new(),
            carriers: Carriers::default(),
        }
    }
}

/// What the claims say of a person.
#[derive(Clone, Debug, PartialEq)]
pub struct Person {
    /// Who: 1 to [`MAX_SUBJECT_BYTES`] bytes, otherwise arbitrary.
    pub subject: Arc<str>,
    /// The plan, printable ASCII of at most [`MAX_PLAN_BYTES`].
    pub plan: Option<Box<str>>,
    /// Factor on limits: finite and above zero, 1 unless stated. Its cap belongs to the limits.
    pub multiplier: f64,
    /// Permissions in the token's order.
    pub permissions: Box<[Box<str>]>,
    /// E-mail address without controls, not verified.
    pub email: Option<Box<str>>,
    /// Forwarded claims as header lines.
    pub forwarded: Vec<(HeaderName, HeaderValue)>,
    /// The headers for the rest.
    pub carriers: Carriers,
}

impl Person {
    /// Somebody of whom only the subject is known.
    #[must_use]
    pub fn named(subject: &str) -> Self {
        Self {
            subject: subject.into(),
            plan: None,
            multiplier: 1.0,
            permissions: Box::default(),
            email: None,
            forwarded: Vec::new(),
            carriers: Carriers::default(),
        }
    }

    /// Subject, plan, permissions and the forwarded claims in their headers, ready to send.
    pub(super) fn header_lines(&self) -> Vec<(HeaderName, HeaderValue)> {
        let mut lines = Vec::with_capacity(3 + self.forwarded.len());
        let mut add = |name: &Option<HeaderName>, text: &str| {
            if let (Some(name), Ok(value)) = (name, HeaderValue::from_str(text)) {
                lines.push((name.clone(), value));
            }
        };
        add(&self.carriers.user_id, &escape(&self.subject));
        if let Some(plan) = &self.plan {
            add(&self.carriers.plan, plan);
        }
        if !self.permissions.is_empty() {
            let list: Vec<_> = self.permissions.iter().map(|permission| escape(permission)).collect();
            add(&self.carriers.permissions, &list.join(","));
        }
        lines.extend(self.forwarded.iter().cloned());
        lines
    }
}

impl Mapping {
    /// The person these claims speak of.
    ///
    /// # Errors
    /// [`Refused::Subject`] when no subject claim is present or the first present one is not a non-empty
    /// string of at most [`MAX_SUBJECT_BYTES`] or an integer.
    pub fn apply(&self, claims: &Claims) -> Result<Person, Refused> {
        Ok(Person {
            subject: self.read_subject(claims)?,
            plan: find(claims, &self.plan).and_then(plan),
            multiplier: find(claims, &self.multiplier).map_or(1.0, multiplier),
            permissions: find(claims, &self.permissions).map(permissions).unwrap_or_default(),
            email: find(claims, &self.email).and_then(email),
            forwarded: self
                .forward
                .iter()
                .filter_map(|(claim, header)| Some((header.clone(), header_value(find(claims, claim)?)?)))
                .collect(),
            carriers: self.carriers.clone(),
        })
    }

    fn read_subject(&self, claims: &Claims) -> Result<Arc<str>, Refused> {
        let value = self.subject.iter().find_map(|name| find(claims, name)).ok_or(Refused::Subject)?;
        match value {
            Value::String(text) if (1..=MAX_SUBJECT_BYTES).contains(&text.len()) => Ok(text.as_str().into()),
            Value::Number(number) if !number.is_f64() => Ok(number.to_string().into()),
            _ => Err(Refused::Subject),
        }
    }
}

/// The claim of this name or pointer, unless it is absent or null.
fn find<'c>(claims: &'c Claims, name: &str) -> Option<&'c Value> {
    let value = if let Some(pointer) = name.strip_prefix('/') {
        let (first, rest) =
            pointer.split_once('/').map_or((pointer, None), |(first, rest)| (first, Some(rest)));
        let outer = claims.get(&first.replace("~1", "/").replace("~0", "~"))?;
        rest.map_or(Some(outer), |rest| outer.pointer(&format!("/{rest}")))
    } else {
        claims.get(name)
    };
    value.filter(|value| !value.is_null())
}

fn plan(value: &Value) -> Option<Box<str>> {
    let name = value.as_str()?;
    ((1..=MAX_PLAN_BYTES).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic()))
        .then(|| name.into())
}

fn multiplier(value: &Value) -> f64 {
    value.as_f64().filter(|factor| factor.is_finite() && *factor > 0.0).unwrap_or(1.0)
}

fn permissions(value: &Value) -> Box<[Box<str>]> {
    let keep = |name: &&str| {
        (1..=MAX_PERMISSION_BYTES).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
    };
    match value {
        Value::String(list) => list.split(' ').filter(keep).take(MAX_PERMISSIONS).map(Into::into).collect(),
        Value::Array(list) => {
            list.iter().filter_map(Value::as_str).filter(keep).take(MAX_PERMISSIONS).map(Into::into).collect()
        }
        _ => Box::default(),
    }
}

fn email(value: &Value) -> Option<Box<str>> {
    let address = value.as_str()?;
    let acceptable = (1..=MAX_EMAIL_BYTES).contains(&address.len())
        && !address.chars().any(|c| c.is_control() || c.is_whitespace());
    acceptable.then(|| address.into())
}

/// A claim as a header value: visible ASCII and inner spaces only, anything else is not sent.
fn header_value(value: &Value) -> Option<HeaderValue> {
    let text = match value {
        Value::String(text) => Cow::Borrowed(text.as_str()),
        Value::Number(number) => Cow::Owned(number.to_string()),
        Value::Bool(flag) => Cow::Borrowed(if *flag { "true" } else { "false" }),
        Value::Array(items) => {
            let items: Option<Vec<_>> = items.iter().map(|item| item.as_str().map(escape)).collect();
            Cow::Owned(items?.join(","))
        }
        Value::Null | Value::Object(_) => return None,
    };
    let safe = (1..=MAX_FORWARDED_BYTES).contains(&text.len())
        && text.trim_matches(' ') == text
        && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    safe.then(|| HeaderValue::from_str(&text).ok()).flatten()
}

/// `text` with everything but visible ASCII, and `%` and `,`, percent-encoded: distinct texts stay distinct,
/// none can end a header line or a list element.
fn escape(text: &str) -> Cow<'_, str> {
    let plain = |b: u8| b.is_ascii_graphic() && b != b'%' && b != b',';
    if text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        if plain(byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn apply(mapping: &Mapping, claims: &Value) -> Result<Person, Refused> {
        mapping.apply(claims.as_object().unwrap())
    }

    #[test]
    fn the_seeds_claims_are_understood_without_configuration() {
        let person = apply(
            &Mapping::default(),
            &json!({"user_id": 42, "subscription_plan": "pro", "rate_limit_multiplier": 1.5,
                "permissions": ["read", "write"], "email": "a@b.c"}),
        )
        .unwrap();
        assert_eq!(&*person.subject, "42");
        assert_eq!(person.plan.as_deref(), Some("pro"));
        assert!((person.multiplier - 1.5).abs() < f64::EPSILON);
        assert_eq!(*person.permissions, [Box::<str>::from("read"), Box::from("write")]);
        assert_eq!(person.email.as_deref(), Some("a@b.c"));
    }

    #[test]
    fn a_subject_is_a_short_string_or_an_integer() {
        let long = "x".repeat(257);
        for (claims, expected) in [
            (json!({"sub": "alice"}), Ok("alice")),
            (json!({"sub": "alice", "user_id": "bob"}), Ok("alice")),
            (json!({"sub": null, "user_id": "bob"}), Ok("bob")),
            (json!({"sub": -7}), Ok("-7")),
            (json!({"sub": u64::MAX}), Ok("18446744073709551615")),
            (json!({"sub": "a:b\r\n"}), Ok("a:b\r\n")),
            (json!({}), Err(Refused::Subject)),
            (json!({"sub": null}), Err(Refused::Subject)),
            (json!({"sub": "", "user_id": "bob"}), Err(Refused::Subject)),
            (json!({"sub": long}), Err(Refused::Subject)),
            (json!({"sub": 1.5}), Err(Refused::Subject)),
            (json!({"sub": true}), Err(Refused::Subject)),
            (json!({"sub": ["a"], "user_id": "bob"}), Err(Refused::Subject)),
            (json!({"sub": {"id": "a"}}), Err(Refused::Subject)),
        ] {
            let subject = apply(&Mapping::default(), &claims).map(|person| person.subject.to_string());
            assert_eq!(subject, expected.map(str::to_owned), "{claims}");
        }
    }

    #[test]
    fn doubtful_extras_count_as_absent() {
        for plan in [json!(""), json!("pro\n"), json!("x y"), json!("é"), json!(1), json!("p".repeat(65))] {
            let person = apply(&Mapping::default(), &json!({"sub": "a", "subscription_plan": plan})).unwrap();
            assert_eq!(person.plan, None, "{plan}");
        }
        for factor in [json!(0), json!(-1), json!("2"), json!(null), json!([2]), json!(-1e308)] {
            let person =
                apply(&Mapping::default(), &json!({"sub": "a", "rate_limit_multiplier": factor})).unwrap();
            assert!((person.multiplier - 1.0).abs() < f64::EPSILON, "{factor}");
        }
        let person = apply(
            &Mapping::default(),
            &json!({"sub": "a", "permissions": ["ok", 1, "", "a b", "x\r\n"], "email": "a@b\r\n"}),
        )
        .unwrap();
        assert_eq!(*person.permissions, [Box::<str>::from("ok")]);
        assert_eq!(person.email, None);
    }

    #[test]
    fn permissions_may_be_a_string_and_claims_may_be_nested() {
        let mapping = Mapping {
            permissions: "scope".into(),
            plan: "/app/plan".into(),
            subject: vec!["https://id/sub".into()],
            ..Mapping::default()
        };
        let person =
            apply(&mapping, &json!({"https://id/sub": "a", "scope": "read  write", "app": {"plan": "free"}}))
                .unwrap();
        assert_eq!(*person.permissions, [Box::<str>::from("read"), Box::from("write")]);
        assert_eq!(person.plan.as_deref(), Some("free"));
    }

    #[test]
    fn the_person_goes_in_the_headers_that_were_chosen_and_in_no_others() {
        let carriers =
            Carriers { user_id: Some(HeaderName::from_static("x-account")), plan: None, permissions: None };
        let mapping = Mapping { carriers, ..Mapping::default() };
        let claims = json!({"sub": "a", "subscription_plan": "pro", "permissions": ["b"]});
        let lines = apply(&mapping, &claims).unwrap().header_lines();
        assert_eq!(lines, [(HeaderName::from_static("x-account"), HeaderValue::from_static("a"))]);
    }

    #[test]
    fn header_lines_cannot_be_forged() {
        let forward = |claim: &str, header| (Box::from(claim), HeaderName::from_static(header));
        let mapping = Mapping {
            forward: vec![
                forward("t", "x-t"),
                forward("n", "x-n"),
                forward("o", "x-o"),
                forward("bad", "x-bad"),
            ],
            ..Mapping::default()
        };
        let person = apply(
            &mapping,
            &json!({"sub": "a%\r\nX-User-Plan: pro", "permissions": ["a,b", "c"],
                "t": "two words", "n": 7, "o": {"x": 1}, "bad": "x\r\ny"}),
        )
        .unwrap();
        let lines: Vec<_> =
            person.header_lines().into_iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        assert_eq!(
            lines,
            [
                "x-user-id: a%25%0D%0AX-User-Plan:%20pro",
                "x-user-permissions: a%2Cb,c",
                "x-t: two words",
                "x-n: 7"
            ]
        );
    }
}
