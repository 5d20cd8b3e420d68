//! The server of the sample applications: HTTP/1.1, JSON answers, bounded bodies.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::reply::{Answer, Reply};
use super::request::Request;

const MAX_BODY: usize = 64 * 1024;
const BODY_TIME: Duration = Duration::from_secs(10);
/// How long an idle connection is kept: longer than most proxies keep theirs.
const IDLE_TIME: Duration = Duration::from_secs(75);

/// How many requests the application was asked, the answered one included: what a cache answers does not count.
const HITS: HeaderName = HeaderName::from_static("x-backend-hits");

/// An application: an answer to each request.
pub trait Application: Send + Sync + 'static {
    /// Answers a request; the error is a refusal.
    fn answer(&self, request: &Request) -> Answer;
}

/// Listens at `--listen`, or `LISTEN`, or else at `default`, and serves until the process ends.
///
/// # Errors
/// What is wrong with the command line or the address.
pub fn run<F: Future<Output = ()>>(
    default: &str,
    serve: impl FnOnce(TcpListener) -> F,
) -> anyhow::Result<()> {
    let Some(address) = listen_address(default)? else {
        println!("options: --listen HOST:PORT (or LISTEN in the environment; otherwise {default})");
        return Ok(());
    };
    let runtime = tokio::runtime::Runtime::new().context("cannot start")?;
    runtime.block_on(async {
        let listener =
            TcpListener::bind(&address).await.with_context(|| format!("cannot listen at {address}"))?;
        println!("listening at http://{}", listener.local_addr()?);
        serve(listener).await;
        Ok(())
    })
}

/// `None` when help is asked for.
fn listen_address(default: &str) -> anyhow::Result<Option<String>> {
    let mut arguments = std::env::args().skip(1);
    let mut address = super::variable("LISTEN").unwrap_or_else(|| default.to_owned());
    while let Some(argument) = arguments.next() {
        if let Some(value) = argument.strip_prefix("--listen=") {
            value.clone_into(&mut address);
        } else if argument == "--listen" {
            address = arguments.next().context("--listen needs HOST:PORT")?;
        } else if matches!(argument.as_str(), "--help" | "-h") {
            return Ok(None);
        } else {
            bail!("{argument:?} is not known; known: --listen HOST:PORT, --help");
        }
    }
    Ok(Some(address))
}

/// Serves `application` on every connection that arrives.
pub async fn serve(listener: TcpListener, application: impl Application) {
    let Ok(server) = listener.local_addr() else { return };
    let backend = Arc::new(Served { application, server, hits: AtomicU64::new(0) });
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, Arc::clone(&backend)));
            }
            // The client has gone already, or there are no descriptors left: others may be given back.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

struct Served<A> {
    application: A,
    server: SocketAddr,
    hits: AtomicU64,
}

async fn connection<A: Application>(stream: TcpStream, backend: Arc<Served<A>>) {
    let service = service_fn(|request| backend.respond(request));
    // What fails here is the connection, and whoever held its other end knows.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIME)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

impl<A: Application> Served<A> {
    async fn respond(
        &self,
        request: hyper::Request<Incoming>,
    ) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
        let hits = self.hits.fetch_add(1, Relaxed) + 1;
        let reply = match self.read(request).await {
            Ok(request) => self.application.answer(&request).unwrap_or_else(|refusal| refusal),
            Err(refusal) => refusal,
        };
        tokio::time::sleep(reply.after).await;
        Ok(response(&reply, hits))
    }

    async fn read(&self, request: hyper::Request<Incoming>) -> Result<Request, Reply> {
        let (head, body) = request.into_parts();
        let body = tokio::time::timeout(BODY_TIME, Limited::new(body, MAX_BODY).collect());
        let body = match body.await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return Err(Reply::refusal(StatusCode::PAYLOAD_TOO_LARGE, "The body is too large"));
            }
            Ok(Err(_)) => return Err(Reply::refusal(StatusCode::BAD_REQUEST, "The body cannot be read")),
            Err(_) => return Err(Reply::refusal(StatusCode::REQUEST_TIMEOUT, "The body takes too long")),
        };
        let path = head.uri.path().to_owned();
        Ok(Request { method: head.method, path, headers: head.headers, body, server: self.server })
    }
}

fn response(reply: &Reply, hits: u64) -> hyper::Response<Full<Bytes>> {
    let mut response = hyper::Response::new(Full::from(format!("{}\n", reply.body)));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(HITS, HeaderValue::from(hits));
    if reply.status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
