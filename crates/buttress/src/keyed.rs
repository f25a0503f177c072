//! One policy for each key: per host, per route, per tenant.
//!
//! ```
//! use buttress::{CircuitBreaker, gate::GateLayer, keyed::Keyed};
//!
//! let per_tenant = Keyed::builder(
//!     |request: &(u32, String)| request.0,
//!     |_: &u32| CircuitBreaker::new("tenant"),
//! );
//! let layer = GateLayer::with_policy(per_tenant.max_keys(10_000).build()?);
//! # let _ = layer;
//! # Ok::<(), buttress::InvalidConfig>(())
//! ```
//!
//! Any [policy](Policy) that implements [`Idle`] and [`Report`] can be keyed. The type of a keyed
//! policy can be named: the function that makes policies is boxed, and the function that reads keys
//! can be a function pointer, a [`BoxKey`], or a type that implements [`KeyOf`].
//!
//! ```
//! use buttress::{Bulkhead, keyed::{BoxKey, Keyed}};
//!
//! struct Request {
//!     tenant: u32,
//! }
//!
//! struct App {
//!     tenants: Keyed<u32, Bulkhead, fn(&Request) -> u32>,
//!     shards: Keyed<u32, Bulkhead, BoxKey<Request, u32>>,
//! }
//!
//! let shards = 16;
//! let app = App {
//!     tenants: Keyed::new(|request| request.tenant, |_| Bulkhead::new(10)),
//!     shards: Keyed::new(Box::new(move |request| request.tenant % shards), |_| Bulkhead::new(100)),
//! };
//! # let _ = (app.tenants, app.shards);
//! ```
//!
//! Circuit breakers, bulkheads and rate limits can be keyed. Timeouts, retries and the queue of a
//! bulkhead are not policies.
//!
//! # Memory
//!
//! At most `max_keys` policies are kept. If a new key has no place, an [idle](Idle) policy that was
//! not used recently is evicted, by the CLOCK algorithm (second chance). It examines at most 16
//! candidates, so that a new key costs no more with many keys. A policy that is not idle, such as
//! an open or disabled circuit or a policy with calls in flight, is not evicted. If no candidate is
//! idle, the call is admitted by a new policy that is not kept, and is counted as
//! [untracked](Stats::untracked).
//!
//! Policies are made [compact]. A key with a closed circuit takes about 1 kB, and a test keeps it
//! below 1.5 kB. The memory of other policies is among the rows of `cargo xtask bench`.
//!
//! Keys are not names. If metrics use the names of policies, give these names a bounded number of
//! values. The metrics of a keyed policy are sums over its keys.
//!
//! # Cost
//!
//! A lookup of a key that has a policy hashes the key. It takes no lock and no reference count. A
//! new key takes a lock for its place. Making policies, checking
//! whether they are idle, and calling listeners happens outside of locks, so that all of these may
//! use the keyed policy. The only exception: the function that makes the policy of a key must not
//! use that key.
//!
//! A call can look up a policy while it is evicted. That policy still admits the call. It was idle
//! then, and either unused since the last round of evictions or no more recently used than its
//! 15 neighbours.
//!
//! # Differences
//!
//! * `tower` has no keyed layers, and the circuit breaker, bulkhead, retry, time limiter and rate
//!   limiter of `tower-resilience` (0.14.0) are not keyed.
//! * `seatbelt` (0.11.0) has a circuit for each `breaker_id`. It keeps them all, because its IDs
//!   are meant to be few, and looks them up under a read lock.
//! * `governor`'s keyed rate limiter keeps every key until `retain_recent` is called.

