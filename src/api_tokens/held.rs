//! Tokens that were disabled or deleted here while the store could not be told: they are refused at once, and the store
//! hears of it later. Bounded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use ahash::RandomState;
use parking_lot::RwLock;

use super::token::Id;
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

    /// The form in which instances tell each other of it.
    pub(super) fn to_message(self, id: Id) -> String {
        format!("{} {id}", self.letter())
    }

    /// Reads [`Self::to_message`].
    pub(super) fn from_message(message: &str) -> Option<(Id, Self)> {
        let (letter, id) = message.split_once(' ')?;
        let hold =
            [Self::Disabled, Self::Deleted].into_iter().find(|hold| *letter == *hold.letter().to_string())?;
        Some((Id::parse(id)?, hold))
    }
}

/// The tokens that are held.
#[derive(Default)]
pub(super) struct Held {
    by_id: RwLock<HashMap<Id, Hold, RandomState>>,
    /// As many; nearly always none, and then nothing is locked.
    count: AtomicUsize,
}

impl Held {
    /// What is to become of this one, where the store has not heard of it.
    pub(super) fn of(&self, id: Id) -> Option<Hold> {
        if self.is_empty() {
            return None;
        }
        self.by_id.read().get(&id).copied()
    }

    /// Holds one; what is deleted is not merely disabled. Returns whether there was room.
    pub(super) fn hold(&self, id: Id, hold: Hold) -> bool {
        let mut by_id = self.by_id.write();
        if by_id.len() >= MOST && !by_id.contains_key(&id) {
            return false;
        }
        let known = by_id.entry(id).or_insert(hold);
        if hold == Hold::Deleted {
            *known = hold;
        }
        self.count.store(by_id.len(), Ordering::Release);
        true
    }

    /// The store has heard of this; of anything else it is still to hear.
    pub(super) fn settle(&self, id: Id, hold: Hold) {
        let mut by_id = self.by_id.write();
        if by_id.get(&id) == Some(&hold) {
            by_id.remove(&id);
        }
        self.count.store(by_id.len(), Ordering::Release);
    }

    /// The store knows better by now.
    pub(super) fn release(&self, id: Id) {
        if !self.is_empty() {
            let mut by_id = self.by_id.write();
            by_id.remove(&id);
            self.count.store(by_id.len(), Ordering::Release);
        }
    }

    pub(super) fn all(&self) -> Vec<(Id, Hold)> {
        self.by_id.read().iter().map(|(id, hold)| (*id, *hold)).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_bounded_and_goes_when_the_store_has_heard_of_it() {
        let (held, id) = (Held::default(), Id::random().unwrap());
        assert!(held.is_empty() && held.of(id).is_none());
        assert!(held.hold(id, Hold::Disabled));
        assert_eq!(held.of(id), Some(Hold::Disabled));
        assert!(held.hold(id, Hold::Deleted) && held.hold(id, Hold::Disabled));
        assert_eq!(held.of(id), Some(Hold::Deleted));
        held.settle(id, Hold::Disabled);
        assert_eq!(held.all(), [(id, Hold::Deleted)], "the store has not heard that it is deleted");
        held.settle(id, Hold::Deleted);
        assert!(held.is_empty());
        let ids: Vec<Id> = (0..MOST).map(|_| Id::random().unwrap()).collect();
        assert!(ids.iter().all(|id| held.hold(*id, Hold::Disabled)));
        assert!(!held.hold(id, Hold::Disabled) && held.hold(ids[0], Hold::Deleted));
        held.release(ids[0]);
        assert!(held.hold(id, Hold::Disabled));
    }

    #[test]
    fn instances_understand_each_other_and_nothing_else() {
        let id = Id::random().unwrap();
        for hold in [Hold::Disabled, Hold::Deleted] {
            assert_eq!(Hold::from_message(&hold.to_message(id)), Some((id, hold)));
        }
        for message in ["", "d", "d ", "y 0000000000000000", "dd 0000000000000000", "d ../../etc/passwd"] {
            assert_eq!(Hold::from_message(message), None, "{message}");
        }
    }
}
