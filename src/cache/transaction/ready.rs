//! The usual hit: fresh, in memory, and wanted as it is. It is answered before pingora's state machine is set up, which
//! would copy the header twice and decide nothing else. Whatever is not as usual goes through pingora.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, response};

use super::Transaction;
use crate::cache::directives::RequestDirectives;
use crate::cache::entry::Entry;
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
    /// Its head with `Age`, as it comes before `response_filter`.
    pub head: response::Parts,
    /// To be held until the body is sent, as what is being read counts.
    pub stored: Stored,
}

/// What memory holds of it.
#[derive(Debug)]
pub struct Stored(Arc<Entry>);

impl Stored {
    /// Bytes of the body.
    pub fn length(&self) -> usize {
        self.0.body().len()
    }

    /// What follows from byte `at` of the body on, as far as it is in one piece; it is not copied.
    pub fn read(&self, at: usize) -> Option<Bytes> {
        self.0.body().read(at, self.length())
    }
}

impl Transaction {
    /// For `request_filter`: the answer, where this is a plain GET for what is fresh in memory, and from then on a hit
    /// to [`Self::report`]. `None` says nothing but that pingora is to find out.
    pub fn ready(&mut self, method: &Method, request: &HeaderMap, now: UnixMillis) -> Option<Ready> {
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
        let mut head = entry.head(ROOM);
        // A primary slot is of the variant it says; the others are found in pingora's second lookup.
        let variance = self.variant(&head.headers, request);
        let is_of_this_variant = variance.is_none() || variance == entry.variance();
        let has_body = head.status != StatusCode::NO_CONTENT
            && head.status != StatusCode::NOT_MODIFIED
            && head.headers.contains_key(header::CONTENT_LENGTH);
        if !is_of_this_variant || !has_body {
            return None;
        }
        self.tier = Some(Tier::Memory);
        self.fresh_at_once = Some(entry.fresh_until());
        tell_age(&mut head, entry.epoch(), now);
        Some(Ready { head, stored: Stored(entry) })
    }
}

/// As pingora does for its hits (RFC 9111 section 4).
fn tell_age(head: &mut response::Parts, epoch: UnixMillis, now: UnixMillis) {
    head.headers.insert(header::AGE, HeaderValue::from(now.millis_since(epoch) / 1_000));
    if head.status == StatusCode::OK {
        head.headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    }
}
