//! Deciding whether a token is genuine and valid now, with a bounded memory of tokens already verified.
//!
//! Only success is remembered, and the moment is judged anew each time; revocation is decided elsewhere.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::algorithm::{Algorithm, Algorithms};
use super::claims::{Claims, Rules, Times};
use super::identity::{Identity, TokenId, within};
use super::jwt::{Parsed, Signed};
use super::keys::KeySet;
use super::mapping::Mapping;
use super::refused::Refused;
use super::ring::Ring;
use crate::clock::UnixMillis;
use crate::identifiers::sha256_hex;

/// Tokens remembered as verified by default.
pub const DEFAULT_CACHE_ENTRIES: usize = 10_000;
/// Most tokens in one part of the memory, which is out of reach while it is looked through for tokens to let go of.
const MAX_SHARD: usize = 10_000;
/// Fewest parts, so that threads rarely meet.
const SHARDS: usize = 16;
/// Longest token accepted by default, in bytes.
pub const DEFAULT_MAX_TOKEN_BYTES: usize = super::credentials::DEFAULT_MAX_BYTES;

/// Why verification settings are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsProblem {
    /// An issuer allows no algorithm.
    #[error("issuer `{0}` allows no algorithm")]
    NoAlgorithm(Box<str>),
    /// An issuer allows an algorithm that none of its keys can verify.
    #[error("issuer `{0}` allows {1}, but none of its keys can verify that")]
    AlgorithmWithoutKey(Box<str>, Algorithm),
    /// An issuer has a key that none of its algorithms uses.
    #[error("issuer `{0}` has a {1} key that none of its algorithms uses")]
    KeyWithoutAlgorithm(Box<str>, &'static str),
    /// An issuer allows shared secrets and public keys at once.
    #[error("issuer `{0}` mixes HS* with algorithms of public keys")]
    MixedKinds(Box<str>),
    /// Two issuers have the same name.
    #[error("two issuers are named `{0}`")]
    DuplicateName(Box<str>),
    /// Two issuers claim the same `iss`.
    #[error("two issuers declare iss `{0}`")]
    DuplicateIss(Box<str>),
    /// More than one issuer has no `iss`, so that none could ever be chosen.
    #[error(
        "issuers `{0}` and `{1}` both declare no iss; a token could not be told to belong to either: give all but one an `issuer`"
    )]
    SeveralWithoutIss(Box<str>, Box<str>),
}

/// Somebody whose tokens are accepted.
#[derive(Clone, Debug)]
pub struct Issuer {
    name: Box<str>,
    iss: Vec<Box<str>>,
    algorithms: Algorithms,
    keys: KeySet,
    ring: Option<Arc<Ring>>,
    /// What its tokens must say.
    pub rules: Rules,
    /// How its claims are read.
    pub mapping: Mapping,
}

impl Issuer {
    /// An issuer with default rules and mapping. `name` is the configuration's; `iss` lists the accepted
    /// values of that claim, and where empty the issuer takes any token no other issuer claims. `keys` may be
    /// empty when they come later, see [`Issuer::keyed_by`].
    pub fn new(
        name: impl Into<Box<str>>,
        iss: Vec<Box<str>>,
        algorithms: impl Into<Algorithms>,
        keys: KeySet,
    ) -> Result<Self, SettingsProblem> {
        let (name, algorithms) = (name.into(), algorithms.into());
        if algorithms.is_empty() {
            return Err(SettingsProblem::NoAlgorithm(name));
        }
        if algorithms.iter().any(Algorithm::is_symmetric) && !algorithms.iter().all(Algorithm::is_symmetric) {
            return Err(SettingsProblem::MixedKinds(name));
        }
        if !keys.keys().is_empty() {
            if let Some(orphan) = algorithms
                .iter()
                .find(|wanted| !keys.keys().iter().any(|key| key.algorithms().contains(*wanted)))
            {
                return Err(SettingsProblem::AlgorithmWithoutKey(name, orphan));
            }
            if let Some(key) =
                keys.keys().iter().find(|key| key.algorithms().intersection(algorithms).is_empty())
            {
                return Err(SettingsProblem::KeyWithoutAlgorithm(name, key.kind().as_str()));
            }
        }
        let (rules, mapping) = (Rules::default(), Mapping::default());
        Ok(Self { name, iss, algorithms, keys, ring: None, rules, mapping })
    }

