use std::sync::Arc;

use super::decide::Choice;
use super::error::StepError;
use super::id::SagaId;
use super::list;
use super::scheduler::Scheduler;
use super::state::Status;
use super::store;
use super::view::{Counts, Filter, SagaView};
use crate::clock::Timestamp;
use crate::db::database::args;
use crate::db::{Database, Db, DbError};
use crate::retention::{Bites, Delete};

/// Lists sagas, and lets an operator decide about those that are stuck.
///
/// [`Coordinator::admin`](super::Coordinator::admin) returns one that knows the registered
/// definitions. One without a coordinator also works in a process that runs no sagas, but cannot
/// run the hooks of a definition: it refuses to skip or resolve a saga that has one.
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::Db;
/// use buttress_durable::saga::{Admin, Filter, Status};
///
/// # let dir = tempfile::tempdir()?;
/// # let db = Db::open(dir.path().join("orders.db")).await?;
/// let admin = Admin::new(db);
/// assert_eq!(admin.counts().await?.stuck, 0);
/// for saga in admin.list(&Filter { status: Some(Status::Stuck), ..Filter::default() }).await? {
///     println!("{}: {:?}", saga.saga_id(), saga.stuck);
///     admin.retry(&saga.saga_id()).await?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Admin<D: Database> {
    pub(super) db: Db<D>,
    /// With the registered definitions, if this is a coordinator's admin.
    pub(super) scheduler: Option<Arc<Scheduler<D>>>,
}

/// An admin operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// There is no stuck saga with this id. Another operator may have decided first.
    #[error("no saga {0} is stuck")]
    NotStuck(SagaId),
    /// The definition takes part in this decision, but is not registered here. Decide in a process
    /// that runs these sagas.
    #[error("saga {id} needs its definition {} in version {version} for this decision, which is not registered here", id.definition())]
    NoDefinition {
        /// The saga.
        id: SagaId,
        /// The version that it was started with.
        version: u32,
    },
    /// The definition's hook refused the decision. Nothing has changed.
    #[error("the definition of saga {id} refused the decision")]
    Refused {
        /// The saga.
        id: SagaId,
        /// Why.
        #[source]
        error: StepError,
    },
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

// The statuses are written as in the index by age.
const PURGE: Delete = Delete {
    due: "SELECT id FROM buttress_saga
         WHERE status IN ('completed', 'compensated', 'resolved') AND updated_at < $1 LIMIT 1",
    statements: &[
        // Also where the foreign key does not cascade, because a pool has turned foreign keys off.
        "DELETE FROM buttress_saga_step WHERE saga_id IN (SELECT id FROM buttress_saga
             WHERE status IN ('completed', 'compensated', 'resolved') AND updated_at < $1
             ORDER BY updated_at, id LIMIT $2)",
        "DELETE FROM buttress_saga WHERE id IN (SELECT id FROM buttress_saga
             WHERE status IN ('completed', 'compensated', 'resolved') AND updated_at < $1
             ORDER BY updated_at, id LIMIT $2)",
    ],
};

/// Deletes sagas that ended before a moment.
pub(crate) async fn purge<D: Database>(db: &Db<D>, before: Timestamp, bites: &mut Bites) -> Result<u64, DbError> {
    bites.delete(db, &PURGE, args![before]).await
}

impl<D: Database> Admin<D> {
    /// Creates an admin for the sagas in `db`, without definitions.
    pub fn new(db: Db<D>) -> Self {
        Self { db, scheduler: None }
    }

    pub(super) fn of(scheduler: Arc<Scheduler<D>>) -> Self {
        Self { db: scheduler.db.clone(), scheduler: Some(scheduler) }
    }

