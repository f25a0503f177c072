use std::error::Error;
use std::time::Duration;

use crate::db::{DbError, DbErrorKind};

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
/// assert_eq!(StepError::not_sent("circuit open").kind(), ErrorKind::NotSent);
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{}", crate::text::Chain(&**error))]
pub struct StepError {
    pub(super) kind: ErrorKind,
    pub(super) pause: Option<Duration>,
    /// Whether it counts as an attempt.
    pub(super) counts: bool,
    error: Box<dyn Error + Send + Sync>,
}

/// What a failure says about the work of the step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// It did not happen, and another attempt may succeed.
    Retriable,
    /// It did not happen and never will: out of stock, card declined. A compensation must not be
    /// rejected: if it is, the saga is stuck at once.
    Terminal,
    /// It may have happened: a timeout, a broken connection. It is retried while attempts are left,
    /// and compensated after that.
    Unknown,
    /// It did not happen, because the call was not made: an open circuit, a full bulkhead, a
    /// refused connection. It is no attempt, so that an outage of any length uses up none: the saga
    /// waits by the step's backoff, and only a deadline ends the waiting.
    NotSent,
}

impl StepError {
    /// The work did not happen, and another attempt may succeed.
    pub fn retriable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Retriable, error.into())
    }

    /// The work did not happen and never will.
    pub fn terminal(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Terminal, error.into())
    }

    /// The work may have happened.
    pub fn unknown(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Unknown, error.into())
    }

    /// The call was not made, so that the work did not happen. Costs no attempt.
    ///
    /// Use it only if no call was made at all. An open circuit may also end a call that was already
    /// sent and is being retried; its outcome is [unknown](Self::unknown).
    ///
    /// ```
    /// use buttress_durable::saga::StepError;
    /// use std::time::Duration;
    ///
    /// # let retry_after = Some(Duration::from_secs(5));
    /// let error = StepError::not_sent("the circuit to payment is open").after(retry_after.unwrap_or_default());
    /// ```
    pub fn not_sent(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(ErrorKind::NotSent, error.into()).uncounted()
    }

    fn new(kind: ErrorKind, error: Box<dyn Error + Send + Sync>) -> Self {
        Self { kind, pause: None, counts: true, error }
    }

    /// Does not count this failure as an attempt: the participant is down, and waiting helps where
    /// giving up does not. For compensations and for steps after the pivot. No effect on a
    /// [terminal](Self::terminal) failure.
    #[must_use]
    pub fn uncounted(mut self) -> Self {
        self.counts = false;
        self
    }

    /// Waits at least this long before the next attempt, for example the value of `Retry-After`. At
    /// most 5 minutes: a longer pause counts as 5 minutes.
    #[must_use]
    pub fn after(mut self, pause: Duration) -> Self {
        self.pause = Some(pause);
        self
    }

    /// Returns what the failure says about the work.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The same failure of a step that runs in this database. If the database failed, the rollback
    /// has undone the step, and there was no attempt.
    pub(super) fn of_local_step(self) -> Self {
        match DbError::kind_in(&*self.error) {
            Some(DbErrorKind::Unavailable | DbErrorKind::Conflict) if self.kind != ErrorKind::Terminal => {
                Self { kind: ErrorKind::NotSent, ..self.uncounted() }
            }
            _ => self,
        }
    }
}

impl From<DbError> for StepError {
    /// Unknown, since a commit may have happened. In a local step the rollback settles it, and a
    /// database that cannot serve costs no attempt.
    fn from(error: DbError) -> Self {
        Self::unknown(error)
    }
}

impl From<sqlx::Error> for StepError {
    /// As for [`DbError`].
    fn from(error: sqlx::Error) -> Self {
        Self::unknown(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_cannot_serve_costs_a_local_step_no_attempt() {
        let kind = |error: StepError| {
            let error = error.of_local_step();
            (error.kind, error.counts)
        };
        assert_eq!(kind(sqlx::Error::PoolTimedOut.into()), (ErrorKind::NotSent, false));
        assert_eq!(kind(DbError::Busy(Duration::from_secs(5)).into()), (ErrorKind::NotSent, false));
        assert_eq!(kind(sqlx::Error::RowNotFound.into()), (ErrorKind::Unknown, true), "a bug is an attempt");
        assert_eq!(kind(StepError::terminal(sqlx::Error::PoolTimedOut)), (ErrorKind::Terminal, true));
        assert_eq!(kind(StepError::retriable("busy")), (ErrorKind::Retriable, true));
    }
}
