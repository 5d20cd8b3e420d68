use std::collections::HashMap;

use super::state::{MAX_PROPOSED, MAX_PROPOSED_ALONE, NOTED_AFTER};
use super::*;
use crate::cache::prefixes::{self, Prefix, Version};
use crate::cache::tag::{route_tag, user_tag};

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);
const BEFORE: UnixMillis = UnixMillis(NOW.0 - 1);
const PLACE: Place<'static> = place("/todos/1");

const fn place(path: &str) -> Place<'_> {
    let compare = prefixes::Compare { case_insensitive: false, ignore_trailing_slash: false };
    Place { hosts: "a.example", path, compare }
}

fn settings(remembered: usize, pending: usize) -> Settings {
    Settings { generations_remembered: remembered, pending_invalidations: pending, ..Settings::default() }
}

fn tags(names: &[&str]) -> Tags {
    let mut tags = Tags::epoch();
    for name in names {
        tags.push((*name).into());
    }
    tags
}

#[allow(clippy::needless_pass_by_value, reason = "what was asked for is looked at once")]
fn ready(resolution: Resolution) -> Fingerprint {
    match resolution {
        Resolution::Ready { fingerprint, .. } => fingerprint,
        Resolution::Malformed => panic!("as many values as tags"),
    }
}

/// A Redis in two lines.
#[derive(Default)]
struct Redis(HashMap<Box<str>, Box<str>>);

impl Redis {
    fn read(&self, generations: &Generations, tags: &Tags) -> Vec<Option<Vec<u8>>> {
        generations.keys(tags).map(|key| self.0.get(&key).map(|v| v.as_bytes().to_vec())).collect()
    }

    fn write(&mut self, writes: &[Write]) {
        for write in writes {
            self.0.insert(write.key.clone(), write.value.clone());
        }
    }
}

fn absent(resolution: Resolution) -> Vec<Write> {
    match resolution {
        Resolution::Ready { absent, .. } => absent,
        Resolution::Malformed => panic!("as many values as tags"),
    }
}

#[test]
fn tags_without_a_generation_get_one_that_is_good_at_once_and_later() {
    let generations = Generations::new(&settings(10, 10), true);
    let tags = tags(&["todo:1"]);
    let mut redis = Redis::default();
    let empty = redis.read(&generations, &tags);
    let first = generations.resolve(&tags, PLACE, &empty, NOW);
    let fingerprint = ready(first.clone());
    assert_eq!(
        ready(generations.resolve(&tags, PLACE, &empty, NOW)),
        fingerprint,
        "those who come meanwhile"
    );
    let writes = absent(first);
    let ttl = Some(Duration::from_secs(25 * 3600));
    assert_eq!(
        writes.iter().map(|w| (&*w.key, w.ttl)).collect::<Vec<_>>(),
        [("cache_tag:-epoch", None), ("cache_tag:{-prefixes}", None), ("cache_tag:todo:1", ttl)]
    );
    assert_eq!(generations.local(&tags, PLACE, NOW), fingerprint, "Redis goes away");
    redis.write(&writes);
    let again = generations.resolve(&tags, PLACE, &redis.read(&generations, &tags), NOW);
    assert_eq!(again, Resolution::Ready { fingerprint, absent: Vec::new() });
    assert_eq!(generations.resolve::<&[u8]>(&tags, PLACE, &[None], NOW), Resolution::Malformed);
}

