//! When a call that has not been answered is sent a second time.
//!
//! A hedged call sends a second attempt if the first one has no answer after a [`Delay`], and takes
//! the answer that comes first. The delay decides what that costs: after the 95th percentile of
//! the latency, one call in twenty is sent twice.
//!
//! # The percentile
//!
//! [`Delay::percentile`] learns from the latencies of the last `window`, in a histogram of fixed
//! size: 16 buckets for each power of two of microseconds, up to 67 s. The result is the upper end
//! of a bucket: never less than the percentile, and above it by a sixteenth of it, or 1 µs, at
//! most. Recording is one addition to a counter of the thread's shard. Ten times in each window,
//! one call is elected to compute the percentile, which all others read in one word.
//!
//! What is recorded decides whether the percentile follows a backend that becomes slow. An attempt
//! that loses against a faster one ends early, so it is recorded with the time that it had taken
//! until then, as a lower bound (Finagle does the same). Without these, the slow attempts would be
//! missing, and the percentile would stay low while all calls are slow and are all sent twice.
//!
//! ```
//! use buttress_core::{ManualClock, hedge::Delay};
//! use std::time::Duration;
//!
//! let clock = ManualClock::new();
//! let delay = Delay::<ManualClock>::percentile(95.0).clock(clock.clone()).build()?;
//! for millis in 1..=100 {
//!     delay.record(Duration::from_millis(millis));
//! }
//! assert_eq!(delay.current(), None, "it is computed every 3 s");
//! clock.advance(Duration::from_secs(3));
//! let p95 = delay.current().unwrap();
//! assert!((Duration::from_millis(95)..Duration::from_millis(101)).contains(&p95));
//! # Ok::<(), buttress_core::InvalidConfig>(())
//! ```

mod latencies;

use crate::{Clock, InvalidConfig, Ratio};
use latencies::Latencies;
use std::{sync::Arc, time::Duration};

/// How long a call waits for an answer before it is sent again. A cheap handle; clones share what
/// was learned.
///
/// See the [module](self) for the algorithm and an example.
#[derive(Clone, Debug)]
pub struct Delay<C>(Kind<C>);

#[derive(Clone, Debug)]
enum Kind<C> {
    Fixed(Duration),
    Percentile(Arc<Percentile<C>>),
}

#[derive(Debug)]
struct Percentile<C> {
    clock: C,
    min: Duration,
    max: Duration,
    latencies: Latencies,
}

impl<C: Clock> Delay<C> {
    /// Creates a delay that is always the same. Zero sends the second attempt at once;
    /// [`Duration::MAX`] never sends one for its time.
    ///
    /// ```
    /// use buttress_core::{ManualClock, hedge::Delay};
    /// use std::time::Duration;
    ///
    /// let delay = Delay::<ManualClock>::fixed(Duration::from_millis(30));
    /// assert_eq!(delay.current(), Some(Duration::from_millis(30)));
    /// ```
    pub const fn fixed(delay: Duration) -> Self {
        Self(Kind::Fixed(delay))
    }

    /// Returns the delay, or `None` if calls must not be hedged now: the percentile is unknown or
    /// above its maximum.
    #[inline]
    pub fn current(&self) -> Option<Duration> {
        match &self.0 {
            Kind::Fixed(delay) => Some(*delay),
            Kind::Percentile(percentile) => {
                let Percentile { clock, min, max, latencies } = &**percentile;
                latencies.percentile(clock).map(|learned| learned.max(*min)).filter(|delay| delay <= max)
            }
        }
    }

    /// Records how long an attempt took. Does nothing if the delay is fixed.
    ///
    /// Record an attempt that succeeded, an attempt that timed out, and an attempt that was dropped
    /// after at least the [current](Self::current) delay, because another one won. Do not record
    /// rejections and other failures: they are often fast, and a backend that fails is not a fast
    /// one.
    #[inline]
    pub fn record(&self, elapsed: Duration) {
        if let Kind::Percentile(percentile) = &self.0 {
            percentile.latencies.record(elapsed, &percentile.clock);
        }
    }

