//! The error type of the layers, and what errors mean for policies.

use buttress_core::{Failure, FailureKind, Ignored, Outcome, Rejection, Sent};
use std::{any::Any, error::Error as StdError, io};

/// A boxed error, as in tower.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The error of a layer whose ending returns rejections as errors.
///
/// It is flat: however many layers are stacked, and whatever boxes errors between them, a chain of
/// sources contains at most one `Error`. An inner error keeps its type:
/// [`source`](StdError::source) returns that error itself, so that `downcast_ref` and tonic find
/// it.
///
/// ```
/// use buttress::{Error, Rejection, bulkhead};
///
/// fn message(error: &Error) -> String {
///     match error {
///         Error::Rejected(rejection) => format!("not sent: {}", rejection.reason().word()),
///         other => format!("failed: {other}"),
///     }
/// }
/// let rejected = Error::from(Rejection::new("bulkhead", &bulkhead::FULL));
/// assert_eq!(message(&rejected), "not sent: bulkhead_full");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A policy rejected the call, or a timeout ended it.
    #[error("{0}")]
    Rejected(Rejection),
    /// The inner service failed.
    #[error("{0}")]
    Inner(#[source] BoxError),
}

impl Error {
    /// Wraps the error of an inner service. An error that already is an `Error` is returned as it
    /// is.
    ///
    /// ```
    /// use buttress::{Error, Rejection, bulkhead};
    ///
    /// let boxed: buttress::BoxError = Error::from(Rejection::new("bulkhead", &bulkhead::FULL)).into();
    /// assert!(matches!(Error::from_inner(boxed), Error::Rejected(_)));
    /// ```
    pub fn from_inner(error: impl Into<BoxError>) -> Self {
        match error.into().downcast::<Self>() {
            Ok(ours) => *ours,
            Err(other) => Self::Inner(other),
        }
    }

    /// Returns the rejection in the chain of sources, if there is one.
    ///
    /// ```
    /// use buttress::{Error, Rejection, bulkhead};
    /// use std::io;
    ///
    /// let rejected = Error::from(Rejection::new("bulkhead", &bulkhead::FULL));
    /// let wrapped = Error::from_inner(io::Error::other(rejected));
    /// assert_eq!(wrapped.rejection().map(Rejection::reason), Some(&bulkhead::FULL));
    /// ```
    pub fn rejection(&self) -> Option<&Rejection> {
        find_rejection(self)
    }
}

impl From<Rejection> for Error {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// Finds the rejection of a layer of this crate in a chain of sources, also inside errors of other
/// types.
///
/// ```
/// use buttress::{Rejection, error::find_rejection, timeout};
/// use std::io;
///
/// let error = io::Error::other(Rejection::new("timeout", &timeout::TOTAL));
/// assert_eq!(find_rejection(&error).map(Rejection::reason), Some(&timeout::TOTAL));
/// ```
pub fn find_rejection<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Rejection> {
    sources(error).find_map(|error| match error.downcast_ref::<Error>() {
        Some(Error::Rejected(rejection)) => Some(rejection),
        _ => error.downcast_ref::<Rejection>(),
    })
}

/// Returns the error and all its sources. Includes the error inside an [`io::Error`], which
/// `io::Error::source` skips.
///
/// ```
/// use buttress::error::sources;
/// use std::io;
///
/// let error = io::Error::other(io::Error::from(io::ErrorKind::BrokenPipe));
/// assert_eq!(sources(&error).count(), 2);
/// ```
pub fn sources<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map(|wrapped| wrapped as _).or_else(|| error.source());
        Some(error)
    })
}

/// Returns the outcome that an error means in any protocol. Looks at the whole chain of sources:
///
/// * for a rejection of this crate, [`Rejection::outcome`];
/// * tower's `Overloaded` (load shed) is a local rejection and no evidence;
/// * tower's and tokio's `Elapsed` is an attempt timeout, which is a failure;
/// * with a refused connection, or an unreachable host or network, the request was never sent;
/// * any other error is a failure of a request that may have been processed.
///
/// ```
/// use buttress::{error::outcome, outcome::Sent};
/// use std::io;
///
/// let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
/// assert_eq!(outcome(&refused).failure().map(|failure| failure.sent), Some(Sent::Never));
/// ```
pub fn outcome(error: &(dyn StdError + 'static)) -> Outcome {
    // One walk: each question to an error is a virtual call, and every failed call gets here.
    let (mut next, mut outcome) = (Some(error), None);
    while let Some(error) = next {
        let rejection = match error.downcast_ref::<Error>() {
            Some(Error::Inner(inner)) => {
                next = Some(&**inner);
                continue;
            }
            Some(Error::Rejected(rejection)) => Some(rejection),
            None => error.downcast_ref::<Rejection>(),
        };
        if let Some(rejection) = rejection {
            return rejection.outcome();
        }
        let io = error.downcast_ref::<io::Error>();
        outcome = outcome.or_else(|| known(error, io));
        next = io.and_then(io::Error::get_ref).map(|wrapped| wrapped as _).or_else(|| error.source());
    }
    outcome.unwrap_or_else(|| Failure::new(FailureKind::Transport).into())
}

fn known(error: &(dyn StdError + 'static), io: Option<&io::Error>) -> Option<Outcome> {
    if let Some(error) = io {
        let never_sent = matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
        );
        return never_sent.then(|| Failure::new(FailureKind::Connect).sent(Sent::Never).into());
    }
    if error.is::<tower::load_shed::error::Overloaded>() {
        return Some(Outcome::Ignored(Ignored::LocalReject));
    }
    let timed_out = error.is::<tower::timeout::error::Elapsed>() || error.is::<tokio::time::error::Elapsed>();
    timed_out.then(|| Failure::new(FailureKind::Timeout).into())
}

/// Returns an error of a generic type as `dyn Error`. `None` if it is not an [`Error`], a
/// [`BoxError`], a `Box<dyn Error + Send>` or an [`io::Error`].
///
/// ```
/// use buttress::{BoxError, error::as_chain};
///
/// let boxed: BoxError = "failed".into();
/// assert!(as_chain(&boxed).is_some());
/// assert!(as_chain(&"failed").is_none());
/// ```
pub fn as_chain<E: 'static>(error: &E) -> Option<&(dyn StdError + 'static)> {
    let any: &dyn Any = error;
    if let Some(ours) = any.downcast_ref::<Error>() {
        return Some(ours);
    }
    if let Some(boxed) = any.downcast_ref::<BoxError>() {
        return Some(&**boxed);
    }
    if let Some(boxed) = any.downcast_ref::<Box<dyn StdError + Send>>() {
        return Some(&**boxed);
    }
    any.downcast_ref::<io::Error>().map(|error| error as _)
}

