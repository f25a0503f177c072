use super::{
    circuit::Circuit,
    config::Config,
    event::{Event, Snapshot, State, Transition},
};
use crate::shard::{Sharded, shards};
use crate::sync::Ordering;
use crate::{Clock, Name};
use fastrand::Rng;
use std::{fmt, time::Duration};

/// A circuit breaker. A cheap handle; clones share one circuit.
///
/// See the [module](super) for its states. `C` is the clock; the crate `buttress` has an alias of
/// this type with tokio's clock.
///
/// ```
/// use buttress_core::circuit_breaker::{CircuitBreaker, State};
/// use buttress_core::{Failure, FailureKind, ManualClock, Permit, Policy};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let builder = CircuitBreaker::<ManualClock>::builder("payments").consecutive_failures(2);
/// let breaker = builder.clock(clock.clone()).build()?;
/// for _ in 0..2 {
///     breaker.admit("a request").unwrap().settle(&Failure::new(FailureKind::Connect).into());
/// }
/// assert_eq!(breaker.state(), State::Open);
/// assert!(breaker.admit("a request").unwrap_err().retry_after().is_some());
///
/// clock.advance(Duration::from_secs(10));
/// assert!(breaker.admit("a probe").is_ok());
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone)]
pub struct CircuitBreaker<C> {
    pub(super) circuit: Sharded<Circuit>,
    pub(super) clock: C,
}

impl<C: Clock + Default> CircuitBreaker<C> {
    /// Creates a circuit breaker with the defaults of [`Builder`](super::Builder).
    ///
    /// It trips on 5 or more consecutive failures, or if clearly more than half of at least 20
    /// calls in 10 seconds failed, and stays open for 5 to 30 seconds.
    pub fn new(name: impl Into<Name>) -> Self {
        Self::with_config(name.into(), Config::default(), None, C::default())
    }
}

impl<C: Clock> CircuitBreaker<C> {
    pub(super) fn with_config(name: Name, config: Config, seed: Option<u64>, clock: C) -> Self {
        let (rng, shards) = (seed.map_or_else(Rng::new, Rng::with_seed), shards());
        Self { circuit: Sharded::new(shards, Circuit::new(name, config, rng, shards)), clock }
    }

    /// Returns the name, which rejections, logs and metrics contain.
    pub fn name(&self) -> &Name {
        self.circuit.name()
    }

    /// Returns the current state. After its open time, a circuit stays open until the next call,
    /// which becomes a probe.
    ///
    /// ```
    /// use buttress_core::{ManualClock, circuit_breaker::{CircuitBreaker, State}};
    ///
    /// let breaker = CircuitBreaker::<ManualClock>::new("payments");
    /// assert_eq!(breaker.state(), State::Closed);
    /// ```
    pub fn state(&self) -> State {
        match State::of_word(self.circuit.hot.word.load(Ordering::Acquire)) {
            State::HalfOpen => self.circuit.change(self.clock.now(), |machine, now, steps| {
                machine.roll(now, steps);
                machine.state
            }),
            state => state,
        }
    }

    /// Returns the state, the results and the counters at this moment.
    ///
    /// ```
    /// use buttress_core::{ManualClock, Outcome, Permit, Policy, circuit_breaker::CircuitBreaker};
    ///
    /// let breaker = CircuitBreaker::<ManualClock>::new("payments");
    /// breaker.admit("a request").unwrap().settle(&Outcome::Success);
    /// let snapshot = breaker.snapshot();
    /// assert_eq!((snapshot.counts.total(), snapshot.rejected), (1, 0));
    /// ```
    pub fn snapshot(&self) -> Snapshot {
        let (circuit, now) = (&*self.circuit, self.clock.now());
        let (state, generation, openings, retry_after) = match circuit.has_machine() {
            true => circuit.change(now, |machine, now, steps| {
                machine.roll(now, steps);
                (machine.state, machine.generation, machine.openings, machine.retry_after(now))
            }),
            false => (State::Closed, 0, 0, None),
        };
        Snapshot {
            name: circuit.name().clone(),
            state,
            generation,
            counts: circuit.counts(generation, circuit.nanos(now)),
            overdue: circuit.overdue(generation, circuit.nanos(now)),
            consecutive_failures: circuit.hot.streak.get(generation),
            openings,
            retry_after,
            minimum_throughput: circuit.rules.minimum(),
            rejected: circuit.rejected.sum(),
            stale: circuit.stale.load(Ordering::Relaxed),
        }
    }

