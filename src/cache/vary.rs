//! Variants (RFC 9111 section 4.1): which request headers select one, and how many an object may have.
//! Values are normalised only where the meaning cannot change.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, header};
use parking_lot::Mutex;
use pingora::cache::VarianceBuilder;
use pingora::cache::key::HashBinary;

use crate::clock::{UnixMillis, millis};
use crate::header_names::{FORWARDED, TRACEPARENT, TRACESTATE, X_FORWARDED_FOR, X_REAL_IP, X_REQUEST_ID};

/// More header names in one `Vary` than this are not followed.
const MAX_NAMES: usize = 16;
/// Objects whose variants are counted at the same time.
const COUNTED_OBJECTS: usize = 16_384;
/// How long a variant that is not stored again keeps its place among those of its object.
const PLACE_HELD: Duration = Duration::from_secs(60);

/// What a response's `Vary` amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// No more names than the cache follows.
    Followed,
    /// `*`, something that is not a header name, or a header that the gateway writes.
    Any,
    /// Too many names.
    TooWide,
}

/// What the gateway writes into every request: two that look alike to the cache need not to the upstream. What it
/// writes of scheme and host is in the key.
static WRITTEN: [&HeaderName; 6] =
    [&X_FORWARDED_FOR, &X_REAL_IP, &FORWARDED, &X_REQUEST_ID, &TRACEPARENT, &TRACESTATE];

/// Measures the `Vary` of a response; `written` are further headers that the gateway writes itself.
pub fn width(response: &HeaderMap, written: &[HeaderName]) -> Width {
    let mut count = 0;
    for name in names(response) {
        let Some(name) = name else { return Width::Any };
        if WRITTEN.contains(&&name) || written.contains(&name) {
            return Width::Any;
        }
        count += 1;
    }
    if count > MAX_NAMES { Width::TooWide } else { Width::Followed }
}

/// The variant that `request` selects, `None` when nothing does: for `cache_vary_filter`.
pub fn variance(declared: &[HeaderName], response: &HeaderMap, request: &HeaderMap) -> Option<HashBinary> {
    let mut variance = VarianceBuilder::new();
    // Backends that compress without saying `Vary` must not have their encoding forced on everybody.
    let encoded = response.contains_key(header::CONTENT_ENCODING).then_some(header::ACCEPT_ENCODING);
    // Nor must what one site may read be handed to another.
    let allowed = allows_one_origin(response).then_some(header::ORIGIN);
    for name in declared.iter().cloned().chain(names(response).flatten()).chain(encoded).chain(allowed) {
        let mut value = selecting(&name, response, request);
        add_spellings(&mut value, &name, request);
        variance.add_owned_name_value(name.as_str().to_owned(), value);
    }
    variance.finalize()
}

/// Whether the response speaks to one origin only (Fetch, section 3.2.3).
fn allows_one_origin(response: &HeaderMap) -> bool {
    response
        .get(header::ACCESS_CONTROL_ALLOW_ORIGIN)
        .is_some_and(|origin| origin.as_bytes().trim_ascii() != b"*")
}

/// Names in `Vary`; `None` for `*` and for what is no name.
fn names(response: &HeaderMap) -> impl Iterator<Item = Option<HeaderName>> + '_ {
    response
        .get_all(header::VARY)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.is_empty())
        .map(|name| if name == b"*" { None } else { HeaderName::from_bytes(name).ok() })
}

/// What `name` says in `request`; a leading byte tells the forms apart.
fn selecting(name: &HeaderName, response: &HeaderMap, request: &HeaderMap) -> Vec<u8> {
    if *name == header::ACCEPT_ENCODING
        && let Some(acceptable) = acceptable_codings(response, request)
    {
        return vec![b'=', acceptable];
    }
    normalised(name, request)
}

/// Servers that hand fields on as variables of an environment (CGI, WSGI) take `X_Lang` for `X-Lang`. Where
/// there are such spellings of `name`, all lines count, as they came; no name or value has a zero byte.
fn add_spellings(value: &mut Vec<u8>, name: &HeaderName, request: &HeaderMap) {
    if !request.keys().any(|other| other != name && is_spelling(name, other)) {
        return;
    }
    for (other, line) in request.iter().filter(|(other, _)| is_spelling(name, other)) {
        for text in [other.as_str().as_bytes(), line.as_bytes()] {
            value.push(0);
            value.extend_from_slice(text);
        }
    }
}

