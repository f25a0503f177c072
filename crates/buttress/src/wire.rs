//! How protocols say that a call was rejected: the one table from a [`Class`] to their numbers.

use buttress_core::{Class, Rejection};

/// What HTTP and gRPC say of a [`Rejection`].
///
/// | class | HTTP | gRPC |
/// |---|---|---|
/// | [`Unavailable`](Class::Unavailable) | 503 | 14 `UNAVAILABLE` |
/// | [`Exhausted`](Class::Exhausted) | 503 | 8 `RESOURCE_EXHAUSTED` |
/// | [`RateLimited`](Class::RateLimited) | 429 | 8 `RESOURCE_EXHAUSTED` |
/// | [`Deadline`](Class::Deadline) | 504 | 4 `DEADLINE_EXCEEDED` |
/// | [`Refused`](Class::Refused) | 403 | 7 `PERMISSION_DENIED` |
///
/// ```
/// use buttress::{Rejection, bulkhead, wire::OnTheWire};
/// use std::time::Duration;
///
/// let rejection = Rejection::new("bulkhead", &bulkhead::FULL).after(Some(Duration::from_millis(1200)));
/// assert_eq!((rejection.http_status(), rejection.http_retry_after()), (503, Some(2)));
/// assert_eq!((rejection.grpc_status(), rejection.grpc_pushback()), (8, Some(1200)));
/// ```
pub trait OnTheWire {
    /// The HTTP status code.
    fn http_status(&self) -> u16;

    /// `Retry-After` in whole seconds, rounded up. 1 where it is not known when another try can
    /// succeed, because that is the shortest time that can be said. `None` where the status does
    /// not invite one: 403 and 504.
    fn http_retry_after(&self) -> Option<u64>;

    /// The gRPC status code.
    fn grpc_status(&self) -> i32;

    /// `grpc-retry-pushback-ms`: a signed 32-bit number of milliseconds (gRFC A6). `None` where it
    /// is not known when another try can succeed.
    fn grpc_pushback(&self) -> Option<i32>;
}

impl OnTheWire for Rejection {
    fn http_status(&self) -> u16 {
        match self.reason().class() {
            Class::Unavailable | Class::Exhausted => 503,
            Class::RateLimited => 429,
            Class::Deadline => 504,
            Class::Refused => 403,
        }
    }

    fn http_retry_after(&self) -> Option<u64> {
        if matches!(self.http_status(), 403 | 504) {
            return None;
        }
        let after = self.retry_after().unwrap_or_default();
        Some(after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0)).max(1))
    }

    fn grpc_status(&self) -> i32 {
        match self.reason().class() {
            Class::Unavailable => 14,
            Class::Exhausted | Class::RateLimited => 8,
            Class::Deadline => 4,
            Class::Refused => 7,
        }
    }

    fn grpc_pushback(&self) -> Option<i32> {
        self.retry_after().map(|after| i32::try_from(after.as_millis()).unwrap_or(i32::MAX))
    }
}
