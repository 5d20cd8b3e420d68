//! The head's bytes as they came over HTTP/1: line endings, folding, names and the framing lines that a lenient
//! parser mends before anyone sees them. It never interprets a value.

use super::problem::HeadProblem;

/// Refuses what RFC 9112 forbids and the parser in front tolerates: bare CR or LF, folded lines, a name that is
/// not a token or is followed by a space, and Content-Length beside Transfer-Encoding.
///
/// # Errors
/// [`HeadProblem::LineEnding`], [`HeadProblem::HeaderName`], [`HeadProblem::HeaderValue`],
/// [`HeadProblem::LengthAndEncoding`], [`HeadProblem::ContentLength`] or [`HeadProblem::TransferEncoding`].
pub(super) fn inspect(head: &[u8]) -> Result<(), HeadProblem> {
    let mut rest = head;
    // RFC 9112 section 2.2: an empty line before the request line is ignored.
    while let Some(after) = rest.strip_prefix(b"\r\n") {
        rest = after;
    }
    let (_request_line, mut rest) = split_line(rest)?;
    let (mut lengths, mut encodings) = (0_u32, 0_u32);
    while !rest.is_empty() {
        let (line, after) = split_line(rest)?;
        rest = after;
        if line.is_empty() {
            break;
        }
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return Err(HeadProblem::LineEnding);
        }
        let colon = line.iter().position(|&byte| byte == b':').ok_or(HeadProblem::HeaderName)?;
        let (name, value) = line.split_at_checked(colon).ok_or(HeadProblem::HeaderName)?;
        if name.is_empty() || !name.iter().all(|&byte| is_token(byte)) {
            return Err(HeadProblem::HeaderName);
        }
        if value.contains(&0) {
            return Err(HeadProblem::HeaderValue);
        }
        lengths += u32::from(name.eq_ignore_ascii_case(b"content-length"));
        encodings += u32::from(name.eq_ignore_ascii_case(b"transfer-encoding"));
    }
    match (lengths, encodings) {
        (0 | 1, 0) | (0, 1) => Ok(()),
        (2.., 0) => Err(HeadProblem::ContentLength),
        (0, _) => Err(HeadProblem::TransferEncoding),
        _ => Err(HeadProblem::LengthAndEncoding),
    }
}

/// The line before the first LF, which must be the end of a CRLF and the only place of a CR.
fn split_line(text: &[u8]) -> Result<(&[u8], &[u8]), HeadProblem> {
    let feed = text.iter().position(|&byte| byte == b'\n').ok_or(HeadProblem::LineEnding)?;
    let (line, rest) = text.split_at_checked(feed).ok_or(HeadProblem::LineEnding)?;
    let line = line.strip_suffix(b"\r").ok_or(HeadProblem::LineEnding)?;
    if line.contains(&b'\r') {
        return Err(HeadProblem::LineEnding);
    }
    Ok((line, rest.get(1..).unwrap_or_default()))
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}
