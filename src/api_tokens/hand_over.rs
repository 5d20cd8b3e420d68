//! Tokens that were disabled or deleted while the store was away: it hears of them before requests ask it again.

use std::time::Duration;

use ::redis::{Cmd, RedisResult, Value, cmd};
use tokio::time::timeout;

use super::held::{Hold, Word};
use super::record::Record;
use super::store::{ATTEMPTS, ApiTokens, only, replacing};
use super::token::Id;
use crate::clock::UnixMillis;
use crate::redis::{Link, Publisher};

/// How long this holds up what else is handed over.
const PATIENCE: Duration = Duration::from_secs(1);

impl ApiTokens {
    /// Refuses a token here from now on, whatever the store says, and sees that the store and the other instances hear
    /// of it. Returns whether there was room, and a store.
    pub fn hold(&self, id: Id, hold: Hold, now: UnixMillis) -> bool {
        let Some(store) = self.store() else { return false };
        if !self.held.hold(id, Word { hold, at: now }) {
            return false;
        }
        store.hand_over_soon();
        // A cluster that has lost the record's node can still tell them. Nobody waits for it.
        let publisher = Publisher::new(std::sync::Arc::clone(store));
        let news = [super::store::HELD, hold.to_message(id, now).as_bytes()].concat();
        tokio::spawn(async move { publisher.publish(&news).await });
        true
    }

    /// How many tokens were disabled or deleted here of which the store has not heard.
    pub fn owed(&self) -> usize {
        self.held.len()
    }

    /// Tells this node what concerns it of that. What it does not take stays held. Returns whether anything does.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn hand_over(&self, link: &mut Link<'_>) -> RedisResult<bool> {
        if self.held.is_empty() {
            return Ok(false);
        }
        // Others have something to hand over, too, and all that is held is refused here meanwhile.
        timeout(PATIENCE, self.hand_over_each(link)).await.unwrap_or(Ok(true))
    }

    async fn hand_over_each(&self, link: &mut Link<'_>) -> RedisResult<bool> {
        let (mut count, mut is_left) = (0_usize, false);
        for (id, word) in self.held.all() {
            let key = self.key("api_token", id);
            if !link.holds(key.as_bytes()) {
                continue;
            }
            let done = match word.hold {
                Hold::Disabled => disable(link, &key, word.at).await,
                Hold::Deleted => self.delete_at(link, id, &key).await,
            };
            match done {
                Ok(true) => {
                    self.held.settle(id, word);
                    self.forget(id);
                    if let Some(store) = self.store() {
                        // A lost message costs nothing: each request reads the record.
                        let _ = ask(link, &store.publication(&super::store::changed(id))).await;
                    }
                    count += 1;
                }
                Ok(false) => is_left = true,
                Err(error) if error.is_unrecoverable_error() => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, %id, "Redis does not take what was said of an API token");
                    is_left = true;
                }
            }
        }
        if count > 0 {
            tracing::info!(
                count,
                "API tokens that were disabled or deleted during an outage are so in Redis now"
            );
        }
        Ok(is_left)
    }

    async fn delete_at(&self, link: &mut Link<'_>, id: Id, key: &str) -> RedisResult<bool> {
        let mut deleting = cmd("DEL");
        deleting.arg(key);
        ask(link, &deleting).await?;
        // Where the list is on another node, whoever asks for it next takes the id off.
        let index = self.index();
        if link.holds(index.as_bytes()) {
            let mut unlisting = cmd("SREM");
            unlisting.arg(index).arg(id.as_str());
            ask(link, &unlisting).await?;
        }
        Ok(true)
    }
}

/// Returns whether the record says so now, or something that was said after `at`, or is none.
async fn disable(link: &mut Link<'_>, key: &str, at: UnixMillis) -> RedisResult<bool> {
    for _ in 0..ATTEMPTS {
        let mut reading = cmd("MGET");
        reading.arg(key);
        let Ok(stored) = only(ask(link, &reading).await?) else { return Ok(false) };
        // What is no record is accepted nowhere.
        let Some((stored, mut record)) =
            stored.and_then(|stored| Some((stored.clone(), Record::decode(&stored)?)))
        else {
            return Ok(true);
        };
        if record.disabled || record.switched.is_some_and(|switched| switched >= at.0) {
            return Ok(true);
        }
        record.switch(true, at);
        if ask(link, &replacing(key, &stored, &record)).await? == Value::Int(1) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn ask(link: &mut Link<'_>, command: &Cmd) -> RedisResult<Value> {
    command.query_async(link.connection()).await
}
