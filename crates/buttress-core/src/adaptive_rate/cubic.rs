//! The formulas of the adaptive mode of AWS's SDKs (botocore, `retries/adaptive.py` and
//! `retries/throttling.py`): a rate that is cut when the backend throttles and then grows like
//! CUBIC's window (RFC 9438). All rates are per second, and all times are in seconds.

/// The share of the rate that is kept when the backend throttles.
const BETA: f64 = 0.7;
/// How fast the rate grows.
const SCALE: f64 = 0.4;
/// The weight of the newest measurement.
const SMOOTHING: f64 = 0.8;
/// The length of a measurement.
const BUCKET: f64 = 0.5;
/// Buckets by which a time may be behind the last one, 2 s. More means that the clock was set back.
const MAX_BUCKETS_BACK: u64 = 4;
/// The rate is at most this many times what is measured, so that it does not grow while it is not
/// used.
const MAX_OVER_MEASURED: f64 = 2.0;
/// The lowest rate: one call in two seconds.
const MIN_RATE: f64 = 0.5;

/// Measures how many responses arrive per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Meter {
    rate: f64,
    count: f64,
    /// The number of the last bucket.
    bucket: u64,
}

impl Meter {
    /// Begins to measure at a time.
    pub(super) fn starting_at(now: f64) -> Self {
        Self { bucket: Self::bucket(now), ..Self::default() }
    }

    /// Returns whether a bucket is so far behind the last one that the clock was set back.
    pub(super) fn is_set_back(last: u64, bucket: u64) -> bool {
        last.saturating_sub(bucket) > MAX_BUCKETS_BACK
    }

    /// Returns the number of the bucket of a time.
    pub(super) fn bucket(now: f64) -> u64 {
        (now / BUCKET) as u64
    }

    /// Adds `responses` and returns the rate. It changes with the first response in a new bucket.
    pub(super) fn record(&mut self, responses: u64, now: f64) -> f64 {
        let bucket = Self::bucket(now);
        if Self::is_set_back(self.bucket, bucket) {
            // What was counted until then has no length.
            (self.count, self.bucket) = (0.0, bucket);
        }
        self.count += responses as f64;
        if bucket > self.bucket {
            let current = self.count / ((bucket - self.bucket) as f64 * BUCKET);
            self.rate = SMOOTHING * current + (1.0 - SMOOTHING) * self.rate;
            self.count = 0.0;
            self.bucket = bucket;
        }
        self.rate
    }
}

/// The rate that the backend admits, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cubic {
    /// The rate at the last throttling.
    highest: f64,
    /// The time from the last throttling until the rate is back there.
    plateau: f64,
    throttled_at: f64,
    /// The rate now.
    rate: f64,
}

impl Cubic {
    /// The backend throttled for the first time.
    pub(super) fn new(measured: f64, now: f64) -> Self {
        Self::at(measured, measured, now)
    }

    /// The backend throttled again.
    pub(super) fn throttled(self, measured: f64, now: f64) -> Self {
        Self::at(measured.min(self.rate), measured, now)
    }

    fn at(highest: f64, measured: f64, now: f64) -> Self {
        let plateau = (highest * (1.0 - BETA) / SCALE).cbrt();
        let cubic = Self { highest, plateau, throttled_at: now, rate: 0.0 };
        Self { rate: bounded(BETA * highest, measured), ..cubic }
    }

    /// The backend answered another way.
    pub(super) fn answered(self, measured: f64, now: f64) -> Self {
        // A clock that was set back begins the curve anew.
        let is_set_back = Meter::is_set_back(Meter::bucket(self.throttled_at), Meter::bucket(now));
        let throttled_at = if is_set_back { now } else { self.throttled_at };
        let since = (now - throttled_at).max(0.0);
        let rate = SCALE * (since - self.plateau).powi(3) + self.highest;
        Self { rate: bounded(rate, measured), throttled_at, ..self }
    }

    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// Returns how many calls may come at once: those of a second.
    pub(super) fn burst(&self) -> f64 {
        self.rate.max(1.0)
    }
}

fn bounded(rate: f64, measured: f64) -> f64 {
    rate.min(MAX_OVER_MEASURED * measured).max(MIN_RATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9 * b.abs().max(1.0)
    }

    #[test]
    fn the_measured_rate_is_smoothed_over_buckets_of_half_a_second() {
        let mut meter = Meter::default();
        assert_eq!(meter.record(50, 0.4), 0.0, "the first bucket is not over");
        // 51 responses in a bucket of 0.5 s are 102 per second, of which 0.8 count.
        assert!(near(meter.record(1, 0.6), 81.6));
        // 10 in the next one: 0.8 * 20 + 0.2 * 81.6.
        assert!(near(meter.record(9, 0.9), 81.6));
        assert!(near(meter.record(1, 1.2), 32.32));
        // 5 in four buckets: 0.8 * 2.5 + 0.2 * 32.32.
        assert!(near(meter.record(5, 3.1), 8.464));
        // A time that is a little behind counts for the bucket that is not over.
        assert!(near(meter.record(5, 2.0), 8.464));
        // A clock that was set back begins a new one: 10 responses in 0.5 s.
        assert!(near(meter.record(9, 0.0), 8.464));
        assert!(near(meter.record(1, 0.5), 0.8 * 20.0 + 0.2 * 8.464));
    }

    #[test]
    fn throttling_cuts_the_rate_and_the_cubic_brings_it_back() {
        // K = cbrt(100 * 0.3 / 0.4) = cbrt(75) = 4.217163326508746
        let cubic = Cubic::new(100.0, 10.0);
        assert!(near(cubic.rate(), 70.0) && near(cubic.plateau, 4.217_163_326_508_746));
        // 0.4 * (-K)^3 + 100 = 70 at once, and 0.4 * (1 - K)^3 + 100 after a second.
        assert!(near(cubic.answered(100.0, 10.0).rate(), 70.0));
        assert!(near(cubic.answered(100.0, 11.0).rate(), 100.0 - 0.4 * 3.217_163_326_508_746_f64.powi(3)));
        assert!(near(cubic.answered(100.0, 10.0 + 4.217_163_326_508_746).rate(), 100.0));
        // Beyond the plateau: 0.4 * 5^3 + 100.
        assert!(near(cubic.answered(100.0, 15.0 + 4.217_163_326_508_746).rate(), 150.0));
    }

    #[test]
    fn the_rate_is_at_most_twice_what_is_measured() {
        let cubic = Cubic::new(100.0, 0.0);
        assert!(near(cubic.answered(30.0, 60.0).rate(), 60.0));
        assert!(near(Cubic::new(0.0, 0.0).rate(), 0.5), "and at least one call in two seconds");
        assert!(near(cubic.answered(0.0, 60.0).rate(), 0.5));
    }

    #[test]
    fn a_second_throttling_starts_from_the_lower_one_of_both_rates() {
        let cubic = Cubic::new(100.0, 0.0);
        assert!(near(cubic.throttled(90.0, 1.0).rate(), 49.0), "0.7 * 70");
        assert!(near(cubic.throttled(50.0, 1.0).rate(), 35.0), "0.7 * 50");
        assert_eq!(cubic.throttled(50.0, 1.0).highest, 50.0);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_lower_the_rate_and_it_grows_from_there() {
        let cubic = Cubic::new(100.0, 1000.0);
        assert!(near(cubic.answered(100.0, 999.0).rate(), 70.0));
        let set_back = cubic.answered(100.0, 10.0);
        assert!(near(set_back.rate(), 70.0));
        assert!(near(set_back.answered(100.0, 10.0 + 4.217_163_326_508_746).rate(), 100.0));
    }
}