use buttress_core::{
    Idle, InvalidConfig, Name, Policy, Rejection, Schedule, Scheduled,
    rate_limit::{Metered, Usage},
    report::{LabelValues, Metric, Report, Sink, Value},
    shard::{Counter, compact},
};
use std::{
    collections::VecDeque,
    fmt,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Number of policies to examine for one that can be evicted. If half of the policies are idle, one
/// search in 65,000 (2^16) finds none.
const CANDIDATES: usize = 16;

const DEFAULT_MAX_KEYS: usize = 1000;

/// Reads the key of a request. Implemented by functions; implement it for a type to name the type
/// of a [`Keyed`] policy.
///
/// ```
/// use buttress::{Bulkhead, keyed::{Keyed, KeyOf}};
///
/// #[derive(Debug)]
/// struct PerLength;
///
/// impl KeyOf<str, usize> for PerLength {
///     fn key_of(&self, request: &str) -> usize {
///         request.len()
///     }
/// }
///
/// let keyed: Keyed<usize, Bulkhead, PerLength> = Keyed::new(PerLength, |_| Bulkhead::new(1));
/// let _permit = buttress::policy::Policy::admit(&keyed, "four").unwrap();
/// assert!(keyed.get(&4).is_some());
/// ```
pub trait KeyOf<Req: ?Sized, K> {
    /// Returns the key of `request`.
    fn key_of(&self, request: &Req) -> K;
}

impl<Req: ?Sized, K, F: Fn(&Req) -> K> KeyOf<Req, K> for F {
    #[inline]
    fn key_of(&self, request: &Req) -> K {
        self(request)
    }
}

/// A boxed function that reads keys, for closures that capture.
pub type BoxKey<Req, K> = Box<dyn Fn(&Req) -> K + Send + Sync>;

/// Counters of a [`Keyed`] policy.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Number of keys that have a policy.
    pub keys: usize,
    /// Number of keys whose policy was evicted.
    pub evicted: u64,
    /// Number of calls that were admitted by a policy that was not kept, because no policy could be
    /// evicted.
    pub untracked: u64,
}

/// One policy for each key. A cheap handle; clones share the policies.
///
/// The [module](self) describes memory and cost.
///
/// ```
/// use buttress::{Bulkhead, keyed::Keyed, policy::Policy};
///
/// let tenants = Keyed::new(|request: &(u32, String)| request.0, |_: &u32| Bulkhead::new(1));
/// let first = (7, "first".to_owned());
/// let _permit = tenants.admit(&first).unwrap();
/// assert!(tenants.admit(&(7, "second".to_owned())).is_err());
/// assert!(tenants.admit(&(8, "third".to_owned())).is_ok());
/// ```
pub struct Keyed<K, Pol, KeyFn>(Arc<Store<K, Pol, KeyFn>>);

/// Makes the policy of a key.
type MakePolicy<K, Pol> = Box<dyn Fn(&K) -> Pol + Send + Sync>;

struct Store<K, Pol, KeyFn> {
    name: Option<Name>,
    key: KeyFn,
    make: MakePolicy<K, Pol>,
    max_keys: usize,
    entries: papaya::HashMap<K, Entry<Pol>>,
    ring: Mutex<Ring<K>>,
    evicted: Counter,
    /// Counters of evicted policies, so that sums do not fall.
    evicted_counts: Mutex<Sums>,
    /// The highest reported sums.
    reported_counts: Mutex<Sums>,
    untracked: Counter,
}

struct Entry<Pol> {
    policy: OnceLock<Pol>,
    /// Whether the key was looked up since the ring last passed it. False for a new key, so that a
    /// flood of keys that come once does not evict those that come again.
    used: AtomicBool,
}

impl<Pol> Default for Entry<Pol> {
    fn default() -> Self {
        Self { policy: OnceLock::new(), used: AtomicBool::new(false) }
    }
}

/// Queue of keys in the order in which they are examined for eviction. Each key is in it once, or
/// in one [`Candidate`].
struct Ring<K> {
    keys: VecDeque<K>,
    /// Number of places in use: keys in the ring, candidates, and keys that are being added.
    taken: usize,
}

/// A key that was taken from the ring to be examined. Dropping it adds it to the end of the ring.
struct Candidate<'a, K> {
    ring: &'a Mutex<Ring<K>>,
    key: Option<K>,
}

impl<K> Candidate<'_, K> {
    fn into_key(mut self) -> Option<K> {
        self.key.take()
    }
}

impl<K> Drop for Candidate<'_, K> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            lock(self.ring).keys.push_back(key);
        }
    }
}

/// A place that was taken and has no key yet. Dropping it frees the place, also if code of a user
/// panics in between.
struct Place<'a, K>(&'a Mutex<Ring<K>>);

