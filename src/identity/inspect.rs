//! Explaining a token: what it says, which checks it passes, and why it is or is not accepted.
//!
//! It trusts nothing it shows, and never shows a key, the signature or the token itself.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use super::claims::Times;
use super::jwt::{Parsed, Parts, decode};
use super::refused::Refused;
use super::verifier::Verifier;
use crate::clock::UnixMillis;
use crate::json::parse_object;

/// What became of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// Passed.
    Passed,
    /// Failed, with the reason's label and words.
    Failed {
        /// [`Refused::as_str`].
        reason: &'static str,
        /// The reason in words.
        why: String,
    },
    /// Not made, because an earlier one failed.
    NotReached,
}

/// One check and its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Everything worth telling of a token. Header and claims are what the token says, not what is true.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Whether the gateway would accept it, revocation aside.
    pub accepted: bool,
    /// Whether a gateway that has read more keys of the issuer might say otherwise: of those here none fits. Whoever knows
    /// that there are no others clears it.
    pub undecided: bool,
    /// What a client would be told, when it is not accepted.
    pub detail: Option<&'static str>,
    /// The header, if it can be read.
    pub header: Option<Map<String, Value>>,
    /// The claims, if they can be read.
    pub claims: Option<Map<String, Value>>,
    /// The issuer it was matched with, by its configuration name.
    pub issuer: Option<String>,
    /// Seconds until the token is refused as expired, leeway included; negative once it is.
    pub expires_in_seconds: Option<i64>,
    /// The subject, once the token is known to be genuine.
    pub subject: Option<String>,
    /// The store key under which it would be revoked.
    pub blacklist_key: Option<String>,
    /// The checks in the order they are made.
    pub checks: Vec<Check>,
}

/// Explains what `verifier` thinks of `token` at `now`. Later checks are made even where earlier ones failed
/// if they still mean something.
#[must_use]
pub fn inspect(token: &str, verifier: &Verifier, now: UnixMillis) -> Inspection {
    let verdict = verifier.verify(token, now);
    let mut report = Inspection {
        accepted: verdict.is_ok(),
        undecided: verdict.as_ref().err() == Some(&Refused::UnknownKey),
        detail: verdict.as_ref().err().map(|refused| refused.detail()),
        header: None,
        claims: None,
        issuer: None,
        expires_in_seconds: None,
        subject: verdict.as_ref().ok().map(|identity| identity.subject.to_string()),
        blacklist_key: verdict.as_ref().ok().map(|identity| identity.keys.blacklist.to_string()),
        checks: Vec::new(),
    };
    if let Ok(parts) = Parts::split(token, verifier.max_token_bytes()) {
        let read = |part| decode(part).ok().and_then(|bytes| parse_object(&bytes).ok());
        report.header = read(parts.header);
        report.claims = read(parts.payload);
    }
    report.run_checks(token, verifier, now);
    report
}

impl Inspection {
    fn run_checks(&mut self, token: &str, verifier: &Verifier, now: UnixMillis) {
        const AFTER_FORM: [&str; 7] = [
            "issuer",
            "algorithm, key and signature",
            "time claims",
            "required claims",
            "audience",
            "validity now",
            "subject",
        ];
        let parsed = match Parsed::read(token, verifier.max_token_bytes()) {
            Ok(parsed) => parsed,
            Err(refused) => {
                self.note("form and header", Err(refused));
                return self.skip(&AFTER_FORM);
            }
        };
        self.note("form and header", Ok(()));
        let trusted = match verifier.trusted(&parsed.claims) {
            Ok(trusted) => trusted,
            Err(refused) => {
                self.note("issuer", Err(refused));
                return self.skip(AFTER_FORM.get(1..).unwrap_or_default());
            }
        };
        self.note("issuer", Ok(()));
        self.issuer = Some(trusted.issuer.name().to_owned());
        self.note("algorithm, key and signature", trusted.check_signature(&parsed.signed));

        let rules = &trusted.issuer.rules;
        let times = match Times::read(&parsed.claims) {
            Ok(times) => times,
            Err(refused) => {
                self.note("time claims", Err(refused));
                return self.skip(AFTER_FORM.get(3..).unwrap_or_default());
            }
        };
        self.note("time claims", rules.check_lifetime(&times));
        self.expires_in_seconds = times.expires_at.map(|at| seconds_between(now, at.plus(rules.leeway)));
        self.note("required claims", rules.check_presence(&parsed.claims, &times));
        self.note("audience", rules.check_audience(&parsed.claims));
        self.note("validity now", times.check(rules.leeway, now));
        self.note("subject", verifier.identify(token, &parsed, trusted, &times).map(drop));
    }

    fn note(&mut self, name: &'static str, result: Result<(), Refused>) {
        let outcome = match result {
            Ok(()) => Outcome::Passed,
            Err(refused) => Outcome::Failed { reason: refused.as_str(), why: refused.to_string() },
        };
        self.checks.push(Check { name, outcome });
    }

