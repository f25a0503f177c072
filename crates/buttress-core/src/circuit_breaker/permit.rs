use super::{
    circuit::Circuit,
    event::{Event, State},
    round::{Probe, Verdict},
    settings::OnDrop,
    ticks::{TICK, TICK_BITS, ticks, ticks_since},
    time_window::Category,
};
use crate::shard::Ticket;
use crate::sync::Ordering;
use crate::{Clock, Failure, Ignored, Outcome, Permit, Progress};
use std::{fmt, time::Duration};

/// The permit of a call, with the generation in which it was issued.
///
/// With a clock of size zero it is two words long, which are passed in registers: it is moved
/// several times per call. Dropping it unsettled releases the slot of a probe and counts nothing,
/// even with [`OnDrop::Failure`]: settle it with [`Outcome::CANCELLED`] to apply that rule.
///
/// ```
/// use buttress_core::{ManualClock, Outcome, Permit, Policy, circuit_breaker::CircuitBreaker};
///
/// let breaker = CircuitBreaker::<ManualClock>::new("payments");
/// let mut permit = breaker.admit("a request").unwrap();
/// assert!(!permit.is_probe());
/// permit.settle(&Outcome::Success);
/// ```
#[must_use = "dropping a permit unsettled cancels its call"]
pub struct CircuitBreakerPermit<C: Clock> {
    clock: C,
    ticket: Ticket<Circuit>,
    /// The lower bits are those of the circuit's word when the permit was issued, or the generation
    /// with [`HEAD`] or [`RESERVED`] in place of the state. If the state is [`State::HalfOpen`],
    /// the upper bits are the number of a probe. Otherwise they are 0 for a call that is not timed,
    /// its start in [ticks](super::ticks::ticks), or, with [`HEAD`], the ticks to its
    /// head.
    bits: u64,
}

const LOW_BITS: u32 = u64::BITS - TICK_BITS;
/// The bits of a circuit's word that a permit keeps. They contain 26 bits of the generation, so a
/// stale permit is taken for a current one after 2^26 changes of state.
const LOW: u64 = (1 << LOW_BITS) - 1;
const MARK: u64 = (1 << State::BITS) - 1;
/// In place of a state: the head has arrived, and the upper bits are the ticks it took. The state
/// is that of the generation.
const HEAD: u64 = 6;
/// In place of a state: the permit was reserved and its call has not begun.
const RESERVED: u64 = 7;
/// The bits of a settled permit: [`RESERVED`] without a time, which no other permit has.
const SETTLED: u64 = LOW;

impl<C: Clock> CircuitBreakerPermit<C> {
    /// Creates the permit of a call that is not a probe. `begins` is false for a reserved permit.
    ///
    /// The caller reads `timed` before it takes the ticket: a load after that atomic increment
    /// would have to wait for it.
    #[inline(always)]
    pub(super) fn new(ticket: Ticket<Circuit>, word: u64, timed: bool, begins: bool, clock: C) -> Self {
        let bits = if timed { start(&ticket, word, begins, &clock) } else { word & LOW };
        Self { clock, ticket, bits }
    }

    pub(super) fn probe(ticket: Ticket<Circuit>, word: u64, probe: Probe, clock: C) -> Self {
        Self { clock, ticket, bits: u64::from(probe.0) << LOW_BITS | word & LOW }
    }

    /// Begins the call of a reserved permit. Returns whether the permit is still valid.
    pub(super) fn begin(&mut self) -> bool {
        let circuit = &*self.ticket;
        if self.is_probe() {
            let probe = probe_of(self.bits);
            return circuit.change(self.clock.now(), |machine, now, steps| machine.begin(probe, now, steps));
        }
        let word = circuit.hot.word.load(Ordering::Acquire);
        if !is_current(self.bits, word) {
            return false;
        }
        if circuit.times_calls() {
            self.bits = start(circuit, word, true, &self.clock);
        }
        true
    }

    /// Returns whether a reserved permit is still valid for a call. Does not renew the lease of a
    /// probe.
    pub(super) fn holds(&self) -> bool {
        let circuit = &*self.ticket;
        if self.is_probe() {
            let probe = probe_of(self.bits);
            return circuit.change(self.clock.now(), |machine, now, steps| machine.has_lease(probe, now, steps));
        }
        is_current(self.bits, circuit.hot.word.load(Ordering::Acquire))
    }

    /// Returns whether this call is a probe of a half-open circuit.
    #[inline]
    pub fn is_probe(&self) -> bool {
        self.bits & MARK == State::HalfOpen as u64
    }

    /// Returns whether the call is counted, is not timed and is not a probe.
    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.bits >> LOW_BITS == 0 && self.bits & MARK <= State::MetricsOnly as u64
    }
}

