//! The rules that turn an HTTP status, a gRPC code or a transport error into an [`Outcome`].
//!
//! In the tables, an empty cell in the last two columns means that the call is not repeated. A
//! "free" attempt takes no token from the retry budget.
//!
//! | HTTP | breakers | repeated when idempotent | repeated otherwise |
//! |---|---|---|---|
//! | 1xx to 4xx but those below | success | | |
//! | 408 | failure | yes | |
//! | 429 | overload | yes | yes |
//! | 500, 502, 503, 504 and other 5xx | failure | yes | |
//! | 501 | failure | | |
//! | 504 with `x-buttress-rejected` for the reason that no time was left | failure | | |
//! | any of these failures with `x-buttress-rejected`, `x-envoy-overloaded` or `x-envoy-ratelimited` | overload | yes | yes |
//!
//! | gRPC | breakers | repeated when idempotent | repeated otherwise |
//! |---|---|---|---|
//! | `UNAVAILABLE` | failure | yes | with a pushback |
//! | `RESOURCE_EXHAUSTED` | overload | yes | with a pushback |
//! | `DEADLINE_EXCEEDED` | failure | yes | |
//! | `DEADLINE_EXCEEDED` with `x-buttress-rejected` for the reason that no time was left | failure | | |
//! | any of these with `x-buttress-rejected`, `x-envoy-overloaded` or `x-envoy-ratelimited` | overload | yes | yes |
//! | `INTERNAL`, `DATA_LOSS`, `UNKNOWN`, no code at all | failure | | |
//! | all others, `PERMISSION_DENIED` and `CANCELLED` among them | success | | |
//!
//! | errors of a client | breakers | repeated when idempotent | repeated otherwise |
//! |---|---|---|---|
//! | not connected: refused, unreachable, DNS, TLS | failure | yes, free | yes, free |
//! | `REFUSED_STREAM`, a GOAWAY below this stream, a connection that closed before a byte was written | none | at once, once, free | at once, once, free |
//! | hyper dropped the request: its connection ended before it had a stream | none | yes | once, free, if none of its body was read |
//! | the connection broke, the protocol was violated | failure | yes | |
//! | the caller broke off its upload | none | | |
//! | hyper-util or reqwest did not accept the request's URI or version; reqwest did not follow a redirect | none | | |
//! | a timeout of an attempt, also tower's, tonic's and reqwest's | failure | yes | |
//! | a rejection by a Buttress layer, or by tower's load shed | none | | |
//!
//! reqwest's timeout of a whole call does not say whether the connection existed; its
//! `connect_timeout` counts as "not connected". An error that `error_for_status` made counts as its
//! status does, without the headers.
//!
//! Overload counts in failure rates, not as a consecutive failure. A request that the server
//! rejected at admission was not processed, so it is repeated whatever its method. A 503 with
//! `Retry-After` and an `UNAVAILABLE` without a pushback are not such rejections: a handler that
//! has done half its work returns them too, when a service that it calls has failed.
//!
//! A failure with the header `x-buttress-retried` is not repeated: a service below has repeated it
//! already, see [retries over tiers](buttress::retry#tiers).
//!
//! # Requests that were not processed
//!
//! These errors mean that the server did not process the request, according to the sources of hyper
//! 1.12 and h2 0.4:
//!
//! * `hyper::Error::is_canceled` is returned for a request that is still in the channel to the
//!   connection's task when that task ends (`client/dispatch.rs`, `proto/h1/dispatch.rs`), or that
//!   the connection was not ready to take (`client/conn/*.rs`). A request that the task has taken
//!   gets another error (`IncompleteMessage`, `Io`).
//! * `hyper::Error::is_closed` is returned by `poll_ready` of a connection that has ended
//!   (`client/dispatch.rs`, `client/conn/http2.rs`), before it gets the request.
//! * `h2::Error::is_go_away` with `is_remote` is returned for streams above the last stream that
//!   the GOAWAY names, and for no others (`proto/streams/streams.rs`, `recv_go_away`). RFC 9113,
//!   section 6.8: the server has not processed them and will not. hyper returns the same error for
//!   one more request: one whose headers were queued just before the GOAWAY arrived
//!   (`proto/h2/client.rs`, `ClientTask::poll`). It resets that stream and sends none of the body.
//!   If the GOAWAY is the first one of a graceful shutdown, which names the largest possible
//!   stream, the server may receive these headers. A handler that acts before it has read the body
//!   can therefore process such a request twice.
//! * `REFUSED_STREAM`: RFC 9113, section 8.7.

