//! What an answer to a write names beside the target: `Location` and `Content-Location` (RFC 9111 section 4.4).
//! It only says under which tags responses to these would be stored.

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderValue};

use super::admit::stored_at;
use super::context::{Admitted, Context};
use super::gateway::Gateway;
use crate::cache::key::Target;
use crate::cache::request::Caller;
use crate::route::normalise;

/// The tags under which the same caller's GET of what `answer` names is stored. Another origin than the one asked
/// is none of this answer's business. `path`: the canonical path of the request.
pub fn tags(
    gateway: &Gateway,
    context: &Context,
    admitted: &Admitted,
    path: &str,
    answer: &HeaderMap,
) -> Vec<Box<str>> {
    let named = [LOCATION, CONTENT_LOCATION].map(|name| answer.get(name).and_then(text));
    named
        .into_iter()
        .flatten()
        .filter_map(|reference| {
            let here = |authority: &str| {
                [&context.authority, &context.host].iter().any(|known| known.eq_ignore_ascii_case(authority))
            };
            let (path, query) = resolve(context.scheme.as_str(), here, path, reference)?;
            let path = normalise::normalise(path.as_bytes(), gateway.path_options).ok()?;
            let host = context.authority.rsplit_once(':').map_or(&*context.authority, |(host, port)| {
                if port.bytes().all(|byte| byte.is_ascii_digit()) { host } else { &*context.authority }
            });
            let caller = admitted
                .identity
                .as_deref()
                .map_or(Caller::Anonymous, |identity| Caller::User(&identity.account));
            let cache_host = context.cache_host();
            let scheme = context.scheme.as_str();
            stored_at(gateway, host, Target { scheme, host: &cache_host, path: &path, query, caller })
        })
        .collect()
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}

/// Path and query of a URI reference (RFC 3986 section 4.1) relative to `base`; `None` for another origin and for
/// what names nothing that could be stored. Dot segments are left to whoever normalises the path.
fn resolve<'a>(
    scheme: &str,
    is_here: impl Fn(&str) -> bool,
    base: &str,
    reference: &'a str,
) -> Option<(String, Option<&'a str>)> {
    let reference = reference.trim_matches([' ', '\t']);
    let reference = reference.split_once('#').map_or(reference, |(before, _)| before);
    let (before, query) = match reference.split_once('?') {
        Some((before, query)) => (before, Some(query)),
        None => (reference, None),
    };
    let relative = match scheme_of(before) {
        Some((named, rest)) if named.eq_ignore_ascii_case(scheme) && rest.starts_with("//") => rest,
        Some(_) => return None,
        None => before,
    };
    let path = if let Some(rest) = relative.strip_prefix("//") {
        let (authority, path) = rest.split_at_checked(rest.find('/').unwrap_or(rest.len()))?;
        if !is_here(authority) && !is_here(without_default_port(scheme, authority)) {
            return None;
        }
        if path.is_empty() { "/".to_owned() } else { path.to_owned() }
    } else if relative.starts_with('/') {
        relative.to_owned()
    } else if relative.is_empty() {
        base.to_owned()
    } else {
        let (folder, _) = base.rsplit_once('/')?;
        format!("{folder}/{relative}")
    };
    Some((path, query))
}

/// A scheme and what follows its colon.
fn scheme_of(reference: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = reference.split_once(':')?;
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    is_scheme.then_some((scheme, rest))
}

fn without_default_port<'a>(scheme: &str, authority: &'a str) -> &'a str {
    authority.strip_suffix(if scheme == "https" { ":443" } else { ":80" }).unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_resolved_within_the_origin_only() {
        let here = |authority: &str| authority == "a.example";
        let table = [
            ("/x", Some(("/x", None))),
            ("/x?y=1#z", Some(("/x", Some("y=1")))),
            ("c", Some(("/a/c", None))),
            ("../c?d", Some(("/a/../c", Some("d")))),
            ("./c:d", Some(("/a/./c:d", None))),
            ("", Some(("/a/b", None))),
            ("?q", Some(("/a/b", Some("q")))),
            ("http://a.example/x", Some(("/x", None))),
            ("HTTP://a.example:80/x", Some(("/x", None))),
            ("http://a.example", Some(("/", None))),
            ("//a.example/x?y", Some(("/x", Some("y")))),
            ("https://a.example/x", None),
            ("http://b.example/x", None),
            ("http://a.example:8080/x", None),
            ("//b.example/x", None),
            ("http://a.example@b.example/x", None),
            ("mailto:a@a.example", None),
            ("http:x", None),
        ];
        for (reference, expected) in table {
            let found = resolve("http", here, "/a/b", reference);
            let found = found.as_ref().map(|(path, query)| (path.as_str(), *query));
            assert_eq!(found, expected, "{reference}");
        }
    }
}
