//! The one place that knows what an HTTP status, a gRPC code and a transport error mean.
//!
//! | HTTP | breakers | repeated when idempotent | repeated otherwise |
//! |---|---|---|---|
//! | 1xx to 4xx but those below | success | | |
//! | 408 | failure | yes | |
//! | 429 | overload | yes | yes |
//! | 500, 502, 503, 504 and other 5xx | failure | yes | |
//! | 501 | failure | | |
//! | any of these with `x-buttress-rejected`, `x-envoy-overloaded` or `x-envoy-ratelimited` | overload | yes | yes |
//!
//! | gRPC | breakers | repeated when idempotent | repeated otherwise |
//! |---|---|---|---|
//! | `UNAVAILABLE` | failure | yes | with a pushback |
//! | `RESOURCE_EXHAUSTED` | overload | yes | with a pushback |
//! | either with `x-buttress-rejected`, `x-envoy-overloaded` or `x-envoy-ratelimited` | overload | yes | yes |
//! | `DEADLINE_EXCEEDED` | failure | yes | |
//! | `INTERNAL`, `DATA_LOSS`, `UNKNOWN`, no code at all | failure | | |
//! | all others, `PERMISSION_DENIED` and `CANCELLED` among them | success | | |
//!
//! | errors of a client | breakers | repeated when idempotent | repeated otherwise |
//! |---|---|---|---|
//! | not connected: refused, unreachable, DNS, TLS | failure | yes, free | yes, free |
//! | `REFUSED_STREAM`, a GOAWAY below this stream, a connection that closed before a byte was written | none | at once, once, free | at once, once, free |
//! | hyper gave the request up: its connection ended before it had a stream | none | yes | once, free, if nothing of its body was taken |
//! | the connection broke, the protocol was violated | failure | yes | |
//! | the caller broke its upload off | none | | |
//! | reqwest did not accept the request's URI, or did not follow a redirect | none | | |
//! | a timeout of an attempt, also tower's, tonic's and reqwest's | failure | yes | |
//! | a rejection by a layer of this family, or by tower's load shed | none | | |
//!
//! reqwest's timeout of a whole call does not say whether the connection was there already; its
//! `connect_timeout` is "not connected". An error made of a status by `error_for_status` counts as
//! that status does, without its headers.
//!
//! Overload counts in failure rates, and not as a failure in a row. What the server says it did not
//! process, because it rejected the request at admission, is repeated whatever its method. A 503
//! with `Retry-After` and a bare `UNAVAILABLE` do not say so: a handler that has done half its work
//! and passes on the failure of another service answers the same.
//!
//! # What was not written
//!
//! These errors are taken for "no byte of the request was processed", from the sources of hyper
//! 1.12 and h2 0.4:
//!
//! * `hyper::Error::is_canceled` is made where a request is still in the channel to the
//!   connection's task when that ends (`client/dispatch.rs`, `proto/h1/dispatch.rs`), or where the
//!   connection was not ready to take it (`client/conn/*.rs`). A request that the task has taken
//!   gets another error (`IncompleteMessage`, `Io`).
//! * `h2::Error::is_go_away` with `is_remote` is given to streams above the last stream that the
//!   GOAWAY names, and to no others (`proto/streams/streams.rs`, `recv_go_away`). RFC 9113, section
//!   6.8: those were not and will not be processed. hyper returns the same error for one request
//!   more: one whose headers it has just queued when a GOAWAY arrives (`proto/h2/client.rs`,
//!   `ClientTask::poll`). It resets that stream and sends nothing of the body. Where the GOAWAY is
//!   the first one of a graceful shutdown, which names the largest stream there is, the server may
//!   see these headers. So a handler that acts before it has read the body can see such a request
//!   twice.
//! * `REFUSED_STREAM`: RFC 9113, section 8.7.

use crate::{
    answer::REJECTED,
    hint::{self, Hint},
};
use buttress::{
    error::sources,
    outcome::{Failure, FailureKind, Outcome, Sent},
};
use http::{HeaderMap, HeaderName, StatusCode};
use std::error::Error as StdError;

/// gRPC's `UNKNOWN`, which also stands for a stream that ended without a status.
const UNKNOWN: i32 = 2;

/// Headers by which a server, or a proxy before it, says that it rejected a request at admission:
/// ours, and Envoy's.
const AT_ADMISSION: [HeaderName; 3] =
    [REJECTED, HeaderName::from_static("x-envoy-overloaded"), HeaderName::from_static("x-envoy-ratelimited")];

