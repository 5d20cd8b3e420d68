//! One stored response: how it becomes pingora's `CacheMeta` and bytes for the shared tier, and back.
//! Bytes from outside are believed only when they are whole, authentic, sane and filed under their own key.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, response};
use pingora::cache::key::HashBinary;
use pingora::cache::{CacheKey, CacheMeta, key::CacheHashKey};
use pingora::http::ResponseHeader;
use sha2::{Digest, Sha256};

use super::ahead::Freshness;
use super::storage::body::Body;
use super::storage::budget::{Charge, allocated};
use crate::clock::{UnixMillis, millis};

/// First bytes of an encoded entry; the last digit is the layout's version.
const MAGIC: &[u8; 4] = b"TGE1";
const MAC: usize = 16;
/// Bytes of an encoded entry beside its key, fields and body, at most.
const ENCODED_OVERHEAD: usize = 192;
/// How long a stale entry with a validator is kept to be revalidated.
const REVALIDATION_GRACE: Duration = Duration::from_secs(3600);
/// Bookkeeping per entry in bytes: the counts of two references, what `Bytes` allocates to share a buffer (twice),
/// and the tables of `quick_cache`, which grow by doubling.
const OVERHEAD: usize = size_of::<Entry>() + 16 + 2 * 32 + 192;
/// What the head of a response may have of fields; no peer is listened to for as many.
const MOST_FIELDS: usize = 4096;
/// What `Bytes` allocates to share a name of its own.
const SHARED_NAME: usize = 32;
/// Clocks of two instances may differ by this much.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// Everything about an entry but its body; all times are wall-clock milliseconds.
#[derive(Clone, Debug)]
struct Meta {
    fresh_until: UnixMillis,
    created: UnixMillis,
    provenance: UnixMillis,
    updated: UnixMillis,
    /// Where `Age` counts from: before `updated` when the response had an age already.
    epoch: UnixMillis,
    keep_until: UnixMillis,
    stale_while_revalidate: u32,
    stale_if_error: u32,
    variance: Option<HashBinary>,
}

/// A response's key, status and header fields, in one piece of memory that belongs to nothing else: the values
/// pingora hands over are slices of whole read buffers.
#[derive(Clone, Debug)]
struct Head {
    /// The primary key, then the values of the fields.
    bytes: Bytes,
    key_length: usize,
    variance: Option<HashBinary>,
    status: StatusCode,
    /// The fields, read once for all hits; their values are slices of `bytes`.
    fields: Box<[(HeaderName, HeaderValue)]>,
}

impl Head {
    /// `None` for fields that could not be read back. A `length` replaces what is declared.
    fn new(key: &CacheKey, header: &HeaderMap, status: StatusCode, length: Option<&str>) -> Option<Self> {
        let mut lines = Lines::of(key);
        for (name, value) in header {
            if length.is_none() || name != header::CONTENT_LENGTH {
                lines.push(name.clone(), value.as_bytes());
            }
        }
        if let Some(length) = length {
            lines.push(header::CONTENT_LENGTH, length.as_bytes());
        }
        lines.read(key, status)
    }

    fn is(&self, key: &CacheKey) -> bool {
        self.key() == key.primary_key() && self.variance == key.variance_bin()
    }

    fn key(&self) -> &[u8] {
        self.bytes.get(..self.key_length).unwrap_or_default()
    }

    /// Bytes of the key, and of the fields as [`Entry::encode`] writes them.
    fn encoded_length(&self) -> usize {
        let names: usize = self.fields.iter().map(|(name, _)| 16 + name.as_str().len()).sum();
        self.bytes.len() + names
    }

    /// Bytes of memory it takes, once it has `more` bytes in another field.
    fn weight(&self, more: usize) -> usize {
        let fields = self.fields.len() + usize::from(more > 0);
        let names: usize = self.fields.iter().map(|(name, _)| weight_of(name)).sum();
        allocated(self.bytes.len() + more)
            + allocated(fields * size_of::<(HeaderName, HeaderValue)>())
            + names
    }

    /// The head as it is answered with, with room for `more` fields; copies no value.
    fn parts(&self, more: usize) -> response::Parts {
        let mut parts = http::Response::new(()).into_parts().0;
        parts.status = self.status;
        parts.headers = HeaderMap::with_capacity(self.fields.len() + more);
        for (name, value) in &self.fields {
            parts.headers.append(name, value.clone());
        }
        parts
    }
}

