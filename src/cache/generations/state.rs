//! What an instance knows of the generations of tags, under the lock of [`super::Generations`].

use std::collections::HashMap;
use std::time::Duration;

use super::unique::Unique;
use crate::cache::prefixes::List;
use crate::clock::UnixMillis;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) known: HashMap<Box<str>, Known, ahash::RandomState>,
    /// What a tag outside `known` has. It changes whenever something is forgotten, so that a forgotten
    /// invalidation can never make an old entry reachable again.
    pub(super) floor: Option<Box<str>>,
    /// Bumped here, not yet confirmed by Redis; counts in addition to whatever Redis says.
    pub(super) pending: HashMap<Box<str>, Box<str>, ahash::RandomState>,
    /// Generations for tags that Redis has none of, until it has.
    pub(super) proposed: HashMap<Box<str>, Proposal, ahash::RandomState>,
    /// Purges by prefix made here, by field: until Redis confirms them or, without it, nothing older can be left.
    pub(super) own: HashMap<Box<str>, Own, ahash::RandomState>,
    /// The entries of the snapshot's list.
    pub(super) listed: HashMap<Box<str>, Box<str>, ahash::RandomState>,
}

/// What is known of a tag.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Its last generation; `None`: it has none.
    pub(super) value: Option<Box<str>>,
    /// When Redis was last known to have an invalidation made here.
    pub(super) settled: UnixMillis,
}

#[derive(Debug)]
pub(super) struct Own {
    pub(super) invalidation: Box<str>,
    pub(super) until: UnixMillis,
}

#[derive(Debug)]
pub(super) struct Proposal {
    pub(super) value: Box<str>,
    pub(super) until: UnixMillis,
    /// The latest beginning of a request that was told it by Redis: who began before that and finds none was only told
    /// later.
    pub(super) written: Option<UnixMillis>,
}

/// What a tag without a generation counts as.
pub(super) enum Proposed {
    /// To be written when something is stored under it.
    Unwritten(Box<str>),
    /// Redis has had it since it was asked.
    Written(Box<str>),
}

/// How long a generation is proposed. Long enough for the requests that wait for one fetch; short, because
/// within it an invalidation by another instance goes unnoticed if Redis evicts it at once.
pub(super) const PROPOSED_FOR: Duration = Duration::from_secs(10);
/// How long Redis has what instances agree on: longer than the head of a response usually takes.
pub const ANNOUNCED_FOR: Duration = Duration::from_secs(60);
/// Most proposals at a time; without one a request that is not the first fetches once more.
pub(super) const MAX_PROPOSED: usize = 10_000;
/// Most of them that are made while Redis does not answer. There they stay until something else takes their place.
pub(super) const MAX_PROPOSED_ALONE: usize = MAX_PROPOSED / 2;
/// How much later a request has to begin than another one to be noted as told of a proposal, in milliseconds.
pub(super) const NOTED_AFTER: u64 = 5;

impl State {
    pub(super) fn own(&self) -> List {
        List::new(self.own.iter().map(|(field, own)| (&**field, &*own.invalidation)))
    }

    pub(super) fn list(&self) -> List {
        List::new(self.listed.iter().map(|(field, generation)| (&**field, &**generation)))
    }

    /// Nothing to learn from `value`: it is known, or a pending bump overrides it.
    pub(super) fn agrees(&self, tag: &str, value: Option<&[u8]>) -> bool {
        if self.pending.contains_key(tag) {
            return true;
        }
        let known = self.known.get(tag).map_or(self.floor.as_deref(), Known::value);
        known.map(str::as_bytes) == value
    }

    /// Whether what a request was told that began at `now` may be older than an invalidation made here.
    pub(super) fn settled_since(&self, tag: &str, now: UnixMillis) -> bool {
        self.known.get(tag).is_some_and(|known| now <= known.settled)
    }

    /// The generation that this instance proposes for a tag without one, to a request that began at `now`.
    pub(super) fn propose(&mut self, tag: &str, now: UnixMillis, unique: &Unique) -> Proposed {
        if let Some(proposal) = self.proposed.get(tag)
            && now <= proposal.until
        {
            match proposal.written {
                None => return Proposed::Unwritten(proposal.value.clone()),
                // The answer is older than what another request was told meanwhile.
                Some(written) if now < written => return Proposed::Written(proposal.value.clone()),
                // Redis has had it and lost it, and perhaps another one after it.
                Some(_) => {}
            }
        }
        if self.proposed.len() >= MAX_PROPOSED {
            self.proposed.retain(|_, proposal| proposal.written.is_none() && now <= proposal.until);
        }
        if self.proposed.len() >= MAX_PROPOSED {
            self.proposed.clear();
        }
        Proposed::Unwritten(self.insert_proposal(tag, now, unique))
    }

    /// Neither known nor proposed, though there is room to propose it.
    pub(super) fn lacks(&self, tag: &str) -> bool {
        self.proposed.len() < MAX_PROPOSED_ALONE
            && !self.known.contains_key(tag)
            && !self.proposed.contains_key(tag)
    }

    /// Proposes a generation for a tag of which nothing is known while Redis does not answer.
    pub(super) fn propose_alone(&mut self, tag: &str, now: UnixMillis, unique: &Unique) {
        if self.lacks(tag) {
            self.insert_proposal(tag, now, unique);
        }
    }

    /// What a tag outside `known` counts as while Redis does not answer. A proposal that has ended is one still: nothing
    /// better can be had, and who asks Redis again does not get it.
    pub(super) fn unknown(&self, tag: &str) -> Option<&str> {
        self.proposed.get(tag).map(|proposal| &*proposal.value).or(self.floor.as_deref())
    }

    pub(super) fn insert_proposal(&mut self, tag: &str, now: UnixMillis, unique: &Unique) -> Box<str> {
        let value = unique.next();
        let proposal = Proposal { value: value.clone(), until: now.plus(PROPOSED_FOR), written: None };
        self.proposed.insert(tag.into(), proposal);
        value
    }

    pub(super) fn remember(&mut self, tag: &str, value: Option<Box<str>>, bound: usize, unique: &Unique) {
        if let Some(known) = self.known.get_mut(tag) {
            known.value = value;
            return;
        }
        if self.known.len() >= bound {
            // One new floor for many forgotten tags: forgetting them one by one would change the floor,
            // and so empty the cache, on every new tag.
            self.known.clear();
            self.floor = Some(unique.next());
            for (tag, value) in &self.pending {
                let known = Known { value: Some(value.clone()), ..Known::default() };
                self.known.insert(tag.clone(), known);
            }
        }
        self.known.insert(tag.into(), Known { value, ..Known::default() });
    }
}

impl Known {
    pub(super) fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }
}

impl Proposal {
    pub(super) fn is_of(&self, value: &[u8]) -> bool {
        self.value.as_bytes() == value
    }

    /// Whether `value`, which Redis told a request that began at `now`, changes anything about it.
    pub(super) fn is_news(&self, value: Option<&[u8]>, now: UnixMillis) -> bool {
        value.is_none_or(|value| !self.is_of(value))
            || now > self.until
            || self.written.is_none_or(|written| now.0 > written.0.saturating_add(NOTED_AFTER))
    }
}
