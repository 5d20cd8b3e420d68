//! Who may read a record now: one request at a time for each token, and few for all of them. What one has read serves
//! everybody who waited for it, so that guessing at a token costs the store no more than one read after the other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{MutexGuard, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::token::Id;
use crate::clock::UnixMillis;

/// Records read at the same time by one instance.
const AT_ONCE: usize = 64;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(1);

/// When the last read that failed began.
type Turn = tokio::sync::Mutex<Option<UnixMillis>>;

/// The turns of one instance. As many tokens as requests wait are held.
pub(super) struct Turns {
    waiting: Mutex<HashMap<Id, (Arc<Turn>, usize)>>,
    room: Semaphore,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::default(), room: Semaphore::new(AT_ONCE) }
    }

    /// A place in the queue for `id`.
    pub(super) fn queue(&self, id: Id) -> Place<'_> {
        let mut waiting = self.waiting.lock();
        let (turn, places) = waiting.entry(id).or_default();
        *places += 1;
        Place { turns: self, id, turn: Arc::clone(turn), until: Instant::now() + PATIENCE }
    }
}

/// A place in the queue for one token.
pub(super) struct Place<'t> {
    turns: &'t Turns,
    id: Id,
    turn: Arc<Turn>,
    until: Instant,
}

impl Place<'_> {
    /// Waits until nobody else reads this record; `None`: in vain.
    pub(super) async fn turn(&self) -> Option<MutexGuard<'_, Option<UnixMillis>>> {
        timeout_at(self.until, self.turn.lock()).await.ok()
    }

    /// Waits until few records are read; `None`: in vain.
    pub(super) async fn room(&self) -> Option<SemaphorePermit<'_>> {
        timeout_at(self.until, self.turns.room.acquire()).await.ok()?.ok()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.turns.waiting.lock();
        if let Some((_, places)) = waiting.get_mut(&self.id) {
            *places -= 1;
            if *places == 0 {
                waiting.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_reads_a_record_and_few_read_at_all() {
        let turns = Turns::new();
        let [one, other] = [(); 2].map(|()| Id::random().unwrap());
        let (first, second, stranger) = (turns.queue(one), turns.queue(one), turns.queue(other));
        let held = first.turn().await.unwrap();
        assert!(second.turn().await.is_none(), "and nobody waits for ever");
        assert!(stranger.turn().await.is_some());
        drop(held);
        assert!(turns.queue(one).turn().await.is_some());
        let places: Vec<_> = (0..AT_ONCE).map(|_| turns.queue(Id::random().unwrap())).collect();
        let mut reading = Vec::new();
        for place in &places {
            reading.push(place.room().await.unwrap());
        }
        let late = turns.queue(one);
        assert!(late.room().await.is_none());
        reading.pop();
        assert!(turns.queue(one).room().await.is_some());
    }

    #[test]
    fn who_has_left_is_forgotten() {
        let turns = Turns::new();
        let id = Id::random().unwrap();
        let places = [turns.queue(id), turns.queue(id), turns.queue(Id::random().unwrap())];
        assert_eq!(turns.waiting.lock().len(), 2);
        drop(places);
        assert!(turns.waiting.lock().is_empty());
    }
}
