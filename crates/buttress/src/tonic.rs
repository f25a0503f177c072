//! Converts errors into `tonic::Status`. It is in this crate because of the orphan rule; everything
//! else about gRPC is in `buttress-http`.

use crate::{Error, wire::OnTheWire};
use std::sync::Arc;
use tonic::{Code, Status, metadata::MetadataValue};

/// A rejection becomes the code of its class, with `grpc-retry-pushback-ms` (gRFC A6) if the time
/// is known, also when an error of another type is around it. The status keeps the error as its
/// source. A timeout of tonic becomes `DEADLINE_EXCEEDED`. Other errors are converted as by
/// [`Status::from_error`].
///
/// ```
/// use buttress::{Error, Rejection, timeout};
///
/// let error = Error::from(Rejection::new("timeout", &timeout::TOTAL));
/// assert_eq!(tonic::Status::from(error).code(), tonic::Code::DeadlineExceeded);
/// ```
impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let Some(rejection) = error.rejection() else {
            return match error {
                Error::Inner(inner) if has_expired(&*inner) => {
                    let mut status = Self::deadline_exceeded(inner.to_string());
                    status.set_source(Arc::from(inner));
                    status
                }
                Error::Inner(inner) => Self::from_error(inner),
                Error::Rejected(_) => unreachable!("`rejection` returned None"),
            };
        };
        let mut status = Self::new(Code::from(rejection.grpc_status()), rejection.to_string());
        if let Some(millis) = rejection.grpc_pushback() {
            status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from(millis));
        }
        status.set_source(Arc::new(error));
        status
    }
}

fn has_expired(error: &(dyn std::error::Error + 'static)) -> bool {
    crate::error::sources(error).any(|error| error.is::<tonic::TimeoutExpired>())
}
