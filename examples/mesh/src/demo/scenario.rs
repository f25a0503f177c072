//! The faults of the demo, their times, and the orders placed meanwhile.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Options;
use super::books::Acknowledged;
use super::report::{PhaseReport, Transition, millis};
use crate::clock::now;
use crate::customers::{Answer, Customers, Repeat, Seen};
use crate::faults::Plan;
use crate::mesh::{Mesh, MeshError, Name};
use crate::stack::Dependency;

/// Minimum duration of a phase, however few orders there are: a breaker needs time to close again.
const SHORTEST_PHASE: Duration = Duration::from_millis(1500);

/// A fault that starts, a crash or a restart.
enum Event {
    Fault(Name, Plan),
    Crash(Name),
    Restart(Name),
}

struct Phase {
    name: &'static str,
    /// Events, each with the share of the phase's orders after which it happens. All earlier faults
    /// are cleared when a phase begins.
    events: Vec<(f64, Event)>,
}

fn phases() -> Vec<Phase> {
    let errors = |error_rate| Event::Fault(Name::Payment, Plan { error_rate, ..Plan::default() });
    let slow = Event::Fault(Name::Payment, Plan { latency_ms: 300, ..Plan::default() });
    let hang = Event::Fault(Name::Inventory, Plan { hang_rate: 0.8, ..Plan::default() });
    let phase = |name, events| Phase { name, events };
    vec![
        phase("calm", vec![]),
        // First a rate that retries can hide, then one that needs a breaker.
        phase("payment errors", vec![(0.0, errors(0.3)), (0.5, errors(0.9))]),
        phase("recovery", vec![]),
        phase("payment slow", vec![(0.0, slow)]),
        phase("inventory hangs", vec![(0.0, hang)]),
        phase(
            "inventory crash, restart",
            vec![(0.4, Event::Crash(Name::Inventory)), (0.7, Event::Restart(Name::Inventory))],
        ),
        phase("order crash, restart", vec![(0.4, Event::Crash(Name::Order)), (0.6, Event::Restart(Name::Order))]),
        phase("calm again", vec![]),
    ]
}

impl Acknowledged {
    /// Records the final answers of these orders.
    pub(crate) fn record(&mut self, seen: &[Seen]) {
        for seen in seen {
            match &seen.answer {
                Answer::Confirmed(id) => self.confirmed.push(id.clone()),
                Answer::Cancelled(id, _) => self.cancelled.push(id.clone()),
                Answer::Pending | Answer::Refused(_) | Answer::Lost => {}
            }
        }
    }
}

/// The results of the scenario.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) phases: Vec<PhaseReport>,
    /// Orders for which customers got a final answer.
    pub(super) acknowledged: Acknowledged,
}

pub(super) async fn run(mesh: &mut Mesh, options: &Options, bar: &ProgressBar) -> Result<Run, MeshError> {
    let began = now();
    let transitions = watch_breakers(mesh, began);
    let mut customers = Customers::new(&mesh.url(Name::Gateway), options.seed, mesh.tokens().clone());
    let phases = phases();
    let mut run = Run { phases: Vec::new(), acknowledged: Acknowledged::default() };
    let count = phases.len();
    for (index, phase) in phases.into_iter().enumerate() {
        // Integer shares that add up to `options.orders` for any number of phases.
        let orders = options.orders * (index + 1) / count - options.orders * index / count;
        bar.set_message(phase.name);
        let before = counters(mesh);
        let name = phase.name;
        let seen = run_phase(mesh, phase, orders, options.rate, &mut customers, bar).await?;
        let after = counters(mesh);
        run.acknowledged.record(&seen);
        let flips = std::mem::take(&mut *transitions.lock().unwrap_or_else(PoisonError::into_inner));
        run.phases.push(PhaseReport::new(name, &seen, after.0 - before.0, after.1 - before.1, flips));
    }
    Ok(run)
}

/// Runs one phase. Orders are placed at a fixed rate, independent of the answers.
async fn run_phase(
    mesh: &mut Mesh,
    phase: Phase,
    orders: usize,
    rate: f64,
    customers: &mut Customers,
    bar: &ProgressBar,
) -> Result<Vec<Seen>, MeshError> {
    for name in Name::ALL {
        mesh.faults(name).clear();
    }
    let mut events = phase.events.into_iter().peekable();
    let interval =
        Duration::from_secs_f64(1.0 / rate).max(SHORTEST_PHASE / u32::try_from(orders.max(1)).unwrap_or(u32::MAX));
    let start = now();
    let mut placing = JoinSet::new();
    for index in 0..orders {
        tokio::time::sleep_until(start + interval.mul_f64(index as f64)).await;
        while let Some((_, event)) = events.next_if(|(share, _)| index as f64 >= share * orders as f64) {
            apply(mesh, event).await?;
        }
        let order = customers.order();
        let bar = bar.clone();
        placing.spawn(async move {
            let seen = order.place(Repeat::WhilePending).await;
            bar.inc(1);
            seen
        });
    }
    // With few orders some events may not have been reached. A crashed service must still be
    // restarted.
    for (_, event) in events {
        apply(mesh, event).await?;
    }
    tokio::time::sleep_until(start + SHORTEST_PHASE.min(interval.mul_f64(orders as f64))).await;
    Ok(placing.join_all().await)
}

async fn apply(mesh: &mut Mesh, event: Event) -> Result<(), MeshError> {
    match event {
        Event::Fault(name, plan) => mesh.faults(name).set(plan),
        Event::Crash(name) => mesh.crash(name).await,
        Event::Restart(name) => mesh.restart(name).await?,
    }
    Ok(())
}

/// Total retries and bulkhead rejections of all client stacks.
fn counters(mesh: &Mesh) -> (u64, u64) {
    let stats = mesh.dependencies().map(Dependency::stats);
    stats.into_iter().fold((0, 0), |sum, stats| (sum.0 + stats.retries, sum.1 + stats.rejected))
}

/// Records every state change of every breaker.
fn watch_breakers(mesh: &Mesh, began: Instant) -> Arc<Mutex<Vec<Transition>>> {
    let transitions = Arc::new(Mutex::new(Vec::new()));
    for dependency in mesh.dependencies() {
        let name = dependency.name();
        let transitions = Arc::clone(&transitions);
        dependency.breaker().on_transition(move |flip| {
            let flip = Transition {
                at_ms: millis(began.elapsed()),
                breaker: name,
                from: flip.from.as_str(),
                to: flip.to.as_str(),
                reason: flip.cause.to_string(),
            };
            transitions.lock().unwrap_or_else(PoisonError::into_inner).push(flip);
        });
    }
    transitions
}
