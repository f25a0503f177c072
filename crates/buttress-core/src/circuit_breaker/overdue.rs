use crate::sync::{AtomicU64, Ordering};

/// The number of buckets in the slow threshold, and so the precision of the count.
#[cfg(not(loom))]
const PARTS: u64 = 8;
/// The number of slots: more than [`PARTS`], so that the calls of a slot that is reused are
/// overdue.
#[cfg(not(loom))]
const SLOTS: usize = 16;
/// The model checker branches at every load, so its ring is the smallest possible.
#[cfg(loom)]
const PARTS: u64 = 1;
#[cfg(loom)]
const SLOTS: usize = 2;
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

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        /// Starts a call whose thread read the clock this many ticks ago.
        Start(u64),
        End(usize),
        /// Begins a generation. The calls of earlier ones do not count, and their ends are not
        /// reported.
        Renew,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u64..400).prop_map(Step::Wait),
            4 => Just(Step::Start(0)),
            2 => (0u64..2_000).prop_map(Step::Start),
            4 => (0usize..8).prop_map(Step::End),
            1 => Just(Step::Renew),
        ]
    }

    proptest! {
        /// Compares it with a list of the calls in flight. Both count in buckets: a call is overdue
        /// at the latest an eighth after the threshold.
        #[test]
        fn overdue_calls_are_those_of_a_list(steps in prop::collection::vec(step(), 1..200)) {
            let overdue = Overdue::new(8_000_000);
            let (mut now, mut generation, mut list) = (10_000u64, 1, Vec::new());
            for step in steps {
                match step {
                    Step::Wait(ticks) => now += ticks,
                    Step::Start(ago) => {
                        list.push(now - ago);
                        overdue.start(overdue.tag(now - ago, generation), generation);
                    }
                    Step::End(which) if !list.is_empty() => {
                        let started = list.remove(which % list.len());
                        overdue.end(overdue.tag(started, generation), generation);
                    }
                    Step::End(_) => {}
                    Step::Renew => {
                        generation += 1;
                        list.clear();
                    }
                }
                let expected = list.iter().filter(|started| now / 100 - *started / 100 > 8).count() as u64;
                let count = |generation| overdue.count(overdue.tag(now, generation), generation);
                prop_assert_eq!(count(generation), expected);
                prop_assert_eq!(count(generation + 1), 0, "another generation has none");
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::loom_models::model;
    use loom::{sync::Arc, thread};

    /// A threshold of 8 ms, which is the width of a bucket of the models.
    fn overdue() -> Arc<Overdue> {
        Arc::new(Overdue::new(8_000_000))
    }

    /// The tag of the start of a bucket.
    fn tag(overdue: &Overdue, bucket: u64, generation: u64) -> u64 {
        overdue.tag(bucket * 800, generation)
    }

    fn count(overdue: &Overdue, bucket: u64, generation: u64) -> u64 {
        overdue.count(tag(overdue, bucket, generation), generation)
    }

    #[test]
    fn a_call_that_ends_while_its_slot_is_reused_is_neither_kept_nor_subtracted_twice() {
        model(|| {
            let overdue = overdue();
            let (first, second) = (tag(&overdue, 1, 1), tag(&overdue, 1 + SLOTS as u64, 1));
            overdue.start(first, 1);
            let ends = overdue.clone();
            let thread = thread::spawn(move || ends.end(first, 1));
            overdue.start(second, 1);
            thread.join().unwrap();
            assert_eq!(count(&overdue, 9, 1), 1);
            overdue.end(second, 1);
            assert_eq!(count(&overdue, 9, 1), 0);
        });
    }

    #[test]
    fn of_two_calls_that_start_at_once_in_one_slot_none_is_lost() {
        model(|| {
            let overdue = overdue();
            let (late, current) = (tag(&overdue, 1, 1), tag(&overdue, 1 + SLOTS as u64, 1));
            let starts = overdue.clone();
            let thread = thread::spawn(move || starts.start(late, 1));
            overdue.start(current, 1);
            thread.join().unwrap();
            assert_eq!(count(&overdue, 9, 1), 2);
            overdue.end(late, 1);
            overdue.end(current, 1);
            assert_eq!(count(&overdue, 9, 1), 0);
        });
    }

    #[test]
    fn a_call_of_an_earlier_generation_that_starts_late_is_not_counted_in_the_next() {
        model(|| {
            let overdue = overdue();
            let (old, new) = (tag(&overdue, 1, 1), tag(&overdue, 1, 2));
            let starts = overdue.clone();
            let thread = thread::spawn(move || starts.start(new, 2));
            overdue.start(old, 1);
            thread.join().unwrap();
            assert!(count(&overdue, 9, 2) <= 1);
        });
    }

    #[test]
    fn of_two_callers_at_once_one_checks() {
        model(|| {
            let overdue = overdue();
            let checks = overdue.clone();
            let thread = thread::spawn(move || checks.is_check_due(1));
            let mine = overdue.is_check_due(1);
            assert!(mine ^ thread.join().unwrap());
        });
    }
}
