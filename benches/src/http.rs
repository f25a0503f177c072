//! Buttress around HTTP. The outcome is read at the end of the response body, so the body is part
//! of the call.

use std::convert::Infallible;
use std::future::{self, Ready};
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use buttress::{BulkheadLayer, CircuitBreakerLayer};
use buttress_http::prelude::*;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{Empty, Full};
use tower::{Service, ServiceBuilder};

use crate::subject::{Expect, Family, Kind, Subject, batch, call};

const BARE: &str = "floor/bare_http_service";

pub(crate) fn subjects() -> Vec<Subject> {
    vec![
        subject(
            "buttress-http/circuit_breaker",
            Kind::Ours,
            ServiceBuilder::new().layer(CircuitBreakerLayer::new("backend").http_client()).service(BareHttp),
        ),
        subject(
            "buttress-http/bulkhead",
            Kind::Ours,
            ServiceBuilder::new().layer(BulkheadLayer::new(1_000).http()).service(BareHttp),
        ),
        subject(BARE, Kind::Floor, BareHttp),
    ]
}

fn subject<S, B>(name: &'static str, kind: Kind, service: S) -> Subject
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>> + Clone + Send + 'static,
    B: Body,
{
    let subject = Subject::new(name, kind, Family::Other, move || {
        let mut service = service.clone();
        batch(name, Expect::Ok, move || {
            let answer = call(&mut service, Request::new(Empty::new()));
            answer.is_ok_and(|answer| answer.status().is_success() && read(answer.into_body()))
        })
    });
    subject.baseline(BARE)
}

/// Reads a body to its end, as a server or a client does. The outcome is settled there.
fn read<B: Body>(body: B) -> bool {
    let mut body = pin!(body);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        match body.as_mut().poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => drop(black_box(frame)),
            Poll::Ready(None) => return true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => return false,
        }
    }
}

/// Answers 200 with a short body at once.
#[derive(Clone, Copy, Debug)]
struct BareHttp;

impl Service<Request<Empty<Bytes>>> for BareHttp {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Empty<Bytes>>) -> Self::Future {
        future::ready(Ok(Response::new(Full::new(Bytes::from_static(b"ok")))))
    }
}
