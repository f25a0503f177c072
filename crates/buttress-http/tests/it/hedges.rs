//! Hedged requests, on a paused clock.

use buttress::{
    BoxError,
    policy::{Clock, TokioClock},
};
use buttress_http::{ReplayBody, prelude::*, replay::BodyFactory};
use buttress_test::{Part, TestBody};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full, channel::Channel};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};

const DELAY: Duration = Duration::from_millis(30);

fn hedge() -> HedgeLayer {
    HedgeLayer::after(DELAY)
}

#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Vec<(HeaderMap, String)>>>);

impl Seen {
    /// The bodies that arrived.
    fn bodies(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }
}

type Service<B> = BoxCloneSyncService<Request<B>, Response<Full<Bytes>>, BoxError>;

/// Answers with this status and these headers; the first attempt after a second.
fn backend<B>(status: u16, headers: &[(&'static str, &'static str)]) -> (Seen, Service<B>)
where
    B: http_body::Body<Data = Bytes, Error = BoxError> + Send + 'static,
{
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = http::StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        answer.headers_mut().append(*name, value.parse().unwrap());
    }
    let (seen, attempts) = (Seen::default(), Arc::new(Mutex::new(0)));
    let log = seen.clone();
    let service = service_fn(move |request: Request<B>| {
        let attempt = {
            let mut attempts = attempts.lock().unwrap();
            *attempts += 1;
            *attempts
        };
        let (log, answer) = (log.clone(), answer.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            log.0.lock().unwrap().push((head.headers, String::from_utf8_lossy(&body).into_owned()));
            if attempt == 1 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok(answer)
        }
    });
    (seen, BoxCloneSyncService::new(service))
}

fn request(method: Method) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri("http://backend/").body(Full::from("content")).unwrap()
}

#[tokio::test(start_paused = true)]
async fn idempotent_requests_are_hedged_and_others_are_not() {
    let keyed = || {
        let mut request = request(Method::POST);
        request.headers_mut().insert("idempotency-key", "7".parse().unwrap());
        request
    };
    for (request, attempts) in
        [(request(Method::GET), 2), (request(Method::PUT), 2), (request(Method::POST), 1), (keyed(), 2)]
    {
        let (seen, backend) = backend::<ReplayBody<Full<Bytes>>>(200, &[]);
        let response = hedge().http_client().layer(backend).oneshot(request).await.unwrap();
        assert_eq!((response.status().as_u16(), seen.bodies()), (200, vec!["content".to_owned(); attempts]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_carries_the_number_of_the_attempts_before_it() {
    let (seen, http) = backend::<ReplayBody<Full<Bytes>>>(200, &[]);
    hedge().http_client().layer(http).oneshot(request(Method::GET)).await.unwrap();
    let (grpc_seen, grpc) = backend::<ReplayBody<Full<Bytes>>>(200, &[("grpc-status", "0")]);
    let layer = hedge().grpc_client().idempotent(|_: &http::request::Parts| true);
    layer.layer(grpc).oneshot(request(Method::POST)).await.unwrap();
    for (seen, name) in [(seen, "x-retry-attempt"), (grpc_seen, "grpc-previous-rpc-attempts")] {
        let seen = seen.0.lock().unwrap();
        let numbers: Vec<_> = seen.iter().map(|(headers, _)| headers.get(name).map(|n| n.to_str().unwrap())).collect();
        assert_eq!(numbers, [None, Some("1")]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_whose_frames_arrive_while_two_attempts_read_it_arrives_whole_twice() {
    let (seen, backend) = backend::<ReplayBody<Channel<Bytes, Infallible>>>(200, &[]);
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(8);
    let request = Request::put("http://backend/").body(body).unwrap();
    let call = tokio::spawn(hedge().http_client().layer(backend).oneshot(request));
    for chunk in ["one ", "two ", "three"] {
        sender.send_data(chunk.into()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(sender);
    assert_eq!(call.await.unwrap().unwrap().status(), 200);
    assert_eq!(seen.bodies(), ["one two three", "one two three"]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_fit_is_sent_once_and_whole() {
    let (seen, backend) = backend::<ReplayBody<Full<Bytes>>>(200, &[]);
    let layer = hedge().http_client().max_body(6);
    layer.layer(backend).oneshot(request(Method::PUT)).await.unwrap();
    assert_eq!(seen.bodies(), ["content"]);

    let (seen, backend) = self::backend::<ReplayBody<TestBody>>(200, &[]);
    let body = TestBody::new([Part::Data("does "), Part::Pause, Part::Data("not fit")]);
    let layer = hedge().http_client().max_body(6).map_request_body(|body: ReplayBody<TestBody>| body);
    layer.layer(backend).oneshot(Request::put("http://backend/").body(body).unwrap()).await.unwrap();
    assert_eq!(seen.bodies(), ["does not fit"]);
}

#[tokio::test(start_paused = true)]
async fn a_body_of_any_size_is_hedged_if_it_can_be_made_again() {
    let (seen, backend) = backend::<ReplayBody<Full<Bytes>>>(200, &[]);
    let mut upload = request(Method::PUT);
    upload.extensions_mut().insert(BodyFactory::new(|| Full::<Bytes>::from("content")));
    hedge().http_client().max_body(0).layer(backend).oneshot(upload).await.unwrap();
    assert_eq!(seen.bodies(), ["content", "content"]);
}

/// The first attempt takes a second, the second one answers at once.
#[tokio::test(start_paused = true)]
async fn a_conclusive_answer_of_a_hedge_is_that_of_the_call_and_another_failure_is_not() {
    for (status, headers, waits) in [
        (501, &[][..], false),
        (200, &[("grpc-status", "13")][..], false),
        (200, &[("grpc-status", "14")][..], true),
        (200, &[("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")][..], true),
        (503, &[][..], true),
    ] {
        let (seen, backend) = backend::<ReplayBody<Full<Bytes>>>(status, headers);
        let mut request = request(Method::PUT);
        if !headers.is_empty() {
            request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        }
        let started = TokioClock.now();
        hedge().http_client().layer(backend).oneshot(request).await.unwrap();
        assert_eq!(TokioClock.now() - started > Duration::from_millis(500), waits, "{status} {headers:?}");
        assert_eq!(seen.bodies().len(), 2);
    }
}
