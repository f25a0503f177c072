use std::error::Error;
use std::time::Duration;

use crate::db::DbError;

/// Why a step has not done its work.
#[derive(Debug, thiserror::Error)]
#[error("{}", crate::text::Chain(&**error))]
pub struct StepError {
    pub(super) kind: ErrorKind,
    pub(super) pause: Option<Duration>,
    error: Box<dyn Error + Send + Sync>,
}

/// What a failure says about the work.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// It did not happen, and may succeed if tried again.
    Retriable,
    /// It did not happen, and never will: out of stock, declined.
    Terminal,
    /// It may have happened: a timeout, a broken connection. Tried again while attempts last, and undone if that fails.
    Unknown,
}

impl StepError {
    /// It did not happen, and may succeed if tried again.
    pub fn retriable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind: ErrorKind::Retriable, pause: None, error: error.into() }
    }

    /// It did not happen, and never will.
    pub fn terminal(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind: ErrorKind::Terminal, pause: None, error: error.into() }
    }

    /// It may have happened.
    pub fn unknown(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind: ErrorKind::Unknown, pause: None, error: error.into() }
    }

    /// Waits at least this long before the next attempt: what a `Retry-After` said.
    #[must_use]
    pub fn after(mut self, pause: Duration) -> Self {
        self.pause = Some(pause);
        self
    }

    /// What the failure says about the work.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<DbError> for StepError {
    /// Unknown, as a commit may have happened. In a local step that is settled by the rollback.
    fn from(error: DbError) -> Self {
        Self::unknown(error)
    }
}

impl From<sqlx::Error> for StepError {
    fn from(error: sqlx::Error) -> Self {
        Self::unknown(error)
    }
}
