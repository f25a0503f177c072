use super::{circuit::Circuit, config::OnDrop, event::State, machine::Verdict, time_window::Category};
use crate::clock::Memo;
use crate::shard::Ticket;
use crate::sync::Ordering;
use crate::{Clock, Ignored, Outcome, Permit};
use std::{fmt, time::Instant};

/// A call's permission, and the generation it was given in.
#[must_use]
pub struct CircuitBreakerPermit {
    ticket: Ticket<Circuit>,
    word: u64,
    /// Taken only where slow calls matter.
    started: Option<Instant>,
    probe: Option<u64>,
    /// Whether it is counted among the calls that may become overdue.
    counted: bool,
}

impl CircuitBreakerPermit {
    #[inline]
    pub(super) fn new(ticket: Ticket<Circuit>, word: u64, probe: Option<u64>, clock: &impl Clock) -> Self {
        let started = ticket.rules.times_calls().then(|| clock.now());
        let mut permit = Self { ticket, word, started, probe, counted: false };
        if permit.ticket.overdue.is_some() {
            permit.start();
        }
        permit
    }

    /// Whether this call is a probe of a half-open circuit.
    pub fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    fn generation(&self) -> u64 {
        self.word >> State::BITS
    }

    /// Counts the call in flight, and trips when too many before it are overdue.
    #[cold]
    fn start(&mut self) {
        let (circuit, generation) = (&*self.ticket, self.generation());
        let (Some(overdue), Some(started)) = (&circuit.overdue, self.started) else { return };
        self.counted = true;
        let nanos = circuit.nanos(started);
        overdue.start(overdue.tag(nanos, generation), generation);
        if State::of_word(self.word) == State::Closed && overdue.look(nanos) {
            let counts = circuit.with_overdue(generation, started);
            if let Some(cause) = circuit.rules.rates(counts) {
                circuit.trip(generation, cause, None, started);
            }
        }
    }

    #[cold]
    fn end(&mut self) {
        self.counted = false;
        let (circuit, generation) = (&*self.ticket, self.generation());
        if circuit.hot.word.load(Ordering::Relaxed) >> State::BITS != generation {
            // Those of an earlier generation are not counted any more.
            return;
        }
        if let (Some(overdue), Some(started)) = (&circuit.overdue, self.started) {
            overdue.end(overdue.tag(circuit.nanos(started), generation), generation);
        }
    }

    /// `None` for what teaches nothing.
    #[inline]
    fn category(&self, outcome: &Outcome, clock: &impl Clock) -> Option<Category> {
        let rules = &self.ticket.rules;
        let slow = self.started.is_some_and(|started| rules.is_slow(clock.now().saturating_duration_since(started)));
        match outcome {
            Outcome::Success => Some(Category::new(false, slow)),
            Outcome::Failure(_) => Some(Category::new(true, slow)),
            Outcome::Ignored(Ignored::Cancelled) if slow => match rules.on_drop() {
                OnDrop::Ignore => None,
                OnDrop::Slow => Some(Category::Slow),
                OnDrop::Failure => Some(Category::SlowFailed),
            },
            Outcome::Ignored(_) => None,
        }
    }

    #[cold]
    fn settle_probe(&self, probe: u64, outcome: &Outcome, clock: &impl Clock) {
        let circuit = &*self.ticket;
        let verdict = match self.category(outcome, clock) {
            None => Verdict::Nothing,
            Some(Category::Succeeded) => Verdict::Succeeded,
            // A probe that is slow where slowness trips the circuit says that nothing is well yet.
            Some(Category::Slow) if !circuit.rules.counts_slow_calls() => Verdict::Succeeded,
            Some(_) => Verdict::Failed,
        };
        let hint = outcome.failure().and_then(|failure| failure.retry_after);
        let settled =
            circuit.change(clock.now(), |machine, now, steps| machine.settle_probe(probe, verdict, hint, now, steps));
        if !settled {
            circuit.stale.add(1);
        }
    }

    #[cold]
    fn settle_bad(&self, category: Category, outcome: &Outcome, clock: &impl Clock) {
        let (circuit, generation, now) = (&*self.ticket, self.generation(), clock.now());
        circuit.record(self.ticket.shard(), generation, category, &now);
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
        if State::of_word(self.word) == State::Closed
            && let Some(cause) = circuit.verdict(generation, row, now)
        {
            circuit.trip(generation, cause, outcome.failure().and_then(|failure| failure.retry_after), now);
        }
    }
}

impl Permit for CircuitBreakerPermit {
    #[inline]
    fn settle(mut self, outcome: &Outcome, clock: &impl Clock) {
        let clock = &Memo::new(clock);
        if let Some(probe) = self.probe.take() {
            return self.settle_probe(probe, outcome, clock);
        }
        if self.counted {
            self.end();
        }
        let circuit = &*self.ticket;
        if circuit.hot.word.load(Ordering::Acquire) != self.word {
            return circuit.stale.add(1);
        }
        if State::of_word(self.word) == State::Disabled {
            return;
        }
        match self.category(outcome, clock) {
            None => {}
            Some(Category::Succeeded) => {
                let generation = self.generation();
                circuit.end_row(generation);
                circuit.record(self.ticket.shard(), generation, Category::Succeeded, clock);
            }
            Some(category) => self.settle_bad(category, outcome, clock),
        }
    }
}

impl Drop for CircuitBreakerPermit {
    #[inline]
    fn drop(&mut self) {
        if let Some(probe) = self.probe {
            self.ticket.give_back(probe);
        }
        if self.counted {
            self.end();
        }
    }
}

impl fmt::Debug for CircuitBreakerPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerPermit")
            .field("name", &self.ticket.name)
            .field("generation", &self.generation())
            .field("probe", &self.probe)
            .finish()
    }
}