/// The lines of a head that is being made.
struct Lines {
    bytes: Vec<u8>,
    /// Each name, and how long its value is.
    fields: Vec<(HeaderName, usize)>,
}

impl Lines {
    fn of(key: &CacheKey) -> Self {
        Self { bytes: key.primary_key().to_vec(), fields: Vec::new() }
    }

    fn push(&mut self, name: HeaderName, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.fields.push((name, value.len()));
    }

    /// The head; `None` where a value is none.
    fn read(mut self, key: &CacheKey, status: StatusCode) -> Option<Head> {
        if self.fields.len() > MOST_FIELDS {
            return None;
        }
        self.bytes.shrink_to_fit();
        let bytes = Bytes::from(self.bytes);
        let key_length = key.primary_key().len();
        let mut fields = Vec::with_capacity(self.fields.len());
        let mut at = key_length;
        for (name, length) in self.fields {
            // In memory of its own: a name that came may be a part of something larger.
            let name = HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
            let value = HeaderValue::from_maybe_shared(bytes.slice(at..at + length)).ok()?;
            fields.push((name, value));
            at += length;
        }
        let (variance, fields) = (key.variance_bin(), fields.into_boxed_slice());
        Some(Head { bytes, key_length, variance, status, fields })
    }
}

/// Bytes of memory that a name takes beside itself. One that the HTTP library knows is the same text wherever it is read.
fn weight_of(name: &HeaderName) -> usize {
    let known = HeaderName::from_bytes(name.as_str().as_bytes())
        .is_ok_and(|again| std::ptr::eq(again.as_str(), name.as_str()));
    if known { 0 } else { allocated(name.as_str().len()) + SHARED_NAME }
}

/// A stored response.
#[derive(Debug)]
pub(super) struct Entry {
    head: Head,
    meta: Meta,
    body: Body,
    /// What it takes of the memory tier's budget, until nobody reads it any more.
    charge: Option<Charge>,
}

/// Why bytes from the shared tier are no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejected {
    /// Not what was written, or by somebody without the secret.
    #[error("an entry of the shared cache is damaged or forged")]
    Authenticity,
    /// Shorter or longer than it says, or with values that are none.
    #[error("an entry of the shared cache is malformed")]
    Malformed,
    /// Of another key.
    #[error("an entry of the shared cache is filed under another key")]
    WrongKey,
    /// Past its life, or with a longer one than any entry may have.
    #[error("an entry of the shared cache is outside its life")]
    Lifetime,
}

/// An entry without its body: what a fill starts with. `CacheMeta` cannot be cloned.
#[derive(Debug)]
pub(super) struct Draft {
    head: Head,
    meta: Meta,
    declared: Declared,
}

/// What a response says about the length of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Declared {
    Nothing,
    Bytes(usize),
    Nonsense,
}

impl Declared {
    fn of(header: &ResponseHeader) -> Self {
        let mut lines = header.headers.get_all(header::CONTENT_LENGTH).iter();
        let Some(first) = lines.next() else { return Self::Nothing };
        let parsed = first.to_str().ok().and_then(|text| text.parse().ok());
        match parsed {
            Some(length) if lines.all(|line| line == first) => Self::Bytes(length),
            _ => Self::Nonsense,
        }
    }
}

impl Draft {
    /// `None` for a response with fields that could not be read back.
    pub(super) fn new(key: &CacheKey, meta: &CacheMeta) -> Option<Self> {
        let header = meta.response_header();
        let declared = Declared::of(header);
        Some(Self {
            head: Head::new(key, &header.headers, header.status, None)?,
            meta: Meta::of(meta),
            declared,
        })
    }

    /// The declared length of the body, if there is one.
    pub(super) const fn declared_length(&self) -> Option<usize> {
        match self.declared {
            Declared::Bytes(length) => Some(length),
            Declared::Nothing | Declared::Nonsense => None,
        }
    }

    /// Bytes that the entry counts for, without its body.
    pub(super) fn weight(&self) -> usize {
        // A length that is not declared is added in the end.
        OVERHEAD + self.head.weight(64)
    }

