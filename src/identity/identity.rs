//! What a verified token proves, with every store key and header line it will need already made.
//!
//! An [`Identity`] is built once per token and shared; the hot path only reads it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};

use super::claims::Times;
use super::mapping::Person;
use super::revocation::{Effect, Revocation};
use crate::clock::UnixMillis;
use crate::identifiers::{DIGEST_PREFIX, encode_key_part, sha256_hex};

/// Longest `jti` kept readable in a key, in bytes.
const MAX_READABLE_JTI: usize = 128;

/// What tells one token from another for revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenId {
    /// The token's own `jti`, any non-empty text.
    Jti(Box<str>),
    /// A SHA-256 in 64 hex digits: of the whole token, or of `header.payload` where a signature has several
    /// valid spellings and would let a revoked token back in.
    Sha256(Box<str>),
}

impl TokenId {
    /// The id itself: what limits per token count by.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Jti(id) | Self::Sha256(id) => id,
        }
    }

    /// `<prefix>blacklist:<jti>`, or `<prefix>blacklist:sha256-<hex>` for a token without `jti` and for a
    /// `jti` that is long, not of `[A-Za-z0-9._~@-]`, or made to look like a digest.
    #[must_use]
    pub fn blacklist_key(&self, prefix: &str) -> String {
        let part: Cow<'_, str> = match self {
            Self::Jti(jti) if is_readable(jti) => Cow::Borrowed(jti),
            Self::Jti(jti) => Cow::Owned(format!("{DIGEST_PREFIX}{}", sha256_hex(jti.as_bytes()))),
            Self::Sha256(hex) => Cow::Owned(format!("{DIGEST_PREFIX}{hex}")),
        };
        blacklist_key(prefix, &part)
    }
}

/// `<prefix>blacklist:<part>`, the key of the revoked token whose [`Keys::token`] is `part`.
#[must_use]
pub fn blacklist_key(prefix: &str, part: &str) -> String {
    format!("{prefix}blacklist:{part}")
}

/// Store keys that concern one token and its subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// `blacklist:<token id>`: exists while the token is revoked.
    pub blacklist: Arc<str>,
    /// `session:<subject>`: the subject's sessions.
    pub session: Arc<str>,
    /// `ban:user:<subject>`: exists while the subject is banned.
    pub ban: Arc<str>,
    /// `revoked_before:<subject>`: tokens issued before this second are revoked.
    pub cutoff: Arc<str>,
}

impl Keys {
    /// The token as the key of its revocation names it: at most 128 bytes of `[A-Za-z0-9._~@-]`.
    #[must_use]
    pub fn token(&self) -> &str {
        // There is no colon in it.
        self.blacklist.rsplit(':').next().unwrap_or_default()
    }
}

/// The store key `<prefix><family>:<account>`; with `tagged` the account stands in braces, so that in Cluster all that
/// concerns it lives in one slot.
#[must_use]
pub fn subject_key(prefix: &str, family: &str, account: &str, tagged: bool) -> String {
    let (open, close) = if tagged { ("{", "}") } else { ("", "") };
    format!("{prefix}{family}:{open}{}{close}", encode_key_part(account))
}

/// Somebody whose token was verified.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Identity {
    /// Who: 1 to 256 bytes, otherwise arbitrary; never put it into a key or header as it is.
    pub subject: Arc<str>,
    /// Who, among all issuers: the subject, or `<issuer>~<subject>` where there are several issuers. Limits,
    /// cache and store keys go by it.
    pub account: Arc<str>,
    /// The plan the token names; it may be unknown to the configuration.
    pub plan: Option<Box<str>>,
    /// Factor on limits, finite and above zero, not capped.
    pub multiplier: f64,
    /// Permissions in the token's order.
    pub permissions: Box<[Box<str>]>,
    /// E-mail address, not verified.
    pub email: Option<Box<str>>,
    /// `iat` in seconds since the epoch.
    pub issued_at: Option<u64>,
    /// `exp` in seconds since the epoch.
    pub expires_at: Option<u64>,
    /// First moment at which the token is refused as expired: `exp` plus the issuer's leeway.
    pub usable_until: Option<UnixMillis>,
    /// What tells this token from others.
    pub token_id: TokenId,
    /// The id of the API token, where it is one that the gateway issued and not a JWT.
    pub api_token: Option<Arc<str>>,
    /// The API token's own limits per minute, hour and day, at least 1, in place of what policies that count by it
    /// say.
    pub own_limits: [Option<u64>; 3],
    /// Store keys, prefix included.
    pub keys: Keys,
    /// Header lines for the upstream: `X-User-Id`, `X-User-Plan`, `X-User-Permissions`, forwarded claims.
    pub headers: Box<[(HeaderName, HeaderValue)]>,
    /// Digest of all [`Self::headers`] but the subject's, if there are others: two tokens of one subject with the same
    /// one look the same to the upstream.
    pub described: Option<[u8; 16]>,
}

