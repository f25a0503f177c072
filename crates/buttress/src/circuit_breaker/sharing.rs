//! Shares a circuit between the instances of a service.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::InvalidConfig> {
//! use buttress::CircuitBreaker;
//! use buttress::circuit_breaker::sharing::{MemoryStore, Mode, Sharing};
//! use std::sync::Arc;
//!
//! let breaker = CircuitBreaker::new("payments");
//! let store = Arc::new(MemoryStore::default()); // in production: a database, a cache, or `Gossip`
//! let sharing = Sharing::builder(breaker.clone(), store).mode(Mode::Shared).start()?;
//! // While `sharing` exists, `breaker` opens and closes with the circuits of the other instances.
//! # drop(sharing); Ok(()) }
//! ```
//!
//! Detection stays local: each instance counts its own calls, and the rules apply to its own
//! window. When the circuit of an instance opens or closes, the instance announces it to the others
//! through a [`SharedState`].
//!
//! | mode | effect on the other instances |
//! |---|---|
//! | none (no `Sharing`) | none |
//! | [`Mode::Advisory`] | While the circuit is open on another instance, half of the minimum throughput is enough for a rate to open it here. |
//! | [`Mode::Shared`] | They open for the same time. Then as many instances as there are probe leases (1 by default) may probe, one call at a time each. The result of the probes applies to all instances. |
//!
//! Calls never wait for the store: a task reads and writes it, and calls use the last result.
//! Writes are fenced: a write succeeds only if no other instance has written since this instance
//! last read; otherwise this instance adopts what the other wrote. Times in the store are remaining
//! times by the store's clock, so that the clocks of instances need not agree.
//!
//! While the store fails or does not answer in time, the circuit is local; [`Sharing::health`]
//! reports it. What an operator does by hand affects only the instance on which it was done.
//!
//! If an instance dies while it holds a probe lease, the others wait until the lease expires.

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

/// The longest lease. If an instance dies while it holds one, no other may probe for as long, and a
/// lease that no clock reaches ends never.
const LONGEST_LEASE: Duration = Duration::from_secs(3600);

/// A boxed future. It keeps [`SharedState`] dyn compatible, so that a service can choose its store
/// at start-up.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A store through which instances exchange the states of circuits. Not called on the path of a
/// request.
///
/// ```
/// use buttress::circuit_breaker::sharing::{Announcement, MemoryStore, SharedState, Written};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::BoxError> {
/// let store = MemoryStore::default();
/// let opened = Announcement { node: 1, open: Some(Duration::from_secs(5)), failures: 5, total: 5 };
/// assert!(matches!(store.write("payments", None, opened).await?, Written::Accepted(_)));
/// // Node 2 has not read this. Its write is rejected, with the current state:
/// let closed = Announcement { node: 2, open: None, ..opened };
/// let Written::Outdated(view) = store.write("payments", None, closed).await? else { panic!() };
/// assert_eq!(view.stamp.node, 1);
/// # Ok(()) }
/// ```
pub trait SharedState: Send + Sync + 'static {
    /// Returns the last announcement for the circuit `name`, or `None` if there is none.
    ///
    /// ```
    /// # use buttress::circuit_breaker::sharing::{MemoryStore, SharedState};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::BoxError> {
    /// assert_eq!(MemoryStore::default().read("payments").await?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// When the store fails. The circuit is then local until the store answers again.
    fn read<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<View>, BoxError>>;

    /// Replaces the announcement for the circuit `name`, if the last one still has the stamp
    /// `expected`. Compares and writes in one atomic step, and ends all probe leases of the
    /// circuit.
    ///
    /// ```
    /// # use buttress::circuit_breaker::sharing::{Announcement, MemoryStore, SharedState, Stamp, Written};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::BoxError> {
    /// let (store, closed) = (MemoryStore::default(), Announcement { node: 1, open: None, failures: 0, total: 0 });
    /// let written = store.write("payments", None, closed).await?;
    /// assert_eq!(written, Written::Accepted(Stamp { version: 1, node: 1 }));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// When the store fails. The circuit is then local until the store answers again.
    fn write<'a>(
        &'a self,
        name: &'a str,
        expected: Option<Stamp>,
        announcement: Announcement,
    ) -> BoxFuture<'a, Result<Written, BoxError>>;

    /// Takes or renews a lease to probe the circuit `name`, in one atomic step. Returns true if the
    /// last announcement still has the stamp `expected` and fewer than [`of`](ProbeLease::of) other
    /// instances hold an unexpired lease.
    ///
    /// ```
    /// use buttress::circuit_breaker::sharing::{Announcement, MemoryStore, ProbeLease, SharedState, Written};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::BoxError> {
    /// # let store = MemoryStore::default();
    /// # let opened = Announcement { node: 1, open: Some(Duration::ZERO), failures: 5, total: 5 };
    /// # let Written::Accepted(stamp) = store.write("payments", None, opened).await? else { panic!() };
    /// let lease = ProbeLease { node: 1, time: Duration::from_secs(5), of: 1 };
    /// assert!(store.lease_probe("payments", stamp, lease).await?);
    /// assert!(!store.lease_probe("payments", stamp, ProbeLease { node: 2, ..lease }).await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// When the store fails. The circuit is then local until the store answers again.
    fn lease_probe<'a>(
        &'a self,
        name: &'a str,
        expected: Stamp,
        lease: ProbeLease,
    ) -> BoxFuture<'a, Result<bool, BoxError>>;
}

