//! Undoing `Content-Encoding` (RFC 9110 section 8.4.1), with as little output as is wanted and no more.

use std::borrow::Cow;
use std::io::Read;

use flate2::bufread::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

use super::NotOpened;

/// Codings one upon the other that are undone.
const MAX_CODINGS: usize = 2;
/// Bytes that the brotli decoder reads at a time.
const BROTLI_INPUT: usize = 4 * 1024;

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

impl Coding {
    fn of(name: &str) -> Option<Self> {
        match &*name.to_ascii_lowercase() {
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            "br" => Some(Self::Brotli),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    fn undo(self, bytes: &[u8], limit: usize) -> Result<Vec<u8>, NotOpened> {
        match self {
            Self::Gzip => read(MultiGzDecoder::new(bytes), limit),
            Self::Deflate => inflate(bytes, limit),
            Self::Brotli if is_wide(bytes) => Err(NotOpened::Coding),
            Self::Brotli => read(brotli::Decompressor::new(bytes, BROTLI_INPUT), limit),
            Self::Zstd => unzstd(bytes, limit),
        }
    }
}

/// The codings of a body in the order they were applied; an error for one that is unknown and for too many.
pub(super) fn of(headers: &HeaderMap) -> Result<Vec<Coding>, NotOpened> {
    let mut codings = Vec::new();
    for line in headers.get_all(CONTENT_ENCODING) {
        let line = line.to_str().map_err(|_| NotOpened::Coding)?;
        let names = line.split(',').map(str::trim);
        for name in names.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity")) {
            codings.push(Coding::of(name).ok_or(NotOpened::Coding)?);
        }
    }
    if codings.len() > MAX_CODINGS { Err(NotOpened::Coding) } else { Ok(codings) }
}

/// What `bytes` were before `codings` were applied, at most `limit` bytes of it, at each step.
pub(super) fn undo<'b>(
    codings: &[Coding],
    bytes: &'b [u8],
    limit: usize,
) -> Result<Cow<'b, [u8]>, NotOpened> {
    let packed = Cow::Borrowed(bytes);
    codings.iter().rev().try_fold(packed, |bytes, coding| coding.undo(&bytes, limit).map(Cow::Owned))
}

/// Whether a brotli stream (RFC 7932 section 9.1) wants a window of more than 4 MiB, which its first bytes alone would
/// have the decoder allocate: 8 or 16 MiB, or by an extension up to 1 GiB.
fn is_wide(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| matches!(first & 0x0f, 0x0d | 0x0f) || first & 0x7f == 0x11)
}

fn read(packed: impl Read, limit: usize) -> Result<Vec<u8>, NotOpened> {
    let mut plain = Vec::new();
    let beyond = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    packed.take(beyond).read_to_end(&mut plain).map_err(|_| NotOpened::Coding)?;
    if plain.len() > limit { Err(NotOpened::TooLarge) } else { Ok(plain) }
}

/// `deflate` is the zlib format (RFC 9110 section 8.4.1.2), and in some servers its content without the wrapping.
fn inflate(bytes: &[u8], limit: usize) -> Result<Vec<u8>, NotOpened> {
    let is_zlib = matches!(bytes, [method, flags, ..]
        if method & 0x0f == 8 && u16::from_be_bytes([*method, *flags]) % 31 == 0);
    let mut inflater = Decompress::new(is_zlib);
    let mut plain = Vec::with_capacity(bytes.len().saturating_mul(4).min(limit.saturating_add(1)));
    loop {
        let consumed = usize::try_from(inflater.total_in()).unwrap_or(usize::MAX);
        let rest = bytes.get(consumed..).unwrap_or_default();
        let status = inflater.decompress_vec(rest, &mut plain, FlushDecompress::None);
        let status = status.map_err(|_| NotOpened::Coding)?;
        if plain.len() > limit {
            return Err(NotOpened::TooLarge);
        }
        let consumed = usize::try_from(inflater.total_in()).unwrap_or(usize::MAX);
        match status {
            Status::StreamEnd if consumed == bytes.len() => return Ok(plain),
            // More room is all it can want where it has seen everything.
            Status::Ok | Status::BufError if plain.len() == plain.capacity() => {
                let wanted = plain.len().max(256);
                plain.reserve_exact(wanted.min(limit.saturating_add(1)));
            }
            Status::Ok | Status::BufError if consumed < bytes.len() => {}
            // It is cut short, or something follows it.
            _ => return Err(NotOpened::Coding),
        }
    }
}

