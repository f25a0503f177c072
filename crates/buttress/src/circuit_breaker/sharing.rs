//! One circuit on several instances of a service: what one has learned, the others know.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::InvalidConfig> {
//! use buttress::CircuitBreaker;
//! use buttress::circuit_breaker::sharing::{MemoryStore, Mode, Sharing};
//! use std::sync::Arc;
//!
//! let breaker = CircuitBreaker::new("payments");
//! let store = Arc::new(MemoryStore::default()); // yours: a database, a cache, or `Gossip`
//! let sharing = Sharing::builder(breaker.clone(), store).mode(Mode::Shared).start()?;
//! // for as long as `sharing` is kept, `breaker` opens and closes with those of the other instances
//! # drop(sharing); Ok(()) }
//! ```
//!
//! What is judged stays local: each instance counts its own calls, and its own window decides that it trips. That it has tripped is told to
//! the others through a [`SharedState`].
//!
//! | mode | what the others do |
//! |---|---|
//! | none (no `Sharing`) | nothing |
//! | [`Mode::Advisory`] | Half of their minimum throughput is enough for a rate to trip them while the circuit is open elsewhere. |
//! | [`Mode::Shared`] | They open for the same time. Then as many of them as there are probe leases (1 by default) may probe, one call at a time; what comes of it holds for all. |
//!
//! No call ever waits for the store: a task reads and writes, and calls go by what it has found. What it writes is fenced: it goes through only if
//! nobody has written since this instance last looked, and otherwise what the others wrote counts. Times are those of the store's clock, handed over as what is left.
//! A store that fails or does not answer in time leaves a circuit that is local until it is back; [`Sharing::health`] tells. What an operator does by hand stays on the instance on which it was done.
//!
//! An instance that dies with a probe lease keeps the others waiting until the lease has run out, and no longer.

#[cfg(feature = "gossip")]
mod gossip;
mod memory;
mod task;

#[cfg(feature = "gossip")]
pub use gossip::{Gossip, GossipBuilder};
pub use memory::MemoryStore;

use super::CircuitBreaker;
use crate::error::BoxError;
use buttress_core::InvalidConfig;
use std::{fmt, pin::Pin, sync::Arc, time::Duration};
use tokio::{sync::watch, task::AbortHandle};

/// A boxed future, so that a store is chosen when a service starts.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where instances meet. Nothing here is called on the path of a request.
pub trait SharedState: Send + Sync + 'static {
    /// What was last said of the circuit `name`; `None` if nothing ever was.
    fn read<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<View>, BoxError>>;

    /// Says something new of the circuit `name`, if `expected` is still the last that was said. All probe leases of the circuit end with it.
    fn write<'a>(
        &'a self,
        name: &'a str,
        expected: Option<Stamp>,
        announcement: Announcement,
    ) -> BoxFuture<'a, Result<Written, BoxError>>;

    /// Takes or renews a lease to probe the circuit `name`, in one atomic step: yes, if `expected` is still the last that was said, and fewer than
    /// [`of`](ProbeLease::of) other instances hold a lease that has not run out.
    fn lease_probe<'a>(
        &'a self,
        name: &'a str,
        expected: Stamp,
        lease: ProbeLease,
    ) -> BoxFuture<'a, Result<bool, BoxError>>;
}

/// Which word on a circuit came last: the greater one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Stamp {
    /// Grows by one with each word.
    pub version: u64,
    /// Whose word it is. Decides between two of the same version, where a store cannot keep them from being written.
    pub node: u64,
}

/// An instance's word on a circuit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Announcement {
    /// Whose word it is.
    pub node: u64,
    /// It is open for so long; or it is closed.
    pub open: Option<Duration>,
    /// Failures in the instance's window.
    pub failures: u64,
    /// Calls in the instance's window.
    pub total: u64,
}

/// The last word on a circuit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct View {
    /// Which word it is.
    pub stamp: Stamp,
    /// It is open for so long from now, by the store's clock; zero once its time is over. `None` when it is closed.
    pub open: Option<Duration>,
    /// Failures in the window of the instance whose word it is.
    pub failures: u64,
    /// Calls in the window of the instance whose word it is.
    pub total: u64,
}

