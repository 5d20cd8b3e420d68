//! The fingerprint of the generations of a request.

use sha2::{Digest, Sha256};

use super::Fingerprint;
use crate::cache::prefixes::{List, Place, Snapshot, Version};
use crate::cache::tag::PREFIXES;
use crate::clock::UnixMillis;

/// As [`mix`]; for the version of the purges by prefix, what it means for `place`.
pub(super) fn mix_tag(
    hasher: &mut Sha256,
    tag: &str,
    value: Option<&[u8]>,
    known: &Snapshot,
    place: Place<'_>,
    now: UnixMillis,
) {
    match value.map(|value| (value, Version::parse(value))) {
        Some((value, Version::Listed { lineage, until, .. })) if tag == PREFIXES => match &known.list {
            // Nothing that it drops can be left.
            _ if now > until => mix(hasher, tag, Some(lineage)),
            Some(list) if *known.version == *value => {
                mix(hasher, tag, Some(lineage));
                mix_list(hasher, list, place);
            }
            // A list that is not known may drop anything.
            _ => mix(hasher, tag, Some(value)),
        },
        _ => mix(hasher, tag, value),
    }
}

pub(super) fn mix_list(hasher: &mut Sha256, list: &List, place: Place<'_>) {
    list.matches(place, |prefix, generation| mix(hasher, prefix, Some(generation.as_bytes())));
}

pub(super) fn mix_compare(hasher: &mut Sha256, place: Place<'_>) {
    let marker = place.compare.marker();
    if marker > 0 {
        mix(hasher, "compare", Some(&[marker]));
    }
}

pub(super) fn mix(hasher: &mut Sha256, tag: &str, value: Option<&[u8]>) {
    hasher.update((tag.len() as u64).to_be_bytes());
    hasher.update(tag);
    match value {
        None => hasher.update([0]),
        Some(value) => {
            hasher.update([1]);
            hasher.update((value.len() as u64).to_be_bytes());
            hasher.update(value);
        }
    }
}

pub(super) fn finish(hasher: Sha256) -> Fingerprint {
    Fingerprint(first_half(&hasher.finalize().into()))
}

pub(super) fn first_half(digest: &[u8; 32]) -> [u8; 16] {
    let (half, _) = digest.split_at(16);
    half.try_into().unwrap_or_default()
}
