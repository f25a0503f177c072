use super::{LimitAlgorithm, Window, nanos, tracked::Tracked};
use crate::InvalidConfig;
use std::time::Duration;

/// A proportional-integral controller that keeps the latency at a target, after Uber's Cinnamon.
///
/// ```text
/// target = tolerance · (1 + 1 / sqrt(L)) · smallest latency
/// e      = clamp(1 − rtt / target, −1, 1)
/// L'     = L · (1 + kp · (e − e of the window before) + ki · e)
/// ```
///
/// The change of the limit is the velocity form of a PI controller, which has no integral that
/// could wind up. From Cinnamon come: the controller without a derivative term; the target that is
/// more tolerant the smaller the limit; and what happens when the smallest latency is measured anew
/// every [`memory`](PidBuilder::memory) windows. Under sustained overload each new measurement
/// would be of a larger queue and the target would drift up, so the correlation of waiting calls
/// and throughput decides: if more calls have not brought more throughput, the limit is halved for
/// the measurement.
///
/// Sources: J. H. Thomsen et al., "PID Controller for Cinnamon", and V. Gavrilenko et al.,
/// "Cinnamon Auto-Tuner: Adaptive Concurrency in the Wild", both on Uber's engineering blog in
/// 2023. In Cinnamon the controller decides on the share of rejected calls and the auto-tuner,
/// after TCP Vegas, on the limit; here one controller decides on the limit. The gains are ours.
///
/// ```
/// use buttress_core::concurrency::{LimitAlgorithm, Pid, Window};
/// use std::time::Duration;
///
/// let mut pid = Pid::default();
/// let mut window = Window::new(100);
/// (window.in_flight, window.answered, window.rtt) = (100, 500, Duration::from_millis(10));
/// assert!(pid.update(&window) > 100);
/// ```
#[derive(Clone, Debug)]
pub struct Pid {
    config: PidBuilder,
    limit: Tracked,
    /// In nanoseconds.
    smallest: Option<f64>,
    error: f64,
    /// Busy windows since the smallest latency was forgotten.
    age: u32,
    correlation: Correlation,
}

/// The correlation of waiting calls and throughput since the last reset, computed in one pass
/// (Welford).
#[derive(Clone, Copy, Debug, Default)]
struct Correlation {
    n: f64,
    mean_calls: f64,
    mean_throughput: f64,
    calls: f64,
    throughput: f64,
    both: f64,
}

impl Correlation {
    fn add(&mut self, calls: f64, throughput: f64) {
        self.n += 1.0;
        let (from_calls, from_throughput) = (calls - self.mean_calls, throughput - self.mean_throughput);
        self.mean_calls += from_calls / self.n;
        self.mean_throughput += from_throughput / self.n;
        self.calls += from_calls * (calls - self.mean_calls);
        self.throughput += from_throughput * (throughput - self.mean_throughput);
        self.both += from_calls * (throughput - self.mean_throughput);
    }

    /// Returns whether more calls brought more throughput, and not by chance.
    fn is_clear(&self) -> bool {
        self.both > 0.5 * (self.calls * self.throughput).sqrt()
    }
}

impl Default for Pid {
    fn default() -> Self {
        Self::with(PidBuilder::default())
    }
}

impl Pid {
    /// Returns a builder with the default values.
    ///
    /// ```
    /// use buttress_core::concurrency::Pid;
    ///
    /// let algorithm = Pid::builder().tolerance(1.3).build()?;
    /// # let _ = algorithm;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn builder() -> PidBuilder {
        PidBuilder::default()
    }

    fn with(config: PidBuilder) -> Self {
        let correlation = Correlation::default();
        Self { config, limit: Tracked::default(), smallest: None, error: 0.0, age: 0, correlation }
    }
}

impl LimitAlgorithm for Pid {
    fn update(&mut self, window: &Window) -> usize {
        let limit = self.limit.limit(window);
        if window.is_dropping() {
            return self.limit.set(limit * window.backoff(), window);
        }
        if window.answered == 0 {
            return window.limit;
        }
        let rtt = (window.rtt.as_nanos() as f64).max(1.0);
        let smallest = self.smallest.map_or(rtt, |smallest| smallest.min(rtt));
        self.smallest = Some(smallest);
        if !window.is_busy() {
            self.error = 0.0;
            return window.limit;
        }
        self.correlation.add(window.waiting(), window.throughput());
        self.age += 1;
        if self.age >= self.config.memory {
            let is_saturated = !self.correlation.is_clear();
            (self.age, self.smallest, self.correlation) = (0, None, Correlation::default());
            let factor = if is_saturated { 0.5 } else { 1.0 };
            return self.limit.set(limit * factor, window);
        }
        let target = self.config.tolerance * (1.0 + 1.0 / limit.max(1.0).sqrt()) * smallest;
        let error = (1.0 - rtt / target).clamp(-1.0, 1.0);
        let change = self.config.proportional * (error - self.error) + self.config.integral * error;
        self.error = error;
        self.limit.set(limit * (1.0 + change).clamp(0.5, 1.5), window)
    }

