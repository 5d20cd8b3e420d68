//! What is kept of an API token: one JSON document, written by this module and read as if anybody could have written
//! it. It decides whether a secret is the token's, and whom it stands for; it fetches nothing.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use subtle::Choice;

use super::token::{Id, SecretHash};
use crate::clock::UnixMillis;
use crate::identifiers::API_TOKEN_PREFIX;
use crate::identity::claims::Times;
use crate::identity::mapping::{MAX_PERMISSION_BYTES, MAX_PLAN_BYTES, MAX_SUBJECT_BYTES};
use crate::identity::{Carriers, Identity, Person, Refused, TokenId};

/// Longest record, in bytes.
pub const MAX_RECORD: usize = 16 * 1024;
/// Longest name, in bytes.
pub const MAX_NAME: usize = 128;
/// Most permissions of one token.
pub const MAX_PERMISSIONS: usize = 64;
/// Largest limit of one window.
pub const MAX_LIMIT: u64 = 1_000_000_000;
/// Largest factor on the limits of the owner's plan.
pub const MAX_MULTIPLIER: f64 = 1_000_000.0;
/// Longest life, and longest grace of a replaced secret.
pub const MAX_LIFE: Duration = Duration::from_secs(100 * 366 * 86_400);

/// Something about a token cannot be: the text says what, for whoever ordered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub &'static str);

/// A token's own limits, instead of those of the policies that count by it. What is absent, the policies say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnLimits {
    /// Requests per 60 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minute: Option<u64>,
    /// Requests per 3,600 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hour: Option<u64>,
    /// Requests per 86,400 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<u64>,
}

impl OwnLimits {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a token is to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Order {
    /// What it is for, in the operator's words: 1 to 128 bytes, printable.
    pub name: Box<str>,
    /// Whose it is: an account, 1 to 256 bytes, printable.
    pub owner: Box<str>,
    /// The plan, printable ASCII.
    pub plan: Option<Box<str>>,
    /// At most 64, printable, none twice.
    pub permissions: Vec<Box<str>>,
    /// Factor on the plan's limits, above zero.
    pub multiplier: Option<f64>,
    /// Its own limits.
    pub limits: OwnLimits,
    /// Its life, at least a second; `None`: it never expires.
    pub expires_in: Option<Duration>,
}

/// A token as it is kept. Times are seconds since the epoch.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    #[serde(with = "hex")]
    secret: SecretHash,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<Previous>,
    /// What it is for.
    pub name: Box<str>,
    /// Whose it is.
    pub owner: Box<str>,
    /// The plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Box<str>>,
    /// What it may do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub permissions: Vec<Box<str>>,
    /// Factor on the plan's limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplier: Option<f64>,
    /// Its own limits.
    #[serde(default, skip_serializing_if = "OwnLimits::is_empty")]
    pub limits: OwnLimits,
    /// When it was made.
    pub created: u64,
    /// From here on it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Whether it is refused for now.
    #[serde(default)]
    pub disabled: bool,
    /// When it was disabled or enabled last, milliseconds since the epoch: what was said before counts no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switched: Option<u64>,
}

/// A secret that was replaced and still works for a while.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Previous {
    #[serde(with = "hex")]
    secret: SecretHash,
    /// From here on it is refused, seconds since the epoch.
    until: u64,
}

/// What a record is named by in the store, and in the headers for the upstream.
#[derive(Clone, Debug, Default)]
pub struct Naming {
    /// In front of every key.
    pub prefix: Box<str>,
    /// Whether keys put their subject into a hash tag.
    pub hash_tags: bool,
    /// The headers that carry the owner.
    pub carriers: Carriers,
    /// The names of the issuers where there are several: accounts begin with one of them.
    pub realms: Box<[Box<str>]>,
}

impl Naming {
    /// The issuer whose account `owner` is, where there are several, and the subject there.
    fn split<'o>(&self, owner: &'o str) -> (Option<&'o str>, &'o str) {
        let known = |(realm, subject): &(&str, &str)| {
            !subject.is_empty() && self.realms.iter().any(|known| **known == **realm)
        };
        owner.split_once('~').filter(known).map_or((None, owner), |(realm, subject)| (Some(realm), subject))
    }

    /// What an operator may have overlooked about `owner`.
    #[must_use]
    pub fn doubt(&self, owner: &str) -> Option<&'static str> {
        let (realm, _) = self.split(owner);
        (realm.is_none() && !self.realms.is_empty()).then_some(
            "there are several issuers, so that their users are <issuer>~<subject>: this owner is none of them",
        )
    }
}

