//! Leaf values: how one TOML scalar becomes a duration, a size, an address, a secret. It knows no keys and never
//! puts a value into a message; the reader does, where that is safe.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, Method};
use ipnet::IpNet;

use super::error::did_you_mean;

/// A string that is never shown: `Debug` and `Display` print `[redacted]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the code that uses it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Where the store is: a Redis, a master under sentinels, or a Cluster. Shown without its credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(Box<str>);

impl RedisUrl {
    /// The whole URL with its credentials, for the client library.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the connection is TLS (`rediss://`).
    pub fn is_tls(&self) -> bool {
        self.0.starts_with("rediss:") || self.0.starts_with("rediss+")
    }

    /// Whether it is a Cluster.
    pub fn is_cluster(&self) -> bool {
        self.0.split_once("://").is_some_and(|(scheme, _)| scheme.ends_with("+cluster"))
    }
}

impl fmt::Display for RedisUrl {
    /// Scheme, host, port and database only: credentials and options are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("redis", ""));
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        write!(f, "{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, host)| host))
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Host and port of an upstream member; the host is a name or an address literal (IPv6 without brackets).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Name, IPv4 or IPv6 literal.
    pub host: Box<str>,
    /// 1 to 65535.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What kind of TOML scalar a [`Raw`] was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Integer,
    Float,
    Bool,
}

/// A scalar as text, variables filled in.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) kind: Kind,
    pub(super) text: String,
}

/// Why a scalar is refused, beyond what its type accepts.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Appended to `… is not accepted; accepted: …`.
    pub(super) hint: String,
}

impl Refused {
    pub(super) fn hint(hint: impl Into<String>) -> Self {
        Self { hint: hint.into() }
    }
}

/// A type that one scalar can be decoded into.
pub(super) trait Leaf: Sized {
    /// The value must not be repeated in a message.
    const SECRET: bool = false;

    /// What is accepted, for messages.
    fn accepted() -> Cow<'static, str>;

    fn decode(raw: &Raw) -> Result<Self, Refused>;
}

fn text_only(raw: &Raw) -> Result<&str, Refused> {
    if raw.kind == Kind::Text { Ok(&raw.text) } else { Err(Refused::hint("; write it in quotes")) }
}

impl Leaf for String {
    fn accepted() -> Cow<'static, str> {
        "a string".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        text_only(raw).map(str::to_owned)
    }
}

impl Leaf for Secret {
    const SECRET: bool = true;

    fn accepted() -> Cow<'static, str> {
        "a string, best from the environment: \"${NAME}\"".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        text_only(raw).map(Self::new)
    }
}

impl Leaf for bool {
    fn accepted() -> Cow<'static, str> {
        "true, false".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        raw.text.trim().parse().map_err(|_| Refused::default())
    }
}

macro_rules! whole_numbers {
    ($($type:ty),+) => {$(
        impl Leaf for $type {
            fn accepted() -> Cow<'static, str> {
                format!("a whole number from 0 to {}", <$type>::MAX).into()
            }

            fn decode(raw: &Raw) -> Result<Self, Refused> {
                raw.text.trim().parse().map_err(|_| Refused::default())
            }
        }
    )+};
}
whole_numbers!(u8, u16, u32, u64);

impl Leaf for f64 {
    fn accepted() -> Cow<'static, str> {
        "a positive number".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        match raw.text.trim().parse::<f64>() {
            Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
            _ => Err(Refused::default()),
        }
    }
}

impl Leaf for Duration {
    fn accepted() -> Cow<'static, str> {
        "a duration with its unit such as \"20ms\", \"60s\", \"5m\", \"1h30m\"".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        if raw.kind != Kind::Text {
            return Err(Refused::hint(format!("; write \"{}s\" if seconds are meant", raw.text)));
        }
        humantime::parse_duration(raw.text.trim()).map_err(|_| Refused::default())
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Size(pub(super) u64);

impl Leaf for Size {
    fn accepted() -> Cow<'static, str> {
        "a size such as \"64KiB\", \"10MB\" or a number of bytes".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        if !matches!(raw.kind, Kind::Text | Kind::Integer) || raw.text.contains('-') {
            return Err(Refused::default());
        }
        let size = bytesize::ByteSize::from_str(raw.text.trim()).map_err(|_| Refused::default())?;
        // Fractions are computed in floating point and would saturate silently.
        if size.as_u64() > 1 << 50 { Err(Refused::default()) } else { Ok(Self(size.as_u64())) }
    }
}

