//! One question over several parts of the store: what goes where, and what the answers say together. A part that
//! grants more than the others is owed a refund; nothing here sends anything.

use super::Seen;
use super::question::{Asked, Judged, Owed, Reply, rewind};
use crate::limits::batch::{Batch, BatchReply, Counted, Item, ItemReply};
use crate::limits::policy::Algorithm;

/// What of a question lies in one shard.
#[derive(Debug)]
pub(super) struct Part<'a, S> {
    pub(super) shard: S,
    pub(super) asked: Asked<'a>,
    /// Positions of its tags in the whole.
    tags: Vec<usize>,
    pieces: Vec<Piece>,
}

/// Where an item of a part comes from: positions in the whole.
#[derive(Debug, Default)]
struct Piece {
    item: usize,
    guards: Vec<usize>,
    counters: Vec<usize>,
}

impl<'a, S: Copy + PartialEq> Part<'a, S> {
    fn new(shard: S) -> Self {
        Self { shard, asked: Asked::default(), tags: Vec::new(), pieces: Vec::new() }
    }

    /// The piece of item `number`, made when there is none; items come in order.
    fn piece(
        &mut self,
        number: usize,
        item: &Item<'a>,
    ) -> Option<(&mut Item<'a>, &mut Vec<u64>, &mut Piece)> {
        if self.pieces.last().is_none_or(|last| last.item != number) {
            self.pieces.push(Piece { item: number, ..Piece::default() });
            let (issued_at, count) = (item.issued_at, item.count);
            self.asked.batch.items.push(Item { issued_at, count, ..Item::default() });
            self.asked.used.push(Vec::new());
        }
        let Asked { batch: Batch { items, .. }, used, .. } = &mut self.asked;
        Some((items.last_mut()?, used.last_mut()?, self.pieces.last_mut()?))
    }
}

fn part_of<'p, 'a, S: Copy + PartialEq>(
    parts: &'p mut Vec<Part<'a, S>>,
    shard: S,
) -> Option<&'p mut Part<'a, S>> {
    let index = parts.iter().position(|part| part.shard == shard).unwrap_or_else(|| {
        parts.push(Part::new(shard));
        parts.len() - 1
    });
    parts.get_mut(index)
}

/// The parts of `whole`, by the shard of each key.
pub(super) fn split<'a, S: Copy + PartialEq>(
    whole: &Asked<'a>,
    shard: impl Fn(&'a [u8]) -> S,
) -> Vec<Part<'a, S>> {
    let mut parts: Vec<Part<'a, S>> = Vec::new();
    for (index, tag) in whole.batch.tags.iter().enumerate() {
        if let Some(part) = part_of(&mut parts, shard(tag)) {
            part.tags.push(index);
            part.asked.batch.tags.push(tag);
        }
    }
    for (number, (item, used)) in whole.batch.items.iter().zip(&whole.used).enumerate() {
        for (index, guard) in item.guards.iter().enumerate() {
            let part = part_of(&mut parts, shard(guard));
            if let Some((of_part, _, piece)) = part.and_then(|part| part.piece(number, item)) {
                if item.cutoff == Some(index) {
                    of_part.cutoff = Some(of_part.guards.len());
                }
                of_part.guards.push(guard);
                piece.guards.push(index);
            }
        }
        for (index, (counter, used)) in item.counters.iter().zip(used).enumerate() {
            let part = part_of(&mut parts, shard(counter.key));
            if let Some((of_part, of_used, piece)) = part.and_then(|part| part.piece(number, item)) {
                of_part.counters.push(*counter);
                of_used.push(*used);
                piece.counters.push(index);
            }
        }
    }
    for part in &mut parts {
        part.asked.at = whole.at;
    }
    parts
}

/// The answer of a store that is in one piece.
pub(super) fn whole(asked: &Asked<'_>, reply: BatchReply) -> Reply {
    let items = reply.items.into_iter().zip(&asked.batch.items).map(|(reply, item)| match reply {
        ItemReply::Barred(guard) => {
            let counters = vec![None; item.counters.len()];
            Judged { barred: Some(guard), guarded: true, granted: 0, counters }
        }
        ItemReply::Judged { granted, counters } => {
            let counters = counters.into_iter().map(Some).collect();
            Judged { barred: None, guarded: true, granted, counters }
        }
    });
    let tags = reply.tags.into_iter().map(Seen::from).collect();
    Reply { clock: reply.clock, tags, items: items.collect() }
}

