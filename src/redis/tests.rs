//! The road to Redis against a server of the tests' own, which answers, falls silent or refuses as they want it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use ::redis::{Value, cmd};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{Lane, Settings, Shard, Store, Unavailable, Unburdened, Unobserved};

/// Answers every command with `+OK` or an error, unless silent; as a sentinel it names a master, and every master
/// says that it is one.
#[derive(Default)]
struct Server {
    accepted: AtomicUsize,
    /// Connections up to this one are never answered.
    silent_up_to: AtomicUsize,
    refuses: AtomicBool,
    /// Named as the master.
    master: Mutex<Option<SocketAddr>>,
}

impl Server {
    async fn start() -> (Arc<Self>, SocketAddr) {
        let server = Arc::new(Self::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let own = Arc::clone(&server);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = own.accepted.fetch_add(1, SeqCst) + 1;
                tokio::spawn(Arc::clone(&own).serve(stream, number));
            }
        });
        (server, addr)
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream, number: usize) {
        let (mut buffer, mut owed) = ([0; 4096], 0);
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            if number <= self.silent_up_to.load(SeqCst) {
                continue;
            }
            let text = String::from_utf8_lossy(&buffer[..length]);
            let commands = text.matches('*').count() + std::mem::take(&mut owed);
            if text.contains("LATE") {
                owed = commands;
                continue;
            }
            let reply = match () {
                () if self.refuses.load(SeqCst) => "-READONLY no\r\n",
                () if text.contains("FORBIDDEN") => "-NOPERM no\r\n",
                () => "+OK\r\n",
            };
            let mut replies = vec![reply.to_owned(); commands];
            let last = if text.contains("GET-MASTER-ADDR-BY-NAME") {
                let master = self.master.lock().map(|master| master.port().to_string());
                master.map(|port| format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len()))
            } else {
                text.contains("ROLE").then(|| "*1\r\n$6\r\nmaster\r\n".to_owned())
            };
            if let Some(last) = last {
                replies.pop();
                replies.push(last);
            }
            stream.write_all(replies.concat().as_bytes()).await.unwrap();
        }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }
}

/// Long enough for any answer that comes at all.
const PATIENT: Duration = Duration::from_secs(10);
/// For answers that do not come, and the few before them that do.
const BRISK: Duration = Duration::from_millis(500);

fn store(addr: SocketAddr, breaker_failures: u32, deadline: Duration) -> Arc<Store> {
    let mut settings = Settings::new(&format!("redis://{addr}/")).unwrap();
    settings.breaker_failures = breaker_failures;
    settings.deadline = deadline;
    Store::new(settings, Box::new(Unobserved)).unwrap()
}

async fn ask(store: &Store) -> Result<Value, Unavailable> {
    store.call(Lane::Decisions, store.shard(b""), &cmd("PING")).await
}

#[tokio::test]
async fn a_connection_that_falls_silent_is_given_up_while_the_breaker_stays_closed() {
    let (server, addr) = Server::start().await;
    let store = store(addr, 1_000, BRISK);
    assert!(ask(&store).await.is_ok() && ask(&store).await.is_ok());
    assert_eq!(server.accepted(), 1);
    server.silent_up_to.store(1, SeqCst);
    for _ in 0..3 {
        assert_eq!(ask(&store).await, Err(Unavailable::DeadlinePassed));
    }
    assert!(ask(&store).await.is_ok(), "on a new connection");
    assert_eq!(server.accepted(), 2);
    assert!(store.available_everywhere());
}

#[tokio::test]
async fn everybody_waits_for_one_connection() {
    let (server, addr) = Server::start().await;
    let store = store(addr, 5, PATIENT);
    let asked = futures::future::join_all((0..100).map(|_| ask(&store))).await;
    assert!(asked.iter().all(Result::is_ok));
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn a_connection_that_does_not_come_about_is_not_waited_for_again_and_again() {
    let (server, addr) = Server::start().await;
    server.silent_up_to.store(1, SeqCst);
    let store = store(addr, 5, Duration::from_millis(20));
    let begin = std::time::Instant::now();
    for _ in 0..200 {
        assert_eq!(ask(&store).await, Err(Unavailable::NotConnected));
    }
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "ten waits of 20 ms and no more: {:?}",
        begin.elapsed()
    );
    assert_eq!(server.accepted(), 1);
    assert!(store.available_everywhere(), "a slow connect says nothing yet");
}

