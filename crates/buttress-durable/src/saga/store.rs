//! The SQL of sagas. Every write of a coordinator names its generation and has no effect if a newer
//! one exists.
//!
//! The column `id` is the key of the row: `definition:id`. Rows from before ids belonged to their
//! definition have the id alone, and `own_id` is NULL. `COALESCE(own_id, id)` is the id in both.

use std::sync::Arc;
use std::time::Duration;

use super::id::SagaId;
use super::machine::{Progress, StepRow};
use super::state::{Status, StepState};
use crate::clock::Timestamp;
use crate::db::database::args;
use crate::db::{Database, Db, DbError};
use crate::event::{DomainEvent, TraceContext};

/// A saga as it was read, with the generation that permits writes.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    /// The key of the row, and the beginning of the idempotency keys.
    pub(super) key: Arc<str>,
    pub(super) id: Arc<SagaId>,
    pub(super) version: u32,
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
    /// The decisions in which the definition takes part.
    pub(super) hooks: i64,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
}

/// What to do with the lease when writing a saga.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lease {
    Until(Timestamp),
    GiveBack,
}

/// A new saga.
pub(super) struct New<'a> {
    pub(super) id: &'a SagaId,
    pub(super) version: u32,
    pub(super) hooks: i64,
    pub(super) progress: &'a Progress,
    pub(super) data: &'a str,
    pub(super) trace: Option<&'a str>,
}

/// The version as stored with a saga whose id belongs to its definition. Negative, so that older
/// processes, which would derive other idempotency keys for it, do not claim it.
pub(super) fn stored(version: u32) -> i64 {
    -i64::from(version)
}

/// The version of a stored one, of either kind of row.
pub(super) fn version(stored: i64) -> u32 {
    u32::try_from(stored.unsigned_abs()).unwrap_or(u32::MAX)
}