/// Version of an announcement. The greater one is newer.
///
/// ```
/// use buttress::circuit_breaker::sharing::Stamp;
///
/// assert!(Stamp { version: 2, node: 1 } > Stamp { version: 1, node: 9 });
/// assert!(Stamp { version: 2, node: 9 } > Stamp { version: 2, node: 1 });
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Stamp {
    /// Incremented by each announcement, from 1.
    pub version: u64,
    /// The instance that made the announcement. Breaks ties between announcements of the same
    /// version, which a store without compare-and-swap cannot prevent.
    pub node: u64,
}

/// Announces the state of a circuit on one instance.
///
/// ```
/// use buttress::circuit_breaker::sharing::Announcement;
/// use std::time::Duration;
///
/// let opened = Announcement { node: 1, open: Some(Duration::from_secs(5)), failures: 12, total: 20 };
/// let closed = Announcement { open: None, ..opened };
/// # assert_ne!(opened, closed);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Announcement {
    /// The instance that makes the announcement.
    pub node: u64,
    /// Time for which the circuit is open from now on. `None` when it has closed.
    pub open: Option<Duration>,
    /// Failures in the window of the instance.
    pub failures: u64,
    /// Calls in the window of the instance.
    pub total: u64,
}

/// The last announcement for a circuit, as read from the store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct View {
    /// Version of the announcement.
    pub stamp: Stamp,
    /// Remaining open time by the store's clock. Zero after it has passed. `None` when the circuit
    /// is closed.
    pub open: Option<Duration>,
    /// Failures in the window of the instance that made the announcement.
    pub failures: u64,
    /// Calls in the window of the instance that made the announcement.
    pub total: u64,
}

/// Result of [`SharedState::write`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Written {
    /// The announcement was written, with this stamp.
    Accepted(Stamp),
    /// Another instance wrote in between. Holds its announcement.
    Outdated(View),
}

/// A request for a probe lease: see [`SharedState::lease_probe`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProbeLease {
    /// The instance that requests the lease.
    pub node: u64,
    /// Time after which the lease expires unless it is renewed.
    pub time: Duration,
    /// Maximum number of instances that hold a lease at the same time.
    pub of: u32,
}

/// How instances affect each other. The [module](self) has a table.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// An open circuit on another instance lowers the minimum throughput here.
    #[default]
    Advisory,
    /// The circuits of all instances open and close together.
    Shared,
}

/// Whether the store answers.
///
/// ```
/// use buttress::CircuitBreaker;
/// use buttress::circuit_breaker::sharing::{MemoryStore, Sharing, StoreHealth};
/// use std::sync::Arc;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let sharing = Sharing::builder(CircuitBreaker::new("payments"), Arc::new(MemoryStore::default())).start()?;
/// let mut health = sharing.health();
/// assert_eq!(*health.borrow(), StoreHealth::Unknown);
/// health.changed().await?;
/// assert_eq!(*health.borrow(), StoreHealth::Connected);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StoreHealth {
    /// The store was not called yet.
    Unknown,
    /// The last call of the store succeeded.
    Connected,
    /// The last call of the store failed or timed out. The circuit is local.
    Degraded,
}

