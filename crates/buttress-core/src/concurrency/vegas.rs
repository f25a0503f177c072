use super::{LimitAlgorithm, Window, nanos, tracked::Tracked};
use crate::InvalidConfig;
use fastrand::Rng;
use std::time::Duration;

/// TCP Vegas: estimates the queue from the smallest latency, and keeps it between two bounds.
///
/// ```text
/// q = ceil(L · (1 − rtt0 / rtt))              the estimated queue; rtt0 is the smallest latency
/// dropped:                L' = L − log10 L
/// in flight < L / 2:      L' = L
/// q <= log10 L:           L' = L + beta       nothing waits
/// q < alpha:              L' = L + log10 L
/// q > beta:               L' = L − log10 L
/// ```
///
/// with `alpha = 3 · log10 L` and `beta = 6 · log10 L`, where the logarithm is rounded down and at
/// least 1. After 15 to 30 windows per call of the limit the smallest latency is
/// forgotten. The formula and its
/// defaults are those of `VegasLimit` in Netflix's concurrency-limits, which takes its steps per
/// window when it is used with one.
///
/// A step is a few calls, so it follows large changes slowly, and a new smallest latency that was
/// measured under load leaves a queue of that length behind.
///
/// ```
/// use buttress_core::concurrency::{LimitAlgorithm, Vegas, Window};
/// use std::time::Duration;
///
/// let mut vegas = Vegas::default();
/// let mut window = Window::new(100);
/// (window.in_flight, window.answered, window.rtt) = (100, 500, Duration::from_millis(10));
/// assert_eq!(vegas.update(&window), 100, "the first latency is the smallest");
/// assert_eq!(vegas.update(&window), 112, "nothing waits: one step of beta");
/// ```
#[derive(Clone, Debug)]
pub struct Vegas {
    alpha: f64,
    beta: f64,
    smoothing: f64,
    limit: Tracked,
    /// The smallest latency in nanoseconds.
    smallest: Option<f64>,
    /// Windows since it was forgotten, and the factor of the next time, from 0.5 to 1.
    windows: u32,
    jitter: f64,
    rng: Rng,
}

/// Windows per call of the limit after which the smallest latency is forgotten.
const PROBE: f64 = 30.0;

impl Default for Vegas {
    fn default() -> Self {
        Self::with(3.0, 6.0, 1.0)
    }
}

impl Vegas {
    fn with(alpha: f64, beta: f64, smoothing: f64) -> Self {
        let (limit, rng) = (Tracked::default(), Rng::new());
        Self { alpha, beta, smoothing, limit, smallest: None, windows: 0, jitter: 1.0, rng }
    }

    /// Creates the algorithm. `alpha` and `beta` bound the queue, in multiples of the limit's
    /// logarithm: more than 0, 3 and 6 by default. `smoothing` is the share of a step that is
    /// taken: more than 0 and at most 1, by default 1.
    ///
    /// # Errors
    /// If a value is out of its range.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::concurrency::Vegas;
    ///
    /// assert_eq!(Vegas::new(6.0, 3.0, 1.0).unwrap_err().field(), "beta");
    /// ```
    pub fn new(alpha: f64, beta: f64, smoothing: f64) -> Result<Self, InvalidConfig> {
        if !(alpha > 0.0 && alpha.is_finite()) {
            return Err(InvalidConfig::new("alpha", "must be more than 0"));
        }
        if !(beta >= alpha && beta.is_finite()) {
            return Err(InvalidConfig::new("beta", "must be at least alpha"));
        }
        if !(smoothing > 0.0 && smoothing <= 1.0) {
            return Err(InvalidConfig::new("smoothing", "must be more than 0 and at most 1"));
        }
        Ok(Self::with(alpha, beta, smoothing))
    }

    /// Seeds the jitter of the times at which the smallest latency is forgotten.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.rng = Rng::with_seed(seed);
        self
    }

    fn is_probe_due(&mut self, limit: f64) -> bool {
        self.windows = self.windows.saturating_add(1);
        if f64::from(self.windows) < self.jitter * PROBE * limit {
            return false;
        }
        self.windows = 0;
        self.jitter = 0.5 + self.rng.f64() / 2.0;
        true
    }
}

