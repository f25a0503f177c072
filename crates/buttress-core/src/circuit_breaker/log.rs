use super::event::Transition;

/// Logs a change of state. An opening is a warning that contains the failure that caused it.
#[cfg(feature = "tracing")]
pub(super) fn transition(transition: &Transition) {
    use super::event::State;
    use crate::FailureKind;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    let Transition { name, from, to, cause, generation, open_for, last_failure } = transition;
    let open_for_ms = open_for.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let kind = last_failure.map(|failure| failure.kind);
    let status = match kind {
        Some(FailureKind::Http(status)) => Some(i64::from(status)),
        Some(FailureKind::Grpc(status)) => Some(i64::from(status)),
        _ => None,
    };
    let kind = kind.map(|kind| match kind {
        FailureKind::Connect => "connect",
        FailureKind::Transport => "transport",
        FailureKind::Timeout => "timeout",
        FailureKind::Http(_) => "http",
        FailureKind::Grpc(_) => "grpc",
        FailureKind::Body => "body",
        FailureKind::Application => "application",
    });
    // A subscriber that panics must not fail the call that caused the change.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        if matches!(to, State::Open | State::ForcedOpen) {
            tracing::warn!(
                resilience.policy.name = %name,
                %from,
                %to,
                %cause,
                generation,
                open_for_ms,
                failure.kind = kind,
                failure.status = status,
                "circuit opened"
            );
        } else {
            tracing::info!(resilience.policy.name = %name, %from, %to, %cause, generation, "circuit changed");
        }
    }));
}

#[cfg(not(feature = "tracing"))]
pub(super) fn transition(_: &Transition) {}
