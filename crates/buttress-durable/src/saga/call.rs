use std::sync::Arc;

use super::error::StepError;
use super::id::SagaId;
use super::state::Failure;
use crate::clock::Timestamp;
use crate::event::{DomainEvent, TraceContext};

/// A call of a step: the saga's data, and the context to pass to the participant.
#[derive(Clone, Debug)]
pub struct Call<T> {
    /// The saga's data as the previous steps have left it.
    pub data: T,
    pub(super) meta: Meta,
}

/// The result of a step that succeeded: the data for the following steps, and events to publish.
///
/// ```
/// use buttress_durable::saga::{Call, Done, StepError};
/// use buttress_durable::{DomainEvent, Timestamp};
///
/// fn confirm(call: Call<i64>, now: Timestamp) -> Result<Done<i64>, StepError> {
///     let event = DomainEvent::new("OrderConfirmed", call.saga_id(), now, &call.data);
///     Ok(call.done().event(event.map_err(StepError::terminal)?))
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use = "return it from the step"]
pub struct Done<T> {
    pub(super) data: T,
    pub(super) events: Vec<DomainEvent>,
}

pub(super) type Outcome<T> = Result<Done<T>, StepError>;

#[derive(Clone, Debug)]
pub(super) struct Meta {
    pub(super) id: Arc<SagaId>,
    pub(super) key: String,
    pub(super) attempt: u32,
    pub(super) generation: i64,
    pub(super) deadline: Timestamp,
    pub(super) trace: Option<TraceContext>,
    pub(super) failure: Option<Failure>,
}

// === impl Call ===

impl<T> Call<T> {
    /// Returns the idempotency key `definition:saga:step`, which is the same for every attempt and
    /// for the compensation.
    pub fn key(&self) -> &str {
        &self.meta.key
    }

    /// Returns the id that the saga was started with.
    pub fn saga_id(&self) -> &str {
        self.meta.id.id()
    }

    /// Returns the id of the saga with the name of its definition.
    pub fn id(&self) -> &SagaId {
        &self.meta.id
    }

    /// Returns the number of this attempt, beginning with 1. A call that follows one that was
    /// [not sent](StepError::not_sent) has the same number.
    pub fn attempt(&self) -> u32 {
        self.meta.attempt
    }

    /// Returns the generation of the coordinator's lease. A participant that stores the highest
    /// generation it has seen can reject coordinators that have been replaced.
    pub fn generation(&self) -> i64 {
        self.meta.generation
    }

    /// Returns when the coordinator stops waiting for the answer.
    pub fn deadline(&self) -> Timestamp {
        self.meta.deadline
    }

    /// Returns the trace in which the saga was started.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.meta.trace.as_ref()
    }

    /// Returns why the saga is being compensated, or `None` while it goes forward.
    pub fn failure(&self) -> Option<&Failure> {
        self.meta.failure.as_ref()
    }

    /// Finishes the step with the current data.
    pub fn done(self) -> Done<T> {
        Done { data: self.data, events: Vec::new() }
    }
}

// === impl Done ===

impl<T> Done<T> {
    /// Adds an event, which the outbox publishes if the transaction that records the step commits.
    /// It gets the saga's trace context if it has none.
    pub fn event(mut self, event: DomainEvent) -> Self {
        self.events.push(event);
        self
    }
}
