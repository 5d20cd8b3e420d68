//! The first look at a request: is its head unambiguous? A head that two servers could read differently is
//! refused here, before anything is matched, verified or counted. It decides nothing about the path's meaning
//! and never changes a header.

mod authority;
mod problem;
mod raw;

use std::borrow::Cow;

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

pub use authority::Authority;
pub use problem::HeadProblem;

/// What is known of a request before anything is believed.
#[derive(Clone, Copy, Debug)]
pub struct HeadInput<'a> {
    /// The method, in the case it was sent.
    pub method: &'a Method,
    /// The request-target as bytes; for HTTP/2 the `:path`.
    pub target: &'a [u8],
    /// The protocol version of the request.
    pub version: Version,
    /// Every header line, duplicates included.
    pub headers: &'a HeaderMap,
    /// Whether it came over HTTP/2.
    pub is_h2: bool,
    /// The `:authority` of an HTTP/2 request.
    pub authority: Option<&'a str>,
    /// The head's own bytes, where the transport keeps them (HTTP/1). The parser in front mends some faults, such
    /// as a Content-Length next to a Transfer-Encoding, so that only these bytes still show them.
    pub raw: Option<&'a [u8]>,
}

/// How large a head may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Longest request-target, in bytes; beyond it 414.
    pub target_bytes: usize,
    /// Most header lines; beyond it 431.
    pub header_count: usize,
    /// Most bytes of names and values with four bytes of framing a line; beyond it 431.
    pub header_bytes: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { target_bytes: 8 * 1024, header_count: 100, header_bytes: 32 * 1024 }
    }
}

/// How the length of the request body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No header tells of a body. Over HTTP/2 there may be one, ended by the stream.
    Absent,
    /// `Content-Length`, in bytes.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// What becomes of the `Upgrade` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// There is none.
    Absent,
    /// A well-formed WebSocket handshake over HTTP/1.1 (RFC 6455 section 4.1).
    WebSocket,
    /// Anything else: to be stripped, not honoured (RFC 9110 section 7.8 lets a server ignore it).
    Ignored,
}

/// A head that means one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// The host asked for: lower case, without port and without a trailing dot.
    pub host: Cow<'a, str>,
    /// The port in `Host`, where one was given.
    pub port: Option<u16>,
    /// The path as it came, starting with `/`; `*` for `OPTIONS *`. Not yet normalised.
    pub path: &'a [u8],
    /// The query as it came, without `?`: visible ASCII only.
    pub query: Option<&'a str>,
    /// How long the body is.
    pub framing: Framing,
    /// What the `Upgrade` header asks for.
    pub upgrade: Upgrade,
    /// The target came in absolute form; what goes on is the origin form.
    pub was_absolute: bool,
    /// The client waits for `100 Continue` (RFC 9110 section 10.1.1).
    pub expects_continue: bool,
}

impl Head<'_> {
    /// Whether this is `OPTIONS *`, which asks about the server and has no path to match.
    pub fn is_asterisk(&self) -> bool {
        self.path == b"*"
    }
}

/// Judges a request head.
///
/// # Errors
/// The first fault found, in the order method, size, target, header lines, host, framing.
pub fn inspect<'a>(input: &HeadInput<'a>, limits: &HeadLimits) -> Result<Head<'a>, HeadProblem> {
    check_method(input.method)?;
    check_version(input)?;
    if input.target.len() > limits.target_bytes {
        return Err(HeadProblem::TargetTooLong);
    }
    let lines = read_lines(input.headers, limits)?;
    if let Some(bytes) = input.raw {
        raw::inspect(bytes)?;
    }
    let target = Target::parse(input.target, input.method)?;
    let authority = read_authority(input, &lines, target.absolute)?;
    let framing = read_framing(input, &lines)?;
    let expects_continue = read_expect(&lines)?;
    if input.is_h2 {
        check_h2_fields(input.headers)?;
    }
    let upgrade = match lines.upgrade {
        None => Upgrade::Absent,
        Some(_) if is_websocket(input, framing) => Upgrade::WebSocket,
        Some(_) => Upgrade::Ignored,
    };
    Ok(Head {
        host: authority.host,
        port: authority.port,
        path: target.path,
        query: target.query,
        framing,
        upgrade,
        was_absolute: target.absolute.is_some(),
        expects_continue,
    })
}

/// Registered methods that are passed on (IANA HTTP Method Registry), beside those `http` knows by itself.
static EXTENSION_METHODS: [&str; 33] = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PROPFIND",
    "PROPPATCH",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    "NOTIFY",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
];

