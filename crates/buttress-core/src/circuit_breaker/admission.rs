use super::{
    FORCED_OPEN, OPEN, PROBES_EXHAUSTED, RECOVERING,
    breaker::CircuitBreaker,
    circuit::{FOREVER, word_of},
    event::State,
    permit::CircuitBreakerPermit,
};
use crate::policy::{Idle, Policy, Refused, Reserve};
use crate::sync::Ordering;
use crate::{Clock, Reason, Rejection, Waiters};
use std::time::Duration;

impl<C: Clock> CircuitBreaker<C> {
    /// Checks whether every call would be refused now. Changes nothing, and guarantees nothing
    /// about the next call.
    ///
    /// # Errors
    /// If every call would be refused, with the time after which to check again.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, circuit_breaker::CircuitBreaker};
    /// use std::time::Duration;
    ///
    /// let builder = CircuitBreaker::<ManualClock>::builder("payments");
    /// let breaker = builder.clock(ManualClock::new()).build()?;
    /// breaker.open_for(Duration::from_secs(60));
    /// assert_eq!(breaker.peek().unwrap_err().retry_after, Some(Duration::from_secs(60)));
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    #[inline]
    pub fn peek(&self) -> Result<(), Refused> {
        let word = self.circuit.hot.word.load(Ordering::Acquire);
        if State::of_word(word).admits_all() { Ok(()) } else { self.refusal(word) }
    }

    /// Admits a call that is a probe only if `may_probe` returns true, for example because the
    /// request is idempotent.
    ///
    /// `may_probe` is called at most once, and only if the circuit would admit the call as a probe.
    ///
    /// # Errors
    /// The rejection, if the call is not admitted; [`PROBES_EXHAUSTED`] if it may not be a probe.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, circuit_breaker::{CircuitBreaker, PROBES_EXHAUSTED}};
    /// use std::time::Duration;
    ///
    /// let breaker = CircuitBreaker::<ManualClock>::new("payments");
    /// breaker.open_for(Duration::ZERO);
    /// let rejection = breaker.admit_if(|| false).unwrap_err();
    /// assert_eq!(rejection.reason(), &PROBES_EXHAUSTED);
    /// assert!(breaker.admit_if(|| true).unwrap().is_probe());
    /// ```
    pub fn admit_if(&self, may_probe: impl FnOnce() -> bool) -> Result<CircuitBreakerPermit<C>, Rejection> {
        let word = self.circuit.hot.word.load(Ordering::Acquire);
        let mut may_probe = Some(may_probe);
        let mut must_not = || may_probe.take().is_some_and(|may_probe| !may_probe());
        if !State::of_word(word).admits_all() && self.peek().is_ok() && must_not() {
            return Err(self.circuit.reject(&PROBES_EXHAUSTED, None));
        }
        let permit = self.admit_call(true)?;
        // The open time may have ended since `peek`. Dropping the permit releases the slot.
        if permit.is_probe() && must_not() {
            return Err(self.circuit.reject(&PROBES_EXHAUSTED, None));
        }
        Ok(permit)
    }

    /// Counts and returns a rejection with this circuit's name, for a layer that rejects a call
    /// itself.
    pub fn reject(&self, reason: &'static Reason) -> Rejection {
        self.circuit.reject(reason, None)
    }

    /// Admits a call. `begins` is false if a permit is only reserved.
    #[inline(always)]
    fn admit_call(&self, begins: bool) -> Result<CircuitBreakerPermit<C>, Rejection> {
        let word = self.circuit.hot.word.load(Ordering::Acquire);
        if !State::of_word(word).admits_all() {
            return self.admit_cold(word, begins);
        }
        self.admit_closed(word, begins).map_err(|refusal| self.rejection(refusal))
    }

    /// Admits a call in a state that admits all calls, unless a recovery ramp rejects it.
    #[inline(always)]
    fn admit_closed(&self, word: u64, begins: bool) -> Result<CircuitBreakerPermit<C>, Refusal> {
        let circuit = &*self.circuit;
        if let Some(from) = circuit.hot.ramp.begun()
            && let Err(after) = circuit.hot.ramp.admits(from, circuit.nanos(self.clock.now()), circuit.rules.ramp())
        {
            return Err(Refusal { reason: &RECOVERING, retry_after: Some(after) });
        }
        let timed = circuit.times_calls();
        Ok(CircuitBreakerPermit::new(self.circuit.ticket(), word, timed, begins, self.clock.clone()))
    }

    /// Admits or rejects a call in any other state. Most calls here are rejected, so the rejection
    /// is inlined.
    #[cold]
    #[inline(never)]
    fn admit_cold(&self, word: u64, begins: bool) -> Result<CircuitBreakerPermit<C>, Rejection> {
        self.admit_probe(word, begins).map_err(|refusal| self.rejection(refusal))
    }

