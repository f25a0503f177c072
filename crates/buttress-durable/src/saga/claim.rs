//! Finds and claims the sagas that are due, the one that was due first before the others, whatever
//! its definition.

use std::fmt::Write;
use std::time::Duration;

use super::state::Stuck;
use super::store::{self, Owned};
use crate::clock::Timestamp;
use crate::db::database::args;
use crate::db::{Database, Db, DbError};
use crate::text::{Chain, storable};

/// The statements for the registered definitions.
///
/// They consist of a part for each definition and kind of version, which an index answers by
/// reading as many rows as it returns: in order of `wake_at`, however many sagas wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claims {
    due: &'static str,
    claim: &'static str,
    /// The longest pause of the definitions.
    longest: Duration,
}

/// What was found.
pub(super) struct Claimed {
    pub(super) sagas: Vec<Owned>,
    /// The time at which they were due.
    pub(super) now: Timestamp,
    /// The time until the next saga is due, if none was claimed and one waits.
    pub(super) next: Option<Duration>,
}

/// Live, and without an owner whose lease lasts. `$1` is the time of leases, and `$2` the end of
/// two that begin now: no lease ends later, unless it was measured by a clock that was ahead. Two,
/// since a coordinator that waits for another's lock compares with the time before it waited, and
/// must not take the lease that began meanwhile.
const FREE: &str = "status IN ('running', 'compensating') AND (expires_at <= $1 OR expires_at > $2)";

impl Claims {
    /// Builds the statements. They live as long as the process, as those of a coordinator do.
    ///
    /// A saga that waits longer than `longest` was written by a clock that was ahead, and is due.
    /// It has a part of its own, because the index cannot answer the two conditions in one order.
    pub(super) fn new<'a>(definitions: impl Iterator<Item = (&'a str, u32)> + Clone, longest: Duration) -> Self {
        let due = union(
            definitions.clone(),
            [
                ("wake_at", "", "ORDER BY wake_at LIMIT 1"),
                ("CAST(0 AS BIGINT) AS wake_at", "AND wake_at > $3", "LIMIT 1"),
            ],
        );
        let claim = union(
            definitions,
            [
                ("id, wake_at", "AND wake_at <= $3", "ORDER BY wake_at, id LIMIT $4"),
                ("id, wake_at", "AND wake_at > $7", "ORDER BY wake_at, id LIMIT $4"),
            ],
        );
        Self {
            longest,
            due: String::leak(format!("SELECT MIN(wake_at) FROM ({due}) AS due")),
            // The conditions are repeated: on PostgreSQL another coordinator may claim a row
            // between the subquery and the update, and only the outer conditions are evaluated
            // again then.
            claim: String::leak(format!(
                "UPDATE buttress_saga SET owner = $5, generation = generation + 1, expires_at = $6,
                     recoveries = recoveries + CASE WHEN owner IS NULL THEN 0 ELSE 1 END
                 WHERE id IN (SELECT id FROM ({claim}) AS due ORDER BY wake_at, id LIMIT $4)
                     AND {FREE} AND (wake_at <= $3 OR wake_at > $7)
                 RETURNING id"
            )),
        }
    }

    /// Claims up to `limit` sagas that are due.
    pub(super) async fn claim<D: Database>(
        &self,
        db: &Db<D>,
        owner: &str,
        ttl: Duration,
        limit: usize,
    ) -> Result<Claimed, DbError> {
        // Pauses are measured by the clock of leases too, so that on PostgreSQL all coordinators
        // agree when they are over.
        let (now, began) = (db.lease_now().await?, db.now());
        let latest = now.plus(self.longest);
        // A read first, since most queries find nothing and need no write lock.
        let rows = db.read(self.due, args![now, now.plus(ttl).plus(ttl), latest]).await?;
        let next = rows.first().map(|row| D::maybe_int(row, 0)).transpose()?.flatten().map(Timestamp::from_millis);
        if next.is_none_or(|due| due > now) {
            return Ok(Claimed { sagas: Vec::new(), now, next: next.map(|due| due.since(now)) });
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut tx = db.begin().await?;
        // The time spent waiting for the write lock.
        let lease_now = now.plus(db.now().since(began));
        let (ends, too_late) = (lease_now.plus(ttl), lease_now.plus(ttl).plus(ttl));
        let rows = db.fetch(&mut tx, self.claim, args![lease_now, too_late, now, limit, owner, ends, latest]).await?;
        let mut sagas = Vec::with_capacity(rows.len());
        for row in &rows {
            let key = D::text(row, 0)?;
            match store::load(db, &mut tx, &key).await {
                Ok(saga) => sagas.extend(saga),
                // One that cannot be read must not hold up the others.
                Err(error) if is_unreadable(&error) => stick(db, &mut tx, &key, &error).await?,
                Err(error) => return Err(error),
            }
        }
        tx.commit().await?;
        Ok(Claimed { sagas, now, next: None })
    }
}

/// Parts for each definition and kind of version. A part has columns of the rows that are `FREE`,
/// another condition, and which rows come first.
fn union<'a, const N: usize>(
    definitions: impl Iterator<Item = (&'a str, u32)>,
    parts: [(&str, &str, &str); N],
) -> String {
    let mut sql = String::new();
    let versions = definitions.flat_map(|(name, version)| {
        // Those of older processes, and those with ids of their own.
        [i64::from(version), store::stored(version)].map(|version| (name, version))
    });
    let all = versions.flat_map(|version| parts.map(|part| (version, part)));
    for (n, ((name, version), (columns, also, first))) in all.enumerate() {
        let union = if n == 0 { "" } else { " UNION ALL " };
        // A name has no characters that would need quoting; see `Definition::new`.
        let _ = write!(
            sql,
            "{union}SELECT * FROM (SELECT {columns} FROM buttress_saga
                 WHERE definition = '{name}' AND version = {version} AND {FREE} {also} {first}) AS d{n}"
        );
    }
    sql
}

/// Whether the row of a saga is at fault, and not the database.
pub(super) fn is_unreadable(error: &DbError) -> bool {
    match error {
        DbError::Unreadable { .. } => true,
        DbError::Sqlx(error) => matches!(error, sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_)),
        _ => false,
    }
}

/// Why a saga that cannot be read is stuck.
pub(super) fn unreadable(error: &DbError, step: String, compensating: bool) -> Stuck {
    let message = storable(format_args!("cannot be read: {}", Chain(error)));
    Stuck { step, message, compensating, note: None }
}

/// Makes a saga stuck that cannot be read.
async fn stick<D: Database>(db: &Db<D>, conn: &mut D::Connection, key: &str, error: &DbError) -> Result<(), DbError> {
    let sql = "SELECT saga.status, step.name FROM buttress_saga AS saga
               LEFT JOIN buttress_saga_step AS step ON step.saga_id = saga.id AND step.step = saga.step
               WHERE saga.id = $1";
    let rows = db.fetch(conn, sql, args![key]).await?;
    let compensating = rows.first().is_some_and(|row| D::text(row, 0).is_ok_and(|status| status == "compensating"));
    let step = rows.first().and_then(|row| D::maybe_text(row, 1).ok().flatten()).unwrap_or_default();
    let stuck = unreadable(error, step, compensating);
    tracing::error!(saga = key, reason = stuck.message, "saga is stuck");
    let sql = "UPDATE buttress_saga SET status = 'stuck', stuck = $1, owner = NULL, expires_at = 0, updated_at = $2
               WHERE id = $3";
    db.execute(conn, sql, args![store::text("stuck", &Some(stuck))?.as_deref(), db.now(), key]).await.map(drop)
}