/// Inserts a new saga. Returns false if the id exists.
pub(super) async fn insert<D: Database>(db: &Db<D>, conn: &mut D::Connection, new: New<'_>) -> Result<bool, DbError> {
    let New { id, version, hooks, progress, data, trace } = new;
    let now = db.now();
    let inserted = db
        .execute(
            conn,
            "INSERT INTO buttress_saga (id, definition, own_id, version, hooks, status, step, data, trace,
                 deadline_at, wake_at, recoveries, generation, expires_at, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, 0, $7, $8, $9, $10, 0, 0, 0, $11, $11) ON CONFLICT DO NOTHING",
            args![
                &id.to_string(),
                id.definition(),
                id.id(),
                stored(version),
                hooks,
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

/// Returns the status of a saga.
pub(super) async fn status<D: Database>(db: &Db<D>, id: &SagaId) -> Result<Option<Status>, DbError> {
    let sql = "SELECT status FROM buttress_saga WHERE COALESCE(own_id, id) = $1 AND definition = $2";
    let rows = db.read(sql, args![id.id(), id.definition()]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let status = D::text(row, 0)?;
    Status::parse(&status).map(Some).ok_or(DbError::Unreadable { what: "status", value: status })
}

/// Returns the key of a saga's row.
pub(super) async fn key<D: Database>(
    db: &Db<D>,
    conn: &mut D::Connection,
    id: &SagaId,
) -> Result<Option<String>, DbError> {
    let sql = "SELECT id FROM buttress_saga WHERE COALESCE(own_id, id) = $1 AND definition = $2";
    let rows = db.fetch(conn, sql, args![id.id(), id.definition()]).await?;
    Ok(rows.first().map(|row| D::text(row, 0)).transpose()?)
}

/// Reads a saga and its steps.
pub(super) async fn load<D: Database>(
    db: &Db<D>,
    conn: &mut D::Connection,
    key: &str,
) -> Result<Option<Owned>, DbError> {
    let sql = "SELECT generation, status, step, data, failure, stuck, trace, deadline_at, wake_at, recoveries,
                   definition, COALESCE(own_id, id), version, hooks, created_at, updated_at
               FROM buttress_saga WHERE id = $1";
    let rows = db.fetch(conn, sql, args![key]).await?;
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
    let sql = "SELECT step, state, attempts, uncertain, error, started_at, ended_at, name, refused
               FROM buttress_saga_step WHERE saga_id = $1 ORDER BY step";
    let mut names = Vec::new();
    for row in &db.fetch(conn, sql, args![key]).await? {
        let state = D::text(row, 1)?;
        progress.steps.push(Some(StepRow {
            state: StepState::parse(&state).ok_or(DbError::Unreadable { what: "state", value: state })?,
            attempts: u32::try_from(D::int(row, 2)?).unwrap_or(u32::MAX),
            refused: u32::try_from(D::int(row, 8)?).unwrap_or(u32::MAX),
            uncertain: D::int(row, 3)? != 0,
            error: D::maybe_text(row, 4)?,
            started_at: Timestamp::from_millis(D::int(row, 5)?),
            ended_at: D::maybe_int(row, 6)?.map(Timestamp::from_millis),
        }));
        names.push(D::text(row, 7)?);
    }
    Ok(Some(Owned {
        key: key.into(),
        id: Arc::new(SagaId::new(D::text(row, 10)?, D::text(row, 11)?)),
        version: version(D::int(row, 12)?),
        generation: D::int(row, 0)?,
        written: progress.steps.clone(),
        progress,
        names,
        data: D::text(row, 3)?,
        trace: json("trace", D::maybe_text(row, 6)?)?,
        recoveries: u32::try_from(D::int(row, 9)?).unwrap_or(u32::MAX),
        hooks: D::int(row, 13)?,
        created_at: Timestamp::from_millis(D::int(row, 14)?),
        updated_at: Timestamp::from_millis(D::int(row, 15)?),
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
        Lease::Until(expires_at) => expires_at.as_millis(),
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
                &*saga.key,
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
                 (saga_id, step, name, state, attempts, refused, uncertain, error, started_at, ended_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
             ON CONFLICT (saga_id, step) DO UPDATE SET state = excluded.state, attempts = excluded.attempts,
                 refused = excluded.refused, uncertain = excluded.uncertain, error = excluded.error, started_at = excluded.started_at,
                 ended_at = excluded.ended_at",
            args![
                &*saga.key,
                i64::try_from(index).unwrap_or(i64::MAX),
                *name,
                row.state.as_str(),
                i64::from(row.attempts),
                i64::from(row.refused),
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
pub(super) async fn renew<D: Database>(db: &Db<D>, saga: &Owned, ttl: Duration) -> Result<bool, DbError> {
    let sql = "UPDATE buttress_saga SET expires_at = $1 WHERE id = $2 AND generation = $3";
    let expires_at = db.lease_now().await?.plus(ttl);
    Ok(db.write(sql, args![expires_at, &*saga.key, saga.generation]).await? == 1)
}

/// Gives a saga back that cannot be written now, so that it is claimed again after a pause, and not
/// as one whose owner was lost. No effect if there is a newer generation.
pub(super) async fn release<D: Database>(db: &Db<D>, saga: &Owned, pause: Duration) -> Result<(), DbError> {
    let sql = "UPDATE buttress_saga SET owner = NULL, expires_at = $1 WHERE id = $2 AND generation = $3";
    let free_at = db.lease_now().await?.plus(pause);
    db.write(sql, args![free_at, &*saga.key, saga.generation]).await.map(drop)
}

impl Owned {
    /// Continues the saga's trace in an event that has none.
    pub(super) fn traced(&self, event: DomainEvent) -> DomainEvent {
        match &self.trace {
            Some(trace) if event.trace().is_none() => event.with_trace(trace.clone()),
            _ => event,
        }
    }
}

fn json<T: serde::de::DeserializeOwned>(what: &'static str, text: Option<String>) -> Result<Option<T>, DbError> {
    let unreadable = |error: serde_json::Error| DbError::Unreadable { what, value: error.to_string() };
    text.map(|text| serde_json::from_str(&text).map_err(unreadable)).transpose()
}

pub(super) fn text<T: serde::Serialize>(what: &'static str, value: &Option<T>) -> Result<Option<String>, DbError> {
    let unwritable = |error: serde_json::Error| DbError::Unreadable { what, value: error.to_string() };
    value.as_ref().map(|value| serde_json::to_string(value).map_err(unwritable)).transpose()
}
