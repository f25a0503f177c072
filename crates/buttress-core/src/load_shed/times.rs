use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, try_lock};
use std::time::Duration;

/// Four buckets for each power of two of microseconds, up to two days.
#[cfg(not(loom))]
const BUCKETS: usize = 148;
#[cfg(loom)]
const BUCKETS: usize = 2;
/// By how much the count of a bucket shrinks with each step.
const DECAY: f32 = 0.9;
/// The least number of times, shrunken ones in parts, that have a median.
const ENOUGH: f32 = 5.0;

/// How long the calls of the last seconds took.
#[derive(Debug)]
pub(super) struct Times {
    arrived: Box<[AtomicU32]>,
    seen: Mutex<Box<[f32]>>,
    /// In nanoseconds; 0 if it is unknown.
    median: AtomicU64,
}

impl Times {
    pub(super) fn new() -> Self {
        Self {
            arrived: (0..BUCKETS).map(|_| AtomicU32::new(0)).collect(),
            seen: Mutex::new(vec![0.0; BUCKETS].into()),
            median: AtomicU64::new(0),
        }
    }

    pub(super) fn record(&self, time: Duration) {
        self.arrived[bucket_of(time)].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the median in nanoseconds, rounded down to its bucket: by up to a fifth.
    #[inline]
    pub(super) fn median(&self) -> Option<u64> {
        Some(self.median.load(Ordering::Relaxed)).filter(|median| *median > 0)
    }

    /// Computes the median after `steps`. Does nothing while another thread does it.
    pub(super) fn refresh(&self, steps: u64) {
        let Some(mut seen) = try_lock(&self.seen) else { return };
        let decay = DECAY.powi(i32::try_from(steps).unwrap_or(i32::MAX));
        let mut total = 0.0;
        for (seen, arrived) in seen.iter_mut().zip(&self.arrived) {
            *seen = *seen * decay + arrived.swap(0, Ordering::Relaxed) as f32;
            total += *seen;
        }
        let mut below = 0.0;
        let median = seen.iter().position(|count| {
            below += *count;
            below * 2.0 >= total
        });
        let median = median.filter(|_| total >= ENOUGH).map_or(0, nanos_of);
        self.median.store(median, Ordering::Relaxed);
    }
}

fn bucket_of(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    if micros < 4 {
        return micros as usize % BUCKETS;
    }
    let power = micros.ilog2();
    let quarter = micros >> (power - 2) & 3;
    ((power as usize - 1) * 4 + quarter as usize).min(BUCKETS - 1)
}

/// Returns the shortest time of a bucket in nanoseconds; at least one, as 0 means unknown.
fn nanos_of(bucket: usize) -> u64 {
    let micros = if bucket < 4 { bucket as u64 } else { (4 + bucket as u64 % 4) << (bucket / 4 - 1) };
    (micros * 1_000).max(1)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_median_needs_five_times_and_is_forgotten_without_new_ones() {
        let times = Times::new();
        for millis in [1, 10, 100, 1000] {
            times.record(Duration::from_millis(millis));
        }
        times.refresh(1);
        assert_eq!(times.median(), None);
        times.record(Duration::from_millis(100));
        times.refresh(0);
        let median = Duration::from_nanos(times.median().unwrap());
        assert!((Duration::from_millis(80)..=Duration::from_millis(100)).contains(&median), "{median:?}");
        times.refresh(u64::MAX);
        assert_eq!(times.median(), None);
    }

    proptest! {
        #[test]
        fn a_bucket_contains_its_times(micros in 0u64..1 << 37) {
            let low = nanos_of(bucket_of(Duration::from_micros(micros))) / 1000;
            prop_assert!(low <= micros && (low * 5 / 4 + 1 >= micros), "{low} {micros}");
        }
    }

    #[test]
    fn the_longest_time_has_a_bucket() {
        assert_eq!(bucket_of(Duration::MAX), BUCKETS - 1);
    }
}