impl Record {
    /// The record of a new token with this secret.
    ///
    /// # Errors
    /// What in the order cannot be.
    pub fn new(order: &Order, secret: SecretHash, now: UnixMillis) -> Result<Self, Unusable> {
        let life = order.expires_in;
        if life.is_some_and(|life| life < Duration::from_secs(1) || life > MAX_LIFE) {
            return Err(Unusable("a token lives between one second and a hundred years"));
        }
        let record = Self {
            secret,
            previous: None,
            name: order.name.clone(),
            owner: order.owner.clone(),
            plan: order.plan.clone(),
            permissions: order.permissions.clone(),
            multiplier: order.multiplier,
            limits: order.limits,
            created: now.as_secs(),
            expires: life.map(|life| now.plus(life).as_secs_ceil()),
            disabled: false,
            switched: None,
        };
        record.check()?;
        if record.encode().len() > MAX_RECORD {
            return Err(Unusable("all of the permissions together are too long"));
        }
        Ok(record)
    }

    /// Reads a stored record; `None` when it is none.
    #[must_use]
    pub fn decode(stored: &[u8]) -> Option<Self> {
        if stored.len() > MAX_RECORD {
            return None;
        }
        let record: Self = serde_json::from_slice(stored).ok()?;
        record.check().ok().map(|()| record)
    }

    /// The record as it is stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Strings and finite numbers: it cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn check(&self) -> Result<(), Unusable> {
        let unless = |sound: bool, problem| if sound { Ok(()) } else { Err(Unusable(problem)) };
        unless(is_printable(&self.name, MAX_NAME), "a name is 1 to 128 bytes of printable text")?;
        unless(is_printable(&self.owner, MAX_SUBJECT_BYTES), "an owner is 1 to 256 bytes of printable text")?;
        let plan =
            self.plan.as_deref().is_none_or(|plan| plan.is_ascii() && is_printable(plan, MAX_PLAN_BYTES));
        unless(plan, "a plan is 1 to 64 printable ASCII characters")?;
        unless(self.permissions.len() <= MAX_PERMISSIONS, "a token has at most 64 permissions")?;
        for (index, permission) in self.permissions.iter().enumerate() {
            let sound = is_printable(permission, MAX_PERMISSION_BYTES);
            unless(sound, "a permission is 1 to 128 bytes of printable text")?;
            let twice = self.permissions.iter().take(index).any(|earlier| earlier == permission);
            unless(!twice, "a permission is given twice")?;
        }
        let multiplier = self.multiplier.is_none_or(|number| number > 0.0 && number <= MAX_MULTIPLIER);
        unless(multiplier, "a multiplier is a number above 0 and up to 1000000")?;
        let OwnLimits { minute, hour, day } = self.limits;
        let limits = [minute, hour, day].into_iter().flatten().all(|limit| (1..=MAX_LIMIT).contains(&limit));
        unless(limits, "a limit is between 1 and 1000000000")
    }

    /// Whether a request with this secret is the token's, at this moment.
    ///
    /// # Errors
    /// Why not; of a token whose secret is wrong nothing else is told.
    pub fn judge(&self, secret: &SecretHash, now: UnixMillis) -> Result<(), Refused> {
        let in_grace = self.previous.as_ref().filter(|previous| now < UnixMillis::from_secs(previous.until));
        let previous = in_grace.map_or(&SecretHash::NONE, |previous| &previous.secret);
        let replaced = secret.is(previous) & Choice::from(u8::from(in_grace.is_some()));
        if !bool::from(secret.is(&self.secret) | replaced) {
            return Err(Refused::BadSignature);
        }
        if self.disabled {
            return Err(Refused::Revoked);
        }
        match self.expires {
            Some(expires) if now >= UnixMillis::from_secs(expires) => Err(Refused::Expired),
            _ => Ok(()),
        }
    }

    /// Replaces the secret; the one that held until now works for `grace` longer.
    pub fn rotate(&mut self, secret: SecretHash, grace: Duration, now: UnixMillis) {
        let old = std::mem::replace(&mut self.secret, secret);
        let until = now.plus(grace).as_secs_ceil();
        self.previous = (!grace.is_zero()).then_some(Previous { secret: old, until });
    }

    /// Refuses the token for now, or accepts it again, as was said at `at`.
    pub fn switch(&mut self, disabled: bool, at: UnixMillis) {
        self.disabled = disabled;
        self.switched = Some(self.switched.unwrap_or(0).max(at.0));
    }

    /// Until when a replaced secret still works, seconds since the epoch.
    pub fn grace_until(&self, now: UnixMillis) -> Option<u64> {
        let until = self.previous.as_ref()?.until;
        (now < UnixMillis::from_secs(until)).then_some(until)
    }

    /// Whom the token stands for.
    #[must_use]
    pub fn identity(&self, id: Id, naming: &Naming) -> Identity {
        let (realm, subject) = naming.split(&self.owner);
        let person = Person {
            plan: self.plan.clone(),
            multiplier: self.multiplier.unwrap_or(1.0),
            permissions: self.permissions.clone().into(),
            carriers: naming.carriers.clone(),
            ..Person::named(subject)
        };
        // No `jti` of an issuer looks like it by chance, and the secret is no part of it.
        let token_id = TokenId::Jti(format!("{API_TOKEN_PREFIX}{id}").into());
        let times = Times { expires_at: self.expires.map(UnixMillis::from_secs), ..Times::default() };
        let mut identity =
            Identity::new(person, token_id, &times, Duration::ZERO, &naming.prefix, naming.hash_tags, realm);
        identity.api_token = Some(Arc::from(id.as_str()));
        identity.own_limits = [self.limits.minute, self.limits.hour, self.limits.day];
        identity
    }
}

