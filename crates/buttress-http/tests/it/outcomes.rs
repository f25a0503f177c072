use crate::recorder::{Recorder, Writes};
use buttress::{
    BoxError, BulkheadLayer, Ending,
    gate::GateLayer,
    outcome::{Failure, FailureKind, Ignored, Outcome},
    policy::Progress,
};
use buttress_http::{HttpExt, ObservedBody, ending::HttpClient, prelude::TimeoutLayer};
use buttress_test::{Part, TestBody};
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use std::{future::ready, time::Duration};
use tower::{Layer, Service, ServiceExt, service_fn};

fn status(code: &str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), code.parse().unwrap())])
}

fn failed(kind: FailureKind) -> Outcome {
    Failure::new(kind).into()
}

/// Returns the kind of a failure, without its hints about retries.
fn kind(outcome: &Outcome) -> Option<FailureKind> {
    outcome.failure().map(|failure| failure.kind)
}

type Observed<const HELD: bool> = Response<ObservedBody<TestBody, Writes<HELD>>>;

async fn http<const HELD: bool>(recorder: &Recorder<HELD>, response: Response<TestBody>) -> Observed<HELD> {
    let response = std::sync::Mutex::new(Some(response));
    let inner = service_fn(move |_: Request<()>| ready(Ok::<_, BoxError>(response.lock().unwrap().take().unwrap())));
    GateLayer::with_policy(recorder.clone()).http_client().layer(inner).oneshot(Request::new(())).await.unwrap()
}

async fn grpc(recorder: &Recorder<false>, response: Response<TestBody>) -> Observed<false> {
    let response = std::sync::Mutex::new(Some(response));
    let inner = service_fn(move |_: Request<()>| ready(Ok::<_, BoxError>(response.lock().unwrap().take().unwrap())));
    GateLayer::with_policy(recorder.clone()).grpc_client().layer(inner).oneshot(Request::new(())).await.unwrap()
}

fn body(parts: impl IntoIterator<Item = Part>) -> Response<TestBody> {
    Response::new(TestBody::new(parts))
}

/// Counts the outcomes after the head, after each frame, and after the drop.
async fn steps<const HELD: bool>(recorder: &Recorder<HELD>, response: Observed<HELD>) -> Vec<usize> {
    let mut body = response.into_body();
    let mut steps = vec![recorder.outcomes().len()];
    while let Some(frame) = body.frame().await {
        steps.push(recorder.outcomes().len());
        if frame.is_err() {
            break;
        }
    }
    drop(body);
    steps.push(recorder.outcomes().len());
    steps
}

#[tokio::test]
async fn a_body_settles_with_its_last_frame_and_once() {
    let recorder = Recorder::<false>::default();
    let response = http(&recorder, body([Part::Data("a"), Part::Data("b")])).await;
    assert_eq!(steps(&recorder, response).await, [0, 0, 1, 1]);
    assert_eq!(recorder.outcomes(), [Outcome::Success]);
}

#[tokio::test]
async fn an_empty_body_settles_at_its_head() {
    let recorder = Recorder::<false>::default();
    let response = http(&recorder, body([])).await;
    assert_eq!(steps(&recorder, response).await, [1, 1]);
}

#[tokio::test]
async fn trailers_are_an_end() {
    let recorder = Recorder::<false>::default();
    let response = http(&recorder, body([Part::Data("a"), Part::Trailers(HeaderMap::new())])).await;
    assert_eq!(steps(&recorder, response).await, [0, 0, 1, 1]);
    assert_eq!(recorder.outcomes(), [Outcome::Success]);
}

#[tokio::test]
async fn a_body_that_breaks_is_a_failure() {
    let recorder = Recorder::<false>::default();
    let response = http(&recorder, body([Part::Data("a"), Part::Error("broken")])).await;
    assert_eq!(steps(&recorder, response).await, [0, 0, 1, 1]);
    assert_eq!(recorder.outcomes(), [failed(FailureKind::Body)]);
}

#[tokio::test]
async fn a_bad_status_settles_at_the_head_unless_the_permit_is_held_to_the_end() {
    let bad = || {
        let mut response = body([Part::Data("a"), Part::Data("b")]);
        *response.status_mut() = http::StatusCode::BAD_GATEWAY;
        response
    };
    let (decides, held) = (Recorder::<false>::default(), Recorder::<true>::default());
    let (first, second) = (http(&decides, bad()).await, http(&held, bad()).await);
    assert_eq!(steps(&decides, first).await, [1, 1, 1, 1]);
    assert_eq!(steps(&held, second).await, [0, 0, 1, 1]);
    assert_eq!(
        (decides.outcomes(), held.outcomes()),
        (vec![failed(FailureKind::Http(502))], vec![failed(FailureKind::Http(502))])
    );
}

#[tokio::test]
async fn a_body_that_the_caller_drops_settles_as_its_head() {
    for frames in [0, 1] {
        let recorder = Recorder::<false>::default();
        let mut body = http(&recorder, body([Part::Data("a"), Part::Data("b")])).await.into_body();
        for _ in 0..frames {
            body.frame().await.unwrap().unwrap();
        }
        drop(body);
        assert_eq!(recorder.outcomes(), [Outcome::Success], "after {frames} frames");
    }
}

