use crate::beat::Beat;
use crate::shard::{shards, thread_index};
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, try_lock};
use crate::timeline::{Timeline, nanos};
use crate::{Clock, Ratio};
use std::{fmt, time::Duration};

/// Buckets for each power of two.
const PARTS: u64 = 16;
/// The powers of two of microseconds that have buckets. Times below the first one have a bucket for
/// each microsecond, and those from the last one on, 67 s, share one.
const POWERS: std::ops::Range<u32> = PARTS.ilog2()..26;
#[cfg(not(loom))]
const BUCKETS: usize = (POWERS.end - POWERS.start + 1) as usize * PARTS as usize + 1;
/// The model checker branches at every load.
#[cfg(loom)]
const BUCKETS: usize = 2;

/// Steps in a window. The results of a step are moved into a slice at its end, and leave the window
/// with that slice, nine steps later.
const STEPS: u64 = 10;
const SLICES: usize = STEPS as usize - 1;

/// More shards would cost more memory than they save time: a call adds to one counter.
const MAX_SHARDS: usize = 8;

/// The latencies of a window, and a percentile of them.
pub(super) struct Latencies {
    share: Ratio,
    min_samples: u64,
    time: Timeline,
    beat: Beat,
    /// What was recorded since the last step: [`BUCKETS`] counters for each shard.
    arrived: Box<[Box<[AtomicU32]>]>,
    window: Mutex<Window>,
    /// In nanoseconds; 0 if it is unknown.
    percentile: AtomicU64,
}

/// Without the thousands of counts.
impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percentile = Duration::from_nanos(self.percentile.load(Ordering::Relaxed));
        f.debug_struct("Latencies").field("percentile", &percentile).finish_non_exhaustive()
    }
}

struct Window {
    /// [`BUCKETS`] counts for each of the [`SLICES`].
    counts: Box<[u32]>,
    newest: usize,
}

impl Latencies {
    pub(super) fn new(share: Ratio, window: Duration, min_samples: u32) -> Self {
        let shard = || (0..BUCKETS).map(|_| AtomicU32::new(0)).collect();
        Self {
            share,
            min_samples: min_samples.into(),
            time: Timeline::default(),
            beat: Beat::new(nanos(window) / STEPS),
            arrived: (0..shards().clamp(1, MAX_SHARDS)).map(|_| shard()).collect(),
            window: Mutex::new(Window { counts: vec![0; BUCKETS * SLICES].into(), newest: 0 }),
            percentile: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(super) fn record(&self, elapsed: Duration, clock: &impl Clock) {
        // First, so that what is recorded after a time without calls counts from now on.
        self.step(clock);
        let shard = &self.arrived[thread_index() % self.arrived.len()];
        shard[bucket_of(elapsed)].fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn percentile(&self, clock: &impl Clock) -> Option<Duration> {
        self.step(clock);
        match self.percentile.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    #[inline]
    fn step(&self, clock: &impl Clock) {
        if let Some(steps) = self.beat.ended(self.time.coarse_nanos(clock)) {
            self.refresh(steps);
        }
    }

    /// Moves what has arrived into the window and computes the percentile. Does nothing while
    /// another thread does it.
    #[cold]
    fn refresh(&self, steps: u64) {
        let Some(mut window) = try_lock(&self.window) else { return };
        // The calls of each step look whether it has ended, so all that has arrived is of the
        // first of these steps.
        window.advance();
        let newest = window.newest * BUCKETS;
        for shard in &self.arrived {
            for (bucket, arrived) in shard.iter().enumerate() {
                let count = &mut window.counts[newest + bucket];
                *count = count.saturating_add(arrived.swap(0, Ordering::Relaxed));
            }
        }
        (1..steps.min(STEPS)).for_each(|_| window.advance());
        let bucket = window.bucket_at(self.share, self.min_samples);
        self.percentile.store(bucket.and_then(end_of).unwrap_or(0), Ordering::Relaxed);
    }
}

impl Window {
    /// Begins a new slice in place of the oldest one.
    fn advance(&mut self) {
        self.newest = (self.newest + 1) % SLICES;
        self.counts[self.newest * BUCKETS..][..BUCKETS].fill(0);
    }

    /// Returns the bucket that contains the percentile, if there are enough samples.
    fn bucket_at(&self, share: Ratio, min_samples: u64) -> Option<usize> {
        let mut total = [0_u64; BUCKETS];
        for slice in self.counts.chunks_exact(BUCKETS) {
            total.iter_mut().zip(slice).for_each(|(total, count)| *total += u64::from(*count));
        }
        let samples: u64 = total.iter().sum();
        let mut below = 0;
        let bucket = total.iter().position(|count| {
            below += count;
            share.reached_by(below, samples)
        });
        bucket.filter(|_| samples >= min_samples)
    }
}

#[inline]
fn bucket_of(elapsed: Duration) -> usize {
    let micros = nanos(elapsed) / 1_000;
    let bucket = match micros.checked_ilog2() {
        Some(power) if power >= POWERS.end => BUCKETS as u64 - 1,
        Some(power) if power >= POWERS.start => {
            let above = power - POWERS.start;
            u64::from(above) * PARTS + (micros >> above)
        }
        _ => micros,
    };
    (bucket as usize).min(BUCKETS - 1)
}

/// Returns the nanoseconds at which a bucket ends. `None` for the last one, which has no end.
fn end_of(bucket: usize) -> Option<u64> {
    if bucket == BUCKETS - 1 {
        return None;
    }
    let next = bucket as u64 + 1;
    let micros = match next / PARTS {
        0 | 1 => next,
        power => (next - (power - 1) * PARTS) << (power - 1),
    };
    Some(micros * 1_000)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_end_of_a_bucket_is_above_its_times_by_a_sixteenth_at_most(micros in 0u64..1 << 26) {
            let end = end_of(bucket_of(Duration::from_micros(micros))).unwrap() / 1_000;
            prop_assert!(micros < end && end <= micros + (micros / PARTS).max(1), "{micros} {end}");
        }

        #[test]
        fn longer_times_are_in_higher_buckets(one in 0u64..1 << 28, other in 0u64..1 << 28) {
            let (less, more) = (one.min(other), one.max(other));
            prop_assert!(bucket_of(Duration::from_micros(less)) <= bucket_of(Duration::from_micros(more)));
        }
    }

    #[test]
    fn the_last_bucket_begins_at_67_seconds_and_has_no_end() {
        let last = |micros| bucket_of(Duration::from_micros(micros)) == BUCKETS - 1;
        assert!(!last((1 << 26) - 1) && last(1 << 26) && last(u64::MAX / 1_000));
        assert_eq!(bucket_of(Duration::MAX), BUCKETS - 1);
        assert_eq!((end_of(BUCKETS - 1), end_of(BUCKETS - 2)), (None, Some((1 << 26) * 1_000)));
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::loom_models::model;
    use loom::{sync::Arc, thread};

    #[test]
    fn what_is_recorded_during_a_step_is_counted_once() {
        model(|| {
            let all = Ratio::new(0.5).unwrap();
            let latencies = Arc::new(Latencies::new(all, Duration::from_secs(30), 1));
            let thread = {
                let latencies = latencies.clone();
                thread::spawn(move || latencies.arrived[0][1].fetch_add(1, Ordering::Relaxed))
            };
            latencies.refresh(1);
            thread.join().unwrap();
            latencies.refresh(1);
            let counted: u32 = latencies.window.lock().unwrap().counts.iter().sum();
            assert_eq!(counted, 1);
        });
    }
}
