//! A retry on a server.

use buttress_http::prelude::*;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use std::convert::Infallible;
use tower::{Service, ServiceBuilder};

async fn handler(_: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::default())
}

fn main() {
    let mut service = ServiceBuilder::new().layer(RetryLayer::new(3).http()).service_fn(handler);
    let _ = Service::<Request<Full<Bytes>>>::call(&mut service, Request::default());
}
