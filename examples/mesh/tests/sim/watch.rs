//! Checks of the client stacks while the simulation runs.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buttress::circuit_breaker::{Event, State};
use mesh::stack::Dependency;

/// A client stack under observation.
pub(crate) struct Watch {
    dependency: Dependency,
    /// Maximum duration of an attempt: the wait for a place plus the timeout.
    limit: Duration,
    attempts: Arc<AtomicU64>,
    opened: Arc<AtomicUsize>,
    longest: Arc<Mutex<Duration>>,
    /// Retries and attempts, sampled once per second.
    samples: Vec<(u64, u64)>,
    /// The circuit's state when no fault is active.
    well: State,
}

/// Tolerance: virtual time has a resolution of 1 ms and advances in ticks of 5 ms.
pub(crate) const BOUND: Duration = Duration::from_millis(15);
/// The retry budget of every client stack: 20 % of the requests plus 3 per second, with bursts of
/// 20.
const SHARE: f64 = 0.2;
const PER_SECOND: f64 = 3.0;
const BURST: f64 = 20.0;

impl Watch {
    pub(crate) fn new(dependency: &Dependency, limit: Duration) -> Self {
        let watch = Self {
            dependency: dependency.clone(),
            limit,
            attempts: Arc::default(),
            opened: Arc::default(),
            longest: Arc::default(),
            samples: Vec::new(),
            well: dependency.breaker().snapshot().state,
        };
        let (attempts, opened, longest) = (watch.attempts.clone(), watch.opened.clone(), watch.longest.clone());
        dependency.breaker().on_event(move |event| match event {
            Event::Called { elapsed, .. } => {
                attempts.fetch_add(1, Ordering::Relaxed);
                let mut longest = longest.lock().unwrap();
                *longest = (*longest).max(*elapsed);
            }
            Event::NotPermitted { .. } | Event::Stale(_) => {
                attempts.fetch_add(1, Ordering::Relaxed);
            }
            Event::Transition(transition) if transition.to == State::Open => {
                opened.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        });
        watch
    }

    pub(crate) fn sample(&mut self) {
        self.samples.push((self.dependency.stats().retries, self.attempts.load(Ordering::Relaxed)));
    }

    /// How many times the circuit opened.
    pub(crate) fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    /// Failures that were not retried because the budget was empty.
    pub(crate) fn out_of_budget(&self) -> u64 {
        self.dependency.describe()["retry"]["out_of_budget"].as_u64().unwrap_or_default()
    }

    /// Returns the violations at the end of the run.
    pub(crate) fn wrongs(&self) -> Vec<String> {
        let name = self.dependency.name();
        let mut wrongs = self.over_budget();
        let longest = *self.longest.lock().unwrap();
        if longest > self.limit + BOUND {
            wrongs.push(format!("{name}: an attempt took {longest:?} of {:?}", self.limit));
        }
        let state = self.dependency.breaker().snapshot().state;
        if state != self.well {
            wrongs.push(format!("{name}: the circuit is {}", state.as_str()));
        }
        wrongs
    }

    /// Checks the retry budget over every window of samples. Requests are attempts minus retries.
    fn over_budget(&self) -> Vec<String> {
        let mut wrongs = Vec::new();
        for (begin, before) in self.samples.iter().enumerate() {
            for (end, after) in self.samples.iter().enumerate().skip(begin + 1) {
                let retries = after.0 - before.0;
                let requests = (after.1 - before.1).saturating_sub(retries);
                let budget = BURST + PER_SECOND * (end - begin + 1) as f64 + SHARE * requests as f64;
                if retries as f64 > budget {
                    let name = self.dependency.name();
                    wrongs.push(format!("{name}: {retries} retries of {requests} requests, {begin} s to {end} s"));
                }
            }
        }
        wrongs.truncate(1);
        wrongs
    }
}
