//! Upstreams below HTTP: one that records the exact bytes it gets and plays back scripted ones, and one that nobody
//! can connect to. They never interpret what they receive.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::ports::free_addr;
use super::{RUNTIME, wait_for};

/// One thing a scripted connection does.
#[derive(Debug, Clone)]
pub enum Step {
    /// Reads until the bytes that no earlier step consumed contain this; consumes up to its end.
    ReadUntil(Vec<u8>),
    /// Reads until that many unconsumed bytes are there; consumes them.
    Read(usize),
    Send(Vec<u8>),
    Wait(Duration),
    /// Goes on reading and recording, and says nothing more.
    Hang,
    /// Closes in order (FIN).
    Close,
    /// Closes with a reset (RST).
    Reset,
    /// Starts again from the first step.
    Again,
}

impl Step {
    pub fn read_head() -> Self {
        Self::ReadUntil(b"\r\n\r\n".to_vec())
    }

    pub fn send(bytes: impl AsRef<[u8]>) -> Self {
        Self::Send(bytes.as_ref().to_vec())
    }
}

type Record = Arc<Mutex<Vec<Vec<u8>>>>;

/// An origin whose every connection follows a script; stops when dropped.
#[derive(Debug)]
pub struct RawOrigin {
    addr: SocketAddr,
    record: Record,
    _stop: oneshot::Sender<()>,
}

impl RawOrigin {
    /// Runs `script` on each connection; at its end the connection goes on recording until the peer closes.
    pub fn playing(script: Vec<Step>) -> Self {
        let (listener, addr) = wait_for(async {
            loop {
                let addr = free_addr();
                if let Ok(listener) = TcpListener::bind(addr).await {
                    return (listener, addr);
                }
            }
        });
        let record = Record::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = accept(listener, script, Arc::clone(&record));
        RUNTIME.spawn(async move {
            tokio::select! {
                () = run => {}
                _ = stopped => {}
            }
        });
        Self { addr, record, _stop: stop }
    }

    /// Answers each request head (whatever ends in an empty line) with these bytes.
    pub fn answering(response: impl AsRef<[u8]>) -> Self {
        Self::playing(vec![Step::read_head(), Step::send(response), Step::Again])
    }

    /// Answers each request head with an empty 200.
    pub fn ok() -> Self {
        Self::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What each connection has sent so far, in the order they were opened.
    pub fn connections(&self) -> Vec<Vec<u8>> {
        self.record.lock().unwrap().clone()
    }

    /// All that was sent, connection after connection.
    pub fn bytes(&self) -> Vec<u8> {
        self.connections().concat()
    }

    /// [`Self::bytes`] as lossy text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

async fn accept(listener: TcpListener, script: Vec<Step>, record: Record) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let number = {
                    let mut record = record.lock().unwrap();
                    record.push(Vec::new());
                    record.len() - 1
                };
                connections.spawn(Connection { stream, number, consumed: 0, record: Arc::clone(&record) }.play(script.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

struct Connection {
    stream: TcpStream,
    number: usize,
    consumed: usize,
    record: Record,
}

impl Connection {
    async fn play(mut self, script: Vec<Step>) {
        let mut position = 0;
        while let Some(step) = script.get(position) {
            position += 1;
            let goes_on = match step {
                Step::ReadUntil(end) => {
                    let end = end.clone();
                    self.read(move |bytes| {
                        bytes.windows(end.len()).position(|window| window == end).map(|at| at + end.len())
                    })
                    .await
                }
                Step::Read(length) => {
                    let length = *length;
                    self.read(move |bytes| (bytes.len() >= length).then_some(length)).await
                }
                Step::Send(bytes) => self.stream.write_all(bytes).await.is_ok(),
                Step::Wait(pause) => {
                    tokio::time::sleep(*pause).await;
                    true
                }
                Step::Hang => break,
                Step::Close => return,
                Step::Reset => {
                    // Fails only if the connection is gone already.
                    let _ = self.stream.set_zero_linger();
                    return;
                }
                Step::Again => {
                    position = 0;
                    true
                }
            };
            if !goes_on {
                return;
            }
        }
        self.read(|_| None).await;
    }

    /// Reads and records until `found` names the length to consume; false at the end of the stream.
    async fn read(&mut self, found: impl Fn(&[u8]) -> Option<usize>) -> bool {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let length = found(&self.record.lock().unwrap()[self.number][self.consumed..]);
            if let Some(length) = length {
                self.consumed += length;
                return true;
            }
            match self.stream.read(&mut buffer).await {
                Ok(length @ 1..) => {
                    self.record.lock().unwrap()[self.number].extend_from_slice(&buffer[..length]);
                }
                _ => return false,
            }
        }
    }
}

/// An address where connecting neither succeeds nor fails: the listener's queue is full and nobody accepts.
#[derive(Debug)]
pub struct DeafOrigin {
    addr: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl DeafOrigin {
    pub fn start() -> Self {
        let (addr, listener, queued) = wait_for(async {
            let listener = listen_on_a_free_port();
            let addr = listener.local_addr().unwrap();
            let mut queued = Vec::new();
            // The kernel allows a few more than asked for.
            while queued.len() < 64 {
                match tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(addr)).await {
                    Ok(connected) => queued.push(connected.unwrap()),
                    Err(_) => return (addr, listener, queued),
                }
            }
            panic!("64 connections went into a queue of 1");
        });
        Self { addr, _listener: listener, _queued: queued }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// With room for one connection that nobody accepts.
fn listen_on_a_free_port() -> TcpListener {
    for _ in 0..10 {
        let socket = TcpSocket::new_v4().unwrap();
        // A port whose earlier connections linger is free all the same.
        socket.set_reuseaddr(true).unwrap();
        let bound = socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, super::ports::free_port())));
        // Somebody else may have been quicker.
        if let Ok(listener) = bound.and_then(|()| socket.listen(1)) {
            return listener;
        }
    }
    panic!("no port to listen on");
}