/// What the parts say together, and what those that granted more than others are owed. `None` when no part
/// answered.
pub(super) fn merge<S>(
    asked: &Asked<'_>,
    parts: &[Part<'_, S>],
    replies: Vec<Option<BatchReply>>,
) -> Option<(Reply, Vec<Owed>)> {
    if replies.iter().all(Option::is_none) {
        return None;
    }
    let mut reply = Reply {
        clock: replies.iter().flatten().find_map(|reply| reply.clock),
        tags: vec![Seen::Unknown; asked.batch.tags.len()],
        items: asked.batch.items.iter().map(unanswered).collect(),
    };
    // What each counter's own part granted.
    let mut granted_there: Vec<Vec<u32>> =
        asked.batch.items.iter().map(|item| vec![0; item.counters.len()]).collect();
    for (part, answer) in parts.iter().zip(replies) {
        let Some(answer) = answer else {
            for piece in part.pieces.iter().filter(|piece| !piece.guards.is_empty()) {
                if let Some(item) = reply.items.get_mut(piece.item) {
                    item.guarded = false;
                }
            }
            continue;
        };
        for (index, value) in part.tags.iter().zip(answer.tags) {
            if let Some(tag) = reply.tags.get_mut(*index) {
                *tag = value.into();
            }
        }
        for (piece, judged) in part.pieces.iter().zip(answer.items) {
            let Some((whole, there)) = reply.items.get_mut(piece.item).zip(granted_there.get_mut(piece.item))
            else {
                continue;
            };
            match judged {
                ItemReply::Barred(guard) => {
                    let guard = piece.guards.get(guard).copied().unwrap_or_default();
                    whole.barred = Some(whole.barred.map_or(guard, |known| known.min(guard)));
                }
                ItemReply::Judged { granted, counters } => {
                    whole.granted = whole.granted.min(granted);
                    for (index, counted) in piece.counters.iter().zip(counters) {
                        if let Some((place, there)) =
                            whole.counters.get_mut(*index).zip(there.get_mut(*index))
                        {
                            (*place, *there) = (Some(counted), granted);
                        }
                    }
                }
            }
        }
    }
    let mut owed = Vec::new();
    for ((item, judged), there) in asked.batch.items.iter().zip(&mut reply.items).zip(granted_there) {
        if judged.barred.is_some() {
            judged.granted = 0;
        }
        for ((counter, counted), there) in item.counters.iter().zip(&mut judged.counters).zip(there) {
            let Some(Counted { state, fits }) = counted else { continue };
            let most = if counter.shadow { *fits } else { u32::MAX };
            let excess = match (counter.penalise, judged.barred.is_some(), counter.rule.algorithm) {
                (false, _, _) => there.min(most).saturating_sub(judged.granted.min(most)),
                // A penalising counter keeps its hit, but counts nobody who is barred.
                (true, false, _) => 0,
                (true, true, Algorithm::CoolDown(_)) => *fits,
                (true, true, _) => item.count,
            };
            if excess > 0 {
                *state = rewind(&counter.rule, *state, excess);
                owed.push(Owed::new(counter, *state, excess));
            }
        }
    }
    Some((reply, owed))
}

fn unanswered(item: &Item<'_>) -> Judged {
    Judged { barred: None, guarded: true, granted: item.count, counters: vec![None; item.counters.len()] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::algorithm::{Rule, State};
    use crate::limits::batch::Counter;

    fn counter(key: &[u8], penalise: bool) -> Counter<'_> {
        let rule = Rule { algorithm: Algorithm::FixedWindow, limit: 5, period_ms: 60_000, cost: 1 };
        Counter { key, rule, penalise, shadow: false, known_end: 0 }
    }

    fn asked<'a>(
        guards: &[&'a [u8]],
        counters: Vec<Counter<'a>>,
        tags: &[&'a [u8]],
        count: u32,
    ) -> Asked<'a> {
        let used = vec![vec![0; counters.len()]];
        let item = Item { guards: guards.to_vec(), cutoff: Some(1), issued_at: 7, counters, count };
        Asked { batch: Batch { tags: tags.to_vec(), items: vec![item] }, used, ..Asked::default() }
    }

    fn judged(granted: u32, used: &[(u64, u32)]) -> ItemReply {
        let counters = used
            .iter()
            .map(|(used, fits)| Counted { state: State { anchor: 9, used: *used, before: 0 }, fits: *fits });
        ItemReply::Judged { granted, counters: counters.collect() }
    }

    fn by_last(key: &[u8]) -> u8 {
        key.last().copied().unwrap_or(0)
    }

    fn answer(items: Vec<ItemReply>) -> BatchReply {
        BatchReply { clock: None, tags: Vec::new(), items }
    }

    #[test]
    fn every_key_goes_to_its_shard_and_keeps_its_place() {
        let whole =
            asked(&[b"g1", b"g2", b"h1"], vec![counter(b"c2", false), counter(b"c1", false)], &[b"t2"], 3);
        let parts = split(&whole, by_last);
        assert_eq!(parts.len(), 2);
        let of = |shard: u8| parts.iter().find(|part| part.shard == shard).unwrap();
        let (one, two) = (&of(b'1').asked.batch, &of(b'2').asked.batch);
        assert_eq!(
            (one.items[0].guards.as_slice(), one.items[0].cutoff),
            (&[b"g1" as &[u8], b"h1"][..], None)
        );
        assert_eq!((two.items[0].guards.as_slice(), two.items[0].cutoff), (&[b"g2" as &[u8]][..], Some(0)));
        assert_eq!((one.items[0].count, two.tags.len(), one.tags.len()), (3, 1, 0));
        assert_eq!(of(b'1').pieces[0].counters, [1]);
    }

    #[test]
    fn the_least_grant_holds_and_the_others_are_owed_the_rest() {
        let whole =
            asked(&[], vec![counter(b"c1", false), counter(b"c2", false), counter(b"p2", true)], &[], 4);
        let parts = split(&whole, by_last);
        let replies =
            vec![Some(answer(vec![judged(1, &[(5, 1)])])), Some(answer(vec![judged(4, &[(4, 4), (4, 4)])]))];
        let (reply, owed) = merge(&whole, &parts, replies).unwrap();
        assert_eq!(reply.items[0].granted, 1);
        let owed: Vec<_> = owed.iter().map(|owed| (&*owed.key, owed.count)).collect();
        assert_eq!(owed, [(b"c2" as &[u8], 3)]);
        let used: Vec<u64> =
            reply.items[0].counters.iter().map(|counted| counted.unwrap().state.used).collect();
        assert_eq!(used, [5, 1, 4]);
    }

    #[test]
    fn a_guard_that_bars_in_one_part_takes_back_what_the_others_counted() {
        let whole = asked(&[b"g1", b"g2"], vec![counter(b"c2", false), counter(b"p2", true)], &[], 3);
        let parts = split(&whole, by_last);
        let replies =
            vec![Some(answer(vec![ItemReply::Barred(0)])), Some(answer(vec![judged(1, &[(1, 3), (6, 1)])]))];
        let (reply, owed) = merge(&whole, &parts, replies).unwrap();
        assert_eq!((reply.items[0].barred, reply.items[0].granted), (Some(0), 0));
        let owed: Vec<_> = owed.iter().map(|owed| (&*owed.key, owed.count)).collect();
        assert_eq!(
            owed,
            [(b"c2" as &[u8], 1), (b"p2", 3)],
            "one that counts refusals too counts nobody barred"
        );
    }

    #[test]
    fn a_part_that_is_away_leaves_its_counters_open_and_the_others_decided() {
        let whole = asked(&[], vec![counter(b"c1", false), counter(b"c2", false)], &[b"t1"], 1);
        let parts = split(&whole, by_last);
        let (reply, owed) =
            merge(&whole, &parts, vec![None, Some(answer(vec![judged(1, &[(1, 1)])]))]).unwrap();
        assert_eq!((reply.items[0].granted, &*reply.tags, owed.len()), (1, &[Seen::Unknown][..], 0));
        assert!(reply.items[0].counters[0].is_none() && reply.items[0].counters[1].is_some());
        assert!(merge(&whole, &parts, vec![None, None]).is_none());
    }

    #[test]
    fn a_part_that_is_away_leaves_only_its_own_tags_unknown() {
        let whole = asked(&[b"g1"], Vec::new(), &[b"t3", b"t2", b"u3", b"t1"], 1);
        let parts = split(&whole, by_last);
        let replies = parts.iter().map(|part| {
            let tags: &[&[u8]] = if part.shard == b'1' { &[b"t1"] } else { &[b"t2"] };
            let value = |_: &&[u8]| (part.shard == b'1').then(|| bytes::Bytes::from_static(b"7"));
            assert!(part.shard == b'3' || part.asked.batch.tags == tags);
            (part.shard != b'3').then(|| BatchReply {
                clock: None,
                tags: tags.iter().map(value).collect(),
                items: part.asked.batch.items.iter().map(|_| judged(1, &[])).collect(),
            })
        });
        let (reply, _) = merge(&whole, &parts, replies.collect()).unwrap();
        let seven = Seen::Value(bytes::Bytes::from_static(b"7"));
        assert_eq!(reply.tags, [Seen::Unknown, Seen::Absent, Seen::Unknown, seven]);
    }

    #[test]
    fn a_part_that_is_away_with_a_guard_says_so_and_one_without_does_not() {
        let whole = asked(&[b"g1", b"g2"], vec![counter(b"c2", false), counter(b"c3", false)], &[], 1);
        let parts = split(&whole, by_last);
        let shards: Vec<u8> = parts.iter().map(|part| part.shard).collect();
        for (lost, guarded) in [(b'1', false), (b'2', false), (b'3', true)] {
            let replies = parts.iter().map(|part| {
                let counters = vec![(1, 1); part.asked.batch.items[0].counters.len()];
                (part.shard != lost).then(|| answer(vec![judged(1, &counters)]))
            });
            let (reply, _) = merge(&whole, &parts, replies.collect()).unwrap();
            assert_eq!(reply.items[0].guarded, guarded, "{lost} of {shards:?}");
        }
        let all = parts.iter().map(|part| {
            let counters = vec![(1, 1); part.asked.batch.items[0].counters.len()];
            Some(answer(vec![judged(1, &counters)]))
        });
        assert!(merge(&whole, &parts, all.collect()).unwrap().0.items[0].guarded);
    }
}
