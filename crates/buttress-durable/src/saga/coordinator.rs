use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use buttress_core::InvalidConfig;
use futures_util::future::join_all;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;
use tokio::time::timeout;

use super::admin::{Admin, AdminError, SagaView};
use super::definition::{Definition, Flow};
use super::run::Run;
use super::scheduler::Scheduler;
use super::starter::Starter;
use super::state::Status;
use super::store;
use crate::db::{Database, Db, DbError};
use crate::outbox::Outbox;
use crate::task::{Stop, Worker};

/// Runs sagas. Start one in every process; they share the work by leases.
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::saga::{Call, Coordinator, Definition, Status, Step};
/// use buttress_durable::{Db, Outbox};
/// use std::time::Duration;
///
/// # let dir = tempfile::tempdir()?;
/// # let db = Db::open(dir.path().join("orders.db")).await?;
/// let reserve = Step::new("reserve_inventory", |call: Call<u32>| async { Ok(call.done()) })
///     .compensation(|call: Call<u32>| async { Ok(call.done()) });
/// let pay = Step::new("process_payment", |call: Call<u32>| async { Ok(call.done()) }).pivot();
/// let confirm = Step::new("confirm_order", |call: Call<u32>| async { Ok(call.done()) }).retriable();
///
/// let mut builder = Coordinator::builder(db.clone(), Outbox::new(db.clone()));
/// let orders = builder.register(Definition::new("order", 1, [reserve, pay, confirm])?)?;
/// let coordinator = builder.build();
/// let running = coordinator.run();
///
/// let mut tx = db.begin().await?;
/// orders.start(&mut tx, "order-7", &790, None).await?;
/// tx.commit().await?;
/// orders.wake();
/// let saga = coordinator.wait("order-7", Duration::from_secs(5)).await?;
/// assert_eq!(saga.map(|saga| saga.status), Some(Status::Completed));
/// # running.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Coordinator<D: Database> {
    scheduler: Arc<Scheduler<D>>,
}

/// Gathers the definitions and the knobs of a [`Coordinator`].
#[must_use]
pub struct CoordinatorBuilder<D: Database> {
    scheduler: Scheduler<D>,
}

/// A coordinator at work. Dropped, it stops at once; its sagas are taken over when their leases have expired.
#[derive(Debug)]
#[must_use = "dropping it stops the coordinator"]
pub struct Running {
    worker: Worker,
}

/// The longest pause between two looks at a saga that another process may be running.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

// === impl CoordinatorBuilder ===

impl<D: Database> CoordinatorBuilder<D> {
    /// Adds a definition, and returns what starts sagas of it.
    ///
    /// # Errors
    ///
    /// If this name and version are registered already.
    pub fn register<T>(&mut self, definition: Definition<D, T>) -> Result<Starter<D, T>, InvalidConfig>
    where
        T: DeserializeOwned + Serialize + Send + Sync + 'static,
    {
        let Scheduler { db, flows, woken, .. } = &mut self.scheduler;
        let taken = |flow: &Arc<dyn Flow<D>>| (flow.name(), flow.version()) == (&definition.name, definition.version);
        if flows.iter().any(taken) {
            return Err(InvalidConfig::new("definition", "must be registered once for each version"));
        }
        let starter = Starter::new(db.clone(), &definition, woken.clone());
        flows.push(Arc::new(definition));
        Ok(starter)
    }

    /// Sagas at work at the same time. Default: 16. At least 1.
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.scheduler.concurrency = concurrency.max(1);
        self
    }

    /// How long a coordinator that has crashed keeps its sagas. Default: 30 s. At least 3 times the longest pause that a
    /// healthy process may make.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.scheduler.lease = lease.max(Duration::from_millis(10));
        self
    }

    /// How often to look for sagas that another process has started, or left. Default: 200 ms.
    pub fn poll(mut self, poll: Duration) -> Self {
        self.scheduler.poll = poll.max(Duration::from_millis(1));
        self
    }

    /// How often a saga is taken over from an owner that was lost, without an answer from any step in between. Then it is
    /// stuck: it may be what kills the process. Default: 10.
    pub fn recoveries(mut self, recoveries: u32) -> Self {
        self.scheduler.recoveries = recoveries;
        self
    }

    /// The coordinator, not yet at work.
    pub fn build(self) -> Coordinator<D> {
        Coordinator { scheduler: Arc::new(self.scheduler) }
    }
}