fn check_method(method: &Method) -> Result<(), HeadProblem> {
    match *method {
        Method::GET
        | Method::HEAD
        | Method::POST
        | Method::PUT
        | Method::DELETE
        | Method::OPTIONS
        | Method::PATCH => Ok(()),
        // TRACE would hand the client the identity headers that the gateway adds.
        Method::CONNECT | Method::TRACE => Err(HeadProblem::MethodRefused),
        _ if EXTENSION_METHODS.contains(&method.as_str()) => Ok(()),
        _ => Err(HeadProblem::MethodUnknown),
    }
}

fn check_version(input: &HeadInput<'_>) -> Result<(), HeadProblem> {
    match input.version {
        Version::HTTP_2 => Ok(()),
        Version::HTTP_10 | Version::HTTP_11 if !input.is_h2 => Ok(()),
        _ => Err(HeadProblem::VersionUnsupported),
    }
}

/// The few header lines that frame a request, found in the one pass over all of them.
#[derive(Default)]
struct Lines<'a> {
    host: Option<&'a HeaderValue>,
    content_length: Option<&'a HeaderValue>,
    transfer_encoding: Option<&'a HeaderValue>,
    expect: Option<&'a HeaderValue>,
    upgrade: Option<&'a HeaderValue>,
}

fn read_lines<'a>(headers: &'a HeaderMap, limits: &HeadLimits) -> Result<Lines<'a>, HeadProblem> {
    let mut lines = Lines::default();
    let mut bytes = 0_usize;
    if headers.len() > limits.header_count {
        return Err(HeadProblem::TooManyHeaders);
    }
    for (name, value) in headers {
        bytes = bytes.saturating_add(name.as_str().len() + value.len() + 4);
        if bytes > limits.header_bytes {
            return Err(HeadProblem::HeadersTooLarge);
        }
        if value.as_bytes().iter().any(|&byte| (byte < b' ' && byte != b'\t') || byte == 0x7F) {
            return Err(HeadProblem::HeaderValue);
        }
        // Single-valued lines: even equal duplicates are refused, since some servers read the first and some the
        // last.
        let (slot, problem) = match name {
            name if name == HOST => (&mut lines.host, HeadProblem::SeveralHosts),
            name if name == CONTENT_LENGTH => (&mut lines.content_length, HeadProblem::ContentLength),
            name if name == TRANSFER_ENCODING => {
                (&mut lines.transfer_encoding, HeadProblem::TransferEncoding)
            }
            name if name == EXPECT => (&mut lines.expect, HeadProblem::Expectation),
            name if name == UPGRADE => {
                lines.upgrade = Some(value);
                continue;
            }
            _ => continue,
        };
        if slot.replace(value).is_some() {
            return Err(problem);
        }
    }
    Ok(lines)
}

struct Target<'a> {
    path: &'a [u8],
    query: Option<&'a str>,
    /// Authority and default port of an absolute-form target.
    absolute: Option<(&'a str, u16)>,
}

impl<'a> Target<'a> {
    fn parse(target: &'a [u8], method: &Method) -> Result<Self, HeadProblem> {
        // Bytes above ASCII are left to normalisation, which judges them as UTF-8.
        if target.iter().any(|&byte| byte <= b' ' || matches!(byte, 0x7F | b'\\' | b'#')) {
            return Err(HeadProblem::TargetByte);
        }
        if target == b"*" {
            let is_options = *method == Method::OPTIONS;
            let asterisk = Self { path: target, query: None, absolute: None };
            return if is_options { Ok(asterisk) } else { Err(HeadProblem::TargetForm) };
        }
        let (origin, absolute) = if target.first() == Some(&b'/') {
            (target, None)
        } else {
            let (authority, origin, port) = split_absolute(target).ok_or(HeadProblem::TargetForm)?;
            let authority = std::str::from_utf8(authority).map_err(|_| HeadProblem::TargetForm)?;
            (origin, Some((authority, port)))
        };
        let (path, query) = match origin.iter().position(|&byte| byte == b'?') {
            Some(at) => (origin.get(..at), origin.get(at + 1..)),
            None => (Some(origin), None),
        };
        let query = query.map(std::str::from_utf8).transpose().map_err(|_| HeadProblem::TargetByte)?;
        if query.is_some_and(|query| !query.is_ascii()) {
            return Err(HeadProblem::TargetByte);
        }
        let path = path.filter(|path| !path.is_empty()).unwrap_or(b"/");
        Ok(Self { path, query, absolute })
    }
}

