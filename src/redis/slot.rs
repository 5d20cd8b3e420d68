//! Where a key lives: the hash slots of Redis Cluster. It knows nothing of nodes.

/// Slots of a cluster.
pub(super) const SLOTS: u16 = 16_384;

/// What a key's home is decided by. Keys of one shard can take part in one command, script or pipeline. With a
/// single Redis and with Sentinel there is one shard only; in Cluster it is the hash slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shard(u16);

impl Shard {
    /// The only shard there is outside Cluster.
    pub(super) const ONLY: Self = Self(0);

    /// The hash slot of `key` in Cluster.
    pub(super) fn of(key: &[u8]) -> Self {
        Self(slot(key))
    }

    /// The slot, below [`SLOTS`].
    pub(super) const fn slot(self) -> u16 {
        self.0
    }
}

/// The slot of a key: of what stands in its first `{…}`, or of all of it where there is no such thing.
pub(super) fn slot(key: &[u8]) -> u16 {
    crc16(hashed(key)) % SLOTS
}

fn hashed(key: &[u8]) -> &[u8] {
    let position = |bytes: &[u8], wanted: u8| bytes.iter().position(|byte| *byte == wanted);
    let tag = position(key, b'{').and_then(|open| {
        let rest = key.get(open + 1..)?;
        rest.get(..position(rest, b'}')?)
    });
    tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

/// CRC-16/XMODEM, a byte at a time.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        let index = usize::from((crc >> 8) as u8 ^ byte);
        crc << 8 ^ TABLE.get(index).copied().unwrap_or_default()
    })
}

static TABLE: [u16; 256] = table();

#[allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "evaluated by the compiler")]
const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-16/XMODEM and `CLUSTER KEYSLOT` of a Redis 7.
    #[test]
    fn slots_are_those_of_redis() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (key, expected) in
            [("", 0), ("foo", 12_182), ("{foo}bar", 12_182), ("bar", 5_061), ("user:1000", 1_649)]
        {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }

    #[test]
    fn only_the_first_tag_counts_and_an_empty_one_does_not() {
        assert_eq!(hashed(b"a{b}{c}"), b"b");
        assert_eq!(hashed(b"a{{b}}"), b"{b");
        assert_eq!(hashed(b"a{}{b}"), b"a{}{b}");
        assert_eq!(hashed(b"a{b"), b"a{b");
        assert_eq!(hashed(b"}{"), b"}{");
    }
}
