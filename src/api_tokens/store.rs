//! Where API tokens are kept, and everything that is done with them: for operators, and for requests. A record changes
//! only if it is still what it was when it was read, so that of two changes at once neither is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, Value, cmd, from_redis_value};
use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use parking_lot::RwLock;
use serde::Serialize;

use super::held::{Held, Hold};
use super::known::{Entry, Known, Used, Verdict, refuse_unknown};
use super::record::{MAX_LIFE, Naming, Order, OwnLimits, Record, Unusable};
use super::token::{Id, Issued, NoRandomness, Presented};
use super::turns::Turns;
use crate::clock::UnixMillis;
use crate::identity::{Refused, subject_key};
use crate::redis::{Lane, Publisher, Store, Unavailable};

/// How an instance tells the others that a token changed; its id follows.
const CHANGED: &[u8] = b"api_token ";
/// How it tells them of one that the store could not be told of.
pub(super) const HELD: &[u8] = b"api_token_held ";
/// What an operator waits for each answer of Redis.
const PATIENCE: Duration = Duration::from_millis(500);
/// Tokens kept in memory.
const MOST_IN_MEMORY: usize = 10_000;
/// Tokens listed at once.
const MOST_LISTED: usize = 100_000;
/// Ids asked for at a time.
const PAGE: usize = 1_000;
/// Records read at the same time for a list.
const READ_AT_ONCE: usize = 64;
/// Ids looked at when a token is made, so that those whose record has expired do not pile up where nobody asks for
/// the list.
const TIDIED: usize = 10;
/// How often a change is tried anew that another one got ahead of.
pub(super) const ATTEMPTS: usize = 8;
/// How long an expired token still tells that it has expired.
const KEPT_EXPIRED: Duration = Duration::from_secs(30 * 86_400);
/// How long it is remembered when a token was used last.
const KEPT_USE: Duration = Duration::from_secs(366 * 86_400);

/// Replaces a record that is still what it was.
/// KEYS[1] the record; ARGV[1] what it was, ARGV[2] what it is to be.
const REPLACE: &str = "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end \
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL') \
return 1";

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The order makes no sense.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// No token has this id.
    #[error("no API token has this id")]
    Unknown,
    /// The store gave no answer.
    #[error("the shared store is not reachable")]
    Unavailable(#[from] Unavailable),
    /// No secret could be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// A token that was made, or given another secret.
#[derive(Debug)]
pub struct Made {
    /// The token itself: shown once, and stored nowhere.
    pub token: Issued,
    /// What is kept of it.
    pub listed: Listed,
    /// What may have been overlooked about it.
    pub doubt: Option<&'static str>,
}

/// A token as operators see it. Times are seconds since the epoch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listed {
    /// Its id, not secret.
    pub id: Box<str>,
    /// What it is for.
    pub name: Box<str>,
    /// Whose it is.
    pub owner: Box<str>,
    /// The plan; `None`: the default plan.
    pub plan: Option<Box<str>>,
    /// What it may do.
    pub permissions: Vec<Box<str>>,
    /// Factor on the plan's limits.
    pub multiplier: Option<f64>,
    /// Its own limits; where they are absent, those of the policies.
    pub limits: OwnLimits,
    /// When it was made.
    pub created: u64,
    /// From here on it is refused; `None`: never.
    pub expires: Option<u64>,
    /// Whether it is refused for now.
    pub disabled: bool,
    /// Until when the secret before this one still works.
    pub previous_until: Option<u64>,
    /// When it was used last, to the minute; `None`: not within a year.
    pub last_used: Option<u64>,
}

/// The tokens that there are, in the order of their ids.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    /// The tokens.
    pub tokens: Vec<Listed>,
    /// Whether these are all: at most 100,000 are listed.
    pub complete: bool,
}

