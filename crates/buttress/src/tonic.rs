//! The one thing about gRPC that this crate knows: how its error becomes a `Status`. It cannot be elsewhere, for the orphan rule.

use crate::{Error, wire::OnTheWire};
use std::sync::Arc;
use tonic::{Code, Status, metadata::MetadataValue};

/// A rejection gets the code that its reason stands for, with `grpc-retry-pushback-ms` where it
/// knows when to come back, and stays in the sources of the status, also where an error of another
/// type is around it. A timeout of tonic is `DEADLINE_EXCEEDED`. Other errors are converted as
/// tonic would.
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
                Error::Rejected(_) => unreachable!("a rejection has been looked for"),
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
