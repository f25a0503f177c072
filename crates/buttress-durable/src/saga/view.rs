//! Sagas as an operator sees them.

use super::id::SagaId;
use super::state::{Failure, Status, StepState, Stuck};
use super::store::Owned;
use crate::clock::Timestamp;

/// Selects sagas. The default selects the first 100 by id.
///
/// ```
/// use buttress_durable::saga::{Filter, Status};
///
/// let newest_stuck = Filter { status: Some(Status::Stuck), descending: true, limit: 20, ..Filter::default() };
/// let outage = Filter { step: Some("process_payment".into()), error: Some("timed out".into()), ..newest_stuck };
/// # assert_eq!(outage.limit, 20);
/// ```
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only sagas with this status. Default: all.
    pub status: Option<Status>,
    /// Only sagas of the definition with this name. Default: all.
    pub definition: Option<String>,
    /// Only sagas that are at the step with this name. Default: all.
    pub step: Option<String>,
    /// Only sagas whose error contains this text, in any case: the reason why the saga is stuck or
    /// compensated, or the last error of the step that it is at. Default: all.
    pub error: Option<String>,
    /// Only sagas that were last written before this moment. For a stuck saga, that is when it got
    /// stuck. Default: all.
    pub updated_before: Option<Timestamp>,
    /// Only ids behind this one: the last id of the previous page. Default: `None`, the first page.
    pub after: Option<SagaId>,
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
    /// The id that it was started with. [`saga_id`](Self::saga_id) is the full one.
    pub id: String,
    /// The name of its definition.
    pub definition: String,
    /// The version of its definition.
    pub version: i64,
    /// Its status.
    pub status: Status,
    /// Why it is or was compensated.
    pub failure: Option<Failure>,
    /// Why it is or was stuck. Also why its row cannot be read: it is listed without steps then.
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
    /// Calls in a row that could not be made, and were no attempts: the participant is down.
    pub refused: u32,
    /// Whether there may be an effect that is not known: of an attempt whose outcome is unknown, or
    /// of an operator who skipped the step as if it were done.
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
    /// Of those going forward or being compensated: those whose definition and version are not
    /// registered with the coordinator whose [`admin`](super::Coordinator::admin) counts. They wait
    /// until a process registers it. 0 if counted by an [`Admin`](super::Admin) without one.
    pub unregistered: u64,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            status: None,
            definition: None,
            step: None,
            error: None,
            updated_before: None,
            after: None,
            descending: false,
            limit: 100,
        }
    }
}

impl SagaView {
    /// Returns the id with the name of the definition.
    pub fn saga_id(&self) -> SagaId {
        SagaId::new(self.definition.as_str(), self.id.as_str())
    }

    /// Whether the saga has ended or is stuck, so that nothing happens without an operator.
    pub fn is_at_rest(&self) -> bool {
        self.status.is_final() || self.status == Status::Stuck
    }
}

impl From<Owned> for SagaView {
    fn from(saga: Owned) -> Self {
        let Owned { id, version, progress, names, data, created_at, updated_at, .. } = saga;
        let steps = names.into_iter().zip(progress.steps).filter_map(|(name, row)| {
            let row = row?;
            Some(StepView {
                name,
                state: row.state,
                attempts: row.attempts,
                refused: row.refused,
                uncertain: row.uncertain,
                error: row.error,
                started_at: row.started_at,
                ended_at: row.ended_at,
            })
        });
        Self {
            id: id.id().to_owned(),
            definition: id.definition().to_owned(),
            version: version.into(),
            status: progress.status,
            failure: progress.failure,
            stuck: progress.stuck,
            steps: steps.collect(),
            data,
            wake_at: progress.wake_at,
            created_at,
            updated_at,
        }
    }
}
