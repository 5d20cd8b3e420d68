//! The one canonical spelling of a request path (RFC 3986 section 6.2.2), which is what routes are matched
//! against *and* what the upstream receives. It never repairs a path whose meaning is in doubt: it refuses it.
//!
//! Percent-escapes are decoded once. Letters, digits, `-._~` and the delimiters `!$&'()*+,=:@` are then written
//! literally; every other byte is written as `%XX` in upper case. Duplicate slashes collapse and dot segments
//! are removed, also when they were spelled with escapes. A trailing slash is kept: `/todo` and `/todo/` are
//! two paths. Case is kept.

use std::borrow::Cow;

/// What a gateway or a route tolerates beyond the strict default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `%2F` stays, as `%2F`, inside its segment. The parts around it may not be dot segments.
    pub allow_encoded_slashes: bool,
    /// `;` stays where it stood and is matched literally: `/admin;x=1` is not `/admin`. `..;` stays refused.
    /// Only for upstreams that do not strip parameters before they route.
    pub allow_path_parameters: bool,
}

/// Why a path has no canonical form. Each is answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Problem {
    /// It does not start with `/`.
    #[error("the path must start with a slash")]
    NotRooted,
    /// `%` without two hexadecimal digits.
    #[error("the path holds an invalid percent-escape")]
    InvalidEscape,
    /// `%2F` where it is not allowed, or hiding a dot segment where it is.
    #[error("the path holds an encoded slash")]
    EncodedSlash,
    /// A backslash, literal or escaped: some servers read it as a slash.
    #[error("the path holds a backslash")]
    Backslash,
    /// A byte below 0x20 or 0x7F, literal or escaped.
    #[error("the path holds a control character")]
    Control,
    /// A literal space, `#` or `?`, which cannot be part of a path.
    #[error("the path holds a character that must be escaped")]
    Unescaped,
    /// The decoded bytes are not UTF-8 (overlong forms included).
    #[error("the path is not valid UTF-8")]
    InvalidUtf8,
    /// A segment that is a dot segment, or nothing, but for spaces around it.
    #[error("the path holds a dot segment in disguise")]
    Disguised,
    /// `..` with nothing left to remove.
    #[error("the path climbs above the root")]
    AboveRoot,
    /// `;` or `%3B` where path parameters are not allowed, or hiding a dot segment where they are.
    #[error("the path holds a path parameter")]
    PathParameter,
}

impl Problem {
    /// Label for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotRooted => "not_rooted",
            Self::InvalidEscape => "invalid_escape",
            Self::EncodedSlash => "encoded_slash",
            Self::Backslash => "backslash",
            Self::Control => "control",
            Self::Unescaped => "unescaped",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::Disguised => "disguised",
            Self::AboveRoot => "above_root",
            Self::PathParameter => "path_parameter",
        }
    }

    /// The static text a client may read.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::NotRooted => "The request path must start with a slash",
            Self::InvalidEscape => "The request path holds an invalid percent-escape",
            Self::EncodedSlash => "The request path holds an encoded slash",
            Self::Backslash => "The request path holds a backslash",
            Self::Control => "The request path holds a control character",
            Self::Unescaped => "The request path holds a character that must be escaped",
            Self::InvalidUtf8 => "The request path is not valid UTF-8",
            Self::Disguised => "The request path holds a dot segment in disguise",
            Self::AboveRoot => "The request path climbs above the root",
            Self::PathParameter => "The request path holds a path parameter",
        }
    }
}

/// The canonical form of `path` (without query); borrowed when it arrived canonical.
///
/// The result is ASCII, starts with `/`, and holds no `//` and no dot segment. Normalising it again with the
/// same options gives it back.
///
/// # Errors
/// See [`Problem`].
pub fn normalise(path: &[u8], options: Options) -> Result<Cow<'_, str>, Problem> {
    if path.first() != Some(&b'/') {
        return Err(Problem::NotRooted);
    }
    if is_plain(path)
        && let Ok(text) = std::str::from_utf8(path)
    {
        return Ok(Cow::Borrowed(text));
    }
    let canonical = rewrite(path, options)?;
    match std::str::from_utf8(path) {
        Ok(text) if text == canonical => Ok(Cow::Borrowed(text)),
        _ => Ok(Cow::Owned(canonical)),
    }
}

/// Whether a canonical path holds an encoded slash, which only routes that allow it may take.
pub fn has_encoded_slash(canonical: &str) -> bool {
    canonical.as_bytes().windows(3).any(|window| window == b"%2F")
}

