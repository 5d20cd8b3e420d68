//! Liveness, readiness and health as answers. Nothing here asks for a credential, so nothing here may cost much:
//! a health reading is shared for half a second.

use http::StatusCode;
use serde::Serialize;
use tokio::sync::Mutex;

use super::operations::{NotReady, Operations};
use super::reply::Reply;
use crate::clock::{Clock, UnixMillis};
use crate::pipeline::health::Health;

/// Milliseconds for which one reading answers everyone.
const SHARED_FOR: u64 = 500;

#[derive(Serialize)]
struct Ready {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// The process runs: anything else would not answer.
pub(super) fn live() -> Reply {
    Reply::json(StatusCode::OK, &Ready { status: "alive", reason: None })
}

/// 200 while new traffic is welcome, else 503 with the reason.
pub(super) fn ready(ready: Result<(), NotReady>) -> Reply {
    match ready {
        Ok(()) => Reply::json(StatusCode::OK, &Ready { status: "ready", reason: None }),
        Err(why) => Reply::json(
            StatusCode::SERVICE_UNAVAILABLE,
            &Ready { status: "not_ready", reason: Some(why.as_str()) },
        ),
    }
}

/// The last health reading. Callers queue for the one that asks, so a flood costs Redis two questions a second.
#[derive(Debug, Default)]
pub(super) struct Recent {
    brief: Mutex<Option<(UnixMillis, Health)>>,
    full: Mutex<Option<(UnixMillis, Health)>>,
}

impl Recent {
    /// A reading at most half a second old.
    pub(super) async fn health(&self, operations: &dyn Operations, clock: &dyn Clock, detail: bool) -> Reply {
        let mut slot = if detail { self.full.lock().await } else { self.brief.lock().await };
        let now = clock.now();
        // A clock that was set back must not keep an old reading alive.
        let fresh = |taken: UnixMillis| now >= taken && now.millis_since(taken) < SHARED_FOR;
        if let Some((taken, health)) = slot.as_ref()
            && fresh(*taken)
        {
            return Reply::json(StatusCode::OK, health);
        }
        let health = operations.health(detail).await;
        let health = if detail { health } else { health.brief() };
        let reply = Reply::json(StatusCode::OK, &health);
        *slot = Some((now, health));
        reply
    }
}
