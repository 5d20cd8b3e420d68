//! Targeted cache control (RFC 9213): directives for this cache alone, as a Dictionary of Structured Fields (RFC
//! 9651). It reads; what the directives mean is the policy's.

use http::{HeaderMap, HeaderName};
use sfv::{BareItem, Dictionary, Item, ListEntry, Parser};

use super::directives::{MAX_SECONDS, Reach, ResponseDirectives, Source};
use crate::header_names::{CDN_CACHE_CONTROL, TOLLGATE_CACHE_CONTROL};

/// The fields that speak to this cache, the most specific one first.
pub(super) static TARGETS: [&HeaderName; 2] = [&TOLLGATE_CACHE_CONTROL, &CDN_CACHE_CONTROL];

/// What can be said in them.
const KNOWN: [&str; 11] = [
    "no-store",
    "no-cache",
    "private",
    "public",
    "must-revalidate",
    "proxy-revalidate",
    "must-understand",
    "max-age",
    "s-maxage",
    "stale-while-revalidate",
    "stale-if-error",
];

/// The directives of the first targeted field that can be read and says something known.
pub(super) fn parse(headers: &HeaderMap) -> Option<ResponseDirectives> {
    TARGETS.iter().find_map(|name| {
        let mut lines = headers.get_all(*name).iter();
        let first = lines.next()?;
        let mut field = first.as_bytes().to_vec();
        for line in lines {
            field.extend_from_slice(b", ");
            field.extend_from_slice(line.as_bytes());
        }
        let members: Dictionary = Parser::new(&field).parse().ok()?;
        // What says nothing that this cache knows puts nothing else out of force.
        let speaks = members.keys().any(|name| KNOWN.contains(&name.as_str()));
        speaks.then(|| read(&members))
    })
}

fn read(members: &Dictionary) -> ResponseDirectives {
    let mut found = ResponseDirectives { source: Source::Targeted, ..ResponseDirectives::default() };
    for (name, member) in members {
        match name.as_str() {
            "no-store" => found.no_store = restricts(member),
            "no-cache" => found.no_cache = reach(member),
            "private" => found.private = reach(member),
            "public" => found.public = is_true(member),
            "must-revalidate" => found.must_revalidate = restricts(member),
            "proxy-revalidate" => found.proxy_revalidate = restricts(member),
            "must-understand" => found.must_understand = is_true(member),
            "max-age" => found.max_age = seconds(member),
            "s-maxage" => found.s_maxage = seconds(member),
            "stale-while-revalidate" => found.stale_while_revalidate = seconds(member),
            "stale-if-error" => found.stale_if_error = seconds(member),
            _ => {}
        }
    }
    found
}

fn bare(member: &ListEntry) -> Option<&BareItem> {
    match member {
        ListEntry::Item(Item { bare_item, .. }) => Some(bare_item),
        ListEntry::InnerList(_) => None,
    }
}

fn is_true(member: &ListEntry) -> bool {
    bare(member).and_then(BareItem::as_boolean) == Some(true)
}

/// Whatever is not plainly false restricts: an argument to such a directive does not take it back.
fn restricts(member: &ListEntry) -> bool {
    bare(member).and_then(BareItem::as_boolean) != Some(false)
}

fn reach(member: &ListEntry) -> Reach {
    match bare(member) {
        Some(BareItem::Boolean(false)) => Reach::Nothing,
        Some(BareItem::String(names)) => Reach::named(names.as_str()),
        _ => Reach::Whole,
    }
}

/// What is no Integer is no argument at all; what is less than nothing is nothing.
fn seconds(member: &ListEntry) -> Option<u64> {
    let number = i64::from(bare(member)?.as_integer()?);
    Some(u64::try_from(number).unwrap_or(0).min(MAX_SECONDS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn read_lines(lines: &[(&'static str, &'static str)]) -> Option<ResponseDirectives> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        parse(&headers)
    }

    fn cdn(value: &'static str) -> Option<ResponseDirectives> {
        read_lines(&[("cdn-cache-control", value)])
    }

    #[test]
    fn the_most_specific_field_that_can_be_read_counts_alone() {
        let both = |own| read_lines(&[("cdn-cache-control", "max-age=5"), ("tollgate-cache-control", own)]);
        assert_eq!(both("max-age=7").unwrap().max_age, Some(7));
        assert_eq!(both("no-store").unwrap().max_age, None);
        for ignored in [
            "",
            "foo, bar=1",
            "max-age=",
            "Max-Age=7",
            "max-age=7,",
            "max-age=7;;",
            "max-age=7 no-store",
            "\"x",
        ] {
            assert_eq!(both(ignored).unwrap().max_age, Some(5), "{ignored}");
        }
        assert_eq!(cdn(""), None);
        assert_eq!(read_lines(&[("cache-control", "max-age=5")]), None);
    }

    #[test]
    fn lines_are_one_field_and_the_last_of_a_name_counts() {
        let found =
            read_lines(&[("cdn-cache-control", "max-age=5, public"), ("cdn-cache-control", "max-age=9")]);
        let found = found.unwrap();
        assert_eq!((found.max_age, found.public, found.source), (Some(9), true, Source::Targeted));
    }

    #[test]
    fn parameters_and_wrong_types_are_ignored() {
        assert_eq!(cdn("max-age=5;a=1;b").unwrap().max_age, Some(5));
        for wrong in
            ["max-age=\"5\"", "max-age=5.0", "max-age", "max-age=(5)", "max-age=five", "max-age=:NQ==:"]
        {
            assert_eq!(cdn(wrong).unwrap().max_age, None, "{wrong}");
        }
        assert_eq!(cdn("max-age=-5").unwrap().max_age, Some(0));
        assert_eq!(cdn("max-age=999999999999999").unwrap().max_age, Some(MAX_SECONDS));
        assert!(!cdn("public=1, max-age=1").unwrap().public);
        assert!(!cdn("public=?0, max-age=1").unwrap().public);
    }

    #[test]
    fn what_restricts_does_so_whatever_its_type() {
        let found = cdn("no-store=1, must-revalidate=\"x\", private=(a), no-cache=1.5").unwrap();
        assert!(
            found.no_store && found.must_revalidate && found.private.is_whole() && found.no_cache.is_whole()
        );
        let found = cdn("no-store=?0, must-revalidate=?0, private=?0, no-cache=?0").unwrap();
        assert!(!found.no_store && !found.must_revalidate);
        assert_eq!((found.private, found.no_cache), (Reach::Nothing, Reach::Nothing));
        let found = cdn("private=\"X-One, x-two\", no-cache=\"x-three\"").unwrap();
        assert_eq!((found.private.fields().len(), found.no_cache.fields().len()), (2, 1));
        assert!(cdn("private=x-one").unwrap().private.is_whole(), "fields are named in strings");
    }
}
