//! Layers around a tonic channel.

use buttress::{
    Bulkhead, BulkheadLayer, CircuitBreaker, CircuitBreakerLayer, Error, RetryLayer, TimeoutLayer,
    circuit_breaker::State, error::find_rejection,
};
use buttress_http::{prelude::*, tonic::StatusLayer};
use buttress_stack_tests::{PATIENCE, Script, ask, axum_server, channel, script_server, soon, streams};
use std::{error::Error as _, io, time::Duration};
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::health_client::HealthClient;
use tower::{Layer, ServiceBuilder, ServiceExt};

/// Trips at the first failure.
fn breaker() -> CircuitBreaker {
    CircuitBreaker::builder("backend").consecutive_failures(1).build().unwrap()
}

macro_rules! client {
    ($channel:expr $(, $layer:expr)* $(,)?) => {
        HealthClient::new(ServiceBuilder::new().layer(StatusLayer)$(.layer($layer))*.service($channel))
    };
}

fn circuit(breaker: &CircuitBreaker) -> CircuitBreakerLayer<buttress_http::ending::GrpcClient> {
    CircuitBreakerLayer::from(breaker.clone()).grpc_client()
}

#[tokio::test]
async fn a_trailers_only_failure_is_counted() {
    let (script, breaker) = (Script::new(), breaker());
    let (_server, channel) = script_server(&script).await;
    let mut client = client!(channel, circuit(&breaker));
    assert_eq!(client.check(ask("internal")).await.unwrap_err().code(), Code::Internal);
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(client.check(ask("ok")).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(script.calls(), 1);
}

#[tokio::test]
async fn a_status_that_is_the_callers_fault_is_no_failure() {
    let (script, breaker) = (Script::new(), breaker());
    let (_server, channel) = script_server(&script).await;
    let mut client = client!(channel, circuit(&breaker));
    assert_eq!(client.check(ask("not-found")).await.unwrap_err().code(), Code::NotFound);
    client.check(ask("ok")).await.unwrap();
    assert_eq!((breaker.state(), breaker.snapshot().counts.succeeded), (State::Closed, 2));
}

#[tokio::test]
async fn a_stream_that_fails_in_its_trailers_is_counted() {
    let (script, breaker) = (Script::new(), breaker());
    let (_server, channel) = script_server(&script).await;
    let mut client = client!(channel, circuit(&breaker));
    let mut stream = client.watch(ask("unavailable")).await.unwrap().into_inner();
    for _ in 0..2 {
        assert!(soon(stream.message()).await.unwrap().is_some());
    }
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(soon(stream.message()).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test]
async fn a_stream_that_is_reset_is_counted() {
    let (mut sender, streaming) = streams([("content-type", "application/grpc")]);
    let server = axum_server(axum::Router::new().route("/grpc.health.v1.Health/Watch", streaming)).await;
    let breaker = breaker();
    let mut client = client!(channel(&server), circuit(&breaker));
    let mut stream = client.watch(ask("")).await.unwrap().into_inner();
    // One complete message; then axum's server resets the stream.
    sender.send_data([0, 0, 0, 0, 2, 8, 1].as_slice().into()).await.unwrap();
    assert_eq!(soon(stream.message()).await.unwrap().unwrap().status, 1);
    sender.abort(io::Error::other("broken"));
    assert_eq!(soon(stream.message()).await.unwrap_err().code(), Code::Internal);
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test]
async fn a_stream_without_any_status_is_counted() {
    let silent = axum::routing::post(async || ([("content-type", "application/grpc")], ""));
    let server = axum_server(axum::Router::new().route("/grpc.health.v1.Health/Check", silent)).await;
    let breaker = breaker();
    let mut client = client!(channel(&server), circuit(&breaker));
    client.check(ask("")).await.unwrap_err();
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test]
async fn a_caller_that_drops_its_stream_says_nothing_about_the_backend() {
    let (script, breaker) = (Script::new(), breaker());
    let (_server, channel) = script_server(&script).await;
    let mut client = client!(channel, circuit(&breaker));
    let mut stream = client.watch(ask("hang")).await.unwrap().into_inner();
    assert!(soon(stream.message()).await.unwrap().is_some());
    drop(stream);
    assert_eq!((breaker.state(), breaker.snapshot().counts.total()), (State::Closed, 0));
}

#[tokio::test]
async fn a_stream_holds_its_place_in_the_bulkhead_until_it_has_ended() {
    let (script, bulkhead) = (Script::new(), Bulkhead::new(1));
    let (_server, channel) = script_server(&script).await;
    let mut client = client!(channel, BulkheadLayer::from(bulkhead.clone()).grpc_client());
    let mut stream = client.watch(ask("hang")).await.unwrap().into_inner();
    script.door.arrival().await;
    let refused = client.check(ask("ok")).await.unwrap_err();
    assert_eq!((refused.code(), bulkhead.in_flight()), (Code::ResourceExhausted, 1));
    script.door.open();
    while soon(stream.message()).await.unwrap().is_some() {}
    assert_eq!(bulkhead.in_flight(), 0);
    client.check(ask("ok")).await.unwrap();
}

#[tokio::test]
async fn refusals_are_statuses_with_the_right_code_and_keep_their_type() {
    let (script, breaker) = (Script::new(), breaker());
    let (_server, channel) = script_server(&script).await;
    let reason = |status: &Status| find_rejection(status.source().unwrap()).unwrap().reason();

    breaker.open_for(Duration::from_secs(60));
    let status = client!(channel.clone(), circuit(&breaker)).check(ask("ok")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, &buttress::circuit_breaker::OPEN));
    assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));

    let full = BulkheadLayer::new(0).grpc_client();
    let status = client!(channel.clone(), full).check(ask("ok")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::ResourceExhausted, &buttress::bulkhead::FULL));

    let timeout = TimeoutLayer::total(Duration::from_millis(5)).grpc_client();
    let status = client!(channel, timeout).check(ask("hang")).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(reason(&status).timeout_kind().is_some());
    assert!(script.calls() <= 1, "only the one that timed out can have arrived");
}

