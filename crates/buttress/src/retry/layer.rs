use super::{Retry, RetryBudget};
use crate::ending::{Ended, Ending, NoEnding};
use buttress_core::{
    Backoff,
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
pub struct RetryLayer<E = NoEnding> {
    pub(super) ends: E,
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
        };
        Self { ends: NoEnding, shared: share(config, Arc::default()) }
    }
}

impl<E> RetryLayer<E> {
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
    pub fn map_ending<F>(self, map: impl FnOnce(E) -> F) -> RetryLayer<F> {
        RetryLayer { ends: map(self.ends), shared: self.shared }
    }

    /// What it has done so far. Shared by all services of this layer, whatever is set afterwards.
    pub fn stats(&self) -> RetryStats {
        RetryStats(self.shared.stats.clone())
    }

    fn configure(self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.shared.config.clone();
        change(&mut config);
        Self { shared: share(config, self.shared.stats.clone()), ends: self.ends }
    }
}

fn share(config: Config, stats: Arc<Stats>) -> Sharded<Shared> {
    let rng = Mutex::new(config.seed.map_or_else(Rng::new, Rng::with_seed));
    Sharded::new(shards(), Shared { config, stats, rng })
}

impl<E> Ending for RetryLayer<E> {
    type Now = E;
    type With<F> = RetryLayer<F>;

    fn end<F>(self, ends: F) -> RetryLayer<F> {
        RetryLayer { ends, shared: self.shared }
    }
}

impl<S, E: Ended + Clone> Layer<S> for RetryLayer<E> {
    type Service = Retry<S, E>;

    fn layer(&self, inner: S) -> Self::Service {
        Retry { inner, layer: self.clone() }
    }
}

/// Counters of a [`RetryLayer`], since it was made.
#[derive(Clone, Debug)]
pub struct RetryStats(Arc<Stats>);

impl RetryStats {
    /// Attempts after the first, without the [transparent](Self::transparent) ones.
    pub fn retries(&self) -> u64 {
        self.0.retries.sum()
    }

    /// Free repetitions of requests that the transport handed back before the backend looked at
    /// them.
    pub fn transparent(&self) -> u64 {
        self.0.transparent.sum()
    }

    /// Failures that were not repeated because the budget was empty.
    pub fn out_of_budget(&self) -> u64 {
        self.0.out_of_budget.sum()
    }

    /// Failures that were not repeated because all attempts were used.
    pub fn out_of_attempts(&self) -> u64 {
        self.0.out_of_attempts.sum()
    }
}
