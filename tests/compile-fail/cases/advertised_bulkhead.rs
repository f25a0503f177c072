//! A bulkhead beside a rate limit has no quota to advertise.

use buttress_http::{
    buttress::{gate::GateLayer, policy::AllOf},
    prelude::*,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use std::convert::Infallible;
use tower::{ServiceBuilder, ServiceExt};

fn main() {
    let both = AllOf::new(RateLimit::per_second(10), Bulkhead::new(10));
    let service = ServiceBuilder::new()
        .layer(GateLayer::with_policy(both).advertise().http())
        .service_fn(async |_: Request<Full<Bytes>>| Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())));
    let _ = ServiceExt::<Request<Full<Bytes>>>::oneshot(service, Request::default());
}
