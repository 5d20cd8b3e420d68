//! What a complete check costs Redis: its CPU time for each way of asking, beside one pipelined `INCR` in the same
//! run. One connection, 64 calls in flight, interleaved rounds, medians. It starts its own redis-server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]
#![allow(clippy::cast_precision_loss, clippy::disallowed_methods, clippy::indexing_slicing)]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::StreamExt as _;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, Pipeline, Value, cmd};
use tollgate::clock::UnixMillis;
use tollgate::limits::algorithm::Rule;
use tollgate::limits::batch::{Batch, Counter, Item};
use tollgate::limits::{Algorithm, gate};
use tollgate::pipeline::{GATE, native_pipeline};
use tollgate::redis::Script;

const IN_FLIGHT: usize = 64;
const IDENTITIES: usize = 1_000;
const ROUNDS: usize = 5;
const CALLS: usize = 40_000;
/// A window that is known to be open, as it is for every request of a caller but the first.
const FAR: u64 = 4_000_000_000_000;

struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let arguments = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"];
        let mut command = Command::new("redis-server");
        let command = command.args(arguments).arg(port.to_string()).stdout(Stdio::null());
        let child = command.spawn().expect("redis-server must be installed");
        Self { child, port }
    }

    async fn connect(&self) -> MultiplexedConnection {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.port)).unwrap();
        // A machine busy with other things is no reason to end.
        let patient = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(30)));
        for _ in 0..200 {
            if let Ok(connection) = client.get_multiplexed_async_connection_with_config(&patient).await {
                return connection;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("redis-server does not answer");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Microseconds of CPU that Redis' main thread has used.
async fn cpu(connection: &mut MultiplexedConnection) -> f64 {
    let text: String = cmd("INFO").arg("cpu").query_async(connection).await.unwrap();
    let field = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().parse().unwrap()
    };
    (field("used_cpu_user_main_thread:") + field("used_cpu_sys_main_thread:")) * 1e6
}

/// One way of asking.
enum Way {
    One(Cmd),
    Several(Pipeline),
}

struct Case {
    name: &'static str,
    ways: Vec<Way>,
    spent: Vec<f64>,
}

fn guards(identity: usize) -> [String; 4] {
    [
        format!("blacklist:5f0c8a31b2d94e67a0{identity:04}"),
        format!("ban:user:{identity}"),
        format!("revoked_before:{identity}"),
        format!("session:{identity}"),
    ]
}

const WINDOWS: [(&str, u64); 3] = [("minute", 60_000), ("hour", 3_600_000), ("day", 86_400_000)];

fn counter_keys(policy: &str, identity: usize) -> Vec<String> {
    WINDOWS.iter().map(|(name, _)| format!("rate_limit:{policy}:{identity}:{name}")).collect()
}

/// A check as the gateway makes it: what it asks, in the gateway's own types.
fn check<T>(
    policy: &str,
    identity: usize,
    algorithm: Algorithm,
    known_end: u64,
    ask: impl Fn(&Batch<'_>) -> T,
) -> T {
    let keys = counter_keys(policy, identity);
    let guards = guards(identity);
    let (session, guards) = guards.split_last().unwrap();
    let counters = keys.iter().zip(WINDOWS).map(|(key, (_, period_ms))| Counter {
        key: key.as_bytes(),
        rule: Rule { algorithm, limit: 1_000_000, period_ms, cost: 1 },
        penalise: false,
        shadow: false,
        known_end,
    });
    let item = Item {
        guards: guards.iter().map(String::as_bytes).collect(),
        cutoff: Some(2),
        issued_at: 1_800_000_000,
        counters: counters.collect(),
        count: 1,
    };
    ask(&Batch { tags: vec![session.as_bytes()], items: vec![item] })
}

/// As the gateway asks where every counter is known and far from its limit.
fn native(identity: usize) -> Way {
    Way::Several(check("native", identity, Algorithm::FixedWindow, FAR, |batch| {
        native_pipeline(batch, false, UnixMillis(0))
    }))
}

/// The script; `known_end` is what the gateway knows of the windows' ends.
fn scripted(policy: &str, identity: usize, algorithm: Algorithm, known_end: u64) -> Way {
    Way::One(check(policy, identity, algorithm, known_end, |batch| {
        let mut command = GATE.command();
        gate::encode(batch, &mut command);
        command
    }))
}

fn case(name: &'static str, way: impl Fn(usize) -> Way) -> Case {
    Case { name, ways: (0..IDENTITIES).map(way).collect(), spent: Vec::new() }
}

async fn drive(case: &mut Case, connection: &MultiplexedConnection) {
    let mut control = connection.clone();
    let before = cpu(&mut control).await;
    let calls = futures::stream::iter(0..CALLS).map(|call| {
        let mut connection = connection.clone();
        let way = &case.ways[call % IDENTITIES];
        async move {
            match way {
                Way::One(command) => command.query_async::<Value>(&mut connection).await.unwrap(),
                Way::Several(pipeline) => pipeline.query_async::<Value>(&mut connection).await.unwrap(),
            }
        }
    });
    calls.buffer_unordered(IN_FLIGHT).for_each(|_| async {}).await;
    case.spent.push((cpu(&mut control).await - before) / CALLS as f64);
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = Redis::start();
    let mut connection = server.connect().await;
    Script::new("return 1").load().exec_async(&mut connection).await.unwrap();
    GATE.load().exec_async(&mut connection).await.unwrap();
    for policy in ["incr", "native"] {
        for key in (0..IDENTITIES).flat_map(|identity| counter_keys(policy, identity)) {
            // As counters are: they end.
            cmd("SET").arg(key).arg(0).arg("EX").arg(86_400).exec_async(&mut connection).await.unwrap();
        }
    }
    let one_key = |identity| counter_keys("incr", identity).swap_remove(identity % WINDOWS.len());
    let mut cases = [
        case("one INCR", |identity| Way::One(cmd("INCR").arg(one_key(identity)).clone())),
        case("one EVALSHA of `return 1`", |_| Way::One(Script::new("return 1").command().arg(0).clone())),
        case("native: MGET of 4 keys, 3 INCR", native),
        case("script, fixed windows whose ends are known", |identity| {
            scripted("known", identity, Algorithm::FixedWindow, FAR)
        }),
        case("script, fixed windows", |identity| scripted("fixed", identity, Algorithm::FixedWindow, 0)),
        case("script, sliding windows", |identity| {
            scripted("sliding", identity, Algorithm::SlidingWindow, 0)
        }),
        case("script, token buckets", |identity| scripted("bucket", identity, Algorithm::TokenBucket, 0)),
    ];
    for case in &mut cases {
        // The first calls create the counters and warm everything up.
        drive(case, &connection).await;
        case.spent.clear();
    }
    for _ in 0..ROUNDS {
        for case in &mut cases {
            drive(case, &connection).await;
        }
    }
    let unit = median(&mut cases[0].spent);
    println!(
        "\nRedis CPU of a complete check (blacklist, ban, cut-off, session; minute, hour, day), {ROUNDS} rounds of"
    );
    println!("{CALLS} calls, {IN_FLIGHT} in flight on one connection, {IDENTITIES} callers:\n");
    println!("| way | Redis CPU µs | ÷ one INCR |\n|---|--:|--:|");
    for case in &mut cases {
        let spent = median(&mut case.spent);
        println!("| {} | {spent:.2} | {:.1} |", case.name, spent / unit);
    }
}