    /// The entry with its complete body; `None` when that is not as long as declared.
    pub(super) fn complete(self, key: &CacheKey, body: Body) -> Option<Entry> {
        let Self { mut head, meta, declared } = self;
        match declared {
            Declared::Bytes(length) if length == body.len() => {}
            Declared::Bytes(_) | Declared::Nonsense => return None,
            // A complete body has a known length, which ranges of it need.
            Declared::Nothing if head.status != StatusCode::NO_CONTENT => {
                head = Head::new(key, &head.parts(0).headers, head.status, Some(&body.len().to_string()))?;
            }
            Declared::Nothing => {}
        }
        Some(Entry { head, meta, body, charge: None })
    }
}

impl Entry {
    /// The same body under refreshed metadata (a 304).
    pub(super) fn refreshed(&self, key: &CacheKey, meta: &CacheMeta) -> Option<Self> {
        let mut header = meta.response_header_copy();
        // The body did not change, so neither did its length, whatever the 304 says.
        let length = (self.head.status != StatusCode::NO_CONTENT).then(|| self.body.len().to_string());
        if length.is_none() {
            drop(header.remove_header(&header::CONTENT_LENGTH));
        }
        let head = Head::new(key, &header.headers, header.status, length.as_deref())?;
        Some(Self { head, meta: Meta::of(meta), body: self.body.clone(), charge: None })
    }

    /// The entry with its part of the memory tier's budget.
    pub(super) fn charged(self, charge: Charge) -> Self {
        Self { charge: Some(charge), ..self }
    }

    /// Whether it has a part of the memory tier's budget.
    pub(super) const fn is_charged(&self) -> bool {
        self.charge.is_some()
    }

    /// What pingora works with. Built per hit: `CacheMeta` cannot be cloned.
    pub(super) fn cache_meta(&self) -> CacheMeta {
        let meta = &self.meta;
        // pingora keeps the provenance of a primary slot across refreshes, as the line before which variants
        // are void, but only takes it from the creation time. Variants are judged by their own creation.
        let created = if self.head.variance.is_some() { meta.created } else { meta.provenance };
        let mut built = CacheMeta::new(
            system_time(meta.fresh_until),
            system_time(created),
            // Without any window pingora would never ask whether it may serve while it refreshes.
            meta.stale_while_revalidate.max(1),
            meta.stale_if_error,
            self.head.parts(0).into(),
        );
        built.set_epoch_override(system_time(meta.epoch));
        if let Some(variance) = meta.variance {
            built.set_variance(variance);
        }
        built
    }

    /// Status and header, with room for `more` fields.
    pub(super) fn head(&self, more: usize) -> response::Parts {
        self.head.parts(more)
    }

    pub(super) const fn body(&self) -> &Body {
        &self.body
    }

    pub(super) fn is_named(&self, key: &CacheKey) -> bool {
        self.head.is(key)
    }

    pub(super) const fn keep_until(&self) -> UnixMillis {
        self.meta.keep_until
    }

    pub(super) const fn fresh_until(&self) -> UnixMillis {
        self.meta.fresh_until
    }

    /// Where `Age` counts from.
    pub(super) const fn epoch(&self) -> UnixMillis {
        self.meta.epoch
    }

    /// The variant that the response is.
    pub(super) const fn variance(&self) -> Option<HashBinary> {
        self.meta.variance
    }

    /// When the response was fetched or last validated.
    pub(super) const fn updated(&self) -> UnixMillis {
        self.meta.updated
    }

    /// Since when and until when the response is fresh.
    pub(super) const fn freshness(&self) -> Freshness {
        Freshness { since: self.meta.updated, until: self.meta.fresh_until }
    }

    /// How long after that it may be served while it is being refreshed.
    pub(super) const fn stale_while_revalidate(&self) -> Duration {
        Duration::from_secs(self.meta.stale_while_revalidate as u64)
    }

    /// Bytes this entry counts for in the memory tier: what the allocator takes for it, and its place in tables.
    pub(super) fn weight(&self) -> usize {
        OVERHEAD + self.head.weight(0) + self.body.weight()
    }

    /// How many bytes [`Self::encode`] makes.
    pub(super) fn encoded_length(&self) -> usize {
        ENCODED_OVERHEAD + self.head.encoded_length() + self.body.len()
    }

