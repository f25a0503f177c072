//! How a rejection leaves a layer: as an error, for clients, or as a response, for servers.

use crate::error::{BoxError, Error};
use buttress_core::Rejection;

/// The error side of an exit: what becomes of the inner service's error.
pub trait ExitError<E> {
    /// The layer's error.
    type Error: 'static;
    /// Passes the inner service's error on.
    fn inner(&self, error: E) -> Self::Error;
}

/// Turns a rejection into the layer's result.
pub trait Exit<Res, E>: ExitError<E> {
    /// The result of a call that was not let through.
    fn reject(&self, rejection: Rejection) -> Result<Res, Self::Error>;
}

/// Rejections leave as [`Error`]: for clients, and the default. The inner error is kept in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsError;

impl<E: Into<BoxError>> ExitError<E> for AsError {
    type Error = Error;

    fn inner(&self, error: E) -> Error {
        Error::from_inner(error)
    }
}

impl<Res, E: Into<BoxError>> Exit<Res, E> for AsError {
    fn reject(&self, rejection: Rejection) -> Result<Res, Error> {
        Err(rejection.into())
    }
}

/// Rejections leave as a response made by a function; the error type stays the inner service's.
///
/// ```
/// use buttress::{BulkheadLayer, Rejection, exit::respond_with};
/// use std::convert::Infallible;
/// use tower::{Service, ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let service = ServiceBuilder::new()
///     .layer(BulkheadLayer::new(0).exit(respond_with(|rejection: Rejection| format!("sorry: {rejection}"))))
///     .service_fn(|name: &'static str| async move { Ok::<_, Infallible>(name.to_owned()) });
/// assert_eq!(service.oneshot("hello").await.unwrap(), "sorry: bulkhead: full");
/// # }
/// ```
pub fn respond_with<F>(respond: F) -> RespondWith<F> {
    RespondWith(respond)
}

/// See [`respond_with`].
#[derive(Clone, Copy, Debug)]
pub struct RespondWith<F>(F);

impl<F, E: 'static> ExitError<E> for RespondWith<F> {
    type Error = E;

    fn inner(&self, error: E) -> E {
        error
    }
}

impl<F: Fn(Rejection) -> Res, Res, E: 'static> Exit<Res, E> for RespondWith<F> {
    fn reject(&self, rejection: Rejection) -> Result<Res, E> {
        Ok((self.0)(rejection))
    }
}
