//! Layers around HTTP. The service reads request bodies to their end, and the caller response
//! bodies, where our layers settle the outcome. Peers settle it at the head.

use std::convert::Infallible;
use std::future::{self, Future, Ready};
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use buttress::{BulkheadLayer, CircuitBreakerLayer, RetryLayer};
use buttress_http::{ReplayBody, prelude::*};
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Empty, Full};
use seatbelt::{RecoveryInfo, ResilienceContext, retry::Retry};
use tick::Clock;
use tower::{Layer, Service};

use crate::caller::Caller;
use crate::family::{Family, HTTP_BREAKER, HTTP_RETRY, HTTP_RETRY_BODY, NONE};
use crate::situation::Kept;
use crate::subject::Kind::{self, Floor, Ours, Peer};
use crate::subject::{Rows, Subject};
use crate::tower::WithBudget;
use crate::tower_resilience;

/// Our retry of requests with a body of this type.
macro_rules! retry {
    ($body:ty) => {
        RetryLayer::new(3).http_client().map_request_body(|body: ReplayBody<$body>| body).layer(BareHttp)
    };
}

pub(crate) fn add(rows: &mut Rows) {
    let breaker = CircuitBreakerLayer::new("backend").http_client().layer(BareHttp);
    row::<Empty<Bytes>, _, _>(rows, Ours, "buttress-http/circuit_breaker", HTTP_BREAKER, breaker);
    let resilience = tower_resilience_circuitbreaker::CircuitBreakerLayer::builder()
        .classify_response(|answer: &Answer| answer.status().is_server_error())
        .build()
        .expect("a valid breaker");
    row::<Empty<Bytes>, _, _>(
        rows,
        Peer,
        "tower-resilience/http-circuit_breaker",
        HTTP_BREAKER,
        resilience.layer(BareHttp),
    );
    let bulkhead = BulkheadLayer::new(1_000).http().layer(BareHttp);
    row::<Empty<Bytes>, _, _>(rows, Ours, "buttress-http/bulkhead", NONE, bulkhead);
    retries::<Empty<Bytes>>(rows, HTTP_RETRY, "retry");
    retries::<Full<Bytes>>(rows, HTTP_RETRY_BODY, "retry(body)");
    // Peers repeat a request by cloning it, body and all, which a streamed body cannot be.
    row::<Frames, _, _>(rows, Ours, "buttress-http/retry(streamed body)", NONE, retry!(Frames));
    row::<Empty<Bytes>, _, _>(rows, Floor, <Empty<Bytes>>::BARE, NONE, BareHttp);
    row::<Full<Bytes>, _, _>(rows, Floor, <Full<Bytes>>::BARE, NONE, BareHttp);
    row::<Frames, _, _>(rows, Floor, Frames::BARE, NONE, BareHttp);
}

/// Rows of ours and of peers that repeat a request which can be cloned.
fn retries<B: Sent + Clone + Unpin>(rows: &mut Rows, family: Family, what: &str) {
    row::<B, _, _>(rows, Ours, &format!("buttress-http/{what}"), family, retry!(B));
    let tower = tower::retry::RetryLayer::new(WithBudget::default());
    row::<B, _, _>(rows, Peer, &format!("tower/http-{what}"), family, tower.layer(BareHttp));
    let resilience = tower_resilience_retry::RetryLayer::<Request<B>, Answer, Infallible>::builder()
        .max_attempts(3)
        .budget(tower_resilience::budget())
        .retry_on_response(|answer: &Answer| answer.status().is_server_error())
        .build();
    row::<B, _, _>(rows, Peer, &format!("tower-resilience/http-{what}"), family, resilience.layer(BareHttp));
    let context = ResilienceContext::<Request<B>, Result<Answer, Infallible>>::new(Clock::new_tokio());
    let seatbelt =
        Retry::layer("retry", &context).clone_input().recovery_with(|answer: &Result<Answer, Infallible>, _| {
            let fails = answer.as_ref().is_ok_and(|answer| answer.status().is_server_error());
            if fails { RecoveryInfo::retry() } else { RecoveryInfo::never() }
        });
    row::<B, _, _>(rows, Peer, &format!("seatbelt/http-{what}"), family, seatbelt.layer(BareHttp));
}

