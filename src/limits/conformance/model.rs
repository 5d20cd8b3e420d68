//! The plainest model of every algorithm: per counter everything that happened, gone through from the start for
//! every question. It knows nothing of states, windows kept or batches, and shares no code with what it judges.

use std::collections::HashMap;

use super::super::Algorithm;
use super::super::algorithm::Rule;

/// One request that reached a counter.
#[derive(Clone, Copy)]
struct Event {
    at: u64,
    cost: u64,
    counted: bool,
}

/// All counters by key.
#[derive(Clone, Default)]
pub(super) struct Model {
    events: HashMap<Vec<u8>, Vec<Event>>,
}

/// One counter as a request asks it.
pub(super) struct Asked<'a> {
    pub(super) key: &'a [u8],
    pub(super) rule: Rule,
    pub(super) penalise: bool,
    pub(super) shadow: bool,
}

impl Model {
    fn of(&self, key: &[u8]) -> &[Event] {
        self.events.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether a request at `now` fits.
    pub(super) fn fits(&self, key: &[u8], rule: &Rule, now: u64) -> bool {
        let (period, events) = (rule.period_ms, self.of(key));
        let counted = || events.iter().filter(|event| event.counted);
        match rule.algorithm {
            Algorithm::FixedWindow => {
                let (mut end, mut count) = (0, 0);
                for event in counted() {
                    if event.at >= end {
                        (end, count) = (event.at + period, 0);
                    }
                    count += event.cost;
                }
                if now >= end {
                    count = 0;
                }
                count + rule.cost <= rule.limit
            }
            Algorithm::SlidingWindow => {
                let start = now - now % period;
                let sum = |from: u64, to: u64| -> u64 {
                    counted().filter(|event| (from..to).contains(&event.at)).map(|event| event.cost).sum()
                };
                let (before, current) = (sum(start - period, start), sum(start, start + period));
                before * (start + period - now) + (current + rule.cost) * period <= rule.limit * period
            }
            Algorithm::TokenBucket => {
                let full = rule.limit * period;
                let (mut tokens, mut last) = (full, 0);
                for event in counted() {
                    tokens = (tokens + (event.at - last) * rule.limit).min(full);
                    tokens = tokens.saturating_sub(event.cost * period);
                    last = event.at;
                }
                (tokens + (now - last) * rule.limit).min(full) >= rule.cost * period
            }
            Algorithm::SlidingLog => {
                let each = counted().flat_map(|event| (0..event.cost).map(|_| event.at));
                let times: Vec<u64> = each.collect();
                // A penalty beyond the limit pushes the oldest out.
                let held = times.iter().rev().take(usize::try_from(rule.limit).unwrap());
                let inside = held.filter(|at| **at + period > now).count();
                u64::try_from(inside).unwrap() + rule.cost <= rule.limit
            }
            Algorithm::CoolDown(cool_down) => {
                let (mut end, mut count) = (0, 0);
                let mut tripped: Option<(u64, u64)> = None;
                let quiet = |tripped: Option<(u64, u64)>, at: u64| {
                    tripped.filter(|(_, last)| at - last < cool_down.quiet_ms)
                };
                for event in events {
                    let was = tripped.is_some();
                    tripped = quiet(tripped, event.at);
                    if (was && tripped.is_none()) || event.at >= end {
                        (end, count) = (0, 0);
                    }
                    if event.cost > rule.limit {
                        continue;
                    }
                    tripped = match tripped {
                        Some((next, _)) if event.counted && next <= event.at => {
                            Some((event.at + cool_down.interval_ms, event.at))
                        }
                        Some((next, _)) => Some((next, event.at)),
                        None if count + event.cost > rule.limit => {
                            Some((event.at + cool_down.interval_ms, event.at))
                        }
                        None => {
                            if event.counted && end == 0 {
                                end = event.at + period;
                            }
                            count += if event.counted { event.cost } else { 0 };
                            None
                        }
                    };
                }
                match quiet(tripped, now) {
                    Some((next, _)) => next <= now && rule.cost <= rule.limit,
                    None if tripped.is_some() || now >= end => rule.cost <= rule.limit,
                    None => count + rule.cost <= rule.limit,
                }
            }
        }
    }

    /// The first moment from `now` on at which a request fits, looked for one millisecond at a time.
    pub(super) fn fits_at(&self, key: &[u8], rule: &Rule, now: u64) -> u64 {
        (now..now + 100_000).find(|at| self.fits(key, rule, *at)).expect("every counter opens again")
    }

    fn hit(&mut self, key: &[u8], cost: u64, now: u64, counted: bool) {
        self.events.entry(key.to_vec()).or_default().push(Event { at: now, cost, counted });
    }

    /// `count` identical requests one after the other: how many are admitted, and how many each counter alone
    /// would have admitted.
    pub(super) fn judge(&mut self, asked: &[Asked<'_>], count: u32, now: u64) -> (u32, Vec<u32>) {
        let alone = asked.iter().map(|one| {
            let mut only = self.clone();
            let mut fitted = 0;
            for _ in 0..count {
                let fits = only.fits(one.key, &one.rule, now);
                fitted += u32::from(fits);
                only.hit(one.key, one.rule.cost, now, fits || one.penalise);
            }
            fitted
        });
        let alone = alone.collect();
        let mut granted = 0;
        for _ in 0..count {
            let fits: Vec<_> = asked.iter().map(|one| self.fits(one.key, &one.rule, now)).collect();
            let admitted = asked.iter().zip(&fits).all(|(one, fits)| *fits || one.shadow);
            granted += u32::from(admitted);
            for (one, fits) in asked.iter().zip(&fits) {
                self.hit(one.key, one.rule.cost, now, (admitted && *fits) || one.penalise);
            }
        }
        (granted, alone)
    }

    /// Takes the last `count` counted requests off again; the window they opened stays.
    pub(super) fn take_back(&mut self, key: &[u8], count: u32) {
        let events = self.events.entry(key.to_vec()).or_default();
        let last = events.iter_mut().rev().filter(|event| event.counted);
        last.take(usize::try_from(count).unwrap()).for_each(|event| event.cost = 0);
    }
}
