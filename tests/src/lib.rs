//! Servers on free ports, and other helpers for the tests of composed stacks.

mod grpc;
mod http;

pub use grpc::{Script, ask, channel, grpc_server, script_server};
pub use http::{
    Client, Server, axum_server, client, client_h2, fresh_client, get, hyper_server, post, refuses, reply, streams,
    text,
};

use buttress::CircuitBreaker;
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::sync::Semaphore;

/// Timeout of all waits. Long enough for a busy machine; only failing tests wait this long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A gate in a handler. It counts the requests inside, and releases them when the test says so.
#[derive(Clone, Debug)]
pub struct Door(Arc<Room>);

#[derive(Debug)]
struct Room {
    entered: AtomicUsize,
    inside: AtomicUsize,
    peak: AtomicUsize,
    arrivals: Semaphore,
    exits: Semaphore,
}

impl Door {
    /// Creates a closed door.
    #[expect(clippy::new_without_default, reason = "a closed door is not a default")]
    pub fn new() -> Self {
        let zero = AtomicUsize::default;
        let (arrivals, exits) = (Semaphore::new(0), Semaphore::new(0));
        Self(Arc::new(Room { entered: zero(), inside: zero(), peak: zero(), arrivals, exits }))
    }

    /// Called by the handler: waits until the test releases it.
    pub async fn pass(&self) {
        struct Leave<'a>(&'a AtomicUsize);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, SeqCst);
            }
        }
        let room = &*self.0;
        room.entered.fetch_add(1, SeqCst);
        room.peak.fetch_max(room.inside.fetch_add(1, SeqCst) + 1, SeqCst);
        let _leave = Leave(&room.inside);
        room.arrivals.add_permits(1);
        room.exits.acquire().await.expect("the semaphore is never closed").forget();
    }

    /// Waits until one more request has entered.
    pub async fn arrival(&self) {
        soon(self.0.arrivals.acquire()).await.expect("the semaphore is never closed").forget();
    }

    /// Releases one request.
    pub fn open(&self) {
        self.0.exits.add_permits(1);
    }

    /// Releases all requests, from now on.
    pub fn open_wide(&self) {
        self.0.exits.add_permits(1_000_000);
    }

    /// Number of requests that have entered.
    pub fn entered(&self) -> usize {
        self.0.entered.load(SeqCst)
    }

    /// Maximum number of requests that were inside at the same time.
    pub fn peak(&self) -> usize {
        self.0.peak.load(SeqCst)
    }
}

/// Fails the test after [`PATIENCE`] instead of hanging.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it does not happen")
}

/// Waits for a condition that depends on the peer of a socket.
pub async fn eventually(what: impl Fn() -> bool) {
    soon(async {
        while !what() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Makes the next call a probe. Returns when the breaker's coarse clock has passed the open time.
pub async fn half_open(breaker: &CircuitBreaker) {
    breaker.open_for(Duration::ZERO);
    admits(breaker).await;
}

/// Waits until the circuit breaker would admit a call.
pub async fn admits(breaker: &CircuitBreaker) {
    eventually(|| breaker.peek().is_ok()).await;
}

/// Compiles and runs the samples of the cookbook.
#[cfg(doctest)]
#[doc = include_str!("../../docs/cookbook.md")]
pub struct Cookbook;