/// What became of a word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Written {
    /// It is the last one now.
    Accepted(Stamp),
    /// Somebody else was faster. This is the last one.
    Outdated(View),
}

/// What is asked for with [`SharedState::lease_probe`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProbeLease {
    /// Who asks.
    pub node: u64,
    /// It runs out after so long, unless it is renewed.
    pub time: Duration,
    /// How many instances may hold one at the same time.
    pub of: u32,
}

/// How far sharing goes. See the [module](self).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// Open circuits elsewhere make this one more careful.
    #[default]
    Advisory,
    /// All instances open and close together.
    Shared,
}

/// Whether the store answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StoreHealth {
    /// It was not asked yet.
    Unknown,
    /// It answers.
    Connected,
    /// It does not, and the circuit is local for now.
    Degraded,
}

/// Shares a circuit until it is dropped; from then on the circuit is local.
#[derive(Debug)]
#[must_use = "dropping it ends the sharing"]
pub struct Sharing {
    task: AbortHandle,
    health: watch::Receiver<StoreHealth>,
}

/// Configures a [`Sharing`].
#[must_use]
pub struct SharingBuilder {
    breaker: CircuitBreaker,
    store: Arc<dyn SharedState>,
    config: Config,
}

#[derive(Clone, Copy, Debug)]
struct Config {
    mode: Mode,
    node: u64,
    refresh: Duration,
    patience: Duration,
    probes: u32,
    lease: Duration,
}

impl Sharing {
    /// Starts from the defaults.
    pub fn builder(breaker: CircuitBreaker, store: Arc<dyn SharedState>) -> SharingBuilder {
        // A number that no two instances share, from what the standard library seeds its maps with.
        let node = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
        let config = Config {
            mode: Mode::default(),
            node,
            refresh: Duration::from_millis(250),
            patience: Duration::from_secs(1),
            probes: 1,
            lease: Duration::from_secs(5),
        };
        SharingBuilder { breaker, store, config }
    }

    /// Whether the store answers: a receiver that is told of every change.
    pub fn health(&self) -> watch::Receiver<StoreHealth> {
        self.health.clone()
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SharingBuilder {
    /// How far it goes. Default: [`Mode::Advisory`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.config.mode = mode;
        self
    }

    /// The number of this instance, which no other may have. Default: a random one.
    pub fn node(mut self, node: u64) -> Self {
        self.config.node = node;
        self
    }

    /// How often the store is read when nothing happens here. Above zero. Default: 250 ms.
    pub fn refresh(mut self, refresh: Duration) -> Self {
        self.config.refresh = refresh;
        self
    }

    /// How long the store may take to answer. Above zero. Default: 1 s.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.config.patience = patience;
        self
    }

    /// How many instances may probe at the same time, one call each. At least 1. Default: 1.
    pub fn probes(mut self, probes: u32) -> Self {
        self.config.probes = probes;
        self
    }

    /// How long an instance may probe before it has to ask again; an instance that dies keeps the others waiting for so long. Longer than `refresh`. Default: 5 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.config.lease = lease;
        self
    }

    /// Begins to share the circuit, in a task of the current runtime.
    ///
    /// # Errors
    /// When a value is out of its range. The error names the field and the rule.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self) -> Result<Sharing, InvalidConfig> {
        let Self { breaker, store, config } = self;
        for (field, time) in [("refresh", config.refresh), ("patience", config.patience)] {
            if time.is_zero() {
                return Err(InvalidConfig::new(field, "must be above zero"));
            }
        }
        if config.probes == 0 {
            return Err(InvalidConfig::new("probes", "must be at least 1"));
        }
        if config.lease <= config.refresh {
            return Err(InvalidConfig::new("lease", "must be longer than refresh, or it runs out between two looks"));
        }
        let (task, health) = task::start(breaker, store, config);
        Ok(Sharing { task, health })
    }
}

impl fmt::Debug for SharingBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharingBuilder")
            .field("breaker", &self.breaker)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
