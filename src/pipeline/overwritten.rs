//! What a write makes stale beside what its route declares (RFC 9111 section 4.4): its target, and what its answer
//! names in `Location` and `Content-Location`, where that is of the same origin. For everybody: what one user has
//! written another one reads.

use http::header::{CONTENT_LOCATION, LOCATION};
use http::uri::Authority;
use http::{HeaderMap, Method};
use url::Url;

use super::context::Context;
use super::gateway::Gateway;
use crate::cache::key::{Target, Unstamped};
use crate::cache::request::Caller;
use crate::cache::tag::key_tag;
use crate::route::normalise;
use crate::route::table::Found;

/// References looked at in one answer.
const MOST: usize = 8;

/// The tags of what reads of this target, by whomever, are stored under; `host` as routes know it.
pub(super) fn stored_at(gateway: &Gateway, host: &str, target: Target<'_>) -> Vec<Box<str>> {
    let mut tags: Vec<Box<str>> = Vec::new();
    let mut seen = None;
    for method in [Method::GET, Method::HEAD] {
        let Found::Route(found) = gateway.table.find(host, &method, target.path) else { continue };
        // As a rule one route takes both.
        if seen.replace(found.index) == Some(found.index) {
            continue;
        }
        let Some(settings) = &found.value.cache else { continue };
        let tag = key_tag(&Unstamped::new(settings, target).public_key());
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags
}

/// The tags of what the answer to a write names; `target` is the path and query that were written to.
pub fn named_by(gateway: &Gateway, context: &Context, target: &str, answer: &HeaderMap) -> Vec<Box<str>> {
    let references = [LOCATION, CONTENT_LOCATION];
    let mut references = references.iter().flat_map(|name| answer.get_all(name)).take(MOST).peekable();
    if references.peek().is_none() {
        return Vec::new();
    }
    let Ok(authority) = context.authority.parse::<Authority>() else { return Vec::new() };
    let host = context.cache_host();
    let mut tags = Vec::new();
    for reference in references.filter_map(|value| std::str::from_utf8(value.as_bytes()).ok()) {
        let origins = [&*context.host, &*context.authority];
        let here = |origin| within(context.scheme.as_str(), origin, target, reference);
        let Some((path, query)) = origins.into_iter().find_map(here) else { continue };
        let Ok(path) = normalise::normalise(path.as_bytes(), gateway.path_options) else { continue };
        let scheme = context.scheme.as_str();
        let (path, query, caller) = (&*path, query.as_deref(), Caller::Anonymous);
        tags.extend(stored_at(
            gateway,
            authority.host(),
            Target { scheme, host: &host, path, query, caller },
        ));
    }
    tags
}

/// Path and query that `reference` means for a client that asked `host` for `target`, if they are of that origin.
fn within(scheme: &str, host: &str, target: &str, reference: &str) -> Option<(String, Option<String>)> {
    let base = Url::parse(&format!("{scheme}://{host}{target}")).ok()?;
    let resolved = base.join(reference).ok()?;
    if resolved.origin() != base.origin() {
        return None;
    }
    // As it is written: resolving would spell some characters otherwise, and a key has the query as it came.
    let reference = reference.trim_matches(|c: char| c <= ' ');
    let unfragmented = reference.split_once('#').map_or(reference, |(before, _)| before);
    let query = match unfragmented.split_once('?') {
        Some((_, query)) => Some(query),
        None if unfragmented.is_empty() => target.split_once('?').map(|(_, query)| query),
        None => None,
    };
    Some((resolved.path().to_owned(), query.map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_resolved_and_belong_to_one_origin() {
        let meant = |reference: &str| {
            let meant = within("https", "a.example", "/api/items?page=2", reference);
            meant.map(|(path, query)| query.map_or(path.clone(), |query| format!("{path}?{query}")))
        };
        for (reference, expected) in [
            ("/api/items/7", "/api/items/7"),
            ("items/7", "/api/items/7"),
            ("../other?x='y'", "/other?x='y'"),
            ("?page=3", "/api/items?page=3"),
            ("", "/api/items?page=2"),
            ("#part", "/api/items?page=2"),
            ("//a.example/b", "/b"),
            ("https://a.example/b#c?d", "/b"),
            ("HTTPS://A.Example:443/b", "/b"),
            (" /b ", "/b"),
            ("https://user@a.example/b", "/b"),
        ] {
            assert_eq!(meant(reference).as_deref(), Some(expected), "{reference}");
        }
        for elsewhere in [
            "http://a.example/b",
            "https://a.example:8443/b",
            "https://b.example/b",
            "//b.example/b",
            "https://a.example.b.example/",
            "mailto:ada@a.example",
            "data:,x",
            "https://[::/",
        ] {
            assert_eq!(meant(elsewhere), None, "{elsewhere}");
        }
    }
}
