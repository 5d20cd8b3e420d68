use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::*;
use crate::clock::{ManualClock, UnixMillis};
use crate::identity::{Algorithm, KeySet, Refused};

const COOLDOWN: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(2);
const REFRESH: Duration = Duration::from_secs(300);

/// A source that tests script. Reads are counted when they begin.
#[derive(Default)]
struct Script {
    set: Mutex<Value>,
    /// How long each of the next reads takes.
    delays: Mutex<VecDeque<Duration>>,
    down: AtomicBool,
    reads: Mutex<Vec<Instant>>,
}

impl Script {
    fn publish(&self, kids: &[&str]) {
        let key = |kid: &&str| json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
        *self.set.lock() = json!({"keys": kids.iter().map(key).collect::<Vec<_>>()});
    }

    fn reads(&self) -> usize {
        self.reads.lock().len()
    }

    /// The shortest time from the start of one read to the start of the next.
    fn shortest_pause(&self) -> Duration {
        self.reads.lock().windows(2).map(|pair| pair[1] - pair[0]).min().unwrap_or(Duration::MAX)
    }
}

struct Scripted(Arc<Script>);

#[async_trait]
impl Source for Scripted {
    async fn read(&self) -> Result<Bytes, Trouble> {
        self.0.reads.lock().push(Instant::now());
        // What is published when the read begins is what it brings, however long it takes.
        let set = self.0.set.lock().to_string();
        let delay = self.0.delays.lock().pop_front();
        tokio::time::sleep(delay.unwrap_or(Duration::from_millis(10))).await;
        if self.0.down.load(Ordering::SeqCst) {
            return Err(Trouble::Unreachable("down".into()));
        }
        Ok(set.into())
    }

    fn place(&self) -> &'static str {
        "script"
    }
}

/// What becomes of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Known,
    Absent,
    Unavailable,
}

/// A token that names this key and does not fit the keys of now.
fn unheard(keeper: &Keeper, kid: Option<&str>) -> Unheard {
    Unheard {
        issuer: 0,
        generation: keeper.ring().generation(),
        refused: Refused::UnknownKey,
        sought: kid.map(|kid| Sought::Kid(kid.into())),
    }
}

/// What becomes of a token that fits any key of its `kid`: judged, looked for and judged anew as requests are.
async fn find(keeper: &Keeper, kid: Option<&str>) -> Found {
    let mut is_final = false;
    loop {
        let unheard = unheard(keeper, kid);
        let keys = keeper.ring().keys().clone();
        if keys.keys().iter().any(|key| kid.is_none() || key.kid() == kid) {
            return Found::Known;
        }
        if is_final {
            keeper.remember(&unheard);
            return Found::Absent;
        }
        match keeper.ask(&unheard).await {
            Answer::Changed => {}
            Answer::Renewed => is_final = true,
            Answer::Final => return Found::Absent,
            Answer::Unavailable => return Found::Unavailable,
        }
    }
}

struct Stage {
    script: Arc<Script>,
    keeper: Arc<Keeper>,
    clock: Arc<ManualClock>,
    metrics: Metrics,
}

impl Stage {
    /// A keeper at work, with these keys published.
    fn start(kids: &[&str]) -> Self {
        let script = Arc::new(Script::default());
        script.publish(kids);
        Self::of(script)
    }

    fn of(script: Arc<Script>) -> Self {
        Self::with(script, |_| {})
    }

