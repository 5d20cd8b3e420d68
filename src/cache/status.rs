//! What the cache did for a request, in the words clients and operators read: `X-Cache`, `Cache-Status` (RFC 9211)
//! and metric labels. It only reports.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderValue, StatusCode};
use pingora::cache::{CachePhase, NoCacheReason};
use sfv::{BareItem, List, ListEntry, Parser};

use super::request::Bypass;
use crate::header_names::{CACHE_STATUS, X_CACHE, X_CACHE_KEY};

/// What other caches say is passed on up to this many bytes.
const MAX_UPSTREAM_STATUS: usize = 2048;

/// The outcome in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Served from the cache, fresh.
    Hit,
    /// Served from the cache, stale: the backend failed, or is being asked in the background.
    Stale,
    /// Served from the cache after the backend confirmed it.
    Revalidated,
    /// Fetched after the cache had nothing usable.
    Miss,
    /// Fetched without asking the cache.
    Bypass,
}

impl Outcome {
    /// Every value, for metrics that start at zero.
    pub const ALL: [Self; 5] = [Self::Hit, Self::Stale, Self::Revalidated, Self::Miss, Self::Bypass];

    /// The outcome that pingora's `phase` stands for when a response leaves.
    pub const fn of(phase: CachePhase) -> Self {
        match phase {
            CachePhase::Hit => Self::Hit,
            CachePhase::Stale | CachePhase::StaleUpdating => Self::Stale,
            CachePhase::Revalidated | CachePhase::RevalidatedNoCache(_) => Self::Revalidated,
            CachePhase::Miss | CachePhase::Expired => Self::Miss,
            CachePhase::Disabled(reason) => match reason {
                NoCacheReason::NeverEnabled => Self::Bypass,
                // The cache was asked, and had nothing; then the answer could not be stored, or not shared.
                _ => Self::Miss,
            },
            CachePhase::Bypass | CachePhase::Uninit | CachePhase::CacheKey => Self::Bypass,
        }
    }

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
        }
    }

    /// The value of `X-Cache`.
    pub const fn x_cache(self) -> &'static str {
        match self {
            Self::Hit => "HIT",
            Self::Stale => "STALE",
            Self::Revalidated => "REVALIDATED",
            Self::Miss => "MISS",
            Self::Bypass => "BYPASS",
        }
    }
}

/// Why a request went on to the upstream (RFC 9211 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// The cache was not asked.
    Bypass,
    /// Nothing is stored under this key.
    UriMiss,
    /// What is stored is for requests with other headers.
    VaryMiss,
    /// What is stored was no longer fresh.
    Stale,
    /// A fresh response was there, but the request did not want it.
    Request,
}

impl Forwarded {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Stale => "stale",
            Self::Request => "request",
        }
    }
}

/// Everything that is said about one response.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The outcome.
    pub outcome: Outcome,
    /// Why it went on to the upstream, for itself or along with another request; `None`: a hit.
    pub forwarded: Option<Forwarded>,
    /// The status with which the upstream answered, where it did.
    pub answered: Option<u16>,
    /// The response is being stored.
    pub stored: bool,
    /// The request waited for another one, and could use its answer or not.
    pub collapsed: Option<bool>,
    /// Seconds of freshness left; negative when stale.
    pub ttl: Option<i64>,
    /// Why nothing was stored, why the cache was not asked, or where the answer was found: a label.
    pub detail: Option<&'static str>,
    /// The key's fingerprint; `None`: it is not sent.
    pub key: Option<&'a str>,
}

impl Report<'_> {
    /// Writes the headers of an answer with the status `sent`. What caches nearer to the origin say in `Cache-Status` stays in front; everything else
    /// under these names is replaced.
    pub fn write(&self, sent: StatusCode, fields: &mut HeaderMap) {
        fields.insert(&X_CACHE, HeaderValue::from_static(self.outcome.x_cache()));
        append(fields, self.cache_status(sent.as_u16()));
        match self.key.and_then(|key| HeaderValue::from_str(key).ok()) {
            Some(key) => drop(fields.insert(&X_CACHE_KEY, key)),
            None => drop(fields.remove(&X_CACHE_KEY)),
        }
    }

    /// This cache's member of `Cache-Status`, in an answer of this status.
    pub fn cache_status(&self, sent: u16) -> String {
        let mut status = String::with_capacity(64);
        status.push_str("tollgate; ");
        // Writing to a String cannot fail.
        match self.forwarded {
            None => status.push_str("hit"),
            Some(why) => {
                let _ = write!(status, "fwd={}", why.as_str());
                if let Some(answered) = self.answered.filter(|answered| *answered != sent) {
                    let _ = write!(status, "; fwd-status={answered}");
                }
                if self.stored {
                    status.push_str("; stored");
                }
                if let Some(shared) = self.collapsed {
                    status.push_str(if shared { "; collapsed" } else { "; collapsed=?0" });
                }
            }
        }
        if let Some(ttl) = self.ttl {
            let _ = write!(status, "; ttl={ttl}");
        }
        if let Some(key) = self.key {
            let _ = write!(status, "; key=\"{key}\"");
        }
        if let Some(detail) = self.detail {
            status.push_str("; detail=");
            status.push_str(detail);
        }
        status
    }
}

/// Reports on a request that went past the cache of its route.
pub fn write_bypass(fields: &mut HeaderMap, why: Bypass) {
    fields.insert(&X_CACHE, HeaderValue::from_static(Outcome::Bypass.x_cache()));
    // Whoever says so upstream speaks of another cache.
    fields.remove(&X_CACHE_KEY);
    if why == Bypass::Method {
        append(fields, String::from("tollgate; fwd=method"));
    } else {
        append(fields, format!("tollgate; fwd=bypass; detail={}", why.as_str()));
    }
}

