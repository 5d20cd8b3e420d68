//! Tells the store what was admitted here without it, in the background and only where the window is still the same:
//! most of it after an outage, before requests ask again, so that none of them opens a window of its own. Requests
//! neither wait for it nor hear of it.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::{Cmd, Pipeline, RedisResult, Value};
use futures::StreamExt;

use super::gateway::Shared;
use crate::limits::local::Owed;
use crate::limits::{Algorithm, Local};
use crate::redis::{Lane, Link, Script, Store, Unavailable};

/// The script that adds to a counter of the same window.
pub static RECONCILE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../redis/scripts/reconcile.lua")));

/// How often is looked whether something can be told.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Instances that see the store again at the same time begin within this time.
const SPREAD_MS: u64 = 1_000;
/// Counters told at the same time, on one connection.
const IN_FLIGHT: usize = 64;
/// Lua counts in doubles.
const MAX_EXACT: u64 = 1 << 53;
/// No request waits for this work.
const PATIENCE: Duration = Duration::from_secs(2);
/// What is told before requests ask a node again: at most so much ([`Owed::weight`]), ...
const MOST_BEFORE: u64 = 8_192;
/// ... and for so long. The rest follows in the background.
const TIME_BEFORE: Duration = Duration::from_millis(500);
/// Counters told in one go before that.
const BATCH: usize = 128;

/// Tells what is owed to the store, be it available again or all along, within about a second. Runs until the process
/// ends.
///
/// # Bounds
/// A counter whose answer is lost is told again while its window lives: it may then count the same admissions twice,
/// at most up to its limit, but forgets none.
///
/// What an outage counted in a fixed window of its own is added to the store's where that one covers it, that is,
/// began no later; the store's keeps its end. So of several instances, whose windows began at different moments, the
/// first to tell may have begun the latest, and what the others counted is not added. Of a limit L with G instances
/// at most 2 L + G − 1 pass then while these windows are open, and L + G − 1 if all of it was added.
pub async fn reconcile(shared: Arc<Shared>) {
    let Some(store) = &shared.store else { return };
    let mut was_away = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let available = store.available_everywhere();
        was_away |= !available;
        // In Cluster a part of the keys may be reached while another is not.
        if !store.is_cluster() && !available {
            continue;
        }
        if shared.local.owes() {
            if was_away {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(0..SPREAD_MS))).await;
            }
            tell(&shared, store, was_away).await;
        }
        was_away = !available;
    }
}

impl Shared {
    /// Tells this node what is owed to it, within bounds and as far as it listens, before requests ask it again.
    pub(super) async fn hand_over_counts(&self, link: &mut Link<'_>) {
        let mut left = MOST_BEFORE;
        let owed = self.local.take_owed(self.clock.now(), |owed| {
            let fits = owed.weight() <= left && link.holds(&owed.key);
            left -= if fits { owed.weight() } else { 0 };
            fits
        });
        if owed.is_empty() {
            return;
        }
        let mut taken = Taken { local: &self.local, owed };
        let mut told = Told::default();
        // What has no answer by then is told again.
        let _ = tokio::time::timeout(TIME_BEFORE, taken.tell(link, &mut told)).await;
        told.kept += taken.owed.len();
        drop(taken);
        told.report(self, true);
    }
}

/// What is owed and under way to the store: what is still in here when it is dropped is owed again.
struct Taken<'a> {
    local: &'a Local,
    owed: Vec<Owed>,
}

impl Taken<'_> {
    async fn tell(&mut self, link: &mut Link<'_>, told: &mut Told) -> RedisResult<()> {
        while !self.owed.is_empty() {
            let first = self.owed.len().saturating_sub(BATCH);
            let mut pipeline = Pipeline::new();
            for owed in self.owed.iter().skip(first) {
                pipeline.add_command(command(owed));
            }
            let answers = link.connection().send_packed_commands(&pipeline, 0, pipeline.len()).await?;
            for (owed, answer) in self.owed.split_off(first).into_iter().zip(answers) {
                if let Value::Int(same) = answer {
                    told.count(Some(same == 1));
                } else {
                    // Its key has moved, for one; who has it now is found out in the background.
                    told.count(None);
                    self.local.give_back(owed);
                }
            }
        }
        Ok(())
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.owed.drain(..).for_each(|owed| self.local.give_back(owed));
    }
}

/// What became of what was owed.
#[derive(Default)]
struct Told {
    added: usize,
    over: usize,
    kept: usize,
}

impl Told {
    const fn count(&mut self, same: Option<bool>) {
        match same {
            Some(true) => self.added += 1,
            Some(false) => self.over += 1,
            None => self.kept += 1,
        }
    }

