use crate::sync::{AtomicU64, Ordering};

/// Counts the failures since the last success, in one generation: `generation << 32 | failures`.
///
/// Generations are compared by their lower halves, as the distance between them, which is right
/// across a wrap.
#[derive(Debug, Default)]
pub(super) struct Streak(AtomicU64);

impl Streak {
    pub(super) fn get(&self, generation: u64) -> u32 {
        let word = self.0.load(Ordering::Relaxed);
        if ahead(word, generation) == 0 { word as u32 } else { 0 }
    }

    /// A success ends a streak. Writes only where there is one.
    #[inline]
    pub(super) fn reset(&self, generation: u64) {
        let word = self.0.load(Ordering::Relaxed);
        if word as u32 != 0 && ahead(word, generation) == 0 {
            // When it fails, a failure came in between, and this success was before it.
            let _ = self.0.compare_exchange(word, generation << 32, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Counts a failure, and returns how many there are.
    pub(super) fn extend(&self, generation: u64) -> u32 {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let next = match ahead(word, generation) {
                0 => generation << 32 | u64::from((word as u32).saturating_add(1)),
                // The circuit has moved on since this result was found current.
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

/// By how many generations the word is ahead of `generation`.
#[inline]
fn ahead(word: u64, generation: u64) -> i32 {
    ((word >> 32) as u32).wrapping_sub(generation as u32) as i32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_was_overtaken_by_a_transition_leaves_the_streak_alone() {
        // The second one is about to wrap.
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
