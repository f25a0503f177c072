//! A cache and a single flight between hyper's client and an axum server.

use axum::{
    Router,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use buttress_http::{
    HttpKey,
    cache::{Cache, CacheLayer, CacheStatus},
    prelude::*,
};
use buttress_stack_tests::{Door, axum_server, client, fresh_client, get as get_request, soon, text};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::task::JoinSet;
use tower::{ServiceBuilder, ServiceExt};

/// Answers with a version and its `ETag`, or with 304 if the caller has it.
async fn versioned(headers: HeaderMap, version: usize) -> Response {
    let tag = format!("\"{version}\"");
    let head = [(header::ETAG, tag.clone()), (header::CACHE_CONTROL, "no-cache".to_owned())];
    match headers.get(header::IF_NONE_MATCH) {
        Some(known) if known.as_bytes() == tag.as_bytes() => (StatusCode::NOT_MODIFIED, head).into_response(),
        _ => (head, format!("version {version}")).into_response(),
    }
}

#[tokio::test]
async fn a_response_is_revalidated_by_its_etag() {
    let version = Arc::new(AtomicUsize::new(1));
    let current = version.clone();
    let server =
        axum_server(Router::new().route("/", get(move |headers| versioned(headers, current.load(SeqCst))))).await;
    let cache = Cache::new("rows");
    let stack = ServiceBuilder::new().layer(CacheLayer::from(cache.clone())).service(client());
    let call = async || {
        let response = soon(stack.clone().oneshot(get_request(server.uri("/")))).await.unwrap();
        let status = *response.extensions().get::<CacheStatus>().unwrap();
        (status, text(response).await)
    };
    assert_eq!(call().await, (CacheStatus::Miss, "version 1".to_owned()));
    assert_eq!(call().await, (CacheStatus::Revalidated, "version 1".to_owned()));
    version.store(2, SeqCst);
    assert_eq!(call().await, (CacheStatus::Miss, "version 2".to_owned()));
    assert_eq!((cache.stats().revalidated, cache.stats().entries), (1, 1));
}

#[tokio::test]
async fn a_server_that_is_gone_is_answered_for_from_the_cache() {
    let server = axum_server(Router::new().route("/", get(async || "content"))).await;
    let cache = Cache::builder("rows").stale_if_error(Duration::from_secs(600)).build().unwrap();
    let stack = ServiceBuilder::new()
        .layer(CacheLayer::from(cache.clone()))
        .layer(CircuitBreakerLayer::new("rows").http_client())
        .service(fresh_client());
    let uri = server.uri("/");
    assert_eq!(text(soon(stack.clone().oneshot(get_request(uri.clone()))).await.unwrap()).await, "content");
    drop(server);
    for _ in 0..10 {
        let response = soon(stack.clone().oneshot(get_request(uri.clone()))).await.unwrap();
        assert_eq!(response.extensions().get(), Some(&CacheStatus::Stale));
        assert_eq!(text(response).await, "content");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_on_several_threads_share_a_request_to_the_server() {
    let door = Door::new();
    let route = get({
        let door = door.clone();
        async move || {
            door.pass().await;
            "content"
        }
    });
    let server = axum_server(Router::new().route("/", route)).await;
    let layer = SingleFlightLayer::with_key(HttpKey::new());
    let stats = layer.stats();
    let stack = ServiceBuilder::new().layer(layer.http_client()).service(client());
    let mut calls = JoinSet::new();
    for _ in 0..50 {
        calls.spawn(stack.clone().oneshot(get_request(server.uri("/"))));
    }
    soon(async {
        while stats.made() + stats.joined() < 50 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    door.open_wide();
    while let Some(call) = soon(calls.join_next()).await {
        assert_eq!(text(call.unwrap().unwrap()).await, "content");
    }
    assert_eq!((door.entered(), stats.made(), stats.joined()), (1, 1, 49));
}
