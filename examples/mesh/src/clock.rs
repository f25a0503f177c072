//! The two clocks of the mesh: wall time for database rows, and a monotonic clock for the demo.
//!
//! All other code takes its time from the layers and from tokio's timers, which tests can pause.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Milliseconds since 1970. A clock before 1970 reads as 0 instead of causing a panic while an
/// order is handled.
#[expect(clippy::disallowed_methods, reason = "timestamps in rows are wall time, and only this function reads it")]
pub fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "the demo measures real latencies")]
pub fn now() -> Instant {
    Instant::now()
}
