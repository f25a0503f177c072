use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A source of monotonic time.
///
/// A policy owns its clock and reads it only when it needs the time: a reading can cost as much as
/// all else that a closed circuit breaker does for a call, and most calls need none. In production
/// the clock is a type of size zero. Tests and simulations use a [`ManualClock`]. An [`Instant`] is
/// a clock that always shows that moment.
///
/// ```
/// use buttress_core::Clock;
/// use std::time::Instant;
///
/// #[derive(Clone, Debug, Default)]
/// struct SystemClock;
///
/// impl Clock for SystemClock {
///     fn now(&self) -> Instant {
///         Instant::now()
///     }
/// }
///
/// assert!(SystemClock.now() <= SystemClock.now());
/// ```
pub trait Clock: Clone + fmt::Debug + Send + Sync + 'static {
    /// Returns the current time. It should not go back. If it does, the algorithms treat the
    /// elapsed time as zero.
    fn now(&self) -> Instant;

    /// Returns a time that may be some milliseconds behind [`now`](Self::now), at a fraction of its
    /// cost. Used where a precision of 100 ms is enough. Calls [`now`](Self::now) by default.
    #[inline]
    fn coarse(&self) -> Instant {
        self.now()
    }

    /// Returns the coarse time in nanoseconds since [`zero`](Self::zero), or `None`, the default,
    /// if the clock does not provide it. Converting the number to an [`Instant`] and back would
    /// cost more than reading it.
    #[inline]
    fn coarse_nanos(&self) -> Option<u64> {
        None
    }

    /// Returns the precise time in nanoseconds since a moment that stays the same, or `None`, the
    /// default, if the clock does not provide it. For policies that read the time of every call and
    /// compare only such readings with each other: this clock may drift from [`now`](Self::now) by
    /// some parts in a million.
    #[inline]
    fn precise_nanos(&self) -> Option<u64> {
        None
    }

    /// Returns the moment from which [`coarse_nanos`](Self::coarse_nanos) counts. `None` by
    /// default.
    fn zero(&self) -> Option<Instant> {
        None
    }
}

impl Clock for Instant {
    fn now(&self) -> Instant {
        *self
    }
}

/// A clock that tests and simulations set. A cheap handle; clones show the same time.
///
/// ```
/// use buttress_core::{Clock, ManualClock};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let start = clock.now();
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(clock.now() - start, Duration::from_secs(60));
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Mutex<Instant>>);

impl ManualClock {
    /// Creates a clock that shows the current time until it is changed.
    #[expect(clippy::disallowed_methods, reason = "an Instant can only be made by reading the clock once")]
    pub fn new() -> Self {
        Self::starting_at(Instant::now())
    }

    /// Creates a clock that shows `now` until it is changed.
    ///
    /// ```
    /// use buttress_core::{Clock, ManualClock};
    ///
    /// let start = ManualClock::new().now();
    /// assert_eq!(ManualClock::starting_at(start).now(), start);
    /// ```
    pub fn starting_at(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(now)))
    }

    /// Moves the clock forward by `time`.
    ///
    /// # Panics
    /// If the time overflows [`Instant`].
    pub fn advance(&self, time: Duration) {
        *self.time() += time;
    }

    /// Sets the clock to `now`, forward or back.
    ///
    /// ```
    /// use buttress_core::{Clock, ManualClock};
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new();
    /// let start = clock.now();
    /// clock.advance(Duration::from_secs(60));
    /// clock.set(start);
    /// assert_eq!(clock.now(), start);
    /// ```
    pub fn set(&self, now: Instant) {
        *self.time() = now;
    }

    fn time(&self) -> MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        *self.time()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_manual_clock_stands_still_until_it_is_changed() {
        let clock = ManualClock::default();
        let start = clock.now();
        assert_eq!((clock.now(), clock.coarse()), (start, start));
        clock.advance(SECOND);
        assert_eq!((clock.now(), clock.coarse()), (start + SECOND, start + SECOND));
        clock.set(start);
        assert_eq!(clock.now(), start, "it may be set back");
        assert_eq!((clock.coarse_nanos(), clock.zero()), (None, None));
    }

    #[test]
    fn clones_of_a_manual_clock_show_the_same_time_and_other_clocks_their_own() {
        let clock = ManualClock::new();
        let start = clock.now();
        let (copy, other) = (clock.clone(), ManualClock::starting_at(start));
        copy.advance(SECOND);
        assert_eq!((clock.now(), copy.now(), other.now()), (start + SECOND, start + SECOND, start));
    }

    #[test]
    fn threads_that_advance_a_manual_clock_together_lose_no_time() {
        let clock = ManualClock::new();
        let start = clock.now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| clock.advance(SECOND)));
            }
        });
        assert_eq!(clock.now(), start + 4000 * SECOND);
    }

    #[test]
    fn an_instant_is_a_clock_that_stands_still() {
        let moment = ManualClock::new().now();
        assert_eq!((moment.now(), moment.coarse()), (moment, moment));
    }
}
