use super::{LimitAlgorithm, Window, nanos, tracked::Tracked};
use crate::InvalidConfig;
use fastrand::Rng;
use std::time::Duration;

/// Envoy's gradient controller: measures the latency without load by lowering the limit to a few
/// calls from time to time.
///
/// ```text
/// g  = clamp(minRTT · (1 + buffer) / rtt, 0.5, 2)
/// L' = L · g + sqrt(L · g)
/// ```
///
/// The latency without load, `minRTT`, is measured at the start, after each interval with jitter,
/// and after 5 windows in a row at the smallest limit: the limit is lowered to `min_concurrency`
/// until 50 calls were answered. The formula and its defaults are those of Envoy's
/// `adaptive_concurrency` filter (`gradient_controller.cc`).
///
/// While it measures, it rejects all but a few calls. The limit also grows while it is not used.
///
/// ```
/// use buttress_core::concurrency::{EnvoyGradient, LimitAlgorithm, Window};
///
/// let mut envoy = EnvoyGradient::default();
/// assert_eq!(envoy.update(&Window::new(20)), 3, "it measures first");
/// ```
#[derive(Clone, Debug)]
pub struct EnvoyGradient {
    config: EnvoyGradientBuilder,
    limit: Tracked,
    /// In nanoseconds.
    smallest: Option<f64>,
    measuring: Option<Measuring>,
    /// Until the next measurement.
    left: Duration,
    at_minimum: u32,
    rng: Rng,
}

#[derive(Clone, Copy, Debug, Default)]
struct Measuring {
    answered: u64,
    /// The sum of latencies, each window weighted by its answers.
    sum: f64,
    /// The first window has calls of the limit before.
    drained: bool,
}

/// Windows in a row at the smallest limit after which it measures.
const AT_MINIMUM: u32 = 5;

impl Default for EnvoyGradient {
    fn default() -> Self {
        Self::with(EnvoyGradientBuilder::default())
    }
}

impl EnvoyGradient {
    /// Returns a builder with the default values.
    ///
    /// ```
    /// use buttress_core::concurrency::EnvoyGradient;
    /// use std::time::Duration;
    ///
    /// let algorithm = EnvoyGradient::builder().interval(Duration::from_secs(30)).build()?;
    /// # let _ = algorithm;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn builder() -> EnvoyGradientBuilder {
        EnvoyGradientBuilder::default()
    }

    fn with(config: EnvoyGradientBuilder) -> Self {
        let rng = config.seed.map_or_else(Rng::new, Rng::with_seed);
        let limit = Tracked::default();
        Self { config, limit, smallest: None, measuring: None, left: Duration::ZERO, at_minimum: 0, rng }
    }

    fn measure(&mut self, window: &Window) -> usize {
        self.measuring = Some(Measuring::default());
        self.at_minimum = 0;
        self.limit.publish(self.config.min_concurrency, window)
    }
}

impl LimitAlgorithm for EnvoyGradient {
    fn update(&mut self, window: &Window) -> usize {
        let limit = self.limit.limit(window);
        let rtt = window.rtt.as_nanos() as f64;
        if let Some(measuring) = &mut self.measuring {
            if measuring.drained {
                measuring.answered += window.answered;
                measuring.sum += rtt * window.answered as f64;
            }
            measuring.drained = true;
            if measuring.answered < self.config.requests {
                return self.limit.publish(self.config.min_concurrency, window);
            }
            self.smallest = Some(measuring.sum / measuring.answered as f64);
            self.measuring = None;
            let interval = self.config.interval.as_secs_f64() * (1.0 + self.config.jitter * self.rng.f64());
            self.left = Duration::try_from_secs_f64(interval).unwrap_or(Duration::MAX);
            return self.limit.set(limit, window);
        }
        self.left = self.left.saturating_sub(window.duration);
        let Some(smallest) = self.smallest.filter(|_| !self.left.is_zero() && self.at_minimum < AT_MINIMUM) else {
            return self.measure(window);
        };
        if window.answered == 0 {
            return window.limit;
        }
        let gradient = (smallest * (1.0 + self.config.buffer) / rtt.max(1.0)).clamp(0.5, 2.0);
        let next = self.limit.set(limit * gradient + (limit * gradient).sqrt(), window);
        let at_minimum = next <= window.min.max(self.config.min_concurrency);
        self.at_minimum = if at_minimum { self.at_minimum + 1 } else { 0 };
        next
    }

    fn baseline(&self) -> Option<Duration> {
        self.smallest.map(nanos)
    }
}

/// Builds an [`EnvoyGradient`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct EnvoyGradientBuilder {
    buffer: f64,
    interval: Duration,
    jitter: f64,
    requests: u64,
    min_concurrency: usize,
    seed: Option<u64>,
}

impl Default for EnvoyGradientBuilder {
    fn default() -> Self {
        let interval = Duration::from_secs(60);
        Self { buffer: 0.25, interval, jitter: 0.15, requests: 50, min_concurrency: 3, seed: None }
    }
}

impl EnvoyGradientBuilder {
    /// Sets by what share the latency may exceed the smallest: between 0 and 10. By default 0.25.
    pub fn buffer(mut self, share: f64) -> Self {
        self.buffer = share;
        self
    }

