//! The words of a sliding window of ten time buckets.
//!
//! A slot is one word, `tag << 32 | count`. The tag is the number of the bucket, so a thread that
//! finds an older tag begins a new bucket with the same compare-and-swap that counts, and a reader
//! skips slots whose tags are not live. Nothing has to clear expired buckets, after any idle time.

use crate::sync::{AtomicU64, Ordering};
use std::time::Duration;

/// The number of buckets in a window. Polly, linkerd, Finagle and Hystrix use ten as well.
#[cfg(not(loom))]
pub(crate) const LIVE: u32 = 10;
/// The number of slots: more than [`LIVE`], and a power of two, so that a tag keeps its slot when
/// tags wrap.
#[cfg(not(loom))]
pub(crate) const SLOTS: usize = 16;
/// The model checker branches at every load, so its ring is the smallest possible.
#[cfg(loom)]
pub(crate) const LIVE: u32 = 1;
#[cfg(loom)]
pub(crate) const SLOTS: usize = 2;
/// Nanoseconds by which a thread may write a result after it read the clock. A larger difference
/// means that the clock was set back.
pub(crate) const LATE: u64 = 10_000_000_000;

pub(crate) type Ring = [AtomicU64; SLOTS];

/// Returns the nanoseconds of a bucket of a window of the given length.
pub(crate) fn width_of(window: Duration) -> u64 {
    (crate::timeline::nanos(window) / u64::from(LIVE)).max(1)
}

pub(crate) fn slot_of(tag: u32) -> usize {
    tag as usize % SLOTS
}

pub(crate) fn tag_of(word: u64) -> u32 {
    (word >> 32) as u32
}

/// Counts one in the bucket of `tag`. `is_set_back` gets by how many tags the slot is ahead, and
/// returns whether that is because the clock was set back. Otherwise the bucket has left the window
/// and nothing is counted.
#[inline]
pub(crate) fn count(slot: &AtomicU64, tag: u32, is_set_back: impl Fn(i32) -> bool) {
    let mut word = slot.load(Ordering::Relaxed);
    loop {
        let next = match tag_of(word).wrapping_sub(tag) as i32 {
            0 => u64::from(tag) << 32 | u64::from((word as u32).saturating_add(1)),
            ahead @ 1.. if !is_set_back(ahead) => return,
            _ => u64::from(tag) << 32 | 1,
        };
        // SeqCst, so that of two threads that count at the same time and then sum, one sees both.
        match slot.compare_exchange_weak(word, next, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => word = now,
        }
    }
}

/// Takes back one that was counted in the bucket of `tag`, unless the slot has another bucket now.
#[inline]
pub(crate) fn uncount(slot: &AtomicU64, tag: u32) {
    let mut word = slot.load(Ordering::Relaxed);
    while tag_of(word) == tag && word as u32 > 0 {
        match slot.compare_exchange_weak(word, word - 1, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => word = now,
        }
    }
}

/// Returns the sum of the slots that are live at `tag`.
pub(crate) fn live(slots: &[AtomicU64], tag: u32) -> u64 {
    let live = |word: u64| if tag.wrapping_sub(tag_of(word)) < LIVE { u64::from(word as u32) } else { 0 };
    slots.iter().map(|slot| live(slot.load(Ordering::SeqCst))).sum()
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::loom_models::model;
    use loom::{sync::Arc, thread};

    fn set_back(_: i32) -> bool {
        false
    }

    #[test]
    fn a_count_that_is_taken_back_while_another_is_counted_takes_back_one() {
        model(|| {
            let slot = Arc::new(AtomicU64::new(0));
            count(&slot, LIVE, set_back);
            let thread = {
                let slot = slot.clone();
                thread::spawn(move || uncount(&slot, LIVE))
            };
            count(&slot, LIVE, set_back);
            thread.join().unwrap();
            assert_eq!(slot.load(Ordering::SeqCst) as u32, 1);
        });
    }

    #[test]
    fn a_count_is_not_taken_back_from_the_next_bucket_of_its_slot() {
        model(|| {
            let slot = Arc::new(AtomicU64::new(0));
            count(&slot, LIVE, set_back);
            let next = LIVE + SLOTS as u32;
            let thread = {
                let slot = slot.clone();
                thread::spawn(move || uncount(&slot, LIVE))
            };
            count(&slot, next, set_back);
            thread.join().unwrap();
            assert_eq!(slot.load(Ordering::SeqCst), u64::from(next) << 32 | 1);
        });
    }
}
