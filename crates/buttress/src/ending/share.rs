use super::Plain;
use crate::{BoxError, Error, ending::AsError};
use buttress_core::{Class, Rejection, single_flight::Landed};
use std::{
    convert::Infallible,
    error::Error as StdError,
    fmt,
    future::{Future, Ready, ready},
    sync::Arc,
    time::Duration,
};

/// Shares the result of one call among several callers. Required by
/// [`SingleFlightLayer`](crate::SingleFlightLayer). `By` reads the keys of requests.
///
/// ```
/// use buttress::ending::{Plain, Share, ShareLimits};
/// use std::io;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use buttress::single_flight::Landed;
///
/// let (ending, limits) = (Plain::new(), ShareLimits::default());
/// let landing = Share::<(), u32, io::Error>::land(&ending, &(), Ok(7), &limits);
/// let Landed::Shared(result) = landing.await else { panic!("every result of `Plain` is shared") };
/// assert_eq!(Share::<(), u32, io::Error>::shared(&ending, result).unwrap(), 7);
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "the ending `{Self}` cannot share `Result<{Res}, {Err}>` by `{By}`",
    note = "single flight is for clients: end it with `.plain()`, for responses that are `Clone + Send + 'static`, or with \
            `.http_client()`, for keys of `buttress_http::HttpKey`"
)]
pub trait Share<By, Res, Err> {
    /// A result for all callers.
    type Shared: Clone + Send + 'static;
    /// A result for the caller that has made the call.
    type Own: Send + 'static;
    /// Makes the one or the other of the result of the inner service.
    type Landing: Future<Output = Landed<Self::Shared, Self::Own>> + Send + 'static;
    /// The response to a caller.
    type Response;

    /// Whether results are always shared. Requests of callers that wait are kept otherwise.
    const ALWAYS: bool = false;

    /// Begins to share the result of the inner service.
    fn land(&self, by: &By, result: Result<Res, Err>, limits: &ShareLimits) -> Self::Landing;

    /// Returns the result of one of the callers.
    ///
    /// # Errors
    /// The error of the call.
    fn shared(&self, result: Self::Shared) -> Result<Self::Response, Error>;

    /// Returns the result of the only caller.
    fn own(&self, result: Self::Own) -> Self::Response;

    /// Returns the result of a call that was made without regard to others.
    ///
    /// # Errors
    /// The error of the call.
    fn alone(&self, result: Result<Res, Err>) -> Result<Self::Response, Error>;

    /// Returns whether the call was rejected because its caller has no time left, which does not
    /// hold for a caller that has more.
    fn is_late(&self, result: &Self::Shared) -> bool;
}

/// What is shared of responses that have a body.
///
/// ```
/// use buttress::ending::ShareLimits;
///
/// assert_eq!(ShareLimits::default().max_body, 1 << 20);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct ShareLimits {
    /// Maximum length of a body, in bytes. Default: 1 MiB.
    pub max_body: u64,
    /// Maximum time from the head of a response to the end of its body. Default: 500 ms.
    pub max_wait: Duration,
}

impl Default for ShareLimits {
    fn default() -> Self {
        Self { max_body: 1 << 20, max_wait: Duration::from_millis(500) }
    }
}

/// The error of a call that several callers share. Its source is the error itself.
///
/// Only a caller that gets the error alone gets it as it is. A rejection is copied, and never in
/// this wrapper.
///
/// ```
/// use buttress::{Error, ending::SharedError, error::sources};
/// use std::io;
///
/// let error = SharedError::new(Error::from_inner(io::Error::other("down")));
/// let copies = [error.clone().into_error(), error.into_error()];
/// assert!(copies.iter().all(|copy| sources(copy).any(|source| source.is::<io::Error>())));
/// ```
#[derive(Clone, Debug)]
pub struct SharedError(Arc<Error>);

impl SharedError {
    /// Makes an error that can be cloned.
    pub fn new(error: Error) -> Self {
        Self(Arc::new(error))
    }

    /// Returns the error for one caller.
    pub fn into_error(self) -> Error {
        match Arc::try_unwrap(self.0) {
            Ok(alone) => alone,
            Err(shared) => match &*shared {
                Error::Rejected(rejection) => Error::Rejected(rejection.clone()),
                Error::Inner(_) => Error::Inner(Box::new(Self(shared))),
            },
        }
    }

    /// Returns whether the call was rejected because of its deadline.
    pub fn is_late(&self) -> bool {
        self.0.rejection().map(Rejection::reason).is_some_and(|reason| reason.class() == Class::Deadline)
    }
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for SharedError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

impl<By, Outcomes, Res, Err> Share<By, Res, Err> for Plain<Outcomes, AsError>
where
    Res: Clone + Send + 'static,
    Err: Into<BoxError>,
{
    type Shared = Result<Res, SharedError>;
    type Own = Infallible;
    type Landing = Ready<Landed<Self::Shared, Infallible>>;
    type Response = Res;

    const ALWAYS: bool = true;

    fn land(&self, _: &By, result: Result<Res, Err>, _: &ShareLimits) -> Self::Landing {
        ready(Landed::Shared(result.map_err(|error| SharedError::new(Error::from_inner(error)))))
    }

    fn shared(&self, result: Self::Shared) -> Result<Res, Error> {
        result.map_err(SharedError::into_error)
    }

    fn own(&self, result: Infallible) -> Res {
        match result {}
    }

    fn alone(&self, result: Result<Res, Err>) -> Result<Res, Error> {
        result.map_err(Error::from_inner)
    }

    fn is_late(&self, result: &Self::Shared) -> bool {
        result.as_ref().is_err_and(SharedError::is_late)
    }
}
