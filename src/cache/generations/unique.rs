//! Values for generations.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::mix::first_half;
use crate::identifiers::push_hex;

/// Makes values that no instance has made or will make.
#[derive(Debug)]
pub(super) struct Unique {
    process: [u8; 16],
    next: AtomicU64,
}

impl Unique {
    pub(super) fn new() -> Self {
        // The standard library seeds each map from the operating system's randomness.
        let random = || std::collections::hash_map::RandomState::new().build_hasher().finish();
        let mut process = [0; 16];
        for (slot, byte) in process.iter_mut().zip(
            random()
                .to_be_bytes()
                .into_iter()
                .chain(ahash::RandomState::new().hash_one(random()).to_be_bytes()),
        ) {
            *slot = byte;
        }
        Self { process, next: AtomicU64::new(0) }
    }

    pub(super) fn next(&self) -> Box<str> {
        let mut hasher = Sha256::new();
        hasher.update(self.process);
        hasher.update(self.next.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        hex(&first_half(&hasher.finalize().into())).into()
    }
}

/// Lower-case hexadecimal digits of `bytes`.
fn hex(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(bytes.len() * 2);
    push_hex(&mut digits, bytes.iter());
    digits
}
