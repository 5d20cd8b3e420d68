//! API tokens for commands: straight to the store of a configuration, without a gateway.

use std::sync::Arc;
use std::time::Duration;

use ::redis::cmd;
use anyhow::{Context as _, bail};

use super::build::api_token_naming;
use crate::api_tokens::ApiTokens;
use crate::config::Spec;
use crate::redis::{Lane, Store, Unavailable, Unburdened, Unobserved};

/// How long the store may take to answer at all.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two looks whether it answers.
const PAUSE: Duration = Duration::from_millis(20);

/// Does `work` on the API tokens in the store of this configuration.
///
/// # Errors
/// There is no store, or it cannot be reached.
pub fn on_api_tokens<T>(spec: &Spec, work: impl AsyncFnOnce(&ApiTokens) -> T) -> anyhow::Result<T> {
    // The process-wide provider; a second install only says that there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Some(store) = super::store(spec, Box::new(Unobserved))? else {
        bail!(
            "the configuration names no Redis: its API tokens live in the memory of each gateway, and are managed \
             through the admin API there"
        );
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime can be started")?;
    runtime.block_on(async {
        let watching = tokio::spawn(Arc::clone(&store).supervise(Vec::new(), Arc::new(Unburdened)));
        let reached = reach(&store).await.with_context(|| {
            let at = spec.redis.url.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("Redis ({at}) cannot be reached")
        });
        let tokens = ApiTokens::new(Some(store), api_token_naming(spec));
        let done = match reached {
            Ok(()) => Ok(work(&tokens).await),
            Err(problem) => Err(problem),
        };
        watching.abort();
        done
    })
}

/// Waits until all of the store answers.
async fn reach(store: &Store) -> anyhow::Result<()> {
    let until = tokio::time::Instant::now() + PATIENCE;
    let mut cause = None;
    loop {
        let answers = store.ask_all(PATIENCE, Lane::Decisions, &cmd("PING")).await;
        let Some(failure) = answers.into_iter().find_map(|answer| answer.outcome.err()) else {
            return Ok(());
        };
        // After the first failures nothing is asked for a while: what is told is why.
        if failure != Unavailable::BreakerOpen || cause.is_none() {
            cause = Some(failure);
        }
        if tokio::time::Instant::now() >= until {
            return Err(cause.unwrap_or(failure).into());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
