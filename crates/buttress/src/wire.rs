//! What HTTP and gRPC say of rejections.

use buttress_core::{Class, Rejection};

/// Maps a [`Rejection`] to HTTP and gRPC, by its [`Class`]. The HTTP status itself is
/// [`Rejection::http_status`].
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
    /// Returns the value of `Retry-After` in whole seconds, rounded up (RFC 9110, section 10.2.3).
    /// 1 second, the shortest possible value, if the time is unknown. `None` for 403 and 504, which
    /// do not invite a retry.
    ///
    /// ```
    /// use buttress::{Rejection, bulkhead, timeout, wire::OnTheWire};
    ///
    /// assert_eq!(Rejection::new("bulkhead", &bulkhead::FULL).http_retry_after(), Some(1));
    /// assert_eq!(Rejection::new("timeout", &timeout::TOTAL).http_retry_after(), None);
    /// ```
    fn http_retry_after(&self) -> Option<u64>;

    /// Returns the gRPC status code.
    ///
    /// ```
    /// use buttress::{Rejection, timeout, wire::OnTheWire};
    ///
    /// assert_eq!(Rejection::new("timeout", &timeout::TOTAL).grpc_status(), 4);
    /// ```
    fn grpc_status(&self) -> i32;

    /// Returns the value of `grpc-retry-pushback-ms` in milliseconds (gRFC A6), at most `i32::MAX`.
    /// `None` if the time is unknown, and for the classes that do not invite a retry, `Deadline`
    /// and `Refused`.
    ///
    /// ```
    /// use buttress::{Rejection, bulkhead, wire::OnTheWire};
    ///
    /// assert_eq!(Rejection::new("bulkhead", &bulkhead::FULL).grpc_pushback(), None);
    /// ```
    fn grpc_pushback(&self) -> Option<i32>;
}

impl OnTheWire for Rejection {
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
        if matches!(self.reason().class(), Class::Deadline | Class::Refused) {
            return None;
        }
        self.retry_after().map(|after| i32::try_from(after.as_millis()).unwrap_or(i32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buttress_core::Reason;
    use std::time::Duration;

    static CLASSES: [Reason; 5] = [
        Reason::new("unavailable", "unavailable", Class::Unavailable),
        Reason::new("exhausted", "exhausted", Class::Exhausted),
        Reason::new("rate_limited", "rate limited", Class::RateLimited),
        Reason::new("deadline", "deadline", Class::Deadline),
        Reason::new("refused", "refused", Class::Refused),
    ];

    #[test]
    fn each_class_has_its_statuses_and_invites_a_retry_or_does_not() {
        let after = Some(Duration::from_millis(1200));
        let table = CLASSES.each_ref().map(|reason| {
            let rejection = Rejection::new("mine", reason).after(after);
            let (http, grpc) = (rejection.http_status(), rejection.grpc_status());
            (http, rejection.http_retry_after(), grpc, rejection.grpc_pushback())
        });
        let expected = [
            (503, Some(2), 14, Some(1200)),
            (503, Some(2), 8, Some(1200)),
            (429, Some(2), 8, Some(1200)),
            (504, None, 4, None),
            (403, None, 7, None),
        ];
        assert_eq!(table, expected);
    }

    #[test]
    fn a_time_is_rounded_up_to_seconds_and_cut_to_milliseconds() {
        let wire = |after| {
            let rejection = Rejection::new("mine", &CLASSES[0]).after(after);
            (rejection.http_retry_after(), rejection.grpc_pushback())
        };
        assert_eq!(wire(None), (Some(1), None));
        for (nanos, seconds, millis) in [
            (0, 1, 0),
            (1, 1, 0),
            (1_000_000_000, 1, 1000),
            (1_000_000_001, 2, 1000),
            (2_001_000_000, 3, 2001),
            (2_147_483_647_000_000, 2_147_484, i32::MAX),
            (2_147_483_648_000_000, 2_147_484, i32::MAX),
        ] {
            assert_eq!(wire(Some(Duration::from_nanos(nanos))), (Some(seconds), Some(millis)), "{nanos} ns");
        }
    }
}
