//! A severable TCP relay, put between a gateway and its Redis (or an origin) to cut, silence or slow the link.
//! It never changes bytes: it passes them, swallows them or closes the connection.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ports::free_addr;
use super::resp::CommandReader;
use super::{RUNTIME, wait_for};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Open,
    /// Connections are closed, new ones refused.
    Cut,
    /// Connections stay and are accepted, and nothing ever comes out of them.
    Silent,
}

/// What has gone through a relay, over all its connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections accepted.
    pub connections: u64,
    pub bytes_to_server: u64,
    pub bytes_to_client: u64,
    /// How often, per connection, the client spoke after the server had: commands sent together without waiting for
    /// an answer between them are one exchange.
    pub exchanges: u64,
    /// Every Redis command the client sent, name first; none when the link does not carry Redis.
    pub commands: Vec<Vec<String>>,
}

#[derive(Debug, Default)]
struct Shared {
    delay_micros: AtomicU64,
    answer_delay_micros: AtomicU64,
    /// One more than the bytes that a connection carries to the server before it breaks; 0: it does not.
    breaks_after: AtomicU64,
    breaks: AtomicU64,
    traffic: Mutex<Traffic>,
}

/// A relay from an address of its own to a server; stops, closing everything, when dropped.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    shared: Arc<Shared>,
    orders: mpsc::UnboundedSender<Order>,
}

#[derive(Debug)]
struct Order {
    link: Link,
    close_all: bool,
    done: oneshot::Sender<()>,
}

impl Relay {
    pub fn to(server: SocketAddr) -> Self {
        let shared = Arc::new(Shared::default());
        let (orders, inbox) = mpsc::unbounded_channel();
        let (listener, addr) = wait_for(async {
            loop {
                let addr = free_addr();
                if let Ok(listener) = TcpListener::bind(addr).await {
                    return (listener, addr);
                }
            }
        });
        RUNTIME.spawn(run(addr, server, listener, inbox, Arc::clone(&shared)));
        Self { addr, shared, orders }
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// [`Self::addr`] as the URL of a Redis.
    pub fn redis_url(&self) -> String {
        format!("redis://{}/", self.addr)
    }

    /// Closes every connection and refuses new ones; both are so when this returns.
    pub fn cut(&self) {
        self.order(Link::Cut, true);
    }

    /// Accepts connections and swallows what they send, without an answer; also on those that are open.
    pub fn black_hole(&self) {
        self.order(Link::Silent, false);
    }

    /// Passes bytes again. Connections that were black-holed have lost some and are closed.
    pub fn restore(&self) {
        self.order(Link::Open, true);
    }

    /// Passes bytes on new connections only: those that were black-holed stay silent for ever, as after a firewall has
    /// forgotten them. The client has to give them up by itself.
    pub fn restore_for_new_connections(&self) {
        self.order(Link::Open, false);
    }

    /// Adds this much to every round trip, without narrowing the link. Zero takes it away.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay_micros.store(u64::try_from(delay.as_micros()).unwrap(), SeqCst);
    }

    /// Holds back every answer for this long, although what was asked is done.
    pub fn delay_answers(&self, delay: Duration) {
        self.shared.answer_delay_micros.store(u64::try_from(delay.as_micros()).unwrap(), SeqCst);
    }

    /// From now on closes each connection, open or new, as soon as that many bytes of it have gone to the server; what
    /// comes after them is lost. `None` ends it.
    pub fn break_after(&self, bytes: Option<u64>) {
        self.shared.breaks_after.store(bytes.map_or(0, |bytes| bytes + 1), SeqCst);
    }

    /// How often something was lost by [`Self::break_after`].
    pub fn breaks(&self) -> u64 {
        self.shared.breaks.load(SeqCst)
    }

    pub fn traffic(&self) -> Traffic {
        self.shared.traffic.lock().unwrap().clone()
    }

    /// [`Self::traffic`], beginning anew.
    pub fn take_traffic(&self) -> Traffic {
        std::mem::take(&mut *self.shared.traffic.lock().unwrap())
    }

    fn order(&self, link: Link, close_all: bool) {
        let (done, obeyed) = oneshot::channel();
        self.orders.send(Order { link, close_all, done }).expect("the relay runs");
        wait_for(obeyed).expect("the relay obeys");
    }
}

