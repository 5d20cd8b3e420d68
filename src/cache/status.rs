//! What the cache did for a request, in the words clients and operators read: `X-Cache`, `Cache-Status` (RFC 9211)
//! and metric labels. It only reports.

use std::fmt::Write as _;

use pingora::cache::{CachePhase, NoCacheReason};
use pingora::http::ResponseHeader;

use super::request::Bypass;
use crate::header_names::{CACHE_STATUS, X_CACHE, X_CACHE_KEY};

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

/// Everything that is said about one response.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts about one response")]
pub struct Report<'a> {
    /// The outcome.
    pub outcome: Outcome,
    /// A stale entry was there when the request went on.
    pub had_stale: bool,
    /// A fresh entry was there, but the request did not want it.
    pub by_request: bool,
    /// The response is being stored.
    pub stored: bool,
    /// The request waited for another one.
    pub collapsed: bool,
    /// Seconds of freshness left; negative when stale.
    pub ttl: Option<i64>,
    /// Why nothing was stored, or why the cache was not asked: a label.
    pub detail: Option<&'static str>,
    /// What `X-Cache-Key` says; `None`: it is not sent.
    pub key: Option<&'a str>,
}

impl Report<'_> {
    /// Writes the headers, replacing what the backend sent under these names.
    pub fn write(&self, header: &mut ResponseHeader) {
        // A static name and visible ASCII: inserting cannot fail.
        drop(header.insert_header(&X_CACHE, self.outcome.x_cache()));
        drop(header.insert_header(&CACHE_STATUS, self.cache_status()));
        if let Some(key) = self.key {
            drop(header.insert_header(&X_CACHE_KEY, key));
        }
    }

    /// The value of `Cache-Status`.
    pub fn cache_status(&self) -> String {
        let mut status = String::from("tollgate; ");
        status.push_str(match self.outcome {
            Outcome::Hit | Outcome::Stale => "hit",
            Outcome::Bypass => "fwd=bypass",
            Outcome::Revalidated | Outcome::Miss if self.by_request => "fwd=request",
            Outcome::Revalidated => "fwd=stale; fwd-status=304",
            Outcome::Miss if self.had_stale => "fwd=stale",
            Outcome::Miss => "fwd=uri-miss",
        });
        let cached = matches!(self.outcome, Outcome::Hit | Outcome::Stale);
        if self.stored && !cached {
            status.push_str("; stored");
        }
        if self.collapsed && !cached {
            status.push_str("; collapsed");
        }
        if let Some(ttl) = self.ttl {
            // Writing to a String cannot fail.
            let _ = write!(status, "; ttl={ttl}");
        }
        let detail = if self.collapsed && cached { Some("collapsed") } else { self.detail };
        if let Some(detail) = detail {
            status.push_str("; detail=");
            status.push_str(detail);
        }
        status
    }
}

/// Reports on a request that went past the cache of its route.
pub fn write_bypass(header: &mut ResponseHeader, why: Bypass) {
    let status = if why == Bypass::Method { "tollgate; fwd=method" } else { "tollgate; fwd=bypass; detail=" };
    let detail = if why == Bypass::Method { "" } else { why.as_str() };
    drop(header.insert_header(&X_CACHE, Outcome::Bypass.x_cache()));
    drop(header.insert_header(&CACHE_STATUS, format!("{status}{detail}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Report<'static> = Report {
        outcome: Outcome::Hit,
        had_stale: false,
        by_request: false,
        stored: false,
        collapsed: false,
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
        let table = [
            (Report { ttl: Some(30), ..QUIET }, "tollgate; hit; ttl=30"),
            (Report { outcome: Outcome::Stale, ttl: Some(-4), ..QUIET }, "tollgate; hit; ttl=-4"),
            (Report { collapsed: true, ..QUIET }, "tollgate; hit; detail=collapsed"),
            (Report { outcome: Outcome::Miss, stored: true, ..QUIET }, "tollgate; fwd=uri-miss; stored"),
            (
                Report { outcome: Outcome::Miss, detail: Some("set_cookie"), ..QUIET },
                "tollgate; fwd=uri-miss; detail=set_cookie",
            ),
            (Report { outcome: Outcome::Miss, had_stale: true, ..QUIET }, "tollgate; fwd=stale"),
            (Report { outcome: Outcome::Revalidated, ..QUIET }, "tollgate; fwd=stale; fwd-status=304"),
            (Report { outcome: Outcome::Revalidated, by_request: true, ..QUIET }, "tollgate; fwd=request"),
            (Report { outcome: Outcome::Bypass, ..QUIET }, "tollgate; fwd=bypass"),
        ];
        for (report, expected) in table {
            assert_eq!(report.cache_status(), expected);
            let parsed = sfv::Parser::new(expected).parse::<sfv::List>();
            assert!(parsed.is_ok(), "{expected}");
        }
    }

    #[test]
    fn a_bypass_says_why() {
        let mut header = ResponseHeader::build(200, None).unwrap();
        write_bypass(&mut header, Bypass::Body);
        assert_eq!(header.headers.get("cache-status").unwrap(), "tollgate; fwd=bypass; detail=body");
        write_bypass(&mut header, Bypass::Method);
        assert_eq!(header.headers.get("cache-status").unwrap(), "tollgate; fwd=method");
        assert_eq!(header.headers.get("x-cache").unwrap(), "BYPASS");
    }
}
