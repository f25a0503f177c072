use super::RetryBudget;
use crate::{
    ending::{Ending, NoEnding},
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

/// Retries as a layer. It implements [`Layer`](tower_layer::Layer) once it has an
/// [ending](crate::ending).
///
/// The [module](super) describes what is repeated.
///
/// ```
/// use buttress::{PlainExt, RetryLayer};
/// use std::{io, sync::atomic::{AtomicU32, Ordering}};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// static CALLS: AtomicU32 = AtomicU32::new(0);
/// let layer = RetryLayer::new(3);
/// let stats = layer.stats();
/// let service = ServiceBuilder::new().layer(layer.plain()).service_fn(|_: ()| async {
///     match CALLS.fetch_add(1, Ordering::Relaxed) {
///         0 => Err(io::Error::other("the first call fails")),
///         _ => Ok("done"),
///     }
/// });
/// assert_eq!(service.oneshot(()).await.unwrap(), "done");
/// assert_eq!(stats.retries(), 1);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RetryLayer<E = NoEnding, Attempts = Same> {
    pub(super) ends: E,
    pub(super) attempts: Attempts,
    pub(super) shared: Sharded<Shared>,
}

/// State that the services of a layer share. A call holds a ticket to it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) stats: Arc<Stats>,
    /// Seeds the jitter of each call. One sequence for the layer: calls with equal pauses would
    /// reach the backend together again.
    pub(super) rng: Mutex<Rng>,
}

impl Shared {
    /// Returns the generator for the jitter of one call.
    pub(super) fn fork_rng(&self) -> Rng {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).fork()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) attempts: u32,
    pub(super) backoff: Backoff,
    pub(super) max_hint: Duration,
    pub(super) min_useful: Duration,
    pub(super) budget: RetryBudget,
    /// Whether the layer made the budget itself.
    has_own_budget: bool,
    pub(super) seed: Option<u64>,
    name: Option<Name>,
}

#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) retries: Counter,
    pub(super) transparent: Counter,
    pub(super) out_of_budget: Counter,
    pub(super) out_of_attempts: Counter,
    pub(super) out_of_time: Counter,
    pub(super) retried_below: Counter,
}

impl RetryLayer {
    /// Allows at most `attempts` attempts, including the first. 0 and 1 mean no retry.
    ///
    /// Defaults: full jitter from 50 ms to 20 s (the AWS SDKs' standard mode), a budget of its own,
    /// and a [`max_hint`](Self::max_hint) of 60 s.
    pub fn new(attempts: u32) -> Self {
        let config = Config {
            attempts: attempts.max(1),
            backoff: Backoff::default(),
            max_hint: Duration::from_secs(60),
            min_useful: Duration::from_millis(1),
            budget: RetryBudget::new(),
            has_own_budget: true,
            seed: None,
            name: None,
        };
        Self { ends: NoEnding, attempts: Same, shared: share(config, Arc::default()) }
    }
}

impl<E, Attempts> RetryLayer<E, Attempts> {
    /// Sets the name in metrics, also of the budget, unless it was [set](Self::budget). Default:
    /// none.
    pub fn named(self, name: impl Into<Name>) -> Self {
        let name = name.into();
        self.configure(|config| {
            if config.has_own_budget {
                config.budget = RetryBudget::builder().name(name.clone()).build().expect("the defaults are valid");
            }
            config.name = Some(name);
        })
    }

    /// Reads the number of attempts, including the first, from the request, for numbers that differ
    /// by method or route. 0 means 1; `None` uses the number of the layer.
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

    /// Sets the pauses between attempts.
    ///
    /// ```
    /// use buttress::{Backoff, RetryLayer};
    /// use std::time::Duration;
    ///
    /// let layer = RetryLayer::new(3).backoff(Backoff::constant(Duration::from_millis(100)));
    /// # let _ = layer;
    /// ```
    pub fn backoff(self, backoff: Backoff) -> Self {
        self.configure(|config| config.backoff = backoff)
    }

    /// Sets the budget. All callers of one destination should share one.
    ///
    /// ```
    /// use buttress::{RetryBudget, RetryLayer};
    ///
    /// let budget = RetryBudget::new();
    /// let (reads, writes) = (RetryLayer::new(3).budget(budget.clone()), RetryLayer::new(2).budget(budget));
    /// # let _ = (reads, writes);
    /// ```
    pub fn budget(self, budget: RetryBudget) -> Self {
        self.configure(|config| (config.budget, config.has_own_budget) = (budget, false))
    }

