use std::ops::{Deref, DerefMut};

use super::DbError;
use super::database::{Arg, Database};
use super::error::FailedStatement;
use super::fault::Faults;
use super::session::Session;

/// A writing transaction. Dereferences to the connection, for statements of your own. Dropping it
/// rolls it back.
///
/// A transaction in which a statement has failed cannot be committed, unless the statement is
/// undone with a savepoint: [`commit`](Self::commit) returns [`DbError::Aborted`]. So a failure
/// that was swallowed cannot commit half of the work.
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::{Db, DbError, args};
///
/// # let dir = tempfile::tempdir()?;
/// # let db = Db::open(dir.path().join("orders.db")).await?;
/// # let mut tx = db.begin().await?;
/// # tx.execute("CREATE TABLE orders (id TEXT PRIMARY KEY)", args![]).await?;
/// # tx.commit().await?;
/// let mut tx = db.begin().await?;
/// tx.execute("INSERT INTO orders (id) VALUES ($1)", args!["order-7"]).await?;
/// let twice = tx.execute("INSERT INTO orders (id) VALUES ($1)", args!["order-7"]).await;
/// assert!(twice.is_err());
/// assert!(matches!(tx.commit().await, Err(DbError::Aborted(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// PostgreSQL notices every failure. SQLite commits what has succeeded, so there the transaction
/// notices failures of [`execute`](Self::execute), [`rows`](Self::rows) and [`row`](Self::row)
/// only: pass on the errors of statements that you run on the connection itself.
#[must_use = "dropping a transaction rolls it back"]
#[derive(Debug)]
pub struct Tx<D: Database> {
    session: Session<D>,
    faults: Faults,
    /// The first statement that failed and was not undone.
    failed: Option<FailedStatement>,
}

impl<D: Database> Tx<D> {
    pub(super) fn new(session: Session<D>, faults: Faults) -> Self {
        Self { session, faults, failed: None }
    }

    /// Commits the transaction.
    ///
    /// # Errors
    ///
    /// [`DbError::Aborted`] if a statement of the transaction has failed: nothing was committed.
    /// [`DbError::Sqlx`] if the database fails; if the connection broke, the commit may have
    /// happened nevertheless.
    pub async fn commit(self) -> Result<(), DbError> {
        let Self { session, faults, failed } = self;
        faults.before_commit().await;
        if failed.is_some() && !D::ABORTS {
            // The failure is what matters. Without the rollback, the connection is closed.
            let _ = session.rollback().await;
            return Err(DbError::Aborted(failed));
        }
        session
            .commit()
            .await
            .map_err(|error| if is_aborted(&error) { DbError::Aborted(failed) } else { error.into() })?;
        faults.after_commit().await;
        Ok(())
    }

    /// Rolls the transaction back.
    ///
    /// # Errors
    ///
    /// If the database fails. The writes are undone nevertheless.
    pub async fn rollback(self) -> Result<(), DbError> {
        Ok(self.session.rollback().await?)
    }

    pub(super) async fn run(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<u64, DbError> {
        self.faults.statement(sql).await;
        self.check(sql)?;
        let result = self.session.execute(sql, args).await;
        self.note(sql, result)
    }

    pub(super) async fn query(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<Vec<D::Row>, DbError> {
        self.faults.statement(sql).await;
        self.check(sql)?;
        let result = self.session.fetch(sql, args).await;
        self.note(sql, result)
    }

    /// Refuses statements after a failure, as PostgreSQL does. SQLite would run them; if it has
    /// rolled the transaction back by itself, each would be committed at once.
    fn check(&self, sql: &str) -> Result<(), DbError> {
        match &self.failed {
            Some(failed) if !D::ABORTS && !undoes(sql) => Err(DbError::Aborted(Some(failed.clone()))),
            _ => Ok(()),
        }
    }

    fn note<T>(&mut self, sql: &'static str, result: Result<T, sqlx::Error>) -> Result<T, DbError> {
        let result = result.map_err(DbError::from);
        match &result {
            Ok(_) if undoes(sql) => self.failed = None,
            Ok(_) => {}
            Err(error) => {
                self.failed.get_or_insert_with(|| FailedStatement::new(sql, error));
            }
        }
        result
    }
}

/// Whether a statement returns to a savepoint.
fn undoes(sql: &str) -> bool {
    let mut words = sql.split_ascii_whitespace().map(str::to_ascii_uppercase);
    words.next().as_deref() == Some("ROLLBACK") && words.any(|word| word == "TO")
}

/// Whether PostgreSQL refused to commit because a statement has failed (in_failed_sql_transaction).
fn is_aborted(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "25P02")
}

impl<D: Database> Deref for Tx<D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        &self.session
    }
}

impl<D: Database> DerefMut for Tx<D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        &mut self.session
    }
}
