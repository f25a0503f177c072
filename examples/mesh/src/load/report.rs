//! The report of a load: JSON for programs, a table for people.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::Options;
use super::latency::{Bucket, Quantiles};
use super::outcome::Outcome;
use super::tally::Tally;
use crate::demo::books::Books;
use crate::demo::report::millis;

/// Histogram buckets per power of ten.
const PER_DECADE: u32 = 20;

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Description of the target.
    pub target: String,
    pub seed: u64,
    /// Scheduled orders per second.
    pub rate: f64,
    /// Time from the first order to the last answer.
    pub took_ms: u64,
    pub sent: u64,
    /// Orders that were due and not sent, because the maximum was in flight. While it is not zero,
    /// the latencies are too low.
    pub unsent: u64,
    /// Confirmed, or cancelled for lack of money or stock.
    pub completed: u64,
    /// `completed` divided by [`took_ms`](Self::took_ms).
    pub completed_per_second: f64,
    /// Latency from the due time, over orders that were decided, accepted or timed out. Rejected
    /// and failed orders do not count, because they are answered fast.
    pub latency: Quantiles,
    pub histogram: Vec<Bucket>,
    pub outcomes: Vec<OutcomeReport>,
    /// Delay from the due time until sending, caused by this process. It is part of the latencies.
    pub lag: Quantiles,
    pub after: After,
    /// Whether every service that was started for the load stopped without an error.
    pub clean_stop: bool,
    /// The audit, if the mesh was started for the load.
    pub books: Option<Books>,
}

#[derive(Clone, Debug, Serialize)]
pub struct OutcomeReport {
    pub outcome: Outcome,
    pub latency: Quantiles,
    /// Reasons and their counts.
    pub reasons: BTreeMap<String, u64>,
}

/// The outcomes of accepted orders after the load.
#[derive(Clone, Debug, Default, Serialize)]
pub struct After {
    pub confirmed: u64,
    pub cancelled: u64,
    /// Not decided in time.
    pub undecided: u64,
    /// Accepted orders beyond the number that is followed.
    pub forgotten: u64,
    /// Time from the last answer until every order had ended and, in a mesh started here, every
    /// event was handled.
    #[serde(rename = "settled_ms", serialize_with = "in_millis")]
    pub settled: Duration,
    /// What was still in progress when the time was up.
    pub waiting: Option<String>,
}

fn in_millis<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(millis(*duration))
}

/// A finished load.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) rate: f64,
    pub(super) took: Duration,
    pub(super) tally: Tally,
}

impl Report {
    pub(super) fn new(options: &Options, run: &Run, after: After, clean_stop: bool, books: Option<Books>) -> Self {
        let Run { rate, took, tally } = run;
        let served = tally.served();
        let outcome = |outcome: Outcome| OutcomeReport {
            outcome,
            latency: tally.latencies(outcome).quantiles(),
            reasons: {
                let mine = tally.reasons.iter().filter(|((of, _), _)| *of == outcome);
                mine.map(|((_, reason), count)| (reason.clone(), *count)).collect()
            },
        };
        Self {
            target: options.target.describe(),
            seed: options.seed,
            rate: *rate,
            took_ms: millis(*took),
            sent: tally.sent,
            unsent: tally.unsent,
            completed: tally.completed(),
            completed_per_second: run.completed_per_second(),
            latency: served.quantiles(),
            histogram: served.buckets(PER_DECADE),
            outcomes: Outcome::ALL.map(outcome).into(),
            lag: tally.lag.quantiles(),
            after,
            clean_stop,
            books,
        }
    }

    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes.iter().filter(|row| row.outcome == outcome).map(|row| row.latency.count).sum()
    }

    /// Whether the audit found no violation, or there was none.
    pub fn is_right(&self) -> bool {
        self.books.as_ref().is_none_or(|books| books.right)
    }
}

