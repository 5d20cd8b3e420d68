//! Tokens that were disabled or deleted here while the store could not be told: they are refused at once, and the store
//! hears of it later. Bounded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use ahash::RandomState;
use parking_lot::RwLock;

use super::token::Id;
use crate::clock::UnixMillis;
use crate::identity::Refused;

/// Tokens held at most.
const MOST: usize = 10_000;

/// What is to become of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It is refused until it is enabled again.
    Disabled,
    /// It is gone.
    Deleted,
}

impl Hold {
    /// What its bearer hears.
    pub(super) const fn refused(self) -> Refused {
        match self {
            Self::Disabled => Refused::Revoked,
            Self::Deleted => Refused::BadSignature,
        }
    }

    const fn letter(self) -> char {
        match self {
            Self::Disabled => 'd',
            Self::Deleted => 'x',
        }
    }

    /// The form in which instances tell each other what was said at `at`.
    pub(super) fn to_message(self, id: Id, at: UnixMillis) -> String {
        format!("{} {id} {}", self.letter(), at.0)
    }

    /// Reads [`Self::to_message`].
    pub(super) fn from_message(message: &str) -> Option<(Id, Word)> {
        let mut words = message.splitn(3, ' ');
        let (letter, id, at) = (words.next()?, words.next()?, words.next()?);
        let hold =
            [Self::Disabled, Self::Deleted].into_iter().find(|hold| *letter == *hold.letter().to_string())?;
        Some((Id::parse(id)?, Word { hold, at: UnixMillis(at.parse().ok()?) }))
    }
}

/// What an operator said of a token, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) hold: Hold,
    /// What was said of it later counts more, unless it is gone.
    pub(super) at: UnixMillis,
}

/// The tokens that are held.
#[derive(Default)]
pub(super) struct Held {
    by_id: RwLock<HashMap<Id, Word, RandomState>>,
    /// As many; nearly always none, and then nothing is locked.
    count: AtomicUsize,
}

impl Held {
    /// What is to become of this one, where the store has not heard of it.
    pub(super) fn of(&self, id: Id) -> Option<Hold> {
        if self.is_empty() {
            return None;
        }
        self.by_id.read().get(&id).map(|word| word.hold)
    }

    /// Holds one; what is deleted is not merely disabled. Returns whether there was room.
    pub(super) fn hold(&self, id: Id, new: Word) -> bool {
        let mut by_id = self.by_id.write();
        if by_id.len() >= MOST && !by_id.contains_key(&id) {
            return false;
        }
        let known = by_id.entry(id).or_insert(new);
        if new.hold == Hold::Deleted {
            known.hold = new.hold;
        }
        known.at = known.at.max(new.at);
        self.count.store(by_id.len(), Ordering::Release);
        true
    }

    /// The store has heard of this; of anything else it is still to hear.
    pub(super) fn settle(&self, id: Id, heard: Word) {
        self.release_if(id, |word| word == heard);
    }

    /// The store has heard at `at` whether the token is disabled.
    pub(super) fn settle_disabled(&self, id: Id, at: UnixMillis) {
        self.release_if(id, |word| word.hold == Hold::Disabled && word.at <= at);
    }

    /// The token is gone.
    pub(super) fn release(&self, id: Id) {
        self.release_if(id, |_| true);
    }

    fn release_if(&self, id: Id, is_settled: impl FnOnce(Word) -> bool) {
        if self.is_empty() {
            return;
        }
        let mut by_id = self.by_id.write();
        if by_id.get(&id).copied().is_some_and(is_settled) {
            by_id.remove(&id);
        }
        self.count.store(by_id.len(), Ordering::Release);
    }

    pub(super) fn all(&self) -> Vec<(Id, Word)> {
        self.by_id.read().iter().map(|(id, word)| (*id, *word)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn said(hold: Hold, at: u64) -> Word {
        Word { hold, at: UnixMillis(at) }
    }

    #[test]
    fn what_is_held_is_bounded_and_goes_when_the_store_has_heard_of_it() {
        let (held, id) = (Held::default(), Id::random().unwrap());
        let (disabled, deleted) = (said(Hold::Disabled, 1), said(Hold::Deleted, 1));
        assert!(held.is_empty() && held.of(id).is_none());
        assert!(held.hold(id, disabled));
        assert_eq!(held.of(id), Some(Hold::Disabled));
        assert!(held.hold(id, deleted) && held.hold(id, disabled));
        assert_eq!(held.of(id), Some(Hold::Deleted));
        held.settle(id, disabled);
        held.settle_disabled(id, UnixMillis(9));
        assert_eq!(held.all(), [(id, deleted)], "the store has not heard that it is deleted");
        held.settle(id, deleted);
        assert!(held.is_empty());
        let ids: Vec<Id> = (0..MOST).map(|_| Id::random().unwrap()).collect();
        assert!(ids.iter().all(|id| held.hold(*id, disabled)));
        assert!(!held.hold(id, disabled) && held.hold(ids[0], deleted));
        held.release(ids[0]);
        assert!(held.hold(id, disabled));
    }

    #[test]
    fn what_was_said_after_the_store_heard_is_still_to_be_told() {
        let (held, id) = (Held::default(), Id::random().unwrap());
        assert!(held.hold(id, said(Hold::Disabled, 5)));
        held.settle_disabled(id, UnixMillis(4));
        assert!(held.hold(id, said(Hold::Disabled, 7)));
        held.settle(id, said(Hold::Disabled, 5));
        assert_eq!(held.all(), [(id, said(Hold::Disabled, 7))]);
        held.settle_disabled(id, UnixMillis(8));
        assert!(held.is_empty());
    }

    #[test]
    fn instances_understand_each_other_and_nothing_else() {
        let id = Id::random().unwrap();
        for hold in [Hold::Disabled, Hold::Deleted] {
            let message = hold.to_message(id, UnixMillis(5));
            assert_eq!(Hold::from_message(&message), Some((id, said(hold, 5))));
        }
        let no_time = format!("d {id} x");
        for message in
            ["", "d", "d ", &no_time, "y 0000000000000000 1", "dd 0000000000000000 1", "d ../../etc/passwd 1"]
        {
            assert_eq!(Hold::from_message(message), None, "{message}");
        }
    }
}
