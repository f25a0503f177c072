use super::Monitor;
use crate::sync::{AtomicU64, Ordering};
use crate::timeline::{MAX_CLOCK_SKEW, Timeline, nanos};
use crate::{Clock, InvalidConfig};
use std::{sync::Arc, time::Duration};

/// Whether work waits too long, by CoDel (RFC 8289): when every wait of a whole interval was longer
/// than the target. A cheap handle; clones share the state.
///
/// A burst makes some wait long, but its queue is soon empty and the next one does not wait. A
/// queue that is never empty delays every call and serves none faster. So CoDel looks at the
/// shortest wait.
///
/// The level is the last wait in parts of the target; below 1 until the interval is over, and at
/// least 1 after. Without a wait for two intervals it is 0, and the next one begins a new interval.
///
/// ```
/// use buttress_core::{ManualClock, load_shed::{Monitor, QueueDelay}};
/// use std::time::Duration;
///
/// let (clock, ms) = (ManualClock::new(), Duration::from_millis(1));
/// let delay = QueueDelay::<ManualClock>::new(20 * ms, 100 * ms)?.clock(clock.clone());
/// delay.observe(40 * ms);
/// assert!(delay.level() < 1.0, "perhaps a burst");
/// clock.advance(100 * ms);
/// delay.observe(30 * ms);
/// assert_eq!(delay.level(), 1.5);
/// delay.observe(10 * ms);
/// assert_eq!(delay.level(), 0.5);
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Debug)]
pub struct QueueDelay<C> {
    state: Arc<State>,
    clock: C,
}

#[derive(Debug)]
struct State {
    time: Timeline,
    target: u64,
    interval: u64,
    /// Since when all waits are above the target, in nanoseconds; 0 if the last one was not.
    above_since: AtomicU64,
    /// When the last wait ended.
    seen_at: AtomicU64,
    last: AtomicU64,
}

/// The highest level before an interval is over.
const ALMOST: f64 = 0.99;

impl<C: Clock + Default> QueueDelay<C> {
    /// Creates a monitor of waits.
    ///
    /// RFC 8289 has a target of 5 ms and an interval of 100 ms, for packets. For requests, DAGOR
    /// has a target of 20 ms. The interval should be long enough for a call and its answer.
    ///
    /// # Errors
    /// If `target` is 0, or `interval` is not longer than it or is longer than an hour.
    pub fn new(target: Duration, interval: Duration) -> Result<Self, InvalidConfig> {
        if target.is_zero() {
            return Err(InvalidConfig::new("target", "must be above 0"));
        }
        if interval <= target {
            return Err(InvalidConfig::new("interval", "must be longer than `target`"));
        }
        if interval > Duration::from_secs(3600) {
            return Err(InvalidConfig::new("interval", "must be at most an hour"));
        }
        let state = State {
            time: Timeline::default(),
            target: nanos(target),
            interval: nanos(interval),
            above_since: AtomicU64::new(0),
            seen_at: AtomicU64::new(0),
            last: AtomicU64::new(0),
        };
        Ok(Self { state: Arc::new(state), clock: C::default() })
    }
}

impl<C: Clock> QueueDelay<C> {
    /// Sets the clock, for tests and simulations.
    pub fn clock<D: Clock>(self, clock: D) -> QueueDelay<D> {
        QueueDelay { state: self.state, clock }
    }

    /// Records that something has waited for `delay` until now.
    pub fn observe(&self, delay: Duration) {
        let state = &*self.state;
        let (delay, now) = (nanos(delay), state.now(&self.clock));
        // As in CoDel, where an empty queue ends the interval.
        let is_new = state.is_forgotten(now);
        let since = state.above_since.load(Ordering::Relaxed);
        if delay < state.target {
            if since != 0 {
                state.above_since.store(0, Ordering::Relaxed);
            }
        } else if since == 0 || is_new || since.saturating_sub(now) > MAX_CLOCK_SKEW {
            // The first of two at once stays: a later one would lengthen the interval.
            let _ = state.above_since.compare_exchange(since, now, Ordering::Relaxed, Ordering::Relaxed);
        }
        state.last.store(delay, Ordering::Relaxed);
        state.seen_at.store(now, Ordering::Relaxed);
    }
}

impl State {
    /// Never 0.
    fn now(&self, clock: &impl Clock) -> u64 {
        self.time.nanos(clock.now()).max(1)
    }

