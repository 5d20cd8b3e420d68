//! What one request asks, owned while it waits, and what one request is told of an answer to many. It asks nobody.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

use ahash::RandomState;
use tokio::sync::oneshot;

use super::Seen;
use super::combine::Waiter;
use crate::clock::UnixMillis;
use crate::limits::Violated;
use crate::limits::algorithm::{Rule, State};
use crate::limits::batch::{Batch, Counted, Counter, Item, Refund};
use crate::limits::policy::Algorithm;

/// A count of a window of which nothing is known.
pub(super) const UNKNOWN: u64 = u64::MAX;

/// A batch, and what this instance knows of its counters.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked<'a> {
    /// What is asked.
    pub(super) batch: Batch<'a>,
    /// The last known count of each item's counters whose `known_end` is told; else [`UNKNOWN`].
    pub(super) used: Vec<Vec<u64>>,
    /// How many requests' worth of a counter to take for later, by position of item and counter.
    pub(super) wishes: Vec<(usize, usize, u32)>,
    /// When it is asked, on the store's clock as far as known.
    pub(super) at: UnixMillis,
}

impl Asked<'_> {
    pub(super) fn has_counters(&self) -> bool {
        self.batch.items.iter().any(|item| !item.counters.is_empty())
    }
}

/// What became of an item, over all parts of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    /// The guard that bars its requests.
    pub(super) barred: Option<usize>,
    /// Whether all of its guards were asked.
    pub(super) guarded: bool,
    /// How many of its requests are admitted by all counters that were asked.
    pub(super) granted: u32,
    /// In the order of its counters; `None` where that part of the store gave no answer.
    pub(super) counters: Vec<Option<Counted>>,
}

/// The answer to [`Asked`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// The store's clock, where it was read.
    pub(super) clock: Option<UnixMillis>,
    /// What the tags hold, in the order asked.
    pub(super) tags: Vec<Seen>,
    /// In the order of the items.
    pub(super) items: Vec<Judged>,
}

/// What one request is told.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// The guard that bars it.
    pub(super) barred: Option<usize>,
    /// Whether all of its guards were asked.
    pub(super) guarded: bool,
    /// The counters without room for it, those that only watch among them.
    pub(super) violated: Violated,
    /// Its counters, in its order.
    pub(super) counters: Vec<Option<CounterTold>>,
    /// The store's clock, where it was read.
    pub(super) clock: Option<UnixMillis>,
    /// What its tags hold, in its order.
    pub(super) tags: Vec<Seen>,
    /// Whether it was asked with others, some time after it came.
    pub(super) waited: bool,
}

/// One counter as one request sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CounterTold {
    /// Right after this request.
    pub(super) state: State,
    /// After all that went with it: the newest knowledge.
    pub(super) last: State,
    /// Whether the request is counted in it, and may be taken back.
    pub(super) counted: bool,
}

/// `state` as if `times` requests fewer had been counted.
pub(super) fn rewind(rule: &Rule, state: State, times: u32) -> State {
    let cost = u64::from(times).saturating_mul(rule.cost.max(1));
    let taken = match rule.algorithm {
        Algorithm::FixedWindow | Algorithm::SlidingWindow | Algorithm::SlidingLog => cost,
        Algorithm::TokenBucket => cost.saturating_mul(rule.period_ms.max(1)),
        Algorithm::CoolDown(_) if state.before == 0 => cost,
        // Once tripped the state is a time, which later requests do not change for earlier ones.
        Algorithm::CoolDown(_) => 0,
    };
    State { used: state.used.saturating_sub(taken), ..state }
}

impl Judged {
    /// What the request at `position` (from 0, in order of arrival) of this item is told.
    pub(super) fn tell(
        &self,
        item: &Item<'_>,
        position: u32,
        clock: Option<UnixMillis>,
        tags: Vec<Seen>,
    ) -> Told {
        let admitted = self.barred.is_none() && position < self.granted;
        let mut violated = Violated::default();
        let mut counters = Vec::with_capacity(item.counters.len());
        for (index, (counter, counted)) in item.counters.iter().zip(&self.counters).enumerate() {
            counters.push(counted.map(|counted| {
                // Had they come one after the other, it would have found the granted ones counted before it, and
                // by a penalising counter the refused ones too.
                let before_it = if counter.penalise { position } else { position.min(self.granted) };
                if (counter.shadow || !admitted) && counted.fits <= before_it {
                    violated.insert(index);
                }
                let all = match (counter.penalise, counter.shadow) {
                    (true, _) => item.count,
                    (false, true) => self.granted.min(counted.fits),
                    (false, false) => self.granted,
                };
                let later = all.saturating_sub(position.saturating_add(1));
                let state = rewind(&counter.rule, counted.state, later);
                let counted_it = admitted && !counter.penalise && position < all;
                CounterTold { state, last: counted.state, counted: counted_it }
            }));
        }
        Told { barred: self.barred, guarded: self.guarded, violated, counters, clock, tags, waited: false }
    }
}

