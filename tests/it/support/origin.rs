//! A scriptable upstream on loopback that speaks HTTP/1.1 and h2c on one port and remembers what it was asked.
//! By default it echoes requests as JSON. Bytes that are no proper HTTP are for `raw_origin`.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::ports::free_addr;
use super::reply::{Broken, ReplyBody};
pub use super::reply::{Gate, Reply};
use super::{RUNTIME, wait_for};

const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A request as it reached the origin.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: Method,
    /// The request target without scheme and authority, as it was on the wire.
    pub target: String,
    pub path: String,
    pub query: Option<String>,
    pub authority: Option<String>,
    pub version: Version,
    pub headers: HeaderMap,
    pub trailers: HeaderMap,
    pub body: Bytes,
    /// Numbers the connections of this origin from 1, to see whether they are reused.
    pub connection: usize,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    /// What the default answer says of this request.
    pub fn echo(&self) -> Value {
        let mut headers: HashMap<&str, Vec<String>> = HashMap::new();
        for (name, value) in &self.headers {
            headers
                .entry(name.as_str())
                .or_default()
                .push(String::from_utf8_lossy(value.as_bytes()).into_owned());
        }
        json!({
            "method": self.method.as_str(),
            "path": self.path,
            "query": self.query,
            "authority": self.authority,
            "version": format!("{:?}", self.version),
            "headers": headers,
            "body_bytes": self.body.len(),
            "body_sha256": hex(&Sha256::digest(&self.body)),
        })
    }
}

type Handler = Arc<dyn Fn(&Received) -> Reply + Send + Sync>;

struct State {
    default: Mutex<Handler>,
    routes: Mutex<HashMap<String, Handler>>,
    received: Mutex<Vec<Received>>,
    hits: AtomicUsize,
    connections: AtomicUsize,
    in_flight: AtomicUsize,
}

/// A running origin; stops when dropped.
pub struct Origin {
    addr: SocketAddr,
    state: Arc<State>,
    run: watch::Sender<bool>,
}

impl fmt::Debug for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Origin").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl Origin {
    /// An origin that echoes.
    pub fn start() -> Self {
        let state = Arc::new(State {
            default: Mutex::new(Arc::new(|request: &Received| Reply::json(200, &request.echo()))),
            routes: Mutex::default(),
            received: Mutex::default(),
            hits: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
        });
        let (listener, addr) = wait_for(async {
            loop {
                let addr = free_addr();
                if let Ok(listener) = TcpListener::bind(addr).await {
                    return (listener, addr);
                }
            }
        });
        let (run, running) = watch::channel(true);
        RUNTIME.spawn(serve(addr, listener, running, Arc::clone(&state)));
        Self { addr, state, run }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Answers everything, from now on, with what `handler` says.
    pub fn answer(&self, handler: impl Fn(&Received) -> Reply + Send + Sync + 'static) {
        *self.state.default.lock().unwrap() = Arc::new(handler);
    }

    /// Answers one path, of any method, with what `handler` says.
    pub fn route(&self, path: &str, handler: impl Fn(&Received) -> Reply + Send + Sync + 'static) {
        self.state.routes.lock().unwrap().insert(path.to_owned(), Arc::new(handler));
    }

    /// Requests whose head has arrived.
    pub fn hits(&self) -> usize {
        self.state.hits.load(SeqCst)
    }

    /// Requests that arrived whole, in that order.
    pub fn received(&self) -> Vec<Received> {
        self.state.received.lock().unwrap().clone()
    }

    pub fn received_at(&self, path: &str) -> Vec<Received> {
        self.received().into_iter().filter(|request| request.path == path).collect()
    }

    /// The last request; fails the test if there was none.
    pub fn last(&self) -> Received {
        self.received().pop().expect("a request at the origin")
    }

    /// Requests being answered at this moment.
    pub fn in_flight(&self) -> usize {
        self.state.in_flight.load(SeqCst)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// Forgets what was received.
    pub fn clear(&self) {
        self.state.received.lock().unwrap().clear();
        self.state.hits.store(0, SeqCst);
    }

    /// Closes every connection and refuses new ones, until [`Self::resume`].
    pub fn stop(&self) {
        self.run.send_replace(false);
        assert_eventually!(
            std::net::TcpStream::connect(self.addr).is_err(),
            "a stopped origin refuses connections"
        );
    }

    pub fn resume(&self) {
        self.run.send_replace(true);
        assert_eventually!(
            std::net::TcpStream::connect(self.addr).is_ok(),
            "a resumed origin accepts connections"
        );
    }
}

async fn serve(
    addr: SocketAddr,
    listener: TcpListener,
    mut running: watch::Receiver<bool>,
    state: Arc<State>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let wanted = *running.borrow_and_update();
        if !wanted {
            connections.shutdown().await;
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(addr).await.ok();
        }
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                // Bound again later, or not wanted.
                None if wanted => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    Err(std::io::ErrorKind::AddrInUse.into())
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = running.changed() => if changed.is_err() { return },
            accepted = accept => if let Ok((stream, _)) = accepted {
                connections.spawn(connection(stream, Arc::clone(&state)));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    let number = state.connections.fetch_add(1, SeqCst) + 1;
    let is_h2 = speaks_h2(&stream).await;
    // Only a peer that is gone already can make this fail.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| answer(request, number, Arc::clone(&state)));
    let io = TokioIo::new(stream);
    // Connections that break are what many tests are about.
    if is_h2 {
        let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
    } else {
        let _ = http1::Builder::new().serve_connection(io, service).with_upgrades().await;
    }
}

async fn speaks_h2(stream: &TcpStream) -> bool {
    let mut start = [0; H2_PREFACE.len()];
    loop {
        match stream.peek(&mut start).await {
            Ok(length) if length == H2_PREFACE.len() => return start == H2_PREFACE,
            Ok(length @ 1..) if H2_PREFACE.starts_with(&start[..length]) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            _ => return false,
        }
    }
}

/// Counts a request as in flight for as long as it lives.
struct InFlight(Arc<State>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, SeqCst);
    }
}

async fn answer(
    request: Request<Incoming>,
    connection: usize,
    state: Arc<State>,
) -> Result<Response<ReplyBody<InFlight>>, Broken> {
    state.hits.fetch_add(1, SeqCst);
    state.in_flight.fetch_add(1, SeqCst);
    let guard = InFlight(Arc::clone(&state));

    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Broken)?;
    let received = Received {
        method: head.method,
        target: head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string),
        path: head.uri.path().to_owned(),
        query: head.uri.query().map(str::to_owned),
        authority: head.uri.authority().map(ToString::to_string),
        version: head.version,
        headers: head.headers,
        trailers: body.trailers().cloned().unwrap_or_default(),
        body: body.to_bytes(),
        connection,
    };
    let handler = state.routes.lock().unwrap().get(&received.path).map(Arc::clone);
    let handler = handler.unwrap_or_else(|| Arc::clone(&state.default.lock().unwrap()));
    state.received.lock().unwrap().push(received.clone());
    let reply = handler(&received);

    reply.play(received.method == Method::HEAD, guard).await
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