#[test]
fn instances_agree_on_a_generation_before_anything_is_stored_under_it() {
    let (one, two) = (Generations::new(&settings(10, 10), true), Generations::new(&settings(10, 10), true));
    let tags = tags(&["a", "b"]);
    // As `SET NX GET` does for each tag that lacks one.
    let look = |redis: &mut Redis, generations: &Generations, at: UnixMillis| {
        let mut values = redis.read(generations, &tags);
        for (place, write) in generations.to_agree(&tags, &values, at) {
            let value = redis.0.entry(write.key.clone()).or_insert_with(|| write.announced().into());
            generations.agreed(&write, value.as_bytes(), at);
            values[place] = Some(value.as_bytes().to_vec());
        }
        generations.resolve(&tags, PLACE, &values, at)
    };
    let (mut redis, mut seen, mut at) = (Redis::default(), Vec::new(), NOW);
    for round in 0..4 {
        let told_of_none = redis.read(&one, &tags);
        let agreed = look(&mut redis, &one, at);
        assert_eq!(ready(look(&mut redis, &two, at)), ready(agreed.clone()));
        if round == 0 {
            let late = one.resolve(&tags, PLACE, &told_of_none, UnixMillis(at.0 - 1));
            assert_eq!(ready(late), ready(agreed.clone()), "the answer is older than the agreement");
        }
        assert!(!seen.contains(&ready(agreed.clone())), "{round}");
        seen.push(ready(agreed.clone()));
        redis.write(&absent(agreed.clone()));
        let kept = look(&mut redis, &two, at);
        assert_eq!(ready(kept.clone()), ready(agreed), "what is stored is found when it is kept");
        assert_eq!(absent(kept), [], "once is enough");
        at = at.plus(Duration::from_secs(1));
        match round {
            0 => redis.0.clear(),
            1 => {
                let writes = two.invalidate([Box::from("a")]);
                redis.write(&writes);
                two.settle(&writes, BEFORE);
            }
            _ => drop(redis.0.remove("cache_tag:a")),
        }
    }
}

#[test]
fn a_generation_is_kept_while_the_instance_goes_by_it() {
    let generations = Generations::new(&settings(10, 10), true);
    let (tags, none) = (tags(&["a"]), [None::<&[u8]>; 3]);
    let proposed = absent(generations.resolve(&tags, PLACE, &none, NOW));
    assert!(proposed.len() == 3 && proposed.iter().all(|write| !write.is_announced));
    let later = NOW.plus(PROPOSED_FOR + Duration::from_millis(1));
    assert_eq!(generations.to_keep(proposed.clone(), NOW), proposed);
    assert_eq!(generations.to_keep(proposed.clone(), later), [], "nobody was told of it");
    let announced: Vec<_> = proposed
        .iter()
        .map(|write| Some(write.announced()))
        .map(|value| value.map(String::into_bytes))
        .collect();
    let announced = absent(generations.resolve(&tags, PLACE, &announced, NOW));
    assert!(announced.len() == 3 && announced.iter().all(|write| write.is_announced));
    assert_eq!(
        generations.to_keep(announced.clone(), later),
        announced,
        "Redis says whether it has it still"
    );
    let writes = generations.invalidate([Box::from("a")]);
    assert_eq!(generations.to_keep(announced.clone(), NOW), announced[..2]);
    generations.settle(&writes, BEFORE);
    assert_eq!(generations.to_keep(announced.clone(), NOW), announced[..2]);
    let told: Vec<_> = announced.iter().map(|_| Some(b"another")).collect();
    generations.resolve(&tags, PLACE, &told, NOW);
    assert_eq!(generations.to_keep(announced, NOW), [], "another instance's");
}

#[test]
fn who_was_told_before_an_invalidation_does_not_bring_back_what_was_before_it() {
    let generations = Generations::new(&settings(10, 10), true);
    let (tags, mut redis) = (tags(&["a"]), Redis::default());
    redis.write(&absent(generations.resolve(&tags, PLACE, &[None::<&[u8]>; 3], BEFORE)));
    let told = redis.read(&generations, &tags);
    let old = ready(generations.resolve(&tags, PLACE, &told, BEFORE));
    let writes = generations.invalidate([Box::from("a")]);
    redis.write(&writes);
    generations.settle(&writes, NOW);
    let new = generations.local(&tags, PLACE, NOW);
    assert_eq!(ready(generations.resolve(&tags, PLACE, &told, BEFORE)), old, "it began before");
    assert_eq!(generations.local(&tags, PLACE, NOW), new, "Redis goes away");
    let later = NOW.plus(Duration::from_millis(1));
    let told = [Some(b"x"), Some(b"y"), Some(b"z")];
    let told = ready(generations.resolve(&tags, PLACE, &told, later));
    assert_eq!(generations.local(&tags, PLACE, later), told, "another instance's");
}