    fn with(script: Arc<Script>, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            issuer: "main".into(),
            algorithms: [Algorithm::EdDsa].into(),
            place: Place::File("unused".into()),
            refresh: REFRESH,
            cooldown: COOLDOWN,
            timeout: TIMEOUT,
            max_bytes: 1024,
        };
        change(&mut settings);
        let clock = Arc::new(ManualClock::at(UnixMillis::from_secs(1_700_000_000)));
        let metrics = Metrics::new().unwrap();
        let source = Box::new(Scripted(Arc::clone(&script)));
        let keeper = Arc::new(Keeper::new(settings, source, Arc::clone(&clock) as Arc<dyn Clock>, &metrics));
        tokio::spawn(Arc::clone(&keeper).keep());
        Self { script, keeper, clock, metrics }
    }

    async fn ask(&self, kid: &str) -> (Found, Duration) {
        let began = Instant::now();
        (find(&self.keeper, Some(kid)).await, began.elapsed())
    }

    /// Asks at once for all of these from tasks of their own.
    async fn ask_all(&self, kids: impl Iterator<Item = String>) -> Vec<Found> {
        let ask = |kid: String| {
            let keeper = Arc::clone(&self.keeper);
            tokio::spawn(async move { find(&keeper, Some(&kid)).await })
        };
        let asked: Vec<_> = kids.map(ask).collect();
        let mut answers = Vec::new();
        for answer in asked {
            answers.push(answer.await.unwrap());
        }
        answers
    }

    fn line(&self, line: &str) -> bool {
        self.metrics.render().lines().any(|found| found == line)
    }
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn keys_are_read_at_once_and_again_at_intervals() {
    let stage = Stage::start(&["a"]);
    assert_eq!(find(&stage.keeper, None).await, Found::Known);
    assert_eq!((stage.ask("a").await, stage.script.reads()), ((Found::Known, Duration::ZERO), 1));
    pass(REFRESH * 4).await;
    assert!((4..=6).contains(&stage.script.reads()), "{}", stage.script.reads());
    assert!(stage.script.shortest_pause() >= REFRESH.mul_f64(0.9));
    assert!(stage.script.shortest_pause() <= REFRESH + TIMEOUT);
    assert!(stage.line("tollgate_jwks_fetches_total{issuer=\"main\",result=\"changed\"} 1"));
    assert!(stage.line("tollgate_jwks_keys{issuer=\"main\"} 1"));
    assert!(stage.line("tollgate_jwks_last_success_timestamp_seconds{issuer=\"main\"} 1700000000"));
}

#[tokio::test(start_paused = true)]
async fn the_same_keys_void_nothing_and_others_do() {
    let stage = Stage::start(&["a", "b"]);
    stage.ask("a").await;
    let generation = stage.keeper.ring().generation();
    stage.script.publish(&["b", "a"]);
    stage.clock.advance(REFRESH);
    pass(REFRESH + TIMEOUT).await;
    assert!(stage.script.reads() >= 2);
    assert_eq!(stage.keeper.ring().generation(), generation);
    assert!(stage.line("tollgate_jwks_last_success_timestamp_seconds{issuer=\"main\"} 1700000300"));
    stage.script.publish(&["b"]);
    pass(REFRESH + TIMEOUT).await;
    assert_eq!(stage.keeper.ring().generation(), generation + 1);
    let keys = stage.keeper.ring().keys();
    assert!(
        keys.keys().iter().all(|key| key.kid() == Some("b")),
        "what is no longer published is no longer trusted"
    );
}

