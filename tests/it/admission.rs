//! Priorities over sockets: from an edge over a service to a backend, in HTTP and in gRPC.

use axum::{Router, body::Body, routing::get};
use buttress::{
    context,
    policy::{CallContext, Criticality, Priority},
};
use buttress_http::{is_probe, prelude::*};
use buttress_stack_tests::{Script, ask, axum_server, channel, client, get as get_request, grpc_server, soon, text};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Uri};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};
use tonic::transport::Server;
use tonic_health::pb::{health_client::HealthClient, health_server::HealthServer};
use tower::{ServiceBuilder, ServiceExt};

fn priority() -> String {
    context::current().priority.map_or("none".to_owned(), |priority| priority.to_string())
}

/// A body of two frames, each of which says in which context it was made.
async fn stream_of_priorities() -> Body {
    let frame = |_| async {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(Bytes::from(format!("{} ", priority())))
    };
    Body::from_stream(stream::StreamExt::then(stream::iter(0..2), frame))
}

/// Passes the call on, as a handler does.
async fn pass_on(uri: Uri) -> String {
    let client = ServiceBuilder::new().layer(ContextLayer::new().http_client()).service(client());
    text(client.oneshot(get_request(uri)).await.unwrap()).await
}

#[tokio::test]
async fn the_edge_decides_and_every_hop_and_stream_behind_it_has_that_priority() {
    let stack = || {
        ServiceBuilder::new()
            .layer(ContextLayer::new().trust_priority().http())
            .layer(LoadShedLayer::new("service").exempt(is_probe::<Body>).http())
    };
    let backend = axum_server(Router::new().route("/", get(stream_of_priorities)).layer(stack())).await;
    let to_backend = backend.uri("/");
    let middle = axum_server(Router::new().route("/", get(move || pass_on(to_backend))).layer(stack())).await;
    let to_middle = middle.uri("/");
    let route = get(move || pass_on(to_middle));
    let by_path =
        |request: &Request<Body>| (request.uri().path() == "/report").then_some(Criticality::Sheddable.into());
    let edge = Router::new().route("/report", route.clone()).route("/order", route);
    let edge = axum_server(edge.layer(ContextLayer::new().priority_by(by_path).http())).await;

    let ask = async |path: &str, header: &str| {
        let mut request = get_request(edge.uri(path));
        request.headers_mut().insert("x-priority", header.parse().unwrap());
        text(soon(client().request(request)).await.unwrap()).await
    };
    assert_eq!(ask("/report", "0").await, "3;64 3;64 ");
    assert_eq!(ask("/order", "0").await, "none none ", "the edge trusts no caller");
}

#[tokio::test]
async fn a_priority_travels_through_a_tonic_channel_to_a_tonic_server() {
    let seen = Arc::new(Mutex::new(Vec::<Option<Priority>>::new()));
    let layers = {
        let seen = seen.clone();
        ServiceBuilder::new()
            .layer(ContextLayer::new().trust_priority().grpc())
            .layer(LoadShedLayer::new("health").exempt(is_probe::<tonic::body::Body>).grpc())
            .map_request(move |request: Request<tonic::body::Body>| {
                seen.lock().unwrap().push(context::current().priority);
                request
            })
            .into_inner()
    };
    let server = grpc_server(Server::builder().layer(layers).add_service(HealthServer::new(Script::new()))).await;
    let channel = ServiceBuilder::new()
        .layer(ContextLayer::new().grpc_client())
        .layer(ThrottleLayer::new("health").grpc_client())
        .service(channel(&server));
    let mut health = HealthClient::new(channel);
    soon(health.check(ask("ok"))).await.unwrap();
    let urgent = CallContext::default().with_priority("0;5".parse().unwrap());
    soon(context::with(urgent, health.check(ask("ok")))).await.unwrap();
    // The extension of a request wins over the context.
    let mut request = tonic::Request::new(ask("ok"));
    request.extensions_mut().insert(Priority::from(Criticality::Sheddable));
    soon(context::with(urgent, health.check(request))).await.unwrap();
    let expected = [None, urgent.priority, Some(Criticality::Sheddable.into())];
    assert_eq!(*seen.lock().unwrap(), expected);
}
