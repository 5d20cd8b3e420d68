//! What is written down once per request, whatever became of it: metrics and the access log. It never changes
//! the answer.

use http::Version;

use super::context::Context;
use super::gateway::Gateway;
use crate::logging::AccessEntry;
use crate::metrics::{MethodClass, StatusClass};

/// What only the connection knows.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    /// Method as sent.
    pub method: &'a http::Method,
    /// Path and query as they go on.
    pub uri: &'a http::Uri,
    /// Protocol version.
    pub version: Version,
    /// Request header fields.
    pub headers: &'a http::HeaderMap,
    /// Status sent, zero when the client was gone before.
    pub status: u16,
    /// Body bytes sent.
    pub bytes: u64,
}

/// Writes down one finished request.
pub fn record(gateway: &Gateway, context: &Context, sent: &Sent<'_>) {
    let elapsed = context.started.elapsed();
    let metrics = &gateway.shared.metrics;
    let class = StatusClass::of(sent.status);
    let route = context.route.as_ref().map_or(&gateway.unrouted, |route| &route.metrics);
    route.requests.count(MethodClass::of(sent.method), class);
    route.duration_seconds.observe(elapsed.as_secs_f64());
    if let Some(outcome) = context.cache_outcome {
        route.cache.count(outcome);
    }
    if let Some(refusal) = &context.refusal {
        metrics.families().refusals.with_label_values(&[refusal.as_str()]).inc();
    }
    let log = &gateway.shared.access_log;
    if log.enabled() {
        let header = |name| sent.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
        let upstream = context.tried.last().map(ToString::to_string);
        log.record(&AccessEntry {
            time: context.received_at,
            request_id: context.request_id.to_str().unwrap_or("-"),
            client_ip: context.client.map(|client| client.ip),
            method: sent.method.as_str(),
            host: Some(&context.host),
            path: sent.uri.path(),
            query: sent.uri.query(),
            protocol: Some(protocol(sent.version)),
            route: context.route.as_ref().map(|route| &*route.name),
            status: sent.status,
            bytes: sent.bytes,
            duration_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            upstream: upstream.as_deref(),
            upstream_us: context.upstream_micros,
            user: context.identity.as_ref().map(|identity| &*identity.subject),
            plan: context.identity.as_ref().and_then(|identity| identity.plan.as_deref()),
            cache: context.cache_outcome.map(crate::metrics::CacheOutcome::as_str),
            limit: context.limit,
            refusal: context.refusal.as_ref().map(super::Refusal::reason),
            user_agent: header(http::header::USER_AGENT),
            referer: header(http::header::REFERER),
        });
    }
}

const fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}
