//! What goes wrong, when, and what was seen meanwhile.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Options;
use super::load::{Answer, Customers, Seen};
use super::report::{PhaseReport, Transition, millis};
use crate::faults::Plan;
use crate::mesh::{Mesh, MeshError, Name};
use crate::stack::Dependency;

/// No phase is shorter, however few orders there are: a breaker needs time to close again.
const SHORTEST_PHASE: Duration = Duration::from_millis(1500);

/// A change of the weather.
enum Event {
    Fault(Name, Plan),
    Crash(Name),
    Restart(Name),
}

struct Phase {
    name: &'static str,
    /// At its start, after all earlier faults have ended.
    start: Vec<Event>,
    /// After half of its orders.
    halfway: Vec<Event>,
}

impl Phase {
    fn new(name: &'static str, start: impl Into<Vec<Event>>) -> Self {
        Self { name, start: start.into(), halfway: Vec::new() }
    }

    fn halfway(self, event: Event) -> Self {
        Self { halfway: vec![event], ..self }
    }
}

fn phases() -> Vec<Phase> {
    let errors = Plan { error_rate: 0.8, ..Plan::default() };
    let slow = Plan { latency_ms: 300, ..Plan::default() };
    let hang = Plan { hang_rate: 0.8, ..Plan::default() };
    vec![
        Phase::new("calm", []),
        Phase::new("payment errors", [Event::Fault(Name::Payment, errors)]),
        Phase::new("recovery", []),
        Phase::new("payment slow", [Event::Fault(Name::Payment, slow)]),
        Phase::new("inventory hangs", [Event::Fault(Name::Inventory, hang)]),
        Phase::new("inventory crash, restart", [Event::Crash(Name::Inventory)]).halfway(Event::Restart(Name::Inventory)),
        Phase::new("calm again", []),
    ]
}

/// What the whole scenario has brought.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) phases: Vec<PhaseReport>,
    /// Ids of the orders that customers were told are confirmed.
    pub(super) told_confirmed: Vec<String>,
}

pub(super) async fn run(mesh: &mut Mesh, options: &Options, bar: &ProgressBar) -> Result<Run, MeshError> {
    let began = Instant::now();
    let transitions = watch_breakers(mesh, began);
    let mut customers = Customers::new(mesh.url(Name::Gateway), options.seed);
    let phases = phases();
    let mut run = Run { phases: Vec::new(), told_confirmed: Vec::new() };
    let count = phases.len();
    for (index, phase) in phases.into_iter().enumerate() {
        // So that the shares add up to the whole, whatever the number.
        let orders = options.orders * (index + 1) / count - options.orders * index / count;
        bar.set_message(phase.name);
        let before = counters(mesh);
        let name = phase.name;
        let seen = weather(mesh, phase, orders, options.rate, &mut customers, bar).await?;
        let after = counters(mesh);
        run.told_confirmed.extend(seen.iter().filter_map(|seen| match &seen.answer {
            Answer::Confirmed(id) => Some(id.clone()),
            _ => None,
        }));
        let flips = std::mem::take(&mut *transitions.lock().unwrap_or_else(PoisonError::into_inner));
        run.phases.push(PhaseReport::new(name, &seen, after.0 - before.0, after.1 - before.1, flips));
    }
    Ok(run)
}

/// One phase: its orders at a steady rate, whether or not the answers keep up, as real customers come.
async fn weather(
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
    strike(mesh, phase.start).await?;
    let mut halfway = Some(phase.halfway);
    let interval = Duration::from_secs_f64(1.0 / rate).max(SHORTEST_PHASE / u32::try_from(orders.max(1)).unwrap_or(u32::MAX));
    let start = Instant::now();
    let mut placing = JoinSet::new();
    for index in 0..orders {
        tokio::time::sleep_until(start + interval.mul_f64(index as f64)).await;
        if index >= orders / 2 && let Some(events) = halfway.take() {
            strike(mesh, events).await?;
        }
        let order = customers.order();
        let bar = bar.clone();
        placing.spawn(async move {
            let seen = order.place().await;
            bar.inc(1);
            seen
        });
    }
    // A phase without orders still has its weather.
    strike(mesh, halfway.take().unwrap_or_default()).await?;
    tokio::time::sleep_until(start + SHORTEST_PHASE.min(interval.mul_f64(orders as f64))).await;
    Ok(placing.join_all().await)
}

async fn strike(mesh: &mut Mesh, events: Vec<Event>) -> Result<(), MeshError> {
    for event in events {
        match event {
            Event::Fault(name, plan) => mesh.faults(name).set(plan),
            Event::Crash(name) => mesh.crash(name).await,
            Event::Restart(name) => mesh.restart(name).await?,
        }
    }
    Ok(())
}

/// Retries and bulkhead rejections of all client stacks, so far.
fn counters(mesh: &Mesh) -> (u64, u64) {
    let stats = mesh.dependencies().map(Dependency::stats);
    stats.into_iter().fold((0, 0), |sum, stats| (sum.0 + stats.retries, sum.1 + stats.rejected))
}

/// Collects every change of state of every breaker.
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
