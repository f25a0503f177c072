//! The one thing about gRPC that this crate knows: how its error becomes a `Status`. It cannot be elsewhere, for the orphan rule.

use crate::Error;
use buttress_core::Reason;
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
        let code = match rejection.reason() {
            Reason::BulkheadFull | Reason::QueueFull | Reason::QueueTimeout => Code::ResourceExhausted,
            Reason::TimedOut(_) => Code::DeadlineExceeded,
            _ => Code::Unavailable,
        };
        let mut status = Self::new(code, rejection.to_string());
        if let Some(after) = rejection.retry_after() {
            // gRFC A6: a signed 32-bit number of milliseconds.
            let millis = i32::try_from(after.as_millis()).unwrap_or(i32::MAX);
            status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from(millis));
        }
        status.set_source(Arc::new(Error::Rejected(rejection)));
        status
    }
}
