//! Letting go, in the background, of what has ended: revocations, and remembered tokens that have expired or were
//! revoked. Requests judge both anew each time; this only returns their memory.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::pipeline::gateway::Gateway;

/// Between two looks for what time has ended.
const EVERY: Duration = Duration::from_secs(60);
/// How soon after a revocation its tokens are let go of.
const SOON: Duration = Duration::from_millis(500);
/// A look takes no larger a part of the time than one in this many.
const REST: u32 = 50;

/// Runs until the process ends.
pub(super) async fn forget(current: Arc<ArcSwap<Gateway>>) {
    let (mut learned, mut expired_at) = (0, Instant::now());
    let mut rest = SOON;
    loop {
        tokio::time::sleep(rest).await;
        let gateway = current.load_full();
        let (known, now) = (&gateway.shared.known, gateway.shared.clock.now());
        let is_due = expired_at.elapsed() >= EVERY;
        if is_due {
            known.expire(now);
            expired_at = Instant::now();
        }
        // Read first: what is learned during the look is looked for again.
        let learned_by_now = known.learned();
        if is_due || learned_by_now != learned {
            let looked_at = Instant::now();
            gateway.verifier.forget_unusable(now, |identity| known.is_revoked(identity, now));
            learned = learned_by_now;
            rest = SOON.max(looked_at.elapsed() * REST);
        }
    }
}
