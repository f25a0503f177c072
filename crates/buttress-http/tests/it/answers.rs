use buttress::{Reason, Rejection, health::Group, health::Rules};
use buttress_http::{HttpProbes, ending::HttpServer, prelude::*};
use buttress_test::{Answer, BoxError, Inner, Plan, TestBody};
use http::{Request, Response};
use http_body_util::BodyExt;
use std::time::Duration;
use tower::{Layer, Service, ServiceExt};

/// Returns the response of a layer whose inner service never answers.
async fn answered<L, B>(layer: L, request: Request<()>) -> Response<B>
where
    L: Layer<Inner, Service: Service<Request<TestBody>, Response = Response<B>, Error = BoxError>>,
{
    let request = request.map(|()| TestBody::default());
    layer.layer(Inner::new(Plan::of(Answer::Never))).oneshot(request).await.unwrap()
}

fn reason<B>(response: &Response<B>) -> &'static Reason {
    response.extensions().get::<Rejection>().expect("the response holds the typed rejection").reason()
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_a_response_with_the_typed_rejection_in_it() {
    let response = answered(BulkheadLayer::new(0).http(), Request::new(())).await;
    assert_eq!((response.status().as_u16(), reason(&response)), (503, &buttress::bulkhead::FULL));
    let response = answered(BulkheadLayer::new(0).grpc(), Request::new(())).await;
    assert_eq!(
        (&response.headers()["grpc-status"], reason(&response)),
        (&"8".parse().unwrap(), &buttress::bulkhead::FULL)
    );
    let queue = BulkheadLayer::new(0).queue(1, Duration::from_secs(1));
    let response = answered(queue.http(), Request::new(())).await;
    assert_eq!((response.status().as_u16(), reason(&response)), (503, &buttress::bulkhead::QUEUE_TIMEOUT));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_a_504_or_deadline_exceeded() {
    let timeout = TimeoutLayer::total(Duration::from_secs(1));
    assert_eq!(answered(timeout.clone().http(), Request::new(())).await.status(), 504);
    let response = answered(timeout.grpc(), Request::new(())).await;
    assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &"4".parse().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_says_when_to_come_back() {
    let breaker = CircuitBreaker::new("payments");
    breaker.open_for(Duration::from_millis(2500));
    let layer = CircuitBreakerLayer::from(breaker);
    assert_eq!(answered(layer.clone().http(), Request::new(())).await.headers()["retry-after"], "3");
    let response = answered(layer.grpc(), Request::new(())).await;
    assert_eq!(response.headers()["grpc-retry-pushback-ms"], "2500");
    assert_eq!(response.headers()["grpc-status"], "14");
}

#[tokio::test]
async fn indicators_are_listed_only_for_those_who_may_see_them() {
    let health = Health::new();
    health.started();
    let database = health.indicator("database", Group::Readiness, Rules::AT_ONCE);
    database.down("password wrong");
    let probes = HttpProbes::new().verbose_for(|headers| headers.contains_key("x-operator"));
    let layer = HealthLayer::new(health).end(probes);
    let ask = async |operator: bool| {
        let mut request = Request::get("/readyz?verbose").body(()).unwrap();
        if operator {
            request.headers_mut().insert("x-operator", "1".parse().unwrap());
        }
        let body = answered(layer.clone(), request).await.into_body().collect().await.unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    };
    assert_eq!(ask(false).await, "down\n");
    assert_eq!(ask(true).await, "down\nReadiness database: down (password wrong)\n");
}

#[test]
fn layers_with_closures_of_a_user_have_debug() {
    let server = HttpServer::new().respond(|response: Response<()>, _: &Rejection| response.map(|()| "busy"));
    let retry = RetryLayer::new(3).http_client().idempotent(|_| true).max_body(7).map_request_body(|body: ()| body);
    let text = format!("{:?} {:?}", BulkheadLayer::named("orders", 1).end(server), retry);
    assert!(text.contains("orders") && text.contains("max_body: 7"), "{text}");
}

#[tokio::test]
async fn a_probe_is_answered_by_path_and_method_with_the_status_in_its_header_and_body() {
    let health = Health::new();
    health.started();
    health.drain();
    let stuck = health.liveness("event loop");
    stuck.report(buttress::health::Status::Degraded, None);
    let layer = HealthLayer::new(health).http();
    for (path, status, word) in
        [("/livez", 200, "degraded"), ("/readyz", 503, "out-of-service"), ("/startupz", 200, "up")]
    {
        for (method, content) in [("GET", format!("{word}\n")), ("HEAD", String::new())] {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            let response = answered(layer.clone(), request).await;
            assert_eq!((response.status().as_u16(), &response.headers()["x-health"]), (status, &word.parse().unwrap()));
            assert_eq!(response.headers()["cache-control"], "no-store");
            assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), content, "{method} {path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_waits_thirty_seconds_for_a_reader_and_a_client_as_long_as_it_takes() {
    use buttress_test::Part;
    let inner = || Inner::new(Plan::of(Answer::Body(vec![Part::Data("a"), Part::Data("b")])));
    let timeout = || TimeoutLayer::total(Duration::from_secs(1));
    for (waits, is_whole) in [(29, true), (31, false)] {
        let request = || Request::new(TestBody::default());
        let (http, grpc) = (timeout().http().layer(inner()), timeout().grpc().layer(inner()));
        let client = timeout().http_client().layer(inner()).oneshot(request()).await.unwrap();
        let servers = [http.oneshot(request()).await.unwrap(), grpc.oneshot(request()).await.unwrap()];
        tokio::time::sleep(Duration::from_secs(waits)).await;
        for response in servers {
            assert_eq!(response.into_body().collect().await.is_ok(), is_whole, "after {waits} s");
        }
        assert!(client.into_body().collect().await.is_ok());
    }
}
