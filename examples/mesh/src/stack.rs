//! Every stack of layers in the mesh, in one place. (Plain tower for now.)

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{from_fn, from_fn_with_state, Next};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::util::BoxCloneSyncService;
use tower::{ServiceBuilder, ServiceExt};

use crate::service::{Service, url};
use crate::{faults, problem};

pub type GrpcChannel = BoxCloneSyncService<http::Request<tonic::body::Body>, http::Response<tonic::body::Body>, tonic::Status>;
pub type HttpError = tower::BoxError;
pub type HttpChannel = BoxCloneSyncService<http::Request<Full<Bytes>>, http::Response<Body>, HttpError>;

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidConfig(String);

#[derive(Clone, Debug, Default)]
pub struct Health { started: Arc<AtomicBool>, draining: Arc<AtomicBool> }
impl Health {
    pub fn new() -> Self { Self::default() }
    pub fn started(&self) { self.started.store(true, Ordering::SeqCst); }
    pub fn drain(&self) { self.draining.store(true, Ordering::SeqCst); }
}
async fn health(State(health): State<Health>, request: Request, next: Next) -> Response {
    let started = health.started.load(Ordering::SeqCst);
    let ok = match request.uri().path() {
        "/livez" => true,
        "/startupz" => started,
        "/readyz" => started && !health.draining.load(Ordering::SeqCst),
        _ => return next.run(request).await,
    };
    (if ok { http::StatusCode::OK } else { http::StatusCode::SERVICE_UNAVAILABLE }).into_response()
}

#[derive(Clone, Debug)]
pub struct Admission;
impl Admission { pub fn new(_name: &'static str) -> Self { Self } }

#[derive(Clone, Debug)]
pub struct Dependency { pub name: &'static str }
#[derive(Clone, Debug, Default)]
pub struct Stats { pub retries: u64, pub rejected: u64 }

impl Dependency {
    pub fn grpc(&self, addr: SocketAddr) -> GrpcChannel {
        let channel = tonic::transport::Endpoint::from_shared(url(addr)).unwrap().timeout(Duration::from_millis(400)).connect_lazy();
        BoxCloneSyncService::new(ServiceBuilder::new().service(channel).map_err(|e| tonic::Status::from_error(e.into())))
    }
    pub fn http(&self, _addr: SocketAddr) -> HttpChannel {
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        BoxCloneSyncService::new(client.map_response(|r: http::Response<_>| r.map(Body::new)).map_err(Into::into))
    }
    pub fn on_transition(&self, _f: impl Fn(String, String, String) + Send + Sync + 'static) {}
    pub fn stats(&self) -> Stats { Stats::default() }
}

#[derive(Clone, Debug)]
pub struct OrderClients { pub payment: Dependency, pub inventory: Dependency }
impl OrderClients { pub fn new() -> Result<Self, InvalidConfig> { Ok(Self { payment: Dependency { name: "payment" }, inventory: Dependency { name: "inventory" } }) } }
#[derive(Clone, Debug)]
pub struct GatewayClients { pub order: Dependency, pub payment: Dependency, pub inventory: Dependency }
impl GatewayClients { pub fn new() -> Result<Self, InvalidConfig> { Ok(Self { order: Dependency { name: "order" }, payment: Dependency { name: "payment" }, inventory: Dependency { name: "inventory" } }) } }

pub fn timed_out(_error: &HttpError) -> bool { false }
pub fn retry_after(_error: &(dyn StdError + 'static)) -> Option<Duration> { None }

pub fn rest_server(routes: Router, service: &Service) -> Router {
    routes.fallback(problem::not_found)
        .layer(from_fn_with_state(service.faults.clone(), faults::inject))
        .layer(DefaultBodyLimit::max(16 * 1024))
        .layer(from_fn(problem::render))
        .layer(from_fn_with_state(service.health.clone(), health))
}
pub fn grpc_server(routes: Router, service: &Service) -> Router {
    routes
        .layer(from_fn_with_state(service.faults.clone(), faults::inject))
        .layer(from_fn_with_state(service.health.clone(), health))
}
