use buttress_core::Clock;
use std::{sync::OnceLock, time::Instant};
use tokio::runtime::Builder;

/// Tokio's clock, the only clock of the layers. `tokio::time::pause` pauses all of them.
///
/// Where a few milliseconds do not matter, the layers read `CLOCK_MONOTONIC_COARSE` on Linux, which
/// is cheaper. A rate limit reads the counter of the processor, where that runs at a constant rate,
/// through the crate `quanta`. With tokio's feature `test-util`, by which the clock can be paused,
/// all of them read tokio's clock.
///
/// ```
/// use buttress::policy::{Clock, TokioClock};
///
/// let start = TokioClock.now();
/// assert!(TokioClock.now() >= start);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioClock;

impl Clock for TokioClock {
    #[inline]
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads a clock")]
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[inline]
    fn precise_nanos(&self) -> Option<u64> {
        let counter = COUNTER.get_or_init(counter).as_ref()?;
        Some(counter.clock.delta_as_nanos(counter.zero, counter.clock.raw()))
    }

    #[cfg(target_os = "linux")]
    #[inline]
    fn coarse(&self) -> Instant {
        linux::coarse().unwrap_or_else(|| self.now())
    }

    #[cfg(target_os = "linux")]
    #[inline]
    fn coarse_nanos(&self) -> Option<u64> {
        linux::coarse_nanos()
    }

    #[cfg(target_os = "linux")]
    fn zero(&self) -> Option<Instant> {
        linux::zero()
    }
}

/// The counter of the processor, and its value at the first reading.
#[derive(Debug)]
struct Counter {
    clock: quanta::Clock,
    zero: u64,
}

static COUNTER: OnceLock<Option<Counter>> = OnceLock::new();

/// Compares the counter with the clock of the system, for about a millisecond, and for 200 ms where
/// the machine is very busy: once in a process, when it makes its first rate limit.
#[cold]
fn counter() -> Option<Counter> {
    if can_be_paused() {
        return None;
    }
    let clock = quanta::Clock::new();
    let zero = clock.raw();
    Some(Counter { clock, zero })
}

/// Detects whether tokio was compiled with `test-util`. `Builder::start_paused` exists only with
/// it. Method resolution prefers the inherent method, which returns a `Builder` and not `Missing`.
fn can_be_paused() -> bool {
    Builder::new_current_thread().start_paused(false).exists()
}

#[allow(dead_code, reason = "used without `test-util` only")]
trait Pausable {
    fn start_paused(&mut self, _: bool) -> Missing {
        Missing
    }
}

impl Pausable for Builder {}

#[allow(dead_code, reason = "used without `test-util` only")]
struct Missing;

trait Exists {
    fn exists(&self) -> bool;
}

impl Exists for Missing {
    fn exists(&self) -> bool {
        false
    }
}

impl Exists for Builder {
    fn exists(&self) -> bool {
        true
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{Clock, TokioClock, can_be_paused};
    use rustix::time::{ClockId, Timespec, clock_gettime};
    use std::{
        sync::OnceLock,
        time::{Duration, Instant},
    };

    /// The same moment on both clocks.
    ///
    /// `CLOCK_MONOTONIC_COARSE` shows `CLOCK_MONOTONIC` as of the kernel's last tick. Nanoseconds
    /// count from one day before the first reading: circuits may be older than that reading, and
    /// their times must not be negative.
    struct Base {
        zero: Instant,
        nanos: u64,
    }

    static BASE: OnceLock<Option<Base>> = OnceLock::new();

    const DAY: Duration = Duration::from_secs(86_400);

    #[inline]
    pub(super) fn coarse_nanos() -> Option<u64> {
        let base = BASE.get_or_init(base).as_ref()?;
        Some(nanos(clock_gettime(ClockId::MonotonicCoarse)).saturating_sub(base.nanos))
    }

    #[inline]
    pub(super) fn coarse() -> Option<Instant> {
        let elapsed = coarse_nanos()?;
        Some(zero()? + Duration::from_nanos(elapsed))
    }

    pub(super) fn zero() -> Option<Instant> {
        Some(BASE.get_or_init(base).as_ref()?.zero)
    }

    #[cold]
    fn base() -> Option<Base> {
        if can_be_paused() {
            return None;
        }
        let (now, now_nanos) = (TokioClock.now(), nanos(clock_gettime(ClockId::Monotonic)));
        // A machine that has been up for less than a day counts from its start.
        let day = u64::try_from(DAY.as_nanos()).unwrap_or(u64::MAX).min(now_nanos);
        Some(Base { zero: now.checked_sub(Duration::from_nanos(day))?, nanos: now_nanos - day })
    }

    #[inline]
    fn nanos(time: Timespec) -> u64 {
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }
}
