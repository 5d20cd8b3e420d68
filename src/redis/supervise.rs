//! Watches the nodes in the background: an idle `PING`, probes while a breaker is open, the sentinels and the map of
//! a cluster, and the work that must be done before requests ask again. Requests never run any of this.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ::redis::{RedisError, RedisResult, cmd};
use async_trait::async_trait;
use tokio::time::timeout;

use super::cluster::Cluster;
use super::node::Node;
use super::sentinel::Sentinels;
use super::settings::{Address, Target};
use super::{Link, Script, Store, Topology, Unavailable};

/// Pause between two probes while the store is away; recovery is noticed within this and one connect.
const PROBE_PAUSE: Duration = Duration::from_millis(250);
/// A probe of which one step takes longer has failed, however long connecting may otherwise take; where requests wait
/// longer than that, so does each step.
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

/// Pause between two questions to the sentinels while all is well: a failover shows within this.
const SENTINEL_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two questions for the map of a cluster while all is well: redirections tell of changes before.
const MAP_PAUSE: Duration = Duration::from_secs(10);
/// Pause before a map that is known to be old is learned again: redirections come in swarms.
const STALE_PAUSE: Duration = Duration::from_millis(20);

/// What must reach Redis after an outage before it is asked again: revocations and invalidations that were
/// made meanwhile.
#[async_trait]
pub trait Recovery: Send + Sync + 'static {
    /// Whether anything waits to be written.
    fn owes(&self) -> bool;

    /// Tries whether the node can do what requests need of it: answering a `PING` does not say that it takes
    /// writes. An error keeps the node closed to requests.
    async fn verify(&self, link: &mut Link<'_>) -> RedisResult<()>;

    /// Writes what is pending and lives on this node; everything else stays pending. Called at start-up too. An
    /// error keeps the node closed to requests; nothing may be lost when the call is given up halfway.
    async fn recover(&self, link: &mut Link<'_>) -> RedisResult<()>;
}

/// Owes the store nothing and needs nothing of it beyond an answer.
pub struct Unburdened;

#[async_trait]
impl Recovery for Unburdened {
    fn owes(&self) -> bool {
        false
    }

    async fn verify(&self, _: &mut Link<'_>) -> RedisResult<()> {
        Ok(())
    }

    async fn recover(&self, _: &mut Link<'_>) -> RedisResult<()> {
        Ok(())
    }
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

/// What each node's supervisor needs.
#[derive(Clone)]
struct Duties {
    scripts: Arc<[&'static Script]>,
    recovery: Arc<dyn Recovery>,
}

impl Store {
    /// Runs until the process ends: probes, health checks, discovery and recovery. Spawn it once.
    pub async fn supervise(self: Arc<Self>, scripts: Vec<&'static Script>, recovery: Arc<dyn Recovery>) {
        let duties = Duties { scripts: scripts.into(), recovery };
        match &self.topology {
            Topology::One(node) => {
                let sentinels = match &self.settings.target {
                    Target::Sentinel { sentinels, service, master } => {
                        // Parsed already: it fails on TLS parameters only, of which there are none here.
                        Sentinels::new(sentinels, service, master, &self.config).ok()
                    }
                    _ => None,
                };
                self.attend(node, &duties, sentinels).await;
            }
            Topology::Many(cluster) => self.follow_map(cluster, &duties).await,
        }
    }

    /// Asks for [`Recovery::recover`] soon: something is owed to the store that a request could not write.
    pub fn hand_over_soon(&self) {
        match &self.topology {
            // A permit stays until the supervisor takes it, however long the outage.
            Topology::One(node) => node.owed.notify_one(),
            Topology::Many(cluster) => {
                cluster.map().iter().flat_map(|map| &map.nodes).for_each(|node| node.owed.notify_one());
            }
        }
    }

    /// Keeps the map of the cluster, and a supervisor for each of its nodes.
    async fn follow_map(self: &Arc<Self>, cluster: &Cluster, duties: &Duties) {
        let mut told_away = false;
        loop {
            let changes = cluster.refresh(&self.settings, &self.config).await;
            if let Some(changes) = &changes {
                if std::mem::take(&mut told_away) {
                    tracing::warn!("Redis is available again: limits are shared again");
                    self.count_away(&mut self.away.lock(), -1);
                }
                for node in &changes.joined {
                    let (store, node, duties) = (Arc::clone(self), Arc::clone(node), duties.clone());
                    tokio::spawn(async move { store.attend(&node, &duties, None).await });
                }
                for node in &changes.left {
                    self.let_go(node);
                }
                // Slots may have other owners now, who must get what is pending for them.
                self.hand_over_soon();
            } else if cluster.map().is_none() && !std::mem::replace(&mut told_away, true) {
                tracing::warn!("Redis is unavailable: no node of the cluster tells who owns what");
                self.count_away(&mut self.away.lock(), 1);
            }
            let pause = if changes.is_none() || self.degraded() { PROBE_PAUSE } else { MAP_PAUSE };
            let stale = async {
                cluster.stale.notified().await;
                tokio::time::sleep(STALE_PAUSE).await;
            };
            let _ = timeout(pause, stale).await;
        }
    }

    /// Ends what is kept for a node that owns no keys any more.
    fn let_go(&self, node: &Node) {
        let mut away = self.away.lock();
        node.retire();
        if node.told_away.swap(false, Ordering::AcqRel) {
            let node = node.address.as_ref().map(Address::to_string);
            tracing::warn!(node, "Redis is available again: other nodes own the keys of this one");
            self.count_away(&mut away, -1);
        }
    }

    /// Supervises one node until it is retired.
    async fn attend(&self, node: &Node, duties: &Duties, mut sentinels: Option<Sentinels>) {
        tokio::select! {
            () = self.attend_always(node, duties, sentinels.as_mut()) => {}
            () = node.wait_until_retired() => {}
        }
    }

    async fn attend_always(&self, node: &Node, duties: &Duties, mut sentinels: Option<&mut Sentinels>) {
        let mut doublings = 0;
        // Where sentinels say that the node is.
        let mut place: Option<Address> = None;
        loop {
            match self
                .reach(node, duties, sentinels.as_deref_mut(), &mut place, PROMPT_ANSWERS << doublings)
                .await
            {
                Ok(()) => {
                    if node.breaker.close() {
                        // Others may have spoken while it was away.
                        self.missed.notify_one();
                    }
                    self.found(node);
                    let since = Instant::now();
                    self.watch(node, duties, sentinels.as_deref_mut(), place.as_ref()).await;
                    let steady = since.elapsed() >= STEADY;
                    doublings = if steady { 0 } else { MOST_DOUBLINGS.min(doublings + 1) };
                }
                Err(failure) => self.note_probe_failure(node, &failure),
            }
            let jitter = Duration::from_millis(fastrand::u64(0..100));
            tokio::time::sleep(PROBE_PAUSE + jitter).await;
        }
    }

    /// Finds the node where it may be anywhere, and probes it.
    async fn reach(
        &self,
        node: &Node,
        duties: &Duties,
        sentinels: Option<&mut Sentinels>,
        place: &mut Option<Address>,
        answers: u32,
    ) -> Result<(), ProbeFailure> {
        if let Some(sentinels) = sentinels {
            let Some((address, client)) = sentinels.find().await else {
                let detail = Some("no sentinel names a master that can be reached".to_owned());
                return Err(ProbeFailure { cause: Unavailable::CannotConnect, detail });
            };
            if place.as_ref() != Some(&address) {
                tracing::info!(%address, "the sentinels name this master");
                // Connections of requests go to the old one until its epoch ends.
                if place.is_some() && node.breaker.open() {
                    self.lost(node, Unavailable::ConnectionLost, Some("another master was elected"));
                }
                node.locate(client);
                *place = Some(address);
            }
        }
        self.probe(node, duties, answers).await
    }

    /// One attempt to connect, load the scripts and hand over what is pending.
    async fn probe(&self, node: &Node, duties: &Duties, answers: u32) -> Result<(), ProbeFailure> {
        let step = self.step();
        let mut connection = timeout(step, node.connect(&self.config)).await??;
        for _ in 0..answers {
            timeout(self.settings.deadline, cmd("PING").exec_async(&mut connection)).await??;
        }
        for script in &*duties.scripts {
            timeout(step, script.load().query_async::<()>(&mut connection)).await??;
        }
        let mut link = Link::new(self, node, connection);
        timeout(step, duties.recovery.verify(&mut link)).await??;
        Ok(timeout(HAND_OVER_TIMEOUT, duties.recovery.recover(&mut link)).await??)
    }

    /// How long one step of a probe may take.
    fn step(&self) -> Duration {
        PROBE_TIMEOUT.max(self.settings.deadline)
    }

    /// Returns when the breaker opened, here or by requests.
    async fn watch(
        &self,
        node: &Node,
        duties: &Duties,
        sentinels: Option<&mut Sentinels>,
        place: Option<&Address>,
    ) {
        // One for all that follows: other work, however much, does not put the next look off.
        let mut moved = std::pin::pin!(another_master(sentinels, place));
        let mut next_check = tokio::time::Instant::now() + self.settings.health_check_interval;
        loop {
            let work = async {
                tokio::select! {
                    () = node.owed.notified() => self.hand_over(node, duties).await,
                    () = node.suspected.notified() => {
                        // More failures of the same moment are one suspicion.
                        tokio::time::sleep(SUSPICION_PAUSE).await;
                        self.check(node).await
                    }
                    () = tokio::time::sleep_until(next_check) => {
                        next_check = tokio::time::Instant::now() + self.settings.health_check_interval;
                        self.check(node).await
                    }
                }
            };
            let outcome = tokio::select! {
                () = node.breaker.wait_until_open() => return,
                () = &mut moved => Err(ProbeFailure {
                    cause: Unavailable::Refusing,
                    detail: Some("another master was elected".to_owned()),
                }),
                outcome = work => outcome,
            };
            if let Err(failure) = outcome {
                return self.note_probe_failure(node, &failure);
            }
        }
    }

    async fn hand_over(&self, node: &Node, duties: &Duties) -> Result<(), ProbeFailure> {
        if !duties.recovery.owes() {
            return Ok(());
        }
        let connection = timeout(self.step(), node.connect(&self.config)).await??;
        let mut link = Link::new(self, node, connection);
        Ok(timeout(HAND_OVER_TIMEOUT, duties.recovery.recover(&mut link)).await??)
    }

    async fn check(&self, node: &Node) -> Result<(), ProbeFailure> {
        let mut connection = timeout(self.step(), node.connect(&self.config)).await??;
        Ok(timeout(self.step(), cmd("PING").exec_async(&mut connection)).await??)
    }

    fn note_probe_failure(&self, node: &Node, failure: &ProbeFailure) {
        node.breaker.open();
        self.lost(node, failure.cause, failure.detail.as_deref());
    }
}

/// Returns once the sentinels agree on another master than the one at `place`; never without sentinels.
async fn another_master(sentinels: Option<&mut Sentinels>, place: Option<&Address>) {
    let (Some(sentinels), Some(place)) = (sentinels, place) else { return std::future::pending().await };
    loop {
        tokio::time::sleep(SENTINEL_PAUSE).await;
        if sentinels.have_moved_on_from(place).await {
            return;
        }
    }
}
