//! Limits on calls in flight over sockets: streams, unread responses, callers that hang up, panics,
//! and priorities while a server is full.

use axum::{Router, body::Body, routing::any};
use buttress::{
    bulkhead::Discipline,
    concurrency::Fixed,
    gate::GateLayer,
    policy::{Criticality, Priority},
};
use buttress_http::prelude::*;
use buttress_stack_tests::{
    Client, Door, PATIENCE, Server, axum_server, client, client_h2, eventually, get, soon, streams, text,
};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use std::time::Duration;
use tokio::task::JoinHandle;
use tower::{ServiceBuilder, ServiceExt};

/// A limit that does not adapt, so that a test can count on it.
fn fixed(limit: usize) -> AdaptiveLimit<Fixed> {
    AdaptiveLimit::builder("handlers").algorithm(Fixed).limits(1..=limit).initial(limit).build().unwrap()
}

fn behind(door: &Door) -> Router {
    let door = door.clone();
    Router::new().fallback(async move || door.pass().await)
}

fn clients() -> [Client; 2] {
    [client(), client_h2()]
}

/// Gives calls of `/pay` the most important class, and others the least, as an edge does.
fn by_path(request: &Request<Body>) -> Option<Priority> {
    let is_payment = request.uri().path() == "/pay";
    Some(if is_payment { Criticality::CriticalPlus } else { Criticality::Sheddable }.into())
}

/// Sends a call in a task, and waits until the server has it.
async fn sent(client: &Client, server: &Server, path: &str, has_it: impl Fn() -> bool) -> JoinHandle<StatusCode> {
    let call = client.request(get(server.uri(path)));
    let call = tokio::spawn(async move { call.await.unwrap().status() });
    eventually(has_it).await;
    call
}

