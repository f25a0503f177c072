//! Retries of services that call each other: only the lowest caller of a failing service repeats.

use axum::{Router, body::Body, extract::State, routing::any};
use buttress::{Backoff, RetryBudget, RetryLayer, retry::RetryStats};
use buttress_http::{ending::GrpcClient, prelude::*, tonic::StatusLayer};
use buttress_stack_tests::{
    Client, Script, Server, ask, axum_server, channel, client, get, grpc_server, reply, script_server, soon,
};
use http::{Request, Response, Uri};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::{Layer, ServiceExt};

fn retry(attempts: u32) -> RetryLayer {
    RetryLayer::new(attempts).backoff(Backoff::constant(Duration::ZERO))
}

/// A service that always fails.
#[derive(Clone, Default)]
struct Broken(Arc<AtomicUsize>);

impl Broken {
    async fn serve(&self) -> Server {
        let broken = async |State(Self(calls)): State<Self>| {
            calls.fetch_add(1, SeqCst);
            reply(503, "broken")
        };
        axum_server(Router::new().fallback(any(broken)).with_state(self.clone())).await
    }
}

/// How the service in the middle answers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    /// With the response that it got.
    Proxied,
    /// With a response of its own.
    Own,
    /// With a response of its own, after a call in another task.
    Spawned,
    /// With a success.
    Fallback,
}

#[derive(Clone)]
struct Middle {
    calls: Arc<AtomicUsize>,
    broken: Uri,
    client: Client,
    retry: RetryLayer,
    answer: Answer,
}

async fn middle(State(middle): State<Middle>) -> Response<Body> {
    middle.calls.fetch_add(1, SeqCst);
    let stack = middle.retry.http_client().layer(middle.client);
    let call = async move { stack.oneshot(get(middle.broken)).await.map(|response| response.map(Body::new)) };
    let result = if middle.answer == Answer::Spawned { tokio::spawn(call).await.unwrap() } else { call.await };
    match (middle.answer, result) {
        (Answer::Proxied, Ok(response)) => response,
        (Answer::Fallback, _) => reply(200, "from the cache"),
        _ => reply(502, "of its own"),
    }
}

/// What a call through three tiers of up to three attempts does.
struct Tiers {
    response: Response<Body>,
    stats: RetryStats,
    middle: usize,
    broken: usize,
}

async fn through_tiers(attempts: u32, answer: Answer, has_context: bool) -> Tiers {
    through(retry(attempts), answer, has_context).await
}

async fn through(middle_retry: RetryLayer, answer: Answer, has_context: bool) -> Tiers {
    let (broken, calls) = (Broken::default(), Arc::<AtomicUsize>::default());
    let backend = broken.serve().await;
    let state =
        Middle { calls: calls.clone(), broken: backend.uri("/"), client: client(), retry: middle_retry, answer };
    let router = Router::new().fallback(any(middle)).with_state(state);
    let router = if has_context { router.layer(ContextLayer::new().http()) } else { router };
    let server = axum_server(router).await;
    let top = retry(3);
    let stats = top.stats();
    let response = soon(top.http_client().layer(client()).oneshot(get(server.uri("/")))).await.unwrap();
    Tiers { response: response.map(Body::new), stats, middle: calls.load(SeqCst), broken: broken.0.load(SeqCst) }
}

