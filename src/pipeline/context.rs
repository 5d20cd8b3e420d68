//! What is known of one request, as it learns it. It travels through the phases and decides nothing.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderValue;

use super::admit::{CacheUse, Params};
use super::give_back::Provisional;
use super::refusal::Refusal;
use super::reply::Reply;
use crate::client_addr::{ClientAddr, Scheme};
use crate::clock::UnixMillis;
use crate::identity::Identity;
use crate::limits::Permit;
use crate::metrics::Held;
use crate::route::Route;
use crate::upstream::forward::TraceParent;

/// How far a request got.
#[derive(Debug)]
pub enum Admission {
    /// Not judged yet.
    Pending,
    /// Let through.
    Admitted(Box<Admitted>),
    /// Answered by the gateway itself.
    Answered(Reply),
}

/// A request that passed every stage.
#[derive(Debug)]
pub struct Admitted {
    /// The route it takes.
    pub route: Arc<Route>,
    /// Values of the route's `:name` segments.
    pub params: Params,
    /// The caller; `None` for nobody in particular.
    pub identity: Option<Arc<Identity>>,
    /// What may be asked of the cache.
    pub cache: CacheUse,
    /// The tags of what a write to this target replaces, where reads of it would be stored.
    pub overwrites: Vec<Box<str>>,
    /// What is asked of the upstream.
    pub target: Target,
}

/// What is asked of the upstream.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// Canonical path and query; `None` when the request came in that form.
    pub rewritten: Option<Box<str>>,
    /// A WebSocket handshake.
    pub websocket: bool,
}

/// Everything about one request that outlives a phase.
#[derive(Debug)]
pub struct Context {
    /// Wall-clock time of arrival.
    pub received_at: UnixMillis,
    /// For measuring.
    pub started: Instant,
    /// Whose address counts; unknown until the client address stage.
    pub client: Option<ClientAddr>,
    /// Scheme the client used.
    pub scheme: Scheme,
    /// Host and port that were routed by.
    pub authority: Box<str>,
    /// Host and port that the client asked for, as a trusted proxy tells where it does.
    pub host: Box<str>,
    /// Correlation id, sent upstream and downstream.
    pub request_id: HeaderValue,
    /// Trace context sent upstream; unknown until the client address stage.
    pub trace: Option<TraceParent>,
    /// Name and metrics of the route, known even when a later stage refuses.
    pub route: Option<Arc<Route>>,
    /// The caller, known even when a later stage refuses.
    pub identity: Option<Arc<Identity>>,
    /// How far it got.
    pub admission: Admission,
    /// Fields that tell the client about its limits.
    pub quota: Vec<(http::HeaderName, HeaderValue)>,
    /// Counts that depend on the upstream's answer.
    pub provisional: Vec<Provisional>,
    /// What the limits decided, for the log.
    pub limit: Option<&'static str>,
    /// Why the gateway answered itself.
    pub refusal: Option<Refusal>,
    /// Members already tried, the last one being in use.
    pub tried: Vec<SocketAddr>,
    /// When the last member was chosen.
    pub asked_at: Option<Instant>,
    /// Microseconds until the upstream's answer began.
    pub upstream_micros: Option<u64>,
    /// Body bytes that went to the member in use so far.
    pub body_bytes: u64,
    /// What the cache did, for the log.
    pub cache_outcome: Option<crate::metrics::CacheOutcome>,
    /// What the request holds of limits on requests in flight, until its response was sent or it broke off.
    pub permits: Vec<Permit>,
    /// Counts the request while it is in flight.
    pub in_flight: Held,
}

impl Context {
    /// The host as the cache knows it.
    pub fn cache_host(&self) -> Cow<'_, str> {
        if self.host == self.authority {
            Cow::Borrowed(&*self.authority)
        } else {
            // The upstream is told both, so that its answer may depend on both. A comma is in no host.
            Cow::Owned(format!("{},{}", self.authority, self.host))
        }
    }

    /// A request that just arrived.
    pub fn new(now: UnixMillis, in_flight: Held) -> Self {
        Self {
            received_at: now,
            started: Instant::now(),
            client: None,
            scheme: Scheme::Http,
            authority: Box::default(),
            host: Box::default(),
            request_id: HeaderValue::from_static("-"),
            trace: None,
            route: None,
            identity: None,
            admission: Admission::Pending,
            quota: Vec::new(),
            provisional: Vec::new(),
            limit: None,
            refusal: None,
            tried: Vec::new(),
            asked_at: None,
            upstream_micros: None,
            body_bytes: 0,
            cache_outcome: None,
            permits: Vec::new(),
            in_flight,
        }
    }

    /// The request once it was admitted, to be changed.
    pub fn admitted_mut(&mut self) -> Option<&mut Admitted> {
        match &mut self.admission {
            Admission::Pending | Admission::Answered(_) => None,
            Admission::Admitted(admitted) => Some(admitted),
        }
    }

    /// The request once it was admitted.
    pub fn admitted(&self) -> Option<&Admitted> {
        match &self.admission {
            Admission::Pending | Admission::Answered(_) => None,
            Admission::Admitted(admitted) => Some(admitted),
        }
    }
}
