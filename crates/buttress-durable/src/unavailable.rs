//! Recognises errors that say nothing about the work itself: a database, a bus or a service that is
//! away, and calls that a layer rejected before they were sent.

use std::error::Error;
use std::time::Duration;

use buttress::error::{find_rejection, sources};

use crate::bus::BusError;
use crate::db::{DbError, DbErrorKind};

/// Returns whether the cause of an error is infrastructure that may be back later.
pub(crate) fn is_unavailable(error: &(dyn Error + 'static)) -> bool {
    if find_rejection(error).is_some_and(buttress::Rejection::is_unprocessed) {
        return true;
    }
    sources(error).any(|error| {
        let away = matches!(error.downcast_ref(), Some(BusError::Unavailable(_) | BusError::HeldBack));
        // A lost race says as little about the work as a lost connection.
        away || matches!(DbError::kind_in(error), Some(DbErrorKind::Unavailable | DbErrorKind::Conflict))
    })
}

/// Returns the time that a rejecting layer names, for example until an open circuit admits a probe.
pub(crate) fn retry_after(error: &(dyn Error + 'static)) -> Option<Duration> {
    find_rejection(error).and_then(buttress::Rejection::retry_after)
}

#[cfg(test)]
mod tests {
    use std::io;

    use buttress::{Rejection, bulkhead, timeout};

    use super::*;

    #[test]
    fn a_database_or_bus_that_is_away_is_recognised_behind_other_errors() {
        let busy = || DbError::Busy(Duration::from_secs(5));
        assert!(is_unavailable(&busy()) && is_unavailable(&io::Error::other(busy())));
        assert!(is_unavailable(&BusError::from(busy())) && is_unavailable(&BusError::HeldBack));
        assert!(is_unavailable(&sqlx::Error::PoolTimedOut));
        assert!(is_unavailable(&BusError::Unavailable("no leader".into())));
        for other in [sqlx::Error::RowNotFound, sqlx::Error::ColumnNotFound("x".to_owned())] {
            assert!(!is_unavailable(&other));
        }
        let data = || sqlx::Error::Encode("a NUL in a text".into());
        assert!(!is_unavailable(&BusError::from(data())) && !is_unavailable(&io::Error::other(BusError::from(data()))));
        assert!(!is_unavailable(&BusError::Unknown("x".to_owned())) && !is_unavailable(&std::fmt::Error));
    }

    #[test]
    fn a_call_that_a_layer_rejected_is_unavailable_and_one_that_timed_out_is_not() {
        let full = Rejection::new("bulkhead", &bulkhead::FULL).after(Some(Duration::from_secs(3)));
        let error = io::Error::other(buttress::Error::from(full));
        assert!(is_unavailable(&error));
        assert_eq!(retry_after(&error), Some(Duration::from_secs(3)));
        let late = buttress::Error::from(Rejection::new("timeout", &timeout::TOTAL));
        assert!(!is_unavailable(&late));
        assert_eq!(BusError::Unavailable(Box::new(error)).retry_after(), Some(Duration::from_secs(3)));
    }
}
