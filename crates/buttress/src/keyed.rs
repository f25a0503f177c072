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
//! Any [policy](crate::Policy) that implements [`Idle`] can be keyed. Its type can be written down:
//! the function that makes policies is boxed, and the one that reads keys can be a function
//! pointer, a [`BoxKey`], or a type of your own that implements [`KeyOf`].
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
//! Circuits and bulkheads can be keyed. Timeouts, retries and the queue of a bulkhead are no
//! policies.
//!
//! # Memory
//!
//! At most `max_keys` policies are kept. When a new key comes and there is no room, an [idle](Idle)
//! policy that was not used lately is evicted (CLOCK, also called second chance): up to 16
//! candidates are looked at, so a new key costs the same with 100 keys as with 100,000. A policy
//! that protects something, such as an open circuit, or that has calls in flight, is not evicted.
//! If none of the candidates is idle, the call is admitted by a new policy that is not kept, and
//! [counted](Stats::untracked).
//!
//! Policies are made [compact]. A key with a closed circuit takes some 1.3 kB.
//!
//! Keys are not names: give policies a name with a bounded number of values if you make metrics of
//! names. The metrics of a keyed policy are [sums](Keyed::stats) over its keys.
//!
//! # Cost
//!
//! A lookup hashes the key and takes no lock and no reference count. Making a policy, deciding
//! whether one is idle, and everything that listeners do happens outside of locks, so all of them
//! may use the keyed policy, with one exception: the function that makes the policy of a key must
//! not ask for that key.
//!
//! A call that looks up a policy at the moment of its eviction is still admitted by it. To be
//! evicted it must have been idle then, and unused since the last round of evictions or as good as
//! its 15 neighbours.
//!
//! # Differences
//!
//! `tower` and `tower-resilience` have no keyed layers. `governor`'s keyed rate limiter keeps every
//! key until `retain_recent` is called.

use buttress_core::{
    Admit, Clock, InvalidConfig, Policy, Reason, Refused, Rejection,
    shard::{Counter, compact},
};
use std::{
    collections::VecDeque,
    fmt,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// How many policies are looked at to find one that can be evicted. Where half of the policies are
/// idle, one search in 65,000 finds none.
const CANDIDATES: usize = 16;

const DEFAULT_MAX_KEYS: usize = 1000;

/// Reads the key of a request. Implemented by functions, and by types that want a name.
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
/// # let _ = keyed;
/// ```
pub trait KeyOf<Req: ?Sized, K> {
    /// The key of `request`.
    fn key_of(&self, request: &Req) -> K;
}

impl<Req: ?Sized, K, F: Fn(&Req) -> K> KeyOf<Req, K> for F {
    #[inline]
    fn key_of(&self, request: &Req) -> K {
        self(request)
    }
}

/// A function that reads keys and captures something.
pub type BoxKey<Req, K> = Box<dyn Fn(&Req) -> K + Send + Sync>;

/// A policy that can be evicted when it is idle.
pub trait Idle {
    /// Whether a new policy would decide alike: it refuses no call, and has none in flight.
    fn is_idle(&self) -> bool;

    /// What it adds to [`Keyed::stats`]. Nothing by default.
    fn summary(&self) -> Summary {
        Summary::default()
    }
}

impl Idle for crate::CircuitBreaker {
    /// No call in flight, and closed, or open for no longer. An operator's states are kept.
    fn is_idle(&self) -> bool {
        Self::is_idle(self)
    }

    fn summary(&self) -> Summary {
        use crate::circuit_breaker::State;
        let snapshot = self.snapshot();
        Summary {
            in_flight: self.in_flight(),
            rejected: snapshot.rejected,
            open: usize::from(matches!(snapshot.state, State::Open | State::ForcedOpen)),
            half_open: usize::from(snapshot.state == State::HalfOpen),
        }
    }
}

impl Idle for crate::Bulkhead {
    /// No call in flight, and none in the queue.
    fn is_idle(&self) -> bool {
        self.in_flight() == 0 && self.waiting() == 0
    }

    fn summary(&self) -> Summary {
        Summary { in_flight: self.in_flight(), rejected: self.rejected(), ..Summary::default() }
    }
}

/// The numbers of one policy, or the sums over several.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Summary {
    /// Calls in flight.
    pub in_flight: usize,
    /// Calls rejected so far.
    pub rejected: u64,
    /// Circuits that are open, by themselves or by an operator.
    pub open: usize,
    /// Circuits that are half-open.
    pub half_open: usize,
}

/// The numbers of a [`Keyed`] policy.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Keys that have a policy.
    pub keys: usize,
    /// Keys whose policy was evicted so far.
    pub evicted: u64,
    /// Calls so far that were admitted by a policy of their own, because no policy could be
    /// evicted.
    pub untracked: u64,
    /// Sums over all policies. `rejected` includes those of evicted ones.
    pub sum: Summary,
}