#[tokio::test]
async fn a_response_without_a_body_settles_at_its_head_whatever_becomes_of_its_body() {
    for (method, status) in [("HEAD", 200), ("CONNECT", 200), ("GET", 204), ("GET", 304), ("GET", 103)] {
        let recorder = Recorder::<false>::default();
        let inner = service_fn(move |_: Request<()>| {
            let mut response = body([Part::Data("a body that hyper does not send")]);
            *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
            ready(Ok::<_, BoxError>(response))
        });
        let request = Request::builder().method(method).body(()).unwrap();
        let service = GateLayer::with_policy(recorder.clone()).http().layer(inner);
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(recorder.outcomes(), [Outcome::Success], "{method} {status}");
        drop(response);
        assert_eq!(recorder.outcomes().len(), 1);
    }
}

#[tokio::test]
async fn a_rejection_of_a_layer_underneath_that_left_as_a_response_is_no_evidence() {
    let inner = || service_fn(|_: Request<()>| ready(Ok::<_, BoxError>(body([]))));
    let (http, grpc) = (Recorder::<false>::default(), Recorder::<false>::default());
    let full = BulkheadLayer::new(0);
    let stack = GateLayer::with_policy(http.clone()).http().layer(full.clone().http().layer(inner()));
    assert_eq!(stack.oneshot(Request::new(())).await.unwrap().status(), 503);
    let stack = GateLayer::with_policy(grpc.clone()).grpc().layer(full.grpc().layer(inner()));
    assert_eq!(stack.oneshot(Request::new(())).await.unwrap().headers()["grpc-status"], "8");
    let no_evidence = [Outcome::Ignored(Ignored::LocalReject)];
    assert_eq!((http.outcomes(), grpc.outcomes()), (no_evidence.to_vec(), no_evidence.to_vec()));
}

#[tokio::test]
async fn an_http_ending_reads_the_outcome_of_a_grpc_call_from_its_trailers() {
    let recorder = Recorder::<false>::default();
    let inner =
        service_fn(|_: Request<()>| ready(Ok::<_, BoxError>(body([Part::Data("a"), Part::Trailers(status("14"))]))));
    let request = Request::post("/").header("content-type", "application/grpc+proto").body(()).unwrap();
    let response = GateLayer::with_policy(recorder.clone()).http().layer(inner).oneshot(request).await.unwrap();
    response.into_body().collect().await.unwrap();
    assert_eq!(kind(&recorder.outcomes()[0]), Some(FailureKind::Grpc(14)));
}

#[tokio::test]
async fn a_classification_of_your_own_decides_and_leaves_the_rest_to_the_usual_rules() {
    let recorder = Recorder::<false>::default();
    let ending =
        HttpClient::new().classify(|head| (head.status == 418).then(|| Failure::new(FailureKind::Application).into()));
    for (status, parts) in [(418, vec![]), (502, vec![]), (200, vec![Part::Data("a"), Part::Error("broken")])] {
        let inner = service_fn(move |_: Request<()>| {
            let mut response = body(parts.clone());
            *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
            ready(Ok::<_, BoxError>(response))
        });
        let layer = GateLayer::with_policy(recorder.clone()).end(ending);
        let response = layer.layer(inner).oneshot(Request::new(())).await.unwrap();
        let _ = response.into_body().collect().await;
    }
    let expected = [FailureKind::Application, FailureKind::Http(502), FailureKind::Body].map(failed);
    assert_eq!(recorder.outcomes(), expected);
}

#[tokio::test]
async fn a_panic_is_a_failure_of_the_call_that_it_unwinds_through() {
    let recorder = Recorder::<false>::default();
    let layer = GateLayer::with_policy(recorder.clone()).http_client();
    let in_call =
        service_fn(|_: Request<()>| -> std::future::Ready<Result<Response<TestBody>, BoxError>> { panic!("in call") });
    let in_poll = service_fn(|_: Request<()>| async {
        assert!(std::hint::black_box(false), "in poll");
        Ok::<_, BoxError>(body([]))
    });
    let (in_call, in_poll) = (layer.layer(in_call), layer.layer(in_poll));
    tokio::spawn(in_call.oneshot(Request::new(()))).await.unwrap_err();
    tokio::spawn(in_poll.oneshot(Request::new(()))).await.unwrap_err();
    assert_eq!(recorder.outcomes(), [failed(FailureKind::Application), failed(FailureKind::Application)]);
}

#[tokio::test]
async fn grpc_is_read_from_the_trailers() {
    for (code, expected) in [("0", None), ("5", None), ("14", Some(14)), ("nonsense", Some(2)), ("99", Some(99))] {
        let recorder = Recorder::<false>::default();
        let response = grpc(&recorder, body([Part::Data("a"), Part::Trailers(status(code))])).await;
        assert_eq!(steps(&recorder, response).await, [0, 0, 1, 1]);
        assert_eq!(kind(&recorder.outcomes()[0]), expected.map(FailureKind::Grpc), "{code}");
    }
}

