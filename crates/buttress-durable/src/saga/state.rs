//! Status of sagas and states of steps, as stored in the database and shown by the admin.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The status of a saga.
///
/// ```text
/// running ---------------------> completed
///    |  \______> stuck ____
///    v            ^        \___> resolved
/// compensating ---+------------> compensated
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Status {
    /// Going forward.
    Running,
    /// Being compensated.
    Compensating,
    /// Every step is done.
    Completed,
    /// Every step that was or may have been done is undone.
    Compensated,
    /// Waiting for an operator.
    Stuck,
    /// Closed by an operator.
    Resolved,
}

/// The state of a step.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum StepState {
    /// Called, or about to be called; the outcome is not known.
    Started,
    /// Failed, and waiting for the next attempt.
    Waiting,
    /// Done.
    Done,
    /// Failed for good.
    Failed,
    /// Being compensated: the compensation is called until it succeeds.
    Undoing,
    /// Undone.
    Undone,
    /// Skipped by an operator.
    Skipped,
}

/// Why a saga is compensated.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Failure {
    /// The step that failed.
    pub step: String,
    /// Its error.
    pub message: String,
}

/// Why a saga is stuck.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stuck {
    /// The step at which it is stuck.
    pub step: String,
    /// What happened there.
    pub message: String,
    /// Whether the saga was being compensated.
    pub compensating: bool,
    /// The operator's note on closing it.
    pub note: Option<String>,
}

/// Maps an enum's variants to their names in the database, in both directions.
macro_rules! names {
    ($type:ident: $($variant:ident = $name:literal),+ $(,)?) => {
        impl $type {
            /// Returns the name in the database.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            pub(super) fn parse(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names!(Status:
    Running = "running",
    Compensating = "compensating",
    Completed = "completed",
    Compensated = "compensated",
    Stuck = "stuck",
    Resolved = "resolved",
);

names!(StepState:
    Started = "started",
    Waiting = "waiting",
    Done = "done",
    Failed = "failed",
    Undoing = "undoing",
    Undone = "undone",
    Skipped = "skipped",
);

impl Status {
    /// Whether the saga has ended.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Compensated | Self::Resolved)
    }
}