    /// The bytes for the shared tier.
    pub(super) fn encode(&self, secret: &Secret) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_length());
        out.put_slice(MAGIC);
        out.put_bytes(0, MAC);
        put_slice(&mut out, self.head.key());
        put_hash(&mut out, self.head.variance);
        let meta = &self.meta;
        for time in
            [meta.fresh_until, meta.created, meta.provenance, meta.updated, meta.epoch, meta.keep_until]
        {
            out.put_u64(time.0);
        }
        out.put_u32(meta.stale_while_revalidate);
        out.put_u32(meta.stale_if_error);
        put_hash(&mut out, meta.variance);
        out.put_u16(self.head.status.as_u16());
        out.put_u32(u32::try_from(self.head.fields.len()).unwrap_or(u32::MAX));
        for (name, value) in &self.head.fields {
            put_slice(&mut out, name.as_str().as_bytes());
            put_slice(&mut out, value.as_bytes());
        }
        out.put_u64(self.body.len() as u64);
        for piece in self.body.pieces() {
            out.put_slice(piece);
        }
        let start = MAGIC.len() + MAC;
        let mac = out.get(start..).map(|payload| secret.mac(payload)).unwrap_or_default();
        if let Some(slot) = out.get_mut(MAGIC.len()..start) {
            slot.copy_from_slice(&mac);
        }
        out.freeze()
    }

    /// Reads what [`Self::encode`] wrote for `key`.
    pub(super) fn decode(
        bytes: &Bytes,
        key: &CacheKey,
        secret: &Secret,
        now: UnixMillis,
        max_lifetime: Duration,
    ) -> Result<Self, Rejected> {
        let mut cursor = Cursor { bytes, at: 0 };
        if cursor.take(MAGIC.len())? != MAGIC {
            return Err(Rejected::Malformed);
        }
        let mac = cursor.take(MAC)?;
        let payload = bytes.get(cursor.at..).ok_or(Rejected::Malformed)?;
        if !bool::from(subtle::ConstantTimeEq::ct_eq(&secret.mac(payload)[..], mac)) {
            return Err(Rejected::Authenticity);
        }
        if cursor.slice()? != key.primary_key() || cursor.hash()? != key.variance_bin() {
            return Err(Rejected::WrongKey);
        }
        let meta = cursor.meta()?;
        let longest = now.plus(max_lifetime).plus(CLOCK_SLACK);
        if now > meta.keep_until || meta.keep_until > longest || meta.fresh_until > longest {
            return Err(Rejected::Lifetime);
        }
        let status =
            StatusCode::from_u16(u16::from_be_bytes(cursor.array()?)).map_err(|_| Rejected::Malformed)?;
        let mut lines = Lines::of(key);
        for _ in 0..u32::from_be_bytes(cursor.array()?) {
            let name = HeaderName::from_bytes(cursor.slice()?).map_err(|_| Rejected::Malformed)?;
            lines.push(name, cursor.slice()?);
        }
        let head = lines.read(key, status).ok_or(Rejected::Malformed)?;
        let body = Body::copy_of(cursor.body()?);
        Ok(Self { head, meta, body, charge: None })
    }
}

impl Meta {
    fn of(meta: &CacheMeta) -> Self {
        let (fresh_until, updated) = (unix(meta.fresh_until()), unix(meta.updated()));
        let (swr, sie) = (meta.stale_while_revalidate_sec(), meta.stale_if_error_sec());
        let validator =
            meta.headers().contains_key(header::ETAG) || meta.headers().contains_key(header::LAST_MODIFIED);
        let mut after = Duration::from_secs(u64::from(swr.max(sie)));
        if validator {
            after = after.max(REVALIDATION_GRACE);
        }
        Self {
            fresh_until,
            created: unix(meta.created()),
            provenance: unix(meta.provenance()),
            updated,
            epoch: unix(meta.epoch()),
            keep_until: fresh_until.plus(after),
            stale_while_revalidate: swr,
            stale_if_error: sie,
            variance: meta.variance(),
        }
    }
}

/// Authenticates entries of the shared tier.
#[derive(Clone)]
pub(super) struct Secret {
    inner: Sha256,
    outer: Sha256,
}

impl Secret {
    /// HMAC-SHA-256 (RFC 2104) under `secret`; without one it only detects damage.
    pub(super) fn new(secret: Option<&[u8]>) -> Self {
        let mut block = [0_u8; 64];
        let secret = secret.unwrap_or_default();
        let hashed = Sha256::digest(secret);
        let used: &[u8] = if secret.len() > block.len() { &hashed } else { secret };
        for (slot, byte) in block.iter_mut().zip(used) {
            *slot = *byte;
        }
        let keyed = |pad: u8| Sha256::new_with_prefix(block.map(|byte| byte ^ pad));
        Self { inner: keyed(0x36), outer: keyed(0x5c) }
    }

