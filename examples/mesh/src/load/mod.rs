//! `mesh load`: orders at a given rate, whatever comes of them, and then the books.
//!
//! The load is *open*: every order has a time at which it is due, and is sent then, whether or not earlier ones have been
//! answered, because customers do not wait for each other. And its latency counts from the time at which it was *due*. A
//! generator that waits for an answer before it sends the next request sends none while the server hangs, so it measures the
//! hang once, where a thousand customers would have felt it: Gil Tene has called this *coordinated omission* ("How NOT to
//! Measure Latency"; wrk2 and HdrHistogram's documentation explain it). Here an order that was sent late, because this
//! process was busy, has the delay in its latency too, and [`Report::lag`] shows how much of it that was.
//!
//! Something has to give when answers stop coming: no more than [`Options::in_flight`] orders are out at once. What is due
//! then is not sent, and counted: as long as [`Report::unsent`] is not zero, the latencies are too good.
//!
//! Memory does not grow with the duration: latencies are in histograms, of the answers a fixed number is kept for the audit
//! (a fair sample), and an order that is accepted but not decided is asked about again only while there is room to remember
//! it. What has no room is counted. The audit at the end reads the whole databases, though.
//!
//! `schedule` says when, `drive` sends, `tally` counts, `live` and [`report`] show, `picture` draws, `target` is the mesh.
//! To find out how many orders a second a mesh bears, [`search`](search()) raises the rate until something gives.

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
use crate::customers::{Answer, Customers, Temper};
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
    /// How long to send.
    pub duration: Duration,
    /// No more orders than that, even if there is time left.
    pub orders: Option<u64>,
    /// How orders are spread over time.
    pub arrivals: Arrivals,
    /// How many orders may be out at once.
    pub in_flight: usize,
    /// How long a customer waits for an answer.
    pub timeout: Duration,
    /// The same seed gives the same orders.
    pub seed: u64,
    /// What idempotency keys begin with; new ones by default. The same keys with the same seed are the same orders.
    pub keys: Option<String>,
    pub target: Target,
    /// How long orders and events may take to end after the load.
    pub settle: Duration,
    /// Where SQLite's files go; a temporary directory by default, gone at the end.
    pub data_dir: Option<PathBuf>,
    /// Draw a table that changes; plain lines if not.
    pub terminal: bool,
}

/// Starts what is to be started, loads it, waits until everything has ended, and audits.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let running = Running::start(&options).await?;
    let mut customers = running.customers(&options);
    let mut live = Live::new(options.terminal)?;
    let run = load(&mut customers, &options, options.rate, &mut live).await;
    live.say("waiting until everything has ended");
    let after = after(&run, &running, &options).await?;
    live.say("stopping");
    let (stopped, books) = running.finish(&run.tally.told()).await?;
    live.finish();
    Ok(Report::new(&options, &run, after, stopped, books))
}

/// Sends orders at one rate, until all of them have an answer or none in time.
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

/// How many customers ask about their accepted orders at once.
const ASKING: usize = 16;

/// Waits until accepted orders have ended and, in a mesh of our own, until every event has been handled.
async fn after(run: &Run, running: &Running, options: &Options) -> anyhow::Result<After> {
    let start = now();
    let asking = stream::iter(run.tally.accepted().to_vec()).map(|order| order.place(Temper::Stubborn));
    let asking = asking.buffer_unordered(ASKING).fold(After::default(), |mut after, seen| async move {
        match seen.answer {
            Answer::Confirmed(_) => after.confirmed += 1,
            Answer::Cancelled(..) => after.cancelled += 1,
            Answer::Pending | Answer::Refused(_) | Answer::Lost => after.undecided += 1,
        }
        after
    });
    // Whoever did not get an answer in time is as undecided as before.
    let late = After { undecided: run.tally.accepted().len() as u64, ..After::default() };
    let after = tokio::time::timeout(options.settle, asking).await.unwrap_or(late);
    let waiting = running.settled(options.settle.saturating_sub(start.elapsed())).await?;
    Ok(After { settled: start.elapsed(), waiting, forgotten: run.tally.forgotten, ..after })
}