    /// Rejects every call, until [`reset`](Self::reset) or another method sets the state.
    ///
    /// ```
    /// use buttress_core::{ManualClock, Policy, circuit_breaker::{CircuitBreaker, FORCED_OPEN}};
    ///
    /// let breaker = CircuitBreaker::<ManualClock>::new("payments");
    /// breaker.force_open();
    /// assert_eq!(breaker.admit("a request").unwrap_err().reason(), &FORCED_OPEN);
    /// breaker.reset();
    /// assert!(breaker.admit("a request").is_ok());
    /// ```
    pub fn force_open(&self) {
        self.set(State::ForcedOpen);
    }

    /// Admits every call and counts nothing, until [`reset`](Self::reset) or another method sets
    /// the state.
    pub fn disable(&self) {
        self.set(State::Disabled);
    }

    /// Admits and counts every call but never trips, until [`reset`](Self::reset) or another method
    /// sets the state. For trying rules in production: a rule that is met emits
    /// [`Event::RateExceeded`].
    pub fn metrics_only(&self) {
        self.set(State::MetricsOnly);
    }

    /// Closes the circuit and clears all results.
    pub fn reset(&self) {
        self.set(State::Closed);
    }

    /// Opens the circuit for `time`, for example before maintenance of the backend. After it, the
    /// circuit is half-open, as after a trip.
    ///
    /// ```
    /// use buttress_core::{ManualClock, Policy, circuit_breaker::CircuitBreaker};
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new();
    /// let builder = CircuitBreaker::<ManualClock>::builder("payments");
    /// let breaker = builder.clock(clock.clone()).build()?;
    /// breaker.open_for(Duration::from_secs(60));
    /// assert!(breaker.admit("a request").is_err());
    /// clock.advance(Duration::from_secs(60));
    /// assert!(breaker.admit("a request").unwrap().is_probe());
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn open_for(&self, time: Duration) {
        self.circuit.change(self.clock.now(), |machine, now, steps| steps.push(machine.open_for(time, now)));
    }

    /// Follows another instance of this service that has opened its circuit to the same backend for
    /// `open`, or has closed it (`None`).
    ///
    /// The circuit then continues as after its own trip or recovery, except that a followed opening
    /// does not lengthen the next open time. A state that an operator set stays.
    pub fn follow(&self, open: Option<Duration>) {
        self.circuit.change(self.clock.now(), |machine, now, steps| steps.extend(machine.follow(open, now)));
    }

    /// Limits the probes in flight of this instance, because the instances of a service share them;
    /// `None` for no limit beside
    /// [`Builder::concurrent_probes`](super::Builder::concurrent_probes). While the limit is 0, an
    /// open circuit stays open beyond its open time.
    pub fn allow_probes(&self, allowed: Option<u32>) {
        self.circuit.change(self.clock.now(), |machine, _, _| machine.allow_probes(allowed));
    }

    /// Returns whether a call since the circuit opened would have been a probe, had
    /// [`allow_probes`](Self::allow_probes) not set the limit to 0.
    pub fn lacks_probe(&self) -> bool {
        self.circuit.change(self.clock.now(), |machine, _, _| machine.probe_denied)
    }

    /// Sets whether half of the minimum throughput, rounded up, is enough for the rate rules,
    /// because the circuit of another instance is open.
    pub fn set_cautious(&self, cautious: bool) {
        self.circuit.rules.set_cautious(cautious);
        self.circuit.rules_changed();
    }

    /// Adds a listener that is called with every change of state, for the lifetime of the circuit.
    ///
    /// It is called on the thread that caused the change, outside any lock. A panic in it is
    /// caught.
    ///
    /// ```
    /// use buttress_core::{ManualClock, circuit_breaker::CircuitBreaker};
    /// use std::sync::{Arc, Mutex};
    ///
    /// let breaker = CircuitBreaker::<ManualClock>::new("payments");
    /// let log = Arc::new(Mutex::new(Vec::new()));
    /// let sink = log.clone();
    /// breaker.on_transition(move |change| {
    ///     sink.lock().unwrap().push(format!("{} -> {}", change.from, change.to));
    /// });
    /// breaker.force_open();
    /// assert_eq!(*log.lock().unwrap(), ["closed -> forced-open"]);
    /// ```
    pub fn on_transition(&self, listener: impl Fn(&Transition) + Send + Sync + 'static) {
        self.on_transition_while(move |transition| {
            listener(transition);
            true
        });
    }

