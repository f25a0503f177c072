//! Outcomes of calls: one vocabulary for breakers, retries, balancers and metrics.
//!
//! A classifier turns a response or an error into an [`Outcome`], and the policies learn from it by
//! [`Permit::settle`](crate::Permit::settle).

use std::time::Duration;

/// The outcome of a call that has ended or was dropped.
///
/// It does not contain the elapsed time: a policy that needs it records the start at admission, and
/// the others do not read the clock.
///
/// ```
/// use buttress_core::{Failure, FailureKind, Outcome};
///
/// let outcome = Outcome::from(Failure::new(FailureKind::Http(503)));
/// assert!(outcome.is_failure() && !Outcome::CANCELLED.is_failure());
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// The backend answered. A 404 or an `INVALID_ARGUMENT` is a success: the backend works.
    Success,
    /// The backend, or the connection to it, failed.
    Failure(Failure),
    /// No evidence about the backend.
    Ignored(Ignored),
}

impl Outcome {
    /// The outcome of a call that was dropped before its end.
    pub const CANCELLED: Self = Self::Ignored(Ignored::Cancelled);

    /// Returns whether this is a [`Failure`].
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failure(_))
    }

    /// Returns the failure, if it is one.
    ///
    /// ```
    /// use buttress_core::{Failure, FailureKind, Outcome};
    ///
    /// let outcome = Outcome::from(Failure::new(FailureKind::Connect));
    /// assert_eq!(outcome.failure().map(|failure| failure.kind), Some(FailureKind::Connect));
    /// assert_eq!(Outcome::Success.failure(), None);
    /// ```
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failure(failure) => Some(failure),
            _ => None,
        }
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// How a call failed, how far its request got, and what the backend asked for.
///
/// ```
/// use buttress_core::{Failure, FailureKind};
/// use std::time::Duration;
///
/// let shed = Failure {
///     overload: true,
///     retry_after: Some(Duration::from_secs(2)),
///     ..Failure::new(FailureKind::Http(429))
/// };
/// assert!(shed.overload && !shed.no_retry);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Failure {
    /// Where it failed.
    pub kind: FailureKind,
    /// Whether the backend may have processed the request.
    pub sent: Sent,
    /// How long the backend asked to wait before a retry (`Retry-After`, `grpc-retry-pushback-ms`).
    pub retry_after: Option<Duration>,
    /// The backend forbade another attempt (a negative or unreadable gRPC pushback, gRFC A6), or
    /// another attempt would fail in the same way (501, `INTERNAL`).
    pub no_retry: bool,
    /// The backend sent a gRPC pushback (gRFC A6): `retry_after` is the exact pause, not the
    /// shortest.
    pub pushback: bool,
    /// A service below has repeated the call already, or its retry budget was empty. Only the
    /// lowest caller repeats, so that the retries of several tiers do not multiply.
    pub retried: bool,
    /// Another attempt would fail in the same way (501, gRPC `INTERNAL`): the answer of one attempt
    /// is that of the call, even if others are in flight. Set together with
    /// [`no_retry`](Self::no_retry).
    pub conclusive: bool,
    /// The backend is up and sheds load (429, `RESOURCE_EXHAUSTED`). It counts in failure rates and
    /// not as a consecutive failure, as in linkerd2-proxy's unified breaker.
    pub overload: bool,
    /// The backend, or the connection, ended gracefully before the request was processed: a GOAWAY
    /// without error, `REFUSED_STREAM`, a connection that was closed before a byte was written. The
    /// call may be repeated, and is no evidence against the backend.
    pub graceful: bool,
}

impl Failure {
    /// Creates a failure of a request that may have been processed, without a hint from the
    /// backend.
    ///
    /// ```
    /// use buttress_core::{Failure, FailureKind, Sent};
    ///
    /// assert_eq!(Failure::new(FailureKind::Transport).sent, Sent::MaybeProcessed);
    /// ```
    pub const fn new(kind: FailureKind) -> Self {
        Self {
            kind,
            sent: Sent::MaybeProcessed,
            retry_after: None,
            no_retry: false,
            pushback: false,
            retried: false,
            conclusive: false,
            overload: false,
            graceful: false,
        }
    }

    /// Sets how far the request got.
    ///
    /// ```
    /// use buttress_core::{Failure, FailureKind, Sent};
    ///
    /// let refused = Failure::new(FailureKind::Connect).sent(Sent::Never);
    /// assert_eq!(refused.sent, Sent::Never);
    /// ```
    pub const fn sent(mut self, sent: Sent) -> Self {
        self.sent = sent;
        self
    }
}

/// Where a call failed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum FailureKind {
    /// No connection was established: refused, unreachable, DNS, TLS.
    Connect,
    /// The connection broke, or the backend violated the protocol.
    Transport,
    /// A timeout of this process expired while the backend had the request.
    Timeout,
    /// An HTTP status that is classified as a failure.
    Http(u16),
    /// A gRPC status code that is classified as a failure.
    Grpc(i32),
    /// The head of the response arrived, and its body failed.
    Body,
    /// An error of the service itself.
    Application,
}

/// How far a failed request got, which decides whether repeating it is safe.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Sent {
    /// It did not leave this process: repeating it is always safe.
    Never,
    /// No application has seen it, according to the protocol: `REFUSED_STREAM`, or a stream above
    /// the last one of a `GOAWAY` (RFC 9113, sections 6.8 and 8.7).
    NotProcessed,
    /// It may have been processed.
    MaybeProcessed,
}

/// Why an outcome is no evidence about the backend.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Ignored {
    /// The caller dropped the call.
    Cancelled,
    /// A layer of this process rejected it before it was sent.
    LocalReject,
    /// Another attempt of the same call won.
    Superseded,
    /// A classifier ignores it.
    Classified,
}
