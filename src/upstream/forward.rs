//! The headers sent on (P5): what a client may not say is removed in every spelling, then the gateway says it.
//! It never decides who the client is or what it may do; it writes down what earlier stages found.
//!
//! Everything works on [`HeaderEdit`], so that a transport which keeps more than a `HeaderMap` (the case of the
//! names) can stay consistent.

mod ids;
mod names;
mod value;

use std::net::IpAddr;

use http::header::{AUTHORIZATION, CONNECTION, COOKIE, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::header_names::{
    TRACEPARENT, TRACESTATE, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REAL_IP, X_REQUEST_ID,
    X_USER_ID, X_USER_PERMISSIONS, X_USER_PLAN,
};

use crate::identifiers::API_TOKEN_PREFIX;

pub use ids::{MAX_REQUEST_ID, TraceParent, new_request_id, request_id};
pub use value::{MAX_VALUE, joined_value, safe_value};

/// Longest `X-Forwarded-For` that a trusted proxy's chain is kept in, in bytes.
const MAX_CHAIN: usize = 1024;

/// Headers that can be edited.
pub trait HeaderEdit {
    /// What is there now.
    fn headers(&self) -> &HeaderMap;
    /// Removes every line of this name.
    fn remove_all(&mut self, name: &HeaderName);
    /// Leaves exactly one line of this name.
    fn set(&mut self, name: &HeaderName, value: HeaderValue);
}

impl HeaderEdit for HeaderMap {
    fn headers(&self) -> &HeaderMap {
        self
    }

    fn remove_all(&mut self, name: &HeaderName) {
        self.remove(name);
    }

    fn set(&mut self, name: &HeaderName, value: HeaderValue) {
        self.insert(name.clone(), value);
    }
}

/// What `X-Forwarded-For` holds when the peer is a trusted proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chain {
    /// The resolved client and the peer: no entry that nobody vouches for reaches the upstream.
    #[default]
    Verified,
    /// The received list with the peer appended, for upstreams that walk it themselves. Its left part may be
    /// forged.
    Append,
}

/// The names under which identity is sent, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Carries the subject.
    pub user_id: HeaderName,
    /// Carries the plan.
    pub user_plan: HeaderName,
    /// Carries the permissions, comma-separated.
    pub user_permissions: HeaderName,
    /// Claim names and the headers that carry them.
    pub claims: Vec<(Box<str>, HeaderName)>,
    /// Further headers that no client may send.
    pub also_strip: Vec<HeaderName>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            user_id: X_USER_ID.clone(),
            user_plan: X_USER_PLAN.clone(),
            user_permissions: X_USER_PERMISSIONS.clone(),
            claims: Vec::new(),
            also_strip: Vec::new(),
        }
    }
}

/// Why settings cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Two kinds of identity would share a header.
    #[error("the header `{0}` would carry two things")]
    Twice(HeaderName),
    /// The header has a meaning of its own that identity must not overwrite.
    #[error("the header `{0}` cannot carry identity")]
    Reserved(HeaderName),
}

/// Prepared settings; immutable and shared by all requests.
#[derive(Clone, Debug)]
pub struct Settings {
    names: Names,
    stripped: names::Set,
    chain: Chain,
    real_ip: bool,
    api_tokens: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let names = Names::default();
        let stripped = names::Set::new(names.all());
        Self { names, stripped, chain: Chain::default(), real_ip: false, api_tokens: false }
    }
}

impl Names {
    fn carriers(&self) -> impl Iterator<Item = &HeaderName> {
        [&self.user_id, &self.user_plan, &self.user_permissions]
            .into_iter()
            .chain(self.claims.iter().map(|(_, header)| header))
    }

    fn all(&self) -> impl Iterator<Item = &HeaderName> {
        self.carriers().chain(&self.also_strip)
    }
}

impl Settings {
    /// `real_ip` also sends `X-Real-IP` with the client address.
    ///
    /// # Errors
    /// See [`SettingsError`]; spellings with `_`, `-` and other separators count as one header.
    pub fn new(names: Names, chain: Chain, real_ip: bool) -> Result<Self, SettingsError> {
        let mut seen = Vec::new();
        for carrier in names.carriers() {
            let dashed = names::dashed(carrier.as_str());
            if names::is_reserved(&dashed) {
                return Err(SettingsError::Reserved(carrier.clone()));
            }
            if seen.contains(&dashed) {
                return Err(SettingsError::Twice(carrier.clone()));
            }
            seen.push(dashed);
        }
        let stripped = names::Set::new(names.all());
        Ok(Self { names, stripped, chain, real_ip, api_tokens: false })
    }

    /// The same settings where an `Authorization` that holds an API token is the gateway's own affair.
    #[must_use]
    pub fn with_api_tokens(self, api_tokens: bool) -> Self {
        Self { api_tokens, ..self }
    }

