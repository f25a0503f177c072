//! An inner service that fails to become ready: a connection that the server closed.

use axum::body::Body;
use buttress::{
    Error,
    circuit_breaker::Event,
    keyed::Keyed,
    outcome::{Failure, FailureKind, Outcome, Sent},
    policy::{GateLayer, Permit, Policy, Rejection},
};
use buttress_http::{classify, prelude::*};
use buttress_stack_tests::{Server, hyper_server, soon};
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::TcpStream;
use tower::{Layer, Service, ServiceExt, service_fn};

/// One connection without a pool, as a service.
#[derive(Clone)]
struct Connection(http2::SendRequest<Body>);

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

async fn server() -> Server {
    hyper_server(service_fn(async |_: Request<Incoming>| Ok::<_, Infallible>(Response::new(Body::from("here"))))).await
}

/// A connection that was used once and whose server has gone away since.
async fn closed() -> Connection {
    let server = server().await;
    let socket = TokioIo::new(TcpStream::connect(server.address).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut used = Connection(sender);
    soon(used.ready().await.unwrap().call(request())).await.unwrap();
    drop(server);
    // How the connection ends does not matter.
    let _ = soon(connection).await.unwrap();
    used
}

fn request() -> Request<Body> {
    Request::post("http://backend/").body("a transfer".into()).unwrap()
}

type Seen = Arc<Mutex<Vec<Outcome>>>;

fn watched() -> (CircuitBreaker, Seen) {
    let (breaker, seen) =
        (CircuitBreaker::builder("backend").consecutive_failures(1).build().unwrap(), Seen::default());
    let log = seen.clone();
    breaker.on_event(move |event| {
        if let Event::Called { outcome, .. } = event {
            log.lock().unwrap().push(*outcome);
        }
    });
    (breaker, seen)
}

/// Learns from outcomes, and has no permit before the request.
#[derive(Clone, Default)]
struct Learns(Seen);

struct Learning(Seen);

impl<Req: ?Sized> Policy<Req> for Learns {
    type Permit = Learning;

    fn admit(&self, _: &Req) -> Result<Learning, Rejection> {
        Ok(Learning(self.0.clone()))
    }
}

impl Permit for Learning {
    fn settle(&mut self, outcome: &Outcome) {
        self.0.lock().unwrap().push(*outcome);
    }
}

const UNSENT: Outcome =
    Outcome::Failure(Failure { graceful: true, ..Failure::new(FailureKind::Transport).sent(Sent::NotProcessed) });

#[tokio::test]
async fn a_closed_connection_was_not_sent_the_request_and_is_no_evidence() {
    let error = closed().await.ready().await.map(|_| ()).unwrap_err();
    assert!(error.is_closed(), "{error:?}");
    assert_eq!(classify::error(&error), UNSENT);
    let (breaker, _) = watched();
    let mut service = CircuitBreakerLayer::from(breaker.clone()).http_client().layer(closed().await);
    for _ in 0..2 {
        let Err(Error::Inner(error)) = soon(service.ready()).await.map(|_| ()) else { panic!("it was ready") };
        assert!(error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_closed));
    }
    assert_eq!((breaker.in_flight(), breaker.snapshot().counts.failed), (0, 0));
}

#[tokio::test]
async fn a_policy_that_needs_the_request_learns_once_of_each_call_whose_service_is_not_ready() {
    let seen = Seen::default();
    let mut service = GateLayer::with_policy(Learns(seen.clone())).http_client().layer(closed().await);
    for calls in 1..=3 {
        // Balancers ask more than once.
        soon(service.ready()).await.unwrap();
        let error = soon(soon(service.ready()).await.unwrap().call(request())).await.unwrap_err();
        assert!(matches!(&error, Error::Inner(_)), "{error}");
        assert_eq!(seen.lock().unwrap().len(), calls);
    }
    let bulkheads = Keyed::new(|_: &Request<Body>| 0, |_: &i32| Bulkhead::new(1));
    let mut service = GateLayer::with_policy(bulkheads).http_client().layer(closed().await);
    soon(service.ready()).await.map(|_| ()).unwrap_err();
    let circuits = Keyed::new(|_: &Request<Body>| 0, |_: &i32| CircuitBreaker::new("host"));
    let mut service = GateLayer::with_policy(circuits.clone()).http_client().layer(closed().await);
    soon(soon(service.ready()).await.unwrap().call(request())).await.unwrap_err();
    assert_eq!((circuits.len(), circuits.get(&0).unwrap().in_flight()), (1, 0));
}

#[tokio::test]
async fn a_post_that_finds_its_connection_closed_is_repeated_once_for_free() {
    let seen = Seen::default();
    let layer = RetryLayer::new(3).backoff(Backoff::constant(Duration::ZERO));
    let stats = layer.stats();
    let gate = GateLayer::with_policy(Learns(seen.clone())).http_client().layer(closed().await);
    soon(layer.http_client().layer(gate).oneshot(request())).await.unwrap_err();
    assert_eq!((stats.transparent(), stats.retries()), (1, 2));
    assert_eq!(*seen.lock().unwrap(), [UNSENT; 4]);
}

#[tokio::test]
async fn a_reservation_is_given_back_when_the_connection_is_closed() {
    let bulkhead = Bulkhead::new(1);
    let mut service = BulkheadLayer::from(bulkhead.clone()).backpressure().http_client().layer(closed().await);
    for _ in 0..2 {
        soon(service.ready()).await.map(|_| ()).unwrap_err();
        assert_eq!(bulkhead.in_flight(), 0);
    }
    assert!(soon(service.call(request())).await.unwrap_err().rejection().is_some());
}

/// Balancers ask a service that was ready again before they call it.
#[tokio::test]
async fn an_error_is_kept_until_the_call_and_the_failed_service_is_not_asked_again() {
    let seen = Seen::default();
    let fails_once = tower::util::MapErr::new(FailsOnce(false), |error: &str| buttress::BoxError::from(error));
    let mut service = GateLayer::with_policy(Learns(seen.clone())).http_client().layer(fails_once);
    for _ in 0..3 {
        soon(service.ready()).await.unwrap();
    }
    let error = soon(service.call(request())).await.unwrap_err();
    assert_eq!((error.to_string().as_str(), seen.lock().unwrap().len()), ("failed", 1));
}

/// Fails to become ready once, and begins to connect again.
struct FailsOnce(bool);

impl Service<Request<Body>> for FailsOnce {
    type Response = Response<Body>;
    type Error = &'static str;
    type Future = std::future::Pending<Result<Response<Body>, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        if std::mem::replace(&mut self.0, true) { Poll::Pending } else { Poll::Ready(Err("failed")) }
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        std::future::pending()
    }
}