/// Authority, the rest and the default port of `http(s)://authority/rest` (RFC 9112 section 3.2.2).
fn split_absolute(target: &[u8]) -> Option<(&[u8], &[u8], u16)> {
    let colon = target.iter().position(|&byte| byte == b':')?;
    let (scheme, rest) = target.split_at_checked(colon)?;
    let port = match scheme {
        _ if scheme.eq_ignore_ascii_case(b"http") => 80,
        _ if scheme.eq_ignore_ascii_case(b"https") => 443,
        _ => return None,
    };
    let rest = rest.strip_prefix(b"://")?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, origin) = rest.split_at_checked(end)?;
    Some((authority, origin, port))
}

fn read_authority<'a>(
    input: &HeadInput<'a>,
    lines: &Lines<'a>,
    absolute: Option<(&'a str, u16)>,
) -> Result<Authority<'a>, HeadProblem> {
    let host = lines.host.map(|line| Authority::parse(line.as_bytes())).transpose()?;
    let pseudo = input.authority.map(|text| Authority::parse(text.as_bytes())).transpose()?;
    let authority = match (host, pseudo) {
        (Some(host), Some(pseudo)) if host != pseudo => return Err(HeadProblem::AuthorityMismatch),
        (_, Some(authority)) | (Some(authority), None) => authority,
        (None, None) => return Err(HeadProblem::MissingHost),
    };
    if let Some((text, default_port)) = absolute {
        let named = Authority::parse(text.as_bytes())?;
        let port = |authority: &Authority<'_>| authority.port.unwrap_or(default_port);
        if named.host != authority.host || port(&named) != port(&authority) {
            return Err(HeadProblem::AuthorityMismatch);
        }
    }
    Ok(authority)
}

fn read_framing(input: &HeadInput<'_>, lines: &Lines<'_>) -> Result<Framing, HeadProblem> {
    match (lines.content_length, lines.transfer_encoding) {
        (None, None) => Ok(Framing::Absent),
        (Some(_), Some(_)) => Err(HeadProblem::LengthAndEncoding),
        (Some(length), None) => content_length(length.as_bytes()).map(Framing::Length),
        // RFC 9112 section 6.1: not in HTTP/1.0; RFC 9113 section 8.2.2: not in HTTP/2.
        (None, Some(_)) if input.is_h2 || input.version != Version::HTTP_11 => {
            Err(HeadProblem::TransferEncoding)
        }
        (None, Some(coding)) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (None, Some(_)) => Err(HeadProblem::TransferEncoding),
    }
}

fn content_length(text: &[u8]) -> Result<u64, HeadProblem> {
    // 19 digits always fit u64; `5, 5`, `+5`, `0x5` and blanks are not digits.
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return Err(HeadProblem::ContentLength);
    }
    Ok(text.iter().fold(0, |sum: u64, digit| sum * 10 + u64::from(digit - b'0')))
}

fn read_expect(lines: &Lines<'_>) -> Result<bool, HeadProblem> {
    match lines.expect {
        None => Ok(false),
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(true),
        Some(_) => Err(HeadProblem::Expectation),
    }
}

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// RFC 9113 section 8.2.2: connection-specific fields make an HTTP/2 request malformed.
fn check_h2_fields(headers: &HeaderMap) -> Result<(), HeadProblem> {
    let forbidden = [&CONNECTION, &KEEP_ALIVE, &PROXY_CONNECTION, &UPGRADE];
    let only_trailers =
        headers.get_all(TE).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    if forbidden.into_iter().any(|name| headers.contains_key(name)) || !only_trailers {
        return Err(HeadProblem::ConnectionField);
    }
    Ok(())
}

fn is_websocket(input: &HeadInput<'_>, framing: Framing) -> bool {
    let names_upgrade = || {
        let mut options =
            input.headers.get_all(CONNECTION).iter().flat_map(|line| line.as_bytes().split(|&b| b == b','));
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    };
    let mut protocols = input.headers.get_all(UPGRADE).iter();
    let only_websocket =
        protocols.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
            && protocols.next().is_none();
    !input.is_h2
        && input.version == Version::HTTP_11
        && *input.method == Method::GET
        && matches!(framing, Framing::Absent | Framing::Length(0))
        && only_websocket
        && names_upgrade()
}

#[cfg(test)]
mod tests;
