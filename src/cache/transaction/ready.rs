//! The usual hit: fresh, in memory, and wanted as it is. It is answered before pingora's state machine is set up, which
//! would copy the header twice and decide nothing else. Whatever is not as usual goes through pingora.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, response};
use pingora::http::ResponseHeader;

use super::Transaction;
use crate::cache::directives::RequestDirectives;
use crate::cache::entry::Entry;
use crate::cache::status::{Outcome, Report};
use crate::cache::storage::Tier;
use crate::clock::UnixMillis;

/// Fields by which a request asks for less than the whole stored response.
const PARTIAL: [HeaderName; 4] =
    [header::RANGE, header::IF_RANGE, header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];

/// Fields that a hit is given at most, those of the gateway included, so that the map grows once.
const ROOM: usize = 17;

/// A stored response that answers a request as it is.
#[derive(Debug)]
pub struct Ready {
    /// Its header, with `Age` and what is said about the hit.
    pub head: response::Parts,
    /// Held until its body is sent, as what is being read counts.
    entry: Arc<Entry>,
}

impl Ready {
    /// Bytes of the body.
    pub fn length(&self) -> usize {
        self.entry.body().len()
    }

    /// What follows from byte `at` of the body on, as far as it is in one piece; it is not copied.
    pub fn read(&self, at: usize) -> Option<Bytes> {
        self.entry.body().read(at, self.length())
    }
}

impl Transaction {
    /// For `request_filter`: the answer, where this is a plain GET for what is fresh in memory. `None` says nothing but
    /// that pingora is to find out. `show_key`: with `X-Cache-Key`.
    pub fn ready(
        &self,
        method: &Method,
        request: &HeaderMap,
        show_key: bool,
        now: UnixMillis,
    ) -> Option<Ready> {
        if method != Method::GET
            || self.directives != RequestDirectives::default()
            || PARTIAL.iter().any(|name| request.contains_key(name))
        {
            return None;
        }
        let entry = self.cache.fresh_in_memory(&self.key, now)?;
        // A hit that is to begin a refresh does so through pingora.
        if entry.freshness().is_ending(self.window(entry.freshness()), now) {
            return None;
        }
        let stored = entry.header()?;
        // A primary slot is of the variant it says; the others are found in pingora's second lookup.
        let variance = self.variance(&stored.headers, request);
        let is_of_this_variant = variance.is_none() || variance == entry.variance();
        let has_body = stored.status != StatusCode::NO_CONTENT
            && stored.status != StatusCode::NOT_MODIFIED
            && stored.headers.contains_key(header::CONTENT_LENGTH);
        (is_of_this_variant && has_body).then(|| self.answer(entry, stored, show_key, now))
    }

    fn answer(&self, entry: Arc<Entry>, stored: ResponseHeader, show_key: bool, now: UnixMillis) -> Ready {
        let mut head = response::Parts::from(stored);
        head.version = Version::HTTP_11;
        let fields = &mut head.headers;
        fields.reserve(ROOM);
        // RFC 9111 section 4.
        fields.insert(header::AGE, HeaderValue::from(now.millis_since(entry.epoch()) / 1_000));
        if head.status == StatusCode::OK {
            fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        let mut header = ResponseHeader::from(head);
        let seconds = |time: UnixMillis| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        Report {
            outcome: Outcome::Hit,
            had_stale: false,
            by_request: false,
            stored: false,
            collapsed: false,
            ttl: Some(seconds(entry.fresh_until()).saturating_sub(seconds(now))),
            detail: Some(Tier::Memory.as_str()),
            key: show_key.then_some(&*self.public_key),
        }
        .write(&mut header);
        Ready { head: header.into(), entry }
    }
}