#[cfg(test)]
mod tests {
    use super::*;
    use buttress_core::bulkhead;
    use std::fmt;

    fn full() -> Error {
        Rejection::new("bulkhead", &bulkhead::FULL).into()
    }

    #[test]
    fn nested_layers_and_boxes_between_them_leave_one_flat_error() {
        let boxed: BoxError = full().into();
        let again = Error::from_inner(Error::from_inner(boxed));
        assert!(matches!(&again, Error::Rejected(rejection) if rejection.reason() == &bulkhead::FULL), "{again:?}");
    }

    #[test]
    fn the_inner_error_keeps_its_type_and_is_the_source() {
        let error = Error::from_inner(Error::from_inner(io::Error::from(io::ErrorKind::BrokenPipe)));
        let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(source.map(io::Error::kind), Some(io::ErrorKind::BrokenPipe));
    }

    #[test]
    fn a_rejection_is_found_through_other_peoples_errors() {
        let error = Error::from_inner(io::Error::other(full()));
        assert_eq!(error.rejection().map(Rejection::reason), Some(&bulkhead::FULL));
        assert_eq!(outcome(&error), Outcome::Ignored(Ignored::LocalReject));
    }

    #[test]
    fn towers_load_shed_is_no_evidence_and_its_timeout_is() {
        let of = |error: BoxError| outcome(&Error::from_inner(error));
        assert_eq!(of(tower::load_shed::error::Overloaded::new().into()), Outcome::Ignored(Ignored::LocalReject));
        let elapsed = of(tower::timeout::error::Elapsed::new().into());
        assert_eq!(elapsed.failure().map(|failure| failure.kind), Some(FailureKind::Timeout));
        let wrapped = of(io::Error::other(tower::load_shed::error::Overloaded::new()).into());
        assert_eq!(wrapped, Outcome::Ignored(Ignored::LocalReject));
    }

    /// A user's error with a source.
    #[derive(Debug)]
    struct Mine(Error);

    impl fmt::Display for Mine {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("mine")
        }
    }

    impl StdError for Mine {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn a_rejection_is_found_in_an_error_of_a_user() {
        let error = Error::from_inner(Mine(full()));
        assert_eq!(error.rejection().map(Rejection::reason), Some(&bulkhead::FULL));
        assert_eq!(outcome(&error), Outcome::Ignored(Ignored::LocalReject));
    }

    #[test]
    fn a_request_without_a_connection_was_never_sent_and_another_one_may_have_been() {
        use io::ErrorKind::{
            BrokenPipe, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut,
        };
        let of = |kind: io::ErrorKind| {
            let error = Error::from_inner(io::Error::other(io::Error::from(kind)));
            outcome(&error).failure().map(|failure| (failure.kind, failure.sent))
        };
        for kind in [ConnectionRefused, HostUnreachable, NetworkUnreachable] {
            assert_eq!(of(kind), Some((FailureKind::Connect, Sent::Never)), "{kind}");
        }
        for kind in [BrokenPipe, ConnectionReset, TimedOut] {
            assert_eq!(of(kind), Some((FailureKind::Transport, Sent::MaybeProcessed)), "{kind}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tokios_timeout_is_a_timeout_of_an_attempt() {
        let elapsed = tokio::time::timeout(std::time::Duration::ZERO, std::future::pending::<()>()).await.unwrap_err();
        let failure = outcome(&Error::from_inner(elapsed)).failure().copied();
        assert_eq!(failure.map(|failure| failure.kind), Some(FailureKind::Timeout));
    }

    #[test]
    fn an_error_of_any_of_four_types_is_seen_as_a_chain() {
        let text = |chain: Option<&(dyn StdError + 'static)>| chain.map(ToString::to_string);
        let boxed: BoxError = "boxed".into();
        let local: Box<dyn StdError + Send> = Box::new(io::Error::other("sent"));
        assert_eq!(text(as_chain(&Error::from_inner(io::Error::other("ours")))).as_deref(), Some("ours"));
        assert_eq!(text(as_chain(&boxed)).as_deref(), Some("boxed"));
        assert_eq!(text(as_chain(&local)).as_deref(), Some("sent"));
        assert_eq!(text(as_chain(&io::Error::other("io"))).as_deref(), Some("io"));
        assert_eq!(text(as_chain(&"a text")), None);
    }
}
