use super::{Builder, Decision, Gradient2, LimitAlgorithm, Snapshot, control::Shared, permit::AdaptiveLimitPermit};
use crate::policy::{Idle, Policy, Refused, Reserve};
use crate::report::{Metric, Report, Sink, Value};
use crate::shard::{Sharded, thread_index};
use crate::{Class, Clock, InvalidConfig, Name, Reason, Rejection, Waiters};
use std::{fmt, time::Duration};

/// As many calls are in flight as the adaptive limit allows.
pub static LIMITED: Reason = Reason::new("concurrency_limit", "at its limit", Class::Exhausted);

/// Limits calls in flight, and adapts the limit to the latency. A cheap handle; clones share the
/// limit.
///
/// ```
/// use buttress_core::{ManualClock, Outcome, Permit, Policy, concurrency::AdaptiveLimit};
///
/// let limit = AdaptiveLimit::<_, ManualClock>::builder("orders").limits(1..=50).initial(1).build()?;
/// let mut permit = limit.admit("a request").unwrap();
/// assert_eq!(limit.admit("another").unwrap_err().to_string(), "concurrency limit `orders`: at its limit");
/// permit.settle(&Outcome::Success);
/// drop(permit);
/// assert!(limit.admit("another").is_ok());
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
pub struct AdaptiveLimit<A, C> {
    shared: Sharded<Shared<A, C>>,
    clock: C,
}

impl<A, C: Clone> Clone for AdaptiveLimit<A, C> {
    #[inline]
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), clock: self.clock.clone() }
    }
}

impl<C: Clock + Default> AdaptiveLimit<Gradient2, C> {
    /// Creates a limiter with the default settings: [`Gradient2`], limits from 4 to 1000, 20 at the
    /// start. The name is in rejections and metrics.
    ///
    /// ```
    /// use buttress_core::{ManualClock, concurrency::AdaptiveLimit};
    ///
    /// assert_eq!(AdaptiveLimit::<_, ManualClock>::new("orders").limit(), 20);
    /// ```
    pub fn new(name: impl Into<Name>) -> Self {
        Builder::new(name.into()).into_limit()
    }

    /// Returns a builder with the values of [`new`](Self::new).
    ///
    /// ```
    /// use buttress_core::{ManualClock, concurrency::{AdaptiveLimit, Vegas}};
    ///
    /// let builder = AdaptiveLimit::<_, ManualClock>::builder("orders").algorithm(Vegas::default());
    /// let limit = builder.limits(10..=500).initial(50).build()?;
    /// # let _ = limit;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn builder(name: impl Into<Name>) -> Builder<Gradient2, C> {
        Builder::new(name.into())
    }
}

impl<A: LimitAlgorithm, C: Clock> AdaptiveLimit<A, C> {
    pub(super) fn with(shared: Shared<A, C>, shards: usize, clock: C) -> Self {
        Self { shared: Sharded::new(shards, shared), clock }
    }

    /// Returns the name.
    ///
    /// ```
    /// # use buttress_core::{ManualClock, concurrency::AdaptiveLimit};
    /// assert_eq!(AdaptiveLimit::<_, ManualClock>::new("orders").name(), "orders");
    /// ```
    pub fn name(&self) -> &str {
        self.shared.labels.name().map_or("", |name| name)
    }

    /// Returns how many calls may be in flight now.
    ///
    /// ```
    /// # use buttress_core::{ManualClock, concurrency::AdaptiveLimit};
    /// let limit = AdaptiveLimit::<_, ManualClock>::builder("orders").initial(100).build().unwrap();
    /// assert_eq!(limit.limit(), 100);
    /// ```
    pub fn limit(&self) -> usize {
        self.shared.places.limit()
    }