impl<K> Place<'_, K> {
    /// Gives the place to `key`.
    fn fill(self, key: K) {
        lock(self.0).keys.push_back(key);
        std::mem::forget(self);
    }
}

impl<K> Drop for Place<'_, K> {
    fn drop(&mut self) {
        lock(self.0).taken -= 1;
    }
}

enum Verdict {
    /// Idle, and not used recently.
    Evict,
    /// Idle, but used recently, or not made yet. Evicted if no candidate is better.
    LastResort,
    Keep,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Hash + Eq, Pol, KeyFn> Keyed<K, Pol, KeyFn> {
    /// Creates a keyed policy for at most 1,000 keys. `key` reads the key of a request, `make`
    /// makes the policy of a new key.
    ///
    /// ```
    /// use buttress::{CircuitBreaker, keyed::Keyed};
    ///
    /// let hosts = Keyed::new(|url: &(String, String)| url.0.clone(), |_: &String| CircuitBreaker::new("host"));
    /// assert!(hosts.is_empty());
    /// ```
    pub fn new(key: KeyFn, make: impl Fn(&K) -> Pol + Send + Sync + 'static) -> Self {
        Self(Store::new(None, key, Box::new(make), DEFAULT_MAX_KEYS))
    }

    /// Starts from the defaults: no name, at most 1,000 keys.
    ///
    /// ```
    /// use buttress::{Bulkhead, keyed::Keyed};
    ///
    /// let tenants = Keyed::builder(|tenant: &u32| *tenant, |_: &u32| Bulkhead::new(10))
    ///     .name("tenants")
    ///     .max_keys(10_000)
    ///     .build()?;
    /// # let _ = tenants;
    /// # Ok::<(), buttress::InvalidConfig>(())
    /// ```
    pub fn builder(key: KeyFn, make: impl Fn(&K) -> Pol + Send + Sync + 'static) -> Builder<K, Pol, KeyFn> {
        Builder { name: None, key, make: Box::new(make), max_keys: DEFAULT_MAX_KEYS }
    }

    /// Returns the policy of `key`, if it has one.
    ///
    /// ```
    /// use buttress::{CircuitBreaker, keyed::Keyed, policy::Policy};
    ///
    /// let hosts = Keyed::new(|host: &u32| *host, |_: &u32| CircuitBreaker::new("host"));
    /// drop(hosts.admit(&7));
    /// hosts.get(&7).unwrap().force_open();
    /// assert!(hosts.admit(&7).is_err());
    /// ```
    pub fn get(&self, key: &K) -> Option<Pol>
    where
        Pol: Clone,
    {
        self.0.entries.pin().get(key)?.policy.get().cloned()
    }

    /// Returns every key with its policy.
    ///
    /// ```
    /// use buttress::{Bulkhead, keyed::Keyed, policy::Policy};
    ///
    /// let tenants = Keyed::new(|tenant: &u32| *tenant, |_: &u32| Bulkhead::new(10));
    /// let _permit = tenants.admit(&7);
    /// for (tenant, bulkhead) in tenants.policies() {
    ///     println!("tenant {tenant}: {} calls in flight", bulkhead.in_flight());
    /// }
    /// ```
    pub fn policies(&self) -> Vec<(K, Pol)>
    where
        K: Clone,
        Pol: Clone,
    {
        let mut all = Vec::new();
        self.for_each(|key, policy| all.push((key.clone(), policy.clone())));
        all
    }

    /// Calls `act` with every key and its policy.
    ///
    /// ```
    /// # use buttress::{Bulkhead, keyed::Keyed};
    /// let tenants = Keyed::new(|tenant: &u32| *tenant, |_: &u32| Bulkhead::new(10));
    /// tenants.for_each(|_tenant, bulkhead| bulkhead.set_limit(20));
    /// ```
    pub fn for_each(&self, mut act: impl FnMut(&K, &Pol)) {
        for (key, entry) in &self.0.entries.pin() {
            if let Some(policy) = entry.policy.get() {
                act(key, policy);
            }
        }
    }

    /// Returns the number of keys that have a policy.
    pub fn len(&self) -> usize {
        self.0.entries.len()
    }

    /// Returns whether no key has a policy.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of keys whose policy was evicted.
    ///
    /// ```
    /// # use buttress::{Bulkhead, keyed::Keyed, policy::Policy};
    /// let tenants = Keyed::builder(|tenant: &u32| *tenant, |_: &u32| Bulkhead::new(10)).max_keys(1).build()?;
    /// drop((tenants.admit(&1), tenants.admit(&1)));
    /// drop(tenants.admit(&2));
    /// assert_eq!((tenants.len(), tenants.evicted()), (1, 1));
    /// # Ok::<(), buttress::InvalidConfig>(())
    /// ```
    pub fn evicted(&self) -> u64 {
        self.0.evicted.sum()
    }

    /// Returns the number of calls that were admitted by a policy that was not kept, because no
    /// policy could be evicted.
    pub fn untracked(&self) -> u64 {
        self.0.untracked.sum()
    }

    /// Returns the counters.
    ///
    /// ```
    /// # use buttress::{Bulkhead, keyed::Keyed, policy::Policy};
    /// let tenants = Keyed::new(|tenant: &u32| *tenant, |_: &u32| Bulkhead::new(10));
    /// drop(tenants.admit(&7));
    /// assert_eq!(tenants.stats().keys, 1);
    /// ```
    pub fn stats(&self) -> Stats {
        Stats { keys: self.len(), evicted: self.evicted(), untracked: self.untracked() }
    }
}

impl<K: Hash + Eq, Pol, KeyFn> Store<K, Pol, KeyFn> {
    fn new(name: Option<Name>, key: KeyFn, make: MakePolicy<K, Pol>, max_keys: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            key,
            make,
            max_keys,
            entries: papaya::HashMap::new(),
            ring: Mutex::new(Ring { keys: VecDeque::new(), taken: 0 }),
            evicted: Counter::default(),
            evicted_counts: Mutex::default(),
            reported_counts: Mutex::default(),
            untracked: Counter::default(),
        })
    }
}

