use super::{
    circuit::{Circuit, Counting, FOREVER, word_of},
    config::{Builder, Config, Window},
    event::{Event, Snapshot, State, Transition},
    permit::CircuitBreakerPermit,
};
use crate::shard::{Sharded, shards};
use crate::sync::Ordering;
use crate::{Admit, Clock, InvalidConfig, Name, Policy, Reason, Refused, Rejection, Waiters};
use fastrand::Rng;
use std::{fmt, time::Duration};

/// A circuit breaker: a cheap handle; clones share one circuit. See the [module](super) for how it
/// works.
///
/// ```
/// use buttress_core::{CircuitBreaker, Failure, FailureKind, Permit, Policy, circuit_breaker::State};
/// use std::time::{Duration, Instant};
///
/// let breaker = CircuitBreaker::builder("payments").consecutive_failures(2).build()?;
/// let now = Instant::now();
/// for _ in 0..2 {
///     breaker.reserve(&now).unwrap().settle(&Failure::new(FailureKind::Connect).into(), &now);
/// }
/// assert_eq!(breaker.state(&now), State::Open);
/// assert!(breaker.reserve(&now).unwrap_err().retry_after().is_some());
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone)]
pub struct CircuitBreaker(Sharded<Circuit>);

impl CircuitBreaker {
    /// With the defaults of [`Builder`]: failures in a row that are no chance, at least 5, or more
    /// than half of at least 20 calls in 10 seconds, by what chance explains.
    pub fn new(name: impl Into<Name>) -> Self {
        Self::with_config(name.into(), Config::default(), None)
    }

    /// Starts from the defaults.
    pub fn builder(name: impl Into<Name>) -> Builder {
        Builder::new(name.into())
    }

    pub(super) fn with_config(name: Name, config: Config, seed: Option<u64>) -> Self {
        let (rng, shards) = (seed.map_or_else(Rng::new, Rng::with_seed), shards());
        Self(Sharded::new(shards, Circuit::new(name, config, rng, shards)))
    }

    /// The name, as it stands in rejections, logs and metrics.
    pub fn name(&self) -> &Name {
        self.0.name()
    }

    /// The state at this moment. An open circuit whose time is over stays open until a call comes
    /// that can be its probe.
    pub fn state(&self, clock: &impl Clock) -> State {
        match State::of_word(self.0.hot.word.load(Ordering::Acquire)) {
            State::HalfOpen => self.0.change(clock.now(), |machine, now, steps| {
                machine.roll(now, steps);
                machine.state
            }),
            state => state,
        }
    }

