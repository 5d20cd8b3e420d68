//! One stored response: how it becomes pingora's `CacheMeta` and bytes for the shared tier, and back.
//! Bytes from outside are believed only when they are whole, authentic, sane and filed under their own key.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use http::header;
use pingora::cache::key::HashBinary;
use pingora::cache::{CacheKey, CacheMeta, key::CacheHashKey};
use pingora::http::ResponseHeader;
use sha2::{Digest, Sha256};

use crate::clock::{UnixMillis, millis};

/// First bytes of an encoded entry; the last digit is the layout's version.
const MAGIC: &[u8; 4] = b"TGE1";
const MAC: usize = 16;
/// How long a stale entry with a validator is kept to be revalidated.
const REVALIDATION_GRACE: Duration = Duration::from_secs(3600);
/// Bookkeeping per entry and per header field that the weight accounts for, in bytes.
const OVERHEAD: usize = 512;
const FIELD_OVERHEAD: usize = 64;
/// Clocks of two instances may differ by this much.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// The bytes a key is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    primary: Box<[u8]>,
    variance: Option<HashBinary>,
}

impl Name {
    pub(super) fn of(key: &CacheKey) -> Self {
        Self { primary: key.primary_key().into(), variance: key.variance_bin() }
    }

    pub(super) fn is(&self, key: &CacheKey) -> bool {
        *self.primary == *key.primary_key() && self.variance == key.variance_bin()
    }
}

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

/// A stored response.
#[derive(Debug)]
pub(super) struct Entry {
    name: Name,
    meta: Meta,
    header: ResponseHeader,
    body: Bytes,
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
    name: Name,
    meta: Meta,
    header: ResponseHeader,
}

impl Draft {
    pub(super) fn new(key: &CacheKey, meta: &CacheMeta) -> Self {
        Self { name: Name::of(key), meta: Meta::of(meta), header: meta.response_header_copy() }
    }

    /// The entry with its complete body; `None` when that is not as long as declared.
    pub(super) fn complete(self, body: Bytes) -> Option<Entry> {
        let Self { name, meta, mut header } = self;
        match header.headers.get(header::CONTENT_LENGTH) {
            Some(declared) => {
                let declared: Option<usize> = declared.to_str().ok().and_then(|text| text.parse().ok());
                if declared != Some(body.len()) {
                    return None;
                }
            }
            // A complete body has a known length, which ranges of it need.
            None if header.status != http::StatusCode::NO_CONTENT => {
                header.insert_header(header::CONTENT_LENGTH, body.len()).ok()?;
            }
            None => {}
        }
        Some(Entry { name, meta, header, body })
    }
}

impl Entry {
    /// The same body under refreshed metadata (a 304).
    pub(super) fn refreshed(&self, meta: &CacheMeta) -> Self {
        let mut header = meta.response_header_copy();
        // The body did not change, so neither did its length, whatever the 304 says.
        match self.header.headers.get(header::CONTENT_LENGTH) {
            Some(length) => drop(header.insert_header(header::CONTENT_LENGTH, length)),
            None => drop(header.remove_header(&header::CONTENT_LENGTH)),
        }
        Self { name: self.name.clone(), meta: Meta::of(meta), header, body: self.body.clone() }
    }

    /// What pingora works with. Built per hit: `CacheMeta` cannot be cloned.
    pub(super) fn cache_meta(&self) -> CacheMeta {
        let meta = &self.meta;
        // pingora keeps the provenance of a primary slot across refreshes, as the line before which variants
        // are void, but only takes it from the creation time. Variants are judged by their own creation.
        let created = if self.name.variance.is_some() { meta.created } else { meta.provenance };
        let mut built = CacheMeta::new(
            system_time(meta.fresh_until),
            system_time(created),
            meta.stale_while_revalidate,
            meta.stale_if_error,
            self.header.clone(),
        );
        built.set_epoch_override(system_time(meta.epoch));
        if let Some(variance) = meta.variance {
            built.set_variance(variance);
        }
        built
    }

    pub(super) const fn header(&self) -> &ResponseHeader {
        &self.header
    }

    pub(super) const fn body(&self) -> &Bytes {
        &self.body
    }