impl<K: Hash + Eq + Clone, Pol: Idle + Report, KeyFn> Store<K, Pol, KeyFn> {
    /// Calls `act` with the policy of `key`, which is made if the key is new.
    #[inline]
    fn with_policy<R>(&self, key: K, act: impl FnOnce(&Pol) -> R) -> R {
        let entries = self.entries.pin();
        if let Some(entry) = entries.get(&key) {
            // Test first: storing on every call would contend for the cache line of a busy key.
            if !entry.used.load(Ordering::Relaxed) {
                entry.used.store(true, Ordering::Relaxed);
            }
            return act(entry.policy.get_or_init(|| self.make(&key)));
        }
        self.with_new_policy(&key, act)
    }

    #[cold]
    fn with_new_policy<R>(&self, key: &K, act: impl FnOnce(&Pol) -> R) -> R {
        let entries = self.entries.pin();
        let Some(place) = self.take_place() else {
            self.untracked.add(1);
            return act(&self.make(key));
        };
        let entry = match entries.try_insert(key.clone(), Entry::default()) {
            Ok(entry) => {
                place.fill(key.clone());
                entry
            }
            // Another thread added the key in between, and the place is free again.
            Err(other) => {
                drop(place);
                other.current
            }
        };
        // Not under the lock. Other threads with the same key wait here.
        act(entry.policy.get_or_init(|| self.make(key)))
    }

    fn make(&self, key: &K) -> Pol {
        compact(|| (self.make)(key))
    }

