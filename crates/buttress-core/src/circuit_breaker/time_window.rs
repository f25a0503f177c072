use super::event::Counts;
use crate::buckets::{self, LATE, LIVE, Ring, SLOTS, live, slot_of, tag_of, width_of};
use crate::sync::{AtomicU64, Ordering};
use std::{sync::OnceLock, time::Duration};

/// By how much tags increase with a new generation: more than [`LIVE`], so that no earlier result
/// is live, even if its thread read the clock up to 200 buckets after the thread that began the
/// generation.
const GENERATION: u32 = 256;
/// The bits of [`TimeWindow::scale`] that contain the offset, in units of [`OFFSET_UNIT`] tags. The
/// other 44 bits contain the width, which is at most 2.4 hours.
const OFFSET_BITS: u32 = 20;
const OFFSET_UNIT: u32 = 1 << (32 - OFFSET_BITS);
/// Words of padding between the successes of two shards: two cache lines of 64 bytes, because the
/// adjacent-line prefetcher loads lines in pairs.
const PADDING: usize = 16;

/// The category of a result, in the order of the fields of [`Counts`].
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

/// Counts over a sliding time window of ten buckets.
///
/// The oldest bucket leaves the window as a whole, so the window covers between nine tenths and all
/// of its length. Within that, no result is lost or counted twice.
///
/// The words are those of [`buckets`]. A tag is the number of the bucket since the origin, and
/// increases with each generation.
///
/// Successes are counted per shard of threads. Bad results (failures and slow calls) are counted in
/// one place, so that the shards are summed only if there are enough bad results to meet a rule.
#[derive(Debug)]
pub(super) struct TimeWindow {
    /// `nanoseconds of a bucket << 20 | offset`. One word, because tags of an old width with a new
    /// offset would be far ahead of all later ones. Changed only by a reload, together with the
    /// generation.
    scale: AtomicU64,
    /// `tag << 32 | bad results`: no rule can be met while that bucket contains fewer bad results.
    skip_until: AtomicU64,
    /// The successes of each shard.
    good: Box<[AtomicU64]>,
    /// Words from one shard to the next in `good`.
    stride: usize,
    /// Created by the first bad result.
    bad: OnceLock<Box<[Ring; 3]>>,
}

impl TimeWindow {
    pub(super) fn new(window: Duration, shards: usize) -> Self {
        let stride = if shards > 1 { SLOTS + PADDING } else { SLOTS };
        Self {
            scale: AtomicU64::new(width_of(window) << OFFSET_BITS),
            skip_until: AtomicU64::new(0),
            good: (0..shards * stride).map(|_| AtomicU64::new(0)).collect(),
            stride,
            // The model checker does not see that a `OnceLock` of the standard library synchronizes
            // its initialization with its readers.
            bad: if cfg!(loom) { OnceLock::from(Box::default()) } else { OnceLock::new() },
        }
    }

    /// Changes the length of the window, when a new generation begins at `nanos` since the origin.
    pub(super) fn resize(&self, window: Duration, nanos: u64) {
        let (old, width) = (self.scale.load(Ordering::Relaxed), width_of(window));
        // Bucket numbers decrease when buckets become wider. Without an offset that keeps new tags
        // ahead of all earlier ones, every slot would look newer than its writers, for hours.
        let behind = ((nanos / (old >> OFFSET_BITS)) as u32).wrapping_sub((nanos / width) as u32);
        let units = if behind as i32 > 0 { behind.div_ceil(OFFSET_UNIT) } else { 0 };
        let offset = old.wrapping_add(units.into()) & ((1 << OFFSET_BITS) - 1);
        self.scale.store(width << OFFSET_BITS | offset, Ordering::Relaxed);
        self.invalidate();
    }

    /// Returns whether a window of the given length has buckets of another width.
    pub(super) fn differs(&self, window: Duration) -> bool {
        self.scale.load(Ordering::Relaxed) >> OFFSET_BITS != width_of(window)
    }

    /// Returns whether a clock that is a few milliseconds behind is precise enough: if buckets are
    /// 100 ms or longer.
    #[inline]
    pub(super) fn is_coarse(&self) -> bool {
        self.scale.load(Ordering::Relaxed) >= 100_000_000 << OFFSET_BITS
    }

    /// Returns the tag of the bucket at `nanos` since the origin, in `generation`.
    #[inline]
    pub(super) fn tag(&self, nanos: u64, generation: u64) -> u32 {
        let scale = self.scale.load(Ordering::Relaxed);
        let bucket = (nanos / (scale >> OFFSET_BITS)) as u32;
        // The first tag is `LIVE`, so that a slot that was never written is not live.
        bucket
            .wrapping_add((generation as u32).wrapping_mul(GENERATION))
            .wrapping_add((scale as u32) << (32 - OFFSET_BITS))
            .wrapping_add(LIVE)
    }