    /// This issuer with keys that somebody else keeps up to date, instead of its own.
    #[must_use]
    pub fn keyed_by(mut self, ring: Arc<Ring>) -> Self {
        self.ring = Some(ring);
        self
    }

    /// The configuration's name for it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// What a [`Verifier`] is made from.
#[derive(Clone, Debug)]
pub struct Settings {
    issuers: Vec<Issuer>,
    /// Longest token, in bytes.
    pub max_token_bytes: usize,
    /// Tokens remembered as verified; one longer than 1 KiB counts for several. Zero remembers none.
    pub cache_entries: usize,
    /// What every store key begins with.
    pub key_prefix: Box<str>,
    /// Whether store keys of one subject live in one slot of a cluster.
    pub hash_tags: bool,
}

impl Settings {
    /// Settings for these issuers, which must be distinguishable. Without any, every token is refused.
    pub fn new(issuers: Vec<Issuer>) -> Result<Self, SettingsProblem> {
        let mut seen: Vec<&str> = Vec::new();
        let mut without_iss: Option<&Issuer> = None;
        for (at, issuer) in issuers.iter().enumerate() {
            if issuers.iter().take(at).any(|other| other.name == issuer.name) {
                return Err(SettingsProblem::DuplicateName(issuer.name.clone()));
            }
            if issuer.iss.is_empty()
                && let Some(other) = without_iss.replace(issuer)
            {
                return Err(SettingsProblem::SeveralWithoutIss(other.name.clone(), issuer.name.clone()));
            }
            for iss in &issuer.iss {
                if seen.contains(&&**iss) {
                    return Err(SettingsProblem::DuplicateIss(iss.clone()));
                }
                seen.push(iss);
            }
        }
        Ok(Self {
            issuers,
            max_token_bytes: DEFAULT_MAX_TOKEN_BYTES,
            cache_entries: DEFAULT_CACHE_ENTRIES,
            key_prefix: Box::default(),
            hash_tags: false,
        })
    }
}

/// Verifies tokens. Shared by all threads; it never blocks on anything slow.
pub struct Verifier {
    issuers: Box<[Trusted]>,
    max_token_bytes: usize,
    key_prefix: Box<str>,
    hash_tags: bool,
    cache: Option<Memory>,
}

type Memory = Cache<Box<str>, Arc<Verified>, ByLength>;

/// An issuer with keys that may be exchanged.
pub(super) struct Trusted {
    pub(super) issuer: Issuer,
    ring: Arc<Ring>,
    /// Whether somebody else keeps the ring up to date.
    is_kept: bool,
}

struct Verified {
    identity: Arc<Identity>,
    times: Times,
    leeway: Duration,
    ring: Arc<Ring>,
    /// That of the ring; what was verified before the keys changed counts no more.
    generation: u64,
}

impl Verified {
    fn is_current(&self) -> bool {
        self.generation == self.ring.generation()
    }
}

/// Why a token is not accepted.
#[derive(Debug)]
pub enum Unverified {
    /// This is final.
    Refused(Refused),
    /// None of the keys known here fits, but the issuer may have published one meanwhile.
    Unheard(Box<Unheard>),
}

impl Unverified {
    /// The reason by what is known here.
    pub const fn refused(&self) -> Refused {
        match self {
            Self::Refused(refused) => *refused,
            Self::Unheard(unheard) => unheard.refused,
        }
    }
}

impl From<Refused> for Unverified {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// A token that no key fits of those that were in its issuer's ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unheard {
    /// The issuer, by its place in [`Settings`].
    pub issuer: usize,
    /// That of the ring when the keys were tried, see [`Ring::generation`]: other keys may decide otherwise.
    pub generation: u64,
    /// What the token is refused for if they stay what they are.
    pub refused: Refused,
    /// What to look for; `None`: the token names no key, so that there is nothing to look for once there are keys.
    pub sought: Option<Sought>,
}

/// What is looked for in keys that are read anew, and may be remembered as not found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Sought {
    /// A key of this identifier that fits.
    Kid(Box<str>),
    /// A key that fits the token of this SHA-256: the set gives no names, so that nothing may be concluded from one
    /// token for another.
    Token([u8; 32]),
}

/// Bounds the cache's memory: a token's weight is its started KiB.
#[derive(Clone)]
struct ByLength;

