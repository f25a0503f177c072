//! Latencies: recorded in constant memory, reported in milliseconds.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// A histogram in microseconds, 3 significant digits, up to 2 minutes. Longer values count as 2
/// minutes.
#[derive(Clone, Debug)]
pub struct Latencies(Option<Histogram<u64>>);

/// Quantiles of latencies, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

impl Default for Latencies {
    fn default() -> Self {
        // The bounds are valid. If they were not, nothing would be recorded; a measurement must not
        // panic.
        Self(Histogram::new_with_bounds(1, 120_000_000, 3).ok())
    }
}

impl Latencies {
    pub fn record(&mut self, took: Duration) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
    }

    pub fn add(&mut self, other: &Self) {
        if let (Some(histogram), Some(other)) = (&mut self.0, &other.0) {
            // Both have the same bounds, so this cannot fail.
            let _ = histogram.add(other);
        }
    }

    pub fn clear(&mut self) {
        // `clear` would keep the maximum.
        self.0.iter_mut().for_each(Histogram::reset);
    }

    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, Histogram::len)
    }

    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.0.as_ref().map_or(0.0, |histogram| histogram.value_at_quantile(quantile) as f64 / 1000.0)
    }

    pub fn quantiles(&self) -> Quantiles {
        let Some(histogram) = &self.0 else { return Quantiles::default() };
        Quantiles {
            count: histogram.len(),
            mean_ms: histogram.mean() / 1000.0,
            p50_ms: self.quantile_ms(0.5),
            p90_ms: self.quantile_ms(0.9),
            p99_ms: self.quantile_ms(0.99),
            p999_ms: self.quantile_ms(0.999),
            max_ms: histogram.max() as f64 / 1000.0,
        }
    }

    /// Returns buckets of equal width on a logarithmic axis: `per_decade` buckets per power of ten.
    /// Covers only the range from the first to the last recorded value.
    pub fn buckets(&self, per_decade: u32) -> Vec<Bucket> {
        let Some(histogram) = self.0.as_ref().filter(|histogram| !histogram.is_empty()) else { return Vec::new() };
        let index = |micros: u64| (micros.max(1) as f64).log10() * f64::from(per_decade);
        let bound = |index: f64| 10f64.powf(index / f64::from(per_decade)) / 1000.0;
        let (first, last) = (index(histogram.min()).floor(), index(histogram.max()).floor());
        let mut buckets: Vec<_> = (0..=(last - first) as usize)
            .map(|step| first + step as f64)
            .map(|index| Bucket { from_ms: bound(index), to_ms: bound(index + 1.0), count: 0 })
            .collect();
        for value in histogram.iter_recorded() {
            let at = (index(value.value_iterated_to()).floor() - first).max(0.0) as usize;
            if let Some(bucket) = buckets.get_mut(at) {
                bucket.count += value.count_at_value();
            }
        }
        buckets
    }
}

/// The number of latencies in a range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bucket {
    pub from_ms: f64,
    pub to_ms: f64,
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(millis: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::default();
        millis.into_iter().for_each(|ms| latencies.record(Duration::from_millis(ms)));
        latencies
    }

    fn near(one: f64, other: f64) -> bool {
        (one - other).abs() <= other * 0.002
    }

    #[test]
    fn quantiles_are_true_to_three_digits() {
        let Quantiles { count, p50_ms, p90_ms, p99_ms, p999_ms, max_ms, .. } = latencies(1..=1000).quantiles();
        assert_eq!(count, 1000);
        for (seen, expected) in [(p50_ms, 500.0), (p90_ms, 900.0), (p99_ms, 990.0), (p999_ms, 999.0), (max_ms, 1000.0)]
        {
            assert!(near(seen, expected), "{seen} is not {expected}");
        }
    }

    #[test]
    fn what_takes_for_ever_counts_as_long() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::MAX);
        assert!(near(latencies.quantiles().max_ms, 120_000.0));
    }

    #[test]
    fn buckets_hold_everything_once_and_have_no_gaps() {
        let buckets = latencies([1, 2, 2, 9, 15, 800]).buckets(10);
        assert_eq!(buckets.iter().map(|bucket| bucket.count).sum::<u64>(), 6);
        for pair in buckets.windows(2) {
            assert_eq!(pair[0].to_ms, pair[1].from_ms);
        }
        assert!(buckets[0].from_ms <= 1.0 && buckets[0].count == 1);
        assert_eq!(buckets.last().unwrap().count, 1);
        assert!(Latencies::default().buckets(10).is_empty());
    }

    #[test]
    fn sums_means_and_an_empty_histogram() {
        let mut sum = latencies([10, 20]);
        sum.add(&latencies([30, 40, 50]));
        let Quantiles { count, mean_ms, p50_ms, max_ms, .. } = sum.quantiles();
        assert!(count == 5 && near(mean_ms, 30.0) && near(p50_ms, 30.0) && near(max_ms, 50.0));
        assert_eq!(sum.count(), 5);
        sum.clear();
        assert_eq!((sum.count(), sum.quantiles()), (0, Quantiles::default()));
    }
}
