use super::store::Store;
use crate::HttpKey;
use buttress::{
    InvalidConfig,
    ending::ShareLimits,
    policy::{Clock, Label, Metric, Name, Report, Sink, TokioClock},
    single_flight::Flights,
};

use http::Uri;
use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::{runtime::Handle, task::JoinSet};

/// A cache of responses. A cheap handle; clones share the cache.
///
/// The [module](super) describes it.
///
/// ```
/// use buttress_http::cache::Cache;
/// use std::time::Duration;
///
/// let cache = Cache::builder("rows")
///     .max_bytes(16 << 20)
///     .default_ttl(Duration::from_secs(5))
///     .stale_if_error(Duration::from_secs(600))
///     .build()?;
/// assert_eq!((cache.stats().hits, cache.stats().bytes), (0, 0));
/// # Ok::<(), buttress_http::buttress::InvalidConfig>(())
/// ```
#[derive(Clone)]
pub struct Cache {
    pub(super) core: Arc<Core>,
    /// The revalidations in the background, which end with the last handle and service.
    tasks: Arc<Mutex<JoinSet<()>>>,
}

/// What the calls of a cache share.
pub(super) struct Core {
    pub(super) config: Config,
    pub(super) store: Store,
    pub(super) flights: Flights,
    pub(super) counts: Counts,
    /// The same moment on both clocks. Wall time is needed for `Date` and `Expires` only.
    started: (Instant, SystemTime),
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) hits: AtomicU64,
    pub(super) stale: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) revalidated: AtomicU64,
    pub(super) bypassed: AtomicU64,
}

#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) name: Name,
    pub(super) key: HttpKey,
    max_bytes: u64,
    pub(super) limits: ShareLimits,
    pub(super) max_waiters: usize,
    max_background: usize,
    pub(super) default_ttl: Duration,
    pub(super) negative_ttl: Duration,
    pub(super) stale_while_revalidate: Duration,
    pub(super) stale_if_error: Duration,
}

/// Builds a [`Cache`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder(Config);

/// The numbers of a [`Cache`] since it was made, and what it holds now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Responses that were served fresh.
    pub hits: u64,
    /// Responses that were served stale.
    pub stale: u64,
    /// Calls that had to be made, without those that revalidated a response.
    pub misses: u64,
    /// Responses that the backend confirmed with 304.
    pub revalidated: u64,
    /// Requests that the cache does not handle.
    pub bypassed: u64,
    /// Responses that were evicted for others, or did not fit.
    pub evictions: u64,
    /// Responses that are stored.
    pub entries: u64,
    /// The memory that they take, in bytes.
    pub bytes: u64,
}

impl Cache {
    /// Makes a cache with the defaults of the [builder](Self::builder).
    pub fn new(name: impl Into<Name>) -> Self {
        Self::builder(name).build().expect("the defaults are valid")
    }

    /// Begins to build a cache. The name is in metrics and in `Cache-Status`.
    pub fn builder(name: impl Into<Name>) -> Builder {
        Builder(Config {
            name: name.into(),
            key: HttpKey::new(),
            max_bytes: 64 << 20,
            limits: ShareLimits::default(),
            max_waiters: 10_000,
            max_background: 100,
            default_ttl: Duration::ZERO,
            negative_ttl: Duration::from_secs(1),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
        })
    }

    /// Forgets the responses of a URI, whatever their method and headers. Responses that are under
    /// way are not stored.
    ///
    /// Only the path and the query of the URI count: those of other hosts are forgotten as well.
    ///
    /// ```
    /// use buttress_http::cache::Cache;
    ///
    /// let cache = Cache::new("rows");
    /// cache.purge(&"/rows/7".parse()?);
    /// # Ok::<(), http::uri::InvalidUri>(())
    /// ```
    pub fn purge(&self, uri: &Uri) {
        self.core.store.purge(uri);
    }

    /// Forgets all responses.
    ///
    /// ```
    /// use buttress_http::cache::Cache;
    ///
    /// let cache = Cache::new("rows");
    /// cache.purge_all();
    /// assert_eq!(cache.stats().entries, 0);
    /// ```
    pub fn purge_all(&self) {
        self.core.store.purge_all();
    }

    /// Returns the numbers of the cache.
    pub fn stats(&self) -> Stats {
        let Core { counts, store, .. } = &*self.core;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Stats {
            hits: load(&counts.hits),
            stale: load(&counts.stale),
            misses: load(&counts.misses),
            revalidated: load(&counts.revalidated),
            bypassed: load(&counts.bypassed),
            evictions: store.evictions(),
            entries: store.len() as u64,
            bytes: store.bytes(),
        }
    }

    /// Runs a revalidation in the background, unless too many run.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        if tasks.len() < self.core.config.max_background {
            tasks.spawn_on(work, &runtime);
        }
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("name", &&*self.core.config.name).field("stats", &self.stats()).finish()
    }
}

impl Core {
    pub(super) fn now(&self) -> Instant {
        TokioClock.now()
    }

    /// Returns the wall time of a moment, by the clock that tests can pause.
    pub(super) fn wall_time(&self, at: Instant) -> SystemTime {
        let (instant, system) = self.started;
        system.checked_add(at.saturating_duration_since(instant)).unwrap_or(system)
    }

    pub(super) fn label(&self) -> Label {
        Label::named("cache", self.config.name.clone())
    }
}

impl Builder {
    /// Sets the key. A header by which responses vary and which is not in the key has one response
    /// stored at a time. Default: [`HttpKey::new`].
    pub fn key(self, key: HttpKey) -> Self {
        Self(Config { key, ..self.0 })
    }

