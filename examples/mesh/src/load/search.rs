//! `mesh load --max-p99`: the highest rate that a mesh sustains.
//!
//! The question needs a latency bound: an overloaded mesh first answers later and later, then
//! rejects. The search raises the rate step by step on one warmed-up mesh until a step fails, then
//! bisects between the best and the worst rate. A rate *holds* if every due order was sent, none
//! was rejected, failed or timed out, the 99th percentile stayed below the bound, and the resulting
//! events were handled soon after. Otherwise a growing backlog would count as throughput.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::latency::Quantiles;
use super::live::Live;
use super::outcome::Outcome;
use super::report::{After, Report, Run};
use super::target::Running;
use super::{Options, after, load};
use crate::demo::books::Acknowledged;
use crate::demo::report::millis;

/// Factor between two steps while they hold.
const RAISE: f64 = 1.5;
/// The search ends when the bounds are closer than this factor.
const CLOSE: f64 = 1.08;
/// Duration of the warm-up, in which connections are opened and statements prepared.
const WARM_UP: Duration = Duration::from_secs(2);
/// Lowest rate that is tried, in orders per second.
const FEWEST: f64 = 1.0;
/// Events may take this share of a step's duration to be handled, and at least `SOON`, because the
/// check itself takes time.
const DEBT: f64 = 0.1;
const SOON: Duration = Duration::from_secs(2);
/// Maximum number of steps, more than any sensible search takes.
const STEPS: usize = 30;

/// The result of a search.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// The highest rate that held. `None` if no rate did.
    pub rate: Option<f64>,
    pub max_p99_ms: f64,
    pub steps: Vec<Step>,
    /// Report of the best step, with the audit of all steps.
    pub report: Report,
}

/// One rate that was tried.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    pub rate: f64,
    pub completed_per_second: f64,
    pub latency: Quantiles,
    pub settled_ms: u64,
    /// Why the rate did not hold, or `None` if it did.
    pub broken: Option<String>,
}

/// Starts the target, searches for its limit, and audits.
pub async fn search(options: Options, max_p99: Duration) -> anyhow::Result<Found> {
    let running = Running::start(&options).await?;
    let mut customers = running.customers(&options);
    let mut live = Live::new(options.terminal)?;
    let mut bounds = Bounds::default();
    let (mut steps, mut acknowledged, mut best, mut broken) = (Vec::new(), Acknowledged::default(), None, None);
    live.say("warming up");
    let warm_up = Options { duration: options.duration.min(WARM_UP), ..options.clone() };
    load(&mut customers, &warm_up, options.rate / 2.0, &mut live).await;
    let mut next = Some(options.rate);
    while let Some(rate) = next.filter(|_| steps.len() < STEPS) {
        let run = load(&mut customers, &options, rate, &mut live).await;
        live.say("waiting for orders and events to end");
        let after = after(&run, &running, &options).await?;
        let sampled = run.tally.sampled();
        acknowledged.confirmed.extend(sampled.confirmed);
        acknowledged.cancelled.extend(sampled.cancelled);
        let step = Step::new(&run, &after, options.duration, max_p99);
        live.note(&step.to_string());
        next = bounds.after(rate, step.broken.is_none());
        *(if step.broken.is_none() { &mut best } else { &mut broken }) = Some((run, after));
        steps.push(step);
    }
    live.finish();
    let (stopped, books) = running.finish(&acknowledged).await?;
    let rate = best.as_ref().map(|(run, _)| run.rate);
    let (run, after) = best.or(broken).context("nothing was tried")?;
    let report = Report::new(&options, &run, after, stopped, books);
    Ok(Found { rate, max_p99_ms: max_p99.as_secs_f64() * 1000.0, steps, report })
}

impl Step {
    fn new(run: &Run, after: &After, duration: Duration, max_p99: Duration) -> Self {
        let latency = run.tally.served().quantiles();
        let lost = [Outcome::Rejected, Outcome::Failed, Outcome::TimedOut].map(|outcome| run.tally.count(outcome));
        let broken = if run.tally.unsent > 0 {
            Some(format!("{} not sent", run.tally.unsent))
        } else if lost.iter().sum::<u64>() > 0 {
            Some(format!("{} rejected, {} failed, {} timed out", lost[0], lost[1], lost[2]))
        } else if latency.p99_ms > max_p99.as_secs_f64() * 1000.0 {
            Some("too slow".to_owned())
        } else if after.waiting.is_some() || after.settled > duration.mul_f64(DEBT).max(SOON) {
            Some("events fell behind".to_owned())
        } else {
            None
        };
        let (rate, settled_ms) = (run.rate, millis(after.settled));
        Self { rate, completed_per_second: run.completed_per_second(), latency, settled_ms, broken }
    }
}

/// The highest rate that held, and the lowest that did not.
#[derive(Debug, Default)]
struct Bounds {
    held: Option<f64>,
    broken: Option<f64>,
}