/// The request-target to send on: the canonical path and the query as it came.
pub fn target(canonical: &str, query: Option<&str>) -> String {
    let Some(query) = query else { return canonical.to_owned() };
    let mut target = String::with_capacity(canonical.len() + 1 + query.len());
    target.push_str(canonical);
    target.push('?');
    target.push_str(query);
    target
}

/// What a byte of a path is, once decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Written as itself.
    Literal,
    Slash,
    Percent,
    Semicolon,
    Backslash,
    Control,
    /// A space, `#` or `?`: written as an escape, and refused when it came literally.
    Delimiter,
    /// Written as an escape, however it came.
    Escaped,
}

static CLASSES: [Class; 256] = classes();

const fn classes() -> [Class; 256] {
    let mut table = [Class::Escaped; 256];
    let mut byte: u8 = 0;
    loop {
        #[allow(
            clippy::indexing_slicing,
            reason = "a u8 is always within 256 entries; evaluated at compile time"
        )]
        {
            table[byte as usize] = match byte {
                b'/' => Class::Slash,
                b'%' => Class::Percent,
                b';' => Class::Semicolon,
                b'\\' => Class::Backslash,
                b' ' | b'#' | b'?' => Class::Delimiter,
                0..=0x1F | 0x7F => Class::Control,
                b'-' | b'.' | b'_' | b'~' => Class::Literal,
                b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@' => {
                    Class::Literal
                }
                _ if byte.is_ascii_alphanumeric() => Class::Literal,
                _ => Class::Escaped,
            };
        }
        if byte == u8::MAX {
            return table;
        }
        byte += 1;
    }
}

fn class(byte: u8) -> Class {
    CLASSES.get(usize::from(byte)).copied().unwrap_or(Class::Control)
}

/// The fast path: only literal characters, no empty segment but the last, no dot segment.
fn is_plain(path: &[u8]) -> bool {
    let mut rest = path;
    while let [b'/', tail @ ..] = rest {
        let length = tail.iter().position(|&byte| class(byte) != Class::Literal).unwrap_or(tail.len());
        let (segment, after) = tail.split_at(length);
        match (segment, after) {
            (b"." | b"..", _) | (b"", [_, ..]) => return false,
            (_, []) => return true,
            _ => rest = after,
        }
    }
    false
}

fn rewrite(path: &[u8], options: Options) -> Result<String, Problem> {
    let mut out = Vec::with_capacity(path.len() + 16);
    let mut decoded = Vec::with_capacity(path.len());
    let mut segments = path.split(|&byte| byte == b'/').skip(1).peekable();
    while let Some(raw) = segments.next() {
        let is_last = segments.peek().is_none();
        decoded.clear();
        let start = out.len();
        out.push(b'/');
        encode_segment(raw, options, &mut out, &mut decoded)?;
        // The leading slash of a removed segment stays only when the path ends here: `/a/.` is `/a/`.
        match decoded.as_slice() {
            b"" | b"." => out.truncate(start + usize::from(is_last)),
            b".." => {
                let parent = out.get(..start).and_then(|kept| kept.iter().rposition(|&byte| byte == b'/'));
                let parent = parent.ok_or(Problem::AboveRoot)?;
                out.truncate(parent + usize::from(is_last));
            }
            _ => {}
        }
    }
    String::from_utf8(out).map_err(|_| Problem::InvalidUtf8)
}

