use super::NEAR;
use crate::Clock;
use std::time::{Duration, Instant};

/// The moment at which the result of a call is of no use any more, as an extension of its request.
///
/// It is monotonic and of this process.
///
/// ```
/// use buttress_core::{Clock, ManualClock, deadline::Deadline};
/// use std::time::Duration;
///
/// let now = ManualClock::new().now();
/// let deadline = Deadline(now + Duration::from_secs(2));
/// assert_eq!(deadline.left(now), Duration::from_secs(2));
/// assert_eq!(deadline.left(now + Duration::from_secs(3)), Duration::ZERO);
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// Returns the time that is left at `now`, zero if the deadline has passed.
    pub fn left(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }

    /// Returns the time that is left on `clock`, which is read precisely only if the deadline is
    /// near. Up to some milliseconds too long if more than 250 ms are left.
    ///
    /// ```
    /// use buttress_core::{Clock, ManualClock, deadline::Deadline};
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new();
    /// let deadline = Deadline(clock.now() + Duration::from_secs(2));
    /// clock.advance(Duration::from_secs(1));
    /// assert_eq!(deadline.left_on(&clock), Duration::from_secs(1));
    /// ```
    #[inline]
    pub fn left_on(self, clock: &impl Clock) -> Duration {
        let left = self.left(clock.coarse());
        if left < NEAR { self.left(clock.now()) } else { left }
    }
}

/// What is known of the time of one call.
///
/// ```
/// use buttress_core::deadline::Terms;
/// use std::time::Duration;
///
/// let terms = Terms { asked: Some(Duration::from_secs(60)), max: Some(Duration::from_secs(5)), ..Terms::default() };
/// assert_eq!(terms.limit(), Some(Duration::from_secs(5)));
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Terms {
    /// The time that the request grants, from now on.
    pub asked: Option<Duration>,
    /// The deadline that the request has as an extension.
    pub until: Option<Instant>,
    /// The limit if the request grants no time. `None`: no limit.
    pub default: Option<Duration>,
    /// The longest time, whatever the request grants. `None`: no limit.
    pub max: Option<Duration>,
    /// The least time for which a call is started.
    pub min_useful: Duration,
}

impl Terms {
    /// Returns the time that the call gets from now on, apart from deadlines that are moments.
    #[inline]
    pub fn limit(&self) -> Option<Duration> {
        earlier(self.asked.or(self.default), self.max)
    }
}

/// Returns the lesser one, where `None` is no limit.
#[inline]
pub(super) fn earlier<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
