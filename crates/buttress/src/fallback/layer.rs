use super::action::{Alternate, Noted, Value, With};
use crate::{
    bulkhead::Bulkhead,
    ending::{Ending, NoEnding},
    shell::opaque_debug,
};
use buttress_core::{
    Ignored, Label, Name, Outcome,
    report::{Metric, Report, Sink},
    shard::{Counter, Sharded, shards},
};
use std::{future::Future, sync::Arc, time::Duration};

const POLICY: &str = "fallback";

/// Number of fallbacks of a layer that run at a time. Source: the semaphore of Hystrix's fallbacks.
const CONCURRENCY: usize = 10;

/// A fallback as a layer. It implements [`Layer`](tower_layer::Layer) once it has an
/// [ending](crate::ending).
///
/// The [module](super) describes when the fallback is used, and what bounds it.
///
/// ```
/// use buttress::{CircuitBreaker, CircuitBreakerLayer, Error, FallbackLayer, PlainExt};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let breaker = CircuitBreaker::new("stock");
/// let service = ServiceBuilder::new()
///     .layer(FallbackLayer::to("unknown").plain())
///     .layer(CircuitBreakerLayer::from(breaker.clone()).plain())
///     .service_fn(async |_article: u32| Ok::<_, Error>("in stock"));
/// assert_eq!(service.clone().oneshot(7).await.unwrap(), "in stock");
///
/// breaker.force_open();
/// assert_eq!(service.oneshot(7).await.unwrap(), "unknown");
/// # }
/// ```
#[derive(Debug)]
pub struct FallbackLayer<A, E = NoEnding> {
    pub(super) ends: E,
    pub(super) shared: Sharded<Shared<A>>,
}

impl<A, E: Clone> Clone for FallbackLayer<A, E> {
    fn clone(&self) -> Self {
        Self { ends: self.ends.clone(), shared: self.shared.clone() }
    }
}

/// State that the services of a layer share. A call holds a ticket to it.
pub(super) struct Shared<A> {
    pub(super) action: Arc<A>,
    pub(super) config: Config,
    pub(super) stats: Arc<Stats>,
}

opaque_debug!(Shared<A>);

#[derive(Clone)]
pub(super) struct Config {
    when: Arc<dyn Fn(&Outcome) -> bool + Send + Sync>,
    pub(super) running: Bulkhead,
    pub(super) timeout: Duration,
    pub(super) label: Label,
    pub(super) name: Option<Name>,
}

#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) used: Counter,
    pub(super) failed: Counter,
    pub(super) rejected: Counter,
    pub(super) unrepeatable: Counter,
}

impl<A> Shared<A> {
    /// Returns whether the fallback answers a call with this outcome.
    pub(super) fn covers(&self, outcome: &Outcome) -> bool {
        !matches!(outcome, Outcome::Success) && (self.config.when)(outcome)
    }
}

fn failed_or_rejected(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failure(_) | Outcome::Ignored(Ignored::LocalReject))
}

impl<T> FallbackLayer<Value<T>> {
    /// Returns a copy of `value`. With HTTP, `value` is an `http::Response`.
    ///
    /// ```
    /// use buttress::{FallbackLayer, PlainExt};
    ///
    /// let layer = FallbackLayer::to("nothing").plain();
    /// # let _ = layer;
    /// ```
    pub fn to(value: T) -> Self {
        Self::new(Value(value))
    }
}

impl<F> FallbackLayer<With<F>> {
    /// Calls `act` with the outcome of the call. Its future returns a `Result` whose error is any
    /// error.
    ///
    /// ```
    /// use buttress::{FallbackLayer, PlainExt, outcome::{Ignored, Outcome}};
    /// use std::convert::Infallible;
    ///
    /// let layer = FallbackLayer::with(async |outcome| {
    ///     let is_rejected = outcome == Outcome::Ignored(Ignored::LocalReject);
    ///     Ok::<_, Infallible>(if is_rejected { "try later" } else { "sorry" })
    /// })
    /// .plain();
    /// # let _ = layer;
    /// ```
    pub fn with<Fut: Future>(act: F) -> Self
    where
        F: Fn(Outcome) -> Fut,
    {
        Self::new(With(act))
    }
}