    /// Tells operators, where it was an outage and anything came of it.
    fn report(&self, shared: &Shared, was_away: bool) {
        let Self { added, over, kept } = *self;
        if added + over == 0 {
            return;
        }
        if was_away {
            let untold = shared.local.take_untold();
            tracing::info!(added, over, kept, untold, "told Redis of what was admitted while it was away");
        } else {
            tracing::debug!(added, over, kept, "told Redis of what was admitted without it");
        }
    }
}

/// Tells everything that is owed to who can be reached; gives back what could not be told.
async fn tell(shared: &Shared, store: &Store, was_away: bool) {
    let reachable = |owed: &Owed| store.available(store.shard(&owed.key));
    let owed = shared.local.take_owed(shared.clock.now(), reachable);
    let told = owed.into_iter().map(|owed| async move {
        let told = write(store, &owed).await;
        (owed, told)
    });
    let mut answers = futures::stream::iter(told).buffer_unordered(IN_FLIGHT);
    let mut told = Told::default();
    while let Some((owed, same)) = answers.next().await {
        told.count(same);
        if same.is_none() {
            shared.local.give_back(owed);
        }
    }
    told.report(shared, was_away);
}

/// Whether the window was the same; `None` when nobody knows and it is to be told again.
async fn write(store: &Store, owed: &Owed) -> Option<bool> {
    let shard = store.shard(&owed.key);
    if !store.available(shard) {
        return None;
    }
    let command = command(owed);
    match store.eval_within(PATIENCE, Lane::Bodies, shard, &RECONCILE, &command).await {
        Ok(Value::Int(same)) => Some(same == 1),
        // A key of another type stays one.
        Ok(_) | Err(Unavailable::Rejected) => Some(false),
        Err(_) => None,
    }
}

