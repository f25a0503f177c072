//! Injects faults into calls, to see what a system does when they occur.
//!
//! A [`Chaos`] is a switch that is off until [`set`](Chaos::set). While it is on, each call draws
//! its [`Faults`]: for each fault a random number of its own, so that the faults are independent of
//! each other, and a change of one rate does not change the draws of another. With a seed, the same
//! calls in the same order draw the same faults.
//!
//! The number of calls that suffer at a time is bounded by
//! [`max_active`](Builder::max_active). A call that draws a fault beyond that is spared.
//!
//! The layer around it is in the crate `buttress`, behind the feature `chaos`.
//!
//! ```
//! use buttress_core::chaos::{Chaos, Fault, Faults};
//!
//! let chaos = Chaos::builder().seed(7).max_active(1).build()?;
//! assert!(chaos.draw(None).is_none(), "it is off");
//!
//! chaos.set(Faults::builder().errors(1.0).build()?);
//! let injection = chaos.draw(None).unwrap();
//! assert!(injection.drawn().error);
//! assert!(chaos.draw(None).is_none(), "one call suffers at a time");
//!
//! injection.count(Fault::Error);
//! assert_eq!((chaos.injected(Fault::Error), chaos.spared()), (1, 1));
//! # Ok::<(), buttress_core::InvalidConfig>(())
//! ```

mod faults;
mod injection;
#[cfg(all(test, not(loom)))]
mod tests;

pub use faults::{Fault, Faults, FaultsBuilder, Strike};
pub use injection::{Drawn, Injected, Injection};

use crate::{
    InvalidConfig, Name, Waiters,
    draws::Draws,
    report::{Metric, Report, Sink, Value},
    shard::{Counter, Sharded, shards},
    sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, lock},
};

/// A switch for faults. A cheap handle; clones share it. Off until [`set`](Self::set).
///
/// The [module](self) has an example.
#[derive(Clone, Debug)]
pub struct Chaos(Sharded<State>);

#[derive(Debug)]
struct State {
    name: Option<Name>,
    /// Read by every call; the other fields only while it is true.
    is_on: AtomicBool,
    faults: Mutex<Faults>,
    /// Number of changes. A call hangs until the next one.
    changes: AtomicU64,
    waiters: Waiters,
    draws: Draws,
    active: AtomicUsize,
    max_active: usize,
    injected: [Counter; Fault::ALL.len()],
    spared: Counter,
}

/// Builds a [`Chaos`].
#[derive(Clone, Debug)]
#[must_use = "call `build`"]
pub struct Builder {
    name: Option<Name>,
    seed: Option<u64>,
    max_active: usize,
}

/// Default number of calls that suffer at a time.
const MAX_ACTIVE: usize = 100;

impl Builder {
    /// Sets the name in metrics. Default: none.
    pub fn name(self, name: impl Into<Name>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// Makes the draws repeatable. Default: they differ from run to run.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// Sets how many calls may suffer at a time, at least 1. Default 100.
    ///
    /// A call suffers from its draw to the end of its response. [`usize::MAX`] sets no bound.
    pub fn max_active(self, calls: usize) -> Self {
        Self { max_active: calls, ..self }
    }

    /// Builds the switch, which is off.
    ///
    /// ```
    /// use buttress_core::chaos::Chaos;
    ///
    /// let error = Chaos::builder().max_active(0).build().unwrap_err();
    /// assert_eq!(error.to_string(), "invalid configuration: `max_active` must be at least 1");
    /// ```
    ///
    /// # Errors
    /// If `max_active` is 0.
    pub fn build(self) -> Result<Chaos, InvalidConfig> {
        if self.max_active == 0 {
            return Err(InvalidConfig::new("max_active", "must be at least 1"));
        }
        Ok(Chaos::of(self))
    }
}

impl Chaos {
    /// Creates a switch with the defaults of [`builder`](Self::builder). It is off.
    ///
    /// ```
    /// use buttress_core::chaos::Chaos;
    ///
    /// assert!(!Chaos::new().is_on());
    /// ```
    pub fn new() -> Self {
        Self::of(Self::builder())
    }