/// Something to be taken off a counter again.
#[derive(Clone, Debug)]
pub(in crate::pipeline) struct Owed {
    pub(in crate::pipeline) key: Box<[u8]>,
    pub(in crate::pipeline) rule: Rule,
    pub(in crate::pipeline) state: State,
    pub(in crate::pipeline) count: u32,
}

impl Owed {
    pub(super) fn new(counter: &Counter<'_>, state: State, count: u32) -> Self {
        Self { key: counter.key.into(), rule: counter.rule, state, count }
    }

    pub(super) fn as_refund(&self) -> Refund<'_> {
        Refund { key: &self.key, rule: self.rule, state: self.state, count: self.count }
    }
}

/// What must be taken back when the request that asked `item` and was told `told` is not let through after all.
pub(super) fn taken_back(item: &Item<'_>, told: &Told) -> Vec<Owed> {
    let counters = item.counters.iter().zip(&told.counters);
    let counted =
        counters.filter_map(|(counter, told)| told.filter(|told| told.counted).map(|told| (counter, told)));
    counted.map(|(counter, told)| Owed::new(counter, told.state, 1)).collect()
}

/// What must be taken back when the request that asked `item` and was told `told` is as if it had never come: of
/// counters that count refused requests too.
pub(super) fn undone(item: &Item<'_>, told: &Told) -> Vec<Owed> {
    let counters = item.counters.iter().zip(&told.counters).enumerate();
    let hit = counters.filter_map(|(index, (counter, counted))| {
        let counted = counted.as_ref()?;
        // A cool-down that has tripped counts no more.
        let tripped =
            matches!(counter.rule.algorithm, Algorithm::CoolDown(_)) && told.violated.contains(index);
        (counter.penalise && !tripped).then(|| Owed::new(counter, counted.state, 1))
    });
    hit.chain(taken_back(item, told)).collect()
}

/// One counter of a waiting request.
#[derive(Clone, Debug)]
struct Wanted {
    key: Box<[u8]>,
    rule: Rule,
    penalise: bool,
    shadow: bool,
    known_end: u64,
    used: u64,
    wish: u32,
}

/// A request that waits: what it asks, and where it is told.
#[derive(Debug)]
pub(super) struct Question {
    keys: Box<[u64]>,
    tag_hashes: Box<[u64]>,
    digest: u64,
    guards: Vec<Box<[u8]>>,
    cutoff: Option<usize>,
    issued_at: u64,
    tags: Vec<Box<[u8]>>,
    counters: Vec<Wanted>,
    at: UnixMillis,
    reply: oneshot::Sender<Option<Told>>,
}

impl Question {
    /// The only item of `asked` and its tags, owned; `keys` are the hashes of its counters.
    pub(super) fn new(asked: &Asked<'_>, keys: &[u64], reply: oneshot::Sender<Option<Told>>) -> Self {
        let (item, used) = (asked.batch.items.first(), asked.used.first());
        let guards: Vec<Box<[u8]>> =
            item.iter().flat_map(|item| &item.guards).map(|key| (*key).into()).collect();
        let counters = item.iter().flat_map(|item| &item.counters).zip(used.into_iter().flatten());
        let wish = |index: usize| asked.wishes.iter().find(|wish| wish.1 == index).map_or(0, |wish| wish.2);
        let counters = counters.enumerate().map(|(index, (counter, used))| Wanted {
            key: counter.key.into(),
            rule: counter.rule,
            penalise: counter.penalise,
            shadow: counter.shadow,
            known_end: counter.known_end,
            used: *used,
            wish: wish(index),
        });
        // Only to find what may be identical; any seeds do, the same for all.
        let state = RandomState::with_seeds(1, 2, 3, 4);
        let mut hasher = state.build_hasher();
        for key in keys {
            hasher.write_u64(*key);
        }
        for key in &guards {
            hasher.write(key);
        }
        Self {
            keys: keys.into(),
            tag_hashes: asked.batch.tags.iter().map(|key| state.hash_one(key)).collect(),
            digest: hasher.finish(),
            guards,
            cutoff: item.and_then(|item| item.cutoff),
            issued_at: item.map_or(0, |item| item.issued_at),
            tags: asked.batch.tags.iter().map(|key| (*key).into()).collect(),
            counters: counters.collect(),
            at: asked.at,
            reply,
        }
    }

