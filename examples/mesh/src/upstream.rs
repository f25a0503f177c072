//! Maps a failed call of another service to the answer for our own caller.
//!
//! The client stacks return a `tonic::Status` or a [`buttress::Error`]. Both become an
//! [`Upstream`], so that handlers decide by kind and not by code, and an open breaker becomes a 503
//! with the breaker's `Retry-After`.

use std::time::Duration;

use http::StatusCode;
use tonic::Code;

use crate::problem::Problem;
use crate::stack;

/// Default `Retry-After`.
pub const DEFAULT_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, thiserror::Error)]
#[error("{service} {kind}: {detail}")]
pub struct Upstream {
    /// The called service.
    pub service: &'static str,
    pub kind: Kind,
    /// For the log.
    pub detail: String,
    /// The `Retry-After` of the rejecting layer.
    pub retry_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The resource does not exist. Only reads return this.
    NotFound,
    /// It could not be called, or answered that it is unavailable. As far as known, nothing
    /// happened.
    Unavailable,
    /// No answer in time. It is unknown whether the call had an effect.
    TimedOut,
    /// An invalid or unexpected answer.
    Broken,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not found",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed out",
            Self::Broken => "broken",
        })
    }
}

impl Upstream {
    pub fn from_status(service: &'static str, status: &tonic::Status) -> Self {
        let kind = match status.code() {
            Code::NotFound => Kind::NotFound,
            // tonic's own timeouts are CANCELLED.
            Code::DeadlineExceeded | Code::Cancelled => Kind::TimedOut,
            Code::Unavailable | Code::ResourceExhausted | Code::Aborted => Kind::Unavailable,
            _ => Kind::Broken,
        };
        Self { service, kind, detail: status.message().to_owned(), retry_after: stack::retry_after(status) }
    }

    pub fn from_error(service: &'static str, error: &stack::HttpError) -> Self {
        let kind = if stack::timed_out(error) { Kind::TimedOut } else { Kind::Unavailable };
        Self { service, kind, detail: error.to_string(), retry_after: stack::retry_after(error) }
    }

    pub fn timed_out(service: &'static str) -> Self {
        let detail = "no complete answer in time".to_owned();
        Self { service, kind: Kind::TimedOut, detail, retry_after: None }
    }

    pub fn broken(service: &'static str, detail: impl Into<String>) -> Self {
        Self { service, kind: Kind::Broken, detail: detail.into(), retry_after: None }
    }
}

impl From<Upstream> for Problem {
    fn from(upstream: Upstream) -> Self {
        let Upstream { service, kind, retry_after, .. } = upstream;
        match kind {
            Kind::NotFound => Self::from_status(StatusCode::NOT_FOUND, format!("{service} has no such record")),
            Kind::Unavailable => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "dependency-unavailable",
                "A backend service is unavailable",
                format!("the {service} service cannot be reached right now; try again later"),
            )
            .retry_after(retry_after.unwrap_or(DEFAULT_PAUSE))
            .caused_by(service),
            Kind::TimedOut => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "dependency-timeout",
                "A backend service did not answer in time",
                format!("the {service} service did not answer in time"),
            )
            .caused_by(service),
            Kind::Broken => Self::new(
                StatusCode::BAD_GATEWAY,
                "dependency-broken",
                "A service behind this one gave a wrong answer",
                format!("the {service} service gave an answer that makes no sense"),
            )
            .caused_by(service),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use http::header::RETRY_AFTER;

    use super::*;
    use crate::problem::FAILED_DEPENDENCY;

    #[test]
    fn every_status_of_a_call_has_one_kind() {
        let kinds = [
            (Code::NotFound, Kind::NotFound),
            (Code::DeadlineExceeded, Kind::TimedOut),
            (Code::Cancelled, Kind::TimedOut),
            (Code::Unavailable, Kind::Unavailable),
            (Code::ResourceExhausted, Kind::Unavailable),
            (Code::Aborted, Kind::Unavailable),
            (Code::InvalidArgument, Kind::Broken),
            (Code::AlreadyExists, Kind::Broken),
            (Code::Internal, Kind::Broken),
            (Code::Unknown, Kind::Broken),
        ];
        for (code, kind) in kinds {
            let upstream = Upstream::from_status("payment", &tonic::Status::new(code, "why"));
            assert_eq!(
                (upstream.service, upstream.kind, upstream.detail.as_str()),
                ("payment", kind, "why"),
                "{code:?}"
            );
            assert_eq!(upstream.retry_after, None, "no layer has rejected it");
        }
    }

    #[test]
    fn a_caller_is_told_who_failed_how_and_when_to_try_again() {
        let answers = [
            (Kind::NotFound, None, 404, None, None),
            (Kind::Unavailable, None, 503, Some("payment"), Some("1")),
            (Kind::Unavailable, Some(7), 503, Some("payment"), Some("7")),
            (Kind::TimedOut, Some(7), 504, Some("payment"), None),
            (Kind::Broken, None, 502, Some("payment"), None),
        ];
        for (kind, pause, status, dependency, retry_after) in answers {
            let retry = pause.map(Duration::from_secs);
            let upstream = Upstream { kind, retry_after: retry, ..Upstream::broken("payment", "secret") };
            let response = Problem::from(upstream).into_response();
            let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
            assert_eq!(response.status(), status, "{kind}");
            assert_eq!((header(FAILED_DEPENDENCY), header(RETRY_AFTER)), (dependency, retry_after), "{kind}");
        }
    }

    #[test]
    fn the_log_says_who_what_and_why() {
        assert_eq!(Upstream::broken("payment", "no outcome").to_string(), "payment broken: no outcome");
        let words = [Kind::NotFound, Kind::Unavailable, Kind::TimedOut].map(|kind| kind.to_string());
        assert_eq!(words, ["not found", "unavailable", "timed out"]);
    }
}