impl Leaf for SocketAddr {
    fn accepted() -> Cow<'static, str> {
        "an address and a port such as \"127.0.0.1:8080\", \"[::1]:8080\"".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        let text = text_only(raw)?.trim();
        let text = text
            .strip_prefix("localhost:")
            .map_or(Cow::Borrowed(text), |port| Cow::Owned(format!("127.0.0.1:{port}")));
        text.parse().map_err(|_| Refused::default())
    }
}

impl Leaf for IpNet {
    fn accepted() -> Cow<'static, str> {
        "an address or a network such as \"10.0.0.0/8\", \"192.0.2.7\", \"fd00::/8\"".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        let text = text_only(raw)?.trim();
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(|net| net.trunc()).map_err(|_| Refused::default())
    }
}

impl Leaf for HostPort {
    fn accepted() -> Cow<'static, str> {
        "\"host:port\" such as \"127.0.0.1:8000\", \"api.internal:80\", \"[::1]:8000\"".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        let text = text_only(raw)?.trim();
        if text.contains("://") {
            return Err(Refused::hint("; leave out the scheme and the path"));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(Refused::default)?;
        let port: u16 = port.parse().map_err(|_| Refused::default())?;
        let host = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().map_err(|_| Refused::default())?.to_string(),
            None if is_host_name(host) => host.to_ascii_lowercase(),
            None => return Err(Refused::default()),
        };
        if port == 0 { Err(Refused::default()) } else { Ok(Self { host: host.into(), port }) }
    }
}

/// Letters, digits, `-` and `_` in labels of 1 to 63 parted by dots, at most 253 in all.
pub(super) fn is_host_name(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        })
}

/// 1 to 64 letters, digits, `-`, `_` and `.`: safe in Redis keys, header fields and metric labels.
pub(super) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

impl Leaf for RedisUrl {
    const SECRET: bool = true;

    fn accepted() -> Cow<'static, str> {
        "\"redis://[user:password@]host[:port][/database]\", \"redis+sentinel://host[:port][,…][/service[/database]]\", \
         \"redis+cluster://host[:port][,…]\", each with \"rediss\" for TLS, \"\" for memory only"
            .into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        let text = text_only(raw)?.trim();
        if crate::redis::Settings::new(text).is_err() {
            return Err(Refused::default());
        }
        Ok(Self(text.into()))
    }
}

impl Leaf for HeaderName {
    fn accepted() -> Cow<'static, str> {
        "a header name such as \"X-User-Id\"".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        Self::from_bytes(text_only(raw)?.as_bytes()).map_err(|_| Refused::default())
    }
}

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];

impl Leaf for Method {
    fn accepted() -> Cow<'static, str> {
        format!("{}, or another method in capitals", METHODS.join(", ")).into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        let text = text_only(raw)?;
        let capitals = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        match Self::from_bytes(text.as_bytes()) {
            Ok(Self::CONNECT) | Err(_) => Err(Refused::default()),
            Ok(method) if capitals => Ok(method),
            Ok(_) => Err(Refused::hint(did_you_mean(&text.to_ascii_uppercase(), METHODS))),
        }
    }
}

/// Declares a closed enum whose variants are words of the configuration file. The first variant is its `Default`.
macro_rules! words {
    ($($(#[$doc:meta])* pub enum $name:ident {
        $(#[$fdoc:meta])* $first:ident = $fword:literal, $($(#[$vdoc:meta])* $variant:ident = $word:literal,)*
    })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { #[default] $(#[$fdoc])* $first, $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every variant, in the order it is documented.
            pub const ALL: &'static [Self] = &[Self::$first, $(Self::$variant,)*];

            /// The word in the configuration file.
            pub const fn as_str(self) -> &'static str {
                match self { Self::$first => $fword, $(Self::$variant => $word,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::config::value::Leaf for $name {
            fn accepted() -> std::borrow::Cow<'static, str> {
                [$fword, $($word),*].join(", ").into()
            }

            fn decode(raw: &$crate::config::value::Raw) -> Result<Self, $crate::config::value::Refused> {
                let word = raw.text.trim();
                match word {
                    $fword => Ok(Self::$first),
                    $($word => Ok(Self::$variant),)*
                    _ => Err($crate::config::value::Refused::hint(
                        $crate::config::error::did_you_mean(word, [$fword, $($word),*]),
                    )),
                }
            }
        }
    )+};
}
pub(super) use words;