    /// Sets the time between two measurements: at least 1 s. By default 60 s, as in Envoy's
    /// examples. [`Duration::MAX`] measures at the start, and at the smallest limit.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets the share of the interval that is added at random: between 0 and 1. By default 0.15.
    pub fn jitter(mut self, share: f64) -> Self {
        self.jitter = share;
        self
    }

    /// Sets the answers of a measurement: at least 1. By default 50.
    pub fn requests(mut self, answers: u64) -> Self {
        self.requests = answers;
        self
    }

    /// Sets the limit during a measurement: at least 1. By default 3. The smallest limit of the
    /// handle is a lower bound.
    pub fn min_concurrency(mut self, limit: usize) -> Self {
        self.min_concurrency = limit;
        self
    }

    /// Seeds the jitter.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Creates the algorithm.
    ///
    /// # Errors
    /// If a value is out of its range.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::concurrency::EnvoyGradient;
    ///
    /// assert_eq!(EnvoyGradient::builder().requests(0).build().unwrap_err().field(), "requests");
    /// ```
    pub fn build(self) -> Result<EnvoyGradient, InvalidConfig> {
        if !(0.0..=10.0).contains(&self.buffer) {
            return Err(InvalidConfig::new("buffer", "must be between 0 and 10"));
        }
        if self.interval < Duration::from_secs(1) {
            return Err(InvalidConfig::new("interval", "must be at least 1 s"));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(InvalidConfig::new("jitter", "must be between 0 and 1"));
        }
        if self.requests == 0 {
            return Err(InvalidConfig::new("requests", "must be at least 1"));
        }
        if self.min_concurrency == 0 {
            return Err(InvalidConfig::new("min_concurrency", "must be at least 1"));
        }
        Ok(EnvoyGradient::with(self))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn window(limit: usize, rtt: u64) -> Window {
        let rtt = Duration::from_millis(rtt);
        Window { in_flight: limit, answered: 25, rtt, mean_rtt: rtt, ..Window::new(limit) }
    }

    /// An algorithm that has measured 10 ms and is back at a limit of 100.
    fn measured() -> EnvoyGradient {
        let mut envoy = EnvoyGradient::builder().seed(7).build().unwrap();
        assert_eq!(envoy.update(&window(100, 50)), 3);
        assert_eq!(envoy.update(&window(3, 50)), 3, "calls of the limit before");
        assert_eq!(envoy.update(&window(3, 8)), 3, "25 of 50 answers");
        assert_eq!(envoy.update(&window(3, 12)), 100);
        assert_eq!(envoy.baseline(), Some(Duration::from_millis(10)));
        envoy
    }

    #[test]
    fn the_limit_follows_the_gradient_and_the_root_of_the_result() {
        // g = 12.5 / 12.5 = 1: 100 + 10.
        let mut envoy = measured();
        assert_eq!(envoy.update(&Window { rtt: Duration::from_micros(12_500), ..window(100, 0) }), 110);
        // g = 0.625: 62.5 + 7.9. Bounded below by 0.5: 50 + 7.07; above by 2: 200 + 14.1.
        for (rtt, limit) in [(20, 70), (500, 57), (2, 214)] {
            assert_eq!(measured().update(&window(100, rtt)), limit, "{rtt} ms");
        }
        assert_eq!(measured().update(&Window { answered: 0, ..window(100, 0) }), 100);
    }

    #[test]
    fn it_measures_again_after_the_interval_and_after_five_windows_at_the_minimum() {
        let mut envoy = measured();
        let quiet = Window { answered: 0, duration: Duration::from_secs(10), ..window(100, 0) };
        let windows = (1..).find(|_| envoy.update(&quiet) == 3).unwrap();
        assert!((6..=7).contains(&windows), "60 s and up to 15 % more: {windows}");

        let mut envoy = measured();
        let slow = |limit| Window { min: 5, ..window(limit, 500) };
        let mut limit = 100;
        let windows = (1..)
            .find(|_| {
                let before = limit;
                limit = envoy.update(&slow(limit));
                limit == 5 && before == 5 && envoy.measuring.is_some()
            })
            .unwrap();
        assert!(windows > 5, "{windows}");
    }

    #[test]
    fn with_the_longest_interval_it_measures_once() {
        let mut envoy = EnvoyGradient::builder().interval(Duration::MAX).requests(1).seed(7).build().unwrap();
        assert_eq!([100, 3, 3].map(|limit| envoy.update(&window(limit, 10))), [3, 3, 100]);
        let year = Window { duration: Duration::from_secs(365 * 86_400), ..window(100, 10) };
        assert!((0..100).all(|_| envoy.update(&year) > 100));
    }

    #[test]
    fn an_error_names_the_field() {
        let field = |builder: EnvoyGradientBuilder| builder.build().err().map(|error| error.field());
        let builder = EnvoyGradient::builder;
        assert_eq!(field(builder().buffer(-0.1)), Some("buffer"));
        assert_eq!(field(builder().interval(Duration::ZERO)), Some("interval"));
        assert_eq!(field(builder().jitter(1.5)), Some("jitter"));
        assert_eq!(field(builder().requests(0)), Some("requests"));
        assert_eq!(field(builder().min_concurrency(0)), Some("min_concurrency"));
        assert_eq!(field(builder()), None);
    }
}
