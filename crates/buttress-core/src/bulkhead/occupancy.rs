//! What a bulkhead tells about itself: its occupancy and its metrics.

use super::{
    Bulkhead, Discipline,
    classes::label,
    spares::Spares,
    state::{in_flight, waiting},
};
use crate::report::{Metric, Report, Sink, Value};
use crate::sync::{Ordering, lock};
use crate::{Clock, Criticality};
use std::time::Duration;

impl<C: Clock> Bulkhead<C> {
    /// Returns the name, if it has one.
    ///
    /// ```
    /// # use buttress_core::{ManualClock, bulkhead::Bulkhead};
    /// assert_eq!(Bulkhead::<ManualClock>::named("stock", 8).name(), Some("stock"));
    /// ```
    pub fn name(&self) -> Option<&str> {
        self.0.labels.name().map(|name| &**name)
    }

    /// Returns the number of calls in flight. It exceeds [`limit`](Self::limit) only after the
    /// limit was lowered.
    ///
    /// ```
    /// use buttress_core::{ManualClock, Policy, bulkhead::Bulkhead};
    ///
    /// let bulkhead = Bulkhead::<ManualClock>::new(8);
    /// let _place = bulkhead.admit("a request").unwrap();
    /// assert_eq!(bulkhead.in_flight(), 1);
    /// ```
    pub fn in_flight(&self) -> usize {
        // Count the spares first. A spare that is returned to the word between the two reads would
        // otherwise be counted as a call in flight.
        let spares = self.0.all_spares().map(Spares::count).sum();
        in_flight(self.0.word.load(Ordering::SeqCst)).saturating_sub(spares) as usize
    }

    /// Returns the number of calls in the queue.
    ///
    /// ```
    /// # use buttress_core::{ManualClock, bulkhead::Bulkhead};
    /// assert_eq!(Bulkhead::<ManualClock>::new(8).waiting(), 0);
    /// ```
    pub fn waiting(&self) -> usize {
        waiting(self.0.word.load(Ordering::Acquire)) as usize
    }

    /// Returns the number of calls of a class in flight, exact while none starts or ends; `None` if
    /// no class has a share, as calls are not counted by class then.
    ///
    /// ```
    /// use buttress_core::{Criticality, ManualClock, Policy, bulkhead::Bulkhead};
    ///
    /// let bulkhead = Bulkhead::<ManualClock>::new(8);
    /// bulkhead.reserve(Criticality::CriticalPlus, 0.25)?;
    /// let _place = bulkhead.admit("a request").unwrap();
    /// assert_eq!(bulkhead.in_flight_of(Criticality::Critical), Some(1));
    /// assert_eq!(bulkhead.in_flight_of(Criticality::CriticalPlus), Some(0));
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn in_flight_of(&self, class: Criticality) -> Option<usize> {
        self.0.classes.get().map(|classes| classes.in_flight(class) as usize)
    }

    /// Returns the number of calls of a class in the queue.
    ///
    /// ```
    /// use buttress_core::{Criticality, ManualClock, bulkhead::Bulkhead};
    ///
    /// let bulkhead = Bulkhead::<ManualClock>::new(0);
    /// let _queued = bulkhead.acquire_or_queue(10).unwrap();
    /// assert_eq!(bulkhead.waiting_of(Criticality::Critical), 1);
    /// ```
    pub fn waiting_of(&self, class: Criticality) -> usize {
        lock(&self.0.queue).as_ref().map_or(0, |queue| queue.waiting(class))
    }

    /// Returns how long the oldest call in the queue has waited. If none waits, returns how long
    /// the call that was the last to leave had waited, for [`INTERVAL`](super::INTERVAL) after it
    /// left; then zero.
    ///
    /// ```
    /// use buttress_core::{ManualClock, bulkhead::Bulkhead};
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new();
    /// let bulkhead = Bulkhead::with_clock(0, clock.clone());
    /// let _queued = bulkhead.acquire_or_queue(10).unwrap();
    /// clock.advance(Duration::from_millis(3));
    /// assert_eq!(bulkhead.queue_delay(), Duration::from_millis(3));
    /// ```
    pub fn queue_delay(&self) -> Duration {
        self.delay_of_queue().unwrap_or_default()
    }