fn row<B, S, A>(rows: &mut Rows, kind: Kind, name: &str, family: Family, service: S)
where
    B: Sent,
    A: Body<Error: Send> + Send + 'static,
    S: Service<Request<B>, Response = Response<A>, Error: Send, Future: Send> + Clone + Send + 'static,
{
    rows.push(Subject::new(name, kind, family, Kept, Exchange::<S, B>::new(service)).baseline(B::BARE));
}

/// Sends a request and reads the response to its end.
struct Exchange<S, B> {
    service: S,
    /// Not shared with other workers, whose counts of its parts would meet.
    head: Parts,
    body: fn() -> B,
}

impl<S, B: Sent> Exchange<S, B> {
    fn new(service: S) -> Self {
        Self { service, head: head(B::METHOD), body: B::content }
    }
}

impl<S: Clone, B: Sent> Clone for Exchange<S, B> {
    fn clone(&self) -> Self {
        Self::new(self.service.clone())
    }
}

impl<S, A, B: Sent> Caller for Exchange<S, B>
where
    A: Body<Error: Send> + Send + 'static,
    S: Service<Request<B>, Response = Response<A>, Error: Send, Future: Send> + Clone + Send + 'static,
{
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.service.poll_ready(cx).map(|ready| ready.is_ok())
    }

    fn start(&mut self, _: u64) -> impl Future<Output = Result<impl Send, impl Send>> + Send {
        let answer = self.service.call(Request::from_parts(self.head.clone(), (self.body)()));
        async move {
            let Ok(answer) = answer.await else { return Err(()) };
            if answer.status().is_success() && read(answer.into_body()) { Ok(()) } else { Err(()) }
        }
    }
}

// === request bodies ===

/// A request body, and the method that sends it.
trait Sent: Body<Data = Bytes, Error = Infallible> + Send + Sync + Sized + 'static {
    /// The name of the subject without a layer.
    const BARE: &'static str;

    const METHOD: Method;

    fn content() -> Self;
}

impl Sent for Empty<Bytes> {
    const BARE: &'static str = "floor/bare_http_service";

    const METHOD: Method = Method::GET;

    fn content() -> Self {
        Self::new()
    }
}

impl Sent for Full<Bytes> {
    const BARE: &'static str = "floor/bare_http_service(body)";

    const METHOD: Method = Method::PUT;

    fn content() -> Self {
        Self::new(Bytes::from_static(CONTENT))
    }
}

impl Sent for Frames {
    const BARE: &'static str = "floor/bare_http_service(streamed body)";

    const METHOD: Method = Method::PUT;

    fn content() -> Self {
        Self { left: 4 }
    }
}

/// A body in frames, as from a stream: its length is not known before.
#[derive(Debug)]
struct Frames {
    left: u8,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
        self.left = left;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(CONTENT)))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

const CONTENT: &[u8] = &[b'x'; 1_024];

/// The head of a request with a URI and six headers. Its clones share their text, as the parts of a
/// request do that hyper has read.
fn head(method: Method) -> Parts {
    let request = Request::builder()
        .method(method)
        .uri("http://payments.internal:8080/v1/orders/4711?expand=items")
        .header("host", "payments.internal:8080")
        .header("accept", "application/json")
        .header("content-type", "application/json")
        .header("user-agent", "orders/1.4")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("authorization", "Bearer 0af7651916cd43dd8448eb211c80319c");
    request.body(()).expect("a valid request").into_parts().0
}

// === the service ===

type Answer = Response<Full<Bytes>>;

/// Reads the request and answers 200 with a short body at once.
#[derive(Clone, Copy, Debug)]
struct BareHttp;

impl<B: Body> Service<Request<B>> for BareHttp {
    type Response = Answer;
    type Error = Infallible;
    type Future = Ready<Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        assert!(read(request.into_body()), "the request's body broke");
        future::ready(Ok(Response::new(Full::new(Bytes::from_static(b"ok")))))
    }
}

/// Reads a body to its end and returns whether it got there.
fn read<B: Body>(body: B) -> bool {
    let mut body = pin!(body);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        match body.as_mut().poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => drop(black_box(frame)),
            Poll::Ready(None) => return true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => return false,
        }
    }
}
