//! What a verifier knows where no gateway runs: published keys are read once, now.

use std::sync::Arc;

use anyhow::Context as _;

use super::build;
use crate::clock::{Clock, SystemClock};
use crate::config::Spec;
use crate::identity::Verifier;
use crate::jwks::Keepers;
use crate::metrics::Metrics;

/// The verifier that a gateway of `spec` would judge by at this moment, and the issuers whose keys cannot be read,
/// each with why.
///
/// # Errors
/// The first key or issuer that cannot be used.
pub fn verifier_now(spec: &Spec) -> anyhow::Result<(Verifier, Vec<String>)> {
    let metrics = Metrics::new().context("metrics cannot be set up")?;
    let (keepers, clock) = (Keepers::default(), Arc::new(SystemClock) as Arc<dyn Clock>);
    let verifier = build::verifier(spec, &mut |issuer| {
        Ok(build::ring(build::keeper(issuer, &keepers, &clock, &metrics)?.as_ref()))
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut troubles = Vec::new();
    for keeper in keepers.all() {
        if let Err(trouble) = runtime.block_on(keeper.read()) {
            troubles.push(format!("issuers.{}.jwks: the source of keys {trouble}", keeper.settings().issuer));
        }
    }
    // A name that is still being looked up must not hold the command.
    runtime.shutdown_background();
    Ok((verifier, troubles))
}
