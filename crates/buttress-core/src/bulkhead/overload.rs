use std::time::{Duration, Instant};

/// The longest queue delay without overload, for [`Discipline::Adaptive`](super::Discipline).
///
/// 5 ms as in CoDel (RFC 8289, section 4.3), in Folly's `Codel`, and in "Fail at Scale" (Ben
/// Maurer, ACM Queue 13(8), 2015), which also has the combination with last in, first out.
pub const TARGET: Duration = Duration::from_millis(5);

/// How long the queue delay must be above [`TARGET`] without a break until there is overload, and
/// how long it must stay at or below it until there is none.
///
/// 100 ms as in CoDel (RFC 8289, section 4.2), in Folly's `Codel`, and in "Fail at Scale".
pub const INTERVAL: Duration = Duration::from_millis(100);

/// Whether a queue is overloaded: its delay, which is the age of its oldest waiter, was above the
/// target for a whole interval.
///
/// The minimum over the interval decides, as in CoDel: a burst that the queue absorbs brings it
/// down to the target, and a standing queue does not. CoDel samples the delay when it serves. The
/// age of the oldest waiter tells the delay since the last look too, so that a queue of which
/// nothing was served for a second is overloaded with the first look.
///
/// CoDel then rejects at growing frequency, because senders need time to slow down. Folly and
/// "Fail at Scale" reject by age, as callers see each rejection. So does this queue. As that alone
/// brings the delay down, the end of overload needs an interval in which no waiter became too old.
#[derive(Debug, Default)]
pub(super) struct Overload {
    /// Since when the delay has been above the target.
    above_since: Option<Instant>,
    /// While overloaded: when the delay was seen above the target for the last time.
    late_at: Option<Instant>,
}

impl Overload {
    /// Judges anew. To be called before and after each change, with the time since when the oldest
    /// waiter has waited.
    pub(super) fn look(&mut self, oldest: Option<Instant>, now: Instant) -> bool {
        let late = oldest.filter(|since| Self::is_late(*since, now));
        match (late, self.late_at) {
            (Some(_), Some(_)) => self.late_at = Some(now),
            (Some(since), None) => {
                let above_since = *self.above_since.get_or_insert(since + TARGET);
                if now.saturating_duration_since(above_since) >= INTERVAL {
                    self.late_at = Some(now);
                }
            }
            (None, Some(at)) if now.saturating_duration_since(at) < INTERVAL => {}
            (None, _) => *self = Self::default(),
        }
        self.is_on()
    }

    pub(super) fn is_on(&self) -> bool {
        self.late_at.is_some()
    }

    /// Returns whether a waiter is older than the target.
    pub(super) fn is_late(since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) > TARGET
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Clock, ManualClock};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_queue_is_overloaded_when_its_oldest_waiter_was_late_for_a_whole_interval() {
        let start = ManualClock::new().now();
        let mut overload = Overload::default();
        assert!(!overload.look(Some(start), start + 5 * MS), "the target is not exceeded");
        assert!(!overload.look(Some(start), start + 104 * MS));
        assert!(overload.look(Some(start + 90 * MS), start + 105 * MS), "another waiter is late meanwhile");
    }

    #[test]
    fn a_moment_without_a_late_waiter_begins_the_interval_anew() {
        let start = ManualClock::new().now();
        let mut overload = Overload::default();
        assert!(!overload.look(Some(start), start + 90 * MS));
        assert!(!overload.look(Some(start + 88 * MS), start + 90 * MS), "the burst has been served");
        assert!(!overload.look(Some(start + 88 * MS), start + 192 * MS));
        assert!(overload.look(Some(start + 88 * MS), start + 193 * MS));
    }

    #[test]
    fn a_queue_of_which_nothing_was_served_is_overloaded_with_the_first_look() {
        let start = ManualClock::new().now();
        assert!(Overload::default().look(Some(start), start + 105 * MS));
    }

    #[test]
    fn overload_ends_after_an_interval_without_a_late_waiter() {
        let start = ManualClock::new().now();
        let mut overload = Overload::default();
        assert!(overload.look(Some(start), start + 200 * MS));
        assert!(overload.look(None, start + 299 * MS));
        assert!(!overload.look(None, start + 300 * MS));
        assert!(overload.look(Some(start), start + 400 * MS), "the delay was above the target all the time");
    }

    #[test]
    fn a_clock_that_is_set_back_makes_no_waiter_late() {
        let start = ManualClock::new().now() + Duration::from_secs(3600);
        let mut overload = Overload::default();
        assert!(!overload.look(Some(start), start - 3000 * MS));
        assert!(overload.look(Some(start), start + 200 * MS));
        assert!(overload.look(None, start - 3000 * MS), "no time has passed");
    }
}