#[test]
fn who_cannot_ask_redis_looks_for_the_same_as_who_can() {
    let generations = Generations::new(&settings(10, 10), true);
    let (tags, mut redis) = (tags(&["todo:1"]), Redis::default());
    let resolve = |redis: &Redis, now: UnixMillis| {
        generations.resolve(&tags, PLACE, &redis.read(&generations, &tags), now)
    };
    // Before Redis has said anything, and after.
    let alone = generations.local(&tags, PLACE, NOW);
    let resolved = resolve(&redis, NOW);
    assert_eq!(ready(resolved.clone()), alone);
    assert_eq!(generations.local(&tags, PLACE, NOW), alone);
    redis.write(&absent(resolved));
    assert_eq!(ready(resolve(&redis, NOW)), alone);
    // After an invalidation, from the moment Redis has it.
    let writes = generations.invalidate([Box::from("todo:1")]);
    redis.write(&writes);
    generations.settle(&writes, BEFORE);
    let after = generations.local(&tags, PLACE, NOW);
    assert_ne!(after, alone);
    assert_eq!(ready(resolve(&redis, NOW)), after);
}

#[test]
fn what_counted_while_redis_did_not_answer_is_proposed_no_longer_than_a_proposal() {
    let later = NOW.plus(PROPOSED_FOR + Duration::from_millis(1));
    let generations = Generations::new(&settings(10, 10), true);
    let (tags, redis) = (tags(&["todo:1"]), Redis::default());
    let alone = generations.local(&tags, PLACE, NOW);
    assert_eq!(generations.local(&tags, PLACE, later), alone, "Redis is away still");
    let resolved = ready(generations.resolve(&tags, PLACE, &redis.read(&generations, &tags), later));
    assert_ne!(resolved, alone, "others may have written and Redis lost it");
    assert_eq!(generations.local(&tags, PLACE, later), resolved);
}

#[test]
fn while_redis_does_not_answer_the_table_of_proposals_stays_bounded() {
    let generations = Generations::new(&settings(10, 10), true);
    let look = |tag: &str| generations.local(&tags(&[tag]), PLACE, NOW);
    let first = look("t:0");
    for n in 0..MAX_PROPOSED {
        look(&format!("t:{n}"));
    }
    assert_eq!(generations.state.read().proposed.len(), MAX_PROPOSED_ALONE);
    assert_eq!(look("t:0"), first);
    let beyond = look("beyond");
    assert_eq!(look("beyond"), beyond);
}

#[test]
fn an_answer_older_than_the_generation_it_lacks_changes_nothing() {
    let generations = Generations::new(&settings(10, 10), true);
    let (tags, mut redis) = (tags(&["todo:1"]), Redis::default());
    let nothing = redis.read(&generations, &tags);
    let at = |millis: u64| UnixMillis(NOW.0 + millis);
    let first = generations.resolve(&tags, PLACE, &nothing, at(0));
    redis.write(&absent(first.clone()));
    let written = redis.read(&generations, &tags);
    assert_eq!(ready(generations.resolve(&tags, PLACE, &written, at(20))), ready(first.clone()));
    // It was asked before, and is told only now: for another worker, say.
    let late = generations.resolve(&tags, PLACE, &nothing, at(19));
    assert_eq!(late, Resolution::Ready { fingerprint: ready(first.clone()), absent: Vec::new() });
    assert_eq!(generations.local(&tags, PLACE, at(19)), ready(first.clone()));
    assert_eq!(ready(generations.resolve(&tags, PLACE, &written, at(19))), ready(first.clone()));
    // Whoever asked later finds that Redis has lost it.
    let lost = generations.resolve(&tags, PLACE, &nothing, at(20));
    assert_ne!(ready(lost.clone()), ready(first.clone()));
    assert_eq!(absent(lost).len(), tags.len());
    // A generation of somebody else ends it.
    redis.write(&Generations::new(&settings(10, 10), true).invalidate([Box::from("todo:1")]));
    generations.resolve(&tags, PLACE, &redis.read(&generations, &tags), at(30));
    assert_ne!(ready(generations.resolve(&tags, PLACE, &nothing, at(10))), ready(first));
}