    /// Adds a listener like [`on_transition`](Self::on_transition), and removes it once it returns
    /// false.
    pub fn on_transition_while(&self, listener: impl Fn(&Transition) -> bool + Send + Sync + 'static) {
        self.circuit.listen(false, move |event| match event {
            Event::Transition(transition) => listener(transition),
            _ => true,
        });
    }

    /// Adds a listener that is called with every [`Event`], and removes it once it returns false.
    ///
    /// It is called on the thread of the call, outside any lock, also for calls that end or are
    /// rejected. A panic in it is caught. While there is such a listener, calls are timed, which
    /// costs two readings of the clock per call. A call that was admitted before the listener was
    /// added, and was not timed, emits no [`Event::Called`].
    pub fn on_event_while(&self, listener: impl Fn(&Event) -> bool + Send + Sync + 'static) {
        self.circuit.listen(true, listener);
    }

    /// Adds a listener like [`on_event_while`](Self::on_event_while), for the lifetime of the
    /// circuit.
    ///
    /// ```
    /// use buttress_core::{ManualClock, Outcome, Permit, Policy};
    /// use buttress_core::circuit_breaker::{CircuitBreaker, Event};
    /// use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
    ///
    /// let breaker = CircuitBreaker::<ManualClock>::new("payments");
    /// let calls = Arc::new(AtomicU32::new(0));
    /// let counter = calls.clone();
    /// breaker.on_event(move |event| {
    ///     if let Event::Called { .. } = event {
    ///         counter.fetch_add(1, Ordering::Relaxed);
    ///     }
    /// });
    /// breaker.admit("a request").unwrap().settle(&Outcome::Success);
    /// assert_eq!(calls.load(Ordering::Relaxed), 1);
    /// ```
    pub fn on_event(&self, listener: impl Fn(&Event) + Send + Sync + 'static) {
        self.on_event_while(move |event| {
            listener(event);
            true
        });
    }

    /// Returns how often the state has changed since the circuit was created, by the state before
    /// and after.
    pub fn transitions(&self) -> Vec<(State, State, u32)> {
        match self.circuit.has_machine() {
            true => self.circuit.change(self.clock.now(), |machine, _, _| machine.changes()),
            false => Vec::new(),
        }
    }

    /// Returns a value that a layer attaches to the circuit, for the circuit's lifetime. The first
    /// call creates it with `make`. There is one per circuit; returns `None` if it has another
    /// type.
    pub fn attachment<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Option<&T> {
        self.circuit.attachment.get_or_init(|| Box::new(make())).downcast_ref()
    }

    /// Returns how many permits are held.
    pub fn in_flight(&self) -> usize {
        self.circuit.tickets_out()
    }

    /// Returns whether the circuit can be evicted: no permit is held, and it is closed or would
    /// admit a probe now. A state that an operator set is never idle. Keyed policies evict idle
    /// circuits first.
    pub fn is_idle(&self) -> bool {
        if self.in_flight() != 0 {
            return false;
        }
        match State::of_word(self.circuit.hot.word.load(Ordering::Acquire)) {
            State::Closed => true,
            State::Open | State::HalfOpen => self.circuit.change(self.clock.now(), |machine, now, steps| {
                machine.roll(now, steps);
                machine.is_idle(now)
            }),
            State::MetricsOnly | State::Disabled | State::ForcedOpen => false,
        }
    }

    fn set(&self, state: State) {
        self.circuit.change(self.clock.now(), |machine, _, steps| steps.extend(machine.set(state)));
    }
}

impl<C> fmt::Debug for CircuitBreaker<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("name", self.circuit.name())
            .field("rules", &self.circuit.rules)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
impl<C: Clock> CircuitBreaker<C> {
    /// Returns whether the circuit has created its machine.
    pub(super) fn has_changed(&self) -> bool {
        self.circuit.has_machine()
    }

    /// Sets the generation, and closes the circuit with the next one.
    pub(super) fn jump_to(&self, generation: u64) {
        self.circuit.change(self.clock.now(), |machine, _, steps| {
            machine.generation = generation;
            steps.extend(machine.set(State::Closed));
        });
    }
}