    pub(super) fn is_named(&self, key: &CacheKey) -> bool {
        self.name.is(key)
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

    /// Bytes this entry counts for in the memory tier.
    pub(super) fn weight(&self) -> usize {
        let fields: usize = self
            .header
            .headers
            .iter()
            .map(|(name, value)| name.as_str().len() * 2 + value.len() + FIELD_OVERHEAD)
            .sum();
        OVERHEAD + self.name.primary.len() + fields + self.body.len()
    }

    /// The bytes for the shared tier.
    pub(super) fn encode(&self, secret: &Secret) -> Bytes {
        let mut out = BytesMut::with_capacity(self.weight());
        out.put_slice(MAGIC);
        out.put_bytes(0, MAC);
        put_slice(&mut out, &self.name.primary);
        put_hash(&mut out, self.name.variance);
        let meta = &self.meta;
        for time in
            [meta.fresh_until, meta.created, meta.provenance, meta.updated, meta.epoch, meta.keep_until]
        {
            out.put_u64(time.0);
        }
        out.put_u32(meta.stale_while_revalidate);
        out.put_u32(meta.stale_if_error);
        put_hash(&mut out, meta.variance);
        out.put_u16(self.header.status.as_u16());
        out.put_u32(u32::try_from(self.header.headers.len()).unwrap_or(u32::MAX));
        for (name, value) in &self.header.headers {
            put_slice(&mut out, name.as_str().as_bytes());
            put_slice(&mut out, value.as_bytes());
        }
        put_slice(&mut out, &self.body);
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
        let name = Name { primary: cursor.slice()?.into(), variance: cursor.hash()? };
        if !name.is(key) {
            return Err(Rejected::WrongKey);
        }
        let meta = cursor.meta()?;
        let longest = now.plus(max_lifetime).plus(CLOCK_SLACK);
        if now > meta.keep_until || meta.keep_until > longest || meta.fresh_until > longest {
            return Err(Rejected::Lifetime);
        }
        let header = cursor.header()?;
        let body = cursor.body()?;
        Ok(Self { name, meta, header, body })
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

fn put_slice(out: &mut BytesMut, bytes: &[u8]) {
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

    fn header(&mut self) -> Result<ResponseHeader, Rejected> {
        let status = u16::from_be_bytes(self.array()?);
        let count = u32::from_be_bytes(self.array()?);
        let mut header = ResponseHeader::build_no_case(status, None).map_err(|_| Rejected::Malformed)?;
        for _ in 0..count {
            let name = http::HeaderName::from_bytes(self.slice()?).map_err(|_| Rejected::Malformed)?;
            let value = http::HeaderValue::from_bytes(self.slice()?).map_err(|_| Rejected::Malformed)?;
            header.append_header(name, value).map_err(|_| Rejected::Malformed)?;
        }
        Ok(header)
    }

    /// The rest, without a copy.
    fn body(&mut self) -> Result<Bytes, Rejected> {
        let length = self.slice()?.len();
        if self.at != self.bytes.len() {
            return Err(Rejected::Malformed);
        }
        Ok(self.bytes.slice(self.at - length..))
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
        Draft::new(key, &meta).complete(Bytes::from_static(b"hello")).unwrap()
    }

    fn decode(bytes: &Bytes, name: &str, secret: &[u8], now: UnixMillis) -> Result<Entry, Rejected> {
        Entry::decode(bytes, &key(name), &Secret::new(Some(secret)), now, DAY)
    }

    #[test]
    fn an_entry_survives_the_shared_tier() {
        let bytes = entry(&key("k")).encode(&Secret::new(Some(b"s")));
        let back = decode(&bytes, "k", b"s", NOW).unwrap();
        assert_eq!(&back.body[..], b"hello");
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
        assert!(Draft::new(&key, &meta).complete(Bytes::from_static(b"hell")).is_none());
    }

    #[test]
    fn the_mac_is_hmac_sha_256() {
        // RFC 4231 test case 2.
        let mac = Secret::new(Some(b"Jefe")).mac(b"what do ya want for nothing?");
        assert_eq!(super::super::generations::hex(&mac), "5bdcc146bf60754e6a042426089575c7");
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