#[tokio::test]
async fn grpc_is_read_from_the_head_where_there_are_only_trailers() {
    let recorder = Recorder::<false>::default();
    let mut response = body([]);
    *response.headers_mut() = status("14");
    let response = grpc(&recorder, response).await;
    assert_eq!(kind(&recorder.outcomes()[0]), Some(FailureKind::Grpc(14)));
    drop(response);
    assert_eq!(recorder.outcomes().len(), 1);
}

#[tokio::test]
async fn grpc_without_a_status_is_unknown_and_without_a_grpc_server_is_what_http_says() {
    let recorder = Recorder::<false>::default();
    let response = grpc(&recorder, body([Part::Data("a")])).await;
    steps(&recorder, response).await;
    let mut bad_gateway = body([Part::Data("a")]);
    *bad_gateway.status_mut() = http::StatusCode::BAD_GATEWAY;
    drop(grpc(&recorder, bad_gateway).await);
    let kinds: Vec<_> = recorder.outcomes().iter().map(kind).collect();
    assert_eq!(kinds, [Some(FailureKind::Grpc(2)), Some(FailureKind::Http(502))]);
}

#[tokio::test]
async fn a_dropped_stream_is_neutral() {
    let recorder = Recorder::<false>::default();
    let mut body = grpc(&recorder, body([Part::Data("a"), Part::Trailers(status("14"))])).await.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    assert_eq!(recorder.outcomes(), [Outcome::CANCELLED]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_future_is_neutral_and_an_attempt_that_timed_out_is_not() {
    let recorder = Recorder::<false>::default();
    let hangs = service_fn(|_: Request<()>| std::future::pending::<Result<Response<TestBody>, BoxError>>());
    let inner = TimeoutLayer::attempt(Duration::from_secs(1)).http_client().layer(hangs);
    let mut service = GateLayer::with_policy(recorder.clone()).http_client().layer(inner);
    drop(service.ready().await.unwrap().call(Request::new(())));
    service.ready().await.unwrap().call(Request::new(())).await.unwrap_err();
    assert_eq!(recorder.outcomes(), [Outcome::CANCELLED, failed(FailureKind::Timeout)]);
}

#[tokio::test(start_paused = true)]
async fn a_bound_on_the_body_is_the_evidence_that_it_says_it_is() {
    const SECOND: Duration = Duration::from_secs(1);
    let outcome = async |timeout: TimeoutLayer, before_it_is_read| {
        let recorder = Recorder::<false>::default();
        let inner = service_fn(|_: Request<()>| ready(Ok::<_, BoxError>(body([Part::Data("a"), Part::Never]))));
        let stack = tower::ServiceBuilder::new()
            .layer(GateLayer::with_policy(recorder.clone()).http_client())
            .layer(timeout.http_client())
            .service(inner);
        let mut body = stack.oneshot(Request::new(())).await.unwrap().into_body();
        tokio::time::sleep(before_it_is_read).await;
        while body.frame().await.unwrap().is_ok() {}
        recorder.outcomes()
    };
    let timeout = || TimeoutLayer::attempt(SECOND);
    assert_eq!(outcome(timeout().reader_stall(SECOND), 2 * SECOND).await, [Outcome::CANCELLED]);
    assert_eq!(outcome(timeout().body_idle(SECOND), Duration::ZERO).await, [failed(FailureKind::Timeout)]);
}

#[tokio::test]
async fn a_grpc_web_call_is_an_http_call_whose_status_is_in_its_body() {
    for kind in ["application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text"] {
        let recorder = Recorder::<false>::default();
        let inner = service_fn(|_: Request<()>| ready(Ok::<_, BoxError>(body([Part::Data("message and trailers")]))));
        let stack = GateLayer::with_policy(recorder.clone()).http_client().layer(inner);
        let request = Request::builder().header("content-type", kind).body(()).unwrap();
        stack.oneshot(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(recorder.outcomes(), [Outcome::Success], "{kind}");
    }
}

#[tokio::test]
async fn the_head_and_each_frame_but_the_last_are_progress() {
    let recorder = Recorder::<true>::default();
    let parts = [Part::Data("a"), Part::Pause, Part::Data("b"), Part::Data("c")];
    http(&recorder, body(parts)).await.into_body().collect().await.unwrap();
    assert_eq!(recorder.progress(), [Progress::Head, Progress::Frame, Progress::Frame]);
}

#[tokio::test]
async fn grpc_is_told_by_its_content_type() {
    for (kind, is_grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;charset=utf-8", true),
        ("application/grpc ; charset=utf-8", true),
        ("application/grpcx", false),
        ("application/grpc-web", false),
        ("application/json", false),
        ("", false),
    ] {
        let recorder = Recorder::<false>::default();
        let inner = service_fn(|_: Request<()>| ready(Ok::<_, BoxError>(body([Part::Data("no trailers")]))));
        let request = Request::post("/").header("content-type", kind).body(()).unwrap();
        let stack = GateLayer::with_policy(recorder.clone()).http().layer(inner);
        stack.oneshot(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(recorder.outcomes()[0].is_failure(), is_grpc, "{kind}: a gRPC stream without a status has failed");
    }
}
