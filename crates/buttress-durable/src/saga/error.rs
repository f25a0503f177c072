use std::error::Error;
use std::time::Duration;

use crate::db::DbError;

/// Why a step failed. Its kind decides whether the coordinator retries or compensates.
///
/// ```
/// use buttress_durable::saga::{ErrorKind, StepError};
/// use std::time::Duration;
///
/// let busy = StepError::retriable("503 Service Unavailable").after(Duration::from_secs(2));
/// assert_eq!(busy.kind(), ErrorKind::Retriable);
/// assert_eq!(StepError::terminal("card declined").kind(), ErrorKind::Terminal);
/// assert_eq!(StepError::unknown("connection reset").kind(), ErrorKind::Unknown);
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{}", crate::text::Chain(&**error))]
pub struct StepError {
    pub(super) kind: ErrorKind,
    pub(super) pause: Option<Duration>,
    error: Box<dyn Error + Send + Sync>,
}

/// What a failure says about the work of the step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// It did not happen, and another attempt may succeed.
    Retriable,
    /// It did not happen and never will: out of stock, card declined.
    Terminal,
    /// It may have happened: a timeout, a broken connection. It is retried while attempts are left,
    /// and compensated after that.
    Unknown,
}

impl StepError {
    /// The work did not happen, and another attempt may succeed.
    pub fn retriable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind: ErrorKind::Retriable, pause: None, error: error.into() }
    }

    /// The work did not happen and never will.
    pub fn terminal(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind: ErrorKind::Terminal, pause: None, error: error.into() }
    }

    /// The work may have happened.
    pub fn unknown(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind: ErrorKind::Unknown, pause: None, error: error.into() }
    }

    /// Waits at least this long before the next attempt, for example the value of `Retry-After`.
    #[must_use]
    pub fn after(mut self, pause: Duration) -> Self {
        self.pause = Some(pause);
        self
    }

    /// Returns what the failure says about the work.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<DbError> for StepError {
    /// Unknown, since a commit may have happened. In a local step the rollback settles it.
    fn from(error: DbError) -> Self {
        Self::unknown(error)
    }
}

impl From<sqlx::Error> for StepError {
    fn from(error: sqlx::Error) -> Self {
        Self::unknown(error)
    }
}