impl LimitAlgorithm for Vegas {
    fn update(&mut self, window: &Window) -> usize {
        let limit = self.limit.limit(window);
        let step = limit.log10().floor().max(1.0);
        let rtt = window.rtt.as_nanos() as f64;
        let target = if window.is_dropping() {
            limit - step
        } else if window.answered == 0 {
            return window.limit;
        } else {
            if self.is_probe_due(limit) || self.smallest.is_none_or(|smallest| rtt < smallest) {
                self.smallest = Some(rtt);
                return window.limit;
            }
            let smallest = self.smallest.unwrap_or(rtt);
            let queue = (limit * (1.0 - smallest / rtt.max(1.0))).ceil();
            match queue {
                _ if !window.is_busy() => return window.limit,
                queue if queue <= step => limit + self.beta * step,
                queue if queue < self.alpha * step => limit + step,
                queue if queue > self.beta * step => limit - step,
                _ => return window.limit,
            }
        };
        self.limit.set((1.0 - self.smoothing) * limit + self.smoothing * target, window)
    }

    fn baseline(&self) -> Option<Duration> {
        self.smallest.map(nanos)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn window(limit: usize, rtt: u64) -> Window {
        Window { in_flight: limit, answered: 100, rtt: Duration::from_millis(rtt), ..Window::new(limit) }
    }

    /// Returns the limit after a window of latency `rtt`, with a smallest latency of 10 ms.
    fn after(limit: usize, rtt: u64) -> usize {
        let mut vegas = Vegas::default().seed(1);
        vegas.update(&window(limit, 10));
        vegas.update(&window(limit, rtt))
    }

    #[test]
    fn the_step_depends_on_the_estimated_queue() {
        // log10 of 100 is 2: alpha is 6, beta is 12.
        assert_eq!(after(100, 10), 112, "a queue of 0");
        assert_eq!(after(1000, 10), 1000, "the maximum");
        // 100 · (1 − 10/rtt): 11 ms is a queue of 10, 12 ms of 17, 20 ms of 50.
        assert_eq!(after(100, 11), 100, "a queue of 10 is between alpha and beta");
        assert_eq!(after(100, 12), 98, "a queue of 17");
        assert_eq!(after(100, 20), 98, "a queue of 50");
        // log10 of 20 is 1: a queue of ceil(20 / 11) = 2 is below alpha.
        assert_eq!(after(20, 11), 21);
    }

    #[test]
    fn drops_take_a_step_and_an_unused_limit_none() {
        let mut vegas = Vegas::default();
        vegas.update(&window(100, 10));
        assert_eq!(vegas.update(&Window { dropped: 50, ..window(100, 10) }), 98);
        assert_eq!(vegas.update(&Window { in_flight: 40, ..window(98, 10) }), 98);
    }

    #[test]
    fn the_smallest_latency_is_forgotten_after_thirty_windows_per_call() {
        let mut vegas = Vegas::default().seed(7);
        vegas.update(&window(20, 10));
        (0..598).for_each(|_| assert_eq!(vegas.update(&window(20, 40)), 19));
        assert_eq!(vegas.baseline(), Some(Duration::from_millis(10)));
        vegas.update(&window(20, 40));
        assert_eq!(vegas.baseline(), Some(Duration::from_millis(40)));
    }

    #[test]
    fn an_error_names_the_field() {
        let field = |alpha, beta, smoothing| Vegas::new(alpha, beta, smoothing).err().map(|error| error.field());
        assert_eq!(field(0.0, 6.0, 1.0), Some("alpha"));
        assert_eq!(field(3.0, 2.9, 1.0), Some("beta"));
        assert_eq!(field(3.0, 6.0, 0.0), Some("smoothing"));
        assert_eq!(field(3.0, 6.0, 0.5), None);
    }
}