impl<C: Clock> Permit for CircuitBreakerPermit<C> {
    /// Settles the call.
    ///
    /// Only the success of an untimed call is inlined. If the other results were, every call would
    /// save and restore registers for them.
    #[inline(always)]
    fn settle(&mut self, outcome: &Outcome) {
        let (bits, circuit) = (self.bits, &*self.ticket);
        let word = circuit.hot.word.load(Ordering::Acquire);
        if self.is_plain() && *outcome == Outcome::Success && word & LOW == bits {
            let generation = word >> State::BITS;
            circuit.hot.streak.reset(generation);
            circuit.record(&self.ticket, generation, Category::Succeeded, &self.clock);
        } else {
            settle_slow_path(&self.ticket, bits, outcome, &self.clock);
        }
        // The drop has nothing left to release.
        self.bits = SETTLED;
    }

    /// Renews the lease of a probe, and ends the time of a timed call. For all other calls it is a
    /// single test.
    #[inline(always)]
    fn progress(&mut self, _: Progress) {
        if self.bits >> LOW_BITS != 0 && self.bits & MARK != HEAD {
            self.bits = progress_slow_path(&self.ticket, self.bits, &self.clock);
        }
    }
}

impl<C: Clock> Drop for CircuitBreakerPermit<C> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.bits != SETTLED {
            drop_unsettled(&self.ticket, self.bits);
        }
    }
}

// The functions below are not inlined and take the fields of a permit. A reference to the permit
// would force it out of the registers.

#[inline]
fn is_current(bits: u64, word: u64) -> bool {
    (bits ^ word) & LOW & !MARK == 0
}

fn probe_of(bits: u64) -> Probe {
    Probe((bits >> LOW_BITS) as u32)
}

/// Returns the bits of a call that is timed from now on, or of its reservation. If overdue calls
/// are counted, counts a call that begins, and trips if too many earlier ones are overdue.
#[inline(never)]
fn start(circuit: &Circuit, word: u64, begins: bool, clock: &impl Clock) -> u64 {
    let (generation, nanos) = (word >> State::BITS, circuit.timed_nanos(clock));
    let started = ticks(nanos);
    if !begins {
        return started << LOW_BITS | word & LOW | RESERVED;
    }
    if let Some(overdue) = &circuit.overdue {
        overdue.start(overdue.tag(started, generation), generation);
        if State::of_word(word) == State::Closed
            && overdue.is_check_due(nanos)
            && let Some(cause) = circuit.rules.rates(circuit.with_overdue(generation, nanos))
        {
            circuit.trip(generation, cause, None, clock.now());
        }
    }
    started << LOW_BITS | word & LOW
}

#[cold]
#[inline(never)]
fn progress_slow_path(ticket: &Ticket<Circuit>, bits: u64, clock: &impl Clock) -> u64 {
    let circuit = &**ticket;
    if bits & MARK == State::HalfOpen as u64 {
        circuit.change(clock.now(), |machine, now, steps| machine.progress(probe_of(bits), now, steps));
        return bits;
    }
    if circuit.rules.times_to_end() {
        return bits;
    }
    let started = bits >> LOW_BITS;
    let elapsed = ticks_since(started, circuit.timed_nanos(clock));
    end(circuit, bits);
    elapsed << LOW_BITS | bits & LOW & !MARK | HEAD
}

#[inline(never)]
fn settle_slow_path(ticket: &Ticket<Circuit>, bits: u64, outcome: &Outcome, clock: &impl Clock) {
    let circuit = &**ticket;
    if bits & MARK == State::HalfOpen as u64 {
        return settle_probe(circuit, probe_of(bits), outcome, clock);
    }
    let word = circuit.hot.word.load(Ordering::Acquire);
    if bits == SETTLED || !is_current(bits, word) {
        return circuit.settle_stale(outcome);
    }
    let (generation, state) = (word >> State::BITS, State::of_word(word));
    end(circuit, bits);
    let nanos = circuit.result_nanos(clock);
    let elapsed = elapsed(bits, nanos);
    let slow = elapsed.is_some_and(|elapsed| circuit.rules.is_slow(elapsed));
    if bits & MARK == RESERVED && *outcome == Outcome::CANCELLED {
        // No call began.
        return;
    }
    if let Some(elapsed) = elapsed.filter(|_| circuit.listeners.wants_calls()) {
        let elapsed = Duration::from_nanos(elapsed);
        circuit.listeners.emit(&Event::Called { outcome: *outcome, elapsed, slow });
    }
    if state == State::Disabled {
        return;
    }
    match category(circuit, outcome, slow) {
        None => {}
        Some(Category::Succeeded) => {
            circuit.hot.streak.reset(generation);
            circuit.record_at(ticket.shard(), generation, Category::Succeeded, nanos);
        }
        Some(category) => settle_bad(ticket, word, category, outcome, nanos, clock),
    }
}

