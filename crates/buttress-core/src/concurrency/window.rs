use std::time::Duration;

/// What a limiter has observed between two updates of its limit.
///
/// ```
/// use buttress_core::concurrency::Window;
/// use std::time::Duration;
///
/// // 400 answers in a quarter of a second, each after 20 ms, so on average 32 calls waited.
/// let mut window = Window::new(40);
/// (window.answered, window.in_flight) = (400, 40);
/// (window.rtt, window.mean_rtt) = (Duration::from_millis(18), Duration::from_millis(20));
/// assert_eq!((window.throughput(), window.waiting()), (1600.0, 32.0));
/// assert!(window.is_busy() && !window.is_dropping());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Window {
    /// How many calls could wait for the head of their response at a time.
    pub limit: usize,
    /// The smallest limit that is allowed. The handle raises a smaller result to it.
    pub min: usize,
    /// The largest limit that is allowed. The handle lowers a larger result to it.
    pub max: usize,
    /// The most calls that were seen to wait for the head of their response at a time.
    pub in_flight: usize,
    /// The calls whose response streamed at the end of the window. They have places of their own.
    pub streaming: usize,
    /// Calls that were answered. Where calls are many, an estimate from a sample.
    pub answered: u64,
    /// Calls without a usable answer: refused by an overloaded backend, timed out, or given up by
    /// the caller after more than the median time.
    pub dropped: u64,
    /// Calls that the limit rejected.
    pub rejected: u64,
    /// The [statistic](Statistic) over the times from admission to the head of the response. Zero
    /// without answers.
    pub rtt: Duration,
    /// The mean of the same times, of which [`waiting`](Self::waiting) is computed.
    pub mean_rtt: Duration,
    /// The length of the window.
    pub duration: Duration,
}

/// Share of dropped calls, 1 in this number, from which on a window counts as overloaded. With any
/// drop, as in Netflix's library, callers that leave at random would keep the limit at its minimum.
const DROPPED: u64 = 20;

impl Window {
    /// Creates a window of a quarter of a second without calls, with limits from 1 to 1000. For
    /// tests of algorithms.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            min: 1,
            max: 1000,
            in_flight: 0,
            streaming: 0,
            answered: 0,
            dropped: 0,
            rejected: 0,
            rtt: Duration::ZERO,
            mean_rtt: Duration::ZERO,
            duration: Duration::from_millis(250),
        }
    }

    /// Returns whether at least half of the limit was used. A limit that is not used says nothing
    /// about the capacity.
    pub fn is_busy(&self) -> bool {
        self.in_flight.saturating_mul(2) >= self.limit
    }

    /// Returns whether at least 5 % of the calls were dropped.
    pub fn is_dropping(&self) -> bool {
        self.dropped > 0 && self.dropped * DROPPED >= self.answered.saturating_add(self.dropped)
    }

    /// Returns the factor of a multiplicative decrease for dropped calls: 0.9 as for AIMD, less if
    /// more than a tenth of the calls was dropped, and at least 0.5.
    pub fn backoff(&self) -> f64 {
        let all = self.answered.saturating_add(self.dropped).max(1);
        (1.0 - self.dropped as f64 / all as f64).clamp(0.5, 0.9)
    }

    /// Returns the answers per second.
    pub fn throughput(&self) -> f64 {
        let seconds = self.duration.as_secs_f64();
        if seconds > 0.0 { self.answered as f64 / seconds } else { 0.0 }
    }

    /// Returns the mean number of calls that waited for the head of their response, by Little's
    /// law: throughput times mean latency. Calls whose responses stream are not among them.
    pub fn waiting(&self) -> f64 {
        (self.throughput() * self.mean_rtt.as_secs_f64()).min(self.limit as f64)
    }
}

/// Which number stands for the latencies of a window.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Statistic {
    /// The smallest.
    Min,
    /// The median, as in Envoy. The default: a few slow calls do not change it.
    #[default]
    P50,
    /// The 90th percentile.
    P90,
    /// The 99th percentile.
    P99,
    /// The mean, as in Netflix's library.
    Mean,
}
