//! Rejects a share of the calls, the least important ones first.
//!
//! # Algorithm
//!
//! The calls of the last second or so are counted by the rank of their priority. To reject the
//! share `p`, the counts are added up from the least important rank until they reach `p`. Calls
//! below that rank are rejected, those above are admitted, and of those at it as many are rejected,
//! at random, as are missing: where all calls have one priority, `p` of them. Rejected calls are
//! counted as well, so that the rank does not drift.

use crate::Priority;
use crate::draws::Draws;
use crate::sync::{AtomicU32, Mutex, Ordering, try_lock};

#[cfg(not(loom))]
const RANKS: usize = Priority::RANKS;
/// The model checker has to step through each of them.
#[cfg(loom)]
const RANKS: usize = 2;
/// The most shards of the counts: all of them are added up at each [`Cut::set`].
const MAX_SHARDS: usize = 8;
/// By how much a count shrinks with each interval. Ten intervals back a call counts a third.
const DECAY: f32 = 0.9;
/// The share of the calls at the threshold is in 1 / 65,536.
const SHARE_BITS: u32 = 16;
const ALL: f64 = (1 << SHARE_BITS) as f64;
/// Rejects no call.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Cut {
    /// `rank << 16 | share`: which calls are rejected.
    threshold: AtomicU32,
    /// New calls, by shard and rank.
    arrived: Box<[AtomicU32]>,
    /// Earlier calls, by rank.
    seen: Mutex<Box<[f32]>>,
}

impl Cut {
    pub(crate) fn new(shards: usize) -> Self {
        let shards = shards.clamp(1, MAX_SHARDS);
        Self {
            threshold: AtomicU32::new(NONE),
            arrived: (0..shards * RANKS).map(|_| AtomicU32::new(0)).collect(),
            seen: Mutex::new(vec![0.0; RANKS].into()),
        }
    }

    /// Counts a call, and returns how many of its rank came before it in this interval, on the
    /// shard of this thread.
    #[inline]
    pub(crate) fn arrive(&self, rank: usize) -> u32 {
        let shard = crate::shard::thread_index() % (self.arrived.len() / RANKS);
        self.arrived[shard * RANKS + rank % RANKS].fetch_add(1, Ordering::Relaxed)
    }

    /// Returns whether a call is rejected.
    #[inline]
    pub(crate) fn rejects(&self, rank: usize, draws: &Draws) -> bool {
        let threshold = self.threshold.load(Ordering::Relaxed);
        threshold != NONE && beyond(threshold, rank, draws)
    }

    /// Returns the priority of which a share is rejected, below which all calls are; `None` if none
    /// are.
    pub(crate) fn threshold(&self) -> Option<Priority> {
        let threshold = self.threshold.load(Ordering::Relaxed);
        (threshold != NONE).then(|| Priority::from_rank((threshold >> SHARE_BITS) as usize))
    }

    /// Rejects the share `p` of the calls from now on, after `intervals`. Does nothing while
    /// another thread does it.
    #[cold]
    pub(crate) fn set(&self, p: f64, intervals: u64) {
        let Some(mut seen) = try_lock(&self.seen) else { return };
        let decay = DECAY.powi(i32::try_from(intervals).unwrap_or(i32::MAX));
        for (rank, seen) in seen.iter_mut().enumerate() {
            let shards = self.arrived.iter().skip(rank).step_by(RANKS);
            let arrived: f32 = shards.map(|count| count.swap(0, Ordering::Relaxed) as f32).sum();
            *seen = *seen * decay + arrived;
        }
        self.threshold.store(threshold(&seen, p), Ordering::Relaxed);
    }
}

/// Out of line: most calls come while none is rejected.
#[cold]
fn beyond(threshold: u32, rank: usize, draws: &Draws) -> bool {
    let (at, share) = ((threshold >> SHARE_BITS) as usize, u64::from(threshold & 0xffff));
    rank > at || (rank == at && draws.draw() >> (64 - SHARE_BITS) < share)
}