#[cold]
#[inline(never)]
fn drop_unsettled(ticket: &Ticket<Circuit>, bits: u64) {
    if bits & MARK == State::HalfOpen as u64 {
        ticket.release_slot(probe_of(bits));
    } else {
        end(ticket, bits);
    }
}

/// Returns the nanoseconds that a timed call took to its head, or until `now` without a head.
/// `None` for a call that is not timed.
fn elapsed(bits: u64, now: u64) -> Option<u64> {
    match (bits & MARK, bits >> LOW_BITS) {
        (HEAD, took) => Some(took * TICK),
        (_, 0) => None,
        (_, started) => Some(ticks_since(started, now) * TICK),
    }
}

/// Removes a call from the count of overdue calls. Calls of an earlier generation are no longer in
/// it.
#[inline]
fn end(circuit: &Circuit, bits: u64) {
    let started = bits >> LOW_BITS;
    if started != 0
        && bits & MARK < HEAD
        && let Some(overdue) = &circuit.overdue
    {
        let word = circuit.hot.word.load(Ordering::Acquire);
        let generation = word >> State::BITS;
        if is_current(bits, word) {
            overdue.end(overdue.tag(started, generation), generation);
        }
    }
}

/// Returns how an outcome is counted; `None` if it is no evidence.
#[inline]
fn category(circuit: &Circuit, outcome: &Outcome, slow: bool) -> Option<Category> {
    match outcome {
        Outcome::Success => Some(Category::new(false, slow)),
        // The request was not processed: see `Failure::graceful`.
        Outcome::Failure(Failure { graceful: true, .. }) => None,
        Outcome::Failure(_) => Some(Category::new(true, slow)),
        Outcome::Ignored(Ignored::Cancelled) if slow => match circuit.rules.on_drop() {
            OnDrop::Ignore => None,
            OnDrop::Slow => Some(Category::Slow),
            OnDrop::Failure => Some(Category::SlowFailed),
        },
        Outcome::Ignored(_) => None,
    }
}

#[cold]
#[inline(never)]
fn settle_probe(circuit: &Circuit, probe: Probe, outcome: &Outcome, clock: &impl Clock) {
    let (settled, called, slow) = circuit.change(clock.now(), |machine, now, steps| {
        let elapsed = machine.elapsed(probe, circuit.rules.times_to_end(), now);
        let slow = elapsed.is_some_and(|elapsed| circuit.rules.is_slow(super::nanos(elapsed)));
        let never_began = *outcome == Outcome::CANCELLED && !machine.has_begun(probe);
        let verdict = match category(circuit, outcome, slow).filter(|_| !never_began) {
            None => Verdict::Ignored,
            Some(Category::Succeeded) => Verdict::Succeeded,
            // If slow calls trip the circuit, a slow probe is no evidence of recovery.
            Some(Category::Slow) if !circuit.rules.has_slow_rate() => Verdict::Succeeded,
            Some(_) => Verdict::Failed,
        };
        (
            machine.settle_probe(probe, verdict, outcome.failure().copied(), now, steps),
            elapsed.filter(|_| !never_began),
            slow,
        )
    });
    if !settled {
        circuit.settle_stale(outcome);
    } else if let Some(elapsed) = called.filter(|_| circuit.listeners.wants_calls()) {
        circuit.listeners.emit(&Event::Called { outcome: *outcome, elapsed, slow });
    }
}

#[cold]
#[inline(never)]
fn settle_bad(
    ticket: &Ticket<Circuit>,
    word: u64,
    category: Category,
    outcome: &Outcome,
    nanos: u64,
    clock: &impl Clock,
) {
    let (circuit, generation) = (&**ticket, word >> State::BITS);
    circuit.record_at(ticket.shard(), generation, category, nanos);
    let streak = match (outcome, category) {
        // A backend that sheds load is up.
        (Outcome::Failure(failure), _) if failure.overload => 0,
        (_, Category::Failed | Category::SlowFailed) => circuit.hot.streak.extend(generation),
        _ => {
            // A slow call that was dropped has not succeeded, and does not end a streak.
            if *outcome == Outcome::Success {
                circuit.hot.streak.reset(generation);
            }
            0
        }
    };
    let (closed, wanted) = (State::of_word(word) == State::Closed, circuit.listeners.wants_calls());
    if (closed || wanted)
        && let Some(cause) = circuit.verdict(generation, streak, nanos)
    {
        if wanted {
            circuit.listeners.emit(&Event::RateExceeded(cause));
        }
        if closed {
            circuit.trip(generation, cause, outcome.failure().copied(), clock.now());
        }
    }
}

impl<C: Clock> fmt::Debug for CircuitBreakerPermit<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerPermit")
            .field("name", self.ticket.name())
            .field("generation", &((self.bits & LOW) >> State::BITS))
            .field("probe", &self.is_probe())
            .finish()
    }
}
