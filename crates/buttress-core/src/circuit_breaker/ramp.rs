use super::circuit::RACE;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The share of the calls that a circuit admits at the beginning of its recovery, of [`SCALE`].
const FIRST_SHARE: u64 = SCALE / 10;
const SCALE: u64 = 1_000_000;

/// Admits a growing share of the calls for a while after a circuit has closed.
#[derive(Debug, Default)]
pub(super) struct Ramp {
    /// The nanoseconds at which it began; 0 while there is none.
    from: AtomicU64,
    /// Calls that asked since then.
    asked: AtomicU32,
}

impl Ramp {
    /// Begins at `nanos`.
    pub(super) fn begin(&self, nanos: u64) {
        self.from.store(nanos.max(1), Ordering::Release);
        self.asked.store(0, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.from.store(0, Ordering::Release);
        self.asked.store(0, Ordering::Relaxed);
    }

    /// The nanoseconds at which it began, while there is one.
    #[inline(always)]
    pub(super) fn begun(&self) -> Option<u64> {
        Some(self.from.load(Ordering::Relaxed)).filter(|from| *from != 0)
    }

    /// Decides whether a call is admitted, `length` nanoseconds being the whole ramp: a tenth of
    /// the calls at first, all of them at the end. Every call counts, and those are admitted at
    /// which the growing share completes another whole one, so the share is exact without a random
    /// number.
    ///
    /// # Errors
    /// When it is worth asking again. Calls that wait are spread over the rest of the ramp: if they
    /// came back together, or often, the share of the calls would not be a share of the work.
    #[cold]
    #[inline(never)]
    pub(super) fn admits(&self, from: u64, now: u64, length: u64) -> Result<(), Duration> {
        let length = length.max(1);
        let elapsed = now.saturating_sub(from);
        if from.saturating_sub(now) > RACE {
            // The clock was set back: the ramp begins anew.
            let _ = self.from.compare_exchange(from, now.max(1), Ordering::Relaxed, Ordering::Relaxed);
        }
        if elapsed >= length {
            let _ = self.from.compare_exchange(from, 0, Ordering::Relaxed, Ordering::Relaxed);
            return Ok(());
        }
        let grown = (u128::from(elapsed) * u128::from(SCALE) / u128::from(length)) as u64;
        let share = grown.max(FIRST_SHARE);
        let n = u64::from(self.asked.fetch_add(1, Ordering::Relaxed));
        if (n + 1) * share / SCALE > n * share / SCALE {
            return Ok(());
        }
        // Multiples of the golden ratio spread evenly, however many there are.
        const GOLDEN: u64 = 618_034;
        let later = u128::from(length - elapsed) * u128::from(n * GOLDEN % SCALE) / u128::from(SCALE);
        Err(Duration::from_nanos((later as u64).max(1)))
    }
}
