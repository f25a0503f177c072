use super::freshness::{Freshness, Selected};
use crate::single_flight::{Content, RequestKey};
use bytes::Bytes;
use http::{Uri, response::Parts};
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter, sync};
use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// A stored response.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) parts: Parts,
    pub(super) content: Arc<Content>,
    pub(super) selected: Selected,
    pub(super) freshness: Freshness,
    /// When it arrived.
    pub(super) arrived: Instant,
    /// The count of purges when it was asked for.
    pub(super) asked: u64,
    weight: u64,
}

/// The memory of an entry besides its key, its headers and its content.
const OVERHEAD: u64 = 512;

impl Entry {
    pub(super) fn new(
        key: &RequestKey,
        parts: Parts,
        content: Arc<Content>,
        selected: Selected,
        freshness: Freshness,
        arrived: Instant,
        asked: u64,
    ) -> Self {
        let headers: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum();
        let frames = content.frames.len() * size_of::<Bytes>();
        let weight = OVERHEAD + content.length + (headers + frames + key.length()) as u64;
        Self { parts, content, selected, freshness, arrived, asked, weight }
    }
}

/// The stored responses, and what was purged of them.
pub(super) struct Store {
    entries: sync::Cache<RequestKey, Arc<Entry>, ByWeight, DefaultHashBuilder, CountEvictions>,
    evictions: Arc<AtomicU64>,
    purges: Purges,
}

#[derive(Clone)]
struct ByWeight;

impl Weighter<RequestKey, Arc<Entry>> for ByWeight {
    fn weight(&self, _: &RequestKey, entry: &Arc<Entry>) -> u64 {
        entry.weight
    }
}

#[derive(Clone)]
struct CountEvictions(Arc<AtomicU64>);

impl Lifecycle<RequestKey, Arc<Entry>> for CountEvictions {
    /// Evicted entries, which are dropped after the lock.
    type RequestState = Vec<Arc<Entry>>;

    fn on_evict(&self, evicted: &mut Vec<Arc<Entry>>, _: RequestKey, entry: Arc<Entry>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        evicted.push(entry);
    }
}

impl Store {
    pub(super) fn new(max_bytes: u64, max_body: u64) -> Self {
        let evictions = Arc::new(AtomicU64::new(0));
        // Each shard has its part of the bytes, and must have room for several of the largest
        // bodies.
        let shards = (max_bytes / max_body.max(1) / 8).clamp(1, 16);
        let options = OptionsBuilder::new()
            .shards(1 << shards.ilog2())
            .estimated_items_capacity(usize::try_from(max_bytes / (16 << 10)).unwrap_or(usize::MAX).clamp(64, 100_000))
            .weight_capacity(max_bytes)
            .build()
            .expect("a number of items and a weight are all that it needs");
        let lifecycle = CountEvictions(evictions.clone());
        let entries = sync::Cache::with_options(options, ByWeight, DefaultHashBuilder::default(), lifecycle);
        Self { entries, evictions, purges: Purges::new() }
    }

    pub(super) fn get(&self, key: &RequestKey) -> Option<Arc<Entry>> {
        let entry = self.entries.get(key)?;
        if self.purges.are_before(key.uri(), entry.asked) {
            return Some(entry);
        }
        self.entries.remove_if(key, |known| Arc::ptr_eq(known, &entry));
        None
    }

    /// Stores a response, unless it was purged since it was asked for.
    pub(super) fn put(&self, key: RequestKey, entry: Arc<Entry>) {
        if self.purges.are_before(key.uri(), entry.asked) {
            self.entries.insert(key, entry);
        }
    }

    pub(super) fn remove(&self, key: &RequestKey) {
        self.entries.remove(key);
    }

    /// Returns the count of purges, for a response that is asked for now.
    pub(super) fn now(&self) -> u64 {
        self.purges.count.load(Ordering::Acquire)
    }

    pub(super) fn purge(&self, uri: &Uri) {
        self.purges.add(uri);
    }

    pub(super) fn purge_all(&self) {
        self.purges.add_all();
        self.entries.clear();
    }

    pub(super) fn bytes(&self) -> u64 {
        self.entries.weight()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }
}

/// When URIs were purged last, in counts of purges.
///
/// A URI has many keys, by its method and headers, and there is no list of them. Its purge is noted
/// under a hash of its path, and what was asked for before does not count any more; neither does
/// what happens to have the same hash. A response that is under way during the purge is not stored.
struct Purges {
    hasher: RandomState,
    count: AtomicU64,
    last: Box<[AtomicU64]>,
}

const SLOTS: usize = 4096;

impl Purges {
    fn new() -> Self {
        let last = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        Self { hasher: RandomState::new(), count: AtomicU64::new(1), last }
    }

    /// Of the path and the query alone: a server's requests may have an authority or not.
    fn slot(&self, uri: &Uri) -> &AtomicU64 {
        let hash = self.hasher.hash_one(uri.path_and_query().map_or("/", |path| path.as_str()));
        &self.last[hash as usize % SLOTS]
    }

    fn add(&self, uri: &Uri) {
        let count = self.count.fetch_add(1, Ordering::AcqRel) + 1;
        self.slot(uri).fetch_max(count, Ordering::AcqRel);
    }

    fn add_all(&self) {
        let count = self.count.fetch_add(1, Ordering::AcqRel) + 1;
        for last in self.last.iter() {
            last.fetch_max(count, Ordering::AcqRel);
        }
    }

    fn are_before(&self, uri: &Uri, asked: u64) -> bool {
        self.slot(uri).load(Ordering::Acquire) <= asked
    }
}