fn rejected_at_admission(headers: &HeaderMap) -> bool {
    AT_ADMISSION.iter().any(|name| headers.contains_key(name))
}

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
        _ if rejected_at_admission(headers) => {
            failure.overload = true;
            failure.sent = Sent::NotProcessed;
        }
        StatusCode::NOT_IMPLEMENTED => failure.no_retry = true,
        _ => {}
    }
    failure.into()
}

/// What the `grpc-status` in headers or trailers means; `None` when there is none.
pub fn grpc_headers(headers: &HeaderMap) -> Option<Outcome> {
    let code = headers.get("grpc-status")?.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(UNKNOWN);
    Some(grpc_code(code, headers))
}

/// An HTTP response to a gRPC call that has no `grpc-status`: something on the way speaks HTTP
/// only. The statuses mean what gRPC's own table says (`doc/http-grpc-status-mapping.md`).
pub fn grpc_without_status_over_http(status: StatusCode, headers: &HeaderMap) -> Outcome {
    match status.as_u16() {
        // UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED
        401 | 403 | 404 => Outcome::Success,
        // UNAVAILABLE
        429 | 502 | 503 | 504 => http_status(status, headers),
        // INTERNAL
        400 => grpc_code(13, headers),
        _ => grpc_code(UNKNOWN, headers),
    }
}

/// A gRPC stream that ended without a status.
pub fn grpc_without_status() -> Outcome {
    grpc_code(UNKNOWN, &HeaderMap::new())
}

fn grpc_code(code: i32, headers: &HeaderMap) -> Outcome {
    let pushback = hint::pushback(headers);
    let mut failure = Failure::new(FailureKind::Grpc(code));
    failure.retry_after = pushback.and_then(Hint::after);
    failure.no_retry = pushback == Some(Hint::Never);
    match code {
        // DEADLINE_EXCEEDED
        4 => {}
        // RESOURCE_EXHAUSTED, UNAVAILABLE
        8 | 14 => {
            let rejected = rejected_at_admission(headers);
            failure.overload = code == 8 || rejected;
            if rejected || failure.retry_after.is_some() {
                failure.sent = Sent::NotProcessed;
            }
        }
        // UNKNOWN, INTERNAL, DATA_LOSS
        2 | 13 | 15 => failure.no_retry = true,
        0..=16 => return Outcome::Success,
        // Codes that do not exist.
        _ => failure.no_retry = true,
    }
    failure.into()
}

/// What an error of a client means, as far as its chain of sources tells. With feature `hyper` it reads hyper's, hyper-util's and h2's
/// errors, with features `reqwest` and `tonic` those of these too.
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
    #[cfg(feature = "reqwest")]
    let known = known.or_else(|| as_error::<reqwest::Error>(error));
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
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            if error.is_canceled() {
                return Some(handed_back());
            }
            if is_given_up(error) {
                return Some(Failure { graceful: true, ..Failure::new(FailureKind::Transport) }.into());
            }
            // The caller's body failed, or the caller did.
            if error.is_user() {
                return Some(Outcome::CANCELLED);
            }
        }
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return Some(h2_outcome(error));
        }
    }
    #[cfg(feature = "reqwest")]
    if let Some(outcome) = error.downcast_ref().and_then(reqwest_outcome) {
        return Some(outcome);
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
            return Some(grpc_code(status.code().into(), status.metadata().as_ref()));
        }
    }
    let _ = (error, failed);
    None
}

/// The transport handed a request back before the other side looked at it: that is no evidence
/// against it.
#[cfg(feature = "hyper")]
fn handed_back() -> Outcome {
    Failure { graceful: true, ..Failure::new(FailureKind::Transport).sent(Sent::NotProcessed) }.into()
}

/// The task of the connection ended under a request that it had taken. hyper calls it a fault of
/// the user, which it is only where the runtime ends; it also happens to the one request that waits
/// for a stream (`SETTINGS_MAX_CONCURRENT_STREAMS`) of a connection that shuts down. hyper has no
/// method that says so: the text is that of hyper 1.12.
#[cfg(feature = "hyper")]
fn is_given_up(error: &hyper::Error) -> bool {
    error.is_user() && error.to_string() == "dispatch task is gone"
}

#[cfg(feature = "hyper")]
fn h2_outcome(error: &h2::Error) -> Outcome {
    let refused = error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if refused || (error.is_go_away() && error.is_remote()) {
        let graceful = refused || error.reason() == Some(h2::Reason::NO_ERROR);
        return Failure { graceful, ..Failure::new(FailureKind::Transport).sent(Sent::NotProcessed) }.into();
    }
    // A reset by this side: the caller's body failed.
    if error.is_reset() && !error.is_remote() && !error.is_library() {
        return Outcome::CANCELLED;
    }
    Failure::new(FailureKind::Transport).into()
}

