//! See [`Gradient2`].

mod baseline;

use super::{LimitAlgorithm, Window, nanos, tracked::Tracked};
use crate::InvalidConfig;
use baseline::{Long, Phase};
use std::time::Duration;

/// The default: compares the latency of each window with a baseline, and moves the limit in
/// proportion.
///
/// ```text
/// dropped:             L' = L · backoff                    0.9, or less: see Window::backoff
/// in flight < L / 2:   L' = L
/// otherwise:           g  = clamp(tolerance · baseline / rtt, 0.5, growth)
///                      L' = L + smoothing · (w · (g − 1) + queue)
/// ```
///
/// where `w` is the mean number of calls that [wait](Window::waiting) for their response. Without
/// responses that stream `w` is about `L` in a busy window, and a backend with a queue answers
/// after a time in proportion to `w`: one step of smoothing 1 would reach the goal,
/// `rtt = tolerance · baseline`.
///
/// # The baseline
///
/// The baseline is the latency without a queue. A smaller latency lowers it at once. It rises only
/// with what was measured while at most half of the limit was in use: in quiet windows, or in a
/// *probe*. After [`probe_every`](Builder::probe_every) busy windows, or when the limit has fallen
/// by a quarter since the last probe, a probe halves the waiting calls for two windows, of which
/// the first lets the excess end and the second is measured. The product of half and a tolerance
/// below 2 is less than 1, so a baseline that was measured with a queue leads to a shorter queue at
/// the next probe: sustained overload never becomes the baseline, and a backend that has become
/// slower without a queue gets a new one within a probe.
///
/// # Differences from Netflix
///
/// `Gradient2Limit` of Netflix's concurrency-limits is the formula with a `tolerance` of 1.5,
/// `growth` 1, `smoothing` 0.2, a `queue` of 4 and, as baseline, a moving average over 600 windows,
/// which overload raises. [`Builder::average`] selects that baseline. Three changes apply to both:
/// dropped calls lower the limit although they have no latency; the moving average does not rise
/// while the limit is below half of its largest value in the last 10 windows; and the smallest
/// limit is 4, not 20 (see [`limits`](super::Builder::limits)). The remaining defaults differ
/// because the published ones take more than 2 s to follow a change of capacity; `cargo xtask
/// overload` measures both.
///
/// # Example
///
/// ```
/// use buttress_core::concurrency::{Gradient2, LimitAlgorithm, Window};
/// use std::time::Duration;
///
/// let mut gradient = Gradient2::default();
/// let mut window = Window::new(100);
/// (window.in_flight, window.answered) = (100, 2500);
/// (window.rtt, window.mean_rtt) = (Duration::from_millis(10), Duration::from_millis(10));
/// assert!(gradient.update(&window) > 100, "the first latency is the baseline");
///
/// (window.rtt, window.mean_rtt) = (Duration::from_millis(30), Duration::from_millis(30));
/// assert!(gradient.update(&window) < 100, "three times the baseline");
/// ```
#[derive(Clone, Debug)]
pub struct Gradient2 {
    config: Builder,
    limit: Tracked,
    long: Long,
}

impl Default for Gradient2 {
    fn default() -> Self {
        Self::with(Builder::default())
    }
}

impl Gradient2 {
    /// Returns a builder with the default values.
    ///
    /// ```
    /// use buttress_core::concurrency::Gradient2;
    ///
    /// let algorithm = Gradient2::builder().tolerance(1.25).build()?;
    /// # let _ = algorithm;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn with(config: Builder) -> Self {
        let long = Long::new(config.baseline, config.seed);
        Self { config, limit: Tracked::default(), long }
    }

    /// Returns the next limit of a busy window.
    fn step(&self, limit: f64, window: &Window, baseline: f64) -> f64 {
        let Builder { tolerance, smoothing, growth, queue, .. } = self.config;
        let rtt = (window.rtt.as_nanos() as f64).max(1.0);
        let gradient = (tolerance * baseline / rtt).clamp(0.5, growth);
        limit + smoothing * (window.waiting() * (gradient - 1.0) + queue)
    }
}

impl LimitAlgorithm for Gradient2 {
    fn update(&mut self, window: &Window) -> usize {
        if self.limit.was_changed(window) {
            self.long.end_probe();
        }
        let limit = self.limit.limit(window);
        if window.is_dropping() {
            self.long.end_probe();
            return self.limit.set(limit * window.backoff(), window);
        }
        match self.long.next(window) {
            Phase::Probe => {
                let below = (window.waiting() / 2.0).max(1.0);
                self.limit.publish((limit - below) as usize, window)
            }
            Phase::Hold => window.limit,
            Phase::Step { baseline } if window.is_busy() => {
                let next = self.step(limit, window, baseline);
                self.limit.set(next, window)
            }
            Phase::Step { .. } | Phase::Resume => self.limit.set(limit, window),
        }
    }