    /// Sets the longest pause that a backend may ask for. A failure that asks for a longer one is
    /// not retried. Default 60 s.
    pub fn max_hint(self, max_hint: Duration) -> Self {
        self.configure(|config| config.max_hint = max_hint)
    }

    /// Sets the shortest time that an attempt needs. A failure is returned at once if its pause and
    /// this time would end after the deadline of the call
    /// ([`CallContext::deadline`](buttress_core::context::CallContext::deadline)). Default 1 ms.
    ///
    /// ```
    /// use buttress::RetryLayer;
    /// use std::time::Duration;
    ///
    /// // The backend never answers in less than 20 ms.
    /// let layer = RetryLayer::new(3).min_useful(Duration::from_millis(20));
    /// # let _ = layer;
    /// ```
    pub fn min_useful(self, time: Duration) -> Self {
        self.configure(|config| config.min_useful = time)
    }

    /// Makes the jitter repeatable: the same seed and order of calls draw the same pauses. The
    /// calls of a layer still draw different ones.
    pub fn seed(self, seed: u64) -> Self {
        self.configure(|config| config.seed = Some(seed))
    }

    /// Replaces the ending by the result of `map`.
    pub fn map_ending<Next>(self, map: impl FnOnce(E) -> Next) -> RetryLayer<Next, Attempts> {
        RetryLayer { ends: map(self.ends), attempts: self.attempts, shared: self.shared }
    }

    /// Returns the counters of the layer. All services of the layer share them, also those made
    /// after further settings.
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

/// Counters of a [`RetryLayer`], from when it was made.
#[derive(Clone, Debug)]
pub struct RetryStats {
    counts: Arc<Stats>,
    name: Option<Name>,
    budget: RetryBudget,
}

impl RetryStats {
    /// Returns the budget of the layer.
    pub fn budget(&self) -> &RetryBudget {
        &self.budget
    }

    /// Returns the number of attempts after the first, without the [transparent](Self::transparent)
    /// ones.
    pub fn retries(&self) -> u64 {
        self.counts.retries.sum()
    }

    /// Returns the number of free retries: of requests that the transport returned before the
    /// backend processed them.
    pub fn transparent(&self) -> u64 {
        self.counts.transparent.sum()
    }

    /// Returns the number of failures that were not retried because the budget was empty.
    pub fn out_of_budget(&self) -> u64 {
        self.counts.out_of_budget.sum()
    }

    /// Returns the number of failures that were not retried because all attempts were used.
    pub fn out_of_attempts(&self) -> u64 {
        self.counts.out_of_attempts.sum()
    }

    /// Returns the number of failures that were not retried because the deadline of the call was
    /// too near.
    pub fn out_of_time(&self) -> u64 {
        self.counts.out_of_time.sum()
    }

    /// Returns the number of failures that were not retried because a service below had repeated
    /// them, or its budget was empty.
    pub fn retried_below(&self) -> u64 {
        self.counts.retried_below.sum()
    }
}

const RETRIES: Metric = Metric::counter("resilience.retry.retries", "retries", "Attempts after the first");
const TRANSPARENT: Metric = Metric::counter(
    "resilience.retry.transparent",
    "attempts",
    "Free retries of requests that the transport returned unprocessed",
);
const OUT_OF_BUDGET: Metric =
    Metric::counter("resilience.retry.out_of_budget", "calls", "Retries denied by the budget");
const OUT_OF_ATTEMPTS: Metric =
    Metric::counter("resilience.retry.out_of_attempts", "calls", "Calls whose last allowed attempt failed");
const OUT_OF_TIME: Metric =
    Metric::counter("resilience.retry.out_of_time", "calls", "Retries that the deadline of the call left no time for");
const RETRIED_BELOW: Metric =
    Metric::counter("resilience.retry.retried_below", "calls", "Failures that a service below has repeated already");

impl Report for RetryStats {
    fn metrics() -> Vec<Metric> {
        vec![RETRIES, TRANSPARENT, OUT_OF_BUDGET, OUT_OF_ATTEMPTS, OUT_OF_TIME, RETRIED_BELOW]
    }

    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn report(&self, sink: &mut dyn Sink) {
        sink.counter(&RETRIES, self.retries());
        sink.counter(&TRANSPARENT, self.transparent());
        sink.counter(&OUT_OF_BUDGET, self.out_of_budget());
        sink.counter(&OUT_OF_ATTEMPTS, self.out_of_attempts());
        sink.counter(&OUT_OF_TIME, self.out_of_time());
        sink.counter(&RETRIED_BELOW, self.retried_below());
    }
}
