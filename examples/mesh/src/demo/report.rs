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

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use http::StatusCode;

    use super::*;
    use crate::customers::Refusal;
    use crate::service::StartError;

    pub(in crate::demo) fn seen(answer: Answer, millis: u64, repeats: usize) -> Seen {
        Seen { answer, took: Duration::from_millis(millis), repeats }
    }

    pub(in crate::demo) fn answers() -> Vec<Seen> {
        let refusal = |status| Refusal { status: StatusCode::from_u16(status).unwrap(), reason: "why".into() };
        let confirmed = || Answer::Confirmed("c".into());
        let cancelled = |status| Answer::Cancelled("x".into(), refusal(status));
        vec![
            seen(confirmed(), 10, 0),
            seen(confirmed(), 10, 1),
            seen(confirmed(), 10, 0),
            seen(cancelled(402), 20, 0),
            seen(cancelled(503), 20, 2),
            seen(Answer::Refused(refusal(503)), 20, 4),
            seen(Answer::Pending, 900, 0),
            seen(Answer::Lost, 20, 8),
        ]
    }

    pub(crate) fn books() -> Books {
        let sagas = [("compensated".to_owned(), 2), ("completed".to_owned(), 3)].into();
        let (events, checks) = (BTreeMap::new(), Vec::new());
        Books { right: true, confirmed: 3, cancelled: 2, revenue_cents: 0, sagas, events, checks, under_way: None }
    }

    #[test]
    fn every_answer_is_counted_as_what_it_is() {
        let phase = PhaseReport::new("calm", &answers(), 5, 6, Vec::new());
        assert_eq!((phase.orders, phase.confirmed, phase.cancelled), (8, 3, 2));
        assert_eq!((phase.refused, phase.pending, phase.lost, phase.repeats), (1, 1, 1, 15));
        assert_eq!((phase.retries, phase.bulkhead_rejections), (5, 6));
        assert_eq!(phase.statuses, [(201, 3), (202, 1), (402, 1), (503, 2)].into());
        assert!((19.9..20.1).contains(&phase.p50_ms) && (899.0..901.0).contains(&phase.p99_ms), "{phase:?}");
    }

    #[test]
    fn the_report_adds_up_its_phases() {
        let flip = |from, to| Transition { at_ms: 1_500, breaker: "order -> payment", from, to, reason: "why".into() };
        let flips = vec![flip("closed", "open"), flip("open", "half-open"), flip("half-open", "open")];
        let phases = vec![
            PhaseReport::new("calm", &answers(), 5, 6, flips),
            PhaseReport::new("storm", &answers()[..2], 0, 0, vec![flip("half-open", "closed")]),
        ];
        let options =
            Options { orders: 10, seed: 7, rate: 1.0, data_dir: None, databases: None, kafka: None, progress: false };
        let report = |exit| {
            let run = Run { phases: phases.clone(), acknowledged: Default::default() };
            let exits = vec![(Name::Order, Exit::Finished), (Name::Payment, exit)];
            Report::new(&options, run, exits, 2_500, Duration::from_millis(12_340), books())
        };
        let clean = report(Exit::Finished);
        assert_eq!((clean.orders, clean.seed, clean.took_ms, clean.settled_ms), (10, 7, 12_340, 2_500));
        assert_eq!((clean.breakers_opened, clean.breakers_closed, clean.clean_stop), (2, 1, true));
        let printed = clean.to_string();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let row = printed.lines().find(|line| line.starts_with("calm")).unwrap();
        assert_eq!(words(row)[..5], ["calm", "8", "3", "2", "1"]);
        assert_eq!(words(row)[9..], ["5", "6", "3"], "retries, bulkhead, breakers");
        for line in [
            "10 orders, seed 7, 12.3 s",
            "1 orders were not decided while their customers waited",
            "1 orders got no answer at all",
            "breakers: opened 2 times, closed 1 times",
            "    1.50 s  order -> payment         closed -> open       why",
            "all orders and events settled after 2.5 s more",
            "all services stopped cleanly: yes",
        ] {
            assert!(printed.lines().any(|printed| printed == line), "{line}\n{printed}");
        }
        let failed = Exit::Failed(Arc::new(StartError::Io(std::io::Error::other("x"))));
        for exit in [failed, Exit::Killed, Exit::Panicked] {
            let report = report(exit);
            assert!(!report.clean_stop && report.to_string().contains("stopped cleanly: NO"));
        }
    }
}
