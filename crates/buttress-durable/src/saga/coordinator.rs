use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use buttress_core::InvalidConfig;
use futures_util::future::join_all;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;
use tokio::time::timeout;

use super::admin::{Admin, AdminError};
use super::claim::Claims;
use super::definition::Definition;
use super::flow::Flow;
use super::id::SagaId;
use super::rules::longest_pause;
use super::run::Run;
use super::scheduler::Scheduler;
use super::starter::Starter;
use super::state::Status;
use super::store;
use super::view::SagaView;
use crate::db::{Database, Db, DbError};
use crate::outbox::Outbox;
use crate::task::{Stop, Worker, WorkerHealth};

/// Runs sagas. Start one in every process; they divide the sagas among themselves by leases.
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
/// let saga = coordinator.wait(&orders.id("order-7"), Duration::from_secs(5)).await?;
/// assert_eq!(saga.map(|saga| saga.status), Some(Status::Completed));
/// # running.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Coordinator<D: Database> {
    scheduler: Arc<Scheduler<D>>,
}

/// Collects the definitions and settings of a [`Coordinator`].
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::saga::Coordinator;
/// use buttress_durable::{Db, Outbox};
/// use std::time::Duration;
///
/// # let dir = tempfile::tempdir()?;
/// # let db = Db::open(dir.path().join("orders.db")).await?;
/// let coordinator = Coordinator::builder(db.clone(), Outbox::new(db))
///     .concurrency(64)
///     .lease(Duration::from_secs(60))
///     .poll(Duration::from_millis(500))
///     .build();
/// # assert_eq!(coordinator.run_due().await?, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct CoordinatorBuilder<D: Database> {
    scheduler: Scheduler<D>,
}

/// A running coordinator. Dropping it aborts its calls; other coordinators take over its sagas when
/// their leases expire.
#[derive(Debug)]
#[must_use = "dropping it stops the coordinator"]
pub struct Running {
    worker: Worker,
}

/// Longest pause between two queries for a saga that another process may be running.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

// === impl CoordinatorBuilder ===

impl<D: Database> CoordinatorBuilder<D> {
    /// Registers a definition, and returns the [`Starter`] of its sagas.
    ///
    /// # Errors
    ///
    /// If the name and version are registered already.
    pub fn register<T>(&mut self, definition: Definition<D, T>) -> Result<Starter<D, T>, InvalidConfig>
    where
        T: DeserializeOwned + Serialize + Send + Sync + 'static,
    {
        let Scheduler { db, flows, woken, .. } = &mut self.scheduler;
        let taken = |flow: &Arc<dyn Flow<D>>| (flow.name(), flow.version()) == (&definition.name, definition.version);
        if flows.iter().any(taken) {
            return Err(InvalidConfig::new("definition", "must not be registered twice with the same version"));
        }
        let starter = Starter::new(db.clone(), &definition, woken.clone());
        flows.push(Arc::new(definition));
        Ok(starter)
    }

    /// Sets how many sagas run concurrently. Default: 16; at least 1.
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.scheduler.concurrency = concurrency.max(1);
        self
    }

    /// Sets how long a crashed coordinator keeps its sagas. Default: 30 s; at least 10 ms.
    ///
    /// Use at least 3 times the longest pause of a healthy process, and the same in all processes
    /// that share sagas: a lease that ends later than in twice this time was measured by a clock
    /// that is ahead, and is not respected.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.scheduler.lease = lease.max(Duration::from_millis(10));
        self
    }

    /// Sets how often to look for sagas that another process has started or released. Default: 200
    /// ms; at least 1 ms.
    pub fn poll(mut self, poll: Duration) -> Self {
        self.scheduler.poll = poll.max(Duration::from_millis(1));
        self
    }

    /// Sets how often a saga may be recovered from a lost owner without an answer from any step in
    /// between. Then it is stuck, since it may be the cause of the crashes. An outage of the
    /// database is no recovery. Default: 10.
    pub fn recoveries(mut self, recoveries: u32) -> Self {
        self.scheduler.recoveries = recoveries;
        self
    }

    /// Builds the coordinator. [`Coordinator::run`] starts it.
    pub fn build(mut self) -> Coordinator<D> {
        let flows = &self.scheduler.flows;
        let definitions = flows.iter().map(|flow| (flow.name(), flow.version()));
        let longest = flows.iter().map(|flow| longest_pause(flow.rules())).max().unwrap_or_default();
        self.scheduler.claims = (!flows.is_empty()).then(|| Claims::new(definitions, longest));
        Coordinator { scheduler: Arc::new(self.scheduler) }
    }
}

