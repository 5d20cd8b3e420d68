//! Purges by prefix: what is written to Redis for them, and what is known of the list there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::state::{Own, State};
use super::{Generations, Write};
use crate::cache::prefixes::{self, List, Loader, Loading, Prefix, Snapshot, Version};
use crate::cache::tag::{PREFIXES, PREFIXES_AT, epoch_tag};
use crate::clock::UnixMillis;

/// A purge by prefix to be written to Redis. No two writes have the same values, as with [`Write`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixWrite {
    /// The Redis key of the list's version; both keys are in one slot.
    pub version_key: Box<str>,
    /// The Redis key of the list.
    pub list_key: Box<str>,
    /// The prefix as the list names it.
    pub field: Box<str>,
    /// The generation of what lies under the prefix.
    pub generation: Box<str>,
    /// The version of the list with it.
    pub version: Box<str>,
    /// What is to be stored under from now on if the list that there was is lost or full.
    pub lineage: Box<str>,
    /// How long the purge has to be remembered.
    pub ttl: Duration,
    pub(super) invalidation: Box<str>,
}

/// What became of a [`PrefixWrite`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixWritten {
    /// The version before; empty for none.
    pub before: Box<[u8]>,
    /// The version now.
    pub now: Box<[u8]>,
    /// Everything was dropped, because the list was lost or full.
    pub widened: bool,
    /// Purges that are of no use any more were taken off the list.
    pub pruned: bool,
}

/// What is to become of a purge by prefix that holds here already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrefixPurge {
    /// Nothing: there is no Redis. `widened`: there were too many, so that everything was dropped.
    Local {
        /// Whether everything was dropped.
        widened: bool,
    },
    /// This is to be written, and then to be given to [`Generations::settle_prefix`].
    Write(Box<PrefixWrite>),
    /// These are to be written, since too many wait for Redis: they drop everything.
    Widened(Vec<Write>),
}

impl Generations {
    /// Whether a list of purges by prefix holds that this instance has not read: until it has, a request with these
    /// values (of [`Self::keys`]) finds nothing that was stored before the last of those purges.
    pub fn lacks_prefixes<V: AsRef<[u8]>>(&self, values: &[Option<V>], now: UnixMillis) -> bool {
        let Some(value) = values.get(PREFIXES_AT).and_then(Option::as_ref).map(AsRef::as_ref) else {
            return false;
        };
        match Version::parse(value) {
            Version::Bare => false,
            Version::Listed { until, .. } => now <= until && *self.prefixes.load().version != *value,
        }
    }

    /// Puts another version of the list of purges by prefix in the place of the one that was read with `values`.
    pub fn replace_version<V>(values: &mut [Option<V>], version: Option<V>) {
        if let Some(value) = values.get_mut(PREFIXES_AT) {
            *value = version;
        }
    }

    /// The Redis keys of the version of the list of purges by prefix, and of the list. Both are in one slot.
    pub fn prefix_keys(&self) -> [Box<str>; 2] {
        [self.key(PREFIXES), format!("{}cache_prefixes:{PREFIXES}", self.prefix).into()]
    }

    /// Joins the reading of the list that is under way, or begins one: then the list is to be given to
    /// [`Self::learn_prefixes`], its version to the loader, and the loader to be dropped.
    pub fn join_loading(&self) -> (Loading, Option<Loader>) {
        self.loads.join()
    }

    /// Takes the list of purges by prefix as Redis has it: its version, and fields with values. What does not belong
    /// together stands for a list that nobody has: from then on every purge by prefix drops everything.
    pub fn learn_prefixes(&self, version: &[u8], entries: Vec<(String, String)>) {
        let mut listed: HashMap<Box<str>, Box<str>, ahash::RandomState> = HashMap::default();
        let mut of = None;
        let whole = entries.len() <= prefixes::MOST.saturating_add(1);
        for (field, value) in entries {
            if field == prefixes::VERSION_FIELD {
                of = Some(value);
            } else {
                let generation = value.split(' ').next().unwrap_or_default();
                listed.insert(field.into(), generation.into());
            }
        }
        let belongs = match Version::parse(version) {
            Version::Listed { list, .. } => of.is_some_and(|of| of.as_bytes() == list),
            Version::Bare => false,
        };
        let mut state = self.state.write();
        state.listed = if whole && belongs { listed } else { HashMap::default() };
        let list = (whole && belongs).then(|| Arc::new(state.list()));
        self.publish(&state, version.into(), list);
    }

