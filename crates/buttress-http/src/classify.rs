//! The one place that knows what an HTTP status, a gRPC code and a transport error mean.
//!
//! | HTTP | breakers | repeated when idempotent | repeated otherwise |
//! |---|---|---|---|
//! | 1xx to 4xx but those below | success | | |
//! | 408 | failure | yes | |
//! | 429 | overload | yes | yes |
//! | 500, 502, 504 and other 5xx | failure | yes | |
//! | 501 | failure | | |
//! | 503 | failure | yes | with `Retry-After` |
//! | not connected | failure | yes | yes |
//! | `REFUSED_STREAM`, `GOAWAY` without error | failure | at once, once | at once, once |
//!
//! | gRPC | breakers | repeated |
//! |---|---|---|
//! | `UNAVAILABLE` | failure | yes |
//! | `DEADLINE_EXCEEDED` | failure | when idempotent |
//! | `INTERNAL`, `DATA_LOSS`, `UNKNOWN`, no code at all | failure | no |
//! | `RESOURCE_EXHAUSTED` | overload | with a pushback |
//! | all others, `PERMISSION_DENIED` and `CANCELLED` among them | success | |
//!
//! Overload counts in failure rates, and not as a failure in a row.

use crate::hint::{self, Hint};
use buttress::{Failure, FailureKind, Outcome, Sent, error::sources};
use http::{HeaderMap, StatusCode};
use std::error::Error as StdError;

/// gRPC's `UNKNOWN`, which also stands for a stream that ended without a status.
const UNKNOWN: i32 = 2;

/// What an HTTP status means.
pub fn http_status(status: StatusCode, headers: &HeaderMap) -> Outcome {
    if !(status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)) {
        return Outcome::Success;
    }
    let mut failure = Failure::new(FailureKind::Http(status.as_u16()));
    failure.retry_after = hint::retry_after(headers);
    match status {
        StatusCode::TOO_MANY_REQUESTS => {
            failure.overload = true;
            failure.sent = Sent::NotProcessed;
        }
        StatusCode::SERVICE_UNAVAILABLE if failure.retry_after.is_some() => failure.sent = Sent::NotProcessed,
        StatusCode::NOT_IMPLEMENTED => failure.no_retry = true,
        _ => {}
    }
    failure.into()
}

/// What the `grpc-status` in headers or trailers means; `None` when there is none.
pub fn grpc_headers(headers: &HeaderMap) -> Option<Outcome> {
    let code = headers.get("grpc-status")?.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(UNKNOWN);
    Some(grpc_code(code, hint::pushback(headers)))
}

/// A gRPC stream that ended without a status.
pub fn grpc_without_status() -> Outcome {
    grpc_code(UNKNOWN, None)
}

fn grpc_code(code: i32, pushback: Option<Hint>) -> Outcome {
    let mut failure = Failure::new(FailureKind::Grpc(code));
    failure.retry_after = pushback.and_then(Hint::after);
    failure.no_retry = pushback == Some(Hint::Never);
    match code {
        // DEADLINE_EXCEEDED
        4 => {}
        // UNAVAILABLE
        14 => failure.sent = Sent::NotProcessed,
        // RESOURCE_EXHAUSTED
        8 => {
            failure.overload = true;
            failure.sent = Sent::NotProcessed;
            failure.no_retry |= failure.retry_after.is_none();
        }
        // UNKNOWN, INTERNAL, DATA_LOSS, and codes that do not exist
        2 | 13 | 15 => failure.no_retry = true,
        0..=16 => return Outcome::Success,
        _ => failure.no_retry = true,
    }
    failure.into()
}

/// What an error of a client means, as far as its chain of sources tells. With feature `hyper` it reads hyper's, hyper-util's and h2's
/// errors, with feature `tonic` tonic's too.
pub fn error(error: &(dyn StdError + 'static)) -> Outcome {
    if let Some(rejection) = buttress::error::find_rejection(error) {
        return rejection.outcome();
    }
    sources(error).find_map(known).unwrap_or_else(|| buttress::error::outcome(error))
}

/// Looks at an error of any type as a chain, as [`buttress::error::as_chain`] does, and knows the clients that are put directly under a layer.
pub(crate) fn as_chain<E: 'static>(error: &E) -> Option<&(dyn StdError + 'static)> {
    let known = buttress::error::as_chain(error);
    #[cfg(feature = "hyper")]
    let known = known
        .or_else(|| as_error::<hyper_util::client::legacy::Error>(error))
        .or_else(|| as_error::<hyper::Error>(error))
        .or_else(|| as_error::<h2::Error>(error));
    #[cfg(feature = "tonic")]
    let known =
        known.or_else(|| as_error::<::tonic::transport::Error>(error)).or_else(|| as_error::<::tonic::Status>(error));
    known
}