    /// The header that carries a claim.
    pub fn claim_header(&self, claim: &str) -> Option<&HeaderName> {
        self.names.claims.iter().find_map(|(name, header)| (**name == *claim).then_some(header))
    }
}

/// Who the caller is, as far as it is known; nothing of it for an anonymous request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity<'a> {
    /// The subject.
    pub user_id: Option<&'a str>,
    /// The plan.
    pub plan: Option<&'a str>,
    /// The permissions.
    pub permissions: &'a [Box<str>],
    /// Values for the headers of [`Settings::claim_header`].
    pub claims: &'a [(HeaderName, Box<str>)],
}

/// What is said of a request to the upstream.
#[derive(Clone, Copy, Debug)]
pub struct Forwarded<'a> {
    /// The client.
    pub client: IpAddr,
    /// The other end of the connection.
    pub peer: IpAddr,
    /// Whether the peer is a declared proxy.
    pub peer_trusted: bool,
    /// `http` or `https`, as the client used it.
    pub scheme: &'static str,
    /// Host and port as the client asked for them.
    pub host: &'a str,
    /// From [`request_id`].
    pub request_id: &'a HeaderValue,
    /// From [`TraceParent::of`].
    pub trace: &'a TraceParent,
    /// The verified caller.
    pub identity: Identity<'a>,
}

/// Connection-level headers that this request may keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// A WebSocket handshake: `Connection: upgrade` and `Upgrade: websocket` are written anew.
    pub websocket: bool,
    /// `TE: trailers`, which gRPC needs over HTTP/2 (RFC 9113 section 8.2.2).
    pub te_trailers: bool,
}

/// Turns the headers of the client into those for the upstream: [`strip`] and then [`apply`].
///
/// It has to run after anything that honours `Connection` nominations of the client, since those could
/// otherwise remove what is written here.
pub fn forward<H: HeaderEdit>(settings: &Settings, headers: &mut H, keep: Keep, forwarded: &Forwarded<'_>) {
    let chain = chain(settings, headers.headers(), forwarded);
    let state = if forwarded.trace.is_continued() { trace_state(headers.headers()) } else { None };
    strip(settings, headers, keep);
    apply(settings, headers, forwarded);
    if let Some(chain) = chain {
        headers.set(&X_FORWARDED_FOR, chain);
    }
    if let Some(state) = state {
        headers.set(&TRACESTATE, state);
    }
}

/// Whether a client's header of this name is never sent on as it came, so that nothing can depend on it.
pub fn is_withheld(name: &HeaderName) -> bool {
    names::is_withheld(name.as_str())
}

/// Removes what no client may say: hop-by-hop headers, forwarding and identity headers in every spelling (`_`, `.`
/// and other separators count as `-`), method overrides, `Proxy`, `Expect`, such spellings of headers that carry
/// credentials or framing, and what `Connection` nominates. Joins cookie crumbs (RFC 9113 section 8.2.3).
///
/// Nominations are obeyed only for headers of the client's own making: end-to-end fields such as
/// `Authorization`, `Cookie`, `Host`, `Content-*`, `Cache-Control`, `Origin` and conditional requests stay,
/// because removing them between a check and the upstream changes what was checked (RFC 9110 section 7.6.1
/// forbids such nominations).
pub fn strip<H: HeaderEdit>(settings: &Settings, headers: &mut H, keep: Keep) {
    let te_trailers = keep.te_trailers && has_te_trailers(headers.headers());
    let mut doomed: Vec<HeaderName> = nominated(headers.headers());
    doomed.extend(headers.headers().keys().filter(|name| settings.stripped.holds(name.as_str())).cloned());
    for name in &doomed {
        headers.remove_all(name);
    }
    if settings.api_tokens && holds_api_token(headers.headers()) {
        headers.remove_all(&AUTHORIZATION);
    }
    if keep.websocket {
        headers.set(&CONNECTION, HeaderValue::from_static("upgrade"));
        headers.set(&UPGRADE, HeaderValue::from_static("websocket"));
    }
    if te_trailers {
        headers.set(&http::header::TE, HeaderValue::from_static("trailers"));
    }
    join_cookies(headers);
}

/// Whether a word of an `Authorization` begins like an API token, on whatever route and however it is written.
fn holds_api_token(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes);
    lines.any(|line| {
        let mut words = line.split(|byte| !(byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte)));
        words.any(|word| word.starts_with(API_TOKEN_PREFIX.as_bytes()))
    })
}