#[test]
fn what_redis_has_is_noted_without_a_lock_for_each_request() {
    let generations = Generations::new(&settings(10, 10), true);
    let (tags, mut redis) = (tags(&["todo:1"]), Redis::default());
    redis.write(&absent(generations.resolve(&tags, PLACE, &redis.read(&generations, &tags), NOW)));
    let written = redis.read(&generations, &tags);
    generations.resolve(&tags, PLACE, &written, NOW);
    let state = generations.state.read();
    let proposal = &state.proposed["todo:1"];
    let value = proposal.value.as_bytes();
    assert!(!proposal.is_news(Some(value), NOW.plus(Duration::from_millis(NOTED_AFTER))));
    assert!(proposal.is_news(Some(value), NOW.plus(Duration::from_millis(NOTED_AFTER + 1))));
    assert!(proposal.is_news(Some(value), NOW.plus(PROPOSED_FOR * 2)));
    assert!(proposal.is_news(Some(b"other"), NOW));
    drop(state);
    generations.resolve(&tags, PLACE, &written, NOW.plus(PROPOSED_FOR * 2));
    assert!(generations.state.read().proposed.is_empty());
}

#[test]
fn a_generation_that_redis_evicts_never_makes_an_old_entry_reachable() {
    let (one, two) = (Generations::new(&settings(10, 10), true), Generations::new(&settings(10, 10), true));
    let mut redis = Redis::default();
    let tags = tags(&["todo:1"]);
    let first = one.resolve(&tags, PLACE, &redis.read(&one, &tags), NOW);
    redis.write(&absent(first.clone()));
    let mut seen = vec![ready(first)];
    for _ in 0..3 {
        seen.push(ready(one.resolve(&tags, PLACE, &redis.read(&one, &tags), NOW)));
        assert_eq!(seen.pop(), seen.last().copied());
        // The other instance writes, then Redis runs out of memory.
        redis.write(&two.invalidate([Box::from("todo:1")]));
        redis.0.remove("cache_tag:todo:1");
        let evicted = one.resolve(&tags, PLACE, &redis.read(&one, &tags), NOW);
        assert!(!seen.contains(&ready(evicted.clone())));
        seen.push(ready(evicted.clone()));
        redis.write(&absent(evicted));
    }
    // A proposal that never reached Redis ends.
    redis.0.clear();
    let before = ready(one.resolve(&tags, PLACE, &redis.read(&one, &tags), NOW));
    let later = NOW.plus(PROPOSED_FOR + Duration::from_millis(1));
    assert_ne!(ready(one.resolve(&tags, PLACE, &redis.read(&one, &tags), later)), before);
}

#[test]
fn writes_that_arrive_out_of_order_revive_nothing() {
    let generations = Generations::new(&settings(10, 10), true);
    let tags = tags(&["todo:1"]);
    let mut redis = Redis::default();
    redis.write(&absent(generations.resolve(&tags, PLACE, &redis.read(&generations, &tags), NOW)));
    let mut seen = vec![ready(generations.resolve(&tags, PLACE, &redis.read(&generations, &tags), NOW))];
    let mut look = |redis: &Redis| {
        let fingerprint = ready(generations.resolve(&tags, PLACE, &redis.read(&generations, &tags), NOW));
        assert!(!seen.contains(&fingerprint));
        seen.push(fingerprint);
        seen.push(generations.local(&tags, PLACE, NOW));
    };
    let first = generations.invalidate([Box::from("todo:1")]);
    look(&redis);
    let second = generations.invalidate([Box::from("todo:1")]);
    look(&redis);
    redis.write(&second);
    generations.settle(&second, BEFORE);
    look(&redis);
    redis.write(&first);
    generations.settle(&first, BEFORE);
    look(&redis);
    // One that is repeated because its answer was lost.
    let lost = generations.invalidate([Box::from("todo:1")]);
    redis.write(&lost);
    look(&redis);
    let repeated = generations.pending();
    assert_ne!(repeated[0].value, lost[0].value);
    redis.write(&repeated);
    generations.settle(&repeated, BEFORE);
    assert!(generations.pending().is_empty());
    look(&redis);
}

