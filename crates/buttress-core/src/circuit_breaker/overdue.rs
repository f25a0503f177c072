use crate::sync::{AtomicU64, Ordering};

/// The number of buckets in the slow threshold, and so the precision of the count.
const PARTS: u64 = 8;
const SLOTS: usize = 16;
/// The bits of a word, which is `generation | bucket | calls`. With a threshold of one second,
/// buckets wrap after 24 days.
const CALLS_BITS: u32 = 24;
const BUCKET_BITS: u32 = 24;
const CALLS: u64 = (1 << CALLS_BITS) - 1;
const BUCKET: u64 = (1 << BUCKET_BITS) - 1;
/// Nanoseconds by which a call may be counted after it read the clock. A larger difference means
/// that the clock was set back.
const LATE: u64 = 10_000_000_000;

/// Counts calls in flight by the time at which they started, so that overdue calls count before
/// they end: calls to a backend that hangs do not end.
///
/// Each slot of a ring contains the calls of one bucket. When a slot is reused for a new bucket,
/// its calls are added to `older`. A call that ends is subtracted from its slot, or from `older` if
/// the slot contains another bucket or no call.
#[derive(Debug)]
pub(super) struct Overdue {
    /// The length of a bucket in nanoseconds.
    width: u64,
    slots: [AtomicU64; SLOTS],
    /// `generation << 32 | calls`, of the buckets that are older than the ring. The number wraps:
    /// it is below 0 while a call has ended and its slot has not been added yet.
    older: AtomicU64,
    /// The time of the next check in nanoseconds.
    next_check: AtomicU64,
}

impl Overdue {
    pub(super) fn new(threshold: u64) -> Self {
        Self {
            width: (threshold / PARTS).max(1),
            slots: Default::default(),
            older: AtomicU64::new(0),
            next_check: AtomicU64::new(0),
        }
    }

    /// Returns the word, without calls, of a call that started at `ticks`.
    pub(super) fn tag(&self, ticks: u64, generation: u64) -> u64 {
        let bucket = (ticks * super::ticks::TICK / self.width) & BUCKET;
        (generation << BUCKET_BITS | bucket) << CALLS_BITS
    }

