//! Networks between a client and its server: HTTP-only proxies, and networks that silently drop
//! data.

use axum::{Router, body::Body, routing::any};
use buttress::{Error, circuit_breaker::State};
use buttress_http::{prelude::*, tonic::StatusLayer};
use buttress_stack_tests::{
    Script, Server, ask, axum_server, channel, client, client_h2, get as get_request, grpc_server, reply, soon, text,
};
use http::{Request, Response};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
};
use tonic::transport::Endpoint;
use tonic_health::pb::{health_client::HealthClient, health_server::HealthServer};
use tower::{Service, ServiceBuilder, ServiceExt};

#[tokio::test]
async fn a_proxy_that_answers_a_grpc_call_in_http_means_what_grpc_says() {
    for (status, state) in [
        (400, State::Open),
        (401, State::Closed),
        (403, State::Closed),
        (404, State::Closed),
        (418, State::Open),
        // Overload is not a consecutive failure.
        (429, State::Closed),
        (502, State::Open),
        (503, State::Open),
        (504, State::Open),
    ] {
        let server = axum_server(Router::new().fallback(any(async move || reply(status, "from the proxy")))).await;
        let breaker = CircuitBreaker::new("backend");
        let stack = ServiceBuilder::new()
            .layer(StatusLayer)
            .layer(CircuitBreakerLayer::from(breaker.clone()).grpc_client())
            .service(channel(&server));
        let mut client = HealthClient::new(stack);
        for _ in 0..5 {
            soon(client.check(ask("ok"))).await.unwrap_err();
        }
        assert_eq!(breaker.state(), state, "{status}");
    }
}

/// A network between a client and a server. After [`swallow`](Self::swallow), all data on existing
/// connections is dropped, without a FIN or RST.
struct Network {
    server: Server,
    epoch: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Network {
    async fn before(address: SocketAddr) -> Self {
        let (epoch, connections) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (now, count) = (epoch.clone(), connections.clone());
        let server = Server::start(async move |listener| {
            let mut directions = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                count.fetch_add(1, SeqCst);
                let (from_client, to_client) = socket.into_split();
                let (from_server, to_server) = TcpStream::connect(address).await.unwrap().into_split();
                directions.spawn(forward(from_client, to_server, now.clone()));
                directions.spawn(forward(from_server, to_client, now.clone()));
            }
        })
        .await;
        Self { server, epoch, connections }
    }

    fn swallow(&self) {
        self.epoch.fetch_add(1, SeqCst);
    }

    fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, epoch: Arc<AtomicUsize>) {
    let (mine, mut buffer) = (epoch.load(SeqCst), vec![0; 16 * 1024]);
    loop {
        match from.read(&mut buffer).await {
            Ok(bytes @ 1..) if epoch.load(SeqCst) == mine => {
                if to.write_all(&buffer[..bytes]).await.is_err() {
                    return;
                }
            }
            Ok(1..) => {}
            // The client closed a connection whose peer does not answer.
            Ok(0) | Err(_) => return,
        }
    }
}

/// A circuit breaker for the attempts of a client, with an open time of 20 ms.
fn breaker() -> CircuitBreaker {
    let briefly = Duration::from_millis(20);
    CircuitBreaker::builder("backend").open_time(briefly..=briefly).build().unwrap()
}

const ATTEMPT: Duration = Duration::from_millis(50);

fn stack<S, B>(
    service: S,
    breaker: &CircuitBreaker,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Error> + Clone
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<buttress::BoxError>> + Clone,
    B: http_body::Body<Data = bytes::Bytes, Error: Into<buttress::BoxError>> + Send + 'static,
{
    ServiceBuilder::new()
        .map_response(|response: Response<_>| response.map(Body::new))
        .layer(CircuitBreakerLayer::from(breaker.clone()).http_client())
        .layer(TimeoutLayer::attempt(ATTEMPT).http_client())
        .service(service)
}

/// Repeats a call until it succeeds.
async fn recover(call: impl AsyncFn() -> bool) {
    soon(async {
        while !call().await {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn replaces_a_dead_connection(
    service: impl Service<Request<Body>, Response = Response<Body>, Error = Error> + Clone,
    network: &Network,
) {
    let call = async || match service.clone().oneshot(get_request(network.server.uri("/"))).await {
        Ok(response) => text(response).await == "hello",
        Err(_) => false,
    };
    recover(call).await;
    network.swallow();
    recover(call).await;
    assert!(network.connections() > 1);
}

async fn hello() -> (Server, Network) {
    let server = axum_server(Router::new().fallback(async || "hello")).await;
    let network = Network::before(server.address).await;
    (server, network)
}

#[tokio::test]
async fn without_keepalive_a_dead_http_2_connection_is_timed_out_and_opens_the_circuit() {
    let ((_server, network), breaker) = (hello().await, CircuitBreaker::new("backend"));
    let client = client_h2();
    let service = stack(client.clone(), &breaker);
    let call = async || service.clone().oneshot(get_request(network.server.uri("/"))).await;
    // Establishes the connection first, so that the attempt timeout does not include it.
    let response = soon(client.request(get_request(network.server.uri("/")))).await.unwrap();
    assert_eq!(text(response).await, "hello");
    network.swallow();
    while breaker.state() == State::Closed {
        let error = soon(call()).await.unwrap_err();
        assert_eq!(error.rejection().unwrap().reason(), &buttress::timeout::ATTEMPT);
    }
    assert_eq!(soon(call()).await.unwrap_err().rejection().unwrap().reason(), &buttress::circuit_breaker::OPEN);
    // All calls used the one existing connection.
    assert_eq!(network.connections(), 1);
}

#[tokio::test]
async fn a_dead_http_1_connection_is_replaced_after_one_timeout() {
    let ((_server, network), breaker) = (hello().await, breaker());
    replaces_a_dead_connection(stack(client(), &breaker), &network).await;
}

#[tokio::test]
async fn with_keepalive_hyper_replaces_a_dead_http_2_connection() {
    let ((_server, network), breaker) = (hello().await, breaker());
    let client = legacy::Client::builder(TokioExecutor::new())
        .http2_only(true)
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(ATTEMPT)
        .http2_keep_alive_timeout(ATTEMPT)
        .build_http::<Body>();
    replaces_a_dead_connection(stack(client, &breaker), &network).await;
}

#[tokio::test]
async fn with_keepalive_a_tonic_channel_replaces_a_dead_connection() {
    let script = Script::new();
    let server = grpc_server(tonic::transport::Server::builder().add_service(HealthServer::new(script))).await;
    let (network, breaker) = (Network::before(server.address).await, breaker());
    let channel = Endpoint::from(network.server.uri(""))
        .http2_keep_alive_interval(ATTEMPT)
        .keep_alive_timeout(ATTEMPT)
        .keep_alive_while_idle(true)
        .connect_lazy();
    let stack = ServiceBuilder::new()
        .layer(StatusLayer)
        .layer(CircuitBreakerLayer::from(breaker.clone()).grpc_client())
        .layer(TimeoutLayer::attempt(ATTEMPT).grpc_client())
        .service(channel);
    let call = async || HealthClient::new(stack.clone()).check(ask("ok")).await.is_ok();
    recover(call).await;
    network.swallow();
    recover(call).await;
    assert!(network.connections() > 1);
}
