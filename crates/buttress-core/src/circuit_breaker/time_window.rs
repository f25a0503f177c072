use super::event::Counts;
use crate::sync::{AtomicU64, Ordering};
use std::time::Duration;

/// How many buckets are live. Ten is what Polly, linkerd, Finagle and Hystrix use.
#[cfg(not(loom))]
const LIVE: u32 = 10;
/// How many there are. A power of two, so that a tag keeps its slot when tags wrap, and more than are live.
#[cfg(not(loom))]
const SLOTS: usize = 16;
/// The model checker walks through every load: the smallest ring that is one.
#[cfg(loom)]
const LIVE: u32 = 1;
#[cfg(loom)]
const SLOTS: usize = 2;
/// How far tags jump with a new generation: more than [`LIVE`], so that nothing old is live, and enough for a writer that read its
/// clock up to 200 buckets after the one who began the generation.
const GENERATION: u32 = 256;
/// How far ahead of a writer a slot's tag may be and still be called newer. Beyond it, the tags have wrapped and the slot is ancient.
const NEWER: u32 = 1 << 20;

/// The category of a result; the order in which [`Counts`] names them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Category {
    Succeeded = 0,
    Failed = 1,
    Slow = 2,
    SlowFailed = 3,
}

impl Category {
    pub(super) fn new(failed: bool, slow: bool) -> Self {
        match (failed, slow) {
            (false, false) => Self::Succeeded,
            (true, false) => Self::Failed,
            (false, true) => Self::Slow,
            (true, true) => Self::SlowFailed,
        }
    }
}

/// Exact counts over a sliding time.
///
/// A slot is one word, `tag << 32 | count`. The tag is the number of the bucket since the beginning, and jumps ahead with each
/// generation. So a writer that finds an older tag begins a new bucket with the same CAS that counts its result, a reader
/// skips slots whose tags are not live, and neither a sweeper nor a clearing exists: the window rolls on read and on write, after any idle time.
#[derive(Debug)]
pub(super) struct TimeWindow {
    /// Nanoseconds per bucket. Changed by a reload only, together with the generation.
    width: AtomicU64,
    shards: Box<[Shard]>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard([[AtomicU64; SLOTS]; 4]);

impl TimeWindow {
    pub(super) fn new(window: Duration, shards: usize) -> Self {
        let this = Self { width: AtomicU64::new(1), shards: (0..shards).map(|_| Shard::default()).collect() };
        this.resize(window);
        this
    }

    /// Changes the time that is covered, when a new generation begins.
    pub(super) fn resize(&self, window: Duration) {
        self.width.store((super::nanos(window) / u64::from(LIVE)).max(1), Ordering::Relaxed);
    }

    /// Whether a clock that is a few milliseconds behind will do.
    #[inline]
    pub(super) fn is_coarse(&self) -> bool {
        self.width.load(Ordering::Relaxed) >= 100_000_000
    }

    /// The tag of the bucket at `nanos` since the beginning, in `generation`.
    #[inline]
    pub(super) fn tag(&self, nanos: u64, generation: u64) -> u32 {
        let bucket = (nanos / self.width.load(Ordering::Relaxed)) as u32;
        // The first tag is `LIVE`, so that slots that were never written are never live.
        bucket.wrapping_add((generation as u32).wrapping_mul(GENERATION)).wrapping_add(LIVE)
    }

