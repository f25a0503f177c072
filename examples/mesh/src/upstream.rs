//! What a failed call to another service means for our own caller.
//!
//! The stacks below answer with a `tonic::Status` or a [`buttress::Error`]. Both become one small [`Upstream`] here, so
//! that handlers decide about kinds, never about codes, and so that "the breaker is open" leaves as 503 with the pause
//! that the breaker asks for.

use std::time::Duration;

use http::StatusCode;
use tonic::Code;

use crate::problem::Problem;
use crate::stack;

/// How long a client should wait when nobody knows better.
pub const DEFAULT_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, thiserror::Error)]
#[error("{service} {kind}: {detail}")]
pub struct Upstream {
    /// Which service was called.
    pub service: &'static str,
    pub kind: Kind,
    /// For the log.
    pub detail: String,
    /// What the rejecting layer knows about when to come back.
    pub retry_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// There is no such thing. Only reads get this.
    NotFound,
    /// It could not be asked, or said that it cannot: nothing happened, as far as anybody can tell.
    Unavailable,
    /// It did not answer in time: nobody knows what happened.
    TimedOut,
    /// It answered something that it should not.
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
            Kind::NotFound => Self::from_status(StatusCode::NOT_FOUND, format!("{service} knows nothing of it")),
            Kind::Unavailable => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "dependency-unavailable",
                "A service behind this one is unavailable",
                format!("the {service} service cannot be reached right now; try again later"),
            )
            .retry_after(retry_after.unwrap_or(DEFAULT_PAUSE))
            .caused_by(service),
            Kind::TimedOut => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "dependency-timeout",
                "A service behind this one did not answer in time",
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