/// Whether two names differ in nothing but marks, such as `-`, `_` and `.`.
fn is_spelling(name: &HeaderName, other: &HeaderName) -> bool {
    let (name, other) = (name.as_str().as_bytes(), other.as_str().as_bytes());
    let same = |(a, b): (&u8, &u8)| a == b || !(a.is_ascii_alphanumeric() || b.is_ascii_alphanumeric());
    name.len() == other.len() && name.iter().zip(other).all(same)
}

/// The codings that origins use (RFC 9110 section 8.4.1, RFC 7932, RFC 8878); the last one means none.
const CODINGS: [&[u8]; 5] = [b"gzip", b"br", b"zstd", b"deflate", b"identity"];

fn coding(name: &[u8]) -> Option<usize> {
    let name = if name.eq_ignore_ascii_case(b"x-gzip") { b"gzip" } else { name };
    CODINGS.iter().position(|known| known.eq_ignore_ascii_case(name))
}

/// A bit for each of [`CODINGS`] that `request` accepts (RFC 9110 section 12.5.3): two requests that accept the same
/// ones may get each other's response, whatever else they name and prefer. `None` where the field is absent, and
/// where `response` has a coding beyond those: then its every word counts.
fn acceptable_codings(response: &HeaderMap, request: &HeaderMap) -> Option<u8> {
    let mut listed = [None; CODINGS.len()];
    let mut others = None;
    let mut lines = request.get_all(header::ACCEPT_ENCODING).iter().peekable();
    lines.peek()?;
    for element in lines.flat_map(|line| line.as_bytes().split(|b| *b == b',')) {
        let mut parts = element.split(|b| *b == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        let accepted = !parts.any(is_zero_weight);
        let place = if name == b"*" {
            Some(&mut others)
        } else {
            coding(name).and_then(|place| listed.get_mut(place))
        };
        if let Some(place) = place {
            // Named twice, it counts as accepted.
            *place = Some(place.unwrap_or(false) || accepted);
        }
    }
    let accepts = |place: usize| {
        let said = listed.get(place).copied().flatten().or(others);
        said.unwrap_or(place == CODINGS.len() - 1)
    };
    let mut used = response
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.is_empty());
    let fits = used.all(|name| coding(name).is_some_and(accepts));
    let bits = (0..CODINGS.len()).fold(0, |bits, place| bits << 1 | u8::from(accepts(place)));
    fits.then_some(bits)
}

/// `q=0` and its like.
fn is_zero_weight(parameter: &[u8]) -> bool {
    let mut halves = parameter.splitn(2, |b| *b == b'=').map(<[u8]>::trim_ascii);
    let (name, weight) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
    name.eq_ignore_ascii_case(b"q")
        && weight.first() == Some(&b'0')
        && weight.iter().all(|b| matches!(b, b'0' | b'.'))
}

/// All values of `name`: list elements trimmed and joined; codings of `Accept-Encoding` also lower-case and
/// sorted, ranges of `Accept-Language` lower-case; cookies joined as they are sent on. A line with quotes counts as it is.
fn normalised(name: &HeaderName, request: &HeaderMap) -> Vec<u8> {
    let mut lines = request.get_all(name).iter().peekable();
    if lines.peek().is_none() {
        return vec![b'-'];
    }
    let list =
        *name == header::ACCEPT_ENCODING || *name == header::ACCEPT || *name == header::ACCEPT_LANGUAGE;
    let mut elements: Vec<Vec<u8>> = Vec::new();
    for line in lines {
        // A comma within quotes separates nothing.
        if list && !line.as_bytes().contains(&b'"') {
            let split = line.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
            elements.extend(split.filter(|e| !e.is_empty()).map(<[u8]>::to_vec));
        } else {
            elements.push(line.as_bytes().trim_ascii().to_vec());
        }
    }
    if *name == header::ACCEPT_ENCODING {
        for element in &mut elements {
            if !element.contains(&b'"') {
                element.retain(|b| *b != b' ' && *b != b'\t');
            }
            element.make_ascii_lowercase();
        }
        elements.sort_unstable();
        elements.dedup();
    }
    // Language ranges have no case (RFC 4647 section 2); their order is a preference to many backends.
    if *name == header::ACCEPT_LANGUAGE {
        for element in &mut elements {
            element.make_ascii_lowercase();
        }
    }
    let mut value = vec![b'+'];
    if *name == header::COOKIE {
        elements.retain(|line| !line.is_empty());
        value.extend(elements.join(&b"; "[..]));
    } else {
        value.extend(elements.join(&b","[..]));
    }
    value
}

/// Counts variants per object, so that a client cannot fill the cache by varying a header. A place that was not asked for
/// in the last minute goes to a newcomer, so that a client cannot take all of them for good either.
#[derive(Debug)]
pub struct Variants {
    seen: quick_cache::sync::Cache<u128, Arc<Mutex<Vec<Place>>>>,
    max: usize,
}

