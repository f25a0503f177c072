//! What became of a call: one vocabulary for breakers, retries, balancers and metrics.

use std::time::Duration;

/// What became of a finished (or abandoned) call.
///
/// The elapsed time is not part of it: whoever needs it took the start time at admission, and everybody else is
/// spared two readings of the clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// The other side did its work. A 404 or an `INVALID_ARGUMENT` is a success here: the backend is well.
    Success,
    /// The other side, or the way there, failed.
    Failure(Failure),
    /// Says nothing about the other side.
    Ignored(Ignored),
}

impl Outcome {
    /// The call was dropped before its end.
    pub const CANCELLED: Self = Self::Ignored(Ignored::Cancelled);

    /// Whether this is a [`Failure`].
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failure(_))
    }

    /// The failure, if it is one.
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

/// A call that failed: how, how far it got, and what the other side asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Failure {
    /// Where it failed.
    pub kind: FailureKind,
    /// Whether the other side may have acted on it.
    pub sent: Sent,
    /// How long the other side asked us to stay away (`Retry-After`, `grpc-retry-pushback-ms`).
    pub retry_after: Option<Duration>,
    /// The other side forbade another attempt (a negative or unreadable gRPC pushback, gRFC A6).
    pub no_retry: bool,
    /// The other side is up and sheds load (429, `RESOURCE_EXHAUSTED`). Counts in failure rates, not in consecutive
    /// failures: one refused call is no outage. (linkerd2-proxy's unified breaker makes the same distinction.)
    pub overload: bool,
    /// The other side, or the connection, ended in good order before it looked at the request (a
    /// GOAWAY without error, `REFUSED_STREAM`, a connection that was closed before a byte was
    /// written). The call may be repeated, and is no evidence against the other side.
    pub graceful: bool,
}

impl Failure {
    /// A failure that may have been processed, with no hint from the other side.
    pub const fn new(kind: FailureKind) -> Self {
        Self { kind, sent: Sent::MaybeProcessed, retry_after: None, no_retry: false, overload: false, graceful: false }
    }

    /// The same, with what is known of how far the request got.
    pub const fn sent(mut self, sent: Sent) -> Self {
        self.sent = sent;
        self
    }
}

/// Where a call failed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum FailureKind {
    /// No connection: refused, unreachable, DNS, TLS.
    Connect,
    /// A connection that broke or a protocol that was violated.
    Transport,
    /// An attempt timeout of ours ran out while the other side was at work.
    Timeout,
    /// An HTTP status that stands for a failure.
    Http(u16),
    /// A gRPC status code that stands for a failure.
    Grpc(i32),
    /// The response began and its body broke.
    Body,
    /// An error of the service itself.
    Application,
}

/// How far a failed request got. Decides whether repeating it is safe.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Sent {
    /// It never left this process: repeating it is always safe.
    Never,
    /// The other side says that no application saw it (`REFUSED_STREAM`, `GOAWAY` beyond the last stream).
    NotProcessed,
    /// It may have been acted upon.
    MaybeProcessed,
}

/// Why an outcome says nothing about the other side.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Ignored {
    /// The caller dropped the call.
    Cancelled,
    /// One of our own layers refused it before it was sent.
    LocalReject,
    /// Another attempt of the same call won.
    Superseded,
    /// A classifier said so.
    Classified,
}
