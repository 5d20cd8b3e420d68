//! Same-key coalescing: at most one call in flight per counter key, over all workers of the process. What comes
//! meanwhile waits and goes together. It schedules only: what is asked and who carries it is the owner's business.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use ahash::RandomState;
use parking_lot::Mutex;

/// Different requests one call carries at most.
const MAX_ITEMS: usize = 128;
/// Counter keys one call names at most.
const MAX_KEYS: usize = 512;
/// Cache tags one call asks at most, but for those of a single request.
const MAX_TAGS: usize = 512;
/// A request that found one of its keys busy this often when another was free has the free ones held for it.
const PATIENT_BOUNCES: u8 = 2;

/// A request that waits for the keys it needs.
pub(super) trait Waiter: Send + 'static {
    /// Hashes of the counter keys it needs, each once; never empty.
    fn keys(&self) -> &[u64];
    /// Hashes of the cache tags it asks.
    fn tags(&self) -> &[u64];
    /// A hash of all that makes two requests identical.
    fn digest(&self) -> u64;
    /// Whether both ask exactly the same.
    fn is_same(&self, other: &Self) -> bool;
    /// Whether nobody waits for the answer any more.
    fn is_gone(&self) -> bool;
}

/// Carries calls for requests that have waited.
pub(super) trait Carrier: Clone + Send + 'static {
    /// What waits.
    type Waiter: Waiter;
    /// Where it waits.
    fn combiner(&self) -> &Combiner<Self::Waiter>;
    /// Starts one call for all of `waiters`, in order of arrival. The keys are free again when `held` is dropped.
    fn carry(&self, waiters: Vec<Self::Waiter>, held: Held<Self>);
}

/// The keys in flight, and who waits for them.
///
/// A request waits at one of its keys that is busy, so that nothing ever waits at a key that is free. A key is busy
/// while it is in flight, or held for a request that others kept from all of its keys several times. Whoever a key
/// is held for waits at a key in flight, or at one held for somebody else who does: keys freed are judged anew
/// together with those held for whoever waited at them, in order of arrival, so that these never wait in a circle.
pub(super) struct Combiner<W> {
    table: Mutex<Table<W>>,
}

struct Table<W> {
    waiting: HashMap<u64, Vec<Queued<W>>, RandomState>,
    arrivals: u64,
}

struct Queued<W> {
    arrival: u64,
    waiter: W,
    /// How often a key was busy when another was free.
    bounces: u8,
    /// Keys that are free but for this request.
    holds: Vec<u64>,
}

/// Requests that go together.
struct Group<W> {
    waiters: Vec<W>,
    /// The first waiter of each kind by digest.
    kinds: HashMap<u64, usize, RandomState>,
    items: usize,
    keys: Vec<u64>,
    tags: HashSet<u64, RandomState>,
}

impl<W: Waiter> Combiner<W> {
    pub(super) fn new() -> Self {
        Self { table: Mutex::new(Table { waiting: HashMap::default(), arrivals: 0 }) }
    }

    /// How many wait at `keys`.
    fn waiting(&self, keys: &[u64]) -> usize {
        let table = self.table.lock();
        keys.iter().filter_map(|key| table.waiting.get(key)).map(Vec::len).sum()
    }