impl<N, F> FallbackLayer<Noted<N, F>> {
    /// Calls `act` with a note of the request, which `note` takes from each request, and with the
    /// outcome.
    ///
    /// `note` is called before every call: keep what is cheap to take.
    ///
    /// ```
    /// use buttress::{FallbackLayer, PlainExt};
    /// use std::convert::Infallible;
    ///
    /// let layer = FallbackLayer::with_note(
    ///     |request: &(u32, String)| request.0,
    ///     async |article, _| Ok::<_, Infallible>(format!("article {article}")),
    /// )
    /// .plain();
    /// # let _ = layer;
    /// ```
    pub fn with_note<Req, Note, Fut: Future>(note: N, act: F) -> Self
    where
        N: Fn(&Req) -> Note,
        F: Fn(Note, Outcome) -> Fut,
    {
        Self::new(Noted { note, act })
    }
}

impl<S> FallbackLayer<Alternate<S>> {
    /// Sends the request to `alternate`, which is cloned for it. Needs an ending for clients, or
    /// `.plain()` and a request that is `Clone`.
    ///
    /// The request is kept as [retry](crate::retry) keeps it, and marked as a repeated one. It is
    /// not sent to `alternate` if the first service may have processed it and it is not idempotent,
    /// unless the alternate is [read-only](Self::read_only), nor if too much of its body was read.
    /// A response of the alternate that its ending takes for a failure is none: the original one is
    /// returned.
    ///
    /// ```
    /// use buttress::{Error, FallbackLayer, PlainExt};
    /// use std::io;
    /// use tower::{Layer, ServiceExt, service_fn};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let replica = service_fn(async |key: u32| Ok::<_, Error>(format!("{key} from the replica")));
    /// let primary = service_fn(async |_: u32| Err(Error::from_inner(io::Error::other("down"))));
    /// let service = FallbackLayer::service(replica).plain().layer(primary);
    /// assert_eq!(service.oneshot(7).await.unwrap(), "7 from the replica");
    /// # }
    /// ```
    pub fn service(alternate: S) -> Self {
        Self::new(Alternate::new(alternate))
    }
}

impl<S, E> FallbackLayer<Alternate<S>, E> {
    /// Says that the alternate changes nothing, so that any request may be sent to it: also one
    /// that is not idempotent and that the first service may have processed.
    ///
    /// ```
    /// use buttress::FallbackLayer;
    /// # let replica = tower::service_fn(async |_: ()| Ok::<_, buttress::Error>(()));
    ///
    /// let layer = FallbackLayer::service(replica).read_only().named("replica");
    /// # let _ = layer;
    /// ```
    pub fn read_only(self) -> Self
    where
        S: Clone,
    {
        let action = Arc::new(self.shared.action.read_only());
        let (config, stats) = (self.shared.config.clone(), self.shared.stats.clone());
        Self { ends: self.ends, shared: share(action, config, stats) }
    }
}

impl<A> FallbackLayer<A> {
    fn new(action: A) -> Self {
        let config = Config {
            when: Arc::new(failed_or_rejected),
            running: Bulkhead::new(CONCURRENCY),
            timeout: Duration::MAX,
            label: Label::new(POLICY),
            name: None,
        };
        Self { ends: NoEnding, shared: share(Arc::new(action), config, Arc::default()) }
    }
}

impl<A, E> FallbackLayer<A, E> {
    /// Sets the name, which the marks of its responses, its rejections and its metrics carry.
    /// Default: none; the header `x-fallback` then has the value `fallback`.
    ///
    /// ```
    /// # use buttress::FallbackLayer;
    /// let layer = FallbackLayer::to("nothing").named("no-recommendations");
    /// # let _ = layer;
    /// ```
    pub fn named(self, name: impl Into<Name>) -> Self {
        let name = name.into();
        self.configure(|config| {
            config.label = Label::named(POLICY, name.clone());
            config.name = Some(name);
        })
    }

    /// Sets after which outcomes the fallback is used. Default: failures, and rejections by layers
    /// inside ([`Ignored::LocalReject`]). Not called for successes.
    ///
    /// ```
    /// use buttress::{FallbackLayer, outcome::{Ignored, Outcome}};
    ///
    /// let only_when_rejected = FallbackLayer::to("nothing")
    ///     .when(|outcome| matches!(outcome, Outcome::Ignored(Ignored::LocalReject)));
    /// # let _ = only_when_rejected;
    /// ```
    pub fn when(self, when: impl Fn(&Outcome) -> bool + Send + Sync + 'static) -> Self {
        self.configure(|config| config.when = Arc::new(when))
    }

