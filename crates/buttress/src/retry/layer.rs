use super::{Retry, RetryBudget};
use crate::{
    ending::{Ended, Ending, NoEnding},
    per_request::{By, Same},
};
use buttress_core::{
    Backoff, Name,
    report::{Metric, Report, Sink},
    shard::{Counter, Sharded, shards},
};
use fastrand::Rng;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tower_layer::Layer;

/// Retries as a layer, once it has an [ending](crate::ending). See the [module](super).
#[derive(Clone, Debug)]
pub struct RetryLayer<E = NoEnding, Attempts = Same> {
    pub(super) ends: E,
    pub(super) attempts: Attempts,
    pub(super) shared: Sharded<Shared>,
}

/// What all services of a layer share, and a call holds a ticket to.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) stats: Arc<Stats>,
    /// Seeds the jitter of each call. One sequence for the layer: calls that drew the same pauses
    /// would come back together.
    pub(super) rng: Mutex<Rng>,
}

impl Shared {
    /// The jitter of one call.
    pub(super) fn fork_rng(&self) -> Rng {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).fork()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) attempts: u32,
    pub(super) backoff: Backoff,
    pub(super) max_hint: Duration,
    pub(super) budget: RetryBudget,
    pub(super) seed: Option<u64>,
    name: Option<Name>,
}

#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) retries: Counter,
    pub(super) transparent: Counter,
    pub(super) out_of_budget: Counter,
    pub(super) out_of_attempts: Counter,
}

impl RetryLayer {
    /// At most `attempts` attempts, the first included; 0 is taken for 1, which is no retry. With a backoff of 50 ms to 20 s with
    /// full jitter (the AWS SDKs' standard mode) and a budget of its own.
    pub fn new(attempts: u32) -> Self {
        let config = Config {
            attempts: attempts.max(1),
            backoff: Backoff::default(),
            max_hint: Duration::from_secs(60),
            budget: RetryBudget::new(),
            seed: None,
            name: None,
        };
        Self { ends: NoEnding, attempts: Same, shared: share(config, Arc::default()) }
    }
}

impl<E, Attempts> RetryLayer<E, Attempts> {
    /// Gives it a name, for metrics. None by default.
    pub fn named(self, name: impl Into<Name>) -> Self {
        let name = name.into();
        self.configure(|config| config.name = Some(name))
    }

    /// Reads from the request how many attempts it gets, the first included. 0 is taken for 1, and
    /// `None` leaves it to the layer. For attempts per method or route.
    ///
    /// ```
    /// # use buttress::{PlainExt, RetryLayer};
    /// struct Query {
    ///     is_cheap: bool,
    /// }
    ///
    /// let layer = RetryLayer::new(3).attempts_by(|query: &Query| (!query.is_cheap).then_some(1)).plain();
    /// # let _ = layer;
    /// ```
    pub fn attempts_by<Req, F: Fn(&Req) -> Option<u32>>(self, attempts: F) -> RetryLayer<E, By<F>> {
        RetryLayer { ends: self.ends, attempts: By(attempts), shared: self.shared }
    }

    /// The pauses between attempts.
    pub fn backoff(self, backoff: Backoff) -> Self {
        self.configure(|config| config.backoff = backoff)
    }

    /// The budget that all callers of one destination should share.
    pub fn budget(self, budget: RetryBudget) -> Self {
        self.configure(|config| config.budget = budget)
    }

    /// A backend that asks us to stay away for longer than this is not asked again. Default 60 seconds.
    pub fn max_hint(self, max_hint: Duration) -> Self {
        self.configure(|config| config.max_hint = max_hint)
    }

    /// Makes the jitter of this layer repeatable: the same seed and the same order of calls draw
    /// the same pauses. Each call draws its own.
    pub fn seed(self, seed: u64) -> Self {
        self.configure(|config| config.seed = Some(seed))
    }

    /// Changes its ending.
    pub fn map_ending<Next>(self, map: impl FnOnce(E) -> Next) -> RetryLayer<Next, Attempts> {
        RetryLayer { ends: map(self.ends), attempts: self.attempts, shared: self.shared }
    }

    /// What it has done so far. Shared by all services of this layer, whatever is set afterwards.
    pub fn stats(&self) -> RetryStats {
        let Config { name, budget, .. } = &self.shared.config;
        RetryStats { counts: self.shared.stats.clone(), name: name.clone(), budget: budget.clone() }
    }

    fn configure(self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.shared.config.clone();
        change(&mut config);
        Self { shared: share(config, self.shared.stats.clone()), attempts: self.attempts, ends: self.ends }
    }
}

fn share(config: Config, stats: Arc<Stats>) -> Sharded<Shared> {
    let rng = Mutex::new(config.seed.map_or_else(Rng::new, Rng::with_seed));
    Sharded::new(shards(), Shared { config, stats, rng })
}

impl<E, Attempts> Ending for RetryLayer<E, Attempts> {
    type Now = E;
    type With<Next> = RetryLayer<Next, Attempts>;

    fn end<Next>(self, ends: Next) -> RetryLayer<Next, Attempts> {
        RetryLayer { ends, attempts: self.attempts, shared: self.shared }
    }
}

impl<S, E: Ended + Clone, Attempts: Clone> Layer<S> for RetryLayer<E, Attempts> {
    type Service = Retry<S, E, Attempts>;

    fn layer(&self, inner: S) -> Self::Service {
        Retry { inner, layer: self.clone() }
    }
}

/// Counters of a [`RetryLayer`], since it was made.
#[derive(Clone, Debug)]
pub struct RetryStats {
    counts: Arc<Stats>,
    name: Option<Name>,
    budget: RetryBudget,
}

impl RetryStats {
    /// The budget that the layer draws on.
    pub fn budget(&self) -> &RetryBudget {
        &self.budget
    }

    /// Attempts after the first, without the [transparent](Self::transparent) ones.
    pub fn retries(&self) -> u64 {
        self.counts.retries.sum()
    }

    /// Free repetitions of requests that the transport handed back before the backend looked at
    /// them.
    pub fn transparent(&self) -> u64 {
        self.counts.transparent.sum()
    }

    /// Failures that were not repeated because the budget was empty.
    pub fn out_of_budget(&self) -> u64 {
        self.counts.out_of_budget.sum()
    }

    /// Failures that were not repeated because all attempts were used.
    pub fn out_of_attempts(&self) -> u64 {
        self.counts.out_of_attempts.sum()
    }
}

const RETRIES: Metric = Metric::counter("resilience.retry.retries", "retries", "Attempts after the first");
const TRANSPARENT: Metric = Metric::counter(
    "resilience.retry.transparent",
    "attempts",
    "Free repetitions of requests that the transport handed back unprocessed",
);
const OUT_OF_BUDGET: Metric =
    Metric::counter("resilience.retry.out_of_budget", "calls", "Retries denied by the budget");
const OUT_OF_ATTEMPTS: Metric =
    Metric::counter("resilience.retry.out_of_attempts", "calls", "Calls whose last allowed attempt failed");

impl Report for RetryStats {
    fn metrics() -> Vec<Metric> {
        vec![RETRIES, TRANSPARENT, OUT_OF_BUDGET, OUT_OF_ATTEMPTS]
    }

    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn report(&self, sink: &mut dyn Sink) {
        sink.counter(&RETRIES, self.retries());
        sink.counter(&TRANSPARENT, self.transparent());
        sink.counter(&OUT_OF_BUDGET, self.out_of_budget());
        sink.counter(&OUT_OF_ATTEMPTS, self.out_of_attempts());
    }
}