    /// How many keys are in flight.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.table.lock().waiting.len()
    }

    /// Takes all of `keys`, or none: then what `wait` makes waits for them. `keys` are hashes, each once.
    fn take_or_wait(&self, keys: &[u64], wait: impl FnOnce() -> W) -> bool {
        if self.table.lock().take(keys).is_ok() {
            return true;
        }
        // What waits is made without the lock, which everybody needs.
        let waiter = wait();
        let mut table = self.table.lock();
        let Err(busy) = table.take(keys) else { return true };
        table.arrivals += 1;
        let queued = Queued { arrival: table.arrivals, waiter, bounces: 0, holds: Vec::new() };
        table.waiting.entry(busy).or_default().push(queued);
        false
    }

    /// Frees `keys`, and takes them and others again for those who waited: each group is one call.
    fn release(&self, keys: &[u64]) -> Vec<Group<W>> {
        let mut table = self.table.lock();
        let mut candidates = table.free(keys);
        if candidates.is_empty() {
            return Vec::new();
        }
        candidates.sort_unstable_by_key(|queued| queued.arrival);
        let mut groups: Vec<Group<W>> = Vec::new();
        let mut taken: HashMap<u64, usize, RandomState> = HashMap::default();
        for mut queued in candidates {
            if queued.waiter.is_gone() {
                continue;
            }
            let wanted = queued.waiter.keys();
            // Its group is the one that has taken some of its keys; a key of another call or group bars it.
            let joins = wanted.iter().find_map(|key| taken.get(key).copied());
            let barred = wanted.iter().find(|key| {
                table.waiting.contains_key(key) && taken.get(key).copied().is_none_or(|by| Some(by) != joins)
            });
            if let Some(key) = barred.copied() {
                queued.bounces = queued.bounces.saturating_add(1);
                if queued.bounces >= PATIENT_BOUNCES {
                    queued.holds =
                        wanted.iter().filter(|key| !table.waiting.contains_key(key)).copied().collect();
                    for key in &queued.holds {
                        table.waiting.insert(*key, Vec::new());
                    }
                }
                table.waiting.entry(key).or_default().push(queued);
                continue;
            }
            let full = |group: &Group<W>| !group.has_room_for(&queued.waiter);
            let number = match joins {
                Some(number) if groups.get(number).is_none_or(full) => {
                    // Next time, at a key that this group has.
                    if let Some(key) = wanted.iter().find(|key| taken.contains_key(key)).copied() {
                        table.waiting.entry(key).or_default().push(queued);
                    }
                    continue;
                }
                Some(number) => number,
                None => {
                    if groups.last().is_none_or(full) {
                        groups.push(Group::new());
                    }
                    groups.len() - 1
                }
            };
            let Some(group) = groups.get_mut(number) else { continue };
            for key in wanted {
                if let Entry::Vacant(free) = taken.entry(*key) {
                    free.insert(number);
                    group.keys.push(*key);
                    table.waiting.insert(*key, Vec::new());
                }
            }
            group.push(queued.waiter);
        }
        groups
    }
}

impl<W> Table<W> {
    /// Takes all of `keys`; else says which one is busy.
    fn take(&mut self, keys: &[u64]) -> Result<(), u64> {
        if let Some(busy) = keys.iter().find(|key| self.waiting.contains_key(key)) {
            return Err(*busy);
        }
        for key in keys {
            self.waiting.insert(*key, Vec::new());
        }
        Ok(())
    }

    /// Frees `keys`, and what is held for whoever waited at them, and so on; returns all who waited.
    fn free(&mut self, keys: &[u64]) -> Vec<Queued<W>> {
        let mut freed: Vec<Queued<W>> = Vec::new();
        let mut next = keys.to_vec();
        while let Some(key) = next.pop() {
            for mut queued in self.waiting.remove(&key).unwrap_or_default() {
                next.append(&mut queued.holds);
                freed.push(queued);
            }
        }
        freed
    }
}

impl<W: Waiter> Group<W> {
    fn new() -> Self {
        Self {
            waiters: Vec::new(),
            kinds: HashMap::default(),
            items: 0,
            keys: Vec::new(),
            tags: HashSet::default(),
        }
    }

    fn is_known(&self, waiter: &W) -> bool {
        let same = self.kinds.get(&waiter.digest()).and_then(|index| self.waiters.get(*index));
        same.is_some_and(|same| same.is_same(waiter))
    }

    fn has_room_for(&self, waiter: &W) -> bool {
        let new_tags = waiter.tags().iter().filter(|tag| !self.tags.contains(tag)).count();
        let tags_fit = new_tags == 0 || self.tags.len().saturating_add(new_tags) <= MAX_TAGS;
        let fits =
            || self.items < MAX_ITEMS && self.keys.len().saturating_add(waiter.keys().len()) <= MAX_KEYS;
        self.waiters.is_empty() || (tags_fit && (self.is_known(waiter) || fits()))
    }

    fn push(&mut self, waiter: W) {
        if !self.is_known(&waiter) {
            self.items += 1;
            self.kinds.entry(waiter.digest()).or_insert(self.waiters.len());
        }
        self.tags.extend(waiter.tags());
        self.waiters.push(waiter);
    }
}

/// Keys in flight. Dropping it frees them and sends on who waited for them, whatever became of the call.
pub(super) struct Held<C: Carrier> {
    carrier: C,
    keys: Vec<u64>,
}

