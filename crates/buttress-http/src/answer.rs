//! Responses made by a layer instead of the inner service.

use crate::quota;
use buttress::{Rejection, policy::Class, wire::OnTheWire};
use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use std::{
    fmt,
    ops::RangeInclusive,
    pin::Pin,
    task::{Context, Poll},
};

/// The header that carries the reason of a rejection. A client that reads it may repeat the
/// request: it was not processed.
pub(crate) const REJECTED: HeaderName = HeaderName::from_static("x-buttress-rejected");

/// The body of a response of the inner service, or of one that a layer made.
#[pin_project(project = AnswerProj)]
pub(crate) enum AnswerBody<B: Body> {
    Inner(#[pin] B),
    Own(Option<B::Data>),
}

impl<B: Body> AnswerBody<B> {
    pub(crate) fn inner(body: B) -> Self {
        Self::Inner(body)
    }

    pub(crate) fn own(content: Option<B::Data>) -> Self {
        Self::Own(content.filter(Buf::has_remaining))
    }
}

impl<B: Body> Body for AnswerBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match self.project() {
            AnswerProj::Inner(body) => body.poll_frame(cx),
            AnswerProj::Own(content) => Poll::Ready(content.take().map(|data| Ok(Frame::data(data)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Inner(body) => body.is_end_stream(),
            Self::Own(content) => content.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Inner(body) => body.size_hint(),
            Self::Own(content) => SizeHint::with_exact(content.as_ref().map_or(0, |data| data.remaining() as u64)),
        }
    }
}

impl<B: Body + fmt::Debug> fmt::Debug for AnswerBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inner(body) => body.fmt(f),
            Self::Own(content) => f.debug_tuple("Own").field(&content.as_ref().map_or(0, Buf::remaining)).finish(),
        }
    }
}

/// Makes the HTTP response of a rejection, with `Retry-After` where the rejection has one, and
/// `RateLimit` and `RateLimit-Policy` where the policy has a quota.
///
/// The typed [`Rejection`] is in the extensions of the response, where outer layers can read it.
pub(crate) fn http<T>(rejection: Rejection, body: T) -> Response<T> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(rejection.http_status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    if let Some(seconds) = rejection.http_retry_after() {
        response.headers_mut().insert(header::RETRY_AFTER, spread(&rejection, seconds, EXTRA_SECONDS).into());
    }
    quota::reject(response.headers_mut(), &rejection);
    with_rejection(response, rejection)
}

/// Makes the trailers-only gRPC response of a rejection, with `grpc-status`, `grpc-message`, and
/// `grpc-retry-pushback-ms` (gRFC A6) where the rejection has a time for the next attempt.
pub(crate) fn grpc<T>(rejection: Rejection, body: T) -> Response<T> {
    let mut response = Response::new(body);
    *response.headers_mut() = grpc_trailers(&rejection);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Some(millis) = rejection.grpc_pushback() {
        let millis = spread(&rejection, u64::try_from(millis).unwrap_or_default(), EXTRA_MILLIS);
        let millis = i32::try_from(millis).unwrap_or(i32::MAX);
        headers.insert("grpc-retry-pushback-ms", millis.into());
    }
    with_rejection(response, rejection)
}

/// Makes the trailers of a gRPC call that was given up: `grpc-status` and `grpc-message`.
pub(crate) fn grpc_trailers(rejection: &Rejection) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", rejection.grpc_status().into());
    if let Ok(message) = HeaderValue::from_str(&percent_encode(&rejection.to_string())) {
        headers.insert("grpc-message", message);
    }
    headers
}

/// The least and the most that is added to the `Retry-After` of a caller over its rate, in seconds.
const EXTRA_SECONDS: RangeInclusive<u64> = 2..=60;
/// The same for a gRPC pushback, in milliseconds.
const EXTRA_MILLIS: RangeInclusive<u64> = 10..=60_000;

/// Spreads the times at which callers over their rate come back. Those that were rejected together
/// would otherwise come back together, and all but a few of them be rejected again.
///
/// Adds a random part of a tenth of the time, within `extra`. The time is never shortened: the
/// draft of the `RateLimit` header wants `Retry-After` to be no earlier than its `t`.
fn spread(rejection: &Rejection, time: u64, extra: RangeInclusive<u64>) -> u64 {
    if rejection.reason().class() != Class::RateLimited {
        return time;
    }
    time.saturating_add(fastrand::u64(0..=(time / 10).clamp(*extra.start(), *extra.end())))
}

/// Adds [`REJECTED`] if the request was not processed, and the rejection as an extension.
fn with_rejection<T>(mut response: Response<T>, rejection: Rejection) -> Response<T> {
    if rejection.is_unprocessed() {
        let word = rejection.reason().word();
        let value = HeaderValue::from_maybe_shared(Bytes::from_static(word.as_bytes()))
            // A user's reason may have a word that is not a valid header value. Without the header
            // a client would take the rejection for a failure.
            .or_else(|_| HeaderValue::from_str(&percent_encode(word)));
        if let Ok(value) = value {
            response.headers_mut().insert(REJECTED, value);
        }
    }
    response.extensions_mut().insert(rejection);
    response
}

