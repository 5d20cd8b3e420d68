//! `Cache-Control` as written (RFC 9111 section 5.2): quoted arguments, several lines, duplicates.
//! Where a directive is repeated or malformed the most restrictive reading is taken; it decides nothing else.

use http::{HeaderMap, HeaderName, header};

use super::targeted;

/// Largest number of seconds that is kept apart (RFC 9111 section 1.2.2).
pub(super) const MAX_SECONDS: u64 = 1 << 31;

/// Fields without which the rest of a response means something else or lives for another time: a directive that
/// names one of them is read as if it named none.
static ESSENTIAL: [HeaderName; 11] = [
    header::AGE,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::DATE,
    header::EXPIRES,
    header::PRAGMA,
    header::TRANSFER_ENCODING,
    header::VARY,
];

/// What a directive that may name fields speaks of (`private`, `no-cache`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Nothing: the directive is not there.
    #[default]
    Nothing,
    /// These fields only.
    Fields(Vec<HeaderName>),
    /// The whole response; also where field names were meant and cannot be read.
    Whole,
}

impl Reach {
    /// It speaks of the whole response.
    pub const fn is_whole(&self) -> bool {
        matches!(self, Self::Whole)
    }

    /// The fields it speaks of, where it does not speak of the whole.
    pub fn fields(&self) -> &[HeaderName] {
        match self {
            Self::Fields(fields) => fields,
            Self::Nothing | Self::Whole => &[],
        }
    }

    /// What the directive speaks of with this argument. Fields are named in quotes only (RFC 9111 section 5.2.2).
    fn of(argument: Option<Argument<'_>>) -> Self {
        argument.filter(|argument| argument.quoted).map_or(Self::Whole, |argument| Self::named(argument.text))
    }

    /// What the directive speaks of where its argument was the string `names`.
    pub(super) fn named(names: &str) -> Self {
        let mut fields = Vec::new();
        for name in
            names.split(',').map(|name| name.trim_matches([' ', '\t'])).filter(|name| !name.is_empty())
        {
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) if !ESSENTIAL.contains(&name) && !targeted::TARGETS.contains(&&name) => {
                    fields.push(name);
                }
                _ => return Self::Whole,
            }
        }
        if fields.is_empty() { Self::Whole } else { Self::Fields(fields) }
    }

    /// Both this and `other`.
    pub(super) fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (_, Self::Nothing) | (Self::Whole, _) => {}
            (Self::Fields(fields), Self::Fields(more)) => fields.extend(more),
            (slot, other) => *slot = other,
        }
    }
}

/// Which field the directives of a response come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// There is none.
    #[default]
    Nothing,
    /// `Cache-Control`.
    CacheControl,
    /// A targeted field (RFC 9213): it also stands for `Expires` and `Pragma`.
    Targeted,
}

/// Directives of a response (RFC 9111 section 5.2.2); durations in seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "one per directive of the RFC")]
pub struct ResponseDirectives {
    /// Where they come from.
    pub source: Source,
    /// `no-store`.
    pub no_store: bool,
    /// `no-cache`.
    pub no_cache: Reach,
    /// `private`.
    pub private: Reach,
    /// `public`.
    pub public: bool,
    /// `must-revalidate`.
    pub must_revalidate: bool,
    /// `proxy-revalidate`.
    pub proxy_revalidate: bool,
    /// `must-understand`.
    pub must_understand: bool,
    /// `max-age`; zero when malformed.
    pub max_age: Option<u64>,
    /// `s-maxage`; zero when malformed.
    pub s_maxage: Option<u64>,
    /// `stale-while-revalidate` (RFC 5861).
    pub stale_while_revalidate: Option<u64>,
    /// `stale-if-error` (RFC 5861).
    pub stale_if_error: Option<u64>,
}

impl ResponseDirectives {
    /// Whether the response must never be served stale (RFC 9111 section 4.2.4); `s-maxage` says so in a `shared`
    /// cache only (section 5.2.2.10).
    pub const fn forbids_stale(&self, shared: bool) -> bool {
        self.must_revalidate
            || self.no_cache.is_whole()
            || self.proxy_revalidate
            || (shared && self.s_maxage.is_some())
    }

