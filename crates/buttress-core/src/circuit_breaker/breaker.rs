use super::{
    builder::Builder,
    circuit::Circuit,
    config::Config,
    event::{Event, Snapshot, State, Transition},
    window::{Counting, Resize},
};
use crate::shard::{Sharded, shards};
use crate::sync::Ordering;
use crate::{Clock, InvalidConfig, Name};
use fastrand::Rng;
use std::{fmt, time::Duration};

/// A circuit breaker: a cheap handle; clones share one circuit. See the [module](super) for how it
/// works.
///
/// `C` is its clock. The crate `buttress` names the type with tokio's.
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
    /// With the defaults of [`Builder`]: failures in a row that chance does not explain, at least
    /// 5, or more than half of at least 20 calls in 10 seconds, by what chance explains.
    pub fn new(name: impl Into<Name>) -> Self {
        Self::with_config(name.into(), Config::default(), None, C::default())
    }

    /// Starts from the defaults.
    pub fn builder(name: impl Into<Name>) -> Builder<C> {
        Builder::new(name.into())
    }
}

impl<C: Clock> CircuitBreaker<C> {
    pub(super) fn with_config(name: Name, config: Config, seed: Option<u64>, clock: C) -> Self {
        let (rng, shards) = (seed.map_or_else(Rng::new, Rng::with_seed), shards());
        Self { circuit: Sharded::new(shards, Circuit::new(name, config, rng, shards)), clock }
    }

    /// The name, as it stands in rejections, logs and metrics.
    pub fn name(&self) -> &Name {
        self.circuit.name()
    }

    /// The state at this moment. An open circuit whose time is over stays open until a call comes
    /// that can be its probe.
    pub fn state(&self) -> State {
        match State::of_word(self.circuit.hot.word.load(Ordering::Acquire)) {
            State::HalfOpen => self.circuit.change(self.clock.now(), |machine, now, steps| {
                machine.roll(now, steps);
                machine.state
            }),
            state => state,
        }
    }

    /// One look at everything.
    pub fn snapshot(&self) -> Snapshot {
        let (circuit, now) = (&*self.circuit, self.clock.now());
        let (state, generation, openings, retry_after) = circuit.change(now, |machine, now, steps| {
            machine.roll(now, steps);
            (machine.state, machine.generation, machine.openings, machine.retry_after(now))
        });
        Snapshot {
            name: circuit.name().clone(),
            state,
            generation,
            counts: circuit.counts(generation, now),
            overdue: circuit.overdue(generation, now),
            consecutive_failures: circuit.hot.streak.get(generation),
            openings,
            retry_after,
            minimum_throughput: circuit.rules.minimum(),
            rejected: circuit.rejected.sum(),
            stale: circuit.stale.load(Ordering::Relaxed),
        }
    }

    /// Refuses every call until another of these methods is called.
    pub fn force_open(&self) {
        self.set(State::ForcedOpen);
    }

    /// Lets every call through and counts nothing, until another of these methods is called.
    pub fn disable(&self) {
        self.set(State::Disabled);
    }

    /// Lets every call through and counts, but never trips, until another of these methods is
    /// called.
    pub fn metrics_only(&self) {
        self.set(State::MetricsOnly);
    }

    /// Closes the circuit and forgets all results.
    pub fn reset(&self) {
        self.set(State::Closed);
    }

    /// Opens the circuit for `time`; then it probes as after a trip.
    pub fn open_for(&self, time: Duration) {
        self.circuit.change(self.clock.now(), |machine, now, steps| steps.push(machine.open_for(time, now)));
    }

    /// Opens for `time` as another instance did, or closes as it did for `None`; then it goes on as
    /// after a trip or a recovery of its own, with a time that the next relapse lengthens as if
    /// there had been none. In an operator's state it stays.
    pub fn follow(&self, open: Option<Duration>) {
        self.circuit.change(self.clock.now(), |machine, now, steps| steps.extend(machine.follow(open, now)));
    }

    /// Allows at most so many probes at a time here, of those that the configuration allows,
    /// because instances share them; `None` for all. While it is 0, an open circuit stays open
    /// beyond its time.
    pub fn allow_probes(&self, allowed: Option<u32>) {
        self.circuit.change(self.clock.now(), |machine, _, _| machine.allow_probes(allowed));
    }

    /// Whether a call would have been a probe had one been [allowed](Self::allow_probes), since the
    /// circuit opened.
    pub fn lacks_probe(&self) -> bool {
        self.circuit.change(self.clock.now(), |machine, _, _| machine.probe_denied)
    }

