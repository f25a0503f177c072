//! The two clocks of the mesh: wall time for rows in a database, and a stopwatch for the demo.
//!
//! Everything else takes its time from the layers and from tokio's timers, which tests can pause.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Milliseconds since 1970. A clock before 1970 reads as 0, rather than as a panic in somebody's order.
#[expect(clippy::disallowed_methods, reason = "timestamps in rows are wall time, and this is where they come from")]
pub fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}

/// The stopwatch.
#[expect(clippy::disallowed_methods, reason = "the demo measures what a customer waits")]
pub fn now() -> Instant {
    Instant::now()
}