    /// Makes everything stored under `prefix` unreachable, here at once.
    pub fn invalidate_prefix(&self, prefix: &Prefix, now: UnixMillis) -> PrefixPurge {
        let mut state = self.state.write();
        if !self.shared {
            state.own.retain(|_, own| now <= own.until);
        }
        let field = prefix.field();
        let widened = state.own.len() >= prefixes::MOST && !state.own.contains_key(field);
        let mut writes = Vec::new();
        let invalidation = self.unique.next();
        if widened {
            writes = self.invalidate_within(&mut state, [epoch_tag()]);
            state.own.clear();
        } else {
            let own = Own { invalidation: invalidation.clone(), until: now.plus(self.ttl) };
            state.own.insert(field.into(), own);
        }
        self.republish(&state);
        self.count(&state);
        match (self.shared, widened) {
            (false, widened) => PrefixPurge::Local { widened },
            (true, true) => PrefixPurge::Widened(writes),
            (true, false) => PrefixPurge::Write(Box::new(self.prefix_write(field, invalidation))),
        }
    }

    /// Purges by prefix that Redis has not confirmed yet. Each call makes writes of new values.
    pub fn pending_prefixes(&self) -> Vec<PrefixWrite> {
        if !self.owes() {
            return Vec::new();
        }
        let state = self.state.read();
        let own = state.own.iter();
        own.map(|(field, own)| self.prefix_write(field, own.invalidation.clone())).collect()
    }

    /// At `at` Redis has this one; `written` is what it said, if that is known.
    pub fn settle_prefix(&self, write: &PrefixWrite, written: Option<&PrefixWritten>, at: UnixMillis) {
        let mut state = self.state.write();
        // A later purge of the same prefix is not confirmed by an earlier write.
        if state.own.get(&write.field).is_some_and(|own| own.invalidation == write.invalidation) {
            state.own.remove(&write.field);
        }
        // Also for the time Redis is away: what it had before must not count any more.
        let now = written.map(|written| String::from_utf8_lossy(&written.now).into());
        let now = now.unwrap_or_else(|| self.unique.next());
        state.proposed.remove(PREFIXES);
        state.remember(PREFIXES, Some(now), self.remembered, &self.unique);
        if let Some(known) = state.known.get_mut(PREFIXES) {
            known.settled = at;
        }
        let follows = written.filter(|written| {
            let known = self.prefixes.load();
            !written.widened
                && !written.pruned
                && match Version::parse(&written.before) {
                    Version::Bare => !written.before.is_empty(),
                    Version::Listed { .. } => known.version == written.before && known.list.is_some(),
                }
        });
        if let Some(written) = follows {
            // Whoever made the change need not read it.
            if Version::parse(&written.before) == Version::Bare {
                state.listed.clear();
            }
            state.listed.insert(write.field.clone(), write.generation.clone());
            let list = Some(Arc::new(state.list()));
            self.publish(&state, written.now.clone(), list);
        } else {
            self.republish(&state);
        }
        self.count(&state);
    }

    /// Redis refuses to list these: everything is dropped instead, here at once. The writes are to be made, and given to
    /// [`Self::settle`], as those of [`Self::invalidate`].
    pub fn widen_prefixes(&self, purges: &[PrefixWrite]) -> Vec<Write> {
        let mut state = self.state.write();
        // First: what a purge has dropped must not be looked for without it.
        let writes = self.invalidate_within(&mut state, [epoch_tag()]);
        for write in purges {
            // A later purge of the same prefix is written by itself.
            if state.own.get(&write.field).is_some_and(|own| own.invalidation == write.invalidation) {
                state.own.remove(&write.field);
            }
        }
        self.count(&state);
        self.republish(&state);
        writes
    }

    fn prefix_write(&self, field: &str, invalidation: Box<str>) -> PrefixWrite {
        let [version_key, list_key] = self.prefix_keys();
        PrefixWrite {
            version_key,
            list_key,
            field: field.into(),
            generation: self.unique.next(),
            version: self.unique.next(),
            lineage: self.unique.next(),
            ttl: self.ttl,
            invalidation,
        }
    }

    fn publish(&self, state: &State, version: Box<[u8]>, list: Option<Arc<List>>) {
        self.prefixes.store(Arc::new(Snapshot { version, list, own: state.own() }));
    }

    /// With the list that is known already.
    fn republish(&self, state: &State) {
        let known = self.prefixes.load_full();
        self.publish(state, known.version.clone(), known.list.clone());
    }
}
