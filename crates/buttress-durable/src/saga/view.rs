//! Sagas as an operator sees them.

use super::state::{Failure, Status, StepState, Stuck};
use super::store::Owned;
use crate::clock::Timestamp;
use crate::db::{Database, DbError};

/// Selects sagas. The default selects the first 100 by id.
///
/// ```
/// use buttress_durable::saga::{Filter, Status};
///
/// let newest_stuck = Filter { status: Some(Status::Stuck), descending: true, limit: 20, ..Filter::default() };
/// # assert_eq!(newest_stuck.limit, 20);
/// ```
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only sagas with this status. Default: all.
    pub status: Option<Status>,
    /// Only ids behind this one: the last id of the previous page. Default: empty, the first page.
    pub after: String,
    /// In descending order of ids, which lists the newest first if ids grow with time. Default:
    /// false.
    pub descending: bool,
    /// Maximum number of sagas. Default: 100.
    pub limit: u32,
}

/// A saga as stored in the database.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SagaView {
    /// The id.
    pub id: String,
    /// The name of its definition.
    pub definition: String,
    /// The version of its definition.
    pub version: i64,
    /// Its status.
    pub status: Status,
    /// Why it is or was compensated.
    pub failure: Option<Failure>,
    /// Why it is or was stuck.
    pub stuck: Option<Stuck>,
    /// The steps that have begun.
    pub steps: Vec<StepView>,
    /// The saga's data as JSON.
    pub data: String,
    /// When it continues, if it waits.
    pub wake_at: Timestamp,
    /// When it was started.
    pub created_at: Timestamp,
    /// When it was last written.
    pub updated_at: Timestamp,
}

/// A step as stored in the database.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StepView {
    /// The name.
    pub name: String,
    /// Its state.
    pub state: StepState,
    /// Failed attempts at the action, or at the compensation once that has begun.
    pub attempts: u32,
    /// Whether an attempt may have had an effect that is not known.
    pub uncertain: bool,
    /// The error of the last failed attempt.
    pub error: Option<String>,
    /// When it was first called.
    pub started_at: Timestamp,
    /// When it was done or undone.
    pub ended_at: Option<Timestamp>,
}

/// Number of sagas by status, without final ones. For a metric, with an alarm on `stuck`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Counts {
    /// Going forward.
    pub running: u64,
    /// Being compensated.
    pub compensating: u64,
    /// Waiting for an operator.
    pub stuck: u64,
}

impl Default for Filter {
    fn default() -> Self {
        Self { status: None, after: String::new(), descending: false, limit: 100 }
    }
}

impl SagaView {
    /// Whether the saga has ended or is stuck, so that nothing happens without an operator.
    pub fn is_at_rest(&self) -> bool {
        self.status.is_final() || self.status == Status::Stuck
    }
}

pub(super) fn view<D: Database>(owned: Owned, row: &D::Row) -> Result<SagaView, DbError> {
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
