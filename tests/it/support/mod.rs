//! The kit: everything a test needs to put a gateway between clients, an origin and a Redis, and to break any of them.
//! It never knows what Tollgate should answer; that is for the tests to say.

/// Waits, for a bounded time, until an expression is true, and fails the test naming what did not come about.
///
/// `assert_eventually!(origin.hits() == 3, "the third request reaches the origin")`; a third argument, a `Duration`,
/// bounds the wait where the promise under test is about time.
macro_rules! assert_eventually {
    ($condition:expr, $what:expr $(,)?) => {
        assert_eventually!($condition, $what, $crate::support::PATIENCE)
    };
    ($condition:expr, $what:expr, $limit:expr $(,)?) => {
        assert!(
            $crate::support::holds_within($limit, || $condition),
            "not within {:?}: {}; never true: {}",
            $limit,
            $what,
            stringify!($condition)
        )
    };
}

pub mod client;
pub mod cluster;
pub mod gateway;
pub mod load;
pub mod origin;
pub mod ports;
pub mod process;
pub mod raw_h2;
pub mod raw_origin;
pub mod redis;
pub mod relay;
pub mod reply;
pub mod resp;
pub mod sentinel;
pub mod strict_origin;
pub mod tls_front;
pub mod token;

use std::future::Future;
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How long anything may take before a test gives up on it. Reached only by tests that fail.
pub const PATIENCE: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(5);

/// A look and the pause after it take less than this where the machine has time for them.
const LOOK: Duration = Duration::from_millis(20);

/// However seldom it could look, nobody waits for longer than so many times what was said.
const STRETCH: u32 = 4;

/// Where origins, relays and client connections live, so that tests themselves can be plain blocking functions.
pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("kit")
        .enable_all()
        .build()
        .expect("a tokio runtime for the test kit")
});

/// Runs `work` on the kit's runtime and blocks the caller until it is done; works inside async tests too.
pub fn wait_for<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    RUNTIME.spawn(async move {
        // The receiver is gone only if the waiting test has already failed.
        let _ = done.send(work.await);
    });
    result.recv().expect("the kit's task panicked; see above")
}

/// Polls `condition` until it holds, for at most [`PATIENCE`]; tells whether it did.
pub fn holds_eventually(condition: impl FnMut() -> bool) -> bool {
    holds_within(PATIENCE, condition)
}

/// Polls `condition` until it holds, for at most `limit`; tells whether it did. On a machine that has too little time
/// for its looks it takes longer, because whoever is being waited for has too little as well: a promise of two seconds
/// is one of so many looks.
pub fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    let mut looks = 0;
    loop {
        if condition() {
            return true;
        }
        looks += 1;
        let waited = start.elapsed();
        if waited > limit && (LOOK * looks > limit || waited > limit * STRETCH) {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

/// Runs `work` on that many threads that start together; results in the order of their numbers, from 0.
pub fn concurrently<T: Send>(threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let start = std::sync::Barrier::new(threads);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|number| {
                let (start, work) = (&start, &work);
                scope.spawn(move || {
                    start.wait();
                    work(number)
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}