    fn baseline(&self) -> Option<Duration> {
        self.smallest.map(nanos)
    }
}

/// Builds a [`Pid`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct PidBuilder {
    tolerance: f64,
    proportional: f64,
    integral: f64,
    memory: u32,
}

impl Default for PidBuilder {
    fn default() -> Self {
        Self { tolerance: 1.4, proportional: 0.2, integral: 0.4, memory: 60 }
    }
}

impl PidBuilder {
    /// Sets by how much the latency may exceed the smallest, for large limits: between 1 and 3. By
    /// default 1.4.
    pub fn tolerance(mut self, factor: f64) -> Self {
        self.tolerance = factor;
        self
    }

    /// Sets the gains: `kp` between 0 and 2, by default 0.2, and `ki` more than 0 and at most 2, by
    /// default 0.4.
    pub fn gains(mut self, proportional: f64, integral: f64) -> Self {
        (self.proportional, self.integral) = (proportional, integral);
        self
    }

    /// Sets after how many busy windows the smallest latency is measured anew: at least 10. By
    /// default 60.
    pub fn memory(mut self, windows: u32) -> Self {
        self.memory = windows;
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
    /// use buttress_core::concurrency::Pid;
    ///
    /// assert_eq!(Pid::builder().gains(0.1, 0.0).build().unwrap_err().field(), "gains");
    /// ```
    pub fn build(self) -> Result<Pid, InvalidConfig> {
        if !(1.0..=3.0).contains(&self.tolerance) {
            return Err(InvalidConfig::new("tolerance", "must be between 1 and 3"));
        }
        if !((0.0..=2.0).contains(&self.proportional) && self.integral > 0.0 && self.integral <= 2.0) {
            return Err(InvalidConfig::new("gains", "must be at most 2, and that of the integral more than 0"));
        }
        if self.memory < 10 {
            return Err(InvalidConfig::new("memory", "must be at least 10 windows"));
        }
        Ok(Pid::with(self))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn window(limit: usize, rtt: u64) -> Window {
        let rtt = Duration::from_millis(rtt);
        Window { in_flight: limit, answered: 500, rtt, mean_rtt: rtt, ..Window::new(limit) }
    }

    /// Returns the limit after a window of `rtt` ms, with a smallest latency of 10 ms.
    fn after(rtt: u64) -> usize {
        let mut pid = Pid::builder().tolerance(1.5).gains(0.1, 0.3).build().unwrap();
        pid.update(&Window { in_flight: 1, ..window(100, 10) });
        pid.update(&window(100, rtt))
    }

    #[test]
    fn the_limit_changes_with_the_error() {
        // The target is 10 · 1.5 · 1.1 = 16.5 ms, and the gains add up to 0.4 after an error of 0.
        assert_eq!(after(10), 115, "e = 0.3939: +15.8 %");
        assert_eq!(after(33), 60, "e = -1: -40 %");
        assert_eq!(after(100), 60, "the error is bounded");
        let mut pid = Pid::default();
        assert_eq!(pid.update(&Window { in_flight: 1, ..window(100, 10) }), 100, "not in use");
        assert_eq!(pid.update(&Window { dropped: 500, ..window(100, 10) }), 50, "half of them dropped");
    }

    #[test]
    fn only_the_change_of_the_error_counts_for_the_proportional_gain() {
        let mut pid = Pid::builder().tolerance(1.5).gains(2.0, 0.1).build().unwrap();
        pid.update(&Window { in_flight: 1, ..window(100, 10) });
        // The errors are 1 − 20/16.5 = -0.2121 twice: 2.1 times it, then a tenth of it.
        assert_eq!(pid.update(&window(100, 20)), 55);
        assert_eq!(pid.update(&window(100, 20)), 97);
    }

    #[test]
    fn a_new_smallest_latency_is_measured_at_a_lower_limit_if_more_calls_brought_no_throughput() {
        let after_memory = |throughput: fn(u64) -> u64| {
            let mut pid = Pid::builder().memory(10).build().unwrap();
            let mut limits = (0..10).map(|n| {
                let limit = 100 + n as usize;
                let answered = throughput(n);
                // 100 calls wait at 10 ms and 2,500 answers, and one more in each window.
                let mean_rtt = Duration::from_nanos(limit as u64 * 250_000_000 / answered);
                pid.update(&Window { answered, mean_rtt, ..window(limit, 10) })
            });
            let last = limits.by_ref().last();
            last.unwrap()
        };
        assert_eq!(after_memory(|n| 2500 - n), 54, "half of 109");
        assert_eq!(after_memory(|n| 2500 + n), 109);
    }

    #[test]
    fn an_error_names_the_field() {
        let field = |builder: PidBuilder| builder.build().err().map(|error| error.field());
        assert_eq!(field(Pid::builder().tolerance(0.9)), Some("tolerance"));
        assert_eq!(field(Pid::builder().gains(f64::NAN, 0.1)), Some("gains"));
        assert_eq!(field(Pid::builder().memory(9)), Some("memory"));
        assert_eq!(field(Pid::builder()), None);
    }
}
