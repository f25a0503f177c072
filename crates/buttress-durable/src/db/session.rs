//! A connection on loan from the pool, which returns only if it is known to be in order.
//!
//! sqlx returns a connection whatever has happened to it. Three things make such a connection
//! useless for good: a transaction that the database has rolled back by itself (SQLite, when the
//! disk is full), which sqlx still counts as open; an operation whose future was dropped half-way;
//! and a peer that no longer answers, for which the test on return waits as long as the kernel
//! does.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Pool};
use sqlx_core::transaction::TransactionManager as _;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::database::Database;

/// A connection on loan. Dereferences to it.
#[derive(Debug)]
pub(crate) struct Session<D: Database> {
    /// `None` only while it is dropped.
    conn: Option<PoolConnection<D>>,
    /// Whether an operation has begun and not ended.
    busy: bool,
    /// Whether an operation has failed in a way that leaves the connection unusable.
    broken: bool,
    /// Whether a transaction was begun and not ended.
    open: bool,
    /// The right to write, which is passed on when the transaction has ended.
    permit: Option<OwnedSemaphorePermit>,
    limit: Option<Duration>,
}

/// Time limit for the test of a connection that returns, where statements have one. A connection
/// that does not answer is dropped, and its place in the pool is free again.
const RETURN: Duration = Duration::from_secs(2);

tokio::task_local! {
    /// Set while a session returns its connection, which is limited already. See
    /// [`returns_by_itself`].
    static RETURNS: ();
}

/// Whether the connection at hand returns to its pool without a session, so that the pool has to
/// limit the test.
#[cfg(feature = "postgres")]
pub(super) fn returns_by_itself() -> bool {
    RETURNS.try_with(|()| ()).is_err()
}

/// Runs an operation on a connection with a time limit, if there is one.
pub(super) async fn within<T>(
    limit: Option<Duration>,
    operation: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let Some(limit) = limit else { return operation.await };
    match timeout(limit, operation).await {
        Ok(result) => result,
        Err(_) => {
            let message = format!("the database did not answer within {limit:?}");
            Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, message)))
        }
    }
}

impl<D: Database> Session<D> {
    /// Acquires a connection. `limit` is the time limit of each operation.
    pub(super) async fn acquire(
        pool: &Pool<D>,
        limit: Option<Duration>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Self, sqlx::Error> {
        let conn = Some(pool.acquire().await?);
        Ok(Self { conn, busy: false, broken: false, open: false, permit, limit })
    }

    /// Begins a transaction.
    pub(super) async fn begin(&mut self) -> Result<(), sqlx::Error> {
        let limit = self.limit;
        let begun = within(limit, begin::<D>(self.enter())).await;
        self.leave(begun)?;
        self.open = true;
        Ok(())
    }

    /// Commits the transaction, and passes the right to write on.
    pub(super) async fn commit(mut self) -> Result<(), sqlx::Error> {
        let limit = self.limit;
        let committed = within(limit, D::commit(self.enter())).await;
        self.leave(committed)?;
        self.open = false;
        Ok(())
    }

    /// Rolls the transaction back. If that fails, the connection is closed, which has the same
    /// effect.
    pub(super) async fn rollback(mut self) -> Result<(), sqlx::Error> {
        if self.broken {
            return Ok(());
        }
        let limit = self.limit;
        within(limit, rollback::<D>(self.enter())).await?;
        (self.busy, self.open) = (false, false);
        Ok(())
    }

    pub(super) async fn execute(&mut self, sql: &'static str, args: &[super::Arg<'_>]) -> Result<u64, sqlx::Error> {
        let limit = self.limit;
        let result = within(limit, D::execute(self.enter(), sql, args)).await;
        self.leave(result)
    }

    pub(super) async fn fetch(
        &mut self,
        sql: &'static str,
        args: &[super::Arg<'_>],
    ) -> Result<Vec<D::Row>, sqlx::Error> {
        let limit = self.limit;
        let result = within(limit, D::fetch(self.enter(), sql, args)).await;
        self.leave(result)
    }

    /// Returns the connection for an operation. If its future is dropped before
    /// [`leave`](Self::leave), the connection is closed.
    fn enter(&mut self) -> &mut D::Connection {
        self.busy = true;
        &mut *self
    }

    /// Notes the result of an operation.
    fn leave<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        self.busy = false;
        self.broken |= result.as_ref().err().is_some_and(|error| D::breaks(error));
        result
    }
}

impl<D: Database> Drop for Session<D> {
    fn drop(&mut self) {
        let Some(mut conn) = self.conn.take() else { return };
        let Ok(runtime) = Handle::try_current() else {
            // The pool would panic. Closing the connection rolls back.
            drop(conn.detach());
            return;
        };
        let doubt = self.busy || self.broken;
        if self.open && !doubt {
            start_rollback::<D>(&mut conn);
        }
        // Passed on when the transaction has ended. The next writer would wait for that in the
        // database otherwise, without a queue.
        let permit = self.permit.take().filter(|_| self.open || doubt);
        let limit = self.limit.map(|_| RETURN);
        runtime.spawn(RETURNS.scope((), async move {
            // Dropped at the limit, the connection leaves the pool.
            let _ = within(limit, if doubt { conn.close().boxed() } else { give_back(conn).boxed() }).await;
            drop(permit);
        }));
    }
}

/// Returns a connection to its pool, after a rollback that has been queued.
async fn give_back<D: Database>(mut conn: PoolConnection<D>) -> Result<(), sqlx::Error> {
    // SQLite rolls back in its own thread, which the ping waits for.
    if conn.is_in_transaction() && (conn.ping().await.is_err() || conn.is_in_transaction()) {
        return conn.close().await;
    }
    conn.return_to_pool().await;
    Ok(())
}

fn begin<D: Database>(conn: &mut D::Connection) -> impl Future<Output = Result<(), sqlx::Error>> + Send + '_ {
    <D::TransactionManager>::begin(conn, Some(sqlx::SqlSafeStr::into_sql_str(D::BEGIN)))
}

#[cfg(feature = "sqlite")]
pub(super) fn commit<D: sqlx::Database>(
    conn: &mut D::Connection,
) -> impl Future<Output = Result<(), sqlx::Error>> + Send + '_ {
    <D::TransactionManager>::commit(conn)
}

fn rollback<D: Database>(conn: &mut D::Connection) -> impl Future<Output = Result<(), sqlx::Error>> + Send + '_ {
    <D::TransactionManager>::rollback(conn)
}

/// Queues a rollback, which runs before anything else on the connection.
pub(super) fn start_rollback<D: sqlx::Database>(conn: &mut D::Connection) {
    <D::TransactionManager>::start_rollback(conn);
}

/// Returns the number of open transactions: 1, or more with savepoints.
#[cfg(feature = "postgres")]
pub(super) fn depth<D: sqlx::Database>(conn: &D::Connection) -> usize {
    <D::TransactionManager>::get_transaction_depth(conn)
}

impl<D: Database> Deref for Session<D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        self.conn.as_ref().expect("a session has a connection")
    }
}

impl<D: Database> DerefMut for Session<D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        self.conn.as_mut().expect("a session has a connection")
    }
}
