//! The order of a request through the gateway, one file per step.

pub mod admit;
mod api_token;
pub mod context;
mod exchange;
pub mod gateway;
pub mod give_back;
pub mod head;
pub mod health;
pub mod heartbeat;
mod invalidate;
mod limit;
pub mod login;
mod lookup;
pub mod outcome;
pub mod overwritten;
pub mod quota;
pub mod reconcile;
mod recovery;
pub mod refusal;
pub mod reply;
mod restore;
mod revoke;
pub mod sessions;
mod user_limits;
mod vouch;
mod watched;

pub use self::admit::{CacheUse, Origin, Request, admit, find_param};
pub use self::context::{Admission, Admitted, Context};
pub use self::exchange::{Exchange, GATE, REFUND, native_pipeline};
pub use self::gateway::{Gateway, Shared, Timeouts};
pub use self::recovery::Recoverer;
pub use self::refusal::{Limited, Refusal};
pub use self::reply::Reply;