    /// Returns the number of calls in flight, those whose response streams included. It exceeds
    /// [`limit`](Self::limit) only after the limit was lowered.
    ///
    /// ```
    /// use buttress_core::{ManualClock, Policy, concurrency::AdaptiveLimit};
    ///
    /// let limit = AdaptiveLimit::<_, ManualClock>::new("orders");
    /// let _permit = limit.admit("a request").unwrap();
    /// assert_eq!(limit.in_flight(), 1);
    /// ```
    pub fn in_flight(&self) -> usize {
        self.shared.places.in_flight()
    }

    /// Returns whether the next call would be rejected. For a layer that decides by itself which
    /// calls to reject.
    ///
    /// ```
    /// use buttress_core::{ManualClock, Policy, concurrency::AdaptiveLimit};
    ///
    /// let limit = AdaptiveLimit::<_, ManualClock>::builder("orders").limits(1..=1).build().unwrap();
    /// let _permit = limit.admit("a request").unwrap();
    /// assert!(limit.is_limited());
    /// ```
    #[inline]
    pub fn is_limited(&self) -> bool {
        self.shared.places.peek().is_err()
    }

    /// Counts and returns a rejection, for a layer that decides by itself which calls to reject.
    ///
    /// ```
    /// use buttress_core::{ManualClock, concurrency::{AdaptiveLimit, LIMITED}};
    ///
    /// let limit = AdaptiveLimit::<_, ManualClock>::new("orders");
    /// assert_eq!((limit.reject().reason(), limit.snapshot().rejected), (&LIMITED, 1));
    /// ```
    pub fn reject(&self) -> Rejection {
        let shared = &*self.shared;
        shared.rejected.add(1);
        shared.classes.set_contended(true);
        let now = shared.nanos(self.clock.coarse());
        // A gate that finds the limit full asks for the rejection alone.
        shared.classes.mark_current(now);
        // Shows that this process runs: see `Samples::mark`.
        shared.samples.mark(thread_index(), now);
        shared.end_overdue_window(now);
        shared.labels.reject(&LIMITED)
    }

    /// Returns the limit, what it was computed from, and the last decision. Waits for an update
    /// that is under way.
    ///
    /// ```
    /// use buttress_core::{ManualClock, concurrency::AdaptiveLimit};
    ///
    /// let limit = AdaptiveLimit::<_, ManualClock>::new("orders");
    /// assert_eq!(limit.snapshot().baseline, None, "no call has been measured");
    /// ```
    pub fn snapshot(&self) -> Snapshot {
        self.shared.snapshot()
    }

    /// Returns the smallest and the largest limit.
    ///
    /// ```
    /// # use buttress_core::{ManualClock, concurrency::AdaptiveLimit};
    /// assert_eq!(AdaptiveLimit::<_, ManualClock>::new("orders").bounds(), (4, 1000));
    /// ```
    pub fn bounds(&self) -> (usize, usize) {
        self.shared.bounds()
    }

    /// Changes the smallest and the largest limit. The limit moves to the nearer bound at once if
    /// it is outside. No call in flight is cancelled.
    ///
    /// # Errors
    /// If the smallest limit is 0 or above the largest.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, concurrency::AdaptiveLimit};
    ///
    /// let limit = AdaptiveLimit::<_, ManualClock>::new("orders");
    /// limit.set_bounds(50, 100)?;
    /// assert_eq!(limit.limit(), 50);
    /// assert_eq!(limit.set_bounds(0, 100).unwrap_err().field(), "limits");
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn set_bounds(&self, min: usize, max: usize) -> Result<(), InvalidConfig> {
        super::builder::check_bounds(min, max)?;
        self.shared.set_bounds(min, max);
        Ok(())
    }

    pub(crate) fn used(&self) -> f64 {
        self.shared.used()
    }

    #[inline]
    fn reserve(&self) -> Option<AdaptiveLimitPermit<A, C>> {
        let place = self.shared.places.try_reserve().ok()?;
        Some(AdaptiveLimitPermit::reserved(self.shared.ticket(), place, self.clock.clone()))
    }
}

impl<A: LimitAlgorithm, C: Clock, Req: ?Sized> Policy<Req> for AdaptiveLimit<A, C> {
    type Permit = AdaptiveLimitPermit<A, C>;

