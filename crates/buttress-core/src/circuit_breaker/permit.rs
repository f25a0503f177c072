use super::{
    circuit::Circuit,
    config::OnDrop,
    event::{Event, State},
    machine::{Probe, Verdict},
    time_window::Category,
};
use crate::shard::Ticket;
use crate::sync::Ordering;
use crate::{Clock, Ignored, Outcome, Permit};
use std::{
    fmt,
    time::{Duration, Instant},
};

/// A call's permission, and the generation it was given in.
///
/// Two words, because it is moved on every call, and two words travel in registers.
#[must_use]
pub struct CircuitBreakerPermit {
    ticket: Ticket<Circuit>,
    /// The upper half is a probe's number, for other calls the [time](Circuit::ticks) at which they started where slow calls matter, else 0.
    /// The lower half is that of the circuit's word when the permit was given. With [`State::HalfOpen`] in it, it is a probe's.
    bits: u64,
}

/// The bits of a permit that was settled. No circuit ever has such a word, so that settling it again is stale.
const SETTLED: u64 = u32::MAX as u64;

impl CircuitBreakerPermit {
    /// `timed` is read before the ticket is taken: what is read after that waits for it.
    #[inline(always)]
    pub(super) fn new(ticket: Ticket<Circuit>, word: u64, timed: bool, clock: &impl Clock) -> Self {
        let word = word & u64::from(u32::MAX);
        let bits = if timed { start(&ticket, word, clock) << 32 | word } else { word };
        Self { ticket, bits }
    }

    pub(super) fn probe(ticket: Ticket<Circuit>, word: u64, probe: Probe) -> Self {
        Self { ticket, bits: u64::from(probe.0) << 32 | word & u64::from(u32::MAX) }
    }

    /// Whether the permit is still good, now that its call begins.
    pub(super) fn begin(&self, clock: &impl Clock) -> bool {
        let circuit = &*self.ticket;
        if self.is_probe() {
            let probe = Probe((self.bits >> 32) as u32);
            return circuit.change(clock.now(), |machine, now, steps| machine.begin(probe, now, steps));
        }
        circuit.hot.word.load(Ordering::Acquire) as u32 == self.bits as u32
    }

    /// Whether this call is a probe of a half-open circuit.
    #[inline]
    pub fn is_probe(&self) -> bool {
        State::of_word(self.bits) == State::HalfOpen
    }

    /// Whether it is that of a call that counts, is not timed and is no probe.
    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.bits >> 32 == 0 && matches!(State::of_word(self.bits), State::Closed | State::MetricsOnly)
    }
}

impl Permit for CircuitBreakerPermit {
    /// A success of an untimed call is all that is in line: what else a result may be takes a frame of its own, and whoever has that in line
    /// saves and restores registers for it on every call.
    #[inline(always)]
    fn settle(&mut self, outcome: &Outcome, clock: &impl Clock) {
        let (bits, circuit) = (self.bits, &*self.ticket);
        if self.is_plain()
            && *outcome == Outcome::Success
            && circuit.hot.word.load(Ordering::Acquire) as u32 == bits as u32
        {
            let generation = bits >> State::BITS;
            circuit.end_row(generation);
            circuit.record(&self.ticket, generation, Category::Succeeded, clock);
        } else {
            settle_otherwise(&self.ticket, bits, outcome, clock);
        }
        // Nothing is left for the drop to give back.
        self.bits = SETTLED;
    }
}

impl Drop for CircuitBreakerPermit {
    #[inline(always)]
    fn drop(&mut self) {
        if self.bits != SETTLED {
            drop_unsettled(&self.ticket, self.bits);
        }
    }
}

// What follows is out of line and takes the permit in pieces, so that a permit can stay in registers on its way.

/// Times a call. Where calls in flight are counted, counts it, and trips when too many before it are overdue.
#[inline(never)]
fn start(circuit: &Circuit, word: u64, clock: &impl Clock) -> u64 {
    let (generation, now) = (word >> State::BITS, clock.now());
    let started = circuit.ticks(now);
    if let Some(overdue) = &circuit.overdue {
        overdue.start(overdue.tag(started, generation), generation);
        if State::of_word(word) == State::Closed
            && overdue.look(circuit.nanos(now))
            && let Some(cause) = circuit.rules.rates(circuit.with_overdue(generation, now))
        {
            circuit.trip(generation, cause, None, now);
        }
    }
    started
}