    /// Reads the first of `Tollgate-Cache-Control` and `CDN-Cache-Control` that can be read and says something known (RFC
    /// 9213 section 2.2), otherwise every line of `Cache-Control`.
    pub fn parse(headers: &HeaderMap) -> Self {
        targeted::parse(headers).unwrap_or_else(|| Self::untargeted(headers))
    }

    fn untargeted(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        if headers.contains_key(header::CACHE_CONTROL) {
            found.source = Source::CacheControl;
        }
        let written = each_directive(headers, &header::CACHE_CONTROL, |name, argument| match name {
            "no-store" => found.no_store = true,
            "no-cache" => found.no_cache.add(Reach::of(argument)),
            "private" => found.private.add(Reach::of(argument)),
            "public" => found.public = true,
            "must-revalidate" => found.must_revalidate = true,
            "proxy-revalidate" => found.proxy_revalidate = true,
            "must-understand" => found.must_understand = true,
            "max-age" => shortest(&mut found.max_age, argument),
            "s-maxage" => shortest(&mut found.s_maxage, argument),
            "stale-while-revalidate" => shortest(&mut found.stale_while_revalidate, argument),
            "stale-if-error" => shortest(&mut found.stale_if_error, argument),
            _ => {}
        });
        if written > Written::Well {
            // What permits has to be well written.
            found.public = false;
            found.must_understand = false;
        }
        found.no_store |= written == Written::Unreadable;
        found
    }
}

/// Directives of a request (RFC 9111 section 5.2.1); durations in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// `no-store`.
    pub no_store: bool,
    /// `no-cache`, or `Pragma: no-cache` without `Cache-Control`.
    pub no_cache: bool,
    /// `only-if-cached`.
    pub only_if_cached: bool,
    /// `max-age`; zero when malformed.
    pub max_age: Option<u64>,
    /// `min-fresh`; ignored when malformed.
    pub min_fresh: Option<u64>,
    /// `max-stale`; without an argument any staleness will do.
    pub max_stale: Option<u64>,
    /// `stale-if-error` (RFC 5861 section 4): the most staleness that will do instead of an error; zero when
    /// malformed.
    pub stale_if_error: Option<u64>,
}

impl RequestDirectives {
    /// Reads every `Cache-Control` line of `headers`, or `Pragma` where there is none.
    pub fn parse(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        let written = each_directive(headers, &header::CACHE_CONTROL, |name, argument| match name {
            "no-store" => found.no_store = true,
            "no-cache" => found.no_cache = true,
            "only-if-cached" => found.only_if_cached = true,
            "max-age" => shortest(&mut found.max_age, argument),
            "min-fresh" => found.min_fresh = found.min_fresh.max(argument.and_then(number)),
            "max-stale" => match argument {
                None => found.max_stale = found.max_stale.or(Some(u64::MAX)),
                some => shortest(&mut found.max_stale, some),
            },
            "stale-if-error" => shortest(&mut found.stale_if_error, argument),
            _ => {}
        });
        found.no_store |= written == Written::Unreadable;
        if !headers.contains_key(header::CACHE_CONTROL) {
            each_directive(headers, &header::PRAGMA, |name, _| found.no_cache |= name == "no-cache");
        }
        found
    }
}

/// Seconds of a delta-seconds argument; `None` when it is not one.
pub fn seconds(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // Only an overflow is left to go wrong.
    Some(text.parse().unwrap_or(MAX_SECONDS).min(MAX_SECONDS))
}

/// The argument of a directive, without its quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Argument<'a> {
    text: &'a str,
    quoted: bool,
}

/// How well a field is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Written {
    /// As it should be, as far as it matters.
    #[default]
    Well,
    /// Directives are separated by what is no comma.
    Oddly,
    /// Quotes may hide directives.
    Unreadable,
}

fn number(argument: Argument<'_>) -> Option<u64> {
    seconds(argument.text)
}

fn shortest(slot: &mut Option<u64>, argument: Option<Argument<'_>>) {
    let found = argument.and_then(number).unwrap_or(0);
    *slot = Some(slot.map_or(found, |earlier| earlier.min(found)));
}