impl<C: Carrier> Held<C> {
    /// Takes `keys` for a call of one's own; `None` when one is in flight: then what `wait` makes waits.
    pub(super) fn take_or_wait(carrier: &C, keys: &[u64], wait: impl FnOnce() -> C::Waiter) -> Option<Self> {
        let taken = carrier.combiner().take_or_wait(keys, wait);
        taken.then(|| Self { carrier: carrier.clone(), keys: keys.to_vec() })
    }

    /// How many wait for these keys.
    pub(super) fn waiting(&self) -> usize {
        self.carrier.combiner().waiting(&self.keys)
    }
}

impl<C: Carrier> Drop for Held<C> {
    fn drop(&mut self) {
        for group in self.carrier.combiner().release(&self.keys) {
            let held = Self { carrier: self.carrier.clone(), keys: group.keys };
            self.carrier.carry(group.waiters, held);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    /// A store of plain counters, which grants up to a limit and takes a moment.
    struct World {
        combiner: Combiner<Asker>,
        counters: Mutex<HashMap<u64, u64>>,
        in_flight: Mutex<HashMap<u64, usize>>,
        limit: u64,
        calls: AtomicUsize,
        refunded: AtomicU64,
    }

    #[derive(Clone)]
    struct Fake(Arc<World>);

    struct Asker {
        keys: Vec<u64>,
        tags: Vec<u64>,
        reply: oneshot::Sender<bool>,
    }

    impl Waiter for Asker {
        fn keys(&self) -> &[u64] {
            &self.keys
        }
        fn tags(&self) -> &[u64] {
            &self.tags
        }
        fn digest(&self) -> u64 {
            self.keys.iter().sum()
        }
        fn is_same(&self, other: &Self) -> bool {
            self.keys == other.keys
        }
        fn is_gone(&self) -> bool {
            self.reply.is_closed()
        }
    }

    impl Carrier for Fake {
        type Waiter = Asker;
        fn combiner(&self) -> &Combiner<Asker> {
            &self.0.combiner
        }
        fn carry(&self, waiters: Vec<Asker>, held: Held<Self>) {
            let world = Arc::clone(&self.0);
            let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
            runtime.spawn(async move {
                let asked: Vec<Vec<u64>> = waiters.iter().map(|waiter| waiter.keys.clone()).collect();
                let granted = world.call(&asked, &held.keys).await;
                for (waiter, (granted, keys)) in waiters.into_iter().zip(granted.into_iter().zip(asked)) {
                    if waiter.reply.send(granted).is_err() && granted {
                        world.give_back(&keys);
                    }
                }
                drop(held);
            });
        }
    }

    /// A call under way for these keys.
    struct Mark<'a>(&'a World, Vec<u64>);

    impl Drop for Mark<'_> {
        fn drop(&mut self) {
            let mut in_flight = self.0.in_flight.lock();
            for key in &self.1 {
                *in_flight.get_mut(key).unwrap() -= 1;
            }
        }
    }

    impl World {
        fn fake(limit: u64) -> Fake {
            Fake(Arc::new(Self {
                combiner: Combiner::new(),
                counters: Mutex::default(),
                in_flight: Mutex::default(),
                limit,
                calls: AtomicUsize::new(0),
                refunded: AtomicU64::new(0),
            }))
        }

        async fn call(&self, asked: &[Vec<u64>], keys: &[u64]) -> Vec<bool> {
            self.calls.fetch_add(1, SeqCst);
            let mark = {
                let mut in_flight = self.in_flight.lock();
                for key in keys {
                    let calls = in_flight.entry(*key).or_default();
                    *calls += 1;
                    assert_eq!(*calls, 1, "one call in flight per key");
                }
                Mark(self, keys.to_vec())
            };
            tokio::time::sleep(Duration::from_micros(200)).await;
            let granted = {
                let mut counters = self.counters.lock();
                let mut judge = |keys: &Vec<u64>| {
                    let fits = keys.iter().all(|key| *counters.entry(*key).or_default() < self.limit);
                    if fits {
                        for key in keys {
                            *counters.get_mut(key).unwrap() += 1;
                        }
                    }
                    fits
                };
                asked.iter().map(&mut judge).collect()
            };
            tokio::time::sleep(Duration::from_micros(200)).await;
            drop(mark);
            granted
        }

        fn give_back(&self, keys: &[u64]) {
            let mut counters = self.counters.lock();
            for key in keys {
                *counters.get_mut(key).unwrap() -= 1;
            }
            self.refunded.fetch_add(1, SeqCst);
        }
    }

