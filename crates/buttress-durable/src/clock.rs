//! Wall time: for rows that outlive the process, and the one place that reads it.
//!
//! Deadlines, leases and pauses are stored as moments, so that another process can judge them after a restart; a
//! monotonic clock cannot do that. Wall time may jump. A jump can make a lease end early or late, and the generation of
//! the lease then decides who may write: clocks affect how soon work goes on, never whether two workers both succeed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A moment in milliseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

/// Where the time comes from: the machine, or a [`ManualClock`] in a test.
#[derive(Clone, Debug, Default)]
pub struct Clock(Source);

/// A clock that stands still until it is moved.
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
    /// A moment as milliseconds since 1970.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This moment and a while; the end of time if that overflows.
    #[must_use]
    pub fn plus(self, pause: Duration) -> Self {
        Self(self.0.saturating_add(millis(pause)))
    }

    /// This moment less a while.
    #[must_use]
    pub fn minus(self, pause: Duration) -> Self {
        Self(self.0.saturating_sub(millis(pause)))
    }

    /// The time from `earlier` until this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

// === impl Clock ===

impl Clock {
    /// The machine's clock. The default.
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// Now. A machine whose clock stands before 1970 reads as 1970.
    #[expect(clippy::disallowed_methods, reason = "moments in rows are wall time, and this is where they come from")]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => Timestamp(millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())),
            Source::Manual(now) => Timestamp(now.load(Ordering::SeqCst)),
        }
    }
}

// === impl ManualClock ===

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: Timestamp) -> Self {
        Self(Arc::new(AtomicI64::new(now.0)))
    }

    /// Moves the clock on.
    pub fn advance(&self, pause: Duration) {
        self.0.fetch_add(millis(pause), Ordering::SeqCst);
    }

    /// A clock that shows what this one is set to.
    pub fn clock(&self) -> Clock {
        Clock(Source::Manual(self.0.clone()))
    }
}
