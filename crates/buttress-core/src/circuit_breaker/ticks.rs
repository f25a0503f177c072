use crate::Clock;
use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Nanoseconds of a tick: calls are timed to within these.
pub(super) const TICK: u64 = 10_000;
/// Ticks are counted in as many bits as a permit has for them, and wrap after 95 hours.
pub(super) const TICK_BITS: u32 = 35;
const TICKS: u64 = (1 << TICK_BITS) - 1;
/// How far a clock may be set back: a circuit's time begins this long before the first moment that
/// it sees.
const SET_BACK: Duration = Duration::from_secs(2 * 3600);

/// The time of one circuit: nanoseconds and ticks since a moment of its own.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    origin: OnceLock<Instant>,
    /// By how many nanoseconds this time is ahead of that of a clock that counts its own.
    coarse_ahead: OnceLock<u64>,
}

impl Timeline {
    #[inline]
    pub(super) fn nanos(&self, now: Instant) -> u64 {
        let origin = self.origin.get_or_init(|| now.checked_sub(SET_BACK).unwrap_or(now));
        super::nanos(now.saturating_duration_since(*origin))
    }

    /// The time by the coarse clock.
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
            // Wrapping: the origin can be before the clock's zero or after it. A machine that has
            // just been started has a zero that is later than the origin of its first circuit.
            let counted = super::nanos(now.saturating_duration_since(zero));
            let _ = self.coarse_ahead.set(nanos.wrapping_sub(counted));
        }
        nanos
    }

    /// The time in ticks. It is never 0, which stands for a call that is not timed.
    #[inline]
    pub(super) fn ticks(&self, now: Instant) -> u64 {
        ((self.nanos(now) / TICK) & TICKS).max(1)
    }

    /// The ticks since `started`. Exact up to 93 hours.
    #[inline]
    pub(super) fn ticks_since(&self, started: u64, now: Instant) -> u64 {
        const BACK: u64 = SET_BACK.as_secs() * 1_000_000_000 / TICK;
        let elapsed = self.ticks(now).wrapping_sub(started) & TICKS;
        // A call that seems to start later than it ends was timed by two clocks, or by one that was
        // set back.
        if elapsed > TICKS - BACK { 0 } else { elapsed }
    }
}