/// What reqwest itself decided. An error that it passes on is read further down the chain.
#[cfg(feature = "reqwest")]
fn reqwest_outcome(error: &reqwest::Error) -> Option<Outcome> {
    if let Some(status) = error.status() {
        return Some(http_status(status, &HeaderMap::new()));
    }
    if error.is_builder() || error.is_redirect() {
        return Some(Outcome::CANCELLED);
    }
    is_reqwest_timeout(error).then(|| Failure::new(FailureKind::Timeout).into())
}

/// A timeout of reqwest, whose type is private. Not one that it passes on: of a connection that was
/// not made in time, of the system's TCP, or of a response that the caller was uploading.
#[cfg(feature = "reqwest")]
fn is_reqwest_timeout(error: &reqwest::Error) -> bool {
    let is_passed_on = |error: &(dyn StdError + 'static)| {
        error.is::<hyper_util::client::legacy::Error>() || error.is::<hyper::Error>() || error.is::<std::io::Error>()
    };
    error.is_timeout() && !sources(error).any(is_passed_on)
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

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_503_may_have_been_processed_unless_it_was_rejected_at_admission() {
        let sent = |pairs: &[_]| http_status(StatusCode::SERVICE_UNAVAILABLE, &headers(pairs)).failure().unwrap().sent;
        assert_eq!(sent(&[]), Sent::MaybeProcessed);
        assert_eq!(sent(&[("retry-after", "3")]), Sent::MaybeProcessed);
        for name in ["x-buttress-rejected", "x-envoy-overloaded", "x-envoy-ratelimited"] {
            assert_eq!(sent(&[(name, "true")]), Sent::NotProcessed, "{name}");
        }
    }

    #[test]
    fn grpc_codes_follow_the_table() {
        let failure = |code| grpc_code(code, &HeaderMap::new()).failure().copied();
        for success in [0, 1, 3, 5, 6, 7, 9, 10, 11, 12, 16] {
            assert_eq!(failure(success), None, "{success}");
        }
        for code in [4, 8, 14] {
            assert_eq!(failure(code).map(|f| (f.sent, f.no_retry)), Some((Sent::MaybeProcessed, false)), "{code}");
        }
        assert_eq!((failure(8).unwrap().overload, failure(14).unwrap().overload), (true, false));
        for code in [2, 13, 15, -1, 17, i32::MAX] {
            assert!(failure(code).unwrap().no_retry, "{code}");
        }
    }

    #[test]
    fn a_grpc_rejection_at_admission_was_not_processed_and_one_that_forbids_another_try_is_left_alone() {
        let of = |code, pairs: &[_]| *grpc_code(code, &headers(pairs)).failure().unwrap();
        for code in [8, 14] {
            for pairs in [&[("grpc-retry-pushback-ms", "0")], &[("x-buttress-rejected", "circuit_open")]] {
                assert_eq!((of(code, pairs).sent, of(code, pairs).no_retry), (Sent::NotProcessed, false), "{pairs:?}");
            }
            assert!(of(code, &[("grpc-retry-pushback-ms", "-1")]).no_retry);
        }
        assert_eq!(of(4, &[("x-buttress-rejected", "x")]).sent, Sent::MaybeProcessed);
    }

    #[test]
    fn an_http_answer_to_a_grpc_call_means_what_grpc_says() {
        let of = |status| grpc_without_status_over_http(StatusCode::from_u16(status).unwrap(), &HeaderMap::new());
        for status in [401, 403, 404] {
            assert_eq!(of(status), Outcome::Success, "{status}");
        }
        assert_eq!(of(400).failure().map(|failure| failure.kind), Some(FailureKind::Grpc(13)));
        assert_eq!(of(418).failure().map(|failure| failure.kind), Some(FailureKind::Grpc(2)));
        assert!(of(429).failure().unwrap().overload);
        assert_eq!(of(503).failure().map(|failure| failure.kind), Some(FailureKind::Http(503)));
    }

    #[test]
    fn an_unreadable_grpc_status_is_unknown() {
        let headers = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), "fine".parse().unwrap())]);
        assert_eq!(grpc_headers(&headers), Some(grpc_without_status()));
        assert_eq!(grpc_headers(&HeaderMap::new()), None);
    }
}