    #[inline]
    fn admit(&self, _: &Req) -> Result<Self::Permit, Rejection> {
        let shared = &*self.shared;
        if shared.classes.is_contended() && shared.yields(shared.nanos(self.clock.coarse())) {
            return Err(self.reject());
        }
        match self.reserve() {
            Some(mut permit) => {
                permit.begin();
                Ok(permit)
            }
            None => Err(self.reject()),
        }
    }

    #[inline]
    fn peek(&self) -> Result<(), Refused> {
        self.shared.places.peek()
    }

    fn refuse(&self, _: &Req, _: Refused) -> Rejection {
        self.reject()
    }

    fn confirm(&self, mut permit: Self::Permit, _: &Req) -> Result<Self::Permit, Rejection> {
        permit.begin();
        Ok(permit)
    }

    /// A backend that fails to become ready has no latency: the permit counts nothing. It is one
    /// all the same, because another policy beside this one may learn.
    fn unready(&self) -> Option<Result<Self::Permit, Refused>> {
        Some(self.try_reserve())
    }
}

impl<A: LimitAlgorithm, C: Clock> Reserve for AdaptiveLimit<A, C> {
    type Permit = AdaptiveLimitPermit<A, C>;

    fn try_reserve(&self) -> Result<Self::Permit, Refused> {
        self.reserve().ok_or(Refused { retry_after: None })
    }

    fn waiters(&self) -> Option<Waiters> {
        self.shared.places.waiters()
    }
}

impl<A, C: Clock> fmt::Debug for AdaptiveLimit<A, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdaptiveLimit")
            .field("name", &self.shared.labels.name())
            .field("limit", &self.shared.places.limit())
            .field("in_flight", &self.shared.places.in_flight())
            .finish_non_exhaustive()
    }
}

impl<A: LimitAlgorithm, C: Clock> Idle for AdaptiveLimit<A, C> {
    /// Returns whether no call is in flight. A limiter that replaces this one begins with its
    /// initial limit.
    fn is_idle(&self) -> bool {
        self.shared.places.is_idle()
    }
}

const LIMIT: Metric = Metric::gauge("resilience.concurrency.limit", "calls", "Calls that may be in flight");
const IN_FLIGHT: Metric = Metric::gauge("resilience.concurrency.in_flight", "calls", "Calls that hold a permit");
const REJECTED: Metric = Metric::counter("resilience.concurrency.rejected", "calls", "Calls that the limit rejected");
const RTT: Metric =
    Metric::gauge("resilience.concurrency.rtt", "seconds", "Latency in the last window, as the algorithm sees it");
const BASELINE: Metric =
    Metric::gauge("resilience.concurrency.baseline", "seconds", "Latency that the algorithm compares with");
const DECISIONS: Metric =
    Metric::counter("resilience.concurrency.decisions", "windows", "Windows by what the limit did after them")
        .labels(&["decision"]);

impl<A: LimitAlgorithm, C: Clock> Report for AdaptiveLimit<A, C> {
    fn metrics() -> Vec<Metric> {
        vec![LIMIT, IN_FLIGHT, REJECTED, RTT, BASELINE, DECISIONS]
    }

    fn name(&self) -> Option<&str> {
        Some(self.name())
    }

    fn report(&self, sink: &mut dyn Sink) {
        let snapshot = self.snapshot();
        sink.gauge(&LIMIT, snapshot.limit as f64);
        sink.gauge(&IN_FLIGHT, snapshot.in_flight as f64);
        sink.counter(&REJECTED, snapshot.rejected);
        let mut seconds = |metric, time: Option<Duration>| {
            if let Some(time) = time {
                sink.gauge(metric, time.as_secs_f64());
            }
        };
        seconds(&RTT, snapshot.window.map(|window| window.rtt));
        seconds(&BASELINE, snapshot.baseline);
        for decision in Decision::ALL {
            sink.value(&DECISIONS, [decision.word(), ""], Value::Counter(snapshot.decisions(decision)));
        }
    }
}