    /// Lists sagas with their steps, ordered by id.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<SagaView>, AdminError> {
        let page = list::page(&self.db, filter).await?;
        let mut conn = self.db.session().await?;
        let mut sagas = Vec::with_capacity(page.len());
        for (key, _) in &page {
            sagas.extend(list::show(&self.db, &mut conn, key).await?);
        }
        Ok(sagas)
    }

    /// Returns a saga, or `None` if there is none with this id.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn get(&self, id: &SagaId) -> Result<Option<SagaView>, AdminError> {
        let mut conn = self.db.session().await?;
        let Some(key) = store::key(&self.db, &mut conn, id).await? else { return Ok(None) };
        Ok(list::show(&self.db, &mut conn, &key).await?)
    }

    /// Returns the number of sagas that have not ended, by status.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn counts(&self) -> Result<Counts, AdminError> {
        let sql = "SELECT status, COUNT(*) FROM buttress_saga
                   WHERE status IN ('running', 'compensating', 'stuck') GROUP BY status";
        let mut counts = Counts::default();
        for row in &self.db.read(sql, args![]).await? {
            let count = u64::try_from(D::int(row, 1).map_err(DbError::from)?).unwrap_or(0);
            match Status::parse(&D::text(row, 0).map_err(DbError::from)?) {
                Some(Status::Running) => counts.running = count,
                Some(Status::Compensating) => counts.compensating = count,
                Some(Status::Stuck) => counts.stuck = count,
                _ => {}
            }
        }
        if let Some(scheduler) = &self.scheduler {
            counts.unregistered = scheduler.unregistered().await?.iter().map(|(_, _, sagas)| sagas).sum();
        }
        Ok(counts)
    }

    /// Retries a stuck saga at its current step, with fresh attempts and a fresh step deadline.
    ///
    /// # Errors
    ///
    /// [`AdminError::NotStuck`] if the saga is not stuck; [`AdminError::Db`] if the database fails,
    /// or the saga still cannot be read.
    pub async fn retry(&self, id: &SagaId) -> Result<(), AdminError> {
        self.decide(id, Choice::Retry).await
    }

    /// Continues a stuck saga without its current step: forward as if the step were done, backward
    /// as if it were undone. For an operator who has done or undone the work of the step by hand.
    ///
    /// A step that was skipped forward is compensated like one that was done, if the saga turns
    /// back later. Runs the definition's [`on_skip`](super::Definition::on_skip).
    ///
    /// # Errors
    ///
    /// [`AdminError::NotStuck`] if the saga is not stuck; [`AdminError::Refused`] if the hook
    /// refuses; [`AdminError::NoDefinition`] if the hook is not known here; [`AdminError::Db`] if
    /// the database fails, or the saga cannot be read.
    pub async fn skip(&self, id: &SagaId) -> Result<(), AdminError> {
        self.decide(id, Choice::Skip).await
    }

    /// Closes a stuck saga, and stores the reason in `note`. The saga ends as [`Status::Resolved`].
    ///
    /// Runs the definition's [`on_resolve`](super::Definition::on_resolve), unless the saga cannot
    /// be read: then it is only closed.
    ///
    /// # Errors
    ///
    /// [`AdminError::NotStuck`] if the saga is not stuck; [`AdminError::Refused`] if the hook
    /// refuses; [`AdminError::NoDefinition`] if the hook is not known here; [`AdminError::Db`] if
    /// the database fails.
    pub async fn resolve(&self, id: &SagaId, note: &str) -> Result<(), AdminError> {
        self.decide(id, Choice::Resolve(note)).await
    }

    /// Deletes sagas that ended before a moment, in small transactions, and returns their number.
    /// Stuck sagas are kept. [`Retention`](crate::Retention) does this in the background.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn purge(&self, before: Timestamp) -> Result<u64, AdminError> {
        Ok(purge(&self.db, before, &mut Bites::default()).await?)
    }

    pub(super) async fn page(&self, filter: &Filter) -> Result<Vec<SagaId>, AdminError> {
        Ok(list::page(&self.db, filter).await?.into_iter().map(|(_, id)| id).collect())
    }
}

impl<D: Database> Clone for Admin<D> {
    fn clone(&self) -> Self {
        Self { db: self.db.clone(), scheduler: self.scheduler.clone() }
    }
}