fn mark<B>(response: &Response<B>) -> Option<&str> {
    response.headers().get("x-buttress-retried").map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn only_the_lowest_caller_repeats_whether_the_failure_is_passed_on_or_turned_into_another_one() {
    for (answer, has_context, status) in
        [(Answer::Proxied, false, 503), (Answer::Proxied, true, 503), (Answer::Own, true, 502)]
    {
        let tiers = through_tiers(3, answer, has_context).await;
        assert_eq!((tiers.middle, tiers.broken), (1, 3), "{answer:?}");
        assert_eq!((tiers.response.status().as_u16(), mark(&tiers.response)), (status, Some("2")), "{answer:?}");
        assert_eq!((tiers.stats.retries(), tiers.stats.retried_below()), (0, 1), "{answer:?}");
    }
}

#[tokio::test]
async fn a_service_that_made_one_attempt_leaves_the_retries_to_its_caller() {
    for answer in [Answer::Proxied, Answer::Own] {
        let tiers = through_tiers(1, answer, true).await;
        assert_eq!((tiers.middle, tiers.broken, tiers.stats.retried_below()), (3, 3, 0), "{answer:?}");
        assert_eq!(mark(&tiers.response), Some("2"), "the top has repeated it in vain");
    }
}

#[tokio::test]
async fn a_service_whose_budget_is_empty_is_not_called_again() {
    let budget = RetryBudget::builder().percent(0.0).min_per_second(0.0).burst(1).build().unwrap();
    budget.try_withdraw().unwrap().spend();
    let tiers = through(retry(3).budget(budget), Answer::Own, true).await;
    assert_eq!((tiers.middle, tiers.broken, mark(&tiers.response)), (1, 1, Some("0")));
}

#[tokio::test]
async fn a_success_in_spite_of_a_failure_below_is_not_marked() {
    let tiers = through_tiers(3, Answer::Fallback, true).await;
    assert_eq!((tiers.middle, tiers.broken, mark(&tiers.response)), (1, 3, None));
}

#[tokio::test]
async fn work_in_another_task_and_a_handler_without_a_context_do_not_tell_of_their_retries() {
    for (answer, has_context) in [(Answer::Spawned, true), (Answer::Own, false)] {
        let tiers = through_tiers(3, answer, has_context).await;
        assert_eq!((tiers.middle, tiers.broken, tiers.stats.retried_below()), (3, 9, 0), "{answer:?}");
    }
}

/// A gRPC service that calls another one, and answers with a status of its own.
#[derive(Clone)]
struct Relay {
    calls: Arc<AtomicUsize>,
    backend: tonic::transport::Channel,
}

fn grpc_retry() -> RetryLayer<GrpcClient> {
    retry(3).grpc_client()
}

fn keyed() -> tonic::Request<HealthCheckRequest> {
    let mut request = tonic::Request::new(ask("unavailable"));
    request.metadata_mut().insert("idempotency-key", "1".parse().unwrap());
    request
}

#[tonic::async_trait]
impl Health for Relay {
    type WatchStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        _: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        self.calls.fetch_add(1, SeqCst);
        let stack = tower::ServiceBuilder::new().layer(StatusLayer).layer(grpc_retry()).service(self.backend.clone());
        let status = HealthClient::new(stack).check(keyed()).await.unwrap_err();
        Err(Status::unavailable(format!("the backend: {}", status.message())))
    }

    async fn watch(&self, _: tonic::Request<HealthCheckRequest>) -> Result<tonic::Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

#[tokio::test]
async fn a_grpc_service_tells_its_caller_that_it_has_repeated_a_call_in_vain() {
    let script = Script::new();
    let (_backend, backend) = script_server(&script).await;
    let relay = Relay { calls: Arc::default(), backend };
    let mut server = tonic::transport::Server::builder().layer(ContextLayer::new().grpc());
    let server = grpc_server(server.add_service(HealthServer::new(relay.clone()))).await;
    let top = grpc_retry();
    let stats = top.stats();
    let stack = tower::ServiceBuilder::new().layer(StatusLayer).layer(top).service(channel(&server));
    let status = soon(HealthClient::new(stack).check(keyed())).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "the backend: as asked"));
    assert_eq!(status.metadata().get("x-buttress-retried").unwrap(), "2");
    assert_eq!((relay.calls.load(SeqCst), script.calls(), stats.retried_below()), (1, 3, 1));
}

#[tokio::test]
async fn what_is_called_for_a_request_that_the_caller_repeats_adds_nothing_to_the_budget() {
    let budget = RetryBudget::builder().percent(100.0).min_per_second(0.0).burst(10).build().unwrap();
    (0..5).for_each(|_| drop(budget.try_withdraw().unwrap().spend()));
    let broken = Broken::default();
    let backend = broken.serve().await;
    let middle_state = Middle {
        calls: Arc::default(),
        broken: backend.uri("/"),
        client: client(),
        retry: retry(1).budget(budget.clone()),
        answer: Answer::Own,
    };
    let router = Router::new().fallback(any(middle)).with_state(middle_state).layer(ContextLayer::new().http());
    let server = axum_server(router).await;
    let request = |name, value| Request::get(server.uri("/")).header(name, value).body(Body::empty()).unwrap();
    for (name, value, balance) in [
        ("x-retry-attempt", "1", 5.0),
        ("grpc-previous-rpc-attempts", "3", 5.0),
        ("x-retry-attempt", "0", 6.0),
        ("accept", "text/plain", 7.0),
    ] {
        soon(client().oneshot(request(name, value))).await.unwrap();
        assert_eq!(budget.balance(), balance, "{name}: {value}");
    }
}