impl Listed {
    fn new(id: Id, record: &Record, used_at: Option<u64>, now: UnixMillis) -> Self {
        Self {
            id: id.as_str().into(),
            name: record.name.clone(),
            owner: record.owner.clone(),
            plan: record.plan.clone(),
            permissions: record.permissions.clone(),
            multiplier: record.multiplier,
            limits: record.limits,
            created: record.created,
            expires: record.expires,
            disabled: record.disabled,
            previous_until: record.grace_until(now),
            last_used: used_at.map(|at| UnixMillis(at).as_secs()),
        }
    }
}

/// Where tokens are.
enum Home {
    /// With all instances.
    Store(Arc<Store>),
    /// Here, for as long as the process lives.
    Memory(RwLock<BTreeMap<Id, Arc<Entry>>>),
}

/// The API tokens of a gateway. Cheap to share.
pub struct ApiTokens {
    home: Home,
    naming: Naming,
    known: Known,
    pub(super) held: Held,
    turns: Turns,
}

impl std::fmt::Debug for ApiTokens {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ApiTokens").field("shared", &self.is_shared()).finish_non_exhaustive()
    }
}

impl ApiTokens {
    /// The tokens in `store`, or in memory where there is none.
    pub fn new(store: Option<Arc<Store>>, naming: Naming) -> Self {
        let home = store.map_or_else(|| Home::Memory(RwLock::default()), Home::Store);
        Self { home, naming, known: Known::new(), held: Held::default(), turns: Turns::new() }
    }

    /// Whether all instances have the same tokens; otherwise they end with the process.
    pub const fn is_shared(&self) -> bool {
        matches!(self.home, Home::Store(_))
    }

    /// What a request with this token, which came at `now`, is.
    pub fn judge(&self, presented: &Presented, now: UnixMillis) -> Verdict {
        let tokens = match &self.home {
            Home::Store(_) => {
                return match (self.known.judge(presented, now), self.held.of(presented.id)) {
                    (Verdict::Accepted(_), Some(hold)) => Verdict::Refused(hold.refused()),
                    (verdict, _) => verdict,
                };
            }
            Home::Memory(tokens) => tokens.read(),
        };
        let Some(entry) = tokens.get(&presented.id) else {
            return Verdict::Refused(refuse_unknown(&presented.secret));
        };
        match entry.judge(&presented.secret, now) {
            Ok(identity) => Verdict::Accepted(Used {
                entry: Arc::clone(entry),
                identity: Arc::clone(identity),
                secret: presented.secret,
            }),
            Err(refused) => Verdict::Refused(refused),
        }
    }

    /// Reads the record of what was presented at `now`, so that it can be judged; `clock` tells when that begins.
    ///
    /// # Errors
    /// The store does not answer, or too many are waiting for it: what is known may be out of date.
    pub async fn look_up(
        &self,
        presented: &Presented,
        now: UnixMillis,
        clock: impl Fn() -> UnixMillis,
    ) -> Result<(), Unavailable> {
        let Home::Store(store) = &self.home else { return Ok(()) };
        let id = presented.id;
        let place = self.turns.queue(id);
        let mut failed_at = place.turn().await.ok_or(Unavailable::DeadlinePassed)?;
        // Whoever read it meanwhile has read it for this request too.
        if !matches!(self.known.judge(presented, now), Verdict::Unknown(_)) {
            return Ok(());
        }
        if failed_at.is_some_and(|failed_at| failed_at >= now) {
            return Err(Unavailable::DeadlinePassed);
        }
        let _room = place.room().await.ok_or(Unavailable::DeadlinePassed)?;
        // Before the read: an answer may be as old as its question. Never before the request, whatever the clock did.
        let asked_at = clock().max(now);
        let key = self.key("api_token", id);
        let mut command = cmd("MGET");
        command.arg(&key);
        match store.call(Lane::Decisions, store.shard(key.as_bytes()), &command).await.and_then(only) {
            Ok(stored) => {
                self.known.learn(id, stored, &self.naming, asked_at);
                Ok(())
            }
            Err(unavailable) => {
                *failed_at = Some(asked_at);
                Err(unavailable)
            }
        }
    }

