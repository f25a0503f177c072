//! The one thing about gRPC that this crate knows: how its error becomes a `Status`. It cannot be elsewhere, for the orphan rule.

use crate::Error;
use std::sync::Arc;
use tonic::{Code, Status, metadata::MetadataValue};

/// A rejection gets the code that its reason stands for, with `grpc-retry-pushback-ms` where it knows when to come back, and stays the status' source.
/// An inner error is converted as tonic would.
impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let rejection = match error {
            Error::Rejected(rejection) => rejection,
            Error::Inner(inner) => return Self::from_error(inner),
        };
        let mut status = Self::new(Code::from(rejection.grpc_status()), rejection.to_string());
        if let Some(millis) = rejection.grpc_pushback() {
            status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from(millis));
        }
        status.set_source(Arc::new(Error::Rejected(rejection)));
        status
    }
}