/// Calls `visit` with each lower-case directive name and its argument.
fn each_directive(
    headers: &HeaderMap,
    name: &HeaderName,
    mut visit: impl FnMut(&str, Option<Argument<'_>>),
) -> Written {
    let mut written = Written::Well;
    for line in headers.get_all(name) {
        // Bytes outside ASCII only occur inside arguments that nobody reads.
        let line = String::from_utf8_lossy(line.as_bytes());
        let mut rest: &str = &line;
        while !rest.is_empty() {
            let (end, ended) = element_end(rest);
            let (element, after) = rest.split_at(end);
            rest = after.strip_prefix(',').unwrap_or(after);
            if !ended {
                written = Written::Unreadable;
            }
            written = written.max(read_element(element.trim_matches(BLANKS), &mut visit));
        }
    }
    written
}

const BLANKS: [char; 2] = [' ', '\t'];
/// What stands between directives where somebody does not know that it has to be a comma.
const SEPARATORS: [char; 3] = [' ', '\t', ';'];

/// Visits the directives in what should be one of them.
fn read_element(element: &str, visit: &mut impl FnMut(&str, Option<Argument<'_>>)) -> Written {
    // White space around `=` is an error: the name still counts, and a number beside it does not.
    let (names, argument) = match element.split_once('=') {
        Some((names, argument)) => (names.trim_end_matches(BLANKS), Some(unquote(argument))),
        None => (element, None),
    };
    let mut written = Written::Well;
    let mut name = names;
    while let Some((before, after)) = name.split_once(SEPARATORS) {
        written = Written::Oddly;
        visit_name(before, None, visit);
        name = after;
    }
    visit_name(name, argument, visit);
    let Some(Argument { text, quoted: false }) = argument else { return written };
    if text.contains('"') && text.contains(',') {
        return Written::Unreadable;
    }
    for word in text.trim_start_matches(BLANKS).split(SEPARATORS).skip(1).filter(|word| !word.is_empty()) {
        written = Written::Oddly;
        let (name, argument) = match word.split_once('=') {
            Some((name, argument)) => (name, Some(unquote(argument))),
            None => (word, None),
        };
        visit_name(name, argument, visit);
    }
    written
}

fn visit_name(
    name: &str,
    argument: Option<Argument<'_>>,
    visit: &mut impl FnMut(&str, Option<Argument<'_>>),
) {
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        visit(&name.to_ascii_lowercase(), argument);
    } else {
        visit(name, argument);
    }
}

/// Where the list element at the start of `text` ends, at a comma outside quotes, and whether all quotes in it do.
fn element_end(text: &str) -> (usize, bool) {
    let (mut quoted, mut escaped) = (false, false);
    for (position, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return (position, true),
            _ => {}
        }
    }
    (text.len(), !quoted)
}

/// The argument `text` with what is within its quotes, if it is one quoted string.
fn unquote(text: &str) -> Argument<'_> {
    let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    match inner.filter(|inner| is_one_string(inner)) {
        Some(text) => Argument { text, quoted: true },
        None => Argument { text, quoted: false },
    }
}

