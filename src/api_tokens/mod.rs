//! API tokens: opaque credentials that the gateway issues itself, stored as a hash in the store of all instances, or in
//! memory where there is none. What a token stands for is an [`crate::identity::Identity`] like any other.

mod hand_over;
mod held;
mod known;
mod record;
mod store;
mod token;
mod turns;

pub use self::held::Hold;
pub use self::known::{Entry, Used, Verdict};
pub use self::record::{MAX_LIFE, MAX_LIMIT, MAX_MULTIPLIER, Naming, Order, OwnLimits, Unusable};
pub use self::store::{ApiTokens, List, Listed, Made, Problem};
pub use self::token::{ID_CHARACTERS, Id, Issued, Presented, is_api_token};