    /// Whether half of the minimum throughput is enough for the rates, because other instances have
    /// seen enough.
    pub fn set_cautious(&self, cautious: bool) {
        self.circuit.rules.set_cautious(cautious);
        self.circuit.rules_changed();
    }

    /// Changes the configuration while it runs. State and results stay, and are judged by the new
    /// thresholds at once: a circuit whose results meet them trips, and a half-open one with enough
    /// successes closes. A time window of another length begins anew. The name, the seed and a
    /// custom rule are not reloaded.
    ///
    /// # Errors
    /// When the new configuration breaks a rule, or asks for what a live circuit cannot change:
    /// whether it has a window, of which kind, how many results a count window holds, and whether
    /// it counts overdue calls. The old configuration stays then.
    pub fn reload(&self, builder: &Builder<C>) -> Result<(), InvalidConfig> {
        let config = builder.settings.parse()?;
        let (circuit, now) = (&*self.circuit, self.clock.now());
        let judged_anew = circuit.change(now, |machine, now, steps| {
            let resize = Counting::resize(circuit.window.as_ref(), config.window);
            if let Resize::Impossible = resize {
                return Err(InvalidConfig::new(
                    "window",
                    "cannot change its kind, or how many results it counts, on a live circuit",
                ));
            }
            let threshold = config.slow_threshold.map(super::nanos);
            let counts_overdue = circuit.overdue.is_some();
            if counts_overdue != config.count_overdue || (counts_overdue && circuit.rules.slow_threshold() != threshold)
            {
                return Err(InvalidConfig::new(
                    "count_overdue",
                    "cannot change on a live circuit, nor can its slow_threshold",
                ));
            }
            let changed = circuit.rules.set(&config);
            circuit.rules_changed();
            if let Resize::Time(window, time) = resize {
                steps.push(machine.renew());
                window.resize(time, circuit.nanos(now));
            }
            machine.reload(config.recovery, now, steps);
            Ok(changed)
        })?;
        if judged_anew {
            circuit.judge(now);
        }
        circuit.listeners.emit(&Event::Reloaded);
        Ok(())
    }

    /// Calls `listener` with every change of state, on the thread that caused it, outside any lock.
    /// A panic in it is contained. It stays for as long as the circuit does.
    pub fn on_transition(&self, listener: impl Fn(&Transition) + Send + Sync + 'static) {
        self.on_transition_while(move |transition| {
            listener(transition);
            true
        });
    }

    /// The same, for as long as `listener` returns true.
    pub fn on_transition_while(&self, listener: impl Fn(&Transition) -> bool + Send + Sync + 'static) {
        self.circuit.listen(false, move |event| match event {
            Event::Transition(transition) => listener(transition),
            _ => true,
        });
    }

    /// Calls `listener` with every [`Event`], for as long as it returns true: every call that ends
    /// or is refused too, on the thread of the call, outside any lock. A panic in it is contained.
    /// Calls are timed while there is such a listener, which costs two readings of the clock each.
    /// A call that was admitted before the listener was added causes no event.
    pub fn on_event_while(&self, listener: impl Fn(&Event) -> bool + Send + Sync + 'static) {
        self.circuit.listen(true, listener);
    }

    /// The same, for as long as the circuit exists.
    pub fn on_event(&self, listener: impl Fn(&Event) + Send + Sync + 'static) {
        self.on_event_while(move |event| {
            listener(event);
            true
        });
    }

    /// Returns how often the state changed so far, by the state before and after.
    pub fn transitions(&self) -> Vec<(State, State, u32)> {
        self.circuit.change(self.clock.now(), |machine, _, _| machine.changes())
    }

    /// A value of a layer that lives as long as the circuit and is made when it is first asked for.
    /// There is one in each circuit; `None` if it is of another type.
    pub fn attachment<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Option<&T> {
        self.circuit.attachment.get_or_init(|| Box::new(make())).downcast_ref()
    }

    /// How many permits are out.
    pub fn in_flight(&self) -> usize {
        self.circuit.tickets_out()
    }

    /// Whether nothing would be lost with this circuit: no permit is out, and it is closed, or
    /// would admit a probe now. An operator's state is never idle. [Keyed
    /// policies](crate::shard::compact) forget such circuits first.
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
    /// Goes on as if there had been so many changes of state, and one more, which closes it.
    pub(super) fn jump_to(&self, generation: u64) {
        self.circuit.change(self.clock.now(), |machine, _, steps| {
            machine.generation = generation;
            steps.extend(machine.set(State::Closed));
        });
    }
}