    /// Counts a result. `is_current` returns whether its generation is still the current one.
    #[inline]
    pub(super) fn record(&self, shard: usize, tag: u32, category: Category, is_current: impl Fn() -> bool) {
        let slot = slot_of(tag);
        match category {
            Category::Succeeded => self.count(&self.good[shard * self.stride + slot], tag, is_current),
            _ => {
                let bad = self.bad.get_or_init(Default::default);
                self.count(&bad[category as usize - 1][slot], tag, is_current);
            }
        }
    }

    #[inline]
    fn count(&self, slot: &AtomicU64, tag: u32, is_current: impl Fn() -> bool) {
        buckets::count(slot, tag, |ahead| self.is_set_back(ahead, &is_current));
    }

    /// Returns whether the slot is ahead of its writer because the clock was set back, or because
    /// tags have wrapped. Otherwise the writer's bucket has left the window, or the slot belongs to
    /// a later generation.
    #[cold]
    #[inline(never)]
    fn is_set_back(&self, ahead: i32, is_current: &impl Fn() -> bool) -> bool {
        let width = self.scale.load(Ordering::Relaxed) >> OFFSET_BITS;
        (ahead as u64).saturating_mul(width) > LATE && is_current()
    }

    /// Sums the live buckets. All results that were recorded before the call are counted. One that
    /// is recorded during a sum may be missed, so sums are repeated until two consecutive ones
    /// agree, up to five times: sums that agree are what the window contained between the two.
    pub(super) fn counts(&self, tag: u32) -> Counts {
        Counts::agreed(|| {
            // Failures before successes: a result that is recorded between the two sums can only
            // make the failure rate too low.
            let bad = self.bad(tag);
            let shards = self.good.chunks(self.stride).map(|shard| live(&shard[..SLOTS], tag));
            Counts { succeeded: shards.sum(), ..bad }
        })
    }

    /// Returns the bad results in the bucket of `tag`.
    pub(super) fn bad_in_bucket(&self, tag: u32) -> u32 {
        let Some(rings) = self.bad.get() else { return 0 };
        let words = rings.iter().map(|ring| ring[slot_of(tag)].load(Ordering::SeqCst));
        words.filter(|word| tag_of(*word) == tag).fold(0, |sum, word| sum.saturating_add(word as u32))
    }

    /// Returns whether `bad` results in the bucket of `tag` may be enough to meet a rule. If not,
    /// nothing needs to be summed.
    pub(super) fn needs_check(&self, tag: u32, bad: u32) -> bool {
        let skip = self.skip_until.load(Ordering::SeqCst);
        tag_of(skip) != tag || bad >= skip as u32
    }

    /// Skips sums until the bucket of `tag` contains `missing` more bad results than `bad`, because
    /// every rule lacked as many in a sum that was taken when it contained `bad` or more. Valid for
    /// this bucket only, during which no result leaves the window: a result of another one, also
    /// that of a late thread, sums again.
    pub(super) fn skip_until(&self, tag: u32, bad: u32, missing: u32) {
        self.skip_until.store(u64::from(tag) << 32 | u64::from(bad.saturating_add(missing)), Ordering::SeqCst);
    }

    /// Sums again with the next bad result, because the rules have changed.
    pub(super) fn invalidate(&self) {
        self.skip_until.store(0, Ordering::SeqCst);
    }

