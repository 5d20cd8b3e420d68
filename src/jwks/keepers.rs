//! All keepers of the process. They outlive a configuration, and with them the keys.

use std::sync::Arc;

use parking_lot::Mutex;

use super::keeper::Keeper;
use super::settings::Settings;
use crate::clock::Clock;
use crate::metrics::Metrics;

/// The keepers by issuer.
#[derive(Default)]
pub struct Keepers(Mutex<Vec<Arc<Keeper>>>);

impl Keepers {
    /// The keeper of these settings: the one that is there already, with its keys, or a new one in place of one
    /// that was told otherwise, which begins with the set `initial`.
    ///
    /// # Errors
    /// What about the source cannot be used.
    pub fn keeper(
        &self,
        settings: &Settings,
        initial: Option<&[u8]>,
        clock: &Arc<dyn Clock>,
        metrics: &Metrics,
    ) -> Result<Arc<Keeper>, String> {
        let mut all = self.0.lock();
        if let Some(keeper) = all.iter().find(|keeper| keeper.settings() == settings) {
            return Ok(Arc::clone(keeper));
        }
        let keeper = Arc::new(Keeper::of(settings.clone(), initial, Arc::clone(clock), metrics)?);
        all.retain(|other| other.settings().issuer != settings.issuer);
        all.push(Arc::clone(&keeper));
        Ok(keeper)
    }

    /// Every keeper, to be set going.
    pub fn all(&self) -> Vec<Arc<Keeper>> {
        self.0.lock().clone()
    }
}
