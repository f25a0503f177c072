use super::{event::Counts, time_window::Category};
use crate::sync::{AtomicU64, Ordering};

const CATEGORY_BITS: u32 = 2;
const GENERATION_BITS: u32 = 22;
const SKIP_BITS: u32 = 64 - GENERATION_BITS;
const SKIP: u64 = (1 << SKIP_BITS) - 1;
const POSITION: u64 = (1 << (64 - CATEGORY_BITS - GENERATION_BITS)) - 1;

/// Exact counts of a fixed number of the last results.
///
/// A result takes the next position and writes its category to the slot of that position, tagged
/// with its generation, so that a new generation starts empty without clearing. A sum reads the
/// whole ring. Sums are rare: a sum yields how many more bad results (failures or slow calls) the
/// nearest rule lacks, and there is no other sum before these have arrived.
#[derive(Debug)]
pub(super) struct CountWindow {
    head: AtomicU64,
    /// The number of bad results since the window was created.
    bad: AtomicU64,
    /// `generation | bad`: before this number of bad results, no rule can be met in that
    /// generation.
    skip_until: AtomicU64,
    results: u64,
    /// `generation | position | category`; the first position is 1. The number of results, rounded
    /// up to a power of two, so that a position keeps its slot when positions wrap.
    slots: Box<[AtomicU64]>,
}

