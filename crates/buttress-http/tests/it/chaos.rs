//! Injected faults of HTTP and gRPC calls, frame by frame.

use buttress::{
    chaos::{Chaos, ChaosLayer, Fault, Faults, FaultsBuilder, Injected},
    error::sources,
};
use buttress_http::{chaos::ChaosBody, prelude::*};
use buttress_test::{Answer, Inner, Part, Plan, TestBody};
use http::{HeaderMap, Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use std::time::Duration;
use tower::{Layer, ServiceExt};

const SECOND: Duration = Duration::from_secs(1);

fn chaos(faults: FaultsBuilder) -> Chaos {
    let chaos = Chaos::builder().seed(7).build().unwrap();
    chaos.set(faults.build().unwrap());
    chaos
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), "0".parse().unwrap())])
}

/// A backend whose response has two frames and trailers.
fn backend() -> Inner {
    let parts = vec![Part::Data("first "), Part::Data("second"), Part::Trailers(trailers())];
    Inner::new(Plan::of(Answer::Body(parts)))
}

type Answered = Response<ChaosBody<TestBody>>;

async fn call(chaos: &Chaos) -> Answered {
    let client = ChaosLayer::from(chaos.clone()).http_client().layer(backend());
    client.oneshot(Request::new(TestBody::default())).await.unwrap()
}

fn mark<B>(response: &Response<B>) -> Option<Fault> {
    response.extensions().get::<Injected>().map(|injected| injected.fault())
}

#[tokio::test(start_paused = true)]
async fn an_error_is_a_status_in_the_protocol_of_the_call() {
    let chaos = chaos(Faults::builder().errors(1.0).status(500).grpc_status(13));
    let request = || Request::new(TestBody::default());
    let layer = || ChaosLayer::from(chaos.clone());
    let http = [
        layer().http_client().layer(backend()).oneshot(request()).await.unwrap(),
        layer().http().layer(backend()).oneshot(request()).await.unwrap(),
    ];
    for response in http {
        assert_eq!((response.status().as_u16(), mark(&response)), (500, Some(Fault::Error)));
        assert!(response.into_body().is_end_stream());
    }
    let grpc = [
        layer().grpc_client().layer(backend()).oneshot(request()).await.unwrap(),
        layer().grpc().layer(backend()).oneshot(request()).await.unwrap(),
    ];
    for response in grpc {
        assert_eq!((response.status().as_u16(), mark(&response)), (200, Some(Fault::Error)));
        assert_eq!(response.headers()["grpc-status"], "13");
        assert_eq!(response.headers()["content-type"], "application/grpc");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_breaks_the_body_after_a_good_head() {
    let chaos = chaos(Faults::builder().resets(1.0));
    let response = call(&chaos).await;
    assert_eq!((response.status().as_u16(), mark(&response)), (200, Some(Fault::Reset)));
    let mut body = response.into_body();
    let error = body.frame().await.unwrap().unwrap_err();
    assert!(sources(&*error).any(|error| error.downcast_ref() == Some(&Injected::new(Fault::Reset))));
    let io = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    assert_eq!(io, Some(std::io::ErrorKind::ConnectionReset));
    assert!(body.frame().await.is_none() && body.is_end_stream());
    assert_eq!((chaos.injected(Fault::Reset), chaos.active()), (1, 1));
    drop(body);
    assert_eq!(chaos.active(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_truncated_body_ends_in_its_first_frame_and_keeps_its_announced_size() {
    let chaos = chaos(Faults::builder().truncations(1.0));
    let response = call(&chaos).await;
    assert_eq!(mark(&response), Some(Fault::Truncation));
    let whole = TestBody::new(vec![Part::Data("first "), Part::Data("second"), Part::Trailers(trailers())]);
    assert_eq!(response.body().size_hint().exact(), whole.size_hint().exact());
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers(), None);
    assert_eq!(body.to_bytes(), "fir");
    assert_eq!(chaos.injected(Fault::Truncation), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_can_lose_its_trailers_only() {
    let chaos = chaos(Faults::builder().lost_trailers(1.0));
    let body = call(&chaos).await.into_body().collect().await.unwrap();
    assert_eq!(body.trailers(), None);
    assert_eq!(body.to_bytes(), "first second");
    assert_eq!(chaos.injected(Fault::LostTrailers), 1);
}

#[tokio::test(start_paused = true)]
async fn each_frame_of_a_slow_body_is_late() {
    use buttress::policy::{Clock, TokioClock};
    let chaos = chaos(Faults::builder().slow_bodies(1.0, SECOND..=SECOND));
    let mut body = call(&chaos).await.into_body();
    for frame in ["first ", "second"] {
        let start = TokioClock.now();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), frame);
        assert_eq!(TokioClock.now() - start, SECOND);
    }
    assert_eq!(body.frame().await.unwrap().unwrap().into_trailers().unwrap(), trailers());
    assert_eq!(chaos.injected(Fault::SlowBody), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_without_faults_is_as_it_was() {
    let chaos = chaos(Faults::builder());
    let response = call(&chaos).await;
    assert_eq!(mark(&response), None);
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers(), Some(&trailers()));
    assert_eq!(body.to_bytes(), "first second");
}

#[tokio::test(start_paused = true)]
async fn a_breaker_outside_takes_each_fault_for_a_real_one() {
    for faults in [
        Faults::builder().errors(1.0),
        Faults::builder().resets(1.0),
        Faults::builder().truncations(1.0),
        Faults::builder().lost_trailers(1.0),
    ] {
        let breaker = CircuitBreaker::builder("backend").consecutive_failures(3).build().unwrap();
        let client = tower::ServiceBuilder::new()
            .layer(CircuitBreakerLayer::from(breaker.clone()).grpc_client())
            .layer(ChaosLayer::from(chaos(faults)).grpc_client())
            .service(backend());
        for _ in 0..3 {
            let response = client.clone().oneshot(Request::new(TestBody::default())).await.unwrap();
            let _ = response.into_body().collect().await;
        }
        assert_eq!(breaker.state(), buttress::circuit_breaker::State::Open);
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_may_ask_for_faults_gets_them() {
    let chaos = chaos(Faults::builder());
    let may_ask = |head: buttress_http::ending::RequestHead<'_>| head.headers.contains_key("x-chaos-key");
    let server = ChaosLayer::from(chaos.clone()).by(buttress_http::chaos::requested(may_ask)).http().layer(backend());
    for (key, status) in [("x-chaos-key", 500), ("x-other", 200)] {
        let request = Request::builder().header("x-buttress-chaos", "error=500").header(key, "secret");
        let response = server.clone().oneshot(request.body(TestBody::default()).unwrap()).await.unwrap();
        assert_eq!(response.status(), status);
    }
    chaos.off();
    let request = Request::builder().header("x-buttress-chaos", "error=500").header("x-chaos-key", "secret");
    let response = server.oneshot(request.body(TestBody::default()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200, "the kill switch holds for these too");
}