    /// Returns whether no wait has ended for two intervals.
    fn is_forgotten(&self, now: u64) -> bool {
        let seen_at = self.seen_at.load(Ordering::Relaxed);
        seen_at == 0 || now.saturating_sub(seen_at) > 2 * self.interval
    }

    fn level(&self, now: u64) -> f64 {
        if self.is_forgotten(now) {
            return 0.0;
        }
        let level = self.last.load(Ordering::Relaxed) as f64 / self.target as f64;
        let since = self.above_since.load(Ordering::Relaxed);
        if since != 0 && now.saturating_sub(since) >= self.interval { level.max(1.0) } else { level.min(ALMOST) }
    }
}

impl<C: Clock> Monitor for QueueDelay<C> {
    fn name(&self) -> &'static str {
        "queue_delay"
    }

    fn level(&self) -> f64 {
        self.state.level(self.state.now(&self.clock))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::ManualClock;

    const MS: Duration = Duration::from_millis(1);

    fn delay() -> (ManualClock, QueueDelay<ManualClock>) {
        let clock = ManualClock::new();
        let delay = QueueDelay::<ManualClock>::new(20 * MS, 100 * MS).unwrap().clock(clock.clone());
        (clock, delay)
    }

    #[test]
    fn one_short_wait_in_the_interval_shows_that_the_queue_was_empty() {
        let (clock, delay) = delay();
        for n in 0..100 {
            delay.observe(if n % 5 == 0 { MS } else { 500 * MS });
            assert!(delay.level() < 1.0, "after wait {n}");
            clock.advance(10 * MS);
        }
    }

    #[test]
    fn waits_above_the_target_for_a_whole_interval_are_overload_until_one_is_below() {
        let (clock, delay) = delay();
        delay.observe(30 * MS);
        clock.advance(99 * MS);
        delay.observe(30 * MS);
        assert!(delay.level() < 1.0);
        clock.advance(MS);
        assert_eq!(delay.level(), 1.5);
        delay.observe(19 * MS);
        assert_eq!(delay.level(), 0.95);
    }

    #[test]
    fn without_waits_there_is_no_queue() {
        let (clock, delay) = delay();
        assert_eq!(delay.level(), 0.0);
        delay.observe(90 * MS);
        clock.advance(200 * MS);
        assert_eq!(delay.level(), 4.5);
        clock.advance(MS);
        assert_eq!(delay.level(), 0.0);
    }

    #[test]
    fn a_long_wait_after_a_time_without_waits_begins_a_new_interval() {
        let (clock, delay) = delay();
        delay.observe(30 * MS);
        clock.advance(Duration::from_secs(3600));
        delay.observe(30 * MS);
        assert!(delay.level() < 1.0, "perhaps a burst: there was no queue for an hour");
        clock.advance(100 * MS);
        delay.observe(30 * MS);
        assert_eq!(delay.level(), 1.5);
    }

    #[test]
    fn a_clock_that_was_set_back_starts_a_new_interval() {
        let (clock, delay) = delay();
        let start = clock.now();
        clock.advance(Duration::from_secs(600));
        delay.observe(30 * MS);
        clock.set(start);
        delay.observe(30 * MS);
        clock.advance(100 * MS);
        delay.observe(30 * MS);
        assert_eq!(delay.level(), 1.5);
    }

    #[test]
    fn a_target_and_an_interval_have_their_ranges() {
        for (target, interval, field) in
            [(Duration::ZERO, MS, "target"), (MS, MS, "interval"), (MS, Duration::from_secs(3601), "interval")]
        {
            assert_eq!(QueueDelay::<ManualClock>::new(target, interval).unwrap_err().field(), field);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::{ManualClock, loom_models::model};
    use loom::thread;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn of_two_long_waits_at_once_the_interval_begins_with_one() {
        model(|| {
            let clock = ManualClock::new();
            let delay = QueueDelay::<ManualClock>::new(20 * MS, 100 * MS).unwrap().clock(clock.clone());
            let thread = {
                let delay = delay.clone();
                thread::spawn(move || delay.observe(30 * MS))
            };
            delay.observe(30 * MS);
            thread.join().unwrap();
            clock.advance(100 * MS);
            assert_eq!(delay.level(), 1.5);
        });
    }
}