    fn mac(&self, payload: &[u8]) -> [u8; MAC] {
        let inner = self.inner.clone().chain_update(payload).finalize();
        let full: [u8; 32] = self.outer.clone().chain_update(inner).finalize().into();
        let (half, _) = full.split_at(MAC);
        half.try_into().unwrap_or_default()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

fn put_slice(out: &mut impl BufMut, bytes: &[u8]) {
    out.put_u64(bytes.len() as u64);
    out.put_slice(bytes);
}

fn put_hash(out: &mut BytesMut, hash: Option<HashBinary>) {
    match hash {
        None => out.put_u8(0),
        Some(hash) => {
            out.put_u8(1);
            out.put_slice(&hash);
        }
    }
}

struct Cursor<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Rejected> {
        let end = self.at.checked_add(length).ok_or(Rejected::Malformed)?;
        let taken = self.bytes.get(self.at..end).ok_or(Rejected::Malformed)?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Rejected> {
        self.take(N)?.try_into().map_err(|_| Rejected::Malformed)
    }

    fn slice(&mut self) -> Result<&'a [u8], Rejected> {
        let length = u64::from_be_bytes(self.array()?);
        self.take(usize::try_from(length).map_err(|_| Rejected::Malformed)?)
    }

    fn hash(&mut self) -> Result<Option<HashBinary>, Rejected> {
        match self.array::<1>()? {
            [0] => Ok(None),
            [1] => self.array().map(Some),
            _ => Err(Rejected::Malformed),
        }
    }

    fn time(&mut self) -> Result<UnixMillis, Rejected> {
        self.array().map(u64::from_be_bytes).map(UnixMillis)
    }

    fn meta(&mut self) -> Result<Meta, Rejected> {
        Ok(Meta {
            fresh_until: self.time()?,
            created: self.time()?,
            provenance: self.time()?,
            updated: self.time()?,
            epoch: self.time()?,
            keep_until: self.time()?,
            stale_while_revalidate: u32::from_be_bytes(self.array()?),
            stale_if_error: u32::from_be_bytes(self.array()?),
            variance: self.hash()?,
        })
    }

    /// The rest.
    fn body(&mut self) -> Result<&'a [u8], Rejected> {
        let body = self.slice()?;
        if self.at == self.bytes.len() { Ok(body) } else { Err(Rejected::Malformed) }
    }
}

/// `time` in milliseconds since the epoch; earlier times read as the epoch.
pub(super) fn unix(time: SystemTime) -> UnixMillis {
    UnixMillis(time.duration_since(UNIX_EPOCH).map_or(0, millis))
}