#[inline(never)]
fn settle_otherwise(ticket: &Ticket<Circuit>, bits: u64, outcome: &Outcome, clock: &impl Clock) {
    let (word, started, circuit) = (bits & u64::from(u32::MAX), bits >> 32, &**ticket);
    if State::of_word(word) == State::HalfOpen {
        settle_probe(circuit, Probe(started as u32), outcome, clock);
    } else if circuit.hot.word.load(Ordering::Acquire) as u32 != word as u32 {
        circuit.settle_stale(outcome);
    } else {
        let generation = word >> State::BITS;
        end(circuit, word, started);
        let elapsed = if started == 0 { 0 } else { circuit.elapsed(started, clock.now()) };
        let slow = circuit.rules.is_slow(elapsed);
        if started != 0 && circuit.listeners.hear_of_calls() {
            let elapsed = Duration::from_nanos(elapsed);
            circuit.listeners.tell(&Event::Called { outcome: *outcome, elapsed, slow });
        }
        if State::of_word(word) == State::Disabled {
            return;
        }
        match category(circuit, outcome, slow) {
            None => {}
            Some(Category::Succeeded) => {
                circuit.end_row(generation);
                circuit.record(ticket, generation, Category::Succeeded, clock);
            }
            Some(category) => settle_bad(ticket, word, category, outcome, clock.now()),
        }
    }
}

#[cold]
#[inline(never)]
fn drop_unsettled(ticket: &Ticket<Circuit>, bits: u64) {
    let (word, started) = (bits & u64::from(u32::MAX), bits >> 32);
    if State::of_word(word) == State::HalfOpen {
        ticket.give_back(Probe(started as u32));
    } else {
        end(ticket, word, started);
    }
}

/// Takes a call off the count of those in flight. Those of an earlier generation are not counted any more.
#[inline]
fn end(circuit: &Circuit, word: u64, started: u64) {
    let generation = word >> State::BITS;
    if started != 0
        && let Some(overdue) = &circuit.overdue
        && circuit.generation() == generation
    {
        overdue.end(overdue.tag(started, generation), generation);
    }
}

/// `None` for what teaches nothing.
#[inline]
fn category(circuit: &Circuit, outcome: &Outcome, slow: bool) -> Option<Category> {
    match outcome {
        Outcome::Success => Some(Category::new(false, slow)),
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
    let hint = outcome.failure().and_then(|failure| failure.retry_after);
    let (settled, elapsed, slow) = circuit.change(clock.now(), |machine, now, steps| {
        let elapsed = machine.elapsed(probe, now);
        let slow = machine.is_slow(elapsed);
        let verdict = match category(circuit, outcome, slow) {
            None => Verdict::Nothing,
            Some(Category::Succeeded) => Verdict::Succeeded,
            // A probe that is slow where slowness trips the circuit says that nothing is well yet.
            Some(Category::Slow) if machine.config.slow_rate.is_none() => Verdict::Succeeded,
            Some(_) => Verdict::Failed,
        };
        (machine.settle_probe(probe, verdict, hint, now, steps), elapsed, slow)
    });
    if !settled {
        circuit.settle_stale(outcome);
    } else if let Some(elapsed) = elapsed.filter(|_| circuit.listeners.hear_of_calls()) {
        circuit.listeners.tell(&Event::Called { outcome: *outcome, elapsed, slow });
    }
}

#[cold]
#[inline(never)]
fn settle_bad(ticket: &Ticket<Circuit>, word: u64, category: Category, outcome: &Outcome, now: Instant) {
    let (circuit, generation) = (&**ticket, word >> State::BITS);
    circuit.record(ticket, generation, category, &now);
    let row = match (outcome, category) {
        // Overload is the work of a backend that is up.
        (Outcome::Failure(failure), _) if failure.overload => 0,
        (_, Category::Failed | Category::SlowFailed) => circuit.lengthen_row(generation),
        _ => {
            // A slow call that was dropped did not succeed either.
            if *outcome == Outcome::Success {
                circuit.end_row(generation);
            }
            0
        }
    };
    let (closed, heard) = (State::of_word(word) == State::Closed, circuit.listeners.hear_of_calls());
    if (closed || heard)
        && let Some(cause) = circuit.verdict(generation, row, now)
    {
        if heard {
            circuit.listeners.tell(&Event::RateExceeded(cause));
        }
        if closed {
            circuit.trip(generation, cause, outcome.failure().and_then(|failure| failure.retry_after), now);
        }
    }
}

impl fmt::Debug for CircuitBreakerPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerPermit")
            .field("name", &self.ticket.name)
            .field("generation", &((self.bits as u32) >> State::BITS))
            .field("probe", &self.is_probe())
            .finish()
    }
}