// === impl Coordinator ===

impl<D: Database> Coordinator<D> {
    /// Sagas in `db`, with their events in `outbox`, which must be in the same database.
    pub fn builder(db: Db<D>, outbox: Outbox<D>) -> CoordinatorBuilder<D> {
        CoordinatorBuilder { scheduler: Scheduler::new(db, outbox) }
    }

    /// Works until the returned value is dropped or shut down, beginning with what a crash has left.
    pub fn run(&self) -> Running {
        let scheduler = self.scheduler.clone();
        Running { worker: Worker::spawn(|stop| scheduler.work(stop)) }
    }

    /// Runs everything that is due now, until it has ended or has to wait; how many sagas that were. For tests, and for
    /// services that bring their own loop.
    ///
    /// # Errors
    ///
    /// What the database says when asked for sagas. What goes wrong in a saga is written down there.
    pub async fn run_due(&self) -> Result<usize, DbError> {
        let (_go_on, stop) = Stop::channel();
        let mut count = 0;
        loop {
            let runs = self.scheduler.claim(self.scheduler.concurrency, &stop).await?;
            if runs.is_empty() {
                return Ok(count);
            }
            count += runs.len();
            join_all(runs.into_iter().map(Run::drive)).await;
        }
    }

    /// Waits until a saga has ended or is stuck, and returns it as it is then; or as it is when the time is up. `None` if
    /// there is none with this id.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn wait(&self, id: &str, limit: Duration) -> Result<Option<SagaView>, AdminError> {
        self.wait_until(id, limit, |status| status.is_final() || status == Status::Stuck).await
    }

    /// Waits until it is decided how a saga ends: like [`wait`](Self::wait), but a saga that has turned back is waited for no
    /// longer, since there is only one way from there.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn wait_until_decided(&self, id: &str, limit: Duration) -> Result<Option<SagaView>, AdminError> {
        self.wait_until(id, limit, |status| status != Status::Running).await
    }

    async fn wait_until(
        &self,
        id: &str,
        limit: Duration,
        there: impl Fn(Status) -> bool,
    ) -> Result<Option<SagaView>, AdminError> {
        let scheduler = &self.scheduler;
        let mut news = scheduler.news.subscribe();
        let looking = async {
            let mut pause = scheduler.poll;
            while store::status(&scheduler.db, id).await?.is_some_and(|status| !there(status)) {
                // Whoever waits must not keep the database from what it is waiting for: it looks again when there is news,
                // and seldom besides, for sagas that another process runs.
                let _ = timeout(pause, told(&mut news, id)).await;
                pause = pause.saturating_mul(2).min(LONGEST_LOOK.max(scheduler.poll));
            }
            Ok::<_, DbError>(())
        };
        if let Ok(looked) = timeout(limit, looking).await {
            looked?;
        }
        self.admin().get(id).await
    }

    /// The list of sagas, and what to do with those that are stuck.
    pub fn admin(&self) -> Admin<D> {
        Admin::new(self.scheduler.db.clone())
    }
}

// === impl Running ===

impl Running {
    /// Finishes the calls at hand, writes down their outcome, and gives the sagas back.
    pub async fn shutdown(self) {
        self.worker.shutdown().await;
    }
}

/// Returns when there is news of this saga, or may have been.
async fn told(news: &mut broadcast::Receiver<Arc<str>>, id: &str) {
    loop {
        match news.recv().await {
            Ok(other) if *other != *id => {}
            _ => return,
        }
    }
}

impl<D: Database> fmt::Debug for Coordinator<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.scheduler.fmt(f)
    }
}

impl<D: Database> fmt::Debug for CoordinatorBuilder<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.scheduler.fmt(f)
    }
}

impl<D: Database> Clone for Coordinator<D> {
    fn clone(&self) -> Self {
        Self { scheduler: self.scheduler.clone() }
    }
}