use crate::{
    answer::REJECTED,
    hint::{self, Hint},
    retried,
};
use buttress::{
    deadline::{EXPIRED, TOO_SHORT},
    error::sources,
    outcome::{Failure, FailureKind, Outcome, Sent},
};
use http::{HeaderMap, HeaderName, StatusCode};
use std::error::Error as StdError;

/// gRPC's `UNKNOWN`, also the code of a stream that ended without a status
/// (`doc/statuscodes.md` of gRPC).
const UNKNOWN: i32 = 2;

/// Headers of a response that was rejected at admission: by a Buttress layer, or by Envoy.
const AT_ADMISSION: [HeaderName; 3] =
    [REJECTED, HeaderName::from_static("x-envoy-overloaded"), HeaderName::from_static("x-envoy-ratelimited")];

fn rejected_at_admission(headers: &HeaderMap) -> bool {
    AT_ADMISSION.iter().any(|name| headers.contains_key(name))
}

/// Returns whether a Buttress server rejected the call because no time was left for it. It is not
/// overloaded, and another attempt would have less time.
fn came_late(headers: &HeaderMap) -> bool {
    headers.get(REJECTED).is_some_and(|word| word == EXPIRED.word() || word == TOO_SHORT.word())
}

/// Returns the outcome of an HTTP status.
///
/// `headers` are those of the response: `Retry-After` sets [`Failure::retry_after`], and the
/// headers of a rejection at admission set [`Failure::overload`] and [`Sent::NotProcessed`].
///
/// ```
/// use buttress::outcome::{Outcome, Sent};
/// use buttress_http::classify::http_status;
/// use http::{HeaderMap, StatusCode};
/// use std::time::Duration;
///
/// assert_eq!(http_status(StatusCode::NOT_FOUND, &HeaderMap::new()), Outcome::Success);
///
/// let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, "3".parse().unwrap())]);
/// let failure = *http_status(StatusCode::TOO_MANY_REQUESTS, &headers).failure().unwrap();
/// assert_eq!(failure.retry_after, Some(Duration::from_secs(3)));
/// assert_eq!((failure.overload, failure.sent), (true, Sent::NotProcessed));
/// ```
pub fn http_status(status: StatusCode, headers: &HeaderMap) -> Outcome {
    if !(status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)) {
        return Outcome::Success;
    }
    let mut failure = Failure::new(FailureKind::Http(status.as_u16()));
    failure.retry_after = hint::retry_after(headers);
    failure.retried = retried::is_marked(headers);
    match status {
        StatusCode::TOO_MANY_REQUESTS => {
            failure.overload = true;
            failure.sent = Sent::NotProcessed;
        }
        _ if rejected_at_admission(headers) => {
            let late = came_late(headers);
            (failure.no_retry, failure.overload) = (late, !late);
            failure.sent = Sent::NotProcessed;
        }
        StatusCode::NOT_IMPLEMENTED => (failure.no_retry, failure.conclusive) = (true, true),
        _ => {}
    }
    failure.into()
}