impl Bounds {
    /// Records a step and returns the next rate to try.
    fn after(&mut self, rate: f64, held: bool) -> Option<f64> {
        if held {
            self.held = Some(self.held.map_or(rate, |before| before.max(rate)));
        } else {
            self.broken = Some(self.broken.map_or(rate, |before| before.min(rate)));
        }
        // Whole numbers are easier to read.
        let round = |rate: f64| if rate >= 10.0 { rate.round() } else { rate };
        match (self.held, self.broken) {
            (Some(held), None) => Some(round(held * RAISE)),
            (None, Some(broken)) => Some(round(broken / RAISE / RAISE)).filter(|rate| *rate >= FEWEST),
            // The geometric mean, because the steps are factors.
            (Some(held), Some(broken)) => (broken / held > CLOSE).then(|| round((held * broken).sqrt())),
            (None, None) => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, completed_per_second, latency, settled_ms, broken } = self;
        let Quantiles { p50_ms, p99_ms, max_ms, .. } = latency;
        let settled = *settled_ms as f64 / 1000.0;
        write!(
            f,
            "{rate:>9.1}{completed_per_second:>13.1}{p50_ms:>9.1} ms{p99_ms:>9.1} ms{max_ms:>9.1} ms{settled:>9.1} s   "
        )?;
        f.write_str(broken.as_deref().unwrap_or("holds"))
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>9}{:>13}{:>12}{:>12}{:>12}{:>11}", "orders/s", "completed/s", "p50", "p99", "max", "settled")?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))?;
        match self.rate {
            Some(rate) => {
                writeln!(f, "\n{rate:.0} orders/s hold, with a p99 below {} ms. Its report:\n", self.max_p99_ms)?
            }
            None => writeln!(f, "\nnot even the lowest rate holds. The report of the last step:\n")?,
        }
        write!(f, "{}", self.report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rates that the search tries on a mesh whose limit is `bears`.
    fn tried(first: f64, bears: f64) -> Vec<f64> {
        let (mut bounds, mut next, mut tried) = (Bounds::default(), Some(first), Vec::new());
        while let Some(rate) = next {
            tried.push(rate);
            next = bounds.after(rate, rate <= bears);
        }
        tried
    }

    #[test]
    fn the_limit_is_found_from_below_and_from_above() {
        for (first, bears) in [(50.0, 200.0), (1000.0, 200.0), (200.0, 200.0), (10.0, 3777.0)] {
            let tried = tried(first, bears);
            let best = tried.iter().copied().filter(|rate| *rate <= bears).fold(0.0, f64::max);
            assert!(best > bears / 1.12, "{first} {bears}: {tried:?}");
            assert!(tried.len() < STEPS, "{tried:?}");
        }
    }

    #[test]
    fn a_mesh_that_bears_nothing_ends_the_search() {
        assert!(tried(100.0, 0.0).len() < STEPS);
    }

    #[test]
    fn a_rate_holds_or_is_broken_for_one_reason() {
        use crate::customers::Answer;
        use crate::load::report::tests::{confirmed, refused, run};

        let (second, limit) = (Duration::from_secs(1), Duration::from_millis(250));
        let step = |run: &Run, after: &After| Step::new(run, after, 30 * second, limit);
        let broken = |run: &Run, after: &After| step(run, after).broken;
        let fine = || run([(confirmed(), 249), (confirmed(), 100)]);
        assert_eq!(broken(&fine(), &After::default()), None);
        let slow = run([(confirmed(), 252)]);
        assert_eq!(broken(&slow, &After::default()).as_deref(), Some("too slow"));
        let mut unsent = fine();
        unsent.tally.unsent = 3;
        assert_eq!(broken(&unsent, &After::default()).as_deref(), Some("3 not sent"));
        let lost = run([(refused(503), 1), (refused(500), 1), (refused(500), 1), (Some(Answer::Lost), 1), (None, 1)]);
        assert_eq!(broken(&lost, &After::default()).as_deref(), Some("1 rejected, 3 failed, 1 timed out"));
        let behind = |settled| After { settled, ..After::default() };
        assert_eq!(broken(&fine(), &behind(3 * second)), None, "a tenth of the step");
        let late = Some("events fell behind".to_owned());
        assert_eq!(broken(&fine(), &behind(3 * second + Duration::from_millis(1))), late);
        let waiting = After { waiting: Some("1 sagas running".into()), ..After::default() };
        assert_eq!(broken(&fine(), &waiting), late);
        let short = |settled| Step::new(&fine(), &behind(settled), second, limit).broken;
        assert_eq!((short(2 * second), short(3 * second)), (None, late), "at least two seconds");
        let Step { rate, completed_per_second, latency, settled_ms, .. } = step(&fine(), &behind(second));
        assert_eq!((rate, completed_per_second, latency.count, settled_ms), (50.0, 1.0, 2, 1_000));
    }
}