#[test]
fn an_invalidation_reaches_every_instance_and_only_its_tag() {
    let (one, two) = (Generations::new(&settings(10, 10), true), Generations::new(&settings(10, 10), true));
    let mut redis = Redis::default();
    let (todo, other) = (tags(&["todo:1"]), tags(&["todo:2"]));
    for tags in [&todo, &other] {
        redis.write(&absent(one.resolve(tags, PLACE, &redis.read(&one, tags), NOW)));
    }
    let before = ready(two.resolve(&todo, PLACE, &redis.read(&two, &todo), NOW));
    let untouched = ready(two.resolve(&other, PLACE, &redis.read(&two, &other), NOW));

    let writes = one.invalidate([Box::from("todo:1")]);
    assert_eq!(writes[0].ttl, Some(Duration::from_secs(25 * 3600)));
    // The writing instance sees it before Redis does.
    assert_ne!(ready(one.resolve(&todo, PLACE, &redis.read(&one, &todo), NOW)), before);
    redis.write(&writes);
    one.settle(&writes, BEFORE);

    let after = ready(two.resolve(&todo, PLACE, &redis.read(&two, &todo), NOW));
    assert_ne!(after, before);
    assert_eq!(after, ready(one.resolve(&todo, PLACE, &redis.read(&one, &todo), NOW)));
    assert_eq!(untouched, ready(two.resolve(&other, PLACE, &redis.read(&two, &other), NOW)));
}

#[test]
fn an_outage_keeps_entries_reachable_and_local_invalidations_hold_after_it() {
    let generations = Generations::new(&settings(10, 10), true);
    let mut redis = Redis::default();
    let tags = tags(&["todo:1"]);
    redis.write(&absent(generations.resolve(&tags, PLACE, &redis.read(&generations, &tags), NOW)));
    let look =
        |redis: &Redis| ready(generations.resolve(&tags, PLACE, &redis.read(&generations, &tags), NOW));
    let before = look(&redis);
    assert_eq!(generations.local(&tags, PLACE, NOW), before);

    // Redis is away: the write stays pending, and stale values from Redis do not revive the entry.
    generations.invalidate([Box::from("todo:1")]);
    let during = generations.local(&tags, PLACE, NOW);
    assert_ne!(during, before);
    let unconfirmed = look(&redis);
    assert!(unconfirmed != before && unconfirmed != during);

    let pending = generations.pending();
    assert_eq!(pending.len(), 1);
    redis.write(&pending);
    generations.settle(&pending, BEFORE);
    assert!(generations.pending().is_empty());
    let after = look(&redis);
    assert!(![before, during, unconfirmed].contains(&after));
}

#[test]
fn settling_an_older_write_keeps_a_newer_one_pending() {
    let generations = Generations::new(&settings(10, 10), true);
    let first = generations.invalidate([Box::from("a")]);
    let second = generations.invalidate([Box::from("a")]);
    generations.settle(&first, BEFORE);
    assert_eq!(generations.pending().len(), 1);
    generations.settle(&second, BEFORE);
    assert!(generations.pending().is_empty());
}

#[test]
fn too_many_pending_invalidations_become_a_new_epoch() {
    let generations = Generations::new(&settings(100, 3), true);
    let bystander = tags(&["bystander"]);
    let before = generations.local(&bystander, PLACE, NOW);
    for n in 0..4 {
        generations.invalidate([Box::from(format!("t:{n}"))]);
    }
    let pending = generations.pending();
    assert_eq!(pending.len(), 1);
    assert_eq!(&*pending[0].key, "cache_tag:-epoch");
    assert_ne!(generations.local(&bystander, PLACE, NOW), before);
}

#[test]
fn forgetting_a_tag_never_revives_an_entry() {
    let generations = Generations::new(&settings(3, 10), false);
    let tag = tags(&["a"]);
    let first = generations.local(&tag, PLACE, NOW);
    assert!(generations.invalidate([Box::from("a")]).is_empty());
    let second = generations.local(&tag, PLACE, NOW);
    for n in 0..10 {
        generations.invalidate([Box::from(format!("filler:{n}"))]);
    }
    let third = generations.local(&tag, PLACE, NOW);
    assert!(first != second && third != first && third != second);
    assert!(generations.state.read().known.len() <= 3);
    assert!(generations.pending().is_empty());
}