    fn bad(&self, tag: u32) -> Counts {
        let Some([failed, slow, slow_failed]) = self.bad.get().map(|bad| &**bad) else { return Counts::default() };
        Counts {
            slow_failed: live(slow_failed, tag),
            failed: live(failed, tag),
            slow: live(slow, tag),
            ..Counts::default()
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WIDTH: u64 = 1_000_000_000;

    fn window() -> TimeWindow {
        TimeWindow::new(Duration::from_secs(10), 2)
    }

    fn current() -> bool {
        true
    }

    fn overtaken() -> bool {
        false
    }

    #[test]
    fn a_window_forgets_bucket_by_bucket_also_without_writes() {
        let window = window();
        for second in 0..10 {
            window.record(0, window.tag(second * WIDTH, 0), Category::Failed, current);
        }
        for idle in 0..=10 {
            assert_eq!(window.counts(window.tag((9 + idle) * WIDTH, 0)).failed, 10 - idle);
        }
        assert_eq!(window.counts(window.tag(u64::MAX, 0)).failed, 0);
    }

    #[test]
    fn a_new_generation_starts_empty_and_old_writers_do_not_reach_it() {
        let window = window();
        window.record(0, window.tag(0, 0), Category::Failed, current);
        assert_eq!(window.counts(window.tag(0, 1)), Counts::default());
        // A writer of the old generation that read the clock 200 buckets later.
        window.record(0, window.tag(200 * WIDTH, 0), Category::Failed, overtaken);
        assert_eq!(window.counts(window.tag(0, 1)), Counts::default());
    }

    #[test]
    fn a_late_writer_does_not_wipe_a_newer_bucket() {
        // Sixteen buckets of half a second ahead, in the same slot.
        let window = TimeWindow::new(Duration::from_secs(5), 2);
        let (old, new) = (window.tag(0, 0), window.tag(8 * WIDTH, 0));
        window.record(0, new, Category::Succeeded, current);
        window.record(0, old, Category::Succeeded, current);
        assert_eq!(window.counts(new).succeeded, 1);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_make_it_deaf() {
        let window = window();
        let hour = 3600 * WIDTH;
        let tag = |nanos| window.tag(nanos, 0);
        for second in 0..16 {
            window.record(0, tag(hour + second * WIDTH), Category::Failed, current);
        }
        for second in 0..16 {
            window.record(0, tag(second * WIDTH), Category::Failed, overtaken);
        }
        assert_eq!(window.counts(tag(15 * WIDTH)).failed, 0, "a later generation is not touched");
        for second in 0..16 {
            window.record(0, tag(second * WIDTH), Category::Failed, current);
        }
        assert_eq!(window.counts(tag(15 * WIDTH)).failed, 10);
    }

    #[test]
    fn wrapped_tags_do_not_make_it_deaf() {
        let window = window();
        let ancient = window.tag(0, 0);
        window.record(0, ancient, Category::Failed, current);
        for back in [1 << 4, 1 << 20, 1 << 30] {
            let now = ancient.wrapping_sub(back);
            window.record(0, now, Category::Failed, current);
            assert_eq!(window.counts(now).failed, 1, "{back}");
        }
    }

    #[test]
    fn another_width_is_ahead_of_all_that_was_written_at_any_uptime() {
        let times = [1, 10, 100, 3600, 86_400].map(Duration::from_secs);
        for uptime in [0, 60, 3600, 86_400, 30_000_000] {
            let nanos = uptime * WIDTH;
            let window = window();
            let mut generation = 0;
            for (from, to) in times.iter().flat_map(|from| times.iter().map(move |to| (*from, *to))) {
                window.resize(from, nanos);
                for slot in 0..16 {
                    window.record(
                        0,
                        window.tag(nanos + slot * width_of(from), generation),
                        Category::Failed,
                        overtaken,
                    );
                }
                window.resize(to, nanos);
                generation += 1;
                let tag = window.tag(nanos, generation);
                assert_eq!(window.counts(tag).failed, 0);
                window.record(0, tag, Category::Failed, overtaken);
                assert_eq!(window.counts(tag).failed, 1, "{from:?} to {to:?} after {uptime} s");
                generation += 1;
            }
        }
    }

    #[test]
    fn successes_are_summed_only_where_bad_results_may_be_enough() {
        let window = window();
        let tag = window.tag(0, 0);
        let fail = |tag| {
            window.record(0, tag, Category::Failed, current);
            window.needs_check(tag, window.bad_in_bucket(tag))
        };
        assert!(fail(tag));
        window.skip_until(tag, window.bad_in_bucket(tag), 3);
        assert_eq!([fail(tag), fail(tag), fail(tag)], [false, false, true]);
        window.skip_until(tag, window.bad_in_bucket(tag), 3);
        let next = window.tag(WIDTH, 0);
        assert!(fail(next), "in the next bucket, results have left the window");
        window.skip_until(next, window.bad_in_bucket(next), 2);
        assert!(fail(tag), "a late result of the last bucket counts in this one too");
        window.skip_until(tag, window.bad_in_bucket(tag), 9);
        assert!(fail(next), "and then the next result of this one sums");
        window.invalidate();
        assert!(fail(tag));
    }

    proptest! {
        /// Compares it with a list of all results.
        #[test]
        fn counts_are_those_of_a_list(events in prop::collection::vec((0u64..4_000_000_000, 0usize..2, 0usize..4), 1..200)) {
            let window = window();
            let (mut now, mut list) = (0u64, Vec::new());
            for (pause, shard, category) in events {
                now += pause;
                let kind = [Category::Succeeded, Category::Failed, Category::Slow, Category::SlowFailed][category];
                window.record(shard, window.tag(now, 3), kind, current);
                list.push((now / WIDTH, category));
                let live = |category| list.iter().filter(|(bucket, c)| *c == category && now / WIDTH - bucket < 10).count() as u64;
                let counts = Counts { succeeded: live(0), failed: live(1), slow: live(2), slow_failed: live(3) };
                prop_assert_eq!(window.counts(window.tag(now, 3)), counts);
            }
        }
    }
}