impl Run {
    pub(super) fn completed_per_second(&self) -> f64 {
        self.tally.completed() as f64 / self.took.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = self.took_ms as f64 / 1000.0;
        writeln!(f, "{} orders/s for {took:.1} s; {}; seed {}\n", self.rate, self.target, self.seed)?;
        let head = ["p50", "p90", "p99", "p99.9", "max"];
        write!(f, "{:<14}{:>9}{:>9}", "", "orders", "share")?;
        head.iter().try_for_each(|name| write!(f, "{name:>12}"))?;
        writeln!(f)?;
        let share = |count: u64| 100.0 * count as f64 / self.sent.max(1) as f64;
        for OutcomeReport { outcome, latency, reasons } in &self.outcomes {
            row(f, outcome.as_str(), share(latency.count), latency)?;
            for (reason, count) in reasons {
                writeln!(f, "  {count} x {reason}")?;
            }
        }
        row(f, "served", share(self.latency.count), &self.latency)?;
        writeln!(f)?;
        writeln!(
            f,
            "completed     {} of {} sent, {:.1} orders/s",
            self.completed, self.sent, self.completed_per_second
        )?;
        if self.unsent > 0 {
            writeln!(f, "NOT SENT      {}: the maximum was in flight. The latencies above are too low", self.unsent)?;
        }
        writeln!(
            f,
            "sent late by  {:.1} ms (p50), {:.1} ms (p99): part of the latencies",
            self.lag.p50_ms, self.lag.p99_ms
        )?;
        let After { confirmed, cancelled, undecided, forgotten, settled, waiting } = &self.after;
        let settled = settled.as_secs_f64();
        if self.count(Outcome::Accepted) > 0 {
            writeln!(
                f,
                "accepted      {confirmed} confirmed later, {cancelled} cancelled, {undecided} undecided, {forgotten} not followed"
            )?;
        }
        match (waiting, &self.books) {
            (Some(what), _) => writeln!(f, "NOT SETTLED   after {settled:.1} s there were still {what}")?,
            (None, Some(_)) => writeln!(f, "settled       all orders and events, after {settled:.1} s more")?,
            (None, None) => {}
        }
        if !self.clean_stop {
            writeln!(f, "NOT STOPPED   cleanly: a service had to be killed or failed")?;
        }
        match &self.books {
            Some(books) => write!(f, "\n{books}"),
            None => writeln!(f, "\nno audit: this mesh was not started here; see `mesh audit`"),
        }
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, share: f64, latency: &Quantiles) -> fmt::Result {
    let Quantiles { count, p50_ms, p90_ms, p99_ms, p999_ms, max_ms, .. } = *latency;
    write!(f, "{name:<14}{count:>9}{share:>7.2} %")?;
    if count > 0 {
        [p50_ms, p90_ms, p99_ms, p999_ms, max_ms].iter().try_for_each(|ms| write!(f, "{ms:>9.1} ms"))?;
    }
    writeln!(f)
}

#[cfg(test)]
pub(super) mod tests {
    use http::StatusCode;

    use super::*;
    use crate::customers::{Answer, Customers, Refusal};
    use crate::load::{Arrivals, Target, drive::Seen};

    pub(in crate::load) fn options() -> Options {
        Options {
            rate: 1.0,
            duration: Duration::from_secs(1),
            orders: None,
            arrivals: Arrivals::Even,
            in_flight: 1,
            timeout: Duration::from_secs(1),
            seed: 7,
            keys: None,
            target: Target::Url("http://a:1".to_owned()),
            settle: Duration::from_secs(1),
            data_dir: None,
            terminal: false,
        }
    }

    /// A run of 2 s at 50 orders per second, with the outcomes given by their answers.
    pub(in crate::load) fn run(answers: impl IntoIterator<Item = (Option<Answer>, u64)>) -> Run {
        let mut tally = Tally::new(1);
        let order = Customers::new("http://gateway", 1, crate::token::Tokens::ephemeral()).order();
        for (answer, millis) in answers {
            tally.sent(Duration::from_millis(4));
            tally.seen(Seen { order: order.clone(), answer }, Duration::from_millis(millis));
        }
        Run { rate: 50.0, took: Duration::from_secs(2), tally }
    }

