use super::{LimitAlgorithm, Window};
use crate::InvalidConfig;
use std::time::Duration;

/// Additive increase, multiplicative decrease: one more call per window, and a tenth less after
/// dropped calls or a latency beyond a timeout.
///
/// ```text
/// dropped, or rtt > timeout:  L' = floor(backoff · L)
/// in flight >= L / 2:         L' = L + 1
/// ```
///
/// The formula and its defaults are those of `AIMDLimit` in Netflix's concurrency-limits. It reacts
/// to overload only when calls fail, so set the timeout to the latency that is still good.
///
/// ```
/// use buttress_core::concurrency::{Aimd, LimitAlgorithm, Window};
///
/// let mut window = Window::new(20);
/// (window.in_flight, window.answered) = (12, 100);
/// assert_eq!(Aimd::default().update(&window), 21);
/// window.dropped = 10;
/// assert_eq!(Aimd::default().update(&window), 18);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Aimd {
    backoff: f64,
    timeout: Duration,
}

impl Default for Aimd {
    fn default() -> Self {
        Self { backoff: 0.9, timeout: Duration::from_secs(5) }
    }
}

impl Aimd {
    /// Creates the algorithm. `backoff` is the factor of a decrease: at least 0.5 and less than 1,
    /// 0.9 by default. `timeout` is the latency beyond which the limit decreases, 5 s by default.
    ///
    /// # Errors
    /// If a value is out of its range.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::concurrency::Aimd;
    /// use std::time::Duration;
    ///
    /// let error = Aimd::new(1.0, Duration::from_millis(100)).unwrap_err();
    /// assert_eq!(error.field(), "backoff");
    /// ```
    pub fn new(backoff: f64, timeout: Duration) -> Result<Self, InvalidConfig> {
        if !(0.5..1.0).contains(&backoff) {
            return Err(InvalidConfig::new("backoff", "must be at least 0.5 and less than 1"));
        }
        if timeout.is_zero() {
            return Err(InvalidConfig::new("timeout", "must be more than 0"));
        }
        Ok(Self { backoff, timeout })
    }
}

impl LimitAlgorithm for Aimd {
    fn update(&mut self, window: &Window) -> usize {
        if window.is_dropping() || window.rtt > self.timeout {
            (window.limit as f64 * self.backoff) as usize
        } else if window.is_busy() {
            window.limit + 1
        } else {
            window.limit
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_steps_up_by_one_and_down_by_a_tenth_rounded_down() {
        let mut aimd = Aimd::default();
        let mut window = Window { in_flight: 13, answered: 100, rtt: Duration::from_secs(5), ..Window::new(25) };
        assert_eq!(aimd.update(&window), 26, "a latency of exactly the timeout is good");
        window.rtt += Duration::from_nanos(1);
        assert_eq!(aimd.update(&window), 22, "22.5");
        window.rtt = Duration::from_secs(1);
        window.in_flight = 12;
        assert_eq!(aimd.update(&window), 25, "less than half in use");
        window.dropped = 6;
        assert_eq!(aimd.update(&window), 22);
    }

    #[test]
    fn an_error_names_the_field() {
        let field = |backoff, timeout| Aimd::new(backoff, timeout).map_err(|error| error.field()).err();
        assert_eq!(field(0.4, Duration::MAX), Some("backoff"));
        assert_eq!(field(f64::NAN, Duration::MAX), Some("backoff"));
        assert_eq!(field(0.5, Duration::ZERO), Some("timeout"));
        assert_eq!(field(0.5, Duration::from_millis(1)), None);
    }
}
