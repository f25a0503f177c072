//! The time of one policy, in nanoseconds.

use crate::Clock;
use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Nanoseconds by which the times of two threads may differ. A larger difference means that the
/// clock was set back.
pub(crate) const MAX_CLOCK_SKEW: u64 = 2_000_000_000;
/// How far a clock may be set back. A policy's time begins this long before the first moment at
/// which it reads the clock.
pub(crate) const SET_BACK: Duration = Duration::from_secs(2 * 3600);

/// Nanoseconds since an origin of the policy's own.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    origin: OnceLock<Instant>,
    /// By how many nanoseconds this time is ahead of the clock's [`Clock::coarse_nanos`], wrapping.
    coarse_ahead: OnceLock<u64>,
}

impl Timeline {
    /// Returns the nanoseconds since the origin, which the first call sets.
    #[inline]
    pub(crate) fn nanos(&self, now: Instant) -> u64 {
        let origin = self.origin.get_or_init(|| now.checked_sub(SET_BACK).unwrap_or(now));
        nanos(now.saturating_duration_since(*origin))
    }

    /// Returns the nanoseconds since the origin by the coarse clock.
    #[inline]
    pub(crate) fn coarse_nanos(&self, clock: &impl Clock) -> u64 {
        match (clock.coarse_nanos(), self.coarse_ahead.get()) {
            (Some(nanos), Some(ahead)) => (nanos.wrapping_add(*ahead) as i64).max(0) as u64,
            (Some(_), None) => self.first_coarse_nanos(clock),
            (None, _) => self.nanos(clock.coarse()),
        }
    }

    #[cold]
    #[inline(never)]
    fn first_coarse_nanos(&self, clock: &impl Clock) -> u64 {
        let now = clock.now();
        let nanos = self.nanos(now);
        if let Some(zero) = clock.zero() {
            // Wrapping, because the origin can be before the clock's zero or after it. On a machine
            // that has just started, the zero is later than the origin of the first policy.
            let counted = self::nanos(now.saturating_duration_since(zero));
            let _ = self.coarse_ahead.set(nanos.wrapping_sub(counted));
        }
        nanos
    }
}

/// Returns the nanoseconds, limited to `u64::MAX`, which are 584 years.
#[inline]
pub(crate) fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos().into())
}