/// Encodes a `grpc-message` as the gRPC protocol requires (`doc/PROTOCOL-HTTP2.md`): printable
/// ASCII characters except `%` are unchanged, all other bytes become `%XX`.
pub(crate) fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use buttress::Reason;
    use std::{collections::BTreeSet, time::Duration};

    fn answer(reason: &'static Reason, after: Option<Duration>) -> Response<()> {
        http(Rejection::new("test", reason).after(after), ())
    }

    #[test]
    fn a_rejection_is_a_503_that_says_when_in_whole_seconds_rounded_up() {
        let response = answer(&buttress::circuit_breaker::OPEN, Some(Duration::from_millis(1001)));
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"2".parse().unwrap()));
        assert_eq!(response.extensions().get::<Rejection>().unwrap().reason(), &buttress::circuit_breaker::OPEN);
        assert_eq!(answer(&buttress::bulkhead::FULL, None).headers()["retry-after"], "1");
        let centuries = answer(&buttress::bulkhead::FULL, Some(Duration::MAX)).headers()["retry-after"].clone();
        assert!(centuries.to_str().unwrap().parse::<u64>().unwrap() > 500 * 365 * 86_400);
    }

    #[test]
    fn a_rejection_names_its_reason_on_the_wire_and_a_timeout_does_not() {
        assert_eq!(answer(&buttress::circuit_breaker::OPEN, None).headers()["x-buttress-rejected"], "circuit_open");
        let timeout = answer(&buttress::timeout::TOTAL, None);
        assert_eq!(timeout.headers().get("x-buttress-rejected"), None, "the request may have been processed");
    }

    #[test]
    fn a_timeout_is_a_504_and_does_not_invite_to_come_back() {
        let response = answer(&buttress::timeout::TOTAL, None);
        assert_eq!((response.status().as_u16(), response.headers().get("retry-after")), (504, None));
    }

    static OVER_RATE: Reason = Reason::new("over_rate", "over its rate", Class::RateLimited);

    #[test]
    fn callers_over_their_rate_do_not_come_back_in_the_same_second() {
        let spread = |after: u64| {
            let after = Some(Duration::from_secs(after));
            let drawn: BTreeSet<u64> = (0..1000)
                .map(|_| answer(&OVER_RATE, after).headers()["retry-after"].to_str().unwrap().parse().unwrap())
                .collect();
            (*drawn.first().unwrap(), *drawn.last().unwrap(), drawn.len())
        };
        fastrand::seed(7);
        assert_eq!(spread(0), (1, 3, 3));
        assert_eq!(spread(100), (100, 110, 11));
        assert_eq!(spread(86_400), (86_400, 86_460, 61));
        let others: BTreeSet<_> = (0..100)
            .map(|_| answer(&buttress::bulkhead::FULL, None).headers()["retry-after"].clone().as_bytes().to_vec())
            .collect();
        assert_eq!(others.len(), 1, "other classes keep their time");
    }

    #[test]
    fn a_grpc_caller_over_its_rate_gets_a_pushback_that_is_spread() {
        fastrand::seed(7);
        let pushback = |after| {
            let response = grpc(Rejection::new("test", &OVER_RATE).after(Some(after)), ());
            assert_eq!(response.headers()["grpc-status"], "8");
            response.headers()["grpc-retry-pushback-ms"].to_str().unwrap().parse::<i32>().unwrap()
        };
        let drawn: BTreeSet<i32> = (0..1000).map(|_| pushback(Duration::from_millis(1000))).collect();
        assert_eq!((*drawn.first().unwrap(), *drawn.last().unwrap(), drawn.len()), (1000, 1100, 101));
        assert_eq!(pushback(Duration::MAX), i32::MAX);
    }

    #[test]
    fn a_grpc_message_is_percent_encoded() {
        let rejection =
            Rejection::new("100 % of é", &buttress::circuit_breaker::OPEN).after(Some(Duration::from_millis(1500)));
        let response = grpc(rejection, ());
        assert_eq!(response.headers()["grpc-message"], "100 %25 of %C3%A9: open; try again in 1.5s");
        assert_eq!(response.headers()["grpc-retry-pushback-ms"], "1500");
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(response.headers()["x-buttress-rejected"], "circuit_open");
        assert_eq!(response.extensions().get::<Rejection>().unwrap().reason(), &buttress::circuit_breaker::OPEN);
        assert_eq!(percent_encode("a\nb~ \x7f"), "a%0Ab~ %7F");
    }

    #[test]
    fn an_answer_without_content_is_at_its_end_and_one_with_content_has_its_length() {
        type Answer = AnswerBody<http_body_util::Full<Bytes>>;
        for none in [Answer::own(None), Answer::own(Some(Bytes::new()))] {
            assert_eq!((none.is_end_stream(), none.size_hint().exact()), (true, Some(0)));
        }
        let busy = Answer::own(Some("busy".into()));
        assert_eq!((busy.is_end_stream(), busy.size_hint().exact()), (false, Some(4)));
        let inner = Answer::inner("inner".into());
        assert_eq!((inner.is_end_stream(), inner.size_hint().exact()), (false, Some(5)));
    }
}