#[tokio::test]
async fn ours_around_towers_timeout_around_ours_leave_one_flat_error() {
    let script = Script::new();
    let (_server, channel) = script_server(&script).await;
    let stack = |limit: usize| {
        ServiceBuilder::new()
            .layer(TimeoutLayer::total(Duration::from_secs(60)).grpc_client())
            .timeout(Duration::from_secs(60))
            .layer(BulkheadLayer::new(limit).grpc_client())
            .layer(CircuitBreakerLayer::new("backend").grpc_client())
            .service(channel.clone())
    };
    let request = http::Request::new(tonic::body::Body::empty());
    let error: Error = stack(0).oneshot(request).await.unwrap_err();
    let Error::Rejected(rejection) = &error else { panic!("nested: {error:?}") };
    assert_eq!(rejection.reason(), &buttress::bulkhead::FULL);

    let refused = HealthClient::new(StatusLayer.layer(stack(0))).check(ask("ok")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    HealthClient::new(StatusLayer.layer(stack(1))).check(ask("ok")).await.unwrap();
}

#[tokio::test]
async fn a_rejection_keeps_its_code_through_an_error_of_another_type() {
    let script = Script::new();
    let (_server, channel) = script_server(&script).await;
    let stack = ServiceBuilder::new()
        .layer(StatusLayer)
        .map_err(|error: Error| io::Error::other(error))
        .layer(BulkheadLayer::new(0).grpc_client())
        .service(channel);
    assert_eq!(HealthClient::new(stack).check(ask("ok")).await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn tonics_own_timeout_is_evidence_although_it_calls_it_cancelled() {
    let (script, breaker) = (Script::new(), breaker());
    let (server, _channel) = script_server(&script).await;
    let endpoint = tonic::transport::Endpoint::from(server.uri("")).timeout(Duration::from_millis(5));
    let mut client = client!(endpoint.connect_lazy(), circuit(&breaker));
    client.check(ask("hang")).await.unwrap_err();
    assert_eq!(breaker.state(), State::Open);
}

/// Makes a call with retries. Returns its code and the number of attempts that reached the server.
async fn attempts(service: &str, failures: usize, idempotent: fn(&http::request::Parts) -> bool) -> (Code, usize) {
    let script = Script::new();
    *script.failures.lock().unwrap() = failures;
    let (_server, channel) = script_server(&script).await;
    let retry = RetryLayer::new(3).backoff(Backoff::constant(Duration::ZERO)).grpc_client();
    let mut client = client!(channel, retry.idempotent(idempotent));
    let code = client.check(ask(service)).await.err().map_or(Code::Ok, |status| status.code());
    for (attempt, metadata) in script.seen.lock().unwrap().iter().enumerate() {
        let previous = metadata.get("grpc-previous-rpc-attempts").map(|previous| previous.to_str().unwrap().to_owned());
        assert_eq!(previous, (attempt > 0).then(|| attempt.to_string()));
    }
    (code, script.calls())
}

#[tokio::test]
async fn unavailable_is_repeated_and_says_how_often() {
    assert_eq!(attempts("ok", 2, |_| true).await, (Code::Ok, 3));
    assert_eq!(attempts("ok", 3, |_| true).await, (Code::Unavailable, 3));
}

#[tokio::test]
async fn internal_and_the_callers_faults_are_not_repeated() {
    assert_eq!(attempts("internal", 0, |_| true).await, (Code::Internal, 1));
    assert_eq!(attempts("not-found", 0, |_| true).await, (Code::NotFound, 1));
}

#[tokio::test]
async fn a_channel_that_cannot_connect_never_sent_anything() {
    let address = script_server(&Script::new()).await.0.address;
    let tries = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = tries.clone();
    let connector = tower::service_fn(move |_: http::Uri| {
        counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        std::future::ready(Err::<hyper_util::rt::TokioIo<tokio::net::TcpStream>, _>(io::Error::from(
            io::ErrorKind::ConnectionRefused,
        )))
    });
    let endpoint = tonic::transport::Endpoint::from(format!("http://{address}").parse::<http::Uri>().unwrap());
    let channel: Channel = endpoint.connect_with_connector_lazy(connector);
    // Directly around the channel, whose error is tonic's, for calls that are not idempotent.
    let retry = RetryLayer::new(3).backoff(Backoff::constant(Duration::ZERO));
    let stats = retry.stats();
    let mut client = client!(channel, retry.grpc_client());
    assert_eq!(client.check(ask("ok")).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!((stats.retries(), tries.load(std::sync::atomic::Ordering::SeqCst)), (2, 3));
}

#[tokio::test]
async fn a_stream_that_stands_still_is_cut_off_and_gives_everything_back() {
    let (script, bulkhead) = (Script::new(), Bulkhead::new(1));
    let (_server, channel) = script_server(&script).await;
    let idle = TimeoutLayer::total(PATIENCE).body_idle(Duration::from_millis(20)).grpc_client();
    let mut client = client!(channel, idle, BulkheadLayer::from(bulkhead.clone()).grpc_client());
    let mut stream = client.watch(ask("hang")).await.unwrap().into_inner();
    for _ in 0..2 {
        assert!(soon(stream.message()).await.unwrap().is_some());
    }
    let status = soon(stream.message()).await.unwrap_err();
    let rejection = find_rejection(&status).expect("one of ours");
    assert_eq!(rejection.reason(), &buttress::timeout::BODY_IDLE);
    assert_eq!((status.code(), bulkhead.in_flight()), (Code::DeadlineExceeded, 0));
}
