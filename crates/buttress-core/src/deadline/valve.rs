//! The bound on the share of calls that are rejected because they are late.

use crate::buckets::{self, LATE, LIVE, Ring, live, slot_of, tag_of, uncount, width_of};
use crate::sync::Ordering;
use crate::timeline::Timeline;
use crate::{Clock, Ratio};
use std::{sync::OnceLock, time::Duration};

/// Counts the calls of a window and those among them that were rejected.
#[derive(Debug)]
pub(super) struct Valve {
    max_share: Ratio,
    /// Nanoseconds of a bucket.
    width: u64,
    time: Timeline,
    shards: usize,
    /// Made by the first call that is counted. Clients count none.
    lanes: OnceLock<Box<[Lane]>>,
}

/// The counts of one shard, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane {
    calls: Ring,
    rejected: Ring,
}

impl Valve {
    pub(super) fn new(max_share: Ratio, window: Duration, shards: usize) -> Self {
        Self { max_share, width: width_of(window), time: Timeline::default(), shards, lanes: OnceLock::new() }
    }

    /// Counts a call.
    #[inline]
    pub(super) fn count(&self, clock: &impl Clock, shard: usize) {
        let tag = self.tag(clock);
        let is_set_back = |ahead: i32| (ahead as u64).saturating_mul(self.width) > LATE;
        buckets::count(&self.lane(shard).calls[slot_of(tag)], tag, is_set_back);
    }

    /// Returns whether a late call, which was counted, is rejected.
    ///
    /// The rejection is counted before the window is summed, and taken back if it is one too many:
    /// so of two late calls at the same time, one sees the other, and the share is never exceeded.
    pub(super) fn rejects(&self, clock: &impl Clock, shard: usize) -> bool {
        let tag = self.tag(clock);
        let (lane, slot) = (self.lane(shard), slot_of(tag));
        let is_set_back = |_| tag_of(lane.calls[slot].load(Ordering::Relaxed)) == tag;
        buckets::count(&lane.rejected[slot], tag, is_set_back);
        let lanes = self.lanes.get().map_or(&[] as &[Lane], |lanes| lanes);
        let rejected = lanes.iter().map(|lane| live(&lane.rejected, tag)).sum();
        let calls = lanes.iter().map(|lane| live(&lane.calls, tag)).sum();
        let is_allowed = self.max_share.bounds(rejected, calls);
        if !is_allowed {
            uncount(&lane.rejected[slot], tag);
        }
        is_allowed
    }

    /// Returns the tag of the bucket of now. The first one is live in no slot that was never
    /// written. A bucket is at least 100 ms long, so a few milliseconds do not matter.
    #[inline]
    fn tag(&self, clock: &impl Clock) -> u32 {
        ((self.time.coarse_nanos(clock) / self.width) as u32).wrapping_add(LIVE)
    }

    #[inline]
    fn lane(&self, shard: usize) -> &Lane {
        let lanes = self.lanes.get_or_init(|| (0..self.shards.next_power_of_two()).map(|_| Lane::default()).collect());
        &lanes[shard % lanes.len()]
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::ManualClock;
    use crate::loom_models::model;
    use loom::{sync::Arc, thread};

    #[test]
    fn of_two_late_calls_at_once_no_more_are_rejected_than_the_share() {
        model(|| {
            let clock = ManualClock::new();
            let valve = Arc::new(Valve::new(Ratio::new(0.5).unwrap(), Duration::from_secs(10), 1));
            (0..2).for_each(|_| valve.count(&clock, 0));
            let thread = {
                let (valve, clock) = (valve.clone(), clock.clone());
                thread::spawn(move || valve.rejects(&clock, 0))
            };
            let mine = valve.rejects(&clock, 0);
            assert!(!(mine && thread.join().unwrap()), "one of two calls may be rejected");
        });
    }
}