    /// Judges anew where what is `stored` is not what `used` was accepted by. `None`: nothing changed.
    ///
    /// # Errors
    /// Why the request is refused after all.
    pub fn recheck(
        &self,
        used: &Used,
        stored: Option<&Bytes>,
        now: UnixMillis,
    ) -> Result<Option<Used>, Refused> {
        if let Some(hold) = self.held.of(used.entry.id) {
            return Err(hold.refused());
        }
        if stored.is_some_and(|stored| used.entry.is(stored)) {
            return Ok(None);
        }
        let Used { entry, secret, .. } = used;
        let Some(entry) = self.known.learn(entry.id, stored.cloned(), &self.naming, now) else {
            return Err(refuse_unknown(secret));
        };
        let identity = Arc::clone(entry.judge(secret, now)?);
        Ok(Some(Used { entry, identity, secret: *secret }))
    }

    /// Notes, in the background and once a minute, that a token is used. Must be called on a worker, whose connection is
    /// used.
    pub fn note_use(&self, used: &Used, now: UnixMillis) {
        if !used.entry.note_use(now) {
            return;
        }
        let Home::Store(store) = &self.home else { return };
        let key = self.key("api_token_used", used.entry.id);
        let shard = store.shard(key.as_bytes());
        if !store.available(shard) {
            return;
        }
        let store = Arc::clone(store);
        tokio::spawn(async move {
            let mut command = cmd("SET");
            command.arg(&key).arg(now.0).arg("EX").arg(KEPT_USE.as_secs());
            // Best effort: the next use is noted too.
            let _ = store.call(Lane::Decisions, shard, &command).await;
        });
    }

    /// Follows the news that a token changed. Returns whether `payload` was such news.
    pub fn follow(&self, payload: &[u8], now: UnixMillis) -> bool {
        if let Some(news) = payload.strip_prefix(HELD) {
            let told = std::str::from_utf8(news).ok().and_then(Hold::from_message);
            if let (Some((id, mut word)), Some(store)) = (told, self.store()) {
                // Nobody speaks in the future: what is said then would count less.
                word.at = word.at.min(now);
                self.held.hold(id, word);
                store.hand_over_soon();
            }
            return true;
        }
        let Some(id) = payload.strip_prefix(CHANGED) else { return false };
        if let Some(id) = std::str::from_utf8(id).ok().and_then(Id::parse) {
            self.known.forget(id);
        }
        true
    }

