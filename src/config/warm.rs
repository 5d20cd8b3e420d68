//! Reads `[routes.cache.warm]`: what is kept warm, and what is said when it is fetched. Whether the route would serve
//! it shows only when the table of routes is there.

use std::borrow::Cow;

use http::uri::{Authority, Uri};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::reader::Reader;
use super::spec::{Warm, WarmUrl};
use super::value::{Kind, Leaf, Raw, Refused, Secret};

/// Most URLs of one route.
const MOST: usize = 100;

impl Leaf for WarmUrl {
    /// Its query may hold a credential.
    const SECRET: bool = true;

    fn accepted() -> Cow<'static, str> {
        "\"http://host[:port]/path[?query]\" or \"https://…\", as clients ask for it".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        let text = raw.text.trim();
        let is_plain = raw.kind == Kind::Text && text.is_ascii();
        if !is_plain {
            return Err(Refused::default());
        }
        if text.starts_with('/') {
            return Err(Refused::hint("; scheme and host are part of what a response is stored under"));
        }
        if text.contains('#') {
            return Err(Refused::hint("; a fragment is never sent"));
        }
        let uri: Uri = text.parse().map_err(|_| Refused::default())?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(Refused::default()),
        };
        let authority = uri.authority().map(Authority::as_str).filter(|authority| !authority.contains('@'));
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let authority = authority.ok_or_else(|| Refused::hint("; without a user"))?;
        // What the parser makes of a URL without a path.
        let target = if target.starts_with('?') { format!("/{target}") } else { target.to_owned() };
        Ok(Self { https, authority: authority.into(), target: target.into() })
    }
}

/// Reads the table; `None` when it names nothing.
pub(super) fn warm(reader: &Reader<'_>, shared: bool, vary: &[HeaderName]) -> Option<Warm> {
    let urls: Vec<WarmUrl> = reader.list("urls");
    let authorization = authorization(reader);
    let mut headers = headers(reader, vary);
    if let Some(value) = authorization {
        headers.insert(header::AUTHORIZATION, value);
    }
    if urls.is_empty() {
        return None;
    }
    if !shared {
        reader.refuse("urls", "are fetched for nobody in particular; accepted: shared = true on this cache");
    }
    if urls.len() > MOST {
        reader.refuse("urls", format!("are too many; accepted: up to {MOST}"));
    }
    Some(Warm { urls, headers })
}

/// `Bearer ${TOKEN:-}` without a token is nothing.
fn authorization(reader: &Reader<'_>) -> Option<HeaderValue> {
    let secret = reader.opt::<Secret>("authorization")?;
    let text = secret.expose().trim();
    if text.is_empty() || ["bearer", "basic"].iter().any(|scheme| text.eq_ignore_ascii_case(scheme)) {
        return None;
    }
    let Ok(mut value) = HeaderValue::from_str(text) else {
        reader.refuse(
            "authorization",
            "this value is not accepted; accepted: a scheme and a credential in one line",
        );
        return None;
    };
    value.set_sensitive(true);
    Some(value)
}

fn headers(reader: &Reader<'_>, vary: &[HeaderName]) -> HeaderMap {
    const NEGOTIATION: [HeaderName; 3] = [header::ACCEPT, header::ACCEPT_ENCODING, header::ACCEPT_LANGUAGE];
    let section = reader.section("headers");
    let mut headers = HeaderMap::new();
    for (name, text) in reader.map::<String>("headers", "<header>") {
        let known = HeaderName::from_bytes(name.as_bytes()).ok();
        let Some(known) = known.filter(|name| NEGOTIATION.contains(name) || vary.contains(name)) else {
            section.refuse(
                &name,
                "is not one that selects a variant; accepted: accept, accept-encoding, accept-language and what \
                 `vary` of this cache names",
            );
            continue;
        };
        match HeaderValue::from_str(text.trim()) {
            Ok(value) => drop(headers.insert(known, value)),
            Err(_) => section.refuse(&name, "is not accepted; accepted: one line of text"),
        }
    }
    headers
}
