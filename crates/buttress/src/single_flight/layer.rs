use crate::{
    ending::{Ending, NoEnding, ShareLimits},
    shell::opaque_debug,
};
use buttress_core::{
    Label, Name, Rejection,
    report::{Metric, Report, Sink},
    shard::{Counter, Sharded, shards},
    single_flight::Flights,
};
use std::{hash::Hash, sync::Arc, time::Duration};

const POLICY: &str = "single flight";

/// Single flight as a layer. It implements [`Layer`](tower_layer::Layer) once it has an
/// [ending](crate::ending). `By` reads the keys of requests.
///
/// The inner service must be `Clone + Send + 'static`, and its futures `Send + 'static`: a call is
/// polled by several tasks. All services of a layer share their calls.
///
/// The [module](super) has examples.
#[derive(Clone, Debug)]
pub struct SingleFlightLayer<By, E = NoEnding> {
    pub(super) by: By,
    pub(super) ends: E,
    pub(super) shared: Sharded<Shared>,
}

/// State that the services of a layer share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) flights: Flights,
    pub(super) stats: Arc<Stats>,
}

#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) max_waiters: usize,
    pub(super) limits: ShareLimits,
    name: Option<Name>,
}

#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) made: Counter,
    pub(super) joined: Counter,
    pub(super) unshared: Counter,
    pub(super) rejected: Counter,
}

/// Reads the key of a request. `None` makes a call that is not shared.
///
/// [`Each`] and [`Filtered`] are implementations by functions, and `buttress_http::HttpKey` is the
/// one for HTTP.
///
/// ```
/// use buttress::{PlainExt, SingleFlightLayer, single_flight::KeyFrom};
///
/// #[derive(Clone)]
/// struct ByRow {
///     shard: u32,
/// }
///
/// impl KeyFrom<u64> for ByRow {
///     type Key = (u32, u64);
///
///     fn key(&self, row: &u64) -> Option<(u32, u64)> {
///         Some((self.shard, *row))
///     }
/// }
///
/// let layer = SingleFlightLayer::with_key(ByRow { shard: 3 }).plain();
/// # let _ = layer;
/// ```
pub trait KeyFrom<Req> {
    /// The key.
    type Key: Eq + Hash + Send + Sync + 'static;

    /// Returns the key of `request`.
    fn key(&self, request: &Req) -> Option<Self::Key>;
}

/// Reads the key of every request with a function. Made by [`SingleFlightLayer::new`].
#[derive(Clone, Copy)]
pub struct Each<F>(F);

/// Reads the keys of some requests with a function. Made by [`SingleFlightLayer::filtered`].
#[derive(Clone, Copy)]
pub struct Filtered<F>(F);

// Closures have no `Debug`.
opaque_debug!(Each<F>);
opaque_debug!(Filtered<F>);

impl<Req, K: Eq + Hash + Send + Sync + 'static, F: Fn(&Req) -> K> KeyFrom<Req> for Each<F> {
    type Key = K;

    #[inline]
    fn key(&self, request: &Req) -> Option<K> {
        Some((self.0)(request))
    }
}

impl<Req, K: Eq + Hash + Send + Sync + 'static, F: Fn(&Req) -> Option<K>> KeyFrom<Req> for Filtered<F> {
    type Key = K;

    #[inline]
    fn key(&self, request: &Req) -> Option<K> {
        (self.0)(request)
    }
}

impl<F> SingleFlightLayer<Each<F>> {
    /// Shares the calls of requests for which `key` returns equal keys.
    ///
    /// The key must have everything that the result depends on.
    ///
    /// ```
    /// use buttress::{PlainExt, SingleFlightLayer};
    ///
    /// struct Lookup {
    ///     tenant: u32,
    ///     id: u64,
    /// }
    ///
    /// let layer = SingleFlightLayer::new(|lookup: &Lookup| (lookup.tenant, lookup.id)).plain();
    /// # let _ = layer;
    /// ```
    pub fn new<Req, K>(key: F) -> Self
    where
        F: Fn(&Req) -> K,
    {
        Self::with_key(Each(key))
    }
}

impl<F> SingleFlightLayer<Filtered<F>> {
    /// Shares the calls of requests for which `key` returns equal keys, and not those for which it
    /// returns `None`.
    ///
    /// ```
    /// use buttress::{PlainExt, SingleFlightLayer};
    ///
    /// let layer = SingleFlightLayer::filtered(|sql: &String| sql.starts_with("SELECT").then(|| sql.clone())).plain();
    /// # let _ = layer;
    /// ```
    pub fn filtered<Req, K>(key: F) -> Self
    where
        F: Fn(&Req) -> Option<K>,
    {
        Self::with_key(Filtered(key))
    }
}