impl Weighter<Box<str>, Arc<Verified>> for ByLength {
    fn weight(&self, token: &Box<str>, _: &Arc<Verified>) -> u64 {
        token.len() as u64 / 1024 + 1
    }
}

impl Verifier {
    /// Prepares verification.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let trusted = |mut issuer: Issuer| {
            let kept = issuer.ring.take();
            let is_kept = kept.is_some();
            let ring = kept.unwrap_or_else(|| Arc::new(Ring::new(std::mem::take(&mut issuer.keys))));
            Trusted { issuer, ring, is_kept }
        };
        let entries = settings.cache_entries;
        Self {
            issuers: settings.issuers.into_iter().map(trusted).collect(),
            max_token_bytes: settings.max_token_bytes,
            key_prefix: settings.key_prefix,
            hash_tags: settings.hash_tags,
            cache: (entries > 0).then(|| memory(entries)),
        }
    }

    /// Who presents this token, if it is genuine and valid at `now`. Revocation is not looked at.
    ///
    /// # Errors
    /// The first reason against the token; times are judged only once the signature is known to be good, so
    /// that `Expired` is never said of a forgery.
    pub fn verify(&self, token: &str, now: UnixMillis) -> Result<Arc<Identity>, Refused> {
        self.examine(token, now).map_err(|unverified| unverified.refused())
    }

    /// The same for callers that can have keys looked up.
    ///
    /// # Errors
    /// As [`Verifier::verify`]. What to look up is of the same keys that the signature was checked by.
    pub fn examine(&self, token: &str, now: UnixMillis) -> Result<Arc<Identity>, Unverified> {
        if let Some(known) = self.cache.as_ref().and_then(|cache| cache.get(token))
            && known.is_current()
        {
            let verdict = known.times.check(known.leeway, now);
            if verdict == Err(Refused::Expired) {
                self.forget(token);
            }
            verdict?;
            return Ok(Arc::clone(&known.identity));
        }
        let verified = self.verify_anew(token)?;
        let identity = Arc::clone(&verified.identity);
        let verdict = verified.times.check(verified.leeway, now);
        if verdict.is_ok()
            && let Some(cache) = &self.cache
        {
            cache.insert(token.into(), Arc::new(verified));
        }
        verdict?;
        Ok(identity)
    }

    /// Lets go of one remembered token.
    fn forget(&self, token: &str) {
        if let Some(cache) = &self.cache {
            cache.remove(token);
        }
    }

    /// Lets go of remembered tokens that have expired, of whose identity `is_revoked`, or whose issuer has other keys
    /// now. Looks at all of them, part by part, so that it belongs into the background.
    pub fn forget_unusable(&self, now: UnixMillis, is_revoked: impl Fn(&Identity) -> bool) {
        if let Some(cache) = &self.cache {
            cache.retain(|_, known| {
                let expired = known.times.check(known.leeway, now) == Err(Refused::Expired);
                known.is_current() && !expired && !is_revoked(&known.identity)
            });
        }
    }

    /// What a subject or a `jti` is known by among all issuers: itself, or `<issuer>~<name>` where there are
    /// several, in which case a name of this form needs no `issuer`. `None` when it does not tell a known issuer.
    pub fn qualified<'a>(&self, issuer: Option<&str>, name: &'a str) -> Option<Cow<'a, str>> {
        let several = self.issuers.len() > 1;
        let is_known = |issuer: &str| self.issuers.iter().any(|trusted| *trusted.issuer.name == *issuer);
        match issuer {
            Some(issuer) if !is_known(issuer) => None,
            Some(issuer) if several => Some(Cow::Owned(within(issuer, name))),
            None if several => {
                name.split_once('~').filter(|(issuer, _)| is_known(issuer)).map(|_| Cow::Borrowed(name))
            }
            _ => Some(Cow::Borrowed(name)),
        }
    }

    /// Tokens remembered as verified.
    pub fn cached(&self) -> usize {
        self.cache.as_ref().map_or(0, Cache::len)
    }

    pub(super) const fn max_token_bytes(&self) -> usize {
        self.max_token_bytes
    }

    /// The issuer a token belongs to by its `iss`: one that declares the value, else the one that declares
    /// none.
    pub(super) fn trusted(&self, claims: &Claims) -> Result<&Trusted, Refused> {
        let iss = match claims.get("iss") {
            None => None,
            Some(Value::String(iss)) => Some(iss.as_str()),
            Some(_) => return Err(Refused::Malformed),
        };
        let declares = |trusted: &&Trusted| trusted.issuer.iss.iter().any(|known| Some(&**known) == iss);
        self.issuers
            .iter()
            .find(declares)
            .or_else(|| self.issuers.iter().find(|trusted| trusted.issuer.iss.is_empty()))
            .ok_or(Refused::Issuer)
    }

    /// The identity a genuine token stands for.
    pub(super) fn identify(
        &self,
        token: &str,
        parsed: &Parsed<'_>,
        trusted: &Trusted,
        times: &Times,
    ) -> Result<Identity, Refused> {
        let person = trusted.issuer.mapping.apply(&parsed.claims)?;
        let id = token_id(token, parsed)?;
        let realm = (self.issuers.len() > 1).then_some(&*trusted.issuer.name);
        let leeway = trusted.issuer.rules.leeway;
        Ok(Identity::new(person, id, times, leeway, &self.key_prefix, self.hash_tags, realm))
    }

    fn verify_anew(&self, token: &str) -> Result<Verified, Unverified> {
        let parsed = Parsed::read(token, self.max_token_bytes)?;
        let trusted = self.trusted(&parsed.claims)?;
        let generation = trusted.ring.generation();
        let keys = trusted.ring.keys();
        if let Err(refused) = trusted.check_by(&keys, &parsed.signed) {
            let issuer = self.issuers.iter().position(|other| std::ptr::eq(other, trusted));
            let can_change = trusted.is_kept && refused != Refused::AlgorithmNotAllowed;
            let Some(issuer) = issuer.filter(|_| can_change) else { return Err(refused.into()) };
            let has_kids = keys.has_kids();
            let seek =
                |kid| if has_kids { Sought::Kid(kid) } else { Sought::Token(Sha256::digest(token).into()) };
            let sought = parsed.signed.kid.map(seek);
            return Err(Unverified::Unheard(Box::new(Unheard { issuer, generation, refused, sought })));
        }
        let rules = &trusted.issuer.rules;
        let times = Times::read(&parsed.claims)?;
        rules.check_content(&parsed.claims, &times)?;
        let identity = Arc::new(self.identify(token, &parsed, trusted, &times)?);
        Ok(Verified { identity, times, leeway: rules.leeway, ring: Arc::clone(&trusted.ring), generation })
    }
}