/// Redis with a list of purges by prefix; what the scripts do there, in words of this language.
#[derive(Default)]
struct Listing {
    redis: Redis,
    list: HashMap<Box<str>, Box<str>>,
}

impl Listing {
    fn version(&self) -> Box<str> {
        self.redis.0.get("cache_tag:{-prefixes}").cloned().unwrap_or_default()
    }

    fn purge(&mut self, write: &PrefixWrite) -> PrefixWritten {
        let before = self.version();
        let (now, widened) = match Version::parse(before.as_bytes()) {
            Version::Listed { lineage, list, .. }
                if self.list.get("").is_some_and(|of| of.as_bytes() == list)
                    && self.list.len() <= prefixes::MOST =>
            {
                (Some(String::from_utf8_lossy(lineage).into_owned()), false)
            }
            Version::Bare if !before.is_empty() => {
                self.list.clear();
                (Some(before.clone().into()), false)
            }
            _ => (None, true),
        };
        let now = now.map_or_else(
            || write.lineage.to_string(),
            |lineage| format!("{lineage}.{}.{}", write.version, NOW.0 + 1_000),
        );
        if widened {
            self.list.clear();
        } else {
            self.list.insert("".into(), write.version.clone());
            self.list.insert(write.field.clone(), format!("{} {}", write.generation, NOW.0 + 1_000).into());
        }
        self.redis.0.insert("cache_tag:{-prefixes}".into(), now.as_str().into());
        let bytes = |text: &str| text.as_bytes().into();
        PrefixWritten { before: bytes(&before), now: bytes(&now), widened, pruned: false }
    }

    fn load(&self, generations: &Generations) {
        let entries = self.list.iter().map(|(field, value)| (field.to_string(), value.to_string()));
        generations.learn_prefixes(self.version().as_bytes(), entries.collect());
    }

    /// As a request does; `read`: the list can be read.
    fn look(&mut self, generations: &Generations, path: &str, read: bool) -> Fingerprint {
        let tags = Tags::epoch();
        let mut values = self.redis.read(generations, &tags);
        if generations.lacks_prefixes(&values, NOW) && read {
            self.load(generations);
            Generations::replace_version(&mut values, Some(self.version().as_bytes().to_vec()));
        }
        let resolution = generations.resolve(&tags, place(path), &values, NOW);
        let fingerprint = ready(resolution.clone());
        self.redis.write(&absent(resolution));
        fingerprint
    }
}

fn prefix_write(purge: PrefixPurge) -> PrefixWrite {
    match purge {
        PrefixPurge::Write(write) => *write,
        other => panic!("{other:?}"),
    }
}

fn prefix(text: &str) -> Prefix {
    Prefix::new(text, None).unwrap()
}

#[test]
fn a_purge_by_prefix_concerns_what_lies_under_it_on_every_instance_and_nothing_else() {
    let (one, two) = (Generations::new(&settings(10, 10), true), Generations::new(&settings(10, 10), true));
    let mut redis = Listing::default();
    let look = |redis: &mut Listing, path: &str| {
        let seen = redis.look(&one, path, true);
        assert_eq!(redis.look(&two, path, true), seen, "{path}");
        seen
    };
    let (under, beside) = (look(&mut redis, "/a/1"), look(&mut redis, "/b/1"));
    for text in ["/a/", "/a/", "/a"] {
        let before = look(&mut redis, "/a/1");
        let write = prefix_write(one.invalidate_prefix(&prefix(text), NOW));
        let pending = redis.look(&one, "/a/1", true);
        assert_ne!(pending, before, "before Redis knows");
        assert_eq!(redis.look(&one, "/b/1", true), beside);
        let written = redis.purge(&write);
        one.settle_prefix(&write, Some(&written), BEFORE);
        assert!(!one.owes() && !written.widened);
        let tags = Tags::epoch();
        assert!(!one.lacks_prefixes(&redis.redis.read(&one, &tags), NOW), "it made the change itself");
        assert!(two.lacks_prefixes(&redis.redis.read(&two, &tags), NOW));
        let after = look(&mut redis, "/a/1");
        assert!(![under, before, pending].contains(&after));
        assert_eq!(look(&mut redis, "/b/1"), beside);
        assert_eq!(one.local(&tags, place("/a/1"), NOW), after, "Redis goes away");
    }
    // Once nothing older can be left, nobody looks at the list any more.
    let values = redis.redis.read(&one, &Tags::epoch());
    let later = NOW.plus(Duration::from_secs(2));
    assert!(!Generations::new(&settings(10, 10), true).lacks_prefixes(&values, later));
    assert_eq!(ready(two.resolve(&Tags::epoch(), place("/b/1"), &values, later)), beside);
}

