//! The report of `mesh demo`: JSON for programs, a table for people.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::Options;
use super::books::Books;
use super::scenario::Run;
use crate::customers::{Answer, Seen};
use crate::load::Latencies;
use crate::mesh::Name;
use crate::process::Exit;

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub orders: usize,
    pub seed: u64,
    /// From the first service's start to the last one's end.
    pub took_ms: u64,
    /// From the last answer until no order, saga or event is in progress.
    pub settled_ms: u64,
    pub phases: Vec<PhaseReport>,
    /// How many times a breaker opened, and how many times one closed.
    pub breakers_opened: usize,
    pub breakers_closed: usize,
    /// Whether every service finished without an error when it was stopped.
    pub clean_stop: bool,
    pub books: Books,
}

#[derive(Clone, Debug, Serialize)]
pub struct PhaseReport {
    pub name: &'static str,
    pub orders: usize,
    pub confirmed: usize,
    /// Stored, then failed and compensated.
    pub cancelled: usize,
    /// Rejected before anything was stored.
    pub refused: usize,
    /// Not decided when the customer gave up.
    pub pending: usize,
    /// Without any answer.
    pub lost: usize,
    /// Repeated requests for the same order, after a 202 or no answer.
    pub repeats: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Answers by HTTP status.
    pub statuses: BTreeMap<u16, usize>,
    /// Over all client stacks.
    pub retries: u64,
    pub bulkhead_rejections: u64,
    pub breaker_transitions: Vec<Transition>,
}

/// A breaker's change of state.
#[derive(Clone, Debug, Serialize)]
pub struct Transition {
    /// Time since the first order.
    pub at_ms: u64,
    /// Caller and callee, as `order -> payment`.
    pub breaker: &'static str,
    pub from: &'static str,
    pub to: &'static str,
    pub reason: String,
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl PhaseReport {
    pub(super) fn new(
        name: &'static str,
        seen: &[Seen],
        retries: u64,
        bulkhead_rejections: u64,
        breaker_transitions: Vec<Transition>,
    ) -> Self {
        let mut phase = Self {
            name,
            orders: seen.len(),
            confirmed: 0,
            cancelled: 0,
            refused: 0,
            pending: 0,
            lost: 0,
            repeats: seen.iter().map(|seen| seen.repeats).sum(),
            p50_ms: 0.0,
            p99_ms: 0.0,
            statuses: BTreeMap::new(),
            retries,
            bulkhead_rejections,
            breaker_transitions,
        };
        let mut latencies = Latencies::default();
        for seen in seen {
            latencies.record(seen.took);
            let status = match &seen.answer {
                Answer::Confirmed(_) => {
                    phase.confirmed += 1;
                    201
                }
                Answer::Cancelled(_, why) => {
                    phase.cancelled += 1;
                    why.status.as_u16()
                }
                Answer::Refused(why) => {
                    phase.refused += 1;
                    why.status.as_u16()
                }
                Answer::Pending => {
                    phase.pending += 1;
                    202
                }
                Answer::Lost => {
                    phase.lost += 1;
                    continue;
                }
            };
            *phase.statuses.entry(status).or_default() += 1;
        }
        (phase.p50_ms, phase.p99_ms) = (latencies.quantile_ms(0.5), latencies.quantile_ms(0.99));
        phase
    }
}

impl Report {
    pub(super) fn new(
        options: &Options,
        run: Run,
        exits: Vec<(Name, Exit)>,
        settled_ms: u64,
        took: Duration,
        books: Books,
    ) -> Self {
        let flips = || run.phases.iter().flat_map(|phase| &phase.breaker_transitions);
        Self {
            orders: options.orders,
            seed: options.seed,
            took_ms: millis(took),
            settled_ms,
            breakers_opened: flips().filter(|flip| flip.to == "open").count(),
            breakers_closed: flips().filter(|flip| flip.to == "closed").count(),
            clean_stop: exits.iter().all(|(_, exit)| matches!(exit, Exit::Finished)),
            phases: run.phases,
            books,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} orders, seed {}, {:.1} s\n", self.orders, self.seed, self.took_ms as f64 / 1000.0)?;
        writeln!(
            f,
            "{:<26}{:>7}{:>11}{:>11}{:>9}{:>10}{:>10}{:>9}{:>10}{:>10}",
            "phase", "orders", "confirmed", "cancelled", "refused", "p50", "p99", "retries", "bulkhead", "breakers"
        )?;
        for phase in &self.phases {
            writeln!(
                f,
                "{:<26}{:>7}{:>11}{:>11}{:>9}{:>7.1} ms{:>7.1} ms{:>9}{:>10}{:>10}",
                phase.name,
                phase.orders,
                phase.confirmed,
                phase.cancelled,
                phase.refused,
                phase.p50_ms,
                phase.p99_ms,
                phase.retries,
                phase.bulkhead_rejections,
                phase.breaker_transitions.len(),
            )?;
        }
        let pending: usize = self.phases.iter().map(|phase| phase.pending).sum();
        if pending > 0 {
            writeln!(f, "{pending} orders were not decided while their customers waited")?;
        }
        let lost: usize = self.phases.iter().map(|phase| phase.lost).sum();
        if lost > 0 {
            writeln!(f, "{lost} orders got no answer at all")?;
        }
        writeln!(f, "\nbreakers: opened {} times, closed {} times", self.breakers_opened, self.breakers_closed)?;
        for phase in &self.phases {
            for flip in &phase.breaker_transitions {
                let at = flip.at_ms as f64 / 1000.0;
                let Transition { breaker, from, to, reason, .. } = flip;
                writeln!(f, "  {at:>6.2} s  {breaker:<22}{from:>9} -> {to:<10} {reason}")?;
            }
        }
        writeln!(f, "\nall orders and events settled after {:.1} s more", self.settled_ms as f64 / 1000.0)?;
        writeln!(f, "all services stopped cleanly: {}\n", if self.clean_stop { "yes" } else { "NO" })?;
        write!(f, "{}", self.books)
    }
}
