//! Reads `[sessions]`.

use std::time::Duration;

use super::reader::Reader;
use super::spec::Sessions;
use super::value::Size;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
/// As many as the stored value of one user holds.
const MOST: u32 = crate::sessions::record::MAX_SESSIONS;

pub(super) fn sessions(root: &Reader<'_>) -> Sessions {
    let reader = root.section("sessions");
    let Size(peek) = reader.get("peek");
    if !reader.reported("peek") && !(1 << 10..=1 << 20).contains(&peek) {
        reader.refuse("peek", "is out of range; accepted: 1 KiB to 1 MiB");
    }
    let sessions = Sessions {
        idle: reader.duration("idle", SECOND..=366 * DAY),
        absolute: reader.duration("absolute", SECOND..=3_660 * DAY),
        max_per_user: reader.within::<u32>("max_per_user", 1..=MOST).try_into().unwrap_or(1),
        peek: usize::try_from(peek).unwrap_or(usize::MAX),
        sweep: reader.duration("sweep", SECOND..=7 * DAY),
    };
    if sessions.absolute < sessions.idle && !reader.reported("absolute") && !reader.reported("idle") {
        reader.refuse("absolute", "is shorter than sessions.idle; accepted: at least as long");
    }
    sessions
}