fn threshold(seen: &[f32], p: f64) -> u32 {
    let mut missing = seen.iter().map(|count| f64::from(*count)).sum::<f64>() * p;
    if missing <= 0.0 {
        return NONE;
    }
    for (rank, count) in seen.iter().enumerate().rev() {
        let count = f64::from(*count);
        if count > 0.0 && missing <= count {
            let share = (missing / count * ALL).min(ALL - 1.0) as u32;
            return (rank as u32) << SHARE_BITS | share;
        }
        missing -= count;
    }
    // Rounding errors may leave a little: all but a few of the most important calls.
    ALL as u32 - 1
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sends `calls` of each rank through intervals in which `p` are rejected. Returns the rejected
    /// of the last one by rank.
    fn rejected(calls: &[(usize, u32)], p: f64) -> Vec<u32> {
        let (cut, draws) = (Cut::new(4), Draws::new(Some(7)));
        let mut rejected = vec![0; calls.len()];
        for _interval in 0..3 {
            rejected.fill(0);
            for (n, (rank, count)) in calls.iter().enumerate() {
                for _call in 0..*count {
                    cut.arrive(*rank);
                    rejected[n] += u32::from(cut.rejects(*rank, &draws));
                }
            }
            cut.set(p, 1);
        }
        rejected
    }

    #[test]
    fn the_least_important_calls_are_rejected_first() {
        let calls = [(0, 100), (192, 100), (400, 100), (511, 100)];
        let quarter = rejected(&calls, 0.25);
        assert!(quarter[..3] == [0, 0, 0] && quarter[3] >= 99, "all but rounding: {quarter:?}");
        let half = rejected(&calls, 0.5);
        assert_eq!((half[0], half[1], half[3]), (0, 0, 100));
        let most = rejected(&calls, 0.9);
        assert!((40..=80).contains(&most[0]) && most[1..] == [100; 3], "{most:?}");
    }

    #[test]
    fn of_calls_of_one_priority_the_share_is_rejected() {
        for (p, range) in [(0.1, 800..1_200), (0.5, 4_800..5_200), (0.9, 8_800..9_200)] {
            let rejected = rejected(&[(192, 10_000)], p);
            assert!(range.contains(&rejected[0]), "{p}: {rejected:?}");
        }
        assert_eq!(rejected(&[(192, 10_000)], 0.0), [0]);
    }

    #[test]
    fn no_call_waits_while_the_threshold_is_moved() {
        let cut = std::sync::Arc::new(Cut::new(1));
        let _moving = cut.seen.lock().unwrap();
        let calls = cut.clone();
        crate::testing::without_waiting(move || {
            calls.arrive(7);
            calls.set(0.5, 1);
            calls.rejects(7, &Draws::new(None))
        });
        assert_eq!(cut.threshold(), None, "it was moved by nobody else");
    }

    #[test]
    fn calls_that_no_longer_come_are_forgotten() {
        let (cut, draws) = (Cut::new(1), Draws::new(Some(7)));
        (0..1_000).for_each(|_| _ = cut.arrive(500));
        cut.set(0.5, 1);
        assert_eq!(cut.threshold(), Some(Priority::from_rank(500)));
        assert!(!cut.rejects(100, &draws), "the unimportant calls take it all");
        cut.arrive(100);
        cut.set(0.5, 200);
        assert_eq!(cut.threshold(), Some(Priority::from_rank(100)));
        cut.set(0.5, u64::MAX);
        assert_eq!(cut.threshold(), None, "no calls, no threshold");
    }

    proptest! {
        #[test]
        fn the_threshold_rejects_the_share(counts in prop::collection::vec(0u32..1000, RANKS), p in 0.0..0.99f64) {
            let seen: Vec<f32> = counts.iter().map(|count| *count as f32).collect();
            let total = f64::from(counts.iter().sum::<u32>());
            let word = threshold(&seen, p);
            let (at, share) = ((word >> SHARE_BITS) as usize, f64::from(word & 0xffff) / ALL);
            let below = if word == NONE { 0.0 } else { counts[at + 1..].iter().sum::<u32>().into() };
            let within = if word == NONE { 0.0 } else { f64::from(counts[at]) * share };
            prop_assert!((below + within - p * total).abs() <= 1.0 + total * 1e-4, "{} {}", below + within, p * total);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::loom_models::model;
    use loom::{sync::Arc, thread};

    #[test]
    fn a_call_that_arrives_while_the_counts_are_taken_counts_once() {
        model(|| {
            let cut = Arc::new(Cut::new(1));
            let thread = {
                let cut = cut.clone();
                thread::spawn(move || cut.arrive(0))
            };
            cut.set(0.5, 0);
            thread.join().unwrap();
            cut.set(0.5, 0);
            assert_eq!(cut.seen.try_lock().unwrap()[0], 1.0);
        });
    }
}
