use std::{cell::Cell, time::Instant};

/// Tells the time when it is asked, and only then.
///
/// Reading a clock is half the cost of a fast circuit breaker, and most calls never need one, so the algorithms take a
/// clock instead of a time. Tests pass an [`Instant`], which is a clock that stands still.
pub trait Clock {
    /// The current monotonic time. It should not go back; where it does, the algorithms treat the step as zero.
    fn now(&self) -> Instant;
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
}

/// Reads a clock at most once.
pub(crate) struct Memo<'a, C> {
    clock: &'a C,
    read: Cell<Option<Instant>>,
}

impl<'a, C: Clock> Memo<'a, C> {
    pub(crate) fn new(clock: &'a C) -> Self {
        Self { clock, read: Cell::new(None) }
    }
}

impl<C: Clock> Clock for Memo<'_, C> {
    #[inline]
    fn now(&self) -> Instant {
        match self.read.get() {
            Some(now) => now,
            None => {
                let now = self.clock.now();
                self.read.set(Some(now));
                now
            }
        }
    }
}