/// Decodes one segment once and appends its canonical spelling to `out`.
fn encode_segment(
    raw: &[u8],
    options: Options,
    out: &mut Vec<u8>,
    decoded: &mut Vec<u8>,
) -> Result<(), Problem> {
    let mut has_slash = false;
    let mut rest = raw;
    while let [byte, tail @ ..] = rest {
        let (byte, escaped) = if *byte == b'%' {
            let [high, low, after @ ..] = tail else { return Err(Problem::InvalidEscape) };
            rest = after;
            (hex(*high)? << 4 | hex(*low)?, true)
        } else {
            rest = tail;
            (*byte, false)
        };
        decoded.push(byte);
        match class(byte) {
            Class::Literal => out.push(byte),
            Class::Slash if options.allow_encoded_slashes => {
                has_slash = true;
                push_escape(out, byte);
            }
            Class::Slash => return Err(Problem::EncodedSlash),
            Class::Semicolon if !options.allow_path_parameters => return Err(Problem::PathParameter),
            // An escaped semicolon is data, a literal one a delimiter: with parameters allowed they differ.
            Class::Semicolon if !escaped => out.push(byte),
            Class::Backslash => return Err(Problem::Backslash),
            Class::Control => return Err(Problem::Control),
            Class::Delimiter if !escaped => return Err(Problem::Unescaped),
            Class::Percent | Class::Semicolon | Class::Delimiter | Class::Escaped => push_escape(out, byte),
        }
    }
    if std::str::from_utf8(decoded).is_err() {
        return Err(Problem::InvalidUtf8);
    }
    // A server that decodes `a%2F..%2Fadmin` before it resolves dots would leave the matched route.
    if has_slash && decoded.split(|&byte| byte == b'/').any(|part| matches!(part, b"" | b"." | b"..")) {
        return Err(Problem::EncodedSlash);
    }
    // A server that trims names reads `..%20` as `..`.
    if decoded.contains(&b' ') && matches!(decoded.trim_ascii(), b"" | b"." | b"..") {
        return Err(Problem::Disguised);
    }
    // A server that strips parameters first reads `..;` as `..`.
    if decoded.contains(&b';')
        && decoded
            .split(|&byte| byte == b'/')
            .any(|part| matches!(part.split(|&byte| byte == b';').next(), Some(b"" | b"." | b"..")))
    {
        return Err(Problem::PathParameter);
    }
    Ok(())
}

fn push_escape(out: &mut Vec<u8>, byte: u8) {
    let digit = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 };
    out.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 0x0F)]);
}

