use crate::{ObservedBody, body::Ending, classify};
use buttress::{
    InFlight, Outcome, Permit,
    error::as_chain,
    observe::{Classify, Observe},
};
use http::Response;
use http_body::Body;

/// Reads outcomes from HTTP: the status, and whether the body comes to its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Http;

/// Reads outcomes from gRPC: `grpc-status`, in the headers of a trailers-only response or in the trailers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grpc;

fn error<E: 'static>(error: &E) -> Outcome {
    match as_chain(error) {
        Some(chain) => classify::error(chain),
        // An error of a type that cannot be looked into.
        None => buttress::Failure::new(buttress::FailureKind::Transport).into(),
    }
}

/// The outcome of a head, and whether it is final.
fn http_head<B>(response: &Response<B>) -> (Outcome, bool) {
    let outcome = classify::http_status(response.status(), response.headers());
    (outcome, outcome.is_failure())
}

fn grpc_head<B>(response: &Response<B>) -> (Outcome, bool) {
    match classify::grpc_headers(response.headers()) {
        Some(outcome) => (outcome, true),
        // Something on the way that speaks HTTP but not gRPC.
        None if !response.status().is_success() => http_head(response),
        None => (Outcome::Success, false),
    }
}

impl<B, E: 'static> Classify<Response<B>, E> for Http {
    fn classify(&self, result: Result<&Response<B>, &E>) -> Outcome {
        result.map_or_else(error, |response| http_head(response).0)
    }
}

impl<B, E: 'static> Classify<Response<B>, E> for Grpc {
    fn classify(&self, result: Result<&Response<B>, &E>) -> Outcome {
        result.map_or_else(error, |response| grpc_head(response).0)
    }
}

impl<B: Body, E: 'static> Observe<Response<B>, E> for Http {
    type Response<P: Permit> = Response<ObservedBody<B, P>>;

    fn observe<P: Permit>(&self, result: Result<Response<B>, E>, permit: InFlight<P>) -> Result<Self::Response<P>, E> {
        observe(result, permit, http_head, Ending::Http)
    }
}

impl<B: Body, E: 'static> Observe<Response<B>, E> for Grpc {
    type Response<P: Permit> = Response<ObservedBody<B, P>>;

    fn observe<P: Permit>(&self, result: Result<Response<B>, E>, permit: InFlight<P>) -> Result<Self::Response<P>, E> {
        observe(result, permit, grpc_head, Ending::Grpc)
    }
}

fn observe<B: Body, E: 'static, P: Permit>(
    result: Result<Response<B>, E>,
    permit: InFlight<P>,
    head: fn(&Response<B>) -> (Outcome, bool),
    ending: Ending,
) -> Result<Response<ObservedBody<B, P>>, E> {
    match result {
        Ok(response) => {
            let (outcome, is_final) = head(&response);
            Ok(response.map(|body| ObservedBody::new(body, permit, ending, is_final.then_some(outcome))))
        }
        Err(failed) => {
            permit.settle(&error(&failed));
            Err(failed)
        }
    }
}