    fn skip(&mut self, names: &[&'static str]) {
        self.checks.extend(names.iter().map(|name| Check { name, outcome: Outcome::NotReached }));
    }
}

/// Seconds from `now` to `then`, rounded towards zero.
fn seconds_between(now: UnixMillis, then: UnixMillis) -> i64 {
    let whole = |millis: u64| i64::try_from(millis / 1_000).unwrap_or(i64::MAX);
    if then >= now { whole(then.millis_since(now)) } else { -whole(now.millis_since(then)) }
}

impl fmt::Display for Inspection {
    /// Several lines for a terminal. Texts from the token are printed as JSON, controls escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.detail {
            None => writeln!(f, "ACCEPTED (unless revoked)")?,
            Some(_) if self.undecided => writeln!(f, "UNDECIDED: the keys of its issuer could not be read")?,
            Some(detail) => writeln!(f, "REFUSED: {detail}")?,
        }
        for (name, members) in [("header", &self.header), ("claims", &self.claims)] {
            match members {
                Some(members) => {
                    writeln!(f, "{name}:")?;
                    for (member, value) in members {
                        writeln!(f, "  {}: {}", printable(&Value::from(member.as_str())), printable(value))?;
                    }
                }
                None => writeln!(f, "{name}: unreadable")?,
            }
        }
        if let Some(issuer) = &self.issuer {
            writeln!(f, "issuer in the configuration: {issuer}")?;
        }
        match self.expires_in_seconds {
            Some(left) if left > 0 => writeln!(f, "expires in {left} s, leeway included")?,
            Some(left) => writeln!(f, "expired {} s ago, leeway included", left.unsigned_abs())?,
            None => {}
        }
        if let Some(key) = &self.blacklist_key {
            writeln!(f, "revoked while the store holds: {key}")?;
        }
        writeln!(f, "checks:")?;
        for check in &self.checks {
            match &check.outcome {
                Outcome::Passed => writeln!(f, "  ok    {}", check.name)?,
                Outcome::Failed { why, .. } => writeln!(f, "  FAIL  {}: {why}", check.name)?,
                Outcome::NotReached => writeln!(f, "  -     {}: not reached", check.name)?,
            }
        }
        Ok(())
    }
}

/// A value as JSON in ASCII, so that no terminal obeys it.
fn printable(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        if c == ' ' || c.is_ascii_graphic() {
            text.push(c);
        } else {
            text.extend(c.escape_unicode());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Algorithm;
    use super::super::keys::{Key, KeySet};
    use super::super::mint::MintKey;
    use super::super::verifier::{Issuer, Settings};
    use super::*;

    const SECRET: &[u8] = b"correct-horse-battery-staple-0123456789";
    const SECS: u64 = 1_700_000_000;
    const NOW: UnixMillis = UnixMillis(SECS * 1_000);

    fn verifier() -> Verifier {
        let keys = KeySet::new(vec![Key::secret(SECRET).unwrap()]).unwrap();
        let mut issuer = Issuer::new("main", vec![], [Algorithm::HS256], keys).unwrap();
        issuer.rules.audiences = vec!["api".into()];
        Verifier::new(Settings::new(vec![issuer]).unwrap())
    }

    fn token(secret: &[u8], claims: &Value) -> String {
        MintKey::secret(Algorithm::HS256, secret).unwrap().sign_claims(claims.as_object().unwrap()).unwrap()
    }

    fn failed(report: &Inspection) -> Vec<&'static str> {
        let reason = |check: &Check| match check.outcome {
            Outcome::Failed { reason, .. } => Some(reason),
            _ => None,
        };
        report.checks.iter().filter_map(reason).collect()
    }

    #[test]
    fn an_accepted_token_passes_every_check() {
        let token = token(SECRET, &json!({"sub": "alice", "aud": "api", "exp": SECS + 60, "jti": "x"}));
        let report = inspect(&token, &verifier(), NOW);
        assert!(report.accepted && failed(&report).is_empty());
        assert_eq!(report.checks.len(), 8);
        assert_eq!(report.expires_in_seconds, Some(90));
        assert_eq!(report.blacklist_key.as_deref(), Some("blacklist:x"));
        assert!(report.to_string().starts_with("ACCEPTED"));
    }

    #[test]
    fn every_failing_check_is_named_at_once() {
        let token = token(
            b"another-secret-of-sufficient-length-98765",
            &json!({"sub": "", "aud": "web", "exp": SECS - 100}),
        );
        let report = inspect(&token, &verifier(), NOW);
        assert_eq!(failed(&report), ["bad_signature", "audience", "expired", "subject"]);
        assert_eq!((report.detail, report.subject.as_ref()), (Some("Invalid token"), None));
        assert_eq!(report.expires_in_seconds, Some(-70));
    }

    #[test]
    fn rubbish_is_explained_and_its_controls_are_not_obeyed() {
        let report = inspect("rubbish", &verifier(), NOW);
        assert_eq!(failed(&report), ["malformed"]);
        assert_eq!(report.checks.len(), 8);
        let evil = token(SECRET, &json!({"sub": "\u{1b}[31m\u{202e}\u{9b}", "aud": "api", "exp": SECS + 60}));
        let text = inspect(&evil, &verifier(), NOW).to_string();
        assert!(text.bytes().all(|b| b == b'\n' || b == b' ' || b.is_ascii_graphic()), "{text}");
    }

    #[test]
    fn neither_secret_nor_signature_is_shown() {
        let token = token(SECRET, &json!({"sub": "alice", "aud": "api", "exp": SECS + 60}));
        let report = inspect(&token, &verifier(), NOW);
        let shown = format!("{report} {}", serde_json::to_string(&report).unwrap());
        assert!(!shown.contains(token.rsplit_once('.').unwrap().1));
        assert!(!shown.contains(std::str::from_utf8(SECRET).unwrap()));
        assert!(!shown.contains(&token));
    }
}
