//! Watches the store in the background: an idle `PING`, probes while the breaker is open, and the work that
//! must be done before requests ask again. Requests never run any of this.

use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisResult, cmd};
use async_trait::async_trait;

use super::{Script, Store, Unavailable};

/// Pause between two probes while the store is away; recovery is noticed within this and one connect.
const PROBE_PAUSE: Duration = Duration::from_millis(250);
/// A probe that takes longer has failed, however long connecting may otherwise take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Answers within the deadline, in a row, before requests may ask again: a store that is merely slow must
/// not make the breaker flap.
const PROMPT_ANSWERS: u32 = 3;

/// What must reach Redis after an outage before it is asked again: revocations and invalidations that were
/// made meanwhile.
#[async_trait]
pub trait Recovery: Send + Sync + 'static {
    /// Writes what is pending. Called at start-up too. An error keeps the store closed to requests.
    async fn recover(&self, connection: &mut MultiplexedConnection) -> RedisResult<()>;

    /// Reads what this instance should know for the next outage. Requests already ask the store again.
    async fn recovered(&self, connection: &mut MultiplexedConnection) -> RedisResult<()>;
}

impl Store {
    /// Runs until the process ends: probes, health checks and recovery. Spawn it once.
    pub async fn supervise(self: Arc<Self>, scripts: Vec<&'static Script>, recovery: Arc<dyn Recovery>) {
        // Until the first probe succeeded requests go to memory: start-up never waits for Redis.
        loop {
            let probed = tokio::time::timeout(PROBE_TIMEOUT, self.probe(&scripts, recovery.as_ref())).await;
            match probed {
                Ok(Ok(mut connection)) => {
                    if self.breaker.close() {
                        self.closed();
                    }
                    let recovery = Arc::clone(&recovery);
                    tokio::spawn(async move {
                        if let Err(error) = recovery.recovered(&mut connection).await {
                            tracing::warn!(%error, "could not read the revocations in Redis");
                        }
                    });
                    self.watch().await;
                }
                Ok(Err(error)) => self.note_probe_failure(error.into()),
                Err(_) => self.note_probe_failure(Unavailable::DeadlinePassed),
            }
            let jitter = Duration::from_millis(fastrand::u64(0..100));
            tokio::time::sleep(PROBE_PAUSE + jitter).await;
        }
    }

    /// One attempt to connect, load the scripts and hand over what is pending.
    async fn probe(
        &self,
        scripts: &[&'static Script],
        recovery: &dyn Recovery,
    ) -> RedisResult<MultiplexedConnection> {
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
        for _ in 0..PROMPT_ANSWERS {
            let ping = cmd("PING");
            let answer = ping.exec_async(&mut connection);
            tokio::time::timeout(self.settings.deadline, answer).await.map_err(std::io::Error::from)??;
        }
        for script in scripts {
            script.load().query_async::<()>(&mut connection).await?;
        }
        recovery.recover(&mut connection).await?;
        Ok(connection)
    }

    /// Returns when the breaker opened or a health check failed.
    async fn watch(&self) {
        loop {
            let opened = self.breaker.opened.notified();
            if !self.breaker.closed() {
                return;
            }
            if tokio::time::timeout(self.settings.health_check_interval, opened).await.is_ok() {
                return;
            }
            let healthy = tokio::time::timeout(PROBE_TIMEOUT, async {
                let mut connection =
                    self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
                cmd("PING").query_async::<()>(&mut connection).await
            })
            .await;
            match healthy {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return self.note_probe_failure(error.into()),
                Err(_) => return self.note_probe_failure(Unavailable::DeadlinePassed),
            }
        }
    }

    fn note_probe_failure(&self, failure: Unavailable) {
        if self.breaker.failed(true) {
            self.opened(&failure);
        }
    }
}
