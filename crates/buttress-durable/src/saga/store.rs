//! The SQL of sagas. Every write of a coordinator names its generation and has no effect if a newer
//! one exists.

use std::sync::Arc;
use std::time::Duration;

use super::machine::{Progress, StepRow};
use super::state::{Status, StepState};
use crate::clock::Timestamp;
use crate::db::database::args;
use crate::db::{Database, Db, DbError};
use crate::event::TraceContext;

/// A saga as it was read, with the generation that permits writes.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub(super) id: Arc<str>,
    pub(super) generation: i64,
    pub(super) progress: Progress,
    /// The rows of the steps as the database has them.
    pub(super) written: Vec<Option<StepRow>>,
    /// Names of the steps that have begun.
    pub(super) names: Vec<String>,
    pub(super) data: String,
    pub(super) trace: Option<TraceContext>,
    /// How often an owner was lost since the last progress.
    pub(super) recoveries: u32,
}

/// What to do with the lease when writing a saga.
pub(super) enum Lease {
    Keep(Duration),
    GiveBack,
}

/// Inserts a new saga. Returns false if the id exists.
pub(super) async fn insert<D: Database>(
    db: &Db<D>,
    conn: &mut D::Connection,
    id: &str,
    (definition, version): (&str, u32),
    (progress, data, trace): (&Progress, &str, Option<&str>),
) -> Result<bool, DbError> {
    let now = db.now();
    let inserted = db
        .execute(
            conn,
            "INSERT INTO buttress_saga (id, definition, version, status, step, data, trace, deadline_at, wake_at,
                 recoveries, generation, expires_at, created_at, updated_at)
             VALUES ($1, $2, $3, $4, 0, $5, $6, $7, $8, 0, 0, 0, $9, $9) ON CONFLICT (id) DO NOTHING",
            args![
                id,
                definition,
                i64::from(version),
                progress.status.as_str(),
                data,
                trace,
                progress.deadline_at.map(Timestamp::as_millis),
                progress.wake_at,
                now,
            ],
        )
        .await?;
    Ok(inserted == 1)
}

/// Claims up to `limit` sagas of a definition that are due and have no owner.
pub(super) async fn claim<D: Database>(
    db: &Db<D>,
    (definition, version): (&str, u32),
    owner: &str,
    ttl: Duration,
    limit: usize,
) -> Result<Vec<Owned>, DbError> {
    let now = db.now();
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    // A read first, since most queries find nothing and need no write lock.
    let due = "SELECT id FROM buttress_saga WHERE definition = $1 AND version = $2
               AND status IN ('running', 'compensating') AND wake_at <= $3 AND expires_at <= $3 LIMIT 1";
    if db.read(due, args![definition, i64::from(version), now]).await?.is_empty() {
        return Ok(Vec::new());
    }
    let mut tx = db.begin().await?;
    // The conditions are repeated: on PostgreSQL another coordinator may claim a row between the
    // subquery and the update, and only the outer conditions are evaluated again then.
    let rows = db
        .fetch(
            &mut tx,
            "UPDATE buttress_saga SET owner = $1, generation = generation + 1, expires_at = $2,
                 recoveries = recoveries + CASE WHEN owner IS NULL THEN 0 ELSE 1 END
             WHERE id IN (SELECT id FROM buttress_saga WHERE definition = $3 AND version = $4
                     AND status IN ('running', 'compensating') AND wake_at <= $5 AND expires_at <= $5
                     ORDER BY wake_at, id LIMIT $6)
                 AND status IN ('running', 'compensating') AND wake_at <= $5 AND expires_at <= $5
             RETURNING id",
            args![owner, now.plus(ttl), definition, i64::from(version), now, limit],
        )
        .await?;
    let mut claimed = Vec::with_capacity(rows.len());
    for row in &rows {
        claimed.extend(load(db, &mut tx, &D::text(row, 0)?).await?);
    }
    tx.commit().await?;
    Ok(claimed)
}

/// Returns when the next saga of a definition is due.
pub(super) async fn next_due<D: Database>(
    db: &Db<D>,
    (definition, version): (&str, u32),
) -> Result<Option<Timestamp>, DbError> {
    let sql = "SELECT MIN(CASE WHEN wake_at > expires_at THEN wake_at ELSE expires_at END) FROM buttress_saga
               WHERE definition = $1 AND version = $2 AND status IN ('running', 'compensating')";
    let rows = db.read(sql, args![definition, i64::from(version)]).await?;
    let due = rows.first().map(|row| D::maybe_int(row, 0)).transpose()?.flatten();
    Ok(due.map(Timestamp::from_millis))
}