    /// Sets how many fallbacks of this layer may run at a time; others are rejected. Default 10. 0
    /// rejects all of them. With HTTP a fallback runs until the head of its response.
    ///
    /// ```
    /// # use buttress::FallbackLayer;
    /// # let replica = tower::service_fn(async |_: ()| Ok::<_, buttress::Error>(()));
    /// let layer = FallbackLayer::service(replica).concurrency(100);
    /// # let _ = layer;
    /// ```
    pub fn concurrency(self, limit: usize) -> Self {
        self.configure(|config| config.running = Bulkhead::new(limit))
    }

    /// Sets how long a fallback may take. Default: until the deadline of the call that is being
    /// served, which also bounds a longer timeout.
    ///
    /// ```
    /// # use buttress::FallbackLayer;
    /// # let replica = tower::service_fn(async |_: ()| Ok::<_, buttress::Error>(()));
    /// let layer = FallbackLayer::service(replica).timeout(std::time::Duration::from_millis(200));
    /// # let _ = layer;
    /// ```
    pub fn timeout(self, timeout: Duration) -> Self {
        self.configure(|config| config.timeout = timeout)
    }

    /// Replaces the ending by the result of `map`.
    pub fn map_ending<Next>(self, map: impl FnOnce(E) -> Next) -> FallbackLayer<A, Next> {
        FallbackLayer { ends: map(self.ends), shared: self.shared }
    }

    /// Returns the counters of the layer. All services of the layer share them, also those made
    /// after further settings.
    pub fn stats(&self) -> FallbackStats {
        FallbackStats { counts: self.shared.stats.clone(), name: self.shared.config.name.clone() }
    }

    fn configure(self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.shared.config.clone();
        change(&mut config);
        let (action, stats) = (self.shared.action.clone(), self.shared.stats.clone());
        Self { ends: self.ends, shared: share(action, config, stats) }
    }
}

fn share<A>(action: Arc<A>, config: Config, stats: Arc<Stats>) -> Sharded<Shared<A>> {
    Sharded::new(shards(), Shared { action, config, stats })
}

impl<A, E> Ending for FallbackLayer<A, E> {
    type Now = E;
    type With<Next> = FallbackLayer<A, Next>;

    fn end<Next>(self, ends: Next) -> FallbackLayer<A, Next> {
        FallbackLayer { ends, shared: self.shared }
    }
}

/// Counters of a [`FallbackLayer`], from when it was made.
///
/// ```
/// use buttress::FallbackLayer;
///
/// let stats = FallbackLayer::to("nothing").named("nothing").stats();
/// assert_eq!((stats.used(), stats.failed(), stats.rejected(), stats.unrepeatable()), (0, 0, 0, 0));
/// ```
#[derive(Clone, Debug)]
pub struct FallbackStats {
    counts: Arc<Stats>,
    name: Option<Name>,
}

impl FallbackStats {
    /// Returns the number of calls that the fallback answered.
    pub fn used(&self) -> u64 {
        self.counts.used.sum()
    }

    /// Returns the number of fallbacks that failed or took too long.
    pub fn failed(&self) -> u64 {
        self.counts.failed.sum()
    }

    /// Returns the number of calls whose fallback did not start: too many were running, or the
    /// deadline had passed.
    pub fn rejected(&self) -> u64 {
        self.counts.rejected.sum()
    }

    /// Returns the number of calls whose request could not be sent to the alternate service.
    pub fn unrepeatable(&self) -> u64 {
        self.counts.unrepeatable.sum()
    }
}

const USED: Metric = Metric::counter("resilience.fallback.used", "calls", "Calls that a fallback answered");
const FAILED: Metric =
    Metric::counter("resilience.fallback.failed", "calls", "Calls whose fallback failed or took too long");
const REJECTED: Metric = Metric::counter(
    "resilience.fallback.rejected",
    "calls",
    "Calls whose fallback was not started, because of its limit or the deadline",
);
const UNREPEATABLE: Metric = Metric::counter(
    "resilience.fallback.unrepeatable",
    "calls",
    "Calls whose request could not be sent to the alternate service",
);

impl Report for FallbackStats {
    fn metrics() -> Vec<Metric> {
        vec![USED, FAILED, REJECTED, UNREPEATABLE]
    }

    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn report(&self, sink: &mut dyn Sink) {
        sink.counter(&USED, self.used());
        sink.counter(&FAILED, self.failed());
        sink.counter(&REJECTED, self.rejected());
        sink.counter(&UNREPEATABLE, self.unrepeatable());
    }
}