    /// One look at everything.
    pub fn snapshot(&self, clock: &impl Clock) -> Snapshot {
        let (circuit, now) = (&*self.0, clock.now());
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
    pub fn force_open(&self, clock: &impl Clock) {
        self.set(State::ForcedOpen, clock);
    }

    /// Lets every call through and counts nothing, until another of these methods is called.
    pub fn disable(&self, clock: &impl Clock) {
        self.set(State::Disabled, clock);
    }

    /// Lets every call through and counts, but never trips, until another of these methods is
    /// called.
    pub fn metrics_only(&self, clock: &impl Clock) {
        self.set(State::MetricsOnly, clock);
    }

    /// Closes the circuit and forgets all results.
    pub fn reset(&self, clock: &impl Clock) {
        self.set(State::Closed, clock);
    }

    /// Opens the circuit for `time`; then it probes as after a trip.
    pub fn open_for(&self, time: Duration, clock: &impl Clock) {
        self.0.change(clock.now(), |machine, now, steps| steps.push(machine.open_for(time, now)));
    }

    /// Opens for `time` as another instance did, or closes as it did for `None`; then it goes on as
    /// after a trip or a recovery of its own, with a time that the next relapse lengthens as if
    /// there had been none. In an operator's state it stays.
    pub fn follow(&self, open: Option<Duration>, clock: &impl Clock) {
        self.0.change(clock.now(), |machine, now, steps| steps.extend(machine.follow(open, now)));
    }

    /// Allows at most so many probes at a time here, of those that the configuration allows,
    /// because instances share them; `None` for all. While it is 0, an open circuit stays open
    /// beyond its time.
    pub fn allow_probes(&self, allowed: Option<u32>, clock: &impl Clock) {
        self.0.change(clock.now(), |machine, _, _| machine.allow_probes(allowed));
    }

    /// Whether a call would have been a probe had one been [allowed](Self::allow_probes), since the
    /// circuit opened.
    pub fn lacks_probe(&self, clock: &impl Clock) -> bool {
        self.0.change(clock.now(), |machine, _, _| machine.probe_denied)
    }

    /// Whether half of the minimum throughput is enough for the rates, because other instances have
    /// seen enough.
    pub fn set_cautious(&self, cautious: bool) {
        self.0.rules.set_cautious(cautious);
        self.0.rules_changed();
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
    pub fn reload(&self, builder: &Builder, clock: &impl Clock) -> Result<(), InvalidConfig> {
        let config = builder.parse()?;
        let (circuit, now) = (&*self.0, clock.now());
        let judged_anew = circuit.change(now, |machine, now, steps| {
            let resized = match (&circuit.window, config.window) {
                (Some(Counting::Time(window)), Some(Window::Time(new))) => window.differs(new).then_some((window, new)),
                (Some(Counting::Count(window)), Some(Window::Count(new))) if window.holds(new) => None,
                (None, None) => None,
                _ => {
                    return Err(InvalidConfig::new(
                        "window",
                        "cannot change its kind, or how many results it counts, on a live circuit",
                    ));
                }
            };
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
            if let Some((window, time)) = resized {
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
        self.0.listen(false, move |event| match event {
            Event::Transition(transition) => listener(transition),
            _ => true,
        });
    }

    /// Calls `listener` with every [`Event`], for as long as it returns true: every call that ends
    /// or is refused too, on the thread of the call, outside any lock. A panic in it is contained.
    /// Calls are timed while there is such a listener, which costs two readings of the clock each.
    /// A call that was admitted before the listener was added causes no event.
    pub fn on_event_while(&self, listener: impl Fn(&Event) -> bool + Send + Sync + 'static) {
        self.0.listen(true, listener);
    }

    /// The same, for as long as the circuit exists.
    pub fn on_event(&self, listener: impl Fn(&Event) + Send + Sync + 'static) {
        self.on_event_while(move |event| {
            listener(event);
            true
        });
    }

    /// Admits a call, where `may_probe` decides whether it may be a probe of a half-open circuit.
    /// It is called only when that matters.
    pub fn reserve_if(
        &self,
        may_probe: impl FnOnce() -> bool,
        clock: &impl Clock,
    ) -> Result<CircuitBreakerPermit, Rejection> {
        let word = self.0.hot.word.load(Ordering::Acquire);
        let mut may_probe = Some(may_probe);
        let mut must_not = || may_probe.take().is_some_and(|may_probe| !may_probe());
        if !State::of_word(word).admits_all() && self.peek(clock).is_ok() && must_not() {
            return Err(self.0.reject(Reason::ProbesExhausted, None));
        }
        let permit = self.admit_call(true, clock)?;
        // The open time may have ended since it was peeked at. Dropping the permit gives the slot
        // back.
        if permit.is_probe() && must_not() {
            return Err(self.0.reject(Reason::ProbesExhausted, None));
        }
        Ok(permit)
    }

    /// A rejection in this circuit's name, which counts as one of its own.
    pub fn reject(&self, reason: Reason) -> Rejection {
        self.0.reject(reason, None)
    }

    /// Calls `log` with every change of state, as [`on_transition`](Self::on_transition) does, but
    /// for one function that captures nothing: it costs a circuit no memory. Only the first one is
    /// kept.
    pub fn set_log(&self, log: fn(&Transition)) {
        self.0.listeners.set_log(log);
    }

    /// A value of a layer that lives as long as the circuit and is made when it is first asked for.
    /// There is one in each circuit; `None` if it is of another type.
    pub fn attachment<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Option<&T> {
        self.0.attachment.get_or_init(|| Box::new(make())).downcast_ref()
    }

    /// How many permits are out.
    pub fn in_flight(&self) -> usize {
        self.0.tickets_out()
    }

    /// Whether nothing would be lost with this circuit: no permit is out, and it is closed, or
    /// would admit a probe now. An operator's state is never idle. [Keyed
    /// policies](crate::shard::compact) forget such circuits first.
    pub fn is_idle(&self, clock: &impl Clock) -> bool {
        if self.in_flight() != 0 {
            return false;
        }
        match State::of_word(self.0.hot.word.load(Ordering::Acquire)) {
            State::Closed => true,
            State::Open | State::HalfOpen => self.0.change(clock.now(), |machine, now, steps| {
                machine.roll(now, steps);
                machine.is_idle(now)
            }),
            State::MetricsOnly | State::Disabled | State::ForcedOpen => false,
        }
    }

    fn set(&self, state: State, clock: &impl Clock) {
        self.0.change(clock.now(), |machine, _, steps| steps.extend(machine.set(state)));
    }

    /// `begins`: whether the call begins now, or a place is reserved for it.
    #[inline(always)]
    fn admit_call(&self, begins: bool, clock: &impl Clock) -> Result<CircuitBreakerPermit, Rejection> {
        let word = self.0.hot.word.load(Ordering::Acquire);
        if !State::of_word(word).admits_all() {
            return self.admit_cold(word, begins, clock);
        }
        self.admit_closed(word, begins, clock).map_err(|refusal| self.refuse(refusal))
    }

    /// The same for a call that waits: a refusal is not counted.
    fn try_admit(&self, begins: bool, clock: &impl Clock) -> Result<CircuitBreakerPermit, Refusal> {
        let word = self.0.hot.word.load(Ordering::Acquire);
        if !State::of_word(word).admits_all() {
            return self.admit_probe(word, begins, clock);
        }
        self.admit_closed(word, begins, clock)
    }

    /// Admits a call in a state that admits all, apart from a recovery ramp.
    #[inline(always)]
    fn admit_closed(&self, word: u64, begins: bool, clock: &impl Clock) -> Result<CircuitBreakerPermit, Refusal> {
        let circuit = &*self.0;
        let ramp_from = circuit.hot.ramp_from.load(Ordering::Relaxed);
        if ramp_from != 0
            && let Err(after) = circuit.ramp_admits(ramp_from, clock.now())
        {
            return Err(Refusal { reason: Reason::Recovering, retry_after: Some(after) });
        }
        let timed = circuit.times_calls();
        Ok(CircuitBreakerPermit::new(self.0.ticket(), word, timed, begins, clock))
    }

    /// Rejects in one frame with the refusal, which is the way of most calls of an open circuit.
    #[cold]
    #[inline(never)]
    fn admit_cold(&self, word: u64, begins: bool, clock: &impl Clock) -> Result<CircuitBreakerPermit, Rejection> {
        self.admit_probe(word, begins, clock).map_err(|refusal| self.refuse(refusal))
    }

    /// Admits a probe where one is due, or any call where the circuit has closed since `word` was
    /// read.
    #[inline(always)]
    fn admit_probe(&self, word: u64, begins: bool, clock: &impl Clock) -> Result<CircuitBreakerPermit, Refusal> {
        let circuit = &*self.0;
        let reason = |state| match state {
            State::ForcedOpen => Reason::ForcedOpen,
            State::HalfOpen => Reason::ProbesExhausted,
            _ => Reason::CircuitOpen,
        };
        if let Err(refused) = self.refusal(word, clock) {
            return Err(Refusal { reason: reason(State::of_word(word)), retry_after: refused.retry_after });
        }
        let (probe, word, retry_after) = circuit.change(clock.now(), |machine, now, steps| {
            let probe = if machine.state.admits_all() { None } else { Some(machine.take_probe(begins, now, steps)) };
            (probe, word_of(machine.generation, machine.state), machine.retry_after(now))
        });
        match probe {
            Some(None) => Err(Refusal { reason: reason(State::of_word(word)), retry_after }),
            Some(Some(probe)) => Ok(CircuitBreakerPermit::probe(self.0.ticket(), word, probe)),
            None => Ok(CircuitBreakerPermit::new(self.0.ticket(), word, circuit.times_calls(), begins, clock)),
        }
    }

    #[inline]
    fn refuse(&self, Refusal { reason, retry_after }: Refusal) -> Rejection {
        self.0.reject(reason, retry_after)
    }

    /// Uses the coarse clock until 20 ms before the time to refuse is over, then the precise one.
    fn refusal(&self, word: u64, clock: &impl Clock) -> Result<(), Refused> {
        const NEAR: u64 = 20_000_000;
        let circuit = &*self.0;
        let mut refuses_until = circuit.hot.refuses_until.load(Ordering::Acquire);
        let state = State::of_word(word);
        if state.admits_all() {
            return Ok(());
        }
        let half_open = state == State::HalfOpen;
        if refuses_until == FOREVER {
            let retry_after = half_open.then(|| Duration::from_nanos(circuit.rules.first_open()));
            return Err(Refused { retry_after });
        }
        let mut now = circuit.coarse_nanos(clock);
        if refuses_until.saturating_sub(now) < NEAR {
            now = circuit.nanos(clock.now());
        } else if circuit.clock_was_set_back(refuses_until - now, clock) {
            now = circuit.nanos(clock.now());
            refuses_until = circuit.hot.refuses_until.load(Ordering::Acquire);
        }
        if now >= refuses_until {
            return Ok(());
        }
        let longest = if half_open { circuit.rules.first_open() } else { u64::MAX };
        Err(Refused { retry_after: Some(Duration::from_nanos((refuses_until - now).min(longest))) })
    }
}

/// A call that is not admitted, before it counts as rejected.
struct Refusal {
    reason: Reason,
    retry_after: Option<Duration>,
}

impl Policy for CircuitBreaker {
    type Permit = CircuitBreakerPermit;

    /// A reserved probe whose call does not come within the lease gives its slot back, and counts
    /// as nothing.
    fn reserve(&self, clock: &impl Clock) -> Result<CircuitBreakerPermit, Rejection> {
        self.admit_call(false, clock)
    }

    fn try_reserve(&self, clock: &impl Clock) -> Result<CircuitBreakerPermit, Refused> {
        self.try_admit(false, clock).map_err(|Refusal { retry_after, .. }| Refused { retry_after })
    }

    fn refuse(&self, Refused { retry_after }: Refused, _: &impl Clock) -> Rejection {
        let reason = match State::of_word(self.0.hot.word.load(Ordering::Acquire)) {
            State::ForcedOpen => Reason::ForcedOpen,
            State::HalfOpen => Reason::ProbesExhausted,
            _ => Reason::CircuitOpen,
        };
        self.0.reject(reason, retry_after)
    }

    /// One of an earlier generation, or of a probe that has lost its slot, is not.
    fn holds(&self, permit: &CircuitBreakerPermit, clock: &impl Clock) -> bool {
        permit.holds(clock)
    }

    #[inline]
    fn peek(&self, clock: &impl Clock) -> Result<(), Refused> {
        let word = self.0.hot.word.load(Ordering::Acquire);
        if State::of_word(word).admits_all() { Ok(()) } else { self.refusal(word, clock) }
    }

    fn waiters(&self) -> Option<&Waiters> {
        Some(self.0.waiters())
    }
}

impl<Req: ?Sized> Admit<Req> for CircuitBreaker {
    #[inline(always)]
    fn admit(&self, _: &Req, clock: &impl Clock) -> Result<CircuitBreakerPermit, Rejection> {
        self.admit_call(true, clock)
    }

    /// A permit of an earlier generation, or of a probe whose slot is gone, is not good any more:
    /// the call is admitted anew, or rejected.
    fn confirm(
        &self,
        mut permit: CircuitBreakerPermit,
        _: &Req,
        clock: &impl Clock,
    ) -> Result<CircuitBreakerPermit, Rejection> {
        if permit.begin(clock) {
            return Ok(permit);
        }
        drop(permit);
        self.admit_call(true, clock)
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("name", self.0.name())
            .field("rules", &self.0.rules)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
impl CircuitBreaker {
    /// Goes on as if there had been so many changes of state, and one more, which closes it.
    pub(super) fn jump_to(&self, generation: u64, clock: &impl Clock) {
        self.0.change(clock.now(), |machine, _, steps| {
            machine.generation = generation;
            steps.extend(machine.set(State::Closed));
        });
    }
}