    /// Takes a place for a new key. Evicts another key if all places are in use.
    fn take_place(&self) -> Option<Place<'_, K>> {
        {
            let mut ring = lock(&self.ring);
            if ring.taken < self.max_keys {
                ring.taken += 1;
                return Some(Place(&self.ring));
            }
        }
        let mut spare = None;
        for _ in 0..CANDIDATES {
            let Some(candidate) = self.next_candidate() else { break };
            match self.assess(&candidate) {
                Verdict::Evict => return self.evict(candidate),
                Verdict::LastResort if spare.is_none() => spare = Some(candidate),
                Verdict::LastResort | Verdict::Keep => {}
            }
        }
        spare.and_then(|candidate| self.evict(candidate))
    }

    fn next_candidate(&self) -> Option<Candidate<'_, K>> {
        let key = lock(&self.ring).keys.pop_front()?;
        Some(Candidate { ring: &self.ring, key: Some(key) })
    }

    fn assess(&self, candidate: &Candidate<'_, K>) -> Verdict {
        let entries = self.entries.pin();
        let Some(entry) = candidate.key.as_ref().and_then(|key| entries.get(key)) else { return Verdict::Evict };
        let used = entry.used.swap(false, Ordering::Relaxed);
        match entry.policy.get() {
            // The policy is being made, or making it panicked.
            None => Verdict::LastResort,
            Some(policy) if !policy.is_idle() => Verdict::Keep,
            Some(_) if used => Verdict::LastResort,
            Some(_) => Verdict::Evict,
        }
    }

    /// Removes a candidate with its policy, and returns its place.
    fn evict(&self, candidate: Candidate<'_, K>) -> Option<Place<'_, K>> {
        let key = candidate.into_key()?;
        let place = Place(&self.ring);
        let entries = self.entries.pin();
        if let Some(policy) = entries.remove(&key).and_then(|entry| entry.policy.get()) {
            let mut sums = Sums::default();
            policy.report(&mut sums);
            let mut counts = lock(&self.evicted_counts);
            sums.counters().for_each(|(metric, labels, value)| counts.value(&metric, labels, value));
        }
        self.evicted.add(1);
        Some(place)
    }
}

/// Without a request there is no key, and no policy to peek at: a keyed layer decides in `call`.
impl<Req: ?Sized, K, Pol, KeyFn> Policy<Req> for Keyed<K, Pol, KeyFn>
where
    K: Hash + Eq + Clone,
    Pol: Policy<Req> + Idle + Report,
    KeyFn: KeyOf<Req, K>,
{
    type Permit = Pol::Permit;

    #[inline]
    fn admit(&self, request: &Req) -> Result<Pol::Permit, Rejection> {
        self.0.with_policy(self.0.key.key_of(request), |policy| policy.admit(request))
    }

    /// The policy of the key takes it back, if it is still there.
    fn undo(&self, request: &Req, permit: Pol::Permit) {
        let entries = self.0.entries.pin();
        if let Some(policy) = entries.get(&self.0.key.key_of(request)).and_then(|entry| entry.policy.get()) {
            policy.undo(request, permit);
        }
    }
}

impl<Req: ?Sized, K, Pol, KeyFn> Schedule<Req> for Keyed<K, Pol, KeyFn>
where
    K: Hash + Eq + Clone,
    Pol: Schedule<Req> + Idle + Report,
    KeyFn: KeyOf<Req, K>,
{
    fn schedule(&self, request: &Req, max_wait: Duration) -> Result<Scheduled<Pol::Permit>, Rejection> {
        self.0.with_policy(self.0.key.key_of(request), |policy| policy.schedule(request, max_wait))
    }
}

/// Tells the usage of the key of the request.
impl<Req: ?Sized, K, Pol, KeyFn> Metered<Req> for Keyed<K, Pol, KeyFn>
where
    K: Hash + Eq + Clone,
    Pol: Metered<Req> + Idle + Report,
    KeyFn: KeyOf<Req, K>,
{
    fn usage(&self, request: &Req) -> Option<Usage> {
        self.0.entries.pin().get(&self.0.key.key_of(request))?.policy.get()?.usage(request)
    }
}

const KEYS: Metric = Metric::gauge("resilience.keyed.keys", "keys", "Keys that have a policy");
const EVICTED: Metric = Metric::counter("resilience.keyed.evicted", "keys", "Keys whose policy was evicted");
const UNTRACKED: Metric = Metric::counter(
    "resilience.keyed.untracked",
    "calls",
    "Calls whose key got no place, as no policy could be evicted",
);

/// Returns the metrics of a keyed policy, without those of the policies of its keys.
pub(crate) fn own_metrics() -> Vec<Metric> {
    vec![KEYS, EVICTED, UNTRACKED]
}

