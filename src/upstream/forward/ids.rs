//! Ids that tie log lines together: the request id and the W3C trace context. They are unique, not secret, and
//! taken over only from trusted proxies.

use http::{HeaderMap, HeaderValue};

use crate::header_names::{TRACEPARENT, X_REQUEST_ID};

/// Longest request id taken over from a trusted proxy, in bytes.
pub const MAX_REQUEST_ID: usize = 128;

/// The id of a request: a trusted proxy's single one of 1–128 visible ASCII characters, else a new one.
pub fn request_id(headers: &HeaderMap, peer_trusted: bool) -> HeaderValue {
    if peer_trusted {
        let mut lines = headers.get_all(&X_REQUEST_ID).iter();
        if let (Some(id), None) = (lines.next(), lines.next())
            && (1..=MAX_REQUEST_ID).contains(&id.len())
            && id.as_bytes().iter().all(u8::is_ascii_graphic)
        {
            return id.clone();
        }
    }
    let id = new_request_id();
    // Hexadecimal digits are always a value.
    HeaderValue::from_bytes(&id).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

/// 32 random hexadecimal digits, from a generator of this thread.
pub fn new_request_id() -> [u8; 32] {
    hex(fastrand::u128(..))
}

/// A `traceparent` value (W3C Trace Context, version 00).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    text: [u8; Self::LENGTH],
    continued: bool,
}

impl TraceParent {
    /// `00-` 32 digits `-` 16 digits `-` 2 digits.
    const LENGTH: usize = 55;

    /// The trace of a request: a trusted proxy's valid one as it is, else a new and sampled one.
    pub fn of(headers: &HeaderMap, peer_trusted: bool) -> Self {
        if peer_trusted {
            let mut lines = headers.get_all(&TRACEPARENT).iter();
            if let (Some(line), None) = (lines.next(), lines.next())
                && let Some(trace) = Self::parse(line.as_bytes())
            {
                return trace;
            }
        }
        Self::fresh()
    }

    /// A trace that starts here.
    pub fn fresh() -> Self {
        let trace: [u8; 32] = hex(fastrand::u128(1..));
        let parent: [u8; 16] = hex(u128::from(fastrand::u64(1..)));
        Self::assemble(&trace, &parent, *b"01", false)
    }

    /// Parses version 00, and a later version as if it were 00; upper case and all-zero ids are invalid.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (head, tail) = text.split_at_checked(Self::LENGTH)?;
        let version = head.get(..2)?;
        let is_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let is_whole = tail.is_empty() || (version != b"00" && tail.first() == Some(&b'-'));
        if !is_hex(version) || version == b"ff" || !is_whole {
            return None;
        }
        let mut parts = head.get(3..)?.split(|&byte| byte == b'-');
        let (trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?);
        if head.get(2) != Some(&b'-')
            || parts.next().is_some()
            || ![trace, parent, flags].into_iter().all(is_hex)
        {
            return None;
        }
        let (trace, parent, flags) =
            (trace.try_into().ok()?, parent.try_into().ok()?, flags.try_into().ok()?);
        if trace == [b'0'; 32] || parent == [b'0'; 16] {
            return None;
        }
        Some(Self::assemble(&trace, &parent, flags, true))
    }

    /// The same trace with a new parent id: what a span of the gateway's own hands on.
    #[must_use]
    pub fn child(&self) -> Self {
        let mut child = *self;
        let parent: [u8; 16] = hex(u128::from(fastrand::u64(1..)));
        if let Some(slot) = child.text.get_mut(36..52) {
            slot.copy_from_slice(&parent);
        }
        child
    }

    /// The header value.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text).unwrap_or("")
    }

    /// The 32 digits that all spans of the trace share.
    pub fn trace_id(&self) -> &str {
        self.as_str().get(3..35).unwrap_or("")
    }

    /// Whether it came from a trusted proxy, so that its `tracestate` goes on too.
    pub fn is_continued(&self) -> bool {
        self.continued
    }

    fn assemble(trace: &[u8; 32], parent: &[u8; 16], flags: [u8; 2], continued: bool) -> Self {
        let mut text = [b'-'; Self::LENGTH];
        let parts: [(usize, &[u8]); 4] = [(0, b"00"), (3, trace), (36, parent), (53, &flags)];
        for (at, part) in parts {
            if let Some(slot) = text.get_mut(at..at + part.len()) {
                slot.copy_from_slice(part);
            }
        }
        Self { text, continued }
    }
}

/// The lowest digits of `bits`, in lower case.
fn hex<const N: usize>(bits: u128) -> [u8; N] {
    let mut out = [b'0'; N];
    let mut rest = bits;
    for slot in out.iter_mut().rev() {
        let nibble = u8::try_from(rest & 0xF).unwrap_or(0);
        *slot = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
        rest >>= 4;
    }
    out
}
