//! Variants (RFC 9111 section 4.1): which request headers select one, and how many an object may have.
//! Values are normalised only where the meaning cannot change.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};
use parking_lot::Mutex;
use pingora::cache::VarianceBuilder;
use pingora::cache::key::HashBinary;

use crate::header_names::{FORWARDED, TRACEPARENT, TRACESTATE, X_FORWARDED_FOR, X_REAL_IP, X_REQUEST_ID};

/// More header names in one `Vary` than this are not followed.
const MAX_NAMES: usize = 16;
/// Objects whose variants are counted at the same time.
const COUNTED_OBJECTS: usize = 16_384;

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
        let value = normalised(&name, request);
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

/// All values of `name`: list elements trimmed and joined; codings of `Accept-Encoding` also lower-case and
/// sorted, ranges of `Accept-Language` lower-case. A leading byte tells an absent header from an empty one.
fn normalised(name: &HeaderName, request: &HeaderMap) -> Vec<u8> {
    let mut lines = request.get_all(name).iter().peekable();
    if lines.peek().is_none() {
        return vec![b'-'];
    }
    let list =
        *name == header::ACCEPT_ENCODING || *name == header::ACCEPT || *name == header::ACCEPT_LANGUAGE;
    let mut elements: Vec<Vec<u8>> = Vec::new();
    for line in lines {
        if list {
            let split = line.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
            elements.extend(split.filter(|e| !e.is_empty()).map(<[u8]>::to_vec));
        } else {
            elements.push(line.as_bytes().trim_ascii().to_vec());
        }
    }
    if *name == header::ACCEPT_ENCODING {
        for element in &mut elements {
            element.retain(|b| *b != b' ' && *b != b'\t');
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
    value.extend(elements.join(&b","[..]));
    value
}

/// Counts variants per object, so that a client cannot fill the cache by varying a header.
#[derive(Debug)]
pub struct Variants {
    seen: quick_cache::sync::Cache<u128, Arc<Mutex<Vec<u64>>>>,
    max: usize,
}

impl Variants {
    /// At most `max` variants per object.
    pub fn new(max: usize) -> Self {
        Self { seen: quick_cache::sync::Cache::new(COUNTED_OBJECTS), max }
    }

    /// Whether `variance` of `object` may be stored; it counts from now on.
    pub fn admit(&self, object: u128, variance: &HashBinary) -> bool {
        let half = variance.iter().take(8).fold(0_u64, |half, byte| half << 8 | u64::from(*byte));
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        let Ok(seen) = self.seen.get_or_insert_with(&object, fresh);
        let mut seen = seen.lock();
        if seen.contains(&half) {
            return true;
        }
        if seen.len() >= self.max {
            return false;
        }
        seen.push(half);
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
        assert!(variants.admit(1, &[1; 16]) && variants.admit(1, &[2; 16]));
        assert!(!variants.admit(1, &[3; 16]));
        assert!(variants.admit(1, &[2; 16]) && variants.admit(2, &[3; 16]));
    }
}