/// A policy for each key of the requests. See the [module](self). A cheap handle; clones share the
/// policies.
pub struct Keyed<K, A, G>(Arc<Store<K, A, G>>);

struct Store<K, A, G> {
    key: G,
    make: Box<dyn Fn(&K) -> A + Send + Sync>,
    max_keys: usize,
    entries: papaya::HashMap<K, Entry<A>>,
    ring: Mutex<Ring<K>>,
    evicted: Counter,
    /// What evicted policies rejected, so that the sum does not fall.
    evicted_rejected: AtomicU64,
    untracked: Counter,
}

struct Entry<A> {
    policy: OnceLock<A>,
    /// Whether it was looked up since the ring came by. New entries start without, so that a flood
    /// of keys that come once does not push out those that come again.
    used: AtomicBool,
}

impl<A> Default for Entry<A> {
    fn default() -> Self {
        Self { policy: OnceLock::new(), used: AtomicBool::new(false) }
    }
}

/// The order in which keys are looked at for eviction. Each key is in it once, or in one
/// [`Candidate`].
struct Ring<K> {
    keys: VecDeque<K>,
    /// Places taken: keys in the ring, candidates, and keys that are about to be added.
    taken: usize,
}

/// A key that was taken off the ring to be looked at. Dropped, it goes to the end of the ring.
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

enum Verdict {
    /// Idle, and not used lately.
    Evict,
    /// Idle, but used lately.
    IfNoOther,
    Keep,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Hash + Eq, A, G> Keyed<K, A, G> {
    /// `key` reads the key of a request, `make` makes the policy of a new key. At most 1,000 keys.
    pub fn new(key: G, make: impl Fn(&K) -> A + Send + Sync + 'static) -> Self {
        Self(Store::new(key, Box::new(make), DEFAULT_MAX_KEYS))
    }

    /// The same, with settings.
    pub fn builder(key: G, make: impl Fn(&K) -> A + Send + Sync + 'static) -> Builder<K, A, G> {
        Builder { key, make: Box::new(make), max_keys: DEFAULT_MAX_KEYS }
    }

    /// The policy of `key`, if it has one.
    pub fn get(&self, key: &K) -> Option<A>
    where
        A: Clone,
    {
        self.0.entries.pin().get(key)?.policy.get().cloned()
    }

    /// Every key and its policy.
    pub fn policies(&self) -> Vec<(K, A)>
    where
        K: Clone,
        A: Clone,
    {
        let mut all = Vec::new();
        self.for_each(|key, policy| all.push((key.clone(), policy.clone())));
        all
    }

    /// Calls `act` with every key and its policy, for example to change a limit.
    pub fn for_each(&self, mut act: impl FnMut(&K, &A)) {
        for (key, entry) in &self.0.entries.pin() {
            if let Some(policy) = entry.policy.get() {
                act(key, policy);
            }
        }
    }

    /// How many keys have a policy.
    pub fn len(&self) -> usize {
        self.0.entries.len()
    }

    /// Whether no key has a policy.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys whose policy was evicted so far.
    pub fn evicted(&self) -> u64 {
        self.0.evicted.sum()
    }

    /// Calls so far that were admitted by a policy of their own, because no policy could be
    /// evicted.
    pub fn untracked(&self) -> u64 {
        self.0.untracked.sum()
    }

    /// Sums over all keys. Takes a look at each policy: some milliseconds for 100,000 keys.
    pub fn stats(&self) -> Stats
    where
        A: Idle,
    {
        let rejected = self.0.evicted_rejected.load(Ordering::Relaxed);
        let mut sum = Summary { rejected, ..Summary::default() };
        self.for_each(|_, policy| {
            let summary = policy.summary();
            sum.in_flight += summary.in_flight;
            sum.rejected += summary.rejected;
            sum.open += summary.open;
            sum.half_open += summary.half_open;
        });
        Stats { keys: self.len(), evicted: self.evicted(), untracked: self.untracked(), sum }
    }
}

impl<K: Hash + Eq, A, G> Store<K, A, G> {
    fn new(key: G, make: Box<dyn Fn(&K) -> A + Send + Sync>, max_keys: usize) -> Arc<Self> {
        Arc::new(Self {
            key,
            make,
            max_keys,
            entries: papaya::HashMap::new(),
            ring: Mutex::new(Ring { keys: VecDeque::new(), taken: 0 }),
            evicted: Counter::default(),
            evicted_rejected: AtomicU64::new(0),
            untracked: Counter::default(),
        })
    }
}

impl<K: Hash + Eq + Clone, A: Idle, G> Store<K, A, G> {
    /// Asks the policy of `key`, which is made if it is a new one.
    #[inline]
    fn ask<R>(&self, key: K, ask: impl FnOnce(&A) -> R) -> R {
        let entries = self.entries.pin();
        if let Some(entry) = entries.get(&key) {
            // A busy key costs no shared write.
            if !entry.used.load(Ordering::Relaxed) {
                entry.used.store(true, Ordering::Relaxed);
            }
            return ask(entry.policy.get_or_init(|| self.make(&key)));
        }
        self.ask_new(&key, ask)
    }

