use super::{Retry, RetryBudget, protocol::Cloning};
use crate::observe::Plain;
use buttress_core::{
    Backoff,
    shard::{Counter, Sharded, shards},
};
use std::time::Duration;
use tower_layer::Layer;

/// Retries as a layer. See the [module](super).
#[derive(Clone, Debug)]
pub struct RetryLayer<P = Cloning, C = Plain> {
    pub(super) protocol: P,
    pub(super) classify: C,
    pub(super) shared: Sharded<Shared>,
}

/// What all services of a layer share, and a call holds a ticket to.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) stats: Stats,
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
        Self { protocol: Cloning, classify: Plain, shared: share(config) }
    }
}

impl<P, C> RetryLayer<P, C> {
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

    /// Makes the jitter repeatable.
    pub fn seed(self, seed: u64) -> Self {
        self.configure(|config| config.seed = Some(seed))
    }

    /// Repeats requests of another protocol.
    pub fn protocol<Q>(self, protocol: Q) -> RetryLayer<Q, C> {
        RetryLayer { protocol, classify: self.classify, shared: self.shared }
    }

    /// Changes the protocol.
    pub fn map_protocol<Q>(self, map: impl FnOnce(P) -> Q) -> RetryLayer<Q, C> {
        RetryLayer { protocol: map(self.protocol), classify: self.classify, shared: self.shared }
    }

    /// Reads outcomes in another way.
    pub fn classify<D>(self, classify: D) -> RetryLayer<P, D> {
        RetryLayer { protocol: self.protocol, classify, shared: self.shared }
    }

    /// What it has done so far. Shared by all services of this layer.
    pub fn stats(&self) -> RetryStats {
        RetryStats(self.shared.clone())
    }

    fn configure(self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.shared.config.clone();
        change(&mut config);
        Self { shared: share(config), ..self }
    }
}

fn share(config: Config) -> Sharded<Shared> {
    Sharded::new(shards(), Shared { config, stats: Stats::default() })
}

impl<S, P: Clone, C: Clone> Layer<S> for RetryLayer<P, C> {
    type Service = Retry<S, P, C>;

    fn layer(&self, inner: S) -> Self::Service {
        Retry { inner, layer: self.clone() }
    }
}

/// Counters of a [`RetryLayer`], since it was made.
#[derive(Clone, Debug)]
pub struct RetryStats(Sharded<Shared>);

impl RetryStats {
    /// Attempts after the first.
    pub fn retries(&self) -> u64 {
        self.0.stats.retries.sum()
    }

    /// Failures that were not repeated because the budget was empty.
    pub fn out_of_budget(&self) -> u64 {
        self.0.stats.out_of_budget.sum()
    }

    /// Failures that were not repeated because all attempts were used.
    pub fn out_of_attempts(&self) -> u64 {
        self.0.stats.out_of_attempts.sum()
    }
}
