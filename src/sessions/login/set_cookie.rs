//! `Set-Cookie` as browsers read it (RFC 6265 section 5.2): which value a line gives to a cookie, if any.

use crate::clock::UnixMillis;

/// The value that `line` sets the cookie `name` to, without its quotes; `None` when the line is about another cookie
/// or deletes this one at `now`.
pub(super) fn value<'l>(line: &'l [u8], name: &str, now: UnixMillis) -> Option<&'l [u8]> {
    let mut parts = line.split(|byte| *byte == b';');
    let (key, value) = halves(parts.next()?);
    let value = value?;
    if key != name.as_bytes() {
        return None;
    }
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    let (mut seconds_left, mut ends) = (None, None);
    for (attribute, value) in parts.map(halves) {
        // The last one that can be read counts.
        let text = value.and_then(|value| std::str::from_utf8(value).ok());
        if attribute.eq_ignore_ascii_case(b"max-age") {
            seconds_left = text.and_then(lasts).or(seconds_left);
        } else if attribute.eq_ignore_ascii_case(b"expires") {
            ends = text.and_then(UnixMillis::from_http_date).or(ends);
        }
    }
    let lives = match (seconds_left, ends) {
        // It goes before `Expires`.
        (Some(lasts), _) => lasts,
        (None, Some(ends)) => ends > now,
        (None, None) => true,
    };
    (lives && !value.is_empty()).then_some(value)
}

/// Name and value around the first `=`.
fn halves(part: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut halves = part.splitn(2, |byte| *byte == b'=');
    (halves.next().unwrap_or_default().trim_ascii(), halves.next().map(<[u8]>::trim_ascii))
}

/// Whether a cookie with this `Max-Age` lives on; `None` when the value is not one.
fn lasts(max_age: &str) -> Option<bool> {
    let digits = max_age.strip_prefix('-').unwrap_or(max_age);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.len() == max_age.len() && digits.bytes().any(|byte| byte != b'0'))
}
