use crate::{BoxError, Inner, TestBody};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use std::future::Future;
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};

/// The service that a scenario calls. Boxed, so that scenarios are not generic. The box forwards
/// `poll_ready` and `clone`.
pub(crate) type Boxed = BoxCloneSyncService<Request<TestBody>, Response<AnyBody>, BoxError>;
pub(crate) type AnyBody = UnsyncBoxBody<Bytes, BoxError>;
pub(crate) type Reply = Result<Response<AnyBody>, BoxError>;

/// A layer with its types erased.
pub(crate) struct Subject(Box<dyn Fn(Inner) -> Boxed>);

impl Subject {
    pub(crate) fn new<L, B>(layer: L) -> Self
    where
        L: Layer<Inner> + 'static,
        L::Service: Service<Request<TestBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
        L::Service: Clone + Send + Sync + 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Self(Box::new(move |inner| {
            let service = layer.layer(inner).map_err(Into::into);
            let boxed = |body: B| UnsyncBoxBody::new(body.map_err(Into::into));
            BoxCloneSyncService::new(service.map_response(move |response| response.map(boxed)))
        }))
    }

    /// Makes another service of the layer, as axum does for each connection.
    pub(crate) fn service(&self, inner: &Inner) -> Boxed {
        (self.0)(inner.clone())
    }
}

/// Runs a scenario on a paused clock, which advances when every task waits.
pub(crate) fn on_virtual_time(scenario: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime can be built").block_on(scenario);
}