/// Writes what the gateway says of the request, replacing whatever was there.
///
/// Values that cannot stand in a header are percent-encoded by [`safe_value`]; what is empty or too long is left
/// out, so that two subjects never share a spelling.
pub fn apply<H: HeaderEdit>(settings: &Settings, headers: &mut H, forwarded: &Forwarded<'_>) {
    let client = address_value(forwarded.client);
    if forwarded.peer_trusted && forwarded.client != forwarded.peer {
        let both = format!("{}, {}", forwarded.client, forwarded.peer);
        set_text(headers, &X_FORWARDED_FOR, &both);
    } else if let Some(client) = &client {
        headers.set(&X_FORWARDED_FOR, client.clone());
    }
    if settings.real_ip
        && let Some(client) = client
    {
        headers.set(&X_REAL_IP, client);
    }
    headers.set(&X_FORWARDED_PROTO, HeaderValue::from_static(forwarded.scheme));
    set_text(headers, &X_FORWARDED_HOST, forwarded.host);
    headers.set(&X_REQUEST_ID, forwarded.request_id.clone());
    set_text(headers, &TRACEPARENT, forwarded.trace.as_str());

    let identity = &forwarded.identity;
    let mut carry = |name: &HeaderName, value: Option<HeaderValue>| match value {
        Some(value) => headers.set(name, value),
        None => headers.remove_all(name),
    };
    carry(&settings.names.user_id, identity.user_id.and_then(safe_value));
    carry(&settings.names.user_plan, identity.plan.and_then(safe_value));
    carry(&settings.names.user_permissions, joined_value(identity.permissions));
    for (name, value) in identity.claims {
        carry(name, safe_value(value));
    }
}

/// Removes the hop-by-hop headers of an upstream response, `Connection`-nominated ones included. Only a
/// `101 Switching Protocols` keeps `Connection: upgrade` and `Upgrade`. `Transfer-Encoding` and `Trailer` stay:
/// they are the business of whoever frames the response.
pub fn strip_response<H: HeaderEdit>(headers: &mut H, is_switching: bool) {
    let doomed = nominated(headers.headers());
    for name in &doomed {
        if !(is_switching && *name == UPGRADE) {
            headers.remove_all(name);
        }
    }
    for name in &names::RESPONSE_HOP_BY_HOP {
        headers.remove_all(name);
    }
    if is_switching {
        headers.set(&CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove_all(&CONNECTION);
        headers.remove_all(&UPGRADE);
    }
}

/// The names in `Connection` that may be removed.
fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    let options =
        headers.get_all(CONNECTION).iter().flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    options
        .filter_map(|option| HeaderName::from_bytes(option.trim_ascii()).ok())
        .filter(|name| headers.contains_key(name) && !names::is_protected(name.as_str()))
        .collect()
}

fn has_te_trailers(headers: &HeaderMap) -> bool {
    let mut codings =
        headers.get_all(http::header::TE).iter().flat_map(|line| line.as_bytes().split(|&b| b == b','));
    codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

fn join_cookies<H: HeaderEdit>(headers: &mut H) {
    let lines = headers.headers().get_all(COOKIE);
    if lines.iter().nth(1).is_none() {
        return;
    }
    let lines: Vec<&[u8]> = lines.iter().map(HeaderValue::as_bytes).filter(|line| !line.is_empty()).collect();
    match HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        Ok(joined) => headers.set(&COOKIE, joined),
        // Every part was a value already, so this is out of reach; no cookie is the safe reading.
        Err(_) => headers.remove_all(&COOKIE),
    }
}

/// The received chain with the peer appended, where settings and trust ask for it.
fn chain(settings: &Settings, headers: &HeaderMap, forwarded: &Forwarded<'_>) -> Option<HeaderValue> {
    if settings.chain == Chain::Verified || !forwarded.peer_trusted {
        return None;
    }
    let lines = headers.get_all(&X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes);
    let lines: Vec<&[u8]> = lines.filter(|line| !line.is_empty()).collect();
    if lines.is_empty() || lines.iter().map(|line| line.len() + 2).sum::<usize>() > MAX_CHAIN {
        return None;
    }
    let mut chain = lines.join(&b", "[..]);
    chain.extend_from_slice(format!(", {}", forwarded.peer).as_bytes());
    HeaderValue::from_bytes(&chain).ok()
}

/// `tracestate` goes on with a continued trace, when it is one line of the size every vendor has to pass on.
fn trace_state(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lines = headers.get_all(&TRACESTATE).iter();
    let state = lines.next().filter(|state| state.len() <= 512)?;
    if lines.next().is_some() { None } else { Some(state.clone()) }
}

fn address_value(address: IpAddr) -> Option<HeaderValue> {
    HeaderValue::from_maybe_shared(bytes::Bytes::from(address.to_string())).ok()
}

fn set_text<H: HeaderEdit>(headers: &mut H, name: &HeaderName, text: &str) {
    match HeaderValue::from_str(text) {
        Ok(value) => headers.set(name, value),
        Err(_) => headers.remove_all(name),
    }
}

#[cfg(test)]
mod tests;