    pub(super) fn record(&self, shard: usize, tag: u32, category: Category) {
        let slot = &self.shards[shard].0[category as usize][tag as usize % SLOTS];
        let mut word = slot.load(Ordering::Relaxed);
        loop {
            let ahead = tag_of(word).wrapping_sub(tag);
            let next = match ahead {
                0 => u64::from(tag) << 32 | u64::from((word as u32).saturating_add(1)),
                // The bucket is out of the window already.
                1..NEWER => return,
                _ => u64::from(tag) << 32 | 1,
            };
            // Ordered after all earlier records of other threads that this one may have to be summed with: see `counts`.
            match slot.compare_exchange_weak(word, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    /// Sums the live buckets. What was recorded before is counted. A result that is recorded meanwhile may be missed, so
    /// the sums are taken until two in a row agree: then they are what the window held between the two.
    pub(super) fn counts(&self, tag: u32) -> Counts {
        Counts::agreed(|| self.scan(tag))
    }

    fn scan(&self, tag: u32) -> Counts {
        // Failures before successes: where the sums are not one moment's, the rate comes out too low, never too high.
        let sum = |category: Category| -> u64 {
            let live = |word: u64| if tag.wrapping_sub(tag_of(word)) < LIVE { u64::from(word as u32) } else { 0 };
            self.shards
                .iter()
                .flat_map(|shard| &shard.0[category as usize])
                .map(|slot| live(slot.load(Ordering::SeqCst)))
                .sum()
        };
        let (slow_failed, failed) = (sum(Category::SlowFailed), sum(Category::Failed));
        Counts { slow_failed, failed, slow: sum(Category::Slow), succeeded: sum(Category::Succeeded) }
    }
}

fn tag_of(word: u64) -> u32 {
    (word >> 32) as u32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WIDTH: u64 = 1_000_000_000;

    fn window() -> TimeWindow {
        TimeWindow::new(Duration::from_secs(10), 2)
    }

    #[test]
    fn a_window_forgets_bucket_by_bucket_also_when_nobody_writes() {
        let window = window();
        for second in 0..10 {
            window.record(0, window.tag(second * WIDTH, 0), Category::Failed);
        }
        for idle in 0..=10 {
            assert_eq!(window.counts(window.tag((9 + idle) * WIDTH, 0)).failed, 10 - idle);
        }
        assert_eq!(window.counts(window.tag(u64::MAX, 0)).failed, 0);
    }

    #[test]
    fn a_new_generation_starts_empty_and_old_writers_do_not_reach_it() {
        let window = window();
        window.record(0, window.tag(0, 0), Category::Failed);
        assert_eq!(window.counts(window.tag(0, 1)), Counts::default());
        // A writer of the old generation whose clock is far ahead.
        window.record(0, window.tag(200 * WIDTH, 0), Category::Failed);
        assert_eq!(window.counts(window.tag(0, 1)), Counts::default());
    }

    #[test]
    fn a_late_writer_does_not_wipe_a_newer_bucket() {
        let window = window();
        let (old, new) = (window.tag(0, 0), window.tag(16 * WIDTH, 0));
        window.record(0, new, Category::Succeeded);
        window.record(0, old, Category::Succeeded);
        assert_eq!(window.counts(new).succeeded, 1);
    }

    #[test]
    fn wrapped_tags_do_not_make_it_deaf() {
        let window = window();
        let ancient = window.tag(0, 0);
        window.record(0, ancient, Category::Failed);
        let now = ancient.wrapping_sub(3 * NEWER);
        window.record(0, now.wrapping_sub(now % 16).wrapping_add(ancient % 16), Category::Failed);
        assert_eq!(window.counts(now.wrapping_sub(now % 16).wrapping_add(ancient % 16)).failed, 1);
    }

    proptest! {
        /// Against a list of all results, counted anew each time.
        #[test]
        fn counts_are_those_of_a_list(events in prop::collection::vec((0u64..4_000_000_000, 0usize..2, 0usize..4), 1..200)) {
            let window = window();
            let (mut now, mut list) = (0u64, Vec::new());
            for (pause, shard, category) in events {
                now += pause;
                let kind = [Category::Succeeded, Category::Failed, Category::Slow, Category::SlowFailed][category];
                window.record(shard, window.tag(now, 3), kind);
                list.push((now / WIDTH, category));
                let live = |category| list.iter().filter(|(bucket, c)| *c == category && now / WIDTH - bucket < 10).count() as u64;
                let counts = Counts { succeeded: live(0), failed: live(1), slow: live(2), slow_failed: live(3) };
                prop_assert_eq!(window.counts(window.tag(now, 3)), counts);
            }
        }
    }
}