#[tokio::test(start_paused = true)]
async fn an_unheard_key_waits_for_the_next_read_that_is_allowed() {
    let stage = Stage::start(&["a"]);
    stage.ask("a").await;
    stage.script.publish(&["a", "b"]);
    let (answer, waited) = stage.ask("b").await;
    assert_eq!(answer, Found::Known);
    assert!(waited <= COOLDOWN + TIMEOUT, "{waited:?}");
    assert_eq!(stage.script.reads(), 2);
    // Long after the last read nothing is waited for but the read itself.
    pass(COOLDOWN * 2).await;
    stage.script.publish(&["a", "b", "c"]);
    let (answer, waited) = stage.ask("c").await;
    assert_eq!(answer, Found::Known);
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    assert_eq!(stage.script.reads(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_began_before_the_question_proves_no_absence() {
    let stage = Stage::start(&["a"]);
    stage.ask("a").await;
    pass(COOLDOWN).await;
    stage.script.delays.lock().push_back(Duration::from_secs(1));
    let keeper = Arc::clone(&stage.keeper);
    let first = tokio::spawn(async move { find(&keeper, Some("nobody")).await });
    while stage.script.reads() < 2 {
        pass(Duration::from_millis(1)).await;
    }
    // Published, and asked for, while a read is under way that cannot know of it.
    stage.script.publish(&["a", "b"]);
    assert_eq!(stage.ask("b").await.0, Found::Known);
    assert_eq!(first.await.unwrap(), Found::Absent);
    assert_eq!(stage.script.reads(), 3);
    assert!(stage.script.shortest_pause() >= COOLDOWN);
}

#[tokio::test(start_paused = true)]
async fn what_is_absent_stays_so_for_the_cooldown_and_is_looked_up_again_after_it() {
    let stage = Stage::start(&["a"]);
    assert_eq!(stage.ask("b").await.0, Found::Absent);
    let reads = stage.script.reads();
    stage.script.publish(&["a", "b"]);
    assert_eq!((stage.ask("b").await, stage.script.reads()), ((Found::Absent, Duration::ZERO), reads));
    pass(COOLDOWN).await;
    assert_eq!((stage.ask("b").await.0, stage.script.reads()), (Found::Known, reads + 1));
}

#[tokio::test(start_paused = true)]
async fn however_many_ask_there_is_one_read_per_cooldown() {
    let stage = Stage::start(&["a"]);
    stage.ask("a").await;
    let began = Instant::now();
    for round in 0..6 {
        let answers = stage.ask_all((0..800).map(|n| format!("{round}/{n}"))).await;
        assert!(answers.iter().all(|answer| *answer == Found::Absent), "{round}");
    }
    let cooldowns = began.elapsed().as_secs() / COOLDOWN.as_secs();
    assert!(stage.script.reads() as u64 <= cooldowns + 2, "{} in {cooldowns}", stage.script.reads());
    assert!(stage.script.shortest_pause() >= COOLDOWN);
    assert!(stage.keeper.vain.len() <= MAX_VAIN);
}

#[tokio::test(start_paused = true)]
async fn no_more_wait_than_there_is_room_for() {
    let stage = Stage::start(&["a"]);
    stage.ask("a").await;
    let answers = stage.ask_all((0..MAX_WAITING + 10).map(|n| n.to_string())).await;
    let count = |wanted| answers.iter().filter(|answer| **answer == wanted).count();
    assert_eq!((count(Found::Absent), count(Found::Unavailable)), (MAX_WAITING, 10));
    assert_eq!(stage.keeper.waiting.load(Ordering::SeqCst), 0);
    // One that stops waiting makes room.
    let waiting = tokio::time::timeout(Duration::from_millis(1), find(&stage.keeper, Some("gone"))).await;
    assert!(waiting.is_err());
    assert_eq!(stage.keeper.waiting.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn without_any_keys_nothing_can_be_said() {
    let script = Arc::new(Script::default());
    script.publish(&["a"]);
    script.down.store(true, Ordering::SeqCst);
    let stage = Stage::of(script);
    assert_eq!(find(&stage.keeper, None).await, Found::Unavailable);
    let reads = stage.script.reads();
    assert_eq!(find(&stage.keeper, None).await, Found::Unavailable);
    assert_eq!(stage.script.reads(), reads, "a token without kid causes no read");
    let (answer, waited) = stage.ask("a").await;
    assert_eq!(answer, Found::Unavailable);
    assert!(waited <= COOLDOWN + TIMEOUT, "{waited:?}");
    assert!(stage.script.reads() > reads);
    stage.script.down.store(false, Ordering::SeqCst);
    assert_eq!(stage.ask("a").await.0, Found::Known);
    assert_eq!(find(&stage.keeper, None).await, Found::Known);
}

#[tokio::test(start_paused = true)]
async fn keys_come_without_being_asked_for_once_the_source_is_back() {
    let script = Arc::new(Script::default());
    script.publish(&["a"]);
    script.down.store(true, Ordering::SeqCst);
    let stage = Stage::of(script);
    pass(Duration::from_secs(600)).await;
    let reads = stage.script.reads();
    assert!((8..=20).contains(&reads), "the pause doubles up to a minute: {reads}");
    stage.script.down.store(false, Ordering::SeqCst);
    pass(LONGEST_RETRY + TIMEOUT).await;
    assert_eq!(stage.ask("a").await, (Found::Known, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_read_that_is_far_away() {
    let script = Arc::new(Script::default());
    script.publish(&["a"]);
    let hour = Duration::from_secs(3_600);
    let stage = Stage::with(script, |settings| (settings.cooldown, settings.refresh) = (hour, hour * 10));
    assert_eq!(stage.ask("a").await.0, Found::Known);
    stage.script.publish(&["a", "b"]);
    assert_eq!(stage.ask("b").await, (Found::Unavailable, Duration::ZERO));
    pass(hour.saturating_sub(LONGEST_WAIT)).await;
    assert_eq!(stage.script.reads(), 1);
    // It was asked for, though, and comes when it may.
    pass(LONGEST_WAIT + TIMEOUT).await;
    assert_eq!((stage.ask("b").await, stage.script.reads()), ((Found::Known, Duration::ZERO), 2));
}

#[tokio::test(start_paused = true)]
async fn a_failure_takes_no_key_away() {
    let stage = Stage::start(&["a"]);
    stage.ask("a").await;
    let generation = stage.keeper.ring().generation();
    let junk = [
        json!({"keys": []}),
        json!([]),
        json!("x"),
        json!({"keys": [{"kty": "oct", "k": "AAAA", "kid": "a"}]}),
    ];
    for set in junk {
        *stage.script.set.lock() = set.clone();
        assert_eq!(stage.ask("b").await.0, Found::Unavailable, "{set}");
    }
    stage.script.down.store(true, Ordering::SeqCst);
    assert_eq!(stage.ask("b").await.0, Found::Unavailable);
    // A read that takes too long is given up.
    stage.script.down.store(false, Ordering::SeqCst);
    stage.script.publish(&["a", "b"]);
    stage.script.delays.lock().push_back(TIMEOUT * 10);
    assert_eq!(stage.ask("b").await.0, Found::Unavailable);
    assert_eq!(stage.ask("a").await, (Found::Known, Duration::ZERO));
    assert_eq!(stage.keeper.ring().generation(), generation);
    assert!(stage.line("tollgate_jwks_fetches_total{issuer=\"main\",result=\"invalid\"} 4"));
    assert!(stage.line("tollgate_jwks_fetches_total{issuer=\"main\",result=\"unreachable\"} 2"));
    assert!(stage.line("tollgate_jwks_keys{issuer=\"main\"} 1"));
    assert_eq!(stage.ask("b").await.0, Found::Known);
}

#[tokio::test(start_paused = true)]
async fn a_keeper_begins_with_what_was_read_already_and_is_kept_with_its_settings() {
    let script = Script::default();
    script.publish(&["a"]);
    let set = script.set.lock().to_string();
    let stage = Stage::start(&["z"]);
    let settings = stage.keeper.settings().clone();
    let clock: Arc<dyn Clock> = Arc::clone(&stage.clock) as _;
    let keepers = crate::jwks::Keepers::default();
    let get = |settings: &Settings, set: Option<&[u8]>| keepers.keeper(settings, set, &clock, &stage.metrics);
    let first = get(&settings, Some(set.as_bytes())).unwrap();
    assert_eq!(find(&first, Some("a")).await, Found::Known);
    assert!(Arc::ptr_eq(&first, &get(&settings, None).unwrap()));
    let other = get(&Settings { cooldown: COOLDOWN * 2, ..settings.clone() }, Some(set.as_bytes())).unwrap();
    assert!(!Arc::ptr_eq(&first, &other));
    assert_eq!(keepers.all().len(), 1);
    assert!(get(&Settings { issuer: "b".into(), ..settings }, Some(b"{}")).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_verdict_by_keys_that_were_replaced_is_not_final() {
    let stage = Stage::start(&["a"]);
    stage.ask("a").await;
    let reads = stage.script.reads();
    // Judged by the old keys; before anything is asked, others are there.
    for kid in [Some("b"), None] {
        let unheard = unheard(&stage.keeper, kid);
        stage.keeper.ring().replace(KeySet::default());
        assert_eq!(stage.keeper.ask(&unheard).await, Answer::Changed, "{kid:?}");
    }
    // Not even where it was looked for in vain.
    let before = unheard(&stage.keeper, Some("b"));
    stage.keeper.remember(&before);
    assert_eq!(stage.keeper.ask(&before).await, Answer::Final);
    stage.keeper.ring().replace(KeySet::default());
    assert_eq!(stage.keeper.ask(&before).await, Answer::Changed);
    assert_eq!(stage.script.reads(), reads);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_looked_for_whatever_it_is_called() {
    let stage = Stage::start(&["a"]);
    stage.ask("a").await;
    // A token that the key of its name did not sign: perhaps another has this name by now.
    let forged = unheard(&stage.keeper, Some("a"));
    assert_eq!((stage.keeper.ask(&forged).await, stage.script.reads()), (Answer::Final, 2));
    // Until the cooldown has passed no more are waited for.
    let again = Instant::now();
    for _ in 0..1_000 {
        assert_eq!(stage.keeper.ask(&forged).await, Answer::Final);
    }
    assert_eq!((again.elapsed(), stage.script.reads()), (Duration::ZERO, 2));
    pass(COOLDOWN).await;
    let mut set = stage.script.set.lock().clone();
    set["keys"][0]["x"] = json!("PUAXw-hDiVqStwqnTRt-vJyYLM8uxJaMwM1V8Sr0Zgw");
    *stage.script.set.lock() = set;
    assert_eq!((stage.keeper.ask(&forged).await, stage.script.reads()), (Answer::Renewed, 3));
}

#[tokio::test(start_paused = true)]
async fn keys_that_come_meanwhile_are_tried_before_those_that_were_asked_for() {
    let stage = Stage::start(&["a"]);
    stage.ask("a").await;
    pass(COOLDOWN).await;
    stage.script.delays.lock().push_back(Duration::from_secs(1));
    stage.script.publish(&["a", "b"]);
    let first = unheard(&stage.keeper, Some("z"));
    let (keeper, question) = (Arc::clone(&stage.keeper), first.clone());
    let first = tokio::spawn(async move { keeper.ask(&question).await });
    while stage.script.reads() < 2 {
        pass(Duration::from_millis(1)).await;
    }
    // Asked while a read is under way: what that brings may do, but is not final.
    let began = Instant::now();
    let late = unheard(&stage.keeper, Some("b"));
    assert_eq!(stage.keeper.ask(&late).await, Answer::Changed);
    assert!(began.elapsed() <= Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(first.await.unwrap(), Answer::Renewed);
}

#[tokio::test(start_paused = true)]
async fn forgeries_in_the_name_of_a_key_take_no_room_from_new_names_and_stay_forgeries_while_nothing_can_be_read()
 {
    let stage = Stage::start(&["a"]);
    stage.ask("a").await;
    let forged = |kid: &str| Unheard { refused: Refused::BadSignature, ..unheard(&stage.keeper, Some(kid)) };
    let forgeries: Vec<Unheard> = (0..MAX_WAITING).map(|n| forged(&n.to_string())).collect();
    let crowd = futures::future::join_all(forgeries.iter().map(|forgery| stage.keeper.ask(forgery)));
    let (answers, genuine) = tokio::join!(crowd, async {
        tokio::task::yield_now().await;
        assert_eq!(stage.keeper.waiting.load(Ordering::SeqCst), MAX_WAITING / 4);
        stage.script.publish(&["a", "new"]);
        find(&stage.keeper, Some("new")).await
    });
    assert_eq!(genuine, Found::Known);
    assert!(answers.iter().all(|answer| *answer != Answer::Unavailable));

    stage.script.down.store(true, Ordering::SeqCst);
    pass(COOLDOWN).await;
    assert_eq!(stage.keeper.ask(&forged("a")).await, Answer::Final);
    assert_eq!(find(&stage.keeper, Some("newer")).await, Found::Unavailable);
}