/// Returns the status of a saga.
pub(super) async fn status<D: Database>(db: &Db<D>, id: &str) -> Result<Option<Status>, DbError> {
    let rows = db.read("SELECT status FROM buttress_saga WHERE id = $1", args![id]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let status = D::text(row, 0)?;
    Status::parse(&status).map(Some).ok_or(DbError::Unreadable { what: "status", value: status })
}

/// Reads a saga and its steps.
pub(super) async fn load<D: Database>(
    db: &Db<D>,
    conn: &mut D::Connection,
    id: &str,
) -> Result<Option<Owned>, DbError> {
    let sql = "SELECT generation, status, step, data, failure, stuck, trace, deadline_at, wake_at, recoveries
               FROM buttress_saga WHERE id = $1";
    let rows = db.fetch(conn, sql, args![id]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let status = D::text(row, 1)?;
    let mut progress = Progress {
        status: Status::parse(&status).ok_or(DbError::Unreadable { what: "status", value: status })?,
        step: usize::try_from(D::int(row, 2)?).unwrap_or(usize::MAX),
        steps: Vec::new(),
        failure: json("failure", D::maybe_text(row, 4)?)?,
        stuck: json("stuck", D::maybe_text(row, 5)?)?,
        deadline_at: D::maybe_int(row, 7)?.map(Timestamp::from_millis),
        wake_at: Timestamp::from_millis(D::int(row, 8)?),
    };
    let sql = "SELECT step, state, attempts, uncertain, error, started_at, ended_at, name
               FROM buttress_saga_step WHERE saga_id = $1 ORDER BY step";
    let mut names = Vec::new();
    for row in &db.fetch(conn, sql, args![id]).await? {
        let state = D::text(row, 1)?;
        progress.steps.push(Some(StepRow {
            state: StepState::parse(&state).ok_or(DbError::Unreadable { what: "state", value: state })?,
            attempts: u32::try_from(D::int(row, 2)?).unwrap_or(u32::MAX),
            uncertain: D::int(row, 3)? != 0,
            error: D::maybe_text(row, 4)?,
            started_at: Timestamp::from_millis(D::int(row, 5)?),
            ended_at: D::maybe_int(row, 6)?.map(Timestamp::from_millis),
        }));
        names.push(D::text(row, 7)?);
    }
    Ok(Some(Owned {
        id: id.into(),
        generation: D::int(row, 0)?,
        written: progress.steps.clone(),
        progress,
        names,
        data: D::text(row, 3)?,
        trace: json("trace", D::maybe_text(row, 6)?)?,
        recoveries: u32::try_from(D::int(row, 9)?).unwrap_or(u32::MAX),
    }))
}

/// Writes a saga and its steps. Returns false, without a write, if there is a newer generation.
pub(super) async fn save<D: Database>(
    db: &Db<D>,
    conn: &mut D::Connection,
    saga: &mut Owned,
    names: &[&str],
    lease: Lease,
) -> Result<bool, DbError> {
    let now = db.now();
    let Progress { status, step, steps, failure, stuck, wake_at, .. } = &saga.progress;
    let expires_at = match lease {
        Lease::Keep(ttl) => now.plus(ttl).as_millis(),
        Lease::GiveBack => 0,
    };
    let saved = db
        .execute(
            conn,
            "UPDATE buttress_saga SET status = $1, step = $2, data = $3, failure = $4, stuck = $5, wake_at = $6,
                 recoveries = $7, expires_at = $8, owner = CASE WHEN $8 = 0 THEN NULL ELSE owner END, updated_at = $9
             WHERE id = $10 AND generation = $11",
            args![
                status.as_str(),
                i64::try_from(*step).unwrap_or(i64::MAX),
                &saga.data,
                text("failure", failure)?.as_deref(),
                text("stuck", stuck)?.as_deref(),
                *wake_at,
                i64::from(saga.recoveries),
                expires_at,
                now,
                &*saga.id,
                saga.generation,
            ],
        )
        .await?;
    if saved == 0 {
        return Ok(false);
    }
    for (index, (row, name)) in steps.iter().zip(names).enumerate() {
        let Some(row) = row else { continue };
        if saga.written.get(index).and_then(Option::as_ref) == Some(row) {
            continue;
        }
        db.execute(
            conn,
            "INSERT INTO buttress_saga_step
                 (saga_id, step, name, state, attempts, uncertain, error, started_at, ended_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             ON CONFLICT (saga_id, step) DO UPDATE SET state = excluded.state, attempts = excluded.attempts,
                 uncertain = excluded.uncertain, error = excluded.error, started_at = excluded.started_at,
                 ended_at = excluded.ended_at",
            args![
                &*saga.id,
                i64::try_from(index).unwrap_or(i64::MAX),
                *name,
                row.state.as_str(),
                i64::from(row.attempts),
                i64::from(row.uncertain),
                row.error.as_deref(),
                row.started_at,
                row.ended_at.map(Timestamp::as_millis),
            ],
        )
        .await?;
    }
    saga.written.clone_from(steps);
    Ok(true)
}

/// Extends the lease to `ttl` from now. Returns false if there is a newer generation.
pub(super) async fn renew<D: Database>(db: &Db<D>, id: &str, generation: i64, ttl: Duration) -> Result<bool, DbError> {
    let sql = "UPDATE buttress_saga SET expires_at = $1 WHERE id = $2 AND generation = $3";
    Ok(db.write(sql, args![db.now().plus(ttl), id, generation]).await? == 1)
}

fn json<T: serde::de::DeserializeOwned>(what: &'static str, text: Option<String>) -> Result<Option<T>, DbError> {
    let unreadable = |error: serde_json::Error| DbError::Unreadable { what, value: error.to_string() };
    text.map(|text| serde_json::from_str(&text).map_err(unreadable)).transpose()
}

pub(super) fn text<T: serde::Serialize>(what: &'static str, value: &Option<T>) -> Result<Option<String>, DbError> {
    let unwritable = |error: serde_json::Error| DbError::Unreadable { what, value: error.to_string() };
    value.as_ref().map(|value| serde_json::to_string(value).map_err(unwritable)).transpose()
}