async fn run(
    addr: SocketAddr,
    server: SocketAddr,
    listener: TcpListener,
    mut inbox: mpsc::UnboundedReceiver<Order>,
    shared: Arc<Shared>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    let (link, _) = watch::channel(Link::Open);
    loop {
        tokio::select! {
            order = inbox.recv() => {
                let Some(Order { link: wanted, close_all, done }) = order else { return };
                link.send_replace(wanted);
                if close_all {
                    connections.shutdown().await;
                }
                if wanted == Link::Cut {
                    listener = None;
                } else if listener.is_none() {
                    listener = Some(bind_again(addr).await);
                }
                // The test has failed meanwhile if nobody waits.
                let _ = done.send(());
            }
            accepted = accept(listener.as_ref()) => {
                shared.traffic.lock().unwrap().connections += 1;
                connections.spawn(relay(accepted, server, link.subscribe(), Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    match listener {
        Some(listener) => loop {
            if let Ok((stream, _)) = listener.accept().await {
                return stream;
            }
        },
        None => std::future::pending().await,
    }
}

async fn bind_again(addr: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => return listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Carries one connection until either side closes it or a silence has swallowed part of it.
async fn relay(client: TcpStream, server: SocketAddr, mut link: watch::Receiver<Link>, shared: Arc<Shared>) {
    // Connections accepted in silence never reach the server.
    if *link.borrow_and_update() == Link::Silent {
        swallow(client).await;
    } else {
        let Ok(upstream) = TcpStream::connect(server).await else { return };
        if client.set_nodelay(true).is_err() || upstream.set_nodelay(true).is_err() {
            return;
        }
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = upstream.into_split();
        let turn = Mutex::new(Turn { last_was_client: false, commands: CommandReader::default() });
        let (carried, broken) = (AtomicU64::new(0), Notify::new());
        // How much of this many bytes goes to the server.
        let passes = |length: usize| {
            let before = carried.fetch_add(length as u64, SeqCst);
            let Some(limit) = shared.breaks_after.load(SeqCst).checked_sub(1) else { return length };
            let passes = usize::try_from(limit.saturating_sub(before)).unwrap().min(length);
            if passes < length {
                shared.breaks.fetch_add(1, SeqCst);
            }
            passes
        };
        // The usual delay lies on the way to the server alone, so that it is counted once per round trip.
        let towards_server = carry(
            from_client,
            to_server,
            link.clone(),
            || shared.delay(),
            |bytes| {
                shared.count_from_client(&turn, bytes);
            },
            (&passes, &broken),
        );
        let towards_client = carry(
            from_server,
            to_client,
            link.clone(),
            || Duration::from_micros(shared.answer_delay_micros.load(SeqCst)),
            |bytes| {
                shared.count_from_server(&turn, bytes);
            },
            (&|length| length, &broken),
        );
        tokio::select! {
            // A half-closed connection stays half-closed.
            _ = async { tokio::join!(towards_server, towards_client) } => {}
            () = broken.notified() => {}
        }
    }
}

#[derive(Debug)]
struct Turn {
    last_was_client: bool,
    commands: CommandReader,
}

impl Shared {
    fn delay(&self) -> Duration {
        Duration::from_micros(self.delay_micros.load(SeqCst))
    }

    fn count_from_client(&self, turn: &Mutex<Turn>, bytes: &[u8]) {
        let mut turn = turn.lock().unwrap();
        let mut traffic = self.traffic.lock().unwrap();
        traffic.bytes_to_server += bytes.len() as u64;
        if !std::mem::replace(&mut turn.last_was_client, true) {
            traffic.exchanges += 1;
        }
        traffic.commands.extend(turn.commands.feed(bytes).into_iter().map(|mut command| {
            command[0].make_ascii_uppercase();
            command
        }));
    }

    fn count_from_server(&self, turn: &Mutex<Turn>, bytes: &[u8]) {
        turn.lock().unwrap().last_was_client = false;
        self.traffic.lock().unwrap().bytes_to_client += bytes.len() as u64;
    }
}

/// Passes one direction on, each piece `delay` after it came; once the link falls silent nothing passes ever again.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut link: watch::Receiver<Link>,
    delay: impl Fn() -> Duration,
    count: impl Fn(&[u8]),
    (passes, broken): (&(impl Fn(usize) -> usize + ?Sized), &Notify),
) {
    let mut buffer = vec![0; 64 * 1024];
    let (queue, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let read = async {
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let bytes = &buffer[..length];
            count(bytes);
            if queue.send((Instant::now() + delay(), bytes.to_vec())).await.is_err() {
                break;
            }
        }
        drop(queue);
    };
    let write = async {
        while let Some((at, bytes)) = due.recv().await {
            tokio::time::sleep_until(at).await;
            let length = passes(bytes.len());
            if to.write_all(&bytes[..length]).await.is_err() {
                return;
            }
            if length < bytes.len() {
                broken.notify_one();
            }
        }
        // Fails only if the peer is gone.
        let _ = to.shutdown().await;
    };
    let passed_to_the_end = tokio::select! {
        _ = async { tokio::join!(read, write) } => true,
        () = silence(&mut link) => false,
    };
    if !passed_to_the_end {
        // Keep reading, so that the sender's writes go on to succeed, and keep `to` open, so that the other side
        // hears of nothing. Only the relay's end or `close_all` ends this.
        while let Ok(1..) = from.read(&mut buffer).await {}
        std::future::pending::<()>().await;
    }
}

async fn silence(link: &mut watch::Receiver<Link>) {
    // Fails when the relay ends, which ends this task too.
    if link.wait_for(|link| *link == Link::Silent).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn swallow(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(1..) = stream.read(&mut buffer).await {}
}
