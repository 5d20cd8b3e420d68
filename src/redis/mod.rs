//! The road to Redis: one multiplexed connection per worker thread and lane, a deadline on every call, and
//! a breaker that keeps requests off a store that does not answer. It knows nothing of what is stored.

mod breaker;
mod connection;
mod error;
mod events;
mod script;
mod supervise;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::redis::{AsyncConnectionConfig, Client, Cmd, ConnectionInfo, IntoConnectionInfo, Pipeline, Value};
use futures::FutureExt;
use tokio::sync::Notify;

pub use self::connection::Lane;
pub use self::error::{FailureKind, Unavailable};
pub use self::events::{EventHandler, Publisher};
pub use self::script::Script;
pub use self::supervise::Recovery;

use self::breaker::{Breaker, Epoch};

/// For how many deadlines the store must have failed before the breaker opens.
const STALL_DEADLINES: u32 = 2;
/// Turns of the worker's loop in which an answer that is there already reaches the caller.
const LAST_CHANCES: u32 = 3;

/// How the store is reached; valid by construction.
#[derive(Clone, Debug)]
pub struct Settings {
    info: ConnectionInfo,
    /// Put before every key this gateway writes or reads; may be empty.
    pub key_prefix: Arc<str>,
    /// Longest time one connection attempt may take.
    pub connect_timeout: Duration,
    /// Longest time a request waits for the store, connecting included.
    pub deadline: Duration,
    /// Pause between two `PING`s while all is well.
    pub health_check_interval: Duration,
    /// Consecutive failures after which requests stop asking, once they span two deadlines.
    pub breaker_failures: u32,
}

/// The URL cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("not a usable Redis URL; accepted: redis://[user:password@]host[:port][/db] and rediss://…")]
pub struct UnusableUrl;

impl Settings {
    /// Settings for `url` with the documented defaults: connect 2 s, deadline 20 ms, health check 30 s,
    /// breaker after 5 failures.
    ///
    /// # Errors
    /// When `url` is not a `redis://` or `rediss://` URL.
    pub fn new(url: &str) -> Result<Self, UnusableUrl> {
        let info = url.into_connection_info().map_err(|_| UnusableUrl)?;
        let tcp = info
            .tcp_settings()
            .clone()
            // Nagle would hold small pipelines back; a dead peer must surface in seconds, not minutes.
            .set_nodelay(true)
            .set_user_timeout(Duration::from_secs(2));
        Ok(Self {
            info: info.set_tcp_settings(tcp),
            key_prefix: Arc::from(""),
            connect_timeout: Duration::from_secs(2),
            deadline: Duration::from_millis(20),
            health_check_interval: Duration::from_secs(30),
            breaker_failures: 5,
        })
    }
}

/// Sees what becomes of calls and of the breaker; implemented by metrics.
pub trait Observer: Send + Sync + 'static {
    /// The store became unavailable (`true`) or available again (`false`).
    fn degraded(&self, degraded: bool);
    /// One call ended after `elapsed`.
    fn call(&self, elapsed: Duration, result: Result<(), FailureKind>);
}

/// An observer that looks away.
#[derive(Debug)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn degraded(&self, _: bool) {}
    fn call(&self, _: Duration, _: Result<(), FailureKind>) {}
}

/// A Redis that may be away. Cheap to share; connects on first use.
pub struct Store {
    /// Distinguishes stores in the per-thread connection slots.
    id: u64,
    client: Client,
    config: AsyncConnectionConfig,
    settings: Settings,
    breaker: Breaker,
    /// Wakes the supervisor to write what requests could not.
    owed: Notify,
    /// Wakes the supervisor to look whether the store is still there.
    suspected: Notify,
    observer: Box<dyn Observer>,
}

static NEXT_STORE_ID: AtomicU64 = AtomicU64::new(0);