    /// Makes a token.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn create(&self, order: &Order, now: UnixMillis) -> Result<Made, Problem> {
        let issued = Issued::new(Id::random()?)?;
        let record = Record::new(order, issued.hash(), now)?;
        match &self.home {
            Home::Memory(tokens) => {
                let mut tokens = tokens.write();
                if tokens.len() >= MOST_IN_MEMORY {
                    return Err(Unusable("memory holds at most 10000 API tokens").into());
                }
                tokens.insert(issued.id, self.entry(issued.id, &record, now));
            }
            Home::Store(store) => {
                // First the list: no token may work that nobody sees.
                self.enlist(store, issued.id).await?;
                let key = self.key("api_token", issued.id);
                let mut command = cmd("SET");
                command.arg(&key).arg(record.encode()).arg("NX");
                if let Some(expires) = record.expires {
                    command.arg("PXAT").arg(UnixMillis::from_secs(expires).plus(KEPT_EXPIRED).0.min(LAST));
                }
                if self.ask(store, &key, &command).await? == Value::Nil {
                    return Err(NoRandomness.into());
                }
                // Whoever read the list before the record was there took the id off again.
                self.enlist(store, issued.id).await?;
                self.tidy(store).await;
                self.tell(store, issued.id).await;
            }
        }
        let listed = Listed::new(issued.id, &record, None, now);
        Ok(Made { token: issued, listed, doubt: self.naming.doubt(&order.owner) })
    }

    /// Every token, in the order of their ids. Ids whose record is gone are taken off the list.
    ///
    /// # Errors
    /// [`Problem::Unavailable`].
    pub async fn list(&self, now: UnixMillis) -> Result<List, Problem> {
        let store = match &self.home {
            Home::Store(store) => store,
            Home::Memory(tokens) => {
                let listed = |(id, entry): (&Id, &Arc<Entry>)| {
                    Some(Listed::new(*id, entry.record()?, entry.used_at(), now))
                };
                let tokens = tokens.read().iter().filter_map(listed).collect();
                return Ok(List { tokens, complete: true });
            }
        };
        let (ids, complete) = self.ids(store).await?;
        let reads = ids.into_iter().map(async |id| match self.read_listed(store, id, now).await? {
            Found::Token(listed) => Ok(Some(*listed)),
            Found::NoToken => Ok(None),
            Found::Nothing => self.unlist(store, id).await.map(|()| None),
        });
        let found: Vec<_> = stream::iter(reads).buffered(READ_AT_ONCE).collect().await;
        let tokens = found.into_iter().filter_map(Result::transpose).collect::<Result<_, Problem>>()?;
        Ok(List { tokens, complete })
    }

    /// One token; `None` when no token has this id.
    ///
    /// # Errors
    /// [`Problem::Unavailable`].
    pub async fn find(&self, id: Id, now: UnixMillis) -> Result<Option<Listed>, Problem> {
        match &self.home {
            Home::Store(store) => Ok(match self.read_listed(store, id, now).await? {
                Found::Token(listed) => Some(*listed),
                Found::NoToken | Found::Nothing => None,
            }),
            Home::Memory(tokens) => Ok(tokens
                .read()
                .get(&id)
                .and_then(|entry| Some(Listed::new(id, entry.record()?, entry.used_at(), now)))),
        }
    }

    /// Gives a token another secret; the one that held until now works for `grace` longer.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn rotate(&self, id: Id, grace: Duration, now: UnixMillis) -> Result<Made, Problem> {
        if grace > MAX_LIFE {
            return Err(Unusable("a grace is at most a hundred years").into());
        }
        let issued = Issued::new(id)?;
        let listed = self.change(id, now, |record| record.rotate(issued.hash(), grace, now)).await?;
        Ok(Made { token: issued, listed, doubt: None })
    }

    /// Refuses a token for now, or accepts it again.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn disable(&self, id: Id, disabled: bool, now: UnixMillis) -> Result<Listed, Problem> {
        let changed = self.change(id, now, |record| record.switch(disabled, now)).await?;
        self.held.settle_disabled(id, now);
        Ok(changed)
    }

    /// Ends a token for good.
    ///
    /// # Errors
    /// [`Problem::Unknown`] and [`Problem::Unavailable`].
    pub async fn delete(&self, id: Id) -> Result<(), Problem> {
        match &self.home {
            Home::Memory(tokens) => tokens.write().remove(&id).map(drop).ok_or(Problem::Unknown),
            Home::Store(store) => {
                let key = self.key("api_token", id);
                let mut command = cmd("DEL");
                command.arg(&key);
                let deleted = self.ask(store, &key, &command).await?;
                self.held.release(id);
                self.known.forget(id);
                let mut unlisting = cmd("SREM");
                unlisting.arg(self.index()).arg(id.as_str());
                let unlisted = self.ask(store, &self.index(), &unlisting).await?;
                let used = self.key("api_token_used", id);
                let mut forgetting = cmd("DEL");
                forgetting.arg(&used);
                // It would go by itself.
                let _ = self.ask(store, &used, &forgetting).await;
                self.tell(store, id).await;
                if deleted == Value::Int(0) && unlisted == Value::Int(0) {
                    return Err(Problem::Unknown);
                }
                Ok(())
            }
        }
    }

    async fn change(&self, id: Id, now: UnixMillis, change: impl Fn(&mut Record)) -> Result<Listed, Problem> {
        const NO_RECORD: Unusable = Unusable("what is stored under this id is no API token; delete it");
        let store = match &self.home {
            Home::Store(store) => store,
            Home::Memory(tokens) => {
                let mut tokens = tokens.write();
                let before = tokens.get(&id).ok_or(Problem::Unknown)?;
                let mut record = before.record().cloned().ok_or(NO_RECORD)?;
                change(&mut record);
                let after = self.entry(id, &record, now);
                after.carry_on(before);
                let listed = Listed::new(id, &record, after.used_at(), now);
                tokens.insert(id, after);
                return Ok(listed);
            }
        };
        // The store has not heard of it yet, but the operator has.
        if self.held.of(id) == Some(Hold::Deleted) {
            return Err(Problem::Unknown);
        }
        let key = self.key("api_token", id);
        for _ in 0..ATTEMPTS {
            let before = self.read(store, id).await?.ok_or(Problem::Unknown)?;
            let mut record = Record::decode(&before).ok_or(NO_RECORD)?;
            change(&mut record);
            if self.ask(store, &key, &replacing(&key, &before, &record)).await? == Value::Int(1) {
                self.tell(store, id).await;
                return Ok(Listed::new(id, &record, self.read_use(store, id).await, now));
            }
        }
        Err(Unusable("the token is being changed by somebody else all the time; try again").into())
    }

    async fn enlist(&self, store: &Store, id: Id) -> Result<(), Problem> {
        let mut listing = cmd("SADD");
        listing.arg(self.index()).arg(id.as_str());
        self.ask(store, &self.index(), &listing).await?;
        Ok(())
    }

    /// Takes an id without a record off the list.
    async fn unlist(&self, store: &Store, id: Id) -> Result<(), Problem> {
        let mut unlisting = cmd("SREM");
        unlisting.arg(self.index()).arg(id.as_str());
        self.ask(store, &self.index(), &unlisting).await?;
        // It may have got one just before, and been listed for good just before that.
        if matches!(self.read(store, id).await, Ok(None)) { Ok(()) } else { self.enlist(store, id).await }
    }

    /// Takes some ids without a record off the list, as far as the store answers.
    async fn tidy(&self, store: &Store) {
        let mut picking = cmd("SRANDMEMBER");
        picking.arg(self.index()).arg(TIDIED);
        let picked = self.ask(store, &self.index(), &picking).await.ok();
        let picked: Vec<Vec<u8>> = picked.and_then(|ids| from_redis_value(ids).ok()).unwrap_or_default();
        let looks = picked.iter().filter_map(|id| read_id(id)).map(async |id| {
            if matches!(self.read(store, id).await, Ok(None)) {
                // The next one may be luckier.
                let _ = self.unlist(store, id).await;
            }
        });
        join_all(looks).await;
    }

    /// The ids of the list in their order, and whether these are all.
    async fn ids(&self, store: &Store) -> Result<(Vec<Id>, bool), Problem> {
        let index = self.index();
        let (mut ids, mut cursor) = (Vec::new(), 0_u64);
        loop {
            let mut command = cmd("SSCAN");
            command.arg(&index).arg(cursor).arg("COUNT").arg(PAGE);
            let answer = self.ask(store, &index, &command).await?;
            let (next, page): (u64, Vec<Vec<u8>>) =
                from_redis_value(answer).map_err(|_| Unavailable::Rejected)?;
            // Whatever else may stand there names no token.
            ids.extend(page.iter().filter_map(|id| read_id(id)));
            cursor = next;
            if cursor == 0 || ids.len() > MOST_LISTED {
                ids.sort_unstable();
                ids.dedup();
                let complete = cursor == 0 && ids.len() <= MOST_LISTED;
                ids.truncate(MOST_LISTED);
                return Ok((ids, complete));
            }
        }
    }

    async fn read(&self, store: &Store, id: Id) -> Result<Option<Bytes>, Unavailable> {
        let key = self.key("api_token", id);
        let mut command = cmd("MGET");
        command.arg(&key);
        only(self.ask(store, &key, &command).await?)
    }

    async fn read_listed(&self, store: &Store, id: Id, now: UnixMillis) -> Result<Found, Problem> {
        let (stored, used_at) = tokio::join!(self.read(store, id), self.read_use(store, id));
        let Some(stored) = stored? else { return Ok(Found::Nothing) };
        let Some(record) = Record::decode(&stored) else { return Ok(Found::NoToken) };
        let mut listed = Listed::new(id, &record, used_at, now);
        match self.held.of(id) {
            Some(Hold::Deleted) => return Ok(Found::NoToken),
            held => listed.disabled |= held.is_some(),
        }
        Ok(Found::Token(Box::new(listed)))
    }

    async fn read_use(&self, store: &Store, id: Id) -> Option<u64> {
        let key = self.key("api_token_used", id);
        let mut command = cmd("MGET");
        command.arg(&key);
        let used = only(self.ask(store, &key, &command).await.ok()?).ok().flatten()?;
        std::str::from_utf8(&used).ok()?.parse().ok()
    }

    /// Tells every instance, this one first.
    async fn tell(&self, store: &Arc<Store>, id: Id) {
        self.known.forget(id);
        // A lost message costs nothing while the store is there: each request reads the record.
        let _ = Publisher::new(Arc::clone(store)).publish(&changed(id)).await;
    }

    async fn ask(&self, store: &Store, key: &str, command: &Cmd) -> Result<Value, Unavailable> {
        store.call_within(PATIENCE, Lane::Decisions, store.shard(key.as_bytes()), command).await
    }

    fn entry(&self, id: Id, record: &Record, now: UnixMillis) -> Arc<Entry> {
        Arc::new(Entry::new(id, record.encode().into(), &self.naming, now))
    }

    /// The store of all instances, where there is one.
    pub(super) const fn store(&self) -> Option<&Arc<Store>> {
        match &self.home {
            Home::Store(store) => Some(store),
            Home::Memory(_) => None,
        }
    }

    /// Forgets what was read of a token.
    pub(super) fn forget(&self, id: Id) {
        self.known.forget(id);
    }

    pub(super) fn key(&self, family: &str, id: Id) -> String {
        subject_key(&self.naming.prefix, family, id.as_str(), self.naming.hash_tags)
    }

    pub(super) fn index(&self) -> String {
        format!("{}api_tokens", self.naming.prefix)
    }
}