impl Trusted {
    pub(super) fn check_signature(&self, signed: &Signed<'_>) -> Result<(), Refused> {
        self.check_by(&self.ring.keys(), signed)
    }

    fn check_by(&self, keys: &KeySet, signed: &Signed<'_>) -> Result<(), Refused> {
        if !self.issuer.algorithms.contains(signed.algorithm) {
            return Err(Refused::AlgorithmNotAllowed);
        }
        let mut verdict = Err(Refused::UnknownKey);
        for key in keys.candidates(signed.algorithm, signed.kid.as_deref()) {
            if key.verifies(signed.algorithm, signed.signing_input.as_bytes(), signed.signature) {
                return Ok(());
            }
            verdict = Err(Refused::BadSignature);
        }
        verdict
    }
}

/// Room for so many tokens.
fn memory(entries: usize) -> Memory {
    let shards = entries.div_ceil(MAX_SHARD).max(SHARDS);
    let options = OptionsBuilder::new()
        .estimated_items_capacity(entries)
        .weight_capacity(entries as u64)
        .shards(shards)
        .build()
        .unwrap_or_else(|_| unreachable!("both capacities are set"));
    Cache::with_options(options, ByLength, DefaultHashBuilder::default(), DefaultLifecycle::default())
}

/// What tells this token from others. An empty `jti` counts as none: it would stand for many tokens.
fn token_id(token: &str, parsed: &Parsed<'_>) -> Result<TokenId, Refused> {
    match parsed.claims.get("jti") {
        Some(Value::String(jti)) if !jti.is_empty() => Ok(TokenId::Jti(jti.as_str().into())),
        None | Some(Value::String(_) | Value::Null) => {
            let signed = &parsed.signed;
            let text = if signed.algorithm.has_several_signatures() { signed.signing_input } else { token };
            Ok(TokenId::Sha256(sha256_hex(text.as_bytes()).into()))
        }
        Some(_) => Err(Refused::Malformed),
    }
}

#[cfg(test)]
mod tests;