/// Returns the outcome of the `grpc-status` in headers or trailers, or `None` if there is none.
///
/// A `grpc-status` that is not a number counts as `UNKNOWN`. `grpc-retry-pushback-ms` is read as
/// gRFC A6 says: a negative or unreadable value forbids another attempt. Without it, and with the
/// feature `tonic`, [`Failure::retry_after`] is the delay of a `google.rpc.RetryInfo` in
/// `grpc-status-details-bin`.
///
/// ```
/// use buttress::outcome::{FailureKind, Outcome};
/// use buttress_http::classify::grpc_headers;
/// use http::{HeaderMap, HeaderName};
///
/// let status = |code: &str| HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), code.parse().unwrap())]);
/// assert_eq!(grpc_headers(&status("5")), Some(Outcome::Success)); // NOT_FOUND
/// let unavailable = grpc_headers(&status("14")).unwrap();
/// assert_eq!(unavailable.failure().unwrap().kind, FailureKind::Grpc(14));
/// assert_eq!(grpc_headers(&HeaderMap::new()), None);
/// ```
pub fn grpc_headers(headers: &HeaderMap) -> Option<Outcome> {
    let code = headers.get("grpc-status")?.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(UNKNOWN);
    Some(grpc_code(code, headers))
}

/// Returns the outcome of an HTTP response to a gRPC call, if it has no `grpc-status`.
///
/// Such a response is made by a proxy that does not handle gRPC. The statuses are mapped as in
/// gRPC's own table (`doc/http-grpc-status-mapping.md`).
///
/// ```
/// use buttress::outcome::{FailureKind, Outcome};
/// use buttress_http::classify::grpc_without_status_over_http as outcome;
/// use http::{HeaderMap, StatusCode};
///
/// assert_eq!(outcome(StatusCode::UNAUTHORIZED, &HeaderMap::new()), Outcome::Success);
/// let bad_gateway = outcome(StatusCode::BAD_GATEWAY, &HeaderMap::new());
/// assert_eq!(bad_gateway.failure().unwrap().kind, FailureKind::Http(502));
/// ```
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

/// Returns the outcome of a gRPC stream that ended without a status: a failure with `UNKNOWN`.
pub fn grpc_without_status() -> Outcome {
    grpc_code(UNKNOWN, &HeaderMap::new())
}

fn grpc_code(code: i32, headers: &HeaderMap) -> Outcome {
    let pushback = hint::pushback(headers);
    let mut failure = Failure::new(FailureKind::Grpc(code));
    failure.retry_after = pushback.and_then(Hint::after);
    failure.pushback = pushback.is_some();
    failure.no_retry = pushback == Some(Hint::Never);
    failure.retried = retried::is_marked(headers);
    match code {
        // DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE
        4 | 8 | 14 => {
            let rejected = rejected_at_admission(headers);
            let late = came_late(headers);
            failure.no_retry |= late;
            failure.overload = code == 8 || (rejected && !late);
            if rejected || (code != 4 && failure.retry_after.is_some()) {
                failure.sent = Sent::NotProcessed;
            }
            // A pushback wins: it is the exact time.
            #[cfg(feature = "tonic")]
            if !failure.pushback {
                failure.retry_after = hint::retry_info(headers);
            }
        }
        // UNKNOWN, INTERNAL, DATA_LOSS, and codes that gRPC does not define.
        2 | 13 | 15 | ..0 | 17.. => (failure.no_retry, failure.conclusive) = (true, true),
        _ => return Outcome::Success,
    }
    failure.into()
}

