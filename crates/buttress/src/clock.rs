use buttress_core::Clock;
use std::time::Instant;

/// Tokio's clock. The only clock of the layers, so that `tokio::time::pause` pauses them all.
///
/// Where a few milliseconds do not matter, on Linux, it reads `CLOCK_MONOTONIC_COARSE`, at a fraction of the price. A tokio that can
/// be paused, because its feature `test-util` is on, is always asked itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioClock;

impl Clock for TokioClock {
    #[inline]
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads a clock")]
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
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

#[cfg(target_os = "linux")]
mod linux {
    use super::{Clock, TokioClock};
    use rustix::time::{ClockId, Timespec, clock_gettime};
    use std::{
        sync::OnceLock,
        time::{Duration, Instant},
    };
    use tokio::runtime::Builder;

    /// One moment by both clocks. The coarse one shows the same time as the fine one, as of the kernel's last tick. The count begins a day before the
    /// first reading, so that circuits that are older than it can be told.
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
        let can_be_paused = Builder::new_current_thread().start_paused(false).exists();
        if can_be_paused {
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

    /// Tells whether tokio was compiled with `test-util`: `Builder::start_paused` exists with it only. Where it exists, the method of the
    /// type itself is found before this one, and returns something else.
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
}
