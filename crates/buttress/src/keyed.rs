//! One policy for each key: per host, per route, per tenant.
//!
//! ```
//! use buttress::{CircuitBreaker, gate::GateLayer, keyed::Keyed};
//!
//! let per_tenant = Keyed::new(
//!     |request: &(u32, String)| request.0,
//!     |tenant: &u32| CircuitBreaker::new(format!("tenant {tenant}")),
//! );
//! let layer = GateLayer::with_policy(per_tenant.max_keys(10_000));
//! # let _ = layer;
//! ```
//!
//! Any [policy](crate::Policy) that knows when it is [idle](Idle) can be keyed. Memory is bounded: at the maximum, a new key takes the
//! place of the one that was unused longest and is idle. A circuit that is not closed, or a policy with calls in flight, is never evicted. If every
//! place is held by such, calls of new keys are judged by a policy of their own that nobody remembers, and [counted](Keyed::unremembered).
//!
//! Keys are not names: give policies a name with a bounded number of values, or none, if you make metrics out of names.
//!
//! # Differences
//!
//! A lookup takes a read lock on one of 16 shards, which is the one lock on the path of an admitted call in this family. Making a policy takes that
//! shard's write lock, so it happens once for each key; the function that makes it must not use the keyed policy itself.

use buttress_core::{Admit, Clock, Policy, Reason, Refused, Rejection, shard::Counter};
use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

const SHARDS: usize = 16;

/// Knows when it can be forgotten without loss.
pub trait Idle {
    /// Whether it is as good as new, or at least holds nothing that protects anybody now.
    fn is_idle(&self) -> bool;
}

#[cfg(feature = "circuit-breaker")]
impl Idle for crate::CircuitBreaker {
    /// Closed, and no call in flight.
    fn is_idle(&self) -> bool {
        self.state() == crate::circuit_breaker::State::Closed && self.in_flight() == 0
    }
}

#[cfg(feature = "bulkhead")]
impl Idle for crate::Bulkhead {
    /// Empty.
    fn is_idle(&self) -> bool {
        self.in_flight() == 0 && self.waiting() == 0
    }
}

/// A policy for each key of the requests. See the [module](self). A cheap handle; clones share the policies.
pub struct Keyed<K, A, G, M> {
    key: G,
    store: Arc<Store<K, A, M>>,
}

struct Store<K, A, M> {
    make: M,
    max_keys: usize,
    hasher: RandomState,
    shards: [RwLock<HashMap<K, Entry<A>>>; SHARDS],
    clock: AtomicU64,
    evicted: Counter,
    unremembered: Counter,
}

struct Entry<A> {
    policy: A,
    used: AtomicU64,
}

impl<K: Hash + Eq, A, G, M: Fn(&K) -> A> Keyed<K, A, G, M> {
    /// `key` reads a request's key, `make` makes the policy of a new one. At most 1,000 keys, unless said otherwise.
    pub fn new(key: G, make: M) -> Self {
        Self { key, store: Store::new(make, 1000) }
    }

    /// How many keys are remembered at the most, rounded up to a multiple of 16. Forgets those that are remembered now.
    pub fn max_keys(self, max_keys: usize) -> Self
    where
        M: Clone,
    {
        Self { key: self.key, store: Store::new(self.store.make.clone(), max_keys) }
    }

    /// The policy of a key, if it is remembered.
    pub fn get(&self, key: &K) -> Option<A>
    where
        A: Clone,
    {
        read(self.store.shard(key)).get(key).map(|entry| entry.policy.clone())
    }

    /// All that are remembered.
    pub fn policies(&self) -> Vec<(K, A)>
    where
        K: Clone,
        A: Clone,
    {
        let all = |shard: &RwLock<HashMap<K, Entry<A>>>| {
            read(shard).iter().map(|(key, entry)| (key.clone(), entry.policy.clone())).collect::<Vec<_>>()
        };
        self.store.shards.iter().flat_map(all).collect()
    }

    /// How many keys are remembered.
    pub fn len(&self) -> usize {
        self.store.shards.iter().map(|shard| read(shard).len()).sum()
    }

    /// Whether no key is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K, A, G, M> Keyed<K, A, G, M> {
    /// How many keys were forgotten for others.
    pub fn evicted(&self) -> u64 {
        self.store.evicted.sum()
    }

    /// How many calls were judged by a policy that could not be remembered.
    pub fn unremembered(&self) -> u64 {
        self.store.unremembered.sum()
    }
}

impl<K: Hash + Eq, A, M> Store<K, A, M> {
    fn new(make: M, max_keys: usize) -> Arc<Self> {
        Arc::new(Self {
            make,
            max_keys,
            hasher: RandomState::new(),
            shards: Default::default(),
            clock: AtomicU64::new(0),
            evicted: Counter::default(),
            unremembered: Counter::default(),
        })
    }

    fn shard(&self, key: &K) -> &RwLock<HashMap<K, Entry<A>>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }
}