impl CountWindow {
    pub(super) fn new(results: u32) -> Self {
        Self {
            head: AtomicU64::new(0),
            bad: AtomicU64::new(0),
            skip_until: AtomicU64::new(0),
            results: results.into(),
            slots: (0..results.next_power_of_two()).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Returns whether this window counts over `results` results.
    pub(super) fn holds(&self, results: u32) -> bool {
        self.results == u64::from(results)
    }

    pub(super) fn record(&self, generation: u64, category: Category) {
        let position = (self.head.fetch_add(1, Ordering::SeqCst) + 1) & POSITION;
        let slot = &self.slots[position as usize % self.slots.len()];
        let word = generation << (64 - GENERATION_BITS) | position << CATEGORY_BITS | category as u64;
        let mut seen = slot.load(Ordering::Relaxed);
        // If another thread has written a later position to the slot, this result is already out of
        // the window.
        while position_of(seen) < position || position_of(seen) - position > POSITION / 2 {
            match slot.compare_exchange_weak(seen, word, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Returns the results in the window: all that were recorded before the call.
    pub(super) fn counts(&self, generation: u64) -> Counts {
        let head = || self.head.load(Ordering::SeqCst) & POSITION;
        let before = head();
        let counts = self.scan(generation, before);
        // Without a new position, no result has left the window during the sum: a result that is
        // being recorded replaces one that had left it. Otherwise see `TimeWindow::counts`.
        if head() == before { counts } else { Counts::agreed(|| self.scan(generation, head())) }
    }

    /// Sums without branches: the results are in no order that a processor could predict.
    fn scan(&self, generation: u64, head: u64) -> Counts {
        let (mut total, mut failed, mut slow, mut both) = (0, 0, 0, 0);
        for slot in &self.slots {
            let word = slot.load(Ordering::SeqCst);
            let behind = head.wrapping_sub(position_of(word)) & POSITION;
            // The slot of a position that is taken and not yet written still contains a result that
            // has left the window.
            let in_window = (behind < self.results) | (behind > POSITION / 2);
            let live = u64::from(in_window & (word != 0) & (word >> (64 - GENERATION_BITS) == tag_of(generation)));
            total += live;
            failed += live & word;
            slow += live & (word >> 1);
            both += live & word & (word >> 1);
        }
        Counts { succeeded: total + both - failed - slow, failed: failed - both, slow: slow - both, slow_failed: both }
    }

    /// Counts one bad result, which must have been recorded, and returns its number; `None` if no
    /// rule can be met yet.
    pub(super) fn next_check(&self, generation: u64) -> Option<u64> {
        let number = self.bad.fetch_add(1, Ordering::SeqCst) + 1;
        let skip = self.skip_until.load(Ordering::SeqCst);
        let skips = skip >> SKIP_BITS == tag_of(generation) && (skip & SKIP) > (number & SKIP);
        (!skips).then_some(number)
    }

    /// Skips sums until `missing` more bad results have arrived after number `number`, because a
    /// sum taken after `number` lacked as many. All bad results up to `number` were in that sum or
    /// had left the window, so no result before `number + missing` can meet a rule. If two threads
    /// store a bound at the same time, both are valid, and either may remain.
    pub(super) fn skip_until(&self, generation: u64, number: u64, missing: u32) {
        self.skip_until
            .store(tag_of(generation) << SKIP_BITS | ((number + u64::from(missing)) & SKIP), Ordering::SeqCst);
    }

    /// Sums again with the next bad result, because the rules have changed.
    pub(super) fn invalidate(&self) {
        self.skip_until.store(0, Ordering::SeqCst);
    }
}

fn tag_of(generation: u64) -> u64 {
    generation & ((1 << GENERATION_BITS) - 1)
}

fn position_of(word: u64) -> u64 {
    word >> CATEGORY_BITS & POSITION
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn positions_may_wrap() {
        let window = CountWindow::new(10);
        // Positions wrap after 20 of the 40 results.
        window.head.store(POSITION - 20, Ordering::Relaxed);
        for n in 0..40 {
            window.record(1, if n % 2 == 0 { Category::Failed } else { Category::Succeeded });
            assert_eq!(window.counts(1).total(), (n + 1).min(10), "{n}");
        }
    }

    #[test]
    fn a_result_whose_slot_was_taken_by_a_later_one_is_out_of_the_window() {
        let window = CountWindow::new(4);
        (0..4).for_each(|_| window.record(0, Category::Succeeded));
        // A thread took position 2 and writes after another thread has written position 6 to the
        // same slot.
        window.head.store(1, Ordering::Relaxed);
        window.slots[2].store(6 << CATEGORY_BITS, Ordering::Relaxed);
        window.record(0, Category::Failed);
        assert_eq!(window.slots[2].load(Ordering::Relaxed), 6 << CATEGORY_BITS);
    }

    #[test]
    fn a_slot_that_still_shows_what_fell_out_does_not_count() {
        let window = CountWindow::new(4);
        (0..4).for_each(|_| window.record(0, Category::Failed));
        // A thread has taken the next position and has not written its result.
        window.head.fetch_add(1, Ordering::Relaxed);
        assert_eq!(window.counts(0).failed, 3);
    }

    #[test]
    fn it_is_summed_again_only_when_enough_bad_results_have_come() {
        let window = CountWindow::new(100);
        assert_eq!(window.next_check(7), Some(1));
        window.skip_until(7, 1, 3);
        assert_eq!((window.next_check(7), window.next_check(7), window.next_check(7)), (None, None, Some(4)));
        window.skip_until(7, 4, 3);
        assert_eq!(window.next_check(8), Some(5), "the bound is for one generation");
        assert_eq!(window.next_check(7), None);
    }

    #[test]
    fn it_slides() {
        let window = CountWindow::new(10);
        (0..1000).for_each(|_| window.record(0, Category::Succeeded));
        (0..4).for_each(|_| window.record(0, Category::Failed));
        assert_eq!(window.counts(0), Counts { succeeded: 6, failed: 4, ..Counts::default() });
        assert_eq!(window.counts(1), Counts::default(), "a new generation starts empty");
    }

    proptest! {
        #[test]
        fn counts_are_those_of_the_last_n(size in 1u32..20, results in prop::collection::vec(0usize..4, 0..80)) {
            let window = CountWindow::new(size);
            for &category in &results {
                window.record(5, [Category::Succeeded, Category::Failed, Category::Slow, Category::SlowFailed][category]);
            }
            let last = &results[results.len().saturating_sub(size as usize)..];
            let of = |category| last.iter().filter(|c| **c == category).count() as u64;
            prop_assert_eq!(window.counts(5), Counts { succeeded: of(0), failed: of(1), slow: of(2), slow_failed: of(3) });
        }
    }
}
