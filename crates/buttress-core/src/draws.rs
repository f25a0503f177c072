//! Random numbers that threads draw from one sequence without a lock.

use crate::sync::{AtomicU64, Ordering};
use std::{ops::RangeInclusive, time::Duration};

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014), whose
/// state is a counter, so that a draw is one addition.
#[derive(Debug)]
pub(crate) struct Draws(AtomicU64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Draws {
    /// Creates a sequence. Without a seed it differs from run to run.
    pub(crate) fn new(seed: Option<u64>) -> Self {
        Self(AtomicU64::new(seed.unwrap_or_else(|| fastrand::u64(..))))
    }

    /// Returns a number of 64 random bits.
    pub(crate) fn draw(&self) -> u64 {
        self.take::<1>()[0]
    }

    /// Returns the next `N` numbers of the sequence, between which no other thread draws.
    pub(crate) fn take<const N: usize>(&self) -> [u64; N] {
        let mut state = self.0.fetch_add(GOLDEN.wrapping_mul(N as u64), Ordering::Relaxed);
        std::array::from_fn(|_| {
            state = state.wrapping_add(GOLDEN);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        })
    }

    /// Returns a time in `range`, in whole milliseconds.
    pub(crate) fn between(&self, range: &RangeInclusive<Duration>) -> Duration {
        spread(self.draw(), range)
    }
}

/// Returns the time in `range`, in whole milliseconds, at which `number` of 64 random bits lies.
pub(crate) fn spread(number: u64, range: &RangeInclusive<Duration>) -> Duration {
    let millis = |time: &Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1);
    let (low, high) = (millis(range.start()), millis(range.end()));
    let width = high.saturating_sub(low).saturating_add(1);
    Duration::from_millis(low + ((u128::from(number) * u128::from(width)) >> 64) as u64)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_numbers_and_they_are_those_of_splitmix() {
        let draws = Draws::new(Some(1_234_567));
        // The first numbers of the reference implementation for this seed.
        assert_eq!([draws.draw(), draws.draw()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
        assert_eq!(Draws::new(Some(1_234_567)).take(), [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
        assert_ne!(Draws::new(None).draw(), Draws::new(None).draw());
    }

    #[test]
    fn times_are_spread_over_their_range() {
        let (draws, second) = (Draws::new(Some(7)), Duration::from_secs(1));
        let times: Vec<Duration> = (0..1000).map(|_| draws.between(&(second..=3 * second))).collect();
        assert!(times.iter().all(|time| (second..=3 * second).contains(time)));
        assert!(times.iter().any(|time| *time < second * 5 / 4) && times.iter().any(|time| *time > second * 11 / 4));
        assert_eq!(draws.between(&(second..=second)), second);
        let _no_overflow = draws.between(&(Duration::ZERO..=Duration::MAX));
    }
}