impl<K: Hash + Eq + Clone, A: Clone + Idle, M: Fn(&K) -> A> Store<K, A, M> {
    /// The policy of `key`. It is asked outside the lock: its listeners may look at other keys.
    fn policy(&self, key: K) -> A {
        let shard = self.shard(&key);
        if let Some(entry) = read(shard).get(&key) {
            // Which of two calls came later matters little; that the order costs no shared write to the busy key does.
            let now = self.clock.load(Ordering::Relaxed);
            if entry.used.load(Ordering::Relaxed) != now {
                entry.used.store(now, Ordering::Relaxed);
            }
            return entry.policy.clone();
        }
        let mut entries = shard.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(&key) {
            return entry.policy.clone();
        }
        if entries.len() >= self.max_keys.div_ceil(SHARDS) && !self.evict(&mut entries) {
            drop(entries);
            self.unremembered.add(1);
            return (self.make)(&key);
        }
        let policy = (self.make)(&key);
        let used = AtomicU64::new(self.clock.fetch_add(1, Ordering::Relaxed));
        entries.insert(key, Entry { policy: policy.clone(), used });
        policy
    }

    fn evict(&self, entries: &mut HashMap<K, Entry<A>>) -> bool {
        let idle = entries.iter().filter(|(_, entry)| entry.policy.is_idle());
        let Some(oldest) = idle.min_by_key(|(_, entry)| entry.used.load(Ordering::Relaxed)).map(|(key, _)| key.clone())
        else {
            return false;
        };
        entries.remove(&oldest);
        self.evicted.add(1);
        true
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Without a request there is no key, and so no policy to ask: a keyed layer decides when it is called, and cannot reserve in `poll_ready`.
impl<K, A: Policy, G, M> Policy for Keyed<K, A, G, M> {
    type Permit = A::Permit;

    const RESERVES: bool = false;

    fn reserve(&self, _: &impl Clock) -> Result<A::Permit, Rejection> {
        Err(Rejection::new("keyed policy", Reason::NotReady))
    }

    fn peek(&self, _: &impl Clock) -> Result<(), Refused> {
        Ok(())
    }
}

impl<Req, K, A, G, M> Admit<Req> for Keyed<K, A, G, M>
where
    K: Hash + Eq + Clone,
    A: Admit<Req> + Clone + Idle,
    G: Fn(&Req) -> K,
    M: Fn(&K) -> A,
{
    fn admit(&self, request: &Req, clock: &impl Clock) -> Result<A::Permit, Rejection> {
        self.store.policy((self.key)(request)).admit(request, clock)
    }
}

impl<K, A, G: Clone, M> Clone for Keyed<K, A, G, M> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), store: self.store.clone() }
    }
}

impl<K, A, G, M> fmt::Debug for Keyed<K, A, G, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed")
            .field("max_keys", &self.store.max_keys)
            .field("evicted", &self.evicted())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "bulkhead", feature = "circuit-breaker"))]
mod tests {
    use super::*;
    use crate::{Bulkhead, CircuitBreaker, TokioClock};

    type Circuits = Keyed<u32, CircuitBreaker, fn(&u32) -> u32, fn(&u32) -> CircuitBreaker>;

    fn circuits(max: usize) -> Circuits {
        let make: fn(&u32) -> CircuitBreaker = |_| CircuitBreaker::new("keyed");
        Keyed::new((|key| *key) as fn(&u32) -> u32, make).max_keys(max)
    }

    #[test]
    fn keys_are_judged_apart() {
        let keyed = circuits(100);
        drop(keyed.admit(&1, &TokioClock).unwrap());
        keyed.get(&1).unwrap().force_open();
        assert!(keyed.admit(&1, &TokioClock).is_err());
        assert!(keyed.admit(&2, &TokioClock).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_the_longest_unused_goes_first() {
        let keyed = circuits(16);
        for key in 0..10_000 {
            drop(keyed.admit(&key, &TokioClock).unwrap());
        }
        assert!(keyed.len() <= 16);
        assert_eq!(keyed.evicted(), 10_000 - keyed.len() as u64);
        assert!(keyed.get(&9_999).is_some());
    }

    #[test]
    fn an_open_circuit_and_one_in_use_are_never_evicted() {
        // Ten places in each shard: the two that are held may fall into one.
        let keyed = circuits(160);
        let in_use = keyed.admit(&0, &TokioClock).unwrap();
        drop(keyed.admit(&1, &TokioClock).unwrap());
        keyed.get(&1).unwrap().force_open();
        for key in 2..10_000 {
            drop(keyed.admit(&key, &TokioClock).unwrap());
        }
        assert!(keyed.get(&0).is_some() && keyed.admit(&1, &TokioClock).is_err());
        assert!(keyed.len() <= 160);
        drop(in_use);
    }

    #[test]
    fn when_every_place_is_held_new_keys_are_judged_without_being_remembered() {
        let keyed = Keyed::new(|key: &u32| *key, |_: &u32| Bulkhead::new(1)).max_keys(1);
        let held: Vec<_> = (0..1000).map(|key| keyed.admit(&key, &TokioClock).unwrap()).collect();
        assert!(keyed.len() <= 16 && keyed.unremembered() == 1000 - keyed.len() as u64);
        drop(held);
    }

    #[test]
    fn a_policy_is_made_once_for_each_key_whoever_comes_first() {
        let made = Arc::new(AtomicU64::new(0));
        let count = made.clone();
        let keyed = Keyed::new(
            |key: &u32| *key,
            move |_: &u32| {
                count.fetch_add(1, Ordering::Relaxed);
                Bulkhead::new(1000)
            },
        );
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|key| drop(keyed.admit(&key, &TokioClock).unwrap())));
            }
        });
        assert_eq!(made.load(Ordering::Relaxed), 100);
    }
}
