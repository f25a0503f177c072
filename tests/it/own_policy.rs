//! A policy of a user: a token bucket.

use axum::{Router, routing::get};
use buttress::{
    metrics::Exporter,
    policy::{Class, Clock, Counted, GateLayer, Policy, Reason, Rejection, TokioClock},
};
use buttress_http::prelude::*;
use buttress_stack_tests::{Script, ask, axum_server, channel, client, get as get_request, grpc_server, soon};
use metrics_exporter_prometheus::PrometheusBuilder;
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tonic::Code;
use tonic_health::pb::{health_client::HealthClient, health_server::HealthServer};

static OVER_RATE: Reason = Reason::new("over_rate", "over its rate", Class::RateLimited);

/// One call in each interval, and `burst` at once.
#[derive(Clone)]
struct TokenBucket {
    interval: Duration,
    burst: f64,
    state: Arc<Mutex<(f64, Option<Instant>)>>,
}

impl TokenBucket {
    fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst: burst.into(), state: Arc::new(Mutex::new((burst.into(), None))) }
    }
}

impl<Req: ?Sized> Policy<Req> for TokenBucket {
    type Permit = ();

    fn admit(&self, _: &Req) -> Result<(), Rejection> {
        let (mut state, now) = (self.state.lock().unwrap(), TokioClock.now());
        let refill = state.1.map_or(0.0, |last| (now - last).div_duration_f64(self.interval));
        let tokens = (state.0 + refill).min(self.burst);
        let admitted = tokens >= 1.0;
        *state = (if admitted { tokens - 1.0 } else { tokens }, Some(now));
        let wait = self.interval.mul_f64((1.0 - tokens).max(0.0));
        if admitted { Ok(()) } else { Err(Rejection::new("token bucket", &OVER_RATE).after(Some(wait))) }
    }
}

#[tokio::test]
async fn a_token_bucket_of_a_user_answers_429_and_resource_exhausted_with_its_own_word() {
    let bucket = Counted::new("uploads", TokenBucket::new(Duration::from_secs(3600), 1));
    let layer = GateLayer::with_policy(bucket.clone()).http();

    let server = axum_server(Router::new().route("/", get(async || "here")).layer(layer.clone())).await;
    let answers = [(); 2].map(|()| client().request(get_request(server.uri("/"))));
    let [first, second] = answers;
    assert_eq!(soon(first).await.unwrap().status(), 200);
    let rejected = soon(second).await.unwrap();
    // An hour, and up to a minute more, so that rejected callers do not come back together.
    let after: u64 = rejected.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(rejected.status() == 429 && (3600..=3660).contains(&after), "{after}");
    assert_eq!(rejected.headers()["x-buttress-rejected"], "over_rate");

    let router = tonic::transport::Server::builder().layer(layer).add_service(HealthServer::new(Script::new()));
    let server = grpc_server(router).await;
    let status = soon(HealthClient::new(channel(&server)).check(ask("ok"))).await.unwrap_err();
    // The bucket has refilled a little since.
    let message = "token bucket: over its rate; try again in 3";
    assert!(status.message().starts_with(message), "{}", status.message());
    assert_eq!(status.code(), Code::ResourceExhausted);

    let recorder = PrometheusBuilder::new().build_recorder();
    let exporter = Exporter::new();
    exporter.add(&bucket);
    metrics::with_local_recorder(&recorder, || exporter.publish());
    let page = recorder.handle().render();
    assert!(page.contains(r#"resilience_policy_rejected{policy="uploads",reason="over_rate"} 2"#), "{page}");
}
