//! Deadlines over real tonic, on the wire and in streams.

use buttress::{context, deadline::Mode};
use buttress_http::{prelude::*, tonic::StatusLayer};
use buttress_stack_tests::{Script, Server, ask, channel, client_h2, grpc_server, post, script_server, soon};
use http::HeaderValue;
use std::time::Duration;
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::ServiceBuilder;

const MINUTE: Duration = Duration::from_secs(60);
/// For what has to run out. Long enough for a head and two messages on a busy machine.
const SOON: Duration = Duration::from_secs(1);

/// Returns the `grpc-timeout` of each call, in nanoseconds.
fn timeouts(script: &Script) -> Vec<u128> {
    let nanos = |text: &str| {
        let (digits, unit) = text.split_at(text.len() - 1);
        let unit = ["n", "u", "m", "S", "M", "H"].iter().position(|known| *known == unit).unwrap();
        let lengths = [1, 1_000, 1_000_000, 1_000_000_000, 60_000_000_000, 3_600_000_000_000];
        digits.parse::<u128>().unwrap() * lengths[unit]
    };
    let seen = script.seen.lock().unwrap();
    seen.iter().map(|metadata| nanos(metadata.get("grpc-timeout").unwrap().to_str().unwrap())).collect()
}

fn with_timeout(service: &str, timeout: Duration) -> Request<HealthCheckRequest> {
    let mut request = Request::new(ask(service));
    request.set_timeout(timeout);
    request
}

/// A service that asks another one for each of its calls.
struct Front {
    backend: Channel,
}

#[tonic::async_trait]
impl Health for Front {
    type WatchStream = Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + Unpin>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        assert!(context::current().deadline.is_some());
        let layers = ServiceBuilder::new()
            .layer(StatusLayer)
            .layer(DeadlineLayer::new(MINUTE).grpc_client())
            // The server of the backend ends the call at the same time, with tonic's CANCELLED.
            .layer(TimeoutLayer::attempt(MINUTE).reserve(SOON / 4).grpc_client());
        let mut backend = HealthClient::new(layers.service(self.backend.clone()));
        // A call of a task of its own gets the deadline by `scope`.
        let call = context::scope(async move { backend.check(request.into_inner()).await });
        tokio::spawn(call).await.expect("the call does not panic")
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("the tests do not watch it"))
    }
}

async fn front(backend: Channel, deadline: DeadlineLayer) -> Server {
    let mut router = tonic::transport::Server::builder().layer(deadline.grpc());
    grpc_server(router.add_service(HealthServer::new(Front { backend }))).await
}

#[tokio::test]
async fn a_nested_call_gets_what_is_left_of_the_timeout_that_the_caller_set() {
    let script = Script::new();
    let (_backend, backend) = script_server(&script).await;
    let front = front(backend, DeadlineLayer::server()).await;
    let layers = ServiceBuilder::new().layer(StatusLayer).layer(DeadlineLayer::new(MINUTE).grpc_client());
    let mut client = HealthClient::new(layers.service(channel(&front)));
    soon(client.check(ask("ok"))).await.unwrap();
    soon(client.check(with_timeout("ok", MINUTE / 2))).await.unwrap();
    let timeouts = timeouts(&script);
    assert!(timeouts[0] < MINUTE.as_nanos() && timeouts[0] > 0, "{timeouts:?}");
    assert!(timeouts[1] < MINUTE.as_nanos() / 2 && timeouts[1] > 0, "{timeouts:?}");
}

#[tokio::test]
async fn a_call_of_a_nested_call_that_hangs_ends_in_all_services() {
    let script = Script::new();
    let (_backend, backend) = script_server(&script).await;
    let front = front(backend, DeadlineLayer::server().max_limit(SOON)).await;
    let layers = ServiceBuilder::new().layer(StatusLayer).layer(DeadlineLayer::new(MINUTE).grpc_client());
    let mut client = HealthClient::new(layers.service(channel(&front)));
    let status = soon(client.check(ask("hang"))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(timeouts(&script)[0] <= SOON.as_nanos());
}

#[tokio::test]
async fn a_stream_is_cut_at_the_deadline_of_the_client() {
    let (_server, channel) = script_server(&Script::new()).await;
    let layers = ServiceBuilder::new().layer(StatusLayer).layer(DeadlineLayer::new(SOON).grpc_client());
    let mut client = HealthClient::new(layers.service(channel));
    let mut stream = soon(client.watch(ask("hang"))).await.unwrap().into_inner();
    let status = loop {
        match soon(stream.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ends without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(buttress::error::find_rejection(&status).is_some(), "ended by the client: {status:?}");
}

#[tokio::test]
async fn a_server_ends_a_stream_at_the_deadline_with_its_status() {
    let mut router = tonic::transport::Server::builder().layer(DeadlineLayer::server().max_limit(SOON).grpc());
    let server = grpc_server(router.add_service(HealthServer::new(Script::new()))).await;
    let mut client = HealthClient::new(channel(&server));
    let mut stream = soon(client.watch(ask("hang"))).await.unwrap().into_inner();
    let status = loop {
        match soon(stream.message()).await {
            Ok(message) => assert!(message.is_some(), "the stream ends without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().starts_with("deadline: the deadline passed"), "{status:?}");
}

#[tokio::test]
async fn a_call_that_arrives_expired_does_not_reach_the_service() {
    let script = Script::new();
    let layer = DeadlineLayer::server().mode(Mode::EnforceAll);
    let deadlines = layer.handle().clone();
    let mut router = tonic::transport::Server::builder().layer(layer.grpc());
    let server = grpc_server(router.add_service(HealthServer::new(script.clone()))).await;
    // By hand: a client of ours would not send the call, and tonic's ends it at once.
    let mut request = post(server.uri("/grpc.health.v1.Health/Check"), "");
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("0n"));
    let response = soon(client_h2().request(request)).await.unwrap();
    assert_eq!(
        (&response.headers()["grpc-status"], script.calls(), deadlines.expired()),
        (&HeaderValue::from_static("4"), 0, 1)
    );
}
