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

/// Does `work` where it holds up nobody, and says how long to rest after it.
async fn aside(work: impl FnOnce() + Send + 'static) -> Duration {
    let began = Instant::now();
    // Whatever became of it, the next look comes.
    let _ = tokio::task::spawn_blocking(work).await;
    SOON.max(began.elapsed() * REST)
}

/// Runs until the process ends.
pub(super) async fn forget(current: Arc<ArcSwap<Gateway>>) {
    let (mut learned, mut expired_at) = (0, Instant::now());
    let mut rest = SOON;
    loop {
        tokio::time::sleep(rest).await;
        let gateway = current.load_full();
        let is_due = expired_at.elapsed() >= EVERY;
        if is_due {
            expired_at = Instant::now();
        }
        // Read first: what is learned during the look is looked for again.
        let learned_by_now = gateway.shared.known.learned();
        if is_due || learned_by_now != learned {
            learned = learned_by_now;
            rest = aside(move || look(&gateway, is_due)).await;
        }
    }
}

/// Looks through everything, part by part, so that requests wait for a part at most.
fn look(gateway: &Gateway, is_due: bool) {
    let (known, now) = (&gateway.shared.known, gateway.shared.clock.now());
    if is_due {
        known.expire(now);
    }
    gateway.verifier.forget_unusable(now, |identity| known.is_revoked(identity, now));
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_a_look() {
        let (tell, told) = mpsc::channel();
        // The only thread of this runtime has to get round to the second while the first is under way.
        let look = aside(move || assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(7)));
        let other = async move { tell.send(7) };
        let (rest, sent) = tokio::join!(look, other);
        assert_eq!(sent, Ok(()));
        assert!(rest >= SOON && rest < Duration::from_secs(30) * REST, "{rest:?}");
    }

    #[tokio::test]
    async fn the_rest_is_long_after_a_long_look() {
        let rest = aside(|| std::thread::sleep(Duration::from_millis(50))).await;
        assert!(rest >= Duration::from_millis(50) * REST, "{rest:?}");
    }
}
