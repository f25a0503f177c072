//! Two lanes for the requests of a service: one for reads, one for the rest. Each has its own
//! layer, such as a bulkhead, so that orders that wait for a slow payment leave places for reads of
//! the catalogue, and a burst of reads leaves places for orders.

use std::task::{Context, Poll};

use http::{Method, Request};
use tower::util::Oneshot;
use tower::{Layer, Service, ServiceExt};

/// Applies one of two layers to each request.
#[derive(Clone, Copy, Debug)]
pub struct LanesLayer<L> {
    pub reads: L,
    pub writes: L,
}

/// The service of [`LanesLayer`]. Always ready: each lane admits requests when they are called.
#[derive(Clone, Copy, Debug)]
pub struct Lanes<S> {
    reads: S,
    writes: S,
}

impl<S: Clone, L: Layer<S>> Layer<S> for LanesLayer<L> {
    type Service = Lanes<L::Service>;

    fn layer(&self, inner: S) -> Self::Service {
        Lanes { reads: self.reads.layer(inner.clone()), writes: self.writes.layer(inner) }
    }
}

impl<B, S: Service<Request<B>> + Clone> Service<Request<B>> for Lanes<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Oneshot<S, Request<B>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let lane = if is_read(&request) { &self.reads } else { &self.writes };
        lane.clone().oneshot(request)
    }
}

/// Whether a request changes nothing: GET and HEAD, and gRPC methods named Get or List, as all in
/// this repository that only read are.
fn is_read<B>(request: &Request<B>) -> bool {
    let called = request.uri().path().rsplit('/').next().unwrap_or_default();
    let grpc = request.method() == Method::POST && (called.starts_with("Get") || called.starts_with("List"));
    grpc || matches!(*request.method(), Method::GET | Method::HEAD)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::layer::layer_fn;

    use super::*;

    #[tokio::test]
    async fn reads_and_writes_pass_their_own_layers() {
        let lane = |name: &'static str| layer_fn(move |inner| tower::util::MapResponse::new(inner, move |()| name));
        let inner = tower::service_fn(async |_: Request<()>| Ok::<_, Infallible>(()));
        let lanes = LanesLayer { reads: lane("reads"), writes: lane("writes") }.layer(inner);
        for (method, path, expected) in [
            ("GET", "/v1/products", "reads"),
            ("HEAD", "/v1/orders/1", "reads"),
            ("POST", "/v1/orders", "writes"),
            ("PUT", "/v1/Get", "writes"),
            ("POST", "/payment.v1.PaymentService/GetPayment", "reads"),
            ("POST", "/inventory.v1.InventoryService/ListProducts", "reads"),
            ("POST", "/inventory.v1.InventoryService/Reserve", "writes"),
        ] {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            assert_eq!(lanes.clone().oneshot(request).await.unwrap(), expected, "{method} {path}");
        }
    }
}
