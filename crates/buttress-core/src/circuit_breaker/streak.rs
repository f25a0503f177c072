use crate::sync::{AtomicU64, Ordering};

/// The number of failures since the last success, in one generation: `generation << 32 | failures`.
///
/// Generations are compared by the signed distance of their lower 32 bits, which is correct when
/// they wrap.
#[derive(Debug, Default)]
pub(super) struct Streak(AtomicU64);

impl Streak {
    pub(super) fn get(&self, generation: u64) -> u32 {
        let word = self.0.load(Ordering::Relaxed);
        if ahead(word, generation) == 0 { word as u32 } else { 0 }
    }

    /// Ends the streak after a success. Writes only if there is a streak.
    #[inline]
    pub(super) fn reset(&self, generation: u64) {
        let word = self.0.load(Ordering::Relaxed);
        if word as u32 != 0 && ahead(word, generation) == 0 {
            // If the exchange fails, another thread has counted a failure after this success.
            let _ = self.0.compare_exchange(word, generation << 32, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Counts a failure and returns the length of the streak; 0 for a failure of an earlier
    /// generation.
    pub(super) fn extend(&self, generation: u64) -> u32 {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let next = match ahead(word, generation) {
                0 => generation << 32 | u64::from((word as u32).saturating_add(1)),
                // The state has changed since this result was found to be current.
                1.. => return 0,
                _ => generation << 32 | 1,
            };
            match self.0.compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return next as u32,
                Err(now) => word = now,
            }
        }
    }
}

/// Returns by how many generations the word is ahead of `generation`.
#[inline]
fn ahead(word: u64, generation: u64) -> i32 {
    ((word >> 32) as u32).wrapping_sub(generation as u32) as i32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_was_overtaken_by_a_transition_leaves_the_streak_alone() {
        // The second generation wraps in its lower 32 bits.
        for generation in [5, u64::from(u32::MAX)] {
            let streak = Streak::default();
            streak.0.store((generation - 1) << 32 | 7, Ordering::Relaxed);
            assert_eq!((streak.extend(generation), streak.extend(generation)), (1, 2));
            assert_eq!(streak.extend(generation - 1), 0);
            streak.reset(generation - 1);
            assert_eq!((streak.get(generation), streak.get(generation - 1)), (2, 0));
            assert_eq!(streak.extend(generation + 1), 1, "a new generation begins a streak of its own");
            assert_eq!(streak.extend(generation), 0);
            streak.reset(generation + 1);
            assert_eq!((streak.get(generation + 1), streak.extend(generation + 1)), (0, 1));
        }
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::loom_models::model;
    use loom::{sync::Arc, thread};

    #[test]
    fn a_success_ends_the_failures_before_it_and_none_that_it_did_not_see() {
        model(|| {
            let streak = Arc::new(Streak::default());
            streak.extend(1);
            let fails = streak.clone();
            let thread = thread::spawn(move || fails.extend(1));
            streak.reset(1);
            let counted = thread.join().unwrap();
            // The failure came first and was ended, came after the success, or came in the middle.
            assert!(matches!((counted, streak.get(1)), (2, 0) | (1, 1) | (2, 2)), "{counted}, {}", streak.get(1));
        });
    }

    #[test]
    fn a_failure_of_an_earlier_generation_does_not_reach_the_streak_of_the_next() {
        model(|| {
            let streak = Arc::new(Streak::default());
            streak.extend(1);
            let late = streak.clone();
            let thread = thread::spawn(move || late.extend(1));
            assert_eq!(streak.extend(2), 1);
            thread.join().unwrap();
            assert_eq!((streak.get(1), streak.get(2)), (0, 1));
        });
    }
}
