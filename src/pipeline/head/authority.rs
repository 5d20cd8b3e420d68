//! A host with an optional port, as `Host` and `:authority` give it (RFC 9110 section 7.2). It never resolves
//! and never defaults a port.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use super::problem::HeadProblem;

/// Longest host that is looked at, in bytes: a full domain name with its final dot.
const MAX_HOST: usize = 254;

/// Host and port, comparable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// Lower case, without a trailing dot; IPv6 in brackets in its canonical text.
    pub host: Cow<'a, str>,
    /// The port, never 0.
    pub port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Parses a name, an IPv4 address or a bracketed IPv6 address with an optional port.
    ///
    /// # Errors
    /// [`HeadProblem::InvalidHost`] for anything else: an empty host, a comma, space, slash, user information, an
    /// escape, a byte above ASCII, a port that is not 1–65535.
    pub fn parse(text: &'a [u8]) -> Result<Self, HeadProblem> {
        let text = std::str::from_utf8(text).map_err(|_| HeadProblem::InvalidHost)?;
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or(HeadProblem::InvalidHost)?;
                let address: Ipv6Addr = address.parse().map_err(|_| HeadProblem::InvalidHost)?;
                let port = match port.strip_prefix(':') {
                    Some(port) => Some(port),
                    None if port.is_empty() => None,
                    None => return Err(HeadProblem::InvalidHost),
                };
                (Cow::Owned(format!("[{address}]")), port)
            }
            None => match text.split_once(':') {
                Some((name, port)) => (name_of(name)?, Some(port)),
                None => (name_of(text)?, None),
            },
        };
        Ok(Self { host, port: port.map(port_of).transpose()? })
    }
}

fn name_of(text: &str) -> Result<Cow<'_, str>, HeadProblem> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty()
        || text.len() > MAX_HOST
        || name.starts_with('.')
        || name.ends_with('.')
        || !name.bytes().all(is_fine)
    {
        return Err(HeadProblem::InvalidHost);
    }
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Ok(Cow::Owned(name.to_ascii_lowercase()))
    } else {
        Ok(Cow::Borrowed(name))
    }
}

fn port_of(text: &str) -> Result<u16, HeadProblem> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(HeadProblem::InvalidHost);
    }
    match text.parse() {
        Ok(0) | Err(_) => Err(HeadProblem::InvalidHost),
        Ok(port) => Ok(port),
    }
}