#[test]
fn a_list_that_cannot_be_had_widens_each_purge_and_brings_nothing_back() {
    let (one, two) = (Generations::new(&settings(10, 10), true), Generations::new(&settings(10, 10), true));
    let mut redis = Listing::default();
    let mut seen = vec![redis.look(&two, "/a/1", true)];
    for round in 0..3 {
        let write = prefix_write(one.invalidate_prefix(&prefix("/a/"), NOW));
        let written = redis.purge(&write);
        one.settle_prefix(&write, Some(&written), BEFORE);
        assert_eq!(written.widened, round > 0, "the list before was lost");
        let blind = redis.look(&two, "/a/1", false);
        assert!(!seen.contains(&blind));
        seen.push(blind);
        redis.list.clear();
        let lost = redis.look(&two, "/a/1", true);
        assert!(lost == blind || !seen.contains(&lost));
        assert!(!two.lacks_prefixes(&redis.redis.read(&two, &Tags::epoch()), NOW), "it is not read again");
        seen.push(lost);
        // The next list belongs to this version again.
        if round == 1 {
            redis.redis.0.remove("cache_tag:{-prefixes}");
            let evicted = redis.look(&two, "/a/1", true);
            assert!(!seen.contains(&evicted));
            seen.push(evicted);
            let write = prefix_write(one.invalidate_prefix(&prefix("/c"), NOW));
            one.settle_prefix(&write, Some(&redis.purge(&write)), BEFORE);
            redis.list.clear();
        }
    }
}

#[test]
fn purges_by_prefix_stay_bounded_and_none_is_lost() {
    let (alone, sharing) =
        (Generations::new(&settings(10, 10), false), Generations::new(&settings(10, 10), true));
    for generations in [&alone, &sharing] {
        let look = |path: &str| generations.local(&Tags::epoch(), place(path), NOW);
        let (mut seen, beside) = (vec![look("/0/x")], look("/beside"));
        let mut widened = 0;
        for number in 0..2 * prefixes::MOST + 2 {
            match generations.invalidate_prefix(&prefix(&format!("/{number}/")), NOW) {
                PrefixPurge::Local { widened: false } | PrefixPurge::Write(_) => {}
                PrefixPurge::Local { widened: true } | PrefixPurge::Widened(_) => widened += 1,
            }
            assert_eq!(look("/beside") == beside, widened == 0);
            let now = look("/0/x");
            if seen.last() != Some(&now) {
                assert!(!seen.contains(&now));
                seen.push(now);
            }
            assert!(generations.state.read().own.len() <= prefixes::MOST);
        }
        assert_eq!((widened, seen.len()), (2, 4));
    }
    let later = NOW.plus(Duration::from_secs(26 * 3600));
    alone.invalidate_prefix(&prefix("/later"), later);
    assert_eq!(alone.state.read().own.len(), 1, "the others are of no use any more");
    assert!(sharing.pending_prefixes().len() <= 1 && sharing.pending().len() == 1);
}