fn is_one_string(inner: &str) -> bool {
    let mut escaped = false;
    for byte in inner.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return false,
            _ => {}
        }
    }
    !escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn response(lines: &[&str]) -> ResponseDirectives {
        ResponseDirectives::parse(&headers(lines))
    }

    fn headers(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::CACHE_CONTROL, HeaderValue::from_str(line).unwrap());
        }
        headers
    }

    #[test]
    fn arguments_may_be_quoted_and_hide_commas() {
        let found = response(&["Private=\"set-cookie, no-store\", MAX-AGE=\"60\""]);
        assert_eq!(found.private.fields(), ["set-cookie", "no-store"]);
        assert!(!found.no_store);
        assert_eq!(found.max_age, Some(60));
        assert!(response(&["no-cache=\"a\\\", no-store\""]).no_cache.is_whole());
        assert!(!response(&["no-cache=\"a\\\", no-store\""]).no_store);
    }

    #[test]
    fn fields_are_named_in_any_case_and_in_several_directives() {
        let found = response(&["no-cache=\"X-One, , X-TWO\"", "no-cache=\"x-three\", private=\"x-four\""]);
        assert_eq!(found.no_cache.fields(), ["x-one", "x-two", "x-three"]);
        assert_eq!(found.private.fields(), ["x-four"]);
        assert!(!found.no_cache.is_whole() && !found.private.is_whole());
    }

    #[test]
    fn what_names_no_fields_speaks_of_the_whole_response() {
        for whole in [
            "private",
            "private=",
            "private=\"\"",
            "private=\" , \"",
            "private=\"a b\"",
            "private=\"a",
            "private=1",
            "private=true",
            "private=set-cookie",
            "private='set-cookie'",
            "private= \"x-one\"",
            "private=\"x-one\" \"x-two\"",
            "private; max-age=60",
            "max-age=60; private",
            "max-age=60 private=\"x-one\" private",
            "no-transform;private",
            "proxy-revalidate\tPrivate",
            "private=\"a\\\"b\"",
            "private=\"x-one, content-encoding\"",
            "private=\"Vary\"",
            "private =\"a b\"",
            "private=\"x-one\", private",
            "private, private=\"x-one\"",
        ] {
            assert!(response(&[whole]).private.is_whole(), "{whole}");
        }
    }

    #[test]
    fn repeated_and_malformed_directives_read_most_restrictively() {
        assert_eq!(response(&["max-age=60", "max-age=10, max-age=100"]).max_age, Some(10));
        for bad in
            ["max-age", "max-age=", "max-age=-1", "max-age=1.5", "max-age=1 2", "max-age = 1", "max-age='1'"]
        {
            assert_eq!(response(&[bad]).max_age, Some(0), "{bad}");
        }
        assert_eq!(response(&["max-age=99999999999999999999"]).max_age, Some(MAX_SECONDS));
        assert_eq!(response(&["xmax-age=5, max-agex=5, extension"]).max_age, None);
    }

    #[test]
    fn quotes_hide_nothing_that_forbids_to_store() {
        for hidden in [
            "max-age=60, ext=\"a, private",
            "max-age=60, must-understand, ext=\"a, no-store",
            "max-age=60, ext=\"a\\\", private",
            "max-age=60, ext=a\"b, private, other=c\"d",
            "max-age=60, ext=\"a\";b=\"c, private\"",
        ] {
            let found = response(&[hidden]);
            assert!(found.no_store && !found.must_understand, "{hidden}");
            assert!(RequestDirectives::parse(&headers(&[hidden])).no_store, "{hidden}");
        }
        let found = response(&["max-age=60, ext=\"a, no-store\", other=\"b\\\", private\", public"]);
        assert!(!found.no_store && found.public && found.private == Reach::Nothing);
    }

    #[test]
    fn other_separators_than_commas_are_understood_where_they_forbid() {
        for odd in ["no-store; private", "no-cache no-store", "max-age=60; no-store", "a=b\tNo-Store"] {
            assert!(response(&[odd]).no_store, "{odd}");
            assert!(RequestDirectives::parse(&headers(&[odd])).no_store, "{odd}");
        }
        let found = response(&["public; max-age=60; must-revalidate"]);
        assert!(!found.public && found.must_revalidate);
        assert_eq!(found.max_age, Some(0));
        assert!(response(&["no-cache; max-age=60"]).no_cache.is_whole());
    }

    #[test]
    fn request_directives_are_read() {
        let found = RequestDirectives::parse(&headers(&["no-cache, max-stale, min-fresh=5", "max-stale=7"]));
        assert!(found.no_cache);
        assert_eq!((found.max_stale, found.min_fresh), (Some(7), Some(5)));
        let mut pragma = HeaderMap::new();
        pragma.insert(header::PRAGMA, HeaderValue::from_static("No-Cache"));
        assert!(RequestDirectives::parse(&pragma).no_cache);
        pragma.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=5"));
        assert!(!RequestDirectives::parse(&pragma).no_cache);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(line in proptest::collection::vec(32u8..=255, 0..80)) {
            if let Ok(value) = HeaderValue::from_bytes(&line) {
                let mut headers = HeaderMap::new();
                headers.insert(header::CACHE_CONTROL, value);
                ResponseDirectives::parse(&headers);
                RequestDirectives::parse(&headers);
            }
        }
    }
}
