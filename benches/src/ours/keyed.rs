//! Calls through the circuit of a key.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use buttress::gate::GateLayer;
use buttress::keyed::Keyed;
use buttress::{CircuitBreaker, PlainExt};
use tower::Layer;

use crate::caller::Caller;
use crate::family::NONE;
use crate::inner::Bare;
use crate::situation::Kept;
use crate::subject::{Kind::Ours, Rows};

pub(super) fn add(rows: &mut Rows) {
    rows.of(Ours, "buttress/keyed(lookup)", NONE).caller(Kept, lookups(Keys::Own));
    rows.of(Ours, "buttress/keyed(lookup, one key)", NONE).caller(Kept, lookups(Keys::One));
}

/// Which keys the workers use.
#[derive(Clone, Copy)]
enum Keys {
    /// Each its own 1,000 keys.
    Own,
    /// All the same key.
    One,
}

/// Calls with changing keys. Every clone has keys of its own, up to 64 clones at a time.
struct Lookups<S> {
    service: S,
    keys: Keys,
    base: u64,
    next: u64,
    clones: Arc<AtomicU64>,
}

fn lookups(keys: Keys) -> impl Caller {
    let keyed = Keyed::builder(|key: &u64| *key, |_: &u64| CircuitBreaker::new("backend"));
    let keyed = keyed.max_keys(100_000).build().expect("a valid number of keys");
    let service = GateLayer::with_policy(keyed).plain().layer(Bare::<Kept>::new());
    Lookups { service, keys, base: 0, next: 0, clones: Arc::default() }
}

impl<S: Caller> Caller for Lookups<S> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.service.poll_ready(cx)
    }

    fn start(&mut self, _: u64) -> impl Future<Output = Result<impl Send, impl Send>> + Send {
        self.next = if self.next == 999 { 0 } else { self.next + 1 };
        let key = if let Keys::Own = self.keys { self.base + self.next } else { 0 };
        self.service.start(key)
    }
}

impl<S: Clone> Clone for Lookups<S> {
    fn clone(&self) -> Self {
        let base = self.clones.fetch_add(1, Ordering::Relaxed) % 64 * 1_000;
        Self { service: self.service.clone(), keys: self.keys, base, next: 0, clones: self.clones.clone() }
    }
}