#[test]
fn another_way_to_compare_paths_brings_nothing_back() {
    let generations = Generations::new(&settings(10, 10), false);
    let look = |path, compare| generations.local(&Tags::epoch(), Place { hosts: "h", path, compare }, NOW);
    let strict = prefixes::Compare::default();
    let lax = prefixes::Compare { case_insensitive: true, ignore_trailing_slash: true };
    let before = [look("/A/x", strict), look("/A/x", lax), look("/a", lax)];
    generations.invalidate_prefix(&prefix("/a/"), NOW);
    assert_eq!(look("/A/x", strict), before[0]);
    assert!(!before.contains(&look("/A/x", lax)) && !before.contains(&look("/a", lax)));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Look { by: usize, path: usize, read: bool },
    Purge { by: usize, prefix: usize, reaches: bool, answered: bool },
    HandOver { by: usize },
    EvictVersion,
    EvictList,
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    use proptest::prelude::*;
    let by = 0..2_usize;
    prop_oneof![
        6 => (by.clone(), 0..4_usize, prop::bool::weighted(0.8))
            .prop_map(|(by, path, read)| Step::Look { by, path, read }),
        3 => (by.clone(), 0..4_usize, prop::bool::weighted(0.8), prop::bool::weighted(0.8))
            .prop_map(|(by, prefix, reaches, answered)| Step::Purge { by, prefix, reaches, answered }),
        1 => by.prop_map(|by| Step::HandOver { by }),
        1 => Just(Step::EvictVersion),
        1 => Just(Step::EvictList),
    ]
}

proptest::proptest! {
    #[test]
    fn whatever_is_lost_nothing_purged_is_found_again(
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        const PATHS: [&str; 4] = ["/a/1", "/a/b/1", "/b", "/a"];
        const PURGED: [&str; 4] = ["/a/", "/a/b", "/", "/b"];
        let instances = [(); 2].map(|()| Generations::new(&settings(10, 10), true));
        let mut redis = Listing::default();
        // What is stored per path, and what of it each instance must not find any more.
        let mut stored: [Vec<Fingerprint>; 4] = Default::default();
        let mut dead: [[Vec<Fingerprint>; 4]; 2] = Default::default();
        let mut owed: [Vec<(usize, [Vec<Fingerprint>; 4])>; 2] = Default::default();
        for step in steps {
            match step {
                Step::Look { by, path, read } => {
                    let found = redis.look(&instances[by], PATHS[path], read);
                    proptest::prop_assert!(!dead[by][path].contains(&found), "{step:?}");
                    stored[path].push(found);
                    let away = instances[by].local(&Tags::epoch(), place(PATHS[path]), NOW);
                    proptest::prop_assert!(!dead[by][path].contains(&away), "away, {step:?}");
                    stored[path].push(away);
                }
                Step::Purge { by, prefix: number, reaches, answered } => {
                    let write = prefix_write(instances[by].invalidate_prefix(&prefix(PURGED[number]), NOW));
                    let mut gone: [Vec<Fingerprint>; 4] = Default::default();
                    for path in (0..4).filter(|path| PATHS[*path].starts_with(PURGED[number])) {
                        gone[path].clone_from(&stored[path]);
                        dead[by][path].extend(&stored[path]);
                    }
                    if reaches {
                        let written = redis.purge(&write);
                        if answered {
                            instances[by].settle_prefix(&write, Some(&written), BEFORE);
                        }
                        for path in 0..4 {
                            dead[1 - by][path].extend(&gone[path]);
                        }
                    }
                    if !(reaches && answered) {
                        owed[by].push((number, gone));
                    }
                }
                Step::HandOver { by } => {
                    for write in instances[by].pending_prefixes() {
                        redis.purge(&write);
                        instances[by].settle_prefix(&write, None, BEFORE);
                    }
                    for (_, gone) in owed[by].drain(..) {
                        for path in 0..4 {
                            dead[1 - by][path].extend(&gone[path]);
                        }
                    }
                }
                Step::EvictVersion => {
                    redis.redis.0.remove("cache_tag:{-prefixes}");
                    // A while later: within `PROPOSED_FOR` it may go unnoticed, as with every tag.
                    for instance in &instances {
                        instance.state.write().proposed.clear();
                    }
                }
                Step::EvictList => redis.list.clear(),
            }
        }
    }
}

#[test]
fn implicit_tags_differ_from_each_other() {
    let generations = Generations::new(&settings(10, 10), false);
    let fingerprints = [
        generations.local(&tags(&[&route_tag("a")]), PLACE, NOW),
        generations.local(&tags(&[&user_tag(Some("a"))]), PLACE, NOW),
        generations.local(&tags(&[&user_tag(None)]), PLACE, NOW),
        generations.local(&tags(&[]), PLACE, NOW),
    ];
    for (n, one) in fingerprints.iter().enumerate() {
        assert!(fingerprints.iter().skip(n + 1).all(|other| one != other));
    }
}