impl Identity {
    /// The identity of `person` by the token `token_id`; `key_prefix` begins every store key, and with `hash_tags`
    /// those of the subject live in one slot of a cluster.
    ///
    /// `realm` is the name of the issuer where there are several: a subject and a `jti` are unique within one
    /// issuer only (RFC 7519 sections 4.1.2 and 4.1.7), so that `<realm>~` goes before both wherever they are
    /// compared.
    #[must_use]
    pub fn new(
        person: Person,
        token_id: TokenId,
        times: &Times,
        leeway: Duration,
        key_prefix: &str,
        hash_tags: bool,
        realm: Option<&str>,
    ) -> Self {
        let (account, token_id) = match (realm, token_id) {
            (None, token_id) => (Arc::clone(&person.subject), token_id),
            (Some(realm), TokenId::Jti(jti)) => {
                (within(realm, &person.subject).into(), TokenId::Jti(within(realm, &jti).into()))
            }
            (Some(realm), digest @ TokenId::Sha256(_)) => (within(realm, &person.subject).into(), digest),
        };
        let key = |family: &str| subject_key(key_prefix, family, &account, hash_tags).into();
        let headers = person.header_lines();
        Self {
            keys: Keys {
                blacklist: token_id.blacklist_key(key_prefix).into(),
                session: key("session"),
                ban: key("ban:user"),
                cutoff: key("revoked_before"),
            },
            described: description(&headers, person.carriers.user_id.as_ref()),
            headers: headers.into(),
            account,
            subject: person.subject,
            plan: person.plan,
            multiplier: person.multiplier,
            permissions: person.permissions,
            email: person.email,
            issued_at: times.issued_at.map(UnixMillis::as_secs),
            expires_at: times.expires_at.map(UnixMillis::as_secs),
            usable_until: times.expires_at.map(|at| at.plus(leeway)),
            token_id,
            api_token: None,
            own_limits: [None; 3],
        }
    }

    /// Whether the token grants `permission`, compared exactly.
    #[must_use]
    pub fn may(&self, permission: &str) -> bool {
        self.permissions.iter().any(|granted| **granted == *permission)
    }

    /// What logging out with this token revokes: the token, until nobody would accept it any more. A token
    /// without `exp` stays revoked for `longest`.
    #[must_use]
    pub fn revocation(&self, now: UnixMillis, longest: Duration) -> Revocation {
        Revocation {
            key: Arc::clone(&self.keys.blacklist),
            effect: Effect::Token,
            until: self.usable_until.unwrap_or_else(|| now.plus(longest)),
        }
    }

    /// What logging out everywhere revokes: see [`Revocation::everywhere`].
    #[must_use]
    pub fn revocation_everywhere(&self, now: UnixMillis, longest: Duration) -> Revocation {
        Revocation::everywhere(Arc::clone(&self.keys.cutoff), now, longest)
    }
}

/// Half a SHA-256 of every line but that of `subject`.
fn description(lines: &[(HeaderName, HeaderValue)], subject: Option<&HeaderName>) -> Option<[u8; 16]> {
    let mut digest = None;
    for (name, value) in lines.iter().filter(|(name, _)| Some(name) != subject) {
        let hasher = digest.get_or_insert_with(Sha256::new);
        for text in [name.as_str().as_bytes(), value.as_bytes()] {
            hasher.update((text.len() as u64).to_be_bytes());
            hasher.update(text);
        }
    }
    let digest: [u8; 32] = digest?.finalize().into();
    digest.first_chunk().copied()
}

/// A subject or a `jti` as it is told from those of other issuers.
pub(super) fn within(realm: &str, name: &str) -> String {
    format!("{realm}~{name}")
}

