use crate::timeline::SET_BACK;

/// The length of a tick in nanoseconds, and so the best precision to which calls are timed.
pub(super) const TICK: u64 = 10_000;
/// The bits of a time in ticks, which are those that a permit has for it. Ticks wrap after 95
/// hours.
pub(super) const TICK_BITS: u32 = 35;
const TICKS: u64 = (1 << TICK_BITS) - 1;

/// Returns a time of a [`Timeline`](crate::timeline::Timeline) in ticks. Never 0, which stands for
/// a call that is not timed.
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