/// Returns the outcome of an error of a client.
///
/// An upload that broke decides, whatever broke it. If there is none, a rejection by a Buttress
/// layer anywhere in the chain of sources decides, or else the first error in the chain that is
/// known. Feature `hyper` classifies the errors of hyper, hyper-util and h2; features `reqwest` and
/// `tonic` add those of reqwest and tonic. For all other errors, [`buttress::error::outcome`]
/// decides: timeouts and load shed of tower, refused connections of `std::io`; an unknown error is
/// a failure of a call that may have been processed.
///
/// ```
/// use buttress::outcome::{FailureKind, Sent};
/// use buttress_http::classify;
/// use std::io;
///
/// let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
/// let failure = *classify::error(&refused).failure().unwrap();
/// assert_eq!((failure.kind, failure.sent), (FailureKind::Connect, Sent::Never));
/// ```
pub fn error(error: &(dyn StdError + 'static)) -> Outcome {
    #[cfg(feature = "hyper")]
    if is_by_the_caller(error) {
        return Outcome::CANCELLED;
    }
    if let Some(rejection) = buttress::error::find_rejection(error) {
        return rejection.outcome();
    }
    sources(error).find_map(known).unwrap_or_else(|| buttress::error::outcome(error))
}

/// Casts an error of any type to a chain of sources, as [`buttress::error::as_chain`] does. Also
/// casts the error types of the clients that stand directly under a layer.
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
        if let Some(error) = error.downcast_ref::<hyper_util::client::legacy::Error>() {
            if error.is_connect() {
                return failed(FailureKind::Connect, Sent::Never);
            }
            if is_unsendable(error) {
                return Some(Outcome::CANCELLED);
            }
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            if error.is_canceled() || error.is_closed() {
                return Some(not_processed());
            }
            if is_dispatch_gone(error) {
                return Some(Failure { graceful: true, ..Failure::new(FailureKind::Transport) }.into());
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
        // A status that wraps a transport error is classified by that error, further down the
        // chain.
        if let Some(status) = error.downcast_ref::<::tonic::Status>()
            && error.source().is_none()
        {
            return Some(grpc_code(status.code().into(), status.metadata().as_ref()));
        }
    }
    let _ = (error, failed);
    None
}

/// Returns the outcome of a request that the transport returned before the server processed it.
/// Says nothing about the server.
#[cfg(feature = "hyper")]
fn not_processed() -> Outcome {
    Failure { graceful: true, ..Failure::new(FailureKind::Transport).sent(Sent::NotProcessed) }.into()
}

/// Returns whether hyper-util's client did not accept the request: its URI has no host, or its
/// version is not that of the connection.
///
/// The caller is at fault, for example a proxy that passes on the version of its own client.
/// hyper-util has no method for it; the text is that of hyper-util 0.1.
#[cfg(feature = "hyper")]
fn is_unsendable(error: &hyper_util::client::legacy::Error) -> bool {
    error.source().is_none() && error.to_string().starts_with("client error (User")
}

/// Returns whether the body of the request failed, or hyper did not accept the request. Errors
/// inside that of a connector belong to other requests.
#[cfg(feature = "hyper")]
fn is_by_the_caller(error: &(dyn StdError + 'static)) -> bool {
    let is_connect = |error: &hyper_util::client::legacy::Error| error.is_connect();
    sources(error)
        .take_while(|error| !error.downcast_ref().is_some_and(is_connect))
        .filter_map(|error| error.downcast_ref::<hyper::Error>())
        .any(|error| error.is_user() && !is_dispatch_gone(error))
}

/// Returns whether the connection's task ended while it held the request.
///
/// hyper reports this as an error of the user, which is right only if the runtime was shut down. It
/// also happens to the one request that waits for a stream (`SETTINGS_MAX_CONCURRENT_STREAMS`) on a
/// connection that shuts down. hyper has no method for it; the text is that of hyper 1.12.
#[cfg(feature = "hyper")]
fn is_dispatch_gone(error: &hyper::Error) -> bool {
    error.is_user() && error.to_string() == "dispatch task is gone"
}

#[cfg(feature = "hyper")]
fn h2_outcome(error: &h2::Error) -> Outcome {
    let refused = error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if refused || (error.is_go_away() && error.is_remote()) {
        let graceful = refused || error.reason() == Some(h2::Reason::NO_ERROR);
        return Failure { graceful, ..Failure::new(FailureKind::Transport).sent(Sent::NotProcessed) }.into();
    }
    // The client reset the stream because the body of the request failed.
    if error.is_reset() && !error.is_remote() && !error.is_library() {
        return Outcome::CANCELLED;
    }
    Failure::new(FailureKind::Transport).into()
}

/// Returns the outcome of an error that reqwest made itself. An error that it wraps is classified
/// further down the chain.
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

/// Returns whether reqwest's own timeout expired, whose type is private.
///
/// Timeouts that reqwest wraps are excluded: of connecting, of the system's TCP, or of another
/// response whose body is the body of this request.
#[cfg(feature = "reqwest")]
fn is_reqwest_timeout(error: &reqwest::Error) -> bool {
    let is_wrapped = |error: &(dyn StdError + 'static)| {
        error.is::<hyper_util::client::legacy::Error>() || error.is::<hyper::Error>() || error.is::<std::io::Error>()
    };
    error.is_timeout() && !sources(error).any(is_wrapped)
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
        let sent = |pairs: &[_]| {
            let failure = *http_status(StatusCode::SERVICE_UNAVAILABLE, &headers(pairs)).failure().unwrap();
            (failure.sent, failure.overload)
        };
        assert_eq!(sent(&[]), (Sent::MaybeProcessed, false));
        assert_eq!(sent(&[("retry-after", "3")]), (Sent::MaybeProcessed, false));
        for name in ["x-buttress-rejected", "x-envoy-overloaded", "x-envoy-ratelimited"] {
            assert_eq!(sent(&[(name, "true")]), (Sent::NotProcessed, true), "{name}");
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
        let late = of(4, &[("x-buttress-rejected", "too_late")]);
        assert_eq!((late.sent, late.overload), (Sent::NotProcessed, true));
        assert_eq!(of(4, &[("grpc-retry-pushback-ms", "0")]).sent, Sent::MaybeProcessed);
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

    #[cfg(all(feature = "reqwest", feature = "tonic"))]
    #[tokio::test]
    async fn an_error_of_a_client_is_classified_without_a_box_around_it() {
        let kind = |chain: Option<&(dyn StdError + 'static)>| {
            error(chain.expect("the type is known")).failure().map(|failure| failure.kind)
        };
        let refused = h2::Error::from(h2::Reason::REFUSED_STREAM);
        assert_eq!(kind(as_chain(&refused)), Some(FailureKind::Transport));
        let unavailable = ::tonic::Status::unavailable("busy");
        assert_eq!(kind(as_chain(&unavailable)), Some(FailureKind::Grpc(14)));
        let no_uri = ::tonic::transport::Endpoint::from_shared("no uri").unwrap_err();
        assert_eq!(kind(as_chain(&no_uri)), Some(FailureKind::Transport));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let no_url = client.get("no url").build().unwrap_err();
        assert_eq!(kind(as_chain(&no_url)), None, "nothing was sent");

        // A connector whose error has no kind of `std::io`, as that of a TLS handshake.
        let connector = tower::service_fn(|_: http::Uri| {
            let error = std::io::Error::other("the certificate has expired");
            std::future::ready(Err::<hyper_util::rt::TokioIo<tokio::net::TcpStream>, _>(error))
        });
        let endpoint = ::tonic::transport::Endpoint::from_static("http://backend");
        let connect = endpoint.connect_with_connector(connector).await.unwrap_err();
        assert_eq!(kind(as_chain(&connect)), Some(FailureKind::Connect));
        let executor = hyper_util::rt::TokioExecutor::new();
        let client: hyper_util::client::legacy::Client<_, String> =
            hyper_util::client::legacy::Client::builder(executor).build(connector);
        let connect = client.get(http::Uri::from_static("http://backend/")).await.unwrap_err();
        let failure = *error(as_chain(&connect).unwrap()).failure().unwrap();
        assert_eq!((failure.kind, failure.sent), (FailureKind::Connect, Sent::Never));
        let no_host = client.get(http::Uri::from_static("/")).await.unwrap_err();
        assert_eq!(error(as_chain(&no_host).unwrap()), Outcome::CANCELLED);

        let (near, far) = tokio::io::duplex(64);
        let near = hyper_util::rt::TokioIo::new(near);
        let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, String>(near).await.unwrap();
        drop((far, connection));
        let closed = sender.send_request(http::Request::new(String::new())).await.unwrap_err();
        let failure = *error(as_chain(&closed).unwrap()).failure().unwrap();
        assert_eq!((failure.kind, failure.sent), (FailureKind::Transport, Sent::NotProcessed));
        assert!(as_chain(&"a text").is_none());
    }
}