fn is_readable(jti: &str) -> bool {
    (1..=MAX_READABLE_JTI).contains(&jti.len())
        && !jti.starts_with(DIGEST_PREFIX)
        && jti.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~@-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(subject: &str, jti: &str) -> Identity {
        let times = Times { expires_at: Some(UnixMillis::from_secs(100)), ..Times::default() };
        Identity::new(
            Person::named(subject),
            TokenId::Jti(jti.into()),
            &times,
            Duration::from_secs(30),
            "tg:",
            false,
            None,
        )
    }

    #[test]
    fn what_the_upstream_is_told_beside_the_subject_has_a_digest() {
        let described = |plan: Option<&str>, permissions: &[&str], forwarded: &[(&'static str, &str)]| {
            let lines = forwarded
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
            let person = Person {
                plan: plan.map(Into::into),
                permissions: permissions.iter().map(|&name| name.into()).collect(),
                forwarded: lines.collect(),
                ..Person::named("42")
            };
            let id = TokenId::Jti("abc".into());
            Identity::new(person, id, &Times::default(), Duration::ZERO, "", false, None).described
        };
        assert_eq!(described(None, &[], &[]), None);
        let all = [
            described(Some("pro"), &[], &[]),
            described(Some("free"), &[], &[]),
            described(None, &["admin"], &[]),
            described(None, &["admin", "write"], &[]),
            described(Some("pro"), &["admin"], &[]),
            described(None, &[], &[("x-org", "a")]),
            described(None, &[], &[("x-org", "b")]),
            described(None, &[], &[("x-or", "ga")]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(one.is_some() && !all[..index].contains(one), "{index}");
        }
        assert_eq!(described(Some("pro"), &["a"], &[]), described(Some("pro"), &["a"], &[]));
    }

    #[test]
    fn keys_have_the_names_operators_know() {
        let identity = identity("42", "abc-1");
        assert_eq!(&*identity.keys.blacklist, "tg:blacklist:abc-1");
        assert_eq!(blacklist_key("tg:", identity.keys.token()), *identity.keys.blacklist);
        assert_eq!(&*identity.keys.session, "tg:session:42");
        assert_eq!(&*identity.keys.ban, "tg:ban:user:42");
        assert_eq!(&*identity.keys.cutoff, "tg:revoked_before:42");
        assert_eq!(subject_key("tg:", "ban:user", "4}2", true), "tg:ban:user:{4%7D2}");
    }

    #[test]
    fn subjects_and_ids_of_two_issuers_are_never_the_same() {
        let of = |realm| {
            let (person, id) = (Person::named("42"), TokenId::Jti("abc".into()));
            Identity::new(person, id, &Times::default(), Duration::ZERO, "", false, realm)
        };
        let (one, two, only) = (of(Some("one")), of(Some("two")), of(None));
        assert_eq!((&*one.account, &*one.keys.blacklist), ("one~42", "blacklist:one~abc"));
        assert_eq!((&*only.account, &*only.keys.blacklist), ("42", "blacklist:abc"));
        assert_eq!(one.subject, two.subject, "the upstream hears the subject as it is");
        for (one, two) in [
            (&one.account, &two.account),
            (&one.keys.blacklist, &two.keys.blacklist),
            (&one.keys.cutoff, &two.keys.cutoff),
            (&one.keys.ban, &two.keys.ban),
            (&one.keys.session, &two.keys.session),
        ] {
            assert_ne!(one, two);
        }
    }

    #[test]
    fn hostile_names_cannot_forge_or_grow_keys() {
        let long = "x".repeat(10_000);
        for hostile in ["a:b", "*", "{x}", "a\r\nDEL b", "sha256-00", "é", " ", long.as_str()] {
            let identity = identity(hostile, hostile);
            let id = identity.keys.blacklist.strip_prefix("tg:blacklist:sha256-").unwrap();
            assert!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{hostile}");
            assert!(identity.keys.session.len() < 80);
            assert!(!identity.keys.session.contains(['*', '{', '\r', ' ']));
            assert_eq!(identity.keys.session.matches(':').count(), 2);
        }
    }

    #[test]
    fn logout_lasts_as_long_as_the_token_would() {
        let now = UnixMillis::from_secs(90);
        let mut identity = identity("42", "a");
        assert_eq!(identity.revocation(now, Duration::from_secs(7)).ttl(now), Some(Duration::from_secs(40)));
        identity.usable_until = None;
        assert_eq!(identity.revocation(now, Duration::from_secs(7)).ttl(now), Some(Duration::from_secs(7)));
    }
}