/// All at once, so that no window is held, however large the frame wants it.
fn unzstd(bytes: &[u8], limit: usize) -> Result<Vec<u8>, NotOpened> {
    zstd::bulk::decompress(bytes, limit).map_err(|error| {
        // The library tells it in words only.
        if error.to_string().contains("too small") { NotOpened::TooLarge } else { NotOpened::Coding }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 4_096;

    fn packed(coding: &str, bytes: &[u8]) -> Vec<u8> {
        let level = Compression::default();
        match coding {
            "gzip" => {
                let mut encoder = GzEncoder::new(Vec::new(), level);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            "deflate" => {
                let mut encoder = ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            "raw" => {
                let mut encoder = DeflateEncoder::new(Vec::new(), level);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            "br" => {
                let mut packed = Vec::new();
                brotli::CompressorWriter::new(&mut packed, 4_096, 5, 22).write_all(bytes).unwrap();
                packed
            }
            "zstd" => zstd::bulk::compress(bytes, 3).unwrap(),
            // Without its size in the header.
            "zstd-stream" => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            other => panic!("{other}"),
        }
    }

    const ALL: [(&str, Coding); 6] = [
        ("gzip", Coding::Gzip),
        ("deflate", Coding::Deflate),
        ("raw", Coding::Deflate),
        ("br", Coding::Brotli),
        ("zstd", Coding::Zstd),
        ("zstd-stream", Coding::Zstd),
    ];

    fn text() -> Vec<u8> {
        (0..LIMIT).map(|at| b"{\"access_token\":\"eyJ\"}"[at % 22] ^ u8::from(at % 97 == 0)).collect()
    }

    fn codings(lines: &[&str]) -> Result<Vec<Coding>, NotOpened> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CONTENT_ENCODING, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        of(&headers)
    }

    #[test]
    fn codings_are_read_in_order_and_bounded() {
        for (lines, expected) in [
            (&[][..], Ok(vec![])),
            (&["identity", ""], Ok(vec![])),
            (&["GZIP"], Ok(vec![Coding::Gzip])),
            (&["x-gzip , br"], Ok(vec![Coding::Gzip, Coding::Brotli])),
            (&["deflate", "identity, zstd"], Ok(vec![Coding::Deflate, Coding::Zstd])),
            (&["gzip, gzip, gzip"], Err(NotOpened::Coding)),
            (&["compress"], Err(NotOpened::Coding)),
            (&["gzip;q=1"], Err(NotOpened::Coding)),
            (&["\u{e9}"], Err(NotOpened::Coding)),
        ] {
            assert_eq!(codings(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn every_coding_is_undone_up_to_the_very_limit() {
        let text = text();
        for (name, coding) in ALL {
            for length in [0, 1, LIMIT - 1, LIMIT] {
                let plain = &text[..length];
                assert_eq!(
                    undo(&[coding], &packed(name, plain), LIMIT).as_deref(),
                    Ok(plain),
                    "{name} {length}"
                );
            }
            let beyond = packed(name, &[text.as_slice(), b"x"].concat());
            assert_eq!(undo(&[coding], &beyond, LIMIT), Err(NotOpened::TooLarge), "{name}");
        }
        assert_eq!(undo(&[], &text, 1).as_deref(), Ok(&*text), "the input was bounded before");
    }

    #[test]
    fn two_codings_are_undone_from_the_outside_in() {
        let text = text();
        for (inner, first) in ALL {
            for (outer, second) in ALL {
                let bytes = packed(outer, &packed(inner, &text));
                assert_eq!(undo(&[first, second], &bytes, LIMIT).as_deref(), Ok(&*text), "{inner}, {outer}");
            }
        }
        let members = [packed("gzip", b"{}"), packed("gzip", b" ")].concat();
        assert_eq!(undo(&[Coding::Gzip], &members, LIMIT).as_deref(), Ok(&b"{} "[..]));
    }

    #[test]
    fn bombs_burst_at_the_limit() {
        let zeros = vec![0; 8 * 1024 * 1024];
        for (name, coding) in ALL {
            let bomb = packed(name, &zeros);
            assert_eq!(undo(&[coding], &bomb, LIMIT), Err(NotOpened::TooLarge), "{name}");
            assert_eq!(
                undo(&[coding, coding], &packed(name, &bomb), 1 << 20),
                Err(NotOpened::TooLarge),
                "{name}"
            );
        }
    }

    #[test]
    fn windows_of_brotli_are_bounded() {
        let plain = text();
        // So that the encoder writes down the window that it is told.
        for (bits, is_taken) in (10..=22).map(|bits| (bits, true)).chain([(23, false), (24, false)]) {
            let mut packed = Vec::new();
            let mut encoder = brotli::CompressorWriter::new(&mut packed, 4_096, 5, bits);
            encoder.write_all(&plain).unwrap();
            encoder.flush().unwrap();
            drop(encoder);
            assert_eq!(undo(&[Coding::Brotli], &packed, LIMIT).is_ok(), is_taken, "{bits}");
        }
        // The extension: 30 bits, and nothing in it.
        assert_eq!(undo(&[Coding::Brotli], &[0x11, 30, 3], LIMIT), Err(NotOpened::Coding));
    }

    #[test]
    fn what_is_cut_short_or_wrong_is_refused() {
        let text = text();
        for (name, coding) in ALL {
            let whole = packed(name, &text);
            for length in 0..whole.len() {
                let cut = undo(&[coding], &whole[..length], LIMIT);
                // Nothing is also what an empty zstd stream is.
                assert!(
                    cut == Err(NotOpened::Coding) || (length == 0 && cut.as_deref() == Ok(&[])),
                    "{name} {length}: {cut:?}"
                );
            }
            if coding != Coding::Brotli {
                let longer = [whole.as_slice(), b"rubbish"].concat();
                assert_eq!(undo(&[coding], &longer, LIMIT), Err(NotOpened::Coding), "{name}");
            }
            assert_eq!(undo(&[coding], b"\xff{\"a\":1}", LIMIT), Err(NotOpened::Coding), "{name}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_nor_grow_beyond_the_limit(bytes in any::<Vec<u8>>()) {
            for (_, coding) in ALL {
                if let Ok(plain) = undo(&[coding], &bytes, 64) {
                    prop_assert!(plain.len() <= 64);
                }
            }
        }
    }
}