impl Store {
    /// A store that will be reached as `settings` say. Does not connect.
    ///
    /// # Errors
    /// When the connection parameters are unusable (for example TLS parameters).
    pub fn new(settings: Settings, observer: Box<dyn Observer>) -> Result<Arc<Self>, UnusableUrl> {
        let client = Client::open(settings.info.clone()).map_err(|_| UnusableUrl)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout))
            // Our own deadline covers the wait; a second timer per command would only cost.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(1_024);
        Ok(Arc::new(Self {
            id: NEXT_STORE_ID.fetch_add(1, Ordering::Relaxed),
            client,
            config,
            breaker: Breaker::new(
                settings.breaker_failures,
                settings.deadline * STALL_DEADLINES,
                Instant::now(),
            ),
            owed: Notify::new(),
            suspected: Notify::new(),
            settings,
            observer,
        }))
    }

    /// How this store is reached.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether requests may ask the store at the moment.
    pub fn available(&self) -> bool {
        self.breaker.closed().is_some()
    }

    /// Sends one command within the configured deadline.
    ///
    /// # Errors
    /// [`Unavailable`] when the breaker is open, the deadline passed or Redis answered with an error. A
    /// command whose deadline passed may still be executed: count it as done.
    pub async fn call(&self, lane: Lane, command: &Cmd) -> Result<Value, Unavailable> {
        self.call_within(self.settings.deadline, lane, command).await
    }

    /// As [`Store::call`], with a deadline of its own: for work that no request waits for.
    pub async fn call_within(
        &self,
        deadline: Duration,
        lane: Lane,
        command: &Cmd,
    ) -> Result<Value, Unavailable> {
        let Some(epoch) = self.breaker.closed() else { return Err(Unavailable::BreakerOpen) };
        let started = tokio::time::Instant::now();
        let outcome = self.attempt(epoch, lane, command, started + deadline).await;
        self.account(epoch, started.elapsed(), &outcome);
        outcome
    }

    async fn attempt(
        &self,
        epoch: Epoch,
        lane: Lane,
        command: &Cmd,
        until: tokio::time::Instant,
    ) -> Result<Value, Unavailable> {
        let (serial, mut connection) = self.connection(lane, epoch, until).await?;
        match within(until, connection.send_packed_command(command)).await {
            Ok(Ok(value)) => {
                connection::note_answer(serial);
                match value {
                    // The client library hands error replies on as values here.
                    Value::ServerError(_) => value.extract_error().map_err(Unavailable::from),
                    value => Ok(value),
                }
            }
            Ok(Err(error)) => {
                if error.is_unrecoverable_error() {
                    connection::discard(serial);
                }
                Err(error.into())
            }
            Err(_) => {
                connection::note_silence(serial);
                Err(Unavailable::DeadlinePassed)
            }
        }
    }

    /// Sends commands together within the configured deadline; an error to one of them is a value among the answers.
    ///
    /// # Errors
    /// As [`Store::call`].
    pub async fn pipeline(&self, lane: Lane, pipeline: &Pipeline) -> Result<Vec<Value>, Unavailable> {
        let Some(epoch) = self.breaker.closed() else { return Err(Unavailable::BreakerOpen) };
        let started = tokio::time::Instant::now();
        let until = started + self.settings.deadline;
        let attempt = async {
            let (serial, mut connection) = self.connection(lane, epoch, until).await?;
            match within(until, connection.send_packed_commands(pipeline, 0, pipeline.len())).await {
                Ok(Ok(values)) => {
                    connection::note_answer(serial);
                    Ok(Value::Array(values))
                }
                Ok(Err(error)) => {
                    if error.is_unrecoverable_error() {
                        connection::discard(serial);
                    }
                    Err(error.into())
                }
                Err(_) => {
                    connection::note_silence(serial);
                    Err(Unavailable::DeadlinePassed)
                }
            }
        };
        let outcome = attempt.await;
        self.account(epoch, started.elapsed(), &outcome);
        match outcome? {
            Value::Array(values) => Ok(values),
            _ => Err(Unavailable::Rejected),
        }
    }

    /// Runs `script` through `EVALSHA`, loading it when Redis does not know it. `command` must be made by
    /// [`Script::command`].
    pub async fn eval(&self, lane: Lane, script: &Script, command: &Cmd) -> Result<Value, Unavailable> {
        let started = Instant::now();
        match self.call(lane, command).await {
            Err(Unavailable::ScriptUnknown) => {
                // All three share one deadline: the request waits no longer for a store that was restarted.
                let left = || self.settings.deadline.saturating_sub(started.elapsed());
                self.call_within(left(), lane, &script.load()).await?;
                self.call_within(left(), lane, command).await
            }
            other => other,
        }
    }

    fn account(&self, epoch: Epoch, elapsed: Duration, outcome: &Result<Value, Unavailable>) {
        match outcome {
            Ok(_) => {
                self.breaker.succeeded();
                self.observer.call(elapsed, Ok(()));
            }
            Err(failure) => {
                self.observer.call(elapsed, Err(failure.kind()));
                if !failure.counts_against_store() {
                    return;
                }
                if self.breaker.failed(epoch, failure.is_conclusive(), Instant::now()) {
                    self.opened(*failure, None);
                } else {
                    // Too few to tell, and perhaps no other request follows.
                    self.suspected.notify_one();
                }
            }
        }
    }

    /// Called once per transition to open.
    fn opened(&self, cause: Unavailable, detail: Option<&str>) {
        tracing::warn!(%cause, detail, "Redis is unavailable: limits and revocations go on from memory");
        self.observer.degraded(true);
    }

    /// Called once per transition to closed.
    fn closed(&self) {
        tracing::warn!("Redis is available again: limits are shared again");
        self.observer.degraded(false);
    }
}

/// Awaits `work` until then. A worker that is busy itself finds the answer and the end of the wait in the same
/// moment, and may see the end first: the answer gets another chance, so that load here is not taken for a
/// slow store.
async fn within<T>(until: tokio::time::Instant, work: impl Future<Output = T>) -> Result<T, Late> {
    let mut work = std::pin::pin!(work);
    if let Ok(done) = tokio::time::timeout_at(until, work.as_mut()).await {
        return Ok(done);
    }
    for _ in 0..LAST_CHANCES {
        // Others run meanwhile, the one that reads the store's answers among them.
        tokio::task::yield_now().await;
        if let Some(done) = work.as_mut().now_or_never() {
            return Ok(done);
        }
    }
    Err(Late)
}

/// The end of the wait came first.
struct Late;

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Store").field("available", &self.available()).finish_non_exhaustive()
    }
}
