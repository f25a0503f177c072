use std::time::Instant;

/// Tells the time when it is asked, and only then.
///
/// Reading a clock is half the cost of a fast circuit breaker, and most calls never need one, so the algorithms take a
/// clock instead of a time. Tests pass an [`Instant`], which is a clock that stands still.
pub trait Clock {
    /// The current monotonic time. It should not go back; where it does, the algorithms treat the step as zero.
    fn now(&self) -> Instant;

    /// The same time, perhaps some milliseconds ago, for a fraction of the cost. For what is measured in tenths of seconds.
    #[inline]
    fn coarse(&self) -> Instant {
        self.now()
    }

    /// The coarse time in nanoseconds of the clock's own count, where it has one that begins at [`zero`](Self::zero). Making an [`Instant`] of it, and a
    /// number of that again, costs more than reading it.
    #[inline]
    fn coarse_nanos(&self) -> Option<u64> {
        None
    }

    /// The moment at which [`coarse_nanos`](Self::coarse_nanos) counts from.
    fn zero(&self) -> Option<Instant> {
        None
    }
}

impl Clock for Instant {
    fn now(&self) -> Instant {
        *self
    }
}

impl<C: Clock + ?Sized> Clock for &C {
    fn now(&self) -> Instant {
        (**self).now()
    }

    fn coarse(&self) -> Instant {
        (**self).coarse()
    }

    fn coarse_nanos(&self) -> Option<u64> {
        (**self).coarse_nanos()
    }

    fn zero(&self) -> Option<Instant> {
        (**self).zero()
    }
}