fn hex(digit: u8) -> Result<u8, Problem> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(Problem::InvalidEscape),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strict(path: &str) -> Result<String, Problem> {
        normalise(path.as_bytes(), Options::default()).map(Cow::into_owned)
    }

    #[test]
    fn every_spelling_has_one_canonical_form() {
        for (given, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("///a//b///", "/a/b/"),
            ("//admin", "/admin"),
            ("/./admin", "/admin"),
            ("/x/../admin", "/admin"),
            ("/x/%2e%2E/admin", "/admin"),
            ("/x/.%2e/admin", "/admin"),
            ("/x//../admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/%41DMIN", "/ADMIN"),
            ("/ADMIN", "/ADMIN"),
            ("/%2561dmin", "/%2561dmin"),
            ("/%252e%252e/x", "/%252e%252e/x"),
            ("/admin/.", "/admin/"),
            ("/admin/x/..", "/admin/"),
            ("/a/..", "/"),
            ("/a/b/../../c", "/c"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/a%40b:c%3ad", "/a@b:c:d"),
            ("/a%20b", "/a%20b"),
            ("/a%2bb+c", "/a+b+c"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/café", "/caf%C3%A9"),
            ("/a%3fb%23c", "/a%3Fb%23c"),
            ("/{x}|\"", "/%7Bx%7D%7C%22"),
        ] {
            assert_eq!(strict(given).as_deref(), Ok(expected), "{given}");
        }
    }

    #[test]
    fn doubtful_paths_are_refused() {
        for (given, expected) in [
            ("", Problem::NotRooted),
            ("admin", Problem::NotRooted),
            ("\\admin", Problem::NotRooted),
            ("/admin%2f", Problem::EncodedSlash),
            ("/admin%2F", Problem::EncodedSlash),
            ("/x%2f..%2fadmin", Problem::EncodedSlash),
            ("/x/..%5cadmin", Problem::Backslash),
            ("/x\\admin", Problem::Backslash),
            ("/x/..%20/admin", Problem::Disguised),
            ("/%20./admin", Problem::Disguised),
            ("/x/%20/admin", Problem::Disguised),
            ("/admin;x=1", Problem::PathParameter),
            ("/admin%3bx=1", Problem::PathParameter),
            ("/admin%00", Problem::Control),
            ("/admin%0a", Problem::Control),
            ("/admin%7F", Problem::Control),
            ("/admin\t", Problem::Control),
            ("/admin%", Problem::InvalidEscape),
            ("/admin%4", Problem::InvalidEscape),
            ("/admin%zz", Problem::InvalidEscape),
            ("/admin%+1", Problem::InvalidEscape),
            ("/admin%/41", Problem::InvalidEscape),
            ("/ad min", Problem::Unescaped),
            ("/admin#f", Problem::Unescaped),
            ("/admin?x", Problem::Unescaped),
            ("/%c0%ae%c0%ae/admin", Problem::InvalidUtf8),
            ("/%c0%af", Problem::InvalidUtf8),
            ("/%ff", Problem::InvalidUtf8),
            ("/%ed%a0%80", Problem::InvalidUtf8),
            ("/..", Problem::AboveRoot),
            ("/../admin", Problem::AboveRoot),
            ("/a/../../admin", Problem::AboveRoot),
            ("/a/%2e%2e/%2e%2e/admin", Problem::AboveRoot),
        ] {
            assert_eq!(strict(given), Err(expected), "{given}");
        }
    }

    #[test]
    fn an_allowed_encoded_slash_stays_inside_its_segment() {
        let options = Options { allow_encoded_slashes: true, ..Options::default() };
        let path = normalise(b"/files/a%2fb", options);
        assert_eq!(path.as_deref(), Ok("/files/a%2Fb"));
        assert!(has_encoded_slash("/files/a%2Fb"));
        assert!(!has_encoded_slash("/files/a/b%252F"));
        for hidden in ["/x%2f..%2fadmin", "/x/..%2fadmin", "/x%2f.", "/%2fadmin", "/x%2f%2fy"] {
            assert_eq!(normalise(hidden.as_bytes(), options), Err(Problem::EncodedSlash), "{hidden}");
        }
    }

    #[test]
    fn an_allowed_path_parameter_is_part_of_its_segment() {
        let options = Options { allow_path_parameters: true, ..Options::default() };
        for (given, expected) in [("/admin;x=1", "/admin;x=1"), ("/admin%3bx", "/admin%3Bx")] {
            assert_eq!(normalise(given.as_bytes(), options).as_deref(), Ok(expected));
        }
        for hidden in ["/x/..;/admin", "/x/.;y/admin", "/;x/admin", "/x/%2e%2e%3b/admin"] {
            assert_eq!(normalise(hidden.as_bytes(), options), Err(Problem::PathParameter), "{hidden}");
        }
    }

    #[test]
    fn a_canonical_path_is_borrowed() {
        for path in ["/", "/todo/1", "/todo/", "/.hidden", "/a..b/...", "/a%20b", "/caf%C3%A9"] {
            assert!(matches!(normalise(path.as_bytes(), Options::default()), Ok(Cow::Borrowed(_))), "{path}");
        }
    }

    #[test]
    fn the_query_goes_on_as_it_came() {
        assert_eq!(target("/a", None), "/a");
        assert_eq!(target("/a", Some("")), "/a?");
        assert_eq!(target("/a", Some("x=%2f..")), "/a?x=%2f..");
    }

    fn any_options() -> impl Strategy<Value = Options> {
        (any::<bool>(), any::<bool>()).prop_map(|(allow_encoded_slashes, allow_path_parameters)| Options {
            allow_encoded_slashes,
            allow_path_parameters,
        })
    }

    fn tricky_path() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "/", "/", "//", ".", "..", "%2e", "%2E", "%2f", "%5c", "%25", "%61", "a", "admin", ";", "%3b",
            "é", "%c3%a9", "%20", "+", "%2B", ":", "%00", "%", "\\", "~", "%7e", "{", "?",
        ]);
        prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(path in tricky_path(), options in any_options()) {
            if let Ok(once) = normalise(path.as_bytes(), options) {
                let twice = normalise(once.as_bytes(), options);
                prop_assert_eq!(twice.as_deref(), Ok(once.as_ref()));
            }
        }

        #[test]
        fn no_canonical_path_can_mean_another(path in tricky_path(), options in any_options()) {
            if let Ok(path) = normalise(path.as_bytes(), options) {
                prop_assert!(path.starts_with('/') && path.is_ascii());
                let segments: Vec<&str> = path.split('/').skip(1).collect();
                for (index, segment) in segments.iter().enumerate() {
                    prop_assert!(!matches!(*segment, "." | ".."), "{path}");
                    prop_assert!(!segment.is_empty() || index + 1 == segments.len(), "{path}");
                }
                prop_assert!(!path.contains(['\\', '?', '#', ' ']) && !path.contains("%5C") && !path.contains("%00"));
                // One decoding gives what a server behind would see: it must split into the same segments.
                let decoded: Vec<u8> = percent_encoding::percent_decode_str(&path).collect();
                if !options.allow_encoded_slashes {
                    prop_assert_eq!(decoded.split(|b| *b == b'/').count(), segments.len() + 1);
                }
                prop_assert!(decoded.split(|b| *b == b'/').all(|s| s != b".." && s != b"."));
            }
        }

        #[test]
        fn no_input_panics(path in prop::collection::vec(any::<u8>(), 0..64), options in any_options()) {
            let _ = normalise(&path, options);
        }
    }
}
