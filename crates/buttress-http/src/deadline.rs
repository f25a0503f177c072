//! Deadlines on the wire: the time that is left of a call, in a header.

mod wire;

pub(crate) use wire::shorten;

use crate::ending::{Client, Server, Speaks};
use buttress::deadline::{Asked, CarryDeadline, Deadline};
use http::Request;
use std::time::Duration;

fn asked<B>(request: &Request<B>) -> Asked {
    let until = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
    Asked::new(wire::read(request.headers()), until)
}

/// Takes the time that the caller grants from the headers, and leaves the deadline as an extension
/// for handlers.
impl<S, C, R, B> CarryDeadline<Request<B>> for Server<S, C, R> {
    fn asked(&self, request: &Request<B>) -> Asked {
        asked(request)
    }

    fn hand_on(&self, request: &mut Request<B>, deadline: Deadline, _: Duration) {
        request.extensions_mut().insert(deadline);
    }
}

/// Writes the time that is left into the header of the protocol. A time that the caller has put
/// there, as tonic's `set_timeout` does, shortens the deadline.
impl<S: Speaks, C, R, B> CarryDeadline<Request<B>> for Client<S, C, R> {
    fn asked(&self, request: &Request<B>) -> Asked {
        asked(request)
    }

    fn hand_on(&self, request: &mut Request<B>, _: Deadline, left: Duration) {
        let headers = request.headers_mut();
        let is_grpc = S::is_grpc(headers);
        wire::write(headers, left, is_grpc);
    }
}

#[cfg(test)]
mod tests;