#[tokio::test]
async fn an_error_reply_is_an_error_and_opens_the_breaker_where_it_is_about_the_store() {
    let (server, addr) = Server::start().await;
    let store = store(addr, 5, PATIENT);
    assert!(ask(&store).await.is_ok());
    server.refuses.store(true, SeqCst);
    assert_eq!(ask(&store).await, Err(Unavailable::Refusing));
    assert!(!store.available_everywhere());
    assert_eq!(ask(&store).await, Err(Unavailable::BreakerOpen));
}

#[tokio::test]
async fn what_is_not_permitted_opens_the_breaker_unless_it_can_be_done_without() {
    let (_server, addr) = Server::start().await;
    let store = store(addr, 5, PATIENT);
    let command = cmd("FORBIDDEN");
    let refused = store.call_if_permitted(PATIENT, Lane::Decisions, Shard::ONLY, &command).await;
    assert_eq!(refused, Err(Unavailable::NotPermitted));
    assert!(store.available_everywhere());
    let refused = store.call(Lane::Decisions, Shard::ONLY, &command).await;
    assert_eq!(refused, Err(Unavailable::NotPermitted));
    assert!(!store.available_everywhere());
}

#[tokio::test]
async fn a_connection_is_not_given_up_for_what_is_asked_in_passing() {
    let (server, addr) = Server::start().await;
    let store = store(addr, 5, PATIENT);
    let (little, late) = (Duration::from_millis(5), cmd("LATE"));
    assert!(ask(&store).await.is_ok());
    for _ in 0..4 {
        let answer = store.call_in_passing(little, Lane::Decisions, Shard::ONLY, &late).await;
        assert_eq!(answer, Err(Unavailable::DeadlinePassed));
    }
    assert!(ask(&store).await.is_ok());
    assert_eq!(server.accepted(), 1);
    for _ in 0..3 {
        let answer = store.call_aside(little, Lane::Decisions, Shard::ONLY, &late).await;
        assert_eq!(answer, Err(Unavailable::DeadlinePassed));
    }
    assert!(ask(&store).await.is_ok());
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn nobody_there_opens_the_breaker_at_once() {
    // Taken, so that nobody else listens there.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let store = store(nobody.local_addr().unwrap(), 5, PATIENT);
    assert_eq!(ask(&store).await, Err(Unavailable::CannotConnect));
    assert!(!store.available_everywhere());
}

#[tokio::test]
async fn the_news_of_an_old_connection_does_not_hit_the_new_one() {
    let (server, addr) = Server::start().await;
    let store = store(addr, 1_000, BRISK);
    assert!(ask(&store).await.is_ok());
    server.silent_up_to.store(1, SeqCst);
    // Fifty are under way on the old connection: all of them fail, and one new connection is made.
    let lost = futures::future::join_all((0..50).map(|_| ask(&store))).await;
    assert!(lost.iter().all(Result::is_err));
    let found = futures::future::join_all((0..50).map(|_| ask(&store))).await;
    assert!(found.iter().all(Result::is_ok), "{found:?}");
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn another_master_is_found_however_much_is_handed_over_meanwhile() {
    let (first, first_addr) = Server::start().await;
    let (second, second_addr) = Server::start().await;
    let (sentinel, sentinel_addr) = Server::start().await;
    *sentinel.master.lock() = Some(first_addr);
    let mut settings = Settings::new(&format!("redis+sentinel://{sentinel_addr}/")).unwrap();
    settings.deadline = Duration::from_secs(1);
    let store = Store::new(settings, Box::new(Unobserved)).unwrap();
    let supervisor = tokio::spawn(Arc::clone(&store).supervise(Vec::new(), Arc::new(Unburdened)));
    while ask(&store).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(first.accepted() > 0);
    *sentinel.master.lock() = Some(second_addr);
    let found = async {
        while second.accepted() == 0 {
            store.hand_over_soon();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.expect("the new master is found");
    supervisor.abort();
}
