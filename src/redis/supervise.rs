//! Watches the store in the background: an idle `PING`, probes while the breaker is open, and the work that
//! must be done before requests ask again. Requests never run any of this.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisError, RedisResult, cmd};
use async_trait::async_trait;

use super::{Script, Store, Unavailable};

/// Pause between two probes while the store is away; recovery is noticed within this and one connect.
const PROBE_PAUSE: Duration = Duration::from_millis(250);
/// A probe that takes longer has failed, however long connecting may otherwise take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause before looking into failed calls, and so between two looks.
const SUSPICION_PAUSE: Duration = Duration::from_millis(50);
/// Handing over may take longer: what is owed after a long outage is much.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers within the deadline, in a row, before requests may ask again: a store that is merely slow must
/// not make the breaker flap.
const PROMPT_ANSWERS: u32 = 3;
/// A store that went away again within this time has to prove more.
const STEADY: Duration = Duration::from_secs(5);
/// The most it has to prove, in doublings of [`PROMPT_ANSWERS`].
const MOST_DOUBLINGS: u32 = 3;

/// What must reach Redis after an outage before it is asked again: revocations and invalidations that were
/// made meanwhile.
#[async_trait]
pub trait Recovery: Send + Sync + 'static {
    /// Whether anything waits to be written.
    fn owes(&self) -> bool;

    /// Tries whether Redis can do what requests need of it: answering a `PING` does not say that it takes
    /// writes. An error keeps the store closed to requests.
    async fn verify(&self, connection: &mut MultiplexedConnection) -> RedisResult<()>;

    /// Writes what is pending. Called at start-up too. An error keeps the store closed to requests; nothing may
    /// be lost when the call is given up halfway.
    async fn recover(&self, connection: &mut MultiplexedConnection) -> RedisResult<()>;
}

/// Why a probe failed, with Redis' own words where there are any.
struct ProbeFailure {
    cause: Unavailable,
    detail: Option<String>,
}

impl From<RedisError> for ProbeFailure {
    fn from(error: RedisError) -> Self {
        let detail = error.to_string();
        Self { cause: error.into(), detail: Some(detail) }
    }
}

impl From<tokio::time::error::Elapsed> for ProbeFailure {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self { cause: Unavailable::DeadlinePassed, detail: None }
    }
}

impl Store {
    /// Runs until the process ends: probes, health checks and recovery. Spawn it once.
    pub async fn supervise(self: Arc<Self>, scripts: Vec<&'static Script>, recovery: Arc<dyn Recovery>) {
        let mut doublings = 0;
        loop {
            match self.probe(&scripts, recovery.as_ref(), PROMPT_ANSWERS << doublings).await {
                Ok(()) => {
                    if self.breaker.close() {
                        self.closed();
                    }
                    let since = Instant::now();
                    self.watch(recovery.as_ref()).await;
                    let steady = since.elapsed() >= STEADY;
                    doublings = if steady { 0 } else { MOST_DOUBLINGS.min(doublings + 1) };
                }
                Err(failure) => self.note_probe_failure(&failure),
            }
            let jitter = Duration::from_millis(fastrand::u64(0..100));
            tokio::time::sleep(PROBE_PAUSE + jitter).await;
        }
    }

    /// Asks for [`Recovery::recover`] soon: something is owed to the store that a request could not write.
    pub fn hand_over_soon(&self) {
        // A permit stays until the supervisor takes it, however long the outage.
        self.owed.notify_one();
    }

    /// One attempt to connect, load the scripts and hand over what is pending.
    async fn probe(
        &self,
        scripts: &[&'static Script],
        recovery: &dyn Recovery,
        answers: u32,
    ) -> Result<(), ProbeFailure> {
        let ready = async {
            let mut connection =
                self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
            for _ in 0..answers {
                let ping = cmd("PING");
                tokio::time::timeout(self.settings.deadline, ping.exec_async(&mut connection)).await??;
            }
            for script in scripts {
                script.load().query_async::<()>(&mut connection).await?;
            }
            recovery.verify(&mut connection).await?;
            Ok::<_, ProbeFailure>(connection)
        };
        let mut connection = tokio::time::timeout(PROBE_TIMEOUT, ready).await??;
        Ok(tokio::time::timeout(HAND_OVER_TIMEOUT, recovery.recover(&mut connection)).await??)
    }

    /// Returns when the breaker opened, here or by requests.
    async fn watch(&self, recovery: &dyn Recovery) {
        loop {
            let work = async {
                tokio::select! {
                    () = self.owed.notified() => self.hand_over(recovery).await,
                    () = self.suspected.notified() => {
                        // More failures of the same moment are one suspicion.
                        tokio::time::sleep(SUSPICION_PAUSE).await;
                        self.check().await
                    }
                    () = tokio::time::sleep(self.settings.health_check_interval) => self.check().await,
                }
            };
            let outcome = tokio::select! {
                () = self.breaker.wait_until_open() => return,
                outcome = work => outcome,
            };
            if let Err(failure) = outcome {
                return self.note_probe_failure(&failure);
            }
        }
    }

    async fn hand_over(&self, recovery: &dyn Recovery) -> Result<(), ProbeFailure> {
        if !recovery.owes() {
            return Ok(());
        }
        let connect = self.client.get_multiplexed_async_connection_with_config(&self.config);
        let mut connection = tokio::time::timeout(PROBE_TIMEOUT, connect).await??;
        Ok(tokio::time::timeout(HAND_OVER_TIMEOUT, recovery.recover(&mut connection)).await??)
    }

    async fn check(&self) -> Result<(), ProbeFailure> {
        let ping = async {
            let mut connection =
                self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
            cmd("PING").exec_async(&mut connection).await
        };
        Ok(tokio::time::timeout(PROBE_TIMEOUT, ping).await??)
    }

    fn note_probe_failure(&self, failure: &ProbeFailure) {
        if self.breaker.open() {
            self.opened(failure.cause, failure.detail.as_deref());
        }
    }
}
