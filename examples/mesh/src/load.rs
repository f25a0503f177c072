//! `mesh load`: places orders at a fixed rate, then audits the databases.
//!
//! The load is *open*: every order has a due time and is sent then, whether or not earlier orders
//! have been answered, because real customers do not wait for each other. Its latency counts from
//! the *due* time. A generator that waits for each answer sends nothing while the server hangs, so
//! it measures the hang once although every customer in that time would have felt it. Gil Tene
//! calls this *coordinated omission* ("How NOT to Measure Latency"; wrk2 and HdrHistogram's
//! documentation explain it). An order that was sent late, because this process was busy, has that
//! delay in its latency too; [`Report::lag`] reports it separately.
//!
//! At most [`Options::in_flight`] orders are in flight. An order that is due beyond that is counted
//! and not sent. While [`Report::unsent`] is not zero, the latencies are too low.
//!
//! Memory does not grow with the duration: latencies are in histograms, a fixed number of answers
//! is sampled uniformly for the audit, and accepted orders are followed up to a fixed number; the
//! rest is counted. The audit at the end, however, reads the whole databases.
//!
//! `schedule` computes due times, `drive` sends, `tally` counts, `live` and [`report`] print,
//! `picture` draws, `target` starts the mesh. [`search`](search()) finds the highest sustainable
//! rate.

mod drive;
mod latency;
mod live;
mod outcome;
mod picture;
pub mod report;
mod schedule;
mod search;
mod tally;
mod target;

use std::path::PathBuf;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};

pub use latency::{Latencies, Quantiles};
pub use outcome::Outcome;
pub use picture::histogram;
pub use report::Report;
pub use schedule::Arrivals;
pub use search::{Found, Step, search};
pub use target::{Own, Target};

use crate::clock::now;
use crate::customers::{Answer, Customers, Repeat};
use drive::{Drive, Seen};
use live::Live;
use report::{After, Run};
use schedule::Schedule;
use tally::Tally;
use target::Running;

#[derive(Clone, Debug)]
pub struct Options {
    /// Orders per second.
    pub rate: f64,
    /// How long to send orders.
    pub duration: Duration,
    /// Maximum number of orders, even if time is left.
    pub orders: Option<u64>,
    /// How orders are distributed over time.
    pub arrivals: Arrivals,
    /// Maximum number of orders in flight.
    pub in_flight: usize,
    /// How long a customer waits for an answer.
    pub timeout: Duration,
    /// Random seed. The same seed gives the same orders.
    pub seed: u64,
    /// Prefix of the idempotency keys; new for each run by default. The same prefix and seed give
    /// the same orders.
    pub keys: Option<String>,
    pub target: Target,
    /// How long orders and events may take to end after the load.
    pub settle: Duration,
    /// Directory of the SQLite files. By default a temporary directory, removed at the end.
    pub data_dir: Option<PathBuf>,
    /// Redraw a table; otherwise print plain lines.
    pub terminal: bool,
}

/// Starts the target, loads it, waits until everything has ended, and audits.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let running = Running::start(&options).await?;
    let mut customers = running.customers(&options);
    let mut live = Live::new(options.terminal)?;
    let run = load(&mut customers, &options, options.rate, &mut live).await;
    live.say("waiting for orders and events to end");
    let after = after(&run, &running, &options).await?;
    live.say("stopping");
    let (stopped, books) = running.finish(&run.tally.sampled()).await?;
    live.finish();
    Ok(Report::new(&options, &run, after, stopped, books))
}

/// Sends orders at one rate, until every order has an answer or timed out.
async fn load(customers: &mut Customers, options: &Options, rate: f64, live: &mut Live) -> Run {
    let schedule = Schedule::new(rate, options.arrivals, options.duration, options.orders, options.seed);
    let mut tally = Tally::new(options.seed);
    let mut driving = Drive::new(schedule, options.in_flight, now());
    let timeout = options.timeout;
    let place = move || {
        let order = customers.order();
        async move {
            let answer =
                tokio::time::timeout(timeout, order.ask()).await.ok().map(|answer| answer.unwrap_or(Answer::Lost));
            Seen { order, answer }
        }
    };
    driving.run(place, &mut tally, |tally, at, in_flight| live.show(tally, rate, at, in_flight)).await;
    Run { rate, took: driving.elapsed(), tally }
}

/// Maximum number of concurrent follow-up requests about accepted orders.
const ASKING: usize = 16;

/// Waits until accepted orders have ended and, in a mesh started here, until every event was
/// handled.
async fn after(run: &Run, running: &Running, options: &Options) -> anyhow::Result<After> {
    let start = now();
    let asking = stream::iter(run.tally.accepted().to_vec()).map(|order| order.place(Repeat::UntilDecided));
    let asking = asking.buffer_unordered(ASKING).fold(After::default(), |mut after, seen| async move {
        match seen.answer {
            Answer::Confirmed(_) => after.confirmed += 1,
            Answer::Cancelled(..) => after.cancelled += 1,
            Answer::Pending | Answer::Refused(_) | Answer::Lost => after.undecided += 1,
        }
        after
    });
    // If the time is up, all accepted orders count as undecided.
    let late = After { undecided: run.tally.accepted().len() as u64, ..After::default() };
    let after = tokio::time::timeout(options.settle, asking).await.unwrap_or(late);
    let waiting = running.settled(options.settle.saturating_sub(start.elapsed())).await?;
    Ok(After { settled: start.elapsed(), waiting, forgotten: run.tally.forgotten, ..after })
}
