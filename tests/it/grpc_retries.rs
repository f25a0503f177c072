//! The client's cases of gRFC A6 (retries), over real tonic.

use buttress::{Backoff, RetryBudget, RetryLayer};
use buttress_http::{prelude::*, tonic::StatusLayer};
use buttress_stack_tests::{Server, ask, channel, grpc_server, soon};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio_stream::Stream;
use tonic::{Code, Request, Status, metadata::MetadataMap, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::ServiceBuilder;

/// Answers with these statuses in order, then with `OK`.
#[derive(Clone, Default)]
struct Planned {
    statuses: Arc<Mutex<VecDeque<Status>>>,
    /// `grpc-previous-rpc-attempts` of each request.
    previous: Arc<Mutex<Vec<Option<String>>>>,
}

impl Planned {
    fn new(statuses: impl IntoIterator<Item = Status>) -> Self {
        Self { statuses: Arc::new(Mutex::new(statuses.into_iter().collect())), previous: Arc::default() }
    }

    async fn serve(&self) -> (Server, Channel) {
        let router = tonic::transport::Server::builder().add_service(HealthServer::new(self.clone()));
        let server = grpc_server(router).await;
        let channel = channel(&server);
        (server, channel)
    }

    fn next(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let previous = metadata.get("grpc-previous-rpc-attempts").map(|value| value.to_str().unwrap().to_owned());
        self.previous.lock().unwrap().push(previous);
        self.statuses.lock().unwrap().pop_front().map_or(Ok(()), Err)
    }

    fn attempts(&self) -> usize {
        self.previous.lock().unwrap().len()
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Health for Planned {
    type WatchStream = Messages;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        self.next(request.metadata())?;
        Ok(tonic::Response::new(HealthCheckResponse { status: 1 }))
    }

    /// Sends the headers, and the status in trailers.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<tonic::Response<Messages>, Status> {
        let end = self.next(request.metadata());
        let messages = tokio_stream::iter([end.map(|()| HealthCheckResponse { status: 1 })]);
        Ok(tonic::Response::new(Box::pin(messages)))
    }
}

fn retry(attempts: u32) -> RetryLayer {
    // Overload has pauses of its own, up to the cap of the backoff.
    RetryLayer::new(attempts).backoff(Backoff::full_jitter(Duration::ZERO, Duration::from_millis(1)))
}

macro_rules! client {
    ($channel:expr, $retry:expr) => {{
        let retry = $retry.grpc_client().idempotent(|_: &http::request::Parts| true);
        HealthClient::new(ServiceBuilder::new().layer(StatusLayer).layer(retry).service($channel))
    }};
}

fn with(code: Code, headers: &[(&'static str, &'static str)]) -> Status {
    let mut metadata = HeaderMap::new();
    for (name, value) in headers {
        metadata.append(*name, HeaderValue::from_static(value));
    }
    Status::with_metadata(code, "as planned", MetadataMap::from_headers(metadata))
}

fn of(code: Code) -> Status {
    Status::new(code, "as planned")
}

#[tokio::test]
async fn statuses_and_pushbacks_decide_how_often_a_call_is_sent() {
    const PUSHBACK: &str = "grpc-retry-pushback-ms";
    let unavailable = || of(Code::Unavailable);
    let pushed = |value| with(Code::Unavailable, &[(PUSHBACK, value)]);
    for (statuses, attempts, result) in [
        (vec![], 1, Code::Ok),
        // Retryable statuses.
        (vec![unavailable()], 2, Code::Ok),
        (vec![unavailable(), unavailable()], 3, Code::Ok),
        (vec![unavailable(), unavailable(), unavailable()], 3, Code::Unavailable),
        (vec![of(Code::ResourceExhausted)], 2, Code::Ok),
        (vec![of(Code::DeadlineExceeded)], 2, Code::Ok),
        // A status that is not retryable ends the call, also after retries.
        (vec![of(Code::Internal)], 1, Code::Internal),
        (vec![of(Code::Unknown)], 1, Code::Unknown),
        (vec![of(Code::DataLoss)], 1, Code::DataLoss),
        (vec![of(Code::InvalidArgument)], 1, Code::InvalidArgument),
        (vec![of(Code::NotFound)], 1, Code::NotFound),
        (vec![of(Code::Aborted)], 1, Code::Aborted),
        (vec![of(Code::Cancelled)], 1, Code::Cancelled),
        (vec![of(Code::Unimplemented)], 1, Code::Unimplemented),
        (vec![unavailable(), of(Code::NotFound)], 2, Code::NotFound),
        (vec![unavailable(), of(Code::Internal)], 2, Code::Internal),
        // Pushbacks.
        (vec![pushed("0")], 2, Code::Ok),
        (vec![pushed("1"), pushed("0")], 3, Code::Ok),
        (vec![pushed("0"), pushed("0"), pushed("0")], 3, Code::Unavailable),
        (vec![pushed("-1")], 1, Code::Unavailable),
        (vec![unavailable(), pushed("-1")], 2, Code::Unavailable),
        (vec![pushed("soon")], 1, Code::Unavailable),
        (vec![pushed("")], 1, Code::Unavailable),
        (vec![pushed("99999999999")], 1, Code::Unavailable),
        (vec![with(Code::Unavailable, &[(PUSHBACK, "0"), (PUSHBACK, "0")])], 1, Code::Unavailable),
        // Longer than the longest hint.
        (vec![pushed("60001")], 1, Code::Unavailable),
        // A pushback does not make a status retryable.
        (vec![with(Code::Internal, &[(PUSHBACK, "0")])], 1, Code::Internal),
        (vec![with(Code::NotFound, &[(PUSHBACK, "0")])], 1, Code::NotFound),
    ] {
        let planned = Planned::new(statuses.clone());
        let (_server, channel) = planned.serve().await;
        let code =
            soon(client!(channel, retry(3)).check(ask("ok"))).await.err().map_or(Code::Ok, |status| status.code());
        assert_eq!((planned.attempts(), code), (attempts, result), "{statuses:?}");
    }
}

#[tokio::test]
async fn each_retry_says_how_many_attempts_were_before_it_and_the_first_attempt_nothing() {
    let planned = Planned::new([of(Code::Unavailable), of(Code::Unavailable)]);
    let (_server, channel) = planned.serve().await;
    soon(client!(channel, retry(3)).check(ask("ok"))).await.unwrap();
    assert_eq!(*planned.previous.lock().unwrap(), [None, Some("1".to_owned()), Some("2".to_owned())]);
}

#[tokio::test]
async fn a_pushback_replaces_the_backoff() {
    let planned = Planned::new([with(Code::Unavailable, &[("grpc-retry-pushback-ms", "1")])]);
    let (_server, channel) = planned.serve().await;
    let hours = retry(3).backoff(Backoff::constant(Duration::from_secs(3600)));
    soon(client!(channel, hours).check(ask("ok"))).await.unwrap();
    assert_eq!(planned.attempts(), 2);
}

#[tokio::test]
async fn a_call_is_committed_once_its_headers_are_out() {
    let planned = Planned::new([]);
    let (_server, channel) = planned.serve().await;
    planned.statuses.lock().unwrap().push_back(of(Code::Unavailable));
    let mut client = client!(channel, retry(3));
    let mut messages = soon(client.watch(ask("ok"))).await.unwrap().into_inner();
    assert_eq!(soon(messages.message()).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(planned.attempts(), 1);
}

#[tokio::test]
async fn a_half_of_the_tokens_ends_retries_until_calls_succeed() {
    let planned = Planned::default();
    let (_server, channel) = planned.serve().await;
    let budget = RetryBudget::builder().without_ratio().grpc_tokens(4.0, 0.6).build().unwrap();
    let layer = retry(5).budget(budget.clone());
    let stats = layer.stats();
    let mut client = client!(channel, layer);
    // Two failures leave 2 of 4 tokens, which allow no retry.
    planned.statuses.lock().unwrap().extend([of(Code::Unavailable), of(Code::Unavailable), of(Code::Unavailable)]);
    soon(client.check(ask("ok"))).await.unwrap_err();
    assert_eq!((planned.attempts(), budget.tokens(), stats.out_of_budget()), (2, Some(2.0), 1));
    // A call that is not retried takes a token as well.
    soon(client.check(ask("ok"))).await.unwrap_err();
    assert_eq!((planned.attempts(), budget.tokens()), (3, Some(1.0)));
    // Three successes add 1.8.
    for _ in 0..3 {
        soon(client.check(ask("ok"))).await.unwrap();
    }
    assert_eq!(budget.tokens(), Some(2.8));
    // A status that is not retryable takes none, and a pushback that forbids a retry takes one.
    planned.statuses.lock().unwrap().push_back(of(Code::Internal));
    soon(client.check(ask("ok"))).await.unwrap_err();
    assert_eq!(budget.tokens(), Some(2.8));
    planned.statuses.lock().unwrap().push_back(with(Code::Internal, &[("grpc-retry-pushback-ms", "-1")]));
    soon(client.check(ask("ok"))).await.unwrap_err();
    assert_eq!((budget.tokens(), stats.retries()), (Some(1.8), 1));
}

/// `google.rpc.Status` with a `RetryInfo` of this many seconds.
fn retry_info(seconds: u8) -> Bytes {
    const TYPE: &[u8] = b"type.googleapis.com/google.rpc.RetryInfo";
    let mut any = [&[0x0a, TYPE.len() as u8], TYPE].concat();
    any.extend([0x12, 4, 0x0a, 2, 0x08, seconds]);
    [&[0x08, 14, 0x1a, any.len() as u8], &*any].concat().into()
}

#[tokio::test]
async fn a_retry_info_is_a_hint_and_a_pushback_wins_over_it() {
    let detailed = |seconds, metadata: MetadataMap| {
        Status::with_details_and_metadata(Code::Unavailable, "as planned", retry_info(seconds), metadata)
    };
    let at_once = with(Code::Unavailable, &[("grpc-retry-pushback-ms", "0")]).metadata().clone();
    for (status, attempts) in [
        (detailed(0, MetadataMap::new()), 2),
        // Longer than the longest hint.
        (detailed(61, MetadataMap::new()), 1),
        (detailed(61, at_once), 2),
        (Status::with_details(Code::Unavailable, "as planned", Bytes::from_static(b"\xff\xff")), 2),
    ] {
        let planned = Planned::new([status.clone()]);
        let (_server, channel) = planned.serve().await;
        let result = soon(client!(channel, retry(2)).check(ask("ok"))).await;
        assert_eq!((planned.attempts(), result.is_ok()), (attempts, attempts == 2), "{status:?}");
    }
}

#[tokio::test]
async fn a_refused_stream_is_repeated_transparently_whatever_the_limit_of_attempts_and_costs_no_token() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = requests.clone();
    let server = Server::start(async move |listener| {
        while let Ok((socket, _)) = listener.accept().await {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                if counter.fetch_add(1, SeqCst) == 0 {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                    continue;
                }
                let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "5");
                respond.send_response(head.body(()).unwrap(), true).unwrap();
            }
        }
    })
    .await;
    let budget = RetryBudget::builder().without_ratio().grpc_tokens(1.0, 0.1).build().unwrap();
    let layer = RetryLayer::new(2).budget(budget.clone());
    let stats = layer.stats();
    let status = soon(client!(channel(&server), layer).check(ask("ok"))).await.unwrap_err();
    assert_eq!((status.code(), requests.load(SeqCst)), (Code::NotFound, 2));
    assert_eq!((stats.transparent(), stats.retries(), budget.tokens()), (1, 0, Some(1.0)));
}

#[tokio::test]
async fn settings_of_a_request_win_over_those_of_the_layer() {
    for (own, attempts) in [
        (None, 1),
        (Some(RetryOverride::new().idempotent(true)), 3),
        (Some(RetryOverride::new().idempotent(true).attempts(2)), 2),
        (Some(RetryOverride::new().idempotent(true).attempts(1)), 1),
    ] {
        let planned = Planned::new(vec![of(Code::Unavailable); 4]);
        let (_server, channel) = planned.serve().await;
        let stack = ServiceBuilder::new().layer(StatusLayer).layer(retry(3).grpc_client()).service(channel);
        let mut request = Request::new(ask("ok"));
        if let Some(own) = own {
            request.extensions_mut().insert(own);
        }
        soon(HealthClient::new(stack).check(request)).await.unwrap_err();
        assert_eq!(planned.attempts(), attempts, "{own:?}");
    }
}
