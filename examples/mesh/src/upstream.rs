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
