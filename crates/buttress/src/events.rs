//! DEBUG events of the layers for `tracing`. Without the feature `tracing` these functions do
//! nothing.

use buttress_core::Failure;
use buttress_core::Rejection;
use std::time::Duration;

#[cfg(feature = "tracing")]
fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A policy rejected a call.
#[inline]
pub(crate) fn rejected(rejection: &Rejection) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        resilience.policy.kind = rejection.policy(),
        resilience.policy.name = rejection.name(),
        reason = rejection.reason().word(),
        retry_after_ms = rejection.retry_after().map(millis),
        "call rejected"
    );
    let _ = rejection;
}

/// A call exceeded its timeout.
pub(crate) fn timed_out(rejection: &Rejection) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        resilience.policy.name = rejection.name(),
        reason = rejection.reason().word(),
        limit_ms = rejection.limit().map(millis),
        "call timed out"
    );
    let _ = rejection;
}

/// A failed attempt is retried after a pause.
pub(crate) fn retrying(failure: &Failure, attempt: u32, pause: Duration) {
    #[cfg(feature = "tracing")]
    tracing::debug!(failure = ?failure.kind, sent = ?failure.sent, attempt, pause_ms = millis(pause), "call is repeated");
    let _ = (failure, attempt, pause);
}

/// A failed attempt is not retried, because the budget is empty.
pub(crate) fn out_of_budget(failure: &Failure, attempt: u32) {
    #[cfg(feature = "tracing")]
    tracing::debug!(failure = ?failure.kind, attempt, "retry denied by the budget");
    let _ = (failure, attempt);
}
