use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::db::database::Arg;
use crate::db::{Database, Db, DbError};
use crate::task::Stop;

/// Deletes old rows in small transactions, so that a writer never waits long: on SQLite there is
/// one write lock.
///
/// Each bite has as many rows as the last ones suggest for [`TARGET`]. Between two bites there is a
/// pause of the same length, in which writers of other processes find the lock free.
#[derive(Debug)]
pub(crate) struct Bites {
    rows: i64,
    stop: Option<Stop>,
}

/// The statements that delete rows. Each takes the same arguments, the last of which is the
/// number of rows.
pub(crate) struct Delete {
    /// Returns a row if there is something to delete. Takes the arguments without the last one. A
    /// read, because most of the time there is nothing, and a write would take the lock.
    pub(crate) due: &'static str,
    /// Run in one transaction. The last statement counts.
    pub(crate) statements: &'static [&'static str],
}

/// How long a bite should take.
const TARGET: Duration = Duration::from_millis(10);
/// Rows of the first bite.
const FIRST: i64 = 50;
const MOST: i64 = 2_000;
/// Shortest pause. Long enough for a writer of another process, which polls for SQLite's lock.
const PAUSE: Duration = Duration::from_millis(2);

impl Default for Bites {
    fn default() -> Self {
        Self { rows: FIRST, stop: None }
    }
}

impl Bites {
    /// Ends between two bites when the worker is stopped.
    pub(super) fn until(stop: Stop) -> Self {
        Self { rows: FIRST, stop: Some(stop) }
    }

    /// Deletes bite by bite until nothing is left. Returns the number of deleted rows.
    pub(crate) async fn delete<D: Database>(
        &mut self,
        db: &Db<D>,
        delete: &Delete,
        args: &[Arg<'_>],
    ) -> Result<u64, DbError> {
        let mut deleted = 0;
        if db.read(delete.due, args).await?.is_empty() {
            return Ok(deleted);
        }
        while !self.stop.as_ref().is_some_and(Stop::is_set) {
            let asked = self.rows;
            let (rows, took) = bite(db, delete.statements, args, asked).await?;
            deleted += rows;
            if rows < asked.cast_unsigned() {
                break;
            }
            self.rows = adapted(asked, took);
            if let Some(sql) = D::CHECKPOINT {
                // Otherwise a commit copies 1,000 pages and flushes the file while it has the only
                // write permit of the process.
                db.read(sql, &[]).await?;
            }
            sleep(took.max(PAUSE)).await;
        }
        Ok(deleted)
    }
}

/// Runs the statements in one transaction, and measures how long it had the write lock.
#[expect(clippy::disallowed_methods, reason = "a stopwatch, on tokio's clock")]
async fn bite<D: Database>(
    db: &Db<D>,
    statements: &'static [&'static str],
    args: &[Arg<'_>],
    rows: i64,
) -> Result<(u64, Duration), DbError> {
    let args: Vec<_> = args.iter().copied().chain([Arg::Int(rows)]).collect();
    let mut tx = db.begin().await?;
    let start = Instant::now();
    let mut deleted = 0;
    for sql in statements {
        deleted = tx.execute(sql, &args).await?;
    }
    tx.commit().await?;
    Ok((deleted, start.elapsed()))
}

/// Returns how many rows to delete next, after `rows` took this long. Grows slowly and shrinks
/// fast.
fn adapted(rows: i64, took: Duration) -> i64 {
    let ratio = TARGET.as_secs_f64() / took.as_secs_f64().max(1e-6);
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "clamped right after")]
    let fitting = (rows as f64 * ratio) as i64;
    fitting.clamp((rows / 8).max(1), rows.saturating_mul(2)).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_bite_has_as_many_rows_as_fit_into_the_target() {
        assert_eq!(adapted(100, TARGET), 100);
        assert_eq!(adapted(100, TARGET * 2), 50);
        assert_eq!(adapted(100, TARGET / 10), 200, "at most twice as many");
        assert_eq!(adapted(100, TARGET * 1_000), 12, "at least an eighth");
        assert_eq!((adapted(1, TARGET * 9), adapted(MOST, Duration::ZERO)), (1, MOST));
    }
}