/// Text that a terminal shows as it is: no control characters, and none that hide or turn what stands beside them.
fn is_printable(text: &str, most: usize) -> bool {
    let hides = |c: char| matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    (1..=most).contains(&text.len())
        && text.trim() == text
        && !text.chars().any(|c| c.is_control() || hides(c))
}

/// A hash in the JSON of a record.
mod hex {
    use std::borrow::Cow;

    use serde::{Deserialize as _, Deserializer, Serializer, de};

    use super::SecretHash;

    pub(super) fn serialize<S: Serializer>(hash: &SecretHash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hash.to_hex())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretHash, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        SecretHash::parse(&text).ok_or_else(|| de::Error::custom("not a hash"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::token::Issued;
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn order() -> Order {
        Order { name: "ci".into(), owner: "ada".into(), ..Order::default() }
    }

    fn secret(text: &str) -> SecretHash {
        SecretHash::of(text)
    }

    fn record(order: &Order) -> Record {
        Record::new(order, secret("one"), NOW).unwrap()
    }

    #[test]
    fn with_several_issuers_the_owner_is_told_as_its_issuer_calls_it() {
        let several = Naming { realms: ["app".into(), "partners".into()].into(), ..Naming::default() };
        let id = Id::random().unwrap();
        for (naming, owner, subject, doubtful) in [
            (&several, "app~070ef", "070ef", false),
            (&several, "partners~a~b", "a~b", false),
            (&several, "other~070ef", "other~070ef", true),
            (&several, "app~", "app~", true),
            (&several, "070ef", "070ef", true),
            (&Naming::default(), "app~070ef", "app~070ef", false),
        ] {
            let identity = record(&Order { owner: owner.into(), ..order() }).identity(id, naming);
            assert_eq!((&*identity.subject, &*identity.account), (subject, owner));
            assert_eq!(*identity.keys.ban, *format!("ban:user:{owner}"));
            let told = identity.headers.iter().find(|(name, _)| name == "x-user-id").unwrap();
            assert_eq!(told.1, subject);
            assert_eq!(naming.doubt(owner).is_some(), doubtful, "{owner}");
        }
    }

    #[test]
    fn a_record_is_read_back_as_it_was_written() {
        let order = Order {
            plan: Some("pro".into()),
            permissions: vec!["read".into(), "päinvastoin \"x\"".into()],
            multiplier: Some(2.5),
            limits: OwnLimits { minute: Some(5), hour: None, day: Some(7) },
            expires_in: Some(Duration::from_secs(60)),
            ..order()
        };
        let mut record = record(&order);
        record.rotate(secret("two"), Duration::from_secs(5), NOW);
        record.disabled = true;
        let stored = record.encode();
        assert_eq!(Record::decode(&stored).unwrap().encode(), stored);
        let text = String::from_utf8(stored).unwrap();
        assert!(!text.contains("\"one\"") && !text.contains("\"two\""));
        assert!(!format!("{record:?}").contains(&secret("two").to_hex()));
        let small = String::from_utf8(super::tests::record(&super::tests::order()).encode()).unwrap();
        let hash = secret("one").to_hex();
        assert_eq!(
            small,
            format!(
                r#"{{"secret":"{hash}","name":"ci","owner":"ada","created":1700000000,"disabled":false}}"#
            )
        );
    }

    #[test]
    fn only_the_secret_opens_and_nothing_is_told_without_it() {
        let life = Some(Duration::from_secs(60));
        let mut record = record(&Order { expires_in: life, ..order() });
        let later = NOW.plus(Duration::from_secs(60));
        assert_eq!(record.judge(&secret("one"), NOW), Ok(()));
        assert_eq!(record.judge(&secret("one"), UnixMillis(later.0 - 1)), Ok(()));
        assert_eq!(record.judge(&secret("one"), later), Err(Refused::Expired));
        for wrong in [secret("two"), SecretHash::NONE, secret("")] {
            assert_eq!(record.judge(&wrong, NOW), Err(Refused::BadSignature));
            assert_eq!(record.judge(&wrong, later), Err(Refused::BadSignature));
        }
        record.disabled = true;
        assert_eq!(record.judge(&secret("one"), NOW), Err(Refused::Revoked));
        assert_eq!(record.judge(&secret("one"), later), Err(Refused::Revoked));
        assert_eq!(record.judge(&secret("two"), NOW), Err(Refused::BadSignature));
    }

    #[test]
    fn a_replaced_secret_works_for_its_grace_and_no_longer() {
        let mut record = record(&order());
        record.rotate(secret("two"), Duration::ZERO, NOW);
        assert_eq!(record.judge(&secret("one"), NOW), Err(Refused::BadSignature));
        assert_eq!((record.judge(&secret("two"), NOW), record.grace_until(NOW)), (Ok(()), None));
        record.rotate(secret("three"), Duration::from_secs(10), NOW);
        let end = NOW.plus(Duration::from_secs(10));
        assert_eq!(record.grace_until(NOW), Some(end.as_secs()));
        for (text, now, verdict) in [
            ("two", UnixMillis(end.0 - 1), Ok(())),
            ("two", end, Err(Refused::BadSignature)),
            ("three", end, Ok(())),
            ("one", NOW, Err(Refused::BadSignature)),
        ] {
            assert_eq!(record.judge(&secret(text), now), verdict, "{text}");
        }
        record.rotate(secret("four"), Duration::from_secs(10), NOW);
        assert_eq!(record.judge(&secret("two"), NOW), Err(Refused::BadSignature), "one before the last");
    }

    #[test]
    fn orders_that_make_no_sense_are_refused() {
        let long = |length: usize| Box::from("x".repeat(length).as_str());
        let number = |multiplier| Order { multiplier: Some(multiplier), ..order() };
        let limit =
            |minute| Order { limits: OwnLimits { minute: Some(minute), ..OwnLimits::default() }, ..order() };
        let life = |seconds| Order { expires_in: Some(Duration::from_secs(seconds)), ..order() };
        for bad in [
            Order { name: "".into(), ..order() },
            Order { name: long(129), ..order() },
            Order { name: "a\nb".into(), ..order() },
            Order { name: "a\u{1b}[2J".into(), ..order() },
            Order { name: "a\u{202e}b".into(), ..order() },
            Order { name: " a".into(), ..order() },
            Order { owner: "".into(), ..order() },
            Order { owner: long(257), ..order() },
            Order { owner: "a\0".into(), ..order() },
            Order { plan: Some("pro\u{e9}".into()), ..order() },
            Order { plan: Some(long(65)), ..order() },
            Order { permissions: vec!["a".into(), "a".into()], ..order() },
            Order { permissions: vec!["".into()], ..order() },
            Order { permissions: vec![long(129)], ..order() },
            Order { permissions: (0..65).map(|n| n.to_string().into()).collect(), ..order() },
            Order {
                permissions: (10..74).map(|n| format!("{}{n}", "\"".repeat(126)).into()).collect(),
                ..order()
            },
            number(0.0),
            number(-1.0),
            number(f64::NAN),
            number(f64::INFINITY),
            number(1e7),
            limit(0),
            limit(MAX_LIMIT + 1),
            limit(u64::MAX),
            life(0),
            life(u64::MAX),
        ] {
            assert!(Record::new(&bad, secret("one"), NOW).is_err(), "{bad:?}");
        }
        assert!(
            Record::new(&Order { name: long(128), owner: long(256), ..number(1e6) }, secret("x"), NOW)
                .is_ok()
        );
    }

    #[test]
    fn garbage_is_no_record() {
        let sound = String::from_utf8(record(&order()).encode()).unwrap();
        assert!(Record::decode(sound.as_bytes()).is_some());
        for bad in [
            String::new(),
            "null".into(),
            "[]".into(),
            "{}".into(),
            sound.replace("\"ada\"", "7"),
            sound.replace("\"ada\"", "\"\""),
            sound.replace("\"ci\"", "\"c\\u001bi\""),
            sound.replace("{\"secret\":\"", "{\"secret\":\"0"),
            sound.replace("false", "0"),
            sound.replace("false", "false,\"disabled\":false"),
            sound.replace("false", "false,\"networks\":[]"),
            sound.replace("1700000000", "-1"),
            sound.replace("1700000000", "1e3"),
            sound.replace("1700000000", "1700000000,\"multiplier\":1e999"),
            sound.replace("1700000000", "1700000000,\"multiplier\":0"),
            sound.replace("1700000000", "1700000000,\"limits\":{\"minute\":0}"),
            sound.replace("1700000000", "1700000000,\"limits\":{\"week\":1}"),
            format!("{sound}{sound}"),
            format!("{sound}{}", " ".repeat(MAX_RECORD)),
            "[".repeat(100_000),
        ] {
            assert!(Record::decode(bad.as_bytes()).is_none(), "{bad:.200}");
        }
        assert!(Record::decode(b"\xff\xfe").is_none());
    }

    #[test]
    fn the_owner_is_who_calls() {
        let naming = Naming { prefix: "tg:".into(), hash_tags: true, ..Naming::default() };
        let issued = Issued::new(Id::parse("0123456789abcdef").unwrap()).unwrap();
        let limits = OwnLimits { hour: Some(9), ..OwnLimits::default() };
        let identity = record(&Order { limits, permissions: vec!["read".into()], ..order() })
            .identity(issued.id, &naming);
        assert_eq!((&*identity.subject, &*identity.account), ("ada", "ada"));
        assert_eq!(&*identity.keys.ban, "tg:ban:user:{ada}");
        assert_eq!(identity.api_token.as_deref(), Some("0123456789abcdef"));
        assert_eq!(identity.own_limits, [None, Some(9), None]);
        assert!(identity.may("read") && !identity.may("write"));
        assert_eq!(identity.headers.len(), 2);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,100}") {
            let _ = Record::decode(&bytes);
            let _ = Record::decode(text.as_bytes());
        }

        #[test]
        fn expiry_and_grace_hold_at_any_time(now: u64, seconds in 0..u64::MAX) {
            let mut record = Record::new(&order(), secret("one"), UnixMillis(now)).unwrap();
            record.rotate(secret("two"), Duration::from_secs(seconds), UnixMillis(now));
            prop_assert_eq!(record.judge(&secret("two"), UnixMillis(now)), Ok(()));
            record.expires = Some(seconds);
            let expired = UnixMillis(now) >= UnixMillis::from_secs(seconds);
            prop_assert_eq!(record.judge(&secret("two"), UnixMillis(now)) == Err(Refused::Expired), expired);
        }
    }
}
