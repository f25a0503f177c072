//! How far sagas and their steps have come, as the database and the admin list say it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far a saga has come.
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
    /// Being undone.
    Compensating,
    /// Every step is done.
    Completed,
    /// Every step that was done, or may have been, is undone.
    Compensated,
    /// Waits for somebody to decide.
    Stuck,
    /// Somebody has settled it by hand.
    Resolved,
}

/// How far a step has come.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum StepState {
    /// Called, or about to be; what became of it is not known.
    Started,
    /// Failed, and waits for the next attempt.
    Waiting,
    /// Done.
    Done,
    /// Failed for good.
    Failed,
    /// The compensation is called until it succeeds.
    Undoing,
    /// Undone.
    Undone,
    /// Somebody decided to go on without it.
    Skipped,
}

/// Why a saga is undone.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Failure {
    /// The step that failed.
    pub step: String,
    /// What it said.
    pub message: String,
}

/// Why a saga stands still.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stuck {
    /// The step at which it stands.
    pub step: String,
    /// What happened there.
    pub message: String,
    /// Whether it was being undone.
    pub compensating: bool,
    /// What somebody wrote when settling it.
    pub note: Option<String>,
}

/// Names for an enum's values in the database, both ways, in one table.
macro_rules! names {
    ($type:ident: $($variant:ident = $name:literal),+ $(,)?) => {
        impl $type {
            /// The name in the database.
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
    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Compensated | Self::Resolved)
    }
}
