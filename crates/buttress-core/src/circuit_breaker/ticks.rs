use crate::Clock;
use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// The length of a tick in nanoseconds, and so the best precision to which calls are timed.
pub(super) const TICK: u64 = 10_000;
/// The bits of a time in ticks, which are those that a permit has for it. Ticks wrap after 95
/// hours.
pub(super) const TICK_BITS: u32 = 35;
const TICKS: u64 = (1 << TICK_BITS) - 1;
/// Nanoseconds by which the times of two threads may differ. A larger difference means that the
/// clock was set back.
pub(super) const MAX_CLOCK_SKEW: u64 = 2_000_000_000;
/// How far a clock may be set back. A circuit's time begins this long before the first moment at
/// which it reads the clock.
const SET_BACK: Duration = Duration::from_secs(2 * 3600);

/// The time of one circuit: nanoseconds and ticks since an origin of its own.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    origin: OnceLock<Instant>,
    /// By how many nanoseconds this time is ahead of the clock's [`Clock::coarse_nanos`], wrapping.
    coarse_ahead: OnceLock<u64>,
}

impl Timeline {
    /// Returns the nanoseconds since the origin, which the first call sets.
    #[inline]
    pub(super) fn nanos(&self, now: Instant) -> u64 {
        let origin = self.origin.get_or_init(|| now.checked_sub(SET_BACK).unwrap_or(now));
        super::nanos(now.saturating_duration_since(*origin))
    }

    /// Returns the nanoseconds since the origin by the coarse clock.
    #[inline]
    pub(super) fn coarse_nanos(&self, clock: &impl Clock) -> u64 {
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
            // that has just started, the zero is later than the origin of the first circuit.
            let counted = super::nanos(now.saturating_duration_since(zero));
            let _ = self.coarse_ahead.set(nanos.wrapping_sub(counted));
        }
        nanos
    }
}

/// Returns a time of a [`Timeline`] in ticks. Never 0, which stands for a call that is not timed.
#[inline]
pub(super) fn ticks(nanos: u64) -> u64 {
    ((nanos / TICK) & TICKS).max(1)
}

/// Returns the ticks from `started` to `nanos`, up to 93 hours.
#[inline]
pub(super) fn ticks_since(started: u64, nanos: u64) -> u64 {
    const BACK: u64 = SET_BACK.as_secs() * 1_000_000_000 / TICK;
    let elapsed = ticks(nanos).wrapping_sub(started) & TICKS;
    // If the start is after the end, two threads have read the clock, or it was set back.
    if elapsed > TICKS - BACK { 0 } else { elapsed }
}
