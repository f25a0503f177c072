use super::Delay;
use crate::{
    RetryBudget,
    ending::{Ending, NoEnding},
    per_request::{By, Same},
};
use buttress_core::{
    InvalidConfig, Name,
    report::{Metric, Report, Sink},
    shard::{Counter, Sharded, shards},
};
use std::{sync::Arc, time::Duration};

/// Hedging as a layer. It implements [`Layer`](tower_layer::Layer) once it has an
/// [ending](crate::ending).
///
/// The [module](super) describes what is sent again and when.
///
/// ```
/// use buttress::{HedgeLayer, PlainExt};
/// use std::{convert::Infallible, sync::atomic::{AtomicU32, Ordering}, time::Duration};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// static CALLS: AtomicU32 = AtomicU32::new(0);
/// let layer = HedgeLayer::after(Duration::from_millis(30));
/// let stats = layer.stats();
/// let service = ServiceBuilder::new().layer(layer.plain()).service_fn(|_: ()| async {
///     if CALLS.fetch_add(1, Ordering::Relaxed) == 0 {
///         tokio::time::sleep(Duration::from_secs(1)).await; // the first attempt is slow
///     }
///     Ok::<_, Infallible>("done")
/// });
/// assert_eq!(service.oneshot(()).await.unwrap(), "done");
/// assert_eq!((stats.hedges(), stats.wins()), (1, 1));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct HedgeLayer<E = NoEnding, After = Same> {
    pub(super) ends: E,
    pub(super) after: After,
    pub(super) shared: Sharded<Shared>,
}

/// State that the services of a layer share. A call holds a ticket to it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) stats: Arc<Stats>,
}

#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) delay: Delay,
    pub(super) max_hedges: u32,
    pub(super) max_hint: Duration,
    pub(super) budget: RetryBudget,
    /// Whether the layer made the budget itself.
    has_own_budget: bool,
    pub(super) deposits: bool,
    name: Option<Name>,
}

#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) hedges: Counter,
    pub(super) retries: Counter,
    pub(super) wins: Counter,
    pub(super) out_of_budget: Counter,
}

impl HedgeLayer {
    /// Sends a call again that has no answer after `delay`. Zero sends it twice at once;
    /// [`Duration::MAX`] sends it again only after a failure.
    ///
    /// Defaults: one hedge, a budget of its own of 5 % of the calls, and a
    /// [`max_hint`](Self::max_hint) of 1 s.
    ///
    /// ```
    /// use buttress::{HedgeLayer, PlainExt, RetryBudget};
    /// use std::time::Duration;
    ///
    /// let budget = RetryBudget::builder().percent(5.0).min_per_second(0.0).build()?;
    /// let layer = HedgeLayer::after(Duration::from_millis(30)).budget(budget).plain();
    /// # let _ = layer;
    /// # Ok::<(), buttress::InvalidConfig>(())
    /// ```
    pub fn after(delay: Duration) -> Self {
        Self::with_delay(Delay::fixed(delay))
    }

    /// Sends a call again that takes longer than `percentile` percent of the calls do, such as
    /// 95.0. Above 0 and below 100.
    ///
    /// [`with_delay`](Self::with_delay) sets more.
    ///
    /// ```
    /// use buttress::{HedgeLayer, PlainExt};
    ///
    /// let layer = HedgeLayer::percentile(95.0)?.plain();
    /// # let _ = layer;
    /// # Ok::<(), buttress::InvalidConfig>(())
    /// ```
    ///
    /// # Errors
    /// If the percentile is out of its range.
    pub fn percentile(percentile: f64) -> Result<Self, InvalidConfig> {
        Ok(Self::with_delay(Delay::percentile(percentile).build()?))
    }

    /// Sends a call again that has no answer after a delay. Layers with clones of one delay learn
    /// the percentile together.
    ///
    /// ```
    /// use buttress::{HedgeLayer, hedge::Delay};
    /// use std::time::Duration;
    ///
    /// let delay = Delay::percentile(99.0).max(Duration::from_secs(1)).build()?;
    /// let layer = HedgeLayer::with_delay(delay);
    /// # let _ = layer;
    /// # Ok::<(), buttress::InvalidConfig>(())
    /// ```
    pub fn with_delay(delay: Delay) -> Self {
        let config = Config {
            delay,
            max_hedges: 1,
            max_hint: Duration::from_secs(1),
            budget: own_budget(None),
            has_own_budget: true,
            deposits: true,
            name: None,
        };
        Self { ends: NoEnding, after: Same, shared: share(config, Arc::default()) }
    }
}