    pub(in crate::load) fn refused(status: u16) -> Option<Answer> {
        Some(Answer::Refused(Refusal { status: StatusCode::from_u16(status).unwrap(), reason: "busy".into() }))
    }

    pub(in crate::load) fn confirmed() -> Option<Answer> {
        Some(Answer::Confirmed("id".into()))
    }

    #[test]
    fn every_number_is_reported_as_what_it_is() {
        let answers = [(confirmed(), 100), (confirmed(), 100), (confirmed(), 100), (Some(Answer::Pending), 300)];
        let mut run = run(answers.into_iter().chain([(refused(503), 1), (refused(503), 1), (refused(500), 2)]));
        run.tally.unsent = 9;
        let settled = Duration::from_millis(1_250);
        let after = After { confirmed: 11, cancelled: 12, undecided: 13, forgotten: 14, settled, waiting: None };
        let report = Report::new(&options(), &run, after, false, None);
        assert_eq!((report.target.as_str(), report.seed, report.rate, report.took_ms), ("http://a:1", 7, 50.0, 2_000));
        assert_eq!((report.sent, report.unsent, report.completed), (7, 9, 3));
        assert_eq!(report.completed_per_second, 1.5);
        let counts = Outcome::ALL.map(|outcome| report.count(outcome));
        assert_eq!(counts, [3, 0, 1, 2, 1, 0]);
        assert_eq!((report.latency.count, report.latency.p50_ms.round()), (4, 100.0), "of those that were served");
        assert_eq!((report.latency.max_ms.round(), report.lag.max_ms.round()), (300.0, 4.0));
        assert_eq!(report.histogram.iter().map(|bucket| bucket.count).sum::<u64>(), 4);
        assert!(!report.clean_stop && report.is_right(), "there is no audit to fail");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["after"]["settled_ms"], &json["after"]["undecided"]), (&1_250.into(), &13.into()));
        assert_eq!(json["outcomes"][3]["reasons"]["503 busy"], 2);

        let printed = report.to_string();
        for line in [
            "50 orders/s for 2.0 s; http://a:1; seed 7",
            "completed     3 of 7 sent, 1.5 orders/s",
            "NOT SENT      9: the maximum was in flight. The latencies above are too low",
            "sent late by  4.0 ms (p50), 4.0 ms (p99): part of the latencies",
            "accepted      11 confirmed later, 12 cancelled, 13 undecided, 14 not followed",
            "NOT STOPPED   cleanly: a service had to be killed or failed",
            "no audit: this mesh was not started here; see `mesh audit`",
            "  2 x 503 busy",
        ] {
            assert!(printed.lines().any(|printed| printed == line), "{line}\n{printed}");
        }
        let words = |name: &str| {
            let line = printed.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(words("confirmed")[..3], ["confirmed", "3", "42.86"]);
        assert_eq!(words("rejected")[..3], ["rejected", "2", "28.57"]);
        assert_eq!(words("served")[..3], ["served", "4", "57.14"]);
        assert_eq!(words("served")[4..].join(" "), "100.0 ms 300.0 ms 300.0 ms 300.0 ms 300.0 ms");
    }

    #[test]
    fn wrong_books_make_a_report_wrong() {
        let (sagas, events, checks) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let books = |right| Books {
            under_way: None,
            right,
            confirmed: 0,
            cancelled: 0,
            revenue_cents: 0,
            sagas: sagas.clone(),
            events: events.clone(),
            checks: checks.clone(),
        };
        let report = |right| Report::new(&options(), &run([]), After::default(), true, Some(books(right)));
        assert!(report(true).is_right() && !report(false).is_right());
        assert_eq!(report(true).completed_per_second, 0.0);
        assert!(report(true).to_string().contains("settled       all orders and events, after 0.0 s more"));
        let waiting = After { waiting: Some("2 sagas running".into()), ..After::default() };
        let printed = Report::new(&options(), &run([]), waiting, true, Some(books(true))).to_string();
        assert!(printed.contains("NOT SETTLED   after 0.0 s there were still 2 sagas running"), "{printed}");
    }
}