    /// Returns the queue delay, if there has been a queue.
    fn delay_of_queue(&self) -> Option<Duration> {
        lock(&self.0.queue).as_ref().map(|queue| queue.delay(self.0.clock.now()))
    }

    /// Returns the order in which calls of one class leave the queue.
    pub fn discipline(&self) -> Discipline {
        lock(&self.0.queue).as_ref().map_or_else(Discipline::default, |queue| queue.discipline())
    }

    /// Returns how many calls may be in flight.
    ///
    /// ```
    /// # use buttress_core::{ManualClock, bulkhead::Bulkhead};
    /// assert_eq!(Bulkhead::<ManualClock>::new(8).limit(), 8);
    /// ```
    pub fn limit(&self) -> usize {
        self.0.limit.load(Ordering::Acquire) as usize
    }

    /// Returns the number of calls rejected since the bulkhead was created.
    ///
    /// ```
    /// use buttress_core::{ManualClock, Policy, bulkhead::Bulkhead};
    ///
    /// let bulkhead = Bulkhead::<ManualClock>::new(0);
    /// let _ = bulkhead.admit("a request");
    /// assert_eq!(bulkhead.rejected(), 1);
    /// ```
    pub fn rejected(&self) -> u64 {
        self.0.rejected.sum()
    }
}

const IN_FLIGHT: Metric = Metric::gauge("resilience.bulkhead.in_flight", "calls", "Calls that hold a permit");
const IN_QUEUE: Metric = Metric::gauge("resilience.bulkhead.waiting", "calls", "Calls in the queue");
const LIMIT: Metric = Metric::gauge("resilience.bulkhead.limit", "calls", "Calls that may be in flight");
const REJECTED: Metric = Metric::counter("resilience.bulkhead.rejected", "calls", "Calls that the bulkhead rejected");
const QUEUE_DELAY: Metric = Metric::gauge(
    "resilience.bulkhead.queue_delay",
    "seconds",
    "Time that the oldest call in the queue has waited, if the bulkhead has a queue",
);
const CLASS_IN_FLIGHT: Metric = Metric::gauge(
    "resilience.bulkhead.class_in_flight",
    "calls",
    "Calls of the class that hold a permit, if the bulkhead has shares",
)
.labels(&["class"]);
const CLASS_WAITING: Metric = Metric::gauge(
    "resilience.bulkhead.class_waiting",
    "calls",
    "Calls of the class in the queue, if the bulkhead has shares",
)
.labels(&["class"]);

impl<C: Clock> Report for Bulkhead<C> {
    fn metrics() -> Vec<Metric> {
        vec![IN_FLIGHT, IN_QUEUE, LIMIT, REJECTED, QUEUE_DELAY, CLASS_IN_FLIGHT, CLASS_WAITING]
    }

    fn name(&self) -> Option<&str> {
        self.name()
    }

    fn report(&self, sink: &mut dyn Sink) {
        sink.gauge(&IN_FLIGHT, self.in_flight() as f64);
        sink.gauge(&IN_QUEUE, self.waiting() as f64);
        sink.gauge(&LIMIT, self.limit() as f64);
        sink.counter(&REJECTED, self.rejected());
        if let Some(delay) = self.delay_of_queue() {
            sink.gauge(&QUEUE_DELAY, delay.as_secs_f64());
        }
        for class in Criticality::ALL {
            if let Some(in_flight) = self.in_flight_of(class) {
                let labels = [label(class), ""];
                sink.value(&CLASS_IN_FLIGHT, labels, Value::Gauge(in_flight as f64));
                sink.value(&CLASS_WAITING, labels, Value::Gauge(self.waiting_of(class) as f64));
            }
        }
    }
}