impl<E, After> HedgeLayer<E, After> {
    /// Sets the name in metrics, also of the budget, unless it was [set](Self::budget). Default:
    /// none.
    pub fn named(self, name: impl Into<Name>) -> Self {
        let name = name.into();
        self.configure(|config| {
            if config.has_own_budget {
                config.budget = own_budget(Some(name.clone()));
            }
            config.name = Some(name);
        })
    }

    /// Sets how many attempts are made after the first. Default 1. With more, the second hedge is
    /// sent after twice the delay, and so on.
    ///
    /// 0 sends no call again.
    pub fn max_hedges(self, max_hedges: u32) -> Self {
        self.configure(|config| config.max_hedges = max_hedges)
    }

    /// Sets the budget from which each attempt after the first is withdrawn. Each call deposits.
    ///
    /// Default: a budget of its own, of 5 % of the calls, without a minimum, and with a burst of
    /// 10. If a layer around this one deposits for each call into the same budget, use
    /// [`shared_budget`](Self::shared_budget).
    pub fn budget(self, budget: RetryBudget) -> Self {
        self.configure(|config| (config.budget, config.has_own_budget, config.deposits) = (budget, false, true))
    }

    /// Sets the budget of a layer around this one, such as a retry, which deposits for each call.
    /// Retries and hedges together then keep to one share of the calls.
    ///
    /// ```
    /// use buttress::{HedgeLayer, PlainExt, RetryBudget, RetryLayer};
    /// use tower::ServiceBuilder;
    ///
    /// let budget = RetryBudget::new();
    /// let layers = ServiceBuilder::new()
    ///     .layer(RetryLayer::new(3).budget(budget.clone()).plain())
    ///     .layer(HedgeLayer::percentile(95.0)?.shared_budget(budget).plain());
    /// # let _ = layers;
    /// # Ok::<(), buttress::InvalidConfig>(())
    /// ```
    pub fn shared_budget(self, budget: RetryBudget) -> Self {
        self.configure(|config| (config.budget, config.has_own_budget, config.deposits) = (budget, false, false))
    }

    /// Sets the longest pause that a backend may ask for (`Retry-After`, a gRPC pushback) before
    /// the next attempt. A failure that asks for a longer one ends the hedging of its call; the
    /// attempts in flight go on. Default 1 s: longer pauses are for a retry around this layer.
    pub fn max_hint(self, max_hint: Duration) -> Self {
        self.configure(|config| config.max_hint = max_hint)
    }

    /// Reads the delay from the request, for delays that differ by method or route. `None` uses the
    /// delay of the layer; a percentile learns from these calls only.
    ///
    /// ```
    /// use buttress::{HedgeLayer, PlainExt};
    /// use std::time::Duration;
    ///
    /// #[derive(Clone)]
    /// struct Query {
    ///     is_export: bool,
    /// }
    ///
    /// let layer = HedgeLayer::after(Duration::from_millis(30))
    ///     .delay_by(|query: &Query| query.is_export.then_some(Duration::MAX))
    ///     .plain();
    /// # let _ = layer;
    /// ```
    pub fn delay_by<Req, F: Fn(&Req) -> Option<Duration>>(self, delay: F) -> HedgeLayer<E, By<F>> {
        HedgeLayer { ends: self.ends, after: By(delay), shared: self.shared }
    }

    /// Replaces the ending by the result of `map`.
    pub fn map_ending<Next>(self, map: impl FnOnce(E) -> Next) -> HedgeLayer<Next, After> {
        HedgeLayer { ends: map(self.ends), after: self.after, shared: self.shared }
    }

    /// Returns the counters of the layer. All services of the layer share them, also those made
    /// after further settings.
    pub fn stats(&self) -> HedgeStats {
        let Config { name, budget, delay, .. } = &self.shared.config;
        let (name, budget, delay) = (name.clone(), budget.clone(), delay.clone());
        HedgeStats { counts: self.shared.stats.clone(), name, budget, delay }
    }