    async fn ask(fake: &Fake, keys: Vec<u64>) -> Option<bool> {
        let (reply, answer) = oneshot::channel();
        let held = Held::take_or_wait(fake, &keys, || Asker { keys: keys.clone(), tags: Vec::new(), reply });
        match held {
            Some(held) => {
                let granted = fake.0.call(std::slice::from_ref(&keys), &keys).await;
                drop(held);
                granted.first().copied()
            }
            None => answer.await.ok(),
        }
    }

    // Time passes only when everybody waits: the crowd is there before the first call ends.
    #[tokio::test(start_paused = true)]
    async fn a_crowd_at_one_key_needs_few_calls_and_is_granted_exactly_the_limit() {
        let fake = World::fake(100);
        let tasks: Vec<_> = (0..512)
            .map(|_| {
                let fake = fake.clone();
                tokio::spawn(async move { ask(&fake, vec![7]).await })
            })
            .collect();
        let mut granted = 0;
        for task in tasks {
            granted += u32::from(task.await.unwrap() == Some(true));
        }
        assert_eq!(granted, 100);
        assert!(fake.0.calls.load(SeqCst) <= 8, "{:?}", fake.0.calls);
        assert_eq!(fake.0.combiner.in_flight(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn whoever_gives_up_leaves_no_key_behind_and_takes_nothing_from_others() {
        let fake = World::fake(300);
        let admitted = Arc::new(AtomicU64::new(0));
        let lost = Arc::new(AtomicU64::new(0));
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let tasks: Vec<_> = (0..4_000_u64)
            .map(|_| {
                let (fake, admitted, lost) = (fake.clone(), Arc::clone(&admitted), Arc::clone(&lost));
                let (first, second, patience) = (random() % 5, random() % 5, random() % 6);
                let pause = random() % 30_000;
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_micros(pause)).await;
                    let keys = if first == second { vec![first] } else { vec![first, second] };
                    let patience = Duration::from_micros(patience * 300 + 1);
                    match tokio::time::timeout(patience, ask(&fake, keys)).await {
                        Ok(Some(true)) => admitted.fetch_add(1, SeqCst),
                        Ok(None) => lost.fetch_add(1, SeqCst),
                        Ok(Some(false)) | Err(_) => 0,
                    };
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        while fake.0.combiner.in_flight() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(lost.load(SeqCst), 0, "nobody who waits is forgotten");
        let counted: Vec<u64> = fake.0.counters.lock().values().copied().collect();
        assert!(counted.iter().all(|count| *count <= 300), "{counted:?}");
        assert!(admitted.load(SeqCst) <= counted.iter().sum(), "nobody is admitted uncounted");
        assert_eq!(ask(&fake, vec![99]).await, Some(true));
    }

    #[tokio::test]
    async fn strangers_never_wait_for_each_other() {
        let fake = World::fake(9);
        let waits = |keys: &[u64]| {
            let (reply, answer) = oneshot::channel();
            (
                Held::take_or_wait(&fake, keys, || Asker { keys: keys.to_vec(), tags: Vec::new(), reply }),
                answer,
            )
        };
        let (one, _) = waits(&[1, 2]);
        let (other, _) = waits(&[3]);
        assert!(one.is_some() && other.is_some());
        let (both, both_told) = waits(&[2, 3]);
        let (later, later_told) = waits(&[3]);
        assert!(both.is_none() && later.is_none());
        drop(one);
        assert_eq!(fake.0.combiner.in_flight(), 1, "the first waits on for the second of its keys");
        drop(other);
        assert_eq!((both_told.await, later_told.await), (Ok(true), Ok(true)));
        assert_eq!(fake.0.calls.load(SeqCst), 1);
    }

    /// Calls that are under way until the test ends them.
    #[derive(Clone)]
    struct Manual(Arc<(Combiner<Asker>, Mutex<Vec<Carried>>)>);

    struct Carried {
        asked: Vec<Vec<u64>>,
        held: Held<Manual>,
    }

    impl Carrier for Manual {
        type Waiter = Asker;
        fn combiner(&self) -> &Combiner<Asker> {
            &self.0.0
        }
        fn carry(&self, waiters: Vec<Asker>, held: Held<Self>) {
            let asked = waiters.iter().map(|waiter| waiter.keys.clone()).collect();
            self.0.1.lock().push(Carried { asked, held });
        }
    }

    impl Manual {
        fn ask(&self, keys: &[u64]) -> (Option<Held<Self>>, oneshot::Receiver<bool>) {
            let (reply, answer) = oneshot::channel();
            (
                Held::take_or_wait(self, keys, || Asker { keys: keys.to_vec(), tags: Vec::new(), reply }),
                answer,
            )
        }

        /// Ends the call on `key`.
        fn end(&self, key: u64) {
            let mut calls = self.0.1.lock();
            let index = calls.iter().position(|call| call.held.keys.contains(&key)).unwrap();
            let call = calls.swap_remove(index);
            drop(calls);
            drop(call.held);
        }

        fn is_asked(&self, keys: &[u64]) -> bool {
            self.0.1.lock().iter().any(|call| call.asked.iter().any(|asked| asked == keys))
        }

        fn is_in_flight(&self, key: u64) -> bool {
            self.0.1.lock().iter().filter(|call| call.held.keys.contains(&key)).count() > 0
        }
    }

    #[test]
    fn steady_crowds_at_single_keys_do_not_starve_a_request_for_several() {
        let manual = Manual(Arc::new((Combiner::new(), Mutex::default())));
        let mut answers = Vec::new();
        for key in [1, 2, 3] {
            let (held, answer) = manual.ask(&[key]);
            manual.0.1.lock().push(Carried { asked: vec![vec![key]], held: held.unwrap() });
            answers.push(answer);
        }
        let wanted: [&[u64]; 4] = [&[1, 2], &[2, 3], &[1, 3], &[1, 2, 3]];
        for keys in wanted {
            let (held, answer) = manual.ask(keys);
            assert!(held.is_none());
            answers.push(answer);
        }
        let mut asked = [false; 4];
        for turn in 0..40_u64 {
            for key in [1, 2, 3] {
                // Somebody always waits for each key alone.
                let (held, answer) = manual.ask(&[key]);
                answers.push(answer);
                assert!(held.is_none(), "a key for which somebody waits is busy");
            }
            let key = 1 + turn % 3;
            if manual.is_in_flight(key) {
                manual.end(key);
            }
            for (keys, asked) in wanted.iter().zip(&mut asked) {
                *asked |= manual.is_asked(keys);
            }
        }
        assert_eq!(asked, [true; 4]);
        drop(answers);
        for _ in 0..100 {
            for key in [1, 2, 3] {
                if manual.is_in_flight(key) {
                    manual.end(key);
                }
            }
        }
        assert_eq!(manual.0.0.in_flight(), 0, "what is held for whoever is gone is free again");
    }

    #[test]
    fn one_call_asks_for_a_bounded_number_of_tags() {
        let manual = Manual(Arc::new((Combiner::new(), Mutex::default())));
        let (held, _answer) = manual.ask(&[1]);
        let answers: Vec<_> = (0..300_u64)
            .map(|number| {
                let (reply, answer) = oneshot::channel();
                // Two of its own and one of all.
                let tags = vec![0, 2 * number + 1, 2 * number + 2];
                let wait = || Asker { keys: vec![1], tags, reply };
                assert!(Held::take_or_wait(&manual, &[1], wait).is_none());
                answer
            })
            .collect();
        drop(held);
        let asked = || manual.0.1.lock().iter().map(|call| call.asked.len()).sum::<usize>();
        assert_eq!(asked(), 255, "511 tags");
        manual.end(1);
        assert_eq!(asked(), 45, "the rest");
        manual.end(1);
        drop(answers);
    }

    #[tokio::test]
    async fn one_call_is_bounded_and_the_rest_comes_next() {
        let fake = World::fake(1_000);
        let (reply, _first) = oneshot::channel();
        let held = Held::take_or_wait(&fake, &[0], || Asker { keys: vec![0], tags: Vec::new(), reply });
        let answers: Vec<_> = (1..=150)
            .map(|other| {
                let (reply, answer) = oneshot::channel();
                let keys = vec![0, other];
                assert!(
                    Held::take_or_wait(&fake, &keys, || Asker {
                        keys: keys.clone(),
                        tags: Vec::new(),
                        reply
                    })
                    .is_none()
                );
                answer
            })
            .collect();
        drop(held);
        for answer in answers {
            assert_eq!(answer.await, Ok(true));
        }
        assert_eq!(fake.0.calls.load(SeqCst), 2, "150 different requests, 128 a call");
    }
}
