use super::machine::Progress;
use super::state::Status;
use super::store::{self, Lease};
use super::view::{Counts, Filter, SagaView, view};
use crate::clock::Timestamp;
use crate::db::database::args;
use crate::db::{Database, Db, DbError};
use crate::retention::{Bites, Delete};

/// Lists sagas, and lets an operator decide about those that are stuck.
///
/// It needs no definitions, so that it also works in a process that runs no sagas.
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
///     println!("{}: {:?}", saga.id, saga.stuck);
///     admin.retry(&saga.id).await?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Admin<D: Database> {
    db: Db<D>,
}

/// An admin operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// There is no stuck saga with this id. Another operator may have decided first.
    #[error("no saga {0:?} is stuck")]
    NotStuck(String),
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
    /// Creates an admin for the sagas in `db`.
    pub fn new(db: Db<D>) -> Self {
        Self { db }
    }

    /// Lists sagas with their steps, ordered by id.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<SagaView>, AdminError> {
        let status = filter.status.map_or("", Status::as_str);
        let sql = if filter.descending {
            "SELECT id FROM buttress_saga WHERE ($1 = '' OR status = $1) AND ($2 = '' OR id < $2) ORDER BY id DESC LIMIT $3"
        } else {
            "SELECT id FROM buttress_saga WHERE ($1 = '' OR status = $1) AND id > $2 ORDER BY id LIMIT $3"
        };
        let rows = self.db.read(sql, args![status, &filter.after, i64::from(filter.limit)]).await?;
        let mut sagas = Vec::with_capacity(rows.len());
        for row in &rows {
            sagas.extend(self.get(&D::text(row, 0).map_err(DbError::from)?).await?);
        }
        Ok(sagas)
    }

    /// Returns a saga, or `None` if there is none with this id.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn get(&self, id: &str) -> Result<Option<SagaView>, AdminError> {
        let mut conn = self.db.session().await?;
        let Some(owned) = store::load(&self.db, &mut conn, id).await? else { return Ok(None) };
        let sql = "SELECT definition, version, created_at, updated_at FROM buttress_saga WHERE id = $1";
        let rows = self.db.fetch(&mut conn, sql, args![id]).await?;
        rows.first().map(|row| view::<D>(owned, row)).transpose().map_err(AdminError::from)
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
        Ok(counts)
    }

    /// Retries a stuck saga at its current step, with fresh attempts and a fresh step deadline.
    ///
    /// # Errors
    ///
    /// [`AdminError::NotStuck`] if the saga is not stuck; [`AdminError::Db`] if the database fails.
    pub async fn retry(&self, id: &str) -> Result<(), AdminError> {
        let now = self.db.now();
        self.decide(id, |progress| progress.retry(now)).await
    }

    /// Continues a stuck saga without its current step: forward as if the step were done, backward
    /// as if it were undone. For an operator who has done or undone the work of the step by hand.
    ///
    /// # Errors
    ///
    /// [`AdminError::NotStuck`] if the saga is not stuck; [`AdminError::Db`] if the database fails.
    pub async fn skip(&self, id: &str) -> Result<(), AdminError> {
        let now = self.db.now();
        self.decide(id, |progress| progress.skip(now)).await
    }

    /// Closes a stuck saga, and stores the reason in `note`. The saga ends as [`Status::Resolved`].
    ///
    /// # Errors
    ///
    /// [`AdminError::NotStuck`] if the saga is not stuck; [`AdminError::Db`] if the database fails.
    pub async fn resolve(&self, id: &str, note: &str) -> Result<(), AdminError> {
        self.decide(id, |progress| progress.resolve(note)).await
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

    async fn decide(&self, id: &str, decide: impl FnOnce(&mut Progress)) -> Result<(), AdminError> {
        let mut tx = self.db.begin().await?;
        // Takes the saga from concurrent decisions: PostgreSQL locks the row, and the other one
        // finds it no longer stuck.
        let sql = "UPDATE buttress_saga SET generation = generation + 1 WHERE id = $1 AND status = 'stuck'";
        let taken = self.db.execute(&mut tx, sql, args![id]).await?;
        let saga = if taken == 1 { store::load(&self.db, &mut tx, id).await? } else { None };
        let Some(mut saga) = saga else { return Err(AdminError::NotStuck(id.to_owned())) };
        // A step that got stuck before it began has no row. Its name is only in the reason.
        let at = saga.progress.stuck.as_ref().map(|stuck| stuck.step.clone());
        decide(&mut saga.progress);
        saga.recoveries = 0;
        let mut names = saga.names.clone();
        names.extend(at.filter(|_| saga.names.len() < saga.progress.steps.len()));
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        store::save(&self.db, &mut tx, &mut saga, &names, Lease::GiveBack).await?;
        tx.commit().await?;
        Ok(())
    }
}

impl<D: Database> Clone for Admin<D> {
    fn clone(&self) -> Self {
        Self { db: self.db.clone() }
    }
}
