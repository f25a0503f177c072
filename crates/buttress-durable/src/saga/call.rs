use std::sync::Arc;

use super::error::StepError;
use super::state::Failure;
use crate::clock::Timestamp;
use crate::event::{DomainEvent, TraceContext};

/// A step being called: the saga's data, and what the participant should be told.
#[derive(Clone, Debug)]
pub struct Call<T> {
    /// The saga's data, as the steps before have left it.
    pub data: T,
    pub(super) meta: Meta,
}

/// A step that has done its work: the data for the steps that follow, and the events to publish.
#[derive(Clone, Debug)]
#[must_use = "return it from the step"]
pub struct Done<T> {
    pub(super) data: T,
    pub(super) events: Vec<DomainEvent>,
}

pub(super) type Outcome<T> = Result<Done<T>, StepError>;

#[derive(Clone, Debug)]
pub(super) struct Meta {
    pub(super) saga_id: Arc<str>,
    pub(super) key: String,
    pub(super) attempt: u32,
    pub(super) generation: i64,
    pub(super) deadline: Timestamp,
    pub(super) trace: Option<TraceContext>,
    pub(super) failure: Option<Failure>,
}

// === impl Call ===

impl<T> Call<T> {
    /// The idempotency key: `saga:step`. The same for each attempt and for the compensation.
    pub fn key(&self) -> &str {
        &self.meta.key
    }

    /// The saga.
    pub fn saga_id(&self) -> &str {
        &self.meta.saga_id
    }

    /// 1 for the first attempt.
    pub fn attempt(&self) -> u32 {
        self.meta.attempt
    }

    /// The generation of this coordinator's lease. A participant that remembers the highest one it has seen can refuse a
    /// coordinator that has been replaced.
    pub fn generation(&self) -> i64 {
        self.meta.generation
    }

    /// When the answer is no longer waited for.
    pub fn deadline(&self) -> Timestamp {
        self.meta.deadline
    }

    /// The trace in which the saga was started.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.meta.trace.as_ref()
    }

    /// Why the saga is being undone. `None` while it goes forward.
    pub fn failure(&self) -> Option<&Failure> {
        self.meta.failure.as_ref()
    }

    /// The step is done, with the data as it is now.
    pub fn done(self) -> Done<T> {
        Done { data: self.data, events: Vec::new() }
    }
}

// === impl Done ===

impl<T> Done<T> {
    /// Publishes an event through the outbox, in the transaction that notes the end of the step. It gets the saga's trace
    /// if it has none.
    pub fn event(mut self, event: DomainEvent) -> Self {
        self.events.push(event);
        self
    }
}