/// Shares a circuit until it is dropped. Then the circuit is local. Made by [`Sharing::builder`].
#[derive(Debug)]
#[must_use = "dropping it ends the sharing"]
pub struct Sharing {
    task: AbortHandle,
    health: watch::Receiver<StoreHealth>,
}

/// Builds a [`Sharing`].
///
/// ```
/// use buttress::CircuitBreaker;
/// use buttress::circuit_breaker::sharing::{MemoryStore, Mode, Sharing};
/// use std::{sync::Arc, time::Duration};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::InvalidConfig> {
/// let sharing = Sharing::builder(CircuitBreaker::new("payments"), Arc::new(MemoryStore::default()))
///     .mode(Mode::Shared)
///     .refresh(Duration::from_millis(100))
///     .patience(Duration::from_millis(500))
///     .probes(2)
///     .lease(Duration::from_secs(2))
///     .start()?;
/// # drop(sharing); Ok(()) }
/// ```
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
    /// Starts from the defaults: see the methods of [`SharingBuilder`].
    ///
    /// ```
    /// use buttress::CircuitBreaker;
    /// use buttress::circuit_breaker::sharing::{MemoryStore, Sharing};
    /// use std::sync::Arc;
    ///
    /// let builder = Sharing::builder(CircuitBreaker::new("payments"), Arc::new(MemoryStore::default()));
    /// # let _ = builder;
    /// ```
    pub fn builder(breaker: CircuitBreaker, store: Arc<dyn SharedState>) -> SharingBuilder {
        // The standard library seeds its maps randomly; the hash of the process id by such a seed
        // is unique with high probability.
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

    /// Returns a receiver of the health of the store, which is notified of changes.
    ///
    /// ```
    /// # use buttress::CircuitBreaker;
    /// # use buttress::circuit_breaker::sharing::{MemoryStore, Sharing, StoreHealth};
    /// # use std::sync::Arc;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let sharing = Sharing::builder(CircuitBreaker::new("payments"), Arc::new(MemoryStore::default())).start()?;
    /// sharing.health().wait_for(|health| *health == StoreHealth::Connected).await?;
    /// # Ok(()) }
    /// ```
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
    /// Sets how instances affect each other. Default [`Mode::Advisory`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.config.mode = mode;
        self
    }

    /// Sets the number of this instance, which must be unique. Default: a random number.
    pub fn node(mut self, node: u64) -> Self {
        self.config.node = node;
        self
    }

    /// Sets the interval at which the store is read while the circuit does not change. Above zero.
    /// Default 250 ms.
    pub fn refresh(mut self, refresh: Duration) -> Self {
        self.config.refresh = refresh;
        self
    }

    /// Sets the time in which the store must answer. Above zero. Default 1 s.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.config.patience = patience;
        self
    }

    /// Sets how many instances may probe at the same time, one call each. At least 1. Default 1.
    pub fn probes(mut self, probes: u32) -> Self {
        self.config.probes = probes;
        self
    }

    /// Sets the time after which an instance must renew its lease to probe. If the instance dies,
    /// the others wait for the rest of this time. Longer than [`refresh`](Self::refresh), at most
    /// an hour. Default 5 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.config.lease = lease;
        self
    }

    /// Spawns a task that shares the circuit, on the current runtime.
    ///
    /// # Errors
    /// When a value is out of its range. The error contains the field and the rule.
    ///
    /// ```
    /// # use buttress::CircuitBreaker;
    /// # use buttress::circuit_breaker::sharing::{MemoryStore, Sharing};
    /// # use std::sync::Arc;
    /// let builder = Sharing::builder(CircuitBreaker::new("payments"), Arc::new(MemoryStore::default()));
    /// assert_eq!(builder.probes(0).start().unwrap_err().field(), "probes");
    /// ```
    ///
    /// # Panics
    /// Outside a tokio runtime.
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
        if config.lease > LONGEST_LEASE {
            return Err(InvalidConfig::new("lease", "must be at most an hour, or a dead instance keeps it"));
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
