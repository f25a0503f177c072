//! What servers tell callers of their rate.

use buttress::{
    Rejection,
    gate::GateLayer,
    keyed::Keyed,
    policy::{Advertised, AllOf},
    rate_limit::{RATE_LIMITED, TOO_LARGE},
};
use buttress_http::prelude::*;
use buttress_test::{Answer, BoxError, Inner, Plan, TestBody};
use http::{HeaderMap, Request, Response};
use std::time::Duration;
use tower::{Layer, Service, ServiceExt};

const MINUTE: Duration = Duration::from_secs(60);

/// Sends calls through one service. Returns the statuses and headers of the responses.
async fn answers<L, B>(layer: L, requests: impl IntoIterator<Item = Request<TestBody>>) -> Vec<(u16, HeaderMap)>
where
    L: Layer<Inner, Service: Service<Request<TestBody>, Response = Response<B>, Error = BoxError> + Clone>,
{
    let service = layer.layer(Inner::new(Plan::of(Answer::Response(Response::new(vec![])))));
    let mut answers = Vec::new();
    for request in requests {
        let response = service.clone().oneshot(request).await.unwrap();
        answers.push((response.status().as_u16(), response.headers().clone()));
    }
    answers
}

fn request(path: &str) -> Request<TestBody> {
    Request::builder().uri(path).body(TestBody::default()).unwrap()
}

fn all<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_caller_over_its_rate_gets_429_with_its_quota_and_when_to_come_back() {
    let layer = RateLimitLayer::named("search", 2, MINUTE);
    let answers = answers(layer.http(), [(); 3].map(|()| request("/"))).await;
    let [(200, first), (200, _), (429, rejected)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(all(first, "ratelimit"), Vec::<&str>::new(), "an admitted call is not told unless it is asked for");
    assert_eq!(all(rejected, "ratelimit"), [r#""search";r=0;t=30"#]);
    assert_eq!(all(rejected, "ratelimit-policy"), [r#""search";q=2;w=60"#]);
    assert_eq!(rejected["x-buttress-rejected"], "rate_limited");
    let after: u64 = rejected["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((30..=33).contains(&after), "not before `t`, and not all at once: {after}");
}

#[tokio::test(start_paused = true)]
async fn admitted_calls_are_told_what_is_left_if_it_is_advertised() {
    let layer = RateLimitLayer::named("search", 2, MINUTE).advertise();
    let answers = answers(layer.http(), [(); 3].map(|()| request("/"))).await;
    let left: Vec<_> = answers.iter().map(|(_, headers)| all(headers, "ratelimit")[0]).collect();
    assert_eq!(left, [r#""search";r=1;t=30"#, r#""search";r=0;t=30"#, r#""search";r=0;t=30"#]);
    let policies: Vec<_> = answers.iter().map(|(_, headers)| all(headers, "ratelimit-policy").len()).collect();
    assert_eq!(policies, [1, 1, 1], "a rejection is told once");
}

#[tokio::test(start_paused = true)]
async fn each_limit_on_a_call_is_told() {
    let limit = |name, calls| Advertised::new(RateLimit::named(name, calls, MINUTE));
    let layer = GateLayer::with_policy(AllOf::new(limit("a", 5), limit("b", 9)));
    let answers = answers(layer.http(), [request("/")]).await;
    assert_eq!(all(&answers[0].1, "ratelimit"), [r#""a";r=4;t=12"#, r#""b";r=8;t=7"#]);
}

#[tokio::test(start_paused = true)]
async fn each_customer_is_told_of_its_own_calls() {
    let quota = RateLimit::new(3, MINUTE);
    let key = |request: &Request<TestBody>| request.uri().path().to_owned();
    let layer = GateLayer::with_policy(Keyed::new(key, move |_: &String| quota.new_bucket())).advertise();
    let answers = answers(layer.http(), [request("/a"), request("/a"), request("/b")]).await;
    let left: Vec<_> = answers.iter().map(|(_, headers)| all(headers, "ratelimit")[0]).collect();
    assert_eq!(left, [r#""default";r=2;t=20"#, r#""default";r=1;t=20"#, r#""default";r=2;t=20"#]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_never_admitted_is_forbidden_and_not_invited_to_come_back() {
    let layer = RateLimitLayer::per_second(5).cost(|_: &Request<TestBody>| 6);
    let answers = answers(layer.http(), [request("/")]).await;
    let (status, headers) = &answers[0];
    assert_eq!((*status, headers.get("retry-after"), headers.get("ratelimit")), (403, None, None));
    assert_eq!(headers["x-buttress-rejected"], TOO_LARGE.word());
}

#[tokio::test(start_paused = true)]
async fn a_grpc_call_over_its_rate_is_resource_exhausted_with_a_pushback() {
    let layer = RateLimitLayer::named("search", 1, MINUTE).advertise();
    let answers = answers(layer.grpc(), [request("/"), request("/")]).await;
    assert_eq!(answers[0].1.get("ratelimit"), None, "the headers are those of HTTP APIs");
    let headers = &answers[1].1;
    assert_eq!((&headers["grpc-status"], headers.get("ratelimit")), (&"8".parse().unwrap(), None));
    let pushback: u64 = headers["grpc-retry-pushback-ms"].to_str().unwrap().parse().unwrap();
    assert!((60_000..=66_000).contains(&pushback), "{pushback}");
}

#[tokio::test(start_paused = true)]
async fn a_client_gets_an_error_and_adds_nothing_to_responses() {
    let layer = RateLimitLayer::named("search", 1, MINUTE).advertise().http_client();
    let service = layer.layer(Inner::new(Plan::of(Answer::Response(Response::new(vec![])))));
    let response = service.clone().oneshot(request("/")).await.unwrap();
    assert_eq!(response.headers().get("ratelimit"), None);
    let error = service.clone().oneshot(request("/")).await.map(drop).unwrap_err();
    assert_eq!(error.rejection().map(Rejection::reason), Some(&RATE_LIMITED));
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_rate_learns_from_what_http_and_grpc_say() {
    let throttles = |grpc: bool, status: u16, headers: &[(&'static str, &'static str)]| {
        let mut response = Response::new(vec![]);
        *response.status_mut() = status.try_into().unwrap();
        response.headers_mut().extend(headers.iter().map(|(k, v)| (Some(k.parse().unwrap()), v.parse().unwrap())));
        async move {
            let rate = AdaptiveRate::new();
            let inner = Inner::new(Plan::of(Answer::Response(response)));
            if grpc {
                drop(AdaptiveRateLayer::from(rate.clone()).grpc_client().layer(inner).oneshot(request("/")).await);
            } else {
                drop(AdaptiveRateLayer::from(rate.clone()).http_client().layer(inner).oneshot(request("/")).await);
            }
            rate.limit().is_some()
        }
    };
    assert!(throttles(false, 429, &[]).await);
    assert!(throttles(false, 503, &[("x-buttress-rejected", "rate_limited")]).await);
    assert!(throttles(false, 503, &[("x-envoy-ratelimited", "true")]).await);
    assert!(throttles(true, 200, &[("grpc-status", "8"), ("grpc-retry-pushback-ms", "10")]).await);
    assert!(!throttles(false, 500, &[]).await);
    assert!(!throttles(false, 503, &[("retry-after", "1")]).await);
    assert!(!throttles(true, 200, &[("grpc-status", "14")]).await);
}