    /// Returns a builder with the defaults: no name, no seed, at most 100 calls that suffer at a
    /// time.
    pub fn builder() -> Builder {
        Builder { name: None, seed: None, max_active: MAX_ACTIVE }
    }

    fn of(builder: Builder) -> Self {
        let Builder { name, seed, max_active } = builder;
        let state = State {
            name,
            is_on: AtomicBool::new(false),
            faults: Mutex::new(Faults::default()),
            changes: AtomicU64::new(0),
            waiters: Waiters::default(),
            draws: Draws::new(seed),
            active: AtomicUsize::new(0),
            max_active,
            injected: std::array::from_fn(|_| Counter::default()),
            spared: Counter::default(),
        };
        Self(Sharded::new(shards(), state))
    }

    /// Switches it on with these faults, from the next call on. Calls that hang go on.
    ///
    /// ```
    /// use buttress_core::chaos::{Chaos, Faults};
    /// use std::time::Duration;
    ///
    /// let chaos = Chaos::new();
    /// let second = Duration::from_secs(1);
    /// chaos.set(Faults::builder().errors(0.05).latency(0.2, second..=2 * second).build()?);
    /// assert!(chaos.is_on());
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn set(&self, faults: Faults) {
        self.change(true, faults);
    }

    /// Switches it off: the kill switch. Calls that hang go on. A call that has drawn other faults
    /// keeps them.
    pub fn off(&self) {
        self.change(false, Faults::default());
    }

    fn change(&self, is_on: bool, faults: Faults) {
        let state = &*self.0;
        {
            let mut current = lock(&state.faults);
            *current = faults;
            state.is_on.store(is_on, Ordering::Relaxed);
            state.changes.fetch_add(1, Ordering::SeqCst);
        }
        state.waiters.wake();
    }

    /// Returns whether it is on.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.0.is_on.load(Ordering::Relaxed)
    }

    /// Returns the faults that calls draw now.
    pub fn faults(&self) -> Faults {
        lock(&self.0.faults).clone()
    }

    /// Returns how many calls suffer now.
    pub fn active(&self) -> usize {
        self.0.active.load(Ordering::Relaxed)
    }

    /// Returns how often a fault was injected.
    pub fn injected(&self, fault: Fault) -> u64 {
        self.0.injected[fault as usize].sum()
    }

    /// Returns how many calls drew a fault and were spared, because too many suffered.
    pub fn spared(&self) -> u64 {
        self.0.spared.sum()
    }

    /// Draws the faults of a call from `own`, or else from those that are [set](Self::set). `None`
    /// if it is off, no fault was drawn, or too many calls suffer.
    #[cold]
    #[inline(never)]
    pub fn draw(&self, own: Option<&Faults>) -> Option<Injection> {
        let state = &*self.0;
        let (drawn, change) = {
            let current = lock(&state.faults);
            if !self.is_on() {
                return None;
            }
            (own.unwrap_or(&current).draw(state.draws.take()), state.changes.load(Ordering::Relaxed))
        };
        if drawn.is_none() {
            return None;
        }
        let next = |active| (active < state.max_active).then_some(active + 1);
        if state.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_err() {
            state.spared.add(1);
            return None;
        }
        Some(Injection::new(self.0.ticket(), drawn, change))
    }
}

impl Default for Chaos {
    fn default() -> Self {
        Self::new()
    }
}

const INJECTED: Metric =
    Metric::counter("resilience.chaos.injected", "faults", "Faults that were injected, by kind").labels(&["fault"]);
const ACTIVE: Metric = Metric::gauge("resilience.chaos.active", "calls", "Calls that suffer from an injected fault");
const SPARED: Metric = Metric::counter(
    "resilience.chaos.spared",
    "calls",
    "Calls that drew a fault and were spared, because too many suffered",
);

impl Report for Chaos {
    fn metrics() -> Vec<Metric> {
        vec![INJECTED, ACTIVE, SPARED]
    }

    fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    fn report(&self, sink: &mut dyn Sink) {
        for fault in Fault::ALL {
            sink.value(&INJECTED, [fault.word(), ""], Value::Counter(self.injected(fault)));
        }
        sink.gauge(&ACTIVE, self.active() as f64);
        sink.counter(&SPARED, self.spared());
    }
}
