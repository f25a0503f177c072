use crate::Clock;
use crate::bulkhead::Bulkhead;
use crate::concurrency::{AdaptiveLimit, LimitAlgorithm};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Says how loaded something is.
///
/// A [`LoadShed`](super::LoadShed) reads its monitors ten times a second, in one of the calls: a
/// monitor must not block. Implemented by bulkheads and adaptive limits, and by handles of users.
///
/// ```
/// use buttress_core::load_shed::Monitor;
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// /// The messages that wait in a channel of 1,000.
/// #[derive(Debug, Default)]
/// struct Backlog(AtomicU64);
///
/// impl Monitor for Backlog {
///     fn name(&self) -> &'static str {
///         "backlog"
///     }
///
///     fn level(&self) -> f64 {
///         self.0.load(Ordering::Relaxed) as f64 / 1_000.0
///     }
/// }
/// # assert_eq!(Backlog::default().level(), 0.0);
/// ```
pub trait Monitor: fmt::Debug + Send + Sync + 'static {
    /// Returns the value of the label `monitor` of its metric: lower case with underscores. Two
    /// monitors of one load shed need different names; [`monitor_fn`] gives a second bulkhead one.
    fn name(&self) -> &'static str;

    /// Returns the level: 0 is idle, 1 the limit, and more is overload. What is no number, or below
    /// 0, counts as 0.
    fn level(&self) -> f64;
}

/// How many of its places are taken, with the calls in its queue: a bulkhead with a queue can have
/// a level above 1.
impl<C: Clock> Monitor for Bulkhead<C> {
    fn name(&self) -> &'static str {
        "bulkhead"
    }

    fn level(&self) -> f64 {
        (self.in_flight() + self.waiting()) as f64 / self.limit().max(1) as f64
    }
}

/// How many of the calls that may wait for a response do. Responses that stream have places of
/// their own and do not count, unless they fill the largest limit.
///
/// At a level that is read ten times a second the share of the load shed settles where the level is
/// above the limit of the monitor in a third of the readings. In these moments the adaptive limit
/// rejects; it has [rules of its own](crate::concurrency::Builder::priority_step) for which calls.
///
/// ```
/// use buttress_core::{ManualClock, concurrency::AdaptiveLimit, load_shed::LoadShed};
///
/// let limit = AdaptiveLimit::<_, ManualClock>::new("orders"); // also that of the layer inside
/// let shed = LoadShed::<ManualClock>::builder("orders").monitor_at(0.9, limit.clone()).build()?;
/// assert_eq!(shed.levels(), [("concurrency", 0.0)]);
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
impl<A: LimitAlgorithm, C: Clock> Monitor for AdaptiveLimit<A, C> {
    fn name(&self) -> &'static str {
        "concurrency"
    }

    fn level(&self) -> f64 {
        self.used()
    }
}

/// Makes a [`Monitor`] of a function.
///
/// ```
/// use buttress_core::load_shed::{Monitor, monitor_fn};
///
/// let pool = monitor_fn("connections", || 0.25);
/// assert_eq!((pool.name(), pool.level()), ("connections", 0.25));
/// ```
pub fn monitor_fn<F: Fn() -> f64 + Send + Sync + 'static>(name: &'static str, level: F) -> MonitorFn<F> {
    MonitorFn { name, level }
}

/// A monitor that asks a function. Made by [`monitor_fn`].
#[derive(Clone, Copy)]
pub struct MonitorFn<F> {
    name: &'static str,
    level: F,
}

impl<F> fmt::Debug for MonitorFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MonitorFn").field(&self.name).finish()
    }
}

impl<F: Fn() -> f64 + Send + Sync + 'static> Monitor for MonitorFn<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn level(&self) -> f64 {
        (self.level)()
    }
}

/// A monitor and the level from which it counts as overloaded.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) monitor: Box<dyn Monitor>,
    pub(super) limit: f64,
}

impl Watched {
    pub(super) fn name(&self) -> &'static str {
        self.monitor.name()
    }

    /// Returns the level in parts of its limit. A monitor that panics must not break the call that
    /// reads it.
    pub(super) fn level(&self) -> f64 {
        let level = catch_unwind(AssertUnwindSafe(|| self.monitor.level())).unwrap_or(0.0) / self.limit;
        // `max` drops what is no number.
        level.max(0.0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{ManualClock, Permit, Policy, Progress};

    fn level(level: impl Fn() -> f64 + Send + Sync + 'static, limit: f64) -> f64 {
        Watched { monitor: Box::new(monitor_fn("test", level)), limit }.level()
    }

    #[test]
    fn a_level_is_in_parts_of_its_limit_and_what_is_none_counts_as_idle() {
        assert_eq!([level(|| 0.4, 0.8), level(|| 3.0, 1.0)], [0.5, 3.0]);
        assert_eq!(
            [level(|| f64::NAN, 1.0), level(|| -1.0, 1.0), level(|| f64::INFINITY, 1.0)],
            [0.0, 0.0, f64::INFINITY]
        );
        assert_eq!(level(|| panic!("in a monitor"), 1.0), 0.0);
    }

    #[test]
    fn a_bulkhead_is_as_loaded_as_it_is_full_with_its_queue() {
        let bulkhead = Bulkhead::<ManualClock>::new(2);
        let _held = [bulkhead.admit("a").unwrap(), bulkhead.admit("b").unwrap()];
        assert_eq!(bulkhead.level(), 1.0);
        let _queued = bulkhead.acquire_or_queue(1).unwrap();
        assert_eq!(bulkhead.level(), 1.5);
        assert_eq!(Bulkhead::<ManualClock>::new(0).level(), 0.0);
    }

    #[test]
    fn an_adaptive_limit_is_as_loaded_as_its_calls_without_streams_fill_it() {
        let limit = AdaptiveLimit::<_, ManualClock>::builder("test").limits(1..=4).initial(4).build().unwrap();
        let mut held: Vec<_> = (0..4).map(|_| limit.admit("a call").unwrap()).collect();
        assert_eq!((Monitor::name(&limit), limit.level()), ("concurrency", 1.0));
        held[0].progress(Progress::Head);
        assert_eq!(limit.level(), 1.0, "a stream that has no place of its own yet");
        drop(held.pop());
        assert!((limit.level() - 2.0 / 3.0).abs() < 1e-9, "two wait and one streams");
        held.iter_mut().for_each(|permit| permit.progress(Progress::Head));
        assert_eq!(limit.level(), 0.0);
        let mut last = limit.admit("a call").unwrap();
        last.progress(Progress::Head);
        assert_eq!(limit.level(), 1.0, "streams fill the largest limit");
    }
}