    /// Sets the memory for responses, in bytes, with their headers and keys. At least 64 KiB.
    /// Default: 64 MiB.
    pub fn max_bytes(self, bytes: u64) -> Self {
        Self(Config { max_bytes: bytes, ..self.0 })
    }

    /// Sets the maximum length of a body that is stored, in bytes. At most an eighth of
    /// [`max_bytes`](Self::max_bytes). Default: 1 MiB.
    pub fn max_body(mut self, bytes: u64) -> Self {
        self.0.limits.max_body = bytes;
        self
    }

    /// Sets the maximum time from the head of a response to the end of its body. One that takes
    /// longer is not stored, and goes to its caller as it comes. Default: 500 ms.
    pub fn max_body_wait(mut self, time: Duration) -> Self {
        self.0.limits.max_wait = time;
        self
    }

    /// Sets how many callers may wait for one call besides the first. More are rejected. Default:
    /// 10,000.
    pub fn max_waiters(self, waiters: usize) -> Self {
        Self(Config { max_waiters: waiters, ..self.0 })
    }

    /// Sets how many revalidations may run in the background. A stale response is served without
    /// one above it. Default: 100.
    pub fn max_background(self, tasks: usize) -> Self {
        Self(Config { max_background: tasks, ..self.0 })
    }

    /// Sets how long a response is fresh whose origin says nothing, with a status for which RFC
    /// 9110 allows that (section 15.1). Default: zero.
    pub fn default_ttl(self, time: Duration) -> Self {
        Self(Config { default_ttl: time, ..self.0 })
    }

    /// Sets the same for errors: 404, 405, 410, 414 and 501. Default: 1 s.
    pub fn negative_ttl(self, time: Duration) -> Self {
        Self(Config { negative_ttl: time, ..self.0 })
    }

    /// Sets how long a stale response is served while it is revalidated in the background, where
    /// the origin does not say (RFC 5861, section 3). Default: zero.
    pub fn stale_while_revalidate(self, time: Duration) -> Self {
        Self(Config { stale_while_revalidate: time, ..self.0 })
    }

    /// Sets how long a stale response is served when the call fails, where the origin does not say
    /// (RFC 5861, section 4): with an error, with a rejection such as that of an open circuit, or
    /// with 500, 502, 503 or 504. Default: zero.
    pub fn stale_if_error(self, time: Duration) -> Self {
        Self(Config { stale_if_error: time, ..self.0 })
    }

    /// Builds the cache.
    ///
    /// # Errors
    /// If a setting is out of its range.
    ///
    /// ```
    /// use buttress_http::cache::Cache;
    ///
    /// let error = Cache::builder("rows").max_bytes(1 << 20).build().unwrap_err();
    /// assert_eq!(error.to_string(), "invalid configuration: `max_body` must be at most an eighth of `max_bytes`");
    /// ```
    pub fn build(self) -> Result<Cache, InvalidConfig> {
        let Self(config) = self;
        if config.max_bytes < 64 << 10 {
            return Err(InvalidConfig::new("max_bytes", "must be at least 64 KiB"));
        }
        if config.limits.max_body > config.max_bytes / 8 {
            return Err(InvalidConfig::new("max_body", "must be at most an eighth of `max_bytes`"));
        }
        #[expect(clippy::disallowed_methods, reason = "the wall time at which `Date` and `Expires` are measured")]
        let wall_time = SystemTime::now();
        let core = Core {
            store: Store::new(config.max_bytes, config.limits.max_body),
            flights: Flights::new(),
            counts: Counts::default(),
            started: (TokioClock.now(), wall_time),
            config,
        };
        Ok(Cache { core: Arc::new(core), tasks: Arc::default() })
    }
}

const HITS: Metric = Metric::counter("resilience.cache.hits", "calls", "Responses served fresh");
const STALE: Metric = Metric::counter("resilience.cache.stale", "calls", "Responses served stale");
const MISSES: Metric = Metric::counter("resilience.cache.misses", "calls", "Calls that had to be made");
const REVALIDATED: Metric =
    Metric::counter("resilience.cache.revalidated", "calls", "Stored responses that the backend confirmed");
const BYPASSED: Metric =
    Metric::counter("resilience.cache.bypassed", "calls", "Requests that the cache does not handle");
const EVICTIONS: Metric =
    Metric::counter("resilience.cache.evictions", "responses", "Responses evicted for others, or too large");
const ENTRIES: Metric = Metric::gauge("resilience.cache.entries", "responses", "Stored responses");
const BYTES: Metric = Metric::gauge("resilience.cache.size", "bytes", "Memory of the stored responses");

impl Report for Cache {
    fn metrics() -> Vec<Metric> {
        vec![HITS, STALE, MISSES, REVALIDATED, BYPASSED, EVICTIONS, ENTRIES, BYTES]
    }

    fn name(&self) -> Option<&str> {
        Some(&self.core.config.name)
    }

    fn report(&self, sink: &mut dyn Sink) {
        let stats = self.stats();
        sink.counter(&HITS, stats.hits);
        sink.counter(&STALE, stats.stale);
        sink.counter(&MISSES, stats.misses);
        sink.counter(&REVALIDATED, stats.revalidated);
        sink.counter(&BYPASSED, stats.bypassed);
        sink.counter(&EVICTIONS, stats.evictions);
        sink.gauge(&ENTRIES, stats.entries as f64);
        sink.gauge(&BYTES, stats.bytes as f64);
    }
}
