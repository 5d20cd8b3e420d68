//! A small HTTP client over real sockets (HTTP/1.1 or h2c), and raw bytes for requests no client would send.
//! It follows no redirect, keeps no cookie and retries only what was never sent.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::Mutex;

use super::{PATIENCE, wait_for};

type Body = Full<Bytes>;

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// A client of one address with one kept-alive connection, opened again when the server has closed it.
/// Clones share it: concurrent requests take turns on HTTP/1.1 and are multiplexed on h2.
#[derive(Debug, Clone)]
pub struct Client {
    addr: SocketAddr,
    version: Version,
    sender: Arc<Mutex<Option<Sender>>>,
}

impl Client {
    /// Speaks HTTP/1.1.
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr, version: Version::HTTP_11, sender: Arc::default() }
    }

    /// Speaks HTTP/2 without TLS, by prior knowledge.
    pub fn h2c(addr: SocketAddr) -> Self {
        Self { addr, version: Version::HTTP_2, sender: Arc::default() }
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    pub fn put(&self, path: &str) -> RequestBuilder {
        self.request(Method::PUT, path)
    }

    pub fn delete(&self, path: &str) -> RequestBuilder {
        self.request(Method::DELETE, path)
    }

    /// A request with `Host` (or `:authority`) set to the address unless [`RequestBuilder::host`] says otherwise.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        RequestBuilder {
            client: self.clone(),
            method,
            path: path.to_owned(),
            host: self.addr.to_string(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            limit: PATIENCE,
        }
    }

    async fn send(self, mut request: Request<Body>) -> Result<Response, SendError> {
        // The second time on a connection that is certainly new.
        for _ in 0..2 {
            let started = Instant::now();
            let response = match self.attempt(request).await {
                Ok(response) => response,
                Err(Unsent(Some(unsent), _)) => {
                    request = unsent;
                    continue;
                }
                Err(Unsent(None, error)) => return Err(error),
            };
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| SendError::Body(head.status, error))?;
            return Ok(Response {
                status: head.status,
                version: head.version,
                headers: head.headers,
                trailers: body.trailers().cloned().unwrap_or_default(),
                body: body.to_bytes(),
                took: started.elapsed(),
            });
        }
        Err(SendError::ClosedAtOnce)
    }

    async fn attempt(&self, request: Request<Body>) -> Result<http::Response<hyper::body::Incoming>, Unsent> {
        let mut sender = self.sender.lock().await;
        let usable = match &mut *sender {
            Some(Sender::Http1(sender)) => sender.ready().await.is_ok(),
            Some(Sender::Http2(sender)) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            *sender = Some(self.connect().await.map_err(|error| Unsent(None, error))?);
        }
        match sender.as_mut().expect("connected above") {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(shared) => {
                let mut own = shared.clone();
                // Free for others while this one is under way.
                drop(sender);
                own.try_send_request(request).await
            }
        }
        .map_err(|mut failed| Unsent(failed.take_message(), SendError::Exchange(failed.into_error())))
    }

    async fn connect(&self) -> Result<Sender, SendError> {
        let stream = tokio::net::TcpStream::connect(self.addr).await.map_err(SendError::Connect)?;
        stream.set_nodelay(true).map_err(SendError::Connect)?;
        let io = TokioIo::new(stream);
        // The connections' own errors reach the requests on them.
        if self.version == Version::HTTP_2 {
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), io).await.map_err(SendError::Exchange)?;
            tokio::spawn(connection);
            Ok(Sender::Http2(sender))
        } else {
            let (sender, connection) = http1::handshake(io).await.map_err(SendError::Exchange)?;
            tokio::spawn(connection);
            Ok(Sender::Http1(sender))
        }
    }
}

struct Unsent(Option<Request<Body>>, SendError);

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("no response: {0:?}")]
    Exchange(hyper::Error),
    #[error("response {0} broke off in its body: {1:?}")]
    Body(StatusCode, hyper::Error),
    #[error("the server closes every new connection before a request is sent")]
    ClosedAtOnce,
    #[error("nothing within {0:?}")]
    TimedOut(Duration),
}

/// A request about to be sent.
#[derive(Debug)]
#[must_use = "nothing is sent before `send`"]
pub struct RequestBuilder {
    client: Client,
    method: Method,
    path: String,
    host: String,
    headers: HeaderMap,
    body: Bytes,
    limit: Duration,
}