    /// Returns whether to check for overdue calls. True for one caller in each eighth of the
    /// threshold.
    pub(super) fn is_check_due(&self, nanos: u64) -> bool {
        let next = self.next_check.load(Ordering::Relaxed);
        // If the next check is far ahead, the clock was set back since it was planned.
        let due = nanos >= next || next - nanos > self.width.saturating_add(LATE);
        due && self.next_check.compare_exchange(next, nanos + self.width, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Counts a call that starts in the bucket of `tag`.
    pub(super) fn start(&self, tag: u64, generation: u64) {
        let slot = &self.slots[slot_of(tag)];
        let mut word = slot.load(Ordering::Relaxed);
        loop {
            let next = if tag_of(word) == tag {
                word + 1
            } else if self.is_late(tag, word) {
                // The slot has been reused for a later bucket.
                return self.add_older(generation, 1);
            } else {
                tag | 1
            };
            match slot.compare_exchange_weak(word, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        if tag_of(word) != tag && same_generation(word, tag) {
            self.add_older(generation, (word & CALLS) as u32);
        }
    }

    /// Removes a call that started in the bucket of `tag`.
    pub(super) fn end(&self, tag: u64, generation: u64) {
        let slot = &self.slots[slot_of(tag)];
        let mut word = slot.load(Ordering::Relaxed);
        while tag_of(word) == tag && word & CALLS != 0 {
            match slot.compare_exchange_weak(word, word - 1, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
        self.add_older(generation, u32::MAX);
    }

    /// Returns how many calls in flight started longer ago than the threshold, to within an eighth
    /// of it. `tag` is that of the current time.
    pub(super) fn count(&self, tag: u64, generation: u64) -> u64 {
        // The age is negative if another thread's clock is ahead of this one's: not overdue.
        let is_overdue = |word: u64| same_generation(word, tag) && age(tag, word) > PARTS as i32;
        let words = self.slots.iter().map(|slot| slot.load(Ordering::SeqCst));
        let ring: u64 = words.filter(|word| is_overdue(*word)).map(|word| word & CALLS).sum();
        let older = self.older.load(Ordering::SeqCst);
        let older = if (older >> 32) as u32 == generation as u32 { older as u32 as i32 } else { 0 };
        (ring as i64 + i64::from(older)).max(0) as u64
    }

    /// Returns whether `word` contains a later bucket of the generation of `tag`, and the clock was
    /// not set back.
    fn is_late(&self, tag: u64, word: u64) -> bool {
        let ahead = age(word, tag);
        same_generation(word, tag) && ahead > 0 && (ahead as u64).saturating_mul(self.width) <= LATE
    }

    fn add_older(&self, generation: u64, calls: u32) {
        if calls == 0 {
            return;
        }
        let mut word = self.older.load(Ordering::Relaxed);
        loop {
            let known = if (word >> 32) as u32 == generation as u32 { word as u32 } else { 0 };
            let next = generation << 32 | u64::from(known.wrapping_add(calls));
            match self.older.compare_exchange_weak(word, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }
}

fn same_generation(a: u64, b: u64) -> bool {
    a >> (CALLS_BITS + BUCKET_BITS) == b >> (CALLS_BITS + BUCKET_BITS)
}

fn tag_of(word: u64) -> u64 {
    word & !CALLS
}

fn bucket_of(word: u64) -> u64 {
    word >> CALLS_BITS & BUCKET
}

fn slot_of(tag: u64) -> usize {
    bucket_of(tag) as usize % SLOTS
}

/// Returns by how many buckets `later` is after `earlier`. Buckets wrap, so that half of the
/// distances are negative.
fn age(later: u64, earlier: u64) -> i32 {
    let distance = bucket_of(later).wrapping_sub(bucket_of(earlier)) & BUCKET;
    ((distance << (32 - BUCKET_BITS)) as u32 as i32) >> (32 - BUCKET_BITS)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_caller_looks_in_each_eighth_of_the_threshold() {
        let overdue = Overdue::new(800);
        let looks: Vec<_> =
            [0, 50, 99, 100, 150, 200, 1000, 1050].into_iter().filter(|nanos| overdue.is_check_due(*nanos)).collect();
        assert_eq!(looks, [0, 100, 200, 1000]);
    }

    #[test]
    fn a_call_that_started_by_a_clock_ahead_of_ours_is_young() {
        let overdue = Overdue::new(8_000_000);
        overdue.start(overdue.tag(500, 1), 1);
        assert_eq!(overdue.count(overdue.tag(400, 1), 1), 0);
        assert_eq!(overdue.count(overdue.tag(1300, 1), 1), 0);
        assert_eq!(overdue.count(overdue.tag(1400, 1), 1), 1);
    }

    #[test]
    fn a_late_start_and_a_wrap_of_buckets_keep_the_count_right() {
        let overdue = Overdue::new(8_000_000);
        let tag = |ticks| overdue.tag(ticks, 1);
        overdue.start(tag(100), 1);
        // A call in the same slot one ring later, and a call that read the clock before it.
        overdue.start(tag(1700), 1);
        overdue.start(tag(100), 1);
        assert_eq!(overdue.count(tag(1800), 1), 2);
        overdue.end(tag(100), 1);
        overdue.end(tag(100), 1);
        assert_eq!((overdue.count(tag(1800), 1), overdue.count(tag(3000), 1)), (0, 1));
        // A call in a bucket of the same number, after buckets have wrapped.
        let wrapped = tag(1700 + (100 << BUCKET_BITS));
        overdue.start(wrapped, 1);
        overdue.end(wrapped, 1);
        overdue.end(tag(1700), 1);
        overdue.end(tag(1700), 1);
        overdue.start(tag(1700), 1);
        assert_eq!(overdue.count(tag(1700), 1), 0);
    }

    #[test]
    fn a_clock_that_is_set_back_starts_buckets_anew() {
        let overdue = Overdue::new(80_000_000);
        let tag = |ticks| overdue.tag(ticks, 1);
        assert!(overdue.is_check_due(7_200_000_000_000));
        overdue.start(tag(720_000_000), 1);
        overdue.end(tag(720_000_000), 1);
        let back = 720_000_000 - 360_000_000;
        assert!(overdue.is_check_due(3_600_000_000_000));
        overdue.start(tag(back), 1);
        assert_eq!(overdue.count(tag(back), 1), 0);
        assert_eq!(overdue.count(tag(back + 10_000), 1), 1);
    }

    proptest! {
        /// Compares it with a list of the calls in flight. Both count in buckets: a call is overdue
        /// at the latest an eighth after the threshold.
        #[test]
        fn overdue_calls_are_those_of_a_list(steps in prop::collection::vec((0u64..400, any::<bool>(), 0usize..8), 1..200)) {
            let overdue = Overdue::new(8_000_000);
            let (mut now, mut list) = (0u64, Vec::new());
            for (pause, starts, which) in steps {
                now += pause;
                if starts {
                    list.push(now);
                    overdue.start(overdue.tag(now, 1), 1);
                } else if !list.is_empty() {
                    let started = list.remove(which % list.len());
                    overdue.end(overdue.tag(started, 1), 1);
                }
                let expected = list.iter().filter(|started| now / 100 - *started / 100 > 8).count() as u64;
                prop_assert_eq!(overdue.count(overdue.tag(now, 1), 1), expected);
                prop_assert_eq!(overdue.count(overdue.tag(now, 2), 2), 0, "another generation has none");
            }
        }
    }
}
