use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::timeline::MAX_CLOCK_SKEW;
use std::time::Duration;

/// The share of calls that is admitted at the beginning of the ramp, in units of 1 / [`SCALE`]: 10
/// %, as Envoy's slow start.
const FIRST_SHARE: u64 = SCALE / 10;
const SCALE: u64 = 1_000_000;

/// Admits a growing share of the calls for some time after a circuit has closed.
#[derive(Debug, Default)]
pub(super) struct Ramp {
    /// The time at which the ramp began, in nanoseconds; 0 without a ramp.
    from: AtomicU64,
    /// The number of calls since then, admitted or not.
    calls: AtomicU32,
}

impl Ramp {
    /// Begins a ramp at `nanos`.
    pub(super) fn begin(&self, nanos: u64) {
        self.from.store(nanos.max(1), Ordering::Release);
        self.calls.store(0, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.from.store(0, Ordering::Release);
        self.calls.store(0, Ordering::Relaxed);
    }

    /// Returns the time at which the ramp began, in nanoseconds; `None` without a ramp.
    #[inline(always)]
    pub(super) fn begun(&self) -> Option<u64> {
        Some(self.from.load(Ordering::Relaxed)).filter(|from| *from != 0)
    }

    /// Admits a share of the calls: a tenth at first, all of them after `length` nanoseconds.
    ///
    /// Call number `n` is admitted if the share of `n + 1` calls contains one more whole call than
    /// that of `n` calls, so the share is exact without a random number.
    ///
    /// # Errors
    /// The time after which to try again. The calls that are not admitted are spread over the rest
    /// of the ramp: if they retried together, or often, the share of the calls would not be a share
    /// of the work.
    #[cold]
    #[inline(never)]
    pub(super) fn admits(&self, from: u64, now: u64, length: u64) -> Result<(), Duration> {
        let length = length.max(1);
        let elapsed = now.saturating_sub(from);
        if from.saturating_sub(now) > MAX_CLOCK_SKEW {
            // The clock was set back: start the ramp again.
            let _ = self.from.compare_exchange(from, now.max(1), Ordering::Relaxed, Ordering::Relaxed);
        }
        if elapsed >= length {
            let _ = self.from.compare_exchange(from, 0, Ordering::Relaxed, Ordering::Relaxed);
            return Ok(());
        }
        let grown = (u128::from(elapsed) * u128::from(SCALE) / u128::from(length)) as u64;
        let share = grown.max(FIRST_SHARE);
        let n = u64::from(self.calls.fetch_add(1, Ordering::Relaxed));
        if (n + 1) * share / SCALE > n * share / SCALE {
            return Ok(());
        }
        // The fractional parts of multiples of the golden ratio are spread evenly, for any number
        // of them.
        const GOLDEN: u64 = 618_034;
        let later = u128::from(length - elapsed) * u128::from(n * GOLDEN % SCALE) / u128::from(SCALE);
        Err(Duration::from_nanos((later as u64).max(1)))
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::loom_models::model;
    use loom::{sync::Arc, thread};

    const LENGTH: u64 = 1_000;

    #[test]
    fn of_two_calls_at_once_half_way_one_is_admitted() {
        model(|| {
            let ramp = Arc::new(Ramp::default());
            ramp.begin(1);
            let call = |ramp: Arc<Ramp>| move || ramp.admits(1, 1 + LENGTH / 2, LENGTH).is_ok();
            let thread = thread::spawn(call(ramp.clone()));
            let mine = call(ramp)();
            assert!(mine ^ thread.join().unwrap());
        });
    }
}