// === impl Coordinator ===

impl<D: Database> Coordinator<D> {
    /// Creates a builder for sagas in `db`. `outbox` must be in the same database.
    pub fn builder(db: Db<D>, outbox: Outbox<D>) -> CoordinatorBuilder<D> {
        CoordinatorBuilder { scheduler: Scheduler::new(db, outbox) }
    }

    /// Runs sagas until the returned value is dropped or shut down, beginning with those that a
    /// crash has left.
    pub fn run(&self) -> Running {
        let (scheduler, health) = (self.scheduler.clone(), WorkerHealth::new(self.scheduler.db.clock().clone()));
        let reports = health.clone();
        let run = move |stop| scheduler.clone().work(stop, reports.clone());
        Running { worker: Worker::supervised(health, run) }
    }

    /// Runs the sagas that are due until each has ended or must wait, and returns their number.
    ///
    /// For tests, and for services with their own loop.
    ///
    /// # Errors
    ///
    /// If the database fails when claiming sagas. A failure in a saga is recorded in its row.
    pub async fn run_due(&self) -> Result<usize, DbError> {
        let (_go_on, stop) = Stop::channel();
        let mut count = 0;
        loop {
            let (runs, _) = self.scheduler.claim(self.scheduler.concurrency, &stop).await?;
            if runs.is_empty() {
                return Ok(count);
            }
            count += runs.len();
            join_all(runs.into_iter().map(Run::drive)).await;
        }
    }

    /// Waits until a saga has ended or is stuck, for at most `limit`, and returns its state then.
    /// Returns `None` if there is no saga with this id.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn wait(&self, id: &SagaId, limit: Duration) -> Result<Option<SagaView>, AdminError> {
        self.wait_until(id, limit, |status| status.is_final() || status == Status::Stuck).await
    }

    /// Waits until the outcome of a saga is decided. Like [`wait`](Self::wait), but also returns
    /// when the compensation has begun, since the saga cannot complete from there.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn wait_until_decided(&self, id: &SagaId, limit: Duration) -> Result<Option<SagaView>, AdminError> {
        self.wait_until(id, limit, |status| status != Status::Running).await
    }

    async fn wait_until(
        &self,
        id: &SagaId,
        limit: Duration,
        there: impl Fn(Status) -> bool,
    ) -> Result<Option<SagaView>, AdminError> {
        let scheduler = &self.scheduler;
        let mut news = scheduler.news.subscribe();
        let looking = async {
            let mut pause = scheduler.poll;
            while store::status(&scheduler.db, id).await?.is_some_and(|status| !there(status)) {
                // Polling more often would compete with the saga for the database. Sagas of this
                // process send a notification; the pause is for those of other processes.
                let _ = timeout(pause, notified(&mut news, id)).await;
                pause = pause.saturating_mul(2).min(LONGEST_LOOK.max(scheduler.poll));
            }
            Ok::<_, DbError>(())
        };
        if let Ok(looked) = timeout(limit, looking).await {
            looked?;
        }
        self.admin().get(id).await
    }

    /// Returns the admin for the sagas in this coordinator's database. It runs the hooks of the
    /// registered definitions, and wakes the coordinator after a decision.
    pub fn admin(&self) -> Admin<D> {
        Admin::of(self.scheduler.clone())
    }
}

// === impl Running ===

impl Running {
    /// Reports how the coordinator is doing.
    pub fn health(&self) -> WorkerHealth {
        self.worker.health()
    }

    /// Lets the running calls finish, records their outcome, and releases the sagas.
    pub async fn shutdown(self) {
        self.worker.shutdown().await;
    }
}

/// Returns when this saga has changed, or notifications were missed.
async fn notified(news: &mut broadcast::Receiver<Arc<SagaId>>, id: &SagaId) {
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
