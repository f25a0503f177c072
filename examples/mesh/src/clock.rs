//! Wall-clock time for rows in a database.
//!
//! The one place that reads the system's clock: timers and latencies use tokio's, which tests can pause.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970. A clock before 1970 reads as 0, rather than as a panic in somebody's order.
#[allow(clippy::disallowed_methods, reason = "timestamps in rows are wall time, and this is where they come from")]
pub fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}
