//! Requests of the gateway's own that keep responses warm. They go the way of a client's through the cache, over a
//! pair of sockets that never leaves the process; what makes them the gateway's own is handed to pingora beside the
//! bytes, so that no client can say it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use pingora::apps::HttpServerApp;
use pingora::cache::CachePhase;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream;
use pingora::proxy::{HttpProxy, Session};
use pingora::server::configuration::ServerConf;
use prometheus::IntGauge;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};

use super::{Exchange, Proxy};
use crate::cache::warm::{Target, Warmed};
use crate::client_addr::Scheme;
use crate::pipeline::Origin;

/// No look takes longer, whatever the upstream does.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes the requests.
pub struct Warmer {
    application: Arc<HttpProxy<Proxy>>,
    /// Instead of the count of clients' requests in flight: the end of the process does not wait for these.
    in_flight: IntGauge,
}

/// What makes a request one of these.
pub(super) struct Warming {
    scheme: Scheme,
    /// See [`crate::cache::Transaction::keep_warm`].
    pub(super) window: u16,
    pub(super) in_flight: IntGauge,
    told: Mutex<Option<oneshot::Sender<Warmed>>>,
}

impl Warmer {
    /// Makes requests to `proxy`.
    ///
    /// # Errors
    /// A gauge that cannot be made, which does not happen.
    pub fn new(conf: &Arc<ServerConf>, proxy: Proxy) -> Result<Self, prometheus::Error> {
        let mut application = HttpProxy::new(proxy, Arc::clone(conf));
        application.handle_init_modules();
        let in_flight = IntGauge::new("warming", "not registered: nobody reads it")?;
        Ok(Self { application: Arc::new(application), in_flight })
    }

    /// Looks after one response: fetches it unless it is there and fresh for long enough. `window`: see
    /// [`crate::cache::Transaction::keep_warm`].
    pub async fn look(&self, target: &Target, window: u16) -> Warmed {
        let (tell, told) = oneshot::channel();
        let scheme = if target.https { Scheme::Https } else { Scheme::Http };
        let warming =
            Warming { scheme, window, in_flight: self.in_flight.clone(), told: Mutex::new(Some(tell)) };
        let exchange = async {
            self.exchange(target, warming).await.ok()?;
            told.await.ok()
        };
        tokio::time::timeout(PATIENCE, exchange).await.ok().flatten().unwrap_or(Warmed::Failed(0))
    }

    /// Ended early, it leaves the request to pingora, as a client does that goes away: dropped in the middle, that would
    /// not give back what it holds.
    async fn exchange(&self, target: &Target, warming: Warming) -> std::io::Result<()> {
        let (mut ours, theirs) = UnixStream::pair()?;
        ours.write_all(&head(target)).await?;
        let mut session = ServerSession::new_http1(Box::new(Stream::from(theirs)));
        session.set_connection_user_context(Some(Box::new(warming)));
        let application = Arc::clone(&self.application);
        tokio::spawn(async move {
            // Never told to shut down: the process ends without waiting for it.
            let (_running, shutdown) = watch::channel(false);
            drop(application.process_new_http(session, &shutdown).await);
        });
        tokio::io::copy(&mut ours, &mut tokio::io::sink()).await.map(drop)
    }
}

impl std::fmt::Debug for Warmer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Warmer").finish_non_exhaustive()
    }
}

/// The request as bytes: every part was checked when the configuration was loaded.
fn head(target: &Target) -> BytesMut {
    let mut head = BytesMut::with_capacity(256);
    for part in ["GET ", &*target.target, " HTTP/1.1\r\nhost: ", &*target.authority, "\r\n"] {
        head.extend_from_slice(part.as_bytes());
    }
    for (name, value) in &target.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"connection: close\r\n\r\n");
    head
}

impl Warming {
    /// What the caller of a request was given beside its bytes, if it is one of these.
    pub(super) fn of(given: Box<dyn Any + Send + Sync>) -> Option<Box<Self>> {
        given.downcast().ok()
    }

    pub(super) const fn origin(&self) -> Origin {
        Origin::Warming(self.scheme)
    }

    /// Says what came of it, once it is over.
    pub(super) fn tell(&self, session: &Session, exchange: &Exchange, failed: bool) {
        if let Some(tell) = self.told.lock().take() {
            let _ = tell.send(warmed(session, exchange, failed));
        }
    }
}

fn warmed(session: &Session, exchange: &Exchange, failed: bool) -> Warmed {
    let status = session.response_written().map_or(0, |response| response.status.as_u16());
    let bad = failed || exchange.context.refusal.is_some() || !(200..400).contains(&status);
    if bad {
        return Warmed::Failed(status);
    }
    let now = exchange.gateway.shared.clock.now();
    let Some(transaction) = exchange.transaction_read() else { return Warmed::NotKept("not_cached") };
    match transaction.kept(&session.cache, now) {
        Some(freshness) if session.cache.phase() == CachePhase::Hit => Warmed::Fresh(freshness),
        Some(freshness) => Warmed::Fetched(freshness),
        None => Warmed::NotKept(transaction.not_stored().map_or("never_fresh", |why| why.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    #[test]
    fn the_request_says_what_is_declared_and_nothing_else() {
        let mut headers = HeaderMap::new();
        headers.insert("accept-encoding", HeaderValue::from_static("gzip"));
        let target = Target {
            route: "r".into(),
            https: false,
            authority: "a.example".into(),
            target: "/x?a=1".into(),
            refresh_ahead: None,
            headers,
        };
        assert_eq!(
            &head(&target)[..],
            b"GET /x?a=1 HTTP/1.1\r\nhost: a.example\r\naccept-encoding: gzip\r\nconnection: close\r\n\r\n"
        );
    }
}
