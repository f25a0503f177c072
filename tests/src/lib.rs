//! Servers on free ports, and what else the tests of composed stacks share.

mod grpc;
mod http;

pub use grpc::{Script, ask, channel, grpc_server, script_server};
pub use http::{
    Client, Server, axum_server, client, client_h2, fresh_client, get, hyper_server, post, reply, streams, text,
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

/// Long enough for a machine that is busy with other things; nothing waits for it unless the test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A door in a handler: it counts who is inside and how many there ever were, and lets out as many as the test says.
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
    /// A closed door.
    #[expect(clippy::new_without_default, reason = "a closed door is not a default")]
    pub fn new() -> Self {
        let zero = AtomicUsize::default;
        let (arrivals, exits) = (Semaphore::new(0), Semaphore::new(0));
        Self(Arc::new(Room { entered: zero(), inside: zero(), peak: zero(), arrivals, exits }))
    }

    /// Called by the handler: waits inside until it is let out.
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

    /// Waits until one more has come in.
    pub async fn arrival(&self) {
        soon(self.0.arrivals.acquire()).await.expect("the semaphore is never closed").forget();
    }

    /// Lets one out.
    pub fn open(&self) {
        self.0.exits.add_permits(1);
    }

    /// Lets everybody out, from now on.
    pub fn open_wide(&self) {
        self.0.exits.add_permits(1_000_000);
    }

    /// How many came in so far.
    pub fn entered(&self) -> usize {
        self.0.entered.load(SeqCst)
    }

    /// How many were inside together, at most.
    pub fn peak(&self) -> usize {
        self.0.peak.load(SeqCst)
    }
}

/// Fails the test instead of hanging it.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it does not happen")
}

/// Waits for what the other side of a socket does in its own time.
pub async fn eventually(what: impl Fn() -> bool) {
    soon(async {
        while !what() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Makes the next call a probe, and returns once the coarse clock of admission agrees.
pub async fn half_open(breaker: &CircuitBreaker) {
    breaker.open_for(Duration::ZERO);
    admits(breaker).await;
}

/// Waits until the circuit breaker would admit a call.
pub async fn admits(breaker: &CircuitBreaker) {
    eventually(|| breaker.peek().is_ok()).await;
}

/// The samples of the cookbook compile and run.
#[cfg(doctest)]
#[doc = include_str!("../../docs/cookbook.md")]
pub struct Cookbook;
