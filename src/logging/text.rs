//! Putting untrusted text and times into a log line.
//! Every function appends to a buffer or borrows; none lets a control character through.

use std::borrow::Cow;
use std::io::Write as _;

use crate::clock::UnixMillis;

/// Query parameters whose values are credentials in some well-known API.
const CREDENTIALS: &[&str] = &[
    "access_token",
    "id_token",
    "refresh_token",
    "token",
    "jwt",
    "api_key",
    "apikey",
    "api-key",
    "key",
    "auth",
    "authorization",
    "secret",
    "client_secret",
    "password",
    "passwd",
    "pwd",
    "code",
    "signature",
    "sig",
    "x-amz-signature",
    "session",
    "sid",
];

/// The longest prefix of `text` within `limit` bytes that ends at a character.
pub(super) fn truncated(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    // A character has at most four bytes: one of these four ends is a boundary.
    (0..4).find_map(|back| text.get(..limit.checked_sub(back)?)).unwrap_or_default()
}

/// Appends `text` as a JSON string; DEL and the C1 controls are escaped too, for logs end in terminals.
pub(super) fn json_string(line: &mut Vec<u8>, text: &str) {
    let odd = |c: char| matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}');
    if text.contains(odd) {
        line.push(b'"');
        for c in text.chars() {
            match c {
                '"' | '\\' => line.extend_from_slice(&[b'\\', u8::try_from(c).unwrap_or(b'"')]),
                c if c.is_control() || odd(c) => {
                    let _ = write!(line, "\\u{:04x}", u32::from(c));
                }
                c => line.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        line.push(b'"');
    } else {
        // Writing a string into a vector cannot fail.
        let _ = serde_json::to_writer(line, text);
    }
}

/// Appends `text` bare when it is plain, else quoted and escaped.
pub(super) fn human_value(line: &mut Vec<u8>, text: &str) {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'=');
    if text.bytes().all(plain) {
        line.extend_from_slice(text.as_bytes());
    } else {
        let _ = write!(line, "\"{}\"", text.escape_debug());
    }
}

/// `query` with the values of credential parameters replaced by `***`.
pub(super) fn redacted_query(query: &str) -> Cow<'_, str> {
    if !query.split('&').any(is_credential) {
        return Cow::Borrowed(query);
    }
    let mut text = String::with_capacity(query.len());
    for (position, pair) in query.split('&').enumerate() {
        if position > 0 {
            text.push('&');
        }
        if is_credential(pair) {
            text.push_str(pair.split('=').next().unwrap_or_default());
            text.push_str("=***");
        } else {
            text.push_str(pair);
        }
    }
    Cow::Owned(text)
}

fn is_credential(pair: &str) -> bool {
    let Some((name, _)) = pair.split_once('=') else { return false };
    // `access%5Ftoken` names the same parameter.
    let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
    CREDENTIALS.iter().any(|credential| name.eq_ignore_ascii_case(credential))
}

/// Appends `time` as `2023-11-14T22:13:20.123Z` (RFC 3339, UTC).
pub(super) fn rfc3339(line: &mut Vec<u8>, time: UnixMillis) {
    let seconds = time.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let of_day = seconds % 86_400;
    let _ = write!(
        line,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60,
        time.0 % 1_000
    );
}

/// Year, month and day of the day `days` after 1970-01-01 (Howard Hinnant, `civil_from_days`).
const fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(millis: u64) -> String {
        let mut line = Vec::new();
        rfc3339(&mut line, UnixMillis(millis));
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn times_agree_with_known_dates_and_leap_days() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(time(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(time(4_107_542_400_001), "2100-03-01T00:00:00.001Z");
    }

    #[test]
    fn credentials_are_found_under_any_spelling() {
        assert_eq!(redacted_query("a=1&TOKEN=x&b"), "a=1&TOKEN=***&b");
        assert_eq!(redacted_query("access%5Ftoken=x"), "access%5Ftoken=***");
        assert_eq!(redacted_query("q=token"), "q=token");
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        assert_eq!(truncated("aé", 2), "a");
        assert_eq!(truncated("aé", 3), "aé");
        assert_eq!(truncated("", 0), "");
    }

    #[test]
    fn terminal_controls_are_escaped_in_json() {
        let mut line = Vec::new();
        json_string(&mut line, "a\u{9b}31m\u{7f}\"\\\n");
        let text = String::from_utf8(line).unwrap();
        assert_eq!(text, r#""a\u009b31m\u007f\"\\\u000a""#);
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), "a\u{9b}31m\u{7f}\"\\\n");
    }
}