impl RequestBuilder {
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// Adds a header; a second one of the same name is another line.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
        self
    }

    pub fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    pub fn json(self, value: &serde_json::Value) -> Self {
        self.header("content-type", "application/json").body(value.to_string())
    }

    /// How long to wait for the whole response; [`PATIENCE`] by default.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sends and waits for the whole response; fails the test if there is none.
    pub fn send(self) -> Response {
        let what = format!("{} {}", self.method, self.path);
        self.try_send().unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    pub fn try_send(self) -> Result<Response, SendError> {
        wait_for(self.send_async())
    }

    pub async fn send_async(self) -> Result<Response, SendError> {
        let is_h2 = self.client.version == Version::HTTP_2;
        // HTTP/2 carries the authority in the target, HTTP/1.1 in the header.
        let target = if is_h2 { format!("http://{}{}", self.host, self.path) } else { self.path.clone() };
        let mut request = Request::builder().method(self.method).uri(target).version(self.client.version);
        if !is_h2 && !self.headers.contains_key("host") {
            request = request.header("host", &self.host);
        }
        let mut request = request.body(Full::new(self.body)).expect("a request that can be written down");
        request.headers_mut().extend(self.headers);
        tokio::time::timeout(self.limit, self.client.send(request))
            .await
            .unwrap_or(Err(SendError::TimedOut(self.limit)))
    }
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub trailers: HeaderMap,
    pub body: Bytes,
    /// From before sending to the end of the body.
    pub took: Duration,
}

impl Response {
    pub fn code(&self) -> u16 {
        self.status.as_u16()
    }

    /// The first value of a header, `None` when it is absent or not text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Every value of a header.
    pub fn header_all(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {:?}", self.text()))
    }

    /// The `detail` of a problem (RFC 9457); fails the test if the body is none.
    pub fn detail(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        self.json()["detail"].as_str().unwrap_or_else(|| panic!("no detail: {}", self.text())).to_owned()
    }
}

/// Sends bytes as they are and returns all that comes back: until the server closes, or has said something and then
/// nothing for half a second. Fails the test after [`PATIENCE`] of a server that neither speaks nor closes.
pub fn raw(addr: SocketAddr, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    const QUIET: Duration = Duration::from_millis(500);
    let mut stream = RawConnection::open(addr);
    // A server that refuses early may close before it has read everything.
    let _ = stream.try_send(bytes.as_ref());
    stream.read_until_quiet(QUIET)
}

/// The status code of the first response in raw bytes; `None` if there is none, as when the server just closes.
pub fn raw_status(response: &[u8]) -> Option<u16> {
    let line = response.split(|&byte| byte == b'\r').next()?;
    std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()
}

/// A plain TCP connection, to write requests piece by piece.
#[derive(Debug)]
pub struct RawConnection {
    stream: TcpStream,
}

impl RawConnection {
    pub fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes.as_ref()).unwrap();
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Tells the server that nothing more will come, and goes on reading.
    pub fn finish(&self) {
        // Fails only if the server has closed already.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Reads until the server closes; the error of a reset counts as closing. Fails the test if it does not close.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        self.read_while(PATIENCE, |_| true).unwrap_or_else(|so_far| {
            panic!("the server did not close; it said {:?}", String::from_utf8_lossy(&so_far))
        })
    }

    /// Reads until what came satisfies `enough`; fails the test if the server closes or falls silent before.
    pub fn read_until(&mut self, mut enough: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
        let mut satisfied = false;
        let bytes = self.read_while(PATIENCE, |bytes| {
            satisfied = enough(bytes);
            !satisfied
        });
        let (Ok(bytes) | Err(bytes)) = bytes;
        assert!(satisfied, "the server said only {:?}", String::from_utf8_lossy(&bytes));
        bytes
    }

    /// Reads one response head, and no check of what follows it.
    pub fn read_head(&mut self) -> Vec<u8> {
        self.read_until(|bytes| bytes.windows(4).any(|end| end == b"\r\n\r\n"))
    }

    fn read_until_quiet(&mut self, quiet: Duration) -> Vec<u8> {
        let start = Instant::now();
        let mut all = Vec::new();
        loop {
            match self.read_while(quiet, |_| true) {
                Ok(last) => {
                    all.extend(last);
                    return all;
                }
                Err(part) if part.is_empty() && !all.is_empty() => return all,
                Err(part) => all.extend(part),
            }
            assert!(start.elapsed() < PATIENCE, "the server neither answers nor closes; it said {all:?}");
        }
    }

    /// `Ok` at the end of the stream or when `more` is false, `Err` with what came when nothing came for `limit`.
    fn read_while(
        &mut self,
        limit: Duration,
        mut more: impl FnMut(&[u8]) -> bool,
    ) -> Result<Vec<u8>, Vec<u8>> {
        self.stream.set_read_timeout(Some(limit)).unwrap();
        let mut all = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(all),
                Ok(length) => all.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(all);
                }
                Err(_) => return Ok(all),
            }
            if !more(&all) {
                return Ok(all);
            }
        }
    }
}