/// The inverse of [`unix`].
pub(super) fn system_time(at: UnixMillis) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(at.0)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_123);
    const DAY: Duration = Duration::from_secs(86_400);

    fn key(name: &str) -> CacheKey {
        CacheKey::new(name.as_bytes().to_vec(), "")
    }

    fn entry(key: &CacheKey) -> Entry {
        let mut header = ResponseHeader::build(200, None).unwrap();
        header.append_header("Content-Length", 5).unwrap();
        header.append_header("X-Two", "1").unwrap();
        header.append_header("X-Two", "2").unwrap();
        let mut meta =
            CacheMeta::new(system_time(NOW.plus(Duration::from_secs(60))), system_time(NOW), 7, 8, header);
        meta.set_epoch_override(system_time(UnixMillis(NOW.0 - 5_000)));
        meta.set_variance([3; 16]);
        Draft::new(key, &meta).unwrap().complete(key, Body::copy_of(b"hello")).unwrap()
    }

    fn decode(bytes: &Bytes, name: &str, secret: &[u8], now: UnixMillis) -> Result<Entry, Rejected> {
        Entry::decode(bytes, &key(name), &Secret::new(Some(secret)), now, DAY)
    }

    #[test]
    fn what_is_kept_of_the_head_is_paid_for() {
        assert_eq!(weight_of(&header::CONTENT_TYPE), 0, "a name that is known takes nothing");
        assert_eq!(weight_of(&HeaderName::from_static("x-a-name-of-its-own")), 32 + SHARED_NAME);
        let key = key("k");
        let head = |names: &[&'static str]| {
            let named =
                names.iter().map(|name| (HeaderName::from_static(name), HeaderValue::from_static("v")));
            Head::new(&key, &named.collect(), StatusCode::OK, None).unwrap()
        };
        let field = size_of::<(HeaderName, HeaderValue)>();
        assert_eq!(head(&[]).weight(0), allocated(1));
        assert_eq!(head(&["date"]).weight(0), allocated(2) + allocated(field));
        let two = head(&["x-one", "x-three"]);
        assert_eq!(two.weight(0), allocated(3) + allocated(2 * field) + 2 * (16 + SHARED_NAME));
        assert!(
            Head::new(&key, &two.parts(0).headers, two.status, Some("18446744073709551615"))
                .unwrap()
                .weight(0)
                <= two.weight(64)
        );
    }

    #[test]
    fn an_entry_survives_the_shared_tier() {
        let bytes = entry(&key("k")).encode(&Secret::new(Some(b"s")));
        let back = decode(&bytes, "k", b"s", NOW).unwrap();
        assert_eq!(back.body.read(0, 9).unwrap(), "hello");
        let meta = back.cache_meta();
        assert_eq!(meta.fresh_until(), system_time(NOW.plus(Duration::from_secs(60))));
        assert_eq!(meta.epoch(), system_time(UnixMillis(NOW.0 - 5_000)));
        assert_eq!((meta.stale_while_revalidate_sec(), meta.stale_if_error_sec()), (7, 8));
        assert_eq!(meta.variance(), Some([3; 16]));
        let two: Vec<_> = meta.headers().get_all("x-two").iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(two, ["1", "2"]);
    }

    #[test]
    fn foreign_forged_and_outlived_entries_are_rejected() {
        let bytes = entry(&key("k")).encode(&Secret::new(Some(b"s")));
        assert_eq!(decode(&bytes, "other", b"s", NOW).err(), Some(Rejected::WrongKey));
        assert_eq!(decode(&bytes, "k", b"another", NOW).err(), Some(Rejected::Authenticity));
        assert_eq!(decode(&bytes, "k", b"s", NOW.plus(DAY)).err(), Some(Rejected::Lifetime));
        let early = UnixMillis(NOW.0 - 10 * 86_400_000);
        assert_eq!(decode(&bytes, "k", b"s", early).err(), Some(Rejected::Lifetime));
        let mut variant = key("k");
        variant.set_variance_key([9; 16]);
        let secret = Secret::new(Some(b"s"));
        assert_eq!(Entry::decode(&bytes, &variant, &secret, NOW, DAY).err(), Some(Rejected::WrongKey));
    }

    #[test]
    fn a_body_of_another_length_than_declared_is_no_entry() {
        let key = key("k");
        let meta = entry(&key).cache_meta();
        let complete = |body: &[u8]| Draft::new(&key, &meta).unwrap().complete(&key, Body::copy_of(body));
        assert!(complete(b"hell").is_none() && complete(b"hello!").is_none() && complete(b"hello").is_some());
    }

    #[test]
    fn the_mac_is_hmac_sha_256() {
        // RFC 4231 test case 2.
        let mac = Secret::new(Some(b"Jefe")).mac(b"what do ya want for nothing?");
        let mut digits = String::new();
        crate::identifiers::push_hex(&mut digits, mac.iter());
        assert_eq!(digits, "5bdcc146bf60754e6a042426089575c7");
    }

    proptest! {
        #[test]
        fn damaged_bytes_are_never_an_entry(at in 0usize..400, flip in 1u8..=255, cut in 0usize..400) {
            let bytes = entry(&key("k")).encode(&Secret::new(None));
            let mut damaged = bytes.to_vec();
            let at = at % damaged.len();
            damaged[at] ^= flip;
            let none = Secret::new(None);
            prop_assert!(Entry::decode(&damaged.into(), &key("k"), &none, NOW, DAY).is_err());
            let cut = bytes.slice(..cut % bytes.len());
            prop_assert!(Entry::decode(&cut, &key("k"), &none, NOW, DAY).is_err());
        }

        #[test]
        fn authentic_nonsense_is_rejected_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let secret = Secret::new(None);
            let mut bytes = MAGIC.to_vec();
            bytes.extend(secret.mac(&payload));
            bytes.extend(payload);
            prop_assert!(Entry::decode(&bytes.into(), &key("k"), &secret, NOW, DAY).is_err());
        }
    }
}
