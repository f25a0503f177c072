use crate::sync::{AtomicU64, Ordering};
use std::time::Duration;

/// How many buckets make up the slow threshold.
const PARTS: u32 = 8;
const SLOTS: usize = 16;
/// The bits of a tag that number the bucket: for a threshold of a second, a day and a half until they wrap.
const BUCKET_BITS: u32 = 20;

/// Counts calls in flight by the time at which they started, so that those that are overdue are seen before they end: a backend that hangs
/// ends no calls.
///
/// Slots are words of `generation | bucket | calls in flight`. A slot that is needed again gives its calls to the count of those that
/// are older than the ring, and a call that ends looks for itself in both places.
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
    pub(super) fn new(threshold: Duration) -> Self {
        Self {
            width: (super::nanos(threshold) / u64::from(PARTS)).max(1),
            slots: Default::default(),
            older: AtomicU64::new(0),
            next_look: AtomicU64::new(0),
        }
    }

    /// The tag of a call that started at `ticks`. Ticks wrap after twelve hours, and so do buckets: a call that is in flight for longer is taken for a younger one.
    pub(super) fn tag(&self, ticks: u64, generation: u64) -> u32 {
        (generation as u32) << BUCKET_BITS
            | (ticks * super::circuit::TICK / self.width) as u32 & ((1 << BUCKET_BITS) - 1)
    }

    /// Whether it is time to look for overdue calls. True for one caller in each eighth of the threshold.
    pub(super) fn look(&self, nanos: u64) -> bool {
        let next = self.next_look.load(Ordering::Relaxed);
        nanos >= next
            && self.next_look.compare_exchange(next, nanos + self.width, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    pub(super) fn start(&self, tag: u32, generation: u64) {
        let slot = &self.slots[tag as usize % SLOTS];
        let mut word = slot.load(Ordering::Relaxed);
        loop {
            let next = if tag_of(word) == tag { word + 1 } else { u64::from(tag) << 32 | 1 };
            match slot.compare_exchange_weak(word, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        if tag_of(word) != tag && word as u32 != 0 && same_generation(tag_of(word), tag) {
            self.add_older(generation, word as u32);
        }
    }

    pub(super) fn end(&self, tag: u32, generation: u64) {
        let slot = &self.slots[tag as usize % SLOTS];
        let mut word = slot.load(Ordering::Relaxed);
        while tag_of(word) == tag {
            match slot.compare_exchange_weak(word, word.saturating_sub(1), Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
        self.add_older(generation, u32::MAX);
    }

    /// Calls that started longer ago than the threshold, to within an eighth of it.
    pub(super) fn count(&self, tag: u32, generation: u64) -> u64 {
        // A slot that was begun by a thread whose clock is ahead of this one's is as young as can be.
        let is_overdue = |word: u64| {
            let age = tag.wrapping_sub(tag_of(word)) & ((1 << BUCKET_BITS) - 1);
            same_generation(tag_of(word), tag) && PARTS < age && age < 1 << (BUCKET_BITS - 1)
        };
        let words = self.slots.iter().map(|slot| slot.load(Ordering::SeqCst));
        let ring: u64 = words.filter(|word| is_overdue(*word)).map(|word| u64::from(word as u32)).sum();
        let older = self.older.load(Ordering::SeqCst);
        let older = if (older >> 32) as u32 == generation as u32 { older as u32 as i32 } else { 0 };
        (ring as i64 + i64::from(older)).max(0) as u64
    }

    fn add_older(&self, generation: u64, calls: u32) {
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

fn same_generation(a: u32, b: u32) -> bool {
    a >> BUCKET_BITS == b >> BUCKET_BITS
}

fn tag_of(word: u64) -> u32 {
    (word >> 32) as u32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_caller_looks_in_each_eighth_of_the_threshold() {
        let overdue = Overdue::new(Duration::from_nanos(800));
        let looks: Vec<_> =
            [0, 50, 99, 100, 150, 200, 1000, 1050].into_iter().filter(|nanos| overdue.look(*nanos)).collect();
        assert_eq!(looks, [0, 100, 200, 1000]);
    }

    #[test]
    fn a_call_that_started_by_a_clock_ahead_of_ours_is_young() {
        let overdue = Overdue::new(Duration::from_micros(8000));
        overdue.start(overdue.tag(500, 1), 1);
        assert_eq!(overdue.count(overdue.tag(400, 1), 1), 0);
        assert_eq!(overdue.count(overdue.tag(1300, 1), 1), 0);
        assert_eq!(overdue.count(overdue.tag(1400, 1), 1), 1);
    }

    proptest! {
        /// Against a list of the calls in flight. Bucket widths blur the edge: a call counts for sure once it is an eighth past the threshold.
        #[test]
        fn overdue_calls_are_those_of_a_list(steps in prop::collection::vec((0u64..400, any::<bool>(), 0usize..8), 1..200)) {
            let overdue = Overdue::new(Duration::from_micros(8000));
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