/// A variant, and when it was last stored.
#[derive(Debug)]
struct Place {
    variant: u64,
    at: UnixMillis,
}

impl Variants {
    /// At most `max` variants per object.
    pub fn new(max: usize) -> Self {
        Self { seen: quick_cache::sync::Cache::new(COUNTED_OBJECTS), max }
    }

    /// Whether `variance` of `object` may be stored; it counts from now on.
    pub fn admit(&self, object: u128, variance: &HashBinary, now: UnixMillis) -> bool {
        let variant = variance.iter().take(8).fold(0_u64, |half, byte| half << 8 | u64::from(*byte));
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        let Ok(seen) = self.seen.get_or_insert_with(&object, fresh);
        let mut seen = seen.lock();
        if let Some(place) = seen.iter_mut().find(|place| place.variant == variant) {
            place.at = now;
            return true;
        }
        if seen.len() < self.max {
            seen.push(Place { variant, at: now });
            return true;
        }
        let oldest = seen.iter_mut().min_by_key(|place| place.at);
        let Some(oldest) = oldest.filter(|oldest| now.millis_since(oldest.at) >= millis(PLACE_HELD)) else {
            return false;
        };
        *oldest = Place { variant, at: now };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn of(vary: &'static str, request: &[(&'static str, &'static str)]) -> Option<HashBinary> {
        variance(&[], &headers(&[("vary", vary)]), &headers(request))
    }

    #[test]
    fn nothing_to_vary_on_is_no_variant() {
        assert_eq!(variance(&[], &HeaderMap::new(), &headers(&[("accept", "a")])), None);
        let declared = [header::ACCEPT_LANGUAGE];
        assert!(variance(&declared, &HeaderMap::new(), &HeaderMap::new()).is_some());
    }

    #[test]
    fn only_named_headers_select_a_variant() {
        let (en, de) = (("accept-language", "en"), ("accept-language", "de"));
        assert_eq!(of("Accept-Language", &[en, ("x", "1")]), of("accept-language", &[en]));
        assert_ne!(of("accept-language", &[en]), of("accept-language", &[de]));
        assert_ne!(of("accept-language", &[en]), of("accept-language", &[]));
        assert_eq!(of("accept-language", &[en]), of("accept-language", &[("accept-language", "EN")]));
        assert_ne!(of("x", &[("x", "")]), of("x", &[]));
        assert_ne!(of("x", &[("x", "1"), ("x", "2")]), of("x", &[("x", "1")]));
    }

    #[test]
    fn spellings_of_one_accept_encoding_share_a_variant() {
        let one = of("accept-encoding", &[("accept-encoding", "gzip, br;q=0.5")]);
        let two = of("accept-encoding", &[("accept-encoding", "BR; q=0.5"), ("accept-encoding", "gzip")]);
        assert_eq!(one, two);
        assert_ne!(one, of("accept-encoding", &[("accept-encoding", "gzip, br;q=0")]));
    }

    #[test]
    fn what_is_acceptable_selects_the_variant_and_nothing_else_in_accept_encoding() {
        let coded = |coding: &'static str, accepted: &'static str| {
            let response = headers(&[("vary", "accept-encoding"), ("content-encoding", coding)]);
            variance(&[], &response, &headers(&[("accept-encoding", accepted)]))
        };
        let plain = |accepted| of("accept-encoding", &[("accept-encoding", accepted)]);
        for (one, other) in [
            ("x1", "x2"),
            ("x1", "identity"),
            ("", "*;q=0, identity"),
            ("gzip;q=0.1, br", "br;q=0.001,gzip;q=1.0, x7"),
            ("x-gzip", "GZIP"),
            ("*", "gzip, br, zstd, deflate"),
            ("gzip, br;q=0", "gzip, br; q=0.000"),
        ] {
            assert_eq!(plain(one), plain(other), "{one} {other}");
        }
        for (one, other) in [
            ("gzip", "gzip;q=0"),
            ("gzip", "br"),
            ("*", "*;q=0"),
            ("identity", "identity;q=0"),
            ("*, gzip;q=0", "*"),
            ("gzip", "gzip, br"),
        ] {
            assert_ne!(plain(one), plain(other), "{one} {other}");
        }
        assert_ne!(plain("identity"), of("accept-encoding", &[]));
        // What is coded in another way, or in one that was not acceptable, is only for those who said the very same.
        for coding in ["dcb", "gzip, dcb", "zstd"] {
            assert_ne!(coded(coding, "gzip, x1"), coded(coding, "gzip, x2"), "{coding}");
            assert_ne!(coded(coding, "gzip, x1"), plain("gzip"), "{coding}");
        }
        assert_eq!(coded("gzip", "gzip, x1"), coded("gzip", "gzip, x2"));
    }

    #[test]
    fn other_spellings_of_a_selecting_name_select_too() {
        let (de, evil) = (("x-lang", "de"), ("x_lang", "evil"));
        for vary in ["x-lang", "x_lang"] {
            assert_ne!(of(vary, &[evil]), of(vary, &[]), "{vary}");
            assert_ne!(of(vary, &[evil]), of(vary, &[("x-lang", "evil")]), "{vary}");
            assert_ne!(of(vary, &[de, evil]), of(vary, &[de]), "{vary}");
            assert_ne!(of(vary, &[de, evil]), of(vary, &[evil, de]), "{vary}");
            assert_ne!(of(vary, &[("x.lang", "evil")]), of(vary, &[]), "{vary}");
            assert_eq!(of(vary, &[("x_lang_", "evil")]), of(vary, &[]), "{vary}");
        }
        let declared = [HeaderName::from_static("x-lang")];
        let of = |request: &[_]| variance(&declared, &HeaderMap::new(), &headers(request));
        assert_ne!(of(&[evil]), of(&[]));
    }

    #[test]
    fn blanks_within_quotes_count() {
        let accept = |value| of("accept", &[("accept", value)]);
        assert_ne!(accept("a/b;p=\"x, y\""), accept("a/b;p=\"x,y\""));
        assert_eq!(accept("a/b;p=x, c/d"), accept("a/b;p=x,c/d"));
    }

    #[test]
    fn cookies_count_as_they_are_sent_on() {
        let one = of("cookie", &[("cookie", "a=1"), ("cookie", "b=2")]);
        assert_eq!(one, of("cookie", &[("cookie", "a=1; b=2")]));
        assert_ne!(one, of("cookie", &[("cookie", "a=1,b=2")]));
    }

    #[test]
    fn an_encoded_response_varies_even_if_it_does_not_say_so() {
        let response = headers(&[("content-encoding", "gzip")]);
        let (gzip, none) = (headers(&[("accept-encoding", "gzip")]), HeaderMap::new());
        assert_ne!(variance(&[], &response, &gzip), variance(&[], &response, &none));
    }

    #[test]
    fn a_response_for_one_origin_varies_even_if_it_does_not_say_so() {
        let (ours, theirs) = (headers(&[("origin", "https://a")]), headers(&[("origin", "https://b")]));
        let silent = HeaderMap::new();
        let of =
            |allowed, request| variance(&[], &headers(&[("access-control-allow-origin", allowed)]), request);
        assert_ne!(of("https://a", &ours), of("https://a", &theirs));
        assert_ne!(of("null", &ours), of("null", &silent));
        assert_eq!(of("*", &ours), None);
    }

    #[test]
    fn nothing_varies_by_what_the_gateway_writes() {
        let width = |vary| width(&headers(&[("vary", vary)]), &[HeaderName::from_static("x-tenant")]);
        for written in ["X-Forwarded-For", "x-request-id", "accept, traceparent", "X-Tenant"] {
            assert_eq!(width(written), Width::Any, "{written}");
        }
        assert_eq!(width("x-forwarded-proto, cookie, authorization"), Width::Followed);
    }

    #[test]
    fn unfollowable_vary_is_recognised() {
        let width = |response: &HeaderMap| width(response, &[]);
        assert_eq!(width(&headers(&[("vary", "accept"), ("vary", "a, *")])), Width::Any);
        assert_eq!(width(&headers(&[("vary", "a b")])), Width::Any);
        assert_eq!(width(&headers(&[("vary", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q")])), Width::TooWide);
        assert_eq!(width(&headers(&[("vary", "a,,b")])), Width::Followed);
    }

    #[test]
    fn variants_per_object_are_bounded() {
        let variants = Variants::new(2);
        let admit = |object, byte, second| variants.admit(object, &[byte; 16], UnixMillis::from_secs(second));
        assert!(admit(1, 1, 0) && admit(1, 2, 0));
        assert!(!admit(1, 3, 59));
        assert!(admit(1, 2, 59) && admit(2, 3, 59));
    }

    #[test]
    fn places_of_variants_are_given_back() {
        let variants = Variants::new(2);
        let admit = |byte, second| variants.admit(1, &[byte; 16], UnixMillis::from_secs(second));
        assert!(admit(1, 0) && admit(2, 10) && admit(1, 50));
        assert!(!admit(3, 69));
        assert!(admit(3, 70), "the place of the one that was not stored again");
        assert!(admit(1, 71) && !admit(2, 71));
    }
}