#[tokio::test]
async fn streams_that_take_all_places_get_places_of_their_own_and_leave_none_behind() {
    for client in clients() {
        let builder = AdaptiveLimit::builder("handlers").algorithm(Fixed).limits(1..=100).initial(2);
        let limit = builder.window(Duration::from_millis(10)).build().unwrap();
        let (mut app, mut senders) = (Router::new().route("/", any(async || "here")), Vec::new());
        for n in 0..5 {
            let (sender, route) = streams(());
            senders.push(sender);
            app = app.route(&format!("/{n}"), route);
        }
        let server = axum_server(app.layer(AdaptiveLimitLayer::from(limit.clone()).http())).await;
        // Until a window is over, the third stream finds no place.
        let admitted = async |path: &str| loop {
            let response = client.request(get(server.uri(path))).await.unwrap();
            if response.status() == 200 {
                return response;
            }
        };
        let mut bodies = Vec::new();
        for (n, sender) in senders.iter_mut().enumerate() {
            sender.send_data(Bytes::from_static(b"first")).await.unwrap();
            bodies.push(soon(admitted(&format!("/{n}"))).await.into_body());
        }
        assert_eq!((limit.snapshot().streaming, limit.in_flight()), (5, 5));
        assert_eq!(text(soon(admitted("/")).await).await, "here");
        // Two are read to their end, the others dropped.
        drop(senders);
        bodies.truncate(2);
        for body in bodies {
            soon(body.collect()).await.unwrap();
        }
        eventually(|| limit.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn unread_and_empty_responses_give_their_places_back() {
    let (limit, rate) = (fixed(1), RateLimit::per_second(1_000_000));
    let layers = ServiceBuilder::new()
        .layer(LoadShedLayer::new("server").http())
        .layer(GateLayer::with_policy(rate).advertise().http())
        .layer(AdaptiveLimitLayer::from(limit.clone()).http());
    for (method, status) in
        [(Method::HEAD, 200), (Method::GET, 204), (Method::GET, 304), (Method::GET, 404), (Method::GET, 200)]
    {
        let status = StatusCode::from_u16(status).unwrap();
        let server = axum_server(Router::new().fallback(async move || (status, "hello")).layer(layers.clone())).await;
        for client in clients() {
            let (throttle, ours) = (Throttle::new("server"), fixed(1));
            let service = ServiceBuilder::new()
                .layer(ThrottleLayer::from(throttle.clone()).http_client())
                .layer(AdaptiveRateLayer::new().wait(PATIENCE).http_client())
                .layer(AdaptiveLimitLayer::from(ours.clone()).http_client())
                .service(client);
            for done in 1..=3 {
                let request = Request::builder().method(method.clone()).uri(server.uri("/"));
                let response = soon(service.clone().oneshot(request.body(Body::empty()).unwrap())).await.unwrap();
                assert_eq!(response.status(), status);
                drop(response);
                assert_eq!((throttle.counts().accepted, ours.in_flight()), (done, 0));
                eventually(|| limit.in_flight() == 0).await;
            }
        }
    }
}

#[tokio::test]
async fn callers_that_hang_up_in_a_queue_with_classes_leave_nothing_behind() {
    for discipline in [Discipline::Fifo, Discipline::Lifo, Discipline::Adaptive] {
        for client in clients() {
            let (door, places) = (Door::new(), Bulkhead::new(1));
            let layer = BulkheadLayer::from(places.clone()).queue(10, Duration::MAX).discipline(discipline);
            let layer = layer.reserve(Criticality::Sheddable, 0.5).unwrap().http();
            let layers = ServiceBuilder::new().layer(ContextLayer::new().priority_by(by_path).http()).layer(layer);
            let server = axum_server(behind(&door).layer(layers)).await;
            let first = sent(&client, &server, "/", || places.in_flight() == 1).await;
            let mut calls = Vec::new();
            for (n, path) in ["/pay", "/", "/pay", "/"].into_iter().enumerate() {
                calls.push(sent(&client, &server, path, || places.waiting() == n + 1).await);
            }
            calls.iter().for_each(JoinHandle::abort);
            eventually(|| places.waiting() == 0).await;
            door.open_wide();
            assert_eq!(soon(first).await.unwrap(), 200);
            eventually(|| places.in_flight() == 0).await;
            let classes = [Criticality::CriticalPlus, Criticality::Sheddable].map(|class| places.in_flight_of(class));
            assert_eq!((classes, door.entered()), ([Some(0), Some(0)], 1), "{discipline:?}");
        }
    }
}

#[tokio::test]
async fn a_full_server_with_a_queue_answers_the_important_calls_and_sheds_the_others() {
    for client in clients() {
        let (door, places) = (Door::new(), Bulkhead::new(2));
        let layers = ServiceBuilder::new()
            .layer(ContextLayer::new().priority_by(by_path).http())
            .layer(BulkheadLayer::from(places.clone()).queue(4, Duration::MAX).http());
        let server = axum_server(behind(&door).layer(layers)).await;
        let mut low = Vec::new();
        for n in 1..=6 {
            low.push(sent(&client, &server, "/", || places.in_flight() + places.waiting() == n).await);
        }
        let mut high = Vec::new();
        for n in 1..=4 {
            high.push(sent(&client, &server, "/pay", || places.rejected() == n).await);
        }
        door.open_wide();
        for call in high {
            assert_eq!(soon(call).await.unwrap(), 200);
        }
        let mut statuses = Vec::new();
        for call in low {
            statuses.push(soon(call).await.unwrap().as_u16());
        }
        assert_eq!(statuses, [200, 200, 503, 503, 503, 503]);
    }
}

#[tokio::test]
async fn a_full_server_with_an_adaptive_limit_keeps_its_last_places_for_the_important_calls() {
    for client in clients() {
        let (door, limit) = (Door::new(), fixed(10));
        let layers = ServiceBuilder::new()
            .layer(ContextLayer::new().priority_by(by_path).http())
            .layer(AdaptiveLimitLayer::from(limit.clone()).http());
        let server = axum_server(behind(&door).layer(layers)).await;
        let status = async |path| soon(client.request(get(server.uri(path)))).await.unwrap().status();
        let mut calls = Vec::new();
        for n in 1..=10 {
            calls.push(sent(&client, &server, "/", || limit.in_flight() == n).await);
        }
        assert_eq!(
            (status("/").await, status("/pay").await),
            (StatusCode::SERVICE_UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE)
        );
        (0..2).for_each(|_| door.open());
        eventually(|| limit.in_flight() == 8).await;
        assert_eq!(status("/").await, 503, "the last places are kept");
        let important = sent(&client, &server, "/pay", || limit.in_flight() == 9).await;
        door.open_wide();
        assert_eq!(soon(important).await.unwrap(), 200);
        for call in calls {
            assert_eq!(soon(call).await.unwrap(), 200);
        }
    }
}

#[tokio::test]
async fn a_handler_that_panics_leaves_nothing_behind() {
    let (limit, places) = (fixed(1), Bulkhead::new(1));
    let layers = ServiceBuilder::new()
        .layer(LoadShedLayer::new("server").http())
        .layer(RateLimitLayer::per_second(1_000_000).wait(PATIENCE).http())
        .layer(AdaptiveLimitLayer::from(limit.clone()).http())
        .layer(BulkheadLayer::from(places.clone()).queue(1, PATIENCE).http());
    let fails = async |request: Request<Body>| assert_eq!(request.uri().path(), "/", "a handler that panics");
    let server = axum_server(Router::new().fallback(fails).layer(layers)).await;
    for client in clients() {
        for _ in 0..3 {
            soon(client.request(get(server.uri("/panics")))).await.unwrap_err();
            eventually(|| (limit.in_flight(), places.in_flight()) == (0, 0)).await;
        }
        assert_eq!(soon(client.request(get(server.uri("/")))).await.unwrap().status(), 200);
    }
}

/// Panics for calls of `/panics`.
fn asks<T>(request: &Request<Body>, answer: T) -> T {
    assert_eq!(request.uri().path(), "/", "a function of the request that panics");
    answer
}

#[tokio::test]
async fn a_function_of_the_request_that_panics_fails_its_call_alone() {
    let app = || Router::new().fallback(async || "here");
    let apps = [
        app().layer(ContextLayer::new().priority_by(|request: &Request<Body>| asks(request, None)).http()),
        app().layer(LoadShedLayer::new("server").exempt(|request: &Request<Body>| asks(request, false)).http()),
        app().layer(LoadShedLayer::new("server").fair_by(|request: &Request<Body>| asks(request, 1)).http()),
        app().layer(LoadShedLayer::new("server").waited_by(|request: &Request<Body>| asks(request, None)).http()),
        app().layer(RateLimitLayer::per_second(100).cost(|request: &Request<Body>| asks(request, 1)).http()),
    ];
    for app in apps {
        let server = axum_server(app).await;
        for client in clients() {
            soon(client.request(get(server.uri("/panics")))).await.unwrap_err();
            assert_eq!(soon(client.request(get(server.uri("/")))).await.unwrap().status(), 200);
        }
    }
}
