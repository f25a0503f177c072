//! A client underneath a retry whose body is fixed.

use buttress_http::prelude::*;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tower::{Service, ServiceBuilder};

fn main() {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut service = ServiceBuilder::new().layer(RetryLayer::new(3).http_client()).service(client);
    let _ = Service::<Request<Full<Bytes>>>::call(&mut service, Request::default());
}
