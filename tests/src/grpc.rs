use crate::{Door, Server};
use buttress::BoxError;
use std::{
    pin::Pin,
    sync::{Arc, Mutex},
};
use tokio_stream::{Stream, StreamExt, iter, wrappers::TcpListenerStream};
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    metadata::MetadataMap,
    service::Routes,
    transport::{Channel, Endpoint, server::Router},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_server::{Health, HealthServer},
};
use tower::{Layer, Service};

/// A gRPC service whose requests name the result in `service`: `ok`, the name of a code, or `hang`.
///
/// `Check` is unary. `Watch` streams two messages before the result.
#[derive(Clone, Debug)]
pub struct Script {
    /// Where `hang` waits.
    pub door: Door,
    /// The metadata of all received requests.
    pub seen: Arc<Mutex<Vec<MetadataMap>>>,
    /// Number of calls that still fail with `UNAVAILABLE`, whatever they request.
    pub failures: Arc<Mutex<usize>>,
}

impl Script {
    /// A service without failures.
    #[expect(clippy::new_without_default, reason = "a closed door is not a default")]
    pub fn new() -> Self {
        Self { door: Door::new(), seen: Arc::default(), failures: Arc::default() }
    }

    /// Number of received calls.
    pub fn calls(&self) -> usize {
        self.seen.lock().expect("no panic under the lock").len()
    }

    fn begin(&self, metadata: &MetadataMap) -> Result<(), Status> {
        self.seen.lock().expect("no panic under the lock").push(metadata.clone());
        let mut failures = self.failures.lock().expect("no panic under the lock");
        match failures.checked_sub(1) {
            Some(rest) => {
                *failures = rest;
                Err(Status::unavailable("not yet"))
            }
            None => Ok(()),
        }
    }

    async fn end(&self, service: &str) -> Result<(), Status> {
        match service {
            "ok" => Ok(()),
            "hang" => {
                self.door.pass().await;
                Ok(())
            }
            "internal" => Err(Status::internal("as asked")),
            "not-found" => Err(Status::not_found("as asked")),
            "unavailable" => Err(Status::unavailable("as asked")),
            other => Err(Status::new(Code::Unimplemented, other)),
        }
    }
}

#[tonic::async_trait]
impl Health for Script {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.begin(request.metadata())?;
        self.end(&request.get_ref().service).await?;
        Ok(Response::new(HealthCheckResponse { status: 1 }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.begin(request.metadata())?;
        let (script, service) = (self.clone(), request.into_inner().service);
        let messages = iter([1, 2].map(|status| Ok(HealthCheckResponse { status })));
        let (sender, end) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            tokio::select! {
                result = script.end(&service) => if let Err(status) = result {
                    // The caller may have disconnected.
                    let _ = sender.send(Err(status)).await;
                },
                () = sender.closed() => {}
            }
        });
        Ok(Response::new(Box::pin(messages.chain(tokio_stream::wrappers::ReceiverStream::new(end)))))
    }
}

/// Serves gRPC with any layers.
pub async fn grpc_server<L, B>(router: Router<L>) -> Server
where
    L: Layer<Routes, Service: Clone + Send> + Clone + Send + 'static,
    L::Service: Service<http::Request<Body>, Response = http::Response<B>, Error: Into<BoxError> + Send, Future: Send>,
    B: http_body::Body<Data = bytes::Bytes, Error: Into<BoxError>> + Send + 'static,
    L::Service: 'static,
{
    Server::start(|listener| async {
        router.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("a server does not end");
    })
    .await
}

/// A server of this script without layers, and a channel to it.
pub async fn script_server(script: &Script) -> (Server, Channel) {
    let server = grpc_server(tonic::transport::Server::builder().add_service(HealthServer::new(script.clone()))).await;
    let channel = channel(&server);
    (server, channel)
}

/// A channel that connects on first use.
pub fn channel(server: &Server) -> Channel {
    Endpoint::from(server.uri("")).connect_lazy()
}

/// A request to a [`Script`].
pub fn ask(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}