    #[cold]
    fn ask_new<R>(&self, key: &K, ask: impl FnOnce(&A) -> R) -> R {
        let entries = self.entries.pin();
        if !self.take_place() {
            self.untracked.add(1);
            return ask(&self.make(key));
        }
        let entry = match entries.try_insert(key.clone(), Entry::default()) {
            Ok(entry) => {
                lock(&self.ring).keys.push_back(key.clone());
                entry
            }
            Err(other) => {
                // Another thread was faster.
                lock(&self.ring).taken -= 1;
                other.current
            }
        };
        // Outside of locks. Other threads with the same key wait here.
        ask(entry.policy.get_or_init(|| self.make(key)))
    }

    fn make(&self, key: &K) -> A {
        compact(|| (self.make)(key))
    }

    /// Takes a place for a new key, by evicting another one where there is none.
    fn take_place(&self) -> bool {
        {
            let mut ring = lock(&self.ring);
            if ring.taken < self.max_keys {
                ring.taken += 1;
                return true;
            }
        }
        let mut spare = None;
        for _ in 0..CANDIDATES {
            let Some(candidate) = self.next_candidate() else { break };
            match self.judge(&candidate) {
                Verdict::Evict => return self.evict(candidate),
                Verdict::IfNoOther if spare.is_none() => spare = Some(candidate),
                Verdict::IfNoOther | Verdict::Keep => {}
            }
        }
        spare.is_some_and(|candidate| self.evict(candidate))
    }

    fn next_candidate(&self) -> Option<Candidate<'_, K>> {
        let key = lock(&self.ring).keys.pop_front()?;
        Some(Candidate { ring: &self.ring, key: Some(key) })
    }

    fn judge(&self, candidate: &Candidate<'_, K>) -> Verdict {
        let entries = self.entries.pin();
        let Some(entry) = candidate.key.as_ref().and_then(|key| entries.get(key)) else { return Verdict::Evict };
        let used = entry.used.swap(false, Ordering::Relaxed);
        match entry.policy.get() {
            // It is being made, or making it panicked.
            None => Verdict::IfNoOther,
            Some(policy) if !policy.is_idle() => Verdict::Keep,
            Some(_) if used => Verdict::IfNoOther,
            Some(_) => Verdict::Evict,
        }
    }

    /// Its place is the caller's now.
    fn evict(&self, candidate: Candidate<'_, K>) -> bool {
        let Some(key) = candidate.into_key() else { return false };
        let entries = self.entries.pin();
        if let Some(policy) = entries.remove(&key).and_then(|entry| entry.policy.get()) {
            self.evicted_rejected.fetch_add(policy.summary().rejected, Ordering::Relaxed);
        }
        self.evicted.add(1);
        true
    }
}

/// Without a request there is no key, and so no policy to ask: a keyed layer decides when it is
/// called, and cannot reserve in `poll_ready`.
impl<K, A: Policy, G> Policy for Keyed<K, A, G> {
    type Permit = A::Permit;

    const RESERVES: bool = false;

    fn reserve(&self, _: &impl Clock) -> Result<A::Permit, Rejection> {
        Err(Rejection::new("keyed policy", Reason::NotReady))
    }

    fn peek(&self, _: &impl Clock) -> Result<(), Refused> {
        Ok(())
    }
}

impl<Req: ?Sized, K, A, G> Admit<Req> for Keyed<K, A, G>
where
    K: Hash + Eq + Clone,
    A: Admit<Req> + Idle,
    G: KeyOf<Req, K>,
{
    #[inline]
    fn admit(&self, request: &Req, clock: &impl Clock) -> Result<A::Permit, Rejection> {
        self.0.ask(self.0.key.key_of(request), |policy| policy.admit(request, clock))
    }
}

impl<K, A, G> Clone for Keyed<K, A, G> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, A, G> fmt::Debug for Keyed<K, A, G> {
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
pub struct Builder<K, A, G> {
    key: G,
    make: Box<dyn Fn(&K) -> A + Send + Sync>,
    max_keys: usize,
}

impl<K: Hash + Eq, A, G> Builder<K, A, G> {
    /// How many keys have a policy at the most. At least 1. Default 1,000.
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = max_keys;
        self
    }

    /// # Errors
    /// When `max_keys` is 0.
    pub fn build(self) -> Result<Keyed<K, A, G>, InvalidConfig> {
        if self.max_keys == 0 {
            return Err(InvalidConfig::new("max_keys", "must be at least 1"));
        }
        Ok(Keyed(Store::new(self.key, self.make, self.max_keys)))
    }
}

impl<K, A, G> fmt::Debug for Builder<K, A, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("max_keys", &self.max_keys).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
