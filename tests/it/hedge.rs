//! Hedges over HTTP/2: what the server sees of the attempt that loses.

use axum::{Router, routing::any};
use buttress::Bulkhead;
use buttress_http::prelude::*;
use buttress_stack_tests::{Server, axum_server, client_h2, eventually, get, soon, text};
use http::Response;
use std::{
    future::{pending, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::sync::oneshot;
use tower::{Layer, ServiceBuilder, ServiceExt};

/// Which attempt arrives first does not matter: that one gets no answer.
fn soon_hedged() -> HedgeLayer {
    HedgeLayer::after(Duration::from_millis(1))
}

#[tokio::test]
async fn the_stream_of_the_loser_is_reset() {
    let (reset, was_reset) = oneshot::channel();
    let server = Server::start(async move |listener| {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(socket).await.unwrap();
        let (_, mut loser) = connection.accept().await.unwrap().unwrap();
        let (_, mut winner) = connection.accept().await.unwrap().unwrap();
        winner.send_response(Response::new(()), true).unwrap();
        let loser = tokio::spawn(async move { poll_fn(|cx| loser.poll_reset(cx)).await.unwrap() });
        // The connection is driven by accepting further streams.
        let further = async {
            if let Some(next) = connection.accept().await {
                panic!("a third attempt: {next:?}");
            }
            pending::<()>().await;
        };
        tokio::select! {
            () = further => {}
            reason = loser => reset.send(reason.unwrap()).unwrap(),
        }
        pending::<()>().await;
    })
    .await;
    let service = soon_hedged().http_client().layer(client_h2());
    // The clone keeps the connection open.
    assert_eq!(soon(service.clone().oneshot(get(server.uri("/")))).await.unwrap().status(), 200);
    assert_eq!(soon(was_reset).await.unwrap(), h2::Reason::CANCEL);
}

struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[tokio::test]
async fn the_handler_of_the_loser_is_dropped_and_its_place_is_free() {
    let (requests, in_flight) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (requests, in_flight) = (requests.clone(), in_flight.clone());
        any(move || async move {
            in_flight.fetch_add(1, SeqCst);
            let _in_flight = InFlight(in_flight);
            if requests.fetch_add(1, SeqCst) == 0 {
                pending::<()>().await;
            }
            "second"
        })
    };
    let server = axum_server(Router::new().route("/", handler)).await;
    let bulkhead = Bulkhead::new(10);
    let layer = soon_hedged();
    let stats = layer.stats();
    let service = ServiceBuilder::new()
        .layer(layer.http_client())
        .layer(BulkheadLayer::from(bulkhead.clone()).http_client())
        .service(client_h2());
    let response = soon(service.oneshot(get(server.uri("/")))).await.unwrap();
    assert_eq!(text(response).await, "second");
    assert_eq!((stats.hedges(), bulkhead.in_flight()), (1, 0));
    eventually(|| in_flight.load(SeqCst) == 0).await;
    assert_eq!(requests.load(SeqCst), 2);
}
