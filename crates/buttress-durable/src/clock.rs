//! Wall-clock time for rows that outlive the process. No other module reads the system clock.
//!
//! Deadlines, leases and pauses are stored as timestamps, so that another process can evaluate them
//! after a restart; a monotonic clock cannot do that. Wall time may jump. A jump can end a lease
//! early or late, and the generation of the lease then decides who may write. So clocks affect when
//! work continues, never whether two owners both write.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A moment: milliseconds since 1970-01-01 UTC.
///
/// ```
/// use buttress_durable::Timestamp;
/// use std::time::Duration;
///
/// let start = Timestamp::from_millis(1_000);
/// let end = start.plus(Duration::from_millis(500));
/// assert_eq!(end.since(start), Duration::from_millis(500));
/// assert_eq!(start.since(end), Duration::ZERO);
/// ```
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

/// A source of wall-clock time: the system clock, or a [`ManualClock`] in a test.
///
/// ```
/// use buttress_durable::{Clock, Timestamp};
///
/// assert!(Clock::system().now() > Timestamp::from_millis(0));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Clock(Source);

/// A clock for tests, which moves only when it is advanced.
///
/// ```
/// use buttress_durable::{ManualClock, Timestamp};
/// use std::time::Duration;
///
/// let hand = ManualClock::new(Timestamp::from_millis(1_000));
/// let clock = hand.clock();
/// hand.advance(Duration::from_secs(2));
/// assert_eq!(clock.now().as_millis(), 3_000);
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicI64>);

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    System,
    Manual(Arc<AtomicI64>),
}

// === impl Timestamp ===

impl Timestamp {
    /// Creates a timestamp from milliseconds since 1970.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Returns the milliseconds since 1970.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Adds a duration. Saturates at the largest timestamp.
    #[must_use]
    pub fn plus(self, pause: Duration) -> Self {
        Self(self.0.saturating_add(millis(pause)))
    }

    /// Subtracts a duration. Saturates at the smallest timestamp.
    #[must_use]
    pub fn minus(self, pause: Duration) -> Self {
        Self(self.0.saturating_sub(millis(pause)))
    }

    /// Returns the time from `earlier` to this moment, or zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// Returns the time of tokio's clock, for pauses inside this process: it never jumps, and follows a
/// paused clock in tests.
#[expect(clippy::disallowed_methods, reason = "the only place that reads it")]
pub(crate) fn monotonic() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

// === impl Clock ===

impl Clock {
    /// The system clock. This is the default.
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// Returns the current time. A system clock set before 1970 reads as 1970.
    #[expect(clippy::disallowed_methods, reason = "moments in rows are wall time, and this is where they come from")]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => Timestamp(millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())),
            Source::Manual(now) => Timestamp(now.load(Ordering::SeqCst)),
        }
    }

    pub(crate) fn is_manual(&self) -> bool {
        matches!(self.0, Source::Manual(_))
    }
}

// === impl ManualClock ===

impl ManualClock {
    /// Creates a clock that reads `now`.
    pub fn new(now: Timestamp) -> Self {
        Self(Arc::new(AtomicI64::new(now.0)))
    }

    /// Advances the clock.
    pub fn advance(&self, pause: Duration) {
        self.0.fetch_add(millis(pause), Ordering::SeqCst);
    }

    /// Returns a [`Clock`] that reads this one.
    pub fn clock(&self) -> Clock {
        Clock(Source::Manual(self.0.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_move_by_milliseconds_and_stop_at_the_ends() {
        let (start, pause) = (Timestamp::from_millis(1_000), Duration::from_micros(1_999));
        assert_eq!((start.plus(pause).as_millis(), start.minus(pause).as_millis()), (1_001, 999));
        assert_eq!(start.plus(Duration::MAX).as_millis(), i64::MAX);
        let first = Timestamp::from_millis(i64::MIN);
        assert_eq!(first.minus(pause), first);
        assert_eq!(start.since(start.minus(pause)), Duration::from_millis(1));
    }

    #[test]
    fn all_clocks_of_a_hand_show_the_same() {
        let hand = ManualClock::new(Timestamp::from_millis(5));
        let (clock, other) = (hand.clock(), hand.clone());
        other.advance(Duration::from_secs(1));
        assert_eq!((clock.now(), hand.clock().now()), (Timestamp::from_millis(1_005), Timestamp::from_millis(1_005)));
    }
}