    /// Admits a probe if a slot is free, or any call if the circuit has closed since `word` was
    /// read.
    #[inline(always)]
    fn admit_probe(&self, word: u64, begins: bool) -> Result<CircuitBreakerPermit<C>, Refusal> {
        let circuit = &*self.circuit;
        if let Err(Refused { retry_after }) = self.refusal(word) {
            return Err(Refusal { reason: reason(word), retry_after });
        }
        let (probe, word, retry_after) = circuit.change(self.clock.now(), |machine, now, steps| {
            let probe = if machine.state.admits_all() { None } else { Some(machine.take_probe(begins, now, steps)) };
            (probe, word_of(machine.generation, machine.state), machine.retry_after(now))
        });
        let (ticket, clock) = (|| self.circuit.ticket(), || self.clock.clone());
        match probe {
            Some(None) => Err(Refusal { reason: reason(word), retry_after }),
            Some(Some(probe)) => Ok(CircuitBreakerPermit::probe(ticket(), word, probe, clock())),
            None => Ok(CircuitBreakerPermit::new(ticket(), word, circuit.times_calls(), begins, clock())),
        }
    }

    #[inline]
    fn rejection(&self, Refusal { reason, retry_after }: Refusal) -> Rejection {
        self.circuit.reject(reason, retry_after)
    }

    /// Returns the refusal of a state that does not admit all calls, unless it may admit a probe
    /// now.
    ///
    /// Uses the coarse clock until 20 ms before the end of the time to refuse, then the precise
    /// one.
    fn refusal(&self, word: u64) -> Result<(), Refused> {
        const NEAR: u64 = 20_000_000;
        let circuit = &*self.circuit;
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
        let mut now = circuit.time.coarse_nanos(&self.clock);
        if refuses_until.saturating_sub(now) < NEAR {
            now = circuit.nanos(self.clock.now());
        } else if circuit.clock_was_set_back(refuses_until - now, &self.clock) {
            now = circuit.nanos(self.clock.now());
            refuses_until = circuit.hot.refuses_until.load(Ordering::Acquire);
        }
        if now >= refuses_until {
            return Ok(());
        }
        let longest = if half_open { circuit.rules.first_open() } else { u64::MAX };
        Err(Refused { retry_after: Some(Duration::from_nanos((refuses_until - now).min(longest))) })
    }
}

/// The reason and the time of a rejection that is not counted yet.
struct Refusal {
    reason: &'static Reason,
    retry_after: Option<Duration>,
}

/// Returns why a circuit in the state of `word` refuses calls.
fn reason(word: u64) -> &'static Reason {
    match State::of_word(word) {
        State::ForcedOpen => &FORCED_OPEN,
        State::HalfOpen => &PROBES_EXHAUSTED,
        _ => &OPEN,
    }
}

impl<Req: ?Sized, C: Clock> Policy<Req> for CircuitBreaker<C> {
    type Permit = CircuitBreakerPermit<C>;

    #[inline(always)]
    fn admit(&self, _: &Req) -> Result<CircuitBreakerPermit<C>, Rejection> {
        self.admit_call(true)
    }

    #[inline]
    fn peek(&self) -> Result<(), Refused> {
        self.peek()
    }

    fn refuse(&self, _: &Req, Refused { retry_after }: Refused) -> Rejection {
        self.circuit.reject(reason(self.circuit.hot.word.load(Ordering::Acquire)), retry_after)
    }

    /// Begins the call of a reserved permit. If the permit is of an earlier generation, or of a
    /// probe that has lost its slot, the call is admitted again or rejected.
    fn confirm(&self, mut permit: CircuitBreakerPermit<C>, _: &Req) -> Result<CircuitBreakerPermit<C>, Rejection> {
        if permit.begin() {
            return Ok(permit);
        }
        drop(permit);
        self.admit_call(true)
    }

    fn unready(&self) -> Option<Result<CircuitBreakerPermit<C>, Refused>> {
        Some(self.try_reserve())
    }

    fn watchers(&self) -> Option<Waiters> {
        Some(self.circuit.waiters().clone())
    }
}

impl<C: Clock> Reserve for CircuitBreaker<C> {
    type Permit = CircuitBreakerPermit<C>;

    /// Reserves a permit. If it is that of a probe whose call does not begin within the lease, its
    /// slot is released and nothing is counted.
    fn try_reserve(&self) -> Result<CircuitBreakerPermit<C>, Refused> {
        let word = self.circuit.hot.word.load(Ordering::Acquire);
        let admitted = match State::of_word(word).admits_all() {
            true => self.admit_closed(word, false),
            false => self.admit_probe(word, false),
        };
        admitted.map_err(|Refusal { retry_after, .. }| Refused { retry_after })
    }

    /// Returns whether a permit is still valid: not if it is of an earlier generation, or of a
    /// probe that has lost its slot.
    fn holds(&self, permit: &CircuitBreakerPermit<C>) -> bool {
        permit.holds()
    }

    fn waiters(&self) -> Option<Waiters> {
        Some(self.circuit.waiters().clone())
    }
}

impl<C: Clock> Idle for CircuitBreaker<C> {
    /// Returns whether no permit is held and the circuit is closed or would admit a probe now. A
    /// state that an operator set is never idle.
    fn is_idle(&self) -> bool {
        self.is_idle()
    }
}