    fn configure(self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.shared.config.clone();
        change(&mut config);
        Self { shared: share(config, self.shared.stats.clone()), after: self.after, ends: self.ends }
    }
}

/// A percentile of 95 needs 5 % of the calls. Without a minimum per second, because a client with
/// few calls would hedge all of them while they are slow (Finagle: the share of the percentile, and
/// no minimum).
fn own_budget(name: Option<Name>) -> RetryBudget {
    let budget = RetryBudget::builder().percent(5.0).min_per_second(0.0).burst(10);
    let budget = match name {
        Some(name) => budget.name(name),
        None => budget,
    };
    budget.build().expect("the values are valid")
}

fn share(config: Config, stats: Arc<Stats>) -> Sharded<Shared> {
    Sharded::new(shards(), Shared { config, stats })
}

impl<E, After> Ending for HedgeLayer<E, After> {
    type Now = E;
    type With<Next> = HedgeLayer<Next, After>;

    fn end<Next>(self, ends: Next) -> HedgeLayer<Next, After> {
        HedgeLayer { ends, after: self.after, shared: self.shared }
    }
}

/// Counters of a [`HedgeLayer`], from when it was made, and the delay that it uses.
///
/// ```
/// use buttress::HedgeLayer;
/// use std::time::Duration;
///
/// let stats = HedgeLayer::after(Duration::from_millis(30)).named("search").stats();
/// assert_eq!((stats.hedges(), stats.delay()), (0, Some(Duration::from_millis(30))));
/// ```
#[derive(Clone, Debug)]
pub struct HedgeStats {
    counts: Arc<Stats>,
    name: Option<Name>,
    budget: RetryBudget,
    delay: Delay,
}

impl HedgeStats {
    /// Returns the budget of the layer.
    pub fn budget(&self) -> &RetryBudget {
        &self.budget
    }

    /// Returns the delay after which calls are hedged now. `None` while the percentile is unknown
    /// or above its maximum, so that no call is.
    pub fn delay(&self) -> Option<Duration> {
        self.delay.current()
    }

    /// Returns the number of attempts that were sent because the ones before had no answer.
    pub fn hedges(&self) -> u64 {
        self.counts.hedges.sum()
    }

    /// Returns the number of attempts that were sent because one before had failed.
    pub fn retries(&self) -> u64 {
        self.counts.retries.sum()
    }

    /// Returns the number of calls whose answer is that of another attempt than the first.
    pub fn wins(&self) -> u64 {
        self.counts.wins.sum()
    }

    /// Returns the number of calls that were not sent again because the budget was empty.
    pub fn out_of_budget(&self) -> u64 {
        self.counts.out_of_budget.sum()
    }
}

const HEDGES: Metric = Metric::counter(
    "resilience.hedge.hedges",
    "attempts",
    "Attempts sent because the ones before had no answer after the delay",
);
const RETRIES: Metric =
    Metric::counter("resilience.hedge.retries", "attempts", "Attempts sent because one before had failed");
const WINS: Metric =
    Metric::counter("resilience.hedge.wins", "calls", "Calls answered by another attempt than the first");
const OUT_OF_BUDGET: Metric =
    Metric::counter("resilience.hedge.out_of_budget", "calls", "Calls whose hedge was denied by the budget");
const DELAY: Metric = Metric::gauge(
    "resilience.hedge.delay",
    "seconds",
    "Delay after which calls are hedged; infinite while the percentile is unknown or above its maximum",
);

impl Report for HedgeStats {
    fn metrics() -> Vec<Metric> {
        vec![HEDGES, RETRIES, WINS, OUT_OF_BUDGET, DELAY]
    }

    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn report(&self, sink: &mut dyn Sink) {
        sink.counter(&HEDGES, self.hedges());
        sink.counter(&RETRIES, self.retries());
        sink.counter(&WINS, self.wins());
        sink.counter(&OUT_OF_BUDGET, self.out_of_budget());
        sink.gauge(&DELAY, self.delay().map_or(f64::INFINITY, |delay| delay.as_secs_f64()));
    }
}