    fn item(&self, count: u32) -> Item<'_> {
        let counters = self.counters.iter().map(|wanted| Counter {
            key: &wanted.key,
            rule: wanted.rule,
            penalise: wanted.penalise,
            shadow: wanted.shadow,
            known_end: wanted.known_end,
        });
        Item {
            guards: self.guards.iter().map(|key| &**key).collect(),
            cutoff: self.cutoff,
            issued_at: self.issued_at,
            counters: counters.collect(),
            count,
        }
    }
}

impl Waiter for Question {
    fn keys(&self) -> &[u64] {
        &self.keys
    }

    fn tags(&self) -> &[u64] {
        &self.tag_hashes
    }

    fn digest(&self) -> u64 {
        self.digest
    }

    fn is_same(&self, other: &Self) -> bool {
        let asks = |one: &Wanted, two: &Wanted| {
            one.key == two.key
                && one.rule == two.rule
                && (one.penalise, one.shadow) == (two.penalise, two.shadow)
        };
        self.issued_at == other.issued_at
            && self.cutoff == other.cutoff
            && self.guards == other.guards
            && self.counters.len() == other.counters.len()
            && self.counters.iter().zip(&other.counters).all(|(one, two)| asks(one, two))
    }

    fn is_gone(&self) -> bool {
        self.reply.is_closed()
    }
}

/// Waiting requests as one question.
pub(super) struct Merged<'a> {
    pub(super) asked: Asked<'a>,
    /// Per request: its item and its position in it.
    places: Vec<(usize, u32)>,
    /// Positions of the tags.
    tags: HashMap<&'a [u8], usize, RandomState>,
}

impl<'a> Merged<'a> {
    /// Merges identical requests into one item each, in order of arrival, and unites the tags.
    pub(super) fn of(questions: &'a [Question]) -> Self {
        let at = questions.iter().map(|question| question.at).max().unwrap_or_default();
        let mut asked = Asked { at, ..Asked::default() };
        let mut first: Vec<&Question> = Vec::new();
        let mut tags = HashMap::default();
        let mut places = Vec::with_capacity(questions.len());
        for question in questions {
            for tag in &question.tags {
                tags.entry(&**tag).or_insert_with(|| {
                    asked.batch.tags.push(tag);
                    asked.batch.tags.len() - 1
                });
            }
            let same = |known: &&Question| known.digest == question.digest && known.is_same(question);
            let index = if let Some(index) = first.iter().position(same) {
                index
            } else {
                first.push(question);
                asked.batch.items.push(question.item(0));
                asked.used.push(question.counters.iter().map(|wanted| wanted.used).collect());
                let number = first.len() - 1;
                for (index, wanted) in
                    question.counters.iter().enumerate().filter(|(_, wanted)| wanted.wish > 0)
                {
                    let twice = |wish: &(usize, usize, u32)| {
                        let known = first.get(wish.0).and_then(|known| known.counters.get(wish.1));
                        known.is_some_and(|known| known.key == wanted.key)
                    };
                    if !asked.wishes.iter().any(twice) {
                        asked.wishes.push((number, index, wanted.wish));
                    }
                }
                number
            };
            let Some((item, used)) = asked.batch.items.get_mut(index).zip(asked.used.get_mut(index)) else {
                continue;
            };
            places.push((index, item.count));
            item.count = item.count.saturating_add(1);
            // The last to come knows most.
            for ((counter, used), wanted) in item.counters.iter_mut().zip(used).zip(&question.counters) {
                (counter.known_end, *used) = (wanted.known_end, wanted.used);
            }
        }
        Self { asked, places, tags }
    }

    /// What the request at `index` is told.
    fn told(&self, index: usize, question: &Question, reply: &Reply) -> Option<(&Item<'a>, Told)> {
        let (item, position) = *self.places.get(index)?;
        let judged = reply.items.get(item)?;
        let item = self.asked.batch.items.get(item)?;
        let value = |tag: &[u8]| reply.tags.get(*self.tags.get(tag)?).cloned();
        let tags = question.tags.iter().map(|tag| value(tag).unwrap_or_default());
        Some((item, judged.tell(item, position, reply.clock, tags.collect())))
    }
}

/// What one request is told, and what is taken back if nobody hears it; `None` when there is no answer.
pub(super) type Part = Option<(Told, Vec<Owed>)>;

