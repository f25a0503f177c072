use crate::{ObservedBody, body::Ending, classify};
use buttress::{
    InFlight, Outcome, Permit,
    observe::{Classify, Observe},
};
use http::{HeaderMap, Response, header};
use http_body::Body;

/// Reads outcomes from HTTP: the status, and whether the body comes to its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Http;

/// Reads outcomes from gRPC: `grpc-status`, in the headers of a trailers-only response or in the trailers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grpc;

fn error<E: 'static>(error: &E) -> Outcome {
    match classify::as_chain(error) {
        Some(chain) => classify::error(chain),
        // An error of a type that cannot be looked into.
        None => buttress::Failure::new(buttress::FailureKind::Transport).into(),
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
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

macro_rules! settles_at_the_end {
    ($observer:ty, $head:ident, $ending:expr) => {
        impl<B: Body, E: 'static> Observe<Response<B>, E> for $observer {
            type Response<P: Permit> = Response<ObservedBody<B, P>>;

            fn response<P: Permit>(&self, response: Response<B>, permit: &mut InFlight<P>) -> Self::Response<P> {
                let (outcome, is_final) = $head(&response);
                let (decided, promised) = (is_final.then_some(outcome), content_length(response.headers()));
                response.map(|body| ObservedBody::new(body, permit.take(), $ending, decided, promised))
            }

            fn error<P: Permit>(&self, failed: &E, permit: &mut InFlight<P>) {
                permit.settle(&error(failed));
            }
        }
    };
}

settles_at_the_end!(Http, http_head, Ending::Http);
settles_at_the_end!(Grpc, grpc_head, Ending::Grpc);