/// Reports its own metrics, and the sums over the policies of all keys.
impl<K: Hash + Eq, Pol: Report, KeyFn> Report for Keyed<K, Pol, KeyFn> {
    fn metrics() -> Vec<Metric> {
        [own_metrics(), Pol::metrics()].concat()
    }

    fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    /// Reads every policy, so its time grows with the number of keys.
    fn report(&self, sink: &mut dyn Sink) {
        sink.gauge(&KEYS, self.len() as f64);
        sink.counter(&EVICTED, self.evicted());
        sink.counter(&UNTRACKED, self.untracked());
        let mut sums = lock(&self.0.evicted_counts).clone();
        self.for_each(|_, policy| policy.report(&mut sums));
        // A policy that is evicted meanwhile may be missing both here and in the copy above.
        sums.raise(&mut lock(&self.0.reported_counts));
        for (metric, labels, value) in sums.into_values() {
            sink.value(&metric, labels, value);
        }
    }
}

/// Sums of the values of several policies.
#[derive(Clone, Debug, Default)]
struct Sums(Vec<(Metric, LabelValues, Value)>);

impl Sums {
    fn counters(self) -> impl Iterator<Item = (Metric, LabelValues, Value)> {
        self.into_values().filter(|(_, _, value)| matches!(value, Value::Counter(_)))
    }

    fn into_values(self) -> impl Iterator<Item = (Metric, LabelValues, Value)> {
        self.0.into_iter()
    }

    fn find(&mut self, metric: &Metric, labels: LabelValues) -> Option<&mut Value> {
        let known = self.0.iter_mut().find(|(known, its, _)| known.name == metric.name && *its == labels);
        known.map(|(_, _, value)| value)
    }

    /// Raises counters to those of `highest`, and `highest` to these.
    fn raise(&mut self, highest: &mut Self) {
        for (metric, labels, value) in self.clone().counters().chain(highest.clone().counters()) {
            for sums in [&mut *self, &mut *highest] {
                match (sums.find(&metric, labels), value) {
                    (Some(Value::Counter(sum)), Value::Counter(n)) => *sum = n.max(*sum),
                    (Some(_), _) => {}
                    (None, _) => sums.0.push((metric, labels, value)),
                }
            }
        }
    }
}

impl Sink for Sums {
    fn value(&mut self, metric: &Metric, labels: LabelValues, value: Value) {
        match self.find(metric, labels) {
            Some(sum) => sum.add(value),
            None => self.0.push((*metric, labels, value)),
        }
    }
}

impl<K, Pol, KeyFn> Clone for Keyed<K, Pol, KeyFn> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, Pol, KeyFn> fmt::Debug for Keyed<K, Pol, KeyFn> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed")
            .field("max_keys", &self.0.max_keys)
            .field("evicted", &self.0.evicted.sum())
            .field("untracked", &self.0.untracked.sum())
            .finish_non_exhaustive()
    }
}

/// Builds a [`Keyed`] policy.
#[must_use]
pub struct Builder<K, Pol, KeyFn> {
    name: Option<Name>,
    key: KeyFn,
    make: MakePolicy<K, Pol>,
    max_keys: usize,
}

impl<K: Hash + Eq, Pol, KeyFn> Builder<K, Pol, KeyFn> {
    /// Sets the name in metrics. Default: none.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the maximum number of keys that have a policy. At least 1. Default 1,000.
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = max_keys;
        self
    }

    /// Builds the policy.
    ///
    /// # Errors
    /// When `max_keys` is 0.
    ///
    /// ```
    /// # use buttress::{Bulkhead, keyed::Keyed};
    /// let tenants = Keyed::builder(|tenant: &u32| *tenant, |_: &u32| Bulkhead::new(10));
    /// assert_eq!(tenants.max_keys(0).build().unwrap_err().field(), "max_keys");
    /// ```
    pub fn build(self) -> Result<Keyed<K, Pol, KeyFn>, InvalidConfig> {
        if self.max_keys == 0 {
            return Err(InvalidConfig::new("max_keys", "must be at least 1"));
        }
        Ok(Keyed(Store::new(self.name, self.key, self.make, self.max_keys)))
    }
}

impl<K, Pol, KeyFn> fmt::Debug for Builder<K, Pol, KeyFn> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("max_keys", &self.max_keys).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