/// The command that puts `record` in the place of `before`.
pub(super) fn replacing(key: &str, before: &[u8], record: &Record) -> Cmd {
    let mut command = cmd("EVAL");
    command.arg(REPLACE).arg(1).arg(key).arg(before).arg(record.encode());
    command
}

/// The news that a token changed.
pub(super) fn changed(id: Id) -> Vec<u8> {
    [CHANGED, id.as_str().as_bytes()].concat()
}

/// What an id of the list stands for.
enum Found {
    /// A token.
    Token(Box<Listed>),
    /// Something else.
    NoToken,
    /// Nothing any more, or nothing yet.
    Nothing,
}

fn read_id(text: &[u8]) -> Option<Id> {
    Id::parse(std::str::from_utf8(text).ok()?)
}

/// The latest end of a key that Redis takes.
const LAST: u64 = 1 << 52;

/// The only value of an `MGET`, which knows no values but strings.
pub(super) fn only(answer: Value) -> Result<Option<Bytes>, Unavailable> {
    match answer {
        Value::Array(values) => match values.into_iter().next() {
            Some(Value::BulkString(text)) => Ok(Some(text.into())),
            Some(Value::Nil) => Ok(None),
            _ => Err(Unavailable::Rejected),
        },
        _ => Err(Unavailable::Rejected),
    }
}
