//! An operator's decision about a stuck saga, and the business's part in it.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::call::{Done, Outcome};
use super::id::SagaId;
use super::state::Failure;
use crate::db::Tx;

/// An operator's decision to skip a step of a stuck saga or to resolve the saga, as a hook of the
/// [`Definition`](super::Definition::on_skip) receives it.
#[derive(Clone, Debug)]
pub struct Decision<T> {
    /// The saga's data as the steps have left it.
    pub data: T,
    pub(super) about: About,
}

#[derive(Clone, Debug)]
pub(super) struct About {
    pub(super) id: Arc<SagaId>,
    pub(super) step: String,
    pub(super) compensating: bool,
    pub(super) failure: Option<Failure>,
    pub(super) note: Option<String>,
}

/// A decision in which the business may take part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Skip,
    Resolve,
}

pub(super) type Hook<D, T> = dyn for<'a> Fn(&'a mut Tx<D>, Decision<T>) -> BoxFuture<'a, Outcome<T>> + Send + Sync;

impl Kind {
    /// The flag in the column `hooks`.
    pub(super) const fn flag(self) -> i64 {
        match self {
            Self::Skip => 1,
            Self::Resolve => 2,
        }
    }
}

impl<T> Decision<T> {
    /// Returns the id that the saga was started with.
    pub fn saga_id(&self) -> &str {
        self.about.id.id()
    }

    /// Returns the id of the saga with the name of its definition.
    pub fn id(&self) -> &SagaId {
        &self.about.id
    }

    /// Returns the name of the step at which the saga is stuck.
    pub fn step(&self) -> &str {
        &self.about.step
    }

    /// Whether the saga was being compensated: a skipped step then counts as undone, otherwise as
    /// done.
    pub fn is_compensating(&self) -> bool {
        self.about.compensating
    }

    /// Returns why the saga is being compensated, or `None` if it was going forward.
    pub fn failure(&self) -> Option<&Failure> {
        self.about.failure.as_ref()
    }

    /// Returns the operator's note. `None` if a step is skipped.
    pub fn note(&self) -> Option<&str> {
        self.about.note.as_deref()
    }

    /// Agrees, with the current data.
    pub fn done(self) -> Done<T> {
        Done { data: self.data, events: Vec::new() }
    }
}
