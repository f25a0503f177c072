use super::machine::Progress;
use super::state::{Failure, Status, StepState, Stuck};
use super::store::{self, Lease, Owned};
use crate::clock::Timestamp;
use crate::db::database::args;
use crate::db::{Database, Db, DbError};

/// The list of sagas, and what somebody may do with those that are stuck.
///
/// Needs no definitions, so it works in a process that runs no sagas.
#[derive(Debug)]
pub struct Admin<D: Database> {
    db: Db<D>,
}

/// Which sagas to list. Default: all, from the first id on, 100 of them.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only those with this status.
    pub status: Option<Status>,
    /// Only ids behind this one: the last one of the page before.
    pub after: String,
    /// From the last id back, instead of from the first one on. With ids that grow with time, the newest come first.
    pub descending: bool,
    /// At most so many.
    pub limit: u32,
}

/// A saga as the database has it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SagaView {
    /// Its id.
    pub id: String,
    /// The name of its definition.
    pub definition: String,
    /// The version of its definition.
    pub version: i64,
    /// How far it has come.
    pub status: Status,
    /// Why it is being undone, or was.
    pub failure: Option<Failure>,
    /// Why it stands still.
    pub stuck: Option<Stuck>,
    /// The steps that have begun.
    pub steps: Vec<StepView>,
    /// The saga's data, JSON.
    pub data: String,
    /// When it goes on, if it waits.
    pub wake_at: Timestamp,
    /// When it was started.
    pub created_at: Timestamp,
    /// When it was last written.
    pub updated_at: Timestamp,
}

/// A step as the database has it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StepView {
    /// Its name.
    pub name: String,
    /// How far it has come.
    pub state: StepState,
    /// Attempts that have failed: of the action, or once it is being undone of the compensation.
    pub attempts: u32,
    /// Whether an attempt may have had an effect that nobody told of.
    pub uncertain: bool,
    /// What the last failed attempt said.
    pub error: Option<String>,
    /// When it was first called.
    pub started_at: Timestamp,
    /// When it was done, or undone.
    pub ended_at: Option<Timestamp>,
}

/// How many sagas there are of each status that is not final: for a metric, with an alarm on `stuck`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Counts {
    /// Going forward.
    pub running: u64,
    /// Being undone.
    pub compensating: u64,
    /// Waiting for somebody to decide.
    pub stuck: u64,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// There is no stuck saga with this id; perhaps somebody else was faster.
    #[error("no saga {0:?} is stuck")]
    NotStuck(String),
    /// What the database says.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl<D: Database> Admin<D> {
    /// The sagas in `db`.
    pub fn new(db: Db<D>) -> Self {
        Self { db }
    }

    /// Sagas in the order of their ids, or against it, each with its steps.
    ///
    /// # Errors
    ///
    /// What the database says.
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

    /// One saga.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn get(&self, id: &str) -> Result<Option<SagaView>, AdminError> {
        let mut conn = self.db.pool().acquire().await.map_err(DbError::from)?;
        let Some(owned) = store::load(&self.db, &mut conn, id).await? else { return Ok(None) };
        let sql = "SELECT definition, version, created_at, updated_at FROM buttress_saga WHERE id = $1";
        let rows = self.db.fetch(&mut conn, sql, args![id]).await?;
        rows.first().map(|row| view::<D>(owned, row)).transpose().map_err(AdminError::from)
    }

    /// How many sagas there are that have not ended.
    ///
    /// # Errors
    ///
    /// What the database says.
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

    /// Lets a stuck saga try again where it stands, with all attempts and deadlines of the step anew.
    ///
    /// # Errors
    ///
    /// [`AdminError::NotStuck`], or what the database says.
    pub async fn retry(&self, id: &str) -> Result<(), AdminError> {
        let now = self.db.now();
        self.decide(id, |progress| progress.retry(now)).await
    }

    /// Lets a stuck saga go on without the step at which it stands: forward as if it were done, back as if it were undone.
    /// For somebody who has done, or undone, by hand what the step could not.
    ///
    /// # Errors
    ///
    /// [`AdminError::NotStuck`], or what the database says.
    pub async fn skip(&self, id: &str) -> Result<(), AdminError> {
        let now = self.db.now();
        self.decide(id, |progress| progress.skip(now)).await
    }

    /// Settles a stuck saga: nothing more is done for it, and `note` says why.
    ///
    /// # Errors
    ///
    /// [`AdminError::NotStuck`], or what the database says.
    pub async fn resolve(&self, id: &str, note: &str) -> Result<(), AdminError> {
        self.decide(id, |progress| progress.resolve(note)).await
    }

    /// Deletes sagas that ended before a moment; how many those were. Never those that are stuck.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn purge(&self, before: Timestamp) -> Result<u64, AdminError> {
        let mut tx = self.db.begin().await?;
        let ended = "DELETE FROM buttress_saga_step WHERE saga_id IN (SELECT id FROM buttress_saga
                     WHERE status IN ('completed', 'compensated', 'resolved') AND updated_at < $1)";
        self.db.execute(&mut tx, ended, args![before]).await?;
        let ended = "DELETE FROM buttress_saga
                     WHERE status IN ('completed', 'compensated', 'resolved') AND updated_at < $1";
        let purged = self.db.execute(&mut tx, ended, args![before]).await?;
        tx.commit().await?;
        Ok(purged)
    }

    async fn decide(&self, id: &str, decide: impl FnOnce(&mut Progress)) -> Result<(), AdminError> {
        let mut tx = self.db.begin().await?;
        // Takes the saga from whoever else decides at this moment: on PostgreSQL the row is locked, and the loser finds it
        // no longer stuck.
        let sql = "UPDATE buttress_saga SET generation = generation + 1 WHERE id = $1 AND status = 'stuck'";
        let taken = self.db.execute(&mut tx, sql, args![id]).await?;
        let saga = if taken == 1 { store::load(&self.db, &mut tx, id).await? } else { None };
        let Some(mut saga) = saga else { return Err(AdminError::NotStuck(id.to_owned())) };
        // A step that stands still before it ever began has no row, and no name but in the reason.
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

impl Default for Filter {
    fn default() -> Self {
        Self { status: None, after: String::new(), descending: false, limit: 100 }
    }
}

impl SagaView {
    /// Whether nothing will happen unless somebody acts: ended, or stuck.
    pub fn is_at_rest(&self) -> bool {
        self.status.is_final() || self.status == Status::Stuck
    }
}

fn view<D: Database>(owned: Owned, row: &D::Row) -> Result<SagaView, DbError> {
    let Owned { id, progress, names, data, .. } = owned;
    let steps = names.into_iter().zip(progress.steps).filter_map(|(name, row)| {
        let row = row?;
        Some(StepView {
            name,
            state: row.state,
            attempts: row.attempts,
            uncertain: row.uncertain,
            error: row.error,
            started_at: row.started_at,
            ended_at: row.ended_at,
        })
    });
    Ok(SagaView {
        id: id.to_string(),
        definition: D::text(row, 0)?,
        version: D::int(row, 1)?,
        status: progress.status,
        failure: progress.failure,
        stuck: progress.stuck,
        steps: steps.collect(),
        data,
        wake_at: progress.wake_at,
        created_at: Timestamp::from_millis(D::int(row, 2)?),
        updated_at: Timestamp::from_millis(D::int(row, 3)?),
    })
}
