use crate::sync::{AtomicU64, Ordering};

/// How many buckets make up the slow threshold.
const PARTS: u64 = 8;
const SLOTS: usize = 16;
/// A word is `generation | bucket | calls`. For a threshold of a second, buckets wrap after 24
/// days.
const CALLS_BITS: u32 = 24;
const BUCKET_BITS: u32 = 24;
const CALLS: u64 = (1 << CALLS_BITS) - 1;
const BUCKET: u64 = (1 << BUCKET_BITS) - 1;
/// Nanoseconds by which a call's start may be late. One that seems to be later has a clock that was
/// set back.
const LATE: u64 = 10_000_000_000;

/// Counts calls in flight by the time at which they started, so that those that are overdue are
/// seen before they end: a backend that hangs ends no calls.
///
/// Each slot of a ring holds the calls of one bucket. A slot that is needed again gives its calls
/// to the count of those that are older than the ring. A call that ends is taken off its slot, or
/// off that count when its slot holds another bucket or no call.
#[derive(Debug)]
pub(super) struct Overdue {
    /// Nanoseconds of a bucket.
    width: u64,
    slots: [AtomicU64; SLOTS],
    /// `generation << 32 | calls`, wrapping: a call may end in between its two places.
    older: AtomicU64,
    /// Nanoseconds of the next look.
    next_look: AtomicU64,
}

impl Overdue {
    pub(super) fn new(threshold: u64) -> Self {
        Self {
            width: (threshold / PARTS).max(1),
            slots: Default::default(),
            older: AtomicU64::new(0),
            next_look: AtomicU64::new(0),
        }
    }

    /// The upper part of the word for a call that started at `ticks`.
    pub(super) fn tag(&self, ticks: u64, generation: u64) -> u64 {
        let bucket = (ticks * super::ticks::TICK / self.width) & BUCKET;
        (generation << BUCKET_BITS | bucket) << CALLS_BITS
    }

    /// Whether it is time to look for overdue calls. True for one caller in each eighth of the
    /// threshold.
    pub(super) fn look(&self, nanos: u64) -> bool {
        let next = self.next_look.load(Ordering::Relaxed);
        // A look that is far ahead was planned by a clock that was set back since.
        let due = nanos >= next || next - nanos > self.width.saturating_add(LATE);
        due && self.next_look.compare_exchange(next, nanos + self.width, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    pub(super) fn start(&self, tag: u64, generation: u64) {
        let slot = &self.slots[slot_of(tag)];
        let mut word = slot.load(Ordering::Relaxed);
        loop {
            let next = if tag_of(word) == tag {
                word + 1
            } else if self.is_late(tag, word) {
                // It is older than the ring already.
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

    /// Calls that started longer ago than the threshold, to within an eighth of it.
    pub(super) fn count(&self, tag: u64, generation: u64) -> u64 {
        // A slot that was begun by a thread whose clock is ahead of this one's is as young as can
        // be.
        let is_overdue = |word: u64| same_generation(word, tag) && age(tag, word) > PARTS as i32;
        let words = self.slots.iter().map(|slot| slot.load(Ordering::SeqCst));
        let ring: u64 = words.filter(|word| is_overdue(*word)).map(|word| word & CALLS).sum();
        let older = self.older.load(Ordering::SeqCst);
        let older = if (older >> 32) as u32 == generation as u32 { older as u32 as i32 } else { 0 };
        (ring as i64 + i64::from(older)).max(0) as u64
    }

    /// Whether a call of bucket `tag` comes after its slot has gone on to a later bucket of the
    /// same generation.
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

/// By how many buckets `later` is after `earlier`. Buckets wrap, so that half of them are before.
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
            [0, 50, 99, 100, 150, 200, 1000, 1050].into_iter().filter(|nanos| overdue.look(*nanos)).collect();
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
        // The same slot, a ring later, and a call that read its clock before.
        overdue.start(tag(1700), 1);
        overdue.start(tag(100), 1);
        assert_eq!(overdue.count(tag(1800), 1), 2);
        overdue.end(tag(100), 1);
        overdue.end(tag(100), 1);
        assert_eq!((overdue.count(tag(1800), 1), overdue.count(tag(3000), 1)), (0, 1));
        // A call of the same bucket after all of them have wrapped.
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
        assert!(overdue.look(7_200_000_000_000));
        overdue.start(tag(720_000_000), 1);
        overdue.end(tag(720_000_000), 1);
        let back = 720_000_000 - 360_000_000;
        assert!(overdue.look(3_600_000_000_000));
        overdue.start(tag(back), 1);
        assert_eq!(overdue.count(tag(back), 1), 0);
        assert_eq!(overdue.count(tag(back + 10_000), 1), 1);
    }

    proptest! {
        /// Against a list of the calls in flight. Bucket widths blur the edge: a call counts for
        /// sure once it is an eighth past the threshold.
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
