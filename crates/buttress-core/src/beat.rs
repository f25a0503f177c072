//! Work that the calls of a policy do at intervals, in place of a task.

use crate::sync::{AtomicU64, Ordering};
use crate::timeline::MAX_CLOCK_SKEW;

/// Elects one call for each interval. Calls in between read one word.
#[derive(Debug)]
pub(crate) struct Beat {
    /// When the next interval begins, in nanoseconds; 0 before the first call.
    next: AtomicU64,
    every: u64,
}

impl Beat {
    /// `every` is in nanoseconds, above 0.
    pub(crate) fn new(every: u64) -> Self {
        Self { next: AtomicU64::new(0), every: every.max(1) }
    }

    /// Returns the number of intervals that have ended at `now`, to one of the calls that ask at
    /// their end. The first call ends one.
    #[inline]
    pub(crate) fn ended(&self, now: u64) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        if now < next && next - now <= self.every.saturating_add(MAX_CLOCK_SKEW) {
            return None;
        }
        self.elect(next, now)
    }

    #[cold]
    #[inline(never)]
    fn elect(&self, next: u64, now: u64) -> Option<u64> {
        let after = now.saturating_add(self.every);
        self.next.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        // A clock that was set back ends one interval.
        let ended = if next == 0 { 0 } else { now.saturating_sub(next) / self.every };
        Some(ended + 1)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_call_of_each_interval_is_elected_and_gets_those_without_calls() {
        let beat = Beat::new(10);
        assert_eq!([beat.ended(1_000), beat.ended(1_000), beat.ended(1_009)], [Some(1), None, None]);
        assert_eq!([beat.ended(1_010), beat.ended(1_019)], [Some(1), None]);
        assert_eq!(beat.ended(1_055), Some(4));
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_stop_it() {
        let beat = Beat::new(10);
        let (late, early) = (10 * MAX_CLOCK_SKEW, MAX_CLOCK_SKEW);
        assert_eq!([beat.ended(late), beat.ended(early), beat.ended(early + 9)], [Some(1), Some(1), None]);
        assert_eq!(beat.ended(early + 10), Some(1));
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::loom_models::model;
    use loom::{sync::Arc, thread};

    #[test]
    fn of_two_calls_at_the_end_of_an_interval_one_is_elected() {
        model(|| {
            let beat = Arc::new(Beat::new(10));
            let thread = {
                let beat = beat.clone();
                thread::spawn(move || beat.ended(100).is_some())
            };
            let mine = beat.ended(100).is_some();
            assert!(mine ^ thread.join().unwrap());
        });
    }
}