impl<By> SingleFlightLayer<By> {
    /// Shares the calls of requests for which `by` returns equal keys. See [`KeyFrom`].
    pub fn with_key(by: By) -> Self {
        let config = Config { max_waiters: 10_000, limits: ShareLimits::default(), name: None };
        Self { by, ends: NoEnding, shared: share(config, Flights::new(), Arc::default()) }
    }
}

impl<By, E> SingleFlightLayer<By, E> {
    /// Sets the name in rejections and metrics. Default: none.
    pub fn named(self, name: impl Into<Name>) -> Self {
        let name = name.into();
        self.configure(|config| config.name = Some(name))
    }

    /// Sets how many callers may wait for one call besides the first. More are rejected with
    /// [`TOO_MANY_WAITERS`](super::TOO_MANY_WAITERS). Default: 10,000.
    pub fn max_waiters(self, waiters: usize) -> Self {
        self.configure(|config| config.max_waiters = waiters)
    }

    /// Sets the maximum length of a body that is shared, in bytes. A response with a longer one
    /// goes to the first caller, and the others make calls of their own. For HTTP endings. Default:
    /// 1 MiB.
    pub fn max_body(self, bytes: u64) -> Self {
        self.configure(|config| config.limits.max_body = bytes)
    }

    /// Sets the maximum time from the head of a response to the end of its body. A response that
    /// takes longer goes to the first caller, as it may be a stream. For HTTP endings. Default:
    /// 500 ms.
    pub fn max_body_wait(self, time: Duration) -> Self {
        self.configure(|config| config.limits.max_wait = time)
    }

    /// Returns the counters of the layer. All services of the layer share them, also those made
    /// after further settings.
    pub fn stats(&self) -> SingleFlightStats {
        SingleFlightStats { counts: self.shared.stats.clone(), name: self.shared.config.name.clone() }
    }

    fn configure(self, change: impl FnOnce(&mut Config)) -> Self {
        let Shared { config, flights, stats } = &*self.shared;
        let mut config = config.clone();
        change(&mut config);
        Self { shared: share(config, flights.clone(), stats.clone()), by: self.by, ends: self.ends }
    }
}

fn share(config: Config, flights: Flights, stats: Arc<Stats>) -> Sharded<Shared> {
    Sharded::new(shards(), Shared { config, flights, stats })
}

impl Shared {
    #[cold]
    pub(super) fn reject(&self) -> Rejection {
        self.stats.rejected.add(1);
        let label = self.config.name.clone().map_or(Label::new(POLICY), |name| Label::named(POLICY, name));
        let rejection = Rejection::labelled(label, &super::TOO_MANY_WAITERS);
        crate::events::rejected(&rejection);
        rejection
    }
}

impl<By, E> Ending for SingleFlightLayer<By, E> {
    type Now = E;
    type With<Next> = SingleFlightLayer<By, Next>;

    fn end<Next>(self, ends: Next) -> SingleFlightLayer<By, Next> {
        SingleFlightLayer { by: self.by, ends, shared: self.shared }
    }
}

/// Counters of a [`SingleFlightLayer`], from when it was made.
#[derive(Clone, Debug)]
pub struct SingleFlightStats {
    counts: Arc<Stats>,
    name: Option<Name>,
}

impl SingleFlightStats {
    /// Returns the number of calls that others could join.
    pub fn made(&self) -> u64 {
        self.counts.made.sum()
    }

    /// Returns the number of callers that joined a call.
    pub fn joined(&self) -> u64 {
        self.counts.joined.sum()
    }

    /// Returns the number of calls that were made without regard to others: of requests without a
    /// key, and of callers that had joined a call whose result was not shared with them.
    pub fn unshared(&self) -> u64 {
        self.counts.unshared.sum()
    }

    /// Returns the number of callers that were rejected, because too many waited.
    pub fn rejected(&self) -> u64 {
        self.counts.rejected.sum()
    }
}

const MADE: Metric = Metric::counter("resilience.single_flight.made", "calls", "Calls that other callers could join");
const JOINED: Metric =
    Metric::counter("resilience.single_flight.joined", "calls", "Callers that joined a call under way");
const UNSHARED: Metric =
    Metric::counter("resilience.single_flight.unshared", "calls", "Calls made without regard to others");
const REJECTED: Metric =
    Metric::counter("resilience.single_flight.rejected", "calls", "Calls rejected because too many waited");

impl Report for SingleFlightStats {
    fn metrics() -> Vec<Metric> {
        vec![MADE, JOINED, UNSHARED, REJECTED]
    }

    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn report(&self, sink: &mut dyn Sink) {
        sink.counter(&MADE, self.made());
        sink.counter(&JOINED, self.joined());
        sink.counter(&UNSHARED, self.unshared());
        sink.counter(&REJECTED, self.rejected());
    }
}