/// Adds `member` to the list that caches nearer to the origin began, if that is one (RFC 9211 section 2).
fn append(fields: &mut HeaderMap, member: String) {
    let value = match upstream_members(fields) {
        Some(mut members) => {
            members.push_str(", ");
            members.push_str(&member);
            members
        }
        None => member,
    };
    // Visible ASCII, all of it.
    if let Ok(value) = HeaderValue::try_from(value) {
        fields.insert(&CACHE_STATUS, value);
    }
}

fn upstream_members(headers: &HeaderMap) -> Option<String> {
    let mut lines = headers.get_all(&CACHE_STATUS).iter();
    let mut members = lines.next()?.to_str().ok()?.to_owned();
    for line in lines {
        members.push_str(", ");
        members.push_str(line.to_str().ok()?);
    }
    if members.len() > MAX_UPSTREAM_STATUS {
        return None;
    }
    let list: List = Parser::new(&members).parse().ok()?;
    let names_a_cache = |member: &ListEntry| match member {
        ListEntry::Item(item) => matches!(item.bare_item, BareItem::Token(_) | BareItem::String(_)),
        ListEntry::InnerList(_) => false,
    };
    (!list.is_empty() && list.iter().all(names_a_cache)).then_some(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Report<'static> = Report {
        outcome: Outcome::Hit,
        forwarded: None,
        answered: None,
        stored: false,
        collapsed: None,
        ttl: None,
        detail: None,
        key: None,
    };

    #[test]
    fn every_phase_has_an_outcome() {
        assert_eq!(Outcome::of(CachePhase::StaleUpdating), Outcome::Stale);
        assert_eq!(Outcome::of(CachePhase::Disabled(NoCacheReason::OriginNotCache)), Outcome::Miss);
        assert_eq!(Outcome::of(CachePhase::Disabled(NoCacheReason::NeverEnabled)), Outcome::Bypass);
        assert_eq!(Outcome::of(CachePhase::Bypass), Outcome::Bypass);
    }

    #[test]
    fn cache_status_is_a_structured_field_that_says_what_happened() {
        let miss = Report { outcome: Outcome::Miss, forwarded: Some(Forwarded::UriMiss), ..QUIET };
        let table = [
            (Report { ttl: Some(30), ..QUIET }, "tollgate; hit; ttl=30"),
            (
                Report { key: Some("0a"), detail: Some("memory"), ..QUIET },
                "tollgate; hit; key=\"0a\"; detail=memory",
            ),
            (Report { outcome: Outcome::Stale, ttl: Some(-4), ..QUIET }, "tollgate; hit; ttl=-4"),
            (
                Report { forwarded: miss.forwarded, collapsed: Some(true), ..QUIET },
                "tollgate; fwd=uri-miss; collapsed",
            ),
            (Report { collapsed: Some(false), ..miss }, "tollgate; fwd=uri-miss; collapsed=?0"),
            (Report { stored: true, answered: Some(200), ..miss }, "tollgate; fwd=uri-miss; stored"),
            (Report { detail: Some("set_cookie"), ..miss }, "tollgate; fwd=uri-miss; detail=set_cookie"),
            (Report { forwarded: Some(Forwarded::Stale), ..miss }, "tollgate; fwd=stale"),
            (Report { forwarded: Some(Forwarded::VaryMiss), ..miss }, "tollgate; fwd=vary-miss"),
            (
                Report { forwarded: Some(Forwarded::Stale), answered: Some(304), ..QUIET },
                "tollgate; fwd=stale; fwd-status=304",
            ),
            (Report { forwarded: Some(Forwarded::Request), ..QUIET }, "tollgate; fwd=request"),
            (Report { forwarded: Some(Forwarded::Bypass), ..QUIET }, "tollgate; fwd=bypass"),
        ];
        for (report, expected) in table {
            assert_eq!(report.cache_status(200), expected);
            let parsed = Parser::new(expected).parse::<List>();
            assert!(parsed.is_ok(), "{expected}");
        }
    }

    #[test]
    fn other_caches_are_heard_if_they_can_be_understood() {
        let said = |lines: &[&'static str]| {
            let mut fields = HeaderMap::new();
            for line in lines {
                fields.append(&CACHE_STATUS, HeaderValue::from_static(line));
            }
            QUIET.write(StatusCode::OK, &mut fields);
            let all: Vec<_> = fields.get_all("cache-status").iter().collect();
            assert_eq!(all.len(), 1);
            all.first().unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(said(&["origin; hit"]), "origin; hit, tollgate; hit");
        assert_eq!(said(&["a; hit", "\"b c\"; fwd=miss"]), "a; hit, \"b c\"; fwd=miss, tollgate; hit");
        for malformed in ["", "a; hit,", "(a b)", "5", "HIT from proxy", "a; hit=\"x"] {
            assert_eq!(said(&[malformed]), "tollgate; hit", "{malformed}");
        }
    }

    #[test]
    fn a_bypass_says_why() {
        let mut fields = HeaderMap::new();
        write_bypass(&mut fields, Bypass::Body);
        assert_eq!(fields.get("cache-status").unwrap(), "tollgate; fwd=bypass; detail=body");
        let mut fields = HeaderMap::new();
        fields.insert(&X_CACHE_KEY, HeaderValue::from_static("spoofed"));
        write_bypass(&mut fields, Bypass::Method);
        assert!(fields.get("x-cache-key").is_none());
        assert_eq!(fields.get("cache-status").unwrap(), "tollgate; fwd=method");
        assert_eq!(fields.get("x-cache").unwrap(), "BYPASS");
    }
}