/// What tells the store of `owed`.
fn command(owed: &Owed) -> Cmd {
    let (rule, state) = (owed.rule, owed.state);
    let mut command = RECONCILE.command();
    let mut head = |kind: &str| {
        command.arg(1).arg(&*owed.key).arg(kind);
        command.arg(rule.capacity().min(MAX_EXACT)).arg(rule.period_ms.max(1));
    };
    match rule.algorithm {
        Algorithm::FixedWindow => {
            head("f");
            command.arg(state.used.min(MAX_EXACT)).arg(state.anchor);
        }
        Algorithm::SlidingWindow => {
            head("s");
            command.arg(state.anchor).arg(state.used.min(MAX_EXACT)).arg(state.before.min(MAX_EXACT));
        }
        Algorithm::TokenBucket => {
            head("b");
            command.arg(state.anchor).arg(state.used);
        }
        Algorithm::CoolDown(cool_down) => {
            head("c");
            command.arg(state.anchor).arg(state.used.min(MAX_EXACT)).arg(state.before);
            command.arg(cool_down.interval_ms).arg(cool_down.quiet_ms);
        }
        Algorithm::SlidingLog => {
            head("l");
            for (at, count) in owed.stamps() {
                command.arg(at).arg(count);
            }
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock, UnixMillis};
    use crate::limits::local::{Outage, Settings};
    use crate::limits::{
        Caller, Checks, CoolDown, KeyPart, KeySpace, LimitSource, Local, Plans, Policy, Window,
    };

    const KEY: &str = "rate_limit:p:192.0.2.1";

    struct Server {
        _process: crate::test_redis::Server,
        connection: ::redis::Connection,
    }

    impl Server {
        fn start() -> Self {
            let process = crate::test_redis::Server::start(&[]);
            let mut connection = process.client();
            let _: String = RECONCILE.load().query(&mut connection).unwrap();
            Self { _process: process, connection }
        }

        fn run<T: ::redis::FromRedisValue>(&mut self, words: &[&str]) -> T {
            ::redis::cmd(words[0]).arg(&words[1..]).query(&mut self.connection).unwrap()
        }

        fn tell(&mut self, owed: &Owed) -> bool {
            let same: i64 = command(owed).query(&mut self.connection).unwrap();
            let (ends, held): (i64, i64) = (self.run(&["PEXPIRETIME", KEY]), self.run(&["EXISTS", KEY]));
            assert!(held == 0 || ends > 0 || same == 0, "{ends}");
            same == 1
        }
    }

    /// What is owed after so many requests at once, at `now`.
    fn owed(algorithm: Algorithm, limit: u64, requests: usize, now: UnixMillis) -> Owed {
        let window = Window::new(limit, Duration::from_secs(60)).unwrap();
        let policy = Policy::new("p", &[KeyPart::Ip], algorithm, LimitSource::Windows(vec![window])).unwrap();
        let plans = Plans::standard().unwrap();
        let caller = Caller {
            ip: "192.0.2.1",
            user: None,
            token: None,
            api_token: None,
            own_limits: [None; 3],
            route: "r",
            plan: plans.anonymous(),
            multiplier: 1.0,
            request: crate::limits::Parts::default(),
        };
        let mut checks = Checks::new();
        checks.begin(now);
        checks.add(&KeySpace::default(), 0, &policy, &caller, 1).unwrap();
        let local = Local::new(Settings::default());
        for _ in 0..requests {
            local.decide_without_store(&mut checks, now, Outage { instances: 1, may_have_counted: false });
        }
        local.take_owed(now, |_| true).remove(0)
    }

    #[test]
    fn a_fixed_window_is_added_to_only_where_it_is_the_same() {
        let (mut server, now) = (Server::start(), SystemClock.now());
        let owed = owed(Algorithm::FixedWindow, 10, 4, now);
        // Redis keeps a key through the millisecond of its expiry.
        let ends = now.0 + 60_000 - 1;
        assert!(server.tell(&owed), "no window is known: this one is made known");
        assert_eq!(server.run::<i64>(&["GET", KEY]), 4);
        assert_eq!(server.run::<u64>(&["PEXPIRETIME", KEY]), ends);
        assert!(server.tell(&owed));
        assert!(server.tell(&owed), "within the limit");
        assert_eq!(server.run::<i64>(&["GET", KEY]), 10);
        assert_eq!(server.run::<u64>(&["PEXPIRETIME", KEY]), ends);

        let _: i64 = server.run(&["PEXPIREAT", KEY, &(ends + 5).to_string()]);
        let _: i64 = server.run(&["DECRBY", KEY, "7"]);
        assert!(!server.tell(&owed), "a window that began later");
        assert_eq!(server.run::<i64>(&["GET", KEY]), 3);
        let _: i64 = server.run(&["PERSIST", KEY]);
        assert!(!server.tell(&owed), "no window at all");
        let _: i64 = server.run(&["DEL", KEY]);
        let _: i64 = server.run(&["RPUSH", KEY, "x"]);
        assert!(!server.tell(&owed), "something else");

        let over = self::owed(Algorithm::FixedWindow, 10, 4, UnixMillis(now.0 - 60_000));
        let _: i64 = server.run(&["DEL", KEY]);
        assert!(!server.tell(&over), "it is over");
        let _: () = server.run(&["SET", KEY, "14", "PXAT", &ends.to_string()]);
        assert!(server.tell(&owed));
        assert_eq!(server.run::<i64>(&["GET", KEY]), 14, "what is over the limit stays");
    }

    #[test]
    fn a_window_that_began_within_the_counters_own_is_added_to_it_and_leaves_its_end() {
        let (mut server, now) = (Server::start(), SystemClock.now());
        // Several instances began a window each while the store was away.
        let at = |ms: u64| UnixMillis(now.0 - 10_000 + ms);
        assert!(server.tell(&owed(Algorithm::FixedWindow, 10, 4, at(20))));
        assert!(server.tell(&owed(Algorithm::FixedWindow, 10, 4, at(5_000))), "all of it within the first");
        assert_eq!(server.run::<i64>(&["GET", KEY]), 8);
        assert!(!server.tell(&owed(Algorithm::FixedWindow, 10, 1, at(0))), "not all of it within the first");
        assert_eq!(server.run::<i64>(&["GET", KEY]), 8);
        assert!(server.tell(&owed(Algorithm::FixedWindow, 10, 4, at(9_000))));
        assert_eq!(server.run::<i64>(&["GET", KEY]), 10, "no more than its limit");
        assert_eq!(server.run::<u64>(&["PEXPIRETIME", KEY]), at(20).0 + 60_000 - 1);

        let _: i64 = server.run(&["DEL", KEY]);
        let cool = Algorithm::CoolDown(CoolDown { interval_ms: 30_000, quiet_ms: 20_000 });
        assert!(server.tell(&owed(cool, 10, 4, at(20))) && server.tell(&owed(cool, 10, 4, at(5_000))));
        assert!(!server.tell(&owed(cool, 10, 1, at(0))));
        assert_eq!(server.run::<String>(&["GET", KEY]), format!("c{} 8", at(20).0 + 60_000));
    }

    #[test]
    fn a_sliding_window_is_added_to_by_its_start() {
        let mut server = Server::start();
        // Not so close to the end of a period that it may pass meanwhile.
        let now = loop {
            let now = SystemClock.now();
            if now.0 % 60_000 < 58_000 {
                break now;
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        let start = now.0 - now.0 % 60_000;
        let owed = owed(Algorithm::SlidingWindow, 10, 4, now);
        assert!(server.tell(&owed) && server.tell(&owed) && server.tell(&owed));
        assert_eq!(server.run::<String>(&["GET", KEY]), format!("s{start} 10 0"));
        let earlier = self::owed(Algorithm::SlidingWindow, 10, 3, UnixMillis(now.0 - 60_000));
        assert!(server.tell(&earlier), "the period before");
        assert_eq!(server.run::<String>(&["GET", KEY]), format!("s{start} 10 3"));
        let _: () = server.run(&["SET", KEY, &format!("s{} 2 1", start - 60_000), "PX", "50000"]);
        assert!(server.tell(&owed));
        assert_eq!(server.run::<String>(&["GET", KEY]), format!("s{start} 4 2"));
        assert!(!server.tell(&self::owed(Algorithm::SlidingWindow, 10, 3, UnixMillis(now.0 - 180_000))));
    }

    #[test]
    fn a_buckets_debt_adds_up_and_drains_meanwhile() {
        let (mut server, now) = (Server::start(), SystemClock.now());
        let debt = |server: &mut Server| -> u64 {
            let text: String = server.run(&["GET", KEY]);
            text.split(' ').nth(1).unwrap().parse().unwrap()
        };
        assert!(server.tell(&owed(Algorithm::TokenBucket, 10, 4, UnixMillis(now.0 - 6_000))));
        let first = debt(&mut server);
        assert!((120_001..=180_000).contains(&first), "{first}");
        for _ in 0..4 {
            assert!(server.tell(&owed(Algorithm::TokenBucket, 10, 4, SystemClock.now())));
        }
        assert!((590_000..=600_000).contains(&debt(&mut server)), "no more than a whole bucket");
        assert!(!server.tell(&owed(Algorithm::TokenBucket, 10, 4, UnixMillis(now.0 - 60_000))));
    }

    #[test]
    fn a_log_gets_the_times_of_what_was_admitted() {
        let (mut server, now) = (Server::start(), SystemClock.now());
        assert!(server.tell(&owed(Algorithm::SlidingLog, 10, 4, UnixMillis(now.0 - 5_000))));
        assert!(
            server.tell(&owed(Algorithm::SlidingLog, 10, 4, UnixMillis(now.0 - 5_000))),
            "of another instance"
        );
        assert_eq!(server.run::<i64>(&["ZCARD", KEY]), 8);
        assert_eq!(server.run::<u64>(&["PEXPIRETIME", KEY]), now.0 + 55_000);
        assert!(server.tell(&owed(Algorithm::SlidingLog, 10, 4, now)));
        assert_eq!(server.run::<i64>(&["ZCARD", KEY]), 10, "the newest decide");
        assert_eq!(server.run::<u64>(&["PEXPIRETIME", KEY]), now.0 + 60_000);
        assert!(!server.tell(&owed(Algorithm::SlidingLog, 10, 4, UnixMillis(now.0 - 60_000))));
        let _: () = server.run(&["SET", KEY, "x", "EX", "60"]);
        assert!(!server.tell(&owed(Algorithm::SlidingLog, 10, 4, now)));
    }

    #[test]
    fn a_cool_down_is_added_to_in_its_window_and_a_trip_holds_until_it_was_quiet() {
        let (mut server, now) = (Server::start(), SystemClock.now());
        let cool = Algorithm::CoolDown(CoolDown { interval_ms: 30_000, quiet_ms: 20_000 });
        let ends = now.0 + 60_000;
        let open = owed(cool, 10, 4, now);
        assert!(server.tell(&open) && server.tell(&open) && server.tell(&open));
        assert_eq!(server.run::<String>(&["GET", KEY]), format!("c{ends} 10"));
        assert!(!server.tell(&owed(cool, 10, 4, UnixMillis(now.0 - 7))), "another window");
        assert!(server.tell(&owed(cool, 3, 9, now)), "it tripped");
        let tripped = format!("t{} {}", now.0 + 30_000, now.0);
        assert_eq!(server.run::<String>(&["GET", KEY]), tripped);
        assert_eq!(server.run::<u64>(&["PEXPIRETIME", KEY]), now.0 + 20_000);
        assert!(!server.tell(&open), "a trip stays one");
        assert!(server.tell(&owed(cool, 3, 9, UnixMillis(now.0 - 9_000))));
        assert_eq!(server.run::<String>(&["GET", KEY]), tripped, "the later attempt holds");
        let _: i64 = server.run(&["DEL", KEY]);
        assert!(!server.tell(&owed(cool, 3, 9, UnixMillis(now.0 - 20_000))));
    }
}