    /// Returns whether the delay depends on what is [recorded](Self::record).
    ///
    /// ```
    /// use buttress_core::{ManualClock, hedge::Delay};
    /// use std::time::Duration;
    ///
    /// assert!(!Delay::<ManualClock>::fixed(Duration::ZERO).learns());
    /// ```
    #[inline]
    pub fn learns(&self) -> bool {
        matches!(self.0, Kind::Percentile(_))
    }
}

impl<C: Clock + Default> Delay<C> {
    /// Returns a builder of a delay that is a percentile of the latency, such as 95.0: above 0 and
    /// below 100.
    ///
    /// ```
    /// use buttress_core::{ManualClock, hedge::Delay};
    ///
    /// assert!(Delay::<ManualClock>::percentile(99.9).build().is_ok());
    /// assert_eq!(Delay::<ManualClock>::percentile(100.0).build().unwrap_err().field(), "percentile");
    /// ```
    pub fn percentile(percentile: f64) -> Builder<C> {
        Builder {
            clock: C::default(),
            percentile,
            min: Duration::from_millis(1),
            max: Duration::MAX,
            window: Duration::from_secs(30),
            min_samples: 100,
        }
    }
}

/// Builds a [`Delay`] that is a percentile.
///
/// ```
/// use buttress_core::{ManualClock, hedge::Delay};
/// use std::time::Duration;
///
/// let delay = Delay::<ManualClock>::percentile(99.0)
///     .min(Duration::from_millis(5))
///     .max(Duration::from_secs(1))
///     .window(Duration::from_secs(60))
///     .min_samples(1000)
///     .build()?;
/// assert_eq!(delay.current(), None, "nothing was recorded yet");
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder<C> {
    clock: C,
    percentile: f64,
    min: Duration,
    max: Duration,
    window: Duration,
    min_samples: u32,
}

impl<C: Clock> Builder<C> {
    /// Sets the clock, for tests and simulations.
    pub fn clock<D: Clock>(self, clock: D) -> Builder<D> {
        let Self { clock: _, percentile, min, max, window, min_samples } = self;
        Builder { clock, percentile, min, max, window, min_samples }
    }

    /// Sets the shortest delay, which replaces a lower percentile. Default 1 ms (Finagle), which is
    /// also the resolution of tokio's timers.
    pub fn min(mut self, min: Duration) -> Self {
        self.min = min;
        self
    }

    /// Sets the longest delay. While the percentile is longer, no call is hedged: the backend is
    /// slow for all calls, and more of them do not help. Default: no limit but that of the
    /// histogram, 67 s.
    ///
    /// (Finagle stops hedging at 2 s, the end of its histogram.)
    pub fn max(mut self, max: Duration) -> Self {
        self.max = max;
        self
    }

    /// Sets for how long a latency counts: for nine tenths of this time at least, and all of it at
    /// most. At least 10 ms. Default 30 s (Finagle).
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Sets how many latencies of the window make the percentile known. At least 1. Default 100.
    pub fn min_samples(mut self, min_samples: u32) -> Self {
        self.min_samples = min_samples;
        self
    }

    /// Creates the delay.
    ///
    /// # Errors
    /// If a value is out of its range. The error names the setting and the rule that it breaks.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, hedge::Delay};
    ///
    /// let error = Delay::<ManualClock>::percentile(95.0).min_samples(0).build().unwrap_err();
    /// assert_eq!(error.field(), "min_samples");
    /// ```
    pub fn build(self) -> Result<Delay<C>, InvalidConfig> {
        let Self { clock, percentile, min, max, window, min_samples } = self;
        let share = Ratio::new(percentile / 100.0).filter(|share| !share.is_zero() && share.as_f64() < 1.0);
        let share = share.ok_or(InvalidConfig::new("percentile", "must be above 0 and below 100"))?;
        if min > max {
            return Err(InvalidConfig::new("max", "must be at least `min`"));
        }
        if window < Duration::from_millis(10) {
            return Err(InvalidConfig::new("window", "must be at least 10 ms"));
        }
        if min_samples == 0 {
            return Err(InvalidConfig::new("min_samples", "must be at least 1"));
        }
        let latencies = Latencies::new(share, window, min_samples);
        Ok(Delay(Kind::Percentile(Arc::new(Percentile { clock, min, max, latencies }))))
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