impl Merged<'_> {
    /// What each of `questions`, those this was made of, is told of `reply`.
    pub(super) fn parts(&self, questions: &[Question], reply: Option<&Reply>) -> Vec<Part> {
        let part = |(index, question)| {
            let (item, told) = self.told(index, question, reply?)?;
            let owed = taken_back(item, &told);
            Some((told, owed))
        };
        questions.iter().enumerate().map(part).collect()
    }
}

/// Tells every request its part, and returns what was counted for those who are gone.
pub(super) fn tell_all(questions: Vec<Question>, parts: Vec<Part>) -> Vec<Owed> {
    let mut lost = Vec::new();
    for (question, part) in questions.into_iter().zip(parts) {
        let (told, owed) = part.unzip();
        if question.reply.send(told).is_err() {
            lost.extend(owed.unwrap_or_default());
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::policy::CoolDown;

    fn counter(key: &[u8], algorithm: Algorithm, penalise: bool, shadow: bool) -> Counter<'_> {
        let rule = Rule { algorithm, limit: 5, period_ms: 60_000, cost: 1 };
        Counter { key, rule, penalise, shadow, known_end: 0 }
    }

    #[test]
    fn what_is_undone_is_all_that_the_request_was_counted_in() {
        let cool_down = Algorithm::CoolDown(CoolDown { interval_ms: 1_000, quiet_ms: 1_000 });
        let counters = vec![
            counter(b"plain", Algorithm::FixedWindow, false, false),
            counter(b"full shadow", Algorithm::FixedWindow, false, true),
            counter(b"penalising", Algorithm::FixedWindow, true, false),
            counter(b"cool-down", cool_down, true, false),
            counter(b"tripped shadow", cool_down, true, true),
            counter(b"lost", Algorithm::FixedWindow, true, false),
        ];
        let item = Item { counters, count: 3, ..Item::default() };
        let counted = |fits| Some(Counted { state: State { anchor: 9, used: 3, before: 0 }, fits });
        let counters = vec![counted(3), counted(1), counted(3), counted(3), counted(1), None];
        let undone_of = |granted, position| {
            let judged = Judged { barred: None, guarded: false, granted, counters: counters.clone() };
            let told = judged.tell(&item, position, None, Vec::new());
            assert!(!told.guarded);
            let undone = undone(&item, &told).into_iter();
            let mut keys: Vec<_> =
                undone.map(|owed| (String::from_utf8(owed.key.into()).unwrap(), owed.count)).collect();
            keys.sort_unstable();
            keys
        };
        let named = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 1)).collect::<Vec<_>>();
        assert_eq!(
            undone_of(3, 0),
            named(&["cool-down", "full shadow", "penalising", "plain", "tripped shadow"])
        );
        assert_eq!(undone_of(3, 2), named(&["cool-down", "penalising", "plain"]), "no room was left there");
        assert_eq!(undone_of(1, 2), named(&["cool-down", "penalising"]), "refused by another");
    }

    #[test]
    fn each_request_is_told_of_its_own_tags_whatever_became_of_its_neighbours() {
        let question = |key: &'static [u8], tags: &[&'static [u8]]| {
            let counters = vec![counter(key, Algorithm::FixedWindow, false, false)];
            let item = Item { counters, count: 1, ..Item::default() };
            let batch = Batch { tags: tags.to_vec(), items: vec![item] };
            let asked = Asked { batch, used: vec![vec![UNKNOWN]], ..Asked::default() };
            Question::new(&asked, &[1], oneshot::channel().0)
        };
        let questions = [
            question(b"a", &[b"lost"]),
            question(b"b", &[b"kept", b"none"]),
            question(b"b", &[b"lost", b"kept"]),
        ];
        let merged = Merged::of(&questions);
        assert_eq!(merged.asked.batch.tags, [b"lost" as &[u8], b"kept", b"none"]);
        let kept = Seen::Value(bytes::Bytes::from_static(b"7"));
        let items = merged.asked.batch.items.iter().map(|item| Judged {
            barred: None,
            guarded: true,
            granted: item.count,
            counters: vec![None],
        });
        let reply = Reply {
            clock: None,
            tags: vec![Seen::Unknown, kept.clone(), Seen::Absent],
            items: items.collect(),
        };
        let told: Vec<_> =
            merged.parts(&questions, Some(&reply)).into_iter().map(|part| part.unwrap().0.tags).collect();
        assert_eq!(told, [vec![Seen::Unknown], vec![kept.clone(), Seen::Absent], vec![Seen::Unknown, kept]]);
    }
}
