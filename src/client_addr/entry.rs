//! Entries of the forwarding headers, read from the right. It parses addresses; it never judges them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Longest text looked at as an address, in bytes: a bracketed IPv6 address with a port and slack.
const MAX_ADDRESS: usize = 64;

/// The comma-separated values of one line, last first, trimmed; empty ones are left out (RFC 9110 section 5.6.1).
pub(super) fn list(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.rsplit(|&byte| byte == b',').map(trim).filter(|value| !value.is_empty())
}

/// The elements of one `Forwarded` line, last first.
///
/// Quotes are paired from the right. An unbalanced quote that a client put at the left can then not swallow
/// what a proxy appended; the element in which pairing fails is garbage and ends the walk.
pub(super) fn elements(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        loop {
            let line = rest?;
            let mut quoted = false;
            let comma = line.iter().rposition(|&byte| {
                quoted ^= byte == b'"';
                byte == b',' && !quoted
            });
            rest = comma.and_then(|at| line.get(..at));
            let element = trim(line.get(comma.map_or(0, |at| at + 1)..)?);
            if !element.is_empty() {
                return Some(element);
            }
        }
    })
}

/// The address in a `Forwarded` element's `for`; `None` when it is missing, hidden or malformed.
pub(super) fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    address(parameter(element, b"for")?)
}

/// The value of a `Forwarded` parameter, without its quotes. `None` when it is missing, given twice or the
/// element is malformed. No value we read may hold a backslash or a semicolon, so escapes are not undone.
pub(super) fn parameter<'a>(element: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut found = None;
    for pair in element.split(|&byte| byte == b';') {
        let pair = trim(pair);
        if pair.is_empty() {
            continue;
        }
        let equals = pair.iter().position(|&byte| byte == b'=')?;
        let (key, value) = (pair.get(..equals)?, pair.get(equals + 1..)?);
        let value = match value {
            [b'"', inner @ .., b'"'] => inner,
            _ => value,
        };
        if value.iter().any(|byte| matches!(byte, b'"' | b'\\')) {
            return None;
        }
        if key.eq_ignore_ascii_case(name) && found.replace(value).is_some() {
            return None;
        }
    }
    found
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`, canonical.
pub(super) fn address(text: &[u8]) -> Option<IpAddr> {
    if text.len() > MAX_ADDRESS {
        return None;
    }
    // A scoped address (`fe80::1%2`) names an interface of another machine.
    if text.contains(&b'%') {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    let parsed = text
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()))
        .ok()
        .or_else(|| text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6));
    Some(parsed?.to_canonical())
}

/// Text that can be a host with an optional port.
pub(super) fn host(text: &[u8]) -> Option<&str> {
    let is_fine =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    if text.is_empty() || text.len() > 259 || !text.iter().all(is_fine) {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    let port = match text.strip_prefix('[') {
        Some(inner) => {
            let (address, after) = inner.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            if after.is_empty() { None } else { Some(after.strip_prefix(':')?) }
        }
        None => match text.split_once(':') {
            Some(("", _)) => return None,
            Some((name, port)) if !name.contains(['[', ']']) => Some(port),
            Some(_) => return None,
            None if text.contains(['[', ']']) => return None,
            None => None,
        },
    };
    match port {
        Some(port) if !port.bytes().all(|byte| byte.is_ascii_digit()) || port.parse::<u16>().is_err() => None,
        _ => Some(text),
    }
}

fn trim(text: &[u8]) -> &[u8] {
    let mut text = text;
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}