    fn baseline(&self) -> Option<Duration> {
        self.long.latency().map(nanos)
    }
}

/// Builds a [`Gradient2`].
///
/// ```
/// use buttress_core::concurrency::Gradient2;
///
/// // The parameters of Netflix's library:
/// let builder = Gradient2::builder().tolerance(1.5).smoothing(0.2).growth(1.0).queue(4.0);
/// let published = builder.average(600).build()?;
/// # let _ = published;
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Builder {
    tolerance: f64,
    smoothing: f64,
    growth: f64,
    queue: f64,
    baseline: Baseline,
    seed: Option<u64>,
}

/// Where the baseline comes from.
#[derive(Clone, Copy, Debug)]
enum Baseline {
    Probes { every: u32 },
    Average { windows: u32 },
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            tolerance: 1.3,
            smoothing: 0.6,
            growth: 1.5,
            queue: 1.0,
            baseline: Baseline::Probes { every: 40 },
            seed: None,
        }
    }
}

impl Builder {
    /// Sets by how much the latency may exceed the baseline: at least 1, and less than 2. By
    /// default 1.3. With the 1.5 of Netflix's library, the 99th percentile of a backend with even
    /// service times is 1.6 times the unloaded one.
    pub fn tolerance(mut self, factor: f64) -> Self {
        self.tolerance = factor;
        self
    }

    /// Sets the share of a step that is taken: more than 0 and at most 1. By default 0.6.
    pub fn smoothing(mut self, share: f64) -> Self {
        self.smoothing = share;
        self
    }

    /// Sets the largest factor by which the limit grows in a window: between 1 and 2. By default
    /// 1.5, so that the tolerance is the bound. With 1 it grows only by [`queue`](Self::queue).
    pub fn growth(mut self, factor: f64) -> Self {
        self.growth = factor;
        self
    }

    /// Sets the calls that may wait in addition: between 0.5 and 100. By default 1. The limit could
    /// not leave a small value without it.
    pub fn queue(mut self, calls: f64) -> Self {
        self.queue = calls;
        self
    }

    /// Probes for the baseline after `windows` busy windows, 15 % more or less at random: between 8
    /// and 10,000. By default 40. At the usual length of a window that is 10 s, and costs up to a
    /// quarter of the capacity for half a second.
    pub fn probe_every(mut self, windows: u32) -> Self {
        self.baseline = Baseline::Probes { every: windows };
        self
    }

    /// Takes a moving average over `windows` windows as the baseline, without probes: between 10
    /// and 100,000.
    pub fn average(mut self, windows: u32) -> Self {
        self.baseline = Baseline::Average { windows };
        self
    }

    /// Seeds the times of the probes.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Creates the algorithm.
    ///
    /// # Errors
    /// If a value is out of its range. The error names the setting and the rule that it breaks.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::concurrency::Gradient2;
    ///
    /// assert_eq!(Gradient2::builder().tolerance(2.0).build().unwrap_err().field(), "tolerance");
    /// ```
    pub fn build(self) -> Result<Gradient2, InvalidConfig> {
        if !(1.0..2.0).contains(&self.tolerance) {
            return Err(InvalidConfig::new("tolerance", "must be at least 1 and less than 2"));
        }
        if !(self.smoothing > 0.0 && self.smoothing <= 1.0) {
            return Err(InvalidConfig::new("smoothing", "must be more than 0 and at most 1"));
        }
        if !(1.0..=2.0).contains(&self.growth) {
            return Err(InvalidConfig::new("growth", "must be between 1 and 2"));
        }
        if !(0.5..=100.0).contains(&self.queue) {
            return Err(InvalidConfig::new("queue", "must be between 0.5 and 100"));
        }
        match self.baseline {
            Baseline::Probes { every } if !(8..=10_000).contains(&every) => {
                Err(InvalidConfig::new("probe_every", "must be between 8 and 10,000 windows"))
            }
            Baseline::Average { windows } if !(10..=100_000).contains(&windows) => {
                Err(InvalidConfig::new("average", "must be between 10 and 100,000 windows"))
            }
            _ => Ok(Gradient2::with(self)),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
