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
    /// Returns whether every call would be refused now. Takes nothing, counts nothing and promises
    /// nothing.
    ///
    /// # Errors
    /// When every call would be refused, with the time after which it is worth asking again.
    #[inline]
    pub fn peek(&self) -> Result<(), Refused> {
        let word = self.circuit.hot.word.load(Ordering::Acquire);
        if State::of_word(word).admits_all() { Ok(()) } else { self.refusal(word) }
    }

    /// Admits a call, where `may_probe` decides whether it may be a probe of a half-open circuit.
    /// It is called only when that matters.
    ///
    /// # Errors
    /// The rejection of a call that is not admitted.
    pub fn admit_if(&self, may_probe: impl FnOnce() -> bool) -> Result<CircuitBreakerPermit<C>, Rejection> {
        let word = self.circuit.hot.word.load(Ordering::Acquire);
        let mut may_probe = Some(may_probe);
        let mut must_not = || may_probe.take().is_some_and(|may_probe| !may_probe());
        if !State::of_word(word).admits_all() && self.peek().is_ok() && must_not() {
            return Err(self.circuit.reject(&PROBES_EXHAUSTED, None));
        }
        let permit = self.admit_call(true)?;
        // The open time may have ended since it was peeked at. Dropping the permit gives the slot
        // back.
        if permit.is_probe() && must_not() {
            return Err(self.circuit.reject(&PROBES_EXHAUSTED, None));
        }
        Ok(permit)
    }

    /// Counts a rejection and returns it, with this circuit's name.
    pub fn reject(&self, reason: &'static Reason) -> Rejection {
        self.circuit.reject(reason, None)
    }

    /// `begins`: whether the call begins now, or a place is reserved for it.
    #[inline(always)]
    fn admit_call(&self, begins: bool) -> Result<CircuitBreakerPermit<C>, Rejection> {
        let word = self.circuit.hot.word.load(Ordering::Acquire);
        if !State::of_word(word).admits_all() {
            return self.admit_cold(word, begins);
        }
        self.admit_closed(word, begins).map_err(|refusal| self.rejection(refusal))
    }

    /// Admits a call in a state that admits all, apart from a recovery ramp.
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

    /// Rejects in one frame with the refusal, which is the way of most calls of an open circuit.
    #[cold]
    #[inline(never)]
    fn admit_cold(&self, word: u64, begins: bool) -> Result<CircuitBreakerPermit<C>, Rejection> {
        self.admit_probe(word, begins).map_err(|refusal| self.rejection(refusal))
    }

    /// Admits a probe where one is due, or any call where the circuit has closed since `word` was
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

    /// Uses the coarse clock until 20 ms before the time to refuse is over, then the precise one.
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

/// A call that is not admitted, before it counts as rejected.
struct Refusal {
    reason: &'static Reason,
    retry_after: Option<Duration>,
}

/// Why a circuit in the state of `word` refuses.
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

    /// A permit of an earlier generation, or of a probe whose slot is gone, is not good any more:
    /// the call is admitted anew, or rejected.
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

    /// A reserved probe whose call does not come within the lease gives its slot back, and counts
    /// as nothing.
    fn try_reserve(&self) -> Result<CircuitBreakerPermit<C>, Refused> {
        let word = self.circuit.hot.word.load(Ordering::Acquire);
        let admitted = match State::of_word(word).admits_all() {
            true => self.admit_closed(word, false),
            false => self.admit_probe(word, false),
        };
        admitted.map_err(|Refusal { retry_after, .. }| Refused { retry_after })
    }

    /// A permit of an earlier generation, or of a probe that has lost its slot, is not good any
    /// more.
    fn holds(&self, permit: &CircuitBreakerPermit<C>) -> bool {
        permit.holds()
    }

    fn waiters(&self) -> Option<Waiters> {
        Some(self.circuit.waiters().clone())
    }
}

impl<C: Clock> Idle for CircuitBreaker<C> {
    /// No call is in flight, and the circuit is closed, or would admit a probe now. An operator's
    /// state is never idle.
    fn is_idle(&self) -> bool {
        self.is_idle()
    }
}
