//! The one error of this family.

use buttress_core::{Failure, FailureKind, Ignored, Outcome, Rejection, Sent};
use std::{any::Any, error::Error as StdError, io};

/// Any error, boxed, as everywhere in tower.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What a layer of ours returns where it lets rejections leave as errors.
///
/// Flat: however many layers are stacked, and whatever boxes errors between them, there is one of these at most. An inner
/// error keeps its type: [`source`](StdError::source) is that error itself, so `downcast_ref` finds it, and tonic finds its `Status`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// One of our policies refused the call, or gave up on it.
    #[error("{0}")]
    Rejected(Rejection),
    /// The inner service failed.
    #[error("{0}")]
    Inner(#[source] BoxError),
}

impl Error {
    /// Wraps the error of an inner service, or unwraps it when it is one of ours already.
    pub fn from_inner(error: impl Into<BoxError>) -> Self {
        match error.into().downcast::<Self>() {
            Ok(ours) => *ours,
            Err(other) => Self::Inner(other),
        }
    }

    /// The rejection, wherever in the chain of sources it is.
    pub fn rejection(&self) -> Option<&Rejection> {
        find_rejection(self)
    }
}

impl From<Rejection> for Error {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// Finds the rejection of one of our layers in a chain of sources, through errors of other people.
pub fn find_rejection<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Rejection> {
    sources(error).find_map(|error| match error.downcast_ref::<Error>() {
        Some(Error::Rejected(rejection)) => Some(rejection),
        _ => error.downcast_ref::<Rejection>(),
    })
}

/// The error itself and all its sources, with what an [`io::Error`] wraps: that one's own `source` skips it.
pub fn sources<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map(|wrapped| wrapped as _).or_else(|| error.source());
        Some(error)
    })
}

/// What an error says when nothing is known of its protocol. Its sources are looked into too:
///
/// * a rejection of this family says itself whether it is evidence, see [`Rejection::outcome`];
/// * tower's `Overloaded` (load shed) is a rejection too, and no evidence;
/// * tower's and tokio's `Elapsed` is a timeout of an attempt, which is evidence;
/// * a connection that was refused, or a name that was not found, was never sent;
/// * anything else is a failure that may have been processed.
pub fn outcome(error: &(dyn StdError + 'static)) -> Outcome {
    if let Some(rejection) = find_rejection(error) {
        return rejection.outcome();
    }
    sources(error).find_map(known).unwrap_or_else(|| Failure::new(FailureKind::Transport).into())
}

fn known(error: &(dyn StdError + 'static)) -> Option<Outcome> {
    if error.is::<tower::load_shed::error::Overloaded>() {
        return Some(Outcome::Ignored(Ignored::LocalReject));
    }
    if error.is::<tower::timeout::error::Elapsed>() || error.is::<tokio::time::error::Elapsed>() {
        return Some(Failure::new(FailureKind::Timeout).into());
    }
    let error = error.downcast_ref::<io::Error>()?;
    let never_sent = matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
    );
    never_sent.then(|| Failure::new(FailureKind::Connect).sent(Sent::Never).into())
}

/// Looks at an error of any type as a chain, where it is one: [`Error`], a [`BoxError`], an [`io::Error`]. Others cannot be looked into.
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

    /// An error of a user, around another.
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
    fn a_refused_connection_was_never_sent() {
        let error = Error::from_inner(io::Error::other(io::Error::from(io::ErrorKind::ConnectionRefused)));
        assert_eq!(outcome(&error).failure().map(|failure| failure.sent), Some(Sent::Never));
    }
}