#[cfg(feature = "hyper")]
fn as_error<T: StdError + 'static>(error: &dyn std::any::Any) -> Option<&(dyn StdError + 'static)> {
    error.downcast_ref::<T>().map(|error| error as _)
}

fn known(error: &(dyn StdError + 'static)) -> Option<Outcome> {
    let failed = |kind: FailureKind, sent: Sent| Some(Outcome::from(Failure::new(kind).sent(sent)));
    #[cfg(feature = "hyper")]
    {
        if error.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|error| error.is_connect()) {
            return failed(FailureKind::Connect, Sent::Never);
        }
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            let going_away = error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
            return failed(
                FailureKind::Transport,
                if refused || going_away { Sent::NotProcessed } else { Sent::MaybeProcessed },
            );
        }
    }
    #[cfg(feature = "tonic")]
    {
        if error.is::<::tonic::ConnectError>() {
            return failed(FailureKind::Connect, Sent::Never);
        }
        if error.is::<::tonic::TimeoutExpired>() {
            return failed(FailureKind::Timeout, Sent::MaybeProcessed);
        }
        // A status that only wraps a transport error is read by that error, further down the chain.
        if let Some(status) = error.downcast_ref::<::tonic::Status>()
            && error.source().is_none()
        {
            return Some(grpc_code(status.code().into(), hint::pushback(status.metadata().as_ref())));
        }
    }
    let _ = (error, failed);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(status: u16) -> Option<Failure> {
        http_status(StatusCode::from_u16(status).unwrap(), &HeaderMap::new()).failure().copied()
    }

    #[test]
    fn client_errors_are_no_failures_but_408_and_429() {
        for status in [200, 304, 400, 401, 404, 409, 422, 499] {
            assert_eq!(http(status), None, "{status}");
        }
        assert!(!http(408).unwrap().overload);
        assert!(http(429).unwrap().overload);
    }

    #[test]
    fn server_errors_are_failures_and_only_501_is_never_repeated() {
        for status in [500, 502, 503, 504, 507, 599] {
            assert!(!http(status).unwrap().no_retry, "{status}");
        }
        assert!(http(501).unwrap().no_retry);
    }

    #[test]
    fn a_503_that_says_when_was_not_processed() {
        assert_eq!(http(503).unwrap().sent, Sent::MaybeProcessed);
        let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, "3".parse().unwrap())]);
        let outcome = http_status(StatusCode::SERVICE_UNAVAILABLE, &headers);
        assert_eq!(outcome.failure().unwrap().sent, Sent::NotProcessed);
    }

    #[test]
    fn grpc_codes_follow_the_table() {
        let failure = |code| grpc_code(code, None).failure().copied();
        for success in [0, 1, 3, 5, 6, 7, 9, 10, 11, 12, 16] {
            assert_eq!(failure(success), None, "{success}");
        }
        assert_eq!(failure(14).map(|f| (f.sent, f.no_retry)), Some((Sent::NotProcessed, false)));
        assert_eq!(failure(4).map(|f| (f.sent, f.no_retry)), Some((Sent::MaybeProcessed, false)));
        for code in [2, 13, 15, -1, 17, i32::MAX] {
            assert!(failure(code).unwrap().no_retry, "{code}");
        }
        assert!(failure(8).unwrap().overload && failure(8).unwrap().no_retry);
        assert!(!grpc_code(8, Some(Hint::After(Default::default()))).failure().unwrap().no_retry);
        assert!(grpc_code(14, Some(Hint::Never)).failure().unwrap().no_retry);
    }

    #[test]
    fn an_unreadable_grpc_status_is_unknown() {
        let headers = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), "fine".parse().unwrap())]);
        assert_eq!(grpc_headers(&headers), Some(grpc_without_status()));
        assert_eq!(grpc_headers(&HeaderMap::new()), None);
    }
}
